import { Matrix } from './matrix.ts'
import { backward, cholesky } from './psd.ts'
import { svd, truncated } from './svd.ts'

/** How far an approximation is believed to be away: the metric in which its error is measured. */
export type Metric = 'plain' | 'rows' | 'whitened'

/**
 * The best matrix of rank `rank` in a metric: `P⁻¹ · truncated(P W)`.
 *
 * - `plain`: `P = I`. Every input is as likely as any other. (Eckart–Young)
 * - `rows`: `P = diag(√C_ii)`. Rows count by the energy of their input alone; FWSVD has this form, with Fisher
 *   information for weights (arXiv:2207.00112).
 * - `whitened`: `P = Lᵀ` with `C = L Lᵀ`. The error is that of the outputs, `‖X (W − W')‖`, whatever the data.
 *
 * `gram` is `C = XᵀX`, `[n, n]`; `weight` is `[n, m]`.
 */
export function lowRank(weight: Matrix, gram: Matrix, rank: number, metric: Metric): Matrix {
  switch (metric) {
    case 'plain':
      return truncated(svd(weight), rank)
    case 'rows': {
      const root = (row: number) => Math.sqrt(gram.get(row, row))
      const scaled = Matrix.from(weight.rows, weight.cols, (row, col) => root(row) * weight.get(row, col))
      const cut = truncated(svd(scaled), rank)
      return Matrix.from(weight.rows, weight.cols, (row, col) => cut.get(row, col) / root(row))
    }
    case 'whitened': {
      const lower = cholesky(gram)
      return backward(lower, truncated(svd(lower.transposed.times(weight)), rank))
    }
  }
}

/** `‖X D‖²_F = tr(Dᵀ C D)`: the error where the data lives. */
export function energyUnder(gram: Matrix, difference: Matrix): number {
  const product = gram.times(difference)
  return difference.data.reduce((sum, value, i) => sum + value * (product.data[i] as number), 0)
}
