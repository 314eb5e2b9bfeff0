//! Disks that are full, fail, forget or vanish, and clocks that leap, while the spool is all there is.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::RULES;
use crate::judge::{Order, Rules};
use crate::rig::{Outcome, Rig, Setup, Stage};
use crate::shim::{EIO, Knob};

/// A file system of its own, unmounted in the end.
struct Tmpfs(tempfile::TempDir);

impl Tmpfs {
    fn mount(megabytes: u32) -> Option<Self> {
        let directory = tempfile::tempdir().ok()?;
        let size = format!("size={megabytes}m");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "chaos"]).arg(directory.path()).output();
        mounted.is_ok_and(|done| done.status.success()).then_some(Self(directory))
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(self.path()).status(); // it goes with the machine at the latest
    }
}

pub fn no_tmpfs() -> Option<String> {
    Tmpfs::mount(1).is_none().then(|| "a tmpfs cannot be mounted: that wants root".to_owned())
}

/// First the relay leaves `spool.free_min` free, then another program takes that, too, and gives it back in the end.
pub fn full(stage: &Stage<'_>) -> Outcome {
    let disk = Tmpfs::mount(FREE_MIN_MIB + 40).expect("it could be mounted a moment ago");
    let setup = Setup { text_bytes_max: 16_000, spool_parent: Some(disk.path().to_owned()), ..Setup::default() };
    let mut rig = Rig::start(stage, setup);
    rig.cluster.freeze();
    rig.must_be_spooling();
    let is_full = rig.run_until(Duration::from_secs(90), |rig| rig.client.tally().unavailable > 100);
    rig.must("a full disk means 503", is_full);
    must_answer_nothing(&mut rig, "on a full disk");
    let ballast = disk.path().join("ballast");
    fill(&ballast);
    rig.run_for_seconds(1);
    rig.cluster.kafka.resume_all();
    rig.run_for_seconds(5);
    fs::remove_file(&ballast).expect("a file that was just written");
    rig.recover();
    rig.must_have_spooled();
    let rules = rig.unless_failed_over(RULES);
    rig.conclude(rules)
}

/// As `full`, but it is Kafka that is well again: what the full disk holds must be drained, through a kill, too.
pub fn full_for_good(stage: &Stage<'_>) -> Outcome {
    let disk = Tmpfs::mount(FREE_MIN_MIB + 40).expect("it could be mounted a moment ago");
    let setup = Setup { text_bytes_max: 16_000, spool_parent: Some(disk.path().to_owned()), ..Setup::default() };
    let mut rig = Rig::start(stage, setup);
    rig.cluster.freeze();
    rig.must_be_spooling();
    rig.run_for_seconds(5);
    fill(&disk.path().join("ballast"));
    let is_full = rig.run_until(Duration::from_secs(60), |rig| rig.client.tally().unavailable > 100);
    rig.must("a full disk means 503", is_full);
    rig.kill_relay(0);
    rig.start_relay(0);
    rig.run_for_seconds(2);
    heal_kafka_alone(&mut rig);
    let rules = rig.unless_failed_over(RULES);
    rig.conclude(rules)
}

/// The disk can be read, and never be written again; Kafka heals.
pub fn dead_for_good(stage: &Stage<'_>) -> Outcome {
    let mut rig = Rig::start(stage, Setup { with_shim: true, ..Setup::default() });
    rig.cluster.freeze();
    rig.must_be_spooling();
    rig.run_for_seconds(3);
    rig.shim().set(Knob::WriteErrno, EIO);
    rig.shim().set(Knob::FsyncErrno, EIO);
    rig.run_for_seconds(2);
    must_answer_nothing(&mut rig, "while the disk is dead");
    rig.kill_relay(0);
    rig.start_relay(0);
    let is_failing_over =
        |rig: &Rig<'_>| rig.reading(0).is_some_and(|reading| reading.sum("spool_failover", "") == 1.0);
    let fails_over = rig.run_until(Duration::from_secs(30), is_failing_over);
    rig.must("after spool.failover_after new events go direct", fails_over);
    heal_kafka_alone(&mut rig);
    let rules = rig.unless_failed_over(RULES);
    rig.conclude(rules)
}

/// One segment cannot be opened after a kill: that is all that waits for it.
pub fn segment_unreadable(stage: &Stage<'_>) -> Outcome {
    let mut rig = Rig::start(stage, Setup::default());
    rig.cluster.freeze();
    rig.must_be_spooling();
    let has_segments = rig.run_until(Duration::from_secs(60), |rig| segments(rig.spool()).len() > 4);
    rig.must("there are several segments", has_segments);
    rig.kill_relay(0);
    // Root may open every file; a link, which is not followed, nobody.
    let (lost, away) = (segments(rig.spool())[1].clone(), tempfile::tempdir().expect("a directory"));
    let kept = away.path().join("segment");
    fs::copy(&lost, &kept).and_then(|_| fs::remove_file(&lost)).expect("the file is there");
    std::os::unix::fs::symlink(&kept, &lost).expect("a link");
    rig.start_relay(0);
    rig.run_for_seconds(2);
    let is_counted = rig.reading(0).is_some_and(|r| r.sum("spool_faults", r#"fault="segments_unreadable""#) == 1.0);
    rig.must("the segment is counted as unreadable", is_counted);
    heal_kafka_alone(&mut rig);
    fs::remove_file(&lost).and_then(|()| fs::copy(&kept, &lost)).expect("room for a file");
    let before = rig.total("replayed_total");
    let is_read = rig.run_until(Duration::from_secs(30), |rig| rig.total("replayed_total") > before);
    rig.must("what was in the segment follows when it can be read", is_read);
    rig.recover();
    // What is in the segment comes behind what was posted after it.
    rig.conclude(Rules { order: Order::Yields, ..RULES })
}

/// The segments' files, the oldest first.
fn segments(spool: &Path) -> Vec<PathBuf> {
    let names =
        fs::read_dir(spool).into_iter().flatten().flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let mut numbers: Vec<u64> = names.filter_map(|name| name.strip_suffix(".seg")?.parse().ok()).collect();
    numbers.sort_unstable();
    numbers.into_iter().map(|number| spool.join(format!("{number}.seg"))).collect()
}

/// The disk stays as it is, and all that Kafka can take must be there: the spool is empty, and new events go to Kafka.
fn heal_kafka_alone(rig: &mut Rig<'_>) {
    rig.cluster.kafka.resume_all();
    rig.recover();
    rig.must_have_spooled();
}

/// `spool.free_min` of `config/default.toml`.
const FREE_MIN_MIB: u32 = 256;

/// Writes until there is no room any more.
fn fill(ballast: &Path) {
    let mut file = fs::File::create(ballast).expect("room for a name");
    let error = std::io::copy(&mut std::io::repeat(0), &mut file).expect_err("the disk ends");
    assert_eq!(error.kind(), std::io::ErrorKind::StorageFull, "{error}");
}

pub fn fsync_failing(stage: &Stage<'_>) -> Outcome {
    failing(stage, Knob::FsyncErrno, Knob::FsyncsFailed)
}

pub fn write_failing(stage: &Stage<'_>) -> Outcome {
    failing(stage, Knob::WriteErrno, Knob::WritesFailed)
}

/// The disk fails, and is well again; then it must take events, without a restart.
fn failing(stage: &Stage<'_>, fault: Knob, failures: Knob) -> Outcome {
    let mut rig = Rig::start(stage, Setup { with_shim: true, ..Setup::default() });
    rig.cluster.freeze();
    rig.must_be_spooling();
    rig.shim().set(fault, EIO);
    rig.run_for_seconds(2);
    must_answer_nothing(&mut rig, "while the disk fails");
    let has_failed = rig.shim().get(failures) > 0;
    rig.must("the disk has failed", has_failed);
    rig.must_count("spool_failures_total", "");
    rig.must_count("unavailable_total", "");
    rig.shim().set(fault, 0);
    let before = rig.client.tally().answered;
    let is_well = rig.run_until(Duration::from_secs(30), |rig| rig.client.tally().answered > before + 100);
    rig.must("the spool takes events again when the disk is well, without a restart", is_well);
    rig.cluster.kafka.resume_all();
    rig.recover();
    rig.must_have_spooled();
    rig.conclude(RULES)
}

/// Three times, and once more while the spool is replayed, the disk keeps only what was synced, and by chance parts of the rest.
pub fn power_cut(stage: &Stage<'_>) -> Outcome {
    let mut rig = Rig::start(stage, Setup { with_shim: true, ..Setup::default() });
    rig.shim().set(Knob::EarlyPercent, 30);
    rig.shim().set(Knob::FsyncDelayMs, 20);
    rig.cluster.freeze();
    let mut gone = 0;
    for _ in 0..3 {
        rig.must_be_spooling();
        let pause = rig.random.within(500, 2_000);
        rig.run_for(Duration::from_millis(pause));
        let left = rig.spool_records();
        gone += rig.cut_power();
        let found = rig.spool_records();
        rig.must(&format!("of {left} records in the spool none is gone ({found})"), found >= left);
    }
    rig.cluster.kafka.resume_all();
    let is_draining = |rig: &Rig<'_>| rig.reading(0).is_some_and(|r| r.sum("replayed_total", "") > 0.0);
    let drains = rig.run_until(Duration::from_secs(60), is_draining);
    rig.must("the spool is replayed", drains);
    gone += rig.cut_power();
    rig.must("the cuts took writes that were not synced", gone > 0);
    rig.notes.push(format!("{gone} unsynced writes gone"));
    rig.recover();
    rig.must_have_spooled();
    rig.conclude(RULES)
}

pub fn clock_steps(stage: &Stage<'_>) -> Outcome {
    let mut rig = Rig::start(stage, Setup { with_shim: true, ..Setup::default() });
    rig.cluster.freeze();
    rig.must_be_spooling();
    rig.shim().set(Knob::ClockOffsetSeconds, 3_600);
    rig.run_for_seconds(4);
    rig.shim().set(Knob::ClockOffsetSeconds, -3_600);
    rig.run_for_seconds(4);
    let is_read = rig.shim().get(Knob::ClockReads) > 0;
    rig.must("the relay reads the clock that has leapt", is_read);
    rig.cluster.kafka.resume_all();
    rig.recover();
    rig.shim().set(Knob::ClockOffsetSeconds, 0);
    rig.run_for_seconds(2);
    rig.must_have_spooled();
    rig.conclude(RULES)
}

/// Twice: the second outage, with a kill in it, shows that the relay has not gone on with a file that nobody can find.
pub fn directory_vanishes(stage: &Stage<'_>) -> Outcome {
    let mut rig = Rig::start(stage, Setup::default());
    rig.cluster.freeze();
    rig.must_be_spooling();
    fs::remove_dir_all(rig.spool()).expect("the spool directory is there");
    rig.run_for_seconds(5);
    rig.cluster.kafka.resume_all();
    rig.recover();
    rig.cluster.kafka.settle();
    rig.cluster.freeze();
    rig.must_be_spooling();
    rig.run_for_seconds(5);
    rig.kill_relay(0);
    rig.start_relay(0);
    rig.cluster.kafka.resume_all();
    rig.recover();
    rig.must_have_spooled();
    rig.conclude(RULES)
}

/// For three seconds no sender gets a 200: there is neither Kafka nor a disk.
fn must_answer_nothing(rig: &mut Rig<'_>, when: &str) {
    let before = rig.client.tally().answered;
    rig.run_for_seconds(3);
    let answered = rig.client.tally().answered - before;
    rig.must(&format!("no event is answered 200 {when} ({answered})"), answered == 0);
}
