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
  Kept,
  LayerReport,
  Mode,
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
import { folderName } from './core/store/tar.ts'
import { compressionBytes, exceedsCard, layerBytes, memoryBytes, spectraWork, tensorBytes } from './needs.ts'
import { currentPlace } from './place.ts'
import { bytes } from './ui/number.ts'

export const BUNDLED = {
  opt: { name: 'opt-tiny-stories', title: 'OPT, tiny stories' },
  llama: { name: 'stories260k', title: 'Llama, stories 260K' },
} as const
export type BundledKey = keyof typeof BUNDLED

/** Of calibration. With 32, 64 and 128 samples the bundled OPT has a perplexity of 14.55, 14.57 and 14.57 at 30 %. */
export const SAMPLES = 64

/** A model whose layers take less, all together, is looked at layer by layer unasked. OPT-125M takes 6.5e10, 24 seconds. */
const MOST_WORK = 7e10

/** What is looked at without being asked for again: nothing, the chosen layer, or one after the other. */
type Unasked = 'nothing' | 'chosen' | 'all'

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
  /** Why the model can be looked at only, as the core says. */
  readonly broken: string | null
  readonly unasked: Unasked
  /** By layer, once it has been looked at. */
  readonly spectra: readonly (Spectrum[] | undefined)[]
  /** The layer that is being looked at, and what is known of it so far. */
  readonly looking: { readonly layer: number; readonly spectra: Spectrum[] } | null
  /** By layer, why it could not be looked at. */
  readonly unseen: readonly (string | undefined)[]
  readonly statistics: StatisticsSummary | null
  /** What the statistics were observed on. */
  readonly observedOn: { readonly text: string; readonly request: CalibrationRequest } | null
  readonly activations: readonly (ActivationSpectra | undefined)[]
  readonly planned: Planned | null
  /** The plan that was applied last, and what came of its layers so far. */
  readonly reported: { readonly plan: Plan; readonly layers: readonly LayerReport[] } | null
  readonly result: { readonly report: Report; readonly summary: Summary; readonly kept: Kept; readonly seconds: number } | null
  readonly scores: Readonly<Partial<Record<Side, Evaluation>>>
  readonly texts: Readonly<Partial<Record<Side, Written>>>
}

const NOTHING_OPEN = {
  source: null,
  summary: null,
  arrival: null,
  broken: null,
  looking: null,
  statistics: null,
  observedOn: null,
  activations: [],
  planned: null,
  reported: null,
  result: null,
  scores: {},
  texts: {},
} as const satisfies Partial<Session>

/** What is known of a model also while the core is started anew. */
const NOTHING_SEEN = { unasked: 'chosen', spectra: [], unseen: [] } as const satisfies Partial<Session>

let session: Session = { work: null, problem: null, device: null, ...NOTHING_OPEN, ...NOTHING_SEEN }
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
    const isNew = !isSame(session.source, source)
    change(NOTHING_OPEN)
    const opening = core.ask('open', { source, base: document.baseURI })
    opening.catch((error) => (stopped = error instanceof Aborted))
    const { summary, broken } = await opening
    const arrival = source.kind === 'remote' ? await core.ask('fetch', { what: 'nothing' }) : null
    const isHere = arrival === null || arrival.done === arrival.of
    const seen = isNew ? { ...NOTHING_SEEN, unasked: usual(summary) } : {}
    change({ source, summary, broken: arrival?.broken ?? broken, arrival: isHere ? null : { ...arrival, going: false }, ...seen })
  })
  if (!done && !stopped) refused = { source, device }
  return done
}

/** What the reader asked to be fetched: all of a model, or the layers that are looked at. A link alone fetches no weights. */
let wanted: { readonly base: string; readonly all: boolean } | null = null

export function want(base: string, all: boolean): void {
  wanted = { base, all }
}

function usual(summary: Summary): Unasked {
  return spectraWork(summary) <= MOST_WORK ? 'all' : 'chosen'
}

/** The layer that is to be looked at next, as far as the reader need not ask for it: the chosen one, then perhaps others. */
function nextLayer({ summary, source, arrival, unasked, spectra, unseen }: Session): number | undefined {
  const mayFetch = arrival === null || (source?.kind === 'remote' && wanted?.base === source.base)
  if (summary === null || unasked === 'nothing' || !mayFetch) return undefined
  const layers = summary.layers.map((_, layer) => layer)
  const chosen = layers[Number(currentPlace().params['layer'] ?? 0)] ?? 0
  // Of a model that has not arrived whole, no more is fetched than was asked for.
  const others = unasked === 'all' && arrival === null ? layers : []
  return [chosen, ...others].find((layer) => spectra[layer] === undefined && unseen[layer] === undefined)
}

/** The reader asks for a layer: it is fetched, and looked at again if that failed. */
export function choose(layer: number): void {
  const { source, summary, unasked } = session
  if (source?.kind === 'remote') want(source.base, false)
  const again = unasked === 'nothing' && summary !== null ? usual(summary) : unasked
  change({ unasked: again, unseen: replaced(session.unseen, layer, undefined) })
}

/** The reader asks for all layers that have not been looked at. */
export function chooseAll(): void {
  change({ unasked: 'all', unseen: [] })
}

/** Looks at one layer after the other, until the reader has to ask for more. */
export async function lookOn(): Promise<void> {
  if (session.work !== null || nextLayer(session) === undefined) return
  await working('taking singular values', async () => {
    for (let layer = nextLayer(session); layer !== undefined; layer = nextLayer(session)) await lookAt(layer)
  })
}

/** Takes the singular values of a layer, which is fetched before if need be. Why that failed is said of the layer. */
async function lookAt(layer: number): Promise<void> {
  const { summary } = session
  const cannot = (why: string) => change({ unseen: replaced(session.unseen, layer, why), looking: null })
  const tooLarge = layerTooLarge(session, layer)
  if (tooLarge !== null) return cannot(tooLarge)
  const tell = (share: number | null) => change({ work: { what: `taking the singular values of layer ${layer}`, share } })
  try {
    const isWhole = summary?.layers[layer]?.incomplete === false
    if (session.arrival !== null && isWhole && !(await fetchPart(layer))) return
    tell(null)
    change({ looking: { layer, spectra: [] } })
    const found = await core.ask('spectra', { layer }, (told) => {
      if (!('spectrum' in told)) return
      const spectra = [...(session.looking?.spectra ?? []), told.spectrum]
      change({ looking: { layer, spectra } })
      tell(spectra.length / nSpectra(summary))
    })
    change({ spectra: replaced(session.spectra, layer, found), looking: null })
  } catch (error) {
    const isGone = error instanceof Aborted || error instanceof Crashed
    cannot(isGone ? (error instanceof Aborted ? 'it was stopped' : 'the core failed at it') : sentence(error))
    if (error instanceof Aborted) change({ unasked: 'nothing' })
    // What became of the core is told of all.
    if (isGone) throw error
  }
}

/** Of a layer: every map, and a product for every head of values. */
function nSpectra(summary: Summary | null): number {
  return summary === null ? Infinity : (summary.gated ? 7 : 6) + summary.nKvHeads
}

/** Fetches a layer or all of a model on a server; whether it is here. */
async function fetchPart(what: number | 'all'): Promise<boolean> {
  const going = (arrival: Arrival, going: boolean) => change({ arrival: { done: arrival.done, of: arrival.of, going } })
  if (session.arrival !== null) going(session.arrival, true)
  try {
    const found = await core.ask('fetch', { what }, (told) => 'done' in told && going(told, true))
    going(found, false)
    if (found.paused) wanted = null
    else if (found.done === found.of) change({ arrival: null, broken: found.broken ?? session.broken })
    return !found.paused
  } catch (error) {
    // What was ended by force has taken the model with it.
    if (session.arrival !== null) going(session.arrival, false)
    wanted = null
    throw error
  }
}

/** Fetches what is missing of a model on a server. */
export async function fetchModel(): Promise<boolean> {
  const { source, arrival } = session
  if (arrival === null || source?.kind !== 'remote') return true
  if (session.work !== null) return false
  want(source.base, true)
  let isHere = false
  const done = await working('fetching the model', async () => {
    isHere = await fetchPart('all')
  })
  return done && isHere
}

/** Fetches all of a model if the reader asked for that already, and it is of use. */
export async function fetchWanted(): Promise<void> {
  const { source, arrival } = session
  const isWanted = source?.kind === 'remote' && wanted?.base === source.base && wanted.all
  if (isWanted && arrival?.going === false && obstacle(session) === null) await fetchModel()
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
    change({ ...NOTHING_OPEN, ...NOTHING_SEEN })
  })
}

/** Why the model that is open cannot be observed or compressed here as `mode` does, and whether another device could; `null` if it can. */
export function obstacle({ summary, device, broken }: Session, mode: Mode = 'best'): { readonly why: string; readonly onProcessor: boolean } | null {
  if (summary === null) return null
  const [file, ...others] = summary.missing
  if (file !== undefined) return { why: others.length === 0 ? `${file} is missing` : `${file} and ${others.length} more files are missing`, onProcessor: false }
  if (broken !== null) return { why: broken, onProcessor: false }
  const [needed, most] = [compressionBytes(summary, SAMPLES * Math.min(256, summary.context), mode), pageBytes()]
  if (needed > most) return { why: `that takes about ${bytes(needed)} of memory at once, and this page has ${bytes(most)}`, onProcessor: false }
  if (!exceedsCard(summary, device)) return null
  const tensor = bytes(tensorBytes(summary))
  return { why: `that takes tensors of ${tensor}, and the graphics card allows ${bytes(device?.maxTensorBytes ?? 0)}`, onProcessor: true }
}

/** Why a layer of the open model cannot even be looked at; `null` if it can. */
export function layerTooLarge({ summary }: Session, layer: number): string | null {
  const [needed, most] = [summary === null ? 0 : layerBytes(summary, layer), pageBytes()]
  return needed > most ? `that takes about ${bytes(needed)} of memory at once, and this page has ${bytes(most)}` : null
}

function pageBytes(): number {
  return memoryBytes(currentPlace().params['memory'])
}

/** Passes text through the model and learns of every layer what compression needs, unless just that is known already. */
export async function observe(text: string, request: CalibrationRequest): Promise<boolean> {
  const { statistics, observedOn: last } = session
  const isSameText = last?.text === text && JSON.stringify({ ...last.request, mode: request.mode }) === JSON.stringify(request)
  if (isSameText && statistics?.modes.includes(request.mode)) return true
  const stands = obstacle(session, request.mode)
  if (stands !== null) {
    change({ problem: sentence(`this model cannot be observed here: ${stands.why}`) })
    return false
  }
  // The core lets go of what it knew before.
  change({ statistics: null, observedOn: null, activations: [], planned: null, result: null, reported: null })
  return working('observing the model', async (progress) => {
    const statistics = await core.ask('calibrate', { text, request }, progress)
    change({ statistics, observedOn: { text, request } })
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
    const planned = held.length > 0 && session.planned?.plan.mode === request.mode ? session.planned : null
    if (!(error instanceof Aborted || error instanceof Crashed)) change({ planned, work: null, problem: sentence(error) })
    return false
  } finally {
    clearTimeout(late)
  }
}

export async function compress(plan: Plan): Promise<boolean> {
  const layers: LayerReport[] = []
  change({ reported: { plan, layers }, result: null })
  const begin = performance.now()
  const scores = session.scores.dense === undefined ? {} : { dense: session.scores.dense }
  const texts = session.texts.dense === undefined ? {} : { dense: session.texts.dense }
  return working('compressing', async (progress) => {
    const folder = `${folderName(session.source?.name ?? '')}-${Math.round(100 * plan.totals.sparsity)}`
    const { report, summary, kept } = await core.ask('compress', { plan, folder }, (told) => {
      if (!('layer' in told)) return
      layers.push(told.layer)
      change({ reported: { plan, layers: [...layers] } })
      progress({ done: layers.length, of: plan.layers.length })
    })
    change({ result: { report, summary, kept, seconds: (performance.now() - begin) / 1000 }, scores, texts })
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

function replaced<T>(values: readonly (T | undefined)[], index: number, value: T | undefined): (T | undefined)[] {
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
