/** Where the compressed model lies until the reader has downloaded it. */
import { execFileSync } from 'node:child_process'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

import type { Page } from 'playwright-core'
import { afterAll, expect, test } from 'vitest'

import { ELSEWHERE, patchWorker, studio } from './harness.ts'

const page = studio([ELSEWHERE])
const work = mkdtempSync(join(tmpdir(), 'studio-'))
afterAll(() => rmSync(work, { recursive: true }))

async function compress(shown: Page): Promise<void> {
  await shown.locator('button.primary:not(:disabled)').click({ timeout: 60_000 })
  await shown.locator('.result:not(:has-text("…"))').waitFor({ timeout: 150_000 })
}

/** The names of the files in the downloaded archive. */
async function save(shown: Page, name: string): Promise<string[]> {
  const download = shown.waitForEvent('download')
  await shown.getByRole('button', { name: 'Download' }).click()
  const archive = join(work, name)
  await (await download).saveAs(archive)
  return execFileSync('tar', ['-tf', archive], { encoding: 'utf8' }).trim().split('\n')
}

/** Sizes of what lies in the page's own file system. */
function results(shown: Page): Promise<number[]> {
  return shown.evaluate(async () => {
    const root = await navigator.storage.getDirectory()
    const folder = await root.getDirectoryHandle('results').catch(() => undefined)
    const sizes: number[] = []
    for await (const file of folder?.values() ?? []) if (file.kind === 'file') sizes.push((await file.getFile()).size)
    return sizes
  })
}

const HASH = '#/compress?device=cpu&model=llama&mode=paper&allocation=uniform&sparsity=0.25'

test('it lies in the browser’s storage, one at a time, and is gone when nobody needs it', { timeout: 240_000 }, async () => {
  const shown = await page.open(HASH)
  await compress(shown)
  const [size, ...others] = await results(shown)
  expect(others).toEqual([])
  expect(size).toBeGreaterThan(500_000)
  expect(await shown.getByText('It is held in memory').count()).toBe(0)
  const names = await save(shown, 'kept.tar')
  expect(names).toContain('stories260k-25/config.json')
  expect(names.filter((name) => name.endsWith('.safetensors')).length).toBe(6)

  // Compressed once more, the first makes way.
  await shown.locator('button.primary:not(:disabled)').click()
  await shown.locator('.result').waitFor({ state: 'detached' })
  await shown.locator('.result:not(:has-text("…"))').waitFor({ timeout: 150_000 })
  expect((await results(shown)).length).toBe(1)

  // A page that was closed leaves it behind, and the next removes it.
  const context = shown.context()
  await shown.close()
  const again = await page.open(HASH, { context })
  expect((await results(again)).length).toBe(1)
  await compress(again)
  expect((await results(again)).length).toBe(1)

  // Two pages do not take each other's.
  const third = await page.open(HASH, { context })
  await compress(third)
  expect((await results(third)).length).toBe(2)
  expect((await save(again, 'again.tar')).length).toBe(names.length)
  await third.close()

  await again.getByLabel('Model', { exact: true }).selectOption('opt')
  await again.getByText('OPT: 4 layers').waitFor({ timeout: 60_000 })
  expect((await results(again)).length).toBeLessThanOrEqual(1)
  await context.close()
})

test.each([
  ['no storage', 'delete Object.getPrototypeOf(navigator.storage).getDirectory', 'this browser lends the page no storage'],
  ['too little of it', 'navigator.storage.estimate = async () => ({ quota: 1e5, usage: 0 })', 'this browser lends the page only 0 MB of storage'],
])('with %s it is held in memory, which the page says', { timeout: 240_000 }, async (_title, script, why) => {
  const context = await page.browser().newContext({ viewport: { width: 1200, height: 900 }, serviceWorkers: 'block' })
  await patchWorker(context, script)
  const shown = await page.open(HASH, { context })
  await compress(shown)
  await shown.getByText(`It is held in memory: ${why}.`).waitFor()
  expect(await results(shown)).toEqual([])
  const names = await save(shown, 'memory.tar')
  expect(names).toContain('stories260k-25/config.json')
  await context.close()
})
