//! A certificate authority of the tests' own, and clients that trust it.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use super::http::{self, Answer};
use super::{chat_id, incoming_event};

/// A root, in `ca.pem` of a directory where everything that it issues is written, too.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pub directory: PathBuf,
}

/// The files of a certificate and of its key.
#[derive(Clone, Debug)]
pub struct Files {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

impl Authority {
    pub fn new(directory: &Path) -> Self {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "the authority of the tests");
        let root = params.self_signed(&key).expect("a certificate");
        std::fs::write(directory.join("ca.pem"), root.pem()).expect("written");
        Self { issuer: Issuer::new(params, key), directory: directory.to_owned() }
    }

    pub fn ca(&self) -> PathBuf {
        self.directory.join("ca.pem")
    }

    /// A certificate for these names, in the files `<file>.pem` and `<file>-key.pem`.
    pub fn issue(&self, file: &str, names: &[&str]) -> Files {
        self.issue_with(file, names, |_| {})
    }

    pub fn issue_with(&self, file: &str, names: &[&str], change: impl FnOnce(&mut CertificateParams)) -> Files {
        let key = KeyPair::generate().expect("a key");
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).expect("names");
        params.distinguished_name.push(DnType::CommonName, file);
        change(&mut params);
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        let files = Files {
            certificate: self.directory.join(format!("{file}.pem")),
            key: self.directory.join(format!("{file}-key.pem")),
        };
        std::fs::write(&files.certificate, certificate.pem()).expect("written");
        std::fs::write(&files.key, key.serialize_pem()).expect("written");
        files
    }

    /// A client that trusts this authority.
    pub fn client(&self) -> Arc<ClientConfig> {
        Arc::new(trusting(&[self.ca()]).with_no_client_auth())
    }

    /// As `client`, with a certificate of its own.
    pub fn client_with(&self, files: &Files) -> Arc<ClientConfig> {
        let chain = CertificateDer::pem_file_iter(&files.certificate).expect("PEM").map(|c| c.expect("a certificate"));
        let key = PrivateKeyDer::from_pem_file(&files.key).expect("a key");
        Arc::new(trusting(&[self.ca()]).with_client_auth_cert(chain.collect(), key).expect("a client"))
    }
}

/// Begins a client that trusts the roots in these files.
pub fn trusting(files: &[PathBuf]) -> rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert> {
    let mut roots = RootCertStore::empty();
    for file in files {
        for root in CertificateDer::pem_file_iter(file).expect("PEM") {
            roots.add(root.expect("a certificate")).expect("a root");
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider);
    builder.with_safe_default_protocol_versions().expect("versions").with_root_certificates(roots)
}

pub type Stream = StreamOwned<ClientConnection, TcpStream>;

/// A connection with its handshake done; the error is the client's or the alert of the server.
pub fn connect(client: &Arc<ClientConfig>, to: SocketAddr, name: &str) -> std::io::Result<Stream> {
    let name = ServerName::try_from(name.to_owned()).expect("a name");
    let tls = ClientConnection::new(Arc::clone(client), name).expect("a client");
    let mut stream = StreamOwned::new(tls, http::connect(to));
    while stream.conn.is_handshaking() {
        stream.conn.complete_io(&mut stream.sock)?;
    }
    Ok(stream)
}

/// Sends these bytes on a connection of their own, and reads one answer.
pub fn raw(client: &Arc<ClientConfig>, to: SocketAddr, name: &str, bytes: impl AsRef<[u8]>) -> std::io::Result<Answer> {
    let mut stream = connect(client, to, name)?;
    stream.write_all(bytes.as_ref())?;
    http::read(&mut stream).ok_or_else(|| {
        // rustls repeats what has ended the connection.
        stream.read(&mut [0]).err().unwrap_or_else(|| std::io::ErrorKind::UnexpectedEof.into())
    })
}

pub fn post(client: &Arc<ClientConfig>, to: SocketAddr, name: &str, body: impl AsRef<[u8]>) -> std::io::Result<Answer> {
    raw(client, to, name, http::request("/webhooks", "connection: close\r\n", body))
}

pub fn get(client: &Arc<ClientConfig>, to: SocketAddr, name: &str, path: &str) -> std::io::Result<Answer> {
    raw(client, to, name, format!("GET {path} HTTP/1.1\r\nhost: relay\r\nconnection: close\r\n\r\n"))
}

/// The first certificate that the server has shown.
pub fn shown(stream: &Stream) -> Vec<u8> {
    stream.conn.peer_certificates().and_then(|chain| chain.first()).map(|leaf| leaf.to_vec()).unwrap_or_default()
}

/// Posts webhooks, in turn on one connection that is kept and on a new one, until `during` has returned. How many were answered 200, all of
/// them, and the certificates that the new connections have shown.
pub fn under_load(
    client: &Arc<ClientConfig>,
    to: SocketAddr,
    name: &str,
    during: impl FnOnce(),
) -> (u32, Vec<Vec<u8>>) {
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let sender = scope.spawn(|| {
            let (mut sent, mut certificates) = (0, Vec::new());
            let mut kept = connect(client, to, name).expect("a handshake");
            while !is_over.load(Ordering::Relaxed) {
                let mut fresh = connect(client, to, name).expect("a new handshake");
                for stream in [&mut kept, &mut fresh] {
                    let body = incoming_event(&chat_id(), sent.into());
                    stream.write_all(&http::request("/webhooks", "", body)).expect("written");
                    assert_eq!(http::read(stream).expect("an answer").status, 200);
                    sent += 1;
                }
                certificates.push(shown(&fresh));
                certificates.dedup();
            }
            (sent, certificates)
        });
        during();
        is_over.store(true, Ordering::Relaxed);
        sender.join().expect("every webhook is answered 200")
    })
}
