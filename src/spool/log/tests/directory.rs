//! The log in a real directory, and its format, of which files are kept in `tests/fixtures/spool`.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::io::Errno;

use super::*;

fn open_in(path: &Path) -> Result<(Log, Opened)> {
    Log::open(Arc::new(Directory::create(path)?), SEGMENT)
}

/// Whatever looking might change of the files of a directory.
fn traces(path: &Path) -> BTreeMap<PathBuf, (Vec<u8>, [i64; 8])> {
    let files = std::fs::read_dir(path).expect("the directory").map(|file| file.expect("a file").path());
    let trace = |path: PathBuf| {
        let found = path.metadata().expect("a file");
        let times = [found.atime_nsec(), found.mtime_nsec(), found.ctime_nsec()];
        let times = [times[0], times[1], times[2], found.atime(), found.mtime(), found.ino().cast_signed()];
        let other = [i64::from(found.uid()), i64::from(found.mode())];
        let mut all = [0; 8];
        all[..6].copy_from_slice(&times);
        all[6..].copy_from_slice(&other);
        (std::fs::read(&path).unwrap_or_default(), all)
    };
    files.map(|path| (path.clone(), trace(path))).collect()
}

#[test]
fn files_are_the_users_own_and_the_log_survives_a_kill() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("var/spool");
    let (mut log, _) = open_in(&path).expect("a log");
    (0..20).for_each(|commit| drop(append(&mut log, commit * 3..commit * 3 + 3, 500).expect("durable")));
    for file in std::fs::read_dir(&path).expect("the directory") {
        let mode = file.expect("a file").metadata().expect("a file").permissions().mode();
        assert_eq!(mode & 0o7777, 0o600);
    }
    assert_eq!(path.metadata().expect("a directory").permissions().mode() & 0o7777, 0o700);
    drop(log);
    let (log, _) = open_in(&path).expect("a log");
    assert_eq!(events(&all_of(&log, LANES[0])), (0..60).step_by(3).collect::<Vec<_>>());
    LANES.into_iter().for_each(|lane| all_of(&log, lane).iter().for_each(|item| assert!(log.ack(lane, item.number))));
    log.close().expect("closed");
    let left: BTreeSet<_> =
        traces(&path).into_keys().map(|path| path.file_name().expect("a name").to_owned()).collect();
    assert_eq!(left, ["lock".into(), "state".into()].into());
}

#[test]
fn looking_at_a_stopped_relays_log_changes_nothing_and_sees_all_of_it() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path();
    let (mut log, _) = open_in(path).expect("a log");
    (0..20).for_each(|commit| drop(append(&mut log, commit * 3..commit * 3 + 3, 500).expect("durable")));
    log.tidy().expect("some are sealed");
    drop(log);
    let is_open = |number: &u64| path.join(file_name(*number)).metadata().is_ok_and(|found| found.len() == 8000);
    let last = (1..100).find(is_open).expect("one that is not sealed");
    let torn = path.join(file_name(last));
    let mut bytes = std::fs::read(&torn).expect("a file");
    let end = bytes.iter().rposition(|byte| *byte != 0).expect("data");
    bytes[end + 1..end + 100].fill(7);
    std::fs::write(&torn, bytes).expect("a torn tail");
    let before = traces(path);
    let (reader, found) = Reader::open(Arc::new(Directory::open(path).expect("a directory"))).expect("a reader");
    assert_eq!(found.torn, [last]);
    assert_eq!(events(&all_of(&reader, LANES[0])), (0..60).step_by(3).collect::<Vec<_>>());
    let after = traces(path);
    // Reading a file for this comparison is what changes its access time.
    let without_access = |traces: BTreeMap<PathBuf, (Vec<u8>, [i64; 8])>| -> Vec<_> {
        traces
            .into_iter()
            .map(|(path, (bytes, trace))| (path, bytes, trace[1..3].to_vec(), trace[4..].to_vec()))
            .collect()
    };
    assert_eq!(without_access(before), without_access(after));
}

/// Acks empty and replace files under those who read them.
#[test]
fn those_who_read_while_segments_are_removed_and_rewritten_see_no_damage() {
    const EVENTS: usize = 3000;
    let directory = tempfile::tempdir().expect("a directory");
    let (mut log, _) = open_in(directory.path()).expect("a log");
    let (replay, look) = (Reader::clone(&log), Reader::clone(&log));
    let is_done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let is_done = &is_done;
        let replays = scope.spawn(move || {
            let (mut acked, mut next) = (0, 0);
            while acked < EVENTS / 3 {
                let page = replay.read(LANES[0], next, 10, usize::MAX);
                for item in &page {
                    assert_eq!(item.entry.as_ref().map(event_of).expect("it is good"), acked * 3);
                    assert!(replay.ack(LANES[0], item.number));
                    acked += 1;
                    next = item.number + 1;
                }
            }
            is_done.store(true, std::sync::atomic::Ordering::SeqCst);
        });
        scope.spawn(move || {
            while !is_done.load(std::sync::atomic::Ordering::SeqCst) {
                LANES.into_iter().flat_map(|lane| all_of(&look, lane)).for_each(|item| drop(item.entry.expect("good")));
            }
        });
        for commit in 0..EVENTS / 3 {
            append(&mut log, commit * 3..commit * 3 + 3, 100).expect("durable");
            if commit % 5 == 0 {
                for lane in &LANES[1..] {
                    let keeps = |item: &Item| item.number % 20 == 7;
                    let items = all_of(&log, lane).into_iter().filter(|item| !keeps(item));
                    items.for_each(|item| assert!(log.ack(lane, item.number)));
                }
                log.tidy().and_then(|()| log.rewrite_sparse()).expect("it goes well");
            }
        }
        replays.join().expect("no damage");
    });
    log.tidy().expect("it goes well");
}

#[test]
fn a_second_process_is_kept_out_and_told_who_has_it() {
    let directory = tempfile::tempdir().expect("a directory");
    let (log, _) = open_in(directory.path()).expect("a log");
    let refused = open_in(directory.path()).err().expect("it is locked");
    let told = refused.to_string();
    assert!(refused.kind() == Kind::Locked && told.contains(&format!("process {} on ", std::process::id())), "{told}");
    drop(log);
    open_in(directory.path()).expect("it is free");
}

#[test]
fn a_directory_that_others_may_write_to_is_refused_and_links_in_it_are_not_followed() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path();
    let check = || Directory::create(path).expect("a directory").check_owner();
    let look = || Directory::open(path).expect("a directory").check_owner();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).expect("it is ours");
    check().expect("others may look");
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o770)).expect("it is ours");
    assert_eq!(check().expect_err("others may write").kind(), Kind::Foreign);
    assert_eq!(look().expect_err("others may write").kind(), Kind::Foreign);
    if rustix::process::geteuid().is_root() {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o700)).expect("it is ours");
        std::os::unix::fs::chown(path, Some(65534), None).expect("root may");
        assert_eq!(check().expect_err("it is another user's").kind(), Kind::Foreign);
        look().expect("root may look");
    }
    let target = path.join("target");
    std::fs::write(&target, "precious").expect("a file");
    for name in ["lock", "state.new", "1.seg"] {
        symlink(&target, path.join(name)).expect("a link");
    }
    let refused = open_in(path).err().expect("the lock is a link");
    assert_eq!(refused.kind(), Kind::Permission, "{refused}");
    std::fs::remove_file(path.join("lock")).expect("removed");
    let (mut log, found) = open_in(path).expect("a log");
    assert!(log.unreadable().contains_key(&1) && found.errors.iter().any(|error| error.kind() == Kind::Permission));
    append(&mut log, 0..3, 100).expect("it takes more");
    log.close().expect("closed");
    assert_eq!(std::fs::read(&target).expect("a file"), b"precious");
}

#[test]
fn a_directory_that_was_removed_or_replaced_is_gone_and_what_is_in_it_can_still_be_read() {
    let directory = tempfile::tempdir().expect("a directory");
    for is_replaced in [false, true] {
        let path = directory.path().join(format!("{is_replaced}"));
        let (mut log, _) = open_in(&path).expect("a log");
        append(&mut log, 0..3, 100).expect("durable");
        if is_replaced {
            std::fs::rename(&path, directory.path().join("elsewhere")).expect("renamed");
            std::fs::create_dir(&path).expect("another one");
            std::fs::write(path.join("1.seg"), "").expect("another file");
        } else {
            std::fs::remove_dir_all(&path).expect("removed");
        }
        assert_eq!(append(&mut log, 3..6, 100).expect_err("it is gone").kind(), Kind::Gone);
        assert_eq!(events(&all_of(&log, LANES[0])), [0]);
        assert_eq!(append(&mut log, 6..9, 100).expect_err("it is gone").kind(), Kind::Gone);
    }
}

/// Each directory has a segment 1: that of a disk that is mounted later is another one.
#[test]
fn a_log_of_another_directory_has_nothing_of_this_one() {
    let [here, there] = [(); 2].map(|()| tempfile::tempdir().expect("a directory"));
    let [(mut log, _), (mut other, _)] = [&here, &there].map(|directory| open_in(directory.path()).expect("a log"));
    append(&mut log, 0..3, 100).expect("durable");
    append(&mut other, 3..6, 100).expect("durable");
    assert!(!other.has_all_of(&log) && !log.has_all_of(&other));
    let (again, _) = Reader::open(Arc::new(Directory::open(here.path()).expect("a directory"))).expect("a log");
    assert!(again.has_all_of(&log));
}

#[test]
fn a_newer_format_is_refused_and_left_as_it_is() {
    for name in ["1.seg", "state"] {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path();
        let (mut log, _) = open_in(path).expect("a log");
        append(&mut log, 0..3, 100).expect("durable");
        log.close().expect("closed");
        let mut bytes = std::fs::read(path.join(name)).expect("a file");
        bytes[8] = 2;
        let (at, sum) = match name {
            "1.seg" => (24, crc32c::crc32c(&bytes[..24])),
            _ => (12, crc32c::crc32c_append(crc32c::crc32c(&2_u32.to_le_bytes()), &bytes[16..])),
        };
        bytes[at..at + 4].copy_from_slice(&sum.to_le_bytes());
        std::fs::write(path.join(name), bytes).expect("written");
        std::fs::write(path.join("3.seg"), "no segment").expect("written");
        let files = || -> Vec<_> { traces(path).into_iter().map(|(path, (bytes, _))| (path, bytes)).collect() };
        let before: Vec<_> = files().into_iter().filter(|(path, _)| !path.ends_with("lock")).collect();
        let refused = open_in(path).err().expect("it is refused");
        assert!(refused.kind() == Kind::Newer && refused.to_string().contains("format 2"), "{refused}");
        let after: Vec<_> = files().into_iter().filter(|(path, _)| !path.ends_with("lock")).collect();
        assert_eq!(before, after);
        assert_eq!(
            Reader::open(Arc::new(Directory::open(path).expect("there"))).err().expect("refused").kind(),
            Kind::Newer
        );
    }
}

#[test]
fn errors_are_sorted_by_what_helps_and_keep_their_number() {
    let table = [
        (Kind::Full, [Errno::NOSPC, Errno::DQUOT, Errno::FBIG].as_slice()),
        (Kind::Dead, &[Errno::IO, Errno::ROFS, Errno::STALE, Errno::NODEV, Errno::NXIO, Errno::BADF, Errno::NOMEM]),
        (Kind::Permission, &[Errno::ACCESS, Errno::PERM, Errno::LOOP]),
        (Kind::TooManyFiles, &[Errno::MFILE, Errno::NFILE]),
        (Kind::Gone, &[Errno::NOENT, Errno::NOTDIR]),
    ];
    for (kind, errnos) in table {
        for errno in errnos {
            let error = DiskError::new("write", "/spool/1.seg", *errno);
            assert_eq!((error.kind(), error.source.raw_os_error()), (kind, Some(errno.raw_os_error())));
        }
    }
    let error = DiskError::new("write", "/spool/1.seg", Errno::NOSPC);
    assert_eq!(error.to_string(), "cannot write /spool/1.seg: No space left on device (os error 28)");
}

/// Entries in which each field is used.
fn of_the_fixture() -> Vec<Entry> {
    let dead_letter =
        DeadLetter { reason: "too_large".into(), error: "MessageSizeTooLarge".into(), since_ms: 1_795_000_100_000 };
    let text = Record { value: "{\"text\":\"żółw\"}".into(), ..entry(4, 0).record };
    let plain =
        |event: usize| Entry { record: Record { value: b"{}".to_vec(), ..entry(event, 0).record }, ..entry(event, 0) };
    vec![plain(0), plain(1), Entry { record: text, ..plain(4) }, Entry { dead_letter: Some(dead_letter), ..plain(3) }]
}

/// A sealed segment, one that a kill has left with a torn tail, and the state.
fn write_fixture() -> BTreeMap<String, Vec<u8>> {
    let disk = MemoryDisk::default();
    let config = Config { segment_bytes: 4096 };
    let entries = of_the_fixture();
    for _ in 0..2 {
        let (mut log, _) = Log::open(Arc::new(disk.clone()), config).expect("a log");
        for two in entries.chunks(2) {
            let two: Vec<_> = two.iter().map(|entry| (&*entry.record.topic, entry)).collect();
            log.append(&two).expect("durable");
        }
        log.ack(LANES[1], (log.next - 1) * SPAN);
        if log.next == 2 {
            log.close().expect("sealed");
        } else {
            log.tidy().expect("saved");
        }
    }
    let mut files = disk.files();
    let last = files.get_mut("2.seg").expect("it");
    let end = last.iter().rposition(|byte| *byte != 0).expect("data");
    last[end + 1..end + 9].copy_from_slice(b"LCRF\x20\0\0\0");
    files
}

const FIXTURE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/spool");

/// `UPDATE_SNAPSHOTS=1` writes it, which is right only together with another version number.
#[test]
fn format_1_is_written_as_it_was() {
    for (name, bytes) in write_fixture() {
        let kept = Path::new(FIXTURE).join(&name);
        if std::env::var_os("UPDATE_SNAPSHOTS").is_some() {
            std::fs::create_dir_all(FIXTURE).and_then(|()| std::fs::write(&kept, &bytes)).expect("written");
        }
        assert!(std::fs::read(&kept).expect("the fixture") == bytes, "{name} has changed");
    }
}

#[test]
fn format_1_stays_readable() {
    let directory = Directory::open(Path::new(FIXTURE)).expect("the fixture");
    let (reader, found) = Reader::open(Arc::new(directory)).expect("a reader");
    assert_eq!(found.torn, [2]);
    let entries = of_the_fixture();
    let read = |lane| all_of(&reader, lane).into_iter().map(|item| (item.number, item.entry.expect("good")));
    let first: Vec<_> = read(LANES[0]).collect();
    let both = [SPAN, SPAN + 1, 2 * SPAN, 2 * SPAN + 1].into_iter();
    assert_eq!(first, both.zip([&entries[0], &entries[3]].into_iter().cycle().cloned()).collect::<Vec<_>>());
    let second: Vec<_> = read(LANES[1]).collect();
    assert_eq!(second, [(SPAN + 1, entries[2].clone()), (2 * SPAN + 1, entries[2].clone())]);
}

#[test]
fn a_few_lines_of_python_read_a_segment() {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/read-segment.py");
    let printed = match Command::new("python3").arg(script).arg(format!("{FIXTURE}/2.seg")).output() {
        Ok(printed) => printed,
        Err(error) => {
            assert!(std::env::var_os("CI").is_none(), "python3: {error}");
            return eprintln!("skipped: python3: {error}");
        }
    };
    let errors = String::from_utf8_lossy(&printed.stderr);
    assert!(printed.status.success() && errors.starts_with("no frame at "), "{errors}");
    let lines = String::from_utf8(printed.stdout).expect("text");
    let mut indexes = BTreeMap::new();
    for (line, entry) in lines.lines().zip(of_the_fixture()) {
        let line: serde_json::Value = serde_json::from_str(line).expect("JSON");
        let Entry { record, received, dead_letter } = entry;
        let index = indexes.entry(record.topic.clone()).and_modify(|index| *index += 1).or_insert(0);
        let expected = serde_json::json!({
            "segment": 2, "offset": line["offset"], "lane": *record.topic, "index": *index, "synced": line["synced"],
            "received_ms": received.as_millisecond(), "topic": *record.topic, "key": record.key, "headers": record.headers,
            "value": String::from_utf8_lossy(&record.value),
        });
        let mut expected = expected.as_object().expect("an object").clone();
        expected.extend(dead_letter.map(|why| ("dead_letter".to_owned(), serde_json::to_value(why).expect("JSON"))));
        assert_eq!(line, serde_json::Value::Object(expected));
    }
    assert_eq!(lines.lines().count(), 4);
}
