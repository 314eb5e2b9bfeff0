//! `make guard`: what an event costs in instructions, compared with benches/instructions/baseline.json.
//!
//! Instructions, and not time, because a machine that is busy or slow counts the same. callgrind counts them by function:
//!
//! - `record`: bytes → record, of bodies of 0.7, 6 and 200 kB. The same to the instruction in each run.
//! - `request`: a whole request through the release build. All is counted of the thread that runs hyper, librdkafka's share in
//!   it included; of the others, only functions of the relay. The rest is how librdkafka's threads wait, which depends on the
//!   moment. Repeated counts differ by 0.2 %, on a busy machine, too.
//! - SHA-256 is a line of its own: Valgrind's processor lacks the instructions that make it cheap in reality, so it would be most
//!   of the sum.
//!
//! Each case runs twice; the difference of the counts over the difference of the events is the cost of one.

mod counts;
mod input;
mod record;
mod request;
mod valgrind;

use std::path::Path;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use counts::baseline::{Baseline, Tools};
use counts::verdict::judge;
use counts::{Cost, Counts};

const BASELINE: &str = "benches/instructions/baseline.json";

/// The instructions that an event takes, against the committed baseline
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    /// Write the baseline instead of comparing with it
    #[arg(long)]
    write: bool,
    /// Given by `cargo bench`
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Subcommand)]
enum Command {
    /// Be the process that makes records
    #[command(hide = true)]
    Record(record::Arguments),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Some(Command::Record(arguments)) = arguments.command {
        record::run(&arguments);
        return ExitCode::SUCCESS;
    }
    match guard(arguments.write) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Whether it passes. Writing the baseline passes always.
fn guard(write: bool) -> Result<bool, String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(BASELINE);
    let tools = Tools {
        architecture: std::env::consts::ARCH.to_owned(),
        rustc: valgrind::version("rustc")?,
        valgrind: valgrind::version("valgrind")?,
    };
    let text = std::fs::read_to_string(&path).map_err(|error| error.to_string());
    let baseline = text.and_then(|text| Baseline::parse(&text, &tools));
    let unusable = |why| format!("the baseline {BASELINE} cannot be used: {why}; write one here: make guard WRITE=1");
    if write {
        let costs = count();
        print!("{}", judge(&baseline.map(|baseline| baseline.costs).unwrap_or_default(), &costs).table);
        let text = serde_json::to_string_pretty(&Baseline { tools, costs }).expect("numbers are JSON");
        std::fs::write(path, text + "\n").map_err(|error| format!("{BASELINE} cannot be written: {error}"))?;
        println!("\n{BASELINE} is written.");
        return Ok(true);
    }
    let baseline = baseline.map_err(unusable)?;
    let report = judge(&baseline.costs, &count());
    print!("{}{}", report.table, report.remarks);
    if let Some(note) = baseline.other_tools(&tools) {
        println!("\n{note}");
    }
    Ok(report.passes)
}

/// Counts all cases.
fn count() -> Vec<Cost> {
    let mut costs = Vec::new();
    for bytes in input::SIZES {
        let runs = record::EVENTS.map(|events| record::count(bytes, events));
        costs.extend(of_an_event(&format!("record of {} kB", bytes as f64 / 1000.0), runs, record::EVENTS));
    }
    costs.extend(of_an_event("request", request::EVENTS.map(request::count), request::EVENTS));
    costs
}

/// All but SHA-256, and SHA-256.
fn of_an_event(case: &str, runs: [Counts; 2], events: [usize; 2]) -> [Cost; 2] {
    let [few, many] = runs.map(|run| run.split(|function| function.starts_with("sha2::")));
    let events = (events[1] - events[0]) as u64;
    [
        Cost::of_an_event(case.to_owned(), &few.1, &many.1, events),
        Cost::of_an_event(format!("{case}: SHA-256"), &few.0, &many.0, events),
    ]
}
