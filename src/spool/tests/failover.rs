//! A disk that fails, is full or cannot be read while Kafka is well: what becomes of the lanes, in three orders of healing.

pub use super::super::log::tests::disk::MemoryDisk;
use super::super::log::tests::disk::{EACCES, EIO, EMFILE, ENOSPC, Operation};
use super::*;

pub fn start_on(disk: &MemoryDisk, failover_after: Duration) -> Spool {
    let disk = disk.clone();
    let open = move || Log::open(Arc::new(disk.clone()), log::Config { segment_bytes: 8000 });
    let config = Config { failover_after, ..config(Path::new("/nowhere")) };
    Spool::start_with(config, Arc::new(Metrics::new()), open(), Box::new(open))
}

/// Lets each append fail: no write is synced, or no segment can begin.
const FAULTS: [(Operation, i32, Refused); 6] = [
    (Operation::Sync, EIO, Refused::Failed),
    (Operation::Write, EIO, Refused::Failed),
    (Operation::Allocate, ENOSPC, Refused::Full),
    (Operation::Allocate, EIO, Refused::Failed),
    (Operation::Create, EACCES, Refused::Failed),
    (Operation::Create, EMFILE, Refused::Failed),
];

/// A lane with an event in the spool, whose disk takes no more.
fn failed(operation: Operation, errno: i32, why: Refused) -> (MemoryDisk, Spool, Arc<str>) {
    let (disk, topic) = (MemoryDisk::default(), lane_name(0));
    let spool = start_on(&disk, Duration::from_millis(300));
    assert_eq!(append(&spool, &topic, 10), Ok(()));
    assert_eq!(spool.way_now(&topic), Some(Way::Spool));
    disk.fail(operation, errno);
    let mut refused = Ok(());
    await_that("it is refused", || {
        refused = append(&spool, &topic, 3000); // a segment that has its room takes some more
        refused.is_err()
    });
    assert_eq!(refused, Err(why));
    (disk, spool, topic)
}

fn events_of(spool: &Spool, topic: &Arc<str>) -> usize {
    spool.page(topic, 0, 1000, usize::MAX).iter().filter(|item| item.entry.is_ok()).count()
}

#[test]
fn a_lane_goes_direct_when_the_disk_takes_nothing_for_long_and_its_backlog_can_be_read_and_acked() {
    for (operation, errno, why) in FAULTS {
        let (_disk, spool, topic) = failed(operation, errno, why);
        assert_eq!(spool.way_now(&topic), Some(Way::Spool), "not at once");
        await_that("direct", || spool.way_now(&topic) == Some(Way::Direct));
        assert!(spool.lanes(|lanes| lanes.is_failing_over()));
        assert_eq!(spool.0.metrics.spool_failover.get(), 1);
        // Kafka is well, and the disk never heals.
        assert!(events_of(&spool, &topic) > 0);
        spool.page(&topic, 0, 1000, usize::MAX).iter().for_each(|found| spool.acked(&topic, found.number));
        assert_eq!(spool.lanes(|lanes| lanes.total()), Size::default());
        assert_eq!(spool.0.metrics.spool_failover.get(), 0, "nothing waits that could be overtaken");
        spool.close();
    }
}

#[test]
fn a_disk_that_heals_takes_events_again_behind_those_that_wait() {
    for (operation, errno, why) in FAULTS {
        for is_soon in [true, false] {
            let (disk, spool, topic) = failed(operation, errno, why);
            if !is_soon {
                await_that("direct", || spool.way_now(&topic) == Some(Way::Direct));
            }
            disk.set_fault(None);
            await_that("it accepts", || spool.is_ready());
            assert_eq!(spool.way_now(&topic), Some(Way::Spool));
            let before = events_of(&spool, &topic);
            assert_eq!(append(&spool, &topic, 10), Ok(()));
            assert_eq!(events_of(&spool, &topic), before + 1);
            spool.close();
        }
    }
}

/// Not in a commit, either: nothing is appended.
#[test]
fn a_disk_that_hangs_in_whatever_it_does_lets_lanes_go_direct() {
    let (disk, topic) = (MemoryDisk::default(), lane_name(0));
    let spool = start_on(&disk, Duration::from_millis(300));
    assert_eq!(append(&spool, &topic, 10), Ok(()));
    let hung = disk.hang();
    await_that("direct", || spool.way_now(&topic) == Some(Way::Direct));
    drop(hung);
    await_that("the disk is back", || spool.way_now(&topic) == Some(Way::Spool));
    assert_eq!(append(&spool, &topic, 10), Ok(()));
    spool.close();
}

#[test]
fn a_disk_that_hangs_with_the_first_event_of_an_empty_spool_is_a_failover_until_it_answers() {
    let (disk, topic) = (MemoryDisk::default(), lane_name(0));
    let spool = start_on(&disk, Duration::from_millis(300));
    await_that("it accepts", || spool.is_ready());
    let is_failover = || {
        let _ = spool.warning(); // it is found out by looking at the lanes
        spool.0.metrics.spool_failover.get() == 1
    };
    let hung = disk.hang();
    let fsynced = spool.append(spool.ticket(&topic), record_of(&topic, 10));
    await_that("it is noticed", is_failover);
    drop(hung);
    assert_eq!(fsynced.blocking_recv(), Ok(Ok(())));
    await_that("it is over", || !is_failover());
    spool.close();
}

/// A new segment can begin, and no event can be written to it: each try looks as if the disk had healed.
#[test]
fn a_disk_on_which_segments_begin_and_commits_fail_lets_lanes_go_direct_all_the_same() {
    let (disk, topic) = (MemoryDisk::default(), lane_name(0));
    let spool = start_on(&disk, Duration::from_millis(300));
    assert_eq!(append(&spool, &topic, 10), Ok(()));
    let fail_commits = || disk.set_bad_writes(Some(5000));
    fail_commits();
    let mut tries = 0;
    await_that("direct", || {
        if spool.is_ready() {
            tries += 1;
            assert_eq!(append(&spool, &topic, 6000), Err(Refused::Failed));
        }
        spool.way_now(&topic) == Some(Way::Direct)
    });
    assert!(tries > 1, "{tries}");
    disk.set_bad_writes(None);
    await_that("it accepts", || spool.is_ready());
    assert_eq!(append(&spool, &topic, 6000), Ok(()));
    spool.close();
}

#[test]
fn a_segment_that_cannot_be_read_holds_back_no_other_and_comes_in_when_it_can() {
    let (disk, topic) = (MemoryDisk::default(), lane_name(0));
    let spool = start_on(&disk, DEADLINE);
    (0..8).for_each(|_| assert_eq!(append(&spool, &topic, 3000), Ok(())));
    spool.close();
    disk.set_unreadable(Some(("2.seg", EIO)));
    let spool = start_on(&disk, DEADLINE);
    let unreadable = || spool.0.metrics.text();
    let has = |line: &str| String::from_utf8(unreadable()).expect("text").contains(line);
    assert!(has("livechat_relay_spool_faults{fault=\"segments_unreadable\"} 1"));
    assert_eq!(events_of(&spool, &topic), 6);
    assert_eq!(append(&spool, &topic, 10), Ok(()));
    spool.page(&topic, 0, 1000, usize::MAX).iter().for_each(|found| spool.acked(&topic, found.number));
    assert_eq!(spool.way_now(&topic), Some(Way::Direct));
    disk.set_unreadable(None);
    await_that("its lane spools", || spool.way_now(&topic) == Some(Way::Spool));
    assert_eq!(events_of(&spool, &topic), 2);
    assert!(has("livechat_relay_spool_faults{fault=\"segments_unreadable\"} 0"));
    spool.close();
}

#[test]
fn a_spool_that_cannot_be_opened_at_the_start_lets_all_lanes_go_direct_and_comes_in_later() {
    let (disk, topic) = (MemoryDisk::default(), lane_name(0));
    let spool = start_on(&disk, DEADLINE);
    assert_eq!(append(&spool, &topic, 10), Ok(()));
    spool.close();
    disk.fail(Operation::List, EIO);
    let spool = start_on(&disk, Duration::from_millis(300));
    let way = spool.way_now(&topic);
    assert_eq!((spool.is_ready(), way), (false, Some(Way::Spool)), "not before it is known that it is empty");
    await_that("direct", || spool.way_now(&topic) == Some(Way::Direct));
    assert_eq!(append(&spool, &topic, 10), Err(Refused::Failed));
    disk.set_fault(None);
    await_that("it is opened", || spool.is_ready());
    assert_eq!((spool.way_now(&topic), events_of(&spool, &topic)), (Some(Way::Spool), 1));
    spool.close();
}
