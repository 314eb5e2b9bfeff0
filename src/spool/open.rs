//! How the spool's file is opened: who has it is waited for, and what cannot be used is put aside, never deleted.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::store::{self, Store};
use super::{Config, Unusable};

/// A store, or why there is none yet.
pub(super) type Opened = Result<Store, store::Error>;

pub(super) fn open_unlocked(config: &Config) -> Result<Opened, Unusable> {
    let since = Instant::now();
    let mut has_said = false;
    loop {
        match open(&config.directory) {
            Err(store::Error::Locked) if since.elapsed() < config.lock_timeout => {
                if !has_said {
                    tracing::warn!(directory = %config.directory.display(), "the spool is locked by another process; waiting for its end");
                    has_said = true;
                }
                std::thread::sleep(Duration::from_millis(50));
            }
            Err(store::Error::Locked) => return Err(Unusable::Locked(config.directory.clone())),
            Err(error @ store::Error::Newer(_)) => {
                return Err(Unusable::Store { directory: config.directory.clone(), error });
            }
            opened => return Ok(opened),
        }
    }
}

/// Opens the store; a broken file is put aside, for whoever can make something of it, and a new one begun. Damage of some kinds
/// ends the process while the file is opened: when that has happened a few times in a row, the file counts as broken, too.
pub(super) fn open(directory: &Path) -> Opened {
    use std::os::unix::fs::DirBuilderExt as _;
    let io = |error: std::io::Error| store::Error::Io(format!("{}: {error}", directory.display()));
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(io)?;
    // One process at a time counts its attempts.
    let Some(attempts) = Attempts::begin(directory) else { return Err(store::Error::Locked) };
    let opened = if attempts.died >= Attempts::MAX {
        Err(store::Error::Broken(format!("{} attempts to open it have ended the process", attempts.died)))
    } else {
        Store::open(directory)
    };
    let opened = match opened {
        Err(store::Error::Broken(why)) => put_aside(directory, &why).and_then(|()| Store::open(directory)),
        opened => opened,
    };
    attempts.end();
    opened
}

/// Keeps a broken file under another name, unless another process has it.
pub(super) fn put_aside(directory: &Path, why: &str) -> Result<(), store::Error> {
    let io = |error: std::io::Error| store::Error::Io(format!("{}: {error}", directory.display()));
    let file = directory.join(store::FILE);
    if let Err(std::fs::TryLockError::WouldBlock) = std::fs::File::open(&file).map_err(io)?.try_lock() {
        return Err(store::Error::Locked);
    }
    let aside = directory.join(format!("{}.broken-{}", store::FILE, jiff::Timestamp::now().as_millisecond()));
    std::fs::rename(file, &aside).map_err(io)?;
    tracing::error!(
        why,
        kept = %aside.display(),
        "the spool's file is broken: it is kept aside, and a new one begun; events in it were answered 200 and are not published"
    );
    Ok(())
}

/// Attempts to open the file that have not come to an end, because the process did: a byte each, in a file beside it.
struct Attempts {
    /// Locked while the attempt lasts; a disk that takes no such file is no reason not to try.
    file: Arc<Mutex<Option<std::fs::File>>>,
    died: usize,
}

impl Attempts {
    const MAX: usize = 3;

    /// So long may an attempt take: one that goes on after that is slow, and no reason to doubt the file if it is ended.
    const SLOW: Duration = Duration::from_secs(5);

    /// `None` while another process tries.
    fn begin(directory: &Path) -> Option<Self> {
        use std::io::Write as _;
        let mut options = std::fs::OpenOptions::new();
        let Ok(mut file) = options.append(true).create(true).open(directory.join("opening")) else {
            return Some(Self { file: Arc::default(), died: 0 });
        };
        if let Err(std::fs::TryLockError::WouldBlock) = file.try_lock() {
            return None;
        }
        let died = file.metadata().map_or(0, |found| usize::try_from(found.len()).unwrap_or(0));
        let _ = file.write_all(b"."); // a full disk cannot count
        let attempts = Self { file: Arc::new(Mutex::new(Some(file))), died };
        let slow = Arc::downgrade(&attempts.file);
        std::thread::spawn(move || {
            std::thread::sleep(Self::SLOW);
            if let Some(file) = slow.upgrade() {
                Self::forget(&file);
            }
        });
        Some(attempts)
    }

    fn end(self) {
        Self::forget(&self.file);
    }

    /// Takes the attempts back, and gives the lock free.
    fn forget(file: &Mutex<Option<std::fs::File>>) {
        if let Some(file) = file.lock().unwrap_or_else(PoisonError::into_inner).take() {
            let _ = file.set_len(0); // as above
        }
    }
}
