/// <reference lib="webworker" />
/**
 * Blocks of a model's files, kept in one file of the page's own file system. There is room for some of them only; of
 * those, the one used longest ago makes way. A block counts when it has been written.
 */

import { Pages } from './pages.ts'

/** Small enough that little is lost with a connection, large enough that few are counted. */
export const BLOCK_BYTES = 256 << 10

export class Blocks {
  private readonly pages = new Pages((at, into) => this.data.read(into, { at }))
  /** The most blocks that may be kept. */
  most = Infinity
  /** For every block of the model one more than its slot, or 0; kept beside the data, and written after it. */
  private readonly table: Uint32Array<ArrayBuffer>
  /** By slot, its block; and when that was last used. */
  private readonly slots: (number | undefined)[] = []
  private readonly lastUse: number[] = []
  private now = 0
  private kept = 0

  private constructor(
    nBlocks: number,
    private readonly data: FileSystemSyncAccessHandle,
    private readonly list: FileSystemSyncAccessHandle,
  ) {
    this.table = new Uint32Array(nBlocks)
    list.read(this.table, { at: 0 })
    const nSlots = Math.ceil(data.getSize() / BLOCK_BYTES)
    this.table.forEach((entry, block) => {
      if (entry === 0) return
      // What is out of order cannot be trusted.
      if (entry > nSlots || this.slots[entry - 1] !== undefined) this.table[block] = 0
      else this.settle(block, entry - 1)
    })
  }

  static async open(folder: FileSystemDirectoryHandle, nBlocks: number): Promise<Blocks> {
    const handle = async (name: string) => access(await folder.getFileHandle(name, { create: true }))
    const data = await handle('blocks.data')
    try {
      return new Blocks(nBlocks, data, await handle('blocks.list'))
    } catch (error) {
      data.close()
      throw error
    }
  }

  /** How many there are. */
  get count(): number {
    return this.kept
  }

  has(block: number): boolean {
    return this.table[block] !== 0
  }

  /** Says that a block is needed now, so that others make way first. */
  use(block: number): void {
    const entry = this.table[block] ?? 0
    if (entry > 0) this.lastUse[entry - 1] = ++this.now
  }

  /** Reads from `offset` of a block that is there. */
  read(block: number, offset: number, into: Uint8Array): void {
    const slot = (this.table[block] ?? 0) - 1
    this.use(block)
    const found = slot < 0 ? 0 : this.pages.read(slot * BLOCK_BYTES + offset, into)
    if (found !== into.length) throw new Error('the browser has lost what it kept of this file')
  }

  /** Writes a whole block. */
  write(block: number, content: Uint8Array<ArrayBuffer>): void {
    const slot = this.has(block) ? (this.table[block] as number) - 1 : this.free()
    this.pages.forget()
    if (this.data.write(content, { at: slot * BLOCK_BYTES }) !== content.length) throw new Error('the browser’s storage is full')
    this.data.flush()
    if (this.slots[slot] !== block) this.settle(block, slot)
    this.table[block] = slot + 1
    this.use(block)
    this.note(block)
  }

  close(): void {
    this.data.close()
    this.list.close()
  }

  private settle(block: number, slot: number): void {
    this.slots[slot] = block
    this.lastUse[slot] = 0
    this.kept++
  }

  /** A slot that holds nothing any more. */
  private free(): number {
    while (this.kept >= Math.max(1, this.most)) this.drop()
    for (let slot = 0; slot < this.slots.length; slot++) if (this.slots[slot] === undefined) return slot
    return this.slots.length
  }

  /** Lets go of the block that was used longest ago. */
  private drop(): void {
    let oldest = -1
    this.slots.forEach((block, slot) => {
      if (block !== undefined && (oldest < 0 || (this.lastUse[slot] as number) < (this.lastUse[oldest] as number))) oldest = slot
    })
    const block = this.slots[oldest] as number
    this.slots[oldest] = undefined
    this.kept--
    this.table[block] = 0
    this.note(block)
  }

  private note(block: number): void {
    this.list.write(this.table.subarray(block, block + 1), { at: 4 * block })
    this.list.flush()
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
