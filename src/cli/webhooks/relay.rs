//! The running relay, as `apply`, `rotate` and `list` ask it, and the lock that keeps two of them from running at once.

use std::fs::{File, TryLockError};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use tokio::net::UnixStream;

use crate::cli::access::{Access, running, unexpected};
use crate::cli::{Failure, Source};
use crate::control::{Answer, Reloaded, Request};
use crate::deliveries::Seen;
use crate::livechat::apply;

/// A relay; or none, where none answers.
pub struct Relay(Option<Access>);

impl Relay {
    /// `socket`: of the command line, else of the configuration.
    ///
    /// # Errors
    /// The one of the command line does not answer; or the other one may run, and cannot be asked.
    pub async fn open(given: Option<&Path>, configured: Option<&Path>) -> Result<Self, Failure> {
        match (given, configured) {
            (Some(socket), _) => Ok(Self(Some(running(socket).await?))),
            (None, Some(socket)) => match UnixStream::connect(socket).await {
                Ok(_) => Ok(Self(Some(Access::Running(socket.to_owned())))),
                Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) => {
                    Ok(Self(None))
                }
                Err(error) => Err(Failure::Failed(format!(
                    "the control socket {} cannot be asked whether a relay runs: {error}; run this as the relay's user, or as root",
                    socket.display()
                ))),
            },
            (None, None) => Ok(Self(None)),
        }
    }

    pub const fn is_running(&self) -> bool {
        self.0.is_some()
    }

    /// Has it read its configuration.
    ///
    /// # Errors
    /// It does not answer, or the configuration has mistakes.
    pub async fn reload(&self) -> Result<(), Failure> {
        self.read(false).await.map(drop)
    }

    /// Whether a secret key stands where it reads them that it does not have yet, perhaps under the name of one that it has.
    ///
    /// # Errors
    /// As [`Self::reload`].
    pub async fn has_other_keys(&self) -> Result<bool, Failure> {
        Ok(self.read(true).await?.iter().any(|key| key.contains(".secret_keys")))
    }

    /// What has changed.
    async fn read(&self, dry_run: bool) -> Result<Vec<String>, Failure> {
        let Some(access) = &self.0 else { return Err(Failure::Failed("no relay answers".to_owned())) };
        match access.ask(Request::Reload { dry_run }, |_| Ok(())).await? {
            Answer::Reloaded(Reloaded { mistakes, changed, .. }) if mistakes.is_empty() => Ok(changed),
            Answer::Reloaded(Reloaded { mistakes, .. }) => {
                Err(Failure::Failed(format!("the relay keeps its former configuration: {}", mistakes.join("; "))))
            }
            other => Err(unexpected(&other)),
        }
    }
}

impl apply::Relay for Relay {
    async fn seen(&self) -> Option<Seen> {
        match self.0.as_ref()?.ask(Request::Deliveries, |_| Ok(())).await {
            Ok(Answer::Deliveries(seen)) => Some(seen),
            _ => None, // it may be starting again: the time decides then
        }
    }
}

/// Whether the relay knows a secret key of an app by this name.
pub fn knows(seen: &Seen, app: &str, key: &str) -> bool {
    seen.keys.iter().any(|known| known.app == app && known.key == key)
}

/// Keeps another run out until it is dropped, however this process ends. It is a lock of the configuration file; without one there is none.
///
/// # Errors
/// Another one runs.
pub fn lock(source: &Source) -> Result<Option<File>, Failure> {
    let Some(path) = &source.config else { return Ok(None) };
    let cannot = |error: &dyn std::fmt::Display, path: &PathBuf| {
        Failure::Failed(format!("{} cannot be locked: {error}", path.display()))
    };
    let file = File::open(path).map_err(|error| cannot(&error, path))?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Err(Failure::Failed(
            "another `webhooks apply` or `webhooks rotate` runs with this configuration; wait for its end, or stop it"
                .to_owned(),
        )),
        Err(TryLockError::Error(error)) => Err(cannot(&error, path)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_a_socket_that_is_not_there_or_that_no_process_has_means_that_no_relay_runs() {
        let directory = tempfile::tempdir().expect("a directory");
        let at = |name: &str| directory.path().join(name);
        assert!(Relay::open(None, Some(&at("none"))).await.is_ok_and(|relay| !relay.is_running()));
        drop(std::os::unix::net::UnixListener::bind(at("left")).expect("a socket"));
        assert!(Relay::open(None, Some(&at("left"))).await.is_ok_and(|relay| !relay.is_running()));
        File::create(at("file")).expect("a file");
        let failure = Relay::open(None, Some(&at("file/socket"))).await.err().expect("it cannot be asked");
        assert!(failure.to_string().contains("run this as the relay's user"), "{failure}");
    }
}
