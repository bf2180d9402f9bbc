//! A deployment as an operator would plan it: a simulated machine, owner keys, policies, manifests.

use std::{
    fs,
    path::{Path, PathBuf},
};

use attestation::simulated::{SimulatedKind, SimulatedMachine};
use manifest::{Manifest, ManifestBody, OwnerKey, PolicyEntry, PolicyHash, Role, TransitionHash};
use zeroize::Zeroizing;

use crate::now;

/// Policy document of the Coordinators.
const COORDINATOR: &[u8] = b"policy of the Coordinator, chaos tests\n";
/// Policy document of the workload that asks for certificates.
const WORKLOAD: &[u8] = b"policy of the workload, chaos tests\n";

/// What is known before the first process starts.
pub struct Plan {
    /// Directory of the simulated machine.
    pub machine: PathBuf,
    /// Key of the workload owner, PEM.
    pub owner_key: Zeroizing<String>,
    /// Key of the seedshare owner, PEM.
    pub seedshare_key: Zeroizing<String>,
    body: ManifestBody,
}

impl Plan {
    /// Makes keys and a machine below `directory`.
    pub fn make(directory: &Path) -> anyhow::Result<Self> {
        let machine = directory.join("machine");
        let simulated = SimulatedMachine::create(&machine, SimulatedKind::Snp, now())?;
        let (owner_key, owner) = keys::generate_workload_owner_key()?;
        let (seedshare_key, seedshare) = keys::generate_seedshare_owner_key()?;
        let entry = |name: &str, secret: &str, role| PolicyEntry {
            sans: vec![name.to_owned(), "*".into()],
            workload_secret_id: secret.to_owned(),
            role,
        };
        let body = ManifestBody {
            policies: [
                (Self::coordinator(), entry("coordinator", "", Role::Coordinator)),
                (Self::workload(), entry("workload", "apps/workload", Role::None)),
            ]
            .into(),
            reference_values: simulated.reference_values(),
            workload_owner_pub_keys: vec![OwnerKey::from_der(owner)],
            seedshare_owner_pub_keys: vec![OwnerKey::from_der(seedshare)],
            ..ManifestBody::default()
        };
        fs::write(directory.join("workload-owner.pem"), owner_key.as_bytes())?;
        let plan = Self { machine, owner_key, seedshare_key, body };
        fs::write(directory.join("manifest.json"), plan.manifest(0)?.bytes())?;
        Ok(plan)
    }

    /// Policy of every Coordinator.
    pub fn coordinator() -> PolicyHash {
        PolicyHash::of(COORDINATOR)
    }

    /// Policy of the workload.
    pub fn workload() -> PolicyHash {
        PolicyHash::of(WORKLOAD)
    }

    /// Both policy documents.
    pub fn documents() -> Vec<Vec<u8>> {
        vec![COORDINATOR.to_vec(), WORKLOAD.to_vec()]
    }

    /// The same plan, for another task.
    pub fn reopen(&self) -> Self {
        Self {
            machine: self.machine.clone(),
            owner_key: self.owner_key.clone(),
            seedshare_key: self.seedshare_key.clone(),
            body: self.body.clone(),
        }
    }

    /// A manifest that differs from that of any other number.
    pub fn manifest(&self, number: u64) -> anyhow::Result<Manifest> {
        let mut body = self.body.clone();
        if let Some(entry) = body.policies.get_mut(&Self::workload()) {
            entry.sans.push(format!("n{number}.example"));
        }
        Ok(Manifest::parse(&body.to_json())?)
    }
}

/// The transition that a manifest makes after another one.
pub fn transition(previous: Option<TransitionHash>, manifest: &Manifest) -> TransitionHash {
    TransitionHash::chain(previous, manifest.hash())
}
