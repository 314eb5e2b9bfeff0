//! Trouble with the spool's disk: full, read-only, removed, broken, locked, newer. Never a crash; 503 where nothing is durable;
//! and what was answered 200 is published when it can be.

use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::Signal;

use crate::support::mock::Mock;
use crate::support::relay::{Relay, Settings, await_that};
use crate::support::{chat_id, http, incoming_event};

const TOPIC: &str = "livechat.incoming_event";

/// A relay with its spool in `directory`.
fn start(mock: &Mock, directory: &Path, more: Settings<'_>) -> Relay {
    with_settings(directory, more, |settings| Relay::start(&mock.bootstrap(), settings))
}

fn with_settings<T>(directory: &Path, more: Settings<'_>, start: impl FnOnce(Settings<'_>) -> T) -> T {
    let path = format!("\"{}\"", directory.join("spool").display());
    let usual = [
        ("topics.create", "false"),
        ("kafka.start_timeout", "\"200ms\""),
        ("kafka.probe_interval", "\"200ms\""),
        ("kafka.publish_deadline", "\"1s\""),
        ("server.response_deadline", "\"8s\""),
        ("spool.free_min", "\"0\""),
        ("spool.directory", path.as_str()),
    ];
    let kept = usual.iter().filter(|(key, _)| more.iter().all(|(set, _)| set != key));
    let settings: Vec<_> = kept.chain(more).copied().collect();
    start(&settings)
}

/// As `start`, when Kafka has taken an event.
fn publishing(mock: &Mock, directory: &Path, more: Settings<'_>) -> Relay {
    let relay = start(mock, directory, more);
    await_that("Kafka is there", || relay.metric("livechat_relay_kafka_up") == 1.0);
    assert_eq!(post(&relay).1, 200);
    relay
}

/// Posts an event, and answers its chat and the status.
fn post(relay: &Relay) -> (String, u16) {
    let chat = chat_id();
    let status = http::post(relay.webhooks, incoming_event(&chat, 1)).status;
    (chat, status)
}

fn post_200(relay: &Relay) -> String {
    let (chat, status) = post(relay);
    assert_eq!(status, 200, "{}", relay.log());
    chat
}

/// Posts large events until one is answered 503; the chats of those before.
fn fill(relay: &Relay) -> Vec<String> {
    let mut answered = Vec::new();
    for _ in 0..1000 {
        let chat = chat_id();
        let answer = http::post(relay.webhooks, incoming_event(&chat, 1).replace("Grüße", &"x".repeat(300_000)));
        if answer.status != 200 {
            assert_eq!((answer.status, answer.header("retry-after")), (503, Some("5")));
            return answered;
        }
        answered.push(chat);
    }
    panic!("the spool does not fill up: {}", relay.log());
}

/// As `post_200`, an event of 20 kB.
fn post_large(relay: &Relay) -> String {
    let chat = chat_id();
    let body = incoming_event(&chat, 1).replace("Grüße", &"x".repeat(20_000));
    assert_eq!(http::post(relay.webhooks, body).status, 200, "{}", relay.log());
    chat
}

fn spooled(relay: &Relay) -> f64 {
    let text = http::get(relay.admin, "/metrics").body;
    let lanes = text.lines().filter(|line| line.starts_with("livechat_relay_spool_records{"));
    lanes.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

fn is_accepting(relay: &Relay) -> bool {
    relay.metric("livechat_relay_spool_accepting") == 1.0
}

fn assert_published(mock: &Mock, relay: &Relay, chats: &[String]) {
    await_that("the spool is empty", || spooled(relay) == 0.0);
    let found: Vec<_> = mock.read(TOPIC).into_iter().filter_map(|message| message.key).collect();
    let lost: Vec<_> = chats.iter().filter(|chat| !found.iter().any(|key| key == chat.as_bytes())).collect();
    assert!(lost.is_empty(), "{lost:?} of {} are not in Kafka\n{}", chats.len(), relay.log());
}

fn assert_heals(mock: &Mock, relay: &Relay, answered: &[String]) {
    mock.thaw();
    await_that("the spool accepts again", || is_accepting(relay));
    assert_published(mock, relay, answered);
    await_that("ready", || http::get(relay.admin, "/readyz").status == 200);
    mock.freeze();
    assert_eq!(post(relay).1, 200, "{}", relay.log());
}

/// A file system of a test's own, where this is root; gone with the value, or with the process.
struct Mounted {
    directory: tempfile::TempDir,
    guard: std::process::Child,
}

impl Mounted {
    /// In memory, so large.
    fn tmpfs(size: &str) -> Option<Self> {
        let size = format!("size={size}");
        Self::mount(&["-t", "tmpfs", "-o", &size, "tmpfs"])
    }

    /// A file with ext4, which can be made to fail as a disk does.
    fn ext4(image: &Path) -> Option<Self> {
        if rustix::process::geteuid().is_root() {
            std::fs::File::create(image).and_then(|file| file.set_len(24 << 20)).expect("a file");
            run("mkfs.ext4", &["-q", "-F", image.to_str().expect("a path")]);
        }
        Self::mount(&["-o", "loop", image.to_str().expect("a path")])
    }

    fn mount(what: &[&str]) -> Option<Self> {
        use std::io::Write as _;
        if !rustix::process::geteuid().is_root() {
            let _ = writeln!(std::io::stderr(), "skipped: only root can mount a file system");
            return None;
        }
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().to_str().expect("a path");
        // Who panics, or is killed, closes the pipe: it is unmounted then, too.
        let mut guard = Command::new("sh");
        guard.args(["-c", r#"trap '' INT TERM HUP; cat; umount -l "$0"; rmdir "$0""#, path]);
        guard.stdin(std::process::Stdio::piped()).stderr(std::process::Stdio::null());
        std::os::unix::process::CommandExt::process_group(&mut guard, 0);
        run("mount", &[what, &[path]].concat());
        Some(Self { guard: guard.spawn().expect("sh can be run"), directory })
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    fn remount(&self, options: &str) {
        run("mount", &["-o", &format!("remount,{options}"), self.path().to_str().expect("a path")]);
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        drop(self.guard.stdin.take());
        let _ = self.guard.wait(); // it has unmounted
    }
}

fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output().expect("a program of the system");
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_disk_that_is_nearly_full_means_503_until_kafka_has_taken_what_is_on_it() {
    let Some(disk) = Mounted::tmpfs("48m") else { return };
    let mock = Mock::start();
    let relay = publishing(&mock, disk.path(), &[("spool.free_min", "\"24MiB\"")]);
    mock.freeze();

    let answered = fill(&relay);
    assert!(answered.len() > 3);
    assert!(!is_accepting(&relay));
    await_that("not ready", || http::get(relay.admin, "/readyz").status == 503);
    assert!(relay.has_logged("the spool is full") && relay.has_logged("spool.free_min"), "{}", relay.log());

    assert_heals(&mock, &relay, &answered);
}

#[test]
fn a_used_up_budget_means_503_until_kafka_has_taken_what_it_is_used_for() {
    let (mock, directory) = (Mock::start(), tempfile::tempdir().expect("a directory"));
    let relay = publishing(&mock, directory.path(), &[("spool.bytes_max", "\"2MiB\"")]);
    mock.freeze();

    let answered = fill(&relay);
    assert_eq!(answered.len(), 6, "of 300 kB each");
    assert!(!is_accepting(&relay) && post(&relay).1 == 503, "whatever its size");
    assert!(relay.has_logged("the spool is full") && relay.has_logged("spool.bytes_max"), "{}", relay.log());

    assert_heals(&mock, &relay, &answered);
}

#[test]
fn a_file_system_that_turns_read_only_stops_the_spool_and_not_the_relay() {
    let image = tempfile::tempdir().expect("a directory");
    let image = image.path().join("disk");
    let Some(disk) = Mounted::ext4(&image) else { return };
    let mock = Mock::start();
    let relay = publishing(&mock, disk.path(), &[]);
    mock.freeze();
    let mut answered = vec![post_200(&relay)];

    disk.remount("abort"); // as ext4 does by itself when the disk fails
    await_that("503", || {
        let (chat, status) = post(&relay);
        answered.extend((status == 200).then_some(chat));
        status == 503
    });
    assert!(!is_accepting(&relay) && relay.has_logged("the spool has failed"), "{}", relay.log());
    mock.thaw();
    await_that("direct", || post(&relay).1 == 200);

    let path = disk.path().to_str().expect("a path");
    let mount = format!("umount {path} && mount -o loop {} {path}", image.display());
    await_that("mounted again", || Command::new("sh").args(["-c", &mount]).output().is_ok_and(|o| o.status.success()));
    assert_heals(&mock, &relay, &answered);
}

#[test]
fn a_file_system_that_is_read_only_at_the_start_is_no_reason_not_to_publish() {
    let Some(disk) = Mounted::tmpfs("24m") else { return };
    disk.remount("ro");
    let mock = Mock::start();
    let relay = publishing(&mock, disk.path(), &[]);
    assert!(!is_accepting(&relay));
    mock.freeze();
    assert_eq!(post(&relay).1, 503);

    disk.remount("rw");
    assert_heals(&mock, &relay, &[]);
}

#[test]
fn what_is_in_a_spool_that_is_removed_under_the_running_relay_is_published() {
    let (mock, directory) = (Mock::start(), tempfile::tempdir().expect("a directory"));
    let relay = publishing(&mock, directory.path(), &[("spool.segment_bytes", "\"64KiB\"")]);
    mock.freeze();
    let answered: Vec<_> = (0..20).map(|_| post_large(&relay)).collect();
    assert!(files(directory.path()).1.len() > 4, "not all of them are written any more");

    std::fs::remove_dir_all(directory.path().join("spool")).expect("a directory");
    await_that("503 and the reason", || post(&relay).1 == 503 && relay.log().contains("is gone"));

    assert_heals(&mock, &relay, &answered);
    assert!(directory.path().join("spool/spool.redb").exists());
}

/// Runs all; most of their time they wait.
fn at_once<const N: usize>(cases: [impl FnOnce() + Send; N]) {
    std::thread::scope(|scope| cases.map(|case| scope.spawn(case)).map(|case| case.join().expect("no panic")));
}

/// The files of a spool: the first one, and those with the events.
fn files(directory: &Path) -> (PathBuf, Vec<PathBuf>) {
    let spool = directory.join("spool");
    let files = std::fs::read_dir(&spool).expect("a directory").map(|file| file.expect("a file").path());
    let mut segments: Vec<_> = files
        .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("spool-")))
        .collect();
    segments.sort();
    (spool.join("spool.redb"), segments)
}

/// A spool with twenty events, as a relay has left it: its files, and the chats of those events.
fn left(mock: &Mock, directory: &Path) -> ([PathBuf; 2], Vec<String>) {
    mock.freeze();
    let mut relay = start(mock, directory, &[]);
    let answered = (0..20).map(|_| post_200(&relay)).collect();
    relay.signal(Signal::TERM);
    assert!(relay.end().success());
    mock.thaw();
    let (first, segments) = files(directory);
    (std::array::from_fn(|n| if n == 0 { first.clone() } else { segments[0].clone() }), answered)
}

#[test]
fn a_file_that_is_broken_at_the_start_is_kept_aside_under_a_name_that_the_log_tells() {
    type Break = fn(&mut Vec<u8>);
    let breaks: [(&str, Break); 5] = [
        ("its head is gone", |file| file[..4096].fill(0)),
        ("its end is gone", |file| file.truncate(file.len() / 2)),
        ("it is short", |file| file.truncate(100)),
        ("it is none of ours", |file| *file = b"not a spool at all".repeat(10_000)),
        ("all but its head is zeros", |file| file[4096..].fill(0)),
    ];
    at_once([0, 1].map(|which| {
        move || {
            at_once(breaks.map(|(how, destroy)| {
                move || {
                    let (mock, directory) = (Mock::start(), tempfile::tempdir().expect("a directory"));
                    let (paths, answered) = left(&mock, directory.path());
                    let mut file = std::fs::read(&paths[which]).expect("a file");
                    destroy(&mut file);
                    std::fs::write(&paths[which], &file).expect("a file");

                    let relay = publishing(&mock, directory.path(), &[]);

                    let log = relay.log();
                    let line = log
                        .lines()
                        .find(|line| line.contains("the spool's file is broken"))
                        .unwrap_or_else(|| panic!("{how}: {log}"));
                    let line: serde_json::Value = serde_json::from_str(line).expect("JSON");
                    let kept = std::fs::read(line["kept"].as_str().expect("a path"));
                    assert_eq!(kept.expect("it is kept").len(), file.len(), "{how}");
                    // What stands in the other files is published.
                    assert_heals(&mock, &relay, if which == 0 { &answered } else { &[] });
                }
            }));
        }
    }));
}

#[test]
fn a_file_in_which_some_bytes_are_zeros_loses_no_event_without_a_word() {
    at_once([1, 2, 3, 4, 5, 6, 7].map(|part| {
        move || {
            let (mock, directory) = (Mock::start(), tempfile::tempdir().expect("a directory"));
            let ([_, path], answered) = left(&mock, directory.path());
            let mut file = std::fs::read(&path).expect("a file");
            let file_part = file.len() / 8;
            let at = file_part * part;
            file[at..at + file_part].fill(0);
            std::fs::write(&path, &file).expect("a file");

            let relay = publishing(&mock, directory.path(), &[]);
            assert_heals(&mock, &relay, &[]);
            mock.thaw();
            let found: Vec<_> = mock.read(TOPIC).into_iter().filter_map(|message| message.key).collect();
            let lost = answered.iter().filter(|chat| !found.iter().any(|key| key == chat.as_bytes())).count();
            let corrupted = r#"livechat_relay_dead_letters_total{reason="corrupted",to="disk"}"#;
            let is_told = relay.log().contains("the spool's file is broken") || relay.metric(corrupted) >= lost as f64;
            assert!(is_told, "part {part}: {lost} of 20 are not in Kafka\n{}", relay.log());
        }
    }));
}

#[test]
fn a_spool_of_many_files_loses_nothing_by_a_kill_and_is_one_segment_again_when_it_is_empty() {
    let (mock, directory) = (Mock::start(), tempfile::tempdir().expect("a directory"));
    let small = [("spool.segment_bytes", "\"64KiB\"")];
    mock.freeze();
    let mut relay = start(&mock, directory.path(), &small);
    let mut answered: Vec<_> = (0..40).map(|_| post_large(&relay)).collect();
    let (_, segments) = files(directory.path());
    assert!(segments.len() >= 10, "{segments:?}");

    relay.signal(Signal::KILL);
    relay.end();
    let relay = start(&mock, directory.path(), &small);
    assert_eq!(spooled(&relay), 40.0);
    answered.extend((0..10).map(|_| post_large(&relay)));

    mock.thaw();
    assert_published(&mock, &relay, &answered);
    await_that("its files are removed", || files(directory.path()).1.len() == 1);
    assert_heals(&mock, &relay, &[]);
}

#[test]
fn a_spool_of_the_version_before_there_were_segments_is_published() {
    let (mock, directory) = (Mock::start(), tempfile::tempdir().expect("a directory"));
    let ([first, segment], answered) = left(&mock, directory.path());
    // Then all stood in one file.
    std::fs::rename(segment, &first).expect("renamed");
    let db = redb::Database::open(&first).expect("a spool");
    let write = db.begin_write().expect("a transaction");
    write.delete_table(redb::TableDefinition::<u64, &[u8]>::new("gone")).expect("deleted");
    write
        .open_table(redb::TableDefinition::<&str, u64>::new("meta"))
        .expect("a table")
        .insert("format", 1)
        .expect("written");
    write.commit().expect("committed");
    drop(db);

    let relay = start(&mock, directory.path(), &[]);
    assert_published(&mock, &relay, &answered);
    assert_heals(&mock, &relay, &[]);
}

#[test]
fn an_empty_file_is_a_new_spool() {
    let (mock, directory) = (Mock::start(), tempfile::tempdir().expect("a directory"));
    std::fs::create_dir(directory.path().join("spool")).expect("a directory");
    std::fs::write(directory.path().join("spool/spool.redb"), b"").expect("a file");
    let relay = publishing(&mock, directory.path(), &[]);
    assert_heals(&mock, &relay, &[]);
}

#[test]
fn a_second_relay_on_the_same_directory_ends_with_its_name_or_waits_for_the_first_ones_end() {
    let (mock, directory) = (Mock::start(), tempfile::tempdir().expect("a directory"));
    mock.freeze();
    let mut first = start(&mock, directory.path(), &[]);
    let chat = post_200(&first);

    let spawn = |settings: Settings<'_>| Relay::spawn(&mock.bootstrap(), settings, &[], &[]);
    let mut refused = with_settings(directory.path(), &[("spool.lock_timeout", "\"0s\"")], spawn);
    assert_eq!(refused.end().code(), Some(1));
    let said = format!("the spool directory {} is locked by another process", directory.path().join("spool").display());
    await_that("it is told", || refused.log().contains(&said));

    let mut waiting = with_settings(directory.path(), &[("spool.lock_timeout", "\"60s\"")], spawn);
    waiting.await_log("waiting for its end");
    first.signal(Signal::TERM);
    assert!(first.end().success());
    mock.thaw();
    let second = waiting.await_start().expect("it takes over");
    assert_published(&mock, &second, &[chat]);
}

#[test]
fn a_spool_of_a_newer_version_is_refused_and_left_as_it_is() {
    let (mock, directory) = (Mock::start(), tempfile::tempdir().expect("a directory"));
    let ([path, _], answered) = left(&mock, directory.path());
    let set_format = |format: u64| {
        let db = redb::Database::open(&path).expect("a spool");
        let write = db.begin_write().expect("a transaction");
        let meta = redb::TableDefinition::<&str, u64>::new("meta");
        write.open_table(meta).expect("a table").insert("format", format).expect("written");
        write.commit().expect("committed");
    };
    set_format(3);

    let spawn = |settings: Settings<'_>| Relay::spawn(&mock.bootstrap(), settings, &[], &[]);
    let mut relay = with_settings(directory.path(), &[], spawn);
    assert_eq!(relay.end().code(), Some(1));
    await_that("it is told", || {
        relay.log().contains("it has format 3, and this version of livechat-relay reads up to 2")
    });

    set_format(2); // as the newer one would have it
    let relay = start(&mock, directory.path(), &[]);
    assert_published(&mock, &relay, &answered);
}

#[test]
fn who_stops_with_events_in_the_spool_says_how_many_and_drain_publishes_them_first() {
    let (mock, directory) = (Mock::start(), tempfile::tempdir().expect("a directory"));
    mock.freeze();
    let mut relay = start(&mock, directory.path(), &[]);
    let mut answered: Vec<_> = (0..20).map(|_| post_200(&relay)).collect();
    relay.signal(Signal::TERM);
    assert_eq!(relay.end().code(), Some(0));
    let line = relay.await_log("stopped: the spool has events, which are published after the next start");
    assert_eq!(serde_json::from_str::<serde_json::Value>(&line).expect("JSON")["records"], 20);

    let drain = |settings: Settings<'_>| Relay::start_with(&mock.bootstrap(), settings, &["--drain"]);
    let mut relay = with_settings(directory.path(), &[], drain);
    answered.push(post_200(&relay));
    relay.signal(Signal::TERM);
    relay.await_log("the spool is emptied first");
    mock.thaw();
    assert_eq!(relay.end().code(), Some(0));
    assert!(relay.has_logged("stopped: nothing is left"), "{}", relay.log());
    let found: Vec<_> = mock.read(TOPIC).into_iter().filter_map(|message| message.key).collect();
    assert!(answered.iter().all(|chat| found.iter().any(|key| key == chat.as_bytes())));
}
