//! The simulated platform: real report formats under a self-made root, judged by the same
//! verifier. It protects nothing, and says so in its root's name.
//!
//! A machine is a directory: `ark.der`, `ask.der`, `vcek.der` and the chip's key `vcek.p8`
//! (PKCS#8 DER). Whoever can read that key can forge the machine's evidence: that is why only a
//! manifest that lists the root believes it.

use std::{fs, path::Path, str::FromStr as _, time::Duration};

use aws_lc_rs::{
    digest::{SHA384, digest},
    encoding::{AsDer as _, PublicKeyX509Der},
    rand::SystemRandom,
    rsa::{KeyPair as RsaKeyPair, KeySize},
    signature::{ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _, RSA_PSS_SHA384},
};
use der::{
    Any, Decode as _, Encode as _,
    asn1::{BitString, GeneralizedTime, ObjectIdentifier, OctetString, UtcTime},
};
use manifest::{KeyDigest, PolicyHash, Timestamp};
use spki::{AlgorithmIdentifierOwned, SubjectPublicKeyInfoOwned};
use x509_cert::{
    Certificate, TbsCertificate, Version,
    ext::Extension,
    name::Name,
    serial_number::SerialNumber,
    time::{Time, Validity},
};

use crate::{
    Evidence, EvidenceOid, IssueError, Issuer, ReportData, SnpEvidence,
    snp::{REPORT_BYTES, SIGNED_BYTES},
};

/// Security versions of every simulated machine: bootloader, TEE, SNP, microcode.
pub const TCB: [u8; 4] = [1, 1, 1, 1];
/// Milan layout, from [`TCB`].
const TCB_BYTES: [u8; 8] = [TCB[0], TCB[1], 0, 0, 0, 0, TCB[2], TCB[3]];
const LIFETIME: Duration = Duration::from_hours(24 * 365 * 20);
/// RSASSA-PSS parameters: SHA-384, MGF1 with SHA-384, salt of 48 bytes (RFC 4055, 3.1).
const PSS_PARAMETERS: &[u8] = &[
    0x30, 0x34, 0xa0, 0x0f, 0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x02,
    0x05, 0x00, 0xa1, 0x1c, 0x30, 0x1a, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x08,
    0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x02, 0x05, 0x00, 0xa2, 0x03,
    0x02, 0x01, 0x30,
];

/// Launch digest of every simulated guest.
pub fn measurement() -> [u8; 48] {
    let mut bytes = [0; 48];
    bytes.copy_from_slice(digest(&SHA384, b"contrast simulated guest, version 1").as_ref());
    bytes
}

/// A machine that makes SNP reports.
pub struct SimulatedMachine {
    chain: SnpEvidence,
    chip_id: [u8; 64],
    key: EcdsaKeyPair,
}

fn platform(error: impl ToString) -> IssueError {
    IssueError::Platform(error.to_string())
}

impl SimulatedMachine {
    /// Makes a root, a signing key and one chip, and writes them to `directory`. Takes a few
    /// seconds, for two RSA-4096 keys.
    pub fn create(directory: &Path, now: Timestamp) -> Result<Self, IssueError> {
        let io = |path: &Path, source| IssueError::Io { path: path.display().to_string(), source };
        let ark_key = RsaKeyPair::generate(KeySize::Rsa4096).map_err(platform)?;
        let ask_key = RsaKeyPair::generate(KeySize::Rsa4096).map_err(platform)?;
        let vcek_key = EcdsaKeyPair::generate(&ECDSA_P384_SHA384_FIXED_SIGNING).map_err(platform)?;
        let mut chip_id = [0; 64];
        aws_lc_rs::rand::fill(&mut chip_id).map_err(platform)?;

        let root_name = "CN=NOT-HARDWARE simulated ARK,O=NOT-HARDWARE";
        let ask_name = "CN=NOT-HARDWARE simulated ASK,O=NOT-HARDWARE";
        let ca = [extension("2.5.29.19", true, &[0x30, 3, 1, 1, 0xff])?];
        let ark_spki = ark_key.public_key().as_der().map_err(platform)?;
        let ark = certificate(root_name, root_name, &ark_spki, &ark_key, &ca, now)?;
        let ask_spki = ask_key.public_key().as_der().map_err(platform)?;
        let ask = certificate(ask_name, root_name, &ask_spki, &ark_key, &ca, now)?;
        let vcek_spki = vcek_key.public_key().as_der().map_err(platform)?;
        let version = |value: u8| [2, 1, value];
        let amd = [
            extension("1.3.6.1.4.1.3704.1.1", false, &version(0))?,
            extension("1.3.6.1.4.1.3704.1.2", false, b"\x16\x09SIMULATED")?,
            extension("1.3.6.1.4.1.3704.1.3.1", false, &version(TCB[0]))?,
            extension("1.3.6.1.4.1.3704.1.3.2", false, &version(TCB[1]))?,
            extension("1.3.6.1.4.1.3704.1.3.3", false, &version(TCB[2]))?,
            extension("1.3.6.1.4.1.3704.1.3.8", false, &version(TCB[3]))?,
            extension("1.3.6.1.4.1.3704.1.4", false, &chip_id)?,
        ];
        let vcek_name = "CN=NOT-HARDWARE simulated VCEK,O=NOT-HARDWARE";
        let vcek = certificate(vcek_name, ask_name, &vcek_spki, &ask_key, &amd, now)?;

        fs::create_dir_all(directory).map_err(|error| io(directory, error))?;
        let pkcs8 = vcek_key.to_pkcs8v1().map_err(platform)?;
        let files = [
            ("ark.der", ark.as_slice()),
            ("ask.der", &ask),
            ("vcek.der", &vcek),
            ("vcek.p8", pkcs8.as_ref()),
        ];
        for (name, content) in files {
            let path = directory.join(name);
            fs::write(&path, content).map_err(|error| io(&path, error))?;
        }
        let chain = SnpEvidence { ark, ask, vcek, ..SnpEvidence::default() };
        Ok(Self { chain, chip_id, key: vcek_key })
    }

    /// Opens a directory that [`SimulatedMachine::create`] wrote.
    pub fn open(directory: &Path) -> Result<Self, IssueError> {
        let read = |name: &str| {
            let path = directory.join(name);
            fs::read(&path).map_err(|source| IssueError::Io { path: path.display().to_string(), source })
        };
        let vcek = read("vcek.der")?;
        let parsed = Certificate::from_der(&vcek).map_err(platform)?;
        let hwid = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.3704.1.4");
        let mut extensions = parsed.tbs_certificate.extensions.iter().flatten();
        let chip_id = extensions
            .find(|extension| extension.extn_id == hwid)
            .and_then(|extension| extension.extn_value.as_bytes().try_into().ok())
            .ok_or_else(|| platform("vcek.der names no chip id of 64 bytes"))?;
        let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P384_SHA384_FIXED_SIGNING, &read("vcek.p8")?)
            .map_err(platform)?;
        let chain =
            SnpEvidence { ark: read("ark.der")?, ask: read("ask.der")?, vcek, ..SnpEvidence::default() };
        Ok(Self { chain, chip_id, key })
    }

    /// What a manifest lists to believe this machine: SHA-256 of its root certificate.
    pub fn root(&self) -> KeyDigest {
        KeyDigest::of(&self.chain.ark)
    }

    /// A guest on this machine that was started with `policy` as its HOSTDATA.
    pub fn guest(self, policy: PolicyHash) -> SimulatedGuest {
        SimulatedGuest { machine: self, policy }
    }

    fn report(&self, data: &ReportData, policy: PolicyHash) -> Result<Vec<u8>, IssueError> {
        let mut report = vec![0; REPORT_BYTES];
        let mut put = |at: usize, bytes: &[u8]| report[at..at + bytes.len()].copy_from_slice(bytes);
        put(0x00, &3_u32.to_le_bytes());
        put(0x08, &0x3_0000_u64.to_le_bytes()); // SMT, and the bit that is always set
        put(0x34, &1_u32.to_le_bytes());
        put(0x40, &1_u64.to_le_bytes());
        put(0x50, data.as_bytes());
        put(0x90, &measurement());
        put(0xc0, policy.as_bytes());
        for at in [0x38, 0x180, 0x1e0, 0x1f0] {
            put(at, &TCB_BYTES);
        }
        put(0x188, &[0x19, 0x01, 0x01]); // Milan
        put(0x1a0, &self.chip_id);
        let signature = self.key.sign(&SystemRandom::new(), &report[..SIGNED_BYTES]).map_err(platform)?;
        for (half, at) in signature.as_ref().chunks_exact(48).zip([SIGNED_BYTES, SIGNED_BYTES + 72]) {
            for (to, from) in report[at..at + 48].iter_mut().zip(half.iter().rev()) {
                *to = *from;
            }
        }
        Ok(report)
    }
}

/// A guest: a machine, and the policy it was started with.
pub struct SimulatedGuest {
    machine: SimulatedMachine,
    policy: PolicyHash,
}

impl Issuer for SimulatedGuest {
    fn issue(&self, data: &ReportData) -> Result<Evidence, IssueError> {
        let report = self.machine.report(data, self.policy)?;
        let evidence = SnpEvidence { report, ..self.machine.chain.clone() };
        Ok(Evidence { oid: EvidenceOid::Snp, document: evidence.to_protobuf().map_err(platform)? })
    }
}

fn extension(oid: &str, critical: bool, value: &[u8]) -> Result<Extension, IssueError> {
    Ok(Extension {
        extn_id: ObjectIdentifier::new(oid).map_err(platform)?,
        critical,
        extn_value: OctetString::new(value).map_err(platform)?,
    })
}

fn time(at: Timestamp) -> Result<Time, IssueError> {
    let since_epoch = Duration::from_secs(at.as_secs());
    match UtcTime::from_unix_duration(since_epoch) {
        Ok(time) => Ok(Time::UtcTime(time)),
        Err(_) => GeneralizedTime::from_unix_duration(since_epoch).map(Time::GeneralTime).map_err(platform),
    }
}

fn certificate(
    subject: &str,
    issuer: &str,
    spki: &PublicKeyX509Der<'_>,
    issuer_key: &RsaKeyPair,
    extensions: &[Extension],
    now: Timestamp,
) -> Result<Vec<u8>, IssueError> {
    let pss = AlgorithmIdentifierOwned {
        oid: ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.10"),
        parameters: Some(Any::from_der(PSS_PARAMETERS).map_err(platform)?),
    };
    let mut serial = [0; 16];
    aws_lc_rs::rand::fill(&mut serial).map_err(platform)?;
    serial[0] = serial[0] & 0x3f | 0x40;
    let day = Duration::from_hours(24);
    let tbs = TbsCertificate {
        version: Version::V3,
        serial_number: SerialNumber::new(&serial).map_err(platform)?,
        signature: pss.clone(),
        issuer: Name::from_str(issuer).map_err(platform)?,
        validity: Validity { not_before: time(now.minus(day))?, not_after: time(now.plus(LIFETIME))? },
        subject: Name::from_str(subject).map_err(platform)?,
        subject_public_key_info: SubjectPublicKeyInfoOwned::from_der(spki.as_ref()).map_err(platform)?,
        issuer_unique_id: None,
        subject_unique_id: None,
        extensions: Some(extensions.to_vec()),
    };
    let signed = tbs.to_der().map_err(platform)?;
    let mut signature = vec![0; issuer_key.public_modulus_len()];
    issuer_key.sign(&RSA_PSS_SHA384, &SystemRandom::new(), &signed, &mut signature).map_err(platform)?;
    let certificate = Certificate {
        tbs_certificate: tbs,
        signature_algorithm: pss,
        signature: BitString::from_bytes(&signature).map_err(platform)?,
    };
    certificate.to_der().map_err(platform)
}
