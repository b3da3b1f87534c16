import { Matrix } from '../math/matrix.ts'

export const PICTURE_SIZE = 96

/** A lighthouse on a cliff at dusk, painted by arithmetic while the page is built. Grey from 0 to 1, in steps of 1 / 255. */
export function lighthouse(): Matrix {
  const n = PICTURE_SIZE
  return Matrix.from(n, n, (row, col) => {
    // The mean of nine points, so that edges are soft.
    let sum = 0
    for (let i = 0; i < 9; i++) sum += paint((col + ((i % 3) + 0.5) / 3) / n, (row + (Math.floor(i / 3) + 0.5) / 3) / n)
    return Math.round((255 * sum) / 9) / 255
  })
}

function paint(x: number, y: number): number {
  return Math.min(1, Math.max(0, tower(x, y) ?? cliff(x, y) ?? sea(x, y) ?? sky(x, y)))
}

function sky(x: number, y: number): number {
  const glow = 0.55 * Math.exp(-((x - 0.24) ** 2 + (y - 0.5) ** 2) / 0.05)
  const sun = (x - 0.24) ** 2 + (y - 0.5) ** 2 < 0.0075 ? 0.35 : 0
  const beam = y < 0.34 && Math.abs(y - 0.2 + 0.28 * (x - 0.69)) < 0.1 * Math.abs(x - 0.69) ? 0.22 : 0
  const clouds = 0.07 * Math.sin(21 * x + 9 * Math.sin(5 * y)) * Math.exp(-((y - 0.16) ** 2) / 0.012)
  return 0.28 + 0.35 * y + glow * 0.6 + sun + beam + clouds
}

function sea(x: number, y: number): number | undefined {
  if (y < 0.62) return undefined
  const waves = 0.06 * Math.sin(160 * (y - 0.55) ** 0.7 + 6 * Math.sin(9 * x))
  const path = Math.exp(-((x - 0.24) ** 2) / (0.004 + 0.05 * (y - 0.62))) * 0.4 * (0.6 + 0.4 * Math.sin(140 * y))
  return 0.3 - 0.25 * (y - 0.62) + waves + path
}

function cliff(x: number, y: number): number | undefined {
  const shore = 0.5 + 0.05 * Math.sin(11 * y) + 0.02 * Math.sin(47 * y) - 0.22 * Math.max(0, y - 0.78)
  const edge = 0.6 + 1.2 * Math.max(0, shore + 0.1 - x) ** 1.3 + 0.012 * Math.sin(43 * x) + 0.008 * Math.sin(97 * x)
  if (x < shore || y < edge) return undefined
  const grass = 0.22 * Math.exp(-(y - edge) / 0.03)
  const rock = 0.05 * Math.sin(38 * (x - shore) + 5 * Math.sin(24 * y)) * Math.exp(-(x - shore) / 0.25)
  return 0.13 + grass + rock
}

function tower(x: number, y: number): number | undefined {
  const axis = x - 0.69
  if (y > 0.14 && y < 0.17 && Math.abs(axis) < 0.05 * ((y - 0.12) / 0.05)) return 0.16
  if (y >= 0.17 && y < 0.23 && Math.abs(axis) < 0.032) return Math.abs(axis) < 0.022 ? 1 : 0.12
  if (y >= 0.23 && y < 0.25 && Math.abs(axis) < 0.058) return 0.14
  const half = 0.042 + 0.05 * (y - 0.25)
  if (y < 0.25 || y > 0.63 || Math.abs(axis) > half) return undefined
  const stripe = Math.floor((y - 0.25) / 0.076) % 2 === 0 ? 0.92 : 0.34
  return stripe * (0.72 + 0.28 * Math.cos((axis / half) * 1.4 + 0.7))
}
