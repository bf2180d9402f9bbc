//! What will be run: pods, their policies, keys of the owners, the simulated machine, the manifest.

use std::{
    fs,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, ensure};
use attestation::simulated::{SimulatedKind, SimulatedMachine};
use manifest::{KeyDigest, Manifest, ManifestBody, OwnerKey, PolicyEntry, PolicyHash, Role};
use runtime_policy::{Pod, policy_document, read_pods};

use crate::client::now;

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
    pub(super) pod: Pod,
    pub(super) policy: PolicyHash,
    pub(super) document: Vec<u8>,
    /// Where its initializer writes.
    pub(super) directory: PathBuf,
}

impl Plan {
    /// Reads the YAML, makes keys and a simulated machine, and writes it all to `directory`.
    pub(super) async fn make(
        yaml: Option<&Path>,
        directory: &Path,
        kind: SimulatedKind,
    ) -> anyhow::Result<Self> {
        let pods = planned_pods(yaml, directory)?;
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
            put(&directory.join("policies"), &format!("{}.toml", pod.pod.name), &pod.document, 0o644)?;
        }
        let body = ManifestBody {
            policies: pods.iter().map(|pod| (pod.policy, entry(&pod.pod))).collect(),
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

fn planned_pods(yaml: Option<&Path>, directory: &Path) -> anyhow::Result<Vec<PlannedPod>> {
    let mut pods = Vec::new();
    match yaml {
        None => pods.extend(read_pods("deploy/example/shop.yml", EXAMPLE)?),
        Some(path) => {
            for file in yaml_files(path)? {
                let text =
                    fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
                pods.extend(read_pods(&file.display().to_string(), &text)?);
            }
        }
    }
    ensure!(!pods.is_empty(), "no pod with a runtimeClassName that begins with contrast-cc was found");
    if !pods.iter().any(|pod| pod.role == Role::Coordinator) {
        let example = read_pods("deploy/example/shop.yml", EXAMPLE)?;
        pods.extend(example.into_iter().filter(|pod| pod.role == Role::Coordinator));
    }
    let plan = |pod: Pod| {
        let document = policy_document(&pod);
        let directory = directory.join("pods").join(format!("{}.{}", pod.name, pod.namespace));
        PlannedPod { policy: PolicyHash::of(&document), document, directory, pod }
    };
    Ok(pods.into_iter().map(plan).collect())
}

fn yaml_files(path: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let metadata = fs::metadata(path).with_context(|| format!("cannot read {}", path.display()))?;
    if metadata.is_file() {
        return Ok(vec![path.to_owned()]);
    }
    let mut files = Vec::new();
    for entry in fs::read_dir(path).with_context(|| format!("cannot read {}", path.display()))? {
        let entry = entry?.path();
        if entry.extension().is_some_and(|extension| extension == "yml" || extension == "yaml") {
            files.push(entry);
        }
    }
    files.sort();
    ensure!(!files.is_empty(), "{} holds no .yml or .yaml file", path.display());
    Ok(files)
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

fn entry(pod: &Pod) -> PolicyEntry {
    PolicyEntry {
        sans: vec![pod.name.clone(), "*".into()],
        workload_secret_id: pod.workload_secret_id.clone(),
        role: pod.role,
    }
}
