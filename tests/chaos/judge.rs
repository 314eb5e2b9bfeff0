//! Holds what was answered 200 against what lies in Kafka: what is lost, altered, invented, out of order, or there twice.
//! It knows neither relay nor cluster, so that its own tests can show it every kind of guilt.

use std::collections::HashMap;
use std::time::Duration;

use crate::support::kafka::Message;

/// An event that was posted, and what came of it. One that was answered 200 is an obligation.
#[derive(Clone, Debug)]
pub struct Posted {
    pub topic: String,
    pub key: String,
    pub chat: String,
    /// Its place among the events of its chat.
    pub sequence: u64,
    /// The body without the secret key: the bytes that consumers must get as `data`.
    pub data: String,
    /// Whether its payload names the event, so that every attempt gets one `id`.
    pub is_named: bool,
    pub attempts: u32,
    pub answered: Option<Answered>,
}

/// A 200.
#[derive(Clone, Debug)]
pub struct Answered {
    /// Which relay gave it, where there are several.
    pub relay: usize,
    /// Since the first event of the run.
    pub at: Duration,
    pub took: Duration,
}

/// Where order is promised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Within a chat, on each topic.
    Chat,
    /// Within a chat, on each topic, among the events that one relay took at the first attempt: two spools drain independently.
    ChatAndRelay,
    /// Nowhere: the relay says itself that new events may overtake those in its spool, or what could not be read comes later.
    Yields,
}

/// What the scenario allows.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// Its fault explains events that are there twice though they were posted once.
    pub duplicates: bool,
    /// A record in the dead-letter topic that names its topic is not lost.
    pub dead_letters: bool,
    pub order: Order,
}

/// What was found. Each text names the event and what is wrong with it.
#[derive(Clone, Debug, Default)]
pub struct Verdict {
    pub sent: usize,
    pub answered: usize,
    pub records: usize,
    pub dead_letters: usize,
    pub lost: Vec<String>,
    pub altered: Vec<String>,
    pub invented: Vec<String>,
    pub out_of_order: Vec<String>,
    /// Records too many, whoever is to blame.
    pub duplicates: usize,
    /// Events there twice though they were posted once and the scenario does not explain it.
    pub unexplained: Vec<String>,
    /// Copies of one event with different `id`s, and different events with one.
    pub wrong_ids: Vec<String>,
}

impl Verdict {
    /// Takes another run's findings in.
    pub fn add(&mut self, other: Self) {
        self.sent += other.sent;
        self.answered += other.answered;
        self.records += other.records;
        self.dead_letters += other.dead_letters;
        self.duplicates += other.duplicates;
        self.lost.extend(other.lost);
        self.altered.extend(other.altered);
        self.invented.extend(other.invented);
        self.out_of_order.extend(other.out_of_order);
        self.unexplained.extend(other.unexplained);
        self.wrong_ids.extend(other.wrong_ids);
    }

    /// Every charge that is not empty, by its name.
    pub fn charges(&self) -> Vec<(&'static str, &[String])> {
        let all = [
            ("lost", &self.lost),
            ("altered", &self.altered),
            ("invented", &self.invented),
            ("out of order", &self.out_of_order),
            ("unexplained duplicates", &self.unexplained),
            ("wrong ids", &self.wrong_ids),
        ];
        all.into_iter().filter(|(_, found)| !found.is_empty()).map(|(name, found)| (name, found.as_slice())).collect()
    }
}

/// The mark that an event carries in its data, by which its records are found even where they are altered.
pub fn mark(chat: &str, sequence: u64) -> String {
    format!(r#""mark":"{chat}/{sequence}""#)
}

/// `records` in the order of their partitions: what was saved of a topic before it was deleted comes first.
pub fn judge(posted: &[Posted], records: &[Message], rules: Rules) -> Verdict {
    let by_mark: HashMap<String, usize> =
        posted.iter().enumerate().map(|(n, event)| (mark(&event.chat, event.sequence), n)).collect();
    let mut copies: Vec<Vec<Copy<'_>>> = vec![Vec::new(); posted.len()];
    let mut verdict = Verdict { sent: posted.len(), records: records.len(), ..Verdict::default() };
    for (place, record) in records.iter().enumerate() {
        let copy = Copy::of(place, record);
        verdict.dead_letters += usize::from(copy.is_dead_letter);
        let event = copy.mark.as_ref().and_then(|mark| by_mark.get(mark)).map(|&n| (n, &posted[n]));
        let Some((n, event)) = event else {
            verdict.invented.push(format!("{}: {}", place_of(record), excerpt(&record.value)));
            continue;
        };
        if let Some(wrong) = copy.difference(event) {
            verdict.altered.push(format!("{} at {}: {wrong}", name(event), place_of(record)));
        }
        copies[n].push(copy);
    }
    for (event, copies) in posted.iter().zip(&copies) {
        verdict.count(event, copies, rules);
    }
    verdict.hold_ids(posted, &copies);
    verdict.hold_order(posted, &copies, rules.order);
    verdict
}

impl Verdict {
    fn count(&mut self, event: &Posted, copies: &[Copy<'_>], rules: Rules) {
        self.answered += usize::from(event.answered.is_some());
        let counts = |copy: &&Copy<'_>| copy.topic == event.topic && (rules.dead_letters || !copy.is_dead_letter);
        if let Some(answered) = event.answered.as_ref().filter(|_| !copies.iter().any(|copy| counts(&copy))) {
            let instead = if copies.is_empty() { "" } else { ", and is on another topic" };
            self.lost.push(format!(
                "{} answered 200 by relay {} at {:.3} s after {:.3} s, attempt {}{instead}",
                name(event),
                answered.relay,
                answered.at.as_secs_f64(),
                answered.took.as_secs_f64(),
                event.attempts
            ));
        }
        self.duplicates += copies.len().saturating_sub(1);
        if copies.len() > 1 && event.attempts == 1 && !rules.duplicates {
            self.unexplained.push(format!("{} is there {} times", name(event), copies.len()));
        }
    }

    fn hold_ids(&mut self, posted: &[Posted], copies: &[Vec<Copy<'_>>]) {
        let mut owners: HashMap<&str, usize> = HashMap::new();
        for (n, (event, copies)) in posted.iter().zip(copies).enumerate() {
            let one_id = event.is_named || event.attempts == 1;
            if one_id && copies.iter().any(|copy| copy.id != copies[0].id) {
                self.wrong_ids.push(format!("{} has several ids", name(event)));
            }
            for id in copies.iter().filter_map(|copy| copy.id.as_deref()) {
                if *owners.entry(id).or_insert(n) != n {
                    self.wrong_ids.push(format!("{} has the id {id} of another event", name(event)));
                }
            }
        }
    }

    /// First occurrences must stand as they were posted: each was answered 200 before the next was posted.
    fn hold_order(&mut self, posted: &[Posted], copies: &[Vec<Copy<'_>>], order: Order) {
        if order == Order::Yields {
            return;
        }
        // Topic, chat, relay → sequence, place, partition.
        type Lanes<'a> = HashMap<(&'a str, &'a str, usize), Vec<(u64, usize, i32)>>;
        let mut lanes = Lanes::new();
        for (event, copies) in posted.iter().zip(copies) {
            let Some(answered) = &event.answered else { continue };
            let Some(first) = copies.iter().find(|copy| !copy.is_dead_letter && copy.topic == event.topic) else {
                continue;
            };
            let relay = match order {
                Order::Chat | Order::Yields => 0,
                Order::ChatAndRelay if event.attempts > 1 => continue,
                Order::ChatAndRelay => answered.relay,
            };
            let lane = lanes.entry((&event.topic, &event.chat, relay)).or_default();
            lane.push((event.sequence, first.place, first.record.partition));
        }
        for ((topic, chat, _), mut lane) in lanes {
            lane.sort_unstable();
            for pair in lane.windows(2) {
                let ((earlier, before, from), (later, after, to)) = (pair[0], pair[1]);
                if before > after || from != to {
                    self.out_of_order.push(format!(
                        "{topic} chat {chat}: {later} (partition {to}) stands before {earlier} (partition {from})"
                    ));
                }
            }
        }
        self.out_of_order.sort();
    }
}

/// A record as the judge reads it.
#[derive(Clone)]
struct Copy<'a> {
    place: usize,
    record: &'a Message,
    /// The topic that it is for.
    topic: &'a str,
    is_dead_letter: bool,
    mark: Option<String>,
    data: Option<&'a str>,
    id: Option<String>,
}

impl<'a> Copy<'a> {
    fn of(place: usize, record: &'a Message) -> Self {
        let header = record.headers.iter().find(|(name, _)| name == "dead-letter-topic");
        let is_dead_letter = record.topic.ends_with("dead-letter");
        let named = header.and_then(|(_, topic)| std::str::from_utf8(topic).ok());
        let value = std::str::from_utf8(&record.value).unwrap_or_default();
        let id = serde_json::from_str::<serde_json::Value>(value).ok().and_then(|v| Some(v["id"].as_str()?.to_owned()));
        Self {
            place,
            record,
            topic: named.filter(|_| is_dead_letter).unwrap_or(&record.topic),
            is_dead_letter,
            mark: mark_in(value),
            data: value.split_once(r#","data":"#).and_then(|(_, rest)| rest.strip_suffix('}')),
            id,
        }
    }

    /// What about it is not as it was posted.
    fn difference(&self, event: &Posted) -> Option<String> {
        if self.data != Some(event.data.as_str()) {
            return Some(format!("its data is not what was sent: {}", excerpt(&self.record.value)));
        }
        if self.record.key.as_deref() != Some(event.key.as_bytes()) {
            let key = String::from_utf8_lossy(self.record.key.as_deref().unwrap_or_default());
            return Some(format!("its key is `{key}` and not `{}`", event.key));
        }
        if self.topic != event.topic {
            return Some(format!("it is for the topic {} and not {}", self.topic, event.topic));
        }
        self.id.is_none().then(|| "it is no JSON with an id".to_owned())
    }
}

/// The first mark in a value, as [`mark`] writes it.
fn mark_in(value: &str) -> Option<String> {
    let start = value.find(r#""mark":""#)?;
    let length = r#""mark":""#.len() + value[start..].get(r#""mark":""#.len()..)?.find('"')? + 1;
    Some(value[start..start + length].to_owned())
}

fn name(event: &Posted) -> String {
    format!("{} chat {} event {}", event.topic, event.chat, event.sequence)
}

fn place_of(record: &Message) -> String {
    format!("{} partition {} offset {}", record.topic, record.partition, record.offset)
}

fn excerpt(value: &[u8]) -> String {
    String::from_utf8_lossy(value).chars().take(200).collect()
}

#[cfg(test)]
#[allow(dead_code, reason = "the chaos binary has no harness: they run in tests/it")]
mod tests {
    use super::*;

    const STRICT: Rules = Rules { duplicates: false, dead_letters: false, order: Order::Chat };

    fn event(sequence: u64) -> Posted {
        let answered = Answered { relay: 0, at: Duration::ZERO, took: Duration::ZERO };
        Posted {
            topic: "t.a".to_owned(),
            key: "C1".to_owned(),
            chat: "C1".to_owned(),
            sequence,
            data: format!(r#"{{"action":"a","payload":{{}},{}}}"#, mark("C1", sequence)),
            is_named: true,
            attempts: 1,
            answered: Some(answered),
        }
    }

    fn record(event: &Posted, offset: i64) -> Message {
        Message {
            topic: event.topic.clone(),
            partition: 0,
            offset,
            key: Some(event.key.clone().into_bytes()),
            headers: Vec::new(),
            value: format!(r#"{{"id":"id-{}","data":{}}}"#, event.sequence, event.data).into_bytes(),
        }
    }

    /// Three events and their records, as they should be.
    fn innocent() -> (Vec<Posted>, Vec<Message>) {
        let posted: Vec<Posted> = (0..3).map(event).collect();
        let records = posted.iter().zip(0..).map(|(event, offset)| record(event, offset)).collect();
        (posted, records)
    }

    fn charged(posted: &[Posted], records: &[Message], rules: Rules) -> Vec<(&'static str, usize)> {
        judge(posted, records, rules).charges().iter().map(|(name, found)| (*name, found.len())).collect()
    }

    #[test]
    fn the_innocent_are_acquitted() {
        let (posted, records) = innocent();
        let verdict = judge(&posted, &records, STRICT);
        assert_eq!((verdict.sent, verdict.answered, verdict.records, verdict.duplicates), (3, 3, 3, 0));
        assert!(verdict.charges().is_empty(), "{verdict:?}");
    }

    #[test]
    fn a_missing_record_is_lost_and_only_where_200_was_answered() {
        let (mut posted, mut records) = innocent();
        records.remove(1);
        let verdict = judge(&posted, &records, STRICT);
        assert_eq!(verdict.lost.len(), 1);
        assert!(verdict.lost[0].starts_with("t.a chat C1 event 1 answered 200 by relay 0"), "{}", verdict.lost[0]);
        posted[1].answered = None;
        assert_eq!(charged(&posted, &records, STRICT), []);
    }

    #[test]
    fn a_byte_a_key_or_a_topic_that_differs_is_an_altered_record() {
        let (posted, mut records) = innocent();
        let text = String::from_utf8_lossy(&records[0].value).replace(r#""payload":{}"#, r#""payload":{ }"#);
        records[0].value = text.into_bytes();
        records[1].key = Some(b"C2".to_vec());
        assert_eq!(charged(&posted, &records, STRICT), [("altered", 2)]);
        records[2].topic = "t.b".to_owned();
        assert_eq!(charged(&posted, &records, STRICT), [("lost", 1), ("altered", 3)]);
    }

    #[test]
    fn a_record_that_nobody_sent_is_invented() {
        let (posted, mut records) = innocent();
        records.push(record(&event(9), 3));
        records.push(Message { value: b"noise".to_vec(), ..record(&event(0), 4) });
        assert_eq!(charged(&posted, &records, STRICT), [("invented", 2)]);
    }

    #[test]
    fn a_record_before_its_elder_is_out_of_order() {
        let (posted, mut records) = innocent();
        records.swap(0, 1);
        assert_eq!(charged(&posted, &records, STRICT), [("out of order", 1)]);
        records.swap(0, 1);
        records[2].partition = 1;
        assert_eq!(charged(&posted, &records, STRICT), [("out of order", 1)]);
    }

    #[test]
    fn only_the_first_copy_has_to_keep_the_order() {
        let (mut posted, mut records) = innocent();
        posted[0].attempts = 2;
        records.push(record(&posted[0], 3));
        assert_eq!(charged(&posted, &records, STRICT), []);
        assert_eq!(judge(&posted, &records, STRICT).duplicates, 1);
    }

    #[test]
    fn two_relays_promise_order_each_for_itself() {
        let (mut posted, mut records) = innocent();
        if let Some(answered) = &mut posted[1].answered {
            answered.relay = 1;
        }
        records.swap(0, 1);
        let rules = Rules { order: Order::ChatAndRelay, ..STRICT };
        assert_eq!(charged(&posted, &records, rules), []);
        records.swap(1, 2);
        assert_eq!(charged(&posted, &records, rules), [("out of order", 1)]);
    }

    #[test]
    fn where_order_yields_nothing_is_out_of_it() {
        let (posted, mut records) = innocent();
        records.swap(0, 1);
        assert_eq!(charged(&posted, &records, Rules { order: Order::Yields, ..STRICT }), []);
    }

    #[test]
    fn a_duplicate_needs_an_explanation() {
        let (mut posted, mut records) = innocent();
        records.push(record(&posted[2], 3));
        assert_eq!(charged(&posted, &records, STRICT), [("unexplained duplicates", 1)]);
        assert_eq!(charged(&posted, &records, Rules { duplicates: true, ..STRICT }), []);
        posted[2].attempts = 2;
        assert_eq!(charged(&posted, &records, STRICT), []);
    }

    #[test]
    fn copies_have_one_id_and_different_events_have_different_ones() {
        let (mut posted, mut records) = innocent();
        posted[2].attempts = 2;
        let other = String::from_utf8_lossy(&records[2].value).replace("id-2", "id-7");
        records.push(Message { value: other.into_bytes(), ..record(&posted[2], 3) });
        assert_eq!(charged(&posted, &records, STRICT), [("wrong ids", 1)]);
        posted[2].is_named = false;
        assert_eq!(charged(&posted, &records, STRICT), []);
        let same = String::from_utf8_lossy(&records[1].value).replace("id-1", "id-0");
        records[1].value = same.into_bytes();
        assert_eq!(charged(&posted, &records, STRICT), [("wrong ids", 1)]);
    }

    #[test]
    fn a_dead_letter_counts_where_the_scenario_says_so() {
        let (posted, mut records) = innocent();
        records[1].topic = "t.dead-letter".to_owned();
        assert_eq!(charged(&posted, &records, STRICT), [("lost", 1), ("altered", 1)]);
        records[1].headers.push(("dead-letter-topic".to_owned(), b"t.a".to_vec()));
        assert_eq!(charged(&posted, &records, STRICT), [("lost", 1)]);
        assert_eq!(charged(&posted, &records, Rules { dead_letters: true, ..STRICT }), []);
    }
}
