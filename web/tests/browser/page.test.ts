/** The page without the core: lessons, keyboard, address, accessibility. */
import { describe, expect, test } from 'vitest'

import { LESSONS } from '../../www/src/place.ts'
import { overflow, studio, violations } from './harness.ts'

const page = studio()

describe.each([1200, 390])('%i pixels wide', (width) => {
  test.each(LESSONS)('lesson %s shows its figure, overflows nothing, and is accessible', async (lesson) => {
    const shown = await page.open(`#/learn/${lesson}`, { width })
    await shown.locator('figure.panel').first().waitFor()
    expect(await overflow(shown)).toBe(0)
    expect(await violations(shown)).toEqual([])
    expect(page.errors).toEqual([])
    await shown.context().close()
  })
})

test('dragging the cut changes rank, energy and address', async () => {
  const shown = await page.open('#/learn/svd')
  const line = shown.getByRole('slider', { name: 'Rank' })
  expect(await line.getAttribute('aria-valuenow')).toBe('8')
  await shown.locator('.cut circle').scrollIntoViewIfNeeded()
  const box = await shown.locator('.cut circle').boundingBox()
  if (box === null) throw new Error('the handle has no place')
  await shown.mouse.move(box.x + 8, box.y + 8)
  await shown.mouse.down()
  await shown.mouse.move(box.x + 200, box.y + 8, { steps: 5 })
  await shown.mouse.up()
  const rank = Number(await line.getAttribute('aria-valuenow'))
  expect(rank).toBeGreaterThan(25)
  await shown.waitForURL(`**/#/learn/svd?rank=${rank}`)
  await line.press('Home')
  expect(await shown.locator('.number.lost strong').textContent()).toBe('100.00\u00a0%')
  await shown.context().close()
})

test('a link shows the same view, and going back returns to it', async () => {
  const shown = await page.open('#/learn/nystrom?kept=2.4.5')
  await shown.locator('.unit.kept').first().waitFor()
  expect(await shown.locator('.unit.kept').count()).toBe(3)
  await shown.getByRole('link', { name: 'Next' }).click()
  await shown.getByRole('heading', { name: 'A product by few columns' }).waitFor()
  await shown.goBack()
  await shown.locator('.unit.kept').first().waitFor()
  expect(await shown.locator('.unit.kept .name').allTextContents()).toEqual(['unit 3', 'unit 5', 'unit 6'])
  await shown.context().close()
})

test('choosing the best units loses less than the first three, and their buttons say so', async () => {
  const shown = await page.open('#/learn/nystrom')
  const lost = async () => Number.parseFloat((await shown.locator('.number.kept strong').textContent()) ?? '')
  const before = await lost()
  await shown.getByRole('button', { name: 'Show the best 3' }).click()
  expect(await lost()).toBeLessThan(before)
  expect(await shown.locator('.unit[aria-pressed=true]').count()).toBe(3)
  await shown.context().close()
})

test('a symbol lights up in text, formula and picture together', async () => {
  const shown = await page.open('#/learn/svd')
  await shown.locator('.symbol[data-symbol=lost]').hover()
  expect(await shown.locator('.formula [data-symbol=lost][data-lit]').count()).toBe(1)
  expect(await shown.locator('.bar.lost[data-lit]').count()).toBeGreaterThan(50)
  expect(await shown.locator('[data-symbol=kept][data-lit]').count()).toBe(0)
  await shown.context().close()
})

test('a broken pair makes the logit depend on the place', async () => {
  const shown = await page.open('#/learn/cr')
  const heights = () =>
    shown.locator('polyline.line').evaluate((line) => (line.getAttribute('points') ?? '').split(' ').map((point) => Number(point.split(',')[1])))
  const spread = (values: number[]) => Math.max(...values) - Math.min(...values)
  expect(spread(await heights())).toBeLessThan(0.5)
  await shown.getByRole('radio', { name: 'has lost its second coordinate' }).check()
  expect(spread(await heights())).toBeGreaterThan(10)
  await shown.context().close()
})

test('the budget is spent with the keyboard, and the solver spends it better', async () => {
  const shown = await page.open('#/learn/allocation?steps=0.0.0.0')
  const layer = shown.getByRole('slider', { name: 'Layer 3' })
  for (let i = 0; i < 8; i++) await layer.press('ArrowUp')
  expect(await layer.getAttribute('aria-valuetext')).toBe('80 %')
  const perplexity = async () => Number.parseFloat((await shown.locator('.number strong').nth(1).textContent()) ?? '')
  await shown.getByRole('button', { name: 'By block influence' }).click()
  const paper = await perplexity()
  await shown.getByRole('button', { name: 'Solve' }).click()
  expect(await perplexity()).toBeLessThanOrEqual(paper)
  expect(await shown.locator('.number strong').first().textContent()).toBe('spent')
  await shown.context().close()
})

test('without a network the page comes from the last visit', async () => {
  const context = await page.browser().newContext()
  const shown = await page.open('', { context })
  await shown.evaluate(async () => {
    await navigator.serviceWorker.ready
  })
  await shown.reload()
  await context.setOffline(true)
  await shown.goto(`${page.address}#/learn/metric`)
  await shown.reload()
  await shown.getByRole('heading', { name: 'Near for whom?' }).waitFor()
  await context.close()
})
