//! Where the spool's files are: a directory of them, in which what cannot be used is put aside, never deleted.
//!
//! Damage of some kinds ends the process while a file is opened: when that has happened a few times in a row, the file counts
//! as broken, too.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use redb::backends::FileBackend;
use redb::{Builder, Database, DatabaseError, ReadOnlyDatabase};

use super::db::Error;

/// The files of one spool; the unit tests have a disk of their own.
pub trait Files: Send + Sync {
    /// # Errors
    /// All that the storage says; so it is with those that follow.
    fn names(&self) -> Result<Vec<String>, Error>;
    /// Opens a file; makes one that is missing.
    ///
    /// # Errors
    /// See `names`.
    fn open(&self, name: &str) -> Result<Box<dyn Handle>, Error>;
    /// Takes the room for a file that it says it has, where the file system can: deletes are written on a full disk, too.
    ///
    /// # Errors
    /// See `names`.
    fn allocate(&self, name: &str) -> Result<(), Error>;
    /// Writes all that can be read of a file to another one.
    ///
    /// # Errors
    /// See `names`.
    fn copy(&self, from: &str, to: &str) -> Result<(), Error>;
    /// Gives a file another name, for good.
    ///
    /// # Errors
    /// See `names`.
    fn rename(&self, from: &str, to: &str) -> Result<(), Error>;
    /// Removes a file, for good; one that is not there, too.
    ///
    /// # Errors
    /// See `names`.
    fn remove(&self, name: &str) -> Result<(), Error>;
    /// Makes the names that are found durable: those who gave them may have failed to.
    ///
    /// # Errors
    /// See `names`.
    fn sync(&self) -> Result<(), Error>;
    /// A file is about to be opened for the first time.
    ///
    /// # Errors
    /// [`Error::Broken`]: that has ended the process too often.
    fn attempt(&self, name: &str) -> Result<(), Error>;
    /// It was opened, or has failed in an orderly way.
    fn survived(&self);
    /// All are open.
    fn all_are_open(&self);
    /// Keeps a broken file under another name.
    ///
    /// # Errors
    /// [`Error::Broken`]: it is to be left as it is. [`Error::Locked`]: another process has it.
    fn put_aside(&self, name: &str, why: &str) -> Result<(), Error>;
}

/// A file that stays readable though its name is gone.
pub trait Handle: Send + Sync {
    /// # Errors
    /// What `redb` says; it makes a database of an empty file.
    fn database(&self, builder: &Builder) -> Result<Database, DatabaseError>;
    /// # Errors
    /// What `redb` says; [`DatabaseError::RepairAborted`]: it was not closed as it should be.
    fn read_only(&self, builder: &Builder) -> Result<ReadOnlyDatabase, DatabaseError>;
    fn bytes(&self) -> u64;
    /// Whether it still has its name: fsync succeeds on a file that nobody can find any more.
    ///
    /// # Errors
    /// [`Error::Vanished`].
    fn check_place(&self) -> Result<(), Error>;
}

/// A directory.
pub struct Directory {
    path: PathBuf,
    /// `None`: whoever opens it only looks.
    attempts: Option<Attempts>,
}

impl Directory {
    /// Makes what is missing.
    ///
    /// # Errors
    /// [`Error::Locked`]: another process opens it at the moment. [`Error::Io`]: it cannot be made.
    pub fn own(path: &Path) -> Result<Self, Error> {
        let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
        made.map_err(|error| Error::Io(format!("{}: {error}", path.display())))?;
        let attempts = Attempts::begin(path).ok_or(Error::Locked)?;
        Ok(Self { path: path.to_owned(), attempts: Some(attempts) })
    }

    /// For those who only look: a broken file is left as it is.
    pub fn look(path: &Path) -> Self {
        Self { path: path.to_owned(), attempts: None }
    }

    fn io(&self, name: &str) -> impl Fn(std::io::Error) -> Error {
        let path = self.path.join(name);
        move |error| Error::Io(format!("{}: {error}", path.display()))
    }
}

impl Files for Directory {
    fn names(&self) -> Result<Vec<String>, Error> {
        let files = std::fs::read_dir(&self.path).map_err(self.io(""))?;
        let name = |file: std::io::Result<std::fs::DirEntry>| match file.map(|file| file.file_name().into_string()) {
            Ok(Ok(name)) => Some(Ok(name)),
            Ok(Err(_)) => None, // not one of ours
            Err(error) => Some(Err(self.io("")(error))),
        };
        files.filter_map(name).collect()
    }

    fn open(&self, name: &str) -> Result<Box<dyn Handle>, Error> {
        let path = self.path.join(name);
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
        let file = file.map_err(self.io(name))?;
        let identity = identity(&file.metadata().map_err(self.io(name))?);
        Ok(Box::new(Opened { file, path, identity }))
    }

    fn allocate(&self, name: &str) -> Result<(), Error> {
        use rustix::fs::{FallocateFlags, fallocate};
        let file = OpenOptions::new().write(true).open(self.path.join(name)).map_err(self.io(name))?;
        let length = file.metadata().map_err(self.io(name))?.len();
        match fallocate(&file, FallocateFlags::empty(), 0, length) {
            Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => Ok(()),
            done => done.map_err(std::io::Error::from).and_then(|()| file.sync_all()).map_err(self.io(name)),
        }
    }

    /// Byte by byte: where files share what is on the disk, a copy of the system's making is not of what it shows.
    fn copy(&self, from: &str, to: &str) -> Result<(), Error> {
        let mut source = File::open(self.path.join(from)).map_err(self.io(from))?;
        let made = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(self.path.join(to));
        let mut target = made.map_err(self.io(to))?;
        let mut buffer = vec![0; 1 << 20];
        loop {
            match source.read(&mut buffer).map_err(self.io(from))? {
                0 => break,
                length => target.write_all(&buffer[..length]).map_err(self.io(to))?,
            }
        }
        target.sync_all().map_err(self.io(to))
    }

    fn rename(&self, from: &str, to: &str) -> Result<(), Error> {
        std::fs::rename(self.path.join(from), self.path.join(to)).map_err(self.io(from))?;
        self.sync()
    }

    fn remove(&self, name: &str) -> Result<(), Error> {
        match std::fs::remove_file(self.path.join(name)) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(self.io(name)(error)),
            _ => self.sync(),
        }
    }

    fn sync(&self) -> Result<(), Error> {
        File::open(&self.path).and_then(|directory| directory.sync_all()).map_err(self.io(""))
    }

    fn attempt(&self, name: &str) -> Result<(), Error> {
        let died = self.attempts.as_ref().map_or(0, |attempts| attempts.count(name));
        if died < Attempts::MAX {
            return Ok(());
        }
        Err(Error::Broken { file: name.to_owned(), why: format!("{died} attempts to open it have ended the process") })
    }

    fn survived(&self) {
        if let Some(attempts) = &self.attempts {
            attempts.state().take_back();
        }
    }

    fn all_are_open(&self) {
        if let Some(attempts) = &self.attempts {
            attempts.state().end();
        }
    }

    fn put_aside(&self, name: &str, why: &str) -> Result<(), Error> {
        if self.attempts.is_none() {
            return Err(Error::Broken { file: name.to_owned(), why: why.to_owned() });
        }
        let file = self.path.join(name);
        if let Err(std::fs::TryLockError::WouldBlock) = File::open(&file).map_err(self.io(name))?.try_lock() {
            return Err(Error::Locked);
        }
        let aside = format!("{name}.broken-{}", jiff::Timestamp::now().as_millisecond());
        self.rename(name, &aside)?;
        tracing::error!(
            why,
            kept = %self.path.join(aside).display(),
            "the spool's file is broken: it is kept aside; events in it were answered 200 and are not published"
        );
        Ok(())
    }
}

/// A file of a directory: where it is, and which it is, by device and inode.
struct Opened {
    file: File,
    path: PathBuf,
    identity: (u64, u64),
}

impl Opened {
    fn backend(&self) -> Result<FileBackend, DatabaseError> {
        let again = self.file.try_clone().map_err(|error| DatabaseError::Storage(redb::StorageError::Io(error)))?;
        FileBackend::new(again)
    }
}

impl Handle for Opened {
    fn database(&self, builder: &Builder) -> Result<Database, DatabaseError> {
        builder.create_with_backend(self.backend()?)
    }

    fn read_only(&self, builder: &Builder) -> Result<ReadOnlyDatabase, DatabaseError> {
        builder.open_read_only_with_backend(self.backend()?)
    }

    fn bytes(&self) -> u64 {
        self.file.metadata().map_or(0, |file| file.len())
    }

    fn check_place(&self) -> Result<(), Error> {
        let found = std::fs::metadata(&self.path).map(|found| identity(&found));
        if found.is_ok_and(|found| found == self.identity) { Ok(()) } else { Err(Error::Vanished(self.path.clone())) }
    }
}

fn identity(metadata: &std::fs::Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

/// Attempts to open a file that have not come to an end, because the process did: a line with its name each, in a file beside
/// them, which is locked while the spool is opened. A disk that takes no such file is no reason not to try.
struct Attempts(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    file: Option<File>,
    /// What was in the file: the names of files that were being opened when a process ended.
    died: String,
    /// The length of the file without the attempt under way.
    before: u64,
    /// Attempts so far.
    number: u64,
}

impl Attempts {
    const MAX: usize = 3;

    /// So long may an attempt take: one that goes on after that is slow, and no reason to doubt the file if it is ended.
    const SLOW: Duration = Duration::from_secs(5);

    /// `None` while another process opens the spool.
    fn begin(directory: &Path) -> Option<Self> {
        let mut options = OpenOptions::new();
        let Ok(mut file) = options.read(true).append(true).create(true).open(directory.join("opening")) else {
            return Some(Self(Arc::default()));
        };
        if let Err(std::fs::TryLockError::WouldBlock) = file.try_lock() {
            return None;
        }
        let mut died = Vec::new();
        let _ = file.read_to_end(&mut died); // what cannot be read counts as none
        let (before, died) = (died.len() as u64, String::from_utf8_lossy(&died).into_owned());
        let state = Arc::new(Mutex::new(State { file: Some(file), died, before, number: 0 }));
        let watched = Arc::downgrade(&state);
        std::thread::spawn(move || {
            let mut last = None;
            while let Some(state) = watched.upgrade() {
                let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
                if last == Some(state.number) {
                    state.end();
                    return;
                }
                last = Some(state.number);
                drop(state);
                std::thread::sleep(Self::SLOW);
            }
        });
        Some(Self(state))
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts an attempt; how many before it have ended the process.
    fn count(&self, name: &str) -> usize {
        let mut state = self.state();
        state.number += 1;
        if let Some(file) = &mut state.file {
            let _ = file.write_all(format!("{name}\n").as_bytes()); // a full disk cannot count
        }
        state.died.lines().filter(|died| *died == name).count()
    }
}

impl State {
    fn take_back(&mut self) {
        self.number += 1;
        if let Some(file) = &self.file {
            let _ = file.set_len(self.before); // as above
        }
    }

    /// Forgets all attempts, and gives the lock free.
    fn end(&mut self) {
        if let Some(file) = self.file.take() {
            let _ = file.set_len(0); // as above
        }
    }
}

/// What is not open now has failed in an orderly way.
impl Drop for Attempts {
    fn drop(&mut self) {
        self.state().end();
    }
}
