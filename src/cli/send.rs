//! `send`: LiveChat-like traffic at a URL, by LiveChat's rules: 10 s for an answer, only 200 counts, a few retries. Unlike LiveChat it does
//! not repeat what cannot succeed, and ends at once where no server answers at all.

use std::collections::BTreeMap;
use std::io::{BufWriter, Write};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use hdrhistogram::Histogram;
use indicatif::{HumanCount, ProgressBar};
use reqwest::header::CONTENT_TYPE;
use reqwest::{StatusCode, Url};
use secrecy::{ExposeSecret, SecretString};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{Failure, print};
use crate::samples::traffic::{Sample, Traffic};

#[derive(clap::Args)]
pub struct Arguments {
    /// Where to send the webhooks, such as http://localhost:8080/webhooks
    url: Url,
    /// The secret key that the relay expects [default: the variable LIVECHAT_SECRET_KEY; other users see what an option says]
    #[arg(long, value_name = "KEY", env = "LIVECHAT_SECRET_KEY", hide_env = true, conflicts_with = "secret_key_file")]
    secret_key: Option<SecretString>,
    /// A file that holds the secret key
    #[arg(long, value_name = "FILE")]
    secret_key_file: Option<PathBuf>,
    /// For https://: a PEM file of the certificate authority that signed the relay's certificate [default: the public ones]
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// How many webhooks
    #[arg(long, short = 'n', default_value_t = 100)]
    count: u64,
    /// Webhooks a second; 0: as fast as they are answered
    #[arg(long, default_value_t = 0.0, value_name = "PER_SECOND")]
    rate: f64,
    /// Connections, each with one webhook at a time
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..))]
    connections: u16,
    /// Comma-separated actions to send [default: a realistic mix]
    #[arg(long, value_delimiter = ',', value_name = "ACTION,…")]
    actions: Vec<String>,
    /// How long to wait for an answer
    #[arg(long, default_value = "10s", value_parser = duration, value_name = "TIME")]
    timeout: Duration,
    /// How often to try again where that can help: after no answer, 408, 429 and 5xx
    #[arg(long, default_value_t = 3)]
    retries: u32,
    /// How long to wait before trying again
    #[arg(long, default_value = "5s", value_parser = duration, value_name = "TIME")]
    retry_wait: Duration,
    /// Seed of the generated chats: the same seed gives the same chats [default: random]
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
    /// Of each answer of any status, retries included; none where there was no answer.
    latency_ms: Option<Latency>,
}

#[derive(Clone, Default, serde::Serialize)]
struct Tally {
    sent: u64,
    answered_200: u64,
    retried: u64,
    /// Answers by status, retries included; `none` where there was no answer.
    answers: BTreeMap<String, u64>,
    /// Of each of these but 200 the first text, or why there was no answer.
    texts: BTreeMap<String, String>,
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
        () = run.unreachable.cancelled() => {}
        _ = tokio::signal::ctrl_c() => run.progress.println("interrupted: the report is of what was sent until now"),
    }
    run.progress.finish_and_clear();
    let report = run.report()?;
    if run.unreachable.is_cancelled() {
        return Err(Failure::Failed(report.tally.texts.into_values().collect()));
    }
    if json {
        print::out(format_args!("{}", serde_json::to_string_pretty(&report).map_err(Failure::failed)?))?;
    } else {
        report.print()?;
    }
    match count - report.tally.answered_200 {
        0 => Ok(()),
        lost => Err(Failure::Failed(report.tally.why(lost, count))),
    }
}

struct Run {
    arguments: Arguments,
    secret_key: SecretString,
    client: Client,
    start: Instant,
    state: Mutex<State>,
    progress: ProgressBar,
    /// The first try found no server: there is no point in more of them.
    unreachable: CancellationToken,
}

struct State {
    traffic: Traffic,
    begun: u64,
    save: Option<BufWriter<std::fs::File>>,
    tally: Tally,
    micros: Histogram<u64>,
}

impl Run {
    fn new(mut arguments: Arguments) -> Result<Self, Failure> {
        let secret_key = secret_key(&mut arguments)?;
        let client = Client::new(arguments.url.clone(), arguments.ca.as_deref(), arguments.timeout)?;
        let seed = arguments.seed.unwrap_or_else(|| u64::from(uuid::Uuid::now_v7().as_u64_pair().1 as u32));
        let traffic = Traffic::new(seed).only(&arguments.actions).map_err(Failure::Usage)?;
        let save = arguments.save.as_deref().map(super::items::private_file).transpose()?.map(BufWriter::new);
        let micros = Histogram::new_with_bounds(1, 60_000_000, 3).expect("valid bounds");
        let state = Mutex::new(State { traffic, begun: 0, save, tally: Tally::default(), micros });
        let progress = super::items::progress(arguments.count);
        let unreachable = CancellationToken::new();
        Ok(Self { arguments, secret_key, client, start: Instant::now(), state, progress, unreachable })
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

    fn tried(&self, result: &Result<Answer, Unanswered>, took: Duration, is_retry: bool) {
        let mut state = self.state();
        let State { tally, micros, .. } = &mut *state;
        let (status, text) = match result {
            Ok(answer) => (answer.status.as_u16().to_string(), answer.text.trim().to_owned()),
            Err(unanswered) => ("none".to_owned(), unanswered.why.clone()),
        };
        if matches!(result, Err(Unanswered { is_unreachable: true, .. }))
            && tally.answers.keys().all(|key| key == "none")
        {
            self.unreachable.cancel();
        }
        if result.is_ok() {
            micros.saturating_record(u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
        }
        if status != "200" {
            tally.texts.entry(status.clone()).or_insert(text);
        }
        *tally.answers.entry(status).or_default() += 1;
        tally.retried += u64::from(is_retry);
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
        let failed = state.tally.sent - state.tally.answered_200;
        if failed > 0 {
            self.progress.set_message(format!("{} failed", HumanCount(failed)));
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
        let latency_ms = (!state.micros.is_empty()).then(|| Latency {
            p50: millis(0.5),
            p90: millis(0.9),
            p99: millis(0.99),
            max: millis(1.0),
        });
        Ok(Report { per_second: tally.sent as f64 / seconds, tally, seconds, latency_ms })
    }
}

/// The key that the arguments give.
fn secret_key(arguments: &mut Arguments) -> Result<SecretString, Failure> {
    let Some(file) = &arguments.secret_key_file else {
        let none = "give the secret key that the relay expects: --secret-key-file FILE, --secret-key KEY or the variable LIVECHAT_SECRET_KEY";
        return arguments.secret_key.take().ok_or_else(|| Failure::Usage(none.to_owned()));
    };
    let text = std::fs::read_to_string(file);
    let text = text.map_err(|e| Failure::Usage(format!("--secret-key-file {}: {e}", file.display())))?;
    Ok(text.trim_end().into())
}

async fn worker(run: Arc<Run>) {
    let Arguments { retries, retry_wait, .. } = run.arguments;
    while let Some((sample, at)) = run.next() {
        tokio::time::sleep_until(at).await;
        let body = Bytes::from(sample.body(run.secret_key.expose_secret()));
        let mut is_good = false;
        for attempt in 0..=retries {
            if attempt > 0 {
                tokio::time::sleep(retry_wait).await;
            }
            let began = Instant::now();
            let result = run.client.post(body.clone()).await;
            run.tried(&result, began.elapsed(), attempt > 0);
            is_good = result.as_ref().is_ok_and(|answer| answer.status == StatusCode::OK);
            if is_good || !result.map_or(true, |answer| may_be_repeated(answer.status)) {
                break;
            }
        }
        run.done(&sample, is_good);
    }
}

/// Whether the same webhook may get another answer later.
fn may_be_repeated(status: StatusCode) -> bool {
    status.is_server_error() || matches!(status, StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS)
}

impl Tally {
    /// Why some were lost: the commonest answer.
    fn why(&self, lost: u64, count: u64) -> String {
        let failed = self.answers.iter().filter(|(status, _)| *status != "200");
        let commonest = failed.max_by_key(|(_, number)| **number).map(|(status, _)| status.as_str());
        let text = commonest.and_then(|status| self.texts.get(status)).map_or("", String::as_str);
        let (lost, count) = (HumanCount(lost), HumanCount(count));
        match commonest {
            None => format!("{lost} of {count} webhooks were not sent"),
            Some("none") => format!("{lost} of {count} webhooks failed: {text}"),
            Some("401") => format!("{lost} of {count} webhooks failed: 401 {text} (is the secret key right?)"),
            Some(status) => format!("{lost} of {count} webhooks failed: {status} {text}"),
        }
    }
}

impl Report {
    fn print(&self) -> Result<(), Failure> {
        let Self { tally: Tally { sent, answered_200, retried, answers, .. }, seconds, per_second, latency_ms } = self;
        let style = if sent == answered_200 { print::GOOD } else { print::ERROR };
        let named = |status: &str| if status == "none" { "no answer".to_owned() } else { status.to_owned() };
        let answers: Vec<_> =
            answers.iter().map(|(status, n)| format!("{}: {}", named(status), HumanCount(*n))).collect();
        let answers = answers.join(", ");
        let (good, sent, retried) = (HumanCount(*answered_200), HumanCount(*sent), HumanCount(*retried));
        print::out(format_args!(
            "{style}{good} of {sent} webhooks answered 200{style:#} in {seconds:.1} s ({per_second:.0} a second)\n  \
             answers   {answers}; retries: {retried}"
        ))?;
        let Some(Latency { p50, p90, p99, max }) = latency_ms else { return Ok(()) };
        print::out(format_args!("  latency   p50 {p50:.1} ms, p90 {p90:.1} ms, p99 {p99:.1} ms, longest {max:.1} ms"))
    }
}

/// POSTs webhooks to one URL.
pub struct Client {
    client: reqwest::Client,
    url: Url,
}

pub struct Answer {
    pub status: StatusCode,
    pub text: String,
}

/// There was no answer.
pub struct Unanswered {
    pub why: String,
    /// No connection came about, so that nothing was sent.
    pub is_unreachable: bool,
}

impl Client {
    /// With `ca`, a PEM file, its authorities are trusted instead of the public ones.
    ///
    /// # Errors
    /// [`Failure::Usage`]: the URL cannot be sent to, or the file is wrong.
    pub fn new(url: Url, ca: Option<&std::path::Path>, timeout: Duration) -> Result<Self, Failure> {
        if !matches!(url.scheme(), "http" | "https") {
            return Err(Failure::Usage(format!("{url}: give an http:// or https:// URL")));
        }
        let client = reqwest::Client::builder()
            .tls_backend_preconfigured(super::tls::client(ca)?)
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .timeout(timeout);
        Ok(Self { client: client.build().map_err(Failure::failed)?, url })
    }

    pub async fn post(&self, body: Bytes) -> Result<Answer, Unanswered> {
        let answered = async {
            let request = self.client.post(self.url.clone()).header(CONTENT_TYPE, "application/json").body(body);
            let answer = request.send().await?;
            Ok(Answer { status: answer.status(), text: answer.text().await? })
        };
        answered.await.map_err(|error: reqwest::Error| {
            let is_unreachable = error.is_connect();
            let what = if is_unreachable { "cannot connect to" } else { "no answer from" };
            let mut cause: &dyn std::error::Error = &error;
            while let Some(deeper) = cause.source() {
                cause = deeper;
            }
            let why = if error.is_timeout() { "it took too long".to_owned() } else { cause.to_string() };
            Unanswered { why: format!("{what} {}: {why}", self.url), is_unreachable }
        })
    }
}
