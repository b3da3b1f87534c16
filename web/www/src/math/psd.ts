import { Matrix } from './matrix.ts'

/** Lower triangular `L` with `A + ridge · mean(diag A) · I = L Lᵀ`, for symmetric positive definite `A`. */
export function cholesky(matrix: Matrix, ridge = 0): Matrix {
  const n = matrix.rows
  const mean = matrix.data.reduce((sum, value, i) => (i % (n + 1) === 0 ? sum + value : sum), 0) / n
  const lower = new Matrix(n, n)
  for (let row = 0; row < n; row++) {
    for (let col = 0; col <= row; col++) {
      let rest = matrix.get(row, col) + (row === col ? ridge * mean : 0)
      for (let i = 0; i < col; i++) rest -= lower.get(row, i) * lower.get(col, i)
      if (row > col) lower.set(row, col, rest / lower.get(col, col))
      else if (rest > 0) lower.set(row, row, Math.sqrt(rest))
      else throw new RangeError(`the matrix is not positive definite: pivot ${row} is ${rest}`)
    }
  }
  return lower
}

/** `X` with `(A + ridge · mean(diag A) · I) X = B`. */
export function solve(matrix: Matrix, right: Matrix, ridge = 0): Matrix {
  const lower = cholesky(matrix, ridge)
  return backward(lower, forward(lower, right))
}

/** `L⁻¹ B` */
export function forward(lower: Matrix, right: Matrix): Matrix {
  const x = new Matrix(right.rows, right.cols, right.data)
  for (let col = 0; col < x.cols; col++) {
    for (let row = 0; row < x.rows; row++) {
      let rest = x.get(row, col)
      for (let i = 0; i < row; i++) rest -= lower.get(row, i) * x.get(i, col)
      x.set(row, col, rest / lower.get(row, row))
    }
  }
  return x
}

/** `L⁻ᵀ B` */
export function backward(lower: Matrix, right: Matrix): Matrix {
  const x = new Matrix(right.rows, right.cols, right.data)
  for (let col = 0; col < x.cols; col++) {
    for (let row = x.rows - 1; row >= 0; row--) {
      let rest = x.get(row, col)
      for (let i = row + 1; i < x.rows; i++) rest -= lower.get(i, row) * x.get(i, col)
      x.set(row, col, rest / lower.get(row, row))
    }
  }
  return x
}
