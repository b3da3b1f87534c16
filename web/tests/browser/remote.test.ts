/** Models from a server: fetched in parts, kept in the browser, and whatever a server may do wrong. */
import { readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'

import type { BrowserContext, Page } from 'playwright-core'
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest'

import { studio, violations, worker } from './harness.ts'
import { type Faults, hub, type Hub, sharded } from './hub.ts'

const page = studio()
const NAMES = ['config.json', 'generation_config.json', 'tokenizer.json', 'tokenizer_config.json', 'model.safetensors']
const read = (name: string) => readFileSync(fileURLToPath(new URL(`../../../cli/demo/opt-tiny-stories/${name}`, import.meta.url)))
const WEIGHTS = read('model.safetensors')
const BLOCK = 256 << 10
const folder = (id: string, names = NAMES) => Object.fromEntries(names.map((name) => [`${id}/resolve/main/${name}`, read(name)]))

let server: Hub
beforeAll(async () => {
  server = await hub({ ...folder('org/opt') })
})
afterAll(() => server.close())
beforeEach(() => {
  server.faults = {}
  server.asked.length = 0
})

/** A page of a context of its own, whose storage nobody else has seen. */
async function fresh(hash: string, context?: BrowserContext): Promise<Page> {
  return page.open(hash, { context: context ?? (await page.browser().newContext({ viewport: { width: 1200, height: 900 }, serviceWorkers: 'block' })) })
}

async function fetchById(shown: Page, id: string): Promise<void> {
  await shown.locator('button:has-text("Open your own"):not(:disabled)').waitFor({ timeout: 60_000 })
  await shown.getByText('Fetch one by its hub id').click()
  await shown.getByLabel('hub id or address of a folder').fill(id)
  await shown.getByLabel('hub', { exact: true }).fill(server.address)
  await shown.getByRole('button', { name: 'Fetch', exact: true }).click()
}

const arrived = (shown: Page) => expect.poll(() => shown.locator('.arrival progress').count(), { timeout: 60_000 }).toBe(0)
const ranges = () => server.asked.filter(({ begin, end }) => end - begin > 1)
const sent = () => ranges().reduce((sum, one) => sum + one.sent, 0)

test('a model is fetched by its hub id, layer 0 first, and then needs no server', { timeout: 240_000 }, async () => {
  server.faults = { slow: 250 }
  const shown = await fresh('#/explore?device=cpu')
  await fetchById(shown, 'org/opt')
  await shown.getByText('OPT: 4 layers').waitFor({ timeout: 60_000 })
  // The spectra of layer 0 are there while other layers are not.
  await shown.getByRole('button', { name: /layer 0, query, \d+\s% of the full rank/ }).waitFor({ timeout: 60_000 })
  expect(await shown.getByRole('button', { name: 'layer 3, query, not looked at' }).count()).toBe(1)
  expect(await shown.locator('.arrival progress').count()).toBe(1)
  expect(sent()).toBeLessThan(WEIGHTS.length)
  expect(await shown.getByRole('button', { name: 'Observe the model on a text' }).isDisabled()).toBe(true)
  expect(await violations(shown)).toEqual([])
  server.faults = {}
  await shown.getByRole('button', { name: 'Fetch the rest' }).click()
  await arrived(shown)
  await shown.getByRole('button', { name: /layer 3, down, \d+\s% of the full rank/ }).waitFor({ timeout: 60_000 })
  expect(sent()).toBe(WEIGHTS.length)
  expect(shown.url()).toMatch(/model=org%2Fopt/)

  server.asked.length = 0
  server.faults = { noCors: true }
  await shown.reload()
  await shown.getByText('OPT: 4 layers').waitFor({ timeout: 60_000 })
  await shown.getByRole('button', { name: /layer 3, down, \d+\s% of the full rank/ }).waitFor({ timeout: 60_000 })
  expect(server.asked).toEqual([])
  await shown.getByRole('button', { name: 'Observe the model on a text' }).click()
  await shown.getByRole('columnheader', { name: 'influence' }).waitFor({ timeout: 150_000 })

  await shown.getByRole('button', { name: 'Remove it from this browser' }).click()
  await expect.poll(() => shown.getByLabel('Model', { exact: true }).inputValue()).toBe('opt')
  const left = await shown.evaluate(async () => {
    const models = await (await navigator.storage.getDirectory()).getDirectoryHandle('models')
    const names = []
    for await (const name of models.keys()) names.push(name)
    return names
  })
  expect(left).toEqual([])
  await shown.context().close()
})

test('fetching is paused, and goes on where it was, also after the page was closed', { timeout: 240_000 }, async () => {
  server.faults = { slow: 150 }
  const shown = await fresh('#/explore?device=cpu')
  await fetchById(shown, 'org/opt')
  const all = shown.locator('button:not(:disabled)', { hasText: /^Fetch (it|the rest)$/ })
  await all.click({ timeout: 60_000 })
  await shown.getByRole('button', { name: 'Pause' }).click({ timeout: 60_000 })
  await all.waitFor()
  const before = sent()
  await shown.waitForTimeout(1000)
  expect(sent()).toBe(before)
  expect(before).toBeLessThan(WEIGHTS.length)

  server.faults = { slow: 600 }
  await all.click()
  await expect.poll(sent, { timeout: 30_000 }).toBeGreaterThan(before + BLOCK / 4)
  const { context, url } = { context: shown.context(), url: shown.url() }
  await shown.close()
  server.faults = {}
  const again = await fresh(url.slice(url.indexOf('#')), context)
  await again.getByText('OPT: 4 layers').waitFor({ timeout: 60_000 })
  // A link alone fetches no weights.
  await again.waitForTimeout(500)
  expect(await again.locator('.arrival progress').getAttribute('value')).not.toBe('0')
  await again.getByRole('button', { name: /^Fetch (it|the rest)$/ }).click()
  await arrived(again)
  await again.getByRole('button', { name: /layer 3, down, \d+\s% of the full rank/ }).waitFor({ timeout: 60_000 })
  // Only unfinished blocks were sent twice: one for each of the two times that it was ended, and what was under way.
  expect(sent()).toBeLessThan(WEIGHTS.length + 4 * BLOCK)
  await context.close()
})

describe('by the core alone', () => {
  /** Opens and fetches all of a model; gives what it is, or the error. */
  async function take(base: string, faults: Faults = {}) {
    server.faults = faults
    const shown = await fresh('#/learn/svd')
    try {
      const core = await worker(shown)
      await core.ask('device', { kind: 'cpu' })
      const { summary } = await core.ask('open', { source: { kind: 'remote', name: 'it', base }, base: page.address })
      const arrival = await core.ask('fetch', { what: 'all' })
      const spectra = await core.ask('spectra', { layer: 3 })
      return { summary, arrival, spectra }
    } finally {
      await shown.context().close()
    }
  }
  const base = (id: string) => `${server.address}/${id}/resolve/main/`

  test('connections that break again and again are taken up where they broke', async () => {
    const { arrival, spectra } = await take(base('org/opt'), { breakAfter: BLOCK + 1 })
    expect(arrival).toMatchObject({ done: arrival.of, paused: false })
    expect(spectra.length).toBeGreaterThan(5)
    expect(ranges().length).toBeGreaterThan(3)
  })

  test('shards are found by their index', async () => {
    for (const [name, content] of Object.entries(folder('org/shards', NAMES.slice(0, 4)))) server.files.set(name, content)
    for (const [name, content] of Object.entries(sharded(WEIGHTS))) server.files.set(`org/shards/resolve/main/${name}`, content)
    const { summary, spectra } = await take(base('org/shards'))
    expect(summary.layers.length).toBe(4)
    expect(spectra.length).toBeGreaterThan(5)
    expect(new Set(ranges().map(({ path }) => path)).size).toBe(2)
  })

  const cases: readonly (readonly [string, Faults, RegExp])[] = [
    ['no ranges', { noRanges: true }, /cannot send parts of a file/],
    ['no other pages', { noCors: true }, /does not allow other pages to read \(CORS\)/],
    ['a hidden Content-Range', { hidden: true }, /does not show other pages its header Content-Range/],
    ['a size that no disk has', { claims: 2 ** 52 }, /more than any has/],
    ['a size that is too large', { claims: WEIGHTS.length + 8 }, /wrong size/],
    ['a size that is too small', { claims: 4096 }, /wrong size|too early|asked for bytes/],
    ['another part than was asked for', { shifted: true }, /was asked for bytes \d+-\d+ of model.safetensors, and says/],
    ['more than was asked for', { excess: 100_000 }, /sent more than|cannot reach|connection was lost/],
    ['less than was announced, always', { excess: -100 }, /connection was lost|less than/],
  ]
  test.each(cases)('%s', async (_title, faults, expected) => {
    await expect(take(base('org/opt'), faults)).rejects.toThrow(expected)
  })

  test('a model that is not there', async () => {
    await expect(take(base('org/none'))).rejects.toThrow(/has no config\.json: there is no model of this name/)
  })

  test('an index that leads elsewhere', async () => {
    for (const [name, content] of Object.entries(folder('org/evil', NAMES.slice(0, 4)))) server.files.set(name, content)
    const index = { weight_map: { 'model.decoder.embed_tokens.weight': '../../secret.safetensors' } }
    server.files.set('org/evil/resolve/main/model.safetensors.index.json', Buffer.from(JSON.stringify(index)))
    await expect(take(base('org/evil'))).rejects.toThrow(/is not an index of tensors/)
  })

  test('weights that change on the server meanwhile', async () => {
    const shown = await fresh('#/learn/svd')
    const core = await worker(shown)
    await core.ask('open', { source: { kind: 'remote', name: 'it', base: base('org/opt') }, base: page.address })
    server.faults = { tag: 'second' }
    await expect(core.ask('fetch', { what: 'all' })).rejects.toThrow(/was changed on the server meanwhile/)
    await core.ask('remove', {})
    await core.ask('open', { source: { kind: 'remote', name: 'it', base: base('org/opt') }, base: page.address })
    expect(await core.ask('fetch', { what: 'all' })).toMatchObject({ paused: false })
    await shown.context().close()
  })
})

test('a server that fails is told, and the page goes on', async () => {
  server.faults = { noRanges: true }
  const shown = await fresh('#/explore?device=cpu')
  await fetchById(shown, 'org/opt')
  await shown.getByRole('alert').filter({ hasText: 'cannot send parts of a file' }).waitFor({ timeout: 60_000 })
  await shown.getByRole('button', { name: 'Dismiss' }).click()
  await shown.getByLabel('Model', { exact: true }).selectOption('llama')
  await shown.getByText('Llama: 5 layers').waitFor({ timeout: 60_000 })
  await shown.context().close()
})
