//! The processes of a measurement: the brokers, the servers, the sender; each ends with its handle. And what Linux tells of them.

use std::ffi::OsStr;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use livechat_relay::event::actions;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::config::ClientConfig;
use rustix::process::{Pid, Signal, kill_process};

use crate::load::Report;

/// The key of the first app, the only one that the floor knows.
pub const SECRET_KEY: &str = "key-of-app-0";

/// The key that an app's webhooks come with.
pub fn secret_key(app: usize) -> String {
    format!("key-of-app-{app}")
}

pub const PARTITIONS: i32 = 3;

pub const RELAY: &str = env!("CARGO_BIN_EXE_livechat-relay");

/// For glibc's malloc, as in `deploy/`.
const ARENAS: (&str, &str) = ("MALLOC_ARENA_MAX", "2");

/// A process, ended when dropped: asked to at first, so that it can clean up.
pub struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        if let Some(pid) = i32::try_from(self.0.id()).ok().and_then(Pid::from_raw) {
            let _ = kill_process(pid, Signal::TERM); // it may have ended
        }
        let _ = self.0.wait();
    }
}

/// Where events go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Brokers {
    /// A real Apache Kafka, one node
    Kafka,
    /// librdkafka's mock cluster, which takes little CPU and keeps nothing for long
    Mock,
}

/// Brokers that run.
pub struct Cluster {
    pub bootstrap: String,
    _process: Process,
}

impl Cluster {
    pub fn start(brokers: Brokers) -> Self {
        match brokers {
            Brokers::Kafka => Self::kafka(),
            Brokers::Mock => Self::mock(),
        }
    }

    /// Out of the script that `make kafka` uses.
    fn kafka() -> Self {
        let port = 20_000 + (std::process::id() % 10_000) as u16;
        let mut script = apart(concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/kafka.sh"));
        script.args(["run", "--port", &port.to_string()]);
        let (process, _) = started(script, "is ready on");
        let cluster = Self { bootstrap: format!("127.0.0.1:{port}"), _process: process };
        cluster.create_topics_of_the_floor();
        cluster
    }

    /// The relay makes its own.
    fn create_topics_of_the_floor(&self) {
        let admin: AdminClient<_> =
            ClientConfig::new().set("bootstrap.servers", &self.bootstrap).create().expect("a client");
        let names: Vec<String> = actions::names().map(crate::floor::topic).collect();
        let new = |name| NewTopic::new(name, PARTITIONS, TopicReplication::Fixed(1));
        let topics: Vec<_> = names.iter().map(|name| new(name)).collect();
        let options = AdminOptions::new().operation_timeout(Some(Duration::from_secs(30)));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let created = runtime.block_on(admin.create_topics(&topics, &options)).expect("an answer");
        assert!(created.iter().all(Result::is_ok), "{created:?}");
    }

    fn mock() -> Self {
        let (process, line) = started(this("mock"), ":");
        Self { bootstrap: line.trim().to_owned(), _process: process }
    }
}

/// Starts a program, and waits for the line that has `wanted`.
fn started(mut command: Command, wanted: &str) -> (Process, String) {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("a program of this project");
    let mut said = BufReader::new(child.stdout.take().expect("a pipe")).lines().map_while(Result::ok);
    let line = said.find(|line| line.contains(wanted)).expect("it has ended, and has said why");
    std::thread::spawn(move || said.for_each(drop)); // else it would wait for a reader one day
    (Process(child), line)
}

/// A mock cluster with every topic, until standard input ends.
pub fn mock() {
    let mock = rdkafka::mocking::MockCluster::new(1).expect("a mock cluster");
    for name in actions::names().chain(["unlisted", "dead-letter"]) {
        for topic in [format!("livechat.{name}"), crate::floor::topic(name)] {
            mock.create_topic(&topic, PARTITIONS, 1).expect("a topic");
        }
    }
    println!("{}", mock.bootstrap_servers());
    std::io::stdin().read_to_end(&mut Vec::new()).expect("standard input");
}

/// A relay to be.
pub struct Relay<'a> {
    pub brokers: &'a str,
    /// More of its configuration, in TOML.
    pub more: &'a str,
    pub apps: usize,
    /// Of each app; the last is in use.
    pub keys: usize,
}

impl<'a> Relay<'a> {
    /// As it comes, with one app that has one key.
    pub fn new(cluster: &'a Cluster) -> Self {
        Self { brokers: &cluster.bootstrap, more: "", apps: 1, keys: 1 }
    }

    fn configuration(&self, port: u16, admin: u16) -> String {
        let Self { brokers, more, .. } = self;
        let server = format!(
            "server.listen = \"127.0.0.1:{port}\"\nadmin.listen = \"127.0.0.1:{admin}\"\nlog.filter = \"error\"\n\
             kafka.brokers = \"{brokers}\"\nkafka.start_timeout = \"500ms\"\ntopics.partitions = {PARTITIONS}\n{more}\n"
        );
        (0..self.apps).fold(server, |text, app| text + &self.app(app))
    }

    fn app(&self, app: usize) -> String {
        let key = |name: usize, value: &str| format!("{{ name = \"key-{name}\", value = \"{value}\" }}");
        let former = (1..self.keys).map(|name| key(name, &format!("former-key-{name}-of-app-{app}")));
        let keys: Vec<String> = former.chain([key(self.keys, &secret_key(app))]).collect();
        format!("[[apps]]\nname = \"app-{app}\"\nsecret_keys = [{}]\n", keys.join(", "))
    }
}

/// A server under test.
pub struct Server {
    process: Process,
    port: u16,
    /// The relay's admin listener.
    admin: u16,
    _file: Option<tempfile::NamedTempFile>,
}

impl Server {
    /// The floor program, with some of librdkafka's properties set otherwise.
    pub fn floor(cluster: &Cluster, set: &[&str]) -> Self {
        let port = free_port();
        let mut command = this("floor");
        command.args(["--brokers", &cluster.bootstrap, "--port", &port.to_string()]);
        command.args(set.iter().flat_map(|set| ["--set", set]));
        let process = Process(command.env(ARENAS.0, ARENAS.1).stdin(Stdio::null()).spawn().expect("the floor"));
        Self { process, port, admin: 0, _file: None }.answering()
    }

    /// A relay that takes events.
    pub fn relay(relay: &Relay<'_>) -> Self {
        Self::spawn(relay).answering()
    }

    fn spawn(relay: &Relay<'_>) -> Self {
        let (port, admin) = (free_port(), free_port());
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), relay.configuration(port, admin)).expect("written");
        let mut command = apart(RELAY);
        command.args(["serve", "--config"]).arg(file.path());
        let process = Process(command.env(ARENAS.0, ARENAS.1).stdin(Stdio::null()).spawn().expect("the relay"));
        Self { process, port, admin, _file: Some(file) }
    }

    /// How long a relay takes from its start to the first 200 of `/readyz`.
    pub fn ready_in(relay: &Relay<'_>) -> Duration {
        let began = Instant::now();
        let server = Self::spawn(relay);
        while !server.admin("/readyz").is_some_and(|answer| answer.starts_with("HTTP/1.1 200 ")) {
            assert!(began.elapsed() < Duration::from_secs(60), "the relay does not become ready");
            std::thread::sleep(Duration::from_millis(1));
        }
        began.elapsed()
    }

    /// Waits for the first 200, which tells that its topics are there.
    fn answering(self) -> Self {
        let deadline = Instant::now() + Duration::from_secs(60);
        let event = ["--connections", "1", "--events", "1", "--seed", "7"].map(str::to_owned);
        while try_load(&[&self], &event, Stdio::null()).is_none() {
            assert!(Instant::now() < deadline, "the server answers no 200");
            std::thread::sleep(Duration::from_millis(50));
        }
        self
    }

    /// Runs the sender against it. Every event has to be answered 200; the sender has said so where one was not.
    pub fn load(&self, arguments: &[&str]) -> Report {
        load(&[self], &arguments.iter().map(|argument| (*argument).to_owned()).collect::<Vec<_>>())
    }

    /// Connections to it that are idle after an event each, until the handle is dropped.
    pub fn idle(&self, connections: usize, seed: u64) -> Process {
        let mut command = this("idle");
        let numbers = [usize::from(self.port), connections].map(|number| number.to_string());
        command.args(["--port", &numbers[0], "--connections", &numbers[1], "--seed", &seed.to_string()]);
        started(command, crate::load::ALL_OPEN).0
    }

    /// The bytes of the events in its spool.
    pub fn spooled_bytes(&self) -> u64 {
        let answer = self.admin("/spool").expect("the relay answers");
        let (_, body) = answer.split_once("\r\n\r\n").expect("an answer of HTTP");
        let status: livechat_relay::desk::Status = serde_json::from_str(body).expect("the spool's status");
        status.bytes
    }

    /// What the admin listener answers; nothing where nobody listens yet.
    fn admin(&self, path: &str) -> Option<String> {
        let mut stream = std::net::TcpStream::connect(("127.0.0.1", self.admin)).ok()?;
        write!(stream, "GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        Some(answer)
    }

    pub fn rss_mb(&self) -> f64 {
        let status =
            std::fs::read_to_string(format!("/proc/{}/status", self.process.0.id())).expect("a running process");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
        line.trim().trim_end_matches(" kB").trim().parse::<f64>().expect("kB") / 1024.0
    }
}

/// Runs the sender against all of these servers at once.
pub fn load(servers: &[&Server], arguments: &[String]) -> Report {
    try_load(servers, arguments, Stdio::inherit()).expect("every event is answered 200")
}

/// Runs the sender against these servers in turn; the reports of each.
pub fn turns(servers: &[&Server], arguments: &[&str]) -> Vec<Vec<Report>> {
    let mut command = sender("turns", servers);
    let output = command.args(arguments).stderr(Stdio::inherit()).output().expect("the sender");
    serde_json::from_slice(&output.stdout).expect("every event is answered 200")
}

fn sender(process: &str, servers: &[&Server]) -> Command {
    let list = |number: fn(&Server) -> u32| {
        servers.iter().map(|server| number(server).to_string()).collect::<Vec<_>>().join(",")
    };
    let mut command = this(process);
    command.args(["--ports", &list(|server| server.port.into()), "--pids", &list(|server| server.process.0.id())]);
    command
}

fn try_load(servers: &[&Server], arguments: &[String], said: Stdio) -> Option<Report> {
    let output = sender("load", servers).args(arguments).stderr(said).output().expect("the sender");
    serde_json::from_slice(&output.stdout).ok()
}

/// The relay raises its limit by itself; this is for the sender.
pub fn raise_open_files(connections: usize) {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let needed = connections as u64 + 64;
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_some_and(|current| current < needed) {
        setrlimit(Resource::Nofile, Rlimit { current: Some(needed), maximum: limit.maximum })
            .unwrap_or_else(|error| panic!("{connections} connections need {needed} open files (ulimit -n): {error}"));
    }
}

/// User and system time of all threads of a process until now.
pub fn cpu(pid: u32) -> Duration {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).expect("a running process");
    let of_thread = |thread: std::io::Result<std::fs::DirEntry>| {
        let text = std::fs::read_to_string(thread.ok()?.path().join("schedstat")).ok()?; // it may have ended
        text.split_whitespace().next()?.parse::<u64>().ok()
    };
    Duration::from_nanos(threads.filter_map(of_thread).sum())
}

/// A program in a session of its own, as services are: Linux shares the cores among sessions first (autogroup), and a broker's many
/// threads do not push aside those of what is measured.
fn apart(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("setsid");
    command.arg(program);
    command
}

/// This program as one of its processes.
fn this(process: &str) -> Command {
    let mut command = apart(std::env::current_exe().expect("this program"));
    command.arg(process);
    command
}

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a free port").port()
}
