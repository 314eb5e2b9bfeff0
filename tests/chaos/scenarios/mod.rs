//! The faults, each under load and each with what it must show: that the hard path was reached, and that it healed.

mod brokers;
mod disk;
mod livechat;
mod relays;
mod topics;

use crate::judge::{Order, Rules};
use crate::rig::{Outcome, Stage};

pub struct Scenario {
    pub name: &'static str,
    pub about: &'static str,
    selection: Selection,
    /// What this machine lacks for it, if anything.
    pub obstacle: fn() -> Option<String>,
    pub run: fn(&Stage<'_>) -> Outcome,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Selection {
    /// In the short one alone: the full one has a longer form of it.
    Short,
    Both,
    Full,
}

use Selection::{Both, Full, Short};

impl Scenario {
    /// Whether it is to run: by its name, or by its selection where no name was given.
    pub fn is_meant(&self, names: &[&str], is_full: bool) -> bool {
        let unwanted = if is_full { Short } else { Full };
        if names.is_empty() { self.selection != unwanted } else { names.contains(&self.name) }
    }
}

/// In the order they run.
#[rustfmt::skip] // a table
pub static SCENARIOS: &[Scenario] = &[
    new(Short, "relay_sigkill", "the relay is killed 5 times at random moments", |s| relays::sigkill(s, 5)),
    new(Full, "relay_sigkill_20", "the relay is killed 20 times at random moments", |s| relays::sigkill(s, 20)),
    new(Both, "sigkill_while_spooling", "the relay is killed while all brokers hang", relays::sigkill_while_spooling),
    new(Full, "sigkill_while_draining", "the relay is killed while it replays its spool", relays::sigkill_while_draining),
    new(Full, "second_relay_takes_over", "a second process gets the spool of the first, backlog included", relays::second_relay_takes_over),
    new(Full, "two_relays", "two relays, brokers hang, one relay is killed; order is judged for each relay", relays::two_relays),
    new(Both, "leader_sigkill", "the broker that leads is killed", brokers::leader_sigkill),
    new(Full, "no_quorum", "two of three brokers are killed for 90 s", brokers::no_quorum),
    new(Short, "brokers_frozen", "all brokers hang for 10 s", |s| brokers::frozen(s, 10)),
    new(Full, "brokers_frozen_30s", "all brokers hang for 30 s", |s| brokers::frozen(s, 30)),
    new(Full, "brokers_frozen_330s", "all brokers hang for 330 s, longer than any of librdkafka's patience", |s| { brokers::frozen(s, 330) }),
    new(Full, "rolling_restart", "the brokers restart one after another", brokers::rolling_restart),
    new(Full, "network_cut", "the lines to all brokers swallow everything for 40 s", brokers::network_cut),
    new(Full, "one_key_slow_line", "brokers with a round trip of 10 ms hang for 10 s, while one chat sends as fast as it can", brokers::one_key_slow_line),
    new(Short, "fresh_topics", "events come at once after the relay has made its topics, 3 times", |s| topics::fresh(s, 3)),
    new(Full, "fresh_topics_12", "events come at once after the relay has made its topics, 12 times", |s| topics::fresh(s, 12)),
    new(Both, "topic_deleted_and_recreated", "a topic is deleted, and made again later", topics::deleted_and_recreated),
    new(Full, "topic_acl_removed_and_restored", "the relay may not write to a topic for a while", topics::acl_removed_and_restored),
    new(Full, "topic_stuck_until_its_budget", "the relay may not write to a topic until its share of the spool is used up; then all brokers hang", topics::stuck_until_its_budget),
    new(Full, "topic_create_denied", "the relay may not create one of its topics, is killed, and then it may", topics::create_denied),
    new(Both, "topic_small_max_message_bytes", "a topic takes only small records; the others are dead letters", topics::small_max_message_bytes),
    with(Full, "disk_full", "brokers hang until the spool's disk is full", disk::no_tmpfs, disk::full),
    with(Full, "disk_full_for_good", "the spool's disk stays full while Kafka heals, and the relay is killed", disk::no_tmpfs, disk::full_for_good),
    with(Both, "disk_dead_for_good", "the spool's disk is never written again while Kafka heals, and the relay is killed", crate::shim::no_compiler, disk::dead_for_good),
    new(Full, "segment_unreadable", "a segment of the spool cannot be opened after a kill, while Kafka heals", disk::segment_unreadable),
    with(Both, "fsync_failing", "fsync fails with EIO while brokers hang", crate::shim::no_compiler, disk::fsync_failing),
    with(Full, "write_failing", "write fails with EIO while brokers hang", crate::shim::no_compiler, disk::write_failing),
    with(Both, "power_cut", "what was not fsynced is gone, four times, while brokers hang and after", crate::shim::no_compiler, disk::power_cut),
    with(Full, "clock_steps", "the clock leaps an hour ahead and two back while brokers hang", crate::shim::no_compiler, disk::clock_steps),
    new(Full, "livechat_key_rotated", "LiveChat sends while webhooks are registered again and the key is rotated; a broker and the relay are killed", livechat::key_rotated),
    new(Full, "directory_vanishes", "the spool directory is removed while brokers hang", disk::directory_vanishes),
];

/// Every fault here can leave a record unacked that the broker has: it is sent again, and there twice.
const RULES: Rules = Rules { duplicates: true, dead_letters: false, order: Order::Chat };

const fn new(
    selection: Selection,
    name: &'static str,
    about: &'static str,
    run: fn(&Stage<'_>) -> Outcome,
) -> Scenario {
    with(selection, name, about, || None, run)
}

const fn with(
    selection: Selection,
    name: &'static str,
    about: &'static str,
    obstacle: fn() -> Option<String>,
    run: fn(&Stage<'_>) -> Outcome,
) -> Scenario {
    Scenario { name, about, selection, obstacle, run }
}
