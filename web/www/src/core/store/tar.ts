/** Tape archives in the ustar format (POSIX.1-1988): before every file a header, behind it zeros up to a whole block. */

export const BLOCK = 512

/** What goes behind the last file. */
export const END = new Uint8Array(2 * BLOCK)

/** What goes behind the content of a file. */
export function padding(bytes: number): Uint8Array<ArrayBuffer> {
  return new Uint8Array((BLOCK - (bytes % BLOCK)) % BLOCK)
}

export function header(path: string, bytes: number): Uint8Array<ArrayBuffer> {
  const encoder = new TextEncoder()
  const name = encoder.encode(path)
  if (name.length > 100) throw new RangeError(`the path ${path} is too long for an archive`)
  if (bytes >= 8 ** 11) throw new RangeError(`${path} is too large for an archive`)
  const block = new Uint8Array(BLOCK)
  const put = (text: string, at: number) => block.set(encoder.encode(text), at)
  const octal = (value: number, digits: number) => value.toString(8).padStart(digits, '0')
  block.set(name, 0)
  put(`${octal(0o644, 7)}\0${octal(0, 7)}\0${octal(0, 7)}\0`, 100)
  put(`${octal(bytes, 11)}\0${octal(0, 11)}\0`, 124)
  // The sum is taken with blanks in its own place.
  put('        0', 148)
  put('ustar\x0000', 257)
  const sum = block.reduce((a, b) => a + b, 0)
  put(`${octal(sum, 6)}\0 `, 148)
  return block
}

/** What a folder in an archive may be called, whatever the model is. */
export function folderName(name: string): string {
  return (name.split('/').at(-1) ?? '').replace(/[^\w.-]+/g, '-').slice(0, 60).replace(/^[-.]+/, '') || 'model'
}
