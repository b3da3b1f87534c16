import { defineConfig } from 'vitest/config'

import { firstView } from './build/first_view.ts'
import { formulas } from './build/formulas.ts'
import { offline } from './build/offline.ts'
import { picture } from './build/picture.ts'

export default defineConfig({
  root: 'www',
  // Any folder of any server will do.
  base: './',
  // The models and texts that come with the command line.
  publicDir: '../../cli/demo',
  plugins: [formulas(), picture(), firstView(), offline()],
  worker: { format: 'es' },
  build: { outDir: '../dist', emptyOutDir: true, target: 'es2022', assetsInlineLimit: 0, modulePreload: { polyfill: false } },
  server: { fs: { allow: ['..'] } },
  test: {
    root: '.',
    projects: [
      { extends: true, test: { name: 'unit', include: ['tests/unit/**/*.test.ts'] } },
      {
        extends: true,
        test: {
          name: 'browser',
          include: ['tests/browser/**/*.test.ts'],
          testTimeout: 180_000,
          hookTimeout: 60_000,
          fileParallelism: false,
          // A browser on a busy machine of CI may miss a moment once.
          retry: process.env.CI === undefined ? 0 : 1,
        },
      },
      { extends: true, test: { name: 'large', include: ['tests/large/**/*.test.ts'], hookTimeout: 60_000 } },
    ],
  },
})
