/**
 * The singular values that a matrix of independent entries of this shape and energy would have, descending: quantiles of
 * the Marchenko–Pastur law.
 *
 * ```text
 * ρ(λ) = √((λ₊ − λ)(λ − λ₋)) / (2π y λ),   λ± = (1 ± √y)²,   y = n / m ≤ 1,   σ = √(s² m λ)
 * ```
 *
 * with `s²` the mean square of an entry. What rises above is structure; what lies along it looks like noise.
 */
export function marchenkoPastur(rows: number, cols: number, energy: number): number[] {
  const [m, n] = [Math.max(rows, cols), Math.min(rows, cols)]
  const ratio = n / m
  const [low, high] = [(1 - Math.sqrt(ratio)) ** 2, (1 + Math.sqrt(ratio)) ** 2]
  // λ = middle − half · cos t, with t from 0 to π, takes the square roots at both ends out of the integral.
  const [middle, half] = [(low + high) / 2, (high - low) / 2]
  const at = (t: number) => middle - half * Math.cos(t)
  const steps = 2000
  const mass: number[] = [0]
  for (let i = 0; i < steps; i++) {
    const t = ((i + 0.5) * Math.PI) / steps
    const lambda = Math.max(at(t), 1e-12)
    mass.push((mass[i] as number) + (half * Math.sin(t)) ** 2 / lambda)
  }
  const total = mass[steps] as number
  const scale = energy / (m * n) * m
  const values: number[] = []
  let i = steps
  for (let rank = 0; rank < n; rank++) {
    const wanted = ((n - rank - 0.5) / n) * total
    while (i > 0 && (mass[i - 1] as number) >= wanted) i--
    const [before, after] = [mass[i - 1] ?? 0, mass[i] as number]
    const t = ((i - 1 + (wanted - before) / (after - before || 1)) * Math.PI) / steps
    values.push(Math.sqrt(scale * at(t)))
  }
  return values
}
