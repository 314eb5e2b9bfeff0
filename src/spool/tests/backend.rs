//! A disk in memory that fails when it is told to, and whose power can be cut: what was synced stays, and of what was only
//! written since then, any sectors.

use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use redb::StorageBackend;

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
    /// What a power cut leaves.
    platter: Vec<u8>,
    /// What is read: the platter, and what was written since.
    cache: Vec<u8>,
    unsynced: Vec<Unsynced>,
    fault: Option<Fault>,
    /// After so many more changes the power is gone.
    dies_in: Option<u64>,
    is_dead: bool,
    chance: Chance,
}

#[derive(Debug)]
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
        let mut platter = state.platter.clone();
        apply_some(&mut platter, &state.unsynced, &mut chance);
        Self(Arc::new(Mutex::new(State { cache: platter.clone(), platter, chance, ..State::default() })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
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

    fn write(&mut self, offset: usize, data: &[u8]) {
        self.cache[offset..][..data.len()].copy_from_slice(data);
        self.unsynced.push(Unsynced::Bytes(offset, data.to_vec()));
    }

    /// What is unsynced may have reached the platter, or is never written, though the next sync succeeds; what is read
    /// afterwards is the one or the other.
    fn forget_unsynced(&mut self) {
        apply_some(&mut self.platter, &self.unsynced, &mut self.chance);
        self.unsynced.clear();
        self.platter.resize(self.cache.len(), 0);
        if self.chance.flip() {
            self.cache.clone_from(&self.platter);
        }
    }
}

impl StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.state().cache.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let mut state = self.state();
        state.gate(Operation::Read)?;
        let bytes = state.cache.get(range(offset, out.len())).ok_or(io::ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(bytes);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut state = self.state();
        state.gate(Operation::Length)?;
        state.cache.resize(range(len, 0).start, 0);
        state.unsynced.push(Unsynced::Length(range(len, 0).start));
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut state = self.state();
        if let Err(error) = state.gate(Operation::Sync) {
            if !state.is_dead {
                state.forget_unsynced();
            }
            return Err(error);
        }
        let state = &mut *state;
        state.platter.resize(state.cache.len(), 0);
        state.unsynced.drain(..).for_each(|change| change.apply(&mut state.platter));
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut state = self.state();
        let offset = range(offset, 0).start;
        assert!(offset + data.len() <= state.cache.len(), "the length is set before");
        let taken = state.gate(Operation::Write);
        let written = if taken.is_ok() || state.is_dead { data.len() } else { data.len() / 2 };
        state.write(offset, &data[..written]);
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
