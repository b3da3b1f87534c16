import { useState } from 'preact/hooks'

import { setParams, usePlace } from '../place.ts'
import { fetchModel, MEMORY_BYTES, neededBytes, pause, removeModel, useSession, want } from '../session.ts'
import { folderOf, HUB } from './model.tsx'
import { bytes } from './number.ts'

/** Takes a model by its id at a hub, or by the address of its folder. */
export function FromServer({ disabled }: { disabled: boolean }) {
  const { params } = usePlace()
  const [model, setModel] = useState('')
  const [endpoint, setEndpoint] = useState(params['endpoint'] ?? '')
  const id = model.trim()
  const from = endpoint.trim() === '' ? undefined : endpoint.trim()
  const base = folderOf(id, from)
  const open = (event: Event) => {
    event.preventDefault()
    if (base === null) return
    want(base)
    setParams({ model: id, endpoint: from, layer: undefined, matrix: undefined, held: undefined })
  }
  return (
    <details class="from-server">
      <summary>Fetch one by its hub id</summary>
      <form onSubmit={open}>
        <label>
          hub id or address of a folder
          <input type="text" placeholder="facebook/opt-125m" value={model} disabled={disabled} onInput={({ currentTarget }) => setModel(currentTarget.value)} />
        </label>
        <label>
          hub
          <input type="text" placeholder={HUB} value={endpoint} disabled={disabled} onInput={({ currentTarget }) => setEndpoint(currentTarget.value)} />
        </label>
        <button type="submit" disabled={disabled || base === null}>
          Fetch
        </button>
      </form>
      <p class="caption">
        OPT, Llama or GPT-2, as safetensors or pytorch_model.bin. It is kept in this browser, and fetched once. Nothing is sent but the request
        for it.
      </p>
    </details>
  )
}

/** How much of a model on a server is here, and what can be done about it. */
export function Arriving() {
  const { arrival, source, summary, work } = useSession()
  if (source?.kind !== 'remote' || summary === null) return null
  const needed = neededBytes(summary)
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
            <button type="button" disabled={work !== null} onClick={() => void fetchModel()}>
              {arrival.done < arrival.of / 2 ? 'Fetch it' : 'Fetch the rest'}
            </button>
          )}
        </p>
      )}
      {needed > MEMORY_BYTES && (
        <p class="problem">
          It can be looked at here, but not be observed or compressed: that takes about {bytes(needed)} of memory, and a page has{' '}
          {bytes(MEMORY_BYTES)}.
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
