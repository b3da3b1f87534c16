import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest'

import type { Summary } from '../../www/src/core/protocol.ts'
import { compressionBytes, exceedsCard, layerBytes, memoryBytes, spectraWork, storedBytes, tensorBytes } from '../../www/src/needs.ts'

/** What the core says of a model with this many layers, of which only the sizes count. */
function model(nLayers: number, dModel: number, dFf: number, nHeads: number, gated: boolean): Summary {
  const params = [(gated ? 3 : 2) * dModel * dFf, 2 * dModel ** 2, 2 * dModel ** 2]
  const layer = { dFf, dQk: dModel / nHeads, dV: dModel / nHeads, params, incomplete: false }
  return {
    family: '',
    vocab: 0,
    dModel,
    nHeads,
    nKvHeads: nHeads,
    dHead: dModel / nHeads,
    context: 2048,
    rotary: gated,
    gated,
    activation: '',
    norm: '',
    params: 0,
    blockParams: 0,
    bytes: 0,
    dtype: 'float16',
    rounding: { ff: 64, head: 8, rank: 8 },
    layers: Array.from({ length: nLayers }, () => layer),
    missing: [],
  }
}

const OPT_125M = model(12, 768, 3072, 12, false)
const LLAMA_7B = model(32, 4096, 11008, 32, true)
const LLAMA_70B = model(80, 8192, 28672, 64, true)

beforeEach(() => vi.stubGlobal('navigator', {}))
afterEach(() => vi.unstubAllGlobals())

describe('what a model takes is told before it is tried', () => {
  test('OPT-125M is compressed in a page, Llama 7B is looked at, a layer of 70B is too much', () => {
    const page = memoryBytes(undefined)
    expect(page).toBeLessThanOrEqual(3.5e9)
    // Measured with 8 × 512 tokens: see the budgets.
    expect(compressionBytes(OPT_125M, 4096, 'best')).toBeGreaterThan(0.8e9)
    expect(compressionBytes(OPT_125M, 4096, 'best')).toBeLessThan(1.3e9)
    expect(compressionBytes(LLAMA_7B, 16384, 'paper')).toBeGreaterThan(3.5e9)
    // Each of these holds more than the one before it: inputs of maps, then gradients.
    const [modules, maps, fisher] = (['paper', 'svd', 'fwsvd'] as const).map((mode) => compressionBytes(OPT_125M, 16384, mode))
    // Three of 768 × 768, as triangles in double precision, of 12 layers and of the one that is being worked on.
    expect(maps! - modules!).toBe(13 * 4 * 3 * 768 ** 2)
    expect(fisher).toBeGreaterThan(maps!)
    expect(layerBytes(LLAMA_7B, 0)).toBeLessThan(2.5e9)
    expect(layerBytes(LLAMA_70B, 0)).toBeGreaterThan(3.5e9)
    expect(storedBytes(LLAMA_7B, 31)).toBe(2 * (3 * 4096 * 11008 + 4 * 4096 ** 2))
    expect(layerBytes(LLAMA_7B, 32)).toBe(0)
  })

  test('a lower limit may be asked for, a higher one not', () => {
    expect(memoryBytes('70')).toBe(70e6)
    for (const nonsense of ['', 'x', '0', '-1', '1e9']) expect(memoryBytes(nonsense)).toBe(memoryBytes(undefined))
  })

  test('a small machine lends half of what it has', () => {
    vi.stubGlobal('navigator', { deviceMemory: 2 })
    expect(memoryBytes(undefined)).toBe(2 ** 30)
  })

  test('a card must hold the Gram matrix of the hidden units, the processor need not', () => {
    const card = { kind: 'webgpu', name: '', maxTensorBytes: 128 << 20, gflops: 1 } as const
    expect(tensorBytes(OPT_125M)).toBe(4 * 3072 ** 2)
    expect([OPT_125M, LLAMA_7B].map((summary) => exceedsCard(summary, card))).toEqual([false, true])
    expect(exceedsCard(LLAMA_7B, { ...card, kind: 'cpu' })).toBe(false)
  })

  test('more layers are more work', () => {
    expect(spectraWork(OPT_125M)).toBe(12 * spectraWork(model(1, 768, 3072, 12, false)))
  })
})
