//! How the cost of an event grows with each thing that can be large: one dimension after another, its values in turn, so
//! that the machine's drift falls on all of them. The figures go into a folder: data, pictures, and a page of tables.

use std::path::{Path, PathBuf};

use clap::ValueEnum as _;
use livechat_relay::cli::traffic::{Sample, one_of_each};
use livechat_relay::event::actions;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::compare::{ACTIONS, median};
use crate::load::Report;
use crate::rig::{Brokers, Cluster, Relay, Server};
use crate::{backlog, footprint, page, plot, rig};

#[derive(clap::Args)]
pub struct Arguments {
    /// Only these, of what is measured
    #[arg(long, value_delimiter = ',')]
    only: Vec<Dimension>,
    /// Runs of each value
    #[arg(long, default_value_t = 40)]
    pub runs: usize,
    /// Events of a run; fewer where bodies are large or a spool fills, more where there are many connections
    #[arg(long, default_value_t = 4_000)]
    pub events: usize,
    /// Where events go; the footprint is taken on a real Kafka
    #[arg(long, default_value = "mock")]
    pub brokers: Brokers,
    /// The largest backlog of the spool, in GB; all of them together take 1.3 times as much of the disk
    #[arg(long, default_value_t = 10.0)]
    pub backlog_max: f64,
    /// Where spools are; each is removed at the end
    #[arg(long, default_value = env!("CARGO_TARGET_TMPDIR"))]
    pub dir: PathBuf,
    /// Where data, pictures and the page go; what is there of other dimensions stays
    #[arg(long, default_value = "docs/performance")]
    out: PathBuf,
    /// Measure nothing: draw the pictures and write the page anew from the data that is there
    #[arg(long)]
    draw: bool,
    /// More of the relay's configuration, in TOML
    #[arg(long, default_value = "")]
    pub relay: String,
}

/// What grows, and what is there before anything does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dimension {
    /// Bytes of a body, 0.5 kB to 1 MB
    Body,
    /// Connections that send, 1 to 10,000
    Connections,
    /// Actions, each with a topic of its own, 1 to 46
    Topics,
    /// Apps, 1 to 1,000
    Apps,
    /// Keys of an app, 1 to 10; the last is in use
    Keys,
    /// Relays side by side, 1 to 4
    Replicas,
    /// What waits in the spool while Kafka is away, 0 to 10 GB
    Backlog,
    /// Memory, start, size of the binary, a lone sender
    Footprint,
}

/// The figures of a dimension.
#[derive(Serialize, Deserialize)]
pub struct Growth {
    pub dimension: Dimension,
    pub brokers: Brokers,
    pub runs: usize,
    /// Of a run, unless the value asks for fewer or more.
    pub events: usize,
    /// Of a run, with the first value; where they grow, 0.
    pub connections: usize,
    pub rows: Vec<Row>,
    /// The direct way in the same rounds, where the spool's is measured.
    pub direct: Option<Report>,
}

/// The figures of one value.
#[derive(Serialize, Deserialize)]
pub struct Row {
    pub value: f64,
    pub median: Report,
    /// Quartiles.
    pub lower: Report,
    pub upper: Report,
    /// Of all replicas together, after the last run.
    pub rss_mb: f64,
    /// To the same round's run that it is compared with: of the CPU time, or of events/s where that is the direct way's.
    pub ratio: Quartiles,
}

/// Of a ratio to the run beside it.
#[derive(Serialize, Deserialize)]
pub struct Quartiles {
    pub lower: f64,
    pub median: f64,
    pub upper: f64,
}

impl Quartiles {
    pub fn of(runs: &[Report], beside: &[Report], figure: fn(&Report) -> f64) -> Self {
        let ratios: Vec<f64> = runs.iter().zip(beside).map(|(run, other)| figure(run) / figure(other)).collect();
        Self { lower: quartile(1, ratios.clone()), upper: quartile(3, ratios.clone()), median: median(ratios) }
    }
}

/// The figure that so many quarters of the others are below.
fn quartile(number: usize, mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[(number * (figures.len() - 1) + 2) / 4]
}

/// What the sender does.
#[derive(Clone)]
pub struct Load {
    pub connections: usize,
    pub events: usize,
    pub actions: String,
    pub in_turn: bool,
    pub apps: usize,
    pub body_bytes: Option<usize>,
}

/// Relays under a load.
pub struct Running {
    pub value: f64,
    pub relays: Vec<Server>,
    pub load: Load,
}

pub fn run(arguments: &Arguments) {
    std::fs::create_dir_all(&arguments.out).unwrap_or_else(|e| panic!("{}: {e}", arguments.out.display()));
    let wanted = |part: &&Dimension| arguments.only.is_empty() || arguments.only.contains(part);
    for part in Dimension::value_variants().iter().filter(wanted).filter(|_| !arguments.draw) {
        eprintln!("measuring: {}", part.name());
        match part {
            Dimension::Footprint => write(&arguments.out, *part, &footprint::measure(arguments)),
            part => write(&arguments.out, *part, &measure(arguments, *part)),
        }
    }
    let all = Dimension::value_variants().iter().filter(|part| **part != Dimension::Footprint);
    let growths: Vec<Growth> = all.filter_map(|part| read(&arguments.out, *part)).collect();
    growths.iter().for_each(|growth| plot::draw(growth, &arguments.out));
    let page = page::write(&growths, read(&arguments.out, Dimension::Footprint).as_ref());
    std::fs::write(arguments.out.join("growth.md"), &page).expect("written");
    println!("{page}");
}

fn measure(arguments: &Arguments, dimension: Dimension) -> Growth {
    let cluster = Cluster::start(arguments.brokers);
    let running = match dimension {
        Dimension::Backlog => return backlog::measure(arguments, &cluster),
        Dimension::Body => body(arguments, &cluster),
        Dimension::Connections => connections(arguments, &cluster),
        Dimension::Topics => topics(arguments, &cluster),
        Dimension::Apps => apps(arguments, &cluster),
        Dimension::Keys => keys(arguments, &cluster),
        Dimension::Replicas => replicas(arguments, &cluster),
        Dimension::Footprint => unreachable!("it has figures of its own"),
    };
    let runs = in_turn(&running, arguments.runs, dimension);
    let usual = &runs[running.iter().position(|running| dimension.is_usual(running.value)).unwrap_or(0)];
    let cpu_to = |runs: &[Report]| Quartiles::of(runs, usual, |report| report.cpu_micros);
    Growth {
        dimension,
        brokers: arguments.brokers,
        runs: arguments.runs,
        events: arguments.events,
        connections: if dimension == Dimension::Connections { 0 } else { running[0].load.connections },
        rows: running.iter().zip(&runs).map(|(running, of_it)| running.row(of_it, cpu_to(of_it))).collect(),
        direct: None,
    }
}

/// Every value once, then every value again: their reports.
pub fn in_turn(running: &[Running], rounds: usize, dimension: Dimension) -> Vec<Vec<Report>> {
    let mut runs: Vec<Vec<Report>> = running.iter().map(|_| Vec::new()).collect();
    for round in 0..rounds {
        for (place, running) in running.iter().enumerate() {
            // 64 seeds a run: one for each action, should they come in turn.
            let seed = 64 * (1 + dimension as usize * 10_000 + round * 100 + place);
            runs[place].push(rig::load(&running.relays.iter().collect::<Vec<_>>(), &running.load.arguments(seed)));
        }
    }
    runs
}

impl Load {
    /// 64 connections, and what a busy account sends most.
    pub fn usual(arguments: &Arguments) -> Self {
        let (events, actions) = (arguments.events, ACTIONS.to_owned());
        Self { connections: 64, events, actions, in_turn: false, apps: 1, body_bytes: None }
    }

    /// As the sender takes them. Before the clock starts, each connection has had an event.
    fn arguments(&self, seed: usize) -> Vec<String> {
        let warm = (self.events / 5).max(self.connections);
        let numbers = [
            ("--connections", self.connections),
            ("--events", self.events),
            ("--warm", warm),
            ("--seed", seed),
            ("--apps", self.apps),
        ];
        let numbers = numbers.into_iter().chain(self.body_bytes.map(|bytes| ("--body-bytes", bytes)));
        let mut arguments: Vec<String> =
            numbers.flat_map(|(name, number)| [name.to_owned(), number.to_string()]).collect();
        arguments.extend(["--actions".to_owned(), self.actions.clone()]);
        arguments.extend(self.in_turn.then(|| "--in-turn".to_owned()));
        arguments
    }
}

impl Running {
    pub fn row(&self, runs: &[Report], ratio: Quartiles) -> Row {
        Row {
            value: self.value,
            median: Report::median(runs),
            lower: Report::each(runs, |figures| quartile(1, figures)),
            upper: Report::each(runs, |figures| quartile(3, figures)),
            rss_mb: self.relays.iter().map(Server::rss_mb).sum(),
            ratio,
        }
    }
}

/// One action with one text, so that nothing but its length differs. Few connections: 64 times 1 MB would pass
/// `server.bytes_in_flight_max`.
fn body(arguments: &Arguments, cluster: &Cluster) -> Vec<Running> {
    const RUN_BYTES_MAX: usize = 96 << 20;
    let running = |bytes: usize| {
        let events = arguments.events.min(RUN_BYTES_MAX / bytes);
        let usual = Load::usual(arguments);
        let load =
            Load { connections: 16, events, actions: "thread_tagged".to_owned(), body_bytes: Some(bytes), ..usual };
        alone(bytes as f64 / 1000.0, &Relay { more: &arguments.relay, ..Relay::new(cluster) }, load)
    };
    [500, 1_000, 4_000, 16_000, 64_000, 256_000, 1_000_000].map(running).into()
}

fn connections(arguments: &Arguments, cluster: &Cluster) -> Vec<Running> {
    let more = format!("server.connections_max = 12000\n{}", arguments.relay);
    let running = |connections: usize| {
        let events = match connections {
            1 => arguments.events / 10,
            _ => arguments.events.max(4 * connections),
        };
        let load = Load { connections, events, ..Load::usual(arguments) };
        alone(connections as f64, &Relay { more: &more, ..Relay::new(cluster) }, load)
    };
    [1, 8, 64, 512, 2_048, 10_000].map(running).into()
}

/// Bodies are made equally long, else the cost would be that of other bytes. Events of chats come first, because their keys spread
/// over a topic's partitions from the first topic on, and the shortest of them, because those that are longer anyway are then the
/// fewest.
fn topics(arguments: &Arguments, cluster: &Cluster) -> Vec<Running> {
    let mut samples = one_of_each(1);
    samples.retain(|sample| actions::names().any(|name| name == sample.action()));
    samples.sort_by_key(|sample| (sample.chat_id().is_none(), sample.data().len()));
    let names: Vec<&str> = samples.iter().map(Sample::action).collect();
    let running = |topics: usize| {
        let actions = names[..topics].join(",");
        let load = Load { actions, in_turn: true, body_bytes: Some(2_000), ..Load::usual(arguments) };
        alone(topics as f64, &Relay { more: &arguments.relay, ..Relay::new(cluster) }, load)
    };
    [1, 5, 15, names.len()].map(running).into()
}

fn apps(arguments: &Arguments, cluster: &Cluster) -> Vec<Running> {
    let running = |apps: usize| {
        let load = Load { apps, ..Load::usual(arguments) };
        alone(apps as f64, &Relay { more: &arguments.relay, apps, ..Relay::new(cluster) }, load)
    };
    [1, 10, 100, 1_000].map(running).into()
}

fn keys(arguments: &Arguments, cluster: &Cluster) -> Vec<Running> {
    let running = |keys: usize| {
        let relay = Relay { more: &arguments.relay, keys, ..Relay::new(cluster) };
        alone(keys as f64, &relay, Load::usual(arguments))
    };
    [1, 2, 5, 10].map(running).into()
}

fn replicas(arguments: &Arguments, cluster: &Cluster) -> Vec<Running> {
    let relay = Relay { more: &arguments.relay, ..Relay::new(cluster) };
    let running = |replicas: usize| Running {
        value: replicas as f64,
        relays: (0..replicas).map(|_| Server::relay(&relay)).collect(),
        load: Load { connections: 64 * replicas, events: arguments.events * replicas, ..Load::usual(arguments) },
    };
    [1, 2, 3, 4].map(running).into()
}

fn alone(value: f64, relay: &Relay<'_>, load: Load) -> Running {
    Running { value, relays: vec![Server::relay(relay)], load }
}

impl Growth {
    /// What the others are compared with.
    pub fn usual(&self) -> &Row {
        self.rows.iter().find(|row| self.dimension.is_usual(row.value)).unwrap_or(&self.rows[0])
    }
}

impl Dimension {
    /// Whether the others are compared with it; where none is, they are with the first. A lone connection has no company in a batch.
    fn is_usual(self, value: f64) -> bool {
        self == Self::Connections && value == 64.0
    }

    /// As on the command line, and of its files.
    pub fn name(self) -> String {
        self.to_possible_value().expect("none is skipped").get_name().to_owned()
    }
}

fn write(folder: &Path, part: Dimension, figures: &impl Serialize) {
    let text = serde_json::to_string_pretty(figures).expect("numbers are JSON") + "\n";
    std::fs::write(folder.join(part.name()).with_extension("json"), text).expect("written");
}

fn read<T: DeserializeOwned>(folder: &Path, part: Dimension) -> Option<T> {
    let path = folder.join(part.name()).with_extension("json");
    let text = std::fs::read(&path).ok()?; // not measured yet
    Some(serde_json::from_slice(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display())))
}
