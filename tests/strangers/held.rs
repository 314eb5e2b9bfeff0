//! An HTTP/2 connection that holds: it keeps as many requests open as it may, and begins again what the relay ends.

use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use tokio::time::interval;

use crate::http2::{
    ACK, DATA, END_HEADERS, END_STREAM, FRAME_MAX, GOAWAY, HEADERS, PING, RST_STREAM, SETTINGS, WINDOW_UPDATE, frame,
    greeting, streams,
};
use crate::target::Stream;

/// What is held.
#[derive(Clone)]
pub struct Held {
    pub streams: usize,
    /// The header block of each request.
    pub block: Vec<u8>,
    /// So much of its body follows at once, as far as the relay's windows allow.
    pub body_bytes: usize,
    /// Then a byte each second.
    pub dribbles: bool,
    /// Whether the requests have no body, so that only their answers are held.
    pub ends: bool,
    /// What the answers of a stream may have, where that is not the default.
    pub window: Option<u32>,
}

/// One connection's state.
struct Connection {
    unread: Vec<u8>,
    /// Of each open stream, the bytes of its body that follow at once.
    open: BTreeMap<u32, usize>,
    /// What the relay takes on all streams together, and on a new one.
    window: usize,
    stream_window: usize,
}

impl Held {
    /// Holds until the relay ends the connection, which is the error.
    pub async fn hold(self, mut stream: Stream) -> io::Result<()> {
        stream.send(&greeting(self.window)).await?;
        let mut connection =
            Connection { unread: Vec::new(), open: BTreeMap::new(), window: 65_535, stream_window: 65_535 };
        let mut free = streams();
        let mut ticks = interval(Duration::from_millis(100)); // what is refused at once is not begun again at full speed
        ticks.tick().await; // at once; at the next, the relay's settings are there
        for tick in 1_u64.. {
            ticks.tick().await;
            stream.read_what_is_there(&mut connection.unread)?;
            let mut frames = connection.take_frames()?;
            while connection.open.len() < self.streams {
                let id = free.next().ok_or(io::ErrorKind::QuotaExceeded)?;
                frames.extend(frame(HEADERS, END_HEADERS | if self.ends { END_STREAM } else { 0 }, id, &self.block));
                connection.open.insert(id, self.body_bytes.min(connection.stream_window));
            }
            if self.dribbles && tick.is_multiple_of(10) {
                connection.open.values_mut().for_each(|due| *due += 1);
            }
            frames.extend(connection.bodies());
            stream.send(&frames).await?;
        }
        Ok(())
    }
}

impl Connection {
    /// What is due of the bodies, as far as the window reaches.
    fn bodies(&mut self) -> Vec<u8> {
        let mut frames = Vec::new();
        for (&id, due) in &mut self.open {
            while *due > 0 && self.window > 0 {
                let length = FRAME_MAX.min(*due).min(self.window);
                frames.extend(frame(DATA, 0, id, &vec![b'x'; length]));
                *due -= length;
                self.window -= length;
            }
        }
        frames
    }

    /// Takes the whole frames out of what is unread, and acts upon them; returns what they ask for.
    ///
    /// # Errors
    /// When the relay says that it ends the connection.
    fn take_frames(&mut self) -> io::Result<Vec<u8>> {
        let unread = std::mem::take(&mut self.unread);
        let (mut answers, mut at) = (Vec::new(), 0);
        while let Some(&[a, b, c, kind, flags, s, t, u, v]) = unread[at..].first_chunk() {
            let (end, id) = (at + 9 + u32::from_be_bytes([0, a, b, c]) as usize, u32::from_be_bytes([s, t, u, v]));
            let Some(payload) = unread.get(at + 9..end) else { break };
            at = end;
            match (kind, payload) {
                (SETTINGS, settings) if flags & ACK == 0 => {
                    self.set(settings);
                    answers.extend(frame(SETTINGS, ACK, 0, &[]));
                }
                (PING, payload) if flags & ACK == 0 => answers.extend(frame(PING, ACK, 0, payload)),
                (GOAWAY, _) => return Err(io::ErrorKind::ConnectionAborted.into()),
                (WINDOW_UPDATE, &[a, b, c, d]) if id == 0 => self.window += u32::from_be_bytes([a, b, c, d]) as usize,
                (RST_STREAM, _) => drop(self.open.remove(&id)),
                (HEADERS | DATA, _) if flags & END_STREAM != 0 => drop(self.open.remove(&id)),
                _ => {}
            }
        }
        self.unread = unread[at..].to_vec();
        Ok(answers)
    }

    fn set(&mut self, settings: &[u8]) {
        const INITIAL_WINDOW_SIZE: [u8; 2] = [0, 4];
        for setting in settings.as_chunks::<6>().0 {
            let [a, b, value @ ..] = *setting;
            if [a, b] == INITIAL_WINDOW_SIZE {
                self.stream_window = u32::from_be_bytes(value) as usize;
            }
        }
    }
}
