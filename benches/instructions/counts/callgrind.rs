//! Reads what callgrind has written of one thread: lines of `fn=(12) name`, and below them what that function itself cost.
//!
//! The format is described in Valgrind's manual, "Callgrind Format Specification". Needed are positions that are not compressed.

use std::collections::HashMap;

use super::Counts;

/// # Errors
/// When the text is none of callgrind's, or when what was read does not add up to its own total.
pub fn parse(text: &str) -> Result<Counts, String> {
    let mut counts = Counts::default();
    let mut names: HashMap<&str, String> = HashMap::new();
    let (mut function, mut total) = (None, None);
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if let Some(name) = line.strip_prefix("fn=") {
            function = Some(define(&mut names, name));
        } else if let Some(name) = line.strip_prefix("cfn=") {
            define(&mut names, name);
        } else if line.starts_with("calls=") {
            lines.next(); // what the call has cost: the callee has it, too
        } else if let Some(number) = line.strip_prefix("totals: ") {
            total = number.trim().parse::<u64>().ok();
        } else if line.starts_with(|first: char| first.is_ascii_digit()) {
            let name = function.and_then(|id| names.get(id)).ok_or("a cost before the first function")?;
            counts.add(name, cost(line).ok_or_else(|| format!("no cost in `{line}`"))?);
        }
    }
    match total {
        None => Err("no `totals:` at its end".to_owned()),
        Some(total) if total != counts.total() => Err(format!("{} instructions, but {total} in all", counts.total())),
        Some(_) => Ok(counts),
    }
}

/// `(12) name` names number 12, `(12)` means it from then on. The number.
fn define<'a>(names: &mut HashMap<&'a str, String>, text: &'a str) -> &'a str {
    let (id, name) = text.split_once(' ').unwrap_or((text, ""));
    if !name.is_empty() || !names.contains_key(id) {
        names.insert(id, plain(name));
    }
    id
}

/// A cost follows the line's number; none is written where it is 0.
fn cost(line: &str) -> Option<u64> {
    line.split(' ').nth(1).map_or(Some(0), |cost| cost.parse().ok())
}

/// A function's name without what differs from build to build: hashes of crates and instances, and addresses.
fn plain(name: &str) -> String {
    let is_hash = |text: &str| text.len() == 16 && text.bytes().all(|b| b.is_ascii_hexdigit());
    let name = match name.rsplit_once("::h") {
        Some((path, hash)) if is_hash(hash) => path,
        _ => name,
    };
    if name.is_empty() || name.starts_with("0x") {
        return "(no name)".to_owned();
    }
    let mut parts = name.split('[');
    let mut plain = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        match part.split_once(']') {
            Some((hash, rest)) if is_hash(hash) => plain.push_str(rest),
            _ => {
                plain.push('[');
                plain.push_str(part);
            }
        }
    }
    plain
}
