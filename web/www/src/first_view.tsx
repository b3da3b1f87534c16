import { renderToString } from 'preact-render-to-string'

import { App } from './app.tsx'

/** What a reader sees who comes without an address of a view, as HTML. */
export function firstView(): string {
  return renderToString(<App />)
}
