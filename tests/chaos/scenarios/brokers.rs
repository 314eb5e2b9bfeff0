//! Brokers that die, hang or restart, and lines to them that are cut.

use std::time::{Duration, Instant};

use super::RULES;
use crate::client::MAIN;
use crate::cluster::NODES;
use crate::proxy::Line;
use crate::rig::{Outcome, Rig, Setup, Stage};

/// The other two have to do: the fault has ended when they have a leader, with the dead one still dead.
pub fn leader_sigkill(stage: &Stage<'_>) -> Outcome {
    let mut rig = Rig::start(stage, Setup::default());
    let leader = rig.cluster.kafka.leader(&rig.topic(MAIN), 0).expect("a healthy partition has a leader");
    rig.cluster.kafka.kill(leader);
    rig.must_be_spooling();
    rig.recover();
    rig.cluster.kafka.start_node(leader);
    rig.run_for_seconds(1);
    rig.must_have_spooled();
    rig.conclude(RULES)
}

pub fn no_quorum(stage: &Stage<'_>) -> Outcome {
    let mut rig = Rig::start(stage, Setup::default());
    rig.cluster.kafka.kill(0);
    rig.cluster.kafka.kill(1);
    rig.must_be_spooling();
    rig.run_for_seconds(90);
    rig.cluster.kafka.spawn_all();
    rig.recover();
    rig.must_have_spooled();
    rig.conclude(RULES)
}

pub fn frozen(stage: &Stage<'_>, seconds: u64) -> Outcome {
    let mut rig = Rig::start(stage, Setup::default());
    rig.cluster.freeze();
    rig.run_for_seconds(seconds);
    rig.must_be_spooling();
    rig.cluster.kafka.resume_all();
    rig.recover();
    rig.must_have_spooled();
    rig.conclude(RULES)
}

pub fn rolling_restart(stage: &Stage<'_>) -> Outcome {
    let mut rig = Rig::start(stage, Setup::default());
    let led = |rig: &Rig<'_>| rig.cluster.kafka.leader(&rig.topic(MAIN), 0);
    let before = led(&rig);
    let mut has_moved = false;
    for node in 0..NODES {
        rig.cluster.kafka.restart(node);
        has_moved |= led(&rig) != before;
        rig.run_for_seconds(2);
    }
    rig.must("leaders move under load", has_moved);
    rig.recover();
    rig.conclude(RULES)
}

pub fn network_cut(stage: &Stage<'_>) -> Outcome {
    let mut rig = Rig::start(stage, Setup { as_user: true, ..Setup::default() });
    rig.cluster.set_lines(Line::Swallow);
    rig.must_be_spooling();
    rig.run_for(Duration::from_secs(40));
    let swallowed: usize = rig.cluster.proxies.iter().map(|proxy| proxy.swallowed()).sum();
    rig.must("bytes went nowhere", swallowed > 0);
    rig.cluster.set_lines(Line::Refuse);
    rig.run_for_seconds(2);
    rig.cluster.set_lines(Line::Forward);
    rig.recover();
    rig.must_have_spooled();
    rig.conclude(RULES)
}

/// With a round trip for each record of a key, the chat's lane would grow and never be direct again.
pub fn one_key_slow_line(stage: &Stage<'_>) -> Outcome {
    let setup = Setup { chats: 1, per_second: 2_000.0, as_user: true, ..Setup::default() };
    let mut rig = Rig::start(stage, setup);
    rig.cluster.set_lines(Line::Slow);
    rig.cluster.freeze();
    rig.must_be_spooling();
    let (began, before) = (Instant::now(), rig.client.tally().answered);
    rig.run_for_seconds(10);
    let rate = (rig.client.tally().answered - before) as f64 / began.elapsed().as_secs_f64();
    rig.notes.push(format!("{rate:.0} events/s of the chat while they hang"));
    rig.cluster.kafka.resume_all();
    rig.recover();
    rig.must_have_spooled();
    rig.conclude(RULES)
}
