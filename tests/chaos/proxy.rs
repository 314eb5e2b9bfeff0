//! A TCP proxy between the relay and one broker, which can cut the line without closing it.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

/// What is done with the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Line {
    Forward = 0,
    /// Connections are accepted and read; nothing is passed on, nothing closed.
    Swallow = 1,
    /// Connections are closed, old and new.
    Refuse = 2,
    /// All is passed on, later by [`ONE_WAY`] in each direction.
    Slow = 3,
}

/// Half of a round trip through a slow line.
const ONE_WAY: Duration = Duration::from_millis(5);

/// How soon a connection without traffic notices that its line has changed.
const TICK: Duration = Duration::from_millis(100);

pub struct Proxy {
    pub port: u16,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    line: AtomicU8,
    swallowed: AtomicUsize,
}

impl Proxy {
    /// Serves from now on, as long as the process lives; the port may be one that nothing listens on yet.
    pub fn start(to_port: u16) -> Self {
        let listener =
            TcpListener::bind((Ipv4Addr::LOCALHOST, crate::support::kafka::free_port())).expect("a free port");
        let port = listener.local_addr().expect("a bound listener has an address").port();
        let state = Arc::<State>::default();
        let shared = Arc::clone(&state);
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let state = Arc::clone(&shared);
                thread::spawn(move || serve(client, to_port, &state));
            }
        });
        Self { port, state }
    }

    pub fn set(&self, line: Line) {
        self.state.line.store(line as u8, Ordering::SeqCst);
    }

    /// How many bytes have gone nowhere.
    pub fn swallowed(&self) -> usize {
        self.state.swallowed.load(Ordering::SeqCst)
    }
}

impl State {
    fn line(&self) -> Line {
        match self.line.load(Ordering::SeqCst) {
            0 => Line::Forward,
            1 => Line::Swallow,
            3 => Line::Slow,
            _ => Line::Refuse,
        }
    }
}

fn serve(client: TcpStream, to_port: u16, state: &Arc<State>) {
    if state.line() == Line::Refuse {
        return;
    }
    let Ok(broker) = TcpStream::connect(SocketAddr::from((Ipv4Addr::LOCALHOST, to_port))) else { return };
    let (Ok(client_too), Ok(broker_too)) = (client.try_clone(), broker.try_clone()) else { return };
    let shared = Arc::clone(state);
    let back = thread::spawn(move || pass(broker_too, client_too, &shared));
    pass(client, broker, state);
    let _ = back.join(); // it has passed on what it could
}

/// Passes bytes on until either end closes. A connection that has lost some can't go on: it is closed when the line is mended.
fn pass(mut from: TcpStream, mut to: TcpStream, state: &State) {
    let mut bytes = vec![0; 64 * 1024];
    let mut has_lost = false;
    let _ = (from.set_read_timeout(Some(TICK)), to.set_nodelay(true)); // slower without, not wrong
    loop {
        let read = from.read(&mut bytes);
        let line = state.line();
        if line == Line::Slow && matches!(read, Ok(1..)) {
            thread::sleep(ONE_WAY);
        }
        if line == Line::Refuse || (has_lost && line == Line::Forward) {
            break;
        }
        match read {
            Ok(0) => break,
            Ok(n) if line == Line::Swallow => {
                has_lost = true;
                state.swallowed.fetch_add(n, Ordering::SeqCst);
            }
            Ok(n) if to.write_all(&bytes[..n]).is_err() => break,
            Ok(_) => {}
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(_) => break,
        }
    }
    let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both)); // the other direction ends with it
}
