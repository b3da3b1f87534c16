import { expect, test } from 'vitest'

import { BLOCK_BYTES, Blocks } from '../../www/src/core/store/blocks.ts'
import { KeptFile } from '../../www/src/core/store/kept.ts'

/** A folder of a browser, in memory: as much of it as is used. */
function folder(): { handle: FileSystemDirectoryHandle; contents: Map<string, Uint8Array<ArrayBuffer>> } {
  const contents = new Map<string, Uint8Array<ArrayBuffer>>()
  const access = (name: string) => {
    const content = () => contents.get(name) ?? new Uint8Array()
    const bytes = (view: ArrayBufferView<ArrayBuffer>) => new Uint8Array(view.buffer, view.byteOffset, view.byteLength)
    return {
      getSize: () => content().length,
      read(into: ArrayBufferView<ArrayBuffer>, { at }: { at: number }) {
        const part = content().subarray(at, at + into.byteLength)
        bytes(into).set(part)
        return part.length
      },
      write(from: ArrayBufferView<ArrayBuffer>, { at }: { at: number }) {
        const grown = new Uint8Array(Math.max(content().length, at + from.byteLength))
        grown.set(content())
        grown.set(bytes(from), at)
        contents.set(name, grown)
        return from.byteLength
      },
      flush() {},
      close() {},
    }
  }
  const handle = { getFileHandle: async (name: string) => ({ createSyncAccessHandle: async () => access(name) }) }
  return { handle: handle as unknown as FileSystemDirectoryHandle, contents }
}

const block = (value: number, bytes = BLOCK_BYTES) => new Uint8Array(bytes).fill(value)

function present(blocks: Blocks, n: number): number[] {
  return [...Array(n).keys()].filter((i) => blocks.has(i))
}

test('the blocks used longest ago make way, and their places are used again', async () => {
  const { handle, contents } = folder()
  const blocks = await Blocks.open(handle, 6)
  blocks.most = 3
  for (const i of [0, 1, 2]) blocks.write(i, block(i))
  blocks.use(0)
  blocks.write(3, block(3))
  expect([present(blocks, 6), blocks.count]).toEqual([[0, 2, 3], 3])
  blocks.write(0, block(9))
  blocks.write(5, block(5, 100))
  expect([present(blocks, 6), blocks.count]).toEqual([[0, 3, 5], 3])
  expect(contents.get('blocks.data')?.length).toBe(3 * BLOCK_BYTES)
  const found = new Uint8Array(2)
  blocks.read(0, BLOCK_BYTES - 2, found)
  expect([...found]).toEqual([9, 9])
  expect(() => blocks.read(1, 0, found)).toThrow('has lost')

  // As it was left it is found, and with less room more makes way.
  const again = await Blocks.open(handle, 6)
  expect(present(again, 6)).toEqual([0, 3, 5])
  again.use(5)
  again.most = 2
  again.write(4, block(4))
  expect(present(again, 6)).toEqual([4, 5])
  again.read(5, 98, found)
  expect([...found]).toEqual([5, 5])
})

test('a list that leads nowhere, or twice to one place, is not believed', async () => {
  const { handle, contents } = folder()
  const blocks = await Blocks.open(handle, 4)
  for (const i of [0, 1]) blocks.write(i, block(i))
  contents.set('blocks.list', new Uint8Array(Uint32Array.from([1, 1, 3, 0xffffffff]).buffer))
  expect(present(await Blocks.open(handle, 4), 4)).toEqual([0])
})

test('a file is read across its blocks, and tells which are missing', async () => {
  const { handle } = folder()
  const blocks = await Blocks.open(handle, 5)
  // The first block belongs to another file.
  const file = new KeptFile({ size: 3 * BLOCK_BYTES + 7, tag: null }, blocks, 1)
  expect(file.length).toBe(4)
  file.write(0, block(1))
  file.write(1, block(2))
  file.write(3, block(4, 7))
  expect(file.bytesHere).toBe(2 * BLOCK_BYTES + 7)
  const found = new Uint8Array(4)
  file.read(BLOCK_BYTES - 2, found)
  expect([...found]).toEqual([1, 1, 2, 2])
  expect(file.has({ offset: 10, bytes: 2 * BLOCK_BYTES - 10 })).toBe(true)
  expect(file.has({ offset: 10, bytes: 2 * BLOCK_BYTES })).toBe(false)
  expect(file.has({ offset: 3 * BLOCK_BYTES + 7, bytes: 0 })).toBe(true)
  const all = file.use([{ offset: 0, bytes: 3 * BLOCK_BYTES + 7 }])
  expect(file.missing(all, 8)).toEqual([[2, 3]])
  expect(new KeptFile({ size: 5 * BLOCK_BYTES, tag: null }, await Blocks.open(folder().handle, 5), 0).missing([0, 1, 2, 4], 2)).toEqual([[0, 2], [2, 3], [4, 5]])
})
