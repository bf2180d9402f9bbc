//! What crashes, full disks and hostile disks do to the log, with the real files.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
    time::Duration,
};

use keys::LogKey;
use manifest::{ReplicaId, RequestId, Timestamp};
use storage_schema::{AppendError, Event, Fact, Log, LogError, SledStore, StreamId};

const CHILD: &str = "CONTRAST_TEST_WRITER";

fn key() -> LogKey {
    LogKey::from_secret(&[1; 32]).unwrap()
}

fn event(n: u64, size: usize) -> Event {
    Event {
        at: Timestamp::from_millis(1_800_000_000_000 + n),
        replica: ReplicaId::from_bytes([7; 16]),
        request: RequestId::from_bytes([9; 16]),
        fact: Fact::ReplicaStarted { version: format!("{n} {}", "x".repeat(size)) },
    }
}

fn open(directory: &Path) -> Result<(Log<SledStore>, Vec<Event>), LogError> {
    let store = Arc::new(SledStore::open(directory)?);
    let mut events = Vec::new();
    let log = Log::open(store, StreamId::Control, Some(key().public()), |_, event| events.push(event))?;
    Ok((log, events))
}

/// A log of `count` segments of one event each.
fn filled(directory: &Path, count: u64) -> Vec<Event> {
    let (mut log, _) = open(directory).unwrap();
    let events: Vec<Event> = (0..count).map(|n| event(n, 300)).collect();
    for event in &events {
        log.append(std::slice::from_ref(event), &key()).unwrap();
    }
    events
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

fn files(directory: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(self::files(&path));
        } else {
            files.push(path);
        }
    }
    files.sort();
    files
}

/// A small deterministic source of places to hit; the seed is in the test's output.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

/// The process that is killed: appends for ever, and says what was acknowledged. Does nothing
/// unless the test below started it.
#[test]
fn writer_process() {
    let Some(directory) = std::env::var_os(CHILD) else { return };
    let (mut log, _) = open(Path::new(&directory)).unwrap();
    loop {
        let first = log.head().size;
        let events: Vec<Event> = (first..first + 1 + first % 3).map(|n| event(n, 500)).collect();
        let head = log.append(&events, &key()).unwrap();
        println!("acknowledged {}", head.size);
    }
}

#[test]
fn every_acknowledged_event_survives_kill_9() {
    let directory = tempfile::tempdir().unwrap();
    let mut dice = Dice(20_261_124);
    let mut acknowledged = 0;
    for round in 0..25 {
        let mut writer = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "writer_process", "--nocapture"])
            .env(CHILD, directory.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(writer.stdout.take().unwrap()).lines();
        let stop_after = 1 + dice.below(60);
        let mut seen = 0;
        for line in lines.map_while(Result::ok) {
            let Some(size) = line.strip_prefix("acknowledged ") else { continue };
            acknowledged = size.parse::<u64>().unwrap();
            seen += 1;
            if seen == stop_after {
                std::thread::sleep(Duration::from_micros(dice.below(3000)));
                writer.kill().unwrap();
            }
        }
        writer.wait().unwrap();
        let (log, events) = open(directory.path()).unwrap();
        assert!(log.head().size >= acknowledged, "round {round}: {} < {acknowledged}", log.head().size);
        for (n, found) in (0..).zip(&events) {
            assert_eq!(*found, event(n, 500), "round {round}");
        }
        acknowledged = log.head().size;
    }
    assert!(acknowledged > 300, "{acknowledged}");
}

/// A small file system of its own.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn mount(bytes: u64) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={bytes}"), "tmpfs"]).arg(directory.path());
        assert!(mount.status().unwrap().success(), "cannot mount a tmpfs; the tests run as root");
        Self(directory)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

#[test]
fn a_full_disk_is_an_error_and_passes() {
    let disk = SmallDisk::mount(12 << 20);
    let ballast = disk.0.path().join("ballast");
    fs::write(&ballast, vec![0; 6 << 20]).unwrap();
    let (mut log, _) = open(&disk.0.path().join("log")).unwrap();
    let mut written = 0;
    let error = loop {
        match log.append(&[event(written, 20_000)], &key()) {
            Ok(_) => written += 1,
            Err(error) => break error,
        }
        assert!(written < 10_000, "the disk never filled");
    };
    assert!(error.to_string().contains("No space left on device"), "{error}");
    assert_eq!(log.append(&[event(written, 10)], &key()), Err(AppendError::Poisoned(StreamId::Control)));

    fs::remove_file(&ballast).unwrap();
    let mut more = Vec::new();
    log.catch_up(|sequence, event| more.push((sequence, event))).unwrap();
    assert!(more.len() <= 1, "at most the event whose fate was unknown");
    written = log.head().size;
    log.append(&[event(written, 20_000)], &key()).unwrap();
    drop(log);
    let (_, events) = open(&disk.0.path().join("log")).unwrap();
    assert_eq!(events.len() as u64, written + 1);
    for (n, found) in (0..).zip(&events) {
        assert_eq!(*found, event(n, 20_000));
    }
}

/// Opens damaged files. Every event, or an error that says what is wrong; never fewer.
fn whole_or_refused(directory: &Path, events: &[Event], what: &str) -> Option<String> {
    match open(directory) {
        Ok((_, found)) => {
            assert_eq!(found, events, "{what}: accepted, and not what was written");
            None
        }
        Err(error) => Some(error.to_string()),
    }
}

#[test]
fn flipped_bits_and_cut_files_lose_nothing_silently() {
    let directory = tempfile::tempdir().unwrap();
    let original = directory.path().join("original");
    let events = filled(&original, 150);
    let all: Vec<PathBuf> =
        files(&original).into_iter().filter(|path| fs::metadata(path).unwrap().len() > 0).collect();
    let mut dice = Dice(7);
    let mut refused = 0;
    for round in 0..60 {
        let damaged = directory.path().join(format!("damaged-{round}"));
        copy(&original, &damaged);
        let pick = usize::try_from(dice.below(2 * all.len() as u64)).unwrap();
        // Most of the bytes, and most of the damage, are in sled's own file.
        let file = all.get(pick).cloned().unwrap_or_else(|| original.join("sled/db"));
        let file = damaged.join(file.strip_prefix(&original).unwrap());
        let mut bytes = fs::read(&file).unwrap();
        let used = bytes.iter().rposition(|byte| *byte != 0).map_or(1, |last| last + 1) as u64;
        let at = usize::try_from(dice.below(used)).unwrap();
        let what = if round % 4 == 3 {
            bytes.truncate(at);
            format!("{} cut at {at}", file.display())
        } else {
            bytes[at] ^= 1 << dice.below(8);
            format!("{} flipped at {at}", file.display())
        };
        fs::write(&file, bytes).unwrap();
        if whole_or_refused(&damaged, &events, &what).is_some() {
            refused += 1;
        }
        fs::remove_dir_all(&damaged).unwrap();
    }
    assert!(refused > 10, "only {refused} damages were noticed at all: does the test hit anything?");
}

/// Changes the segments as a hostile disk would that writes valid sled files.
fn rewritten(original: &Path, name: &str, change: impl Fn(&sled::Tree, &[Vec<u8>])) -> String {
    let directory = original.with_file_name(name);
    copy(original, &directory);
    let db = sled::open(directory.join("sled")).unwrap();
    let tree = db.open_tree("segments").unwrap();
    let keys: Vec<Vec<u8>> = tree.iter().keys().map(|key| key.unwrap().to_vec()).collect();
    change(&tree, &keys);
    db.flush().unwrap();
    drop((tree, db));
    open(&directory).err().expect("a rewritten log was accepted").to_string()
}

#[test]
fn removed_swapped_and_foreign_segments_in_the_files_are_named() {
    let directory = tempfile::tempdir().unwrap();
    let original = directory.path().join("original");
    filled(&original, 10);
    let removed = rewritten(&original, "removed", |tree, keys| drop(tree.remove(&keys[4])));
    assert!(
        removed.contains("stream control, segment 5: position in the store: expected 4, found 5"),
        "{removed}"
    );
    let swapped = rewritten(&original, "swapped", |tree, keys| {
        let (one, other) = (tree.get(&keys[2]).unwrap().unwrap(), tree.get(&keys[3]).unwrap().unwrap());
        tree.insert(&keys[2], other).unwrap();
        tree.insert(&keys[3], one).unwrap();
    });
    assert!(swapped.contains("stream control, segment 2: index: expected 2, found 3"), "{swapped}");
    let last = rewritten(&original, "last", |tree, keys| drop(tree.remove(&keys[9])));
    assert!(last.contains("stream control had 10 segments, 9 are there"), "{last}");
    let changed = rewritten(&original, "changed", |tree, keys| {
        let mut bytes = tree.get(&keys[6]).unwrap().unwrap().to_vec();
        let end = bytes.len() - 1;
        bytes[end] ^= 1;
        tree.insert(&keys[6], bytes).unwrap();
    });
    assert!(changed.contains("stream control, segment 6, bytes"), "{changed}");
}

#[test]
fn a_tail_that_is_cut_off_is_missed() {
    let directory = tempfile::tempdir().unwrap();
    let (older, newer) = (directory.path().join("older"), directory.path().join("newer"));
    filled(&older, 5);
    copy(&older, &newer);
    let (mut log, _) = open(&newer).unwrap();
    log.append(&[event(5, 300)], &key()).unwrap();
    drop(log);
    // sled's files of before, everything else of after.
    fs::remove_dir_all(newer.join("sled")).unwrap();
    copy(&older.join("sled"), &newer.join("sled"));
    let error = open(&newer).err().unwrap().to_string();
    assert!(error.contains("stream control had 6 segments, 5 are there"), "{error}");
}
