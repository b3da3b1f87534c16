import { useMemo, useState } from 'preact/hooks'
import formula from 'virtual:formula/allocation'

import type { Plan } from '../core/protocol.ts'
import { cheapest, costOf } from '../math/allocation.ts'
import { setParams, usePlace } from '../place.ts'
import { bundledText, compress, currentSession, makePlan, observe, open, score, stop, useSession } from '../session.ts'
import { Figure } from '../ui/controls.tsx'
import { Formula, Lighting, Symbol } from '../ui/formula.tsx'
import { percent } from '../ui/number.ts'
import { chosenDevice } from '../ui/model.tsx'
import measured from './measured.json'
import { N_STEPS, Payers, Spenders, spentOf } from './payers.tsx'
import { OnRealCosts, OnRealLayers, type RealCosts } from './real_costs.tsx'

const N_LAYERS = measured.rises.length
/** Steps that have to be spent: 30 % of the model's block weights. */
const BUDGET = Math.round((0.3 * N_LAYERS) / 0.1)

/** The loss that a choice of steps should cost, were the layers' costs simply added. */
export function predictedLoss(steps: readonly number[]): number {
  return measured.loss + costOf(measured, steps)
}

function useSteps(): [number[], (steps: readonly number[]) => void] {
  const text = usePlace().params['steps'] ?? '6.4.1.1'
  const parsed = text.split('.').map((part) => Math.min(N_STEPS, Math.max(0, Math.round(Number(part)) || 0)))
  return [Array.from({ length: N_LAYERS }, (_, layer) => parsed[layer] ?? 0), (steps) => setParams({ steps: steps.join('.') })]
}

export function AllocationLesson() {
  const [steps, setSteps] = useSteps()
  const [real, setReal] = useState<RealCosts | null>(null)
  const solved = useMemo(() => cheapest(measured.rises, BUDGET), [])
  const spent = spentOf(steps, BUDGET)
  return (
    <Lighting class="lesson-body">
      <p>
        Layers are not equally patient. The model that comes with this page has {N_LAYERS} of them, and each was compressed alone, step by step, to
        see how the loss rises: how surprised the model is, on average, by the next token of a text that it has not seen. You have a{' '}
        <Symbol name="budget">budget</Symbol>: {percent(BUDGET / (10 * N_LAYERS), 0)} of all the layers’ weights must go. Who{' '}
        <Symbol name="share">pays</Symbol>?
      </p>
      <p class="do">
        Drag the bars, or use the arrow keys on them, until the budget is spent. Try to beat the solver. What counts is the perplexity, e to the
        loss: it is as if the model wavered between so many tokens that are equally likely.
      </p>
      <figure class="panel">
        <Payers costs={measured} steps={steps} onChange={setSteps} />
        <p class="caption">The line beside each bar: how far the loss has risen when so much of this layer alone is gone (its square root).</p>
        <div class="numbers">
          <Figure value={spent.words} label={`of ${BUDGET} steps of 10 %`} tone={spent.exact ? 'kept' : 'lost'} symbol="budget" />
          <Figure value={Math.exp(predictedLoss(steps)).toFixed(2)} label="perplexity, costs added up" />
          <Figure value={Math.exp(measured.loss).toFixed(2)} label="before" />
          <Figure value={Math.exp(predictedLoss(solved)).toFixed(2)} label="the solver’s" tone="kept" />
        </div>
        <Spenders costs={measured} steps={steps} onChange={setSteps} budget={BUDGET} solved={solved} />
        <Measure steps={steps} />
      </figure>
      {real !== null && <OnRealLayers key={real.title} real={real} />}
      <OnRealCosts isShown={real !== null} onBack={() => setReal(null)} onCosts={setReal} />
      <Formula html={formula} />
      <p>
        The paper asks how much a layer turns the vectors that pass through it, its{' '}
        <Symbol name="influence">block influence s</Symbol>: one minus the cosine between what goes in and what comes out. Layers that turn them
        little pay more, the more sharply the smaller the <Symbol name="temperature">temperature ε</Symbol>; no share exceeds the cap, and τ is set
        so that the budget is met. It costs nothing to compute. Is it right here? The curves know better, since they were measured, but that
        takes a compression for every layer and step. For a model of your own the page asks each decomposition instead what it would lose at
        every width, which takes seconds.
      </p>
    </Lighting>
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
    const request = { samples: 128, seqLen: 256, seed: 0, batchTokens: 1024, mode: 'paper' } as const
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
