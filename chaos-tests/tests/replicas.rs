//! Several real Coordinators on a real etcd cluster, that act as one.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{sync::Arc, time::Duration};

use attestation::Issuer;
use chaos_tests::{
    byzantine::Lie,
    client::{self, Attested, Issued, SetOutcome},
    fleet::Fleet,
    plan::{COORDINATOR, NEXT_COORDINATOR, transition},
    run::run,
    scenario::Scenario,
};
use manifest::{PolicyHash, TransitionHash};
use wire::replica::StatusResponse;

/// For what takes seconds, on a machine that is very busy.
const SOON: Duration = Duration::from_secs(120);

fn done(outcome: SetOutcome) -> Option<wire::user::SeedShareDocument> {
    match outcome {
        SetOutcome::Done(shares) => shares,
        other => panic!("the manifest was not set: {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_replicas_join_follow_survive_and_recover() {
    let directory = tempfile::tempdir().unwrap();
    let mut fleet = Fleet::start(directory.path(), 3, 1).await.unwrap();

    // One replica, the first manifest.
    let first = fleet.plan.manifest(1).unwrap();
    let shares = done(client::set(fleet.replicas[0].user, &fleet.plan, &first, None).await).unwrap();
    fleet.wait_ready(0, SOON).await.unwrap();

    // From one to three: the others get the secrets from the first.
    for _ in 1..3 {
        let number = fleet.add().await.unwrap();
        fleet.restart(number).unwrap();
        fleet.wait_ready(number, SOON).await.unwrap();
    }
    let issuer = client::workload_issuer(&fleet.plan).unwrap();
    let mut issued = Vec::new();
    for number in 0..3 {
        issued.push(served(&fleet, number, &issuer).await);
    }
    assert!(
        issued.windows(2).all(|pair| pair[0].secret == pair[1].secret && pair[0].mesh_ca == pair[1].mesh_ca)
    );

    // A change at the second is in force at all of them, from the log alone.
    let second = fleet.plan.manifest(2).unwrap();
    let previous = transition(None, &first);
    done(client::set(fleet.replicas[1].user, &fleet.plan, &second, Some(previous)).await);
    let now = transition(Some(previous), &second);
    let mut mesh_cas = Vec::new();
    for number in 0..3 {
        wait_in_force(&fleet, number, now).await;
        let (manifests, _, mesh_ca) = client::history(fleet.replicas[number].user).await.unwrap();
        assert_eq!(manifests.len(), 2);
        mesh_cas.push(mesh_ca);
    }
    assert!(mesh_cas.windows(2).all(|pair| pair[0] == pair[1]), "one mesh CA for all");
    let stale = client::set(fleet.replicas[2].user, &fleet.plan, &first, Some(previous)).await;
    assert!(matches!(stale, SetOutcome::Stale(_)), "{stale:?}");

    // The one that made the change dies; another restarts and joins again.
    fleet.kill(1);
    fleet.stop(0).unwrap();
    fleet.restart(0).unwrap();
    fleet.wait_ready(0, SOON).await.unwrap();
    let again = served(&fleet, 0, &issuer).await;
    assert_eq!(again.secret, issued[0].secret);
    assert_eq!(again.mesh_ca, mesh_cas[0], "the mesh CA outlived the replica that made it");

    // Without its store a replica still shows the whole history that it knows.
    (0..3).for_each(|member| fleet.etcd.kill(member));
    let output = std::process::Command::new(chaos_tests::program("contrast"))
        .args(["history", "list", "-c", &format!("127.0.0.1:{}", fleet.replicas[2].user)])
        .args(["--manifest", "manifest.json", "--output", "json"])
        .current_dir(directory.path())
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let shown: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(shown.as_array().unwrap().len(), 2, "{output:?}");
    (0..3).for_each(|member| fleet.etcd.restart(member).unwrap());

    // All gone: nobody serves, until an owner brings the seed back to one of them.
    fleet.kill(0);
    fleet.kill(2);
    for number in 0..3 {
        fleet.restart(number).unwrap();
    }
    for number in 0..3 {
        fleet.wait_state(number, "coordinator is in recovery mode", SOON).await.unwrap();
    }
    client::recover(fleet.replicas[2].user, &fleet.plan, &shares).await.unwrap();
    for number in 0..3 {
        fleet.wait_ready(number, SOON).await.unwrap();
    }
    let mut mesh_cas = Vec::new();
    for number in 0..3 {
        let issued = served(&fleet, number, &issuer).await;
        assert_eq!(issued.secret, again.secret);
        mesh_cas.push(issued.mesh_ca);
    }
    assert!(mesh_cas.windows(2).all(|pair| pair[0] == pair[1]));
    assert_ne!(mesh_cas[0], again.mesh_ca, "an owner of the seed does not know the mesh CA key");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_version_takes_over_without_an_owner_of_the_seed_and_the_old_one_is_shut_out() {
    let directory = tempfile::tempdir().unwrap();
    let (mut fleet, latest) = two_ready(directory.path()).await;
    let issuer = client::workload_issuer(&fleet.plan).unwrap();
    let before = served(&fleet, 0, &issuer).await;

    // A new version is a stranger until the manifest names it.
    fleet.policy = PolicyHash::of(NEXT_COORDINATOR);
    fleet.stop(1).unwrap();
    fleet.restart(1).unwrap();
    wait_peer_error(&mut fleet, 1, "is not in the current manifest").await;

    // Both are permitted, and one after the other is replaced.
    fleet.plan.permit(&[COORDINATOR, NEXT_COORDINATOR]);
    let both = fleet.plan.manifest(3).unwrap();
    done(client::set(fleet.replicas[0].user, &fleet.plan, &both, Some(latest)).await);
    fleet.wait_ready(1, SOON).await.unwrap();
    fleet.stop(0).unwrap();
    fleet.restart(0).unwrap();
    fleet.wait_ready(0, SOON).await.unwrap();

    // One of the old version comes back, and stays until it is not permitted any more.
    fleet.policy = PolicyHash::of(COORDINATOR);
    fleet.add().await.unwrap();
    fleet.restart(2).unwrap();
    fleet.wait_ready(2, SOON).await.unwrap();
    let latest = transition(Some(latest), &both);
    fleet.plan.permit(&[NEXT_COORDINATOR]);
    let next = fleet.plan.manifest(4).unwrap();
    let old = client::issuer(&fleet.plan, fleet.policy).unwrap();
    let mut old = Attested::open(fleet.replicas[1].mesh, &old).await.unwrap();
    let mut workload = Attested::open(fleet.replicas[1].mesh, &issuer).await.unwrap();
    old.secrets().await.unwrap();
    workload.certificate().await.unwrap();
    done(client::set(fleet.replicas[1].user, &fleet.plan, &next, Some(latest)).await);
    // Who was let in before has to prove itself again.
    for refused in [old.secrets().await.unwrap_err(), workload.certificate().await.map(drop).unwrap_err()] {
        assert!(refused.to_string().contains("the manifest has changed"), "{refused}");
    }
    for number in 0..2 {
        wait_in_force(&fleet, number, transition(Some(latest), &next)).await;
        fleet.wait_ready(number, SOON).await.unwrap();
        let now = served(&fleet, number, &issuer).await;
        assert_eq!(now.secret, before.secret, "volumes open as before");
    }
    fleet.wait_state(2, "coordinator is in recovery mode", SOON).await.unwrap();
    wait_peer_error(&mut fleet, 2, "is not in the current manifest").await;
}

/// Waits until a replica says why its peer gives it nothing.
async fn wait_peer_error(fleet: &mut Fleet, number: usize, reason: &str) {
    fleet.wait_listening(number).await.unwrap();
    let until = std::time::Instant::now() + SOON;
    loop {
        let status = client::status(fleet.replicas[number].user).await.unwrap();
        if status.peers.iter().any(|peer| peer.error.contains(reason)) {
            assert_eq!(status.state, "coordinator is in recovery mode");
            return;
        }
        assert!(std::time::Instant::now() < until, "no peer says {reason:?}: {:?}", status.peers);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// A certificate for the workload from a replica that is ready, or was a moment ago.
async fn served(fleet: &Fleet, number: usize, issuer: &Arc<dyn Issuer>) -> Issued {
    let until = std::time::Instant::now() + SOON;
    loop {
        match client::certificate(fleet.replicas[number].mesh, issuer).await {
            Ok(issued) => return issued,
            Err(error) if std::time::Instant::now() > until => panic!("replica {number}: {error:#}"),
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

/// Waits until a replica shows an alarm with this text.
async fn wait_alarm(fleet: &Fleet, number: usize, text: &str) -> StatusResponse {
    let until = std::time::Instant::now() + SOON;
    loop {
        let status = client::status(fleet.replicas[number].user).await.unwrap();
        if status.alarms.iter().any(|alarm| alarm.contains(text)) {
            return status;
        }
        assert!(std::time::Instant::now() < until, "no alarm says {text:?}: {status:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Waits until a replica follows this change.
async fn wait_in_force(fleet: &Fleet, number: usize, transition: TransitionHash) {
    let until = std::time::Instant::now() + SOON;
    loop {
        let latest = client::history(fleet.replicas[number].user).await.map(|(_, latest, _)| latest);
        if latest.as_ref().is_ok_and(|latest| *latest == transition) {
            return;
        }
        assert!(std::time::Instant::now() < until, "replica {number} does not follow: {latest:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Two ready replicas on one member of etcd, with two manifests.
async fn two_ready(directory: &std::path::Path) -> (Fleet, TransitionHash) {
    two_ready_with(directory, &[]).await
}

async fn two_ready_with(directory: &std::path::Path, arguments: &[&str]) -> (Fleet, TransitionHash) {
    let mut fleet = Fleet::start_with(directory, 1, 2, arguments).await.unwrap();
    let (first, second) = (fleet.plan.manifest(1).unwrap(), fleet.plan.manifest(2).unwrap());
    done(client::set(fleet.replicas[0].user, &fleet.plan, &first, None).await);
    for number in 0..2 {
        fleet.wait_ready(number, SOON).await.unwrap();
    }
    let previous = transition(None, &first);
    done(client::set(fleet.replicas[1].user, &fleet.plan, &second, Some(previous)).await);
    (fleet, transition(Some(previous), &second))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_was_rolled_back_is_refused_reported_and_taken_again_when_it_is_right() {
    let directory = tempfile::tempdir().unwrap();
    let (mut fleet, latest) = two_ready(directory.path()).await;
    let (old, new) = (directory.path().join("old"), directory.path().join("new"));
    fleet.etcd.swap_data(&old, None).unwrap();
    for number in 0..2 {
        fleet.wait_ready(number, SOON).await.unwrap();
    }
    let third = fleet.plan.manifest(3).unwrap();
    done(client::set(fleet.replicas[0].user, &fleet.plan, &third, Some(latest)).await);
    let now = transition(Some(latest), &third);
    wait_in_force(&fleet, 1, now).await;

    fleet.etcd.swap_data(&new, Some(&old)).unwrap();
    let issuer = client::workload_issuer(&fleet.plan).unwrap();
    for number in 0..2 {
        fleet.wait_state(number, "stale", SOON).await.unwrap();
        let (user, mesh) = (fleet.replicas[number].user, fleet.replicas[number].mesh);
        let status = wait_alarm(&fleet, number, "rolled back").await;
        assert!(status.store.unwrap().refusals > 0);
        let refused = client::certificate(mesh, &issuer).await.unwrap_err().to_string();
        assert!(refused.contains("Unavailable"), "nothing is issued: {refused}");
        let (manifests, shown, _) = client::history(user).await.unwrap();
        assert_eq!((manifests.len(), shown), (3, now), "what was verified is still served");
    }
    // Neither a replica with its disk nor one that lost it believes the store.
    fleet.kill(0);
    fleet.restart(0).unwrap();
    tokio::time::sleep(Duration::from_millis(500)).await;
    let ended = chaos_tests::process::wait_until("refusal at the start", SOON, || {
        Ok(fleet.replicas[0].process.as_mut().is_none_or(|process| process.ended().is_some()))
    });
    ended.unwrap();
    let log = fleet.replicas[0].process.as_ref().unwrap().tail(3);
    assert!(log.contains("rolled back") && log.contains("control"), "{log}");
    fleet.kill(0);
    std::fs::rename(&fleet.replicas[0].state, directory.path().join("disk-0")).unwrap();
    fleet.restart(0).unwrap();
    fleet.wait_state(0, "coordinator is in recovery mode", SOON).await.unwrap();
    // Its peer cannot record that it hands over the secrets, so it does not.
    wait_peer_error(&mut fleet, 0, "rolled back").await;

    // The right store again: everything goes on, and what happened is in the log.
    fleet.kill(0);
    std::fs::remove_dir_all(&fleet.replicas[0].state).unwrap();
    fleet.etcd.swap_data(&directory.path().join("rolled-back"), Some(&new)).unwrap();
    fleet.restart(0).unwrap();
    for number in 0..2 {
        fleet.wait_ready(number, SOON).await.unwrap();
        served(&fleet, number, &issuer).await;
    }
    let events = std::process::Command::new(chaos_tests::program("contrast"))
        .args(["audit", "export", "-c", &format!("127.0.0.1:{}", fleet.replicas[0].user)])
        .args(["--manifest", "manifest.json", "--auditor-key", "workload-owner.pem"])
        .current_dir(directory.path())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&events.stdout);
    assert!(text.contains("StorageRefused"), "{}", String::from_utf8_lossy(&events.stderr));
}

/// Serial numbers of the certificates that an export from a replica names, verified by the export itself.
fn exported(directory: &std::path::Path, port: u16) -> std::collections::BTreeSet<String> {
    let output = std::process::Command::new(chaos_tests::program("contrast"))
        .args(["audit", "export", "-c", &format!("127.0.0.1:{port}")])
        .args(["--manifest", "manifest.json", "--auditor-key", "workload-owner.pem"])
        .current_dir(directory)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let issued = text.lines().filter(|line| line.contains("CertificateIssued"));
    issued.map(|line| line.split("\"serial\":").nth(1).unwrap_or(line).chars().take(60).collect()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn from_one_to_five_and_back_to_three_though_etcd_gave_up_what_all_hold() {
    let directory = tempfile::tempdir().unwrap();
    let mut fleet = Fleet::start_with(directory.path(), 1, 1, &["--etcd-trim-above", "0"]).await.unwrap();
    let first = fleet.plan.manifest(1).unwrap();
    done(client::set(fleet.replicas[0].user, &fleet.plan, &first, None).await);
    let issuer = client::workload_issuer(&fleet.plan).unwrap();
    for number in 1..3 {
        fleet.add().await.unwrap();
        fleet.restart(number).unwrap();
        fleet.wait_ready(number, SOON).await.unwrap();
    }
    // Lists of peers are static here: who was there before gets the new one.
    for number in 0..2 {
        fleet.restart(number).unwrap();
        fleet.wait_ready(number, SOON).await.unwrap();
    }
    for n in 0..24 {
        served(&fleet, n % 3, &issuer).await;
    }

    // etcd gives up segments and evidence of all three replicas' streams.
    let until = std::time::Instant::now() + SOON;
    let blobs = || {
        let names = fleet.etcd.ctl(&["get", "contrast/b", "--prefix", "--keys-only", "--hex"]).unwrap();
        names.split_whitespace().count()
    };
    while blobs() > 8 {
        assert!(std::time::Instant::now() < until, "too little is given up: {} blobs are left", blobs());
        tokio::time::sleep(Duration::from_millis(300)).await;
    }

    // One that lost its disk, and two that never had one, get everything from the others.
    fleet.kill(2);
    std::fs::remove_dir_all(&fleet.replicas[2].state).unwrap();
    for number in 2..5 {
        if number > 2 {
            fleet.add().await.unwrap();
        }
        fleet.restart(number).unwrap();
        fleet.wait_ready(number, SOON).await.unwrap();
        served(&fleet, number, &issuer).await;
    }
    for number in 2..5 {
        fleet.wait_complete(number, SOON).await.unwrap();
    }

    // Back to three: the two that had been there from the start go, in order, and nothing is missed.
    let all = exported(directory.path(), fleet.replicas[1].user);
    assert_eq!(all.len(), 27);
    fleet.stop(0).unwrap();
    fleet.stop(1).unwrap();
    for number in 2..5 {
        assert!(exported(directory.path(), fleet.replicas[number].user).is_superset(&all));
        served(&fleet, number, &issuer).await;
    }
    let second = fleet.plan.manifest(2).unwrap();
    done(client::set(fleet.replicas[3].user, &fleet.plan, &second, Some(transition(None, &first))).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_stores_with_two_histories_are_noticed_by_the_replicas_themselves() {
    let directory = tempfile::tempdir().unwrap();
    // No checkpoint may come between the fork and the changes: it would be a fork, too.
    let (mut fleet, latest) = two_ready_with(directory.path(), &["--checkpoint-seconds", "3600"]).await;
    // The second replica comes up on the other store, which shows the same past so far. It must not see what
    // the first one writes after the fork.
    fleet.kill(1);
    let other = fleet.etcd.fork(&directory.path().join("other-etcd")).unwrap();
    fleet.restart_on(1, &other.endpoints()).unwrap();
    for number in 0..2 {
        fleet.wait_ready(number, SOON).await.unwrap();
    }
    for number in 0..2 {
        let manifest = fleet.plan.manifest(10 + number as u64).unwrap();
        done(client::set(fleet.replicas[number].user, &fleet.plan, &manifest, Some(latest)).await);
    }
    let issuer = client::workload_issuer(&fleet.plan).unwrap();
    let mut forks = 0;
    for number in 0..2 {
        fleet.wait_state(number, "stale", SOON).await.unwrap();
        // Only who knows more events than the other one can tell a fork from a store that hides something.
        let status = wait_alarm(&fleet, number, "").await;
        let says = |text: &str| status.alarms.iter().any(|alarm| alarm.contains(text));
        assert!(says("the history forked") || says("hides the rest"), "{:?}", status.alarms);
        forks += u32::from(says("the history forked"));
        client::certificate(fleet.replicas[number].mesh, &issuer).await.unwrap_err();
    }

    assert!(forks > 0);

    // An operator decides: the first store is right. The other replica's disk goes, and both serve again.
    fleet.kill(1);
    std::fs::remove_dir_all(&fleet.replicas[1].state).unwrap();
    fleet.restart(1).unwrap();
    for number in [1, 0] {
        fleet.wait_ready(number, SOON).await.unwrap();
        served(&fleet, number, &issuer).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_single_log_moves_into_etcd_and_back_and_status_shows_the_replicas() {
    let directory = tempfile::tempdir().unwrap();
    let contrast = |args: &[&str]| {
        let output = std::process::Command::new(chaos_tests::program("contrast"))
            .args(args)
            .current_dir(directory.path())
            .output()
            .unwrap();
        (output.status.code(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
    };
    let state = directory.path().join("dev");
    let (code, text) = contrast(&["dev", "--state-dir", state.to_str().unwrap()]);
    assert_eq!(code, Some(0), "{text}");
    let cluster = chaos_tests::etcd::Cluster::start(&directory.path().join("etcd"), 1, false).unwrap();
    let endpoint = cluster.endpoint(0);
    let migrate = |directory: &str, more: &[&str]| {
        let base = ["store", "migrate", "--manifest", "dev/manifest.json", "--state-dir", directory];
        contrast(&[base.as_slice(), &["--etcd-endpoints", &endpoint], more].concat())
    };
    let (code, text) = migrate("dev/event-log", &[]);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("Moved and verified"), "{text}");
    let (code, again) = migrate("dev/event-log", &[]);
    assert_eq!((code, &again), (Some(0), &text), "it can be repeated");
    let (code, back) = migrate("back", &["--back"]);
    assert_eq!((code, &back), (Some(0), &text), "the same comes back");
    let list = |directory: &str| {
        contrast(&["history", "list", "--manifest", "dev/manifest.json", "--state-dir", directory])
    };
    assert_eq!(list("back"), list("dev/event-log"));

    // Another deployment's log does not go into the same place.
    let other = directory.path().join("other");
    let (code, text) = contrast(&["dev", "--state-dir", other.to_str().unwrap()]);
    assert_eq!(code, Some(0), "{text}");
    let base = ["store", "migrate", "--manifest", "other/manifest.json", "--state-dir", "other/event-log"];
    let (code, text) = contrast(&[base.as_slice(), &["--etcd-endpoints", &endpoint]].concat());
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("stream control"), "{text}");

    let fleet_directory = tempfile::tempdir().unwrap();
    let (fleet, _) = two_ready(fleet_directory.path()).await;
    let addresses: Vec<String> = fleet.user_ports().iter().map(|port| format!("127.0.0.1:{port}")).collect();
    let manifest = fleet_directory.path().join("manifest.json");
    let status = |addresses: &str| {
        contrast(&["status", "-c", addresses, "--manifest", manifest.to_str().unwrap(), "--output", "json"])
    };
    let (code, text) = status(&addresses.join(","));
    assert_eq!(code, Some(0), "{text}");
    let found: serde_json::Value = serde_json::from_str(&text).unwrap();
    for replica in found.as_array().unwrap() {
        assert_eq!((&replica["state"], &replica["store"]["engine"]), (&"ready".into(), &"etcd".into()));
        assert_eq!(replica["store"]["answering"], 1);
    }
    let (code, text) = status("127.0.0.1:1");
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("127.0.0.1:1"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_acknowledges_and_forgets_stops_the_replica_that_it_lies_to_and_no_other() {
    let directory = tempfile::tempdir().unwrap();
    let (mut fleet, latest) = two_ready(directory.path()).await;
    let issuer = client::workload_issuer(&fleet.plan).unwrap();
    let replica = &fleet.replicas[1];
    // It has to have acknowledged something honestly, to know what that looks like.
    for (proxy, liar) in replica.proxies.iter().zip(&replica.liars) {
        proxy.redirect(liar.address);
    }
    fleet.wait_ready(1, SOON).await.unwrap();
    served(&fleet, 1, &issuer).await;
    fleet.replicas[1].liars.iter().for_each(|liar| liar.set(Lie::Forget));

    let lost = fleet.plan.manifest(3).unwrap();
    let _ = client::set(fleet.replicas[1].user, &fleet.plan, &lost, Some(latest)).await;
    fleet.wait_state(1, "stale", SOON).await.unwrap();
    wait_alarm(&fleet, 1, "").await;
    client::certificate(fleet.replicas[1].mesh, &issuer).await.unwrap_err();

    // The other one never saw that change, and goes on.
    served(&fleet, 0, &issuer).await;
    let next = fleet.plan.manifest(4).unwrap();
    done(client::set(fleet.replicas[0].user, &fleet.plan, &next, Some(latest)).await);
    served(&fleet, 0, &issuer).await;
}

/// What every change must survive; `cargo run -p chaos-tests` goes on from other seeds.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fixed_set_of_scenarios_is_proved_clean() {
    let crashes = "1 kill-replica 0 10\n2 lose-quorum 0 15\n5 silent-store 1 20\n8 lose-disk 2 5\n";
    // Odd seeds have an etcd that gives up what all replicas hold.
    let hosts = "1 full-disk 0 20\n2 clock-ahead 1 30\n4 slow-disk 2 30\n6 clock-back 0 20\n7 cut-peers 1 30\n\
                 8 rewrite-store 1 20\n11 replay-store 2 30\n12 reorder-store 0 20\n14 lose-disk 2 5\n";
    let by_hand = |text: &str| text.parse::<Scenario>().unwrap();
    let scenarios = [(0, by_hand(crashes)), (1, by_hand(hosts)), (8, Scenario::from_seed(8, 15, 3, 3))];
    for (seed, scenario) in scenarios {
        let directory = tempfile::tempdir().unwrap();
        let outcome = run(directory.path(), seed, &scenario, 15).await;
        let report = outcome.unwrap_or_else(|error| panic!("seed {seed}: {error:#}\n{scenario}"));
        assert!(report.changes > 3 && report.certificates > 20, "clients hardly got anything: {report:?}");
    }
}
