//! The running relay, as `apply`, `rotate` and `list` ask it, and the lock that keeps two of them from running at once.

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};

use crate::cli::access::{Access, running, unexpected};
use crate::cli::{Failure, Source};
use crate::config::Need;
use crate::control::{Answer, Reloaded, Request};
use crate::deliveries::Seen;
use crate::livechat::apply::{self, Relay as _};

/// A relay; or none, where none answers.
pub struct Relay(Option<Access>);

impl Relay {
    /// `socket`: of the command line, else of the configuration.
    ///
    /// # Errors
    /// The one of the command line does not answer.
    pub async fn open(given: Option<&Path>, configured: Option<&Path>) -> Result<Self, Failure> {
        match (given, configured) {
            (Some(socket), _) => Ok(Self(Some(running(socket).await?))),
            (None, Some(socket)) => Ok(Self(running(socket).await.ok())),
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
        let Some(access) = &self.0 else { return Err(Failure::Failed("no relay answers".to_owned())) };
        match access.ask(Request::Reload { dry_run: false }, |_| Ok(())).await? {
            Answer::Reloaded(Reloaded { mistakes, .. }) if mistakes.is_empty() => Ok(()),
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

/// What the running relay has seen; `None` where none answers.
pub async fn seen(source: &Source) -> Option<Seen> {
    let socket = source.read(Need::Settings).ok()?.control.socket?; // what is wrong with it is said elsewhere
    Relay::open(None, Some(&socket)).await.ok()?.seen().await
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
