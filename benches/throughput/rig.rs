//! The processes of a measurement: the brokers, the servers, the sender; each ends with its handle. And what Linux tells of them.

use std::io::{BufRead as _, BufReader, Read as _};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use livechat_relay::event::actions;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::config::ClientConfig;
use rustix::process::{Pid, Signal, kill_process};

use crate::load::Report;

pub const SECRET_KEY: &str = "key-of-the-bench";
pub const PARTITIONS: i32 = 3;

/// A process, ended when dropped: asked to at first, so that it can clean up.
struct Process(Child);

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
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, serde::Serialize)]
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
        let mut script = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/kafka.sh"));
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

/// A server under test.
pub struct Server {
    process: Process,
    port: u16,
    /// From its start to its first 200.
    pub started_in: Duration,
    _file: Option<tempfile::NamedTempFile>,
}

impl Server {
    /// The floor program, with some of librdkafka's properties set otherwise.
    pub fn floor(cluster: &Cluster, set: &[&str]) -> Self {
        let port = free_port();
        let mut command = this("floor");
        command.args(["--brokers", &cluster.bootstrap, "--port", &port.to_string()]);
        command.args(set.iter().flat_map(|set| ["--set", set]));
        Self::start(command, port, None)
    }

    /// The relay as it comes, and what `more` configures.
    pub fn relay(cluster: &Cluster, more: &str) -> Self {
        let port = free_port();
        let file = tempfile::NamedTempFile::new().expect("a file");
        let text = format!(
            "server.listen = \"127.0.0.1:{port}\"\nadmin.listen = \"127.0.0.1:0\"\nlog.filter = \"error\"\n\
             kafka.brokers = \"{}\"\nkafka.start_timeout = \"500ms\"\ntopics.partitions = {PARTITIONS}\n{more}\n\
             [[apps]]\nname = \"default\"\nsecret_keys = [{{ name = \"k\", value = \"{SECRET_KEY}\" }}]\n",
            cluster.bootstrap
        );
        std::fs::write(file.path(), text).expect("written");
        let mut command = Command::new(env!("CARGO_BIN_EXE_livechat-relay"));
        command.args(["serve", "--config"]).arg(file.path());
        Self::start(command, port, Some(file))
    }

    fn start(mut command: Command, port: u16, file: Option<tempfile::NamedTempFile>) -> Self {
        let began = Instant::now();
        let process = Process(command.stdin(Stdio::null()).spawn().expect("the server"));
        let mut server = Self { process, port, started_in: Duration::ZERO, _file: file };
        let deadline = began + Duration::from_secs(60);
        // The first 200 tells that its topics are there.
        while server.try_load(&["--connections", "1", "--events", "1", "--seed", "7"], Stdio::null()).is_none() {
            assert!(Instant::now() < deadline, "the server answers no 200");
            std::thread::sleep(Duration::from_millis(50));
        }
        server.started_in = began.elapsed();
        server
    }

    /// Runs the sender against it. Every event has to be answered 200; the sender has said so where one was not.
    pub fn load(&self, arguments: &[&str]) -> Report {
        self.try_load(arguments, Stdio::inherit()).expect("every event is answered 200")
    }

    fn try_load(&self, arguments: &[&str], said: Stdio) -> Option<Report> {
        let mut command = this("load");
        command.args(["--port", &self.port.to_string(), "--pid", &self.process.0.id().to_string()]).args(arguments);
        let output = command.stderr(said).output().expect("the sender");
        serde_json::from_slice(&output.stdout).ok()
    }

    pub fn rss_mb(&self) -> f64 {
        let status =
            std::fs::read_to_string(format!("/proc/{}/status", self.process.0.id())).expect("a running process");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
        line.trim().trim_end_matches(" kB").trim().parse::<f64>().expect("kB") / 1024.0
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

/// This program as one of its processes.
fn this(process: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    command.arg(process);
    command
}

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a free port").port()
}
