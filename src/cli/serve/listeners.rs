//! The sockets that a relay listens on, and the TLS of those that have it.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use futures_util::future::OptionFuture;
use tokio::net::{TcpListener, TcpSocket};

use super::Failure;
use crate::acme::Acme;
use crate::config::{Config, Listener};
use crate::http::tls::{self, Certificate, Issued, Tls};

/// The TLS of the listeners that have it, which only a restart changes.
pub struct Listeners {
    pub webhooks: Option<Arc<Tls>>,
    pub admin: Option<Arc<Tls>>,
}

impl Listeners {
    pub fn new(config: &Config, acme: Option<&Acme>) -> Result<Self, Failure> {
        let new = |key: &str, tls: Option<&tls::Config>, issued: Option<Arc<Issued>>| {
            tls.map(|tls| Tls::new(tls, issued).map(Arc::new)).transpose().map_err(unusable(key))
        };
        let listeners = Self {
            webhooks: new("server.tls", config.server.listener.tls.as_ref(), acme.map(Acme::issued))?,
            admin: new("admin.tls", config.admin.tls.as_ref(), None)?,
        };
        listeners.certificates().iter().for_each(|certificate| loaded(certificate));
        Ok(listeners)
    }

    /// Puts the certificates of a configuration in force: for handshakes from now on, open connections go on.
    pub fn set(&self, config: &Config) -> Result<(), Failure> {
        let before = self.certificates();
        let set = |key: &str, tls: &Option<Arc<Tls>>, new: Option<&tls::Config>| {
            tls.iter().zip(new).try_for_each(|(tls, new)| tls.replace(new)).map_err(unusable(key))
        };
        set("server.tls", &self.webhooks, config.server.listener.tls.as_ref())?;
        set("admin.tls", &self.admin, config.admin.tls.as_ref())?;
        let is_known =
            |certificate: &Arc<Certificate>| before.iter().any(|known| known.key.cert == certificate.key.cert);
        self.certificates().iter().filter(|certificate| !is_known(certificate)).for_each(|new| loaded(new));
        Ok(())
    }

    pub fn certificates(&self) -> Vec<Arc<Certificate>> {
        self.webhooks.iter().chain(&self.admin).flat_map(|tls| tls.certificates()).collect()
    }

    /// Webhooks cannot come in by TLS yet. That is no reason not to be ready: a balancer would keep the authority's challenge away.
    pub fn warning(&self) -> Option<String> {
        let is_without = self.webhooks.as_ref().is_some_and(|tls| tls.certificates().is_empty());
        is_without
            .then(|| "there is no TLS certificate yet: it is ordered; the log says why it takes so long".to_owned())
    }
}

fn unusable(key: &str) -> impl Fn(rustls::Error) -> Failure {
    move |error| Failure::Failed(format!("{key}: TLS cannot be used: {error}"))
}

fn loaded(Certificate { names, not_after, source, .. }: &Certificate) {
    tracing::info!(names = names.join(", "), %not_after, source, "TLS certificate loaded");
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

/// A socket with this address, which does not listen yet.
pub fn bound(listen: SocketAddr) -> io::Result<TcpSocket> {
    let socket = if listen.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?; // else a restart fails while connections of before are in TIME_WAIT
    socket.bind(listen)?;
    Ok(socket)
}

/// The socket of `[server]` or `[admin]`: made here, or passed on by systemd, which keeps it open over a restart.
pub fn bind(
    key: &str,
    listener: &Listener,
    passed: io::Result<Option<std::net::TcpListener>>,
) -> Result<(TcpListener, SocketAddr), Failure> {
    let bind = || {
        let bound = if let Some(passed) = passed? {
            passed.set_nonblocking(true)?;
            TcpListener::from_std(passed)?
        } else {
            bound(listener.listen)?.listen(listener.backlog)?
        };
        let address = bound.local_addr()?;
        Ok((bound, address))
    };
    let cannot = |e: io::Error| Failure::Failed(format!("{key}: cannot listen on {}: {e}", listener.listen));
    bind().map_err(cannot)
}
