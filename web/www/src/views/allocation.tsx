/** Who gives how much: the plan as a table of bars, which can be set by hand where the plan knows what that costs. */
import { useRef } from 'preact/hooks'

import { type ErrorCurve, type HeldWidth, type LayerPlan, type LayerReport, type LayerSummary, type MapName, MAPS, mapWidths, type Module, MODULES, type Planned, type Summary, takesMaps } from '../core/protocol.ts'
import { useSession } from '../session.ts'
import { Figure } from '../ui/controls.tsx'
import { grouped, percent, short } from '../ui/number.ts'

/** Names of a module: of its column, of its width in a plan, of its width in a summary, of its part of a report. */
const NAMES = {
  mlp: ['MLP', 'd_ff', 'dFf', 'mlp'],
  'query-key': ['query, key', 'd_qk', 'dQk', 'query_key'],
  'value-output': ['value, output', 'd_v', 'dV', 'value_output'],
} as const satisfies Record<Module, readonly string[]>

const MAPS_OF = {
  mlp: ['gate', 'up', 'down'],
  'query-key': ['query', 'key'],
  'value-output': ['value', 'output'],
} as const satisfies Record<Module, readonly MapName[]>

/** The width of a module as it is. */
export function denseWidth(layer: LayerSummary, module: Module): number {
  return layer[NAMES[module][2]]
}

interface AllocationProps {
  readonly planned: Planned
  readonly summary: Summary
  readonly held: readonly HeldWidth[]
  /** Modules that give nothing. */
  readonly off: readonly Module[]
  /** Missing where the plan has no error curves. */
  readonly onHold: ((held: readonly HeldWidth[]) => void) | undefined
  readonly disabled: boolean
}

export function Allocation({ planned, summary, held, off, onHold, disabled }: AllocationProps) {
  const { plan, error, leastError } = planned
  const { reported } = useSession()
  const ofMaps = takesMaps(plan.mode)
  // What another method lost, or at other ranks, says nothing of this plan.
  const reportOf = (layer: LayerPlan) => {
    const isSame = reported?.plan.mode === plan.mode && sameRanks(reported.plan.layers[layer.index], layer)
    return isSame ? reported?.layers[layer.index] : undefined
  }
  const most = Math.max(...plan.layers.flatMap(({ curves }) => (curves === undefined ? [] : MODULES.map((module) => curves[NAMES[module][1]].errors[0] ?? 0))))
  const hold = (layer: number, module: Module, width: number | undefined) => {
    const others = held.filter((one) => one.layer !== layer || one.module !== module)
    onHold?.(width === undefined ? others : [...others, { layer, module, width }])
  }
  return (
    <>
      <div class="map-holder">
        <table class="plan">
          <caption>
            {percent(plan.totals.sparsity)} of {grouped(summary.blockParams)} block weights go
          </caption>
          <thead>
            <tr>
              <th scope="col">layer</th>
              {MODULES.map((module) => (
                <th key={module} scope="col">
                  {NAMES[module][0]}
                </th>
              ))}
              <th scope="col">influence</th>
            </tr>
          </thead>
          <tbody>
            {plan.layers.map((layer, i) => (
              <tr key={i}>
                <th scope="row">{i}</th>
                {MODULES.map((module) =>
                  ofMaps ? (
                    <MapsCell key={module} module={module} layer={layer} dense={summary.layers[i]} summary={summary} report={reportOf(layer)} />
                  ) : (
                  <Cell
                    key={module}
                    layer={layer}
                    module={module}
                    dense={summary.layers[i]?.[NAMES[module][2]] ?? NaN}
                    report={reportOf(layer)}
                    most={most}
                    held={held.find((one) => one.layer === i && one.module === module)?.width}
                    onHold={onHold === undefined || disabled || off.includes(module) ? undefined : (width) => hold(i, module, width)}
                  />
                  ),
                )}
                <td>{layer.block_influence.toFixed(3)}</td>
              </tr>
            ))}
          </tbody>
        </table>
      </div>
      {error !== undefined && leastError !== undefined && (
        <div class="numbers">
          <Figure value={short(error)} label={`${UNITS[plan.unit] ?? plan.unit}: the sum of the errors`} tone={held.length + off.length === 0 ? 'kept' : 'lost'} />
          {held.length + off.length > 0 && <Figure value={leastError > 0 ? `× ${(error / leastError).toFixed(2)}` : '–'} label="of what the solver would lose" />}
        </div>
      )}
      {onHold !== undefined && (
        <p class="caption">
          Drag a bar, or give it the focus and press the arrow keys: the others share what is left of the budget. Delete lets go of one.
        </p>
      )}
      {held.length > 0 && (
        <p class="buttons">
          <button type="button" disabled={disabled} onClick={() => onHold?.([])}>
            Let go of {held.length === 1 ? 'the one' : `all ${held.length}`}
          </button>
        </p>
      )}
      <p class="caption">
        {ofMaps
          ? 'Singular values that stay of every map, and once a layer is done, what is lost in the metric of the method. A map that no rank makes smaller stays whole.'
          : 'Widths that stay, and once a layer is done, the share of the module’s output that is lost on the calibration text.'}
      </p>
    </>
  )
}

const UNITS: Readonly<Record<string, string>> = {
  nats: 'nats a token',
  'residual-energy': 'of the stream’s energy',
  'map-energy': 'of what maps carry',
}

function sameRanks(a: LayerPlan | undefined, b: LayerPlan): boolean {
  return MAPS.every((name) => a?.ranks?.[name] === b.ranks?.[name])
}

interface MapsCellProps {
  readonly module: Module
  readonly layer: LayerPlan
  readonly dense: LayerSummary | undefined
  readonly summary: Summary
  readonly report: LayerReport | undefined
}

/** The maps of a module, each by itself. */
function MapsCell({ module, layer, dense, summary, report }: MapsCellProps) {
  if (dense === undefined) return <td />
  const { dModel } = summary
  const widths = mapWidths(summary, dense)
  return (
    <td>
      {MAPS_OF[module].map((name) => {
        const [rank, width] = [layer.ranks?.[name], widths[name]]
        if (width === undefined) return null
        const share = rank === undefined ? 1 : (rank * (dModel + width)) / (dModel * width)
        return (
          <span key={name} class="share map-share" style={{ '--share': share }}>
            {name} {rank ?? 'whole'} {rank !== undefined && <small>of {Math.min(dModel, width)}</small>}
          </span>
        )
      })}
      <small class="error">{lost(report?.[NAMES[module][3]].relative_error)}</small>
    </td>
  )
}

function lost(error: number | undefined): string {
  return error === undefined ? ' ' : error === 0 ? 'untouched' : `${short(100 * error)} % lost`
}

interface CellProps {
  readonly layer: LayerPlan
  readonly module: Module
  readonly dense: number
  readonly report: LayerReport | undefined
  /** The largest error of all curves, to which the lines are drawn. */
  readonly most: number
  readonly held: number | undefined
  readonly onHold: ((width: number | undefined) => void) | undefined
}

function Cell({ layer, module, dense, report, most, held, onHold }: CellProps) {
  const [title, name, , part] = NAMES[module]
  const isHeld = held !== undefined
  // The bar follows the hand; the plan comes after.
  const kept = held ?? layer[name]
  const curve = layer.curves?.[name]
  // What was lost at another width says nothing of this one.
  const error = report?.after[name] === kept ? report[part].relative_error : undefined
  const label = `Layer ${layer.index}, ${title}: width that stays`
  return (
    <td>
      {curve === undefined || onHold === undefined ? (
        <span class={`share ${isHeld ? 'held' : ''}`} style={{ '--share': kept / dense }}>
          {kept} <small>of {dense}</small>
        </span>
      ) : (
        <Bar label={label} kept={kept} dense={dense} curve={curve} most={most} isHeld={isHeld} onHold={onHold} />
      )}
      <small class="error">{lost(error)}</small>
    </td>
  )
}

interface BarProps {
  readonly label: string
  readonly kept: number
  readonly dense: number
  readonly curve: ErrorCurve
  readonly most: number
  readonly isHeld: boolean
  readonly onHold: (width: number | undefined) => void
}

/** A slider over the widths of a curve. */
function Bar({ label, kept, dense, curve, most, isHeld, onHold }: BarProps) {
  const bar = useRef<HTMLDivElement>(null)
  const { widths, errors } = curve
  const at = widths.indexOf(kept)
  const to = (position: number) => {
    const width = widths[Math.min(widths.length - 1, Math.max(0, position))]
    if (width !== undefined && width !== kept) onHold(width)
  }
  const drag = (event: PointerEvent) => {
    const box = bar.current?.getBoundingClientRect()
    if (box === undefined || event.buttons !== 1) return
    const asked = (dense * (event.clientX - box.left)) / box.width
    to(widths.reduce((best, width, i) => (Math.abs(width - asked) < Math.abs((widths[best] ?? 0) - asked) ? i : best), 0))
  }
  const onKeyDown = (event: KeyboardEvent) => {
    const positions: Record<string, number> = {
      ArrowLeft: at - 1,
      ArrowDown: at - 1,
      ArrowRight: at + 1,
      ArrowUp: at + 1,
      PageDown: at - Math.ceil(widths.length / 5),
      PageUp: at + Math.ceil(widths.length / 5),
      Home: 0,
      End: widths.length - 1,
    }
    const position = positions[event.key]
    if (position !== undefined) to(position)
    else if (event.key === 'Delete' || event.key === 'Backspace') onHold(undefined)
    else return
    event.preventDefault()
  }
  const points = widths.map((width, i) => `${((100 * width) / dense).toFixed(1)},${(100 - 96 * Math.sqrt(most > 0 ? (errors[i] ?? 0) / most : 0)).toFixed(1)}`)
  const cost = errors[at]
  return (
    <div
      ref={bar}
      class={`share free ${isHeld ? 'held' : ''}`}
      style={{ '--share': kept / dense }}
      role="slider"
      tabIndex={0}
      aria-label={label}
      aria-valuemin={widths[0]}
      aria-valuemax={dense}
      aria-valuenow={kept}
      aria-valuetext={`${kept} of ${dense}${cost === undefined ? '' : `, error ${short(cost)}`}${isHeld ? ', held by hand' : ''}`}
      onPointerDown={(event) => {
        event.currentTarget.setPointerCapture(event.pointerId)
        event.currentTarget.focus({ preventScroll: true })
        drag(event)
      }}
      onPointerMove={drag}
      onKeyDown={onKeyDown}
    >
      <svg viewBox="0 0 100 100" preserveAspectRatio="none" aria-hidden="true">
        <polyline points={points.join(' ')} />
      </svg>
      {kept} <small>of {dense}</small>
    </div>
  )
}
