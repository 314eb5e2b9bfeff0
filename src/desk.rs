//! What a person may ask of the spool and of the dead letters in it. The same questions and answers through the admin
//! listener of a running relay and from the directory of one that is stopped.

use std::fmt::Write as _;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::spool::{Broken, Entry, Item as Found, Size, Spool};

/// A question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ask {
    Status,
    /// The events of a topic's lane.
    Events {
        topic: String,
        page: Page,
    },
    DeadLetters {
        page: Page,
    },
    /// Sends a dead letter back to its lane.
    Replay {
        number: u64,
    },
    /// Drops a dead letter for ever.
    Drop {
        number: u64,
    },
}

/// A part of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Page {
    pub from: u64,
    pub limit: usize,
    /// With the records' values.
    pub values: bool,
}

/// Events of one answer at most.
const LIMIT_MAX: usize = 1000;

impl Ask {
    /// What a request asks; `None`: there is nothing there. `changes`: it is a POST or DELETE.
    pub fn read(method: &str, path: &str, query: &str) -> Option<Self> {
        let given = |name: &str| query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
        let page = Page {
            from: given("from").and_then(|from| from.parse().ok()).unwrap_or(0),
            limit: given("limit").and_then(|limit| limit.parse().ok()).unwrap_or(100).clamp(1, LIMIT_MAX),
            values: given("values") == Some("true"),
        };
        let parts: Vec<&str> = path.strip_prefix('/')?.split('/').collect();
        match (method, &parts[..]) {
            ("GET", ["spool"]) => Some(Self::Status),
            ("GET", ["spool", "events"]) => Some(Self::Events { topic: given("topic")?.to_owned(), page }),
            ("GET", ["dead-letters"]) => Some(Self::DeadLetters { page }),
            ("POST", ["dead-letters", number, "replay"]) => Some(Self::Replay { number: number.parse().ok()? }),
            ("DELETE", ["dead-letters", number]) => Some(Self::Drop { number: number.parse().ok()? }),
            _ => None,
        }
    }

    /// The request that asks it: method, path and query.
    pub fn write(&self) -> (&'static str, String) {
        let query = |Page { from, limit, values }| format!("from={from}&limit={limit}&values={values}");
        match self {
            Self::Status => ("GET", "/spool".to_owned()),
            Self::Events { topic, page } => ("GET", format!("/spool/events?topic={topic}&{}", query(*page))),
            Self::DeadLetters { page } => ("GET", format!("/dead-letters?{}", query(*page))),
            Self::Replay { number } => ("POST", format!("/dead-letters/{number}/replay")),
            Self::Drop { number } => ("DELETE", format!("/dead-letters/{number}")),
        }
    }
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum Trouble {
    #[error("there is no dead letter {0}")]
    NoSuch(u64),
    #[error(
        "the dead letter {0} is what was left of an entry that could not be read: it can be exported and dropped, not published"
    )]
    Corrupted(u64),
    #[error("{0}")]
    Unable(String),
}

/// The answer to [`Ask::Status`].
#[derive(Debug, Serialize, Deserialize)]
pub struct Status {
    pub directory: String,
    pub accepting: bool,
    /// Why not.
    pub why: Option<String>,
    /// Files that are put aside or cannot be read.
    pub problems: Vec<String>,
    pub bytes_max: u64,
    pub events: u64,
    pub bytes: u64,
    pub dead_letters: u64,
    pub dead_letters_bytes: u64,
    pub lanes: Vec<Lane>,
}

/// What waits of a topic.
#[derive(Debug, Serialize, Deserialize)]
pub struct Lane {
    pub topic: String,
    pub events: u64,
    pub bytes: u64,
    /// When the first of them was accepted.
    pub oldest: Option<Timestamp>,
}

/// The answer to the lists.
#[derive(Debug, Serialize, Deserialize)]
pub struct List {
    pub items: Vec<Item>,
    /// Where the next page begins, if there is one.
    pub next: Option<u64>,
}

/// An event in the spool, or a dead letter.
#[derive(Debug, Serialize, Deserialize)]
pub struct Item {
    pub number: u64,
    pub topic: String,
    pub key: String,
    pub accepted: Timestamp,
    /// Of the record's value.
    pub bytes: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parked: Option<Timestamp>,
    pub headers: Vec<(String, String)>,
    /// As it will be on Kafka, byte for byte.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value: Option<Box<RawValue>>,
    /// Where it is no JSON, as that of a corrupted entry.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value_hex: Option<String>,
}

/// Answers.
#[derive(Clone)]
pub struct Desk(pub Spool);

impl Desk {
    /// The answer, as JSON.
    ///
    /// # Errors
    /// [`Trouble`]: there is no such dead letter, or the spool cannot be read or written at the moment.
    pub async fn answer(&self, ask: Ask) -> Result<String, Trouble> {
        let spool = self.0.clone();
        match ask {
            Ask::Replay { number } | Ask::Drop { number } => {
                let dead_letter = self.find(number).await?;
                let done = match (ask, dead_letter) {
                    (Ask::Replay { .. }, Some(dead_letter)) => spool.requeue(number, dead_letter),
                    (Ask::Replay { .. }, None) => return Err(Trouble::Corrupted(number)),
                    _ => spool.drop_dead_letter(number),
                };
                match done.await {
                    Ok(Ok(())) => Ok("{}".to_owned()),
                    Ok(Err(refused)) => Err(Trouble::Unable(refused.to_string())),
                    Err(_) => Err(Trouble::Unable("the spool is closed".to_owned())),
                }
            }
            look => blocking(move || read(&spool, &look)).await,
        }
    }

    /// A dead letter; `None` where there is nothing of it that could be published.
    async fn find(&self, number: u64) -> Result<Option<Entry>, Trouble> {
        let spool = self.0.clone();
        let found = blocking(move || spool.dead_letters(number, 1)).await?;
        match found.into_iter().next() {
            Some(Found { number: found, entry, .. }) if found == number => {
                Ok(entry.ok().filter(|entry| !entry.is_corrupted()))
            }
            _ => Err(Trouble::NoSuch(number)),
        }
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Trouble> {
    tokio::task::spawn_blocking(work).await.map_err(|e| Trouble::Unable(e.to_string()))
}

fn read(spool: &Spool, ask: &Ask) -> String {
    let answer = match ask {
        Ask::Events { topic, page } => {
            serde_json::to_string(&list(spool.page(topic, page.from, page.limit, PAGE_BYTES), topic, *page))
        }
        Ask::DeadLetters { page } => serde_json::to_string(&list(spool.dead_letters(page.from, page.limit), "", *page)),
        _ => serde_json::to_string(&status(spool)),
    };
    answer.expect("it is all text and numbers")
}

/// Bytes of a page, about.
const PAGE_BYTES: usize = 4 << 20;

fn status(spool: &Spool) -> Status {
    let oldest = spool.oldest();
    let (Size { records: events, bytes }, dead_letters, sizes) =
        spool.lanes(|lanes| (lanes.total(), lanes.dead_letters(), lanes.sizes()));
    let why = spool.warning();
    let lane = |(topic, size): (String, Size)| Lane {
        oldest: oldest.iter().find(|(of, _)| **of == *topic).map(|(_, since)| *since),
        topic,
        events: size.records,
        bytes: size.bytes,
    };
    Status {
        directory: spool.config().directory.display().to_string(),
        accepting: why.is_none(),
        why,
        problems: spool.problems(),
        bytes_max: spool.config().bytes_max,
        events,
        bytes,
        dead_letters: dead_letters.records,
        dead_letters_bytes: dead_letters.bytes,
        lanes: sizes.into_iter().map(lane).collect(),
    }
}

fn list(found: Vec<Found>, topic: &str, page: Page) -> List {
    let next = found.last().map(|last| last.number + 1);
    List { items: found.into_iter().map(|found| item(found, topic, page.values)).collect(), next }
}

fn item(Found { number, entry, .. }: Found, topic: &str, with_value: bool) -> Item {
    let Entry { record, received, dead_letter } = match entry {
        Ok(entry) => entry,
        Err(broken) => return unreadable(number, topic, broken, with_value),
    };
    let length = record.value.len();
    let (value, value_hex) = if with_value { written(record.value) } else { (None, None) };
    Item {
        number,
        topic: record.topic.to_string(),
        key: record.key,
        accepted: received,
        bytes: length,
        parked: dead_letter.as_ref().and_then(|why| Timestamp::from_millisecond(why.since_ms).ok()),
        reason: dead_letter.as_ref().map(|why| why.reason.clone()),
        error: dead_letter.map(|why| why.error),
        headers: record.headers.into_iter().map(|(name, value)| (name.into_owned(), value.into_owned())).collect(),
        value,
        value_hex,
    }
}

/// What is damaged has no more than its bytes; what cannot be read not even those.
fn unreadable(number: u64, topic: &str, broken: Broken, with_value: bool) -> Item {
    let (raw, error) = match broken {
        Broken::Damaged(raw) => (raw, "its checksum does not fit: the disk has changed it".to_owned()),
        Broken::Unread(error) => (Vec::new(), error.to_string()),
    };
    let bytes = raw.len();
    let (value, value_hex) = if with_value { written(raw) } else { (None, None) };
    Item {
        number,
        topic: topic.to_owned(),
        key: String::new(),
        accepted: Timestamp::UNIX_EPOCH,
        bytes,
        parked: None,
        reason: Some("corrupted".to_owned()),
        error: Some(error),
        headers: Vec::new(),
        value,
        value_hex,
    }
}

/// JSON as it is; else hexadecimal.
fn written(value: Vec<u8>) -> (Option<Box<RawValue>>, Option<String>) {
    let hex = |bytes: &[u8]| {
        bytes.iter().fold(String::new(), |mut hex, byte| {
            let _ = write!(hex, "{byte:02x}"); // a String takes it
            hex
        })
    };
    match String::from_utf8(value) {
        Ok(text) => match RawValue::from_string(text.clone()) {
            Ok(json) if !text.contains(['\n', '\r']) => (Some(json), None),
            _ => (None, Some(hex(text.as_bytes()))),
        },
        Err(bytes) => (None, Some(hex(bytes.as_bytes()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_question_is_read_as_it_was_written() {
        let page = Page { from: 7, limit: 20, values: true };
        for ask in [
            Ask::Status,
            Ask::Events { topic: "livechat.incoming_event".to_owned(), page },
            Ask::DeadLetters { page },
            Ask::Replay { number: 3 },
            Ask::Drop { number: 3 },
        ] {
            let (method, uri) = ask.write();
            let (path, query) = uri.split_once('?').unwrap_or((&uri, ""));
            assert_eq!(Ask::read(method, path, query), Some(ask));
        }
        assert_eq!(Ask::read("GET", "/dead-letters/3/replay", ""), None);
        assert_eq!(Ask::read("DELETE", "/dead-letters/x", ""), None);
        let Some(Ask::DeadLetters { page }) = Ask::read("GET", "/dead-letters", "limit=1000000") else { panic!() };
        assert_eq!(page, Page { from: 0, limit: LIMIT_MAX, values: false });
    }

    #[test]
    fn a_value_is_shown_byte_for_byte_or_in_hexadecimal() {
        let json = br#"{"a": 1.0,"b":"\u00e9"}"#;
        assert_eq!(written(json.to_vec()).0.map(|raw| raw.get().as_bytes().to_vec()), Some(json.to_vec()));
        assert_eq!(written(vec![0xff, 0x00]).1.as_deref(), Some("ff00"));
        assert_eq!(written(b"{\n}".to_vec()).1.as_deref(), Some("7b0a7d"));
    }
}
