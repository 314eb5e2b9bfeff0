//! The file of the spool: a `redb` database, and what is asked of it. One transaction is one fsync, whatever it holds.
//!
//! Knows nothing of events: a lane is a name, an entry is bytes. What may fail here is sorted by remedy in [`Error`].

use std::collections::{BTreeMap, HashMap};
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use redb::backends::FileBackend;
use redb::{
    Builder, Database, DatabaseError, ReadableDatabase as _, ReadableTable as _, StorageError, TableDefinition,
    TableError,
};

/// A lane's entries, in the order of their numbers: a table a lane, which takes half the disk that one for all would.
const fn entries(table: &str) -> TableDefinition<'_, u64, &'static [u8]> {
    TableDefinition::new(table)
}

fn table_of(lane: &str) -> String {
    format!("lane:{lane}")
}

/// How many entries a lane has, and their bytes: opening a spool must not cost a walk through it.
const LANES: TableDefinition<'_, &str, (u64, u64)> = TableDefinition::new("lanes");
/// Entries that wait for a person.
const PARKED: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("parked");
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");

/// The version of what the tables mean; entries have one of their own.
const FORMAT: u64 = 1;

/// The file's name in the spool's directory.
pub const FILE: &str = "spool.redb";

/// Memory for pages, read and to be written: what the spool may cost, whatever is in it.
const CACHE_BYTES: usize = 32 << 20;

/// Why the store does not do what it is asked, by what helps.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("it is locked by another process")]
    Locked,
    #[error("it has format {0}, and this version of livechat-relay reads up to {FORMAT}; run the newer version")]
    Newer(u64),
    #[error("it is broken: {0}")]
    Broken(String),
    #[error("{0}")]
    Io(String),
    #[error("{0} is gone: somebody has removed or replaced the spool under the running relay")]
    Vanished(PathBuf),
}

/// Entries and bytes, of a lane or of all that is parked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Size {
    pub records: u64,
    pub bytes: u64,
}

impl Size {
    pub const fn add(&mut self, bytes: usize) {
        self.records += 1;
        self.bytes += bytes as u64;
    }

    pub const fn remove(&mut self, bytes: usize) {
        self.records = self.records.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(bytes as u64);
    }
}

/// What one transaction does.
#[derive(Default)]
pub struct Batch {
    pub lanes: HashMap<Arc<str>, Change>,
    pub parked: Vec<(u64, Vec<u8>)>,
    pub unparked: Vec<u64>,
    /// The first number that was never given.
    pub next: u64,
}

/// What it does to one lane.
#[derive(Default)]
pub struct Change {
    pub appended: Vec<(u64, Vec<u8>)>,
    pub deleted: Vec<u64>,
    /// Tickets that are used up by it, whether their entries were taken or not. The store does not look at them.
    pub tickets: u64,
}

impl Batch {
    pub fn lane(&mut self, lane: &Arc<str>) -> &mut Change {
        self.lanes.entry(Arc::clone(lane)).or_default()
    }
}

/// What is in the store, by the end of a transaction.
#[derive(Clone, Debug, Default)]
pub struct Contents {
    pub lanes: BTreeMap<String, Size>,
    pub parked: Size,
    pub next: u64,
}

/// An open file. One process a file at a time.
pub struct Store {
    /// There until the end.
    db: Option<Database>,
    /// Where the file is, and which it is: device and inode.
    place: Option<(PathBuf, (u64, u64))>,
}

impl Store {
    /// Opens the spool in `directory`; makes what is missing.
    ///
    /// # Errors
    /// [`Error::Locked`]: another relay has it. [`Error::Broken`]: move it away. [`Error::Newer`]: run the newer relay.
    pub fn open(directory: &Path) -> Result<Self, Error> {
        let io = |error: std::io::Error| Error::Io(error.to_string());
        let path = directory.join(FILE);
        let is_new = !path.exists();
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
        let file = file.map_err(io)?;
        let identity = identity(&file.metadata().map_err(io)?);
        let db = guarded(|| Ok(builder().create_with_backend(FileBackend::new(file)?)?))?;
        let store = Self { db: Some(db), place: Some((path, identity)) };
        store.set_up()?;
        if is_new {
            File::open(directory).and_then(|directory| directory.sync_all()).map_err(io)?; // the file's name is durable, too
        }
        Ok(store)
    }

    /// As `open`, over a storage that a test can make fail.
    ///
    /// # Errors
    /// As `open`.
    #[cfg(test)]
    pub fn open_with(backend: impl redb::StorageBackend) -> Result<Self, Error> {
        let store = Self { db: Some(guarded(|| Ok(builder().create_with_backend(backend)?))?), place: None };
        store.set_up()?;
        Ok(store)
    }

    /// Makes the tables, and shows at once whether the storage takes a write.
    fn set_up(&self) -> Result<(), Error> {
        guarded(|| {
            let transaction = self.begin()?;
            {
                let mut meta = transaction.open_table(META)?;
                let format = meta.get("format")?.map(|format| format.value());
                if let Some(newer) = format.filter(|format| *format > FORMAT) {
                    return Err(Error::Newer(newer));
                }
                meta.insert("format", FORMAT)?;
                transaction.open_table(LANES)?;
                transaction.open_table(PARKED)?;
            }
            Ok(transaction.commit()?)
        })?;
        self.contents().map(drop)
    }

    const fn db(&self) -> &Database {
        self.db.as_ref().expect("only the end takes it")
    }

    fn begin(&self) -> Result<redb::WriteTransaction, Error> {
        let mut transaction = self.db().begin_write()?;
        transaction.set_quick_repair(true); // else the next start after a crash walks through the whole file
        Ok(transaction)
    }

    /// Does all of `batch` or nothing, and fsyncs. After an error the store takes no more: it is to be opened anew.
    ///
    /// # Errors
    /// [`Error::Io`] and whatever else; the batch may be durable all the same.
    pub fn commit(&self, batch: &Batch) -> Result<Contents, Error> {
        self.check_place()?;
        guarded(|| {
            let transaction = self.begin()?;
            let contents = {
                let mut lanes = transaction.open_table(LANES)?;
                let mut parked = transaction.open_table(PARKED)?;
                let mut meta = transaction.open_table(META)?;
                let mut contents = read_contents(&lanes, &meta)?;
                for (lane, change) in &batch.lanes {
                    if change.appended.is_empty() && change.deleted.is_empty() {
                        continue;
                    }
                    let mut table = transaction.open_table(entries(&table_of(lane)))?;
                    let size = contents.lanes.entry(lane.to_string()).or_default();
                    for (number, entry) in &change.appended {
                        if let Some(old) = table.insert(number, entry.as_slice())? {
                            size.remove(old.value().len());
                        }
                        size.add(entry.len());
                    }
                    for number in &change.deleted {
                        if let Some(old) = table.remove(number)? {
                            size.remove(old.value().len());
                        }
                    }
                    lanes.insert(&**lane, (size.records, size.bytes))?;
                }
                for (number, entry) in &batch.parked {
                    if parked.insert(*number, entry.as_slice())?.is_none() {
                        contents.parked.add(entry.len());
                    }
                }
                for number in &batch.unparked {
                    if let Some(old) = parked.remove(*number)? {
                        contents.parked.remove(old.value().len());
                    }
                }
                contents.next = contents.next.max(batch.next);
                meta.insert("next", contents.next)?;
                meta.insert("parked_records", contents.parked.records)?;
                meta.insert("parked_bytes", contents.parked.bytes)?;
                contents
            };
            transaction.commit()?;
            Ok(contents)
        })
    }

    /// What is in it.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn contents(&self) -> Result<Contents, Error> {
        guarded(|| {
            let transaction = self.db().begin_read()?;
            read_contents(&transaction.open_table(LANES)?, &transaction.open_table(META)?)
        })
    }

    /// Entries of a lane from number `from` on, in order: at most `records` of them, and no more than the first whose
    /// bytes pass `bytes`.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn page(&self, lane: &str, from: u64, records: usize, bytes: usize) -> Result<Page, Error> {
        guarded(|| match self.db().begin_read()?.open_table(entries(&table_of(lane))) {
            Ok(table) => page(&table, from, records, bytes),
            Err(TableError::TableDoesNotExist(_)) => Ok(Vec::new()),
            Err(error) => Err(error.into()),
        })
    }

    /// Parked entries from number `from` on, as [`Store::page`].
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn parked(&self, from: u64, records: usize, bytes: usize) -> Result<Page, Error> {
        guarded(|| page(&self.db().begin_read()?.open_table(PARKED)?, from, records, bytes))
    }

    /// Gives the file system back what is free in the file. Takes long where much is left in it.
    ///
    /// # Errors
    /// As [`Store::commit`].
    pub fn compact(&mut self) -> Result<(), Error> {
        let db = self.db.as_mut().expect("only the end takes it");
        guarded(|| db.compact().map(drop).map_err(|error| Error::Io(error.to_string())))
    }

    /// How long the file is.
    pub fn file_bytes(&self) -> u64 {
        self.place.as_ref().and_then(|(path, _)| std::fs::metadata(path).ok()).map_or(0, |file| file.len())
    }

    /// Whether the file still stands where it was opened: fsync succeeds on a file that nobody can find any more.
    ///
    /// # Errors
    /// [`Error::Vanished`].
    pub fn check_place(&self) -> Result<(), Error> {
        let Some((path, opened)) = &self.place else { return Ok(()) };
        let found = std::fs::metadata(path).map(|found| identity(&found));
        if found.is_ok_and(|found| found == *opened) { Ok(()) } else { Err(Error::Vanished(path.clone())) }
    }
}

/// Closing writes to the file, which can panic where the file is broken.
impl Drop for Store {
    fn drop(&mut self) {
        let db = self.db.take();
        if let Err(error) = guarded(|| {
            drop(db);
            Ok(())
        }) {
            tracing::error!(%error, "the spool's file was not closed as it should be");
        }
    }
}

fn builder() -> Builder {
    let mut builder = Builder::new();
    builder.set_cache_size(CACHE_BYTES);
    builder
}

fn identity(metadata: &std::fs::Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

/// Entries and their numbers.
type Page = Vec<(u64, Vec<u8>)>;

fn page(
    table: &impl redb::ReadableTable<u64, &'static [u8]>,
    from: u64,
    records: usize,
    bytes: usize,
) -> Result<Page, Error> {
    let (mut page, mut size) = (Vec::new(), 0);
    for entry in table.range(from..)? {
        let (number, value) = entry?;
        size += value.value().len();
        page.push((number.value(), value.value().to_vec()));
        if page.len() >= records || size >= bytes {
            break;
        }
    }
    Ok(page)
}

fn read_contents(
    lanes: &impl redb::ReadableTable<&'static str, (u64, u64)>,
    meta: &impl redb::ReadableTable<&'static str, u64>,
) -> Result<Contents, Error> {
    let number = |name| Ok::<_, Error>(meta.get(name)?.map_or(0, |number| number.value()));
    let mut contents = Contents {
        lanes: BTreeMap::new(),
        parked: Size { records: number("parked_records")?, bytes: number("parked_bytes")? },
        next: number("next")?.max(1),
    };
    for lane in lanes.iter()? {
        let (name, size) = lane?;
        let (records, bytes) = size.value();
        contents.lanes.insert(name.value().to_owned(), Size { records, bytes });
    }
    Ok(contents)
}

/// A file that a disk has changed can make the store panic; that is no reason for the relay to end.
fn guarded<T>(work: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let why = panic.downcast_ref::<String>().cloned().or(panic.downcast_ref::<&str>().map(ToString::to_string));
        Err(Error::Broken(why.unwrap_or_else(|| "the store panicked".to_owned())))
    })
}

impl From<StorageError> for Error {
    fn from(error: StorageError) -> Self {
        match error {
            StorageError::Corrupted(why) => Self::Broken(why),
            // What redb cannot make sense of at all, such as a file that is none of its own.
            StorageError::Io(error) if error.kind() == std::io::ErrorKind::InvalidData => {
                Self::Broken(error.to_string())
            }
            StorageError::Io(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
                Self::Broken(error.to_string())
            }
            error => Self::Io(error.to_string()),
        }
    }
}

impl From<DatabaseError> for Error {
    fn from(error: DatabaseError) -> Self {
        match error {
            DatabaseError::DatabaseAlreadyOpen | DatabaseError::LockProtocolMismatch => Self::Locked,
            DatabaseError::Storage(error) => error.into(),
            error => Self::Broken(error.to_string()),
        }
    }
}

impl From<TableError> for Error {
    fn from(error: TableError) -> Self {
        match error {
            TableError::Storage(error) => error.into(),
            error => Self::Broken(error.to_string()),
        }
    }
}

impl From<redb::TransactionError> for Error {
    fn from(error: redb::TransactionError) -> Self {
        match error {
            redb::TransactionError::Storage(error) => error.into(),
            error => Self::Io(error.to_string()),
        }
    }
}

impl From<redb::CommitError> for Error {
    fn from(error: redb::CommitError) -> Self {
        match error {
            redb::CommitError::Storage(error) => error.into(),
            error => Self::Io(error.to_string()),
        }
    }
}
