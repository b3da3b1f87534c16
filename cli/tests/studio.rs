//! `modegpt studio` serves a page to this machine.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

/// The studio at work on a port that was free, ended with the test.
struct Studio {
    child: Child,
    address: String,
}

impl Studio {
    fn start(page: &TempDir) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_modegpt"))
            .args(["studio", "--port", "0", "--page"])
            .arg(page.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("starts");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("piped")).read_line(&mut line).expect("an address");
        let address = line.trim().trim_start_matches("http://").trim_end_matches('/').to_owned();
        Self { child, address }
    }

    fn ask(&self, request: &str) -> String {
        let mut stream = TcpStream::connect(&self.address).expect("listens");
        stream.write_all(request.as_bytes()).expect("takes the request");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("answers");
        answer
    }
}

impl Drop for Studio {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn page() -> TempDir {
    let folder = TempDir::new().expect("a temporary folder");
    std::fs::write(folder.path().join("index.html"), "<p>a page</p>").expect("a file");
    std::fs::create_dir(folder.path().join("assets")).expect("a folder");
    std::fs::write(folder.path().join("assets/core.wasm"), "\0asm").expect("a file");
    folder
}

#[test]
fn files_of_the_page_are_served_and_no_others() {
    let folder = page();
    let studio = Studio::start(&folder);
    let index = studio.ask("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n");
    assert!(index.starts_with("HTTP/1.1 200 OK\r\ncontent-type: text/html; charset=utf-8\r\ncontent-length: 13\r\n"));
    assert!(index.ends_with("\r\n\r\n<p>a page</p>"));
    let core = studio.ask("GET /assets/core.wasm HTTP/1.1\r\n\r\n");
    assert!(core.contains("content-type: application/wasm") && core.ends_with("\0asm"));
    let head = studio.ask("HEAD / HTTP/1.1\r\n\r\n");
    assert!(head.contains("content-length: 13\r\n") && head.ends_with("\r\n\r\n"));
    for (request, status) in [("GET /nothing", "404"), ("GET /../Cargo.toml", "404"), ("POST /", "405")] {
        let answer = studio.ask(&format!("{request} HTTP/1.1\r\n\r\n"));
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{request}: {answer}");
    }
}

#[test]
fn a_folder_without_a_page_and_a_taken_port_are_refused() {
    let refused = |page: &TempDir, port: &str| {
        let output = Command::new(env!("CARGO_BIN_EXE_modegpt"))
            .args(["studio", "--port", port, "--page"])
            .arg(page.path())
            .output()
            .expect("runs");
        assert_eq!(output.status.code(), Some(1));
        String::from_utf8(output.stderr).expect("text")
    };
    assert!(refused(&TempDir::new().expect("a temporary folder"), "0").contains("has no `index.html`"));
    let page = page();
    let studio = Studio::start(&page);
    let (_, port) = studio.address.rsplit_once(':').expect("a port");
    assert!(refused(&page, port).contains(&format!("cannot listen on port {port}")));
}
