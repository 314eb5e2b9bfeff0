//! `config`: the reference, the effective configuration, and the schema for editors.

use super::print::{BOLD, DIM, WARNING, complaint, out, visible};
use super::spool::print_json;
use super::{Failure, Source};
use crate::config::{self, Config, DEFAULTS};

#[derive(clap::Args)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Print every key with its default and its explanation: a file to start from
    Default,
    /// Print the effective configuration, each value with its source; secrets are masked
    Show(Show),
    /// Print a JSON Schema of the configuration file, for editors that complete and check it
    Schema,
}

#[derive(clap::Args)]
#[command(
    after_help = "The output is a configuration file, except for secrets: those in files and variables are named, others are \"***\". No secret \
    is read, and no file that the configuration names."
)]
struct Show {
    #[command(flatten)]
    source: Source,
    /// Leave out the keys that have their defaults
    #[arg(long)]
    no_defaults: bool,
    /// Print JSON instead of TOML
    #[arg(long)]
    json: bool,
}

pub fn run(arguments: &Arguments) -> Result<(), Failure> {
    match &arguments.command {
        Command::Default => out(format_args!("{}", reference().trim_end())),
        Command::Show(arguments) => show(arguments),
        Command::Schema => out(format_args!("{:#}", config::schema())),
    }
}

/// The schema is beside a file of one's own, not where the relay's sources have it.
fn reference() -> String {
    DEFAULTS.replacen(SCHEMA_OF_SOURCES, "#:schema ./config.schema.json", 1)
}

const SCHEMA_OF_SOURCES: &str = "#:schema ../contract/config.schema.json";

fn show(Show { source, no_defaults, json }: &Show) -> Result<(), Failure> {
    let mut shown = Config::show(source.config.as_deref(), std::env::vars_os())?;
    if *no_defaults {
        shown.settings.retain(|setting| setting.source != config::Source::Default);
    }
    if *json {
        return print_json(&shown);
    }
    shown.warnings.iter().for_each(|warning| complaint(WARNING, "warning:", &visible(warning)));
    let file = shown.file.as_ref().map_or("no file".to_owned(), |file| file.display().to_string());
    let version = env!("CARGO_PKG_VERSION");
    let (without, defaults) = if *no_defaults { (" without its defaults", "") } else { ("", "the defaults, ") };
    out(format_args!("# The effective configuration of livechat-relay {version}{without}:"))?;
    out(format_args!("# {defaults}{}, the environment", visible(&file)))?;
    shown.toml().lines().try_for_each(|line| out(format_args!("{}", styled(&visible(line)))))
}

/// A line of TOML in which a value that is no default stands out.
fn styled(line: &str) -> String {
    match line.rsplit_once("  # ") {
        Some((setting, "default")) => format!("{setting}  {DIM}# default{DIM:#}"),
        Some(_) => format!("{BOLD}{line}{BOLD:#}"),
        None => line.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reference_begins_with_the_line_by_which_editors_find_the_schema() {
        assert!(DEFAULTS.starts_with(SCHEMA_OF_SOURCES));
        assert!(reference().starts_with("#:schema ./config.schema.json\n"));
    }

    #[test]
    fn a_value_that_is_no_default_stands_out() {
        assert_eq!(styled("a = 1  # default"), format!("a = 1  {DIM}# default{DIM:#}"));
        assert_eq!(
            styled("a = \"x  # default\"  # b.toml:1"),
            format!("{BOLD}a = \"x  # default\"  # b.toml:1{BOLD:#}")
        );
        assert_eq!(styled("[default]"), "[default]");
    }
}
