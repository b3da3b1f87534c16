// The page first; the core and the bundled models when the page asks for them to be kept.
const CACHE = 'modegpt-__VERSION__'
const SHELL = JSON.parse('__SHELL__')
const LATE = JSON.parse('__LATE__')

self.addEventListener('install', (event) => {
  event.waitUntil(caches.open(CACHE).then((cache) => cache.addAll(SHELL)).then(() => self.skipWaiting()))
})

self.addEventListener('activate', (event) => {
  const old = (names) => names.filter((name) => name.startsWith('modegpt-') && name !== CACHE)
  event.waitUntil(
    caches.keys().then((names) => Promise.all(old(names).map((name) => caches.delete(name)))).then(() => self.clients.claim()),
  )
})

self.addEventListener('message', (event) => {
  if (event.data !== 'keep') return
  const port = event.ports[0]
  const keep = async () => {
    const cache = await caches.open(CACHE)
    const missing = []
    for (const file of LATE) if (!(await cache.match(file))) missing.push(file)
    await cache.addAll(missing)
  }
  event.waitUntil(keep().then(() => port?.postMessage('kept'), (error) => port?.postMessage(String(error))))
})

self.addEventListener('fetch', (event) => {
  const { request } = event
  if (request.method !== 'GET' || new URL(request.url).origin !== location.origin) return
  event.respondWith(request.mode === 'navigate' ? newest(request) : kept(request))
})

/** The page itself: from the network while there is one. */
async function newest(request) {
  try {
    return await fetch(request)
  } catch {
    const cache = await caches.open(CACHE)
    return (await cache.match('./')) ?? Response.error()
  }
}

/** Everything else carries its version in its name, or belongs to this version of the page. */
async function kept(request) {
  const cache = await caches.open(CACHE)
  const found = await cache.match(request)
  return found ?? fetch(request)
}
