import { useRef } from 'preact/hooks'

import { short } from './number.ts'
import { linear, logarithmic, type Scale } from './scale.ts'
import { useWidth } from './width.ts'

export type Tone = 'kept' | 'lost' | 'data' | 'weight' | 'ink' | 'faint'

export interface Series {
  readonly name: string
  readonly values: readonly number[]
  readonly tone: Tone
  readonly shape?: 'line' | 'bars' | 'dashed'
  readonly symbol?: string
}

export interface Cut {
  /** So many of the values are kept. */
  readonly value: number
  readonly onChange: (value: number) => void
  readonly label: string
}

interface ChartProps {
  readonly label: string
  readonly series: readonly Series[]
  readonly cut?: Cut
  readonly logarithmic?: boolean
  readonly height?: number
  /** The number of the first value; 0 where the values begin with rank 0. */
  readonly first?: number
  readonly xLabel: string
  readonly yLabel: string
  readonly range?: readonly [number, number]
}

const MARGIN = { left: 46, right: 12, top: 26, bottom: 34 }

/** Values by their number, as bars or lines, with a line to drag between what is kept and what is not. */
export function Chart(props: ChartProps) {
  const { label, series, cut, height = 240, first = 1, xLabel, yLabel } = props
  const [holder, width] = useWidth<HTMLDivElement>(560)
  const n = Math.max(1, ...series.map(({ values }) => values.length))
  const bars = series.some(({ shape }) => shape === 'bars')
  const inner = [MARGIN.left, width - MARGIN.right] as const
  const x = linear(bars ? [first - 0.5, first + n - 0.5] : [first, first + n - 1], inner, Math.min(n, width / 90))
  const y = verticalScale(props, [height - MARGIN.bottom, MARGIN.top])
  const cutAt = cut === undefined ? Infinity : cut.value
  return (
    <div ref={holder} class="chart">
      <svg width={width} height={height} viewBox={`0 0 ${width} ${height}`} role="group" aria-label={label}>
        <Axes x={x} y={y} width={width} height={height} xLabel={xLabel} yLabel={yLabel} />
        {series.map((one) => (
          <Marks key={one.name} series={one} x={x} y={y} first={first} cutAt={cutAt} floor={height - MARGIN.bottom} />
        ))}
        {cut !== undefined && <CutLine cut={cut} x={x} height={height} n={n} first={first} bars={bars} />}
      </svg>
      {series.length > 1 && <Legend series={series} />}
    </div>
  )
}

function verticalScale({ series, logarithmic: log, range }: ChartProps, to: readonly [number, number]): Scale {
  const values = series.flatMap(({ values }) => values).filter(Number.isFinite)
  const top = range?.[1] ?? Math.max(...values, 1e-300)
  if (log !== true) return linear([range?.[0] ?? Math.min(0, ...values), top], to, 4)
  const least = Math.min(...values.filter((value) => value > top * 1e-12))
  return logarithmic([range?.[0] ?? Math.max(least, top * 1e-8) * 0.8, top * 1.15], to)
}

function Axes(props: { x: Scale; y: Scale; width: number; height: number; xLabel: string; yLabel: string }) {
  const { x, y, width, height, xLabel, yLabel } = props
  return (
    <g class="axes" aria-hidden="true">
      {y.ticks.map((tick) => (
        <g key={tick}>
          <line class="grid" x1={MARGIN.left} x2={width - MARGIN.right} y1={y(tick)} y2={y(tick)} />
          <text x={MARGIN.left - 6} y={y(tick)} dy="0.32em" text-anchor="end">
            {short(tick)}
          </text>
        </g>
      ))}
      {x.ticks.filter(Number.isInteger).map((tick) => (
        <text key={tick} x={x(tick)} y={height - MARGIN.bottom + 15} text-anchor="middle">
          {tick}
        </text>
      ))}
      <text class="title" x={width - MARGIN.right} y={height - 3} text-anchor="end">
        {xLabel}
      </text>
      <text class="title" x={2} y={11}>
        {yLabel}
      </text>
    </g>
  )
}

interface MarksProps {
  series: Series
  x: Scale
  y: Scale
  first: number
  cutAt: number
  floor: number
}

function Marks({ series, x, y, first, cutAt, floor }: MarksProps) {
  const { values, tone, shape = 'line', symbol } = series
  if (shape === 'bars') {
    const step = x(first + 1) - x(first)
    const wide = Math.max(1, step > 4 ? step - 1.5 : step)
    return (
      <g data-symbol={symbol}>
        {values.map((value, i) => {
          const top = Math.min(y(value), floor)
          const lost = i >= cutAt
          return (
            <rect
              key={i}
              class={`bar ${lost ? 'lost' : tone}`}
              data-symbol={cutAt === Infinity ? undefined : lost ? 'lost' : 'kept'}
              x={x(first + i) - wide / 2}
              y={top}
              width={wide}
              height={Math.max(0, floor - top)}
            />
          )
        })}
      </g>
    )
  }
  const points = values.map((value, i) => `${x(first + i).toFixed(1)},${y(value).toFixed(1)}`)
  return <polyline class={`line ${tone} ${shape}`} points={points.join(' ')} data-symbol={symbol} />
}

interface CutLineProps {
  cut: Cut
  x: Scale
  height: number
  n: number
  first: number
  bars: boolean
}

/** A slider in the shape of a line. */
function CutLine({ cut, x, height, n, first, bars }: CutLineProps) {
  const line = useRef<SVGGElement>(null)
  const most = bars ? n : first + n - 1
  const set = (value: number) => cut.onChange(Math.min(most, Math.max(0, Math.round(value))))
  const drag = (event: PointerEvent) => {
    const box = line.current?.ownerSVGElement?.getBoundingClientRect()
    if (box === undefined) return
    const unit = x(first + 1) - x(first)
    set((event.clientX - box.left - x(first)) / unit + first - (bars ? first - 0.5 : 0))
  }
  const onPointerDown = (event: PointerEvent) => {
    line.current?.setPointerCapture(event.pointerId)
    line.current?.focus({ preventScroll: true })
    event.preventDefault()
    drag(event)
  }
  const onKeyDown = (event: KeyboardEvent) => {
    const steps: Record<string, number> = {
      ArrowLeft: cut.value - 1,
      ArrowDown: cut.value - 1,
      ArrowRight: cut.value + 1,
      ArrowUp: cut.value + 1,
      PageDown: cut.value - Math.ceil(n / 10),
      PageUp: cut.value + Math.ceil(n / 10),
      Home: 0,
      End: most,
    }
    const next = steps[event.key]
    if (next === undefined) return
    event.preventDefault()
    set(next)
  }
  const at = bars ? x(first + cut.value - 0.5) : x(cut.value)
  return (
    <g
      ref={line}
      class="cut"
      data-symbol="rank"
      role="slider"
      // In SVG the attribute's name is in small letters.
      tabindex={0}
      aria-label={cut.label}
      aria-valuemin={0}
      aria-valuemax={most}
      aria-valuenow={cut.value}
      onPointerDown={onPointerDown}
      onPointerMove={(event) => event.buttons === 1 && drag(event)}
      onKeyDown={onKeyDown}
    >
      <rect class="hit" x={at - 22} y={0} width={44} height={height} />
      <line x1={at} x2={at} y1={MARGIN.top - 6} y2={height - MARGIN.bottom} />
      <circle cx={at} cy={height - MARGIN.bottom} r={8} />
    </g>
  )
}

export function Legend({ series }: { series: readonly Series[] }) {
  return (
    <ul class="legend">
      {series.map(({ name, tone, shape = 'line', symbol }) => (
        <li key={name} data-symbol={symbol}>
          <span class={`swatch ${tone} ${shape}`} /> {name}
        </li>
      ))}
    </ul>
  )
}
