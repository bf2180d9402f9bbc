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
pub const COORDINATOR: &[u8] = b"policy of the Coordinator, chaos tests\n";
/// Policy document of the Coordinators' next version.
pub const NEXT_COORDINATOR: &[u8] = b"policy of the next Coordinator, chaos tests\n";
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
    coordinators: &'static [&'static [u8]],
    body: ManifestBody,
}

impl Plan {
    /// Makes keys and a machine below `directory`.
    pub fn make(directory: &Path) -> anyhow::Result<Self> {
        let machine = directory.join("machine");
        let simulated = SimulatedMachine::create(&machine, SimulatedKind::Snp, now())?;
        let (owner_key, owner) = keys::generate_workload_owner_key()?;
        let (seedshare_key, seedshare) = keys::generate_seedshare_owner_key()?;
        let workload = PolicyEntry {
            sans: vec!["workload".into(), "*".into()],
            workload_secret_id: "apps/workload".into(),
            ..PolicyEntry::default()
        };
        let body = ManifestBody {
            policies: [(Self::workload(), workload)].into(),
            reference_values: simulated.reference_values(),
            workload_owner_pub_keys: vec![OwnerKey::from_der(owner)],
            seedshare_owner_pub_keys: vec![OwnerKey::from_der(seedshare)],
            ..ManifestBody::default()
        };
        fs::write(directory.join("workload-owner.pem"), owner_key.as_bytes())?;
        let mut plan = Self { machine, owner_key, seedshare_key, coordinators: &[], body };
        plan.permit(&[COORDINATOR]);
        fs::write(directory.join("manifest.json"), plan.manifest(0)?.bytes())?;
        Ok(plan)
    }

    /// From the next manifest on, Coordinators are those with one of these policies.
    pub fn permit(&mut self, coordinators: &'static [&'static [u8]]) {
        self.body.policies.retain(|_, entry| entry.role == Role::None);
        for policy in coordinators {
            let entry = PolicyEntry {
                sans: vec!["coordinator".into(), "*".into()],
                role: Role::Coordinator,
                ..PolicyEntry::default()
            };
            self.body.policies.insert(PolicyHash::of(policy), entry);
        }
        self.coordinators = coordinators;
    }

    /// Policy of the workload.
    pub fn workload() -> PolicyHash {
        PolicyHash::of(WORKLOAD)
    }

    /// The policy documents of a manifest.
    pub fn documents(&self) -> Vec<Vec<u8>> {
        self.coordinators.iter().copied().chain([WORKLOAD]).map(<[u8]>::to_vec).collect()
    }

    /// The same plan, for another task.
    pub fn reopen(&self) -> Self {
        Self {
            machine: self.machine.clone(),
            owner_key: self.owner_key.clone(),
            seedshare_key: self.seedshare_key.clone(),
            coordinators: self.coordinators,
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
