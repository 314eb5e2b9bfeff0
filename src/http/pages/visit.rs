//! A request of a page: who comes to which app's page, until when it is answered, and what LiveChat is called for on the way.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use secrecy::{ExposeSecret as _, SecretString};
use sha2::{Digest as _, Sha256};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};

use super::{Page, Pages};
use crate::http::webhook::Live;
use crate::livechat::{Accounts, App, Failure, Kind, TokenPair, awaited_until};
use crate::outcome::PageEnd;

/// How long it is remembered what came of a code: longer than LiveChat takes it, which is a few minutes.
const REMEMBERED: Duration = Duration::from_secs(15 * 60);

/// Of a secret of an app: what is remembered of a code or token is found by it.
pub type Digest = [u8; 32];

/// A request of a page: what its answer is made with.
pub struct Visit {
    pub pages: Arc<Pages>,
    pub page: Page,
    pub client: IpAddr,
    pub deadlines: Deadlines,
}

impl Visit {
    pub fn app(&self) -> &App {
        self.page.app()
    }

    pub fn live(&self) -> &Live {
        &self.page.live
    }

    pub fn accounts(&self) -> Accounts {
        Accounts::new(&self.live().livechat)
    }

    /// A token for a code, which LiveChat has sent the browser to `redirect_uri` with.
    ///
    /// # Errors
    /// What becomes of a request whose code is not exchanged in time, or not at all.
    pub async fn exchange(
        &self,
        code: &SecretString,
        redirect_uri: &str,
        verifier: Option<&SecretString>,
    ) -> Result<(Accounts, TokenPair), PageEnd> {
        let accounts = self.accounts();
        let exchanged = accounts.exchange(self.app(), code, redirect_uri, verifier);
        let tokens = self.until(self.deadlines.exchange, exchanged).await?.map_err(|failure| {
            let end = match failure.kind {
                Kind::Authentication => PageEnd::CodeRefused,
                Kind::Unavailable | Kind::TooManyRequests | Kind::Unintelligible => PageEnd::Unreachable,
                _ => PageEnd::Misconfigured,
            };
            self.failed(end, &failure)
        })?;
        Ok((accounts, tokens))
    }

    /// Ends a token that is not needed, in a task of its own, for that is done however long it takes.
    pub fn revoke(&self, accounts: Accounts, token: SecretString) -> JoinHandle<()> {
        let app = self.app().name.clone();
        tokio::spawn(async move {
            if let Err(failure) = accounts.revoke(&token).await {
                tracing::warn!(app, error = %failure, "a token that is not needed could not be revoked; it expires by itself");
            }
        })
    }

    pub fn digest(&self, secret: &SecretString) -> Digest {
        Sha256::new()
            .chain_update(&self.app().name)
            .chain_update([0])
            .chain_update(secret.expose_secret())
            .finalize()
            .into()
    }

    /// What `calls` of LiveChat come to, if they do so in time.
    ///
    /// # Errors
    /// [`PageEnd::Unreachable`]: they do not, or the relay ends.
    pub async fn until<T>(&self, deadline: Instant, calls: impl Future<Output = T>) -> Result<T, PageEnd> {
        let calls = timeout_at(deadline, awaited_until(deadline, calls));
        let calls = self.pages.giving_up.run_until_cancelled(calls).await;
        calls.and_then(Result::ok).ok_or_else(|| {
            if let Some(suppressed) = self.pages.throttles.pass("late") {
                tracing::warn!(
                    suppressed,
                    "LiveChat has not answered in time for a page, which is answered within server.response_deadline"
                );
            }
            PageEnd::Unreachable
        })
    }

    /// Logs why a call to LiveChat has failed; what became of the request.
    pub fn failed(&self, end: PageEnd, failure: &Failure) -> PageEnd {
        let app = &self.app().name;
        if let Some(suppressed) = self.pages.throttles.pass(&format!("{app} {}", end.label())) {
            tracing::warn!(app, reason = end.label(), error = %failure, suppressed, "a page's call to LiveChat has failed");
        }
        end
    }

    /// Logs an organization that was turned away: an operator may have forgotten to list it.
    pub fn denied(&self, end: PageEnd, organization: &str) -> PageEnd {
        let app = &self.app().name;
        if let Some(suppressed) = self.pages.throttles.pass(&format!("{app} {} {organization}", end.label())) {
            let reason = end.label();
            tracing::warn!(app, reason, organization, suppressed, "an organization was turned away from an app's page");
        }
        end
    }
}

/// Until when a request waits for what, so that its answer leaves within `server.response_deadline`. What one leaves is the next one's.
#[derive(Clone, Copy)]
pub struct Deadlines {
    /// The exchange of a code: half of the time.
    pub exchange: Instant,
    /// All calls to LiveChat that the answer needs: three quarters.
    pub calls: Instant,
    pub answer: Instant,
}

impl Deadlines {
    /// `all`: `server.response_deadline`.
    pub fn new(all: Duration) -> Self {
        let now = Instant::now();
        Self { exchange: now + all / 2, calls: now + all * 3 / 4, answer: now + all }
    }
}

/// How long it is remembered that a code came to this end. Where LiveChat has not decided, the code may be good in a moment.
pub fn remembered(end: PageEnd) -> Duration {
    match end {
        PageEnd::Unreachable | PageEnd::Misconfigured | PageEnd::TooMany | PageEnd::Busy => Duration::ZERO,
        _ => REMEMBERED,
    }
}
