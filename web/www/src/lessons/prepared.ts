/** The picture of the first lesson with its decomposition, unpacked. */
import picture from 'virtual:picture'

import { Matrix } from '../math/matrix.ts'
import type { Svd } from '../math/svd.ts'

export const PICTURE = Matrix.from(picture.size, picture.size, grey(bytes(picture.grey)))

/** `U = A V diag(1/σ)`; the vectors that travelled are exact to 1.5e-5. */
export const PICTURE_SVD: Svd = decomposition()

function grey(levels: Uint8Array): (row: number, col: number) => number {
  return (row, col) => (levels[row * picture.size + col] as number) / 255
}

function decomposition(): Svd {
  const right = Float64Array.from(new Int16Array(bytes(picture.right).buffer), (value) => value / picture.steps)
  const v = new Matrix(picture.size, picture.size, right)
  const u = PICTURE.times(v)
  u.data.forEach((value, at) => {
    const sigma = picture.values[at % picture.size] as number
    u.data[at] = sigma > 0 ? value / sigma : 0
  })
  return { u, values: picture.values, v }
}

function bytes(base64: string): Uint8Array<ArrayBuffer> {
  return Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0))
}
