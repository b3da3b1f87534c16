/**
 * What page and worker say to each other. The types of the core's JSON stand here once; `tests/unit/protocol.test.ts`
 * holds them against JSON that the core wrote.
 */

/** What a model is. */
export interface Summary {
  family: string
  vocab: number
  dModel: number
  nHeads: number
  nKvHeads: number
  dHead: number
  context: number
  rotary: boolean
  gated: boolean
  activation: string
  norm: string
  params: number
  blockParams: number
  bytes: number
  dtype: string
  rounding: { ff: number; head: number; rank: number }
  layers: LayerSummary[]
  /** Files with weights that the index names and that are not there. */
  missing: string[]
}

export interface LayerSummary {
  dFf: number
  dQk: number
  dV: number
  /** Linear weights of MLP, query and key, value and output. */
  params: number[]
  /** Whether a tensor of it lies in a file that is not there. */
  incomplete: boolean
}

/** Singular values of one matrix, descending. */
export interface Spectrum {
  matrix: string
  kv_head?: number
  rows: number
  cols: number
  largest: number
  stable_rank: number
  effective_rank: number
  rank_90: number
  rank_99: number
  singular_values: number[]
}

/** A layer in the metric of the data. Energies are means over tokens. */
export interface ActivationSpectra {
  n_tokens: number
  block_influence: number
  hidden: number[]
  hidden_energy: number[]
  leverage: number[]
  value_output: number[][]
  query_key: number[][]
  rotary_frequencies: number[][]
  down_errors: DownErrors
}

/** Error of the best down map of each rank, in the metric of the data, by how the rank was cut. */
export interface DownErrors {
  plain: number[]
  row_weighted: number[]
  whitened: number[]
}

const MAP_MODES = ['svd', 'fwsvd', 'asvd', 'svd-llm'] as const
export const MODES = ['best', 'paper', ...MAP_MODES, 'sliced'] as const
export type Mode = (typeof MODES)[number]

/** Whether a mode takes every map by itself; the others take whole modules. */
export function takesMaps(mode: string): boolean {
  return MAP_MODES.some((one) => one === mode)
}

export interface StatisticsSummary {
  samples: number
  seqLen: number
  tokenHash: string
  /** The modes that can be planned by it, each a [`Mode`]. */
  modes: string[]
  blockInfluence: number[]
}

export interface Widths {
  d_ff: number
  d_qk: number
  d_v: number
}

export interface LayerPlan extends Widths {
  index: number
  block_influence: number
  sparsity: number
  /** What the layer would lose at every width, if the allocation asked for that. */
  curves?: LayerCurves
  /** Of the maps that become products. */
  ranks?: Partial<Record<MapName, number>>
}

export const MAPS = ['query', 'key', 'value', 'output', 'gate', 'up', 'down'] as const
export type MapName = (typeof MAPS)[number]

/** Of the maps of a layer the side that is not `dModel`; a map that the model does not have is missing. */
export function mapWidths({ nHeads, nKvHeads, gated }: Summary, { dFf, dQk, dV }: LayerSummary): Partial<Record<MapName, number>> {
  const maps = { query: nHeads * dQk, key: nKvHeads * dQk, value: nKvHeads * dV, output: nHeads * dV, up: dFf, down: dFf }
  return gated ? { ...maps, gate: dFf } : maps
}

export interface LayerCurves {
  unit: string
  d_ff: ErrorCurve
  d_qk: ErrorCurve
  d_v: ErrorCurve
}

/** Errors at the widths that a module can take, ascending; the last is the present width. */
export interface ErrorCurve {
  widths: number[]
  errors: number[]
}

/** A plan; only what the page shows or edits is typed, the rest travels untouched. */
export interface Plan {
  /** A [`Mode`]. */
  mode: string
  /** What errors are measured in: `nats`, `residual-energy` or `map-energy`. */
  unit: string
  target: number
  totals: { block_params_before: number; block_params_after: number; sparsity: number }
  layers: LayerPlan[]
}

export interface ModuleReport {
  relative_error: number
  condition: number | null
  fallbacks: number
}

export interface LayerReport {
  index: number
  sparsity: number
  before: Widths
  after: Widths
  mlp: ModuleReport
  query_key: ModuleReport
  value_output: ModuleReport
}

export interface Report {
  totals: { block_params_before: number; block_params_after: number; sparsity: number }
  fallbacks: number
  layers: LayerReport[]
}

export interface Evaluation {
  perplexity: number
  n_tokens: number
  n_windows: number
  seq_len: number
  stride: number
  top1_accuracy: number
  token_hash: string
}

export interface WriteResult {
  text: string
  nTokens: number
}

export interface CalibrationRequest {
  samples: number
  seqLen: number
  seed: number
  batchTokens: number
  /** Whose needs are observed; those of `paper` and `best` always are. */
  mode: Mode
}

export interface PlanRequest {
  sparsity: number
  mode: Mode
  /** As the mode does if left out. */
  allocation?: 'paper' | 'uniform' | 'error-curves' | { epsilon: number }
}

export const MODULES = ['mlp', 'query-key', 'value-output'] as const
export type Module = (typeof MODULES)[number]

/** A width that is given by hand. */
export interface HeldWidth {
  readonly layer: number
  readonly module: Module
  readonly width: number
}

/** A plan, and what its error curves say of it, if it has any. */
export interface Planned {
  readonly plan: Plan
  readonly error: number | undefined
  /** That of the plan in which nothing is held. */
  readonly leastError: number | undefined
}

export interface DeviceInfo {
  kind: DeviceKind
  name: string
  maxTensorBytes: number
  gflops: number
}

export type DeviceKind = 'cpu' | 'webgpu'

/** A part of a file, in bytes. */
export interface Span {
  readonly file: string
  readonly offset: number
  readonly bytes: number
}

/** A model that comes with the page, by the name of its folder; files that the reader brought; or a folder of a server. */
export type ModelSource =
  | { readonly kind: 'bundled'; readonly name: string }
  | { readonly kind: 'files'; readonly name: string; readonly files: readonly File[] }
  | { readonly kind: 'remote'; readonly name: string; readonly base: string }

/** How much of a model on a server is here, in bytes. */
export interface Arrival {
  readonly done: number
  readonly of: number
}

/** A model that was opened by its headers. */
export interface Opened {
  readonly summary: Summary
  /** Why it can be looked at only, as by the core. */
  readonly broken: string | null
}

export type Side = 'dense' | 'compressed'

/** Every question to the worker, and its answer. Questions are answered one at a time, in order. */
export interface Questions {
  device: { ask: { kind: DeviceKind }; answer: DeviceInfo }
  /** `keptBytes`: the most that is kept of a model on a server, if not as much as usual. */
  open: { ask: { source: ModelSource; base: string; keptBytes?: number }; answer: Opened }
  /** Of a model on a server: a layer, or all that is missing. Ends early if it is paused. */
  fetch: { ask: { what: number | 'all' | 'nothing' }; answer: Arrival & { paused: boolean; broken: string | null } }
  /** Answered at once, whatever else is being done. */
  pause: { ask: Record<never, never>; answer: undefined }
  /** Closes a model that came from a server, and takes it out of the browser. */
  remove: { ask: Record<never, never>; answer: undefined }
  /** Of a model on a server, of a layer that was fetched. Each is told when it is known. */
  spectra: { ask: { layer: number }; answer: Spectrum[] }
  weight: { ask: { layer: number; matrix: string }; answer: { rows: number; cols: number; data: Float32Array } }
  calibrate: { ask: { text: string; request: CalibrationRequest }; answer: StatisticsSummary }
  activations: { ask: { layer: number }; answer: ActivationSpectra }
  hiddenGram: { ask: { layer: number; units: readonly number[] }; answer: Float64Array }
  plan: { ask: { request: PlanRequest; held: readonly HeldWidth[] }; answer: Planned }
  /** `folder` is what to call the folder in which it is handed out. */
  compress: { ask: { plan: Plan; folder: string }; answer: { report: Report; summary: Summary; kept: Kept } }
  perplexity: { ask: { side: Side; text: string; seqLen: number; maxWindows: number | undefined }; answer: Evaluation }
  write: {
    ask: { side: Side; prompt: string; maxNewTokens: number; temperature: number }
    answer: WriteResult & { tokensPerSecond: number }
  }
}

export type Topic = keyof Questions
export type Ask<T extends Topic> = Questions[T]['ask']
export type Answer<T extends Topic> = Questions[T]['answer']

/** A compressed model as a tape archive, and where it lies. */
export interface Kept {
  readonly archive: Blob
  /** Why it is held in memory; `null` if it lies in the browser's storage. */
  readonly inMemory: string | null
}

/** Long work tells how far it is; spectra and the reports of layers come when they are known, text piece by piece. */
export type Progress =
  | { readonly done: number; readonly of: number }
  | { readonly spectrum: Spectrum }
  | { readonly layer: LayerReport }
  | { readonly piece: string }

export type ToWorker = { [T in Topic]: { id: number; topic: T; ask: Ask<T> } }[Topic]

export type FromWorker =
  | { id: number; kind: 'progress'; progress: Progress }
  | { id: number; kind: 'answer'; answer: Answer<Topic> }
  | { id: number; kind: 'error'; message: string }
  | { id: number; kind: 'crash'; message: string }
