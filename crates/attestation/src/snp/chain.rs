//! The chain of certificates: root (ARK), signing key (ASK, or ASVK for provider keys), and the
//! key that signed the report (VCEK, VLEK). Checked over the bytes as received.

use std::{cell::RefCell, thread::LocalKey};

use aws_lc_rs::{
    digest::{self, SHA256},
    signature::{ECDSA_P384_SHA384_FIXED, RSA_PSS_2048_8192_SHA384, UnparsedPublicKey},
};
use manifest::{KeyDigest, Revocation, SnpProduct, Timestamp};
use x509_parser::{
    certificate::X509Certificate, prelude::FromDer as _, revocation_list::CertificateRevocationList,
};

use super::{Report, SigningKey, SnpEvidence, Tcb, report::place};
use crate::{
    VcekId, VlekId,
    checklist::{Checklist, Stop},
};

const RSASSA_PSS: &str = "1.2.840.113549.1.1.10";
/// Prefix of AMD's certificate extensions.
const AMD: &str = "1.3.6.1.4.1.3704.1";

pub(super) const ROOT: &str = "root certificate";
const SIGNER: &str = "signing key certificate";
const LEAF: &str = "report key certificate";
const LIST: &str = "revocation list";

/// Whose root counts.
pub(crate) enum Root<'a> {
    /// AMD's, built in; certificates that came along count for nothing.
    Hardware,
    /// Self-made ones that the manifest lists, by SHA-256 of their DER.
    Simulated(&'a [KeyDigest]),
}

/// How certificates are judged: the time, and what the manifest says of revocation.
#[derive(Clone, Copy)]
pub(crate) struct Terms {
    pub(crate) now: Timestamp,
    pub(crate) revocation: Revocation,
    /// How long an expired revocation list counts, in seconds.
    pub(crate) grace: u32,
}

/// Verifies root, signing key, report key and the report's signature; gives the root's digest.
pub(crate) fn verify(
    evidence: &SnpEvidence,
    report: &Report,
    root: &Root<'_>,
    product: SnpProduct,
    terms: Terms,
    list: &mut Checklist,
) -> Result<KeyDigest, Stop> {
    let Some(kind) = report.signing_key() else {
        return list.fail("signing key", "VCEK or VLEK", format!("{:#x}", report.u32(place::KEY_INFO)));
    };
    let (ask, ark) = match root {
        Root::Hardware => built_in(product, kind).unwrap_or_default(),
        Root::Simulated(_) => (evidence.ask.clone(), evidence.ark.clone()),
    };
    let vek = match kind {
        SigningKey::Vcek => &evidence.vcek,
        SigningKey::Vlek => &evidence.vlek,
    };
    let digest = KeyDigest::of(&ark);
    match root {
        Root::Hardware => list.note(ROOT, true, format!("AMD's for {product:?}"), digest),
        Root::Simulated(trusted) => {
            let names: Vec<String> = trusted.iter().map(ToString::to_string).collect();
            let expected = format!("one of {}", names.join(", "));
            list.demand("simulated root", trusted.contains(&digest), expected, digest)?;
        }
    }
    let ark = parse(ROOT, &ark, list)?;
    let ask = parse(SIGNER, &ask, list)?;
    if vek.is_empty() {
        return list.fail(LEAF, missing(kind), "none");
    }
    let vek = parse(LEAF, vek, list)?;
    authority(&ask, &ark, list)?;
    leaf(&vek, &ask, list)?;
    // None of these hides another: they are all looked at, and so is what the manifest says.
    for (name, certificate) in [(ROOT, &ark), (SIGNER, &ask), (LEAF, &vek)] {
        in_date(name, certificate, terms.now, list);
    }
    for (name, certificate) in [(ROOT, &ark), (SIGNER, &ask)] {
        let may_sign = certificate.is_ca()
            && certificate.key_usage().ok().flatten().is_none_or(|usage| usage.value.key_cert_sign());
        list.note(name, may_sign, "a certificate authority", ca_text(may_sign));
    }
    // Each adds to the list why it stopped.
    let _ = not_revoked(evidence.crl.as_deref(), &ask, &ark, terms, list);
    let _ = belongs(&vek, report, kind, product, list);
    let Some(signature) = report.signature() else {
        return list.fail("report signature", "zeros in its reserved bytes", "other values");
    };
    let genuine = has_signed(&vek, report, &signature);
    list.demand("report signature", genuine, "made by the report key", signature_text(genuine))?;
    Ok(digest)
}

/// Who has the certificate that is missing.
fn missing(kind: SigningKey) -> &'static str {
    match kind {
        SigningKey::Vcek => "the chip's certificate (VCEK), with the evidence or cached",
        SigningKey::Vlek => {
            "the provider's certificate (VLEK), with the evidence or cached; its hosts hand it to their guests"
        }
    }
}

fn has_signed(certificate: &X509Certificate<'_>, report: &Report, signature: &[u8; 96]) -> bool {
    let key = certificate.public_key().subject_public_key.data.as_ref();
    UnparsedPublicKey::new(&ECDSA_P384_SHA384_FIXED, key).verify(report.signed_part(), signature).is_ok()
}

/// Whether the key of a certificate signed a report. Who signed the certificate is not looked at.
pub(crate) fn signs(der: &[u8], report: &Report) -> bool {
    match (X509Certificate::from_der(der), report.signature()) {
        (Ok(([], certificate)), Some(signature)) => has_signed(&certificate, report, &signature),
        _ => false,
    }
}

fn ca_text(holds: bool) -> &'static str {
    if holds { "it is one" } else { "an end-entity certificate" }
}

fn signature_text(holds: bool) -> &'static str {
    if holds { "its signature holds" } else { "another signature" }
}

fn parse<'a>(name: &'static str, der: &'a [u8], list: &mut Checklist) -> Result<X509Certificate<'a>, Stop> {
    match X509Certificate::from_der(der) {
        Ok(([], certificate)) => Ok(certificate),
        Ok((rest, _)) => list.fail(name, "one certificate", format!("{} bytes after it", rest.len())),
        Err(_) if der.is_empty() => list.fail(name, "a certificate, with the evidence", "none"),
        Err(error) => list.fail(name, "a certificate", format!("{} other bytes ({error})", der.len())),
    }
}

/// AMD's certificates of a product, DER: the signing keys for chips and for providers, and the root.
#[derive(Clone)]
pub(crate) struct AmdKeys {
    pub(crate) ask: Vec<u8>,
    pub(crate) asvk: Vec<u8>,
    pub(crate) ark: Vec<u8>,
}

impl AmdKeys {
    /// Of Milan, Genoa and Turin.
    pub(crate) fn built_in() -> [Self; 3] {
        [SnpProduct::Milan, SnpProduct::Genoa, SnpProduct::Turin].map(|product| {
            let (ask, ark) = built_in(product, SigningKey::Vcek).unwrap_or_default();
            let (asvk, _) = built_in(product, SigningKey::Vlek).unwrap_or_default();
            Self { ask, asvk, ark }
        })
    }
}

/// AMD's certificates as published: signing key and root. A test reads each pair.
fn built_in(product: SnpProduct, key: SigningKey) -> Option<(Vec<u8>, Vec<u8>)> {
    let pem = match (product, key) {
        (SnpProduct::Milan, SigningKey::Vcek) => include_str!("../../roots/ask_ark_milan.pem"),
        (SnpProduct::Milan, SigningKey::Vlek) => include_str!("../../roots/ask_ark_milan_vlek.pem"),
        (SnpProduct::Genoa, SigningKey::Vcek) => include_str!("../../roots/ask_ark_genoa.pem"),
        (SnpProduct::Genoa, SigningKey::Vlek) => include_str!("../../roots/ask_ark_genoa_vlek.pem"),
        (SnpProduct::Turin, SigningKey::Vcek) => include_str!("../../roots/ask_ark_turin_vcek.pem"),
        (SnpProduct::Turin, SigningKey::Vlek) => include_str!("../../roots/ask_ark_turin_vlek.pem"),
    };
    let mut certificates = x509_parser::pem::Pem::iter_from_buffer(pem.as_bytes())
        .filter_map(Result::ok)
        .map(|pem| pem.contents);
    Some((certificates.next()?, certificates.next()?))
}

/// Signatures that a thread has found to hold, by the hash of what was compared: it need not look
/// again, and an RSA-4096 signature is what a verification spends its time on.
type Held = RefCell<Vec<[u8; 32]>>;
/// Most signatures of one kind that are remembered.
const MOST_HELD: usize = 32;
thread_local! {
    /// Roots, signing keys under them, and their revocation lists: the same few for every report.
    static AUTHORITIES: Held = const { RefCell::new(Vec::new()) };
    /// Keys of reports under signing keys: one for each machine of a deployment.
    static LEAVES: Held = const { RefCell::new(Vec::new()) };
    /// Whole chains under other roots than AMD's.
    static FOREIGN: Held = const { RefCell::new(Vec::new()) };
}

/// Runs `check` unless this thread has seen it hold for the same signed bytes.
fn once<'a>(
    held: &'static LocalKey<Held>,
    parts: impl IntoIterator<Item = &'a [u8]>,
    check: impl FnOnce() -> Result<(), Stop>,
) -> Result<(), Stop> {
    let mut context = digest::Context::new(&SHA256);
    for part in parts {
        context.update(&(part.len() as u64).to_be_bytes());
        context.update(part);
    }
    let mut key = [0; 32];
    key.copy_from_slice(context.finish().as_ref());
    if held.with_borrow(|known| known.contains(&key)) {
        return Ok(());
    }
    check()?;
    held.with_borrow_mut(|known| {
        if known.len() >= MOST_HELD {
            known.clear();
        }
        known.push(key);
    });
    Ok(())
}

/// What a signature on a certificate is made of.
fn signed_parts<'a>(certificate: &'a X509Certificate<'_>) -> [&'a [u8]; 3] {
    [
        certificate.tbs_certificate.as_ref(),
        certificate.signature_value.data.as_ref(),
        certificate.signature_algorithm.algorithm.as_bytes(),
    ]
}

/// Names and signatures of the root and of the signing key under it; their dates are not looked at.
fn authority(ask: &X509Certificate<'_>, ark: &X509Certificate<'_>, list: &mut Checklist) -> Result<(), Stop> {
    once(&AUTHORITIES, [ark, ask].into_iter().flat_map(signed_parts), || {
        issued(ROOT, ark, ark, list)?;
        issued(SIGNER, ask, ark, list)
    })
}

/// Name and signature of a report's key under its signing key; its dates are not looked at.
fn leaf(vek: &X509Certificate<'_>, ask: &X509Certificate<'_>, list: &mut Checklist) -> Result<(), Stop> {
    let issuer = [ask.subject().as_raw(), ask.public_key().raw];
    once(&LEAVES, issuer.into_iter().chain(signed_parts(vek)), || issued(LEAF, vek, ask, list))
}

/// Whether the certificates that came along are a whole chain under a root that is none of AMD's: then
/// nothing that AMD signed can complete them, and nobody need be asked for it.
pub(crate) fn is_foreign(evidence: &SnpEvidence, keys: &[AmdKeys]) -> bool {
    let SnpEvidence { ark, ask, vcek, vlek, .. } = evidence;
    if keys.iter().any(|keys| keys.ark == *ark) {
        return false;
    }
    let vek = if vcek.is_empty() { vlek } else { vcek };
    let whole = || {
        let mut list = Checklist::default();
        let list = &mut list;
        let (ark, ask, vek) = (parse(ROOT, ark, list)?, parse(SIGNER, ask, list)?, parse(LEAF, vek, list)?);
        issued(ROOT, &ark, &ark, list)?;
        issued(SIGNER, &ask, &ark, list)?;
        issued(LEAF, &vek, &ask, list)
    };
    once(&FOREIGN, [ark, ask, vek].map(Vec::as_slice), whole).is_ok()
}

/// Name and signature of a certificate under its issuer.
fn issued(
    name: &'static str,
    certificate: &X509Certificate<'_>,
    issuer: &X509Certificate<'_>,
    list: &mut Checklist,
) -> Result<(), Stop> {
    if certificate.issuer().as_raw() != issuer.subject().as_raw() {
        return list.fail(name, format!("issued by {}", issuer.subject()), certificate.issuer());
    }
    let algorithm = &certificate.signature_algorithm;
    // The outer one is not signed, so it must repeat the inner one (RFC 5280, 4.1.1.2).
    if algorithm.algorithm.to_id_string() != RSASSA_PSS || *algorithm != certificate.tbs_certificate.signature
    {
        return list.fail(name, "an RSASSA-PSS signature", algorithm.algorithm.to_id_string());
    }
    let genuine = is_signed(certificate.tbs_certificate.as_ref(), &certificate.signature_value.data, issuer);
    let expected = format!("signed by {}", issuer.subject());
    list.demand(name, genuine, expected, signature_text(genuine))
}

/// SHA-384 and a salt of its length are what this verification algorithm means.
fn is_signed(signed: &[u8], signature: &[u8], issuer: &X509Certificate<'_>) -> bool {
    let key = issuer.public_key().subject_public_key.data.as_ref();
    UnparsedPublicKey::new(&RSA_PSS_2048_8192_SHA384, key).verify(signed, signature).is_ok()
}

fn in_date(name: &'static str, certificate: &X509Certificate<'_>, now: Timestamp, list: &mut Checklist) {
    let validity = certificate.validity();
    let at = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
    let holds = at >= validity.not_before.timestamp() && at <= validity.not_after.timestamp();
    let found = format!("{} to {}", validity.not_before, validity.not_after);
    list.note(name, holds, format!("valid at {now}"), found);
}

/// A revocation list that its root signed. What it says is not looked at.
pub(crate) struct Crl<'a> {
    list: CertificateRevocationList<'a>,
}

impl<'a> Crl<'a> {
    fn verify(der: &'a [u8], ark: &X509Certificate<'_>, checks: &mut Checklist) -> Result<Self, Stop> {
        let Ok(([], list)) = CertificateRevocationList::from_der(der) else {
            return checks.fail(LIST, "a CRL in DER", format!("{} other bytes", der.len()));
        };
        if list.issuer().as_raw() != ark.subject().as_raw() {
            return checks.fail(LIST, format!("issued by {}", ark.subject()), list.issuer());
        }
        let (signed, signature) = (list.tbs_cert_list.as_ref(), list.signature_value.data.as_ref());
        let spki = ark.public_key().raw;
        once(&AUTHORITIES, [spki, signed, signature], || {
            let genuine = is_signed(signed, signature, ark);
            checks.demand(LIST, genuine, format!("signed by {}", ark.subject()), signature_text(genuine))
        })?;
        Ok(Self { list })
    }
}

/// What may be known of a revocation list without trusting its sender.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CrlDates {
    /// Its number, which grows from list to list (RFC 5280, 5.2.3); 0 if it has none.
    pub number: u64,
    /// When it was made.
    pub this_update: Timestamp,
    /// When the next one is due.
    pub next_update: Timestamp,
}

impl CrlDates {
    pub(crate) fn of(list: &CertificateRevocationList<'_>) -> Self {
        let at = |seconds: i64| Timestamp::from_millis(u64::try_from(seconds).unwrap_or(0) * 1000);
        // A number of more than 64 bits counts by its last ones; AMD's and Intel's are small.
        let number =
            list.crl_number().map_or(0, |number| number.to_u64_digits().first().copied().unwrap_or(0));
        let this_update = at(list.last_update().timestamp());
        let next_update = list.next_update().map_or(this_update, |next| at(next.timestamp()));
        Self { number, this_update, next_update }
    }
}

/// Verifies that a root signed a revocation list.
pub(crate) fn verify_crl(der: &[u8], keys: &AmdKeys, list: &mut Checklist) -> Result<CrlDates, Stop> {
    let ark = parse(ROOT, &keys.ark, list)?;
    Ok(CrlDates::of(&Crl::verify(der, &ark, list)?.list))
}

/// Verifies that a signing key signed the certificate of a chip's key, and says which chip's, at which
/// state of its firmware. Dates are not looked at.
pub(crate) fn identify_vcek(
    der: &[u8],
    product: SnpProduct,
    keys: &AmdKeys,
    list: &mut Checklist,
) -> Result<VcekId, Stop> {
    let vcek = certified(der, &keys.ask, keys, list)?;
    let tcb = certified_tcb(&vcek, product, list)?;
    match amd_extension(&vcek, "4") {
        Some(chip) if matches!(chip.len(), 8 | 64) => Ok(VcekId { product, chip: chip.to_vec(), tcb }),
        _ => list.fail(LEAF, "a chip id of 8 or 64 bytes", "none"),
    }
}

/// The same for a provider's key, which is of no chip.
pub(crate) fn identify_vlek(
    der: &[u8],
    product: SnpProduct,
    keys: &AmdKeys,
    list: &mut Checklist,
) -> Result<VlekId, Stop> {
    let vlek = certified(der, &keys.asvk, keys, list)?;
    let tcb = certified_tcb(&vlek, product, list)?;
    if amd_extension(&vlek, "4").is_some() {
        return list.fail(LEAF, "no chip id in a VLEK", "one");
    }
    let mut certificate = [0; 16];
    certificate.copy_from_slice(&digest::digest(&SHA256, der).as_ref()[..16]);
    Ok(VlekId { product, certificate, tcb })
}

/// A certificate that a signing key of AMD's signed.
fn certified<'a>(
    der: &'a [u8],
    signer: &[u8],
    keys: &AmdKeys,
    list: &mut Checklist,
) -> Result<X509Certificate<'a>, Stop> {
    let (ark, ask) = (parse(ROOT, &keys.ark, list)?, parse(SIGNER, signer, list)?);
    let vek = parse(LEAF, der, list)?;
    authority(&ask, &ark, list)?;
    leaf(&vek, &ask, list)?;
    Ok(vek)
}

/// Verifies that a signing key signed the certificate of this chip's key at this firmware.
pub(crate) fn verify_vcek(der: &[u8], id: &VcekId, keys: &AmdKeys, list: &mut Checklist) -> Result<(), Stop> {
    let found = identify_vcek(der, id.product, keys, list)?;
    list.demand("certified chip and firmware", found == *id, id, &found)
}

/// Verifies that a signing key signed this certificate of a provider's key.
pub(crate) fn verify_vlek(der: &[u8], id: &VlekId, keys: &AmdKeys, list: &mut Checklist) -> Result<(), Stop> {
    let found = identify_vlek(der, id.product, keys, list)?;
    list.demand("certified provider's key and firmware", found == *id, id, &found)
}

/// AMD lists revoked signing keys, not chip keys: those go away by their TCB.
fn not_revoked(
    crl: Option<&[u8]>,
    ask: &X509Certificate<'_>,
    ark: &X509Certificate<'_>,
    terms: Terms,
    checks: &mut Checklist,
) -> Result<(), Stop> {
    let Some(crl) = crl else {
        return match terms.revocation {
            Revocation::Required => {
                checks.fail(LIST, "one, with the evidence or cached", "none; see `contrast endorsements`")
            }
            Revocation::WhenPresent => {
                checks.note(LIST, true, "none needed (the manifest says when-present)", "none");
                Ok(())
            }
        };
    };
    let crl = Crl::verify(crl, ark, checks)?;
    let dates = CrlDates::of(&crl.list);
    let end = dates.next_update.plus(std::time::Duration::from_secs(terms.grace.into()));
    let mut expected = format!("current at {}", terms.now);
    if terms.grace > 0 {
        expected += &format!(", with a grace of {} s", terms.grace);
    }
    let found = format!("number {}, {} to {}", dates.number, dates.this_update, dates.next_update);
    let current = (dates.this_update..=end).contains(&terms.now);
    checks.demand(LIST, current, expected, found)?;
    let revoked =
        crl.list.iter_revoked_certificates().any(|revoked| revoked.raw_serial() == ask.raw_serial());
    checks.demand(SIGNER, !revoked, "not revoked", if revoked { "revoked" } else { "not revoked" })
}

/// The report key's certificate must be for this chip, these firmware versions and this kind of key.
fn belongs(
    vek: &X509Certificate<'_>,
    report: &Report,
    kind: SigningKey,
    product: SnpProduct,
    list: &mut Checklist,
) -> Result<(), Stop> {
    let reported = report.tcb(place::REPORTED_TCB, product);
    let certified = certified_tcb(vek, product, list)?;
    list.note("reported TCB", certified == reported, format!("as certified: {certified}"), reported);
    let chip_id = report.get(place::CHIP_ID);
    match (kind, amd_extension(vek, "4")) {
        (SigningKey::Vlek, None) => Ok(()),
        (SigningKey::Vlek, Some(_)) => list.fail(LEAF, "no chip id in a VLEK", "one"),
        (SigningKey::Vcek, None) => list.fail(LEAF, "a chip id in a VCEK", "none"),
        // Firmware set to MaskChipId leaves the field zero; the key still belongs to one chip.
        (SigningKey::Vcek, Some(id)) => {
            let holds = chip_id == [0; 64] || matches_chip(id, &chip_id);
            list.demand("chip id", holds, format!("as certified: {}", hex::encode(id)), hex::encode(chip_id))
        }
    }
}

/// Value of one of AMD's extensions.
fn amd_extension<'a>(certificate: &'a X509Certificate<'_>, suffix: &str) -> Option<&'a [u8]> {
    // By number: making texts of all of a certificate's identifiers was a fifth of what a verification allocates.
    let wanted = || AMD.split('.').chain(suffix.split('.')).map(|arc| arc.parse::<u64>().ok());
    let is_it =
        |oid: &x509_parser::der_parser::Oid<'_>| oid.iter().is_some_and(|arcs| arcs.map(Some).eq(wanted()));
    certificate.extensions().iter().find(|extension| is_it(&extension.oid)).map(|extension| extension.value)
}

/// The firmware that a certificate is for.
fn certified_tcb(
    certificate: &X509Certificate<'_>,
    product: SnpProduct,
    list: &mut Checklist,
) -> Result<Tcb, Stop> {
    let version = |suffix: &str| match amd_extension(certificate, suffix) {
        Some([2, 1, value] | [2, 2, 0, value]) => Some(*value),
        _ => None,
    };
    let tcb = || {
        Some(Tcb {
            fmc: if product == SnpProduct::Turin { Some(version("3.9")?) } else { None },
            bootloader: version("3.1")?,
            tee: version("3.2")?,
            snp: version("3.3")?,
            microcode: version("3.8")?,
        })
    };
    match tcb() {
        Some(tcb) => Ok(tcb),
        None => list.fail(LEAF, format!("the TCB versions of {product:?}"), "not all of them"),
    }
}

/// Turin's certificates carry eight bytes, and the report pads them with zeros.
fn matches_chip(certified: &[u8], chip_id: &[u8; 64]) -> bool {
    matches!(certified.len(), 8 | 64)
        && chip_id.starts_with(certified)
        && chip_id[certified.len()..].iter().all(|byte| *byte == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_built_in_pair_is_a_root_and_a_key_under_it() {
        for product in [SnpProduct::Milan, SnpProduct::Genoa, SnpProduct::Turin] {
            for kind in [SigningKey::Vcek, SigningKey::Vlek] {
                let (ask, ark) = built_in(product, kind).unwrap();
                let mut list = Checklist::default();
                let (ask, ark) =
                    (parse(SIGNER, &ask, &mut list).unwrap(), parse(ROOT, &ark, &mut list).unwrap());
                assert_eq!(authority(&ask, &ark, &mut list), Ok(()), "{product:?}, {kind:?}");
            }
        }
    }
}
