//! `completions` and `man`: what shells and `man` know of the command line, made from the command line itself.

use std::path::PathBuf;

use clap_complete::Shell;

use super::{Failure, examples, print};

#[derive(clap::Args)]
pub struct Arguments {
    shell: Shell,
}

pub fn run(arguments: &Arguments) -> Result<(), Failure> {
    print::out(format_args!("{}", script(arguments.shell).trim_end()))
}

fn script(shell: Shell) -> String {
    let (mut command, mut script) = (examples::command(), Vec::new());
    clap_complete::generate(shell, &mut command, "livechat-relay", &mut script);
    let script = String::from_utf8_lossy(&script);
    // clap_complete 4.6.11 writes a name with a hyphen in two ways in its script for bash, which then completes no subcommand.
    script.replace("livechat__subcmd__relay", "livechat__relay")
}

#[derive(clap::Args)]
pub struct Man {
    /// Directory to write to; created if missing
    #[arg(value_name = "DIR")]
    directory: PathBuf,
}

pub fn man(Man { directory }: &Man) -> Result<(), Failure> {
    let command = examples::command().disable_help_subcommand(true);
    std::fs::create_dir_all(directory)
        .and_then(|()| clap_mangen::generate_to(command, directory))
        .map_err(|error| Failure::Failed(format!("{} cannot be written: {error}", directory.display())))?;
    print::note(format_args!("manual pages written to {}; try `man -l {0}/livechat-relay.1`", directory.display()));
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum as _;

    use super::*;

    #[test]
    fn every_shell_completes_every_command() {
        for shell in Shell::value_variants() {
            let script = script(*shell);
            for name in ["serve", "dead-letters", "replay", "config", "--from-beginning"] {
                let name = if *shell == Shell::Fish { name.trim_start_matches('-') } else { name };
                assert!(script.contains(name), "{shell}: no {name}");
            }
        }
    }

    #[test]
    fn bash_completes_commands_and_their_options() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("completions");
        std::fs::write(&path, script(Shell::Bash)).expect("written");
        for (typed, expected) in [
            ("se", "serve send"),
            ("tail --from", "--from-beginning"),
            ("spool st", "status"),
            ("dead-letters rep", "replay"),
            ("webhooks plan --exit", "--exit-code"),
        ] {
            let complete = format!(
                "source {}; COMP_WORDS=(livechat-relay {typed}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); \
                 _livechat__relay livechat-relay \"${{COMP_WORDS[COMP_CWORD]}}\" \"${{COMP_WORDS[COMP_CWORD-1]}}\"; \
                 echo \"${{COMPREPLY[*]}}\"",
                path.display()
            );
            let output = std::process::Command::new("bash").args(["--norc", "-c", &complete]).output().expect("bash");
            let (found, said) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
            let mut found: Vec<_> = found.split_whitespace().collect();
            found.sort_unstable();
            let mut expected: Vec<_> = expected.split(' ').collect();
            expected.sort_unstable();
            assert_eq!(found, expected, "{typed}: {said}");
        }
    }

    #[test]
    fn every_command_has_a_manual_page_with_its_examples_and_the_exit_codes() {
        let directory = tempfile::tempdir().expect("a directory");
        man(&Man { directory: directory.path().join("man1") }).expect("written");
        let page = |name: &str| std::fs::read_to_string(directory.path().join("man1").join(name)).expect("a page");
        for name in ["livechat-relay.1", "livechat-relay-serve.1", "livechat-relay-dead-letters-replay.1"] {
            let page = page(name);
            assert!(page.contains("Exit codes:") && page.contains("Examples:") && !page.contains('\x1b'), "{page}");
        }
        assert!(page("livechat-relay-config-show.1").contains("livechat\\-relay config show"));
    }
}
