//! One small interface over the two stores: append a batch durably, read from
//! the head of a lane, delete a batch durably.

use std::path::{Path, PathBuf};

use fjall::{Database as Fjall, Keyspace, KeyspaceCreateOptions, KvSeparationOptions, PersistMode};
use redb::{Builder, Database as Redb, ReadableDatabase, TableDefinition};

pub type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;
pub const LANES: u64 = 46;
pub const SETTINGS: [&str; 6] = ["redb-1p", "redb-2p", "redb-quick", "redb-quick-tables", "fjall", "fjall-kv"];
const TABLE: TableDefinition<(&str, u64), &[u8]> = TableDefinition::new("spool");
const CACHE: usize = 32 << 20;

pub fn lane_name(lane: u64) -> String {
    format!("livechat.topic.{lane:02}")
}

/// The bytes of one record; the same for the same key, and incompressible.
pub fn value(lane: u64, seq: u64, size: usize) -> Vec<u8> {
    let mut x = (lane << 48 | seq).wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut out = Vec::with_capacity(size + 8);
    while out.len() < size {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        out.extend_from_slice(&x.to_le_bytes());
    }
    out.truncate(size);
    out
}

pub enum Store {
    Redb { db: Redb, setting: String, file: PathBuf },
    Fjall { db: Fjall, spool: Keyspace },
}

pub fn open(setting: &str, dir: &Path) -> Result<Store> {
    std::fs::create_dir_all(dir)?;
    if setting.starts_with("redb") {
        let file = dir.join("spool.redb");
        let mut builder = Builder::new();
        builder.set_cache_size(CACHE).set_check_integrity_on_open(setting.ends_with("chk"));
        return Ok(Store::Redb { db: builder.create(&file)?, setting: setting.into(), file });
    }
    let db = Fjall::builder(dir).cache_size(CACHE as u64).max_journaling_size(128 << 20).worker_threads(2).open()?;
    let separated = (setting == "fjall-kv").then(KvSeparationOptions::default);
    let spool = db.keyspace("spool", || {
        KeyspaceCreateOptions::default().max_memtable_size(16 << 20).with_kv_separation(separated)
    })?;
    Ok(Store::Fjall { db, spool })
}

fn fjall_key(lane: u64, seq: u64) -> Vec<u8> {
    let mut key = lane_name(lane).into_bytes();
    key.push(0);
    key.extend_from_slice(&seq.to_be_bytes());
    key
}

/// The other layout: a table a lane, which keeps redb's fast path for ascending keys.
fn lane_table(name: &str) -> TableDefinition<'_, u64, &'static [u8]> {
    TableDefinition::new(name)
}

fn redb_write(db: &Redb, setting: &str) -> Result<redb::WriteTransaction> {
    let mut tx = db.begin_write()?;
    tx.set_two_phase_commit(setting == "redb-2p");
    tx.set_quick_repair(setting.starts_with("redb-quick"));
    Ok(tx)
}

impl Store {
    pub fn append(&self, batch: &[(u64, u64, Vec<u8>)]) -> Result<()> {
        match self {
            Store::Redb { db, setting, .. } => {
                let tx = redb_write(db, setting)?;
                if setting.ends_with("tables") {
                    for (lane, seq, value) in batch {
                        let name = lane_name(*lane);
                        tx.open_table(lane_table(&name))?.insert(*seq, value.as_slice())?;
                    }
                } else {
                    let mut table = tx.open_table(TABLE)?;
                    for (lane, seq, value) in batch {
                        table.insert((lane_name(*lane).as_str(), *seq), value.as_slice())?;
                    }
                }
                tx.commit()?;
            }
            Store::Fjall { db, spool } => {
                let mut tx = db.batch().durability(Some(PersistMode::SyncAll));
                for (lane, seq, value) in batch {
                    tx.insert(spool, fjall_key(*lane, *seq), value.as_slice());
                }
                tx.commit()?;
            }
        }
        Ok(())
    }

    /// Up to `max` records of one lane in order, from `from` on: sequence and value.
    pub fn read(&self, lane: u64, from: u64, max: usize) -> Result<Vec<(u64, Vec<u8>)>> {
        let mut out = Vec::new();
        match self {
            Store::Redb { db, setting, .. } => {
                let tx = db.begin_read()?;
                if setting.ends_with("tables") {
                    let table = match tx.open_table(lane_table(&lane_name(lane))) {
                        Err(redb::TableError::TableDoesNotExist(_)) => return Ok(out),
                        other => other?,
                    };
                    for row in table.range(from..)?.take(max) {
                        let (key, value) = row?;
                        out.push((key.value(), value.value().to_vec()));
                    }
                    return Ok(out);
                }
                let table = match tx.open_table(TABLE) {
                    Err(redb::TableError::TableDoesNotExist(_)) => return Ok(out),
                    other => other?,
                };
                let name = lane_name(lane);
                for row in table.range((name.as_str(), from)..=(name.as_str(), u64::MAX))?.take(max) {
                    let (key, value) = row?;
                    out.push((key.value().1, value.value().to_vec()));
                }
            }
            Store::Fjall { spool, .. } => {
                for guard in spool.range(fjall_key(lane, from)..=fjall_key(lane, u64::MAX)).take(max) {
                    let (key, value) = guard.into_inner()?;
                    let tail: [u8; 8] = key[key.len() - 8..].try_into()?;
                    out.push((u64::from_be_bytes(tail), value.to_vec()));
                }
            }
        }
        Ok(out)
    }

    pub fn delete(&self, lane: u64, seqs: &[u64]) -> Result<()> {
        match self {
            Store::Redb { db, setting, .. } => {
                let tx = redb_write(db, setting)?;
                if setting.ends_with("tables") {
                    let name = lane_name(lane);
                    let mut table = tx.open_table(lane_table(&name))?;
                    for seq in seqs {
                        table.remove(*seq)?;
                    }
                } else {
                    let mut table = tx.open_table(TABLE)?;
                    let name = lane_name(lane);
                    for seq in seqs {
                        table.remove((name.as_str(), *seq))?;
                    }
                }
                tx.commit()?;
            }
            Store::Fjall { db, spool } => {
                let mut tx = db.batch().durability(Some(PersistMode::SyncAll));
                for seq in seqs {
                    tx.remove(spool, fjall_key(lane, *seq));
                }
                tx.commit()?;
            }
        }
        Ok(())
    }

    /// Gives the space of deleted records back to the disk, as far as the store can.
    pub fn compact(&mut self) -> Result<()> {
        match self {
            Store::Redb { db, .. } => while db.compact()? {},
            Store::Fjall { spool, .. } => {
                spool.rotate_memtable_and_wait()?;
                spool.major_compact()?;
            }
        }
        Ok(())
    }

    /// What a second open of the same directory answers while this one is open.
    pub fn second_open(&self, dir: &Path) -> String {
        match self {
            Store::Redb { file, .. } => format!("{:?}", Builder::new().create(file).map(|_| ())),
            Store::Fjall { .. } => format!("{:?}", Fjall::builder(dir).open().map(|_| ())),
        }
    }
}
