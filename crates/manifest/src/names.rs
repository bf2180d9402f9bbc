//! Names that would give one workload what is another's. Checked when a manifest is set, and not when one is read: what
//! is in force stays in force.

use std::collections::BTreeSet;

use crate::{ManifestBody, ManifestError, Role, manifest::invalid};

impl ManifestBody {
    /// Checks the names of a manifest that comes after `before`.
    pub fn check_names(&self, before: Option<&Self>) -> Result<(), ManifestError> {
        self.check_secret_ids(before)?;
        self.check_coordinator_names()
    }

    /// Transit key `N` of `name` is derived as the workload secret `N_name` is. So a workload with that secret id could
    /// read what the other one encrypts, and the other way round.
    fn check_secret_ids(&self, before: Option<&Self>) -> Result<(), ManifestError> {
        let of = |body: &Self| -> BTreeSet<String> {
            body.policies.values().map(|entry| entry.workload_secret_id.clone()).collect()
        };
        let mut known = of(self);
        known.extend(before.map(of).unwrap_or_default());
        for (hash, entry) in &self.policies {
            let id = &entry.workload_secret_id;
            let Some((number, name)) = id.split_once('_') else { continue };
            let is_version = number.parse::<u32>().is_ok_and(|parsed| parsed.to_string() == number);
            if is_version && !name.is_empty() && known.contains(name) {
                let rule = "expected another id: this secret is derived like a transit key (VERSION_NAME) of another \
                            workload";
                return Err(invalid(format!("Policies.{hash}.WorkloadSecretID"), rule, format!("{id:?}")));
            }
        }
        Ok(())
    }

    /// Whoever asks for the Coordinator by name, such as clients of the transit engine, must not get a workload.
    fn check_coordinator_names(&self) -> Result<(), ManifestError> {
        let coordinators = self.policies.values().filter(|entry| entry.role == Role::Coordinator);
        let theirs: Vec<String> = coordinators
            .flat_map(|entry| &entry.sans)
            .filter(|san| *san != "*")
            .map(|san| san.to_ascii_lowercase())
            .collect();
        let workloads = self.policies.iter().filter(|(_, entry)| entry.role != Role::Coordinator);
        for (hash, entry) in workloads {
            let covers = |san: &&String| theirs.iter().any(|name| covers(&san.to_ascii_lowercase(), name));
            if let Some(san) = entry.sans.iter().find(covers) {
                let rule = "expected a name that no Coordinator has";
                return Err(invalid(format!("Policies.{hash}.SANs"), rule, format!("{san:?}")));
            }
        }
        Ok(())
    }
}

/// Whether a certificate with this name serves for the other one.
fn covers(san: &str, name: &str) -> bool {
    let below = |rest: &str| name.split_once('.').is_some_and(|(_, parent)| parent == rest);
    san == name || san.strip_prefix("*.").is_some_and(below)
}

#[cfg(test)]
mod tests {
    use crate::{PolicyEntry, PolicyHash};

    use super::*;

    fn body(entries: &[(&str, &str, Role)]) -> ManifestBody {
        let entry = |(san, secret, role): &(&str, &str, Role)| PolicyEntry {
            sans: san.split(' ').map(str::to_owned).collect(),
            workload_secret_id: (*secret).to_owned(),
            role: *role,
            going_out: false,
        };
        let hash =
            |(san, secret, _): &(&str, &str, Role)| PolicyHash::of(format!("{san} {secret}").as_bytes());
        ManifestBody {
            policies: entries.iter().map(|item| (hash(item), entry(item))).collect(),
            ..ManifestBody::default()
        }
    }

    #[test]
    fn secret_ids_that_derive_alike_are_refused() {
        let with = |first, second| body(&[("a", first, Role::None), ("b", second, Role::None)]);
        for ambiguous in ["0_web", "1_web", "4294967295_web"] {
            let error = with("web", ambiguous).check_names(None).unwrap_err().to_string();
            assert!(error.contains("WorkloadSecretID") && error.contains("transit key"), "{error}");
        }
        // What a label of a version never is, and ids of nobody.
        for fine in ["01_web", "4294967296_web", "x_web", "_web", "1_", "1_other"] {
            assert_eq!(with("web", fine).check_names(None), Ok(()), "{fine}");
        }
        // The workload that encrypted left the manifest with this change.
        let before = body(&[("a", "web", Role::None)]);
        assert!(body(&[("a", "2_web", Role::None)]).check_names(Some(&before)).is_err());
    }

    #[test]
    fn a_workload_cannot_have_the_coordinators_names() {
        let with = |san| {
            body(&[("coordinator coordinator.shop.svc *", "", Role::Coordinator), (san, "", Role::None)])
        };
        for taken in ["coordinator", "web COORDINATOR", "*.shop.svc", "coordinator.shop.svc"] {
            assert!(with(taken).check_names(None).is_err(), "{taken}");
        }
        for fine in ["web", "web *", "*.other.svc", "*.svc", "web.coordinator"] {
            assert_eq!(with(fine).check_names(None), Ok(()), "{fine}");
        }
    }
}
