//! What the workload finds: its certificate chain, key and secret, and the CAs
//! (docs/spec/control-plane.md, section 11.2).

use std::{
    fs::{self, OpenOptions},
    io::Write as _,
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

use anyhow::Context as _;
use atls::ConnectionKey;
use wire::mesh::NewMeshCertResponse;
use zeroize::Zeroizing;

/// For the group as well: containers of a pod run as various users, and `generate` puts all of them into the
/// initializer's group. Who can read it is in the pod, and holds what the pod holds.
const SECRET: u32 = 0o440;

/// Writes everything, the certificates last: who sees them finds the key that belongs to them.
pub(crate) fn write(
    directory: &Path,
    key: &ConnectionKey,
    identity: &NewMeshCertResponse,
    secret: &[u8],
) -> anyhow::Result<()> {
    let (tls, secrets) = (directory.join("tls-config"), directory.join("secrets"));
    for directory in [&tls, &secrets] {
        fs::create_dir_all(directory).with_context(|| format!("cannot create {}", directory.display()))?;
    }
    if !secret.is_empty() {
        let hex = Zeroizing::new(hex::encode(secret));
        put(&secrets.join("workload-secret-seed"), SECRET, hex.as_bytes())?;
    }
    put(&tls.join("key.pem"), SECRET, key.to_pem().as_bytes())?;
    put(&tls.join("coordinator-root-ca.pem"), 0o444, &identity.root_ca_cert)?;
    put(&tls.join("mesh-ca.pem"), 0o444, &identity.mesh_ca_cert)?;
    put(&tls.join("certChain.pem"), 0o444, &identity.cert_chain)
}

/// Written beside its place and moved into it, so that nobody reads half a file.
pub(crate) fn put(path: &Path, mode: u32, content: &[u8]) -> anyhow::Result<()> {
    let beside = path.with_extension("new");
    let write = || {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&beside)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&beside, path)
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}
