import { dismissProblem, stop, useSession } from '../session.ts'
import { bytes, grouped, percent, short } from './number.ts'

/** What the core is doing, what went wrong, and what computes. */
export function Status() {
  const { work, problem, device, arrival } = useSession()
  return (
    <div class="status">
      <div role="status" aria-live="polite">
        {work !== null && arrival?.going !== true && (
          <p class="work">
            <progress aria-label={work.what} {...(work.share === null ? {} : { value: work.share })} />
            <span>
              {work.what} {work.share !== null && percent(work.share, 0)}
            </span>
            <button type="button" onClick={stop}>
              Stop
            </button>
          </p>
        )}
      </div>
      {problem !== null && (
        <p class="problem" role="alert">
          {problem}{' '}
          <button type="button" class="plain" onClick={dismissProblem}>
            Dismiss
          </button>
        </p>
      )}
      {device !== null && work === null && (
        <p class="device">
          computing on {device.kind === 'cpu' ? 'the processor, one thread, in WebAssembly' : device.name}: {short(device.gflops)} GFLOP/s
          measured
          {device.kind === 'webgpu' && `, tensors up to ${bytes(device.maxTensorBytes)}`}
        </p>
      )}
    </div>
  )
}

export function ModelLine() {
  const { summary } = useSession()
  if (summary === null) return null
  const { family, layers, dModel, nHeads, nKvHeads, params, bytes: size, activation, context } = summary
  const heads = nHeads === nKvHeads ? `${nHeads} heads` : `${nHeads} heads on ${nKvHeads} keys`
  return (
    <p class="model-line">
      {family}: {layers.length} layers of width {dModel}, {heads}, {activation}, {grouped(params)} parameters, {bytes(size)}, context{' '}
      {context}
    </p>
  )
}
