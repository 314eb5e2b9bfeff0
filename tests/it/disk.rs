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
        ("spool.segment_bytes", "\"1MiB\""),
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
    let relay = publishing(&mock, disk.path(), &[("spool.free_min", "\"24MiB\""), ("spool.segment_bytes", "\"1MiB\"")]);
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
    let settings = [("server.body_bytes_max", "\"1MiB\""), ("spool.bytes_max", "\"2MiB\"")];
    let relay = publishing(&mock, directory.path(), &settings);
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

/// Kafka heals first, and the disk never does.
#[test]
fn a_disk_that_stays_dead_or_full_holds_back_nothing_that_kafka_can_take() {
    at_once([true, false].map(|is_dead| {
        move || {
            let image = tempfile::tempdir().expect("a directory");
            let Some(disk) = Mounted::ext4(&image.path().join("disk")) else { return };
            let mock = Mock::start();
            let relay = publishing(&mock, disk.path(), &[("spool.failover_after", "\"1s\"")]);
            mock.freeze();
            let mut answered: Vec<_> = (0..20).map(|_| post_large(&relay)).collect();

            if is_dead {
                disk.remount("abort");
            } else {
                let mut ballast = std::fs::File::create(disk.path().join("ballast")).expect("a file");
                std::io::copy(&mut std::io::repeat(0), &mut ballast).expect_err("the disk ends");
            }
            await_that("503", || {
                let (chat, status) = post(&relay);
                answered.extend((status == 200).then_some(chat));
                status == 503
            });
            mock.thaw();
            await_that("direct", || {
                let (chat, status) = post(&relay);
                answered.extend((status == 200).then_some(chat));
                status == 200
            });
            assert_published(&mock, &relay, &answered);
            assert!((0..20).all(|_| post(&relay).1 == 200), "{}", relay.log());
            let readiness = http::get(relay.admin, "/readyz");
            let told = if is_dead { "ready, but the spool has failed: " } else { "ready, but the spool is full: " };
            assert!(readiness.status == 200 && readiness.body.starts_with(told), "{}", readiness.body);
        }
    }));
}

/// Kafka stays away, and the disk is mounted again, at once or only after a lazy unmount.
#[test]
fn a_disk_that_was_mounted_again_is_found_with_all_that_was_on_it() {
    let image = tempfile::tempdir().expect("a directory");
    let image = image.path().join("disk");
    let Some(disk) = Mounted::ext4(&image) else { return };
    let mock = Mock::start();
    let relay = publishing(&mock, disk.path(), &[]);
    mock.freeze();
    let answered: Vec<_> = (0..20).map(|_| post_large(&relay)).collect();

    let path = disk.path().to_str().expect("a path");
    run("umount", &["-l", path]);
    await_that("503", || post(&relay).1 == 503);
    run("mount", &["-o", "loop", image.to_str().expect("a path"), path]);
    await_that("it accepts again", || is_accepting(&relay));
    assert_eq!(post(&relay).1, 200);
    assert_heals(&mock, &relay, &answered);
}

#[test]
fn a_file_system_that_is_read_only_at_the_start_is_no_reason_not_to_publish() {
    let Some(disk) = Mounted::tmpfs("24m") else { return };
    disk.remount("ro");
    let mock = Mock::start();
    let relay = start(&mock, disk.path(), &[("spool.failover_after", "\"1s\"")]);
    await_that("after spool.failover_after events are published", || post(&relay).1 == 200);
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
    assert!(segments(directory.path()).len() > 4, "not all of them are written any more");

    std::fs::remove_dir_all(directory.path().join("spool")).expect("a directory");
    await_that("503 and the reason", || post(&relay).1 == 503 && relay.log().contains("was removed or replaced"));

    assert_heals(&mock, &relay, &answered);
    assert!(directory.path().join("spool/state").exists());
}

/// Runs all; most of their time they wait.
fn at_once<const N: usize>(cases: [impl FnOnce() + Send; N]) {
    std::thread::scope(|scope| cases.map(|case| scope.spawn(case)).map(|case| case.join().expect("no panic")));
}

/// The segments of a spool.
fn segments(directory: &Path) -> Vec<PathBuf> {
    let files =
        std::fs::read_dir(directory.join("spool")).expect("a directory").map(|file| file.expect("a file").path());
    files.filter(|path| path.extension().is_some_and(|extension| extension == "seg")).collect()
}

/// A spool with twenty events, as a relay has left it: its segment, and the chats of those events.
fn left(mock: &Mock, directory: &Path) -> (PathBuf, Vec<String>) {
    mock.freeze();
    let mut relay = start(mock, directory, &[]);
    let answered = (0..20).map(|_| post_200(&relay)).collect();
    relay.signal(Signal::TERM);
    assert!(relay.end().success());
    mock.thaw();
    let [segment] = segments(directory).try_into().expect("one segment");
    (segment, answered)
}

#[test]
fn a_segment_that_is_broken_at_the_start_is_kept_aside() {
    type Break = fn(&mut Vec<u8>);
    let breaks: [(&str, Break); 3] = [
        ("its head is gone", |file| file[..4096].fill(0)),
        ("it is short", |file| file.truncate(20)),
        ("it is none of ours", |file| *file = b"not a spool at all".repeat(10_000)),
    ];
    at_once(breaks.map(|(how, destroy)| {
        move || {
            let (mock, directory) = (Mock::start(), tempfile::tempdir().expect("a directory"));
            let (path, _) = left(&mock, directory.path());
            let mut file = std::fs::read(&path).expect("a file");
            destroy(&mut file);
            std::fs::write(&path, &file).expect("a file");

            let relay = publishing(&mock, directory.path(), &[]);

            let name = path.file_name().expect("a name");
            assert!(relay.has_logged("files of the spool are broken"), "{how}: {}", relay.log());
            assert_eq!(relay.metric(r#"livechat_relay_spool_faults{fault="files_aside"}"#), 1.0);
            let kept = std::fs::read(path.with_file_name("aside").join(name)).expect("it is kept");
            assert_eq!(kept, file, "{how}");
            assert_heals(&mock, &relay, &[]);
        }
    }));
}

#[test]
fn a_state_that_is_broken_or_gone_costs_no_event() {
    at_once([true, false].map(|is_gone| {
        move || {
            let (mock, directory) = (Mock::start(), tempfile::tempdir().expect("a directory"));
            let (path, answered) = left(&mock, directory.path());
            let state = path.with_file_name("state");
            if is_gone {
                std::fs::remove_file(&state).expect("a file");
            } else {
                std::fs::write(&state, "broken").expect("a file");
            }
            let relay = publishing(&mock, directory.path(), &[]);
            assert!(relay.has_logged("the spool's state is lost"), "{}", relay.log());
            assert_heals(&mock, &relay, &answered);
        }
    }));
}

#[test]
fn a_segment_that_is_missing_is_said_loudly() {
    let (mock, directory) = (Mock::start(), tempfile::tempdir().expect("a directory"));
    let (path, _) = left(&mock, directory.path());
    std::fs::remove_file(&path).expect("a file");
    let relay = publishing(&mock, directory.path(), &[]);
    assert!(relay.has_logged("segments of the spool are missing"), "{}", relay.log());
    assert_eq!(relay.metric(r#"livechat_relay_spool_faults{fault="segments_missing"}"#), 1.0);
    assert_heals(&mock, &relay, &[]);
}

#[test]
fn a_file_in_which_some_bytes_are_zeros_loses_no_event_without_a_word() {
    at_once([1, 2, 3, 4, 5, 6, 7].map(|part| {
        move || {
            let (mock, directory) = (Mock::start(), tempfile::tempdir().expect("a directory"));
            let (path, answered) = left(&mock, directory.path());
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
            // Frames that lie together are one dead letter.
            let is_told =
                relay.log().contains("events of the spool are damaged") || relay.metric(corrupted) >= lost as f64;
            assert!(lost == 0 || is_told, "part {part}: {lost} of 20 are not in Kafka\n{}", relay.log());
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
    let files = segments(directory.path());
    assert!(files.len() >= 10, "{files:?}");

    relay.signal(Signal::KILL);
    relay.end();
    let relay = start(&mock, directory.path(), &small);
    assert_eq!(spooled(&relay), 40.0);
    answered.extend((0..10).map(|_| post_large(&relay)));

    mock.thaw();
    assert_published(&mock, &relay, &answered);
    await_that("its files are removed", || segments(directory.path()).len() == 1);
    assert_heals(&mock, &relay, &[]);
}

#[test]
fn an_empty_file_that_is_no_segment_yet_is_a_new_spool() {
    let (mock, directory) = (Mock::start(), tempfile::tempdir().expect("a directory"));
    std::fs::create_dir(directory.path().join("spool")).expect("a directory");
    std::fs::write(directory.path().join("spool/1.seg"), b"").expect("a file");
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
    let (path, answered) = left(&mock, directory.path());
    let written = std::fs::read(&path).expect("a segment");
    let mut newer = written.clone();
    newer[8] = 2; // its version, and behind that the header's checksum
    let sum = crc32c::crc32c(&newer[..24]);
    newer[24..28].copy_from_slice(&sum.to_le_bytes());
    std::fs::write(&path, &newer).expect("written");

    let spawn = |settings: Settings<'_>| Relay::spawn(&mock.bootstrap(), settings, &[], &[]);
    let mut relay = with_settings(directory.path(), &[], spawn);
    assert_eq!(relay.end().code(), Some(1));
    await_that("it is told", || relay.log().contains("a newer version of livechat-relay has written it, in format 2"));
    assert_eq!(std::fs::read(&path).expect("a segment"), newer);

    std::fs::write(&path, &written).expect("written"); // as the newer one would have it
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
    let line = relay.await_log("stopped: events remain in the spool and are published after the next start");
    assert_eq!(serde_json::from_str::<serde_json::Value>(&line).expect("JSON")["records"], 20);

    let drain = |settings: Settings<'_>| Relay::start_with(&mock.bootstrap(), settings, &["--drain"]);
    let mut relay = with_settings(directory.path(), &[], drain);
    answered.push(post_200(&relay));
    relay.signal(Signal::TERM);
    relay.await_log("the spool is emptied first");
    mock.thaw();
    assert_eq!(relay.end().code(), Some(0));
    assert!(relay.has_logged("stopped: no events are left"), "{}", relay.log());
    let found: Vec<_> = mock.read(TOPIC).into_iter().filter_map(|message| message.key).collect();
    assert!(answered.iter().all(|chat| found.iter().any(|key| key == chat.as_bytes())));
}
