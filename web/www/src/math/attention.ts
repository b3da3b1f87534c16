import { Matrix } from './matrix.ts'

/** `s_i = ‖Q_:i‖ ‖K_:i‖`: how much coordinate `i` can add to the logits. */
export function crScores(queries: Matrix, keys: Matrix): number[] {
  return Array.from({ length: queries.cols }, (_, i) => norm(queries.column(i)) * norm(keys.column(i)))
}

/** `Σ_{i∈J} Q_:i K_:iᵀ`, `[queries, keys]`: the logits through the kept coordinates. */
export function logits(queries: Matrix, keys: Matrix, kept: readonly number[]): Matrix {
  return queries.columns(kept).times(keys.columns(kept).transposed)
}

/** Angular frequency of rotary pair `p` of `n`: `θ^(−p/n)`. */
export function frequency(pair: number, nPairs: number, theta: number): number {
  return theta ** (-pair / nPairs)
}

/** A pair of coordinates turned by `angle`, against the clock. */
export function rotated([x, y]: readonly [number, number], angle: number): [number, number] {
  const [cosine, sine] = [Math.cos(angle), Math.sin(angle)]
  return [x * cosine - y * sine, x * sine + y * cosine]
}

function norm(values: readonly number[]): number {
  return Math.hypot(...values)
}
