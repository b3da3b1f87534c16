/** A checkpoint of the shapes of Llama-2-7B in the page, looked at layer by layer. Takes a quarter of an hour. */
import { readFileSync } from 'node:fs'

import { expect, test } from 'vitest'

import { studio } from '../browser/harness.ts'
import { hub } from '../browser/hub.ts'
import { llama7b } from './llama7b.ts'

const page = studio()

test('of 13.5 GB a layer is fetched and looked at', { timeout: 7_200_000 }, async () => {
  const server = await hub(llama7b('org/llama/resolve/main/'))
  const shown = await page.open(`#/explore?device=cpu&model=org/llama&endpoint=${encodeURIComponent(server.address)}&layer=31&matrix=query`)
  const begin = performance.now()
  const since = () => `${((performance.now() - begin) / 1000).toFixed(1)} s`
  await shown.getByText('Llama: 32 layers').waitFor({ timeout: 120_000 })
  const sent = () => server.asked.reduce((sum, one) => sum + one.sent, 0)
  console.log(`opened after ${since()}, ${sent()} bytes of weights`)
  expect(sent()).toBeLessThan(1 << 20)

  await shown.getByRole('button', { name: /^layer 31, query/ }).click()
  const looked = (matrix: string) => shown.getByRole('button', { name: new RegExp(`^layer 31, ${matrix}, \\d+\\s% of the full rank`) })
  for (const matrix of ['query', 'down']) {
    await looked(matrix).waitFor({ timeout: 3_600_000 })
    console.log(`${matrix} of layer 31 after ${since()}, ${(sent() / 1e6).toFixed(0)} MB of weights`)
  }
  // A layer, in blocks of 256 KiB, and nothing else.
  expect(sent()).toBeLessThan(2 * (4 * 4096 ** 2 + 3 * 4096 * 11008) + (16 << 20))
  const session = await page.browser().newBrowserCDPSession()
  const { processInfo } = await session.send('SystemInfo.getProcessInfo')
  await session.detach()
  const tabs = processInfo.filter(({ type }) => type === 'renderer').map(({ id }) => readFileSync(`/proc/${id}/status`, 'utf8'))
  const most = Math.max(...tabs.map((status) => Number(/VmHWM:\s+(\d+) kB/.exec(status)?.[1]) / 1000))
  console.log(`${most.toFixed(0)} MB of memory at most`)
  expect(await shown.locator('.problem').allTextContents()).toHaveLength(1)
  expect(page.errors).toEqual([])
  await shown.context().close()
  await server.close()
})
