import type { Answer, Ask, FromWorker, Progress, Topic, ToWorker } from './protocol.ts'

/** The reader stopped the work. */
export class Aborted extends Error {
  constructor() {
    super('stopped')
  }
}

/** The core failed in a way that it should not have, and had to be started again. */
export class Crashed extends Error {}

interface Pending {
  resolve(answer: Answer<Topic>): void
  reject(error: Error): void
  onProgress(progress: Progress): void
}

/**
 * The page's end of the worker. The worker starts with the first question. When it crashes, or is stopped, all that is
 * pending fails, `onGone` is told, and the next question starts a new one, which knows nothing of the old one's model.
 */
export class Core {
  private worker: Worker | undefined
  private readonly pending = new Map<number, Pending>()
  private nextId = 0

  constructor(private readonly onGone: (reason: Error) => void) {}

  ask<T extends Topic>(topic: T, ask: Ask<T>, onProgress: (progress: Progress) => void = () => {}): Promise<Answer<T>> {
    const id = this.nextId++
    const promise = new Promise<Answer<Topic>>((resolve, reject) => {
      this.pending.set(id, { resolve, reject, onProgress })
    })
    this.running().postMessage({ id, topic, ask } as ToWorker)
    return promise as Promise<Answer<T>>
  }

  get busy(): boolean {
    return this.pending.size > 0
  }

  abort(): void {
    this.end(new Aborted())
  }

  private running(): Worker {
    if (this.worker === undefined) {
      const worker = new Worker(new URL('./worker.ts', import.meta.url), { type: 'module' })
      worker.onmessage = ({ data }: MessageEvent<FromWorker>) => this.hear(data)
      worker.onerror = ({ message }) => this.end(new Crashed(message || 'the worker could not be started'))
      this.worker = worker
    }
    return this.worker
  }

  private hear(message: FromWorker): void {
    const pending = this.pending.get(message.id)
    switch (message.kind) {
      case 'progress':
        pending?.onProgress(message.progress)
        return
      case 'answer':
        this.pending.delete(message.id)
        pending?.resolve(message.answer)
        return
      case 'error':
        this.pending.delete(message.id)
        pending?.reject(new Error(message.message))
        return
      case 'crash':
        this.end(new Crashed(message.message))
    }
  }

  private end(reason: Error): void {
    this.worker?.terminate()
    this.worker = undefined
    const failed = [...this.pending.values()]
    this.pending.clear()
    this.onGone(reason)
    for (const pending of failed) pending.reject(reason)
  }
}
