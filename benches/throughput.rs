//! The whole relay against the floor: the smallest program that does the same job, on a real Kafka, in alternation.
//!
//! The floor reads the body with hyper, borrows the members with serde_json, hands the body to an idempotent producer and
//! answers 200 on the ack. It has no limits, no envelope and no metrics. Sender, Kafka and server share this machine, so
//! only ratios and CPU time per event mean anything. `THROUGHPUT_PAIRS`, `THROUGHPUT_EVENTS` and
//! `THROUGHPUT_CONNECTIONS` set the effort.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode, body::Incoming};
use hyper_util::rt::TokioIo;
use rdkafka::config::ClientConfig;
use rdkafka::producer::{FutureProducer, FutureRecord};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::value::RawValue;

const SECRET: &str = "key-of-the-bench";

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    if let [_, mode, brokers, port] = &arguments[..]
        && mode == "--floor"
    {
        return floor(brokers, port.parse().expect("a port"));
    }
    let number = |name: &str, default: usize| std::env::var(name).ok().and_then(|v| v.parse().ok()).unwrap_or(default);
    let (pairs, events) = (number("THROUGHPUT_PAIRS", 3), number("THROUGHPUT_EVENTS", 40_000));
    let kafka = Kafka::start();
    println!("real Kafka, one node; {pairs} pairs; {events} events a run (a tenth of it for one connection)\n");
    println!(
        "{:>5}  {:<6} {:>9} {:>9} {:>9} {:>12} {:>8}",
        "conns", "", "events/s", "p50 ms", "p99 ms", "CPU µs/event", "RSS MB"
    );
    let connections = std::env::var("THROUGHPUT_CONNECTIONS").unwrap_or_else(|_| "1,64,512".to_owned());
    for connections in connections.split(',').map(|n| n.trim().parse().expect("numbers parted by commas")) {
        let events = if connections == 1 { events / 10 } else { events };
        let mut runs: [Vec<Run>; 2] = [Vec::new(), Vec::new()];
        for _ in 0..pairs {
            runs[0].push(run(Server::floor(&kafka.bootstrap), connections, events));
            runs[1].push(run(Server::relay(&kafka.bootstrap), connections, events));
        }
        let [floor, relay] = runs.map(median);
        for (name, run) in [("floor", &floor), ("relay", &relay)] {
            println!(
                "{connections:>5}  {name:<6} {:>9.0} {:>9.2} {:>9.2} {:>12.1} {:>8.1}",
                run.per_second, run.p50, run.p99, run.cpu_micros, run.rss_mb
            );
        }
        println!(
            "{connections:>5}  ratio  {:>9.2} {:>9.2} {:>9.2} {:>12.2}\n",
            relay.per_second / floor.per_second,
            relay.p50 / floor.p50,
            relay.p99 / floor.p99,
            relay.cpu_micros / floor.cpu_micros
        );
    }
}

/// A real Kafka, out of the script that `make kafka` uses; ended when dropped.
struct Kafka {
    script: Child,
    bootstrap: String,
}

impl Kafka {
    fn start() -> Self {
        let port = 20_000 + (std::process::id() % 10_000) as u16;
        let mut script = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/kafka.sh"))
            .args(["run", "--port", &port.to_string()])
            .stdout(Stdio::piped())
            .spawn()
            .expect("scripts/kafka.sh");
        let said = BufReader::new(script.stdout.take().expect("a pipe"));
        let ready = said.lines().map_while(Result::ok).any(|line| line.contains("is ready on"));
        assert!(ready, "Kafka did not start");
        Self { script, bootstrap: format!("127.0.0.1:{port}") }
    }
}

impl Drop for Kafka {
    fn drop(&mut self) {
        let pid = i32::try_from(self.script.id()).ok().and_then(Pid::from_raw).expect("a pid");
        let _ = kill_process(pid, Signal::TERM); // it may have ended
        let _ = self.script.wait();
    }
}

/// What one run showed.
#[derive(Clone, Copy, Default)]
struct Run {
    per_second: f64,
    p50: f64,
    p99: f64,
    cpu_micros: f64,
    rss_mb: f64,
}

fn median(runs: Vec<Run>) -> Run {
    let of = |field: fn(&Run) -> f64| {
        let mut values: Vec<f64> = runs.iter().map(field).collect();
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    Run {
        per_second: of(|r| r.per_second),
        p50: of(|r| r.p50),
        p99: of(|r| r.p99),
        cpu_micros: of(|r| r.cpu_micros),
        rss_mb: of(|r| r.rss_mb),
    }
}

/// A server process under test; killed when dropped.
struct Server {
    child: Child,
    port: u16,
    _file: Option<tempfile::NamedTempFile>,
}

impl Server {
    fn floor(brokers: &str) -> Self {
        let port = free_port();
        let program = std::env::current_exe().expect("this program");
        let child = Command::new(program).args(["--floor", brokers, &port.to_string()]).spawn().expect("the floor");
        Self { child, port, _file: None }.listening()
    }

    fn relay(brokers: &str) -> Self {
        let port = free_port();
        let file = tempfile::NamedTempFile::new().expect("a file");
        let text = format!(
            "[server]\nlisten = \"127.0.0.1:{port}\"\n[admin]\nlisten = \"127.0.0.1:0\"\n[kafka]\nbrokers = \"{brokers}\"\n[topics]\npartitions = 3\n[log]\nfilter = \"error\"\n[[apps]]\nname = \"default\"\nsecret_keys = [{{ name = \"k\", value = \"{SECRET}\" }}]\n"
        );
        std::fs::write(file.path(), text).expect("written");
        let program = env!("CARGO_BIN_EXE_livechat-relay");
        let child = Command::new(program).args(["serve", "--config"]).arg(file.path()).spawn().expect("the relay");
        Self { child, port, _file: Some(file) }.listening()
    }

    fn listening(self) -> Self {
        let deadline = Instant::now() + Duration::from_secs(60);
        // The first answer of either says that its topics are known; what it is does not matter.
        while !send(self.port, 1, 1, 7).is_some_and(|report| report["answered_200"] == 1) {
            assert!(Instant::now() < deadline, "the server does not answer");
            std::thread::sleep(Duration::from_millis(50));
        }
        self
    }

    /// User and system time until now.
    fn cpu(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).expect("a running process");
        let fields: Vec<&str> = stat.rsplit(')').next().expect("fields").split_whitespace().collect();
        let ticks: u64 = fields[11..13].iter().map(|f| f.parse::<u64>().expect("ticks")).sum();
        Duration::from_millis(ticks * 10) // USER_HZ is 100 on Linux
    }

    fn rss_mb(&self) -> f64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("a running process");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
        line.trim().trim_end_matches(" kB").trim().parse::<f64>().expect("kB") / 1024.0
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill(); // it may have ended
        let _ = self.child.wait();
    }
}

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a free port").port()
}

fn run(server: Server, connections: usize, events: usize) -> Run {
    send(server.port, connections, events / 10, 1); // warm
    let before = server.cpu();
    let report = send(server.port, connections, events, 2).expect("a report");
    assert_eq!(report["answered_200"], events, "{report:?}");
    let cpu = server.cpu().saturating_sub(before);
    let number = |value: &serde_json::Value| value.as_f64().expect("a number");
    Run {
        per_second: number(&report["per_second"]),
        p50: number(&report["latency_ms"]["p50"]),
        p99: number(&report["latency_ms"]["p99"]),
        cpu_micros: cpu.as_secs_f64() * 1e6 / events as f64,
        rss_mb: server.rss_mb(),
    }
}

fn send(port: u16, connections: usize, events: usize, seed: u64) -> Option<serde_json::Value> {
    let output = Command::new(env!("CARGO_BIN_EXE_livechat-relay"))
        .args(["send", &format!("http://127.0.0.1:{port}/webhooks"), "--json", "--retries", "0"])
        .args(["--count", &events.to_string(), "--connections", &connections.to_string(), "--seed", &seed.to_string()])
        .args(["--actions", "incoming_event,incoming_chat,chat_deactivated,events_marked_as_seen,thread_tagged"])
        .env("LIVECHAT_SECRET_KEY", SECRET)
        .stderr(Stdio::null())
        .output()
        .expect("the sender");
    serde_json::from_slice(&output.stdout).ok()
}

/// The floor program.
fn floor(brokers: &str, port: u16) {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("threads");
    runtime.block_on(async {
        let linger = std::env::var("LIVECHAT_RELAY__KAFKA__LINGER").map_or("0".to_owned(), |l| l.replace("ms", ""));
        let producer: FutureProducer = ClientConfig::new()
            .set("bootstrap.servers", brokers)
            .set("acks", "all")
            .set("enable.idempotence", "true")
            .set("partitioner", "murmur2_random")
            .set("linger.ms", linger)
            .set("compression.codec", "lz4")
            .set("message.max.bytes", "4000000")
            .create()
            .expect("a producer");
        create_topics(brokers).await;
        let producer = Arc::new(producer);
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", port)).await.expect("a port");
        loop {
            let Ok((stream, _)) = listener.accept().await else { continue };
            let _ = stream.set_nodelay(true);
            let producer = Arc::clone(&producer);
            let service = service_fn(move |request| answer(Arc::clone(&producer), request));
            tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service));
        }
    });
}

async fn create_topics(brokers: &str) {
    use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
    let admin: AdminClient<_> = ClientConfig::new().set("bootstrap.servers", brokers).create().expect("a client");
    let names: Vec<String> = livechat_relay::event::actions::names().map(|name| format!("floor.{name}")).collect();
    let topics: Vec<_> = names.iter().map(|name| NewTopic::new(name, 3, TopicReplication::Fixed(1))).collect();
    let options = AdminOptions::new().operation_timeout(Some(Duration::from_secs(10)));
    admin.create_topics(&topics, &options).await.expect("an answer"); // most times they are there already
}

async fn answer(
    producer: Arc<FutureProducer>,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, hyper::Error> {
    let body = request.into_body().collect().await?.to_bytes();
    let status = publish(&producer, &body).await.map_or(StatusCode::BAD_REQUEST, |()| StatusCode::OK);
    let mut answer = Response::new(Full::new(Bytes::new()));
    *answer.status_mut() = status;
    Ok(answer)
}

async fn publish(producer: &FutureProducer, body: &[u8]) -> Option<()> {
    let members: BTreeMap<&str, &RawValue> = serde_json::from_slice(body).ok()?;
    let text = |raw: &&RawValue| raw.get().trim_matches('"').to_owned();
    if members.get("secret_key").map(text)? != SECRET {
        return None;
    }
    let topic = format!("floor.{}", members.get("action").map(text)?);
    let payload: BTreeMap<&str, &RawValue> = serde_json::from_str(members.get("payload")?.get()).ok()?;
    let key = payload.get("chat_id").map(text).unwrap_or_default();
    producer.send(FutureRecord::to(&topic).key(&key).payload(body), Duration::ZERO).await.ok()?;
    Some(())
}
