import { useMemo, useRef, useState } from 'preact/hooks'
import formula from 'virtual:formula/allocation'

import type { Plan } from '../core/protocol.ts'
import { cappedSoftmax, cheapest } from '../math/allocation.ts'
import { setParams, useNumber, usePlace } from '../place.ts'
import { bundledText, compress, currentSession, makePlan, observe, open, score, stop, useSession } from '../session.ts'
import { Figure, Slider } from '../ui/controls.tsx'
import { Formula, Lighting, Symbol } from '../ui/formula.tsx'
import { percent, short } from '../ui/number.ts'
import { chosenDevice } from '../ui/model.tsx'
import measured from './measured.json'

const N_LAYERS = measured.rises.length
const N_STEPS = measured.sparsities.length - 1
/** Steps that have to be spent: 30 % of the model's block weights. */
const BUDGET = Math.round((0.3 * N_LAYERS) / 0.1)

/** The loss that a choice of steps should cost, were the layers' costs simply added. */
export function predictedLoss(steps: readonly number[]): number {
  return measured.loss + steps.reduce((sum, step, layer) => sum + (measured.rises[layer]?.[step] ?? Infinity), 0)
}

/** The paper's softmax of block influence, rounded to whole steps that add up to the budget. */
export function softmaxSteps(epsilon: number): number[] {
  const shares = cappedSoftmax(measured.blockInfluence, BUDGET / (10 * N_LAYERS), epsilon, N_STEPS / 10)
  const steps = shares.map((share) => Math.floor(10 * share + 1e-9))
  const byRest = shares.map((share, layer) => [10 * share - (steps[layer] ?? 0), layer] as const).sort(([a], [b]) => b - a)
  const missing = BUDGET - steps.reduce((a, b) => a + b, 0)
  for (const [, layer] of byRest.slice(0, missing)) steps[layer] = (steps[layer] ?? 0) + 1
  return steps
}

export function solvedSteps(): number[] {
  return cheapest(measured.rises, BUDGET)
}

function useSteps(): [number[], (steps: readonly number[]) => void] {
  const text = usePlace().params['steps'] ?? '6.4.1.1'
  const parsed = text.split('.').map((part) => Math.min(N_STEPS, Math.max(0, Math.round(Number(part)) || 0)))
  return [Array.from({ length: N_LAYERS }, (_, layer) => parsed[layer] ?? 0), (steps) => setParams({ steps: steps.join('.') })]
}

export function AllocationLesson() {
  const [steps, setSteps] = useSteps()
  const spent = steps.reduce((a, b) => a + b, 0)
  const [power, setPower] = useNumber('temperature', -0.7, -2, 1)
  const solved = useMemo(solvedSteps, [])
  const perplexity = Math.exp(predictedLoss(steps))
  return (
    <Lighting class="lesson-body">
      <p>
        Layers are not equally patient. The model that comes with this page has {N_LAYERS} of them, and each was compressed alone, step by step, to
        see how the loss rises. You have a <Symbol name="budget">budget</Symbol>: {percent(BUDGET / (10 * N_LAYERS), 0)} of all block weights
        must go. Who <Symbol name="share">pays</Symbol>?
      </p>
      <p class="do">Drag the bars, or use the arrow keys on them, until the budget is spent. Try to beat the solver.</p>
      <figure class="panel">
        <div class="payers">
          {steps.map((step, layer) => (
            <Payer
              key={layer}
              layer={layer}
              step={step}
              onChange={(value) => setSteps(steps.map((old, i) => (i === layer ? value : old)))}
            />
          ))}
        </div>
        <p class="caption">The line beside each bar: how far the loss has risen when so much of this layer alone is gone (its square root).</p>
        <div class="numbers">
          <Figure
            value={spent === BUDGET ? 'spent' : spent < BUDGET ? `${BUDGET - spent} left` : `${spent - BUDGET} too many`}
            label={`of ${BUDGET} steps of 10 %`}
            tone={spent === BUDGET ? 'kept' : 'lost'}
            symbol="budget"
          />
          <Figure value={perplexity.toFixed(2)} label="perplexity, costs added up" />
          <Figure value={Math.exp(measured.loss).toFixed(2)} label="before" />
          <Figure value={Math.exp(predictedLoss(solved)).toFixed(2)} label="the solver’s" tone="kept" />
        </div>
        <div class="buttons">
          <button type="button" onClick={() => setSteps(steps.map((_, i) => Math.floor((BUDGET + i) / N_LAYERS)))}>
            All the same
          </button>
          <button type="button" onClick={() => setSteps(softmaxSteps(10 ** power))}>
            By block influence
          </button>
          <button type="button" onClick={() => setSteps(solved)}>
            Solve
          </button>
        </div>
        <Slider
          label="temperature ε of the block influence"
          value={power}
          onChange={(value) => (setPower(value), setSteps(softmaxSteps(10 ** value)))}
          min={-2}
          max={1}
          step={0.05}
          show={(value) => short(10 ** value)}
          symbol="temperature"
        />
        <Measure steps={steps} />
      </figure>
      <Formula html={formula} />
      <p>
        The paper asks how much a block turns the stream that passes through it, its <Symbol name="influence">block influence</Symbol>, and lets
        blocks that turn it little pay more, the more sharply the smaller the <Symbol name="temperature">temperature</Symbol>. It costs nothing to
        compute. Is it right here? The curves know better, since they were measured, but measuring them takes as many compressions as there are
        bars times steps.
      </p>
    </Lighting>
  )
}

/** One layer: how much of it goes, before the curve of what that costs. */
function Payer({ layer, step, onChange }: { layer: number; step: number; onChange: (step: number) => void }) {
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
  const rises = measured.rises[layer] ?? []
  const most = Math.max(...measured.rises.flat())
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
        <span data-symbol="influence">s = {measured.blockInfluence[layer]?.toFixed(3)}</span>
      </span>
    </div>
  )
}

/** The sum of costs is a guess; this is how to check it. */
function Measure({ steps }: { steps: readonly number[] }) {
  const place = usePlace()
  const { work, problem } = useSession()
  const [found, setFound] = useState<{ key: string; perplexity: number } | null>(null)
  const key = steps.join('.')
  const measure = async () => {
    const source = { kind: 'bundled', name: measured.model } as const
    if (!(await open(source, await chosenDevice(place)))) return
    const request = { samples: 128, seqLen: 256, seed: 0, batchTokens: 1024 }
    if (currentSession().statistics === null && !(await observe(await bundledText('calibration.txt'), request))) return
    await makePlan({ mode: 'paper', sparsity: 0, allocation: 'uniform' })
    const { planned } = currentSession()
    if (planned === null || !(await compress(byHand(planned.plan, steps)))) return
    if (!(await score('compressed', await bundledText('held-out.txt'), 256, measured.windows))) return
    const perplexity = currentSession().scores.compressed?.perplexity
    if (perplexity !== undefined) setFound({ key, perplexity })
  }
  return (
    <p class="real">
      {work === null ? (
        <button type="button" onClick={() => void measure()}>
          Measure it on the real model
        </button>
      ) : (
        <button type="button" onClick={stop}>
          Stop
        </button>
      )}{' '}
      <span role="status">
        {work !== null && `${work.what} … ${work.share === null ? '' : percent(work.share, 0)}`}
        {work === null && found?.key === key && (
          <>
            measured: <b>{found.perplexity.toFixed(2)}</b>
          </>
        )}
      </span>
      {problem !== null && <span class="problem">{problem}</span>}
    </p>
  )
}

/** The plan with the widths that were measured for each layer's step. */
export function byHand(plan: Plan, steps: readonly number[]): Plan {
  const layers = plan.layers.map((layer, i) => ({ ...layer, ...measured.widths[steps[i] ?? 0] }))
  return { ...plan, layers }
}
