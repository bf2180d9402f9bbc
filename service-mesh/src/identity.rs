//! Who this pod is and whom it trusts: the initializer's files, watched and reloaded.
//!
//! New connections use the newest files; connections that exist go on with what they began with. A set of
//! files that does not fit together (the initializer replaces them one by one) is not used, and the old
//! one stays until it does.

use std::{
    collections::BTreeMap,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, ensure};
use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    client::{Resumption, danger::ServerCertVerifier as _},
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject as _},
    server::danger::ClientCertVerifier,
    sign::CertifiedKey,
    version::TLS13,
};
use tokio::{sync::watch, time::Instant};

use crate::{config::Peers, peer::PeerVerifier};

const LOOK_EVERY: Duration = Duration::from_secs(1);
/// The pod waits for the first.
const LOOK_FOR_THE_FIRST_EVERY: Duration = Duration::from_millis(50);
/// Files that do not fit together for longer are worth a warning.
const WARN_AFTER: Duration = Duration::from_secs(10);

/// Which CA peers are verified against.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Trust {
    /// The mesh CA of the manifest in force: a new manifest ends the old certificates.
    MeshCa,
    /// The root: any certificate of the deployment, of earlier manifests too.
    Root,
}

/// Where the files are, and what to make of them.
#[derive(Clone, Debug)]
pub(crate) struct Sources {
    pub(crate) directory: PathBuf,
    pub(crate) trust: Trust,
    pub(crate) peers: Peers,
}

/// TLS as of one state of the files.
pub(crate) struct Identity {
    mutual: Arc<ServerConfig>,
    anonymous: Arc<ServerConfig>,
    mutual_by_port: BTreeMap<u16, Arc<ServerConfig>>,
    client: Arc<ClientConfig>,
    client_by_name: BTreeMap<String, Arc<ClientConfig>>,
}

impl Identity {
    /// For a port of the application whose clients need a certificate.
    pub(crate) fn mutual(&self, port: u16) -> Arc<ServerConfig> {
        Arc::clone(self.mutual_by_port.get(&port).unwrap_or(&self.mutual))
    }

    /// For ports whose clients need none.
    pub(crate) fn anonymous(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.anonymous)
    }

    /// For the egress entry of that name.
    pub(crate) fn client(&self, egress: &str) -> Arc<ClientConfig> {
        Arc::clone(self.client_by_name.get(egress).unwrap_or(&self.client))
    }

    fn load(sources: &Sources) -> anyhow::Result<Self> {
        let directory = sources.directory.join("tls-config");
        let ca = match sources.trust {
            Trust::MeshCa => directory.join("mesh-ca.pem"),
            Trust::Root => directory.join("coordinator-root-ca.pem"),
        };
        let mut roots = RootCertStore::empty();
        for certificate in certificates(&ca)? {
            roots.add(certificate).with_context(|| ca.display().to_string())?;
        }
        let chain_file = directory.join("certChain.pem");
        let chain = certificates(&chain_file)?;
        let key_file = directory.join("key.pem");
        let key = PrivateKeyDer::from_pem_file(&key_file)
            .with_context(|| format!("cannot read {}", key_file.display()))?;

        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let roots = Arc::new(roots);
        let verifier = |allowed| PeerVerifier::new(Arc::clone(&roots), Arc::clone(&provider), allowed);
        let any = Arc::new(verifier(None)?);
        let [leaf, intermediates @ ..] = chain.as_slice() else {
            anyhow::bail!("{} holds no certificate", chain_file.display());
        };
        any.verify_server_cert(leaf, intermediates, &nobody(), &[], now())
            .with_context(|| format!("{} under {}", chain_file.display(), ca.display()))?;
        let certified = CertifiedKey::from_der(chain, key, &provider)
            .with_context(|| format!("{} and {}", chain_file.display(), key_file.display()))?;
        let certified = Arc::new(certified);

        let mut made = Self {
            mutual: server(&provider, &certified, Some(Arc::clone(&any) as _))?,
            anonymous: server(&provider, &certified, None)?,
            client: client(&provider, &certified, any)?,
            mutual_by_port: BTreeMap::new(),
            client_by_name: BTreeMap::new(),
        };
        for (key, names) in &sources.peers.0 {
            let verifier = Arc::new(verifier(Some(names.clone()))?);
            if let Ok(port) = key.parse() {
                made.mutual_by_port.insert(port, server(&provider, &certified, Some(verifier))?);
            } else {
                made.client_by_name.insert(key.clone(), client(&provider, &certified, verifier)?);
            }
        }
        Ok(made)
    }
}

fn certificates(path: &Path) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let read = || CertificateDer::pem_file_iter(path)?.collect::<Result<Vec<_>, _>>();
    let found = read().with_context(|| format!("cannot read {}", path.display()))?;
    ensure!(!found.is_empty(), "{} holds no certificate", path.display());
    Ok(found)
}

fn server(
    provider: &Arc<CryptoProvider>,
    certified: &Arc<CertifiedKey>,
    clients: Option<Arc<dyn ClientCertVerifier>>,
) -> anyhow::Result<Arc<ServerConfig>> {
    let config =
        ServerConfig::builder_with_provider(Arc::clone(provider)).with_protocol_versions(&[&TLS13])?;
    let config = match clients {
        Some(verifier) => config.with_client_cert_verifier(verifier),
        None => config.with_no_client_auth(),
    };
    let mut config = config.with_cert_resolver(Arc::new(OneKey(Arc::clone(certified))));
    // A resumed session would live on under a CA that is no longer trusted.
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    Ok(Arc::new(config))
}

fn client(
    provider: &Arc<CryptoProvider>,
    certified: &Arc<CertifiedKey>,
    servers: Arc<PeerVerifier>,
) -> anyhow::Result<Arc<ClientConfig>> {
    let config =
        ClientConfig::builder_with_provider(Arc::clone(provider)).with_protocol_versions(&[&TLS13])?;
    let config = config.dangerous().with_custom_certificate_verifier(servers);
    let mut config = config.with_client_cert_resolver(Arc::new(OneKey(Arc::clone(certified))));
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

#[derive(Debug)]
struct OneKey(Arc<CertifiedKey>);

impl rustls::server::ResolvesServerCert for OneKey {
    fn resolve(&self, _: rustls::server::ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }
}

impl rustls::client::ResolvesClientCert for OneKey {
    fn resolve(&self, _: &[&[u8]], _: &[rustls::SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// The verifier does not look at it.
fn nobody() -> ServerName<'static> {
    ServerName::IpAddress(std::net::IpAddr::from([0, 0, 0, 0]).into())
}

/// The newest identity; waits for the first.
pub(crate) type Current = watch::Receiver<Option<Arc<Identity>>>;

/// Loads the files whenever they change, for ever.
pub(crate) async fn watch(sources: Sources, current: watch::Sender<Option<Arc<Identity>>>) {
    let sources = Arc::new(sources);
    let mut loaded = None;
    let mut failing_since = None;
    let mut pause = Duration::ZERO;
    loop {
        tokio::time::sleep(pause).await;
        pause = if loaded.is_none() { LOOK_FOR_THE_FIRST_EVERY } else { LOOK_EVERY };
        let (found, to_load) = (Arc::clone(&sources), Arc::clone(&sources));
        let Ok(found) = tokio::task::spawn_blocking(move || fingerprint(&found.directory)).await else {
            continue;
        };
        if found == loaded {
            continue;
        }
        // Blocking: files, and signatures to check.
        let Ok(outcome) = tokio::task::spawn_blocking(move || Identity::load(&to_load)).await else {
            continue;
        };
        match outcome {
            Ok(identity) => {
                let first = current.send_replace(Some(Arc::new(identity))).is_none();
                tracing::info!(first, "certificate and CA loaded");
                loaded = found;
                failing_since = None;
            }
            Err(error) => {
                if failing_since.get_or_insert_with(Instant::now).elapsed() >= WARN_AFTER {
                    failing_since = None; // the next warning comes after as long again
                    let until =
                        if loaded.is_some() { "the earlier ones stay in use" } else { "nothing passes" };
                    tracing::warn!("the certificate files cannot be used, {until}: {error:#}");
                }
            }
        }
    }
}

/// Tells one state of the files from another: inode, size and time of each.
fn fingerprint(directory: &Path) -> Option<Vec<(u64, u64, i64, i64)>> {
    ["certChain.pem", "key.pem", "mesh-ca.pem", "coordinator-root-ca.pem"]
        .iter()
        .map(|name| {
            let found = std::fs::metadata(directory.join("tls-config").join(name)).ok()?;
            Some((found.ino(), found.size(), found.mtime(), found.mtime_nsec()))
        })
        .collect()
}

fn now() -> UnixTime {
    UnixTime::now()
}
