//! An OCI layout: a folder, or a tar of one.

use std::{
    fs::File,
    io::Read,
    path::{Path, PathBuf},
};

use oci_spec::distribution::Reference;

use crate::{
    Digest, ImageError,
    archive::Archive,
    schema::{Descriptor, MAX_MANIFEST_BYTES, ManifestFile, parse},
};

/// Where the files of a layout are.
#[derive(Debug)]
pub(crate) enum Layout {
    Folder(PathBuf),
    Archive(Archive),
}

impl Layout {
    pub(crate) fn open(&self, name: &str) -> Result<Box<dyn Read + Send>, ImageError> {
        match self {
            Self::Folder(folder) => {
                let path = folder.join(name);
                Ok(Box::new(File::open(&path).map_err(ImageError::io(&path))?))
            }
            Self::Archive(archive) => archive.open(name),
        }
    }

    pub(crate) fn small(&self, name: &str, limit: u64) -> Result<Vec<u8>, ImageError> {
        let mut bytes = Vec::new();
        let read = self.open(name)?.take(limit + 1).read_to_end(&mut bytes);
        read.map_err(ImageError::io(Path::new(name)))?;
        if bytes.len() as u64 > limit {
            return Err(ImageError::malformed(name, format!("larger than {limit} bytes")));
        }
        Ok(bytes)
    }

    pub(crate) fn blob_name(digest: Digest) -> String {
        format!("blobs/sha256/{}", digest.hex())
    }

    /// The descriptor of an image, by digest or by one of the names that tools write into the index.
    pub(crate) fn find(&self, reference: &Reference) -> Result<Option<Descriptor>, ImageError> {
        let index: ManifestFile = parse("index.json", &self.small("index.json", MAX_MANIFEST_BYTES)?)?;
        if let Some(digest) = reference.digest() {
            let digest: Digest = digest.parse()?;
            return Ok(index.manifests.into_iter().find(|descriptor| descriptor.digest == digest));
        }
        let tag = reference.tag().unwrap_or("latest");
        let whole = format!("{}/{}:{tag}", reference.registry(), reference.repository());
        let named = |descriptor: &Descriptor| {
            let names = ["org.opencontainers.image.ref.name", "io.containerd.image.name"];
            names.iter().filter_map(|name| descriptor.annotations.get(*name)).any(|name| {
                let parsed = name.contains(['/', ':']).then(|| name.parse::<Reference>().ok()).flatten();
                parsed.is_some_and(|name| {
                    format!("{}/{}:{}", name.registry(), name.repository(), name.tag().unwrap_or("latest"))
                        == whole
                })
            })
        };
        Ok(index.manifests.into_iter().find(named))
    }
}
