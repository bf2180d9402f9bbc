//! The certificate hierarchy (docs/spec/control-plane.md, section 4).
//!
//! The root's key comes from the seed. The mesh CA key is random, and new with every manifest. It
//! has two certificates with one subject: the *intermediate*, signed by the root (a leaf is valid
//! for the whole deployment), and the *mesh CA*, signed by itself (a leaf is valid for the
//! current manifest only).

use std::time::Duration;

use manifest::{SerialNumber, Timestamp};
use p384::pkcs8::{
    LineEnding, SubjectPublicKeyInfoRef,
    der::{Decode as _, pem},
};
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, CustomExtension, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SanType,
    SignatureAlgorithm,
};

use x509_parser::{
    certificate::X509Certificate, certification_request::X509CertificationRequest, prelude::FromDer as _,
};

use crate::{CaKey, KeyError, SeedEngine, WorkloadSecretId, random};

const BACKDATED: Duration = Duration::from_hours(1);
const CA_LIFETIME: Duration = Duration::from_hours(24 * 3652);
/// How long a workload certificate is valid unless the operator wants another time: a year.
pub const DEFAULT_LEAF_LIFETIME: Duration = Duration::from_hours(24 * 365);
const ROOT_NAME: &str = "system:coordinator:root";
const INTERMEDIATE_NAME: &str = "system:coordinator:intermediate";
/// Extension that names the workload secret (docs/spec/control-plane.md, section 4.4).
const WORKLOAD_SECRET_ID_OID: [u64; 5] = [1, 3, 9901, 3, 1];

/// The public side of the hierarchy, as PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicCa {
    /// Root certificate.
    pub root_pem: String,
    /// Self-signed mesh CA certificate.
    pub mesh_pem: String,
    /// Mesh CA key certified by the root.
    pub intermediate_pem: String,
}

/// A certificate authority for one manifest generation.
pub struct MeshCa {
    key: CaKey,
    issuer: Issuer<'static, KeyPair>,
    public: PublicCa,
    root_der: Vec<u8>,
    mesh_der: Vec<u8>,
    intermediate_der: Vec<u8>,
}

/// What a workload's certificate shall say.
pub struct LeafRequest<'a> {
    /// The workload's public key, SubjectPublicKeyInfo DER: EC P-256 or P-384, or RSA.
    pub spki_der: &'a [u8],
    /// Names, each an IP address, a URI or else a DNS name; at least one DNS name.
    pub sans: &'a [String],
    /// Workload secret that the certificate's owner may use.
    pub workload_secret_id: Option<&'a WorkloadSecretId>,
    /// What was attested.
    pub claims: &'a [ClaimExtension],
    /// How long it shall be valid.
    pub lifetime: Duration,
}

/// One claim, as a non-critical extension.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClaimExtension {
    /// Object identifier.
    pub oid: Vec<u64>,
    /// Value, DER.
    pub der: Vec<u8>,
}

/// A certificate that was issued.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IssuedCert {
    /// Its serial number.
    pub serial: SerialNumber,
    /// The certificate, DER.
    pub der: Vec<u8>,
    /// The certificate, PEM.
    pub pem: String,
}

impl MeshCa {
    /// Makes the CA certificates for a mesh CA key.
    pub fn new(engine: &SeedEngine, mesh_key: CaKey, now: Timestamp) -> Result<Self, KeyError> {
        let root_pair = key_pair(engine.root_key())?;
        let root_params = ca_params(ROOT_NAME, now)?;
        let root = root_params.self_signed(&root_pair).map_err(certificate_error)?;
        let root_issuer = Issuer::from_params(&root_params, root_pair);

        let pair = key_pair(&mesh_key)?;
        let intermediate =
            ca_params(INTERMEDIATE_NAME, now)?.signed_by(&pair, &root_issuer).map_err(certificate_error)?;
        let params = ca_params(INTERMEDIATE_NAME, now)?;
        let mesh = params.self_signed(&pair).map_err(certificate_error)?;
        Ok(Self {
            key: mesh_key,
            issuer: Issuer::new(params, pair),
            public: PublicCa {
                root_pem: root.pem(),
                mesh_pem: mesh.pem(),
                intermediate_pem: intermediate.pem(),
            },
            root_der: root.der().to_vec(),
            mesh_der: mesh.der().to_vec(),
            intermediate_der: intermediate.der().to_vec(),
        })
    }

    /// The authority that another replica made: its key, and the root and mesh CA certificates that the
    /// event log names. The key is refused if it is not the one that the mesh CA certificate is for.
    pub fn from_log(
        engine: &SeedEngine,
        mesh_key: CaKey,
        root_der: &[u8],
        mesh_der: &[u8],
        now: Timestamp,
    ) -> Result<Self, KeyError> {
        let (rest, mesh) = X509Certificate::from_der(mesh_der)
            .map_err(|error| KeyError::Certificate(format!("mesh CA certificate of the log: {error}")))?;
        if !rest.is_empty() || mesh.public_key().raw != mesh_key.public_der() {
            return Err(KeyError::Certificate(
                "the mesh CA key is not that of the mesh CA certificate in the log".into(),
            ));
        }
        let pem = |der| {
            let encoded = pem::encode_string("CERTIFICATE", LineEnding::LF, der);
            encoded.map_err(|error| KeyError::Certificate(error.to_string()))
        };
        let (root_pem, mesh_pem) = (pem(root_der)?, pem(mesh_der)?);
        let mut ca = Self::new(engine, mesh_key, now)?;
        (ca.public.root_pem, ca.public.mesh_pem) = (root_pem, mesh_pem);
        (ca.root_der, ca.mesh_der) = (root_der.to_vec(), mesh_der.to_vec());
        Ok(ca)
    }

    /// The certificates, PEM.
    pub fn public(&self) -> &PublicCa {
        &self.public
    }

    /// Root certificate, DER.
    pub fn root_der(&self) -> &[u8] {
        &self.root_der
    }

    /// Mesh CA certificate, DER.
    pub fn mesh_der(&self) -> &[u8] {
        &self.mesh_der
    }

    /// Mesh CA key certified by the root, DER.
    pub fn intermediate_der(&self) -> &[u8] {
        &self.intermediate_der
    }

    /// The mesh CA key, for peers.
    pub fn mesh_key(&self) -> &CaKey {
        &self.key
    }

    /// Issues a workload certificate, valid from an hour before `now` for its lifetime after it.
    pub fn issue(&self, request: &LeafRequest<'_>, now: Timestamp) -> Result<IssuedCert, KeyError> {
        let public_key = ForeignKey::from_spki(request.spki_der)?;
        let (params, serial) = leaf_params(request, now)?;
        let certificate = params.signed_by(&public_key, &self.issuer).map_err(certificate_error)?;
        Ok(issued(serial, &certificate))
    }
}

fn issued(serial: SerialNumber, certificate: &Certificate) -> IssuedCert {
    IssuedCert { serial, der: certificate.der().to_vec(), pem: certificate.pem() }
}

#[expect(clippy::needless_pass_by_value, reason = "shape of map_err")]
fn certificate_error(error: rcgen::Error) -> KeyError {
    KeyError::Certificate(error.to_string())
}

fn key_pair(key: &CaKey) -> Result<KeyPair, KeyError> {
    let der = key.to_pkcs8()?;
    KeyPair::try_from(der.as_slice()).map_err(certificate_error)
}

/// The time comes first, in steps of 16 s, so that an index by serial number grows at its end; 96 bits are random.
fn serial_number(now: Timestamp) -> Result<SerialNumber, KeyError> {
    const STEP_BITS: u32 = 14; // of milliseconds
    let mut bytes = random::<16>()?;
    // The steps since 1970 take 30 bits until the year 2527.
    let steps = u32::try_from((now.as_millis() >> STEP_BITS) & 0x3fff_ffff).unwrap_or_default();
    bytes[..4].copy_from_slice(&(0x4000_0000 | steps).to_be_bytes()); // positive, and always 16 bytes long
    Ok(SerialNumber::from_bytes(bytes))
}

fn common_name(name: &str) -> DistinguishedName {
    let mut distinguished_name = DistinguishedName::new();
    distinguished_name.push(DnType::CommonName, name);
    distinguished_name
}

fn ca_params(name: &str, now: Timestamp) -> Result<CertificateParams, KeyError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = common_name(name);
    params.serial_number = Some(rcgen::SerialNumber::from_slice(serial_number(now)?.as_bytes()));
    params.not_before = now.minus(BACKDATED).to_datetime();
    params.not_after = now.plus(CA_LIFETIME).to_datetime();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyCertSign];
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

fn leaf_params(
    request: &LeafRequest<'_>,
    now: Timestamp,
) -> Result<(CertificateParams, SerialNumber), KeyError> {
    // Go's verifier takes `*` for any name of one label, the Coordinator's among them. Manifests of before have it in
    // every entry; one that has nothing else keeps it, or its pods would get no certificate.
    let others = request.sans.iter().any(|name| name != "*");
    let sans = request.sans.iter().filter(|name| !others || *name != "*");
    let sans = sans.map(|name| classify(name)).collect::<Result<Vec<_>, _>>()?;
    let first_dns = sans.iter().find_map(|san| match san {
        SanType::DnsName(name) => Some(name.as_str().to_owned()),
        _ => None,
    });
    let name = first_dns.ok_or_else(|| KeyError::Certificate("no DNS name among the SANs".into()))?;

    let serial = serial_number(now)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = common_name(&name);
    params.serial_number = Some(rcgen::SerialNumber::from_slice(serial.as_bytes()));
    params.not_before = now.minus(BACKDATED).to_datetime();
    params.not_after = now.plus(request.lifetime).to_datetime();
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
    params.subject_alt_names = sans;
    params.use_authority_key_identifier_extension = true;
    params.custom_extensions = request
        .claims
        .iter()
        .map(|claim| CustomExtension::from_oid_content(&claim.oid, claim.der.clone()))
        .collect();
    if let Some(id) = request.workload_secret_id {
        let value = p384::pkcs8::der::asn1::OctetString::new(id.as_str().as_bytes())
            .and_then(|value| p384::pkcs8::der::Encode::to_der(&value))
            .map_err(|error| KeyError::Certificate(error.to_string()))?;
        params.custom_extensions.push(CustomExtension::from_oid_content(&WORKLOAD_SECRET_ID_OID, value));
    }
    Ok((params, serial))
}

/// By docs/spec/control-plane.md, section 4.3: an IP address, else a URI if it has a scheme, else a DNS name.
fn classify(name: &str) -> Result<SanType, KeyError> {
    let refused = |_| KeyError::Certificate(format!("SAN {name:?} is not ASCII"));
    if let Ok(address) = name.parse() {
        return Ok(SanType::IpAddress(address));
    }
    let has_scheme = name.split_once(':').is_some_and(|(scheme, _)| {
        scheme.starts_with(|c: char| c.is_ascii_alphabetic())
            && scheme.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c))
    });
    let name = name.try_into().map_err(refused)?;
    Ok(if has_scheme { SanType::URI(name) } else { SanType::DnsName(name) })
}

/// The public key (SubjectPublicKeyInfo DER) that a certification request (PKCS#10 DER) is about and
/// that signed it. Everything else in the request is ignored: what a certificate says is up to the
/// manifest.
pub fn key_of_csr(der: &[u8]) -> Result<Vec<u8>, KeyError> {
    let malformed = |expected| KeyError::Malformed { what: "certification request", expected };
    let (rest, request) = X509CertificationRequest::from_der(der).map_err(|_| malformed("PKCS#10 in DER"))?;
    if !rest.is_empty() {
        return Err(malformed("PKCS#10 in DER and nothing behind it"));
    }
    request.verify_signature().map_err(|_| malformed("PKCS#10 signed by the key it is about"))?;
    Ok(request.certification_request_info.subject_pki.raw.to_vec())
}

/// The workload secret that a certificate names (docs/spec/control-plane.md, section 4.4). The certificate's
/// signature is the caller's to check.
pub fn workload_secret_id_of(certificate_der: &[u8]) -> Result<Option<WorkloadSecretId>, KeyError> {
    let malformed =
        || KeyError::Malformed { what: "certificate", expected: "X.509 with a workload secret id" };
    let (_, certificate) =
        x509_parser::certificate::X509Certificate::from_der(certificate_der).map_err(|_| malformed())?;
    let oid = x509_parser::oid_registry::Oid::from(&WORKLOAD_SECRET_ID_OID).map_err(|_| malformed())?;
    let Some(extension) = certificate.get_extension_unique(&oid).map_err(|_| malformed())? else {
        return Ok(None);
    };
    let value = p384::pkcs8::der::asn1::OctetStringRef::from_der(extension.value);
    let text = value.map(|value| value.as_bytes()).map_err(|_| malformed())?;
    Ok(WorkloadSecretId::new(std::str::from_utf8(text).map_err(|_| malformed())?))
}

/// Until when a certificate is valid. Its signature is the caller's to check.
pub fn valid_until(certificate_der: &[u8]) -> Result<Timestamp, KeyError> {
    let (_, certificate) = x509_parser::certificate::X509Certificate::from_der(certificate_der)
        .map_err(|_| KeyError::Malformed { what: "certificate", expected: "X.509" })?;
    let seconds = u64::try_from(certificate.validity().not_after.timestamp()).unwrap_or(0);
    Ok(Timestamp::from_millis(seconds.saturating_mul(1000)))
}

/// The serial number of a certificate that this crate issued.
pub fn serial_number_of(certificate_der: &[u8]) -> Result<SerialNumber, KeyError> {
    let malformed =
        || KeyError::Malformed { what: "certificate", expected: "X.509 with a serial number of 16 bytes" };
    let (_, certificate) =
        x509_parser::certificate::X509Certificate::from_der(certificate_der).map_err(|_| malformed())?;
    <[u8; 16]>::try_from(certificate.raw_serial()).map(SerialNumber::from_bytes).map_err(|_| malformed())
}

/// A workload's public key, which came with its connection.
struct ForeignKey {
    bits: Vec<u8>,
    algorithm: &'static SignatureAlgorithm,
}

impl ForeignKey {
    fn from_spki(der: &[u8]) -> Result<Self, KeyError> {
        let malformed = KeyError::Malformed { what: "workload key", expected: "P-256, P-384 or RSA" };
        let spki = SubjectPublicKeyInfoRef::from_der(der).map_err(|_| malformed.clone())?;
        let curve = spki.algorithm.parameters_oid().map(|oid| oid.to_string());
        let algorithm = match (spki.algorithm.oid.to_string().as_str(), curve.as_deref()) {
            ("1.2.840.10045.2.1", Ok("1.2.840.10045.3.1.7")) => &rcgen::PKCS_ECDSA_P256_SHA256,
            ("1.2.840.10045.2.1", Ok("1.3.132.0.34")) => &rcgen::PKCS_ECDSA_P384_SHA384,
            ("1.2.840.113549.1.1.1", _) => &rcgen::PKCS_RSA_SHA256,
            _ => return Err(malformed),
        };
        let bits = spki.subject_public_key.as_bytes().ok_or(malformed)?.to_vec();
        Ok(Self { bits, algorithm })
    }
}

impl PublicKeyData for ForeignKey {
    fn der_bytes(&self) -> &[u8] {
        &self.bits
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        self.algorithm
    }
}

#[cfg(test)]
mod tests {
    use x509_parser::{certificate::X509Certificate, extensions::GeneralName};

    use super::*;
    use crate::{Salt, Seed};

    const NOW: Timestamp = Timestamp::from_millis(1_800_000_000_000);

    fn ca() -> MeshCa {
        let engine = SeedEngine::new(Seed::generate().unwrap(), Salt::generate().unwrap()).unwrap();
        MeshCa::new(&engine, CaKey::generate().unwrap(), NOW).unwrap()
    }

    fn leaf(ca: &MeshCa, sans: &[&str]) -> Result<IssuedCert, KeyError> {
        let key = KeyPair::generate().unwrap();
        let sans: Vec<String> = sans.iter().map(|&san| san.to_owned()).collect();
        let id = WorkloadSecretId::new("default/web");
        let request = LeafRequest {
            spki_der: &key.subject_public_key_info(),
            sans: &sans,
            workload_secret_id: id.as_ref(),
            lifetime: DEFAULT_LEAF_LIFETIME,
            claims: &[ClaimExtension { oid: vec![1, 3, 9901, 2, 1, 1], der: vec![2, 1, 3] }],
        };
        ca.issue(&request, NOW)
    }

    fn pem_der(pem: &str) -> Vec<u8> {
        x509_parser::pem::parse_x509_pem(pem.as_bytes()).unwrap().1.contents
    }

    #[test]
    fn leaf_verifies_to_the_mesh_ca_and_through_the_intermediate_to_the_root() {
        let ca = ca();
        let der = leaf(&ca, &["web", "*"]).unwrap().der;
        let (_, leaf) = X509Certificate::from_der(&der).unwrap();
        let intermediate = pem_der(&ca.public().intermediate_pem);
        let (_, intermediate) = X509Certificate::from_der(&intermediate).unwrap();
        let (_, mesh) = X509Certificate::from_der(ca.mesh_der()).unwrap();
        let (_, root) = X509Certificate::from_der(ca.root_der()).unwrap();
        leaf.verify_signature(Some(mesh.public_key())).unwrap();
        leaf.verify_signature(Some(intermediate.public_key())).unwrap();
        intermediate.verify_signature(Some(root.public_key())).unwrap();
        mesh.verify_signature(None).unwrap();
        root.verify_signature(None).unwrap();
        assert_eq!(mesh.subject(), intermediate.subject());
        assert_eq!(intermediate.issuer(), root.subject());
    }

    #[test]
    fn leaf_has_the_names_times_and_extensions_of_the_spec() {
        let issued = leaf(&ca(), &["10.0.0.7", "spiffe://mesh/web", "web.default", "*"]).unwrap();
        let (_, leaf) = X509Certificate::from_der(&issued.der).unwrap();
        assert_eq!(leaf.subject().to_string(), "CN=web.default");
        assert_eq!(leaf.raw_serial(), issued.serial.as_bytes());
        assert_eq!(leaf.validity().not_before.timestamp(), 1_800_000_000 - 3600);
        assert_eq!(leaf.validity().not_after.timestamp(), 1_800_000_000 + 365 * 86400);
        assert!(!leaf.is_ca());
        let names = leaf.subject_alternative_name().unwrap().unwrap();
        assert!(matches!(
            names.value.general_names.as_slice(),
            [
                GeneralName::IPAddress([10, 0, 0, 7]),
                GeneralName::URI("spiffe://mesh/web"),
                GeneralName::DNSName("web.default")
            ]
        ));
        let value = |oid: &str| {
            leaf.extensions().iter().find(|e| e.oid.to_id_string() == oid).map(|e| e.value.to_vec())
        };
        assert_eq!(value("1.3.9901.2.1.1").unwrap(), [2, 1, 3]);
        assert_eq!(value("1.3.9901.3.1").unwrap(), b"\x04\x0bdefault/web");
        assert_eq!(workload_secret_id_of(&issued.der).unwrap(), WorkloadSecretId::new("default/web"));
        assert_eq!(workload_secret_id_of(ca().mesh_der()), Ok(None));
    }

    #[test]
    fn a_request_yields_the_key_that_signed_it() {
        let key = KeyPair::generate().unwrap();
        let request = CertificateParams::default().serialize_request(&key).unwrap();
        assert_eq!(key_of_csr(request.der()).unwrap(), key.subject_public_key_info());
        let mut forged = request.der().to_vec();
        let last = forged.len() - 1;
        forged[last] ^= 1;
        assert!(key_of_csr(&forged).is_err() && key_of_csr(b"no request").is_err());
    }

    #[test]
    fn leaf_without_a_dns_name_is_refused() {
        assert_eq!(
            leaf(&ca(), &["10.0.0.7"]).unwrap_err().to_string(),
            "cannot make the certificate: no DNS name among the SANs"
        );
    }
}
