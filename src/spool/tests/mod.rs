//! The store under faults, power cuts and damage; the whole spool against a model is in `model`, its gate in `gate`.

mod backend;
mod gate;
mod model;

use std::collections::BTreeMap;
use std::path::Path;

use proptest::collection::vec;
use proptest::prelude::*;

use super::store::{self, Batch, Store};
use super::*;
use backend::{Chance, Disk, EIO, ENOSPC, Operation};

/// What should be in a store.
#[derive(Clone, Default, PartialEq)]
struct Model {
    lanes: BTreeMap<String, BTreeMap<u64, Vec<u8>>>,
    parked: BTreeMap<u64, Vec<u8>>,
    next: u64,
}

impl std::fmt::Debug for Model {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let lanes = self.lanes.iter().map(|(lane, entries)| (lane, entries.keys().collect::<Vec<_>>()));
        f.debug_map().entries(lanes).entry(&"parked", &self.parked.keys()).finish()
    }
}

/// What a batch does, the entry being the one at some place of what is there.
#[derive(Clone, Debug)]
enum Step {
    Append { lane: u8, bytes: usize },
    Delete { lane: u8, at: usize },
    Park { bytes: usize },
    Unpark { at: usize },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (0_u8..3, 0_usize..3000).prop_map(|(lane, bytes)| Step::Append { lane, bytes }),
        2 => (0_u8..3, any::<usize>()).prop_map(|(lane, at)| Step::Delete { lane, at }),
        1 => (0_usize..3000).prop_map(|bytes| Step::Park { bytes }),
        1 => any::<usize>().prop_map(|at| Step::Unpark { at }),
    ];
    vec(step, 0..6)
}

fn lane_name(lane: u8) -> Arc<str> {
    format!("livechat.lane{lane}").into()
}

fn nth(of: &BTreeMap<u64, Vec<u8>>, at: usize) -> Option<u64> {
    of.keys().nth(at.checked_rem(of.len())?).copied()
}

impl Model {
    /// The batch of `steps`, and what is there after it.
    fn plan(&self, steps: &[Step]) -> (Batch, Self) {
        let (mut batch, mut after) = (Batch::default(), self.clone());
        after.next = after.next.max(1);
        for step in steps {
            let number = after.next;
            match step {
                Step::Append { lane, bytes } => {
                    let entry = vec![number as u8; *bytes];
                    after.lanes.entry(lane_name(*lane).to_string()).or_default().insert(number, entry.clone());
                    batch.lane(&lane_name(*lane)).appended.push((number, entry));
                    after.next += 1;
                }
                Step::Delete { lane, at } => {
                    let Some(entries) = after.lanes.get_mut(&*lane_name(*lane)) else { continue };
                    let Some(number) = nth(entries, *at) else { continue };
                    entries.remove(&number);
                    batch.lane(&lane_name(*lane)).deleted.push(number);
                }
                Step::Park { bytes } => {
                    after.parked.insert(number, vec![number as u8; *bytes]);
                    batch.parked.push((number, vec![number as u8; *bytes]));
                    after.next += 1;
                }
                Step::Unpark { at } => {
                    // Of what this batch parks itself nobody knows yet.
                    let Some(number) = nth(&self.parked, *at) else { continue };
                    after.parked.remove(&number);
                    batch.unparked.push(number);
                }
            }
        }
        batch.next = after.next;
        after.lanes.retain(|_, entries| !entries.is_empty());
        (batch, after)
    }

    /// Each entry, by where it stands and its number.
    fn entries(&self) -> BTreeMap<(&str, u64), &[u8]> {
        let lanes = self.lanes.iter().map(|(lane, entries)| (lane.as_str(), entries));
        let all = lanes.chain([("parked", &self.parked)]);
        all.flat_map(|(of, entries)| entries.iter().map(move |(number, entry)| ((of, *number), &**entry))).collect()
    }

    /// What is in a store, by its own count and by a recount.
    fn read(store: &Store) -> Result<Self, store::Error> {
        let contents = store.contents();
        let mut model = Self { next: contents.next, ..Self::default() };
        for (lane, size) in &contents.lanes {
            let entries: BTreeMap<_, _> = store.page(lane, 0, usize::MAX, usize::MAX)?.into_iter().collect();
            assert_eq!(*size, size_of(&entries), "{lane}");
            model.lanes.insert(lane.clone(), entries);
        }
        model.lanes.retain(|_, entries| !entries.is_empty());
        model.parked = store.parked(0, usize::MAX, usize::MAX)?.into_iter().collect();
        assert_eq!(contents.parked, size_of(&model.parked));
        Ok(model)
    }
}

fn size_of(entries: &BTreeMap<u64, Vec<u8>>) -> Size {
    let mut size = Size::default();
    entries.values().for_each(|entry| size.add(entry.len()));
    size
}

/// Segments of so few bytes that there are many.
const SEGMENT: u64 = 4000;

fn opened(disk: &Disk) -> Result<Store, store::Error> {
    Store::open_in(Box::new(disk.clone()), SEGMENT)
}

/// What may be in a store: what was committed, and something of the batch that failed.
struct Possible {
    committed: Model,
    failed: Option<(Batch, Model)>,
}

impl Possible {
    /// It is committed, from now on.
    fn found(store: &Store, possible: &Self) -> Result<Self, TestCaseError> {
        let found = Model::read(store).map_err(|error| TestCaseError::fail(format!("it cannot be read: {error}")))?;
        let before = &possible.committed;
        let Some((batch, after)) = &possible.failed else {
            prop_assert_eq!(&found, before);
            return Ok(Self { committed: found, failed: None });
        };
        let (was, will, is) = (before.entries(), after.entries(), found.entries());
        for (place, entry) in &was {
            let is_kept = is.get(place).map_or(!will.contains_key(place), |is| is == entry);
            prop_assert!(is_kept, "{place:?} was committed, and is not there: {found:?}");
        }
        let mut added: BTreeMap<_, _> =
            batch.parked.iter().map(|(number, entry)| (("parked", *number), entry)).collect();
        for (lane, change) in &batch.lanes {
            added.extend(change.appended.iter().map(|(number, entry)| ((&**lane, *number), entry)));
        }
        for (place, entry) in &is {
            let is_known = was.contains_key(place) || added.get(place).is_some_and(|added| added == entry);
            prop_assert!(is_known, "{place:?} was never there");
        }
        // A fsync makes all of them durable, or none.
        for parked in [false, true] {
            let new = will.keys().filter(|place| (place.0 == "parked") == parked && !was.contains_key(*place));
            let there = new.clone().filter(|place| is.contains_key(*place)).count();
            prop_assert!(there == 0 || there == new.count(), "a part of a batch: {found:?}");
        }
        Ok(Self { committed: found, failed: None })
    }
}

/// Commits batches until one fails: what may be there then.
fn commit(store: &Store, mut possible: Possible, batches: &[Vec<Step>]) -> Result<Possible, TestCaseError> {
    for steps in batches {
        let (batch, after) = possible.committed.plan(steps);
        let Ok(contents) = store.commit(&batch) else {
            possible.failed = Some((batch, after));
            break;
        };
        prop_assert_eq!(contents.next, after.next);
        possible.committed = after;
        if steps.len() == 3 && store.tidy(Duration::ZERO, true, 0).is_err() {
            break;
        }
    }
    Ok(possible)
}

const START: Model = Model { lanes: BTreeMap::new(), parked: BTreeMap::new(), next: 1 };

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn what_was_committed_survives_any_power_cut_and_what_a_batch_adds_is_there_whole_or_not_at_all(
        lives in vec((vec(steps(), 0..12), 0_u64..250, any::<u64>()), 1..5),
    ) {
        let (mut disk, mut possible) = (Disk::default(), Possible { committed: START, failed: None });
        for (batches, dies_in, seed) in lives {
            disk.die_in(dies_in);
            match opened(&disk) {
                Ok(store) => possible = commit(&store, Possible::found(&store, &possible)?, &batches)?,
                Err(error) => prop_assert!(disk.is_dead(), "{}", error),
            }
            disk = disk.cut(seed);
        }
        Possible::found(&opened(&disk).expect("it opens after any cut"), &possible)?;
    }

    #[test]
    fn after_a_failed_write_or_sync_nothing_is_taken_until_it_is_opened_anew_with_all_that_was_committed(
        lives in vec((vec(steps(), 1..12), 0..4_usize, 0_u64..80, any::<bool>()), 1..4),
        seed: u64,
    ) {
        let (disk, mut possible) = (Disk::default(), Possible { committed: START, failed: None });
        drop(opened(&disk).expect("a new one"));
        for (batches, operation, after, is_lasting) in lives {
            let operation = [Operation::Read, Operation::Write, Operation::Length, Operation::Sync][operation];
            disk.fail(operation, after, if is_lasting { u64::MAX } else { 1 }, if after % 2 == 0 { EIO } else { ENOSPC });
            // Who cannot read it does not write to it either.
            if let Ok(store) = opened(&disk)
                && (operation != Operation::Read || Model::read(&store).is_ok())
            {
                possible = commit(&store, Possible::found(&store, &possible)?, &batches)?;
                disk.mend();
                if possible.failed.is_some() {
                    prop_assert!(store.commit(&Batch::default()).is_err(), "{:?} has failed", operation);
                }
            }
            disk.mend();
            let store = opened(&disk).expect("it opens on a disk that works again");
            possible = Possible::found(&store, &possible)?;
        }
        let store = opened(&disk.cut(seed)).expect("it opens after the cut");
        Possible::found(&store, &possible)?;
    }

    #[test]
    fn pages_are_in_order_and_bounded(
        sizes in vec(0_usize..2000, 0..60), from in 0_u64..70, records in 1_usize..80, bytes in 1_usize..40_000,
    ) {
        let store = opened(&Disk::default()).expect("a store");
        let all: Vec<_> = sizes.iter().zip(1_u64..).map(|(size, number)| (number, vec![number as u8; *size])).collect();
        for some in all.chunks(3) {
            let mut batch = Batch::default();
            batch.lane(&"a".into()).appended = some.to_vec();
            batch.lane(&"b".into()).appended.push((some[0].0, b"another lane".to_vec()));
            batch.parked = some.to_vec();
            batch.next = some[some.len() - 1].0 + 1;
            store.commit(&batch).expect("a commit");
        }

        let mut sum = 0;
        let expected: Vec<_> = all.into_iter().filter(|(number, _)| *number >= from).take(records).take_while(|(_, entry)| {
            let is_first_or_fits = sum < bytes;
            sum += entry.len();
            is_first_or_fits
        }).collect();
        prop_assert_eq!(&store.page("a", from, records, bytes).expect("a page"), &expected);
        prop_assert_eq!(&store.parked(from, records, bytes).expect("a page"), &expected);
        prop_assert!(store.page("none", from, records, bytes).expect("a page").is_empty());
    }
}

#[test]
fn a_segment_of_which_all_is_gone_is_removed_though_nothing_can_be_written() {
    let disk = Disk::default();
    let store = opened(&disk).expect("a store");
    let lane = lane_name(0);
    for number in 1..=10 {
        let mut batch = Batch { next: number + 1, ..Batch::default() };
        batch.lane(&lane).appended.push((number, vec![0; 1500]));
        store.commit(&batch).expect("a commit");
    }
    let without = |numbers: [u64; 3]| {
        let mut batch = Batch::default();
        batch.lane(&lane).deleted.extend(numbers);
        store.commit(&batch)
    };
    let left = |store: &Store| {
        let page = store.page(&lane, 0, 100, usize::MAX).expect("a page");
        page.into_iter().map(|(number, _)| number).collect::<Vec<_>>()
    };
    disk.fail(Operation::Write, 0, u64::MAX, ENOSPC);
    let contents = without([1, 2, 3]).expect("the first segment needs no room to be removed");
    assert_eq!((contents.lanes[&*lane].records, left(&store)), (7, (4..=10).collect()));
    without([4, 5, 7]).expect_err("what is gone of others has to be written");
    disk.mend();
    drop(store);
    assert_eq!(left(&opened(&disk).expect("it is mended")), (4..=10).collect::<Vec<_>>());
}

#[test]
fn a_sealed_segment_of_which_little_is_left_is_written_anew_and_gives_its_room_back() {
    let directory = tempfile::tempdir().expect("a directory");
    let store = Store::open(directory.path(), 8 << 20).expect("a store");
    let (stuck, other) = (lane_name(0), lane_name(1));
    for number in 1..=10 {
        let mut batch = Batch { next: number + 1, ..Batch::default() };
        let lane = if number == 5 { &stuck } else { &other };
        batch.lane(lane).appended.push((number, vec![number as u8; 1 << 20]));
        store.commit(&batch).expect("a commit");
    }
    let mut batch = Batch::default();
    batch.lane(&other).deleted.extend((1..=10).filter(|number| *number != 5));
    store.commit(&batch).expect("a commit");
    assert!(
        store.tidy(Duration::from_secs(3600), false, u64::MAX).expect("no trouble").is_none(),
        "it is touched still"
    );
    let tidied = store.tidy(Duration::ZERO, false, u64::MAX).expect("no trouble").expect("a file");
    assert!(tidied.after < tidied.before / 3, "{tidied:?}");
    assert!(store.tidy(Duration::ZERO, false, u64::MAX).expect("no trouble").is_none(), "once is enough");
    drop(store);
    let store = Store::open(directory.path(), 8 << 20).expect("a store");
    assert_eq!(store.page(&stuck, 0, 10, usize::MAX).expect("a page"), [(5, vec![5; 1 << 20])]);
    assert!(store.page(&other, 0, 10, usize::MAX).expect("a page").is_empty());
}

/// An entry that knows its own number.
fn entry(number: u64, bytes: usize) -> Entry {
    let (topic, key) = (lane_name(number as u8 % 2), format!("chat-{}", number % 5));
    let value = [number.to_le_bytes().as_slice(), &vec![number as u8; bytes]].concat();
    let entry = Entry::new(Record { topic, key, headers: Vec::new(), value });
    Entry { spooled: jiff::Timestamp::UNIX_EPOCH, ..entry } // its time is written in milliseconds
}

/// A spool's file with entries in two lanes and among the parked, some of them deleted; and all that may be read of it. It is
/// the same each time: a commit is about one lane, for the lanes of a batch have no order.
fn file_of_entries(directory: &Path) -> Vec<Entry> {
    let store = Store::open(directory, SEGMENT).expect("a store");
    let entries: Vec<_> = (1..150).map(|number| entry(number, number as usize * 37 % 5000)).collect();
    for (numbers, some) in (1..).step_by(10).zip(entries.chunks(10)) {
        for lane in 0..2 {
            let mut batch = Batch::default();
            for (number, entry) in (numbers..).zip(some).filter(|(number, _)| number % 2 == lane) {
                match number % 7 {
                    0 => batch.parked.push((number, entry.encode())),
                    _ => batch.lane(&entry.record.topic).appended.push((number, entry.encode())),
                }
                batch.lane(&entry.record.topic).deleted.extend(number.checked_sub(26).filter(|_| number % 3 == 0));
                batch.next = number + 1;
            }
            store.commit(&batch).expect("a commit");
        }
    }
    entries
}

/// Does to the bytes of a file what disks and people do.
fn damage(bytes: &mut Vec<u8>, chance: &mut Chance) -> String {
    let (from, length) = (chance.below(bytes.len()), 1 << chance.below(18));
    let part = from..bytes.len().min(from + length);
    match chance.below(7) {
        0 => bytes.truncate(if chance.flip() { from } else { chance.below(10_000) }),
        1 => bytes[part.clone()].fill(0),
        2 => bytes[part.clone()].fill_with(|| chance.number() as u8),
        3 => bytes.fill_with(|| chance.number() as u8),
        // The head, where each bit counts.
        4 => (0..=chance.below(8)).for_each(|_| bytes[chance.below(512)] ^= 1 << chance.below(8)),
        // Where the entries are.
        5 => (0..=chance.below(200)).for_each(|_| bytes[part.start + chance.below(part.len())] ^= 1 << chance.below(8)),
        // A page as it was at another place.
        _ => {
            let (from, to) = (chance.below(bytes.len() / 4096) * 4096, chance.below(bytes.len() / 4096) * 4096);
            bytes.copy_within(from..from + 4096, to);
        }
    }
    format!("{part:?}")
}

/// The files of a directory.
fn files(directory: &Path) -> BTreeMap<String, Vec<u8>> {
    let files = std::fs::read_dir(directory).expect("the directory").map(|file| file.expect("a file").path());
    let name = |path: &Path| path.file_name().expect("a name").to_string_lossy().into_owned();
    files.map(|path| (name(&path), std::fs::read(&path).expect("a file"))).collect()
}

fn is_database(name: &str) -> bool {
    Path::new(name).extension().is_some_and(|extension| extension == "redb")
}

fn put_aside(directory: &Path) -> usize {
    files(directory).keys().filter(|name| name.contains(".broken-")).count()
}

#[test]
fn whatever_a_disk_has_done_to_a_file_no_altered_entry_comes_out_of_it_and_nothing_panics() {
    let directory = tempfile::tempdir().expect("a directory");
    let whole = file_of_entries(directory.path());
    let sound = files(directory.path());
    assert!(sound.len() > 10, "{}", sound.len());
    let (mut aside, mut unreadable, mut decoded) = (0, 0, 0);
    for seed in 0..300 {
        for name in files(directory.path()).keys() {
            std::fs::remove_file(directory.path().join(name)).expect("it is removed");
        }
        let mut chance = Chance(seed);
        // Of all files one, as often the first as the others together.
        let databases = sound.keys().filter(|name| is_database(name));
        let of_segments: Vec<_> = databases.filter(|name| *name != store::FILE).collect();
        let damaged = if chance.flip() { store::FILE } else { of_segments[chance.below(of_segments.len())] };
        let mut what = String::new();
        for (name, bytes) in &sound {
            let mut bytes = bytes.clone();
            if name == damaged {
                what = format!("{name}, {}", damage(&mut bytes, &mut chance));
            }
            std::fs::write(directory.path().join(name), &bytes).expect("a file");
        }
        let store = match Store::open(directory.path(), SEGMENT) {
            Ok(store) => store,
            Err(store::Error::Newer(_)) => continue, // the bits that were changed are those of the format
            Err(error) => panic!("seed {seed}, {what}: not opened: {error}"),
        };
        aside += put_aside(directory.path());
        let lanes = [lane_name(0), lane_name(1)];
        let pages = lanes.iter().map(|lane| store.page(lane, 0, 1000, usize::MAX));
        for page in pages.chain([store.parked(0, 1000, usize::MAX)]) {
            for (number, bytes) in page.unwrap_or_default() {
                match Entry::decode(&bytes) {
                    Ok(entry) => {
                        decoded += 1;
                        assert!(whole.contains(&entry), "seed {seed}, {what}: number {number} is altered");
                    }
                    Err(_) => unreadable += 1,
                }
            }
        }
        let mut batch = Batch::default();
        batch.lane(&lanes[0]).appended.push((1000, entry(1000, 100).encode()));
        batch.lane(&lanes[0]).deleted.extend(1..100);
        let _ = store.commit(&batch); // it may fail, but not panic
    }
    assert!(aside > 10 && unreadable > 10 && decoded > 1000, "{aside} {unreadable} {decoded}");
}

#[test]
fn a_broken_file_is_kept_aside_and_events_are_accepted_all_the_same() {
    let directory = tempfile::tempdir().expect("a directory");
    std::fs::write(directory.path().join(store::FILE), b"no database").expect("a file");
    let spool = Spool::start(config(directory.path()), Arc::new(Metrics::new())).expect("a spool");
    let Entry { record, .. } = entry(1, 10);
    let topic = Arc::clone(&record.topic);
    assert_eq!(spool.append(spool.ticket(&topic), record.clone()).blocking_recv(), Ok(Ok(())));
    let page = spool.page(&topic, 0, 10, 10).expect("a page");
    assert_eq!(page[0].entry.as_ref().map(|entry| &entry.record), Ok(&record));
    spool.close();
    let files = std::fs::read_dir(directory.path()).expect("the directory");
    let mut files = files.filter_map(Result::ok);
    let aside = files.find(|file| file.file_name().to_string_lossy().contains(".broken-")).expect("a file aside");
    assert_eq!(std::fs::read(aside.path()).expect("it is read"), b"no database");
}

#[test]
fn a_newer_format_is_refused_and_left_as_it_is() {
    let directory = tempfile::tempdir().expect("a directory");
    file_of_entries(directory.path());
    let path = directory.path().join(store::FILE);
    let db = redb::Database::open(&path).expect("a database");
    let transaction = db.begin_write().expect("a transaction");
    let meta = redb::TableDefinition::<&str, u64>::new("meta");
    transaction.open_table(meta).expect("a table").insert("format", 3).expect("it is written");
    transaction.commit().expect("a commit");
    drop(db);
    let before = redb_contents(&path);
    let refused = Spool::start(config(directory.path()), Arc::new(Metrics::new())).err().expect("it is refused");
    assert!(matches!(refused, Unusable::Store { error: store::Error::Newer(3), .. }), "{refused}");
    assert_eq!(redb_contents(&path), before);
    let names = std::fs::read_dir(directory.path())
        .expect("the directory")
        .filter_map(|file| file.ok()?.file_name().into_string().ok());
    assert_eq!(names.filter(|name| name.contains(".broken-")).count(), 0);
}

/// What a newer version would find in its tables.
fn redb_contents(path: &Path) -> Vec<(String, u64)> {
    use redb::{ReadableDatabase as _, ReadableTable as _};
    let db = redb::Database::open(path).expect("a database");
    let transaction = db.begin_read().expect("a transaction");
    let meta = transaction.open_table(redb::TableDefinition::<&str, u64>::new("meta")).expect("a table");
    let entries = meta.iter().expect("entries").map(|entry| entry.expect("an entry"));
    entries.map(|(name, number)| (name.value().to_owned(), number.value())).collect()
}

#[test]
fn a_directory_that_another_relay_has_is_waited_for_and_then_refused() {
    let directory = tempfile::tempdir().expect("a directory");
    let first = Spool::start(config(directory.path()), Arc::new(Metrics::new())).expect("a spool");
    let mut second = config(directory.path());
    second.lock_timeout = Duration::ZERO;
    let refused = Spool::start(second.clone(), Arc::new(Metrics::new())).err();
    assert!(matches!(refused, Some(Unusable::Locked(_))), "{refused:?}");
    second.lock_timeout = Duration::from_secs(30);
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| Spool::start(second, Arc::new(Metrics::new())));
        first.close();
        waiting.join().expect("no panic").expect("a spool").close();
    });
}

fn config(directory: &Path) -> Config {
    Config {
        directory: directory.to_owned(),
        bytes_max: 1 << 30,
        segment_bytes: SEGMENT,
        free_min: 0,
        queue_records_max: 100,
        queue_bytes_max: 64 << 20,
        lock_timeout: Duration::from_secs(10),
        switch_timeout: Duration::from_secs(10),
    }
}

#[test]
fn a_file_that_ends_the_process_whenever_it_is_opened_is_put_aside_in_the_end() {
    let directory = tempfile::tempdir().expect("a directory");
    let open = || drop(Store::open(directory.path(), SEGMENT).expect("a store"));
    open();
    let names = files(directory.path());
    let opening = directory.path().join("opening");
    assert!(names["opening"].is_empty());
    for name in names.keys().filter(|name| is_database(name)) {
        let before = put_aside(directory.path());
        let marks = |died: usize| std::fs::write(&opening, format!("{name}\n").repeat(died)).expect("written");
        marks(2); // as two processes leave it that died there
        open();
        assert_eq!((put_aside(directory.path()), std::fs::read(&opening).expect("a file")), (before, vec![]));
        marks(3);
        open();
        assert_eq!((put_aside(directory.path()), std::fs::read(&opening).expect("a file")), (before + 1, vec![]));
    }
}

/// A directory that vanishes and is made anew must not leave the fast way of `way()` with a wrong count of lanes.
#[tokio::test]
async fn after_a_vanished_directory_the_lanes_that_spool_are_still_known() {
    let directory = tempfile::tempdir().expect("a directory");
    let place = directory.path().join("spool");
    let spool = Spool::start(config(&place), Arc::new(Metrics::new())).expect("a spool");
    let topics: [Arc<str>; 2] = ["a".into(), "b".into()];
    let append = async |topic: &Arc<str>| {
        let record = Record { topic: Arc::clone(topic), ..entry(1, 10).record };
        spool.append(spool.ticket(topic), record).await.expect("an answer")
    };
    for topic in &topics {
        assert_eq!(append(topic).await, Ok(()));
    }
    std::fs::remove_dir_all(&place).expect("removed");
    assert_eq!(append(&topics[0]).await, Err(Refused::Failed));
    for topic in &topics {
        for found in spool.page(topic, 0, 10, usize::MAX).expect("the open file is still read") {
            spool.acked(topic, found.number);
        }
    }
    let began = Instant::now();
    while append(&topics[0]).await.is_err() {
        assert!(began.elapsed() < Duration::from_secs(30), "it is not opened anew");
    }
    assert_eq!(append(&topics[1]).await, Ok(()));
    for topic in &topics {
        assert_eq!(spool.way(topic).await, Way::Spool, "{topic}");
    }
    spool.close();
}

/// An entry of another topic, so that nothing else is changed by it.
fn record_of(topic: &str, bytes: usize) -> Record {
    Record { topic: topic.into(), ..entry(1, bytes).record }
}

#[test]
fn a_file_that_was_emptied_gives_its_space_back() {
    let directory = tempfile::tempdir().expect("a directory");
    let config = Config { segment_bytes: 1 << 30, ..config(directory.path()) };
    let spool = Spool::start(config, Arc::new(Metrics::new())).expect("a spool");
    // Meanwhile one is replaced by another.
    let length = || {
        let files = std::fs::read_dir(directory.path()).expect("the directory");
        files.filter_map(|file| Some(file.ok()?.metadata().ok()?.len())).sum::<u64>()
    };
    let topic: Arc<str> = "a".into();
    for _ in 0..8 {
        let appended = spool.append(spool.ticket(&topic), record_of("a", 1 << 20)).blocking_recv();
        assert_eq!(appended, Ok(Ok(())));
    }
    let full = length();
    assert!(full > 8 << 20, "{full}");
    for found in spool.page(&topic, 0, 100, usize::MAX).expect("a page") {
        spool.acked(&topic, found.number);
    }
    let began = Instant::now();
    while length() > full / 4 {
        assert!(began.elapsed() < Duration::from_secs(60), "{} of {full}", length());
        std::thread::yield_now();
    }
    let appended = spool.append(spool.ticket(&topic), record_of("a", 10)).blocking_recv();
    assert_eq!(appended, Ok(Ok(())), "it is used as before");
    spool.close();
}

#[test]
fn more_bytes_than_the_writers_queue_may_hold_are_refused_and_no_more_than_they() {
    let directory = tempfile::tempdir().expect("a directory");
    let config = Config { queue_bytes_max: 10_000, ..config(directory.path()) };
    let spool = Spool::start(config, Arc::new(Metrics::new())).expect("a spool");
    let topic: Arc<str> = "a".into();
    let append = |bytes| spool.append(spool.ticket(&topic), record_of("a", bytes)).blocking_recv();
    assert_eq!(append(20_000), Ok(Err(Refused::Full)));
    assert!(spool.lanes(|lanes| lanes.total()).records == 0 && !spool.lanes(|lanes| lanes.is_closing(&topic)));
    assert_eq!(append(9_000), Ok(Ok(())));
    assert_eq!(append(9_000), Ok(Ok(())), "what was written makes room");
    spool.close();
}
