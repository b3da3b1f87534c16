//! `modegpt studio`: the page in the browser, served to this machine alone.

mod http;

use std::borrow::Cow;
use std::io::{self, BufReader, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::args::StudioArgs;
use crate::failure::Failure;
use crate::printer;

/// The page's files, where this program was built with them.
#[cfg(feature = "studio")]
const EMBEDDED: &[(&str, &[u8])] = include!(concat!(env!("OUT_DIR"), "/page.rs"));
#[cfg(not(feature = "studio"))]
const EMBEDDED: &[(&str, &[u8])] = &[];

/// A browser that says nothing for so long has gone.
const PATIENCE: Duration = Duration::from_secs(10);

/// Where the page comes from.
#[derive(Clone)]
enum Page {
    Embedded,
    Folder(PathBuf),
}

/// Runs the command, until it is interrupted.
pub(crate) fn run(args: &StudioArgs) -> Result<(), Failure> {
    let page = Page::find(args.page.as_deref())?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, args.port))
        .map_err(|error| Failure::request(format!("cannot listen on port {}: {error}", args.port)))?;
    printer::line(&format!("http://{}/", listener.local_addr()?))?;
    printer::remark("open this address in a browser; Ctrl-C ends the studio");
    for stream in listener.incoming() {
        let (page, stream) = (page.clone(), stream?);
        // A browser that hangs up or says nonsense is of no concern to the others.
        std::thread::spawn(move || drop(answer(&page, &stream)));
    }
    Ok(())
}

impl Page {
    fn find(folder: Option<&Path>) -> Result<Self, Failure> {
        match folder {
            Some(folder) if folder.join("index.html").is_file() => Ok(Self::Folder(folder.to_owned())),
            Some(folder) => Err(Failure::request(format!(
                "`{}` is not a built page: it has no `index.html` (in web/: npm run core && npm run build)",
                folder.display()
            ))),
            None if EMBEDDED.is_empty() => Err(Failure::request(
                "this program was built without the page: give --page FOLDER, or build it with `--features studio`"
                    .to_owned(),
            )),
            None => Ok(Self::Embedded),
        }
    }

    /// The content of a file by its plain path, such as `assets/index.js`.
    fn read(&self, path: &str) -> Option<Cow<'static, [u8]>> {
        match self {
            Self::Embedded => {
                let found = EMBEDDED.iter().find(|(name, _)| *name == path);
                found.map(|(_, content)| Cow::Borrowed(*content))
            }
            Self::Folder(folder) => std::fs::read(folder.join(path)).ok().map(Cow::Owned),
        }
    }
}

fn answer(page: &Page, mut stream: &TcpStream) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let request = http::Request::read(BufReader::new(stream));
    let found = match &request {
        Ok(request) => page.read(&request.path).ok_or("404 Not Found"),
        Err(status) => Err(*status),
    };
    let (status, kind, body) = match (&found, &request) {
        (Ok(content), Ok(request)) => ("200 OK", http::content_type(&request.path), content.as_ref()),
        (Err(status), _) | (Ok(_), Err(status)) => (*status, "text/plain", status.as_bytes()),
    };
    write!(
        stream,
        "HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {}\r\ncache-control: no-cache\r\n\
         x-content-type-options: nosniff\r\nconnection: close\r\n\r\n",
        body.len()
    )?;
    let wants_body = request.is_ok_and(|request| !request.head_only) || found.is_err();
    if wants_body { stream.write_all(body) } else { Ok(()) }
}
