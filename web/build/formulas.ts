/**
 * `virtual:formulas`: the page's formulas, typeset by KaTeX while the page is built, so that no browser has to do it.
 *
 * A symbol is written `\sym{name}{tex}` and becomes an element with `data-symbol="name"`, which the page lights up
 * together with the part of the picture that has the same name.
 */
import { readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'

import katex from 'katex'
import type { Plugin } from 'vite'

const SOURCE = fileURLToPath(new URL('../www/src/lessons/formulas.json', import.meta.url))
const NAME = 'virtual:formulas'
const FONTS = /KaTeX_(AMS|Main-Regular|Math-Italic|Size[1-4])/

export function formulas(): Plugin {
  return {
    name: 'formulas',
    enforce: 'pre',
    resolveId: (id) => (id === NAME ? `\0${NAME}` : undefined),
    load(id) {
      if (id !== `\0${NAME}`) return undefined
      this.addWatchFile(SOURCE)
      const sources = JSON.parse(readFileSync(SOURCE, 'utf8')) as Record<string, string>
      const typeset = Object.entries(sources).map(([name, tex]) => [name, typesetFormula(tex)])
      return `export default ${JSON.stringify(Object.fromEntries(typeset))}`
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
