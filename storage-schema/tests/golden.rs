//! Every stored event decodes for ever: one checked-in file per variant. A new one is
//! written with `WRITE_GOLDEN=1 cargo test -p storage-schema`, and never changed.

use std::path::Path;

use manifest::{
    EvidenceHash, KeyDigest, ManifestHash, PolicyHash, ReplicaId, RequestId, SerialNumber, Timestamp,
    TransitionHash,
};
use storage_schema::{Authorisation, Event, Fact};

fn facts() -> Vec<Fact> {
    let transition = TransitionHash::from_bytes([3; 32]);
    let serial = SerialNumber::from_bytes([4; 16]);
    let policy = PolicyHash::from_bytes([5; 32]);
    vec![
        Fact::ManifestSet {
            generation: 1,
            manifest: ManifestHash::from_bytes([1; 32]),
            policies: vec![policy],
            previous: None,
            transition,
            transition_signature: vec![6; 70],
            authorised_by: Authorisation::First,
            wrapped_mesh_key: vec![7; 213],
            root_ca: vec![8; 400],
            mesh_ca: vec![9; 401],
        },
        Fact::SeedSharesCreated { owners: vec![KeyDigest::from_bytes([10; 32])] },
        Fact::RecoveredByUser {
            owner: KeyDigest::from_bytes([10; 32]),
            transition,
            wrapped_mesh_key: vec![11; 213],
            root_ca: vec![12; 400],
            mesh_ca: vec![13; 401],
        },
        Fact::RecoveryGranted { policy, platform: "sev-snp".into() },
        Fact::RecoveryReceived { from: "10.0.0.2:7777".into() },
        Fact::ReplicaStarted { version: "0.1.0".into() },
        Fact::ReplicaStopped,
        Fact::CertificateIssued {
            serial,
            certificate: vec![14; 900],
            policy,
            sans: vec!["web".into(), "*".into()],
            platform: "sev-snp".into(),
            evidence: EvidenceHash::from_bytes([15; 32]),
            tcb: "bootloader 4, TEE 0, SNP 24, microcode 219".into(),
            transition,
        },
        Fact::AttestationRefused {
            source: "10.0.0.3".into(),
            reason: "evidence refused: VMPL: expected 0, found 2".into(),
            evidence: Some(EvidenceHash::from_bytes([16; 32])),
        },
        Fact::SecretReleased { id: "shop/deployment/web".into(), serial },
    ]
}

#[test]
fn every_stored_variant_still_decodes_to_the_same_event() {
    for fact in facts() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("testdata/events")
            .join(format!("{}.v1.cbor", fact.kind()));
        let event = Event {
            at: Timestamp::from_millis(1_800_000_000_000),
            replica: ReplicaId::from_bytes([1; 16]),
            request: RequestId::from_bytes([2; 16]),
            fact,
        };
        if std::env::var_os("WRITE_GOLDEN").is_some() && !path.exists() {
            std::fs::write(&path, event.to_cbor().unwrap()).unwrap();
        }
        let stored = std::fs::read(&path).unwrap();
        assert_eq!(Event::from_cbor(&stored).unwrap(), event, "{}", path.display());
    }
}
