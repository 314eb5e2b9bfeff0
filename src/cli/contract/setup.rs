//! Whose contract it is: that of the defaults, or of an operator's configuration.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::example::Example;
use crate::cli::Failure;
use crate::cli::actions::TOPIC_PREFIX;
use crate::config::{Config, DEAD_LETTER};
use crate::event::route::Route;
use crate::event::rules::{Effect, Rule};
use crate::event::{Keyring, Keys, Mode, Routing, Topics};
use crate::metrics::Counts;
use crate::relay::{APP_WEBHOOKS, App};

pub struct Setup {
    /// One at least, by name; last that of App Webhooks, where there are any.
    pub apps: Vec<Arc<App>>,
    /// None: the defaults.
    pub config: Option<Config>,
}

impl Setup {
    /// One app with an installation page, and App Webhooks: every topic that there can be.
    pub fn of_defaults() -> Self {
        let app = |name: &str, topics| {
            let routing = Routing { topics, mode: Mode::Structured, keys: Keys::Plain, api_version: None };
            let counts = Arc::new(Counts::of_app());
            Arc::new(App { name: name.to_owned(), keyring: Keyring::new([]), routing: Arc::new(routing), counts })
        };
        let none = |_: &str| None;
        let topics = Topics::new(TOPIC_PREFIX, none).with_installations(TOPIC_PREFIX, none);
        let app_webhooks = Topics::of_app_webhooks(TOPIC_PREFIX, none);
        Self { apps: vec![app("default", topics), app(APP_WEBHOOKS, app_webhooks)], config: None }
    }

    /// # Errors
    /// [`Failure::Usage`]: there is no app, so there are no events.
    pub fn of(config: Config) -> Result<Self, Failure> {
        let mut apps: Vec<_> = config.policy.apps.values().cloned().collect();
        if apps.is_empty() {
            return Err(Failure::Usage("the configuration has no [[apps]], so it publishes no events".to_owned()));
        }
        apps.sort_by(|one, other| one.name.cmp(&other.name));
        apps.extend(config.policy.app_webhooks.clone());
        Ok(Self { apps, config: Some(config) })
    }

    /// How events are written. All apps have it in common, but for the topics and the version of LiveChat's API.
    pub fn routing(&self) -> &Routing {
        &self.apps[0].routing
    }

    pub fn has_hashed_keys(&self) -> bool {
        matches!(self.routing().keys, Keys::Hashed(_))
    }

    /// The topics of an action, each with the apps whose events are there.
    pub fn topics(&self, name: &str) -> BTreeMap<&str, Vec<&str>> {
        let mut topics: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for app in &self.apps {
            if let Some(Route::Topic(topic)) = app.routing.topics.route(name) {
                topics.entry(topic).or_default().push(&app.name);
            }
        }
        topics
    }

    pub fn dead_letter_topic(&self) -> String {
        let configured = self.config.as_ref().map(|config| config.policy.dead_letter.to_string());
        configured.unwrap_or_else(|| format!("{TOPIC_PREFIX}{DEAD_LETTER}"))
    }

    /// The topics that rules may send events of an action to.
    pub fn rule_topics(&self, name: &str, has_chat: bool) -> BTreeSet<&str> {
        let rules = self.config.iter().flat_map(|config| config.policy.rules.iter());
        let may_match = |rule: &&Rule| {
            let has_action = |app: &&Arc<App>| app.routing.topics.route(name).is_some();
            self.apps.iter().filter(has_action).any(|app| rule.criteria.may_hold(&app.name, name, has_chat))
        };
        let topics = rules.filter(may_match).filter_map(|rule| match &rule.effect {
            Effect::Topic(topic) => Some(&**topic),
            Effect::Drop | Effect::DeadLetter(_) | Effect::Sample { .. } => None,
        });
        topics.collect()
    }

    /// None where every app drops the action, or where it has no sample.
    pub fn example(&self, action: &str) -> Option<Example> {
        let publishes = |app: &&Arc<App>| matches!(app.routing.topics.route(action), Some(Route::Topic(_)));
        let app = self.apps.iter().find(publishes)?;
        Example::of(action, app).or_else(|| Example::of_app(action, app))
    }
}
