//! Which actions each version of the Configuration API offers, and which filters each of them has: the documented tables.

use std::collections::BTreeMap;

const PRESENCE: &str = "chat_presence";
const MINE: &str = "only_my_chats";
const SOURCE: &str = "source_type";
const AUTHOR: &str = "author_type";
const AGENTS: &str = "agent_ids";

/// Actions, the first and the last minor version, and their filters in it.
type Row = (&'static [&'static str], u8, u8, &'static [&'static str]);

const ROWS: &[Row] = &[
    (OF_CHATS, 3, 3, &[PRESENCE, MINE]),
    (OF_CHATS, 4, 7, &[PRESENCE, MINE, SOURCE]),
    (&["incoming_event", "event_updated"], 3, 3, &[PRESENCE, AUTHOR, MINE]),
    (&["incoming_event", "event_updated"], 4, 7, &[PRESENCE, AUTHOR, MINE, SOURCE]),
    (&["chat_access_granted", "chat_access_revoked"], 3, 3, &[PRESENCE, MINE]),
    (&["chat_access_updated", "chat_transferred"], 4, 7, &[PRESENCE, MINE, SOURCE]),
    (&["customer_session_fields_updated"], 3, 3, &[PRESENCE]),
    (&["customer_session_fields_updated"], 4, 7, &[PRESENCE, SOURCE]),
    (&["routing_status_set"], 3, 3, &[]),
    (&["routing_status_set"], 4, 7, &[AGENTS, SOURCE]),
    (&["agent_deleted"], 3, 3, &[AGENTS]),
    (&["agent_deleted"], 4, 7, &[SOURCE]),
    (&["incoming_customer"], 3, 3, &[]),
    (&["incoming_customer"], 4, 5, &[SOURCE]),
    (OF_CONFIGURATION, 4, 7, &[SOURCE]),
    (&["auto_access_added", "auto_access_updated", "auto_access_deleted"], 4, 4, &[SOURCE]),
    (&["auto_accesses_updated", "tag_created", "tag_deleted", "tag_updated"], 5, 7, &[SOURCE]),
    (&["event_deleted", "thread_summary_set"], 6, 7, &[PRESENCE, MINE, SOURCE]),
];

const OF_CHATS: &[&str] = &[
    "incoming_chat",
    "chat_deactivated",
    "user_added_to_chat",
    "user_removed_from_chat",
    "incoming_rich_message_postback",
    "chat_properties_updated",
    "chat_properties_deleted",
    "thread_properties_updated",
    "thread_properties_deleted",
    "event_properties_updated",
    "event_properties_deleted",
    "thread_tagged",
    "thread_untagged",
    "events_marked_as_seen",
];

const OF_CONFIGURATION: &[&str] = &[
    "agent_created",
    "agent_updated",
    "agent_suspended",
    "agent_unsuspended",
    "agent_approved",
    "bot_created",
    "bot_updated",
    "bot_deleted",
    "group_created",
    "group_updated",
    "group_deleted",
];

/// Actions of a minor version, with their filters.
pub fn actions(version: u8) -> BTreeMap<&'static str, &'static [&'static str]> {
    let rows = ROWS.iter().filter(|(_, first, last, _)| (*first..=*last).contains(&version));
    rows.flat_map(|(names, _, _, filters)| names.iter().map(|name| (*name, *filters))).collect()
}

/// What can be had besides the payload.
pub fn additional_data(action: &str) -> &'static [&'static str] {
    if action == "agent_deleted" { &[] } else { &["chat_properties", "chat_presence_user_ids"] }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_version_has_as_many_actions_as_its_page() {
        // `chat_transferred` is on the page of webhooks 3.3 and not in the table of its Configuration API.
        assert_eq!([3, 4, 5, 6, 7].map(|version| actions(version).len()), [22, 36, 37, 38, 38]);
    }

    #[test]
    fn no_action_is_in_two_rows_of_a_version() {
        for version in 3..=7 {
            let rows = ROWS.iter().filter(|(_, first, last, _)| (*first..=*last).contains(&version));
            assert_eq!(rows.map(|(names, ..)| names.len()).sum::<usize>(), actions(version).len());
        }
    }
}
