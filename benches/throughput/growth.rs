//! `make bench-growth`: how the cost of an event grows with each thing that can be large. Its values take turns, so that what
//! the machine does besides falls on all of them.

use std::path::{Path, PathBuf};

use clap::ValueEnum as _;
use livechat_relay::event::actions;
use livechat_relay::samples::traffic::{Sample, one_of_each};

use crate::figures::{Quartiles, Report, thousands};
use crate::footprint;
use crate::load::Job;
use crate::rig::{Brokers, Cluster, Server, Settings};
use crate::webhooks::Webhooks;

const MB: u64 = 1_000_000;

/// No program listens on port 1: Kafka is away.
const AWAY: &str = "127.0.0.1:1";

#[derive(clap::Args)]
pub struct Arguments {
    /// Measure only these
    #[arg(long, value_delimiter = ',')]
    only: Vec<Part>,
    /// Runs of each value
    #[arg(long, default_value_t = 40)]
    runs: usize,
    /// Events of a run; fewer where bodies are large or a spool fills, more where there are many connections
    #[arg(long, default_value_t = 4_000)]
    events: usize,
    /// The largest backlog of the spool, in GB; all of them together take 1.3 times as much of the disk
    #[arg(long, default_value_t = 10.0)]
    backlog_max: f64,
    /// Where spools are; each is removed at the end
    #[arg(long, default_value = env!("CARGO_TARGET_TMPDIR"))]
    dir: PathBuf,
    /// Settings of the relay, as NAME=VALUE,NAME=VALUE
    #[arg(long, value_name = "SETTINGS", default_value = "")]
    relay: Settings,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// Bytes of a body, 0.5 kB to 1 MB
    Body,
    /// Connections that send, 1 to 10,000
    Connections,
    /// Actions, each with a topic of its own, 1 to 46
    Topics,
    /// What waits in the spool while Kafka is away, 0 to 10 GB
    Backlog,
    /// Memory and time to start
    Footprint,
}

pub fn run(arguments: &Arguments) {
    let is_wanted = |part: &&Part| arguments.only.is_empty() || arguments.only.contains(part);
    for part in Part::value_variants().iter().filter(is_wanted) {
        match part {
            Part::Body => body(arguments),
            Part::Connections => connections(arguments),
            Part::Topics => topics(arguments),
            Part::Backlog => backlog(arguments),
            Part::Footprint => footprint::run(arguments.runs * arguments.events, &arguments.relay),
        }
    }
}

/// A relay under a load.
struct Running {
    /// As it stands in the table.
    value: String,
    relay: Server,
    job: Job,
}

impl Arguments {
    /// 64 connections, and what a busy account sends most.
    fn job(&self) -> Job {
        Job::of_events(64, self.events, Webhooks::usual(0))
    }

    /// Every value once, then every value again: their reports.
    fn in_turn(&self, running: &[Running]) -> Vec<Vec<Report>> {
        let mut runs: Vec<Vec<Report>> = running.iter().map(|_| Vec::new()).collect();
        for round in 0..self.runs as u64 {
            for (place, Running { relay, job, .. }) in (0..).zip(running) {
                let mut job = job.clone();
                job.webhooks.seed = 64 * (1 + round * 100 + place); // 64 each: where actions come evenly, each has its own
                job.warm = (job.events / 5).max(job.connections); // each connection has an event before the clock starts
                runs[place as usize].push(relay.load(&job));
            }
        }
        runs
    }
}

/// One action with one text, so that nothing but its length differs. Few connections: 64 times 1 MB would pass
/// `server.bytes_in_flight_max`.
fn body(arguments: &Arguments) {
    const RUN_BYTES_MAX: usize = 96 << 20;
    const BYTES: [usize; 7] = [500, 1_000, 4_000, 16_000, 64_000, 256_000, 1_000_000];
    let cluster = Cluster::start(Brokers::Mock);
    let running = BYTES.map(|bytes| {
        let actions = vec!["thread_tagged".to_owned()];
        let webhooks = Webhooks { actions, body_bytes: Some(bytes), ..Webhooks::usual(0) };
        let job = Job::of_events(16, arguments.events.min(RUN_BYTES_MAX / bytes), webhooks);
        Running::new((bytes as f64 / 1000.0).to_string(), &cluster.bootstrap, &arguments.relay, job)
    });
    let runs = arguments.in_turn(&running);
    arguments.print_head(
        "Body size",
        "16 connections, fewer events where bodies are large",
        "kB of a body",
        "CPU µs/kB",
    );
    for ((running, runs), bytes) in running.iter().zip(&runs).zip(BYTES) {
        running.print(runs, &format!("{:.2}", Report::median(runs).cpu_micros * 1000.0 / bytes as f64));
    }
}

fn connections(arguments: &Arguments) {
    const CONNECTIONS: [usize; 6] = [64, 1, 8, 512, 2_048, 10_000];
    let settings = arguments.relay.clone().with("server.connections_max", 12_000);
    let cluster = Cluster::start(Brokers::Mock);
    let running = CONNECTIONS.map(|connections| {
        let events = match connections {
            1 => arguments.events / 10,
            _ => arguments.events.max(4 * connections),
        };
        let job = Job { connections, events, ..arguments.job() };
        Running::new(thousands(connections as f64), &cluster.bootstrap, &settings, job)
    });
    let how = "at least four events a connection, for one a tenth of the events";
    arguments.print_cpu(&running, "Connections", how, "connections");
}

/// Bodies are made equally long, else the cost would be that of other bytes. Events of chats come first, because their keys
/// spread over a topic's partitions from the first topic on, and the shortest of them, because those that are longer anyway are
/// then the fewest.
fn topics(arguments: &Arguments) {
    let mut samples = one_of_each(1);
    samples.retain(|sample| actions::names().any(|name| name == sample.action()));
    samples.sort_by_key(|sample| (sample.chat_id().is_none(), sample.data().len()));
    let names: Vec<String> = samples.iter().map(Sample::action).map(str::to_owned).collect();
    let cluster = Cluster::start(Brokers::Mock);
    let running = [1, 5, 15, names.len()].map(|topics| {
        let actions = names[..topics].to_vec();
        let webhooks = Webhooks { actions, evenly: true, body_bytes: Some(2_000), ..Webhooks::usual(0) };
        let job = Job { webhooks, ..arguments.job() };
        Running::new(topics.to_string(), &cluster.bootstrap, &arguments.relay, job)
    });
    arguments.print_cpu(
        &running,
        "Topics",
        "as many actions, each equally often; bodies of 2 kB, 64 connections",
        "topics",
    );
}

/// The spool's path at several backlogs, and the direct path in the same rounds. The relay fills its spool itself.
fn backlog(arguments: &Arguments) {
    let gb = |mb: u64| mb as f64 / 1000.0;
    let mut backlogs = vec![0, 100, 1_000, 10_000];
    backlogs.retain(|mb| gb(*mb) <= arguments.backlog_max);
    let folder = tempfile::tempdir_in(&arguments.dir).unwrap_or_else(|e| panic!("{}: {e}", arguments.dir.display()));
    check_room(folder.path(), gb(backlogs.iter().sum()));
    let cluster = Cluster::start(Brokers::Mock);
    // A run adds little to its backlog: 10 MB to one of 100 MB.
    let job = Job { events: arguments.events / 2, ..arguments.job() };
    let with_spool = |brokers: &str, value: String| {
        let settings = arguments.relay.clone().with("spool.directory", folder.path().join(&value).display());
        Running::new(value, brokers, &settings.with("spool.bytes_max", "100GB"), job.clone())
    };
    let mut running = vec![with_spool(&cluster.bootstrap, "direct".to_owned())];
    running.extend(backlogs.iter().map(|mb| with_spool(AWAY, gb(*mb).to_string())));
    running[1..].iter().zip(&backlogs).for_each(|(running, mb)| fill(&running.relay, mb * MB));
    let runs = arguments.in_turn(&running);
    let how = "half the events; Kafka is away, each is answered after an fsync; direct: Kafka is there; 64 connections";
    arguments.print_head("Backlog of the spool", how, "GB in the spool", "events/s to the direct path's");
    for (running, of_it) in running.iter().zip(&runs) {
        running.print(of_it, &Quartiles::of_ratios(of_it, &runs[0], |report| report.per_second).to_string());
    }
}

fn fill(relay: &Server, bytes: u64) {
    const BODY_BYTES: u64 = 256_000;
    const EVENTS_MAX: u64 = 400; // the sender has them all in memory
    for step in 0.. {
        let missing = bytes.saturating_sub(relay.spooled_bytes()) / BODY_BYTES;
        if missing == 0 {
            return;
        }
        let webhooks = Webhooks { body_bytes: Some(BODY_BYTES as usize), ..Webhooks::usual(1_000_000 + step) };
        relay.load(&Job::of_events(16, EVENTS_MAX.min(missing) as usize, webhooks));
    }
}

/// The spool's files take a little more than its events' bytes, and leaves `spool.free_min`.
fn check_room(folder: &Path, gb: f64) {
    let disk = rustix::fs::statvfs(folder).expect("a directory of ours");
    let free = disk.f_bavail as f64 * disk.f_frsize as f64 / 1e9;
    let needed = 1.3 * gb + 1.0;
    assert!(
        free > needed,
        "{} has {free:.0} GB left, and backlogs need {needed:.0}: give --backlog-max less than 10, or another --dir",
        folder.display()
    );
}

impl Arguments {
    /// Measures, and prints a table with the CPU time to that of the first value.
    fn print_cpu(&self, running: &[Running], title: &str, how: &str, unit: &str) {
        let runs = self.in_turn(running);
        self.print_head(title, how, unit, &format!("CPU to that at {}", running[0].value));
        for (running, of_it) in running.iter().zip(&runs) {
            running.print(of_it, &Quartiles::of_ratios(of_it, &runs[0], |report| report.cpu_micros).to_string());
        }
    }

    fn print_head(&self, title: &str, how: &str, unit: &str, last: &str) {
        let (runs, events) = (self.runs, thousands(self.events as f64));
        println!("\n**{title}.** On librdkafka's mock cluster, medians of {runs} runs of {events} events; {how}.\n");
        println!(
            "| {unit} | events/s | p50 ms | p99 ms | CPU µs/event | RSS MB | {last} |\n|--:|--:|--:|--:|--:|--:|--:|"
        );
    }
}

impl Running {
    fn new(value: String, brokers: &str, settings: &Settings, job: Job) -> Self {
        Self { value, relay: Server::relay(brokers, settings), job }
    }

    fn print(&self, runs: &[Report], last: &str) {
        let Report { per_second, p50_ms, p99_ms, cpu_micros } = Report::median(runs);
        let (value, rss_mb, per_second) = (&self.value, self.relay.rss_mb(), thousands(per_second));
        println!("| {value} | {per_second} | {p50_ms:.2} | {p99_ms:.2} | {cpu_micros:.1} | {rss_mb:.0} | {last} |");
    }
}
