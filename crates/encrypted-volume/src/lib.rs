//! Judges what a hostile host presents as an encrypted volume, before anything opens it.
//!
//! A LUKS2 header is not authenticated: a host can hand over one that names a null cipher, and the guest
//! would write its secrets in the clear. So a volume of ours carries a *seal*: a MAC over its header under a
//! key that only this workload can derive. The order is: copy the header into memory, authenticate the
//! copy, check each of its fields against what we would have written ourselves, and open the volume with
//! that copy. What the host changes afterwards is not read.
//!
//! ```text
//! 0            32 KiB          1056 KiB        16 MiB - 4 KiB   16 MiB
//! | 2 LUKS2 headers | keyslots | unused        | seal           | data, authenticated sector by sector
//! ```
//!
//! What it does not do: tell an old copy of the whole volume from the newest (a host can always roll a
//! disk back), or a removed volume from a new, blank one.
//!
//! Plain functions on bytes; no device, no clock, no processes.

mod header;
mod metadata;
mod seal;

pub use header::{HEADER_BYTES, HeaderError, check_header};
pub use metadata::{CIPHER, INTEGRITY, KDF_MEMORY_KIB, KEY_BITS, KEYSLOTS_BYTES, SECTOR_BYTES};
pub use seal::{Refused, SEAL_BYTES, SealKey, State, Verdict, judge, seal};

/// Where the volume's data begins, in bytes.
pub const DATA_OFFSET: u64 = 16 << 20;
/// Where the seal is, in bytes.
pub const SEAL_OFFSET: u64 = DATA_OFFSET - 4096;
/// The smallest device that can be used, in bytes.
pub const MIN_DEVICE_BYTES: u64 = 17 << 20;
