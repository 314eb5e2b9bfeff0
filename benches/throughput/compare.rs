//! Floor and relay in turn, at several numbers of connections: a table of medians, and of the ratios of neighbouring runs. Runs are
//! short and many: what an event costs on a shared machine moves by a fifth from one half second to the next.

use serde::{Deserialize, Serialize};

use crate::load::Report;
use crate::rig::{Brokers, Cluster, Relay, Server, turns};

/// What a busy account sends most, on five topics.
pub const ACTIONS: &str = "incoming_event,incoming_chat,chat_deactivated,events_marked_as_seen,thread_tagged";

/// The best that was found for the floor, where a lone sender's latency is of no account.
const BEST: [&str; 1] = ["linger.ms=1"];

const PROGRAMS: [&str; 3] = ["floor", "relay", "floor*"];

#[derive(clap::Args)]
pub struct Arguments {
    /// Pairs of runs, floor and relay in turn; a third of them below 64 connections
    #[arg(long, default_value_t = 45)]
    pairs: usize,
    /// Events of a run; a quarter of them below 64 connections, a tenth for one
    #[arg(long, default_value_t = 10_000)]
    events: usize,
    #[arg(long, value_delimiter = ',', default_value = "1,16,64,512")]
    connections: Vec<usize>,
    #[arg(long, value_delimiter = ',', default_value = "kafka,mock")]
    brokers: Vec<Brokers>,
    /// More of the relay's configuration, in TOML
    #[arg(long, default_value = "")]
    relay: String,
    /// Print JSON instead of tables
    #[arg(long)]
    json: bool,
}

/// One program's runs at one number of connections.
#[derive(Serialize)]
struct Row {
    program: &'static str,
    #[serde(flatten)]
    median: Report,
    /// After the last run.
    rss_mb: f64,
}

/// A relay's figure over its neighbour's.
#[derive(Clone, Copy, Serialize, Deserialize)]
pub struct Ratio {
    pub median: f64,
    pub least: f64,
    pub most: f64,
}

#[derive(Serialize)]
struct Ratios {
    per_second: Ratio,
    p50: Ratio,
    p99: Ratio,
    cpu: Ratio,
    /// By how much the relay's p50 is above the floor's, in ms.
    p50_above_ms: f64,
}

#[derive(Serialize)]
struct Comparison {
    brokers: Brokers,
    connections: usize,
    pairs: usize,
    events: usize,
    rows: Vec<Row>,
    relay_to_floor: Ratios,
}

pub fn run(arguments: &Arguments) {
    let mut comparisons = Vec::new();
    for &brokers in &arguments.brokers {
        let cluster = Cluster::start(brokers);
        if brokers == Brokers::Kafka {
            warm_up(&cluster);
        }
        if !arguments.json {
            title(arguments, brokers);
        }
        for &connections in &arguments.connections {
            let comparison = compare(arguments, brokers, &cluster, connections);
            if !arguments.json {
                comparison.print();
            }
            comparisons.push(comparison);
        }
    }
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&comparisons).expect("numbers are JSON"));
    }
}

/// A broker that has just been started compiles its code while it runs, on the same cores, and anew when records come that are not
/// like the first ones. So it gets both kinds for some seconds.
fn warm_up(cluster: &Cluster) {
    let servers = [Server::floor(cluster, &[]), Server::relay(&Relay::new(cluster))];
    for seed in ["1", "2"] {
        for server in &servers {
            server.load(&["--connections", "512", "--events", "60000", "--seed", seed, "--actions", ACTIONS]);
        }
    }
}

fn compare(arguments: &Arguments, brokers: Brokers, cluster: &Cluster, connections: usize) -> Comparison {
    let (pairs, events) = match connections {
        1 => (arguments.pairs.div_ceil(3), arguments.events / 10),
        2..64 => (arguments.pairs.div_ceil(3), arguments.events / 4),
        _ => (arguments.pairs, arguments.events),
    };
    let servers = [
        Server::floor(cluster, &[]),
        Server::relay(&Relay { more: &arguments.relay, ..Relay::new(cluster) }),
        Server::floor(cluster, &BEST),
    ];
    let numbers = [connections, events, 2 * events, pairs].map(|number| number.to_string());
    let [connections_each, of_a_turn, warm, rounds] = numbers.each_ref().map(String::as_str);
    let options = ["--connections", connections_each, "--events", of_a_turn, "--warm", warm, "--rounds", rounds];
    let runs = turns(&servers.each_ref(), &[&options[..], &["--seed", "1000", "--actions", ACTIONS]].concat());
    let [floor, relay, _] = &runs[..] else { unreachable!("there are three servers") };
    let ratio = |figure: fn(&Report) -> f64| Ratio::of(floor, relay, figure);
    let above = floor.iter().zip(relay).map(|(floor, relay)| relay.p50_ms - floor.p50_ms).collect();
    Comparison {
        brokers,
        connections,
        pairs,
        events,
        relay_to_floor: Ratios {
            per_second: ratio(|r| r.per_second),
            p50: ratio(|r| r.p50_ms),
            p99: ratio(|r| r.p99_ms),
            cpu: ratio(|r| r.cpu_micros),
            p50_above_ms: median(above),
        },
        rows: PROGRAMS
            .iter()
            .zip(servers.iter().zip(&runs))
            .map(|(&program, (server, runs))| Row { program, median: Report::median(runs), rss_mb: server.rss_mb() })
            .collect(),
    }
}

impl Report {
    /// The median of each figure.
    pub fn median(runs: &[Self]) -> Self {
        Self::each(runs, median)
    }

    /// One figure out of those of all runs, for each.
    pub fn each(runs: &[Self], choose: impl Fn(Vec<f64>) -> f64) -> Self {
        let of = |figure: fn(&Self) -> f64| choose(runs.iter().map(figure).collect());
        Self {
            per_second: of(|r| r.per_second),
            p50_ms: of(|r| r.p50_ms),
            p99_ms: of(|r| r.p99_ms),
            cpu_micros: of(|r| r.cpu_micros),
        }
    }
}

impl Ratio {
    pub fn of(floor: &[Report], relay: &[Report], figure: fn(&Report) -> f64) -> Self {
        let ratios: Vec<f64> = floor.iter().zip(relay).map(|(floor, relay)| figure(relay) / figure(floor)).collect();
        let (least, most) = ratios.iter().fold((f64::MAX, 0.0_f64), |(l, m), &r| (l.min(r), m.max(r)));
        Self { median: median(ratios), least, most }
    }
}

pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len() % 2 == 1 { values[middle] } else { f64::midpoint(values[middle - 1], values[middle]) }
}

fn title(arguments: &Arguments, brokers: Brokers) {
    let which = match brokers {
        Brokers::Kafka => "A real Apache Kafka, one node",
        Brokers::Mock => "librdkafka's mock cluster",
    };
    println!(
        "{which}. Medians of {} runs of {} events (below 64 connections: a third of the runs, and a\n\
         quarter of the events; 1: a tenth), floor and relay in turn. Ratios of neighbouring runs: median (least to\n\
         most). floor*: the floor with {}, every fourth time. RSS: after all runs.\n",
        arguments.pairs,
        arguments.events,
        BEST.join(", ")
    );
    println!(
        "{:>5}  {:<7} {:>18} {:>18} {:>18} {:>18} {:>8}",
        "conns", "", "events/s", "p50 ms", "p99 ms", "CPU µs/event", "RSS MB"
    );
}

impl Comparison {
    fn print(&self) {
        for Row { program, median: m, rss_mb } in &self.rows {
            println!(
                "{:>5}  {program:<7} {:>18.0} {:>18.2} {:>18.2} {:>18.1} {rss_mb:>8.1}",
                self.connections, m.per_second, m.p50_ms, m.p99_ms, m.cpu_micros
            );
        }
        let text = |ratio: Ratio| format!("{:.2} ({:.2} to {:.2})", ratio.median, ratio.least, ratio.most);
        let Ratios { per_second, p50, p99, cpu, .. } = &self.relay_to_floor;
        let [per_second, p50, p99, cpu] = [per_second, p50, p99, cpu].map(|ratio| text(*ratio));
        println!("{:>5}  {:<7} {per_second:>18} {p50:>18} {p99:>18} {cpu:>18}\n", self.connections, "ratio");
    }
}
