//! Says in the log what the dates in the configuration bring: secret keys that expire, apps that are left without one, and rules.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use jiff::Timestamp;

use crate::config::Config;
use crate::relay::Notice;

/// How often the dates are looked at: a reload may change them, too.
const INTERVAL: Duration = Duration::from_secs(60);

/// How often the same is said.
const REPEAT: Duration = Duration::from_secs(24 * 3600);

/// Never ends. The first look is at once. Rules change what becomes of events, so a start says which there are.
pub async fn log(running: Arc<ArcSwap<Config>>) {
    let (mut logged, mut active) = (HashMap::<String, Instant>::new(), Vec::<(String, String)>::new());
    loop {
        let (now, policy) = (Timestamp::now(), Arc::clone(&running.load().policy));
        let rules = policy.rules.iter().filter(|rule| rule.is_active(now));
        let rules: Vec<_> = rules.map(|rule| (rule.name.clone(), rule.to_string())).collect();
        for (rule, effect) in rules.iter().filter(|rule| !active.contains(*rule)) {
            tracing::info!(rule, effect, "a rule is active");
        }
        active = rules;
        let notices = policy.notices(now);
        logged.retain(|text, at| at.elapsed() < REPEAT && notices.iter().any(|notice| notice.text == *text));
        for notice in notices {
            if logged.contains_key(&notice.text) {
                continue;
            }
            let Notice { text, is_failure } = notice;
            if is_failure {
                tracing::error!(notice = text, "secret keys expire, and no other is valid then");
            } else {
                tracing::warn!(notice = text, "a date in the configuration has passed, or soon will");
            }
            logged.insert(text, Instant::now());
        }
        tokio::time::sleep(INTERVAL).await;
    }
}
