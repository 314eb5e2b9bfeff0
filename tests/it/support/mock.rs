//! librdkafka's mock cluster: brokers in this process that answer with any error they are told.

use std::time::Duration;

use rdkafka::mocking::MockCluster;
use rdkafka::producer::DefaultProducerContext;
use rdkafka::types::RDKafkaApiKey;

use super::kafka::{Kafka, Message};
use super::relay::{Relay, Settings};

pub struct Mock(pub MockCluster<'static, DefaultProducerContext>);

impl Mock {
    /// One broker, with every topic of the relay.
    pub fn start() -> Self {
        let mock = MockCluster::new(1).expect("a mock cluster");
        for topic in livechat_relay::event::actions::names().chain(["unlisted", "dead-letter"]) {
            mock.create_topic(&format!("livechat.{topic}"), 1, 1).expect("a topic");
        }
        // The mock's answer to a later version names the leader, and ends this process where there is none.
        mock.apiversion(RDKafkaApiKey::Produce, Some(0), Some(9)).expect("versions");
        Self(mock)
    }

    /// A relay that publishes here. The mock has the topics, and answers nothing that is asked about them.
    pub fn relay(&self, settings: Settings<'_>) -> Relay {
        let of_mock = [("topics.create", "false"), ("kafka.start_timeout", "\"200ms\"")];
        Relay::start(&self.bootstrap(), &[settings, &of_mock].concat()).ready()
    }

    pub fn bootstrap(&self) -> String {
        self.0.bootstrap_servers()
    }

    /// It answers no more, and keeps its connections. One that is down would lose its port to others.
    pub fn freeze(&self) {
        self.0.broker_round_trip_time(-1, Duration::from_secs(3600)).expect("the broker");
    }

    pub fn thaw(&self) {
        self.0.broker_round_trip_time(-1, Duration::ZERO).expect("the broker");
    }

    pub fn read(&self, topic: &str) -> Vec<Message> {
        Kafka::at(&self.bootstrap()).read_all(&[topic])
    }
}
