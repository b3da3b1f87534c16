/** `sw.js`: a service worker that keeps the page and what it needs for the next visit, with or without a network. */
import { createHash } from 'node:crypto'
import { readFileSync, readdirSync } from 'node:fs'
import { fileURLToPath } from 'node:url'

import type { Plugin } from 'vite'

const SOURCE = fileURLToPath(new URL('./service-worker.js', import.meta.url))
const BUNDLED = fileURLToPath(new URL('../../cli/demo', import.meta.url))

export function offline(): Plugin {
  return {
    name: 'offline',
    apply: 'build',
    generateBundle: {
      order: 'post',
      handler(_options, bundle) {
        const emitted = Object.keys(bundle).filter((file) => !file.endsWith('.map'))
        const shell = ['./', ...emitted.filter((file) => !isLate(file))]
        const bundled = readdirSync(BUNDLED, { recursive: true, encoding: 'utf8' }).filter((file) => file.includes('.'))
        const late = [...emitted.filter(isLate), ...bundled.sort()]
        const version = createHash('sha256')
        for (const file of emitted) version.update(file)
        for (const file of bundled) version.update(readFileSync(`${BUNDLED}/${file}`))
        const source = readFileSync(SOURCE, 'utf8')
          .replace('__VERSION__', version.digest('hex').slice(0, 16))
          .replace('__SHELL__', JSON.stringify(shell))
          .replace('__LATE__', JSON.stringify(late))
        this.emitFile({ type: 'asset', fileName: 'sw.js', source })
      },
    },
  }
}

/** What the first view does without. */
function isLate(file: string): boolean {
  return /\.(wasm|woff2)$/.test(file) || file.includes('worker')
}
