//! What the log keeps of an event, and its bytes: a frame.

use std::borrow::Cow;
use std::sync::Arc;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::u32_at;
use crate::event::Record;
use crate::outcome::DeadLetterReason;

/// An event that waits for Kafka, or a dead letter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub record: Record,
    /// Kept in milliseconds.
    pub received: Timestamp,
    pub dead_letter: Option<DeadLetter>,
}

/// The reason of dead letters that are what was left of a damaged frame.
pub const CORRUPTED: &str = DeadLetterReason::Corrupted.label();

impl Entry {
    pub fn new(record: Record) -> Self {
        Self { record, received: Timestamp::now(), dead_letter: None }
    }

    /// Whether its value is what was left of a damaged frame: nothing to be published.
    pub fn is_corrupted(&self) -> bool {
        self.dead_letter.as_ref().is_some_and(|why| why.reason == CORRUPTED)
    }

    /// Bytes of its frame, at most.
    pub fn frame_bytes_max(&self, lane: &str) -> usize {
        /// Bytes of everything but texts: numbers, and how long each text is.
        const NUMBERS: usize = 128;
        let Record { topic, key, headers, value } = &self.record;
        let headers: usize = headers.iter().map(|(name, value)| name.len() + value.len() + 10).sum();
        let dead_letter = self.dead_letter.as_ref().map_or(0, |why| why.reason.len() + why.error.len());
        NUMBERS + lane.len() + topic.len() + key.len() + headers + dead_letter + value.len()
    }
}

/// Why an event is a dead letter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeadLetter {
    /// One of a closed list.
    pub reason: String,
    /// What Kafka said.
    pub error: String,
    pub since_ms: i64,
}

/// A frame without its first 12 bytes. A change to it needs another version in the segment's header.
#[derive(Serialize, Deserialize)]
pub struct Frame<'a> {
    pub lane: &'a str,
    /// Its place among the frames of its lane in this segment, from 0.
    pub index: u32,
    /// The segment was synced up to here when the frame was written.
    pub synced: u32,
    pub received_ms: i64,
    topic: &'a str,
    key: &'a str,
    #[serde(borrow)]
    headers: Vec<(&'a str, &'a str)>,
    dead_letter: Option<DeadLetter>,
    #[serde(with = "serde_bytes")]
    value: &'a [u8],
}

impl<'a> Frame<'a> {
    pub const MAGIC: &'static [u8; 4] = b"LCRF";
    /// Bytes of magic, length and checksum.
    pub const HEAD: usize = 12;

    pub fn new(lane: &'a str, index: u32, synced: u32, entry: &'a Entry) -> Self {
        let Entry { record, received, dead_letter } = entry;
        Self {
            lane,
            index,
            synced,
            received_ms: received.as_millisecond(),
            topic: &record.topic,
            key: &record.key,
            headers: record.headers.iter().map(|(name, value)| (&**name, &**value)).collect(),
            dead_letter: dead_letter.clone(),
            value: &record.value,
        }
    }

    /// Appends the frame, which is to stand at this offset of this segment.
    pub fn write(&self, segment: u64, offset: u32, mut bytes: Vec<u8>) -> Vec<u8> {
        let start = bytes.len();
        bytes.extend([0; Self::HEAD]);
        let mut bytes = postcard::to_extend(self, bytes).expect("memory takes what is written");
        let (head, rest) = bytes[start..].split_at_mut(Self::HEAD);
        head[..4].copy_from_slice(Self::MAGIC);
        head[4..8].copy_from_slice(&u32::try_from(rest.len()).expect("a frame has less than 4 GiB").to_le_bytes());
        head[8..].copy_from_slice(&checksum(segment, offset, rest).to_le_bytes());
        bytes
    }

    /// Bytes of the frame that begins with these; `None`: none does.
    pub fn bytes(head: &[u8]) -> Option<usize> {
        (head.len() == Self::HEAD && head.starts_with(Self::MAGIC)).then(|| Self::HEAD + u32_at(head, 4) as usize)
    }

    /// `None`: it does not fit its checksum.
    pub fn read(segment: u64, offset: u32, bytes: &'a [u8]) -> Option<Self> {
        let (head, rest) = bytes.split_at_checked(Self::HEAD)?;
        let is_good = Self::bytes(head) == Some(bytes.len()) && checksum(segment, offset, rest) == u32_at(head, 8);
        if is_good { postcard::from_bytes(rest).ok() } else { None }
    }

    pub fn to_entry(&self) -> Option<Entry> {
        let owned = |text: &str| Cow::Owned(text.to_owned());
        let record = Record {
            topic: Arc::from(self.topic),
            key: self.key.to_owned(),
            headers: self.headers.iter().map(|(name, value)| (owned(name), owned(value))).collect(),
            value: self.value.to_vec(),
        };
        Some(Entry {
            record,
            received: Timestamp::from_millisecond(self.received_ms).ok()?,
            dead_letter: self.dead_letter.clone(),
        })
    }
}

/// Over the place, too: a frame counts only where it was written.
fn checksum(segment: u64, offset: u32, rest: &[u8]) -> u32 {
    let place = [&segment.to_le_bytes()[..], &offset.to_le_bytes()].concat();
    crc32c::crc32c_append(crc32c::crc32c(&place), rest)
}
