import type { ComponentChildren } from 'preact'
import { useEffect, useRef, useState } from 'preact/hooks'

import { useWidth } from './width.ts'

/** A formula that was typeset while the page was built: what `virtual:formula/NAME` holds. */
export function Formula({ html }: { html: string }) {
  const [holder, width] = useWidth<HTMLDivElement>(600)
  const [scrolls, setScrolls] = useState(false)
  useEffect(() => setScrolls(holder.current !== null && holder.current.scrollWidth > holder.current.clientWidth), [width])
  // What can be scrolled has to be reachable by keyboard.
  const reach = scrolls ? { tabIndex: 0, role: 'group', 'aria-label': 'Formula' } as const : {}
  return <div ref={holder} class="formula" dangerouslySetInnerHTML={{ __html: html }} {...reach} />
}

/** A word of the text that stands for a symbol of the formula and a part of the picture. */
export function Symbol({ name, children }: { name: string; children: ComponentChildren }) {
  return (
    <span class="symbol" data-symbol={name}>
      {children}
    </span>
  )
}

/** Lights up all that belongs to one symbol, in text, formula and picture, while the pointer or the focus is on any of it. */
export function Lighting({ children, class: name }: { children: ComponentChildren; class?: string }) {
  const root = useRef<HTMLDivElement>(null)
  useEffect(() => {
    const element = root.current
    if (element === null) return undefined
    const light = ({ target }: Event) => {
      const symbol = target instanceof Element ? target.closest<HTMLElement>('[data-symbol]')?.dataset['symbol'] : undefined
      for (const part of element.querySelectorAll<HTMLElement>('[data-symbol]')) {
        part.toggleAttribute('data-lit', part.dataset['symbol'] === symbol)
      }
      element.toggleAttribute('data-lighting', symbol !== undefined)
    }
    for (const event of ['pointerover', 'focusin', 'pointerleave', 'focusout']) element.addEventListener(event, light)
    return () => {
      for (const event of ['pointerover', 'focusin', 'pointerleave', 'focusout']) element.removeEventListener(event, light)
    }
  }, [])
  return (
    <div ref={root} class={name}>
      {children}
    </div>
  )
}
