//! What every engine must do. Tests of engines in other crates include this file.

use std::sync::Arc;

use keys::LogKey;
use manifest::{ReplicaId, RequestId, Timestamp};
use storage_schema::{Event, EventStore, Fact, Log, StoreError, StreamId};

fn key() -> LogKey {
    LogKey::from_secret(&[1; 32]).unwrap()
}

fn event(n: u64) -> Event {
    Event {
        at: Timestamp::from_millis(1_800_000_000_000 + n),
        replica: ReplicaId::from_bytes([7; 16]),
        request: RequestId::from_bytes([9; 16]),
        fact: Fact::ReplicaStarted { version: n.to_string() },
    }
}

fn open<S: EventStore>(store: &Arc<S>) -> (Log<S>, Vec<Event>) {
    let mut events = Vec::new();
    let take = |_, event| events.push(event);
    let log = Log::open(Arc::clone(store), StreamId::Control, Some(key().public()), take).unwrap();
    (log, events)
}

/// An empty store is filled, and must give back what the contract promises.
pub(crate) fn conformance<S: EventStore>(store: Arc<S>) {
    segments(store.as_ref());
    blobs_and_derived(store.as_ref());

    let (mut log, _) = open(&store);
    let all: Vec<Event> = (0..5).map(event).collect();
    for part in [&all[..1], &all[1..4], &all[4..]] {
        log.append(part, &key()).unwrap();
    }
    let (log, replayed) = open(&store);
    assert_eq!(replayed, all);
    assert_eq!((log.head().size, log.head().segments), (5, 3));
    let ids = [3, 4, 5].map(|n| StreamId::Replica(ReplicaId::from_bytes([n; 16])));
    assert_eq!(store.streams().unwrap(), [&[StreamId::Control], ids.as_slice()].concat());
}

fn segments<S: EventStore>(store: &S) {
    let stream = StreamId::Replica(ReplicaId::from_bytes([3; 16]));
    assert_eq!(store.streams().unwrap(), []);
    store.append(&stream, 0, b"zero").unwrap();
    store.append(&stream, 1, b"one").unwrap();
    assert_eq!(store.append(&stream, 1, b"other"), Err(StoreError::IndexTaken { stream, index: 1 }));
    assert!(matches!(store.append(&stream, 9, b"gap"), Err(StoreError::Gap { index: 9, .. })));
    assert_eq!(store.read(&stream, 0, 1).unwrap(), [(0, b"zero".to_vec())], "at least one");
    assert_eq!(store.read(&stream, 1, 1 << 20).unwrap(), [(1, b"one".to_vec())]);
    assert_eq!(store.read(&StreamId::Control, 0, 1 << 20).unwrap(), []);

    let large = StreamId::Replica(ReplicaId::from_bytes([4; 16]));
    store.append(&large, 0, &vec![5; 100_000]).unwrap();
    store.append(&large, 1, &vec![6; 8192]).unwrap();
    let both = store.read(&large, 0, 1 << 20).unwrap();
    assert!(both == [(0, vec![5; 100_000]), (1, vec![6; 8192])]);

    // More than one page.
    let long = StreamId::Replica(ReplicaId::from_bytes([5; 16]));
    for index in 0..700_u64 {
        store.append(&long, index, &index.to_be_bytes()).unwrap();
    }
    let mut found = Vec::new();
    while let Some((last, _)) = {
        let page = store.read(&long, found.len() as u64, 4 << 20).unwrap();
        found.extend(page.iter().cloned());
        page.last().cloned()
    } {
        assert_eq!(last + 1, found.len() as u64);
    }
    assert!((0..700).eq(found.iter().map(|(index, _)| *index)));
    assert!(found.iter().all(|(index, bytes)| bytes == &index.to_be_bytes()));
}

fn blobs_and_derived<S: EventStore>(store: &S) {
    let blob = store.put_blob(b"manifest").unwrap();
    assert_eq!(store.put_blob(b"manifest").unwrap(), blob);
    assert_eq!(store.get_blob(&blob).unwrap().unwrap(), b"manifest");
    for size in [0, 8191, 8192, 8193, 3_000_000] {
        let large = vec![7; size];
        let hash = store.put_blob(&large).unwrap();
        assert!(store.get_blob(&hash).unwrap().unwrap() == large, "blob of {size} bytes");
        store.put_derived(b"large", &large).unwrap();
        assert!(store.get_derived(b"large").unwrap().unwrap() == large, "{size} bytes");
    }
    store.put_derived(b"large", b"small again").unwrap();
    assert_eq!(store.get_derived(b"large").unwrap().unwrap(), b"small again");
    assert_eq!(store.get_derived(b"larg").unwrap(), None);
    assert_eq!(store.get_derived(b"name").unwrap(), None);
    store.put_derived(b"name", b"one").unwrap();
    store.put_derived(b"name", b"two").unwrap();
    store.sync().unwrap();
    assert_eq!(store.get_derived(b"name").unwrap().unwrap(), b"two");
    assert!(store.get_blob(&blob).unwrap().is_some(), "after a sync as well");
}
