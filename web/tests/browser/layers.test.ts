/** Models that are too large to be observed, or of which a part is missing: looked at layer by layer. */
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'

import type { Page } from 'playwright-core'
import { afterAll, beforeAll, beforeEach, expect, test } from 'vitest'

import { llama7b } from '../large/llama7b.ts'
import { opt125m } from '../large/opt125m.ts'
import { overflow, studio, violations, worker } from './harness.ts'
import { hub, type Hub, sharded } from './hub.ts'

const page = studio()
const read = (name: string) => readFileSync(fileURLToPath(new URL(`../../../cli/demo/opt-tiny-stories/${name}`, import.meta.url)))
const WEIGHTS = read('model.safetensors')
const SMALL = Object.fromEntries(['config.json', 'generation_config.json', 'tokenizer.json', 'tokenizer_config.json'].map((name) => [name, read(name)]))
/** The second of two shards is not there. */
const { ['model-00002-of-00002.safetensors']: lost, ...TORN } = sharded(WEIGHTS)
const BLOCK = 256 << 10

const under = (id: string, files: Record<string, Buffer>) =>
  Object.fromEntries(Object.entries(files).map(([name, content]) => [`${id}/resolve/main/${name}`, content]))

let server: Hub
beforeAll(async () => {
  server = await hub({ ...under('org/opt', { ...SMALL, 'model.safetensors': WEIGHTS }), ...under('org/torn', { ...SMALL, ...TORN }) })
})
afterAll(() => server.close())
beforeEach(() => {
  server.faults = {}
  server.asked.length = 0
})

const sent = () => server.asked.filter(({ begin, end }) => end - begin > 1).reduce((sum, one) => sum + one.sent, 0)
const looked = (shown: Page, layer: number, matrix = 'down') => shown.getByRole('button', { name: new RegExp(`^layer ${layer}, ${matrix}, \\d+\\s% of the full rank`) })
const heading = (shown: Page, text: string) => shown.getByRole('heading', { name: text })

async function ready(shown: Page): Promise<void> {
  await shown.locator('button:has-text("Open your own"):not(:disabled)').waitFor({ timeout: 60_000 })
}

async function fetchById(shown: Page, id: string): Promise<void> {
  await ready(shown)
  await shown.getByText('Fetch one by its hub id').click()
  await shown.getByLabel('hub id or address of a folder').fill(id)
  await shown.getByLabel('hub', { exact: true }).fill(server.address)
  await shown.getByRole('button', { name: 'Fetch', exact: true }).click()
  await shown.getByText('OPT: 4 layers').waitFor({ timeout: 60_000 })
}

// Offsets of the one do not fit a browser's 32 bits, nor the bits of the head of the other, though its bytes do.
test.each([
  ['of 13.5 GB', 32, 32_000],
  ['of 2.9 GB, 1.05 of it the head,', 2, 128_256],
] as const)('a file %s is opened by its header, and the page says that the model is too large to observe', async (_, nLayers, vocab) => {
  const large = await hub(llama7b('org/llama/resolve/main/', nLayers, vocab))
  const shown = await page.open(`#/explore?device=cpu&model=org/llama&endpoint=${encodeURIComponent(large.address)}&layer=${nLayers - 1}&matrix=query`)
  await shown.getByText(`Llama: ${nLayers} layers`).waitFor({ timeout: 60_000 })
  await shown.getByText(/It can be looked at, layer by layer, but not be observed or compressed here: that takes about \d+\.\d GiB/).waitFor()
  expect(large.asked.reduce((sum, one) => sum + one.sent, 0)).toBeLessThan(1 << 20)
  expect(page.errors).toEqual([])
  await shown.context().close()
  await large.close()
})

test('a model too large to be observed is fetched and looked at layer by layer, and the page says so before', { timeout: 240_000 }, async () => {
  // The core takes 60 MB before it does anything, and some twenty to observe this model.
  const shown = await page.open('#/explore?device=cpu&memory=70')
  await fetchById(shown, 'org/opt')
  await shown.getByText(/It can be looked at, layer by layer, but not be observed or compressed here: that takes about \d+\.\d MiB of memory at once, and this page has 66\.8 MiB/).waitFor()
  await looked(shown, 0).waitFor({ timeout: 60_000 })
  expect(await shown.getByText('Looked at so far: 1 of 4 layers').count()).toBe(1)
  expect(await shown.getByRole('button', { name: 'Observe the model on a text' }).isDisabled()).toBe(true)
  expect(await shown.getByText(/Switched off for this model: that takes about/).count()).toBe(1)
  expect(await shown.getByRole('button', { name: /^Fetch (it|the rest)$/ }).count()).toBe(0)
  expect(await shown.getByText('At most 3.7 GiB are kept here').count()).toBe(1)
  const first = sent()
  expect(first).toBeLessThan(WEIGHTS.length - BLOCK)

  await shown.getByRole('button', { name: 'layer 2, down, not looked at' }).click()
  await looked(shown, 2).waitFor({ timeout: 60_000 })
  await heading(shown, 'Layer 2, down by itself').waitFor()
  expect(sent()).toBeGreaterThan(first)
  expect(await shown.getByRole('button', { name: 'layer 1, down, not looked at' }).count()).toBe(1)
  expect(await shown.getByText('Looked at so far: 2 of 4 layers').count()).toBe(1)
  expect(await violations(shown)).toEqual([])
  await shown.setViewportSize({ width: 390, height: 800 })
  expect(await overflow(shown)).toBe(0)

  await shown.getByRole('link', { name: 'Compress' }).click()
  await shown.getByText(/Switched off for this model/).waitFor()
  expect(await shown.locator('button.primary').isDisabled()).toBe(true)
  expect(sent()).toBeLessThan(WEIGHTS.length)
  await shown.context().close()
})

test('where not even a layer fits, nothing is fetched', async () => {
  const shown = await page.open('#/explore?device=cpu&memory=61')
  await fetchById(shown, 'org/opt')
  await shown.getByText('Not even a layer of it can be looked at here').waitFor()
  await shown.getByRole('alert').filter({ hasText: 'Layer 0 cannot be shown: that takes about' }).waitFor()
  expect(sent()).toBeLessThanOrEqual(BLOCK)
  await shown.context().close()
})

test.each(['from files', 'from a server'])('a layer in a missing shard is told, and the others go on: %s', { timeout: 240_000 }, async (from) => {
  const shown = await page.open('#/explore?device=cpu')
  if (from === 'from a server') await fetchById(shown, 'org/torn')
  else {
    await ready(shown)
    const given = Object.entries({ ...SMALL, ...TORN }).map(([name, buffer]) => ({ name, mimeType: 'application/octet-stream', buffer }))
    await shown.locator('input[type=file]').setInputFiles(given)
  }
  await shown.getByText('not be observed or compressed here: model-00002-of-00002.safetensors is missing').waitFor({ timeout: 60_000 })
  await looked(shown, 0).waitFor({ timeout: 60_000 })
  expect(lost?.length).toBeGreaterThan(BLOCK)
  await shown.getByRole('button', { name: 'layer 3, up, missing' }).click()
  await shown.getByRole('alert').filter({ hasText: /^Layer 3 cannot be shown: tensor `.*layers\.3\..*` lies in `model-00002-of-00002\.safetensors`, which is missing\.$/ }).waitFor()
  await looked(shown, 0, 'up').click()
  await heading(shown, 'Layer 0, up by itself').waitFor()
  expect(await shown.getByRole('button', { name: 'Observe the model on a text' }).isDisabled()).toBe(true)
  // A server is asked for files that a model may have, and answers that it has none.
  if (from === 'from files') expect(page.errors).toEqual([])
  await shown.context().close()
})

/** The weights with one number of a layer that is none. */
function poisoned(tensor: string): Buffer {
  const weights = Buffer.from(WEIGHTS)
  const headerBytes = Number(weights.readBigUInt64LE(0))
  const header: Record<string, { data_offsets: [number, number] }> = JSON.parse(weights.subarray(8, 8 + headerBytes).toString())
  weights.writeUInt16LE(0x7e00, 8 + headerBytes + (header[tensor]?.data_offsets[0] ?? NaN))
  return weights
}

test('a layer whose numbers are not finite is told, and the others go on', async () => {
  const shown = await page.open('#/explore?device=cpu')
  await ready(shown)
  const files = { ...SMALL, 'model.safetensors': poisoned('model.decoder.layers.2.fc1.weight') }
  await shown.locator('input[type=file]').setInputFiles(Object.entries(files).map(([name, buffer]) => ({ name, mimeType: 'application/octet-stream', buffer })))
  await looked(shown, 3).waitFor({ timeout: 60_000 })
  await shown.getByRole('button', { name: 'layer 2, down, not looked at' }).click()
  await shown.getByRole('alert').filter({ hasText: /^Layer 2 cannot be shown: tensor `model\.decoder\.layers\.2\.fc1\.weight` of `model\.safetensors`.*NaN/ }).waitFor({ timeout: 60_000 })
  await looked(shown, 1).click()
  await heading(shown, 'Layer 1, down by itself').waitFor()
  await shown.context().close()
})

test('looking at a model is stopped, and goes on when the reader asks', { timeout: 240_000 }, async () => {
  const work = mkdtempSync(join(tmpdir(), 'studio-'))
  // Some seconds for each of two layers.
  const files = Object.entries(opt125m('', 2)).map(([name, content]) => [join(work, name), content] as const)
  for (const [path, content] of files) writeFileSync(path, content)
  const shown = await page.open('#/explore?device=cpu')
  await ready(shown)
  await shown.locator('input[type=file]').setInputFiles(files.map(([path]) => path))
  await shown.getByText('OPT: 2 layers').waitFor({ timeout: 60_000 })
  await shown.getByText('taking the singular values of layer 0').waitFor({ timeout: 60_000 })
  await shown.getByRole('button', { name: 'Stop' }).click()
  await shown.getByText('Layer 0 cannot be shown: it was stopped.').waitFor({ timeout: 60_000 })
  const again = shown.locator('button:not(:disabled)', { hasText: 'Look at layer 0' })
  await again.waitFor({ timeout: 60_000 })
  await shown.waitForTimeout(2000)
  expect(await shown.getByText('Looked at so far: 0 of 2 layers').count()).toBe(1)
  await again.click()
  await heading(shown, 'Layer 0, query by itself').waitFor({ timeout: 120_000 })
  await shown.context().close()
  rmSync(work, { recursive: true })
})

test('of a model on a server no more is kept than there is room for', { timeout: 240_000 }, async () => {
  const shown = await page.open('#/learn/svd')
  const core = await worker(shown)
  const source = { kind: 'remote', name: 'it', base: `${server.address}/org/opt/resolve/main/` } as const
  const kept = async () => {
    const { size } = await shown.evaluate(async () => {
      const models = await (await navigator.storage.getDirectory()).getDirectoryHandle('models')
      for await (const folder of models.values()) {
        if (folder.kind === 'directory') return { size: (await (await folder.getFileHandle('blocks.data')).getFile()).size }
      }
      return { size: 0 }
    })
    return size
  }
  const spectra = async (layer: number) => {
    await core.ask('fetch', { what: layer })
    return (await core.ask('spectra', { layer })).map(({ largest }) => largest)
  }
  await core.ask('open', { source, base: page.address })
  await core.ask('fetch', { what: 'all' })
  const expected = []
  for (let layer = 0; layer < 4; layer++) expected.push(await spectra(layer))
  await core.ask('remove', {})

  // A layer lies in two blocks at most.
  await core.ask('open', { source, base: page.address, keptBytes: 3 * BLOCK })
  server.asked.length = 0
  for (const layer of [0, 3, 0, 2]) {
    const before = sent()
    expect(await spectra(layer)).toEqual(expected[layer])
    expect(sent()).toBeGreaterThan(before)
    expect(await kept()).toBeLessThanOrEqual(3 * BLOCK)
  }
  const before = sent()
  expect(await spectra(2)).toEqual(expected[2])
  expect(sent()).toBe(before)
  await expect(core.ask('fetch', { what: 'all' })).rejects.toThrow(/of a model at most .* are kept/)

  // What is kept is found again, and says the same.
  await core.ask('open', { source, base: page.address })
  expect(await spectra(2)).toEqual(expected[2])
  expect(sent()).toBeLessThanOrEqual(before + BLOCK)
  await shown.context().close()
})
