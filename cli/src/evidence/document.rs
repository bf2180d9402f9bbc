//! Evidence from wherever a user has it: a raw report or quote, the document of a handshake, a
//! certificate, the log of a refused pod, an exported event.

use std::{collections::HashMap, io::Read as _, path::Path};

use anyhow::{Context as _, bail};
use attestation::{Evidence, EvidenceOid, Platform, ReportData, SnpEvidence, TdxEvidence};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use manifest::{SerialNumber, Timestamp};
use regex::bytes::Regex;
use serde::Deserialize;
use serde_json::Value;
use storage_schema::export::{Line, base64};
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// Largest file that is looked at, in bytes.
const MAX_BYTES: u64 = 1 << 30;
const REPORT_BYTES: usize = 1184;

/// Evidence, and what is known of its circumstances.
pub(crate) struct Document {
    pub(crate) evidence: Evidence,
    /// What it must be bound to.
    pub(crate) expected: Option<ReportData>,
    /// When it was judged.
    pub(crate) at: Option<Timestamp>,
    /// What the file was.
    pub(crate) origin: String,
}

impl Document {
    fn bare(evidence: Evidence, origin: impl Into<String>) -> Self {
        Self { evidence, expected: None, at: None, origin: origin.into() }
    }

    /// Reads a file, or standard input for `-`, see [`Self::of`].
    pub(crate) fn read(path: &Path, serial: Option<SerialNumber>) -> anyhow::Result<Self> {
        Self::of(path, &read_all(path)?, serial)
    }

    /// What a file of this name holds. Of an export the event with this serial number, else the last certificate.
    pub(crate) fn of(path: &Path, bytes: &[u8], serial: Option<SerialNumber>) -> anyhow::Result<Self> {
        Self::detect(bytes, serial).with_context(|| path.display().to_string())
    }

    fn detect(bytes: &[u8], serial: Option<SerialNumber>) -> anyhow::Result<Self> {
        if bytes.starts_with(br#"{"type":"export""#) {
            return from_export(bytes, serial);
        }
        if bytes.len() == REPORT_BYTES {
            let evidence = SnpEvidence { report: bytes.to_vec(), ..SnpEvidence::default() };
            let evidence = Evidence { oid: EvidenceOid::Snp, document: evidence.to_protobuf()? };
            return Ok(Self::bare(evidence, "a raw SEV-SNP report"));
        }
        if matches!(bytes.get(..8), Some([4 | 5, 0, 2, 0, 0x81, 0, 0, 0])) {
            let evidence = TdxEvidence { quote: bytes.to_vec(), collateral: None };
            let evidence = Evidence { oid: EvidenceOid::Tdx, document: evidence.to_protobuf()? };
            return Ok(Self::bare(evidence, "a raw TDX quote"));
        }
        if let Some(der) = certificate(bytes) {
            return from_certificate(&der);
        }
        if let Some(document) = from_log(bytes) {
            return Ok(document);
        }
        let is = |oid| Evidence { oid, document: bytes.to_vec() };
        let candidates = [
            (EvidenceOid::Snp, SnpEvidence::from_protobuf(bytes).is_ok(), "a sevsnp.Attestation"),
            (EvidenceOid::Tdx, TdxEvidence::from_protobuf(bytes).is_ok(), "a tdx.Quote"),
            (
                EvidenceOid::Insecure,
                attestation::describe(&is(EvidenceOid::Insecure)).is_ok(),
                "unsigned JSON",
            ),
        ];
        match candidates.into_iter().find(|(_, fits, _)| *fits) {
            Some((oid, _, origin)) => Ok(Self::bare(is(oid), origin)),
            None => bail!(
                "no evidence found: expected a raw report or quote, a protobuf document, a certificate with \
                 evidence, the log of a refused initializer, or an export of `contrast audit export`"
            ),
        }
    }
}

/// All of a file; `-` is standard input.
pub(crate) fn read_all(path: &Path) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let read = if path == Path::new("-") {
        std::io::stdin().lock().take(MAX_BYTES).read_to_end(&mut bytes)
    } else {
        std::fs::File::open(path).and_then(|file| file.take(MAX_BYTES).read_to_end(&mut bytes))
    };
    read.with_context(|| format!("cannot read {}", path.display()))?;
    Ok(bytes)
}

/// The first certificate, if the bytes are PEM or DER of one.
pub(crate) fn certificate(bytes: &[u8]) -> Option<Vec<u8>> {
    if X509Certificate::from_der(bytes).is_ok() {
        return Some(bytes.to_vec());
    }
    // Logs and quotes contain PEM too, further on.
    if !bytes.trim_ascii_start().starts_with(b"-----BEGIN CERTIFICATE-----") {
        return None;
    }
    let pem = x509_parser::pem::Pem::iter_from_buffer(bytes).next()?.ok()?;
    (pem.label == "CERTIFICATE").then_some(pem.contents)
}

fn from_certificate(der: &[u8]) -> anyhow::Result<Document> {
    let (_, certificate) = X509Certificate::from_der(der)?;
    for oid in EvidenceOid::ALL {
        let name: Vec<String> = oid.components().iter().map(ToString::to_string).collect();
        let name = name.join(".");
        if let Some(extension) = certificate.extensions().iter().find(|e| e.oid.to_id_string() == name) {
            let evidence = Evidence { oid, document: extension.value.to_vec() };
            return Ok(Document::bare(evidence, "a certificate of an attested handshake"));
        }
    }
    bail!("this certificate carries no evidence; `contrast inspect` shows what it says")
}

/// The last evidence that an initializer logged, in text or in JSON.
fn from_log(bytes: &[u8]) -> Option<Document> {
    let pattern = Regex::new(
        r#"kind"?[=:] ?"?\\?"?(Snp|Tdx|Insecure)\\?"?.*?evidence"?[=:] ?"?\\?"?([A-Za-z0-9+/=]{40,})"#,
    );
    // A log from a terminal is coloured, between a field's name and its value too.
    let bytes = Regex::new("\x1b\\[[0-9;]*m").ok()?.replace_all(bytes, b"".as_slice());
    let found = pattern.ok()?.captures_iter(&bytes).last()?;
    let oid = match &found[1] {
        b"Snp" => EvidenceOid::Snp,
        b"Tdx" => EvidenceOid::Tdx,
        _ => EvidenceOid::Insecure,
    };
    let document = STANDARD.decode(&found[2]).ok()?;
    Some(Document::bare(Evidence { oid, document }, "the log of a refused pod"))
}

/// What an exported event says of a certificate, for the reader. It need not be genuine: the evidence
/// is judged once more, and `contrast audit verify` tells whether the log says so.
#[derive(Deserialize)]
struct Issued {
    serial: SerialNumber,
    certificate: String,
    evidence: String,
    nonce: Value,
    platform: String,
}

fn from_export(bytes: &[u8], serial: Option<SerialNumber>) -> anyhow::Result<Document> {
    let mut blobs: HashMap<String, String> = HashMap::new();
    let mut found = None;
    for (number, line) in (1..).zip(bytes.split(|byte| *byte == b'\n')) {
        if line.is_empty() {
            continue;
        }
        match Line::parse(line, number).map_err(|why| anyhow::anyhow!("line {number}: {why}"))? {
            Line::Blob { hash, content } => drop(blobs.insert(hash, content)),
            Line::Event { mut readable, .. } if readable.get("kind") == Some(&"CertificateIssued".into()) => {
                let fact = readable.remove("fact").unwrap_or_default();
                let issued: Issued =
                    serde_json::from_value(fact).with_context(|| format!("line {number}"))?;
                if serial.is_none_or(|wanted| wanted == issued.serial) {
                    let at = readable.get("at").and_then(Value::as_str).unwrap_or_default();
                    found = Some((issued, at.parse().with_context(|| format!("line {number}"))?));
                }
            }
            _ => {}
        }
    }
    let Some((issued, at)) = found else {
        bail!(
            "the export holds no certificate{}",
            serial.map_or(String::new(), |s| format!(" with serial {s}"))
        );
    };
    let Issued { serial, certificate, evidence, nonce, platform } = issued;
    let content = blobs.get(&evidence);
    let content =
        content.with_context(|| format!("the evidence of certificate {serial} is not in the export"))?;
    let bytes = |text: &str| base64(text).map_err(anyhow::Error::msg);
    let platform = Platform::ALL.into_iter().find(|known| known.to_string() == platform);
    let oid = platform.context("its platform is not known")?.evidence_oid();
    let certificate = bytes(&certificate)?;
    let (_, certificate) = X509Certificate::from_der(&certificate)?;
    let nonce = nonce.as_str().with_context(|| format!("the event of certificate {serial} has no nonce"))?;
    Ok(Document {
        evidence: Evidence { oid, document: bytes(content)? },
        expected: Some(ReportData::bind(certificate.public_key().raw, &bytes(nonce)?)),
        at: Some(at),
        origin: format!("the event of certificate {serial}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn evidence_is_found_in_logs_of_both_forms() {
        let document = "QUJD".repeat(20);
        let text =
            format!("2026 INFO initializer: for `contrast explain` kind=\"Snp\" evidence=\"{document}\"\n");
        let json = format!(r#"{{"fields":{{"message":"m","kind":"Tdx","evidence":"{document}"}}}}"#);
        let coloured = format!(
            "\x1b[3mkind\x1b[0m\x1b[2m=\x1b[0m\"Snp\" \x1b[3mevidence\x1b[0m\x1b[2m=\x1b[0m\"{document}\""
        );
        for (log, oid) in [(text, EvidenceOid::Snp), (json, EvidenceOid::Tdx), (coloured, EvidenceOid::Snp)] {
            let found = Document::detect(log.as_bytes(), None).unwrap();
            assert_eq!((found.evidence.oid, found.evidence.document), (oid, b"ABC".repeat(20)));
        }
    }

    #[test]
    fn what_is_no_evidence_says_what_would_be() {
        for bytes in [b"".as_slice(), b"\xff\xfe nonsense", &[0; 100]] {
            let error = Document::detect(bytes, None).err().unwrap().to_string();
            assert!(error.contains("expected a raw report or quote"), "{error}");
        }
    }
}
