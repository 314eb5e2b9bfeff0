//! The segmented log under the spool. One writer appends to it, with one write and one sync for each call. Many readers read it, lane
//! by lane.
//!
//! A directory has the segments, `<number>.seg`; `state`, which says which of them there are and what of them is acked; `lock`; and
//! `aside/`, with files that cannot be used. Numbers of a fixed size are little-endian, checksums are CRC32C, and the rest has
//! postcard's format.
//!
//! ```text
//! segment   0  8  "LCRSPOOL"
//!           8  4  version: 1
//!          12  8  number of the segment
//!          20  4  the file was synced up to this offset when it got its name
//!          24  4  checksum of bytes 0 to 24
//!          28     frames, then zeros; in a sealed segment frames, then the index
//! frame     0  4  "LCRF"
//!           4  4  bytes from 12 on
//!           8  4  checksum of the segment's number (8 bytes), the frame's offset (4 bytes), and the bytes from 12 on
//!          12     postcard: lane, index in the lane, offset up to which the file was synced, time of receipt, topic, key, headers,
//!                 dead letter, value
//! index     0  8  "LCRINDEX"
//!           8     postcard: of each lane the frames' offsets (0: acked), their count and bytes; damaged and missing frames
//!         -16  4  offset of the index
//!         -12  4  checksum of the segment's number and all of the index in front of this
//!          -8  8  "LCRINDEX"
//! state     0  8  "LCRSTATE"
//!           8  4  version: 1
//!          12  4  checksum of the version and the bytes from 16 on
//!          16     postcard: number of the next segment; of each segment the offset up to which it is
//!                 synced, and of each of its lanes a bit for each frame that is acked
//! ```
//!
//! An entry's number is its segment's, times [`SPAN`], plus its index among the frames of its lane in that segment. So no counter has
//! to be kept, a gap within a segment shows that a frame is missing, and a segment that cannot be read for a while shares no number
//! with those that were begun meanwhile.
//!
//! All of a segment's room is allocated when it begins, so a write never meets a full disk. A segment whose write or sync has failed
//! takes nothing more, because nothing tells what the system has dropped of it.

mod disk;
mod entry;
mod read;
mod segment;
mod state;
mod verify;

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::ops::Deref;
use std::sync::Arc;

pub use disk::{Cause, Directory, Disk, DiskError, DiskFile, Kind, Result};
pub use entry::{CORRUPTED, DeadLetter, Entry};
pub use read::{Broken, Item, Opened, Reader, Size};
pub use segment::DAMAGED;
pub use verify::Verified;

use disk::ASIDE;
use entry::Frame;
use read::Slot;
use segment::{CHUNK, Frames, HEADER, Part, Segment, file_name};
use state::State;

/// How many numbers a segment has.
pub const SPAN: u64 = 100_000_000;

/// What follows the name of a file that is to replace another one.
const NEW: &str = ".new";

/// What is kept of the buffer after a large commit.
const BUFFER_KEPT: usize = 8 << 20;

#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// Bytes of a segment's file. A commit that does not fit gets a larger one.
    pub segment_bytes: u32,
}

/// The log, to be written. It is read through its [`Reader`].
pub struct Log {
    reader: Reader,
    config: Config,
    /// The number of the next segment.
    next: u64,
    active: Option<Active>,
    /// The frames of a commit.
    buffer: Vec<u8>,
    _lock: Option<File>,
}

/// The segment that takes entries.
struct Active {
    number: u64,
    file: Arc<dyn DiskFile>,
    end: u32,
    /// Bytes of its file, of which the last ones are for the index.
    room: u32,
}

impl Deref for Log {
    type Target = Reader;

    fn deref(&self) -> &Reader {
        &self.reader
    }
}

impl Log {
    /// Locks a directory and opens its log. Files that cannot be used are put aside.
    ///
    /// # Errors
    /// [`Kind::Locked`]; [`Kind::Newer`]: run the version that wrote it; whatever keeps the directory from being listed.
    pub fn open(disk: Arc<dyn Disk>, config: Config) -> Result<(Self, Opened)> {
        let lock = disk.lock()?;
        let (reader, mut opened) = Reader::open(Arc::clone(&disk))?;
        let log = Self { reader, config, next: opened.next, active: None, buffer: Vec::new(), _lock: lock };
        let aside = disk.list(ASIDE)?;
        for name in std::mem::take(&mut opened.aside) {
            let copies = (1..).map(|copy| format!("{name}.{copy}"));
            let free = std::iter::once(name.clone()).chain(copies).find(|name| !aside.contains(name));
            let moved = disk.rename(&name, &format!("{ASIDE}/{}", free.unwrap_or_default()));
            opened.errors.extend(moved.err().map(Arc::new));
            opened.aside.push(name);
        }
        let unlinked = opened.unfinished.iter().map(|name| disk.unlink(name));
        opened.errors.extend(all(unlinked).and(log.save(&[])).err().map(Arc::new)); // `begin` tries again
        Ok((log, opened))
    }

    /// Makes sure that there is a segment with room for an entry of so many bytes, and that its file is where it belongs. To be called
    /// after a failure, to find out whether the log takes entries again.
    ///
    /// # Errors
    /// As [`Log::append`].
    pub fn ready(&mut self, bytes: usize) -> Result<()> {
        let active = self.room_for(1, bytes)?;
        self.check_place(&active)?;
        self.active = Some(active);
        Ok(())
    }

    /// Looks whether the file of the segment that takes entries, if there is one, is where it belongs.
    ///
    /// # Errors
    /// As [`Log::append`].
    pub fn check(&mut self) -> Result<()> {
        let Some(active) = self.active.take() else { return Ok(()) };
        self.check_place(&active)?;
        self.active = Some(active);
        Ok(())
    }

    /// Bytes that can be appended without room on the disk, about.
    pub fn room_left(&self) -> u64 {
        self.active.as_ref().map_or(0, |active| {
            let index_bytes = self.reader.segments().change(active.number, |segment| segment.index_bytes_max(64));
            u64::from(active.room - active.end).saturating_sub(index_bytes.unwrap_or(0) as u64)
        })
    }

    /// Goes on with numbers behind those of another log.
    pub fn continue_after(&mut self, other: &Self) {
        self.next = self.next.max(other.next);
    }

    /// Appends entries to their lanes, all or none, and returns their numbers. They are durable then.
    ///
    /// # Errors
    /// The segment that had the error takes nothing more, and the next call begins another one. Where the disk does not let that segment
    /// be closed, the next start may find the entries of the failed call.
    pub fn append(&mut self, entries: &[(&str, &Entry)]) -> Result<Vec<u64>> {
        let bytes = entries.iter().map(|(lane, entry)| entry.frame_bytes_max(lane)).sum();
        let mut active = self.room_for(entries.len(), bytes)?;
        let frames = self.encode(&active, entries);
        active.file.write_at(u64::from(active.end), &self.buffer)?;
        active.file.sync()?;
        self.check_place(&active)?;
        active.end += u32_of(self.buffer.len());
        let mut segments = self.reader.segments();
        for ((lane, _), (_, offset, bytes)) in entries.iter().zip(&frames) {
            segments.push(active.number, lane, *offset, *bytes);
        }
        segments.change(active.number, |segment| (segment.end, segment.synced) = (active.end, active.end));
        drop(segments);
        self.active = Some(active); // after an error there is none
        self.buffer.shrink_to(BUFFER_KEPT);
        Ok(frames.into_iter().map(|(number, _, _)| number).collect())
    }

    /// Writes the frames into the buffer. Returns the number, the offset and the bytes of each.
    fn encode(&mut self, active: &Active, entries: &[(&str, &Entry)]) -> Vec<(u64, u32, usize)> {
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.clear();
        let mut next: BTreeMap<&str, usize> = BTreeMap::new();
        self.reader.segments().change(active.number, |segment| {
            let written = |lane: &str| segment.parts.get(lane).map_or(0, |part| part.offsets.len());
            next.extend(entries.iter().map(|(lane, _)| (*lane, written(lane))));
        });
        let mut frames = Vec::with_capacity(entries.len());
        for (lane, entry) in entries {
            let index = next.entry(lane).or_default();
            let (start, offset) = (buffer.len(), active.end + u32_of(buffer.len()));
            buffer = Frame::new(lane, u32_of(*index), active.end, entry).write(active.number, offset, buffer);
            frames.push((number_of(active.number, *index), offset, buffer.len() - start));
            *index += 1;
        }
        self.buffer = buffer;
        frames
    }

    /// The active segment, if so many frames fit into it with its index; else another one.
    fn room_for(&mut self, frames: usize, bytes: usize) -> Result<Active> {
        let index_bytes = |segment: &mut Segment| segment.index_bytes_max(frames);
        let has_room = |active: &mut Active| {
            let index_bytes = self.reader.segments().change(active.number, index_bytes);
            active.end as usize + bytes + index_bytes.unwrap_or(0) <= active.room as usize
        };
        if let Some(active) = self.active.take_if(has_room) {
            return Ok(active);
        }
        let _ = self.seal_closed(); // `tidy` tries again, and returns the error
        let room = HEADER as usize + bytes + segment::index_bytes_max(0, 0, frames);
        let too_large = |_| DiskError::new("append to", self.reader.disk.path(""), rustix::io::Errno::FBIG);
        let begun = self.begin(u32::try_from(room).map_err(too_large)?.max(self.config.segment_bytes))?;
        self.active = None; // until here it takes what is smaller
        Ok(begun)
    }

    /// Begins a segment. It has its room, and is in the state, before it has a frame.
    fn begin(&mut self, room: u32) -> Result<Active> {
        let number = self.next;
        self.next += 1;
        let disk = Arc::clone(&self.reader.disk);
        let segment = Segment::create(&*disk, number, room)?;
        let file = Arc::clone(&segment.file);
        self.reader.segments().set(number, Slot::Ready(segment)); // after an error it is empty: `tidy` removes it
        disk.sync_dir().and_then(|()| self.save(&[]))?;
        Ok(Active { number, file, end: HEADER, room })
    }

    /// A write to a file that was removed or replaced succeeds. Errors that do not tell whether it was are ignored.
    fn check_place(&self, active: &Active) -> Result<()> {
        let (disk, name) = (&self.reader.disk, file_name(active.number));
        match (disk.stat(&name), active.file.identity()) {
            (Ok(found), Ok(ours)) if found != ours => Err(DiskError::new("find", disk.path(&name), Cause::Replaced)),
            (Err(error), _) if error.kind() == Kind::Gone => Err(error),
            _ => Ok(()),
        }
    }

    /// Saves what is acked, removes segments that are acked as a whole, and writes the index of those that take nothing more. To be
    /// called about once a second. Goes on after an error. Removing needs no room on the disk.
    ///
    /// # Errors
    /// The first one. The next call tries again.
    pub fn tidy(&mut self) -> Result<()> {
        let sealed = self.seal_closed();
        self.remove_drained().and(sealed)
    }

    /// Truncates the files, which needs no room and frees theirs. They are unlinked only when the state is durable without them, so a
    /// segment that is in the state and not in the directory was lost.
    fn remove_drained(&mut self) -> Result<()> {
        let mut segments = self.reader.segments();
        let is_done = |active: &mut Active| {
            active.end > active.room / 2 && segments.change(active.number, |segment| segment.is_drained()) == Some(true)
        };
        self.active.take_if(is_done);
        let drained = segments.ready().filter(|segment| segment.is_drained() && !self.is_active(segment.number));
        let drained: Vec<_> = drained.map(|segment| (segment.number, Arc::clone(&segment.file))).collect();
        if drained.is_empty() && !segments.is_unsaved {
            return Ok(());
        }
        drained.iter().for_each(|(number, _)| _ = segments.change(*number, |segment| segment.is_sealed = true));
        drop(segments);
        let emptied = all(drained.iter().map(|(_, file)| file.truncate(0)));
        let numbers: Vec<u64> = drained.into_iter().map(|(number, _)| number).collect();
        self.save(&numbers)?;
        let unlinked = numbers.into_iter().map(|number| {
            self.reader.disk.unlink(&file_name(number))?;
            self.reader.segments().live.remove(&number);
            Ok(())
        });
        emptied.and(all(unlinked))
    }

    fn is_active(&self, number: u64) -> bool {
        self.active.as_ref().is_some_and(|active| active.number == number)
    }

    fn save(&self, without: &[u64]) -> Result<()> {
        let mut segments = self.reader.segments();
        let live = segments.live.iter().filter(|(number, _)| !without.contains(number));
        let live = live.map(|(number, slot)| (*number, slot.saved())).collect();
        segments.is_unsaved = false;
        drop(segments);
        let saved = State { next: self.next, segments: live }.save(&*self.reader.disk);
        self.reader.segments().is_unsaved |= saved.is_err();
        saved
    }

    /// Writes the index of each segment that takes nothing more, and frees the rest of its room. A segment without frames gets one, too:
    /// else the next start would find the commit that has failed there.
    fn seal_closed(&self) -> Result<()> {
        let is_closed = |segment: &&Segment| {
            let is_needed = !segment.is_drained() || segment.parts.is_empty();
            !segment.is_sealed && is_needed && !self.is_active(segment.number)
        };
        let closed: Vec<u64> = self.reader.segments().ready().filter(is_closed).map(|segment| segment.number).collect();
        all(closed.into_iter().map(|number| self.seal(number)))
    }

    fn seal(&self, number: u64) -> Result<()> {
        self.write_unsure(number)?;
        let found = |segment: &mut Segment| (Arc::clone(&segment.file), u64::from(segment.end), segment.index());
        let Some((file, end, index)) = self.reader.segments().change(number, found) else { return Ok(()) };
        let file_bytes = end + index.len() as u64;
        file.write_at(end, &index).and_then(|()| file.truncate(file_bytes)).and_then(|()| file.sync())?;
        let mut segments = self.reader.segments();
        segments.change(number, |segment| (segment.is_sealed, segment.file_bytes) = (true, file_bytes));
        segments.is_unsaved = true; // up to where it is synced
        Ok(())
    }

    /// After a failed sync and a kill the system may show a last commit that is not on the disk. It is written again.
    fn write_unsure(&self, number: u64) -> Result<()> {
        let found = |segment: &mut Segment| (Arc::clone(&segment.file), segment.synced, segment.end);
        let Some((file, synced, end)) = self.reader.segments().change(number, found) else { return Ok(()) };
        if synced == end {
            return Ok(());
        }
        let mut bytes = vec![0; (end - synced) as usize];
        file.read_at(u64::from(synced), &mut bytes)?;
        let written = file.write_at(u64::from(synced), &bytes).and_then(|()| file.sync());
        // Then it may be torn, which is not known before it is read again.
        written.inspect_err(|_| _ = self.reader.retry(number))?;
        self.reader.segments().change(number, |segment| segment.synced = end);
        Ok(())
    }

    /// Writes what is left of a segment to a smaller file under the same numbers: of the one of which least is left, if that is less
    /// than a quarter. Returns the bytes of room that are free then.
    ///
    /// # Errors
    /// The segment is as it was; [`Kind::Full`]: there is no room for the copy.
    pub fn rewrite_sparse(&mut self) -> Result<Option<u64>> {
        let segments = self.reader.segments();
        let is_sparse = |segment: &&Segment| {
            segment.is_sealed && segment.damaged == 0 && segment.bytes_left() < u64::from(segment.end / 4)
        };
        let sparsest = segments.ready().filter(is_sparse).min_by_key(|segment| segment.bytes_left());
        let Some((number, before)) = sparsest.map(|segment| (segment.number, segment.file_bytes)) else {
            return Ok(None);
        };
        drop(segments);
        let after = self.rewrite(number)?;
        Ok(Some(before.saturating_sub(after)))
    }

    /// Takes what is acked of a segment off the disk: its file is removed, or replaced by one without that.
    ///
    /// # Errors
    /// As [`Log::rewrite_sparse`]. A segment with a damaged frame is not written again before that has become a dead letter.
    pub fn erase(&mut self, number: u64) -> Result<()> {
        self.active.take_if(|active| active.number == number);
        let tidied = self.tidy();
        let is_sealed = self.reader.segments().change(number, |segment| segment.is_sealed);
        match is_sealed {
            Some(true) => self.rewrite(number).and(tidied),
            Some(false) => tidied,
            None => Ok(()),
        }
    }

    /// Replaces a sealed segment by one without what is acked. Returns the bytes of the new file.
    fn rewrite(&self, number: u64) -> Result<u64> {
        let (disk, name) = (&self.reader.disk, file_name(number));
        let new = format!("{name}{NEW}");
        disk.unlink(&new)?;
        let copied = self.copy(number, &new).and_then(|copy| disk.rename(&new, &name).map(|()| copy));
        let mut copy = copied.inspect_err(|_| drop(disk.unlink(&new)))?; // else the next try removes it
        let after = copy.file_bytes;
        let mut segments = self.reader.segments();
        segments.change(number, |segment| copy.ack_all(Some(&segment.saved())));
        segments.set(number, Slot::Ready(copy));
        drop(segments);
        disk.sync_dir()?;
        Ok(after)
    }

    /// Writes the frames of a segment that are not acked to a new file, lane by lane, with their index, and syncs it.
    fn copy(&self, number: u64, name: &str) -> Result<Segment> {
        let damaged = || DiskError::new("copy", self.reader.disk.path(&file_name(number)), io::ErrorKind::InvalidData);
        let found = |segment: &mut Segment| (Arc::clone(&segment.file), segment.end, segment.parts.clone());
        let (file, end, parts) = self.reader.segments().change(number, found).ok_or_else(damaged)?;
        let source = Frames { file, segment: number, end };
        let file = self.reader.disk.create(name)?;
        let mut copy = Segment::new(number, Arc::clone(&file), 0);
        let (mut buffer, mut written) = (Segment::header(number, u32::MAX), 0);
        for (lane, part) in parts {
            let mut new = Part::default();
            for offset in part.offsets {
                if offset == 0 {
                    new.offsets.push(0);
                    continue;
                }
                let bytes = source.bytes(offset)?;
                let Some(frame) = source.frame(offset, &bytes) else {
                    self.reader.segments().change(number, |segment| segment.damaged += 1); // it is not tried again
                    return Err(damaged());
                };
                let offset = written + u32_of(buffer.len());
                new.push(offset, bytes.len());
                buffer = frame.write(number, offset, buffer);
                if buffer.len() >= CHUNK {
                    file.write_at(u64::from(written), &buffer)?;
                    written += u32_of(buffer.len());
                    buffer.clear();
                }
            }
            copy.parts.insert(lane, new);
        }
        copy.end = written + u32_of(buffer.len());
        copy.synced = copy.end;
        buffer.extend(copy.index());
        copy.file_bytes = u64::from(written) + buffer.len() as u64;
        copy.is_sealed = true;
        file.write_at(u64::from(written), &buffer).and_then(|()| file.sync())?;
        Ok(copy)
    }

    /// Closes the log. All segments have their index then, and the next start reads no other frames.
    ///
    /// # Errors
    /// As [`Log::tidy`]. Nothing is lost by it.
    pub fn close(mut self) -> Result<()> {
        self.active = None;
        self.tidy()
    }
}

fn number_of(segment: u64, index: usize) -> u64 {
    segment * SPAN + index as u64
}

fn u32_of(bytes: usize) -> u32 {
    u32::try_from(bytes).expect("a segment has less than 4 GiB")
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |bytes| u32::from_le_bytes(*bytes))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

/// Does all of it, and returns the first error.
fn all(results: impl Iterator<Item = Result<()>>) -> Result<()> {
    results.fold(Ok(()), Result::and)
}

#[cfg(test)]
pub mod tests;
