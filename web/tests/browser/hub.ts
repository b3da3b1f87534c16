/** A server of models on loopback that counts what it is asked for, and can be as faulty as servers are. */
import { once } from 'node:events'
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http'

export interface Faults {
  /** Answers range requests with the whole. */
  noRanges?: boolean
  /** Lets no other page read. */
  noCors?: boolean
  /** Hides the header that says which part an answer is. */
  hidden?: boolean
  /** Breaks every connection after so many bytes of weights. */
  breakAfter?: number
  /** Sends so many bytes more than were asked for, or fewer than announced if negative. */
  excess?: number
  /** Claims that weights have so many bytes. */
  claims?: number
  /** Sends another part than was asked for. */
  shifted?: boolean
  /** Milliseconds between pieces of 64 KiB. */
  slow?: number
  /** The content's tag. */
  tag?: string
}

/** A file, perhaps one that is too large to be anywhere. */
export interface Content {
  readonly length: number
  subarray(begin: number, end: number): Buffer
}

export interface Hub {
  readonly address: string
  /** By path, such as `org/name/resolve/main/config.json`. */
  readonly files: Map<string, Content>
  faults: Faults
  /** Every request for weights: its range, and the bytes that were sent. */
  readonly asked: { path: string; begin: number; end: number; sent: number }[]
  close(): Promise<void>
}

const PIECE = 64 << 10

export async function hub(files: Record<string, Content>, port = 0): Promise<Hub> {
  const asked: Hub['asked'] = []
  const state = { files: new Map(Object.entries(files)), faults: {} as Faults }
  const server: Server = createServer((request, response) => void answer(request, response, state, asked))
  server.listen(port, '127.0.0.1')
  await once(server, 'listening')
  const place = server.address()
  const address = typeof place === 'object' && place !== null ? `http://127.0.0.1:${place.port}` : ''
  const close = async () => {
    server.closeAllConnections()
    server.close()
    await once(server, 'close')
  }
  return Object.assign(state, { address, asked, close })
}

async function answer(request: IncomingMessage, response: ServerResponse, { files, faults }: Pick<Hub, 'files' | 'faults'>, asked: Hub['asked']) {
  const path = decodeURIComponent((request.url ?? '').slice(1))
  const content = files.get(path)
  const cors: Record<string, string> = faults.noCors ? {} : { 'access-control-allow-origin': '*' }
  if (!faults.hidden) cors['access-control-expose-headers'] = 'Content-Range, ETag'
  if (content === undefined) return response.writeHead(404, cors).end()
  const isWeights = /\.(safetensors|bin)$/.test(path)
  const range = /^bytes=(\d+)-(\d+)$/.exec(request.headers.range ?? '')
  const tag = { etag: `"${faults.tag ?? 'first'}"` }
  if (range === null || (isWeights && faults.noRanges)) {
    return response.writeHead(200, { ...cors, ...tag, 'content-length': content.length }).end(content.subarray(0, content.length))
  }
  const begin = Number(range[1]) + (faults.shifted && Number(range[1]) > 0 ? 1 : 0)
  const end = Math.min(Number(range[2]) + 1, content.length)
  const record = { path, begin, end, sent: 0 }
  if (isWeights) asked.push(record)
  const excess = begin === 0 && end === 1 ? 0 : (faults.excess ?? 0)
  response.writeHead(206, {
    ...cors,
    ...tag,
    'content-range': `bytes ${begin}-${end - 1}/${isWeights ? (faults.claims ?? content.length) : content.length}`,
    'content-length': end - begin + Math.max(0, excess),
  })
  const whole = Buffer.concat([content.subarray(begin, end + Math.min(0, excess)), Buffer.alloc(Math.max(0, excess))])
  for (let at = 0; at < whole.length; at += PIECE) {
    if (response.destroyed) return
    const piece = whole.subarray(at, Math.min(at + PIECE, whole.length))
    response.write(piece)
    record.sent += piece.length
    if (faults.slow !== undefined) await new Promise((resolve) => setTimeout(resolve, faults.slow))
    if (isWeights && faults.breakAfter !== undefined && record.sent >= faults.breakAfter) return await broken(response)
  }
  if (excess < 0) return await broken(response)
  response.end()
}

/** Breaks the connection when what was written has been sent. */
async function broken(response: ServerResponse): Promise<void> {
  await new Promise((resolve) => setTimeout(resolve, 30))
  response.destroy()
}

/** A safetensors file as two shards and their index. */
export function sharded(file: Buffer): Record<string, Buffer> {
  const headerBytes = Number(file.readBigUInt64LE(0))
  const header: Record<string, { data_offsets: [number, number] }> = JSON.parse(file.subarray(8, 8 + headerBytes).toString())
  const data = file.subarray(8 + headerBytes)
  const tensors = Object.entries(header).filter(([name]) => name !== '__metadata__').sort(([, a], [, b]) => a.data_offsets[0] - b.data_offsets[0])
  const half = Math.floor(tensors.length / 2)
  const names = ['model-00001-of-00002.safetensors', 'model-00002-of-00002.safetensors'] as const
  const map: Record<string, string> = {}
  const shard = (some: typeof tensors, name: string) => {
    let next = 0
    const parts: Buffer[] = []
    const own: Record<string, unknown> = {}
    for (const [tensor, about] of some) {
      const content = data.subarray(...about.data_offsets)
      own[tensor] = { ...about, data_offsets: [next, (next += content.length)] }
      parts.push(content)
      map[tensor] = name
    }
    const text = Buffer.from(JSON.stringify(own))
    const length = Buffer.alloc(8)
    length.writeBigUInt64LE(BigInt(text.length))
    return Buffer.concat([length, text, ...parts])
  }
  const shards = { [names[0]]: shard(tensors.slice(0, half), names[0]), [names[1]]: shard(tensors.slice(half), names[1]) }
  return { ...shards, 'model.safetensors.index.json': Buffer.from(JSON.stringify({ metadata: {}, weight_map: map })) }
}
