//! What the attacks did, as tables for the terminal and as Markdown.

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use jiff::Timestamp;

use crate::attacks::Attack;
use crate::legit::{Outcomes, Traffic};

/// One attack, and what it did to the relay.
pub struct Row {
    pub attack: &'static Attack,
    pub before: Traffic,
    /// While the attack grew to its size, where that takes long.
    pub meanwhile: Option<Traffic>,
    pub during: Traffic,
    pub gauges: Gauges,
    pub notes: Vec<String>,
    pub failures: Vec<String>,
}

/// What was read of the relay and of the attacker.
pub struct Gauges {
    pub peak_kib: u64,
    pub cpu: Duration,
    pub log_lines: u64,
    pub log_bytes: u64,
    /// The relay's connections at the end of the attack, and those left when the attacker has gone.
    pub open_at_end: usize,
    pub left_open: usize,
    pub attacker_cpu: Duration,
    pub sent: u64,
    pub opened: u64,
    pub ended: u64,
    pub load: f64,
    pub took: Duration,
}

const ANSWERS: [&str; 10] =
    ["attack", "fresh", "p50 ms", "p99 ms", "kept", "p50 ms", "p99 ms", "large", "livez", "readyz"];

const GAUGES: [&str; 12] = [
    "attack",
    "peak MiB",
    "CPU s",
    "log lines",
    "log B",
    "open",
    "left",
    "sent B/s",
    "their CPU",
    "opened",
    "ended",
    "load",
];

const LEGEND: &str = "\
First table. fresh, kept, large: legitimate webhooks answered 200, of those sent: 50/s on a connection each, 50/s one after
the other on a kept connection, and 5/s of 200 kB. With https: over TLS, and on nine kept connections, 500/s in all. p50, p99: how long the answers of the column to the left took, before →
during the attack. livez, readyz: probes answered 200 in time, of those sent. An attack goes on until the last of these is
answered or given up.

Second table. peak MiB, CPU s, log lines, log B: the relay's during the attack (peak: since its start). open: its connections
when the attack ends; left: those still open after the attacker has gone. sent B/s, their CPU, opened, ended: the attacker's
bytes a second, CPU seconds, connections, and how many of these the relay ended. load: the machine's load average over a minute.";

/// The records that are on their way to Kafka when the relay is stopped for longer than `kafka.publish_deadline`: without a spool they are
/// answered 503, and LiveChat sends them again. On a quiet machine one or two, on a busy one some more.
const UNDER_WAY_MAX: u64 = 10;

/// A stranger must not fill the log.
const LOG_LINES_PER_SECOND_MAX: u64 = 10;

impl Row {
    /// What must not happen, whatever a stranger does.
    pub fn judge(&self) -> Vec<String> {
        let Traffic { fresh, kept, large, livez, readyz } = &self.before;
        let before = [("fresh", fresh), ("kept", kept), ("large", large), ("livez", livez), ("readyz", readyz)];
        let Traffic { fresh, kept, large, livez, readyz } = &self.during;
        let mut during = vec![("fresh", fresh), ("kept", kept), ("large", large)];
        if !self.attack.is_stopped {
            during.extend([("livez", livez), ("readyz", readyz)]);
        }
        let before =
            before.iter().filter_map(|(name, outcomes)| failed(&format!("before the attack, {name}"), outcomes));
        let is_excused = |outcomes: &Outcomes| self.attack.is_stopped && outcomes.only_503s_up_to(UNDER_WAY_MAX);
        let during = during.iter().filter(|(_, outcomes)| !is_excused(outcomes));
        let during = during.filter_map(|(name, outcomes)| failed(name, outcomes));
        let meanwhile = self.meanwhile.iter().flat_map(|Traffic { fresh, kept, large, livez, readyz }| {
            [("fresh", fresh), ("kept", kept), ("large", large), ("livez", livez), ("readyz", readyz)]
        });
        let meanwhile =
            meanwhile.filter_map(|(name, outcomes)| failed(&format!("while the attack grew, {name}"), outcomes));
        let Gauges { log_lines, took, .. } = self.gauges;
        let is_flooded = log_lines > LOG_LINES_PER_SECOND_MAX * took.as_secs().max(1);
        let log = is_flooded.then(|| format!("the log has grown by {log_lines} lines"));
        before.chain(meanwhile).chain(during).chain(log).collect()
    }

    fn answers(&self) -> Vec<String> {
        let Traffic { fresh, kept, large, livez, readyz } = &self.during;
        let change = |before: &Outcomes, during: &Outcomes, percent| {
            format!("{}→{}", millis(before.percentile(percent)), millis(during.percentile(percent)))
        };
        vec![
            self.attack.name.to_owned(),
            share(fresh),
            change(&self.before.fresh, fresh, 50),
            change(&self.before.fresh, fresh, 99),
            share(kept),
            change(&self.before.kept, kept, 50),
            change(&self.before.kept, kept, 99),
            share(large),
            share(livez),
            share(readyz),
        ]
    }

    fn gauges(&self) -> Vec<String> {
        let Gauges { peak_kib, cpu, log_lines, log_bytes, open_at_end, left_open, .. } = &self.gauges;
        let Gauges { attacker_cpu, sent, opened, ended, load, took, .. } = &self.gauges;
        vec![
            self.attack.name.to_owned(),
            (peak_kib / 1024).to_string(),
            format!("{:.1}", cpu.as_secs_f64()),
            log_lines.to_string(),
            short(*log_bytes as f64),
            open_at_end.to_string(),
            left_open.to_string(),
            short(*sent as f64 / took.as_secs_f64()),
            format!("{:.1}", attacker_cpu.as_secs_f64()),
            opened.to_string(),
            ended.to_string(),
            format!("{load:.1}"),
        ]
    }
}

/// What an attack is reported with as soon as it is over.
pub fn line(row: &Row) -> String {
    let verdict = if row.failures.is_empty() { "unharmed".to_owned() } else { row.failures.join("\n  ") };
    format!("  {}\n  {}\n  {verdict}", named(&ANSWERS, &row.answers()), named(&GAUGES, &row.gauges()))
}

fn named(columns: &[&str], cells: &[String]) -> String {
    let cells: Vec<_> = columns.iter().zip(cells).skip(1).map(|(column, cell)| format!("{column} {cell}")).collect();
    cells.join(", ")
}

/// Both tables, and what does not fit into them, within 120 columns.
pub fn text(rows: &[Row]) -> String {
    let answers = aligned(&ANSWERS, rows.iter().map(Row::answers));
    let gauges = aligned(&GAUGES, rows.iter().map(Row::gauges));
    let mut text = format!("{answers}\n{gauges}\n{LEGEND}\n");
    for row in rows {
        let (name, failures) = (row.attack.name, &row.failures);
        row.notes.iter().for_each(|note| text += &format!("{name}: {note}\n"));
        failures.iter().for_each(|failure| text += &format!("{name}: FAILED: {failure}\n"));
    }
    let harmed = rows.iter().filter(|row| !row.failures.is_empty()).count();
    text + &format!("{harmed} of {} attacks did harm\n", rows.len())
}

fn aligned(columns: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    let titles = columns.iter().map(|&column| column.to_owned()).collect();
    let rows: Vec<Vec<String>> = std::iter::once(titles).chain(rows).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default();
    let mut text = String::new();
    for row in &rows {
        let padded = row.iter().enumerate().map(|(n, cell)| {
            let width = width(n);
            if n == 0 { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
        });
        let _ = writeln!(text, "{}", padded.collect::<Vec<_>>().join("  "));
    }
    text
}

/// The page; `relay` where it is not this checkout's.
pub fn markdown(rows: &[Row], relay: Option<&Path>, seconds: u64) -> String {
    let mut text = format!(
        "# What strangers can do\n\n\
        `make strangers` attacks the relay in the ways open to anyone who can reach its ports and has no secret key. The relay \
        runs with its default configuration, without a spool, against librdkafka's mock cluster, and is restarted before each \
        attack. During each attack legitimate webhooks and probes are sent, and all must be answered. Attacker, sender and \
        relay share one machine, so use the times for comparison only; in attacks that flood they are mostly the machine's.\n\n\
        Commit {}, {}, {} cores, {seconds} s an attack{}.\n\n",
        commit(),
        Timestamp::now().strftime("%Y-%m-%d %H:%M UTC"),
        std::thread::available_parallelism().map_or(0, usize::from),
        relay.map_or(String::new(), |relay| format!("; not the relay of this commit, but `{}`", relay.display())),
    );
    let table = |text: &mut String, columns: &[&str], cells: fn(&Row) -> Vec<String>| {
        let _ = writeln!(text, "| {} |\n|---|{}", columns.join(" | "), "---:|".repeat(columns.len() - 1));
        rows.iter().for_each(|row| {
            let _ = writeln!(text, "| {} |", cells(row).join(" | "));
        });
        text.push('\n');
    };
    table(&mut text, &ANSWERS, Row::answers);
    table(&mut text, &GAUGES, Row::gauges);
    let _ = writeln!(text, "{LEGEND}\n\n## The attacks\n");
    for row in rows {
        let _ = writeln!(text, "- **{}**: {}", row.attack.name, row.attack.about);
        row.notes.iter().for_each(|note| text += &format!("  - {note}\n"));
        row.failures.iter().for_each(|failure| text += &format!("  - failed: {failure}\n"));
    }
    text
}

/// Over the last minute.
pub fn load_average() -> f64 {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().and_then(|load| load.parse().ok()).unwrap_or_default()
}

fn failed(name: &str, outcomes: &Outcomes) -> Option<String> {
    let why: Vec<_> = outcomes.failed.iter().map(|(why, times)| format!("{times} × {why}")).collect();
    let number: u64 = outcomes.failed.values().sum();
    (number > 0).then(|| format!("{name}: {number} of {} failed: {}", outcomes.sent, why.join(", ")))
}

fn share(outcomes: &Outcomes) -> String {
    format!("{}/{}", outcomes.answered(), outcomes.sent)
}

fn millis(time: Option<Duration>) -> String {
    match time.map(|time| time.as_secs_f64() * 1000.0) {
        None => "-".to_owned(),
        Some(millis) if millis < 10.0 => format!("{millis:.1}"),
        Some(millis) => format!("{millis:.0}"),
    }
}

fn short(number: f64) -> String {
    match number {
        0.0..1e4 => format!("{number:.0}"),
        1e4..1e6 => format!("{:.0}k", number / 1e3),
        1e6..1e9 => format!("{:.1}M", number / 1e6),
        _ => format!("{:.1}G", number / 1e9),
    }
}

/// The commit, with `-dirty` where the tree differs from it.
fn commit() -> String {
    let mut git = Command::new("git");
    let said = git.current_dir(env!("CARGO_MANIFEST_DIR")).args(["describe", "--always", "--dirty"]).output();
    let commit = said.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default();
    if commit.is_empty() { "unknown".to_owned() } else { commit }
}
