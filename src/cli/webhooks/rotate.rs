//! `webhooks rotate`: another secret key for all webhooks of an app, without a webhook refused or lost.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;
use secrecy::{ExposeSecret as _, SecretString};
use tokio_util::sync::CancellationToken;

use super::apply::{Arguments, Work, registered, secret_key, stop_on_signal, tell_unclear};
use super::relay::{Relay, knows, lock};
use super::show::numbered;
use crate::cli::Failure;
use crate::cli::items::count;
use crate::cli::print::{GOOD, WARNING, complaint, err, note, out, wrapped};
use crate::cli::spool::print_json;
use crate::config::{Config, Need};
use crate::event::Keyring;
use crate::livechat::apply::{Interrupted, Progress, Relay as _, pause};
use crate::livechat::plan::{Change, Rotation, is_ours};
use crate::livechat::rotate::{
    Silence, delete_key, needs_old, new_name, new_secret_key, silence, to_rotate, with_key, write_key,
};
use crate::livechat::{Api, App, Registration};
use crate::relay::Policy;

/// From a relay's look at its files to the end of its reload: two looks a second apart find the same, and it takes its time to read.
const READING: Duration = Duration::from_secs(2);

/// The keys of a rotation, and where they stand.
struct Keys<'a> {
    directory: &'a Path,
    rotation: Rotation,
    /// Of one that was begun before.
    secret_key: Option<SecretString>,
}

pub async fn run(arguments: &Arguments) -> Result<(), Failure> {
    let Arguments { common, socket, dry_run, .. } = arguments;
    let config = common.source.load(Need::Registration)?;
    let (livechat, app) = (&config.livechat, common.source.app(&config.livechat.apps, common.app.as_deref())?);
    let _lock = if *dry_run { None } else { lock(&common.source)? };
    let keys = Keys::of(&config, app)?;
    let Rotation { old, new } = &keys.rotation;
    let relay = Relay::open(socket.as_deref(), config.control.socket.as_deref()).await?;
    let Some(seen) = relay.seen().await else {
        let why = match socket.as_deref().or(config.control.socket.as_deref()) {
            Some(socket) => format!("no relay answers at {}: start it first", socket.display()),
            None => "control.socket is not set, so no relay can be asked whether it accepts the new key: set it, or give --socket".to_owned(),
        };
        return Err(Failure::Failed(why));
    };
    let standing =
        format!("Both keys, {} and {new}, are in {}, and are accepted. ", old.join(", "), keys.directory.display());
    let work = Work {
        arguments,
        app,
        api: Api::new(livechat, app).telling(tell_unclear),
        relay,
        propagation: livechat.propagation,
        again: "webhooks rotate",
        keys: Some(standing),
    };
    let listed = work.api.list_webhooks().await?;
    let made = with_key(app, &listed, &BTreeSet::new(), &seen, (new, keys.secret_key.as_ref()));
    let changes = to_rotate(app, &listed, &seen, made.clone()).map_err(Failure::Failed)?;
    let blocked: Vec<_> = changes
        .iter()
        .filter(|change| change.is_blocked)
        .filter_map(Change::full)
        .map(|full| full.to_string())
        .collect();
    if !blocked.is_empty() {
        return Err(Failure::Failed(format!(
            "{}\n  Without that the old key would stay. Nothing was changed",
            blocked.join("\n")
        )));
    }
    let is_removed =
        |one: &Registration| changes.iter().any(|change| change.removed().any(|removed| removed.id == one.id));
    if let Some(left) = needs_old(app, listed.iter().filter(|one| !is_removed(one)), &seen, &made, old) {
        return Err(Failure::Failed(format!(
            "the webhook {} ({}) delivers here with the key {}, and is not replaced, for it is registered with {}, or of an action that the relay does not know. Remove it first (`livechat-relay webhooks unregister {}`). Nothing was changed",
            left.id,
            left.action,
            old.join(", "),
            left.url,
            left.id
        )));
    }
    let mut shown = Ok(());
    if !common.json {
        let what = if keys.secret_key.is_some() { "Continuing an unfinished rotation" } else { "A rotation" };
        let what = format!("{what}: the app {} gets the secret key {new} in place of {}.", app.name, old.join(", "));
        let steps = [vec![keys.first_step()], work.steps(&changes), vec![keys.last_step(livechat.propagation)]];
        let calls: usize = changes.iter().map(Change::calls).sum();
        let (what, steps) = (wrapped(&what, 0), numbered(&steps.concat()));
        shown = out(format_args!("{what}\n{steps}{} and a few that list.", count(calls as u64, "call")));
    }
    if *dry_run {
        shown?;
        return if common.json { print_json(&work.report(&changes, &[], None)) } else { Ok(()) };
    }
    if config.reload.check_interval.is_zero() {
        let what = "reload.check_interval is \"0s\": another relay with this directory would not read the new key, and refuse webhooks";
        complaint(WARNING, "warning:", what);
    }
    if !work.is_agreed(&changes, shown)? {
        return Ok(());
    }
    let stop = stop_on_signal()?;
    let mut done = Vec::new();
    let ended = keys.rotate(&work, &stop, config.reload.check_interval, &changes, &mut done).await;
    if ended.is_ok() {
        err(format_args!("{GOOD}rotated{GOOD:#}: the app {} now has only the secret key {new}", app.name));
    }
    work.finish(&changes, &done, ended)
}

/// The rotation of an app that was begun and has not ended: two keys in its directory tell that.
pub fn unfinished(config: &Config, app: &App) -> Option<Rotation> {
    let new = &app.key_directory.as_ref().and(app.secret_key.as_ref())?.name;
    let now = Timestamp::now();
    let valid = config.policy.keys().filter(|(of, key)| *of == app.name && key.validity().covers(now));
    let old: Vec<_> = valid.map(|(_, key)| key.name().to_owned()).filter(|name| name != new).collect();
    (!old.is_empty()).then(|| Rotation { old, new: new.clone() })
}

/// Another app that has this key under this name, as when two share a directory.
fn sharing<'p>(policy: &'p Policy, app: &App, (name, secret): (&str, &SecretString)) -> Option<&'p str> {
    let has = |ring: &Keyring| ring.has(secret.expose_secret()) && ring.keys().any(|key| key.name() == name);
    let mut others = policy.apps.values().filter(|other| *other.name != *app.name);
    others.find(|other| has(&other.keyring)).map(|other| &*other.name)
}

impl<'a> Keys<'a> {
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
        if let Some(rotation) = unfinished(config, app) {
            return Ok(Self { directory, rotation, secret_key: Some(secret.clone()) });
        }
        let keys = config.policy.keys().filter(|(of, _)| *of == app.name).map(|(_, key)| key.name());
        let new = new_name(keys, Timestamp::now()).ok_or_else(|| {
            Failure::Failed("the names of the keys are so long that none sorts behind them: rename one".to_owned())
        })?;
        Ok(Self { directory, rotation: Rotation { old: vec![newest.to_owned()], new }, secret_key: None })
    }

    fn first_step(&self) -> String {
        let (new, directory) = (&self.rotation.new, self.directory.display());
        match &self.secret_key {
            Some(_) => format!("have the relay read the key {new}, which is in {directory}"),
            None => format!("write the key {new} into {directory}, and have the relay read it"),
        }
    }

    fn last_step(&self, propagation: Duration) -> String {
        format!("delete {}, when no webhook has had it for {} s", self.rotation.old.join(", "), propagation.as_secs())
    }

    /// Does all of it. `check_interval`: how often another relay looks at the directory. `done` gets each step.
    ///
    /// # Errors
    /// Why it ended early, and how things stand.
    async fn rotate(
        &self,
        work: &Work<'_>,
        stop: &CancellationToken,
        check_interval: Duration,
        changes: &[Change],
        done: &mut Vec<Progress>,
    ) -> Result<(), Failure> {
        let (app, new) = (work.app, &self.rotation.new);
        let secret_key = self.begin(app, &work.relay).await?;
        if !check_interval.is_zero() {
            let wait = check_interval + READING;
            note(format_args!(
                "waiting       {} s for other relays with this directory to read the key",
                wait.as_secs()
            ));
            pause(stop, wait).await.map_err(|why| work.stopped(&why, ""))?;
        }
        let listed = work.api.list_webhooks().await.map_err(|why| work.stopped(&why, ""))?; // the answer, and the key, took their time
        let plan = |listed: &[_], made: &_, seen: &_| {
            to_rotate(app, listed, seen, with_key(app, listed, made, seen, (new, Some(&secret_key))))
        };
        work.run(stop, &secret_key, changes, listed, plan, done).await?;
        self.end(work, stop, &registered(done), &secret_key).await
    }

    /// Makes the new key, where it is not there yet, and waits until the relay knows it.
    ///
    /// # Errors
    /// It cannot be written, or the relay does not take it. One that was made here is removed again: LiveChat was not asked for anything.
    async fn begin(&self, app: &App, relay: &Relay) -> Result<SecretString, Failure> {
        let is_new = self.secret_key.is_none();
        let secret_key = self.secret_key.clone().map_or_else(|| self.written(), Ok)?;
        let known = match relay.reload().await {
            Ok(()) if relay.seen().await.is_some_and(|seen| knows(&seen, &app.name, &self.rotation.new)) => Ok(()),
            Ok(()) => Err(format!(
                "the relay has reloaded, and does not know the key {}: does it read {}?",
                self.rotation.new,
                self.directory.display()
            )),
            Err(failure) => Err(failure.to_string()),
        };
        let Err(why) = known else { return Ok(secret_key) };
        let Rotation { old, new } = &self.rotation;
        if !is_new {
            return Err(Failure::Failed(format!(
                "{why}. The key {new} is of a rotation that was begun before, so webhooks may be registered with it already, which the relay refuses as long as it does not know the key. Have it read {} (`livechat-relay reload`), and run `livechat-relay webhooks rotate` again; {} stays where it is",
                self.directory.display(),
                old.join(", ")
            )));
        }
        Err(Failure::Failed(match delete_key(self.directory, new) {
            Ok(()) => format!("{why}. LiveChat was not asked for anything"),
            Err(error) => format!("{why}. LiveChat was not asked for anything; the new key is still there: {error}"),
        }))
    }

    fn written(&self) -> Result<SecretString, Failure> {
        let secret_key = new_secret_key().map_err(Failure::failed)?;
        let like = self.directory.join(self.rotation.old.first().map_or("", String::as_str));
        let path = write_key(self.directory, &self.rotation.new, &secret_key, &like).map_err(|error| {
            let directory = self.directory.display();
            let why = format!("a new key cannot be written into {directory}: {error}");
            // It gets its name before all is on the disk.
            Failure::Failed(match self.directory.join(&self.rotation.new).try_exists() {
                Ok(false) => format!(
                    "{why}; run this as the relay's user, where the directory can be written. Nothing was changed"
                ),
                _ => format!(
                    "{why}. The key {} may stand there now; LiveChat was not asked for anything. Where it does, `livechat-relay webhooks rotate` goes on with it; or delete its file",
                    self.rotation.new
                ),
            })
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
        work: &Work<'_>,
        stop: &CancellationToken,
        made: &BTreeSet<String>,
        secret_key: &SecretString,
    ) -> Result<(), Failure> {
        let Work { app, relay, propagation, .. } = work;
        note(format_args!("waiting       until the old key is silent, {} s at least", propagation.as_secs()));
        for old in &self.rotation.old {
            match silence(relay, stop, &app.name, old, *propagation).await {
                Ok(Silence::Silent) => {}
                Ok(Silence::Used(by)) => {
                    let by = if by.is_empty() { "a webhook without webhook_id".to_owned() } else { by.join(", ") };
                    return Err(work.stopped(&format!("the old key {old} is used by {by}: end that first"), ""));
                }
                Ok(Silence::Unknown) => return Err(work.stopped(&self.not_known(), "")),
                Err(why @ Interrupted) => {
                    return Err(work.stopped(&why, "All webhooks are registered with the new key. "));
                }
            }
        }
        let listed = work.api.list_webhooks().await.map_err(|why| work.stopped(&why, ""))?;
        let Some(seen) = relay.seen().await else { return Err(work.stopped(&self.not_known(), "")) };
        let new = with_key(app, &listed, made, &seen, (&self.rotation.new, Some(secret_key)));
        // Of an action that the relay does not know, or by another address; what else stands there was replaced.
        let mut rest = listed.iter().filter(|one| is_ours(app, &one.url) && !new.contains(&one.id));
        if let Some(left) = rest.next().or_else(|| needs_old(app, listed.iter(), &seen, &new, &self.rotation.old)) {
            return Err(Failure::Failed(format!(
                "the webhook {} ({}) stays registered here, and may have an old key ({}), so its file stays. Register it again with the new key in Developer Console, or remove it (`livechat-relay webhooks unregister {}`); then delete the old file, and `livechat-relay reload`",
                left.id,
                left.action,
                self.rotation.old.join(", "),
                left.id
            )));
        }
        for old in &self.rotation.old {
            let deleted = delete_key(self.directory, old);
            deleted.map_err(|error| {
                Failure::Failed(format!("the old key {old} cannot be deleted: {error}; delete it by hand"))
            })?;
        }
        relay.reload().await.map_err(|why| {
            Failure::Failed(format!(
                "{why}\n  The webhooks are rotated, and the file of the old key {} is deleted: only `livechat-relay reload` is left, after which the relay does not accept that key any more",
                self.rotation.old.join(", ")
            ))
        })
    }

    fn not_known(&self) -> String {
        let old = self.rotation.old.join(", ");
        format!("the relay does not answer, so it is not known whether the old key {old} is used")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_that_has_its_name_when_writing_fails_is_named() {
        let directory = tempfile::tempdir().expect("a directory");
        let directory = directory.path();
        let rotation = Rotation { old: vec!["old".to_owned()], new: "new".to_owned() };
        let keys = Keys { directory, rotation, secret_key: None };
        let failure = keys.written().expect_err("there is no old key").to_string();
        assert!(failure.ends_with("Nothing was changed"), "{failure}");
        std::fs::write(directory.join("old"), "the old key").expect("written");
        std::fs::write(directory.join("new"), "of another run").expect("written");
        let failure = keys.written().expect_err("the name is taken").to_string();
        assert!(failure.contains("The key new may stand there now") && !failure.contains("Nothing"), "{failure}");
    }
}
