//! Logging: where lines go, and how often a phrase may repeat.
//!
//! To log never waits and never panics. Lines go through a bounded queue to a thread of their own, which writes them to
//! standard error. Lines that find the queue full, or that cannot be written, are dropped and counted. (`tracing-appender` has such
//! a queue, too; but with a full queue its end prints to standard output, which may be the very pipe that no process reads.)

use std::collections::HashMap;
use std::fmt;
use std::io::{self, IsTerminal as _, Write};
use std::num::NonZeroU64;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use anstream::{AutoStream, ColorChoice};
use jiff::Timestamp;
use tracing_subscriber::fmt::format::{self, DefaultFields, Full, Writer};
use tracing_subscriber::fmt::time::{FormatTime as _, SystemTime};
use tracing_subscriber::fmt::{Layer, layer};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Registry, reload};

/// Lines that may wait to be written.
const LINES_MAX: usize = 4096;

/// How long the end of the process waits for the last lines.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

/// Goes before `log.filter`, which may say otherwise: at `warn` h2 logs a line for each connection of a stranger who resets streams.
const QUIET: &str = "h2=error";

/// Replaces the filter of the log.
static FILTER: OnceLock<reload::Handle<EnvFilter, Registry>> = OnceLock::new();
static QUEUE: OnceLock<SyncSender<Vec<u8>>> = OnceLock::new();
/// Lines that are not written yet.
static WAITING: AtomicU64 = AtomicU64::new(0);
static DROPPED: AtomicU64 = AtomicU64::new(0);
static PANICS: AtomicU64 = AtomicU64::new(0);

/// How lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Text,
    Json,
}

/// `[log]`.
#[derive(Clone, Debug)]
pub struct Config {
    pub format: Format,
    pub filter: String,
    /// How long another filter may take its place, at most.
    pub temporary_max: Duration,
}

impl Config {
    /// What [`Config::is_filter`] finds right.
    pub const FILTERS: &str = "error, warn, info, debug or trace, optionally with levels of single modules (\"info,livechat_relay::publish=debug\")";

    /// Whether this is a filter that lets errors pass: a level for all, and perhaps others for some modules. To tracing a word that
    /// is no level is a module's name, and all other modules are silent.
    pub fn is_filter(filter: &str) -> bool {
        const LEVELS: [&str; 5] = ["error", "warn", "info", "debug", "trace"];
        let is_level = |part: &str| LEVELS.iter().any(|level| level.eq_ignore_ascii_case(part));
        let mut for_all = filter.split(',').filter(|part| !part.contains('=')).peekable();
        for_all.peek().is_some() && for_all.all(is_level) && EnvFilter::builder().parse(filter).is_ok()
    }
}

/// Sends log lines, and what panics say, to standard error from now on. Called once, by commands that run for long.
pub fn start(config: &Config) {
    let lines = Lines(QUEUE.get_or_init(|| write_to(io::stderr())).clone());
    let lines = layer().log_internal_errors(false).with_writer(move || lines.clone());
    let (filter, handle) = reload::Layer::new(env_filter(&config.filter));
    let log = tracing_subscriber::registry().with(filter);
    match config.format {
        Format::Text => log.with(text(lines)).init(),
        Format::Json => log.with(lines.json().flatten_event(true)).init(),
    }
    FILTER.get_or_init(|| handle);
    std::panic::set_hook(Box::new(|panic| {
        PANICS.fetch_add(1, Ordering::Relaxed);
        let text = panic.payload();
        let message =
            text.downcast_ref::<&str>().copied().or_else(|| text.downcast_ref::<String>().map(String::as_str));
        let location = panic.location().map(ToString::to_string);
        tracing::error!(message, location, thread = std::thread::current().name(), "panic: this is a bug of the relay");
    }));
}

/// Sends log lines to standard error where the environment has a filter: for commands that have no log, so that a person can see what they
/// call. What the file has is the relay's.
pub fn start_if_asked() {
    let filter = std::env::var("LIVECHAT_RELAY__LOG__FILTER").ok().filter(|filter| Config::is_filter(filter));
    let Some(filter) = filter else { return };
    let lines = text(layer().log_internal_errors(false).with_writer(io::stderr));
    tracing_subscriber::registry().with(env_filter(&filter)).with(lines).init();
}

/// Writes the time of a line.
type Time = fn(&mut Writer<'_>) -> fmt::Result;

/// The same lines as a person reads them on standard error. They have colours where the commands have them.
pub fn text<S, W>(
    lines: Layer<S, DefaultFields, format::Format, W>,
) -> Layer<S, DefaultFields, format::Format<Full, Time>, W> {
    let stderr = io::stderr();
    text_for(stderr.is_terminal(), lines).with_ansi(AutoStream::choice(&stderr) != ColorChoice::Never)
}

/// A terminal has few columns: lines have the time of day alone, in UTC, and no module.
fn text_for<S, W>(
    is_terminal: bool,
    lines: Layer<S, DefaultFields, format::Format, W>,
) -> Layer<S, DefaultFields, format::Format<Full, Time>, W> {
    let time: Time = if is_terminal {
        |line| write!(line, "{}", Timestamp::now().strftime("%T"))
    } else {
        |line| SystemTime.format_time(line)
    };
    lines.with_timer(time).with_target(!is_terminal)
}

/// Replaces the filter: one that [`Config::is_filter`] finds right.
pub fn set_filter(filter: &str) {
    if let Some(log) = FILTER.get() {
        let _ = log.reload(env_filter(filter)); // it fails where the log has ended, which lasts as long as the process
    }
}

fn env_filter(filter: &str) -> EnvFilter {
    EnvFilter::new(format!("{QUIET},{filter}"))
}

/// Whether lines go to the log, not straight to standard error.
pub fn is_started() -> bool {
    QUEUE.get().is_some()
}

/// Waits until what was logged is written, but not for long: standard error may be a pipe that no process reads.
pub fn flush() {
    let until = Instant::now() + FLUSH_TIMEOUT;
    while WAITING.load(Ordering::Acquire) > 0 && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Lines that were lost since the start.
pub fn dropped_lines() -> u64 {
    DROPPED.load(Ordering::Relaxed)
}

/// Panics since the start.
pub fn panics() -> u64 {
    PANICS.load(Ordering::Relaxed)
}

/// The way into the queue. Each write is one line.
#[derive(Clone)]
struct Lines(SyncSender<Vec<u8>>);

impl Write for Lines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        WAITING.fetch_add(1, Ordering::Relaxed);
        if self.0.try_send(line.to_vec()).is_err() {
            done(false);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A line was written, or was lost.
fn done(is_written: bool) {
    DROPPED.fetch_add(u64::from(!is_written), Ordering::Relaxed);
    WAITING.fetch_sub(1, Ordering::Release);
}

/// Starts the thread that writes to `out`; the queue to it.
fn write_to(mut out: impl Write + Send + 'static) -> SyncSender<Vec<u8>> {
    let (queue, lines) = sync_channel::<Vec<u8>>(LINES_MAX);
    let write = move || lines.iter().for_each(|line| done(out.write_all(&line).is_ok()));
    std::thread::Builder::new().name("log".to_owned()).spawn(write).expect("a thread can be started");
    queue
}

/// How many lines were not logged since the last one that was: a field that is left out where there were none.
pub type Suppressed = Option<NonZeroU64>;

/// A [`Throttle`] for each of some names, which others may have invented.
pub struct Throttles {
    interval: Duration,
    names_max: usize,
    by_name: Mutex<HashMap<String, Throttle>>,
}

impl Throttles {
    /// For names of our own. Should there be more than 64 at once, the others share a throttle.
    pub fn new(interval: Duration) -> Self {
        Self::with_names(interval, 64)
    }

    /// So many names have a throttle of their own at once; the others share one.
    pub fn with_names(interval: Duration, names_max: usize) -> Self {
        Self { interval, names_max, by_name: Mutex::default() }
    }

    /// As [`Throttle::pass`], for this name.
    pub fn pass(&self, name: &str) -> Option<Suppressed> {
        let mut by_name = self.by_name.lock().unwrap_or_else(PoisonError::into_inner);
        if by_name.len() >= self.names_max && !by_name.contains_key(name) {
            self.forget_quiet(&mut by_name);
        }
        let name = if by_name.len() < self.names_max || by_name.contains_key(name) { name } else { "" };
        by_name.entry(name.to_owned()).or_insert_with(|| Throttle::new(self.interval)).pass()
    }

    /// Makes room: a name that was quiet for an interval has nothing to hold back. What it has held back before is counted with others.
    fn forget_quiet(&self, by_name: &mut HashMap<String, Throttle>) {
        let mut suppressed = 0;
        by_name.retain(|name, throttle| {
            let quiet = throttle.quiet().filter(|_| !name.is_empty());
            suppressed += quiet.unwrap_or_default();
            quiet.is_none()
        });
        if suppressed > 0 {
            by_name.entry(String::new()).or_insert_with(|| Throttle::new(self.interval)).add(suppressed);
        }
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

    /// `Some`: log it now, and say how many before were not. `None`: do not.
    pub fn pass(&self) -> Option<Suppressed> {
        let now = Instant::now();
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.0.is_some_and(|last| now.duration_since(last) < self.interval) {
            state.1 += 1;
            return None;
        }
        state.0 = Some(now);
        Some(NonZeroU64::new(std::mem::take(&mut state.1)))
    }

    /// Where nothing has passed for an interval: how many were held back before.
    fn quiet(&self) -> Option<u64> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.0.is_none_or(|last| last.elapsed() >= self.interval).then_some(state.1)
    }

    fn add(&self, suppressed: u64) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).1 += suppressed;
    }
}

/// A duration as a person reads it: whole milliseconds, and above a second tenths of one.
pub fn rounded(time: Duration) -> Duration {
    let step = if time < Duration::from_secs(1) { 1 } else { 100 };
    Duration::from_millis(u64::try_from(time.as_millis() / step * step).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::Receiver;

    use super::*;

    /// A pipe that no process reads: a write to it never ends.
    struct Blocked(Receiver<()>);

    impl Write for Blocked {
        fn write(&mut self, line: &[u8]) -> io::Result<usize> {
            let _ = self.0.recv();
            Ok(line.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn lines_that_cannot_be_written_are_dropped_and_counted_and_no_request_waits() {
        let before = dropped_lines();
        let (reader, unread) = sync_channel(0);
        let mut lines = Lines(write_to(Blocked(unread)));
        for _ in 0..LINES_MAX + 10 {
            lines.write_all(b"a line\n").expect("it never fails");
        }
        assert!((9..=10).contains(&(dropped_lines() - before)), "one may be on its way");
        drop(reader);
    }

    #[test]
    fn on_a_terminal_a_line_has_neither_date_nor_module() {
        let line = |is_terminal: bool| {
            let (queue, written) = sync_channel(1);
            let lines = layer().with_writer(move || Lines(queue.clone())).with_ansi(false);
            let log = tracing_subscriber::registry().with(text_for(is_terminal, lines));
            tracing::subscriber::with_default(log, || tracing::info!(waiting = 2, "Kafka is available"));
            let line = written.recv().expect("a line");
            done(true);
            String::from_utf8(line).expect("text")
        };
        let on_terminal = line(true);
        let (time, rest) = on_terminal.split_once(' ').expect("a time");
        assert_eq!((time.len(), rest), ("00:00:00".len(), " INFO Kafka is available waiting=2\n"));
        let piped = line(false);
        let (time, rest) = piped.split_once(' ').expect("a time");
        assert!(time.parse::<Timestamp>().is_ok(), "{time}");
        assert_eq!(rest, format!(" INFO {}: Kafka is available waiting=2\n", module_path!()));
    }

    #[test]
    fn each_name_has_a_throttle_of_its_own_up_to_a_number_of_them() {
        let throttles = Throttles::with_names(Duration::from_secs(3600), 64);
        assert_eq!((throttles.pass("a"), throttles.pass("a"), throttles.pass("b")), (Some(None), None, Some(None)));
        let passed = (0..1000).filter(|n| throttles.pass(&n.to_string()).is_some()).count();
        assert_eq!(passed, 64 - 2 + 1);
        assert_eq!(throttles.by_name.lock().expect("no panic").len(), 64 + 1);
    }

    #[test]
    fn names_that_are_quiet_make_room_and_what_they_held_back_is_still_counted() {
        let throttles = Throttles::with_names(Duration::ZERO, 2); // each is quiet at once
        for name in ["a", "b", "c", "d"] {
            assert_eq!(throttles.pass(name), Some(None), "{name}");
            throttles.by_name.lock().expect("no panic")[name].add(1);
        }
        let by_name = throttles.by_name.lock().expect("no panic");
        let held_back = by_name.values().filter_map(Throttle::quiet).sum::<u64>();
        assert!(by_name.len() <= 3 && held_back == 4, "{held_back}");
    }

    #[test]
    fn a_throttle_passes_one_an_interval_and_counts_the_rest() {
        let throttle = Throttle::new(Duration::from_secs(3600));
        assert_eq!((throttle.pass(), throttle.pass(), throttle.pass()), (Some(None), None, None));
        let never = Throttle::new(Duration::ZERO);
        assert_eq!((never.pass(), never.pass()), (Some(None), Some(None)));
    }
}
