//! OCI image layout 1.0: blobs by digest, and an index.

use std::{
    io::Write as _,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use flate2::{Compression, GzBuilder};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

/// Who programs run as, unless they must be root.
const NOBODY: &str = "65532:65532";
const PASSWD: &str = "root:x:0:0:root:/:/sbin/nologin\nnonroot:x:65532:65532:nonroot:/:/sbin/nologin\n";
const GROUP: &str = "root:x:0:\nnonroot:x:65532:\n";

/// One image.
#[derive(Debug)]
pub(crate) struct Image<'a> {
    pub(crate) name: &'a str,
    pub(crate) version: &'a str,
    /// The program of that name and others that it starts, static binaries.
    pub(crate) programs: &'a [(&'a str, Vec<u8>)],
    /// Whether it runs as root.
    pub(crate) root: bool,
    /// Seconds since 1970.
    pub(crate) epoch: u64,
    /// A folder of programs and libraries beside it.
    pub(crate) tools: Option<&'a Path>,
}

/// A layout that is being written.
#[derive(Debug)]
pub(crate) struct Layout {
    folder: PathBuf,
    manifests: Vec<Value>,
}

impl Layout {
    pub(crate) fn new(folder: &Path) -> anyhow::Result<Self> {
        std::fs::create_dir_all(folder.join("blobs/sha256"))?;
        std::fs::write(folder.join("oci-layout"), br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        Ok(Self { folder: folder.to_owned(), manifests: Vec::new() })
    }

    /// Adds an image; returns its digest in hex.
    pub(crate) fn add(&mut self, image: &Image<'_>) -> anyhow::Result<String> {
        for (name, binary) in image.programs {
            demand_static(name, binary)?;
        }
        let mut layers = vec![layer(image)?];
        layers.extend(image.tools.map(|folder| tools_layer(folder, image.epoch)).transpose()?);
        let diff_ids: Vec<_> = layers.iter().map(|layer| format!("sha256:{}", hash(layer))).collect();
        let history = vec![json!({ "created": created(image), "created_by": "build-images" }); layers.len()];
        let layers: Vec<Value> = layers.iter().map(|layer| self.layer(layer)).collect::<Result<_, _>>()?;
        let created = created(image);
        let labels = json!({
            "org.opencontainers.image.title": image.name, "org.opencontainers.image.version": image.version,
            "org.opencontainers.image.licenses": "Apache-2.0", "org.opencontainers.image.created": created,
        });
        let config = json!({
            "architecture": "amd64", "os": "linux", "created": created,
            "config": {
                "User": if image.root { "0:0" } else { NOBODY }, "Entrypoint": [format!("/{}", image.name)],
                "WorkingDir": "/", "Env": ["PATH=/:/usr/sbin"], "Labels": labels,
            },
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
            "history": history,
        });
        let config = self.blob("application/vnd.oci.image.config.v1+json", &serde_json::to_vec(&config)?)?;
        let kind = "application/vnd.oci.image.manifest.v1+json";
        let manifest = json!({
            "schemaVersion": 2, "mediaType": kind, "config": config, "layers": layers, "annotations": labels,
        });
        let bytes = serde_json::to_vec(&manifest)?;
        let mut descriptor = self.blob(kind, &bytes)?;
        descriptor["annotations"] = json!({ "org.opencontainers.image.ref.name": image.name });
        self.manifests.push(descriptor);
        Ok(hash(&bytes))
    }

    pub(crate) fn finish(self) -> anyhow::Result<()> {
        let kind = "application/vnd.oci.image.index.v1+json";
        let index = json!({ "schemaVersion": 2, "mediaType": kind, "manifests": self.manifests });
        Ok(std::fs::write(self.folder.join("index.json"), serde_json::to_vec_pretty(&index)?)?)
    }

    fn layer(&self, tar: &[u8]) -> anyhow::Result<Value> {
        let mut gzip = GzBuilder::new().mtime(0).write(Vec::new(), Compression::best());
        gzip.write_all(tar)?;
        self.blob("application/vnd.oci.image.layer.v1.tar+gzip", &gzip.finish()?)
    }

    fn blob(&self, kind: &str, bytes: &[u8]) -> anyhow::Result<Value> {
        let digest = hash(bytes);
        std::fs::write(self.folder.join("blobs/sha256").join(&digest), bytes)?;
        Ok(json!({ "mediaType": kind, "digest": format!("sha256:{digest}"), "size": bytes.len() }))
    }
}

fn hash(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

/// The image has no dynamic loader, so its program must not ask for one (ELF program header `PT_INTERP`).
fn demand_static(name: &str, binary: &[u8]) -> anyhow::Result<()> {
    let number = |at: usize, size: usize| -> Option<usize> {
        let bytes = binary.get(at..at.checked_add(size)?)?;
        bytes
            .iter()
            .rev()
            .try_fold(0_usize, |value, byte| value.checked_mul(256)?.checked_add(usize::from(*byte)))
    };
    let headers = || Some((number(32, 8)?, number(54, 2)?, number(56, 2)?));
    let (start, size, count) = (binary.starts_with(b"\x7fELF\x02\x01"))
        .then(headers)
        .flatten()
        .with_context(|| format!("{name} is no 64-bit ELF program"))?;
    let kinds = (0..count).filter_map(|index| number(start.checked_add(index.checked_mul(size)?)?, 4));
    anyhow::ensure!(
        !kinds.into_iter().any(|kind| kind == 3),
        "{name} is not static: build it as deploy/images/build does, with target-feature=+crt-static"
    );
    Ok(())
}

fn created(image: &Image<'_>) -> String {
    rfc3339(image.epoch)
}

/// The image's first layer: the programs, and names for the two users.
fn layer(image: &Image<'_>) -> anyhow::Result<Vec<u8>> {
    let mut layer = tar::Builder::new(Vec::new());
    for (name, binary) in image.programs {
        append(&mut layer, Path::new(name), 0o755, Some(binary), image.epoch)?;
    }
    let entries: [(&str, u32, Option<&[u8]>); 4] = [
        ("etc/", 0o755, None),
        ("etc/group", 0o644, Some(GROUP.as_bytes())),
        ("etc/passwd", 0o644, Some(PASSWD.as_bytes())),
        ("tmp/", 0o1777, None),
    ];
    for (path, mode, contents) in entries {
        append(&mut layer, Path::new(path), mode, contents, image.epoch)?;
    }
    Ok(layer.into_inner()?)
}

/// A folder's files and folders in the order of their names, root's, all of one time.
fn tools_layer(folder: &Path, epoch: u64) -> anyhow::Result<Vec<u8>> {
    let mut layer = tar::Builder::new(Vec::new());
    let mut todo = vec![PathBuf::new()];
    while let Some(path) = todo.pop() {
        let here = folder.join(&path);
        let found =
            std::fs::symlink_metadata(&here).with_context(|| format!("cannot read {}", here.display()))?;
        if found.is_dir() {
            let names = std::fs::read_dir(&here)?.map(|entry| Ok(path.join(entry?.file_name())));
            let mut names = names.collect::<std::io::Result<Vec<_>>>()?;
            names.sort_by(|one, other| other.cmp(one)); // the last one is taken first
            todo.extend(names);
            if path != Path::new("") {
                append(&mut layer, &path, 0o755, None, epoch)?;
            }
            continue;
        }
        anyhow::ensure!(found.is_file(), "{} is neither a file nor a folder", here.display());
        let runs = std::os::unix::fs::PermissionsExt::mode(&found.permissions()) & 0o100 != 0;
        append(&mut layer, &path, if runs { 0o755 } else { 0o644 }, Some(&std::fs::read(&here)?), epoch)?;
    }
    Ok(layer.into_inner()?)
}

/// A file, or without contents a folder.
fn append(
    layer: &mut tar::Builder<Vec<u8>>,
    path: &Path,
    mode: u32,
    contents: Option<&[u8]>,
    epoch: u64,
) -> anyhow::Result<()> {
    let mut header = tar::Header::new_ustar();
    header.set_path(path)?;
    header.set_mode(mode);
    header.set_mtime(epoch);
    header.set_size(u64::try_from(contents.unwrap_or_default().len())?);
    header.set_entry_type(match contents {
        Some(_) => tar::EntryType::Regular,
        None => tar::EntryType::Directory,
    });
    header.set_cksum();
    Ok(layer.append(&header, contents.unwrap_or_default())?)
}

/// Seconds since 1970 as a date (Howard Hinnant's days-to-civil).
fn rfc3339(epoch: u64) -> String {
    let (days, seconds) = (epoch / 86_400 + 719_468, epoch % 86_400);
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let shifted = (5 * day + 2) / 153;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let (year, day) = (era * 400 + year + u64::from(month <= 2), day - (153 * shifted + 2) / 5 + 1);
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00Z");
        assert_eq!(rfc3339(1_709_208_000), "2024-02-29T12:00:00Z");
        assert_eq!(rfc3339(1_795_521_599), "2026-11-24T11:59:59Z");
    }

    #[test]
    fn a_program_that_needs_a_loader_is_refused() {
        let binary = std::fs::read("/proc/self/exe").unwrap();
        let refused = demand_static("coordinator", &binary).unwrap_err().to_string();
        assert!(refused.starts_with("coordinator is not static"), "{refused}");
        assert!(demand_static("coordinator", b"#!/bin/sh").is_err());
    }
}
