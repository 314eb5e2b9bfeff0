//! Reads the log lane by lane while it is written, and notes what is acked. There is one lock, which is never held during disk I/O.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;

use super::disk::{ASIDE, Access, Disk, DiskError, DiskFile, Kind, Result};
use super::entry::Entry;
use super::segment::{ReadAhead, Segment, file_name};
use super::state::{self, Acked, State};
use super::{NEW, SPAN, number_of};

/// Reads the log. Clones share it.
#[derive(Clone)]
pub struct Reader {
    pub(super) disk: Arc<dyn Disk>,
    access: Access,
    segments: Arc<Mutex<Segments>>,
}

#[derive(Default)]
pub struct Segments {
    pub live: BTreeMap<u64, Slot>,
    /// The file of the state is older than this.
    pub is_unsaved: bool,
}

pub enum Slot {
    Ready(Segment),
    /// Why it cannot be read, and what of it is acked.
    Unreadable(Arc<DiskError>, Acked),
}

/// What was found besides what can be read.
#[derive(Debug, Default)]
pub struct Opened {
    /// Segments whose last commit is torn. Its events were not answered 200.
    pub torn: Vec<u64>,
    /// Segments that are in the state, and not in the directory: their events are lost, or somewhere else.
    pub missing: Vec<u64>,
    /// Files that cannot be used. [`super::Log::open`] has moved them to `aside/`.
    pub aside: Vec<String>,
    /// The state could not be read: what was acked comes again, and which segments are missing is not known.
    pub has_lost_state: bool,
    /// What could not be read, written or moved.
    pub errors: Vec<Arc<DiskError>>,
    pub(super) next: u64,
    /// Files that were not finished when the process ended.
    pub(super) unfinished: Vec<String>,
}

/// What was read of a lane.
#[derive(Debug, Default)]
pub struct Page {
    pub items: Vec<Item>,
    /// From where to read on.
    pub next: u64,
    /// Segments that may have entries of the lane in front of those, and cannot be read.
    pub unread: BTreeSet<u64>,
}

#[derive(Debug)]
pub struct Item {
    pub number: u64,
    /// What it takes in the file.
    pub bytes: usize,
    pub entry: std::result::Result<Entry, Broken>,
}

/// Why there is no entry.
#[derive(Debug)]
pub enum Broken {
    /// The disk has altered it. This is what is there now.
    Damaged(Vec<u8>),
    /// It may be read another time. It ends the page.
    Unread(Arc<DiskError>),
}

/// What is not acked of a lane.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Size {
    pub records: u64,
    /// Exact while nothing of a segment is acked, else in proportion.
    pub bytes: u64,
    /// The number of the first.
    pub first: u64,
}

/// What was found in a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verified {
    pub frames: u64,
    pub damaged: u32,
    pub missing: u32,
}

/// Frames of a lane in one segment: index and offset.
struct Piece {
    segment: u64,
    file: Arc<dyn DiskFile>,
    end: u32,
    frames: Vec<(u32, u32)>,
}

impl Segments {
    pub fn ready(&self) -> impl Iterator<Item = &Segment> {
        self.live.values().filter_map(|slot| if let Slot::Ready(segment) = slot { Some(segment) } else { None })
    }

    /// `None`: there is no such segment that can be read.
    pub fn change<T>(&mut self, number: u64, change: impl FnOnce(&mut Segment) -> T) -> Option<T> {
        if let Some(Slot::Ready(segment)) = self.live.get_mut(&number) { Some(change(segment)) } else { None }
    }
}

impl Slot {
    pub fn acked(&self) -> Acked {
        match self {
            Self::Ready(segment) => segment.acked(),
            Self::Unreadable(_, acked) => acked.clone(),
        }
    }
}

impl Reader {
    /// Opens the log of a relay that is stopped, however it ended. Changes nothing and locks nothing.
    ///
    /// # Errors
    /// [`Kind::Newer`]; whatever keeps the directory from being listed.
    pub fn open(disk: Arc<dyn Disk>) -> Result<(Self, Opened)> {
        Self::load(disk, Access::Read)
    }

    pub(super) fn load(disk: Arc<dyn Disk>, access: Access) -> Result<(Self, Opened)> {
        let names = disk.list("")?;
        let numbers: BTreeSet<u64> = names.iter().filter_map(|name| number_in(name)).collect();
        let last_aside = disk.list(ASIDE)?.iter().filter_map(|name| number_in(name)).max();
        let mut opened = Opened::default();
        let state = opened.load_state(&*disk, !numbers.is_empty())?;
        let last = numbers.last().copied().max(last_aside);
        opened.next = state.next.max(last.map_or(1, |last| last + 1));
        opened.missing = state.segments.keys().copied().filter(|number| !numbers.contains(number)).collect();
        opened.unfinished.extend(names.into_iter().filter(|name| name.ends_with(NEW)));
        let mut live = BTreeMap::new();
        for number in numbers {
            let acked = state.segments.get(&number).cloned().or_else(|| opened.has_lost_state.then(Acked::new));
            match Segment::load(&*disk, number, access, acked.as_ref()) {
                Ok(Some((segment, _))) if acked.is_none() && segment.parts.is_empty() => {
                    opened.unfinished.push(file_name(number));
                }
                Ok(Some((segment, is_torn))) => {
                    opened.torn.extend(is_torn.then_some(number));
                    live.insert(number, Slot::Ready(segment));
                }
                Ok(None) => opened.aside.push(file_name(number)),
                Err(error) if error.kind() == Kind::Newer => return Err(error),
                Err(error) => {
                    let error = Arc::new(error);
                    opened.errors.push(Arc::clone(&error));
                    live.insert(number, Slot::Unreadable(error, acked.unwrap_or_default()));
                }
            }
        }
        let segments = Arc::new(Mutex::new(Segments { live, is_unsaved: false }));
        Ok((Self { disk, access, segments }, opened))
    }

    pub(super) fn segments(&self) -> MutexGuard<'_, Segments> {
        self.segments.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What waits, by lane.
    pub fn lanes(&self) -> BTreeMap<String, Size> {
        let mut lanes: BTreeMap<String, Size> = BTreeMap::new();
        for segment in self.segments().ready() {
            for (lane, part) in segment.parts.iter().filter(|(_, part)| part.left > 0) {
                let index = part.offsets.iter().position(|offset| *offset != 0).unwrap_or(0);
                let first = Size { first: number_of(segment.number, index), ..Size::default() };
                let size = lanes.entry(lane.clone()).or_insert(first);
                size.records += u64::from(part.left);
                size.bytes += part.bytes;
            }
        }
        lanes
    }

    /// When the first event that waits in a lane was received. Reads it.
    pub fn oldest(&self, lane: &str) -> Option<Timestamp> {
        let first = self.read(lane, 0, 1, 1).items.into_iter().next()?;
        first.entry.ok().map(|entry| entry.received)
    }

    /// Bytes of the segments' files, as far as they can be read.
    pub fn file_bytes(&self) -> u64 {
        self.segments().ready().map(|segment| segment.file_bytes).sum()
    }

    /// How many damaged and how many missing frames were found when segments without an index were scanned.
    pub fn damaged(&self) -> (u32, u32) {
        let segments = self.segments();
        segments.ready().fold((0, 0), |sum, segment| (sum.0 + segment.damaged, sum.1 + segment.missing))
    }

    /// Segments that cannot be read, and why.
    pub fn unreadable(&self) -> BTreeMap<u64, Arc<DiskError>> {
        let segments = self.segments();
        let why = |(number, slot): (&u64, &Slot)| match slot {
            Slot::Unreadable(why, _) => Some((*number, Arc::clone(why))),
            Slot::Ready(_) => None,
        };
        segments.live.iter().filter_map(why).collect()
    }

    /// Tries to read the unreadable segments again, and returns those that can be read now. Their entries may have lower numbers than
    /// what was read meanwhile.
    pub fn retry_unreadable(&self) -> BTreeSet<u64> {
        let unreadable = self.unreadable().into_keys();
        unreadable.filter(|number| self.retry(*number)).collect()
    }

    /// Loads a segment again, with what is acked of it.
    pub(super) fn retry(&self, number: u64) -> bool {
        let Some(acked) = self.segments().live.get(&number).map(Slot::acked) else { return false };
        let slot = match Segment::load(&*self.disk, number, self.access, Some(&acked)) {
            Ok(Some((segment, _))) => Slot::Ready(segment),
            Ok(None) => return false, // the next start puts it aside
            Err(error) => Slot::Unreadable(Arc::new(error), acked),
        };
        let is_ready = matches!(slot, Slot::Ready(_));
        self.segments().live.insert(number, slot);
        is_ready
    }

    /// Acks an entry; [`super::Log::tidy`] saves that. `false`: it was acked before, or is not there.
    pub fn ack(&self, lane: &str, number: u64) -> bool {
        let index = usize::try_from(number % SPAN).unwrap_or(usize::MAX);
        let ack = |segment: &mut Segment| segment.parts.get_mut(lane).is_some_and(|part| part.ack(index));
        let mut segments = self.segments();
        let is_new = segments.change(number / SPAN, ack).unwrap_or(false);
        segments.is_unsaved |= is_new;
        is_new
    }

    /// Entries of a lane that are not acked, in order, from a number on: at most `records_max`, and none behind the one whose bytes pass
    /// `bytes_max`. An empty page is the end of the lane.
    pub fn read(&self, lane: &str, from: u64, records_max: usize, bytes_max: usize) -> Page {
        let mut page = Page { next: from, ..Page::default() };
        let mut bytes = 0;
        while page.items.len() < records_max && bytes < bytes_max {
            let Some(piece) = self.piece(lane, records_max, &mut page) else { break };
            let mut source = ReadAhead::new(&*piece.file, u64::from(piece.end), piece.ahead());
            for (index, offset) in &piece.frames {
                let Some(item) = self.item(lane, &piece, &mut source, *index, *offset) else { break };
                (page.next, bytes) = (item.number + 1, bytes + item.bytes);
                page.items.push(item);
                if matches!(page.items.last(), Some(Item { entry: Err(Broken::Unread(_)), .. })) {
                    return page;
                }
                if bytes >= bytes_max {
                    break;
                }
            }
        }
        page
    }

    /// The next frames of a page, as far as they are in one segment.
    fn piece(&self, lane: &str, records_max: usize, page: &mut Page) -> Option<Piece> {
        for (&segment, slot) in self.segments().live.range(page.next / SPAN..) {
            let Slot::Ready(Segment { file, end, parts, .. }) = slot else {
                page.unread.insert(segment);
                continue;
            };
            let Some(part) = parts.get(lane).filter(|part| part.left > 0) else { continue };
            let from = usize::try_from(page.next.saturating_sub(number_of(segment, 0))).unwrap_or(usize::MAX);
            let frames = (0..).zip(part.offsets.iter().copied()).skip(from).filter(|(_, offset)| *offset != 0);
            let frames: Vec<_> = frames.take(records_max - page.items.len()).collect();
            if !frames.is_empty() {
                return Some(Piece { segment, file: Arc::clone(file), end: *end, frames });
            }
        }
        None
    }

    /// `None`: the segment was removed or copied meanwhile.
    fn item(&self, lane: &str, piece: &Piece, source: &mut ReadAhead<'_>, index: u32, offset: u32) -> Option<Item> {
        let number = number_of(piece.segment, index as usize);
        let found = source.frame(piece.segment, offset).map(|found| {
            let found = found.filter(|(frame, _)| frame.lane == lane && frame.index == index);
            found.and_then(|(frame, bytes)| Some((frame.to_entry()?, bytes)))
        });
        let raw = match found {
            Ok(Some((entry, bytes))) => return Some(Item { number, bytes, entry: Ok(entry) }),
            _ if !self.is_there(lane, piece, index) => return None,
            Ok(None) => piece.raw(source, offset),
            Err(error) => Err(error),
        };
        let bytes = raw.as_ref().map_or(0, Vec::len);
        let broken = raw.map_or_else(|error| Broken::Unread(Arc::new(error)), Broken::Damaged);
        Some(Item { number, bytes, entry: Err(broken) })
    }

    fn is_there(&self, lane: &str, piece: &Piece, index: u32) -> bool {
        let is_there = |segment: &mut Segment| {
            let offset = segment.parts.get(lane).and_then(|part| part.offsets.get(index as usize));
            Arc::ptr_eq(&segment.file, &piece.file) && offset.is_some_and(|offset| *offset != 0)
        };
        self.segments().change(piece.segment, is_there).unwrap_or(false)
    }

    /// Calls `visit` with every entry that is not acked, lane by lane, until it returns `false`, and `progress` now and then with the
    /// number of records that are done and the number of all. Returns the segments that could not be read.
    pub fn scan(&self, mut visit: impl FnMut(&str, Item) -> bool, mut progress: impl FnMut(u64, u64)) -> BTreeSet<u64> {
        let (lanes, mut unread) = (self.lanes(), BTreeSet::new());
        let (mut done, total) = (0, lanes.values().map(|size| size.records).sum());
        for (lane, size) in lanes {
            let mut from = size.first;
            loop {
                progress(done, total);
                let page = self.read(&lane, from, 1000, 4 << 20);
                unread.extend(page.unread);
                if page.items.is_empty() {
                    break;
                }
                (from, done) = (page.next, done + page.items.len() as u64);
                if !page.items.into_iter().all(|item| visit(&lane, item)) {
                    return unread;
                }
            }
        }
        unread
    }

    /// Reads each segment from end to end. Calls `progress` with the number of segments that are done and the number of all.
    pub fn verify(&self, mut progress: impl FnMut(usize, usize)) -> BTreeMap<u64, Result<Verified>> {
        let numbers: Vec<u64> = self.segments().ready().map(|segment| segment.number).collect();
        let mut verified = BTreeMap::new();
        for (done, number) in numbers.iter().copied().enumerate() {
            progress(done, numbers.len());
            let copy = |segment: &mut Segment| {
                let copy = Segment::new(number, Arc::clone(&segment.file), u64::from(segment.end));
                (Segment { missing: segment.missing, ..copy }, segment.acked())
            };
            let Some((mut copy, acked)) = self.segments().change(number, copy) else { continue };
            let scanned = copy.scan(u32::MAX, Some(&acked));
            // A file that was emptied or replaced meanwhile looks damaged.
            let is_same = |segment: &mut Segment| Arc::ptr_eq(&segment.file, &copy.file) && !segment.is_drained();
            if self.segments().change(number, is_same) == Some(true) {
                let frames = copy.parts.values().map(|part| u64::from(part.left)).sum();
                let Segment { damaged, missing, .. } = copy;
                verified.insert(number, scanned.map(|_| Verified { frames, damaged, missing }));
            }
        }
        verified
    }
}

impl Piece {
    /// How much to read at once: frames that lie close together are read together.
    fn ahead(&self) -> usize {
        const CLOSE: usize = 8 << 10;
        let offset = |frame: Option<&(u32, u32)>| frame.map_or(0, |(_, offset)| *offset as usize);
        let span = offset(self.frames.last()).saturating_sub(offset(self.frames.first()));
        if span < self.frames.len() * CLOSE { 256 << 10 } else { 4 << 10 }
    }

    /// What is there instead of a frame, as far as the next one.
    fn raw(&self, source: &mut ReadAhead<'_>, offset: u32) -> Result<Vec<u8>> {
        let next = source.next_frame(self.segment, offset + 1)?.unwrap_or(self.end);
        source.get(offset, (next - offset) as usize).map(<[u8]>::to_vec)
    }
}

impl Opened {
    fn load_state(&mut self, disk: &dyn Disk, has_segments: bool) -> Result<State> {
        match State::load(disk) {
            Ok(Some(state)) => return Ok(state),
            Ok(None) => self.aside.push(state::FILE.to_owned()),
            Err(error) if error.kind() == Kind::Newer => return Err(error),
            Err(error) if error.kind() == Kind::Gone && !has_segments => return Ok(State::default()),
            Err(error) => self.errors.push(Arc::new(error)),
        }
        self.has_lost_state = true;
        Ok(State::default())
    }
}

/// The number of the segment whose file has this name.
fn number_in(name: &str) -> Option<u64> {
    name.strip_suffix(".seg")?.parse().ok().filter(|number| file_name(*number) == name)
}
