//! What a record says of its event, in either mode of CloudEvents.

use std::borrow::Cow;

use serde::Deserialize;

use super::Record;

/// Those that a person looks for. What is no event has none.
#[derive(Debug, Default, Deserialize)]
pub struct Attributes<'a> {
    #[serde(borrow)]
    pub id: Option<Cow<'a, str>>,
    #[serde(borrow, rename = "type")]
    kind: Option<Cow<'a, str>>,
    #[serde(borrow)]
    pub app: Option<Cow<'a, str>>,
}

impl<'a> Attributes<'a> {
    pub fn of(record: &'a Record) -> Self {
        let header = |name: &str| {
            let found = record.headers.iter().find(|(found, _)| found == name);
            found.map(|(_, value)| Cow::Borrowed(&**value))
        };
        if header("ce_id").is_some() {
            return Self { id: header("ce_id"), kind: header("ce_type"), app: header("ce_app") };
        }
        serde_json::from_slice(&record.value).unwrap_or_default()
    }

    /// The action's current name.
    pub fn action(&self) -> Option<&str> {
        self.kind.as_deref()?.strip_prefix("com.livechat.")
    }
}
