//! Which webhooks each version of the Configuration API can register, and with which filters.
//!
//! The facts are from the tables of triggering actions in LiveChat's documentation of its versions 3.3 to 3.7.

use super::Version::{self, V3_3, V3_4, V3_5, V3_6, V3_7};

/// What may filter an action's webhooks, by LiveChat's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Filter {
    AuthorType,
    OnlyMyChats,
    ChatPresence,
    SourceType,
    AgentIds,
}

impl Filter {
    pub const ALL: [Self; 5] = [AuthorType, OnlyMyChats, ChatPresence, SourceType, AgentIds];

    pub const fn name(self) -> &'static str {
        match self {
            Self::AuthorType => "author_type",
            Self::OnlyMyChats => "only_my_chats",
            Self::ChatPresence => "chat_presence",
            Self::SourceType => "source_type",
            Self::AgentIds => "agent_ids",
        }
    }
}

/// An action that can be registered.
#[derive(Debug)]
pub struct Action {
    pub name: &'static str,
    /// What the configuration calls it together with its like. LiveChat has no such groups.
    pub group: &'static str,
    /// The first version that has it, and the last.
    pub versions: (Version, Version),
    filters: &'static [Filter],
    /// Those of 3.3, where they are not the same but for `source_type`, which 3.3 does not have at all.
    filters_of_3_3: Option<&'static [Filter]>,
}

impl Action {
    pub fn is_in(&self, version: Version) -> bool {
        (self.versions.0..=self.versions.1).contains(&version)
    }

    pub fn has_filter(&self, filter: Filter, version: Version) -> bool {
        match self.filters_of_3_3 {
            _ if version == V3_3 && filter == SourceType => false,
            Some(filters) if version == V3_3 => filters.contains(&filter),
            _ => self.filters.contains(&filter),
        }
    }

    /// Whether its webhooks can have `additional_data`, which is about the chat.
    pub fn has_additional_data(&self) -> bool {
        !matches!(self.name, "routing_status_set" | "agent_deleted")
    }

    /// `3.3 to 3.5`.
    pub fn span(&self) -> String {
        match self.versions {
            (first, last) if first == last => first.to_string(),
            (first, last) => format!("{first} to {last}"),
        }
    }

    const fn from(mut self, version: Version) -> Self {
        self.versions.0 = version;
        self
    }

    const fn until(mut self, version: Version) -> Self {
        self.versions.1 = version;
        self
    }

    const fn in_3_3(mut self, filters: &'static [Filter]) -> Self {
        self.filters_of_3_3 = Some(filters);
        self
    }
}

pub fn find(name: &str) -> Option<&'static Action> {
    ACTIONS.iter().find(|action| action.name == name)
}

/// Where an action stands in the catalogue, which is the order in which people see actions; behind all others where it has none.
pub fn position(name: &str) -> usize {
    ACTIONS.iter().position(|action| action.name == name).unwrap_or(ACTIONS.len())
}

/// In the order of the catalogue.
pub fn actions(version: Version) -> impl Iterator<Item = &'static Action> {
    ACTIONS.iter().filter(move |action| action.is_in(version))
}

/// The names that stand for several actions, each once. `all` is another one.
pub fn groups() -> impl Iterator<Item = &'static str> {
    let is_first = |(n, action): &(usize, &Action)| ACTIONS[..*n].iter().all(|before| before.group != action.group);
    ACTIONS.iter().enumerate().filter(is_first).map(|(_, action)| action.group)
}

/// The values of `additional_data`.
pub const ADDITIONAL_DATA: [&str; 2] = ["chat_properties", "chat_presence_user_ids"];

/// The values of `author_type`.
pub const AUTHORS: [&str; 2] = ["customer", "agent"];

/// The values of `source_type`.
pub const SOURCES: [&str; 3] = ["my_client", "other_clients", "system"];

/// LiveChat's limit for an address. The pages of 3.3 and 3.4 state none.
pub const URL_CHARACTERS_MAX: usize = 500;

/// Ours: LiveChat states none for `description`.
pub const DESCRIPTION_CHARACTERS_MAX: usize = 200;

/// LiveChat's limit for one action of one Client ID.
pub const REGISTRATIONS_MAX: usize = 3;

use Filter::{AgentIds, AuthorType, ChatPresence, OnlyMyChats, SourceType};

const CHAT: &[Filter] = &[ChatPresence, OnlyMyChats, SourceType];
const MESSAGE: &[Filter] = &[ChatPresence, AuthorType, OnlyMyChats, SourceType];
const SOURCE: &[Filter] = &[SourceType];

const fn action(group: &'static str, name: &'static str, filters: &'static [Filter]) -> Action {
    Action { name, group, versions: (V3_3, V3_7), filters, filters_of_3_3: None }
}

static ACTIONS: [Action; 44] = [
    action("chats", "incoming_chat", CHAT),
    action("chats", "chat_deactivated", CHAT),
    action("chats", "chat_access_granted", CHAT).until(V3_3),
    action("chats", "chat_access_revoked", CHAT).until(V3_3),
    action("chats", "chat_access_updated", CHAT).from(V3_4),
    action("chats", "chat_transferred", CHAT).from(V3_4),
    action("chats", "user_added_to_chat", CHAT),
    action("chats", "user_removed_from_chat", CHAT),
    action("chats", "thread_summary_set", CHAT).from(V3_6),
    action("messages", "incoming_event", MESSAGE),
    action("messages", "event_updated", MESSAGE),
    action("messages", "event_deleted", CHAT).from(V3_6),
    action("messages", "incoming_rich_message_postback", CHAT),
    action("messages", "events_marked_as_seen", CHAT),
    action("properties", "chat_properties_updated", CHAT),
    action("properties", "chat_properties_deleted", CHAT),
    action("properties", "thread_properties_updated", CHAT),
    action("properties", "thread_properties_deleted", CHAT),
    action("properties", "event_properties_updated", CHAT),
    action("properties", "event_properties_deleted", CHAT),
    action("tags", "thread_tagged", CHAT),
    action("tags", "thread_untagged", CHAT),
    action("tags", "tag_created", SOURCE).from(V3_5),
    action("tags", "tag_deleted", SOURCE).from(V3_5),
    action("tags", "tag_updated", SOURCE).from(V3_5),
    action("customers", "incoming_customer", SOURCE).until(V3_5),
    action("customers", "customer_session_fields_updated", &[ChatPresence, SourceType]),
    action("agents", "routing_status_set", &[AgentIds, SourceType]).in_3_3(&[]),
    action("agents", "agent_created", SOURCE).from(V3_4),
    action("agents", "agent_approved", SOURCE).from(V3_4),
    action("agents", "agent_updated", SOURCE).from(V3_4),
    action("agents", "agent_suspended", SOURCE).from(V3_4),
    action("agents", "agent_unsuspended", SOURCE).from(V3_4),
    action("agents", "agent_deleted", SOURCE).in_3_3(&[AgentIds]),
    action("bots", "bot_created", SOURCE).from(V3_4),
    action("bots", "bot_updated", SOURCE).from(V3_4),
    action("bots", "bot_deleted", SOURCE).from(V3_4),
    action("groups", "group_created", SOURCE).from(V3_4),
    action("groups", "group_updated", SOURCE).from(V3_4),
    action("groups", "group_deleted", SOURCE).from(V3_4),
    // 3.4's table prints auto_access_created, its page of webhooks auto_access_added. `webhooks names` shows which one LiveChat takes.
    action("groups", "auto_access_added", SOURCE).from(V3_4).until(V3_4),
    action("groups", "auto_access_updated", SOURCE).from(V3_4).until(V3_4),
    action("groups", "auto_access_deleted", SOURCE).from(V3_4).until(V3_4),
    action("groups", "auto_accesses_updated", SOURCE).from(V3_5),
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::event::actions;

    #[test]
    fn every_action_that_can_be_registered_is_known_to_the_relay_and_the_other_way_round() {
        let names: BTreeSet<_> = ACTIONS.iter().map(|action| action.name).collect();
        assert_eq!(names.len(), ACTIONS.len(), "a name stands twice");
        let unknown: Vec<_> =
            names.iter().filter(|name| actions::find(name).is_none_or(|a| a.name != **name)).collect();
        assert!(unknown.is_empty(), "the relay would take these for unlisted: {unknown:?}");
        let cannot: Vec<_> = actions::names().filter(|name| !names.contains(name)).collect();
        assert_eq!(cannot, ["access_set", "follow_up_requested"], "of API 3.1, or not in the tables");
    }

    #[test]
    fn the_versions_have_as_many_actions_as_their_tables() {
        let count = |version| actions(version).count();
        assert_eq!(Version::ALL.map(count), [22, 36, 37, 38, 38]);
    }

    #[test]
    fn filters_are_those_of_the_version() {
        let has = |action: &str, version| {
            let action = find(action).expect("an action");
            Filter::ALL
                .into_iter()
                .filter(|filter| action.has_filter(*filter, version))
                .map(Filter::name)
                .collect::<Vec<_>>()
        };
        assert_eq!(has("incoming_event", V3_3), ["author_type", "only_my_chats", "chat_presence"]);
        assert_eq!(has("incoming_event", V3_6), ["author_type", "only_my_chats", "chat_presence", "source_type"]);
        assert_eq!(has("routing_status_set", V3_3), Vec::<&str>::new());
        assert_eq!(has("routing_status_set", V3_4), ["source_type", "agent_ids"]);
        assert_eq!((has("agent_deleted", V3_3), has("agent_deleted", V3_7)), (vec!["agent_ids"], vec!["source_type"]));
        assert_eq!(has("customer_session_fields_updated", V3_3), ["chat_presence"]);
    }

    #[test]
    fn groups_hold_all_actions_and_are_named_like_none() {
        let groups: Vec<_> = groups().collect();
        assert_eq!(groups, ["chats", "messages", "properties", "tags", "customers", "agents", "bots", "groups"]);
        assert!(groups.iter().all(|group| find(group).is_none()));
    }
}
