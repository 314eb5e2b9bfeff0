//! Configurations, right and wrong, as an operator would write them.

mod apps;
mod canary;
mod keys;
mod limits;
mod mistakes;
mod rules;
mod secrets;
mod shown;
mod sources;

use std::io::Write as _;

use super::*;
use crate::relay::Endpoint;

fn load(file: &str, env: &[(&str, &str)]) -> Result<Config, Vec<String>> {
    let mut on_disk = tempfile::NamedTempFile::new().expect("a file");
    on_disk.write_all(file.as_bytes()).expect("written");
    let env = env.iter().map(|(name, value)| (format!("LIVECHAT_RELAY__{name}").into(), value.into()));
    Config::load(Some(on_disk.path()), env, Need::Everything).map_err(|mistakes| mistakes.without_places())
}

/// The mistakes of a configuration whose app is right.
fn mistakes(file: &str) -> Vec<String> {
    let file = format!(
        "{file}\n[[apps]]\nname = \"default\"\nsecret_keys = [{{ name = \"k\", value = \"hunter2hunter2hunter2\" }}]\n"
    );
    load(&file, &[]).err().unwrap_or_default()
}

const APP: &str = "[[apps]]\nname = \"default\"\nsecret_keys = [{ name = \"k\", value = \"hunter2hunter2hunter2\" }]\n";

#[test]
fn the_defaults_and_an_app_are_enough() {
    let config = load(APP, &[]).expect("a configuration");
    assert_eq!(config.server.listener.listen.to_string(), "0.0.0.0:8080");
    assert_eq!(config.admin.listen.to_string(), "127.0.0.1:8081");
    assert_eq!(config.server.webhooks.body_bytes_max, 2 << 20);
    assert_eq!(config.server.webhooks.response_deadline, Duration::from_secs(8));
    assert_eq!(config.policy.endpoint("/webhooks").as_ref().map(Endpoint::app), Some("default"));
    assert_eq!(config.policy.topics().len(), 48);
}

/// As `load`, with variables of any name and any bytes.
fn read(file: &str, env: &[(&str, &[u8])], need: Need) -> Result<Config, Mistakes> {
    use std::os::unix::ffi::OsStrExt as _;
    let on_disk = holding(file);
    let text = |bytes: &[u8]| std::ffi::OsStr::from_bytes(bytes).to_owned();
    let env = env.iter().map(|(name, value)| (text(name.as_bytes()), text(value)));
    Config::load(Some(on_disk.path()), env, need)
}

fn holding(text: &str) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().expect("a file");
    file.write_all(text.as_bytes()).expect("written");
    file
}

/// What is wrong with a configuration in which something is.
fn refused(file: &str, env: &[(&str, &[u8])]) -> Mistakes {
    read(file, env, Need::Everything).err().expect("mistakes")
}

fn with_app(more: &str) -> String {
    format!("{more}\n{APP}")
}

/// A configuration of the app `a` with one key, which stands at `place`.
fn with_key(place: &str) -> String {
    format!("[[apps]]\nname = \"a\"\nsecret_keys = [{{ name = \"k\", {place} }}]\n")
}

/// Whether a webhook of the app `a` with this key is verified.
fn accepts(config: &Config, secret: &str) -> bool {
    let body = format!(r#"{{"secret_key":"{secret}","action":"a","payload":{{}}}}"#);
    let delivery = crate::event::receive::receive(body.as_bytes()).expect("well-formed");
    crate::event::verify::verify(delivery, &config.policy.apps["a"].keyring, jiff::Timestamp::now()).is_ok()
}
