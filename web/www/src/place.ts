/** Where the reader is: one plain object, which the URL holds, so that a link shows the same view. */
import { useEffect, useState } from 'preact/hooks'

export const VIEWS = ['learn', 'explore', 'compress'] as const
export type View = (typeof VIEWS)[number]

export const LESSONS = ['svd', 'metric', 'nystrom', 'cr', 'allocation'] as const
export type Lesson = (typeof LESSONS)[number]

export interface Place {
  readonly view: View
  readonly lesson: Lesson
  /** What was set in this view; what was not has its default. */
  readonly params: Readonly<Record<string, string>>
}

/** `#/learn/svd?rank=5`, `#/explore?layer=2`. What cannot be read is as if it were not there. */
export function parsePlace(hash: string): Place {
  const [path = '', query = ''] = hash.replace(/^#\/?/, '').split('?')
  const [view = '', lesson = ''] = path.split('/')
  return {
    view: VIEWS.find((known) => known === view) ?? 'learn',
    lesson: LESSONS.find((known) => known === lesson) ?? 'svd',
    params: Object.fromEntries(new URLSearchParams(query)),
  }
}

export function formatPlace({ view, lesson, params }: Place): string {
  const path = view === 'learn' ? `learn/${lesson}` : view
  const query = new URLSearchParams(Object.entries(params).sort(([a], [b]) => a.localeCompare(b))).toString()
  return `#/${path}${query === '' ? '' : `?${query}`}`
}

/** These follow the reader from view to view. */
const SHARED = ['model', 'endpoint', 'device', 'memory', 'layer']

let place: Place = parsePlace('')
const listeners = new Set<(place: Place) => void>()
const remembered = new Map<string, Place['params']>()
let writing: ReturnType<typeof setTimeout> | undefined

/** Begins to follow the address bar. */
export function followAddress(): void {
  place = parsePlace(location.hash)
  addEventListener('hashchange', () => move(parsePlace(location.hash)))
}

/** Whether the address names nothing but the view that a reader sees who comes without one. */
export function isFirstView(): boolean {
  return formatPlace(place) === formatPlace(parsePlace(''))
}

export function currentPlace(): Place {
  return place
}

/** Goes to another view or lesson, where everything is as it was left. */
export function go(view: View, lesson: Lesson = place.lesson, params: Record<string, string> = {}): void {
  history.pushState(null, '', address(view, lesson, params))
  move(parsePlace(location.hash))
}

/** The link to another view or lesson. */
export function address(view: View, lesson: Lesson = place.lesson, params: Record<string, string> = {}): string {
  const key = view === 'learn' ? `learn/${lesson}` : view
  const shared = Object.fromEntries(SHARED.flatMap((name) => (name in place.params ? [[name, place.params[name] as string]] : [])))
  return formatPlace({ view, lesson, params: { ...remembered.get(key), ...shared, ...params } })
}

/** Sets what the reader changed; `undefined` takes it back to its default. */
export function setParams(changes: Readonly<Record<string, string | undefined>>): void {
  const params = { ...place.params, ...changes }
  const kept = Object.entries(params).filter((entry): entry is [string, string] => entry[1] !== undefined)
  move({ ...place, params: Object.fromEntries(kept) })
  // Browsers allow few changes of the address a second, and a drag makes many.
  clearTimeout(writing)
  writing = setTimeout(() => history.replaceState(null, '', formatPlace(place)), 200)
}

function move(next: Place): void {
  place = next
  remembered.set(next.view === 'learn' ? `learn/${next.lesson}` : next.view, next.params)
  for (const listener of listeners) listener(next)
}

export function usePlace(): Place {
  const [value, setValue] = useState(place)
  useEffect(() => {
    setValue(place)
    listeners.add(setValue)
    return () => void listeners.delete(setValue)
  }, [])
  return value
}

/** A number in the address, held within its range. */
export function useNumber(name: string, fallback: number, low: number, high: number): [number, (value: number) => void] {
  const text = usePlace().params[name]
  const value = text === undefined || !Number.isFinite(Number(text)) ? fallback : Number(text)
  const digits = (value: number) => String(Number(value.toPrecision(6)))
  const set = (value: number) => setParams({ [name]: value === fallback ? undefined : digits(value) })
  return [Math.min(high, Math.max(low, value)), set]
}

/** One of a few words in the address. */
export function useChoice<T extends string>(name: string, choices: readonly [T, ...T[]]): [T, (value: T) => void] {
  const text = usePlace().params[name]
  const value = choices.find((choice) => choice === text) ?? choices[0]
  return [value, (value) => setParams({ [name]: value === choices[0] ? undefined : value })]
}

/** A few indices in the address, such as `0.3.5`. */
export function useIndices(name: string, fallback: readonly number[], n: number): [number[], (value: readonly number[]) => void] {
  const text = usePlace().params[name]
  const parsed = text === undefined ? [...fallback] : text.split('.').filter((part) => part !== '').map(Number)
  const valid = [...new Set(parsed)].filter((index) => Number.isInteger(index) && index >= 0 && index < n)
  const set = (value: readonly number[]) => setParams({ [name]: [...value].sort((a, b) => a - b).join('.') })
  return [valid.sort((a, b) => a - b), set]
}
