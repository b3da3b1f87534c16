/** The report of `modegpt compare`, as a browser shows and prints it. */
import { execFile } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath, pathToFileURL } from 'node:url'
import { promisify } from 'node:util'

import type { Page } from 'playwright-core'
import { afterAll, beforeAll, expect, test } from 'vitest'

import { overflow, studio, violations } from './harness.ts'

const { browser } = studio()
const DEMO = fileURLToPath(new URL('../../../cli/demo', import.meta.url))
const PROGRAM = process.env['MODEGPT']
const work = mkdtempSync(join(tmpdir(), 'report-'))
const report = join(work, 'out')
afterAll(() => rmSync(work, { recursive: true }))

beforeAll(async () => {
  if (PROGRAM === undefined) throw new Error('MODEGPT names the command line whose report is looked at: set it')
  const grid = ['--methods', 'paper,paper-uniform,best,best-fisher,svd-llm', '--sparsity', '0.1..0.3', '--seeds', '0,1', '--ablate']
  const calibration = ['--calibration', `${DEMO}/calibration.txt`, '--samples', '16', '--seq-len', '64', '--fisher-tokens', '256']
  const score = ['--text', `${DEMO}/held-out.txt`, '--text-seq-len', '64', '--max-windows', '4', '--against-dense', '--new-tokens', '16']
  await promisify(execFile)(PROGRAM, ['compare', `${DEMO}/stories260k`, ...grid, ...calibration, ...score, '--device', 'cpu', '-o', report])
}, 300_000)

interface Cell {
  method: string
  sparsity: number
  seed: number
  measured: { texts: { perplexity: number }[] }
}

/** Opens the report from the disk; what it asks the network for is noted and refused. */
async function opened(width: number): Promise<{ page: Page; asked: string[]; errors: string[] }> {
  const context = await browser().newContext({ viewport: { width, height: 900 } })
  const page = await context.newPage()
  const [asked, errors]: string[][] = [[], []]
  await context.route(/^(?!file:)/, (route) => {
    asked?.push(route.request().url())
    return route.abort()
  })
  page.on('pageerror', (error) => errors?.push(error.message))
  page.on('console', (message) => message.type() === 'error' && errors?.push(message.text()))
  await page.goto(pathToFileURL(join(report, 'report.html')).href)
  return { page, asked: asked ?? [], errors: errors ?? [] }
}

test.each([360, 768, 1280])('the report stands in a window of %i pixels, by itself', async (width) => {
  const { page, asked, errors } = await opened(width)
  expect([...asked, ...errors]).toEqual([])
  expect(await overflow(page)).toBe(0)
  expect(await violations(page)).toEqual([])
  expect(await page.locator('.panel > svg').count()).toBeGreaterThanOrEqual(6)
  // No chart is a blank, and no label lies outside its chart.
  const cut = await page.locator('.panel > svg').evaluateAll((charts) =>
    charts.flatMap((chart) => {
      const frame = chart.getBoundingClientRect()
      const labels = [...chart.querySelectorAll('text')].map((label) => ({ label: label.textContent ?? '', box: label.getBoundingClientRect() }))
      const isOutside = ({ box }: { box: DOMRect }) => box.left < frame.left - 1 || box.right > frame.right + 1 || box.top < frame.top - 1 || box.bottom > frame.bottom + 1
      return labels.length === 0 ? ['a chart without labels'] : labels.filter(isOutside).map(({ label }) => label)
    }),
  )
  expect(cut).toEqual([])
  await page.context().close()
})

test('what the page shows is what the table and the object hold', async () => {
  const { page } = await opened(1280)
  await page.locator('details').first().evaluate((details: HTMLDetailsElement) => (details.open = true))
  const { cells } = JSON.parse(readFileSync(join(report, 'report.json'), 'utf8')) as { cells: Cell[] }
  expect(cells.length).toBe(5 * 3 * 2)
  const shown = await page
    .locator('table.cells tbody tr')
    .evaluateAll((rows) => rows.map((row) => [...row.children].map((field) => (field.textContent ?? '').replace(/\u202f/g, ' '))))
  const table = readFileSync(join(report, 'report.csv'), 'utf8').split('\r\n').map((row) => row.split(','))
  const [part, method, sparsity, seed, perplexity] = ['part', 'method', 'sparsity', 'seed', 'perplexity: held-out.txt'].map((name) => table[0]?.indexOf(name) ?? -1)
  const rows = table.filter((row) => row[part ?? -1] === 'grid')
  cells.forEach((cell, i) => {
    const [score] = cell.measured.texts
    const expected = [cell.method, cell.sparsity, cell.seed, score?.perplexity].map(String)
    expect([method, sparsity, seed, perplexity].map((column) => rows[i]?.[column ?? -1])).toEqual(expected)
    const [name, asked, , drawn, , rounded] = shown[i] ?? []
    expect([name, asked, drawn]).toEqual([cell.method, `${Math.round(100 * cell.sparsity)} %`, String(cell.seed)])
    // Three to four digits.
    expect(Number(rounded?.replace(' ', '')) / (score?.perplexity ?? Number.NaN)).toBeCloseTo(1, 2)
  })
  await page.context().close()
})

test('it prints on few pages of A4, none of them cut at the side', async () => {
  const { page } = await opened(1280)
  await page.emulateMedia({ media: 'print' })
  // 210 mm less two margins of 15.
  await page.setViewportSize({ width: Math.floor((180 / 25.4) * 96), height: 1000 })
  expect(await overflow(page)).toBe(0)
  const wide = await page.locator('main *').evaluateAll((parts) =>
    parts.filter((part) => part.getBoundingClientRect().right > document.documentElement.clientWidth + 1).map((part) => part.outerHTML.slice(0, 80)),
  )
  expect(wide).toEqual([])
  const printed = (await page.pdf({ format: 'A4', preferCSSPageSize: true })).toString('latin1')
  const pages = printed.match(/\/Type\s*\/Page\b(?!s)/g)?.length ?? 0
  expect(pages).toBeGreaterThanOrEqual(2)
  expect(pages).toBeLessThanOrEqual(8)
  await page.context().close()
})
