//! What a verified quote says, and how a workload's certificate repeats it.

use super::quote::Quote;
use crate::claims::{integer, octets};

/// What was proven about a TD.
#[derive(Clone)]
pub(crate) struct TdxClaims {
    pub(crate) quote: Quote,
    /// Intel's word for the state of the platform, and its open advisories.
    pub(crate) tcb: String,
}

impl TdxClaims {
    /// First 32 bytes of MRCONFIGID; the verifier saw to it that the rest is zero.
    pub(crate) fn host_data(&self) -> [u8; 32] {
        let mut host_data = [0; 32];
        host_data.copy_from_slice(&self.quote.mr_config_id()[..32]);
        host_data
    }

    /// The claims as certificate extensions below 1.3.9901.2.2. The numbers are ours: upstream's are
    /// not known (docs/spec/control-plane.md, section 4.4).
    pub(crate) fn extensions(&self) -> Vec<(u64, Vec<u8>)> {
        let quote = &self.quote;
        let mut values = vec![
            (1, integer(quote.version.into())),
            (2, octets(&quote.tee_tcb_svn())),
            (3, octets(&quote.mr_seam())),
            (4, octets(&quote.td_attributes())),
            (5, octets(&quote.xfam())),
            (6, octets(&quote.mr_td())),
            (7, octets(&quote.mr_config_id())),
            (8, octets(&quote.mr_owner())),
            (9, octets(&quote.mr_owner_config())),
        ];
        values.extend((10..).zip((0..4).map(|n| octets(&quote.rtmr(n)))));
        values.push((14, octets(&quote.report_data())));
        values
    }
}
