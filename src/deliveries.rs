//! Which registration at LiveChat has delivered webhooks, with which secret key, and when last, and of which organizations. It is in memory
//! only: a restart begins at zero.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// The most registrations that are remembered; the one that has been silent longest is forgotten first. LiveChat takes three of each action
/// for an app, and has about 46 actions.
pub const REGISTRATIONS_MAX: usize = 1000;

/// The most organizations, or licenses, of an app that are remembered. One that an operator wants to name need not be among them.
const TENANTS_MAX: usize = 1000;

/// How far apart two registrations deliver one event at most, but for LiveChat's retries: LiveChat sends both at once, and waits about so
/// long for an answer. What comes later is published: else the event that one registration delivers after the other was removed could be
/// taken for a copy of an earlier one. `apply` removes a registration so long after the first delivery through its successor.
pub const COPY_WITHIN: Duration = Duration::from_secs(10);

/// What a registration has delivered since the start. Only verified webhooks count.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delivered {
    pub app: String,
    pub webhook_id: String,
    /// As metrics call it.
    pub action: String,
    /// The name of the secret key that the last one came with.
    pub key: String,
    pub deliveries: u64,
    pub first: Timestamp,
    pub last: Timestamp,
}

/// What a secret key has verified since the start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyUse {
    pub app: String,
    pub key: String,
    pub uses: u64,
    pub last: Option<Timestamp>,
}

/// What one relay has seen since its start.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    pub registrations: Vec<Delivered>,
    /// Those that are valid now: what comes with another one is refused.
    pub keys: Vec<KeyUse>,
    /// By app: whose webhooks it has had, each an `organization_id` or, up to API 3.3, a `license_id`.
    #[serde(default)]
    pub tenants: BTreeMap<String, BTreeSet<String>>,
}

/// A verified webhook.
#[derive(Clone, Copy)]
pub struct Delivery<'a> {
    pub app: &'a str,
    /// The organization, or license.
    pub tenant: &'a str,
    pub webhook_id: &'a str,
    pub action: &'static str,
    pub key: &'a str,
    pub time: Timestamp,
}

/// What the apps' registrations have delivered.
#[derive(Default)]
pub struct Deliveries(Mutex<HashMap<String, OfApp>>);

#[derive(Default)]
struct OfApp {
    /// By `webhook_id`.
    registrations: HashMap<String, Delivered>,
    tenants: BTreeSet<String>,
}

impl Deliveries {
    pub fn count(&self, Delivery { app, tenant, webhook_id, action, key, time }: Delivery<'_>) {
        let mut apps = self.apps();
        let of_app = apps.entry(app.to_owned()).or_default();
        if !tenant.is_empty() && !of_app.tenants.contains(tenant) && of_app.tenants.len() < TENANTS_MAX {
            of_app.tenants.insert(tenant.to_owned());
        }
        if let Some(known) = of_app.registrations.get_mut(webhook_id) {
            known.deliveries += 1;
            known.last = known.last.max(time);
            if known.key != key {
                key.clone_into(&mut known.key);
            }
            return;
        }
        let [app, webhook_id, action, key] = [app, webhook_id, action, key].map(str::to_owned);
        let new = Delivered { app, webhook_id, action, key, deliveries: 1, first: time, last: time };
        if apps.values().map(|of_app| of_app.registrations.len()).sum::<usize>() >= REGISTRATIONS_MAX {
            forget_silent_longest(&mut apps);
        }
        apps.entry(new.app.clone()).or_default().registrations.insert(new.webhook_id.clone(), new);
    }

    /// All that is remembered, by app, action and time.
    pub fn all(&self) -> Vec<Delivered> {
        let apps = self.apps();
        let mut all: Vec<_> = apps.values().flat_map(|of_app| of_app.registrations.values()).cloned().collect();
        all.sort_by(|one, other| (&one.app, &one.action, one.first).cmp(&(&other.app, &other.action, other.first)));
        all
    }

    /// Whose webhooks each app has had.
    pub fn tenants(&self) -> BTreeMap<String, BTreeSet<String>> {
        self.apps().iter().map(|(app, of_app)| (app.clone(), of_app.tenants.clone())).collect()
    }

    /// Forgets apps that are no longer configured.
    pub fn retain(&self, is_app: impl Fn(&str) -> bool) {
        self.apps().retain(|app, _| is_app(app));
    }

    fn apps(&self) -> MutexGuard<'_, HashMap<String, OfApp>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn forget_silent_longest(apps: &mut HashMap<String, OfApp>) {
    let all = apps.values().flat_map(|of_app| of_app.registrations.values());
    let Some(Delivered { app, webhook_id, .. }) = all.min_by_key(|known| known.last).cloned() else { return };
    apps.entry(app).and_modify(|of_app| _ = of_app.registrations.remove(&webhook_id));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(deliveries: &Deliveries, app: &str, webhook_id: &str, key: &str, second: i64) {
        let time = Timestamp::from_second(second).expect("a time");
        let tenant = if app == "b" { "" } else { webhook_id };
        deliveries.count(Delivery { app, tenant, webhook_id, action: "incoming_event", key, time });
    }

    #[test]
    fn each_registration_of_each_app_has_its_count_its_times_and_its_last_key() {
        let deliveries = Deliveries::default();
        for (app, webhook_id, key, second) in
            [("a", "1", "old", 5), ("b", "1", "k", 6), ("a", "1", "new", 9), ("a", "2", "new", 7), ("a", "1", "new", 8)]
        {
            count(&deliveries, app, webhook_id, key, second);
        }
        let all: Vec<_> = deliveries.all().into_iter().collect();
        let short = |d: &Delivered| {
            let times = (d.first.as_second(), d.last.as_second());
            (format!("{} {} {}", d.app, d.webhook_id, d.key), d.deliveries, times)
        };
        let expected =
            [("a 1 new".to_owned(), 3, (5, 9)), ("a 2 new".to_owned(), 1, (7, 7)), ("b 1 k".to_owned(), 1, (6, 6))];
        assert_eq!(all.iter().map(short).collect::<Vec<_>>(), expected);
        let of = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
        assert_eq!(
            deliveries.tenants().into_iter().collect::<Vec<_>>(),
            [("a".to_owned(), of(&["1", "2"])), ("b".to_owned(), of(&[]))],
            "a webhook of API 3.1 names none"
        );
        deliveries.retain(|app| app == "b");
        assert_eq!((deliveries.all().len(), deliveries.tenants().len()), (1, 1));
    }

    #[test]
    fn at_the_bound_the_one_that_has_been_silent_longest_is_forgotten() {
        let deliveries = Deliveries::default();
        for (n, second) in (0..REGISTRATIONS_MAX).zip(100..) {
            count(&deliveries, ["a", "b"][n % 2], &n.to_string(), "k", second);
        }
        count(&deliveries, "a", "0", "k", 5000);
        count(&deliveries, "c", "new", "k", 5001);
        let all = deliveries.all();
        assert_eq!(all.len(), REGISTRATIONS_MAX);
        let has = |id: &str| all.iter().any(|known| known.webhook_id == id);
        assert!(has("0") && has("new") && !has("1") && has("2"));
    }
}
