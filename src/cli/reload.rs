//! `reload`: has the running relay read its configuration again, and says what has become of it.

use super::Failure;
use super::access::{Where, unexpected};
use super::print::{GOOD, WARNING, out, visible};
use super::spool::print_json;
use crate::config::Mistakes;
use crate::control::{Answer, Reloaded, Request};

#[derive(clap::Args)]
#[command(
    after_help = "The relay reads its own file, in its own environment. If that has mistakes, it keeps the former configuration. Keys that need a \
    restart are listed; they are not a failure."
)]
pub struct Arguments {
    #[command(flatten)]
    place: Where,
    /// Show what would change; change nothing
    #[arg(long)]
    dry_run: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub async fn run(Arguments { place, dry_run, json }: Arguments) -> Result<(), Failure> {
    let answer = place.running().await?.ask(Request::Reload { dry_run }, |_| Ok(())).await?;
    let Answer::Reloaded(reloaded) = answer else { return Err(unexpected(&answer)) };
    if json {
        print_json(&reloaded)?;
    }
    let Reloaded { file, changed, needs_restart, warnings, mistakes, may_pass } = reloaded;
    if !mistakes.is_empty() {
        return Err(Mistakes { lines: mistakes, may_pass, ..Mistakes::default() }.into());
    }
    if json {
        return Ok(());
    }
    let file = file.map_or("the environment".to_owned(), |file| visible(&file.display().to_string()));
    let list = |keys: &[String]| keys.iter().map(|key| format!("\n  {}", visible(key))).collect::<String>();
    match (changed.is_empty(), dry_run) {
        (true, _) => out(format_args!("{GOOD}nothing to apply in {file}{GOOD:#}"))?,
        (false, true) => out(format_args!("would be reloaded from {file}; changed:{}", list(&changed)))?,
        (false, false) => out(format_args!("{GOOD}reloaded from {file}{GOOD:#}; changed:{}", list(&changed)))?,
    }
    for warning in &warnings {
        out(format_args!("{WARNING}warning{WARNING:#}: {}", visible(warning)))?;
    }
    if !needs_restart.is_empty() {
        out(format_args!("{WARNING}changed{WARNING:#}, but effective only after a restart:{}", list(&needs_restart)))?;
    }
    Ok(())
}
