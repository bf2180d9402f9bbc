//! A shared store behind a local copy: whatever the shared one shows, a past that was verified is not
//! given up.

use std::sync::Arc;

use keys::LogKey;
use manifest::ReplicaId;
use storage_schema::{
    BlobHash, Copies, EventStore, Log, LogError, MemoryStore, Replicated, StoreError, StreamId, removable,
};

use super::{conformance, event, key, open};

type Replica = Arc<Replicated<MemoryStore>>;

fn replica(shared: &Arc<MemoryStore>) -> Replica {
    let shared: Arc<dyn EventStore> = Arc::<MemoryStore>::clone(shared);
    let replica = Replicated::shared(MemoryStore::default(), shared);
    replica.trust();
    Arc::new(replica)
}

/// A shared store with three segments, and a replica that has read them.
fn three() -> (Arc<MemoryStore>, Replica, Log<Replicated<MemoryStore>>) {
    let shared = Arc::new(MemoryStore::default());
    super::fill(&shared);
    let replica = replica(&shared);
    let (log, events) = open(&replica, Some(&key(1))).unwrap();
    assert_eq!(events.len(), 5);
    (shared, replica, log)
}

#[test]
fn a_copy_conforms_and_is_complete() {
    conformance::conformance(Arc::new(Replicated::alone(MemoryStore::default())));
    let shared = Arc::new(MemoryStore::default());
    let replica = replica(&shared);
    conformance::conformance(Arc::clone(&replica));
    for stream in shared.streams().unwrap() {
        let all = |store: &MemoryStore| store.read(&stream, 0, 1 << 30).unwrap();
        assert_eq!(all(&shared), all(replica.local()));
    }
}

/// A disk that gives segments, and neither gives nor takes contents.
#[derive(Default)]
struct Damaged(MemoryStore);

const BAD_SECTOR: &str = "bad sector (test)";

impl EventStore for Damaged {
    fn append(&self, stream: &StreamId, index: u64, segment: &[u8]) -> Result<(), StoreError> {
        self.0.append(stream, index, segment)
    }

    fn read(&self, stream: &StreamId, index: u64, bytes: usize) -> Result<Vec<(u64, Vec<u8>)>, StoreError> {
        self.0.read(stream, index, bytes)
    }

    fn put_blob(&self, _: &[u8]) -> Result<BlobHash, StoreError> {
        Err(StoreError::Fault(BAD_SECTOR.into()))
    }

    fn get_blob(&self, _: &BlobHash) -> Result<Option<Vec<u8>>, StoreError> {
        Err(StoreError::Fault(BAD_SECTOR.into()))
    }

    fn put_derived(&self, name: &[u8], value: &[u8]) -> Result<(), StoreError> {
        self.0.put_derived(name, value)
    }

    fn get_derived(&self, name: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        self.0.get_derived(name)
    }

    fn sync(&self) -> Result<(), StoreError> {
        Ok(())
    }

    fn streams(&self) -> Result<Vec<StreamId>, StoreError> {
        self.0.streams()
    }
}

#[test]
fn a_content_that_the_copy_lost_comes_from_the_shared_store() {
    let shared = Arc::new(MemoryStore::default());
    let hash = shared.put_blob(b"a manifest").unwrap();
    let dynamic: Arc<dyn EventStore> = Arc::<MemoryStore>::clone(&shared);
    let replica = Replicated::shared(Damaged::default(), dynamic);
    replica.trust();
    assert_eq!(replica.get_blob(&hash).unwrap().unwrap(), b"a manifest");
    // What is to be kept has to be kept, and where there is nothing else the damage is said.
    assert!(replica.put_blob(b"another").is_err());
    let alone = Replicated::alone(Damaged::default());
    assert!(alone.get_blob(&hash).unwrap_err().to_string().contains(BAD_SECTOR));
}

#[test]
fn two_replicas_share_one_stream_and_one_of_them_wins_an_index() {
    let (shared, _one, mut log_one) = three();
    let two = replica(&shared);
    let (mut log_two, _) = open(&two, Some(&key(1))).unwrap();
    log_one.append(&[event(5)], &key(1)).unwrap();
    assert!(log_two.append(&[event(6)], &key(1)).is_err());
    log_two.catch_up(|_, found| assert_eq!(found, event(5))).unwrap();
    log_two.append(&[event(6)], &key(1)).unwrap();
    log_one.catch_up(|_, _| {}).unwrap();
    assert_eq!(log_one.head(), log_two.head());
}

#[test]
fn a_store_that_was_rolled_back_is_refused_at_reads_and_appends() {
    let (shared, replica, mut log) = three();
    shared.tamper(&StreamId::Control, |segments| segments.truncate(2));
    let refused = StoreError::Diverged { stream: StreamId::Control, index: 2, what: "has nothing" };
    assert_eq!(log.catch_up(|_, _| {}), Err(LogError::Store(refused.clone())));
    assert_eq!(replica.is_current(&StreamId::Control, 3), Err(refused.clone()));
    assert!(log.append(&[event(9)], &key(1)).is_err(), "not behind a gap");
    assert_eq!(replica.damage().unwrap().error, refused);
    assert!(replica.refusals() >= 2);

    // What was verified is still there to be read.
    assert_eq!(replica.read(&StreamId::Control, 0, 1 << 20).unwrap().len(), 3);
}

#[test]
fn a_store_with_another_history_is_refused_and_the_right_one_is_taken_again() {
    let (shared, replica, mut log) = three();
    let before = shared.read(&StreamId::Control, 0, 1 << 20).unwrap();
    let other = Arc::new(MemoryStore::default());
    let (mut fork, _) = open(&other, None).unwrap();
    for n in 10..14 {
        fork.append(&[event(n)], &key(1)).unwrap();
    }
    let forked: Vec<Vec<u8>> =
        other.read(&StreamId::Control, 0, 1 << 20).unwrap().into_iter().map(|(_, bytes)| bytes).collect();
    shared.tamper(&StreamId::Control, |segments| *segments = forked);
    let refused = StoreError::Diverged { stream: StreamId::Control, index: 2, what: "shows other content" };
    assert_eq!(log.catch_up(|_, _| {}), Err(LogError::Store(refused)), "signed by the right key, and a fork");

    shared.tamper(&StreamId::Control, |segments| {
        *segments = before.into_iter().map(|(_, bytes)| bytes).collect();
    });
    log.catch_up(|_, _| {}).unwrap();
    assert_eq!(replica.damage(), None);
    log.append(&[event(5)], &key(1)).unwrap();
}

#[test]
fn a_forged_log_leaves_nothing_in_the_copy_of_a_new_replica() {
    let shared = Arc::new(MemoryStore::default());
    let forger = LogKey::from_secret(&[66; 32]).unwrap();
    let (mut forged, _) = open(&shared, None).unwrap();
    forged.append(&[event(0)], &forger).unwrap();
    let dynamic: Arc<dyn EventStore> = Arc::<MemoryStore>::clone(&shared);
    let replica = Arc::new(Replicated::shared(MemoryStore::default(), dynamic));
    // Nothing is known yet, so it is read; the seed comes later and tells.
    let (log, _) = open(&replica, None).unwrap();
    assert_ne!(log.key(), Some(key(1).public()));
    assert_eq!(replica.local().streams().unwrap(), []);
}

/// Another replica's copy, asked when the shared store gave something up.
struct Peer(Replica);

impl Copies for Peer {
    fn segments(&self, stream: &StreamId, index: u64, max: usize) -> Result<Vec<(u64, Vec<u8>)>, StoreError> {
        self.0.local().read(stream, index, max)
    }

    fn blob(&self, hash: &BlobHash) -> Result<Option<Vec<u8>>, StoreError> {
        self.0.local().get_blob(hash)
    }
}

#[test]
fn what_the_shared_store_gave_up_comes_from_another_replica_and_is_verified() {
    let (shared, one) = (Arc::new(MemoryStore::default()), StreamId::Replica(ReplicaId::from_bytes([1; 16])));
    let (writer, late) = (replica(&shared), replica(&shared));
    let mut log = Log::open(Arc::clone(&writer), one, None, |_, _| {}).unwrap();
    let evidence = writer.put_blob(b"evidence").unwrap();
    for n in 0..6 {
        log.append(&[event(n), event(n + 10)], &key(1)).unwrap();
    }
    late_reads(&late, one, 2);

    // Held to 5 segments, covered to 7 events: three whole segments.
    let old = removable(writer.local(), one, 0..5, 7, key(1).public()).unwrap();
    assert_eq!(old.segments, 0..3);
    assert_eq!(removable(writer.local(), one, 0..2, 7, key(1).public()).unwrap().segments, 0..2);
    shared.trim(&one, 5, &[evidence]);

    let trimmed = StoreError::Trimmed { stream: one, index: 2, first: 5 };
    let open = || Log::open(Arc::clone(&late), one, Some(key(1).public()), |_, _| {});
    assert_eq!(open().map(|log| log.head()).unwrap_err(), LogError::Store(trimmed.clone()));
    assert_eq!(late.get_blob(&evidence).unwrap(), None);
    assert_eq!(late.damage(), None, "a store that gave up what all hold does not lie");

    late.ask_copies(Arc::new(Peer(Arc::clone(&writer))));
    assert_eq!(open().unwrap().head(), log.head());
    assert_eq!(late.local().read(&one, 0, 1 << 20).unwrap().len(), 6, "and it is here from now on");
    assert_eq!(late.get_blob(&evidence).unwrap().as_deref(), Some(b"evidence".as_slice()));

    // A peer that sends what was not signed is not believed.
    let liar = replica(&shared);
    let mut segment = writer.local().read(&one, 0, 1).unwrap().remove(0).1;
    *segment.last_mut().unwrap() ^= 1;
    liar.local().append(&one, 0, &segment).unwrap();
    let misled = replica(&shared);
    misled.ask_copies(Arc::new(Peer(liar)));
    let outcome = Log::open(misled, one, Some(key(1).public()), |_, _| {}).map(|log| log.head());
    assert!(matches!(outcome, Err(LogError::Segment { index: 0, .. })), "{outcome:?}");

    // The control stream is never given up.
    super::fill(&shared);
    let (mut control, _) = super::open(&late, Some(&key(1))).unwrap();
    shared.trim(&StreamId::Control, 3, &[]);
    assert!(matches!(control.catch_up(|_, _| {}), Err(LogError::Store(StoreError::Diverged { .. }))));
}

/// Copies the first segments of a stream, and then reads no further.
fn late_reads(late: &Replica, stream: StreamId, segments: usize) {
    for (index, bytes) in late.read(&stream, 0, 1 << 20).unwrap().into_iter().take(segments) {
        late.keep(&stream, index, &bytes).unwrap();
    }
}
