//! A hub of one model, called `org/tiny` and also `tiny`, over HTTP/1.1: large files behind a redirect to another address, small ones behind a
//! relative redirect, as the real hub has them.

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use sha2::{Digest, Sha256};

pub(crate) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// What goes wrong with files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    None,
    /// The connection breaks once, after so many bytes of a large file.
    CutOnce {
        after: usize,
    },
    /// The connection breaks every time.
    CutAlways {
        after: usize,
    },
    /// Once, after so many bytes of a large file, nothing more comes, and the connection stays open.
    StallOnce {
        after: usize,
    },
    /// The same every time.
    StallAlways {
        after: usize,
    },
    /// The listing never comes, though the connection stays open.
    StallListing,
    /// A large file arrives with one bit wrong.
    FlipBit,
    /// Files are refused, though the listing is open.
    Gated,
}

pub(crate) struct Server {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
}

struct State {
    files: Vec<(String, Vec<u8>)>,
    fault: Fault,
    ranges: bool,
    names_only: bool,
    token: Option<String>,
    requests: Vec<Request>,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Request {
    path: String,
    start: Option<u64>,
    authorization: String,
}

pub(crate) fn sha256(bytes: &[u8]) -> String {
    format!("{:x}", Sha256::digest(bytes))
}

impl Server {
    pub(crate) fn start(files: &[(&str, &[u8])]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("an address");
        let files = files.iter().map(|(name, bytes)| ((*name).to_owned(), bytes.to_vec())).collect();
        let state =
            State { files, fault: Fault::None, ranges: true, names_only: false, token: None, requests: Vec::new() };
        let state = Arc::new(Mutex::new(state));
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = Arc::clone(&shared);
                std::thread::spawn(move || serve(stream, address, &shared));
            }
        });
        Self { address, state }
    }

    pub(crate) fn address(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn requests(&self) -> Vec<Request> {
        self.state().requests.clone()
    }

    /// First bytes asked for, request by request, of addresses that contain `part`.
    pub(crate) fn ranges(&self, part: &str) -> Vec<u64> {
        let requests = self.requests();
        requests.iter().filter(|request| request.path.contains(part)).filter_map(|request| request.start).collect()
    }

    pub(crate) fn set(&self, fault: Fault) {
        self.state().fault = fault;
    }

    pub(crate) fn ignore_ranges(&self) {
        self.state().ranges = false;
    }

    pub(crate) fn list_names_only(&self) {
        self.state().names_only = true;
    }

    pub(crate) fn require_token(&self, token: &str) {
        self.state().token = Some(format!("Bearer {token}"));
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no thread panicked")
    }
}

/// Longer than any client of these tests waits.
const STALL: Duration = Duration::from_mins(1);

/// Status line and headers, the body, and after how many bytes of it the line breaks, or falls silent.
struct Reply {
    head: String,
    body: Vec<u8>,
    cut: Option<usize>,
    stalls: bool,
}

impl Reply {
    fn new(status: &str, headers: &str, body: Vec<u8>) -> Self {
        let head = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n{headers}\r\n", body.len());
        Self { head, body, cut: None, stalls: false }
    }

    fn error(status: &str, code: &str) -> Self {
        Self::new(status, &format!("x-error-code: {code}\r\n"), b"{}".to_vec())
    }
}

fn serve(mut stream: TcpStream, address: SocketAddr, state: &Mutex<State>) {
    let Some(request) = read_request(&stream) else { return };
    let reply = {
        let mut state = state.lock().expect("no thread panicked");
        state.requests.push(request.clone());
        reply_to(&request, address, &mut state)
    };
    let sent = reply.cut.unwrap_or(reply.body.len()).min(reply.body.len());
    // The client may have gone; that is for the test to notice.
    let _ = stream.write_all(reply.head.as_bytes()).and_then(|()| stream.write_all(&reply.body[..sent]));
    if reply.stalls {
        std::thread::sleep(STALL);
    }
}

fn read_request(stream: &TcpStream) -> Option<Request> {
    let mut lines = BufReader::new(stream).lines();
    let first = lines.next()?.ok()?;
    let mut request = Request { path: first.split(' ').nth(1)?.to_owned(), ..Request::default() };
    for line in lines {
        let line = line.ok()?;
        let Some((name, value)) = line.split_once(':') else { break };
        match name.to_ascii_lowercase().as_str() {
            "range" => request.start = value.trim().strip_prefix("bytes=")?.split('-').next()?.parse().ok(),
            "authorization" => value.trim().clone_into(&mut request.authorization),
            _ => {}
        }
    }
    Some(request)
}

fn reply_to(request: &Request, address: SocketAddr, state: &mut State) -> Reply {
    if state.token.as_ref().is_some_and(|token| *token != request.authorization) && !request.path.contains("/cdn/") {
        return Reply::error("401 Unauthorized", "RepoNotFound");
    }
    let path = request.path.split('?').next().unwrap_or_default();
    for model in ["org/tiny", "tiny"] {
        if let Some(revision) = path.strip_prefix(&format!("/api/models/{model}/revision/")) {
            return if ["main", COMMIT].contains(&revision) {
                let reply = Reply::new("200 OK", "content-type: application/json\r\n", listing(state));
                let stalls = state.fault == Fault::StallListing;
                Reply { cut: stalls.then_some(10), stalls, ..reply }
            } else {
                Reply::error("404 Not Found", "RevisionNotFound")
            };
        }
        if let Some(name) = path.strip_prefix(&format!("/{model}/resolve/{COMMIT}/")) {
            return redirect(name, address, state);
        }
    }
    if let Some(name) = path.strip_prefix("/cdn/").or_else(|| path.strip_prefix("/api/resolve-cache/")) {
        return contents(name, request, state);
    }
    Reply::error("404 Not Found", "RepoNotFound")
}

fn is_large(name: &str) -> bool {
    name.rsplit_once('.').is_some_and(|(_, ending)| ending == "safetensors" || ending == "bin")
}

/// Not git's hash, but like it: forty digits that depend on the contents.
fn small_hash(bytes: &[u8]) -> String {
    sha256(bytes)[..40].to_owned()
}

fn listing(state: &State) -> Vec<u8> {
    let mut files = String::new();
    for (name, bytes) in &state.files {
        let blob = match (state.names_only, is_large(name)) {
            (true, _) => String::new(),
            (false, true) => {
                format!(r#", "size": {}, "blobId": "0", "lfs": {{"sha256": "{}"}}"#, bytes.len(), sha256(bytes))
            }
            (false, false) => format!(r#", "size": {}, "blobId": "{}""#, bytes.len(), small_hash(bytes)),
        };
        let comma = if files.is_empty() { "" } else { ", " };
        write!(files, r#"{comma}{{"rfilename": "{name}"{blob}}}"#).expect("memory");
    }
    format!(r#"{{"id": "org/tiny", "sha": "{COMMIT}", "siblings": [{files}, {{"rfilename": "../evil"}}]}}"#)
        .into_bytes()
}

fn redirect(name: &str, address: SocketAddr, state: &State) -> Reply {
    if state.fault == Fault::Gated {
        return Reply::error("403 Forbidden", "GatedRepo");
    }
    let Some((_, bytes)) = state.files.iter().find(|(file, _)| file == name) else {
        return Reply::error("404 Not Found", "EntryNotFound");
    };
    let headers = if is_large(name) {
        let (hash, n_bytes) = (sha256(bytes), bytes.len());
        format!(
            "location: http://{address}/cdn/{name}\r\nx-repo-commit: {COMMIT}\r\n\
             x-linked-etag: \"{hash}\"\r\nx-linked-size: {n_bytes}\r\n"
        )
    } else {
        format!("location: /api/resolve-cache/{name}\r\n")
    };
    Reply::new("302 Found", &headers, Vec::new())
}

fn contents(name: &str, request: &Request, state: &mut State) -> Reply {
    let Some((_, bytes)) = state.files.iter().find(|(file, _)| file == name) else {
        return Reply::error("404 Not Found", "EntryNotFound");
    };
    let mut bytes = bytes.clone();
    let total = bytes.len();
    let etag = format!("etag: \"{}\"\r\nx-repo-commit: {COMMIT}\r\n", small_hash(&bytes));
    let start = request.start.filter(|_| state.ranges).map(|start| start as usize);
    if start.is_some_and(|start| start >= total) {
        return Reply::new("416 Range Not Satisfiable", &format!("content-range: bytes */{total}\r\n"), Vec::new());
    }
    if state.fault == Fault::FlipBit && is_large(name) {
        bytes[total / 2] ^= 1;
    }
    let mut reply = match start {
        Some(start) => {
            let range = format!("{etag}content-range: bytes {start}-{}/{total}\r\n", total - 1);
            Reply::new("206 Partial Content", &range, bytes.split_off(start))
        }
        None => Reply::new("200 OK", &etag, bytes),
    };
    (reply.cut, reply.stalls) = cut(name, state);
    reply
}

/// After how many bytes the body ends, and whether the connection stays open then.
fn cut(name: &str, state: &mut State) -> (Option<usize>, bool) {
    let fault = if is_large(name) { state.fault } else { Fault::None };
    if matches!(fault, Fault::CutOnce { .. } | Fault::StallOnce { .. }) {
        state.fault = Fault::None;
    }
    match fault {
        Fault::CutOnce { after } | Fault::CutAlways { after } => (Some(after), false),
        Fault::StallOnce { after } | Fault::StallAlways { after } => (Some(after), true),
        _ => (None, false),
    }
}
