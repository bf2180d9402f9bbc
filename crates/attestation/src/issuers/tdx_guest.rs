//! What Intel's TDX module itself says of this guest (Linux, `include/uapi/linux/tdx-guest.h`; Intel TDX Module ABI
//! specification, `TDREPORT_STRUCT`).
//!
//! A quote is made outside of the guest: the kernel hands the host a report and takes what comes back for the quote. So to
//! others a quote proves much, and to the guest itself nothing: the host may answer with the quote of another guest, which
//! it started with the same report data. The report comes from the module, which the host cannot stand in for.
#![expect(unsafe_code, reason = "the kernel gives reports through an ioctl only")]

use std::{fs::File, os::fd::AsRawFd as _, path::Path};

use manifest::PolicyHash;

use super::{ANSWER_TIME, within};
use crate::IssueError;

const DEVICE: &str = "/dev/tdx_guest";
/// `TDX_CMD_GET_REPORT0`: `_IOWR('T', 1, struct tdx_report_req)`.
const GET_REPORT: libc::c_ulong = 0xc440_5401;
const REPORT_BYTES: usize = 1024;
/// Of the report's MACs and TCB info 512 bytes; attributes, XFAM and MRTD before it.
const MR_CONFIG_ID: usize = 512 + 8 + 8 + 48;

#[repr(C)]
struct Request {
    report_data: [u8; 64],
    report: [u8; REPORT_BYTES],
}

/// Asks the module about this guest.
#[derive(Clone, Copy, Debug)]
pub struct TdxGuest;

impl TdxGuest {
    /// Whether there is such a device.
    pub fn is_present() -> bool {
        Path::new(DEVICE).exists()
    }

    /// The policy that this guest was started for: MRCONFIGID, a SHA-256 and zeros.
    pub fn policy(self) -> Result<PolicyHash, IssueError> {
        let report = within(ANSWER_TIME, || {
            let io = |source| IssueError::Io { path: DEVICE.to_owned(), source };
            let device = File::open(DEVICE).map_err(io)?;
            let mut request = Request { report_data: [0; 64], report: [0; REPORT_BYTES] };
            // SAFETY: the descriptor is open, and the kernel reads and writes one `tdx_report_req`, which `Request` is
            // byte for byte: two arrays of bytes.
            let answer = unsafe { libc::ioctl(device.as_raw_fd(), GET_REPORT, &raw mut request) };
            match answer {
                0 => Ok(request.report),
                _ => Err(io(std::io::Error::last_os_error())),
            }
        })?;
        policy(&report)
    }
}

fn policy(report: &[u8; REPORT_BYTES]) -> Result<PolicyHash, IssueError> {
    let mut digest = [0; 32];
    let (found, zeros) = report[MR_CONFIG_ID..MR_CONFIG_ID + 48].split_at(32);
    digest.copy_from_slice(found);
    match zeros.iter().all(|byte| *byte == 0) {
        true => Ok(PolicyHash::from_bytes(digest)),
        false => Err(IssueError::Platform("MRCONFIGID is no SHA-256 with 16 zeros behind it".into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_policy_is_where_a_report_has_it() {
        assert_eq!(size_of::<Request>(), 0x440, "as the number of the request says");
        let mut report = [0; REPORT_BYTES];
        report[512 + 64..512 + 96].fill(7); // TDINFO_STRUCT begins at 512, MRCONFIGID at 64 in it
        assert_eq!(policy(&report).unwrap(), PolicyHash::from_bytes([7; 32]));
        report[512 + 96] = 1;
        assert!(policy(&report).is_err());
    }
}
