import { describe, expect, test } from 'vitest'

import { cappedSoftmax, cheapest, meanOf } from '../../www/src/math/allocation.ts'
import { crScores, frequency, logits, rotated } from '../../www/src/math/attention.ts'
import { energyUnder, lowRank } from '../../www/src/math/low_rank.ts'
import { Matrix } from '../../www/src/math/matrix.ts'
import { choices, dropError, leverageScores, mixing, refitError } from '../../www/src/math/nystrom.ts'
import { cholesky, solve } from '../../www/src/math/psd.ts'
import { marchenkoPastur } from '../../www/src/math/random_matrix.ts'
import { normal } from '../../www/src/math/random.ts'
import { svd } from '../../www/src/math/svd.ts'

function random(rows: number, cols: number, seed: number): Matrix {
  const next = normal(seed)
  return Matrix.from(rows, cols, () => next())
}

describe('positive definite systems', () => {
  test('the factor gives the matrix back, and solves', () => {
    const gram = random(20, 6, 1).gram
    const lower = cholesky(gram)
    expect(lower.times(lower.transposed).minus(gram).energy).toBeLessThan(1e-24 * gram.energy)
    const right = random(6, 2, 2)
    expect(gram.times(solve(gram, right)).minus(right).energy).toBeLessThan(1e-20)
  })

  test('a singular matrix is refused without a ridge, and named', () => {
    const gram = Matrix.rowsOf([[1, 2], [2, 4]])
    expect(() => cholesky(gram)).toThrow('not positive definite: pivot 1 is 0')
    expect(() => cholesky(gram, 1e-6)).not.toThrow()
  })
})

describe('low rank in a metric', () => {
  test('whitened is never worse than the others where the data lives', () => {
    for (let seed = 0; seed < 20; seed++) {
      const mixing = Matrix.diagonal([4, 1, 0.5, 0.1]).times(random(4, 4, seed))
      const gram = random(30, 4, seed + 50).times(mixing).gram
      const weight = random(4, 3, seed + 100)
      const error = (metric: 'plain' | 'rows' | 'whitened') => energyUnder(gram, weight.minus(lowRank(weight, gram, 1, metric)))
      expect(error('whitened')).toBeLessThanOrEqual(Math.min(error('plain'), error('rows')) * (1 + 1e-9))
    }
  })

  test('with a round cloud all three agree', () => {
    const weight = random(3, 3, 1)
    const gram = Matrix.diagonal([2, 2, 2])
    const plain = lowRank(weight, gram, 1, 'plain')
    for (const metric of ['rows', 'whitened'] as const) {
      expect(lowRank(weight, gram, 1, metric).minus(plain).energy).toBeLessThan(1e-20)
    }
  })

  test('the energy under a Gram matrix is that of the outputs', () => {
    const inputs = random(11, 3, 1)
    const weight = random(3, 2, 2)
    expect(energyUnder(inputs.gram, weight)).toBeCloseTo(inputs.times(weight).energy, 10)
  })
})

describe('Nyström', () => {
  const hidden = random(40, 5, 1)
  const gram = hidden.gram
  const down = random(5, 3, 2)

  test('keeping all loses nothing, keeping none loses all', () => {
    expect(refitError(gram, down, [0, 1, 2, 3, 4])).toBeLessThan(1e-15)
    expect(refitError(gram, down, [])).toBe(1)
  })

  test('errors are those of the outputs', () => {
    const exact = hidden.times(down)
    const left = exact.minus(hidden.columns([0, 2]).times(down.rowsAt([0, 2]))).energy / exact.energy
    expect(dropError(gram, down, [0, 2])).toBeCloseTo(left, 12)
    const refitted = hidden.columns([0, 2]).times(mixing(gram, [0, 2]).times(down))
    expect(refitError(gram, down, [0, 2])).toBeCloseTo(exact.minus(refitted).energy / exact.energy, 12)
  })

  test('the refit is never worse than cutting off, nor than with fewer units', () => {
    for (const kept of choices(5, 3)) {
      const error = refitError(gram, down, kept)
      expect(error).toBeLessThanOrEqual(dropError(gram, down, kept))
      expect(error).toBeLessThanOrEqual(refitError(gram, down, kept.slice(1)) + 1e-12)
    }
  })

  test('a unit that repeats another costs nothing', () => {
    const twins = Matrix.from(40, 5, (row, col) => hidden.get(row, col === 4 ? 0 : col))
    expect(refitError(twins.gram, down, [0, 1, 2, 3])).toBeLessThan(1e-9)
    const scores = leverageScores(twins.gram, 1e-3)
    expect(Math.max(scores[0] ?? 1, scores[4] ?? 1)).toBeLessThan(Math.min(...scores.slice(1, 4)))
  })

  test('scores lie between 0 and 1', () => {
    for (const score of leverageScores(hidden.gram, 0.1)) {
      expect(score).toBeGreaterThan(0)
      expect(score).toBeLessThan(1)
    }
  })

  test('there are as many choices as there should be', () => {
    expect(choices(8, 3)).toHaveLength(56)
    expect(choices(3, 2)).toEqual([[0, 1], [0, 2], [1, 2]])
    expect(choices(2, 3)).toEqual([])
  })
})

describe('queries and keys', () => {
  test('all coordinates give the whole product', () => {
    const [queries, keys] = [random(4, 3, 1), random(5, 3, 2)]
    expect(logits(queries, keys, [0, 1, 2]).minus(queries.times(keys.transposed)).energy).toBeLessThan(1e-25)
  })

  test('a coordinate without keys scores nothing', () => {
    const queries = Matrix.rowsOf([[3, 1], [4, 0]])
    expect(crScores(queries, Matrix.rowsOf([[0, 2], [0, 0]]))).toEqual([0, 2])
  })

  test('turned pairs know only their distance', () => {
    const pace = frequency(1, 3, 100)
    expect(pace).toBeCloseTo(100 ** (-1 / 3), 15)
    const dot = (place: number) => {
      const [q, k] = [rotated([0.3, 0.8], (place + 5) * pace), rotated([0.9, -0.2], place * pace)]
      return q[0] * k[0] + q[1] * k[1]
    }
    for (let place = 1; place < 30; place++) expect(dot(place)).toBeCloseTo(dot(0), 12)
  })
})

describe('allocation', () => {
  test('the mean is met, no layer exceeds the cap, and the least influential gives most', () => {
    for (const mean of [0, 0.1, 0.3, 0.7]) {
      const shares = cappedSoftmax([0.9, 0.1, 0.2, 0.4], mean, 0.2)
      expect(meanOf(shares)).toBeCloseTo(mean, 12)
      expect(Math.max(...shares)).toBeLessThanOrEqual(0.9)
      expect(Math.max(...shares)).toBe(shares[1])
    }
    expect(() => cappedSoftmax([1, 2], 0.95, 1)).toThrow('cannot be met')
  })

  test('the solver finds what trying all finds', () => {
    const costs = [[0, 1, 5, 6], [0, 3, 3.5, 9], [0, 0.5, 4, 4.1]]
    const all: number[][] = []
    for (let a = 0; a < 4; a++) for (let b = 0; b < 4; b++) for (let c = 0; c < 4; c++) all.push([a, b, c])
    const cost = (steps: number[]) => steps.reduce((sum, step, i) => sum + (costs[i]?.[step] ?? NaN), 0)
    for (let steps = 0; steps <= 9; steps++) {
      const least = Math.min(...all.filter(([a = 0, b = 0, c = 0]) => a + b + c === steps).map(cost))
      const found = cheapest(costs, steps)
      expect(found.reduce((a, b) => a + b, 0)).toBe(steps)
      expect(cost(found)).toBeCloseTo(least, 12)
    }
    expect(() => cheapest(costs, 10)).toThrow('cannot be spent')
  })
})

describe('random matrices', () => {
  test.each([[200, 50], [60, 60], [30, 120]])('%i × %i: the law is what such a matrix has', (rows, cols) => {
    const matrix = random(rows, cols, 3)
    const { values } = svd(matrix)
    const law = marchenkoPastur(rows, cols, matrix.energy)
    expect(law).toHaveLength(Math.min(rows, cols))
    const energy = law.reduce((sum, value) => sum + value * value, 0)
    expect(energy / matrix.energy).toBeCloseTo(1, 2)
    const worst = Math.max(...law.map((value, i) => Math.abs(value - (values[i] ?? NaN))))
    expect(worst / (values[0] ?? NaN)).toBeLessThan(0.04)
  })
})
