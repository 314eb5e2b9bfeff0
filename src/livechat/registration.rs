//! A webhook as LiveChat has it, and as the configuration wants it.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use serde::{Serialize, Serializer};

use crate::event::Token;

/// Of the Configuration API. The version that registers a webhook decides what its bodies look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    V3_3,
    V3_4,
    V3_5,
    V3_6,
    V3_7,
}

impl Version {
    pub const ALL: [Self; 5] = [Self::V3_3, Self::V3_4, Self::V3_5, Self::V3_6, Self::V3_7];

    /// As it stands in the API's paths, behind a `v`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::V3_3 => "3.3",
            Self::V3_4 => "3.4",
            Self::V3_5 => "3.5",
            Self::V3_6 => "3.6",
            Self::V3_7 => "3.7",
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Version {
    type Err = String;

    /// # Errors
    /// Why it is none that the relay can use.
    fn from_str(text: &str) -> Result<Self, String> {
        let known = Self::ALL.into_iter().find(|version| version.name() == text);
        known.ok_or_else(|| match text {
            "3.0" | "3.1" | "3.2" => {
                format!("LiveChat has discontinued its API {text}; use 3.6, the stable version")
            }
            _ => "is not a version of LiveChat's Configuration API that the relay supports: 3.3 to 3.7".to_owned(),
        })
    }
}

/// For whom a webhook is sent. LiveChat calls it `type`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// For what happens on a license that has the app installed.
    #[default]
    License,
    /// For what happens to the app's bots that are not offline.
    Bot,
}

impl Level {
    pub const fn name(self) -> &'static str {
        match self {
            Self::License => "license",
            Self::Bot => "bot",
        }
    }
}

/// Which events of an action are sent. What is absent does not filter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filters {
    /// `customer` or `agent`.
    pub author_type: Option<String>,
    pub only_my_chats: Option<bool>,
    /// `chat_presence.user_ids`: who is in the chat, or is not.
    pub present_users: Option<Users>,
    /// `chat_presence.my_bots`.
    pub my_bots: Option<bool>,
    /// `my_client`, `other_clients`, `system`.
    pub source_type: Option<BTreeSet<String>>,
    /// For `routing_status_set`.
    pub agent_ids: Option<Users>,
}

impl Serialize for Filters {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        super::api::filters(self).serialize(serializer)
    }
}

/// LiveChat's `{"values": […]}` or `{"exclude_values": […]}`: exactly one of the two.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Users {
    Values(BTreeSet<String>),
    ExcludeValues(BTreeSet<String>),
}

/// A webhook that is wanted: one action of one app.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Wanted {
    /// As the API's version has it.
    pub action: String,
    pub url: String,
    #[serde(rename = "type")]
    pub level: Level,
    pub filters: Filters,
    /// `chat_properties`, `chat_presence_user_ids`.
    pub additional_data: BTreeSet<String>,
    pub description: String,
}

/// A webhook that is registered, as `list_webhooks` has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Registration {
    /// What bodies call `webhook_id`.
    pub id: String,
    pub action: String,
    pub url: String,
    #[serde(rename = "type")]
    pub level: Level,
    pub filters: Filters,
    /// Filters that the relay does not know, as JSON: such a registration equals none that is wanted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unknown_filters: Option<String>,
    /// Not every answer has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub additional_data: Option<BTreeSet<String>>,
    pub description: String,
    /// Not every answer has it. It is there to be compared, in no output, and only its digest is kept.
    #[serde(skip)]
    pub secret_key: Option<Token>,
}

impl Registration {
    /// Whether it does what `wanted` would, once registered. A description alone is no difference, and what the listing does not have,
    /// such as the secret key, cannot be compared.
    pub fn is_as(&self, wanted: &Wanted) -> bool {
        self.action == wanted.action && super::plan::differences(self, wanted).is_empty()
    }
}
