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
  const base = isBundled(model) || model === 'files' ? null : folderOf(model, params['endpoint'])
  if (base !== null) return { kind: 'remote', name: nameOf(model), base }
  return { kind: 'bundled', name: BUNDLED[isBundled(model) ? model : 'opt'].name }
}

function isBundled(model: string): model is BundledKey {
  return Object.hasOwn(BUNDLED, model)
}

export const HUB = 'https://huggingface.co'

/** The address of a model's folder: `model` is that itself, or an id at a hub. `null` if it is neither. */
export function folderOf(model: string, endpoint = HUB): string | null {
  const isAddress = /^https?:\/\//.test(model)
  if (!isAddress && !/^\w[\w.-]*(\/\w[\w.-]*)?$/.test(model)) return null
  try {
    const url = new URL(isAddress ? model : `${endpoint.replace(/\/+$/, '')}/${model}/resolve/main/`)
    if (!/^https?:$/.test(url.protocol)) return null
    url.hash = url.search = ''
    if (!url.pathname.endsWith('/')) url.pathname += '/'
    return url.href
  } catch {
    return null
  }
}

/** The last words of an address, or the id itself. */
function nameOf(model: string): string {
  return model.replace(/^https?:\/\//, '').replace(/\/(resolve\/main\/?)?$/, '').split('/').slice(-2).join('/')
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
  const source = chosenSource(place)
  const choices: [string, string][] = Object.entries(BUNDLED).map(([key, { title }]) => [key, title])
  if (brought !== undefined) choices.push(['files', brought.name])
  const remote = place.params['model'] ?? ''
  if (source.kind === 'remote') choices.push([remote, source.name])
  const value = { bundled: source.name === BUNDLED.llama.name ? 'llama' : 'opt', files: 'files', remote }[source.kind]
  const choose = (model: string) => setParams({ model: model === 'opt' ? undefined : model, layer: undefined, matrix: undefined, held: undefined })
  return <Pick label="Model" value={value} choices={choices} onChange={choose} disabled={disabled} />
}
