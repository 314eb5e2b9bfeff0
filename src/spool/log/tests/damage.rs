//! The log on a disk that has altered its files, lost them, or cannot read them.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::super::disk::{DiskFile, Identity, Result};
use super::super::segment::{DAMAGED, Frames};
use super::disk::{Chance, EACCES, EIO, EMFILE, MemoryDisk};
use super::*;

const LARGE: Config = Config { segment_bytes: 100_000 };

fn large(disk: &MemoryDisk) -> Log {
    Log::open(Arc::new(disk.clone()), LARGE).expect("a log").0
}

/// Where the frame of an event is in a segment.
fn frame_of(event: usize, bytes: &[u8]) -> Range<usize> {
    let id = format!("event-{event}\0");
    let at = bytes.windows(id.len()).position(|part| part == id.as_bytes()).expect("its id");
    let start = bytes[..at].windows(4).rposition(|part| part == Frame::MAGIC).expect("its frame");
    start..start + Frame::HEAD + u32_at(bytes, start + 4) as usize
}

/// What is in all lanes: the events, and the bytes of what is damaged.
fn scan(reader: &Reader) -> (BTreeSet<usize>, Vec<Vec<u8>>) {
    let (mut good, mut raw) = (BTreeSet::new(), Vec::new());
    for item in reader.lanes().into_keys().flat_map(|lane| all_of(reader, &lane)) {
        match item.entry {
            Ok(entry) => assert!(good.insert(event_of(&entry)), "twice"),
            Err(Broken::Damaged(bytes)) => raw.push(bytes),
            Err(Broken::Unread(error)) => panic!("{error}"),
        }
    }
    (good, raw)
}

/// Commits of three events each.
fn append_commits(log: &mut Log, commits: usize, value_bytes: usize) {
    (0..commits).for_each(|commit| drop(append(log, commit * 3..commit * 3 + 3, value_bytes).expect("durable")));
}

#[test]
fn a_damaged_frame_is_given_out_as_it_is_and_the_rest_of_its_segment_goes_on() {
    for is_sealed in [true, false] {
        let disk = MemoryDisk::default();
        let mut log = large(&disk);
        (0..30).for_each(|event| drop(append(&mut log, event..event + 1, 200).expect("durable")));
        if is_sealed {
            log.close().expect("closed");
        }
        let (sound, state) = (disk.files()["1.seg"].clone(), disk.files()["state"].clone());
        // In its magic, length, checksum, lane, value.
        for (at, event) in [(0, 6), (5, 7), (9, 8), (14, 9), (220, 10)] {
            let mut bytes = sound.clone();
            let frame = frame_of(event, &bytes);
            bytes[frame.start + at] ^= 0x10;
            disk.put("1.seg", &bytes);
            disk.put("state", &state);
            let (log, found) = opened(&disk);
            assert!(found.aside.is_empty() && found.torn.is_empty(), "{found:?}");
            let (good, raw) = scan(&log);
            assert_eq!(good, (0..30).filter(|other| *other != event).collect(), "sealed: {is_sealed}");
            assert_eq!(raw, [&bytes[frame]], "sealed: {is_sealed}");
            // Whose it was, an index knows, and a scan does not.
            let lane = if is_sealed { LANES[event % 3] } else { DAMAGED };
            let item = all_of(&log, lane).into_iter().find(|item| item.entry.is_err()).expect("the damage");
            assert!(log.ack(lane, item.number) && scan(&log).1.is_empty());
            assert_eq!(log.damaged(), if is_sealed { (0, 0) } else { (1, 1) });
        }
    }
}

#[test]
fn a_last_commit_of_which_the_disk_has_lost_the_beginning_is_reported_as_torn() {
    let disk = MemoryDisk::default();
    let mut log = large(&disk);
    (0..30).for_each(|event| drop(append(&mut log, event..event + 1, 1000).expect("durable")));
    let mut bytes = disk.files()["1.seg"].clone();
    let last = frame_of(29, &bytes).start;
    bytes[last..last + 512].fill(0);
    disk.put("1.seg", &bytes);
    let (log, found) = opened(&disk);
    assert_eq!((scan(&log).0, found.torn), ((0..29).collect(), vec![1]));
}

#[test]
fn the_end_of_a_segment_that_was_lost_together_with_its_index_is_noticed() {
    let disk = MemoryDisk::default();
    let mut log = large(&disk);
    (0..30).for_each(|event| drop(append(&mut log, event..event + 1, 200).expect("durable")));
    log.close().expect("closed");
    let (sound, state) = (disk.files()["1.seg"].clone(), disk.files()["state"].clone());
    let lost = frame_of(20, &sound).start;
    for is_cut in [true, false] {
        let mut bytes = sound.clone();
        bytes[lost..].fill(0);
        bytes.truncate(if is_cut { lost } else { bytes.len() });
        disk.put("1.seg", &bytes);
        disk.put("state", &state);
        let (log, _) = opened(&disk);
        assert_eq!(scan(&log).0, (0..20).collect());
        assert_eq!(log.damaged(), if is_cut { (0, 1) } else { (1, 0) });
    }
}

/// A file that counts what is read of it.
struct Counted(Vec<u8>, AtomicUsize);

impl DiskFile for Counted {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        self.1.fetch_add(buffer.len(), Ordering::Relaxed);
        let offset = usize::try_from(offset).expect("it is in memory");
        buffer.copy_from_slice(&self.0[offset..offset + buffer.len()]);
        Ok(())
    }

    fn identity(&self) -> Result<Identity> {
        unreachable!("only read")
    }

    fn bytes(&self) -> Result<u64> {
        unreachable!("only read")
    }

    fn write_at(&self, _: u64, _: &[u8]) -> Result<()> {
        unreachable!("only read")
    }

    fn allocate(&self, _: u64) -> Result<()> {
        unreachable!("only read")
    }

    fn truncate(&self, _: u64) -> Result<()> {
        unreachable!("only read")
    }

    fn sync(&self) -> Result<()> {
        unreachable!("only read")
    }
}

#[test]
fn text_that_looks_like_frames_is_read_hardly_more_than_once() {
    let text = b"LCRFAAAA".repeat(100_000);
    let (bytes, end) = (text.len(), u32::try_from(text.len()).expect("short"));
    let file = Arc::new(Counted(text, AtomicUsize::new(0)));
    let frames = Frames { file: Arc::clone(&file) as Arc<dyn DiskFile>, segment: 1, end };
    assert_eq!(frames.next(0).expect("it can be read"), None);
    let read = file.1.load(Ordering::Relaxed);
    assert!(read < 4 * bytes, "the text, and the 12 bytes of each head: {read} of {bytes}");
}

/// Does to the bytes of a file what disks and people do.
fn damage(bytes: &mut Vec<u8>, chance: &mut Chance) {
    let (from, length) = (chance.below(bytes.len()), 1 << chance.below(12));
    let part = from..bytes.len().min(from + length);
    match chance.below(7) {
        0 => bytes.truncate(from),
        1 => bytes[part].fill(0),
        2 => bytes[part].fill_with(|| chance.number() as u8),
        3 => bytes.fill_with(|| chance.number() as u8),
        4 => bytes[chance.below(40)] ^= 1 << chance.below(8),
        5 => (0..=chance.below(20)).for_each(|_| bytes[part.start + chance.below(part.len())] ^= 1 << chance.below(8)),
        // A part as it was at another place.
        _ => {
            let to = chance.below(bytes.len() - part.len() + 1);
            bytes.copy_within(part, to);
        }
    }
}

#[test]
fn whatever_was_done_to_a_file_no_altered_entry_comes_out_of_it_and_nothing_panics() {
    let whole = MemoryDisk::default();
    let (mut log, _) = opened(&whole);
    append_commits(&mut log, 60, 300);
    log.tidy().expect("all but the last one are sealed");
    let sound = whole.files();
    let names: Vec<&String> = sound.keys().collect();
    assert!(names.len() > 8, "{names:?}");
    let (mut altered, mut aside, mut lost_states) = (0, 0, 0);
    for seed in 0..600 {
        let mut chance = Chance(seed);
        let disk = MemoryDisk::default();
        sound.iter().for_each(|(name, bytes)| disk.put(name, bytes));
        let name = if chance.below(8) == 0 { "state" } else { names[chance.below(names.len())] };
        let mut bytes = sound[name].clone();
        damage(&mut bytes, &mut chance);
        disk.put(name, &bytes);
        let (mut log, found) = opened(&disk);
        assert!(found.missing.is_empty() && found.errors.is_empty(), "seed {seed}: {found:?}");
        aside += found.aside.len();
        lost_states += usize::from(found.has_lost_state);
        let (good, raw) = scan(&log);
        altered += raw.len();
        let is_known = |item: &Item| item.entry.as_ref().map_or(true, |found| *found == entry(event_of(found), 300));
        assert!(LANES.into_iter().all(|lane| all_of(&log, lane).iter().all(is_known)), "seed {seed}: altered");
        let lost = 180 - good.len();
        assert!(lost <= 30, "seed {seed}: {lost} are not given out, which is more than a segment has");
        append(&mut log, 500..503, 100).expect("it takes more");
        log.tidy().expect("it goes on");
    }
    assert!(altered > 100 && aside > 20 && lost_states > 20, "{altered} {aside} {lost_states}");
}

#[test]
fn a_missing_segment_is_noticed_and_one_that_the_state_does_not_know_is_taken_in() {
    let disk = MemoryDisk::default();
    let (mut log, _) = opened(&disk);
    append_commits(&mut log, 30, 900);
    log.close().expect("closed");
    let moved = disk.files()["2.seg"].clone();
    disk.take("2.seg");
    let (log, found) = opened(&disk);
    assert_eq!(found.missing, [2]);
    assert!(scan(&log).0.len() < 90);
    disk.put("2.seg", &moved);
    let (log, found) = opened(&disk);
    assert!(found.missing.is_empty() && scan(&log).0.len() == 90, "{found:?}");
    disk.take("state");
    let (log, found) = opened(&disk);
    assert!(found.has_lost_state && scan(&log).0.len() == 90, "{found:?}");
}

#[test]
fn a_segment_that_cannot_be_read_stays_where_it_is_and_holds_up_no_other() {
    for errno in [EACCES, EIO, EMFILE] {
        let disk = MemoryDisk::default();
        let (mut log, _) = opened(&disk);
        append_commits(&mut log, 30, 900);
        let of_second = log.read(LANES[0], 2 * SPAN, 1, 1)[0].number;
        assert!(log.ack(LANES[0], of_second));
        log.close().expect("closed");
        let before = disk.files();
        disk.set_unreadable(Some(("2.seg", errno)));
        let (mut log, found) = opened(&disk);
        assert!(found.missing.is_empty() && found.aside.is_empty() && found.errors.len() == 1, "{found:?}");
        let page = all_of(&log, LANES[0]);
        assert!(page.len() > 10 && page.iter().all(|item| item.number / SPAN != 2), "{page:?}");
        append(&mut log, 90..93, 100).expect("it takes more");
        log.tidy().expect("it goes on");
        assert!(log.retry_unreadable().is_empty() && log.unreadable().contains_key(&2));
        assert_eq!(disk.files()["2.seg"], before["2.seg"]);
        disk.set_unreadable(None);
        assert_eq!(log.retry_unreadable(), [2].into());
        assert_eq!(scan(&log).0.len(), 92, "all but the one that was acked");
    }
}

#[test]
fn frames_in_front_of_a_bad_sector_and_behind_it_are_read() {
    let disk = MemoryDisk::default();
    let mut log = large(&disk);
    append_commits(&mut log, 20, 900);
    let bad = frame_of(30, &disk.files()["1.seg"]);
    disk.set_bad_sector(Some(("1.seg", bad.start + 100)));
    let all = all_of(&log, LANES[0]);
    assert_eq!(events(&all[..10]), (0..10).map(|event| event * 3).collect::<Vec<_>>());
    assert!(matches!(all[10].entry, Err(Broken::Unread(_))), "{all:?}");
    assert_eq!(events(&all[11..]), (11..20).map(|event| event * 3).collect::<Vec<_>>());
    disk.set_bad_sector(None);
    assert_eq!(all_of(&log, LANES[0]).len(), 20, "it can be read another time");
}

#[test]
fn a_sparse_segment_is_written_to_a_smaller_file_under_the_same_numbers() {
    let disk = MemoryDisk::default();
    let mut log = large(&disk);
    append_commits(&mut log, 60, 900);
    log.tidy().expect("the first ones are sealed");
    let is_stuck = |item: &Item| item.number % 10 == 3 && event_of(item.entry.as_ref().expect("good")) % 3 == 1;
    for lane in LANES {
        let others = all_of(&log, lane).into_iter().filter(|item| !is_stuck(item));
        others.for_each(|item| assert!(log.ack(lane, item.number)));
    }
    let stuck: Vec<(u64, Entry)> =
        all_of(&log, LANES[1]).into_iter().map(|item| (item.number, item.entry.expect("good"))).collect();
    assert!(stuck.len() > 3 && scan(&log).0.len() == stuck.len());
    disk.set_free(Some(0), false);
    assert_eq!(log.rewrite_sparse().expect_err("there is no room for the copy").kind(), Kind::Full);
    disk.set_free(None, false);
    let before = log.file_bytes();
    let freed = log.rewrite_sparse().expect("there is room").expect("a sparse one");
    assert!(freed > 70_000 && log.file_bytes() == before - freed, "{freed} of {before}");
    let same = |reader: &Reader| {
        let read = all_of(reader, LANES[1]).into_iter().map(|item| (item.number, item.entry.expect("good")));
        assert!(read.eq(stuck.iter().cloned()));
    };
    same(&log);
    // Though nothing has saved what was acked, what was not copied is away.
    let disk = disk.cut(3);
    let (log, _) = opened(&disk);
    let copied = |log: &Log| -> Vec<u64> {
        all_of(log, LANES[1]).iter().map(|item| item.number).filter(|number| number / SPAN == 1).collect()
    };
    assert_eq!(copied(&log), [SPAN + 3, SPAN + 13, SPAN + 23]);
    // And without its index it is found by a scan.
    let mut bytes = disk.files()["1.seg"].clone();
    bytes.truncate(bytes.len() - 1);
    disk.put("1.seg", &bytes);
    let (log, found) = opened(&disk);
    assert!(found.torn.is_empty(), "{found:?}");
    assert_eq!(copied(&log), [SPAN + 3, SPAN + 13, SPAN + 23]);
}
