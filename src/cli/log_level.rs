//! `log-level`: gives the log of the running relay another filter for a time.

use std::time::Duration;

use super::Failure;
use super::access::{Where, unexpected};
use super::print::{out, visible};
use super::spool::print_json;
use crate::control::{Answer, LogLevel, Request, Temporary};
use crate::telemetry::Config;

/// Ends the time at once.
const RESET: &str = "reset";

#[derive(clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    place: Where,
    /// A filter like log.filter, such as debug or "info,livechat_relay::publish=debug"; or reset, to return to the configured one
    filter: String,
    /// Return to the configured filter after this time; at most log.temporary_max
    #[arg(long = "for", default_value = "10m", value_parser = super::send::duration, value_name = "TIME")]
    time: Duration,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub async fn run(Arguments { place, filter, time, json }: Arguments) -> Result<(), Failure> {
    if filter != RESET && !Config::is_filter(&filter) {
        return Err(Failure::Usage(format!("the filter must be {}, or {RESET}", Config::FILTERS)));
    }
    let for_ms = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    let temporary = (filter != RESET).then_some(Temporary { filter, for_ms });
    let answer = place.running().await?.ask(Request::LogLevel { temporary }, |_| Ok(())).await?;
    let Answer::LogLevel(level) = answer else { return Err(unexpected(&answer)) };
    if json {
        return print_json(&level);
    }
    let LogLevel { filter, until, configured } = level;
    let (filter, configured) = (visible(&filter), visible(&configured));
    match until {
        Some(until) => out(format_args!("the log's filter is {filter} until {until:.0}, then {configured}")),
        None => out(format_args!("the log's filter is {configured}, as configured")),
    }
}
