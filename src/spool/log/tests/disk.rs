//! A disk in memory that fails when it is told to, has so much room, and loses power: what was synced stays, and of what was written
//! since then any sectors, and any names.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::super::disk::{Disk, DiskError, DiskFile, Identity, Result};

pub const EIO: i32 = 5;
pub const EACCES: i32 = 13;
pub const EMFILE: i32 = 24;
pub const ENOSPC: i32 = 28;

/// What can fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    List,
    Open,
    Create,
    Read,
    Write,
    Allocate,
    Truncate,
    Sync,
    Rename,
    Unlink,
    SyncDir,
    Stat,
}

impl Operation {
    pub const ALL: [Self; 12] = [
        Self::List,
        Self::Open,
        Self::Create,
        Self::Read,
        Self::Write,
        Self::Allocate,
        Self::Truncate,
        Self::Sync,
        Self::Rename,
        Self::Unlink,
        Self::SyncDir,
        Self::Stat,
    ];

    fn changes(self) -> bool {
        !matches!(self, Self::List | Self::Open | Self::Read | Self::Stat)
    }
}

/// A disk; clones share it.
#[derive(Clone, Debug, Default)]
pub struct MemoryDisk(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    /// Files, by their names; those that a power cut leaves, too.
    names: BTreeMap<String, usize>,
    durable_names: BTreeMap<String, usize>,
    files: Vec<Content>,
    fault: Option<Fault>,
    /// Fails for one name only.
    unreadable: Option<(String, i32)>,
    /// Writes of more bytes fail.
    bad_writes: Option<usize>,
    /// A byte that cannot be read.
    bad_sector: Option<(String, usize)>,
    /// Room for files; `None`: as much as they want.
    room: Option<u64>,
    /// What becomes free is taken by another process.
    has_hungry_neighbour: bool,
    /// After so many more changes the power is gone.
    dies_in: Option<u64>,
    is_dead: bool,
    /// It was the last operation that the power was cut in.
    is_dying: bool,
    /// How many changes there were.
    changes: u64,
    chance: Chance,
}

#[derive(Clone, Debug, Default, PartialEq)]
struct Content {
    /// What a power cut leaves.
    platter: Vec<u8>,
    /// What is read: the platter, and what was written since.
    cache: Vec<u8>,
    unsynced: Vec<Unsynced>,
}

#[derive(Clone, Debug, PartialEq)]
enum Unsynced {
    Bytes(usize, Vec<u8>),
    Length(usize),
}

#[derive(Clone, Copy, Debug)]
pub struct Fault {
    pub operation: Operation,
    /// So many go well before.
    pub after: u64,
    pub times: u64,
    pub errno: i32,
}

impl MemoryDisk {
    /// No operation ends while what this returns is there.
    pub fn hang(&self) -> impl Sized + '_ {
        self.state()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets a fault, or none, and returns the one that was set.
    pub fn set_fault(&self, fault: Option<Fault>) -> Option<Fault> {
        std::mem::replace(&mut self.state().fault, fault)
    }

    /// What becomes of what was written and not synced.
    pub fn set_chance(&self, seed: u64) {
        self.state().chance = Chance(seed);
    }

    pub fn fail(&self, operation: Operation, errno: i32) {
        self.set_fault(Some(Fault { operation, after: 0, times: u64::MAX, errno }));
    }

    /// Lets every open of this file fail, or of none.
    pub fn set_unreadable(&self, unreadable: Option<(&str, i32)>) {
        self.state().unreadable = unreadable.map(|(name, errno)| (name.to_owned(), errno));
    }

    /// Lets every write of more bytes fail, or none.
    pub fn set_bad_writes(&self, bytes: Option<usize>) {
        self.state().bad_writes = bytes;
    }

    /// Lets every read of this byte fail.
    pub fn set_bad_sector(&self, bad: Option<(&str, usize)>) {
        self.state().bad_sector = bad.map(|(name, offset)| (name.to_owned(), offset));
    }

    /// So much more can be taken; with a neighbour that takes whatever becomes free.
    pub fn set_free(&self, free: Option<u64>, has_hungry_neighbour: bool) {
        let mut state = self.state();
        state.room = free.map(|free| state.used() + free);
        state.has_hungry_neighbour = has_hungry_neighbour;
    }

    pub fn is_full(&self) -> bool {
        self.state().room.is_some()
    }

    /// Cuts the power in the midst of the change that comes after so many others.
    pub fn die_in(&self, changes: u64) {
        self.state().dies_in = Some(changes);
    }

    pub fn is_dead(&self) -> bool {
        self.state().is_dead
    }

    pub fn changes(&self) -> u64 {
        self.state().changes
    }

    /// The files and what is read of them.
    pub fn files(&self) -> BTreeMap<String, Vec<u8>> {
        let state = self.state();
        state.names.iter().map(|(name, file)| (name.clone(), state.files[*file].cache.clone())).collect()
    }

    /// Puts a file there, durably.
    pub fn put(&self, name: &str, bytes: &[u8]) {
        let mut state = self.state();
        let file = state.files.len();
        state.files.push(Content { platter: bytes.to_vec(), cache: bytes.to_vec(), unsynced: Vec::new() });
        state.names.insert(name.to_owned(), file);
        state.durable_names.insert(name.to_owned(), file);
    }

    /// Takes a file away, durably.
    pub fn take(&self, name: &str) {
        let mut state = self.state();
        state.names.remove(name);
        state.durable_names.remove(name);
    }

    /// The disk as it is found after a power cut. This one is dead.
    #[must_use]
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

    fn gate(&self, operation: Operation, name: &str) -> Result<MutexGuard<'_, State>> {
        let mut state = self.state();
        match state.gate(operation) {
            Ok(()) => Ok(state),
            Err(errno) => Err(error(operation, name, errno)),
        }
    }
}

fn error(operation: Operation, name: &str, errno: i32) -> DiskError {
    let operation = match operation {
        Operation::Write => "write",
        Operation::Sync => "sync",
        _ => "use",
    };
    DiskError::new(operation, name, io::Error::from_raw_os_error(errno))
}

impl State {
    fn used(&self) -> u64 {
        self.names.values().map(|file| self.files[*file].cache.len() as u64).sum()
    }

    fn gate(&mut self, operation: Operation) -> std::result::Result<(), i32> {
        if operation.changes() {
            self.changes += 1;
            self.is_dying = !self.is_dead && self.dies_in == Some(0);
            self.is_dead |= self.is_dying;
            self.dies_in = self.dies_in.map(|changes| changes.saturating_sub(1));
        }
        if self.is_dead {
            return Err(EIO);
        }
        match &mut self.fault {
            Some(fault) if fault.operation == operation && fault.after > 0 => fault.after -= 1,
            Some(fault) if fault.operation == operation && fault.times > 0 => {
                fault.times -= 1;
                return Err(fault.errno);
            }
            _ => {}
        }
        Ok(())
    }

    fn has_room(&self, more: usize) -> bool {
        self.room.is_none_or(|room| self.used() + more as u64 <= room)
    }

    fn freed(&mut self) {
        if self.has_hungry_neighbour {
            self.room = Some(self.used());
        }
    }
}

impl Disk for MemoryDisk {
    fn lock(&self) -> Result<Option<std::fs::File>> {
        Ok(None) // a power cut or a kill lets go of it; that it is taken is tested in a real directory
    }

    fn list(&self, subdirectory: &str) -> Result<Vec<String>> {
        let state = self.gate(Operation::List, subdirectory)?;
        let names = state.names.keys().map(|name| name.rsplit_once('/').unwrap_or(("", name)));
        Ok(names.filter(|(of, _)| *of == subdirectory).map(|(_, name)| name.to_owned()).collect())
    }

    fn open(&self, name: &str) -> Result<Arc<dyn DiskFile>> {
        let state = self.gate(Operation::Open, name)?;
        if let Some((_, errno)) = state.unreadable.as_ref().filter(|(unreadable, _)| unreadable == name) {
            return Err(error(Operation::Open, name, *errno));
        }
        let file = *state.names.get(name).ok_or_else(|| error(Operation::Open, name, 2))?;
        Ok(Arc::new(MemoryFile { disk: self.clone(), file, name: name.to_owned() }))
    }

    fn create(&self, name: &str) -> Result<Arc<dyn DiskFile>> {
        let mut state = self.gate(Operation::Create, name)?;
        if state.names.contains_key(name) {
            return Err(error(Operation::Create, name, 17));
        }
        let file = state.files.len();
        state.files.push(Content::default());
        state.names.insert(name.to_owned(), file);
        Ok(Arc::new(MemoryFile { disk: self.clone(), file, name: name.to_owned() }))
    }

    fn rename(&self, from: &str, to: &str) -> Result<()> {
        let mut state = self.gate(Operation::Rename, from)?;
        let Some(file) = state.names.remove(from) else { return Err(error(Operation::Rename, from, 2)) };
        state.names.insert(to.to_owned(), file);
        state.freed();
        Ok(())
    }

    fn unlink(&self, name: &str) -> Result<()> {
        let mut state = self.gate(Operation::Unlink, name)?;
        state.names.remove(name);
        state.freed();
        Ok(())
    }

    fn sync_dir(&self) -> Result<()> {
        let mut state = self.gate(Operation::SyncDir, "")?;
        state.durable_names = state.names.clone();
        Ok(())
    }

    fn stat(&self, name: &str) -> Result<Identity> {
        let state = self.gate(Operation::Stat, name)?;
        let file = state.names.get(name).ok_or_else(|| error(Operation::Stat, name, 2))?;
        Ok((1, *file as u64))
    }

    fn is_replaced(&self) -> bool {
        false
    }

    fn path(&self, name: &str) -> PathBuf {
        name.into()
    }
}

struct MemoryFile {
    disk: MemoryDisk,
    file: usize,
    name: String,
}

impl MemoryFile {
    /// Changes the file, if there is room for so much more.
    fn change(&self, operation: Operation, more: usize, change: impl FnOnce(&mut Content)) -> Result<()> {
        let gate = self.disk.gate(operation, &self.name).err();
        let mut state = self.disk.state();
        if gate.is_none() && !state.has_room(more) {
            return Err(error(operation, &self.name, ENOSPC));
        }
        // What fails may have been done all the same.
        if gate.is_none() || state.is_dying || (!state.is_dead && state.chance.flip()) {
            change(&mut state.files[self.file]);
            state.freed();
        }
        gate.map_or(Ok(()), Err)
    }
}

impl DiskFile for MemoryFile {
    fn identity(&self) -> Result<Identity> {
        Ok((1, self.file as u64))
    }

    fn bytes(&self) -> Result<u64> {
        let state = self.disk.gate(Operation::Stat, &self.name)?;
        Ok(state.files[self.file].cache.len() as u64)
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let state = self.disk.gate(Operation::Read, &self.name)?;
        let offset = usize::try_from(offset).expect("it is in memory");
        let there = state.files[self.file].cache.get(offset..offset + buffer.len());
        let is_bad =
            |(name, bad): &(String, usize)| *name == self.name && (offset..offset + buffer.len()).contains(bad);
        if state.bad_sector.as_ref().is_some_and(is_bad) {
            return Err(error(Operation::Read, &self.name, EIO));
        }
        let eof = || DiskError::new("read", &self.name, io::ErrorKind::UnexpectedEof);
        buffer.copy_from_slice(there.ok_or_else(eof)?);
        Ok(())
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        if self.disk.state().bad_writes.is_some_and(|most| bytes.len() > most) {
            return Err(error(Operation::Write, &self.name, EIO));
        }
        let offset = usize::try_from(offset).expect("it is in memory");
        let length = self.disk.state().files[self.file].cache.len();
        self.change(Operation::Write, (offset + bytes.len()).saturating_sub(length), |file| {
            put(&mut file.cache, offset, bytes);
            file.unsynced.push(Unsynced::Bytes(offset, bytes.to_vec()));
        })
    }

    fn allocate(&self, bytes: u64) -> Result<()> {
        let length = usize::try_from(bytes).expect("it is in memory");
        self.change(Operation::Allocate, length, |file| file.set_length(length))
    }

    fn truncate(&self, bytes: u64) -> Result<()> {
        self.change(Operation::Truncate, 0, |file| file.set_length(usize::try_from(bytes).expect("it is in memory")))
    }

    fn sync(&self) -> Result<()> {
        let failed = self.disk.gate(Operation::Sync, &self.name).err();
        let mut state = self.disk.state();
        let State { files, chance, is_dead, .. } = &mut *state;
        match failed {
            None => files[self.file].sync(),
            Some(_) if *is_dead => {}
            Some(_) => files[self.file].forget_unsynced(chance),
        }
        failed.map_or(Ok(()), Err)
    }
}

impl Content {
    fn set_length(&mut self, length: usize) {
        self.cache.resize(length, 0);
        self.unsynced.push(Unsynced::Length(length));
    }

    fn sync(&mut self) {
        for change in self.unsynced.drain(..) {
            match change {
                Unsynced::Length(length) => self.platter.resize(length, 0),
                Unsynced::Bytes(offset, bytes) => put(&mut self.platter, offset, &bytes),
            }
        }
    }

    /// What is unsynced may have reached the platter, or is never written, though the next sync succeeds; what is read afterwards is
    /// the one or the other.
    fn forget_unsynced(&mut self, chance: &mut Chance) {
        apply_some(&mut self.platter, &self.unsynced, chance);
        self.unsynced.clear();
        if chance.flip() {
            self.cache.clone_from(&self.platter);
        } else {
            self.platter.resize(self.cache.len(), 0);
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

fn put(bytes: &mut Vec<u8>, offset: usize, data: &[u8]) {
    bytes.resize(bytes.len().max(offset + data.len()), 0);
    bytes[offset..][..data.len()].copy_from_slice(data);
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
        usize::try_from(self.number() % limit.max(1) as u64).expect("it is below the limit")
    }

    pub fn flip(&mut self) -> bool {
        self.number().is_multiple_of(2)
    }
}
