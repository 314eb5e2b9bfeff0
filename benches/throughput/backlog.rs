//! The spool's way at several backlogs, and the direct way in the same rounds. The relay fills its spool itself: Kafka is
//! away, and the sender's bodies are large.

use std::path::Path;

use crate::compare::ACTIONS;
use crate::growth::{Arguments, Dimension, Growth, Load, Quartiles, Running, in_turn};
use crate::load::Report;
use crate::rig::{Cluster, Relay, Server};

const MB: u64 = 1_000_000;

/// Nobody listens on port 1: Kafka is away.
const AWAY: &str = "127.0.0.1:1";

pub fn measure(arguments: &Arguments, cluster: &Cluster) -> Growth {
    let gb = |mb: u64| mb as f64 / 1000.0;
    let mut backlogs = vec![0, 100, 1_000, 10_000];
    backlogs.retain(|mb| gb(*mb) <= arguments.backlog_max);
    let folder = tempfile::tempdir_in(&arguments.dir).unwrap_or_else(|e| panic!("{}: {e}", arguments.dir.display()));
    has_room(folder.path(), gb(backlogs.iter().sum()));
    // A run adds little to its backlog: 10 MB to one of 100 MB.
    let load = Load { events: arguments.events / 2, ..Load::usual(arguments) };
    let with_spool = |brokers, mb: u64, name: &str| {
        let directory = folder.path().join(name);
        let more =
            format!("spool.directory = '{}'\nspool.bytes_max = '100GB'\n{}", directory.display(), arguments.relay);
        let relay = Server::relay(&Relay { brokers, more: &more, ..Relay::new(cluster) });
        Running { value: gb(mb), relays: vec![relay], load: load.clone() }
    };
    let mut running: Vec<Running> = backlogs.iter().map(|mb| with_spool(AWAY, *mb, &format!("{mb}-mb"))).collect();
    running.iter().zip(&backlogs).for_each(|(running, mb)| fill(&running.relays[0], mb * MB));
    running.push(with_spool(&cluster.bootstrap, 0, "direct"));
    let runs = in_turn(&running, arguments.runs, Dimension::Backlog);
    let (direct, spooled) = runs.split_last().expect("the direct way's runs");
    let rows = running
        .iter()
        .zip(spooled)
        .map(|(running, runs)| running.row(runs, Quartiles::of(runs, direct, |report| report.per_second)));
    Growth {
        dimension: Dimension::Backlog,
        brokers: arguments.brokers,
        runs: arguments.runs,
        events: load.events,
        connections: load.connections,
        rows: rows.collect(),
        direct: Some(Report::median(direct)),
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
        let (events, seed) = (EVENTS_MAX.min(missing).to_string(), (64 * (5_000 + step)).to_string());
        let body_bytes = BODY_BYTES.to_string();
        let numbers = ["--connections", "16", "--events", &events, "--seed", &seed, "--body-bytes", &body_bytes];
        relay.load(&[&numbers[..], &["--actions", ACTIONS]].concat());
    }
}

/// The spool takes up to 1.3 times its events' bytes, and leaves `spool.free_min`.
fn has_room(folder: &Path, gb: f64) {
    let disk = rustix::fs::statvfs(folder).expect("a directory of ours");
    let free = disk.f_bavail as f64 * disk.f_frsize as f64 / 1e9;
    let needed = 1.3 * gb + 1.0;
    assert!(
        free > needed,
        "{} has {free:.0} GB left, and backlogs need {needed:.0}: give --backlog-max less than 10, or another --dir",
        folder.display()
    );
}
