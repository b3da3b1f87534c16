declare module 'virtual:formulas' {
  const formulas: Readonly<Record<import('./src/ui/formula.tsx').FormulaName, string>>
  export default formulas
}
