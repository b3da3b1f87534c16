import { useEffect, useRef } from 'preact/hooks'

import type { Matrix } from '../math/matrix.ts'

interface HeatmapProps {
  readonly matrix: Matrix
  readonly label: string
  /** Grey from 0 to 1, as a photograph, or two colours around 0, where `scale` is the value of full colour. */
  readonly look?: 'photograph' | 'signed'
  readonly scale?: number
  readonly symbol?: string
}

/** A matrix as a picture, one pixel an element. */
export function Heatmap({ matrix, label, look = 'signed', scale, symbol }: HeatmapProps) {
  const canvas = useRef<HTMLCanvasElement>(null)
  useEffect(() => {
    const context = canvas.current?.getContext('2d')
    if (context == null) return
    const full = scale ?? Math.max(...matrix.data.map(Math.abs), 1e-12)
    const image = context.createImageData(matrix.cols, matrix.rows)
    matrix.data.forEach((value, i) => {
      image.data.set(look === 'photograph' ? grey(value) : signed(value / full), 4 * i)
    })
    context.putImageData(image, 0, 0)
  }, [matrix, look, scale])
  return (
    <canvas
      ref={canvas}
      class="heatmap"
      width={matrix.cols}
      height={matrix.rows}
      role="img"
      aria-label={label}
      data-symbol={symbol}
    />
  )
}

function grey(value: number): [number, number, number, number] {
  const level = 255 * Math.min(1, Math.max(0, value))
  return [level, level, level, 255]
}

/** Teal above 0, clay below, clear at 0: it lies on paper of any colour. */
function signed(share: number): [number, number, number, number] {
  const alpha = 255 * Math.min(1, Math.abs(share)) ** 0.7
  return share >= 0 ? [15, 118, 130, alpha] : [190, 82, 44, alpha]
}
