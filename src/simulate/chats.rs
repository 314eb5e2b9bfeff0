//! What happens at the simulated LiveChat: chats that are driven by hand or by traffic, and what archives keep of them.

use std::collections::{BTreeMap, VecDeque};

use jiff::Timestamp;
use serde::Deserialize;
use serde_json::value::{RawValue, to_raw_value};
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::filters::{Facts, Source};
use super::setup::Setup;
use crate::samples::scene::Story;
use crate::samples::traffic::{Sample, Traffic};

/// So many chats are kept; then the oldest are forgotten.
const CHATS_MAX: usize = 10_000;
/// The client that chats come from, where nothing else is said: LiveChat's own.
const LIVECHAT_CLIENT: &str = "bb9e5b2f1ab480e4a715977b7b1b4279";

#[derive(Default)]
pub struct Chats {
    pub kept: VecDeque<Chat>,
    /// The mix of each organization.
    traffic: BTreeMap<String, Traffic>,
}

pub struct Chat {
    pub id: String,
    pub organization: String,
    /// Without its thread.
    pub chat: Value,
    pub thread: Value,
    pub created_at: Timestamp,
    /// What goes on when it is driven by hand.
    story: Option<Story>,
}

impl Chat {
    pub fn thread_id(&self) -> &str {
        self.thread["id"].as_str().unwrap_or_default()
    }

    pub fn is_active(&self) -> bool {
        self.thread["active"] == json!(true)
    }
}

/// What is said of a happening: members that are absent are invented.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Details {
    pub organization_id: Option<String>,
    /// What made it happen, for the filter `source_type`: a Client ID, `system`, or LiveChat's own applications.
    pub source: Option<String>,
    /// The chat's property `source.client_id`.
    pub client_id: Option<String>,
    /// Bots that are in a new chat.
    pub bots: Vec<String>,
    /// A message's text, and who has written it: `customer`, `agent`, or the id of a user.
    pub text: Option<String>,
    pub author: Option<String>,
    pub tag: Option<String>,
    /// When it happened, instead of now.
    pub at: Option<Timestamp>,
    /// `false`: no webhooks are sent, and only the archives know of it.
    pub deliver: Option<bool>,
}

/// Something that happened, as registrations see it.
pub struct Happening {
    pub organization: String,
    pub action: String,
    pub payload: Box<RawValue>,
    pub requester: Option<Box<RawValue>>,
    pub chat_id: Option<String>,
    pub event_id: Option<String>,
    pub chat_properties: Value,
    pub facts: Facts,
}

/// What is of interest in the body of a sample.
#[derive(Deserialize)]
struct Body {
    payload: Box<RawValue>,
    requester: Option<Box<RawValue>>,
}

impl Chats {
    /// The next webhook of an organization's traffic.
    pub fn next_of_traffic(&mut self, organization: &str, setup: &Setup) -> Result<Happening, String> {
        let sample = self.traffic(organization, setup)?.next().ok_or("traffic never ends")?;
        self.record(organization, &sample, &Details::default(), None)
    }

    /// Begins a chat.
    pub fn start(&mut self, details: &Details, setup: &Setup) -> Result<Happening, String> {
        let (organization, story, sample) = self.begin("incoming_chat", details, setup)?;
        self.record(&organization, &sample, details, Some(story))
    }

    /// What happens first in a story, for which organization.
    fn begin(&mut self, name: &str, details: &Details, setup: &Setup) -> Result<(String, Story, Sample), String> {
        let organization = setup.named_organization(details.organization_id.as_deref())?.id.clone();
        let time = details.at.unwrap_or_else(Timestamp::now);
        let traffic = self.traffic(&organization, setup)?;
        let mut story = traffic.begin(time);
        let sample = traffic.tell_of(&mut story, name, time);
        Ok((organization, story, sample.ok_or_else(|| format!("there is no sample of `{name}`"))?))
    }

    /// Something more happens in a chat that was begun by hand: an action, or one of its samples such as `incoming_event.file`.
    pub fn go_on(&mut self, chat_id: &str, name: &str, details: &Details, setup: &Setup) -> Result<Happening, String> {
        let chat = self.find_mut(chat_id).ok_or_else(|| format!("there is no chat `{chat_id}`"))?;
        let organization = chat.organization.clone();
        if !chat.is_active() {
            return Err(format!("the chat `{chat_id}` is over"));
        }
        let story = chat.story.take();
        let mut story =
            story.ok_or_else(|| format!("the chat `{chat_id}` belongs to the traffic, and cannot be driven"))?;
        let time = details.at.unwrap_or_else(Timestamp::now);
        let sample = self.traffic(&organization, setup)?.tell_of(&mut story, name, time);
        if let Some(chat) = self.find_mut(chat_id) {
            chat.story = Some(story);
        }
        let sample = sample.ok_or_else(|| format!("there is no sample of `{name}`"))?;
        self.record(&organization, &sample, details, None)
    }

    /// Something happens outside of chats, such as `tag_created`.
    pub fn aside(&mut self, name: &str, details: &Details, setup: &Setup) -> Result<Happening, String> {
        let (organization, _, sample) = self.begin(name, details, setup)?;
        if sample.chat_id().is_some() {
            return Err(format!("`{name}` happens in a chat: POST /_simulate/chats/CHAT_ID/{name}"));
        }
        self.record(&organization, &sample, details, None)
    }

    pub fn find(&self, chat_id: &str) -> Option<&Chat> {
        self.kept.iter().rev().find(|chat| chat.id == chat_id)
    }

    fn find_mut(&mut self, chat_id: &str) -> Option<&mut Chat> {
        self.kept.iter_mut().rev().find(|chat| chat.id == chat_id)
    }

    fn traffic(&mut self, organization: &str, setup: &Setup) -> Result<&mut Traffic, String> {
        let known = setup.named_organization(Some(organization))?;
        let seed = || Uuid::new_v4().as_u64_pair().0;
        let begin = || Traffic::new(seed()).organization(&known.id, known.license_id, LIVECHAT_CLIENT);
        Ok(self.traffic.entry(organization.to_owned()).or_insert_with(begin))
    }

    /// The archives learn what happened, and registrations what it was.
    fn record(
        &mut self,
        organization: &str,
        sample: &Sample,
        details: &Details,
        story: Option<Story>,
    ) -> Result<Happening, String> {
        let Body { mut payload, requester } = serde_json::from_str(sample.data()).map_err(|error| error.to_string())?;
        let invented: Value = serde_json::from_str(payload.get()).map_err(|error| error.to_string())?;
        let mut value = invented.clone();
        let chat_id = sample.chat_id().map(str::to_owned);
        if sample.action() != "incoming_chat"
            && let Some(chat) = chat_id.as_deref().and_then(|id| self.find(id))
        {
            revise(&mut value, details, &chat.chat);
        } else {
            revise_chat(&mut value, details);
        }
        // What is not revised keeps its bytes.
        if value != invented {
            payload = to_raw_value(&value).map_err(|error| error.to_string())?;
        }
        if sample.action() == "incoming_chat" {
            self.keep(organization, &value, details.at, story);
        }
        let mut facts = Facts { source: source(details), agent_id: agent_id(&value), ..Facts::default() };
        let mut chat_properties = json!({});
        if let Some(chat) = chat_id.as_deref().and_then(|id| self.find_mut(id)) {
            chat.go_on(sample.action(), &value);
            facts.present = chat.users().filter(|user| user["present"] == json!(true)).filter_map(id).collect();
            facts.chat_client = chat.chat["properties"]["source"]["client_id"].as_str().map(str::to_owned);
            let author = value["event"]["author_id"].as_str().or_else(|| value["author_id"].as_str());
            let author = author.and_then(|author| chat.users().find(|user| user["id"] == json!(author)));
            facts.author_type = author.and_then(|user| Some(user["type"].as_str()?.to_owned()));
            chat_properties = chat.chat["properties"].clone();
        }
        let event_id = value["event"]["id"].as_str().or_else(|| value["event_id"].as_str()).map(str::to_owned);
        let (organization, action) = (organization.to_owned(), sample.action().to_owned());
        Ok(Happening { organization, action, payload, requester, chat_id, event_id, chat_properties, facts })
    }

    fn keep(&mut self, organization: &str, payload: &Value, at: Option<Timestamp>, story: Option<Story>) {
        let mut chat = payload["chat"].clone();
        let thread = chat.as_object_mut().and_then(|chat| chat.remove("thread")).unwrap_or_default();
        let created_at = thread["created_at"].as_str().and_then(|time| time.parse().ok());
        self.kept.push_back(Chat {
            id: chat["id"].as_str().unwrap_or_default().to_owned(),
            organization: organization.to_owned(),
            created_at: created_at.or(at).unwrap_or_else(Timestamp::now),
            chat,
            thread,
            story,
        });
        if self.kept.len() > CHATS_MAX {
            self.kept.pop_front();
        }
    }
}

fn source(details: &Details) -> Source {
    match details.source.as_deref() {
        None => Source::LiveChat,
        Some("system") => Source::System,
        Some(client) => Source::Client(client.to_owned()),
    }
}

fn id(user: &Value) -> Option<String> {
    Some(user["id"].as_str()?.to_owned())
}

fn agent_id(payload: &Value) -> Option<String> {
    payload["agent_id"].as_str().or_else(|| payload["id"].as_str()).map(str::to_owned)
}

/// What was said of a new chat.
fn revise_chat(payload: &mut Value, details: &Details) {
    let Some(chat) = payload.get_mut("chat") else { return };
    if let Some(client) = &details.client_id {
        chat["properties"]["source"]["client_id"] = json!(client);
    }
    for bot in &details.bots {
        if let Some(users) = chat["users"].as_array_mut() {
            users.push(json!({"id": bot, "type": "agent", "name": "Bot", "present": true, "visibility": "all"}));
        }
        if let Some(ids) = chat["thread"]["user_ids"].as_array_mut() {
            ids.push(json!(bot));
        }
    }
    if let Some(text) = &details.text
        && let Some(events) = chat["thread"]["events"].as_array_mut()
        && let Some(message) = events.iter_mut().find(|event| event["type"] == json!("message"))
    {
        message["text"] = json!(text);
    }
}

/// What was said of a happening in a chat.
fn revise(payload: &mut Value, details: &Details, chat: &Value) {
    if let Some(tag) = &details.tag
        && payload.get("tag").is_some()
    {
        payload["tag"] = json!(tag);
    }
    let Some(event) = payload.get_mut("event") else { return };
    if let Some(text) = &details.text {
        event["text"] = json!(text);
    }
    if let Some(author) = &details.author {
        let mut users = chat["users"].as_array().into_iter().flatten();
        let of_type = users.find(|user| user["type"] == json!(author)).and_then(id);
        event["author_id"] = json!(of_type.unwrap_or_else(|| author.clone()));
    }
}

impl Chat {
    fn users(&self) -> impl Iterator<Item = &Value> {
        self.chat["users"].as_array().into_iter().flatten()
    }

    /// What archives keep of a happening.
    fn go_on(&mut self, action: &str, payload: &Value) {
        let named = |list: &mut Vec<Value>, id: &Value| list.iter().position(|one| one["id"] == *id);
        let (users, thread) = (self.chat["users"].as_array_mut(), &mut self.thread);
        match action {
            "incoming_event" => list(thread, "events").push(payload["event"].clone()),
            "event_updated" => {
                let events = list(thread, "events");
                if let Some(at) = named(events, &payload["event"]["id"]) {
                    events[at] = payload["event"].clone();
                }
            }
            "event_deleted" => list(thread, "events").retain(|event| event["id"] != payload["event_id"]),
            "thread_tagged" => list(thread, "tags").push(payload["tag"].clone()),
            "thread_untagged" => list(thread, "tags").retain(|tag| *tag != payload["tag"]),
            "chat_deactivated" => thread["active"] = json!(false),
            "user_added_to_chat" => {
                let Some(users) = users else { return };
                if let Some(at) = named(users, &payload["user"]["id"]) {
                    users[at]["present"] = json!(true);
                } else {
                    users.push(payload["user"].clone());
                    list(thread, "user_ids").push(payload["user"]["id"].clone());
                }
            }
            "user_removed_from_chat" => {
                let Some(users) = users else { return };
                if let Some(at) = named(users, &payload["user_id"]) {
                    users[at]["present"] = json!(false);
                }
            }
            _ => {}
        }
    }
}

/// A list of a thread; it is made where it is not there.
fn list<'a>(thread: &'a mut Value, name: &str) -> &'a mut Vec<Value> {
    if !thread.is_object() {
        *thread = Value::Object(Map::new());
    }
    if !thread[name].is_array() {
        thread[name] = json!([]);
    }
    thread[name].as_array_mut().expect("it was made")
}
