declare module 'virtual:formula/*' {
  /** HTML with MathML in it. */
  const html: string
  export default html
}

declare module 'virtual:picture' {
  const picture: {
    readonly size: number
    /** Grey levels, one byte each. */
    readonly grey: string
    readonly values: readonly number[]
    /** Right singular vectors in columns, 16-bit integers in units of `1 / steps`. */
    readonly right: string
    readonly steps: number
  }
  export default picture
}
