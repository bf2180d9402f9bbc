//! Who a peer is: its certificate chain under a CA that counts, what the Coordinator's list says of it, and, where
//! configured, its names.
//!
//! By default any member of the mesh is accepted, as upstream does: names in DNS are not trusted, and
//! every certificate may carry `*`. An allow-list compares the names that the manifest gave, exactly.

use std::{net::IpAddr, sync::Arc};

use continuity::{Issuer, NotCounted, PeerIdentity, Peers};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, RootCertStore,
    SignatureScheme,
    client::{
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_cert_signed_by_trust_anchor,
    },
    crypto::{CryptoProvider, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::{
        ParsedCertificate, WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};
use x509_parser::{certificate::X509Certificate, extensions::GeneralName, prelude::FromDer as _};

/// A peer with a good certificate but another name.
#[derive(Debug, thiserror::Error)]
#[error("the peer is {found:?}, allowed here are {allowed:?}")]
struct NotAllowed {
    found: Vec<String>,
    allowed: Vec<String>,
}

/// A CA, and what follows for certificates under it.
#[derive(Debug)]
struct Anchor {
    roots: Arc<RootCertStore>,
    clients: Arc<dyn ClientCertVerifier>,
    issuer: Issuer,
}

/// Most certificates above a leaf that are looked at.
const MOST_INTERMEDIATES: usize = 4;

/// The CAs that peers' certificates may be under, and the list that says which of them count.
#[derive(Debug)]
pub(crate) struct Anchors {
    /// Tried one after the other.
    anchors: Vec<Anchor>,
    list: Option<Arc<Peers>>,
    trust: Trust,
}

/// Which CA peers are verified against.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Trust {
    /// The mesh CAs that the Coordinator's list names: that of the manifest in force, and older ones for policies that
    /// it still names.
    MeshCa,
    /// The root: any certificate of the deployment, of earlier manifests too, unless it was evicted.
    Root,
}

impl Anchors {
    /// `list` and the CAs that belong to it; without one, `mesh_ca` alone.
    pub(crate) fn new(
        trust: Trust,
        list: Option<Arc<Peers>>,
        root: &CertificateDer<'static>,
        mesh_ca: &CertificateDer<'static>,
        provider: &Arc<CryptoProvider>,
    ) -> anyhow::Result<Self> {
        let anchor = |certificate: CertificateDer<'static>, issuer| {
            let mut roots = RootCertStore::empty();
            roots.add(certificate)?;
            let roots = Arc::new(roots);
            let clients =
                WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(provider));
            anyhow::Ok(Anchor { roots, clients: clients.build()?, issuer })
        };
        let mut anchors = Vec::new();
        match (trust, list.as_deref()) {
            (Trust::Root, _) => anchors.push(anchor(root.clone(), Issuer::Unlisted)?),
            (Trust::MeshCa, None) => anchors.push(anchor(mesh_ca.clone(), Issuer::Unlisted)?),
            (Trust::MeshCa, Some(list)) => {
                anchors.push(anchor(list.mesh_ca.clone().into(), Issuer::Listed(list.generation))?);
                for ca in list.older.iter().rev() {
                    anchors.push(anchor(ca.certificate.clone().into(), Issuer::Listed(ca.generation))?);
                }
                // A peer that has heard of a newer manifest than this pod.
                anchors.push(anchor(root.clone(), Issuer::Unlisted)?);
            }
        }
        Ok(Self { anchors, list, trust })
    }

    /// Whether a connection may go on whose peer counted when it was made.
    pub(crate) fn still_counts(&self, peer: &PeerIdentity) -> Result<(), NotCounted> {
        match (&self.list, self.trust) {
            (Some(list), Trust::MeshCa) => list.still_counts(peer),
            (Some(list), Trust::Root) => list.not_evicted(peer),
            (None, _) => Ok(()),
        }
    }

    /// Verifies the chain under the first CA that it leads to, and asks the list about it.
    fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        chain: impl Fn(&Anchor) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let unknown = Error::InvalidCertificate(CertificateError::UnknownIssuer);
        let found = self.anchors.iter().find_map(|anchor| match chain(anchor).map_err(of_another_ca) {
            Ok(()) => Some(Ok(anchor.issuer)),
            Err(error) if error == unknown => None,
            Err(error) => Some(Err(error)),
        });
        let issuer = found.unwrap_or_else(|| Err(unknown.clone()))?;
        let Some(list) = &self.list else { return Ok(()) };
        let peer = PeerIdentity::of(leaf);
        let peer = peer.map_err(|_| Error::InvalidCertificate(CertificateError::BadEncoding))?;
        let outcome = match self.trust {
            Trust::MeshCa => list.counts(&peer, issuer),
            Trust::Root => list.not_evicted(&peer),
        };
        outcome.map_err(|reason| match reason.is_behind() {
            // As with any other CA that is not known: the peer is told so, and asks for a new certificate.
            true => unknown,
            false => Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(reason)))),
        })
    }
}

/// Judges peers, on either side of a connection.
#[derive(Debug)]
pub(crate) struct PeerVerifier {
    anchors: Arc<Anchors>,
    provider: Arc<CryptoProvider>,
    /// Names, one of which the peer must have; `None`: any member of the mesh.
    allowed: Option<Vec<String>>,
}

impl PeerVerifier {
    /// Trusts certificates that count, if they have one of the names.
    pub(crate) fn new(
        anchors: Arc<Anchors>,
        provider: Arc<CryptoProvider>,
        allowed: Option<Vec<String>>,
    ) -> Self {
        Self { anchors, provider, allowed }
    }

    /// A chain of ours has two certificates above the leaf. Each that comes is tried under each CA before the peer has
    /// proved anything, so a stranger must not bring a hundred.
    fn bound(intermediates: &[CertificateDer<'_>]) -> Result<(), Error> {
        match intermediates.len() > MOST_INTERMEDIATES {
            true => Err(Error::General(format!("the peer shows {} certificates", intermediates.len() + 1))),
            false => Ok(()),
        }
    }

    fn check_name(&self, leaf: &CertificateDer<'_>) -> Result<(), Error> {
        let Some(allowed) = &self.allowed else { return Ok(()) };
        let found = names(leaf).ok_or(Error::InvalidCertificate(CertificateError::BadEncoding))?;
        if allowed.iter().any(|allowed| found.iter().any(|found| found.eq_ignore_ascii_case(allowed))) {
            return Ok(());
        }
        let error = OtherError(Arc::new(NotAllowed { found, allowed: allowed.clone() }));
        Err(Error::InvalidCertificate(CertificateError::Other(error)))
    }
}

/// The mesh CAs of all manifests and deployments have one name, so the chain of another one ends in a
/// signature that does not fit. Both sides shall read what it is.
fn of_another_ca(error: Error) -> Error {
    match error {
        Error::InvalidCertificate(CertificateError::BadSignature) => {
            Error::InvalidCertificate(CertificateError::UnknownIssuer)
        }
        error => error,
    }
}

/// DNS names, URIs and addresses of a certificate.
pub(crate) fn names(certificate: &CertificateDer<'_>) -> Option<Vec<String>> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    let extension = certificate.subject_alternative_name().ok()?;
    let names = extension.map(|extension| extension.value.general_names.iter());
    let text = |name: &GeneralName<'_>| match name {
        GeneralName::DNSName(name) | GeneralName::URI(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(bytes) => {
            let v4 = <[u8; 4]>::try_from(*bytes).map(IpAddr::from);
            let address = v4.or_else(|_| <[u8; 16]>::try_from(*bytes).map(IpAddr::from));
            address.ok().map(|address| address.to_string())
        }
        _ => None,
    };
    Some(names.into_iter().flatten().filter_map(text).collect())
}

impl ServerCertVerifier for PeerVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Self::bound(intermediates)?;
        let parsed = ParsedCertificate::try_from(leaf)?;
        let algorithms = self.provider.signature_verification_algorithms.all;
        self.anchors.verify(leaf, |Anchor { roots, .. }| {
            verify_server_cert_signed_by_trust_anchor(&parsed, roots, intermediates, now, algorithms)
        })?;
        self.check_name(leaf)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2 is off".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for PeerVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[] // each client has one certificate only
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        Self::bound(intermediates)?;
        self.anchors.verify(leaf, |Anchor { clients, .. }| {
            clients.verify_client_cert(leaf, intermediates, now).map(drop)
        })?;
        self.check_name(leaf)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2 is off".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
