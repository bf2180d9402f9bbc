//! A simulated Intel platform: a chain as Intel's (P-256; root, platform CA, PCK), the collateral
//! that Intel would publish for it, a quoting enclave, and quotes of version 4.
//!
//! Files: `root.der`, `pck.der`, `chain.pem` (PCK first), `collateral.json`, and the keys `pck.p8`
//! and `ca.p8`. Formats: Intel TDX DCAP quoting library API, appendix A; Intel SGX PCK certificate
//! specification; Intel PCS API v4.

use std::{path::Path, time::Duration};

use aws_lc_rs::{
    digest::{SHA256, digest},
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _},
};
use dcap_qvl::QuoteCollateralV3;
use der::{Any, Encode as _, Tag, asn1::ObjectIdentifier};
use manifest::{KeyDigest, Measurement, PolicyHash, TdxReferenceValues, Timestamp, Xfam};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CustomExtension, DnType, IsCa,
    Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SerialNumber,
};
use serde_json::json;

use super::{LIFETIME, label, platform, read, write};
use crate::{IssueError, ReportData, TdxCollateral, TdxEvidence};

/// Family of simulated platforms: no real TCB info is for it.
const FMSPC: [u8; 6] = [0x5e, 0x5e, 0x5e, 0, 0, 0];
/// Intel's quoting enclave, whose format this is.
const QE_VENDOR: [u8; 16] =
    [0x93, 0x9a, 0x72, 0x33, 0xf7, 0x9c, 0x4c, 0xa9, 0x94, 0x0a, 0x0d, 0xb3, 0x95, 0x7f, 0x06, 0x07];
/// No debug; `SEPT_VE_DISABLE`, as every Linux TD has it.
const TD_ATTRIBUTES: [u8; 8] = [0, 0, 0, 0x10, 0, 0, 0, 0];
const XFAM: [u8; 8] = [0xe7, 0x02, 0x06, 0, 0, 0, 0, 0];
/// Data that the quoting enclave hashes beside its key; real ones have 32 bytes too.
const QE_AUTH_DATA: [u8; 32] = [0; 32];
/// Prefix of the extension in which a PCK certificate describes its platform.
const SGX: &str = "1.2.840.113741.1.13.1";

/// A platform with its quoting enclave.
pub(super) struct Platform {
    root: Vec<u8>,
    chain: Vec<u8>,
    collateral: Vec<u8>,
    pck_key: EcdsaKeyPair,
    quoting_key: EcdsaKeyPair,
}

impl Platform {
    /// Makes a root, a platform CA, one platform, and the collateral for it.
    pub(super) fn create(directory: &Path, now: Timestamp) -> Result<Self, IssueError> {
        let [root_key, ca_key, pck_key, signer_key] = {
            let key = || KeyPair::generate().map_err(platform);
            [key()?, key()?, key()?, key()?]
        };
        let root_params = params("NOT-HARDWARE simulated root CA", true, now)?;
        let root = root_params.self_signed(&root_key).map_err(platform)?;
        let root_issuer = Issuer::from_params(&root_params, &root_key);
        let ca_params = params("NOT-HARDWARE simulated platform CA", true, now)?;
        let ca = ca_params.signed_by(&ca_key, &root_issuer).map_err(platform)?;
        let ca_issuer = Issuer::from_params(&ca_params, &ca_key);
        let mut pck_params = params("NOT-HARDWARE simulated PCK", false, now)?;
        pck_params.custom_extensions = vec![platform_extension()?];
        let pck = pck_params.signed_by(&pck_key, &ca_issuer).map_err(platform)?;
        let signer = params("NOT-HARDWARE simulated TCB signing", false, now)?
            .signed_by(&signer_key, &root_issuer)
            .map_err(platform)?;

        let signer_key = signing_key(&signer_key.serialize_der())?;
        let (tcb_info, qe_identity) = (tcb_info(now), qe_identity(now));
        let signers = signer.pem() + &root.pem();
        let collateral = TdxCollateral(QuoteCollateralV3 {
            pck_crl_issuer_chain: ca.pem() + &root.pem(),
            root_ca_crl: revocation_list(&root_issuer, 1, Vec::new(), now)?,
            pck_crl: revocation_list(&ca_issuer, 1, Vec::new(), now)?,
            tcb_info_issuer_chain: signers.clone(),
            tcb_info_signature: sign(&signer_key, tcb_info.as_bytes())?,
            tcb_info,
            qe_identity_issuer_chain: signers,
            qe_identity_signature: sign(&signer_key, qe_identity.as_bytes())?,
            qe_identity,
            pck_certificate_chain: None,
        });
        let chain = pck.pem() + &ca.pem() + &root.pem();
        write(directory, "root.der", root.der())?;
        write(directory, "chain.pem", chain.as_bytes())?;
        write(directory, "collateral.json", &collateral.to_json().map_err(platform)?)?;
        write(directory, "ca.p8", &ca_key.serialize_der())?;
        write(directory, "pck.p8", &pck_key.serialize_der())?;
        write(directory, "pck.der", pck.der())?;
        Self::open(directory)
    }

    /// Opens a directory that [`Platform::create`] wrote. The quoting enclave makes a new key.
    pub(super) fn open(directory: &Path) -> Result<Self, IssueError> {
        Ok(Self {
            root: read(directory, "root.der")?,
            chain: read(directory, "chain.pem")?,
            collateral: read(directory, "collateral.json")?,
            pck_key: signing_key(&read(directory, "pck.p8")?)?,
            quoting_key: EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).map_err(platform)?,
        })
    }

    /// Replaces the PCK revocation list by one that names this platform.
    pub(super) fn revoke(directory: &Path, now: Timestamp) -> Result<(), IssueError> {
        let pck = read(directory, "pck.der")?;
        let parsed = x509_parser::parse_x509_certificate(&pck).map_err(platform)?.1;
        let revoked = RevokedCertParams {
            serial_number: SerialNumber::from_slice(parsed.raw_serial()),
            revocation_time: now.to_datetime(),
            reason_code: None,
            invalidity_date: None,
        };
        let key = KeyPair::try_from(read(directory, "ca.p8")?).map_err(platform)?;
        let ca = params("NOT-HARDWARE simulated platform CA", true, now)?;
        let mut collateral =
            TdxCollateral::from_json(&read(directory, "collateral.json")?).map_err(platform)?;
        collateral.0.pck_crl = revocation_list(&Issuer::from_params(&ca, &key), 2, vec![revoked], now)?;
        write(directory, "collateral.json", &collateral.to_json().map_err(platform)?)
    }

    pub(super) fn root(&self) -> KeyDigest {
        KeyDigest::of(&self.root)
    }

    /// What a manifest says of the TDs of this platform.
    pub(super) fn reference_values(&self) -> TdxReferenceValues {
        TdxReferenceValues {
            platform: "Simulated-TDX".into(),
            mr_td: measurement("MRTD"),
            mr_seam: Some(measurement("MRSEAM")),
            rtmrs: ["RTMR 0", "RTMR 1", "RTMR 2", "RTMR 3"].map(measurement),
            xfam: Xfam::from_bytes(XFAM),
            td_attributes: None,
            min_tcb_evaluation_data_number: 0,
            allowed_piids: Vec::new(),
            allowed_tcb_statuses: Vec::new(),
            accepted_advisories: None,
            rejected_advisories: Vec::new(),
            memory_integrity: false,
            smt_disabled: false,
            static_platform: false,
            cpus: None,
        }
    }

    /// A signed quote with its collateral. `change` is made to its body before it is signed.
    pub(super) fn evidence(
        &self,
        data: &ReportData,
        policy: PolicyHash,
        change: fn(&mut [u8]),
    ) -> Result<TdxEvidence, IssueError> {
        let header = [&[4, 0, 2, 0, 0x81, 0, 0, 0, 0, 0, 0, 0][..], &QE_VENDOR, &[0; 20]].concat();
        let mut body = body(data, policy);
        change(&mut body);
        let signed = [header, body].concat();
        let auth = self.authentication(&signed)?;
        let size = u32::try_from(auth.len()).map_err(platform)?;
        let quote = [&signed[..], &size.to_le_bytes(), &auth].concat();
        Ok(TdxEvidence { quote, collateral: Some(self.collateral.clone()) })
    }

    /// Signature, key, and the quoting enclave's report by which the platform vouches for the key.
    fn authentication(&self, signed: &[u8]) -> Result<Vec<u8>, IssueError> {
        let uncompressed = self.quoting_key.public_key().as_ref();
        let key = uncompressed.get(1..).unwrap_or_default();
        let bound = digest(&SHA256, &[key, &QE_AUTH_DATA].concat());
        let report = enclave_report(bound.as_ref());
        let report_signature = sign(&self.pck_key, &report)?;
        let size = |bytes: usize| u32::try_from(bytes).map_err(platform);
        let chain = [&[5, 0][..], &size(self.chain.len())?.to_le_bytes(), &self.chain].concat();
        let certification = [&report[..], &report_signature, &[32, 0], &QE_AUTH_DATA, &chain].concat();
        let certification_size = size(certification.len())?.to_le_bytes();
        let signature = sign(&self.quoting_key, signed)?;
        Ok([&signature[..], key, &[6, 0], &certification_size, &certification].concat())
    }
}

fn measurement(name: &str) -> Measurement {
    Measurement::from_bytes(label(format!("contrast simulated TD, version 1, {name}").as_bytes()))
}

/// Body of a TD 1.0, 584 bytes.
fn body(data: &ReportData, policy: PolicyHash) -> Vec<u8> {
    let mut body = vec![0; 584];
    let mut put = |at: usize, bytes: &[u8]| body[at..at + bytes.len()].copy_from_slice(bytes);
    put(16, measurement("MRSEAM").as_bytes());
    put(120, &TD_ATTRIBUTES);
    put(128, &XFAM);
    put(136, measurement("MRTD").as_bytes());
    put(184, policy.as_bytes());
    for (n, name) in ["RTMR 0", "RTMR 1", "RTMR 2", "RTMR 3"].into_iter().enumerate() {
        put(328 + 48 * n, measurement(name).as_bytes());
    }
    put(520, data.as_bytes());
    body
}

/// Report of the quoting enclave, 384 bytes, as [`qe_identity`] describes it.
fn enclave_report(bound: &[u8]) -> Vec<u8> {
    let mut report = vec![0; 384];
    let mut put = |at: usize, bytes: &[u8]| report[at..at + bytes.len()].copy_from_slice(bytes);
    put(48, &[1]); // attributes: initialised
    put(128, &label(b"contrast simulated quoting enclave")[..32]);
    put(256, &[2, 0, 1, 0]); // product id, security version
    put(320, bound);
    report
}

fn tcb_info(now: Timestamp) -> String {
    let components = |svn: u8| vec![json!({ "svn": svn }); 16];
    json!({
        "id": "TDX", "version": 3,
        "issueDate": date(now.minus(Duration::from_hours(24))), "nextUpdate": date(now.plus(LIFETIME)),
        "fmspc": hex::encode_upper(FMSPC), "pceId": "0000", "tcbType": 0, "tcbEvaluationDataNumber": 1,
        "tdxModule": {
            "mrsigner": "0".repeat(96), "attributes": "0".repeat(16), "attributesMask": "F".repeat(16),
        },
        "tcbLevels": [{
            "tcb": { "sgxtcbcomponents": components(1), "pcesvn": 1, "tdxtcbcomponents": components(0) },
            "tcbDate": date(now), "tcbStatus": "UpToDate",
        }],
    })
    .to_string()
}

fn qe_identity(now: Timestamp) -> String {
    json!({
        "id": "TD_QE", "version": 2,
        "issueDate": date(now.minus(Duration::from_hours(24))), "nextUpdate": date(now.plus(LIFETIME)),
        "tcbEvaluationDataNumber": 1, "miscselect": "00000000", "miscselectMask": "FFFFFFFF",
        "attributes": "01".to_owned() + &"0".repeat(30), "attributesMask": "F".repeat(32),
        "mrsigner": hex::encode_upper(&label(b"contrast simulated quoting enclave")[..32]), "isvprodid": 2,
        "tcbLevels": [{ "tcb": { "isvsvn": 1 }, "tcbDate": date(now), "tcbStatus": "UpToDate" }],
    })
    .to_string()
}

/// Intel's dates have whole seconds.
fn date(at: Timestamp) -> String {
    Timestamp::from_millis(at.as_secs() * 1000).to_string()
}

fn params(name: &str, is_ca: bool, now: Timestamp) -> Result<CertificateParams, IssueError> {
    let mut params = CertificateParams::new(Vec::new()).map_err(platform)?;
    params.not_before = now.minus(Duration::from_hours(24)).to_datetime();
    params.not_after = now.plus(LIFETIME).to_datetime();
    params.distinguished_name.push(DnType::OrganizationName, "NOT-HARDWARE");
    params.distinguished_name.push(DnType::CommonName, name);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    if is_ca {
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    }
    Ok(params)
}

fn revocation_list(
    issuer: &Issuer<'_, &KeyPair>,
    number: u64,
    revoked_certs: Vec<RevokedCertParams>,
    now: Timestamp,
) -> Result<Vec<u8>, IssueError> {
    let params = CertificateRevocationListParams {
        this_update: now.minus(Duration::from_hours(24)).to_datetime(),
        next_update: now.plus(LIFETIME).to_datetime(),
        crl_number: number.into(),
        issuing_distribution_point: None,
        revoked_certs,
        key_identifier_method: KeyIdMethod::Sha256,
    };
    Ok(params.signed_by(issuer).map_err(platform)?.der().to_vec())
}

/// What a PCK certificate says of its platform.
fn platform_extension() -> Result<CustomExtension, IssueError> {
    let octets = |suffix: &str, bytes: &[u8]| field(suffix, Tag::OctetString, bytes);
    let mut tcb = Vec::new();
    for n in 1..=17 {
        tcb.push(field(&format!(".2.{n}"), Tag::Integer, &[1])?);
    }
    tcb.push(octets(".2.18", &[1; 16])?);
    let no = |suffix: &str| field(suffix, Tag::Boolean, &[0]);
    let configuration = [no(".7.1")?, no(".7.2")?, no(".7.3")?].concat();
    let fields = [
        octets(".1", &[0x5e; 16])?,
        field(".2", Tag::Sequence, &tcb.concat())?,
        octets(".3", &[0; 2])?,
        octets(".4", &FMSPC)?,
        field(".5", Tag::Enumerated, &[2])?,
        octets(".6", &[0x5e; 16])?,
        field(".7", Tag::Sequence, &configuration)?,
    ];
    let content = value(Tag::Sequence, &fields.concat())?;
    Ok(CustomExtension::from_oid_content(&[1, 2, 840, 113_741, 1, 13, 1], content))
}

/// A pair of object identifier and value.
fn field(suffix: &str, tag: Tag, content: &[u8]) -> Result<Vec<u8>, IssueError> {
    let oid = ObjectIdentifier::new(&format!("{SGX}{suffix}")).map_err(platform)?;
    let oid = oid.to_der().map_err(platform)?;
    value(Tag::Sequence, &[oid, value(tag, content)?].concat())
}

fn value(tag: Tag, content: &[u8]) -> Result<Vec<u8>, IssueError> {
    Any::new(tag, content).and_then(|any| any.to_der()).map_err(platform)
}

fn signing_key(pkcs8: &[u8]) -> Result<EcdsaKeyPair, IssueError> {
    EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8).map_err(platform)
}

fn sign(key: &EcdsaKeyPair, bytes: &[u8]) -> Result<Vec<u8>, IssueError> {
    Ok(key.sign(&SystemRandom::new(), bytes).map_err(platform)?.as_ref().to_vec())
}
