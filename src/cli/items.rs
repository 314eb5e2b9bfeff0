//! What `spool` and `dead-letters` print, or write to a file, of the entries on the disk.

use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;

use anstream::{eprintln, println};
use indicatif::{ProgressBar, ProgressStyle};

use super::Failure;
use super::access::Access;
use super::print::{DIM, JsonLines, visible};
use crate::desk::{Ask, Item, Page};

/// Prints so many items of each list at most, a line each; `all` is how many there are.
pub async fn list<L: Fn(Page) -> Ask>(
    access: &Access,
    lists: impl IntoIterator<Item = L>,
    (all, limit): (u64, u64),
    json: bool,
) -> Result<(), Failure> {
    let mut is_first = true;
    let mut show = |item: Item| {
        if std::mem::take(&mut is_first) && !json {
            let [number, accepted, topic, key, bytes] = ["number", "accepted", "topic", "key", "bytes"];
            let reason = item.reason.as_ref().map_or("", |_| "  reason");
            println!("{DIM}{number:>10}  {accepted:<24} {topic:<40} {key:<24} {bytes:>8}{reason}{DIM:#}");
        }
        line(&item, json)
    };
    let mut seen = 0;
    for list in lists {
        seen += access.each(limit, false, list, &mut show).await?;
    }
    if !json && seen < all {
        eprintln!("{DIM}{seen} of {all}; more with --limit{DIM:#}");
    }
    Ok(())
}

/// A line; of a dead letter with its reason.
pub fn line(item: &Item, json: bool) -> Result<(), Failure> {
    if json {
        let mut out = JsonLines::to_stdout();
        return out.write(item).and_then(|()| out.flush()).map_err(Failure::failed);
    }
    let Item { number, bytes, .. } = item;
    let (accepted, topic, key) = (format!("{:.3}", item.accepted), visible(&item.topic), visible(&item.key));
    let error = item.error.as_deref().unwrap_or_default();
    let reason = item.reason.as_ref().map_or_else(String::new, |reason| format!("  {reason} ({error})"));
    println!("{number:>10}  {accepted:<24} {topic:<40} {key:<24} {bytes:>8}{reason}");
    Ok(())
}

/// Writes all items of each list to a file, or to standard output, as JSON, a line each; `all` is how many there are.
pub async fn export<L: Fn(Page) -> Ask>(
    access: &Access,
    lists: impl IntoIterator<Item = L>,
    all: u64,
    output: Option<PathBuf>,
) -> Result<(), Failure> {
    let mut file = writer(output.as_ref())?;
    let progress = progress(all);
    for list in lists {
        let write = |item| {
            progress.inc(1);
            file.write(&item).map_err(Failure::failed)
        };
        access.each(u64::MAX, true, list, write).await?;
    }
    file.flush().map_err(Failure::failed)?;
    progress.finish_and_clear();
    if let Some(path) = &output {
        eprintln!("{} events written to {}", progress.position(), path.display());
    }
    Ok(())
}

/// A file that must not be there yet, and that is its owner's alone, as the spool is; or standard output.
fn writer(path: Option<&PathBuf>) -> Result<JsonLines, Failure> {
    let Some(path) = path else { return Ok(JsonLines::to_stdout()) };
    let file = std::fs::File::options().write(true).create_new(true).mode(0o600).open(path);
    file.map(JsonLines::to_file).map_err(|e| Failure::Failed(format!("{}: {e}", path.display())))
}

pub fn progress(all: u64) -> ProgressBar {
    let style = ProgressStyle::with_template("{bar:40} {human_pos}/{human_len} {per_sec:.dim} {msg}");
    ProgressBar::new(all).with_style(style.expect("a valid template"))
}
