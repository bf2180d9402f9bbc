//! The seal: binds a volume's header, and how far its making has come, to this workload.
//!
//! A block of 4 KiB: magic (16), state (1), 1 where the volume belongs to one pod of a StatefulSet and 0 where it does
//! not (1), zeros (2), that pod's ordinal (4, big endian), SHA-256 of the header (32, zeros while there is none),
//! HMAC-SHA256 of all that (32), zeros. Its key is derived from the workload secret and the mount point, so that two
//! volumes of one workload cannot be exchanged for one another. The pods of a StatefulSet share both; the ordinal
//! tells their volumes apart, and stands there in the clear so that an exchanged one can be named.

use std::fmt;

use aws_lc_rs::{hkdf, hmac};
use sha2::{Digest as _, Sha256};

use crate::{HEADER_BYTES, HeaderError, check_header};

/// Size of the seal's block, in bytes.
pub const SEAL_BYTES: usize = 4096;
const MAGIC: &[u8; 16] = b"CONTRAST-SEAL-1\n";
const SIGNED: usize = 56;
const BOUND: usize = 17;
const ORDINAL: std::ops::Range<usize> = 20..24;
const LABEL: &[u8] = b"CONTRAST ENCRYPTED VOLUME SEAL";

/// Makes and checks seals of one volume.
#[derive(Clone)]
pub struct SealKey {
    key: hmac::Key,
    ordinal: Option<u32>,
}

impl fmt::Debug for SealKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SealKey(..)")
    }
}

impl SealKey {
    /// The key for the volume that is mounted at `mount_point`; `None` if the library fails.
    pub fn derive(workload_secret: &[u8], mount_point: &str) -> Option<Self> {
        let secret = hkdf::Salt::new(hkdf::HKDF_SHA256, &[]).extract(workload_secret);
        let info = [LABEL, mount_point.as_bytes()];
        let key = secret.expand(&info, hmac::HMAC_SHA256).ok()?;
        Some(Self { key: hmac::Key::from(key), ordinal: None })
    }

    /// The same for a volume that belongs to this pod of a StatefulSet, and to no other.
    pub fn of_pod(self, ordinal: u32) -> Self {
        Self { ordinal: Some(ordinal), ..self }
    }

    /// The same for a volume that was made before seals named a pod.
    pub fn of_any_pod(&self) -> Self {
        Self { ordinal: None, ..self.clone() }
    }
}

/// How far a volume's making has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Formatting began. Nothing was ever stored.
    Formatting,
    /// The header is there; the file system may not be. Nothing was ever stored.
    Encrypted,
    /// In use.
    Ready,
}

impl State {
    fn to_byte(self) -> u8 {
        match self {
            Self::Formatting => 1,
            Self::Encrypted => 2,
            Self::Ready => 3,
        }
    }
}

/// What is to be done with a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Format it: it is blank, or formatting was interrupted.
    Format,
    /// Open it, and make its file system.
    MakeFileSystem,
    /// Open it.
    Open,
}

/// Why a device is not touched.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Something is on it, but no seal.
    #[error(
        "the device holds {0} but no seal of this workload; it is neither opened nor overwritten. If nothing on it is \
         needed, blank its first 16 MiB (blkdiscard -z or dd if=/dev/zero)"
    )]
    NotSealed(&'static str),
    /// The seal's MAC is wrong.
    #[error(
        "the device's seal is not of this workload and mount point, or was changed. Another WorkloadSecretID, another \
         mount point, another volume, or an attack"
    )]
    ForeignSeal,
    /// It belongs to another pod.
    #[error(
        "the device is the volume of pod {found} of this StatefulSet, and this is pod {expected}: the disks were exchanged"
    )]
    OtherPod {
        /// This pod's ordinal.
        expected: u32,
        /// The ordinal that was sealed.
        found: u32,
    },
    /// It belongs to one pod, and this workload's volumes do not.
    #[error(
        "the device is the volume of pod {0} of a StatefulSet, and this start was not told of which pod it is \
         (--stateful-set)"
    )]
    OfAPod(u32),
    /// It was sealed before seals named a pod.
    #[error(
        "the volume was made by a version that did not note which pod of the StatefulSet it belongs to, so that the host \
         could have exchanged it. If it is this pod's, let it start once with --adopt-volume (the annotation \
         secure-pv-adopt)"
    )]
    OfNoPod,
    /// The header is not the one that was sealed.
    #[error("the volume's LUKS2 header is not the one that this workload sealed: replaced or changed")]
    HeaderChanged,
    /// The header was sealed, but is not one that we write.
    #[error(transparent)]
    Header(#[from] HeaderError),
}

/// The seal over a header; `None` while there is none yet.
pub fn seal(key: &SealKey, state: State, header: Option<&[u8]>) -> [u8; SEAL_BYTES] {
    let mut block = [0; SEAL_BYTES];
    let digest = header.map_or([0; 32], |header| Sha256::digest(header).into());
    let bound = [u8::from(key.ordinal.is_some()), 0, 0];
    let ordinal = key.ordinal.unwrap_or_default().to_be_bytes();
    let signed = [MAGIC.as_slice(), &[state.to_byte()], &bound, &ordinal, &digest].concat();
    let mac = hmac::sign(&key.key, &signed);
    let whole = [signed.as_slice(), mac.as_ref()].concat();
    for (to, from) in block.iter_mut().zip(whole) {
        *to = from;
    }
    block
}

/// Says what is to be done with a device whose first bytes are `header` and whose seal block is `block`.
pub fn judge(key: &SealKey, header: &[u8], block: &[u8; SEAL_BYTES]) -> Result<Verdict, Refused> {
    let Some(state) = authentic_state(key, block)? else {
        return match what_is_there(header) {
            None => Ok(Verdict::Format),
            Some(thing) => Err(Refused::NotSealed(thing)),
        };
    };
    let sealed = block.get(BOUND).filter(|bound| **bound == 1).map(|_| {
        let ordinal = block.get(ORDINAL).and_then(|bytes| bytes.try_into().ok());
        u32::from_be_bytes(ordinal.unwrap_or_default())
    });
    match (key.ordinal, sealed) {
        (Some(expected), Some(found)) if expected != found => {
            return Err(Refused::OtherPod { expected, found });
        }
        (None, Some(found)) => return Err(Refused::OfAPod(found)),
        (Some(_), None) => return Err(Refused::OfNoPod),
        _ => {}
    }
    if state == State::Formatting {
        return Ok(Verdict::Format);
    }
    // The state was authenticated, so this is the whole seal that belongs to the header.
    if *block != seal(key, state, Some(header)) {
        return Err(Refused::HeaderChanged);
    }
    check_header(header)?;
    Ok(if state == State::Ready { Verdict::Open } else { Verdict::MakeFileSystem })
}

/// `None` if there is no seal at all.
fn authentic_state(key: &SealKey, block: &[u8; SEAL_BYTES]) -> Result<Option<State>, Refused> {
    if block.iter().all(|byte| *byte == 0) {
        return Ok(None);
    }
    let (signed, rest) = block.split_at(SIGNED);
    let mac = rest.get(..32).unwrap_or_default();
    hmac::verify(&key.key, signed, mac).map_err(|_| Refused::ForeignSeal)?;
    let states = [State::Formatting, State::Encrypted, State::Ready];
    let state = states.into_iter().find(|state| signed.get(16) == Some(&state.to_byte()));
    state.map(Some).ok_or(Refused::ForeignSeal)
}

fn what_is_there(start: &[u8]) -> Option<&'static str> {
    let at = |place: usize, magic: &[u8]| start.get(place..place + magic.len()) == Some(magic);
    if start.len() != HEADER_BYTES {
        return Some("too little to tell");
    }
    if at(0, b"LUKS\xba\xbe") || at(16 << 10, b"SKUL\xba\xbe") {
        return Some("a LUKS volume");
    }
    if at(1080, &[0x53, 0xef]) {
        return Some("an ext2, ext3 or ext4 file system");
    }
    start.iter().any(|byte| *byte != 0).then_some("data")
}
