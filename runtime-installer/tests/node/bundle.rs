//! Runtimes and images to install from.

use std::{fs, path::PathBuf};

use runtime_bundle::Digest;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;

/// A folder with a configuration and local files.
pub(crate) struct Bundle {
    pub(crate) folder: TempDir,
    config: Value,
}

impl Bundle {
    /// A runtime whose shim runs sandboxes in runc. Another `version`, another handler.
    pub(crate) fn new(version: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut files = Vec::new();
        for (name, path) in [
            ("shim", "bin/containerd-shim-contrast-cc-v2"),
            ("qemu", "bin/qemu-system-x86_64"),
            ("kernel", "share/kata-kernel"),
            ("initrd", "share/kata-initrd.zst"),
        ] {
            fs::write(folder.path().join(name), format!("{name} {version}")).unwrap();
            files.push(json!({ "url": name, "path": place(path), "executable": path.starts_with("bin") }));
        }
        fs::copy(shim(), folder.path().join("shim")).unwrap();
        let bundle = Self { folder, config: json!({ "files": files }) };
        bundle.write();
        bundle
    }

    /// One that is quickly installed, and runs nothing.
    pub(crate) fn small() -> Self {
        let bundle = Self::new("1");
        fs::write(bundle.folder.path().join("shim"), "shim").unwrap();
        bundle
    }

    /// With one more file.
    pub(crate) fn and(mut self, file: Value) -> Self {
        self.config["files"].as_array_mut().unwrap().push(file);
        self.write();
        self
    }

    fn write(&self) {
        let text = serde_json::to_vec_pretty(&self.config).unwrap();
        fs::write(self.folder.path().join("contrast-node-install.json"), text).unwrap();
    }
}

pub(crate) fn place(path: &str) -> String {
    format!("/opt/edgeless/@@runtimeName@@/{path}")
}

pub(crate) fn integrity(bytes: &[u8]) -> String {
    Digest::from_bytes(Sha256::digest(bytes).into()).to_string()
}

/// The stand-in, which cargo builds beside the tests.
fn shim() -> PathBuf {
    let tests = std::env::current_exe().unwrap();
    tests.parent().unwrap().parent().unwrap().join("examples/stand_in_shim")
}

/// An OCI image: its blobs by digest, the last one the manifest.
pub(crate) struct Image {
    pub(crate) blobs: Vec<(String, Vec<u8>)>,
    name: String,
}

pub(crate) fn tar(files: &[(&str, u32, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, mode, bytes) in files {
        let mut header = tar::Header::new_gnu();
        header.set_mode(*mode);
        header.set_size(bytes.len().try_into().unwrap());
        builder.append_data(&mut header, path, *bytes).unwrap();
    }
    builder.into_inner().unwrap()
}

/// An image with one layer.
pub(crate) fn image(files: &[(&str, u32, &[u8])], name: &str) -> Image {
    let layer = tar(files);
    let hex = |bytes: &[u8]| Digest::from_bytes(Sha256::digest(bytes).into()).hex();
    let config = json!({
        "architecture": "amd64", "os": "linux", "config": { "Entrypoint": ["/pause"] },
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{}", hex(&layer))] },
    });
    let config = serde_json::to_vec(&config).unwrap();
    let describe = |kind: &str, bytes: &[u8]| {
        let media = format!("application/vnd.oci.image.{kind}");
        json!({ "mediaType": media, "digest": format!("sha256:{}", hex(bytes)), "size": bytes.len() })
    };
    let manifest = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": describe("config.v1+json", &config), "layers": [describe("layer.v1.tar", &layer)],
    });
    let manifest = serde_json::to_vec(&manifest).unwrap();
    let blobs = [layer, config, manifest].map(|bytes| (hex(&bytes), bytes)).to_vec();
    Image { blobs, name: name.to_owned() }
}

impl Image {
    pub(crate) fn digest(&self) -> &str {
        &self.blobs.last().unwrap().0
    }

    /// As a file for `ctr images import`.
    pub(crate) fn archive(&self) -> Vec<u8> {
        let (digest, manifest) = self.blobs.last().unwrap();
        let index = json!({ "schemaVersion": 2, "manifests": [{
            "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": format!("sha256:{digest}"),
            "size": manifest.len(), "annotations": { "io.containerd.image.name": self.name },
        }] });
        let index = serde_json::to_vec(&index).unwrap();
        let paths: Vec<String> =
            self.blobs.iter().map(|(digest, _)| format!("blobs/sha256/{digest}")).collect();
        let mut files: Vec<(&str, u32, &[u8])> =
            vec![("oci-layout", 0o644, br#"{"imageLayoutVersion":"1.0.0"}"#), ("index.json", 0o644, &index)];
        files.extend(
            paths.iter().zip(&self.blobs).map(|(path, (_, bytes))| (path.as_str(), 0o644, bytes.as_slice())),
        );
        tar(&files)
    }
}
