//! A disk that hangs: what waits for it holds back nothing else, and is not lost where Kafka is available again first.

use crate::shim::{self, Knob, Shim};
use crate::support::mock::Mock;
use crate::support::relay::{Relay, await_that, free_address};
use crate::support::{chat_id, http, incoming_event};

const TOPIC: &str = "livechat.incoming_event";

/// Longer than any test.
const HANGS: i64 = 3_600_000;

struct Stage {
    mock: Mock,
    shim: Shim,
    relay: Relay,
    _directory: tempfile::TempDir,
}

impl Stage {
    /// A relay whose disk hangs from the beginning, or not yet.
    fn start(is_hung: bool) -> Option<Self> {
        if let Some(why) = shim::no_compiler() {
            assert!(std::env::var_os("CI").is_none(), "{why}");
            return None;
        }
        let (mock, directory) = (Mock::start(), tempfile::tempdir().expect("a directory"));
        let spool = directory.path().join("spool");
        let shim = Shim::new(&directory.path().join("shim"), &spool);
        shim.set(Knob::FsyncDelayMs, if is_hung { HANGS } else { 0 });
        let [webhooks, admin] = [free_address(), free_address()];
        let [path, listen, admin_listen] =
            [spool.display().to_string(), webhooks.to_string(), admin.to_string()].map(|text| format!("{text:?}"));
        let settings = [
            ("server.listen", &*listen),
            ("admin.listen", &*admin_listen),
            ("topics.create", "false"),
            ("kafka.start_timeout", "\"200ms\""),
            ("kafka.probe_interval", "\"200ms\""),
            ("kafka.publish_deadline", "\"500ms\""),
            ("server.body_timeout", "\"500ms\""),
            ("server.response_deadline", "\"4s\""),
            ("spool.failover_after", "\"1s\""),
            ("spool.directory", &*path),
        ];
        let env = shim.environment();
        let env: Vec<_> = env.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        // It says that it accepts webhooks when its spool is open, which takes until the disk answers.
        let mut relay = Relay::spawn(&mock.bootstrap(), &settings, &env, &[]);
        (relay.webhooks, relay.admin) = (webhooks, admin);
        await_that("it listens", || std::net::TcpStream::connect(admin).is_ok());
        await_that("Kafka is available", || relay.metric("livechat_relay_kafka_up") == 1.0);
        Some(Self { mock, shim, relay, _directory: directory })
    }

    fn post(&self, chat: &str) -> u16 {
        http::post(self.relay.webhooks, incoming_event(chat, 1)).status
    }

    fn readyz(&self) -> (u16, String) {
        let answer = http::get(self.relay.admin, "/readyz");
        (answer.status, answer.body)
    }

    fn accepts(&self) -> bool {
        self.relay.metric("livechat_relay_spool_accepting") == 1.0
    }

    /// Kafka and the disk hang, with an event in between.
    fn hang_with_an_event(&self) -> String {
        await_that("it is ready", || self.readyz().0 == 200 && self.accepts());
        let chat = chat_id();
        self.mock.freeze();
        self.shim.set(Knob::FsyncDelayMs, HANGS);
        assert_eq!(self.post(&chat), 503, "it is not durable");
        await_that("nothing is accepted", || {
            let (status, body) = self.readyz();
            status == 503 && body.contains("neither Kafka nor the spool accepts events") && !self.accepts()
        });
        chat
    }

    /// Its records, which have one id.
    fn published(&self, chat: &str) -> usize {
        let found = self.mock.read(TOPIC).into_iter().filter(|message| message.key.as_deref() == Some(chat.as_bytes()));
        let ids: Vec<_> = found.map(|message| id_of(&message.value)).collect();
        assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
        ids.len()
    }
}

fn id_of(event: &[u8]) -> String {
    let event: serde_json::Value = serde_json::from_slice(event).expect("JSON");
    event["id"].as_str().expect("an id").to_owned()
}

#[test]
fn an_event_that_hangs_in_the_disk_is_published_by_a_retry_when_kafka_is_available_first() {
    let Some(stage) = Stage::start(false) else { return };
    let chat = stage.hang_with_an_event();
    stage.mock.thaw();
    await_that("a retry is answered 200", || stage.post(&chat) == 200);
    assert!(!stage.accepts(), "its disk hangs all the while");
    assert_eq!(stage.relay.metric("livechat_relay_bytes_in_flight"), 0.0, "what hangs takes no memory of others");
    assert_eq!(stage.published(&chat), 1);

    stage.shim.set(Knob::FsyncDelayMs, 0);
    await_that("the first one is published, too", || stage.published(&chat) > 1);
    await_that("the spool accepts events again", || stage.accepts());
}

#[test]
fn an_event_that_hangs_in_the_disk_is_stored_when_that_answers_first() {
    let Some(stage) = Stage::start(false) else { return };
    let chat = stage.hang_with_an_event();
    stage.shim.set(Knob::FsyncDelayMs, 0);
    await_that("a retry is answered 200", || stage.post(&chat) == 200);
    stage.mock.thaw();
    await_that("it is published", || stage.published(&chat) > 0);
}

#[test]
fn a_relay_that_starts_on_a_disk_that_hangs_publishes_what_comes_and_is_ready() {
    let Some(stage) = Stage::start(true) else { return };
    let chat = chat_id();
    await_that("it is answered 200", || stage.post(&chat) == 200);
    await_that("it is ready", || stage.readyz().0 == 200);
    assert!(!stage.accepts() && stage.published(&chat) == 1);
    stage.shim.set(Knob::FsyncDelayMs, 0);
    await_that("the spool is open", || stage.accepts());
}
