//! The words that CONTRIBUTING.md rules out stand in no text that a person reads.

use std::path::{Path, PathBuf};

/// Each is a word of its own, not a part of one. Words that are right in another meaning (`company`, `park`) are left to reviewers.
const RULED_OUT: [&str; 22] = [
    "alarm",
    "anew",
    "desk",
    "mend",
    "mended",
    "mends",
    "nobody",
    "parked",
    "somebody",
    "unpark",
    "whoever",
    "for ever",
    "are away",
    "was away",
    "at its word",
    "beyond help",
    "comes to an end",
    "comes to its end",
    "goes around it",
    "goes its way",
    "in earnest",
    "serves on",
];

/// Texts of chats, and what was said before the list was made.
const LEFT_OUT: [&str; 2] = ["src/samples/texts.json", "CHANGELOG.md"];

/// Where the list itself is.
const LIST: &str = "Not used: ";

fn texts(path: &Path, found: &mut Vec<PathBuf>) {
    if path.is_dir() {
        for entry in std::fs::read_dir(path).expect("a directory") {
            let path = entry.expect("an entry").path();
            let name = path.file_name().expect("a name").to_string_lossy().into_owned();
            // Built or fetched, and unit tests.
            if !["target", "node_modules", "tests", "tests.rs"].contains(&name.as_str()) && !name.starts_with('.') {
                texts(&path, found);
            }
        }
    } else {
        found.push(path.to_owned());
    }
}

#[test]
fn no_text_has_a_word_that_is_ruled_out() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    for name in
        ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "src", "config", "docs", "deploy", "contract", "examples"]
    {
        texts(&root.join(name), &mut files);
    }
    files.retain(|path| !LEFT_OUT.iter().any(|name| *path == root.join(name)));
    assert!(files.len() > 100, "only {} files were found", files.len());
    let mut wrong = Vec::new();
    for path in files {
        let Ok(text) = std::fs::read_to_string(&path) else { continue }; // no text
        for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.starts_with(LIST)) {
            let words = line.to_lowercase();
            let words: Vec<_> = words.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()).collect();
            let words = format!(" {} ", words.join(" "));
            for word in RULED_OUT.iter().filter(|word| words.contains(&format!(" {word} "))) {
                wrong.push(format!("{}:{}: `{word}`", path.strip_prefix(root).unwrap_or(&path).display(), number + 1));
            }
        }
    }
    assert!(wrong.is_empty(), "use the words of CONTRIBUTING.md instead:\n{}", wrong.join("\n"));
}
