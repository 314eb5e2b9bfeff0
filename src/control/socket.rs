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

/// The socket, bound.
pub struct Socket {
    listener: UnixListener,
    path: PathBuf,
    /// Device and inode of its file.
    identity: Option<(u64, u64)>,
    config: Config,
}

impl Socket {
    /// Binds it, in place of the one of a relay that was killed. To be called by the relay that has the spool's lock.
    ///
    /// # Errors
    /// Another process answers there, there is a file that is no socket, or the directory is missing or cannot be written to.
    pub async fn bind(path: PathBuf, config: Config) -> io::Result<Self> {
        remove_stale(&path).await?;
        let socket = UnixSocket::new_stream()?;
        // The file gets the socket's mode, so it is never there with another one.
        rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
        socket.bind(&path)?;
        let backlog = u32::try_from(config.connections_max).unwrap_or(u32::MAX);
        Ok(Self { listener: socket.listen(backlog)?, identity: identity(&path), path, config })
    }

    /// Answers until `ended`, then removes the socket, if it is still there.
    pub async fn serve(self, control: Control, ended: CancellationToken) {
        let slots = Arc::new(Semaphore::new(self.config.connections_max));
        while let Some(accepted) = ended.run_until_cancelled(self.listener.accept()).await {
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
        if self.identity.is_some() && self.identity == identity(&self.path) {
            let _ = std::fs::remove_file(&self.path); // else the next relay does
        }
    }
}

fn identity(path: &Path) -> Option<(u64, u64)> {
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
        let (uid, gid, pid, has_left) = (peer.uid(), peer.gid(), peer.pid(), answered.is_err());
        let answer = last.unwrap_or_default();
        tracing::info!(command, uid, gid, pid, answer, has_left, "an operator has asked for a change of the spool");
    }
}
