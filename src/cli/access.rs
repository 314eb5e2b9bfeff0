//! The way to a spool: through the admin listener of the relay that has it, or from its directory, where none has.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::net::TcpStream;

use super::{Failure, Source};
use crate::config::{self, Config, Listener, Need};
use crate::desk::{Ask, Desk, Item, List, Page};
use crate::metrics::Metrics;
use crate::spool::{self, Spool, Unusable};

/// Which spool.
#[derive(clap::Args)]
pub struct Where {
    #[command(flatten)]
    pub source: Source,
    /// The admin listener of the running relay, instead of the configuration's admin.listen
    #[arg(long, value_name = "ADDRESS:PORT")]
    admin: Option<SocketAddr>,
}

/// An open way.
pub enum Access {
    /// The relay runs; its admin listener.
    Running(SocketAddr),
    /// Nobody has the directory, but for us now.
    Stopped { spool: Spool, metrics: Arc<Metrics>, config: Box<config::Spool> },
}

/// An answer may take as long as a disk does.
const TIMEOUT: Duration = Duration::from_secs(30);

impl Where {
    /// A way to look at the spool. One that no relay has is not changed by it, nor locked.
    ///
    /// # Errors
    /// When there is no spool, or nobody answers for the one that is locked.
    pub async fn open(&self) -> Result<Access, Failure> {
        self.open_with(Spool::look).await
    }

    /// A way to change the spool. One that no relay has is locked meanwhile.
    ///
    /// # Errors
    /// As `open`; when it belongs to another user.
    pub async fn open_to_change(&self) -> Result<Access, Failure> {
        self.open_with(|config, metrics| {
            Spool::start(spool::Config { lock_timeout: Duration::ZERO, ..config }, metrics)
        })
        .await
    }

    async fn open_with(
        &self,
        open: impl FnOnce(spool::Config, Arc<Metrics>) -> Result<Spool, Unusable> + Send + 'static,
    ) -> Result<Access, Failure> {
        if let Some(admin) = self.admin {
            return Ok(Access::Running(admin));
        }
        let Config { spool, admin: Listener { listen: admin, .. }, .. } = self.source.load(Need::Settings)?;
        let Some(config) = spool else {
            return Err(Failure::Usage("spool.directory is not configured: this relay has no spool".to_owned()));
        };
        let directory = config.spool.directory.clone();
        if !directory.exists() {
            // A running relay may still have a file that somebody has removed under it.
            let found = reach(admin, &directory).await.ok();
            let directory = directory.display();
            let none = format!("there is no spool in {directory}, and no relay at {admin} that has it");
            return found.ok_or(Failure::Failed(none));
        }
        super::raise_open_files();
        let metrics = Arc::new(Metrics::new());
        let (settings, its_metrics) = (config.spool.clone(), Arc::clone(&metrics));
        let opened = tokio::task::spawn_blocking(move || open(settings, its_metrics)).await;
        match opened.map_err(Failure::failed)? {
            Ok(spool) => Ok(Access::Stopped { spool, metrics, config: Box::new(config) }),
            Err(Unusable::Locked { .. }) => reach(admin, &directory).await,
            Err(unusable) => Err(Failure::failed(unusable)),
        }
    }
}

async fn reach(admin: SocketAddr, directory: &Path) -> Result<Access, Failure> {
    let admin = if admin.ip().is_unspecified() {
        SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), admin.port())
    } else {
        admin
    };
    let access = Access::Running(admin);
    let status: crate::desk::Status = access.ask(Ask::Status).await?;
    let its_own = Path::new(&status.directory);
    if its_own != directory && its_own.canonicalize().ok() != directory.canonicalize().ok() {
        return Err(Failure::Failed(format!(
            "{} is locked by another process, and the relay at {admin} has another spool ({}); give its listener with --admin",
            directory.display(),
            status.directory
        )));
    }
    Ok(access)
}

impl Access {
    /// # Errors
    /// When there is no answer, or one that says why there is none.
    pub async fn ask<T: DeserializeOwned>(&self, ask: Ask) -> Result<T, Failure> {
        let json = match self {
            Self::Stopped { spool, .. } => Desk(spool.clone()).answer(ask).await.map_err(Failure::failed)?,
            Self::Running(admin) => {
                let answer = tokio::time::timeout(TIMEOUT, fetch(*admin, &ask)).await;
                answer.map_err(|_| Failure::Failed(format!("the relay at {admin} does not answer")))??
            }
        };
        serde_json::from_str(&json).map_err(|e| Failure::Failed(format!("the answer cannot be read: {e}")))
    }

    /// All items of a list, page by page.
    ///
    /// # Errors
    /// As `ask`.
    pub async fn each(
        &self,
        limit: u64,
        values: bool,
        list: impl Fn(Page) -> Ask,
        mut each: impl FnMut(Item) -> Result<(), Failure>,
    ) -> Result<u64, Failure> {
        let (mut from, mut seen) = (0, 0);
        while seen < limit {
            let page = Page { from, limit: usize::try_from(limit - seen).unwrap_or(usize::MAX).min(1000), values };
            let found: List = self.ask(list(page)).await?;
            for item in found.items {
                seen += 1;
                each(item)?;
            }
            let Some(next) = found.next else { break };
            from = next;
        }
        Ok(seen)
    }

    /// Gives the directory back.
    pub async fn close(self) {
        if let Self::Stopped { spool, .. } = self {
            let _ = tokio::task::spawn_blocking(move || spool.close()).await; // a panic has said so
        }
    }
}

async fn fetch(admin: SocketAddr, ask: &Ask) -> Result<String, Failure> {
    let unreachable = |error: &dyn std::fmt::Display| {
        Failure::Failed(format!(
            "the spool is locked by a running relay, and its admin listener at {admin} does not answer: {error}"
        ))
    };
    let stream = TcpStream::connect(admin).await.map_err(|e| unreachable(&e))?;
    let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.map_err(|e| unreachable(&e))?;
    tokio::spawn(connection);
    let (method, uri) = ask.write();
    let request = Request::builder().method(method).uri(uri).header(hyper::header::HOST, admin.to_string());
    let request = request.body(Empty::<Bytes>::new()).map_err(Failure::failed)?;
    let answer = sender.send_request(request).await.map_err(|e| unreachable(&e))?;
    let status = answer.status();
    let body = answer.into_body().collect().await.map_err(|e| unreachable(&e))?.to_bytes();
    let text = String::from_utf8_lossy(&body).into_owned();
    if status == StatusCode::OK { Ok(text) } else { Err(Failure::Failed(text.trim_end().to_owned())) }
}
