//! `make chaos`: no accepted event is lost, whatever is killed, frozen, cut, filled or broken under load. A client with LiveChat's
//! habits notes what was answered 200; after the faults, the judge holds that against Kafka.
//!
//! Without arguments the short selection runs, as part of `cargo test`; `--full` runs all, names run just those, `--list` lists.
//! `CHAOS_SEED` repeats a run's chances; `CHAOS_KAFKA_PROPERTIES='{ "max.in.flight" = "1" }'` tries a property of librdkafka's.

mod client;
mod cluster;
mod judge;
mod metrics;
mod proxy;
mod random;
mod report;
mod rig;
mod scenarios;
mod shim;
#[allow(dead_code, reason = "tests/it uses the rest")]
#[path = "../it/support/mod.rs"]
mod support;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::Instant;

use cluster::Cluster;
use rig::{Outcome, Stage};
use scenarios::{SCENARIOS, Scenario};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let has = |flag: &str| arguments.iter().any(|argument| argument == flag);
    if has("--list") {
        SCENARIOS.iter().for_each(|scenario| println!("{:<28} {}", scenario.name, scenario.about));
        return ExitCode::SUCCESS;
    }
    // Other flags are meant for the test harness that this binary does without.
    let names: Vec<&str> = arguments.iter().map(String::as_str).filter(|argument| !argument.starts_with('-')).collect();
    let chosen: Vec<&Scenario> = SCENARIOS.iter().filter(|scenario| scenario.is_meant(&names, has("--full"))).collect();
    if chosen.is_empty() {
        println!("chaos: no scenario is named {}; --list lists them", names.join(" or ")); // `cargo test NAME` comes here
        return ExitCode::SUCCESS;
    }
    if !support::kafka::available_or_skip() {
        return ExitCode::SUCCESS;
    }
    if run(&chosen, has("--full")) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Runs them one after another on one cluster; whether all have passed.
fn run(chosen: &[&'static Scenario], is_full: bool) -> bool {
    let (began, seed) = (Instant::now(), random::seed());
    let commit = report::commit(); // before somebody commits meanwhile
    println!("chaos: {} scenarios, seed {seed} (CHAOS_SEED)", chosen.len());
    let cluster = Cluster::start();
    let (mut outcomes, mut skipped, mut has_panicked) = (Vec::new(), Vec::new(), false);
    for scenario in chosen {
        if let Some(why) = (scenario.obstacle)() {
            println!("{}: skipped: {why}", scenario.name);
            skipped.push(scenario.name);
            continue;
        }
        match play(scenario, &cluster, seed) {
            Some(outcome) => outcomes.push(outcome),
            None => has_panicked = true,
        }
    }
    println!("\n{}", report::table(&outcomes));
    if is_full && let Err(error) = report::write_markdown(&outcomes, &skipped, seed, &commit, began.elapsed()) {
        println!("target/chaos.md cannot be written: {error}");
        return false;
    }
    !has_panicked && outcomes.iter().all(Outcome::has_passed)
}

/// One scenario, and the cluster whole again; none where it could not be played to its end.
fn play(scenario: &Scenario, cluster: &Cluster, seed: u64) -> Option<Outcome> {
    let began = Instant::now();
    println!("{}: {}", scenario.name, scenario.about);
    let stage = Stage { cluster, name: scenario.name, seed };
    let outcome = catch_unwind(AssertUnwindSafe(|| (scenario.run)(&stage)));
    if outcome.is_err() {
        println!(
            "  FAILED: it could not be played to its end, see above; logs: {}",
            rig::directory_of(scenario.name).display()
        );
    }
    let outcome = outcome.ok().inspect(|outcome| {
        println!("  {} s; {}", began.elapsed().as_secs(), report::line(outcome));
        if !outcome.has_passed() {
            print!("{}", report::offences(outcome));
        }
    });
    let repaired = catch_unwind(AssertUnwindSafe(|| cluster.repair(&rig::prefix(scenario.name))));
    outcome.filter(|_| repaired.is_ok())
}
