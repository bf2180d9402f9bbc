//! Whose Coordinator this is: the first that the pod met, and where the pod's policy names owners, one that they
//! vouch for. A genuine Coordinator is not enough, because anybody can run one.

use std::path::Path;

use continuity::{Answer, Owners, Pin, Voucher};
use wire::mesh::NewMeshCertResponse;

use crate::refused::Refused;

/// Takes an answer as that of this pod's deployment, and keeps whose it is; or refuses it, and writes nothing. Gives what
/// it shows.
pub(crate) fn accept(
    directory: &Path,
    owners: &Owners,
    own_key: &[u8],
    answer: &NewMeshCertResponse,
    secret: &[u8],
) -> anyhow::Result<Answer> {
    let refused = |reason: String| {
        anyhow::Error::from(Refused(format!("the Coordinator's answer is refused: {reason}")))
    };
    let shown = Answer::read(&answer.root_ca_cert, &answer.mesh_ca_cert, &answer.cert_chain)
        .map_err(|error| refused(error.to_string()))?;
    if shown.leaf_key != own_key {
        return Err(refused("the certificate is for another key than this pod's".into()));
    }
    let kept = Pin::load(directory)?;
    let pin = Pin::after(kept.as_ref(), &shown, secret).map_err(|error| refused(error.to_string()))?;
    if kept.is_none() {
        let voucher = |voucher: &wire::mesh::Voucher| Voucher {
            public_key: voucher.public_key.clone(),
            signature: voucher.signature.clone(),
        };
        let vouchers: Vec<Voucher> = answer.vouchers.iter().map(voucher).collect();
        owners.check(&shown.root_key, &vouchers).map_err(|error| refused(error.to_string()))?;
        // The root vouches for the certificate. For the secret beside it only the certificate can.
        if !owners.keys.is_empty() && !secret.is_empty() && shown.secret.is_none() {
            let reason = "the certificate does not vouch for the secret: this Coordinator is too old for a pod whose \
                          policy names workload owners";
            return Err(refused(reason.into()));
        }
    }
    if kept.as_ref() != Some(&pin) {
        pin.store(directory)?;
    }
    Ok(shown)
}
