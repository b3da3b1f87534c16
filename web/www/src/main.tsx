import 'katex/dist/katex.min.css'
import './style.css'

import { hydrate, render } from 'preact'

import { App } from './app.tsx'
import { followAddress, isFirstView } from './place.ts'

followAddress()
const root = document.getElementById('app')
if (root !== null) {
  // The first view stands in the page already, drawn while it was built; see `build/first_view.ts`.
  if (root.hasChildNodes() && isFirstView()) hydrate(<App />, root)
  else {
    root.replaceChildren()
    render(<App />, root)
  }
}
if (import.meta.env.PROD && 'serviceWorker' in navigator) {
  // The page works without; what a failed registration takes away is the next visit without a network.
  addEventListener('load', () => navigator.serviceWorker.register('sw.js').catch(() => undefined))
}
