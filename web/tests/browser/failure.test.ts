/** What cannot be helped: a card that goes, memory that ends. The page says so, starts its core again, and goes on. */
import type { BrowserContext, Page } from 'playwright-core'
import { expect, test } from 'vitest'

import { ELSEWHERE, patchWorker, studio } from './harness.ts'

const page = studio(['--enable-unsafe-webgpu', ELSEWHERE])

/** A context whose workers run `script` first. */
async function patched(script: string): Promise<BrowserContext> {
  const context = await page.browser().newContext({ viewport: { width: 1200, height: 900 }, serviceWorkers: 'block' })
  await patchWorker(context, script)
  return context
}

async function goesOn(shown: Page, computing: string): Promise<void> {
  await shown.getByRole('button', { name: 'Dismiss' }).click()
  await shown.getByText(computing).waitFor({ timeout: 120_000 })
  await shown.getByText('Llama: 5 layers').waitFor()
  expect(await shown.locator('button.primary').isDisabled()).toBe(false)
}

test('a card that is destroyed while it works is told, and another one is opened', { timeout: 300_000 }, async () => {
  const context = await patched(`
    const request = GPUAdapter.prototype.requestDevice
    let card
    GPUAdapter.prototype.requestDevice = async function (...wish) { return (card = await request.apply(this, wish)) }
    addEventListener('message', ({ data }) => data.topic === 'calibrate' && setTimeout(() => card.destroy(), 200))`)
  const shown = await page.open('#/compress?device=webgpu&model=llama', { context })
  await shown.locator('button.primary:not(:disabled)').click({ timeout: 120_000 })
  await shown.getByRole('alert').filter({ hasText: 'The core failed and was started again. It said: the graphics card was lost' }).waitFor({ timeout: 60_000 })
  await goesOn(shown, 'computing on webgpu')
  await context.close()
})

test('a core that runs out of memory is told, and started again', { timeout: 300_000 }, async () => {
  const context = await patched(`
    const instantiate = WebAssembly.instantiateStreaming
    let memory
    WebAssembly.instantiateStreaming = async (...given) => {
      const made = await instantiate.apply(WebAssembly, given)
      memory = made.instance.exports.memory
      return made
    }
    addEventListener('message', ({ data }) => {
      if (data.topic !== 'calibrate') return
      try {
        for (;;) memory.grow(1024)
      } catch {}
      try {
        for (;;) memory.grow(1)
      } catch {}
    })`)
  const shown = await page.open('#/compress?device=cpu&model=llama', { context })
  await shown.locator('button.primary:not(:disabled)').click({ timeout: 120_000 })
  await shown.getByRole('alert').filter({ hasText: 'The core failed and was started again. It said:' }).waitFor({ timeout: 60_000 })
  await goesOn(shown, 'computing on the processor')
  await context.close()
})

test('a model whose tensors are too large for the card is given to the processor', { timeout: 300_000 }, async () => {
  const context = await patched(`
    const request = GPUAdapter.prototype.requestDevice
    GPUAdapter.prototype.requestDevice = async function (...wish) {
      const card = await request.apply(this, wish)
      const read = (limits, name) => (name === 'maxStorageBufferBindingSize' ? 1e6 : Reflect.get(limits, name))
      Object.defineProperty(card, 'limits', { value: new Proxy(card.limits, { get: read }) })
      return card
    }`)
  const shown = await page.open('#/explore?device=webgpu', { context })
  await shown.getByText('that takes tensors of 1.5 MiB, and the graphics card allows 977 KiB').first().waitFor({ timeout: 120_000 })
  expect(await shown.getByRole('button', { name: 'Observe the model on a text' }).isDisabled()).toBe(true)
  await shown.getByRole('button', { name: 'Compute on the processor' }).click()
  await shown.getByText('computing on the processor').waitFor({ timeout: 120_000 })
  expect(await shown.getByText('the graphics card allows').count()).toBe(0)
  expect(await shown.getByRole('alert').count()).toBe(0)
  await shown.locator('button.primary:not(:disabled)', { hasText: 'Observe the model on a text' }).waitFor({ timeout: 60_000 })
  await context.close()
})
