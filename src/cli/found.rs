//! An event as it was found on Kafka, and the line that a person sees of it.

use std::collections::BTreeMap;

use console::{measure_text_width, truncate_str};
use jiff::Timestamp;
use rdkafka::message::{BorrowedMessage, Headers as _, Message as _};
use serde_json::Value;
use serde_json::value::RawValue;

use super::print::{BOLD, DIM, WIDTH, visible};

/// From so many columns on there is room for the place.
const WIDE: usize = 100;

/// The longest name of an action. Most are shorter than 25, which is for narrow terminals.
const NAME_COLUMNS: usize = 31;

/// A text of fewer columns says nothing.
const TEXT_COLUMNS_MIN: usize = 8;

/// An event in either mode.
#[derive(Debug, serde::Serialize)]
pub struct Found {
    pub topic: String,
    pub partition: i32,
    pub offset: i64,
    pub key: Option<String>,
    /// CloudEvents attributes, without `ce_`.
    pub attributes: BTreeMap<String, String>,
    pub data: Box<RawValue>,
}

impl Found {
    /// `None` for a record that the relay did not write.
    pub fn read(message: &BorrowedMessage<'_>) -> Option<Self> {
        let value = std::str::from_utf8(message.payload()?).ok()?;
        let (attributes, data) = binary(message, value).or_else(|| structured(value))?;
        Some(Self {
            topic: message.topic().to_owned(),
            partition: message.partition(),
            offset: message.offset(),
            key: message.key().map(|key| String::from_utf8_lossy(key).into_owned()),
            attributes,
            data,
        })
    }

    pub fn attribute(&self, name: &str) -> Option<&str> {
        self.attributes.get(name).map(String::as_str)
    }

    /// The action's current name, out of the type.
    pub fn action(&self) -> &str {
        let of_type = self.attribute("type").unwrap_or_default();
        of_type.strip_prefix("com.livechat.").unwrap_or(of_type)
    }

    /// When, what, about what, and what was said. The topic is left out where it is `prefix` and the action, and the date where it is today.
    /// A line that does not fit into the columns is cut.
    pub fn line(&self, prefix: &str, now: Timestamp, columns: Option<usize>) -> String {
        let is_wide = columns.is_none_or(|columns| columns >= WIDE);
        let columns = columns.unwrap_or(usize::MAX);
        let when = self.attribute("recordedtime").and_then(|time| time.get(..19)).unwrap_or_default();
        let when = visible(when.strip_prefix(&now.strftime("%FT").to_string()).unwrap_or(when)).replace('T', " ");
        let place =
            if is_wide { format!("  {DIM}{}/{:<5}{DIM:#}", self.partition, self.offset) } else { String::new() };
        let name = match self.topic.strip_prefix(prefix) {
            Some(name) if name == self.action() => visible(name),
            _ => visible(&format!("{} ({})", self.action(), self.topic)),
        };
        let (name_columns, about) = (if columns < WIDTH { 25 } else { NAME_COLUMNS }, visible(self.about()));
        let head = format!("{DIM}{when:<8}{DIM:#}{place}  {BOLD}{name:<name_columns$}{BOLD:#}  {about:<10}");
        let left = columns.saturating_sub(measure_text_width(&head) + 2);
        let text = self.text();
        if text.is_empty() || left < TEXT_COLUMNS_MIN {
            return truncate_str(head.trim_end(), columns, "…").into_owned();
        }
        format!("{head}  {}", truncate_str(&text, left, "…"))
    }

    /// The chat's id, else that of the agent, customer and so on that the event is about.
    fn about(&self) -> &str {
        let of_subject =
            || self.attribute("subject").map(|subject| subject.split_once('/').map_or(subject, |(_, id)| id));
        self.attribute("chatid").or_else(of_subject).unwrap_or_default()
    }

    /// The words of a message, or the first ones of a new chat, or else whose it is; else the payload without the ids that stand before it.
    fn text(&self) -> String {
        let mut data: Value = serde_json::from_str(self.data.get()).unwrap_or_default();
        let (event, chat) = (&data["payload"]["event"], &data["payload"]["chat"]);
        let mut of_chat = chat["thread"]["events"].as_array().into_iter().flatten();
        if let Some(said) = event["text"].as_str().or_else(|| of_chat.find_map(|event| event["text"].as_str())) {
            return format!("“{}”", on_one_line(said));
        }
        let mut customers = chat["users"].as_array().into_iter().flatten().filter(|user| user["type"] == "customer");
        if let Some(name) = customers.find_map(|user| user["name"].as_str()) {
            return on_one_line(name);
        }
        let mut payload = data.get_mut("payload").map(Value::take).unwrap_or(data);
        if let Some(members) = payload.as_object_mut() {
            let known = [Some(self.about()), self.attribute("threadid")];
            members.retain(|_, value| !value.as_str().is_some_and(|text| known.contains(&Some(text))));
            if members.is_empty() {
                return String::new();
            }
        }
        on_one_line(&payload.to_string())
    }
}

fn on_one_line(text: &str) -> String {
    visible(&text.replace(['\n', '\r', '\t'], " "))
}

fn binary(message: &BorrowedMessage<'_>, value: &str) -> Option<(BTreeMap<String, String>, Box<RawValue>)> {
    let headers = message.headers()?;
    let attributes: BTreeMap<_, _> = headers
        .iter()
        .filter_map(|h| Some((h.key.strip_prefix("ce_")?.to_owned(), std::str::from_utf8(h.value?).ok()?.to_owned())))
        .collect();
    attributes.contains_key("specversion").then_some(())?;
    Some((attributes, RawValue::from_string(value.to_owned()).ok()?))
}

fn structured(value: &str) -> Option<(BTreeMap<String, String>, Box<RawValue>)> {
    let mut members: BTreeMap<String, Box<RawValue>> = serde_json::from_str(value).ok()?;
    let data = members.remove("data")?;
    let text = |(name, raw): (String, Box<RawValue>)| Some((name, serde_json::from_str(raw.get()).ok()?));
    let attributes: BTreeMap<String, String> = members.into_iter().filter_map(text).collect();
    attributes.contains_key("specversion").then_some((attributes, data))
}

#[cfg(test)]
mod tests {
    use anstream::adapter::strip_str;

    use super::*;
    use crate::event::actions;

    fn found(action: &str, attributes: &[(&str, &str)], payload: &str) -> Found {
        let of_all = [("type", &*format!("com.livechat.{action}")), ("recordedtime", "2026-11-28T19:58:55.172Z")];
        let attributes = of_all.iter().chain(attributes).map(|(name, text)| ((*name).to_owned(), (*text).to_owned()));
        Found {
            topic: format!("livechat.{action}"),
            partition: 2,
            offset: 15,
            key: None,
            attributes: attributes.collect(),
            data: RawValue::from_string(format!(r#"{{"payload":{payload}}}"#)).expect("JSON"),
        }
    }

    fn shown(event: &Found, day: &str, columns: Option<usize>) -> String {
        let now = format!("{day}T23:00:00Z").parse().expect("a time");
        strip_str(&event.line("livechat.", now, columns)).to_string()
    }

    #[test]
    fn a_line_has_what_was_said_and_the_date_and_the_topic_only_where_they_are_not_the_usual_ones() {
        let chat = [("chatid", "1HHJIF3YAF"), ("threadid", "RU8EC65P1K")];
        let mut event = found("incoming_event", &chat, r#"{"chat_id":"1HHJIF3YAF","event":{"text":"Hi\nthere"}}"#);
        assert_eq!(
            shown(&event, "2026-11-28", Some(80)),
            "19:58:55  incoming_event                   1HHJIF3YAF  “Hi there”"
        );
        assert_eq!(
            shown(&event, "2026-11-29", Some(120)),
            "2026-11-28 19:58:55  2/15     incoming_event                   1HHJIF3YAF  “Hi there”"
        );
        event.topic = "livechat.dead-letter".to_owned();
        assert!(shown(&event, "2026-11-28", Some(80)).contains("  incoming_event (livechat.dead-letter)  1HHJIF3YAF"));

        let tagged = r#"{"chat_id":"1HHJIF3YAF","tag":"vip","thread_id":"RU8EC65P1K"}"#;
        assert!(shown(&found("thread_tagged", &chat, tagged), "2026-11-28", None).ends_with(r#"  {"tag":"vip"}"#));
        let texts = r#"{"chat":{"users":[{"type":"agent","name":"Paula"},{"type":"customer","name":"Erin Doe"}],"thread":{"events":[{"type":"file"},{"text":"Where is\nit?"},{"text":"Hello?"}]}}}"#;
        let begun = |payload: &str| shown(&found("incoming_chat", &chat, payload), "2026-11-28", None);
        assert!(begun(texts).ends_with("  1HHJIF3YAF  “Where is it?”"), "{}", begun(texts));
        assert!(begun(&texts.replace("\"text\"", "\"url\"")).ends_with("  1HHJIF3YAF  Erin Doe"));
        let bare = begun(r#"{"chat":{"id":"1HHJIF3YAF"}}"#);
        assert!(bare.ends_with(r#"  {"chat":{"id":"1HHJIF3YAF"}}"#), "{bare}");
        let subject = [("subject", "agents/paula@helpdesk.example")];
        let deleted = found("agent_deleted", &subject, r#"{"id":"paula@helpdesk.example"}"#);
        assert!(shown(&deleted, "2026-11-28", None).ends_with("  paula@helpdesk.example"));
    }

    #[test]
    fn what_an_event_says_is_no_fainter_than_the_rest_and_every_name_fits_its_column() {
        let chat = [("chatid", "1HHJIF3YAF")];
        let now = "2026-11-28T23:00:00Z".parse().expect("a time");
        for payload in [r#"{"event":{"text":"Hi"}}"#, r#"{"tag":"vip"}"#, r#"{"chat":{}}"#] {
            let line = found("thread_tagged", &chat, payload).line("livechat.", now, Some(80));
            let (_, said) = line.split_once("1HHJIF3YAF  ").expect("a text");
            assert!(!said.contains('\u{1b}'), "{line:?}");
        }
        let longest = actions::names().map(str::len).max();
        assert_eq!(longest, Some(NAME_COLUMNS));
    }

    #[test]
    fn a_line_fits_its_columns_and_ends_in_no_lone_ellipsis() {
        let chat = [("chatid", "1HHJIF3YAF")];
        let said = r#"{"event":{"text":"👩🏽‍🔧 日本語 and many more words, one after another, in every language"}}"#;
        for columns in 1..140 {
            for id in ["8", "1HHJIF3YAF", "c830ac51-d737-4e1c-bdf2-d1bfb5c830ac", &"x".repeat(200)] {
                let event = found("incoming_event", &[("chatid", id)], said);
                let line = shown(&event, "2026-11-28", Some(columns));
                assert!(measure_text_width(&line) <= columns, "{columns}: {line}");
                assert!(columns < 40 || line.rsplit("  ").next() != Some("…"), "{columns}: {line}");
            }
        }
        assert!(shown(&found("incoming_event", &chat, said), "2026-11-28", None).ends_with("in every language”"));
    }

    #[test]
    fn what_a_stranger_has_written_does_not_act_on_the_terminal() {
        let said = r#"{"event":{"text":"a\u001b[2J\u202eb"}}"#;
        let hostile = found("x\u{1b}[2J", &[("subject", "chats/\u{9b}31m")], said);
        let line = shown(&hostile, "2026-11-28", Some(200));
        assert!(line.contains("x\u{fffd}[2J") && line.contains("“a\u{fffd}[2J\u{fffd}b”"), "{line:?}");
        assert!(line.contains("\u{fffd}31m") && !line.contains('\u{1b}'), "{line:?}");
    }
}
