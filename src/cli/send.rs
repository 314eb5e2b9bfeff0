//! `send`: LiveChat-like traffic at a URL, by LiveChat's rules: 10 s for an answer, only 200 counts, a few retries.

use std::collections::BTreeMap;
use std::io::{BufWriter, Write};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use hdrhistogram::Histogram;
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1::SendRequest;
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Request, Uri};
use hyper_util::rt::TokioIo;
use indicatif::ProgressBar;
use secrecy::{ExposeSecret, SecretString};
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::{Failure, print};
use crate::samples::traffic::{Sample, Traffic};

#[derive(clap::Args)]
pub struct Arguments {
    /// Where to, such as http://localhost:8080/webhooks
    url: Uri,
    /// The secret key that the relay expects; better given as LIVECHAT_SECRET_KEY, which other users cannot see
    #[arg(long, value_name = "KEY", env = "LIVECHAT_SECRET_KEY", hide_env_values = true)]
    secret_key: SecretString,
    /// How many webhooks
    #[arg(long, short = 'n', default_value_t = 100)]
    count: u64,
    /// Webhooks a second; 0: as fast as they are answered
    #[arg(long, default_value_t = 0.0, value_name = "PER_SECOND")]
    rate: f64,
    /// Connections, each with one webhook at a time
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..))]
    connections: u16,
    /// Only these actions, parted by commas; else a mix as in real chats
    #[arg(long, value_delimiter = ',', value_name = "ACTION,…")]
    actions: Vec<String>,
    /// How long to wait for an answer
    #[arg(long, default_value = "10s", value_parser = duration, value_name = "TIME")]
    timeout: Duration,
    /// How often to try again after anything but 200
    #[arg(long, default_value_t = 3)]
    retries: u32,
    /// How long to wait before trying again
    #[arg(long, default_value = "5s", value_parser = duration, value_name = "TIME")]
    retry_wait: Duration,
    /// Makes other chats than another seed does; random if not given
    #[arg(long)]
    seed: Option<u64>,
    /// Write what was answered 200 to this new file, without the secret key, a line each
    #[arg(long, value_name = "FILE")]
    save: Option<PathBuf>,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
}

pub fn duration(text: &str) -> Result<Duration, String> {
    let parsed = text.parse::<jiff::SignedDuration>().ok().and_then(|d| Duration::try_from(d).ok());
    parsed.ok_or_else(|| "no duration; write for example 10s or 500ms".to_owned())
}

/// What came of a run.
#[derive(serde::Serialize)]
struct Report {
    #[serde(flatten)]
    tally: Tally,
    seconds: f64,
    per_second: f64,
    /// Of each answer of any status, retries included.
    latency_ms: Latency,
}

#[derive(Clone, Default, serde::Serialize)]
struct Tally {
    sent: u64,
    answered_200: u64,
    retried: u64,
    /// Answers by status, retries included; `none` where there was no answer in time.
    answers: BTreeMap<String, u64>,
}

#[derive(serde::Serialize)]
struct Latency {
    p50: f64,
    p90: f64,
    p99: f64,
    max: f64,
}

pub async fn run(arguments: Arguments) -> Result<(), Failure> {
    let (count, json, connections) = (arguments.count, arguments.json, arguments.connections);
    let run = Arc::new(Run::new(arguments)?);
    let workers: Vec<_> = (0..connections).map(|_| tokio::spawn(worker(Arc::clone(&run)))).collect();
    tokio::select! {
        () = async { for worker in workers { let _ = worker.await; } } => {}
        _ = tokio::signal::ctrl_c() => run.progress.println("interrupted: the report is of what was sent until now"),
    }
    run.progress.finish_and_clear();
    let report = run.report()?;
    if json {
        print::out(format_args!("{}", serde_json::to_string_pretty(&report).map_err(Failure::failed)?))?;
    } else {
        report.print()?;
    }
    match count - report.tally.answered_200 {
        0 => Ok(()),
        lost => {
            Err(Failure::Failed(format!("{lost} webhooks were not answered 200; LiveChat would have given them up")))
        }
    }
}

struct Run {
    arguments: Arguments,
    target: Target,
    start: Instant,
    state: Mutex<State>,
    progress: ProgressBar,
}

struct State {
    traffic: Traffic,
    begun: u64,
    save: Option<BufWriter<std::fs::File>>,
    tally: Tally,
    micros: Histogram<u64>,
}

impl Run {
    fn new(arguments: Arguments) -> Result<Self, Failure> {
        let target = Target::of(&arguments.url)?;
        let seed = arguments.seed.unwrap_or_else(|| u64::from(uuid::Uuid::now_v7().as_u64_pair().1 as u32));
        let traffic = Traffic::new(seed).only(&arguments.actions).map_err(Failure::Usage)?;
        let save = arguments.save.as_deref().map(super::items::private_file).transpose()?.map(BufWriter::new);
        let micros = Histogram::new_with_bounds(1, 60_000_000, 3).expect("valid bounds");
        let state = Mutex::new(State { traffic, begun: 0, save, tally: Tally::default(), micros });
        let progress = super::items::progress(arguments.count);
        Ok(Self { arguments, target, start: Instant::now(), state, progress })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next webhook, and when to send it.
    fn next(&self) -> Option<(Sample, Instant)> {
        let mut state = self.state();
        if state.begun == self.arguments.count {
            return None;
        }
        let rate = self.arguments.rate;
        let wait = if rate > 0.0 { state.begun as f64 / rate } else { 0.0 };
        state.begun += 1;
        Some((state.traffic.next()?, self.start + Duration::from_secs_f64(wait)))
    }

    fn answered(&self, status: Option<u16>, took: Duration, is_retry: bool) {
        let mut state = self.state();
        state.micros.saturating_record(u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
        let status = status.map_or_else(|| "none".to_owned(), |status| status.to_string());
        *state.tally.answers.entry(status).or_default() += 1;
        state.tally.retried += u64::from(is_retry);
    }

    fn done(&self, sample: &Sample, is_good: bool) {
        let mut state = self.state();
        state.tally.sent += 1;
        state.tally.answered_200 += u64::from(is_good);
        if let Some(save) = state.save.as_mut().filter(|_| is_good)
            && let Err(error) = writeln!(save, "{}", sample.data())
        {
            self.progress.println(format!("--save: {error}"));
        }
        self.progress.inc(1);
    }

    fn report(&self) -> Result<Report, Failure> {
        let mut state = self.state();
        if let Some(save) = &mut state.save {
            save.flush().map_err(|e| Failure::Failed(format!("--save: {e}")))?;
        }
        let (tally, seconds) = (state.tally.clone(), self.start.elapsed().as_secs_f64());
        let millis = |q: f64| state.micros.value_at_quantile(q) as f64 / 1000.0;
        let latency_ms = Latency { p50: millis(0.5), p90: millis(0.9), p99: millis(0.99), max: millis(1.0) };
        Ok(Report { per_second: tally.sent as f64 / seconds, tally, seconds, latency_ms })
    }
}

async fn worker(run: Arc<Run>) {
    let Arguments { secret_key, timeout, retries, retry_wait, .. } = &run.arguments;
    let mut client = Client::new(run.target.clone());
    while let Some((sample, at)) = run.next() {
        tokio::time::sleep_until(at).await;
        let body = Bytes::from(sample.body(secret_key.expose_secret()));
        let mut is_good = false;
        for attempt in 0..=*retries {
            if attempt > 0 {
                tokio::time::sleep(*retry_wait).await;
            }
            let began = Instant::now();
            let status = client.post(body.clone(), *timeout).await;
            is_good = status == Some(200);
            run.answered(status, began.elapsed(), attempt > 0);
            if is_good {
                break;
            }
        }
        run.done(&sample, is_good);
    }
}

impl Report {
    fn print(&self) -> Result<(), Failure> {
        let Self { tally: Tally { sent, answered_200, retried, answers }, seconds, per_second, latency_ms } = self;
        let style = if sent == answered_200 { print::GOOD } else { print::ERROR };
        let answers: Vec<_> = answers.iter().map(|(status, n)| format!("{status}: {n}")).collect();
        let answers = answers.join(", ");
        let Latency { p50, p90, p99, max } = latency_ms;
        print::out(format_args!(
            "{style}{answered_200} of {sent} answered 200{style:#} in {seconds:.1} s ({per_second:.0}/s)\n  \
             answers   {answers}; retries: {retried}\n  \
             latency   p50 {p50:.1} ms, p90 {p90:.1} ms, p99 {p99:.1} ms, longest {max:.1} ms"
        ))
    }
}

/// Where webhooks go.
#[derive(Clone)]
pub struct Target {
    address: String,
    path: String,
}

impl Target {
    pub fn of(url: &Uri) -> Result<Self, Failure> {
        if url.scheme_str() != Some("http") {
            return Err(Failure::Usage(format!("{url}: only http:// URLs can be sent to")));
        }
        let host = url.host().ok_or_else(|| Failure::Usage(format!("{url}: names no host")))?;
        let path = url.path_and_query().map_or("/", |path| path.as_str()).to_owned();
        Ok(Self { address: format!("{host}:{}", url.port_u16().unwrap_or(80)), path })
    }
}

type Sender = SendRequest<Full<Bytes>>;
type Trouble = Box<dyn std::error::Error + Send + Sync>;

/// One connection, made anew when it has ended.
pub struct Client {
    target: Target,
    connection: Option<Sender>,
}

impl Client {
    pub const fn new(target: Target) -> Self {
        Self { target, connection: None }
    }

    /// POSTs a body; the status of the answer, or `None` when there is none in time.
    pub async fn post(&mut self, body: Bytes, timeout: Duration) -> Option<u16> {
        let answer = tokio::time::timeout(timeout, self.attempt(body)).await.ok().and_then(Result::ok);
        if answer.is_none() {
            self.connection = None;
        }
        answer
    }

    async fn attempt(&mut self, body: Bytes) -> Result<u16, Trouble> {
        let request = Request::post(self.target.path.as_str())
            .header(HOST, &self.target.address)
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(body))?;
        let mut connection = match self.connection.take() {
            Some(open) => open,
            None => self.connect().await?,
        };
        if connection.ready().await.is_err() {
            connection = self.connect().await?; // it was closed meanwhile
        }
        let answer = connection.send_request(request).await?;
        let status = answer.status().as_u16();
        answer.into_body().collect().await?;
        self.connection = Some(connection);
        Ok(status)
    }

    async fn connect(&self) -> Result<Sender, Trouble> {
        let stream = TcpStream::connect(&self.target.address).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection); // ends with the sender; its errors come to the sender, too
        Ok(sender)
    }
}
