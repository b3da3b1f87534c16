/// <reference lib="webworker" />
/** The core in a worker: opens what it is told to and answers questions, one at a time. */
import init, {
  Checkpoint,
  Device,
  Files,
  holdWidths,
  Model,
  onPanic,
  predictedError,
  type Statistics,
} from '../../core/modegpt_web.js'
import { BATCH_TOKENS, KEPT_BYTES } from '../needs.ts'
import type { Answer, Ask, FromWorker, LayerReport, ModelSource, Progress, Side, Span, Spectrum, ToWorker, Topic } from './protocol.ts'
import { Archive } from './store/archive.ts'
import { FetchedStore } from './store/fetched.ts'
import { PickedStore } from './store/picked.ts'
import { Dropped } from './store/remote.ts'

const LEVERAGE_RIDGE = 1e-3

let device: Device | undefined
/** What is known of the open model without its tokenizer, and before all of it has arrived. */
let checkpoint: Checkpoint | undefined
let dense: Model | undefined
/** Where the open model comes from, if that is a server. */
let store: FetchedStore | undefined
let fetching = new AbortController()
let statistics: Statistics | undefined
let compressed: { model: Model; archive: Archive } | undefined
let panic: string | undefined

const ready = init().then(() => onPanic((message: string) => (panic = message)))
let last: Promise<void> = Promise.resolve()

self.onmessage = ({ data }: MessageEvent<ToWorker>) => {
  if (data.topic === 'pause') void answer(data)
  else last = last.then(() => answer(data))
}

async function answer(message: ToWorker): Promise<void> {
  const { id, topic } = message
  const tell = (progress: Progress) => post({ id, kind: 'progress', progress })
  try {
    await ready
    const answers = topics[topic] as (ask: Ask<Topic>, tell: (progress: Progress) => void) => Promise<Answer<Topic>>
    const answer = await answers(message.ask, tell)
    post({ id, kind: 'answer', answer })
  } catch (error) {
    const message = error instanceof Error ? error.message : String(error)
    if (panic !== undefined || error instanceof WebAssembly.RuntimeError) {
      post({ id, kind: 'crash', message: panic ?? message })
    } else post({ id, kind: 'error', message })
  }
}

function post(message: FromWorker): void {
  self.postMessage(message)
}

interface Adapter {
  requestDevice(...options: unknown[]): Promise<{ readonly lost: Promise<{ readonly message: string }> }>
}

/** A card that is lost does not come back, and a module opens one once in its life: the page has to start another worker. */
function watchForLoss({ prototype }: { prototype: Adapter }): void {
  const request = prototype.requestDevice
  prototype.requestDevice = async function (...options) {
    const card = await request.apply(this, options)
    void card.lost.then(({ message }) => post({ id: -1, kind: 'crash', message: `the graphics card was lost: ${message}` }))
    return card
  }
}

if ('GPUAdapter' in self) watchForLoss(self.GPUAdapter as { prototype: Adapter })

type Topics = { [T in Topic]: (ask: Ask<T>, tell: (progress: Progress) => void) => Promise<Answer<T>> }

const topics: Topics = {
  async device({ kind }) {
    const opened = kind === 'webgpu' ? await Device.webgpu() : Device.cpu()
    device?.free()
    device = opened
    return { kind, name: opened.name, maxTensorBytes: opened.maxTensorBytes, gflops: await gflops(opened) }
  },

  async open({ source, base, keptBytes = KEPT_BYTES }) {
    await forget()
    let broken: string | null = null
    switch (source.kind) {
      case 'remote':
        checkpoint = await openRemote(source, keptBytes)
        break
      case 'files':
        checkpoint = Checkpoint.open(new PickedStore(source.files), source.name)
        broken = openDense(() => Model.openStore(new PickedStore(source.files), source.name))
        break
      case 'bundled':
        dense = Model.open(await bundled(source.name, base))
        checkpoint = dense.checkpoint()
    }
    return { summary: JSON.parse(checkpoint.summary()), broken }
  },

  async fetch({ what }, tell) {
    const from = store
    if (from === undefined) throw new Error('the open model does not come from a server')
    fetching = new AbortController()
    const { signal } = fetching
    try {
      if (what === 'all') await from.fetch('all', signal, tell)
      else if (what !== 'nothing') await from.fetch(spansOf(what), signal, tell)
    } catch (error) {
      if (!signal.aborted) throw error
    }
    const { done, of } = from.arrival
    const broken = done === of && dense === undefined ? openDense(() => Model.openStore(from, from.base)) : null
    return { done, of, paused: signal.aborted, broken }
  },

  async pause() {
    fetching.abort()
    return undefined
  },

  async remove() {
    const removed = store
    store = undefined
    await forget()
    await removed?.remove()
    return undefined
  },

  async spectra({ layer }, tell) {
    const found: Spectrum[] = []
    weights().weightSpectra(layer, (json: string) => {
      const spectrum = JSON.parse(json) as Spectrum
      found.push(spectrum)
      tell({ spectrum })
    })
    return found
  },

  async weight({ layer, matrix }) {
    fetching = new AbortController()
    await store?.fetch(spansOf(layer), fetching.signal)
    const weight = weights().weight(layer, matrix)
    return { rows: weight.rows, cols: weight.cols, data: weight.values() }
  },

  async calibrate({ text, request }, tell) {
    const progress = (done: number, of: number) => tell({ done, of })
    // There may be no room for those before beside the new ones.
    statistics?.free()
    statistics = undefined
    statistics = await opened().calibrate(computing(), text, JSON.stringify(request), progress)
    return JSON.parse(statistics.summary())
  },

  async activations({ layer }) {
    return JSON.parse(opened().activationSpectra(layer, observed(), LEVERAGE_RIDGE))
  },

  async hiddenGram({ layer, units }) {
    return observed().hiddenGram(layer, Uint32Array.from(units))
  },

  async plan({ request, held }) {
    const free = opened().plan(observed(), JSON.stringify(request))
    const plan = held.length === 0 ? free : holdWidths(free, JSON.stringify(held))
    return { plan: JSON.parse(plan), error: predictedError(plan), leastError: predictedError(free) }
  },

  async compress({ plan, folder }, tell) {
    const progress = (json: string) => tell({ layer: JSON.parse(json) as LayerReport })
    await discard()
    // It will be smaller than the model.
    const archive = await Archive.begin(folder, JSON.parse(weights().summary()).bytes)
    try {
      const report = JSON.parse(opened().compress(observed(), JSON.stringify(plan), archive, progress))
      const blob = await archive.finish()
      const model = Model.openStore(archive, folder)
      compressed = { model, archive }
      const written = model.checkpoint()
      const summary = JSON.parse(written.summary())
      written.free()
      return { report, summary, kept: { archive: blob, inMemory: archive.inMemory } }
    } catch (error) {
      // What is half-written is of no use.
      if (compressed?.archive !== archive) await archive.discard()
      throw error
    }
  },

  async perplexity({ side, text, seqLen, maxWindows }, tell) {
    const request = { seqLen, maxWindows, batchTokens: BATCH_TOKENS }
    const progress = (done: number, of: number) => tell({ done, of })
    return JSON.parse(await chosen(side).perplexity(computing(), text, JSON.stringify(request), progress))
  },

  async write({ side, prompt, maxNewTokens, temperature }, tell) {
    const request = { maxNewTokens, temperature, seed: 0 }
    let begin: number | undefined
    const piece = (text: string) => {
      begin ??= performance.now()
      tell({ piece: text })
    }
    const result = JSON.parse(await chosen(side).write(computing(), prompt, JSON.stringify(request), piece))
    const seconds = (performance.now() - (begin ?? performance.now())) / 1000
    return { ...result, tokensPerSecond: seconds > 0 ? (result.nTokens - 1) / seconds : 0 }
  },
}

async function forget(): Promise<void> {
  store?.close()
  checkpoint?.free()
  dense?.free()
  statistics?.free()
  store = checkpoint = dense = statistics = undefined
  await discard()
}

/** Lets go of what was compressed last. */
async function discard(): Promise<void> {
  const old = compressed
  compressed = undefined
  old?.model.free()
  await old?.archive.discard()
}

/** Opens what can be run, beside what can be looked at; gives the reason if it cannot. */
function openDense(open: () => Model): string | null {
  try {
    dense = open()
    return null
  } catch (error) {
    // A fault of the program is told as one.
    if (typeof error !== 'string') throw error
    return error
  }
}

/** Where the tensors of a layer lie. */
function spansOf(layer: number): Span[] {
  return JSON.parse(weights().spans(layer))
}

function weights(): Checkpoint {
  if (checkpoint === undefined) throw new Error('no model is open')
  return checkpoint
}

function opened(): Model {
  if (dense === undefined) throw new Error(checkpoint === undefined ? 'no model is open' : 'the model has not arrived yet')
  return dense
}

function observed(): Statistics {
  if (statistics === undefined) throw new Error('the model has not been observed on a text yet')
  return statistics
}

function computing(): Device {
  if (device === undefined) throw new Error('no device is open')
  return device
}

function chosen(side: Side): Model {
  if (side === 'dense') return opened()
  if (compressed === undefined) throw new Error('nothing has been compressed yet')
  return compressed.model
}

async function openRemote({ base, name }: ModelSource & { kind: 'remote' }, keptBytes: number): Promise<Checkpoint> {
  fetching = new AbortController()
  const { signal } = fetching
  const opened = await FetchedStore.open(base, keptBytes, signal)
  try {
    const checkpoint = await opened.serving(() => Checkpoint.open(opened, name), signal)
    store = opened
    return checkpoint
  } catch (error) {
    // What is no model is not kept.
    if (signal.aborted || error instanceof Dropped) opened.close()
    else await opened.remove()
    throw error
  }
}

async function bundled(name: string, base: string): Promise<Files> {
  const files = new Files()
  const names = ['config.json', 'generation_config.json', 'tokenizer.json', 'tokenizer_config.json', 'model.safetensors']
  const load = async (file: string) => {
    const response = await fetch(new URL(`${name}/${file}`, base))
    if (!response.ok) throw new Error(`cannot load ${name}/${file}: ${response.status} ${response.statusText}`)
    return [file, new Uint8Array(await response.arrayBuffer())] as const
  }
  for (const [name, content] of await Promise.all(names.map(load))) files.add(name, content)
  return files
}

/** Of a square product, the best of some after one to warm up. Software that imitates a card gets small ones only. */
async function gflops(device: Device): Promise<number> {
  const rate = async (n: number) => {
    const begin = performance.now()
    if ((await device.multiply(n)) !== n) throw new Error(`${device.name} multiplies wrongly`)
    return (2 * n ** 3) / (performance.now() - begin) / 1e6
  }
  await rate(64)
  const small = Math.max(await rate(128), await rate(128))
  return small < 0.5 && device.name !== 'cpu' ? small : Math.max(small, await rate(512), await rate(512))
}
