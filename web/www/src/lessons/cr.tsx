import { useMemo, useState } from 'preact/hooks'
import formula from 'virtual:formula/cr'
import rotary from 'virtual:formula/rotary'

import { crScores, frequency, logits, rotated } from '../math/attention.ts'
import { Matrix } from '../math/matrix.ts'
import { normal } from '../math/random.ts'
import { useChoice, useIndices, useNumber } from '../place.ts'
import { Chart } from '../ui/chart.tsx'
import { Choice, Figure, Slider } from '../ui/controls.tsx'
import { Formula, Lighting, Symbol } from '../ui/formula.tsx'
import { Heatmap } from '../ui/heatmap.tsx'
import { percent } from '../ui/number.ts'
import { OnRealData, type Seen } from './real_layer.tsx'

const WIDTH = 8
const N_TOKENS = 14
/** Sizes of the coordinates of queries and keys; what counts is their product. */
const SIZES: readonly (readonly [number, number])[] = [
  [1.6, 1.1],
  [0.3, 1.7],
  [1.2, 1.3],
  [0.5, 0.4],
  [1.5, 0.2],
  [0.9, 1.0],
  [0.4, 0.9],
  [0.2, 0.3],
]
const QUERIES = sized(31, 0)
const KEYS = sized(32, 1)

function sized(seed: number, side: 0 | 1): Matrix {
  const next = normal(seed)
  return Matrix.from(N_TOKENS, WIDTH, (_, i) => next() * (SIZES[i]?.[side] ?? 0))
}

export function CrLesson() {
  const [seen, setSeen] = useState<Seen | null>(null)
  return (
    <Lighting class="lesson-body">
      <p>
        In attention every token asks with a vector, its <Symbol name="query">query</Symbol>, and offers another, its{' '}
        <Symbol name="key">key</Symbol>. Each query is compared with each key: multiplied coordinate by coordinate, and added up. The sum, a{' '}
        <Symbol name="logits">logit</Symbol>, says how much one token heeds another. So the table of all logits is a sum of simple tables, one for
        each coordinate: a column of the queries times a row of the keys, hence the name CR. Leave out the ones that add little.
      </p>
      <p class="do">Press the coordinates to keep or drop them.</p>
      <Columns />
      {seen !== null && <OnHead seen={seen} />}
      <OnRealData what="the scores of a head" isShown={seen !== null} onBack={() => setSeen(null)} onSeen={setSeen} />
      <Formula html={formula} />
      <p>
        A coordinate adds much only if it is large in the queries <em>and</em> in the keys: the <Symbol name="score">score</Symbol> is the product of
        both. Coordinate 5 is loud in the queries, and hardly any key answers.
      </p>
      <h2>Pairs that turn together</h2>
      <p>
        Models like Llama tell positions apart by turning: coordinates come in pairs, and each pair is an arrow that turns as the text goes
        on, every pair at its own pace. What two such arrows add to the logit depends on the angle between them alone. Had both turned a little
        further, that would be the same: so the logit knows the <em>distance</em> of two tokens, and not where in the text they stand.
      </p>
      <p class="do">Move both tokens along the text. Then break a pair.</p>
      <Arrows />
      <Formula html={rotary} />
      <p>
        Half a pair is a shadow of its arrow: it shrinks and grows as the arrow turns, and tokens at the same distance no longer have the
        same logit. Hence the rule: rotary pairs, as they are called, are kept or dropped whole, by the product of their energies in queries
        and keys. (In the formula R turns by the position, m and n, and δ is the angle of a pair before it turns.) Those of a real model are in{' '}
        <a href="#/explore?matrix=query&model=llama">Explore</a>.
      </p>
    </Lighting>
  )
}

/** The scores of a real head, the largest first; of rotary pairs where there are such. */
function OnHead({ seen: { title, activations } }: { seen: Seen }) {
  const scores = useMemo(() => [...(activations.query_key[0] ?? [])].sort((a, b) => b - a), [activations])
  const [n, setN] = useNumber('n', Math.round(0.7 * scores.length), 0, scores.length)
  const total = scores.reduce((a, b) => a + b, 0)
  const kept = scores.slice(0, n).reduce((a, b) => a + b, 0)
  const parts = activations.rotary_frequencies.length > 0 ? 'rotary pairs' : 'coordinates'
  return (
    <figure class="panel">
      <p class="caption">
        {parts} of the first head of {title}, sorted by score
      </p>
      <Chart
        label={`Scores of ${parts}, the largest first`}
        series={[{ name: 'score', values: scores, tone: 'kept', shape: 'bars', symbol: 'score' }]}
        xLabel={parts}
        yLabel="score"
        cut={{ value: n, onChange: setN, label: `${parts} that are kept` }}
      />
      <div class="numbers">
        <Figure value={`${n} of ${scores.length}`} label={`${parts} kept`} symbol="kept" />
        <Figure value={percent(total > 0 ? kept / total : 0)} label="of the scores’ sum kept" tone="kept" />
      </div>
    </figure>
  )
}

function Columns() {
  const [kept, setKept] = useIndices('kept', [0, 2], WIDTH)
  const scores = useMemo(() => crScores(QUERIES, KEYS), [])
  const exact = useMemo(() => logits(QUERIES, KEYS, [...Array(WIDTH).keys()]), [])
  const found = useMemo(() => (kept.length === 0 ? new Matrix(N_TOKENS, N_TOKENS) : logits(QUERIES, KEYS, kept)), [kept.join()])
  const scale = Math.max(...exact.data.map(Math.abs))
  const most = Math.max(...scores)
  const best = scores.map((_, i) => i).sort((a, b) => (scores[b] ?? 0) - (scores[a] ?? 0)).slice(0, kept.length)
  const toggle = (i: number) => setKept(kept.includes(i) ? kept.filter((other) => other !== i) : [...kept, i])
  const lost = exact.minus(found).energy / exact.energy
  return (
    <figure class="panel">
      <div class="pair">
        <div>
          <Heatmap matrix={exact} scale={scale} label="Logits through all coordinates" symbol="logits" />
          <p class="caption">all {WIDTH} coordinates</p>
        </div>
        <div>
          <Heatmap matrix={found} scale={scale} label={`Logits through ${kept.length} coordinates`} symbol="kept" />
          <p class="caption">the {kept.length} kept</p>
        </div>
      </div>
      <div class="columns" role="group" aria-label="Coordinates">
        {scores.map((score, i) => (
          <button
            type="button"
            key={i}
            class={kept.includes(i) ? 'kept' : 'dropped'}
            aria-pressed={kept.includes(i)}
            aria-label={`coordinate ${i + 1}, score ${(score / most).toFixed(2)} of the largest`}
            data-symbol={kept.includes(i) ? 'kept' : undefined}
            onClick={() => toggle(i)}
          >
            <span class="bars" aria-hidden="true">
              <i class="q" style={{ height: `${34 * (SIZES[i]?.[0] ?? 0)}px` }} />
              <i class="k" style={{ height: `${34 * (SIZES[i]?.[1] ?? 0)}px` }} />
            </span>
            <span class="s" style={{ width: `${(100 * score) / most}%` }} data-symbol="score" />
            {i + 1}
          </button>
        ))}
      </div>
      <ul class="legend">
        <li data-symbol="query">
          <span class="swatch data bars" /> size in the queries
        </li>
        <li data-symbol="key">
          <span class="swatch weight bars" /> size in the keys
        </li>
        <li data-symbol="score">
          <span class="swatch kept bars" /> score: their product
        </li>
      </ul>
      <div class="numbers">
        <Figure value={String(kept.length)} label={`of ${WIDTH} coordinates`} symbol="kept" />
        <Figure value={percent(lost)} label="of the energy lost" tone="lost" />
      </div>
      <div class="buttons">
        <button type="button" disabled={kept.length === 0} onClick={() => setKept(best)}>
          Choose {kept.length} by score
        </button>
      </div>
    </figure>
  )
}

const N_PAIRS = 3
const THETA = 40
const QUERY: readonly (readonly [number, number])[] = [
  [0.9, 0.3],
  [0.5, 0.75],
  [0.8, -0.35],
]
const KEY: readonly (readonly [number, number])[] = [
  [0.7, 0.6],
  [0.85, 0.3],
  [0.6, 0.55],
]
const LENGTH = 40

function Arrows() {
  const [position, setPosition] = useNumber('at', 6, 0, LENGTH)
  const [distance, setDistance] = useNumber('distance', 4, 0, 16)
  const [whole, setWhole] = useChoice('pairs', ['whole', 'broken'])
  const broken = whole === 'broken'
  const logitAt = (key: number) =>
    [...Array(N_PAIRS).keys()].reduce((sum, pair) => sum + pairLogit(pair, key + distance, key, broken && pair === 0), 0)
  const line = Array.from({ length: LENGTH + 1 }, (_, key) => logitAt(key))
  return (
    <figure class="panel">
      <div class="dials">
        {[...Array(N_PAIRS).keys()].map((pair) => (
          <Dial key={pair} pair={pair} query={position + distance} at={position} half={broken && pair === 0} />
        ))}
      </div>
      <Slider label="the key stands at" value={position} onChange={setPosition} min={0} max={LENGTH} symbol="key" />
      <Slider label="and the query so far behind it" value={distance} onChange={setDistance} min={0} max={16} symbol="angle" />
      <Choice
        label="The first pair"
        value={whole}
        onChange={setWhole}
        choices={[
          ['whole', 'is whole'],
          ['broken', 'has lost its second coordinate'],
        ]}
      />
      <Chart
        label="The logit at every place, at this distance"
        series={[{ name: 'logit', values: line, tone: broken ? 'lost' : 'kept' }]}
        height={150}
        first={0}
        range={[-1.5, 1.5]}
        xLabel="place of the key"
        yLabel={`logit of two tokens ${distance} apart`}
      />
    </figure>
  )
}

function pairLogit(pair: number, query: number, key: number, half: boolean): number {
  const pace = frequency(pair, N_PAIRS, THETA)
  const [q, k] = [rotated(QUERY[pair] ?? [0, 0], query * pace), rotated(KEY[pair] ?? [0, 0], key * pace)]
  return q[0] * k[0] + (half ? 0 : q[1] * k[1])
}

function Dial({ pair, query, at, half }: { pair: number; query: number; at: number; half: boolean }) {
  const pace = frequency(pair, N_PAIRS, THETA)
  const flat = ([x, y]: [number, number]): [number, number] => [x, half ? 0 : y]
  const q = flat(rotated(QUERY[pair] ?? [0, 0], query * pace))
  const k = flat(rotated(KEY[pair] ?? [0, 0], at * pace))
  return (
    <div>
      <svg class="dial" viewBox="-54 -54 108 108" role="img" aria-label={`Pair ${pair + 1}: query and key as arrows`}>
        <circle class="rim" r="50" />
        <Arrow to={k} tone="weight" symbol="key" />
        <Arrow to={q} tone="data" symbol="query" />
      </svg>
      <p class="caption">
        pair {pair + 1}: {pairLogit(pair, query, at, half).toFixed(2)}
        {half && ', half of it'}
      </p>
    </div>
  )
}

function Arrow({ to: [x, y], tone, symbol }: { to: readonly [number, number]; tone: string; symbol: string }) {
  const [tipX, tipY] = [48 * x, -48 * y]
  const angle = (Math.atan2(tipY, tipX) * 180) / Math.PI
  return (
    <g class={`arrow ${tone}`} data-symbol={symbol}>
      <line x1="0" y1="0" x2={tipX} y2={tipY} />
      <polygon points="0,0 -9,-4.5 -9,4.5" transform={`translate(${tipX} ${tipY}) rotate(${angle})`} />
    </g>
  )
}
