//! What the log does, and what it does on a disk that fails and fills up. In `damage` the disk alters bytes, in `model` it does all of
//! it against a model that is a list, and `directory` is a real one.

mod damage;
mod directory;
pub mod disk;
mod model;
mod speed;

use std::collections::BTreeSet;

use jiff::Timestamp;

use super::*;
use crate::event::Record;
use disk::{EACCES, EIO, Fault, MemoryDisk, Operation};

const LANES: [&str; 3] = ["livechat.incoming_event", "livechat.chat_deactivated", "livechat.unlisted"];
const SEGMENT: Config = Config { segment_bytes: 8000 };

/// An entry that knows which it is.
fn entry(event: usize, value_bytes: usize) -> Entry {
    let value = [event.to_le_bytes().as_slice(), &vec![event as u8; value_bytes]].concat();
    let headers =
        vec![("content-type".into(), "application/json".into()), ("ce_id".into(), format!("event-{event}").into())];
    let topic = LANES[event % LANES.len()].into();
    Entry {
        record: Record { topic, key: format!("chat-{}", event % 5), headers, value },
        received: Timestamp::from_millisecond(1_795_000_000_000 + i64::from(event as u32)).expect("a time"),
        dead_letter: None,
    }
}

fn event_of(entry: &Entry) -> usize {
    entry.record.value.first_chunk().map_or(usize::MAX, |bytes| usize::from_le_bytes(*bytes))
}

fn opened(disk: &MemoryDisk) -> (Log, Opened) {
    Log::open(Arc::new(disk.clone()), SEGMENT).expect("a log")
}

/// All that can be read of a lane.
fn all_of(reader: &Reader, lane: &str) -> Vec<Item> {
    reader.read(lane, 0, usize::MAX, usize::MAX)
}

fn events(items: &[Item]) -> Vec<usize> {
    items.iter().map(|item| event_of(item.entry.as_ref().expect("it is good"))).collect()
}

/// Appends events to their lanes, in one commit.
fn append(log: &mut Log, events: std::ops::Range<usize>, value_bytes: usize) -> Result<Vec<u64>> {
    let entries: Vec<_> = events.map(|event| entry(event, value_bytes)).collect();
    let entries: Vec<_> = entries.iter().map(|entry| (&*entry.record.topic, entry)).collect();
    log.append(&entries)
}

#[test]
fn what_is_appended_is_read_lane_by_lane_in_order_before_and_after_a_restart() {
    let disk = MemoryDisk::default();
    let (mut log, _) = opened(&disk);
    for commit in 0..20 {
        append(&mut log, commit * 6..commit * 6 + 6, 300).expect("it is durable");
    }
    let of_lane: Vec<usize> = (0..120).filter(|event| event % 3 == 1).collect();
    assert_eq!(events(&all_of(&log, LANES[1])), of_lane);
    drop(log);
    let (log, found) = opened(&disk);
    assert_eq!(events(&all_of(&log, LANES[1])), of_lane);
    assert!(found.torn.is_empty() && found.missing.is_empty() && found.errors.is_empty(), "{found:?}");
    log.close().expect("it is closed");
    let (reader, _) = Reader::open(Arc::new(disk)).expect("a reader");
    assert_eq!(events(&all_of(&reader, LANES[1])), of_lane);
    assert_eq!(reader.lanes()[LANES[1]].records, 40);
    assert_eq!(reader.oldest(LANES[1]), Some(entry(1, 0).received));
}

#[test]
fn the_numbers_of_a_lane_rise_by_one_within_a_segment_and_from_segment_to_segment() {
    let (mut log, _) = opened(&MemoryDisk::default());
    let numbers: Vec<u64> =
        (0..60).map(|event| append(&mut log, event * 3..event * 3 + 1, 500).expect("durable")[0]).collect();
    assert_eq!(numbers[0], SPAN);
    assert!(numbers.last() > Some(&(4 * SPAN)), "there are more segments: {numbers:?}");
    for pair in numbers.windows(2) {
        let is_next = pair[1] == pair[0] + 1 || (pair[1] % SPAN == 0 && pair[1] / SPAN == pair[0] / SPAN + 1);
        assert!(is_next, "{pair:?}");
    }
    let read: Vec<u64> = all_of(&log, LANES[0]).iter().map(|item| item.number).collect();
    assert_eq!(read, numbers);
}

#[test]
fn a_page_has_no_more_records_and_bytes_than_it_may_but_one_record_always() {
    let (mut log, _) = opened(&MemoryDisk::default());
    (0..30).for_each(|commit| drop(append(&mut log, commit * 3..commit * 3 + 3, 900).expect("durable")));
    let page = |from, records, bytes| log.read(LANES[0], from, records, bytes);
    assert_eq!(events(&page(0, 7, usize::MAX)), (0..7).map(|event| event * 3).collect::<Vec<_>>());
    assert_eq!(page(0, 100, 1).len(), 1);
    assert_eq!(page(0, 100, 2500).len(), 3);
    let mut from = 0;
    for event in 0..30 {
        let one = page(from, 1, usize::MAX);
        from = one[0].number + 1;
        assert_eq!(events(&one), [event * 3]);
    }
    assert!(page(from, 1, 1).is_empty() && page(0, 0, 1).is_empty());
    assert!(log.read("none", 0, 10, 1000).is_empty());
}

/// A full disk on which another process takes whatever becomes free.
#[test]
fn a_full_disk_drains_and_takes_entries_again_when_there_is_room() {
    let disk = MemoryDisk::default();
    let (mut log, _) = opened(&disk);
    (0..30).for_each(|commit| drop(append(&mut log, commit * 3..commit * 3 + 3, 900).expect("durable")));
    disk.set_free(Some(0), true);
    let mut taken = 90;
    let refused = loop {
        match append(&mut log, taken..taken + 3, 900) {
            Ok(_) => taken += 3,
            Err(error) => break error,
        }
    };
    assert_eq!(refused.kind(), Kind::Full, "{refused}");
    assert!(taken < 96, "only the segment that has its room takes more");
    for lane in LANES {
        all_of(&log, lane).into_iter().for_each(|item| assert!(log.ack(lane, item.number)));
    }
    assert_eq!(log.tidy().expect_err("the state cannot be saved").kind(), Kind::Full);
    let left =
        || -> usize { disk.files().iter().filter(|(name, _)| *name != "state").map(|(_, bytes)| bytes.len()).sum() };
    assert!(left() <= 8000, "but for the segment that takes more, the room is given back");
    log.close().expect_err("the state cannot be saved");
    assert_eq!(left(), 0);
    let (mut log, found) = opened(&disk);
    assert!(found.missing.is_empty() && log.lanes().is_empty(), "{found:?} {:?}", log.lanes());
    disk.set_free(None, false);
    log.tidy().expect("there is room");
    assert_eq!(disk.files().into_keys().collect::<Vec<_>>(), ["state"]);
    append(&mut log, 200..203, 900).expect("there is room");
}

#[test]
fn after_a_failed_write_or_sync_nothing_is_appended_until_another_segment_is_durable() {
    for operation in [Operation::Write, Operation::Sync] {
        let disk = MemoryDisk::default();
        let (mut log, _) = opened(&disk);
        append(&mut log, 0..3, 100).expect("durable");
        disk.fail(operation, EIO);
        for _ in 0..3 {
            assert_eq!(append(&mut log, 3..6, 100).expect_err("it fails").kind(), Kind::Dead);
        }
        disk.set_fault(None);
        disk.fail(Operation::SyncDir, EIO);
        append(&mut log, 6..9, 100).expect_err("the new segment's name is not durable");
        disk.set_fault(None);
        let numbers = append(&mut log, 9..12, 100).expect("durable");
        assert!(numbers.iter().all(|number| *number > 2 * SPAN), "{numbers:?}");
        assert_eq!(events(&all_of(&log, LANES[0])), [0, 9]);
        // It was closed at its last good offset: a start does not bring back what was refused.
        let (log, _) = opened(&disk.cut(1));
        assert_eq!(events(&all_of(&log, LANES[0])), [0, 9]);
    }
}

#[test]
fn a_start_does_not_bring_back_a_commit_that_was_the_first_of_its_segment_and_has_failed() {
    for seed in 0..20 {
        let disk = MemoryDisk::default();
        disk.set_chance(seed);
        let (mut log, _) = opened(&disk);
        // The segment's header and the state are synced before.
        disk.set_fault(Some(Fault { operation: Operation::Sync, after: 2, times: 1, errno: EIO }));
        append(&mut log, 0..3, 100).expect_err("it fails");
        append(&mut log, 3..6, 100).expect("durable");
        assert_eq!(events(&all_of(&opened(&disk).0, LANES[0])), [3]);
    }
}

#[test]
fn the_end_of_a_commit_that_the_power_cut_has_torn_is_cut_and_not_taken_for_damage() {
    let mut torn = 0;
    for seed in 0..100 {
        let disk = MemoryDisk::default();
        let config = Config { segment_bytes: 100_000 };
        let (mut log, _) = Log::open(Arc::new(disk.clone()), config).expect("a log");
        append(&mut log, 0..3, 3000).expect("durable");
        disk.fail(Operation::Sync, EIO);
        append(&mut log, 3..12, 3000).expect_err("it fails");
        let (log, found) = opened(&disk.cut(seed));
        torn += found.torn.len();
        let read = events(&all_of(&log, LANES[0]));
        assert!(read.starts_with(&[0]) && log.damaged() == (0, 0), "{read:?}");
    }
    assert!(torn > 20, "{torn}");
}

#[test]
fn an_error_that_does_not_tell_whether_the_file_is_gone_does_not_fail_an_append() {
    let disk = MemoryDisk::default();
    let (mut log, _) = opened(&disk);
    append(&mut log, 0..3, 100).expect("durable");
    for errno in [EIO, EACCES, 116] {
        disk.fail(Operation::Stat, errno);
        append(&mut log, 3..6, 100).expect("durable");
    }
    disk.set_fault(None);
    disk.take("1.seg");
    assert_eq!(append(&mut log, 6..9, 100).expect_err("it is gone").kind(), Kind::Gone);
}

/// Whether the key of an event stands in any file.
fn has_bytes_of(disk: &MemoryDisk, event: usize) -> bool {
    let trace = format!("chat of event {event}.");
    disk.files().values().any(|file| file.windows(trace.len()).any(|bytes| bytes == trace.as_bytes()))
}

#[test]
fn what_was_acked_and_erased_is_in_no_file_and_the_rest_of_its_segments_is_as_it_was() {
    let disk = MemoryDisk::default();
    let (mut log, _) = opened(&disk);
    let mut numbers = Vec::new();
    for event in 0..60 {
        let mut entry = entry(event, 500);
        entry.record.key = format!("chat of event {event}.");
        let lane = Arc::clone(&entry.record.topic);
        numbers.extend(log.append(&[(&lane, &entry)]).expect("durable"));
    }
    let last = *numbers.last().expect("one") / SPAN;
    assert!(last > 3, "there are several segments");
    // One of the first segment, one of the segment that takes entries, and all of the second segment.
    let of_second = (0..60).filter(|event| numbers[*event] / SPAN == 2);
    let dropped: Vec<usize> = [0, 59].into_iter().chain(of_second).collect();
    dropped.iter().for_each(|event| assert!(log.ack(LANES[event % 3], numbers[*event]) && has_bytes_of(&disk, *event)));
    for segment in [1, 2, last] {
        log.erase(segment).expect("there is room");
    }
    let check = |reader: &Reader| {
        for event in 0..60 {
            assert_eq!(has_bytes_of(&disk, event), !dropped.contains(&event), "{event}");
            assert_eq!(reader.is_acked(LANES[event % 3], numbers[event]), dropped.contains(&event), "{event}");
        }
        let left =
            |lane: usize| (0..60).filter(|event| event % 3 == lane && !dropped.contains(event)).collect::<Vec<_>>();
        (0..3).for_each(|lane| assert_eq!(events(&all_of(reader, LANES[lane])), left(lane)));
    };
    check(&log);
    drop(log);
    let (mut log, found) = opened(&disk);
    assert!(found.missing.is_empty() && found.torn.is_empty() && found.errors.is_empty(), "{found:?}");
    check(&log);
    append(&mut log, 60..63, 100).expect("it takes more");
}

#[test]
fn without_room_nothing_is_erased_and_nothing_lost() {
    let disk = MemoryDisk::default();
    let (mut log, _) = opened(&disk);
    let numbers = append(&mut log, 0..9, 500).expect("durable");
    assert!(log.ack(LANES[0], numbers[0]));
    disk.set_free(Some(0), false);
    assert_eq!(log.erase(1).expect_err("there is no room").kind(), Kind::Full);
    assert_eq!(events(&all_of(&log, LANES[0])), [3, 6]);
    disk.set_free(None, false);
    log.erase(1).expect("there is room");
    assert_eq!(events(&all_of(&log, LANES[0])), [3, 6]);
}
