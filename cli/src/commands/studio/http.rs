//! As much of HTTP as a page of files needs.

use std::io::BufRead;

/// Far above what a browser sends.
const HEAD_LIMIT_BYTES: u64 = 16 << 10;

/// What is asked for.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Request {
    /// Plain path below the page's folder; `index.html` for the folder itself.
    pub(super) path: String,
    /// Whether only the head of the answer is wanted.
    pub(super) head_only: bool,
}

impl Request {
    /// Reads the head of a request; the error is a status line.
    pub(super) fn read(stream: impl BufRead) -> Result<Self, &'static str> {
        const BAD: &str = "400 Bad Request";
        let mut lines = stream.take(HEAD_LIMIT_BYTES).lines().map_while(Result::ok);
        let first = lines.next().ok_or(BAD)?;
        // All of the head is read, since closing with unread bytes would cut the answer off.
        if lines.all(|line| !line.is_empty()) {
            return Err(BAD);
        }
        let mut words = first.split(' ');
        let (method, target) = (words.next().ok_or(BAD)?, words.next().ok_or(BAD)?);
        let head_only = match method {
            "GET" => false,
            "HEAD" => true,
            _ => return Err("405 Method Not Allowed"),
        };
        let path = target.split(['?', '#']).next().and_then(|path| path.strip_prefix('/')).ok_or(BAD)?;
        let path = if path.is_empty() { "index.html" } else { path };
        if !is_plain(path) {
            return Err("404 Not Found");
        }
        Ok(Self { path: path.to_owned(), head_only })
    }
}

/// Whether a path stays below its folder, whatever the system makes of it. The page's names need no escapes.
fn is_plain(path: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    path.split('/').all(|part| !part.is_empty() && !part.starts_with('.') && part.chars().all(plain))
}

/// By the ending of the name.
pub(super) fn content_type(path: &str) -> &'static str {
    match path.rsplit_once('.').map_or("", |(_, ending)| ending) {
        "html" => "text/html; charset=utf-8",
        "js" => "text/javascript; charset=utf-8",
        "css" => "text/css; charset=utf-8",
        "json" => "application/json",
        "wasm" => "application/wasm",
        "woff2" => "font/woff2",
        "txt" => "text/plain; charset=utf-8",
        _ => "application/octet-stream",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<(String, bool), &'static str> {
        Request::read(text.as_bytes()).map(|request| (request.path, request.head_only))
    }

    #[test]
    fn requests_of_browsers_are_understood() {
        let path = |text: &str| read(&format!("{text} HTTP/1.1\r\nHost: x\r\n\r\n")).expect("a request");
        assert_eq!(path("GET /"), ("index.html".to_owned(), false));
        assert_eq!(path("GET /assets/index-Ab_1.js?v=2"), ("assets/index-Ab_1.js".to_owned(), false));
        assert_eq!(path("HEAD /sw.js"), ("sw.js".to_owned(), true));
    }

    #[test]
    fn paths_that_lead_elsewhere_are_not_found() {
        for path in
            ["/../Cargo.toml", "/a/../../b", "//etc/passwd", "/a//b", "/.git/config", "/%2e%2e/x", "/c:/x", "/a\\b"]
        {
            assert_eq!(read(&format!("GET {path} HTTP/1.1\r\n\r\n")), Err("404 Not Found"), "{path}");
        }
    }

    #[test]
    fn what_is_no_request_is_refused() {
        assert_eq!(read("POST / HTTP/1.1\r\n\r\n"), Err("405 Method Not Allowed"));
        let endless = format!("GET / HTTP/1.1\r\n{}", "x: y\r\n".repeat(10_000));
        for text in ["", "\r\n\r\n", "GET", "GET / HTTP/1.1\r\n", "GET nowhere HTTP/1.1\r\n\r\n", &endless] {
            assert_eq!(read(text), Err("400 Bad Request"), "{text:?}");
        }
    }
}
