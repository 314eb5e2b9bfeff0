//! Replay to librdkafka's mock cluster, which refuses produces in ways that a cluster does.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::message::Message as _;
use rdkafka::mocking::MockCluster;
use rdkafka::producer::DefaultProducerContext;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr, RDKafkaRespErr::*};
use secrecy::SecretString;
use tokio::task::JoinHandle;

use super::*;
use crate::metrics::Metrics;
use crate::publish::{self, Publisher};
use crate::shutdown::Shutdown;
use crate::spool::Way;
use crate::spool::tests::failover::{MemoryDisk, start_on};

/// One, so that the next produce is the one behind a refused one: see [`answers`].
const PARTITIONS: i32 = 1;
const KEYS: usize = 5;
const PUBLISH_DEADLINE: Duration = Duration::from_millis(400);
/// Nothing takes so long.
const DEADLINE: Duration = Duration::from_secs(60);

const PROPERTIES: [(&str, &str); 9] = [
    ("batch.num.messages", "4"), // so that what is held at once is several batches
    // The mock does not look at sequence numbers: it would take a batch though the one before it was refused, and librdkafka
    // would conclude from it that both were taken.
    ("max.in.flight.requests.per.connection", "1"),
    // Else an error is only one more try, and no record ever fails.
    ("message.send.max.retries", "1"),
    ("retry.backoff.ms", "5"),
    ("retry.backoff.max.ms", "10"),
    ("reconnect.backoff.ms", "5"),
    ("reconnect.backoff.max.ms", "10"),
    ("topic.metadata.refresh.fast.interval.ms", "10"),
    ("topic.metadata.refresh.interval.ms", "200"),
];

/// What a broker says to a produce, and what it says when nothing is wrong.
const ANSWERS: [RDKafkaRespErr; 12] = [
    RD_KAFKA_RESP_ERR_NO_ERROR,
    RD_KAFKA_RESP_ERR_NO_ERROR,
    RD_KAFKA_RESP_ERR_NO_ERROR,
    RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION,
    RD_KAFKA_RESP_ERR_LEADER_NOT_AVAILABLE,
    RD_KAFKA_RESP_ERR_REQUEST_TIMED_OUT,
    RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS,
    RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS_AFTER_APPEND,
    RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED,
    RD_KAFKA_RESP_ERR_POLICY_VIOLATION,
    RD_KAFKA_RESP_ERR_KAFKA_STORAGE_ERROR,
    RD_KAFKA_RESP_ERR__TRANSPORT, // the connection breaks
];

type Mock = MockCluster<'static, DefaultProducerContext>;

/// A spool that is replayed to a mock cluster.
#[derive(Clone)]
struct Stage {
    topic: Arc<str>,
    spool: Spool,
    publisher: Arc<Publisher>,
    dead_letters: DeadLetters,
    stop: CancellationToken,
    _directory: Option<Arc<tempfile::TempDir>>,
}

impl Stage {
    fn new() -> (Mock, Self) {
        let directory = tempfile::tempdir().expect("a directory");
        let config = crate::spool::Config {
            directory: directory.path().to_owned(),
            dead_letters_bytes_max: 1 << 30,
            segment_bytes: 20_000,
            bytes_max: 64 << 20,
            free_min: 0,
            queue_records_max: 1000,
            queue_bytes_max: 64 << 20,
            lock_timeout: Duration::ZERO,
            switch_timeout: Duration::from_millis(100),
            failover_after: DEADLINE,
        };
        let spool = Spool::start(config, Arc::new(Metrics::new())).expect("a spool");
        let (mock, stage) = Self::with(spool);
        (mock, Self { _directory: Some(Arc::new(directory)), ..stage })
    }

    fn with(spool: Spool) -> (Mock, Self) {
        let mock = MockCluster::new(1).expect("a mock cluster");
        let topic: Arc<str> = "livechat.incoming_event".into();
        mock.create_topic(&topic, PARTITIONS, 1).expect("a topic");
        let metrics = Arc::new(Metrics::new());
        let config = publish::Config {
            brokers: mock.bootstrap_servers(),
            client_id: "test".to_owned(),
            publish_deadline: PUBLISH_DEADLINE,
            linger: Duration::ZERO,
            compression: "none".to_owned(),
            queue_bytes_max: 64 << 20,
            queue_records_max: 10_000,
            start_timeout: Duration::from_secs(1),
            probe_interval: Duration::from_secs(1),
            record_bytes_max: 1 << 20,
            properties: PROPERTIES.map(|(name, value)| (name.to_owned(), SecretString::from(value))).to_vec(),
        };
        let publisher =
            Arc::new(Publisher::new(config, Arc::clone(&metrics), Shutdown::default()).expect("a producer"));
        let dead_letters = DeadLetters {
            topic: "livechat.dead-letter".into(),
            publisher: Arc::clone(&publisher),
            spool: Some(spool.clone()),
            metrics,
        };
        let stop = CancellationToken::new();
        (mock, Self { topic, spool, publisher, dead_letters, stop, _directory: None })
    }

    fn record(&self, key: usize, number: usize) -> Record {
        let value = format!("{number}").into_bytes();
        Record { topic: Arc::clone(&self.topic), key: format!("chat-{key}"), headers: Vec::new(), value }
    }

    fn config() -> Config {
        Config {
            records_max: 16,
            bytes_max: 1 << 20,
            rate: 0,
            retry_min: Duration::from_millis(5),
            retry_max: Duration::from_millis(20),
        }
    }

    /// One that does not run.
    fn lane(&self) -> Lane {
        let (spool, dead_letters) = (self.spool.clone(), self.dead_letters.clone());
        let (config, rate, lanes) = (Self::config(), Rate::new(0), TaskTracker::new());
        let common = Common { config, spool, dead_letters, rate, lanes };
        Lane::new(Arc::new(common), Arc::clone(&self.topic), Arc::default())
    }

    fn replay(&self) -> JoinHandle<()> {
        tokio::spawn(run(
            Self::config(),
            self.spool.clone(),
            self.dead_letters.clone(),
            Shutdown::default(),
            self.stop.clone(),
        ))
    }

    async fn append(&self, record: Record) {
        let ticket = self.spool.ticket(&self.topic);
        assert_eq!(self.spool.append(ticket, record).await, Ok(Ok(())));
    }

    /// Makes a record durable as the relay does; whether the brokers took it at once.
    async fn take(&self, record: Record) -> bool {
        if self.spool.way(&self.topic).await == Way::Direct {
            let deadline = self.publisher.report_deadline();
            let published = tokio::time::timeout(deadline, self.publisher.published(record.clone())).await;
            if let Ok(Ok(())) = published {
                return true;
            }
        }
        self.append(record).await;
        false
    }

    async fn is_direct(&self) {
        let began = Instant::now();
        while self.spool.lanes(|lanes| lanes.waiting(&self.topic)) > 0
            || self.spool.way(&self.topic).await == Way::Spool
        {
            assert!(began.elapsed() < DEADLINE, "the lane is not drained");
            tokio::task::yield_now().await;
        }
    }

    /// The numbers of each key in the order of the topic, first occurrences only.
    fn orders(&self, mock: &Mock) -> BTreeMap<String, Vec<usize>> {
        let mut client = ClientConfig::new();
        client.set("bootstrap.servers", mock.bootstrap_servers());
        client.set("group.id", "test").set("enable.auto.commit", "false").set("fetch.wait.max.ms", "10");
        let consumer: BaseConsumer = client.create().expect("a consumer");
        let mut partitions = TopicPartitionList::new();
        let mut left = 0;
        for partition in 0..PARTITIONS {
            partitions.add_partition_offset(&self.topic, partition, Offset::Beginning).expect("an offset");
            left += consumer.fetch_watermarks(&self.topic, partition, DEADLINE).expect("watermarks").1;
        }
        consumer.assign(&partitions).expect("an assignment");
        let mut orders = BTreeMap::<String, Vec<usize>>::new();
        while left > 0 {
            let Ok(message) = consumer.poll(DEADLINE).expect("a message in time") else { continue };
            let text = |bytes: Option<&[u8]>| String::from_utf8_lossy(bytes.expect("bytes")).into_owned();
            let order = orders.entry(text(message.key())).or_default();
            let number = text(message.payload()).parse().expect("a number");
            if !order.contains(&number) {
                order.push(number);
            }
            left -= 1;
        }
        std::mem::forget(consumer); // its end would wait for a group that it is not in
        orders
    }

    async fn end(self, replaying: JoinHandle<()>) {
        self.stop.cancel();
        tokio::time::timeout(DEADLINE, replaying).await.expect("it ends").expect("no panic");
        self.spool.close();
    }
}

fn assert_in_order(orders: &BTreeMap<String, Vec<usize>>, numbers: &[usize]) {
    for (key, numbers) in numbers.iter().enumerate() {
        assert_eq!(orders[&format!("chat-{key}")], (0..*numbers).collect::<Vec<_>>(), "chat-{key}");
    }
}

/// The answers to come, by chance. Behind what it has refused, a broker takes nothing; the mock would.
fn answers(mut seed: u64, number: usize) -> Vec<RDKafkaRespErr> {
    let mut chance = || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(seed >> 40).expect("24 bits")
    };
    (0..number).flat_map(|_| refused(ANSWERS[chance() % ANSWERS.len()])).collect()
}

/// An answer, and, where it refuses a batch, refusals of what may come next: the batch behind it, which may be on the wire already, and the
/// record that asks, on a connection of its own. Either may be first. A broker knows by its sequence that there is a gap before the batch.
fn refused(answer: RDKafkaRespErr) -> Vec<RDKafkaRespErr> {
    match answer {
        RD_KAFKA_RESP_ERR_NO_ERROR => vec![answer],
        _ => vec![answer, RD_KAFKA_RESP_ERR_POLICY_VIOLATION, RD_KAFKA_RESP_ERR_POLICY_VIOLATION],
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_the_brokers_answer_each_key_is_replayed_in_its_order_and_nothing_is_lost() {
    const NUMBERS: usize = 20;
    for seed in 1..4 {
        let (mock, stage) = Stage::new();
        for number in 0..NUMBERS {
            for key in 0..KEYS {
                stage.append(stage.record(key, number)).await;
            }
        }
        let mut answers = answers(seed, 30);
        answers.extend(refused(RD_KAFKA_RESP_ERR_OUT_OF_ORDER_SEQUENCE_NUMBER)); // only a new producer helps
        mock.request_errors(RDKafkaApiKey::Produce, &answers);
        let replaying = stage.replay();
        stage.is_direct().await;
        assert!(stage.take(stage.record(0, NUMBERS)).await, "it goes to the brokers directly");
        assert_in_order(&stage.orders(&mock), &[NUMBERS + 1, NUMBERS, NUMBERS, NUMBERS, NUMBERS]);
        stage.end(replaying).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_batches_that_are_refused_whole_each_record_is_sent_alone_and_none_becomes_a_dead_letter() {
    const NUMBERS: usize = 20;
    let (mock, stage) = Stage::new();
    for number in 0..NUMBERS {
        for key in 0..KEYS {
            stage.append(stage.record(key, number)).await;
        }
    }
    // Its producer takes longer than PUBLISH_DEADLINE to connect: what times out meanwhile would be sent in a batch again.
    mock.create_topic("other", 1, 1).expect("a topic");
    let other = Record { topic: "other".into(), ..stage.record(0, 0) };
    let connected = async { while stage.publisher.published_alone(other.clone()).await.is_err() {} };
    tokio::time::timeout(DEADLINE, connected).await.expect("a producer");
    // The first record of a lane is sent by itself. What is refused here is the first batch of its run.
    let answers = [RD_KAFKA_RESP_ERR_NO_ERROR, RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE].map(refused).concat();
    mock.request_errors(RDKafkaApiKey::Produce, &answers);
    let replaying = stage.replay();
    stage.is_direct().await;
    assert_in_order(&stage.orders(&mock), &[NUMBERS; KEYS]);
    let metrics = &stage.dead_letters.metrics;
    assert!(metrics.kafka_errors.with_label_values(&["MessageSizeTooLarge"]).get() >= 1);
    let of = |to: &str| metrics.dead_letters.with_label_values(&[to, "too_large"]).get();
    assert_eq!((of("topic"), of("disk"), metrics.replayed.get()), (0, 0, (NUMBERS * KEYS) as u64));
    stage.end(replaying).await;
}

/// librdkafka's own producer would go on with the next batch.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_the_middle_of_a_run_fails_nothing_behind_it_is_published_before_it() {
    const NUMBERS: usize = 60;
    let (mock, stage) = Stage::new();
    for number in 0..NUMBERS {
        stage.append(stage.record(0, number)).await;
    }
    let [taken, violation, too_large] =
        [RD_KAFKA_RESP_ERR_NO_ERROR, RD_KAFKA_RESP_ERR_POLICY_VIOLATION, RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE];
    let answers: Vec<_> =
        [taken, taken, taken, violation, taken, taken, taken, taken, too_large].into_iter().flat_map(refused).collect();
    mock.request_errors(RDKafkaApiKey::Produce, &answers);
    let replaying = stage.replay();
    stage.is_direct().await;
    assert_in_order(&stage.orders(&mock), &[NUMBERS]);
    assert!(stage.dead_letters.metrics.replay_runs_ended.get() >= 2, "each run that failed was ended");
    stage.end(replaying).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rules_dead_letters_are_not_counted_as_events_that_their_topic_has() {
    let (_mock, mut stage) = Stage::new();
    stage.append(stage.record(0, 0)).await;
    stage.dead_letters.topic = Arc::clone(&stage.topic);
    let replaying = stage.replay();
    stage.is_direct().await;
    assert_eq!(stage.dead_letters.metrics.replayed.get(), 0);
    stage.end(replaying).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_is_down_for_longer_than_a_record_may_take_breaks_no_order() {
    const NUMBERS: usize = 60;
    let (mock, stage) = Stage::new();
    for number in 0..NUMBERS {
        stage.append(stage.record(0, number)).await;
    }
    mock.broker_round_trip_time(1, Duration::from_millis(30)).expect("it is slow");
    let (replaying, metrics) = (stage.replay(), &stage.dead_letters.metrics);
    eventually(|| metrics.replayed.get() > 1).await;
    mock.broker_down(1).expect("it is down");
    eventually(|| metrics.replay_runs_ended.get() > 0).await;
    mock.broker_up(1).expect("it is up");
    stage.is_direct().await;
    assert_in_order(&stage.orders(&mock), &[NUMBERS]);
    stage.end(replaying).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_records_of_one_key_are_under_way_at_once() {
    const NUMBERS: usize = 100;
    let (mock, stage) = Stage::new();
    for number in 0..NUMBERS {
        stage.append(stage.record(0, number)).await;
    }
    mock.broker_round_trip_time(1, Duration::from_millis(30)).expect("it is slow");
    let replaying = stage.replay();
    eventually(|| stage.publisher.records_in_flight() > 8).await;
    stage.is_direct().await;
    assert_in_order(&stage.orders(&mock), &[NUMBERS]);
    stage.end(replaying).await;
}

#[tokio::test]
async fn a_batch_that_is_refused_is_no_reason_to_call_its_topic_unavailable() {
    let (_mock, stage) = Stage::new();
    let run = stage.publisher.run().expect("a producer");
    let mut lane = stage.lane();
    lane.mode = Mode::Running { run, too_long_at: lane.common.too_long_at() };
    lane.failed(0, Some(Failure { remedy: Remedy::DeadLetter, code: RDKafkaErrorCode::MessageSizeTooLarge }));
    assert!(lane.trouble.is_none() && lane.refused == 1 && lane.alone_until == 1);
    lane.failed(1, Some(Failure { remedy: Remedy::Operator, code: RDKafkaErrorCode::TopicAuthorizationFailed }));
    let trouble = lane.trouble.expect("a reason");
    assert_eq!(trouble.logged, [RDKafkaErrorCode::TopicAuthorizationFailed]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_record_that_cannot_be_stored_as_a_dead_letter_either_the_reason_is_known() {
    let (mock, stage) = Stage::new();
    let record = stage.record(0, 0);
    let connected = async { while stage.publisher.published_alone(record.clone()).await.is_err() {} };
    tokio::time::timeout(DEADLINE, connected).await.expect("a producer");
    let reason = || stage.publisher.failing().remove(&*stage.topic).map(|error| (error.code, error.message));

    // The record is refused, then the dead letter is.
    let letters = Arc::clone(&stage.dead_letters.topic);
    mock.create_topic(&letters, PARTITIONS, 1).expect("a topic");
    mock.request_errors(RDKafkaApiKey::Produce, &[RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE; 2]);
    let without_a_disk = DeadLetters { spool: None, ..stage.dead_letters.clone() };
    let resolved = without_a_disk.resolve(Entry::new(record.clone()), None).await;
    assert!(matches!(resolved, Err(Unresolved::Kafka(failure)) if failure.is_refused()), "{resolved:?}");
    let (code, message) = reason().expect("a reason");
    assert!(code == publish::HELD_BACK && message.contains("MessageSizeTooLarge"), "{code}: {message}");

    mock.request_errors(RDKafkaApiKey::Produce, &[RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE; 2]);
    let resolved = stage.dead_letters.resolve(Entry::new(record), None).await;
    assert_eq!((resolved, reason()), (Ok(Resolved::DeadLetter), None), "the disk has it");
}

#[test]
fn a_run_has_fewer_records_after_a_batch_that_was_too_large_and_as_many_again_later() {
    let mut at_once = AtOnce::new(1000);
    at_once.refused(0);
    assert_eq!(at_once.records, 1000, "a record of it was to blame");
    at_once.refused(290);
    assert_eq!(at_once.records, 145);
    at_once.refused(1);
    assert_eq!(at_once.records, 1, "one goes always");
    for records in [2, 4, 8] {
        (0..at_once.records * 1000).for_each(|_| at_once.acked());
        assert_eq!(at_once.records, records);
    }
    (0..5_000_000).for_each(|_| at_once.acked());
    assert_eq!(at_once.records, 1000, "no more than configured");
}

#[tokio::test(start_paused = true)]
async fn a_rate_gives_so_many_rights_a_second_and_few_at_once() {
    assert!((0..1000).all(|_| Rate::new(0).take().is_ok()), "there is no limit");
    let rate = Rate::new(1000);
    let mut given = 0;
    let until = Instant::now() + Duration::from_secs(3);
    while Instant::now() < until {
        match rate.take() {
            Ok(()) => given += 1,
            Err(at) => tokio::time::sleep_until(at).await,
        }
    }
    assert!((2990..=3010).contains(&given), "{given}");
    tokio::time::advance(Duration::from_secs(60)).await;
    let at_once = (0..1000).take_while(|_| rate.take().is_ok()).count();
    assert!((100..=102).contains(&at_once), "{at_once}");
}

async fn eventually(condition: impl Fn() -> bool) {
    let waits = async {
        while !condition() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(DEADLINE, waits).await.expect("in time");
}

/// The order of its key yields: what stands behind it is not held back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_that_cannot_be_read_holds_back_no_other_and_follows_when_it_can() {
    const NUMBERS: usize = 20;
    let disk = MemoryDisk::default();
    let (mock, stage) = Stage::with(start_on(&disk, DEADLINE));
    for number in 0..NUMBERS {
        for key in 0..KEYS {
            stage.append(stage.record(key, number)).await;
        }
    }
    let segment = disk.files()["1.seg"].clone();
    let frames = segment.windows(4).enumerate().filter(|(_, bytes)| bytes == b"LCRF");
    let bad = frames.map(|(at, _)| at).nth(7).expect("a frame");
    disk.set_bad_sector(Some(("1.seg", bad + 20)));
    let replaying = stage.replay();
    let waiting = || stage.spool.lanes(|lanes| lanes.waiting(&stage.topic));
    let others = async {
        while waiting() > 1 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(DEADLINE, others).await.expect("the others are published");
    assert_eq!((waiting(), stage.spool.way(&stage.topic).await), (1, Way::Spool));
    // A run that has had nothing to do for long is well.
    let (idle_since, patience) = (Instant::now(), stage.publisher.report_deadline_max());
    eventually(|| idle_since.elapsed() > patience).await;
    stage.append(stage.record(0, NUMBERS)).await;
    eventually(|| waiting() == 1).await;
    assert_eq!(stage.dead_letters.metrics.replay_runs_ended.get(), 0);
    disk.set_bad_sector(None);
    stage.is_direct().await;
    let orders = stage.orders(&mock);
    assert_eq!(orders.values().map(Vec::len).sum::<usize>(), KEYS * NUMBERS + 1, "{orders:?}");
    stage.end(replaying).await;
}

/// What the senders have done.
#[derive(Debug, Default)]
struct Sent {
    direct: AtomicUsize,
    spooled: AtomicUsize,
    is_enough: AtomicBool,
}

/// Sends events of one key, each when the one before is durable; how many.
async fn send(stage: Stage, sent: Arc<Sent>, key: usize, first: usize) -> usize {
    for number in first.. {
        if sent.is_enough.load(Ordering::Relaxed) {
            return number;
        }
        // A disk may be faster than a round trip for each record of a key: then the end of the lane would never be reached.
        while stage.spool.lanes(|lanes| lanes.waiting(&stage.topic)) > KEYS as u64 {
            tokio::task::yield_now().await;
        }
        let is_direct = stage.take(stage.record(key, number)).await;
        let way = if is_direct { &sent.direct } else { &sent.spooled };
        way.fetch_add(1, Ordering::Relaxed);
    }
    unreachable!("there is no end of numbers")
}

/// Waits until so many have gone this way.
async fn until(sent: &Sent, way: &AtomicUsize, number: usize) {
    let began = Instant::now();
    while way.load(Ordering::Relaxed) < number {
        assert!(began.elapsed() < DEADLINE, "the senders hang: {sent:?}");
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_new_event_overtakes_those_of_its_key_while_the_lane_drains_fails_and_turns_direct() {
    const BEFORE: usize = 10;
    let (mock, stage) = Stage::new();
    for number in 0..BEFORE {
        for key in 0..KEYS {
            stage.append(stage.record(key, number)).await;
        }
    }
    let (replaying, sent) = (stage.replay(), Arc::<Sent>::default());
    let senders = (0..KEYS).map(|key| tokio::spawn(send(stage.clone(), Arc::clone(&sent), key, BEFORE)));
    let senders: Vec<_> = senders.collect();
    for wave in 1..8 {
        until(&sent, &sent.direct, sent.direct.load(Ordering::Relaxed) + 20).await;
        let spooled = sent.spooled.load(Ordering::Relaxed);
        if wave == 3 {
            // Records are given up, and are on the topic all the same: they may come twice.
            mock.broker_round_trip_time(1, stage.publisher.report_deadline() * 2).expect("it is slow");
        } else {
            let mut answers = answers(wave, 10);
            answers.push(RD_KAFKA_RESP_ERR_POLICY_VIOLATION); // the others may all be gone at the second try
            mock.request_errors(RDKafkaApiKey::Produce, &answers);
        }
        until(&sent, &sent.spooled, spooled + 1).await;
        mock.broker_round_trip_time(1, Duration::ZERO).expect("it is fast");
    }
    until(&sent, &sent.direct, sent.direct.load(Ordering::Relaxed) + 20).await;
    sent.is_enough.store(true, Ordering::Relaxed);
    let mut numbers = Vec::new();
    for sender in senders {
        numbers.push(sender.await.expect("no panic"));
    }
    stage.is_direct().await;
    assert_in_order(&stage.orders(&mock), &numbers);
    stage.end(replaying).await;
}
