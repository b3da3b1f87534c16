import type { ComponentType } from 'preact'
import { useEffect, useRef, useState } from 'preact/hooks'

import { address, go, usePlace, type View, VIEWS } from './place.ts'
import { Later } from './ui/later.tsx'
import { Learn } from './views/learn.tsx'

const TITLES: Record<View, string> = { learn: 'Learn', explore: 'Explore', compress: 'Compress' }

/** What the first view does without is loaded when it is asked for. */
const LATER: Record<Exclude<View, 'learn'>, () => Promise<ComponentType>> = {
  explore: () => import('./views/explore.tsx').then(({ Explore }) => Explore),
  compress: () => import('./views/compress.tsx').then(({ Compress }) => Compress),
}

export function App() {
  const { view, lesson } = usePlace()
  const main = useRef<HTMLElement>(null)
  const begun = useRef(false)
  useEffect(() => {
    // After a change of view, readers of the screen begin at its top.
    if (begun.current) main.current?.focus({ preventScroll: true })
    begun.current = true
    scrollTo(0, 0)
  }, [view, lesson])
  return (
    <>
      <a class="skip" href="#main" onClick={(event) => (event.preventDefault(), main.current?.focus())}>
        Skip to the content
      </a>
      <header>
        <a class="mark" href={address('learn', 'svd')} onClick={(event) => (event.preventDefault(), go('learn', 'svd'))}>
          modegpt <span>studio</span>
        </a>
        <nav aria-label="Views">
          {VIEWS.map((known) => (
            <a
              key={known}
              href={address(known)}
              aria-current={known === view ? 'page' : undefined}
              onClick={(event) => (event.preventDefault(), go(known))}
            >
              {TITLES[known]}
            </a>
          ))}
        </nav>
      </header>
      <main id="main" ref={main} tabIndex={-1}>
        {view === 'learn' ? <Learn /> : <Later key={view} load={LATER[view]} />}
      </main>
      <footer>
        <p>
          Everything is computed in your browser, by the same Rust core as the command line. Nothing is uploaded.{' '}
          <KeepOffline />
        </p>
        <p>
          After <i>MoDeGPT: Modular Decomposition for Large Language Model Compression</i>,{' '}
          <a href="https://arxiv.org/abs/2408.09632">arXiv:2408.09632</a>.
        </p>
      </footer>
    </>
  )
}

/** Asks the service worker to keep the core and the bundled models as well. */
function KeepOffline() {
  const [state, setState] = useState<'impossible' | 'unasked' | 'busy' | 'kept' | 'failed'>('impossible')
  // Asked late, since the first view is drawn while the page is built, where there is no browser to ask.
  useEffect(() => {
    if (import.meta.env.PROD && 'serviceWorker' in navigator) setState('unasked')
  }, [])
  const keep = async () => {
    setState('busy')
    const { active } = await navigator.serviceWorker.ready
    const channel = new MessageChannel()
    channel.port1.onmessage = ({ data }) => setState(data === 'kept' ? 'kept' : 'failed')
    active?.postMessage('keep', [channel.port2])
  }
  const words = {
    unasked: 'Keep all of it for use without a network',
    busy: 'fetching …',
    kept: 'All of it is kept for use without a network.',
    failed: 'It could not be kept. Try again',
  }
  if (state === 'impossible') return null
  if (state === 'kept') return <span role="status">{words.kept}</span>
  return (
    <button type="button" class="plain" disabled={state === 'busy'} onClick={() => void keep()}>
      {words[state]}
    </button>
  )
}
