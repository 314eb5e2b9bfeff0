//! What the relays say of themselves while they live: counters are added up over their lives. It
//! is how a scenario knows that the hard path was reached.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

/// How often they are asked.
const INTERVAL: Duration = Duration::from_millis(200);

/// One reading of `/metrics`: series and values.
#[derive(Clone, Debug, Default)]
pub struct Reading(BTreeMap<String, f64>);

impl Reading {
    /// Asks once; nothing where nobody answers.
    pub fn of(admin: SocketAddr) -> Option<Self> {
        let mut stream = TcpStream::connect_timeout(&admin, Duration::from_secs(2)).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
        stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: relay\r\nconnection: close\r\n\r\n").ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        let (head, body) = text.split_once("\r\n\r\n")?;
        let series = |line: &str| {
            let (series, value) = line.rsplit_once(' ')?;
            Some((series.to_owned(), value.parse().ok()?))
        };
        head.starts_with("HTTP/1.1 200")
            .then(|| Self(body.lines().filter(|line| line.starts_with("livechat_relay_")).filter_map(series).collect()))
    }

    /// The sum over all series of this name that have these labels, with a comma between two: `action="a",outcome="spooled"`, or nothing
    /// for all. A metric that is not there is 0.
    pub fn sum(&self, name: &str, wanted: &str) -> f64 {
        let is_meant = |series: &str| {
            series.strip_prefix("livechat_relay_").and_then(|rest| rest.strip_prefix(name)).is_some_and(|labels| {
                (labels.is_empty() || labels.starts_with('{')) && wanted.split(',').all(|one| labels.contains(one))
            })
        };
        self.0.iter().filter(|(series, _)| is_meant(series)).map(|(_, value)| value).sum()
    }

    pub fn spool_records(&self) -> f64 {
        self.sum("spool_records", "")
    }
}

/// Asks all relays again and again, in a thread of its own, until it is dropped.
pub struct Watch {
    lives: Arc<Mutex<Vec<Life>>>,
    stop: Arc<AtomicBool>,
}

/// One process, from its start to its end.
struct Life {
    admin: SocketAddr,
    is_over: bool,
    last: Reading,
}

impl Watch {
    pub fn start() -> Self {
        let (lives, stop) = (Arc::<Mutex<Vec<Life>>>::default(), Arc::new(AtomicBool::new(false)));
        let watch = Self { lives, stop };
        let (lives, stop) = (Arc::clone(&watch.lives), Arc::clone(&watch.stop));
        thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                read_all(&lives);
                thread::sleep(INTERVAL);
            }
        });
        watch
    }

    /// A process was started, or is about to be, that answers at this address.
    pub fn begin(&self, admin: SocketAddr) {
        lock(&self.lives).push(Life { admin, is_over: false, last: Reading::default() });
    }

    /// The process at this address has ended; its last reading stays.
    pub fn end(&self, admin: SocketAddr) {
        lock(&self.lives).iter_mut().filter(|life| life.admin == admin).for_each(|life| life.is_over = true);
    }

    /// Reads now: before a process is killed, so that what it has counted is known.
    pub fn read(&self) {
        read_all(&self.lives);
    }

    /// A counter, over all lives.
    pub fn total(&self, name: &str, label: &str) -> f64 {
        lock(&self.lives).iter().map(|life| life.last.sum(name, label)).sum()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn read_all(lives: &Mutex<Vec<Life>>) {
    let admins: Vec<(usize, SocketAddr)> =
        lock(lives).iter().enumerate().filter(|(_, life)| !life.is_over).map(|(n, life)| (n, life.admin)).collect();
    for (n, admin) in admins {
        let Some(reading) = Reading::of(admin) else { continue };
        let life = &mut lock(lives)[n];
        if life.is_over {
            continue; // it ended meanwhile, and the answer may be its successor's
        }
        life.last = reading;
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
