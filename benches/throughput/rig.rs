//! The processes of a measurement: brokers, servers, sender. Each is ended when its handle is dropped. Memory and time to start
//! of a server are read here, too.

use std::ffi::OsStr;
use std::fmt;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::str::FromStr;
use std::time::{Duration, Instant};

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::config::ClientConfig;

use crate::figures::Report;
use crate::load::{ALL_OPEN, Job, Target};
use crate::webhooks::{PARTITIONS, SECRET_KEY, Webhooks, floor_topics};

const RELAY: &str = env!("CARGO_BIN_EXE_livechat-relay");

/// For a relay to start, and for brokers to create its topics.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// A process. When dropped it is asked to end, so that it can clean up, and waited for.
pub struct Process(Child);

impl Process {
    fn start(mut command: Command) -> Self {
        Self(command.stdin(Stdio::null()).spawn().expect("a program of this project"))
    }

    /// Starts a program that runs until its standard input ends, and waits for a line of its output that contains `wanted`.
    fn with_line(mut command: Command, wanted: &str) -> (Self, String) {
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("a program of this project");
        let mut lines = BufReader::new(child.stdout.take().expect("a pipe")).lines().map_while(Result::ok);
        let line = lines.find(|line| line.contains(wanted)).expect("it has ended, and has written why");
        std::thread::spawn(move || lines.for_each(drop)); // a full pipe would stop it
        (Self(child), line)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        use rustix::process::{Pid, Signal, kill_process};
        drop(self.0.stdin.take());
        if let Some(pid) = i32::try_from(self.0.id()).ok().and_then(Pid::from_raw) {
            let _ = kill_process(pid, Signal::TERM); // it may have ended
        }
        let _ = self.0.wait();
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Brokers {
    /// A real Apache Kafka, one node
    Kafka,
    /// librdkafka's mock cluster
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

    fn kafka() -> Self {
        let port = 20_000 + (std::process::id() % 10_000) as u16; // the script needs the port above it, too
        let mut script = apart(concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/kafka.sh"));
        script.args(["run", "--port", &port.to_string()]);
        let (process, _) = Process::with_line(script, "is ready on");
        let cluster = Self { bootstrap: format!("127.0.0.1:{port}"), _process: process };
        cluster.create_topics_of_the_floor();
        cluster
    }

    fn mock() -> Self {
        let (process, line) = Process::with_line(this("mock"), ":");
        Self { bootstrap: line.trim().to_owned(), _process: process }
    }

    /// The relay creates its own.
    fn create_topics_of_the_floor(&self) {
        let admin: AdminClient<_> =
            ClientConfig::new().set("bootstrap.servers", &self.bootstrap).create().expect("a client");
        let names = floor_topics();
        let topics = names.iter().map(|name| NewTopic::new(name, PARTITIONS, TopicReplication::Fixed(1)));
        let topics: Vec<_> = topics.collect();
        let options = AdminOptions::new().operation_timeout(Some(Duration::from_secs(30)));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let created = runtime.block_on(admin.create_topics(&topics, &options)).expect("an answer");
        assert!(created.iter().all(Result::is_ok), "{created:?}");
    }
}

/// Settings of the relay that differ from its defaults: `kafka.linger=2ms,server.backlog=100`.
#[derive(Clone, Default)]
pub struct Settings(Vec<(String, String)>);

impl Settings {
    #[must_use]
    pub fn with(mut self, name: &str, value: impl fmt::Display) -> Self {
        self.0.push((name.to_owned(), value.to_string()));
        self
    }

    /// As the relay takes them.
    fn variables(&self) -> impl Iterator<Item = (String, &String)> {
        self.0.iter().map(|(name, value)| {
            let name = match name.strip_prefix("kafka.properties.") {
                Some(property) => format!("kafka.properties.{}", property.replace('.', "_")),
                None => name.clone(),
            };
            (format!("LIVECHAT_RELAY__{}", name.replace('.', "__").to_uppercase()), value)
        })
    }
}

impl FromStr for Settings {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let setting = |pair: &str| pair.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned()));
        let pairs = text.split(',').filter(|pair| !pair.is_empty());
        let settings = pairs.map(|pair| setting(pair).ok_or_else(|| format!("`{pair}` is no NAME=VALUE")));
        settings.collect::<Result<_, _>>().map(Self)
    }
}

impl fmt::Display for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let texts: Vec<String> = self.0.iter().map(|(name, value)| format!("{name}={value}")).collect();
        f.write_str(&texts.join(", "))
    }
}

/// A server under test.
pub struct Server {
    process: Process,
    port: u16,
    /// The relay's admin listener; the floor has none.
    admin: u16,
}

impl Server {
    pub fn floor(cluster: &Cluster, linger_ms: u32) -> Self {
        let port = free_port();
        let mut command = this("floor");
        command.args(["--brokers", &cluster.bootstrap, "--port", &port.to_string()]);
        command.args(["--linger", &linger_ms.to_string()]);
        Self::start(command, port, 0).answering()
    }

    /// A relay that takes events.
    pub fn relay(brokers: &str, settings: &Settings) -> Self {
        Self::start_relay(brokers, settings).answering()
    }

    fn start_relay(brokers: &str, settings: &Settings) -> Self {
        let (port, admin) = (free_port(), free_port());
        let base = Settings::default()
            .with("server.listen", format!("127.0.0.1:{port}"))
            .with("admin.listen", format!("127.0.0.1:{admin}"))
            .with("log.filter", "error")
            .with("kafka.brokers", brokers)
            .with("kafka.start_timeout", "500ms") // the mock cluster never answers what is asked about topics at the start
            .with("topics.partitions", PARTITIONS)
            .with("apps.0.name", "default")
            .with("apps.0.secret_keys.0.name", "bench")
            .with("apps.0.secret_keys.0.value", SECRET_KEY);
        let mut command = apart(RELAY);
        command.arg("serve").envs(base.variables()).envs(settings.variables());
        Self::start(command, port, admin)
    }

    /// With two arenas of glibc's malloc, as in `deploy/`.
    fn start(mut command: Command, port: u16, admin: u16) -> Self {
        command.env("MALLOC_ARENA_MAX", "2");
        Self { process: Process::start(command), port, admin }
    }

    /// Waits for the first 200, which shows that its topics are there.
    fn answering(mut self) -> Self {
        let deadline = Instant::now() + START_TIMEOUT;
        let job = Job { servers: vec![self.target()], ..Job::of_events(1, 1, Webhooks::usual(7)) };
        while send(&job, Stdio::null()).is_none() {
            self.check_start(deadline);
            std::thread::sleep(Duration::from_millis(50));
        }
        self
    }

    /// How long a relay takes from its start to the first 200 of `/readyz`.
    pub fn ready_in(brokers: &str, settings: &Settings) -> Duration {
        let began = Instant::now();
        let mut server = Self::start_relay(brokers, settings);
        while !server.get("/readyz").is_some_and(|answer| answer.starts_with("HTTP/1.1 200 ")) {
            server.check_start(began + START_TIMEOUT);
            std::thread::sleep(Duration::from_millis(1));
        }
        began.elapsed()
    }

    fn check_start(&mut self, deadline: Instant) {
        let ended = self.process.0.try_wait().expect("a child");
        assert!(ended.is_none(), "the server has ended, and has written why");
        assert!(Instant::now() < deadline, "the server does not start in time");
    }

    fn target(&self) -> Target {
        Target { port: self.port, pid: self.process.0.id() }
    }

    /// Connections to it that are idle after an event each, until the handle is dropped.
    pub fn idle(&self, connections: usize, seed: u64) -> Process {
        let mut command = this("idle");
        command.args([self.port.to_string(), connections.to_string(), seed.to_string()]);
        Process::with_line(command, ALL_OPEN).0
    }

    /// The bytes of the events in its spool.
    pub fn spooled_bytes(&self) -> u64 {
        let metrics = self.get("/metrics").expect("the relay answers");
        let lines = metrics.lines().filter(|line| line.starts_with("livechat_relay_spool_bytes{"));
        let values = lines.filter_map(|line| line.rsplit_once(' '));
        values.map(|(_, value)| value.parse::<u64>().expect("a whole number")).sum()
    }

    /// What the admin listener answers; nothing where it does not listen yet.
    fn get(&self, path: &str) -> Option<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.admin)).ok()?;
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

    /// One run of the sender against it alone.
    pub fn load(&self, job: &Job) -> Report {
        turns(&[self], job)[0][0]
    }
}

/// Runs the sender against these servers in turn: the reports of each. Every event has to be answered 200.
pub fn turns(servers: &[&Server], job: &Job) -> Vec<Vec<Report>> {
    let servers = servers.iter().map(|server| server.target()).collect();
    let reports = send(&Job { servers, ..job.clone() }, Stdio::inherit());
    reports.expect("every event is answered 200; the sender has written which was not")
}

/// Runs the sender; no reports where an event was not answered 200.
fn send(job: &Job, stderr: Stdio) -> Option<Vec<Vec<Report>>> {
    let mut command = this("load");
    command.arg(serde_json::to_string(job).expect("a job in JSON"));
    let output = command.stderr(stderr).output().expect("the sender");
    serde_json::from_slice(&output.stdout).ok()
}

/// A program in a session of its own, as services are: Linux shares the cores among sessions first (autogroup), and a broker's
/// many threads do not push aside those of what is measured.
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
    TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a free port").port()
}
