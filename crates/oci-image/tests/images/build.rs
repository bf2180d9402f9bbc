//! Images made from nothing.

use std::{fs, io::Write as _, path::Path};

use oci_image::Digest;
use serde_json::{Value, json};

pub(crate) struct Image {
    /// Uncompressed and transported form of each layer.
    layers: Vec<(Vec<u8>, Vec<u8>)>,
    pub(crate) diff_ids: Vec<String>,
}

fn digest(bytes: &[u8]) -> String {
    Digest::of(bytes).to_string()
}

fn tar(files: &[(&str, &str)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, name, content.as_bytes()).unwrap();
    }
    builder.into_inner().unwrap()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    ruzstd::encoding::compress_to_vec(bytes, ruzstd::encoding::CompressionLevel::Fastest)
}

impl Image {
    /// Three layers: plain, gzip, zstd. The second replaces a user database, the third deletes a file.
    pub(crate) fn web() -> Self {
        let first = tar(&[
            ("etc/passwd", "root:x:0:0::/:/bin/sh\n"),
            ("etc/group", "root:x:0:\n"),
            ("bin/server", "#!"),
        ]);
        let second = tar(&[("./etc/passwd", "root:x:0:0::/:/bin/sh\napp:x:1000:1000::/:/bin/sh\n")]);
        let third = tar(&[("etc/.wh.group", ""), ("data/x", &"x".repeat(100_000))]);
        let layers =
            vec![(first.clone(), first), (second.clone(), gzip(&second)), (third.clone(), zstd(&third))];
        let diff_ids = layers.iter().map(|(tar, _)| digest(tar)).collect();
        Self { layers, diff_ids }
    }

    pub(crate) fn config(&self) -> Vec<u8> {
        let config = json!({
            "architecture": "amd64", "os": "linux",
            "config": { "User": "app", "Env": ["LANG=C"], "Entrypoint": ["/bin/server"], "Cmd": null, "Volumes": { "/data": {} } },
            "rootfs": { "type": "layers", "diff_ids": self.diff_ids },
        });
        config.to_string().into_bytes()
    }

    pub(crate) fn manifest(&self) -> Vec<u8> {
        let kinds = ["tar", "tar+gzip", "tar+zstd"];
        let layer = |((_, blob), kind): (&(Vec<u8>, Vec<u8>), &str)| json!({ "mediaType": format!("application/vnd.oci.image.layer.v1.{kind}"), "digest": digest(blob), "size": blob.len() });
        let layers: Vec<Value> = self.layers.iter().zip(kinds).map(layer).collect();
        let config = self.config();
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": { "mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest(&config), "size": config.len() },
            "layers": layers,
        });
        manifest.to_string().into_bytes()
    }

    pub(crate) fn manifest_digest(&self) -> String {
        digest(&self.manifest())
    }

    /// Blobs that are not the manifest.
    pub(crate) fn contents(&self) -> Vec<Vec<u8>> {
        let layers = self.layers.iter().map(|(_, blob)| blob.clone());
        layers.chain([self.config()]).collect()
    }

    pub(crate) fn blobs(&self) -> Vec<String> {
        self.contents().iter().map(|blob| digest(blob)).chain([self.manifest_digest()]).collect()
    }

    pub(crate) fn write_layout(&self, folder: &Path, name: &str) {
        fs::create_dir_all(folder.join("blobs/sha256")).unwrap();
        for blob in self.contents().into_iter().chain([self.manifest()]) {
            fs::write(folder.join("blobs/sha256").join(&digest(&blob)[7..]), blob).unwrap();
        }
        fs::write(folder.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        let index = json!({ "schemaVersion": 2, "manifests": [{
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": self.manifest_digest(), "size": self.manifest().len(),
            "annotations": { "org.opencontainers.image.ref.name": name },
        }] });
        fs::write(folder.join("index.json"), index.to_string()).unwrap();
    }

    pub(crate) fn write_docker_archive(&self, path: &Path, name: &str) {
        let mut builder = tar::Builder::new(fs::File::create(path).unwrap());
        let mut add = |name: &str, content: &[u8]| {
            let mut header = tar::Header::new_gnu();
            header.set_size(content.len() as u64);
            header.set_mode(0o644);
            builder.append_data(&mut header, name, content).unwrap();
        };
        let names: Vec<String> = (0..self.layers.len()).map(|index| format!("{index}/layer.tar")).collect();
        for ((tar, _), name) in self.layers.iter().zip(&names) {
            add(name, tar);
        }
        let config = self.config();
        let config_name = format!("{}.json", &digest(&config)[7..]);
        add(&config_name, &config);
        add(
            "manifest.json",
            json!([{ "Config": config_name, "RepoTags": [name], "Layers": names }]).to_string().as_bytes(),
        );
        builder.finish().unwrap();
    }
}

pub(crate) fn tar_folder(folder: &Path, target: &Path) {
    let mut bytes = tar::Builder::new(Vec::new());
    for name in ["index.json", "oci-layout"] {
        bytes.append_path_with_name(folder.join(name), name).unwrap();
    }
    bytes.append_dir_all("blobs", folder.join("blobs")).unwrap();
    fs::write(target, bytes.into_inner().unwrap()).unwrap();
}
