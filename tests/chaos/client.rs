//! A sender with LiveChat's habits: many chats at once, within a chat one event after the other, exactly 200 counts, and
//! anything else is tried three times more with the same body. What was answered 200 is written down as an obligation.

use std::collections::{HashMap, HashSet};
use std::io::Write as _;
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::judge::{Answered, Posted, mark};
use crate::random::Random;
use crate::support::relay::SECRET;
use crate::support::{chat_id, http, with_secret};

/// LiveChat waits about so long for an answer.
const TIMEOUT: Duration = Duration::from_secs(10);

/// When LiveChat tries again; its own pauses are longer, and would only make the run longer.
const RETRIES: [Duration; 3] = [Duration::from_millis(200), Duration::from_secs(1), Duration::from_secs(3)];

/// The action whose topic most events go to, and that scenarios break.
pub const MAIN: &str = "incoming_event";

/// What is sent, how often of twenty, and whether the payload names its event. The last is in no catalogue: all chats share its key.
const ACTIONS: [(&str, u64, bool); 4] =
    [(MAIN, 13, true), ("thread_tagged", 4, false), ("chat_deactivated", 2, true), ("chat_reincarnated", 1, false)];

const ORGANIZATION: &str = "org-of-the-chaos";

/// The actions that the relay has to route to a topic.
pub fn actions() -> impl Iterator<Item = &'static str> {
    ACTIONS.iter().map(|(action, _, _)| *action)
}

/// What is to be sent.
#[derive(Clone, Debug)]
pub struct Load {
    pub chats: usize,
    pub per_second: f64,
    /// Events get texts of up to this many bytes.
    pub text_bytes_max: u64,
    pub topic_prefix: String,
    pub seed: u64,
}

/// Senders at work.
pub struct Client {
    shared: Arc<Shared>,
    chats: Vec<JoinHandle<Vec<Posted>>>,
    probe: Mutex<Chat>,
    probes: Mutex<Vec<Posted>>,
}

/// What the senders have seen until now.
#[derive(Clone, Copy, Debug)]
pub struct Tally {
    pub answered: u64,
    pub unavailable: u64,
    /// Attempts without any answer: the relay was dead, or died.
    pub unanswered: u64,
    /// The longest wait for an answer, whatever it said; a wait that LiveChat would have given up is one, too.
    pub longest: Duration,
}

struct Shared {
    load: Load,
    addresses: Mutex<Vec<SocketAddr>>,
    turn: AtomicUsize,
    stop: AtomicBool,
    held: Mutex<Held>,
    released: Condvar,
    began: Instant,
    answered: AtomicU64,
    unavailable: AtomicU64,
    unanswered: AtomicU64,
    longest_micros: AtomicU64,
}

/// Actions that are not sent for now, and how many of each are under way.
#[derive(Default)]
struct Held {
    actions: HashSet<&'static str>,
    under_way: HashMap<&'static str, usize>,
}

impl Client {
    pub fn start(load: Load, addresses: Vec<SocketAddr>) -> Self {
        let shared = Arc::new(Shared {
            addresses: Mutex::new(addresses),
            turn: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
            held: Mutex::default(),
            released: Condvar::new(),
            began: Instant::now(),
            answered: AtomicU64::new(0),
            unavailable: AtomicU64::new(0),
            unanswered: AtomicU64::new(0),
            longest_micros: AtomicU64::new(0),
            load,
        });
        let chat = |n: usize| {
            let shared = Arc::clone(&shared);
            thread::spawn(move || Chat::new(&shared, n).talk())
        };
        let chats = (1..=shared.load.chats).map(chat).collect();
        let probe = Mutex::new(Chat::new(&shared, 0));
        Self { shared, chats, probe, probes: Mutex::default() }
    }

    /// From the next attempt on, events go to these, in turns.
    pub fn send_to(&self, addresses: Vec<SocketAddr>) {
        *lock(&self.shared.addresses) = addresses;
    }

    /// Sends no more of this action, and waits until none of it is under way.
    pub fn hold(&self, action: &'static str) {
        let mut held = lock(&self.shared.held);
        held.actions.insert(action);
        while held.under_way.get(action).is_some_and(|&n| n > 0) {
            held = self.shared.released.wait(held).unwrap_or_else(PoisonError::into_inner);
        }
    }

    pub fn release(&self, action: &'static str) {
        lock(&self.shared.held).actions.remove(action);
    }

    /// Posts one fresh event of [`MAIN`], an obligation like any other; whether it was answered 200 at the first attempt.
    pub fn probe(&self) -> bool {
        let posted = lock(&self.probe).post(MAIN, true, 10);
        let is_taken = posted.answered.is_some() && posted.attempts == 1;
        lock(&self.probes).push(posted);
        is_taken
    }

    /// Posts one event of [`MAIN`] with a text of so many bytes; whether it was answered 200.
    pub fn post_large(&self, bytes: usize) -> bool {
        let posted = lock(&self.probe).post(MAIN, true, bytes);
        let is_taken = posted.answered.is_some();
        lock(&self.probes).push(posted);
        is_taken
    }

    pub fn tally(&self) -> Tally {
        let count = |n: &AtomicU64| n.load(Ordering::Relaxed);
        Tally {
            answered: count(&self.shared.answered),
            unavailable: count(&self.shared.unavailable),
            unanswered: count(&self.shared.unanswered),
            longest: Duration::from_micros(count(&self.shared.longest_micros)),
        }
    }

    /// Lets every sender finish its event, retries included, and post a last one; answers all that was posted. Whatever is to
    /// hold after a fault, holds for the last ones.
    pub fn stop(&mut self) -> Vec<Posted> {
        self.shared.stop.store(true, Ordering::Relaxed);
        let chats = self.chats.drain(..).flat_map(|chat| chat.join().expect("a sender does not panic"));
        chats.chain(lock(&self.probes).drain(..)).collect()
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
    }
}

impl Held {
    fn begin(&mut self, action: &'static str) -> bool {
        let is_free = !self.actions.contains(action);
        if is_free {
            *self.under_way.entry(action).or_default() += 1;
        }
        is_free
    }

    fn end(&mut self, action: &'static str) {
        *self.under_way.entry(action).or_insert(1) -= 1;
    }
}

/// One chat: its events go one after the other, over connections that are kept.
struct Chat {
    shared: Arc<Shared>,
    id: String,
    random: Random,
    sequence: u64,
    connections: HashMap<SocketAddr, TcpStream>,
}

impl Chat {
    fn new(shared: &Arc<Shared>, n: usize) -> Self {
        let random = Random::new(shared.load.seed ^ (n as u64) << 32);
        Self { shared: Arc::clone(shared), id: chat_id(), random, sequence: 0, connections: HashMap::new() }
    }

    fn talk(mut self) -> Vec<Posted> {
        let shared = Arc::clone(&self.shared);
        let interval = Duration::from_secs_f64(shared.load.chats as f64 / shared.load.per_second);
        let first = interval.mul_f64(self.random.within(0, 1000) as f64 / 1000.0);
        let mut due = Instant::now() + first;
        let mut posted = Vec::new();
        while !shared.stop.load(Ordering::Relaxed) {
            thread::sleep(due.saturating_duration_since(Instant::now()));
            due = (due + interval).max(Instant::now()); // what was missed is not made up for: LiveChat's chats go on, too
            let (action, is_named) = self.choose();
            if !lock(&shared.held).begin(action) {
                continue;
            }
            let text_bytes = self.random.within(10, shared.load.text_bytes_max.max(11));
            posted.push(self.post(action, is_named, text_bytes as usize));
            lock(&shared.held).end(action);
            shared.released.notify_all();
        }
        posted.push(self.post(MAIN, true, 10));
        posted
    }

    fn choose(&mut self) -> (&'static str, bool) {
        let mut drawn = self.random.within(0, ACTIONS.iter().map(|(_, share, _)| share).sum());
        for (action, share, is_named) in ACTIONS {
            if drawn < share {
                return (action, is_named);
            }
            drawn -= share;
        }
        unreachable!("the shares add up to what was drawn from")
    }

    /// Posts the next event until it is answered 200 or given up.
    fn post(&mut self, action: &'static str, is_named: bool, text_bytes: usize) -> Posted {
        self.sequence += 1;
        let is_listed = action != "chat_reincarnated";
        let mut event = Posted {
            topic: format!("{}{}", self.shared.load.topic_prefix, if is_listed { action } else { "unlisted" }),
            key: if is_listed { self.id.clone() } else { ORGANIZATION.to_owned() },
            chat: self.id.clone(),
            sequence: self.sequence,
            data: self.data(action, text_bytes),
            is_named,
            attempts: 0,
            answered: None,
        };
        let request = http::request("/webhooks", "", with_secret(&event.data, SECRET));
        loop {
            event.attempts += 1;
            event.answered = self.attempt(&request);
            let pause = RETRIES.get(event.attempts as usize - 1);
            let (None, Some(pause)) = (&event.answered, pause) else { return event };
            thread::sleep(*pause);
        }
    }

    fn attempt(&mut self, request: &[u8]) -> Option<Answered> {
        let (relay, address) = {
            let addresses = lock(&self.shared.addresses);
            let relay = self.shared.turn.fetch_add(1, Ordering::Relaxed) % addresses.len();
            (relay, addresses[relay])
        };
        let began = Instant::now();
        let status = self.exchange(address, request);
        let took = began.elapsed();
        if status.is_some() || took >= TIMEOUT {
            self.shared.longest_micros.fetch_max(took.as_micros() as u64, Ordering::Relaxed);
        }
        match status {
            Some(200) => self.shared.answered.fetch_add(1, Ordering::Relaxed),
            Some(503) => self.shared.unavailable.fetch_add(1, Ordering::Relaxed),
            Some(other) => panic!("the relay answered {other} to a good webhook"),
            None => self.shared.unanswered.fetch_add(1, Ordering::Relaxed),
        };
        (status == Some(200)).then(|| Answered { relay, at: self.shared.began.elapsed(), took })
    }

    /// The status; none when the connection was refused, reset or silent. A connection is kept only after an answer.
    fn exchange(&mut self, address: SocketAddr, request: &[u8]) -> Option<u16> {
        let mut stream = match self.connections.remove(&address).filter(is_open) {
            Some(kept) => kept,
            None => connect(address)?,
        };
        stream.write_all(request).ok()?;
        let answer = http::read(&mut stream)?;
        if answer.header("connection") != Some("close") {
            self.connections.insert(address, stream);
        }
        Some(answer.status)
    }

    /// The text does not compress, so that its length is that of the record. Every event has a thread of its own, so that `chat_deactivated` is a new event each time, too.
    fn data(&mut self, action: &str, text_bytes: usize) -> String {
        let noise: String = (0..text_bytes.div_ceil(16)).map(|_| format!("{:016x}", self.random.next())).collect();
        let (chat, n, text) = (&self.id, self.sequence, format!(r#"Grüße \"🚀 \ud83d\ude80 {noise}"#));
        format!(
            r#"{{"webhook_id":"7b2f","action":"{action}","organization_id":"{ORGANIZATION}","payload":{{"chat_id":"{chat}","thread_id":"T{chat}{n}","tag":"tag {n}","user_id":"ada@example.com","event":{{"id":"T{chat}_{n}","type":"message","text":"{text}","author_id":"ada@example.com","created_at":"2026-11-22T10:00:00.{:06}Z"}}}},"additional_data":{{{}}}}}"#,
            n % 1_000_000,
            mark(chat, n)
        )
    }
}

fn connect(address: SocketAddr) -> Option<TcpStream> {
    let stream = TcpStream::connect_timeout(&address, TIMEOUT).ok()?;
    stream.set_nodelay(true).ok()?;
    stream.set_read_timeout(Some(TIMEOUT)).ok()?;
    stream.set_write_timeout(Some(TIMEOUT)).ok()?;
    Some(stream)
}

/// Whether the relay has not closed it while it was idle: that is no attempt that failed.
fn is_open(stream: &TcpStream) -> bool {
    let would_block = |e: std::io::Error| e.kind() == std::io::ErrorKind::WouldBlock;
    let is_open = stream.set_nonblocking(true).is_ok() && stream.peek(&mut [0]).is_err_and(would_block);
    is_open && stream.set_nonblocking(false).is_ok()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
