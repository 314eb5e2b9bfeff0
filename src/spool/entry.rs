//! A record as it lies on the disk: self-contained, checksummed, in a format that later versions still read.
//!
//! The store has checksums of its own, but looks at them only when it repairs itself; an event must not reach Kafka
//! altered because a disk has changed a bit meanwhile.

use std::borrow::Cow;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::event::Record;
use crate::outcome::DeadLetterReason;

/// A record with what must be known of it later.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub record: Record,
    /// When it was accepted.
    pub spooled: Timestamp,
    /// Why it was parked, if it was.
    pub parked: Option<Parked>,
}

/// Why a record cannot be published as it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parked {
    /// A word of a closed list: the label of metrics and the header `dead-letter-reason`.
    pub reason: String,
    /// What Kafka said.
    pub error: String,
    /// When, in milliseconds since 1970.
    pub at_ms: i64,
}

/// Why bytes are no entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    #[error("its checksum does not fit: the disk has changed it")]
    Corrupted,
    #[error("it was written by a newer version of livechat-relay")]
    Newer,
}

/// The formats, by the number that postcard writes first. A new one is added at the end; none is ever taken away.
#[derive(Serialize, Deserialize)]
enum Format<'a> {
    #[serde(borrow)]
    V1(V1<'a>),
}

#[derive(Serialize, Deserialize)]
struct V1<'a> {
    topic: &'a str,
    key: &'a str,
    #[serde(borrow)]
    headers: Vec<(&'a str, &'a str)>,
    spooled_ms: i64,
    parked: Option<Parked>,
    #[serde(with = "serde_bytes")]
    value: &'a [u8],
}

/// The reason of entries that could not be read.
pub const CORRUPTED: &str = DeadLetterReason::Corrupted.label();

/// Bytes that a checksum takes, at the head of an entry.
const SUM: usize = 4;

impl Entry {
    pub fn new(record: Record) -> Self {
        Self { record, spooled: Timestamp::now(), parked: None }
    }

    /// Whether its value is what was left of an entry that could not be read: nothing to be published.
    pub fn is_corrupted(&self) -> bool {
        self.parked.as_ref().is_some_and(|parked| parked.reason == CORRUPTED)
    }

    /// The checksum of all that follows, then that.
    pub fn encode(&self) -> Vec<u8> {
        let Record { topic, key, headers, value } = &self.record;
        let v1 = V1 {
            topic,
            key,
            headers: headers.iter().map(|(name, value)| (name.as_ref(), value.as_ref())).collect(),
            spooled_ms: self.spooled.as_millisecond(),
            parked: self.parked.clone(),
            value,
        };
        let mut bytes = Vec::with_capacity(value.len() + 512);
        bytes.extend([0; SUM]);
        let mut bytes = postcard::to_extend(&Format::V1(v1), bytes).expect("memory takes what is written");
        let sum = crc32fast::hash(&bytes[SUM..]);
        bytes[..SUM].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    /// # Errors
    /// [`Unreadable`]; what it was is then only known by the lane that it stands in.
    pub fn decode(bytes: &[u8]) -> Result<Self, Unreadable> {
        let (sum, rest) = bytes.split_first_chunk::<SUM>().ok_or(Unreadable::Corrupted)?;
        if crc32fast::hash(rest) != u32::from_le_bytes(*sum) {
            return Err(Unreadable::Corrupted);
        }
        let Format::V1(v1) = postcard::from_bytes(rest).map_err(|_| Unreadable::Newer)?;
        let headers =
            v1.headers.iter().map(|(name, value)| (Cow::Owned((*name).to_owned()), Cow::Owned((*value).to_owned())));
        let record = Record {
            topic: v1.topic.into(),
            key: v1.key.to_owned(),
            headers: headers.collect(),
            value: v1.value.to_vec(),
        };
        let spooled = Timestamp::from_millisecond(v1.spooled_ms).map_err(|_| Unreadable::Corrupted)?;
        Ok(Self { record, spooled, parked: v1.parked })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn entry(key: &str, value: &[u8]) -> Entry {
        let headers = vec![(Cow::Borrowed("content-type"), "application/cloudevents+json".into())];
        let record =
            Record { topic: "livechat.incoming_event".into(), key: key.to_owned(), headers, value: value.to_vec() };
        Entry { record, spooled: Timestamp::from_millisecond(1_795_000_000_123).expect("a time"), parked: None }
    }

    #[test]
    fn version_1_is_read_for_ever() {
        let parked = Parked { reason: "too_large".into(), error: "MessageSizeTooLarge".into(), at_ms: 7 };
        let entry = Entry { parked: Some(parked), ..entry("C1", b"{}") };
        // Checksum; version; topic, key, one header; time; reason, error, time; value.
        let written = concat!(
            "20eb2263",
            "00",
            "176c697665636861742e696e636f6d696e675f6576656e74",
            "024331",
            "010c636f6e74656e742d747970651c6170706c69636174696f6e2f636c6f75646576656e74732b6a736f6e",
            "f6f9b2e5bd68",
            "0109746f6f5f6c61726765134d65737361676553697a65546f6f4c617267650e",
            "027b7d"
        );
        let bytes = entry.encode();
        let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(hex, written);
        assert_eq!(Entry::decode(&bytes), Ok(entry));
    }

    #[test]
    fn a_format_of_the_future_is_told_from_a_broken_one() {
        let mut bytes = entry("C1", b"{}").encode();
        bytes[SUM] = 1;
        assert_eq!(Entry::decode(&bytes), Err(Unreadable::Corrupted));
        let sum = crc32fast::hash(&bytes[SUM..]);
        bytes[..SUM].copy_from_slice(&sum.to_le_bytes());
        assert_eq!(Entry::decode(&bytes), Err(Unreadable::Newer));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_and_a_changed_bit_is_noticed(key in ".{0,40}", value: Vec<u8>, at: usize, bit in 0_u8..8) {
            let entry = entry(&key, &value);
            let mut bytes = entry.encode();
            prop_assert_eq!(Entry::decode(&bytes), Ok(entry));
            let at = at % bytes.len();
            bytes[at] ^= 1 << bit;
            prop_assert_eq!(Entry::decode(&bytes), Err(Unreadable::Corrupted));
            prop_assert_eq!(Entry::decode(&bytes[..at]), Err(Unreadable::Corrupted));
        }
    }
}
