//! The start: what is posted before the relay is ready is answered, and a restart refuses no connection.

use std::io::Write as _;
use std::net::TcpListener;
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::Signal;

use crate::support::relay::{Relay, Settings, await_that, configuration};
use crate::support::{chat_id, http, incoming_event, kafka};

/// No broker is there.
const NOWHERE: &str = "127.0.0.1:1";

#[test]
fn while_another_relay_has_the_spool_a_new_one_is_alive_and_what_is_posted_to_it_waits() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = format!("\"{}\"", directory.path().join("spool").display());
    let settings: Settings<'_> = &[("spool.directory", &path), ("spool.lock_timeout", "\"60s\"")];
    let mut first = Relay::start(NOWHERE, settings);
    let chat = chat_id();
    assert_eq!(http::post(first.webhooks, incoming_event(&chat, 0)).status, 200);

    let second = Relay::start_logging_to(Stdio::null(), NOWHERE, settings);
    assert_eq!(http::get(second.admin, "/livez").status, 200);
    let readiness = http::get(second.admin, "/readyz");
    let states = "not ready: the spool is not open yet\nkafka: down\nspool: not accepting, 0 waiting\ntopics: 0 ready, 0 missing, 0 refused\n";
    assert_eq!((readiness.status, &*readiness.body), (503, states));
    std::thread::scope(|scope| {
        let posted = scope.spawn(|| http::post(second.webhooks, incoming_event(&chat, 1)).status);
        await_that("it is in flight", || second.metric("livechat_relay_bytes_in_flight") > 0.0);
        first.signal(Signal::TERM);
        assert!(first.end().success());
        assert_eq!(posted.join().expect("an answer"), 200);
    });
    let series = "livechat_relay_spool_records{topic=\"livechat.incoming_event\"}";
    assert_eq!(second.metric(series), 2.0, "that of the first one, and behind it that of the second");
    assert_eq!(http::get(second.admin, "/readyz").status, 200);
}

#[test]
fn what_waits_for_the_spool_in_vain_is_answered_503_at_its_deadline() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = format!("\"{}\"", directory.path().join("spool").display());
    let settings: Settings<'_> = &[
        ("spool.directory", &path),
        ("spool.lock_timeout", "\"60s\""),
        ("server.response_deadline", "\"1s\""),
        ("server.body_timeout", "\"100ms\""),
        ("kafka.publish_deadline", "\"500ms\""),
    ];
    let _first = Relay::start(NOWHERE, settings);
    let second = Relay::start_logging_to(Stdio::null(), NOWHERE, settings);
    assert_eq!(http::post(second.webhooks, incoming_event(&chat_id(), 0)).status, 503);
    assert_eq!(http::get(second.admin, "/livez").status, 200);
}

/// As systemd does it with a socket unit: it listens, and each relay gets the socket as file descriptor 3.
#[test]
fn with_a_socket_that_is_passed_on_a_restart_refuses_no_connection() {
    let Some(kafka) = kafka::shared_or_skip() else { return };
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("relay.toml");
    std::fs::write(&file, configuration(kafka.bootstrap(), &[])).expect("a file");
    let socket = TcpListener::bind("127.0.0.1:0").expect("a socket");
    let address = socket.local_addr().expect("an address");
    let start = || {
        let relay = "LISTEN_PID=$$ LISTEN_FDS=1 exec \"$0\" serve --config \"$1\" 3<&0 </dev/null";
        let mut command = Command::new("sh");
        command.args(["-c", relay, env!("CARGO_BIN_EXE_livechat-relay")]).arg(&file);
        command.stdin(Stdio::from(std::os::fd::OwnedFd::from(socket.try_clone().expect("a copy"))));
        command.stderr(Stdio::null()).spawn().expect("a relay")
    };
    let connect = || {
        let mut connection = http::connect(address);
        connection.set_read_timeout(Some(Duration::from_secs(60))).expect("a socket");
        connection.write_all(&http::request("/webhooks", "", incoming_event(&chat_id(), 1))).expect("it is accepted");
        connection
    };
    for _ in 0..2 {
        let mut connection = connect(); // no relay runs
        let mut relay = start();
        let answer = http::read(&mut connection).expect("an answer");
        assert_eq!(answer.status, 200);
        let pid = rustix::process::Pid::from_child(&relay);
        rustix::process::kill_process(pid, Signal::TERM).expect("a process of ours");
        assert!(relay.wait().expect("it ends").success());
    }
}
