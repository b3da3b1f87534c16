import type { ComponentType } from 'preact'
import { useEffect, useState } from 'preact/hooks'

/** A part of the page that the first view does without, and which is loaded when it is shown. */
export function Later({ load }: { load: () => Promise<ComponentType> }) {
  const [Loaded, setLoaded] = useState<ComponentType | null>(null)
  const [failed, setFailed] = useState(false)
  useEffect(() => {
    load().then(
      (component) => setLoaded(() => component),
      () => setFailed(true),
    )
  }, [load])
  if (failed) return <p class="problem">This part of the page could not be loaded. Is there a network?</p>
  return Loaded === null ? <p class="waiting">…</p> : <Loaded />
}
