//! What can be asked, as a line of JSON that a person can write.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Filter;
use crate::event::Archived;

/// A question.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    Status,
    /// Answered with an [`Answer::Item`](super::Answer::Item) each, then [`Answer::Listed`](super::Answer::Listed).
    List(List),
    /// Drops events that wait and dead letters, to the end, whether the client stays or not. The filter is not empty.
    Drop {
        filter: Filter,
    },
    DropDeadLetters {
        which: Which,
    },
    /// Publishes dead letters. Answered with an [`Answer::Letter`](super::Answer::Letter) each, then [`Answer::Replayed`](super::Answer::Replayed).
    ReplayDeadLetters {
        which: Which,
        /// How long it may take.
        timeout_ms: u64,
    },
    /// Reads all that waits. Answered with an [`Answer::Segment`](super::Answer::Segment) each, then [`Answer::Verified`](super::Answer::Verified).
    Verify,
    /// Pauses the replay of a topic until it is resumed, or the relay ends.
    Pause {
        topic: String,
    },
    Resume {
        topic: String,
    },
    /// Reads the configuration again and applies it, or, as a dry run, only says what would be.
    Reload {
        #[serde(default)]
        dry_run: bool,
    },
    /// Which registrations have delivered, and which secret keys have verified, and when last.
    Deliveries,
    /// Publishes events that were made of LiveChat's archive, in this order. The answer comes when they are durable.
    Backfill {
        app: String,
        events: Vec<Archived>,
    },
    /// Replaces the log's filter for a time; without one the configured filter is back at once.
    LogLevel {
        #[serde(default)]
        temporary: Option<Temporary>,
    },
}

/// A filter of the log, and how long it is in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Temporary {
    pub filter: String,
    pub for_ms: u64,
}

impl Request {
    /// What a request that changes something is called in the log.
    pub const fn change(&self) -> Option<&'static str> {
        match self {
            Self::Status | Self::List(_) | Self::Verify | Self::Deliveries | Self::Reload { dry_run: true } => None,
            Self::Drop { .. } => Some("spool drop"),
            Self::DropDeadLetters { .. } => Some("dead-letters drop"),
            Self::ReplayDeadLetters { .. } => Some("dead-letters replay"),
            Self::Pause { .. } => Some("spool pause"),
            Self::Resume { .. } => Some("spool resume"),
            Self::Reload { .. } => Some("reload"),
            Self::Backfill { .. } => Some("backfill"),
            Self::LogLevel { .. } => Some("log-level"),
        }
    }

    /// How long it is waited for besides the spool's disk.
    pub const fn timeout(&self) -> Duration {
        match self {
            Self::ReplayDeadLetters { timeout_ms, .. } => Duration::from_millis(*timeout_ms),
            _ => Duration::ZERO,
        }
    }
}

/// Which dead letters. All of them are never meant by leaving something out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Which {
    All,
    Numbers(Vec<u64>),
}

/// Which entries to list, lane by lane, the oldest of each first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct List {
    /// Dead letters instead of events that wait.
    #[serde(default)]
    pub dead_letters: bool,
    #[serde(default)]
    pub filter: Filter,
    /// From this number on.
    #[serde(default)]
    pub from: u64,
    /// So many at most.
    #[serde(default)]
    pub limit: Option<u64>,
    /// With the records' values.
    #[serde(default)]
    pub values: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_a_line_that_a_person_can_write() {
        let read = |line: &str| serde_json::from_str::<Request>(line);
        assert_eq!(read(r#"{"command":"status"}"#).expect("a request"), Request::Status);
        let filter = Filter { topic: Some("livechat.incoming_event".to_owned()), ..Filter::default() };
        let list = List { dead_letters: false, filter, from: 0, limit: Some(3), values: false };
        let line = r#"{"command":"list","filter":{"topic":"livechat.incoming_event"},"limit":3}"#;
        assert_eq!(read(line).expect("a request"), Request::List(list));
        assert!(
            read(r#"{"command":"list","filter":{"tropic":"x"}}"#).is_err(),
            "a filter that is not known drops nothing"
        );
        assert!(read(r#"{"command":"dance"}"#).is_err());
    }

    #[test]
    fn all_dead_letters_are_named_as_such_and_a_mistyped_member_is_refused() {
        let read = |line: &str| serde_json::from_str::<Request>(line);
        let all = Request::DropDeadLetters { which: Which::All };
        assert_eq!(read(r#"{"command":"drop_dead_letters","which":"all"}"#).expect("a request"), all);
        let some = Request::ReplayDeadLetters { which: Which::Numbers(vec![7, 8]), timeout_ms: 9 };
        let line = r#"{"command":"replay_dead_letters","which":{"numbers":[7,8]},"timeout_ms":9}"#;
        assert_eq!(read(line).expect("a request"), some);
        for line in [
            r#"{"command":"drop_dead_letters"}"#,
            r#"{"command":"drop_dead_letters","which":null}"#,
            r#"{"command":"drop_dead_letters","numbers":[7]}"#,
            r#"{"command":"drop_dead_letters","which":"all","but":[7]}"#,
            r#"{"command":"replay_dead_letters","timeout_ms":9}"#,
            r#"{"command":"list","filters":{"topic":"x"}}"#,
            r#"{"command":"drop","filter":{"topic":"x"},"dry_run":true}"#,
        ] {
            assert!(read(line).is_err(), "{line}");
        }
    }
}
