//! The file that holds every segment and every blob, one record after the other, only ever appended to.
//!
//! It is all of a local store that cannot be computed from something else. A record says what it is, so the
//! index beside it can be made anew from here. Byte offsets and lengths are big endian:
//!
//! | Bytes | Content |
//! |---|---|
//! | 1 | 0: a segment of the control stream, 1: a segment of a replica stream, 2: a blob |
//! | 4 | length of the body |
//! | 32 | the replica's id (16; zeros for control), zeros (8), index of the segment (8); or the SHA-256 of the blob |
//! | 4 | CRC-32 of the body |
//! | 4 | CRC-32 of the bytes before |
//! | | body |
//!
//! The checksums tell damage, and the end of what was written before a crash. Whether a body is authentic is
//! found out by [`crate::Log`], or from the name of the blob.

use std::{
    fmt,
    fs::{self, File, TryLockError},
    io,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};

use manifest::ReplicaId;

use crate::{BlobHash, StoreError, StreamId};

const NAME_AT: usize = 5;
const BODY_CRC_AT: usize = NAME_AT + 32;
const HEADER_CRC_AT: usize = BODY_CRC_AT + 4;
const HEADER: usize = HEADER_CRC_AT + 4;

/// What a record holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Name {
    Segment(StreamId, u64),
    Blob(BlobHash),
}

/// Where a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    at: u64,
    /// Of the body.
    length: u32,
}

/// The open file, which no other process has open.
pub(crate) struct Content {
    file: File,
    path: PathBuf,
}

impl Place {
    pub(crate) fn begin(self) -> u64 {
        self.at
    }

    pub(crate) fn end(self) -> u64 {
        self.at.saturating_add(HEADER as u64).saturating_add(self.length.into())
    }

    pub(crate) fn to_bytes(self) -> [u8; 12] {
        let mut bytes = [0; 12];
        bytes[..8].copy_from_slice(&self.at.to_be_bytes());
        bytes[8..].copy_from_slice(&self.length.to_be_bytes());
        bytes
    }

    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (at, length) = bytes.split_first_chunk()?;
        Some(Self { at: u64::from_be_bytes(*at), length: u32::from_be_bytes(length.try_into().ok()?) })
    }
}

impl Name {
    fn kind(self) -> u8 {
        match self {
            Self::Segment(StreamId::Control, _) => 0,
            Self::Segment(StreamId::Replica(_), _) => 1,
            Self::Blob(_) => 2,
        }
    }

    fn to_bytes(self) -> [u8; 32] {
        let (stream, index) = match self {
            Self::Blob(hash) => return *hash.as_bytes(),
            Self::Segment(stream, index) => (stream, index),
        };
        let mut bytes = [0; 32];
        if let StreamId::Replica(id) = stream {
            bytes[..16].copy_from_slice(id.as_bytes());
        }
        bytes[24..].copy_from_slice(&index.to_be_bytes());
        bytes
    }

    fn from_bytes(kind: u8, bytes: [u8; 32]) -> Option<Self> {
        let index = u64::from_be_bytes(*bytes.last_chunk()?);
        match kind {
            0 => Some(Self::Segment(StreamId::Control, index)),
            1 => Some(Self::Segment(StreamId::Replica(ReplicaId::from_bytes(*bytes.first_chunk()?)), index)),
            2 => Some(Self::Blob(BlobHash::from_bytes(bytes))),
            _ => None,
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Segment(stream, index) => write!(f, "stream {stream}, segment {index}"),
            Self::Blob(hash) => write!(f, "blob {hash}"),
        }
    }
}

struct Header {
    name: Name,
    length: u32,
    body_crc: u32,
}

impl Header {
    fn to_bytes(&self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        bytes[0] = self.name.kind();
        bytes[1..NAME_AT].copy_from_slice(&self.length.to_be_bytes());
        bytes[NAME_AT..BODY_CRC_AT].copy_from_slice(&self.name.to_bytes());
        bytes[BODY_CRC_AT..HEADER_CRC_AT].copy_from_slice(&self.body_crc.to_be_bytes());
        let crc = crc32fast::hash(&bytes[..HEADER_CRC_AT]);
        bytes[HEADER_CRC_AT..].copy_from_slice(&crc.to_be_bytes());
        bytes
    }

    /// `None` for bytes that are not a header, or not as they were written.
    fn from_bytes(bytes: &[u8; HEADER]) -> Option<Self> {
        let number = |at: usize| Some(u32::from_be_bytes(*bytes.get(at..)?.first_chunk()?));
        if number(HEADER_CRC_AT)? != crc32fast::hash(&bytes[..HEADER_CRC_AT]) {
            return None;
        }
        let name = Name::from_bytes(bytes[0], *bytes[NAME_AT..].first_chunk()?)?;
        Some(Self { name, length: number(1)?, body_crc: number(BODY_CRC_AT)? })
    }
}

impl Content {
    /// Opens the file, making it if it is not there, and keeps every other process from doing so.
    pub(crate) fn open(path: PathBuf) -> Result<Self, StoreError> {
        let here = |error| fault(&path, &error);
        let is_new = !path.exists();
        let file =
            File::options().read(true).write(true).create(true).truncate(false).open(&path).map_err(here)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let directory = path.parent().unwrap_or(&path).display().to_string();
                return Err(StoreError::InUse(directory));
            }
            Err(TryLockError::Error(error)) => return Err(here(error)),
        }
        if is_new && let Some(directory) = path.parent() {
            sync_directory(directory).map_err(here)?;
        }
        Ok(Self { file, path })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Number of bytes.
    pub(crate) fn length(&self) -> Result<u64, StoreError> {
        Ok(self.file.metadata().map_err(|error| fault(&self.path, &error))?.len())
    }

    /// Writes a record at `at`, which is where the last whole record ends. What a failed write left there
    /// is cut off first. Not flushed.
    pub(crate) fn write(&self, at: u64, name: Name, body: &[u8]) -> Result<Place, StoreError> {
        let too_large = |_| StoreError::Fault(format!("{} bytes are more than a record holds", body.len()));
        let length = u32::try_from(body.len()).map_err(too_large)?;
        let header = Header { name, length, body_crc: crc32fast::hash(body) }.to_bytes();
        let mut record = Vec::with_capacity(HEADER + body.len());
        record.extend_from_slice(&header);
        record.extend_from_slice(body);
        let write = || {
            if self.file.metadata()?.len() > at {
                self.file.set_len(at)?;
            }
            self.file.write_all_at(&record, at)
        };
        write().map_err(|error| fault(&self.path, &error))?;
        Ok(Place { at, length })
    }

    /// Makes durable what was written.
    pub(crate) fn flush(&self) -> Result<(), StoreError> {
        self.file.sync_data().map_err(|error| fault(&self.path, &error))
    }

    /// Writes the bytes between two places once more: after a flush that failed, the kernel may take them
    /// for written though they are not on the disk.
    pub(crate) fn write_again(&self, from: u64, to: u64) -> Result<(), StoreError> {
        let mut buffer = vec![0; 1 << 20];
        let mut at = from;
        while at < to {
            let size = usize::try_from(to - at).map_or(buffer.len(), |left| left.min(buffer.len()));
            let again = self.file.read_exact_at(&mut buffer[..size], at);
            again
                .and_then(|()| self.file.write_all_at(&buffer[..size], at))
                .map_err(|error| fault(&self.path, &error))?;
            at += size as u64;
        }
        Ok(())
    }

    /// The body of a record, as it was written; `None` if another record is at that place.
    pub(crate) fn read(
        &self,
        Place { at, length }: Place,
        name: Name,
    ) -> Result<Option<Vec<u8>>, StoreError> {
        let damaged = |at: u64, how: String| StoreError::Damaged {
            file: self.path.display().to_string(),
            at,
            what: format!("{name}: {how}"),
        };
        let mut header = [0; HEADER];
        let mut body = vec![0; length as usize];
        let read = self.file.read_exact_at(&mut header, at);
        match read.and_then(|()| self.file.read_exact_at(&mut body, at.saturating_add(HEADER as u64))) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return Err(damaged(at, "the file ends before it does".into()));
            }
            Err(error) => return Err(damaged(at, error.to_string())),
        }
        match Header::from_bytes(&header) {
            None => Err(damaged(at, "its header does not have its checksum".into())),
            Some(found) if found.name != name || found.length != length => Ok(None),
            Some(found) if found.body_crc == crc32fast::hash(&body) => Ok(Some(body)),
            Some(_) => Err(damaged(
                at + HEADER as u64,
                format!("the {length} bytes from there do not have their checksum"),
            )),
        }
    }

    /// Hands out every whole record from `from` on. Gives the place where the last one ends.
    pub(crate) fn scan<E: From<StoreError>>(
        &self,
        from: u64,
        mut on_record: impl FnMut(Name, Place) -> Result<(), E>,
    ) -> Result<u64, E> {
        let length = self.length()?;
        let mut at = from;
        let mut body = Vec::new();
        loop {
            let mut header = [0; HEADER];
            if length.saturating_sub(at) < HEADER as u64 {
                return Ok(at);
            }
            self.file.read_exact_at(&mut header, at).map_err(|error| fault(&self.path, &error))?;
            let Some(Header { name, length: size, body_crc }) = Header::from_bytes(&header) else {
                return Ok(at);
            };
            let place = Place { at, length: size };
            if place.end() > length {
                return Ok(at);
            }
            body.resize(size as usize, 0);
            let body_at = at + HEADER as u64;
            self.file.read_exact_at(&mut body, body_at).map_err(|error| fault(&self.path, &error))?;
            if crc32fast::hash(&body) != body_crc {
                return Ok(at);
            }
            on_record(name, place)?;
            at = place.end();
        }
    }
}

/// Makes the names in a directory durable.
pub(crate) fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

/// Writes a small file so that it is either the old one or the new one, whatever happens meanwhile.
pub(crate) fn replace_file(path: &Path, content: &[u8]) -> io::Result<()> {
    let beside = path.with_extension("new");
    fs::write(&beside, content)?;
    File::open(&beside)?.sync_all()?;
    fs::rename(&beside, path)?;
    path.parent().map_or(Ok(()), sync_directory)
}

pub(crate) fn fault(path: &Path, error: &io::Error) -> StoreError {
    StoreError::Fault(format!("{}: {error}", path.display()))
}
