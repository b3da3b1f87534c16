import { useEffect } from 'preact/hooks'

import type { ActivationSpectra, Spectrum, Summary } from '../core/protocol.ts'
import { lostShares } from '../math/svd.ts'
import { marchenkoPastur } from '../math/random_matrix.ts'
import { setParams, useChoice, useNumber, usePlace } from '../place.ts'
import { BATCH_TOKENS, storedBytes } from '../needs.ts'
import {
  bundledText,
  choose,
  chooseAll,
  lookOn,
  measureActivations,
  observe,
  obstacle,
  open,
  SAMPLES,
  useSession,
} from '../session.ts'
import { Chart } from '../ui/chart.tsx'
import { Choice, Figure, Pick } from '../ui/controls.tsx'
import { Drop } from '../ui/drop.tsx'
import { WhyOff } from '../ui/limits.tsx'
import { chosenDevice, chosenSource, ModelPick } from '../ui/model.tsx'
import { bytes, percent, short } from '../ui/number.ts'
import { Status, ModelLine } from '../ui/status.tsx'

const MEASURES = ['effective', 'rank90', 'stable'] as const
type Measure = (typeof MEASURES)[number]
const MEASURE_TITLES: readonly (readonly [Measure, string])[] = [
  ['effective', 'effective rank'],
  ['rank90', 'rank for 90 %'],
  ['stable', 'stable rank'],
]

/** Opens the chosen model; does so again after the core had to be started anew. */
export function useOpenModel(): void {
  const place = usePlace()
  const { summary, work, problem } = useSession()
  const { model, device } = place.params
  useEffect(() => {
    if (problem !== null) return
    void chosenDevice(place).then((device) => open(chosenSource(place), device))
  }, [model, device, summary === null, work === null, problem === null])
}

export function Explore() {
  useOpenModel()
  const session = useSession()
  const { summary, spectra, work, problem } = session
  const [measure, setMeasure] = useChoice('measure', MEASURES)
  const { matrix: asked } = usePlace().params
  const [layer] = useNumber('layer', 0, 0, Math.max(0, (summary?.layers.length ?? 1) - 1))
  useEffect(() => {
    if (work === null && problem === null) void lookOn()
  }, [session, layer])
  const found = spectra[layer]
  const names = ['query', 'key', 'value', 'output', ...(summary?.gated === true ? ['gate'] : []), 'up', 'down', 'value·output']
  const matrix = names.find((name) => name === asked) ?? 'query'
  return (
    <div class="explore">
      <h1>Explore</h1>
      <Drop disabled={work !== null}>
        <ModelPick disabled={work !== null} />
        <ModelLine />
      </Drop>
      <Status />
      {summary !== null && (
        <div class="split">
          <section aria-labelledby="map-title" class="panel">
            <h2 id="map-title">The map</h2>
            <Choice label="coloured by" value={measure} choices={MEASURE_TITLES} onChange={setMeasure} />
            <ModelMap summary={summary} names={names} measure={measure} chosen={{ layer, matrix }} />
          </section>
          {found === undefined ? (
            <Unseen layer={layer} summary={summary} />
          ) : (
            <Detail key={`${layer} ${matrix}`} layer={layer} matrix={matrix} spectra={found} summary={summary} />
          )}
        </div>
      )}
    </div>
  )
}

/** A product's name may break behind its dot. */
function breakable(name: string) {
  return name.split('·').flatMap((part, i) => (i === 0 ? [part] : ['·', <wbr />, part]))
}

function shareOf(measure: Measure, spectra: readonly Spectrum[]): number {
  const of = (spectrum: Spectrum) => {
    const full = spectrum.singular_values.length
    const rank = { effective: spectrum.effective_rank, rank90: spectrum.rank_90, stable: spectrum.stable_rank }[measure]
    return full > 0 ? rank / full : 0
  }
  return spectra.reduce((sum, spectrum) => sum + of(spectrum), 0) / spectra.length
}

interface MapProps {
  summary: Summary
  names: readonly string[]
  measure: Measure
  chosen: { layer: number; matrix: string }
}

/** Layers by matrices, each cell as strong as its measure; what has not been looked at is empty. */
function ModelMap({ summary, names, measure, chosen }: MapProps) {
  const { spectra, looking, statistics, arrival, unasked, work } = useSession()
  const nLayers = summary.layers.length
  const nSeen = spectra.filter((found) => found !== undefined).length
  return (
    <div class="map-holder">
      <table class="map">
        <caption class="visually-hidden">Share of the full rank, by layer and matrix</caption>
        <thead>
          <tr>
            <th scope="col">layer</th>
            {names.map((name) => (
              <th key={name} scope="col">
                {breakable(name)}
              </th>
            ))}
            {statistics !== null && <th scope="col">influence</th>}
          </tr>
        </thead>
        <tbody>
          {summary.layers.map(({ incomplete }, layer) => (
            <tr key={layer} class={spectra[layer] === undefined ? undefined : 'seen'}>
              <th scope="row">
                {layer}
                {spectra[layer] !== undefined && <span class="visually-hidden">, looked at</span>}
              </th>
              {names.map((name) => {
                const known = spectra[layer] ?? (looking?.layer === layer ? looking.spectra : [])
                const found = known.filter((spectrum) => spectrum.matrix === name)
                const share = found.length === 0 ? undefined : shareOf(measure, found)
                const isChosen = chosen.layer === layer && chosen.matrix === name
                return (
                  <td key={name}>
                    <button
                      type="button"
                      aria-pressed={isChosen}
                      class={share === undefined ? 'unseen' : undefined}
                      aria-label={`layer ${layer}, ${name}, ${share === undefined ? (incomplete ? 'missing' : 'not looked at') : `${percent(share, 0)} of the full rank`}`}
                      style={{ '--share': share ?? 0 }}
                      onClick={() => {
                        choose(layer)
                        setParams({ layer: layer === 0 ? undefined : String(layer), matrix: name, cut: undefined })
                      }}
                    >
                      {share === undefined ? (incomplete ? '×' : '·') : Math.round(100 * share)}
                    </button>
                  </td>
                )
              })}
              {statistics !== null && <td class="influence">{statistics.blockInfluence[layer]?.toFixed(3)}</td>}
            </tr>
          ))}
        </tbody>
      </table>
      <p class="caption">
        Percent of the full rank. Low and pale: few directions do most of the work. High and deep: all are needed.
        {nSeen < nLayers && ` Looked at so far: ${nSeen} of ${nLayers} layers. Choose another to see it.`}
      </p>
      {nSeen < nLayers && arrival === null && unasked !== 'all' && (
        <p class="buttons">
          <button type="button" disabled={work !== null} onClick={chooseAll}>
            Look at all layers
          </button>
        </p>
      )}
    </div>
  )
}

/** In place of a layer that has not been looked at. */
function Unseen({ layer, summary }: { layer: number; summary: Summary }) {
  const { unseen, arrival, looking, work } = useSession()
  const why = unseen[layer]
  const size = bytes(storedBytes(summary, layer))
  return (
    <section class="panel" aria-labelledby="unseen-title">
      <h2 id="unseen-title">Layer {layer}</h2>
      {why !== undefined && (
        <p class="problem" role="alert">
          Layer {layer} cannot be shown: {why.charAt(0).toLowerCase() + why.slice(1).replace(/\.$/, '')}.
        </p>
      )}
      {looking?.layer === layer ? (
        <p class="caption">Its singular values are being taken; the map shows those that are known.</p>
      ) : (
        <p>
          <button type="button" disabled={work !== null} onClick={() => choose(layer)}>
            {arrival === null ? `Look at layer ${layer}` : `Fetch layer ${layer}`}
          </button>{' '}
          <small>{arrival === null ? `reads ${size}` : size}</small>
        </p>
      )}
    </section>
  )
}

interface DetailProps {
  layer: number
  matrix: string
  spectra: readonly Spectrum[]
  summary: Summary
}

function Detail({ layer, matrix, spectra, summary }: DetailProps) {
  const ours = spectra.filter((spectrum) => spectrum.matrix === matrix)
  const [head, setHead] = useNumber('head', 0, 0, Math.max(0, ours.length - 1))
  const spectrum = ours[Math.min(head, ours.length - 1)]
  if (spectrum === undefined) return null
  return (
    <div class="details">
      <section class="panel" aria-labelledby="weight-title">
        <h2 id="weight-title">
          Layer {layer}, {matrix} <small>by itself</small>
        </h2>
        {ours.length > 1 && <HeadPick n={ours.length} head={head} onChange={setHead} />}
        <WeightSpectrum spectrum={spectrum} />
      </section>
      <Activations layer={layer} matrix={matrix} summary={summary} spectrum={spectrum} head={head} onHead={setHead} />
    </div>
  )
}

function HeadPick({ n, head, onChange }: { n: number; head: number; onChange: (head: number) => void }) {
  const choices = Array.from({ length: n }, (_, i) => [String(i), `head ${i}`] as const)
  return <Pick label="of" value={String(head)} choices={choices} onChange={(value) => onChange(Number(value))} />
}

function WeightSpectrum({ spectrum }: { spectrum: Spectrum }) {
  const { singular_values: values, rows, cols, effective_rank, stable_rank } = spectrum
  const [cut, setCut] = useNumber('cut', Math.round(0.7 * values.length), 0, values.length)
  const lost = lostShares(values)[cut] ?? 0
  const energy = values.reduce((sum, value) => sum + value * value, 0)
  // A product is not of independent entries, so the law says nothing of it.
  const noise = spectrum.kv_head === undefined ? marchenkoPastur(rows, cols, energy) : []
  return (
    <>
      <Chart
        label="Singular values of the weight"
        series={[
          { name: 'singular values', values, tone: 'weight', shape: 'bars' },
          ...(noise.length > 0 ? [{ name: 'a random matrix of this size (Marchenko–Pastur)', values: noise, tone: 'ink', shape: 'dashed' } as const] : []),
        ]}
        xLabel="rank"
        yLabel="σ"
        cut={{ value: cut, onChange: setCut, label: 'Rank that is kept' }}
      />
      <div class="numbers">
        <Figure value={`${cut} of ${values.length}`} label="rank" />
        <Figure value={percent(1 - lost, 1)} label="of the energy kept" tone="kept" />
        <Figure value={effective_rank.toFixed(1)} label="effective rank" />
        <Figure value={stable_rank.toFixed(1)} label="stable rank" />
      </div>
      <p class="caption">
        {rows} × {cols}; a product of rank {cut} would have {percent((cut * (rows + cols)) / (rows * cols), 0)} of its numbers
      </p>
    </>
  )
}

interface ActivationsProps {
  layer: number
  matrix: string
  summary: Summary
  spectrum: Spectrum
  head: number
  onHead: (head: number) => void
}

/** The same matrix, seen by the data. */
function Activations({ layer, matrix, summary, spectrum, head, onHead }: ActivationsProps) {
  const session = useSession()
  const { statistics, arrival, activations, work } = session
  const isOff = obstacle(session) !== null
  useEffect(() => void measureActivations(layer), [layer, statistics, work === null])
  const seen = activations[layer]
  const look = async () => {
    const request = { samples: SAMPLES, seqLen: Math.min(256, summary.context), seed: 0, batchTokens: BATCH_TOKENS, mode: 'best' } as const
    await observe(await bundledText('calibration.txt'), request)
  }
  return (
    <section class="panel" aria-labelledby="data-title">
      <h2 id="data-title">
        Layer {layer}, {matrix} <small>where the data lives</small>
      </h2>
      {statistics === null && (
        <>
          <p>
            A weight alone does not tell what may go. Pass some text through the model, and see what its activations say of the same matrix.
          </p>
          <p>
            <button type="button" class="primary" disabled={work !== null || arrival !== null || isOff} onClick={() => void look()}>
              Observe the model on a text
            </button>
          </p>
          <WhyOff />
          {arrival !== null && !isOff && <p class="caption">It takes all of the model, which has not arrived yet.</p>}
        </>
      )}
      {statistics !== null && (
        <p class="caption">
          seen on {statistics.samples} samples of {statistics.seqLen} tokens
        </p>
      )}
      {seen !== undefined && <Seen matrix={matrix} seen={seen} spectrum={spectrum} head={head} onHead={onHead} />}
    </section>
  )
}

interface SeenProps {
  matrix: string
  seen: ActivationSpectra
  spectrum: Spectrum
  head: number
  onHead: (head: number) => void
}

function Seen({ matrix, seen, spectrum, head, onHead }: SeenProps) {
  if (matrix === 'query' || matrix === 'key') return <PairScores seen={seen} head={head} onHead={onHead} />
  if (matrix === 'value' || matrix === 'output' || matrix === 'value·output') {
    return <ValueOutput seen={seen} spectrum={spectrum} head={head} onHead={onHead} />
  }
  return <Hidden seen={seen} matrix={matrix} />
}

function Hidden({ seen, matrix }: { seen: ActivationSpectra; matrix: string }) {
  const { hidden, leverage, down_errors: errors } = seen
  const dead = seen.hidden_energy.filter((energy) => energy === 0).length
  // Nearly all scores of a real layer are close to 1; what tells units apart is how far they stay below.
  const replaceable = leverage.map((score) => Math.max(0, 1 - score)).sort((a, b) => a - b)
  return (
    <>
      {matrix === 'down' && (
        <>
          <h3>Three ways to cut the down map</h3>
          <Chart
            label="Error of the down map by rank, cut in three metrics"
            series={[
              { name: 'plain SVD', values: errors.plain, tone: 'weight' },
              { name: 'row weights', values: errors.row_weighted, tone: 'ink', shape: 'dashed' },
              { name: 'whitened', values: errors.whitened, tone: 'data' },
            ]}
            first={0}
            range={[0, 1]}
            xLabel="rank"
            yLabel="share of the output lost"
          />
        </>
      )}
      <h3>Energy of the hidden units, by direction</h3>
      <Chart
        label="Eigenvalues of the Gram matrix of hidden units"
        series={[{ name: 'eigenvalues of C', values: hidden, tone: 'data', shape: 'bars' }]}
        logarithmic
        height={190}
        xLabel="direction"
        yLabel="energy"
      />
      <h3>How replaceable each hidden unit is</h3>
      <Chart
        label="One minus the ridge leverage score of the hidden units, ascending"
        series={[{ name: '1 − leverage', values: replaceable, tone: 'data', shape: 'bars' }]}
        logarithmic
        height={170}
        xLabel="hidden unit, the hardest to replace first"
        yLabel="1 − leverage"
      />
      <p class="caption">
        {leverage.length} units, of which {dead} never fired; block influence {seen.block_influence.toFixed(3)}
      </p>
    </>
  )
}

function ValueOutput({ seen, spectrum, head, onHead }: Omit<SeenProps, 'matrix'>) {
  const data = shares(seen.value_output[head] ?? [])
  const weight = spectrum.kv_head === undefined ? [] : shares(spectrum.singular_values.map((value) => value * value))
  return (
    <>
      <h3>What each direction of values through outputs carries</h3>
      <HeadPick n={seen.value_output.length} head={head} onChange={onHead} />
      <Chart
        label="Output carried by each direction of the value–output product"
        series={[
          { name: 'through the data', values: data, tone: 'data', shape: 'bars' },
          ...(weight.length > 0 ? [{ name: 'by the weight alone', values: weight, tone: 'weight' } as const] : []),
        ]}
        logarithmic
        xLabel="direction"
        yLabel="share"
      />
      {weight.length === 0 && <p class="caption">Choose value·output on the map to see the weight’s own spectrum beside it.</p>}
    </>
  )
}

function PairScores({ seen, head, onHead }: { seen: ActivationSpectra; head: number; onHead: (head: number) => void }) {
  const scores = seen.query_key[head] ?? []
  const frequencies = seen.rotary_frequencies[head]
  const rotary = frequencies !== undefined
  return (
    <>
      <h3>{rotary ? 'Scores of the rotary pairs, from fast to slow' : 'Scores of the coordinates'}</h3>
      <HeadPick n={seen.query_key.length} head={head} onChange={onHead} />
      <Chart
        label={rotary ? 'Scores of rotary pairs by frequency' : 'Scores of query and key coordinates'}
        series={[{ name: 'score', values: scores, tone: 'data', shape: 'bars' }]}
        xLabel={rotary ? 'pair' : 'coordinate'}
        yLabel="score"
      />
      {rotary && (
        <p class="caption">
          The first pair turns once in {short((2 * Math.PI) / (frequencies[0] ?? 1))} tokens, the last once in{' '}
          {short((2 * Math.PI) / (frequencies.at(-1) ?? 1))}.
        </p>
      )}
    </>
  )
}

function shares(energies: readonly number[]): number[] {
  const total = energies.reduce((a, b) => a + b, 0)
  return energies.map((energy) => (total > 0 ? energy / total : 0))
}
