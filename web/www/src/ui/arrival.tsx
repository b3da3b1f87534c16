import { useState } from 'preact/hooks'

import { setParams, usePlace } from '../place.ts'
import { KEPT_BYTES } from '../needs.ts'
import { fetchModel, obstacle, pause, removeModel, useSession, want } from '../session.ts'
import { folderOf, HUB } from './model.tsx'
import { bytes } from './number.ts'

/** Takes a model by its id at a hub, or by the address of its folder. */
export function FromServer({ disabled }: { disabled: boolean }) {
  const { params, view } = usePlace()
  const [model, setModel] = useState('')
  const [endpoint, setEndpoint] = useState(params['endpoint'] ?? '')
  const id = model.trim()
  const from = endpoint.trim() === '' ? undefined : endpoint.trim()
  const base = folderOf(id, from)
  const open = (event: Event) => {
    event.preventDefault()
    if (base === null) return
    // To explore a model takes a layer of it, to compress it takes all.
    want(base, view === 'compress')
    setParams({ model: id, endpoint: from, layer: undefined, matrix: undefined, held: undefined })
  }
  return (
    <details class="from-server">
      <summary>Fetch one by its hub id</summary>
      <form onSubmit={open}>
        <label>
          hub id or address of a folder
          <input type="text" placeholder="facebook/opt-125m" value={model} onInput={({ currentTarget }) => setModel(currentTarget.value)} />
        </label>
        <label>
          hub
          <input type="text" placeholder={HUB} value={endpoint} onInput={({ currentTarget }) => setEndpoint(currentTarget.value)} />
        </label>
        <button type="submit" disabled={disabled || base === null}>
          Fetch
        </button>
      </form>
      <p class="caption">
        OPT, Llama or GPT-2, as safetensors or pytorch_model.bin. To explore, only the layers that you look at are fetched. They are kept in
        this browser; nothing is sent but the request for them.
      </p>
    </details>
  )
}

/** How much of a model on a server is here, and what can be done about it. */
export function Arriving() {
  const session = useSession()
  const { arrival, source, summary, work } = session
  if (source?.kind !== 'remote' || summary === null) return null
  const isOfUse = obstacle(session) === null
  const leave = () => setParams({ model: undefined, endpoint: undefined })
  return (
    <div class="arrival">
      {arrival !== null && (
        <p>
          <progress aria-label="arrived" value={arrival.done} max={arrival.of} /> {bytes(arrival.done)} of {bytes(arrival.of)} are here.{' '}
          {arrival.going ? (
            <button type="button" onClick={pause}>
              Pause
            </button>
          ) : (
            isOfUse && (
              <button type="button" disabled={work !== null} onClick={() => void fetchModel()}>
                {arrival.done < arrival.of / 2 ? 'Fetch it' : 'Fetch the rest'}
              </button>
            )
          )}
        </p>
      )}
      {arrival !== null && (
        <p class="caption">
          A layer is fetched when you choose it on the map of Explore
          {isOfUse
            ? '; to observe and compress the model takes all of it.'
            : `. At most ${bytes(KEPT_BYTES)} are kept here: layers that you looked at longest ago make way, and are fetched again if you return to them.`}
        </p>
      )}
      {arrival?.going !== true && (
        <p>
          <button type="button" class="plain" disabled={work !== null} onClick={() => void removeModel(leave)}>
            Remove it from this browser
          </button>
        </p>
      )}
    </div>
  )
}
