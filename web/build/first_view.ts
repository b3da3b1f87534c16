/**
 * Draws the first view into `index.html` while the page is built, so that it is there to read before any script is. The
 * scripts take it over as it stands.
 */
import { fileURLToPath } from 'node:url'

import { type Plugin, runnerImport } from 'vite'

import { formulas } from './formulas.ts'
import { picture } from './picture.ts'

const WWW = fileURLToPath(new URL('../www', import.meta.url))
const PLACE = '<div id="app"></div>'

export function firstView(): Plugin {
  return {
    name: 'first-view',
    apply: 'build',
    transformIndexHtml: {
      order: 'pre',
      async handler(html) {
        if (!html.includes(PLACE)) throw new Error(`index.html should hold ${PLACE}`)
        const config = { configFile: false as const, root: WWW, plugins: [formulas(), picture()] }
        const { module } = await runnerImport<typeof import('../www/src/first_view.tsx')>('/src/first_view.tsx', config)
        return html.replace(PLACE, () => `<div id="app">${module.firstView()}</div>`)
      },
    },
  }
}
