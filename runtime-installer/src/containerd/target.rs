//! Which containerd a node runs, and where its configuration is.

use std::path::{Path, PathBuf};

use super::patch::{self, Format, MAX_CONFIG_BYTES, Version};
use crate::host::Host;

/// What the operator says about the node; what is left out is found out.
#[derive(Clone, Debug, Default)]
pub struct Hints {
    /// Path of the configuration, or of its template, on the node.
    pub config: Option<PathBuf>,
    /// Path of containerd's socket on the node.
    pub socket: Option<PathBuf>,
    /// Units to restart: the first that is there.
    pub units: Option<Vec<String>>,
}

/// Where the handler's entry goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// Into a file that others write too.
    Block(PathBuf, Format),
    /// Into a file of its own, of that version, below this folder, which containerd imports.
    DropIn(PathBuf, Version),
}

/// A node's containerd.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Who packaged it.
    pub distribution: &'static str,
    /// What containerd reads, for reports.
    pub config: PathBuf,
    /// Where the entry goes.
    pub place: Place,
    /// Its socket on the node.
    pub socket: PathBuf,
    /// Units, the first that is there is to be restarted.
    pub units: Vec<String>,
}

/// Why there is no target.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    /// The configuration cannot be read.
    #[error("cannot read {path} on the node: {source}")]
    Read {
        /// The file.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// It is not what it should be.
    #[error("{path} on the node: {source}")]
    Config {
        /// The file.
        path: String,
        /// Why.
        source: patch::PatchError,
    },
    /// Not text.
    #[error("{0} on the node is not UTF-8")]
    NotText(String),
    /// Nothing that is written there counts.
    #[error(
        "{config} on the node imports {other}, which is of another version, and containerd 2 reads both as that version: it \
         would not see an entry. Bring them to one version (`containerd config migrate` prints it)"
    )]
    Mixed {
        /// What containerd reads first.
        config: String,
        /// Whose version counts.
        other: String,
    },
    /// k3s and rke2 write their configuration when they start.
    #[error("{0} is not there yet: start the node's {1} once, then run again")]
    NotStarted(String, &'static str),
}

struct Distribution {
    name: &'static str,
    /// Its presence tells the distribution.
    config: &'static str,
    templates: bool,
    socket: &'static str,
    units: &'static [&'static str],
}

const DISTRIBUTIONS: [Distribution; 4] = [
    Distribution {
        name: "k3s",
        config: "/var/lib/rancher/k3s/agent/etc/containerd/config.toml",
        templates: true,
        socket: "/run/k3s/containerd/containerd.sock",
        units: &["k3s.service", "k3s-agent.service"],
    },
    Distribution {
        name: "rke2",
        config: "/var/lib/rancher/rke2/agent/etc/containerd/config.toml",
        templates: true,
        socket: "/run/k3s/containerd/containerd.sock",
        units: &["rke2-server.service", "rke2-agent.service"],
    },
    Distribution {
        name: "microk8s",
        config: "/var/snap/microk8s/current/args/containerd-template.toml",
        templates: false,
        socket: "/var/snap/microk8s/common/run/containerd.sock",
        units: &["snap.microk8s.daemon-containerd.service"],
    },
    Distribution {
        name: "containerd",
        config: "/etc/containerd/config.toml",
        templates: false,
        socket: "/run/containerd/containerd.sock",
        units: &["containerd.service"],
    },
];

/// Text of a file on the node; `None` if it is not there.
pub fn read_text(host: &Host, path: &Path) -> Result<Option<String>, TargetError> {
    let name = || path.display().to_string();
    let bytes =
        host.read(path, MAX_CONFIG_BYTES).map_err(|source| TargetError::Read { path: name(), source })?;
    let text = bytes.map(|bytes| String::from_utf8(bytes).map_err(|_| TargetError::NotText(name())));
    text.transpose()
}

impl Target {
    /// Finds the node's containerd.
    pub fn find(host: &Host, hints: &Hints) -> Result<Self, TargetError> {
        let distribution = distribution(host, hints.config.as_deref());
        let config = rendered(distribution, hints.config.as_deref());
        let text = read_text(host, &config)?;
        let bad = |source| TargetError::Config { path: config.display().to_string(), source };
        let table = patch::parse(text.as_deref().unwrap_or_default()).map_err(bad)?;
        let place = match text.as_deref().and_then(patch::drop_in_folder) {
            Some(folder) => Place::DropIn(folder.into(), Version::V3),
            None if !distribution.templates && !is_template(hints.config.as_deref()) => {
                Place::Block(config.clone(), Format::Toml)
            }
            None if text.is_none() => {
                return Err(TargetError::NotStarted(config.display().to_string(), distribution.name));
            }
            None => template(&config, Version::of(&table).map_err(bad)?, hints.config.as_deref()),
        };
        let address = |path: &[&str]| {
            let (last, tables) = path.split_last()?;
            let table = tables.iter().try_fold(&table, |table, key| table.get(*key)?.as_table())?;
            table.get(*last)?.as_str().filter(|text| text.starts_with('/')).map(PathBuf::from)
        };
        let socket = hints.socket.clone().or_else(|| address(&["grpc", "address"]));
        let socket = socket.or_else(|| address(&["plugins", "io.containerd.server.v1.grpc", "address"]));
        let units = distribution.units.iter().map(ToString::to_string).collect();
        Ok(Self {
            distribution: distribution.name,
            config,
            place,
            socket: socket.unwrap_or_else(|| distribution.socket.into()),
            units: hints.units.clone().unwrap_or(units),
        })
    }

    /// The socket, as this process reaches it.
    pub fn socket_here(&self, host: &Host) -> std::io::Result<PathBuf> {
        host.resolve(&self.socket)
    }
}

fn distribution(host: &Host, config: Option<&Path>) -> &'static Distribution {
    let last = &DISTRIBUTIONS[DISTRIBUTIONS.len() - 1];
    let folder = |distribution: &Distribution| Path::new(distribution.config).parent().map(Path::to_owned);
    let found = DISTRIBUTIONS.iter().find(|distribution| match config {
        Some(config) => folder(distribution).as_deref() == config.parent(),
        None => host.exists(Path::new(distribution.config)),
    });
    found.unwrap_or(last)
}

fn is_template(hint: Option<&Path>) -> bool {
    hint.is_some_and(|path| path.extension().is_some_and(|end| end == "tmpl"))
}

/// What containerd reads: for a template the file made from it.
fn rendered(distribution: &Distribution, hint: Option<&Path>) -> PathBuf {
    match hint {
        Some(path) if is_template(hint) => path.with_file_name("config.toml"),
        Some(path) => path.to_owned(),
        None => distribution.config.into(),
    }
}

/// The template that the next start reads.
fn template(config: &Path, version: Version, hint: Option<&Path>) -> Place {
    let named = hint.filter(|_| is_template(hint)).map(Path::to_owned);
    let usual = if version == Version::V3 { "config-v3.toml.tmpl" } else { "config.toml.tmpl" };
    // A template of the older name is for containerd 1.x, whatever the rendered file says now.
    let path = match named {
        Some(path) if version < Version::V3 => path,
        _ => config.with_file_name(usual),
    };
    Place::Block(path, Format::Template(version))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A node with a file, whose contents are a fixture's.
    fn find(path: &str, fixture: &str, hints: &Hints) -> Target {
        let root = tempfile::tempdir().unwrap();
        let host = Host::new(root.path(), 1);
        let text =
            std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/containerd").join(fixture));
        host.make_folder(Path::new(path).parent().unwrap()).unwrap();
        host.replace(Path::new(path), &text.unwrap()).unwrap();
        Target::find(&host, hints).unwrap()
    }

    const K3S: &str = "/var/lib/rancher/k3s/agent/etc/containerd/config.toml";

    #[test]
    fn k3s_and_rke2_get_the_template_that_their_containerd_reads() {
        let place = |fixture: &str, path: &str| find(path, fixture, &Hints::default()).place;
        let folder = "/var/lib/rancher/k3s/agent/etc/containerd";
        let template =
            |name: &str, version| Place::Block(format!("{folder}/{name}").into(), Format::Template(version));
        assert_eq!(place("k3s-1.7.toml", K3S), template("config.toml.tmpl", Version::V2));
        assert_eq!(place("k3s-2.0.toml", K3S), template("config-v3.toml.tmpl", Version::V3));
        let drop_in = Place::DropIn(format!("{folder}/config-v3.toml.d").into(), Version::V3);
        assert_eq!(place("k3s-2.1-drop-in.toml", K3S), drop_in);
        let rke2 = find(&K3S.replace("k3s", "rke2"), "rke2-2.0.toml", &Hints::default());
        assert_eq!(rke2.units, ["rke2-server.service", "rke2-agent.service"]);
        assert_eq!(rke2.socket, Path::new("/run/k3s/containerd/containerd.sock"));
    }

    #[test]
    fn a_template_that_the_operator_names_is_taken_unless_containerd_reads_the_newer_one() {
        let hints =
            Hints { config: Some(K3S.replace("config.toml", "config.toml.tmpl").into()), ..Hints::default() };
        let path = |fixture| match find(K3S, fixture, &hints).place {
            Place::Block(path, _) => path.file_name().unwrap().to_owned(),
            Place::DropIn(folder, _) => folder.into(),
        };
        assert_eq!(path("k3s-1.7.toml"), "config.toml.tmpl");
        assert_eq!(path("k3s-2.0.toml"), "config-v3.toml.tmpl");
    }

    #[test]
    fn others_are_found_by_their_files_and_their_socket_by_its_address() {
        let plain = find("/etc/containerd/config.toml", "default-1.6.toml", &Hints::default());
        assert_eq!(
            (plain.distribution, plain.units.as_slice()),
            ("containerd", &["containerd.service".to_owned()][..])
        );
        assert_eq!(plain.socket, Path::new("/run/containerd/containerd.sock"));
        let microk8s = find(
            "/var/snap/microk8s/current/args/containerd-template.toml",
            "microk8s.toml",
            &Hints::default(),
        );
        assert_eq!(microk8s.units, ["snap.microk8s.daemon-containerd.service"]);
    }

    #[test]
    fn a_k3s_that_never_started_is_said_so() {
        let root = tempfile::tempdir().unwrap();
        let hints = Hints { config: Some(K3S.into()), ..Hints::default() };
        let refused = Target::find(&Host::new(root.path(), 1), &hints).unwrap_err().to_string();
        assert_eq!(refused, format!("{K3S} is not there yet: start the node's k3s once, then run again"));
    }
}
