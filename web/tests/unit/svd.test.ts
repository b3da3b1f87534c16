import { describe, expect, test } from 'vitest'

import { Matrix } from '../../www/src/math/matrix.ts'
import { normal } from '../../www/src/math/random.ts'
import { lostShares, svd, truncated } from '../../www/src/math/svd.ts'

function random(rows: number, cols: number, seed = 1): Matrix {
  const next = normal(seed)
  return Matrix.from(rows, cols, () => next())
}

function far(a: Matrix, b: Matrix): number {
  return Math.sqrt(a.minus(b).energy)
}

describe('svd', () => {
  const shapes = [[1, 1], [5, 3], [3, 5], [17, 17], [40, 7]] as const
  test.each(shapes)('%i × %i: factors are orthonormal, values descend, the product is the matrix', (rows, cols) => {
    const matrix = random(rows, cols)
    const { u, values, v } = svd(matrix)
    const n = Math.min(rows, cols)
    const unit = Matrix.diagonal(Array<number>(n).fill(1))
    expect(far(u.gram, unit)).toBeLessThan(1e-13 * n)
    expect(far(v.gram, unit)).toBeLessThan(1e-13 * n)
    expect(values).toEqual([...values].sort((a, b) => b - a))
    expect(far(truncated({ u, values, v }, n), matrix)).toBeLessThan(1e-12)
  })

  test('a matrix of rank 2 has two singular values', () => {
    const { values } = svd(random(9, 2).times(random(2, 6, 2)))
    expect(values[1]).toBeGreaterThan(0.1)
    expect(values.slice(2).every((value) => value < 1e-13)).toBe(true)
  })

  test('zeros have no energy, and nothing breaks', () => {
    expect(svd(new Matrix(4, 3)).values).toEqual([0, 0, 0])
    expect(lostShares([0, 0])).toEqual([0, 0, 0])
  })

  test('the error of truncation is what was left out, and never grows', () => {
    const matrix = random(8, 6)
    const found = svd(matrix)
    const lost = lostShares(found.values)
    expect(lost).toHaveLength(7)
    lost.forEach((share, rank) => {
      expect(share).toBeCloseTo(matrix.minus(truncated(found, rank)).energy / matrix.energy, 12)
      expect(share).toBeLessThanOrEqual((lost[rank - 1] ?? 1) + 1e-15)
    })
  })
})
