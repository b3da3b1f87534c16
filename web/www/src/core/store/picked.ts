/// <reference lib="webworker" />
import { Pages } from './pages.ts'

/** Files that the reader brought, read where they lie: a model may be larger than what a page can hold. */
export class PickedStore {
  private readonly files: ReadonlyMap<string, File>
  private readonly pages: ReadonlyMap<string, Pages>

  constructor(files: readonly File[]) {
    this.files = new Map(files.map((file) => [file.name, file]))
    this.pages = new Map(files.map((file) => [file.name, pagesOf(file)]))
  }

  names(): string[] {
    return [...this.files.keys()]
  }

  size(file: string): number | undefined {
    return this.files.get(file)?.size
  }

  readAt(name: string, offset: number, into: Uint8Array): void {
    const found = this.pages.get(name)?.read(offset, into)
    if (found === undefined) throw new Error('there is no such file')
    if (found !== into.length) throw new Error('the file has become shorter')
  }
}

function pagesOf(file: File): Pages {
  const reader = new FileReaderSync()
  return new Pages((at, into) => {
    const found = new Uint8Array(reader.readAsArrayBuffer(file.slice(at, at + into.length)))
    into.set(found)
    return found.length
  })
}
