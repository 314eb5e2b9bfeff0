//! Runs a program under Valgrind's callgrind, and reads what each of its threads has executed.

use std::path::Path;
use std::process::Command;

use crate::counts::{Counts, callgrind};

/// One run: where its counts are until it is dropped.
pub struct Callgrind(tempfile::TempDir);

impl Callgrind {
    pub fn new() -> Self {
        Self(tempfile::tempdir().expect("a temporary directory"))
    }

    /// The program, to be started once. It gets no environment: that would move its stack, and might configure it.
    pub fn command(&self, program: &Path) -> Command {
        let mut command = Command::new("valgrind");
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.args(["--tool=callgrind", "--quiet", "--vgdb=no", "--separate-threads=yes"]);
        command.args(["--dump-instr=no", "--compress-pos=no"]); // functions are enough
        command.arg(format!("--callgrind-out-file={}", self.0.path().join("counts").display()));
        command.arg(program);
        command
    }

    /// The counts of each thread, once the program has ended.
    pub fn threads(&self) -> Vec<Counts> {
        let files = std::fs::read_dir(self.0.path()).expect("our directory");
        // `counts` itself stays empty: each thread has a file, as `counts-01`.
        let files = files.map(|file| file.expect("a file").path()).filter(|path| !path.ends_with("counts"));
        let read = |path| std::fs::read_to_string(path).expect("a file of callgrind's");
        files.map(|path| callgrind::parse(&read(path)).expect("a whole file of callgrind's")).collect()
    }
}

/// Name and version of a tool, as it prints them.
pub fn version(tool: &str) -> Result<String, String> {
    let output = Command::new(tool).arg("--version").output();
    let output = output
        .map_err(|error| format!("{tool} cannot be run: {error}; scripts/ensure.sh valgrind installs valgrind"))?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
