//! One scenario's stage: relays with their spools, a client that sends all the while, and at the end the verdict.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tempfile::TempDir;

use crate::client::{Client, Load, Tally, actions};
use crate::cluster::{Cluster, NODES};
use crate::judge::{Order, Posted, Rules, Verdict, judge};
use crate::metrics::{Reading, Watch};
use crate::random::Random;
use crate::shim::{Knob, Shim};
use crate::support::kafka::{Message, free_port};
use crate::support::relay::{DEADLINES, Relay};

/// `server.response_deadline`, and what this machine may need to give a thread its turn.
const LONGEST: Duration = Duration::from_millis(9_500);

/// `kafka.publish_deadline`, and what it takes to notice and to start: a start without Kafka waits for it first.
const SPOOLING_MAX: Duration = Duration::from_secs(20);

/// A relay that needs longer than this to get rid of its spool does not heal.
const RECOVERY_MAX: Duration = Duration::from_secs(180);

/// Whether this relay has a spool. One without is tried, too: it loses nothing either, but has to say 503.
fn has_spool() -> bool {
    include_str!("../../config/default.toml").contains("[spool]")
}

/// What a scenario gets: the cluster that all share, and its own name and seed.
#[derive(Clone, Copy)]
pub struct Stage<'a> {
    pub cluster: &'a Cluster,
    pub name: &'static str,
    pub seed: u64,
}

/// What a scenario wants to be different.
#[derive(Clone)]
pub struct Setup {
    pub relays: usize,
    pub chats: usize,
    pub per_second: f64,
    pub text_bytes_max: u64,
    /// The relay comes in by the second way: as a user, through the proxies.
    pub as_user: bool,
    /// The relay runs under the shim, the spool directory in its hands.
    pub with_shim: bool,
    /// What the topics' names begin with besides the scenario's own: for one that wants fresh topics several times.
    pub round: Option<u32>,
    /// The parent of the spool directory, where it must be a particular one.
    pub spool_parent: Option<PathBuf>,
    /// `spool.bytes_max`.
    pub spool_bytes_max: &'static str,
    /// `topics.check_interval`. After so long the relay creates a topic again that a scenario has deleted.
    pub topics_check_interval: &'static str,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            relays: 1,
            chats: 40,
            per_second: 300.0,
            text_bytes_max: 1_500,
            as_user: false,
            with_shim: false,
            round: None,
            spool_parent: None,
            spool_bytes_max: "256MiB", // of more, open files are short for connections
            topics_check_interval: "1h",
        }
    }
}

/// What a scenario has to say at its end.
pub struct Outcome {
    pub name: &'static str,
    pub verdict: Verdict,
    pub tally: Tally,
    pub recovery: Option<Duration>,
    /// What did not happen though the scenario is about it, or happened though it must not.
    pub unmet: Vec<String>,
    /// What is worth knowing of a run that passed.
    pub notes: Vec<String>,
}

impl Outcome {
    pub fn has_passed(&self) -> bool {
        self.unmet.is_empty() && self.verdict.charges().is_empty()
    }

    /// This round and the next as one.
    #[must_use]
    pub fn and(mut self, next: Self) -> Self {
        self.verdict.add(next.verdict);
        self.tally.longest = self.tally.longest.max(next.tally.longest);
        self.tally.answered += next.tally.answered;
        self.tally.unavailable += next.tally.unavailable;
        self.tally.unanswered += next.tally.unanswered;
        self.recovery = self.recovery.max(next.recovery);
        self.unmet.extend(next.unmet);
        self.notes.extend(next.notes);
        self
    }

    /// One more condition, which only the verdict could tell.
    pub fn and_must(mut self, what: &str, is_so: bool) -> Self {
        self.unmet.extend((!is_so).then(|| format!("not so: {what}")));
        self
    }
}

pub struct Rig<'a> {
    pub cluster: &'a Cluster,
    pub client: Client,
    pub watch: Watch,
    pub random: Random,
    pub prefix: String,
    /// Records of topics that were deleted since: they come before what the topics hold at the end.
    pub saved: Vec<Message>,
    pub notes: Vec<String>,
    name: &'static str,
    posts: Vec<Post>,
    unmet: Vec<String>,
    recovery: Option<Duration>,
    logs: Vec<String>,
    _directory: TempDir,
}

/// A relay's place: the same ports and the same spool directory over all its restarts.
struct Post {
    webhooks: SocketAddr,
    admin: SocketAddr,
    brokers: String,
    settings: Vec<(String, String)>,
    spool: PathBuf,
    shim: Option<Shim>,
    relay: Option<Relay>,
}

impl<'a> Rig<'a> {
    /// Starts the relays and then the client, and lets it send for a moment: faults hit a relay that is at work.
    pub fn start(stage: &Stage<'a>, setup: Setup) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let round = setup.round.map(|round| format!("{round}.")).unwrap_or_default();
        let prefix = prefix(stage.name) + &round;
        let watch = Watch::start();
        let mut posts: Vec<_> =
            (0..setup.relays).map(|n| Post::new(n, stage.cluster, &setup, &prefix, directory.path())).collect();
        posts.iter_mut().for_each(|post| post.start(&watch));
        let load = Load {
            chats: setup.chats,
            per_second: setup.per_second,
            text_bytes_max: setup.text_bytes_max,
            topic_prefix: prefix.clone(),
            seed: stage.seed,
        };
        let client = Client::start(load, posts.iter().map(|post| post.webhooks).collect());
        let rig = Self {
            cluster: stage.cluster,
            client,
            watch,
            random: Random::new(stage.seed),
            prefix,
            saved: Vec::new(),
            notes: Vec::new(),
            name: stage.name,
            posts,
            unmet: Vec::new(),
            recovery: None,
            logs: Vec::new(),
            _directory: directory,
        };
        rig.run_for(Duration::from_secs(2));
        rig
    }

    /// Lets the client send on for so long.
    #[allow(clippy::unused_self, reason = "it is the client of this rig that sends on")]
    pub fn run_for(&self, time: Duration) {
        thread::sleep(time);
    }

    pub fn run_for_seconds(&self, seconds: u64) {
        self.run_for(Duration::from_secs(seconds));
    }

    /// Lets the client send on until it is so, at most for `most`; whether it came to that.
    pub fn run_until(&self, most: Duration, mut is_so: impl FnMut(&Self) -> bool) -> bool {
        let began = Instant::now();
        while began.elapsed() < most {
            if is_so(self) {
                return true;
            }
            thread::sleep(Duration::from_millis(50));
        }
        false
    }

    pub fn topic(&self, action: &str) -> String {
        format!("{}{action}", self.prefix)
    }

    pub fn spool(&self) -> &Path {
        &self.posts[0].spool
    }

    pub fn shim(&self) -> &Shim {
        self.posts[0].shim.as_ref().expect("the scenario asked for the shim")
    }

    /// What relay `n` says of itself now; nothing where it does not answer.
    pub fn reading(&self, n: usize) -> Option<Reading> {
        Reading::of(self.posts[n].admin)
    }

    pub fn start_relay(&mut self, n: usize) {
        self.posts[n].start(&self.watch);
    }

    /// SIGKILL, at any moment.
    pub fn kill_relay(&mut self, n: usize) {
        self.watch.read();
        self.end_relay(n, Signal::KILL);
    }

    /// SIGTERM, and waits for the end.
    pub fn stop_relay(&mut self, n: usize) {
        self.watch.read();
        self.end_relay(n, Signal::TERM);
    }

    fn end_relay(&mut self, n: usize, signal: Signal) {
        let mut relay = self.posts[n].relay.take().expect("the relay is running");
        relay.signal(signal);
        relay.end();
        self.watch.end(self.posts[n].admin);
        self.logs.push(relay.log());
    }

    /// A second process for the spool directory of relay 0, on ports of its own, started while that one has it. The client is told
    /// of it by the caller; it is relay 1 from when it serves.
    pub fn start_successor(&mut self) -> thread::JoinHandle<Result<Relay, String>> {
        let post = self.posts[0].successor();
        let (brokers, settings) = (post.brokers.clone(), post.settings.clone());
        self.posts.push(post);
        thread::spawn(move || Relay::launch(&brokers, &borrowed(&settings), &[]))
    }

    pub fn adopt(&mut self, n: usize, relay: Relay) {
        self.watch.begin(self.posts[n].admin);
        self.posts[n].relay = Some(relay);
    }

    pub fn address(&self, n: usize) -> SocketAddr {
        self.posts[n].webhooks
    }

    /// Kills the relay, gives it what the shim holds for durable in place of its spool directory, and starts it again. Answers how
    /// many writes are gone.
    pub fn cut_power(&mut self) -> i64 {
        self.kill_relay(0);
        let post = &mut self.posts[0];
        let shim = post.shim.take().expect("the scenario asked for the shim");
        let gone = shim.get(Knob::Unsynced);
        post.shim = Some(shim.cut_power(&post.spool));
        self.start_relay(0);
        gone
    }

    /// Something that the scenario is about: it fails where this did not happen.
    pub fn must(&mut self, what: &str, is_so: bool) {
        if !is_so {
            self.unmet.push(format!("not so: {what}"));
        }
    }

    /// A counter that must have risen, over all lives of the relays.
    pub fn must_count(&mut self, name: &str, label: &str) {
        self.watch.read();
        let total = self.watch.total(name, label);
        self.must(&format!("livechat_relay_{name}{{{label}}} rises"), total > 0.0);
        self.notes.push(format!("{name}{} {total}", if label.is_empty() { "" } else { " " }.to_owned() + label));
    }

    /// A counter, over all lives of the relays until now.
    pub fn total(&self, name: &str) -> f64 {
        self.watch.read();
        self.watch.total(name, "")
    }

    /// Waits until this process of relay 0 answers out of its spool.
    pub fn must_be_spooling(&mut self) {
        let spooled = |rig: &Self| rig.reading(0).map_or(0.0, |r| r.sum("events_total", r#"outcome="spooled""#));
        let before = spooled(self);
        let is_spooling = self.run_until(SPOOLING_MAX, |rig| spooled(rig) > before);
        self.must(&format!("the relay spools within {SPOOLING_MAX:?}"), is_spooling);
    }

    /// What is in the spool of relay 0 now.
    pub fn spool_records(&self) -> f64 {
        self.reading(0).map_or(0.0, |reading| reading.spool_records())
    }

    /// Events went through the spool, and left it again.
    pub fn must_have_spooled(&mut self) {
        self.must_count("events_total", r#"outcome="spooled""#);
        self.must_count("replayed_total", "");
    }

    /// The rules, with order only where it is promised: not where the relay has said that the spool has accepted nothing for too long.
    pub fn unless_failed_over(&mut self, rules: Rules) -> Rules {
        const SAID: &str = "the spool has accepted nothing for spool.failover_after";
        let running = self.posts.iter().filter_map(|post| post.relay.as_ref()).map(Relay::log);
        let has_failed_over = self.logs.iter().cloned().chain(running).any(|log| log.contains(SAID));
        if has_failed_over {
            self.notes.push("new events went direct: order yields".to_owned());
            return Rules { order: Order::Yields, ..rules };
        }
        rules
    }

    /// From now, the end of the fault: until nothing is in a spool and a fresh event is answered through Kafka directly.
    pub fn recover(&mut self) {
        let began = Instant::now();
        if !self.run_until(RECOVERY_MAX, Self::has_recovered) {
            let left = self.spool_records();
            self.unmet
                .push(format!("not so: the relay recovers within {RECOVERY_MAX:?} ({left} records in the spool)"));
        }
        self.recovery = Some(began.elapsed());
    }

    fn has_recovered(&self) -> bool {
        let running = || self.posts.iter().filter(|post| post.relay.is_some());
        let readings = || running().map(|post| Reading::of(post.admin)).collect::<Option<Vec<_>>>();
        let sum = |all: &[Reading], outcome: &str| all.iter().map(|r| r.sum("events_total", outcome)).sum::<f64>();
        let Some(before) = readings().filter(|all| all.iter().all(|r| r.spool_records() == 0.0)) else { return false };
        if !running().all(|_| self.client.probe()) {
            return false;
        }
        let Some(after) = readings() else { return false };
        sum(&after, r#"outcome="spooled""#) == sum(&before, r#"outcome="spooled""#)
            && sum(&after, r#"outcome="published""#) > sum(&before, r#"outcome="published""#)
    }

    /// Stops the client, waits for the spools to be empty, reads Kafka, and holds one against the other.
    pub fn conclude(mut self, rules: Rules) -> Outcome {
        self.cluster.kafka.settle(); // a node that lags behind would tell of fewer records
        let posted = self.client.stop();
        let is_empty = |post: &Post| Reading::of(post.admin).is_some_and(|reading| reading.spool_records() == 0.0);
        let are_empty =
            self.run_until(RECOVERY_MAX, |rig| rig.posts.iter().filter(|post| post.relay.is_some()).all(is_empty));
        self.must("the spools are empty at the end", are_empty);
        self.watch.read();
        let mut records = std::mem::take(&mut self.saved);
        records.extend(self.cluster.collect(&self.prefix));
        let verdict = judge(&posted, &records, rules);
        let tally = self.client.tally();
        self.must("events were answered 200", verdict.answered > 0);
        self.must(&format!("the longest answer took {LONGEST:?} at most"), tally.longest <= LONGEST);
        if self.logs.is_empty() {
            // No relay was ended.
            let unanswered = tally.unanswered;
            self.must(&format!("every webhook is answered ({unanswered} are not)"), unanswered == 0);
        }
        self.hold_ends(&posted);
        let outcome = Outcome {
            name: self.name,
            verdict,
            tally,
            recovery: self.recovery,
            unmet: std::mem::take(&mut self.unmet),
            notes: std::mem::take(&mut self.notes),
        };
        if !outcome.has_passed() {
            self.keep_logs();
        }
        outcome
    }

    /// After a recovery all goes well: the last event of each chat, which is posted when the load ends, is answered 200.
    fn hold_ends(&mut self, posted: &[Posted]) {
        let chats: std::collections::HashMap<&str, &Posted> =
            posted.iter().map(|event| (event.chat.as_str(), event)).collect();
        let given_up = chats.values().filter(|last| last.answered.is_none()).count();
        self.must(&format!("the last event of every chat is answered 200 ({given_up} are not)"), given_up == 0);
    }

    /// The relays' logs, over all their lives, and the brokers': for the scenario that failed.
    fn keep_logs(&self) {
        let running = self.posts.iter().filter_map(|post| post.relay.as_ref()).map(Relay::log);
        let relays = self.logs.iter().cloned().chain(running).enumerate();
        let brokers = (0..NODES).map(|node| (format!("kafka-{node}.log"), self.cluster.kafka.logs(node)));
        keep(self.name, relays.map(|(n, log)| (format!("relay-{n}.log"), log)).chain(brokers));
    }
}

/// Writes logs of a scenario that failed, by their files' names.
pub fn keep(name: &str, mut logs: impl Iterator<Item = (String, String)>) {
    let kept = directory_of(name);
    let _ = std::fs::remove_dir_all(&kept); // an earlier run's; there may be none
    let written = std::fs::create_dir_all(&kept)
        .and_then(|()| logs.try_for_each(|(name, log)| std::fs::write(kept.join(name), log)));
    if let Err(error) = written {
        println!("the logs cannot be kept in {}: {error}", kept.display());
    }
}

impl Drop for Rig<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.keep_logs();
        }
    }
}

impl Post {
    fn new(n: usize, cluster: &Cluster, setup: &Setup, prefix: &str, directory: &Path) -> Self {
        let spool = setup.spool_parent.as_deref().unwrap_or(directory).join(format!("spool-{n}"));
        let shim = setup.with_shim.then(|| Shim::new(&directory.join(format!("shim-{n}")), &spool));
        let brokers = if setup.as_user { cluster.proxied() } else { cluster.kafka.bootstrap().to_owned() };
        let mut settings = settings(prefix, |name| actions().any(|sent| sent == name));
        settings.push(("spool.bytes_max".to_owned(), format!("{:?}", setup.spool_bytes_max)));
        let mut post = Self::at(brokers, spool, shim, settings);
        post.settings.push(("topics.check_interval".to_owned(), format!("{:?}", setup.topics_check_interval)));
        if setup.as_user {
            let (name, value) = Cluster::as_user();
            post.settings.push((name.to_owned(), value));
        } else if let Ok(properties) = std::env::var("CHAOS_KAFKA_PROPERTIES") {
            // For experiments: { "max.in.flight" = "1" }
            post.settings.push(("kafka.properties".to_owned(), properties));
        }
        post
    }

    fn at(brokers: String, spool: PathBuf, shim: Option<Shim>, mut settings: Vec<(String, String)>) -> Self {
        let address = || SocketAddr::from(([127, 0, 0, 1], free_port()));
        let (webhooks, admin) = (address(), address());
        settings.push(("server.listen".to_owned(), format!("\"{webhooks}\"")));
        settings.push(("admin.listen".to_owned(), format!("\"{admin}\"")));
        if has_spool() {
            settings.push(("spool.directory".to_owned(), format!("{:?}", spool.display().to_string())));
            settings.push(("spool.segment_bytes".to_owned(), "\"256KiB\"".to_owned())); // so that there are many
        }
        Self { webhooks, admin, brokers, settings, spool, shim, relay: None }
    }

    fn successor(&self) -> Self {
        let own = ["server.listen", "admin.listen", "spool.directory", "spool.segment_bytes"];
        let settings = self.settings.iter().filter(|(name, _)| !own.contains(&name.as_str())).cloned().collect();
        Self::at(self.brokers.clone(), self.spool.clone(), None, settings)
    }

    fn start(&mut self, watch: &Watch) {
        let env = self.shim.as_ref().map(Shim::environment).unwrap_or_default();
        let relay = Relay::launch(&self.brokers, &borrowed(&self.settings), &borrowed(&env));
        self.relay = Some(relay.unwrap_or_else(|log| panic!("the relay did not start:\n{log}")));
        watch.begin(self.admin);
    }
}

/// The topics of a scenario begin so.
pub fn prefix(name: &str) -> String {
    format!("{name}.")
}

/// Where a failed scenario leaves its logs.
pub fn directory_of(name: &str) -> PathBuf {
    output_directory().join(name)
}

/// `target/chaos`.
pub fn output_directory() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("chaos")
}

/// The product's own deadlines and topics on all nodes. What is not sent is dropped, so that no topics are made for it.
pub fn settings(prefix: &str, is_sent: impl Fn(&str) -> bool) -> Vec<(String, String)> {
    let unsent = livechat_relay::event::actions::names().filter(|name| !is_sent(name));
    let dropped: Vec<_> = unsent.map(|name| format!("{name} = \"drop\"")).collect();
    let ours = [
        ("kafka.probe_interval", "\"5s\"".to_owned()),
        ("topics.prefix", format!("{prefix:?}")),
        ("topics.replication", "3".to_owned()),
        ("topics.settings", r#"{ "min.insync.replicas" = "2" }"#.to_owned()),
        ("topics.actions", format!("{{ {} }}", dropped.join(", "))),
    ];
    let deadlines = DEADLINES.iter().map(|(name, value)| (*name, (*value).to_owned()));
    deadlines.chain(ours).map(|(name, value)| (name.to_owned(), value)).collect()
}

pub fn borrowed(owned: &[(String, String)]) -> Vec<(&str, &str)> {
    owned.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect()
}
