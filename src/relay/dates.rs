//! What an operator should know of the dates in a [`Policy`]: secret keys that end soon or have ended, and apps without a valid one; rules that have ended.

use jiff::{SignedDuration, Timestamp};

use super::Policy;

/// How long before its end a secret key is warned of: LiveChat's registrations have to be replaced by people.
pub const EXPIRY_NOTICE: SignedDuration = SignedDuration::from_hours(14 * 24);

/// One thing to know. The text is the same each time, so that it can be said once a day.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    pub text: String,
    /// Webhooks are refused, or soon will be, and it takes a person to change that.
    pub is_failure: bool,
}

impl Policy {
    /// All that is to be known at `now`, by app.
    pub fn notices(&self, now: Timestamp) -> Vec<Notice> {
        let soon = now.saturating_add(EXPIRY_NOTICE).unwrap_or(Timestamp::MAX);
        let mut apps: Vec<_> = self.all_apps().collect();
        apps.sort_by(|one, other| one.name.cmp(&other.name));
        let mut notices = Vec::new();
        for app in apps {
            let mut add = |is_failure, text| notices.push(Notice { text, is_failure });
            for key in app.keyring.keys() {
                let (app, name) = (&app.name, key.name());
                match key.validity().not_after {
                    Some(end) if end <= now => {
                        add(false, format!("app {app}: the secret key {name} expired on {end}; remove it"));
                    }
                    Some(end) if end <= soon => add(
                        false,
                        format!(
                            "app {app}: the secret key {name} expires on {end}; replace the registrations at LiveChat that use it"
                        ),
                    ),
                    _ => {}
                }
            }
            let app_name = &app.name;
            match app.keyring.uncovered(now, soon) {
                Some(time) if time <= now => add(
                    true,
                    format!(
                        "app {app_name}: no secret key is valid now, so all its webhooks are answered 401; add one"
                    ),
                ),
                Some(time) => {
                    add(
                        true,
                        format!("app {app_name}: no secret key will be valid from {time} on; add one before then"),
                    );
                }
                None => {}
            }
        }
        for rule in self.rules.iter().filter(|rule| !rule.is_active(now)) {
            let text = format!("rule {}: its `until` has passed, so it can be removed: {rule}", rule.name);
            notices.push(Notice { text, is_failure: false });
        }
        notices
    }
}
