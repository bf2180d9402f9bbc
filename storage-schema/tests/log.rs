//! The log on each engine: what was acknowledged is there, and what was changed is named.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

#[path = "conformance/mod.rs"]
mod conformance;
#[path = "replicated/mod.rs"]
mod replicated;

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use keys::LogKey;
use manifest::{EvidenceHash, PolicyHash, ReplicaId, RequestId, SerialNumber, Timestamp, TransitionHash};
use storage_schema::{
    AppendError, Archive, BlobHash, Event, EventStore, Fact, Folded, Head, Inclusion, Log, LogError,
    MemoryStore, Position, Projection, Signer, SledStore, StoreError, StreamId,
    merkle::{leaf_hash, verify_consistency, verify_inclusion},
    migrate,
};

fn key(n: u8) -> LogKey {
    LogKey::from_secret(&[n; 32]).unwrap()
}

fn event(n: u64) -> Event {
    Event {
        at: Timestamp::from_millis(1_800_000_000_000 + n),
        replica: ReplicaId::from_bytes([7; 16]),
        request: RequestId::from_bytes([9; 16]),
        fact: Fact::ReplicaStarted { version: n.to_string() },
    }
}

fn open<S: EventStore>(store: &Arc<S>, key: Option<&LogKey>) -> Result<(Log<S>, Vec<Event>), LogError> {
    let mut events = Vec::new();
    let log = Log::open(Arc::clone(store), StreamId::Control, key.map(LogKey::public), |_, event| {
        events.push(event);
    })?;
    Ok((log, events))
}

/// Three segments: events 0, 1 to 3, 4.
fn fill<S: EventStore>(store: &Arc<S>) -> Vec<Event> {
    let (mut log, _) = open(store, Some(&key(1))).unwrap();
    let all: Vec<Event> = (0..5).map(event).collect();
    for part in [&all[..1], &all[1..4], &all[4..]] {
        log.append(part, &key(1)).unwrap();
    }
    all
}

/// Counts what is read, and may not answer.
#[derive(Default)]
struct Watched {
    inner: MemoryStore,
    reads: AtomicUsize,
    silent: AtomicBool,
}

impl Watched {
    fn answer(&self) -> Result<(), StoreError> {
        let silent = self.silent.load(Ordering::Relaxed);
        if silent { Err(StoreError::Unavailable("busy".into())) } else { Ok(()) }
    }
}

impl EventStore for Watched {
    fn append(&self, stream: &StreamId, index: u64, segment: &[u8]) -> Result<(), StoreError> {
        self.answer()?;
        self.inner.append(stream, index, segment)
    }

    fn read(&self, stream: &StreamId, index: u64, max: usize) -> Result<Vec<(u64, Vec<u8>)>, StoreError> {
        self.answer()?;
        let page = self.inner.read(stream, index, max)?;
        self.reads.fetch_add(page.len(), Ordering::Relaxed);
        Ok(page)
    }

    fn put_blob(&self, bytes: &[u8]) -> Result<BlobHash, StoreError> {
        self.inner.put_blob(bytes)
    }

    fn get_blob(&self, hash: &BlobHash) -> Result<Option<Vec<u8>>, StoreError> {
        self.inner.get_blob(hash)
    }

    fn put_derived(&self, name: &[u8], value: &[u8]) -> Result<(), StoreError> {
        self.inner.put_derived(name, value)
    }

    fn get_derived(&self, name: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        self.inner.get_derived(name)
    }

    fn sync(&self) -> Result<(), StoreError> {
        self.inner.sync()
    }

    fn streams(&self) -> Result<Vec<StreamId>, StoreError> {
        self.inner.streams()
    }
}

#[test]
fn what_this_process_wrote_is_not_read_back() {
    let (store, stream) = (Arc::new(Watched::default()), StreamId::Replica(ReplicaId::from_bytes([7; 16])));
    let (archive, public) = (Archive::new(Arc::clone(&store)), Some(key(1).public()));
    let writer = archive.reader(stream, public).unwrap();
    for n in 0..20 {
        writer.lock().unwrap().append(&[event(n)], &key(1)).unwrap();
        assert_eq!(archive.head(stream, public).unwrap().size, n + 1);
    }
    assert_eq!(store.reads.load(Ordering::Relaxed), 0);
    // A failed append may have taken effect: now it is read what is there.
    store.silent.store(true, Ordering::Relaxed);
    assert!(writer.lock().unwrap().append(&[event(20)], &key(1)).is_err());
    store.silent.store(false, Ordering::Relaxed);
    let other = archive.reader(stream, public).unwrap().lock().unwrap().head();
    store.inner.append(&stream, other.segments, &segment_after(&other)).unwrap();
    assert_eq!(archive.head(stream, public).unwrap().size, 21);
    assert_eq!(store.reads.load(Ordering::Relaxed), 1);
}

/// Event 20, as another writer of this stream writes it.
fn segment_after(head: &Head) -> Vec<u8> {
    let store = Arc::new(MemoryStore::default());
    let mut log = Log::open(Arc::clone(&store), head.stream, Some(key(1).public()), |_, _| {}).unwrap();
    for n in 0..=head.size {
        log.append(&[event(n)], &key(1)).unwrap();
    }
    store.read(&head.stream, head.segments, 1).unwrap().remove(0).1
}

#[test]
fn a_silent_store_is_not_one_that_lost_something() {
    let store = Arc::new(Watched::default());
    fill(&store);
    let (archive, public) = (Archive::new(Arc::clone(&store)), Some(key(1).public()));
    assert_eq!(archive.head(StreamId::Control, public).unwrap().size, 5);
    let (mut log, _) = open(&store, Some(&key(1))).unwrap();
    log.append(&[event(5)], &key(1)).unwrap();
    store.silent.store(true, Ordering::Relaxed);
    // What was verified is answered; about what is not here yet, only the store could say something.
    archive.root_at(StreamId::Control, public, 5).unwrap();
    for error in [
        archive.root_at(StreamId::Control, public, 6).unwrap_err(),
        archive.inclusion(StreamId::Control, public, 5).unwrap_err(),
        archive.consistency(StreamId::Control, public, 6).unwrap_err(),
    ] {
        assert_eq!(error, LogError::Store(StoreError::Unavailable("busy".into())));
    }
    store.silent.store(false, Ordering::Relaxed);
    archive.root_at(StreamId::Control, public, 6).unwrap();
    let beyond = archive.root_at(StreamId::Control, public, 7).unwrap_err();
    assert!(matches!(beyond, LogError::Beyond { size: 6, asked: 7, .. }), "{beyond}");
}

#[test]
fn memory_conforms() {
    conformance::conformance(Arc::new(MemoryStore::default()));
}

#[test]
fn sled_conforms_and_keeps_everything_over_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    conformance::conformance(Arc::new(SledStore::open(directory.path()).unwrap()));
    let store = Arc::new(SledStore::open(directory.path()).unwrap());
    assert_eq!(open(&store, Some(&key(1))).unwrap().1.len(), 5);
}

#[test]
fn a_second_process_and_another_format_are_refused_by_name() {
    let refusal = |path: &Path| SledStore::open(path).err().unwrap().to_string();
    let directory = tempfile::tempdir().unwrap();
    let first = SledStore::open(directory.path()).unwrap();
    assert!(refusal(directory.path()).contains("in use by another process"));
    drop(first);
    std::fs::write(directory.path().join("FORMAT"), "contrast-event-log 99\n").unwrap();
    let text = refusal(directory.path());
    assert!(text.contains("contrast-event-log 99") && text.contains("contrast-event-log 3"), "{text}");
}

fn refused(tamper: impl FnOnce(&mut Vec<Vec<u8>>)) -> String {
    let store = Arc::new(MemoryStore::default());
    fill(&store);
    store.tamper(&StreamId::Control, tamper);
    open(&store, Some(&key(1))).err().expect("tampered log was accepted").to_string()
}

#[test]
fn every_flipped_byte_is_refused() {
    let store = Arc::new(MemoryStore::default());
    fill(&store);
    let length = store.read(&StreamId::Control, 1, 1).unwrap()[0].1.len();
    for at in 0..length {
        let text = refused(|segments| segments[1][at] ^= 1);
        assert!(
            text.starts_with("stream control, segment 1, ") && text.contains("byte"),
            "byte {at}: {text}"
        );
    }
}

#[test]
fn missing_moved_and_foreign_segments_are_named() {
    assert!(
        refused(|s| s[2].truncate(50)).contains("segment 2, cut off at byte 50: the signature is not whole")
    );
    assert!(refused(|s| drop(s.remove(1))).contains("segment 1: index: expected 1, found 2"));
    assert!(refused(|s| s.swap(0, 1)).contains("segment 0: index: expected 0, found 1"));
    let whole = refused(|s| s[1] = s[1][..s[1].len() - 1].to_vec());
    assert!(
        whole.contains("segment 1, cut off at byte") && whole.contains("an event is not whole"),
        "{whole}"
    );
    let longer = refused(|s| s[1].extend([0, 0, 0, 1, 7]));
    assert!(longer.contains("4 events, the header says 3"), "{longer}");

    let store = Arc::new(MemoryStore::default());
    fill(&store);
    let text = open(&store, Some(&key(2))).err().unwrap().to_string();
    assert!(text.contains("segment 0, byte 1: signed by the key"), "{text}");
}

/// The event by which a replica introduces its key.
fn introduces(replica: &LogKey) -> Event {
    let (key, evidence) = (*replica.public().as_bytes(), EvidenceHash::from_bytes([1; 32]));
    Event { fact: Fact::ReplicaVouched { key, evidence, platform: "sev-snp".into() }, ..event(0) }
}

#[test]
fn once_replicas_sign_nobody_writes_with_the_logs_key_alone_or_with_a_key_that_nobody_introduced() {
    let (log_key, one, two) = (key(1), key(2), key(3));
    let signed_by = |replica| Signer { log: &log_key, replica: Some(replica) };
    let store = Arc::new(MemoryStore::default());
    fill(&store); // as versions before wrote it: the log's key alone
    let (mut log, _) = open(&store, None).unwrap();
    assert!(!log.position().is_signed_by_replicas());
    log.append(&[introduces(&one)], signed_by(&one)).unwrap();
    log.append(&[event(6)], signed_by(&one)).unwrap();
    log.append(&[introduces(&two), event(7)], signed_by(&two)).unwrap();
    log.append(&[event(8)], signed_by(&one)).unwrap();
    let (read, events) = open(&store, Some(&log_key)).unwrap();
    assert_eq!((read.head(), events.len()), (log.head(), 10));
    assert!(read.position().is_signed_by_replicas());

    // Who owns the seed has the log's key, and its own replica keys.
    let stranger = key(9);
    for (by, expected) in [
        (Signer::from(&log_key), "expected one that an event introduced, found none"),
        (signed_by(&stranger), "expected one that an event introduced, found the replica key"),
    ] {
        let store = Arc::new(MemoryStore::default());
        let (mut log, _) = open(&store, None).unwrap();
        log.append(&[introduces(&one)], signed_by(&one)).unwrap();
        log.append(&[event(1)], by).unwrap(); // as a forger's own program would
        let text = open(&store, Some(&log_key)).err().unwrap().to_string();
        assert!(text.contains("segment 1: the replica that signed") && text.contains(expected), "{text}");
    }
    // A key that somebody else introduced serves nobody who does not have it.
    let store = Arc::new(MemoryStore::default());
    let (mut log, _) = open(&store, None).unwrap();
    log.append(&[introduces(&two)], signed_by(&one)).unwrap();
    assert!(open(&store, None).is_err());
}

#[test]
fn one_replica_signs_all_of_its_stream_or_none_of_it() {
    let (log_key, one, two) = (key(1), key(2), key(3));
    let stream = StreamId::Replica(ReplicaId::from_bytes([7; 16]));
    let signed_by = |replica| Signer { log: &log_key, replica };
    for (first, second) in [(Some(&one), Some(&two)), (Some(&one), None), (None, Some(&one))] {
        let store = Arc::new(MemoryStore::default());
        let mut log = Log::open(Arc::clone(&store), stream, None, |_, _| {}).unwrap();
        log.append(&[event(0)], signed_by(first)).unwrap();
        assert_eq!(log.position().replica_key(), first.map(LogKey::public));
        log.append(&[event(1)], signed_by(second)).unwrap();
        let text = Log::open(store, stream, None, |_, _| {}).err().unwrap().to_string();
        assert!(text.contains("segment 1: the replica that signed"), "{text}");
    }
}

#[test]
fn a_replicas_signature_covers_what_the_logs_does() {
    let (log_key, replica) = (key(1), key(2));
    let store = Arc::new(MemoryStore::default());
    let (mut log, _) = open(&store, None).unwrap();
    log.append(&[introduces(&replica)], Signer { log: &log_key, replica: Some(&replica) }).unwrap();
    let whole = store.read(&StreamId::Control, 0, 1).unwrap().remove(0).1;
    let head = storage_schema::signed_head(&whole).unwrap();
    let (opened, by, _) = storage_schema::open_signed_head(head, Some(log_key.public())).unwrap();
    assert_eq!((opened, by), (log.head(), log_key.public()));
    for at in 0..head.len() {
        let mut changed = whole.clone();
        changed[at] ^= 1;
        let mut position = Position::start(StreamId::Control, Some(log_key.public()));
        assert!(position.advance(0, &changed).is_err(), "byte {at}");
    }
}

#[test]
fn failed_append_poisons_the_writer_until_it_caught_up() {
    let store = Arc::new(MemoryStore::default());
    let (mut log, _) = open(&store, None).unwrap();
    log.append(&[event(0)], &key(1)).unwrap();
    store.set_failing(true);
    assert!(matches!(log.append(&[event(1)], &key(1)), Err(AppendError::Store(_))));
    store.set_failing(false);
    assert_eq!(log.append(&[event(1)], &key(1)), Err(AppendError::Poisoned(StreamId::Control)));
    log.catch_up(|_, _| panic!("nothing was written")).unwrap();
    assert_eq!(log.append(&[event(1)], &key(1)).unwrap().size, 2);
}

#[test]
fn two_writers_cannot_both_win_an_index() {
    let store = Arc::new(MemoryStore::default());
    let (mut one, _) = open(&store, None).unwrap();
    let (mut two, _) = open(&store, None).unwrap();
    one.append(&[event(0)], &key(1)).unwrap();
    assert!(matches!(
        two.append(&[event(1)], &key(1)),
        Err(AppendError::Store(StoreError::IndexTaken { index: 0, .. }))
    ));
    let mut seen = Vec::new();
    two.catch_up(|sequence, event| seen.push((sequence, event))).unwrap();
    assert_eq!(seen, [(0, event(0))]);
    assert_eq!(two.head(), one.head());
}

/// Counts events and remembers the last, so that a replay can be told from a snapshot.
#[derive(Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
struct Tally {
    events: u64,
    folded_here: bool,
}

impl Projection for Tally {
    const NAME: &'static str = "tally 1";

    fn apply(&mut self, sequence: u64, _: &Event) {
        assert_eq!(sequence, self.events);
        self.events += 1;
    }
}

fn folded<S: EventStore>(store: &Arc<S>) -> Result<Folded<S, Tally>, LogError> {
    Log::open_folded::<Tally>(Arc::clone(store), StreamId::Control, Some(key(1).public()))
}

#[test]
fn a_snapshot_saves_the_replay_and_a_foreign_one_is_dropped() {
    let store = Arc::new(MemoryStore::default());
    fill(&store);
    let Folded { mut log, projection, .. } = folded(&store).unwrap();
    log.save_snapshot(&Tally { folded_here: true, ..projection }, &key(1)).unwrap();
    log.append(&[event(5)], &key(1)).unwrap();
    let reopened = folded(&store).unwrap();
    assert_eq!(reopened.projection, Tally { events: 6, folded_here: true });
    assert_eq!(reopened.log.head(), log.head());
    assert_eq!(reopened.log.consistency(5).unwrap(), log.consistency(5).unwrap());

    store.tamper_derived(|name, value| {
        if name.starts_with(b"snapshot/") {
            let last = value.len() - 1;
            value[last] ^= 1;
        }
    });
    let reopened = folded(&store).unwrap();
    assert_eq!(reopened.projection, Tally { events: 6, folded_here: false }, "replayed from the start");
    assert!(reopened.dropped.unwrap().to_string().contains("not signed by the log's key"));

    log.save_snapshot(&Tally { events: 6, folded_here: true }, &key(2)).unwrap();
    assert!(folded(&store).unwrap().dropped.is_some(), "signed by another key");
}

#[test]
fn a_snapshot_proves_that_the_store_lost_segments() {
    let store = Arc::new(MemoryStore::default());
    fill(&store);
    let Folded { log, projection, .. } = folded(&store).unwrap();
    log.save_snapshot(&projection, &key(1)).unwrap();
    store.tamper(&StreamId::Control, |segments| drop(segments.pop()));
    let text = folded(&store).err().unwrap().to_string();
    assert!(text.contains("3 segments were signed, the store has 2"), "{text}");
}

#[test]
fn damaged_tiles_are_noticed_and_made_anew() {
    let store = Arc::new(MemoryStore::default());
    let (mut log, _) = open(&store, None).unwrap();
    let events: Vec<Event> = (0..1000).map(event).collect();
    log.append(&events, &key(1)).unwrap();
    let archive = Archive::new(Arc::clone(&store));
    let stream = StreamId::Control;
    let before = archive.inclusion(stream, None, 3).unwrap();
    store.tamper_derived(|name, value| {
        if name.starts_with(b"tile/") {
            value[9] ^= 1;
        }
    });
    assert_eq!(log.inclusion(&[0; 32], 3), Err(LogError::Tiles(stream)), "the writer's view");
    assert_eq!(archive.inclusion(stream, None, 3).unwrap(), before);
}

#[test]
fn the_archive_answers_with_proofs() {
    let store = Arc::new(MemoryStore::default());
    let stream = StreamId::Replica(ReplicaId::from_bytes([7; 16]));
    let mut log = Log::open(Arc::clone(&store), stream, None, |_, _| {}).unwrap();
    let archive = Archive::new(Arc::clone(&store));
    let issued = |n: u8| {
        let fact = Fact::CertificateIssued {
            serial: SerialNumber::from_bytes([n; 16]),
            certificate: vec![n; 600],
            policy: PolicyHash::from_bytes([n; 32]),
            sans: vec![],
            platform: "test".into(),
            evidence: EvidenceHash::from_bytes([n; 32]),
            tcb: String::new(),
            transition: TransitionHash::ZERO,
            nonce: vec![],
            verdict: String::new(),
            attested_key: vec![],
            hpke_key: vec![],
        };
        Event { fact, ..event(u64::from(n)) }
    };
    let mut old = log.head();
    for n in 0..40 {
        log.append(&[event(1), issued(n), event(2)], &key(1)).unwrap();
        let (head, proof) = archive.consistency(stream, None, old.size).unwrap();
        assert!(verify_consistency((old.size, &old.root), (head.size, &head.root), &proof));
        old = head;
    }
    let serial = SerialNumber::from_bytes([17; 16]);
    let place = archive.locate(&serial, None).unwrap();
    assert_eq!(place, Some((stream, 17 * 3 + 1)));
    let Inclusion { head, sequence, event, proof } = archive.inclusion(stream, None, 52).unwrap();
    assert!(verify_inclusion(&leaf_hash(&event), sequence, head.size, &proof, &head.root));
    assert_eq!(Event::from_cbor(&event).unwrap(), issued(17));
    store.tamper_derived(|name, value| {
        if name.starts_with(b"serial/") {
            value.clear();
        }
    });
    assert_eq!(archive.locate(&serial, None).unwrap(), place, "the index is a hint only");
    assert_eq!(archive.locate(&SerialNumber::from_bytes([99; 16]), None).unwrap(), None);
    assert!(archive.inclusion(stream, None, 120).unwrap_err().to_string().contains("has 120 events"));
}

proptest::proptest! {
    /// However events are grouped, and wherever the log is reopened, the same events come back.
    #[test]
    fn replay_of_any_prefix_is_that_prefix(groups in proptest::collection::vec(1_u64..5, 0..12)) {
        let store = Arc::new(MemoryStore::default());
        let (mut log, _) = open(&store, None).unwrap();
        let mut written = Vec::new();
        for size in groups {
            let start = written.len() as u64;
            let group: Vec<Event> = (start..start + size).map(event).collect();
            let head = log.append(&group, &key(1)).unwrap();
            written.extend(group);
            let (replayed, events) = open(&store, Some(&key(1))).unwrap();
            proptest::prop_assert_eq!(&events, &written);
            proptest::prop_assert_eq!(replayed.head(), head);
        }
    }

    /// Bytes of an attacker's choice are an error, not a panic.
    #[test]
    fn arbitrary_segments_are_refused(bytes: Vec<u8>) {
        let store = Arc::new(MemoryStore::default());
        store.tamper(&StreamId::Control, |segments| segments.push(bytes));
        proptest::prop_assert!(open(&store, None).is_err());
    }
}

#[test]
fn a_log_that_was_trimmed_does_not_move_and_the_refusal_says_where_the_rest_is() {
    let (from, to) = (Arc::new(MemoryStore::default()), Arc::new(MemoryStore::default()));
    fill(&from);
    let replica = StreamId::Replica(ReplicaId::from_bytes([7; 16]));
    let mut log = Log::open(Arc::clone(&from), replica, Some(key(1).public()), |_, _| {}).unwrap();
    for n in 0..4 {
        log.append(&[event(n)], &key(1)).unwrap();
    }
    from.trim(&replica, 3, &[]);
    let refusal = migrate(&from, &to, Some(key(1).public()), |_| {}).unwrap_err().to_string();
    assert!(refusal.contains("begins at segment 3") && refusal.contains("replicas' own copies"), "{refusal}");
    // Without its control stream the destination is no deployment.
    assert!(open(&to, None).unwrap().1.is_empty());
}
