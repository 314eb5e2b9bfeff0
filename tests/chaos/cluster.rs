//! The Kafka that all scenarios share, one after another: three nodes, two in-sync replicas wanted, and a second way in, with a
//! user's name and through proxies, for the scenarios that cut lines and take rights away.

use std::process::{Command, Stdio};

use crate::proxy::{Line, Proxy};
use crate::support::kafka::{Kafka, Message, free_port};

pub const NODES: usize = 3;

/// Who the relay is on the second way in. Everybody else is anonymous, and may do everything.
pub const USER: &str = "relay";

pub struct Cluster {
    pub kafka: Kafka,
    pub proxies: Vec<Proxy>,
}

impl Cluster {
    pub fn start() -> Self {
        let ports: Vec<u16> = (0..NODES).map(|_| free_port()).collect();
        let proxies: Vec<Proxy> = ports.iter().map(|port| Proxy::start(*port)).collect();
        let kafka = Kafka::start_each(NODES, |node| properties(ports[node], proxies[node].port));
        Self { kafka, proxies }
    }

    /// The second way in.
    pub fn proxied(&self) -> String {
        let addresses: Vec<_> = self.proxies.iter().map(|proxy| format!("127.0.0.1:{}", proxy.port)).collect();
        addresses.join(",")
    }

    /// The settings of a relay that takes the second way in.
    pub fn as_user() -> (&'static str, String) {
        let properties = format!(
            r#"{{ "security.protocol" = "sasl_plaintext", "sasl.mechanism" = "PLAIN", "sasl.username" = "{USER}", "sasl.password" = "open" }}"#
        );
        ("kafka.properties", properties)
    }

    pub fn set_lines(&self, line: Line) {
        self.proxies.iter().for_each(|proxy| proxy.set(line));
    }

    pub fn freeze(&self) {
        (0..NODES).for_each(|node| self.kafka.pause(node));
    }

    /// A console tool of Kafka's, for what librdkafka has no call for.
    pub fn tool(&self, name: &str, arguments: &[&str]) {
        let done = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/kafka.sh"))
            .args(["tool", name, "--bootstrap-server", self.kafka.bootstrap()])
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .expect("scripts/kafka.sh can be run");
        assert!(done.status.success(), "{name} {arguments:?}: {}", String::from_utf8_lossy(&done.stderr));
    }

    /// All that a scenario's topics hold.
    pub fn collect(&self, prefix: &str) -> Vec<Message> {
        let topics = self.topics(prefix);
        self.kafka.read_all(&topics.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// Mends everything, and removes the topics of the scenario before, so that each finds the cluster as the first did.
    pub fn repair(&self, prefix: &str) {
        self.set_lines(Line::Forward);
        self.kafka.resume_all();
        self.kafka.spawn_all();
        self.kafka.settle();
        self.topics(prefix).iter().for_each(|topic| self.kafka.delete_topic(topic));
    }

    fn topics(&self, prefix: &str) -> Vec<String> {
        self.kafka.topics().into_iter().filter(|topic| topic.starts_with(prefix)).collect()
    }
}

fn properties(port: u16, proxy: u16) -> Vec<(String, String)> {
    let set = [
        ("min.insync.replicas", "2".to_owned()),
        (
            "listeners",
            format!(
                "PLAINTEXT://127.0.0.1:BROKER_PORT,CONTROLLER://127.0.0.1:CONTROLLER_PORT,RELAY://127.0.0.1:{port}"
            ),
        ),
        ("advertised.listeners", format!("PLAINTEXT://127.0.0.1:BROKER_PORT,RELAY://127.0.0.1:{proxy}")),
        ("listener.security.protocol.map", "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,RELAY:SASL_PLAINTEXT".to_owned()),
        ("listener.name.relay.sasl.enabled.mechanisms", "PLAIN".to_owned()),
        (
            "listener.name.relay.plain.sasl.jaas.config",
            format!("org.apache.kafka.common.security.plain.PlainLoginModule required user_{USER}=\"open\";"),
        ),
        ("authorizer.class.name", "org.apache.kafka.metadata.authorizer.StandardAuthorizer".to_owned()),
        ("super.users", "User:ANONYMOUS".to_owned()),
        ("allow.everyone.if.no.acl.found", "true".to_owned()),
    ];
    set.map(|(name, value)| (name.to_owned(), value)).to_vec()
}
