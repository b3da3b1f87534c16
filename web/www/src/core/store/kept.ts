/// <reference lib="webworker" />
/** A file in the page's own file system of which only some blocks may have arrived. */
import type { RemoteFile } from './remote.ts'

/** Small enough that little is lost with a connection, large enough that few are counted. */
export const BLOCK_BYTES = 256 << 10

export class KeptFile {
  /** For every block 1 if it is there; kept beside the data, and written after it. */
  private readonly present: Uint8Array<ArrayBuffer>

  private constructor(
    readonly about: RemoteFile,
    private readonly data: FileSystemSyncAccessHandle,
    private readonly marks: FileSystemSyncAccessHandle,
  ) {
    this.present = new Uint8Array(Math.ceil(about.size / BLOCK_BYTES))
    marks.read(this.present, { at: 0 })
  }

  static async open(folder: FileSystemDirectoryHandle, name: string, about: RemoteFile): Promise<KeptFile> {
    const handle = async (name: string) => access(await folder.getFileHandle(name, { create: true }))
    return new KeptFile(about, await handle(`${name}.data`), await handle(`${name}.blocks`))
  }

  get bytesHere(): number {
    const { size } = this.about
    return this.present.reduce((sum, mark, block) => sum + (mark === 1 ? Math.min(BLOCK_BYTES, size - block * BLOCK_BYTES) : 0), 0)
  }

  has(offset: number, bytes: number): boolean {
    return bytes === 0 || !this.present.subarray(Math.floor(offset / BLOCK_BYTES), Math.ceil((offset + bytes) / BLOCK_BYTES)).includes(0)
  }

  read(offset: number, into: Uint8Array): void {
    if (this.data.read(into, { at: offset }) !== into.length) throw new Error('the browser has lost what it kept of this file')
  }

  /** Writes a whole block; only when it lies there it counts as present. */
  write(block: number, content: Uint8Array<ArrayBuffer>): void {
    if (this.data.write(content, { at: block * BLOCK_BYTES }) !== content.length) throw new Error('the browser’s storage is full')
    this.data.flush()
    this.present[block] = 1
    this.marks.write(this.present.subarray(block, block + 1), { at: block })
    this.marks.flush()
  }

  /** The missing blocks of some parts of the file, as runs of at most `longest` blocks: first, and behind the last. */
  missing(parts: readonly { readonly offset: number; readonly bytes: number }[], longest: number): [number, number][] {
    const wanted = new Uint8Array(this.present.length)
    for (const { offset, bytes } of parts) wanted.fill(1, Math.floor(offset / BLOCK_BYTES), Math.ceil((offset + bytes) / BLOCK_BYTES))
    const runs: [number, number][] = []
    for (let block = 0; block < wanted.length; block++) {
      if (wanted[block] === 0 || this.present[block] === 1) continue
      const last = runs.at(-1)
      if (last !== undefined && last[1] === block && block - last[0] < longest) last[1] = block + 1
      else runs.push([block, block + 1])
    }
    return runs
  }

  close(): void {
    this.data.close()
    this.marks.close()
  }
}

/** A worker that was ended lets go of its files a moment later; another tab does not. */
async function access(file: FileSystemFileHandle): Promise<FileSystemSyncAccessHandle> {
  for (let attempt = 0; ; attempt++) {
    try {
      return await file.createSyncAccessHandle()
    } catch (error) {
      if (!(error instanceof DOMException) || error.name !== 'NoModificationAllowedError') throw error
      if (attempt === 20) throw new Error('another tab of the studio has this model open: close it first')
      await new Promise((resolve) => setTimeout(resolve, 100))
    }
  }
}
