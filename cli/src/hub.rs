//! Ids of models on the Hugging Face hub, resolved to local folders.
//!
//! Files go into the cache that all Hugging Face tools share: contents under `blobs`, named by their checksum, and a
//! folder of links for every commit under `snapshots`. A file is linked only once it is complete and checked, and a
//! branch points to a commit only once all its files are there.
//!
//! `hf-hub` gives the layout of the cache, the addresses, the TLS client and its authorisation. Its own download is not
//! used: it appends to a partial file whatever the server sends, also when that is the whole file again, and neither
//! checks size nor checksum.

#[path = "hub/patience.rs"]
mod patience;

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use hf_hub::api::sync::{Api, ApiBuilder};
use hf_hub::{Cache, Repo, RepoType};
use serde_json::Value;
use sha2::{Digest, Sha256};
use thiserror::Error;

use patience::{PatientReader, within};

/// Told of a file's name, the bytes that are here, and all its bytes.
pub(crate) type Progress<'a> = &'a dyn Fn(&str, u64, u64);

/// Whether `model` is one plain word, as the names of folders and of the hub's oldest models are.
pub(crate) fn is_one_word(model: &str) -> bool {
    parse_id(model).is_some_and(|(id, _)| !id.contains('/'))
}

/// The folder of `model`: an existing path is itself; `org/name`, `name` (`gpt2`), or one of these with `@revision`, is
/// downloaded from the hub where the cache does not hold it.
///
/// Honours `HF_ENDPOINT`, `HF_TOKEN`, `HF_HUB_CACHE`, `HF_HOME` and `HF_HUB_OFFLINE`. When the hub cannot be reached, a
/// complete model in the cache is taken as it is.
///
/// # Errors
/// Every cause is a variant of [`HubError`]; some have a [`HubError::hint`].
pub(crate) fn resolve(model: &str, progress: Progress) -> Result<PathBuf, HubError> {
    if Path::new(model).exists() {
        return Ok(PathBuf::from(model));
    }
    Hub::from_env(&|name| std::env::var(name).ok())?.resolve(model, progress)
}

/// Why there is no folder for a model.
#[derive(Debug, Error)]
pub(crate) enum HubError {
    /// Neither a path nor an id.
    #[error("`{model}` is neither an existing folder nor an id of the hub, `org/name` or `name`")]
    NotAnId { model: String },
    /// The hub has no such model.
    #[error("no model `{model}` at {endpoint}, and no folder of that name")]
    NotFound { model: String, endpoint: String },
    /// The model has no such branch, tag or commit.
    #[error("model `{model}` has no revision `{revision}`")]
    NoRevision { model: String, revision: String },
    /// The hub asks for permission.
    #[error("the hub refused access to `{model}` (HTTP {status}): it does not exist, or is private or gated")]
    Refused { model: String, status: u16, had_token: bool },
    /// Offline, and the cache does not hold the model.
    #[error("offline (HF_HUB_OFFLINE is set), and the cache `{}` lacks {missing} of `{model}`", cache.display())]
    Offline { model: String, cache: PathBuf, missing: String },
    /// The repository has nothing to load.
    #[error("`{model}` has no {missing}, expected `config.json` and safetensors or PyTorch weights")]
    NotAModel { model: String, missing: String },
    /// What the hub says about the repository makes no sense.
    #[error("unexpected answer of the hub about `{model}`: {reason}")]
    BadAnswer { model: String, reason: String },
    /// A download is complete but wrong; it has been thrown away.
    #[error("`{file}` arrived damaged: expected {expected}, found {found}")]
    Damaged { file: String, expected: String, found: String },
    /// Another process is at it.
    #[error("`{file}` is being downloaded by another process")]
    Busy { file: String },
    /// The hub cannot be reached, or broke off.
    #[error("cannot get {url}: {reason}")]
    Network { url: String, reason: String },
    /// The cache cannot be read or written.
    #[error("cache `{}`: {source}", path.display())]
    Cache { path: PathBuf, source: io::Error },
    /// There is no place for a cache.
    #[error("no home folder, and neither HF_HOME nor HF_HUB_CACHE is set")]
    NoHome,
}

impl HubError {
    /// What the user can do about it.
    pub(crate) fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Refused { had_token: false, .. } => {
                Some("set HF_TOKEN to a token of https://huggingface.co/settings/tokens")
            }
            Self::Refused { had_token: true, .. } => {
                Some("check that HF_TOKEN may read the model, and that its terms are accepted on its page")
            }
            Self::Damaged { .. } => Some("run again: the damaged file has been thrown away"),
            Self::Network { .. } => Some("run again: what has arrived is kept, and the download goes on from there"),
            Self::Offline { .. } => Some("unset HF_HUB_OFFLINE, or name a local folder"),
            _ => None,
        }
    }
}

/// Where models come from and go to.
#[derive(Clone, Debug)]
pub(crate) struct Hub {
    /// Folder of the shared cache, `~/.cache/huggingface/hub` unless said otherwise.
    pub(crate) cache: PathBuf,
    /// Address of the hub without a slash at the end.
    pub(crate) endpoint: String,
    /// Sent to the hub, and never to another host that it redirects to.
    pub(crate) token: Option<String>,
    /// Take models from the cache only.
    pub(crate) offline: bool,
    /// How long nothing may arrive before a connection is given up.
    pub(crate) patience: Duration,
}

/// Without one of these names, the first being preferred, a repository is no model.
const WEIGHTS: [(&str, &str); 2] =
    [("model.safetensors", "model.safetensors.index.json"), ("pytorch_model.bin", "pytorch_model.bin.index.json")];
const CONFIG: &str = "config.json";
/// Taken where there is one.
const OPTIONAL: [&str; 6] = [
    "generation_config.json",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
];
const ATTEMPTS: u32 = 5;
const CONNECT: Duration = Duration::from_secs(30);
const ANSWER: Duration = Duration::from_mins(1);
const PATIENCE: Duration = Duration::from_mins(1);
/// Far above any listing or index of shards, far below what fills a memory.
const JSON_BYTES: u64 = 64 << 20;

impl Hub {
    /// Reads the variables that all Hugging Face tools share.
    ///
    /// # Errors
    /// [`HubError::NoHome`] if no variable says where the cache is.
    pub(crate) fn from_env(variable: &dyn Fn(&str) -> Option<String>) -> Result<Self, HubError> {
        let set = |name: &str| variable(name).filter(|value| !value.trim().is_empty());
        let home = set("HF_HOME").map(PathBuf::from).or_else(|| {
            let cache = set("XDG_CACHE_HOME").map(PathBuf::from);
            Some(cache.or_else(|| Some(std::env::home_dir()?.join(".cache")))?.join("huggingface"))
        });
        let cache = set("HF_HUB_CACHE").map(PathBuf::from).or_else(|| Some(home.as_ref()?.join("hub")));
        let stored_token = || std::fs::read_to_string(home.as_ref()?.join("token")).ok();
        Ok(Self {
            cache: cache.ok_or(HubError::NoHome)?,
            endpoint: set("HF_ENDPOINT")
                .map_or("https://huggingface.co".to_owned(), |url| url.trim_end_matches('/').to_owned()),
            token: set("HF_TOKEN")
                .or_else(stored_token)
                .map(|token| token.trim().to_owned())
                .filter(|token| !token.is_empty()),
            offline: set("HF_HUB_OFFLINE")
                .is_some_and(|value| ["1", "on", "yes", "true"].contains(&value.trim().to_ascii_lowercase().as_str())),
            patience: PATIENCE,
        })
    }

    /// As the function [`resolve`].
    ///
    /// # Errors
    /// As [`resolve`].
    pub(crate) fn resolve(&self, model: &str, progress: Progress) -> Result<PathBuf, HubError> {
        let (id, revision) = parse_id(model).ok_or(HubError::NotAnId { model: model.to_owned() })?;
        let api = ApiBuilder::from_cache(Cache::new(self.cache.clone()))
            .with_endpoint(self.endpoint.clone())
            .with_token(self.token.clone())
            .with_progress(false)
            .build()
            .map_err(|e| HubError::Network { url: self.endpoint.clone(), reason: e.to_string() })?;
        let repo = Repo::with_revision(id.to_owned(), RepoType::Model, revision.to_owned());
        let download = Download { hub: self, api, id, repo, progress };
        if self.offline {
            return download.cached().map_err(|missing| HubError::Offline {
                model: model.to_owned(),
                cache: self.cache.clone(),
                missing,
            });
        }
        match download.list() {
            Err(HubError::Network { url, reason }) => download.cached().map_err(|_| HubError::Network { url, reason }),
            listing => download.run(&listing?),
        }
    }
}

/// `org/name` or `name`, and the revision behind an `@`, `main` without one.
fn parse_id(model: &str) -> Option<(&str, &str)> {
    let (id, revision) = model.split_once('@').unwrap_or((model, "main"));
    let is_id = id.split('/').count() <= 2 && id.split('/').all(is_name);
    let is_revision = revision.split('/').all(is_name);
    (is_id && is_revision).then_some((id, revision))
}

/// Safe as one part of a path and of an address.
fn is_name(text: &str) -> bool {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    !text.is_empty() && text.len() <= 96 && !text.starts_with(['.', '-']) && text.chars().all(is_plain)
}

/// A commit or a checksum.
fn is_hash(text: &str) -> bool {
    (1..=128).contains(&text.len()) && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
}

/// One model on its way into the cache.
struct Download<'a> {
    hub: &'a Hub,
    api: Api,
    id: &'a str,
    repo: Repo,
    progress: Progress<'a>,
}

/// What the hub says about a revision.
struct Listing {
    commit: String,
    files: BTreeMap<String, Option<Blob>>,
}

/// The contents of a file.
#[derive(Clone)]
struct Blob {
    /// SHA-256 of a large file; git's own hash, which is another one, of a small file.
    hash: String,
    bytes: u64,
}

struct Answer {
    status: u16,
    error_code: String,
    content_range: String,
    body: PatientReader,
}

impl Download<'_> {
    /// Brings all files that are needed and not yet there; the branch is moved to the commit at the very end.
    fn run(&self, listing: &Listing) -> Result<PathBuf, HubError> {
        if !listing.files.contains_key(CONFIG) {
            return Err(self.not_a_model(CONFIG.to_owned()));
        }
        for file in std::iter::once(CONFIG).chain(OPTIONAL).filter(|file| listing.files.contains_key(*file)) {
            self.fetch(file, listing)?;
        }
        let has = |file: &str| listing.files.contains_key(file);
        let (single, index) = WEIGHTS
            .into_iter()
            .find(|(single, index)| has(single) || has(index))
            .ok_or_else(|| self.not_a_model("weights".to_owned()))?;
        if has(single) {
            self.fetch(single, listing)?;
        } else {
            for shard in self.shards(&self.fetch(index, listing)?)? {
                self.fetch(&shard, listing)?;
            }
        }
        if self.repo.revision() != listing.commit {
            let cache = Cache::new(self.hub.cache.clone()).repo(self.repo.clone());
            cache.create_ref(&listing.commit).map_err(|e| self.io(e))?;
        }
        Ok(self.snapshot(&listing.commit))
    }

    /// The folder of a complete model, or what is missing of it.
    fn cached(&self) -> Result<PathBuf, String> {
        let revision = self.repo.revision();
        let stored = std::fs::read_to_string(self.folder().join("refs").join(revision)).ok();
        let commit = stored.as_deref().map_or(revision, str::trim);
        let folder = self.snapshot(commit);
        if !is_name(commit) || !folder.is_dir() {
            return Err(format!("revision `{revision}`"));
        }
        let has = |file: &str| folder.join(file).is_file();
        let (single, index) = WEIGHTS.into_iter().find(|(single, index)| has(single) || has(index)).ok_or("weights")?;
        let shards =
            if has(single) { Vec::new() } else { self.shards(&folder.join(index)).map_err(|e| e.to_string())? };
        match shards.into_iter().chain([CONFIG.to_owned()]).find(|file| !has(file)) {
            Some(missing) => Err(format!("`{missing}`")),
            None => Ok(folder),
        }
    }

    /// Asks for the commit, the files and, from hubs that tell, their sizes and checksums.
    fn list(&self) -> Result<Listing, HubError> {
        let url = format!("{}/api/{}?blobs=true", self.hub.endpoint, self.repo.api_url());
        let answer = self.get(&url, None)?;
        let json: Value = serde_json::from_reader(answer.body.take(JSON_BYTES)).map_err(|e| {
            // A listing broken off by the connection is the network's fault, not the hub's.
            if e.is_io() || e.is_eof() { network(&url, &e) } else { self.bad_answer(e.to_string()) }
        })?;
        let commit = json["sha"].as_str().filter(|sha| is_hash(sha)).ok_or_else(|| self.bad_answer("no commit"))?;
        let files = json["siblings"].as_array().ok_or_else(|| self.bad_answer("no list of files"))?;
        let files = files.iter().filter_map(|file| {
            let name = file["rfilename"].as_str().filter(|name| is_name(name))?;
            Some((name.to_owned(), blob_of(file)))
        });
        Ok(Listing { commit: commit.to_owned(), files: files.collect() })
    }

    /// Makes sure that `file` is in the snapshot and returns its path there.
    fn fetch(&self, file: &str, listing: &Listing) -> Result<PathBuf, HubError> {
        let known = listing.files.get(file).ok_or_else(|| self.not_a_model(format!("`{file}`")))?;
        let url = format!("{}/{}/resolve/{}/{file}", self.hub.endpoint, self.id, listing.commit);
        let blob = match known {
            Some(blob) => blob.clone(),
            None => self.ask_for_blob(&url)?,
        };
        let link = self.snapshot(&listing.commit).join(file);
        if !is_complete(&link, blob.bytes) {
            let path = self.folder().join("blobs").join(&blob.hash);
            for folder in [path.parent(), link.parent()].into_iter().flatten() {
                std::fs::create_dir_all(folder).map_err(|e| self.io(e))?;
            }
            if !is_complete(&path, blob.bytes) {
                self.download(&url, file, &blob, &path)?;
            }
            place(&path, &link).map_err(|e| self.io(e))?;
        }
        Ok(link)
    }

    /// For hubs whose listing names files only.
    fn ask_for_blob(&self, url: &str) -> Result<Blob, HubError> {
        // `hf-hub` does not tell a refusal from a broken line, so a failure is looked at again.
        let (api, address) = (self.api.clone(), url.to_owned());
        let asked = within(self.hub.patience, move || api.metadata(&address)).map_err(|e| network(url, &e))?;
        let metadata = asked.map_err(|e| match self.get(url, None) {
            Err(refusal) => refusal,
            Ok(_) => network(url, &e),
        })?;
        if !is_hash(metadata.etag()) {
            return Err(self.bad_answer(format!("checksum `{}`", metadata.etag())));
        }
        Ok(Blob { hash: metadata.etag().to_owned(), bytes: metadata.size() as u64 })
    }

    /// Downloads into a partial file beside `path`, goes on with it after an interruption, and moves it to `path` once
    /// it is complete and checked.
    fn download(&self, url: &str, file: &str, blob: &Blob, path: &Path) -> Result<(), HubError> {
        let partial_path = path.with_extension("part");
        let mut partial =
            OpenOptions::new().read(true).append(true).create(true).open(&partial_path).map_err(|e| self.io(e))?;
        match partial.try_lock() {
            Err(TryLockError::WouldBlock) => return Err(HubError::Busy { file: file.to_owned() }),
            // Some network file systems know no locks; a mix of two downloads would fail the check below.
            Ok(()) | Err(TryLockError::Error(_)) => {}
        }
        if is_complete(path, blob.bytes) {
            return Ok(());
        }
        for attempt in 1.. {
            match self.append(url, file, blob.bytes, &mut partial) {
                Err(HubError::Network { .. }) if attempt < ATTEMPTS => {
                    std::thread::sleep(Duration::from_millis(100 << attempt));
                }
                Err(error) => return Err(error),
                Ok(()) => break,
            }
        }
        if let Err(error) = check(file, &partial_path, blob) {
            // Nothing can be built upon it.
            partial.set_len(0).map_err(|e| self.io(e))?;
            return Err(error);
        }
        partial.sync_all().and_then(|()| std::fs::rename(&partial_path, path)).map_err(|e| self.io(e))
    }

    /// One request for all that is missing.
    fn append(&self, url: &str, file: &str, bytes: u64, partial: &mut File) -> Result<(), HubError> {
        let mut done = partial.metadata().map_err(|e| self.io(e))?.len();
        if done == bytes {
            return Ok(());
        }
        if done > bytes {
            partial.set_len(0).map_err(|e| self.io(e))?;
            done = 0;
        }
        let mut answer = self.get(url, Some(done))?;
        if done > 0 && (answer.status != 206 || !answer.content_range.starts_with(&format!("bytes {done}-"))) {
            // The server sends the whole file again.
            partial.set_len(0).map_err(|e| self.io(e))?;
            done = 0;
        }
        (self.progress)(file, done, bytes);
        let mut buffer = vec![0; 1 << 16];
        loop {
            let n_read = answer.body.read(&mut buffer).map_err(|e| network(url, &e))?;
            if n_read == 0 && done < bytes {
                return Err(network(url, &format!("ended after {done} of {bytes} bytes")));
            }
            if n_read == 0 {
                return Ok(());
            }
            partial.write_all(&buffer[..n_read]).map_err(|e| self.io(e))?;
            done += n_read as u64;
            if done > bytes {
                return Ok(());
            }
            (self.progress)(file, done, bytes);
        }
    }

    /// A successful answer, from byte `start` on if that is given.
    fn get(&self, url: &str, start: Option<u64>) -> Result<Answer, HubError> {
        // The client behind `hf-hub`, with its authorisation, is to be had only as a request for something else.
        let mut request =
            self.api.repo(self.repo.clone()).info_request().uri(url).header("Accept-Encoding", "identity");
        if let Some(start) = start {
            request = request.header("Range", format!("bytes={start}-"));
        }
        let config = request.config().http_status_as_error(false);
        let config = config.timeout_connect(Some(CONNECT)).timeout_recv_response(Some(ANSWER));
        let response = config.build().call().map_err(|e| network(url, &e))?;
        let header = |name: &str| {
            let value = response.headers().get(name).and_then(|value| value.to_str().ok());
            value.unwrap_or_default().to_owned()
        };
        let (error_code, content_range) = (header("x-error-code"), header("content-range"));
        let status = response.status().as_u16();
        let body =
            PatientReader::new(response.into_body().into_reader(), self.hub.patience).map_err(|e| network(url, &e))?;
        self.check_status(url, Answer { status, error_code, content_range, body })
    }

    fn check_status(&self, url: &str, answer: Answer) -> Result<Answer, HubError> {
        let model = self.id.to_owned();
        match (answer.status, answer.error_code.as_str()) {
            (200 | 206, _) => Ok(answer),
            (404, "RevisionNotFound") => Err(HubError::NoRevision { model, revision: self.repo.revision().to_owned() }),
            (404, _) => Err(HubError::NotFound { model, endpoint: self.hub.endpoint.clone() }),
            (status @ (401 | 403), _) => Err(HubError::Refused { model, status, had_token: self.hub.token.is_some() }),
            (status, _) => Err(network(url, &format!("HTTP {status}"))),
        }
    }

    /// The files that an index spreads the tensors over.
    fn shards(&self, index: &Path) -> Result<Vec<String>, HubError> {
        let file = File::open(index).map_err(|e| self.io(e))?;
        let json: Value = serde_json::from_reader(io::BufReader::new(file.take(JSON_BYTES)))
            .map_err(|e| self.bad_answer(format!("index of shards: {e}")))?;
        let map =
            json["weight_map"].as_object().ok_or_else(|| self.bad_answer("index of shards without weight_map"))?;
        let mut shards: Vec<String> = Vec::new();
        for shard in map.values() {
            let shard = shard.as_str().filter(|name| is_name(name));
            let shard = shard.ok_or_else(|| self.bad_answer("index of shards names no plain file"))?;
            shards.push(shard.to_owned());
        }
        shards.sort_unstable();
        shards.dedup();
        Ok(shards)
    }

    fn folder(&self) -> PathBuf {
        self.hub.cache.join(self.repo.folder_name())
    }

    fn snapshot(&self, commit: &str) -> PathBuf {
        self.folder().join("snapshots").join(commit)
    }

    fn bad_answer(&self, reason: impl Into<String>) -> HubError {
        HubError::BadAnswer { model: self.id.to_owned(), reason: reason.into() }
    }

    fn not_a_model(&self, missing: String) -> HubError {
        HubError::NotAModel { model: self.id.to_owned(), missing }
    }

    fn io(&self, source: io::Error) -> HubError {
        HubError::Cache { path: self.folder(), source }
    }
}

fn network(url: &str, reason: &dyn std::fmt::Display) -> HubError {
    HubError::Network { url: url.to_owned(), reason: reason.to_string() }
}

/// Size and checksum of a listed file, where the hub gives both.
fn blob_of(file: &Value) -> Option<Blob> {
    let hash = file["lfs"]["sha256"].as_str().or_else(|| file["blobId"].as_str())?;
    is_hash(hash).then_some(Blob { hash: hash.to_owned(), bytes: file["size"].as_u64()? })
}

fn is_complete(path: &Path, bytes: u64) -> bool {
    path.metadata().is_ok_and(|metadata| metadata.is_file() && metadata.len() == bytes)
}

/// Compares the size, and for large files, whose name is their SHA-256, the contents.
fn check(file: &str, path: &Path, blob: &Blob) -> Result<(), HubError> {
    let damaged = |expected: String, found: String| HubError::Damaged { file: file.to_owned(), expected, found };
    let io = |source| HubError::Cache { path: path.to_owned(), source };
    let bytes = path.metadata().map_err(io)?.len();
    if bytes != blob.bytes {
        return Err(damaged(format!("{} bytes", blob.bytes), format!("{bytes} bytes")));
    }
    if blob.hash.len() == 64 {
        let mut hasher = Sha256::new();
        io::copy(&mut File::open(path).map_err(io)?, &mut hasher).map_err(io)?;
        let hash = format!("{:x}", hasher.finalize());
        if hash != blob.hash.to_ascii_lowercase() {
            return Err(damaged(format!("SHA-256 {}", blob.hash), hash));
        }
    }
    Ok(())
}

/// Makes `link`, in a folder of `snapshots`, stand for `blob`.
fn place(blob: &Path, link: &Path) -> io::Result<()> {
    match std::fs::remove_file(link) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    #[cfg(unix)]
    let placed = std::os::unix::fs::symlink(Path::new("../../blobs").join(blob.file_name().unwrap_or_default()), link);
    // Links need a permission on Windows that users rarely have.
    #[cfg(not(unix))]
    let placed = std::fs::hard_link(blob, link).or_else(|_| std::fs::copy(blob, link).map(drop));
    match placed {
        // Another process was faster.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other,
    }
}
