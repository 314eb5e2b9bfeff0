//! A real Kafka for the tests: one cluster shared by all, and clusters of a test's own that it may kill, pause and restart. Its processes
//! and data are gone when the test process is, however that ends. The jars, and Java, are the business of `scripts/kafka.sh`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::Write;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use rdkafka::admin::{AdminClient, AdminOptions, AlterConfig, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Headers, Message as _};
use rdkafka::metadata::Metadata;
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// How long a node may take to start, stop, or answer. Ten times what it takes on two idle cores: CI's are not idle.
const DEADLINE: Duration = Duration::from_secs(60);

/// How long one question to it may take before it is asked again.
const ATTEMPT: Duration = Duration::from_secs(5);

/// How often a condition is looked at.
const POLL: Duration = Duration::from_millis(25);

/// A cluster of one or three nodes, each both broker and controller, on 127.0.0.1; or the one that `KAFKA_BOOTSTRAP` names.
pub struct Kafka {
    bootstrap: String,
    nodes: Vec<Node>,
    // Dropped, and so ended, after the nodes.
    _guard: Option<Guard>,
}

/// A record as it lies in Kafka.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    pub topic: String,
    pub partition: i32,
    pub offset: i64,
    pub key: Option<Vec<u8>>,
    pub headers: Vec<(String, Vec<u8>)>,
    pub value: Vec<u8>,
}

/// Says whether clusters can be started here, and gets the jars the first time.
///
/// # Errors
/// What is missing, and the line that gets it.
pub fn available() -> Result<(), String> {
    libs().map(|_| ())
}

/// The cluster that all tests of this process share: `KAFKA_BOOTSTRAP` where that is set, else one node, started by the first who asks.
pub fn shared() -> &'static Kafka {
    static SHARED: LazyLock<Kafka> = LazyLock::new(|| match std::env::var("KAFKA_BOOTSTRAP") {
        Ok(bootstrap) => Kafka::at(&bootstrap),
        Err(_) => Kafka::start(1),
    });
    &SHARED
}

/// The shared cluster, or nothing and a visible "skipped" where Kafka can't be had. In CI a missing Kafka fails the test instead.
pub fn shared_or_skip() -> Option<&'static Kafka> {
    (std::env::var_os("KAFKA_BOOTSTRAP").is_some() || available_or_skip()).then(shared)
}

impl Kafka {
    /// A cluster that somebody else runs, such as a mock.
    pub fn at(bootstrap: &str) -> Kafka {
        Kafka { bootstrap: bootstrap.to_owned(), nodes: Vec::new(), _guard: None }
    }

    /// Starts a cluster of 1 or 3 nodes and waits until all of them serve.
    pub fn start(nodes: usize) -> Kafka {
        Kafka::start_with(nodes, &[])
    }

    /// As [`Kafka::start`], with broker properties that go over the defaults below: `&[("min.insync.replicas", "2")]`. In their values
    /// `BROKER_PORT` and `CONTROLLER_PORT` stand for the node's own.
    pub fn start_with(nodes: usize, properties: &[(&str, &str)]) -> Kafka {
        let properties: Vec<_> =
            properties.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        Kafka::start_each(nodes, |_| properties.clone())
    }

    /// As [`Kafka::start_with`], with properties for each node of its own, by its number: a listener whose port another one knows.
    pub fn start_each(nodes: usize, properties: impl Fn(usize) -> Vec<(String, String)>) -> Kafka {
        let libs = libs().unwrap_or_else(|missing| panic!("{missing}"));
        // A port found free can be taken by another program before Kafka binds it: then others are tried.
        for _ in 0..3 {
            match Kafka::try_start(&libs, nodes, &properties) {
                Ok(kafka) => return kafka,
                Err(log) if log.contains("Address already in use") => {}
                Err(log) => panic!("kafka did not start: {log}"),
            }
        }
        panic!("kafka did not start: each time another program took its port");
    }

    /// As [`Kafka::start_with`], or nothing and a visible "skipped" where Kafka can't be had. In CI a missing Kafka fails the test instead.
    pub fn start_or_skip(nodes: usize, properties: &[(&str, &str)]) -> Option<Kafka> {
        available_or_skip().then(|| Kafka::start_with(nodes, properties))
    }

    fn try_start(
        libs: &Path,
        count: usize,
        properties: &impl Fn(usize) -> Vec<(String, String)>,
    ) -> Result<Kafka, String> {
        let guard = Guard::new();
        let ports: Vec<(u16, u16)> = (0..count).map(|_| (free_port(), free_port())).collect();
        let voters: Vec<String> =
            ports.iter().enumerate().map(|(i, (_, port))| format!("{i}@127.0.0.1:{port}")).collect();
        let bootstrap: Vec<String> = ports.iter().map(|(port, _)| format!("127.0.0.1:{port}")).collect();
        let node = |(index, (broker, controller)): (usize, &(u16, u16))| {
            let dir = guard.dir.path().join(format!("node-{index}"));
            let settings = settings(index, count, *broker, *controller, &voters.join(","), &dir, &properties(index));
            Node::new(index, format!("127.0.0.1:{broker}"), dir, &settings, libs)
        };
        let nodes: Vec<Node> = ports.iter().enumerate().map(node).collect();
        let kafka = Kafka { bootstrap: bootstrap.join(","), nodes, _guard: Some(guard) };
        kafka.nodes.iter().for_each(Node::spawn);
        kafka.nodes.iter().try_for_each(|node| node.wait_until_serving(count))?;
        Ok(kafka)
    }

    /// The nodes as a client wants them: `127.0.0.1:20001,127.0.0.1:20003`.
    pub fn bootstrap(&self) -> &str {
        &self.bootstrap
    }

    /// Kills node `i`, counted from 0, by SIGKILL, as a power cut would.
    pub fn kill(&self, i: usize) {
        self.nodes[i].kill();
    }

    /// Stops node `i` by SIGTERM: it hands its partitions over first.
    pub fn stop(&self, i: usize) {
        self.nodes[i].signal(Signal::TERM);
        self.nodes[i].signal(Signal::CONT);
        wait_until(&format!("node {i} to stop"), || self.nodes[i].has_ended());
    }

    /// Freezes node `i` by SIGSTOP: its connections stay open and nobody answers on them. The kernel stops each thread by itself, one
    /// that is running on another core or waiting for the disk later; until the last has stopped, the node may still ack a record.
    pub fn pause(&self, i: usize) {
        self.nodes[i].signal(Signal::STOP);
        self.nodes[i].set_paused(true);
        wait_until(&format!("node {i} to stop"), || self.nodes[i].is_stopped());
    }

    /// Lets a paused node go on and waits until it has caught up: before, it may take itself for a leader that it no longer is, and tell
    /// a reader of an end that has moved since.
    pub fn resume(&self, i: usize) {
        self.nodes[i].signal(Signal::CONT);
        self.nodes[i].set_paused(false);
        self.wait_until_settled();
    }

    /// Lets all paused nodes go on, and waits for nothing: see [`Kafka::settle`].
    pub fn resume_all(&self) {
        for node in self.nodes.iter().filter(|node| !node.has_ended()) {
            node.signal(Signal::CONT);
            node.set_paused(false);
        }
    }

    /// Starts every node that is down, and waits for nothing: see [`Kafka::settle`].
    pub fn spawn_all(&self) {
        self.nodes.iter().filter(|node| node.has_ended()).for_each(Node::spawn);
    }

    /// Waits until all nodes serve and agree, after [`Kafka::resume_all`] or [`Kafka::spawn_all`].
    pub fn settle(&self) {
        for node in &self.nodes {
            node.wait_until_serving(self.nodes.len()).unwrap_or_else(|log| panic!("kafka does not serve: {log}"));
        }
        self.wait_until_settled();
    }

    /// The node that leads a partition; none while nobody does.
    pub fn leader(&self, topic: &str, partition: i32) -> Option<usize> {
        let metadata = retry("say who leads", || consumer(&self.bootstrap).fetch_metadata(Some(topic), ATTEMPT));
        let found = metadata.topics()[0].partitions().iter().find(|found| found.id() == partition)?;
        usize::try_from(found.leader()).ok()
    }

    /// Starts a killed or stopped node again, same ports, same data, and waits until it has caught up. Where a majority is down, use
    /// [`Kafka::start_all`]: one node of three can't serve alone.
    pub fn start_node(&self, i: usize) {
        self.nodes[i].spawn();
        self.nodes[i].wait_until_serving(1).unwrap_or_else(|log| panic!("node {i} did not start again: {log}"));
        self.wait_until_settled();
    }

    /// Stops node `i` by SIGTERM and starts it again.
    pub fn restart(&self, i: usize) {
        self.stop(i);
        self.start_node(i);
    }

    /// Starts every node that is down and waits until all serve.
    pub fn start_all(&self) {
        self.spawn_all();
        self.settle();
    }

    /// What node `i` has said since it was first started, for the message of a failed assertion.
    pub fn logs(&self, i: usize) -> String {
        self.nodes[i].log()
    }

    /// Creates a topic, its replicas on all nodes (the broker's default on an external cluster), and waits until it has its leaders.
    pub fn create_topic(&self, name: &str, partitions: i32, configs: &[(&str, &str)]) {
        let mut topic = NewTopic::new(name, partitions, TopicReplication::Fixed(-1));
        for (key, value) in configs {
            topic = topic.set(key, value);
        }
        let results =
            block_on(self.admin().create_topics([&topic], &AdminOptions::new().operation_timeout(Some(DEADLINE))));
        check("create", name, results);
        let consumer = consumer(&self.bootstrap);
        wait_until(&format!("topic `{name}` to have its leaders"), || {
            let metadata = consumer.fetch_metadata(Some(name), ATTEMPT);
            metadata.is_ok_and(|all| {
                let found = all.topics()[0].partitions();
                i32::try_from(found.len()) == Ok(partitions) && found.iter().all(|partition| partition.leader() >= 0)
            })
        });
    }

    /// Deletes a topic and waits until no broker lists it: one that does would still accept records.
    pub fn delete_topic(&self, name: &str) {
        self.delete_topic_at_once(name);
        // A client that is new asks the broker that it was given.
        let lists = |broker: &str| topics(broker).iter().any(|topic| topic == name);
        wait_until(&format!("topic `{name}` to be gone"), || !self.bootstrap.split(',').any(lists));
    }

    /// Deletes a topic that others may create again before the cluster has ceased to list it.
    pub fn delete_topic_at_once(&self, name: &str) {
        let results =
            block_on(self.admin().delete_topics(&[name], &AdminOptions::new().operation_timeout(Some(DEADLINE))));
        check("delete", name, results);
    }

    /// Sets what is not the default of a topic; what it had is forgotten.
    pub fn set_topic(&self, name: &str, configs: &[(&str, &str)]) {
        let alter = AlterConfig::new(ResourceSpecifier::Topic(name));
        let alter = configs.iter().fold(alter, |alter, (key, value)| alter.set(key, value));
        let options = AdminOptions::new().request_timeout(Some(DEADLINE));
        let altered = block_on(self.admin().alter_configs([&alter], &options)).expect("kafka alters settings");
        altered.into_iter().for_each(|topic| drop(topic.expect("a topic that is there")));
        for (key, value) in configs {
            wait_until(&format!("`{name}` to have {key} = {value}"), || self.setting(name, key) == *value);
        }
    }

    /// Runs one of Kafka's tools on this cluster.
    pub fn tool(&self, name: &str, arguments: &[&str]) {
        let output = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/kafka.sh"))
            .args(["tool", name, "--bootstrap-server", &self.bootstrap])
            .args(arguments)
            .output()
            .expect("Kafka's tool");
        assert!(output.status.success(), "{name} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// The names of all topics but Kafka's own, sorted.
    pub fn topics(&self) -> Vec<String> {
        topics(&self.bootstrap)
    }

    /// How many partitions a topic has.
    pub fn partitions(&self, topic: &str) -> i32 {
        i32::try_from(partitions(&consumer(&self.bootstrap), topic).len()).expect("a number of partitions")
    }

    /// A setting of a topic, its own or the broker's.
    pub fn setting(&self, topic: &str, name: &str) -> String {
        let admin = self.admin();
        let resources = [ResourceSpecifier::Topic(topic)];
        let options = AdminOptions::new().request_timeout(Some(DEADLINE));
        let described = block_on(admin.describe_configs(&resources, &options)).expect("the broker tells its settings");
        let topic = described.into_iter().next().expect("one topic").expect("a topic that is there");
        topic.get(name).and_then(|entry| entry.value.clone()).unwrap_or_else(|| panic!("no setting {name}"))
    }

    /// Everything that lies in these topics now, by topic, partition and offset; what is written during the call is left out.
    /// Transactions are not waited for: the records of open and of aborted ones are read too.
    pub fn read_all(&self, topics: &[&str]) -> Vec<Message> {
        let consumer = consumer(&self.bootstrap);
        let mut messages = read_topics(&consumer, topics);
        messages.sort_by(|a, b| (&a.topic, a.partition, a.offset).cmp(&(&b.topic, b.partition, b.offset)));
        messages
    }

    /// Waits until all live nodes tell the same of every partition, and its live replicas are in sync.
    fn wait_until_settled(&self) {
        let live: Vec<&Node> = self.nodes.iter().filter(|node| node.is_live()).collect();
        let in_sync = |partition: &Partition| {
            let mut ids = live.iter().map(|node| node.id());
            partition.leader < 0 || ids.all(|id| !partition.replicas.contains(&id) || partition.isr.contains(&id))
        };
        wait_until("the nodes to agree on leaders and replicas", || {
            let views: Option<Vec<_>> = live.iter().map(|node| node.view()).collect();
            views.is_some_and(|all| all.iter().all(|view| *view == all[0] && view.iter().all(in_sync)))
        });
    }

    fn admin(&self) -> AdminClient<DefaultClientContext> {
        client(&self.bootstrap).create().expect("a client with these settings can be made")
    }
}

impl Drop for Kafka {
    fn drop(&mut self) {
        self.nodes.iter().filter(|node| !node.has_ended()).for_each(Node::kill);
    }
}

impl From<&BorrowedMessage<'_>> for Message {
    fn from(found: &BorrowedMessage<'_>) -> Message {
        let headers = found.headers().into_iter().flat_map(|headers| headers.iter());
        Message {
            topic: found.topic().to_owned(),
            partition: found.partition(),
            offset: found.offset(),
            key: found.key().map(<[u8]>::to_vec),
            headers: headers.map(|header| (header.key.to_owned(), header.value.unwrap_or_default().to_vec())).collect(),
            value: found.payload().unwrap_or_default().to_vec(),
        }
    }
}

/// One node: its directory holds `server.properties`, `data/`, `log`, and `pid` while its JVM lives.
struct Node {
    index: usize,
    address: String,
    dir: PathBuf,
    libs: PathBuf,
    jvm: Mutex<Option<Jvm>>,
}

struct Jvm {
    child: Child,
    paused: bool,
    // Where its own words begin in a log that the JVMs before it wrote to.
    log_start: usize,
}

/// A partition as one node sees it.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Partition {
    topic: String,
    id: i32,
    leader: i32,
    replicas: Vec<i32>,
    isr: Vec<i32>,
}

impl Node {
    fn new(index: usize, address: String, dir: PathBuf, settings: &str, libs: &Path) -> Node {
        let write = |name: &str, bytes: &[u8]| fs::write(dir.join(name), bytes).expect(WRITABLE);
        fs::create_dir_all(dir.join("data")).and_then(|()| fs::create_dir(dir.join("tmp"))).expect(WRITABLE);
        write("server.properties", settings.as_bytes());
        let node = Node { index, address, dir: dir.clone(), libs: libs.to_owned(), jvm: Mutex::new(None) };
        // What `StorageTool format` leaves behind: the features, alike on all nodes, and who the node is. Its second is paid once.
        static FEATURES: OnceLock<Vec<u8>> = OnceLock::new();
        write("data/bootstrap.checkpoint", FEATURES.get_or_init(|| node.format()));
        write("data/meta.properties", format!("version=1\ncluster.id={CLUSTER_ID}\nnode.id={index}\n").as_bytes());
        node
    }

    /// Formats the node's storage with Kafka's own tool and returns the features it wrote.
    fn format(&self) -> Vec<u8> {
        let args = ["kafka.tools.StorageTool", "format", "--cluster-id", CLUSTER_ID, "--config"];
        let settings = self.dir.join("server.properties");
        let output =
            Command::new("java").args(self.jvm_args()).args(args).arg(settings).output().expect("java can be run");
        assert!(
            output.status.success(),
            "kafka's storage can't be formatted: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        fs::read(self.dir.join("data/bootstrap.checkpoint")).expect("the tool has written it")
    }

    fn jvm_args(&self) -> Vec<String> {
        let log4j = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/kafka/log4j2.properties");
        let quick =
            ["-Xmx320m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-XX:-UsePerfData", "-Dkafka.log.level=INFO"];
        let mut args = quick.map(str::to_owned).to_vec();
        args.push(format!("-Dlog4j2.configurationFile={}", log4j.display()));
        args.push(format!("-Djava.io.tmpdir={}", self.dir.join("tmp").display()));
        args.extend(["-cp".to_owned(), format!("{}/*", self.libs.display())]);
        args
    }

    /// Starts the JVM. It writes its pid before it is a JVM, so that the guard knows every one; a group of its own keeps Ctrl-C from it.
    fn spawn(&self) {
        let mut jvm = self.jvm();
        assert!(jvm.is_none(), "node {} is running already", self.index);
        let log_start = self.log().len();
        let log = File::options().create(true).append(true).open(self.dir.join("log")).expect(WRITABLE);
        let child = Command::new("sh")
            .args(["-c", r#"echo $$ >"$0" && exec java "$@""#])
            .arg(self.dir.join("pid"))
            .args(self.jvm_args())
            .arg("kafka.Kafka")
            .arg(self.dir.join("server.properties"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a file can be shared"))
            .stderr(log)
            .process_group(0)
            .spawn()
            .expect("sh can be run");
        *jvm = Some(Jvm { child, paused: false, log_start });
    }

    /// Waits until the node says that it has started and lists at least `count` brokers, itself one of them. Errs with its log if it ends.
    fn wait_until_serving(&self, count: usize) -> Result<(), String> {
        let log_start = self.jvm().as_ref().map_or(0, |jvm| jvm.log_start);
        let mut ended = false;
        wait_until(&format!("node {} to start", self.index), || {
            ended = self.has_ended();
            ended || self.log()[log_start..].contains("] Kafka Server started")
        });
        if ended {
            return Err(self.log()[log_start..].to_owned());
        }
        wait_until(&format!("node {} to list {count} brokers", self.index), || {
            let brokers = self.metadata().map(|all| all.brokers().iter().map(|broker| broker.id()).collect::<Vec<_>>());
            brokers.is_some_and(|ids| ids.len() >= count && ids.contains(&self.id()))
        });
        Ok(())
    }

    /// What this node, and no other, says of the cluster: a new client knows no other yet.
    fn metadata(&self) -> Option<Metadata> {
        consumer(&self.address).fetch_metadata(None, ATTEMPT).ok()
    }

    fn view(&self) -> Option<Vec<Partition>> {
        let sorted = |ids: &[i32]| ids.iter().copied().collect::<BTreeSet<_>>().into_iter().collect();
        let metadata = self.metadata()?;
        let topics = metadata
            .topics()
            .iter()
            .flat_map(|topic| topic.partitions().iter().map(move |found| (topic.name(), found)));
        let mut view: Vec<Partition> = topics
            .map(|(topic, found)| Partition {
                topic: topic.to_owned(),
                id: found.id(),
                leader: found.leader(),
                replicas: sorted(found.replicas()),
                isr: sorted(found.isr()),
            })
            .collect();
        view.sort();
        Some(view)
    }

    fn id(&self) -> i32 {
        i32::try_from(self.index).expect("a cluster has few nodes")
    }

    fn is_live(&self) -> bool {
        !self.has_ended() && self.jvm().as_ref().is_some_and(|jvm| !jvm.paused)
    }

    fn set_paused(&self, paused: bool) {
        self.jvm().iter_mut().for_each(|jvm| jvm.paused = paused);
    }

    fn has_ended(&self) -> bool {
        let mut jvm = self.jvm();
        if jvm.as_mut().is_some_and(|jvm| jvm.child.try_wait().expect("a child can be waited for").is_some()) {
            self.forget(&mut jvm);
        }
        jvm.is_none()
    }

    fn kill(&self) {
        let mut jvm = self.jvm();
        let running = jvm.as_mut().unwrap_or_else(|| panic!("node {} is not running", self.index));
        running.child.kill().and_then(|()| running.child.wait()).expect("a child can be killed");
        self.forget(&mut jvm);
    }

    /// The pid is free for another process now: the guard must not kill that one.
    fn forget(&self, jvm: &mut Option<Jvm>) {
        let _ = fs::remove_file(self.dir.join("pid"));
        *jvm = None;
    }

    fn signal(&self, signal: Signal) {
        let jvm = self.jvm();
        let running = jvm.as_ref().unwrap_or_else(|| panic!("node {} is not running", self.index));
        kill_process(Pid::from_child(&running.child), signal).expect("a child can be sent a signal");
    }

    /// Whether all threads are stopped: the state follows the name, which is in parentheses (proc(5)).
    fn is_stopped(&self) -> bool {
        let pid = self.jvm().as_ref().expect("a node that was sent a signal").child.id();
        let threads = fs::read_dir(format!("/proc/{pid}/task")).expect("a child has threads");
        threads.flatten().all(|thread| {
            let stat = fs::read_to_string(thread.path().join("stat")).unwrap_or_default(); // empty: it has ended
            stat.is_empty() || stat.rsplit_once(") ").is_some_and(|(_, state)| state.starts_with('T'))
        })
    }

    fn log(&self) -> String {
        fs::read(self.dir.join("log")).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    fn jvm(&self) -> MutexGuard<'_, Option<Jvm>> {
        self.jvm.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A shell that waits for the end of its input, which is the end of this process, then kills the nodes and removes their directory.
/// Statics are never dropped and SIGKILL runs no destructor; a closed pipe is noticed always.
struct Guard {
    shell: Child,
    dir: TempDir,
}

impl Guard {
    fn new() -> Guard {
        let dir = tempfile::Builder::new().prefix("kafka-").tempdir().expect("a temporary directory can be made");
        // Renamed first: a JVM about to start finds no place for its pid and gives up, one being killed makes no more files.
        let script = r#"trap '' INT TERM HUP
            cat
            mv "$0" "$0.gone" || exit 0
            for pid in "$0.gone"/*/pid; do [ ! -s "$pid" ] || kill -KILL "$(cat "$pid")"; done
            rm -rf "$0.gone" || { sleep 1; rm -rf "$0.gone"; }"#;
        let mut shell = Command::new("sh");
        shell.args(["-c", script]).arg(dir.path()).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        Guard { shell: shell.process_group(0).spawn().expect("sh can be run"), dir }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        drop(self.shell.stdin.take());
        let _ = self.shell.wait();
    }
}

const WRITABLE: &str = "a temporary directory can be written to";

/// Any will do: 16 bytes in base64 without padding.
const CLUSTER_ID: &str = "bGl2ZWNoYXQtcmVsYXk0Mg";

/// The node's `server.properties`. Of two lines with the same key Kafka takes the later: the test's. A killed node is missed, and may
/// register again, after the session timeout, which is 9 s by default: tests wait for that.
fn settings(
    index: usize,
    count: usize,
    broker: u16,
    controller: u16,
    voters: &str,
    dir: &Path,
    more: &[(String, String)],
) -> String {
    let replicas = count.min(3);
    let mut text = format!(
        "process.roles=broker,controller
node.id={index}
controller.quorum.voters={voters}
controller.listener.names=CONTROLLER
listeners=PLAINTEXT://127.0.0.1:{broker},CONTROLLER://127.0.0.1:{controller}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
log.dirs={}
auto.create.topics.enable=false
default.replication.factor={replicas}
offsets.topic.replication.factor={replicas}
offsets.topic.num.partitions=1
transaction.state.log.replication.factor={replicas}
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=1
share.coordinator.state.topic.replication.factor={replicas}
share.coordinator.state.topic.min.isr=1
group.initial.rebalance.delay.ms=0
broker.session.timeout.ms=5000
broker.heartbeat.interval.ms=500
num.io.threads=2
num.network.threads=2
",
        dir.join("data").display()
    );
    let ports = |value: &str| {
        value.replace("BROKER_PORT", &broker.to_string()).replace("CONTROLLER_PORT", &controller.to_string())
    };
    more.iter().for_each(|(key, value)| text.push_str(&format!("{key}={}\n", ports(value))));
    text
}

/// Where the jars are, by the word of `scripts/kafka.sh fetch`, which gets them the first time.
fn libs() -> Result<PathBuf, String> {
    static LIBS: LazyLock<Result<PathBuf, String>> = LazyLock::new(|| {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/kafka.sh");
        let output = Command::new(&script).arg("fetch").stdin(Stdio::null()).output();
        let output = output.map_err(|e| format!("kafka can't be had: `{}` can't be run: {e}", script.display()))?;
        if !output.status.success() {
            return Err(format!("kafka can't be had: {}", String::from_utf8_lossy(&output.stderr).trim()));
        }
        let said = String::from_utf8_lossy(&output.stdout);
        Ok(PathBuf::from(said.lines().last().unwrap_or_default()))
    });
    LIBS.clone()
}

/// As [`available`], with a visible "skipped" where it is not; in CI that is a failure.
pub fn available_or_skip() -> bool {
    let Err(missing) = available() else { return true };
    assert!(std::env::var_os("CI").is_none(), "{missing}");
    // Not by eprintln!, whose words the test runner keeps to itself where the test passes.
    let _ = writeln!(std::io::stderr(), "skipped: {missing}");
    false
}

/// A free port below those that the system hands to outgoing connections: from among those, a client that tries a dead node again and
/// again could get the node's own port, and then the node would not start any more.
pub fn free_port() -> u16 {
    static NEXT: LazyLock<AtomicU32> =
        LazyLock::new(|| AtomicU32::new(RandomState::new().build_hasher().finish() as u32));
    let candidates = (0..10_000).map(|_| 20_000 + (NEXT.fetch_add(1, Ordering::Relaxed) % 12_000) as u16);
    let mut free = candidates.filter(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok());
    free.next().expect("of thousands of ports one is free")
}

fn client(bootstrap: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", bootstrap);
    config
}

/// The names of all topics but Kafka's own, sorted.
fn topics(bootstrap: &str) -> Vec<String> {
    let consumer = consumer(bootstrap);
    let metadata = retry("list its topics", || consumer.fetch_metadata(None, ATTEMPT));
    let names = metadata.topics().iter().map(|topic| topic.name().to_owned());
    let mut names: Vec<String> = names.filter(|name| !name.starts_with("__")).collect();
    names.sort();
    names
}

fn consumer(bootstrap: &str) -> BaseConsumer {
    let mut config = client(bootstrap);
    // The group is never joined; librdkafka wants one named all the same.
    config.set("group.id", "tests").set("enable.auto.commit", "false").set("isolation.level", "read_uncommitted");
    config.create().expect("a client with these settings can be made")
}

/// All partitions of all topics in one assignment: a fetch answers for many of them at once.
fn read_topics(consumer: &BaseConsumer, topics: &[&str]) -> Vec<Message> {
    let mut left = BTreeMap::new();
    let mut assignment = TopicPartitionList::new();
    let places = topics.iter().flat_map(|&topic| partitions(consumer, topic).into_iter().map(move |p| (topic, p)));
    for (topic, partition) in places {
        let (low, high) = retry(&format!("say what is in topic `{topic}`, partition {partition}"), || {
            consumer.fetch_watermarks(topic, partition, ATTEMPT)
        });
        if low < high {
            left.insert((topic.to_owned(), partition), high);
            let from = Offset::Offset(low);
            assignment.add_partition_offset(topic, partition, from).expect("an offset of Kafka's is valid");
        }
    }
    consumer.assign(&assignment).expect("partitions that Kafka listed can be assigned");

    let mut messages = Vec::new();
    let started = Instant::now();
    while !left.is_empty() {
        assert!(started.elapsed() < DEADLINE, "read {} messages in {DEADLINE:?}, not yet: {left:?}", messages.len());
        // Errors heal themselves, or run into the deadline: a killed node's connections, a new leader.
        let Some(Ok(found)) = consumer.poll(Duration::from_millis(100)) else { continue };
        let message = Message::from(&found);
        let place = (message.topic.clone(), message.partition);
        let Some(&high) = left.get(&place) else { continue };
        if message.offset + 1 >= high {
            left.remove(&place);
        }
        messages.push(message);
    }
    messages
}

/// The topic's partitions. A node may hear of a new topic a moment after the one that made it: an unknown one gets that moment.
fn partitions(consumer: &BaseConsumer, topic: &str) -> Vec<i32> {
    let started = Instant::now();
    loop {
        let metadata = retry(&format!("describe topic `{topic}`"), || consumer.fetch_metadata(Some(topic), ATTEMPT));
        let found = metadata.topics()[0].partitions();
        if !found.is_empty() {
            return found.iter().map(|partition| partition.id()).collect();
        }
        assert!(started.elapsed() < ATTEMPT, "there is no topic `{topic}`");
        thread::sleep(POLL);
    }
}

fn check(what: &str, topic: &str, results: Result<Vec<rdkafka::admin::TopicResult>, KafkaError>) {
    for result in results.unwrap_or_else(|e| panic!("kafka can't {what} topic `{topic}`: {e}")) {
        result.unwrap_or_else(|(_, code)| panic!("kafka can't {what} topic `{topic}`: {code}"));
    }
}

/// Asks again while it errs: while nodes die and leaders move, the answer is an error that heals.
fn retry<T>(what: &str, mut attempt: impl FnMut() -> Result<T, KafkaError>) -> T {
    let started = Instant::now();
    loop {
        match attempt() {
            Ok(answer) => return answer,
            Err(e) => assert!(started.elapsed() < DEADLINE, "kafka did not {what} in {DEADLINE:?}: {e}"),
        }
        thread::sleep(POLL);
    }
}

fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let started = Instant::now();
    while !done() {
        assert!(started.elapsed() < DEADLINE, "waited {DEADLINE:?} for {what}");
        thread::sleep(POLL);
    }
}

/// Waits for a future on this thread, with or without a runtime around it: tokio's own `block_on` would panic inside an async test.
fn block_on<T>(future: impl Future<Output = T>) -> T {
    struct Unpark(Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(value) => return value,
            Poll::Pending => thread::park(),
        }
    }
}
