//! How an entry of the spool is shown, and whether it is one of those that are asked for.

use std::borrow::Cow;
use std::fmt::Write as _;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::event::Attributes;
use crate::spool::{self, Broken, CORRUPTED, DAMAGED, DEAD_LETTERS, Entry};

/// An event in the spool, or a dead letter.
#[derive(Debug, Serialize, Deserialize)]
pub struct Item {
    pub number: u64,
    pub topic: String,
    pub key: String,
    /// The event's id, action and app, where it could be read.
    pub id: Option<String>,
    pub action: Option<String>,
    pub app: Option<String>,
    pub received: Option<Timestamp>,
    /// Of the record's value.
    pub bytes: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Since when it is a dead letter.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<Timestamp>,
    pub headers: Vec<(String, String)>,
    /// As it will be on Kafka, byte for byte.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value: Option<Box<RawValue>>,
    /// Where it is no JSON, as that of a corrupted entry.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value_hex: Option<String>,
}

/// What is asked for: all that is set has to match.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Filter {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub topic: Option<String>,
    /// Of the record.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub action: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub app: Option<String>,
    /// When it was received: from here on, and before that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub until: Option<Timestamp>,
}

impl Filter {
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    pub fn is_of_topic(&self, topic: &str) -> bool {
        self.topic.as_deref().is_none_or(|wanted| wanted == topic)
    }

    /// `None`: it cannot be told, because the entry cannot be read.
    pub(super) fn matches(&self, lane: &str, entry: &Result<Entry, Broken>) -> Option<bool> {
        // Of what is damaged no more is known than its topic.
        let without_more = |topic: &str| match &self.topic {
            Some(wanted) if wanted != topic && !matches!(topic, DAMAGED | DEAD_LETTERS) => Some(false),
            wanted => {
                let is_all = Self { topic: None, ..self.clone() }.is_empty();
                (is_all && wanted.as_deref().is_none_or(|wanted| wanted == topic)).then_some(true)
            }
        };
        let entry = match entry {
            Err(_) => return without_more(lane),
            Ok(entry) if entry.is_corrupted() => return without_more(&entry.record.topic),
            Ok(entry) => entry,
        };
        let Entry { record, received, .. } = entry;
        let is_simple_match = self.is_of_topic(&record.topic)
            && self.key.as_deref().is_none_or(|key| key == record.key)
            && self.since.is_none_or(|since| since <= *received)
            && self.until.is_none_or(|until| *received < until);
        if !is_simple_match || (self.id.is_none() && self.action.is_none() && self.app.is_none()) {
            return Some(is_simple_match);
        }
        let found = Attributes::of(record);
        let is_match = |wanted: &Option<String>, found: Option<&str>| wanted.is_none() || wanted.as_deref() == found;
        Some(
            is_match(&self.id, found.id.as_deref())
                && is_match(&self.action, found.action())
                && is_match(&self.app, found.app.as_deref()),
        )
    }
}

impl Item {
    pub fn new(spool::Item { number, entry, .. }: spool::Item, lane: &str, with_value: bool) -> Self {
        let Entry { record, received, dead_letter } = match entry {
            Ok(entry) => entry,
            Err(broken) => return Self::broken(number, lane, broken, with_value),
        };
        let Attributes { id, app, .. } = Attributes::of(&record);
        let (id, app) = (id.map(Cow::into_owned), app.map(Cow::into_owned));
        let action = Attributes::of(&record).action().map(str::to_owned);
        let bytes = record.value.len();
        let (value, value_hex) = if with_value { written(record.value) } else { (None, None) };
        Self {
            number,
            topic: record.topic.to_string(),
            key: record.key,
            id,
            action,
            app,
            received: Some(received),
            bytes,
            since: dead_letter.as_ref().and_then(|why| Timestamp::from_millisecond(why.since_ms).ok()),
            reason: dead_letter.as_ref().map(|why| why.reason.clone()),
            error: dead_letter.map(|why| why.error),
            headers: record.headers.into_iter().map(|(name, value)| (name.into_owned(), value.into_owned())).collect(),
            value,
            value_hex,
        }
    }

    /// What is damaged has no more than its bytes; what cannot be read not even those.
    fn broken(number: u64, lane: &str, broken: Broken, with_value: bool) -> Self {
        let (raw, error) = match broken {
            Broken::Damaged(raw) => (raw, "its checksum does not match: the disk has altered it".to_owned()),
            Broken::Unread(error) => (Vec::new(), error.to_string()),
        };
        let bytes = raw.len();
        let (value, value_hex) = if with_value { written(raw) } else { (None, None) };
        let (topic, reason, error) = (lane.to_owned(), Some(CORRUPTED.to_owned()), Some(error));
        let (key, id, action, app, received, since, headers) =
            (String::new(), None, None, None, None, None, Vec::new());
        Self { number, topic, key, id, action, app, received, bytes, reason, error, since, headers, value, value_hex }
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
    use crate::event::Record;
    use crate::spool::DeadLetter;

    #[test]
    fn a_value_is_shown_byte_for_byte_or_in_hexadecimal() {
        let json = br#"{"a": 1.0,"b":"\u00e9"}"#;
        assert_eq!(written(json.to_vec()).0.map(|raw| raw.get().as_bytes().to_vec()), Some(json.to_vec()));
        assert_eq!(written(vec![0xff, 0x00]).1.as_deref(), Some("ff00"));
        assert_eq!(written(b"{\n}".to_vec()).1.as_deref(), Some("7b0a7d"));
    }

    #[test]
    fn each_filter_matches_what_it_names_in_both_modes_and_no_other() {
        let value = r#"{"id":"i\u002d1","type":"com.livechat.incoming_event","app":"sales","data":{"id":"no"}}"#;
        let structured = Record {
            topic: "livechat.incoming_event".into(),
            key: "CHAT".to_owned(),
            headers: vec![("content-type".into(), "application/cloudevents+json".into())],
            value: value.into(),
        };
        let headers = [("ce_id", "i-1"), ("ce_type", "com.livechat.incoming_event"), ("ce_app", "sales")];
        let headers = headers.map(|(name, value)| (name.into(), value.into())).to_vec();
        let binary = Record { headers, value: br#"{"id":"no"}"#.to_vec(), ..structured.clone() };
        let received: Timestamp = "2026-11-22T14:00:00Z".parse().expect("a time");
        let text = |text: &str| Some(text.to_owned());
        let time = |text: &str| Some(text.parse().expect("a time"));
        let none = Filter::default;
        let matching = [
            none(),
            Filter { topic: text("livechat.incoming_event"), ..none() },
            Filter { key: text("CHAT"), ..none() },
            Filter { id: text("i-1"), ..none() },
            Filter { action: text("incoming_event"), app: text("sales"), ..none() },
            Filter { since: time("2026-11-22T14:00:00Z"), until: time("2026-11-22T14:00:00.001Z"), ..none() },
        ];
        let others = [
            Filter { topic: text("livechat.incoming_chat"), ..none() },
            Filter { key: text("chat"), ..none() },
            Filter { id: text("no"), ..none() },
            Filter { action: text("incoming_chat"), ..none() },
            Filter { app: text("default"), ..none() },
            Filter { id: text("i-1"), key: text("x"), ..none() },
            Filter { since: time("2026-11-22T14:00:00.001Z"), ..none() },
            Filter { until: time("2026-11-22T14:00:00Z"), ..none() },
        ];
        for record in [structured, binary] {
            let entry = Ok(Entry { record, received, dead_letter: None });
            matching.iter().for_each(|filter| assert_eq!(filter.matches("", &entry), Some(true), "{filter:?}"));
            others.iter().for_each(|filter| assert_eq!(filter.matches("", &entry), Some(false), "{filter:?}"));
        }
    }

    #[test]
    fn of_what_is_damaged_only_the_topic_can_be_compared() {
        let of_topic = |topic: &str| Filter { topic: Some(topic.to_owned()), ..Filter::default() };
        let of_key = Filter { key: Some("CHAT".to_owned()), ..of_topic("one") };
        let record = Record { topic: "one".into(), key: String::new(), headers: Vec::new(), value: vec![1] };
        let why = DeadLetter { reason: CORRUPTED.to_owned(), error: String::new(), since_ms: 0 };
        let in_its_lane = ("one", Err(Broken::Damaged(vec![1])));
        let dead_letter = (DEAD_LETTERS, Ok(Entry { dead_letter: Some(why), ..Entry::new(record) }));
        for (lane, entry) in [in_its_lane, dead_letter] {
            assert_eq!(Filter::default().matches(lane, &entry), Some(true));
            assert_eq!(of_topic("one").matches(lane, &entry), Some(true));
            assert_eq!(of_topic("other").matches(lane, &entry), Some(false));
            assert_eq!(of_key.matches(lane, &entry), None);
        }
        for lane in [DEAD_LETTERS, DAMAGED] {
            let unknown = Err(Broken::Damaged(vec![1]));
            assert_eq!(Filter::default().matches(lane, &unknown), Some(true));
            assert_eq!(of_topic("one").matches(lane, &unknown), None, "it may be of this topic");
        }
    }
}
