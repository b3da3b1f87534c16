//! Text in, token ids out: tokenizers, text collections and fixed-length windows of token ids.
//!
//! Statistics are collected, and perplexity is measured, on windows of token ids. This crate makes them in three steps:
//!
//! 1. a [`Tokenizer`] is read from the bytes of a checkpoint's tokenizer files;
//! 2. a [`Corpus`] is read from the contents of a text file, document by document, and encoded, each document behind
//!    the tokens that the original tokenizer puts first ([`BosPolicy`]);
//! 3. [`windows`] samples fixed-length windows to calibrate on, [`evaluation_windows`] lays windows over a text to score
//!    all of it.
//!
//! Prompts with the completions that a model is to give are a [`LabelledText`]. Multiple-choice tasks are read by [`TaskFormat`], which puts their questions as texts to be continued.
//!
//! Nothing here knows of files, clocks, threads or global randomness: contents come in as bytes or strings, seeds as
//! numbers, and the same input gives the same windows on every platform. Contents are not trusted: whatever is wrong
//! with them is a [`TextError`].
//!
//! ```
//! use modegpt_text::{BosPolicy, BpeFamily, Corpus, Strategy, Tokenizer, windows};
//!
//! let vocab = br#"{"</s>": 0, "a": 1, "b": 2, "ab": 3}"#;
//! let tokenizer = Tokenizer::from_bpe(vocab, b"#version: 0.2\na b\n", BpeFamily::Opt)?;
//! let corpus = Corpus::from_plain("letters.txt", "abab<|endoftext|>ba")?;
//! let tokens = corpus.encode(&tokenizer, BosPolicy::EachDocument)?;
//! assert_eq!(tokens, [0, 3, 3, 0, 2, 1]);
//!
//! let sample = windows(&tokens, 2, 3, 0, Strategy::Spread)?;
//! assert_eq!(sample.iter().collect::<Vec<_>>(), [&[0, 3, 3], &[0, 2, 1]]);
//! # Ok::<(), modegpt_text::TextError>(())
//! ```

mod admission;
mod corpus;
mod error;
mod evaluation;
mod labelled;
mod prefix;
mod task;
mod tokenizer;
mod windows;

pub use corpus::{BosPolicy, Corpus, DOCUMENT_SEPARATOR, TextJoin};
pub use error::TextError;
pub use evaluation::{EvaluationWindow, EvaluationWindows, evaluation_windows};
pub use labelled::{LabelledText, LabelledWindows};
pub use task::{Prompt, PromptTokens, Question, TaskFormat};
pub use tokenizer::{BpeFamily, DecodeStream, Tokenizer};
pub use windows::{Strategy, Windows, check_vocabulary, token_hash, windows};
