//! The TLS handshake of a listener: with which certificate, for how long, and how many at once. Certificates can be replaced while
//! connections are open.

pub mod certificate;

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use rustls::crypto::ring;
use rustls::server::{Acceptor, ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{HandshakeKind, RootCertStore, ServerConfig};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::server::TlsStream;

use super::connection::Connection;
use crate::outcome::ConnectionEnd as End;
use crate::telemetry::Throttle;
pub use certificate::Certificate;

/// `[server.tls]` or `[admin.tls]`.
#[derive(Clone, Debug)]
pub struct Config {
    /// The first is also for clients that name no server, or one that no certificate is for.
    pub certificates: Vec<Arc<Certificate>>,
    /// Where there are some, clients need a certificate of one of them.
    pub client_roots: Option<Arc<RootCertStore>>,
    pub limits: Limits,
}

/// How long a handshake may take, and how many there may be at once.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub handshake_timeout: Duration,
    /// Those that wait for their first byte; and as many that have begun.
    pub handshakes_max: usize,
}

impl Limits {
    /// Of `handshakes_max`, on a listener with so many connections: half-open ones are never more than half of them.
    fn handshakes_max(self, connections_max: usize) -> usize {
        self.handshakes_max.min(connections_max / 4).max(1)
    }
}

/// What ACME has issued, and the challenges that are to be answered. It outlives a reload.
#[derive(Debug, Default)]
pub struct Issued {
    certificate: ArcSwapOption<Certificate>,
    challenges: Mutex<HashMap<String, Arc<CertifiedKey>>>,
}

impl Issued {
    pub fn certificate(&self) -> Option<Arc<Certificate>> {
        self.certificate.load_full()
    }

    /// New handshakes get this one; open connections go on.
    pub fn replace(&self, certificate: Arc<Certificate>) {
        self.certificate.store(Some(certificate));
    }

    /// The certificate that proves to the authority that this domain is ours.
    pub fn challenge(&self, domain: String, proof: Arc<CertifiedKey>) {
        self.challenges().insert(domain, proof);
    }

    pub fn end_challenges(&self) {
        self.challenges().clear();
    }

    fn challenges(&self) -> MutexGuard<'_, HashMap<String, Arc<CertifiedKey>>> {
        self.challenges.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Chooses the certificate of a handshake.
struct Certificates {
    files: Vec<Arc<Certificate>>,
    issued: Option<Arc<Issued>>,
}

impl Certificates {
    fn all(&self) -> impl Iterator<Item = Arc<Certificate>> {
        self.files.iter().cloned().chain(self.issued.as_ref().and_then(|issued| issued.certificate()))
    }

    /// Of those for this name, else of all, the first that the client can verify.
    fn choose(&self, name: Option<&str>, can_verify: impl Fn(&CertifiedKey) -> bool) -> Option<Arc<CertifiedKey>> {
        let name = name.map(str::to_ascii_lowercase);
        let covers = |certificate: &Arc<Certificate>| name.as_deref().is_some_and(|name| certificate.covers(name));
        let named: Vec<_> = self.all().filter(covers).collect();
        let candidates = if named.is_empty() { self.all().collect() } else { named };
        let chosen = candidates.iter().find(|certificate| can_verify(&certificate.key)).or(candidates.first());
        chosen.map(|certificate| Arc::clone(&certificate.key))
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.choose(hello.server_name(), |key| key.key.choose_scheme(hello.signature_schemes()).is_some())
    }
}

impl fmt::Debug for Certificates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.all().map(|certificate| certificate.name().to_owned())).finish()
    }
}

/// Chooses the proof of a challenge (RFC 8737).
#[derive(Debug)]
struct Challenges(Arc<Issued>);

impl ResolvesServerCert for Challenges {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.challenges().get(&hello.server_name()?.to_ascii_lowercase()).cloned()
    }
}

/// The one protocol that an authority offers when it looks at a challenge.
const CHALLENGE_PROTOCOL: &[u8] = b"acme-tls/1";

/// What a handshake takes from the configuration; replaced as a whole.
struct Live {
    server: Arc<ServerConfig>,
    certificates: Arc<Certificates>,
    client_roots: Option<Arc<RootCertStore>>,
    limits: Limits,
}

impl Live {
    fn new(config: &Config, issued: Option<Arc<Issued>>) -> Result<Self, rustls::Error> {
        let certificates = Arc::new(Certificates { files: config.certificates.clone(), issued });
        let server = server_config(config.client_roots.clone(), Arc::clone(&certificates) as _, &[b"h2", b"http/1.1"])?;
        Ok(Self { server, certificates, client_roots: config.client_roots.clone(), limits: config.limits })
    }

    /// This one with other limits, session tickets included, unless certificates or client roots are others.
    fn with_limits_of(&self, config: &Config) -> Option<Self> {
        let roots = |roots: &Option<Arc<RootCertStore>>| roots.as_ref().map(|roots| roots.roots.clone());
        let is_same = |(one, other): (&Arc<Certificate>, &Arc<Certificate>)| {
            one.key.cert == other.key.cert && one.source == other.source // the key belongs to its certificate
        };
        let (ours, theirs) = (&self.certificates.files, &config.certificates);
        let are_same = ours.len() == theirs.len()
            && ours.iter().zip(theirs).all(is_same)
            && roots(&self.client_roots) == roots(&config.client_roots);
        are_same.then(|| Self {
            server: Arc::clone(&self.server),
            certificates: Arc::clone(&self.certificates),
            client_roots: self.client_roots.clone(),
            limits: config.limits,
        })
    }
}

/// TLS 1.2 and 1.3. Tickets resume sessions without memory of ours. They end with these certificates and roots, or a client could go on
/// with a certificate that is no longer taken. There is no early data, which could be replayed.
fn server_config(
    client_roots: Option<Arc<RootCertStore>>,
    certificates: Arc<dyn ResolvesServerCert>,
    protocols: &[&[u8]],
) -> Result<Arc<ServerConfig>, rustls::Error> {
    let provider = Arc::new(ring::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions()?;
    let builder = match client_roots {
        Some(roots) => {
            let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider).build();
            let verifier = verifier.map_err(|e| rustls::Error::General(e.to_string()))?;
            builder.with_client_cert_verifier(verifier)
        }
        None => builder.with_no_client_auth(),
    };
    let mut server = builder.with_cert_resolver(certificates);
    server.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    server.ticketer = ring::Ticketer::new()?;
    Ok(Arc::new(server))
}

/// The TLS of one listener.
pub struct Tls {
    live: ArcSwap<Live>,
    issued: Option<Arc<Issued>>,
    challenges: Option<Arc<ServerConfig>>,
    silent: Waiting,
    begun: Waiting,
}

/// What a handshake leads to.
pub enum Handshake {
    Done(Box<TlsStream<TcpStream>>),
    /// The client speaks HTTP without TLS.
    PlainHttp(TcpStream),
    /// The client has looked at a challenge, as the authority does: nothing more is to be said.
    Challenge,
}

/// Why there is no connection.
pub struct Failed {
    pub end: End,
    /// `None` where the client has left, as a health check does.
    pub why: Option<String>,
    /// The server that the client has named.
    pub server_name: Option<String>,
    /// Where the client has been told why: to be closed so that it can read that.
    pub told: Option<TcpStream>,
}

/// What has happened to a handshake.
enum Trouble {
    /// The client has left, or its connection is broken.
    Left,
    /// As the alert says that it was sent.
    Refused(io::Error, Option<TcpStream>),
}

impl Trouble {
    fn new(error: io::Error, stream: Option<TcpStream>) -> Self {
        if has_left(&error) { Self::Left } else { Self::Refused(error, stream) }
    }
}

impl Tls {
    /// `issued` is where ACME's certificate comes from, if it is configured.
    ///
    /// # Errors
    /// The client roots are none, or the system has no random numbers.
    pub fn new(config: &Config, issued: Option<Arc<Issued>>) -> Result<Self, rustls::Error> {
        let challenges =
            |issued: &Arc<Issued>| server_config(None, Arc::new(Challenges(Arc::clone(issued))), &[CHALLENGE_PROTOCOL]);
        let challenges = issued.as_ref().map(challenges).transpose()?;
        Ok(Self {
            live: ArcSwap::from_pointee(Live::new(config, issued.clone())?),
            issued,
            challenges,
            silent: Waiting::new(),
            begun: Waiting::new(),
        })
    }

    /// New handshakes are as this configuration has it; open connections go on.
    ///
    /// # Errors
    /// As [`Tls::new`]; nothing is changed then.
    pub fn replace(&self, config: &Config) -> Result<(), rustls::Error> {
        let same = self.live.load().with_limits_of(config);
        let live = same.map_or_else(|| Live::new(config, self.issued.clone()), Ok)?;
        self.live.store(Arc::new(live));
        Ok(())
    }

    /// The certificates that handshakes get now.
    pub fn certificates(&self) -> Vec<Arc<Certificate>> {
        self.live.load().certificates.all().collect()
    }

    /// Shakes hands. `connection` is closed where newer ones need its place; so many connections the listener may have.
    ///
    /// # Errors
    /// [`Failed`]: the client is late, has left, or speaks no TLS that we do.
    pub async fn shake_hands(
        &self,
        stream: TcpStream,
        connection: &Arc<Connection>,
        connections_max: usize,
    ) -> Result<Handshake, Failed> {
        let live = self.live.load_full();
        let Limits { handshake_timeout, .. } = live.limits;
        let handshakes_max = live.limits.handshakes_max(connections_max);
        let mut server_name = None;
        let shaking = self.try_to(stream, connection, handshakes_max, &live.server, &mut server_name);
        let shaking = timeout(handshake_timeout, shaking);
        let (end, why, told) = tokio::select! {
            biased;
            () = connection.closed.notified() => (connection.closing().unwrap_or(End::Shutdown), None, None),
            shaken = shaking => match shaken {
                Ok(Ok(handshake)) => return Ok(handshake),
                Ok(Err(Trouble::Left)) => (End::Client, None, None),
                Ok(Err(Trouble::Refused(error, stream))) => (End::HandshakeFailed, Some(error.to_string()), stream),
                Err(_) => {
                    let late = format!("not done within server.tls.handshake_timeout ({handshake_timeout:?})");
                    (End::HandshakeTimeout, Some(late), None)
                }
            }
        };
        Err(Failed { end, why, server_name, told })
    }

    async fn try_to(
        &self,
        stream: TcpStream,
        connection: &Arc<Connection>,
        handshakes_max: usize,
        server: &Arc<ServerConfig>,
        server_name: &mut Option<String>,
    ) -> Result<Handshake, Trouble> {
        let silent = self.silent.enter(connection, handshakes_max);
        let mut first = [0];
        if stream.peek(&mut first).await.map_err(|error| Trouble::new(error, None))? == 0 {
            return Err(Trouble::Left);
        }
        let _begun = self.begun.enter(connection, handshakes_max);
        drop(silent);
        // A method of HTTP, the preface of HTTP/2, or a PROXY protocol header: TLS begins with 22.
        if first[0].is_ascii_uppercase() || first[0] == b'\r' {
            return Ok(Handshake::PlainHttp(stream));
        }
        let mut acceptor = LazyConfigAcceptor::new(Acceptor::default(), stream);
        let start = (&mut acceptor).await.map_err(|error| Trouble::new(error, acceptor.take_io()))?;
        let hello = start.client_hello();
        *server_name = hello.server_name().map(str::to_owned);
        let is_challenge = hello.alpn().is_some_and(|offered| offered.eq([CHALLENGE_PROTOCOL]));
        let challenges = self.challenges.as_ref().filter(|_| is_challenge);
        let server = challenges.unwrap_or(server);
        let shaken = start.into_stream(Arc::clone(server)).into_fallible().await;
        let stream = shaken.map_err(|(error, stream)| Trouble::new(error, Some(stream)))?;
        Ok(if challenges.is_some() { Handshake::Challenge } else { Handshake::Done(Box::new(stream)) })
    }
}

/// Whether a session was resumed, which costs no signature.
pub fn is_resumed(stream: &TlsStream<TcpStream>) -> bool {
    stream.get_ref().1.handshake_kind() == Some(HandshakeKind::Resumed)
}

fn has_left(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, NotConnected, UnexpectedEof};
    matches!(error.kind(), BrokenPipe | ConnectionAborted | ConnectionReset | NotConnected | UnexpectedEof)
}

/// Handshakes in one phase, the oldest of which are closed for new ones. A client that means it sends its first bytes at once and is done
/// two round trips later, so it is never among the oldest, unless the whole number has come within that time.
struct Waiting {
    connections: Mutex<(u64, BTreeMap<u64, Arc<Connection>>)>,
    closed: Throttle,
}

impl Waiting {
    const fn new() -> Self {
        let closed = Throttle::new(Duration::from_secs(10));
        Self { connections: Mutex::new((0, BTreeMap::new())), closed }
    }

    /// There are `max` at most from now on, this one included. A reload may have lowered it.
    fn enter(&self, connection: &Arc<Connection>, max: usize) -> Place<'_> {
        let mut waiting = self.lock();
        waiting.0 += 1;
        let number = waiting.0;
        waiting.1.insert(number, Arc::clone(connection));
        let too_many = waiting.1.len().saturating_sub(max);
        let oldest: Vec<_> = std::iter::from_fn(|| waiting.1.pop_first()).take(too_many).collect();
        drop(waiting);
        oldest.iter().for_each(|(_, oldest)| oldest.close(End::Evicted));
        if !oldest.is_empty()
            && let Some(suppressed) = self.closed.pass()
        {
            tracing::warn!(suppressed, "server.tls.handshakes_max is reached: the oldest handshakes are closed");
        }
        Place { waiting: self, number }
    }

    fn lock(&self) -> MutexGuard<'_, (u64, BTreeMap<u64, Arc<Connection>>)> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One handshake's place; dropped, it is free.
struct Place<'a> {
    waiting: &'a Waiting,
    number: u64,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.waiting.lock().1.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn certificate(names: &[&str]) -> Arc<Certificate> {
        let (chain, key) = certificate::tests::issue(names);
        Arc::new(Certificate::read("test", chain.as_bytes(), key.as_bytes()).expect("a certificate"))
    }

    #[test]
    fn the_certificate_is_the_one_for_the_name_else_the_first() {
        let (one, other) = (certificate(&["one.example"]), certificate(&["*.other.example"]));
        let issued = Arc::new(Issued::default());
        let certificates =
            Certificates { files: vec![Arc::clone(&one), Arc::clone(&other)], issued: Some(Arc::clone(&issued)) };
        let chosen = |name: Option<&str>| certificates.choose(name, |_| true).expect("a certificate");
        for (name, expected) in [
            (Some("one.example"), &one),
            (Some("A.Other.Example"), &other),
            (Some("unknown.example"), &one),
            (None, &one),
        ] {
            assert!(Arc::ptr_eq(&chosen(name), &expected.key), "{name:?}");
        }
        let by_acme = certificate(&["acme.example", "one.example"]);
        issued.replace(Arc::clone(&by_acme));
        assert!(Arc::ptr_eq(&chosen(Some("acme.example")), &by_acme.key));
        assert!(Arc::ptr_eq(&chosen(Some("one.example")), &one.key), "files come first");
        let is_second = |key: &CertifiedKey| std::ptr::eq(key, &raw const *by_acme.key);
        let found = certificates.choose(Some("one.example"), is_second).expect("a certificate");
        assert!(Arc::ptr_eq(&found, &by_acme.key), "the client can verify no other");
        let none = Certificates { files: Vec::new(), issued: Some(Arc::default()) };
        assert!(none.choose(Some("one.example"), |_| true).is_none());
    }

    #[test]
    fn a_new_handshake_closes_the_oldest_where_there_are_too_many() {
        let waiting = Waiting::new();
        let connections = [1, 2, 3, 4].map(|port| Arc::new(Connection::new(([127, 0, 0, 1], port).into())));
        let [_first, second, _third] = [0, 1, 2].map(|n| waiting.enter(&connections[n], 2));
        assert_eq!(connections.each_ref().map(|c| c.closing()), [Some(End::Evicted), None, None, None]);
        drop(second);
        let _fourth = waiting.enter(&connections[3], 2);
        assert_eq!(connections.each_ref().map(|c| c.closing()), [Some(End::Evicted), None, None, None], "one was done");
        let fifth = Arc::new(Connection::new(([127, 0, 0, 1], 5).into()));
        let _fifth = waiting.enter(&fifth, 1);
        let closing = connections.each_ref().map(|c| c.closing().is_some());
        assert_eq!((closing, fifth.closing()), ([true, false, true, true], None), "a reload has lowered it");
    }

    #[test]
    fn session_tickets_end_with_the_certificates_or_client_roots_and_with_nothing_else() {
        let (one, other) = (certificate(&["one.example"]), certificate(&["one.example"]));
        let roots = |of: &Certificate| {
            let mut roots = RootCertStore::empty();
            roots.add(of.key.cert[0].clone()).expect("a root");
            Some(Arc::new(roots))
        };
        let limits = |handshakes_max| Limits { handshake_timeout: Duration::ZERO, handshakes_max };
        let config = |files: &[&Arc<Certificate>], client_roots, handshakes_max| Config {
            certificates: files.iter().map(|file| Arc::clone(file)).collect(),
            client_roots,
            limits: limits(handshakes_max),
        };
        let tls = Tls::new(&config(&[&one], roots(&one), 1), None).expect("TLS");
        let is_kept = |new: &Config| {
            let before = tls.live.load().server.clone();
            tls.replace(new).expect("replaced");
            let now = tls.live.load();
            assert_eq!(now.limits.handshakes_max, new.limits.handshakes_max);
            Arc::ptr_eq(&now.server, &before)
        };
        let read_again = Arc::new(Certificate {
            source: one.source.clone(),
            names: one.names.clone(),
            key: Arc::clone(&one.key),
            ..*one
        });
        assert!(is_kept(&config(&[&read_again], roots(&one), 2)), "other limits");
        assert!(!is_kept(&config(&[&other], roots(&one), 2)), "a renewed certificate");
        assert!(!is_kept(&config(&[&other, &one], roots(&one), 2)), "one more");
        assert!(!is_kept(&config(&[&other, &one], roots(&other), 2)), "other authorities");
        assert!(!is_kept(&config(&[&other, &one], None, 2)), "none");
        assert!(is_kept(&config(&[&other, &one], None, 1)));
    }

    #[test]
    fn half_open_handshakes_take_half_of_the_connections_at_most() {
        let limits = Limits { handshake_timeout: Duration::ZERO, handshakes_max: 512 };
        assert_eq!([4096, 100, 1].map(|connections_max| limits.handshakes_max(connections_max)), [512, 25, 1]);
    }
}
