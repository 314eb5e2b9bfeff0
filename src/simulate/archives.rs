//! The Agent Chat API's `list_archives`, `list_chats` and `get_chat`, over the chats that happened.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::api::{Call, Handler, Refusal, invalid, refusal, text};
use super::chats::Chat;
use super::exchange::Answer;
use super::state::State;

const LIMIT_MAX: u64 = 100;
const LIMIT: u64 = 10;
const THREAD_IDS_MAX: usize = 20;
const CHAT_IDS_MAX: usize = 1000;

pub fn method(name: &str) -> Option<(Handler, &'static [&'static str])> {
    let scopes = &["chats--all:ro", "chats--access:ro"][..];
    Some(match name {
        "list_archives" => (Handler::Closed(list_archives), scopes),
        "list_chats" => (Handler::Closed(list_chats), scopes),
        "get_chat" => (Handler::Closed(get_chat), scopes),
        _ => return None,
    })
}

/// A listing that goes on. As JSON it is its own page id, so nothing has to be remembered.
#[derive(Serialize, Deserialize)]
struct Listing {
    method: String,
    filters: Map<String, Value>,
    is_ascending: bool,
    limit: usize,
    /// The last thread of the page before, by time and id.
    after: Option<(Timestamp, String)>,
}

/// What is asked for: a new listing, or by `page_id` alone one that goes on.
fn listing(call: &Call<'_>, method: &str) -> Result<Listing, Refusal> {
    let body = call.body;
    if let Some(id) = body.get("page_id") {
        if ["filters", "limit", "sort_order"].iter().any(|other| body.contains_key(*other)) {
            return Err(invalid("`page_id` cannot be used together with `filters`, `limit` or `sort_order`"));
        }
        let listing = id.as_str().and_then(|id| serde_json::from_str::<Listing>(id).ok());
        return listing.filter(|listing| listing.method == method).ok_or_else(|| invalid("`page_id` is invalid"));
    }
    let limit = match body.get("limit") {
        None => LIMIT,
        Some(limit) => limit
            .as_u64()
            .filter(|limit| (1..=LIMIT_MAX).contains(limit))
            .ok_or_else(|| invalid("`limit` is invalid"))?,
    };
    let is_ascending = match body.get("sort_order").map(Value::as_str) {
        None | Some(Some("desc")) => false,
        Some(Some("asc")) => true,
        Some(_) => return Err(invalid("`sort_order` is invalid")),
    };
    let filters = match body.get("filters") {
        None => Map::new(),
        Some(filters) => filters.as_object().cloned().ok_or_else(|| invalid("`filters` is invalid"))?,
    };
    if filters.contains_key("thread_ids")
        && (filters.len() > 1 || ["limit", "sort_order"].iter().any(|other| body.contains_key(*other)))
    {
        return Err(invalid("`filters.thread_ids` cannot be used together with other filters or pagination"));
    }
    Ok(Listing { method: method.to_owned(), filters, is_ascending, limit: limit as usize, after: None })
}

/// A page of the caller's chats, oldest or newest first, how many there are in all, and the id of the next page.
fn page(
    state: &State,
    call: &Call<'_>,
    listing: Listing,
    is_wanted: impl Fn(&Chat) -> bool,
    shown: impl Fn(&Chat) -> Value,
) -> (Vec<Value>, usize, Option<String>) {
    let key = |chat: &Chat| (chat.created_at, chat.thread_id().to_owned());
    let mut found: Vec<_> =
        state.chats.kept.iter().filter(|chat| chat.organization == call.caller.organization).collect();
    found.retain(|chat| is_wanted(chat));
    found.sort_by_key(|chat| key(chat));
    if !listing.is_ascending {
        found.reverse();
    }
    let count = found.len();
    if let Some(after) = &listing.after {
        found.retain(|chat| if listing.is_ascending { key(chat) > *after } else { key(chat) < *after });
    }
    let has_more = found.len() > listing.limit;
    found.truncate(listing.limit);
    let after = found.last().map(|chat| key(chat)).filter(|_| has_more);
    let chats = found.into_iter().map(shown).collect();
    let next = after.map(|after| json!(Listing { after: Some(after), ..listing }).to_string());
    (chats, count, next)
}

fn answer(name: &str, (chats, count, next): (Vec<Value>, usize, Option<String>)) -> Answer {
    let mut body = json!({ name: chats, "found_chats": count });
    if let Some(next) = next {
        body["next_page_id"] = json!(next);
    }
    Answer::json(200, &body)
}

fn list_archives(state: &mut State, call: &Call<'_>) -> Result<Answer, Refusal> {
    let listing = listing(call, "list_archives")?;
    let filters = Filters::of(&listing.filters, call.version)?;
    let (with_running, restricted) = (state.switches.running_threads, state.switches.restricted_access.clone());
    let is_wanted = |chat: &Chat| (with_running || !chat.is_active()) && filters.pass(chat);
    Ok(answer("chats", page(state, call, listing, is_wanted, |chat| whole(chat, restricted.as_deref()))))
}

/// A chat with its thread.
fn whole(chat: &Chat, restricted_access: Option<&str>) -> Value {
    let mut whole = chat.chat.clone();
    whole["is_followed"] = json!(false);
    whole["thread"] = chat.thread.clone();
    if let (Some(reason), Some(thread)) = (restricted_access, whole["thread"].as_object_mut()) {
        thread.remove("events");
        thread.insert("restricted_access".to_owned(), json!(reason));
    }
    whole
}

/// Those that are simulated. Others are refused, so that a test does not pass by a filter that does nothing.
#[derive(Default)]
struct Filters {
    from: Option<Timestamp>,
    to: Option<Timestamp>,
    /// In lower case.
    query: Option<String>,
    chat_ids: Option<Vec<String>>,
    thread_ids: Option<Vec<String>>,
}

impl Filters {
    fn of(filters: &Map<String, Value>, version: u8) -> Result<Self, Refusal> {
        let mut known = Self::default();
        for (name, value) in filters {
            let wrong = || invalid(format!("`filters.{name}` is invalid"));
            let time = || value.as_str().and_then(|time| time.parse().ok()).ok_or_else(wrong);
            let ids = |max| {
                let ids: Option<Vec<_>> =
                    value.as_array().and_then(|ids| ids.iter().map(|id| Some(id.as_str()?.to_owned())).collect());
                ids.filter(|ids| ids.len() <= max).ok_or_else(wrong)
            };
            match name.as_str() {
                "from" => known.from = Some(time()?),
                "to" => known.to = Some(time()?),
                "query" => known.query = Some(value.as_str().ok_or_else(wrong)?.to_lowercase()),
                "chat_ids" if version < 6 => return Err(invalid("`filters.chat_ids` is for versions from 3.6 on")),
                "chat_ids" => known.chat_ids = Some(ids(CHAT_IDS_MAX)?),
                "thread_ids" => known.thread_ids = Some(ids(THREAD_IDS_MAX)?),
                _ => return Err(invalid(format!("`filters.{name}` is not simulated"))),
            }
        }
        Ok(known)
    }

    fn pass(&self, chat: &Chat) -> bool {
        self.from.is_none_or(|from| chat.created_at >= from)
            && self.to.is_none_or(|to| chat.created_at <= to)
            && self.query.as_ref().is_none_or(|query| has_text(chat, query))
            && self.chat_ids.as_ref().is_none_or(|ids| ids.contains(&chat.id))
            && self.thread_ids.as_ref().is_none_or(|ids| ids.iter().any(|id| id == chat.thread_id()))
    }
}

/// Whether it is in the text of an event. How LiveChat searches is not documented.
fn has_text(chat: &Chat, query: &str) -> bool {
    let texts = chat.thread["events"].as_array().into_iter().flatten().filter_map(|event| event["text"].as_str());
    texts.into_iter().any(|text| text.to_lowercase().contains(query))
}

fn list_chats(state: &mut State, call: &Call<'_>) -> Result<Answer, Refusal> {
    let listing = listing(call, "list_chats")?;
    // Both say whether chats that are active are listed beside, or instead of, those that are not.
    let name = if call.version >= 6 { "active" } else { "include_active" };
    if let Some(other) = listing.filters.keys().find(|other| *other != name) {
        return Err(invalid(format!("`filters.{other}` is not simulated")));
    }
    let asked = listing
        .filters
        .get(name)
        .map(|value| value.as_bool().ok_or_else(|| invalid(format!("`filters.{name}` is invalid"))));
    let asked = asked.transpose()?;
    let is_wanted = move |chat: &Chat| match (name, asked) {
        (_, None) | ("include_active", Some(true)) => true,
        ("include_active", Some(false)) => !chat.is_active(),
        (_, Some(active)) => chat.is_active() == active,
    };
    let name = if call.version >= 7 { "chats_info" } else { "chats_summary" };
    Ok(answer(name, page(state, call, listing, is_wanted, summary)))
}

fn summary(chat: &Chat) -> Value {
    let mut last = Map::new();
    for event in chat.thread["events"].as_array().into_iter().flatten() {
        if let Some(kind) = event["type"].as_str() {
            last.insert(kind.to_owned(), json!({"thread_id": chat.thread_id(), "event": event}));
        }
    }
    let mut summary = chat.chat.clone();
    summary["is_followed"] = json!(false);
    summary["last_event_per_type"] = Value::Object(last);
    let of_thread = ["id", "active", "user_ids", "properties", "access", "created_at"];
    let of_thread = of_thread.iter().map(|name| ((*name).to_owned(), chat.thread[*name].clone()));
    summary["last_thread_summary"] = Value::Object(of_thread.collect());
    summary
}

fn get_chat(state: &mut State, call: &Call<'_>) -> Result<Answer, Refusal> {
    let id = text(call.body, "chat_id")?;
    let chat = state.chats.find(id).filter(|chat| chat.organization == call.caller.organization);
    let is_thread = |chat: &&Chat| call.body.get("thread_id").is_none_or(|id| *id == json!(chat.thread_id()));
    let chat = chat.filter(is_thread).ok_or_else(|| refusal("not_found", "Chat not found"))?;
    Ok(Answer::json(200, &whole(chat, state.switches.restricted_access.as_deref())))
}
