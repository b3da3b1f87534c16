import { expect, test } from 'vitest'

import { Pages } from '../../www/src/core/store/pages.ts'

const SIZE = 5_000_000
/** A file of which every byte tells where it lies. */
const at = (place: number) => (place * 7 + Math.floor(place / 251)) & 255

function file(): { pages: Pages; calls: number[] } {
  const calls: number[] = []
  const pages = new Pages((place, into) => {
    calls.push(into.length)
    const n = Math.max(0, Math.min(into.length, SIZE - place))
    for (let i = 0; i < n; i++) into[i] = at(place + i)
    return n
  })
  return { pages, calls }
}

function expectRead(pages: Pages, place: number, bytes: number, expected = bytes): void {
  const into = new Uint8Array(bytes)
  expect(pages.read(place, into)).toBe(expected)
  expect(into.subarray(0, expected).every((value, i) => value === at(place + i))).toBe(true)
}

test('reads of every size and place give what is there', () => {
  const { pages } = file()
  for (const bytes of [0, 1, 100, 8191, 8192, 8193, 100_000]) {
    for (const place of [0, 1, 8000, 8192, 123_456]) expectRead(pages, place, bytes)
  }
  expectRead(pages, SIZE - 10, 10)
  expectRead(pages, SIZE - 10, 20, 10)
  expectRead(pages, SIZE, 20, 0)
})

test('what is small and near is read once, until it is forgotten', () => {
  const { pages, calls } = file()
  for (let i = 0; i < 80; i++) expectRead(pages, 100 * i, 100)
  expect(calls).toEqual([8192])
  pages.forget()
  expectRead(pages, 0, 100)
  expect(calls.length).toBe(2)
  // More pages than are kept, then the first again.
  for (let page = 0; page < 600; page++) expectRead(pages, 8192 * page, 10)
  const before = calls.length
  expectRead(pages, 8192 * 599, 10)
  expect(calls.length).toBe(before)
  expectRead(pages, 0, 10)
  expect(calls.length).toBe(before + 1)
})
