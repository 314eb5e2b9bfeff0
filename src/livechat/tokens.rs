//! OAuth tokens in a file that several processes share: each new pair is on the disk before it is used, and one process refreshes at a time.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Seek as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, fchown};
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use rustix::fs::{Mode, OFlags};
use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, Serialize};
use tokio_util::task::TaskTracker;

use super::accounts::{Accounts, Info};
use super::http::FailedAttempt;
use super::{App, Config, Failure, Kind};

/// A token that ends within this time is refreshed before it is used.
const EXPIRY_MARGIN: SignedDuration = SignedDuration::from_secs(60);

/// Another process has the lock for one request to LiveChat, and `livechat.timeout` is two minutes at most.
const LOCK_WAIT_MAX: Duration = Duration::from_secs(150);
const LOCK_PAUSE: Duration = Duration::from_millis(50);

/// A pair of tokens is shorter. So much room is taken before a refresh, so that a full disk is met before the old pair has ended.
const ROOM: usize = 16 << 10;

/// The refreshes of this process that are under way. Once it is closed, none begins.
static REFRESHES: LazyLock<TaskTracker> = LazyLock::new(TaskTracker::new);

/// An access token, and what refreshes it.
#[derive(Clone, Debug)]
pub struct TokenPair {
    pub client_id: String,
    pub access_token: SecretString,
    pub refresh_token: Option<SecretString>,
    /// Whose rights the token has.
    pub account_id: String,
    pub organization_id: String,
    pub scopes: BTreeSet<String>,
    /// Absent: LiveChat did not say.
    pub expires_at: Option<Timestamp>,
}

/// As the file has it.
#[derive(Serialize, Deserialize)]
struct Stored {
    client_id: String,
    access_token: String,
    refresh_token: Option<String>,
    account_id: String,
    organization_id: String,
    scopes: BTreeSet<String>,
    expires_at: Option<Timestamp>,
}

/// `apps.livechat.tokens`.
#[derive(Clone, Debug)]
pub struct TokenFile {
    path: PathBuf,
}

/// The right to change the file: one process has it. It ends with the value.
#[derive(Debug)]
pub struct LockedFile {
    path: PathBuf,
    _lock: File,
}

/// Room for a new pair, beside the old one.
#[derive(Debug)]
pub struct Reserved {
    new: PathBuf,
    path: PathBuf,
    file: File,
}

impl TokenFile {
    pub fn new(path: &Path) -> Self {
        Self { path: path.to_owned() }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// `None`: it is not there.
    ///
    /// # Errors
    /// It cannot be read, or is damaged.
    pub fn read(&self) -> Result<Option<TokenPair>, Failure> {
        let bytes = match std::fs::read(&self.path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            read => read.map_err(|e| cannot(&self.path, "read", &e))?,
        };
        let stored: Stored = serde_json::from_slice(&bytes).map_err(|_| Failure {
            kind: Kind::Local,
            what: format!("{} is not a file of tokens, or is damaged", self.path.display()),
            remedy: "remove it, and log in again: `livechat-relay auth login`".to_owned(),
        })?;
        Ok(Some(TokenPair {
            client_id: stored.client_id,
            access_token: stored.access_token.into(),
            refresh_token: stored.refresh_token.map(SecretString::from),
            account_id: stored.account_id,
            organization_id: stored.organization_id,
            scopes: stored.scopes,
            expires_at: stored.expires_at,
        }))
    }

    /// Why an app has no tokens, in the same words wherever that is said.
    pub fn without_tokens(&self, App { name, client_id, .. }: &App) -> String {
        let path = self.path.display();
        if self.path.exists() {
            return format!(
                "the app {name} is not logged in: {path} has tokens of another app than client_id {client_id}"
            );
        }
        format!("the app {name} is not logged in: {path} does not exist")
    }

    /// Whether others than its owner may read it, as after a copy.
    ///
    /// # Errors
    /// It cannot be looked at.
    pub fn is_exposed(&self) -> Result<bool, Failure> {
        let file = std::fs::metadata(&self.path).map_err(|e| cannot(&self.path, "read", &e))?;
        Ok(file.mode() & 0o077 != 0)
    }

    /// Waits until no other process has the lock.
    ///
    /// # Errors
    /// The directory cannot be written, or another process goes on refreshing.
    pub async fn lock(&self) -> Result<LockedFile, Failure> {
        let path = beside(&self.path, "lock");
        let file = open_or_create(&path).map_err(|e| cannot(&path, "written", &e))?;
        let locked = async {
            loop {
                match file.try_lock() {
                    Err(TryLockError::WouldBlock) => tokio::time::sleep(LOCK_PAUSE).await,
                    Err(TryLockError::Error(error)) => return Err(cannot(&path, "locked", &error)),
                    Ok(()) => return Ok(()),
                }
            }
        };
        tokio::time::timeout(LOCK_WAIT_MAX, locked).await.unwrap_or_else(|_| {
            Err(Failure {
                kind: Kind::Local,
                what: format!("{} has been locked by another process for {LOCK_WAIT_MAX:?}", path.display()),
                remedy: "end the livechat-relay process that hangs".to_owned(),
            })
        })?;
        Ok(LockedFile { path: self.path.clone(), _lock: file })
    }
}

impl LockedFile {
    /// Takes room on the disk for a new pair.
    ///
    /// # Errors
    /// There is none, or the directory cannot be written. The old pair stands.
    pub fn reserve(&self) -> Result<Reserved, Failure> {
        let new = beside(&self.path, "new");
        let reserve = || {
            // What a crash has left.
            match std::fs::remove_file(&new) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                _ => {}
            }
            let mut file = create(&new)?;
            file.write_all(&[b' '; ROOM])?;
            file.sync_all()?;
            Ok(file)
        };
        let reserved = reserve().inspect_err(|_| drop(std::fs::remove_file(&new)));
        let file = reserved.map_err(|e| cannot(&new, "written", &e))?;
        Ok(Reserved { new, path: self.path.clone(), file })
    }

    /// # Errors
    /// It cannot be removed; one that is not there is no error.
    pub fn remove(&self) -> Result<(), Failure> {
        match std::fs::remove_file(&self.path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(cannot(&self.path, "removed", &e)),
            _ => Ok(()),
        }
    }
}

impl Reserved {
    /// Replaces the old pair. A crash leaves one or the other.
    ///
    /// Once the file is in its place, the new pair is what every process reads: that the directory cannot be synced is no error then.
    ///
    /// # Errors
    /// It cannot. The old pair stands.
    pub fn replace(mut self, pair: &TokenPair) -> Result<(), Failure> {
        let stored = Stored {
            client_id: pair.client_id.clone(),
            access_token: pair.access_token.expose_secret().to_owned(),
            refresh_token: pair.refresh_token.as_ref().map(|token| token.expose_secret().to_owned()),
            account_id: pair.account_id.clone(),
            organization_id: pair.organization_id.clone(),
            scopes: pair.scopes.clone(),
            expires_at: pair.expires_at,
        };
        let json = serde_json::to_vec_pretty(&stored).expect("texts and a time are JSON");
        let mut replace = || {
            self.file.rewind()?;
            self.file.write_all(&json)?;
            self.file.set_len(json.len() as u64)?;
            self.file.sync_all()?;
            std::fs::rename(&self.new, &self.path)
        };
        replace().map_err(|e| cannot(&self.path, "written", &e))?;
        let directory = directory(&self.path);
        if let Err(error) = File::open(directory).and_then(|directory| directory.sync_all()) {
            let directory = directory.display();
            tracing::warn!(%directory, %error, "the new tokens are in their file, but a power failure now may bring back the old ones");
        }
        Ok(())
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.new); // it is in its place, or the next one removes it
    }
}

/// Root opens what the relay's user may have put there: no link is followed, and what was there keeps its owner.
fn open_or_create(path: &Path) -> io::Result<File> {
    match create(path) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
            let flags = OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            Ok(rustix::fs::open(path, flags, Mode::empty())?.into())
        }
        created => created,
    }
}

/// A file that was not there. What root writes, as by `auth login`, the relay's user has to read: that is whose directory it is.
fn create(path: &Path) -> io::Result<File> {
    let owner = std::fs::metadata(directory(path))?;
    let file = OpenOptions::new().create_new(true).write(true).mode(0o600).open(path)?;
    if rustix::process::geteuid().is_root() && file.metadata()?.uid() != owner.uid() {
        // Else the user could never open it.
        fchown(&file, Some(owner.uid()), Some(owner.gid())).inspect_err(|_| drop(std::fs::remove_file(path)))?;
    }
    Ok(file)
}

fn directory(path: &Path) -> &Path {
    path.parent().filter(|path| !path.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// `tokens.json.lock` for `tokens.json`.
fn beside(path: &Path, extension: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{extension}"));
    path.with_file_name(name)
}

fn cannot(path: &Path, what: &str, error: &io::Error) -> Failure {
    let what = format!("{} cannot be {what}: {error}", path.display());
    let remedy =
        "the directory of apps.livechat.tokens must exist, have free space, and belong to the relay's user".to_owned();
    Failure { kind: Kind::Local, what, remedy }
}

/// The tokens of one app. They are read from the file each time, so that they are those of all processes.
#[derive(Debug)]
pub struct Session {
    accounts: Accounts,
    app: App,
    file: TokenFile,
}

impl Session {
    pub fn new(config: &Config, app: &App, path: &Path) -> Self {
        Self { accounts: Accounts::new(config), app: app.clone(), file: TokenFile::new(path) }
    }

    /// The access token; refreshed, where it is at its end.
    ///
    /// # Errors
    /// There is none, or it cannot be refreshed.
    pub(super) async fn token(&self) -> Result<SecretString, FailedAttempt> {
        let pair = read(&self.file, &self.app)?;
        let is_current = pair.expires_at.is_none_or(|end| end > Timestamp::now() + EXPIRY_MARGIN);
        let pair = if is_current { pair } else { self.renewed(&pair.access_token).await? };
        Ok(pair.access_token)
    }

    /// What the login was given.
    pub(super) fn scopes(&self) -> BTreeSet<String> {
        read(&self.file, &self.app).map(|pair| pair.scopes).unwrap_or_default()
    }

    /// What LiveChat says of the access token; of a new one, where it does not accept the old one.
    ///
    /// # Errors
    /// There is none, it cannot be refreshed, or LiveChat cannot be reached.
    pub async fn info(&self) -> Result<Info, Failure> {
        let token = self.token().await?;
        match self.accounts.info(&token).await {
            Err(failure) if failure.kind == Kind::Authentication => {
                self.accounts.info(&self.renewed(&token).await?.access_token).await
            }
            info => info,
        }
    }

    /// The pair in place of a token that has ended, or that LiveChat does not accept: a new one, unless another task or process has got it.
    ///
    /// In a task of its own: who does not wait for it any longer ends no refresh half way, of which the new pair would be lost.
    ///
    /// # Errors
    /// It cannot be refreshed.
    pub(super) async fn renewed(&self, stale: &SecretString) -> Result<TokenPair, FailedAttempt> {
        let (accounts, app, file) = (self.accounts.clone(), self.app.clone(), self.file.clone());
        let refreshed = tokio::spawn(refreshed(accounts, app, file, stale.clone())).await;
        refreshed.map_err(stopped)?
    }
}

/// One try: the caller has its own.
async fn refreshed(
    accounts: Accounts,
    app: App,
    file: TokenFile,
    stale: SecretString,
) -> Result<TokenPair, FailedAttempt> {
    let locked = file.lock().await?;
    let pair = read(&file, &app)?;
    if pair.access_token.expose_secret() != stale.expose_secret() {
        return Ok(pair); // another process was faster
    }
    // Who waits for the lock has asked LiveChat for nothing; from here on the end of the process waits for the new pair.
    let _running = REFRESHES.token();
    if REFRESHES.is_closed() {
        return Err(FailedAttempt::undone(Kind::Local, "the process ends".to_owned(), "try again"));
    }
    let (locked, reserved) = blocking(move || locked.reserve().map(|reserved| (locked, reserved))).await?;
    // Whatever became of the refresh, the call that needs the token was not sent.
    let pair =
        accounts.refreshed(&app, &pair).await.map_err(|failed| FailedAttempt { may_be_done: false, ..failed })?;
    let pair = blocking(move || reserved.replace(&pair).map(|()| pair)).await;
    drop(locked);
    pair
}

/// At the end of the process: waits until no refresh is half way, of which the new pair would be lost. None begins any longer.
///
/// # Errors
/// One goes on for longer than a request to LiveChat can: the disk hangs.
pub async fn refreshes_ended() -> Result<(), Failure> {
    REFRESHES.close();
    tokio::time::timeout(LOCK_WAIT_MAX, REFRESHES.wait()).await.map_err(|_| Failure {
        kind: Kind::Local,
        what: format!("a refresh of tokens has not ended within {LOCK_WAIT_MAX:?}, and its tokens may be lost"),
        remedy: "look at the disk of apps.livechat.tokens; if LiveChat refuses the tokens, log in again: `livechat-relay auth login`"
            .to_owned(),
    })
}

fn read(file: &TokenFile, app: &App) -> Result<TokenPair, FailedAttempt> {
    let pair = file.read()?.filter(|pair| pair.client_id == app.client_id);
    pair.ok_or_else(|| {
        let remedy = format!("log in: `livechat-relay auth login --app {}`", app.name);
        FailedAttempt::undone(Kind::Authentication, file.without_tokens(app), remedy)
    })
}

/// Writes to the disk without holding up what else the thread has to do.
async fn blocking<T: Send + 'static>(
    act: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, FailedAttempt> {
    Ok(tokio::task::spawn_blocking(act).await.map_err(stopped)??)
}

fn stopped(error: tokio::task::JoinError) -> FailedAttempt {
    FailedAttempt::undone(Kind::Local, format!("the tokens were not refreshed: {error}"), "try again")
}
