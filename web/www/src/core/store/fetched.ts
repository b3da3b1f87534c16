/// <reference lib="webworker" />
/**
 * A model's files on a server, fetched in parts when they are needed, and kept in the page's own file system. A model of
 * which everything is kept needs no network.
 */
import type { Arrival, Span } from '../protocol.ts'
import { BLOCK_BYTES, KeptFile } from './kept.ts'
import { Dropped, look, range, type RemoteFile, whole } from './remote.ts'

/** Beside the weights; a model has those that it has. */
const COMPANIONS = ['generation_config.json', 'tokenizer.json', 'tokenizer_config.json', 'vocab.json', 'merges.txt']
/** Best first, as the core chooses. */
const WEIGHTS = ['model.safetensors.index.json', 'model.safetensors', 'pytorch_model.bin.index.json', 'pytorch_model.bin']
const LONGEST_RUN = 64
/** Milliseconds before a lost connection is tried again; any byte that arrives begins the list anew. */
const PATIENCE = [250, 1000, 3000]

export class FetchedStore {
  private missed: Span | undefined

  private constructor(
    /** The folder's address. */
    readonly base: string,
    private readonly folder: FileSystemDirectoryHandle,
    private readonly kept: ReadonlyMap<string, KeptFile>,
  ) {}

  /** Opens what is kept of the model in the folder `base` of a server, or asks the server what there is. */
  static async open(base: string, signal: AbortSignal): Promise<FetchedStore> {
    const folder = await folderOf(base)
    const kept = new Map<string, KeptFile>()
    try {
      const known = await readList(folder)
      const { files, contents } = known === undefined ? await list(base, signal) : { files: known, contents: new Map<string, never>() }
      if (known === undefined) {
        await empty(folder)
        await checkRoom(Object.values(files).reduce((sum, { size }) => sum + size, 0))
      }
      for (const [name, about] of Object.entries(files)) kept.set(name, await KeptFile.open(folder, name, about))
      for (const [name, content] of contents) fill(kept.get(name) as KeptFile, content)
      if (known === undefined) await writeList(folder, files)
    } catch (error) {
      for (const file of kept.values()) file.close()
      throw error
    }
    return new FetchedStore(base, folder, kept)
  }

  names(): string[] {
    return [...this.kept.keys()]
  }

  size(file: string): number | undefined {
    return this.kept.get(file)?.about.size
  }

  readAt(file: string, offset: number, into: Uint8Array): void {
    const kept = this.kept.get(file)
    if (kept?.has(offset, into.length) !== true) {
      this.missed = { file, offset, bytes: into.length }
      throw new Error('it has not arrived yet')
    }
    kept.read(offset, into)
  }

  get arrival(): Arrival {
    const files = [...this.kept.values()]
    return { done: files.reduce((sum, file) => sum + file.bytesHere, 0), of: files.reduce((sum, { about }) => sum + about.size, 0) }
  }

  /** Does `work`, which reads from this store, and fetches what it misses until it is done. */
  async serving<T>(work: () => T, signal: AbortSignal): Promise<T> {
    for (;;) {
      this.missed = undefined
      try {
        return work()
      } catch (error) {
        if (this.missed === undefined) throw error
        await this.fetch([this.missed], signal)
      }
    }
  }

  /** Fetches what is missing of `spans`, or of everything. */
  async fetch(spans: readonly Span[] | 'all', signal: AbortSignal, tell: (arrival: Arrival) => void = () => {}): Promise<void> {
    const { done, of } = this.arrival
    await checkRoom(of, done)
    let here = done
    for (const [name, file] of this.kept) {
      const parts = spans === 'all' ? [{ offset: 0, bytes: file.about.size }] : spans.filter((span) => span.file === name)
      for (const [first, end] of file.missing(parts, LONGEST_RUN)) {
        await this.fetchRun(name, file, first, end, signal, (bytes) => tell({ done: (here += bytes), of }))
      }
    }
  }

  private async fetchRun(name: string, file: KeptFile, first: number, end: number, signal: AbortSignal, tell: (bytes: number) => void): Promise<void> {
    const stop = Math.min(end * BLOCK_BYTES, file.about.size)
    let next = first
    for (let attempt = 0; next < end; attempt++) {
      const begin = next
      try {
        const blocks = inBlocks(range(urlOf(this.base, name), next * BLOCK_BYTES, stop, file.about, signal))
        for await (const block of blocks) {
          file.write(next++, block)
          tell(block.length)
        }
      } catch (error) {
        if (next > begin) attempt = 0
        const wait = PATIENCE[attempt]
        if (!(error instanceof Dropped) || signal.aborted || wait === undefined) throw error
        await pause(wait, signal)
      }
    }
  }

  close(): void {
    for (const file of this.kept.values()) file.close()
  }

  /** Closes it and takes all that is kept of it out of the browser. */
  async remove(): Promise<void> {
    this.close()
    await (await models()).removeEntry(this.folder.name, { recursive: true })
  }
}

type List = Readonly<Record<string, RemoteFile>>

/** Asks the server for the files of a model; `contents` are those that were read whole. */
async function list(base: string, signal: AbortSignal) {
  const files: Record<string, RemoteFile> = {}
  const contents = new Map<string, Uint8Array<ArrayBuffer>>()
  const take = async (name: string) => {
    const found = await whole(urlOf(base, name), signal)
    if (found === null) return undefined
    files[name] = { size: found.content.length, tag: found.tag }
    contents.set(name, found.content)
    return found.content
  }
  if ((await take('config.json')) === undefined) throw new Error(`${base} has no config.json: there is no model of this name`)
  await Promise.all(COMPANIONS.map(take))
  for (const name of WEIGHTS) {
    if (name.endsWith('.index.json')) {
      const index = await take(name)
      if (index === undefined) continue
      for (const shard of shardsOf(name, index)) files[shard] = await required(base, shard, signal)
      return { files, contents }
    }
    const found = await look(urlOf(base, name), signal)
    if (found === null) continue
    files[name] = found
    return { files, contents }
  }
  throw new Error(`${base} has no weights: expected one of ${WEIGHTS.join(', ')}`)
}

async function required(base: string, name: string, signal: AbortSignal): Promise<RemoteFile> {
  const found = await look(urlOf(base, name), signal)
  if (found === null) throw new Error(`${base} has no ${name}, which its index names`)
  return found
}

/** The files that an index names; the core checks the rest of it. */
function shardsOf(name: string, index: Uint8Array): string[] {
  const malformed = new Error(`${name} is not an index of tensors`)
  let map: unknown
  try {
    map = (JSON.parse(new TextDecoder().decode(index)) as { weight_map?: unknown }).weight_map
  } catch {
    throw malformed
  }
  if (typeof map !== 'object' || map === null) throw malformed
  const shards = [...new Set(Object.values(map) as unknown[])]
  if (!shards.every((shard) => typeof shard === 'string' && /^\w[\w.-]*$/.test(shard))) throw malformed
  return shards as string[]
}

function fill(file: KeptFile, content: Uint8Array<ArrayBuffer>): void {
  for (let block = 0; block * BLOCK_BYTES < content.length; block++) {
    file.write(block, content.slice(block * BLOCK_BYTES, (block + 1) * BLOCK_BYTES))
  }
}

async function* inBlocks(pieces: AsyncIterable<Uint8Array>): AsyncGenerator<Uint8Array<ArrayBuffer>> {
  let block = new Uint8Array(BLOCK_BYTES)
  let filled = 0
  for await (const piece of pieces) {
    for (let used = 0; used < piece.length; ) {
      const part = piece.subarray(used, used + BLOCK_BYTES - filled)
      block.set(part, filled)
      used += part.length
      filled += part.length
      if (filled < BLOCK_BYTES) continue
      yield block
      block = new Uint8Array(BLOCK_BYTES)
      filled = 0
    }
  }
  if (filled > 0) yield block.subarray(0, filled)
}

function pause(milliseconds: number, signal: AbortSignal): Promise<void> {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, milliseconds)
    signal.addEventListener('abort', () => (clearTimeout(timer), reject(new DOMException('paused', 'AbortError'))), { once: true })
  })
}

function urlOf(base: string, name: string): string {
  return new URL(encodeURIComponent(name), base).href
}

/** A model that does not fit into the browser's storage is told before anything of it is fetched. */
async function checkRoom(bytes: number, done = 0): Promise<void> {
  const { quota = Infinity, usage = 0 } = await navigator.storage.estimate()
  const room = quota - usage + done
  if (bytes > room) throw new Error(`the model has ${gigabytes(bytes)}, and the browser lends this page ${gigabytes(room)}`)
}

function gigabytes(bytes: number): string {
  return `${(bytes / 1e9).toFixed(2)} GB`
}

async function models(): Promise<FileSystemDirectoryHandle> {
  const root = await navigator.storage?.getDirectory?.().catch(() => undefined)
  if (root === undefined) throw new Error('this browser lends the page no storage, which a model from a server needs')
  return root.getDirectoryHandle('models', { create: true })
}

async function folderOf(base: string): Promise<FileSystemDirectoryHandle> {
  const hash = new Uint8Array(await crypto.subtle.digest('SHA-256', new TextEncoder().encode(base)))
  const name = [...hash.subarray(0, 16)].map((byte) => byte.toString(16).padStart(2, '0')).join('')
  return (await models()).getDirectoryHandle(name, { create: true })
}

const LIST = 'list.json'

/** What lies there without a list belongs to nothing that is known. */
async function empty(folder: FileSystemDirectoryHandle): Promise<void> {
  for await (const name of folder.keys()) await folder.removeEntry(name)
}

async function readList(folder: FileSystemDirectoryHandle): Promise<List | undefined> {
  try {
    const file = await (await folder.getFileHandle(LIST)).getFile()
    return JSON.parse(await file.text()) as List
  } catch {
    // There is none yet, or the page was closed while it was written.
    return undefined
  }
}

async function writeList(folder: FileSystemDirectoryHandle, list: List): Promise<void> {
  const writable = await (await folder.getFileHandle(LIST, { create: true })).createWritable()
  await writable.write(JSON.stringify(list))
  await writable.close()
}
