//! systemd as the relay sees it: what it sends to the socket that `Type=notify` gives it, whatever Kafka, the disk and systemd itself do.

use std::io::Write as _;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tempfile::TempDir;

use crate::shim::{self, Knob, Shim};
use crate::support::mock::Mock;
use crate::support::relay::{Relay, Settings, free_address};
use crate::support::{chat_id, http, incoming_event};

/// No broker is there.
const NOWHERE: &str = "127.0.0.1:1";

/// The socket that `NOTIFY_SOCKET` names.
struct Systemd {
    socket: UnixDatagram,
    name: String,
    _directory: Option<TempDir>,
}

impl Systemd {
    fn on_a_path() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("notify");
        let name = path.to_str().expect("text").to_owned();
        Self::of(UnixDatagram::bind(path), name, Some(directory))
    }

    /// As containers pass it on: a name that no file has.
    fn abstract_one() -> Self {
        let name = format!("livechat-relay-{}", chat_id());
        let address = SocketAddr::from_abstract_name(&name).expect("an address");
        Self::of(UnixDatagram::bind_addr(&address), format!("@{name}"), None)
    }

    fn of(socket: std::io::Result<UnixDatagram>, name: String, directory: Option<TempDir>) -> Self {
        let socket = socket.expect("a socket");
        socket.set_read_timeout(Some(Duration::from_millis(100))).expect("a socket");
        Self { socket, name, _directory: directory }
    }

    fn start(&self, brokers: &str, settings: Settings<'_>, more: &[(&str, &str)], arguments: &[&str]) -> Relay {
        let env = [&[("NOTIFY_SOCKET", self.name.as_str())], more].concat();
        Relay::spawn(brokers, settings, &env, arguments).await_start().unwrap_or_else(|log| panic!("no start:\n{log}"))
    }

    /// Reads until a message has this line, or one that begins with it; the message.
    fn await_line(&self, line: &str, relay: &Relay) -> String {
        let deadline = Instant::now() + Duration::from_secs(60);
        let mut read = Vec::new();
        while Instant::now() < deadline {
            let mut bytes = [0; 4096];
            let Ok(length) = self.socket.recv(&mut bytes) else { continue };
            let message = String::from_utf8(bytes[..length].to_vec()).expect("text");
            if message.lines().any(|found| found.starts_with(line)) {
                return message;
            }
            read.push(message);
        }
        panic!("no `{line}` among {read:?}\n{}", relay.log())
    }
}

/// What a message's line has behind its `=`, as microseconds.
fn time(message: &str, name: &str) -> Duration {
    let value = message.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
    Duration::from_micros(value.and_then(|micros| micros.parse().ok()).unwrap_or_else(|| panic!("{name} in {message}")))
}

#[test]
fn ready_is_sent_as_soon_as_both_listeners_answer_though_there_is_no_kafka_and_no_spool() {
    for systemd in [Systemd::on_a_path(), Systemd::abstract_one()] {
        let settings = [
            ("kafka.start_timeout", "\"60s\""),
            ("kafka.publish_deadline", "\"1s\""),
            ("server.response_deadline", "\"8s\""),
        ];
        let relay = systemd.start(NOWHERE, &settings, &[], &[]);
        systemd.await_line("READY=1", &relay);
        assert_eq!(http::get(relay.admin, "/livez").status, 200);
        assert_eq!(http::post(relay.webhooks, incoming_event(&chat_id(), 1)).status, 503, "it is not durable");
        systemd.await_line("STATUS=not ready: Kafka is unavailable", &relay);
        assert!(!relay.log().contains("Kafka is unavailable"), "the brokers are still waited for: {}", relay.log());
    }
}

#[test]
fn the_status_is_what_readyz_says_and_follows_it() {
    let (systemd, mock) = (Systemd::on_a_path(), Mock::start());
    let settings = [("topics.create", "false"), ("kafka.start_timeout", "\"500ms\"")];
    let relay = systemd.start(&mock.bootstrap(), &settings, &[], &[]);
    let of_readyz = || format!("STATUS={}", http::get(relay.admin, "/readyz").body.lines().next().unwrap_or_default());
    systemd.await_line("STATUS=ready", &relay);
    assert_eq!(of_readyz(), "STATUS=ready");
    mock.freeze();
    systemd.await_line("STATUS=not ready: Kafka is unavailable", &relay);
    assert_eq!(of_readyz(), "STATUS=not ready: Kafka is unavailable");
    mock.thaw();
    systemd.await_line("STATUS=ready", &relay);
}

#[test]
fn the_watchdog_hears_of_the_relay_while_kafka_and_the_disk_hang() {
    if let Some(why) = shim::no_compiler() {
        assert!(std::env::var_os("CI").is_none(), "{why}");
        return eprintln!("skipped: {why}");
    }
    let (systemd, mock, directory) = (Systemd::on_a_path(), Mock::start(), tempfile::tempdir().expect("a directory"));
    let spool = directory.path().join("spool");
    let shim = Shim::new(&directory.path().join("shim"), &spool);
    let path = format!("{spool:?}");
    let settings = [
        ("topics.create", "false"),
        ("kafka.start_timeout", "\"500ms\""),
        ("kafka.publish_deadline", "\"500ms\""),
        ("server.body_timeout", "\"500ms\""),
        ("server.response_deadline", "\"1s\""),
        ("spool.directory", path.as_str()),
    ];
    let mut env = shim.environment();
    env.push(("WATCHDOG_USEC".to_owned(), "2000000".to_owned()));
    let env: Vec<_> = env.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let relay = systemd.start(&mock.bootstrap(), &settings, &env, &[]);
    systemd.await_line("STATUS=ready", &relay);

    mock.freeze();
    shim.set(Knob::FsyncDelayMs, 3_600_000);
    for n in 0..4 {
        assert_eq!(http::post(relay.webhooks, incoming_event(&chat_id(), n)).status, 503, "it is not durable");
        systemd.await_line("WATCHDOG=1", &relay);
    }
    // Whatever came before, these are of a relay whose disk and brokers have hung all the time.
    for _ in 0..4 {
        systemd.await_line("WATCHDOG=1", &relay);
    }
}

/// `systemctl restart` returns with READY=1, and the next stop may follow at once.
#[test]
fn a_stop_that_follows_ready_at_once_answers_what_was_taken() {
    let (systemd, directory) = (Systemd::on_a_path(), tempfile::tempdir().expect("a directory"));
    if let Some(why) = shim::no_compiler() {
        assert!(std::env::var_os("CI").is_none(), "{why}");
        return eprintln!("skipped: {why}");
    }
    let spool = directory.path().join("spool");
    let shim = Shim::new(&directory.path().join("shim"), &spool);
    shim.set(Knob::FsyncDelayMs, 200); // so that the answer comes after the signal
    let path = format!("{spool:?}");
    let mut env = shim.environment();
    env.push(("NOTIFY_SOCKET".to_owned(), systemd.name.clone()));
    let env: Vec<_> = env.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let address = free_address();
    let listen = format!("\"{address}\"");
    let settings = [("spool.directory", path.as_str()), ("server.listen", &listen), ("spool.free_min", "\"0\"")];
    let mut relay = Relay::spawn(NOWHERE, &settings, &env, &[]);
    systemd.await_line("READY=1", &relay);
    let mut connection = http::connect(address);
    connection.write_all(&http::request("/webhooks", "", incoming_event(&chat_id(), 1))).expect("written");
    relay.signal(Signal::TERM);
    assert_eq!(http::read(&mut connection).expect("an answer").status, 200, "{}", relay.log());
    assert!(relay.end().success(), "{}", relay.log());
    assert!(relay.has_logged("stopped: events remain in the spool"), "{}", relay.log());
}

#[test]
fn a_stop_is_announced_with_the_time_that_it_may_take() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = format!("{:?}", directory.path().join("spool"));
    let settings = [
        ("spool.directory", path.as_str()),
        ("spool.drain_timeout", "\"30s\""),
        ("server.drain_delay", "\"100ms\""),
        ("server.drain_timeout", "\"20s\""),
    ];
    for (arguments, seconds) in [(&[][..], 20..50), (&["--drain"], 50..80)] {
        let systemd = Systemd::on_a_path();
        let mut relay = systemd.start(NOWHERE, &settings, &[], arguments);
        systemd.await_line("READY=1", &relay);
        relay.signal(Signal::TERM);
        let message = systemd.await_line("STOPPING=1", &relay);
        assert!(seconds.contains(&time(&message, "EXTEND_TIMEOUT_USEC").as_secs()), "{arguments:?}: {message}");
        assert!(relay.end().success(), "{}", relay.log());
    }
}

#[test]
fn a_systemd_that_reads_nothing_or_is_not_there_holds_up_nothing() {
    let mut deaf = Systemd::on_a_path();
    for name in [deaf.name.clone(), "/nowhere/notify".to_owned(), "no path".to_owned()] {
        deaf.name = name;
        let mock = Mock::start();
        let settings = [("topics.create", "false"), ("kafka.start_timeout", "\"500ms\"")];
        // So often that the socket's queue is full in a moment.
        let mut relay = deaf.start(&mock.bootstrap(), &settings, &[("WATCHDOG_USEC", "40000")], &[]);
        relay.await_log("systemd cannot be notified through NOTIFY_SOCKET");
        assert_eq!(http::post(relay.webhooks, incoming_event(&chat_id(), 1)).status, 200);
        relay.signal(Signal::TERM);
        assert!(relay.end().success(), "{}", relay.log());
    }
}
