//! The spool on a real directory; over a disk that fails against a model in `model`, its gate in `gate`.

pub mod failover;
mod gate;
mod model;

use std::collections::HashMap;
use std::path::Path;

use super::*;

fn lane_name(lane: u8) -> Arc<str> {
    format!("livechat.lane{lane}").into()
}

/// An entry that knows its own number.
fn entry(number: u64, bytes: usize) -> Entry {
    let (topic, key) = (lane_name(number as u8 % 2), format!("chat-{}", number % 5));
    let value = [number.to_le_bytes().as_slice(), &vec![number as u8; bytes]].concat();
    Entry::new(Record { topic, key, headers: Vec::new(), value })
}

fn record_of(topic: &Arc<str>, bytes: usize) -> Record {
    Record { topic: Arc::clone(topic), ..entry(1, bytes).record }
}

fn config(directory: &Path) -> Config {
    Config {
        directory: directory.to_owned(),
        bytes_max: 1 << 30,
        dead_letters_bytes_max: 1 << 30,
        segment_bytes: 8000,
        free_min: 0,
        queue_records_max: 100,
        queue_bytes_max: 64 << 20,
        lock_timeout: Duration::from_secs(10),
        switch_timeout: Duration::from_secs(10),
        failover_after: Duration::from_secs(60),
    }
}

fn start(config: Config) -> Spool {
    Spool::start(config, Arc::new(Metrics::new())).expect("a spool")
}

fn append(spool: &Spool, topic: &Arc<str>, bytes: usize) -> Result<(), Refused> {
    spool.append(spool.ticket(topic), record_of(topic, bytes)).blocking_recv().expect("an answer")
}

/// Nothing takes so long.
const DEADLINE: Duration = Duration::from_secs(60);

fn await_that(what: &str, mut is_so: impl FnMut() -> bool) {
    let began = Instant::now();
    while !is_so() {
        assert!(began.elapsed() < DEADLINE, "not in time: {what}");
        std::thread::yield_now();
    }
}

#[test]
fn a_broken_file_is_kept_aside_and_events_are_accepted_all_the_same() {
    let directory = tempfile::tempdir().expect("a directory");
    std::fs::write(directory.path().join("1.seg"), b"no segment").expect("a file");
    let spool = start(config(directory.path()));
    let topic = lane_name(0);
    assert_eq!(append(&spool, &topic, 10), Ok(()));
    let page = spool.page(&topic, 0, 10, 10);
    assert_eq!(page[0].entry.as_ref().map(|entry| &entry.record).ok(), Some(&record_of(&topic, 10)));
    spool.close();
    assert_eq!(std::fs::read(directory.path().join("aside/1.seg")).expect("it is kept"), b"no segment");
    let look = Spool::look(config(directory.path()), Arc::new(Metrics::new())).expect("a spool");
    let problems = look.problems();
    assert!(problems.len() == 1 && problems[0].contains("aside/1.seg was put aside"), "{problems:?}");
}

#[test]
fn a_newer_format_is_refused_and_left_as_it_is() {
    let directory = tempfile::tempdir().expect("a directory");
    let spool = start(config(directory.path()));
    assert_eq!(append(&spool, &lane_name(0), 10), Ok(()));
    spool.close();
    let path = directory.path().join("1.seg");
    let mut bytes = std::fs::read(&path).expect("a segment");
    bytes[8] = 2;
    let sum = crc32c::crc32c(&bytes[..24]);
    bytes[24..28].copy_from_slice(&sum.to_le_bytes());
    std::fs::write(&path, &bytes).expect("written");
    for refused in [Spool::start, Spool::look].map(|open| open(config(directory.path()), Arc::new(Metrics::new()))) {
        let told = refused.err().expect("it is refused").to_string();
        assert!(told.contains("a newer version of livechat-relay has written it"), "{told}");
    }
    assert_eq!(std::fs::read(&path).expect("a segment"), bytes);
}

#[test]
fn a_directory_that_another_relay_has_is_waited_for_and_then_refused() {
    let directory = tempfile::tempdir().expect("a directory");
    let first = start(config(directory.path()));
    let no_time = Config { lock_timeout: Duration::ZERO, ..config(directory.path()) };
    for refused in [Spool::start, Spool::look].map(|open| open(no_time.clone(), Arc::new(Metrics::new()))) {
        let Some(Unusable::Locked { holder, .. }) = refused.err() else { panic!("it is not locked") };
        assert!(holder.starts_with(&format!(": process {} on ", std::process::id())), "{holder}");
    }
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| start(config(directory.path())));
        first.close();
        waiting.join().expect("no panic").close();
    });
}

#[test]
fn a_lane_in_trouble_leaves_as_much_of_the_budget_to_the_others_as_it_has() {
    let directory = tempfile::tempdir().expect("a directory");
    let spool = start(Config { bytes_max: 20_000, ..config(directory.path()) });
    let [troubled, other] = [lane_name(0), lane_name(1)];
    let bytes_of = |topic: &Arc<str>| spool.lanes(|lanes| lanes.sizes().get(&**topic).map_or(0, |size| size.bytes));
    assert_eq!(append(&spool, &troubled, 100), Ok(()));
    spool.lanes(|lanes| lanes.set_troubled(&troubled, true));
    let mut refused = Ok(());
    while refused.is_ok() {
        refused = append(&spool, &troubled, 100);
    }
    assert_eq!(refused, Err(Refused::Full));
    assert!((10_000..10_500).contains(&bytes_of(&troubled)), "{}", bytes_of(&troubled));
    assert!(spool.is_ready(), "others have room");
    while append(&spool, &other, 100).is_ok() {}
    assert!(bytes_of(&other) > 9_000, "one that is in no trouble may use all: {}", bytes_of(&other));
    assert!(!spool.is_ready());

    spool.page(&other, 0, 1000, usize::MAX).iter().for_each(|item| spool.acked(&other, item.number));
    await_that("there is room", || spool.is_ready());
    spool.lanes(|lanes| lanes.set_troubled(&troubled, false));
    while append(&spool, &troubled, 100).is_ok() {}
    assert!(
        bytes_of(&troubled) > 19_000,
        "all of Kafka is unavailable, or it takes events again: {}",
        bytes_of(&troubled)
    );
    spool.close();
}

#[test]
fn a_spool_that_was_full_accepts_again_when_a_part_of_it_is_free() {
    let directory = tempfile::tempdir().expect("a directory");
    let (bytes_max, topic) = (20_000, lane_name(0));
    let spool = start(Config { bytes_max, ..config(directory.path()) });
    while append(&spool, &topic, 100).is_ok() {}
    assert!(!spool.is_ready());
    let bytes = || spool.lanes(|lanes| lanes.total().bytes);
    for item in spool.page(&topic, 0, 1000, usize::MAX) {
        let is_full = bytes() > bytes_max - bytes_max / FREE_AGAIN;
        assert!(!is_full || append(&spool, &topic, 100) == Err(Refused::Full), "{}", bytes());
        if !is_full {
            break;
        }
        spool.acked(&topic, item.number);
    }
    await_that("there is room", || spool.is_ready());
    assert_eq!(append(&spool, &topic, 100), Ok(()));
    spool.close();
}

#[test]
fn a_sixteenth_is_to_be_free_again_of_a_budget_and_not_of_a_file_system() {
    let directory = tempfile::tempdir().expect("a directory");
    let config = Config { bytes_max: 16_000, ..config(directory.path()) };
    let room = |free_min, used, was_used_up| {
        let config = Config { free_min, ..config.clone() };
        room(&config, used, 0, 1, was_used_up).map_err(|no_room| no_room.is_used_up)
    };
    assert_eq!([15_999, 16_000].map(|used| room(0, used, false).is_ok()), [true, false]);
    assert_eq!([15_000, 15_001].map(|used| room(0, used, true).map(drop)), [Ok(()), Err(true)]);
    // What the file system lacks is the reason, however little of the budget is left.
    assert_eq!(room(u64::MAX, 15_999, false), Err(false));
}

#[test]
fn an_app_with_topics_of_its_own_leaves_as_much_of_the_budget_to_the_others_as_it_has() {
    let directory = tempfile::tempdir().expect("a directory");
    let config = Config { bytes_max: 20_000, ..config(directory.path()) };
    let [one, two, other, shared] = [0, 1, 2, 3].map(lane_name);
    let (flood, quiet): (Arc<str>, Arc<str>) = ("flood".into(), "quiet".into());
    let apps = [(&one, &flood), (&two, &flood), (&other, &quiet)];
    let apps: HashMap<_, _> = apps.into_iter().map(|(topic, app)| (Arc::clone(topic), Arc::clone(app))).collect();
    let mut spool = start(config.clone());
    spool.lanes(|lanes| lanes.set_apps(apps.clone()));
    let fill = |spool: &Spool, topics: &[&Arc<str>]| {
        while topics.iter().all(|topic| append(spool, topic, 100).is_ok()) {}
        let sizes = spool.lanes(|lanes| lanes.sizes());
        topics.iter().filter_map(|topic| sizes.get(&***topic)).map(|size| size.bytes).sum::<u64>()
    };
    let has_of_it = fill(&spool, &[&one, &two]);
    assert!((9_500..10_500).contains(&has_of_it), "{has_of_it}");
    assert!(spool.is_ready(), "others have room");
    // What waits is counted after a restart, too.
    spool.close();
    spool = start(config);
    spool.lanes(|lanes| lanes.set_apps(apps));
    assert_eq!([append(&spool, &one, 100), append(&spool, &two, 100)], [Err(Refused::Full); 2]);
    let of_other = fill(&spool, &[&other]);
    assert!((4_500..5_500).contains(&of_other), "half of what is free: {of_other}");
    let of_all = fill(&spool, &[&shared]);
    assert!(of_all > 4_000, "what is no app's alone may use the rest: {of_all}");

    spool.page(&one, 0, 1000, usize::MAX).iter().for_each(|item| spool.acked(&one, item.number));
    await_that("there is room", || spool.is_ready());
    spool.page(&shared, 0, 1000, usize::MAX).iter().for_each(|item| spool.acked(&shared, item.number));
    assert_eq!(append(&spool, &one, 100), Ok(()), "its events are on Kafka: it may have more");
    spool.close();
}

#[test]
fn a_topic_that_is_stuck_takes_no_room_from_the_others_of_its_app() {
    let directory = tempfile::tempdir().expect("a directory");
    let spool = start(Config { bytes_max: 20_000, ..config(directory.path()) });
    let [stuck, healthy, other] = [0, 1, 2].map(lane_name);
    let (one, another): (Arc<str>, Arc<str>) = ("one".into(), "another".into());
    let apps = [(&stuck, &one), (&healthy, &one), (&other, &another)];
    let apps = apps.into_iter().map(|(topic, app)| (Arc::clone(topic), Arc::clone(app))).collect();
    spool.lanes(|lanes| lanes.set_apps(apps));
    let fill = |topic: &Arc<str>| {
        while append(&spool, topic, 100).is_ok() {}
        spool.lanes(|lanes| lanes.sizes().get(&**topic).map_or(0, |size| size.bytes))
    };
    assert_eq!(append(&spool, &stuck, 100), Ok(()));
    spool.lanes(|lanes| lanes.set_troubled(&stuck, true));
    assert!((9_500..10_500).contains(&fill(&stuck)));
    spool.lanes(|lanes| lanes.set_troubled(&stuck, false)); // all of Kafka went away
    assert_eq!(append(&spool, &stuck, 100), Err(Refused::Full), "its share is used up all the same");
    let of_healthy = fill(&healthy);
    assert!((4_500..5_500).contains(&of_healthy), "half of what is free: {of_healthy}");
    assert!(fill(&other) > 2_000, "another app has room");

    let first = spool.page(&stuck, 0, 1, 1)[0].number;
    spool.acked(&stuck, first); // it takes events again
    assert_eq!(append(&spool, &healthy, 100), Err(Refused::Full), "both are the app's");
    spool.close();
}

#[test]
fn new_events_of_a_topic_that_is_paused_wait_even_where_all_before_them_are_published() {
    let directory = tempfile::tempdir().expect("a directory");
    let spool = start(config(directory.path()));
    let topic = lane_name(0);
    assert_eq!(append(&spool, &topic, 10), Ok(()));
    spool.lanes(|lanes| lanes.set_paused(&topic, true));
    spool.page(&topic, 0, 10, 10).iter().for_each(|item| spool.acked(&topic, item.number));
    assert_eq!(spool.lanes(|lanes| lanes.total()).records, 0);
    assert_eq!(spool.way_now(&topic), Some(Way::Spool));
    spool.lanes(|lanes| lanes.set_paused(&topic, false));
    assert_eq!(spool.way_now(&topic), Some(Way::Direct));
    spool.close();
}

#[test]
fn dead_letters_have_a_budget_of_their_own() {
    let directory = tempfile::tempdir().expect("a directory");
    let spool = start(Config { bytes_max: 5_000, dead_letters_bytes_max: 3_000, ..config(directory.path()) });
    let topic = lane_name(0);
    let store = |from| spool.store_dead_letter(entry(1, 500), from).blocking_recv().expect("an answer");
    while store(None).is_ok() {}
    let dead_letters = || spool.lanes(|lanes| lanes.dead_letters());
    assert!((2_000..=3_000).contains(&dead_letters().bytes), "{:?}", dead_letters());
    while append(&spool, &topic, 500).is_ok() {}
    assert!(spool.lanes(|lanes| lanes.total()).bytes > 4_000, "they take no room from the events");
    let first = spool.page(&topic, 0, 1, 1)[0].number;
    assert_eq!(store(Some((Arc::clone(&topic), first))), Err(Refused::Full), "nor from what waits");

    let number = spool.dead_letters(0, 1)[0].number;
    assert_eq!(spool.drop_dead_letter(number).blocking_recv(), Ok(Ok(())));
    assert_eq!(store(Some((Arc::clone(&topic), first))), Ok(()));
    spool.close();
}

#[test]
fn those_who_look_see_what_is_there_and_can_change_nothing() {
    let directory = tempfile::tempdir().expect("a directory");
    let topic = lane_name(0);
    let spool = start(config(directory.path()));
    assert_eq!(append(&spool, &topic, 10), Ok(()));
    spool.close();
    let look = Spool::look(config(directory.path()), Arc::new(Metrics::new())).expect("a spool");
    assert!(look.is_ready() && look.lanes(|lanes| lanes.total()).records == 1);
    assert_eq!(look.oldest().len(), 1);
    assert_eq!(append(&look, &topic, 10), Err(Refused::Failed));
    look.close();
    start(config(directory.path())).close();
}

/// A directory that vanishes and is made again must not leave the fast path of `way_now` with a wrong count of lanes.
#[tokio::test]
async fn after_a_vanished_directory_the_lanes_that_spool_are_still_known_and_so_are_the_dead_letters() {
    let directory = tempfile::tempdir().expect("a directory");
    let place = directory.path().join("spool");
    let spool = start(config(&place));
    let topics: [Arc<str>; 2] = ["a".into(), "b".into()];
    let append =
        async |topic: &Arc<str>| spool.append(spool.ticket(topic), record_of(topic, 10)).await.expect("answered");
    for topic in &topics {
        assert_eq!(append(topic).await, Ok(()));
    }
    let why = DeadLetter { reason: "too_large".to_owned(), error: String::new(), since_ms: 1 };
    let dead_letter = Entry { dead_letter: Some(why), ..entry(7, 10) };
    assert_eq!(spool.store_dead_letter(dead_letter.clone(), None).await, Ok(Ok(())));
    std::fs::remove_dir_all(&place).expect("removed");
    assert_eq!(append(&topics[0]).await, Err(Refused::Failed));
    for topic in &topics {
        let page = spool.page(topic, 0, 10, usize::MAX);
        assert_eq!(page.len(), 1, "the open file is still read");
        page.into_iter().for_each(|found| spool.acked(topic, found.number));
    }
    let began = Instant::now();
    while append(&topics[0]).await.is_err() {
        assert!(began.elapsed() < DEADLINE, "it is not opened again");
    }
    assert_eq!(append(&topics[1]).await, Ok(()));
    for topic in &topics {
        assert_eq!(spool.way(topic).await, Way::Spool, "{topic}");
    }
    let kept = spool.dead_letters(0, 10);
    assert_eq!(kept[0].entry.as_ref().map(|entry| &entry.record).ok(), Some(&dead_letter.record));
    spool.close();
}

#[test]
fn a_spool_that_was_emptied_gives_its_space_back() {
    let directory = tempfile::tempdir().expect("a directory");
    let spool = start(Config { segment_bytes: 1 << 20, ..config(directory.path()) });
    let length = || {
        let files = std::fs::read_dir(directory.path()).expect("the directory");
        files.filter_map(|file| Some(file.ok()?.metadata().ok()?.len())).sum::<u64>()
    };
    let topic: Arc<str> = "a".into();
    (0..8).for_each(|_| assert_eq!(append(&spool, &topic, 1 << 20), Ok(())));
    assert!(length() > 8 << 20, "{}", length());
    spool.page(&topic, 0, 100, usize::MAX).iter().for_each(|found| spool.acked(&topic, found.number));
    await_that("it is smaller", || length() <= 2 << 20);
    assert_eq!(append(&spool, &topic, 10), Ok(()), "it is used as before");
    spool.close();
}

#[test]
fn one_event_in_each_of_many_segments_does_not_keep_the_room_of_all() {
    let directory = tempfile::tempdir().expect("a directory");
    let spool = start(Config { segment_bytes: 1 << 20, ..config(directory.path()) });
    let (stuck, other): (Arc<str>, Arc<str>) = ("stuck".into(), "other".into());
    for _ in 0..10 {
        assert_eq!(append(&spool, &stuck, 10), Ok(()));
        assert_eq!(append(&spool, &other, 900 << 10), Ok(()));
    }
    spool.page(&other, 0, 100, usize::MAX).iter().for_each(|found| spool.acked(&other, found.number));
    let length = || {
        let files = std::fs::read_dir(directory.path()).expect("the directory");
        files.filter_map(|file| Some(file.ok()?.metadata().ok()?.len())).sum::<u64>()
    };
    await_that("it is smaller", || length() <= 3 << 20);
    assert_eq!(spool.page(&stuck, 0, 100, usize::MAX).len(), 10);
    spool.close();
}

#[test]
fn more_bytes_than_the_writers_queue_may_hold_are_refused_and_no_more_than_they() {
    let directory = tempfile::tempdir().expect("a directory");
    let spool = start(Config { queue_bytes_max: 10_000, ..config(directory.path()) });
    let topic: Arc<str> = "a".into();
    assert_eq!(append(&spool, &topic, 20_000), Err(Refused::Full));
    assert_eq!(spool.way_now(&topic), Some(Way::Direct), "its ticket was given back");
    assert_eq!(append(&spool, &topic, 9_000), Ok(()));
    assert_eq!(append(&spool, &topic, 9_000), Ok(()), "what was written makes room");
    spool.close();
}
