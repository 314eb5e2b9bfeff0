//! The way to a spool: through the control socket of the relay that has it, or from its directory, where none has.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;
use tokio::sync::mpsc;

use super::{Failure, Source};
use crate::config::{self, Config, DEAD_LETTER, Need};
use crate::control::{self, Answer, Control, Gone, Item, List, Listed, Request, Status};
use crate::dead_letter::DeadLetters;
use crate::metrics::Metrics;
use crate::publish::Publisher;
use crate::shutdown::Shutdown;
use crate::spool::{self, Spool, Unusable};

/// Which spool.
#[derive(clap::Args)]
pub struct Where {
    #[command(flatten)]
    pub source: Source,
    /// Control socket of the running relay [default: as configured]
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
}

/// An open way.
pub enum Access {
    /// The relay runs; its control socket.
    Running(PathBuf),
    /// No process has the directory, but for ours where it is to be changed.
    Stopped(Box<Stopped>),
}

pub struct Stopped {
    pub spool: Spool,
    pub metrics: Arc<Metrics>,
    pub config: config::Spool,
    /// Set by [`Access::publish`].
    pub dead_letters: Option<DeadLetters>,
}

/// How long a line of an answer may take: as long as a disk does.
const TIMEOUT: Duration = Duration::from_secs(60);

impl Where {
    /// A way to look at the spool. One that no relay has is not changed by it, nor locked.
    ///
    /// # Errors
    /// When there is no spool, or no relay answers for the one that is locked.
    pub async fn open(&self) -> Result<Access, Failure> {
        self.open_with(Spool::look).await
    }

    /// A way to change the spool. One that no relay has is locked meanwhile.
    ///
    /// # Errors
    /// As `open`; when it belongs to another user, or cannot be opened: it is not taken for an empty one.
    pub async fn open_to_change(&self) -> Result<Access, Failure> {
        self.open_with(|config, metrics| {
            Spool::start(spool::Config { lock_timeout: Duration::ZERO, ..config }, metrics)
        })
        .await
    }

    /// A way to change a running relay.
    ///
    /// # Errors
    /// When none answers.
    pub async fn open_running(&self) -> Result<Access, Failure> {
        match self.open().await? {
            Access::Running(socket) => Ok(Access::Running(socket)),
            Access::Stopped(_) => {
                Err(Failure::Failed("no relay runs: there is no replay to pause or resume".to_owned()))
            }
        }
    }

    /// A way to the running relay itself, whether it has a spool or not, and whether its configuration is right or not.
    ///
    /// # Errors
    /// When none answers, or nothing says where.
    pub async fn running(&self) -> Result<Access, Failure> {
        if let Some(socket) = &self.socket {
            return running(socket).await;
        }
        match self.source.read(Need::Settings) {
            Ok(Config { control: control::Config { socket: Some(socket), .. }, .. }) => running(&socket).await,
            Ok(_) => {
                let why = "without a spool there is a control socket only if control.socket is set";
                Err(self.source.lacking(Failure::Usage(why.to_owned())))
            }
            Err(mut mistakes) => match mistakes.socket.take() {
                Some(socket) => running(&socket).await.map_err(|_| mistakes.into()),
                None => Err(mistakes.into()),
            },
        }
    }

    async fn open_with(
        &self,
        open: impl FnOnce(spool::Config, Arc<Metrics>) -> Result<Spool, Unusable> + Send + 'static,
    ) -> Result<Access, Failure> {
        if let Some(socket) = &self.socket {
            return running(socket).await;
        }
        let Config { spool, control, .. } = self.source.load(Need::Settings)?;
        let Some(config) = spool else {
            let why = "spool.directory is not configured: this relay has no spool";
            return Err(self.source.lacking(Failure::Usage(why.to_owned())));
        };
        let socket = control.socket.unwrap_or_default();
        let Err(unreached) = connect(&socket).await else { return Ok(Access::Running(socket)) };
        let (directory, at) = (config.spool.directory.display().to_string(), socket.display());
        super::raise_open_files();
        let metrics = Arc::new(Metrics::new());
        let (settings, its_metrics) = (config.spool.clone(), Arc::clone(&metrics));
        // One that only looks must not make it.
        if matches!(config.spool.directory.metadata(), Err(error) if error.kind() == io::ErrorKind::NotFound) {
            let why = unanswered(&socket, &unreached);
            return Err(Failure::Failed(format!("there is no spool in {directory}, and {why}")));
        }
        let opened = tokio::task::spawn_blocking(move || open(settings, its_metrics)).await;
        match opened.map_err(Failure::failed)? {
            Ok(spool) => Ok(Access::Stopped(Box::new(Stopped { spool, metrics, config, dead_letters: None }))),
            Err(Unusable::Locked { holder, .. }) => Err(Failure::Failed(format!(
                "{directory} is in use{holder}, and its control socket {at} does not answer: {unreached}; where the relay runs in a \
                 container, run this there; where its socket is elsewhere, give its path with --socket"
            ))),
            Err(Unusable::Disk(error)) if error.source.kind() == io::ErrorKind::PermissionDenied => {
                Err(Failure::Failed(format!("{error}; run this as the relay's user, or as root")))
            }
            Err(unusable) => Err(Failure::failed(unusable)),
        }
    }
}

/// The way to the relay of this control socket.
///
/// # Errors
/// When it does not answer.
pub async fn running(socket: &Path) -> Result<Access, Failure> {
    connect(socket).await.map_err(|e| Failure::Failed(unanswered(socket, &e)))?;
    Ok(Access::Running(socket.to_owned()))
}

fn unanswered(socket: &Path, error: &io::Error) -> String {
    let at = socket.display();
    match error.kind() {
        io::ErrorKind::PermissionDenied => {
            format!("{at} cannot be opened: {error}; run this as the relay's user, or as root")
        }
        _ => format!("no relay answers at {at}: {error}"),
    }
}

async fn connect(socket: &Path) -> io::Result<UnixStream> {
    UnixStream::connect(socket).await
}

impl Access {
    pub const fn is_running(&self) -> bool {
        matches!(self, Self::Running(_))
    }

    /// Sends a request, and hands over each line of the answer but the last, which it returns.
    ///
    /// # Errors
    /// When there is no answer, or one that says why there is none; what `each` returns.
    pub async fn ask(
        &self,
        request: Request,
        mut each: impl FnMut(Answer) -> Result<(), Failure>,
    ) -> Result<Answer, Failure> {
        let mut answers = match self {
            Self::Running(socket) => Answers::send(socket, &request).await?,
            Self::Stopped(stopped) => stopped.answers(request),
        };
        loop {
            match answers.next().await? {
                Answer::Error(why) => return Err(Failure::Failed(why)),
                last if last.is_last() => return Ok(last),
                answer => each(answer)?,
            }
        }
    }

    /// # Errors
    /// As `ask`.
    pub async fn status(&self) -> Result<Status, Failure> {
        match self.ask(Request::Status, |_| Ok(())).await? {
            Answer::Status(status) => Ok(status),
            other => Err(unexpected(&other)),
        }
    }

    /// Hands over each entry of a list, and after each page how many were read, of how many.
    ///
    /// # Errors
    /// As `ask`.
    pub async fn list(
        &self,
        list: List,
        mut progress: impl FnMut(u64, u64),
        mut each: impl FnMut(Item) -> Result<(), Failure>,
    ) -> Result<Listed, Failure> {
        let answer = self.ask(Request::List(list), |answer| match answer {
            Answer::Item(item) => each(item),
            Answer::Progress { read, of } => {
                progress(read, of);
                Ok(())
            }
            other => Err(unexpected(&other)),
        });
        match answer.await? {
            Answer::Listed(listed) => Ok(listed),
            other => Err(unexpected(&other)),
        }
    }

    /// Where no relay runs, prepares to publish as one would.
    ///
    /// # Errors
    /// When `[kafka]` is wrong.
    pub fn publish(&mut self, source: &Source) -> Result<(), Failure> {
        let Self::Stopped(stopped) = self else { return Ok(()) };
        let Config { kafka, topic_prefix: prefix, .. } = source.read(Need::Kafka)?; // its warnings were shown
        let publisher = Publisher::new(kafka, Arc::clone(&stopped.metrics), Shutdown::default())?;
        stopped.dead_letters = Some(DeadLetters {
            topic: Arc::from(format!("{prefix}{DEAD_LETTER}")),
            publisher: Arc::new(publisher),
            spool: Some(stopped.spool.clone()),
            metrics: Arc::clone(&stopped.metrics),
        });
        Ok(())
    }

    /// Gives the directory back.
    pub async fn close(self) {
        if let Self::Stopped(stopped) = self {
            let _ = tokio::task::spawn_blocking(move || stopped.spool.close()).await; // a panic has said so
        }
    }
}

/// An answer of another kind than was asked for.
pub fn unexpected(answer: &Answer) -> Failure {
    Failure::Failed(format!("the relay has another version than this command: its answer is {answer:?}"))
}

/// The lines of an answer.
enum Answers {
    Lines { socket: PathBuf, stream: BufReader<UnixStream>, timeout: Duration },
    Local(mpsc::Receiver<Answer>),
}

impl Stopped {
    fn answers(&self, request: Request) -> Answers {
        let spool = Some(self.spool.clone());
        let control = Control { backfill: None, operations: None, spool, dead_letters: self.dead_letters.clone() };
        let (sender, answers) = mpsc::channel(16);
        tokio::task::spawn_blocking(move || {
            // The command that has ended needs no answer.
            let _ = control.answer(request, &mut |answer| sender.blocking_send(answer).map_err(|_| Gone));
        });
        Answers::Local(answers)
    }
}

impl Answers {
    async fn send(socket: &Path, request: &Request) -> Result<Self, Failure> {
        let mut line = serde_json::to_vec(request).map_err(Failure::failed)?;
        line.push(b'\n');
        let mut stream = connect(socket).await.map_err(|e| lost(socket, &e))?;
        let _ = stream.write_all(&line).await; // what is not taken has an answer, or none can be read
        let timeout = TIMEOUT + request.timeout();
        Ok(Self::Lines { socket: socket.to_owned(), stream: BufReader::new(stream), timeout })
    }

    async fn next(&mut self) -> Result<Answer, Failure> {
        match self {
            Self::Local(answers) => {
                let answer = answers.recv().await;
                answer.ok_or_else(|| Failure::Failed("the spool cannot be read: this is a bug of the relay".to_owned()))
            }
            Self::Lines { socket, stream, timeout } => {
                let mut line = String::new();
                let read = tokio::time::timeout(*timeout, stream.read_line(&mut line)).await;
                let late = io::Error::from(io::ErrorKind::TimedOut);
                match read.unwrap_or(Err(late)) {
                    Err(error) => Err(lost(socket, &error)),
                    Ok(0) => Err(lost(socket, &io::ErrorKind::UnexpectedEof.into())),
                    Ok(_) => serde_json::from_str(&line)
                        .map_err(|e| Failure::Failed(format!("the relay's answer cannot be read: {e}"))),
                }
            }
        }
    }
}

fn lost(socket: &Path, error: &io::Error) -> Failure {
    Failure::Failed(format!("the relay at {} has not answered to the end: {error}", socket.display()))
}
