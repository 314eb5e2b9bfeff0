//! `make bench`: at each number of connections the fastest floor of several lingers, and the relay in turn with it. Runs are
//! short and many: what an event costs on a shared machine moves by a fifth from one half second to the next.

use crate::figures::{Quartiles, Report, thousands};
use crate::load::Job;
use crate::rig::{Brokers, Cluster, Server, Settings, turns};
use crate::webhooks::Webhooks;

/// The floor is tried with each, in milliseconds.
const LINGERS: [u32; 4] = [0, 1, 2, 5];
/// Turns of each of these; more would choose no better than the noise allows.
const TRIALS: usize = 6;
/// CPU time per event: the relay's over that of the best floor.
const GOAL: f64 = 1.25;
/// Where the goal holds.
const GOAL_CONNECTIONS: [usize; 2] = [64, 256];

/// In the order of the table.
const FIGURES: [fn(&Report) -> f64; 4] = [|r| r.per_second, |r| r.p50_ms, |r| r.p99_ms, |r| r.cpu_micros];

#[derive(clap::Args)]
pub struct Arguments {
    /// Only against these brokers
    #[arg(long, value_delimiter = ',', default_value = "kafka,mock")]
    only: Vec<Brokers>,
    #[arg(long, value_delimiter = ',', default_value = "1,16,64,256,512")]
    connections: Vec<usize>,
    /// Turns of the best floor and of the relay; half of them below 64 connections
    #[arg(long, default_value_t = 30)]
    rounds: usize,
    /// Events of a turn; a quarter of them below 64 connections, a fiftieth for one
    #[arg(long, default_value_t = 10_000)]
    events: usize,
    /// Settings of the relay, as NAME=VALUE,NAME=VALUE; given again, another relay takes turns with the others
    #[arg(long, value_name = "SETTINGS")]
    relay: Vec<Settings>,
}

/// What was measured at one number of connections.
struct Comparison {
    connections: usize,
    /// CPU time per event of each floor that was tried, in µs.
    trials: [f64; LINGERS.len()],
    /// The best floor first, then the relays.
    rows: Vec<Row>,
}

struct Row {
    name: String,
    median: Report,
    /// After the last run.
    rss_mb: f64,
    /// To the neighbouring run of the best floor, in the order of the table.
    ratios: [Quartiles; 4],
}

pub fn run(arguments: &Arguments) {
    for &brokers in &arguments.only {
        let cluster = Cluster::start(brokers);
        if brokers == Brokers::Kafka {
            warm_up(&cluster);
        }
        print_head(arguments, brokers);
        let mut comparisons = Vec::new();
        for &connections in &arguments.connections {
            let comparison = compare(arguments, &cluster, connections);
            comparison.print();
            comparisons.push(comparison);
        }
        print_trials(&comparisons);
    }
}

/// A broker that has just been started compiles its code while it runs, on the same cores, and again when records come that
/// are not like the first ones. So it gets both kinds for some seconds.
fn warm_up(cluster: &Cluster) {
    let servers = [Server::floor(cluster, 0), Server::relay(&cluster.bootstrap, &Settings::default())];
    let job = Job::of_events(512, 60_000, Webhooks::usual(1));
    turns(&servers.each_ref(), &Job { rounds: 2, ..job });
}

fn compare(arguments: &Arguments, cluster: &Cluster, connections: usize) -> Comparison {
    let (rounds, events) = match connections {
        1 => (arguments.rounds.div_ceil(2), arguments.events / 50),
        2..64 => (arguments.rounds.div_ceil(2), arguments.events / 4),
        _ => (arguments.rounds, arguments.events),
    };
    // A server that has just been started takes a fifth more than later, so each has as much as two turns before.
    let job =
        |rounds, seed| Job { rounds, warm: 2 * events, ..Job::of_events(connections, events, Webhooks::usual(seed)) };
    let settings = if arguments.relay.is_empty() { &[Settings::default()][..] } else { &arguments.relay };
    let relays: Vec<Server> = settings.iter().map(|settings| Server::relay(&cluster.bootstrap, settings)).collect();
    let floors = LINGERS.map(|linger_ms| Server::floor(cluster, linger_ms));
    let trials = turns(&floors.each_ref(), &job(TRIALS, 1000));
    let trials: [f64; LINGERS.len()] = std::array::from_fn(|floor| Report::median(&trials[floor]).cpu_micros);
    let best = (0..LINGERS.len()).min_by(|&a, &b| trials[a].total_cmp(&trials[b])).expect("there are four");
    let floor = floors.into_iter().nth(best).expect("the best of them"); // the others end here
    let servers: Vec<&Server> = std::iter::once(&floor).chain(&relays).collect();
    let runs = turns(&servers, &job(rounds, 2000));
    let names = settings.iter().map(|settings| format!("relay {settings}").trim_end().to_owned());
    let names = std::iter::once(format!("floor, linger {} ms", LINGERS[best])).chain(names);
    let rows = names.zip(&servers).zip(&runs).map(|((name, server), of_it)| {
        let ratios = FIGURES.map(|figure| Quartiles::of_ratios(of_it, &runs[0], figure));
        Row { name, median: Report::median(of_it), rss_mb: server.rss_mb(), ratios }
    });
    Comparison { connections, trials, rows: rows.collect() }
}

fn print_head(arguments: &Arguments, brokers: Brokers) {
    let which = match brokers {
        Brokers::Kafka => "On a real Apache Kafka, one node",
        Brokers::Mock => "On librdkafka's mock cluster",
    };
    let (rounds, events) = (arguments.rounds, thousands(arguments.events as f64));
    println!(
        "**{which}.** Medians of {rounds} runs of {events} events (below 64 connections half the runs of a quarter of the events, for \
         one a fiftieth). Ratios are those of neighbouring runs, relay to floor: the median, and the middle half.\n"
    );
    print_row(["connections", "", "events/s", "p50 ms", "p99 ms", "CPU µs/event", "RSS MB", "goal"].map(str::to_owned));
    println!("|--:|---|--:|--:|--:|--:|--:|---|");
}

fn print_row([connections, name, figures @ .., goal]: [String; 8]) {
    let figures: String = figures.iter().map(|figure| format!(" {figure:>19} |")).collect();
    println!("| {connections:>11} | {name:<20} |{figures} {goal} |");
}

impl Comparison {
    fn print(&self) {
        for (number, row) in self.rows.iter().enumerate() {
            let Row { name, median: m, rss_mb, .. } = row;
            let connections = if number == 0 { self.connections.to_string() } else { String::new() };
            let [per_second, cpu, rss] =
                [format!("{:.0}", m.per_second), format!("{:.1}", m.cpu_micros), format!("{rss_mb:.1}")];
            let [p50, p99] = [m.p50_ms, m.p99_ms].map(|ms| format!("{ms:.2}"));
            print_row([connections, name.clone(), per_second, p50, p99, cpu, rss, String::new()]);
            if number > 0 {
                self.print_ratios(&row.ratios);
            }
        }
    }

    fn print_ratios(&self, ratios: &[Quartiles; 4]) {
        let [per_second, p50, p99, cpu] = ratios.map(|quartiles| quartiles.to_string());
        let goal = match (GOAL_CONNECTIONS.contains(&self.connections), ratios[3].median <= GOAL) {
            (true, true) => format!("CPU ≤ {GOAL}: met"),
            (true, false) => format!("CPU ≤ {GOAL}: missed"),
            (false, _) => String::new(),
        };
        print_row([String::new(), "ratio".to_owned(), per_second, p50, p99, cpu, String::new(), goal]);
    }
}

/// How the floor's linger was chosen.
fn print_trials(comparisons: &[Comparison]) {
    println!("\nCPU µs/event of the floor by linger, medians of {TRIALS} runs; the least is the best floor above.\n");
    println!("| connections |{}", LINGERS.map(|linger| format!(" {linger} ms |")).concat());
    println!("|--:|{}", "--:|".repeat(LINGERS.len()));
    for Comparison { connections, trials, .. } in comparisons {
        println!("| {connections} |{}", trials.map(|cpu| format!(" {cpu:.1} |")).concat());
    }
    println!();
}
