//! What the configuration says about events, as one snapshot: the apps with their keys and routes, where a path leads, and the rules.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use jiff::Timestamp;

use crate::dedup;
use crate::event::rules::Rule;
use crate::event::{Key, Keyring, Routing, Rules};
use crate::metrics::Counts;

/// What is configured about events: the apps, where their events go, the rules, and deduplication.
pub struct Policy {
    pub apps: HashMap<String, Arc<App>>,
    /// App Webhooks, where they are switched on: the token of their path, and where their events go.
    pub app_webhooks: Option<Arc<App>>,
    pub retries: dedup::Config,
    /// The topic for records that their own topic will never accept.
    pub dead_letter: Arc<str>,
    /// What goes before the routes.
    pub rules: Rules,
    /// Whether the events inside an `incoming_chat` become records of their own.
    pub initial: bool,
}

/// One app: its name, which is the last part of its webhooks' path, its secret keys, and where its events go.
#[derive(Clone)]
pub struct App {
    pub name: String,
    pub keyring: Keyring,
    pub routing: Arc<Routing>,
    pub counts: Arc<Counts>,
}

impl Policy {
    /// What is taken at a path: `/webhooks/{app}`, `/webhooks` where there is one app, and App Webhooks where they are switched on.
    pub fn endpoint(&self, path: &str) -> Option<Endpoint> {
        let path = path.strip_prefix('/').filter(|path| path.len() <= PATH_BYTES_MAX)?;
        let mut parts = path.split('/');
        match (parts.next(), parts.next(), parts.next()) {
            (Some("webhooks"), None, _) if self.apps.len() == 1 => {
                Some(Endpoint::Webhook(self.apps.values().next().cloned()))
            }
            (Some("webhooks"), Some(app), None) if !app.is_empty() => {
                Some(Endpoint::Webhook(self.apps.get(app).cloned()))
            }
            (Some(APP_WEBHOOKS), Some(token), None) => {
                Some(Endpoint::AppWebhook(Arc::clone(self.app_webhooks.as_ref()?), token.to_owned()))
            }
            _ => None,
        }
    }

    /// The apps, App Webhooks included.
    pub fn all_apps(&self) -> impl Iterator<Item = &Arc<App>> {
        self.apps.values().chain(&self.app_webhooks)
    }

    /// The counts of the app with this name, if there is one.
    pub fn counts(&self, app: &str) -> Option<&Counts> {
        self.all_apps().find(|one| one.name == app).map(|one| &*one.counts)
    }

    /// Whether there are several apps, which must not take each other's room. App Webhooks are few.
    pub fn has_several_apps(&self) -> bool {
        self.apps.len() > 1
    }

    /// The rules that are not over yet.
    fn active_rules(&self) -> impl Iterator<Item = &Rule> {
        let now = Timestamp::now();
        self.rules.iter().filter(move |rule| rule.is_active(now))
    }

    /// The topics that only one of several apps has, each with the app's name: by its routes, and by rules for that app alone.
    pub fn topics_by_app(&self) -> HashMap<Arc<str>, Arc<str>> {
        let mut by_topic: HashMap<Arc<str>, Option<Arc<str>>> = HashMap::new();
        for app in self.all_apps().filter(|_| self.has_several_apps()) {
            let (name, topics): (Arc<str>, BTreeSet<_>) = (Arc::from(&*app.name), app.routing.topics.names().collect());
            for topic in topics {
                let owner = by_topic.entry(Arc::clone(topic));
                owner.and_modify(|owner| *owner = None).or_insert_with(|| Some(Arc::clone(&name)));
            }
        }
        for rule in self.active_rules().filter(|_| self.has_several_apps()) {
            let Some(topic) = rule.topic() else { continue };
            let app = rule.criteria.only_app();
            let owner = by_topic.entry(Arc::clone(topic)).or_insert_with(|| app.map(Arc::from));
            *owner = owner.take().filter(|owner| app == Some(&**owner));
        }
        by_topic.into_iter().filter_map(|(topic, owner)| Some((topic, owner?))).collect()
    }

    /// The secret keys, each with the name of its app.
    pub fn keys(&self) -> impl Iterator<Item = (&str, &Key)> {
        self.all_apps().flat_map(|app| app.keyring.keys().map(move |key| (&*app.name, key)))
    }

    /// Whether a text is a secret key of any app, or the token of App Webhooks: then it may not be shown.
    pub fn is_key(&self, text: &str) -> bool {
        self.all_apps().any(|app| app.keyring.has(text))
    }

    /// Goes on with what `former` has counted. To be called before this policy takes the place of that one.
    pub fn inherit(&mut self, former: &Self) {
        for app in self.apps.values_mut().chain(&mut self.app_webhooks) {
            if let Some(same) = former.all_apps().find(|same| same.name == app.name) {
                let app = Arc::make_mut(app);
                app.keyring.inherit(&same.keyring);
                app.counts = Arc::clone(&same.counts);
            }
        }
        self.rules.inherit(&former.rules);
    }

    /// Every topic that events may go to, once, sorted.
    pub fn topics(&self) -> Vec<Arc<str>> {
        let names = self.all_apps().flat_map(|app| app.routing.topics.names()).chain([&self.dead_letter]);
        let names = names.chain(self.active_rules().filter_map(Rule::topic));
        let mut names: Vec<_> = names.cloned().collect();
        names.sort();
        names.dedup();
        names
    }
}

/// The app name of App Webhooks in metrics and attributes, and their path. No app may have it.
pub const APP_WEBHOOKS: &str = "app-webhooks";

/// Stands in metrics and in the log for the app of a request that leads to none. No app may have it.
pub const UNKNOWN_APP: &str = "unknown";

/// The shortest token of App Webhooks that can be configured: no one guesses it by trying.
pub const TOKEN_BYTES_MIN: usize = 32;

/// The longest one.
pub const TOKEN_BYTES_MAX: usize = 256;

/// No path that is taken is longer, not counting its first `/`: the name of an app has 64 bytes at most. So what is kept of a path while
/// a body is awaited is bounded.
const PATH_BYTES_MAX: usize = APP_WEBHOOKS.len() + 1 + TOKEN_BYTES_MAX;

/// Where a webhook is posted.
pub enum Endpoint {
    /// An app; none where the path names one that is unknown, which is refused as a wrong key is.
    Webhook(Option<Arc<App>>),
    /// The path of App Webhooks, with the token in it.
    AppWebhook(Arc<App>, String),
}

impl Endpoint {
    /// The app's name; a name in the path that is none of ours is a stranger's word.
    pub fn app(&self) -> &str {
        match self {
            Self::Webhook(Some(app)) | Self::AppWebhook(app, _) => &app.name,
            Self::Webhook(None) => UNKNOWN_APP,
        }
    }
}
