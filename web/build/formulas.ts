/**
 * `virtual:formula/NAME`: a formula of the page, typeset by KaTeX while the page is built, so that no browser has to do it.
 *
 * A symbol is written `\sym{name}{tex}` and becomes an element with `data-symbol="name"`, which the page lights up
 * together with the part of the picture that has the same name.
 */
import { readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'

import katex from 'katex'
import type { Plugin } from 'vite'

const SOURCE = fileURLToPath(new URL('../www/src/lessons/formulas.json', import.meta.url))
const PREFIX = 'virtual:formula/'
const FONTS = /KaTeX_(AMS|Main-Regular|Math-Italic|Size[1-4])/

export function formulas(): Plugin {
  return {
    name: 'formulas',
    enforce: 'pre',
    resolveId: (id) => (id.startsWith(PREFIX) ? `\0${id}` : undefined),
    load(id) {
      if (!id.startsWith(`\0${PREFIX}`)) return undefined
      this.addWatchFile(SOURCE)
      const sources = JSON.parse(readFileSync(SOURCE, 'utf8')) as Record<string, string>
      const name = id.slice(PREFIX.length + 1)
      const tex = sources[name]
      if (tex === undefined) throw new Error(`there is no formula \`${name}\` in ${SOURCE}`)
      return `export default ${JSON.stringify(typesetFormula(tex))}`
    },
    // Every browser that runs the page reads woff2, and the formulas use few of the fonts.
    transform(code, id) {
      if (!/katex.*\.css$/.test(id)) return undefined
      const faces = code.replace(/@font-face\{[^}]*\}/g, (face) => (FONTS.test(face) ? face : ''))
      return faces.replace(/,\s*url\([^)]*\.(woff|ttf)\)\s*format\("[a-z]+"\)/g, '')
    },
  }
}

export function typesetFormula(tex: string): string {
  return katex.renderToString(tex, {
    displayMode: true,
    throwOnError: true,
    strict: (code: string) => (code === 'htmlExtension' ? 'ignore' : 'error'),
    trust: ({ command }) => command === '\\htmlData',
    macros: { '\\sym': '\\htmlData{symbol=#1}{#2}' },
  })
}
