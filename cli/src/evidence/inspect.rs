//! `contrast inspect`.

use std::{fmt::Write as _, path::PathBuf};

use anyhow::Context as _;
use attestation::{Field, TdxCollateral, describe};
use serde::Serialize;
use x509_parser::{
    extensions::ParsedExtension,
    prelude::{FromDer as _, X509Certificate},
    revocation_list::CertificateRevocationList,
};

use super::document::{Document, certificate, read_all};
use crate::printer::Printer;

/// Show what a report, quote, certificate, revocation list or collateral says. Verifies nothing.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The file; `-` reads standard input.
    file: PathBuf,
}

#[derive(Serialize)]
struct Inspection {
    kind: String,
    fields: Vec<Shown>,
}

#[derive(Serialize)]
struct Shown {
    name: String,
    value: String,
}

fn shown(name: impl Into<String>, value: impl ToString) -> Shown {
    Shown { name: name.into(), value: value.to_string() }
}

pub(crate) fn run(args: &Args, printer: &Printer) -> anyhow::Result<()> {
    let bytes = read_all(&args.file)?;
    let inspection = inspect(&args.file, &bytes).with_context(|| args.file.display().to_string())?;
    let width = inspection.fields.iter().map(|field| field.name.len()).max().unwrap_or_default();
    let mut text = format!("{} (nothing here was verified)\n", inspection.kind);
    for Shown { name, value } in &inspection.fields {
        let _ = writeln!(text, "  {name:width$}  {value}");
    }
    printer.result(&text, &inspection)
}

fn inspect(path: &std::path::Path, bytes: &[u8]) -> anyhow::Result<Inspection> {
    if let Some(der) = certificate(bytes) {
        return certificate_fields(&der);
    }
    if let Ok(([], list)) = CertificateRevocationList::from_der(bytes) {
        return Ok(revocation_list(&list));
    }
    if let Ok(collateral) = TdxCollateral::from_json(bytes) {
        let dates = collateral.dates()?;
        let number = |crl: attestation::CrlDates| {
            format!("number {}, {} to {}", crl.number, crl.this_update, crl.next_update)
        };
        let fields = vec![
            shown("platforms (FMSPC)", &dates.fmspc),
            shown("TCB evaluation number", dates.evaluation_number),
            shown("root revocation list", number(dates.root_crl)),
            shown("platform revocation list", number(dates.pck_crl)),
            shown("counts from", dates.newest),
            shown("expires", dates.next_update),
        ];
        return Ok(Inspection { kind: "Collateral of Intel TDX".into(), fields });
    }
    let document = Document::read(path, None)?;
    let fields = describe(&document.evidence).map_err(anyhow::Error::msg)?;
    let fields = fields.into_iter().map(|Field { name, value }| shown(name, value)).collect();
    Ok(Inspection { kind: document.origin, fields })
}

fn revocation_list(list: &CertificateRevocationList<'_>) -> Inspection {
    let mut fields = vec![
        shown("issuer", list.issuer()),
        shown("number", list.crl_number().map_or("none".into(), ToString::to_string)),
        shown("made", list.last_update()),
        shown("next", list.next_update().map_or("not said".into(), |at| at.to_string())),
    ];
    let mut revoked = list.iter_revoked_certificates().peekable();
    if revoked.peek().is_none() {
        fields.push(shown("revoked", "nothing"));
    }
    fields.extend(revoked.map(|entry| {
        shown("revoked", format!("{}, at {}", hex::encode(entry.raw_serial()), entry.revocation_date))
    }));
    Inspection { kind: "Certificate revocation list".into(), fields }
}

/// Names of the extensions that AMD, Intel and we add.
const EXTENSIONS: [(&str, &str); 16] = [
    ("1.3.6.1.4.1.3704.1.1", "AMD structure version"),
    ("1.3.6.1.4.1.3704.1.2", "AMD product"),
    ("1.3.6.1.4.1.3704.1.3.1", "AMD TCB: bootloader"),
    ("1.3.6.1.4.1.3704.1.3.2", "AMD TCB: TEE"),
    ("1.3.6.1.4.1.3704.1.3.3", "AMD TCB: SNP"),
    ("1.3.6.1.4.1.3704.1.3.8", "AMD TCB: microcode"),
    ("1.3.6.1.4.1.3704.1.3.9", "AMD TCB: FMC"),
    ("1.3.6.1.4.1.3704.1.4", "AMD chip id"),
    ("1.3.6.1.4.1.3704.1.5", "AMD provider"),
    ("1.2.840.113741.1.13.1", "Intel platform"),
    ("1.3.9901.2.1", "evidence: SEV-SNP"),
    ("1.3.9901.2.2", "evidence: TDX"),
    ("1.3.9901.2.3", "evidence: unsigned"),
    ("1.3.9901.3.1", "workload secret id"),
    ("1.3.9901.3.1001", "commitment to the workload secret"),
    ("1.3.9901.3.1002", "number of the manifest"),
];

fn certificate_fields(der: &[u8]) -> anyhow::Result<Inspection> {
    let (_, certificate) = X509Certificate::from_der(der)?;
    let mut fields = vec![
        shown("subject", certificate.subject()),
        shown("issuer", certificate.issuer()),
        shown("serial number", hex::encode(certificate.raw_serial())),
        shown("valid from", certificate.validity().not_before),
        shown("valid to", certificate.validity().not_after),
        shown("signature", certificate.signature_algorithm.algorithm.to_id_string()),
        shown("certificate authority", if certificate.is_ca() { "yes" } else { "no" }),
    ];
    for extension in certificate.extensions() {
        let oid = extension.oid.to_id_string();
        let known = EXTENSIONS.iter().find(|(known, _)| *known == oid).map(|(_, name)| *name);
        match (extension.parsed_extension(), known) {
            (ParsedExtension::SubjectAlternativeName(names), _) => {
                let names: Vec<String> = names.general_names.iter().map(ToString::to_string).collect();
                fields.push(shown("names", names.join(", ")));
            }
            (_, Some(name)) if name.starts_with("evidence") => {
                fields.push(shown(
                    name,
                    format!("{} bytes; `contrast explain` judges it", extension.value.len()),
                ));
            }
            (_, Some(name)) => fields.push(shown(name, value(extension.value))),
            (_, None) if oid.starts_with("1.3.9901.2.") => {
                fields.push(shown(claim(&oid), value(extension.value)));
            }
            _ => {}
        }
    }
    Ok(Inspection { kind: "Certificate".into(), fields })
}

/// Names of the claims of SEV-SNP, from 1 on (docs/spec/control-plane.md, section 4.4).
const SNP_CLAIMS: [&str; 46] = [
    "report version",
    "guest SVN",
    "policy: ABI major",
    "policy: ABI minor",
    "policy: debug",
    "policy: migration agent",
    "policy: SMT",
    "policy: single socket",
    "family id",
    "image id",
    "VMPL",
    "current TCB: boot loader",
    "current TCB: SNP",
    "current TCB: TEE",
    "current TCB: microcode",
    "platform: SMT",
    "platform: TSME",
    "author key present",
    "chip key masked",
    "signing key",
    "report data",
    "measurement",
    "host data (policy)",
    "ID key digest",
    "author key digest",
    "report id",
    "report id of the migration agent",
    "reported TCB: boot loader",
    "reported TCB: SNP",
    "reported TCB: TEE",
    "reported TCB: microcode",
    "chip id",
    "committed TCB: boot loader",
    "committed TCB: SNP",
    "committed TCB: TEE",
    "committed TCB: microcode",
    "current firmware: build",
    "current firmware: minor",
    "current firmware: major",
    "committed firmware: build",
    "committed firmware: minor",
    "committed firmware: major",
    "launch TCB: boot loader",
    "launch TCB: SNP",
    "launch TCB: TEE",
    "launch TCB: microcode",
];

/// Names of the claims of TDX, from 1 on.
const TDX_CLAIMS: [&str; 14] = [
    "quote version",
    "TEE TCB SVN",
    "MRSEAM",
    "attributes",
    "XFAM",
    "MRTD",
    "MRCONFIGID (policy)",
    "MROWNER",
    "MROWNERCONFIG",
    "RTMR0",
    "RTMR1",
    "RTMR2",
    "RTMR3",
    "report data",
];

/// What a claim says, by its object identifier.
fn claim(oid: &str) -> String {
    let number = |prefix: &str| oid.strip_prefix(prefix)?.parse::<usize>().ok()?.checked_sub(1);
    let snp = number("1.3.9901.2.1.").and_then(|at| SNP_CLAIMS.get(at)).map(|name| format!("SNP {name}"));
    let tdx = number("1.3.9901.2.2.").and_then(|at| TDX_CLAIMS.get(at)).map(|name| format!("TDX {name}"));
    snp.or(tdx).unwrap_or_else(|| format!("claim {oid}"))
}

/// A short DER value as a person would write it.
fn value(der: &[u8]) -> String {
    match der {
        [2, size, number @ ..] if usize::from(*size) == number.len() && number.len() <= 8 => {
            number.iter().fold(0_u128, |value, byte| value << 8 | u128::from(*byte)).to_string()
        }
        [1, 1, flag] => (*flag != 0).to_string(),
        [0x16 | 0x0c, size, text @ ..] if usize::from(*size) == text.len() => {
            String::from_utf8_lossy(text).into_owned()
        }
        [4, size, bytes @ ..] if usize::from(*size) == bytes.len() => match std::str::from_utf8(bytes) {
            Ok(text) if !text.is_empty() && text.chars().all(|c| c.is_ascii_graphic()) => text.to_owned(),
            _ => hex::encode(bytes),
        },
        other => hex::encode(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn claims_have_names() {
        for (oid, name) in [
            ("1.3.9901.2.1.1", "SNP report version"),
            ("1.3.9901.2.1.23", "SNP host data (policy)"),
            ("1.3.9901.2.1.46", "SNP launch TCB: microcode"),
            ("1.3.9901.2.2.14", "TDX report data"),
            ("1.3.9901.2.1.0", "claim 1.3.9901.2.1.0"),
            ("1.3.9901.2.1.47", "claim 1.3.9901.2.1.47"),
        ] {
            assert_eq!(claim(oid), name);
        }
    }
}
