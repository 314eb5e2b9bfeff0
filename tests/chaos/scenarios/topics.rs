//! Trouble of one topic, which must hold back only itself.

use std::time::Duration;

use super::RULES;
use crate::client::MAIN;
use crate::cluster::USER;
use crate::judge::Rules;
use crate::rig::{Outcome, Rig, Setup, Stage, prefix};

/// Brokers do not all know of a new topic at once, and none has seen the producer in it: its first requests fail out of order.
pub fn fresh(stage: &Stage<'_>, rounds: u32) -> Outcome {
    let mut all: Option<Outcome> = None;
    for round in 0..rounds {
        let setup = Setup { round: Some(round), chats: 120, ..Setup::default() };
        let mut rig = Rig::start(stage, setup);
        rig.recover();
        let outcome = rig.conclude(RULES);
        all = Some(match all {
            Some(before) => before.and(outcome),
            None => outcome,
        });
    }
    all.expect("there is a first round")
}

/// What was in the topic goes with it, and is nobody's loss: it is saved before, while nothing of it is under way.
pub fn deleted_and_recreated(stage: &Stage<'_>) -> Outcome {
    let mut rig = Rig::start(stage, Setup::default());
    let topic = rig.topic(MAIN);
    rig.client.hold(MAIN);
    rig.saved = rig.cluster.kafka.read_all(&[&topic]);
    rig.cluster.kafka.delete_topic(&topic);
    rig.run_for_seconds(1); // a broker that has not heard of it yet would still take records
    rig.client.release(MAIN);
    rig.must_be_spooling();
    must_flow_meanwhile(&mut rig);
    if !rig.cluster.kafka.topics().contains(&topic) {
        let settings = [("max.message.bytes", "3145728"), ("min.insync.replicas", "2")];
        rig.cluster.kafka.create_topic(&topic, 3, &settings);
    }
    rig.recover();
    rig.must_have_spooled();
    rig.conclude(RULES)
}

pub fn acl_removed_and_restored(stage: &Stage<'_>) -> Outcome {
    let mut rig = Rig::start(stage, Setup { as_user: true, ..Setup::default() });
    let (topic, user) = (rig.topic(MAIN), format!("User:{USER}"));
    // With the first rule for a topic all that no rule allows is forbidden.
    rig.cluster.tool("acls", &["--add", "--allow-principal", &user, "--operation", "All", "--topic", &topic]);
    let denied = ["--deny-principal", &user, "--operation", "Write", "--topic", &topic];
    rig.cluster.tool("acls", &[&["--add"], &denied[..]].concat());
    rig.must_be_spooling();
    must_flow_meanwhile(&mut rig);
    rig.cluster.tool("acls", &[&["--remove", "--force"], &denied[..]].concat());
    rig.recover();
    rig.must_have_spooled();
    rig.conclude(RULES)
}

/// A topic that takes nothing for long fills its share of the spool; then all brokers hang for a while, and the others need the rest.
pub fn stuck_until_its_budget(stage: &Stage<'_>) -> Outcome {
    let mut rig = Rig::start(stage, Setup { as_user: true, spool_bytes_max: "4MiB", ..Setup::default() });
    let (topic, user) = (rig.topic(MAIN), format!("User:{USER}"));
    rig.cluster.tool("acls", &["--add", "--allow-principal", &user, "--operation", "All", "--topic", &topic]);
    let denied = ["--deny-principal", &user, "--operation", "Write", "--topic", &topic];
    rig.cluster.tool("acls", &[&["--add"], &denied[..]].concat());
    rig.must_be_spooling();
    let refused =
        |rig: &Rig<'_>| rig.reading(0).is_some_and(|r| r.sum("unavailable_total", r#"reason="spool_full""#) > 0.0);
    let has_used_its_share = rig.run_until(Duration::from_secs(120), refused);
    rig.must("the topic's share is used up, and its events are 503", has_used_its_share);
    must_flow_meanwhile(&mut rig);
    rig.kill_relay(0);
    rig.start_relay(0);
    rig.run_for_seconds(2);
    rig.cluster.freeze();
    let spooled = |rig: &Rig<'_>| {
        let label = r#"action="thread_tagged",outcome="spooled""#;
        rig.reading(0).map_or(0.0, |reading| reading.sum("events_total", label))
    };
    let before = spooled(&rig);
    let have_room = rig.run_until(Duration::from_secs(20), |rig| spooled(rig) > before + 50.0);
    rig.must("the spool has room for the others when all brokers hang", have_room);
    rig.cluster.kafka.resume_all();
    rig.cluster.kafka.settle();
    rig.cluster.tool("acls", &[&["--remove", "--force"], &denied[..]].concat());
    rig.recover();
    rig.must_have_spooled();
    rig.conclude(RULES)
}

/// One topic is missing from the beginning, and the relay may not create it. The others' events are on Kafka before it may, over a kill, too.
pub fn create_denied(stage: &Stage<'_>) -> Outcome {
    let (topic, user) = (prefix(stage.name) + MAIN, format!("User:{USER}"));
    let rule = |change: &[&str], what: &[&str]| stage.cluster.tool("acls", &[change, what].concat());
    let allowed = ["--allow-principal", &user, "--operation", "All"];
    let denied = ["--deny-principal", &user, "--operation", "Create"];
    let of_topic = ["--topic", &*topic];
    for what in [&["--cluster"][..], &of_topic] {
        rule(&["--add"], &[&allowed[..], what].concat()); // with the first rule all that no rule allows is forbidden
        rule(&["--add"], &[&denied[..], what].concat());
    }
    let setup = Setup { as_user: true, topics_check_interval: "2s", ..Setup::default() };
    let mut rig = Rig::start(stage, setup);
    rig.must_be_spooling();
    must_flow_meanwhile(&mut rig);
    rig.kill_relay(0);
    rig.start_relay(0);
    must_flow_meanwhile(&mut rig);
    let waiting = |rig: &Rig<'_>| {
        let reading = rig.reading(0)?;
        Some((reading.sum("spool_records", &format!("topic=\"{topic}\"")), reading.spool_records()))
    };
    let is_alone =
        rig.run_until(Duration::from_secs(10), |rig| waiting(rig).is_some_and(|(own, all)| own > 0.0 && own == all));
    rig.must("nothing but that topic's events waits in the spool", is_alone);
    rule(&["--remove", "--force"], &[&denied[..], &of_topic].concat());
    rig.recover();
    rig.must_have_spooled();
    for rule_of_cluster in [allowed, denied] {
        rule(&["--remove", "--force"], &[&rule_of_cluster[..], &["--cluster"]].concat());
    }
    rig.conclude(RULES)
}

/// Too large for its topic is trouble of the record: it goes to the dead letters, and the others pass.
pub fn small_max_message_bytes(stage: &Stage<'_>) -> Outcome {
    const LARGE: usize = 5;
    let mut rig = Rig::start(stage, Setup::default());
    let topic = rig.topic(MAIN);
    let small =
        ["--alter", "--entity-type", "topics", "--entity-name", &topic, "--add-config", "max.message.bytes=20000"];
    rig.cluster.tool("configs", &small);
    for _ in 0..LARGE {
        let is_taken = rig.client.post_large(60_000);
        rig.must("an event that is too large for its topic is answered 200", is_taken);
        rig.run_for(Duration::from_millis(500));
    }
    rig.run_for_seconds(3);
    rig.recover();
    rig.must_count("dead_letters_total", r#"to="topic""#);
    let outcome = rig.conclude(Rules { dead_letters: true, ..RULES });
    let found = outcome.verdict.dead_letters;
    outcome.and_must(&format!("each of the {LARGE} large events is a dead letter ({found})"), found >= LARGE)
}

/// The other topics' events go straight to Kafka while one topic is in trouble.
fn must_flow_meanwhile(rig: &mut Rig<'_>) {
    let published = |rig: &Rig<'_>| {
        let label = r#"action="thread_tagged",outcome="published""#;
        rig.reading(0).map_or(0.0, |reading| reading.sum("events_total", label))
    };
    let before = published(rig);
    rig.run_for_seconds(6);
    let after = published(rig);
    rig.must(&format!("the events of other topics are published meanwhile ({before} to {after})"), after > before);
}
