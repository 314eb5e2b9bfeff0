//! A segment that takes no more entries. Its file stays as it is until all of them are gone; which are is written elsewhere.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::db::{Db, Error, META, Page, Size, Sizes, lengths};

pub struct Sealed {
    pub db: Arc<Db>,
    /// The number of its first entry.
    first: u64,
    /// What is in its file.
    whole: Sizes,
    gone: Mutex<Arc<Gone>>,
    /// When something of it was last deleted.
    touched: Mutex<Instant>,
}

/// What is deleted of a segment: a row of the first file's table.
#[derive(Clone, Default, Serialize, Deserialize)]
pub struct Gone {
    /// Which file it is about: one that was written anew has its own.
    pub generation: u64,
    /// A bit for each number, from the segment's first one on.
    #[serde(with = "serde_bytes")]
    bits: Vec<u8>,
    strays: BTreeSet<u64>,
    sizes: Sizes,
}

impl Gone {
    /// A row as it was written; one of another file is none.
    pub fn read(row: &[u8], generation: u64) -> Self {
        let row = postcard::from_bytes::<Self>(row).ok();
        row.filter(|row| row.generation == generation).unwrap_or_else(|| Self { generation, ..Self::default() })
    }

    pub fn row(&self) -> Vec<u8> {
        postcard::to_stdvec(self).expect("memory takes what is written")
    }

    /// Whether that is news.
    fn insert(&mut self, offset: u64) -> bool {
        let Some((at, bit)) = place(offset) else { return self.strays.insert(offset) };
        if self.bits.len() <= at {
            self.bits.resize(at + 1, 0);
        }
        let is_new = self.bits[at] & bit == 0;
        self.bits[at] |= bit;
        is_new
    }

    fn contains(&self, offset: u64) -> bool {
        match place(offset) {
            Some((at, bit)) => self.bits.get(at).is_some_and(|byte| byte & bit != 0),
            None => self.strays.contains(&offset),
        }
    }
}

/// A bit's byte, and its value in it; `None`: so far from the first number are only those that a disk has changed.
fn place(offset: u64) -> Option<(usize, u8)> {
    const BITS_MAX: u64 = 1 << 26;
    let at = usize::try_from(offset / 8).ok().filter(|_| offset < BITS_MAX)?;
    Some((at, 1 << (offset % 8)))
}

/// Numbers, by the names of the lanes that they stand in.
pub type Numbers<'a> = HashMap<&'a str, Vec<u64>>;

impl Sealed {
    pub fn new(db: Arc<Db>, first: u64, whole: Sizes, gone: Gone) -> Self {
        Self { db, first, whole, gone: Mutex::new(Arc::new(gone)), touched: Mutex::new(Instant::now()) }
    }

    /// A segment whose file is open to be read; `row` is what is known to be gone of it.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn of(db: Db, first: u64, row: &[u8]) -> Result<Self, Error> {
        let generation = db.read(|transaction| {
            Ok(transaction.open_table(META)?.get("generation")?.map_or(0, |generation| generation.value()))
        })?;
        let whole = db.contents()?.lanes;
        Ok(Self::new(Arc::new(db), first, whole, Gone::read(row, generation)))
    }

    pub const fn first(&self) -> u64 {
        self.first
    }

    fn gone(&self) -> Arc<Gone> {
        Arc::clone(&self.gone.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// What is left of each lane.
    pub fn left(&self) -> Sizes {
        let gone = self.gone();
        let left = |(lane, size): (&String, &Size)| {
            (lane.clone(), size.minus(gone.sizes.get(lane).copied().unwrap_or_default()))
        };
        self.whole.iter().map(left).filter(|(_, size)| size.records > 0).collect()
    }

    pub fn has(&self, lane: &str) -> bool {
        let gone = self.gone().sizes.get(lane).copied().unwrap_or_default();
        self.whole.get(lane).is_some_and(|whole| whole.records > gone.records)
    }

    /// Reads on in a lane, from number `from` on, without what is gone.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn page(&self, page: &mut Page, lane: &str, from: u64) -> Result<(), Error> {
        let gone = self.gone();
        self.db.page(page, lane, from, |number| !gone.contains(number.wrapping_sub(self.first)))
    }

    /// What will be gone when `numbers` are, and what that takes from each lane.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn without(&self, numbers: &Numbers<'_>) -> Result<(Gone, Vec<(String, Size)>), Error> {
        let mut gone = Gone::clone(&self.gone());
        let mut taken = Vec::new();
        self.db.read(|transaction| {
            for (lane, numbers) in numbers {
                let mut size = Size::default();
                for (number, bytes) in lengths(transaction, lane, numbers)? {
                    if gone.insert(number.wrapping_sub(self.first)) {
                        size.add(bytes);
                    }
                }
                let of_lane = gone.sizes.entry((*lane).to_owned()).or_default();
                *of_lane = of_lane.plus(size);
                taken.push(((*lane).to_owned(), size));
            }
            Ok(())
        })?;
        Ok((gone, taken))
    }

    pub fn is_empty_with(&self, gone: &Gone) -> bool {
        self.whole.iter().all(|(lane, size)| gone.sizes.get(lane).is_some_and(|gone| gone.records >= size.records))
    }

    /// That is durable now.
    pub fn set_gone(&self, gone: Gone) {
        *self.gone.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(gone);
        self.touch();
    }

    pub fn generation(&self) -> u64 {
        self.gone().generation
    }

    /// It was looked after.
    pub fn touch(&self) {
        *self.touched.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// Whether three quarters of its file are of no use, and nothing has changed for a while.
    pub fn is_sparse_since(&self, idle: Duration) -> bool {
        let left: u64 = self.left().values().map(|size| size.bytes).sum();
        let touched = *self.touched.lock().unwrap_or_else(PoisonError::into_inner);
        touched.elapsed() >= idle && left.saturating_mul(4) < self.whole.values().map(|size| size.bytes).sum()
    }
}
