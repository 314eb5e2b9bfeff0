//! The whole spool, its writer and lanes, over a disk that fails and loses power, against a model that is a list of events.

use std::sync::atomic::AtomicBool;

use proptest::collection::vec;
use proptest::prelude::*;
use tokio::sync::oneshot::error::TryRecvError;

use super::backend::{Disk, EIO, ENOSPC, Operation};
use super::*;

const LANES: u8 = 3;
const BYTES_MAX: u64 = 6000;
/// So that there are many.
const SEGMENT: u64 = 1000;
/// What parking adds to an entry: its reason, its error and its time.
const PARKED_BYTES: u64 = 40;
/// Nothing takes so long.
const DEADLINE: Duration = Duration::from_secs(20);

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
    Park {
        at: usize,
    },
    Requeue {
        at: usize,
    },
    DropParked {
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
    Reopen,
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
        2 => any::<usize>().prop_map(|at| Action::Park { at }),
        2 => any::<usize>().prop_map(|at| Action::Requeue { at }),
        1 => any::<usize>().prop_map(|at| Action::DropParked { at }),
        1 => lane.clone().prop_map(|lane| Action::Close { lane }),
        1 => lane.prop_map(|lane| Action::KeepSpooling { lane }),
        2 => (1_usize..4, 0_u64..20, 1_u64..3).prop_map(|(operation, after, times)| Action::Fail { operation, after, times }),
        3 => Just(Action::Reopen),
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
#[expect(clippy::struct_excessive_bools, reason = "what is known of it, one by one")]
struct Event {
    lane: Arc<str>,
    record: Record,
    in_lane: Is,
    parked: Is,
    /// It was accepted, and is neither acked nor dropped: it is in its lane or parked, whatever has happened.
    is_owed: bool,
    /// Its answer is still to come.
    answer: Option<Fsynced>,
    /// Since when it stands in its lane: of two, the one with the lower place comes first.
    place: u64,
    /// It was parked at some time: its entry may be larger.
    was_parked: bool,
    /// A move of it has failed: it may stand in both places, and later twice in its lane.
    may_be_twice: bool,
    /// It was handed in while the spool had failed, and could not be opened anew.
    is_in_vain: bool,
}

/// The spool and the model.
struct Pair {
    disk: Arc<Mutex<Disk>>,
    /// A spool that has failed stays so until it may be opened.
    may_open: Arc<AtomicBool>,
    spool: Spool,
    events: Vec<Event>,
    places: u64,
    tickets: Vec<Ticket>,
    /// What was paged and not settled: lane, number, event.
    held: Vec<(Arc<str>, u64, usize)>,
}

fn start(disk: &Arc<Mutex<Disk>>, may_open: &Arc<AtomicBool>) -> Spool {
    let (disk, may_open) = (Arc::clone(disk), Arc::clone(may_open));
    let open = move || {
        if !may_open.load(Ordering::SeqCst) {
            return Err(store::Error::Io("it is not time yet".to_owned()));
        }
        Store::open_in(Box::new(disk.lock().expect("no panic holds it").clone()), SEGMENT)
    };
    let config = Config { bytes_max: BYTES_MAX, segment_bytes: SEGMENT, ..config(Path::new("/nowhere")) };
    let opened = open();
    Spool::start_with(config, Arc::new(Metrics::new()), opened, move |_| open())
}

impl Pair {
    fn new() -> Self {
        let (disk, may_open) = (Arc::<Mutex<Disk>>::default(), Arc::new(AtomicBool::new(true)));
        let spool = start(&disk, &may_open);
        may_open.store(false, Ordering::SeqCst);
        Self { disk, may_open, spool, events: Vec::new(), places: 0, tickets: Vec::new(), held: Vec::new() }
    }

    fn disk(&self) -> Disk {
        self.disk.lock().expect("no panic holds it").clone()
    }

    fn has_failed(&self) -> bool {
        matches!(self.spool.lanes(|lanes| lanes.health().clone()), Health::Failed(_))
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
                    self.settle(true)?;
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
                self.settle(true)?; // else a late answer would make it owed again
                self.spool.acked(&lane, number);
                (self.events[event].in_lane, self.events[event].is_owed) = (Is::Away, false);
            }
            Action::Park { at } => self.park(at)?,
            Action::Requeue { at } => self.unpark(at, true)?,
            Action::DropParked { at } => self.unpark(at, false)?,
            Action::Close { lane } => {
                let is_closing = self.spool.lanes(|lanes| lanes.close(&lane_name(lane)));
                prop_assert!(
                    is_closing || self.spool.lanes(|lanes| lanes.look(&lane_name(lane))).ok() == Some(Way::Direct)
                );
            }
            Action::KeepSpooling { lane } => self.spool.lanes(|lanes| lanes.keep_spooling(&lane_name(lane))),
            Action::Fail { operation, after, times } => {
                let operation = [Operation::Read, Operation::Write, Operation::Length, Operation::Sync][operation];
                self.disk().fail(operation, after, times, if after % 2 == 0 { EIO } else { ENOSPC });
            }
            Action::Reopen => self.reopen()?,
            Action::PowerCut { after, appends, seed } => self.power_cut(after, appends, seed)?,
        }
        Ok(())
    }

    fn append(&mut self, ticket: Ticket, bytes: usize) {
        let (lane, event) = (Arc::clone(&ticket.topic), self.events.len());
        let value = [event.to_le_bytes().as_slice(), &vec![event as u8; bytes]].concat();
        let record =
            Record { topic: Arc::clone(&lane), key: format!("chat-{}", event % 4), headers: Vec::new(), value };
        let is_in_vain = self.has_failed();
        let answer = Some(self.spool.append(ticket, record.clone()));
        let place = self.place();
        self.events.push(Event {
            lane,
            record,
            in_lane: Is::Perhaps,
            parked: Is::Away,
            is_owed: false,
            answer,
            place,
            was_parked: false,
            may_be_twice: false,
            is_in_vain,
        });
    }

    /// Takes the answers that have come; with `all`, those that are still to come, too.
    fn settle(&mut self, all: bool) -> Result<(), TestCaseError> {
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
            match answered {
                Ok(()) => {
                    prop_assert!(!event.is_in_vain, "the spool had failed, and accepted something all the same");
                    (event.in_lane, event.is_owed) = (Is::There, true);
                }
                Err(Refused::Full) => event.in_lane = Is::Away,
                Err(Refused::Failed) => {}
            }
        }
        Ok(())
    }

    /// Replay reads a page from some number on.
    fn page(&mut self, lane: &Arc<str>, from: usize, records: usize) -> Result<(), TestCaseError> {
        self.settle(true)?;
        let Ok(all) = self.spool.page(lane, 0, 1000, usize::MAX) else { return Ok(()) };
        let from = if all.is_empty() { 0 } else { all[from % all.len()].number };
        let Ok(page) = self.spool.page(lane, from, records, usize::MAX) else { return Ok(()) };
        prop_assert!(page.len() <= records);
        for found in page {
            let event = self.known(&found)?;
            if !self.held.iter().any(|(_, number, _)| *number == found.number) {
                self.held.push((Arc::clone(lane), found.number, event));
            }
        }
        Ok(())
    }

    fn take_held(&mut self, at: usize) -> Option<(Arc<str>, u64, usize)> {
        let at = at.checked_rem(self.held.len())?;
        Some(self.held.swap_remove(at))
    }

    fn park(&mut self, at: usize) -> Result<(), TestCaseError> {
        self.settle(true)?;
        let Some((lane, number, event)) = self.take_held(at) else { return Ok(()) };
        let parked = Parked { reason: "too_large".to_owned(), error: "MessageSizeTooLarge".to_owned(), at_ms: 1 };
        let entry = Entry { parked: Some(parked), ..Entry::new(self.events[event].record.clone()) };
        let answer = self.spool.park(&entry, Some((lane, number))).blocking_recv();
        let event = &mut self.events[event];
        event.was_parked = true;
        (event.in_lane, event.parked) = if answer == Ok(Ok(())) {
            (Is::Away, Is::There)
        } else {
            // It is held no more: replay, too, forgets what has failed, and reads again.
            event.may_be_twice = true;
            (event.in_lane.or_perhaps(), Is::Perhaps)
        };
        Ok(())
    }

    fn unpark(&mut self, at: usize, requeues: bool) -> Result<(), TestCaseError> {
        self.settle(true)?;
        if self.has_failed() {
            return Ok(()); // what is read now may never have been written
        }
        let Ok(parked) = self.spool.parked(0, 1000) else { return Ok(()) };
        let Some(found) = at.checked_rem(parked.len()).map(|at| &parked[at]) else { return Ok(()) };
        let (event, place) = (self.known(found)?, self.place());
        let answer = if requeues { self.spool.requeue(found.number) } else { self.spool.drop_parked(found.number) };
        let answer = answer.blocking_recv();
        let event = &mut self.events[event];
        match (answer, requeues) {
            (Ok(Ok(())), true) => (event.parked, event.in_lane, event.place) = (Is::Away, Is::There, place),
            (_, true) => {
                event.may_be_twice = true;
                (event.parked, event.in_lane, event.place) = (Is::Perhaps, Is::Perhaps, place);
            }
            (Ok(Ok(())), false) => (event.parked, event.is_owed) = (Is::Away, false),
            (_, false) => (event.parked, event.is_owed) = (Is::Perhaps, false),
        }
        Ok(())
    }

    /// The disk works again, and the time has come.
    fn reopen(&mut self) -> Result<(), TestCaseError> {
        self.settle(true)?;
        self.disk().mend();
        self.may_open.store(true, Ordering::SeqCst);
        let began = Instant::now();
        // A commit that is under way may still meet the fault that was.
        while self.has_failed() || self.spool.drop_parked(u64::MAX).blocking_recv() == Ok(Err(Refused::Failed)) {
            prop_assert!(
                began.elapsed() < DEADLINE,
                "it is not opened anew: {:?}",
                self.spool.lanes(|lanes| lanes.health().clone())
            );
            std::thread::yield_now();
        }
        self.may_open.store(false, Ordering::SeqCst);
        let model = self.spool.with_store(|store| Ok(Model::read(store)));
        prop_assert!(model.is_ok_and(|read| read.is_ok()), "its totals are those of a recount");
        Ok(())
    }

    fn power_cut(&mut self, after: u64, appends: u8, seed: u64) -> Result<(), TestCaseError> {
        self.disk().die_in(after);
        for lane in 0..appends {
            let ticket = self.spool.ticket(&lane_name(lane % LANES));
            self.append(ticket, 100);
        }
        if seed.is_multiple_of(2) {
            self.settle(true)?;
        }
        let cut = self.disk().cut(seed);
        self.settle(true)?;
        self.spool.close();
        *self.disk.lock().expect("no panic holds it") = cut;
        self.tickets.clear();
        self.held.clear();
        for event in &mut self.events {
            // An ack is durable only with a later fsync; and a fsync that has failed may have written something.
            if !event.is_owed && event.in_lane == Is::Away && event.answer.is_none() {
                event.in_lane = Is::Perhaps;
            }
        }
        self.may_open.store(true, Ordering::SeqCst);
        self.spool = start(&self.disk, &self.may_open);
        prop_assert!(!self.has_failed(), "it starts: {:?}", self.spool.lanes(|lanes| lanes.health().clone()));
        self.may_open.store(false, Ordering::SeqCst);
        Ok(())
    }

    /// Which event an entry is; it is exactly what was handed in.
    fn known(&self, found: &Numbered) -> Result<usize, TestCaseError> {
        let Ok(entry) = &found.entry else { return Err(TestCaseError::fail(format!("{found:?} cannot be read"))) };
        let event = entry.record.value.first_chunk().map_or(usize::MAX, |bytes| usize::from_le_bytes(*bytes));
        prop_assert_eq!(self.events.get(event).map(|event| &event.record), Some(&entry.record));
        Ok(event)
    }

    /// All that was promised.
    fn check(&mut self) -> Result<(), TestCaseError> {
        for lane in (0..LANES).map(lane_name) {
            let is_direct = self.spool.lanes(|lanes| lanes.look(&lane)).ok() == Some(Way::Direct);
            self.settle(is_direct)?;
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
        self.check_parked()?;
        let were_parked = self.events.iter().filter(|event| event.was_parked).count() as u64;
        prop_assert!(
            self.spool.lanes(|lanes| lanes.bytes()) <= BYTES_MAX + were_parked * PARKED_BYTES,
            "the budget is exceeded"
        );
        Ok(())
    }

    fn check_lane(&mut self, lane: &Arc<str>) -> Result<(), TestCaseError> {
        let due: Vec<_> = (0..self.events.len()).filter(|event| self.events[*event].in_lane == Is::There).collect();
        let mut page = Vec::new();
        loop {
            let from = page.last().map_or(0, |last: &Numbered| last.number + 1);
            match self.spool.page(lane, from, 7, 1500) {
                Ok(more) if more.is_empty() => break,
                Ok(more) => page.extend(more),
                Err(error) => {
                    // A commit that is under way may have failed to close a segment.
                    self.settle(true)?;
                    prop_assert!(self.has_failed(), "it cannot be read, and has not failed: {error}");
                    return Ok(());
                }
            }
        }
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

    fn check_parked(&mut self) -> Result<(), TestCaseError> {
        if self.has_failed() {
            return Ok(());
        }
        let Ok(parked) = self.spool.parked(0, 1000) else { return Ok(()) };
        let parked = parked.iter().map(|found| self.known(found)).collect::<Result<Vec<_>, _>>()?;
        let mut in_lanes = Vec::new();
        for lane in (0..LANES).map(lane_name) {
            let Ok(page) = self.spool.page(&lane, 0, 1000, usize::MAX) else { return Ok(()) };
            for found in &page {
                in_lanes.push(self.known(found)?);
            }
        }
        for (number, event) in self.events.iter().enumerate() {
            let is_parked = parked.contains(&number);
            prop_assert!(is_parked || event.parked != Is::There, "event {number} is not among the parked");
            prop_assert!(!is_parked || event.parked != Is::Away, "event {number} is among the parked");
            prop_assert!(!event.is_owed || is_parked || in_lanes.contains(&number), "event {number} is lost");
        }
        Ok(())
    }

    /// Everything is acked or dropped: nothing is left, and all ways are direct, now and after the next start.
    fn drain(mut self) -> Result<(), TestCaseError> {
        self.reopen()?;
        self.check()?;
        self.tickets.clear();
        for lane in (0..LANES).map(lane_name) {
            let page = self.spool.page(&lane, 0, 1000, usize::MAX);
            for found in page.map_err(|error| TestCaseError::fail(error.to_string()))? {
                let event = self.known(&found)?;
                self.spool.acked(&lane, found.number);
                (self.events[event].in_lane, self.events[event].is_owed) = (Is::Away, false);
            }
            prop_assert_eq!(self.spool.lanes(|lanes| lanes.look(&lane)).ok(), Some(Way::Direct));
        }
        for found in self.spool.parked(0, 1000).map_err(|error| TestCaseError::fail(error.to_string()))? {
            prop_assert_eq!(self.spool.drop_parked(found.number).blocking_recv(), Ok(Ok(())));
            let event = self.known(&found)?;
            (self.events[event].parked, self.events[event].is_owed) = (Is::Away, false);
        }
        let began = Instant::now();
        while self.spool.lanes(|lanes| lanes.bytes()) > 0 {
            prop_assert!(began.elapsed() < DEADLINE, "what was acked is not deleted");
            std::thread::yield_now();
        }
        let ticket = self.spool.ticket(&lane_name(0));
        self.append(ticket, 5000);
        self.settle(true)?;
        prop_assert!(self.events.last().is_some_and(|event| event.is_owed), "an empty spool takes what fits");
        self.check()?;
        let cut = self.disk().cut(0);
        self.spool.close();
        let left = opened(&cut).and_then(|store| Model::read(&store));
        let left = left.map_err(|error| TestCaseError::fail(error.to_string()))?;
        prop_assert_eq!((left.lanes.values().map(BTreeMap::len).sum::<usize>(), left.parked.len()), (1, 0));
        Ok(())
    }
}

impl Is {
    /// What was tried has failed: if it was there, it may be no more.
    const fn or_perhaps(self) -> Self {
        match self {
            Self::There | Self::Perhaps => Self::Perhaps,
            Self::Away => Self::Away,
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
