/** A random model with the shapes of Llama-2-7B, half precision: 13.5 GB that are made as they are asked for. */
import { readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'

import type { Content } from '../browser/hub.ts'

const WIDTH = 4096
const HIDDEN = 11008

/** The model's files under `path`; perhaps with fewer layers, or more rows of the embedding. */
export function llama7b(path: string, nLayers = 32, vocab = 32000): Record<string, Content> {
  const bundled = (name: string) => readFileSync(fileURLToPath(new URL(`../../../cli/demo/stories260k/${name}`, import.meta.url)))
  const config = {
    ...JSON.parse(bundled('config.json').toString()),
    hidden_size: WIDTH,
    intermediate_size: HIDDEN,
    num_hidden_layers: nLayers,
    num_attention_heads: 32,
    num_key_value_heads: 32,
    head_dim: 128,
    vocab_size: vocab,
    max_position_embeddings: 4096,
    tie_word_embeddings: false,
    torch_dtype: 'float16',
  }
  const files = { 'config.json': Buffer.from(JSON.stringify(config)), 'tokenizer.json': bundled('tokenizer.json'), 'model.safetensors': weights(nLayers, vocab) }
  return Object.fromEntries(Object.entries(files).map(([name, content]) => [path + name, content]))
}

function shapes(nLayers: number, vocab: number): [string, number[]][] {
  const layer = (i: number): [string, number[]][] => [
    ...['q', 'k', 'v', 'o'].map((map): [string, number[]] => [`model.layers.${i}.self_attn.${map}_proj.weight`, [WIDTH, WIDTH]]),
    [`model.layers.${i}.mlp.gate_proj.weight`, [HIDDEN, WIDTH]],
    [`model.layers.${i}.mlp.up_proj.weight`, [HIDDEN, WIDTH]],
    [`model.layers.${i}.mlp.down_proj.weight`, [WIDTH, HIDDEN]],
    [`model.layers.${i}.input_layernorm.weight`, [WIDTH]],
    [`model.layers.${i}.post_attention_layernorm.weight`, [WIDTH]],
  ]
  return [
    ['model.embed_tokens.weight', [vocab, WIDTH]],
    ...Array.from({ length: nLayers }, (_, i) => layer(i)).flat(),
    ['model.norm.weight', [WIDTH]],
    ['lm_head.weight', [vocab, WIDTH]],
  ]
}

function weights(nLayers: number, vocab: number): Content {
  const header: Record<string, unknown> = {}
  let end = 0
  for (const [name, shape] of shapes(nLayers, vocab)) {
    const bytes = 2 * shape.reduce((product, size) => product * size, 1)
    header[name] = { dtype: 'F16', shape, data_offsets: [end, (end += bytes)] }
  }
  const text = JSON.stringify(header)
  const begin = Buffer.from(' '.repeat(8) + text + ' '.repeat(text.length % 2))
  begin.writeBigUInt64LE(BigInt(begin.length - 8))
  const element = (at: number) => {
    // A hash of its place: a sign, and a size between 2⁻⁷ and 2⁻⁶.
    const hash = Math.imul((at % 2 ** 32) ^ Math.imul(Math.floor(at / 2 ** 32) + 1, 0x9e3779b1), 0x85ebca6b)
    const mixed = Math.imul(hash ^ (hash >>> 15), 0xc2b2ae35)
    return ((mixed >>> 16) & 0x83ff) | (8 << 10)
  }
  const subarray = (from: number, to: number) => {
    const part = Buffer.alloc(to - from)
    const copied = from < begin.length ? begin.copy(part, 0, from, Math.min(to, begin.length)) : 0
    for (let i = copied; i < part.length; i++) {
      const place = from + i - begin.length
      part[i] = element(Math.floor(place / 2)) >>> (place % 2 === 0 ? 0 : 8)
    }
    return part
  }
  return { length: begin.length + end, subarray }
}
