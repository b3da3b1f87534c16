/**
 * Sparsities that add up to a mean: `φ_l = min(cap, τ · exp(−s_l / ε))`, with `τ` such that the mean is met.
 *
 * `influences` are the block influences `s_l`; layers that change the residual stream little give more. Small `ε` is
 * sharp, large `ε` is even. As the core does it, for layers of equal size.
 */
export function cappedSoftmax(influences: readonly number[], mean: number, epsilon: number, cap = 0.9): number[] {
  if (!(mean >= 0 && mean <= cap)) throw new RangeError(`a mean of ${mean} cannot be met below ${cap}`)
  const least = Math.min(...influences)
  const weights = influences.map((influence) => Math.exp(-(influence - least) / epsilon))
  const at = (tau: number) => weights.map((weight) => Math.min(cap, tau * weight))
  // The mean grows with τ, so τ is found by halving its logarithm's range.
  let [low, high] = [-80, 80]
  for (let i = 0; i < 200; i++) {
    const middle = (low + high) / 2
    if (meanOf(at(Math.exp(middle))) < mean) low = middle
    else high = middle
  }
  return mean === 0 ? influences.map(() => 0) : at(Math.exp(high))
}

/** How many steps each layer takes so that they add up to `steps` at the least cost; `costs[layer][n]` is that of n steps. */
export function cheapest(costs: readonly (readonly number[])[], steps: number): number[] {
  const chosen = costs.map(() => 0)
  const cost = (layer: number, step: number) => costs[layer]?.[step] ?? Infinity
  // Dynamic programming over layers: best[s] is the least cost of s steps in the layers so far.
  let best = [0, ...Array<number>(steps).fill(Infinity)]
  const from: number[][] = []
  for (let layer = 0; layer < costs.length; layer++) {
    const next = Array<number>(steps + 1).fill(Infinity)
    const taken = Array<number>(steps + 1).fill(0)
    for (let sum = 0; sum <= steps; sum++) {
      for (let own = 0; own <= sum && own < (costs[layer]?.length ?? 0); own++) {
        const value = (best[sum - own] as number) + cost(layer, own)
        if (value < (next[sum] as number)) {
          next[sum] = value
          taken[sum] = own
        }
      }
    }
    best = next
    from.push(taken)
  }
  if (best[steps] === Infinity) throw new RangeError(`${steps} steps cannot be spent`)
  let left = steps
  for (let layer = costs.length - 1; layer >= 0; layer--) {
    chosen[layer] = from[layer]?.[left] ?? 0
    left -= chosen[layer] as number
  }
  return chosen
}

/** What layers cost by the steps of 10 % that go, and how much each turns the stream. */
export interface Costs {
  /** `rises[layer][step]` */
  readonly rises: readonly (readonly number[])[]
  readonly blockInfluence: readonly number[]
}

/** The cost of a choice of steps, were the layers' costs simply added. */
export function costOf({ rises }: Costs, steps: readonly number[]): number {
  return steps.reduce((sum, step, layer) => sum + (rises[layer]?.[step] ?? Infinity), 0)
}

/** The paper's softmax of block influence, rounded to whole steps that add up to the budget. */
export function softmaxSteps(influences: readonly number[], budget: number, epsilon: number, most: number): number[] {
  const shares = cappedSoftmax(influences, budget / (10 * influences.length), epsilon, most / 10)
  const steps = shares.map((share) => Math.floor(10 * share + 1e-9))
  const byRest = shares.map((share, layer) => [10 * share - (steps[layer] ?? 0), layer] as const).sort(([a], [b]) => b - a)
  const missing = budget - steps.reduce((a, b) => a + b, 0)
  for (const [, layer] of byRest.slice(0, missing)) steps[layer] = (steps[layer] ?? 0) + 1
  return steps
}

interface Curve {
  readonly widths: readonly number[]
  readonly errors: readonly number[]
}

/**
 * What a layer loses when each of its modules gives the same share, step by step up to `most`: the sum of the modules'
 * errors, each between the two widths that it can take, by a straight line.
 */
export function risesOf(curves: readonly Curve[], most: number): number[] {
  return Array.from({ length: most + 1 }, (_, step) => curves.reduce((sum, curve) => sum + errorAt(curve, 1 - step / 10), 0))
}

function errorAt({ widths, errors }: Curve, keep: number): number {
  const width = keep * (widths.at(-1) ?? 0)
  const next = Math.max(0, widths.findIndex((one) => one >= width))
  const [high = width, above = 0] = [widths[next], errors[next]]
  const [low = high, below = above] = [widths[next - 1], errors[next - 1]]
  return high === low ? above : above + ((high - width) / (high - low)) * (below - above)
}

export function meanOf(values: readonly number[]): number {
  return values.reduce((a, b) => a + b, 0) / values.length
}
