//! Values of Kubernetes Secrets that a policy would publish: a policy holds the environment of its containers, and
//! whoever can reach the Coordinator can read policies.

use crate::{
    deployment::Deployment,
    error::Finding,
    objects::SECRET,
    workload::{Workload, below_field},
};

impl Deployment {
    /// Every variable of a confidential pod that gets its value from a Secret of the input, with where it stands.
    pub fn published_secrets(&self) -> Vec<Finding> {
        let mut found = Vec::new();
        for workload in self.workloads() {
            for (field, container) in workload.spec.all_containers() {
                let mut tell = |at: String, message: String| {
                    let path = below_field(&workload.spec_path(), &format!("{field}.{at}"));
                    found.push(self.place(workload).finding(&workload.kind, &workload.name, &path, message));
                };
                for (index, from) in container.env_from.iter().flatten().enumerate() {
                    let Some(reference) = &from.secret_ref else { continue };
                    let prefix = from.prefix.as_deref().unwrap_or_default();
                    for key in self.keys(workload, &reference.name) {
                        let message = tells(&format!("{prefix}{key}"), workload, &reference.name, &key);
                        tell(format!("envFrom[{index}].secretRef"), message);
                    }
                }
                for (index, entry) in container.env.iter().flatten().enumerate() {
                    let source = entry.value_from.as_ref();
                    let Some(reference) = source.and_then(|source| source.secret_key_ref.as_ref()) else {
                        continue;
                    };
                    if self.keys(workload, &reference.name).contains(&reference.key) {
                        let message = tells(&entry.name, workload, &reference.name, &reference.key);
                        tell(format!("env[{index}].valueFrom.secretKeyRef"), message);
                    }
                }
            }
        }
        found
    }

    fn keys(&self, workload: &Workload, name: &str) -> Vec<String> {
        let values = self.objects.get(SECRET, &workload.namespace, name);
        values.into_iter().flat_map(|values| values.keys().cloned()).collect()
    }
}

fn tells(variable: &str, workload: &Workload, name: &str, key: &str) -> String {
    format!("{variable} would tell everybody {key:?} of the Secret {}/{name}", workload.namespace)
}
