//! Company under load: while many records are on their way, a new one waits a moment, and those that came in that moment
//! are handed over together. Batches are larger then, which saves both sides work; a record with few others around it waits
//! for nothing. librdkafka's own `linger.ms` knows no load: a lone record waits as long as one of a thousand.

use std::cmp;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crossbeam_utils::CachePadded;

use super::report::Slot;

/// When records wait for company, and for how long.
#[derive(Clone, Copy, Debug)]
pub struct Busy {
    /// From so many records on their way.
    pub records: u64,
    /// At most so long, and no longer than acks take of late; zero: never.
    pub linger: Duration,
}

/// Records that wait for company. Their number has the limits of the requests that wait for them.
pub(super) struct Company {
    busy: Busy,
    waiting: Mutex<Waiting>,
    came: Condvar,
    /// Held while records are handed over, so that none overtakes another; empty between.
    handing_over: Mutex<Vec<Arc<Slot>>>,
    /// Those that wait, and those that are being handed over. Who comes after them joins them, busy or not.
    records: AtomicUsize,
    /// How long acks take of late, in microseconds.
    ack_micros: CachePadded<AtomicU32>,
}

#[derive(Default)]
struct Waiting {
    slots: Vec<Arc<Slot>>,
    is_over: bool,
}

impl Company {
    pub(super) fn new(busy: Busy) -> Self {
        Self {
            busy,
            waiting: Mutex::default(),
            came: Condvar::new(),
            handing_over: Mutex::default(),
            records: AtomicUsize::new(0),
            ack_micros: CachePadded::default(),
        }
    }

    /// An ack came, so long after its record was there: the wait for company included.
    pub(super) fn acked(&self, took: Duration) {
        let usual = self.ack_micros.load(Ordering::Relaxed);
        let took = u32::try_from(took.as_micros()).unwrap_or(u32::MAX);
        // Of two at the same time one may get lost.
        self.ack_micros.store(usual - usual / 16 + took / 16, Ordering::Relaxed);
    }

    /// How long a record waits for company now. The slower the brokers, the more they are helped by larger batches, and the less
    /// the wait is felt.
    fn wait(&self) -> Duration {
        self.busy.linger.min(Duration::from_micros(self.ack_micros.load(Ordering::Relaxed).into()))
    }

    /// Whether the record waits, to be handed over in a moment; else it may be handed over at once.
    pub(super) fn takes(&self, slot: &Arc<Slot>, in_flight: i64) -> bool {
        if !self.is_busy(in_flight) && self.records.load(Ordering::Acquire) == 0 {
            return false;
        }
        let mut waiting = lock(&self.waiting);
        self.records.fetch_add(1, Ordering::Release);
        waiting.slots.push(Arc::clone(slot));
        let is_first = waiting.slots.len() == 1;
        drop(waiting);
        if is_first {
            self.came.notify_one();
        }
        true
    }

    fn is_busy(&self, in_flight: i64) -> bool {
        !self.busy.linger.is_zero() && u64::try_from(in_flight).is_ok_and(|records| records >= self.busy.records)
    }

    /// Hands over what waits: topic by topic, so that librdkafka, which sends a partition's records when it sees the first, soon has
    /// all of them; within a topic in the order in which they came.
    pub(super) fn hand_over(&self, produce: impl Fn(&Arc<Slot>)) {
        let mut batch = lock(&self.handing_over);
        std::mem::swap(&mut lock(&self.waiting).slots, &mut *batch);
        let records = batch.len();
        batch.sort_by(|one, other| by_name(&one.record.topic, &other.record.topic)); // equals keep their order
        for slot in batch.drain(..) {
            produce(&slot);
        }
        self.records.fetch_sub(records, Ordering::Release);
    }

    /// Hands over what comes to wait, each time a moment after the first, until the company is over and nothing is left.
    pub(super) fn keep(&self, produce: impl Fn(&Arc<Slot>), in_flight: impl Fn() -> i64) {
        loop {
            let waiting = self.came.wait_while(lock(&self.waiting), |w| w.slots.is_empty() && !w.is_over);
            let waiting = waiting.unwrap_or_else(PoisonError::into_inner);
            if waiting.slots.is_empty() {
                return;
            }
            // The last of a crowd wait for nobody.
            if self.is_busy(in_flight()) {
                drop(self.came.wait_timeout_while(waiting, self.wait(), |w| !w.is_over));
            } else {
                drop(waiting);
            }
            self.hand_over(&produce);
        }
    }

    /// Nothing will come any more.
    pub(super) fn end(&self) {
        lock(&self.waiting).is_over = true;
        self.came.notify_one();
    }
}

/// Equal topics are nearly always the same text.
fn by_name(topic: &Arc<str>, other: &Arc<str>) -> cmp::Ordering {
    if Arc::ptr_eq(topic, other) { cmp::Ordering::Equal } else { topic.cmp(other) }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::sync::atomic::{AtomicBool, AtomicI64};
    use std::thread;
    use std::time::Instant;

    use proptest::prelude::*;

    use super::*;
    use crate::event::Record;

    const LONG: Duration = Duration::from_secs(3600);

    fn slot(number: usize) -> Arc<Slot> {
        slot_of("t", number)
    }

    fn slot_of(topic: &str, number: usize) -> Arc<Slot> {
        let record = Record { topic: topic.into(), key: number.to_string(), headers: Vec::new(), value: Vec::new() };
        Arc::new(Slot::new(record, Instant::now()))
    }

    /// Acks take long.
    fn company(records: u64, linger: Duration) -> Company {
        let company = Company::new(Busy { records, linger });
        company.ack_micros.store(u32::MAX, Ordering::Relaxed);
        company
    }

    fn handed_over(company: &Company) -> Vec<String> {
        let handed_over = Mutex::<Vec<String>>::default();
        company.hand_over(|slot| lock(&handed_over).push(slot.record.key.clone()));
        handed_over.into_inner().expect("nobody panicked")
    }

    #[test]
    fn records_wait_for_company_from_the_limit_on_and_never_where_it_is_off() {
        assert!(!company(100, LONG).takes(&slot(1), 99));
        assert!(company(100, LONG).takes(&slot(1), 100));
        assert!(!company(100, Duration::ZERO).takes(&slot(1), i64::MAX));
        assert!(!company(1, LONG).takes(&slot(1), -1));
    }

    #[test]
    fn a_record_joins_those_that_wait_though_the_crowd_is_gone() {
        let company = company(100, LONG);
        assert!(company.takes(&slot(1), 100));
        assert!(company.takes(&slot(2), 0), "it would overtake the first");
        assert_eq!(handed_over(&company), ["1", "2"]);
        assert!(!company.takes(&slot(3), 0));
        assert_eq!(handed_over(&company), [""; 0]);
    }

    #[test]
    fn what_is_handed_over_together_goes_topic_by_topic_and_in_a_topic_as_it_came() {
        let company = company(1, LONG);
        for (number, topic) in ["b", "a", "c", "a", "b", "a"].into_iter().enumerate() {
            assert!(company.takes(&slot_of(topic, number), 1));
        }
        assert_eq!(handed_over(&company), ["1", "3", "5", "0", "4", "2"]);
    }

    #[test]
    fn while_others_are_handed_over_a_record_waits() {
        let company = company(100, LONG);
        assert!(company.takes(&slot(1), 100));
        company.hand_over(|_| assert!(company.takes(&slot(2), 0)));
        assert_eq!(handed_over(&company), ["2"]);
    }

    #[test]
    fn a_record_waits_no_longer_than_acks_take_nor_than_it_may() {
        let company = Company::new(Busy { records: 1, linger: Duration::from_millis(8) });
        assert_eq!(company.wait(), Duration::ZERO, "no ack came yet");
        let acked = |took: Duration| (0..1000).for_each(|_| company.acked(took));
        acked(Duration::from_millis(2));
        assert!((1900..=2100).contains(&company.wait().as_micros()), "{:?}", company.wait());
        acked(Duration::from_secs(10_000));
        assert_eq!(company.wait(), Duration::from_millis(8));
        acked(Duration::ZERO);
        assert!(company.wait() < Duration::from_micros(20), "{:?}", company.wait());
    }

    #[test]
    fn at_its_end_nothing_is_left() {
        let (company, handed_over) = (company(1, LONG), Mutex::new(0));
        thread::scope(|scope| {
            scope.spawn(|| company.keep(|_| *lock(&handed_over) += 1, || 1));
            (0..10).for_each(|number| assert!(company.takes(&slot(number), 1)));
            company.end(); // an hour before their time
        });
        assert_eq!(*lock(&handed_over), 10);
    }

    proptest! {
        /// Whatever the load does meanwhile.
        #[test]
        fn no_record_overtakes_another_of_its_topic(loads in proptest::collection::vec(0_i64..4, 1..300)) {
            let company = company(2, Duration::from_micros(50));
            let topic = |number: usize| ["a", "b", "c"][number % 3];
            let (load, is_held) = (AtomicI64::new(0), AtomicBool::new(false));
            let came = Mutex::<HashMap<String, Vec<String>>>::default();
            let produce = |slot: &Arc<Slot>| {
                lock(&came).entry(slot.record.topic.to_string()).or_default().push(slot.record.key.clone());
            };
            thread::scope(|scope| {
                scope.spawn(|| company.keep(produce, || load.load(Ordering::Relaxed)));
                for (number, &now) in loads.iter().enumerate() {
                    load.store(now, Ordering::Relaxed);
                    let slot = slot_of(topic(number), number);
                    if company.takes(&slot, now) {
                        is_held.store(true, Ordering::Relaxed);
                    } else {
                        produce(&slot);
                    }
                }
                company.end();
            });
            let mut sent = HashMap::<String, Vec<String>>::new();
            for number in 0..loads.len() {
                sent.entry(topic(number).to_owned()).or_default().push(number.to_string());
            }
            prop_assert_eq!(came.into_inner().expect("nobody panicked"), sent);
            prop_assert_eq!(is_held.into_inner(), loads.iter().any(|&load| load >= 2));
        }
    }
}
