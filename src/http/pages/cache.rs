//! Answers that are remembered for a time, by key. Of several that want the same at once one asks, and the others wait for it.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

pub struct Cache<K, V> {
    entries: Mutex<HashMap<K, Arc<Entry<V>>>>,
    max: usize,
}

/// Locked by who asks.
type Entry<V> = tokio::sync::Mutex<Option<Answer<V>>>;

struct Answer<V> {
    since: Instant,
    until: Instant,
    value: V,
}

impl<K: Eq + Hash, V: Clone> Cache<K, V> {
    pub fn new(max: usize) -> Self {
        Self { entries: Mutex::default(), max }
    }

    /// What is remembered; else what `ask` answers, which is remembered for the time that it answers with it. With none it is the answer of
    /// those who have waited for it. Where too much is remembered, this one is not: a stranger takes no one's place.
    pub async fn get(&self, key: K, ask: impl Future<Output = (V, Duration)>) -> V {
        let wanted = Instant::now();
        let entry = self.entry(key, wanted);
        let mut entry = entry.lock().await;
        if let Some(answer) = entry.as_ref().filter(|answer| answer.until > Instant::now() || answer.since >= wanted) {
            return answer.value.clone();
        }
        *entry = None; // it has ended; should this one be dropped, the next one asks
        let (value, lasts) = ask.await;
        let since = Instant::now();
        *entry = Some(Answer { since, until: since + lasts, value: value.clone() });
        value
    }

    pub fn forget(&self, key: &K) {
        self.take(key);
    }

    /// What was remembered until now. None of it, where someone asks just then.
    pub fn take(&self, key: &K) -> Option<V> {
        let entry = self.lock().remove(key)?;
        let answer = entry.try_lock().ok()?.take()?;
        (answer.until > Instant::now()).then_some(answer.value)
    }

    fn entry(&self, key: K, now: Instant) -> Arc<Entry<V>> {
        let mut entries = self.lock();
        if let Some(entry) = entries.get(&key) {
            return Arc::clone(entry);
        }
        // One that is locked, or about to be, has another owner than the table.
        let is_good = |entry: &Entry<V>| {
            entry.try_lock().is_ok_and(|answer| answer.as_ref().is_some_and(|answer| answer.until > now))
        };
        entries.retain(|_, entry| Arc::strong_count(entry) > 1 || is_good(entry));
        let entry = Arc::default();
        if entries.len() < self.max {
            entries.insert(key, Arc::clone(&entry));
        }
        entry
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<K, Arc<Entry<V>>>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures_util::future::join_all;

    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    #[tokio::test(start_paused = true)]
    async fn one_asks_for_all_who_want_the_same_at_once_and_what_it_answers_is_remembered_for_its_time() {
        let (cache, asked) = (Cache::new(2), AtomicUsize::new(0));
        let asked = &asked;
        let get = |lasts| {
            cache.get("key", async move {
                tokio::time::sleep(Duration::from_secs(1)).await;
                (asked.fetch_add(1, Ordering::Relaxed), lasts)
            })
        };
        assert_eq!(
            join_all((0..10).map(|_| get(Duration::ZERO))).await,
            [0; 10],
            "a failure is that of all who waited"
        );
        tokio::time::advance(Duration::from_millis(1)).await;
        assert_eq!(join_all((0..10).map(|_| get(MINUTE))).await, [1; 10]);
        tokio::time::advance(Duration::from_secs(59)).await;
        assert_eq!(get(MINUTE).await, 1);
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(get(MINUTE).await, 2);
        cache.forget(&"key");
        let left = tokio::time::timeout(Duration::from_millis(500), get(MINUTE)).await;
        assert!(left.is_err());
        assert_eq!(get(MINUTE).await, 3, "who has left holds no one up");
        assert_eq!((cache.take(&"key"), cache.take(&"key")), (Some(3), None));
        assert_eq!(get(MINUTE).await, 4);
        tokio::time::advance(MINUTE).await;
        assert_eq!(cache.take(&"key"), None, "its time is over");
    }

    #[tokio::test(start_paused = true)]
    async fn the_cache_is_bounded_and_forgets_after_its_time() {
        let cache = Cache::new(3);
        for key in 0..5 {
            assert_eq!(cache.get(key, async { (key, MINUTE) }).await, key);
        }
        assert_eq!(cache.lock().len(), 3);
        assert_eq!(cache.get(0, async { (9, MINUTE) }).await, 0, "a stranger takes no one's place");
        assert_eq!(cache.get(4, async { (9, MINUTE) }).await, 9);
        tokio::time::advance(MINUTE).await;
        assert_eq!(cache.get(4, async { (8, MINUTE) }).await, 8);
        assert_eq!(cache.lock().len(), 1);
    }
}
