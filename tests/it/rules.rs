//! `[[rules]]` in a running relay: what is published where, what is not, and what is counted.

use std::time::Duration;

use jiff::Timestamp;

use crate::support::mock::Mock;
use crate::support::relay::{Relay, SECRET, configuration};
use crate::support::{chat_id, data, http, incoming_event, with_secret};

fn start(mock: &Mock, rules: &str) -> Relay {
    // The mock does not answer what the topics' settings are; so long a start waits for that.
    let settings = [("kafka.start_timeout", "\"1s\""), ("rules", rules)];
    Relay::start(&mock.bootstrap(), &settings).ready()
}

#[test]
fn the_first_rule_decides_where_an_event_goes_and_every_one_is_answered_200() {
    let mock = Mock::start();
    mock.0.create_topic("quarantine", 1, 1).expect("a topic");
    let [flood, poison, tenant, other] = [(); 4].map(|()| chat_id());
    let rules = format!(
        r#"
        [[rules]]
        name = "flood"
        chat = "{flood}"
        action = "incoming_event"
        do = "drop"
        [[rules]]
        name = "poison"
        chat = ["{poison}", "{flood}"]
        do = "dead-letter"
        [[rules]]
        name = "tenant"
        organization = "org-of-the-poisoned"
        do = "topic"
        topic = "quarantine"
        "#
    );
    let mut relay = start(&mock, &rules);
    for rule in ["flood", "poison", "tenant"] {
        assert!(relay.await_log(&format!(r#""rule":"{rule}""#)).contains("a rule is active"));
    }
    let post = |body: String| assert_eq!(http::post(relay.webhooks, body).status, 200);
    let tagged = |chat: &str| with_secret(&data(chat, 1).replace("incoming_event", "thread_tagged"), SECRET);
    post(incoming_event(&flood, 1));
    post(incoming_event(&flood, 1)); // a retry of what was dropped
    post(tagged(&flood));
    post(incoming_event(&poison, 1));
    post(incoming_event(&poison, 1)); // a retry of what is a dead letter
    post(incoming_event(&tenant, 1).replace("org-of-the-tests", "org-of-the-poisoned"));
    post(incoming_event(&other, 1));

    let keys = |topic: &str| -> Vec<String> {
        let keys = mock.read(topic).into_iter().filter_map(|message| message.key);
        keys.map(|key| String::from_utf8_lossy(&key).into_owned()).collect()
    };
    assert_eq!(keys("livechat.incoming_event"), [other]);
    assert_eq!(keys("quarantine"), [tenant]);
    assert_eq!(keys("livechat.dead-letter"), [flood, poison.clone()]);
    let letters = mock.read("livechat.dead-letter");
    let header = |name: &str| {
        let text = letters[1].headers.iter().find(|(of, _)| of == name).map(|(_, text)| text.clone());
        String::from_utf8(text.unwrap_or_default()).expect("text")
    };
    let headers = ["dead-letter-topic", "dead-letter-reason", "dead-letter-error"].map(header);
    assert_eq!(headers, ["livechat.incoming_event", "rule", "poison"]);
    assert!(String::from_utf8_lossy(&letters[1].value).ends_with(&format!(r#","data":{}}}"#, data(&poison, 1))));

    for (series, value) in [
        (r#"livechat_relay_rule_matches_total{rule="flood"}"#, 2.0),
        (r#"livechat_relay_rule_matches_total{rule="poison"}"#, 3.0),
        (r#"livechat_relay_rule_matches_total{rule="tenant"}"#, 1.0),
        (r#"livechat_relay_events_total{action="incoming_event",outcome="dropped"}"#, 2.0),
        (r#"livechat_relay_events_total{action="incoming_event",outcome="dead_lettered"}"#, 1.0),
        (r#"livechat_relay_events_total{action="incoming_event",outcome="duplicate"}"#, 1.0),
        (r#"livechat_relay_dead_letters_total{reason="rule",to="topic"}"#, 2.0),
    ] {
        assert_eq!(relay.metric(series), value, "{series}");
    }
}

#[test]
fn a_sample_keeps_the_same_chats_on_every_replica() {
    let mock = Mock::start();
    let rules = "[[rules]]\nname = \"sample\"\naction = \"thread_tagged\"\ndo = \"sample\"\nrate = 4\n";
    let chats: Vec<_> = (0..40).map(|n| format!("CHAT{n}")).collect();
    let replicas = [(), ()].map(|()| start(&mock, rules));
    for (replica, chat) in replicas.iter().flat_map(|replica| chats.iter().map(move |chat| (replica, chat))) {
        let tagged = with_secret(&data(chat, 1).replace("incoming_event", "thread_tagged"), SECRET);
        assert_eq!(http::post(replica.webhooks, tagged).status, 200);
    }
    let mut kept: Vec<_> = mock.read("livechat.thread_tagged").into_iter().map(|message| message.key).collect();
    kept.sort();
    assert!(kept.chunks(2).all(|pair| pair[0] == pair[1]), "both replicas keep a chat, or none does: {kept:?}");
    assert!((1..80).contains(&kept.len()), "{}", kept.len());
    let [one, other] = replicas.map(|replica| replica.metric(r#"livechat_relay_rule_matches_total{rule="sample"}"#));
    assert_eq!((one, other), (40.0, 40.0));
}

/// Its end comes while the relay runs.
#[test]
fn a_rule_past_its_end_is_as_if_it_were_not_there() {
    let mock = Mock::start();
    let chat = chat_id();
    let until = Timestamp::now() + Duration::from_secs(3);
    let rules = format!("[[rules]]\nname = \"short\"\nchat = \"{chat}\"\ndo = \"drop\"\nuntil = {until}\n");
    let relay = start(&mock, &rules);
    let (mut n, mut dropped) = (0, 0);
    let published = loop {
        n += 1;
        let began = Timestamp::now();
        assert_eq!(http::post(relay.webhooks, incoming_event(&chat, n)).status, 200);
        let is_dropped = relay.metric(r#"livechat_relay_rule_matches_total{rule="short"}"#) > f64::from(dropped);
        assert!(began < until || !is_dropped, "it began at {began}, the rule has ended at {until}");
        if !is_dropped {
            assert!(Timestamp::now() >= until);
            break n;
        }
        dropped += 1;
    };
    let found = mock.read("livechat.incoming_event");
    assert!(found.len() == 1 && String::from_utf8_lossy(&found[0].value).contains(&format!("T{chat}_{published}")));
}

#[test]
fn check_shows_the_rules_and_warns_of_one_that_has_ended() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    let rules = "[[rules]]\nname = \"now\"\nchat = \"C\"\ndo = \"drop\"\n[[rules]]\nname = \"past\"\nchat = \"C\"\ndo = \"drop\"\nuntil = 2026-01-01T00:00:00Z\n";
    std::fs::write(file.path(), configuration("localhost:1", &[("rules", rules)])).expect("written");
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_livechat-relay"));
    let output =
        command.args(["check", "--offline", "--config"]).arg(file.path()).output().expect("the relay's binary");
    let text = String::from_utf8_lossy(&output.stdout).split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(text.contains("ok rule now: events of chat C are dropped") && !text.contains("ok rule past"), "{text}");
    assert!(text.contains("warn dates rule past: its `until` has passed, so it can be removed"), "{text}");
    assert_eq!(output.status.code(), Some(0));
}
