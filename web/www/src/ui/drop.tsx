import type { ComponentChildren } from 'preact'
import { useRef, useState } from 'preact/hooks'

import { FromServer, Arriving } from './arrival.tsx'
import { Limits } from './limits.tsx'
import { bring } from './model.tsx'

/** Takes a model's files: dropped on the page, or chosen. A folder may be dropped as well. */
export function Drop({ children, disabled }: { children: ComponentChildren; disabled: boolean }) {
  const [over, setOver] = useState(false)
  const input = useRef<HTMLInputElement>(null)
  const take = (files: readonly File[], folder: string | undefined) => {
    if (files.length > 0) bring(files, folder ?? files[0]?.name ?? 'your model')
  }
  const onDrop = async (event: DragEvent) => {
    event.preventDefault()
    setOver(false)
    if (disabled || event.dataTransfer === null) return
    const { files, folder } = await dropped(event.dataTransfer)
    take(files, folder)
  }
  return (
    <div
      class={`drop ${over ? 'over' : ''}`}
      onDragOver={(event) => (event.preventDefault(), setOver(true))}
      onDragLeave={() => setOver(false)}
      onDrop={(event) => void onDrop(event)}
    >
      {children}
      <Limits />
      <p class="bring">
        <button type="button" disabled={disabled} onClick={() => input.current?.click()}>
          Open your own …
        </button>
        <small>or drop its folder here: config.json, weights, tokenizer. They stay on this machine.</small>
        <input
          ref={input}
          type="file"
          multiple
          hidden
          aria-label="Files of a model"
          onChange={({ currentTarget }) => {
            take([...(currentTarget.files ?? [])], undefined)
            currentTarget.value = ''
          }}
        />
      </p>
      <FromServer disabled={disabled} />
      <Arriving />
    </div>
  )
}

/** The plain files of what was dropped: those themselves, and those directly in a folder. */
async function dropped(transfer: DataTransfer): Promise<{ files: File[]; folder: string | undefined }> {
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry()).filter((entry) => entry !== null)
  const files: File[] = []
  let folder: string | undefined
  for (const entry of entries) {
    if (entry.isDirectory) {
      folder ??= entry.name
      for (const inner of await listed(entry as FileSystemDirectoryEntry)) if (inner.isFile) files.push(await file(inner))
    } else files.push(await file(entry))
  }
  return { files, folder }
}

async function listed(folder: FileSystemDirectoryEntry): Promise<FileSystemEntry[]> {
  const reader = folder.createReader()
  const all: FileSystemEntry[] = []
  // A reader hands out a part at a time, and nothing when it is done.
  for (;;) {
    const part = await new Promise<FileSystemEntry[]>((resolve, reject) => reader.readEntries(resolve, reject))
    if (part.length === 0) return all
    all.push(...part)
  }
}

function file(entry: FileSystemEntry): Promise<File> {
  return new Promise((resolve, reject) => (entry as FileSystemFileEntry).file(resolve, reject))
}
