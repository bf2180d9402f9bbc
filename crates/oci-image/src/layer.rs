//! One layer: a tar of changed files, read once from front to back.

use std::io::{self, Read};

use serde::{Deserialize, Serialize};

use crate::{Digest, ImageError, digest::Hashing};

/// Largest user database, in bytes.
const MAX_FILE_BYTES: u64 = 4 << 20;
/// Largest layer after decompression, in bytes.
const MAX_LAYER_BYTES: u64 = 128 << 30;

/// What a layer does to the user database.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerFacts {
    /// SHA-256 of the uncompressed tar, as `sha256:` and hex.
    pub diff_id: String,
    /// `/etc/passwd`.
    pub passwd: Change,
    /// `/etc/group`.
    pub group: Change,
}

/// What a layer does to a file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change {
    /// Nothing.
    #[default]
    Kept,
    /// Removes it.
    Removed,
    /// Writes it.
    Written(String),
    /// Makes it a link, which is not followed.
    Linked,
}

enum Decoder<R: Read> {
    Plain(R),
    Gzip(Box<flate2::read::MultiGzDecoder<R>>),
    Zstd(Box<ruzstd::decoding::StreamingDecoder<R, ruzstd::decoding::FrameDecoder>>),
}

impl<R: Read> Decoder<R> {
    /// Chooses by the first bytes, as runtimes do; media types differ between tools.
    fn detect(mut reader: R) -> io::Result<Decoder<io::Chain<io::Cursor<Vec<u8>>, R>>> {
        let mut magic = Vec::with_capacity(4);
        reader.by_ref().take(4).read_to_end(&mut magic)?;
        let start = magic.clone();
        let reader = io::Cursor::new(magic).chain(reader);
        Ok(match start.as_slice() {
            [0x1f, 0x8b, ..] => Decoder::Gzip(Box::new(flate2::read::MultiGzDecoder::new(reader))),
            [0x28, 0xb5, 0x2f, 0xfd] => Decoder::Zstd(Box::new(
                ruzstd::decoding::StreamingDecoder::new(reader)
                    .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))?,
            )),
            _ => Decoder::Plain(reader),
        })
    }

    fn into_inner(self) -> R {
        match self {
            Self::Plain(reader) => reader,
            Self::Gzip(decoder) => decoder.into_inner(),
            Self::Zstd(decoder) => decoder.into_inner(),
        }
    }
}

impl<R: Read> Read for Decoder<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(reader) => reader.read(buffer),
            Self::Gzip(decoder) => decoder.read(buffer),
            Self::Zstd(decoder) => decoder.read(buffer),
        }
    }
}

impl LayerFacts {
    /// Reads a layer, compares it with both its digests (`blob` of what is transported, where it is
    /// known; `diff_id` of the tar), and tells what it does. Nothing is told of a layer that is not what it
    /// should be. `what` names it in errors.
    pub fn read(
        what: &str,
        reader: impl Read,
        blob: Option<Digest>,
        diff_id: Digest,
    ) -> Result<Self, ImageError> {
        read(what, reader, blob, diff_id)
    }
}

fn read(
    what: &str,
    reader: impl Read,
    blob: Option<Digest>,
    diff_id: Digest,
) -> Result<LayerFacts, ImageError> {
    let broken = |error: io::Error| ImageError::malformed(what, format!("not a readable layer: {error}"));
    let transported = Hashing::new(reader);
    let decoder = Decoder::detect(transported).map_err(broken)?;
    let mut tar = tar::Archive::new(Hashing::new(decoder.take(MAX_LAYER_BYTES)));
    let mut facts = LayerFacts { diff_id: diff_id.to_string(), ..LayerFacts::default() };
    for entry in tar.entries().map_err(broken)? {
        let mut entry = entry.map_err(broken)?;
        let path = entry.path_bytes().into_owned();
        let path = normal(&path);
        let (file, whiteout) = match path.as_str() {
            "etc/passwd" => (&mut facts.passwd, false),
            "etc/.wh.passwd" => (&mut facts.passwd, true),
            "etc/group" => (&mut facts.group, false),
            "etc/.wh.group" => (&mut facts.group, true),
            ".wh.etc" | "etc/.wh..wh..opq" | ".wh..wh..opq" => {
                for file in [&mut facts.passwd, &mut facts.group] {
                    if *file == Change::Kept {
                        *file = Change::Removed;
                    }
                }
                continue;
            }
            _ => continue,
        };
        *file = match entry.header().entry_type() {
            _ if whiteout => Change::Removed,
            tar::EntryType::Regular | tar::EntryType::Continuous => {
                let mut text = Vec::new();
                entry.by_ref().take(MAX_FILE_BYTES + 1).read_to_end(&mut text).map_err(broken)?;
                if text.len() as u64 > MAX_FILE_BYTES {
                    return Err(ImageError::malformed(
                        what,
                        format!("/{path} is larger than {MAX_FILE_BYTES} bytes"),
                    ));
                }
                Change::Written(String::from_utf8_lossy(&text).into_owned())
            }
            _ => Change::Linked,
        };
    }
    // The end of a tar may be followed by padding, which both digests cover.
    let (decoder, uncompressed) = tar.into_inner().finish().map_err(broken)?;
    let transported = decoder.into_inner().into_inner();
    let (_, compressed) = transported.into_inner().1.finish().map_err(broken)?;
    let compare = |expected: Digest, found: Digest, form: &str| match found == expected {
        true => Ok(()),
        false => Err(ImageError::Digest {
            what: format!("{what}, {form}"),
            expected: expected.to_string(),
            found: found.to_string(),
        }),
    };
    if let Some(blob) = blob {
        compare(blob, compressed, "as transported")?;
    }
    compare(diff_id, uncompressed, "uncompressed")?;
    Ok(facts)
}

/// `./etc/passwd`, `/etc/passwd` and `etc//passwd` are one file.
fn normal(path: &[u8]) -> String {
    let text = String::from_utf8_lossy(path);
    text.split('/').filter(|part| !part.is_empty() && *part != ".").collect::<Vec<_>>().join("/")
}

/// A file after all layers, lowest first; `None` if there is none.
pub(crate) fn stack<'a>(changes: impl Iterator<Item = &'a Change>) -> &'a Change {
    changes.filter(|change| **change != Change::Kept).last().unwrap_or(&Change::Removed)
}
