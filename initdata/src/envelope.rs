//! What Kata's shims write on the device: a magic word, the length of what follows (64 bits, little endian), and the
//! document, compressed with gzip. What comes behind it fills the device's last sector.

use std::io::{self, Read};

use flate2::bufread::GzDecoder;

/// What the device begins with.
pub const MAGIC: [u8; 8] = *b"initdata";
/// Largest compressed document, in bytes: an annotation, whose base64 is a third larger, may have 256 KiB.
pub const MAX_COMPRESSED: u64 = 1 << 20;
/// Largest document, in bytes: agents read no larger policy.
pub const MAX_DOCUMENT: u64 = 4 << 20;

/// Why a device with the magic word holds no document.
#[derive(Debug, thiserror::Error)]
pub enum EnvelopeError {
    /// The device cannot be read.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// No length that a document has.
    #[error("it announces {0} compressed bytes; 1 to {MAX_COMPRESSED} are accepted")]
    Length(u64),
    /// The device ends earlier.
    #[error("it announces {announced} compressed bytes and ends after {found}")]
    CutOff {
        /// The length, in bytes.
        announced: u64,
        /// What is there, in bytes.
        found: u64,
    },
    /// Not one gzip stream.
    #[error("it is not one gzip stream: {0}")]
    Gzip(String),
    /// Over the limit.
    #[error("it unpacks to more than {MAX_DOCUMENT} bytes")]
    TooLarge,
}

/// The document on a device, unpacked; `None` if the device begins otherwise.
pub fn read(mut device: impl Read) -> Result<Option<Vec<u8>>, EnvelopeError> {
    let mut head = Vec::with_capacity(16);
    (&mut device).take(16).read_to_end(&mut head)?;
    let Some((magic, length)) = head.split_first_chunk::<8>() else { return Ok(None) };
    if *magic != MAGIC {
        return Ok(None);
    }
    let length: [u8; 8] =
        length.try_into().map_err(|_| EnvelopeError::CutOff { announced: 8, found: length.len() as u64 })?;
    let announced = u64::from_le_bytes(length);
    if !(1..=MAX_COMPRESSED).contains(&announced) {
        return Err(EnvelopeError::Length(announced));
    }
    let mut packed = Vec::new();
    device.take(announced).read_to_end(&mut packed)?;
    let found = packed.len() as u64;
    if found < announced {
        return Err(EnvelopeError::CutOff { announced, found });
    }
    unpack(&packed).map(Some)
}

fn unpack(packed: &[u8]) -> Result<Vec<u8>, EnvelopeError> {
    let mut document = Vec::new();
    let mut gzip = GzDecoder::new(packed);
    let unpacked = (&mut gzip).take(MAX_DOCUMENT + 1).read_to_end(&mut document);
    unpacked.map_err(|error| EnvelopeError::Gzip(error.to_string()))?;
    if document.len() as u64 > MAX_DOCUMENT {
        return Err(EnvelopeError::TooLarge);
    }
    match gzip.into_inner() {
        [] => Ok(document),
        rest => Err(EnvelopeError::Gzip(format!("{} bytes follow it", rest.len()))),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use flate2::{Compression, write::GzEncoder};
    use proptest::prelude::*;

    use super::*;

    fn packed(document: &[u8]) -> Vec<u8> {
        let mut gzip = GzEncoder::new(Vec::new(), Compression::best());
        gzip.write_all(document).unwrap();
        gzip.finish().unwrap()
    }

    fn device(packed: &[u8], length: u64) -> Vec<u8> {
        let mut device = [&MAGIC[..], &length.to_le_bytes(), packed].concat();
        device.resize(device.len().next_multiple_of(512), 0);
        device
    }

    fn refusal(device: &[u8]) -> String {
        read(device).unwrap_err().to_string()
    }

    #[test]
    fn other_devices_are_left_alone() {
        for other in [&b""[..], b"init", b"initdata".split_at(7).0, &[0; 4096], b"INITDATA--------"] {
            assert!(read(other).unwrap().is_none(), "{other:?}");
        }
    }

    #[test]
    fn what_is_not_one_bounded_document_is_refused() {
        let good = packed(b"document");
        let size = good.len() as u64;
        assert_eq!(read(&device(&good, size)[..]).unwrap().unwrap(), b"document");
        assert!(refusal(&MAGIC).contains("ends after 0"));
        for length in [0, MAX_COMPRESSED + 1, u64::MAX] {
            assert!(
                refusal(&device(&good, length)).starts_with(&format!("it announces {length} compressed"))
            );
        }
        assert!(
            refusal(&device(&good, 4096)).contains("ends after 496"),
            "{}",
            refusal(&device(&good, 4096))
        );
        assert!(refusal(&device(&good, size - 1)).contains("not one gzip stream"));
        assert!(refusal(&device(&good, size + 1)).contains("1 bytes follow it"));
        let two = [good.clone(), good].concat();
        assert!(refusal(&device(&two, two.len() as u64)).contains("bytes follow it"));
        let bomb = packed(&vec![0; usize::try_from(MAX_DOCUMENT).unwrap() + 1]);
        assert!(refusal(&device(&bomb, bomb.len() as u64)).contains("unpacks to more than"));
    }

    proptest! {
        /// Whatever the host writes: the document as it was, another one of one stream, or a refusal.
        #[test]
        fn a_changed_device_is_no_document_or_another_one(document: Vec<u8>, at: prop::sample::Index, bit in 0_u8..8) {
            let packed = packed(&document);
            let mut device = device(&packed, packed.len() as u64);
            prop_assert_eq!(read(&device[..]).unwrap().unwrap(), document);
            device[at.index(16 + packed.len())] ^= 1 << bit;
            let _ = read(&device[..]);
        }

        #[test]
        fn arbitrary_bytes_never_panic(length: u64, bytes: Vec<u8>) {
            let _ = read(&device(&bytes, length)[..]);
            let _ = read(&device(&bytes, bytes.len() as u64)[..]);
        }
    }
}
