//! The Configuration API: the webhooks of an app, and whether a license sends them.

use std::collections::BTreeSet;
use std::time::Duration;

use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::call::{Access, Call, Caller, Notices};
use super::failure::CONSOLE;
use super::http::FailedAttempt;
use super::{App, Config, Failure, Filters, Kind, Level, Registration, Users, Wanted};
use crate::event::Token;

/// What `list_webhook_names` has of an action.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offered {
    pub action: String,
    pub filters: BTreeSet<String>,
    pub additional_data: BTreeSet<String>,
}

/// The Configuration API, for one app.
pub struct Api {
    caller: Caller,
    propagation: Duration,
    unclear: Option<Unclear>,
}

/// Tells a person of a registration whose outcome is not known: why, and how long it is looked for at most.
pub type Unclear = fn(&str, Duration);

impl Api {
    /// With the app's own credential.
    pub fn new(config: &Config, app: &App) -> Self {
        Self::with(config, app, Access::of(config, app))
    }

    /// With a token that is at hand, as of an installation.
    pub fn with_token(config: &Config, app: &App, token: SecretString) -> Self {
        Self::with(config, app, Access::Token(token))
    }

    fn with(config: &Config, app: &App, access: Access) -> Self {
        let caller = Caller::new(config, app, "configuration", access);
        Self { caller, propagation: config.propagation, unclear: None }
    }

    /// Registrations tell by `unclear`, once each, why they take minutes.
    #[must_use]
    pub fn telling(self, unclear: Unclear) -> Self {
        Self { unclear: Some(unclear), ..self }
    }

    /// What the answers until now have said of the version's end.
    pub fn notices(&self) -> Notices {
        self.caller.notices()
    }

    /// How many calls LiveChat may have billed until now.
    pub fn calls(&self) -> u64 {
        self.caller.calls()
    }

    /// All webhooks of the app's Client ID. What was registered in the last two minutes may be missing.
    ///
    /// # Errors
    /// No listing was had, or one that is not understood.
    pub async fn list_webhooks(&self) -> Result<Vec<Registration>, Failure> {
        Ok(self.listed().await?)
    }

    async fn listed(&self) -> Result<Vec<Registration>, FailedAttempt> {
        let call = Call::new("list_webhooks", json!({ "owner_client_id": self.caller.app.client_id }));
        let listed: Option<Vec<Listed>> = self.caller.call(&call).await?;
        Ok(listed.into_iter().flatten().map(Registration::from).collect())
    }

    /// Registers a webhook; its id. LiveChat makes another one of a second call, so after an outcome that is not known, what is
    /// registered is looked at before the one other try: a webhook as `wanted` whose id is not `known` is it. That takes as long as a
    /// listing may lag.
    ///
    /// # Errors
    /// It is not registered; or whether it is, is not known, which the text says.
    pub async fn register_webhook(
        &self,
        wanted: &Wanted,
        secret_key: &SecretString,
        known: &BTreeSet<String>,
    ) -> Result<String, Failure> {
        #[derive(Deserialize)]
        struct Registered {
            id: String,
        }
        let mut body = json!(wanted);
        body["secret_key"] = secret_key.expose_secret().into();
        body["owner_client_id"] = self.caller.app.client_id.clone().into();
        body.as_object_mut().expect("an object").retain(|_, value| !is_empty(value));
        let call = Call { secret: Some(secret_key), is_repeatable: false, ..Call::new("register_webhook", body) };
        let mut is_second = false;
        loop {
            let failed = match self.caller.call::<Registered>(&call).await {
                Ok(registered) => return Ok(registered.id),
                Err(failed) if !failed.may_be_done => return Err(failed.into()),
                Err(failed) => failed,
            };
            let Failure { kind, what, remedy } = failed.failure;
            if let Some(tell) = self.unclear.filter(|_| !is_second) {
                let most = self.propagation * if kind == Kind::Unavailable { 2 } else { 1 };
                tell(&format!("{what}; it is unknown whether {} is registered", wanted.action), most);
            }
            let unknown = match self.look_for(wanted, known).await {
                Ok(Some(id)) => return Ok(id),
                Ok(None) if kind == Kind::Unavailable && !is_second => {
                    is_second = true;
                    continue;
                }
                Ok(None) => format!("{what}; LiveChat has not listed {} since then", wanted.action),
                Err(listing) => {
                    let why = listing.failure.what;
                    format!("{what}; it is unknown whether {} is registered, because {why}", wanted.action)
                }
            };
            let remedy = format!("{remedy}, and see `livechat-relay webhooks plan`");
            return Err(Failure { kind, what: unknown, remedy });
        }
    }

    /// Looks for what an unclear call may have registered, as long as a listing may lag; with few listings, because they are billed.
    async fn look_for(&self, wanted: &Wanted, known: &BTreeSet<String>) -> Result<Option<String>, FailedAttempt> {
        for pause in [0, 1, 2, 4, 8].map(|part| self.propagation * part / 15) {
            tokio::time::sleep(pause).await;
            let new = self.listed().await?.into_iter().find(|one| !known.contains(&one.id) && one.is_as(wanted));
            if let Some(new) = new {
                return Ok(Some(new.id));
            }
        }
        Ok(None)
    }

    /// One that is not there is done.
    ///
    /// # Errors
    /// It may still be registered.
    pub async fn unregister_webhook(&self, id: &str) -> Result<(), Failure> {
        let call = Call::new("unregister_webhook", json!({ "id": id, "owner_client_id": self.caller.app.client_id }));
        match self.caller.done(&call).await {
            Err(failed) if failed.error.as_deref() == Some("not_found") => Ok(()),
            done => Ok(done?),
        }
    }

    /// What the app's version of the API offers. Needs no token, and is not billed.
    ///
    /// # Errors
    /// No list was had, or one that is not understood.
    pub async fn list_webhook_names(&self) -> Result<Vec<Offered>, Failure> {
        #[derive(Deserialize)]
        struct Name {
            action: String,
            #[serde(default)]
            filters: Option<BTreeSet<String>>,
            #[serde(default)]
            additional_data: Option<BTreeSet<String>>,
        }
        let call = Call::new("list_webhook_names", json!({ "version": self.caller.app.version.name() }));
        let names: Option<Vec<Name>> = self.caller.call(&Call { needs_access: false, ..call }).await?;
        let offered = |name: Name| Offered {
            action: name.action,
            filters: name.filters.unwrap_or_default(),
            additional_data: name.additional_data.unwrap_or_default(),
        };
        Ok(names.into_iter().flatten().map(offered).collect())
    }

    /// Whether the token's license sends webhooks of the app.
    ///
    /// # Errors
    /// [`Kind::NotFound`]: the app may not be installed there.
    pub async fn license_webhooks_enabled(&self) -> Result<bool, Failure> {
        #[derive(Deserialize)]
        struct State {
            license_webhooks_enabled: bool,
        }
        let call = Call::new("get_license_webhooks_state", self.owner());
        let state: Result<State, _> = self.caller.call(&call).await;
        state.map(|state| state.license_webhooks_enabled).map_err(|failed| {
            let mut failure = failed.failure;
            if failure.kind == Kind::NotFound {
                failure.remedy = format!("install the app in {CONSOLE} (Private installation)");
            }
            failure
        })
    }

    /// # Errors
    /// They may be disabled still.
    pub async fn enable_license_webhooks(&self) -> Result<(), Failure> {
        Ok(self.caller.done(&Call::new("enable_license_webhooks", self.owner())).await?)
    }

    /// # Errors
    /// They may be enabled still.
    pub async fn disable_license_webhooks(&self) -> Result<(), Failure> {
        Ok(self.caller.done(&Call::new("disable_license_webhooks", self.owner())).await?)
    }

    /// An OAuth token has a client of its own, which is this app. Up to 3.4 LiveChat refuses a Client ID beside it; from 3.5 that has to
    /// belong to the token's organization, and an organization that has installed the app need not own it.
    fn owner(&self) -> Value {
        if self.caller.is_bearer() { json!({}) } else { json!({ "owner_client_id": self.caller.app.client_id }) }
    }
}

/// An entry of `list_webhooks`.
#[derive(Deserialize)]
struct Listed {
    id: String,
    action: String,
    url: String,
    #[serde(default)]
    description: Option<String>,
    #[serde(default, rename = "type")]
    level: Option<String>,
    #[serde(default)]
    filters: Option<Map<String, Value>>,
    #[serde(default)]
    additional_data: Option<BTreeSet<String>>,
    #[serde(default)]
    secret_key: Option<String>,
}

impl From<Listed> for Registration {
    fn from(listed: Listed) -> Self {
        let (filters, mut unknown) = read_filters(listed.filters.unwrap_or_default());
        let level = match listed.level.as_deref() {
            None | Some("license") => Level::License,
            Some("bot") => Level::Bot,
            Some(other) => {
                unknown.insert("type".to_owned(), other.into());
                Level::License
            }
        };
        Self {
            id: listed.id,
            action: listed.action,
            url: listed.url,
            level,
            filters,
            unknown_filters: (!unknown.is_empty()).then(|| Value::Object(unknown).to_string()),
            additional_data: listed.additional_data,
            description: listed.description.unwrap_or_default(),
            secret_key: listed.secret_key.map(|key| Token::new(&key.into())),
        }
    }
}

/// As `register_webhook` takes them.
pub fn filters(filters: &Filters) -> Value {
    let users = |users: &Users| match users {
        Users::Values(ids) => json!({ "values": ids }),
        Users::ExcludeValues(ids) => json!({ "exclude_values": ids }),
    };
    let mut presence = Map::new();
    presence.extend(filters.present_users.as_ref().map(|ids| ("user_ids".to_owned(), users(ids))));
    presence.extend(filters.my_bots.map(|is_there| ("my_bots".to_owned(), json!(is_there))));
    let members = [
        ("author_type", filters.author_type.as_ref().map(|author| json!(author))),
        ("only_my_chats", filters.only_my_chats.map(|only| json!(only))),
        ("chat_presence", (!presence.is_empty()).then_some(Value::Object(presence))),
        ("source_type", filters.source_type.as_ref().map(|types| json!(types))),
        ("agent_ids", filters.agent_ids.as_ref().map(users)),
    ];
    members.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect::<Map<_, _>>().into()
}

/// As `list_webhooks` shows them, and what of them is not known. Empty ones filter nothing, and are left out.
pub(super) fn read_filters(mut members: Map<String, Value>) -> (Filters, Map<String, Value>) {
    let mut read = Filters::default();
    let mut presence = match members.remove("chat_presence") {
        Some(Value::Object(presence)) => presence,
        Some(other) => Map::from_iter([("chat_presence".to_owned(), other)]),
        None => Map::new(),
    };
    read.author_type = taken(&mut members, "author_type", |value| Some(value.as_str()?.to_owned()));
    read.only_my_chats = taken(&mut members, "only_my_chats", Value::as_bool);
    read.source_type = taken(&mut members, "source_type", texts);
    read.agent_ids = taken(&mut members, "agent_ids", users);
    read.my_bots = taken(&mut presence, "my_bots", Value::as_bool);
    read.present_users = taken(&mut presence, "user_ids", users);
    members.append(&mut presence);
    members.retain(|_, value| !is_empty(value));
    (read, members)
}

/// A member, removed where it is understood.
fn taken<T>(members: &mut Map<String, Value>, name: &str, read: impl Fn(&Value) -> Option<T>) -> Option<T> {
    let understood = read(members.get(name).filter(|value| !is_empty(value))?)?;
    members.remove(name);
    Some(understood)
}

fn texts(value: &Value) -> Option<BTreeSet<String>> {
    value.as_array()?.iter().map(|text| Some(text.as_str()?.to_owned())).collect()
}

fn users(value: &Value) -> Option<Users> {
    let object = value.as_object()?;
    let mut full = object.iter().filter(|(_, ids)| !is_empty(ids));
    let (name, ids) = full.next()?;
    match name.as_str() {
        "values" if full.next().is_none() => texts(ids).map(Users::Values),
        "exclude_values" if full.next().is_none() => texts(ids).map(Users::ExcludeValues),
        _ => None,
    }
}

/// `null`, `[]`, `{}`, `""`, and objects of such.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(values) => values.is_empty(),
        Value::Object(members) => members.values().all(is_empty),
        Value::String(text) => text.is_empty(),
        Value::Bool(_) | Value::Number(_) => false,
    }
}
