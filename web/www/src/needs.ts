/**
 * What a model takes of this page, told before it is tried: bytes that the core holds at once. What is read from a disk or
 * a server and not kept does not count.
 */
import { type DeviceInfo, mapWidths, type Mode, type Summary } from './core/protocol.ts'

/** What the core is asked to compute at once. */
export const BATCH_TOKENS = 1024

/** Of layers from a server, the bytes that the browser keeps; those looked at longest ago go first. */
export const KEPT_BYTES = 4e9

/** WebAssembly has four gigabytes; some of them go to the page itself. */
const MOST_BYTES = 3.5e9
/** The program, a tokenizer, buffers. */
const PROGRAM_BYTES = 60e6

/** What the core may hold at once: half of what the machine has, where the browser tells. `asked` is a lower limit in MB. */
export function memoryBytes(asked: string | undefined): number {
  const { deviceMemory = Infinity } = navigator as { deviceMemory?: number }
  const limit = Number(asked)
  return Math.min(MOST_BYTES, 0.5 * deviceMemory * 2 ** 30, limit > 0 ? limit * 1e6 : Infinity)
}

/** To take the singular values of a layer: its weights, and the largest of them several times in double precision. */
export function layerBytes({ layers, dModel, nHeads }: Summary, index: number): number {
  const layer = layers[index]
  if (layer === undefined) return 0
  const largest = dModel * Math.max(layer.dFf, nHeads * layer.dQk, nHeads * layer.dV)
  return PROGRAM_BYTES + 4 * sum(layer.params) + 24 * largest
}

/** Of a backward pass, which looks at no more tokens, and at so many at once. */
const GRADIENT_TOKENS = 2048
const GRADIENT_BATCH = 512

/**
 * To observe a model on so many tokens and to compress it as `mode` does: the statistics of all layers, and the work on the
 * largest.
 */
export function compressionBytes({ layers, dModel, nHeads, nKvHeads, vocab }: Summary, tokens: number, mode: Mode): number {
  const hasInputs = mode !== 'best' && mode !== 'paper'
  const hasGradients = mode === 'fwsvd'
  const parts = layers.map(({ dFf, dQk, dV, params }) => {
    // Triangles in double precision, of hidden units and of every head.
    const inputs = hasInputs ? 4 * (2 * dModel ** 2 + (nHeads * dV) ** 2) : 0
    const gradients = hasGradients ? 4 * (2 * dModel ** 2 + (2 * nHeads + nKvHeads) * dQk ** 2) : 0
    const statistics = 4 * (dFf ** 2 + (2 * nHeads + nKvHeads) * dQk ** 2 + (nHeads + nKvHeads) * dV ** 2) + inputs + gradients
    const weights = 4 * sum(params)
    const activations = 4 * BATCH_TOKENS * (4 * dFf + 4 * nHeads * (dQk + dV) + 6 * dModel)
    const observing = weights + activations + 8 * dFf ** 2 + statistics
    const decomposing = 3 * weights + 24 * dFf * (dFf + dModel) + statistics
    // The graph keeps activations and attention's weights, and as much again is under way; of a map its gradient and the square.
    const attention = 12 * GRADIENT_BATCH * Math.min(GRADIENT_BATCH, tokens) * nHeads
    const goingBack = hasGradients ? 3 * weights + (2 * activations * GRADIENT_BATCH) / BATCH_TOKENS + 2 * attention + 2 * gradients : 0
    return { statistics, work: Math.max(observing, decomposing, goingBack) }
  })
  // The loss takes a part of the vocabulary at a time, and 1024 tokens.
  const part = Math.min(8192, vocab)
  const loss = hasGradients ? 4 * (2 * part * dModel + 4 * 1024 * part + 4 * GRADIENT_TOKENS * dModel) : 0
  const work = Math.max(loss, ...parts.map(({ work }) => work))
  const stream = 4 * dModel * (hasGradients ? Math.max(tokens, GRADIENT_TOKENS * (layers.length + 1)) : tokens)
  return PROGRAM_BYTES + sum(parts.map(({ statistics }) => statistics)) + stream + work
}

/** The largest tensor on a graphics card: a Gram matrix of hidden units, a weight, or activations. */
export function tensorBytes({ layers, dModel }: Summary): number {
  return 4 * Math.max(...layers.map(({ dFf }) => dFf * Math.max(dFf, dModel, BATCH_TOKENS)))
}

/** As [`tensorBytes`] is too large for a card, the processor may still do. */
export function exceedsCard(summary: Summary, device: DeviceInfo | null): boolean {
  return device?.kind === 'webgpu' && tensorBytes(summary) > device.maxTensorBytes
}

/** Parameters of a layer's linear maps, in bytes as stored: what looking at it fetches. */
export function storedBytes({ layers, dtype }: Summary, index: number): number {
  return (dtype === 'float32' ? 4 : 2) * sum(layers[index]?.params ?? [])
}

/** Roughly the multiplications that the singular values of all layers take. */
export function spectraWork(summary: Summary): number {
  const { layers, dModel } = summary
  const square = (width: number) => dModel * width * Math.min(dModel, width)
  return sum(layers.map((layer) => sum(Object.values(mapWidths(summary, layer)).map(square))))
}

function sum(values: readonly number[]): number {
  return values.reduce((a, b) => a + b, 0)
}
