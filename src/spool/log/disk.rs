//! The file-system operations of the log, on a real directory, and their errors by remedy. The tests have another disk, which fails,
//! fills up and loses power.

use std::fs::{DirBuilder, File, TryLockError};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{AtFlags, Dir, FallocateFlags, Mode, OFlags};
use rustix::io::Errno;

/// The subdirectory for files that cannot be used.
pub const ASIDE: &str = "aside";

/// Who has the directory; locked while it is in use.
const LOCK: &str = "lock";

/// A failed operation. Its text has the reason, which is therefore not its source as well.
#[derive(Debug)]
pub struct DiskError {
    pub operation: &'static str,
    pub path: PathBuf,
    pub source: io::Error,
}

/// What helps against an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Room, in the file system or in a quota.
    Full,
    /// Another disk, or one that can be written again.
    Dead,
    /// Another owner or mode.
    Permission,
    /// A higher limit of open files.
    TooManyFiles,
    /// Nothing: the file or its directory was removed or replaced.
    Gone,
    /// A directory of its own: others own it, or may write to it.
    Foreign,
    /// The version of the relay that wrote it.
    Newer,
    /// The end of the process that has it.
    Locked,
}

/// A reason that the system has no number for.
#[derive(Debug, thiserror::Error)]
pub enum Cause {
    #[error("it was replaced by another one")]
    Replaced,
    #[error("a newer version of livechat-relay has written it, in format {0}")]
    Newer(u32),
    #[error("another process has it{0}")]
    Locked(String),
    #[error(
        "it belongs to user {0}, not to the user of this process: run this as that user, or start the relay and ask it"
    )]
    Foreign(u32),
    #[error("other users may write to it (its mode is {0:o}); remove that permission: chmod go-w")]
    Shared(u32),
}

impl DiskError {
    pub fn new(operation: &'static str, path: impl Into<PathBuf>, source: impl Into<io::Error>) -> Self {
        Self { operation, path: path.into(), source: source.into() }
    }

    pub fn kind(&self) -> Kind {
        match self.source.get_ref().and_then(|cause| cause.downcast_ref()) {
            Some(Cause::Replaced) => return Kind::Gone,
            Some(Cause::Newer(_)) => return Kind::Newer,
            Some(Cause::Locked(_)) => return Kind::Locked,
            Some(Cause::Foreign(_) | Cause::Shared(_)) => return Kind::Foreign,
            None => {}
        }
        match Errno::from_io_error(&self.source) {
            Some(Errno::NOSPC | Errno::DQUOT | Errno::FBIG) => Kind::Full,
            Some(Errno::ACCESS | Errno::PERM | Errno::LOOP) => Kind::Permission,
            Some(Errno::MFILE | Errno::NFILE) => Kind::TooManyFiles,
            Some(Errno::NOENT | Errno::NOTDIR) => Kind::Gone,
            _ => Kind::Dead,
        }
    }
}

impl From<Cause> for io::Error {
    fn from(cause: Cause) -> Self {
        Self::other(cause)
    }
}

impl std::fmt::Display for DiskError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "cannot {} {}: {}", self.operation, self.path.display(), self.source)
    }
}

impl std::error::Error for DiskError {}

pub type Result<T> = std::result::Result<T, DiskError>;

/// Which file a name leads to: device and inode.
pub type Identity = (u64, u64);

/// A directory of files. What is done to names is durable after `sync_dir`.
pub trait Disk: Send + Sync {
    /// Keeps other processes out until what it returns is dropped.
    fn lock(&self) -> Result<Option<File>>;
    /// The names in a subdirectory, or in the directory itself, where that is empty. None where it is missing.
    fn list(&self, subdirectory: &str) -> Result<Vec<String>>;
    /// A file that cannot be written is opened to be read.
    fn open(&self, name: &str) -> Result<Arc<dyn DiskFile>>;
    /// There must be no file of this name.
    fn create(&self, name: &str) -> Result<Arc<dyn DiskFile>>;
    /// Replaces a file `to`.
    fn rename(&self, from: &str, to: &str) -> Result<()>;
    /// Does nothing where there is no such file.
    fn unlink(&self, name: &str) -> Result<()>;
    fn sync_dir(&self) -> Result<()>;
    /// The file that another process finds under this name.
    fn stat(&self, name: &str) -> Result<Identity>;
    /// Whether another process finds another directory in its place, or none.
    fn is_replaced(&self) -> bool;
    /// For errors.
    fn path(&self, name: &str) -> PathBuf;
}

/// An open file; it stays readable when its name is gone.
pub trait DiskFile: Send + Sync {
    fn identity(&self) -> Result<Identity>;
    fn bytes(&self) -> Result<u64>;
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()>;
    fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<()>;
    /// Makes the file so long, of zeros, and takes the room for it.
    fn allocate(&self, bytes: u64) -> Result<()>;
    fn truncate(&self, bytes: u64) -> Result<()>;
    fn sync(&self) -> Result<()>;
}

/// A real directory.
pub struct Directory {
    path: PathBuf,
    file: File,
    /// How its files are opened.
    access: OFlags,
}

impl Directory {
    /// Opens the directory of a relay. Makes what is missing of its path, and the names of that durable.
    pub fn create(path: &Path) -> Result<Self> {
        let error = |error| DiskError::new("create", path, error);
        let path_to_it = std::path::absolute(path).map_err(error)?;
        let missing: Vec<_> = path_to_it.ancestors().take_while(|path| !path.exists()).collect();
        DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(error)?;
        for parent in missing.into_iter().filter_map(Path::parent) {
            File::open(parent).and_then(|parent| parent.sync_all()).map_err(error)?;
        }
        Ok(Self { access: OFlags::RDWR, ..Self::open(path)? })
    }

    /// Opens the directory of a relay that is stopped, to be read.
    pub fn open(path: &Path) -> Result<Self> {
        let opened = rustix::fs::open(path, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
        let file = opened.map_err(|errno| DiskError::new("open", path, errno))?.into();
        Ok(Self { path: path.to_owned(), file, access: OFlags::RDONLY })
    }

    /// Refuses a directory that others own or may write to: they could put files there that are not the relay's. Root may read any, and
    /// write to its own only: the relay could not use what root makes.
    pub fn check_owner(&self) -> Result<()> {
        let at = |error: io::Error| DiskError::new("trust", &self.path, error);
        let found = self.file.metadata().map_err(at)?;
        let user = rustix::process::geteuid();
        let is_read_by_root = user.is_root() && self.access == OFlags::RDONLY;
        if found.uid() != user.as_raw() && !is_read_by_root {
            return Err(at(Cause::Foreign(found.uid()).into()));
        }
        if found.mode() & 0o022 != 0 {
            return Err(at(Cause::Shared(found.mode() & 0o7777).into()));
        }
        Ok(())
    }

    /// Refuses a directory that a process has locked. It is not locked by that.
    pub fn check_unlocked(&self) -> Result<()> {
        let mut file = match self.open_file(LOCK, OFlags::RDONLY) {
            Err(Errno::NOENT) => return Ok(()),
            opened => opened.map_err(self.at("open", LOCK))?,
        };
        match file.try_lock_shared() {
            Ok(()) => Ok(()),
            Err(error) => Err(self.not_locked(&mut file, error)),
        }
    }

    fn not_locked(&self, file: &mut File, error: TryLockError) -> DiskError {
        let mut holder = String::new();
        let _ = file.read_to_string(&mut holder); // it only adds to the error
        let is_held = matches!(error, TryLockError::WouldBlock);
        self.at("lock", "")(if is_held { Cause::Locked(holder).into() } else { io::Error::from(error) })
    }

    fn at<E: Into<io::Error>>(&self, operation: &'static str, name: &str) -> impl Fn(E) -> DiskError {
        let path = self.path(name);
        move |error| DiskError::new(operation, &path, error)
    }

    /// Follows no link. A file that is made here can only be read by its owner.
    fn open_file(&self, name: &str, flags: OFlags) -> std::result::Result<File, Errno> {
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        rustix::fs::openat(&self.file, name, flags, Mode::RUSR | Mode::WUSR).map(File::from)
    }
}

impl Disk for Directory {
    fn lock(&self) -> Result<Option<File>> {
        let mut file = self.open_file(LOCK, OFlags::RDWR | OFlags::CREATE).map_err(self.at("open", LOCK))?;
        if let Err(error) = file.try_lock() {
            return Err(self.not_locked(&mut file, error));
        }
        let (system, now) = (rustix::system::uname(), jiff::Timestamp::now());
        let host = system.nodename().to_string_lossy();
        let holder = format!(": process {} on {host}, since {now:.0}", std::process::id());
        let _ = file.set_len(0).and_then(|()| file.write_all(holder.as_bytes())); // a full disk can be locked, too
        Ok(Some(file))
    }

    fn list(&self, subdirectory: &str) -> Result<Vec<String>> {
        let name = if subdirectory.is_empty() { "." } else { subdirectory };
        let opened =
            rustix::fs::openat(&self.file, name, OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty());
        let directory = match opened.and_then(Dir::new) {
            Err(Errno::NOENT) if !subdirectory.is_empty() => return Ok(Vec::new()),
            opened => opened.map_err(self.at("list", subdirectory))?,
        };
        let name = |entry: rustix::io::Result<rustix::fs::DirEntry>| {
            entry.map(|entry| entry.file_name().to_string_lossy().into_owned()).map_err(self.at("list", subdirectory))
        };
        directory.map(name).collect()
    }

    fn open(&self, name: &str) -> Result<Arc<dyn DiskFile>> {
        let opened = self.open_file(name, self.access).or_else(|_| self.open_file(name, OFlags::RDONLY));
        Ok(Arc::new(Opened { file: opened.map_err(self.at("open", name))?, path: self.path(name) }))
    }

    fn create(&self, name: &str) -> Result<Arc<dyn DiskFile>> {
        let created = self.open_file(name, OFlags::RDWR | OFlags::CREATE | OFlags::EXCL);
        Ok(Arc::new(Opened { file: created.map_err(self.at("create", name))?, path: self.path(name) }))
    }

    fn rename(&self, from: &str, to: &str) -> Result<()> {
        if let Some((subdirectory, _)) = to.split_once('/') {
            match rustix::fs::mkdirat(&self.file, subdirectory, Mode::RWXU) {
                Err(Errno::EXIST) => {}
                made => made.map_err(self.at("create", subdirectory))?,
            }
        }
        rustix::fs::renameat(&self.file, from, &self.file, to).map_err(self.at("rename", from))
    }

    fn unlink(&self, name: &str) -> Result<()> {
        match rustix::fs::unlinkat(&self.file, name, AtFlags::empty()) {
            Err(Errno::NOENT) => Ok(()),
            done => done.map_err(self.at("remove", name)),
        }
    }

    fn sync_dir(&self) -> Result<()> {
        self.file.sync_all().map_err(self.at("sync", ""))
    }

    fn stat(&self, name: &str) -> Result<Identity> {
        let found = self.path(name).symlink_metadata().map_err(self.at("find", name))?;
        Ok(identity(&found))
    }

    fn is_replaced(&self) -> bool {
        match (self.path.metadata(), self.file.metadata()) {
            (Ok(found), Ok(ours)) => identity(&found) != identity(&ours),
            (Err(error), _) => error.kind() == io::ErrorKind::NotFound,
            (Ok(_), Err(_)) => false,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }
}

fn identity(found: &std::fs::Metadata) -> Identity {
    (found.dev(), found.ino())
}

struct Opened {
    file: File,
    path: PathBuf,
}

impl Opened {
    fn at(&self, operation: &'static str) -> impl Fn(io::Error) -> DiskError {
        move |error| DiskError::new(operation, &self.path, error)
    }
}

impl DiskFile for Opened {
    fn identity(&self) -> Result<Identity> {
        self.file.metadata().map(|found| identity(&found)).map_err(self.at("find"))
    }

    fn bytes(&self) -> Result<u64> {
        self.file.metadata().map(|found| found.len()).map_err(self.at("find"))
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        self.file.read_exact_at(buffer, offset).map_err(self.at("read"))
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.file.write_all_at(bytes, offset).map_err(self.at("write"))
    }

    fn allocate(&self, bytes: u64) -> Result<()> {
        match rustix::io::retry_on_intr(|| rustix::fs::fallocate(&self.file, FallocateFlags::empty(), 0, bytes)) {
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => self.truncate(bytes), // such a file system may be full later
            done => done.map_err(io::Error::from).map_err(self.at("allocate room for")),
        }
    }

    fn truncate(&self, bytes: u64) -> Result<()> {
        self.file.set_len(bytes).map_err(self.at("truncate"))
    }

    fn sync(&self) -> Result<()> {
        self.file.sync_data().map_err(self.at("sync"))
    }
}
