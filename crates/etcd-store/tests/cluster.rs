//! The engine on real clusters of three members: the contract, TLS, passwords, failover.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../../../storage-schema/tests/conformance/mod.rs"]
mod conformance;

use std::{sync::Arc, time::Duration};

use chaos_tests::{etcd::Cluster, process::wait_until};
use etcd_store::{EtcdOptions, EtcdStore, TlsFiles};
use manifest::ReplicaId;
use storage_schema::{EventStore as _, StoreError, StreamId};

fn options(cluster: &Cluster) -> EtcdOptions {
    EtcdOptions {
        endpoints: cluster.endpoints(),
        prefix: "contrast/test/".into(),
        tls: None,
        user: None,
        deadline: Duration::from_mins(1),
    }
}

fn stream(n: u8) -> StreamId {
    StreamId::Replica(ReplicaId::from_bytes([n; 16]))
}

#[test]
fn etcd_conforms_over_tls_and_with_a_password() {
    let directory = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(directory.path(), 3, true).unwrap();
    for command in [
        "user add root:root-password",
        "user grant-role root root",
        "role add contrast",
        "role grant-permission contrast --prefix=true readwrite contrast/",
        "user add coordinator:secret",
        "user grant-role coordinator contrast",
        "auth enable",
    ] {
        // An election may come in between.
        let done = || cluster.ctl(&command.split(' ').collect::<Vec<_>>());
        done().or_else(|_| done()).unwrap();
    }
    let identity = Some((cluster.tls_file("client.pem"), cluster.tls_file("client.key")));
    let tls = Some(TlsFiles { ca: cluster.tls_file("ca.pem"), identity });
    let user = |password: &str| Some(("coordinator".to_owned(), password.to_owned().into()));
    let with = |password: &str| EtcdOptions { tls: tls.clone(), user: user(password), ..options(&cluster) };
    conformance::conformance(Arc::new(EtcdStore::new(&with("secret")).unwrap()));

    let short = Duration::from_secs(15);
    let wrong = EtcdStore::new(&EtcdOptions { deadline: short, ..with("wrong") }).unwrap();
    let text = wrong.streams().unwrap_err().to_string();
    assert!(text.contains("authentication failed"), "{text}");
    assert!(!text.contains("wrong"), "the password is in no error: {text}");

    let elsewhere = EtcdOptions { prefix: "elsewhere/".into(), deadline: short, ..with("secret") };
    let text = EtcdStore::new(&elsewhere).unwrap().streams().unwrap_err().to_string();
    assert!(text.contains("permission denied"), "{text}");
}

/// Waits until every member is back: without a quorum nothing else works.
fn all_answer(store: &EtcdStore) {
    let is_back = || Ok(store.health().is_ok_and(|health| health.answering == health.members));
    wait_until("all members answer", Duration::from_mins(1), is_back).unwrap();
}

#[test]
fn a_dead_member_costs_time_only_and_without_a_quorum_nothing_is_acknowledged() {
    let directory = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::start(directory.path(), 3, false).unwrap();
    let store = EtcdStore::new(&options(&cluster)).unwrap();
    let mut news = store.news();
    let mut written = 0_u64;
    let mut append = |store: &EtcdStore, count: u64| {
        for _ in 0..count {
            store.append(&stream(1), written, &written.to_be_bytes()).unwrap();
            written += 1;
        }
    };
    append(&store, 20);
    cluster.kill(0);
    append(&store, 20);
    cluster.restart(0).unwrap();
    all_answer(&store);
    cluster.kill(1);
    append(&store, 20);
    assert_eq!(store.health().unwrap().members, 3);

    cluster.kill(2);
    let impatient = EtcdOptions { deadline: Duration::from_secs(4), ..options(&cluster) };
    let impatient = EtcdStore::new(&impatient).unwrap();
    let refused = impatient.append(&stream(1), 60, b"unknown outcome");
    assert!(matches!(refused, Err(StoreError::Unavailable(_))), "{refused:?}");
    assert!(matches!(impatient.read(&stream(1), 0, 1 << 20), Err(StoreError::Unavailable(_))));

    cluster.restart(1).unwrap();
    cluster.restart(2).unwrap();
    let all = store.read(&stream(1), 0, 1 << 20).unwrap();
    assert!(all.len() >= 60 && all.len() <= 61, "{}", all.len());
    assert!(all[..60].iter().all(|(index, bytes)| bytes == &index.to_be_bytes()));
    assert!(news.borrow_and_update().to_owned() > 0, "the watch told of appends");
}

fn blobs(cluster: &Cluster) -> usize {
    let names = cluster.ctl(&["get", "contrast/test/b", "--prefix", "--keys-only", "--hex"]).unwrap();
    names.split_whitespace().count()
}

#[test]
fn what_was_trimmed_is_named_as_that_and_the_end_of_a_stream_stays() {
    let directory = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(directory.path(), 1, false).unwrap();
    let store = EtcdStore::new(&options(&cluster)).unwrap();
    let blob = store.put_blob(&vec![7; 1 << 20]).unwrap();
    for index in 0..10_u64 {
        store.append(&stream(1), index, &index.to_be_bytes()).unwrap();
    }
    assert_eq!(store.first_index(&stream(1)).unwrap(), Some(0));
    assert_eq!(store.trim(&stream(1), 4).unwrap(), 4);
    store.remove_blobs(&[blob]).unwrap();
    assert_eq!(store.get_blob(&blob).unwrap(), None);
    assert_eq!(store.first_index(&stream(1)).unwrap(), Some(4));
    let before = StoreError::Trimmed { stream: stream(1), index: 3, first: 4 };
    assert_eq!(store.read(&stream(1), 3, 1 << 20), Err(before));
    assert_eq!(store.read(&stream(1), 4, 1 << 20).unwrap().len(), 6);

    assert_eq!(store.trim(&stream(1), 99).unwrap(), 5, "the last one stays, whatever was asked");
    store.append(&stream(1), 10, b"the stream goes on").unwrap();
    assert_eq!(store.read(&stream(1), 9, 1 << 20).unwrap().len(), 2);

    // Segments that are too large for a key leave nothing behind either.
    let before = blobs(&cluster);
    for index in 0..250_u64 {
        let segment = [index.to_be_bytes().as_slice(), &[7; 65 << 10]].concat();
        store.append(&stream(2), index, &segment).unwrap();
    }
    assert!(blobs(&cluster) >= before + 250);
    assert_eq!(store.trim(&stream(2), 249).unwrap(), 249);
    assert_eq!(blobs(&cluster), before + 1);
    assert_eq!(store.read(&stream(2), 249, 1).unwrap().len(), 1);

    let health = store.health().unwrap();
    assert!(health.bytes_in_use > 0 && health.bytes_in_use <= health.bytes, "{health:?}");
}

#[test]
fn many_writers_on_one_index_have_one_winner_though_they_retry() {
    let directory = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(directory.path(), 1, false).unwrap();
    let store = Arc::new(EtcdStore::new(&options(&cluster)).unwrap());
    for index in 0..20 {
        let append = |writer: u8| {
            let store = Arc::clone(&store);
            std::thread::spawn(move || store.append(&StreamId::Control, index, &[writer]).is_ok())
        };
        let writers: Vec<_> = (0..6).map(append).collect();
        assert_eq!(writers.into_iter().filter_map(|writer| writer.join().ok()).filter(|won| *won).count(), 1);
    }
    assert_eq!(store.trim(&StreamId::Control, 100).unwrap(), 19);
    assert_eq!(store.read(&StreamId::Control, 19, 1 << 20).unwrap().len(), 1, "the last one stays");
    assert!(store.append(&StreamId::Control, 20, b"goes on").is_ok());
}

#[test]
fn a_store_over_its_quota_says_so_until_it_has_room() {
    let directory = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::start(directory.path(), 1, false).unwrap();
    cluster.set_quota(4 << 20).unwrap();
    let store =
        EtcdStore::new(&EtcdOptions { deadline: Duration::from_secs(5), ..options(&cluster) }).unwrap();
    assert_eq!(store.failing(), None);
    let mut written = 0;
    let refusal = loop {
        match store.append(&stream(1), written, &vec![u8::try_from(written).unwrap(); 400_000]) {
            Ok(()) => written += 1,
            Err(error) => break error.to_string(),
        }
    };
    assert!(written > 2 && refusal.contains("database space exceeded"), "{written}: {refusal}");
    // Asked at once, not at the next look.
    let trouble = store.failing().unwrap().to_string();
    assert!(trouble.contains("NOSPACE") && trouble.contains("When etcd is full"), "{trouble}");
    assert_eq!(store.read(&stream(1), 0, 1).unwrap().len(), 1, "what is there is read");

    cluster.set_quota(64 << 20).unwrap();
    cluster.ctl(&["alarm", "disarm"]).unwrap();
    wait_until("it passes", Duration::from_secs(5), || Ok(store.failing().is_none())).unwrap();
    // The refused one may have been taken after all.
    let next = store.append(&stream(1), written, b"next");
    assert!(matches!(next, Ok(()) | Err(StoreError::IndexTaken { .. })), "{next:?}");
}
