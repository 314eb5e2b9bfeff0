//! How fast the log is, on the disk that has `target/`:
//! `cargo test --release --locked --lib speed -- --ignored --nocapture`, with `SPEED_GB=10` for a large backlog.

use std::path::Path;
use std::time::{Duration, Instant};

use super::*;

const SEGMENT_BYTES: u32 = 32 << 20;
const TIME: Duration = Duration::from_millis(500);
const TURNS: usize = 9;

fn directory() -> tempfile::TempDir {
    tempfile::tempdir_in(concat!(env!("CARGO_MANIFEST_DIR"), "/target")).expect("a directory")
}

fn log_in(path: &Path) -> Log {
    let directory = Directory::create(path).expect("a directory");
    Log::open(Arc::new(directory), Config { segment_bytes: SEGMENT_BYTES }).expect("a log").0
}

/// Records a second, in commits of so many.
fn rate(records: usize, mut commit: impl FnMut()) -> f64 {
    let (began, mut commits) = (Instant::now(), 0);
    while began.elapsed() < TIME {
        commit();
        commits += 1;
    }
    f64::from(commits) * records as f64 / began.elapsed().as_secs_f64()
}

fn appends_to_log(records: usize) -> f64 {
    let directory = directory();
    let mut log = log_in(directory.path());
    let entries: Vec<_> = (0..records).map(|event| entry(event, 1000)).collect();
    let entries: Vec<_> = entries.iter().map(|entry| (&*entry.record.topic, entry)).collect();
    rate(records, || drop(log.append(&entries).expect("durable")))
}

fn median(mut rates: Vec<f64>) -> f64 {
    rates.sort_by(f64::total_cmp);
    rates[rates.len() / 2]
}

#[test]
#[ignore = "it measures"]
fn speed_of_appends() {
    println!("records a commit: appends/s; medians of {TURNS} turns");
    for records in [1, 16, 64, 256] {
        println!("{records:4}: {:9.0}", median((0..TURNS).map(|_| appends_to_log(records)).collect()));
    }
}

#[test]
#[ignore = "it measures"]
fn speed_with_a_backlog() {
    let gigabytes: u64 = std::env::var("SPEED_GB").map_or(1, |bytes| bytes.parse().expect("a number"));
    let directory = directory();
    let mut log = log_in(directory.path());
    let entries: Vec<_> = (0..256).map(|event| entry(event, 1000)).collect();
    let entries: Vec<_> = entries.iter().map(|entry| (&*entry.record.topic, entry)).collect();
    let began = Instant::now();
    while log.file_bytes() < gigabytes * 1_000_000_000 {
        log.append(&entries).expect("durable");
    }
    println!("{gigabytes} GB appended in {:?}", began.elapsed());
    drop(log); // as a kill does
    let began = Instant::now();
    let mut log = log_in(directory.path());
    println!("opened in {:?}: {} events", began.elapsed(), log.lanes()[LANES[0]].records * 3);
    for part in ["first", "middle", "last"] {
        let from = match part {
            "first" => 0,
            "middle" => log.next / 2 * SPAN,
            _ => (log.next - 10) * SPAN,
        };
        let (began, mut next, mut records) = (Instant::now(), from, 0);
        while records < 100_000 {
            let page = log.read(LANES[0], next, 1000, usize::MAX);
            let Some(last) = page.last() else { break };
            (next, records) = (last.number + 1, records + page.len());
            page.iter().for_each(|item| assert!(log.ack(LANES[0], item.number)));
        }
        println!("{part}: {:.0} records/s read and acked", records as f64 / began.elapsed().as_secs_f64());
    }
    let began = Instant::now();
    log.tidy().expect("it goes well");
    println!("tidied in {:?}", began.elapsed());
}
