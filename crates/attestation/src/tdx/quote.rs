//! The quote: where its fields are (docs/spec/attestation.md, section 7.4; Intel TDX DCAP quoting library
//! API, appendix A). Nothing here is verified.

/// Header, in bytes.
pub(crate) const HEADER: usize = 48;
/// Body of TD 1.0 and 1.5, in bytes.
const TD10_BODY: usize = 584;
const TD15_BODY: usize = 648;
/// Largest body accepted; later ones append to that of TD 1.5.
const MAX_BODY: usize = 2048;
/// What precedes the body in version 5: its type and size.
const DESCRIPTOR: usize = 6;

/// A TDX quote, whole but not verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Quote {
    bytes: Vec<u8>,
    pub(crate) version: u16,
    /// Type of the body in version 5; 2 (TD 1.0) in version 4.
    pub(crate) body_type: u16,
    body_at: usize,
    body_size: usize,
    /// Where the authentication data ends; what follows is padding.
    end: usize,
}

/// Why bytes are not a TDX quote: what was expected, and what was found.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct NotAQuote {
    pub(crate) check: &'static str,
    pub(crate) expected: &'static str,
    pub(crate) found: String,
}

fn wrong<T>(check: &'static str, expected: &'static str, found: impl ToString) -> Result<T, NotAQuote> {
    Err(NotAQuote { check, expected, found: found.to_string() })
}

impl Quote {
    /// Finds the parts of a quote.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, NotAQuote> {
        let number = |at: usize, size: usize| {
            let part = bytes.get(at..at + size)?;
            Some(part.iter().rev().fold(0_usize, |value, byte| value << 8 | usize::from(*byte)))
        };
        let (Some(version), Some(key_type), Some(tee)) = (number(0, 2), number(2, 2), number(4, 4)) else {
            return wrong("quote", "a header of 48 bytes", format!("{} bytes", bytes.len()));
        };
        if tee != 0x81 {
            return wrong("TEE type", "0x81, TDX", format!("{tee:#x}"));
        }
        if key_type != 2 {
            return wrong("attestation key type", "2, ECDSA P-256", key_type);
        }
        let (body_type, body_at, body_size) = match version {
            4 => (2, HEADER, TD10_BODY),
            5 => {
                let (Some(kind), Some(size)) = (number(HEADER, 2), number(HEADER + 2, 4)) else {
                    return wrong("quote", "a body descriptor", format!("{} bytes", bytes.len()));
                };
                (kind, HEADER + DESCRIPTOR, size)
            }
            other => return wrong("quote version", "4 or 5", other),
        };
        let fits = match body_type {
            2 => body_size == TD10_BODY,
            3 => body_size == TD15_BODY,
            4 => (TD15_BODY..=MAX_BODY).contains(&body_size),
            other => return wrong("quote body", "of a TD", format!("type {other}")),
        };
        if !fits {
            return wrong(
                "quote body",
                "the size of its type",
                format!("type {body_type}, {body_size} bytes"),
            );
        }
        let auth_at = body_at + body_size;
        let end = number(auth_at, 4).and_then(|size| (auth_at + 4).checked_add(size));
        match end.filter(|end| *end <= bytes.len()) {
            Some(end) => {
                let bytes = bytes.to_vec();
                let (version, body_type) =
                    (if version == 5 { 5 } else { 4 }, u16::try_from(body_type).unwrap_or(0));
                Ok(Self { bytes, version, body_type, body_at, body_size, end })
            }
            None => wrong("quote", "whole authentication data", format!("{} bytes in all", bytes.len())),
        }
    }

    /// All bytes, padding included.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(crate) fn header(&self) -> &[u8] {
        &self.bytes[..HEADER]
    }

    pub(crate) fn body(&self) -> &[u8] {
        &self.bytes[self.body_at..self.body_at + self.body_size]
    }

    /// Signature, key and certification data, without their length.
    pub(crate) fn auth(&self) -> &[u8] {
        &self.bytes[self.body_at + self.body_size + 4..self.end]
    }

    /// What follows the quote in its buffer.
    pub(crate) fn padding(&self) -> &[u8] {
        &self.bytes[self.end..]
    }

    /// A field of the body, all of which lie in the first 584 bytes.
    fn field<const N: usize>(&self, at: usize) -> [u8; N] {
        let mut field = [0; N];
        field.copy_from_slice(&self.body()[at..at + N]);
        field
    }

    pub(crate) fn qe_vendor(&self) -> [u8; 16] {
        let mut vendor = [0; 16];
        vendor.copy_from_slice(&self.header()[12..28]);
        vendor
    }

    pub(crate) fn tee_tcb_svn(&self) -> [u8; 16] {
        self.field(0)
    }

    pub(crate) fn mr_seam(&self) -> [u8; 48] {
        self.field(16)
    }

    pub(crate) fn td_attributes(&self) -> [u8; 8] {
        self.field(120)
    }

    pub(crate) fn xfam(&self) -> [u8; 8] {
        self.field(128)
    }

    pub(crate) fn mr_td(&self) -> [u8; 48] {
        self.field(136)
    }

    pub(crate) fn mr_config_id(&self) -> [u8; 48] {
        self.field(184)
    }

    pub(crate) fn mr_owner(&self) -> [u8; 48] {
        self.field(232)
    }

    pub(crate) fn mr_owner_config(&self) -> [u8; 48] {
        self.field(280)
    }

    pub(crate) fn rtmr(&self, n: usize) -> [u8; 48] {
        self.field(328 + 48 * n)
    }

    pub(crate) fn report_data(&self) -> [u8; 64] {
        self.field(520)
    }

    /// Measurement of a service TD that may act on this one; bodies of TD 1.5 and later have it.
    pub(crate) fn mr_service_td(&self) -> Option<[u8; 48]> {
        self.body().get(600..648).and_then(|bytes| bytes.try_into().ok())
    }

    /// The platform's certificate, DER: the first of the PEM chain in the certification data.
    pub(crate) fn pck_certificate(&self) -> Option<Vec<u8>> {
        // Signature, key, type, size, QE report, its signature; then the QE's data with its size.
        let qe = self.auth().get(64 + 64 + 2 + 4 + 384 + 64..)?;
        let (size, rest) = qe.split_first_chunk::<2>()?;
        let chain = rest.get(usize::from(u16::from_le_bytes(*size))..)?;
        let (header, chain) = chain.split_first_chunk::<6>()?;
        let size = usize::try_from(u32::from_le_bytes([header[2], header[3], header[4], header[5]])).ok()?;
        let chain = chain.get(..size).filter(|_| header[..2] == [5, 0])?;
        let first = x509_parser::pem::Pem::iter_from_buffer(chain).next()?;
        first.ok().map(|pem| pem.contents)
    }
}
