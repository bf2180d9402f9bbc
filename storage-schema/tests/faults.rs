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
use storage_schema::{AppendError, Event, EventStore as _, Fact, Log, LogError, SledStore, StreamId};

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
        // What counts, and most of the damage, is in the content.
        let file = all.get(pick).cloned().unwrap_or_else(|| original.join("content"));
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

/// Changes the records as a hostile disk would that makes the checksums right. Gives what is said then.
fn rewritten(original: &Path, name: &str, change: impl Fn(&mut Vec<Vec<u8>>)) -> String {
    const HEADER: usize = 45;
    let directory = original.with_file_name(name);
    copy(original, &directory);
    let bytes = fs::read(directory.join("content")).unwrap();
    let (mut records, mut rest) = (Vec::new(), bytes.as_slice());
    while !rest.is_empty() {
        let length = u32::from_be_bytes(rest[1..5].try_into().unwrap()) as usize;
        let (record, behind) = rest.split_at(HEADER + length);
        records.push(record.to_vec());
        rest = behind;
    }
    change(&mut records);
    for record in &mut records {
        let body = crc32fast::hash(&record[HEADER..]).to_be_bytes();
        record[37..41].copy_from_slice(&body);
        let header = crc32fast::hash(&record[..41]).to_be_bytes();
        record[41..HEADER].copy_from_slice(&header);
    }
    fs::write(directory.join("content"), records.concat()).unwrap();
    fs::remove_dir_all(directory.join("index")).unwrap();
    open(&directory).err().expect("a rewritten log was accepted").to_string()
}

#[test]
fn removed_swapped_and_foreign_segments_in_the_files_are_named() {
    let directory = tempfile::tempdir().unwrap();
    let original = directory.path().join("original");
    filled(&original, 10);
    let removed = rewritten(&original, "removed", |records| drop(records.remove(4)));
    assert!(
        removed.contains("stream control, segment 5: position in the store: expected 4, found 5"),
        "{removed}"
    );
    let swapped = rewritten(&original, "swapped", |records| {
        let (two, three) = (records[2][5..37].to_vec(), records[3][5..37].to_vec());
        records[2][5..37].copy_from_slice(&three);
        records[3][5..37].copy_from_slice(&two);
    });
    assert!(swapped.contains("stream control, segment 2: index: expected 2, found 3"), "{swapped}");
    let last = rewritten(&original, "last", |records| drop(records.pop()));
    assert!(last.contains("stream control had 10 segments, 9 are there"), "{last}");
    let changed = rewritten(&original, "changed", |records| *records[6].last_mut().unwrap() ^= 1);
    assert!(changed.contains("stream control, segment 6, bytes"), "{changed}");
}

/// Where the record of a segment of [`filled`] begins in the content.
fn record_of(content: &[u8], index: u64) -> usize {
    let mut at = 0;
    for _ in 0..index {
        at += 45 + u32::from_be_bytes(content[at + 1..at + 5].try_into().unwrap()) as usize;
    }
    at
}

#[test]
fn a_flipped_byte_is_named_by_file_stream_segment_and_byte() {
    let directory = tempfile::tempdir().unwrap();
    filled(directory.path(), 10);
    let file = directory.path().join("content");
    let mut content = fs::read(&file).unwrap();
    let at = record_of(&content, 6) + 45;
    content[at + 100] ^= 1;
    fs::write(&file, content).unwrap();
    let error = open(directory.path()).err().unwrap().to_string();
    let expected = format!("{}, byte {at}: stream control, segment 6: the ", file.display());
    assert!(error.starts_with(&expected), "{error}");
    assert!(error.contains("put back this file from a copy"), "{error}");
}

/// sled's files can be lost or damaged in any way: everything is made anew from the content.
#[test]
fn damaged_files_of_sled_cost_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let original = directory.path().join("original");
    let events = filled(&original, 40);
    // Opening once more writes sled's snapshot.
    drop(open(&original).unwrap());
    let snapshot = |directory: &Path| {
        let is_snapshot = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().starts_with("snap.");
        files(&directory.join("index")).into_iter().filter(is_snapshot).max().expect("sled wrote a snapshot")
    };
    type Damage<'a> = (&'a str, &'a dyn Fn(&Path));
    let damages: [Damage<'_>; 6] = [
        ("unfinished snapshot", &|index| {
            fs::write(index.join("snap.00000000000FFFFF.generating"), "").unwrap();
        }),
        ("truncated snapshot", &|index| {
            let path = snapshot(index.parent().unwrap());
            let length = fs::metadata(&path).unwrap().len();
            fs::File::options().write(true).open(path).unwrap().set_len(length / 2).unwrap();
        }),
        ("empty snapshot", &|index| fs::write(snapshot(index.parent().unwrap()), "").unwrap()),
        ("other bytes", &|index| {
            let mut bytes = fs::read(index.join("db")).unwrap();
            bytes.iter_mut().step_by(97).for_each(|byte| *byte ^= 0x55);
            fs::write(index.join("db"), bytes).unwrap();
        }),
        ("other configuration", &|index| fs::write(index.join("conf"), "nonsense").unwrap()),
        ("no files", &|index| fs::remove_dir_all(index).unwrap()),
    ];
    for (name, damage) in damages {
        let damaged = directory.path().join(name);
        copy(&original, &damaged);
        damage(&damaged.join("index"));
        let (mut log, found) = open(&damaged).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(found, events, "{name}");
        log.append(&[event(40, 300)], &key()).unwrap();
        drop(log);
        assert_eq!(open(&damaged).unwrap().1.len(), 41, "{name}");
        let left: Vec<PathBuf> =
            files(&damaged).into_iter().filter(|path| !path.starts_with(damaged.join("heads"))).collect();
        assert!(!left.iter().any(|path| path.to_str().unwrap().contains("generating")), "{name}: {left:?}");
        assert!(!damaged.join("index.damaged").exists(), "{name}");
    }
}

/// A directory of the format before, in which sled held the contents in parts.
#[test]
fn a_directory_of_format_2_is_taken_over() {
    let directory = tempfile::tempdir().unwrap();
    let (new, old) = (directory.path().join("new"), directory.path().join("old"));
    let (mut log, _) = open(&new).unwrap();
    let events: Vec<Event> = (0..5).map(|n| event(n, 6000 * usize::try_from(n).unwrap())).collect();
    for event in &events {
        log.append(std::slice::from_ref(event), &key()).unwrap();
    }
    drop(log);
    let store = SledStore::open(&new).unwrap();
    let segments = store.read(&StreamId::Control, 0, usize::MAX).unwrap();
    fs::create_dir_all(old.join("heads")).unwrap();
    fs::write(old.join("FORMAT"), "contrast-event-log 2\n").unwrap();
    fs::write(old.join("heads/control"), 5_u64.to_be_bytes()).unwrap();
    let db = sled::open(old.join("sled")).unwrap();
    let (tree, blobs) = (db.open_tree("segments").unwrap(), db.open_tree("blobs").unwrap());
    let blob = vec![8; 20_000];
    let hash = storage_schema::BlobHash::of(&blob);
    let parts = |bytes: &[u8]| bytes.chunks(8 << 10).map(<[u8]>::to_vec).collect::<Vec<_>>();
    for (index, segment) in &segments {
        for (part, bytes) in (0_u32..).zip(parts(segment)) {
            tree.insert([&[0], index.to_be_bytes().as_slice(), &part.to_be_bytes()].concat(), bytes).unwrap();
        }
    }
    for (part, bytes) in (0_u32..).zip(parts(&blob)) {
        blobs.insert([hash.as_bytes().as_slice(), &part.to_be_bytes()].concat(), bytes).unwrap();
    }
    db.flush().unwrap();
    drop((db, tree, blobs));
    for round in 0..2 {
        assert_eq!(open(&old).unwrap().1, events, "{round}");
        let store = SledStore::open(&old).unwrap();
        assert!(store.get_blob(&hash).unwrap().unwrap() == blob, "{round}");
        assert!(!old.join("sled").exists());
        assert_eq!(fs::read_to_string(old.join("FORMAT")).unwrap(), "contrast-event-log 3\n");
    }
}

/// The disk is full, and somebody reads meanwhile: nothing is lost, what can be read is, and it passes.
#[test]
fn reads_while_the_disk_is_full_break_nothing() {
    let disk = SmallDisk::mount(3 << 20);
    let directory = disk.0.path().join("log");
    let ballast = disk.0.path().join("ballast");
    fs::write(&ballast, vec![0; 1 << 20]).unwrap();
    let store = Arc::new(SledStore::open(&directory).unwrap());
    let mut log = Log::open(Arc::clone(&store), StreamId::Control, Some(key().public()), |_, _| {}).unwrap();
    let mut written = 0;
    while log.append(&[event(written, 5000)], &key()).is_ok() {
        assert_eq!(store.failing(), None);
        written += 1;
    }
    // The last bytes go, too.
    let mut filler = fs::File::create(disk.0.path().join("filler")).unwrap();
    while std::io::Write::write_all(&mut filler, &[0; 512]).is_ok() {}
    for _ in 0..20 {
        let error = store.failing().expect("the store does not take anything").to_string();
        assert!(error.contains("No space left on device"), "{error}");
        assert!(error.contains(directory.to_str().unwrap()), "{error}");
        let read = store.read(&StreamId::Control, 0, usize::MAX).map(|page| page.len() as u64);
        assert!(read.as_ref().is_ok_and(|read| *read == written), "{read:?}");
        let failed = log.catch_up(|_, _| {}).map(|()| log.append(&[event(written, 5000)], &key()).is_err());
        assert_ne!(failed, Ok(false));
        // A start while it is full says so, or works.
        if let Err(error) = store.reopen() {
            assert!(error.to_string().contains("No space left on device"), "{error}");
        }
    }
    drop(filler);
    fs::remove_file(disk.0.path().join("filler")).unwrap();
    fs::remove_file(&ballast).unwrap();
    assert_eq!(store.failing(), None, "it passes by itself");
    log.catch_up(|_, _| {}).unwrap();
    written = log.head().size;
    log.append(&[event(written, 5000)], &key()).unwrap();
    drop((log, store));
    let (_, events) = open(&directory).unwrap();
    assert_eq!(events.len() as u64, written + 1);
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
    // The index of before costs nothing.
    fs::remove_dir_all(newer.join("index")).unwrap();
    copy(&older.join("index"), &newer.join("index"));
    assert_eq!(open(&newer).unwrap().1.len(), 6);
    // The content of before, everything else of after.
    fs::copy(older.join("content"), newer.join("content")).unwrap();
    let error = open(&newer).err().unwrap().to_string();
    assert!(error.contains("stream control had 6 segments, 5 are there"), "{error}");
}
