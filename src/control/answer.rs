//! What is answered, as lines of JSON.

use std::path::PathBuf;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Dropped, Item, Letter, Replayed};
use crate::deliveries::Seen;
use crate::outcome::Backfilled;
use crate::publish::LastError;
use crate::spool::Verified;

/// A line of the answer. The first ones are followed by others.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    Item(Item),
    /// How many entries were read until now, of about how many.
    Progress {
        read: u64,
        of: u64,
    },
    Letter(Letter),
    Segment(Verified),
    Status(Status),
    Listed(Listed),
    Dropped(Dropped),
    Replayed(Replayed),
    Verified {
        /// Files that are put aside or missing, or cannot be read.
        problems: Vec<String>,
    },
    Paused(Paused),
    Reloaded(Reloaded),
    LogLevel(LogLevel),
    Deliveries(Seen),
    Backfilled(Backfilled),
    Error(String),
}

impl Answer {
    /// Whether no other line follows.
    pub const fn is_last(&self) -> bool {
        !matches!(self, Self::Item(_) | Self::Progress { .. } | Self::Letter(_) | Self::Segment(_))
    }
}

/// The answer to [`Request::Status`](super::Request::Status).
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Status {
    pub directory: PathBuf,
    pub accepting: bool,
    /// Why not.
    pub why: Option<String>,
    /// Files that are put aside or missing, or cannot be read.
    pub problems: Vec<String>,
    pub bytes_max: u64,
    pub events: u64,
    pub bytes: u64,
    pub dead_letters: u64,
    pub dead_letters_bytes: u64,
    pub dead_letters_bytes_max: u64,
    /// Why Kafka is unavailable, if it is.
    pub kafka_error: Option<LastError>,
    pub lanes: Vec<Lane>,
}

/// What waits of a topic.
#[derive(Debug, Serialize, Deserialize)]
pub struct Lane {
    pub topic: String,
    pub events: u64,
    pub bytes: u64,
    /// When the first of them was received.
    pub oldest: Option<Timestamp>,
    /// Its replay is paused.
    pub paused: bool,
    /// Why Kafka has not accepted the last record of the topic, if so.
    pub last_error: Option<LastError>,
}

/// The answer to [`Request::Pause`](super::Request::Pause) and [`Request::Resume`](super::Request::Resume).
#[derive(Debug, Serialize, Deserialize)]
pub struct Paused {
    pub topic: String,
    pub paused: bool,
    /// How many events wait.
    pub events: u64,
}

/// The answer to [`Request::Reload`](super::Request::Reload). Mistakes have no value in them that may be a secret.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Reloaded {
    /// The relay's configuration file.
    pub file: Option<PathBuf>,
    /// What has changed and is in force; of a dry run, would be.
    pub changed: Vec<String>,
    /// What has changed and takes effect with the next start.
    pub needs_restart: Vec<String>,
    /// What may not be as it was meant, and was not so before.
    pub warnings: Vec<String>,
    /// Where there are any, nothing is applied.
    pub mistakes: Vec<String>,
    /// All mistakes are files that cannot be read now: another try may find them.
    pub may_pass: bool,
}

/// The answer to [`Request::LogLevel`](super::Request::LogLevel).
#[derive(Debug, Serialize, Deserialize)]
pub struct LogLevel {
    /// What is in force.
    pub filter: String,
    /// Until when, if it is not the configured one.
    pub until: Option<Timestamp>,
    pub configured: String,
}

/// The end of a list.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Listed {
    pub listed: u64,
    /// How many were read, and how many there were in these lanes.
    pub read: u64,
    pub of: u64,
    /// Damaged or unreadable ones, of which it is not known whether they match.
    pub not_compared: u64,
}
