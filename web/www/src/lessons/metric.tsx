import { useMemo, useRef, useState } from 'preact/hooks'
import formula from 'virtual:formula/metric'

import { energyUnder, lowRank, type Metric } from '../math/low_rank.ts'
import { Matrix } from '../math/matrix.ts'
import { normal } from '../math/random.ts'
import { useNumber } from '../place.ts'
import { Chart } from '../ui/chart.tsx'
import { Figure, Slider } from '../ui/controls.tsx'
import { Formula, Lighting, Symbol } from '../ui/formula.tsx'
import { percent } from '../ui/number.ts'
import { OnRealData, type Seen } from './real_layer.tsx'

const WEIGHT = Matrix.rowsOf([
  [1.15, 0.35],
  [-0.25, 0.8],
])
const N_POINTS = 90
const METRICS: readonly (readonly [Metric, string, string])[] = [
  ['plain', 'plain SVD', 'sees the weight alone'],
  ['rows', 'row weights (FWSVD)', 'sees how large each input is'],
  ['whitened', 'whitened SVD', 'sees which inputs come together'],
]

/** Inputs with the given spread along a direction and across it. */
function cloud(degrees: number, along: number, across: number): Matrix {
  const next = normal(7)
  const angle = (degrees * Math.PI) / 180
  return Matrix.rowsOf(
    Array.from({ length: N_POINTS }, () => {
      const [a, b] = [along * next(), across * next()]
      return [a * Math.cos(angle) - b * Math.sin(angle), a * Math.sin(angle) + b * Math.cos(angle)]
    }),
  )
}

export function MetricLesson() {
  const [angle, setAngle] = useNumber('angle', 125, 0, 180)
  const [along, setAlong] = useNumber('along', 1.1, 0.2, 1.4)
  const [across, setAcross] = useNumber('across', 0.22, 0.05, 1)
  const inputs = useMemo(() => cloud(angle, along, across), [angle, along, across])
  const gram = useMemo(() => inputs.gram, [inputs])
  const [seen, setSeen] = useState<Seen | null>(null)
  const found = METRICS.map(([metric]) => {
    const weight = lowRank(WEIGHT, gram, 1, metric)
    return { weight, error: energyUnder(gram, WEIGHT.minus(weight)) / energyUnder(gram, WEIGHT) }
  })
  return (
    <Lighting class="lesson-body">
      <p>
        Keeping the first terms answers the question: which matrix is nearest? But nearest for whom? A layer of a model never sees all
        inputs that there could be. It sees <Symbol name="data">its data</Symbol>, and data lies in few directions. An error that no input ever
        meets costs nothing.
      </p>
      <p class="do">Drag the tip of the cloud. Each method replaces the same weight by one of rank 1, whose outputs lie on a line; short threads are small errors.</p>
      <figure class="panel">
        <div class="metric-figure">
          <div>
            <InputPlane inputs={inputs} angle={angle} along={along} onDrag={(angle, along) => (setAngle(angle), setAlong(along))} />
            <p class="caption">the inputs x</p>
          </div>
          {METRICS.map(([metric, title, remark], i) => (
            <div key={metric} class={metric === 'whitened' ? 'best' : undefined}>
              <OutputPlane inputs={inputs} weight={found[i]?.weight ?? WEIGHT} title={title} />
              <p class="caption">
                <b>{title}</b> <span class="error">{percent(found[i]?.error ?? 0)} lost</span>
                <br />
                {remark}
              </p>
            </div>
          ))}
        </div>
        <Slider label="direction" value={angle} onChange={setAngle} min={0} max={180} show={(v) => `${Math.round(v)}°`} symbol="data" />
        <Slider label="length" value={along} onChange={setAlong} min={0.2} max={1.4} step={0.01} show={(v) => v.toFixed(2)} symbol="data" />
        <Slider label="width" value={across} onChange={setAcross} min={0.05} max={1} step={0.01} show={(v) => v.toFixed(2)} symbol="data" />
      </figure>
      {seen !== null && <OnDownMap seen={seen} />}
      <OnRealData what="the three on the down map" isShown={seen !== null} onBack={() => setSeen(null)} onSeen={setSeen} />
      <Formula html={formula} />
      <p>
        The inputs are the rows of X. Plain SVD keeps the direction that the <Symbol name="exact">weight W</Symbol> stretches most, wherever
        the data may be. Row weights know that one coordinate is larger than another, which helps while the cloud lies along an axis, and is
        of no use at 45°. (Here they are the sizes of the inputs; the method FWSVD takes them from gradients of the loss.) The whitened SVD
        measures in <Symbol name="data">C</Symbol>, the Gram matrix, which holds the product of every two coordinates, summed over all inputs.
        So its error <em>is</em> the error of the outputs, and it is never worse than the others. Make the cloud round, and all three agree:
        then the data says nothing.
      </p>
      <p>
        This is what calibration is for: a few thousand words of text, passed once through the model, to learn C. In{' '}
        <a href="#/explore?matrix=down">Explore</a> the same three methods are compared in every layer of a model.
      </p>
    </Lighting>
  )
}

/** The three methods on a real map of many dimensions, where no cloud can be drawn. */
function OnDownMap({ seen: { title, activations } }: { seen: Seen }) {
  const { plain, row_weighted: rows, whitened } = activations.down_errors
  const [rank, setRank] = useNumber('rank', Math.round(0.5 * (plain.length - 1)), 0, plain.length - 1)
  return (
    <figure class="panel">
      <p class="caption">the down map of {title}: the last matrix of the layer, whose inputs are the hidden units of the next lesson</p>
      <Chart
        label="Share of the output lost by rank, cut in three metrics"
        series={[
          { name: 'plain SVD', values: plain, tone: 'weight' },
          { name: 'row weights', values: rows, tone: 'ink', shape: 'dashed' },
          { name: 'whitened', values: whitened, tone: 'data', symbol: 'data' },
        ]}
        first={0}
        range={[0, 1]}
        xLabel="rank"
        yLabel="share of the output lost"
        cut={{ value: rank, onChange: setRank, label: 'Rank of the down map' }}
      />
      <div class="numbers">
        <Figure value={`${rank} of ${plain.length - 1}`} label="rank" />
        <Figure value={percent(plain[rank] ?? 0)} label="lost by plain SVD" tone="lost" />
        <Figure value={percent(rows[rank] ?? 0)} label="with row weights" tone="lost" />
        <Figure value={percent(whitened[rank] ?? 0)} label="whitened" tone="kept" symbol="data" />
      </div>
    </figure>
  )
}

const HALF = 100
const UNIT = 34

interface InputPlaneProps {
  inputs: Matrix
  angle: number
  along: number
  onDrag: (degrees: number, along: number) => void
}

function InputPlane({ inputs, angle, along, onDrag }: InputPlaneProps) {
  const plane = useRef<SVGSVGElement>(null)
  const reach = 2 * along * UNIT
  const radians = (angle * Math.PI) / 180
  const tip = [reach * Math.cos(radians), -reach * Math.sin(radians)] as const
  const drag = (event: PointerEvent) => {
    const box = plane.current?.getBoundingClientRect()
    if (box === undefined || event.buttons !== 1) return
    const scale = (2 * HALF) / box.width
    const [x, y] = [(event.clientX - box.left) * scale - HALF, HALF - (event.clientY - box.top) * scale]
    const degrees = ((Math.atan2(y, x) * 180) / Math.PI + 360) % 180
    onDrag(Math.round(degrees), Math.min(1.4, Math.max(0.2, Math.hypot(x, y) / (2 * UNIT))))
  }
  return (
    <svg
      ref={plane}
      class="plane"
      viewBox={`${-HALF} ${-HALF} ${2 * HALF} ${2 * HALF}`}
      role="img"
      aria-label={`Inputs, spread along ${Math.round(angle)} degrees`}
      data-symbol="data"
      onPointerDown={(event) => {
        event.currentTarget.setPointerCapture(event.pointerId)
        drag(event)
      }}
      onPointerMove={drag}
    >
      <Cross />
      <Points points={inputs} tone="data" />
      <line class="stem" x1={-tip[0]} y1={-tip[1]} x2={tip[0]} y2={tip[1]} />
      <circle class="handle" cx={tip[0]} cy={tip[1]} r="8" />
    </svg>
  )
}

function OutputPlane({ inputs, weight, title }: { inputs: Matrix; weight: Matrix; title: string }) {
  const exact = inputs.times(WEIGHT)
  const near = inputs.times(weight)
  return (
    <svg class="plane" viewBox={`${-HALF} ${-HALF} ${2 * HALF} ${2 * HALF}`} role="img" aria-label={`Outputs by ${title}`}>
      <Cross />
      {Array.from({ length: exact.rows }, (_, i) => {
        const [[x1, y1], [x2, y2]] = [at(exact, i), at(near, i)]
        return <line key={i} class="thread" x1={x1} y1={y1} x2={x2} y2={y2} />
      })}
      <Points points={exact} tone="ink" symbol="exact" />
      <Points points={near} tone="kept" symbol="approximation" />
    </svg>
  )
}

function Points({ points, tone, symbol }: { points: Matrix; tone: string; symbol?: string }) {
  return (
    <g data-symbol={symbol}>
      {Array.from({ length: points.rows }, (_, i) => {
        const [x, y] = at(points, i)
        return <circle key={i} class={`point ${tone}`} cx={x} cy={y} r="1.9" />
      })}
    </g>
  )
}

function Cross() {
  return (
    <g class="axes" aria-hidden="true">
      <line class="grid" x1={-HALF} x2={HALF} y1="0" y2="0" />
      <line class="grid" x1="0" x2="0" y1={-HALF} y2={HALF} />
    </g>
  )
}

function at(points: Matrix, row: number): [number, number] {
  return [UNIT * points.get(row, 0), -UNIT * points.get(row, 1)]
}
