//! `webhooks rotate`: another secret key for all webhooks of an app, without a webhook refused or lost.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use secrecy::{ExposeSecret as _, SecretString};
use tokio::time::sleep;

use super::apply::{finish, is_agreed, report, secret_key, show, tell, tell_unclear};
use super::relay::{Relay, knows, lock};
use super::{Common, chosen};
use crate::cli::Failure;
use crate::cli::print::{GOOD, WARNING, note, out};
use crate::cli::spool::print_json;
use crate::config::{Config, Need};
use crate::event::Keyring;
use crate::livechat::apply::{Progress, Relay as _, Run, to_rotate, with_key};
use crate::livechat::plan::is_ours;
use crate::livechat::rotate::{Silence, delete_key, new_name, new_secret_key, silence, write_key};
use crate::livechat::{Api, App};
use crate::relay::Policy;

#[derive(clap::Args)]
#[command(
    after_help = "It runs where the relay runs: it writes the new key into the directory of secret_keys, and waits until the relay has read \
    it. Several relays must share that directory. Stopped in the middle and run again, it goes on; two keys in the directory are \
    what tells that."
)]
pub struct Arguments {
    #[command(flatten)]
    common: Common,
    /// The control socket of the running relay, instead of the one that the configuration leads to
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
    /// Say what would be done, step by step, and do nothing
    #[arg(long, conflicts_with = "yes")]
    dry_run: bool,
}

/// From a relay's look at its files to the end of its reload: two looks a second apart find the same, and it takes its time to read.
const READING: Duration = Duration::from_secs(2);

/// From which keys to which.
struct Rotation<'a> {
    directory: &'a Path,
    old: Vec<String>,
    new: String,
    /// Of one that was begun before.
    secret_key: Option<SecretString>,
}

pub async fn run(arguments: &Arguments) -> Result<(), Failure> {
    let Arguments { common, socket, yes, dry_run } = arguments;
    let config = common.source.load(Need::Registration)?;
    let (livechat, app) = (&config.livechat, chosen(&config.livechat.apps, common.app.as_deref())?);
    let _lock = if *dry_run { None } else { lock(&common.source)? };
    let rotation = Rotation::of(&config, app)?;
    let relay = Relay::open(socket.as_deref(), config.control.socket.as_deref()).await?;
    let Some(seen) = relay.seen().await else {
        let why = match socket.as_deref().or(config.control.socket.as_deref()) {
            Some(socket) => format!("no relay answers at {}: start it first", socket.display()),
            None => "control.socket is not set, so no relay can be asked whether it accepts the new key: set it, or give --socket".to_owned(),
        };
        return Err(Failure::Failed(why));
    };
    let api = Api::new(livechat, app).telling(tell_unclear);
    let begun = if rotation.secret_key.is_some() { "A rotation that was begun goes on. " } else { "" };
    let what = format!(
        "{begun}The secret key {} of the app {} is replaced by {}: each webhook is registered with it, then the old ones are unregistered, and at last {} in {} is deleted.",
        rotation.old.join(", "),
        app.name,
        rotation.new,
        rotation.old.join(", "),
        rotation.directory.display()
    );
    let listed = api.list_webhooks().await?;
    let changes = to_rotate(app, &listed, &BTreeSet::new(), &seen, &rotation.new).map_err(Failure::Failed)?;
    if !common.json {
        out(format_args!("{what}"))?;
        show(&changes)?;
    }
    if *dry_run {
        return if common.json { print_json(&report(app, &changes, &[], None)) } else { Ok(()) };
    }
    if config.reload.check_interval.is_zero() {
        note(format_args!(
            "{WARNING}reload.check_interval is \"0s\"{WARNING:#}: another relay with this directory would not read the new key, and refuse webhooks"
        ));
    }
    if !is_agreed(&changes, true, livechat.propagation, *yes)? {
        return Ok(());
    }
    let secret_key = rotation.begin(app, &relay).await?;
    if let Some(wait) = Some(config.reload.check_interval).filter(|interval| !interval.is_zero()) {
        let wait = wait + READING;
        note(format_args!("waiting       {} s for other relays with this directory to read the key", wait.as_secs()));
        sleep(wait).await;
    }

    let listed = api.list_webhooks().await?; // the answer, and the key, took their time
    let mut done: Vec<Progress> = Vec::new();
    let run = Run::new(&api, &relay, &secret_key, livechat.propagation, |step| {
        tell(&step);
        done.push(step);
    });
    let ended = run.to_end(listed, |listed, made, seen| to_rotate(app, listed, made, seen, &rotation.new)).await;
    let has_ended = ended.is_ok();
    finish(app, &changes, &done, ended, common.json, api.calls())?;
    if has_ended {
        let made = done.iter().filter_map(|step| match step {
            Progress::Registered { id, .. } => Some(id.clone()),
            _ => None,
        });
        rotation.end(app, &relay, &api, livechat.propagation, &made.collect()).await?;
        note(format_args!("{GOOD}rotated{GOOD:#}: the app {} has the secret key {} alone", app.name, rotation.new));
    }
    Ok(())
}

/// Another app that has this key under this name, as when two share a directory.
fn sharing<'p>(policy: &'p Policy, app: &App, (name, secret): (&str, &SecretString)) -> Option<&'p str> {
    let has = |ring: &Keyring| ring.has(secret.expose_secret()) && ring.keys().any(|key| key.name() == name);
    let mut others = policy.apps.values().filter(|other| *other.name != *app.name);
    others.find(|other| has(&other.keyring)).map(|other| &*other.name)
}

impl<'a> Rotation<'a> {
    /// # Errors
    /// The keys are in no directory, or none is valid.
    fn of(config: &Config, app: &'a App) -> Result<Self, Failure> {
        let Some(directory) = app.key_directory.as_deref() else {
            return Err(Failure::Usage(format!(
                "`rotate` needs the keys of the app {} in a directory: secret_keys = {{ directory = \"…\" }}; docs/operations.md has the rotation by hand",
                app.name
            )));
        };
        let (newest, secret) = secret_key(app)?;
        if let Some(other) = sharing(&config.policy, app, (newest, secret)) {
            return Err(Failure::Usage(format!(
                "the key {newest} of the app {} is that of the app {other}, too, which would have none when it is deleted: give each app a directory with keys of its own",
                app.name
            )));
        }
        let now = Timestamp::now();
        let keys = config.policy.keys().filter(|(of, _)| *of == app.name).map(|(_, key)| key);
        let (valid, all): (Vec<_>, Vec<_>) = {
            let all: Vec<_> = keys.map(|key| (key.name().to_owned(), key.validity().covers(now))).collect();
            (all.iter().filter(|(_, is_valid)| *is_valid).map(|(name, _)| name.clone()).collect(), all)
        };
        if valid.len() > 1 {
            let old = valid.into_iter().filter(|name| name != newest).collect();
            return Ok(Self { directory, old, new: newest.to_owned(), secret_key: Some(secret.clone()) });
        }
        let new = new_name(all.iter().map(|(name, _)| name.as_str()), now);
        let too_long =
            || Failure::Failed("the names of the keys are so long that none sorts behind them: rename one".to_owned());
        Ok(Self { directory, old: valid, new: new.ok_or_else(too_long)?, secret_key: None })
    }

    /// Makes the new key, where it is not there yet, and waits until the relay knows it.
    ///
    /// # Errors
    /// It cannot be written, or the relay does not take it: then it is removed again. LiveChat was not asked for anything.
    async fn begin(&self, app: &App, relay: &Relay) -> Result<SecretString, Failure> {
        let is_new = self.secret_key.is_none();
        let secret_key = self.secret_key.clone().map_or_else(|| self.written(), Ok)?;
        let known = match relay.reload().await {
            Ok(()) if relay.seen().await.is_some_and(|seen| knows(&seen, &app.name, &self.new)) => Ok(()),
            Ok(()) => Err(format!(
                "the relay has reloaded, and does not know the key {}: does it read {}?",
                self.new,
                self.directory.display()
            )),
            Err(failure) => Err(failure.to_string()),
        };
        let Err(why) = known else { return Ok(secret_key) };
        let removed = if is_new { delete_key(self.directory, &self.new) } else { Ok(()) };
        Err(Failure::Failed(match removed {
            Ok(()) => format!("{why}. LiveChat was not asked for anything"),
            Err(error) => format!("{why}. LiveChat was not asked for anything; the new key is still there: {error}"),
        }))
    }

    fn written(&self) -> Result<SecretString, Failure> {
        let secret_key = new_secret_key().map_err(Failure::failed)?;
        let like = self.directory.join(self.old.first().map_or("", String::as_str));
        let path = write_key(self.directory, &self.new, &secret_key, &like).map_err(|error| {
            Failure::Failed(format!(
                "a new key cannot be written into {}: {error}; run this as the relay's user, where the directory can be written. Nothing was changed",
                self.directory.display()
            ))
        })?;
        note(format_args!("written       {}", path.display()));
        Ok(secret_key)
    }

    /// Deletes the old keys when they are silent.
    ///
    /// # Errors
    /// One is used still, or may be, or cannot be deleted: it stays, and so does the new one.
    async fn end(
        &self,
        app: &App,
        relay: &Relay,
        api: &Api,
        propagation: Duration,
        made: &BTreeSet<String>,
    ) -> Result<(), Failure> {
        note(format_args!("waiting       until the old key is silent, {} s at least", propagation.as_secs()));
        let again = "its file stays; run `webhooks rotate` again when that has changed";
        for old in &self.old {
            match silence(relay, &app.name, old, propagation).await {
                Silence::Silent => {}
                Silence::Used(by) => {
                    let by = if by.is_empty() { "a webhook without webhook_id".to_owned() } else { by.join(", ") };
                    return Err(Failure::Failed(format!("the old key {old} is used by {by}; {again}")));
                }
                Silence::Unknown => {
                    return Err(Failure::Failed(format!(
                        "the relay does not answer, so it is not known whether the old key {old} is used; {again}"
                    )));
                }
            }
        }
        let listed = api.list_webhooks().await?;
        let seen = relay.seen().await.unwrap_or_default();
        let new = with_key(app, made, &seen, &self.new);
        // Of an action that the relay does not know; what else stands there was replaced.
        if let Some(left) = listed.iter().find(|one| is_ours(app, &one.url) && !new.contains(&one.id)) {
            return Err(Failure::Failed(format!(
                "the webhook {} ({}) stays registered here, and may have an old key ({}), so its file stays. Register it again with the new key in Developer Console, or remove it (`livechat-relay webhooks unregister {}`); then delete the old file, and `livechat-relay reload`",
                left.id,
                left.action,
                self.old.join(", "),
                left.id
            )));
        }
        for old in &self.old {
            let deleted = delete_key(self.directory, old);
            deleted.map_err(|error| {
                Failure::Failed(format!("the old key {old} cannot be deleted: {error}; delete it by hand"))
            })?;
        }
        relay.reload().await
    }
}
