//! `demo`: a mock Kafka cluster in this process, the real relay on a real port, and webhooks sent to it through HTTP.

mod refused;
mod screen;

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, TcpListener};
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use rdkafka::ClientConfig;
use rdkafka::consumer::StreamConsumer;
use rdkafka::mocking::MockCluster;
use rdkafka::producer::{BaseProducer, Producer as _};
use rdkafka::topic_partition_list::Offset;
use reqwest::StatusCode;
use tokio::sync::mpsc;

use super::found::Found;
use super::items::count;
use super::print::{self, out};
use super::send::Client;
use super::serve::Daemon;
use super::tail::Topics;
use super::{Failure, tail};
use crate::config::{Config, DEAD_LETTER, Need};
use crate::event::actions;
use crate::event::route::UNLISTED;
use crate::samples::traffic::{self, Sample};
use crate::shutdown::Shutdown;
use refused::Refused;

#[derive(clap::Args)]
pub struct Arguments {
    /// End after the summary; the exit code is 0 only if every webhook has arrived
    #[arg(long)]
    once: bool,
    /// Port for webhooks [default: 8080, or a free one if that is taken]
    #[arg(long)]
    port: Option<u16>,
    /// Port for metrics [default: 8081, or a free one if that is taken]
    #[arg(long, value_name = "PORT")]
    metrics_port: Option<u16>,
}

const SECRET_KEY: &str = "demo-secret-key";
const PREFIX: &str = "livechat.";
const TIME: Duration = Duration::from_secs(10);

/// The action of the event that is shown whole.
const SHOWN: &str = "incoming_event";

pub async fn run(arguments: Arguments) -> Result<(), Failure> {
    let webhooks = listener(arguments.port, 8080, "--port")?;
    let metrics = listener(arguments.metrics_port, 8081, "--metrics-port")?; // not the same: that one is bound
    let [port, metrics_port] = [&webhooks, &metrics].map(|(_, port)| *port);
    drop((webhooks, metrics));
    out(format_args!("The relay and a mock Kafka start in this process.\n"))?;
    let mock = MockCluster::new(1).map_err(|e| Failure::Failed(format!("the mock Kafka cannot be started: {e}")))?;
    let brokers = mock.bootstrap_servers();
    tokio::task::block_in_place(|| create_topics(&brokers))?;
    let config = config(&brokers, port, metrics_port)?;
    let refused = refused::from_log();
    let mut client = config.kafka.client();
    client.set("fetch.wait.max.ms", "10"); // the mock lets a fetch wait to its end, come what may
    let topics = Topics::Prefix(PREFIX);
    let consumer = tokio::task::block_in_place(|| tail::consumer(client, topics, Offset::Beginning, TIME))?;
    let daemon = Daemon::start(config, Shutdown::default(), None).await?;
    let signal = crate::shutdown::on_signal().map_err(Failure::failed)?;
    let mut demo = Demo { brokers, consumer, example: None, is_complete: !arguments.once, arrived: 0, refusals: 0 };
    let shown = tokio::select! {
        shown = demo.show(&daemon, arguments.once, refused) => shown,
        _ = signal => demo.stopped(),
    };
    daemon.stop(false).await;
    shown?;
    if demo.is_complete { Ok(()) } else { Err(Failure::Failed("not everything that was sent has arrived".to_owned())) }
}

/// The mock creates what a producer asks for. (Its own call for that may take a second for each topic: librdkafka 2.12 loses wake-ups.)
fn create_topics(brokers: &str) -> Result<(), Failure> {
    let producer: BaseProducer =
        ClientConfig::new().set("bootstrap.servers", brokers).create().map_err(Failure::failed)?;
    for name in actions::names().chain([UNLISTED, DEAD_LETTER]) {
        producer.client().fetch_metadata(Some(&format!("{PREFIX}{name}")), TIME).map_err(Failure::failed)?;
    }
    Ok(())
}

/// A listener, and the port to ask for: the one that was asked for, else the usual one, else a free one (0).
fn listener(asked: Option<u16>, usual: u16, option: &str) -> Result<(Option<TcpListener>, u16), Failure> {
    let bind = |port| TcpListener::bind((Ipv4Addr::LOCALHOST, port));
    let Some(port) = asked else {
        return Ok(bind(usual).map_or((None, 0), |listener| (Some(listener), usual)));
    };
    match bind(port) {
        Ok(listener) => Ok((Some(listener), port)),
        Err(error) => Err(Failure::Failed(format!(
            "cannot listen on {}:{port}: {error}; choose another port with {option}, or any free one with {option} 0",
            Ipv4Addr::LOCALHOST
        ))),
    }
}

/// The defaults, but for what the demo has to decide.
fn config(brokers: &str, port: u16, metrics_port: u16) -> Result<Config, Failure> {
    let set = [
        ("KAFKA__BROKERS", brokers),
        ("KAFKA__START_TIMEOUT", "500ms"), // the mock does not tell topic settings, and is asked in vain
        ("TOPICS__CREATE", "false"),       // the mock has its own way to create topics
        ("SERVER__LISTEN", &format!("{}:{port}", Ipv4Addr::LOCALHOST)),
        ("SERVER__DRAIN_DELAY", "0s"),
        ("ADMIN__LISTEN", &format!("{}:{metrics_port}", Ipv4Addr::LOCALHOST)),
        ("APPS__0__NAME", "default"),
        ("APPS__0__SECRET_KEYS__0__NAME", "demo"),
        ("APPS__0__SECRET_KEYS__0__VALUE", SECRET_KEY),
    ];
    let set = set.map(|(name, value)| (format!("LIVECHAT_RELAY__{name}").into(), value.into()));
    Ok(Config::load(None, set, Need::Everything)?)
}

/// What runs, and what has become of it so far.
struct Demo {
    brokers: String,
    consumer: &'static StreamConsumer,
    /// The text of a whole record.
    example: Option<String>,
    /// All that was sent has arrived, or nothing asks for that: only with `--once` is an interruption a failure.
    is_complete: bool,
    arrived: u64,
    refusals: u64,
}

impl Demo {
    /// Sends webhooks and prints what comes out of Kafka, then what a user can do; that goes on until it is interrupted.
    async fn show(
        &mut self,
        daemon: &Daemon,
        is_once: bool,
        mut refused: mpsc::Receiver<Refused>,
    ) -> Result<(), Failure> {
        let url = format!("http://{}/webhooks", daemon.webhooks);
        let samples = traffic::one_of_each(1);
        let client = Client::new(url.parse().map_err(Failure::failed)?, None, TIME)?;
        let (answered, arrived) = self.play(&client, &samples).await?;
        if let Some(example) = &self.example {
            out(format_args!("\nOne of them as it is in Kafka (the value is indented for you):\n\n{example}"))?;
        }
        self.is_complete = summary(&samples, answered, &arrived)?;
        if is_once {
            return Ok(());
        }
        screen::what_next(daemon.webhooks, daemon.admin, &self.brokers)?;
        loop {
            tokio::select! {
                next = self.next() => drop(next?),
                Some(request) = refused.recv() => {
                    self.refusals += 1;
                    out(format_args!("{}", request.lines(Timestamp::now())))?;
                }
            }
        }
    }

    /// Sends the samples one after another, and prints each as it comes out of Kafka; how many were answered 200, and what
    /// came.
    async fn play(&mut self, client: &Client, samples: &[Sample]) -> Result<(usize, Vec<Found>), Failure> {
        let (mut answered, mut arrived) = (0, Vec::with_capacity(samples.len()));
        for sample in samples {
            let answer = client.post(Bytes::from(sample.body(SECRET_KEY))).await;
            if answer.is_ok_and(|answer| answer.status == StatusCode::OK) {
                answered += 1;
                let next = tokio::time::timeout(TIME, self.next()).await;
                arrived.extend(next.ok().transpose()?);
            }
        }
        Ok((answered, arrived))
    }

    /// Prints the next event, and hands it on.
    async fn next(&mut self) -> Result<Found, Failure> {
        loop {
            let Ok(message) = self.consumer.recv().await else { continue }; // it goes on by itself
            let Some(event) = Found::read(&message) else { continue };
            let columns = print::columns().unwrap_or(print::WIDTH);
            out(format_args!("{}", event.line(PREFIX, Timestamp::now(), Some(columns))))?;
            self.arrived += 1;
            if event.action() == SHOWN && self.example.is_none() {
                self.example = Some(screen::record(&message));
            }
            return Ok(event);
        }
    }

    fn stopped(&self) -> Result<(), Failure> {
        let [events, requests] = [(self.arrived, "event"), (self.refusals, "request")].map(|(n, what)| count(n, what));
        out(format_args!("\nStopped: {events} published, {requests} refused."))
    }
}

fn summary(samples: &[Sample], answered: usize, arrived: &[Found]) -> Result<bool, Failure> {
    let topics: BTreeSet<_> = arrived.iter().map(|event| &event.topic).collect();
    let data: BTreeSet<_> = arrived.iter().map(|event| event.data.get()).collect();
    let intact = samples.iter().filter(|sample| data.contains(sample.data())).count();
    let sent = samples.len();
    let is_complete = answered == sent && arrived.len() == sent && intact == sent;
    let style = if is_complete { print::GOOD } else { print::ERROR };
    let whose = if intact == sent { "Their data".to_owned() } else { format!("The data of {intact} of them") };
    out(format_args!(
        "\n{style}{sent} webhooks sent, {answered} answered 200; {} events in {} topics.\n\
         {whose} is byte for byte what was sent, without the secret key.{style:#}",
        arrived.len(),
        topics.len()
    ))?;
    Ok(is_complete)
}
