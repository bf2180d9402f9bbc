//! What will be run: pods, their policies, keys of the owners, the simulated machine, the manifest.

use std::{
    fs,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, ensure};
use attestation::simulated::{SimulatedKind, SimulatedMachine};
use manifest::{KeyDigest, Manifest, ManifestBody, OwnerKey, PolicyHash, Role};
use program::now;
use runtime_policy::{Deployment, Images, Injection, PodPolicy, RULES, Settings, Workload};

use crate::{generate, printer::Printer};

const EXAMPLE: &str = include_str!("../../../deploy/example/shop.yml");

/// Everything that is known before the first process starts.
pub(super) struct Plan {
    pub(super) directory: PathBuf,
    pub(super) machine: PathBuf,
    pub(super) root: KeyDigest,
    pub(super) pods: Vec<PlannedPod>,
    pub(super) manifest: Manifest,
}

/// A pod and its policy.
pub(super) struct PlannedPod {
    pub(super) pod: Workload,
    pub(super) policy: PolicyHash,
    pub(super) document: Vec<u8>,
    /// Where its initializer writes.
    pub(super) directory: PathBuf,
}

impl Plan {
    /// Reads the YAML, makes keys and a simulated machine, and writes it all to `directory`.
    pub(super) async fn make(
        yaml: &[PathBuf],
        directory: &Path,
        kind: SimulatedKind,
        printer: &Printer,
    ) -> anyhow::Result<Self> {
        let pods = planned_pods(yaml, directory, printer)?;
        create_empty(directory)?;
        let machine = directory.join("machine");
        let (at, path) = (now(), machine.clone());
        // RSA keys take a second or two each: all at once.
        let machine_task = tokio::task::spawn_blocking(move || SimulatedMachine::create(&path, kind, at));
        let seed_task = tokio::task::spawn_blocking(keys::generate_seedshare_owner_key);
        let (owner_pem, owner_public) = keys::generate_workload_owner_key()?;
        let (seed_pem, seed_public) = seed_task.await??;
        let simulated = machine_task.await??;

        put(directory, "workload-owner.pem", owner_pem.as_bytes(), 0o600)?;
        put(directory, "seedshare-owner.pem", seed_pem.as_bytes(), 0o600)?;
        fs::create_dir_all(directory.join("policies"))?;
        for pod in &pods {
            put(&directory.join("policies"), &format!("{}.toml", pod.policy), &pod.document, 0o644)?;
        }
        let body = ManifestBody {
            policies: pods.iter().map(|pod| (pod.policy, generate::entry(&pod.pod))).collect(),
            reference_values: simulated.reference_values(),
            workload_owner_pub_keys: vec![OwnerKey::from_der(owner_public)],
            seedshare_owner_pub_keys: vec![OwnerKey::from_der(seed_public)],
            ..ManifestBody::default()
        };
        let manifest = Manifest::parse(&body.to_json())?;
        put(directory, "manifest.json", manifest.bytes(), 0o644)?;
        Ok(Self { directory: directory.to_owned(), machine, root: simulated.root(), pods, manifest })
    }

    /// The policy documents, in any order.
    pub(super) fn policies(&self) -> Vec<Vec<u8>> {
        self.pods.iter().map(|pod| pod.document.clone()).collect()
    }

    /// Every pod but the Coordinator.
    pub(super) fn workloads(&self) -> impl Iterator<Item = &PlannedPod> {
        self.pods.iter().filter(|pod| pod.pod.role == Role::None)
    }

    /// Policy of the Coordinator itself.
    pub(super) fn coordinator_policy(&self) -> anyhow::Result<PolicyHash> {
        let coordinator = self.pods.iter().find(|pod| pod.pod.role == Role::Coordinator);
        coordinator.map(|pod| pod.policy).context("no pod has the role coordinator")
    }

    /// The next manifest: one more name for each workload.
    pub(super) fn updated(&self) -> anyhow::Result<Manifest> {
        let mut body = self.manifest.body().clone();
        for pod in self.workloads() {
            if let Some(entry) = body.policies.get_mut(&pod.policy) {
                entry.sans.push(format!("{}.{}.svc.cluster.local", pod.pod.name, pod.pod.namespace));
            }
        }
        Ok(Manifest::parse(&body.to_json())?)
    }
}

/// The path that `contrast generate` takes, but that no image is read: no container is started either.
fn planned_pods(yaml: &[PathBuf], directory: &Path, printer: &Printer) -> anyhow::Result<Vec<PlannedPod>> {
    let example = [("deploy/example/shop.yml".to_owned(), EXAMPLE.to_owned())];
    let mut policies = match yaml {
        [] => policies(&example, printer)?,
        paths => policies(&generate::collect(paths)?, printer)?,
    };
    ensure!(!policies.is_empty(), "no pod with a runtimeClassName that begins with contrast-cc was found");
    let is_coordinator = |policy: &PodPolicy| policy.workload.role == Role::Coordinator;
    if !policies.iter().any(is_coordinator) {
        policies.extend(self::policies(&example, printer)?.into_iter().filter(is_coordinator));
    }
    let plan = |policy: PodPolicy| {
        let pod = policy.workload;
        let directory = directory.join("pods").join(format!("{}.{}", pod.name, pod.namespace));
        PlannedPod {
            policy: policy.document.hash(),
            document: policy.document.bytes().to_vec(),
            directory,
            pod,
        }
    };
    Ok(policies.into_iter().map(plan).collect())
}

fn policies(files: &[(String, String)], printer: &Printer) -> anyhow::Result<Vec<PodPolicy>> {
    let mut deployment = Deployment::read(files.iter().map(|(name, text)| (name.as_str(), text)))?;
    deployment.inject(&Injection {
        initializer: Some("contrast-initializer".into()),
        service_mesh: Some("contrast-service-mesh".into()),
        lift_default_deny: false,
        renewal: true,
        trusted_store: None,
        runtime_class: None,
        image_replacements: Vec::new(),
        workload_owners: Vec::new(),
        workload_owners_needed: 1,
        coordinator_host: None,
    })?;
    for finding in deployment.published_secrets() {
        printer.warning(&format!("{finding}; `contrast generate` refuses this"));
    }
    Ok(deployment.policies(&Images::new(), &Settings::default(), RULES)?.0)
}

fn create_empty(directory: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(directory).with_context(|| format!("cannot create {}", directory.display()))?;
    let used = fs::read_dir(directory)?.next().is_some();
    ensure!(!used, "{} is not empty: give --state-dir a new or an empty directory", directory.display());
    Ok(())
}

fn put(directory: &Path, name: &str, content: &[u8], mode: u32) -> anyhow::Result<()> {
    let path = directory.join(name);
    let write = || {
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&path)?;
        std::io::Write::write_all(&mut file, content)
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}
