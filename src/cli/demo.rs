//! `demo`: a mock Kafka cluster in this process, the real relay on a real port, and webhooks sent to it through HTTP.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, TcpListener};
use std::time::Duration;

use bytes::Bytes;
use rdkafka::consumer::StreamConsumer;
use rdkafka::mocking::MockCluster;
use rdkafka::topic_partition_list::Offset;
use reqwest::StatusCode;

use super::print::{self, Found, out};
use super::send::Client;
use super::serve::Daemon;
use super::{Failure, tail};
use crate::config::{Config, DEAD_LETTER, Need};
use crate::event::actions;
use crate::event::route::UNLISTED;
use crate::samples::traffic::{self, Sample};
use crate::shutdown::Shutdown;
use crate::telemetry;

#[derive(clap::Args)]
pub struct Arguments {
    /// End after the summary; the exit code is 0 only if every webhook has arrived
    #[arg(long)]
    once: bool,
    /// Port for webhooks; a free one if it is in use
    #[arg(long, default_value_t = 8080)]
    port: u16,
}

const SECRET_KEY: &str = "demo-secret-key";
const PARTITIONS: i32 = 3;
const TIME: Duration = Duration::from_secs(10);

pub async fn run(arguments: Arguments) -> Result<(), Failure> {
    let mock = MockCluster::new(1).map_err(|e| Failure::Failed(format!("the mock Kafka cannot be started: {e}")))?;
    for name in actions::names().chain([UNLISTED, DEAD_LETTER]) {
        mock.create_topic(&format!("livechat.{name}"), PARTITIONS, 1).map_err(Failure::failed)?;
    }
    let brokers = mock.bootstrap_servers();
    let config = config(&brokers, free_or_any(arguments.port))?;
    telemetry::start(&config.log);
    let mut client = config.kafka.client();
    out(format_args!("A mock Kafka cluster runs in this process at {brokers}."))?;
    client.set("fetch.wait.max.ms", "10"); // the mock lets a fetch wait to its end, come what may
    let consumer = tokio::task::block_in_place(|| tail::consumer(client, |_| true, Offset::Beginning, TIME))?;
    let daemon = Daemon::start(config, Shutdown::default(), None).await?;
    let shown = show(&daemon, consumer, arguments.once).await;
    daemon.stop(false).await;
    if shown? { Ok(()) } else { Err(Failure::Failed("not everything that was sent has arrived".to_owned())) }
}

/// Sends webhooks and prints what comes out of Kafka; whether that is all.
async fn show(daemon: &Daemon, consumer: &StreamConsumer, is_once: bool) -> Result<bool, Failure> {
    out(format_args!(
        "The relay takes webhooks at http://{}/webhooks; metrics are at http://{}/metrics.\n",
        daemon.webhooks, daemon.admin
    ))?;
    let url = format!("http://{}/webhooks", daemon.webhooks);
    let samples = traffic::one_of_each(1);
    let client = Client::new(url.parse().map_err(Failure::failed)?, None, TIME)?;
    let (answered, arrived) = play(&client, &samples, consumer).await?;
    let complete = summary(&samples, answered, &arrived)?;
    if !is_once {
        invite(&url, &samples)?;
        let signal = crate::shutdown::on_signal().map_err(Failure::failed)?;
        tokio::select! {
            printed = print_until_closed(consumer) => printed?,
            _ = signal => out(format_args!("\nGood bye."))?,
        }
    }
    Ok(complete)
}

/// The defaults, but for what the demo has to decide.
fn config(brokers: &str, port: u16) -> Result<Config, Failure> {
    let set = [
        ("KAFKA__BROKERS", brokers),
        ("KAFKA__START_TIMEOUT", "500ms"), // the mock does not tell topic settings, and is asked in vain
        ("LOG__FILTER", "error"),
        ("TOPICS__CREATE", "false"), // the mock has its own way to create topics
        ("SERVER__LISTEN", &format!("{}:{port}", Ipv4Addr::LOCALHOST)),
        ("SERVER__DRAIN_DELAY", "0s"),
        ("ADMIN__LISTEN", &format!("{}:{}", Ipv4Addr::LOCALHOST, free_or_any(8081))),
        ("APPS__0__NAME", "default"),
        ("APPS__0__SECRET_KEYS__0__NAME", "demo"),
        ("APPS__0__SECRET_KEYS__0__VALUE", SECRET_KEY),
    ];
    let set = set.map(|(name, value)| (format!("LIVECHAT_RELAY__{name}").into(), value.into()));
    Ok(Config::load(None, set, Need::Everything)?)
}

fn free_or_any(port: u16) -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).map_or(0, |_| port)
}

/// Sends the samples one after another, and prints each as it comes out of Kafka; how many were answered 200, and what
/// came.
async fn play(client: &Client, samples: &[Sample], consumer: &StreamConsumer) -> Result<(usize, Vec<Found>), Failure> {
    let (mut answered, mut arrived) = (0, Vec::with_capacity(samples.len()));
    for sample in samples {
        let answer = client.post(Bytes::from(sample.body(SECRET_KEY))).await;
        if answer.is_ok_and(|answer| answer.status == StatusCode::OK) {
            answered += 1;
            arrived.extend(print_next(consumer).await?);
        }
    }
    Ok((answered, arrived))
}

/// Prints the next event, and hands it on; none where none comes for a while.
async fn print_next(consumer: &StreamConsumer) -> Result<Option<Found>, Failure> {
    loop {
        let Ok(received) = tokio::time::timeout(TIME, consumer.recv()).await else { return Ok(None) };
        let Ok(message) = received else { continue }; // it goes on by itself
        if let Some(event) = Found::read(&message) {
            out(format_args!("{}", event.line()))?;
            return Ok(Some(event));
        }
    }
}

async fn print_until_closed(consumer: &StreamConsumer) -> Result<(), Failure> {
    loop {
        print_next(consumer).await?;
    }
}

fn summary(samples: &[Sample], answered: usize, arrived: &[Found]) -> Result<bool, Failure> {
    let topics: BTreeSet<_> = arrived.iter().map(|event| &event.topic).collect();
    let data: BTreeSet<_> = arrived.iter().map(|event| event.data.get()).collect();
    let intact = samples.iter().filter(|sample| data.contains(sample.data())).count();
    let sent = samples.len();
    let complete = answered == sent && arrived.len() == sent && intact == sent;
    let style = if complete { print::GOOD } else { print::ERROR };
    out(format_args!(
        "\n{style}{sent} webhooks sent, {answered} answered 200, {} events on {} topics,",
        arrived.len(),
        topics.len()
    ))?;
    out(format_args!("{intact} of them byte for byte what was sent, less the secret key.{style:#}"))?;
    Ok(complete)
}

fn invite(url: &str, samples: &[Sample]) -> Result<(), Failure> {
    let Some(sample) = samples.iter().find(|sample| sample.action() == "thread_tagged") else { return Ok(()) };
    out(format_args!("\nSend one of your own (Ctrl-C ends):\n"))?;
    out(format_args!("curl -i {url} -H 'content-type: application/json' -d '{}'\n", sample.body(SECRET_KEY)))
}
