//! An etcd cluster on loopback, of real members (Debian: etcd-server, etcd-client).

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, ensure};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

use crate::process::{Process, free_port, wait_until};

const START: Duration = Duration::from_secs(30);

/// A cluster; its members end with it.
pub struct Cluster {
    members: Vec<Member>,
    directory: PathBuf,
    is_tls: bool,
    /// What members may hold, in bytes; etcd's default if `None`.
    quota: Option<u64>,
}

struct Member {
    process: Option<Process>,
    client: u16,
    peer: u16,
}

impl Cluster {
    /// Starts `count` members and waits until they have a leader. With TLS, the members and the client
    /// `tls/client.pem`, `tls/client.key` have certificates of `tls/ca.pem`.
    pub fn start(directory: &Path, count: usize, is_tls: bool) -> anyhow::Result<Self> {
        fs::create_dir_all(directory)?;
        if is_tls {
            make_certificates(&directory.join("tls"))?;
        }
        let member = |_| Ok(Member { process: None, client: free_port()?, peer: free_port()? });
        let members = (0..count).map(member).collect::<anyhow::Result<Vec<_>>>()?;
        let mut cluster = Self { members, directory: directory.to_owned(), is_tls, quota: None };
        for member in 0..count {
            cluster.restart(member)?;
        }
        wait_until("etcd has a leader", START, || Ok(cluster.ctl(&["get", "nothing"]).is_ok()))?;
        Ok(cluster)
    }

    /// Another cluster of one member, in `directory`, on a copy of this one's data: what an administrator
    /// who restores a backup has, or a host that shows different guests different disks. This one must
    /// have one member.
    pub fn fork(&mut self, directory: &Path) -> anyhow::Result<Self> {
        let copy = Self {
            members: vec![Member { process: None, client: free_port()?, peer: free_port()? }],
            directory: directory.to_owned(),
            is_tls: self.is_tls,
            quota: self.quota,
        };
        fs::create_dir_all(directory)?;
        self.kill(0);
        copy_directory(&self.data(0), &copy.data(0))?;
        self.restart(0)?;
        let mut copy = copy;
        copy.restart(0)?;
        for cluster in [&*self, &copy] {
            wait_until("etcd has a leader", START, || Ok(cluster.ctl(&["get", "nothing"]).is_ok()))?;
        }
        Ok(copy)
    }

    /// Starts a cluster of one member again, with another quota.
    pub fn set_quota(&mut self, bytes: u64) -> anyhow::Result<()> {
        self.quota = Some(bytes);
        self.kill(0);
        self.restart(0)?;
        wait_until("etcd has a leader", START, || Ok(self.ctl(&["get", "nothing"]).is_ok()))
    }

    /// Keeps a copy of the data of a cluster of one member, and maybe puts an earlier copy in its place.
    pub fn swap_data(&mut self, keep: &Path, put: Option<&Path>) -> anyhow::Result<()> {
        self.kill(0);
        copy_directory(&self.data(0), keep)?;
        if let Some(copy) = put {
            fs::remove_dir_all(self.data(0))?;
            copy_directory(copy, &self.data(0))?;
        }
        self.restart(0)?;
        wait_until("etcd has a leader", START, || Ok(self.ctl(&["get", "nothing"]).is_ok()))
    }

    /// Number of members, those that were killed included.
    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// Whether there is no member.
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// Address of a member, for clients.
    pub fn endpoint(&self, member: usize) -> String {
        format!("{}://127.0.0.1:{}", self.scheme(), self.members[member].client)
    }

    /// Addresses of all members.
    pub fn endpoints(&self) -> Vec<String> {
        (0..self.len()).map(|member| self.endpoint(member)).collect()
    }

    /// Port of a member, for clients.
    pub fn port(&self, member: usize) -> u16 {
        self.members[member].client
    }

    /// A file of the cluster's authority: `ca.pem`, `client.pem`, `client.key`.
    pub fn tls_file(&self, name: &str) -> PathBuf {
        self.directory.join("tls").join(name)
    }

    fn scheme(&self) -> &'static str {
        if self.is_tls { "https" } else { "http" }
    }

    /// SIGKILL.
    pub fn kill(&mut self, member: usize) {
        self.members[member].process = None;
    }

    /// Whether a member runs.
    pub fn is_running(&self, member: usize) -> bool {
        self.members[member].process.is_some()
    }

    /// SIGSTOP, SIGCONT and the like.
    pub fn signal(&self, member: usize, name: &str) -> anyhow::Result<()> {
        self.members[member].process.as_ref().map_or(Ok(()), |process| process.signal(name))
    }

    /// Where a member keeps its data.
    pub fn data(&self, member: usize) -> PathBuf {
        self.directory.join(format!("member-{member}"))
    }

    /// Starts a member, on the data it had.
    pub fn restart(&mut self, member: usize) -> anyhow::Result<()> {
        let scheme = self.scheme();
        let peers: Vec<String> =
            (0..self.len()).map(|n| format!("m{n}={scheme}://127.0.0.1:{}", self.members[n].peer)).collect();
        let Member { client, peer, .. } = self.members[member];
        let (client, peer) =
            (format!("{scheme}://127.0.0.1:{client}"), format!("{scheme}://127.0.0.1:{peer}"));
        let mut command = Command::new("etcd");
        command
            .args(["--name", &format!("m{member}"), "--logger", "zap", "--log-level", "error"])
            .arg("--data-dir")
            .arg(self.data(member))
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &peers.join(","), "--initial-cluster-state", "new"])
            .args(["--heartbeat-interval", "50", "--election-timeout", "1000"])
            .args(["--auto-compaction-mode", "revision", "--auto-compaction-retention", "1000"])
            .env("ETCD_UNSUPPORTED_ARCH", std::env::consts::ARCH);
        if let Some(bytes) = self.quota {
            command.args(["--quota-backend-bytes", &bytes.to_string()]);
        }
        if self.is_tls {
            for (flag, file) in [
                ("--cert-file", "member.pem"),
                ("--key-file", "member.key"),
                ("--trusted-ca-file", "ca.pem"),
                ("--peer-cert-file", "member.pem"),
                ("--peer-key-file", "member.key"),
                ("--peer-trusted-ca-file", "ca.pem"),
            ] {
                command.arg(flag).arg(self.tls_file(file));
            }
            command.args(["--client-cert-auth", "--peer-client-cert-auth"]);
        }
        let log = self.directory.join(format!("member-{member}.log"));
        let process = Process::start(&mut command, &log).context("is Debian's etcd-server installed?")?;
        self.members[member].process = Some(process);
        Ok(())
    }

    /// Runs etcdctl against all members.
    pub fn ctl(&self, args: &[&str]) -> anyhow::Result<String> {
        let mut command = Command::new("etcdctl");
        command.env("ETCDCTL_API", "3").args(["--endpoints", &self.endpoints().join(",")]);
        command.args(["--dial-timeout=2s", "--command-timeout=4s"]);
        if self.is_tls {
            for (flag, file) in [("--cacert", "ca.pem"), ("--cert", "client.pem"), ("--key", "client.key")] {
                command.arg(flag).arg(self.tls_file(file));
            }
        }
        let output = command.args(args).output().context("is Debian's etcd-client installed?")?;
        ensure!(output.status.success(), "etcdctl {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

fn copy_directory(from: &Path, to: &Path) -> anyhow::Result<()> {
    let status = Command::new("cp").arg("-a").arg(from).arg(to).status()?;
    ensure!(status.success(), "cannot copy {}", from.display());
    Ok(())
}

fn make_certificates(directory: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(directory)?;
    let (authority_key, mut authority) = (KeyPair::generate()?, CertificateParams::default());
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    authority.distinguished_name.push(DnType::CommonName, "etcd of a test");
    fs::write(directory.join("ca.pem"), authority.self_signed(&authority_key)?.pem())?;
    let issuer = Issuer::from_params(&authority, authority_key);
    for name in ["member", "client"] {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(vec!["localhost".to_owned(), "127.0.0.1".to_owned()])?;
        params.distinguished_name.push(DnType::CommonName, name);
        fs::write(directory.join(format!("{name}.pem")), params.signed_by(&key, &issuer)?.pem())?;
        fs::write(directory.join(format!("{name}.key")), key.serialize_pem())?;
    }
    Ok(())
}
