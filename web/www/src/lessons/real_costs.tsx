import { useMemo, useState } from 'preact/hooks'

import type { Plan } from '../core/protocol.ts'
import { cheapest, type Costs, costOf, risesOf } from '../math/allocation.ts'
import { currentSession, makePlan } from '../session.ts'
import { Figure } from '../ui/controls.tsx'
import { percent } from '../ui/number.ts'
import { N_STEPS, Payers, Spenders, spentOf } from './payers.tsx'
import { OnRealData } from './real_layer.tsx'

const SPARSITY = 0.3

/** What the layers of the model that is open would lose, by their error curves. */
export interface RealCosts extends Costs {
  readonly title: string
}

/** Shows the lesson on the model that is open, which is observed first if need be. */
export function OnRealCosts({ isShown, onBack, onCosts }: { isShown: boolean; onBack: () => void; onCosts: (costs: RealCosts) => void }) {
  const see = async ({ title }: { title: string }) => {
    if (!(await makePlan({ mode: 'best', sparsity: SPARSITY }))) return
    const { planned, statistics } = currentSession()
    if (planned === null || statistics === null) return
    onCosts({ title: title.replace(/, layer \d+$/, ''), rises: costsOf(planned.plan), blockInfluence: statistics.blockInfluence })
  }
  return <OnRealData what="the budget" isShown={isShown} onBack={onBack} onSeen={see} />
}

/** By layer and step, as the core's curves have it. */
export function costsOf({ layers }: Plan): number[][] {
  return layers.map(({ curves }) => (curves === undefined ? [] : risesOf([curves.d_ff, curves.d_qk, curves.d_v], N_STEPS)))
}

/** The bars again, one for each layer of a real model. */
export function OnRealLayers({ real }: { real: RealCosts }) {
  const nLayers = real.rises.length
  const budget = Math.round(10 * SPARSITY * nLayers)
  const solved = useMemo(() => cheapest(real.rises, budget), [real])
  const [steps, setSteps] = useState<readonly number[]>(() => solved.map((_, i) => Math.floor((budget + i) / nLayers)))
  const spent = spentOf(steps, budget)
  const least = costOf(real, solved)
  return (
    <figure class="panel">
      <p class="caption">
        {real.title}: the lines are what its decompositions say that they would lose, as a share of the energy of the stream (its square root).
      </p>
      <Payers costs={real} steps={steps} onChange={setSteps} />
      <div class="numbers">
        <Figure value={spent.words} label={`of ${budget} steps of 10 %`} tone={spent.exact ? 'kept' : 'lost'} symbol="budget" />
        <Figure value={percent(costOf(real, steps), 2)} label="of the stream lost, layers added up" />
        <Figure value={percent(least, 2)} label="the solver’s" tone="kept" />
      </div>
      <Spenders costs={real} steps={steps} onChange={setSteps} budget={budget} solved={solved} />
    </figure>
  )
}
