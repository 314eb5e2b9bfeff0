//! The sockets that a relay listens on, and the TLS of those that have it.

use std::net::SocketAddr;
use std::sync::Arc;

use arc_swap::ArcSwapOption;
use futures_util::future::OptionFuture;
use tokio::net::{TcpListener, TcpSocket};

use super::Failure;
use crate::acme::Acme;
use crate::config::{Config, Listener};
use crate::http::tls::{self, Certificate, Issued, Tls};

/// The TLS of the listeners that have it. New connections take what it is then.
#[derive(Default)]
pub struct Listeners {
    pub webhooks: Arc<ArcSwapOption<Tls>>,
    pub admin: Arc<ArcSwapOption<Tls>>,
    issued: Option<Arc<Issued>>,
}

impl Listeners {
    pub fn new(config: &Config, acme: Option<&Acme>) -> Result<Self, Failure> {
        let listeners = Self { issued: acme.map(Acme::issued), ..Self::default() };
        listeners.set(config)?;
        Ok(listeners)
    }

    /// Puts the certificates of a configuration in force: for handshakes from now on, open connections go on.
    pub fn set(&self, config: &Config) -> Result<(), Failure> {
        let before = self.certificates();
        let set = |key: &str, now: &ArcSwapOption<Tls>, new: Option<&tls::Config>, issued: Option<&Arc<Issued>>| {
            match (now.load().as_ref(), new) {
                (Some(tls), Some(new)) => tls.replace(new),
                (_, new) => {
                    new.map(|new| Tls::new(new, issued.cloned())).transpose().map(|tls| now.store(tls.map(Arc::new)))
                }
            }
            .map_err(|e| Failure::Failed(format!("{key}: TLS cannot be used: {e}")))
        };
        set("server.tls", &self.webhooks, config.server.listener.tls.as_ref(), self.issued.as_ref())?;
        set("admin.tls", &self.admin, config.admin.tls.as_ref(), None)?;
        let is_known =
            |certificate: &Arc<Certificate>| before.iter().any(|known| known.key.cert == certificate.key.cert);
        for certificate in self.certificates().iter().filter(|certificate| !is_known(certificate)) {
            let Certificate { names, not_after, source, .. } = &**certificate;
            tracing::info!(names = names.join(", "), %not_after, source, "TLS certificate loaded");
        }
        Ok(())
    }

    pub fn certificates(&self) -> Vec<Arc<Certificate>> {
        [&self.webhooks, &self.admin]
            .into_iter()
            .filter_map(|tls| tls.load_full())
            .flat_map(|tls| tls.certificates())
            .collect()
    }

    /// Webhooks cannot come in by TLS yet. That is no reason not to be ready: a balancer would keep the authority's challenge away.
    pub fn warning(&self) -> Option<String> {
        let is_without = self.webhooks.load().as_ref().is_some_and(|tls| tls.certificates().is_empty());
        is_without
            .then(|| "there is no TLS certificate yet: it is ordered; the log says why it takes so long".to_owned())
    }
}

/// A second listener without TLS, if it is configured.
#[derive(Default)]
pub struct Plain {
    pub listener: Option<TcpListener>,
    pub address: Option<SocketAddr>,
}

impl Plain {
    pub fn bind(key: &str, listener: &Listener) -> Result<Self, Failure> {
        let Some(listen) = listener.plain else { return Ok(Self::default()) };
        let (listener, address) = bind(key, &Listener { listen, ..listener.clone() }, Ok(None))?;
        Ok(Self { listener: Some(listener), address: Some(address) })
    }
}

/// Runs until both have ended.
pub async fn both(one: impl Future<Output = ()>, other: Option<impl Future<Output = ()>>) {
    tokio::join!(one, OptionFuture::from(other));
}

/// The socket of `[server]` or `[admin]`: made here, or passed on by systemd, which keeps it open over a restart.
pub fn bind(
    key: &str,
    listener: &Listener,
    passed: std::io::Result<Option<std::net::TcpListener>>,
) -> Result<(TcpListener, SocketAddr), Failure> {
    let bind = || {
        let bound = if let Some(passed) = passed? {
            passed.set_nonblocking(true)?;
            TcpListener::from_std(passed)?
        } else {
            let socket = if listener.listen.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
            socket.set_reuseaddr(true)?; // else a restart fails while connections of before are in TIME_WAIT
            socket.bind(listener.listen)?;
            socket.listen(listener.backlog)?
        };
        let address = bound.local_addr()?;
        Ok((bound, address))
    };
    let cannot = |e: std::io::Error| Failure::Failed(format!("{key}: cannot listen on {}: {e}", listener.listen));
    bind().map_err(cannot)
}
