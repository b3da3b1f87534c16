/** Dense real matrices in double precision, row after row. */

export class Matrix {
  readonly data: Float64Array

  constructor(
    readonly rows: number,
    readonly cols: number,
    data?: ArrayLike<number>,
  ) {
    if (data !== undefined && data.length !== rows * cols) {
      throw new RangeError(`a ${rows} × ${cols} matrix needs ${rows * cols} values, found ${data.length}`)
    }
    this.data = data === undefined ? new Float64Array(rows * cols) : Float64Array.from(data)
  }

  static from(rows: number, cols: number, value: (row: number, col: number) => number): Matrix {
    const matrix = new Matrix(rows, cols)
    for (let row = 0; row < rows; row++) {
      for (let col = 0; col < cols; col++) matrix.data[row * cols + col] = value(row, col)
    }
    return matrix
  }

  static rowsOf(rows: readonly (readonly number[])[]): Matrix {
    return new Matrix(rows.length, rows[0]?.length ?? 0, rows.flat())
  }

  static diagonal(values: readonly number[]): Matrix {
    return Matrix.from(values.length, values.length, (row, col) => (row === col ? (values[row] as number) : 0))
  }

  get(row: number, col: number): number {
    return this.data[row * this.cols + col] as number
  }

  set(row: number, col: number, value: number): void {
    this.data[row * this.cols + col] = value
  }

  column(col: number): number[] {
    return Array.from({ length: this.rows }, (_, row) => this.get(row, col))
  }

  row(row: number): number[] {
    return Array.from(this.data.subarray(row * this.cols, (row + 1) * this.cols))
  }

  get transposed(): Matrix {
    return Matrix.from(this.cols, this.rows, (row, col) => this.get(col, row))
  }

  times(other: Matrix): Matrix {
    if (this.cols !== other.rows) throw new RangeError(`cannot multiply by ${other.rows} rows, expected ${this.cols}`)
    const product = new Matrix(this.rows, other.cols)
    for (let row = 0; row < this.rows; row++) {
      for (let inner = 0; inner < this.cols; inner++) {
        addRow(product.data, row * other.cols, this.get(row, inner), other.data, inner * other.cols, other.cols)
      }
    }
    return product
  }

  plus(other: Matrix, factor = 1): Matrix {
    return Matrix.from(this.rows, this.cols, (row, col) => this.get(row, col) + factor * other.get(row, col))
  }

  minus(other: Matrix): Matrix {
    return this.plus(other, -1)
  }

  columns(kept: readonly number[]): Matrix {
    return Matrix.from(this.rows, kept.length, (row, col) => this.get(row, kept[col] as number))
  }

  rowsAt(kept: readonly number[]): Matrix {
    return Matrix.from(kept.length, this.cols, (row, col) => this.get(kept[row] as number, col))
  }

  /** `AᵀA`: for activations in rows, the Gram matrix of their columns. */
  get gram(): Matrix {
    return this.transposed.times(this)
  }

  /** The squared Frobenius norm. */
  get energy(): number {
    return this.data.reduce((sum, value) => sum + value * value, 0)
  }
}

/** Adds `factor` times the `n` elements of `from` at `start` to those of `to` at `at`. */
export function addRow(to: Float64Array, at: number, factor: number, from: Float64Array, start: number, n: number): void {
  for (let i = 0; i < n; i++) to[at + i] = (to[at + i] as number) + factor * (from[start + i] as number)
}
