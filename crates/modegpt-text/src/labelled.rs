//! Text with labels: prompts, and the completions that a model is to give.

use serde_json::{Map, Value};

use crate::{Prompt, TextError, Tokenizer, Windows, check_vocabulary};

/// A named list of prompts with their completions, none of them empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LabelledText {
    name: String,
    examples: Vec<Example>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Example {
    /// In the file, from 1.
    line: usize,
    prompt: String,
    completion: String,
}

/// Examples as tokens, all of one length.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LabelledWindows {
    /// The examples; shorter ones are filled up at their ends.
    pub windows: Windows,
    /// Which of the tokens are of a completion.
    pub counted: Vec<bool>,
}

impl LabelledText {
    /// JSON lines: one object a line with the texts `prompt` and `completion`, and whatever else. Blank lines are skipped.
    ///
    /// # Errors
    /// [`TextError::BadText`] with the line that is no object, lacks a text, or has a completion of nothing but white space;
    /// [`TextError::EmptyText`] if there is no example.
    pub fn from_jsonl(name: &str, bytes: &[u8]) -> Result<Self, TextError> {
        let bad = |line: usize, reason: String| bad(name, line, reason);
        let text = std::str::from_utf8(bytes).map_err(|e| {
            let line = bytes[..e.valid_up_to()].split(|byte| *byte == b'\n').count();
            bad(line, "expected UTF-8".to_owned())
        })?;
        let text = text.strip_prefix('\u{FEFF}').unwrap_or(text);
        let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
        let examples = lines.map(|(index, line)| {
            let object: Map<String, Value> =
                serde_json::from_str(line).map_err(|error| bad(index + 1, error.to_string()))?;
            let field = |field: &str| match object.get(field) {
                Some(Value::String(text)) => Ok(text.clone()),
                Some(_) => Err(bad(index + 1, format!("expected text in field `{field}`"))),
                None => Err(bad(index + 1, format!("no field `{field}`"))),
            };
            let (prompt, completion) = (field("prompt")?, field("completion")?);
            if completion.trim().is_empty() {
                return Err(bad(index + 1, "the completion is empty".to_owned()));
            }
            Ok(Example { line: index + 1, prompt, completion })
        });
        let examples: Vec<Example> = examples.collect::<Result<_, _>>()?;
        if examples.is_empty() {
            return Err(TextError::EmptyText { name: name.to_owned() });
        }
        Ok(Self { name: name.to_owned(), examples })
    }

    /// How many examples there are.
    pub fn n_examples(&self) -> usize {
        self.examples.len()
    }

    /// The tokens of the examples: prompt and completion encoded together, as they stand one after the other, behind the
    /// tokens that the original tokenizer puts first. The completion is what there is beyond the tokens of the prompt
    /// alone. An example of more than `max_positions` tokens loses its beginning.
    ///
    /// With `most_tokens` only as many examples as that many tokens take, spread over all of them, at least one.
    ///
    /// # Errors
    /// [`TextError::BadText`] with the line of a completion without a token that could be predicted, or of more than
    /// `max_positions`; [`TextError::TokenOutsideVocabulary`]; those of [`Tokenizer::encode`].
    pub fn encode(
        &self,
        tokenizer: &Tokenizer,
        vocab: usize,
        max_positions: usize,
        most_tokens: Option<usize>,
    ) -> Result<LabelledWindows, TextError> {
        let all: Vec<(Vec<u32>, usize)> = self
            .examples
            .iter()
            .map(|example| example.encode(&self.name, tokenizer, max_positions))
            .collect::<Result<_, _>>()?;
        let seq_len = all.iter().map(|(ids, _)| ids.len()).max().unwrap_or(0);
        let n = most_tokens.map_or(all.len(), |most| (most / seq_len).clamp(1, all.len()));
        let (mut ids, mut counted) = (Vec::with_capacity(n * seq_len), Vec::with_capacity(n * seq_len));
        for (example, n_prompt) in (0..n).map(|place| &all[place * all.len() / n]) {
            ids.extend_from_slice(example);
            counted.extend((0..example.len()).map(|at| at >= *n_prompt));
            // Attention looks back only, so that it does not matter with what an example is filled up.
            ids.resize(ids.len() + seq_len - example.len(), 0);
            counted.resize(ids.len(), false);
        }
        check_vocabulary(&ids, vocab)?;
        Ok(LabelledWindows { windows: Windows { ids, n, seq_len }, counted })
    }
}

impl Example {
    /// The tokens, and how many of them are of the prompt.
    fn encode(&self, name: &str, tokenizer: &Tokenizer, max_positions: usize) -> Result<(Vec<u32>, usize), TextError> {
        let Self { line, prompt, completion } = self;
        let prompt = Prompt { context: prompt.clone(), continuation: completion.clone(), n_chars: 0 };
        let tokens = prompt.encode(tokenizer)?;
        let (mut ids, n_prompt) = (tokens.ids, tokens.n_context);
        let n_completion = ids.len().saturating_sub(n_prompt);
        if n_completion == 0 || ids.len() < 2 {
            return Err(bad(name, *line, "the completion has no token that could be predicted".to_owned()));
        }
        if n_completion > max_positions {
            let reason = format!("the completion has {n_completion} tokens, the model's context {max_positions}");
            return Err(bad(name, *line, reason));
        }
        let excess = ids.len().saturating_sub(max_positions);
        ids.drain(..excess);
        Ok((ids, n_prompt - excess))
    }
}

fn bad(name: &str, line: usize, reason: String) -> TextError {
    TextError::BadText { name: name.to_owned(), place: format!("line {line}"), reason }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::BpeFamily;

    fn tokenizer() -> Tokenizer {
        let vocab = br#"{"</s>": 0, "a": 1, "b": 2, "ab": 3, "c": 4}"#;
        Tokenizer::from_bpe(vocab, b"#version: 0.2\na b\n", BpeFamily::Opt).expect("a tokenizer")
    }

    fn encode(text: &str, max_positions: usize, most: Option<usize>) -> Result<LabelledWindows, TextError> {
        LabelledText::from_jsonl("t.jsonl", text.as_bytes())?.encode(&tokenizer(), 5, max_positions, most)
    }

    const TWO: &str =
        "{\"prompt\": \"abc\", \"completion\": \"ca\"}\n\n{\"prompt\": \"\", \"completion\": \"b\", \"id\": 7}\n";

    #[test]
    fn completions_count_and_short_examples_are_filled_up() {
        let found = encode(TWO, 10, None).expect("valid");
        assert_eq!(found.windows, Windows { ids: vec![0, 3, 4, 4, 1, 0, 2, 0, 0, 0], n: 2, seq_len: 5 });
        assert_eq!(found.counted, [false, false, false, true, true, false, true, false, false, false]);
    }

    #[test]
    fn what_is_too_long_loses_its_beginning_but_no_completion() {
        let found = encode(TWO, 3, None).expect("valid");
        assert_eq!(found.windows.ids, [4, 4, 1, 0, 2, 0]);
        assert_eq!(found.counted, [false, true, true, false, true, false]);
        let message = encode(TWO, 1, None).expect_err("too long").to_string();
        assert_eq!(message, "text `t.jsonl`, line 1: the completion has 2 tokens, the model's context 1");
    }

    #[test]
    fn fewer_tokens_take_fewer_examples() {
        assert_eq!(encode(TWO, 10, Some(9)).expect("valid").windows.n, 1);
        assert_eq!(encode(TWO, 10, Some(0)).expect("valid").windows.n, 1);
        assert_eq!(encode(TWO, 10, Some(10)).expect("valid").windows.n, 2);
    }

    #[test]
    fn bad_lines_are_named() {
        for (line, expected) in [
            ("{\"prompt\": \"a\", \"completion\": \"\"}", "text `t.jsonl`, line 2: the completion is empty"),
            ("{\"prompt\": \"a\", \"completion\": \" \\n\"}", "text `t.jsonl`, line 2: the completion is empty"),
            ("{\"prompt\": \"a\"}", "text `t.jsonl`, line 2: no field `completion`"),
            ("{\"prompt\": 1, \"completion\": \"a\"}", "text `t.jsonl`, line 2: expected text in field `prompt`"),
            ("[]", "text `t.jsonl`, line 2: invalid type"),
        ] {
            let text = format!("{{\"prompt\": \"a\", \"completion\": \"b\"}}\n{line}\n");
            let message = LabelledText::from_jsonl("t.jsonl", text.as_bytes()).expect_err(line).to_string();
            assert!(message.starts_with(expected), "{message}");
        }
        assert!(matches!(LabelledText::from_jsonl("t", b"\n \n"), Err(TextError::EmptyText { .. })));
        let message = LabelledText::from_jsonl("t", b"{}\n\xff").expect_err("no UTF-8").to_string();
        assert_eq!(message, "text `t`, line 2: expected UTF-8");
        assert!(encode("{\"prompt\": \"a\", \"completion\": \"c\"}", 4, None).is_ok());
        let small = LabelledText::from_jsonl("t", b"{\"prompt\": \"a\", \"completion\": \"c\"}").expect("valid");
        small.encode(&tokenizer(), 4, 4, None).expect_err("`c` is outside the vocabulary");
    }
}
