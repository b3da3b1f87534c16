export interface NamedFile {
  readonly name: string
  readonly content: Uint8Array<ArrayBuffer>
}

/** Hands the reader a folder, named like the archive. */
export function download(name: string, files: readonly NamedFile[]): void {
  const folder = name.replace(/\.tar$/, '')
  const url = URL.createObjectURL(new Blob(tar(folder, files), { type: 'application/x-tar' }))
  const link = document.createElement('a')
  link.href = url
  link.download = name
  link.click()
  setTimeout(() => URL.revokeObjectURL(url), 60_000)
}

const BLOCK = 512

/** A tape archive in the ustar format, the parts in order (POSIX.1-1988). */
export function tar(folder: string, files: readonly NamedFile[]): Uint8Array<ArrayBuffer>[] {
  const parts = files.flatMap(({ name, content }) => {
    const padding = new Uint8Array((BLOCK - (content.length % BLOCK)) % BLOCK)
    return [header(`${folder}/${name}`, content.length), content, padding]
  })
  return [...parts, new Uint8Array(2 * BLOCK)]
}

function header(path: string, size: number): Uint8Array<ArrayBuffer> {
  const encoder = new TextEncoder()
  const bytes = encoder.encode(path)
  if (bytes.length > 100) throw new RangeError(`the path ${path} is too long for an archive`)
  const block = new Uint8Array(BLOCK)
  const put = (text: string, at: number) => block.set(encoder.encode(text), at)
  const octal = (value: number, digits: number) => value.toString(8).padStart(digits, '0')
  block.set(bytes, 0)
  put(`${octal(0o644, 7)}\0${octal(0, 7)}\0${octal(0, 7)}\0`, 100)
  put(`${octal(size, 11)}\0${octal(0, 11)}\0`, 124)
  // The sum is taken with blanks in its own place.
  put('        0', 148)
  put('ustar\x0000', 257)
  const sum = block.reduce((a, b) => a + b, 0)
  put(`${octal(sum, 6)}\0 `, 148)
  return block
}
