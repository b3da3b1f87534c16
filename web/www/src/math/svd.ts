import { addRow, Matrix } from './matrix.ts'

/** `A = U diag(σ) Vᵀ`, with σ descending. */
export interface Svd {
  /** `[rows, n]`, orthonormal columns. */
  readonly u: Matrix
  /** The `n = min(rows, cols)` singular values. */
  readonly values: readonly number[]
  /** `[cols, n]`, orthonormal columns. */
  readonly v: Matrix
}

const SWEEPS = 60

/**
 * Singular value decomposition by one-sided Jacobi rotations: columns are turned against each other, two at a time, until
 * all are orthogonal. Slow for large matrices, and as exact as double precision gets. (Hestenes 1958)
 */
export function svd(matrix: Matrix): Svd {
  if (matrix.rows < matrix.cols) {
    const { u, values, v } = svd(matrix.transposed)
    return { u: v, values, v: u }
  }
  const n = matrix.cols
  const columns = Array.from({ length: n }, (_, col) => Float64Array.from(matrix.column(col)))
  const right = Array.from({ length: n }, (_, col) => Float64Array.from({ length: n }, (_, row) => +(row === col)))
  for (let sweep = 0; sweep < SWEEPS && turnAll(columns, right); sweep++);
  const norms = columns.map((column) => Math.sqrt(dot(column, column)))
  const order = norms.map((_, index) => index).sort((a, b) => (norms[b] as number) - (norms[a] as number))
  const values = order.map((index) => norms[index] as number)
  const left = order.map((index) => {
    const norm = norms[index] as number
    return (columns[index] as Float64Array).map((value) => (norm > 0 ? value / norm : 0))
  })
  return {
    u: Matrix.from(matrix.rows, n, (row, col) => left[col]?.[row] ?? 0),
    values,
    v: Matrix.from(n, n, (row, col) => right[order[col] as number]?.[row] ?? 0),
  }
}

/** One sweep over all pairs of columns; whether anything still had to be turned. */
function turnAll(columns: readonly Float64Array[], right: readonly Float64Array[]): boolean {
  let turned = false
  // Taken anew in every sweep, and carried along in between: a turn takes from one what it gives to the other.
  const squares = columns.map((column) => dot(column, column))
  for (let p = 0; p < columns.length; p++) {
    for (let q = p + 1; q < columns.length; q++) {
      const [a, b] = [columns[p] as Float64Array, columns[q] as Float64Array]
      const [aa, bb, ab] = [squares[p] as number, squares[q] as number, dot(a, b)]
      if (ab === 0 || Math.abs(ab) <= 1e-15 * Math.sqrt(Math.abs(aa * bb))) continue
      turned = true
      const zeta = (bb - aa) / (2 * ab)
      const tangent = (zeta < 0 ? -1 : 1) / (Math.abs(zeta) + Math.hypot(1, zeta))
      const cosine = 1 / Math.hypot(1, tangent)
      turn(a, b, cosine, cosine * tangent)
      turn(right[p] as Float64Array, right[q] as Float64Array, cosine, cosine * tangent)
      squares[p] = aa - tangent * ab
      squares[q] = bb + tangent * ab
    }
  }
  return turned
}

function turn(a: Float64Array, b: Float64Array, cosine: number, sine: number): void {
  for (let i = 0; i < a.length; i++) {
    const [x, y] = [a[i] as number, b[i] as number]
    a[i] = cosine * x - sine * y
    b[i] = sine * x + cosine * y
  }
}

function dot(a: Float64Array, b: Float64Array): number {
  let sum = 0
  for (let i = 0; i < a.length; i++) sum += (a[i] as number) * (b[i] as number)
  return sum
}

/** The first `rank` terms of `Σ σᵢ uᵢ vᵢᵀ`. */
export function truncated({ u, values, v }: Svd, rank: number): Matrix {
  const sum = new Matrix(u.rows, v.rows)
  for (let i = 0; i < Math.min(rank, values.length); i++) {
    const right = Float64Array.from(v.column(i))
    for (let row = 0; row < u.rows; row++) {
      addRow(sum.data, row * v.rows, (values[i] as number) * u.get(row, i), right, 0, v.rows)
    }
  }
  return sum
}

/** `Σ_{i>r} σᵢ² / Σ σᵢ²` for every rank from 0 to all: the share of the energy that truncation loses. */
export function lostShares(values: readonly number[]): number[] {
  const energies = values.map((value) => value * value)
  const total = energies.reduce((sum, energy) => sum + energy, 0)
  let left = 0
  const shares = [0]
  for (const energy of [...energies].reverse()) {
    left += energy
    shares.push(total > 0 ? left / total : 0)
  }
  return shares.reverse()
}
