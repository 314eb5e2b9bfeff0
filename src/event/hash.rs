//! The hash of derived ids, content hashes and retry keys.

use sha2::{Digest, Sha256};

/// The first half of the SHA-256 over the parts. The length of each part comes before it, so that `ab`, `c` and `a`, `bc` differ.
pub fn hash<'p>(parts: impl IntoIterator<Item = &'p [u8]>) -> [u8; 16] {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    first_half(hash.finalize().into())
}

pub fn first_half(hash: [u8; 32]) -> [u8; 16] {
    let mut half = [0; 16];
    half.copy_from_slice(&hash[..16]);
    half
}
