import type { DeviceKind, ModelSource } from '../core/protocol.ts'
import { type Place, setParams, usePlace } from '../place.ts'
import { BUNDLED, type BundledKey } from '../session.ts'
import { Pick } from './controls.tsx'

/** Files that the reader brought; a link cannot hold them, so they last as long as the page. */
let brought: ModelSource | undefined

export function bring(files: readonly File[], name: string): void {
  brought = { kind: 'files', name, files }
  setParams({ model: 'files', layer: undefined, held: undefined })
}

export function chosenSource({ params }: Place): ModelSource {
  const model = params['model'] ?? 'opt'
  if (model === 'files' && brought !== undefined) return brought
  const key: BundledKey = model === 'llama' ? 'llama' : 'opt'
  return { kind: 'bundled', name: BUNDLED[key].name }
}

export function titleOf(source: ModelSource): string {
  const bundled = Object.values(BUNDLED).find(({ name }) => name === source.name)
  return source.kind === 'bundled' && bundled !== undefined ? bundled.title : source.name
}

let realCard: Promise<boolean> | undefined

/** The graphics card where there is a real one; software that imitates one is slower than the processor. */
export async function chosenDevice({ params }: Place): Promise<DeviceKind> {
  if (params['device'] === 'cpu' || params['device'] === 'webgpu') return params['device']
  realCard ??= hasCard()
  return (await realCard) ? 'webgpu' : 'cpu'
}

async function hasCard(): Promise<boolean> {
  interface Adapter {
    readonly isFallbackAdapter?: boolean
    readonly info?: { readonly isFallbackAdapter?: boolean }
  }
  const gpu = (navigator as { gpu?: { requestAdapter(): Promise<Adapter | null> } }).gpu
  const adapter = await gpu?.requestAdapter().catch(() => null)
  return adapter != null && !(adapter.info?.isFallbackAdapter ?? adapter.isFallbackAdapter ?? false)
}

/** Which model the page is about. */
export function ModelPick({ disabled }: { disabled: boolean }) {
  const place = usePlace()
  const value = brought !== undefined && place.params['model'] === 'files' ? 'files' : place.params['model'] === 'llama' ? 'llama' : 'opt'
  const choices: [string, string][] = Object.entries(BUNDLED).map(([key, { title }]) => [key, title])
  if (brought !== undefined) choices.push(['files', brought.name])
  const choose = (model: string) => setParams({ model: model === 'opt' ? undefined : model, layer: undefined, matrix: undefined, held: undefined })
  return <Pick label="Model" value={value} choices={choices} onChange={choose} disabled={disabled} />
}
