/** Numbers as the page shows them. */

export function percent(share: number, digits = 1): string {
  // The space does not break.
  return `${(100 * share).toFixed(digits)}\u00a0%`
}

export function grouped(n: number): string {
  return Math.round(n).toLocaleString('en-GB').replaceAll(',', '\u202f')
}

export function bytes(n: number): string {
  const units = ['B', 'KiB', 'MiB', 'GiB']
  let unit = 0
  let value = n
  while (value >= 1024 && unit < units.length - 1) {
    value /= 1024
    unit++
  }
  return `${value >= 100 || unit === 0 ? Math.round(value) : value.toFixed(1)} ${units[unit]}`
}

/** Three digits, however large or small. */
export function short(value: number): string {
  if (value === 0) return '0'
  const size = Math.abs(value)
  if (size >= 0.001 && size < 10_000) return String(Number(value.toPrecision(3)))
  const [digits = '', power = ''] = value.toExponential(1).split('e')
  return `${digits.replace(/\.0$/, '')}·10${[...power.replace('+', '')].map(superscript).join('')}`
}

function superscript(character: string): string {
  return character === '-' ? '⁻' : ('⁰¹²³⁴⁵⁶⁷⁸⁹'[Number(character)] ?? character)
}
