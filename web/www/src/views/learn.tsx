import type { ComponentType } from 'preact'
import { useEffect, useRef } from 'preact/hooks'

import { SvdLesson } from '../lessons/svd.tsx'
import { address, go, type Lesson, LESSONS, usePlace } from '../place.ts'
import { Later } from '../ui/later.tsx'

const TITLES: Record<Lesson, readonly [string, string]> = {
  svd: ['A matrix by its rank', 'SVD'],
  metric: ['Near for whom?', 'the data’s metric'],
  nystrom: ['Those who stay carry the rest', 'Nyström'],
  cr: ['A product by few columns', 'CR'],
  allocation: ['Who pays?', 'allocation'],
}
/** All but the first, which is the first view. */
const LATER: Record<Exclude<Lesson, 'svd'>, () => Promise<ComponentType>> = {
  metric: () => import('../lessons/metric.tsx').then(({ MetricLesson }) => MetricLesson),
  nystrom: () => import('../lessons/nystrom.tsx').then(({ NystromLesson }) => NystromLesson),
  cr: () => import('../lessons/cr.tsx').then(({ CrLesson }) => CrLesson),
  allocation: () => import('../lessons/allocation.tsx').then(({ AllocationLesson }) => AllocationLesson),
}

export function Learn() {
  const { lesson } = usePlace()
  const number = LESSONS.indexOf(lesson)
  const next = LESSONS[number + 1]
  const list = useRef<HTMLOListElement>(null)
  useEffect(() => {
    list.current?.querySelector('[aria-current]')?.scrollIntoView({ block: 'nearest', inline: 'nearest' })
  }, [lesson])
  const open = (lesson: Lesson) => (event: MouseEvent) => (event.preventDefault(), go('learn', lesson))
  return (
    <div class="learn">
      <nav class="lessons" aria-label="Lessons">
        <ol ref={list}>
          {LESSONS.map((one) => (
            <li key={one}>
              <a href={address('learn', one)} aria-current={one === lesson ? 'page' : undefined} onClick={open(one)}>
                {TITLES[one][1]}
              </a>
            </li>
          ))}
        </ol>
      </nav>
      <article key={lesson}>
        <p class="kicker">
          Lesson {number + 1} of {LESSONS.length}
        </p>
        <h1>{TITLES[lesson][0]}</h1>
        {lesson === 'svd' ? <SvdLesson /> : <Later load={LATER[lesson]} />}
        <p class="next">
          {next === undefined ? (
            <a href={address('compress')} onClick={(event) => (event.preventDefault(), go('compress'))}>
              Now compress a model →
            </a>
          ) : (
            <a href={address('learn', next)} onClick={open(next)}>
              Next: {TITLES[next][0]} →
            </a>
          )}
        </p>
      </article>
    </div>
  )
}
