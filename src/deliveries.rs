//! Which registration at LiveChat has delivered webhooks, with which secret key, and when last. It is in memory only: a restart begins at zero.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// The most registrations that are remembered; the one that has been silent longest is forgotten first. LiveChat takes three of each action
/// for an app, and has about 46 actions.
pub const REGISTRATIONS_MAX: usize = 1000;

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
    /// Those that the relay knows now.
    pub keys: Vec<KeyUse>,
}

/// A verified webhook.
#[derive(Clone, Copy)]
pub struct Delivery<'a> {
    pub app: &'a str,
    pub webhook_id: &'a str,
    pub action: &'static str,
    pub key: &'a str,
    pub time: Timestamp,
}

/// The table, by app and by `webhook_id`.
#[derive(Default)]
pub struct Deliveries(Mutex<HashMap<String, HashMap<String, Delivered>>>);

impl Deliveries {
    pub fn count(&self, delivery: Delivery<'_>) {
        let Delivery { app, webhook_id, action, key, time } = delivery;
        let mut apps = self.apps();
        if let Some(known) = apps.get_mut(app).and_then(|of_app| of_app.get_mut(webhook_id)) {
            known.deliveries += 1;
            known.last = known.last.max(time);
            if known.key != key {
                key.clone_into(&mut known.key);
            }
            return;
        }
        if apps.values().map(HashMap::len).sum::<usize>() >= REGISTRATIONS_MAX {
            forget_silent_longest(&mut apps);
        }
        let [app, webhook_id, action, key] = [app, webhook_id, action, key].map(str::to_owned);
        let new = Delivered { app, webhook_id, action, key, deliveries: 1, first: time, last: time };
        apps.entry(new.app.clone()).or_default().insert(new.webhook_id.clone(), new);
    }

    /// All that is remembered, by app, action and time.
    pub fn all(&self) -> Vec<Delivered> {
        let mut all: Vec<_> = self.apps().values().flat_map(HashMap::values).cloned().collect();
        all.sort_by(|one, other| (&one.app, &one.action, one.first).cmp(&(&other.app, &other.action, other.first)));
        all
    }

    /// Forgets apps that are no longer configured.
    pub fn retain(&self, is_app: impl Fn(&str) -> bool) {
        self.apps().retain(|app, _| is_app(app));
    }

    fn apps(&self) -> MutexGuard<'_, HashMap<String, HashMap<String, Delivered>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn forget_silent_longest(apps: &mut HashMap<String, HashMap<String, Delivered>>) {
    let all = apps.values().flat_map(HashMap::values);
    let Some(Delivered { app, webhook_id, .. }) = all.min_by_key(|known| known.last).cloned() else { return };
    apps.entry(app).and_modify(|of_app| _ = of_app.remove(&webhook_id));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(deliveries: &Deliveries, app: &str, webhook_id: &str, key: &str, second: i64) {
        let time = Timestamp::from_second(second).expect("a time");
        deliveries.count(Delivery { app, webhook_id, action: "incoming_event", key, time });
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
        deliveries.retain(|app| app == "b");
        assert_eq!(deliveries.all().len(), 1);
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
