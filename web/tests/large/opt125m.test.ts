/**
 * What a model of the size of OPT-125M takes in the page: memory, time, and the limits of a graphics card. Takes some ten
 * minutes, so that it is run by itself: `npm run large`.
 */
import { readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'

import { expect, test } from 'vitest'

import { ELSEWHERE, patchWorker, studio, worker } from '../browser/harness.ts'
import { hub } from '../browser/hub.ts'
import { opt125m } from './opt125m.ts'

const page = studio(['--enable-unsafe-webgpu', ELSEWHERE])
const demo = (name: string) => readFileSync(fileURLToPath(new URL(`../../../cli/demo/${name}`, import.meta.url)), 'utf8')

/** Of the tab that works hardest: megabytes at most and now, and seconds of processor time. */
async function spent() {
  const session = await page.browser().newBrowserCDPSession()
  const { processInfo } = await session.send('SystemInfo.getProcessInfo')
  await session.detach()
  const tabs = processInfo.filter(({ type }) => type === 'renderer').sort((a, b) => b.cpuTime - a.cpuTime)
  const [tab] = tabs
  if (tab === undefined) throw new Error('there is no tab')
  const status = readFileSync(`/proc/${tab.id}/status`, 'utf8')
  const field = (name: string) => Number(new RegExp(`${name}:\\s+(\\d+) kB`).exec(status)?.[1]) / 1000
  return { most: field('VmHWM'), now: field('VmRSS'), seconds: tab.cpuTime }
}

test('it is fetched, observed, compressed and scored within 1.5 GB on the processor', { timeout: 7_200_000 }, async () => {
  const server = await hub(opt125m('', 12))
  const shown = await page.open('#/learn/svd')
  const core = await worker(shown)
  let before = 0
  const stage = async <T>(name: string, work: Promise<T>): Promise<T> => {
    const result = await work
    const { most, now, seconds } = await spent()
    console.log(`${name}: ${(seconds - before).toFixed(0)} s of processor time; ${now.toFixed(0)} MB, ${most.toFixed(0)} at most so far`)
    before = seconds
    return result
  }
  const { gflops } = await stage('start', core.ask('device', { kind: 'cpu' }))
  console.log(`${gflops.toFixed(1)} GFLOP/s`)
  const source = { kind: 'remote', name: 'opt-125m', base: `${server.address}/` } as const
  const { summary } = await stage('open', core.ask('open', { source, base: page.address }))
  const { params, layers } = summary
  expect([layers.length, params]).toEqual([12, 125_239_296])
  await stage('layer 0', core.ask('fetch', { what: 0 }))
  await stage('its spectra', core.ask('spectra', { layer: 0 }))
  await stage('all of it', core.ask('fetch', { what: 'all' }))
  await server.close()
  const request = { samples: 8, seqLen: 512, seed: 0, batchTokens: 1024, mode: 'best' } as const
  await stage('observe 8 × 512 tokens', core.ask('calibrate', { text: demo('calibration.txt'), request }))
  const mode = process.env['MODE'] === 'paper' ? 'paper' : 'best'
  const { plan } = await stage(`plan, mode ${mode}`, core.ask('plan', { request: { sparsity: 0.3, mode }, held: [] }))
  const { report } = await stage('compress', core.ask('compress', { plan, folder: 'it' }))
  expect(report.totals.sparsity).toBeCloseTo(0.3, 1)
  for (const side of ['dense', 'compressed'] as const) {
    const { perplexity } = await stage(`score 512 tokens, ${side}`, core.ask('perplexity', { side, text: demo('held-out.txt'), seqLen: 512, maxWindows: 1 }))
    expect(perplexity).toBeGreaterThan(1)
  }
  expect((await spent()).most).toBeLessThan(1500)
  await shown.context().close()
})

/** Runs before the worker: gives out cards with the limits that every browser grants, and tells the largest buffer made. */
const DEFAULT_LIMITS = `
  const request = GPUAdapter.prototype.requestDevice
  GPUAdapter.prototype.requestDevice = function (wish = {}) {
    const requiredLimits = { ...wish.requiredLimits, maxBufferSize: 256 << 20, maxStorageBufferBindingSize: 128 << 20 }
    return request.call(this, { ...wish, requiredLimits })
  }
  let largest = 0
  const create = GPUDevice.prototype.createBuffer
  GPUDevice.prototype.createBuffer = function (wish) {
    if (wish.size > largest) console.log('largest buffer ' + (largest = wish.size))
    return create.call(this, wish)
  }
`

// Software makes 0.1 GFLOP/s: one layer, few tokens. Buffers grow with 1024 tokens to 12.6 MB (hidden units), and are largest
// for what does not depend on them: the Gram matrix of 3072 hidden units, and the parts of the head.
test('a layer of it is observed, and its head scores, within the default limits of WebGPU', { timeout: 1_200_000 }, async () => {
  const server = await hub(opt125m('', 1))
  const context = await page.browser().newContext()
  await patchWorker(context, DEFAULT_LIMITS)
  const shown = await page.open('#/learn/svd', { context })
  let largest = 0
  context.on('console', (message) => {
    const [, bytes] = /^largest buffer (\d+)/.exec(message.text()) ?? []
    if (bytes !== undefined) largest = Number(bytes)
  })
  const core = await worker(shown)
  const { name, maxTensorBytes } = await core.ask('device', { kind: 'webgpu' })
  expect(maxTensorBytes).toBe(128 << 20)
  const source = { kind: 'remote', name: 'opt-125m', base: `${server.address}/` } as const
  await core.ask('open', { source, base: page.address })
  await core.ask('fetch', { what: 'all' })
  const request = { samples: 1, seqLen: 32, seed: 0, batchTokens: 1024, mode: 'best' } as const
  const { blockInfluence } = await core.ask('calibrate', { text: demo('calibration.txt').slice(0, 4000), request })
  expect(blockInfluence.every((value) => value > 0 && value < 1)).toBe(true)
  const { perplexity } = await core.ask('perplexity', { side: 'dense', text: demo('held-out.txt').slice(0, 400), seqLen: 8, maxWindows: 1 })
  expect(perplexity).toBeGreaterThan(1)
  console.log(`${name}: the largest buffer has ${(largest / 2 ** 20).toFixed(1)} MiB`)
  expect(largest).toBeGreaterThan(1 << 20)
  expect(largest).toBeLessThanOrEqual(256 << 20)
  await context.close()
  await server.close()
})
