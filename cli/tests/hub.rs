//! Models from a hub: a server on the loopback interface answers as the real one does.

#[path = "../src/hub.rs"]
mod hub;
#[path = "hub/server.rs"]
mod server;

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hub::{Hub, HubError};
use server::{COMMIT, Fault, Server};
use tempfile::TempDir;

const INDEX: &str =
    r#"{"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}"#;

/// A server and an empty cache.
struct Setting {
    server: Server,
    folder: TempDir,
}

impl Setting {
    fn new(files: &[(&str, &[u8])]) -> Self {
        Self { server: Server::start(files), folder: TempDir::new().expect("a temporary folder") }
    }

    fn hub(&self) -> Hub {
        let patience = Duration::from_mins(1);
        Hub { cache: self.cache(), endpoint: self.server.address(), token: None, offline: false, patience }
    }

    /// A hub that is not waited for.
    fn hasty(&self) -> Hub {
        Hub { patience: Duration::from_millis(200), ..self.hub() }
    }

    fn cache(&self) -> PathBuf {
        self.folder.path().join("hub")
    }

    fn resolve(&self, model: &str) -> Result<PathBuf, HubError> {
        self.hub().resolve(model, &|_, _, _| ())
    }

    fn offline(&self) -> Result<PathBuf, HubError> {
        Hub { offline: true, ..self.hub() }.resolve("org/tiny", &|_, _, _| ())
    }

    /// Files in the folder of blobs, partial ones included.
    fn blobs(&self) -> Vec<String> {
        names(&self.cache().join("models--org--tiny/blobs"))
    }

    fn n_partial(&self) -> usize {
        self.blobs().iter().filter(|name| name.contains(".part")).count()
    }

    fn has_ref(&self) -> bool {
        self.cache().join("models--org--tiny/refs/main").exists()
    }
}

fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).expect("the folder exists");
    let mut names: Vec<String> =
        entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

fn weights() -> Vec<u8> {
    (0..300_000_u32).map(|idx| (idx.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

#[test]
fn only_needed_files_are_fetched_and_nothing_twice() {
    let weights = weights();
    let setting = Setting::new(&[
        ("config.json", b"{}"),
        ("tokenizer.json", b"{\"t\": 1}"),
        ("model.safetensors", &weights),
        ("pytorch_model.bin", b"never"),
        ("README.md", b"never"),
    ]);
    let told = RefCell::new(Vec::new());
    let progress = |file: &str, done, total| told.borrow_mut().push((file.to_owned(), done, total));
    let folder = setting.hub().resolve("org/tiny", &progress).expect("the model is there");

    assert_eq!(folder, setting.cache().join("models--org--tiny/snapshots").join(COMMIT));
    assert_eq!(names(&folder), ["config.json", "model.safetensors", "tokenizer.json"]);
    assert_eq!(std::fs::read(folder.join("model.safetensors")).expect("a file"), weights);
    assert_eq!(std::fs::read(folder.join("tokenizer.json")).expect("a file"), b"{\"t\": 1}");
    assert_eq!(setting.n_partial(), 0);
    assert_eq!(told.borrow().last(), Some(&("model.safetensors".to_owned(), 300_000, 300_000)));
    assert!(told.borrow().contains(&("model.safetensors".to_owned(), 0, 300_000)));

    let n_requests = setting.server.requests().len();
    assert_eq!(setting.resolve("org/tiny").expect("the model is cached"), folder);
    assert_eq!(setting.server.requests().len(), n_requests + 1, "only the listing is asked for again");
    assert_eq!(setting.offline().expect("the model is cached"), folder);
    assert_eq!(setting.resolve(&format!("org/tiny@{COMMIT}")).expect("the commit is cached"), folder);
}

#[test]
fn shards_of_the_index_are_fetched() {
    let one = "model-00001-of-00002.safetensors";
    let two = "model-00002-of-00002.safetensors";
    let other = "model-00003-of-00003.safetensors";
    let index = ("model.safetensors.index.json", INDEX.as_bytes());
    let setting = Setting::new(&[("config.json", b"{}"), index, (one, b"1"), (two, b"22"), (other, b"no")]);
    let folder = setting.resolve("org/tiny").expect("the model is there");
    assert_eq!(names(&folder), ["config.json", one, two, "model.safetensors.index.json"]);
    std::fs::remove_file(folder.join(two)).expect("the shard is there");
    let error = setting.offline().expect_err("a shard is missing");
    assert!(matches!(&error, HubError::Offline { missing, .. } if missing == "`model-00002-of-00002.safetensors`"));
}

#[test]
fn shards_that_are_no_plain_files_are_refused() {
    for index in [r#"{"weight_map": {"a": "../../../evil"}}"#, r#"{"weight_map": {"a": 1}}"#, "{}", "["] {
        let index = ("model.safetensors.index.json", index.as_bytes());
        let error = Setting::new(&[("config.json", b"{}"), index]).resolve("org/tiny").expect_err("a bad index");
        assert!(matches!(error, HubError::BadAnswer { .. }), "{error}");
    }
    let index = ("model.safetensors.index.json", INDEX.as_bytes());
    let error = Setting::new(&[("config.json", b"{}"), index]).resolve("org/tiny").expect_err("no shards");
    assert!(matches!(&error, HubError::NotAModel { missing, .. } if missing.contains("00001-of-00002")), "{error}");
}

#[test]
fn pytorch_weights_are_taken_where_there_are_no_others() {
    let setting = Setting::new(&[("config.json", b"{}"), ("pytorch_model.bin", b"zip"), ("vocab.json", b"{}")]);
    let folder = setting.resolve("org/tiny").expect("the model is there");
    assert_eq!(names(&folder), ["config.json", "pytorch_model.bin", "vocab.json"]);
}

#[test]
fn an_interrupted_download_goes_on_where_it_stopped() {
    let weights = weights();
    let setting = Setting::new(&[("config.json", b"{}"), ("model.safetensors", &weights)]);
    setting.server.set(Fault::CutOnce { after: 100_000 });
    let folder = setting.resolve("org/tiny").expect("the second attempt succeeds");
    assert_eq!(std::fs::read(folder.join("model.safetensors")).expect("a file"), weights);
    let ranges: Vec<u64> = setting.server.ranges("cdn");
    assert_eq!(ranges[0], 0);
    assert!(ranges.len() == 2 && (1..=100_000).contains(&ranges[1]), "{ranges:?}");
}

#[test]
fn a_download_that_failed_leaves_no_half_file_and_is_resumed_by_the_next_run() {
    let weights = weights();
    let setting = Setting::new(&[("config.json", b"{}"), ("model.safetensors", &weights)]);
    setting.server.set(Fault::CutAlways { after: 10_000 });
    let error = setting.resolve("org/tiny").expect_err("the connection breaks every time");
    assert!(matches!(error, HubError::Network { .. }), "{error}");
    assert!(error.hint().is_some_and(|hint| hint.contains("goes on")));
    assert!(!setting.has_ref(), "the branch points to complete models only");
    assert_eq!(setting.n_partial(), 1);
    assert!(matches!(setting.offline(), Err(HubError::Offline { .. })));

    setting.server.set(Fault::None);
    let folder = setting.resolve("org/tiny").expect("the next run succeeds");
    assert_eq!(std::fs::read(folder.join("model.safetensors")).expect("a file"), weights);
    assert!(setting.server.ranges("cdn").last().is_some_and(|start| *start > 10_000));
}

#[test]
fn a_download_that_stalls_goes_on_where_it_stopped() {
    let weights = weights();
    let setting = Setting::new(&[("config.json", b"{}"), ("model.safetensors", &weights)]);
    setting.server.set(Fault::StallOnce { after: 100_000 });
    let folder = setting.hasty().resolve("org/tiny", &|_, _, _| ()).expect("the second attempt succeeds");
    assert_eq!(std::fs::read(folder.join("model.safetensors")).expect("a file"), weights);
    let ranges = setting.server.ranges("cdn");
    assert!(ranges.len() == 2 && (1..=100_000).contains(&ranges[1]), "{ranges:?}");
}

#[test]
fn a_download_that_always_stalls_ends_and_is_resumed_by_the_next_run() {
    let weights = weights();
    let setting = Setting::new(&[("config.json", b"{}"), ("model.safetensors", &weights)]);
    setting.server.set(Fault::StallAlways { after: 10_000 });
    let error = setting.hasty().resolve("org/tiny", &|_, _, _| ()).expect_err("nothing comes");
    assert!(error.to_string().ends_with("model.safetensors: nothing arrived for 200ms"), "{error}");
    assert!(error.hint().is_some_and(|hint| hint.contains("goes on")));
    assert!(!setting.has_ref());
    assert_eq!(setting.n_partial(), 1);
    setting.server.set(Fault::None);
    let folder = setting.resolve("org/tiny").expect("the next run succeeds");
    assert_eq!(std::fs::read(folder.join("model.safetensors")).expect("a file"), weights);
    assert!(setting.server.ranges("cdn").last().is_some_and(|start| *start > 10_000));
}

#[test]
fn a_listing_that_stalls_is_no_reason_to_wait_for_ever() {
    let setting = Setting::new(&[("config.json", b"{}"), ("model.safetensors", b"w")]);
    setting.server.set(Fault::StallListing);
    let error = setting.hasty().resolve("org/tiny", &|_, _, _| ()).expect_err("nothing comes");
    assert!(matches!(error, HubError::Network { .. }), "{error}");
    assert!(error.to_string().contains("nothing arrived for 200ms"), "{error}");
    // What is in the cache is as good as without a network.
    setting.server.set(Fault::None);
    let folder = setting.resolve("org/tiny").expect("the model is there");
    setting.server.set(Fault::StallListing);
    assert_eq!(setting.hasty().resolve("org/tiny", &|_, _, _| ()).expect("the cache has it"), folder);
}

#[test]
fn ids_of_one_word_are_ids() {
    let setting = Setting::new(&[("config.json", b"{}"), ("model.safetensors", b"w")]);
    let folder = setting.resolve("tiny").expect("the model is there");
    assert_eq!(folder, setting.cache().join("models--tiny/snapshots").join(COMMIT));
    assert_eq!(names(&folder), ["config.json", "model.safetensors"]);
    assert_eq!(setting.resolve(&format!("tiny@{COMMIT}")).expect("the commit is cached"), folder);
    let error = setting.resolve("tinier").expect_err("no such model");
    assert!(error.to_string().starts_with("no model `tinier` at http://127.0.0.1:"), "{error}");
    assert!(["gpt2", "gpt2@main"].iter().all(|model| hub::is_one_word(model)));
    assert!(["org/gpt2", "./gpt2", "gpt2/", "", "a b"].iter().all(|model| !hub::is_one_word(model)));
}

#[test]
fn a_server_without_ranges_sends_the_whole_file_again() {
    let weights = weights();
    let setting = Setting::new(&[("config.json", b"{}"), ("model.safetensors", &weights)]);
    setting.server.set(Fault::CutOnce { after: 100_000 });
    setting.server.ignore_ranges();
    let folder = setting.resolve("org/tiny").expect("the second attempt succeeds");
    assert_eq!(std::fs::read(folder.join("model.safetensors")).expect("a file"), weights);
}

#[test]
fn a_complete_partial_file_is_used_without_a_request() {
    let weights = weights();
    let setting = Setting::new(&[("config.json", b"{}"), ("model.safetensors", &weights)]);
    let blobs = setting.cache().join("models--org--tiny/blobs");
    std::fs::create_dir_all(&blobs).expect("a folder");
    std::fs::write(blobs.join(server::sha256(&weights)).with_extension("part"), &weights).expect("a file");
    setting.resolve("org/tiny").expect("the model is there");
    assert_eq!(setting.server.ranges("cdn"), [0; 0]);
}

#[test]
fn damaged_files_do_not_stay() {
    let setting = Setting::new(&[("config.json", b"{}"), ("model.safetensors", &weights())]);
    setting.server.set(Fault::FlipBit);
    let error = setting.resolve("org/tiny").expect_err("a bit is flipped");
    assert!(matches!(&error, HubError::Damaged { file, .. } if file == "model.safetensors"), "{error}");
    assert!(!setting.has_ref());
    setting.server.set(Fault::None);
    setting.resolve("org/tiny").expect("the next run starts afresh");
}

#[test]
fn a_hub_that_lists_names_only_is_asked_for_each_file() {
    let weights = weights();
    let setting = Setting::new(&[("config.json", b"{}"), ("model.safetensors", &weights)]);
    setting.server.list_names_only();
    let folder = setting.resolve("org/tiny").expect("the model is there");
    assert_eq!(std::fs::read(folder.join("model.safetensors")).expect("a file"), weights);
    assert!(setting.blobs().contains(&server::sha256(&weights)));

    let gated = Setting::new(&[("config.json", b"{}"), ("model.safetensors", &weights)]);
    gated.server.list_names_only();
    gated.server.set(Fault::Gated);
    let error = gated.resolve("org/tiny").expect_err("files are gated");
    assert!(matches!(error, HubError::Refused { status: 403, .. }), "{error}");
}

#[test]
fn refusals_hint_at_the_token() {
    let setting = Setting::new(&[("config.json", b"{}"), ("model.safetensors", b"w")]);
    setting.server.require_token("hf_secret");
    let error = setting.resolve("org/tiny").expect_err("no token");
    assert!(matches!(error, HubError::Refused { status: 401, had_token: false, .. }), "{error}");
    assert!(error.hint().is_some_and(|hint| hint.starts_with("set HF_TOKEN")));
    let hub = Hub { token: Some("hf_secret".to_owned()), ..setting.hub() };
    hub.resolve("org/tiny", &|_, _, _| ()).expect("the token is right");

    setting.server.set(Fault::Gated);
    std::fs::remove_dir_all(setting.cache()).expect("the cache is there");
    let error = hub.resolve("org/tiny", &|_, _, _| ()).expect_err("files are gated");
    assert!(matches!(error, HubError::Refused { status: 403, had_token: true, .. }), "{error}");
    assert!(error.hint().is_some_and(|hint| hint.contains("terms")));
}

#[test]
fn what_is_not_there_is_named() {
    let setting = Setting::new(&[("config.json", b"{}"), ("model.gguf", b"w")]);
    let check = |model: &str, expected: &str| {
        let error = setting.resolve(model).expect_err("there is no such model");
        assert!(error.to_string().starts_with(expected), "{error}");
    };
    check("org/other", "no model `org/other` at http://127.0.0.1:");
    check("org/tiny@v9", "model `org/tiny` has no revision `v9`");
    check("org/tiny", "`org/tiny` has no weights, expected `config.json` and safetensors");
    let error = Setting::new(&[("model.safetensors", b"w")]).resolve("org/tiny").expect_err("no configuration");
    assert!(error.to_string().starts_with("`org/tiny` has no config.json"), "{error}");
}

#[test]
fn typing_errors_are_neither_folder_nor_id() {
    for model in
        ["no folder", "", "a/b/c", "../a", ".a", "-a", "a@", "org/", "/name", "org/na me", "org/n@", "o/n@../x"]
    {
        let error = hub::resolve(model, &|_, _, _| ()).expect_err(model);
        let expected = format!("`{model}` is neither an existing folder nor an id of the hub, `org/name` or `name`");
        assert_eq!(error.to_string(), expected);
    }
    let here = env!("CARGO_MANIFEST_DIR");
    assert_eq!(hub::resolve(here, &|_, _, _| ()).expect("the folder exists"), Path::new(here));
}

#[test]
fn offline_asks_nobody_and_says_so() {
    let setting = Setting::new(&[("config.json", b"{}"), ("model.safetensors", b"w")]);
    let error = setting.offline().expect_err("the cache is empty");
    assert!(error.to_string().starts_with("offline (HF_HUB_OFFLINE is set), and the cache"), "{error}");
    assert!(error.hint().is_some_and(|hint| hint.contains("HF_HUB_OFFLINE")));
    assert_eq!(setting.server.requests().len(), 0);
}

#[test]
fn without_a_network_the_cache_serves() {
    let setting = Setting::new(&[("config.json", b"{}"), ("model.safetensors", b"w")]);
    let folder = setting.resolve("org/tiny").expect("the model is there");
    let closed = std::net::TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a port");
    let hub = Hub { endpoint: format!("http://{closed}"), ..setting.hub() };
    assert_eq!(hub.resolve("org/tiny", &|_, _, _| ()).expect("the cache has it"), folder);
    let error = hub.resolve("org/other", &|_, _, _| ()).expect_err("nobody has it");
    assert!(matches!(error, HubError::Network { .. }), "{error}");
}

#[test]
fn variables_are_those_of_all_hugging_face_tools() {
    let folder = TempDir::new().expect("a temporary folder");
    let home = folder.path().to_str().expect("a plain path").to_owned();
    let hub = |set: &[(&str, &str)]| {
        let find = |name: &str| set.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
        Hub::from_env(&find).expect("a home folder")
    };
    let plain = hub(&[("XDG_CACHE_HOME", &home)]);
    assert_eq!(plain.cache, folder.path().join("huggingface/hub"));
    assert_eq!((plain.endpoint.as_str(), plain.token, plain.offline), ("https://huggingface.co", None, false));
    assert_eq!(hub(&[("HF_HOME", &home)]).cache, folder.path().join("hub"));
    assert_eq!(hub(&[("HF_HOME", &home), ("HF_HUB_CACHE", "/x")]).cache, Path::new("/x"));
    assert_eq!(hub(&[("HF_ENDPOINT", "http://mirror/"), ("HF_HOME", "")]).endpoint, "http://mirror");
    assert!(["1", "TRUE", "yes", "on"].iter().all(|value| hub(&[("HF_HUB_OFFLINE", value)]).offline));
    assert!(!hub(&[("HF_HUB_OFFLINE", "0")]).offline);

    std::fs::write(folder.path().join("token"), "stored\n").expect("a file");
    assert_eq!(hub(&[("HF_HOME", &home)]).token.as_deref(), Some("stored"));
    assert_eq!(hub(&[("HF_HOME", &home), ("HF_TOKEN", " mine ")]).token.as_deref(), Some("mine"));
}
