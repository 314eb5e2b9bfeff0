//! The file that says which segments there are and what of them is acked, replaced as a whole. Losing it costs duplicates, and numbers
//! of segments that are no more may be used again.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::disk::{Cause, Disk, DiskError, Result};
use super::u32_at;

pub const FILE: &str = "state";
const NEW: &str = "state.new";
const MAGIC: &[u8; 8] = b"LCRSTATE";
const VERSION: u32 = 1;
const HEAD: usize = 16;
/// Far more than there is ever to be acked.
const BYTES_MAX: u64 = 1 << 28;

/// What is known of a segment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Saved {
    /// Up to this offset it was synced, so what is in front of it and no frame is damage.
    pub synced: u32,
    /// A bit for each frame that is acked, by lane.
    pub acked: BTreeMap<String, Vec<u8>>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// The number of the next segment.
    pub next: u64,
    pub segments: BTreeMap<u64, Saved>,
}

impl State {
    /// `None`: it does not fit its checksum.
    pub fn load(disk: &dyn Disk) -> Result<Option<Self>> {
        let file = disk.open(FILE)?;
        let mut bytes = vec![0; usize::try_from(file.bytes()?.min(BYTES_MAX)).unwrap_or(0)];
        file.read_at(0, &mut bytes)?;
        let Some((head, rest)) = bytes.split_at_checked(HEAD) else { return Ok(None) };
        let version = u32_at(head, 8);
        if !head.starts_with(MAGIC) || u32_at(head, 12) != checksum(version, rest) {
            return Ok(None);
        }
        if version != VERSION {
            return Err(DiskError::new("read", disk.path(FILE), Cause::Newer(version)));
        }
        Ok(postcard::from_bytes(rest).ok())
    }

    /// Makes it durable, and the names of all files with it.
    pub fn save(&self, disk: &dyn Disk) -> Result<()> {
        let rest = postcard::to_stdvec(self).expect("memory takes what is written");
        let bytes = [&MAGIC[..], &VERSION.to_le_bytes(), &checksum(VERSION, &rest).to_le_bytes(), &rest].concat();
        disk.unlink(NEW)?;
        let file = disk.create(NEW)?;
        let written = file.write_at(0, &bytes).and_then(|()| file.sync()).and_then(|()| disk.rename(NEW, FILE));
        written.inspect_err(|_| drop(disk.unlink(NEW)))?; // else it takes room until the next try
        disk.sync_dir()
    }
}

fn checksum(version: u32, rest: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&version.to_le_bytes()), rest)
}
