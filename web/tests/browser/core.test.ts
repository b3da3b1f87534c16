/** The page with the core: the bundled models are explored, compressed, downloaded and read by the command line. */
import { execFileSync } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'

import type { Page } from 'playwright-core'
import { afterAll, describe, expect, test } from 'vitest'

import type { LayerPlan, Plan } from '../../www/src/core/protocol.ts'
import { overflow, studio, violations } from './harness.ts'

const page = studio()
const DEMO = fileURLToPath(new URL('../../../cli/demo', import.meta.url))
const PROGRAM = process.env['MODEGPT']
const work = mkdtempSync(join(tmpdir(), 'studio-'))
afterAll(() => rmSync(work, { recursive: true }))

async function compress(shown: Page): Promise<void> {
  await shown.locator('button.primary:not(:disabled)').click({ timeout: 60_000 })
  // Every number and both texts are there.
  await shown.locator('.result:not(:has-text("…"))').waitFor({ timeout: 150_000 })
}

async function cell(shown: Page, row: string, column: 0 | 1): Promise<string> {
  return (await shown.locator('.result tr', { hasText: row }).locator('td').nth(column).textContent()) ?? ''
}

function run(...args: string[]): { perplexity: number } & Record<string, unknown> {
  if (PROGRAM === undefined) throw new Error('MODEGPT names the command line to compare with: set it')
  return JSON.parse(execFileSync(PROGRAM, [...args, '--device', 'cpu', '--json'], { encoding: 'utf8', stdio: ['ignore', 'pipe', 'ignore'] }))
}

/** What the page calibrates and scores by, as options of the command line. */
const CALIBRATION = ['--calibration', `${DEMO}/calibration.txt`, '--samples', '64', '--seq-len', '256', '--seed', '0']
const SCORE = ['--text', `${DEMO}/held-out.txt`, '--seq-len', '256', '--max-windows', '32']

function perplexity(folder: string): number {
  return run('eval', folder, ...SCORE).perplexity
}

/** Downloads the compressed model; gives the new folder in which its own lies. */
async function downloaded(shown: Page): Promise<string> {
  const download = shown.waitForEvent('download')
  await shown.getByRole('button', { name: 'Download' }).click()
  const folder = mkdtempSync(join(work, 'downloaded-'))
  const archive = join(folder, 'it.tar')
  await (await download).saveAs(archive)
  execFileSync('tar', ['-xf', archive, '-C', folder])
  return folder
}

describe.each([
  ['opt', 'opt-tiny-stories', 'mode=best', ['--mode', 'best', '--prefix', 'none']],
  ['llama', 'stories260k', 'mode=paper&allocation=uniform', ['--mode', 'paper', '--allocation', 'uniform']],
] as const)('the bundled %s model', (key, folder, asked, options) => {
  test('is explored: map, spectrum, activations', async () => {
    const shown = await page.open(`#/explore?device=cpu&model=${key}&layer=1&matrix=down`)
    await shown.getByRole('button', { name: 'Observe the model on a text' }).click({ timeout: 60_000 })
    await shown.getByRole('heading', { name: 'Three ways to cut the down map' }).waitFor({ timeout: 150_000 })
    expect(await shown.locator('.map button').count()).toBeGreaterThan(20)
    await shown.getByRole('button', { name: /layer 0, query/ }).click()
    await shown.getByRole('heading', { name: /Scores of the/ }).waitFor({ timeout: 60_000 })
    expect(await shown.locator('.problem').count()).toBe(0)
    expect(await violations(shown)).toEqual([])
    await shown.setViewportSize({ width: 390, height: 800 })
    expect(await overflow(shown)).toBe(0)
    expect(page.errors).toEqual([])
    await shown.context().close()
  })

  test('is compressed, and every number is the command line’s', async () => {
    const shown = await page.open(`#/compress?device=cpu&model=${key}&${asked}&sparsity=0.25`)
    const begin = performance.now()
    await compress(shown)
    console.log(`${folder}: compressed, scored and written in ${((performance.now() - begin) / 1000).toFixed(1)} s`)
    expect(await violations(shown)).toEqual([])
    const before = Number(await cell(shown, 'perplexity', 0))
    const after = Number(await cell(shown, 'perplexity', 1))

    const written = join(await downloaded(shown), `${folder}-25`)
    expect(before / perplexity(`${DEMO}/${folder}`)).toBeCloseTo(1, 3)
    expect(after / perplexity(written)).toBeCloseTo(1, 3)
    const ours = join(work, `${folder}-ours`)
    run('compress', `${DEMO}/${folder}`, '-o', ours, '--sparsity', '0.25', ...options, ...CALIBRATION)
    expectSame(written, ours)
    await shown.context().close()
  })
})

test.each([
  ['svd', 'llama', 'stories260k'],
  ['fwsvd', 'opt', 'opt-tiny-stories'],
  ['asvd', 'llama', 'stories260k'],
  ['svd-llm', 'opt', 'opt-tiny-stories'],
  ['sliced', 'llama', 'stories260k'],
] as const)('mode %s is the command line’s', async (mode, key, folder) => {
  const shown = await page.open(`#/compress?device=cpu&model=${key}&mode=${mode}&sparsity=0.4`)
  const begin = performance.now()
  await compress(shown)
  console.log(`${folder}, ${mode}: compressed, scored and written in ${((performance.now() - begin) / 1000).toFixed(1)} s`)
  expect(await violations(shown)).toEqual([])
  const plan = (await shown.locator('.plan').textContent()) ?? ''
  expect(plan.includes('down')).toBe(mode !== 'sliced')
  expect(plan).toMatch(/% lost/)
  const after = Number(await cell(shown, 'perplexity', 1))
  const written = join(await downloaded(shown), `${folder}-40`)
  const ours = join(work, mode)
  run('compress', `${DEMO}/${folder}`, '-o', ours, '--sparsity', '0.4', '--mode', mode, ...CALIBRATION)
  // FWSVD draws labels from the model: where a draw falls between two tokens, rounding chooses, for some of 2048.
  const tolerance = mode === 'fwsvd' ? 5e-3 : 1e-3
  expect(Math.abs(after / perplexity(ours) - 1)).toBeLessThan(tolerance)
  expectSame(written, ours, tolerance)
  // What was lost at these sizes is not said of others.
  await shown.getByRole('slider', { name: 'block weights removed' }).fill('0.1')
  await shown.locator('.plan caption', { hasText: /^(9\.|1[01]\.)/ }).waitFor()
  const lost = await shown.locator('.plan .error', { hasText: /% lost/ }).count()
  expect(lost).toBeLessThan(12)
  if (mode !== 'sliced') expect(lost).toBe(0)
  expect(page.errors).toEqual([])
  await shown.context().close()
})

function planIn(folder: string): Plan {
  return JSON.parse(readFileSync(join(folder, 'modegpt_plan.json'), 'utf8'))
}

/** The plans of two compressed models keep the same, and their reports tell of the same errors, up to a share of these. */
function expectSame(written: string, ours: string, tolerance = 1e-3): void {
  expect(planIn(written).layers.map(sizesOf)).toEqual(planIn(ours).layers.map(sizesOf))
  const report = (folder: string) => JSON.parse(readFileSync(join(folder, 'modegpt_report.json'), 'utf8'))
  report(written).layers.forEach((layer: Report, i: number) => {
    const theirs: Report = report(ours).layers[i]
    for (const module of ['mlp', 'query_key', 'value_output'] as const) {
      const [here, there] = [layer[module].relative_error, theirs[module].relative_error]
      expect(Math.abs(here - there)).toBeLessThanOrEqual(tolerance * there)
    }
  })
}

interface Report {
  mlp: { relative_error: number }
  query_key: { relative_error: number }
  value_output: { relative_error: number }
}

function sizesOf({ d_ff, d_qk, d_v, ranks }: LayerPlan) {
  return [d_ff, d_qk, d_v, ranks]
}

test('a module that shall give nothing keeps its widths, and the others keep the budget', async () => {
  const shown = await page.open('#/compress?device=cpu&model=opt&sparsity=0.25')
  const gives = (module: string) => shown.locator('.choice label', { hasText: module })
  await gives('query, key').click({ timeout: 60_000 })
  await shown.waitForURL('**off=query-key*')
  await compress(shown)
  expect(await shown.locator('.plan caption').textContent()).toMatch(/^2[45]\.\d/)
  const cells = await shown.locator('.plan tbody tr').evaluateAll((rows) => rows.map((row) => row.querySelectorAll('td')[1]?.textContent))
  expect(cells).toHaveLength(4)
  for (const cell of cells) expect(cell).toMatch(/^32 of 32\s*untouched$/)
  expect(await shown.getByRole('slider', { name: /query, key: width/ }).count()).toBe(0)
  expect(await shown.getByRole('slider', { name: /MLP: width/ }).count()).toBe(4)
  // One module has to give.
  await gives('value, output').click()
  expect(await shown.getByRole('checkbox', { name: 'MLP' }).isDisabled()).toBe(true)
  expect(await violations(shown)).toEqual([])
  await shown.context().close()
})

test('an allocation set by hand keeps the budget, is in the address, and is applied', async () => {
  const shown = await page.open('#/compress?device=cpu&model=llama&sparsity=0.25')
  await compress(shown)
  const bar = (layer: number) => shown.getByRole('slider', { name: `Layer ${layer}, MLP: width that stays` })
  const widths = () => shown.locator('.plan [role=slider]').evaluateAll((bars) => bars.map((bar) => Number(bar.getAttribute('aria-valuenow'))))
  const before = await widths()
  await bar(1).press('ArrowLeft')
  await bar(1).press('ArrowLeft')
  await shown.locator('.plan .held').waitFor()
  // Every key is answered by a plan, and the last one counts.
  await shown.waitForTimeout(1500)
  const after = await widths()
  expect(after[3]).toBe((before[3] ?? NaN) - 8)
  expect(after.filter((width, i) => i !== 3 && width !== before[i])).not.toEqual([])
  expect(await shown.locator('.plan caption').textContent()).toMatch(/^2[45]\.\d/)
  expect(await shown.locator('.number', { hasText: 'of what the solver would lose' }).locator('strong').textContent()).toMatch(/^× (1\.|[2-9])/)
  await shown.waitForURL(`**held=1.mlp.${after[3]}*`)
  expect(await violations(shown)).toEqual([])

  await compress(shown)
  const plan = planIn(join(await downloaded(shown), 'stories260k-25'))
  expect(plan.layers.flatMap(({ d_ff, d_qk, d_v }) => [d_ff, d_qk, d_v])).toEqual(after)

  await shown.getByRole('button', { name: 'Let go of the one' }).click()
  await expect.poll(widths).toEqual(before)
  await shown.setViewportSize({ width: 390, height: 800 })
  expect(await overflow(shown)).toBe(0)
  await shown.context().close()
})

test.each([
  ['svd', 'Singular values of OPT, tiny stories, layer 1, query'],
  ['metric', 'Share of the output lost by rank, cut in three metrics'],
  ['nystrom', 'the 8 loudest hidden units of OPT, tiny stories, layer 1'],
  ['cr', 'Scores of coordinates, the largest first'],
  ['allocation', 'what its decompositions say that they would lose'],
] as const)('lesson %s is shown on a real layer, in place', async (lesson, found) => {
  const shown = await page.open(`#/learn/${lesson}?device=cpu&layer=1`)
  await shown.getByRole('button', { name: /^Show .* of a real model$/ }).click()
  await shown.getByRole('button', { name: 'Back to the example' }).waitFor({ timeout: 120_000 })
  expect((await shown.getByText(found).count()) + (await shown.getByLabel(found).count())).toBeGreaterThan(0)
  expect(await violations(shown)).toEqual([])
  expect(page.errors).toEqual([])
  await shown.getByRole('button', { name: 'Back to the example' }).click()
  await shown.getByRole('button', { name: /^Show .* of a real model$/ }).waitFor()
  await shown.context().close()
})

test('with all of it kept, a model is explored without a network', async () => {
  const context = await page.browser().newContext()
  const shown = await page.open('', { context })
  await shown.evaluate(async () => void (await navigator.serviceWorker.ready))
  await shown.reload()
  await shown.getByRole('button', { name: 'Keep all of it' }).click()
  await shown.getByText('All of it is kept').waitFor({ timeout: 120_000 })
  await context.setOffline(true)
  await shown.goto(`${page.address}#/explore?device=cpu&model=llama`)
  await shown.reload()
  await shown.getByText('Llama: 5 layers').waitFor({ timeout: 60_000 })
  await context.close()
})

test('work is stopped, and the page goes on', async () => {
  const shown = await page.open('#/compress?device=cpu')
  await shown.locator('button.primary:not(:disabled)').click({ timeout: 60_000 })
  await shown.getByText('observing the model').waitFor()
  await shown.getByRole('button', { name: 'Stop' }).click()
  await shown.locator('.model-line').waitFor({ timeout: 60_000 })
  await compress(shown)
  expect(Number(await cell(shown, 'perplexity', 1))).toBeGreaterThan(Number(await cell(shown, 'perplexity', 0)))
  await shown.setViewportSize({ width: 390, height: 800 })
  expect(await overflow(shown)).toBe(0)
  await shown.context().close()
})

test('what few tokens change is told', async () => {
  const shown = await page.open('#/compress?device=cpu&model=llama&sparsity=0.25')
  const told = shown.getByText(/has only .* hidden units in a layer/)
  await shown.getByText('Texts of your own').click({ timeout: 60_000 })
  await shown.getByLabel('calibration text').fill(readFileSync(`${DEMO}/calibration.txt`, 'utf8').slice(0, 5000))
  await compress(shown)
  expect(await told.textContent()).toMatch(/only 768 tokens for 172 hidden units in a layer: with fewer than 16 for each, down maps are held to the weights/)
  await shown.getByLabel('calibration text').fill('')
  await shown.locator('button.primary:not(:disabled)').click()
  await shown.locator('.result').waitFor({ state: 'detached' })
  await shown.locator('.result:not(:has-text("…"))').waitFor({ timeout: 150_000 })
  expect(await told.count()).toBe(0)
  await shown.context().close()
})

describe('files that are not what they should be', () => {
  const good = (name: string) => readFileSync(`${DEMO}/opt-tiny-stories/${name}`)
  const cases: readonly (readonly [string, Record<string, Buffer>, RegExp])[] = [
    ['no configuration', { 'model.safetensors': good('model.safetensors') }, /config\.json/],
    ['weights cut off', changed({ 'model.safetensors': good('model.safetensors').subarray(0, 500_000) }), /model\.safetensors/],
    ['a header that lies', changed({ 'model.safetensors': Buffer.concat([Buffer.from('ffffffffffffff7f', 'hex'), good('model.safetensors')]) }), /model\.safetensors/],
    ['another model’s configuration', changed({ 'config.json': readFileSync(`${DEMO}/stories260k/config.json`) }), /tensor|embedding/i],
    ['a configuration that is none', changed({ 'config.json': Buffer.from('{') }), /config\.json/],
  ]

  function changed(changes: Record<string, Buffer | undefined>): Record<string, Buffer> {
    const all = { ...Object.fromEntries(['config.json', 'tokenizer.json', 'model.safetensors'].map((name) => [name, good(name)])), ...changes }
    return Object.fromEntries(Object.entries(all).filter((entry): entry is [string, Buffer] => entry[1] !== undefined))
  }

  test.each(cases)('%s', async (_title, files, expected) => {
    const shown = await page.open('#/explore?device=cpu')
    await shown.getByRole('button', { name: 'Open your own' }).waitFor()
    await shown.locator('button:has-text("Open your own"):not(:disabled)').waitFor({ timeout: 60_000 })
    const given = Object.entries(files).map(([name, buffer]) => ({ name, mimeType: 'application/octet-stream', buffer }))
    await shown.locator('input[type=file]').setInputFiles(given)
    const problem = shown.getByRole('alert')
    await problem.waitFor({ timeout: 60_000 })
    expect(await problem.textContent()).toMatch(expected)
    await shown.getByRole('button', { name: 'Dismiss' }).click()
    await shown.getByLabel('Model', { exact: true }).selectOption('llama')
    await shown.getByText('Llama: 5 layers').waitFor({ timeout: 60_000 })
    await shown.context().close()
  })

  test('a model without a tokenizer is looked at, and what needs one is switched off', async () => {
    const shown = await page.open('#/explore?device=cpu')
    await shown.locator('button:has-text("Open your own"):not(:disabled)').waitFor({ timeout: 60_000 })
    const given = Object.entries(changed({ 'tokenizer.json': undefined })).map(([name, buffer]) => ({ name, mimeType: 'application/octet-stream', buffer }))
    await shown.locator('input[type=file]').setInputFiles(given)
    await shown.getByText(/not be observed or compressed here: .* has no tokenizer/).waitFor({ timeout: 60_000 })
    await shown.getByRole('button', { name: /layer 3, down, \d+\s% of the full rank/ }).waitFor({ timeout: 60_000 })
    expect(await shown.getByRole('button', { name: 'Observe the model on a text' }).isDisabled()).toBe(true)
    expect(await shown.getByRole('alert').count()).toBe(0)
    await shown.context().close()
  })

  test('a good model is opened from files', async () => {
    const shown = await page.open('#/explore?device=cpu')
    await shown.locator('button:has-text("Open your own"):not(:disabled)').waitFor({ timeout: 60_000 })
    const given = Object.entries(changed({})).map(([name, buffer]) => ({ name, mimeType: 'application/octet-stream', buffer }))
    await shown.locator('input[type=file]').setInputFiles(given)
    await shown.getByText('OPT: 4 layers').waitFor({ timeout: 60_000 })
    expect(await shown.getByRole('alert').count()).toBe(0)
    await shown.context().close()
  })

  test('five gigabytes of nothing are looked at, not read', async () => {
    const shown = await page.open('#/explore?device=cpu')
    await shown.locator('button:has-text("Open your own"):not(:disabled)').waitFor({ timeout: 60_000 })
    const huge = join(work, 'model.safetensors')
    writeFileSync(huge, '')
    execFileSync('truncate', ['-s', '5G', huge])
    const others = ['config.json', 'tokenizer.json'].map((name) => `${DEMO}/opt-tiny-stories/${name}`)
    await shown.locator('input[type=file]').setInputFiles([...others, huge])
    await shown.getByRole('alert').waitFor()
    expect(await shown.getByRole('alert').textContent()).toMatch(/model\.safetensors.* is not a valid safetensors file/)
    await shown.context().close()
  })
})
