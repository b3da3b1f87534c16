//! Collections of documents, from the contents of text files, and their tokens.

use serde_json::{Map, Value};

use crate::{TextError, Tokenizer};

/// Stands between the documents of a plain text file.
pub const DOCUMENT_SEPARATOR: &str = "<|endoftext|>";

/// A named list of documents, none of them empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Corpus {
    name: String,
    documents: Vec<String>,
}

/// What becomes of the lines of a plain text file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TextJoin {
    /// The file is the text.
    AsIs,
    /// `WikiText` as papers evaluate on it.
    ///
    /// The rows of the published data set are joined with two newlines: every line is a row that keeps its newline, and
    /// a line of one space is an empty row. `wiki.test.raw` becomes 1,296,370 bytes.
    WikiText,
}

/// Where the tokens that the tokenizer puts before a text ([`Tokenizer::prefix_ids`]) go in a stream of documents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BosPolicy {
    /// Before every document.
    EachDocument,
    /// Before the first document only.
    Once,
    /// Nowhere.
    None,
}

impl TextJoin {
    /// [`TextJoin::WikiText`] for files named like `wiki.test.raw`, else [`TextJoin::AsIs`]. Folders in front of the
    /// name do not matter.
    pub fn for_file_name(name: &str) -> Self {
        let file_name = name.rsplit(['/', '\\']).next().unwrap_or(name);
        if file_name.starts_with("wiki.") && file_name.strip_suffix(".raw").is_some() {
            Self::WikiText
        } else {
            Self::AsIs
        }
    }

    /// Joins the lines of `text`.
    pub fn apply(self, text: &str) -> String {
        match self {
            Self::AsIs => text.to_owned(),
            Self::WikiText => {
                let rows: Vec<&str> =
                    text.split_inclusive('\n').map(|line| if line == " \n" { "" } else { line }).collect();
                rows.join("\n\n")
            }
        }
    }
}

impl Corpus {
    /// Reads a file by the ending of its name: `.jsonl` and `.json` hold documents in the field `text` (or, in `.json`,
    /// Alpaca's three fields), anything else is plain text.
    ///
    /// # Errors
    /// [`TextError::BadText`] if `bytes` is not UTF-8, and those of the reader chosen.
    pub fn from_file(name: &str, bytes: &[u8]) -> Result<Self, TextError> {
        let text = std::str::from_utf8(bytes)
            .map_err(|e| bad(name, format!("byte {}", e.valid_up_to() + 1), "expected UTF-8"))?;
        let text = text.strip_prefix('\u{FEFF}').unwrap_or(text);
        match name.rsplit_once('.').map(|(_, ending)| ending) {
            Some("jsonl") => Self::from_jsonl(name, text, "text"),
            Some("json") => Self::from_json_array(name, text, None),
            _ => Self::from_plain(name, text),
        }
    }

    /// Plain text, its lines joined as its name says ([`TextJoin::for_file_name`]).
    ///
    /// # Errors
    /// As [`Corpus::from_plain_joined`].
    pub fn from_plain(name: &str, text: &str) -> Result<Self, TextError> {
        Self::from_plain_joined(name, text, TextJoin::for_file_name(name))
    }

    /// Plain text. Where [`DOCUMENT_SEPARATOR`] stands in it, it is split into documents without the white space around
    /// them; without a separator it is one document, byte for byte.
    ///
    /// # Errors
    /// [`TextError::EmptyText`] if there is nothing but white space.
    pub fn from_plain_joined(name: &str, text: &str, join: TextJoin) -> Result<Self, TextError> {
        let text = join.apply(text);
        let documents = if text.contains(DOCUMENT_SEPARATOR) {
            text.split(DOCUMENT_SEPARATOR).map(|document| document.trim().to_owned()).collect()
        } else {
            vec![text]
        };
        Self::from_documents(name, documents)
    }

    /// JSON lines: one object a line, the document in its `field`. Blank lines are skipped.
    ///
    /// # Errors
    /// [`TextError::BadText`] with the line that is no object or has no such text, [`TextError::EmptyText`] if no line
    /// has one.
    pub fn from_jsonl(name: &str, text: &str, field: &str) -> Result<Self, TextError> {
        let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
        let documents = lines.map(|(line_idx, line)| {
            let place = || format!("line {}", line_idx + 1);
            let object: Map<String, Value> =
                serde_json::from_str(line).map_err(|e| bad(name, place(), e.to_string()))?;
            text_field(&object, field).map(str::to_owned).map_err(|reason| bad(name, place(), reason))
        });
        Self::from_documents(name, documents.collect::<Result<_, _>>()?)
    }

    /// A JSON list of objects, the document of each in its `field`. Without a field it is `text` where there is one,
    /// else `instruction`, `input` and `output` joined by the template of Alpaca.
    ///
    /// # Errors
    /// [`TextError::BadText`] if it is no list of objects or an entry lacks a field, [`TextError::EmptyText`] if no
    /// entry has text.
    pub fn from_json_array(name: &str, text: &str, field: Option<&str>) -> Result<Self, TextError> {
        let objects: Vec<Map<String, Value>> =
            serde_json::from_str(text).map_err(|e| bad(name, "list of objects".to_owned(), e.to_string()))?;
        let documents = objects.iter().enumerate().map(|(entry_idx, object)| {
            let document = match field {
                Some(field) => text_field(object, field).map(str::to_owned),
                None if object.contains_key("text") => text_field(object, "text").map(str::to_owned),
                None => alpaca_document(object),
            };
            document.map_err(|reason| bad(name, format!("entry {}", entry_idx + 1), reason))
        });
        Self::from_documents(name, documents.collect::<Result<_, _>>()?)
    }

    /// A corpus of documents made elsewhere; empty ones are dropped.
    ///
    /// # Errors
    /// [`TextError::EmptyText`] if none is left.
    pub fn from_documents(name: &str, documents: Vec<String>) -> Result<Self, TextError> {
        let documents: Vec<String> = documents.into_iter().filter(|document| !document.trim().is_empty()).collect();
        if documents.is_empty() {
            return Err(TextError::EmptyText { name: name.to_owned() });
        }
        Ok(Self { name: name.to_owned(), documents })
    }

    /// The name given.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The documents, in the order of the file.
    pub fn documents(&self) -> &[String] {
        &self.documents
    }

    /// All documents as one text with `separator` between them.
    pub fn joined(&self, separator: &str) -> String {
        self.documents.join(separator)
    }

    /// The tokens of all documents, one after the other.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode(&self, tokenizer: &Tokenizer, policy: BosPolicy) -> Result<Vec<u32>, TextError> {
        self.encode_at_least(tokenizer, policy, usize::MAX)
    }

    /// As [`Corpus::encode`], but stops after the document with which there are `n_tokens` tokens: for large files of
    /// which only the beginning is needed.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_at_least(
        &self,
        tokenizer: &Tokenizer,
        policy: BosPolicy,
        n_tokens: usize,
    ) -> Result<Vec<u32>, TextError> {
        let mut tokens = Vec::new();
        for (document_idx, document) in self.documents.iter().enumerate() {
            if tokens.len() >= n_tokens {
                break;
            }
            if policy == BosPolicy::EachDocument || (policy == BosPolicy::Once && document_idx == 0) {
                tokens.extend_from_slice(tokenizer.prefix_ids());
            }
            tokens.extend(tokenizer.encode(document)?);
        }
        Ok(tokens)
    }
}

fn bad(name: &str, place: String, reason: impl Into<String>) -> TextError {
    TextError::BadText { name: name.to_owned(), place, reason: reason.into() }
}

fn text_field<'a>(object: &'a Map<String, Value>, field: &str) -> Result<&'a str, String> {
    match object.get(field) {
        Some(Value::String(text)) => Ok(text),
        Some(_) => Err(format!("expected text in field `{field}`")),
        None => Err(format!("no field `{field}`")),
    }
}

/// The prompt of `tatsu-lab/stanford_alpaca` with its answer; the input may be missing or empty.
fn alpaca_document(object: &Map<String, Value>) -> Result<String, String> {
    let instruction = text_field(object, "instruction")?;
    let output = text_field(object, "output")?;
    let input = if object.contains_key("input") { text_field(object, "input")? } else { "" };
    let head = "Below is an instruction that describes a task";
    let request = "Write a response that appropriately completes the request.";
    Ok(if input.is_empty() {
        format!("{head}. {request}\n\n### Instruction:\n{instruction}\n\n### Response:\n{output}")
    } else {
        format!(
            "{head}, paired with an input that provides further context. {request}\n\n\
             ### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n{output}"
        )
    })
}
