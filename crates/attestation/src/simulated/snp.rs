//! A simulated AMD processor: a chain as AMD's (RSA-4096 with PSS, a P-384 chip key with AMD's
//! extensions) and reports in AMD's format.
//!
//! Files: `ark.der`, `ask.der`, `vcek.der`, `vlek.der`, `crl.der`, and the keys `vcek.p8`, `vlek.p8` and
//! `ark.p8`. The provider's key stands under the same signing key as the chip's, where AMD has two.

use std::{path::Path, str::FromStr as _, time::Duration};

use aws_lc_rs::{
    encoding::{AsDer as _, Pkcs8V1Der, PublicKeyX509Der},
    rand::SystemRandom,
    rsa::{KeyPair as RsaKeyPair, KeySize},
    signature::{ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _, RSA_PSS_SHA384},
};
use der::{
    Any, Decode as _, Encode as _,
    asn1::{BitString, GeneralizedTime, ObjectIdentifier, OctetString, UtcTime},
};
use manifest::{
    GuestPolicy, KeyDigest, Measurement, PolicyHash, SnpProduct, SnpReferenceValues, SnpTcb, Timestamp,
};
use spki::{AlgorithmIdentifierOwned, SubjectPublicKeyInfoOwned};
use x509_cert::{
    Certificate, TbsCertificate, Version,
    crl::{CertificateList, RevokedCert, TbsCertList},
    ext::Extension,
    name::Name,
    serial_number::SerialNumber,
    time::{Time, Validity},
};

use super::{LIFETIME, label, platform, read, write};
use crate::{
    IssueError, ReportData, SnpEvidence,
    snp::{AmdKeys, Place, REPORT_BYTES, SIGNED_BYTES, place},
};

/// Security versions: bootloader, TEE, SNP, microcode.
const TCB: [u8; 4] = [1, 1, 1, 1];
/// Milan layout, from [`TCB`].
const TCB_BYTES: [u8; 8] = [TCB[0], TCB[1], 0, 0, 0, 0, TCB[2], TCB[3]];
const ROOT_NAME: &str = "CN=NOT-HARDWARE simulated ARK,O=NOT-HARDWARE";
/// RSASSA-PSS parameters: SHA-384, MGF1 with SHA-384, salt of 48 bytes (RFC 4055, 3.1).
const PSS_PARAMETERS: &[u8] = &[
    0x30, 0x34, 0xa0, 0x0f, 0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x02,
    0x05, 0x00, 0xa1, 0x1c, 0x30, 0x1a, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x08,
    0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x02, 0x05, 0x00, 0xa2, 0x03,
    0x02, 0x01, 0x30,
];

/// A processor and its chain.
pub(super) struct Processor {
    chain: SnpEvidence,
    chip_id: [u8; 64],
    key: EcdsaKeyPair,
    provider_key: EcdsaKeyPair,
}

impl Processor {
    /// Makes a root, a signing key and one chip. Takes a few seconds, for two RSA-4096 keys.
    pub(super) fn create(directory: &Path, now: Timestamp) -> Result<Self, IssueError> {
        let ark_key = RsaKeyPair::generate(KeySize::Rsa4096).map_err(platform)?;
        let ask_key = RsaKeyPair::generate(KeySize::Rsa4096).map_err(platform)?;
        let [vcek_key, vlek_key] = {
            let key = || EcdsaKeyPair::generate(&ECDSA_P384_SHA384_FIXED_SIGNING).map_err(platform);
            [key()?, key()?]
        };
        let mut chip_id = [0; 64];
        aws_lc_rs::rand::fill(&mut chip_id).map_err(platform)?;

        let ask_name = "CN=NOT-HARDWARE simulated ASK,O=NOT-HARDWARE";
        let ca = [extension("2.5.29.19", true, &[0x30, 3, 1, 1, 0xff])?];
        let ark_spki = ark_key.public_key().as_der().map_err(platform)?;
        let ark = certificate(ROOT_NAME, ROOT_NAME, &ark_spki, &ark_key, &ca, now)?;
        let ask_spki = ask_key.public_key().as_der().map_err(platform)?;
        let ask = certificate(ask_name, ROOT_NAME, &ask_spki, &ark_key, &ca, now)?;
        let vcek_spki = vcek_key.public_key().as_der().map_err(platform)?;
        let version = |value: u8| [2, 1, value];
        let firmware = [
            extension("1.3.6.1.4.1.3704.1.1", false, &version(0))?,
            extension("1.3.6.1.4.1.3704.1.2", false, b"\x16\x09SIMULATED")?,
            extension("1.3.6.1.4.1.3704.1.3.1", false, &version(TCB[0]))?,
            extension("1.3.6.1.4.1.3704.1.3.2", false, &version(TCB[1]))?,
            extension("1.3.6.1.4.1.3704.1.3.3", false, &version(TCB[2]))?,
            extension("1.3.6.1.4.1.3704.1.3.8", false, &version(TCB[3]))?,
        ];
        let chip = [firmware.as_slice(), &[extension("1.3.6.1.4.1.3704.1.4", false, &chip_id)?]].concat();
        let provider = extension("1.3.6.1.4.1.3704.1.5", false, b"\x16\x09SIMULATED")?;
        let provider = [firmware.as_slice(), &[provider]].concat();
        let vcek_name = "CN=NOT-HARDWARE simulated VCEK,O=NOT-HARDWARE";
        let vcek = certificate(vcek_name, ask_name, &vcek_spki, &ask_key, &chip, now)?;
        let vlek_spki = vlek_key.public_key().as_der().map_err(platform)?;
        let vlek_name = "CN=NOT-HARDWARE simulated VLEK,O=NOT-HARDWARE";
        let vlek = certificate(vlek_name, ask_name, &vlek_spki, &ask_key, &provider, now)?;
        let crl = revocation_list(&ark_key, 1, &[], now)?;

        write(directory, "ark.der", &ark)?;
        write(directory, "ask.der", &ask)?;
        write(directory, "vcek.der", &vcek)?;
        write(directory, "vlek.der", &vlek)?;
        write(directory, "crl.der", &crl)?;
        let ark_pkcs8: Pkcs8V1Der<'_> = ark_key.as_der().map_err(platform)?;
        write(directory, "ark.p8", ark_pkcs8.as_ref())?;
        write(directory, "vcek.p8", vcek_key.to_pkcs8v1().map_err(platform)?.as_ref())?;
        write(directory, "vlek.p8", vlek_key.to_pkcs8v1().map_err(platform)?.as_ref())?;
        Self::open(directory)
    }

    /// Opens a directory that [`Processor::create`] wrote.
    pub(super) fn open(directory: &Path) -> Result<Self, IssueError> {
        let vcek = read(directory, "vcek.der")?;
        let parsed = Certificate::from_der(&vcek).map_err(platform)?;
        let hwid = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.3704.1.4");
        let mut extensions = parsed.tbs_certificate.extensions.iter().flatten();
        let chip_id = extensions
            .find(|extension| extension.extn_id == hwid)
            .and_then(|extension| extension.extn_value.as_bytes().try_into().ok())
            .ok_or_else(|| platform("vcek.der names no chip id of 64 bytes"))?;
        let key = |name| {
            let pkcs8 = read(directory, name)?;
            EcdsaKeyPair::from_pkcs8(&ECDSA_P384_SHA384_FIXED_SIGNING, &pkcs8).map_err(platform)
        };
        let chain = SnpEvidence {
            ark: read(directory, "ark.der")?,
            ask: read(directory, "ask.der")?,
            crl: Some(read(directory, "crl.der")?),
            vlek: read(directory, "vlek.der")?,
            vcek,
            report: Vec::new(),
        };
        Ok(Self { chain, chip_id, key: key("vcek.p8")?, provider_key: key("vlek.p8")? })
    }

    /// Writes a revocation list that names the signing key.
    pub(super) fn revoke(directory: &Path, now: Timestamp) -> Result<(), IssueError> {
        let key = RsaKeyPair::from_pkcs8(&read(directory, "ark.p8")?).map_err(platform)?;
        let ask = Certificate::from_der(&read(directory, "ask.der")?).map_err(platform)?;
        let crl = revocation_list(&key, 2, &[ask.tbs_certificate.serial_number], now)?;
        write(directory, "crl.der", &crl)
    }

    pub(super) fn root(&self) -> KeyDigest {
        KeyDigest::of(&self.chain.ark)
    }

    pub(super) fn keys(&self) -> AmdKeys {
        AmdKeys { ask: self.chain.ask.clone(), asvk: self.chain.ask.clone(), ark: self.chain.ark.clone() }
    }

    /// What a manifest says of the guests of this processor.
    pub(super) fn reference_values(&self) -> SnpReferenceValues {
        let [bootloader, tee, snp, microcode] = TCB.map(Some);
        SnpReferenceValues {
            platform: "Simulated-SNP".into(),
            product_name: SnpProduct::Milan,
            trusted_measurement: measurement(),
            minimum_tcb: SnpTcb {
                bootloader_version: bootloader,
                tee_version: tee,
                snp_version: snp,
                microcode_version: microcode,
                fmc_version: None,
            },
            guest_policy: GuestPolicy::default(),
            platform_info: None,
            allowed_guest_policy_bits: 0,
            allowed_platform_info_bits: 0,
            allowed_signing_keys: Vec::new(),
            minimum_mitigation_vector: None,
            allowed_chip_ids: Vec::new(),
            trusted_id_key_digests: Vec::new(),
            trusted_author_key_digests: Vec::new(),
            ap_eip: None,
            vcpu_signature: None,
            guest_features: None,
            cpus: None,
        }
    }

    /// A signed report with the chain. `change` is made to the report before it is signed.
    pub(super) fn evidence(
        &self,
        data: &ReportData,
        policy: PolicyHash,
        change: fn(&mut [u8]),
    ) -> Result<SnpEvidence, IssueError> {
        let mut report = vec![0; REPORT_BYTES];
        put(&mut report, place::VERSION, 3_u32.to_le_bytes());
        put(&mut report, place::POLICY, 0x3_0000_u64.to_le_bytes()); // SMT, and the bit that is always set
        put(&mut report, place::SIGNATURE_ALGORITHM, 1_u32.to_le_bytes());
        put(&mut report, place::PLATFORM_INFO, 1_u64.to_le_bytes());
        put(&mut report, place::REPORT_DATA, *data.as_bytes());
        put(&mut report, place::MEASUREMENT, *measurement().as_bytes());
        put(&mut report, place::HOST_DATA, *policy.as_bytes());
        for tcb in [place::CURRENT_TCB, place::REPORTED_TCB, place::COMMITTED_TCB, place::LAUNCH_TCB] {
            put(&mut report, tcb, TCB_BYTES);
        }
        put(&mut report, place::PROCESSOR, [0x19, 0x01, 0x01]); // Milan
        put(&mut report, place::CHIP_ID, self.chip_id);
        change(&mut report);
        let by_provider = report[place::KEY_INFO.0] >> 2 & 7 == 1;
        let key = if by_provider { &self.provider_key } else { &self.key };
        let signature = key.sign(&SystemRandom::new(), &report[..SIGNED_BYTES]).map_err(platform)?;
        for (half, at) in signature.as_ref().chunks_exact(48).zip([SIGNED_BYTES, SIGNED_BYTES + 72]) {
            for (to, from) in report[at..at + 48].iter_mut().zip(half.iter().rev()) {
                *to = *from;
            }
        }
        let mut evidence = SnpEvidence { report, ..self.chain.clone() };
        if by_provider {
            evidence.vcek.clear();
        } else {
            evidence.vlek.clear();
        }
        Ok(evidence)
    }
}

fn put<const N: usize>(report: &mut [u8], Place(at): Place<N>, bytes: [u8; N]) {
    report[at..at + N].copy_from_slice(&bytes);
}

/// Launch digest of every simulated guest.
fn measurement() -> Measurement {
    Measurement::from_bytes(label(b"contrast simulated guest, version 1"))
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

/// RSASSA-PSS as AMD uses it.
fn pss() -> Result<AlgorithmIdentifierOwned, IssueError> {
    Ok(AlgorithmIdentifierOwned {
        oid: ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.10"),
        parameters: Some(Any::from_der(PSS_PARAMETERS).map_err(platform)?),
    })
}

fn sign(key: &RsaKeyPair, tbs: &[u8]) -> Result<BitString, IssueError> {
    let mut signature = vec![0; key.public_modulus_len()];
    key.sign(&RSA_PSS_SHA384, &SystemRandom::new(), tbs, &mut signature).map_err(platform)?;
    BitString::from_bytes(&signature).map_err(platform)
}

fn certificate(
    subject: &str,
    issuer: &str,
    spki: &PublicKeyX509Der<'_>,
    issuer_key: &RsaKeyPair,
    extensions: &[Extension],
    now: Timestamp,
) -> Result<Vec<u8>, IssueError> {
    let mut serial = [0; 16];
    aws_lc_rs::rand::fill(&mut serial).map_err(platform)?;
    serial[0] = serial[0] & 0x3f | 0x40;
    let day = Duration::from_hours(24);
    let tbs = TbsCertificate {
        version: Version::V3,
        serial_number: SerialNumber::new(&serial).map_err(platform)?,
        signature: pss()?,
        issuer: Name::from_str(issuer).map_err(platform)?,
        validity: Validity { not_before: time(now.minus(day))?, not_after: time(now.plus(LIFETIME))? },
        subject: Name::from_str(subject).map_err(platform)?,
        subject_public_key_info: SubjectPublicKeyInfoOwned::from_der(spki.as_ref()).map_err(platform)?,
        issuer_unique_id: None,
        subject_unique_id: None,
        extensions: Some(extensions.to_vec()),
    };
    let signature = sign(issuer_key, &tbs.to_der().map_err(platform)?)?;
    let certificate = Certificate { tbs_certificate: tbs, signature_algorithm: pss()?, signature };
    certificate.to_der().map_err(platform)
}

/// A revocation list of the root.
fn revocation_list(
    root_key: &RsaKeyPair,
    number: u8,
    revoked: &[SerialNumber],
    now: Timestamp,
) -> Result<Vec<u8>, IssueError> {
    let revoked = revoked.iter().map(|serial| {
        let revocation_date = time(now)?;
        Ok(RevokedCert { serial_number: serial.clone(), revocation_date, crl_entry_extensions: None })
    });
    let revoked = revoked.collect::<Result<Vec<_>, IssueError>>()?;
    let tbs = TbsCertList {
        version: Version::V2,
        signature: pss()?,
        issuer: Name::from_str(ROOT_NAME).map_err(platform)?,
        this_update: time(now.minus(Duration::from_hours(24)))?,
        next_update: Some(time(now.plus(LIFETIME))?),
        revoked_certificates: (!revoked.is_empty()).then_some(revoked),
        crl_extensions: Some(vec![extension("2.5.29.20", false, &[2, 1, number])?]),
    };
    let signature = sign(root_key, &tbs.to_der().map_err(platform)?)?;
    let list = CertificateList { tbs_cert_list: tbs, signature_algorithm: pss()?, signature };
    list.to_der().map_err(platform)
}
