//! One segment: where in its file the frames of each lane are, and which of them are acked.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::disk::{Cause, Disk, DiskError, DiskFile, Result};
use super::entry::Frame;
use super::state::Saved;
use super::{u32_at, u32_of, u64_at};

/// Bytes of a segment's header.
pub const HEADER: u32 = 28;
const MAGIC: &[u8; 8] = b"LCRSPOOL";
const VERSION: u32 = 1;

/// Begins the index, and ends it after its offset and checksum.
const INDEX: &[u8; 8] = b"LCRINDEX";
const FOOTER: usize = 16;

/// What is read at once where all of a file is.
pub const CHUNK: usize = 1 << 20;

/// The lane of damaged bytes that nothing else says the lane of. No topic can have this name.
pub const DAMAGED: &str = "(damaged)";

pub fn file_name(number: u64) -> String {
    format!("{number}.seg")
}

/// The frames of a lane in a segment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// Where each begins; 0: it is acked, or missing.
    pub offsets: Vec<u32>,
    /// How many there are without those, and their bytes: exact while none is acked, else in proportion.
    pub left: u32,
    pub bytes: u64,
}

impl Part {
    pub fn push(&mut self, offset: u32, bytes: usize) {
        self.offsets.push(offset);
        self.left += 1;
        self.bytes += bytes as u64;
    }

    /// Returns its bytes; `None`: it was acked before, or there is no such frame.
    pub fn ack(&mut self, index: usize) -> Option<u64> {
        *self.offsets.get_mut(index).filter(|offset| **offset != 0)? = 0;
        let bytes = self.bytes / u64::from(self.left);
        self.bytes -= bytes;
        self.left -= 1;
        Some(bytes)
    }

    fn acked(&self) -> Vec<u8> {
        let bits = |eight: &[u32]| eight.iter().rev().fold(0, |bits, offset| bits << 1 | u8::from(*offset == 0));
        self.offsets.chunks(8).map(bits).collect()
    }
}

pub struct Segment {
    pub number: u64,
    pub file: Arc<dyn DiskFile>,
    /// Bytes of the file, and of its header and frames.
    pub file_bytes: u64,
    pub end: u32,
    /// What is behind this can be read, but was perhaps never synced.
    pub synced: u32,
    /// It has its index, or is empty, and takes nothing more.
    pub is_sealed: bool,
    pub parts: BTreeMap<String, Part>,
    /// Frames that do not fit their checksum, and frames that are missing in front of others.
    pub damaged: u32,
    pub missing: u32,
}

impl Segment {
    pub fn new(number: u64, file: Arc<dyn DiskFile>, file_bytes: u64) -> Self {
        let (parts, damaged, missing) = (BTreeMap::new(), 0, 0);
        Self { number, file, file_bytes, end: HEADER, synced: HEADER, is_sealed: false, parts, damaged, missing }
    }

    /// The first bytes of a file that was synced up to this offset when it got its name.
    pub fn header(number: u64, synced: u32) -> Vec<u8> {
        let bytes = [&MAGIC[..], &VERSION.to_le_bytes(), &number.to_le_bytes(), &synced.to_le_bytes()].concat();
        let sum = crc32c::crc32c(&bytes);
        [bytes, sum.to_le_bytes().to_vec()].concat()
    }

    /// Makes the file, with room for so many bytes, and makes all but its name durable.
    pub fn create(disk: &dyn Disk, number: u64, room: u32) -> Result<Self> {
        let (name, room) = (file_name(number), u64::from(room));
        let file = disk.create(&name)?;
        let written = file.allocate(room).and_then(|()| file.write_at(0, &Self::header(number, HEADER)));
        let synced = written.and_then(|()| file.sync());
        synced.inspect_err(|_| drop(disk.unlink(&name)))?; // else the next start removes it
        Ok(Self::new(number, file, room))
    }

    /// Finds what is in the file, and whether its last commit is torn. Changes nothing. `None`: it is no segment.
    pub fn load(disk: &dyn Disk, number: u64, saved: Option<&Saved>) -> Result<Option<(Self, bool)>> {
        let name = file_name(number);
        let file = disk.open(&name)?;
        let mut segment = Self::new(number, Arc::clone(&file), file.bytes()?);
        let header = segment.read(0, segment.file_bytes.min(u64::from(HEADER)) as usize)?;
        if header.is_empty() || (saved.is_none() && header.iter().all(|byte| *byte == 0)) {
            // All of it was acked, or the process ended before it was begun.
            return Ok(Some((Self { is_sealed: true, ..segment }, false)));
        }
        let version = u32_at(&header, 8);
        let is_ours = header.starts_with(MAGIC) && header.len() == HEADER as usize && u64_at(&header, 12) == number;
        if !is_ours || crc32c::crc32c(&header[..24]) != u32_at(&header, 24) {
            return Ok(None);
        }
        if version != VERSION {
            return Err(DiskError::new("read", disk.path(&name), Cause::Newer(version)));
        }
        let is_torn = !segment.read_index()? && segment.scan(u32_at(&header, 20), saved)?;
        segment.ack_all(saved);
        Ok(Some((segment, is_torn)))
    }

    /// To read its frames.
    pub fn source(&self) -> Frames {
        Frames { file: Arc::clone(&self.file), segment: self.number, end: self.end }
    }

    pub fn is_drained(&self) -> bool {
        self.parts.values().all(|part| part.left == 0)
    }

    pub fn bytes_left(&self) -> u64 {
        self.parts.values().map(|part| part.bytes).sum()
    }

    pub fn saved(&self) -> Saved {
        let parts = self.parts.iter().filter(|(_, part)| (part.left as usize) < part.offsets.len());
        Saved { synced: self.synced, acked: parts.map(|(lane, part)| (lane.clone(), part.acked())).collect() }
    }

    pub fn ack_all(&mut self, saved: Option<&Saved>) {
        for (lane, part) in &mut self.parts {
            let frames = 0..part.offsets.len();
            let acked = frames.filter(|index| is_acked(saved, lane, *index));
            acked.for_each(|index| _ = part.ack(index));
        }
    }

    /// Finds the frames by reading the file, and returns whether its last commit is torn. A bad frame that was synced is damage, and the
    /// frames behind it are good. One that was perhaps not synced belongs to a torn commit: the segment ends in front of it.
    fn scan(&mut self, synced: u32, saved: Option<&Saved>) -> Result<bool> {
        let mut synced = synced.max(saved.map_or(0, |saved| saved.synced));
        let limit = u32::try_from(self.file_bytes).unwrap_or(u32::MAX);
        let frames = Frames { file: Arc::clone(&self.file), segment: self.number, end: limit };
        let (mut found, mut offset) = (Vec::new(), HEADER);
        while offset < limit && frames.get(offset, INDEX.len())? != INDEX {
            let bytes = frames.bytes(offset)?;
            let frame = frames.frame(offset, &bytes).map(|frame| {
                synced = synced.max(frame.synced);
                (frame.lane.to_owned(), frame.index as usize, bytes.len())
            });
            let next = if frame.is_some() {
                offset + u32_of(bytes.len())
            } else {
                frames.next(offset + 1)?.unwrap_or(if offset < synced { synced.min(limit) } else { limit })
            };
            found.push((offset, next, frame));
            offset = next;
        }
        let end = found.iter().position(|(offset, _, frame)| frame.is_none() && *offset >= synced);
        self.end = end.map_or(offset, |end| found[end].0);
        self.synced = synced.min(self.end);
        // Behind a last commit that is whole are zeros.
        let has_more = end.is_some_and(|end| end + 1 < found.len());
        let is_torn = has_more || (end.is_some() && frames.has_more(self.end)?);
        for (offset, next, frame) in found.into_iter().take(end.unwrap_or(usize::MAX)) {
            self.damaged += u32::from(frame.is_none());
            let (lane, index, bytes) = frame.unwrap_or((DAMAGED.to_owned(), 0, (next - offset) as usize));
            let part = self.parts.entry(lane.clone()).or_default();
            while part.offsets.len() < index {
                self.missing += u32::from(!is_acked(saved, &lane, part.offsets.len()));
                part.offsets.push(0);
            }
            part.push(offset, bytes);
        }
        self.missing += u32::from(saved.is_some_and(|saved| saved.synced > limit)); // at least one
        Ok(is_torn)
    }

    /// What is written behind the last frame of a segment that takes nothing more.
    pub fn index(&self) -> Vec<u8> {
        let index = (&self.parts, self.damaged, self.missing);
        let mut bytes = postcard::to_extend(&index, INDEX.to_vec()).expect("memory takes what is written");
        bytes.extend(self.end.to_le_bytes());
        let sum = self.index_sum(&bytes);
        bytes.extend(sum.to_le_bytes());
        bytes.extend(INDEX);
        bytes
    }

    /// Bytes that the index takes at most, after a commit of so many frames more.
    pub fn index_bytes_max(&self, more: usize) -> usize {
        let frames = self.parts.values().map(|part| part.offsets.len()).sum();
        index_bytes_max(self.parts.len(), frames, more)
    }

    /// `false`: it has no index that fits its checksum.
    fn read_index(&mut self) -> Result<bool> {
        let Some(start) = self.file_bytes.checked_sub(FOOTER as u64) else { return Ok(false) };
        let footer = self.read(start, FOOTER)?;
        let end = u32_at(&footer, 0);
        if !footer.ends_with(INDEX) || u64::from(end) > start {
            return Ok(false);
        }
        let bytes = self.read(u64::from(end), usize::try_from(start - u64::from(end)).unwrap_or(0) + 4)?;
        let index = bytes.get(INDEX.len()..).filter(|_| self.index_sum(&bytes) == u32_at(&footer, 4));
        let Some(Ok((parts, damaged, missing))) = index.map(postcard::from_bytes) else { return Ok(false) };
        (self.parts, self.damaged, self.missing) = (parts, damaged, missing);
        (self.end, self.synced, self.is_sealed) = (end, end, true);
        Ok(true)
    }

    fn index_sum(&self, bytes: &[u8]) -> u32 {
        crc32c::crc32c_append(crc32c::crc32c(&self.number.to_le_bytes()), bytes)
    }

    fn read(&self, offset: u64, length: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0; length];
        self.file.read_at(offset, &mut bytes).map(|()| bytes)
    }
}

/// Bytes of an index of so many lanes and frames at most, and of more frames, each perhaps of a lane of its own.
pub fn index_bytes_max(lanes: usize, frames: usize, more: usize) -> usize {
    const LANE: usize = 300; // a topic's name has at most 249 bytes
    const OFFSET: usize = 5;
    INDEX.len() + FOOTER + (1 + lanes + more) * LANE + (frames + more) * OFFSET
}

fn is_acked(saved: Option<&Saved>, lane: &str, index: usize) -> bool {
    let bits = saved.and_then(|saved| saved.acked.get(lane)?.get(index / 8));
    bits.is_some_and(|bits| bits >> (index % 8) & 1 == 1)
}

/// The frames of a segment, read one by one: what is read ahead could have a bad sector that is not asked for.
pub struct Frames {
    pub file: Arc<dyn DiskFile>,
    pub segment: u64,
    pub end: u32,
}

impl Frames {
    /// So many bytes from an offset on, as far as the frames reach.
    pub fn get(&self, offset: u32, length: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0; length.min(self.end.saturating_sub(offset) as usize)];
        self.file.read_at(u64::from(offset), &mut bytes).map(|()| bytes)
    }

    /// Whether there is anything but zeros from an offset on: a disk may lose the beginning of a commit and keep the rest.
    fn has_more(&self, mut offset: u32) -> Result<bool> {
        while offset < self.end {
            let chunk = self.get(offset, CHUNK)?;
            if chunk.iter().any(|byte| *byte != 0) {
                return Ok(true);
            }
            offset += u32_of(chunk.len());
        }
        Ok(false)
    }

    /// The bytes that the frame at an offset would have; none: no frame begins there.
    pub fn bytes(&self, offset: u32) -> Result<Vec<u8>> {
        // None is longer than what there is: a chat's text may look like the beginning of a frame.
        let length = Frame::bytes(&self.get(offset, Frame::HEAD)?)
            .filter(|length| *length <= self.end.saturating_sub(offset) as usize);
        length.map_or(Ok(Vec::new()), |length| self.get(offset, length))
    }

    /// `None`: its bytes are no frame that fits its checksum.
    pub fn frame<'a>(&self, offset: u32, bytes: &'a [u8]) -> Option<Frame<'a>> {
        Frame::read(self.segment, offset, bytes)
    }

    /// Where the next frame begins, from an offset on.
    pub fn next(&self, mut offset: u32) -> Result<Option<u32>> {
        while offset < self.end {
            let chunk = self.get(offset, CHUNK)?;
            for (at, bytes) in (offset..).zip(chunk.windows(Frame::MAGIC.len())) {
                if bytes == Frame::MAGIC && self.frame(at, &self.bytes(at)?).is_some() {
                    return Ok(Some(at));
                }
            }
            offset += u32_of(chunk.len().saturating_sub(Frame::MAGIC.len())) + 1;
        }
        Ok(None)
    }
}
