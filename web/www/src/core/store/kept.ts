/** A file of which only some blocks may be here. */
import { BLOCK_BYTES, type Blocks } from './blocks.ts'
import type { RemoteFile } from './remote.ts'

export interface Part {
  readonly offset: number
  readonly bytes: number
}

export class KeptFile {
  constructor(
    readonly about: RemoteFile,
    private readonly blocks: Blocks,
    /** The number of its first block among all of the model. */
    private readonly first: number,
  ) {}

  /** How many blocks it has. */
  get length(): number {
    return blocksOf(this.about)
  }

  get bytesHere(): number {
    let bytes = 0
    for (let block = 0; block < this.length; block++) if (this.blocks.has(this.first + block)) bytes += this.sizeOf(block)
    return bytes
  }

  has({ offset, bytes }: Part): boolean {
    return bytes === 0 || this.among([{ offset, bytes }]).every((block) => this.blocks.has(this.first + block))
  }

  read(offset: number, into: Uint8Array): void {
    for (let at = 0; at < into.length; ) {
      const block = Math.floor((offset + at) / BLOCK_BYTES)
      const from = (offset + at) % BLOCK_BYTES
      const end = Math.min(into.length, at + BLOCK_BYTES - from)
      this.blocks.read(this.first + block, from, into.subarray(at, end))
      at = end
    }
  }

  /** Writes a whole block. */
  write(block: number, content: Uint8Array<ArrayBuffer>): void {
    this.blocks.write(this.first + block, content)
  }

  /** The blocks in which some parts lie; they are the last ones to make way for others. */
  use(parts: readonly Part[]): number[] {
    const blocks = this.among(parts)
    for (const block of blocks) this.blocks.use(this.first + block)
    return blocks
  }

  /** The missing ones among some blocks, as runs of at most `longest`: first, and behind the last. */
  missing(blocks: readonly number[], longest: number): [number, number][] {
    const runs: [number, number][] = []
    for (const block of blocks) {
      if (this.blocks.has(this.first + block)) continue
      const last = runs.at(-1)
      if (last !== undefined && last[1] === block && block - last[0] < longest) last[1] = block + 1
      else runs.push([block, block + 1])
    }
    return runs
  }

  private among(parts: readonly Part[]): number[] {
    const wanted = new Set<number>()
    for (const { offset, bytes } of parts) {
      const end = Math.min(this.length, Math.ceil((offset + bytes) / BLOCK_BYTES))
      for (let block = Math.floor(offset / BLOCK_BYTES); block < end; block++) wanted.add(block)
    }
    return [...wanted].sort((a, b) => a - b)
  }

  private sizeOf(block: number): number {
    return Math.min(BLOCK_BYTES, this.about.size - block * BLOCK_BYTES)
  }
}

export function blocksOf({ size }: RemoteFile): number {
  return Math.ceil(size / BLOCK_BYTES)
}
