//! What the relay takes before anything grows: memory and time to start. On a real Kafka.

use std::time::Duration;

use crate::figures::{Quartiles, thousands};
use crate::load::Job;
use crate::rig::{Brokers, Cluster, Server, Settings};
use crate::webhooks::Webhooks;

const IDLE: usize = 10_000;
const STARTS: usize = 11;

/// Measures with so many events, and prints a table.
pub fn run(events: usize, settings: &Settings) {
    let cluster = Cluster::start(Brokers::Kafka);
    let settings = settings.clone().with("server.connections_max", 12_000);
    let busy_mb = busy(events, &cluster, &settings); // the first: the topics are there when starts are measured
    let idle_kb = idle(&cluster, &settings);
    let Quartiles { lower, median, upper } = start(&cluster, &settings);
    println!("\n**Footprint.** On a real Kafka, with the topics already there.\n\n| | |\n|---|--:|");
    println!("| memory after 512 busy connections, {} events | {busy_mb:.0} MB |", thousands(events as f64));
    println!(
        "| memory of an idle connection ({} of them, each after one event) | {idle_kb:.1} kB |",
        thousands(IDLE as f64)
    );
    println!(
        "| start until `/readyz` answers 200, median of {STARTS} (middle half {lower:.0} to {upper:.0}) | {median:.0} ms |"
    );
}

fn busy(events: usize, cluster: &Cluster, settings: &Settings) -> f64 {
    let relay = Server::relay(&cluster.bootstrap, settings);
    relay.load(&Job::of_events(512, events, Webhooks::usual(910_000)));
    relay.rss_mb()
}

/// The memory that many connections add to a relay that has seen some traffic.
fn idle(cluster: &Cluster, settings: &Settings) -> f64 {
    let relay = Server::relay(&cluster.bootstrap, settings);
    relay.load(&Job::of_events(8, 10_000, Webhooks::usual(920_000)));
    let before = relay.rss_mb();
    let connections = relay.idle(IDLE, 930_000);
    let after = relay.rss_mb();
    drop(connections);
    (after - before) * 1024.0 / IDLE as f64
}

fn start(cluster: &Cluster, settings: &Settings) -> Quartiles {
    let millis = |took: Duration| took.as_secs_f64() * 1000.0;
    Quartiles::of((0..STARTS).map(|_| millis(Server::ready_in(&cluster.bootstrap, settings))).collect())
}
