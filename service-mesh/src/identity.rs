//! Who this pod is and whom it trusts: the initializer's files, watched and reloaded.
//!
//! New connections use the newest files; connections that exist go on with what they began with. A set of
//! files that does not fit together (the initializer replaces them one by one) is not used, and the old
//! one stays until it does. Neither is one of another deployment than the first, whoever wrote it: a host can have
//! a pod's initializer run once more and lead it to a Coordinator of its own.

use std::{
    collections::BTreeMap,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, ensure};
use continuity::{Answer, NotCounted, PEERS_FILE, PeerIdentity, Peers, Pin};
use mesh_config::Peers as AllowedPeers;
use rustls::{
    ClientConfig, ServerConfig,
    client::{Resumption, danger::ServerCertVerifier as _},
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject as _},
    server::danger::ClientCertVerifier,
    sign::CertifiedKey,
    version::TLS13,
};
use tokio::{sync::watch, time::Instant};

use crate::peer::{Anchors, PeerVerifier, Trust};

const LOOK_EVERY: Duration = Duration::from_millis(500);
/// The pod waits for the first.
const LOOK_FOR_THE_FIRST_EVERY: Duration = Duration::from_millis(50);
/// Files that do not fit together for longer are worth a warning.
const WARN_AFTER: Duration = Duration::from_secs(10);

/// Where the files are, and what to make of them.
#[derive(Clone, Debug)]
pub(crate) struct Sources {
    pub(crate) directory: PathBuf,
    pub(crate) trust: Trust,
    pub(crate) peers: AllowedPeers,
}

/// TLS as of one state of the files.
pub(crate) struct Identity {
    mutual: Arc<ServerConfig>,
    anonymous: Arc<ServerConfig>,
    mutual_by_port: BTreeMap<u16, Arc<ServerConfig>>,
    client: Arc<ClientConfig>,
    client_by_name: BTreeMap<String, Arc<ClientConfig>>,
    anchors: Arc<Anchors>,
    /// Of the mesh's peers; there may be none.
    list: Option<Arc<Peers>>,
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

    /// Whether a connection may go on whose peer counted when it was made.
    pub(crate) fn still_counts(&self, peer: &PeerIdentity) -> Result<(), NotCounted> {
        self.anchors.still_counts(peer)
    }

    /// Loads the files, if they are of the deployment that was met first, and the list of mesh peers, if it follows the one
    /// that was `seen`; gives what is kept of the deployment from now on.
    fn load(sources: &Sources, kept: Option<&Pin>, seen: Option<&Peers>) -> anyhow::Result<(Self, Pin)> {
        let directory = sources.directory.join("tls-config");
        let read = |name: &str| {
            let path = directory.join(name);
            let content = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
            anyhow::Ok((path, content))
        };
        let (root_ca, mesh_ca) = (read("coordinator-root-ca.pem")?, read("mesh-ca.pem")?);
        let (chain_file, chain) = read("certChain.pem")?;
        let answer = Answer::read(&root_ca.1, &mesh_ca.1, &chain)?;
        // The initializer's memory, and ours: either may be of an earlier start.
        let known = Pin::load(&sources.directory)?;
        let pin = Pin::after(known.as_ref(), &answer, &[])?;
        let pin = match kept {
            Some(kept) => Pin::after(Some(kept), &answer, &[])?,
            None => pin,
        };
        if known.is_none()
            && let Err(error) = pin.store(&sources.directory)
        {
            tracing::warn!("whose deployment this is will not outlive this process: {error}");
        }

        let list = list_of(&sources.directory, &answer.root_key, seen)?.map(Arc::new);
        let [root, mesh] = [&root_ca, &mesh_ca].map(|(path, pem)| only_certificate(path, pem));
        let (root, mesh) = (root?, mesh?);
        let chain = certificates(&chain_file, &chain)?;
        let key_file = directory.join("key.pem");
        let key = PrivateKeyDer::from_pem_file(&key_file)
            .with_context(|| format!("cannot read {}", key_file.display()))?;

        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let [leaf, intermediates @ ..] = chain.as_slice() else {
            anyhow::bail!("{} holds no certificate", chain_file.display());
        };
        // Whether the own certificate counts is for the others to say.
        let own = Anchors::new(sources.trust, None, &root, &mesh, &provider)?;
        PeerVerifier::new(Arc::new(own), Arc::clone(&provider), None)
            .verify_server_cert(leaf, intermediates, &nobody(), &[], now())
            .with_context(|| chain_file.display().to_string())?;
        let anchors = Arc::new(Anchors::new(sources.trust, list.clone(), &root, &mesh, &provider)?);
        let verifier = |allowed| PeerVerifier::new(Arc::clone(&anchors), Arc::clone(&provider), allowed);
        let any = Arc::new(verifier(None));
        let certified = CertifiedKey::from_der(chain, key, &provider)
            .with_context(|| format!("{} and {}", chain_file.display(), key_file.display()))?;
        let certified = Arc::new(certified);

        let mut made = Self {
            mutual: server(&provider, &certified, Some(Arc::clone(&any) as _))?,
            anonymous: server(&provider, &certified, None)?,
            client: client(&provider, &certified, any)?,
            mutual_by_port: BTreeMap::new(),
            client_by_name: BTreeMap::new(),
            list,
            anchors: Arc::clone(&anchors),
        };
        for (key, names) in &sources.peers.0 {
            let verifier = Arc::new(verifier(Some(names.clone())));
            if let Ok(port) = key.parse() {
                made.mutual_by_port.insert(port, server(&provider, &certified, Some(verifier))?);
            } else {
                made.client_by_name.insert(key.clone(), client(&provider, &certified, verifier)?);
            }
        }
        Ok((made, pin))
    }
}

/// The Coordinator's list of mesh peers; none from Coordinators of upstream.
fn list_of(directory: &Path, root_key: &[u8], seen: Option<&Peers>) -> anyhow::Result<Option<Peers>> {
    let path = directory.join(PEERS_FILE);
    match std::fs::read(&path) {
        Ok(bytes) => {
            Peers::open(&bytes, root_key, seen).map(Some).with_context(|| path.display().to_string())
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && seen.is_none() => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

fn only_certificate(path: &Path, pem: &[u8]) -> anyhow::Result<CertificateDer<'static>> {
    let mut found = certificates(path, pem)?;
    ensure!(found.len() == 1, "{} holds {} certificates, expected one", path.display(), found.len());
    Ok(found.remove(0))
}

fn certificates(path: &Path, pem: &[u8]) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let found = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>();
    let found = found.with_context(|| format!("cannot read {}", path.display()))?;
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
    let (mut loaded, mut kept, mut seen) = (None, None::<Pin>, None::<Arc<Peers>>);
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
        let (known, last) = (kept.clone(), seen.clone());
        let load = move || Identity::load(&to_load, known.as_ref(), last.as_deref());
        let Ok(outcome) = tokio::task::spawn_blocking(load).await else { continue };
        match outcome {
            Ok((identity, pin)) => {
                (kept, seen) = (Some(pin), identity.list.clone());
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
    let of = |path: PathBuf| {
        let found = std::fs::metadata(path).ok()?;
        Some((found.ino(), found.size(), found.mtime(), found.mtime_nsec()))
    };
    let needed = ["certChain.pem", "key.pem", "mesh-ca.pem", "coordinator-root-ca.pem"];
    let needed = needed.iter().map(|name| of(directory.join("tls-config").join(name)));
    let list = of(directory.join(PEERS_FILE)).unwrap_or_default();
    needed.chain([Some(list)]).collect()
}

fn now() -> UnixTime {
    UnixTime::now()
}

#[cfg(test)]
mod tests {
    use keys::{CaKey, LeafRequest, MeshCa, Salt, Seed, SeedEngine};
    use manifest::Timestamp;

    use super::*;

    /// Files as an initializer writes them, under the root that follows from the seed.
    fn write(directory: &Path, seed: u8, generation: u64) {
        let (seed, salt) = (Seed::from_bytes(&[seed; 64]).unwrap(), Salt::from_bytes(&[1; 32]).unwrap());
        let engine = SeedEngine::new(seed, salt).unwrap();
        let now = Timestamp::from_millis(super::now().as_secs() * 1000);
        let ca = MeshCa::new(&engine, CaKey::generate().unwrap(), now).unwrap();
        let key = rcgen::KeyPair::generate().unwrap();
        let leaf = LeafRequest {
            spki_der: &rcgen::PublicKeyData::subject_public_key_info(&key),
            sans: &["web".into()],
            workload_secret_id: None,
            claims: &keys::leaf_claim_extensions(None, generation, None).unwrap(),
            lifetime: Duration::from_hours(1),
        };
        let (leaf, public) = (ca.issue(&leaf, now).unwrap(), ca.public());
        let tls = directory.join("tls-config");
        std::fs::create_dir_all(&tls).unwrap();
        for (name, content) in [
            ("key.pem", key.serialize_pem()),
            ("coordinator-root-ca.pem", public.root_pem.clone()),
            ("mesh-ca.pem", public.mesh_pem.clone()),
            ("certChain.pem", format!("{}{}", leaf.pem, public.intermediate_pem)),
        ] {
            std::fs::write(tls.join(name), content).unwrap();
        }
    }

    #[test]
    fn files_of_another_deployment_are_not_loaded() {
        let directory = tempfile::tempdir().unwrap();
        let sources = Sources {
            directory: directory.path().to_owned(),
            trust: Trust::MeshCa,
            peers: AllowedPeers::default(),
        };
        let load = |kept: Option<&Pin>| Identity::load(&sources, kept, None).map(|(_, pin)| pin);
        let refused = |kept: Option<&Pin>| format!("{:#}", load(kept).unwrap_err());
        write(directory.path(), 1, 2);
        let first = load(None).unwrap();
        write(directory.path(), 1, 3); // a new manifest: another mesh CA under the same root
        let newer = load(Some(&first)).unwrap();
        write(directory.path(), 1, 2);
        assert!(refused(Some(&newer)).contains("this pod has seen manifest 3"));
        write(directory.path(), 2, 9);
        assert!(refused(Some(&newer)).contains("a new deployment needs a new pod"));
        // It started anew, and the file in guest memory remembers; or the file is gone, and it remembers itself.
        assert!(refused(None).contains("a new deployment needs a new pod"));
        std::fs::remove_file(directory.path().join("deployment.json")).unwrap();
        assert!(refused(Some(&newer)).contains("a new deployment needs a new pod"));
        // A mesh CA of one deployment beside the root of another.
        let root = std::fs::read(directory.path().join("tls-config/coordinator-root-ca.pem")).unwrap();
        write(directory.path(), 1, 3);
        std::fs::write(directory.path().join("tls-config/coordinator-root-ca.pem"), root).unwrap();
        assert!(refused(None).contains("not of one deployment"));
    }
}
