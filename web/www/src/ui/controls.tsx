import type { ComponentChildren } from 'preact'
import { useId } from 'preact/hooks'

interface SliderProps {
  readonly label: ComponentChildren
  readonly value: number
  readonly onChange: (value: number) => void
  readonly min: number
  readonly max: number
  readonly step?: number
  readonly show?: (value: number) => string
  readonly symbol?: string
  readonly disabled?: boolean
}

export function Slider({ label, value, onChange, min, max, step = 1, show = String, symbol, disabled }: SliderProps) {
  const id = useId()
  return (
    <div class="slider" data-symbol={symbol}>
      <label for={id}>{label}</label>
      <input
        id={id}
        type="range"
        min={min}
        max={max}
        step={step}
        value={value}
        disabled={disabled ?? false}
        aria-valuetext={show(value)}
        onInput={({ currentTarget }) => onChange(Number(currentTarget.value))}
      />
      <output for={id}>{show(value)}</output>
    </div>
  )
}

interface ChoiceProps<T extends string> {
  readonly label: string
  readonly value: T
  readonly choices: readonly (readonly [T, string])[]
  readonly onChange: (value: T) => void
  readonly disabled?: boolean
}

/** A few words of which one holds. */
export function Choice<T extends string>({ label, value, choices, onChange, disabled }: ChoiceProps<T>) {
  const name = useId()
  return (
    <fieldset class="choice" disabled={disabled ?? false}>
      <legend>{label}</legend>
      {choices.map(([choice, title]) => (
        <label key={choice}>
          <input type="radio" name={name} checked={choice === value} onChange={() => onChange(choice)} />
          <span>{title}</span>
        </label>
      ))}
    </fieldset>
  )
}

interface ChecksProps<T extends string> {
  readonly label: string
  readonly values: readonly T[]
  readonly choices: readonly (readonly [T, string])[]
  readonly onChange: (values: readonly T[]) => void
  readonly disabled?: boolean
}

/** A few words of which at least one holds. */
export function Checks<T extends string>({ label, values, choices, onChange, disabled }: ChecksProps<T>) {
  return (
    <fieldset class="choice" disabled={disabled ?? false}>
      <legend>{label}</legend>
      {choices.map(([choice, title]) => {
        const holds = values.includes(choice)
        const others = values.filter((value) => value !== choice)
        return (
          <label key={choice}>
            <input type="checkbox" checked={holds} disabled={holds && others.length === 0} onChange={() => onChange(holds ? others : [...values, choice])} />
            <span>{title}</span>
          </label>
        )
      })}
    </fieldset>
  )
}

interface PickProps<T extends string> extends ChoiceProps<T> {}

/** Many words of which one holds. */
export function Pick<T extends string>({ label, value, choices, onChange, disabled }: PickProps<T>) {
  const id = useId()
  return (
    <div class="pick">
      <label for={id}>{label}</label>
      <select
        id={id}
        value={value}
        disabled={disabled ?? false}
        onChange={({ currentTarget }) => {
          const chosen = choices.find(([choice]) => choice === currentTarget.value)
          if (chosen !== undefined) onChange(chosen[0])
        }}
      >
        {choices.map(([choice, title]) => (
          <option key={choice} value={choice}>
            {title}
          </option>
        ))}
      </select>
    </div>
  )
}

/** A number that the reader shall notice, and what it is. */
export function Figure({ value, label, tone, symbol }: { value: string; label: string; tone?: string; symbol?: string }) {
  return (
    <div class={`number ${tone ?? ''}`} data-symbol={symbol}>
      <strong>{value}</strong>
      <span>{label}</span>
    </div>
  )
}
