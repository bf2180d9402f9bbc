//! What `contrast dev` found, for people and machines.

use std::{collections::BTreeMap, path::Path};

use manifest::{Manifest, ManifestHash, PolicyHash};
use serde::Serialize;

use super::{plan::PlannedPod, process::Ports};
use crate::source::Recorded;

/// The outcome of a run.
#[derive(Serialize)]
pub(super) struct Report {
    manifest: ManifestHash,
    workloads: Vec<Workload>,
    events: BTreeMap<String, usize>,
    coordinator: String,
    http: String,
    directory: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    running_pid: Option<u32>,
}

/// A workload that got its identity.
#[derive(Serialize)]
pub(super) struct Workload {
    name: String,
    namespace: String,
    policy: PolicyHash,
    secret: String,
    files: String,
}

/// A number of things, in words.
pub(super) fn counted(number: usize, thing: &str) -> String {
    format!("{number} {thing}{}", if number == 1 { "" } else { "s" })
}

impl Workload {
    pub(super) fn read(pod: &PlannedPod) -> anyhow::Result<Self> {
        let secret = std::fs::metadata(pod.directory.join("secrets/workload-secret-seed"))?;
        Ok(Self {
            name: pod.pod.name.clone(),
            namespace: pod.pod.namespace.clone(),
            policy: pod.policy,
            secret: format!("{} ({} hex digits)", pod.pod.workload_secret_id, secret.len()),
            files: pod.directory.display().to_string(),
        })
    }
}

impl Report {
    pub(super) fn new(
        manifest: &Manifest,
        workloads: Vec<Workload>,
        records: &[Recorded],
        directory: &Path,
        ports: &Ports,
    ) -> Self {
        let mut events = BTreeMap::new();
        for record in records {
            *events.entry(record.event.fact.kind().to_owned()).or_default() += 1;
        }
        Self {
            manifest: manifest.hash(),
            workloads,
            events,
            coordinator: ports.user.to_string(),
            http: format!("http://{}", ports.http),
            directory: directory.display().to_string(),
            running_pid: None,
        }
    }

    pub(super) fn kept(&mut self, pid: u32) {
        self.running_pid = Some(pid);
    }

    pub(super) fn text(&self) -> String {
        let mut text = format!("\n{:<12} {:<10} {:<18} SECRET\n", "WORKLOAD", "NAMESPACE", "POLICY");
        for workload in &self.workloads {
            let Workload { name, namespace, policy, secret, .. } = workload;
            text += &format!("{name:<12} {namespace:<10} {:<18} {secret}\n", format!("{policy:.16}…"));
        }
        text += "\nEVENTS\n";
        for (kind, count) in &self.events {
            text += &format!("{count:>6}  {kind}\n");
        }
        text += &format!("\nManifest in force: {}\n", self.manifest);
        match self.running_pid {
            None => text += "Everything was stopped; run with --keep to look around.\n",
            Some(pid) => {
                let (directory, address, http) = (&self.directory, &self.coordinator, &self.http);
                let files =
                    self.workloads.first().map(|workload| workload.files.as_str()).unwrap_or_default();
                let folder = Path::new(files).strip_prefix(directory).unwrap_or(Path::new(files)).display();
                text += &format!(
                    "Files: {directory}\n\nThe Coordinator runs on {address}. Try next:\n  \
                     cd {directory}\n  contrast verify -c {address}\n  \
                     contrast history list -c {address}\n  contrast history diff 1 2 -c {address}\n  \
                     contrast audit export -c {address} --auditor-key workload-owner.pem --out audit.jsonl\n  \
                     contrast audit verify audit.jsonl\n  \
                     contrast verify -c {http}\n  \
                     openssl x509 -in {folder}/tls-config/certChain.pem -noout -text\n  \
                     kill {pid}\n"
                );
            }
        }
        text
    }
}
