//! The case `request`: the release build under callgrind, from a request's first byte to its answer's last.
//!
//! Only the relay runs under callgrind: sender and brokers (librdkafka's mock cluster) are this process. It has one worker
//! thread, and one request at a time is sent, over the connections in turn, so that its threads seldom wait for each other.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;

use livechat_relay::event::actions;
use livechat_relay::samples::traffic::Traffic;
use rdkafka::mocking::MockCluster;
use rdkafka::producer::DefaultProducerContext;
use rustix::process::{Pid, Signal, kill_process};

use crate::counts::Counts;
use crate::valgrind::Callgrind;

/// Requests of the two runs whose difference counts. So many that what depends on the moment is below a thousandth.
pub const EVENTS: [usize; 2] = [300, 2_300];
/// What a busy account sends most.
const ACTIONS: [&str; 5] =
    ["incoming_event", "incoming_chat", "chat_deactivated", "events_marked_as_seen", "thread_tagged"];
const CONNECTIONS: usize = 4;
const SECRET_KEY: &str = "key-of-the-guard";
/// For one answer. callgrind makes the relay fifty times slower, and others may load the machine.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

/// What of the relay is counted for so many requests, its start and its end included.
pub fn count(events: usize) -> Counts {
    let brokers = brokers();
    let relay = Relay::start(&brokers.bootstrap_servers());
    let mut connections: Vec<_> = (0..CONNECTIONS).map(|_| connect(&relay.webhooks)).collect();
    for (n, request) in requests(events).enumerate() {
        exchange(&mut connections[n % CONNECTIONS], &request);
    }
    drop(connections);
    Counts::sum(&relay.stop().into_iter().map(counted).collect::<Vec<_>>())
}

/// A thread that serves HTTP counts as a whole. Of the others only the relay's own functions do, such as those that take a
/// report: the rest is librdkafka's, and waiting.
fn counted(thread: Counts) -> Counts {
    let serves = thread.0.keys().any(|function| function.contains("hyper::proto::"));
    if serves { thread } else { thread.split(|function| function.contains("livechat_relay::")).0 }
}

fn brokers() -> MockCluster<'static, DefaultProducerContext> {
    let mock = MockCluster::new(1).expect("a mock cluster");
    for name in actions::names().chain(["unlisted", "dead-letter"]) {
        mock.create_topic(&format!("livechat.{name}"), 3, 1).expect("a topic");
    }
    mock
}

/// The same ones each time, as they go over the wire.
fn requests(events: usize) -> impl Iterator<Item = String> {
    let time: jiff::Timestamp = "2026-11-22T10:00:00.123456Z".parse().expect("a time");
    let traffic = Traffic::new(1).clock(move || time).only(&ACTIONS).expect("actions of the catalogue");
    traffic.take(events).map(|sample| {
        let body = sample.body(SECRET_KEY);
        let length = body.len();
        format!(
            "POST /webhooks HTTP/1.1\r\nhost: localhost\r\nuser-agent: guard\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
        )
    })
}

struct Relay {
    process: Child,
    /// Its address.
    webhooks: String,
    callgrind: Callgrind,
}

impl Relay {
    fn start(brokers: &str) -> Self {
        let callgrind = Callgrind::new();
        let mut command = callgrind.command(Path::new(env!("CARGO_BIN_EXE_livechat-relay")));
        command.arg("serve").env("TOKIO_WORKER_THREADS", "1").envs(settings(brokers));
        let mut process = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().expect("valgrind");
        let mut log = BufReader::new(process.stderr.take().expect("a pipe")).lines().map_while(Result::ok);
        let mut lines = String::new();
        let webhooks = log.by_ref().inspect(|line| lines = format!("{lines}\n{line}")).find_map(|line| {
            let line: serde_json::Value = serde_json::from_str(&line).ok()?;
            Some(line["webhooks"].as_str()?.to_owned())
        });
        let webhooks = webhooks.unwrap_or_else(|| panic!("the relay did not start:{lines}"));
        std::thread::spawn(move || log.for_each(drop)); // a full pipe would stop the relay
        Self { process, webhooks, callgrind }
    }

    /// As a person would stop it.
    fn stop(mut self) -> Vec<Counts> {
        let pid = i32::try_from(self.process.id()).ok().and_then(Pid::from_raw).expect("a process");
        kill_process(pid, Signal::TERM).expect("a process of ours");
        let status = self.process.wait().expect("a process of ours");
        assert!(status.success(), "the relay has ended with {status}");
        self.callgrind.threads()
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        let _ = self.process.kill(); // where a request has failed; else it has ended
        let _ = self.process.wait();
    }
}

/// The defaults, but for the addresses, and for what would time out or be done at intervals meanwhile.
fn settings(brokers: &str) -> impl Iterator<Item = (String, String)> {
    let set = [
        ("KAFKA__BROKERS", brokers),
        ("KAFKA__START_TIMEOUT", "500ms"), // the mock cluster never answers what is asked about topics at the start
        ("KAFKA__PUBLISH_DEADLINE", "30s"),
        ("KAFKA__PROBE_INTERVAL", "300s"),
        ("SERVER__LISTEN", "127.0.0.1:0"),
        ("SERVER__RESPONSE_DEADLINE", "60s"),
        ("SERVER__DRAIN_DELAY", "0s"),
        ("ADMIN__LISTEN", "127.0.0.1:0"),
        ("LOG__FORMAT", "json"),
        ("APPS__0__NAME", "default"),
        ("APPS__0__SECRET_KEYS__0__NAME", "k"),
        ("APPS__0__SECRET_KEYS__0__VALUE", SECRET_KEY),
    ];
    set.map(|(name, value)| (format!("LIVECHAT_RELAY__{name}"), value.to_owned())).into_iter()
}

fn connect(address: &str) -> TcpStream {
    let stream = TcpStream::connect(address).expect("the relay listens");
    stream.set_nodelay(true).expect("a socket");
    stream.set_read_timeout(Some(ANSWER_TIMEOUT)).expect("a socket");
    stream
}

/// Sends a request in one piece, and reads its answer, which has to be 200 without a body.
fn exchange(connection: &mut TcpStream, request: &str) {
    connection.write_all(request.as_bytes()).expect("the relay reads");
    let (mut bytes, mut length) = ([0; 1024], 0);
    while !bytes[..length].ends_with(b"\r\n\r\n") {
        let read = connection.read(&mut bytes[length..]).expect("the relay answers in time");
        assert!(read > 0, "the relay has closed the connection");
        length += read;
    }
    let head = String::from_utf8_lossy(&bytes[..length]);
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
}
