//! The wire form of SNP evidence: `sevsnp.Attestation` of go-sev-guest (field numbers:
//! docs/spec/attestation.md, section 7.1). It splits the report into fields and has none for reserved
//! bytes, so the 1184 bytes are rebuilt here with zeros in these. A report that this would change travels
//! whole beside its fields, in a field of ours: the signature is checked over the bytes as the firmware
//! signed them.

use std::collections::HashMap;

use prost::Message;

use super::report::{Place, REPORT_BYTES, Report, place};
use crate::{EvidenceError, evidence::MAX_DOCUMENT_BYTES, pem};

/// Key under which Contrast sends the CRL among the extra certificates.
const CRL_KEY: &str = "00569ee4-e480-4fba-bbf4-45b629901180";

/// A report, and the certificates that came with it. Nothing is verified yet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SnpEvidence {
    /// The report, 1184 bytes.
    pub report: Vec<u8>,
    /// Chip endorsement key certificate, DER.
    pub vcek: Vec<u8>,
    /// Provider's endorsement key certificate, DER.
    pub vlek: Vec<u8>,
    /// AMD's signing key certificate, DER.
    pub ask: Vec<u8>,
    /// AMD's root certificate, DER.
    pub ark: Vec<u8>,
    /// Revocation list, DER.
    pub crl: Option<Vec<u8>>,
}

#[derive(Clone, PartialEq, Message)]
struct Attestation {
    #[prost(message, optional, tag = "1")]
    report: Option<WireReport>,
    #[prost(message, optional, tag = "2")]
    certificate_chain: Option<CertificateChain>,
    #[prost(message, optional, tag = "3")]
    product: Option<SevProduct>,
    /// The report as it was signed, if the fields above do not say all of it. The field is ours.
    #[prost(bytes = "vec", tag = "1000")]
    whole_report: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
struct CertificateChain {
    #[prost(bytes = "vec", tag = "1")]
    vcek: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    ask: Vec<u8>,
    #[prost(bytes = "vec", tag = "3")]
    ark: Vec<u8>,
    #[prost(bytes = "vec", tag = "6")]
    vlek: Vec<u8>,
    #[prost(map = "string, bytes", tag = "7")]
    extras: HashMap<String, Vec<u8>>,
}

#[derive(Clone, PartialEq, Message)]
struct SevProduct {
    #[prost(int32, tag = "1")]
    name: i32,
}

/// The report's fields: [`split`] fills them from the bytes, [`join`] puts them together again.
#[derive(Clone, PartialEq, Message)]
struct WireReport {
    #[prost(uint32, tag = "1")]
    version: u32,
    #[prost(uint32, tag = "2")]
    guest_svn: u32,
    #[prost(uint64, tag = "3")]
    policy: u64,
    #[prost(bytes = "vec", tag = "4")]
    family_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "5")]
    image_id: Vec<u8>,
    #[prost(uint32, tag = "6")]
    vmpl: u32,
    #[prost(uint32, tag = "7")]
    signature_algo: u32,
    #[prost(uint64, tag = "8")]
    current_tcb: u64,
    #[prost(uint64, tag = "9")]
    platform_info: u64,
    #[prost(uint32, tag = "10")]
    signer_info: u32,
    #[prost(bytes = "vec", tag = "11")]
    report_data: Vec<u8>,
    #[prost(bytes = "vec", tag = "12")]
    measurement: Vec<u8>,
    #[prost(bytes = "vec", tag = "13")]
    host_data: Vec<u8>,
    #[prost(bytes = "vec", tag = "14")]
    id_key_digest: Vec<u8>,
    #[prost(bytes = "vec", tag = "15")]
    author_key_digest: Vec<u8>,
    #[prost(bytes = "vec", tag = "16")]
    report_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "17")]
    report_id_ma: Vec<u8>,
    #[prost(uint64, tag = "18")]
    reported_tcb: u64,
    #[prost(bytes = "vec", tag = "19")]
    chip_id: Vec<u8>,
    #[prost(uint64, tag = "20")]
    committed_tcb: u64,
    #[prost(uint32, tag = "21")]
    current_build: u32,
    #[prost(uint32, tag = "22")]
    current_minor: u32,
    #[prost(uint32, tag = "23")]
    current_major: u32,
    #[prost(uint32, tag = "24")]
    committed_build: u32,
    #[prost(uint32, tag = "25")]
    committed_minor: u32,
    #[prost(uint32, tag = "26")]
    committed_major: u32,
    #[prost(uint64, tag = "27")]
    launch_tcb: u64,
    #[prost(bytes = "vec", tag = "28")]
    signature: Vec<u8>,
    #[prost(uint32, tag = "29")]
    cpuid1eax_fms: u32,
    #[prost(uint64, tag = "30")]
    launch_mit_vector: u64,
    #[prost(uint64, tag = "31")]
    current_mit_vector: u64,
}

impl SnpEvidence {
    /// The document that goes into a certificate extension.
    pub fn to_protobuf(&self) -> Result<Vec<u8>, EvidenceError> {
        let report = Report::new(&self.report)?;
        let product = report.product().map_or(0, |product| match product {
            manifest::SnpProduct::Milan => 1,
            manifest::SnpProduct::Genoa => 2,
            manifest::SnpProduct::Turin => 3,
        });
        let extras = self.crl.iter().map(|crl| (CRL_KEY.to_owned(), crl.clone())).collect();
        let fields = split(&report);
        let whole_report = if join(&fields)? == self.report { Vec::new() } else { self.report.clone() };
        let document = Attestation {
            report: Some(fields),
            certificate_chain: Some(CertificateChain {
                vcek: self.vcek.clone(),
                ask: self.ask.clone(),
                ark: self.ark.clone(),
                vlek: self.vlek.clone(),
                extras,
            }),
            product: Some(SevProduct { name: product }),
            whole_report,
        };
        Ok(document.encode_to_vec())
    }

    /// Reads a document from a certificate extension. Certificates in PEM come out in DER.
    pub fn from_protobuf(document: &[u8]) -> Result<Self, EvidenceError> {
        if document.len() > MAX_DOCUMENT_BYTES {
            return Err(EvidenceError::TooLarge(document.len()));
        }
        let document =
            Attestation::decode(document).map_err(|error| EvidenceError::Malformed(error.to_string()))?;
        let fields = document.report.ok_or_else(|| EvidenceError::Malformed("no report".into()))?;
        let mut report = join(&fields)?;
        if !document.whole_report.is_empty() {
            if split(&Report::new(&document.whole_report)?) != fields {
                let text = "two reports: the whole one says something else than the fields";
                return Err(EvidenceError::Malformed(text.into()));
            }
            report = document.whole_report;
        }
        let mut chain = document.certificate_chain.unwrap_or_default();
        Ok(Self {
            report,
            vcek: pem::to_der(chain.vcek),
            vlek: pem::to_der(chain.vlek),
            ask: pem::to_der(chain.ask),
            ark: pem::to_der(chain.ark),
            crl: chain.extras.remove(CRL_KEY).map(pem::to_der),
        })
    }
}

fn split(report: &Report) -> WireReport {
    let [family, model, stepping] = report.get(place::PROCESSOR).map(u32::from);
    let base = family.min(0xf);
    let firmware = |place| report.get::<3>(place).map(u32::from);
    let [current_build, current_minor, current_major] = firmware(place::CURRENT_FIRMWARE);
    let [committed_build, committed_minor, committed_major] = firmware(place::COMMITTED_FIRMWARE);
    WireReport {
        version: report.version(),
        guest_svn: report.u32(place::GUEST_SVN),
        policy: report.u64(place::POLICY),
        family_id: report.get(place::FAMILY_ID).into(),
        image_id: report.get(place::IMAGE_ID).into(),
        vmpl: report.u32(place::VMPL),
        signature_algo: report.u32(place::SIGNATURE_ALGORITHM),
        current_tcb: report.u64(place::CURRENT_TCB),
        platform_info: report.u64(place::PLATFORM_INFO),
        signer_info: report.u32(place::KEY_INFO),
        report_data: report.get(place::REPORT_DATA).into(),
        measurement: report.get(place::MEASUREMENT).into(),
        host_data: report.get(place::HOST_DATA).into(),
        id_key_digest: report.get(place::ID_KEY_DIGEST).into(),
        author_key_digest: report.get(place::AUTHOR_KEY_DIGEST).into(),
        report_id: report.get(place::REPORT_ID).into(),
        report_id_ma: report.get(place::REPORT_ID_MA).into(),
        reported_tcb: report.u64(place::REPORTED_TCB),
        chip_id: report.get(place::CHIP_ID).into(),
        committed_tcb: report.u64(place::COMMITTED_TCB),
        current_build,
        current_minor,
        current_major,
        committed_build,
        committed_minor,
        committed_major,
        launch_tcb: report.u64(place::LAUNCH_TCB),
        signature: report.get(place::SIGNATURE).into(),
        // CPUID leaf 1, EAX: the processor's family, model and stepping in their packed form.
        cpuid1eax_fms: (stepping & 0xf)
            | (model & 0xf) << 4
            | base << 8
            | (model >> 4) << 16
            | (family - base) << 20,
        launch_mit_vector: report.u64(place::LAUNCH_MITIGATIONS),
        current_mit_vector: report.u64(place::CURRENT_MITIGATIONS),
    }
}

/// The bytes of a report, filled field by field.
struct Writer(Vec<u8>);

impl Writer {
    /// A field of exactly its size.
    fn bytes<const N: usize>(
        &mut self,
        field: &'static str,
        place: Place<N>,
        bytes: &[u8],
    ) -> Result<(), EvidenceError> {
        let length = EvidenceError::Length { field, expected: N, found: bytes.len() };
        self.put(place, bytes.try_into().map_err(|_| length)?);
        Ok(())
    }

    /// Numbers of a byte each.
    fn small<const N: usize>(
        &mut self,
        field: &'static str,
        place: Place<N>,
        parts: [u32; N],
    ) -> Result<(), EvidenceError> {
        let mut bytes = [0; N];
        for (byte, part) in bytes.iter_mut().zip(parts) {
            *byte = u8::try_from(part)
                .map_err(|_| EvidenceError::Malformed(format!("{field} {part}, which is over 255")))?;
        }
        self.put(place, bytes);
        Ok(())
    }

    fn u32(&mut self, place: Place<4>, value: u32) {
        self.put(place, value.to_le_bytes());
    }

    fn u64(&mut self, place: Place<8>, value: u64) {
        self.put(place, value.to_le_bytes());
    }

    fn put<const N: usize>(&mut self, Place(at): Place<N>, bytes: [u8; N]) {
        self.0[at..at + N].copy_from_slice(&bytes);
    }
}

fn join(wire: &WireReport) -> Result<Vec<u8>, EvidenceError> {
    let mut report = Writer(vec![0; REPORT_BYTES]);
    report.u32(place::VERSION, wire.version);
    report.u32(place::GUEST_SVN, wire.guest_svn);
    report.u64(place::POLICY, wire.policy);
    report.bytes("family_id", place::FAMILY_ID, &wire.family_id)?;
    report.bytes("image_id", place::IMAGE_ID, &wire.image_id)?;
    report.u32(place::VMPL, wire.vmpl);
    report.u32(place::SIGNATURE_ALGORITHM, wire.signature_algo);
    report.u64(place::CURRENT_TCB, wire.current_tcb);
    report.u64(place::PLATFORM_INFO, wire.platform_info);
    report.u32(place::KEY_INFO, wire.signer_info);
    report.bytes("report_data", place::REPORT_DATA, &wire.report_data)?;
    report.bytes("measurement", place::MEASUREMENT, &wire.measurement)?;
    report.bytes("host_data", place::HOST_DATA, &wire.host_data)?;
    report.bytes("id_key_digest", place::ID_KEY_DIGEST, &wire.id_key_digest)?;
    report.bytes("author_key_digest", place::AUTHOR_KEY_DIGEST, &wire.author_key_digest)?;
    report.bytes("report_id", place::REPORT_ID, &wire.report_id)?;
    report.bytes("report_id_ma", place::REPORT_ID_MA, &wire.report_id_ma)?;
    report.u64(place::REPORTED_TCB, wire.reported_tcb);
    let fms = wire.cpuid1eax_fms;
    let family = (fms >> 8 & 0xf) + (fms >> 20 & 0xff);
    let model = (fms >> 4 & 0xf) | (fms >> 16 & 0xf) << 4;
    report.small("processor family", place::PROCESSOR, [family, model, fms & 0xf])?;
    report.bytes("chip_id", place::CHIP_ID, &wire.chip_id)?;
    report.u64(place::COMMITTED_TCB, wire.committed_tcb);
    let current = [wire.current_build, wire.current_minor, wire.current_major];
    report.small("firmware version", place::CURRENT_FIRMWARE, current)?;
    let committed = [wire.committed_build, wire.committed_minor, wire.committed_major];
    report.small("firmware version", place::COMMITTED_FIRMWARE, committed)?;
    report.u64(place::LAUNCH_TCB, wire.launch_tcb);
    report.u64(place::LAUNCH_MITIGATIONS, wire.launch_mit_vector);
    report.u64(place::CURRENT_MITIGATIONS, wire.current_mit_vector);
    report.bytes("signature", place::SIGNATURE, &wire.signature)?;
    Ok(report.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn real_reports_survive_the_wire_byte_for_byte() {
        let reports = [
            include_bytes!("../../testdata/milan-v2-sev.report.bin").as_slice(),
            include_bytes!("../../testdata/milan-v3-oak-cb.report.bin"),
            include_bytes!("../../testdata/genoa-v5-oak.report.bin"),
            include_bytes!("../../testdata/turin-v5-oak.report.bin"),
        ];
        for report in reports {
            let evidence =
                SnpEvidence { report: report.to_vec(), crl: Some(vec![1]), ..SnpEvidence::default() };
            let document = evidence.to_protobuf().unwrap();
            assert_eq!(SnpEvidence::from_protobuf(&document), Ok(evidence));
        }
    }

    #[test]
    fn a_whole_report_beside_other_fields_is_refused() {
        let mut report = include_bytes!("../../testdata/milan-v3-oak-cb.report.bin").to_vec();
        report[0x210] = 1; // reserved
        let evidence = SnpEvidence { report, ..SnpEvidence::default() };
        let mut document = Attestation::decode(&*evidence.to_protobuf().unwrap()).unwrap();
        document.whole_report[0x90] ^= 1; // the measurement
        let error = SnpEvidence::from_protobuf(&document.encode_to_vec()).unwrap_err().to_string();
        assert!(error.contains("two reports"), "{error}");
    }

    proptest::proptest! {
        #[test]
        fn reports_survive_the_wire_byte_for_byte(
            report in proptest::collection::vec(proptest::prelude::any::<u8>(), REPORT_BYTES),
            crl: Option<Vec<u8>>,
            vcek: Vec<u8>,
        ) {
            let evidence = SnpEvidence { report, crl, vcek, ..SnpEvidence::default() };
            let document = evidence.to_protobuf().unwrap();
            proptest::prop_assert_eq!(SnpEvidence::from_protobuf(&document).unwrap(), evidence);
        }

        #[test]
        fn arbitrary_documents_never_panic(document: Vec<u8>) {
            let _ = SnpEvidence::from_protobuf(&document);
        }
    }
}
