//! What a run has found, as a table for the terminal and as Markdown for `target/chaos.md`.

use std::fmt::Write as _;
use std::process::Command;

use jiff::Timestamp;

use crate::rig::{Outcome, directory_of, output_directory};

const COLUMNS: [&str; 11] = [
    "scenario",
    "sent",
    "answered 200",
    "in Kafka",
    "lost",
    "duplicates",
    "out of order",
    "503s",
    "longest answer",
    "recovered in",
    "verdict",
];

/// How many offences are told in full.
const TOLD: usize = 10;

/// The line that ends a scenario.
pub fn line(outcome: &Outcome) -> String {
    let cells = cells(outcome);
    let told: Vec<_> =
        COLUMNS.iter().zip(&cells).skip(1).take(9).map(|(column, cell)| format!("{column} {cell}")).collect();
    format!("{}: {}", told.join(", "), cells[10])
}

/// What exactly is wrong with a scenario, and where its logs are.
pub fn offences(outcome: &Outcome) -> String {
    let mut text = String::new();
    for unmet in &outcome.unmet {
        let _ = writeln!(text, "  {unmet}");
    }
    for (charge, found) in outcome.verdict.charges() {
        let _ = writeln!(text, "  {charge}: {}", found.len());
        found.iter().take(TOLD).for_each(|offence| {
            let _ = writeln!(text, "    {offence}");
        });
    }
    let _ = writeln!(text, "  logs: {}", directory_of(outcome.name).display());
    text
}

pub fn table(outcomes: &[Outcome]) -> String {
    let rows: Vec<Vec<String>> =
        std::iter::once(COLUMNS.map(str::to_owned).to_vec()).chain(outcomes.iter().map(cells)).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default();
    let mut text = String::new();
    for row in &rows {
        let padded = row.iter().enumerate().map(|(n, cell)| {
            let width = width(n);
            if n == 0 || n == 10 { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
        });
        let _ = writeln!(text, "{}", padded.collect::<Vec<_>>().join("  ").trim_end());
    }
    text
}

/// Writes `target/chaos.md`.
///
/// # Errors
/// When the file cannot be written.
pub fn write_markdown(
    outcomes: &[Outcome],
    skipped: &[&str],
    seed: u64,
    commit: &str,
    took: std::time::Duration,
) -> std::io::Result<()> {
    let mut text = format!(
        "# Chaos: what was answered 200, against Kafka\n\nCommit {}, {}, {} cores, Apache Kafka {} ({} nodes), seed {seed}, {} min.\n\n",
        commit,
        Timestamp::now().strftime("%Y-%m-%d %H:%M UTC"),
        std::thread::available_parallelism().map_or(0, usize::from),
        kafka_version(),
        crate::cluster::NODES,
        took.as_secs().div_ceil(60),
    );
    let _ = writeln!(text, "| {} |\n|{}", COLUMNS.join(" | "), "---|".repeat(COLUMNS.len()));
    outcomes.iter().for_each(|outcome| {
        let _ = writeln!(text, "| {} |", cells(outcome).join(" | "));
    });
    text.push_str("\nDuplicates are records too many: at-least-once delivery explains them. Their `id`s are equal where the payload ");
    text.push_str("names its event, or the event was posted once. In `two_relays` order is judged for each relay alone, because two ");
    text.push_str("spools drain independently.\n");
    if let Ok(properties) = std::env::var("CHAOS_KAFKA_PROPERTIES") {
        let _ = writeln!(text, "\nNot as shipped: the relay ran with `kafka.properties = {properties}`.");
    }
    for outcome in outcomes.iter().filter(|outcome| !outcome.notes.is_empty()) {
        let _ = writeln!(text, "\n- {}: {}", outcome.name, outcome.notes.join("; "));
    }
    for name in skipped {
        let _ = writeln!(text, "\n- {name}: skipped, not possible on this machine");
    }
    for outcome in outcomes.iter().filter(|outcome| !outcome.has_passed()) {
        let _ = writeln!(text, "\n## {}\n\n```\n{}```", outcome.name, offences(outcome));
    }
    std::fs::create_dir_all(output_directory())?;
    std::fs::write(output_directory().with_file_name("chaos.md"), text)
}

fn cells(outcome: &Outcome) -> Vec<String> {
    let verdict = &outcome.verdict;
    vec![
        outcome.name.to_owned(),
        verdict.sent.to_string(),
        verdict.answered.to_string(),
        verdict.records.to_string(),
        verdict.lost.len().to_string(),
        verdict.duplicates.to_string(),
        verdict.out_of_order.len().to_string(),
        outcome.tally.unavailable.to_string(),
        format!("{} ms", outcome.tally.longest.as_millis()),
        outcome.recovery.map_or_else(|| "-".to_owned(), |time| format!("{:.1} s", time.as_secs_f64())),
        if outcome.has_passed() { "passed" } else { "FAILED" }.to_owned(),
    ]
}

/// The short hash, with a `+` where the tree differs from it.
pub fn commit() -> String {
    let git = |arguments: &[&str]| {
        let output = Command::new("git").current_dir(env!("CARGO_MANIFEST_DIR")).args(arguments).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let hash = git(&["rev-parse", "--short", "HEAD"]).unwrap_or_else(|| "unknown".to_owned());
    let is_changed = git(&["status", "--porcelain"]).is_some_and(|changes| !changes.is_empty());
    if is_changed { hash + "+" } else { hash }
}

fn kafka_version() -> &'static str {
    let pom = include_str!("../../scripts/kafka/pom.xml");
    let version = pom.split_once("<kafka.version>").and_then(|(_, rest)| rest.split_once('<'));
    version.map_or("of unknown version", |(version, _)| version)
}
