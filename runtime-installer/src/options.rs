//! Flags, environment and files, in this order of precedence.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use clap::{Parser, Subcommand, ValueEnum};
use runtime_bundle::{HandlerName, Platform};
use runtime_installer::{
    containerd::target::Hints,
    fetch::HttpOptions,
    host::Host,
    install::Site,
    node_label::{Node, NodeOptions},
};

/// Where distributions keep all certificates in one file.
const NODE_CERTIFICATES: [&str; 3] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/ca-bundle.pem"];

/// Puts the confidential runtime on a Kubernetes node, and takes it away without a trace.
#[derive(Debug, Parser)]
#[command(
    name = "runtime-installer",
    version,
    after_help = "Examples:\n  \
        runtime-installer check --host-mount /\n  \
        runtime-installer install Metal-QEMU-SNP\n  \
        runtime-installer uninstall contrast-cc-metal-qemu-snp-8da615a6\n\n\
        A run that was interrupted is finished, or undone, by the next one."
)]
pub(crate) struct Options {
    /// TOML file with any of these options, named as the flags are without the dashes in front.
    #[arg(long, global = true, env = "CONTRAST_CONFIG", value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Where the node's root is mounted.
    #[arg(long, global = true, env = "HOST_MOUNT", default_value = "/host", value_name = "DIR")]
    host_mount: PathBuf,
    /// A process of the node, in whose mount namespace containerd is restarted; the pod needs `hostPID`.
    #[arg(long, global = true, env = "HOST_PROCESS", default_value_t = 1, value_name = "PID")]
    host_process: u32,
    /// containerd's configuration on the node, or the template from which k3s and rke2 make it. Found if not given.
    #[arg(long, global = true, env = "CONTAINERD_CONFIG_PATH", value_name = "FILE")]
    containerd_config: Option<PathBuf>,
    /// containerd's socket on the node. Found if not given.
    #[arg(long, global = true, env = "CONTAINERD_SOCKET", value_name = "FILE")]
    containerd_socket: Option<PathBuf>,
    /// systemd units, comma-separated: the first that is there is restarted. Empty: no restart.
    #[arg(long, global = true, env = "SYSTEMD_UNIT_NAME", value_name = "UNITS")]
    systemd_unit: Option<String>,
    /// Folder with files `containerd-config-path` and `systemd-unit-name`, from a ConfigMap.
    #[arg(
        long,
        global = true,
        env = "TARGET_CONFIG_DIR",
        default_value = "/target-config",
        value_name = "DIR"
    )]
    target_config_dir: PathBuf,
    /// Shell command on the node that restarts containerd, where there is no systemd.
    #[arg(long, global = true, env = "RESTART_COMMAND", value_name = "COMMAND")]
    pub(crate) restart_command: Option<String>,
    /// Longest restart, and longest wait for containerd after it, in seconds.
    #[arg(long, global = true, env = "HEALTH_SECONDS", default_value_t = 60)]
    health_seconds: u64,
    /// Longest wait for another installer on the same node, in seconds.
    #[arg(long, global = true, env = "LOCK_SECONDS", default_value_t = 600)]
    lock_seconds: u64,
    /// Name of this node, to be labelled when the runtime is ready.
    #[arg(long, global = true, env = "NODE_NAME")]
    node_name: Option<String>,
    /// Host of the Kubernetes API.
    #[arg(long, global = true, env = "KUBERNETES_SERVICE_HOST")]
    kubernetes_host: Option<String>,
    /// Its port.
    #[arg(long, global = true, env = "KUBERNETES_SERVICE_PORT", default_value_t = 443)]
    kubernetes_port: u16,
    /// Folder with the service account's `token` and `ca.crt`.
    #[arg(
        long,
        global = true,
        env = "SERVICE_ACCOUNT_DIR",
        default_value = "/var/run/secrets/kubernetes.io/serviceaccount",
        value_name = "DIR"
    )]
    service_account_dir: PathBuf,
    /// Form of the results on stdout.
    #[arg(long, global = true, value_enum, default_value_t = Output::Text, env = "CONTRAST_OUTPUT")]
    pub(crate) output: Output,
    #[command(flatten)]
    pub(crate) log: program::LogOptions,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Form of results.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// For people.
    Text,
    /// For machines.
    Json,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Install the runtime that the configuration describes. Changes nothing where it is installed.
    Install {
        /// The node's platform, such as Metal-QEMU-SNP.
        #[arg(env = "PLATFORM")]
        platform: Platform,
        #[command(flatten)]
        source: Source,
        /// Try again what was rolled back at the last try.
        #[arg(long, env = "RETRY")]
        retry: bool,
    },
    /// Take a runtime away.
    Uninstall {
        /// Its handler's name.
        #[arg(env = "RUNTIME_HANDLER")]
        handler: HandlerName,
        /// Also while pods run with it.
        #[arg(long)]
        force: bool,
    },
    /// Say what the node is and what it lacks. Exit code 1 if something is missing.
    Check {
        /// The platform it should be; what its processor could be if not given.
        #[arg(env = "PLATFORM")]
        platform: Option<Platform>,
    },
    /// Print the handler's name of a configuration.
    Name {
        /// The platform.
        #[arg(env = "PLATFORM")]
        platform: Platform,
        #[command(flatten)]
        source: Source,
    },
    /// Get one file of an image, as install does: for whoever builds a guest around it.
    Fetch {
        /// oci://REGISTRY/REPOSITORY@sha256:HEX#FILE
        #[arg(value_name = "REFERENCE")]
        from: runtime_bundle::Source,
        /// Where it goes; nothing may be there.
        to: PathBuf,
        #[command(flatten)]
        source: Source,
    },
    /// Do nothing until told to stop.
    Wait,
    /// Run a command in the node's mount namespace.
    #[command(hide = true)]
    OnNode {
        /// A process of that namespace.
        process: u32,
        /// The command.
        #[arg(last = true)]
        words: Vec<String>,
    },
}

/// Where files come from.
#[derive(Debug, clap::Args)]
pub(crate) struct Source {
    /// Folder with contrast-node-install.json, and the files that it names by relative paths.
    #[arg(long, env = "CONFIG_DIR", default_value = "/config", value_name = "DIR")]
    pub(crate) config_dir: PathBuf,
    /// Certificates to trust for downloads, instead of the system's.
    #[arg(long, env = "CA_FILE", value_name = "PEM")]
    ca_file: Option<PathBuf>,
    /// Docker's config.json with credentials for registries.
    #[arg(long, env = "REGISTRY_AUTH", value_name = "FILE")]
    registry_auth: Option<PathBuf>,
    /// Longest download of one file, in seconds.
    #[arg(long, env = "FETCH_SECONDS", default_value_t = 1800)]
    fetch_seconds: u64,
}

impl Source {
    /// In an image without certificates those of the node are used.
    pub(crate) fn http(&self, host: &Host) -> HttpOptions {
        let own = || Path::new("/etc/ssl/certs").is_dir();
        let nodes = || {
            NODE_CERTIFICATES
                .iter()
                .filter_map(|path| host.resolve(Path::new(path)).ok())
                .find(|path| path.is_file())
        };
        HttpOptions {
            ca_file: self.ca_file.clone().or_else(|| if own() { None } else { nodes() }),
            time_limit: Duration::from_secs(self.fetch_seconds),
            registry_auth: self.registry_auth.clone(),
        }
    }
}

impl Options {
    pub(crate) fn host(&self) -> Host {
        Host::new(&self.host_mount, self.host_process)
    }

    /// The node, whose root has to be there.
    pub(crate) fn node(&self) -> anyhow::Result<Host> {
        let root = self.host_mount.display();
        ensure!(
            self.host_mount.is_dir(),
            "--host-mount {root} is no directory: in a pod the node's root has to be mounted there; on the node itself \
             give --host-mount /"
        );
        Ok(self.host())
    }

    pub(crate) fn hints(&self) -> anyhow::Result<Hints> {
        let config = match &self.containerd_config {
            Some(path) => Some(path.clone()),
            None => self.target_config("containerd-config-path")?.map(PathBuf::from),
        };
        let units = match &self.systemd_unit {
            Some(units) => Some(units.clone()),
            None => self.target_config("systemd-unit-name")?,
        };
        let list = |units: String| {
            units.split(',').map(str::trim).filter(|unit| !unit.is_empty()).map(str::to_owned).collect()
        };
        Ok(Hints {
            // The ConfigMap's paths are relative to the node's root.
            config: config.map(|path| Path::new("/").join(path)),
            socket: self.containerd_socket.as_ref().map(|path| Path::new("/").join(path)),
            units: units.map(list),
        })
    }

    fn target_config(&self, key: &str) -> anyhow::Result<Option<String>> {
        let path = self.target_config_dir.join(key);
        match std::fs::read_to_string(&path) {
            Ok(text) => Ok(Some(text.trim().to_owned())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
        }
    }

    pub(crate) fn site(&self) -> anyhow::Result<Site> {
        Ok(Site {
            host: self.node()?,
            hints: self.hints()?,
            restart_command: self.restart_command.clone(),
            patience: Duration::from_secs(self.health_seconds),
            lock_patience: Duration::from_secs(self.lock_seconds),
            node: Node::open(&NodeOptions {
                name: self.node_name.clone(),
                host: self.kubernetes_host.clone(),
                port: self.kubernetes_port,
                service_account: self.service_account_dir.clone(),
            }),
        })
    }
}
