//! Pebble, the ACME authority that Let's Encrypt has for tests, with a DNS server in which every name has one address. It validates
//! challenges as a public authority does, but at a port of its own.

use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use rustls::ClientConfig;
use rustls::client::Resumption;

use super::http;
use super::kafka::free_port;
use super::relay::{Guard, await_that};
use super::tls::{self, Authority, trusting};

pub struct Pebble {
    authority: Authority,
    dns: Option<Process>,
    acme: Option<Process>,
    /// Where Pebble answers, where it is asked about itself, and where the DNS server is told addresses.
    api: u16,
    management: u16,
    addresses: u16,
    dns_port: u16,
    /// Every name's, and the port that challenges come to.
    pub target: SocketAddr,
    _directory: tempfile::TempDir,
}

impl Pebble {
    /// Begins without Pebble itself: see [`Pebble::start`]. Its certificates are valid for so many seconds.
    pub fn new(validity: u32) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let authority = Authority::new(directory.path());
        let server = authority.issue("pebble", &["localhost"]);
        let [api, management, dns, addresses, challenge] = [(); 5].map(|()| free_port());
        let configuration = serde_json::json!({ "pebble": {
            "listenAddress": format!("127.0.0.1:{api}"),
            "managementListenAddress": format!("127.0.0.1:{management}"),
            "certificate": server.certificate,
            "privateKey": server.key,
            "httpPort": 1,
            "tlsPort": challenge,
            "retryAfter": { "authz": 1, "order": 1 },
            "keyAlgorithm": "ecdsa",
            "profiles": { "default": { "description": "of the tests", "validityPeriod": validity } },
        }});
        std::fs::write(directory.path().join("pebble.json"), configuration.to_string()).expect("written");
        let target = SocketAddr::from((address(), challenge));
        let mut pebble = Self {
            authority,
            dns: None,
            acme: None,
            api,
            management,
            addresses,
            dns_port: dns,
            target,
            _directory: directory,
        };
        let mut command = Command::new(tool("pebble-challtestsrv"));
        command.args(["-dnsserver", &format!("127.0.0.1:{dns}"), "-management", &format!("127.0.0.1:{addresses}")]);
        command.args(["-defaultIPv4", &target.ip().to_string(), "-defaultIPv6", ""]);
        command.args(["-http01", "", "-https01", "", "-tlsalpn01", "", "-doh", ""]);
        pebble.dns = Some(Process::start(command, &pebble.authority.directory, &[dns, addresses]));
        pebble
    }

    /// Starts it, without any memory of accounts and orders.
    pub fn start(&mut self) {
        let mut command = Command::new(tool("pebble"));
        command.arg("-config").arg(self.authority.directory.join("pebble.json"));
        command.args(["-dnsserver", &format!("127.0.0.1:{}", self.dns_port)]);
        // It looks at the challenge at once, and at that of each order again.
        command.envs([("PEBBLE_VA_NOSLEEP", "1"), ("PEBBLE_AUTHZREUSE", "0")]);
        self.acme = Some(Process::start(command, &self.authority.directory, &[self.api, self.management]));
    }

    pub fn stop(&mut self) {
        self.acme = None;
    }

    /// From now on every name has this address.
    pub fn point_names_to(&self, address: SocketAddr) {
        let body = format!("{{\"ip\":\"{}\"}}", address.ip());
        let to = SocketAddr::from((Ipv4Addr::LOCALHOST, self.addresses));
        assert_eq!(http::post_to(to, "/set-default-ipv4", body).status, 200);
    }

    /// The settings of a relay that listens here and orders from it.
    pub fn settings(&self, listen: SocketAddr, cache: &Path) -> Vec<(&'static str, String)> {
        let quoted = |text: &dyn std::fmt::Display| format!("\"{text}\"");
        vec![
            ("server.listen", quoted(&listen)),
            // A start with a spool does not wait for the brokers.
            ("spool.directory", quoted(&self.authority.directory.join(listen.ip().to_string()).display())),
            ("server.tls.acme.domains", format!("[{}]", quoted(&NAME))),
            ("server.tls.acme.contact", quoted(&"ops@example.com")),
            ("server.tls.acme.directory", quoted(&format!("https://localhost:{}/dir", self.api))),
            ("server.tls.acme.ca", quoted(&self.authority.ca().display())),
            ("server.tls.acme.cache", quoted(&cache.display())),
            ("server.tls.acme.retry_min", quoted(&"1s")),
            ("server.tls.acme.retry_max", quoted(&"2s")),
        ]
    }

    /// A client that trusts what it issues until it is started again. It resumes no session: a resumed one shows the certificate of before.
    pub fn client(&self) -> Arc<ClientConfig> {
        let to = SocketAddr::from((Ipv4Addr::LOCALHOST, self.management));
        let root = tls::get(&self.authority.client(), to, "localhost", "/roots/0").expect("an answer").body;
        let file = self.authority.directory.join("issued-by.pem");
        std::fs::write(&file, root).expect("written");
        let mut client = trusting(&[file]).with_no_client_auth();
        client.resumption = Resumption::disabled();
        Arc::new(client)
    }
}

/// The name that relays order a certificate for.
pub const NAME: &str = "hooks.example.com";

/// An address of this machine that no other test of this process has.
pub fn address() -> Ipv4Addr {
    static NEXT: AtomicU8 = AtomicU8::new(1);
    Ipv4Addr::new(127, 77, (std::process::id() % 251) as u8 + 1, NEXT.fetch_add(1, Ordering::Relaxed))
}

fn tool(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/tools/bin").join(name);
    assert!(
        path.exists(),
        "{} is missing; `scripts/ensure.sh pebble` gets it, with Go from https://go.dev",
        path.display()
    );
    path
}

/// A program that ends with this process, however that ends.
struct Process {
    child: Child,
    guard: Guard,
}

impl Process {
    /// Waits until it listens on these ports.
    fn start(mut command: Command, directory: &Path, ports: &[u16]) -> Self {
        let log = std::fs::File::create(directory.join("log")).expect("a file");
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("a file")).stderr(log);
        let child = command.spawn().expect("it can be run");
        let guard = Guard::new(&child, directory);
        for port in ports {
            await_that("it listens", || TcpStream::connect((Ipv4Addr::LOCALHOST, *port)).is_ok());
        }
        Self { child, guard }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.guard.end();
        let _ = self.child.kill(); // it may have ended
        let _ = self.child.wait();
    }
}
