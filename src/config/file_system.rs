//! Whether the spool's file system is one that keeps what it is given, and has the room that the configuration speaks of.

use std::sync::mpsc;
use std::time::Duration;

use crate::spool;

/// How long a disk may take to say what it is.
const TIMEOUT: Duration = Duration::from_secs(5);

/// By the magic numbers of linux/magic.h.
const UNSUITABLE: [(i64, &str); 7] = [
    (0x0102_1994, "is on tmpfs: its content is in memory and lost when the machine restarts"),
    (0x8584_58f6, "is on ramfs: its content is in memory and lost when the machine restarts"),
    (0x794c_7630, "is on overlayfs (a container's own layer), which is lost with the container; mount a volume"),
    (0x6969, "is on NFS: locks and fsync depend on the server and the network; use a local disk"),
    (0xff53_4d42, "is on SMB: locks and fsync depend on the server and the network; use a local disk"),
    (0xfe53_4d42, "is on SMB: locks and fsync depend on the server and the network; use a local disk"),
    (0x6573_5546, "is on FUSE: whether an fsync reaches a disk depends on its driver; use a local disk"),
];

/// What is probably not meant, each with its key. A disk that does not answer is waited for only for a while.
pub fn warnings(config: &spool::Config) -> Vec<(&'static str, String)> {
    let (directory, (answer, answered)) = (config.directory.clone(), mpsc::sync_channel(1));
    std::thread::spawn(move || {
        let existing = directory.ancestors().find(|path| path.exists());
        let _ = answer.send(existing.and_then(|path| rustix::fs::statfs(path).ok())); // it may be too late
    });
    match answered.recv_timeout(TIMEOUT) {
        Ok(Some(found)) => of(config, found.f_type, found.f_blocks.saturating_mul(found.f_bsize.unsigned_abs())),
        Ok(None) => Vec::new(), // to open the spool says why
        Err(_) => vec![("spool.directory", format!("its disk has not answered for {TIMEOUT:?}"))],
    }
}

/// As `warnings`, of a file system of this kind and with so many bytes in all.
fn of(config: &spool::Config, kind: i64, bytes: u64) -> Vec<(&'static str, String)> {
    let kinds = UNSUITABLE.iter().filter(|(magic, _)| *magic == kind);
    let mut warnings: Vec<_> = kinds.map(|(_, why)| ("spool.directory", (*why).to_owned())).collect();
    if bytes < config.free_min.saturating_add(u64::from(config.segment_bytes)) {
        let why =
            "plus spool.segment_bytes is more than the size of the file system: the spool cannot accept any event";
        warnings.push(("spool.free_min", why.to_owned()));
    } else if bytes < config.bytes_max {
        let why = "is more than the size of the file system: the disk will be full before this limit is reached";
        warnings.push(("spool.bytes_max", why.to_owned()));
    }
    warnings
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn config(directory: &Path) -> spool::Config {
        spool::Config {
            directory: directory.to_owned(),
            bytes_max: 1000,
            dead_letters_bytes_max: 1 << 30,
            segment_bytes: 100,
            free_min: 200,
            queue_records_max: 1,
            queue_bytes_max: 1,
            lock_timeout: Duration::ZERO,
            switch_timeout: Duration::ZERO,
            failover_after: Duration::ZERO,
        }
    }

    #[test]
    fn a_file_system_that_does_not_keep_what_it_is_given_is_warned_of() {
        const EXT4: i64 = 0xef53;
        let of = |kind, bytes| of(&config(Path::new("spool")), kind, bytes);
        for (kind, why) in [(0x0102_1994, "tmpfs"), (0x794c_7630, "overlayfs"), (0x6969, "NFS"), (0x6573_5546, "FUSE")]
        {
            let [(key, found)] = &of(kind, 1000)[..] else { panic!("one warning of {why}") };
            assert!(*key == "spool.directory" && found.contains(why), "{found}");
        }
        let keys = |bytes| of(EXT4, bytes).iter().map(|(key, _)| *key).collect::<Vec<_>>();
        assert_eq!(keys(1000), [""; 0]);
        assert_eq!(
            (keys(999), keys(300), keys(299)),
            (vec!["spool.bytes_max"], vec!["spool.bytes_max"], vec!["spool.free_min"])
        );
    }

    #[test]
    fn the_kernel_is_asked_of_the_directory_or_of_where_it_will_be_made() {
        let mounts = std::fs::read_to_string("/proc/mounts").expect("Linux");
        let is_tmpfs = mounts.lines().any(|line| line.contains(" /dev/shm tmpfs "));
        assert!(is_tmpfs, "this test wants tmpfs at /dev/shm, as Linux has it");
        let found = warnings(&config(Path::new("/dev/shm/no/such/directory")));
        assert!(found.len() == 1 && found[0].1.contains("tmpfs"), "{found:?}");
    }
}
