//! The self-signed certificates of attested TLS (docs/spec/control-plane.md, sections 2.4 to 2.6).

use std::time::Duration;

use attestation::{Evidence, EvidenceOid, ReportData};
use manifest::Timestamp;
use rcgen::{CertificateParams, CustomExtension, DistinguishedName, DnType, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, pem::PemObject as _};
use x509_parser::{oid_registry::Oid, prelude::FromDer as _};
use zeroize::Zeroizing;

use crate::Nonce;

/// Largest accepted peer certificate, in bytes: evidence with its chain takes about 12 KiB.
const MAX_CERTIFICATE_BYTES: usize = 96 << 10;
/// How far a certificate reaches to both sides of the moment it was made.
const VALIDITY: Duration = Duration::from_hours(2);

/// A key pair for one side of a connection.
pub struct ConnectionKey {
    pair: KeyPair,
    /// As it was read: PKCS#8, SEC1 or PKCS#1.
    private: PrivateKeyDer<'static>,
}

/// Why a certificate is not one of attested TLS.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CertificateError {
    /// Larger than the limit.
    #[error("certificate is {0} bytes long, at most {MAX_CERTIFICATE_BYTES} are accepted")]
    TooLarge(usize),
    /// Not X.509.
    #[error("certificate is malformed: {0}")]
    Malformed(String),
    /// The certificate's signature is not by its own key.
    #[error("certificate is not signed by its own key")]
    NotSelfSigned,
    /// Outside its validity.
    #[error(
        "the certificate is valid from {from} to {to}, and the clock here says {now}; it was made for this handshake, so \
         one of the two clocks is wrong: set it"
    )]
    Expired {
        /// Start.
        from: Timestamp,
        /// End.
        to: Timestamp,
        /// When it was checked.
        now: Timestamp,
    },
    /// More than one evidence extension: which one counts must not be a matter of order.
    #[error("certificate has {0} evidence extensions, at most one is accepted")]
    SeveralEvidences(usize),
    /// A critical extension that nobody here understands.
    #[error("certificate has an unknown critical extension {0}")]
    CriticalExtension(String),
    /// Making a key or a certificate went wrong.
    #[error("cannot make a key or certificate: {0}")]
    Making(String),
}

impl ConnectionKey {
    /// A fresh P-256 key.
    pub fn generate() -> Result<Self, CertificateError> {
        let pair = KeyPair::generate().map_err(|error| CertificateError::Making(error.to_string()))?;
        let private = PrivatePkcs8KeyDer::from(pair.serialize_der()).into();
        Ok(Self { pair, private })
    }

    /// A key from PEM: PKCS#8, SEC1 or PKCS#1; EC P-256 or P-384, or RSA.
    pub fn from_pem(pem: &str) -> Result<Self, CertificateError> {
        let making = |error: &dyn std::fmt::Display| CertificateError::Making(error.to_string());
        let private = PrivateKeyDer::from_pem_slice(pem.as_bytes()).map_err(|error| making(&error))?;
        let pair = KeyPair::try_from(&private).map_err(|error| making(&error))?;
        Ok(Self { pair, private })
    }

    /// The private key.
    pub fn private_key(&self) -> PrivateKeyDer<'static> {
        self.private.clone_key()
    }

    /// The private key as PEM; PKCS#8 for a key that was generated here.
    pub fn to_pem(&self) -> Zeroizing<String> {
        Zeroizing::new(self.pair.serialize_pem())
    }

    /// The public key as SubjectPublicKeyInfo DER.
    pub fn spki_der(&self) -> Vec<u8> {
        rcgen::PublicKeyData::subject_public_key_info(&self.pair)
    }

    /// What evidence for this key and the other side's nonce must say.
    pub fn report_data(&self, nonce: &Nonce) -> ReportData {
        ReportData::bind(&self.spki_der(), nonce.as_bytes())
    }

    /// The certificate of one connection.
    pub(crate) fn certificate(
        &self,
        evidence: Option<Evidence>,
        now: Timestamp,
    ) -> Result<CertificateDer<'static>, CertificateError> {
        let mut params = CertificateParams::default();
        let mut name = DistinguishedName::new();
        name.push(DnType::CommonName, "Contrast");
        params.distinguished_name = name;
        params.not_before = now.minus(VALIDITY).to_datetime();
        params.not_after = now.plus(VALIDITY).to_datetime();
        params.custom_extensions = evidence
            .map(|evidence| CustomExtension::from_oid_content(evidence.oid.components(), evidence.document))
            .into_iter()
            .collect();
        let certificate =
            params.self_signed(&self.pair).map_err(|error| CertificateError::Making(error.to_string()))?;
        Ok(certificate.der().clone())
    }
}

/// The kind of a peer's key: decides in which form its digest stands in a manifest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyAlgorithm {
    /// Elliptic curve.
    Ec,
    /// RSA.
    Rsa,
    /// Anything else.
    Other,
}

/// What the other side's certificate says, after its self-signature was checked.
#[derive(Clone, Debug)]
pub struct PeerCertificate {
    /// Public key, SubjectPublicKeyInfo DER.
    pub spki_der: Vec<u8>,
    /// Public key without its envelope: the EC point, or PKCS#1 DER for RSA.
    pub key_bits: Vec<u8>,
    /// Kind of the key.
    pub key_algorithm: KeyAlgorithm,
    /// The evidence it carries. Not judged yet.
    pub evidence: Option<Evidence>,
    /// The nonce that this side sent it.
    pub nonce: Nonce,
}

impl PeerCertificate {
    /// Reads a certificate; `nonce` is the one that was sent to its owner.
    pub fn parse(der: &[u8], nonce: Nonce, now: Timestamp) -> Result<Self, CertificateError> {
        if der.len() > MAX_CERTIFICATE_BYTES {
            return Err(CertificateError::TooLarge(der.len()));
        }
        let (rest, certificate) = x509_parser::certificate::X509Certificate::from_der(der)
            .map_err(|error| CertificateError::Malformed(error.to_string()))?;
        if !rest.is_empty() {
            return Err(CertificateError::Malformed(format!("{} bytes follow it", rest.len())));
        }
        certificate.verify_signature(None).map_err(|_| CertificateError::NotSelfSigned)?;
        let (from, to) =
            (certificate.validity.not_before.timestamp(), certificate.validity.not_after.timestamp());
        if !i64::try_from(now.as_secs()).is_ok_and(|at| (from..=to).contains(&at)) {
            let date = |seconds: i64| {
                Timestamp::from_millis(u64::try_from(seconds).unwrap_or_default().saturating_mul(1000))
            };
            return Err(CertificateError::Expired { from: date(from), to: date(to), now });
        }
        let spki = certificate.public_key();
        let algorithm = spki.algorithm.algorithm.to_id_string();
        Ok(Self {
            spki_der: spki.raw.to_vec(),
            key_bits: spki.subject_public_key.data.to_vec(),
            key_algorithm: match algorithm.as_str() {
                "1.2.840.10045.2.1" => KeyAlgorithm::Ec,
                "1.2.840.113549.1.1.1" => KeyAlgorithm::Rsa,
                _ => KeyAlgorithm::Other,
            },
            evidence: evidence_of(&certificate)?,
            nonce,
        })
    }

    /// What the peer's evidence must say to belong to this connection.
    pub fn report_data(&self) -> ReportData {
        ReportData::bind(&self.spki_der, self.nonce.as_bytes())
    }
}

fn evidence_of(
    certificate: &x509_parser::certificate::X509Certificate<'_>,
) -> Result<Option<Evidence>, CertificateError> {
    let mut found = Vec::new();
    for extension in certificate.extensions() {
        let known = EvidenceOid::ALL
            .into_iter()
            .find(|oid| Oid::from(oid.components()).is_ok_and(|components| components == extension.oid));
        match known {
            Some(oid) => found.push(Evidence { oid, document: extension.value.to_vec() }),
            None if extension.critical && extension.parsed_extension().unsupported() => {
                return Err(CertificateError::CriticalExtension(extension.oid.to_id_string()));
            }
            None => {}
        }
    }
    if found.len() > 1 {
        return Err(CertificateError::SeveralEvidences(found.len()));
    }
    Ok(found.pop())
}
