//! librdkafka's mock cluster as a process, with every topic in it; it takes little CPU and keeps nothing for long.

use std::io::Read as _;

use rdkafka::mocking::MockCluster;

use crate::webhooks::{PARTITIONS, floor_topics, relay_topics};

/// Prints its address, and runs until standard input ends.
pub fn run() {
    let mock = MockCluster::new(1).expect("a mock cluster");
    for topic in relay_topics().into_iter().chain(floor_topics()) {
        mock.create_topic(&topic, PARTITIONS, 1).expect("a topic");
    }
    println!("{}", mock.bootstrap_servers());
    std::io::stdin().read_to_end(&mut Vec::new()).expect("standard input");
}
