import { energyUnder } from './low_rank.ts'
import { Matrix } from './matrix.ts'
import { solve } from './psd.ts'

/** `[C (C + λI)⁻¹]_ii`, the ridge `λ` relative to the mean diagonal: how hard each column is to replace, from 0 to 1. */
export function leverageScores(gram: Matrix, ridge: number): number[] {
  const inverse = solve(gram, Matrix.diagonal(Array<number>(gram.rows).fill(1)), ridge)
  const mean = Matrix.from(1, gram.rows, (_, i) => gram.get(i, i)).data.reduce((a, b) => a + b, 0) / gram.rows
  return Array.from({ length: gram.rows }, (_, i) => 1 - ridge * mean * inverse.get(i, i))
}

/** `(C_JJ)⁻¹ C_J:`, `[k, n]`: how the kept columns make up each column. A tiny ridge keeps twins apart. */
export function mixing(gram: Matrix, kept: readonly number[]): Matrix {
  return solve(gram.columns(kept).rowsAt(kept), gram.rowsAt(kept), 1e-10)
}

/** What is lost of the output's energy when `kept` columns carry all of it: `‖H W − H_J W'‖² / ‖H W‖²`, `C = HᵀH`. */
export function refitError(gram: Matrix, down: Matrix, kept: readonly number[]): number {
  if (kept.length === 0) return 1
  return errorUnder(gram, down, kept, mixing(gram, kept).times(down))
}

/** The same without the refit: the other columns are simply left out. */
export function dropError(gram: Matrix, down: Matrix, kept: readonly number[]): number {
  return errorUnder(gram, down, kept, down.rowsAt(kept))
}

/** With the rows `replacement` for the columns that are kept, and nothing for the others. */
function errorUnder(gram: Matrix, down: Matrix, kept: readonly number[], replacement: Matrix): number {
  const difference = Matrix.from(down.rows, down.cols, (row, col) => down.get(row, col))
  kept.forEach((row, at) => {
    for (let col = 0; col < down.cols; col++) difference.set(row, col, down.get(row, col) - replacement.get(at, col))
  })
  return energyUnder(gram, difference) / energyUnder(gram, down)
}

/** Every choice of `k` out of `n`, each ascending. */
export function choices(n: number, k: number): number[][] {
  if (k === 0) return [[]]
  if (k > n) return []
  const withLast = choices(n - 1, k - 1).map((kept) => [...kept, n - 1])
  return [...choices(n - 1, k), ...withLast]
}
