//! A real relay process with its default configuration, and what Linux says of it: memory, CPU time, sockets, log.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use tokio_rustls::TlsConnector;

use crate::attacks::Attack;
use crate::legit::{self, SECRET_KEY};
use crate::tls::Certificate;

/// Of each relay's log, so much is kept in a file; a log may grow by 1 MB/s.
const LOG_KEPT_BYTES: u64 = 1 << 20;

/// A relay may take `server.drain_timeout` to end, and a busy machine longer.
const END_TIMEOUT: Duration = Duration::from_secs(20);

/// What a relay has logged.
#[derive(Clone, Copy, Default)]
pub struct Logged {
    pub lines: u64,
    pub bytes: u64,
    has_panicked: bool,
}

pub struct Relay {
    pub webhooks: SocketAddr,
    pub admin: SocketAddr,
    child: Child,
    logged: Arc<Mutex<Logged>>,
    log: PathBuf,
    certificate: Option<Certificate>,
    _configuration: tempfile::NamedTempFile,
}

impl Relay {
    /// Starts it, and waits until it is ready and has answered a webhook with 200.
    pub fn start(binary: &Path, brokers: &str, attack: &Attack) -> Result<Self, String> {
        let (webhooks, admin) = (free_port()?, free_port()?);
        let certificate = attack.https.map(|_| Certificate::new()).transpose()?;
        let more =
            certificate.as_ref().map(Certificate::setting).unwrap_or_default() + attack.https.unwrap_or_default();
        let configuration = configuration(webhooks, admin, brokers, &more).map_err(|error| error.to_string())?;
        // In a session of its own, as services are: Linux shares the cores among sessions first (autogroup), so the relay has its
        // half of the machine beside the attacker. It dies with this process, even where this process is killed.
        let mut command = Command::new("setsid");
        command.args(["setpriv", "--pdeathsig", "KILL"]).arg(binary).args(["serve", "--config"]);
        command.arg(configuration.path()).stdin(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|error| format!("setsid and setpriv (util-linux): {error}"))?;
        let logged = Arc::new(Mutex::default());
        let log = directory()?.join(format!("{}.log", attack.name));
        let file = File::create(&log).map_err(|error| format!("{}: {error}", log.display()))?;
        let (stderr, counts) = (child.stderr.take().expect("piped above"), Arc::clone(&logged));
        thread::spawn(move || read_log(stderr, file, &counts));
        let local = |port| SocketAddr::from(([127, 0, 0, 1], port));
        let (webhooks, admin) = (local(webhooks), local(admin));
        let relay = Self { webhooks, admin, child, logged, log, certificate, _configuration: configuration };
        relay.await_start()
    }

    /// How to reach the webhooks' listener, where it speaks HTTPS.
    pub fn tls(&self) -> Option<&TlsConnector> {
        self.certificate.as_ref().map(|certificate| &certificate.client)
    }

    fn await_start(mut self) -> Result<Self, String> {
        let deadline = Instant::now() + Duration::from_secs(60);
        while !legit::takes_webhooks(&self) {
            if let Ok(Some(status)) = self.child.try_wait() {
                return Err(format!("the relay has not started: {status}; log: {}", self.log.display()));
            }
            if Instant::now() > deadline {
                return Err(format!("the relay takes no webhooks; log: {}", self.log.display()));
            }
            thread::sleep(Duration::from_millis(50));
        }
        Ok(self)
    }

    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    pub fn logged(&self) -> Logged {
        *self.logged.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The most memory it has had.
    pub fn peak_kib(&self) -> u64 {
        let status = self.proc("status");
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok()).unwrap_or_default()
    }

    pub fn cpu(&self) -> Duration {
        cpu(&self.proc("stat"))
    }

    /// The connections that it has accepted and not closed.
    pub fn connections(&self) -> usize {
        const LISTEN: &str = "0A";
        let ports = [self.webhooks, self.admin].map(|address| format!(":{:04X}", address.port()));
        let is_ours = |line: &&str| {
            // Number, local address, remote address, state, and further on the inode, which is 0 where no process has the socket.
            let fields: Vec<&str> = line.split_whitespace().collect();
            let [_, local, _, state, _, _, _, _, _, inode, ..] = fields[..] else { return false };
            ports.iter().any(|port| local.ends_with(port.as_str())) && state != LISTEN && inode != "0"
        };
        self.proc("net/tcp").lines().filter(is_ours).count()
    }

    /// The connections that are left when the attacker has gone: as soon as none is, or after 3 s.
    pub fn connections_left(&self) -> usize {
        let deadline = Instant::now() + Duration::from_secs(3);
        loop {
            let left = self.connections();
            if left == 0 || Instant::now() > deadline {
                return left;
            }
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// A file of /proc; empty where the process has ended.
    fn proc(&self, file: &str) -> String {
        std::fs::read_to_string(format!("/proc/{}/{file}", self.child.id())).unwrap_or_default()
    }

    /// Ends it with SIGTERM; what went wrong, until or at its end.
    pub fn end(mut self) -> Vec<String> {
        let mut failures = Vec::new();
        if let Ok(Some(status)) = self.child.try_wait() {
            failures.push(format!("the relay has ended: {status}; log: {}", self.log.display()));
            return failures;
        }
        let _ = kill_process(self.pid(), Signal::CONT); // an attack may have stopped it
        let _ = kill_process(self.pid(), Signal::TERM);
        let deadline = Instant::now() + END_TIMEOUT;
        while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(20));
        }
        match self.child.try_wait() {
            Ok(Some(status)) if status.success() => {}
            Ok(Some(status)) => failures.push(format!("after SIGTERM the relay has ended with {status}")),
            _ => failures.push(format!("the relay has not ended {} s after SIGTERM", END_TIMEOUT.as_secs())),
        }
        if self.logged().has_panicked {
            failures.push(format!("the relay has panicked; log: {}", self.log.display()));
        }
        failures
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        let _ = self.child.kill(); // it has ended, mostly
        let _ = self.child.wait();
    }
}

/// User and system time, of `stat` in `/proc/PID` or `/proc/PID/task/TID`.
pub fn cpu(stat: &str) -> Duration {
    // The name, in parentheses, may contain anything; utime and stime are the 12th and 13th field behind it, in ticks of 10 ms.
    let behind = stat.rsplit_once(')').map_or("", |(_, behind)| behind);
    let ticks: u64 = behind.split_whitespace().skip(11).take(2).filter_map(|ticks| ticks.parse::<u64>().ok()).sum();
    Duration::from_millis(ticks * 10)
}

/// Where the logs of the relays are.
fn directory() -> Result<PathBuf, String> {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("strangers");
    std::fs::create_dir_all(&directory).map_err(|error| format!("{}: {error}", directory.display()))?;
    Ok(directory)
}

fn read_log(mut from: ChildStderr, mut file: File, logged: &Mutex<Logged>) {
    let mut bytes = vec![0; 65536];
    while let Ok(read @ 1..) = from.read(&mut bytes) {
        let mut logged = logged.lock().unwrap_or_else(PoisonError::into_inner);
        if logged.bytes < LOG_KEPT_BYTES {
            let _ = file.write_all(&bytes[..read]); // it is for a person to look at
        }
        let text = String::from_utf8_lossy(&bytes[..read]);
        logged.lines += text.matches('\n').count() as u64;
        logged.bytes += read as u64;
        logged.has_panicked |= text.contains("panicked at");
    }
}

/// The default but for what has no default, and what must not collide on this machine. No spool, as by default.
fn configuration(webhooks: u16, admin: u16, brokers: &str, more: &str) -> std::io::Result<tempfile::NamedTempFile> {
    let mut file = tempfile::NamedTempFile::new()?;
    write!(
        file,
        r#"
        server.listen = "0.0.0.0:{webhooks}"
        admin.listen = "127.0.0.1:{admin}"
        kafka.brokers = "{brokers}"
        kafka.start_timeout = "1s" # the mock cluster does not answer what is asked of topics' settings
        apps = [{{ name = "default", secret_keys = [{{ name = "2026-11", value = "{SECRET_KEY}" }}] }}]
        {more}"#
    )?;
    Ok(file)
}

fn free_port() -> Result<u16, String> {
    let bound = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
    bound.map(|address| address.port()).map_err(|error| error.to_string())
}
