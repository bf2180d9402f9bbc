//! `manifest.json`: reading, checking, writing.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    ManifestHash, Measurement, PolicyHash, ReferenceValues, SnpProduct,
    digest::KeyDigest,
    json,
    keys::OwnerKey,
    reference_values::{GuestPolicy, PlatformInfo, SnpReferenceValues, TdxReferenceValues},
};

/// Largest accepted manifest, in bytes.
pub const MAX_MANIFEST_BYTES: usize = 4 << 20;
/// Most workloads in one manifest.
pub const MAX_POLICIES: usize = 10_000;
/// Most names of one workload, keys of one kind, and reference values of one kind.
const MAX_LIST: usize = 255;

/// Longest grace for expired collateral, in seconds.
const MAX_GRACE_SECONDS: u32 = 90 * 24 * 60 * 60;

/// A manifest as it was received: the bytes that are hashed, and what they say.
#[derive(Clone, Debug, PartialEq)]
pub struct Manifest {
    bytes: Vec<u8>,
    hash: ManifestHash,
    body: ManifestBody,
    unknown: Vec<String>,
}

/// The fields of a manifest.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct ManifestBody {
    /// Workloads by the hash of their policy document.
    pub policies: BTreeMap<PolicyHash, PolicyEntry>,
    /// Hardware and firmware that may carry them.
    pub reference_values: ReferenceValues,
    /// Keys that may change the manifest; empty (and no digests): updates are disabled.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub workload_owner_pub_keys: Vec<OwnerKey>,
    /// Older form of the same: SHA-256 of the keys.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub workload_owner_key_digests: Vec<KeyDigest>,
    /// How many of these owners must sign a change; absent: one. Ours, not upstream's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workload_owner_threshold: Option<u32>,
    /// Keys that may read certificates and refusals in the event log, beside the workload owners. EC,
    /// PKIX DER. Ours, not upstream's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub auditor_pub_keys: Vec<OwnerKey>,
    /// Keys that can recover the Coordinator, RSA in PKCS#1 DER; fixed by the first manifest.
    #[serde(default, alias = "SeedshareOwnerKeys", skip_serializing_if = "Vec::is_empty")]
    pub seedshare_owner_pub_keys: Vec<OwnerKey>,
    /// How many of these owners it takes to recover; absent: one, who holds the whole seed. Fixed by the
    /// first manifest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed_share_owner_threshold: Option<u32>,
    /// Oldest HTTP API that may serve this deployment: `v<N>`.
    #[serde(rename = "MinimumAPIVersion", default, skip_serializing_if = "String::is_empty")]
    pub minimum_api_version: String,
}

/// What a workload with a given policy gets.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PolicyEntry {
    /// Names in its certificate: IP addresses, URIs, else DNS names. The first DNS name is the CN.
    #[serde(rename = "SANs", default)]
    pub sans: Vec<String>,
    /// Names its workload secret; empty means it gets none.
    #[serde(rename = "WorkloadSecretID", default, skip_serializing_if = "String::is_empty")]
    pub workload_secret_id: String,
    /// What else it may be.
    #[serde(rename = "Role", default, skip_serializing_if = "Role::is_none")]
    pub role: Role,
    /// A later version of the workload takes its place: it counts like any other until an owner takes it out, and
    /// people see that it shall go. Ours; upstream's readers ignore it.
    #[serde(rename = "GoingOut", default, skip_serializing_if = "std::ops::Not::not")]
    pub going_out: bool,
}

/// Extra rights of a workload.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Role {
    /// An ordinary workload.
    #[default]
    #[serde(rename = "")]
    None,
    /// A Coordinator: may receive the seed from its peers.
    #[serde(rename = "coordinator")]
    Coordinator,
}

impl Role {
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for a reference")]
    fn is_none(&self) -> bool {
        *self == Self::None
    }
}

/// Why bytes are not an acceptable manifest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// Larger than [`MAX_MANIFEST_BYTES`].
    #[error("manifest is {found} bytes long, at most {MAX_MANIFEST_BYTES} are accepted")]
    TooLarge {
        /// Size found, in bytes.
        found: usize,
    },
    /// Not JSON, or not of the manifest's shape.
    #[error("manifest is not valid: {message}")]
    Malformed {
        /// What the JSON reader says, with the JSON path, or line and column where it is not JSON.
        message: String,
    },
    /// JSON of the right shape that breaks a rule.
    #[error("manifest is not valid: {path}: {rule}, got {found}")]
    Invalid {
        /// JSON path of the value.
        path: String,
        /// The rule, as an expectation.
        rule: &'static str,
        /// The value found.
        found: String,
    },
}

impl Manifest {
    /// Reads and fully checks a manifest. The bytes are kept as they are: they are what is hashed.
    pub fn parse(bytes: &[u8]) -> Result<Self, ManifestError> {
        let manifest = Self::read(bytes)?;
        manifest.body.validate()?;
        Ok(manifest)
    }

    /// Reads a manifest that a Coordinator of another day accepted, by rules that may have been others: size and
    /// shape are checked, nothing else. For showing history, never for what is to be in force.
    pub fn read(bytes: &[u8]) -> Result<Self, ManifestError> {
        if bytes.len() > MAX_MANIFEST_BYTES {
            return Err(ManifestError::TooLarge { found: bytes.len() });
        }
        let json::Read { value: body, unknown } = json::read::<ManifestBody>(bytes)
            .map_err(|error| ManifestError::Malformed { message: error.to_string() })?;
        Ok(Self { bytes: bytes.to_vec(), hash: ManifestHash::of(bytes), body, unknown })
    }

    /// JSON paths of names that mean nothing here: of a newer version, or misspelt. At most 20.
    pub fn unknown(&self) -> &[String] {
        &self.unknown
    }

    /// The bytes as received.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// SHA-256 of the bytes.
    pub fn hash(&self) -> ManifestHash {
        self.hash
    }

    /// What the manifest says.
    pub fn body(&self) -> &ManifestBody {
        &self.body
    }
}

impl std::ops::Deref for Manifest {
    type Target = ManifestBody;

    fn deref(&self) -> &ManifestBody {
        &self.body
    }
}

pub(crate) fn invalid(path: impl Into<String>, rule: &'static str, found: impl ToString) -> ManifestError {
    ManifestError::Invalid { path: path.into(), rule, found: found.to_string() }
}

impl ManifestBody {
    /// The manifest's text: two-space indent and a trailing newline.
    pub fn to_json(&self) -> Vec<u8> {
        let mut bytes = serde_json::to_vec_pretty(self).unwrap_or_default();
        bytes.push(b'\n');
        bytes
    }

    /// Whether evidence of simulated platforms, and only that, is accepted.
    pub fn is_simulated(&self) -> bool {
        !self.reference_values.simulated_roots.is_empty()
    }

    /// Workloads that a later version replaces, by policy.
    pub fn going_out(&self) -> impl Iterator<Item = (&PolicyHash, &PolicyEntry)> {
        self.policies.iter().filter(|(_, entry)| entry.going_out)
    }

    /// Whether the same machines may be Coordinators under both manifests: the same hardware and firmware, and the same
    /// policies with that role.
    pub fn same_coordinators(&self, other: &Self) -> bool {
        let coordinators = |body: &Self| -> Vec<PolicyHash> {
            let entries = body.policies.iter();
            entries.filter(|(_, entry)| entry.role == Role::Coordinator).map(|(hash, _)| *hash).collect()
        };
        self.reference_values == other.reference_values && coordinators(self) == coordinators(other)
    }

    /// Whether the owner of this key may read certificates and refusals in the event log.
    pub fn may_audit(&self, key: KeyDigest) -> bool {
        let mut auditors = self.auditor_pub_keys.iter().map(OwnerKey::digest);
        auditors.any(|auditor| auditor == key) || self.workload_owner_digests().any(|owner| owner == key)
    }

    /// SHA-256 of every key that may change the manifest.
    pub fn workload_owner_digests(&self) -> impl Iterator<Item = KeyDigest> {
        let full = self.workload_owner_pub_keys.iter().map(OwnerKey::digest);
        full.chain(self.workload_owner_key_digests.iter().copied())
    }

    /// How many workload owners must sign a change.
    pub fn workload_owners_needed(&self) -> usize {
        self.workload_owner_threshold.map_or(1, |needed| usize::try_from(needed).unwrap_or(usize::MAX))
    }

    /// How many seedshare owners it takes to recover.
    pub fn seedshare_owners_needed(&self) -> usize {
        self.seed_share_owner_threshold.map_or(1, |needed| usize::try_from(needed).unwrap_or(usize::MAX))
    }

    /// The highest HTTP API version that is too old for this deployment is one below this; 0: none is.
    pub fn minimum_api(&self) -> u16 {
        self.minimum_api_version.strip_prefix('v').and_then(|n| n.parse().ok()).unwrap_or_default()
    }

    /// Checks every rule that does not need the policies' text.
    pub fn validate(&self) -> Result<(), ManifestError> {
        if self.policies.is_empty() || self.policies.len() > MAX_POLICIES {
            return Err(invalid("Policies", "expected 1 to 10000 entries", self.policies.len()));
        }
        if !self.policies.values().any(|entry| entry.role == Role::Coordinator) {
            return Err(invalid("Policies", "expected an entry with role \"coordinator\"", "none"));
        }
        for (hash, entry) in &self.policies {
            entry.validate(hash)?;
        }
        self.validate_owners()?;
        self.reference_values.validate()?;
        let version = &self.minimum_api_version;
        if !version.is_empty() && version.strip_prefix('v').is_none_or(|n| n.parse::<u16>().is_err()) {
            return Err(invalid("MinimumAPIVersion", "expected v<N>", version));
        }
        Ok(())
    }

    fn validate_owners(&self) -> Result<(), ManifestError> {
        let both = !self.workload_owner_pub_keys.is_empty() && !self.workload_owner_key_digests.is_empty();
        let agree = || {
            let mut full: Vec<_> = self.workload_owner_pub_keys.iter().map(OwnerKey::digest).collect();
            let mut digests = self.workload_owner_key_digests.clone();
            full.sort();
            digests.sort();
            full == digests
        };
        if both && !agree() {
            let rule = "expected the digests of WorkloadOwnerPubKeys, as both are present";
            return Err(invalid("WorkloadOwnerKeyDigests", rule, "others"));
        }
        let keys = [
            ("WorkloadOwnerPubKeys", &self.workload_owner_pub_keys),
            ("AuditorPubKeys", &self.auditor_pub_keys),
            ("SeedshareOwnerPubKeys", &self.seedshare_owner_pub_keys),
        ];
        for (path, keys) in keys {
            if keys.len() > MAX_LIST {
                return Err(invalid(path, "expected at most 255 keys", keys.len()));
            }
            let mut seen = std::collections::BTreeSet::new();
            if let Some(index) = keys.iter().position(|key| !seen.insert(key)) {
                return Err(invalid(format!("{path}[{index}]"), "expected each key once", "a repetition"));
            }
        }
        if self.workload_owner_key_digests.len() > MAX_LIST {
            let found = self.workload_owner_key_digests.len();
            return Err(invalid("WorkloadOwnerKeyDigests", "expected at most 255 digests", found));
        }
        let within = |needed: Option<u32>, owners: usize| {
            needed.is_none_or(|needed| needed >= 1 && usize::try_from(needed).is_ok_and(|n| n <= owners))
        };
        // A digest cannot say which of several signatures is whose, so a threshold counts full keys.
        if !within(self.workload_owner_threshold, self.workload_owner_pub_keys.len()) {
            let rule = "expected 1 up to the number of WorkloadOwnerPubKeys";
            return Err(invalid(
                "WorkloadOwnerThreshold",
                rule,
                format!("{:?}", self.workload_owner_threshold),
            ));
        }
        if !within(self.seed_share_owner_threshold, self.seedshare_owner_pub_keys.len()) {
            let rule = "expected 1 up to the number of SeedshareOwnerPubKeys";
            return Err(invalid(
                "SeedShareOwnerThreshold",
                rule,
                format!("{:?}", self.seed_share_owner_threshold),
            ));
        }
        Ok(())
    }
}

impl PolicyEntry {
    fn validate(&self, hash: &PolicyHash) -> Result<(), ManifestError> {
        let is_dns = |san: &&String| san.parse::<std::net::IpAddr>().is_err() && !san.contains(':');
        if !self.sans.iter().any(|san| is_dns(&san)) {
            let rule = "expected at least one DNS name, which becomes the certificate's common name";
            return Err(invalid(format!("Policies.{hash}.SANs"), rule, format!("{:?}", self.sans)));
        }
        if self.sans.len() > MAX_LIST {
            let found = self.sans.len();
            return Err(invalid(format!("Policies.{hash}.SANs"), "expected at most 255 names", found));
        }
        if let Some(san) = self.sans.iter().find(|san| san.is_empty() || san.len() > 253 || !san.is_ascii()) {
            return Err(invalid(format!("Policies.{hash}.SANs"), "expected 1 to 253 ASCII characters", san));
        }
        if self.workload_secret_id.len() > 1024 {
            let path = format!("Policies.{hash}.WorkloadSecretID");
            return Err(invalid(path, "expected at most 1024 bytes", self.workload_secret_id.len()));
        }
        Ok(())
    }
}

impl ReferenceValues {
    fn validate(&self) -> Result<(), ManifestError> {
        if self.insecure && !(self.snp.is_empty() && self.tdx.is_empty() && self.simulated_roots.is_empty()) {
            let rule = "expected false, or nothing beside it";
            return Err(invalid("ReferenceValues.insecure", rule, "true beside other platforms"));
        }
        if self.snp.is_empty() && self.tdx.is_empty() && !self.insecure {
            return Err(invalid("ReferenceValues", "expected at least one snp or tdx entry", "none"));
        }
        if self.snp.len() + self.tdx.len() > MAX_LIST {
            let found = self.snp.len() + self.tdx.len();
            return Err(invalid("ReferenceValues", "expected at most 255 entries", found));
        }
        if self.collateral_grace > MAX_GRACE_SECONDS {
            let rule = "expected at most 7776000, 90 days";
            return Err(invalid("ReferenceValues.collateralGrace", rule, self.collateral_grace));
        }
        for (index, entry) in self.snp.iter().enumerate() {
            entry.validate(&format!("ReferenceValues.snp[{index}]"))?;
        }
        for (index, entry) in self.tdx.iter().enumerate() {
            entry.validate(&format!("ReferenceValues.tdx[{index}]"))?;
        }
        Ok(())
    }
}

impl SnpReferenceValues {
    fn validate(&self, path: &str) -> Result<(), ManifestError> {
        measured(&format!("{path}.TrustedMeasurement"), &self.trusted_measurement)?;
        let tcb = &self.minimum_tcb;
        let required = [
            ("BootloaderVersion", tcb.bootloader_version),
            ("TEEVersion", tcb.tee_version),
            ("SNPVersion", tcb.snp_version),
            ("MicrocodeVersion", tcb.microcode_version),
        ];
        if let Some((name, _)) = required.iter().find(|(_, value)| value.is_none()) {
            return Err(invalid(format!("{path}.MinimumTCB.{name}"), "expected 0 to 255", "nothing"));
        }
        if tcb.fmc_version.is_some() != (self.product_name == SnpProduct::Turin) {
            let rule = "expected a value for Turin and none for older products";
            let found = format!("{:?} for {:?}", tcb.fmc_version, self.product_name);
            return Err(invalid(format!("{path}.MinimumTCB.FMCVersion"), rule, found));
        }
        if self.ap_eip.is_some() != self.vcpu_signature.is_some() {
            let missing = if self.ap_eip.is_some() { "VCPUSignature" } else { "APEIP" };
            let rule = "expected APEIP and VCPUSignature together, or neither";
            return Err(invalid(format!("{path}.{missing}"), rule, "nothing"));
        }
        let masks = [
            ("AllowedGuestPolicyBits", self.allowed_guest_policy_bits & GuestPolicy::NAMED_BITS),
            ("AllowedPlatformInfoBits", self.allowed_platform_info_bits & PlatformInfo::NAMED_BITS),
        ];
        if let Some((name, named)) = masks.iter().find(|(_, named)| *named != 0) {
            let rule =
                "expected only bits without a name; named ones belong into GuestPolicy and PlatformInfo";
            return Err(invalid(format!("{path}.{name}"), rule, format!("{named:#x}")));
        }
        let policy = &self.guest_policy;
        if policy.debug || policy.migrate_ma {
            let name = if policy.debug { "Debug" } else { "MigrateMA" };
            let rule = "expected false, or the host can read or move the guest's memory";
            return Err(invalid(format!("{path}.GuestPolicy.{name}"), rule, true));
        }
        Ok(())
    }
}

impl TdxReferenceValues {
    fn validate(&self, path: &str) -> Result<(), ManifestError> {
        measured(&format!("{path}.MrTd"), &self.mr_td)?;
        match self.mr_seam {
            Some(_) => Ok(()),
            None => Err(invalid(format!("{path}.MrSeam"), "expected 96 hex digits", "nothing")),
        }
    }
}

/// No guest measures zeros: they are what `contrast generate` leaves to be filled in.
fn measured(path: &str, value: &Measurement) -> Result<(), ManifestError> {
    if *value == Measurement::from_bytes([0; 48]) {
        let rule = "expected the measurement of a guest (`contrast runtime measure` computes it)";
        return Err(invalid(path, rule, "zeros"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn valid() -> Value {
        json!({
            "Policies": { "11".repeat(32): { "SANs": ["coordinator", "*"], "Role": "coordinator" } },
            "ReferenceValues": { "snp": [{
                "ProductName": "Milan",
                "TrustedMeasurement": "22".repeat(48),
                "MinimumTCB": {
                    "BootloaderVersion": 3, "TEEVersion": 0, "SNPVersion": 8, "MicrocodeVersion": 115
                },
            }] },
            "SomethingNewer": true,
        })
    }

    fn refusal(change: impl Fn(&mut Value)) -> String {
        let mut value = valid();
        change(&mut value);
        Manifest::parse(value.to_string().as_bytes()).unwrap_err().to_string()
    }

    #[test]
    fn bytes_are_kept_and_hashed_as_received() {
        let text = format!("  {}\n\n", valid());
        let manifest = Manifest::parse(text.as_bytes()).unwrap();
        assert_eq!(manifest.bytes(), text.as_bytes());
        assert_eq!(manifest.hash(), ManifestHash::of(text.as_bytes()));
    }

    #[test]
    fn what_another_days_rules_accepted_can_be_read() {
        let mut old = valid();
        old["MinimumAPIVersion"] = json!("2");
        let text = old.to_string();
        Manifest::parse(text.as_bytes()).unwrap_err();
        let manifest = Manifest::read(text.as_bytes()).unwrap();
        assert_eq!((manifest.bytes(), manifest.minimum_api_version.as_str()), (text.as_bytes(), "2"));
        Manifest::read(b"{}").unwrap_err();
    }

    #[test]
    fn each_broken_rule_is_named_with_its_path() {
        let cases: [(&str, String); 8] = [
            ("ReferenceValues.snp[0].AllowedGuestPolicyBits: expected only bits without a name", {
                refusal(|m| m["ReferenceValues"]["snp"][0]["AllowedGuestPolicyBits"] = json!(1_u64 << 19))
            }),
            ("AllowedPlatformInfoBits: expected only bits without a name", {
                refusal(|m| m["ReferenceValues"]["snp"][0]["AllowedPlatformInfoBits"] = json!(257))
            }),
            ("ReferenceValues.snp[0].TrustedMeasurement: expected the measurement of a guest", {
                refusal(|m| m["ReferenceValues"]["snp"][0]["TrustedMeasurement"] = json!("00".repeat(48)))
            }),
            (
                "Policies: expected an entry with role",
                refusal(|m| m["Policies"]["11".repeat(32)]["Role"] = json!("")),
            ),
            (".SANs: expected at least one DNS name", {
                refusal(|m| m["Policies"]["11".repeat(32)]["SANs"] = json!(["10.0.0.1"]))
            }),
            ("ReferenceValues.snp[0].MinimumTCB.SNPVersion", {
                refusal(|m| m["ReferenceValues"]["snp"][0]["MinimumTCB"]["SNPVersion"] = Value::Null)
            }),
            ("ReferenceValues.snp[0].GuestPolicy.Debug", {
                refusal(|m| m["ReferenceValues"]["snp"][0]["GuestPolicy"] = json!({ "Debug": true }))
            }),
            ("at least one snp or tdx entry", refusal(|m| m["ReferenceValues"] = json!({}))),
        ];
        for (expected, found) in cases {
            assert!(found.contains(expected), "{found:?} does not name {expected:?}");
        }
    }

    #[test]
    fn null_and_wrong_types_are_refused_with_a_position() {
        assert!(Manifest::parse(b"null").unwrap_err().to_string().contains("invalid type: null"));
        assert!(Manifest::parse(b"{,").unwrap_err().to_string().contains("line 1 column 2"));
        assert!(refusal(|m| m["Policies"] = json!({ "zz": {} })).contains("Policies.zz: "));
        let wrong = refusal(|m| m["Policies"]["11".repeat(32)]["SANs"] = json!(["a", 1]));
        assert!(wrong.contains(&format!("Policies.{}.SANs[1]: invalid type", "11".repeat(32))), "{wrong}");
        let wrong = refusal(|m| m["Policies"]["11".repeat(32)]["Role"] = json!("king"));
        assert!(wrong.contains(".Role: unknown variant `king`"), "{wrong}");
    }

    #[test]
    fn names_are_read_in_any_case_and_unknown_ones_reported() {
        let text = valid()
            .to_string()
            .replace("Policies", "policies")
            .replace("TrustedMeasurement", "trustedmeasurement");
        let manifest = Manifest::parse(text.as_bytes()).unwrap();
        assert_eq!(manifest.policies.len(), 1);
        assert_eq!(manifest.unknown(), ["SomethingNewer"]);
        let twice = valid().to_string().replacen('{', "{\"policies\": {}, ", 1);
        assert!(
            Manifest::parse(twice.as_bytes()).unwrap_err().to_string().contains("olicies: is there twice")
        );
    }

    #[test]
    fn thresholds_are_of_the_keys_that_are_listed() {
        let owners = |m: &mut Value| m["WorkloadOwnerPubKeys"] = json!(["0a", "0b", "0c"]);
        for (threshold, good) in [(0, false), (1, true), (3, true), (4, false)] {
            let mut value = valid();
            owners(&mut value);
            value["WorkloadOwnerThreshold"] = json!(threshold);
            value["SeedshareOwnerPubKeys"] = json!(["01", "02", "03"]);
            value["SeedShareOwnerThreshold"] = json!(threshold);
            let outcome = Manifest::parse(value.to_string().as_bytes());
            assert_eq!(outcome.is_ok(), good, "{threshold}: {outcome:?}");
        }
        let digests_only = refusal(|m| {
            m["WorkloadOwnerKeyDigests"] = json!(["11".repeat(32), "22".repeat(32)]);
            m["WorkloadOwnerThreshold"] = json!(2);
        });
        assert!(digests_only.contains("WorkloadOwnerThreshold: expected 1 up to the number of"));
        assert!(
            refusal(|m| m["AuditorPubKeys"] = json!(["0a", "0A"]))
                .contains("AuditorPubKeys[1]: expected each key once")
        );
    }

    #[test]
    fn written_manifest_reads_back() {
        let body = Manifest::parse(valid().to_string().as_bytes()).unwrap().body().clone();
        let text = body.to_json();
        assert!(text.ends_with(b"}\n"));
        assert_eq!(Manifest::parse(&text).unwrap().body(), &body);
    }
}
