/// <reference lib="webworker" />
/**
 * A compressed model as a tape archive, written while it is made and read from there: in the page's own file system where
 * the browser lends one, else in memory. Either way the reader is handed what lies there, without another copy.
 */
import { Pages } from './pages.ts'
import { BLOCK, END, header, padding } from './tar.ts'

/** Where an archive lies. */
interface Place {
  write(content: Uint8Array, at: number): void
  read(at: number, into: Uint8Array): void
  /** The whole, once all has been written. */
  finish(): Promise<Blob>
  discard(): Promise<void>
}

interface ArchivedFile {
  readonly offset: number
  bytes: number
}

export class Archive {
  private readonly files = new Map<string, ArchivedFile>()
  private last: string | undefined
  private end = 0

  private constructor(
    private readonly folder: string,
    private readonly place: Place,
    /** Why it is held in memory; `null` if it is not. */
    readonly inMemory: string | null,
  ) {}

  /** An archive of one folder, of at most so many bytes. */
  static async begin(folder: string, bytes: number): Promise<Archive> {
    try {
      return new Archive(folder, await Disk.open(bytes), null)
    } catch (error) {
      return new Archive(folder, new Memory(), error instanceof Error ? error.message : String(error))
    }
  }

  /** Takes the next part of a file; with another name the file before is whole. */
  put(name: string, part: Uint8Array): void {
    if (this.last !== name) this.begin(name)
    const file = this.files.get(name) as ArchivedFile
    file.bytes += part.length
    this.append(part)
  }

  async finish(): Promise<Blob> {
    this.complete()
    this.append(END)
    return this.place.finish()
  }

  async discard(): Promise<void> {
    await this.place.discard()
  }

  names(): string[] {
    return [...this.files.keys()]
  }

  size(name: string): number | undefined {
    return this.files.get(name)?.bytes
  }

  readAt(name: string, offset: number, into: Uint8Array): void {
    const file = this.files.get(name)
    if (file === undefined) throw new Error('there is no such file')
    this.place.read(file.offset + offset, into)
  }

  private begin(name: string): void {
    if (this.files.has(name)) throw new Error(`${name} is written twice`)
    this.complete()
    this.last = name
    this.files.set(name, { offset: this.end + BLOCK, bytes: 0 })
    // Its header says how long it is, which is known in the end.
    this.append(new Uint8Array(BLOCK))
  }

  private complete(): void {
    if (this.last === undefined) return
    const { offset, bytes } = this.files.get(this.last) as ArchivedFile
    this.append(padding(bytes))
    this.place.write(header(`${this.folder}/${this.last}`, bytes), offset - BLOCK)
  }

  private append(content: Uint8Array): void {
    this.place.write(content, this.end)
    this.end += content.length
  }
}

class Memory implements Place {
  private readonly parts: { readonly at: number; readonly content: Uint8Array<ArrayBuffer> }[] = []

  /** Writes behind the end, or a whole part anew. */
  write(content: Uint8Array, at: number): void {
    const part = this.parts[this.find(at)]
    if (part?.at === at && part.content.length === content.length) part.content.set(content)
    else if (content.length > 0) this.parts.push({ at, content: content.slice() })
  }

  read(at: number, into: Uint8Array): void {
    let done = 0
    for (let i = this.find(at); done < into.length; i++) {
      const part = this.parts[i]
      if (part === undefined) throw new Error('the archive ends too early')
      const from = at + done - part.at
      const found = part.content.subarray(from, from + into.length - done)
      into.set(found, done)
      done += found.length
    }
  }

  async finish(): Promise<Blob> {
    return new Blob(this.parts.map(({ content }) => content), { type: TYPE })
  }

  async discard(): Promise<void> {
    this.parts.length = 0
  }

  /** The last part that does not begin behind `at`. */
  private find(at: number): number {
    let [low, high] = [0, this.parts.length]
    while (high - low > 1) {
      const middle = (low + high) >> 1
      if ((this.parts[middle]?.at ?? Infinity) <= at) low = middle
      else high = middle
    }
    return low
  }
}

const FOLDER = 'results'
const TYPE = 'application/x-tar'

/** A file in the page's own file system, for as long as this worker lives. */
class Disk implements Place {
  private readonly pages = new Pages((at, into) => this.access.read(into, { at }))

  private constructor(
    private readonly folder: FileSystemDirectoryHandle,
    private readonly file: FileSystemFileHandle,
    private access: FileSystemSyncAccessHandle,
    private readonly release: () => void,
  ) {}

  static async open(bytes: number): Promise<Disk> {
    const root = await navigator.storage?.getDirectory?.()
    if (root === undefined) throw new Error('this browser lends the page no storage')
    const folder = await root.getDirectoryHandle(FOLDER, { create: true })
    await sweep(folder)
    const { quota = Infinity, usage = 0 } = await navigator.storage.estimate()
    if (bytes > quota - usage) throw new Error(`this browser lends the page only ${((quota - usage) / 1e6).toFixed(0)} MB of storage`)
    const name = `${crypto.randomUUID()}.tar`
    const release = await hold(name)
    const file = await folder.getFileHandle(name, { create: true })
    return new Disk(folder, file, await file.createSyncAccessHandle(), release)
  }

  write(content: Uint8Array, at: number): void {
    this.pages.forget()
    if (this.access.write(content as Uint8Array<ArrayBuffer>, { at }) !== content.length) throw new Error('the browser’s storage is full')
  }

  read(at: number, into: Uint8Array): void {
    if (this.pages.read(at, into) !== into.length) throw new Error('the browser has lost what it kept of the compressed model')
  }

  async finish(): Promise<Blob> {
    this.access.flush()
    // A file is handed out as it is when nobody can write to it.
    this.access.close()
    const blob = await this.file.getFile()
    this.access = await this.file.createSyncAccessHandle()
    return blob
  }

  async discard(): Promise<void> {
    this.access.close()
    await this.folder.removeEntry(this.file.name)
    this.release()
  }
}

/** Removes what workers have left that are gone; those that live hold a lock of their file's name. */
async function sweep(folder: FileSystemDirectoryHandle): Promise<void> {
  for await (const name of folder.keys()) {
    await navigator.locks.request(name, { ifAvailable: true }, (lock) => (lock === null ? undefined : folder.removeEntry(name)))
  }
}

function hold(name: string): Promise<() => void> {
  return new Promise((granted) => {
    void navigator.locks.request(name, () => new Promise<void>((release) => granted(release)))
  })
}
