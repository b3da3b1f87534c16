//! Documents out of the contents of text files.

mod data;

use modegpt_text::{BosPolicy, BpeFamily, Corpus, TextError, TextJoin, Tokenizer, token_hash};
use sha2::{Digest, Sha256};

fn check(corpus: Result<Corpus, TextError>, expected: &[&str]) {
    assert_eq!(corpus.expect("the text is well-formed").documents(), expected);
}

fn letters() -> Tokenizer {
    Tokenizer::from_bpe(br#"{"</s>": 0, "a": 1, "b": 2}"#, b"", BpeFamily::Opt).expect("the files are well-formed")
}

#[test]
fn wikitext_is_joined_as_papers_do() {
    let name = "text/wikitext-2-raw/wiki.test.raw";
    let corpus = Corpus::from_file(name, &data::read(name)).expect("the text is well-formed");
    let [text] = corpus.documents() else { panic!("one document") };
    assert_eq!(text.len(), 1_296_370);
    let hash = format!("{:x}", Sha256::digest(text));
    assert_eq!(hash, "696cca6b65a171b0a358a4be6732cdfdf2dd6164a32e20fd70e3c13fc4dfae83");
}

#[test]
fn rows_of_wikitext_keep_their_newline_or_are_empty() {
    assert_eq!(TextJoin::WikiText.apply(" \n = A = \n \n b \n"), "\n\n = A = \n\n\n\n\n b \n");
    assert_eq!(TextJoin::AsIs.apply(" \n a"), " \n a");
}

#[test]
fn only_wikitext_files_are_joined_by_name() {
    for name in ["wiki.test.raw", "data/wiki.train.raw", r"C:\wiki.valid.raw"] {
        assert_eq!(TextJoin::for_file_name(name), TextJoin::WikiText, "{name}");
    }
    for name in ["wiki.raw.txt", "mywiki.test.raw", "wiki.raw/story.txt", "a.raw", ""] {
        assert_eq!(TextJoin::for_file_name(name), TextJoin::AsIs, "{name}");
    }
}

#[test]
fn plain_text_is_split_where_documents_end() {
    check(Corpus::from_plain("t", "a \n<|endoftext|>\nb\n<|endoftext|> "), &["a", "b"]);
    check(Corpus::from_plain("t", " a \n"), &[" a \n"]);
    let name = "text/tinystories/test.txt";
    let stories = Corpus::from_file(name, &data::read(name)).expect("the text is well-formed");
    assert_eq!(stories.documents().len(), 500);
}

#[test]
fn json_lines_give_their_field() {
    let lines = "{\"text\": \"a\"}\r\n\n{\"text\": \"b\", \"id\": 1}\n{\"text\": \"\"}";
    check(Corpus::from_jsonl("l", lines, "text"), &["a", "b"]);
    let name = "text/calibration/c4_300.jsonl";
    let c4 = Corpus::from_file(name, &data::read(name)).expect("the text is well-formed");
    assert_eq!(c4.documents().len(), 300);
    assert_eq!(c4.name(), name);
}

#[test]
fn broken_json_lines_are_named() {
    let check = |lines: &str, expected: &str| {
        let error = Corpus::from_jsonl("l", lines, "text").expect_err("a line is broken");
        assert!(error.to_string().starts_with(expected), "{error}");
    };
    check("{\"text\": \"a\"}\n{\"txt\": \"a\"}", "text `l`, line 2: no field `text`");
    check("\n{\"text\": 3}", "text `l`, line 2: expected text in field `text`");
    check("[1]", "text `l`, line 1: invalid type");
    check("{\"text\": \"a", "text `l`, line 1: EOF");
    check(&"[".repeat(100_000), "text `l`, line 1: ");
    check("\n\n", "text `l` holds no document");
}

#[test]
fn json_lists_give_a_field_or_alpaca_prompts() {
    let list = r#"[{"instruction": "Add.", "input": "1 1", "output": "2"}, {"instruction": "Sing.", "output": "La"}]"#;
    check(Corpus::from_json_array("l", list, Some("output")), &["2", "La"]);
    check(Corpus::from_json_array("l", r#"[{"text": "a"}]"#, None), &["a"]);
    let with_input = "Below is an instruction that describes a task, paired with an input that provides further context. \
        Write a response that appropriately completes the request.\n\n\
        ### Instruction:\nAdd.\n\n### Input:\n1 1\n\n### Response:\n2";
    let without = "Below is an instruction that describes a task. \
        Write a response that appropriately completes the request.\n\n\
        ### Instruction:\nSing.\n\n### Response:\nLa";
    check(Corpus::from_json_array("l", list, None), &[with_input, without]);

    let name = "text/calibration/alpaca_style_999.json";
    let alpaca = Corpus::from_file(name, &data::read(name)).expect("the text is well-formed");
    assert_eq!(alpaca.documents().len(), 999);
}

#[test]
fn broken_json_lists_are_errors() {
    let check = |list: &str, expected: &str| {
        let error = Corpus::from_json_array("l", list, None).expect_err("the list is broken");
        assert!(error.to_string().starts_with(expected), "{error}");
    };
    check(r#"[{"text": "a"}, {"instruction": "a"}]"#, "text `l`, entry 2: no field `output`");
    check(r#"[{"instruction": "a", "input": 1, "output": "b"}]"#, "text `l`, entry 1: expected text in field `input`");
    check(r#"{"text": "a"}"#, "text `l`, list of objects: invalid type");
    check("[]", "text `l` holds no document");
}

#[test]
fn bytes_that_are_no_text_are_errors() {
    let error = Corpus::from_file("x.txt", b"ab\xffc").expect_err("the byte is no UTF-8");
    assert_eq!(error.to_string(), "text `x.txt`, byte 3: expected UTF-8");
    assert_eq!(Corpus::from_file("x.txt", b" \n"), Err(TextError::EmptyText { name: "x.txt".to_owned() }));
    check(Corpus::from_file("x.txt", b"\xef\xbb\xbfa"), &["a"]);
}

#[test]
fn first_tokens_follow_the_policy() {
    let corpus = Corpus::from_plain("t", "a<|endoftext|>bb").expect("the text is well-formed");
    let encode = |policy| corpus.encode(&letters(), policy).expect("the text encodes");
    assert_eq!(encode(BosPolicy::EachDocument), [0, 1, 0, 2, 2]);
    assert_eq!(encode(BosPolicy::Once), [0, 1, 2, 2]);
    assert_eq!(encode(BosPolicy::None), [1, 2, 2]);
    assert_eq!(corpus.encode_at_least(&letters(), BosPolicy::EachDocument, 2), Ok(vec![0, 1]));
    assert_eq!(corpus.joined("\n\n"), "a\n\nbb");
}

#[test]
fn hash_is_of_little_endian_bytes() {
    let expected = format!("{:x}", Sha256::digest([1, 0, 0, 0, 0x39, 0x30, 0, 0]));
    assert_eq!(token_hash(&[1, 12345]), expected);
    assert_eq!(token_hash(&[]), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
}
