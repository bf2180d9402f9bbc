//! A real registry on loopback.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpStream,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Child, Command, Stdio},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use oci_image::Digest;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use serde_json::json;

use crate::build::Image;

const USER: &str = "alice";
const PASSWORD: &str = "correct horse";
/// bcrypt of the password.
const HTPASSWD: &str = "alice:$2y$05$19ZqySTzsWKo7XbWslJS5eP/42tZGP74mehult76rdUAt6vODfl7G";

pub(crate) struct Registry {
    process: Child,
    port: u16,
    authorization: Option<String>,
    folder: tempfile::TempDir,
}

pub(crate) fn basic() -> String {
    STANDARD.encode(format!("{USER}:{PASSWORD}"))
}

/// A credential helper, which is any program of that name.
pub(crate) fn write_helper(folder: &Path) {
    let path = folder.join("docker-credential-test");
    let answer = json!({ "Username": USER, "Secret": PASSWORD });
    fs::write(&path, format!("#!/bin/sh\ncat > /dev/null\necho '{answer}'\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
}

impl Registry {
    /// Starts a registry on a free port; with a password if there is a folder for its file.
    pub(crate) fn start(password: Option<&Path>) -> Self {
        let auth = password.map_or(String::new(), |folder| {
            let file = folder.join("htpasswd");
            fs::write(&file, HTPASSWD).unwrap();
            format!("auth:\n  htpasswd:\n    realm: test\n    path: {}\n", file.display())
        });
        let authorization = password.map(|_| format!("Basic {}", basic()));
        Self::run(tempfile::tempdir().unwrap(), "", &auth, authorization)
    }

    /// The same contents over TLS, with a certificate of a CA made here. Returns the CA's certificate as PEM too.
    pub(crate) fn behind_tls(mut self) -> (Self, String) {
        let mut ca = CertificateParams::new(Vec::new()).unwrap();
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let (ca_key, key) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
        let root = ca.self_signed(&ca_key).unwrap().pem();
        let leaf = CertificateParams::new(vec!["127.0.0.1".into()]).unwrap();
        let leaf = leaf.signed_by(&key, &Issuer::new(ca, ca_key)).unwrap();
        let file = |name: &str, content: String| {
            let path = self.folder.path().join(name);
            fs::write(&path, content).unwrap();
            path.display().to_string()
        };
        let tls = format!(
            ", tls: {{certificate: {}, key: {}}}",
            file("leaf.pem", leaf.pem()),
            file("key.pem", key.serialize_pem())
        );
        let folder = std::mem::replace(&mut self.folder, tempfile::tempdir().unwrap());
        drop(self);
        (Self::run(folder, &tls, "", None), root)
    }

    fn run(folder: tempfile::TempDir, tls: &str, auth: &str, authorization: Option<String>) -> Self {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let config = folder.path().join("config.yml");
        let storage = folder.path().join("data");
        let text = format!(
            "version: 0.1\nlog: {{level: info}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: '127.0.0.1:{port}'{tls}}}\n{auth}",
            storage.display()
        );
        fs::write(&config, text).unwrap();
        let mut process = Command::new("docker-registry")
            .args(["serve", config.to_str().unwrap()])
            .stderr(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| {
                panic!("docker-registry: {error}; ./test installs it (apt-get install docker-registry)")
            });
        let mut log = BufReader::new(process.stderr.take().unwrap()).lines();
        let listening = log.by_ref().map_while(Result::ok).any(|line| line.contains("listening on"));
        assert!(listening, "the registry did not start");
        std::thread::spawn(move || log.for_each(drop));
        Self { process, port, authorization, folder }
    }

    pub(crate) fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// One HTTP/1.0 exchange; the header lines of the answer.
    fn send(&self, method: &str, path: &str, kind: &str, body: &[u8]) -> String {
        let mut stream = TcpStream::connect(self.host()).unwrap();
        let authorization =
            self.authorization.as_ref().map_or(String::new(), |value| format!("Authorization: {value}\r\n"));
        let head = format!(
            "{method} {path} HTTP/1.0\r\nHost: {}\r\n{authorization}Content-Type: {kind}\r\nContent-Length: {}\r\n\r\n",
            self.host(),
            body.len()
        );
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(body).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.0 20"), "{method} {path}: {answer}");
        answer
    }

    fn put_blob(&self, repository: &str, blob: &[u8]) {
        let answer = self.send("POST", &format!("/v2/{repository}/blobs/uploads/"), "text/plain", &[]);
        let location = answer.lines().find_map(|line| line.strip_prefix("Location: ")).unwrap();
        let path = location.split_once(&self.host()).unwrap().1.trim();
        let digest = Digest::of(blob).to_string();
        self.send("PUT", &format!("{path}&digest={digest}"), "application/octet-stream", blob);
    }

    pub(crate) fn push(&self, image: &Image, repository: &str, tag: &str) -> String {
        for blob in image.contents() {
            self.put_blob(repository, &blob);
        }
        let kind = "application/vnd.oci.image.manifest.v1+json";
        self.send("PUT", &format!("/v2/{repository}/manifests/{tag}"), kind, &image.manifest());
        image.manifest_digest()
    }

    /// An index with the image for the guest's platform, and one more.
    pub(crate) fn push_index(&self, image: &Image, repository: &str, tag: &str) {
        let entry = |architecture: &str, variant: &str| {
            let manifest = if variant.is_empty() {
                image.manifest()
            } else {
                [image.manifest(), variant.as_bytes().to_vec()].concat()
            };
            if !variant.is_empty() {
                let kind = "application/vnd.oci.image.manifest.v1+json";
                self.send(
                    "PUT",
                    &format!("/v2/{repository}/manifests/{}", Digest::of(&manifest)),
                    kind,
                    &manifest,
                );
            }
            json!({
                "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": Digest::of(&manifest).to_string(),
                "size": manifest.len(), "platform": { "architecture": architecture, "os": "linux" },
            })
        };
        let kind = "application/vnd.oci.image.index.v1+json";
        let index = json!({ "schemaVersion": 2, "mediaType": kind, "manifests": [entry("arm64", " "), entry("amd64", "")] });
        self.send("PUT", &format!("/v2/{repository}/manifests/{tag}"), kind, index.to_string().as_bytes());
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
