//! The programs between the node and the agent, and how their requests differ.
//!
//! A difference that means something to the agent is in the policy: an attacker could use it. One that means nothing
//! (how a capability is written) is accepted in every form, but tells whose request it is ([`Shim::of`]). What was
//! recorded from the real thing and what was only read in its source is in `docs/policies.md`.

use serde_json::Value;

/// A Kata shim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shim {
    /// Either of Kata's own.
    Any,
    /// `containerd-shim-kata-v2` in Go, of Kata 3.
    Go,
    /// `containerd-shim-kata-v2` in Rust (runtime-rs), Kata 4's.
    Rust,
    /// Either, with upstream Contrast's patches.
    Contrast,
}

/// Names in the settings.
const SHIMS: [(&str, Shim); 4] =
    [("any", Shim::Any), ("kata-go", Shim::Go), ("kata-rs", Shim::Rust), ("contrast", Shim::Contrast)];

/// Versions of containerd that may be named. They decide nothing: what differs between them means nothing to the agent.
pub(crate) const CONTAINERD: [&str; 3] = ["any", "1.7", "2"];

impl Shim {
    pub(crate) fn named(name: &str) -> Option<Self> {
        SHIMS.iter().find(|(known, _)| *known == name).map(|(_, shim)| *shim)
    }

    pub(crate) fn names() -> String {
        SHIMS.map(|(name, _)| name).join(", ")
    }

    /// Folders below the shared one in which the guest makes a pod's directories; the first is the usual one.
    pub(crate) fn places(self) -> &'static [&'static str] {
        match self {
            Self::Go => &[""],
            Self::Rust => &["passthrough/"],
            Self::Any | Self::Contrast => &["passthrough/", ""],
        }
    }

    /// Whether the request to pull an image may lack what the agent decides by.
    pub(crate) fn leaves_metadata_out(self) -> bool {
        self == Self::Contrast
    }
}

/// Whose request this looks like, by what only one of them sends: name and sign.
pub fn looks_like(request: &Value) -> Vec<(&'static str, &'static str)> {
    let mut found = Vec::new();
    let id = request["container_id"].as_str().unwrap_or_default();
    let oci = &request["OCI"];
    let namespaces = oci["Linux"]["Namespaces"].as_array().map(Vec::as_slice).unwrap_or_default();
    let capability = oci["Process"]["Capabilities"]["Bounding"][0].as_str().unwrap_or_default();
    let image = request["storages"].as_array().into_iter().flatten();
    let mut image = image.filter(|storage| storage["driver"] == "image_guest_pull");
    let without_metadata =
        image.any(|storage| storage["driver_options"].as_array().is_none_or(Vec::is_empty));
    let version = oci["Version"].as_str().unwrap_or_default();
    let mut sign = |holds: bool, name, sign| {
        if holds {
            found.push((name, sign));
        }
    };
    if oci.is_object() {
        sign(request["exec_id"] == "", "kata-rs", "exec_id is empty");
        sign(!id.is_empty() && request["exec_id"] == id, "kata-go", "exec_id is the container's id");
        sign(namespaces.iter().any(|namespace| namespace["Type"] == "mnt"), "kata-rs", "a namespace mnt");
        sign(namespaces.iter().any(|namespace| namespace["Type"] == "mount"), "kata-go", "a namespace mount");
        sign(capability.starts_with("CAP_"), "kata-go", "capabilities with CAP_");
        sign(
            !capability.is_empty() && !capability.starts_with("CAP_"),
            "kata-rs",
            "capabilities without CAP_",
        );
        let text = request["storages"].to_string();
        sign(text.contains("/shared/containers/passthrough/"), "kata-rs", "volumes below passthrough");
        sign(
            text.contains("/rootfs/local/") && !text.contains("/shared/containers/passthrough/"),
            "kata-go",
            "volumes not below passthrough",
        );
        sign(without_metadata, "contrast", "an image without metadata");
        sign(version.starts_with("1.1."), "containerd 1.7", "OCI version 1.1");
        let newer = version.starts_with("1.2.") && version != "1.2.0" || version.starts_with("1.3.");
        sign(newer, "containerd 2", "an OCI version from 1.2.1");
    }
    found
}
