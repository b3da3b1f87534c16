/** What the page knows of the core and of the model that is open. One object; views draw it, functions here change it. */
import { useEffect, useState } from 'preact/hooks'

import { Aborted, Core, Crashed } from './core/client.ts'
import type {
  ActivationSpectra,
  Arrival,
  CalibrationRequest,
  DeviceInfo,
  DeviceKind,
  Evaluation,
  HeldWidth,
  LayerReport,
  ModelSource,
  Plan,
  Planned,
  PlanRequest,
  Progress,
  Report,
  Side,
  Spectrum,
  StatisticsSummary,
  Summary,
} from './core/protocol.ts'

export const BUNDLED = {
  opt: { name: 'opt-tiny-stories', title: 'OPT, tiny stories' },
  llama: { name: 'stories260k', title: 'Llama, stories 260K' },
} as const
export type BundledKey = keyof typeof BUNDLED

/** WebAssembly has four gigabytes; some of them go to the work itself. */
export const MEMORY_BYTES = 3.5e9

export interface Written {
  text: string
  tokensPerSecond?: number
}

export interface Session {
  /** What the core is doing, in words; `null` when it rests. */
  readonly work: { readonly what: string; readonly share: number | null } | null
  readonly problem: string | null
  readonly device: DeviceInfo | null
  readonly source: ModelSource | null
  readonly summary: Summary | null
  /** Of a model on a server: what has arrived, while that is not all. */
  readonly arrival: (Arrival & { readonly going: boolean }) | null
  readonly spectra: readonly (Spectrum[] | undefined)[]
  readonly statistics: StatisticsSummary | null
  /** What the statistics were observed on. */
  readonly observedOn: { readonly text: string; readonly request: CalibrationRequest } | null
  readonly activations: readonly (ActivationSpectra | undefined)[]
  readonly planned: Planned | null
  readonly layerReports: readonly LayerReport[]
  readonly result: { readonly report: Report; readonly summary: Summary; readonly seconds: number } | null
  readonly scores: Readonly<Partial<Record<Side, Evaluation>>>
  readonly texts: Readonly<Partial<Record<Side, Written>>>
}

const NOTHING_OPEN = {
  source: null,
  summary: null,
  arrival: null,
  spectra: [],
  statistics: null,
  observedOn: null,
  activations: [],
  planned: null,
  layerReports: [],
  result: null,
  scores: {},
  texts: {},
} as const satisfies Partial<Session>

let session: Session = { work: null, problem: null, device: null, ...NOTHING_OPEN }
const listeners = new Set<(session: Session) => void>()

const core = new Core((reason) => {
  const problem =
    reason instanceof Crashed ? `The core failed and was started again. It said: ${firstLine(reason.message)}` : null
  change({ device: null, work: null, problem, ...NOTHING_OPEN, source: session.source })
})

function change(changes: Partial<Session>): void {
  session = { ...session, ...changes }
  for (const listener of listeners) listener(session)
}

export function useSession(): Session {
  const [value, setValue] = useState(session)
  useEffect(() => {
    setValue(session)
    listeners.add(setValue)
    return () => void listeners.delete(setValue)
  }, [])
  return value
}

export function currentSession(): Session {
  return session
}

export function dismissProblem(): void {
  change({ problem: null })
}

/** Stops what the core is doing. The model is opened anew when it is next needed. */
export function stop(): void {
  core.abort()
}

/** Does some work while saying what it is; tells of its failure, and whether it was done. */
async function working(what: string, work: (progress: (progress: Progress) => void) => Promise<void>): Promise<boolean> {
  change({ work: { what, share: null }, problem: null })
  const progress = (progress: Progress) => {
    if ('done' in progress) change({ work: { what, share: progress.of > 0 ? progress.done / progress.of : 0 } })
  }
  try {
    await work(progress)
    change({ work: null })
    return true
  } catch (error) {
    // What crashed has been told already.
    const told = error instanceof Aborted || error instanceof Crashed
    change(told ? { work: null } : { work: null, problem: sentence(error) })
    return false
  }
}

/** What could not be opened is not tried again until something else was asked for. */
let refused: { source: ModelSource; device: DeviceKind } | null = null

/** Opens a model, unless it is open. */
export async function open(source: ModelSource, device: DeviceKind): Promise<boolean> {
  if (session.work !== null) return false
  if (refused?.device === device && isSame(refused.source, source)) return false
  refused = null
  if (isSame(session.source, source) && session.summary !== null && session.device?.kind === device) return true
  let stopped = false
  const done = await working('opening the model', async () => {
    const info = session.device?.kind === device ? session.device : await core.ask('device', { kind: device })
    change({ device: info })
    change(NOTHING_OPEN)
    const opening = core.ask('open', { source, base: document.baseURI })
    opening.catch((error) => (stopped = error instanceof Aborted))
    const summary = await opening
    const arrival = source.kind === 'remote' ? await core.ask('fetch', { what: 'nothing' }) : null
    const isHere = arrival === null || arrival.done === arrival.of
    change({ ...NOTHING_OPEN, source, summary, arrival: isHere ? null : { ...arrival, going: false } })
  })
  if (!done && !stopped) refused = { source, device }
  if (done && source.kind === 'remote' && wanted === source.base) await fetchModel()
  return done
}

/** What the reader asked to be fetched; a link alone fetches no more than what a model is. */
let wanted: string | null = null

export function want(base: string): void {
  wanted = base
}

/** Fetches what is missing of a model on a server, layer 0 first, whose spectra then appear. */
export async function fetchModel(): Promise<boolean> {
  const { source, arrival } = session
  if (arrival === null || source?.kind !== 'remote') return true
  if (session.work !== null) return false
  wanted = source.base
  change({ arrival: { ...arrival, going: true } })
  let isHere = false
  const done = await working('fetching the model', async (progress) => {
    const part = async (what: number | 'all') => {
      const found = await core.ask('fetch', { what }, (told) => {
        progress(told)
        if ('done' in told) change({ arrival: { ...told, going: true } })
      })
      change({ arrival: { ...found, going: true } })
      return found
    }
    const first = await part(0)
    if (!first.paused && session.spectra[0] === undefined) {
      change({ spectra: replaced(session.spectra, 0, await core.ask('spectra', { layer: 0 })) })
    }
    const { paused, done, of } = first.paused ? first : await part('all')
    isHere = !paused && done === of
    if (paused) wanted = null
  })
  // What was ended by force has taken the model with it.
  const left = session.arrival
  if (left !== null) change({ arrival: isHere ? null : { ...left, going: false } })
  if (!done) wanted = null
  return done && isHere
}

/** Ends the fetching; what has arrived stays. */
export function pause(): void {
  void core.ask('pause', {})
}

/** Takes a model that came from a server out of the browser; `leave` goes to another, lest it be opened again. */
export async function removeModel(leave: () => void): Promise<void> {
  wanted = null
  await working('removing the model', async () => {
    await core.ask('remove', {})
    leave()
    change(NOTHING_OPEN)
  })
}

/** The most bytes that observing and compressing a model hold at once, roughly: Gram matrices, and the result. */
export function neededBytes({ layers, dModel, bytes }: Summary): number {
  const triangle = (n: number) => 4 * n * n
  return bytes + layers.reduce((sum, { dFf }) => sum + triangle(dFf) + 3 * triangle(dModel), 0)
}

/** Singular values of every matrix, layer by layer; the view fills as they come. */
export async function measureSpectra(): Promise<boolean> {
  const n = session.summary?.layers.length ?? 0
  if (session.work !== null || session.arrival !== null || session.spectra.filter(Boolean).length === n) return true
  return working('taking singular values', async (progress) => {
    for (let layer = 0; layer < n; layer++) {
      if (session.spectra[layer] !== undefined) continue
      const found = await core.ask('spectra', { layer })
      change({ spectra: replaced(session.spectra, layer, found) })
      progress({ done: layer + 1, of: n })
    }
  })
}

/** Passes text through the model and learns of every layer what compression needs, unless just that is known already. */
export async function observe(text: string, request: CalibrationRequest): Promise<boolean> {
  const { statistics, observedOn: last } = session
  if (statistics !== null && last?.text === text && JSON.stringify(last.request) === JSON.stringify(request)) return true
  const needed = session.summary === null ? 0 : neededBytes(session.summary)
  if (needed > MEMORY_BYTES) {
    const [needs, has] = [needed, MEMORY_BYTES].map((bytes) => (bytes / 1e9).toFixed(1))
    change({ problem: `Observing this model takes about ${needs} GB of memory, and a page has ${has}. Use the command line for it.` })
    return false
  }
  return working('observing the model', async (progress) => {
    const statistics = await core.ask('calibrate', { text, request }, progress)
    change({ statistics, observedOn: { text, request }, activations: [], planned: null, result: null, layerReports: [] })
  })
}

export async function measureActivations(layer: number): Promise<boolean> {
  if (session.work !== null || session.statistics === null || session.activations[layer] !== undefined) return true
  return working('looking at the activations', async () => {
    const found = await core.ask('activations', { layer })
    change({ activations: replaced(session.activations, layer, found) })
  })
}

/** A matrix of the open model. */
export function weight(layer: number, matrix: string) {
  return core.ask('weight', { layer, matrix })
}

/** A plan takes no time and is not announced, but for the first one by error curves: it asks what every layer would lose. */
export async function makePlan(request: PlanRequest, held: readonly HeldWidth[] = []): Promise<boolean> {
  const work = { what: 'asking every layer what it would lose', share: null }
  const late = setTimeout(() => change({ work }), 200)
  try {
    const planned = await core.ask('plan', { request, held })
    change({ planned, work: null, problem: null })
    return true
  } catch (error) {
    // What cannot be held leaves the last plan, in which the reader can let go of it.
    const planned = held.length > 0 ? session.planned : null
    if (!(error instanceof Aborted || error instanceof Crashed)) change({ planned, work: null, problem: sentence(error) })
    return false
  } finally {
    clearTimeout(late)
  }
}

export async function compress(plan: Plan): Promise<boolean> {
  change({ layerReports: [], result: null })
  const begin = performance.now()
  const scores = session.scores.dense === undefined ? {} : { dense: session.scores.dense }
  const texts = session.texts.dense === undefined ? {} : { dense: session.texts.dense }
  return working('compressing', async (progress) => {
    const { report, summary } = await core.ask('compress', { plan }, (told) => {
      if (!('layer' in told)) return
      change({ layerReports: [...session.layerReports, told.layer] })
      progress({ done: session.layerReports.length, of: plan.layers.length })
    })
    change({ result: { report, summary, seconds: (performance.now() - begin) / 1000 }, scores, texts })
  })
}

export async function score(side: Side, text: string, seqLen: number, maxWindows: number | undefined): Promise<boolean> {
  return working(`measuring the perplexity, ${side}`, async (progress) => {
    const found = await core.ask('perplexity', { side, text, seqLen, maxWindows }, progress)
    change({ scores: { ...session.scores, [side]: found } })
  })
}

export async function continueText(side: Side, prompt: string, maxNewTokens: number): Promise<boolean> {
  return working(`writing, ${side}`, async () => {
    const show = (written: Written) => change({ texts: { ...session.texts, [side]: written } })
    show({ text: '' })
    const ask = { side, prompt, maxNewTokens, temperature: 0 }
    const done = await core.ask('write', ask, (told) => {
      if ('piece' in told) show({ text: (session.texts[side]?.text ?? '') + told.piece })
    })
    show({ text: done.text, tokensPerSecond: done.tokensPerSecond })
  })
}

/** Rows and columns of the Gram matrix of a layer's hidden units. */
export function hiddenGram(layer: number, units: readonly number[]) {
  return core.ask('hiddenGram', { layer, units })
}

/** The compressed model's files. */
export function files() {
  return core.ask('files', {})
}

const texts = new Map<string, Promise<string>>()

/** A text that comes with the page. */
export function bundledText(name: 'calibration.txt' | 'held-out.txt'): Promise<string> {
  const load = async () => {
    const response = await fetch(new URL(name, document.baseURI))
    if (!response.ok) throw new Error(`cannot load ${name}: ${response.status} ${response.statusText}`)
    return response.text()
  }
  const text = texts.get(name) ?? load()
  texts.set(name, text)
  text.catch(() => texts.delete(name))
  return text
}

function replaced<T>(values: readonly (T | undefined)[], index: number, value: T): (T | undefined)[] {
  const next = [...values]
  next[index] = value
  return next
}

function isSame(a: ModelSource | null, b: ModelSource): boolean {
  if (a?.kind === 'files' && b.kind === 'files') return a.files === b.files
  if (a?.kind === 'remote' && b.kind === 'remote') return a.base === b.base
  return a?.kind === b.kind && a.name === b.name
}

function sentence(error: unknown): string {
  const text = error instanceof Error ? error.message : String(error)
  return `${text.charAt(0).toUpperCase()}${text.slice(1)}${/[.!?]$/.test(text) ? '' : '.'}`
}

function firstLine(text: string): string {
  return text.split('\n').slice(0, 2).join(' ')
}
