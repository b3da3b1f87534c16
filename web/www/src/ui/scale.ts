/** From values to places on a chart. */
export interface Scale {
  (value: number): number
  readonly ticks: readonly number[]
}

export function linear(from: readonly [number, number], to: readonly [number, number], nTicks = 5): Scale {
  const [low, high] = from[0] === from[1] ? [from[0], from[0] + 1] : from
  const place = (value: number) => to[0] + ((value - low) / (high - low)) * (to[1] - to[0])
  return Object.assign(place, { ticks: niceTicks(low, high, nTicks) })
}

/** Values at or below 0 are drawn at the lower end. */
export function logarithmic(from: readonly [number, number], to: readonly [number, number]): Scale {
  const [low, high] = [Math.log10(from[0]), Math.log10(from[1])]
  const place = (value: number) => {
    const share = value > 0 ? (Math.log10(value) - low) / (high - low || 1) : 0
    return to[0] + Math.max(0, share) * (to[1] - to[0])
  }
  const step = Math.max(1, Math.ceil((high - low) / 5))
  const ticks: number[] = []
  for (let power = Math.ceil(low); power <= high; power += step) ticks.push(10 ** power)
  return Object.assign(place, { ticks: ticks.length >= 2 ? ticks : [from[0], from[1]] })
}

/** About `n` round numbers between two. */
export function niceTicks(low: number, high: number, n: number): number[] {
  const rough = (high - low) / n
  const power = 10 ** Math.floor(Math.log10(rough))
  const step = ([1, 2, 5, 10].find((factor) => factor * power >= rough) ?? 10) * power
  const ticks: number[] = []
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + 1e-9 * step; i++) ticks.push(Number((i * step).toPrecision(12)))
  return ticks
}
