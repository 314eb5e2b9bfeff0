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
        (batch, after)
    }

    /// What is in a store, by its own count and by a recount.
    fn read(store: &Store) -> Result<Self, store::Error> {
        let contents = store.contents()?;
        let mut model = Self { next: contents.next, ..Self::default() };
        for (lane, size) in &contents.lanes {
            let entries: BTreeMap<_, _> = store.page(lane, 0, usize::MAX, usize::MAX)?.into_iter().collect();
            assert_eq!(*size, size_of(&entries), "{lane}");
            model.lanes.insert(lane.clone(), entries);
        }
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

/// The one of `possible` that is in the store.
fn found(store: &Store, possible: &[Model]) -> Result<Vec<Model>, TestCaseError> {
    let found = Model::read(store).map_err(|error| TestCaseError::fail(format!("it cannot be read: {error}")))?;
    prop_assert!(possible.contains(&found), "{found:?} is none of {possible:?}");
    Ok(vec![found])
}

/// Commits batches until one fails: what may be there then.
fn commit(store: &Store, mut possible: Vec<Model>, batches: &[Vec<Step>]) -> Result<Vec<Model>, TestCaseError> {
    for steps in batches {
        let (batch, after) = possible[0].plan(steps);
        let Ok(contents) = store.commit(&batch) else {
            possible.push(after);
            break;
        };
        prop_assert_eq!(contents.next, after.next);
        possible = vec![after];
    }
    Ok(possible)
}

const START: Model = Model { lanes: BTreeMap::new(), parked: BTreeMap::new(), next: 1 };

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn what_was_committed_survives_any_power_cut_and_a_batch_is_there_whole_or_not_at_all(
        lives in vec((vec(steps(), 0..8), 0_u64..150, any::<u64>()), 1..5),
    ) {
        let (mut disk, mut possible, mut has_opened) = (Disk::default(), vec![START], false);
        for (batches, dies_in, seed) in lives {
            disk.die_in(dies_in);
            match Store::open_with(disk.clone()) {
                Ok(store) => {
                    has_opened = true;
                    possible = commit(&store, found(&store, &possible)?, &batches)?;
                }
                // It had no time to become a file; `open` puts such a one aside.
                Err(store::Error::Broken(_)) if !has_opened && !disk.is_dead() => disk = Disk::default(),
                Err(error) => prop_assert!(disk.is_dead(), "{}", error),
            }
            disk = disk.cut(seed);
        }
        if has_opened {
            found(&Store::open_with(disk).expect("it opens after any cut"), &possible)?;
        }
    }

    #[test]
    fn after_a_failed_write_or_sync_nothing_is_taken_until_it_is_opened_anew_with_all_that_was_committed(
        lives in vec((vec(steps(), 1..8), 0..4_usize, 0_u64..40, any::<bool>()), 1..4),
        seed: u64,
    ) {
        let (disk, mut possible) = (Disk::default(), vec![START]);
        drop(Store::open_with(disk.clone()).expect("a new one"));
        for (batches, operation, after, is_lasting) in lives {
            let operation = [Operation::Read, Operation::Write, Operation::Length, Operation::Sync][operation];
            disk.fail(operation, after, if is_lasting { u64::MAX } else { 1 }, if after % 2 == 0 { EIO } else { ENOSPC });
            if let Ok(store) = Store::open_with(disk.clone()) {
                possible = commit(&store, found(&store, &possible)?, &batches)?;
                disk.mend();
                if possible.len() > 1 && operation != Operation::Read {
                    prop_assert!(store.commit(&Batch::default()).is_err(), "{:?} has failed", operation);
                }
            }
            disk.mend();
            let store = Store::open_with(disk.clone()).expect("it opens on a disk that works again");
            possible = found(&store, &possible)?;
        }
        let store = Store::open_with(disk.cut(seed)).expect("it opens after the cut");
        found(&store, &possible)?;
    }

    #[test]
    fn pages_are_in_order_and_bounded(
        sizes in vec(0_usize..2000, 0..60), from in 0_u64..70, records in 1_usize..80, bytes in 1_usize..40_000,
    ) {
        let store = Store::open_with(Disk::default()).expect("a store");
        let all: Vec<_> = sizes.iter().zip(1_u64..).map(|(size, number)| (number, vec![number as u8; *size])).collect();
        let mut batch = Batch::default();
        batch.lane(&"a".into()).appended.clone_from(&all);
        batch.lane(&"b".into()).appended.push((5, b"another lane".to_vec()));
        batch.parked.clone_from(&all);
        store.commit(&batch).expect("a commit");

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
    let store = Store::open(directory).expect("a store");
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

#[test]
fn whatever_a_disk_has_done_to_the_file_no_altered_entry_comes_out_of_it_and_nothing_panics() {
    let directory = tempfile::tempdir().expect("a directory");
    let whole = file_of_entries(directory.path());
    let path = directory.path().join(store::FILE);
    let sound = std::fs::read(&path).expect("the file");
    let (mut put_aside, mut unreadable, mut decoded) = (0, 0, 0);
    // Those after the range make redb panic when it closes the file.
    for seed in (0..200).chain([2252, 6744, 10559]) {
        let mut bytes = sound.clone();
        let what = damage(&mut bytes, &mut Chance(seed));
        for file in std::fs::read_dir(directory.path()).expect("the directory") {
            std::fs::remove_file(file.expect("a file").path()).expect("it is removed");
        }
        std::fs::write(&path, &bytes).expect("a damaged file");
        let store = match open(directory.path()) {
            Ok(store) => store,
            Err(store::Error::Newer(_)) => continue, // the bits that were changed are those of the format
            Err(error) => panic!("seed {seed}, {what}: not opened: {error}"),
        };
        put_aside += u32::from(store.contents().is_ok_and(|contents| contents.next == 1));
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
        let _ = store.commit(&batch); // it may fail, but not panic
    }
    assert!(put_aside > 10 && unreadable > 10 && decoded > 1000, "{put_aside} {unreadable} {decoded}");
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
    transaction.open_table(meta).expect("a table").insert("format", 2).expect("it is written");
    transaction.commit().expect("a commit");
    drop(db);
    let before = redb_contents(&path);
    let refused = Spool::start(config(directory.path()), Arc::new(Metrics::new())).err().expect("it is refused");
    assert!(matches!(refused, Unusable::Store { error: store::Error::Newer(2), .. }), "{refused}");
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
    let kept = || {
        let names = std::fs::read_dir(directory.path())
            .expect("a directory")
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        names.filter(|name| name.contains("broken")).count()
    };
    drop(super::open(directory.path()).expect("a store"));
    let opening = directory.path().join("opening");
    assert!(std::fs::read(&opening).is_ok_and(|marks| marks.is_empty()));
    std::fs::write(&opening, "..").expect("written"); // as two processes leave it that died there
    drop(super::open(directory.path()).expect("a store"));
    assert_eq!(
        (kept(), std::fs::read(&opening).is_ok_and(|marks| !marks.is_empty())),
        (0, false),
        "it was opened at last"
    );
    std::fs::write(&opening, "...").expect("written");
    drop(super::open(directory.path()).expect("a new store"));
    assert_eq!((kept(), std::fs::read(&opening).is_ok_and(|marks| !marks.is_empty())), (1, false));
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
    let spool = Spool::start(config(directory.path()), Arc::new(Metrics::new())).expect("a spool");
    let length = || std::fs::metadata(directory.path().join(store::FILE)).expect("the file").len();
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
    assert!(spool.lanes().total().records == 0 && !spool.lanes().is_closing(&topic));
    assert_eq!(append(9_000), Ok(Ok(())));
    assert_eq!(append(9_000), Ok(Ok(())), "what was written makes room");
    spool.close();
}
