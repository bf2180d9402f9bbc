//! The wire form of TDX evidence: `tdx.QuoteV4` and `tdx.QuoteV5` of go-tdx-guest (field numbers:
//! docs/spec/attestation.md, section 7.2). It splits the quote into fields, so the bytes are rebuilt here.

use prost::Message;

use super::quote::{HEADER, Quote};
use crate::{EvidenceError, evidence::MAX_DOCUMENT_BYTES};

/// A quote, and the collateral that came with it. Nothing is verified yet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TdxEvidence {
    /// The quote as the platform made it.
    pub quote: Vec<u8>,
    /// `QuoteCollateralV3` as JSON, byte fields in hex. The form is ours: upstream's is not known.
    pub collateral: Option<Vec<u8>>,
}

#[derive(Clone, PartialEq, Message)]
struct QuoteV4 {
    #[prost(message, optional, tag = "1")]
    header: Option<Header>,
    #[prost(message, optional, tag = "2")]
    body: Option<Body>,
    #[prost(uint32, tag = "3")]
    signed_data_size: u32,
    #[prost(message, optional, tag = "4")]
    signed_data: Option<SignedData>,
    #[prost(bytes = "vec", tag = "5")]
    extra_bytes: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
struct QuoteV5 {
    #[prost(message, optional, tag = "1")]
    header: Option<Header>,
    #[prost(message, optional, tag = "2")]
    descriptor: Option<Descriptor>,
    #[prost(uint32, tag = "3")]
    signed_data_size: u32,
    #[prost(message, optional, tag = "4")]
    signed_data: Option<SignedData>,
    #[prost(bytes = "vec", tag = "5")]
    extra_bytes: Vec<u8>,
}

/// Reads the header alone, which says what the rest is.
#[derive(Clone, PartialEq, Message)]
struct AnyQuote {
    #[prost(message, optional, tag = "1")]
    header: Option<Header>,
}

#[derive(Clone, PartialEq, Message)]
struct Descriptor {
    #[prost(uint32, tag = "1")]
    kind: u32,
    #[prost(uint32, tag = "2")]
    size: u32,
    #[prost(message, optional, tag = "3")]
    body: Option<Body>,
}

#[derive(Clone, PartialEq, Message)]
struct Header {
    #[prost(uint32, tag = "1")]
    version: u32,
    #[prost(uint32, tag = "2")]
    attestation_key_type: u32,
    #[prost(uint32, tag = "3")]
    tee_type: u32,
    #[prost(bytes = "vec", tag = "4")]
    qe_svn: Vec<u8>,
    #[prost(bytes = "vec", tag = "5")]
    pce_svn: Vec<u8>,
    #[prost(bytes = "vec", tag = "6")]
    qe_vendor_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "7")]
    user_data: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
struct Body {
    #[prost(bytes = "vec", tag = "1")]
    tee_tcb_svn: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    mr_seam: Vec<u8>,
    #[prost(bytes = "vec", tag = "3")]
    mr_signer_seam: Vec<u8>,
    #[prost(bytes = "vec", tag = "4")]
    seam_attributes: Vec<u8>,
    #[prost(bytes = "vec", tag = "5")]
    td_attributes: Vec<u8>,
    #[prost(bytes = "vec", tag = "6")]
    xfam: Vec<u8>,
    #[prost(bytes = "vec", tag = "7")]
    mr_td: Vec<u8>,
    #[prost(bytes = "vec", tag = "8")]
    mr_config_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "9")]
    mr_owner: Vec<u8>,
    #[prost(bytes = "vec", tag = "10")]
    mr_owner_config: Vec<u8>,
    #[prost(bytes = "vec", repeated, tag = "11")]
    rtmrs: Vec<Vec<u8>>,
    #[prost(bytes = "vec", tag = "12")]
    report_data: Vec<u8>,
    #[prost(bytes = "vec", tag = "13")]
    tee_tcb_svn2: Vec<u8>,
    #[prost(bytes = "vec", tag = "14")]
    mr_service_td: Vec<u8>,
    /// What bodies later than TD 1.5 append. The field is ours: upstream's messages end above.
    #[prost(bytes = "vec", tag = "1000")]
    appended: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
struct SignedData {
    #[prost(bytes = "vec", tag = "1")]
    signature: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    attestation_key: Vec<u8>,
    #[prost(message, optional, tag = "3")]
    certification: Option<Certification>,
}

#[derive(Clone, PartialEq, Message)]
struct Certification {
    #[prost(uint32, tag = "1")]
    kind: u32,
    #[prost(uint32, tag = "2")]
    size: u32,
    #[prost(message, optional, tag = "3")]
    qe: Option<QeCertification>,
}

#[derive(Clone, PartialEq, Message)]
struct QeCertification {
    #[prost(message, optional, tag = "1")]
    report: Option<EnclaveReport>,
    #[prost(bytes = "vec", tag = "2")]
    signature: Vec<u8>,
    #[prost(message, optional, tag = "3")]
    auth: Option<QeAuth>,
    #[prost(message, optional, tag = "4")]
    chain: Option<PckChain>,
}

#[derive(Clone, PartialEq, Message)]
struct QeAuth {
    #[prost(uint32, tag = "1")]
    size: u32,
    #[prost(bytes = "vec", tag = "2")]
    data: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
struct PckChain {
    #[prost(uint32, tag = "1")]
    kind: u32,
    #[prost(uint32, tag = "2")]
    size: u32,
    #[prost(bytes = "vec", tag = "3")]
    chain: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
struct EnclaveReport {
    #[prost(bytes = "vec", tag = "1")]
    cpu_svn: Vec<u8>,
    #[prost(uint32, tag = "2")]
    misc_select: u32,
    #[prost(bytes = "vec", tag = "3")]
    reserved1: Vec<u8>,
    #[prost(bytes = "vec", tag = "4")]
    attributes: Vec<u8>,
    #[prost(bytes = "vec", tag = "5")]
    mr_enclave: Vec<u8>,
    #[prost(bytes = "vec", tag = "6")]
    reserved2: Vec<u8>,
    #[prost(bytes = "vec", tag = "7")]
    mr_signer: Vec<u8>,
    #[prost(bytes = "vec", tag = "8")]
    reserved3: Vec<u8>,
    #[prost(uint32, tag = "9")]
    isv_prod_id: u32,
    #[prost(uint32, tag = "10")]
    isv_svn: u32,
    #[prost(bytes = "vec", tag = "11")]
    reserved4: Vec<u8>,
    #[prost(bytes = "vec", tag = "12")]
    report_data: Vec<u8>,
}

/// Takes bytes from the front.
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn bytes(&mut self, size: usize) -> Result<Vec<u8>, EvidenceError> {
        let (part, rest) = self.0.split_at_checked(size).ok_or_else(|| malformed("the quote is cut off"))?;
        self.0 = rest;
        Ok(part.to_vec())
    }

    fn number(&mut self, size: usize) -> Result<u32, EvidenceError> {
        Ok(self.bytes(size)?.iter().rev().fold(0, |value, byte| value << 8 | u32::from(*byte)))
    }

    fn sized(&mut self, size: u32) -> Result<Vec<u8>, EvidenceError> {
        self.bytes(usize::try_from(size).unwrap_or(usize::MAX))
    }
}

/// Appends parts, each of which must have its size.
#[derive(Default)]
struct Writer(Vec<u8>);

impl Writer {
    fn bytes(&mut self, field: &'static str, bytes: &[u8], expected: usize) -> Result<(), EvidenceError> {
        if bytes.len() != expected {
            return Err(EvidenceError::Length { field, expected, found: bytes.len() });
        }
        self.0.extend_from_slice(bytes);
        Ok(())
    }

    fn number(&mut self, field: &'static str, value: u32, size: usize) -> Result<(), EvidenceError> {
        let bytes = value.to_le_bytes();
        if bytes[size..].iter().any(|byte| *byte != 0) {
            return Err(malformed(&format!("{field} is {value}, which does not fit into {size} bytes")));
        }
        self.0.extend_from_slice(&bytes[..size]);
        Ok(())
    }
}

fn malformed(what: &str) -> EvidenceError {
    EvidenceError::Malformed(what.to_owned())
}

fn present<T>(field: &'static str, value: Option<T>) -> Result<T, EvidenceError> {
    value.ok_or_else(|| malformed(&format!("{field} is missing")))
}

impl TdxEvidence {
    /// The protobuf document.
    pub fn to_protobuf(&self) -> Result<Vec<u8>, EvidenceError> {
        let quote = Quote::parse(&self.quote).map_err(|wrong| {
            malformed(&format!("{}: expected {}, found {}", wrong.check, wrong.expected, wrong.found))
        })?;
        let header = Some(split_header(quote.header())?);
        let signed_data = Some(split_signed_data(quote.auth())?);
        let signed_data_size = u32::try_from(quote.auth().len()).unwrap_or(u32::MAX);
        let extra_bytes = self.collateral.clone().unwrap_or_else(|| quote.padding().to_vec());
        let body = Some(split_body(quote.body())?);
        Ok(if quote.version == 4 {
            QuoteV4 { header, body, signed_data_size, signed_data, extra_bytes }.encode_to_vec()
        } else {
            let size = u32::try_from(quote.body().len()).unwrap_or(u32::MAX);
            let descriptor = Some(Descriptor { kind: quote.body_type.into(), size, body });
            QuoteV5 { header, descriptor, signed_data_size, signed_data, extra_bytes }.encode_to_vec()
        })
    }

    /// Reads the protobuf document and rebuilds the quote.
    pub fn from_protobuf(document: &[u8]) -> Result<Self, EvidenceError> {
        if document.len() > MAX_DOCUMENT_BYTES {
            return Err(EvidenceError::TooLarge(document.len()));
        }
        let decode = |error: prost::DecodeError| EvidenceError::Malformed(error.to_string());
        let header = present("header", AnyQuote::decode(document).map_err(decode)?.header)?;
        let mut quote = Writer::default();
        let (signed_data, size, extra) = if header.version == 5 {
            let QuoteV5 { header, descriptor, signed_data_size, signed_data, extra_bytes } =
                QuoteV5::decode(document).map_err(decode)?;
            join_header(&mut quote, &present("header", header)?)?;
            let Descriptor { kind, size, body } = present("body", descriptor)?;
            quote.number("body type", kind, 2)?;
            quote.number("body size", size, 4)?;
            join_body(&mut quote, &present("body", body)?, kind >= 3)?;
            (signed_data, signed_data_size, extra_bytes)
        } else {
            let QuoteV4 { header, body, signed_data_size, signed_data, extra_bytes } =
                QuoteV4::decode(document).map_err(decode)?;
            join_header(&mut quote, &present("header", header)?)?;
            join_body(&mut quote, &present("body", body)?, false)?;
            (signed_data, signed_data_size, extra_bytes)
        };
        quote.number("signed data size", size, 4)?;
        let before = quote.0.len();
        join_signed_data(&mut quote, &present("signed data", signed_data)?)?;
        let written = quote.0.len() - before;
        if u32::try_from(written) != Ok(size) {
            return Err(malformed(&format!("signed data of {written} bytes, its size says {size}")));
        }
        // Collateral is a JSON object; anything else there is the padding of the quote's buffer.
        let is_collateral = extra.first() == Some(&b'{');
        if !is_collateral {
            quote.0.extend_from_slice(&extra);
        }
        Ok(Self { quote: quote.0, collateral: is_collateral.then_some(extra) })
    }
}

fn split_header(bytes: &[u8]) -> Result<Header, EvidenceError> {
    let mut reader = Reader(bytes);
    Ok(Header {
        version: reader.number(2)?,
        attestation_key_type: reader.number(2)?,
        tee_type: reader.number(4)?,
        qe_svn: reader.bytes(2)?,
        pce_svn: reader.bytes(2)?,
        qe_vendor_id: reader.bytes(16)?,
        user_data: reader.bytes(20)?,
    })
}

fn join_header(out: &mut Writer, header: &Header) -> Result<(), EvidenceError> {
    out.number("version", header.version, 2)?;
    out.number("attestation key type", header.attestation_key_type, 2)?;
    out.number("TEE type", header.tee_type, 4)?;
    out.bytes("QE SVN", &header.qe_svn, 2)?;
    out.bytes("PCE SVN", &header.pce_svn, 2)?;
    out.bytes("QE vendor id", &header.qe_vendor_id, 16)?;
    out.bytes("user data", &header.user_data, 20)?;
    debug_assert_eq!(out.0.len(), HEADER);
    Ok(())
}

fn split_body(bytes: &[u8]) -> Result<Body, EvidenceError> {
    let mut reader = Reader(bytes);
    let mut body = Body {
        tee_tcb_svn: reader.bytes(16)?,
        mr_seam: reader.bytes(48)?,
        mr_signer_seam: reader.bytes(48)?,
        seam_attributes: reader.bytes(8)?,
        td_attributes: reader.bytes(8)?,
        xfam: reader.bytes(8)?,
        mr_td: reader.bytes(48)?,
        mr_config_id: reader.bytes(48)?,
        mr_owner: reader.bytes(48)?,
        mr_owner_config: reader.bytes(48)?,
        rtmrs: (0..4).map(|_| reader.bytes(48)).collect::<Result<_, _>>()?,
        report_data: reader.bytes(64)?,
        ..Body::default()
    };
    if !reader.0.is_empty() {
        body.tee_tcb_svn2 = reader.bytes(16)?;
        body.mr_service_td = reader.bytes(48)?;
    }
    body.appended = reader.0.to_vec();
    Ok(body)
}

fn join_body(out: &mut Writer, body: &Body, later: bool) -> Result<(), EvidenceError> {
    out.bytes("TEE TCB SVN", &body.tee_tcb_svn, 16)?;
    out.bytes("MRSEAM", &body.mr_seam, 48)?;
    out.bytes("MRSIGNERSEAM", &body.mr_signer_seam, 48)?;
    out.bytes("SEAM attributes", &body.seam_attributes, 8)?;
    out.bytes("TD attributes", &body.td_attributes, 8)?;
    out.bytes("XFAM", &body.xfam, 8)?;
    out.bytes("MRTD", &body.mr_td, 48)?;
    out.bytes("MRCONFIGID", &body.mr_config_id, 48)?;
    out.bytes("MROWNER", &body.mr_owner, 48)?;
    out.bytes("MROWNERCONFIG", &body.mr_owner_config, 48)?;
    if body.rtmrs.len() != 4 {
        return Err(EvidenceError::Length { field: "RTMRs", expected: 4, found: body.rtmrs.len() });
    }
    for rtmr in &body.rtmrs {
        out.bytes("RTMR", rtmr, 48)?;
    }
    out.bytes("report data", &body.report_data, 64)?;
    if later {
        out.bytes("TEE TCB SVN 2", &body.tee_tcb_svn2, 16)?;
        out.bytes("MRSERVICETD", &body.mr_service_td, 48)?;
        out.bytes("appended body", &body.appended, body.appended.len())?;
    }
    Ok(())
}

fn split_signed_data(bytes: &[u8]) -> Result<SignedData, EvidenceError> {
    let mut reader = Reader(bytes);
    let (signature, attestation_key) = (reader.bytes(64)?, reader.bytes(64)?);
    let (kind, size) = (reader.number(2)?, reader.number(4)?);
    let report = Some(EnclaveReport {
        cpu_svn: reader.bytes(16)?,
        misc_select: reader.number(4)?,
        reserved1: reader.bytes(28)?,
        attributes: reader.bytes(16)?,
        mr_enclave: reader.bytes(32)?,
        reserved2: reader.bytes(32)?,
        mr_signer: reader.bytes(32)?,
        reserved3: reader.bytes(96)?,
        isv_prod_id: reader.number(2)?,
        isv_svn: reader.number(2)?,
        reserved4: reader.bytes(60)?,
        report_data: reader.bytes(64)?,
    });
    let qe_signature = reader.bytes(64)?;
    let auth_size = reader.number(2)?;
    let auth = Some(QeAuth { size: auth_size, data: reader.sized(auth_size)? });
    let (chain_kind, chain_size) = (reader.number(2)?, reader.number(4)?);
    let chain = Some(PckChain { kind: chain_kind, size: chain_size, chain: reader.sized(chain_size)? });
    if !reader.0.is_empty() {
        return Err(malformed("the authentication data is longer than its parts"));
    }
    let qe = Some(QeCertification { report, signature: qe_signature, auth, chain });
    Ok(SignedData { signature, attestation_key, certification: Some(Certification { kind, size, qe }) })
}

fn join_signed_data(out: &mut Writer, data: &SignedData) -> Result<(), EvidenceError> {
    out.bytes("signature", &data.signature, 64)?;
    out.bytes("attestation key", &data.attestation_key, 64)?;
    let Certification { kind, size, qe } = present("certification data", data.certification.clone())?;
    out.number("certification data type", kind, 2)?;
    out.number("certification data size", size, 4)?;
    let QeCertification { report, signature, auth, chain } = present("QE certification data", qe)?;
    let report = present("QE report", report)?;
    out.bytes("CPU SVN", &report.cpu_svn, 16)?;
    out.number("MISCSELECT", report.misc_select, 4)?;
    out.bytes("QE report, reserved", &report.reserved1, 28)?;
    out.bytes("QE attributes", &report.attributes, 16)?;
    out.bytes("MRENCLAVE", &report.mr_enclave, 32)?;
    out.bytes("QE report, reserved", &report.reserved2, 32)?;
    out.bytes("MRSIGNER", &report.mr_signer, 32)?;
    out.bytes("QE report, reserved", &report.reserved3, 96)?;
    out.number("ISV product id", report.isv_prod_id, 2)?;
    out.number("ISV SVN", report.isv_svn, 2)?;
    out.bytes("QE report, reserved", &report.reserved4, 60)?;
    out.bytes("QE report data", &report.report_data, 64)?;
    out.bytes("QE report signature", &signature, 64)?;
    let auth = present("QE authentication data", auth)?;
    out.number("QE authentication data size", auth.size, 2)?;
    out.bytes("QE authentication data", &auth.data, usize::try_from(auth.size).unwrap_or(usize::MAX))?;
    let chain = present("PCK certificate chain", chain)?;
    out.number("PCK chain type", chain.kind, 2)?;
    out.number("PCK chain size", chain.size, 4)?;
    out.bytes("PCK chain", &chain.chain, usize::try_from(chain.size).unwrap_or(usize::MAX))
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    /// A quote of any version and body, with any content and any padding.
    fn quote() -> impl Strategy<Value = Vec<u8>> {
        let version = prop_oneof![
            Just((4_u16, 2_u16, 584_usize)),
            Just((5, 2, 584)),
            Just((5, 3, 648)),
            Just((5, 4, 700))
        ];
        (version, vec(any::<u8>(), 2048), vec(any::<u8>(), 0..40), vec(any::<u8>(), 0..200), 0_usize..20)
            .prop_map(|((version, kind, size), noise, auth_data, chain, padding)| {
                let mut quote = [&version.to_le_bytes()[..], &[2, 0, 0x81, 0, 0, 0], &noise[..40]].concat();
                if version == 5 {
                    quote.extend(kind.to_le_bytes());
                    quote.extend(u32::try_from(size).unwrap().to_le_bytes());
                }
                quote.extend(&noise[40..40 + size]);
                let number = |bytes: usize| u32::try_from(bytes).unwrap().to_le_bytes();
                let auth_size = u16::try_from(auth_data.len()).unwrap().to_le_bytes();
                let certification =
                    [&noise[1000..1448], &auth_size, &auth_data, &[5, 0], &number(chain.len()), &chain]
                        .concat();
                let auth =
                    [&noise[1500..1628], &[6, 0], &number(certification.len()), &certification].concat();
                quote.extend(number(auth.len()));
                quote.extend(auth);
                quote.resize(quote.len() + padding, 0);
                quote
            })
    }

    proptest! {
        #[test]
        fn quotes_survive_the_wire_byte_for_byte(quote in quote()) {
            let evidence = TdxEvidence { quote, collateral: None };
            let document = evidence.to_protobuf().unwrap();
            prop_assert_eq!(TdxEvidence::from_protobuf(&document).unwrap(), evidence);
        }

        #[test]
        fn arbitrary_documents_never_panic(document: Vec<u8>) {
            let _ = TdxEvidence::from_protobuf(&document);
        }
    }
}
