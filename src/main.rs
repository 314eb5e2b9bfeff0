//! Parses the command line, runs the command, turns its end into an exit code.

#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    livechat_relay::cli::main()
}
