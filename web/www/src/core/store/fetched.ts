/// <reference lib="webworker" />
/**
 * A model's files on a server, fetched in parts when they are needed, and kept in the page's own file system as far as there
 * is room. A model of which everything is kept needs no network.
 */
import type { Arrival, Span } from '../protocol.ts'
import { BLOCK_BYTES, Blocks } from './blocks.ts'
import { blocksOf, KeptFile } from './kept.ts'
import { Dropped, look, range, type RemoteFile, whole } from './remote.ts'

/** Beside the weights; a model has those that it has. */
const COMPANIONS = ['generation_config.json', 'tokenizer.json', 'tokenizer_config.json', 'vocab.json', 'merges.txt']
/** Best first, as the core chooses. */
const WEIGHTS = ['model.safetensors.index.json', 'model.safetensors', 'pytorch_model.bin.index.json', 'pytorch_model.bin']
const LONGEST_RUN = 64
/** Larger than any model, small enough that its blocks can be listed. */
const LARGEST_BYTES = 2 ** 41
/** Milliseconds before a lost connection is tried again; any byte that arrives begins the list anew. */
const PATIENCE = [250, 1000, 3000]

export class FetchedStore {
  private missed: Span | undefined

  private constructor(
    /** The folder's address. */
    readonly base: string,
    private readonly folder: FileSystemDirectoryHandle,
    private readonly blocks: Blocks,
    private readonly kept: ReadonlyMap<string, KeptFile>,
    /** The most that is kept of it. */
    private readonly keptBytes: number,
  ) {}

  /** Opens what is kept of the model in the folder `base` of a server, or asks the server what there is. */
  static async open(base: string, keptBytes: number, signal: AbortSignal): Promise<FetchedStore> {
    const folder = await folderOf(base)
    const known = await readList(folder)
    const { files, contents } = known === undefined ? await list(base, signal) : { files: known, contents: new Map<string, never>() }
    const bytes = Object.values(files).reduce((sum, { size }) => sum + size, 0)
    if (bytes > LARGEST_BYTES) throw new Error(`${base} says that the model has ${gigabytes(bytes)}, more than any has`)
    if (known === undefined) await empty(folder)
    const blocks = await Blocks.open(folder, Object.values(files).reduce((sum, about) => sum + blocksOf(about), 0))
    try {
      const kept = new Map<string, KeptFile>()
      let first = 0
      for (const [name, about] of Object.entries(files)) {
        kept.set(name, new KeptFile(about, blocks, first))
        first += blocksOf(about)
      }
      const store = new FetchedStore(base, folder, blocks, kept, keptBytes)
      await store.measureRoom()
      for (const [name, content] of contents) fill(kept.get(name) as KeptFile, content)
      if (known === undefined) await writeList(folder, files)
      return store
    } catch (error) {
      blocks.close()
      throw error
    }
  }

  names(): string[] {
    return [...this.kept.keys()]
  }

  size(file: string): number | undefined {
    return this.kept.get(file)?.about.size
  }

  readAt(file: string, offset: number, into: Uint8Array): void {
    const kept = this.kept.get(file)
    if (kept?.has({ offset, bytes: into.length }) !== true) {
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
    const fetched = new Set<string>()
    for (;;) {
      this.missed = undefined
      try {
        return work()
      } catch (error) {
        const missed = this.missed as Span | undefined
        if (missed === undefined) throw error
        const name = `${missed.file} ${missed.offset} ${missed.bytes}`
        if (fetched.has(name)) throw new Error('what the browser keeps of the model is too little to read it')
        fetched.add(name)
        await this.fetch([missed], signal)
      }
    }
  }

  /** Fetches what is missing of `spans`, or of everything. Other parts make way if need be. */
  async fetch(spans: readonly Span[] | 'all', signal: AbortSignal, tell: (arrival: Arrival) => void = () => {}): Promise<void> {
    const whole = ({ about }: KeptFile) => [{ offset: 0, bytes: about.size }]
    const wanted = [...this.kept].map(([name, file]) => {
      return { name, file, blocks: file.use(spans === 'all' ? whole(file) : spans.filter((span) => span.file === name)) }
    })
    await this.measureRoom(wanted.reduce((sum, { blocks }) => sum + blocks.length, 0))
    const { done, of } = this.arrival
    let here = done
    for (const { name, file, blocks } of wanted) {
      for (const [first, end] of file.missing(blocks, LONGEST_RUN)) {
        await this.fetchRun(name, file, first, end, signal, (bytes) => tell({ done: (here += bytes), of }))
      }
    }
  }

  /** How many blocks may be kept; what does not fit is told before anything of it is fetched. */
  private async measureRoom(needed = 0): Promise<void> {
    const { quota = Infinity, usage = 0 } = await navigator.storage.estimate()
    const lent = quota - usage + this.blocks.count * BLOCK_BYTES
    this.blocks.most = Math.floor(Math.min(lent, this.keptBytes) / BLOCK_BYTES)
    if (needed <= this.blocks.most) return
    const bytes = gigabytes(needed * BLOCK_BYTES)
    if (lent < this.keptBytes) throw new Error(`this takes ${bytes}, and the browser lends this page ${gigabytes(lent)}`)
    throw new Error(`this takes ${bytes}, and of a model at most ${gigabytes(this.keptBytes)} are kept`)
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
    this.blocks.close()
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
      const shards = shardsOf(name, index)
      for (const shard of shards) {
        const found = await look(urlOf(base, shard), signal)
        // A model is opened without the layers of a shard that is not there.
        if (found !== null) files[shard] = found
      }
      if (!shards.some((shard) => shard in files)) throw new Error(`${base} has none of the files that its ${name} names`)
      return { files, contents }
    }
    const found = await look(urlOf(base, name), signal)
    if (found === null) continue
    files[name] = found
    return { files, contents }
  }
  throw new Error(`${base} has no weights: expected one of ${WEIGHTS.join(', ')}`)
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
/** Of what is kept beside it. */
const VERSION = 2

/** What lies there without a list belongs to nothing that is known. */
async function empty(folder: FileSystemDirectoryHandle): Promise<void> {
  for await (const name of folder.keys()) await folder.removeEntry(name)
}

async function readList(folder: FileSystemDirectoryHandle): Promise<List | undefined> {
  try {
    const file = await (await folder.getFileHandle(LIST)).getFile()
    const { version, files } = JSON.parse(await file.text()) as { version: number; files: List }
    return version === VERSION ? files : undefined
  } catch {
    // There is none yet, or the page was closed while it was written.
    return undefined
  }
}

async function writeList(folder: FileSystemDirectoryHandle, files: List): Promise<void> {
  const writable = await (await folder.getFileHandle(LIST, { create: true })).createWritable()
  await writable.write(JSON.stringify({ version: VERSION, files }))
  await writable.close()
}
