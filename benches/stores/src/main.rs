//! Compares redb and fjall as the relay's spool. `cargo run --release -- [--quick] [section...]`
//! with the sections append, recovery, faults, torn, drain, backlog, lock (default: all).

mod cell;
mod faults;
mod store;

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use store::{Result, SETTINGS};

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let arg = |i: usize| args.get(i).map_or("", String::as_str);
    let num = |i: usize| arg(i).parse::<u64>().unwrap_or(0);
    let dir = Path::new(arg(2));
    match arg(0) {
        "child-append" => cell::append(arg(1), dir, num(3), num(4) as usize, arg(5).parse()?, num(6)),
        "child-drain" => cell::drain(arg(1), dir, num(3)),
        "child-victim" => cell::victim(arg(1), dir, num(3)),
        "child-check" => cell::check(arg(1), dir, num(3)),
        "child-redb-faults" => faults::redb(dir, arg(1) == "quick"),
        "child-limited" => faults::limited(arg(1), dir),
        _ => parent(&args),
    }
}

fn parent(args: &[String]) -> Result<()> {
    let quick = args.iter().any(|a| a == "--quick");
    let wanted: Vec<&str> = args.iter().filter(|a| !a.starts_with("--")).map(String::as_str).collect();
    let run = |name: &str| wanted.is_empty() || wanted.contains(&name);
    let ours = concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/stores-data");
    let root = std::env::var("STORES_DATA").unwrap_or(ours.into());
    let root = PathBuf::from(root).join(std::process::id().to_string());
    fs::create_dir_all(&root)?;
    let secs = if quick { "0.5" } else { "1.5" };
    if run("append") {
        println!("== append: setting, group size N, value bytes");
        for size in ["1000", "10000", "100000"] {
            for n in ["16", "256", "1"] {
                for s in &SETTINGS {
                    child(&root, &["child-append", s, "", n, size, secs, "0"])?;
                }
            }
        }
    }
    if run("faults") {
        println!("== failing writes and syncs");
        child(&root, &["child-redb-faults", "plain", ""])?;
        child(&root, &["child-redb-faults", "quick", ""])?;
        for s in ["redb-1p", "fjall", "fjall-kv"] {
            limited(&root, s)?;
        }
    }
    if run("recovery") {
        let bytes: u64 = if quick { 200_000_000 } else { 2_000_000_000 };
        println!("== SIGKILL with {} MB in it, then open (file cache dropped)", bytes / 1_000_000);
        for s in SETTINGS.iter().filter(|s| **s != "redb-2p") {
            let (dir, committed) = victim(&root, s, bytes)?;
            drop_cache(&dir);
            print!("{s:11} ");
            check(s, &dir, committed)?;
            fs::remove_dir_all(&dir)?;
        }
    }
    if run("torn") {
        println!("== damaged files after SIGKILL (50 MB; 100 bytes flipped in the middle, tail cut or zeroed)");
        torn(&root)?;
    }
    if run("drain") {
        let bytes = if quick { "50000000" } else { "300000000" };
        println!("== read from the heads, delete in batches of 256, compact");
        for s in &SETTINGS {
            child(&root, &["child-drain", s, "", bytes])?;
        }
    }
    if run("backlog") {
        let bytes = if quick { "200000000" } else { "1000000000" };
        println!("== append on top of a backlog (1 kB records)");
        for s in &SETTINGS {
            child(&root, &["child-append", s, "", "16", "1000", secs, bytes])?;
        }
    }
    if run("lock") {
        println!("== second open in the same process");
        for s in ["redb-1p", "fjall"] {
            let dir = root.join("lock").join(s);
            println!("{s}: {}", store::open(s, &dir)?.second_open(&dir));
        }
    }
    Ok(fs::remove_dir_all(&root)?)
}

/// Runs this program as a child; an empty third word stands for a fresh directory.
fn child(root: &Path, words: &[&str]) -> Result<()> {
    let dir = root.join("cell");
    let mut command = Command::new(std::env::current_exe()?);
    command.args(&words[..2]).arg(&dir).args(&words[3..]);
    let status = command.status()?;
    if !status.success() {
        println!("{words:?}: {status}");
    }
    if dir.exists() {
        fs::remove_dir_all(&dir)?;
    }
    Ok(())
}

fn limited(root: &Path, setting: &str) -> Result<()> {
    let (dir, exe) = (root.join("limited"), std::env::current_exe()?);
    // An ignored signal stays ignored over exec: a write beyond the limit then answers EFBIG.
    let script = "trap '' XFSZ; exec timeout 60 \"$@\"";
    let status =
        Command::new("bash").args(["-c", script, "sh"]).arg(exe).args(["child-limited", setting]).arg(&dir).status()?;
    println!("  {setting}: {status}");
    if dir.exists() {
        fs::remove_dir_all(&dir)?;
    }
    Ok(())
}

/// Lets a child commit and kills it in the middle; answers what it said was committed.
fn victim(root: &Path, setting: &str, bytes: u64) -> Result<(PathBuf, u64)> {
    let dir = root.join("victim");
    let mut child = Command::new(std::env::current_exe()?)
        .args(["child-victim", setting])
        .arg(&dir)
        .arg(bytes.to_string())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut lines = BufReader::new(child.stdout.take().ok_or("no stdout")?).lines();
    let mut committed = lines.next().ok_or("victim died early")??;
    std::thread::sleep(Duration::from_millis(500));
    child.kill()?;
    for line in lines {
        committed = line?;
    }
    child.wait()?;
    Ok((dir, committed.parse()?))
}

fn check(setting: &str, dir: &Path, committed: u64) -> Result<()> {
    let out = Command::new("timeout")
        .arg("60")
        .arg(std::env::current_exe()?)
        .args(["child-check", setting])
        .arg(dir)
        .arg(committed.to_string())
        .output()?;
    let (text, err) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    print!("{text}");
    if !out.status.success() {
        println!("{}: {}", out.status, err.lines().take(3).collect::<Vec<_>>().join(" "));
    }
    Ok(())
}

fn files(dir: &Path, out: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() { files(&path, out)? } else { out.push(path) }
    }
    Ok(())
}

fn drop_cache(dir: &Path) {
    let mut all = Vec::new();
    let _ = files(dir, &mut all);
    for file in all {
        let of = format!("of={}", file.display());
        let _ = Command::new("dd")
            .args([&of, "oflag=nocache", "conv=notrunc,fdatasync", "count=0", "status=none"])
            .status();
    }
}

fn torn(root: &Path) -> Result<()> {
    // The same store written with one setting may be opened with another: the checking one.
    for (setting, opened) in [
        ("redb-1p", "redb-1p"),
        ("redb-quick", "redb-quick"),
        ("redb-quick", "redb-1p-chk"),
        ("fjall", "fjall"),
        ("fjall-kv", "fjall-kv"),
    ] {
        let (dir, committed) = victim(root, setting, 50_000_000)?;
        let mut all = Vec::new();
        files(&dir, &mut all)?;
        all.sort_by_key(|f| fs::metadata(f).and_then(|m| m.modified()).ok());
        // The newest file, and for fjall the newest data file too.
        let mut targets = vec![all.last().cloned().ok_or("no files")?];
        let big = |f: &&PathBuf| {
            f.extension().is_none_or(|e| e != "jnl") && fs::metadata(f).is_ok_and(|m| m.len() > 1_000_000)
        };
        if setting.starts_with("fjall") {
            targets.extend(all.iter().rev().find(big).cloned());
        }
        for target in targets {
            for harm in ["cut 1 kB", "flip 100", "zero 4 kB"] {
                let copy = root.join("copy");
                Command::new("cp").arg("-a").arg(&dir).arg(&copy).status()?;
                let path = copy.join(target.strip_prefix(&dir)?);
                let mut bytes = fs::read(&path)?;
                // The end of what was written: a journal is allocated ahead with zeros.
                let used = bytes.iter().rposition(|b| *b != 0).map_or(0, |p| p + 1);
                match harm {
                    "cut 1 kB" => bytes.truncate(used - 1000),
                    "flip 100" => bytes[used / 2..used / 2 + 100].iter_mut().for_each(|b| *b ^= 0xFF),
                    _ => bytes[used - 4096..].fill(0),
                }
                fs::write(&path, bytes)?;
                print!("{opened:11} {harm:9} {}: ", target.strip_prefix(&dir)?.display());
                check(opened, &copy, committed)?;
                fs::remove_dir_all(&copy)?;
            }
        }
        fs::remove_dir_all(&dir)?;
    }
    Ok(())
}
