//! What a `tokenizer.json` may contain.
//!
//! The tokenizer library trusts its files: some that parse make it panic, on loading or on the first text. A file is
//! therefore looked at before the library sees it. Admitted are the parts that causal language models use and, of those,
//! only settings that the library handles.

use serde::Deserialize;
use serde_json::Value;

use crate::TextError;
use crate::tokenizer::bad;

#[derive(Deserialize)]
struct TokenizerJson {
    normalizer: Option<Value>,
    pre_tokenizer: Option<Value>,
    post_processor: Option<Value>,
    decoder: Option<Value>,
    model: ModelJson,
}

#[derive(Deserialize)]
struct ModelJson {
    #[serde(rename = "type")]
    kind: Option<String>,
    continuing_subword_prefix: Option<String>,
}

const NORMALIZERS: &[&str] =
    &["NFC", "NFD", "NFKC", "NFKD", "Lowercase", "Prepend", "Replace", "Strip", "StripAccents", "ByteLevel"];
const PRE_TOKENIZERS: &[&str] =
    &["ByteLevel", "Metaspace", "Split", "Digits", "Punctuation", "Whitespace", "WhitespaceSplit"];
const POST_PROCESSORS: &[&str] = &["ByteLevel", "TemplateProcessing", "RobertaProcessing", "BertProcessing"];
const DECODERS: &[&str] = &["ByteLevel", "Metaspace", "Replace", "ByteFallback", "Fuse", "Strip", "BPEDecoder"];

/// Checks the contents of a `tokenizer.json`.
///
/// # Errors
/// [`TextError::BadTokenizer`] naming the part that is not admitted.
pub(crate) fn check(bytes: &[u8]) -> Result<(), TextError> {
    let json: TokenizerJson = serde_json::from_slice(bytes).map_err(|e| bad("tokenizer.json", e.to_string()))?;
    check_model(&json.model)
        .and_then(|()| check_part("normalizer", json.normalizer.as_ref(), NORMALIZERS))
        .and_then(|()| check_part("pre_tokenizer", json.pre_tokenizer.as_ref(), PRE_TOKENIZERS))
        .and_then(|()| check_part("post_processor", json.post_processor.as_ref(), POST_PROCESSORS))
        .and_then(|()| check_part("decoder", json.decoder.as_ref(), DECODERS))
        .map_err(|reason| bad("tokenizer.json", reason))
}

/// Byte pairs only; the library cuts the prefix off every merge without looking whether it is there.
fn check_model(model: &ModelJson) -> Result<(), String> {
    match (model.kind.as_deref(), model.continuing_subword_prefix.as_deref()) {
        (Some("BPE") | None, None | Some("")) => Ok(()),
        (Some("BPE") | None, Some(prefix)) => Err(format!("continuing_subword_prefix `{prefix}` is not supported")),
        (Some(kind), _) => Err(format!("model type `{kind}` is not supported, expected `BPE`")),
    }
}

fn check_part(part: &str, value: Option<&Value>, admitted: &[&str]) -> Result<(), String> {
    let Some(value) = value else { return Ok(()) };
    let kind = value.get("type").and_then(Value::as_str).ok_or(format!("{part} has no type"))?;
    match kind {
        "Sequence" => check_sequence(part, value, admitted),
        _ if !admitted.contains(&kind) => Err(format!("{part} type `{kind}` is not supported")),
        "TemplateProcessing" => check_template(value),
        "Strip" if part == "decoder" => check_strip(value),
        _ => Ok(()),
    }
}

/// Checks whatever list is there: which of the names the library reads depends on the part.
fn check_sequence(part: &str, value: &Value, admitted: &[&str]) -> Result<(), String> {
    let lists = ["normalizers", "pretokenizers", "processors", "decoders"];
    let elements = lists.iter().filter_map(|list| value.get(list)?.as_array()).flatten();
    elements.into_iter().try_for_each(|element| check_part(part, Some(element), admitted))
}

/// The library looks up every special token of a template, and the second text of a pair, without asking.
fn check_template(template: &Value) -> Result<(), String> {
    let pieces = template.get("single").and_then(Value::as_array).ok_or("template has no list `single`")?;
    pieces.iter().try_for_each(|piece| {
        let special = piece.pointer("/SpecialToken/id").and_then(Value::as_str);
        let sequence = piece.pointer("/Sequence/id").and_then(Value::as_str);
        match (special, sequence) {
            (Some(token), None) if template.get("special_tokens").and_then(|all| all.get(token)).is_some() => Ok(()),
            (None, Some("A")) => Ok(()),
            _ => Err(format!("template has a piece that stands for nothing: {piece}")),
        }
    })
}

/// The library counts `stop` characters from the end of tokens that may have fewer.
fn check_strip(strip: &Value) -> Result<(), String> {
    match strip.get("stop").and_then(Value::as_u64) {
        Some(0) => Ok(()),
        _ => Err("decoder `Strip` is supported at the start of a text only".to_owned()),
    }
}
