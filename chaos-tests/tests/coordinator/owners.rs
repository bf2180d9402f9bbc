//! What owners do with the command line: sign elsewhere, agree on changes, recover together.

use std::{fs, path::Path, process::Command};

use chaos_tests::{client, deployment::Deployment};
use manifest::{Manifest, ManifestBody, OwnerKey, PolicyEntry, PolicyHash, Role};

use crate::{done, python, refused, run, stderr};

/// Writes the key files of owners with these names, and gives their public keys.
fn workload_owners(directory: &Path, names: &[&str]) -> Vec<OwnerKey> {
    let owner = |name: &&str| {
        let (pem, public) = keys::generate_workload_owner_key().unwrap();
        fs::write(directory.join(format!("{name}.pem")), pem.as_bytes()).unwrap();
        OwnerKey::from_der(public)
    };
    names.iter().map(owner).collect()
}

fn changed(deployment: &Deployment, name: &str, change: impl Fn(&mut ManifestBody)) -> Manifest {
    let mut body = deployment.manifest().unwrap().body().clone();
    change(&mut body);
    fs::write(deployment.path(name), body.to_json()).unwrap();
    Manifest::parse(&body.to_json()).unwrap()
}

#[test]
fn two_of_three_owners_agree_on_a_change() {
    let deployment = Deployment::start(&[], |body, directory| {
        body.workload_owner_pub_keys = workload_owners(directory, &["anna", "ben", "cleo"]);
        body.workload_owner_threshold = Some(2);
    })
    .unwrap();
    done(&deployment, &["set"]);
    changed(&deployment, "next.json", |body| body.minimum_api_version = "v1".into());

    let alone = refused(&deployment, &["set", "-m", "next.json", "--workload-owner-key", "anna.pem"]);
    assert!(alone.contains("demands the signatures of 2 workload owners"), "{alone}");
    let propose = ["proposals", "propose", "--next", "next.json", "--workload-owner-key", "anna.pem"];
    let proposed = done(&deployment, &propose);
    assert_eq!((proposed["set"].as_bool(), proposed["needed"].as_u64()), (Some(false), Some(2)));
    let name = proposed["transition"].as_str().unwrap();

    let listed = done(&deployment, &["proposals", "list"]);
    assert_eq!(listed[0]["transition"], name);
    assert_eq!(listed[0]["signed"].as_array().unwrap().len(), 1);
    let shown = done(&deployment, &["proposals", "show", &name[..8], "--save", "proposal"]);
    assert_eq!(shown["values"][0]["path"], "MinimumAPIVersion");
    assert_eq!(
        fs::read(deployment.path("proposal/manifest.json")).unwrap(),
        fs::read(deployment.path("next.json")).unwrap()
    );

    let again = done(&deployment, &["proposals", "approve", &name[..8], "--workload-owner-key", "anna.pem"]);
    assert_eq!(again["set"], false, "the same owner twice is one owner");
    let (stranger, _) = keys::generate_workload_owner_key().unwrap();
    fs::write(deployment.path("stranger.pem"), stranger.as_bytes()).unwrap();
    let refusal =
        refused(&deployment, &["proposals", "approve", &name[..8], "--workload-owner-key", "stranger.pem"]);
    assert!(refusal.contains("not by a workload owner"), "{refusal}");
    let set = done(&deployment, &["proposals", "approve", &name[..8], "--workload-owner-key", "ben.pem"]);
    assert_eq!((set["set"].as_bool(), set["transition"].as_str()), (Some(true), Some(name)));
    done(&deployment, &["verify", "-m", "next.json"]);
    let history = done(&deployment, &["history", "list", "-m", "next.json"]);
    assert!(history[1]["set_by"].as_str().unwrap().starts_with("signatures by"), "{history}");
    assert_eq!(done(&deployment, &["proposals", "list", "-m", "next.json"]), serde_json::json!([]));

    // An auditor checks both signatures again, without the Coordinator.
    let audit = ["audit", "export", "-m", "next.json", "--out", "audit.jsonl"];
    assert!(deployment.contrast(&audit).unwrap().status.success());
    done(&deployment, &["audit", "verify", "audit.jsonl"]);
}

#[test]
fn a_key_that_is_kept_elsewhere_signs_a_change_and_the_first_manifest() {
    let directory = tempfile::tempdir().unwrap();
    let bootstrap = workload_owners(directory.path(), &["bootstrap"]).remove(0);
    let deployment = Deployment::start(&["--bootstrap-key", &bootstrap.to_string()], |_, _| {}).unwrap();
    fs::copy(directory.path().join("bootstrap.pem"), deployment.path("bootstrap.pem")).unwrap();
    let bare = refused(&deployment, &["set"]);
    assert!(bare.contains("only with a signature by the bootstrap key"), "{bare}");
    done(&deployment, &["sign", "--workload-owner-key", "bootstrap.pem", "--out", "first.der"]);
    done(&deployment, &["set", "--signature", "first.der"]);

    // The hand-over to an external signer is a file of 64 hex digits, and OpenSSL is one.
    done(&deployment, &["verify"]);
    changed(&deployment, "next.json", |body| body.minimum_api_version = "v1".into());
    done(&deployment, &["sign", "-m", "next.json", "--prepare"]);
    assert_eq!(fs::read(deployment.path("transition.hex")).unwrap().len(), 64);
    let at = |name: &str| deployment.path(name);
    let sign = |key: &str, out: &str| {
        let mut openssl = Command::new("openssl");
        openssl.args(["dgst", "-sha256", "-sign"]).arg(at(key)).arg("-out").arg(at(out));
        run(openssl.arg(at("transition.hex")));
    };
    sign("bootstrap.pem", "wrong.der");
    let refusal = refused(&deployment, &["set", "-m", "next.json", "--signature", "wrong.der"]);
    assert!(refusal.contains("the signature is not by a workload owner"), "{refusal}");
    sign("workload-owner.pem", "next.der");
    done(&deployment, &["set", "-m", "next.json", "--signature", "next.der", "--atomic"]);

    // The same once more is told what happened.
    let again = refused(&deployment, &["set", "-m", "next.json", "--signature", "next.der", "--atomic"]);
    assert!(again.contains("this very change took effect at"), "{again}");
}

#[test]
fn two_of_three_seedshare_owners_recover_across_a_restart() {
    let mut deployment = Deployment::start(&[], |body, directory| {
        let owner = |name: &&str| {
            let (pem, public) = keys::generate_seedshare_owner_key().unwrap();
            fs::write(directory.join(format!("{name}.pem")), pem.as_bytes()).unwrap();
            OwnerKey::from_der(public)
        };
        body.seedshare_owner_pub_keys = ["dora", "emil", "fay"].iter().map(owner).collect();
        body.seed_share_owner_threshold = Some(2);
    })
    .unwrap();
    done(&deployment, &["set"]);
    deployment.kill();
    deployment.launch().unwrap();
    let recover = |deployment: &Deployment, name: &str| {
        let key = format!("{name}.pem");
        let answer = done(deployment, &["recover", "--seedshare-owner-key", &key]);
        (answer["recovered"].as_bool().unwrap(), answer["shares_received"].as_u64().unwrap())
    };
    assert_eq!(recover(&deployment, "dora"), (false, 1));
    assert_eq!(recover(&deployment, "dora"), (false, 1), "again is harmless");
    deployment.kill();
    deployment.launch().unwrap();
    assert_eq!(recover(&deployment, "emil"), (false, 1), "a restart forgets shares, which can be sent again");

    // A share of another owner is refused by name, before it could spoil anything.
    let path = deployment.path("seedshares.json");
    let genuine = fs::read_to_string(&path).unwrap();
    let mut shares: serde_json::Value = serde_json::from_str(&genuine).unwrap();
    let fay = manifest::OwnerKey::from_der(
        hex::decode(shares["SeedShares"][2]["PublicKey"].as_str().unwrap()).unwrap(),
    );
    let forged = keys::encrypt_seed_share(&[3; 65], fay.der()).unwrap();
    shares["SeedShares"][2]["EncryptedSeed"] = hex::encode(forged).into();
    fs::write(&path, shares.to_string()).unwrap();
    let bad = refused(&deployment, &["recover", "--seedshare-owner-key", "fay.pem"]);
    assert!(bad.contains(&format!("share of seedshare owner {}", fay.digest())), "{bad}");
    fs::write(&path, genuine).unwrap();

    assert!(recover(&deployment, "fay").0);
    done(&deployment, &["verify"]);
}

#[test]
fn coordinators_that_run_are_kept_beside_new_ones_and_others_are_not() {
    let deployment = Deployment::start(&[], |_, _| {}).unwrap();
    done(&deployment, &["set"]);
    // What a new version's YAML gives: its own policy, and not that of the one before.
    let next = b"policy of the next Coordinator";
    fs::write(deployment.path("policies/coordinator"), next).unwrap();
    let coordinator = |body: &mut ManifestBody, policy: &[u8]| {
        let sans = vec!["coordinator".to_owned()];
        let entry = PolicyEntry { sans, role: Role::Coordinator, ..PolicyEntry::default() };
        body.policies.insert(PolicyHash::of(policy), entry)
    };
    let both = changed(&deployment, "both.json", |body| drop(coordinator(body, next)));
    let key = ["--workload-owner-key", "workload-owner.pem"];
    done(&deployment, &[&["set", "-m", "both.json"], &key[..]].concat());
    let listed = done(&deployment, &["history", "show", "latest", "-m", "both.json"]);
    assert!(listed.to_string().contains(&PolicyHash::of(next).to_string()), "{listed}");

    // Over HTTP as well.
    changed(&deployment, "again.json", |body| {
        coordinator(body, next);
        body.minimum_api_version = "v1".into();
    });
    let http = format!("http://{}", deployment.ports.http);
    let output = deployment.contrast_at(&http, &[&["set", "-m", "again.json"], &key[..]].concat()).unwrap();
    assert!(output.status.success(), "{}", stderr(&output));

    // One that nobody knows is none to be kept.
    changed(&deployment, "stranger.json", |body| drop(coordinator(body, b"a stranger")));
    let refusal = refused(&deployment, &[&["set", "-m", "stranger.json"], &key[..]].concat());
    assert!(refusal.contains("is none of the manifest in force"), "{refusal}");
    assert_eq!(both.policies.len(), 3);
}

#[test]
fn an_auditor_who_is_none_any_more_gets_nothing_more() {
    let auditor = std::cell::RefCell::new(String::new());
    let deployment = Deployment::start(&[], |body, directory| {
        body.auditor_pub_keys = workload_owners(directory, &["auditor"]);
        *auditor.borrow_mut() = fs::read_to_string(directory.join("auditor.pem")).unwrap();
    })
    .unwrap();
    let (auditor, port) = (auditor.into_inner(), deployment.ports.user.port());
    done(&deployment, &["set"]);
    let issue = |directory: &str| {
        let output = deployment.initializer(chaos_tests::deployment::WEB, directory).unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
    };
    issue("before");
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let mut watched = runtime.block_on(async {
        let streams = client::streams(port, &auditor).await.unwrap();
        let replica = streams.iter().find(|stream| *stream != "control").unwrap();
        let mut watched = client::follow(port, &auditor, replica).await.unwrap();
        watched.message().await.unwrap().unwrap();
        watched
    });

    changed(&deployment, "without.json", |body| body.auditor_pub_keys.clear());
    done(&deployment, &["set", "-m", "without.json", "--workload-owner-key", "workload-owner.pem"]);
    let ended = runtime.block_on(async {
        loop {
            match watched.message().await {
                Ok(Some(_)) => {} // written before the change
                Ok(None) => panic!("it ended without a reason"),
                Err(status) => return status.message().to_owned(),
            }
        }
    });
    assert!(ended.contains("are shown to auditors"), "{ended}");
}

#[test]
fn the_first_set_takes_no_chances_with_the_seed_shares() {
    let deployment = Deployment::start(&[], |_, _| {}).unwrap();
    // Where they cannot be kept nothing is sent, and what is there is not touched.
    fs::write(deployment.path("seedshares.json"), "of another deployment").unwrap();
    let taken = refused(&deployment, &["set"]);
    assert!(taken.contains("seedshares.json holds those of another one"), "{taken}");
    assert_eq!(fs::read_to_string(deployment.path("seedshares.json")).unwrap(), "of another deployment");
    fs::remove_file(deployment.path("seedshares.json")).unwrap();

    // Something that fails after the answer costs a certificate, which `verify` gives again, and no shares.
    fs::create_dir(deployment.path("coordinator-root-ca.pem")).unwrap();
    let failed = deployment.contrast(&["set"]).unwrap();
    assert_eq!(failed.status.code(), Some(2), "{}", stderr(&failed));
    assert!(stderr(&failed).contains("cannot write ./coordinator-root-ca.pem"), "{}", stderr(&failed));
    let shares = fs::read(deployment.path("seedshares.json")).unwrap();
    fs::remove_dir(deployment.path("coordinator-root-ca.pem")).unwrap();
    fs::remove_file(deployment.path("seedshares.json")).unwrap();

    // Lost all the same, they are given again, and it is said that they have to be kept.
    let again = deployment.contrast(&["set"]).unwrap();
    assert!(again.status.success(), "{}", stderr(&again));
    let said = String::from_utf8_lossy(&again.stdout).into_owned();
    assert!(said.contains("Seed shares: ./seedshares.json, for 1 seedshare owner"), "{said}");
    assert_eq!(fs::read(deployment.path("seedshares.json")).unwrap(), shares);
}

#[test]
fn a_change_is_made_with_the_key_that_generate_made_and_says_which_one_it_used() {
    let deployment = Deployment::start(&[], |_, _| {}).unwrap();
    done(&deployment, &["set"]);
    changed(&deployment, "next.json", |body| body.minimum_api_version = "v1".into());
    fs::rename(deployment.path("workload-owner.pem"), deployment.path("owner.pem")).unwrap();
    let none = refused(&deployment, &["set", "-m", "next.json"]);
    assert!(none.contains("no key was given, and workload-owner.pem is not there: give the key"), "{none}");
    workload_owners(deployment.path("").as_path(), &["workload-owner"]);
    let other = refused(&deployment, &["set", "-m", "next.json"]);
    assert!(other.contains("the key is workload-owner.pem; for another, give"), "{other}");
    fs::rename(deployment.path("owner.pem"), deployment.path("workload-owner.pem")).unwrap();
    done(&deployment, &["set", "-m", "next.json"]);
}

#[test]
fn what_a_siem_gets_is_valid_and_says_who_was_refused_and_why() {
    let deployment = Deployment::start(&[], |_, _| {}).unwrap();
    done(&deployment, &["set"]);
    assert!(deployment.initializer(chaos_tests::deployment::WEB, "web").unwrap().status.success());
    assert!(!deployment.initializer(b"a stranger", "stranger").unwrap().status.success());
    let export = |more: &[&str]| {
        let line = ["audit", "export", "--auditor-key", "workload-owner.pem"];
        let output = deployment.contrast(&[&line[..], more].concat()).unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
        stderr(&output)
    };
    export(&["--format", "ocsf", "--out", "week.ocsf"]);
    let schemas = crate::repository().join("chaos-tests/python/ocsf.py");
    let found = run(python("python").arg(schemas).arg(deployment.path("week.ocsf")));
    for kind in
        ["AttestationRefused", "CertificateIssued", "ManifestSet", "ReplicaStarted", "SeedSharesCreated"]
    {
        assert!(found.contains(kind), "{found}");
    }
    let lines = fs::read_to_string(deployment.path("week.ocsf")).unwrap();
    let refusal = lines.lines().find(|line| line.contains("AttestationRefused")).unwrap();
    let refusal: serde_json::Value = serde_json::from_str(refusal).unwrap();
    assert_eq!(refusal["src_endpoint"]["ip"], "127.0.0.1");
    assert!(
        refusal["status_detail"].as_str().unwrap().contains("is not in the current manifest"),
        "{refusal}"
    );

    let one = export(&["--format", "ocsf", "--kind", "AttestationRefused", "--out", "one.ocsf"]);
    assert!(one.contains("1 of "), "{one}");
    let none = export(&["--workload", "nosuch", "--format", "ocsf", "--out", "none.ocsf"]);
    assert!(none.contains("events is what was asked for"), "{none}");

    // Where nothing can be written, nothing is said to be done.
    let full = |args: &[&str]| {
        let mut command = Command::new(chaos_tests::program("contrast"));
        command
            .args(args)
            .current_dir(deployment.path(""))
            .env("CONTRAST_COORDINATOR", deployment.ports.user.to_string());
        let output =
            command.stdout(fs::File::options().write(true).open("/dev/full").unwrap()).output().unwrap();
        (output.status.code(), stderr(&output))
    };
    for args in [
        &["verify"][..],
        &["verify", "--output", "json"],
        &["history", "list"],
        &["history", "show"],
        &["status"],
        &["audit", "checkpoint"],
        &["policy", "settings"],
        &["proposals", "list"],
        &["completion", "bash"],
    ] {
        let (code, said) = full(args);
        assert!(
            code == Some(2) && said.contains("cannot write to standard output: No space left"),
            "{args:?}: {said}"
        );
    }
}
