//! Reads the log lane by lane while it is written, and notes what is acked. There is one lock, which is never held during disk I/O.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;

use super::disk::{ASIDE, Disk, DiskError, Kind, Result};
use super::entry::Entry;
use super::segment::{Frames, HEADER, Part, Segment, file_name};
use super::state::{self, Saved, State};
use super::{NEW, SPAN, number_of, u32_of};

/// Reads the log. Clones share it.
#[derive(Clone)]
pub struct Reader {
    pub(super) disk: Arc<dyn Disk>,
    segments: Arc<Mutex<Segments>>,
    /// Segments that were missing when the log was opened.
    missing: Arc<[u64]>,
}

#[derive(Default)]
pub struct Segments {
    pub live: BTreeMap<u64, Slot>,
    /// What is not acked of those that can be read.
    lanes: BTreeMap<String, Size>,
    /// The file of the state is older than this.
    pub is_unsaved: bool,
}

pub enum Slot {
    Ready(Segment),
    /// Why it cannot be read, and what is known of it.
    Unreadable(Arc<DiskError>, Saved),
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

/// What is at a place of a lane.
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
    /// It may be read another time.
    Unread(Arc<DiskError>),
}

/// What is not acked of a lane.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Size {
    pub records: u64,
    /// Exact while nothing of a segment is acked, else in proportion.
    pub bytes: u64,
}

/// Frames of a lane in one segment: index and offset.
struct Piece {
    source: Frames,
    frames: Vec<(u32, u32)>,
}

impl Segments {
    pub fn ready(&self) -> impl Iterator<Item = &Segment> {
        self.live.values().filter_map(Slot::segment)
    }

    /// `None`: there is no such segment that can be read.
    pub fn change<T>(&mut self, number: u64, change: impl FnOnce(&mut Segment) -> T) -> Option<T> {
        if let Some(Slot::Ready(segment)) = self.live.get_mut(&number) { Some(change(segment)) } else { None }
    }

    /// Takes in a segment, in place of the one of its number.
    pub fn set(&mut self, number: u64, slot: Slot) {
        for (lane, part) in slot.parts() {
            let size = self.lanes.entry(lane.clone()).or_default();
            (size.records, size.bytes) = (size.records + u64::from(part.left), size.bytes + part.bytes);
        }
        let Some(former) = self.live.insert(number, slot) else { return };
        for (lane, part) in former.parts() {
            let size = self.lanes.entry(lane.clone()).or_default();
            (size.records, size.bytes) = (size.records - u64::from(part.left), size.bytes - part.bytes);
        }
    }

    /// Takes in a frame.
    pub fn push(&mut self, number: u64, lane: &str, offset: u32, bytes: usize) {
        self.change(number, |segment| segment.parts.entry(lane.to_owned()).or_default().push(offset, bytes));
        let size = self.lanes.entry(lane.to_owned()).or_default();
        (size.records, size.bytes) = (size.records + 1, size.bytes + bytes as u64);
    }
}

impl Slot {
    fn segment(&self) -> Option<&Segment> {
        if let Self::Ready(segment) = self { Some(segment) } else { None }
    }

    fn parts(&self) -> impl Iterator<Item = (&String, &Part)> {
        self.segment().into_iter().flat_map(|segment| &segment.parts)
    }

    pub fn saved(&self) -> Saved {
        match self {
            Self::Ready(segment) => segment.saved(),
            Self::Unreadable(_, saved) => saved.clone(),
        }
    }
}

impl Reader {
    /// Opens the log of a relay that is stopped, however it ended. Changes nothing and locks nothing.
    ///
    /// # Errors
    /// [`Kind::Newer`]; whatever keeps the directory from being listed.
    pub fn open(disk: Arc<dyn Disk>) -> Result<(Self, Opened)> {
        let names = disk.list("")?;
        let numbers: BTreeSet<u64> = names.iter().filter_map(|name| number_in(name)).collect();
        let last_aside = disk.list(ASIDE)?.iter().filter_map(|name| number_in(name)).max();
        let mut opened = Opened::default();
        let state = opened.load_state(&*disk, !numbers.is_empty())?;
        let last = numbers.last().copied().max(last_aside);
        opened.next = state.next.max(last.map_or(1, |last| last + 1));
        opened.missing = state.segments.keys().copied().filter(|number| !numbers.contains(number)).collect();
        opened.unfinished.extend(names.into_iter().filter(|name| name.ends_with(NEW)));
        let mut segments = Segments::default();
        for number in numbers {
            let saved = state.segments.get(&number).cloned().or_else(|| opened.has_lost_state.then(Saved::default));
            match Segment::load(&*disk, number, saved.as_ref()) {
                Ok(Some((segment, _))) if saved.is_none() && segment.parts.is_empty() => {
                    opened.unfinished.push(file_name(number));
                }
                Ok(Some((segment, is_torn))) => {
                    opened.torn.extend(is_torn.then_some(number));
                    segments.set(number, Slot::Ready(segment));
                }
                Ok(None) => opened.aside.push(file_name(number)),
                Err(error) if error.kind() == Kind::Newer => return Err(error),
                Err(error) => {
                    let error = Arc::new(error);
                    opened.errors.push(Arc::clone(&error));
                    segments.set(number, Slot::Unreadable(error, saved.unwrap_or_default()));
                }
            }
        }
        let missing = opened.missing.clone().into();
        Ok((Self { disk, segments: Arc::new(Mutex::new(segments)), missing }, opened))
    }

    pub(super) fn segments(&self) -> MutexGuard<'_, Segments> {
        self.segments.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What waits, by lane.
    pub fn lanes(&self) -> BTreeMap<String, Size> {
        let segments = self.segments();
        segments.lanes.iter().filter(|(_, size)| size.records > 0).map(|(lane, size)| (lane.clone(), *size)).collect()
    }

    /// What waits in a lane.
    pub fn size(&self, lane: &str) -> Size {
        self.segments().lanes.get(lane).copied().unwrap_or_default()
    }

    /// When the first event that waits in a lane was received. Reads it.
    pub fn oldest(&self, lane: &str) -> Option<Timestamp> {
        let first = self.read(lane, 0, 1, 1).into_iter().next()?;
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

    /// Whether its directory has another log, or none, where this one was opened.
    pub fn is_replaced(&self) -> bool {
        self.disk.is_replaced()
    }

    /// Whether it has each segment in which the other one has something left: one of that number which begins with the same frame, for
    /// another directory has its own first segment. Reads them.
    pub fn has_all_of(&self, other: &Self) -> bool {
        let left: Vec<_> = other.segments().ready().filter(|of| !of.is_drained()).map(Segment::source).collect();
        let ours = |number| self.segments().change(number, |segment| segment.source());
        left.into_iter().all(|theirs| match (ours(theirs.segment), theirs.bytes(HEADER)) {
            (Some(ours), Ok(first)) => !first.is_empty() && ours.bytes(HEADER).is_ok_and(|ours| ours == first),
            _ => false,
        })
    }

    /// Files that were put aside, as far as that can be told.
    pub fn aside(&self) -> Vec<PathBuf> {
        let names = self.disk.list(ASIDE).unwrap_or_default();
        names
            .iter()
            .filter(|name| !name.starts_with('.'))
            .map(|name| self.disk.path(&format!("{ASIDE}/{name}")))
            .collect()
    }

    /// Files of segments that were missing when the log was opened.
    pub fn missing(&self) -> Vec<PathBuf> {
        self.missing.iter().map(|number| self.disk.path(&file_name(*number))).collect()
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

    /// Loads a segment again, with what is known of it.
    pub(super) fn retry(&self, number: u64) -> bool {
        let Some(saved) = self.segments().live.get(&number).map(Slot::saved) else { return false };
        let slot = match Segment::load(&*self.disk, number, Some(&saved)) {
            Ok(Some((segment, _))) => Slot::Ready(segment),
            Ok(None) => return false, // the next start puts it aside
            Err(error) => Slot::Unreadable(Arc::new(error), saved),
        };
        let is_ready = matches!(slot, Slot::Ready(_));
        self.segments().set(number, slot);
        is_ready
    }

    /// Acks an entry; [`super::Log::tidy`] saves that. `false`: it was acked before, or is not there.
    pub fn ack(&self, lane: &str, number: u64) -> bool {
        let index = usize::try_from(number % SPAN).unwrap_or(usize::MAX);
        let mut segments = self.segments();
        let ack = |segment: &mut Segment| segment.parts.get_mut(lane).and_then(|part| part.ack(index));
        let Some(bytes) = segments.change(number / SPAN, ack).flatten() else { return false };
        let size = segments.lanes.entry(lane.to_owned()).or_default();
        (size.records, size.bytes) = (size.records - 1, size.bytes - bytes);
        segments.is_unsaved = true;
        true
    }

    /// Whether an entry is known to be acked. Of a segment that cannot be read it is not known.
    pub fn is_acked(&self, lane: &str, number: u64) -> bool {
        let index = usize::try_from(number % SPAN).unwrap_or(usize::MAX);
        match self.segments().live.get(&(number / SPAN)) {
            Some(Slot::Ready(segment)) => {
                segment.parts.get(lane).and_then(|part| part.offsets.get(index)).is_none_or(|offset| *offset == 0)
            }
            Some(Slot::Unreadable(..)) => false,
            None => true,
        }
    }

    /// Entries of a lane that are not acked, in order, from a number on: at most `records_max`, and none behind the one whose bytes pass
    /// `bytes_max`. None at the end of the lane.
    pub fn read(&self, lane: &str, from: u64, records_max: usize, bytes_max: usize) -> Vec<Item> {
        let (mut items, mut next, mut bytes) = (Vec::new(), from, 0);
        while items.len() < records_max && bytes < bytes_max {
            let Some(piece) = self.piece(lane, next, records_max - items.len()) else { break };
            for (index, offset) in &piece.frames {
                let Some(item) = self.item(lane, &piece.source, *index, *offset) else { break };
                (next, bytes) = (item.number + 1, bytes + item.bytes);
                items.push(item);
                if bytes >= bytes_max {
                    break;
                }
            }
        }
        items
    }

    /// The next frames of a lane, as far as they are in one segment.
    fn piece(&self, lane: &str, next: u64, records_max: usize) -> Option<Piece> {
        let segments = self.segments();
        let ready = segments.live.range(next / SPAN..).filter_map(|(_, slot)| slot.segment());
        let parts = ready.filter_map(|segment| Some((segment, segment.parts.get(lane).filter(|part| part.left > 0)?)));
        let pieces = parts.map(|(segment, part)| {
            let from = usize::try_from(next.saturating_sub(number_of(segment.number, 0))).unwrap_or(usize::MAX);
            let frames = part.offsets.iter().copied().enumerate().skip(from).filter(|(_, offset)| *offset != 0);
            let frames = frames.map(|(index, offset)| (u32_of(index), offset)).take(records_max).collect();
            Piece { source: segment.source(), frames }
        });
        pieces.into_iter().find(|piece| !piece.frames.is_empty())
    }

    /// `None`: the segment was removed or copied meanwhile.
    pub(super) fn item(&self, lane: &str, source: &Frames, index: u32, offset: u32) -> Option<Item> {
        let number = number_of(source.segment, index as usize);
        let read = source.bytes(offset);
        if let Ok(bytes) = &read {
            let frame = source.frame(offset, bytes).filter(|frame| frame.lane == lane && frame.index == index);
            if let Some(entry) = frame.and_then(|frame| frame.to_entry()) {
                return Some(Item { number, bytes: bytes.len(), entry: Ok(entry) });
            }
        }
        if !self.is_there(lane, source, index) {
            return None;
        }
        // What is there instead, as far as the next frame.
        let next = read.and_then(|_| source.next(offset + 1));
        let raw = next.and_then(|next| source.get(offset, (next.unwrap_or(source.end) - offset) as usize));
        let bytes = raw.as_ref().map_or(0, Vec::len);
        let broken = raw.map_or_else(|error| Broken::Unread(Arc::new(error)), Broken::Damaged);
        Some(Item { number, bytes, entry: Err(broken) })
    }

    fn is_there(&self, lane: &str, source: &Frames, index: u32) -> bool {
        let is_there = |segment: &mut Segment| {
            let offset = segment.parts.get(lane).and_then(|part| part.offsets.get(index as usize));
            Arc::ptr_eq(&segment.file, &source.file) && offset.is_some_and(|offset| *offset != 0)
        };
        self.segments().change(source.segment, is_there).unwrap_or(false)
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
