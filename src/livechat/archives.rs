//! The Agent Chat API, as far as a backfill needs it: archived threads, the chats that are still running, and one chat.

use jiff::Timestamp;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::call::{Access, Call, Caller};
use super::http::{ARCHIVE_BYTES_MAX, FailedAttempt};
use super::{App, Config, Failure, Version};

/// As many as LiveChat gives.
const PAGE_MAX: u32 = 100;

/// Archives and chats of the license, for one app.
pub struct Archives {
    caller: Caller,
    /// How many threads a page is asked for: fewer, where a page was too large.
    limit: u32,
}

/// A page of `list_archives` or `list_chats`.
#[derive(Debug, Deserialize)]
pub struct ArchivePage {
    /// As LiveChat wrote them. One entry is one thread of `list_archives`, and a summary of `list_chats`.
    #[serde(alias = "chats_summary", alias = "chats_info", default, deserialize_with = "or_none")]
    pub chats: Vec<Box<RawValue>>,
    /// Of all pages; an estimate.
    #[serde(default)]
    pub found_chats: Option<u64>,
    /// Absent: this is the last page.
    #[serde(default, deserialize_with = "not_empty")]
    pub next_page_id: Option<String>,
}

impl Archives {
    pub fn new(config: &Config, app: &App) -> Self {
        let caller = Caller::new(config, app, "agent", Access::of(config, app));
        Self { caller, limit: PAGE_MAX }
    }

    /// How many calls LiveChat may have billed until now.
    pub fn calls(&self) -> u64 {
        self.caller.calls()
    }

    /// Threads of a time, oldest first: the first page, or the one that the page before has named, for which LiveChat takes no times.
    ///
    /// # Errors
    /// No page was had. Where one was too large, the next first page is smaller, and this one is asked for again if it is the first.
    pub async fn page(
        &mut self,
        from: Timestamp,
        to: Timestamp,
        page_id: Option<&str>,
    ) -> Result<ArchivePage, Failure> {
        loop {
            let filters = || json!({ "from": time(from), "to": time(to) });
            let first = || json!({ "filters": filters(), "sort_order": "asc", "limit": self.limit });
            let body = page_id.map_or_else(first, |id| json!({ "page_id": id }));
            match self.get("list_archives", body).await {
                Err(failed) if failed.is_too_large && self.limit > 1 => {
                    self.limit /= 2;
                    if page_id.is_some() {
                        let remedy = "begin this time's first page again: its pages will be smaller".to_owned();
                        return Err(Failure { remedy, ..failed.failure });
                    }
                }
                page => return Ok(page?),
            }
        }
    }

    /// Summaries of chats that have not ended; each has an `id` for [`Self::chat`]. Up to 3.5, ended chats are among them.
    ///
    /// # Errors
    /// No page was had.
    pub async fn running_chats(&self, page_id: Option<&str>) -> Result<ArchivePage, Failure> {
        let filter = if self.caller.app.version >= Version::V3_6 { "active" } else { "include_active" };
        let first = || json!({ "filters": { filter: true }, "limit": PAGE_MAX });
        Ok(self.get("list_chats", page_id.map_or_else(first, |id| json!({ "page_id": id }))).await?)
    }

    /// A chat with its latest thread.
    ///
    /// # Errors
    /// [`super::Kind::NotFound`]: it is not there, or not for this account.
    pub async fn chat(&self, id: &str) -> Result<Box<RawValue>, Failure> {
        Ok(self.get("get_chat", json!({ "chat_id": id })).await?)
    }

    async fn get<T: serde::de::DeserializeOwned>(&self, action: &'static str, body: Value) -> Result<T, FailedAttempt> {
        self.caller.call(&Call { bytes_max: ARCHIVE_BYTES_MAX, ..Call::new(action, body) }).await
    }
}

/// An empty list may be `null`.
fn or_none<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Vec<Box<RawValue>>, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// An id that is empty is none.
fn not_empty<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    Ok(Option::deserialize(deserializer)?.filter(|id: &String| !id.is_empty()))
}

/// With microseconds and an offset, as LiveChat wants it.
fn time(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%S%.6f+00:00").to_string()
}
