//! Several real Coordinators on a real etcd cluster, that act as one.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use chaos_tests::{
    client::{self, SetOutcome},
    fleet::Fleet,
    plan::transition,
};

const SOON: Duration = Duration::from_secs(40);

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
    for port in fleet.mesh_ports() {
        issued.push(client::certificate(port, &issuer).await.unwrap());
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
    for port in fleet.user_ports() {
        let until = std::time::Instant::now() + SOON;
        loop {
            let (manifests, latest, mesh_ca) = client::history(port).await.unwrap();
            if latest == now {
                assert_eq!(manifests.len(), 2);
                mesh_cas.push(mesh_ca);
                break;
            }
            assert!(std::time::Instant::now() < until, "port {port} does not follow");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    assert!(mesh_cas.windows(2).all(|pair| pair[0] == pair[1]), "one mesh CA for all");
    let stale = client::set(fleet.replicas[2].user, &fleet.plan, &first, Some(previous)).await;
    assert!(matches!(stale, SetOutcome::Stale(_)), "{stale:?}");

    // The one that made the change dies; another restarts and joins again.
    fleet.kill(1);
    fleet.stop(0).unwrap();
    fleet.restart(0).unwrap();
    fleet.wait_ready(0, SOON).await.unwrap();
    let again = client::certificate(fleet.replicas[0].mesh, &issuer).await.unwrap();
    assert_eq!(again.secret, issued[0].secret);
    assert_eq!(again.mesh_ca, mesh_cas[0], "the mesh CA outlived the replica that made it");

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
    for port in fleet.mesh_ports() {
        let issued = client::certificate(port, &issuer).await.unwrap();
        assert_eq!(issued.secret, again.secret);
        mesh_cas.push(issued.mesh_ca);
    }
    assert!(mesh_cas.windows(2).all(|pair| pair[0] == pair[1]));
    assert_ne!(mesh_cas[0], again.mesh_ca, "an owner of the seed does not know the mesh CA key");
}
