//! A disk in memory that fails when it is told to, and whose power can be cut: what was synced stays, and of what was only
//! written since then, any sectors. So it is with the names of its files.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use redb::{Builder, Database, DatabaseError, ReadOnlyDatabase, StorageBackend};

use super::super::db::Error;
use super::super::files::{Files, Handle};

/// What can fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Read,
    Write,
    Length,
    Sync,
}

pub const EIO: i32 = 5;
pub const ENOSPC: i32 = 28;

/// A disk; clones share it.
#[derive(Clone, Debug, Default)]
pub struct Disk(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    /// Files, by their names; those that a power cut leaves, too.
    names: BTreeMap<String, usize>,
    durable_names: BTreeMap<String, usize>,
    files: Vec<Content>,
    fault: Option<Fault>,
    /// After so many more changes the power is gone.
    dies_in: Option<u64>,
    is_dead: bool,
    chance: Chance,
}

#[derive(Clone, Debug, Default)]
struct Content {
    /// What a power cut leaves.
    platter: Vec<u8>,
    /// What is read: the platter, and what was written since.
    cache: Vec<u8>,
    unsynced: Vec<Unsynced>,
}

#[derive(Clone, Debug)]
enum Unsynced {
    Bytes(usize, Vec<u8>),
    Length(usize),
}

#[derive(Debug)]
struct Fault {
    operation: Operation,
    after: u64,
    times: u64,
    errno: i32,
}

impl Disk {
    /// Lets an operation fail, `times` times, after it has gone well `after` times.
    pub fn fail(&self, operation: Operation, after: u64, times: u64, errno: i32) {
        self.state().fault = Some(Fault { operation, after, times, errno });
    }

    /// From now on nothing fails any more.
    pub fn mend(&self) {
        self.state().fault = None;
    }

    /// Cuts the power in the midst of the change that comes after so many others.
    pub fn die_in(&self, changes: u64) {
        self.state().dies_in = Some(changes);
    }

    pub fn is_dead(&self) -> bool {
        self.state().is_dead
    }

    /// The disk as it is found after a power cut. This one is dead.
    pub fn cut(&self, seed: u64) -> Self {
        let mut state = self.state();
        state.is_dead = true;
        let mut chance = Chance(seed);
        let mut names = BTreeMap::new();
        for name in state.names.keys().chain(state.durable_names.keys()) {
            let (now, before) = (state.names.get(name), state.durable_names.get(name));
            let kept = if now == before || chance.flip() { now } else { before };
            kept.map(|file| names.insert(name.clone(), *file));
        }
        let mut files = state.files.clone();
        for file in &mut files {
            apply_some(&mut file.platter, &file.unsynced, &mut chance);
            *file = Content {
                cache: file.platter.clone(),
                platter: std::mem::take(&mut file.platter),
                unsynced: Vec::new(),
            };
        }
        let state = State { durable_names: names.clone(), names, files, chance, ..State::default() };
        Self(Arc::new(Mutex::new(state)))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The file of this name; a new one, where there is none.
    fn file(&self, name: &str) -> Result<usize, Error> {
        let mut state = self.state();
        if let Some(file) = state.names.get(name) {
            return Ok(*file);
        }
        state.gate(Operation::Length).map_err(said)?;
        let file = state.files.len();
        state.files.push(Content::default());
        state.names.insert(name.to_owned(), file);
        Ok(file)
    }

    /// Changes names; sooner or later they are durable, at once where it goes well.
    fn rename(&self, change: impl Fn(&mut BTreeMap<String, usize>)) -> Result<(), Error> {
        let mut state = self.state();
        state.gate(Operation::Length).map_err(said)?;
        change(&mut state.names);
        state.gate(Operation::Sync).map_err(said)?;
        state.durable_names = state.names.clone();
        Ok(())
    }
}

fn said(error: io::Error) -> Error {
    Error::Io(error.to_string())
}

impl Files for Disk {
    fn names(&self) -> Result<Vec<String>, Error> {
        let mut state = self.state();
        state.gate(Operation::Read).map_err(said)?;
        Ok(state.names.keys().cloned().collect())
    }

    fn open(&self, name: &str) -> Result<Box<dyn Handle>, Error> {
        Ok(Box::new(Opened { disk: self.clone(), file: self.file(name)? }))
    }

    fn allocate(&self, _: &str) -> Result<(), Error> {
        Ok(())
    }

    fn copy(&self, from: &str, to: &str) -> Result<(), Error> {
        let source = self.file(from)?;
        let bytes = self.state().files[source].cache.clone();
        let target = Opened { disk: self.clone(), file: self.file(to)? };
        target.set_len(0).map_err(said)?;
        target.set_len(bytes.len() as u64).map_err(said)?;
        target.write(0, &bytes).map_err(said)?;
        target.sync_data().map_err(said)
    }

    fn rename(&self, from: &str, to: &str) -> Result<(), Error> {
        self.rename(|names| {
            let file = names.remove(from).expect("it is there");
            names.insert(to.to_owned(), file);
        })
    }

    fn remove(&self, name: &str) -> Result<(), Error> {
        self.rename(|names| {
            names.remove(name);
        })
    }

    fn sync(&self) -> Result<(), Error> {
        self.rename(|_| ())
    }

    fn attempt(&self, _: &str) -> Result<(), Error> {
        Ok(())
    }

    fn survived(&self) {}

    fn all_are_open(&self) {}

    /// Nothing that this disk does breaks a file.
    fn put_aside(&self, name: &str, why: &str) -> Result<(), Error> {
        Err(Error::Broken { file: name.to_owned(), why: why.to_owned() })
    }
}

/// A file of it.
#[derive(Clone, Debug)]
struct Opened {
    disk: Disk,
    file: usize,
}

impl Handle for Opened {
    fn database(&self, builder: &Builder) -> Result<Database, DatabaseError> {
        builder.create_with_backend(self.clone())
    }

    fn read_only(&self, builder: &Builder) -> Result<ReadOnlyDatabase, DatabaseError> {
        builder.open_read_only_with_backend(self.clone())
    }

    fn bytes(&self) -> u64 {
        self.disk.state().files[self.file].cache.len() as u64
    }

    fn check_place(&self) -> Result<(), Error> {
        Ok(())
    }
}

impl State {
    fn gate(&mut self, operation: Operation) -> io::Result<()> {
        if operation != Operation::Read {
            self.is_dead |= self.dies_in == Some(0);
            self.dies_in = self.dies_in.map(|changes| changes.saturating_sub(1));
        }
        if self.is_dead {
            return Err(io::Error::from_raw_os_error(EIO));
        }
        match &mut self.fault {
            Some(fault) if fault.operation == operation && fault.after > 0 => fault.after -= 1,
            Some(fault) if fault.operation == operation && fault.times > 0 => {
                fault.times -= 1;
                return Err(io::Error::from_raw_os_error(fault.errno));
            }
            _ => {}
        }
        Ok(())
    }
}

impl Content {
    fn write(&mut self, offset: usize, data: &[u8]) {
        self.cache[offset..][..data.len()].copy_from_slice(data);
        self.unsynced.push(Unsynced::Bytes(offset, data.to_vec()));
    }

    /// What is unsynced may have reached the platter, or is never written, though the next sync succeeds; what is read
    /// afterwards is the one or the other.
    fn forget_unsynced(&mut self, chance: &mut Chance) {
        apply_some(&mut self.platter, &self.unsynced, chance);
        self.unsynced.clear();
        self.platter.resize(self.cache.len(), 0);
        if chance.flip() {
            self.cache.clone_from(&self.platter);
        }
    }
}

impl StorageBackend for Opened {
    fn len(&self) -> io::Result<u64> {
        Ok(self.bytes())
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let mut state = self.disk.state();
        state.gate(Operation::Read)?;
        let cache = &state.files[self.file].cache;
        let bytes = cache.get(range(offset, out.len())).ok_or(io::ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(bytes);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut state = self.disk.state();
        state.gate(Operation::Length)?;
        let file = &mut state.files[self.file];
        file.cache.resize(range(len, 0).start, 0);
        file.unsynced.push(Unsynced::Length(range(len, 0).start));
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut state = self.disk.state();
        let synced = state.gate(Operation::Sync);
        let State { files, chance, is_dead, .. } = &mut *state;
        let file = &mut files[self.file];
        if let Err(error) = synced {
            if !*is_dead {
                file.forget_unsynced(chance);
            }
            return Err(error);
        }
        file.platter.resize(file.cache.len(), 0);
        file.unsynced.drain(..).for_each(|change| change.apply(&mut file.platter));
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut state = self.disk.state();
        let offset = range(offset, 0).start;
        assert!(offset + data.len() <= state.files[self.file].cache.len(), "the length is set before");
        let taken = state.gate(Operation::Write);
        let written = if taken.is_ok() || state.is_dead { data.len() } else { data.len() / 2 };
        state.files[self.file].write(offset, &data[..written]);
        taken
    }
}

impl Unsynced {
    fn apply(self, platter: &mut Vec<u8>) {
        match self {
            Self::Length(length) => platter.resize(length, 0),
            Self::Bytes(offset, bytes) => put(platter, offset, &bytes),
        }
    }
}

/// Each sector of each write by chance, and each length.
fn apply_some(platter: &mut Vec<u8>, unsynced: &[Unsynced], chance: &mut Chance) {
    let sector = if chance.flip() { 512 } else { 4096 };
    for change in unsynced {
        match change {
            Unsynced::Length(length) if chance.flip() => platter.resize(*length, 0),
            Unsynced::Length(_) => {}
            Unsynced::Bytes(offset, bytes) => {
                let mut at = 0;
                while at < bytes.len() {
                    let end = bytes.len().min(at + sector - (offset + at) % sector);
                    if chance.flip() {
                        put(platter, offset + at, &bytes[at..end]);
                    }
                    at = end;
                }
            }
        }
    }
}

fn put(platter: &mut Vec<u8>, offset: usize, bytes: &[u8]) {
    platter.resize(platter.len().max(offset + bytes.len()), 0);
    platter[offset..][..bytes.len()].copy_from_slice(bytes);
}

fn range(offset: u64, bytes: usize) -> Range<usize> {
    let offset = usize::try_from(offset).expect("it is in memory");
    offset..offset + bytes
}

/// Numbers by chance that are the same each time (splitmix64).
#[derive(Clone, Debug, Default)]
pub struct Chance(pub u64);

impl Chance {
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub fn below(&mut self, limit: usize) -> usize {
        range(self.number() % limit.max(1) as u64, 0).start
    }

    pub fn flip(&mut self) -> bool {
        self.number().is_multiple_of(2)
    }
}
