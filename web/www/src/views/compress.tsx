import { useEffect, useMemo, useRef, useState } from 'preact/hooks'

import { type HeldWidth, type Mode, MODES, MODULES, type PlanRequest, takesMaps } from '../core/protocol.ts'
import { folderName } from '../core/store/tar.ts'
import { BATCH_TOKENS } from '../needs.ts'
import { setParams, useChoice, useNumber, usePlace } from '../place.ts'
import {
  bundledText,
  compress,
  continueText,
  currentSession,
  fetchWanted,
  makePlan,
  observe,
  obstacle,
  SAMPLES,
  score,
  useSession,
} from '../session.ts'
import { Checks, Choice, Pick, Slider } from '../ui/controls.tsx'
import { download } from '../ui/download.ts'
import { Drop } from '../ui/drop.tsx'
import { WhyOff } from '../ui/limits.tsx'
import { ModelPick } from '../ui/model.tsx'
import { bytes, grouped, percent } from '../ui/number.ts'
import { ModelLine, Status } from '../ui/status.tsx'
import { Allocation, denseWidth } from './allocation.tsx'
import { useOpenModel } from './explore.tsx'

const PROMPT = 'Once upon a time, there was a little girl named Lily.'
const NEW_TOKENS = 60

/** How much each layer gives. */
type Spread = 'uniform' | 'paper' | 'curves'
const SPREADS: readonly (readonly [Spread, string])[] = [
  ['curves', 'where it costs least'],
  ['paper', 'by its block influence'],
  ['uniform', 'the same'],
]
/** If nothing is said; of the other modes the same for every layer. */
const USUAL: Readonly<Partial<Record<Mode, Spread>>> = { best: 'curves', paper: 'paper' }

const METHODS: readonly (readonly [Mode, string])[] = [
  ['best', 'modular: what loses least'],
  ['paper', 'modular: as the paper does'],
  ['svd', 'every map: plain SVD'],
  ['fwsvd', 'every map: FWSVD, by gradients'],
  ['asvd', 'every map: ASVD, by sizes of inputs'],
  ['svd-llm', 'every map: SVD-LLM, whitened'],
  ['sliced', 'slices: the smallest go'],
]

export function Compress() {
  useOpenModel()
  const session = useSession()
  const { summary, arrival, work, statistics, planned, result } = session
  useEffect(() => {
    if (work === null) void fetchWanted()
  }, [session])
  const [sparsity, setSparsity] = useNumber('sparsity', 0.3, 0, 0.7)
  const [mode, setMode] = useChoice('mode', MODES)
  const isOff = obstacle(session, mode) !== null
  const [allocation, setAllocation] = useChoice('allocation', ['own', 'uniform', 'paper', 'curves'])
  const usual = USUAL[mode] ?? 'uniform'
  const spread = allocation === 'own' ? usual : allocation
  const [quick, setQuick] = useChoice('held-out', ['quick', 'all'])
  const [calibration, setCalibration] = useState<string | null>(null)
  const [heldOut, setHeldOut] = useState<string | null>(null)
  const [prompt, setPrompt] = useState(PROMPT)
  // Widths of modules are set by hand; of maps, ranks would have to be.
  const hasWidths = !takesMaps(mode)
  const byCurves = spread === 'curves' && hasWidths
  const { held: asked = '', off: without = '' } = usePlace().params
  const off = useMemo(() => {
    const named = byCurves ? MODULES.filter((module) => without.split('_').includes(module)) : []
    return named.length < MODULES.length ? named : []
  }, [without, byCurves])
  const held = useMemo(() => (byCurves ? parseHeld(asked).filter(({ module }) => !off.includes(module)) : []), [asked, byCurves, off])
  // A module that gives nothing keeps its width in every layer.
  const kept = useMemo(
    () => off.flatMap((module) => (summary?.layers ?? []).map((dense, layer) => ({ layer, module, width: denseWidth(dense, module) }))),
    [off, summary],
  )
  const request = useMemo((): [PlanRequest, readonly HeldWidth[]] => {
    const names = { uniform: 'uniform', paper: 'paper', curves: 'error-curves' } as const
    return [{ sparsity, mode, allocation: names[spread] }, [...held, ...kept]]
  }, [sparsity, mode, spread, held, kept])
  const isServed = statistics?.modes.includes(mode) === true
  const last = useRef<unknown>(null)
  useEffect(() => {
    if (!isServed || work !== null || last.current === request) return
    last.current = request
    void makePlan(...request)
  }, [request, statistics, work === null])
  const hold = (widths: readonly HeldWidth[]) => {
    // Those of modules that give nothing count again when these give.
    const all = [...parseHeld(asked).filter(({ module }) => off.includes(module)), ...widths]
    setParams({ held: all.length === 0 ? undefined : formatHeld(all) })
  }

  const run = async () => {
    if (summary === null) return
    const seqLen = Math.min(256, summary.context)
    const text = calibration ?? (await bundledText('calibration.txt'))
    // A text of one's own may be short: as many samples as it has.
    const samples = calibration === null ? SAMPLES : Math.max(1, Math.min(SAMPLES, Math.floor(text.length / (6 * seqLen))))
    if (!(await observe(text, { samples, seqLen, seed: 0, batchTokens: BATCH_TOKENS, mode }))) return
    last.current = request
    if (!(await makePlan(...request))) return
    const made = currentSession().planned
    if (made === null || !(await compress(made.plan))) return
    const scored = heldOut ?? (await bundledText('held-out.txt'))
    const windows = quick === 'quick' && heldOut === null ? 32 : undefined
    const length = heldOut === null ? seqLen : Math.min(32, seqLen)
    for (const side of ['dense', 'compressed'] as const) {
      if (currentSession().scores[side] === undefined && !(await score(side, scored, length, windows))) return
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
          <Pick label="method" value={mode} onChange={setMode} choices={METHODS} disabled={work !== null} />
          <Choice
            label="each layer gives"
            value={spread}
            onChange={(value) => setAllocation(value === usual ? 'own' : value)}
            choices={SPREADS}
            disabled={work !== null}
          />
          <Checks
            label="of its modules"
            values={MODULES.filter((module) => !off.includes(module))}
            onChange={(giving) => setParams({ off: giving.length === MODULES.length ? undefined : MODULES.filter((one) => !giving.includes(one)).join('_') })}
            choices={[
              ['mlp', 'MLP'],
              ['query-key', 'query, key'],
              ['value-output', 'value, output'],
            ]}
            disabled={work !== null || !byCurves}
          />
          {!byCurves && <p class="caption">{hasWidths ? 'All modules give, unless each gives where it costs least.' : 'Every map gives.'}</p>}
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
            <button type="button" class="primary" disabled={work !== null || summary === null || arrival !== null || isOff} onClick={() => void run()}>
              Compress
            </button>
          </p>
          <WhyOff mode={mode} />
        </section>
        <section class="panel" aria-labelledby="plan-title">
          <h2 id="plan-title">The plan</h2>
          {planned === null || summary === null || !isServed ? (
            <p class="caption">
              {statistics === null || isServed
                ? 'The plan appears here when the model has been observed on a text; then it follows the slider at once, and can be set by hand.'
                : 'These methods ask more of the text than was observed: the plan appears here when the model has been observed for them.'}
            </p>
          ) : (
            <>
              <Caution mode={mode} />
              <Allocation planned={planned} summary={summary} held={held} off={off} onHold={byCurves ? hold : undefined} disabled={work !== null} />
              {!byCurves && hasWidths && (
                <p>
                  <button type="button" disabled={work !== null} onClick={() => setAllocation(usual === 'curves' ? 'own' : 'curves')}>
                    Set it by hand
                  </button>{' '}
                  <small>asks every layer first what it would lose</small>
                </p>
              )}
            </>
          )}
        </section>
      </div>
      {result !== null && <Result prompt={prompt} />}
    </div>
  )
}

/** From so many tokens for each hidden unit on, least squares learn from them alone: `Ridges::TOKENS_PER_UNKNOWN` of the core. */
const TOKENS_PER_UNIT = 16

/** What few tokens change. */
function Caution({ mode }: { mode: Mode }) {
  const { statistics, summary } = useSession()
  if (statistics === null || summary === null) return null
  const tokens = statistics.samples * statistics.seqLen
  const units = Math.max(...summary.layers.map(({ dFf }) => dFf))
  const refits = mode === 'best' || mode === 'paper'
  if (tokens >= (refits ? TOKENS_PER_UNIT : 2) * units) return null
  return (
    <p class={refits ? 'caption' : 'problem'}>
      The calibration text has only {grouped(tokens)} tokens for {grouped(units)} hidden units in a layer:{' '}
      {refits
        ? `with fewer than ${TOKENS_PER_UNIT} for each, down maps are held to the weights that are there, and a longer one would lose less.`
        : 'what is fitted to it may be far off elsewhere. Give a longer one.'}
    </p>
  )
}

/** `0.mlp.264_2.value-output.16`; what cannot be read is as if it were not there. */
function parseHeld(text: string): HeldWidth[] {
  return text.split('_').flatMap((one) => {
    const [layer = '', name, width = ''] = one.split('.')
    const module = MODULES.find((module) => module === name)
    const numbers = [Number(layer), Number(width)] as const
    return module === undefined || !numbers.every(Number.isSafeInteger) ? [] : [{ layer: numbers[0], module, width: numbers[1] }]
  })
}

function formatHeld(held: readonly HeldWidth[]): string {
  return held.map(({ layer, module, width }) => `${layer}.${module}.${width}`).join('_')
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

function Result({ prompt }: { prompt: string }) {
  const { summary, result, scores, texts, source } = useSession()
  if (summary === null || result === null) return null
  const { report, summary: after, kept, seconds } = result
  const rows: readonly (readonly [string, string, string])[] = [
    ['perplexity', scores.dense?.perplexity.toFixed(3) ?? '…', scores.compressed?.perplexity.toFixed(3) ?? '…'],
    ['block weights', grouped(summary.blockParams), grouped(after.blockParams)],
    ['all parameters', grouped(summary.params), grouped(after.params)],
    ['bytes', bytes(summary.bytes), bytes(after.bytes)],
    ['tokens/s, writing', speed(texts.dense?.tokensPerSecond), speed(texts.compressed?.tokensPerSecond)],
  ]
  const save = () => download(`${folderName(source?.name ?? '')}-${Math.round(100 * report.totals.sparsity)}.tar`, kept.archive)
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
        <button type="button" onClick={save}>
          Download the compressed model
        </button>{' '}
        <small>a folder in a .tar, as modegpt and transformers load it, with plan and report</small>
      </p>
      {kept.inMemory !== null && <p class="caption">It is held in memory: {kept.inMemory}.</p>}
    </section>
  )
}

function speed(tokensPerSecond: number | undefined): string {
  return tokensPerSecond === undefined ? '…' : tokensPerSecond.toFixed(0)
}
