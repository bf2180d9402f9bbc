//! Every stored event decodes for ever: one checked-in file per variant and version. A new one is
//! written with `WRITE_GOLDEN=1 cargo test -p storage-schema`, and never changed.

use std::path::Path;

use manifest::{
    EvidenceHash, KeyDigest, ManifestHash, PolicyHash, ReplicaId, RequestId, SerialNumber, Timestamp,
    TransitionHash,
};
use storage_schema::{Approval, Authorisation, Event, Fact, ShareCommitment, StreamHead, StreamId};

const TRANSITION: TransitionHash = TransitionHash::from_bytes([3; 32]);
const SERIAL: SerialNumber = SerialNumber::from_bytes([4; 16]);
const POLICY: PolicyHash = PolicyHash::from_bytes([5; 32]);

fn approval() -> Approval {
    Approval { owner: KeyDigest::from_bytes([19; 32]), signature: vec![20; 103] }
}

fn manifest_set(authorised_by: Authorisation, approvals: Vec<Approval>) -> Fact {
    Fact::ManifestSet {
        generation: 1,
        manifest: ManifestHash::from_bytes([1; 32]),
        policies: vec![POLICY],
        previous: None,
        transition: TRANSITION,
        transition_signature: vec![6; 70],
        authorised_by,
        wrapped_mesh_key: vec![7; 213],
        root_ca: vec![8; 400],
        mesh_ca: vec![9; 401],
        approvals,
    }
}

fn shares_created(threshold: u32, commitments: Vec<ShareCommitment>, document: Vec<u8>) -> Fact {
    Fact::SeedSharesCreated {
        owners: vec![KeyDigest::from_bytes([10; 32])],
        threshold,
        commitments,
        document,
    }
}

fn recovered(with: Vec<KeyDigest>) -> Fact {
    Fact::RecoveredByUser {
        owner: KeyDigest::from_bytes([10; 32]),
        with,
        transition: TRANSITION,
        wrapped_mesh_key: vec![11; 213],
        root_ca: vec![12; 400],
        mesh_ca: vec![13; 401],
    }
}

fn certificate_issued(nonce: Vec<u8>, verdict: &str, attested_key: Vec<u8>, hpke_key: Vec<u8>) -> Fact {
    Fact::CertificateIssued {
        serial: SERIAL,
        certificate: vec![14; 900],
        policy: POLICY,
        sans: vec!["web".into(), "*".into()],
        platform: "sev-snp".into(),
        evidence: EvidenceHash::from_bytes([15; 32]),
        tcb: "bootloader 4, TEE 0, SNP 24, microcode 219".into(),
        transition: TRANSITION,
        nonce,
        verdict: verdict.into(),
        attested_key,
        hpke_key,
    }
}

fn attestation_refused(left_out: u64) -> Fact {
    Fact::AttestationRefused {
        source: "10.0.0.3".into(),
        reason: "evidence refused: VMPL: expected 0, found 2".into(),
        evidence: Some(EvidenceHash::from_bytes([16; 32])),
        left_out,
    }
}

fn transit_key_used(version: Option<u32>, serial: Option<SerialNumber>) -> Fact {
    Fact::TransitKeyUsed {
        key: "web".into(),
        version,
        serial,
        encrypted: 30,
        decrypted: 31,
        failed: 1,
        since: Timestamp::from_millis(1_799_999_000_000),
    }
}

/// Each event that a file says, by version of its shape. What a later version added has its default
/// in an older file.
fn facts() -> Vec<(u8, Fact)> {
    vec![
        (1, manifest_set(Authorisation::First, vec![])),
        (2, manifest_set(Authorisation::Owners(vec![KeyDigest::from_bytes([19; 32])]), vec![approval()])),
        (1, shares_created(0, vec![], vec![])),
        (2, shares_created(2, vec![ShareCommitment([21; 32])], vec![])),
        (3, shares_created(2, vec![ShareCommitment([21; 32])], vec![26; 32])),
        (
            1,
            Fact::DeploymentVouched {
                owner: KeyDigest::from_bytes([19; 32]),
                public_key: vec![28; 120],
                signature: vec![29; 104],
            },
        ),
        (
            1,
            Fact::PeersEvicted {
                policies: vec![POLICY],
                keys: vec![KeyDigest::from_bytes([30; 32])],
                transition: TRANSITION,
                approvals: vec![approval()],
            },
        ),
        (1, recovered(vec![])),
        (2, recovered(vec![KeyDigest::from_bytes([22; 32])])),
        (
            1,
            Fact::ManifestProposed {
                manifest: ManifestHash::from_bytes([1; 32]),
                policies: vec![POLICY],
                previous: TransitionHash::from_bytes([23; 32]),
                transition: TRANSITION,
                approval: approval(),
            },
        ),
        (1, Fact::ProposalApproved { transition: TRANSITION, approval: approval() }),
        (1, Fact::ProposalWithdrawn { transition: TRANSITION, owner: KeyDigest::from_bytes([19; 32]) }),
        (1, Fact::RecoveryGranted { policy: POLICY, platform: "sev-snp".into() }),
        (1, Fact::RecoveryReceived { from: "10.0.0.2:7777".into() }),
        (1, Fact::ReplicaStarted { version: "0.1.0".into() }),
        (1, Fact::ReplicaStopped),
        (1, Fact::StorageRefused { reason: "rolled back".into() }),
        (1, certificate_issued(vec![], "", vec![], vec![])),
        (2, certificate_issued(vec![17; 32], "ReferenceValues.snp[0]", vec![], vec![])),
        (3, certificate_issued(vec![17; 32], "ReferenceValues.snp[0]", vec![24; 91], vec![])),
        (4, certificate_issued(vec![17; 32], "ReferenceValues.snp[0]", vec![], vec![27; 32])),
        (
            1,
            Fact::ServiceCertificateIssued {
                serial: SERIAL,
                certificate: vec![25; 600],
                service: "transit".into(),
                transition: TRANSITION,
            },
        ),
        (1, attestation_refused(0)),
        (2, attestation_refused(12)),
        (
            1,
            Fact::Checkpoint {
                heads: vec![StreamHead {
                    stream: StreamId::Replica(ReplicaId::from_bytes([1; 16])),
                    size: 7,
                    root: [18; 32],
                }],
            },
        ),
        (1, Fact::SecretReleased { id: "shop/deployment/web".into(), serial: SERIAL }),
        (1, transit_key_used(Some(7), Some(SERIAL))),
        (
            1,
            Fact::OlderHeadAccepted {
                owner: KeyDigest::from_bytes([10; 32]),
                public_key: vec![32; 500],
                signature: vec![33; 512],
                given_up: StreamHead { stream: StreamId::Control, size: 9, root: [34; 32] },
                accepted: StreamHead { stream: StreamId::Control, size: 5, root: [35; 32] },
            },
        ),
        (
            1,
            Fact::ReplicaVouched {
                key: [30; 32],
                evidence: EvidenceHash::from_bytes([31; 32]),
                platform: "sev-snp".into(),
            },
        ),
    ]
}

#[test]
fn every_stored_variant_still_decodes_to_the_same_event() {
    for (version, fact) in facts() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("testdata/events")
            .join(format!("{}.v{version}.cbor", fact.kind()));
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
