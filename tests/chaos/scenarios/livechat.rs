//! LiveChat's side: a simulated LiveChat sends, while registrations are applied and the secret key is rotated, and a broker and the relay die.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::client::{MAIN, Tally};
use crate::judge::Verdict;
use crate::metrics::Reading;
use crate::rig::{Outcome, Stage, borrowed, keep, prefix, settings};
use crate::support::kafka::{Message, free_port};
use crate::support::relay::{Relay, SECRET, configuration};
use crate::support::simulator::{self, Simulator};

const ACTIONS: [&str; 2] = ["incoming_chat", MAIN];

/// The name of the first secret key.
const FIRST_KEY: &str = "first";

/// Longer than LiveChat tries a delivery again, and than a command waits for what LiveChat shows late.
const PATIENCE: Duration = Duration::from_secs(120);

/// The pause after each event of the load.
const PACE: Duration = Duration::from_millis(20);

/// An event as LiveChat and Kafka both name it: the action, the chat and, of a message, the event.
type Name = (String, String, Option<String>);

pub fn key_rotated(stage: &Stage<'_>) -> Outcome {
    let place = Place::new(stage);
    let mut unmet = Vec::new();
    let mut must = |what: &str, is_so: bool| unmet.extend((!is_so).then(|| format!("not so: {what}")));
    let mut relay = Relay::start_as(&place.configure(""));
    must("the first registrations are made", place.command("webhooks apply --yes"));
    let load = Load::start(&place.livechat);
    thread::sleep(Duration::from_secs(1));

    // Other registrations, while a broker dies and comes back.
    let leader = stage.cluster.kafka.leader(&format!("{}{MAIN}", place.prefix), 0).expect("a leader");
    relay.configure(&place.configure(r#", filters = { source_type = ["my_client", "other_clients", "system"] }"#)); // all of them
    must("the relay takes the other configuration", place.command("reload"));
    let before = place.registered();
    stage.cluster.kafka.kill(leader);
    must("apply succeeds while a broker is dead", place.command("webhooks apply --yes"));
    let after = place.registered();
    must("each webhook is registered again", after.len() == 2 && after.is_disjoint(&before));
    stage.cluster.kafka.start_node(leader);

    // Another key, while the relay dies and comes back.
    let file = place.file.clone();
    let rotation = thread::spawn(move || (0..5).any(|_| has_run(&file, "webhooks rotate --yes")));
    must("a new key is written", until(|| place.keys().len() == 2));
    must("it is registered", until(|| place.registered().iter().any(|id| !after.contains(id))));
    relay.signal(Signal::KILL);
    relay.end();
    let log = relay.log();
    relay = Relay::start_as(&place.configuration());
    must("the rotation ends", rotation.join().expect("a thread that does not panic"));
    let keys = place.keys();
    must("the new key alone is left", keys.len() == 1 && keys[0] != FIRST_KEY);
    must("each webhook has it", place.registered().is_disjoint(&after) && place.registered().len() == 2);

    thread::sleep(Duration::from_secs(1));
    let sent = load.stop();
    must("LiveChat has all its answers", until(|| place.livechat.report()["pending"] == 0));
    must("the spool is empty at the end", until(|| Reading::of(place.admin).is_some_and(|r| r.spool_records() == 0.0)));
    stage.cluster.kafka.settle();
    let report = place.livechat.report();
    must("LiveChat gives no delivery up", report["dropped"] == 0);
    must("while two registrations stand, events come twice", report["sent"].as_u64() > Some(sent.len() as u64));
    let verdict = judge(&sent, &stage.cluster.collect(&place.prefix));
    must("events were answered 200", verdict.answered > 0);
    let outcome = Outcome {
        name: stage.name,
        verdict,
        tally: tally(&report),
        recovery: None,
        unmet,
        notes: vec![format!("{} deliveries of {} events", report["sent"], sent.len())],
    };
    if !outcome.has_passed() {
        let logs = [log, relay.log()].into_iter().enumerate();
        keep(stage.name, logs.map(|(n, log)| (format!("relay-{n}.log"), log)));
    }
    outcome
}

/// A simulated LiveChat, and what a relay is configured with.
struct Place {
    livechat: Arc<Simulator>,
    prefix: String,
    brokers: String,
    settings: Vec<(String, String)>,
    admin: SocketAddr,
    /// The configuration, for commands.
    file: PathBuf,
    directory: tempfile::TempDir,
}

impl Place {
    fn new(stage: &Stage<'_>) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let livechat = Simulator::start_with(&["--propagation", "2s"]);
        std::fs::create_dir(directory.path().join("keys")).expect("a directory");
        std::fs::write(directory.path().join("keys").join(FIRST_KEY), SECRET).expect("written");
        let address = || SocketAddr::from(([127, 0, 0, 1], free_port()));
        let (webhooks, admin, prefix) = (address(), address(), prefix(stage.name));
        let spool = directory.path().join("spool").display().to_string();
        let api = format!("{:?}", livechat.url);
        let mut settings = settings(&prefix, |action| ACTIONS.contains(&action));
        let own = [
            ("server.listen", format!("\"{webhooks}\"")),
            ("admin.listen", format!("\"{admin}\"")),
            ("spool.directory", format!("{spool:?}")),
            ("livechat.api", api.clone()),
            ("livechat.accounts", api),
            ("livechat.propagation", "\"4s\"".to_owned()),
            ("livechat.retry_min", "\"10ms\"".to_owned()),
        ];
        settings.extend(own.map(|(name, value)| (name.to_owned(), value)));
        livechat.route_to(webhooks);
        let (brokers, file) = (stage.cluster.kafka.bootstrap().to_owned(), directory.path().join("relay.toml"));
        Self { livechat: Arc::new(livechat), prefix, brokers, settings, admin, file, directory }
    }

    /// Writes a configuration that wants both webhooks, with something more; its text. Ports and spool are the same each time.
    fn configure(&self, more: &str) -> String {
        let actions = ACTIONS.map(|action| format!("{action:?}")).join(", ");
        let apps = simulator::apps(&format!("webhooks = [{{ actions = [{actions}]{more} }}]"));
        let listed = format!(r#"secret_keys = [{{ name = "test", value = "{SECRET}" }}]"#);
        assert!(apps.contains(&listed), "{apps}");
        let keys = self.directory.path().join("keys").display().to_string();
        let directory = format!("secret_keys = {{ directory = {keys:?} }}");
        let apps = ("apps".to_owned(), apps.replace(&listed, &directory));
        let text = configuration(&self.brokers, &borrowed(&[&self.settings[..], &[apps]].concat()));
        std::fs::write(&self.file, &text).expect("written");
        text
    }

    fn configuration(&self) -> String {
        std::fs::read_to_string(&self.file).expect("a file")
    }

    fn command(&self, arguments: &str) -> bool {
        has_run(&self.file, arguments)
    }

    fn registered(&self) -> BTreeSet<String> {
        let registrations = self.livechat.registrations();
        registrations.iter().filter_map(|one| one["id"].as_str().map(str::to_owned)).collect()
    }

    fn keys(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.directory.path().join("keys")).expect("a directory");
        let names = entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned());
        names.filter(|name| !name.starts_with('.')).collect()
    }
}

/// Whether a command has succeeded; what it says is shown where it has not.
fn has_run(file: &Path, arguments: &str) -> bool {
    let mut command = Command::new(env!("CARGO_BIN_EXE_livechat-relay"));
    command.args(arguments.split(' ')).arg("--config").arg(file).stdin(Stdio::null());
    let output = command.output().expect("the relay's binary");
    if !output.status.success() {
        println!("  {arguments}: {}", String::from_utf8_lossy(&output.stderr).trim_end());
    }
    output.status.success()
}

/// Chats that begin, one after another, each with a few messages.
struct Load {
    stop: Arc<AtomicBool>,
    chats: JoinHandle<Vec<Sent>>,
}

/// What happened at LiveChat, and how many webhooks were to be sent for it.
struct Sent {
    name: Name,
    deliveries: u64,
}

impl Load {
    fn start(livechat: &Arc<Simulator>) -> Self {
        let (stop, livechat) = (Arc::new(AtomicBool::new(false)), Arc::clone(livechat));
        let is_stopped = Arc::clone(&stop);
        let chats = thread::spawn(move || {
            let mut sent = Vec::new();
            while !is_stopped.load(Ordering::Relaxed) {
                let begun = happen(&livechat, "chats", &mut sent);
                let message = format!("chats/{}/message", begun.1);
                for _ in 0..4 {
                    happen(&livechat, &message, &mut sent);
                }
            }
            sent
        });
        Self { stop, chats }
    }

    fn stop(self) -> Vec<Sent> {
        self.stop.store(true, Ordering::Relaxed);
        self.chats.join().expect("a thread that does not panic")
    }
}

fn happen(livechat: &Simulator, path: &str, sent: &mut Vec<Sent>) -> Name {
    let told = livechat.post(path, json!({}));
    let text = |name: &str| told[name].as_str().map(str::to_owned);
    let name = (text("action").expect("an action"), text("chat_id").expect("a chat"), text("event_id"));
    sent.push(Sent { name: name.clone(), deliveries: told["deliveries"].as_u64().unwrap_or_default() });
    thread::sleep(PACE);
    name
}

/// All that happened is on Kafka, under one id each; more than once only as the same event.
fn judge(sent: &[Sent], records: &[Message]) -> Verdict {
    let mut found: BTreeMap<Name, Vec<String>> = BTreeMap::new();
    let mut verdict = Verdict { sent: sent.len(), records: records.len(), ..Verdict::default() };
    for record in records {
        let event: Value = serde_json::from_slice(&record.value).unwrap_or_default();
        let text = |name: &str| event[name].as_str().map(str::to_owned);
        match (text("type"), text("chatid"), text("id")) {
            (Some(kind), Some(chat), Some(id)) => {
                let action = kind.trim_start_matches("com.livechat.").to_owned();
                found.entry((action, chat, text("eventid"))).or_default().push(id);
            }
            _ => verdict.invented.push(String::from_utf8_lossy(&record.value).into_owned()),
        }
    }
    let mut owners: HashMap<String, Name> = HashMap::new();
    for Sent { name, deliveries } in sent {
        let ids = found.remove(name).unwrap_or_default();
        verdict.answered += usize::from(*deliveries > 0 && !ids.is_empty());
        verdict.duplicates += ids.len().saturating_sub(1);
        match ids.first() {
            None => verdict.lost.push(format!("{name:?}, sent {deliveries} times")),
            Some(id) if ids.iter().any(|other| other != id) => verdict.wrong_ids.push(format!("{name:?} has several")),
            Some(id) => {
                if let Some(other) = owners.insert(id.clone(), name.clone()) {
                    verdict.wrong_ids.push(format!("{name:?} has that of {other:?}"));
                }
            }
        }
    }
    verdict.invented.extend(found.into_keys().map(|name| format!("{name:?}")));
    verdict
}

fn tally(report: &Value) -> Tally {
    let deliveries = report["deliveries"].as_array().expect("a list");
    let attempts: Vec<_> = deliveries.iter().filter_map(|one| one["attempts"].as_array()).flatten().collect();
    let with = |status: Value| attempts.iter().filter(|attempt| attempt["status"] == status).count() as u64;
    let longest = attempts.iter().filter_map(|attempt| attempt["seconds"].as_f64()).fold(0.0, f64::max);
    Tally {
        answered: with(json!(200)),
        unavailable: with(json!(503)),
        unanswered: with(Value::Null),
        longest: Duration::from_secs_f64(longest),
    }
}

/// Waits until it is so; whether it came to that.
fn until(mut is_so: impl FnMut() -> bool) -> bool {
    let began = Instant::now();
    while began.elapsed() < PATIENCE {
        if is_so() {
            return true;
        }
        thread::sleep(Duration::from_millis(50));
    }
    false
}
