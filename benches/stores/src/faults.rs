//! Write and sync failures: redb through a storage backend of our own, fjall
//! through a file size limit set by the parent shell.

use std::fs::OpenOptions;
use std::io;
use std::ops::Bound;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering::SeqCst};

use redb::backends::FileBackend;
use redb::{BackendError, Builder, ReadableDatabase, ReadableTableMetadata, StorageBackend, TableDefinition};

use crate::store::{Result, Store, open, value};

const TABLE: TableDefinition<(&str, u64), &[u8]> = TableDefinition::new("spool");

/// Which operation fails: 0 none, 1 write, 2 sync, 3 set_len.
#[derive(Debug)]
struct Faulty {
    inner: FileBackend,
    fail: Arc<AtomicU8>,
}

impl Faulty {
    fn gate(&self, kind: u8) -> io::Result<()> {
        let code = if kind == 2 { 5 } else { 28 };
        if self.fail.load(SeqCst) == kind { Err(io::Error::from_raw_os_error(code)) } else { Ok(()) }
    }
}

type Locked = std::result::Result<bool, BackendError>;

impl StorageBackend for Faulty {
    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.inner.read(offset, out)
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.gate(3)?;
        self.inner.set_len(len)
    }
    fn sync_data(&self) -> io::Result<()> {
        self.gate(2)?;
        self.inner.sync_data()
    }
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.gate(1)?;
        self.inner.write(offset, data)
    }
    fn close(&self) -> io::Result<()> {
        self.inner.close()
    }
    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Locked {
        self.inner.try_lock_range(start, end)
    }
    fn try_lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Locked {
        self.inner.try_lock_shared_range(start, end)
    }
    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> std::result::Result<(), BackendError> {
        self.inner.lock_range(start, end)
    }
    fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> std::result::Result<(), BackendError> {
        self.inner.lock_shared_range(start, end)
    }
    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> std::result::Result<(), BackendError> {
        self.inner.unlock_range(start, end)
    }
    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Locked {
        self.inner.query_lock_range(start, end)
    }
}

fn put(db: &redb::Database, seq: u64, quick: bool) -> std::result::Result<(), redb::Error> {
    let mut tx = db.begin_write()?;
    tx.set_quick_repair(quick);
    for i in 0..64 {
        tx.open_table(TABLE)?.insert(("a", seq * 64 + i), value(0, seq * 64 + i, 10_000).as_slice())?;
    }
    Ok(tx.commit()?)
}

fn count(db: &redb::Database) -> std::result::Result<u64, redb::Error> {
    Ok(db.begin_read()?.open_table(TABLE)?.len()?)
}

/// Fails one kind of operation of redb, heals it, and reopens in the process.
pub fn redb(dir: &Path, quick: bool) -> Result<()> {
    std::fs::create_dir_all(dir)?;
    for (kind, name) in [(1, "write ENOSPC"), (2, "sync EIO"), (3, "set_len ENOSPC")] {
        let path = dir.join(format!("fault{kind}.redb"));
        let fail = Arc::new(AtomicU8::new(0));
        let build = || -> Result<redb::Database> {
            let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path)?;
            let backend = Faulty { inner: FileBackend::new(file)?, fail: fail.clone() };
            Ok(Builder::new().set_cache_size(4 << 20).create_with_backend(backend)?)
        };
        let db = build()?;
        put(&db, 0, quick)?;
        fail.store(kind, SeqCst);
        let failed = (1..40).find_map(|seq| put(&db, seq, quick).err().map(|e| (seq, e)));
        let read_while = count(&db);
        fail.store(0, SeqCst);
        let (healed, read) = (put(&db, 50, quick), count(&db));
        let closed = db.close();
        let start = std::time::Instant::now();
        let again = build()?;
        let opened = start.elapsed();
        println!(
            "redb quick={quick} {name}: append failed at batch {failed:?}; read during {read_while:?}; healed, same handle: write {healed:?} read {read:?} close {closed:?}; reopened in process in {opened:?}: records {:?} write {:?}",
            count(&again),
            put(&again, 60, quick),
        );
    }
    Ok(())
}

/// Sets the file size limit of this process; a write beyond it answers EFBIG.
fn file_limit(limit: &str) -> Result<()> {
    let pid = std::process::id().to_string();
    let status = Command::new("prlimit").args(["--pid", &pid, &format!("--fsize={limit}:")]).status()?;
    if status.success() { Ok(()) } else { Err("prlimit failed".into()) }
}

/// Appends, lets every write fail, heals, and reopens. The parent ignores SIGXFSZ for us.
pub fn limited(setting: &str, dir: &Path) -> Result<()> {
    let store = open(setting, dir)?;
    let put = |store: &Store, seq: u64| store.append(&[(0, seq, value(0, seq, 100_000))]);
    let count = |store: &Store| store.read(0, 0, 1_000_000).map(|rows| rows.len());
    for seq in 0..50 {
        put(&store, seq)?;
    }
    file_limit("1000")?;
    let failed = (put(&store, 50), put(&store, 51), count(&store));
    file_limit("unlimited")?;
    println!("{setting}: 50 appends, then {failed:?}; healed, same handle: {:?} {:?}", put(&store, 52), count(&store));
    drop(store);
    let again = open(setting, dir)?;
    println!("  reopened in process: records {:?}, append {:?}", count(&again), put(&again, 53));
    Ok(())
}
