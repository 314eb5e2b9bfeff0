//! How far a backfill is, in a file: one that was ended goes on there. It is replaced atomically, and only after what was read is durable.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::cli::Failure;
use crate::livechat::backfill::Found;
use crate::outcome::Backfilled;

/// What was read, and what became of it. Of what is handed to the relay twice, `delivered` has both.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    pub running_chats: u64,
    pub threads: u64,
    #[serde(flatten)]
    pub found: Found,
    /// Calls that LiveChat may bill.
    pub calls: u64,
    pub delivered: Backfilled,
}

/// Which backfill it is, and how far.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cursor {
    /// Where it is kept.
    #[serde(skip)]
    path: PathBuf,
    pub app: String,
    pub from: Timestamp,
    pub to: Timestamp,
    pub step: Step,
    pub counts: Counts,
    /// Those of the running chats: what the archive begins with, where it is read from its beginning.
    pub before_archive: Counts,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// From their beginning: what runs is another set each time.
    RunningChats,
    /// The page that comes next; without an id, the first.
    Archive {
        page_id: Option<String>,
    },
    Done,
}

impl Cursor {
    /// At the beginning. It is not written yet.
    pub fn new(path: PathBuf, app: &str, from: Timestamp, to: Timestamp) -> Self {
        let (counts, before_archive) = Default::default();
        Self { path, app: app.to_owned(), from, to, step: Step::RunningChats, counts, before_archive }
    }

    /// `None`: there is no file.
    pub fn read(path: &Path) -> Result<Option<Self>, Failure> {
        let bytes = match std::fs::read(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            read => read.map_err(|error| cannot(path, "read", &error))?,
        };
        let damaged =
            |_| Failure::Failed(format!("{} is no cursor of a backfill; remove it to begin again", path.display()));
        let cursor: Self = serde_json::from_slice(&bytes).map_err(damaged)?;
        Ok(Some(Self { path: path.to_owned(), ..cursor }))
    }

    pub fn write(&self) -> Result<(), Failure> {
        let path = &self.path;
        let mut new = path.as_os_str().to_owned();
        new.push(".new");
        let new = Path::new(&new);
        let write = || {
            let mut file = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(new)?;
            file.write_all(&serde_json::to_vec(self)?)?;
            file.sync_all()?;
            std::fs::rename(new, path)?;
            File::open(path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new(".")))?
                .sync_all()
        };
        write().map_err(|error: io::Error| cannot(path, "written", &error))
    }
}

fn cannot(path: &Path, what: &str, error: &io::Error) -> Failure {
    Failure::Failed(format!("{} cannot be {what}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read_and_what_is_damaged_is_no_beginning() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("backfill-default.json");
        assert_eq!(Cursor::read(&path).expect("no file"), None);
        let mut cursor = Cursor::new(path.clone(), "default", Timestamp::UNIX_EPOCH, Timestamp::now());
        cursor.counts.found.incoming_event = 7;
        for step in [Step::RunningChats, Step::Archive { page_id: Some("p".to_owned()) }, Step::Done] {
            cursor.step = step;
            cursor.write().expect("written");
            assert_eq!(Cursor::read(&path).expect("read").as_ref(), Some(&cursor));
        }
        assert_eq!(std::fs::read_dir(directory.path()).expect("it").count(), 1);
        std::fs::write(&path, "{").expect("written");
        assert!(Cursor::read(&path).is_err());
    }
}
