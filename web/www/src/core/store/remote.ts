/** Files of a server, read in parts. What a server says is not believed: every answer is held against what was asked for. */

/** A file on a server: its size in bytes, and the tag that its content has had so far. */
export interface RemoteFile {
  readonly size: number
  readonly tag: string | null
}

/** Files that are read whole are small: configurations and tokenizers. */
const WHOLE_LIMIT_BYTES = 256 << 20

/** The connection was lost, which may mend itself. */
export class Dropped extends Error {}

/** What a folder of a server is called in messages. */
export function hostOf(base: string): string {
  return new URL(base).host
}

/** Looks at a file, by its first byte; `null` if there is none. */
export async function look(url: string, signal: AbortSignal): Promise<RemoteFile | null> {
  const response = await request(url, signal, 'bytes=0-0')
  if (response === null) return null
  const { size, tag } = checked(response, url, 0, 1)
  await response.body?.cancel()
  return { size, tag }
}

/** A small file; `null` if there is none. */
export async function whole(url: string, signal: AbortSignal): Promise<{ content: Uint8Array<ArrayBuffer>; tag: string | null } | null> {
  const response = await request(url, signal)
  if (response === null) return null
  const parts: Uint8Array<ArrayBuffer>[] = []
  let bytes = 0
  for await (const part of pieces(response, url)) {
    bytes += part.length
    if (bytes > WHOLE_LIMIT_BYTES) throw new Error(`${url} is larger than any ${fileOf(url)} should be`)
    parts.push(part)
  }
  return { content: new Uint8Array(await new Blob(parts).arrayBuffer()), tag: response.headers.get('etag') }
}

/** The bytes from `begin` up to `end`, piece by piece; `file` is what was known of it before. */
export async function* range(url: string, begin: number, end: number, file: RemoteFile, signal: AbortSignal) {
  const response = await request(url, signal, `bytes=${begin}-${end - 1}`)
  if (response === null) throw new Error(`${url} is gone`)
  const { size, tag } = checked(response, url, begin, end)
  if (size !== file.size || tag !== file.tag) {
    await response.body?.cancel()
    throw new Error(`${url} was changed on the server meanwhile: remove what is kept of it, and begin anew`)
  }
  let left = end - begin
  for await (const piece of pieces(response, url)) {
    left -= piece.length
    if (left < 0) throw new Error(`${url}: the server sent more than the ${end - begin} bytes that were asked for`)
    yield piece
  }
  if (left > 0) throw new Dropped(`${url}: the server sent ${left} bytes less than it had announced`)
}

async function request(url: string, signal: AbortSignal, bytes?: string): Promise<Response | null> {
  const headers: Record<string, string> = bytes === undefined ? {} : { range: bytes }
  const response = await fetch(url, { headers, signal, credentials: 'omit', cache: 'no-store' }).catch((error: unknown) => {
    if (signal.aborted) throw error
    throw new Dropped(`cannot reach ${hostOf(url)}: there is no connection, or it does not allow other pages to read (CORS)`)
  })
  if (response.ok) return response
  await response.body?.cancel()
  if (response.status === 404) return null
  const why = response.status === 401 || response.status === 403 ? ': the model is private, gated, or does not exist' : ''
  const text = `${url}: the server answers ${response.status} ${response.statusText}${why}`
  throw response.status >= 500 || response.status === 429 ? new Dropped(text) : new Error(text)
}

/** Size and tag by the head of an answer to the request for `begin` up to `end`. */
function checked(response: Response, url: string, begin: number, end: number): RemoteFile {
  const refuse = (text: string): never => {
    void response.body?.cancel()
    throw new Error(`${hostOf(url)} ${text}`)
  }
  if (response.status !== 206) refuse('cannot send parts of a file, which a model takes (it answers range requests with the whole)')
  const text = response.headers.get('content-range')
  if (text === null) return refuse('does not show other pages its header Content-Range (Access-Control-Expose-Headers)')
  const found = /^bytes (\d+)-(\d+)\/(\d+)$/.exec(text)?.slice(1).map(Number)
  const [from, to, size] = found ?? []
  if (from !== begin || to !== end - 1 || size === undefined || size < end || !Number.isSafeInteger(size)) {
    return refuse(`was asked for bytes ${begin}-${end - 1} of ${fileOf(url)}, and says that it sends “${text}”`)
  }
  return { size, tag: response.headers.get('etag') }
}

async function* pieces(response: Response, url: string): AsyncGenerator<Uint8Array<ArrayBuffer>> {
  const reader = response.body?.getReader()
  if (reader === undefined) return
  try {
    for (;;) {
      const { done, value } = await reader.read().catch((error: unknown) => {
        if (error instanceof DOMException && error.name === 'AbortError') throw error
        throw new Dropped(`${url}: the connection was lost`)
      })
      if (done) return
      yield value
    }
  } finally {
    await reader.cancel().catch(() => undefined)
  }
}

function fileOf(url: string): string {
  return url.slice(url.lastIndexOf('/') + 1)
}
