/**
 * `virtual:picture`: the picture of the first lesson and its decomposition, made while the page is built. On a slow phone
 * the decomposition alone would take a second of the time before the page can be touched.
 */
import type { Plugin } from 'vite'

import { lighthouse, PICTURE_SIZE } from '../www/src/lessons/picture.ts'
import { svd } from '../www/src/math/svd.ts'

const NAME = 'virtual:picture'
/** Singular vectors have elements of at most 1, and travel as 16-bit integers. */
const STEPS = 32767

export function picture(): Plugin {
  return {
    name: 'picture',
    enforce: 'pre',
    resolveId: (id) => (id === NAME ? `\0${NAME}` : undefined),
    load: (id) => (id === `\0${NAME}` ? source() : undefined),
  }
}

function source(): string {
  const matrix = lighthouse()
  const { values, v } = svd(matrix)
  const grey = Uint8Array.from(matrix.data, (value) => Math.round(255 * value))
  const right = Int16Array.from(v.data, (value) => Math.round(STEPS * value))
  const parts = {
    size: PICTURE_SIZE,
    grey: base64(grey),
    values: values.map((value) => Number(value.toPrecision(9))),
    steps: STEPS,
    right: base64(new Uint8Array(right.buffer)),
  }
  return `export default ${JSON.stringify(parts)}`
}

function base64(bytes: Uint8Array): string {
  return Buffer.from(bytes).toString('base64')
}
