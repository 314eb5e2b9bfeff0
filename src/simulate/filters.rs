//! The filters of a registration: whether they are as the API wants them, and whether something that happened passes them.

use serde_json::{Map, Value};

/// What of a happening a filter can look at.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    pub source: Source,
    /// `customer` or `agent`, where the happening has an author.
    pub author_type: Option<String>,
    pub agent_id: Option<String>,
    /// Who is in the chat, and the client that the chat's property `source.client_id` names.
    pub present: Vec<String>,
    pub chat_client: Option<String>,
}

/// What made it happen.
#[derive(Clone, Debug, Default)]
pub enum Source {
    Client(String),
    /// LiveChat's own applications.
    #[default]
    LiveChat,
    System,
}

/// # Errors
/// The member that is wrong.
pub fn check(filters: &Value, allowed: &[&str]) -> Result<(), String> {
    let Some(filters) = filters.as_object() else { return Err("`filters` is not an object".to_owned()) };
    for (name, value) in filters {
        if !allowed.contains(&name.as_str()) {
            return Err(format!("`filters.{name}` is not allowed for this action"));
        }
        let is_right = match name.as_str() {
            "author_type" => matches!(value.as_str(), Some("customer" | "agent")),
            "only_my_chats" => value.is_boolean(),
            "source_type" => texts(value).is_some_and(|texts| {
                !texts.is_empty() && texts.iter().all(|text| ["my_client", "other_clients", "system"].contains(text))
            }),
            "agent_ids" => is_choice(value),
            "chat_presence" => value.as_object().is_some_and(is_presence),
            _ => false,
        };
        if !is_right {
            return Err(format!("`filters.{name}` is invalid"));
        }
    }
    Ok(())
}

fn is_presence(presence: &Map<String, Value>) -> bool {
    presence.iter().all(|(name, value)| match name.as_str() {
        "user_ids" => is_choice(value),
        "my_bots" => value.is_boolean(),
        _ => false,
    })
}

/// Exactly one of `values` and `exclude_values`.
fn is_choice(value: &Value) -> bool {
    value.as_object().is_some_and(|choice| {
        let known = |name: &str| ["values", "exclude_values"].contains(&name);
        choice.len() == 1 && choice.iter().all(|(name, ids)| known(name) && texts(ids).is_some())
    })
}

fn texts(value: &Value) -> Option<Vec<&str>> {
    value.as_array()?.iter().map(Value::as_str).collect()
}

/// Whether something passes the filters of a registration of `owner`, which has these bots.
pub fn pass(filters: &Value, facts: &Facts, owner: &str, is_own_bot: impl Fn(&str) -> bool) -> bool {
    let is = |pointer: &str, holds: &dyn Fn(&Value) -> bool| filters.pointer(pointer).is_none_or(holds);
    // `false` asks for nothing.
    let unless_asked = |holds: bool| move |value: &Value| value == &Value::Bool(false) || holds;
    let source = match &facts.source {
        Source::Client(client) if client == owner => "my_client",
        Source::Client(_) | Source::LiveChat => "other_clients",
        Source::System => "system",
    };
    is("/author_type", &|kind| kind.as_str() == facts.author_type.as_deref())
        && is("/only_my_chats", &unless_asked(facts.chat_client.as_deref() == Some(owner)))
        && is("/source_type", &|kinds| texts(kinds).is_some_and(|kinds| kinds.contains(&source)))
        && is("/chat_presence/my_bots", &unless_asked(facts.present.iter().any(|id| is_own_bot(id))))
        && is("/chat_presence/user_ids", &|choice| chosen(choice, &facts.present))
        && is("/agent_ids", &|choice| chosen(choice, facts.agent_id.as_slice()))
}

fn chosen(choice: &Value, ids: &[String]) -> bool {
    let has =
        |name: &str| choice.get(name).and_then(texts).map(|named| ids.iter().any(|id| named.contains(&id.as_str())));
    has("values").unwrap_or(true) && !has("exclude_values").unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const ALL: &[&str] = &["author_type", "only_my_chats", "source_type", "agent_ids", "chat_presence"];

    #[test]
    fn filters_are_as_the_api_wants_them_or_the_member_is_named() {
        for right in [
            json!({}),
            json!({"author_type": "agent", "only_my_chats": false, "source_type": ["system", "my_client"]}),
            json!({"chat_presence": {"user_ids": {"exclude_values": ["a"]}, "my_bots": true}}),
            json!({"agent_ids": {"values": []}}),
        ] {
            assert_eq!(check(&right, ALL), Ok(()), "{right}");
        }
        for (wrong, member) in [
            (json!({"author_type": "bot"}), "author_type"),
            (json!({"source_type": []}), "source_type"),
            (json!({"source_type": "system"}), "source_type"),
            (json!({"chat_presence": {"user_ids": {"values": [], "exclude_values": []}}}), "chat_presence"),
            (json!({"chat_presence": {"bots": true}}), "chat_presence"),
            (json!({"agent_ids": ["a"]}), "agent_ids"),
            (json!({"colour": 1}), "colour"),
        ] {
            assert!(check(&wrong, ALL).is_err_and(|why| why.contains(member)), "{wrong}");
        }
        assert!(check(&json!({"agent_ids": {"values": []}}), &["source_type"]).is_err());
        assert!(check(&json!([]), ALL).is_err());
    }

    #[test]
    fn a_happening_passes_the_filters_that_it_fits() {
        let facts = Facts {
            source: Source::Client("ours".into()),
            author_type: Some("customer".into()),
            agent_id: Some("ada".into()),
            present: vec!["ada".into(), "bot".into()],
            chat_client: Some("ours".into()),
        };
        let passes = |filters: Value, owner: &str| pass(&filters, &facts, owner, |id| owner == "ours" && id == "bot");
        for (filters, for_ours, for_others) in [
            (json!({}), true, true),
            (json!({"author_type": "customer"}), true, true),
            (json!({"author_type": "agent"}), false, false),
            (json!({"only_my_chats": true}), true, false),
            (json!({"only_my_chats": false}), true, true),
            (json!({"source_type": ["my_client"]}), true, false),
            (json!({"source_type": ["other_clients", "system"]}), false, true),
            (json!({"chat_presence": {"my_bots": true}}), true, false),
            (json!({"chat_presence": {"user_ids": {"values": ["ada", "eve"]}}}), true, true),
            (json!({"chat_presence": {"user_ids": {"exclude_values": ["ada"]}}}), false, false),
            (json!({"agent_ids": {"values": ["eve"]}}), false, false),
            (json!({"agent_ids": {"exclude_values": ["eve"]}}), true, true),
        ] {
            assert_eq!(
                (passes(filters.clone(), "ours"), passes(filters.clone(), "theirs")),
                (for_ours, for_others),
                "{filters}"
            );
        }
    }
}
