//! The log over a disk that fails, fills up and loses power, against a model that is a list of events.

use std::collections::BTreeMap;

use proptest::collection::vec;
use proptest::prelude::*;

use super::disk::{EACCES, EIO, ENOSPC, Fault, MemoryDisk, Operation};
use super::*;

#[derive(Clone, Debug)]
enum Action {
    Append {
        events: usize,
        value_bytes: usize,
    },
    Ack {
        at: usize,
        events: usize,
    },
    AckLane {
        lane: usize,
    },
    Tidy,
    Rewrite,
    /// Takes the bytes of what is acked of a segment off the disk.
    Erase {
        at: u64,
    },
    Fail(Fault),
    Heal,
    Fill {
        free: u64,
        has_hungry_neighbour: bool,
    },
    MakeRoom,
    /// The process is killed.
    Restart,
    /// It is closed as it should be.
    Close,
    /// It is opened while something fails, and killed again.
    RestartFailing(Fault),
    PowerCut {
        after: u64,
        appends: usize,
        seed: u64,
    },
}

fn fault() -> impl Strategy<Value = Fault> {
    let errno = prop_oneof![Just(EIO), Just(ENOSPC), Just(EACCES)];
    let times = prop_oneof![1_u64..4, Just(u64::MAX)];
    (0..Operation::ALL.len(), 0_u64..8, times, errno).prop_map(|(operation, after, times, errno)| Fault {
        operation: Operation::ALL[operation],
        after,
        times,
        errno,
    })
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        10 => (1_usize..6, 0_usize..900).prop_map(|(events, value_bytes)| Action::Append { events, value_bytes }),
        6 => (any::<usize>(), 1_usize..20).prop_map(|(at, events)| Action::Ack { at, events }),
        2 => (0..LANES.len()).prop_map(|lane| Action::AckLane { lane }),
        5 => Just(Action::Tidy),
        2 => Just(Action::Rewrite),
        2 => any::<u64>().prop_map(|at| Action::Erase { at }),
        3 => fault().prop_map(Action::Fail),
        2 => Just(Action::Heal),
        1 => (0_u64..20_000, any::<bool>()).prop_map(|(free, has_hungry_neighbour)| Action::Fill { free, has_hungry_neighbour }),
        1 => Just(Action::MakeRoom),
        2 => Just(Action::Restart),
        1 => Just(Action::Close),
        1 => fault().prop_map(Action::RestartFailing),
        2 => (0_u64..40, 0_usize..5, any::<u64>()).prop_map(|(after, appends, seed)| Action::PowerCut { after, appends, seed }),
    ]
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Is {
    /// It was appended, and is not acked.
    There,
    /// It was acked, or its append has failed.
    Away,
    /// So it was before a restart: it may be there again.
    Perhaps,
}

struct Event {
    entry: Entry,
    number: Option<u64>,
    is: Is,
}

/// The log and the model.
pub struct Pair {
    disk: MemoryDisk,
    log: Log,
    events: Vec<Event>,
    /// How many entries were appended to a lane in a segment.
    appended: BTreeMap<(u64, String), u64>,
}

type Checked = std::result::Result<(), TestCaseError>;

impl Pair {
    fn new() -> Self {
        let disk = MemoryDisk::default();
        let (log, _) = opened(&disk);
        Self { disk, log, events: Vec::new(), appended: BTreeMap::new() }
    }

    fn act(&mut self, action: Action) -> Checked {
        match action {
            Action::Append { events, value_bytes } => self.append(events, value_bytes)?,
            Action::Ack { at, events } => self.ack(at, events)?,
            Action::AckLane { lane } => self.ack_lane(LANES[lane])?,
            Action::Tidy => drop(self.log.tidy()),
            Action::Rewrite => drop(self.log.rewrite_sparse()),
            Action::Erase { at } => drop(self.log.erase(at % self.log.next)),
            Action::Fail(fault) => drop(self.disk.set_fault(Some(fault))),
            Action::Heal => drop(self.disk.set_fault(None)),
            Action::Fill { free, has_hungry_neighbour } => self.disk.set_free(Some(free), has_hungry_neighbour),
            Action::MakeRoom => self.disk.set_free(None, false),
            Action::Restart => self.restart()?,
            Action::Close => {
                let (log, _) = opened(&MemoryDisk::default());
                drop(std::mem::replace(&mut self.log, log).close()); // an error leaves more for the next start
                self.restart()?;
            }
            Action::RestartFailing(fault) => {
                self.disk.set_fault(Some(fault));
                if let Ok((log, found)) = Log::open(Arc::new(self.disk.clone()), SEGMENT) {
                    self.log = log;
                    if found.has_lost_state {
                        // Numbers of segments that are no more may be used again.
                        let files = self.disk.files();
                        self.appended.retain(|(segment, _), _| files.contains_key(&file_name(*segment)));
                    }
                    self.forget();
                    self.append(2, 300)?;
                    drop(self.log.tidy());
                    self.disk.set_fault(None);
                    self.log.retry_unreadable();
                    self.check()?;
                }
                self.disk.set_fault(None);
                self.restart()?;
            }
            Action::PowerCut { after, appends, seed } => {
                self.disk.die_in(after);
                (0..appends).try_for_each(|_| self.append(3, 500))?;
                drop(self.log.tidy());
                drop(self.log.rewrite_sparse());
                drop(self.log.erase(seed % self.log.next));
                self.power_cut(seed)?;
            }
        }
        Ok(())
    }

    fn append(&mut self, events: usize, value_bytes: usize) -> Checked {
        let first = self.events.len();
        let entries: Vec<_> = (first..first + events).map(|event| entry(event, value_bytes)).collect();
        let appended = self.log.append(&entries.iter().map(|entry| (&*entry.record.topic, entry)).collect::<Vec<_>>());
        let numbers = appended.ok().filter(|_| !self.disk.is_dead());
        for (at, entry) in entries.into_iter().enumerate() {
            let number = numbers.as_ref().map(|numbers| numbers[at]);
            if let Some(number) = number {
                let appended = self.appended.entry((number / SPAN, entry.record.topic.to_string())).or_default();
                prop_assert_eq!(number % SPAN, *appended, "numbers have a gap");
                *appended += 1;
            }
            let is = if number.is_some() { Is::There } else { Is::Away };
            self.events.push(Event { entry, number, is });
        }
        Ok(())
    }

    fn ack(&mut self, at: usize, events: usize) -> Checked {
        let lane = LANES[at % LANES.len()];
        let page = self.read_from(lane, 0, usize::MAX)?;
        let from = at.checked_rem(page.len()).unwrap_or(0);
        for (number, event) in page.into_iter().skip(from).take(events) {
            self.ack_one(lane, number, event)?;
        }
        Ok(())
    }

    fn ack_one(&mut self, lane: &str, number: u64, event: usize) -> Checked {
        prop_assert!(self.log.ack(lane, number), "it was there, and could not be acked");
        prop_assert!(!self.log.ack(lane, number), "it was acked twice");
        self.events[event].is = Is::Away;
        Ok(())
    }

    fn ack_lane(&mut self, lane: &str) -> Checked {
        let page = self.read_from(lane, 0, usize::MAX)?;
        page.into_iter().try_for_each(|(number, event)| self.ack_one(lane, number, event))
    }

    /// The process was killed, and what it knew is gone.
    fn forget(&mut self) {
        self.events.iter_mut().filter(|event| event.is == Is::Away).for_each(|event| event.is = Is::Perhaps);
    }

    fn restart(&mut self) -> Checked {
        let fault = self.disk.set_fault(None);
        self.check_read_only()?;
        let (log, found) = opened(&self.disk);
        self.log = log;
        self.forget();
        let is_whole = found.missing.is_empty() && found.aside.is_empty() && !found.has_lost_state;
        prop_assert!(is_whole && (self.disk.is_full() || found.errors.is_empty()), "{found:?}");
        self.disk.set_fault(fault);
        Ok(())
    }

    fn power_cut(&mut self, seed: u64) -> Checked {
        self.disk = self.disk.cut(seed);
        self.forget();
        self.restart()
    }

    /// Looking changes nothing, and shows all that is there.
    fn check_read_only(&mut self) -> Checked {
        self.forget();
        let (files, changes) = (self.disk.files(), self.disk.changes());
        let (reader, _) = Reader::open(Arc::new(self.disk.clone())).expect("a reader");
        self.check_reader(&reader)?;
        prop_assert!(files == self.disk.files() && changes == self.disk.changes(), "looking has changed something");
        Ok(())
    }

    fn check(&self) -> Checked {
        let fault = self.disk.set_fault(None);
        if !self.disk.is_dead() {
            self.check_reader(&self.log)?;
        }
        self.disk.set_fault(fault);
        Ok(())
    }

    fn check_reader(&self, reader: &Reader) -> Checked {
        let mut found = BTreeSet::new();
        let mut lanes = BTreeMap::new();
        for lane in LANES {
            let page = Self::pages(reader, lane)?;
            let events = page.iter().map(|item| self.known(item, lane)).collect::<std::result::Result<Vec<_>, _>>()?;
            prop_assert!(
                events.is_sorted_by(|a, b| a < b),
                "{lane} is not in order, or has something twice: {events:?}"
            );
            if !page.is_empty() {
                lanes.insert(lane.to_owned(), page.len() as u64);
            }
            found.extend(events);
        }
        let counted = reader.lanes().into_iter().map(|(lane, size)| (lane, size.records));
        prop_assert_eq!(counted.collect::<BTreeMap<_, _>>(), lanes);
        for (number, event) in self.events.iter().enumerate() {
            let is_found = found.contains(&number);
            prop_assert!(is_found || event.is != Is::There, "event {number} is lost");
            prop_assert!(!is_found || event.is != Is::Away, "event {number} is there, and should not");
        }
        Ok(())
    }

    fn pages(reader: &Reader, lane: &str) -> std::result::Result<Vec<Item>, TestCaseError> {
        let mut items: Vec<Item> = Vec::new();
        let mut from = 0;
        loop {
            let page = reader.read(lane, from, 7, 1500);
            let bytes: usize = page.iter().rev().skip(1).map(|item| item.bytes).sum();
            prop_assert!(page.len() <= 7 && bytes < 1500, "a page is too large");
            let Some(last) = page.last() else { return Ok(items) };
            from = last.number + 1;
            items.extend(page);
        }
    }

    fn read_from(
        &self,
        lane: &str,
        from: u64,
        records: usize,
    ) -> std::result::Result<Vec<(u64, usize)>, TestCaseError> {
        let fault = self.disk.set_fault(None);
        let page = self.log.read(lane, from, records, usize::MAX);
        self.disk.set_fault(fault);
        page.iter().map(|item| Ok((item.number, self.known(item, lane)?))).collect()
    }

    /// Which event it is; it is exactly what was handed in.
    fn known(&self, item: &Item, lane: &str) -> std::result::Result<usize, TestCaseError> {
        let Ok(entry) = &item.entry else {
            return Err(TestCaseError::fail(format!("{} of {lane} is broken", item.number)));
        };
        let number = event_of(entry);
        let Some(event) = self.events.get(number) else { return Err(TestCaseError::fail("it was never handed in")) };
        prop_assert_eq!(entry, &event.entry);
        prop_assert_eq!(&*entry.record.topic, lane);
        prop_assert!(event.number.is_none_or(|number| number == item.number), "its number has changed");
        Ok(number)
    }

    /// All is acked: no segment is left.
    fn drain(mut self) -> Checked {
        self.disk.set_fault(None);
        self.disk.set_free(None, false);
        self.check()?;
        LANES.into_iter().try_for_each(|lane| self.ack_lane(lane))?;
        self.log.close().map_err(|error| TestCaseError::fail(error.to_string()))?;
        drop(opened(&self.disk)); // it removes what could not be unlinked
        let names: Vec<_> = self.disk.files().into_keys().collect();
        prop_assert_eq!(names, ["state"]);
        Ok(())
    }
}

/// A life in which each kind of change to the disk comes up.
fn life() -> Vec<Action> {
    let mut life = Vec::new();
    for value_bytes in [100, 700] {
        (0..8).for_each(|_| life.push(Action::Append { events: 5, value_bytes }));
        life.extend([Action::AckLane { lane: 0 }, Action::Tidy, Action::AckLane { lane: 1 }, Action::Tidy]);
        life.push(Action::Ack { at: 2, events: usize::MAX });
        life.extend([Action::Tidy, Action::Rewrite, Action::Erase { at: 3 }]);
        life.extend([Action::Append { events: 2, value_bytes }, Action::Restart]);
    }
    life.extend([
        Action::AckLane { lane: 2 },
        Action::Tidy,
        Action::Append { events: 1, value_bytes: 20_000 },
        Action::Close,
    ]);
    life
}

#[test]
fn what_was_appended_survives_a_power_cut_at_each_change() {
    let mut whole = Pair::new();
    life().into_iter().for_each(|action| whole.act(action).expect("it goes well"));
    let changes = whole.disk.changes();
    assert!(changes > 100, "{changes}");
    for after in 0..changes {
        for seed in 0..3 {
            let mut pair = Pair::new();
            pair.disk.die_in(after);
            for action in life() {
                if pair.disk.is_dead() {
                    break;
                }
                if !matches!(action, Action::Restart | Action::Close) {
                    pair.act(action).unwrap_or_else(|error| panic!("change {after}: {error}"));
                }
            }
            let checked =
                pair.power_cut(seed * changes + after).and_then(|()| pair.check()).and_then(|()| pair.drain());
            checked.unwrap_or_else(|error| panic!("change {after}, seed {seed}: {error}"));
        }
    }
}

/// After a failed sync and a kill the system may show what is not on the disk. It turned up as damage when the next sync failed, or the
/// power did.
#[test]
fn a_commit_whose_sync_has_failed_is_there_or_not_and_never_damaged() {
    let fail = |after, times| Action::Fail(Fault { operation: Operation::Sync, after, times, errno: EIO });
    let append = |events, value_bytes| Action::Append { events, value_bytes };
    let restart = || Action::Restart;
    for seed in 0..100 {
        let next_sync_fails =
            vec![append(3, 400), fail(0, u64::MAX), append(3, 700), restart(), append(1, 0), Action::Tidy];
        let power_fails = vec![
            append(1, 0),
            fail(3, 1),
            restart(),
            append(3, 700),
            append(1, 0),
            restart(),
            Action::PowerCut { after: 3, appends: 0, seed },
        ];
        for life in [next_sync_fails, power_fails] {
            let mut pair = Pair::new();
            pair.disk.set_chance(seed);
            for action in life {
                let done = pair.act(action).and_then(|()| pair.check());
                done.unwrap_or_else(|error| panic!("seed {seed}: {error}"));
            }
            pair.drain().unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn what_was_appended_stays_in_its_order_until_it_is_acked_whatever_the_disk_does(actions in vec(action(), 1..60)) {
        let mut pair = Pair::new();
        for action in actions {
            let told = format!("{action:?}");
            let done = pair.act(action).and_then(|()| pair.check());
            done.map_err(|error| TestCaseError::fail(format!("after {told}: {error}")))?;
        }
        pair.drain()?;
    }
}
