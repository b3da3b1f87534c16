/** A random model with the shapes of OPT-125M, half precision, and the tokenizer of the bundled OPT. */
import { readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'

const WIDTH = 768
const HIDDEN = 3072
const VOCAB = 50272
const POSITIONS = 2048

/** The model's files under `path`. */
export function opt125m(path: string, nLayers: number): Record<string, Buffer> {
  const bundled = (name: string) => readFileSync(fileURLToPath(new URL(`../../../cli/demo/opt-tiny-stories/${name}`, import.meta.url)))
  const config = {
    ...JSON.parse(bundled('config.json').toString()),
    hidden_size: WIDTH,
    word_embed_proj_dim: WIDTH,
    ffn_dim: HIDDEN,
    num_hidden_layers: nLayers,
    num_attention_heads: 12,
    vocab_size: VOCAB,
    max_position_embeddings: POSITIONS,
    torch_dtype: 'float16',
  }
  const files = { 'config.json': Buffer.from(JSON.stringify(config)), 'tokenizer.json': bundled('tokenizer.json'), 'model.safetensors': weights(nLayers) }
  return Object.fromEntries(Object.entries(files).map(([name, content]) => [path + name, content]))
}

function shapes(nLayers: number): [string, number[]][] {
  const norm = (name: string): [string, number[]][] => [[`${name}.weight`, [WIDTH]], [`${name}.bias`, [WIDTH]]]
  const linear = (name: string, rows: number, cols: number): [string, number[]][] => [[`${name}.weight`, [rows, cols]], [`${name}.bias`, [rows]]]
  const layer = (prefix: string) => [
    ...['q', 'k', 'v', 'out'].flatMap((map) => linear(`${prefix}.self_attn.${map}_proj`, WIDTH, WIDTH)),
    ...norm(`${prefix}.self_attn_layer_norm`),
    ...linear(`${prefix}.fc1`, HIDDEN, WIDTH),
    ...linear(`${prefix}.fc2`, WIDTH, HIDDEN),
    ...norm(`${prefix}.final_layer_norm`),
  ]
  return [
    ['model.decoder.embed_tokens.weight', [VOCAB, WIDTH]],
    ['model.decoder.embed_positions.weight', [POSITIONS + 2, WIDTH]],
    ...norm('model.decoder.final_layer_norm'),
    ...Array.from({ length: nLayers }, (_, i) => layer(`model.decoder.layers.${i}`)).flat(),
  ]
}

function weights(nLayers: number): Buffer {
  const header: Record<string, unknown> = {}
  let end = 0
  const tensors = shapes(nLayers).map(([name, shape]) => {
    const n = shape.reduce((product, size) => product * size, 1)
    header[name] = { dtype: 'F16', shape, data_offsets: [end, (end += 2 * n)] }
    return { name, n }
  })
  const text = Buffer.from(JSON.stringify(header))
  const length = Buffer.alloc(8)
  length.writeBigUInt64LE(BigInt(text.length))
  const data = new Uint16Array(end / 2)
  let at = 0
  for (const { name, n } of tensors) {
    // 1 for the scale of a norm; else of the size that such weights have.
    if (/norm\.weight$/.test(name)) data.fill(0x3c00, at, at + n)
    else for (let i = at; i < at + n; i++) data[i] = NORMAL[random() >>> 20] as number
    at += n
  }
  return Buffer.concat([length, text, Buffer.from(data.buffer)])
}

let state = 1
/** 32 bits; Marsaglia's xorshift. */
function random(): number {
  state ^= state << 13
  state ^= state >>> 17
  state ^= state << 5
  return state
}

/** 4096 draws from a normal distribution of deviation 0.04, as half precision. */
const NORMAL = Uint16Array.from({ length: 4096 }, () => {
  const uniform = () => (random() >>> 0) / 2 ** 32
  return half(0.04 * Math.sqrt(-2 * Math.log(uniform() + 1e-12)) * Math.cos(2 * Math.PI * uniform()))
})

/** Truncated, and zero below the smallest normal number. */
function half(value: number): number {
  const bits = new Uint32Array(Float32Array.of(value).buffer)[0] as number
  const exponent = ((bits >>> 23) & 255) - 112
  return exponent <= 0 ? 0 : ((bits >>> 16) & 0x8000) | (exponent << 10) | ((bits >>> 13) & 0x3ff)
}
