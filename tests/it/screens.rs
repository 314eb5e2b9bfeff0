//! What a person sees of `demo` and `tail`: events, what is refused, what was read, and what to do next.

use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::commands::{configuration, relay, stderr, stdout};
use crate::support::relay::Relay;
use crate::support::{chat_id, http, incoming_event, kafka};

/// How long a line may take. A mock Kafka and a relay have to start before the first.
const DEADLINE: Duration = Duration::from_secs(60);

/// A command that runs, and the lines that it prints.
struct Running {
    child: Child,
    lines: Receiver<String>,
    text: String,
}

impl Running {
    fn start(arguments: &[&str], is_stderr: bool) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_livechat-relay"));
        let (out, err) = if is_stderr { (Stdio::null(), Stdio::piped()) } else { (Stdio::piped(), Stdio::inherit()) };
        let mut child = command.args(arguments).stdout(out).stderr(err).spawn().expect("the relay's binary");
        let (sender, lines) = sync_channel(1000);
        let pipe: Box<dyn std::io::Read + Send> = match (child.stdout.take(), child.stderr.take()) {
            (Some(out), _) => Box::new(out),
            (None, err) => Box::new(err.expect("a pipe")),
        };
        std::thread::spawn(move || {
            BufReader::new(pipe).lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
        });
        Self { child, lines, text: String::new() }
    }

    /// Waits until a phrase has been printed so often.
    fn wait_for(&mut self, phrase: &str, times: usize) {
        let until = Instant::now() + DEADLINE;
        while self.text.matches(phrase).count() < times {
            let left = until.saturating_duration_since(Instant::now());
            let line = self.lines.recv_timeout(left);
            let line = line.unwrap_or_else(|error| panic!("no `{phrase}`, {error}, in:\n{}", self.text));
            self.text += &format!("{line}\n");
        }
    }

    /// Sends SIGINT, as Ctrl-C does, and waits for the end; whether it was a success, and all that was printed.
    fn interrupt(mut self) -> (bool, String) {
        kill_process(Pid::from_child(&self.child), Signal::INT).expect("a process of ours");
        self.text.extend(self.lines.iter().map(|line| line + "\n")); // up to the end of the process
        (self.child.wait().expect("a child").success(), std::mem::take(&mut self.text))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill(); // it may have ended
        let _ = self.child.wait();
    }
}

fn between<'t>(text: &'t str, before: &str, after: &str) -> &'t str {
    let rest = text.split_once(before).unwrap_or_else(|| panic!("no `{before}` in:\n{text}")).1;
    rest.split_once(after).unwrap_or_else(|| panic!("no `{after}` in:\n{text}")).0
}

#[test]
fn the_demo_sends_all_and_finds_all_and_shows_a_whole_event() {
    let output = relay(&["demo", "--once", "--port", "0", "--metrics-port", "0"]);
    let text = stdout(&output);
    assert!(output.status.success(), "{text}{}", stderr(&output));
    let sent = livechat_relay::samples::traffic::actions().count();
    let counts =
        format!("{sent} webhooks sent, {sent} answered 200; {sent} events in 46 topics.\nTheir data is byte for byte");
    assert!(text.contains(&counts), "{text}");
    assert!(!text.contains('\x1b'), "colours are for terminals");
    let too_wide = text.lines().find(|line| console::measure_text_width(line) > 80);
    assert_eq!(too_wide, None, "{text}");

    let place = between(&text, "\ntopic livechat.incoming_event, partition ", "\n{\n");
    assert!(place.ends_with(", offset 0\nkey 1HHJIF3YAF\nheader content-type: application/cloudevents+json"), "{text}");
    let record = between(&text, "\nheader content-type: application/cloudevents+json\n", "\n\n");
    let record: Value = serde_json::from_str(record).expect("the value is JSON");
    assert_eq!(record["type"], "com.livechat.incoming_event");
    assert_eq!((&record["partitionkey"], &record["data"]["secret_key"]), (&record["chatid"], &Value::Null));
}

#[test]
fn the_demo_shows_what_to_try_and_all_that_is_refused_and_ends_with_a_sum() {
    let mut demo = Running::start(&["demo", "--port", "0", "--metrics-port", "0"], false);
    demo.wait_for("Ctrl-C stops the demo.", 1);
    let screen = demo.text.rsplit("webhooks sent").next().expect("a summary").lines().count();
    assert!(screen <= 23, "{screen} lines do not fit on a screen");

    let webhooks: SocketAddr = between(&demo.text, "  curl -i ", "/webhooks -H").parse().expect("an address");
    let body = between(&demo.text, " -d '", "'\n").to_owned();
    let metrics: SocketAddr = between(&demo.text, "Metrics   http://", "/metrics\n").parse().expect("an address");
    assert_eq!(http::get(metrics, "/metrics").status, 200);
    assert_eq!(http::post(webhooks, &body).status, 200);
    demo.wait_for("“Hello, Kafka”", 1);
    for _ in 0..2 {
        assert_eq!(http::post(webhooks, body.replace("demo-secret-key", "x")).status, 401);
    }
    demo.wait_for("refused 401  /webhooks: unauthorized; the secret_key is not the demo", 2);
    assert_eq!(http::post_to(webhooks, "/webhooks/other", &body).status, 401);
    demo.wait_for("refused 401  /webhooks/other: unauthorized; the demo has one app", 1);
    assert_eq!(http::post_to(webhooks, "/webhook", &body).status, 404);
    demo.wait_for("refused 404  /webhook: not found; POST webhooks to", 1);
    assert_eq!(http::get(webhooks, "/webhooks").status, 405);
    demo.wait_for("refused 405  /webhooks: GET is not allowed", 1);
    assert_eq!(http::post(webhooks, "{").status, 400);
    demo.wait_for("refused 400  /webhooks: ", 1);
    let form = "POST /webhooks HTTP/1.1\r\nhost: relay\r\ncontent-type: text/plain\r\ncontent-length: 0\r\n\r\n";
    assert_eq!(http::raw(webhooks, form).expect("an answer").status, 415);
    demo.wait_for("refused 415  /webhooks: Content-Type is text/plain;", 1);

    let sent = livechat_relay::samples::traffic::actions().count() + 1;
    let tail = format!("{} tail --brokers ", env!("CARGO_BIN_EXE_livechat-relay"));
    let tail = format!("{tail}{} --count {sent}", between(&demo.text, &format!("  {tail}"), "\n"));
    let output = Command::new("sh").args(["-c", &tail]).output().expect("a shell");
    assert!(output.status.success(), "{tail}: {}", stderr(&output));
    assert_eq!(stdout(&output).lines().count(), sent, "{tail}");

    let (is_success, text) = demo.interrupt();
    assert!(is_success, "{text}");
    assert!(text.ends_with(&format!("\nStopped: {sent} events published, 7 requests refused.\n")), "{text}");
}

#[test]
fn a_demo_that_is_to_run_once_fails_if_it_is_interrupted_before_its_summary() {
    let mut demo = Running::start(&["demo", "--once", "--port", "0", "--metrics-port", "0"], false);
    demo.wait_for("agent_created", 1);
    let (is_success, text) = demo.interrupt();
    // It may have got to its end before the signal.
    assert_eq!(is_success, text.contains("webhooks sent, "), "{text}");
}

#[test]
fn a_port_of_the_demo_that_is_taken_is_named_with_its_option() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("an address").port().to_string();
    for option in ["--port", "--metrics-port"] {
        let output = relay(&["demo", "--once", option, &port]);
        assert_eq!(output.status.code(), Some(1));
        let expected = format!("choose another port with {option}, or any free one with {option} 0");
        assert!(stderr(&output).contains(&expected), "{}", stderr(&output));
    }
}

#[test]
fn tail_prints_what_it_is_asked_for() {
    let Some(kafka) = kafka::shared_or_skip() else { return };
    let source = Relay::start(kafka.bootstrap(), &[]);
    let chat = chat_id();
    for n in 0..3 {
        assert_eq!(http::post(source.webhooks, incoming_event(&chat, n)).status, 200);
    }
    let tail = ["tail", "--brokers", kafka.bootstrap(), "--from-beginning", "--count", "3", "--chat", &chat];

    let output = relay(&[&tail[..], &["--json"]].concat());
    assert!(output.status.success(), "{}", stderr(&output));
    let events: Vec<Value> = stdout(&output).lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(events.len(), 3);
    assert_eq!(events[0]["topic"], "livechat.incoming_event");
    assert_eq!(
        (&events[0]["key"], &events[0]["attributes"]["chatid"]),
        (&Value::from(chat.clone()), &Value::from(chat.clone()))
    );
    assert_eq!(events[2]["data"]["payload"]["event"]["text"], "Grüße \"2\" 🚀");

    let only = ["--topic", "livechat.incoming_event", "--action", "incoming_event"];
    let output = relay(&[&tail[..], &only[..]].concat());
    let (text, said) = (stdout(&output), stderr(&output));
    assert_eq!(text.lines().count(), 3);
    assert!(text.contains(&chat) && text.contains("“Grüße \"1\" 🚀”"), "{text}");
    assert!(said.contains(&format!("reading 1 topic from {}, from the oldest", kafka.bootstrap())), "{said}");
    assert!(said.contains(" records read, 3 shown"), "{said}");
}

#[test]
fn tail_passes_over_what_is_no_event_and_counts_it() {
    let Some(kafka) = kafka::shared_or_skip() else { return };
    let topic = format!("foreign.{}", chat_id());
    kafka.create_topic(&topic, 1, &[]);
    let producer = ClientConfig::new().set("bootstrap.servers", kafka.bootstrap()).create();
    let producer: BaseProducer = producer.expect("a client");
    let tombstone = BaseRecord::<str, [u8]>::to(&topic).key("k");
    let foreign =
        [&br#"{"specversion":1,"data":2}"#[..], b"\xff", b"{"].map(|value| BaseRecord::to(&topic).payload(value));
    let header = |headers: OwnedHeaders, (key, value)| headers.insert(Header { key, value: Some(value) });
    let headers = [("ce_specversion", "1.0"), ("ce_type", "com.livechat.incoming_event"), ("ce_chatid", "C1")];
    let headers = headers.into_iter().fold(OwnedHeaders::new(), header);
    let binary = BaseRecord::to(&topic).payload(&br#"{"payload":{"event":{"text":"Hi"}}}"#[..]).headers(headers);
    for record in [tombstone].into_iter().chain(foreign).chain([binary]) {
        producer.send(record).map_err(|(error, _)| error).expect("it is queued");
    }
    producer.flush(DEADLINE).expect("all are acked");

    let tail = ["tail", "--brokers", kafka.bootstrap(), "--topic", &topic, "--from-beginning", "--count", "1"];
    let output = relay(&tail);
    let (text, said) = (stdout(&output), stderr(&output));
    assert!(text.lines().count() == 1 && text.contains(&format!("incoming_event ({topic})")), "{text}");
    assert!(text.contains("C1          “Hi”"), "{text}");
    assert!(said.ends_with("\n5 records read, 1 shown; no events of the relay: 4\n"), "{said}");

    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let mut closed = Command::new(env!("CARGO_BIN_EXE_livechat-relay"));
    let output = closed.args(tail).arg("--json").stdout(writer).output().expect("the relay's binary");
    assert!(output.status.success() && !stderr(&output).contains("error"), "{}", stderr(&output));

    let mut waiting = Running::start(&["tail", "--brokers", kafka.bootstrap(), "--topic", &topic], true);
    waiting.wait_for("new events only", 1);
    let (is_success, said) = waiting.interrupt();
    assert!(is_success, "{said}");
    assert!(said.ends_with("\n0 records read, 0 shown\n"), "{said}");
}

#[test]
fn tail_says_what_is_wrong() {
    let Some(kafka) = kafka::shared_or_skip() else { return };
    let topic = format!("wrong.{}.incoming_event", chat_id());
    kafka.create_topic(&topic, 1, &[]);
    let typo = topic.replace("incoming_event", "incoming_evnt");
    let nowhere = relay(&["tail", "--brokers", kafka.bootstrap(), "--topic", &typo, "--action", "incoming_chta"]);
    let said = stderr(&nowhere);
    assert_eq!(nowhere.status.code(), Some(1));
    assert!(said.contains(&format!("there is no topic `{typo}`; did you mean `{topic}`?")), "{said}");
    assert!(
        said.contains("warning: this version knows no action `incoming_chta`; did you mean `incoming_chat`?"),
        "{said}"
    );

    let file = configuration("127.0.0.1:1", "");
    let away = relay(&["tail", "--config", file.path().to_str().expect("a path")]);
    let said = stderr(&away);
    assert_eq!(away.status.code(), Some(1));
    assert!(said.starts_with("connecting to 127.0.0.1:1\n"), "{said}");
    assert!(said.contains("no broker answers at 127.0.0.1:1: ") && said.contains("Connection refused;"), "{said}");
}
