//! What is read off the source: the layers of ARCHITECTURE.md, that every file says what it is for, and that a colour is not dim.

use std::path::{Path, PathBuf};

/// From the top down; modules of one row do not know each other, but for those named in `WITHIN`.
const ROWS: [&[&str]; 10] = [
    &["cli"],
    &["config"],
    &["acme"],
    &["http"],
    &["control", "relay", "replay"],
    &["dead_letter"],
    &["publish", "spool", "topics", "dedup", "livechat", "simulate"],
    &["metrics", "shutdown", "systemd"],
    &["outcome", "budget", "telemetry", "deliveries", "samples"],
    &["event"],
];

/// Imports within a row: topics share the configuration of the client with publish, and a full budget is an outcome.
const WITHIN: [(&str, &str); 2] = [("topics", "publish"), ("budget", "outcome")];

/// What the lower layers must not know.
const FORBIDDEN: [(&str, &[&str]); 4] = [
    ("event", &["tokio", "hyper", "rdkafka", "std::fs", "std::net", "Timestamp::now", "Instant::now"]),
    ("http", &["rdkafka"]),
    // It is LiveChat, which knows of the relay only what it is told.
    ("simulate", &["rdkafka", "crate::event", "crate::telemetry", "crate::metrics"]),
    ("livechat", &["rdkafka", "crate::spool", "crate::publish", "crate::relay"]),
];

fn sources() -> Vec<(PathBuf, String)> {
    fn visit(directory: &Path, found: &mut Vec<(PathBuf, String)>) {
        for entry in std::fs::read_dir(directory).expect("src") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                visit(&path, found);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let text = std::fs::read_to_string(&path).expect("a source file");
                found.push((path, text));
            }
        }
    }
    let mut found = Vec::new();
    visit(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut found);
    found
}

/// The top module that a file belongs to: `event` for `src/event/scan.rs`.
fn module(path: &Path) -> String {
    let below = path.strip_prefix(Path::new(env!("CARGO_MANIFEST_DIR")).join("src")).expect("below src");
    let first = below.components().next().expect("a component").as_os_str().to_string_lossy().into_owned();
    first.trim_end_matches(".rs").to_owned()
}

fn row(module: &str) -> Option<usize> {
    ROWS.iter().position(|row| row.contains(&module))
}

/// A terminal shows it as dim as the note around it, and dim yellow cannot be read.
#[test]
fn what_is_coloured_is_not_dim() {
    let colours = ["{GOOD}", "{WARNING}", "{ERROR}", "{BOLD}"];
    let (mut notes, mut wrong) = (0, Vec::new());
    for (path, text) in sources() {
        let calls = text.split("note(format_args!(").skip(1).map(|rest| rest.split(";\n").next().unwrap_or_default());
        let dim = text.split("{DIM}").skip(1).map(|rest| rest.split("{DIM:#}").next().unwrap_or_default());
        notes += calls.clone().count();
        let is_wrong = |part: &&str| colours.iter().any(|colour| part.contains(colour));
        wrong.extend(calls.chain(dim).filter(is_wrong).map(|part| format!("{}: {part}", path.display())));
    }
    assert!(notes > 20, "only {notes} were found");
    assert!(wrong.is_empty(), "use print::err or print::complaint instead:\n{}", wrong.join("\n"));
}

#[test]
fn imports_go_only_downward() {
    let mut upward = Vec::new();
    for (path, text) in sources() {
        let from = module(&path);
        if matches!(from.as_str(), "lib" | "main") {
            continue;
        }
        let here =
            row(&from).unwrap_or_else(|| panic!("{from} is in no layer: add it to this test and ARCHITECTURE.md"));
        for (n, line) in text.lines().enumerate().filter(|(_, line)| !line.trim_start().starts_with("//")) {
            for rest in line.split("crate::").skip(1) {
                let names = rest.strip_prefix('{').map_or(vec![rest], |group| group.split(',').collect());
                for name in names {
                    let to: String = name.trim().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
                    let Some(there) = row(&to) else { continue };
                    let is_allowed = there > here || to == from || WITHIN.contains(&(from.as_str(), to.as_str()));
                    if !is_allowed {
                        upward.push(format!("{}:{}: {from} imports {to}", path.display(), n + 1));
                    }
                }
            }
        }
    }
    assert!(upward.is_empty(), "imports upward:\n{}", upward.join("\n"));
}

#[test]
fn every_file_says_what_it_is_for() {
    let bare: Vec<_> = sources().into_iter().filter(|(_, text)| !text.starts_with("//! ")).map(|(p, _)| p).collect();
    assert!(bare.is_empty(), "without a //! head: {bare:?}");
}

#[test]
fn the_pure_steps_know_no_clock_no_files_and_no_clients() {
    let mut impure = Vec::new();
    for (path, text) in sources() {
        let code = text.split("#[cfg(test)]").next().unwrap_or_default();
        let from = module(&path);
        for word in FORBIDDEN.iter().filter(|(layer, _)| *layer == from).flat_map(|(_, words)| words.iter()) {
            if code.lines().any(|line| !line.trim_start().starts_with("//") && line.contains(word)) {
                impure.push(format!("{}: {word}", path.display()));
            }
        }
    }
    assert!(impure.is_empty(), "{impure:?}");
}
