import './style.css'

import { render } from 'preact'

import { App } from './app.tsx'
import { followAddress } from './place.ts'

followAddress()
const root = document.getElementById('app')
if (root !== null) {
  root.replaceChildren()
  render(<App />, root)
}
if (import.meta.env.PROD && 'serviceWorker' in navigator) {
  // The page works without; what a failed registration takes away is the next visit without a network.
  addEventListener('load', () => navigator.serviceWorker.register('sw.js').catch(() => undefined))
}
