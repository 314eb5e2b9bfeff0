//! Webhooks through the real relay to the real Kafka, and what stands there.

use std::collections::HashMap;
use std::process::{Command, Stdio};

use crate::support::kafka::{Kafka, Message};
use crate::support::relay::{Relay, SECRET};
use crate::support::{chat_id, data, http, incoming_event, kafka, with_secret};

/// The records of one key on a topic.
fn records(kafka: &Kafka, topic: &str, key: &str) -> Vec<Message> {
    kafka.read_all(&[topic]).into_iter().filter(|m| m.key.as_deref() == Some(key.as_bytes())).collect()
}

fn text(message: &Message) -> &str {
    std::str::from_utf8(&message.value).expect("text")
}

#[test]
fn a_verified_webhook_is_on_its_topic_when_200_is_answered() {
    let Some(kafka) = kafka::shared_or_skip() else { return };
    let relay = Relay::start(kafka.bootstrap(), &[]);
    let chat = chat_id();

    let answer = http::post(relay.webhooks, incoming_event(&chat, 1));

    assert_eq!((answer.status, answer.body.as_str()), (200, ""), "{}", relay.log());
    let found = records(kafka, "livechat.incoming_event", &chat);
    assert_eq!(found.len(), 1);
    assert!(text(&found[0]).ends_with(&format!(r#","data":{}}}"#, data(&chat, 1))), "{}", text(&found[0]));
    assert_eq!(found[0].headers, [("content-type".to_owned(), b"application/cloudevents+json".to_vec())]);
}

#[test]
fn every_sample_arrives_byte_for_byte_on_the_topic_of_its_current_name() {
    let Some(kafka) = kafka::shared_or_skip() else { return };
    let relay = Relay::start(kafka.bootstrap(), &[]);
    let seed = u64::from(uuid::Uuid::now_v7().as_fields().1) << 8 | 1;
    let samples = livechat_relay::samples::traffic::one_of_each(seed);

    for sample in &samples {
        let answer = http::post(relay.webhooks, sample.body(SECRET));
        assert_eq!(answer.status, 200, "{}: {}", sample.action(), answer.body);
    }

    let topics = kafka.topics();
    // Another test may have switched on App Webhooks, whose topics are there then.
    let is_actions = |topic: &&str| topic.starts_with("livechat.") && !topic.starts_with("livechat.app.");
    let topics: Vec<&str> = topics.iter().map(String::as_str).filter(is_actions).collect();
    assert_eq!(topics.len(), 48, "{topics:?}");
    let found = kafka.read_all(&topics);
    let by_data: HashMap<&str, &Message> =
        found.iter().filter_map(|m| Some((text(m).split_once(r#","data":"#)?.1.strip_suffix('}')?, m))).collect();
    for sample in &samples {
        let record = by_data.get(sample.data()).unwrap_or_else(|| panic!("{} has not arrived", sample.action()));
        let current = livechat_relay::event::actions::find(sample.action()).expect("a known action").name;
        assert_eq!(record.topic, format!("livechat.{current}"));
        if let Some(chat) = sample.chat_id().filter(|_| !matches!(sample.action(), "access_granted" | "access_revoked"))
        {
            assert_eq!(record.key.as_deref(), Some(chat.as_bytes()), "{}", sample.action());
        }
        assert!(!text(record).contains(SECRET) && !text(record).contains("secret_key"));
    }
}

#[test]
fn in_binary_mode_the_value_is_data_and_the_attributes_are_headers() {
    let Some(kafka) = kafka::shared_or_skip() else { return };
    let relay = Relay::start(kafka.bootstrap(), &[("events.mode", "\"binary\"")]);
    let chat = chat_id();
    let trace = "traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\r\nconnection: close\r\n";

    let answer = http::raw(relay.webhooks, http::request("/webhooks/default", trace, incoming_event(&chat, 1)));

    assert_eq!(answer.expect("an answer").status, 200);
    let found = records(kafka, "livechat.incoming_event", &chat);
    assert_eq!(text(&found[0]), data(&chat, 1));
    let header = |name: &str| found[0].headers.iter().find(|(n, _)| n == name).map(|(_, v)| String::from_utf8_lossy(v));
    assert_eq!(header("content-type").as_deref(), Some("application/json"));
    assert_eq!(header("ce_specversion").as_deref(), Some("1.0"));
    assert_eq!(header("ce_type").as_deref(), Some("com.livechat.incoming_event"));
    assert_eq!(header("ce_chatid").as_deref(), Some(chat.as_str()));
    assert_eq!(header("traceparent").as_deref(), Some("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"));
}

#[test]
fn routes_of_their_own_are_followed_and_the_dropped_are_answered_200() {
    let Some(kafka) = kafka::shared_or_skip() else { return };
    let routes = [("topics.actions", r#"{ incoming_event = "our.chats", thread_tagged = "drop" }"#)];
    let relay = Relay::start(kafka.bootstrap(), &routes);
    let chat = chat_id();

    assert_eq!(http::post(relay.webhooks, incoming_event(&chat, 1)).status, 200);
    let tagged = data(&chat, 2).replace("incoming_event", "thread_tagged");
    assert_eq!(http::post(relay.webhooks, with_secret(&tagged, SECRET)).status, 200);
    let unknown = data(&chat, 3).replace("incoming_event", "chat_reincarnated");
    assert_eq!(http::post(relay.webhooks, with_secret(&unknown, SECRET)).status, 200);

    assert_eq!(records(kafka, "our.chats", &chat).len(), 1);
    assert_eq!(records(kafka, "livechat.thread_tagged", &chat).len(), 0);
    assert_eq!(relay.metric(r#"livechat_relay_events_total{action="thread_tagged",outcome="dropped"}"#), 1.0);
    let unlisted = records(kafka, "livechat.unlisted", "org-of-the-tests");
    assert!(unlisted.iter().any(|m| text(m).contains(&chat) && text(m).contains("com.livechat.chat_reincarnated")));
}

#[test]
fn topics_are_created_as_configured() {
    let Some(kafka) = kafka::shared_or_skip() else { return };
    let prefix = format!("created-{}.", chat_id());
    let quoted = format!("{prefix:?}");
    let settings = [
        ("topics.prefix", quoted.as_str()),
        ("topics.partitions", "2"),
        ("topics.settings", r#"{ "retention.ms" = "3600000" }"#),
    ];

    let relay = Relay::start(kafka.bootstrap(), &settings).ready();

    let created: Vec<_> = kafka.topics().into_iter().filter(|topic| topic.starts_with(&prefix)).collect();
    assert_eq!(created.len(), 48);
    let topic = format!("{prefix}incoming_event");
    assert_eq!(kafka.partitions(&topic), 2);
    assert_eq!(kafka.setting(&topic, "retention.ms"), "3600000");
    assert_eq!(kafka.setting(&topic, "max.message.bytes"), "3145728");
    drop(relay);
}

#[test]
fn a_topic_that_is_too_small_for_the_largest_event_ends_the_start() {
    let Some(kafka) = kafka::shared_or_skip() else { return };
    let small = format!("small-{}", chat_id());
    kafka.create_topic(&small, 1, &[("max.message.bytes", "2113535")]);
    let routes = format!(r#"{{ incoming_event = "{small}" }}"#);
    let mut relay = Relay::spawn(kafka.bootstrap(), &[("topics.actions", &routes)], &[], &[]);
    assert_eq!(relay.end().code(), Some(1), "{}", relay.log());
    let why = format!("{small} accepts records of 2113535 bytes at most; the relay may send records of 2113536 bytes");
    assert!(relay.has_logged(&why), "{}", relay.log());
}

#[test]
fn the_largest_event_is_taken_whatever_it_holds() {
    let Some(kafka) = kafka::shared_or_skip() else { return };
    let relay = Relay::start(kafka.bootstrap(), &[("kafka.compression", "\"none\"")]);
    let chat = chat_id();
    let room = (2 << 20) - incoming_event(&chat, 1).len() - r#""filler":"","#.len();
    let filler: String = (0..room)
        .map(|i| char::from(b'!' + (i * 7 % 60) as u8))
        .map(|c| if matches!(c, '"' | '\\') { 'q' } else { c })
        .collect();
    let large = data(&chat, 1).replacen('{', &format!(r#"{{"filler":"{filler}","#), 1);
    let body = with_secret(&large, SECRET);
    assert_eq!(body.len(), 2 << 20);

    assert_eq!(http::post(relay.webhooks, &body).status, 200, "{}", relay.log());

    let found = records(kafka, "livechat.incoming_event", &chat);
    assert!(text(&found[0]).ends_with(&format!(r#","data":{large}}}"#)));
    assert_eq!(http::post(relay.webhooks, body.replacen("filler", "fillers", 1)).status, 413);
}

#[test]
fn a_key_has_the_partition_that_a_java_producer_gives_it() {
    let Some(kafka) = kafka::shared_or_skip() else { return };
    let relay = Relay::start(kafka.bootstrap(), &[]);
    let chats: Vec<String> = (0..60).map(|_| chat_id()).collect();
    for chat in &chats {
        assert_eq!(http::post(relay.webhooks, incoming_event(chat, 1)).status, 200);
    }
    let partition_count = kafka.partitions("livechat.incoming_event");
    let java = format!("java-{}", chat_id());
    kafka.create_topic(&java, partition_count, &[]);

    let lines: String = chats.iter().map(|chat| format!("{chat}\tx\n")).collect();
    let mut producer = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/kafka.sh"))
        .args(["tool", "console-producer", "--bootstrap-server", kafka.bootstrap(), "--topic", &java])
        .args(["--reader-property", "parse.key=true"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .expect("Kafka's console producer");
    std::io::Write::write_all(&mut producer.stdin.take().expect("a pipe"), lines.as_bytes()).expect("written");
    assert!(producer.wait().expect("a child").success());

    let by_key = |topic: &str| -> HashMap<Vec<u8>, i32> {
        kafka.read_all(&[topic]).into_iter().filter_map(|m| Some((m.key?, m.partition))).collect()
    };
    let (ours, javas) = (by_key("livechat.incoming_event"), by_key(&java));
    assert_eq!(javas.len(), chats.len());
    for (key, partition) in &javas {
        assert_eq!(ours.get(key), Some(partition), "{}", String::from_utf8_lossy(key));
    }
    assert!(javas.values().collect::<std::collections::HashSet<_>>().len() > 1, "one partition proves nothing");
}

#[test]
fn the_events_of_a_chat_stand_in_the_order_of_their_answers() {
    let Some(kafka) = kafka::shared_or_skip() else { return };
    let relay = Relay::start(kafka.bootstrap(), &[]);
    let chats: Vec<String> = (0..4).map(|_| chat_id()).collect();

    std::thread::scope(|scope| {
        for chat in &chats {
            scope.spawn(|| {
                let mut connection = http::connect(relay.webhooks);
                for n in 0..100 {
                    let request = http::request("/webhooks", "", incoming_event(chat, n));
                    std::io::Write::write_all(&mut connection, &request).expect("written");
                    assert_eq!(http::read(&mut connection).expect("an answer").status, 200);
                }
            });
        }
    });

    for chat in &chats {
        let found = records(kafka, "livechat.incoming_event", chat);
        let order: Vec<_> = found.iter().map(|m| text(m).split_once(r#","data":"#).expect("data").1).collect();
        let expected: Vec<_> = (0..100).map(|n| format!("{}}}", data(chat, n))).collect();
        assert_eq!(order, expected);
    }
}
