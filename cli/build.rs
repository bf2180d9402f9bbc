//! Which commit this program is made of: `CONTRAST_COMMIT` if a release sets it, else what git says of this folder.

use std::process::Command;

/// What the program consists of: a change there makes another program.
const SOURCES: [&str; 9] = [
    "../cli",
    "../crates",
    "../storage-schema",
    "../runtime-installer",
    "../deploy/resources",
    "../deploy/example",
    "../Cargo.toml",
    "../Cargo.lock",
    "../rust-toolchain.toml",
];

fn git(args: &[&str]) -> Option<String> {
    let output = Command::new("git").args(args).output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8_lossy(&output.stdout).trim().to_owned()).filter(|text| !text.is_empty())
}

fn main() {
    println!("cargo:rerun-if-env-changed=CONTRAST_COMMIT");
    for source in SOURCES {
        println!("cargo:rerun-if-changed={source}");
    }
    // What `git commit` and `git checkout` write.
    if let Some(log) = git(&["rev-parse", "--git-path", "logs/HEAD"]) {
        println!("cargo:rerun-if-changed={log}");
    }
    let commit = std::env::var("CONTRAST_COMMIT").ok().filter(|commit| !commit.is_empty()).or_else(|| {
        let commit = git(&["rev-parse", "--short=12", "HEAD"])?;
        let changed = git(&[&["status", "--porcelain", "--"], SOURCES.as_slice()].concat());
        Some(if changed.is_some() { format!("{commit} with changes") } else { commit })
    });
    let version = std::env::var("CARGO_PKG_VERSION").unwrap_or_default();
    let version = match commit {
        Some(commit) => format!("{version} (commit {commit})"),
        None => version,
    };
    println!("cargo:rustc-env=CONTRAST_VERSION={version}");
}
