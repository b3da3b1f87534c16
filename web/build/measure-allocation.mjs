// Makes www/src/lessons/measured.json: what it costs to compress each layer of the bundled OPT model alone.
//
//   node build/measure-allocation.mjs path/to/modegpt
//
// For every layer and sparsity a plan is written in which only this layer shrinks; the model is compressed by it and
// scored. The lesson adds up the rises of the loss, which is an approximation that the lesson tells of and can check.
import { execFileSync } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'

const [modegpt] = process.argv.slice(2)
const here = (path) => fileURLToPath(new URL(path, import.meta.url))
const demo = here('../../cli/demo')
const model = `${demo}/opt-tiny-stories`
const work = mkdtempSync(join(tmpdir(), 'allocation-'))
const SPARSITIES = [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8]
const WINDOWS = 48

const run = (...args) => execFileSync(modegpt, [...args, '--device', 'cpu'], { encoding: 'utf8', stdio: ['ignore', 'pipe', 'ignore'] })
const statistics = `${work}/statistics`
run('calibrate', model, '-o', statistics, '--calibration', `${demo}/calibration.txt`, '--samples', '128', '--seq-len', '256')
const score = (folder) => {
  const text = ['--text', `${demo}/held-out.txt`, '--seq-len', '256', '--max-windows', String(WINDOWS)]
  return Math.log(JSON.parse(run('eval', folder, ...text, '--json')).perplexity)
}
const planAt = (sparsity) => {
  const file = `${work}/plan.json`
  const options = ['--statistics', statistics, '--sparsity', String(sparsity), '--mode', 'paper', '--allocation', 'uniform']
  execFileSync(modegpt, ['plan', model, ...options, '-o', file], { stdio: 'ignore' })
  return JSON.parse(readFileSync(file, 'utf8'))
}
const dense = planAt(0)
const loss = score(model)
const widths = SPARSITIES.map((sparsity) => {
  const { d_ff, d_qk, d_v } = planAt(sparsity).layers[0]
  return { d_ff, d_qk, d_v }
})
const rises = dense.layers.map((_, layer) =>
  widths.map((width, step) => {
    if (step === 0) return 0
    const plan = structuredClone(dense)
    Object.assign(plan.layers[layer], width)
    writeFileSync(`${work}/one.json`, JSON.stringify(plan))
    const out = `${work}/out`
    run('compress', model, '-o', out, '--force', '--statistics', statistics, '--plan', `${work}/one.json`)
    return Number((score(out) - loss).toFixed(5))
  }),
)
rmSync(work, { recursive: true })
const blockInfluence = dense.layers.map((layer) => Number(layer.block_influence.toFixed(5)))
const measured = { model: 'opt-tiny-stories', windows: WINDOWS, loss: Number(loss.toFixed(5)), sparsities: SPARSITIES, widths, rises, blockInfluence }
writeFileSync(here('../www/src/lessons/measured.json'), `${JSON.stringify(measured, null, 1)}\n`)
