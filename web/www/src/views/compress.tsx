import { useEffect, useMemo, useRef, useState } from 'preact/hooks'

import type { LayerPlan, PlanRequest, Summary } from '../core/protocol.ts'
import { useChoice, useNumber } from '../place.ts'
import {
  bundledText,
  compress,
  continueText,
  currentSession,
  files,
  makePlan,
  observe,
  score,
  useSession,
} from '../session.ts'
import { Choice, Slider } from '../ui/controls.tsx'
import { download } from '../ui/download.ts'
import { Drop } from '../ui/drop.tsx'
import { ModelPick } from '../ui/model.tsx'
import { bytes, grouped, percent, short } from '../ui/number.ts'
import { ModelLine, Status } from '../ui/status.tsx'
import { useOpenModel } from './explore.tsx'

const PROMPT = 'Once upon a time, there was a little girl named Lily.'
const NEW_TOKENS = 60
const SAMPLES = 128

export function Compress() {
  useOpenModel(false)
  const { summary, work, statistics, plan, result } = useSession()
  const [sparsity, setSparsity] = useNumber('sparsity', 0.3, 0, 0.7)
  const [mode, setMode] = useChoice('mode', ['best', 'paper'])
  const [allocation, setAllocation] = useChoice('allocation', ['own', 'uniform', 'paper'])
  const [quick, setQuick] = useChoice('held-out', ['quick', 'all'])
  const [calibration, setCalibration] = useState<string | null>(null)
  const [heldOut, setHeldOut] = useState<string | null>(null)
  const [prompt, setPrompt] = useState(PROMPT)
  const request = useMemo(
    (): PlanRequest => ({ sparsity, mode, ...(allocation === 'own' ? {} : { allocation }) }),
    [sparsity, mode, allocation],
  )
  const planned = useRef<unknown>(null)
  useEffect(() => {
    const asked = statistics !== null && work === null && planned.current !== request
    if (!asked) return
    planned.current = request
    void makePlan(request)
  }, [request, statistics, work === null])

  const run = async () => {
    if (summary === null) return
    const seqLen = Math.min(256, summary.context)
    if (currentSession().statistics === null) {
      const text = calibration ?? (await bundledText('calibration.txt'))
      // A text of one's own may be short: as many samples as it has.
      const samples = calibration === null ? SAMPLES : Math.max(1, Math.min(SAMPLES, Math.floor(text.length / (6 * seqLen))))
      if (!(await observe(text, { samples, seqLen, seed: 0, batchTokens: 1024 }))) return
    }
    planned.current = request
    if (!(await makePlan(request))) return
    const made = currentSession().plan
    if (made === null || !(await compress(made))) return
    const held = heldOut ?? (await bundledText('held-out.txt'))
    const windows = quick === 'quick' && heldOut === null ? 32 : undefined
    const length = heldOut === null ? seqLen : Math.min(32, seqLen)
    for (const side of ['dense', 'compressed'] as const) {
      if (currentSession().scores[side] === undefined && !(await score(side, held, length, windows))) return
    }
    for (const side of ['dense', 'compressed'] as const) {
      if (currentSession().texts[side] === undefined && !(await continueText(side, prompt, NEW_TOKENS))) return
    }
  }

  return (
    <div class="compress">
      <h1>Compress</h1>
      <Drop disabled={work !== null}>
        <ModelPick disabled={work !== null} />
        <ModelLine />
      </Drop>
      <Status />
      <div class="split">
        <section class="panel" aria-labelledby="ask-title">
          <h2 id="ask-title">What shall go</h2>
          <Slider
            label="block weights removed"
            value={sparsity}
            onChange={setSparsity}
            min={0}
            max={0.7}
            step={0.01}
            show={(value) => percent(value, 0)}
            disabled={work !== null}
          />
          <Choice
            label="by the methods"
            value={mode}
            onChange={setMode}
            choices={[
              ['best', 'that lose least'],
              ['paper', 'of the paper'],
            ]}
            disabled={work !== null}
          />
          <Choice
            label="each layer gives"
            value={allocation}
            onChange={setAllocation}
            choices={[
              ['own', mode === 'best' ? 'where it costs least' : 'as in the paper'],
              ['uniform', 'the same'],
              ['paper', 'by its block influence'],
            ]}
            disabled={work !== null}
          />
          <Texts
            calibration={calibration}
            heldOut={heldOut}
            prompt={prompt}
            onCalibration={setCalibration}
            onHeldOut={setHeldOut}
            onPrompt={setPrompt}
            disabled={work !== null}
          />
          <Choice
            label="perplexity on"
            value={quick}
            onChange={setQuick}
            choices={[
              ['quick', '32 windows'],
              ['all', 'all of the text'],
            ]}
            disabled={work !== null || heldOut !== null}
          />
          <p>
            <button type="button" class="primary" disabled={work !== null || summary === null} onClick={() => void run()}>
              Compress
            </button>
          </p>
        </section>
        <section class="panel" aria-labelledby="plan-title">
          <h2 id="plan-title">The plan</h2>
          {plan === null || summary === null ? (
            <p class="caption">
              The plan appears here when the model has been observed on a text; then it follows the slider at once.
            </p>
          ) : (
            <PlanTable layers={plan.layers} summary={summary} total={plan.totals.sparsity} />
          )}
        </section>
      </div>
      {result !== null && <Result prompt={prompt} />}
    </div>
  )
}

interface TextsProps {
  calibration: string | null
  heldOut: string | null
  prompt: string
  onCalibration: (text: string | null) => void
  onHeldOut: (text: string | null) => void
  onPrompt: (text: string) => void
  disabled: boolean
}

function Texts({ calibration, heldOut, prompt, onCalibration, onHeldOut, onPrompt, disabled }: TextsProps) {
  const or = (text: string) => (text.trim() === '' ? null : text)
  return (
    <details>
      <summary>Texts of your own</summary>
      <label>
        calibration text <small>children’s stories, unless you give another; a few pages at least</small>
        <textarea rows={3} disabled={disabled} value={calibration ?? ''} onChange={({ currentTarget }) => onCalibration(or(currentTarget.value))} />
      </label>
      <label>
        text to be scored <small>held-out stories, unless you give a paragraph</small>
        <textarea rows={3} disabled={disabled} value={heldOut ?? ''} onChange={({ currentTarget }) => onHeldOut(or(currentTarget.value))} />
      </label>
      <label>
        begin of a text to be continued
        <input type="text" disabled={disabled} value={prompt} onChange={({ currentTarget }) => onPrompt(currentTarget.value)} />
      </label>
    </details>
  )
}

/** What each layer gives, module by module; errors join as layers are done. */
function PlanTable({ layers, summary, total }: { layers: readonly LayerPlan[]; summary: Summary; total: number }) {
  const { layerReports } = useSession()
  return (
    <div class="map-holder">
      <table class="plan">
        <caption>
          {percent(total)} of {grouped(summary.blockParams)} block weights go
        </caption>
        <thead>
          <tr>
            <th scope="col">layer</th>
            <th scope="col">MLP</th>
            <th scope="col">query, key</th>
            <th scope="col">value, output</th>
            <th scope="col">influence</th>
          </tr>
        </thead>
        <tbody>
          {layers.map((layer, i) => {
            const dense = summary.layers[i]
            const report = layerReports[i]
            if (dense === undefined) return null
            return (
              <tr key={i}>
                <th scope="row">{i}</th>
                <Share kept={layer.d_ff} of={dense.dFf} error={report?.mlp.relative_error} />
                <Share kept={layer.d_qk} of={dense.dQk} error={report?.query_key.relative_error} />
                <Share kept={layer.d_v} of={dense.dV} error={report?.value_output.relative_error} />
                <td>{layer.block_influence.toFixed(3)}</td>
              </tr>
            )
          })}
        </tbody>
      </table>
      <p class="caption">Widths that stay, and once a layer is done, the share of the module’s output that is lost on the calibration text.</p>
    </div>
  )
}

function Share({ kept, of, error }: { kept: number; of: number; error: number | undefined }) {
  return (
    <td>
      <span class="share" style={{ '--share': kept / of }}>
        {kept} <small>of {of}</small>
      </span>
      <small class="error">{error === undefined ? ' ' : error === 0 ? 'untouched' : `${short(100 * error)} % lost`}</small>
    </td>
  )
}

function Result({ prompt }: { prompt: string }) {
  const { summary, result, scores, texts, source } = useSession()
  const [saving, setSaving] = useState(false)
  if (summary === null || result === null) return null
  const { report, summary: after, seconds } = result
  const rows: readonly (readonly [string, string, string])[] = [
    ['perplexity', scores.dense?.perplexity.toFixed(3) ?? '…', scores.compressed?.perplexity.toFixed(3) ?? '…'],
    ['block weights', grouped(summary.blockParams), grouped(after.blockParams)],
    ['all parameters', grouped(summary.params), grouped(after.params)],
    ['bytes', bytes(summary.bytes), bytes(after.bytes)],
    ['tokens/s, writing', speed(texts.dense?.tokensPerSecond), speed(texts.compressed?.tokensPerSecond)],
  ]
  const save = async () => {
    setSaving(true)
    try {
      download(`${source?.name ?? 'model'}-${Math.round(100 * report.totals.sparsity)}.tar`, await files())
    } finally {
      setSaving(false)
    }
  }
  return (
    <section class="panel result" aria-labelledby="result-title">
      <h2 id="result-title">Before and after</h2>
      <table>
        <thead>
          <tr>
            <td />
            <th scope="col">before</th>
            <th scope="col">after</th>
          </tr>
        </thead>
        <tbody>
          {rows.map(([name, before, after]) => (
            <tr key={name}>
              <th scope="row">{name}</th>
              <td>{before}</td>
              <td>{after}</td>
            </tr>
          ))}
        </tbody>
      </table>
      <p class="caption">
        {percent(report.totals.sparsity)} of the block weights removed in {seconds.toFixed(1)} s
        {report.fallbacks > 0 && `; ${report.fallbacks} factorisations needed more jitter than asked for`}
        {scores.dense !== undefined && `; perplexity on ${grouped(scores.dense.n_tokens)} tokens in windows of ${scores.dense.seq_len}`}
      </p>
      <div class="pair texts">
        {(['dense', 'compressed'] as const).map((side) => (
          <blockquote key={side} aria-label={side === 'dense' ? 'written before' : 'written after'}>
            <b>{side === 'dense' ? 'before' : 'after'}</b>
            <p>
              <span class="prompt">{prompt}</span>
              {texts[side]?.text ?? ' …'}
            </p>
          </blockquote>
        ))}
      </div>
      <p>
        <button type="button" disabled={saving} onClick={() => void save()}>
          Download the compressed model
        </button>{' '}
        <small>a folder in a .tar, as modegpt and transformers load it, with plan and report</small>
      </p>
    </section>
  )
}

function speed(tokensPerSecond: number | undefined): string {
  return tokensPerSecond === undefined ? '…' : tokensPerSecond.toFixed(0)
}
