//! Tokenizers against published ids and against each other.

mod data;

use modegpt_text::{BpeFamily, Corpus, TextError, Tokenizer};
use serde_json::{Value, json};

fn tokenizer(path: &str) -> Tokenizer {
    Tokenizer::from_tokenizer_json(&data::read(path)).expect("the tokenizer is well-formed")
}

fn json_of(path: &str) -> Value {
    serde_json::from_slice(&data::read(path)).expect("the file is JSON")
}

/// `vocab.json` and `merges.txt` as they were published, out of a `tokenizer.json`.
fn vocab_and_merges(path: &str) -> (Vec<u8>, String) {
    let model = &json_of(path)["model"];
    let merges = model["merges"].as_array().expect("merges are a list").iter();
    let lines: Vec<&str> = merges.map(|merge| merge.as_str().expect("a merge is text")).collect();
    (model["vocab"].to_string().into_bytes(), format!("#version: 0.2\n{}\n", lines.join("\n")))
}

fn check_hello(tokenizer: &Tokenizer, prefix: &[u32], expected: &[u32]) {
    assert_eq!(tokenizer.prefix_ids(), prefix, "{}", tokenizer.special_tokens_note());
    assert_eq!(tokenizer.encode("Hello world").expect("text encodes"), expected);
    assert_eq!(tokenizer.decode(expected).expect("ids decode"), "Hello world");
}

#[test]
fn hello_world_has_the_published_ids() {
    let opt = tokenizer("tokenizers/opt/tokenizer.json");
    check_hello(&opt, &[2], &[31414, 232]);
    assert_eq!(opt.vocab_size(), 50265);
    assert_eq!(opt.token_id("</s>"), Some(2));
    assert_eq!(opt.token_id("no such token"), None);
    assert_eq!(opt.special_tokens_note(), "tokenizer.json puts `</s>` (2) before a text");

    let gpt2 = tokenizer("tokenizers/gpt2/tokenizer.json");
    check_hello(&gpt2, &[], &[15496, 995]);
    assert_eq!(gpt2.vocab_size(), 50257);
    assert_eq!(gpt2.special_tokens_note(), "tokenizer.json puts no token before a text");
}

#[test]
fn references_of_the_tiny_models_begin_with_the_prefix_and_the_test_stories() {
    let text = String::from_utf8(data::read("text/tinystories/test.txt")).expect("stories are UTF-8");
    for model in ["stories260k", "opt-tiny-stories", "gpt2-tiny-stories"] {
        let tokenizer = tokenizer(&format!("models/{model}/tokenizer.json"))
            .with_tokenizer_config(&data::read(&format!("models/{model}/tokenizer_config.json")))
            .expect("the configuration is well-formed");
        let reference = json_of(&format!("models/{model}/reference.json"));
        let expected: Vec<u32> = serde_json::from_value(reference["input_ids"].clone()).expect("ids are numbers");
        let mut ids = tokenizer.prefix_ids().to_vec();
        assert_eq!(ids.len(), 1, "{model}: {}", tokenizer.special_tokens_note());
        ids.extend(tokenizer.encode(&text[..4000]).expect("text encodes"));
        assert_eq!(ids[..expected.len()], expected, "{model}");
    }
}

#[test]
fn vocab_and_merges_equal_tokenizer_json_on_real_text() {
    let stories = String::from_utf8(data::read("text/tinystories/test.txt")).expect("stories are UTF-8");
    let wiki = String::from_utf8(data::read("text/wikitext-2-raw/wiki.valid.raw")).expect("text is UTF-8");
    let odd = "</s> <s><pad>x  \t\r\n naïve 東京 🦀\u{200d} don't <|endoftext|>";
    for (folder, family) in [("opt", BpeFamily::Opt), ("gpt2", BpeFamily::Gpt2)] {
        let path = format!("tokenizers/{folder}/tokenizer.json");
        let from_json = tokenizer(&path);
        let (vocab, merges) = vocab_and_merges(&path);
        let from_bpe = Tokenizer::from_bpe(&vocab, merges.as_bytes(), family).expect("files are well-formed");
        assert_eq!(from_bpe.prefix_ids(), from_json.prefix_ids());
        assert_eq!(from_bpe.vocab_size(), from_json.vocab_size());
        for text in [stories.as_str(), wiki.as_str()] {
            let ids = from_bpe.encode(text).expect("text encodes");
            assert!(ids.len() > 80_000);
            assert!(ids == from_json.encode(text).expect("text encodes"), "{folder} differs");
        }
        let ids = from_bpe.encode(odd).expect("text encodes");
        assert_eq!(from_bpe.decode(&ids).expect("ids decode"), from_json.decode(&ids).expect("ids decode"));
    }
}

#[test]
fn joined_wikitext_has_the_published_number_of_tokens() {
    let name = "wikitext-2-raw/wiki.test.raw";
    let corpus = Corpus::from_file(name, &data::read(&format!("text/{name}"))).expect("text is well-formed");
    for folder in ["opt", "gpt2"] {
        let tokenizer = tokenizer(&format!("tokenizers/{folder}/tokenizer.json"));
        let ids = corpus.encode(&tokenizer, modegpt_text::BosPolicy::None).expect("text encodes");
        assert_eq!(ids.len(), 287_644, "{folder}");
    }
}

#[test]
fn streamed_pieces_joined_are_the_decoded_text() {
    let text = "One day, naïve 東京 🦀🦀 said: \"don't\"\n  and ran.";
    for path in ["tokenizers/gpt2/tokenizer.json", "tokenizers/opt/tokenizer.json", "models/stories260k/tokenizer.json"]
    {
        let tokenizer = tokenizer(path);
        let ids = tokenizer.encode(text).expect("text encodes");
        let mut stream = tokenizer.decode_stream();
        let pieces: Vec<String> = ids.iter().map(|id| stream.push(*id).expect("id decodes")).collect();
        assert!(pieces.iter().all(|piece| !piece.contains('\u{FFFD}')), "{path}: {pieces:?}");
        assert!(pieces.iter().filter(|piece| !piece.is_empty()).count() > 10);
        assert_eq!(pieces.concat(), text, "{path}");
        assert_eq!(stream.finish().expect("nothing is left"), "");
    }
}

#[test]
fn incomplete_characters_are_held_back_but_not_for_ever() {
    let tokenizer = tokenizer("tokenizers/gpt2/tokenizer.json");
    let crab = tokenizer.encode("🦀").expect("text encodes");
    let mut stream = tokenizer.decode_stream();
    assert_eq!(stream.push(crab[0]).expect("id decodes"), "");
    assert_eq!(stream.finish().expect("the rest decodes"), "\u{FFFD}");

    let mut stream = tokenizer.decode_stream();
    let text: String = (0..100).map(|_| stream.push(crab[0]).expect("id decodes")).collect();
    assert!(text.chars().count() > 50 && text.chars().all(|c| c == '\u{FFFD}'), "{text}");
}

#[test]
fn special_tokens_are_left_out_of_a_stream() {
    let tokenizer = tokenizer("models/stories260k/tokenizer.json");
    let mut ids = tokenizer.encode("One day").expect("text encodes");
    ids.splice(1..1, [2; 40]);
    ids.insert(0, 1);
    let mut stream = tokenizer.decode_stream();
    let text: String = ids.iter().map(|id| stream.push(*id).expect("id decodes")).collect();
    assert_eq!(text, "One day");
    assert_eq!(tokenizer.decode(&ids).as_deref(), Ok("One day"));
}

#[test]
fn tokenizer_config_decides_about_the_first_token() {
    let check = |config: &Value, expected: &[u32]| {
        let tokenizer = tokenizer("tokenizers/opt/tokenizer.json").with_tokenizer_config(config.to_string().as_bytes());
        assert_eq!(tokenizer.expect("the configuration is well-formed").prefix_ids(), expected, "{config}");
    };
    check(&json!({}), &[2]);
    check(&json!({"add_bos_token": false, "bos_token": "</s>"}), &[]);
    check(&json!({"add_bos_token": true, "bos_token": "<pad>"}), &[1]);
    check(&json!({"add_bos_token": true, "bos_token": {"content": "<unk>", "lstrip": false}}), &[3]);
    check(&json!({"tokenizer_class": "LlamaTokenizer", "bos_token": "<unk>"}), &[3]);
    check(&json!({"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<unk>"}), &[2]);
    check(&json!({"add_bos_token": null, "bos_token": null}), &[2]);
}

#[test]
fn tokenizer_config_with_a_wrong_token_is_an_error() {
    let decide = |config: &[u8]| tokenizer("tokenizers/opt/tokenizer.json").with_tokenizer_config(config).map(|_| ());
    let missing = decide(br#"{"add_bos_token": true, "bos_token": "<|begin|>"}"#);
    assert!(matches!(missing, Err(TextError::MissingToken { token, vocab_size: 50265, .. }) if token == "<|begin|>"));
    for config in [&b"{\"add_bos_token\": true}"[..], b"{\"bos_token\": 3}", b"[", b""] {
        assert!(matches!(decide(config), Err(TextError::BadTokenizer { file: "tokenizer_config.json", .. })));
    }
}

#[test]
fn tokens_behind_the_text_are_no_prefix() {
    let tokenizer = Tokenizer::from_tokenizer_json(&small(|json| {
        let template = json!({
            "type": "TemplateProcessing",
            "single": [
                {"SpecialToken": {"id": "<s>", "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
                {"SpecialToken": {"id": "b", "type_id": 0}}
            ],
            "pair": [],
            "special_tokens": {
                "<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]},
                "b": {"id": "b", "ids": [2], "tokens": ["b"]}
            }
        });
        let byte_level =
            json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": false, "use_regex": true});
        json["post_processor"] = json!({"type": "Sequence", "processors": [byte_level, template]});
    }));
    assert_eq!(tokenizer.expect("the file is well-formed").prefix_ids(), [0]);
}

#[test]
fn stored_truncation_padding_and_dropout_do_not_touch_a_text() {
    let tokenizer = Tokenizer::from_tokenizer_json(&small(|json| {
        json["truncation"] = json!({"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0});
        json["padding"] = json!({"strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": null,
            "pad_id": 0, "pad_type_id": 0, "pad_token": "<s>"});
        json["model"]["dropout"] = json!(0.9);
    }));
    let tokenizer = tokenizer.expect("the file is well-formed");
    assert_eq!(tokenizer.encode("abababab").expect("text encodes"), [3, 3, 3, 3]);
}

#[test]
fn files_that_would_make_the_library_panic_are_errors() {
    let strip = |stop: i32| json!({"type": "Strip", "content": " ", "start": 0, "stop": stop});
    let changes: [(&str, Value); 11] = [
        ("/model/continuing_subword_prefix", json!("#####")),
        ("/model/type", json!("Unigram")),
        ("/model/merges", json!(["a c"])),
        ("/normalizer", json!({"type": "Precompiled", "precompiled_charsmap": "AAAA"})),
        ("/normalizer", json!({"type": "Sequence", "normalizers": [{"precompiled_charsmap": "AAAA"}]})),
        ("/decoder", strip(1)),
        ("/decoder", json!({"type": "Sequence", "normalizers": [], "decoders": [strip(1)]})),
        ("/pre_tokenizer", json!({"type": "FixedLength", "length": 0})),
        (
            "/pre_tokenizer",
            json!({"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated", "invert": false}),
        ),
        ("/post_processor", template(&json!({"SpecialToken": {"id": "<x>", "type_id": 0}}))),
        ("/post_processor", template(&json!({"Sequence": {"id": "B", "type_id": 0}}))),
    ];
    for (place, value) in changes {
        let bytes = small(|json| *json.pointer_mut(place).expect("the place exists") = value.clone());
        let error = Tokenizer::from_tokenizer_json(&bytes).expect_err(place);
        assert!(matches!(error, TextError::BadTokenizer { file: "tokenizer.json", .. }), "{place}: {error}");
    }
    for bytes in [&b""[..], b"{}", b"[1", b"\xff\xff", br#"{"model": {"type": "BPE"}}"#] {
        assert!(Tokenizer::from_tokenizer_json(bytes).is_err());
    }
}

#[test]
fn broken_vocab_or_merges_are_errors() {
    let check = |vocab: &str, merges: &str, family| {
        Tokenizer::from_bpe(vocab.as_bytes(), merges.as_bytes(), family).expect_err("the files are broken")
    };
    let vocab = r#"{"a": 0, "b": 1, "ab": 2}"#;
    assert!(Tokenizer::from_bpe(vocab.as_bytes(), b"a b\r\n", BpeFamily::Gpt2).is_ok());
    let no_bos = check(vocab, "a b", BpeFamily::Opt);
    assert!(matches!(no_bos, TextError::MissingToken { token, vocab_size: 3, .. } if token == "</s>"));
    for (vocab, merges) in [("", ""), (r#"{"a": -1}"#, ""), (vocab, "a c"), (vocab, "ab"), (vocab, "a b b")] {
        assert!(matches!(check(vocab, merges, BpeFamily::Gpt2), TextError::BadTokenizer { .. }), "{vocab} {merges}");
    }
}

#[test]
fn an_id_without_token_is_named() {
    let tokenizer = tokenizer("tokenizers/gpt2/tokenizer.json");
    let error = tokenizer.decode(&[15496, 50257]).expect_err("the id is too large");
    assert_eq!(error, TextError::NoSuchToken { id: 50257 });
    let mut stream = tokenizer.decode_stream();
    assert_eq!(stream.push(50257), Err(error));
    assert_eq!(stream.push(15496).as_deref(), Ok("Hello"));
}

fn template(piece: &Value) -> Value {
    json!({"type": "TemplateProcessing", "single": [piece, {"Sequence": {"id": "A", "type_id": 0}}], "pair": [],
        "special_tokens": {}})
}

/// A tokenizer of four tokens, changed by `change`.
fn small(change: impl Fn(&mut Value)) -> Vec<u8> {
    let mut json = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": null, "post_processor": null, "decoder": null,
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
            "vocab": {"<s>": 0, "a": 1, "b": 2, "ab": 3}, "merges": ["a b"]}
    });
    change(&mut json);
    json.to_string().into_bytes()
}
