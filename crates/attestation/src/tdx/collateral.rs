//! What Intel publishes so that quotes can be judged: TCB info, the quoting enclave's identity,
//! revocation lists, and the certificates that vouch for these.
//!
//! The judge of quotes is `dcap-qvl`. Here collateral is read for its dates, and checked on its own
//! (without a quote) before it may enter a cache.

use std::{cell::RefCell, collections::HashMap};

use aws_lc_rs::{
    digest::{Context, Digest, SHA256, digest},
    signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey},
};
use dcap_qvl::QuoteCollateralV3;
use manifest::{KeyDigest, Timestamp};
use serde::Deserialize;
use serde_json::value::RawValue;
use x509_parser::{
    certificate::X509Certificate, pem::Pem, prelude::FromDer as _, revocation_list::CertificateRevocationList,
};

use crate::{PlatformCa, snp::CrlDates};

/// Intel SGX root CA, which TDX quotes lead to as well.
pub(crate) const INTEL_ROOT: &[u8] = include_bytes!("../../roots/intel-sgx-root-ca.der");
/// Largest collateral accepted, in bytes of JSON: what is seen in practice takes about 25 KiB.
const MAX_BYTES: usize = 512 << 10;
/// Most certificates of a chain that are read.
const MAX_CHAIN: usize = 4;

/// Collateral whose dates a thread remembers: one for each family of platforms of a deployment.
const REMEMBERED: usize = 8;

thread_local! {
    static READ: RefCell<Vec<(Digest, CollateralDates)>> = const { RefCell::new(Vec::new()) };
}

/// Collateral that a thread has found to be whole under another root, by its hash.
const MOST_FOREIGN: usize = 8;
thread_local! {
    static FOREIGN: RefCell<Vec<Digest>> = const { RefCell::new(Vec::new()) };
}

/// Whether collateral is whole under a root that is not `trusted`: then nothing that Intel signed can
/// take its place, and nobody need be asked for it.
pub(crate) fn is_foreign(json: &[u8], trusted: KeyDigest) -> bool {
    let digest = digest(&SHA256, json);
    if FOREIGN.with_borrow(|known| known.iter().any(|of| of.as_ref() == digest.as_ref())) {
        return true;
    }
    let Ok(collateral) = TdxCollateral::from_json(json) else { return false };
    let named = collateral.named_root().map(|root| KeyDigest::of(&root));
    let foreign =
        named.filter(|root| *root != trusted).is_some_and(|root| collateral.verify_under(root).is_ok());
    if foreign {
        FOREIGN.with_borrow_mut(|known| {
            known.truncate(MOST_FOREIGN - 1);
            known.insert(0, digest);
        });
    }
    foreign
}

/// Why collateral is unusable.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CollateralError {
    /// Over the limit.
    #[error("collateral has {0} bytes, at most {MAX_BYTES} are accepted")]
    TooLarge(usize),
    /// A part that is not what it should be.
    #[error("collateral: {part}: {reason}")]
    Malformed {
        /// Which one.
        part: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// A part that nobody trusted vouches for.
    #[error("collateral: {part} is not signed by {signer}")]
    Unsigned {
        /// Which one.
        part: &'static str,
        /// Whose signature was expected.
        signer: &'static str,
    },
}

fn malformed(part: &'static str, reason: impl ToString) -> CollateralError {
    CollateralError::Malformed { part, reason: reason.to_string() }
}

/// Collateral of one platform family, in the form that travels: `QuoteCollateralV3` as JSON.
#[derive(Clone, Debug, PartialEq)]
pub struct TdxCollateral(pub(crate) QuoteCollateralV3);

/// What collateral says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CollateralDates {
    /// The family of platforms that it is for, 12 lower-case hex digits.
    pub fmspc: String,
    /// `tcbEvaluationDataNumber`, the lower one of TCB info and quoting enclave identity. It grows
    /// with each of Intel's TCB recoveries.
    pub evaluation_number: u32,
    /// Revocation list of the root.
    pub root_crl: CrlDates,
    /// Revocation list of platforms.
    pub pck_crl: CrlDates,
    /// When the oldest part was made.
    pub this_update: Timestamp,
    /// When the newest part was made: before this it does not count.
    pub newest: Timestamp,
    /// When the first part expires.
    pub next_update: Timestamp,
}

/// What Intel's service answers to four questions. Chains are PEM, issuer first.
#[derive(Clone, Debug)]
pub struct IntelAnswers {
    /// Body of `tdx/certification/v4/tcb`.
    pub tcb_info: Vec<u8>,
    /// Its header `TCB-Info-Issuer-Chain`, decoded.
    pub tcb_info_issuer_chain: String,
    /// Body of `tdx/certification/v4/qe/identity`.
    pub qe_identity: Vec<u8>,
    /// Its header `SGX-Enclave-Identity-Issuer-Chain`, decoded.
    pub qe_identity_issuer_chain: String,
    /// Body of `sgx/certification/v4/pckcrl`, DER.
    pub pck_crl: Vec<u8>,
    /// Its header `SGX-PCK-CRL-Issuer-Chain`, decoded.
    pub pck_crl_issuer_chain: String,
    /// Revocation list of the root, DER.
    pub root_crl: Vec<u8>,
}

/// The fields of TCB info and of the enclave's identity that dates are taken from.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Dated {
    issue_date: String,
    next_update: String,
    tcb_evaluation_data_number: u32,
    #[serde(default)]
    fmspc: String,
}

impl TdxCollateral {
    /// Reads collateral. Nothing is verified.
    pub fn from_json(json: &[u8]) -> Result<Self, CollateralError> {
        if json.len() > MAX_BYTES {
            return Err(CollateralError::TooLarge(json.len()));
        }
        serde_json::from_slice(json).map(Self).map_err(|error| malformed("JSON", error))
    }

    /// Puts together what Intel's service answers (Intel PCS API v4). Nothing is verified.
    pub fn from_answers(answers: IntelAnswers) -> Result<Self, CollateralError> {
        let (tcb_info, tcb_info_signature) = signed_document("TCB info", "tcbInfo", &answers.tcb_info)?;
        let (qe_identity, qe_identity_signature) =
            signed_document("QE identity", "enclaveIdentity", &answers.qe_identity)?;
        Ok(Self(QuoteCollateralV3 {
            pck_crl_issuer_chain: answers.pck_crl_issuer_chain,
            root_ca_crl: answers.root_crl,
            pck_crl: answers.pck_crl,
            tcb_info_issuer_chain: answers.tcb_info_issuer_chain,
            tcb_info,
            tcb_info_signature,
            qe_identity_issuer_chain: answers.qe_identity_issuer_chain,
            qe_identity,
            qe_identity_signature,
            pck_certificate_chain: None,
        }))
    }

    /// The form that travels.
    pub fn to_json(&self) -> Result<Vec<u8>, CollateralError> {
        serde_json::to_vec(&self.0).map_err(|error| malformed("JSON", error))
    }

    /// Which of Intel's authorities its list of revoked platforms is of.
    pub fn platform_ca(&self) -> PlatformCa {
        let chain = chain(&self.0.pck_crl_issuer_chain);
        let issuer = chain.first().and_then(|der| X509Certificate::from_der(der).ok());
        let is_processor =
            issuer.is_some_and(|(_, issuer)| issuer.subject().to_string().contains("Processor CA"));
        if is_processor { PlatformCa::Processor } else { PlatformCa::Platform }
    }

    /// Its dates and numbers, as it says them.
    pub fn dates(&self) -> Result<CollateralDates, CollateralError> {
        let (info, identity) =
            (dated("TCB info", &self.0.tcb_info)?, dated("QE identity", &self.0.qe_identity)?);
        let root_crl = CrlDates::of(&crl("root CRL", &self.0.root_ca_crl)?);
        let pck_crl = CrlDates::of(&crl("PCK CRL", &self.0.pck_crl)?);
        let time = |part, text: &str| text.parse().map_err(|error| malformed(part, error));
        let made = [
            time("TCB info", &info.issue_date)?,
            time("QE identity", &identity.issue_date)?,
            root_crl.this_update,
            pck_crl.this_update,
        ];
        let due = [
            time("TCB info", &info.next_update)?,
            time("QE identity", &identity.next_update)?,
            root_crl.next_update,
            pck_crl.next_update,
        ];
        let fmspc = info.fmspc.to_ascii_lowercase();
        if fmspc.len() != 12 || !fmspc.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(malformed(
                "TCB info",
                format!("expected an FMSPC of 12 hex digits, found {fmspc:?}"),
            ));
        }
        Ok(CollateralDates {
            fmspc,
            evaluation_number: info.tcb_evaluation_data_number.min(identity.tcb_evaluation_data_number),
            root_crl,
            pck_crl,
            this_update: made.into_iter().min().unwrap_or(made[0]),
            newest: made.into_iter().max().unwrap_or(made[0]),
            next_update: due.into_iter().min().unwrap_or(due[0]),
        })
    }

    /// The same, read once for each thread: the quotes of one platform come with one collateral.
    pub(super) fn dates_once(&self) -> Result<CollateralDates, CollateralError> {
        let QuoteCollateralV3 { tcb_info, qe_identity, root_ca_crl, pck_crl, .. } = &self.0;
        let mut context = Context::new(&SHA256);
        for part in [tcb_info.as_bytes(), qe_identity.as_bytes(), root_ca_crl, pck_crl] {
            context.update(&part.len().to_be_bytes());
            context.update(part);
        }
        let digest = context.finish();
        let is_it = |(of, _): &&(Digest, CollateralDates)| of.as_ref() == digest.as_ref();
        let known = READ.with_borrow(|read| read.iter().find(is_it).map(|(_, dates)| dates.clone()));
        if let Some(dates) = known {
            return Ok(dates);
        }
        let dates = self.dates()?;
        READ.with_borrow_mut(|read| {
            read.truncate(REMEMBERED - 1);
            read.insert(0, (digest, dates.clone()));
        });
        Ok(dates)
    }

    /// The root certificate that it names. Nothing is verified.
    pub(super) fn named_root(&self) -> Option<Vec<u8>> {
        chain(&self.0.pck_crl_issuer_chain).pop()
    }

    /// Verifies that a root vouches for each part. Dates are not compared with anything.
    pub(crate) fn verify_under(&self, root: KeyDigest) -> Result<CollateralDates, CollateralError> {
        let collateral = &self.0;
        let documents = [
            (
                "TCB info",
                &collateral.tcb_info_issuer_chain,
                &collateral.tcb_info,
                &collateral.tcb_info_signature,
            ),
            (
                "QE identity",
                &collateral.qe_identity_issuer_chain,
                &collateral.qe_identity,
                &collateral.qe_identity_signature,
            ),
        ];
        for (part, issuers, document, signature) in documents {
            let certificates = chain(issuers);
            let (signer, _) = issuer(part, &certificates, root)?;
            let key = signer.public_key().subject_public_key.data.as_ref();
            UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, key)
                .verify(document.as_bytes(), signature)
                .map_err(|_| CollateralError::Unsigned { part, signer: "its TCB signing key" })?;
        }
        let certificates = chain(&collateral.pck_crl_issuer_chain);
        let (platform_ca, root) = issuer("PCK CRL", &certificates, root)?;
        for (part, der, signer, name) in [
            ("root CRL", &collateral.root_ca_crl, &root, "the root"),
            ("PCK CRL", &collateral.pck_crl, &platform_ca, "the platform CA"),
        ] {
            crl(part, der)?
                .verify_signature(signer.public_key())
                .map_err(|_| CollateralError::Unsigned { part, signer: name })?;
        }
        self.dates()
    }
}

/// The certificates of a PEM chain, as DER.
fn chain(pem: &str) -> Vec<Vec<u8>> {
    Pem::iter_from_buffer(pem.as_bytes())
        .take(MAX_CHAIN)
        .map_while(Result::ok)
        .map(|pem| pem.contents)
        .collect()
}

/// First and last certificate of a chain, if the last is the trusted root and signed the first.
fn issuer<'a>(
    part: &'static str,
    chain: &'a [Vec<u8>],
    trusted: KeyDigest,
) -> Result<(X509Certificate<'a>, X509Certificate<'a>), CollateralError> {
    let [first, .., root] = chain else {
        return Err(malformed(part, format!("expected a chain of 2 certificates, found {}", chain.len())));
    };
    if KeyDigest::of(root) != trusted {
        return Err(CollateralError::Unsigned { part, signer: "the trusted root" });
    }
    let parse = |der: &'a [u8]| match X509Certificate::from_der(der) {
        Ok((_, certificate)) => Ok(certificate),
        Err(error) => Err(malformed(part, error)),
    };
    let (first, root) = (parse(first)?, parse(root)?);
    match first.verify_signature(Some(root.public_key())) {
        Ok(()) => Ok((first, root)),
        Err(_) => Err(CollateralError::Unsigned { part, signer: "the trusted root" }),
    }
}

pub(super) fn crl<'a>(
    part: &'static str,
    der: &'a [u8],
) -> Result<CertificateRevocationList<'a>, CollateralError> {
    match CertificateRevocationList::from_der(der) {
        Ok(([], list)) => Ok(list),
        Ok(_) => Err(malformed(part, "bytes after it")),
        Err(error) => Err(malformed(part, error)),
    }
}

/// The signed text, exactly as it stands in an answer, and its signature.
fn signed_document(
    part: &'static str,
    name: &str,
    answer: &[u8],
) -> Result<(String, Vec<u8>), CollateralError> {
    let mut fields: HashMap<String, Box<RawValue>> =
        serde_json::from_slice(answer).map_err(|error| malformed(part, error))?;
    let mut field = |name: &str| fields.remove(name).ok_or_else(|| malformed(part, format!("no {name}")));
    let document = field(name)?.get().to_owned();
    let signature: String =
        serde_json::from_str(field("signature")?.get()).map_err(|error| malformed(part, error))?;
    Ok((document, hex::decode(signature).map_err(|error| malformed(part, error))?))
}

fn dated(part: &'static str, json: &str) -> Result<Dated, CollateralError> {
    serde_json::from_str(json).map_err(|error| malformed(part, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    const COLLATERAL: &[u8] = include_bytes!("../../testdata/tdx/tdx10-v4-dcapqvl.collateral.json");

    fn intel() -> KeyDigest {
        KeyDigest::of(INTEL_ROOT)
    }

    #[test]
    fn real_collateral_is_signed_and_dated() {
        let dates = TdxCollateral::from_json(COLLATERAL).unwrap().verify_under(intel()).unwrap();
        assert_eq!(dates.fmspc, "b0c06f000000");
        assert_eq!(dates.evaluation_number, 17);
        assert_eq!(dates.newest.as_secs(), 1_750_329_147);
        assert_eq!(dates.next_update.as_secs(), 1_752_919_235);
    }

    #[test]
    fn each_changed_part_is_named() {
        type Change = fn(&mut QuoteCollateralV3);
        let changes: [(&str, Change); 5] = [
            ("TCB info", |c| {
                c.tcb_info =
                    c.tcb_info.replace("\"tcbEvaluationDataNumber\":17", "\"tcbEvaluationDataNumber\":18");
            }),
            ("QE identity", |c| c.qe_identity.push(' ')),
            ("root CRL", |c| *c.root_ca_crl.last_mut().unwrap() ^= 1),
            ("PCK CRL", |c| *c.pck_crl.last_mut().unwrap() ^= 1),
            ("PCK CRL", |c| c.pck_crl_issuer_chain = c.tcb_info_issuer_chain.clone()),
        ];
        for (part, change) in changes {
            let mut collateral = TdxCollateral::from_json(COLLATERAL).unwrap();
            change(&mut collateral.0);
            let error = collateral.verify_under(intel()).unwrap_err().to_string();
            assert!(error.contains(part), "{part}: {error}");
        }
        let other = KeyDigest::of(b"another root");
        let error = TdxCollateral::from_json(COLLATERAL).unwrap().verify_under(other).unwrap_err();
        assert!(matches!(error, CollateralError::Unsigned { signer: "the trusted root", .. }), "{error}");
    }

    proptest::proptest! {
        #[test]
        fn arbitrary_collateral_never_panics(json: Vec<u8>) {
            if let Ok(collateral) = TdxCollateral::from_json(&json) {
                proptest::prop_assert!(collateral.verify_under(intel()).is_err());
            }
        }
    }
}
