//! One file of the spool: a `redb` database, and what is asked of it. One transaction is one fsync, whatever it holds.
//!
//! Knows nothing of events: a lane is a name, an entry is bytes. What may fail here is sorted by remedy in [`Error`].

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{PoisonError, RwLock};

use redb::{
    Builder, Database, DatabaseError, ReadOnlyDatabase, ReadTransaction, ReadableDatabase as _, ReadableTable as _,
    StorageError, TableDefinition, TableError, WriteTransaction,
};

use super::files::Handle;

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
pub const PARKED: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("parked");
pub const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
/// What is deleted of each sealed segment, by the segment's first number.
pub const GONE: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("gone");

/// The version of what the tables mean; entries have one of their own. In version 1 there was one file, with lanes in it.
const FORMAT: u64 = 2;

/// Why the store does not do what it is asked, by what helps.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("it is locked by another process")]
    Locked,
    #[error("it has format {0}, and this version of livechat-relay reads up to {FORMAT}; run the newer version")]
    Newer(u64),
    #[error("{file} is broken: {why}")]
    Broken { file: String, why: String },
    #[error("{0}")]
    Io(String),
    #[error("{0} is gone: somebody has removed or replaced the spool under the running relay")]
    Vanished(PathBuf),
}

/// Entries and bytes, of a lane or of all that is parked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
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

    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self { records: self.records + other.records, bytes: self.bytes + other.bytes }
    }

    #[must_use]
    pub const fn minus(self, other: Self) -> Self {
        Self { records: self.records.saturating_sub(other.records), bytes: self.bytes.saturating_sub(other.bytes) }
    }
}

/// The sizes of lanes, by their names.
pub type Sizes = BTreeMap<String, Size>;

/// What is in a file, or in all of them.
#[derive(Clone, Debug, Default)]
pub struct Contents {
    pub lanes: Sizes,
    pub parked: Size,
    /// The first number that was never given.
    pub next: u64,
}

/// Entries and their numbers, in order; and how many more may be read.
pub struct Page {
    pub entries: Vec<(u64, Vec<u8>)>,
    records: usize,
    bytes: usize,
}

impl Page {
    /// Takes at most `records` of them, and no more than the first whose bytes pass `bytes`.
    pub const fn new(records: usize, bytes: usize) -> Self {
        Self { entries: Vec::new(), records, bytes }
    }

    pub const fn is_full(&self) -> bool {
        self.records == 0 || self.bytes == 0
    }

    /// Reads on in a table, from number `from` on, without those that are not `wanted`.
    fn read(
        &mut self,
        table: &impl redb::ReadableTable<u64, &'static [u8]>,
        from: u64,
        wanted: impl Fn(u64) -> bool,
    ) -> Result<(), Error> {
        if self.is_full() {
            return Ok(());
        }
        for entry in table.range(from..)? {
            let (number, value) = entry?;
            if !wanted(number.value()) {
                continue;
            }
            let value = value.value();
            (self.records, self.bytes) = (self.records - 1, self.bytes.saturating_sub(value.len()));
            self.entries.push((number.value(), value.to_vec()));
            if self.is_full() {
                break;
            }
        }
        Ok(())
    }
}

/// An open file. One process a file at a time.
pub struct Db {
    name: String,
    handle: Box<dyn Handle>,
    cache_bytes: usize,
    /// Each commit leaves what a start after a crash needs, which costs the more the larger the file is; else that start
    /// walks through all of it.
    is_quick: bool,
    /// Held for writing by whoever closes it.
    state: RwLock<State>,
}

enum State {
    Writable(Database),
    ReadOnly(ReadOnlyDatabase),
    /// Opened again, to be read, by whoever reads.
    Closed,
}

/// Memory for the pages of a file that is only read.
const READER_CACHE_BYTES: usize = 1 << 20;

impl Db {
    /// Opens a file to be written; makes its tables, and shows at once whether the storage takes a write.
    ///
    /// # Errors
    /// [`Error::Locked`]: another relay has it. [`Error::Broken`]: move it away. [`Error::Newer`]: run the newer relay.
    pub fn open(name: &str, handle: Box<dyn Handle>, cache_bytes: usize, is_quick: bool) -> Result<Self, Error> {
        let db = Self { name: name.to_owned(), handle, cache_bytes, is_quick, state: RwLock::new(State::Closed) };
        db.open_writable()?;
        db.write(|transaction| {
            let mut meta = transaction.open_table(META)?;
            check_format(&meta)?;
            meta.insert("format", FORMAT)?;
            transaction.open_table(LANES)?;
            transaction.open_table(PARKED)?;
            transaction.open_table(GONE)?;
            Ok(())
        })?;
        db.contents()?;
        Ok(db)
    }

    /// Opens a file that is only read from now on; `None`: it was not closed as it should be.
    ///
    /// # Errors
    /// As [`Db::open`].
    pub fn open_to_read(name: &str, handle: Box<dyn Handle>) -> Result<Option<Self>, Error> {
        let state = RwLock::new(State::Closed);
        let db = Self { name: name.to_owned(), handle, cache_bytes: READER_CACHE_BYTES, is_quick: false, state };
        let mut builder = Builder::new();
        let opened = db.guarded(|| match db.handle.read_only(builder.set_cache_size(READER_CACHE_BYTES)) {
            Err(DatabaseError::RepairAborted) => Ok(None),
            opened => Ok(Some(opened?)),
        });
        let Some(opened) = opened? else { return Ok(None) };
        *db.state.write().unwrap_or_else(PoisonError::into_inner) = State::ReadOnly(opened);
        db.read(|transaction| check_format(&transaction.open_table(META)?))?;
        Ok(Some(db))
    }

    fn open_writable(&self) -> Result<(), Error> {
        let mut builder = Builder::new();
        let opened = self.guarded(|| Ok(self.handle.database(builder.set_cache_size(self.cache_bytes))?));
        *self.state.write().unwrap_or_else(PoisonError::into_inner) = State::Writable(opened?);
        Ok(())
    }

    /// Closes it as it should be, after those who read it at the moment; whoever reads it later opens it to be read.
    ///
    /// # Errors
    /// When that cannot be written.
    pub fn close(&self) -> Result<(), Error> {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        let closed = std::mem::replace(&mut *state, State::Closed);
        self.guarded(|| match closed {
            State::Writable(database) => Ok(database.close()?),
            State::ReadOnly(database) => Ok(database.close()?),
            State::Closed => Ok(()),
        })
    }

    /// Reads as of this moment.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn read<T>(&self, work: impl FnOnce(&ReadTransaction) -> Result<T, Error>) -> Result<T, Error> {
        let mut state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        while matches!(*state, State::Closed) {
            drop(state);
            self.reopen()?;
            state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        }
        self.guarded(|| match &*state {
            State::Writable(database) => work(&database.begin_read()?),
            State::ReadOnly(database) => work(&database.begin_read()?),
            State::Closed => Err(Error::Io(format!("{} is closed", self.name))),
        })
    }

    fn reopen(&self) -> Result<(), Error> {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        if matches!(*state, State::Closed) {
            let mut builder = Builder::new();
            let opened = self.guarded(|| Ok(self.handle.read_only(builder.set_cache_size(READER_CACHE_BYTES))?));
            *state = State::ReadOnly(opened?);
        }
        Ok(())
    }

    /// Does all of `work` or nothing, and fsyncs.
    ///
    /// # Errors
    /// When it could not be written; it may be durable all the same.
    pub fn write<T>(&self, work: impl FnOnce(&WriteTransaction) -> Result<T, Error>) -> Result<T, Error> {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        let State::Writable(database) = &*state else { return Err(Error::Io(format!("{} is closed", self.name))) };
        self.guarded(|| {
            let mut transaction = database.begin_write()?;
            transaction.set_quick_repair(self.is_quick);
            let done = work(&transaction)?;
            transaction.commit()?;
            Ok(done)
        })
    }

    /// What is in it.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn contents(&self) -> Result<Contents, Error> {
        self.read(|transaction| {
            let (lanes, meta) = (transaction.open_table(LANES)?, transaction.open_table(META)?);
            let number = |name| Ok::<_, Error>(meta.get(name)?.map_or(0, |number| number.value()));
            let mut contents = Contents {
                lanes: Sizes::new(),
                parked: Size { records: number("dead_letters_on_disk")?, bytes: number("dead_letters_on_disk_bytes")? },
                next: number("next")?.max(1),
            };
            for lane in lanes.iter()? {
                let (name, size) = lane?;
                let (records, bytes) = size.value();
                contents.lanes.insert(name.value().to_owned(), Size { records, bytes });
            }
            Ok(contents)
        })
    }

    /// Reads on in a lane, from number `from` on, without those that are not `wanted`.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn page(&self, page: &mut Page, lane: &str, from: u64, wanted: impl Fn(u64) -> bool) -> Result<(), Error> {
        self.read(|transaction| match transaction.open_table(entries(&table_of(lane))) {
            Ok(table) => page.read(&table, from, wanted),
            Err(TableError::TableDoesNotExist(_)) => Ok(()),
            Err(error) => Err(error.into()),
        })
    }

    /// Reads on among the parked.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn parked(&self, page: &mut Page, from: u64) -> Result<(), Error> {
        self.read(|transaction| page.read(&transaction.open_table(PARKED)?, from, |_| true))
    }

    /// Gives the file system back what is free in the file. Takes long where much is left in it.
    ///
    /// # Errors
    /// As [`Db::write`].
    pub fn compact(&self) -> Result<(), Error> {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        let State::Writable(database) = &mut *state else { return Ok(()) };
        self.guarded(|| database.compact().map(drop).map_err(|error| Error::Io(error.to_string())))
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// How long the file is.
    pub fn bytes(&self) -> u64 {
        self.handle.bytes()
    }

    /// # Errors
    /// [`Error::Vanished`].
    pub fn check_place(&self) -> Result<(), Error> {
        self.handle.check_place()
    }

    /// A file that a disk has changed can make `redb` panic; that is no reason for the relay to end.
    fn guarded<T>(&self, work: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).unwrap_or_else(|panic| {
            let why = panic.downcast_ref::<String>().cloned().or(panic.downcast_ref::<&str>().map(ToString::to_string));
            Err(broken(why.unwrap_or_else(|| "redb panicked".to_owned())))
        });
        done.map_err(|error| match error {
            Error::Broken { why, .. } => Error::Broken { file: self.name.clone(), why },
            error => error,
        })
    }
}

/// Closing writes to the file, which can panic where the file is broken.
impl Drop for Db {
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        let closed = std::mem::replace(state, State::Closed);
        if let Err(error) = self.guarded(|| {
            drop(closed);
            Ok(())
        }) {
            tracing::error!(%error, "the spool's file was not closed as it should be");
        }
    }
}

fn check_format(meta: &impl redb::ReadableTable<&'static str, u64>) -> Result<(), Error> {
    match meta.get("format")?.map(|format| format.value()) {
        Some(newer) if newer > FORMAT => Err(Error::Newer(newer)),
        _ => Ok(()),
    }
}

/// What a transaction does to a lane.
pub struct LaneChange<'a> {
    pub lane: &'a str,
    pub appended: &'a [(u64, Vec<u8>)],
    pub deleted: &'a [u64],
    /// Of the lane in this file, before and then after it.
    pub size: Size,
    /// What was deleted.
    pub gone: Size,
}

/// Adds entries to lanes, and takes others out of them.
///
/// # Errors
/// What the storage says.
pub fn change_lanes(transaction: &WriteTransaction, changes: &mut [LaneChange<'_>]) -> Result<(), Error> {
    let mut lanes = transaction.open_table(LANES)?;
    for change in changes {
        let mut table = transaction.open_table(entries(&table_of(change.lane)))?;
        for (number, entry) in change.appended {
            table.insert(number, entry.as_slice())?;
            change.size.add(entry.len());
        }
        for number in change.deleted {
            if let Some(old) = table.remove(number)? {
                change.gone.add(old.value().len());
            }
        }
        change.size = change.size.minus(change.gone);
        lanes.insert(change.lane, (change.size.records, change.size.bytes))?;
    }
    Ok(())
}

/// The bytes of those of `numbers` that stand in a lane.
///
/// # Errors
/// What the storage says.
pub fn lengths(transaction: &ReadTransaction, lane: &str, numbers: &[u64]) -> Result<Vec<(u64, usize)>, Error> {
    let table = match transaction.open_table(entries(&table_of(lane))) {
        Ok(table) => table,
        Err(TableError::TableDoesNotExist(_)) => return Ok(Vec::new()),
        Err(error) => return Err(error.into()),
    };
    let mut found = Vec::with_capacity(numbers.len());
    for number in numbers {
        if let Some(entry) = table.get(number)? {
            found.push((*number, entry.value().len()));
        }
    }
    Ok(found)
}

const fn broken(why: String) -> Error {
    Error::Broken { file: String::new(), why }
}

impl From<StorageError> for Error {
    fn from(error: StorageError) -> Self {
        match error {
            StorageError::Corrupted(why) => broken(why),
            // What redb cannot make sense of at all, such as a file that is none of its own.
            StorageError::Io(error) if error.kind() == std::io::ErrorKind::InvalidData => broken(error.to_string()),
            StorageError::Io(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => broken(error.to_string()),
            error => Self::Io(error.to_string()),
        }
    }
}

impl From<DatabaseError> for Error {
    fn from(error: DatabaseError) -> Self {
        match error {
            DatabaseError::DatabaseAlreadyOpen | DatabaseError::LockProtocolMismatch => Self::Locked,
            DatabaseError::Storage(error) => error.into(),
            // What a failed fsync has left: it is mended when the spool is opened anew.
            DatabaseError::RepairAborted => Self::Io("it was not closed as it should be".to_owned()),
            error => broken(error.to_string()),
        }
    }
}

impl From<TableError> for Error {
    fn from(error: TableError) -> Self {
        match error {
            TableError::Storage(error) => error.into(),
            error => broken(error.to_string()),
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
