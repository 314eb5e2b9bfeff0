//! What `--help` and the manual pages say besides the options: examples, and how a command ends. The command line is complete with them.

use anstyle::Style;
use clap::{Command, CommandFactory as _};

use super::Arguments;

/// How a command ends, for the programs that have started it. The first line that standard error has says why it was not with 0.
pub const EXIT_CODES: [(u8, &str); 4] = [
    (DONE, "done"),
    (FAILED, "failed, for the reason on standard error; a retry may succeed"),
    (PENDING, "with --exit-code: done, and something is to be changed"),
    (USAGE, "the command line or the configuration is wrong; a retry cannot succeed"),
];

pub const DONE: u8 = 0;
pub const FAILED: u8 = 1;
pub const PENDING: u8 = 2;
pub const USAGE: u8 = 64;

/// By command, and as a shell takes them. A unit test parses each.
const EXAMPLES: &[(&str, &[&str])] = &[
    (
        "",
        &[
            "livechat-relay demo",
            "livechat-relay check --config relay.toml",
            "livechat-relay serve --config relay.toml",
        ],
    ),
    (
        "serve",
        &[
            "livechat-relay serve --config relay.toml",
            "LIVECHAT_RELAY__LOG__FORMAT=json livechat-relay serve -c relay.toml",
        ],
    ),
    (
        "check",
        &[
            "livechat-relay check --config relay.toml",
            "livechat-relay check --offline --config relay.toml",
            "livechat-relay check --request body.json --app default --config relay.toml",
        ],
    ),
    ("health", &["livechat-relay health --config relay.toml", "livechat-relay health --live --address 127.0.0.1:8081"]),
    ("demo", &["livechat-relay demo", "livechat-relay demo --once"]),
    (
        "send",
        &[
            "LIVECHAT_SECRET_KEY=key livechat-relay send http://localhost:8080/webhooks",
            "livechat-relay send http://localhost:8080/webhooks --count 1000 --rate 50",
        ],
    ),
    ("simulate", &["livechat-relay simulate", "livechat-relay simulate --setup livechat.toml --propagation 5s"]),
    ("reload", &["livechat-relay reload --config relay.toml", "livechat-relay reload --dry-run --config relay.toml"]),
    (
        "log-level",
        &[
            "livechat-relay log-level debug --for 5m --config relay.toml",
            "livechat-relay log-level info,livechat_relay::publish=debug -c relay.toml",
            "livechat-relay log-level reset --config relay.toml",
        ],
    ),
    (
        "tail",
        &[
            "livechat-relay tail --config relay.toml",
            "livechat-relay tail --brokers localhost:9092 --from-beginning --count 10",
            "livechat-relay tail --action incoming_event --json -c relay.toml | jq .data",
        ],
    ),
    ("spool status", &["livechat-relay spool status --config relay.toml"]),
    ("spool list", &["livechat-relay spool list --since 2h --config relay.toml"]),
    ("spool export", &["livechat-relay spool export --output waiting.jsonl --config relay.toml"]),
    ("spool drop", &["livechat-relay spool drop --key PJ0MRSHTDG --dry-run --config relay.toml"]),
    ("spool drain", &["livechat-relay spool drain --config relay.toml"]),
    ("spool verify", &["livechat-relay spool verify --config relay.toml"]),
    ("spool pause", &["livechat-relay spool pause livechat.incoming_event --config relay.toml"]),
    ("spool resume", &["livechat-relay spool resume livechat.incoming_event --config relay.toml"]),
    (
        "dead-letters list",
        &[
            "livechat-relay dead-letters list --config relay.toml",
            "livechat-relay dead-letters list --kafka --config relay.toml",
        ],
    ),
    ("dead-letters show", &["livechat-relay dead-letters show 17 --config relay.toml"]),
    ("dead-letters export", &["livechat-relay dead-letters export --output letters.jsonl -c relay.toml"]),
    (
        "dead-letters replay",
        &[
            "livechat-relay dead-letters replay 17 18 --config relay.toml",
            "livechat-relay dead-letters replay --all --config relay.toml",
        ],
    ),
    ("dead-letters drop", &["livechat-relay dead-letters drop 17 --config relay.toml"]),
    ("webhooks list", &["livechat-relay webhooks list --config relay.toml"]),
    ("webhooks names", &["livechat-relay webhooks names --config relay.toml"]),
    (
        "webhooks plan",
        &[
            "livechat-relay webhooks plan --config relay.toml",
            "livechat-relay webhooks plan --exit-code --config relay.toml",
        ],
    ),
    (
        "webhooks apply",
        &[
            "livechat-relay webhooks apply --dry-run --config relay.toml",
            "livechat-relay webhooks apply --config relay.toml",
        ],
    ),
    (
        "webhooks rotate",
        &[
            "livechat-relay webhooks rotate --dry-run --config relay.toml",
            "livechat-relay webhooks rotate --config relay.toml",
        ],
    ),
    ("webhooks adopt", &["livechat-relay webhooks adopt --config relay.toml"]),
    ("webhooks state", &["livechat-relay webhooks state --config relay.toml"]),
    ("webhooks enable", &["livechat-relay webhooks enable --config relay.toml"]),
    ("webhooks disable", &["livechat-relay webhooks disable --config relay.toml"]),
    ("webhooks unregister", &["livechat-relay webhooks unregister --all --config relay.toml"]),
    (
        "auth login",
        &["livechat-relay auth login --config relay.toml", "livechat-relay auth login --paste --config relay.toml"],
    ),
    ("auth status", &["livechat-relay auth status --config relay.toml"]),
    ("auth logout", &["livechat-relay auth logout --config relay.toml"]),
    (
        "backfill",
        &[
            "livechat-relay backfill --from 2h --dry-run --config relay.toml",
            "livechat-relay backfill --from 2026-11-22T14:00:00Z -c relay.toml",
        ],
    ),
    (
        "actions",
        &["livechat-relay actions", "livechat-relay actions --json", "livechat-relay actions --example incoming_event"],
    ),
    (
        "contract",
        &["livechat-relay contract --out contract", "livechat-relay contract --config relay.toml --out contract"],
    ),
    ("config default", &["livechat-relay config default > relay.toml"]),
    (
        "config show",
        &["livechat-relay config show --config relay.toml", "livechat-relay config show --json --config relay.toml"],
    ),
    ("config schema", &["livechat-relay config schema > config.schema.json"]),
    (
        "completions",
        &[
            "livechat-relay completions bash > /etc/bash_completion.d/livechat-relay",
            "livechat-relay completions zsh > ~/.zfunc/_livechat-relay",
            "livechat-relay completions fish | source",
        ],
    ),
    ("man", &["livechat-relay man /usr/local/share/man/man1"]),
];

/// The command line, as it is parsed, printed by `--help`, and completed by shells.
pub fn command() -> Command {
    complete(Arguments::command(), "")
}

fn complete(mut command: Command, path: &str) -> Command {
    let names: Vec<String> = command.get_subcommands().map(|sub| sub.get_name().to_owned()).collect();
    for name in &names {
        let path = format!("{path} {name}");
        command = command.mut_subcommand(name, |sub| complete(sub, path.trim_start()));
    }
    let examples =
        EXAMPLES.iter().find(|(of, _)| *of == path).map_or_else(|| examples_of_group(path), |(_, own)| own.to_vec());
    let has_pending = path.is_empty() || command.get_arguments().any(|argument| argument.get_id() == "exit_code");
    let own = command.get_after_help().map(|own| format!("{own}\n\n")).unwrap_or_default();
    let heading = Style::new().bold().underline(); // as clap's own
    let examples = examples.iter().map(|example| format!("  {example}\n")).collect::<String>();
    let codes = EXIT_CODES.iter().filter(|(code, _)| has_pending || *code != PENDING);
    let codes = codes.map(|(code, meaning)| format!("  {code:<4}{meaning}")).collect::<Vec<_>>().join("\n");
    command.after_long_help(format!(
        "{own}{heading}Examples:{heading:#}\n{examples}\n{heading}Exit codes:{heading:#}\n{codes}"
    ))
}

/// Of a command that has others below it: what the first of them are good for.
fn examples_of_group(path: &str) -> Vec<&'static str> {
    let below = EXAMPLES.iter().filter(|(of, _)| of.strip_prefix(path).is_some_and(|rest| rest.starts_with(' ')));
    below.filter_map(|(_, examples)| examples.first().copied()).take(3).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The paths of all commands that do something themselves.
    fn leaves(command: &Command, path: &str) -> Vec<String> {
        let subs = command.get_subcommands();
        let found: Vec<_> =
            subs.flat_map(|sub| leaves(sub, format!("{path} {}", sub.get_name()).trim_start())).collect();
        if found.is_empty() { vec![path.to_owned()] } else { found }
    }

    /// What clap finds only when a command is run, and then by a panic: groups, ids and short options that are there twice.
    #[test]
    fn the_command_line_passes_claps_own_check() {
        command().debug_assert();
    }

    #[test]
    fn what_a_command_does_fits_beside_its_name_on_80_columns() {
        let command = command();
        let names = command.get_subcommands().map(|sub| sub.get_name().len()).max().expect("commands");
        for about in command.get_subcommands().filter_map(clap::Command::get_about) {
            assert!(names + 4 + about.to_string().len() <= 80, "{about}");
        }
    }

    #[test]
    fn every_command_has_one_to_three_examples_and_no_example_is_of_none() {
        let mut with_examples: Vec<_> = EXAMPLES.iter().map(|(path, _)| (*path).to_owned()).collect();
        with_examples.sort_unstable();
        let mut commands = leaves(&Arguments::command(), "");
        commands.push(String::new());
        commands.sort_unstable();
        assert_eq!(with_examples, commands);
        assert!(EXAMPLES.iter().all(|(_, examples)| (1..=3).contains(&examples.len())));
        let mut all = EXAMPLES.iter().flat_map(|(_, examples)| *examples);
        assert_eq!(all.find(|example| example.len() > 78), None, "a terminal of 80 columns would break it");
    }

    #[test]
    fn every_example_is_taken_by_the_command_that_it_is_of() {
        for (path, examples) in EXAMPLES {
            for example in *examples {
                // What follows is for the shell.
                let end = example.find(['>', '|']).unwrap_or(example.len());
                let (variables, mut words): (Vec<_>, Vec<_>) =
                    example[..end].split_whitespace().partition(|word| word.starts_with("LIVECHAT_"));
                let mut parser = command();
                // The environment of a test cannot be changed: an option has the value of its variable as its default here.
                for (name, value) in variables.iter().filter_map(|set| set.split_once('=')) {
                    parser = parser.mut_subcommands(|sub| {
                        sub.mut_args(|arg| match arg.get_env() {
                            Some(variable) if variable == name => arg.required(false).default_value(value),
                            _ => arg,
                        })
                    });
                }
                let parsed = parser.try_get_matches_from(words.drain(..)).unwrap_or_else(|e| panic!("{example}: {e}"));
                let (mut called, mut matches) = (Vec::new(), &parsed);
                while let Some((name, sub)) = matches.subcommand() {
                    called.push(name);
                    matches = sub;
                }
                assert!(path.is_empty() || called.join(" ") == *path, "{example} is no example of {path}");
            }
        }
    }

    #[test]
    fn a_command_with_others_below_it_has_examples_of_them() {
        let mut command = command();
        let help = command.find_subcommand_mut("spool").expect("it").render_long_help().to_string();
        for example in ["spool status", "spool list", "spool export"] {
            assert!(help.contains(&format!("livechat-relay {example}")), "{help}");
        }
    }

    #[test]
    fn the_exit_codes_are_in_the_help_of_every_command() {
        for path in leaves(&Arguments::command(), "") {
            let mut command = command();
            let sub =
                path.split(' ').fold(&mut command, |command, name| command.find_subcommand_mut(name).expect("it"));
            let help = sub.render_long_help().to_string();
            for (code, meaning) in EXIT_CODES {
                let is_told = help.contains(&format!("  {code:<4}{meaning}"));
                assert_eq!(is_told, code != PENDING || path == "webhooks plan", "{path}: {help}");
            }
        }
    }
}
