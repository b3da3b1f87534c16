/**
 * Small reads, such as single rows of an embedding, page by page: the browser takes up to a millisecond for each read,
 * however small, and the rows of frequent tokens are read again and again.
 */
const PAGE_BYTES = 8 << 10
const MOST_PAGES = 512

export class Pages {
  /** By number; the one used longest ago comes first. */
  private readonly pages = new Map<number, Uint8Array<ArrayBuffer>>()

  /** `source` fills what it is given from a place on, as far as there is anything, and says how far. */
  constructor(private readonly source: (at: number, into: Uint8Array<ArrayBuffer>) => number) {}

  /** How much of `into` there was. */
  read(at: number, into: Uint8Array): number {
    if (into.length > PAGE_BYTES) return this.source(at, into as Uint8Array<ArrayBuffer>)
    let done = 0
    while (done < into.length) {
      const number = Math.floor((at + done) / PAGE_BYTES)
      const part = this.page(number).subarray(at + done - number * PAGE_BYTES).subarray(0, into.length - done)
      if (part.length === 0) break
      into.set(part, done)
      done += part.length
    }
    return done
  }

  /** What was read is not true any more. */
  forget(): void {
    this.pages.clear()
  }

  private page(number: number): Uint8Array<ArrayBuffer> {
    const known = this.pages.get(number)
    const page = known ?? this.load(number)
    // Behind all others.
    this.pages.delete(number)
    this.pages.set(number, page)
    return page
  }

  private load(number: number): Uint8Array<ArrayBuffer> {
    for (const oldest of this.pages.keys()) {
      if (this.pages.size < MOST_PAGES) break
      this.pages.delete(oldest)
    }
    const page = new Uint8Array(PAGE_BYTES)
    return page.subarray(0, this.source(number * PAGE_BYTES, page))
  }
}
