//! The command line: one file a subcommand, and how each may end.

mod access;
mod actions;
mod auth;
mod backfill;
mod check;
mod completions;
mod config;
mod contract;
mod dead_letters;
mod demo;
mod examples;
mod found;
mod health;
mod items;
mod log_level;
mod print;
mod reach;
mod reload;
mod send;
mod serve;
mod simulate;
mod spool;
mod stray;
mod tail;
mod tls;
mod webhooks;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{ArgMatches, FromArgMatches as _, Parser, Subcommand};

use crate::config::{Config, Mistakes, Need};
use crate::publish::Unusable;
use crate::telemetry;

/// Receive LiveChat webhooks, verify them, and publish them to Kafka. A webhook is answered 200 only when its event is stored in Kafka or on disk.
#[derive(Parser)]
#[command(name = "livechat-relay", version, arg_required_else_help = true, max_term_width = print::WIDTH_MAX)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Receive webhooks and publish them to Kafka until SIGTERM
    Serve(serve::Arguments),
    /// Check configuration, secrets, spool and Kafka before a start
    Check(check::Arguments),
    /// Ask a running relay whether it is ready; the exit code is 0 or 1
    Health(health::Arguments),
    /// Try it: a mock Kafka, the relay and webhooks, in one process
    Demo(demo::Arguments),
    /// Send webhooks as LiveChat does, to try or to load a relay
    Send(send::Arguments),
    /// Simulate LiveChat: its APIs and the webhooks that it sends
    Simulate(simulate::Arguments),
    /// Apply a changed configuration to the running relay
    Reload(reload::Arguments),
    /// Change the running relay's log filter for a limited time
    LogLevel(log_level::Arguments),
    /// Print events as they arrive on Kafka
    Tail(tail::Arguments),
    /// Show events that wait on disk; export, delete or publish them
    Spool(spool::Arguments),
    /// Show events that their topic rejected; publish or delete them
    DeadLetters(dead_letters::Arguments),
    /// Show which webhooks LiveChat has; change them as configured
    Webhooks(webhooks::Arguments),
    /// Authorize the relay at LiveChat: log in, show status, log out
    Auth(auth::Arguments),
    /// After downtime, publish missed events from LiveChat's archives
    Backfill(backfill::Arguments),
    /// List LiveChat's actions, and where the relay publishes each
    Actions(actions::Arguments),
    /// Write the contract for consumers: schemas, examples, AsyncAPI
    Contract(contract::Arguments),
    /// Print the configuration: reference, effective values, schema
    Config(config::Arguments),
    /// Print a completion script for a shell
    Completions(completions::Arguments),
    /// Write a manual page for each command
    Man(completions::Man),
}

/// Where the configuration comes from.
#[derive(clap::Args)]
struct Source {
    /// Configuration file (TOML). LIVECHAT_RELAY__SECTION__KEY variables override it; missing keys have their defaults
    #[arg(long, short, value_name = "FILE", env = "LIVECHAT_RELAY_CONFIG", hide_env_values = true)]
    config: Option<PathBuf>,
}

impl Source {
    fn read(&self, need: Need) -> Result<Config, Mistakes> {
        Config::load(self.config.as_deref(), std::env::vars_os(), need)
    }

    /// As `read`, with the warnings on standard error.
    fn load(&self, need: Need) -> Result<Config, Failure> {
        let config = self.read(need)?;
        config.warnings.iter().for_each(|warning| print::complaint(print::WARNING, "warning:", warning));
        Ok(config)
    }

    /// Why the configuration lacks what a command needs: a person may have forgotten to give it.
    fn lacking(&self, failure: Failure) -> Failure {
        match self.config {
            Some(_) => failure,
            None => Failure::Usage(
                "no configuration file is given, and none is looked for: add -c FILE, or set LIVECHAT_RELAY_CONFIG"
                    .to_owned(),
            ),
        }
    }
}

/// How a command did not succeed. The text is for a person, and says what to do.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The command line or the configuration has to change.
    #[error("{0}")]
    Usage(String),
    #[error("{0}")]
    Failed(String),
    /// What read the output has ended, as `head` does: nothing more is to be done, and nothing to be said.
    #[error("the output is closed")]
    Closed,
    /// Where it was asked for: nothing has failed, and something is to be done.
    #[error("something is to be done")]
    Pending,
}

impl Failure {
    fn failed(why: impl std::fmt::Display) -> Self {
        Self::Failed(why.to_string())
    }
}

impl From<Mistakes> for Failure {
    fn from(mistakes: Mistakes) -> Self {
        let lines = mistakes.lines.join("\n  ");
        if mistakes.may_pass {
            Self::Failed(format!("the configuration, or a file that it names, cannot be read:\n  {lines}"))
        } else {
            Self::Usage(format!("the configuration is wrong:\n  {lines}"))
        }
    }
}

impl From<crate::livechat::Failure> for Failure {
    fn from(failure: crate::livechat::Failure) -> Self {
        Self::failed(failure)
    }
}

/// Why a client of Kafka cannot be made: mostly properties that do not go together.
impl From<Unusable> for Failure {
    fn from(unusable: Unusable) -> Self {
        match unusable {
            Unusable::Thread(_) => Self::failed(unusable),
            _ => Self::Usage(format!("kafka.properties: {unusable}")),
        }
    }
}

/// Runs what the command line says. The exit code is one of `examples::EXIT_CODES`.
pub fn main() -> ExitCode {
    let parsed = examples::command().try_get_matches();
    let parsed = parsed.and_then(|matches| Ok((config_path(&matches), Arguments::from_arg_matches(&matches)?)));
    let (config_path, arguments) = match parsed {
        Ok(parsed) => parsed,
        Err(error) => {
            let error = stray::explained(error, std::env::args_os());
            let _ = error.print(); // nowhere to tell of a terminal that is gone
            return ExitCode::from(if error.use_stderr() { examples::USAGE } else { examples::DONE });
        }
    };
    let outcome = run(arguments.command);
    let code = match &outcome {
        Ok(()) | Err(Failure::Closed) => examples::DONE,
        Err(Failure::Failed(_)) => examples::FAILED,
        Err(Failure::Usage(_)) => examples::USAGE,
        Err(Failure::Pending) => examples::PENDING,
    };
    if let Err(failure) = outcome
        && !matches!(failure, Failure::Closed | Failure::Pending)
    {
        complain(&failure, config_path.as_deref());
    }
    telemetry::flush();
    ExitCode::from(code)
}

/// What the user gave the command as its configuration, if anything.
fn config_path(matches: &ArgMatches) -> Option<PathBuf> {
    match matches.subcommand() {
        Some((_, of_subcommand)) => config_path(of_subcommand),
        None => matches.try_get_one::<PathBuf>("config").ok().flatten().cloned(), // an error where the command has none
    }
}

fn run(command: Command) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(|e| Failure::Failed(format!("the threads cannot be started: {e}")))?;
    // These have a log of their own.
    if !matches!(command, Command::Serve(_) | Command::Demo(_)) {
        telemetry::start_if_asked();
    }
    let outcome = runtime.block_on(async {
        match command {
            Command::Serve(arguments) => serve::run(arguments).await,
            Command::Check(arguments) => check::run(arguments).await,
            Command::Health(arguments) => health::run(arguments).await,
            Command::Demo(arguments) => demo::run(arguments).await,
            Command::Send(arguments) => send::run(arguments).await,
            Command::Simulate(arguments) => simulate::run(arguments).await,
            Command::Reload(arguments) => reload::run(arguments).await,
            Command::LogLevel(arguments) => log_level::run(arguments).await,
            Command::Tail(arguments) => tail::run(arguments).await,
            Command::Spool(arguments) => spool::run(arguments).await,
            Command::DeadLetters(arguments) => dead_letters::run(arguments).await,
            Command::Webhooks(arguments) => webhooks::run(arguments).await,
            Command::Auth(arguments) => until_interrupted(auth::run(arguments)).await,
            Command::Backfill(arguments) => backfill::run(arguments).await,
            Command::Actions(arguments) => actions::run(&arguments),
            Command::Contract(arguments) => contract::run(&arguments),
            Command::Config(arguments) => config::run(&arguments),
            Command::Completions(arguments) => completions::run(&arguments),
            Command::Man(arguments) => completions::man(&arguments),
        }
    });
    // A command that was interrupted, or a relay that was stopped, may leave a refresh half way.
    if let Err(failure) = runtime.block_on(crate::livechat::refreshes_ended()) {
        complain(&failure.into(), None);
    }
    runtime.shutdown_background(); // what still runs there has nothing to lose
    outcome
}

/// A command that ends at Ctrl-C, but not as the signal itself would end it: that could meet a refresh of tokens half way. For commands that
/// ask nothing on the terminal while they block their thread.
async fn until_interrupted(command: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    tokio::select! {
        done = command => done,
        _ = tokio::signal::ctrl_c() => Err(Failure::Failed("interrupted".to_owned())),
    }
}

/// Says why a command has failed: in the log, where there is one.
fn complain(failure: &Failure, config_path: Option<&Path>) {
    if telemetry::is_started() {
        tracing::error!("{failure}");
    } else {
        print::complaint(print::ERROR, "error:", &print::with_commands(config_path, &failure.to_string()));
    }
}

/// Each connection is an open file, and each file of the spool, and the usual soft limit is 1,024: it becomes what the hard one
/// lets it be. The limit that is then in force.
fn raise_open_files() -> u64 {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let is_raised = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).is_ok();
    // None means that there is no limit.
    if is_raised { limit.maximum } else { limit.current }.unwrap_or(u64::MAX)
}
