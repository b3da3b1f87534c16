/** Chromium, and the built page on loopback. */
import { once } from 'node:events'
import { createReadStream, readdirSync, readFileSync, statSync } from 'node:fs'
import { createServer, type Server } from 'node:http'
import { createRequire } from 'node:module'
import { extname, join, normalize } from 'node:path'
import { fileURLToPath } from 'node:url'
import { createGzip } from 'node:zlib'

import { type Browser, type BrowserContext, chromium, type Page } from 'playwright-core'
import { afterAll, beforeAll } from 'vitest'

import type { Answer, Ask, FromWorker, Topic } from '../../www/src/core/protocol.ts'

export const DIST = fileURLToPath(new URL('../../dist', import.meta.url))
const EXECUTABLE = process.env['CHROMIUM'] ?? '/usr/bin/chromium'
const FLAGS = [
  '--headless=new',
  '--no-sandbox',
  '--disable-quic',
  '--no-first-run',
  '--disable-background-networking',
  '--disable-component-update',
  '--disable-sync',
]
const TYPES: Record<string, string> = {
  '.html': 'text/html',
  '.js': 'text/javascript',
  '.css': 'text/css',
  '.wasm': 'application/wasm',
  '.json': 'application/json',
  '.txt': 'text/plain',
  '.woff2': 'font/woff2',
}

export interface Studio {
  /** A page of its own context, at an address such as `#/explore`; it fails the test if a script does. */
  open(hash: string, options?: OpenOptions): Promise<Page>
  /** Everything that a page of the last `open` said on its console as an error. */
  readonly errors: readonly string[]
  /** What the server sent, compressed, since it was last emptied. */
  readonly sent: { path: string; bytes: number }[]
  readonly address: string
}

export interface OpenOptions {
  readonly context?: BrowserContext
  readonly width?: number
}

/** Starts browser and server once for a file of tests. */
export function studio(flags: readonly string[] = []): Studio & { browser(): Browser } {
  let browser: Browser
  let server: Server
  const errors: string[] = []
  const sent: { path: string; bytes: number }[] = []
  const state = { address: '' }
  beforeAll(async () => {
    browser = await chromium.launch({ executablePath: EXECUTABLE, args: [...FLAGS, ...flags] })
    server = serve(sent)
    server.listen(0, '127.0.0.1')
    await once(server, 'listening')
    const place = server.address()
    state.address = typeof place === 'object' && place !== null ? `http://127.0.0.1:${place.port}/` : ''
  })
  afterAll(async () => {
    await browser.close()
    server.close()
  })
  const open = async (hash: string, { context, width = 1200 }: OpenOptions = {}) => {
    errors.length = 0
    const viewport = { width, height: 900 }
    const page = await (context ?? (await browser.newContext({ viewport, serviceWorkers: 'block' }))).newPage()
    page.on('pageerror', (error) => errors.push(error.message))
    page.on('console', (message) => message.type() === 'error' && errors.push(message.text()))
    await page.goto(state.address + hash)
    return page
  }
  return { open, errors, sent, browser: () => browser, get address() { return state.address } }
}

function serve(sent: { path: string; bytes: number }[]): Server {
  return createServer((request, response) => {
    const path = normalize(decodeURIComponent((request.url ?? '/').split('?')[0] ?? '/')).replace(/\/$/, '/index.html')
    const file = join(DIST, path)
    if (!file.startsWith(DIST) || !statSync(file, { throwIfNoEntry: false })?.isFile()) {
      response.writeHead(404).end()
      return
    }
    const record = { path, bytes: 0 }
    sent.push(record)
    response.writeHead(200, { 'content-type': TYPES[extname(file)] ?? 'application/octet-stream', 'content-encoding': 'gzip' })
    const stream = createReadStream(file).pipe(createGzip())
    stream.on('data', (chunk: Buffer) => (record.bytes += chunk.length))
    stream.pipe(response)
  })
}

/** Questions to a worker of the core without the page before it. */
export interface Worker {
  ask<T extends Topic>(topic: T, ask: Ask<T>): Promise<Answer<T>>
}

/** Starts the core's worker in `page`; it lasts as long as that. Bytes in its answers do not survive the way here. */
export async function worker(page: Page): Promise<Worker> {
  const file = readdirSync(join(DIST, 'assets')).find((name) => /^worker-.*\.js$/.test(name))
  if (file === undefined) throw new Error('the page has been built without its worker')
  await page.evaluate((file) => {
    const worker = new Worker(new URL(`assets/${file}`, document.baseURI), { type: 'module' })
    const pending = new Map<number, (message: FromWorker) => void>()
    worker.onmessage = ({ data }: MessageEvent<FromWorker>) => {
      if (data.kind === 'progress') return
      pending.get(data.id)?.(data)
      pending.delete(data.id)
    }
    let last = 0
    const ask = (topic: string, ask: unknown) =>
      new Promise((resolve, reject) => {
        const id = last++
        pending.set(id, (message) => (message.kind === 'answer' ? resolve(message.answer) : reject(new Error('message' in message ? message.message : ''))))
        worker.postMessage({ id, topic, ask })
      })
    Object.assign(globalThis, { ask })
  }, file)
  return {
    ask: (topic, ask) =>
      page.evaluate(([topic, ask]) => (globalThis as unknown as { ask(topic: unknown, ask: unknown): never }).ask(topic, ask), [topic, ask] as const),
  }
}

/** A worker whose script was changed on its way counts as from elsewhere, and could not read from loopback without this. */
export const ELSEWHERE = '--disable-features=LocalNetworkAccessChecks,BlockInsecurePrivateNetworkRequests'

/** Lets every worker of `context` run `script` before its own. */
export async function patchWorker(context: BrowserContext, script: string): Promise<void> {
  await context.route('**/worker-*.js', async (route) => {
    const response = await route.fetch()
    await route.fulfill({ response, body: `{${script}\n}\n${await response.text()}` })
  })
}

const AXE = readFileSync(createRequire(import.meta.url).resolve('axe-core/axe.min.js'), 'utf8')

/** What an automated check finds inaccessible, in words. */
export async function violations(page: Page): Promise<string[]> {
  await page.evaluate(AXE)
  return page.evaluate(async () => {
    const { axe } = globalThis as unknown as { axe: { run(): Promise<{ violations: { id: string; nodes: { html: string }[] }[] }> } }
    return (await axe.run()).violations.map(({ id, nodes }) => `${id}: ${nodes.map(({ html }) => html).join(' ')}`)
  })
}

/** By how many pixels the page is wider than its window. */
export function overflow(page: Page): Promise<number> {
  return page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth)
}
