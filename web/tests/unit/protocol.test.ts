import { expect, test } from 'vitest'

import type {
  ActivationSpectra,
  Evaluation,
  Plan,
  Report,
  Span,
  Spectrum,
  StatisticsSummary,
  Summary,
  WriteResult,
} from '../../www/src/core/protocol.ts'
import written from './protocol.json'

/** What the core wrote, held against the page's types: this does not compile unless every field is there. */
const sent: {
  summary: Summary
  spans: Span[]
  spectra: Spectrum[]
  statistics: StatisticsSummary
  activations: ActivationSpectra
  plan: Plan
  report: Report
  planOfMaps: Plan
  reportOfMaps: Report
  evaluation: Evaluation
  written: WriteResult
} = written

test('every value that the core sends has a type here', () => {
  expect(Object.keys(sent)).toHaveLength(11)
})
