//! Logging: where it goes, and how often a phrase may repeat.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use tracing_subscriber::EnvFilter;

/// How lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    Text,
    Json,
}

/// `[log]`.
#[derive(Clone, Debug)]
pub struct Config {
    pub format: Format,
    pub filter: String,
}

impl Config {
    /// # Errors
    /// When the filter is none; the text says why.
    pub fn check(filter: &str) -> Result<(), String> {
        EnvFilter::builder().parse(filter).map(drop).map_err(|e| e.to_string())
    }
}

/// Sends log lines to standard error from now on. Called once, by commands that run for long.
pub fn start(config: &Config) {
    let filter = EnvFilter::new(&config.filter);
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match config.format {
        Format::Text => lines.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).init(),
        Format::Json => lines.json().flatten_event(true).init(),
    }
}

/// Lets one in each `interval` through, and counts the rest: a stranger must not fill the log.
pub struct Throttle {
    interval: Duration,
    state: Mutex<(Option<Instant>, u64)>,
}

impl Throttle {
    pub const fn new(interval: Duration) -> Self {
        Self { interval, state: Mutex::new((None, 0)) }
    }

    /// `Some(n)`: log it now, and say that `n` before were not. `None`: do not.
    pub fn pass(&self) -> Option<u64> {
        let now = Instant::now();
        let mut state = self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if state.0.is_some_and(|last| now.duration_since(last) < self.interval) {
            state.1 += 1;
            return None;
        }
        state.0 = Some(now);
        Some(std::mem::take(&mut state.1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_throttle_passes_one_an_interval_and_counts_the_rest() {
        let throttle = Throttle::new(Duration::from_secs(3600));
        assert_eq!((throttle.pass(), throttle.pass(), throttle.pass()), (Some(0), None, None));
        let never = Throttle::new(Duration::ZERO);
        assert_eq!((never.pass(), never.pass()), (Some(0), Some(0)));
    }
}
