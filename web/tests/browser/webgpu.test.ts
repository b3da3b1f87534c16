/** The same numbers on WebGPU: by the browser's software adapter, so the texts are short. */
import { readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'

import { expect, test } from 'vitest'

import { studio } from './harness.ts'

const page = studio(['--enable-unsafe-webgpu'])
const stories = readFileSync(fileURLToPath(new URL('../../../cli/demo/held-out.txt', import.meta.url)), 'utf8')

/** Perplexity before and after. */
async function compressed(device: 'cpu' | 'webgpu'): Promise<number[]> {
  const shown = await page.open(`#/compress?device=${device}&sparsity=0.25`)
  await shown.getByText('Texts of your own').click()
  await shown.getByLabel('calibration text').fill(stories.slice(0, 2_000))
  await shown.getByLabel('text to be scored').fill(stories.slice(2_000, 2_400))
  await shown.getByLabel('begin of a text').fill('One day')
  await shown.locator('button.primary:not(:disabled)').click({ timeout: 170_000 })
  await shown.locator('.result:not(:has-text("…"))').waitFor({ timeout: 600_000 })
  const name = await shown.locator('.device').textContent()
  expect(name).toContain(device === 'cpu' ? 'the processor' : 'webgpu')
  const row = shown.locator('.result tr', { hasText: 'perplexity' }).locator('td')
  const found = [Number(await row.nth(0).textContent()), Number(await row.nth(1).textContent())]
  await shown.context().close()
  return found
}

test('a model is scored and compressed on WebGPU as on the processor', { timeout: 1_200_000 }, async () => {
  const [cpu, gpu] = [await compressed('cpu'), await compressed('webgpu')]
  const [dense = NaN, small = NaN] = gpu.map((perplexity, i) => perplexity / (cpu[i] ?? NaN))
  console.log(`perplexity on WebGPU: ${gpu.join(', ')}; on the processor: ${cpu.join(', ')}`)
  expect(dense).toBeCloseTo(1, 3)
  // So few tokens leave units without a choice between them, and rounding decides.
  expect(Math.abs(small - 1)).toBeLessThan(0.1)
})
