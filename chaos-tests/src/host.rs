//! The host of a replica: its clock and its disk, which a test may disturb. See `faults/host.c`.

use std::{
    fs,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, ensure};

/// The library and the numbers of one host.
pub struct Host {
    library: PathBuf,
    numbers: PathBuf,
}

/// What a host does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Disturbance {
    /// By how much the wall clock is ahead, in seconds; negative: behind.
    pub clock_ahead_seconds: i64,
    /// How long each write and each flush takes longer, in microseconds.
    pub disk_delay_microseconds: i64,
    /// Whether nothing more can be written.
    pub disk_is_full: bool,
}

impl Host {
    /// Compiles the library, with the system's C compiler, unless `library` is there.
    pub fn new(library: &Path, numbers: &Path) -> anyhow::Result<Self> {
        if !library.exists() {
            let source = library.with_extension("c");
            fs::write(&source, include_str!("../faults/host.c"))?;
            let mut compile = Command::new("cc");
            compile.args(["-shared", "-fPIC", "-O1", "-o"]).arg(library).arg(&source);
            ensure!(compile.status().context("cc")?.success(), "cc cannot compile {}", source.display());
        }
        let host = Self { library: library.to_owned(), numbers: numbers.to_owned() };
        host.set(Disturbance::default())?;
        Ok(host)
    }

    /// Disturbs the processes on this host from now on.
    pub fn set(&self, now: Disturbance) -> anyhow::Result<()> {
        let numbers = [now.clock_ahead_seconds, now.disk_delay_microseconds, i64::from(now.disk_is_full)]
            .map(i64::to_ne_bytes);
        // In place: it is mapped.
        let file = fs::File::options().create(true).truncate(false).write(true).open(&self.numbers)?;
        Ok(file.write_all_at(numbers.as_flattened(), 0)?)
    }

    /// Makes a process run on this host.
    pub fn carry(&self, command: &mut Command) {
        command.env("LD_PRELOAD", &self.library).env("CHAOS_HOST", &self.numbers);
    }
}
