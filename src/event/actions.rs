//! The catalogue of LiveChat's actions: their names, and where their payloads have ids and times.
//!
//! The facts are from LiveChat's webhook documentation, API 3.1 to 3.7. One entry serves all versions: if a member has moved between
//! versions, its slot has several pointers, and the first that leads to something counts.

use std::collections::HashMap;
use std::sync::LazyLock;

/// What a pointer leads to. All but the times and the event's type become attributes of the event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slot {
    Chat,
    Thread,
    Event,
    Author,
    User,
    Customer,
    Agent,
    Bot,
    Group,
    Tag,
    AutoAccess,
    Resource,
    /// RFC 3339, as LiveChat writes nearly all times.
    Time,
    /// Seconds since 1970: only `thread.timestamp` of API 3.1.
    UnixTime,
    /// LiveChat's type of event: `message`, `system_message` and so on.
    EventType,
}

impl Slot {
    /// The length of a table indexed by slot.
    pub const COUNT: usize = Self::EventType as usize + 1;

    /// The slots that become attributes, in the order of the envelope.
    pub const ATTRIBUTES: [(Self, &'static str); 12] = [
        (Self::Chat, "chatid"),
        (Self::Thread, "threadid"),
        (Self::Event, "eventid"),
        (Self::Author, "authorid"),
        (Self::User, "userid"),
        (Self::Customer, "customerid"),
        (Self::Agent, "agentid"),
        (Self::Bot, "botid"),
        (Self::Group, "groupid"),
        (Self::Tag, "tag"),
        (Self::AutoAccess, "autoaccessid"),
        (Self::Resource, "resourceid"),
    ];
}

/// Whether a payload names its event, so that a retry can be told from a second event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Identity {
    /// The tenant, the action and these slots name the event, and its id is derived from them.
    Strong(&'static [Slot]),
    /// Two events can be equal byte for byte, such as a status that is set twice. So each delivery gets its own id.
    Weak,
}

/// Where a slot is: the names of the members that lead to it, from the payload inwards.
pub type Pointer = (Slot, &'static [&'static str]);

/// One action of LiveChat.
#[derive(Debug)]
pub struct Action {
    /// The current name: the end of topic and type.
    pub name: &'static str,
    /// Names of older API versions, and names that LiveChat prints for the same thing.
    pub older: &'static [&'static str],
    /// The entry is for the older names only: under the current name the payload is different, and has another entry.
    pub only_older: bool,
    /// At most [`POINTERS_MAX`]. If two lead to one slot, the first counts.
    pub pointers: &'static [Pointer],
    /// The record's key is the first of these that the payload has, else the tenant.
    pub key: &'static [Slot],
    pub identity: Identity,
}

/// The length of the table of what an action's pointers lead to.
pub const POINTERS_MAX: usize = 8;

/// The entry for an action by the name in the webhook, which may be an older one.
pub fn find(delivered: &str) -> Option<&'static Action> {
    static BY_NAME: LazyLock<HashMap<&'static str, &'static Action>> = LazyLock::new(|| {
        let names = |action: &'static Action| action.delivered_as().map(move |name| (name, action));
        ACTIONS.iter().flat_map(names).collect()
    });
    BY_NAME.get(delivered).copied()
}

/// The current names, each once, in the order of the catalogue.
pub fn names() -> impl Iterator<Item = &'static str> {
    ACTIONS.iter().filter(|action| !action.only_older).map(|action| action.name)
}

use Identity::{Strong, Weak};
use Slot::*;

const CHAT: Pointer = (Chat, &["chat_id"]);
const THREAD: Pointer = (Thread, &["thread_id"]);
const USER: Pointer = (User, &["user_id"]);
const EVENT: Pointer = (Event, &["event_id"]);

const EVENT_OF_THREAD: &[Pointer] = &[
    CHAT,
    THREAD,
    (Event, &["event", "id"]),
    (EventType, &["event", "type"]),
    (Author, &["event", "author_id"]),
    (Time, &["event", "created_at"]),
];

const fn action(name: &'static str, pointers: &'static [Pointer], key: &'static [Slot], identity: Identity) -> Action {
    Action { name, older: &[], only_older: false, pointers, key, identity }
}

impl Action {
    const fn with_older(mut self, older: &'static [&'static str]) -> Self {
        self.older = older;
        self
    }

    const fn only_older(mut self, older: &'static [&'static str]) -> Self {
        self.only_older = true;
        self.with_older(older)
    }

    /// The names in the webhooks that this entry is for.
    pub fn delivered_as(&self) -> impl Iterator<Item = &'static str> {
        self.older.iter().copied().chain((!self.only_older).then_some(self.name))
    }
}

/// Stands for all App Webhooks, which are no actions of the catalogue. Their time is beside the payload.
pub static APP_WEBHOOK: Action = action("app_webhook", &[(Time, &["date"])], &[], Weak);

/// An installation that went through the relay's own page. The relay writes its body, in the shape of an App Webhook's.
pub static APP_INSTALLED: Action = action("app_installed", &[(Time, &["date"])], &[], Weak);

/// Every action of API 3.1 to 3.7, by category as LiveChat lists them.
pub static ACTIONS: &[Action] = &[
    // chats
    action(
        "incoming_chat",
        &[
            (Chat, &["chat", "id"]),
            (Thread, &["chat", "thread", "id"]),
            (Time, &["chat", "thread", "created_at"]),
            (UnixTime, &["chat", "thread", "timestamp"]),
        ],
        &[Chat],
        Strong(&[Chat, Thread]),
    )
    .with_older(&["incoming_chat_thread"]),
    action("chat_deactivated", &[CHAT, THREAD, USER], &[Chat], Strong(&[Chat, Thread])).with_older(&["thread_closed"]),
    // chat access; 3.1 names a resource, which need not be a chat
    action("chat_access_updated", &[(Chat, &["id"])], &[Chat], Weak),
    action("chat_access_granted", &[(Chat, &["id"])], &[Chat], Weak),
    action("chat_access_revoked", &[(Chat, &["id"])], &[Chat], Weak),
    action("chat_access_granted", &[(Resource, &["id"])], &[Resource], Weak).only_older(&["access_granted"]),
    action("chat_access_revoked", &[(Resource, &["id"])], &[Resource], Weak).only_older(&["access_revoked"]),
    action("access_set", &[(Resource, &["id"])], &[Resource], Weak),
    // up to 3.5 the name of the queue's time ends in `_us`; it is RFC 3339 all the same
    action(
        "chat_transferred",
        &[CHAT, THREAD, (Time, &["queue", "queued_at"]), (Time, &["queue", "queued_at_us"])],
        &[Chat],
        Weak,
    ),
    // chat users
    action("user_added_to_chat", &[CHAT, THREAD, (User, &["user", "id"])], &[Chat], Weak)
        .with_older(&["chat_user_added"]),
    action("user_removed_from_chat", &[CHAT, THREAD, USER], &[Chat], Weak).with_older(&["chat_user_removed"]),
    // events
    action("incoming_event", EVENT_OF_THREAD, &[Chat], Strong(&[Chat, Thread, Event])),
    // `created_at` is when the event was made, not when it was changed: LiveChat does not say when that was
    action("event_updated", EVENT_OF_THREAD, &[Chat], Weak),
    action("event_deleted", &[CHAT, THREAD, EVENT], &[Chat], Strong(&[Chat, Thread, Event])),
    action("incoming_rich_message_postback", &[CHAT, THREAD, EVENT, USER], &[Chat], Weak),
    // properties
    action("chat_properties_updated", &[CHAT], &[Chat], Weak),
    action("chat_properties_deleted", &[CHAT], &[Chat], Weak),
    action("thread_properties_updated", &[CHAT, THREAD], &[Chat], Weak).with_older(&["chat_thread_properties_updated"]),
    action("thread_properties_deleted", &[CHAT, THREAD], &[Chat], Weak).with_older(&["chat_thread_properties_deleted"]),
    action("event_properties_updated", &[CHAT, THREAD, EVENT], &[Chat], Weak),
    action("event_properties_deleted", &[CHAT, THREAD, EVENT], &[Chat], Weak),
    // thread tags
    action("thread_tagged", &[CHAT, THREAD, (Tag, &["tag"])], &[Chat], Weak).with_older(&["chat_thread_tagged"]),
    action("thread_untagged", &[CHAT, THREAD, (Tag, &["tag"])], &[Chat], Weak).with_older(&["chat_thread_untagged"]),
    // status
    action("routing_status_set", &[(Agent, &["agent_id"])], &[Agent], Weak).with_older(&["agent_status_changed"]),
    // customers; the documentation nests the customer, LiveChat's SDK has it flat
    action(
        "incoming_customer",
        &[
            (Customer, &["customer", "id"]),
            (Customer, &["id"]),
            (Time, &["customer", "created_at"]),
            (Time, &["created_at"]),
        ],
        &[Customer],
        Weak,
    )
    .with_older(&["customer_created"]),
    action(
        "customer_session_fields_updated",
        &[(Customer, &["id"]), (Chat, &["active_chat", "chat_id"]), (Thread, &["active_chat", "thread_id"])],
        &[Chat, Customer],
        Weak,
    ),
    // configuration
    action("agent_created", &[(Agent, &["id"])], &[Agent], Weak),
    action("agent_approved", &[(Agent, &["id"])], &[Agent], Weak),
    action("agent_updated", &[(Agent, &["id"])], &[Agent], Weak),
    action("agent_suspended", &[(Agent, &["id"])], &[Agent], Weak),
    action("agent_unsuspended", &[(Agent, &["id"])], &[Agent], Weak),
    action("agent_deleted", &[(Agent, &["id"]), (Agent, &["agent_id"])], &[Agent], Weak),
    action("auto_access_added", &[(AutoAccess, &["id"])], &[AutoAccess], Weak).with_older(&["auto_access_created"]),
    action("auto_access_updated", &[(AutoAccess, &["id"])], &[AutoAccess], Weak),
    action("auto_access_deleted", &[(AutoAccess, &["id"])], &[AutoAccess], Weak),
    action("auto_accesses_updated", &[], &[], Weak), // an array of changes
    action("bot_created", &[(Bot, &["id"])], &[Bot], Weak),
    action("bot_updated", &[(Bot, &["id"])], &[Bot], Weak),
    action("bot_deleted", &[(Bot, &["id"])], &[Bot], Weak),
    action("group_created", &[(Group, &["id"])], &[Group], Weak).with_older(&["create_group"]),
    action("group_updated", &[(Group, &["id"])], &[Group], Weak).with_older(&["update_group"]),
    action("group_deleted", &[(Group, &["id"])], &[Group], Weak).with_older(&["delete_group"]),
    action("tag_created", &[(Tag, &["name"]), (Time, &["created_at"])], &[Tag], Strong(&[Tag, Time]))
        .with_older(&["create_tag"]),
    action("tag_deleted", &[(Tag, &["name"])], &[Tag], Weak).with_older(&["delete_tag"]),
    action("tag_updated", &[(Tag, &["name"])], &[Tag], Weak).with_older(&["update_tag"]),
    // other
    action("events_marked_as_seen", &[CHAT, USER, (Time, &["seen_up_to"])], &[Chat], Strong(&[Chat, User, Time]))
        .with_older(&["last_seen_timestamp_updated"]),
    action(
        "thread_summary_set",
        &[CHAT, THREAD, (Time, &["summary", "updated_at"])],
        &[Chat],
        Strong(&[Chat, Thread, Time]),
    ),
    action("follow_up_requested", &[CHAT, THREAD, (Customer, &["customer_id"])], &[Chat], Weak),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_leads_to_one_action() {
        let names: Vec<_> = ACTIONS.iter().flat_map(Action::delivered_as).collect();
        let unique: std::collections::HashSet<_> = names.iter().collect();
        assert_eq!(unique.len(), names.len(), "a name stands twice");
        assert_eq!(find("thread_closed").map(|a| a.name), Some("chat_deactivated"));
        assert_eq!(find("access_granted").map(|a| a.name), Some("chat_access_granted"));
        assert_eq!(find("Chat_deactivated").map(|a| a.name), None);
        assert_eq!(super::names().count(), 46);
    }

    #[test]
    fn entries_are_sound() {
        for a in ACTIONS {
            assert!(a.pointers.len() <= POINTERS_MAX, "{}", a.name);
            assert!(a.name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{}", a.name);
            let paths = a.pointers.iter().enumerate().map(|(i, (_, path))| (i, path));
            let leads_on =
                |(i, path): (usize, &&[&str])| paths.clone().any(|(j, other)| i != j && other.starts_with(path));
            assert!(!paths.clone().any(leads_on), "{}: a pointer leads to another one or beyond", a.name);
            let has = |slot: &Slot| a.pointers.iter().any(|(s, _)| s == slot);
            assert!(a.key.iter().all(has), "{}: a key without a pointer", a.name);
            if let Strong(slots) = a.identity {
                assert!(slots.iter().all(has), "{}: an identity without a pointer", a.name);
            }
        }
    }
}
