//! What was proven about a workload, whatever it runs on.

use manifest::{KeyDigest, PolicyHash};

use crate::{Platform, snp::SnpClaims, tdx::TdxClaims};

/// What was proven about a workload. Only the verifier makes one.
#[derive(Clone)]
pub struct Claims {
    platform: Platform,
    root: KeyDigest,
    reference: String,
    body: Body,
}

#[derive(Clone)]
pub(crate) enum Body {
    Snp(Box<SnpClaims>),
    Tdx(Box<TdxClaims>),
    Insecure([u8; 32]),
}

impl Claims {
    pub(crate) fn new(platform: Platform, root: KeyDigest, reference: String, body: Body) -> Self {
        Self { platform, root, reference, body }
    }

    /// What it runs on.
    pub fn platform(&self) -> Platform {
        self.platform
    }

    /// SHA-256 of the root certificate that the evidence leads to; zero for unsigned evidence.
    pub fn root(&self) -> KeyDigest {
        self.root
    }

    /// JSON path of the manifest's entry that the evidence met.
    pub fn met_reference(&self) -> &str {
        &self.reference
    }

    /// The policy that the guest runs under: HOSTDATA of an SNP report, the first 32 bytes of
    /// MRCONFIGID of a TDX quote.
    pub fn policy_hash(&self) -> PolicyHash {
        PolicyHash::from_bytes(match &self.body {
            Body::Snp(claims) => claims.host_data(),
            Body::Tdx(claims) => claims.host_data(),
            Body::Insecure(host_data) => *host_data,
        })
    }

    /// Security versions that the platform vouches for, or Intel's word for them.
    pub fn tcb(&self) -> String {
        match &self.body {
            Body::Snp(claims) => claims.reported_tcb().to_string(),
            Body::Tdx(claims) => claims.tcb.clone(),
            Body::Insecure(_) => "none".to_owned(),
        }
    }

    /// The claims as certificate extensions: object identifier and DER value (docs/spec/control-plane.md,
    /// section 4.4).
    pub fn extensions(&self) -> Vec<(Vec<u64>, Vec<u8>)> {
        let (kind, values) = match &self.body {
            Body::Snp(claims) => (1, claims.extensions()),
            Body::Tdx(claims) => (2, claims.extensions()),
            Body::Insecure(_) => (3, Vec::new()),
        };
        values.into_iter().map(|(n, der)| (vec![1, 3, 9901, 2, kind, n], der)).collect()
    }
}

pub(crate) fn integer(value: u64) -> Vec<u8> {
    let bytes = value.to_be_bytes();
    let start = bytes.iter().position(|byte| *byte != 0).unwrap_or(7);
    let significant = &bytes[start..];
    let padding: &[u8] = if significant[0] & 0x80 == 0 { &[] } else { &[0] };
    tagged(2, &[padding, significant].concat())
}

pub(crate) fn boolean(value: bool) -> Vec<u8> {
    tagged(1, &[if value { 0xff } else { 0 }])
}

pub(crate) fn octets(bytes: &[u8]) -> Vec<u8> {
    tagged(4, bytes)
}

/// DER with a one-byte length: no claim is longer than 64 bytes.
fn tagged(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = u8::try_from(content.len()).unwrap_or(0x7f);
    [&[tag, length], content].concat()
}
