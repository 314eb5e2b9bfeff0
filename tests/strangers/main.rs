//! `make strangers`: what can a stranger do to the relay who has no secret key? Legitimate webhooks are sent beside each attack;
//! they must all be answered 200, and the probes must be answered in time. Exit code 1 where they are not.
//!
//! Without arguments the short selection runs, as part of `cargo test`; names run just those.

mod attacks;
mod held;
mod http2;
mod legit;
mod relay;
mod report;
mod target;
mod tls;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use attacks::{ATTACKS, Attack};
use legit::{Plan, Traffic};
use rdkafka::mocking::MockCluster;
use relay::Relay;
use report::{Gauges, Row};
use target::{Target, cpu_of_attackers};

const USAGE: &str = "\
make strangers STRANGERS=\"[OPTION]…\", or cargo test --release --test strangers -- [OPTION]… [NAME]…

  --full          all attacks (NAMEs and --only choose some; without any of these, the short selection)
  --only NAME     this attack; may be repeated
  --seconds N     how long each attack lasts (10)
  --relay PATH    another relay, such as the last release, instead of the one of this checkout
  --out FILE      also write the table as Markdown
  --list          list the attacks";

/// What was typed.
struct Arguments {
    is_full: bool,
    names: Vec<String>,
    seconds: Option<u64>,
    /// Another than that of this checkout.
    relay: Option<PathBuf>,
    out: Option<PathBuf>,
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if words.iter().any(|word| word == "--list") {
        ATTACKS.iter().for_each(|attack| println!("{:<24} {}", attack.name, attack.about));
        return ExitCode::SUCCESS;
    }
    let arguments = match parse(words) {
        Ok(arguments) => arguments,
        Err(error) => {
            eprintln!("strangers: {error}\n\n{USAGE}");
            return ExitCode::from(64);
        }
    };
    let is_chosen = |attack: &&Attack| match &arguments.names[..] {
        [] => arguments.is_full || attack.is_quick,
        names => names.iter().any(|name| name == attack.name),
    };
    let chosen: Vec<&Attack> = ATTACKS.iter().filter(is_chosen).collect();
    if chosen.is_empty() {
        println!("strangers: no attack is named {}; --list lists them", arguments.names.join(" or "));
        return ExitCode::SUCCESS; // `cargo test NAME` comes here
    }
    match run(&chosen, &arguments) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("strangers: {error}");
            ExitCode::FAILURE
        }
    }
}

fn parse(words: Vec<String>) -> Result<Arguments, String> {
    let mut arguments = Arguments { is_full: false, names: Vec::new(), seconds: None, relay: None, out: None };
    let mut words = words.into_iter();
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or_else(|| format!("{word} needs a value"));
        match word.as_str() {
            "--full" => arguments.is_full = true,
            "--only" => {
                let name = value()?;
                if !ATTACKS.iter().any(|attack| attack.name == name) {
                    return Err(format!("no attack is named {name}; --list lists them"));
                }
                arguments.names.push(name);
            }
            "--seconds" => {
                let seconds = value()?;
                let valid = seconds.parse().ok().filter(|n| (1..=600).contains(n));
                arguments.seconds = Some(valid.ok_or_else(|| format!("--seconds {seconds}: not within 1 and 600"))?);
            }
            "--relay" => arguments.relay = Some(value()?.into()),
            "--out" => arguments.out = Some(value()?.into()),
            // Other flags are meant for the test harness that this binary does without.
            flag if flag.starts_with('-') => {}
            name => arguments.names.push(name.to_owned()),
        }
    }
    Ok(arguments)
}

/// Runs the attacks one after another, each against a fresh relay; whether none did harm.
fn run(chosen: &[&'static Attack], arguments: &Arguments) -> Result<bool, String> {
    let cluster = mock_cluster()?;
    // Part of `cargo test`: a machine that is busy is slow, which is not what it is to find.
    let is_quick = arguments.names.is_empty() && !arguments.is_full;
    target::raise_open_files(is_quick)?;
    let seconds = arguments.seconds.unwrap_or(if is_quick { 3 } else { 10 });
    let plan = Plan {
        before: Duration::from_secs(if is_quick { 1 } else { 4 }),
        during: Duration::from_secs(seconds),
        patience: Duration::from_secs(if is_quick { 30 } else { 10 }),
        probe_timeout: Duration::from_secs(if is_quick { 30 } else { 2 }),
    };
    let relay = arguments.relay.as_deref().unwrap_or(Path::new(env!("CARGO_BIN_EXE_livechat-relay")));
    let mut rows = Vec::new();
    for attack in chosen {
        println!("{}: {}", attack.name, attack.about);
        let row = measure(attack, &plan, relay, &cluster.bootstrap_servers())?;
        println!("{}", report::line(&row));
        rows.push(row);
    }
    println!("\n{}", report::text(&rows));
    if let Some(path) = &arguments.out {
        let markdown = report::markdown(&rows, arguments.relay.as_deref(), seconds);
        std::fs::write(path, markdown).map_err(|error| format!("{} cannot be written: {error}", path.display()))?;
    }
    Ok(rows.iter().all(|row| row.failures.is_empty()))
}

/// One attack against a fresh relay: legitimate traffic alone, then beside the attack, then the relay's end.
fn measure(attack: &'static Attack, plan: &Plan, binary: &Path, brokers: &str) -> Result<Row, String> {
    let relay = Relay::start(binary, brokers, attack)?;
    let plan = Plan { patience: plan.patience.max(attack.patience), ..plan.clone() };
    let before = Traffic::send(&relay, plan.before, &plan);

    let target = Arc::new(Target::of(&relay));
    let (cpu, log, began) = (relay.cpu(), relay.logged(), Instant::now());
    let runtime = target::attackers()?;
    runtime.spawn((attack.run)(Arc::clone(&target)));
    let meanwhile = (attack.ramp > Duration::ZERO).then(|| Traffic::send(&relay, attack.ramp, &plan));
    let during = Traffic::send(&relay, plan.during, &plan);
    let took = began.elapsed(); // longer where senders have waited for an answer
    let mut gauges = Gauges {
        peak_kib: relay.peak_kib(),
        cpu: relay.cpu().saturating_sub(cpu),
        log_lines: relay.logged().lines - log.lines,
        log_bytes: relay.logged().bytes - log.bytes,
        open_at_end: relay.connections(),
        attacker_cpu: cpu_of_attackers(),
        sent: target.sent(),
        opened: target.opened(),
        ended: target.ended(),
        load: report::load_average(),
        took,
        left_open: 0,
    };
    runtime.shutdown_timeout(Duration::from_secs(10));
    gauges.left_open = relay.connections_left();
    let mut row = Row { attack, before, meanwhile, during, gauges, notes: target.notes(), failures: Vec::new() };
    row.failures = row.judge();
    row.failures.extend(target.failures());
    row.failures.extend(relay.end());
    Ok(row)
}

/// librdkafka's mock cluster, with the topics of the relay.
fn mock_cluster() -> Result<MockCluster<'static, rdkafka::producer::DefaultProducerContext>, String> {
    let failed = |error: rdkafka::error::KafkaError| format!("no mock cluster: {error}");
    let cluster = MockCluster::new(1).map_err(failed)?;
    for name in livechat_relay::event::actions::names().chain(["unlisted", "dead-letter"]) {
        cluster.create_topic(&format!("livechat.{name}"), 6, 1).map_err(failed)?;
    }
    Ok(cluster)
}
