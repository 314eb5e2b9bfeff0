//! The whole spool, its writer and lanes, over a disk that fails and loses power, against a model that is a list of events.

use proptest::collection::vec;
use proptest::prelude::*;
use tokio::sync::oneshot::error::TryRecvError;

use super::super::log::tests::disk::{EIO, ENOSPC, Fault, MemoryDisk, Operation};
use super::*;

const LANES: u8 = 3;
const BYTES_MAX: u64 = 6000;
/// So that there are many.
const SEGMENT: u32 = 1000;
/// What a dead letter has more than its entry: its reason, its error and its time.
const DEAD_LETTER_BYTES: u64 = 60;

#[derive(Clone, Debug)]
enum Action {
    Append {
        lane: u8,
        bytes: usize,
        waits: bool,
    },
    GiveTicket {
        lane: u8,
    },
    DropTicket,
    UseTicket {
        bytes: usize,
    },
    /// Reads a page, as replay does.
    Page {
        lane: u8,
        from: usize,
        records: usize,
    },
    /// One of those that were paged is on the brokers.
    Ack {
        at: usize,
    },
    StoreDeadLetter {
        at: usize,
    },
    /// Takes the bytes of what is acked off the disk.
    Erase {
        lane: u8,
        at: usize,
    },
    DropDeadLetter {
        at: usize,
    },
    Close {
        lane: u8,
    },
    KeepSpooling {
        lane: u8,
    },
    Fail {
        operation: usize,
        after: u64,
        times: u64,
    },
    Heal,
    Restart,
    PowerCut {
        after: u64,
        appends: u8,
        seed: u64,
    },
}

fn action() -> impl Strategy<Value = Action> {
    let (lane, bytes) = (0..LANES, 0_usize..900);
    prop_oneof![
        8 => (lane.clone(), bytes.clone(), any::<bool>()).prop_map(|(lane, bytes, waits)| Action::Append { lane, bytes, waits }),
        1 => lane.clone().prop_map(|lane| Action::GiveTicket { lane }),
        1 => Just(Action::DropTicket),
        1 => bytes.prop_map(|bytes| Action::UseTicket { bytes }),
        4 => (lane.clone(), any::<usize>(), 1_usize..6).prop_map(|(lane, from, records)| Action::Page { lane, from, records }),
        8 => any::<usize>().prop_map(|at| Action::Ack { at }),
        2 => any::<usize>().prop_map(|at| Action::StoreDeadLetter { at }),
        2 => (lane.clone(), any::<usize>()).prop_map(|(lane, at)| Action::Erase { lane, at }),
        1 => any::<usize>().prop_map(|at| Action::DropDeadLetter { at }),
        1 => lane.clone().prop_map(|lane| Action::Close { lane }),
        1 => lane.prop_map(|lane| Action::KeepSpooling { lane }),
        2 => (0..Operation::ALL.len(), 0_u64..20, 1_u64..3).prop_map(|(operation, after, times)| Action::Fail { operation, after, times }),
        3 => Just(Action::Heal),
        1 => Just(Action::Restart),
        1 => (0_u64..60, 0_u8..4, any::<u64>()).prop_map(|(after, appends, seed)| Action::PowerCut { after, appends, seed }),
    ]
}

/// Whether an event is somewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Is {
    There,
    /// What was to bring it there, or away, was answered with a failure, or the power was cut.
    Perhaps,
    Away,
}

/// An event that was handed in.
struct Event {
    lane: Arc<str>,
    record: Record,
    in_lane: Is,
    dead_letter: Is,
    /// It was accepted, and is neither acked nor dropped: it is in its lane or a dead letter, whatever has happened.
    is_owed: bool,
    /// Its answer is still to come.
    answer: Option<Fsynced>,
    /// Since when it stands in its lane: of two, the one with the lower place comes first.
    place: u64,
    /// It was a dead letter at some time: its entry may be larger.
    was_dead_letter: bool,
    /// A move of it has failed: it may stand in both places, and later twice in its lane.
    may_be_twice: bool,
}

/// The spool and the model.
struct Pair {
    disk: MemoryDisk,
    spool: Spool,
    events: Vec<Event>,
    places: u64,
    tickets: Vec<Ticket>,
    /// What was paged and not settled: lane, number, event.
    held: Vec<(Arc<str>, u64, usize)>,
}

fn start(disk: &MemoryDisk) -> Spool {
    let disk = disk.clone();
    let open = move || Log::open(Arc::new(disk.clone()), log::Config { segment_bytes: SEGMENT });
    let config = Config { bytes_max: BYTES_MAX, segment_bytes: SEGMENT, ..config(Path::new("/nowhere")) };
    Spool::start_with(config, Arc::new(Metrics::new()), open(), Box::new(open))
}

impl Pair {
    fn new() -> Self {
        let disk = MemoryDisk::default();
        let spool = start(&disk);
        Self { disk, spool, events: Vec::new(), places: 0, tickets: Vec::new(), held: Vec::new() }
    }

    /// Whether it waits for the disk.
    fn has_failed(&self) -> bool {
        match self.spool.lanes(|lanes| lanes.health().clone()) {
            Health::Accepting => false,
            Health::Full(why) => why.contains("os error"),
            Health::Failed(_) => true,
        }
    }

    fn place(&mut self) -> u64 {
        self.places += 1;
        self.places
    }

    fn act(&mut self, action: Action) -> Result<(), TestCaseError> {
        match action {
            Action::Append { lane, bytes, waits } => {
                let ticket = self.spool.ticket(&lane_name(lane));
                self.append(ticket, bytes);
                if waits {
                    self.settle(true);
                }
            }
            Action::GiveTicket { lane } => self.tickets.push(self.spool.ticket(&lane_name(lane))),
            Action::DropTicket => drop(self.tickets.pop()),
            Action::UseTicket { bytes } => {
                if let Some(ticket) = self.tickets.pop() {
                    self.append(ticket, bytes);
                }
            }
            Action::Page { lane, from, records } => self.page(&lane_name(lane), from, records)?,
            Action::Ack { at } => {
                let Some((lane, number, event)) = self.take_held(at) else { return Ok(()) };
                self.settle(true); // else a late answer would make it owed again
                self.spool.acked(&lane, number);
                (self.events[event].in_lane, self.events[event].is_owed) = (Is::Away, false);
            }
            Action::StoreDeadLetter { at } => self.store_dead_letter(at),
            Action::Erase { lane, at } => self.erase(lane, at),
            Action::DropDeadLetter { at } => self.drop_dead_letter(at)?,
            Action::Close { lane } => {
                let is_closing = self.spool.lanes(|lanes| lanes.close(&lane_name(lane)));
                prop_assert!(
                    is_closing || self.spool.lanes(|lanes| lanes.look(&lane_name(lane))).ok() == Some(Way::Direct)
                );
            }
            Action::KeepSpooling { lane } => self.spool.lanes(|lanes| lanes.keep_spooling(&lane_name(lane))),
            Action::Fail { operation, after, times } => {
                let errno = if after % 2 == 0 { EIO } else { ENOSPC };
                let fault = Fault { operation: Operation::ALL[operation], after, times, errno };
                self.disk.set_fault(Some(fault));
            }
            Action::Heal => self.heal()?,
            Action::Restart => self.restart(None)?,
            Action::PowerCut { after, appends, seed } => self.power_cut(after, appends, seed)?,
        }
        Ok(())
    }

    fn append(&mut self, ticket: Ticket, bytes: usize) {
        let (lane, event) = (Arc::clone(&ticket.topic), self.events.len());
        let value = [event.to_le_bytes().as_slice(), &vec![event as u8; bytes]].concat();
        let record =
            Record { topic: Arc::clone(&lane), key: format!("chat-{}", event % 4), headers: Vec::new(), value };
        let answer = Some(self.spool.append(ticket, record.clone()));
        let place = self.place();
        self.events.push(Event {
            lane,
            record,
            in_lane: Is::Perhaps,
            dead_letter: Is::Away,
            is_owed: false,
            answer,
            place,
            was_dead_letter: false,
            may_be_twice: false,
        });
    }

    /// Takes the answers that have come; with `all`, those that are still to come, too.
    fn settle(&mut self, all: bool) {
        for event in &mut self.events {
            let Some(mut answer) = event.answer.take() else { continue };
            let answered = match answer.try_recv() {
                Err(TryRecvError::Empty) if !all => {
                    event.answer = Some(answer);
                    continue;
                }
                Err(TryRecvError::Empty) => answer.blocking_recv().map_err(|_| Refused::Failed).flatten(),
                Err(TryRecvError::Closed) => Err(Refused::Failed),
                Ok(answered) => answered,
            };
            // What was refused may be there after a restart, if its segment could not be closed.
            if answered.is_ok() {
                (event.in_lane, event.is_owed) = (Is::There, true);
            }
        }
    }

    /// Replay reads a page from some number on.
    fn page(&mut self, lane: &Arc<str>, from: usize, records: usize) -> Result<(), TestCaseError> {
        self.settle(true);
        let all = self.read(lane);
        let from = if all.is_empty() { 0 } else { all[from % all.len()].number };
        let page: Vec<_> = all.into_iter().filter(|found| found.number >= from).take(records).collect();
        for found in page {
            let event = self.known(&found)?;
            if !self.held.iter().any(|(_, number, _)| *number == found.number) {
                self.held.push((Arc::clone(lane), found.number, event));
            }
        }
        Ok(())
    }

    /// All of a lane, on a disk that can be read.
    fn read(&self, lane: &str) -> Vec<Item> {
        let fault = self.disk.set_fault(None);
        let page = self.spool.page(lane, 0, 1000, usize::MAX);
        self.disk.set_fault(fault);
        page
    }

    fn take_held(&mut self, at: usize) -> Option<(Arc<str>, u64, usize)> {
        let at = at.checked_rem(self.held.len())?;
        Some(self.held.swap_remove(at))
    }

    fn store_dead_letter(&mut self, at: usize) {
        self.settle(true);
        let Some((lane, number, event)) = self.take_held(at) else { return };
        let why = DeadLetter { reason: "too_large".to_owned(), error: "MessageSizeTooLarge".to_owned(), since_ms: 1 };
        let entry = Entry { dead_letter: Some(why), ..Entry::new(self.events[event].record.clone()) };
        let answer = self.spool.store_dead_letter(entry, Some((lane, number))).blocking_recv();
        let event = &mut self.events[event];
        event.was_dead_letter = true;
        (event.in_lane, event.dead_letter) = if answer == Ok(Ok(())) {
            (Is::Away, Is::There)
        } else {
            (event.in_lane, Is::Perhaps) // as after a failed append
        };
    }

    fn drop_dead_letter(&mut self, at: usize) -> Result<(), TestCaseError> {
        self.settle(true);
        let dead_letters = self.read(DEAD_LETTERS);
        let Some(found) = at.checked_rem(dead_letters.len()).map(|at| &dead_letters[at]) else { return Ok(()) };
        let event = self.known(found)?;
        let answer = self.spool.drop_dead_letter(found.number).blocking_recv();
        let event = &mut self.events[event];
        event.dead_letter = if answer == Ok(Ok(())) { Is::Away } else { Is::Perhaps };
        event.is_owed = false;
        Ok(())
    }

    /// The segment of an event that waits, or one that is not there.
    fn erase(&mut self, lane: u8, at: usize) {
        self.settle(true);
        let waiting = self.read(&lane_name(lane));
        let segment = at.checked_rem(waiting.len()).map_or(at as u64 % 10, |at| waiting[at].number / log::SPAN);
        let answer = self.spool.erase(segment).blocking_recv();
        assert!(answer.is_ok(), "there is an answer, whatever the disk does");
    }

    /// The disk works again.
    fn heal(&mut self) -> Result<(), TestCaseError> {
        self.settle(true);
        self.disk.set_fault(None);
        let began = Instant::now();
        // A commit that is under way may still meet the fault that was.
        while self.has_failed() || self.spool.drop_dead_letter(u64::MAX).blocking_recv() == Ok(Err(Refused::Failed)) {
            let health = self.spool.lanes(|lanes| lanes.health().clone());
            prop_assert!(began.elapsed() < DEADLINE, "it takes nothing again: {health:?}");
            std::thread::yield_now();
        }
        Ok(())
    }

    fn power_cut(&mut self, after: u64, appends: u8, seed: u64) -> Result<(), TestCaseError> {
        self.disk.die_in(after);
        for lane in 0..appends {
            let ticket = self.spool.ticket(&lane_name(lane % LANES));
            self.append(ticket, 100);
        }
        if seed.is_multiple_of(2) {
            self.settle(true);
        }
        let cut = self.disk.cut(seed);
        self.restart(Some(cut))
    }

    fn restart(&mut self, cut: Option<MemoryDisk>) -> Result<(), TestCaseError> {
        self.settle(true);
        self.spool.close();
        self.disk.set_fault(None);
        self.disk = cut.unwrap_or_else(|| self.disk.clone());
        self.tickets.clear();
        self.held.clear();
        for event in &mut self.events {
            // What is acked is saved later; and an append that has failed may have written something.
            event.in_lane = event.in_lane.or_perhaps();
            event.dead_letter = event.dead_letter.or_perhaps();
            event.may_be_twice |= event.was_dead_letter;
        }
        self.spool = start(&self.disk);
        prop_assert!(!self.has_failed(), "it starts: {:?}", self.spool.lanes(|lanes| lanes.health().clone()));
        Ok(())
    }

    /// Which event an entry is; it is exactly what was handed in.
    fn known(&self, found: &Item) -> Result<usize, TestCaseError> {
        let Ok(entry) = &found.entry else { return Err(TestCaseError::fail(format!("{found:?} cannot be read"))) };
        let event = entry.record.value.first_chunk().map_or(usize::MAX, |bytes| usize::from_le_bytes(*bytes));
        prop_assert_eq!(self.events.get(event).map(|event| &event.record), Some(&entry.record));
        Ok(event)
    }

    /// All that was promised.
    fn check(&mut self) -> Result<(), TestCaseError> {
        for lane in (0..LANES).map(lane_name) {
            let is_direct = self.spool.lanes(|lanes| lanes.look(&lane)).ok() == Some(Way::Direct);
            self.settle(is_direct);
            if is_direct {
                let owed =
                    self.events.iter().any(|event| event.lane == lane && event.is_owed && event.in_lane == Is::There);
                prop_assert!(!owed, "{lane} is direct, and has something that is not acked");
                prop_assert!(
                    !self.tickets.iter().any(|ticket| ticket.topic == lane),
                    "{} is direct in spite of a ticket",
                    lane
                );
            }
            self.check_lane(&lane)?;
        }
        self.check_dead_letters()?;
        // What moves needs no room of the budget, and stands in both places meanwhile, or until it is acked again after a restart.
        let moved = self.events.iter().filter(|event| event.was_dead_letter);
        let moved: u64 = moved.map(|event| 2 * event.record.value.len() as u64 + 10 * DEAD_LETTER_BYTES).sum();
        let used = self.spool.lanes(|lanes| lanes.total().bytes + lanes.dead_letters().bytes);
        prop_assert!(used <= BYTES_MAX + moved, "the budget is exceeded: {used}");
        Ok(())
    }

    fn check_lane(&mut self, lane: &Arc<str>) -> Result<(), TestCaseError> {
        let due: Vec<_> = (0..self.events.len()).filter(|event| self.events[*event].in_lane == Is::There).collect();
        let page = self.read(lane);
        let mut place = 0;
        let mut found = Vec::new();
        for numbered in &page {
            let event = self.known(numbered)?;
            let of = &self.events[event];
            found.push(event);
            if of.may_be_twice {
                continue;
            }
            prop_assert!(of.lane == *lane && of.in_lane != Is::Away, "event {event} is in {lane}, and should not");
            prop_assert!(of.place > place, "event {event} is not in its order");
            place = of.place;
        }
        let missing: Vec<_> =
            due.into_iter().filter(|event| self.events[*event].lane == *lane && !found.contains(event)).collect();
        prop_assert!(missing.is_empty(), "events {missing:?} are not in {lane}");
        Ok(())
    }

    fn check_dead_letters(&mut self) -> Result<(), TestCaseError> {
        let dead_letters = self.read(DEAD_LETTERS);
        let dead_letters = dead_letters.iter().map(|found| self.known(found)).collect::<Result<Vec<_>, _>>()?;
        let mut in_lanes = Vec::new();
        for found in (0..LANES).flat_map(|lane| self.read(&lane_name(lane))) {
            in_lanes.push(self.known(&found)?);
        }
        for (number, event) in self.events.iter().enumerate() {
            let is_one = dead_letters.contains(&number);
            prop_assert!(is_one || event.dead_letter != Is::There, "event {number} is not among the dead letters");
            prop_assert!(!is_one || event.dead_letter != Is::Away, "event {number} is among the dead letters");
            prop_assert!(!event.is_owed || is_one || in_lanes.contains(&number), "event {number} is lost");
        }
        Ok(())
    }

    /// Everything is acked or dropped: nothing is left, and all ways are direct, now and after the next start.
    fn drain(mut self) -> Result<(), TestCaseError> {
        self.heal()?;
        self.check()?;
        self.tickets.clear();
        for lane in (0..LANES).map(lane_name) {
            for found in self.read(&lane) {
                let event = self.known(&found)?;
                self.spool.acked(&lane, found.number);
                (self.events[event].in_lane, self.events[event].is_owed) = (Is::Away, false);
            }
            prop_assert_eq!(self.spool.lanes(|lanes| lanes.look(&lane)).ok(), Some(Way::Direct));
        }
        for found in self.read(DEAD_LETTERS) {
            prop_assert_eq!(self.spool.drop_dead_letter(found.number).blocking_recv(), Ok(Ok(())));
            let event = self.known(&found)?;
            (self.events[event].dead_letter, self.events[event].is_owed) = (Is::Away, false);
        }
        prop_assert_eq!(self.spool.lanes(|lanes| lanes.total().bytes + lanes.dead_letters().bytes), 0);
        let ticket = self.spool.ticket(&lane_name(0));
        self.append(ticket, 5000);
        self.settle(true);
        prop_assert!(self.events.last().is_some_and(|event| event.is_owed), "an empty spool takes what fits");
        self.check()?;
        self.spool.close();
        let (reader, _) = Reader::open(Arc::new(self.disk.clone())).expect("a reader");
        prop_assert_eq!(reader.lanes().values().map(|size| size.records).sum::<u64>(), 1);
        Ok(())
    }
}

impl Is {
    /// After a restart what is there is there still, and what was away may have come back.
    const fn or_perhaps(self) -> Self {
        match self {
            Self::There => Self::There,
            Self::Away | Self::Perhaps => Self::Perhaps,
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn what_was_accepted_stays_in_its_order_until_it_is_acked_whatever_the_disk_does(actions in vec(action(), 1..60)) {
        let mut pair = Pair::new();
        for action in actions {
            let told = format!("{action:?}");
            let done = pair.act(action).and_then(|()| pair.check());
            done.map_err(|error| TestCaseError::fail(format!("after {told}: {error}")))?;
        }
        pair.drain()?;
    }
}
