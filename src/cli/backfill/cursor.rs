//! How far a backfill is, in a file: one that was ended goes on there. It is replaced atomically, and only after what was read is durable.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::ops::Range;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use jiff::fmt::friendly::{Spacing, SpanPrinter};
use serde::{Deserialize, Serialize};

use crate::cli::Failure;
use crate::event::Tenant;
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

/// Which backfill it is, and how far. With another `since` or `tenant`, what was read before would lack threads, or be another's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cursor {
    /// Where it is kept.
    #[serde(skip)]
    path: PathBuf,
    pub app: String,
    pub from: Timestamp,
    pub to: Timestamp,
    /// The beginning of the oldest thread that is read.
    pub since: Timestamp,
    /// Whose events they are.
    pub tenant: Tenant<'static>,
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
    pub fn new(path: PathBuf, app: &str, times: Range<Timestamp>, since: Timestamp, tenant: Tenant<'static>) -> Self {
        let (Range { start: from, end: to }, (counts, before_archive)) = (times, Default::default());
        Self { path, app: app.to_owned(), from, to, since, tenant, step: Step::RunningChats, counts, before_archive }
    }

    /// The options of the command that goes on with it.
    pub fn options(&self) -> String {
        let Self { app, from, to, since, .. } = self;
        let tenant = match &self.tenant {
            Tenant::Organization(id) => format!(" --organization {id}"),
            Tenant::License(id) => format!(" --license {id}"),
            Tenant::Unnamed => String::new(),
        };
        // One word for a shell.
        let age = SpanPrinter::new().spacing(Spacing::None).duration_to_string(&from.duration_since(*since));
        format!("--app {app} --from {from} --to {to} --max-thread-age {age}{tenant}")
    }

    /// `None`: there is no file.
    pub fn read(path: &Path) -> Result<Option<Self>, Failure> {
        let bytes = match std::fs::read(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            read => read.map_err(|error| cannot(path, "read", &error))?,
        };
        let damaged = |_| {
            Failure::Failed(format!("{} is not the cursor of a backfill; remove it to start again", path.display()))
        };
        let cursor: Self = serde_json::from_slice(&bytes).map_err(damaged)?;
        Ok(Some(Self { path: path.to_owned(), ..cursor }))
    }

    pub fn write(&self) -> Result<(), Failure> {
        let path = &self.path;
        let write = || {
            std::fs::rename(self.written_beside("new")?, path)?;
            File::open(path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new(".")))?
                .sync_all()
        };
        write().map_err(|error: io::Error| cannot(path, "written", &error))
    }

    /// Whether it can be written. It leaves no file.
    pub fn try_to_write(&self) -> Result<(), Failure> {
        // Not the name that a backfill uses which runs now.
        let tried = self.written_beside("dry-run").and_then(std::fs::remove_file);
        tried.map_err(|error| cannot(&self.path, "written", &error))
    }

    fn written_beside(&self, extension: &str) -> io::Result<PathBuf> {
        let mut new = self.path.clone().into_os_string();
        new.push(format!(".{extension}"));
        let mut file = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&new)?;
        file.write_all(&serde_json::to_vec(self)?)?;
        file.sync_all()?;
        Ok(new.into())
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
        let (epoch, tenant) = (Timestamp::UNIX_EPOCH, Tenant::Organization("o-1".into()));
        let mut cursor = Cursor::new(path.clone(), "default", epoch..Timestamp::now(), epoch, tenant);
        cursor.try_to_write().expect("it can be written");
        assert_eq!(std::fs::read_dir(directory.path()).expect("it").count(), 0);
        cursor.counts.found.incoming_event = 7;
        for step in [Step::RunningChats, Step::Archive { page_id: Some("p".to_owned()) }, Step::Done] {
            cursor.step = step;
            cursor.write().expect("written");
            assert_eq!(Cursor::read(&path).expect("read").as_ref(), Some(&cursor));
        }
        assert_eq!(std::fs::read_dir(directory.path()).expect("it").count(), 1);
        std::fs::write(&path, "{").expect("written");
        assert!(Cursor::read(&path).is_err());
        let nowhere = Cursor { path: directory.path().join("no/cursor.json"), ..cursor };
        let failure = nowhere.try_to_write().expect_err("there is no such directory").to_string();
        assert!(failure.contains("no/cursor.json cannot be written"), "{failure}");
    }

    #[test]
    fn its_options_are_those_of_the_command_that_goes_on() {
        let at = |text: &str| text.parse::<Timestamp>().expect("a time");
        let (from, to) = (at("2026-11-22T10:00:00Z"), at("2026-11-22T11:00:00Z"));
        for (since, tenant, expected) in [
            (at("2026-11-21T10:00:00Z"), Tenant::Organization("o-1".into()), "24h --organization o-1"),
            (at("2026-11-22T08:30:00Z"), Tenant::License("7".into()), "1h30m --license 7"),
        ] {
            let cursor = Cursor::new(PathBuf::new(), "a", from..to, since, tenant);
            let expected = format!("--app a --from {from} --to {to} --max-thread-age {expected}");
            assert_eq!(cursor.options(), expected);
        }
    }
}
