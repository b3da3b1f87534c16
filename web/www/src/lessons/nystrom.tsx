import { useMemo, useState } from 'preact/hooks'
import formula from 'virtual:formula/nystrom'

import { Matrix } from '../math/matrix.ts'
import { choices, dropError, leverageScores, mixing, refitError } from '../math/nystrom.ts'
import { normal } from '../math/random.ts'
import { useIndices } from '../place.ts'
import { hiddenGram, weight } from '../session.ts'
import { Figure } from '../ui/controls.tsx'
import { Formula, Lighting, Symbol } from '../ui/formula.tsx'
import { percent } from '../ui/number.ts'
import { OnRealData, type Seen } from './real_layer.tsx'

const N_UNITS = 8
const N_TOKENS = 44
const RIDGE = 0.02

/** Eight hidden units that follow three causes, some of them twice: activations after ReLU, one row a token. */
export const HIDDEN = ((): Matrix => {
  const next = normal(21)
  const causes = Array.from({ length: 3 }, () => {
    let level = 0
    return Array.from({ length: N_TOKENS }, () => (level = 0.72 * level + 0.7 * next()))
  })
  const follows = [
    [1, 0, 0],
    [0.9, 0.1, 0],
    [0, 1, 0],
    [0.5, 0.6, 0],
    [0, -1, 0.2],
    [0, 0, 1],
    [0.1, 0, -0.9],
    [0.4, 0.3, 0.5],
  ]
  return Matrix.from(N_TOKENS, N_UNITS, (token, unit) => {
    const mixed = (follows[unit] ?? []).reduce((sum, share, cause) => sum + share * (causes[cause]?.[token] ?? 0), 0)
    return Math.max(0, 0.35 + mixed + 0.06 * next())
  })
})()

export const DOWN = ((): Matrix => {
  const next = normal(5)
  return Matrix.from(N_UNITS, 4, () => next())
})()

/** Hidden units with all that the figure needs of them. */
interface Subject {
  readonly names: readonly string[]
  readonly gram: Matrix
  readonly down: Matrix
  /** Activations, one row a token, where they are known. */
  readonly hidden?: Matrix
}

const EXAMPLE: Subject = { names: Array.from({ length: N_UNITS }, (_, unit) => `unit ${unit + 1}`), gram: HIDDEN.gram, down: DOWN, hidden: HIDDEN }

/** The loudest units of a real layer. */
async function loudest({ layer, activations }: Seen): Promise<Subject> {
  const units = largest(activations.hidden_energy, N_UNITS)
  const down = await weight(layer, 'down')
  const rows = new Matrix(down.rows, down.cols, down.data).rowsAt(units)
  const gram = new Matrix(N_UNITS, N_UNITS, await hiddenGram(layer, units))
  return { names: units.map((unit) => `unit ${unit}`), gram, down: rows }
}

export function NystromLesson() {
  const [kept, setKept] = useIndices('kept', [0, 1, 2], N_UNITS)
  const [{ title, subject }, setShown] = useState({ title: '', subject: EXAMPLE })
  const { names, gram, down, hidden } = subject
  const scores = useMemo(() => leverageScores(gram, RIDGE), [gram])
  const k = kept.length
  const byLeverage = useMemo(() => largest(scores, k), [scores, k])
  const best = useMemo(() => (k === 0 ? [] : bestChoice(subject, k)), [subject, k])
  const mixed = useMemo(() => (k === 0 ? undefined : mixing(gram, kept)), [gram, kept.join()])
  const rebuilt = useMemo(() => (mixed === undefined ? undefined : hidden?.columns(kept).times(mixed)), [mixed, hidden])
  const toggle = (unit: number) => setKept(kept.includes(unit) ? kept.filter((other) => other !== unit) : [...kept, unit])
  return (
    <Lighting class="lesson-body">
      <p>
        Half of each layer of a language model is an MLP: one map up to many hidden units, and one map down again, which adds up what they
        say. Here are eight units, and how strongly each answers to {N_TOKENS} tokens, the pieces of a text. Many say the same thing, so some can
        go, if the <Symbol name="kept">ones that stay</Symbol> carry the <Symbol name="dropped">others’</Symbol> part.
      </p>
      <p class="do">
        Choose which units stay. Which three would you keep? The bar under each name is its{' '}
        <Symbol name="leverage">leverage score</Symbol>: how hard it is to replace.
      </p>
      <figure class="panel">
        {title !== '' && (
          <p class="caption">
            the {N_UNITS} loudest hidden units of {title}; each bar tells how much of a unit another one has in it
          </p>
        )}
        <div class="units">
          {names.map((name, unit) => {
            const stays = kept.includes(unit)
            return (
              <button
                type="button"
                key={unit}
                class={`unit ${stays ? 'kept' : 'dropped'}`}
                aria-pressed={stays}
                data-symbol={stays ? 'kept' : 'dropped'}
                onClick={() => toggle(unit)}
              >
                <span class="name">{name}</span>
                {hidden === undefined ? (
                  <Likeness gram={gram} unit={unit} />
                ) : (
                  <Activity exact={hidden.column(unit)} rebuilt={stays ? undefined : rebuilt?.column(unit)} />
                )}
                <span class="score" data-symbol="leverage" title="ridge leverage score">
                  <span style={{ width: `${100 * (scores[unit] ?? 0)}%` }} />
                </span>
                <span class="state">{stays ? 'stays' : 'goes'}</span>
              </button>
            )
          })}
        </div>
        <div class="numbers">
          <Figure value={percent(dropError(gram, down, kept))} label="lost, the others cut off" tone="lost" />
          <Figure value={percent(refitError(gram, down, kept))} label="lost, the others carried" tone="kept" symbol="refit" />
          <Figure value={k === 0 ? '–' : percent(refitError(gram, down, byLeverage))} label={`by leverage, ${k} units`} symbol="leverage" />
          <Figure value={k === 0 ? '–' : percent(refitError(gram, down, best))} label={`the best ${k} of all choices`} />
        </div>
        <div class="buttons">
          <button type="button" disabled={k === 0} onClick={() => setKept(byLeverage)}>
            Choose by leverage
          </button>
          <button type="button" disabled={k === 0} onClick={() => setKept(best)}>
            Show the best {k}
          </button>
        </div>
        <OnRealData
          what="hidden units"
          isShown={subject !== EXAMPLE}
          onBack={() => setShown({ title: '', subject: EXAMPLE })}
          onSeen={async (seen) => setShown({ title: seen.title, subject: await loudest(seen) })}
        />
      </figure>
      <Formula html={formula} />
      <p>
        Where a unit goes, the thin line is what the kept units make of it. The down map is fitted anew by least squares, so that it
        takes their word for the missing ones. That is why two units that say the same are one too many, and why a loud unit may go while a
        lonely one must stay: the <Symbol name="leverage">leverage score</Symbol> is large for units that no others can replace. Trying
        all choices is possible for eight units, and hopeless for a thousand. The scores of a real layer are in{' '}
        <a href="#/explore?matrix=up">Explore</a>.
      </p>
      <p class="caption">
        In the formula: H has a row for each token and a column for each unit, J are the units that stay, W is the down map, and C = HᵀH is the
        Gram matrix, as in the lesson before. The small number λ, the ridge, keeps the inverse from growing without bounds.
      </p>
    </Lighting>
  )
}

function largest(scores: readonly number[], k: number): number[] {
  const order = scores.map((_, i) => i).sort((a, b) => (scores[b] ?? 0) - (scores[a] ?? 0))
  return order.slice(0, k).sort((a, b) => a - b)
}

function bestChoice({ gram, down }: Subject, k: number): number[] {
  const all = choices(N_UNITS, k).map((kept) => ({ kept, error: refitError(gram, down, kept) }))
  return all.reduce((best, one) => (one.error < best.error ? one : best)).kept
}

/** The squared cosines of a unit with all of them. */
function Likeness({ gram, unit }: { gram: Matrix; unit: number }) {
  const square = (other: number) => gram.get(unit, other) ** 2 / (gram.get(unit, unit) * gram.get(other, other) || 1)
  return (
    <svg viewBox="0 0 200 38" preserveAspectRatio="none" aria-hidden="true">
      {Array.from({ length: gram.rows }, (_, other) => (
        <rect key={other} class="exact" x={25 * other + 3} width={19} y={36 - 34 * square(other)} height={34 * square(other)} />
      ))}
    </svg>
  )
}

function Activity({ exact, rebuilt }: { exact: readonly number[]; rebuilt: readonly number[] | undefined }) {
  const path = (values: readonly number[]) => values.map((value, i) => `${(i * 200) / (N_TOKENS - 1)},${36 - 13 * value}`).join(' ')
  return (
    <svg viewBox="0 0 200 38" preserveAspectRatio="none" aria-hidden="true">
      <polygon class="exact" points={`0,36 ${path(exact)} 200,36`} />
      {rebuilt !== undefined && <polyline class="rebuilt" points={path(rebuilt)} />}
    </svg>
  )
}
