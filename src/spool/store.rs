//! The files of the spool, and what is asked of all of them together.
//!
//! The first file has what is parked. Entries of lanes stand in *segments*, each with the entries from one number to the next
//! segment's: only the last one takes entries, and is sealed when it has so many bytes; what is gone of a sealed one is written
//! in the first file, until all of it is, and its file is removed. So a commit costs the same whatever the backlog, and a start
//! after a crash walks through one segment, not through all that waits.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;

use redb::ReadableTable as _;

pub use super::db::{Contents, Error, Size};

use super::db::{Db, GONE, LaneChange, META, PARKED, Page, Sizes, change_lanes};
use super::files::{Directory, Files};
use super::sealed::{Gone, Numbers, Sealed};

/// The first file's name in the spool's directory.
pub const FILE: &str = "spool.redb";

/// What follows the name of a file that is not whole yet.
const NEW: &str = ".new";

/// Memory for pages: of the segment that takes entries, and of the first file.
const SEGMENT_CACHE_BYTES: usize = 24 << 20;
const FIRST_CACHE_BYTES: usize = 4 << 20;

/// Sealed segments that are open at once.
const OPEN_MAX: usize = 16;

fn segment_name(first: u64) -> String {
    format!("spool-{first:020}.redb")
}

fn segment_of(name: &str) -> Option<u64> {
    let first = name.strip_prefix("spool-")?.strip_suffix(".redb")?.parse().ok()?;
    (segment_name(first) == name).then_some(first)
}

/// What one commit does.
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
    /// Their numbers are larger than all that were given before.
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

/// The open files. One process a directory at a time.
pub struct Store {
    files: Box<dyn Files>,
    /// A segment with so many bytes of entries takes no more.
    segment_bytes: u64,
    first: Db,
    /// The first file has entries of lanes, from before there were segments.
    has_old_lanes: bool,
    segments: RwLock<Segments>,
    /// Of whoever writes.
    totals: Mutex<Totals>,
    /// Sealed segments that are open, the last one read last.
    open: Mutex<VecDeque<u64>>,
    /// Entries from this number on are not read: the commit that brought them has not come to its end.
    visible: AtomicU64,
    /// A write has failed: what it has done cannot be known.
    has_failed: AtomicBool,
}

struct Segments {
    /// By the number of the first entry.
    sealed: BTreeMap<u64, Arc<Sealed>>,
    /// The one that takes entries, and the number of its first.
    active: (u64, Arc<Db>),
}

struct Totals {
    /// Of everything.
    contents: Contents,
    /// Of lanes in the first file.
    first: Sizes,
    /// Of lanes in the active segment.
    active: Sizes,
    /// Rows of segments that are no more.
    stale: Vec<u64>,
}

/// Where the entries stand that are to be deleted.
#[derive(Default)]
struct Deletes<'a> {
    first: Numbers<'a>,
    sealed: BTreeMap<u64, (Arc<Sealed>, Numbers<'a>)>,
    active: Numbers<'a>,
}

/// What becomes of the sealed segments.
#[derive(Default)]
struct Without {
    /// Those of which nothing is left.
    emptied: Vec<Arc<Sealed>>,
    /// What is gone of the others.
    rows: Vec<(Arc<Sealed>, Gone)>,
    /// What that takes from each lane, from all of them.
    taken: Vec<(String, Size)>,
}

impl Without {
    fn of(deletes: &Deletes<'_>) -> Result<Self, Error> {
        let mut without = Self::default();
        for (sealed, numbers) in deletes.sealed.values() {
            let (gone, taken) = sealed.without(numbers)?;
            if taken.iter().all(|(_, size)| size.records == 0) {
                continue; // it is known already
            }
            without.taken.extend(taken);
            if sealed.is_empty_with(&gone) {
                without.emptied.push(Arc::clone(sealed));
            } else {
                without.rows.push((Arc::clone(sealed), gone));
            }
        }
        Ok(without)
    }
}

/// A file that takes less room now.
#[derive(Debug)]
pub struct Tidied {
    pub file: String,
    pub before: u64,
    pub after: u64,
}

impl Store {
    /// Opens the spool in `directory`; makes what is missing, and puts broken files aside.
    ///
    /// # Errors
    /// [`Error::Locked`]: another relay has it. [`Error::Newer`]: run the newer relay. [`Error::Io`]: look at the disk.
    pub fn open(directory: &Path, segment_bytes: u64) -> Result<Self, Error> {
        Self::open_in(Box::new(Directory::own(directory)?), segment_bytes)
    }

    /// As `open`, for those who only look: what is broken is left as it is.
    ///
    /// # Errors
    /// As `open`; [`Error::Broken`].
    pub fn look(directory: &Path, segment_bytes: u64) -> Result<Self, Error> {
        Self::open_in(Box::new(Directory::look(directory)), segment_bytes)
    }

    /// As `open`, wherever the files are.
    ///
    /// # Errors
    /// As `open`.
    pub fn open_in(files: Box<dyn Files>, segment_bytes: u64) -> Result<Self, Error> {
        files.sync()?;
        let names = files.names()?;
        let first = open_first(&*files, &names)?;
        for name in names.iter().filter(|name| name.ends_with(NEW)) {
            files.remove(name)?;
        }
        let mut rows = first.read(|transaction| {
            let rows = transaction.open_table(GONE)?;
            let rows = rows.iter()?.map(|row| row.map(|(first, row)| (first.value(), row.value().to_vec())));
            Ok(rows.collect::<Result<HashMap<_, _>, _>>()?)
        })?;
        let in_first = first.contents()?;
        let mut contents = in_first.clone();
        let mut firsts: Vec<u64> = names.iter().filter_map(|name| segment_of(name)).collect();
        firsts.sort_unstable();
        let last = firsts.pop();
        let mut sealed = BTreeMap::new();
        for number in firsts {
            let (name, row) = (segment_name(number), rows.get(&number).map_or(&[][..], Vec::as_slice));
            let segment = attempt(&*files, &name, || Sealed::of(open_whole(&*files, &name)?, number, row))?;
            let Some(segment) = segment else { continue };
            contents.next = contents.next.max(segment.db.contents()?.next).max(number + 1);
            let left = segment.left();
            segment.db.close()?;
            if left.is_empty() {
                files.remove(&name)?;
                continue;
            }
            rows.remove(&number);
            left.into_iter().for_each(|(lane, size)| add(&mut contents.lanes, lane, size));
            sealed.insert(number, Arc::new(segment));
        }
        let active = match last {
            Some(number) => {
                contents.next = contents.next.max(number);
                let name = segment_name(number);
                let open = || {
                    drop(open_whole(&*files, &name)?);
                    open_segment(&*files, &name)
                };
                attempt(&*files, &name, open)?.map(|db| (number, db))
            }
            None => None,
        };
        let (number, active) = match active {
            Some(active) => active,
            None => (contents.next, new_segment(&*files, contents.next)?),
        };
        let in_active = active.contents()?;
        contents.next = contents.next.max(in_active.next);
        in_active.lanes.iter().for_each(|(lane, size)| add(&mut contents.lanes, lane.clone(), *size));
        files.all_are_open();
        let visible = AtomicU64::new(contents.next);
        Ok(Self {
            files,
            segment_bytes,
            first,
            has_old_lanes: in_first.lanes.values().any(|size| size.records > 0),
            segments: RwLock::new(Segments { sealed, active: (number, Arc::new(active)) }),
            totals: Mutex::new(Totals {
                contents,
                first: in_first.lanes,
                active: in_active.lanes,
                stale: rows.into_keys().collect(),
            }),
            open: Mutex::default(),
            visible,
            has_failed: AtomicBool::new(false),
        })
    }

    fn segments(&self) -> RwLockReadGuard<'_, Segments> {
        self.segments.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn totals(&self) -> MutexGuard<'_, Totals> {
        self.totals.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does what `batch` asks for, and fsyncs. What moves stands in both places before it leaves the one. After an error the
    /// store takes no more: it is to be opened anew.
    ///
    /// # Errors
    /// [`Error::Io`] and whatever else; the batch, or a part of it, may be durable all the same.
    pub fn commit(&self, batch: &Batch) -> Result<Contents, Error> {
        if self.has_failed.load(Ordering::SeqCst) {
            return Err(Error::Io("an earlier write has failed".to_owned()));
        }
        let mut totals = self.totals();
        let done = self.apply(&mut totals, batch);
        match &done {
            Ok(()) => self.visible.store(totals.contents.next, Ordering::SeqCst),
            Err(_) => self.has_failed.store(true, Ordering::SeqCst),
        }
        done.map(|()| totals.contents.clone())
    }

    fn apply(&self, totals: &mut Totals, batch: &Batch) -> Result<(), Error> {
        self.check_place()?;
        let has_entries = batch.lanes.values().any(|change| !change.appended.is_empty());
        if has_entries && bytes(&totals.active) >= self.segment_bytes {
            self.begin_segment(totals)?;
        }
        totals.contents.next = totals.contents.next.max(batch.next);
        let (deletes, active) = self.deletes(batch);
        let appended = batch.lanes.iter().map(|(lane, change)| (&**lane, change.appended.as_slice()));
        let moves = !(batch.parked.is_empty() && batch.unparked.is_empty());
        let none = Numbers::new();
        change_active(totals, &active, appended.clone(), if moves { &none } else { &deletes.active })?;
        let without = Without::of(&deletes)?;
        let emptied = without.emptied.clone();
        if !moves {
            // Before the first file is written: on a full disk that may have room only then.
            emptied.iter().try_for_each(|segment| self.remove(totals, segment))?;
        }
        self.change_first(totals, batch, &deletes.first, without)?;
        if moves {
            change_active(totals, &active, appended.map(|(lane, _)| (lane, &[][..])), &deletes.active)?;
            emptied.iter().try_for_each(|segment| self.remove(totals, segment))?;
        }
        Ok(())
    }

    fn deletes<'a>(&self, batch: &'a Batch) -> (Deletes<'a>, Arc<Db>) {
        let segments = self.segments();
        let mut deletes = Deletes::default();
        for (lane, change) in &batch.lanes {
            for number in &change.deleted {
                let of = if *number >= segments.active.0 {
                    &mut deletes.active
                } else if let Some((first, sealed)) = segments.sealed.range(..=*number).next_back() {
                    &mut deletes.sealed.entry(*first).or_insert_with(|| (Arc::clone(sealed), Numbers::new())).1
                } else {
                    &mut deletes.first
                };
                of.entry(&**lane).or_default().push(*number);
            }
        }
        (deletes, Arc::clone(&segments.active.1))
    }

    /// Writes what the first file is for.
    fn change_first(
        &self,
        totals: &mut Totals,
        batch: &Batch,
        deleted: &Numbers<'_>,
        without: Without,
    ) -> Result<(), Error> {
        let Without { rows, mut taken, .. } = without;
        let mut lanes = changes(&totals.first, std::iter::empty(), deleted);
        let mut parked = totals.contents.parked;
        let is_about_it = !(batch.parked.is_empty() && batch.unparked.is_empty() && rows.is_empty());
        if is_about_it || !lanes.is_empty() || batch.lanes.is_empty() {
            self.first.write(|transaction| {
                change_lanes(transaction, &mut lanes)?;
                let mut table = transaction.open_table(PARKED)?;
                for (number, entry) in &batch.parked {
                    if table.insert(*number, entry.as_slice())?.is_none() {
                        parked.add(entry.len());
                    }
                }
                for number in &batch.unparked {
                    if let Some(old) = table.remove(*number)? {
                        parked.remove(old.value().len());
                    }
                }
                let mut table = transaction.open_table(GONE)?;
                for stale in &totals.stale {
                    table.remove(stale)?;
                }
                for (sealed, gone) in &rows {
                    table.insert(sealed.first(), gone.row().as_slice())?;
                }
                let mut meta = transaction.open_table(META)?;
                meta.insert("next", totals.contents.next)?;
                meta.insert("dead_letters_on_disk", parked.records)?;
                meta.insert("dead_letters_on_disk_bytes", parked.bytes)?;
                Ok(())
            })?;
            totals.stale.clear();
        }
        totals.contents.parked = parked;
        for LaneChange { lane, size, gone, .. } in lanes {
            totals.first.insert(lane.to_owned(), size);
            taken.push((lane.to_owned(), gone));
        }
        for (sealed, gone) in rows {
            sealed.set_gone(gone);
        }
        for (lane, size) in taken {
            let left = totals.contents.lanes.entry(lane).or_default();
            *left = left.minus(size);
        }
        Ok(())
    }

    /// Begins a new segment, and seals the one before.
    fn begin_segment(&self, totals: &mut Totals) -> Result<(), Error> {
        let first = totals.contents.next;
        let new = new_segment(&*self.files, first)?;
        let (before, db) = self.segments().active.clone();
        db.close()?;
        let whole = std::mem::take(&mut totals.active);
        let sealed = Arc::new(Sealed::new(db, before, whole, Gone::default()));
        let is_empty = sealed.left().is_empty();
        let mut segments = self.segments.write().unwrap_or_else(PoisonError::into_inner);
        segments.sealed.insert(before, Arc::clone(&sealed));
        segments.active = (first, Arc::new(new));
        drop(segments);
        if is_empty { self.remove(totals, &sealed) } else { Ok(()) }
    }

    /// Removes a segment of which nothing is left.
    fn remove(&self, totals: &mut Totals, sealed: &Sealed) -> Result<(), Error> {
        self.segments.write().unwrap_or_else(PoisonError::into_inner).sealed.remove(&sealed.first());
        totals.stale.push(sealed.first());
        self.files.remove(sealed.db.name())
    }

    /// What is in it.
    pub fn contents(&self) -> Contents {
        self.totals().contents.clone()
    }

    /// Entries of a lane from number `from` on, in order: at most `records` of them, and no more than the first whose
    /// bytes pass `bytes`.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn page(&self, lane: &str, from: u64, records: usize, bytes: usize) -> Result<Vec<(u64, Vec<u8>)>, Error> {
        let mut page = Page::new(records, bytes);
        if self.has_old_lanes {
            self.first.page(&mut page, lane, from, |_| true)?;
        }
        let segments = self.segments();
        let begin = segments.sealed.range(..=from).next_back().map_or(0, |(first, _)| *first);
        let sealed = segments.sealed.range(begin..).map(|(_, sealed)| sealed).filter(|sealed| sealed.has(lane));
        let (sealed, active): (Vec<_>, _) = (sealed.cloned().collect(), Arc::clone(&segments.active.1));
        drop(segments);
        for segment in sealed {
            if page.is_full() {
                break;
            }
            self.keep_open(segment.first())?;
            segment.page(&mut page, lane, from)?;
        }
        let visible = self.visible.load(Ordering::SeqCst);
        active.page(&mut page, lane, from, |number| number < visible)?;
        Ok(page.entries)
    }

    /// Makes room for one more among the sealed segments that are open.
    fn keep_open(&self, first: u64) -> Result<(), Error> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|other| *other != first);
        open.push_back(first);
        if open.len() <= OPEN_MAX {
            return Ok(());
        }
        let oldest = open.pop_front().and_then(|oldest| self.segments().sealed.get(&oldest).cloned());
        drop(open);
        oldest.map_or(Ok(()), |oldest| oldest.db.close())
    }

    /// Parked entries from number `from` on, as [`Store::page`].
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn parked(&self, from: u64, records: usize, bytes: usize) -> Result<Vec<(u64, Vec<u8>)>, Error> {
        let mut page = Page::new(records, bytes);
        self.first.parked(&mut page, from)?;
        Ok(page.entries)
    }

    /// Gives the file system back what is free in a file, one file at a time: in a sealed segment of which little is left, and
    /// nothing was deleted for so long; and, when nobody writes, in the other files, where more than `spare` is free.
    ///
    /// # Errors
    /// As [`Store::commit`], which then takes no more.
    pub fn tidy(&self, idle: Duration, is_quiet: bool, spare: u64) -> Result<Option<Tidied>, Error> {
        let mut totals = self.totals();
        let sparse = self.segments().sealed.values().find(|sealed| sealed.is_sparse_since(idle)).cloned();
        if let Some(sparse) = sparse {
            sparse.touch();
            return self.write_anew(&mut totals, &sparse).map(Some);
        }
        let (first, active) = self.segments().active.clone();
        let was_used = totals.contents.next > first;
        if is_quiet && was_used && bytes(&totals.active) == 0 && active.bytes() > spare {
            let before = active.bytes();
            let begun = self.begin_segment(&mut totals);
            self.has_failed.fetch_or(begun.is_err(), Ordering::SeqCst);
            let after = self.segments().active.1.bytes();
            return begun.map(|()| Some(Tidied { file: active.name().to_owned(), before, after }));
        }
        let used = totals.contents.parked.bytes + bytes(&totals.first);
        let before = self.first.bytes();
        if is_quiet && before > spare && used < spare / 4 {
            let compacted = self.first.compact();
            self.has_failed.fetch_or(compacted.is_err(), Ordering::SeqCst);
            return compacted.map(|()| Some(Tidied { file: FILE.to_owned(), before, after: self.first.bytes() }));
        }
        Ok(None)
    }

    /// Writes what is left of a segment to a file of its own.
    fn write_anew(&self, totals: &mut Totals, sealed: &Sealed) -> Result<Tidied, Error> {
        let (name, generation) = (segment_name(sealed.first()), sealed.generation() + 1);
        let (left, next) = (sealed.left(), sealed.db.contents()?.next);
        let mut entries = Vec::new();
        for lane in left.keys() {
            let mut page = Page::new(usize::MAX, usize::MAX);
            sealed.page(&mut page, lane, 0)?;
            entries.push((lane.as_str(), page.entries));
        }
        make(&*self.files, &name, |db| {
            let entries = entries.iter().map(|(lane, entries)| (*lane, entries.as_slice()));
            let none = Numbers::new();
            let mut lanes = changes(&Sizes::new(), entries, &none);
            db.write(|transaction| {
                change_lanes(transaction, &mut lanes)?;
                let mut meta = transaction.open_table(META)?;
                meta.insert("next", next)?;
                meta.insert("generation", generation)?;
                Ok(())
            })
        })?;
        let before = sealed.db.bytes();
        let new = Arc::new(Sealed::of(open_whole(&*self.files, &name)?, sealed.first(), &[])?);
        let tidied = Tidied { file: name, before, after: new.db.bytes() };
        totals.stale.push(sealed.first());
        self.segments.write().unwrap_or_else(PoisonError::into_inner).sealed.insert(sealed.first(), new);
        Ok(tidied)
    }

    /// What can be written without a file becoming larger: half of what it has, less what is in it. And without another one.
    pub fn inside(&self) -> u64 {
        let totals = self.totals();
        let active = bytes(&totals.active);
        let used = active + bytes(&totals.first) + totals.contents.parked.bytes;
        let files = self.segments().active.1.bytes() + self.first.bytes();
        (files / 2).saturating_sub(used).min(self.segment_bytes.saturating_sub(active))
    }

    /// Whether the files that are written still stand where they were opened.
    ///
    /// # Errors
    /// [`Error::Vanished`].
    pub fn check_place(&self) -> Result<(), Error> {
        self.first.check_place()?;
        self.segments().active.1.check_place()
    }

    /// Keeps a file of a spool that is closed under another name.
    ///
    /// # Errors
    /// [`Error::Locked`]: another process has it. [`Error::Io`]: it cannot be renamed.
    pub fn put_aside(directory: &Path, name: &str, why: &str) -> Result<(), Error> {
        Directory::own(directory)?.put_aside(name, why)
    }
}

fn bytes(sizes: &Sizes) -> u64 {
    sizes.values().map(|size| size.bytes).sum()
}

fn add(sizes: &mut Sizes, lane: String, more: Size) {
    let size = sizes.entry(lane).or_default();
    *size = size.plus(more);
}

/// What is to be done to the lanes of a file that has such `sizes`.
fn changes<'a>(
    sizes: &Sizes,
    appended: impl Iterator<Item = (&'a str, &'a [(u64, Vec<u8>)])>,
    deleted: &'a Numbers<'_>,
) -> Vec<LaneChange<'a>> {
    let mut by_lane: BTreeMap<&str, LaneChange<'a>> = BTreeMap::new();
    let new = |lane| LaneChange {
        lane,
        appended: &[],
        deleted: &[],
        size: sizes.get(lane).copied().unwrap_or_default(),
        gone: Size::default(),
    };
    for (lane, appended) in appended.filter(|(_, appended)| !appended.is_empty()) {
        by_lane.entry(lane).or_insert_with(|| new(lane)).appended = appended;
    }
    for (lane, deleted) in deleted {
        by_lane.entry(lane).or_insert_with(|| new(lane)).deleted = deleted;
    }
    by_lane.into_values().collect()
}

fn change_active<'a>(
    totals: &mut Totals,
    active: &Db,
    appended: impl Iterator<Item = (&'a str, &'a [(u64, Vec<u8>)])>,
    deleted: &'a Numbers<'_>,
) -> Result<(), Error> {
    let mut lanes = changes(&totals.active, appended, deleted);
    if lanes.is_empty() {
        return Ok(());
    }
    active.write(|transaction| {
        change_lanes(transaction, &mut lanes)?;
        transaction.open_table(META)?.insert("next", totals.contents.next)?;
        Ok(())
    })?;
    for LaneChange { lane, size, .. } in lanes {
        let before = totals.active.insert(lane.to_owned(), size).unwrap_or_default();
        let whole = totals.contents.lanes.entry(lane.to_owned()).or_default();
        *whole = whole.plus(size).minus(before);
    }
    Ok(())
}

/// Opens a file for the first time; a broken one is put aside.
fn attempt<T>(files: &dyn Files, name: &str, open: impl FnOnce() -> Result<T, Error>) -> Result<Option<T>, Error> {
    let opened = files.attempt(name).and_then(|()| open());
    let opened = match opened {
        Err(Error::Broken { why, .. }) => files.put_aside(name, &why).map(|()| None),
        opened => opened.map(Some),
    };
    files.survived();
    opened
}

fn open_first(files: &dyn Files, names: &[String]) -> Result<Db, Error> {
    let open = || Db::open(FILE, files.open(FILE)?, FIRST_CACHE_BYTES, true);
    let is_there = names.iter().any(|name| name == FILE);
    if let Some(db) = if is_there { attempt(files, FILE, open)? } else { None } {
        return Ok(db);
    }
    make(files, FILE, |_| Ok(()))?;
    open()
}

fn open_segment(files: &dyn Files, name: &str) -> Result<Db, Error> {
    Db::open(name, files.open(name)?, SEGMENT_CACHE_BYTES, false)
}

/// Opens a segment to be read. One that was not closed as it should be is repaired first: in a copy of it, for after a fsync
/// that has failed the system may show what will never be on the disk, and what is built on that is lost with the next cut.
fn open_whole(files: &dyn Files, name: &str) -> Result<Db, Error> {
    if let Some(db) = Db::open_to_read(name, files.open(name)?)? {
        return Ok(db);
    }
    let new = format!("{name}{NEW}");
    files.copy(name, &new)?;
    open_segment(files, &new)?.close()?;
    files.rename(&new, name)?;
    let unrepaired = || Error::Broken { file: name.to_owned(), why: "it cannot be repaired".to_owned() };
    Db::open_to_read(name, files.open(name)?)?.ok_or_else(unrepaired)
}

fn new_segment(files: &dyn Files, first: u64) -> Result<Db, Error> {
    let name = segment_name(first);
    make(files, &name, |db| {
        db.write(|transaction| {
            transaction.open_table(META)?.insert("next", first)?;
            Ok(())
        })
    })?;
    open_segment(files, &name)
}

/// Makes a file that is whole as soon as it has its name.
fn make(files: &dyn Files, name: &str, fill: impl FnOnce(&Db) -> Result<(), Error>) -> Result<(), Error> {
    let new = format!("{name}{NEW}");
    files.remove(&new)?;
    let db = Db::open(&new, files.open(&new)?, SEGMENT_CACHE_BYTES, false)?;
    fill(&db)?;
    db.close()?;
    files.allocate(&new)?;
    files.rename(&new, name)
}
