import { useState } from 'preact/hooks'

import { currentPlace } from '../place.ts'
import { chosenDevice, chosenSource, titleOf } from '../ui/model.tsx'
import { open, useSession, weight } from '../session.ts'

interface OnRealLayerProps {
  readonly what: string
  readonly matrix: string
  readonly isShown: boolean
  readonly onBack: () => void
  readonly onWeight: (name: string, weight: { rows: number; cols: number; data: Float32Array }) => void
}

/** Shows the lesson's figure on a matrix of the model that is open, which is opened first if need be. */
export function OnRealLayer({ what, matrix, isShown, onBack, onWeight }: OnRealLayerProps) {
  const { work, problem } = useSession()
  const [waits, setWaits] = useState(false)
  if (isShown) {
    return (
      <p class="real">
        <button type="button" onClick={onBack}>
          Back to the example
        </button>
      </p>
    )
  }
  const show = async () => {
    setWaits(true)
    const source = chosenSource(currentPlace())
    const layer = Number(currentPlace().params['layer'] ?? 0) || 0
    if (await open(source, await chosenDevice(currentPlace()))) {
      onWeight(`${titleOf(source)}, layer ${layer}, ${matrix}`, await weight(layer, matrix))
    }
    setWaits(false)
  }
  return (
    <p class="real">
      <button type="button" disabled={work !== null || waits} onClick={() => void show()}>
        {waits ? 'Opening the model …' : `Show ${what} of a real model`}
      </button>{' '}
      {!waits && <small>fetches the core and a model of 1 MB, once</small>}
      {problem !== null && <span class="problem">{problem}</span>}
    </p>
  )
}
