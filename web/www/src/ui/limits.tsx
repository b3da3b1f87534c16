import type { Mode } from '../core/protocol.ts'
import { setParams } from '../place.ts'
import { layerTooLarge, obstacle, useSession } from '../session.ts'

/** What cannot be done with the model that is open, and why: said before it is tried. */
export function Limits() {
  const session = useSession()
  const stands = obstacle(session)
  if (stands === null) return null
  const layer = layerTooLarge(session, 0)
  const what = layer === null ? 'It can be looked at, layer by layer, but not be observed or compressed here' : 'Not even a layer of it can be looked at here'
  return (
    <p class="problem">
      {what}: {layer ?? stands.why}.{' '}
      {stands.onProcessor ? (
        <button type="button" onClick={() => setParams({ device: 'cpu' })}>
          Compute on the processor
        </button>
      ) : (
        'The command line may do it.'
      )}
    </p>
  )
}

/** Beside what is switched off. */
export function WhyOff({ mode }: { readonly mode?: Mode }) {
  const stands = obstacle(useSession(), mode)
  return stands === null ? null : <p class="caption">Switched off for this model: {stands.why}.</p>
}
