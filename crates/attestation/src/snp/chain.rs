//! The chain of certificates: root (ARK), signing key (ASK, or ASVK for provider keys), and the
//! key that signed the report (VCEK, VLEK). Checked over the bytes as received.

use std::cell::RefCell;

use aws_lc_rs::{
    digest::{self, SHA256},
    signature::{ECDSA_P384_SHA384_FIXED, RSA_PSS_2048_8192_SHA384, UnparsedPublicKey},
};
use manifest::{KeyDigest, SnpProduct, Timestamp};
use x509_parser::{
    certificate::X509Certificate, prelude::FromDer as _, revocation_list::CertificateRevocationList,
};

use super::{Report, SigningKey, SnpEvidence, Tcb};
use crate::verify::{FailedCheck, Refusal};

const RSASSA_PSS: &str = "1.2.840.113549.1.1.10";
/// Prefix of AMD's certificate extensions.
const AMD: &str = "1.3.6.1.4.1.3704.1";

/// Whose root counts.
pub(crate) enum Root<'a> {
    /// AMD's, built in; certificates that came along count for nothing.
    Hardware,
    /// Self-made ones that the manifest lists, by SHA-256 of their DER.
    Simulated(&'a [KeyDigest]),
}

/// A verified chain.
pub(crate) struct Chain {
    pub(crate) root: KeyDigest,
}

fn refuse<T>(check: &'static str, expected: impl ToString, found: impl ToString) -> Result<T, Refusal> {
    Err(Refusal::one(FailedCheck::new(check, expected, found)))
}

fn parse<'a>(name: &'static str, der: &'a [u8]) -> Result<X509Certificate<'a>, Refusal> {
    match X509Certificate::from_der(der) {
        Ok(([], certificate)) => Ok(certificate),
        Ok((rest, _)) => refuse(name, "one certificate", format!("{} bytes after it", rest.len())),
        Err(_) if der.is_empty() => refuse(name, "a certificate", "none"),
        Err(error) => refuse(name, "a certificate", error),
    }
}

/// AMD's certificates, signing key first, as published.
fn built_in(product: SnpProduct, key: SigningKey) -> &'static str {
    match (product, key) {
        (SnpProduct::Milan, SigningKey::Vcek) => include_str!("../../roots/ask_ark_milan.pem"),
        (SnpProduct::Milan, SigningKey::Vlek) => include_str!("../../roots/ask_ark_milan_vlek.pem"),
        (SnpProduct::Genoa, SigningKey::Vcek) => include_str!("../../roots/ask_ark_genoa.pem"),
        (SnpProduct::Genoa, SigningKey::Vlek) => include_str!("../../roots/ask_ark_genoa_vlek.pem"),
        (SnpProduct::Turin, SigningKey::Vcek) => include_str!("../../roots/ask_ark_turin_vcek.pem"),
        (SnpProduct::Turin, SigningKey::Vlek) => include_str!("../../roots/ask_ark_turin_vlek.pem"),
    }
}

impl Chain {
    /// Verifies root, signing key, report key and the report's signature.
    pub(crate) fn verify(
        evidence: &SnpEvidence,
        report: &Report,
        root: &Root<'_>,
        product: SnpProduct,
        now: Timestamp,
    ) -> Result<Self, Refusal> {
        let Some(kind) = report.signing_key() else {
            return refuse("signing key", "VCEK or VLEK", format!("{:#x}", report.u32(0x48)));
        };
        let (ask, ark) = match root {
            Root::Hardware => pem_pair(built_in(product, kind))?,
            Root::Simulated(_) => (evidence.ask.clone(), evidence.ark.clone()),
        };
        let (ark_der, vek_der) = (
            &ark,
            match kind {
                SigningKey::Vcek => &evidence.vcek,
                SigningKey::Vlek => &evidence.vlek,
            },
        );
        let digest = KeyDigest::of(ark_der);
        if let Root::Simulated(trusted) = root
            && !trusted.contains(&digest)
        {
            let trusted: Vec<String> = trusted.iter().map(ToString::to_string).collect();
            return refuse("simulated root", format!("one of {}", trusted.join(", ")), digest);
        }
        let ark = parse("root certificate", ark_der)?;
        let ask = parse("signing key certificate", &ask)?;
        let vek = parse("report key certificate", vek_der)?;
        authority(&ask, &ark)?;
        issued("report key certificate", &vek, &ask)?;
        for (name, certificate) in
            [("root certificate", &ark), ("signing key certificate", &ask), ("report key certificate", &vek)]
        {
            in_date(name, certificate, now)?;
        }
        for (name, certificate) in [("root certificate", &ark), ("signing key certificate", &ask)] {
            if !certificate.is_ca() {
                return refuse(name, "a CA certificate", "an end-entity certificate");
            }
        }
        if let Some(crl) = &evidence.crl {
            not_revoked(crl, &ask, &ark, now)?;
        }
        belongs(&vek, report, kind, product)?;
        let Some(signature) = report.signature() else {
            return refuse("report signature", "zeros in its reserved bytes", "other values");
        };
        let key = vek.public_key().subject_public_key.data.as_ref();
        UnparsedPublicKey::new(&ECDSA_P384_SHA384_FIXED, key)
            .verify(report.signed_part(), &signature)
            .or_else(|_| refuse("report signature", "made by the report key", "another"))?;
        Ok(Self { root: digest })
    }
}

fn pem_pair(pem: &str) -> Result<(Vec<u8>, Vec<u8>), Refusal> {
    let mut certificates = x509_parser::pem::Pem::iter_from_buffer(pem.as_bytes())
        .filter_map(Result::ok)
        .map(|pem| pem.contents);
    match (certificates.next(), certificates.next()) {
        (Some(ask), Some(ark)) => Ok((ask, ark)),
        _ => refuse("built-in root", "two certificates", "fewer"),
    }
}

/// Pairs of signing key and root certificate whose signatures this thread has found to hold. They
/// are the same few for every report, and RSA-4096 is two thirds of a verification's time.
const MOST_AUTHORITIES: usize = 32;
thread_local! {
    static AUTHORITIES: RefCell<Vec<[u8; 32]>> = const { RefCell::new(Vec::new()) };
}

/// Names and signatures of the root and of the signing key under it; their dates are not looked at.
fn authority(ask: &X509Certificate<'_>, ark: &X509Certificate<'_>) -> Result<(), Refusal> {
    let mut context = digest::Context::new(&SHA256);
    for certificate in [ark, ask] {
        for part in [certificate.tbs_certificate.as_ref(), certificate.signature_value.data.as_ref()] {
            context.update(&(part.len() as u64).to_be_bytes());
            context.update(part);
        }
        context.update(certificate.signature_algorithm.algorithm.as_bytes());
    }
    let mut pair = [0; 32];
    pair.copy_from_slice(context.finish().as_ref());
    if AUTHORITIES.with_borrow(|known| known.contains(&pair)) {
        return Ok(());
    }
    issued("root certificate", ark, ark)?;
    issued("signing key certificate", ask, ark)?;
    AUTHORITIES.with_borrow_mut(|known| {
        if known.len() >= MOST_AUTHORITIES {
            known.clear();
        }
        known.push(pair);
    });
    Ok(())
}

/// Name and signature of a certificate under its issuer.
fn issued(
    name: &'static str,
    certificate: &X509Certificate<'_>,
    issuer: &X509Certificate<'_>,
) -> Result<(), Refusal> {
    if certificate.issuer().as_raw() != issuer.subject().as_raw() {
        return refuse(name, format!("issued by {}", issuer.subject()), certificate.issuer());
    }
    let algorithm = certificate.signature_algorithm.algorithm.to_id_string();
    if algorithm != RSASSA_PSS {
        return refuse(name, "an RSASSA-PSS signature", algorithm);
    }
    // SHA-384 and a salt of its length are what this verification algorithm means.
    UnparsedPublicKey::new(&RSA_PSS_2048_8192_SHA384, issuer.public_key().subject_public_key.data.as_ref())
        .verify(certificate.tbs_certificate.as_ref(), certificate.signature_value.data.as_ref())
        .or_else(|_| refuse(name, format!("signed by {}", issuer.subject()), "another signature"))
}

fn in_date(name: &'static str, certificate: &X509Certificate<'_>, now: Timestamp) -> Result<(), Refusal> {
    let validity = certificate.validity();
    let at = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
    if at < validity.not_before.timestamp() || at > validity.not_after.timestamp() {
        let expected = format!("valid at {now}");
        return refuse(name, expected, format!("{} to {}", validity.not_before, validity.not_after));
    }
    Ok(())
}

/// AMD lists revoked signing keys, not chip keys: those go away by their TCB.
fn not_revoked(
    crl: &[u8],
    ask: &X509Certificate<'_>,
    ark: &X509Certificate<'_>,
    now: Timestamp,
) -> Result<(), Refusal> {
    let Ok((_, list)) = CertificateRevocationList::from_der(crl) else {
        return refuse("revocation list", "a CRL", "something else");
    };
    UnparsedPublicKey::new(&RSA_PSS_2048_8192_SHA384, ark.public_key().subject_public_key.data.as_ref())
        .verify(list.tbs_cert_list.as_ref(), list.signature_value.data.as_ref())
        .or_else(|_| refuse("revocation list", format!("signed by {}", ark.subject()), "another"))?;
    let at = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
    if list.next_update().is_some_and(|next| next.timestamp() < at) {
        return refuse("revocation list", format!("current at {now}"), "an expired one");
    }
    if list.iter_revoked_certificates().any(|revoked| revoked.raw_serial() == ask.raw_serial()) {
        return refuse("signing key certificate", "not revoked", "revoked");
    }
    Ok(())
}

/// The report key's certificate must be for this chip, these firmware versions and this kind of key.
fn belongs(
    vek: &X509Certificate<'_>,
    report: &Report,
    kind: SigningKey,
    product: SnpProduct,
) -> Result<(), Refusal> {
    let extension = |suffix: &str| {
        let oid = format!("{AMD}.{suffix}");
        vek.extensions().iter().find(|e| e.oid.to_id_string() == oid).map(|e| e.value)
    };
    let version = |suffix: &str| match extension(suffix) {
        Some([2, 1, value] | [2, 2, 0, value]) => Some(*value),
        _ => None,
    };
    let certified = (|| {
        Some(Tcb {
            fmc: if product == SnpProduct::Turin { Some(version("3.9")?) } else { None },
            bootloader: version("3.1")?,
            tee: version("3.2")?,
            snp: version("3.3")?,
            microcode: version("3.8")?,
        })
    })();
    let reported = Tcb::from_report(report.bytes(0x180), product);
    match certified {
        Some(certified) if certified == reported => {}
        Some(certified) => return refuse("reported TCB", format!("as certified: {certified}"), reported),
        None => return refuse("report key certificate", "TCB versions", "none"),
    }
    let chip_id = report.chip_id();
    let masked = report.masks_chip_id() && chip_id == [0; 64];
    match (kind, extension("4")) {
        (SigningKey::Vlek, None) => Ok(()),
        (SigningKey::Vlek, Some(_)) => refuse("report key certificate", "no chip id in a VLEK", "one"),
        (SigningKey::Vcek, Some(_)) if masked => Ok(()),
        (SigningKey::Vcek, Some(id)) if matches_chip(id, &chip_id) => Ok(()),
        (SigningKey::Vcek, id) => {
            let expected = id.map_or("a chip id in the VCEK".into(), hex::encode);
            refuse("chip id", expected, hex::encode(chip_id))
        }
    }
}

/// Turin's certificates carry eight bytes, and the report pads them with zeros.
fn matches_chip(certified: &[u8], chip_id: &[u8; 64]) -> bool {
    matches!(certified.len(), 8 | 64)
        && chip_id.starts_with(certified)
        && chip_id[certified.len()..].iter().all(|byte| *byte == 0)
}
