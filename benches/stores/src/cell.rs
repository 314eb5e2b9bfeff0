//! The child processes: each measures one cell in a process of its own, so
//! that memory and CPU figures are not mixed, and prints one line.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::store::{LANES, Result, Store, open, value};

/// User and system time of this process in seconds.
fn cpu() -> f64 {
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let rest: Vec<&str> = stat.rsplit(") ").next().unwrap_or("").split(' ').collect();
    [11, 12].iter().filter_map(|i| rest.get(*i)?.parse::<f64>().ok()).sum::<f64>() / 100.0
}

fn proc_number(file: &str, name: &str) -> u64 {
    let text = fs::read_to_string(file).unwrap_or_default();
    let line = text.lines().find(|l| l.starts_with(name)).unwrap_or("");
    line.split_whitespace().nth(1).and_then(|n| n.parse().ok()).unwrap_or(0)
}

pub fn rss_mib() -> u64 {
    proc_number("/proc/self/status", "VmRSS:") / 1024
}

/// Bytes really taken on the disk by a directory tree.
pub fn disk_bytes(dir: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let Ok(entries) = fs::read_dir(dir) else { return 0 };
    entries
        .flatten()
        .map(|e| match e.metadata() {
            Ok(m) if m.is_dir() => disk_bytes(&e.path()),
            Ok(m) => m.blocks() * 512,
            Err(_) => 0,
        })
        .sum()
}

/// The global record number decides lane and sequence.
fn batch(next: u64, n: u64, size: usize) -> Vec<(u64, u64, Vec<u8>)> {
    let one = |i: u64| (i % LANES, i / LANES, value(i % LANES, i / LANES, size));
    (next..next + n).map(one).collect()
}

fn fill(store: &Store, from: u64, bytes: u64, size: usize) -> Result<u64> {
    let mut next = from;
    while (next - from) * (size as u64) < bytes {
        let n = 256.min((4 << 20) / size as u64).max(1);
        store.append(&batch(next, n, size))?;
        next += n;
    }
    Ok(next)
}

/// Appends for some seconds on top of a backlog and prints the figures.
pub fn append(setting: &str, dir: &Path, n: u64, size: usize, secs: f64, backlog: u64) -> Result<()> {
    let store = open(setting, dir)?;
    let filling = Instant::now();
    let mut next = fill(&store, 0, backlog, size.min(1000))?;
    if backlog > 0 && size > 1000 {
        next += 1_000_000 * LANES;
    }
    let filled = filling.elapsed();
    let payload = backlog;
    let per_byte = disk_bytes(dir) as f64 / payload.max(1) as f64;
    let (cpu0, io0) = (cpu(), proc_number("/proc/self/io", "write_bytes:"));
    let (mut times, mut busy, mut count) = (Vec::new(), Duration::ZERO, 0u64);
    while busy.as_secs_f64() < secs && count * (size as u64) < 600_000_000 {
        let items = batch(next, n, size);
        let start = Instant::now();
        store.append(&items)?;
        times.push(start.elapsed());
        busy += start.elapsed();
        next += n;
        count += n;
    }
    times.sort();
    let written = proc_number("/proc/self/io", "write_bytes:") - io0;
    let (c, b) = (count as f64, busy.as_secs_f64());
    let ms = |q: f64| times[((times.len() - 1) as f64 * q) as usize].as_secs_f64() * 1e3;
    print!(
        "{setting:17} {n:4} {size:7} | {:9.0} /s {:7.1} MB/s | p50 {:7.2} p99 {:8.2} max {:8.2} ms | cpu {:6.3} s/1000 | written x{:5.1} | rss {:4} MiB",
        c / b,
        c * size as f64 / b / 1e6,
        ms(0.5),
        ms(0.99),
        ms(1.0),
        (cpu() - cpu0) / c * 1e3,
        written as f64 / c / size as f64,
        rss_mib(),
    );
    if backlog > 0 {
        print!(" | backlog {:.1} GB in {:.0} s, disk x{per_byte:.2}", backlog as f64 / 1e9, filled.as_secs_f64());
    }
    println!();
    Ok(())
}

/// Reads all lanes from the head, deleting in batches of 256, then compacts.
pub fn drain(setting: &str, dir: &Path, bytes: u64) -> Result<()> {
    let size = 1000;
    let mut store = open(setting, dir)?;
    let total = fill(&store, 0, bytes, size)?;
    let full = disk_bytes(dir);
    let (start, cpu0) = (Instant::now(), cpu());
    let (mut read, mut wrong) = (0u64, 0u64);
    let mut heads = vec![0u64; LANES as usize];
    loop {
        let before = read;
        for lane in 0..LANES {
            let rows = store.read(lane, heads[lane as usize], 256)?;
            wrong += rows.iter().filter(|(s, v)| *v != value(lane, *s, size)).count() as u64;
            let seqs: Vec<u64> = rows.iter().map(|r| r.0).collect();
            let Some(last) = seqs.last() else { continue };
            store.delete(lane, &seqs)?;
            heads[lane as usize] = last + 1;
            read += seqs.len() as u64;
        }
        if before == read {
            break;
        }
    }
    let (took, used) = (start.elapsed().as_secs_f64(), cpu() - cpu0);
    let left = disk_bytes(dir);
    let from_zero = Instant::now();
    for lane in 0..LANES {
        store.read(lane, 0, 1)?;
    }
    let scan = from_zero.elapsed();
    let compacting = Instant::now();
    let compacted = store.compact().map(|()| format!("{:.2} s", compacting.elapsed().as_secs_f64()));
    let after = disk_bytes(dir);
    drop(store);
    println!(
        "{setting:17} drained {read}/{total} wrong {wrong} | {:8.0} records/s cpu {:.3} s/1000 | disk MB: full {} emptied {} | first-of-each-lane scan from 0: {:.1} ms | compact {} -> {} MB, closed {} MB",
        read as f64 / took,
        used / read as f64 * 1e3,
        full / 1_000_000,
        left / 1_000_000,
        scan.as_secs_f64() * 1e3,
        compacted.unwrap_or_else(|e| e.to_string()),
        after / 1_000_000,
        disk_bytes(dir) / 1_000_000,
    );
    Ok(())
}

/// Fills, then commits until it is killed, naming every committed record count.
pub fn victim(setting: &str, dir: &Path, bytes: u64) -> Result<()> {
    let store = open(setting, dir)?;
    let mut next = fill(&store, 0, bytes, 1000)?;
    let mut out = std::io::stdout();
    loop {
        writeln!(out, "{next}")?;
        out.flush()?;
        store.append(&batch(next, 16, 1000))?;
        next += 16;
    }
}

/// Opens after a kill, appends once, and looks at every committed record.
pub fn check(setting: &str, dir: &Path, committed: u64) -> Result<()> {
    let start = Instant::now();
    let store = open(setting, dir)?;
    let opened = start.elapsed();
    let first = store.append(&[(LANES, 0, value(LANES, 0, 1000))]);
    let ready = start.elapsed();
    let rss = rss_mib();
    let (mut found, mut wrong, mut errors) = (0u64, 0u64, Vec::new());
    for lane in 0..LANES {
        let mut from = 0;
        loop {
            match store.read(lane, from, 256) {
                Ok(rows) => {
                    let Some(last) = rows.last() else { break };
                    from = last.0 + 1;
                    found += rows.iter().filter(|(s, _)| s * LANES + lane < committed).count() as u64;
                    wrong += rows.iter().filter(|(s, v)| *v != value(lane, *s, 1000)).count() as u64;
                }
                Err(e) => {
                    errors.push(e.to_string());
                    break;
                }
            }
        }
    }
    println!(
        "open {:.3} s, first append at {:.3} s ({}), rss {rss} MiB; of {committed} committed {} missing, {wrong} altered, {} lanes with read errors {:?}",
        opened.as_secs_f64(),
        ready.as_secs_f64(),
        first.map_or_else(|e| e.to_string(), |()| "ok".into()),
        committed - found.min(committed),
        errors.len(),
        errors.first(),
    );
    Ok(())
}
