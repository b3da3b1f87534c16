//! The built command, run in a folder of its own on real models so small that a run takes a fraction of a second.
#![allow(dead_code, reason = "each test file uses some of these")]

pub(crate) mod tensors;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;
use tempfile::TempDir;

/// The models that every desk has, and what they are called there.
const MODELS: [(&str, &str); 3] =
    [("opt", "opt-tiny-stories"), ("llama", "stories260k"), ("gpt2", "gpt2-tiny-stories")];
const MODEL_FILES: [&str; 5] =
    ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"];

/// A small calibration on the processor.
pub(crate) const SAMPLES: &str = "--calibration train.txt --samples 16 --seq-len 64 --device cpu";

/// A folder with models `opt`, `llama` and `gpt2` and texts `train.txt` and `test.txt`, gone when the test ends.
pub(crate) struct Desk(TempDir);

impl Desk {
    pub(crate) fn new() -> Self {
        let desk = Self(TempDir::new().expect("a temporary folder"));
        let data = data();
        for (name, folder) in MODELS {
            fs::create_dir(desk.path(name)).expect("a folder");
            for file in MODEL_FILES {
                // Not copied with its permissions: the tests change these files.
                let bytes = read(&data.join("models").join(folder).join(file));
                fs::write(desk.path(name).join(file), bytes).expect("a copy");
            }
        }
        for (name, length) in [("train.txt", 60_000), ("test.txt", 12_000)] {
            let text = String::from_utf8(read(&data.join("text/tinystories").join(name))).expect("text");
            desk.write(name, &text[..text.floor_char_boundary(length)]);
        }
        desk
    }

    /// The place of `name` in the folder.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(crate) fn exists(&self, name: &str) -> bool {
        self.path(name).exists()
    }

    pub(crate) fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        fs::write(self.path(name), content).expect("a file");
    }

    pub(crate) fn json(&self, name: &str) -> Value {
        serde_json::from_slice(&read(&self.path(name))).expect("JSON")
    }

    pub(crate) fn write_json(&self, name: &str, value: &Value) {
        self.write(name, serde_json::to_vec_pretty(value).expect("JSON"));
    }

    /// Makes the folder `to` with the files of `from`.
    pub(crate) fn copy(&self, from: &str, to: &str) {
        for (name, bytes) in self.files(from) {
            let path = self.path(to).join(name);
            fs::create_dir_all(path.parent().expect("a parent")).expect("a folder");
            fs::write(path, bytes).expect("a file");
        }
    }

    pub(crate) fn remove(&self, folder: &str) {
        fs::remove_dir_all(self.path(folder)).expect("removed");
    }

    /// Every file below `folder`, by its path.
    pub(crate) fn files(&self, folder: &str) -> BTreeMap<String, Vec<u8>> {
        let (root, mut folders) = (self.path(folder), vec![self.path(folder)]);
        let mut files = BTreeMap::new();
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(&folder).expect("a folder") {
                let path = entry.expect("an entry").path();
                if path.is_dir() {
                    folders.push(path);
                } else {
                    let name = path.strip_prefix(&root).expect("below").to_string_lossy().into_owned();
                    files.insert(name, read(&path));
                }
            }
        }
        files
    }

    /// Both folders hold the same files, to the byte.
    #[track_caller]
    pub(crate) fn assert_same(&self, left: &str, right: &str) {
        let (a, b) = (self.files(left), self.files(right));
        assert_eq!(a.keys().collect::<Vec<_>>(), b.keys().collect::<Vec<_>>(), "files of {left} and {right}");
        for (name, bytes) in &a {
            assert!(*bytes == b[name], "`{name}` differs between {left} and {right}");
        }
    }

    /// `modegpt` with the words of `line`, to be run in the folder. It can reach no network and no cache of the user.
    pub(crate) fn command(&self, line: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_modegpt"));
        command.args(line.split_whitespace()).current_dir(self.0.path()).stdin(Stdio::null());
        for name in ["COLUMNS", "HF_HUB_CACHE", "HF_ENDPOINT", "HF_TOKEN", "CLICOLOR_FORCE"] {
            command.env_remove(name);
        }
        command.env("HF_HOME", self.path("hub")).env("HF_HUB_OFFLINE", "1").env("NO_COLOR", "1");
        command
    }

    /// Runs `modegpt` with the words of `line` to its end.
    pub(crate) fn run(&self, line: &str) -> Outcome {
        Outcome::of(line, &mut self.command(line))
    }
}

/// How a command ended.
pub(crate) struct Outcome {
    line: String,
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Outcome {
    /// Runs `command`, which stands for `line`, to its end.
    pub(crate) fn of(line: &str, command: &mut Command) -> Self {
        let output = command.output().expect("the command starts");
        let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
        Self {
            line: line.to_owned(),
            code: output.status.code(),
            stdout: text(output.stdout),
            stderr: text(output.stderr),
        }
    }

    /// It succeeded.
    #[track_caller]
    pub(crate) fn ok(self) -> Self {
        assert_eq!(self.code, Some(0), "modegpt {}\n{}{}", self.line, self.stdout, self.stderr);
        self
    }

    /// It succeeded, and stdout is one JSON object and nothing else.
    #[track_caller]
    pub(crate) fn json(self) -> Value {
        let outcome = self.ok();
        let value: Value = serde_json::from_str(&outcome.stdout)
            .unwrap_or_else(|e| panic!("modegpt {}: {e}\n{}", outcome.line, outcome.stdout));
        assert!(value.is_object(), "modegpt {}\n{}", outcome.line, outcome.stdout);
        value
    }

    /// It refused with exit code `code` and a message that has all the `expected` parts, and did not call it a fault.
    #[track_caller]
    pub(crate) fn refused(self, code: i32, expected: &[&str]) -> Self {
        let told = format!("modegpt {}\n{}{}", self.line, self.stdout, self.stderr);
        assert_eq!(self.code, Some(code), "{told}");
        assert!(!self.stderr.contains("fault of modegpt") && !self.stderr.contains("panicked"), "{told}");
        assert_eq!(self.stdout, "", "{told}");
        let message = self.stderr.split_once("error: ").map_or("", |(_, message)| message);
        for part in expected {
            assert!(message.contains(part), "{told}\n  should contain {part}");
        }
        self
    }
}

/// Real models and texts, `MODEGPT_DATA` or the folder beside the repository.
fn data() -> PathBuf {
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data");
    let folder = std::env::var_os("MODEGPT_DATA").map_or(beside, PathBuf::from);
    assert!(
        folder.join("models").is_dir(),
        "no test models in `{}`: set MODEGPT_DATA to the folder with `models` and `text`",
        folder.display()
    );
    folder
}

#[track_caller]
pub(crate) fn read(path: &Path) -> Vec<u8> {
    fs::read(path).unwrap_or_else(|e| panic!("cannot read `{}`: {e}", path.display()))
}
