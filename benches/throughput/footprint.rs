//! What the relay takes before anything grows: memory, time to start, bytes of its binary, and a lone sender's wait beside
//! the floor's. On a real Kafka, with the topics already there.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::compare::{ACTIONS, median};
use crate::growth::Arguments;
use crate::rig::{Brokers, Cluster, RELAY, Relay, Server};

const IDLE: usize = 10_000;

#[derive(Serialize, Deserialize)]
pub struct Footprint {
    /// After 512 connections that were busy.
    pub rss_mb: f64,
    /// Of a connection that is idle after one event.
    pub idle_kb: f64,
    pub idle_connections: usize,
    /// From the start to the first 200 of `/readyz`.
    pub start: Starts,
    pub binary_mb: f64,
    pub lone: Lone,
}

#[derive(Serialize, Deserialize)]
pub struct Starts {
    pub median_ms: f64,
    pub least_ms: f64,
    pub most_ms: f64,
    pub number: usize,
}

/// One connection.
#[derive(Serialize, Deserialize)]
pub struct Lone {
    pub relay_p50_ms: f64,
    pub floor_p50_ms: f64,
    /// Of neighbouring runs.
    pub above_ms: f64,
}

pub fn measure(arguments: &Arguments) -> Footprint {
    let cluster = Cluster::start(Brokers::Kafka);
    let more = format!("server.connections_max = 12000\n{}", arguments.relay);
    let relay = Relay { more: &more, ..Relay::new(&cluster) };
    let binary = std::fs::metadata(RELAY).expect("the relay's binary");
    let (relay_server, floor) = (Server::relay(&relay), Server::floor(&cluster, &[]));
    let lone = lone(arguments, &relay_server, &floor);
    drop((relay_server, floor));
    Footprint {
        rss_mb: busy(arguments, &relay),
        idle_kb: idle(&relay),
        idle_connections: IDLE,
        start: start(&relay),
        binary_mb: binary.len() as f64 / 1e6,
        lone,
    }
}

fn lone(arguments: &Arguments, relay: &Server, floor: &Server) -> Lone {
    let p50 = |server: &Server, run: usize| {
        let seed = (900_000 + run).to_string();
        let events = (arguments.events / 10).to_string();
        server
            .load(&["--connections", "1", "--events", &events, "--warm", "500", "--seed", &seed, "--actions", ACTIONS])
            .p50_ms
    };
    let pairs: Vec<[f64; 2]> = (0..arguments.runs).map(|run| [p50(floor, run), p50(relay, run)]).collect();
    let of = |figure: fn(&[f64; 2]) -> f64| median(pairs.iter().map(figure).collect());
    Lone { floor_p50_ms: of(|p| p[0]), relay_p50_ms: of(|p| p[1]), above_ms: of(|p| p[1] - p[0]) }
}

fn busy(arguments: &Arguments, relay: &Relay<'_>) -> f64 {
    let server = Server::relay(relay);
    let events = (arguments.runs * arguments.events).to_string();
    server.load(&["--connections", "512", "--events", &events, "--seed", "910000", "--actions", ACTIONS]);
    server.rss_mb()
}

/// The memory that many connections add to a relay that has seen some traffic.
fn idle(relay: &Relay<'_>) -> f64 {
    let server = Server::relay(relay);
    server.load(&["--connections", "8", "--events", "10000", "--seed", "920000", "--actions", ACTIONS]);
    let before = server.rss_mb();
    let connections = server.idle(IDLE, 930_000);
    let after = server.rss_mb();
    drop(connections);
    (after - before) * 1024.0 / IDLE as f64
}

fn start(relay: &Relay<'_>) -> Starts {
    let number = 11;
    let millis = |took: Duration| took.as_secs_f64() * 1000.0;
    let mut times: Vec<f64> = (0..number).map(|_| millis(Server::ready_in(relay))).collect();
    times.sort_by(f64::total_cmp);
    Starts { median_ms: times[number / 2], least_ms: times[0], most_ms: times[number - 1], number }
}
