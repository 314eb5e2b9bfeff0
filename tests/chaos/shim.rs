//! The harness's side of `shim.c`: builds it, tells a relay's environment of it, and turns its knobs while the relay runs.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::LazyLock;

/// The errno of a broken disk.
pub const EIO: i64 = 5;

/// The numbers on the page that both sides see, in the order of `enum knob`.
#[derive(Clone, Copy, Debug)]
pub enum Knob {
    /// What fsync fails with; 0: it does not.
    FsyncErrno = 0,
    WriteErrno = 1,
    ClockOffsetSeconds = 2,
    /// How many of a hundred unsynced writes the disk keeps, whole or in part.
    EarlyPercent = 3,
    FsyncsFailed = 4,
    WritesFailed = 5,
    Fsyncs = 6,
    ClockReads = 8,
    /// How long every fsync takes before it begins, so that a cut finds something unsynced.
    FsyncDelayMs = 9,
    /// Writes that no fsync has followed.
    Unsynced = 10,
}

/// A page of knobs, and the shadow of one spool directory.
pub struct Shim {
    home: PathBuf,
    spool: PathBuf,
    page: File,
}

/// The shim is C, and Linux's.
pub fn no_compiler() -> Option<String> {
    let found = Command::new("cc").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    (!cfg!(target_os = "linux") || !found.is_ok_and(|status| status.success()))
        .then(|| "the shim wants Linux and a C compiler, `cc`".to_owned())
}

impl Shim {
    pub fn new(home: &Path, spool: &Path) -> Self {
        fs::create_dir_all(home).expect("a temporary directory");
        let page = File::options().read(true).write(true).create(true).truncate(true).open(home.join("page"));
        let page = page.expect("a temporary directory");
        page.set_len(4096).expect("a temporary directory");
        Self { home: home.to_owned(), spool: spool.to_owned(), page }
    }

    /// What a relay has to be started with.
    pub fn environment(&self) -> Vec<(String, String)> {
        self.variables(library())
    }

    fn variables(&self, library: &Path) -> Vec<(String, String)> {
        let text = |path: &Path| path.display().to_string();
        [
            ("LD_PRELOAD", text(library)),
            ("CHAOS_SHIM_CONTROL", text(&self.home.join("page"))),
            ("CHAOS_SHIM_DIRECTORY", text(&self.spool)),
            ("CHAOS_SHIM_SHADOW", text(&self.home.join("shadow"))),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .to_vec()
    }

    pub fn set(&self, knob: Knob, value: i64) {
        self.page.write_all_at(&value.to_ne_bytes(), knob as u64 * 8).expect("a page that was made for it");
    }

    pub fn get(&self, knob: Knob) -> i64 {
        let mut bytes = [0; 8];
        self.page.read_exact_at(&mut bytes, knob as u64 * 8).expect("a page that was made for it");
        i64::from_ne_bytes(bytes)
    }

    /// Puts what the disk would still have in the place of the spool directory, whose relay is dead, and goes on with a fresh shadow
    /// and the same habits.
    pub fn cut_power(self, spool: &Path) -> Self {
        let kept = spool.with_extension("kept");
        self.materialize(&kept);
        fs::remove_dir_all(spool).expect("the spool directory");
        fs::rename(&kept, spool).expect("a temporary directory");
        fs::remove_dir_all(self.home.join("shadow")).expect("the shadow");
        for knob in [Knob::Fsyncs, Knob::FsyncsFailed, Knob::WritesFailed, Knob::Unsynced] {
            self.set(knob, 0);
        }
        self
    }

    /// What the disk would still have.
    fn materialize(&self, kept: &Path) {
        fs::create_dir(kept).expect("a temporary directory");
        let names = fs::read_to_string(self.home.join("shadow/names")).expect("the shim has written it");
        for (content, name) in names.lines().filter_map(|line| line.split_once(' ')) {
            let target = kept.join(name);
            fs::create_dir_all(target.parent().expect("it is below the directory")).expect("a temporary directory");
            fs::copy(self.home.join("shadow/contents").join(content), target).expect("the shim has written it");
        }
    }
}

/// Built once in a run, and shown to do what the scenarios rely on.
fn library() -> &'static Path {
    static LIBRARY: LazyLock<PathBuf> = LazyLock::new(|| {
        let target = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let (built, library) =
            (target.join(format!("chaos-shim.{}", std::process::id())), target.join("chaos-shim.so"));
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/chaos/shim.c");
        let mut compiler = Command::new("cc");
        compiler.args(["-shared", "-fPIC", "-O2", "-Wall", "-o"]).arg(&built).arg(source).args(["-ldl", "-lpthread"]);
        assert!(compiler.status().expect("a C compiler").success(), "shim.c does not compile");
        fs::rename(&built, &library).expect("target/tmp can be written");
        prove(&library);
        library
    });
    &LIBRARY
}

/// A shim that nobody calls would let every scenario pass: `dd` shows that only what was synced is kept, and that failures fail.
fn prove(library: &Path) {
    assert_eq!(kept_of_dd(library, true, 0), (true, Some(3)), "what was synced is kept");
    assert_eq!(kept_of_dd(library, false, 0), (true, None), "what was not synced is gone");
    assert_eq!(kept_of_dd(library, true, EIO), (false, None), "a failing fsync fails, and keeps nothing");
}

/// Whether a `dd` of three bytes succeeds, and how many of them would outlive a power cut.
fn kept_of_dd(library: &Path, is_synced: bool, errno: i64) -> (bool, Option<u64>) {
    let home = tempfile::tempdir().expect("a temporary directory");
    let (spool, kept) = (home.path().join("spool"), home.path().join("kept"));
    fs::create_dir(&spool).expect("a temporary directory");
    let shim = Shim::new(home.path(), &spool);
    shim.set(Knob::FsyncErrno, errno);
    let mut dd = Command::new("dd");
    dd.args(["if=/dev/zero", "bs=3", "count=1"]).arg(format!("of={}", spool.join("file").display()));
    let dd = dd.args(is_synced.then_some("conv=fsync")).envs(shim.variables(library)).stderr(Stdio::null());
    let has_succeeded = dd.status().expect("dd can be run").success();
    shim.materialize(&kept);
    (has_succeeded, fs::metadata(kept.join("file")).ok().map(|file| file.len()))
}
