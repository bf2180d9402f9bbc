//! Who is at the other end of a connection, for the handlers of its requests.

use std::sync::Arc;

use atls::{KeyAlgorithm, PeerCertificate};
use manifest::KeyDigest;
use tonic::Request;

use crate::desk::{Failure, Turned, Workload};

/// What the listener found out.
#[derive(Clone)]
pub(crate) enum Peer {
    /// Of the user listener: the certificate it showed, if any.
    User(Option<Arc<PeerCertificate>>),
    /// Of the mesh listener: proven by evidence.
    Workload(Arc<Workload>),
    /// Of the mesh listener: not admitted; every request is answered with the reason.
    Turned(Arc<Turned>),
}

/// The caller's key in the form in which manifests list it: PKIX DER for EC, PKCS#1 DER for RSA.
pub(super) fn caller<T>(request: &Request<T>) -> Option<KeyDigest> {
    let Some(Peer::User(Some(certificate))) = request.extensions().get::<Peer>() else { return None };
    key_of(certificate)
}

/// The same for a connection.
pub(super) fn key_of(certificate: &PeerCertificate) -> Option<KeyDigest> {
    let PeerCertificate { spki_der, key_bits, key_algorithm, .. } = certificate;
    match key_algorithm {
        KeyAlgorithm::Ec => Some(KeyDigest::of(spki_der)),
        KeyAlgorithm::Rsa => Some(KeyDigest::of(key_bits)),
        KeyAlgorithm::Other => None,
    }
}

/// The workload that made a connection to the mesh listener.
pub(crate) fn workload<T>(request: &Request<T>) -> Result<Arc<Workload>, Failure> {
    match request.extensions().get::<Peer>() {
        Some(Peer::Workload(workload)) => Ok(Arc::clone(workload)),
        Some(Peer::Turned(turned)) => Err(Turned::clone(turned).into()),
        Some(Peer::User(_)) | None => Err(Failure::Fault("a connection without a verdict".into())),
    }
}
