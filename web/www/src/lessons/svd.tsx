import { useMemo, useState } from 'preact/hooks'
import formula from 'virtual:formula/svd'

import { Matrix } from '../math/matrix.ts'
import { lostShares, type Svd, svd, truncated } from '../math/svd.ts'
import { useNumber } from '../place.ts'
import { Chart } from '../ui/chart.tsx'
import { Figure } from '../ui/controls.tsx'
import { Formula, Lighting, Symbol } from '../ui/formula.tsx'
import { Heatmap } from '../ui/heatmap.tsx'
import { grouped, percent } from '../ui/number.ts'
import { PICTURE, PICTURE_SVD } from './prepared.ts'
import { OnRealLayer } from './real_layer.tsx'

interface Subject {
  readonly title: string
  readonly matrix: Matrix
  readonly decomposition: Svd
  readonly look: 'photograph' | 'signed'
}

const EXAMPLE: Subject = { title: 'a picture', matrix: PICTURE, decomposition: PICTURE_SVD, look: 'photograph' }

export function SvdLesson() {
  const [subject, setSubject] = useState<Subject>(EXAMPLE)
  const { title, matrix, decomposition, look } = subject
  const n = decomposition.values.length
  const [asked, setRank] = useNumber('rank', 8, 0, Math.max(n, PICTURE.rows))
  const rank = Math.min(asked, n)
  const cut = useMemo(() => truncated(decomposition, rank), [decomposition, rank])
  const lost = useMemo(() => lostShares(decomposition.values)[rank] ?? 0, [decomposition, rank])
  const numbers = rank * (matrix.rows + matrix.cols)
  const scale = Math.max(...matrix.data.map(Math.abs))
  const size = `${matrix.rows} × ${matrix.cols}`
  return (
    <Lighting class="lesson-body">
      <p>
        Any <Symbol name="matrix">matrix</Symbol> is a sum of simple ones. Each <Symbol name="kept">term</Symbol> is one column times
        one row, with a number <i>σ</i> in front that says how much it adds: a singular value. The largest come first. Keep the
        first <Symbol name="rank">r</Symbol> terms, and no other matrix that is made of r such terms comes nearer. What you lose is the sum of
        the <Symbol name="lost">squares σ² that you left out</Symbol>; all of them together are the energy of the matrix, the sum of
        the squares of its numbers.
      </p>
      <p class="do">Drag the line, or give it the focus and press the arrow keys.</p>
      <figure class="panel">
        <div class="pair">
          <div>
            <Heatmap matrix={matrix} look={look} scale={scale} label={`${title}, all of it`} symbol="matrix" />
            <p class="caption">
              {title}: {size}, {grouped(matrix.rows * matrix.cols)} numbers
            </p>
          </div>
          <div>
            <Heatmap matrix={cut} look={look} scale={scale} label={`${title}, its first ${rank} terms`} symbol="kept" />
            <p class="caption">
              its first {rank} {rank === 1 ? 'term' : 'terms'}: {grouped(numbers)} numbers
            </p>
          </div>
        </div>
        <Chart
          label={`Singular values of ${title}`}
          series={[{ name: 'σ', values: decomposition.values, tone: 'kept', shape: 'bars' }]}
          logarithmic
          xLabel="number of the term"
          yLabel="σ"
          cut={{ value: rank, onChange: setRank, label: 'Rank: terms that are kept' }}
        />
        <div class="numbers">
          <Figure value={String(rank)} label="rank" symbol="rank" />
          <Figure value={percent(1 - lost, 2)} label="of the energy kept" tone="kept" symbol="kept" />
          <Figure value={percent(lost, 2)} label="lost" tone="lost" symbol="lost" />
          <Figure value={percent(numbers / (matrix.rows * matrix.cols), 0)} label="of the numbers" />
        </div>
      </figure>
      <Formula html={formula} />
      <p>
        A lighthouse needs few terms: its rows resemble each other. The weights of a language model, the matrices that it multiplies
        by, are not like that. Their singular values fall slowly, and cutting them as they stand costs dearly. See for yourself on a query
        map, one of the matrices with which a model pays attention; then go on to the next lesson, which shows what to look at instead.
      </p>
      <OnRealLayer
        what="a query map"
        matrix="query"
        isShown={subject !== EXAMPLE}
        onBack={() => setSubject(EXAMPLE)}
        onWeight={(title, { rows, cols, data }) => {
          const matrix = new Matrix(rows, cols, data)
          setSubject({ title, matrix, decomposition: svd(matrix), look: 'signed' })
        }}
      />
    </Lighting>
  )
}
