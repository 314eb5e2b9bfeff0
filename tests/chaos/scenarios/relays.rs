//! Relays that die, and relays that follow them.

use std::thread;
use std::time::Duration;

use super::RULES;
use crate::judge::{Order, Rules};
use crate::rig::{Outcome, Rig, Setup, Stage};

pub fn sigkill(stage: &Stage<'_>, times: usize) -> Outcome {
    let mut rig = Rig::start(stage, Setup::default());
    for _ in 0..times {
        let pause = rig.random.within(300, 2_500);
        rig.run_for(Duration::from_millis(pause));
        rig.kill_relay(0);
        rig.start_relay(0);
    }
    rig.recover();
    let tally = rig.client.tally();
    rig.must("attempts were under way when the relay died", tally.unanswered > 0);
    rig.conclude(RULES)
}

pub fn sigkill_while_spooling(stage: &Stage<'_>) -> Outcome {
    let mut rig = Rig::start(stage, Setup::default());
    rig.cluster.freeze();
    for _ in 0..2 {
        rig.must_be_spooling();
        let pause = rig.random.within(500, 2_000);
        rig.run_for(Duration::from_millis(pause));
        let left = rig.spool_records();
        rig.kill_relay(0);
        rig.start_relay(0);
        let found = rig.spool_records();
        rig.must(&format!("of {left} records in the spool none is gone ({found})"), found >= left);
    }
    rig.cluster.kafka.resume_all();
    rig.recover();
    rig.must_have_spooled();
    rig.conclude(RULES)
}

pub fn sigkill_while_draining(stage: &Stage<'_>) -> Outcome {
    // Large events, so that there is something to be killed in.
    let mut rig = Rig::start(stage, Setup { text_bytes_max: 16_000, ..Setup::default() });
    let mut kills = 0;
    for _ in 0..4 {
        rig.cluster.freeze();
        rig.must_be_spooling();
        rig.run_for_seconds(6);
        rig.cluster.kafka.resume_all();
        for _ in 0..3 {
            let replayed = |rig: &Rig<'_>| rig.reading(0).map_or(0.0, |r| r.sum("replayed_total", ""));
            rig.run_until(Duration::from_secs(30), |rig| replayed(rig) > 0.0 || rig.spool_records() == 0.0);
            let pause = rig.random.within(0, 60);
            rig.run_for(Duration::from_millis(pause));
            let is_draining = rig.spool_records() > 0.0;
            rig.kill_relay(0);
            kills += usize::from(is_draining);
            rig.start_relay(0);
        }
    }
    rig.recover();
    rig.must("the relay was killed with a part of its spool replayed", kills > 0);
    rig.notes.push(format!("{kills} kills while draining"));
    rig.must_have_spooled();
    rig.conclude(RULES)
}

pub fn second_relay_takes_over(stage: &Stage<'_>) -> Outcome {
    let mut rig = Rig::start(stage, Setup::default());
    rig.cluster.freeze();
    rig.must_be_spooling();
    rig.run_for_seconds(3);
    let successor = rig.start_successor();
    rig.run_for_seconds(3);
    rig.must("the second process waits while the first has the directory", !successor.is_finished());
    rig.must("the first has a backlog", rig.spool_records() > 0.0);
    rig.stop_relay(0);
    rig.client.send_to(vec![rig.address(1)]);
    let relay = successor.join().expect("a thread that does not panic");
    rig.adopt(1, relay.unwrap_or_else(|log| panic!("the second relay did not start:\n{log}")));
    let inherited = rig.reading(1).map_or(0.0, |reading| reading.spool_records());
    rig.must("the second finds the backlog of the first", inherited > 0.0);
    rig.run_for_seconds(2);
    rig.cluster.kafka.resume_all();
    rig.recover();
    rig.must_have_spooled();
    rig.conclude(RULES)
}

/// Each relay drains its own spool: what a chat sent to one may overtake what it sent to the other.
pub fn two_relays(stage: &Stage<'_>) -> Outcome {
    let mut rig = Rig::start(stage, Setup { relays: 2, ..Setup::default() });
    rig.cluster.freeze();
    rig.must_be_spooling();
    rig.run_for_seconds(5);
    let backlog = rig.reading(1).map_or(0.0, |reading| reading.spool_records());
    rig.must("both relays have a backlog", rig.spool_records() > 0.0 && backlog > 0.0);
    rig.kill_relay(1);
    thread::sleep(Duration::from_secs(1));
    rig.start_relay(1);
    rig.run_for_seconds(3);
    rig.cluster.kafka.resume_all();
    rig.recover();
    rig.must_have_spooled();
    rig.conclude(Rules { order: Order::ChatAndRelay, ..RULES })
}
