import { describe, expect, test, vi } from 'vitest'

import { typesetFormula } from '../../build/formulas.ts'
import { byHand, predictedLoss } from '../../www/src/lessons/allocation.tsx'
import formulas from '../../www/src/lessons/formulas.json'
import measured from '../../www/src/lessons/measured.json'
import { DOWN, HIDDEN } from '../../www/src/lessons/nystrom.tsx'
import { lighthouse } from '../../www/src/lessons/picture.ts'
import { cheapest, risesOf, softmaxSteps } from '../../www/src/math/allocation.ts'
import { choices, refitError } from '../../www/src/math/nystrom.ts'
import { lostShares, svd } from '../../www/src/math/svd.ts'
import { Archive } from '../../www/src/core/store/archive.ts'
import { folderName } from '../../www/src/core/store/tar.ts'
import { formatPlace, parsePlace } from '../../www/src/place.ts'
import { bytes, grouped, percent, short } from '../../www/src/ui/number.ts'
import { linear, logarithmic, niceTicks } from '../../www/src/ui/scale.ts'

describe('addresses', () => {
  test('a place survives the address', () => {
    for (const hash of ['#/learn/svd', '#/learn/cr?kept=0.2&pairs=broken', '#/explore?layer=2&matrix=value%C2%B7output', '#/compress?sparsity=0.25']) {
      expect(formatPlace(parsePlace(hash))).toBe(hash)
    }
  })

  test('nonsense is the first lesson', () => {
    for (const hash of ['', '#', '#/nowhere', '#//?&=', '#/learn/nothing']) {
      expect(parsePlace(hash)).toMatchObject({ view: 'learn', lesson: 'svd' })
    }
  })
})

describe('numbers', () => {
  test('are short and say their unit', () => {
    expect([0, 1.2345, 0.00012, 123456, 2e-9].map(short)).toEqual(['0', '1.23', '1.2·10⁻⁴', '1.2·10⁵', '2·10⁻⁹'])
    expect([grouped(1234567), percent(0.1234), bytes(1345184), bytes(100)]).toEqual(['1\u202f234\u202f567', '12.3\u00a0%', '1.3 MiB', '100 B'])
  })

  test('scales go where they should, with round ticks', () => {
    const scale = linear([0, 10], [100, 200])
    expect([scale(0), scale(5), scale(10)]).toEqual([100, 150, 200])
    expect(niceTicks(0, 1, 5)).toEqual([0, 0.2, 0.4, 0.6, 0.8, 1])
    const powers = logarithmic([0.001, 10], [0, 4])
    expect(powers(0.1)).toBeCloseTo(2, 12)
    expect(powers(0)).toBe(0)
    expect(powers.ticks.length).toBeGreaterThan(1)
  })
})

describe('lessons', () => {
  test('every formula is sound, and says which symbols light up', () => {
    for (const tex of Object.values(formulas)) expect(typesetFormula(tex)).toContain('data-symbol="')
  })

  test('the picture is worth truncating: 12 of 96 terms hold 99 % of its energy', () => {
    const { data } = lighthouse()
    expect(Math.min(...data)).toBeGreaterThanOrEqual(0)
    expect(Math.max(...data)).toBeLessThanOrEqual(1)
    expect(lostShares(svd(lighthouse()).values)[12]).toBeLessThan(0.01)
  })

  test('among the hidden units three can carry nearly all, and not any three', () => {
    const errors = choices(8, 3).map((kept) => refitError(HIDDEN.gram, DOWN, kept))
    expect(Math.min(...errors)).toBeLessThan(0.1)
    expect(Math.max(...errors)).toBeGreaterThan(0.4)
  })

  test('the solver spends the budget and is not beaten by the paper’s rule', () => {
    const spent = (steps: number[]) => steps.reduce((a, b) => a + b, 0)
    const solved = cheapest(measured.rises, 12)
    for (const epsilon of [0.05, 0.2, 1, 10]) {
      const steps = softmaxSteps(measured.blockInfluence, 12, epsilon, 8)
      expect(spent(steps)).toBe(spent(solved))
      expect(predictedLoss(solved)).toBeLessThanOrEqual(predictedLoss(steps))
    }
  })

  test('a layer loses what its modules lose, between the widths that they can take', () => {
    const curves = [
      { widths: [10, 50, 100], errors: [8, 2, 0] },
      { widths: [40, 80], errors: [0.5, 0] },
    ]
    const rises = risesOf(curves, 8)
    expect(rises[0]).toBe(0)
    // 80 of 100 lie between 50 and 100; 64 of 80 between 40 and 80.
    expect(risesOf(curves, 2)[2]).toBeCloseTo((20 / 50) * 2 + (16 / 40) * 0.5)
    expect(rises[5]).toBeCloseTo(2 + 0.5)
    // Below the least width there is nothing to learn.
    expect(rises[7]).toBeCloseTo(2 + (20 / 40) * 6 + 0.5)
    expect(rises.every((rise, i) => rise >= (rises[i - 1] ?? 0))).toBe(true)
  })

  test('a plan by hand has the widths that were measured', () => {
    const layer = { index: 0, block_influence: 0, sparsity: 0, d_ff: 384, d_qk: 32, d_v: 32 }
    const plan = { mode: 'paper', unit: 'residual-energy', target: 0, totals: { block_params_before: 1, block_params_after: 1, sparsity: 0 }, layers: [layer, layer] }
    expect(byHand(plan, [0, 3]).layers.map(({ d_ff }) => d_ff)).toEqual([384, measured.widths[3]?.d_ff])
  })
})

test('an archive is one that tar can read', async () => {
  const { execFileSync } = await import('node:child_process')
  vi.stubGlobal('navigator', {})
  const whole = await Archive.begin('folder', 2000)
  expect(whole.inMemory).toBe('this browser lends the page no storage')
  whole.put('config.json', new TextEncoder().encode('{}'))
  for (const part of [300, 0, 700]) whole.put('model.safetensors', new Uint8Array(part).fill(part === 300 ? 6 : 7))
  const archive = Buffer.from(await (await whole.finish()).arrayBuffer())
  expect(archive.length % 512).toBe(0)
  const read = new Uint8Array(3)
  whole.readAt('model.safetensors', 298, read)
  expect([...read, whole.size('config.json'), whole.names().length]).toEqual([6, 6, 7, 2, 2])
  vi.unstubAllGlobals()
  expect(() => whole.readAt('vocab.json', 0, read)).toThrow('there is no such file')
  const listed = execFileSync('tar', ['-tvf', '-'], { input: archive, encoding: 'utf8' })
  expect(listed).toMatch(/2 .*folder\/config\.json\n.* 1000 .*folder\/model\.safetensors/)
  expect(execFileSync('tar', ['-xOf', '-', 'folder/config.json'], { input: archive, encoding: 'utf8' })).toBe('{}')
})

test('a folder in an archive has a plain name, whatever the model is called', () => {
  const names = ['facebook/opt-125m', '../../etc', 'Ein Modell (2)', '…', 'x'.repeat(300)].map(folderName)
  expect(names).toEqual(['opt-125m', 'etc', 'Ein-Modell-2-', 'model', 'x'.repeat(60)])
})
