//! `send`: LiveChat-like traffic at a URL, by LiveChat's rules: 10 s for an answer, only 200 counts, a few retries. Unlike LiveChat it does
//! not repeat what cannot succeed, and ends at once where no server is there.

mod client;

use std::collections::BTreeMap;
use std::io::{BufWriter, Write};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use hdrhistogram::Histogram;
use indicatif::{HumanCount, HumanFloatCount, ProgressBar};
use reqwest::{StatusCode, Url};
use secrecy::{ExposeSecret, SecretString};
use tokio::time::Instant;

pub use self::client::Client;
use self::client::{Posted, Unanswered};
use super::Failure;
use super::print::{self, note};
use crate::config::nearest;
use crate::samples::traffic::{self, Sample, Traffic};

#[derive(clap::Args)]
// Of an error, clap's own has --secret-key where the variable is not set, and other users see options.
#[command(override_usage = "livechat-relay send [OPTIONS] <URL>")]
pub struct Arguments {
    /// URL of the relay, such as http://localhost:8080/webhooks
    url: Url,
    /// Secret key that the relay expects [default: the variable LIVECHAT_SECRET_KEY, which other users cannot see, unlike options]
    #[arg(long, value_name = "KEY", env = "LIVECHAT_SECRET_KEY", hide_env = true)]
    secret_key: Option<SecretString>,
    /// File with the secret key; takes precedence over --secret-key and the variable
    #[arg(long, value_name = "FILE")]
    secret_key_file: Option<PathBuf>,
    /// For https://: PEM file of the certificate authority that signed the relay's certificate [default: public authorities]
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// How many webhooks
    #[arg(long, short = 'n', default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..))]
    count: u64,
    /// Webhooks per second; 0 for as fast as they are answered
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
    /// How often to retry after no answer, 408, 429 and 5xx. If nothing listens at the start, send ends at once
    #[arg(long, default_value_t = 3)]
    retries: u32,
    /// How long to wait before a retry
    #[arg(long, default_value = "5s", value_parser = duration, value_name = "TIME")]
    retry_wait: Duration,
    /// Seed of the generated chats: the same seed gives the same chats [default: random]
    #[arg(long)]
    seed: Option<u64>,
    /// Write the webhooks that were answered 200 to this new file, one per line, without the secret key
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
    /// Of each of these but 200 the beginning of its first text, or why there was no answer.
    texts: BTreeMap<String, String>,
    /// Webhooks that were given up, by their last answer.
    failed: BTreeMap<String, u64>,
}

/// How [`Tally`] names a success, and that there was no answer.
const GOOD: &str = "200";
const NONE: &str = "none";

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
    let Some((sample, at)) = run.next() else { return run.report()?.print(json) };
    let sending = async {
        // The first one goes alone: where no server is there, there is no point in more.
        let began = Instant::now();
        let first = run.client.post(run.body(&sample)).await;
        if let Err(Unanswered { why, is_unreachable: true }) = first {
            return Err(Failure::Failed(why));
        }
        let first = (first, began.elapsed());
        let mut workers = vec![tokio::spawn({
            let run = Arc::clone(&run);
            async move {
                run.deliver(&sample, at, Some(first)).await;
                run.work().await;
            }
        })];
        workers.extend((1..connections).map(|_| {
            let run = Arc::clone(&run);
            tokio::spawn(async move { run.work().await })
        }));
        for worker in workers {
            let _ = worker.await; // one that has panicked has said so
        }
        Ok(())
    };
    tokio::select! {
        sent = sending => sent?,
        _ = tokio::signal::ctrl_c() => run.progress.println("interrupted: the report is of what was sent until now"),
    }
    run.progress.finish_and_clear();
    let report = run.report()?;
    report.print(json)?;
    match report.tally.why(count) {
        None => Ok(()),
        Some(why) => Err(Failure::Failed(why)),
    }
}

struct Run {
    arguments: Arguments,
    secret_key: SecretString,
    client: Client,
    start: Instant,
    state: Mutex<State>,
    progress: ProgressBar,
}

struct State {
    traffic: Traffic,
    begun: u64,
    save: Option<BufWriter<std::fs::File>>,
    tally: Tally,
    /// Webhooks that are to be tried again, by their last answer.
    pending: BTreeMap<String, u64>,
    micros: Histogram<u64>,
}

impl Run {
    fn new(mut arguments: Arguments) -> Result<Self, Failure> {
        let secret_key = secret_key(&mut arguments)?;
        let client = Client::new(arguments.url.clone(), arguments.ca.as_deref(), arguments.timeout)?;
        let seed = arguments.seed.unwrap_or_else(|| u64::from(uuid::Uuid::now_v7().as_u64_pair().1 as u32));
        let traffic = Traffic::new(seed).only(&arguments.actions).map_err(|name| no_sample(&name))?;
        let save = arguments.save.as_deref().map(super::items::private_file).transpose()?.map(BufWriter::new);
        let micros = Histogram::new_with_bounds(1, 60_000_000, 3).expect("valid bounds");
        let state =
            Mutex::new(State { traffic, begun: 0, save, tally: Tally::default(), pending: BTreeMap::new(), micros });
        let progress = super::items::progress(arguments.count);
        Ok(Self { arguments, secret_key, client, start: Instant::now(), state, progress })
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

    fn body(&self, sample: &Sample) -> Bytes {
        Bytes::from(sample.body(self.secret_key.expose_secret()))
    }

    async fn work(&self) {
        while let Some((sample, at)) = self.next() {
            self.deliver(&sample, at, None).await;
        }
    }

    /// Sends a webhook until it is answered 200, or another try cannot help. `first`: what came of the first try, if it was made.
    async fn deliver(&self, sample: &Sample, at: Instant, mut first: Option<(Posted, Duration)>) {
        let Arguments { retries, retry_wait, .. } = self.arguments;
        tokio::time::sleep_until(at).await;
        let body = self.body(sample);
        let mut last = None;
        for attempt in 0..=retries {
            if attempt > 0 {
                tokio::time::sleep(retry_wait).await;
            }
            let (posted, took) = if let Some(first) = first.take() {
                first
            } else {
                let began = Instant::now();
                (self.client.post(body.clone()).await, began.elapsed())
            };
            let status = self.tried(&posted, took, last.take());
            let may_succeed = posted.map_or(true, |answer| may_be_repeated(answer.status));
            if !may_succeed || attempt == retries {
                self.done(sample, &status);
                return;
            }
            self.pend(&status);
            last = Some(status);
        }
    }

    /// Counts an answer, or none; the name that it is counted under. `last`: the webhook's answer before, if this is a retry.
    fn tried(&self, posted: &Posted, took: Duration, last: Option<String>) -> String {
        let mut state = self.state();
        let State { tally, pending, micros, .. } = &mut *state;
        let (status, text) = match posted {
            // A server may send back what it got.
            Ok(answer) => {
                (answer.status.as_u16().to_string(), answer.text.replace(self.secret_key.expose_secret(), "***"))
            }
            Err(unanswered) => (NONE.to_owned(), unanswered.why.clone()),
        };
        if posted.is_ok() {
            micros.saturating_record(u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
        }
        if status != GOOD {
            tally.texts.entry(status.clone()).or_insert(text);
        }
        *tally.answers.entry(status.clone()).or_default() += 1;
        if let Some(last) = last {
            tally.retried += 1;
            pending.entry(last).and_modify(|number| *number -= 1);
        }
        status
    }

    /// A webhook is to be tried again; `status` is its last answer.
    fn pend(&self, status: &str) {
        let mut state = self.state();
        let is_first = !state.pending.contains_key(status);
        *state.pending.entry(status.to_owned()).or_default() += 1;
        if is_first && self.progress.is_hidden() {
            let (wait, why) = (self.arguments.retry_wait, state.tally.named(status));
            note(format_args!("retry in {wait:?}: {why}"));
        }
        self.show(&state);
    }

    /// Shows what has failed, and what is tried again.
    fn show(&self, State { tally, pending, .. }: &State) {
        let failed = Some(tally.sent - tally.answered_200).filter(|failed| *failed > 0);
        let failed = failed.map(|failed| console::style(format!("{} failed", HumanCount(failed))).for_stderr());
        let failed = failed.map(|failed| failed.red().bold().to_string());
        let (retries, commonest) = (pending.values().sum::<u64>(), pending.iter().max_by_key(|(_, number)| **number));
        let commonest = commonest.filter(|_| retries > 0);
        let retries = commonest.map(|(status, _)| format!("{} to retry: {}", HumanCount(retries), tally.named(status)));
        self.progress.set_message(failed.into_iter().chain(retries).collect::<Vec<_>>().join(", "));
    }

    /// Nothing more becomes of a webhook; `status` is its last answer.
    fn done(&self, sample: &Sample, status: &str) {
        let mut state = self.state();
        let is_good = status == GOOD;
        state.tally.sent += 1;
        state.tally.answered_200 += u64::from(is_good);
        if !is_good {
            *state.tally.failed.entry(status.to_owned()).or_default() += 1;
        }
        if let Some(save) = state.save.as_mut().filter(|_| is_good)
            && let Err(error) = writeln!(save, "{}", sample.data())
        {
            self.progress.println(format!("--save: {error}"));
        }
        self.show(&state);
        self.progress.inc(1);
    }

    fn report(&self) -> Result<Report, Failure> {
        let mut state = self.state();
        if let Some(save) = &mut state.save {
            save.flush().map_err(|e| Failure::Failed(format!("--save: {e}")))?;
        }
        let (mut tally, seconds) = (state.tally.clone(), self.start.elapsed().as_secs_f64());
        // After an interruption some still wait for a retry.
        for (status, number) in state.pending.iter().filter(|(_, number)| **number > 0) {
            tally.sent += number;
            *tally.failed.entry(status.clone()).or_default() += number;
        }
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
    const VARIABLE: &str = "LIVECHAT_SECRET_KEY";
    let (key, place) = if let Some(file) = &arguments.secret_key_file {
        let place = format!("--secret-key-file {}", file.display());
        let text = std::fs::read_to_string(file).map_err(|e| Failure::Usage(format!("{place}: {e}")))?;
        (text.trim_end().into(), place)
    } else {
        let none = "give the secret key that the relay expects: --secret-key-file FILE, --secret-key KEY or the variable LIVECHAT_SECRET_KEY";
        let key = arguments.secret_key.take().ok_or_else(|| Failure::Usage(none.to_owned()))?;
        let is_variable = std::env::var(VARIABLE).is_ok_and(|value| value == key.expose_secret());
        (key, if is_variable { format!("the variable {VARIABLE}") } else { "--secret-key".to_owned() })
    };
    if key.expose_secret().is_empty() {
        return Err(Failure::Usage(format!("the secret key is empty: {place}")));
    }
    Ok(key)
}

fn no_sample(action: &str) -> Failure {
    let hint = nearest(action, traffic::actions()).map(|name| format!("; did you mean `{name}`?"));
    let hint = hint.unwrap_or_else(|| "; `livechat-relay actions` lists them".to_owned());
    Failure::Usage(format!("there is no sample of an action `{}`{hint}", print::visible(action)))
}

/// Whether the same webhook may get another answer later.
fn may_be_repeated(status: StatusCode) -> bool {
    status.is_server_error() || matches!(status, StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS)
}

impl Tally {
    /// Why not all of `count` were answered 200: the commonest last answer of those that were given up.
    fn why(&self, count: u64) -> Option<String> {
        const UNSENT: &str = "not sent, or not answered yet";
        let unsent = HumanCount(count - self.sent);
        let Some((status, _)) = self.failed.iter().max_by_key(|(_, number)| **number) else {
            return (self.sent < count).then(|| format!("{unsent} of {} webhooks were {UNSENT}", HumanCount(count)));
        };
        let (lost, sent) = (HumanCount(self.sent - self.answered_200), HumanCount(self.sent));
        let named = self.named(status);
        let hint = if status == "401" { " (is the secret key right, and the app in the URL?)" } else { "" };
        let unsent = if self.sent < count { format!("; {unsent} more were {UNSENT}") } else { String::new() };
        Some(format!("{lost} of {sent} webhooks failed: {named}{hint}{unsent}"))
    }

    /// A status with the text of its first answer; of no answer, why there was none.
    fn named(&self, status: &str) -> String {
        let text = self.texts.get(status).map_or("", String::as_str);
        if status == NONE { text.to_owned() } else { format!("{status} {text}") }
    }
}

impl Report {
    fn print(&self, json: bool) -> Result<(), Failure> {
        if json {
            return print::out(format_args!("{}", serde_json::to_string_pretty(self).map_err(Failure::failed)?));
        }
        let Self { tally: Tally { sent, answered_200, retried, answers, .. }, seconds, per_second, latency_ms } = self;
        let style = if sent == answered_200 { print::GOOD } else { print::ERROR };
        let named = |status: &str| if status == NONE { "no answer".to_owned() } else { status.to_owned() };
        let answers: Vec<_> =
            answers.iter().map(|(status, n)| format!("{}: {}", named(status), HumanCount(*n))).collect();
        let answers = if answers.is_empty() { "none".to_owned() } else { answers.join(", ") };
        let per_second = HumanFloatCount(*per_second);
        let (good, sent, retried) = (HumanCount(*answered_200), HumanCount(*sent), HumanCount(*retried));
        print::out(format_args!(
            "{style}{good} of {sent} webhooks answered 200{style:#} in {seconds:.1} s ({per_second:.0} a second)\n  \
             answers   {answers}; retries: {retried}"
        ))?;
        let Some(Latency { p50, p90, p99, max }) = latency_ms else { return Ok(()) };
        print::out(format_args!("  latency   p50 {p50:.1} ms, p90 {p90:.1} ms, p99 {p99:.1} ms, longest {max:.1} ms"))
    }
}
