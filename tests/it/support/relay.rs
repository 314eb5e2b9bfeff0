//! A real relay process on free ports, with its own configuration file, log and end.

use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// The secret key of the app `default`, unlike anything else in a log.
pub const SECRET: &str = "s3cr3t-Xq9-key-of-the-tests";

/// The name of the configuration file.
const FILE: &str = "relay.toml";

/// A relay process. Dropping it kills it; one that is never dropped, as in a static, ends with the test process.
pub struct Relay {
    guard: Guard,
    child: Child,
    pub webhooks: SocketAddr,
    pub admin: SocketAddr,
    /// The second listeners without TLS, where they are configured.
    pub plain: Option<SocketAddr>,
    pub probes: Option<SocketAddr>,
    log: Arc<Log>,
    directory: tempfile::TempDir,
}

#[derive(Default)]
struct Log {
    lines: Mutex<String>,
    grown: Condvar,
}

/// The deadlines as the program has them, for the tests that are about them.
pub const DEADLINES: Settings<'static> =
    &[("kafka.publish_deadline", "\"4s\""), ("server.response_deadline", "\"8s\"")];

/// What is not the default: `("server.body_bytes_max", "\"1KiB\"")`, values as TOML writes them.
pub type Settings<'a> = &'a [(&'a str, &'a str)];

impl Relay {
    /// Starts a relay with the one app `default`, and waits until it takes webhooks.
    pub fn start(brokers: &str, settings: Settings<'_>) -> Self {
        Self::launch(brokers, settings, &[]).unwrap_or_else(|log| panic!("the relay did not start:\n{log}"))
    }

    /// As `start`, with variables in its environment; the log of a relay that ends before it takes webhooks is the error.
    pub fn launch(brokers: &str, settings: Settings<'_>, env: &[(&str, &str)]) -> Result<Self, String> {
        Self::spawn(brokers, settings, env, &[]).await_start()
    }

    /// As `start`, with more arguments of `serve`.
    pub fn start_with(brokers: &str, settings: Settings<'_>, arguments: &[&str]) -> Self {
        let started = Self::spawn(brokers, settings, &[], arguments).await_start();
        started.unwrap_or_else(|log| panic!("the relay did not start:\n{log}"))
    }

    /// Starts a relay and does not wait: its addresses are not known.
    pub fn spawn(brokers: &str, settings: Settings<'_>, env: &[(&str, &str)], arguments: &[&str]) -> Self {
        Self::spawn_logging_to(Stdio::piped(), brokers, settings, env, arguments, &[])
    }

    /// As `start`, with so many open files at most.
    pub fn start_with_open_files(files: u32, brokers: &str, settings: Settings<'_>) -> Self {
        let limit = format!("--nofile={files}:{files}");
        let within = ["prlimit", &limit];
        let started = Self::spawn_logging_to(Stdio::piped(), brokers, settings, &[], &[], &within).await_start();
        started.unwrap_or_else(|log| panic!("the relay did not start:\n{log}"))
    }

    /// As `start`, with a standard error of the caller's: nobody reads it here. Waits until it is alive.
    pub fn start_logging_to(stderr: impl Into<Stdio>, brokers: &str, settings: Settings<'_>) -> Self {
        let [webhooks, admin] = [free_address(), free_address()];
        let [listen, admin_listen] = [format!("\"{webhooks}\""), format!("\"{admin}\"")];
        let addresses = [("server.listen", listen.as_str()), ("admin.listen", admin_listen.as_str())];
        let settings = [settings, &addresses].concat();
        let mut relay = Self::spawn_logging_to(stderr.into(), brokers, &settings, &[], &[], &[]);
        (relay.webhooks, relay.admin) = (webhooks, admin);
        await_that("both listeners are there", || {
            [webhooks, admin].iter().all(|address| std::net::TcpStream::connect(address).is_ok())
        });
        relay
    }

    /// Starts a relay with this configuration, and waits until it takes webhooks.
    pub fn start_as(configuration: &str) -> Self {
        let started = Self::spawn_as(Stdio::piped(), configuration, &[], &[], &[]).await_start();
        started.unwrap_or_else(|log| panic!("the relay did not start:\n{log}"))
    }

    fn spawn_logging_to(
        stderr: Stdio,
        brokers: &str,
        settings: Settings<'_>,
        env: &[(&str, &str)],
        arguments: &[&str],
        within: &[&str],
    ) -> Self {
        Self::spawn_as(stderr, &configuration(brokers, settings), env, arguments, within)
    }

    fn spawn_as(stderr: Stdio, configuration: &str, env: &[(&str, &str)], arguments: &[&str], within: &[&str]) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let file = directory.path().join(FILE);
        std::fs::write(&file, configuration).expect("a file");
        let relay = env!("CARGO_BIN_EXE_livechat-relay");
        let command = [within, &[relay, "serve", "--config"]].concat(); // a program that becomes the relay, and its arguments
        let mut child = Command::new(command[0])
            .args(&command[1..])
            .arg(&file)
            .args(arguments)
            .envs(env.iter().copied())
            .stdin(Stdio::null())
            .stderr(stderr)
            .spawn()
            .expect("the relay's binary");
        let log = Arc::new(Log::default());
        if let Some(stderr) = child.stderr.take() {
            let writer = Arc::clone(&log);
            std::thread::spawn(move || {
                for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                    let mut lines = writer.lines.lock().expect("no panic holds it");
                    let _ = writeln!(lines, "{line}");
                    writer.grown.notify_all();
                }
            });
        }
        Self {
            guard: Guard::new(&child, directory.path()),
            child,
            webhooks: SocketAddr::from(([127, 0, 0, 1], 0)),
            admin: SocketAddr::from(([127, 0, 0, 1], 0)),
            plain: None,
            probes: None,
            log,
            directory,
        }
    }

    /// Its configuration file.
    pub fn file(&self) -> PathBuf {
        self.directory.path().join(FILE)
    }

    /// Replaces its configuration file at once.
    pub fn configure(&self, text: &str) {
        let written = self.directory.path().join("written.toml");
        std::fs::write(&written, text).expect("a file");
        std::fs::rename(written, self.file()).expect("renamed");
    }

    /// Waits until it takes webhooks; the log of one that ends before that is the error.
    pub fn await_start(mut self) -> Result<Self, String> {
        let started = self.await_log_or_end("accepting webhooks", Duration::from_secs(60)).ok_or_else(|| self.log())?;
        let line: serde_json::Value = serde_json::from_str(&started).expect("a JSON line");
        let address = |name: &str| line[name].as_str().and_then(|a| a.parse().ok());
        self.webhooks = address("webhooks").expect("an address");
        self.admin = address("admin").expect("an address");
        (self.plain, self.probes) = (address("plain"), address("probes"));
        Ok(self)
    }

    /// Waits until /readyz says so, and topics that are missing were created.
    pub fn ready(self) -> Self {
        await_that("the relay is ready", || super::http::get(self.admin, "/readyz").status == 200);
        let topics = |state: &str| self.metric(&format!("livechat_relay_topics{{state=\"{state}\"}}"));
        await_that("its topics are known", || ["ready", "missing", "refused"].map(topics).iter().sum::<f64>() > 0.0);
        self
    }

    /// What it has logged until now.
    pub fn log(&self) -> String {
        self.log.lines.lock().expect("no panic holds it").clone()
    }

    /// Whether it has logged `phrase`, or does in a moment: a line comes through a pipe and a thread, and an answer may be faster.
    pub fn has_logged(&self, phrase: &str) -> bool {
        let lines = self.log.lines.lock().expect("no panic holds it");
        let waited = self.log.grown.wait_timeout_while(lines, Duration::from_secs(10), |lines| !lines.contains(phrase));
        !waited.expect("no panic holds it").1.timed_out()
    }

    /// Waits for a line with `phrase`, and answers it; panics with the log if none comes.
    pub fn await_log(&mut self, phrase: &str) -> String {
        self.await_log_or_end(phrase, Duration::from_secs(60))
            .unwrap_or_else(|| panic!("no `{phrase}` in:\n{}", self.log()))
    }

    fn await_log_or_end(&mut self, phrase: &str, most: Duration) -> Option<String> {
        let log = Arc::clone(&self.log);
        let deadline = Instant::now() + most;
        let mut lines = log.lines.lock().expect("no panic holds it");
        loop {
            if let Some(line) = lines.lines().find(|line| line.contains(phrase)) {
                return Some(line.to_owned());
            }
            let (after, _) = log.grown.wait_timeout(lines, Duration::from_millis(50)).expect("no panic holds it");
            lines = after;
            let has_ended = self.child.try_wait().expect("a child").is_some();
            if (has_ended && !lines.contains(phrase)) || Instant::now() > deadline {
                return None;
            }
        }
    }

    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).expect("a pid")).expect("a pid");
        kill_process(pid, signal).expect("a process of ours");
    }

    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().expect("a child").is_some()
    }

    /// Waits for the end of the process.
    pub fn end(&mut self) -> ExitStatus {
        let mut status = None;
        await_that("the relay has ended", || {
            status = self.child.try_wait().expect("a child");
            status.is_some()
        });
        status.expect("it has ended")
    }

    /// The value of a metric, such as `livechat_relay_ready` or `livechat_relay_requests_total{code="200"}`.
    pub fn metric(&self, series: &str) -> f64 {
        metric(&super::http::get(self.admin, "/metrics").body, series)
    }
}

/// The value of a metric in the text of `/metrics`.
pub fn metric(text: &str, series: &str) -> f64 {
    let line = text.lines().find(|line| line.strip_prefix(series).is_some_and(|rest| rest.starts_with(' ')));
    line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or_else(|| panic!("no {series} in:\n{text}"))
}

/// An address of this machine that nobody listens on.
pub fn free_address() -> SocketAddr {
    std::net::TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a free port")
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.guard.end();
        let _ = self.child.kill(); // it may have ended
        let _ = self.child.wait();
    }
}

/// A shell that waits for the end of its input, which is the end of this process, then kills the relay and removes its
/// directory. Statics are never dropped and SIGKILL runs no destructor; a closed pipe is noticed always.
pub struct Guard(Child);

impl Guard {
    pub fn new(relay: &Child, directory: &Path) -> Self {
        let mut shell = Command::new("sh");
        shell.args(["-c", r#"trap '' INT TERM HUP; cat; kill -KILL "$0"; rm -rf "$1""#]);
        shell.arg(relay.id().to_string()).arg(directory);
        shell.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        Self(shell.process_group(0).spawn().expect("sh can be run"))
    }

    /// Sends the shell home before it can kill: a pid that is free again may be another process's.
    pub fn end(&mut self) {
        let _ = self.0.kill(); // it waits for us: it has not ended
        let _ = self.0.wait();
    }
}

/// The text of a configuration file.
pub fn configuration(brokers: &str, settings: Settings<'_>) -> String {
    let mut sections: std::collections::BTreeMap<&str, Vec<String>> = std::collections::BTreeMap::new();
    let defaults = [
        ("server.listen", "\"127.0.0.1:0\""),
        ("admin.listen", "\"127.0.0.1:0\""),
        ("kafka.probe_interval", "\"500ms\""),
        // A machine that is busy with other tests' brokers must not look like an outage; see DEADLINES.
        ("kafka.publish_deadline", "\"20s\""),
        ("server.response_deadline", "\"30s\""),
        ("topics.partitions", "3"),
        ("server.drain_delay", "\"100ms\""),
        ("log.format", "\"json\""),
        ("log.filter", "\"info\""),
    ];
    let is_set = |key: &str| settings.iter().any(|(set, _)| *set == key);
    let kept = defaults.iter().filter(|(key, _)| !is_set(key));
    for (key, value) in kept.chain(settings.iter().filter(|(key, _)| !matches!(*key, "apps" | "rules"))) {
        let (section, name) = key.split_once('.').expect("section.key");
        sections.entry(section).or_default().push(format!("{name} = {value}"));
    }
    sections.entry("kafka").or_default().push(format!("brokers = \"{brokers}\""));
    let mut text = String::new();
    if let Some((_, apps)) = settings.iter().find(|(key, _)| *key == "apps") {
        let _ = writeln!(text, "apps = {apps}");
    } else {
        let _ = writeln!(
            text,
            "apps = [{{ name = \"default\", secret_keys = [{{ name = \"test\", value = \"{SECRET}\" }}] }}]"
        );
    }
    for (section, lines) in sections {
        let _ = writeln!(text, "[{section}]\n{}", lines.join("\n"));
    }
    if let Some((_, rules)) = settings.iter().find(|(key, _)| *key == "rules") {
        let _ = writeln!(text, "{rules}"); // tables of their own
    }
    text
}

/// Waits until `condition` holds; panics after a minute.
pub fn await_that(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !condition() {
        assert!(Instant::now() < deadline, "waited for a minute in vain: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
