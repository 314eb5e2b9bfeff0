//! The Unix socket through which commands reach a running relay. Only the relay's user and root can open it.

use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::Mode;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::unix::UCred;
use tokio::net::{UnixListener, UnixSocket, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

use super::{Answer, Config, Control, Gone, Request};

/// How often it is looked whether the socket is where it belongs, and how soon binding it is tried again.
const INTERVAL: Duration = Duration::from_millis(500);

/// Answers through the socket until `ended`. Where it cannot be bound, that is tried again: a relay does its work without it. While a
/// spool's log is closed there is no socket in its directory, because its file system could not be unmounted; one in a directory that was
/// removed or replaced is bound again.
pub async fn serve(path: PathBuf, control: Control, config: Config, ended: CancellationToken) {
    let mut was_told = false;
    while !ended.is_cancelled() {
        if control.may_have_socket(&path) {
            match Socket::bind(path.clone(), config.clone()).await {
                Ok(socket) => {
                    tracing::info!(socket = %path.display(), "the control socket is ready");
                    was_told = false;
                    socket.serve(&control, &ended).await;
                }
                Err(error) if !was_told => {
                    tracing::warn!(
                        socket = %path.display(), %error,
                        "no control socket: commands cannot reach this relay; see control.socket"
                    );
                    was_told = true;
                }
                Err(_) => {}
            }
        }
        ended.run_until_cancelled(tokio::time::sleep(INTERVAL)).await;
    }
}

/// The socket, bound.
struct Socket {
    listener: UnixListener,
    path: PathBuf,
    identity: Identity,
    config: Config,
}

/// Device and inode of a file.
type Identity = Option<(u64, u64)>;

impl Socket {
    /// Binds it, in place of the one of a relay that was killed. A disk may take its time for that.
    ///
    /// # Errors
    /// Another process answers there, there is a file that is no socket, or the directory is missing or cannot be written to.
    async fn bind(path: PathBuf, config: Config) -> io::Result<Self> {
        let runtime = tokio::runtime::Handle::current();
        let bind = async move {
            remove_stale(&path).await?;
            let socket = UnixSocket::new_stream()?;
            // The file gets the socket's mode, so it is never there with another one.
            rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
            socket.bind(&path)?;
            let backlog = u32::try_from(config.connections_max).unwrap_or(u32::MAX);
            Ok(Self { listener: socket.listen(backlog)?, identity: identity(&path), path, config })
        };
        tokio::task::spawn_blocking(move || runtime.block_on(bind)).await.map_err(io::Error::other)?
    }

    /// Answers until `ended`, or until the socket is not where it belongs; then removes it, if it is there.
    async fn serve(self, control: &Control, ended: &CancellationToken) {
        let slots = Arc::new(Semaphore::new(self.config.connections_max));
        let mut looks = tokio::time::interval(INTERVAL);
        loop {
            let accepted = tokio::select! {
                accepted = self.listener.accept() => accepted,
                _ = looks.tick() => {
                    if self.identity == found_at(self.path.clone()).await && control.may_have_socket(&self.path) {
                        continue;
                    }
                    break;
                }
                () = ended.cancelled() => break,
            };
            let Ok((stream, _)) = accepted else {
                tokio::time::sleep(Duration::from_millis(50)).await; // too many open files, which passes
                continue;
            };
            let slot = Arc::clone(&slots).try_acquire_owned().map(Arc::new);
            let connection =
                Connection { stream: BufReader::new(stream), control: control.clone(), config: self.config.clone() };
            tokio::spawn(async move {
                let answered = match slot {
                    Ok(slot) => connection.answer(slot).await,
                    Err(_) => connection.refuse("control.connections_max commands run already; try again later").await,
                };
                if let Err(error) = answered {
                    tracing::debug!(%error, "a connection to the control socket has ended before its answer");
                }
            });
        }
        drop(self.listener);
        if self.identity.is_some() && self.identity == found_at(self.path.clone()).await {
            let _ = tokio::fs::remove_file(&self.path).await; // else the next relay does
        }
    }
}

/// The file that has this name now.
async fn found_at(path: PathBuf) -> Identity {
    tokio::task::spawn_blocking(move || identity(&path)).await.unwrap_or_default()
}

fn identity(path: &Path) -> Identity {
    path.symlink_metadata().ok().map(|found| (found.dev(), found.ino()))
}

async fn remove_stale(path: &Path) -> io::Result<()> {
    let found = match path.symlink_metadata() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        found => found?,
    };
    if !found.file_type().is_socket() {
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, "there is a file that is no socket"));
    }
    match UnixStream::connect(path).await {
        Ok(_) => Err(io::Error::new(io::ErrorKind::AddrInUse, "another process answers there")),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => std::fs::remove_file(path),
        Err(error) => Err(error),
    }
}

/// One request and its answer.
struct Connection {
    stream: BufReader<UnixStream>,
    control: Control,
    config: Config,
}

impl Connection {
    /// The slot is taken until all is done and all is written.
    async fn answer(mut self, slot: Arc<OwnedSemaphorePermit>) -> io::Result<()> {
        let peer = self.stream.get_ref().peer_cred()?;
        let mut line = Vec::new();
        let mut request = (&mut self.stream).take(self.config.request_bytes_max);
        let read = tokio::time::timeout(self.config.request_timeout, request.read_until(b'\n', &mut line)).await;
        read.map_err(|_| io::ErrorKind::TimedOut)??;
        let request = match serde_json::from_slice(&line) {
            Ok(request) => request,
            Err(_) if !line.ends_with(b"\n") => return self.refuse("the request is too long, or not complete").await,
            Err(error) => return self.refuse(&format!("the request cannot be read: {error}")).await,
        };
        let (lines, mut answers) = mpsc::channel(16);
        let control = self.control.clone();
        let its_slot = Arc::clone(&slot);
        tokio::task::spawn_blocking(move || {
            answer_through(&control, request, peer, &lines);
            drop(its_slot);
        });
        while let Some(answer) = answers.recv().await {
            self.write(&answer).await?;
        }
        Ok(())
    }

    async fn refuse(mut self, why: &str) -> io::Result<()> {
        self.write(&Answer::Error(why.to_owned())).await
    }

    async fn write(&mut self, answer: &Answer) -> io::Result<()> {
        let mut line = serde_json::to_vec(answer)?;
        line.push(b'\n');
        let written = tokio::time::timeout(self.config.write_timeout, self.stream.get_mut().write_all(&line)).await;
        written.map_err(|_| io::ErrorKind::TimedOut)?
    }
}

/// Sends the answer, and logs who has asked for a change.
fn answer_through(control: &Control, request: Request, peer: UCred, lines: &mpsc::Sender<Answer>) {
    let (change, mut last) = (request.change(), None);
    let answered = control.answer(request, &mut |answer| {
        if answer.is_last() {
            last = serde_json::to_string(&answer).ok();
        }
        lines.blocking_send(answer).map_err(|_| Gone)
    });
    if let Some(command) = change {
        let (uid, gid, pid, has_left) = (peer.uid(), peer.gid(), peer.pid(), answered.is_err().then_some(true));
        let answer = last.map(tracing::field::display); // as it is: in quotes each of its own would be escaped
        tracing::info!(command, uid, gid, pid, answer, has_left, "an operator has asked for a change");
    }
}
