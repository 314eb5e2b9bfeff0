//! The catalogue: what LiveChat's actions are called and where their payloads keep ids and times.
//!
//! Facts from LiveChat's webhook documentation, API versions 3.1 to 3.7. An entry serves all of them: where a member
//! moved between versions, its slot has several pointers, and the first that is there counts.

use std::collections::HashMap;
use std::sync::LazyLock;

/// What a pointer finds. Each but the times becomes an attribute of the event.
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
    /// RFC 3339, as LiveChat writes times.
    Time,
    /// Seconds since 1970: only `thread.timestamp` of API 3.1.
    UnixTime,
}

impl Slot {
    /// How many slots there are: the length of a table indexed by slot.
    pub const COUNT: usize = Self::UnixTime as usize + 1;

    /// The slots that become attributes, in the order in which the envelope lists them.
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

/// Whether a payload names its own event, so that a retry can be told from a second event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Identity {
    /// The tenant, the action and these slots name the event: its id is derived from them.
    Strong(&'static [Slot]),
    /// Two genuine events can be equal byte for byte, such as a status that is set twice: each delivery gets its own id.
    Weak,
}

/// Where a slot is: member names from the payload downwards.
pub type Pointer = (Slot, &'static [&'static str]);

/// One action of LiveChat.
#[derive(Debug)]
pub struct Action {
    /// The current name, which topic and type carry.
    pub name: &'static str,
    /// Names of older API versions, and names that LiveChat prints for the same thing.
    pub older: &'static [&'static str],
    /// The entry is for the older names alone: under the current name the payload has another shape, and another entry.
    pub only_older: bool,
    /// At most [`POINTERS_MAX`]; for one slot the earlier wins.
    pub pointers: &'static [Pointer],
    /// The record's key: the first of these that is there, else the tenant.
    pub key: &'static [Slot],
    pub identity: Identity,
}

/// As many as a set of bits in a `u16` can hold.
pub const POINTERS_MAX: usize = 16;

/// The entry for an action as delivered, by its current or an older name.
pub fn find(delivered: &str) -> Option<&'static Action> {
    static BY_NAME: LazyLock<HashMap<&'static str, &'static Action>> = LazyLock::new(|| {
        let names = |action: &'static Action| action.delivered_as().map(move |name| (name, action));
        ACTIONS.iter().flat_map(names).collect()
    });
    BY_NAME.get(delivered).copied()
}

/// The current names, each once, in the catalogue's order.
pub fn names() -> impl Iterator<Item = &'static str> {
    ACTIONS.iter().filter(|action| !action.only_older).map(|action| action.name)
}

use Identity::{Strong, Weak};
use Slot::*;

const CHAT: Pointer = (Chat, &["chat_id"]);
const THREAD: Pointer = (Thread, &["thread_id"]);
const USER: Pointer = (User, &["user_id"]);
const EVENT: Pointer = (Event, &["event_id"]);

const fn action(name: &'static str, pointers: &'static [Pointer], key: &'static [Slot], identity: Identity) -> Action {
    Action { name, older: &[], only_older: false, pointers, key, identity }
}

impl Action {
    const fn once(mut self, older: &'static [&'static str]) -> Self {
        self.older = older;
        self
    }

    const fn only(mut self, older: &'static [&'static str]) -> Self {
        self.only_older = true;
        self.once(older)
    }

    /// The names under which this entry's webhooks arrive.
    pub fn delivered_as(&self) -> impl Iterator<Item = &'static str> {
        self.older.iter().copied().chain((!self.only_older).then_some(self.name))
    }
}

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
    .once(&["incoming_chat_thread"]),
    action("chat_deactivated", &[CHAT, THREAD, USER], &[Chat], Strong(&[Chat, Thread])).once(&["thread_closed"]),
    // chat access; 3.1 names a resource, which need not be a chat
    action("chat_access_updated", &[(Chat, &["id"])], &[Chat], Weak),
    action("chat_access_granted", &[(Chat, &["id"])], &[Chat], Weak),
    action("chat_access_revoked", &[(Chat, &["id"])], &[Chat], Weak),
    action("chat_access_granted", &[(Resource, &["id"])], &[Resource], Weak).only(&["access_granted"]),
    action("chat_access_revoked", &[(Resource, &["id"])], &[Resource], Weak).only(&["access_revoked"]),
    action("access_set", &[(Resource, &["id"])], &[Resource], Weak),
    // up to 3.5 the queue's time has `_us` in its name, and is RFC 3339 all the same
    action(
        "chat_transferred",
        &[CHAT, THREAD, (Time, &["queue", "queued_at"]), (Time, &["queue", "queued_at_us"])],
        &[Chat],
        Weak,
    ),
    // chat users
    action("user_added_to_chat", &[CHAT, THREAD, (User, &["user", "id"])], &[Chat], Weak).once(&["chat_user_added"]),
    action("user_removed_from_chat", &[CHAT, THREAD, USER], &[Chat], Weak).once(&["chat_user_removed"]),
    // events
    action(
        "incoming_event",
        &[CHAT, THREAD, (Event, &["event", "id"]), (Author, &["event", "author_id"]), (Time, &["event", "created_at"])],
        &[Chat],
        Strong(&[Chat, Thread, Event]),
    ),
    // `created_at` is when the event was made, not when it was changed: LiveChat does not say when that was
    action(
        "event_updated",
        &[CHAT, THREAD, (Event, &["event", "id"]), (Author, &["event", "author_id"]), (Time, &["event", "created_at"])],
        &[Chat],
        Weak,
    ),
    action("event_deleted", &[CHAT, THREAD, EVENT], &[Chat], Strong(&[Chat, Thread, Event])),
    action("incoming_rich_message_postback", &[CHAT, THREAD, EVENT, USER], &[Chat], Weak),
    // properties
    action("chat_properties_updated", &[CHAT], &[Chat], Weak),
    action("chat_properties_deleted", &[CHAT], &[Chat], Weak),
    action("thread_properties_updated", &[CHAT, THREAD], &[Chat], Weak).once(&["chat_thread_properties_updated"]),
    action("thread_properties_deleted", &[CHAT, THREAD], &[Chat], Weak).once(&["chat_thread_properties_deleted"]),
    action("event_properties_updated", &[CHAT, THREAD, EVENT], &[Chat], Weak),
    action("event_properties_deleted", &[CHAT, THREAD, EVENT], &[Chat], Weak),
    // thread tags
    action("thread_tagged", &[CHAT, THREAD, (Tag, &["tag"])], &[Chat], Weak).once(&["chat_thread_tagged"]),
    action("thread_untagged", &[CHAT, THREAD, (Tag, &["tag"])], &[Chat], Weak).once(&["chat_thread_untagged"]),
    // status
    action("routing_status_set", &[(Agent, &["agent_id"])], &[Agent], Weak).once(&["agent_status_changed"]),
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
    .once(&["customer_created"]),
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
    action("auto_access_added", &[(AutoAccess, &["id"])], &[AutoAccess], Weak).once(&["auto_access_created"]),
    action("auto_access_updated", &[(AutoAccess, &["id"])], &[AutoAccess], Weak),
    action("auto_access_deleted", &[(AutoAccess, &["id"])], &[AutoAccess], Weak),
    action("auto_accesses_updated", &[], &[], Weak), // an array of changes
    action("bot_created", &[(Bot, &["id"])], &[Bot], Weak),
    action("bot_updated", &[(Bot, &["id"])], &[Bot], Weak),
    action("bot_deleted", &[(Bot, &["id"])], &[Bot], Weak),
    action("group_created", &[(Group, &["id"])], &[Group], Weak).once(&["create_group"]),
    action("group_updated", &[(Group, &["id"])], &[Group], Weak).once(&["update_group"]),
    action("group_deleted", &[(Group, &["id"])], &[Group], Weak).once(&["delete_group"]),
    action("tag_created", &[(Tag, &["name"]), (Time, &["created_at"])], &[Tag], Strong(&[Tag, Time]))
        .once(&["create_tag"]),
    action("tag_deleted", &[(Tag, &["name"])], &[Tag], Weak).once(&["delete_tag"]),
    action("tag_updated", &[(Tag, &["name"])], &[Tag], Weak).once(&["update_tag"]),
    // other
    action("events_marked_as_seen", &[CHAT, USER, (Time, &["seen_up_to"])], &[Chat], Strong(&[Chat, User, Time]))
        .once(&["last_seen_timestamp_updated"]),
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
