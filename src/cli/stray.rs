//! Arguments that no command takes: what was probably meant.

use std::ffi::OsString;

use clap::error::{ContextKind, ContextValue, Error, ErrorKind};

use super::examples::command;

/// The error with a tip where the argument is the configuration's file, without its option.
pub fn explained(mut error: Error, arguments: impl Iterator<Item = OsString>) -> Error {
    let stray = match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::String(stray)) if error.kind() == ErrorKind::UnknownArgument => stray.clone(),
        _ => return error,
    };
    let with_option = |argument: OsString| {
        let option = (argument == stray.as_str()).then(|| "--config".into());
        option.into_iter().chain([argument])
    };
    if command().try_get_matches_from(arguments.flat_map(with_option)).is_ok() {
        let tip = format!("a configuration is given as --config {stray}");
        error.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![tip.into()]));
    }
    error
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_without_its_option_is_a_configuration_where_the_command_takes_one() {
        let told = |line: &str| {
            let arguments = || line.split(' ').map(OsString::from);
            let error = command().try_get_matches_from(arguments()).expect_err("a mistake");
            explained(error, arguments()).to_string()
        };
        let tip = "tip: a configuration is given as --config k.toml";
        assert!(told("livechat-relay check k.toml --offline").contains(tip));
        assert!(told("livechat-relay spool list k.toml").contains(tip));
        for other in ["demo k.toml", "check -c k.toml k.toml", "check --ofline"] {
            assert!(!told(&format!("livechat-relay {other}")).contains("--config"), "{other}");
        }
    }
}
