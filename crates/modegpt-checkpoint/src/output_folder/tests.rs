//! Every state in which a killed run can leave the disk. Dropping an [`OutputFolder`] between two steps leaves what a kill
//! there would: it removes nothing, and its lock ends.

use tempfile::TempDir;

use super::*;

struct Place(TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a temporary folder"))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn begin(&self, existing: Existing, asked: &str) -> Result<OutputFolder, OutputError> {
        OutputFolder::begin(&self.path("out"), existing, &journal(asked))
    }

    /// A run that has done its work and not yet shown it.
    fn worked(&self, existing: Existing, asked: &str) -> OutputFolder {
        let folder = self.begin(existing, asked).expect("begun");
        folder.write("a.bin", |out| Ok(out.write_all(asked.as_bytes())?)).expect("written");
        folder.write("sub/b.bin", |out| Ok(out.write_all(b"b")?)).expect("written");
        folder
    }

    fn done(&self, asked: &str) {
        self.worked(Existing::Refuse, asked).commit().expect("done");
    }

    /// The output has the work of a run that was asked for `asked`, and nothing else.
    #[track_caller]
    fn assert_out(&self, asked: &str) {
        assert_eq!(names(&self.path("out")), ["a.bin", "sub"]);
        assert_eq!(names(&self.path("out/sub")), ["b.bin"]);
        assert_eq!(fs::read_to_string(self.path("out/a.bin")).expect("a file"), asked);
    }

    /// There is the output and nothing beside it.
    #[track_caller]
    fn assert_only_out(&self, asked: &str) {
        self.assert_out(asked);
        assert_eq!(names(self.0.path()), ["out"]);
    }
}

fn journal(asked: &str) -> Journal {
    Journal::from([("asked".to_owned(), asked.to_owned())])
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).expect("a folder");
    let mut names: Vec<String> =
        entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[test]
fn what_is_done_is_all_there_is() {
    let place = Place::new();
    let folder = place.worked(Existing::Refuse, "x");
    assert!(folder.has("a.bin") && folder.has("sub/b.bin") && !folder.has("c.bin"));
    assert!(!place.path("out").exists());
    assert_eq!(folder.commit().expect("done"), place.path("out"));
    place.assert_only_out("x");
}

#[test]
fn a_run_killed_after_its_work_appeared_leaves_nothing_else_in_it() {
    for (next, asked) in [(Existing::Refuse, "x"), (Existing::Resume, "x"), (Existing::Replace, "y")] {
        let place = Place::new();
        let folder = place.worked(Existing::Refuse, "x");
        folder.publish().expect("there");
        drop(folder);
        place.assert_out("x");
        // Whoever comes next finds it as any other output.
        if next != Existing::Replace {
            assert!(matches!(place.begin(next, "x"), Err(OutputError::Exists(_))));
            fs::remove_dir_all(place.path("out")).expect("removed");
        }
        place.worked(next, asked).commit().expect("done");
        place.assert_only_out(asked);
    }
}

#[test]
fn a_run_killed_while_it_replaces_leaves_the_old_or_the_new() {
    let place = Place::new();
    place.done("old");
    drop(place.worked(Existing::Replace, "new"));
    place.assert_out("old");
    // After the old one made room, before the new one came.
    fs::rename(place.path("out"), place.path("out.partial/replaced")).expect("moved");
    assert!(matches!(place.begin(Existing::Refuse, "new"), Err(OutputError::Unfinished(_))));
    assert!(matches!(place.begin(Existing::Resume, "other"), Err(OutputError::Different { .. })));
    let folder = place.begin(Existing::Resume, "new").expect("resumed");
    assert!(folder.has("a.bin"));
    // After the new one came, before the old one went.
    folder.publish().expect("there");
    drop(folder);
    place.assert_out("new");
    assert_eq!(names(&place.path("out.partial")), ["journal.json", "lock", "replaced"]);
    place.worked(Existing::Replace, "newer").commit().expect("done");
    place.assert_only_out("newer");
}

#[test]
fn a_run_killed_before_any_work_is_in_nobodys_way() {
    for leave in [&["lock"][..], &["lock", "journal.json.tmp"], &["lock", "journal.json"], &[]] {
        let place = Place::new();
        fs::create_dir(place.path("out.partial")).expect("a folder");
        for file in leave {
            fs::write(place.path("out.partial").join(file), "{}").expect("a file");
        }
        place.done("x");
        place.assert_only_out("x");
    }
}

#[test]
fn a_folder_that_holds_anything_else_is_kept() {
    let place = Place::new();
    fs::create_dir(place.path("out.partial")).expect("a folder");
    fs::write(place.path("out.partial/thesis.txt"), "years").expect("a file");
    assert!(matches!(place.begin(Existing::Refuse, "x"), Err(OutputError::Unfinished(_))));
    assert_eq!(names(&place.path("out.partial")), ["thesis.txt"]);
}

#[test]
fn unfinished_work_is_resumed_by_the_same_request_only() {
    let place = Place::new();
    drop(place.worked(Existing::Refuse, "x"));
    assert!(matches!(place.begin(Existing::Refuse, "x"), Err(OutputError::Unfinished(_))));
    let error = place.begin(Existing::Resume, "y").expect_err("another request");
    assert!(error.to_string().contains("asked was x, now y"), "{error}");
    let folder = place.begin(Existing::Resume, "x").expect("resumed");
    assert!(folder.has("a.bin"));
    folder.commit().expect("done");
    place.assert_only_out("x");
}

#[test]
fn a_live_run_is_in_use_whatever_is_asked() {
    let place = Place::new();
    let folder = place.begin(Existing::Refuse, "x").expect("begun");
    for existing in [Existing::Resume, Existing::Replace] {
        assert!(matches!(place.begin(existing, "x"), Err(OutputError::InUse(_))));
    }
    // Also before it has any work to show.
    fs::remove_dir(folder.path()).expect("empty");
    assert!(matches!(place.begin(Existing::Refuse, "x"), Err(OutputError::InUse(_))));
}

#[test]
fn giving_up_keeps_work_and_nothing_else() {
    let place = Place::new();
    assert_eq!(place.begin(Existing::Refuse, "x").expect("begun").abandon(), None);
    assert_eq!(names(place.0.path()), [""; 0]);
    assert_eq!(place.worked(Existing::Refuse, "x").abandon(), Some(place.path("out.partial")));
    assert_eq!(names(&place.path("out.partial")), ["journal.json", "lock", "output"]);
}
