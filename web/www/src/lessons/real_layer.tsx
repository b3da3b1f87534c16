import { useState } from 'preact/hooks'

import type { ActivationSpectra } from '../core/protocol.ts'
import { BATCH_TOKENS } from '../needs.ts'
import { currentPlace } from '../place.ts'
import { bundledText, currentSession, fetchModel, measureActivations, observe, open, useSession, weight } from '../session.ts'
import { chosenDevice, chosenSource, titleOf } from '../ui/model.tsx'
import { percent } from '../ui/number.ts'

/** Enough to see what a layer does; compression looks at more. */
const SAMPLES = 16

interface RealProps {
  /** What is shown, as in “Show a query map of a real model”. */
  readonly what: string
  readonly isShown: boolean
  readonly onBack: () => void
}

interface OnRealLayerProps extends RealProps {
  readonly matrix: string
  readonly onWeight: (name: string, weight: { rows: number; cols: number; data: Float32Array }) => void
}

/** Shows the lesson's figure on a matrix of the model that is open, which is opened first if need be. */
export function OnRealLayer({ matrix, onWeight, ...props }: OnRealLayerProps) {
  const show = async (title: string, layer: number) => onWeight(`${title}, ${matrix}`, await weight(layer, matrix))
  return <Show {...props} show={show} takesAll={false} />
}

export interface Seen {
  readonly title: string
  readonly layer: number
  readonly activations: ActivationSpectra
}

/** Shows the lesson's figure on what the data says of a layer of the model that is open, which is observed first if need be. */
export function OnRealData({ onSeen, ...props }: RealProps & { readonly onSeen: (seen: Seen) => void | Promise<void> }) {
  const show = async (title: string, layer: number) => {
    const { statistics, summary } = currentSession()
    const request = { samples: SAMPLES, seqLen: Math.min(256, summary?.context ?? 256), seed: 0, batchTokens: BATCH_TOKENS, mode: 'best' } as const
    if (statistics === null && !(await observe(await bundledText('calibration.txt'), request))) return
    if (!(await measureActivations(layer))) return
    const activations = currentSession().activations[layer]
    if (activations !== undefined) await onSeen({ title, layer, activations })
  }
  return <Show {...props} show={show} takesAll />
}

interface ShowProps extends RealProps {
  readonly show: (title: string, layer: number) => Promise<void>
  /** Whether a part of a model on a server will not do. */
  readonly takesAll: boolean
}

function Show({ what, isShown, onBack, show, takesAll }: ShowProps) {
  const { work, problem } = useSession()
  const [waits, setWaits] = useState(false)
  if (isShown) {
    return (
      <p class="real">
        <button type="button" onClick={onBack}>
          Back to the example
        </button>
      </p>
    )
  }
  const begin = async () => {
    setWaits(true)
    try {
      const source = chosenSource(currentPlace())
      if (!(await open(source, await chosenDevice(currentPlace())))) return
      if (takesAll && !(await fetchModel())) return
      const last = (currentSession().summary?.layers.length ?? 1) - 1
      const layer = Math.min(last, Math.max(0, Math.floor(Number(currentPlace().params['layer'] ?? 0)) || 0))
      await show(`${titleOf(source)}, layer ${layer}`, layer)
    } finally {
      setWaits(false)
    }
  }
  const says = work === null ? 'opening the model' : `${work.what}${work.share === null ? '' : ` ${percent(work.share, 0)}`}`
  return (
    <p class="real">
      <button type="button" disabled={work !== null || waits} onClick={() => void begin()}>
        Show {what} of a real model
      </button>{' '}
      <small role="status">{waits ? `${says} …` : 'fetches the core and a model of 1 MB, once'}</small>
      {problem !== null && <span class="problem">{problem}</span>}
    </p>
  )
}
