/// <reference lib="webworker" />
/** Files that the reader brought, read where they lie: a model may be larger than what a page can hold. */
export class PickedStore {
  private readonly files: ReadonlyMap<string, File>
  private readonly reader = new FileReaderSync()

  constructor(files: readonly File[]) {
    this.files = new Map(files.map((file) => [file.name, file]))
  }

  names(): string[] {
    return [...this.files.keys()]
  }

  size(file: string): number | undefined {
    return this.files.get(file)?.size
  }

  readAt(name: string, offset: number, into: Uint8Array): void {
    const file = this.files.get(name)
    if (file === undefined) throw new Error('there is no such file')
    const found = new Uint8Array(this.reader.readAsArrayBuffer(file.slice(offset, offset + into.length)))
    if (found.length !== into.length) throw new Error('the file has become shorter')
    into.set(found)
  }
}
