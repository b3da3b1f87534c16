// Pictures of every view, at desktop and phone size, light and dark, to be looked at:
//
//   node tests/screenshots.mjs OUT [VIEW …]
//   node tests/screenshots.mjs --readme     the three of the READMEs, in docs/;
//   reduced to 128 colours they have half the bytes
//
// The page must have been built; the views that need the core are taken with the bundled model.
import { mkdirSync } from 'node:fs'

import { chromium } from 'playwright-core'
import { preview } from 'vite'

const forReadme = process.argv[2] === '--readme'
const [out = 'screenshots', ...wanted] = forReadme ? ['docs'] : process.argv.slice(2)
mkdirSync(out, { recursive: true })
const server = await preview({ preview: { port: 0, host: '127.0.0.1' } })
const { port } = server.httpServer.address()
const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium',
  args: ['--headless=new', '--no-sandbox', '--disable-quic', '--no-first-run', '--disable-background-networking', '--disable-component-update', '--disable-sync'],
})

const VIEWS = {
  svd: '#/learn/svd',
  metric: '#/learn/metric',
  nystrom: '#/learn/nystrom',
  cr: '#/learn/cr?pairs=broken',
  allocation: '#/learn/allocation',
  explore: '#/explore?device=cpu&matrix=down&layer=1',
  limits: '#/explore?device=cpu&memory=70&matrix=up&layer=2',
  compress: '#/compress?device=cpu&sparsity=0.3',
  maps: '#/compress?device=cpu&mode=fwsvd&sparsity=0.4',
}
const ACTIONS = {
  async limits(page) {
    await page.getByText('Layer 2, up').first().waitFor({ timeout: 120_000 })
    await page.waitForTimeout(3000)
  },
  async explore(page) {
    await page.getByRole('button', { name: 'Observe the model on a text' }).click({ timeout: 120_000 })
    await page.getByText('Three ways to cut').waitFor({ timeout: 240_000 })
  },
  async compress(page) {
    await page.locator('button.primary:not(:disabled)').click({ timeout: 120_000 })
    await page.locator('.result:not(:has-text("…"))').waitFor({ timeout: 240_000 })
    if (forReadme) return
    await page.getByRole('slider', { name: 'Layer 1, MLP: width that stays' }).press('PageDown')
    await page.getByText('of what the solver would lose').waitFor()
    await page.waitForTimeout(500)
  },
  async maps(page) {
    await page.locator('button.primary:not(:disabled)').click({ timeout: 120_000 })
    await page.locator('.result:not(:has-text("…"))').waitFor({ timeout: 240_000 })
  },
}
/** What a picture begins with, and its height. */
const README = { explore: ['.split', 900], compress: ['.split', 1060], nystrom: ['article', 900] }

async function pictureOf(view, [from, height]) {
  const page = await browser.newPage({ viewport: { width: 1200, height: 2400 }, deviceScaleFactor: 1, colorScheme: 'light' })
  await page.goto(`http://127.0.0.1:${port}/${VIEWS[view]}`)
  await page.waitForTimeout(700)
  await ACTIONS[view]?.(page)
  await page.waitForTimeout(300)
  const { y } = await page.locator(from).first().boundingBox()
  await page.screenshot({ path: `${out}/${view}.png`, clip: { x: 0, y: y - 20, width: 1200, height } })
  await page.close()
}

for (const [view, part] of forReadme ? Object.entries(README) : []) await pictureOf(view, part)
for (const [view, hash] of forReadme ? [] : Object.entries(VIEWS)) {
  if (wanted.length > 0 && !wanted.includes(view)) continue
  for (const [size, width, colorScheme] of [['desktop', 1280, 'light'], ['phone', 390, 'dark']]) {
    const page = await browser.newPage({ viewport: { width, height: 860 }, deviceScaleFactor: 1, colorScheme })
    page.on('console', (m) => m.type() === 'error' && console.error(view, size, m.text()))
    page.on('pageerror', (error) => console.error(view, size, error.message))
    await page.goto(`http://127.0.0.1:${port}/${hash}`)
    await page.waitForTimeout(700)
    await ACTIONS[view]?.(page)
    await page.waitForTimeout(300)
    await page.screenshot({ path: `${out}/${view}-${size}.png`, fullPage: true })
    await page.close()
  }
}
await browser.close()
await server.close()
