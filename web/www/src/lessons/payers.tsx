import { useRef } from 'preact/hooks'

import { softmaxSteps, type Costs } from '../math/allocation.ts'
import { useNumber } from '../place.ts'
import { Slider } from '../ui/controls.tsx'
import { short } from '../ui/number.ts'

/** A step is a tenth of a layer; the last one never goes. */
export const N_STEPS = 8

interface PayersProps {
  readonly costs: Costs
  readonly steps: readonly number[]
  readonly onChange: (steps: readonly number[]) => void
}

/** A bar to drag for every layer: how much of it goes. */
export function Payers({ costs, steps, onChange }: PayersProps) {
  return (
    <div class="payers">
      {steps.map((step, layer) => (
        <Payer
          key={layer}
          costs={costs}
          layer={layer}
          step={step}
          onChange={(value) => onChange(steps.map((old, i) => (i === layer ? value : old)))}
        />
      ))}
    </div>
  )
}

/** Ways to spend a budget of steps: evenly, as the paper does, and as the costs say. */
export function Spenders({ costs, steps, onChange, budget, solved }: PayersProps & { budget: number; solved: readonly number[] }) {
  const [power, setPower] = useNumber('temperature', -0.7, -2, 1)
  const byInfluence = (power: number) => onChange(softmaxSteps(costs.blockInfluence, budget, 10 ** power, N_STEPS))
  return (
    <>
      <div class="buttons">
        <button type="button" onClick={() => onChange(steps.map((_, i) => Math.floor((budget + i) / steps.length)))}>
          All the same
        </button>
        <button type="button" onClick={() => byInfluence(power)}>
          By block influence
        </button>
        <button type="button" onClick={() => onChange(solved)}>
          Solve
        </button>
      </div>
      <Slider
        label="temperature ε of the block influence"
        value={power}
        onChange={(value) => (setPower(value), byInfluence(value))}
        min={-2}
        max={1}
        step={0.05}
        show={(value) => short(10 ** value)}
        symbol="temperature"
      />
    </>
  )
}

export function spentOf(steps: readonly number[], budget: number): { words: string; exact: boolean } {
  const spent = steps.reduce((a, b) => a + b, 0)
  const words = spent === budget ? 'spent' : spent < budget ? `${budget - spent} left` : `${spent - budget} too many`
  return { words, exact: spent === budget }
}

/** One layer: how much of it goes, before the curve of what that costs. */
function Payer({ costs, layer, step, onChange }: { costs: Costs; layer: number; step: number; onChange: (step: number) => void }) {
  const bar = useRef<HTMLDivElement>(null)
  const set = (value: number) => onChange(Math.min(N_STEPS, Math.max(0, Math.round(value))))
  const drag = (event: PointerEvent) => {
    const box = bar.current?.getBoundingClientRect()
    if (box !== undefined && event.buttons === 1) set(((box.bottom - event.clientY) / box.height) * N_STEPS)
  }
  const onKeyDown = (event: KeyboardEvent) => {
    const by = { ArrowUp: 1, ArrowRight: 1, ArrowDown: -1, ArrowLeft: -1 }[event.key]
    if (by === undefined) return
    event.preventDefault()
    set(step + by)
  }
  const rises = costs.rises[layer] ?? []
  const most = Math.max(...costs.rises.flat())
  const curve = rises.map((rise, i) => `${(100 * Math.sqrt(rise > 0 ? rise / most : 0)).toFixed(1)},${100 - (100 * i) / N_STEPS}`)
  return (
    <div class="payer">
      <div
        ref={bar}
        class="bar"
        role="slider"
        tabIndex={0}
        aria-label={`Layer ${layer}: share that goes`}
        aria-orientation="vertical"
        aria-valuemin={0}
        aria-valuemax={N_STEPS}
        aria-valuenow={step}
        aria-valuetext={`${step * 10} %`}
        data-symbol="share"
        onPointerDown={(event) => {
          event.currentTarget.setPointerCapture(event.pointerId)
          event.currentTarget.focus({ preventScroll: true })
          drag(event)
        }}
        onPointerMove={drag}
        onKeyDown={onKeyDown}
      >
        <span class="fill" style={{ height: `${(100 * step) / N_STEPS}%` }} />
        <svg viewBox="0 0 100 100" preserveAspectRatio="none" aria-hidden="true">
          <polyline points={curve.join(' ')} />
        </svg>
      </div>
      <b>{step * 10} %</b>
      <span class="caption">
        layer {layer}
        <br />
        <span data-symbol="influence">s = {costs.blockInfluence[layer]?.toFixed(3)}</span>
      </span>
    </div>
  )
}
