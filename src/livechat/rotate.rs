//! A new secret key as a file in the directory of keys, what is registered with it, and the end of an old one.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, fchown};
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use jiff::civil::DateTime;
use secrecy::{ExposeSecret as _, SecretString};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::apply::{Interrupted, Relay, delivered, pause};
use super::plan::{Change, Facts, Why, plan};
use super::{App, Registration};
use crate::deliveries::{Delivered, Seen};
use crate::event::Token;

/// The bytes of a new key, before they are written in hex: as many as no one can guess.
const KEY_BYTES: usize = 32;

/// The longest name of a key, as the configuration has it.
const NAME_BYTES_MAX: usize = 64;

/// The time in the name of a new key.
const STAMP: &str = "%Y-%m-%dT%H%M%SZ";

/// Where a new key is written before it has its name. The relay reads no such file as a key.
const UNFINISHED: &str = ".livechat-relay.new";

/// From the operating system's random source, in hex.
///
/// # Errors
/// It gives nothing.
pub fn new_secret_key() -> io::Result<SecretString> {
    let mut bytes = [0; KEY_BYTES];
    let source = rustls::crypto::ring::default_provider().secure_random;
    source.fill(&mut bytes).map_err(|_| io::Error::other("the operating system gives no random bytes"))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>().into())
}

/// A name for a new key, which sorts behind those that there are: the last one is what new registrations get. `None`: there is none
/// of at most 64 bytes.
pub fn new_name<'n>(names: impl IntoIterator<Item = &'n str>, now: Timestamp) -> Option<String> {
    let stamp = now.strftime(STAMP).to_string();
    let name = match names.into_iter().max() {
        Some(last) if last >= stamp.as_str() => {
            // A name that was made here gets the new time in place of its own, or names would grow with each rotation.
            let parts = last.len().checked_sub(stamp.len() + 1).and_then(|at| last.split_at_checked(at));
            let is_time =
                |text: &str| text.strip_prefix('-').is_some_and(|time| DateTime::strptime(STAMP, time).is_ok());
            let own = parts.filter(|(_, time)| is_time(time));
            let replaced = own.map(|(name, _)| format!("{name}-{stamp}")).filter(|name| name.as_str() > last);
            replaced.unwrap_or_else(|| format!("{last}-{stamp}"))
        }
        _ => stamp,
    };
    (name.len() <= NAME_BYTES_MAX).then_some(name)
}

/// Writes a new key with the owner and the mode of `like`, an old one. It has its name when it is whole and on the disk, and takes no other
/// file's place.
///
/// # Errors
/// It is not there; or, if it has its name, it may not be on the disk, or not under that name alone.
pub fn write_key(directory: &Path, name: &str, secret_key: &SecretString, like: &Path) -> io::Result<PathBuf> {
    let (unfinished, path) = (directory.join(UNFINISHED), directory.join(name));
    match fs::remove_file(&unfinished) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {} // of a run that was killed
    }
    let written = write(&unfinished, secret_key, like).and_then(|()| fs::hard_link(&unfinished, &path));
    let removed = fs::remove_file(&unfinished);
    written?;
    removed?;
    sync(directory)?;
    Ok(path)
}

fn write(path: &Path, secret_key: &SecretString, like: &Path) -> io::Result<()> {
    let like = fs::metadata(like)?;
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    let own = file.metadata()?;
    if (own.uid(), own.gid()) != (like.uid(), like.gid()) {
        fchown(&file, Some(like.uid()), Some(like.gid()))?;
    }
    file.set_permissions(fs::Permissions::from_mode(like.mode() & 0o777))?;
    writeln!(file, "{}", secret_key.expose_secret())?;
    file.sync_all()
}

/// Deletes the file of a key.
///
/// # Errors
/// It may still be there.
pub fn delete_key(directory: &Path, name: &str) -> io::Result<()> {
    match fs::remove_file(directory.join(name)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(()) => sync(directory),
    }
}

fn sync(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

/// What is to be done so that each webhook that is wanted is registered with the new key: all that do not have it are replaced.
///
/// # Errors
/// Something is registered at the relay that is not wanted, so nothing would take its place; or nothing is wanted.
pub fn to_rotate(
    app: &App,
    listed: &[Registration],
    seen: &Seen,
    new: BTreeSet<String>,
) -> Result<Vec<Change>, String> {
    let facts = Facts { delivered: delivered(app, seen), with_new_key: Some(new), ..Facts::default() };
    let plan = plan(app, listed, &facts);
    let unwanted = plan.remove.iter().filter(|removal| removal.why == Why::NotWanted);
    let ids: Vec<_> = unwanted.map(|removal| removal.registration.id.as_str()).collect();
    if !ids.is_empty() || app.wanted().is_empty() {
        let which = if ids.is_empty() { String::new() } else { format!(" ({})", ids.join(", ")) };
        return Err(format!(
            "rotate registers what the configuration of the app {} has in `webhooks`, and that is {}{which}: adopt what is registered (`livechat-relay webhooks adopt`), or run `livechat-relay webhooks apply` first",
            app.name,
            if ids.is_empty() { "nothing" } else { "not all that is registered here" }
        ));
    }
    Ok(plan.changes(&facts))
}

/// Of an app's registrations those that have a key: this run has `made` them with it, LiveChat's listing shows it, or they have delivered
/// with it. `secret` is absent while the key is not made.
pub fn with_key(
    app: &App,
    listed: &[Registration],
    made: &BTreeSet<String>,
    seen: &Seen,
    (name, secret): (&str, Option<&SecretString>),
) -> BTreeSet<String> {
    let secret = secret.map(Token::new);
    let shown = listed.iter().filter(|one| one.secret_key.is_some() && one.secret_key == secret).map(|one| &one.id);
    let delivered = seen.registrations.iter().filter(|one| one.app == app.name && one.key == name);
    delivered.map(|one| &one.webhook_id).chain(shown).chain(made).cloned().collect()
}

/// Of these registrations one without the new key that has delivered here with an old one, by whatever address: without that key the relay
/// refuses its webhooks.
pub fn needs_old<'l>(
    app: &App,
    mut listed: impl Iterator<Item = &'l Registration>,
    seen: &Seen,
    new: &BTreeSet<String>,
    old: &[String],
) -> Option<&'l Registration> {
    let uses_old = |one: &Delivered| one.app == app.name && old.contains(&one.key);
    let used: Vec<_> = seen.registrations.iter().filter(|one| uses_old(one)).map(|one| &one.webhook_id).collect();
    listed.find(|one| !new.contains(&one.id) && used.contains(&&one.id))
}

/// What an old key still does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Silence {
    /// No webhook had it for so long.
    Silent,
    /// These registrations, or ones without an id, still deliver with it.
    Used(Vec<String>),
    /// No relay answers.
    Unknown,
}

/// How often the relay is asked.
const POLL: Duration = Duration::from_secs(1);

/// Waits until an old key of an app has been silent for `propagation`, from now on: LiveChat may deliver through a registration for some
/// time after its removal. Gives up after twice that time: someone else uses the key.
///
/// # Errors
/// The user ends it.
pub async fn silence(
    relay: &impl Relay,
    stop: &CancellationToken,
    app: &str,
    key: &str,
    propagation: Duration,
) -> Result<Silence, Interrupted> {
    let (began, from) = (Instant::now(), Timestamp::now());
    let mut silent_since = began;
    let mut last_use = from;
    loop {
        let Some(seen) = relay.seen().await else { return Ok(Silence::Unknown) };
        let of_key = seen.keys.iter().find(|used| used.app == app && used.key == key);
        if let Some(last) = of_key.and_then(|used| used.last).filter(|last| *last > last_use) {
            (last_use, silent_since) = (last, Instant::now());
        }
        if silent_since.elapsed() >= propagation {
            return Ok(Silence::Silent);
        }
        if began.elapsed() >= propagation * 2 {
            return Ok(Silence::Used(users(&seen, app, key, from)));
        }
        pause(stop, POLL).await?;
    }
}

/// Which registrations have delivered with a key since then.
fn users(seen: &Seen, app: &str, key: &str, since: Timestamp) -> Vec<String> {
    let uses = seen.registrations.iter().filter(|one| one.app == app && one.key == key && one.last >= since);
    uses.map(|one| format!("{} ({})", one.webhook_id, one.action)).collect()
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};

    use jiff::SignedDuration;

    use super::*;
    use crate::deliveries::KeyUse;

    #[test]
    fn a_new_key_is_long_and_each_is_another() {
        let [one, other] = [(); 2].map(|()| new_secret_key().expect("random bytes"));
        assert!(one.expose_secret().len() == 64 && one.expose_secret() != other.expose_secret());
    }

    #[test]
    fn a_new_name_sorts_behind_all_others() {
        let now: Timestamp = "2026-11-28T14:15:16Z".parse().expect("a time");
        let name = |names: &[&str]| new_name(names.iter().copied(), now);
        assert_eq!(name(&["2026-10", "2026-11"]).as_deref(), Some("2026-11-28T141516Z"));
        assert_eq!(name(&["livechat"]).as_deref(), Some("livechat-2026-11-28T141516Z"));
        assert_eq!(name(&["2026-11-28T141516Z"]).as_deref(), Some("2026-11-28T141516Z-2026-11-28T141516Z"));
        assert_eq!(name(&["k1-2026-11-27T010203Z"]).as_deref(), Some("k1-2026-11-28T141516Z"), "names do not grow");
        let of_tomorrow = "k1-2026-11-29T010203Z";
        assert_eq!(name(&[of_tomorrow]), Some(format!("{of_tomorrow}-2026-11-28T141516Z")));
        assert_eq!(name(&["z".repeat(50).as_str()]), None);
    }

    #[test]
    fn a_key_is_written_whole_with_the_mode_of_the_others_and_over_no_other() {
        let directory = tempfile::tempdir().expect("a directory");
        let old = directory.path().join("old");
        fs::write(&old, "the old key").expect("written");
        fs::set_permissions(&old, fs::Permissions::from_mode(0o440)).expect("set");
        fs::write(directory.path().join(UNFINISHED), "of a run that was killed").expect("written");
        let key = SecretString::from("the new key");
        let path = write_key(directory.path(), "new", &key, &old).expect("written");
        assert_eq!(fs::read_to_string(&path).expect("read"), "the new key\n");
        assert_eq!(fs::metadata(&path).expect("there").mode() & 0o777, 0o440);

        let refused = write_key(directory.path(), "old", &key, &old).expect_err("it is there");
        assert_eq!(refused.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read_to_string(&old).expect("read"), "the old key");
        let mut names: Vec<_> =
            fs::read_dir(directory.path()).expect("read").map(|entry| entry.expect("an entry").file_name()).collect();
        names.sort();
        assert_eq!(names, ["new", "old"]);

        delete_key(directory.path(), "old").expect("deleted");
        delete_key(directory.path(), "old").expect("deleted before");
        assert!(!old.exists());
        let nowhere = write_key(&directory.path().join("none"), "new", &key, &path).expect_err("no directory");
        assert_eq!(nowhere.kind(), io::ErrorKind::NotFound);
    }

    /// A relay whose key is used every so often, a number of times.
    struct Used {
        every: Duration,
        uses: Cell<u64>,
        last: RefCell<(Instant, Timestamp)>,
    }

    impl Relay for Used {
        async fn seen(&self) -> Option<Seen> {
            let (at, last) = *self.last.borrow();
            if self.uses.get() > 0 && at.elapsed() >= self.every {
                self.uses.set(self.uses.get() - 1);
                *self.last.borrow_mut() = (Instant::now(), last + SignedDuration::from_secs(1));
            }
            let last = Some(self.last.borrow().1);
            Some(Seen {
                registrations: Vec::new(),
                keys: vec![KeyUse { app: "a".into(), key: "old".into(), uses: 1, last }],
                ..Seen::default()
            })
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_old_key_is_silent_when_nothing_has_had_it_for_the_propagation_time() {
        let seconds = Duration::from_secs;
        for (every, uses, silent, took) in
            [(40, 0, true, 100), (40, 1, true, 140), (40, 2, true, 180), (40, 9, false, 200)]
        {
            let last = RefCell::new((Instant::now(), Timestamp::now() + SignedDuration::from_secs(1)));
            let relay = Used { every: seconds(every), uses: Cell::new(uses), last };
            let began = Instant::now();
            let silence = silence(&relay, &CancellationToken::new(), "a", "old", seconds(100)).await;
            assert_eq!(matches!(silence, Ok(Silence::Silent)), silent, "{uses}");
            let took = seconds(took)..=seconds(took + 4);
            assert!(took.contains(&began.elapsed()), "{uses}: {:?}", began.elapsed());
        }
    }
}
