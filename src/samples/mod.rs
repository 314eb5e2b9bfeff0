//! The templates of webhooks, as data: which there are, where in a chat's story they belong, how
//! often they come. Splits each at its `{{placeholders}}`; what those become is for `scene.rs` to say.

use std::sync::LazyLock;

use scene::Fill;

pub(crate) mod scene;
pub mod traffic;

/// Where in the story of a chat a webhook belongs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Role {
    Opens,
    During,
    Closes,
    /// Belongs to no chat.
    Aside,
}

/// A template as it lies in its file.
pub(crate) struct Source {
    pub(crate) version: &'static str,
    /// The action; after a dot, the type of its event.
    pub(crate) name: &'static str,
    pub(crate) role: Role,
    /// Share of the traffic, per mille. 0: an older name, sent only when asked for.
    pub(crate) weight: u32,
    json: &'static str,
}

impl Source {
    /// The action as this API version calls it.
    pub(crate) fn action(&self) -> &'static str {
        self.name.split_once('.').map_or(self.name, |(action, _)| action)
    }
}

macro_rules! catalogue {
    ($($version:literal $role:ident { $($name:literal $weight:literal),* $(,)? })*) => {
        &[$($(Source {
            version: $version,
            name: $name,
            role: Role::$role,
            weight: $weight,
            json: include_str!(concat!($version, "/", $name, ".json")),
        }),*),*]
    };
}

/// Newest version first; within a version in the order of a story. A new template is a file and its
/// name here.
pub(crate) static CATALOGUE: &[Source] = catalogue! {
    "v3.6" Opens { "incoming_chat" 50 }
    "v3.6" During {
        "chat_access_updated" 5, "user_added_to_chat" 40,
        "incoming_event" 500, "incoming_event.system_message" 40, "incoming_event.file" 20,
        "incoming_event.form" 3, "incoming_event.filled_form" 10, "incoming_event.custom" 5,
        "incoming_event.system" 5, "incoming_event.rich_message" 20,
        "incoming_rich_message_postback" 10, "events_marked_as_seen" 90,
        "event_updated" 5, "event_properties_updated" 6, "event_properties_deleted" 2, "event_deleted" 2,
        "customer_session_fields_updated" 12, "chat_properties_updated" 12, "chat_properties_deleted" 2,
        "thread_tagged" 30, "thread_untagged" 3, "chat_transferred" 8, "user_removed_from_chat" 8,
        "thread_properties_updated" 25, "thread_properties_deleted" 2, "thread_summary_set" 5,
    }
    "v3.6" Closes { "chat_deactivated" 50 }
    "v3.6" Aside {
        "routing_status_set" 18,
        "agent_created" 1, "agent_approved" 1, "agent_updated" 1, "agent_suspended" 1,
        "agent_unsuspended" 1, "agent_deleted" 1, "auto_accesses_updated" 1,
        "bot_created" 1, "bot_updated" 1, "bot_deleted" 1,
        "group_created" 1, "group_updated" 1, "group_deleted" 1,
        "tag_created" 1, "tag_updated" 1, "tag_deleted" 1,
    }
    "v3.4" Aside { "auto_access_added" 0, "auto_access_updated" 0, "auto_access_deleted" 0 }
    "v3.3" Aside { "incoming_customer" 0 }
    "v3.2" Aside { "customer_created" 0 }
    "v3.2" During { "chat_access_granted" 0, "chat_access_revoked" 0 }
    "v3.1" Opens { "incoming_chat_thread" 0 }
    "v3.1" During {
        "access_set" 0, "access_granted" 0, "access_revoked" 0,
        "chat_user_added" 0, "chat_user_removed" 0, "last_seen_timestamp_updated" 0,
        "chat_thread_tagged" 0, "chat_thread_untagged" 0,
        "chat_thread_properties_updated" 0, "chat_thread_properties_deleted" 0,
        "follow_up_requested" 0,
    }
    "v3.1" Closes { "thread_closed" 0 }
    "v3.1" Aside { "agent_status_changed" 0 }
};

/// The first makes sense only after the second; `true`: and takes it back.
const AFTER: &[(&str, &str, bool)] = &[
    ("event_updated", "incoming_event", false),
    ("event_deleted", "incoming_event", true),
    ("event_properties_updated", "incoming_event", false),
    ("event_properties_deleted", "event_properties_updated", true),
    ("incoming_rich_message_postback", "incoming_event.rich_message", false),
    ("chat_properties_deleted", "chat_properties_updated", true),
    ("thread_properties_deleted", "thread_properties_updated", true),
    ("thread_untagged", "thread_tagged", true),
    ("user_removed_from_chat", "user_added_to_chat", true),
    ("chat_access_revoked", "chat_access_granted", true),
    ("access_revoked", "access_granted", true),
    ("chat_user_removed", "chat_user_added", true),
    ("chat_thread_untagged", "chat_thread_tagged", true),
    ("chat_thread_properties_deleted", "chat_thread_properties_updated", true),
];

/// Placeholders that stand for numbers: their quotes in the template go too.
const NUMBERS: [&str; 2] = ["unix", "license_id"];

/// A template split once, so that a webhook costs no parsing.
pub(crate) struct Template {
    /// Each text with the placeholder that follows it.
    pub(crate) pieces: Vec<(String, Fill)>,
    pub(crate) tail: String,
    /// What must have happened in the chat before, and whether this takes it back.
    pub(crate) after: Option<(usize, bool)>,
    pub(crate) len_typical: usize,
}

/// In the order of [`CATALOGUE`].
pub(crate) static TEMPLATES: LazyLock<Vec<Template>> = LazyLock::new(|| CATALOGUE.iter().map(split).collect());

fn split(source: &Source) -> Template {
    let json = minify(source.json);
    let mut pieces = Vec::new();
    let mut rest = json.as_str();
    while let Some((text, after)) = rest.split_once("{{") {
        let (name, after) = after.split_once("}}").expect("a unit test splits every template");
        let quote = if NUMBERS.contains(&name) { "\"" } else { "" };
        let fill = scene::filler(name).expect("a unit test fills every placeholder");
        pieces.push((text.strip_suffix(quote).unwrap_or(text).to_owned(), fill));
        rest = after.strip_prefix(quote).unwrap_or(after);
    }
    let after = AFTER.iter().find(|(later, ..)| *later == source.name);
    Template {
        tail: rest.to_owned(),
        after: after.and_then(|(_, earlier, undoes)| Some((position(earlier)?, *undoes))),
        len_typical: json.len() + 30 * pieces.len(),
        pieces,
    }
}

/// Where a template lies in [`CATALOGUE`].
pub(crate) fn position(name: &str) -> Option<usize> {
    CATALOGUE.iter().position(|source| source.name == name)
}

/// LiveChat posts compact JSON; the templates are printed for people.
fn minify(json: &str) -> String {
    let (mut quoted, mut escaped) = (false, false);
    let keep = |c: &char| {
        quoted ^= *c == '"' && !escaped;
        escaped = *c == '\\' && !escaped;
        quoted || !c.is_whitespace()
    };
    json.chars().filter(keep).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    #[test]
    fn every_template_is_json_with_the_envelope_of_its_version() {
        for source in CATALOGUE {
            let json: Value = serde_json::from_str(source.json).expect(source.name);
            let members: Vec<_> = json.as_object().unwrap().keys().map(String::as_str).collect();
            let has = |name: &str| members.contains(&name);
            let old = matches!(source.version, "v3.2" | "v3.3");

            assert_eq!(json["action"], source.action(), "{}", source.name);
            assert!(has("webhook_id") && has("payload") && !has("secret_key"), "{}", source.name);
            assert_eq!(has("license_id"), old, "{}", source.name);
            assert_eq!(has("organization_id"), source.version > "v3.3", "{}", source.name);
        }
    }

    #[test]
    fn every_step_of_a_story_that_needs_another_names_templates() {
        for (later, earlier, _) in AFTER {
            assert!(position(later).is_some() && position(earlier).is_some(), "{later}, {earlier}");
        }
        assert!(CATALOGUE.len() <= 128, "a story remembers what was told in 128 bits");
    }

    #[test]
    fn minified_json_means_the_same() {
        for source in CATALOGUE {
            let minified = minify(source.json);
            let parse = |json| serde_json::from_str::<Value>(json).unwrap();

            assert_eq!(parse(&minified), parse(source.json), "{}", source.name);
            assert!(!minified.contains('\n') && !minified.contains("\": "), "{}", source.name);
        }
    }
}
