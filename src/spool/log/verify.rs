//! Reads each entry of a segment that waits, to find out whether it can be read.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::read::{Broken, Reader, Slot};
use super::segment::{Frames, file_name};

/// What was found in a segment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verified {
    pub file: String,
    /// Entries that are good.
    pub events: u64,
    /// Entries that do not fit their checksum.
    pub damaged: u64,
    /// Entries that the disk does not give out.
    pub unreadable: u64,
    /// Entries that are not there, though later ones of their lane are.
    pub missing: u64,
    /// Why the segment cannot be read at all.
    pub error: Option<String>,
}

impl Verified {
    pub fn is_good(&self) -> bool {
        self.damaged + self.unreadable + self.missing == 0 && self.error.is_none()
    }
}

impl Reader {
    /// The numbers of the segments.
    pub fn numbers(&self) -> Vec<u64> {
        self.segments().live.keys().copied().collect()
    }

    /// Reads what waits in a segment. `None`: it was removed meanwhile.
    pub fn verify(&self, number: u64) -> Option<Verified> {
        let mut verified = Verified { file: file_name(number), ..Verified::default() };
        let segments = self.segments();
        let (source, parts) = match segments.live.get(&number)? {
            Slot::Unreadable(error, _) => return Some(Verified { error: Some(error.to_string()), ..verified }),
            Slot::Ready(segment) => {
                verified.missing = segment.missing.into();
                let source = Frames { file: Arc::clone(&segment.file), segment: number, end: segment.end };
                (source, segment.parts.clone())
            }
        };
        drop(segments);
        for (lane, part) in parts {
            let waiting = (0..).zip(part.offsets).filter(|(_, offset)| *offset != 0);
            for item in waiting.filter_map(|(index, offset)| self.item(&lane, &source, index, offset)) {
                *match item.entry {
                    Ok(_) => &mut verified.events,
                    Err(Broken::Damaged(_)) => &mut verified.damaged,
                    Err(Broken::Unread(_)) => &mut verified.unreadable,
                } += 1;
            }
        }
        Some(verified)
    }
}
