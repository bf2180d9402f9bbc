//! Whose certificates count in the mesh: the signed list, which the Coordinator gives with each certificate, and which is
//! asked for every few seconds, because it may change at any moment.
//!
//! The list is public and signed, so it is asked for over plain HTTP: that costs the Coordinator next to nothing, and
//! whoever is on the way can withhold it, as he can anyway. What comes so is taken only if the mesh CA signed it that
//! this pod got with its certificate. For another one the root vouches, whose key seedshare owners can derive: such a list
//! is a reason to ask for a new certificate, with which the Coordinator gives its list.

use std::{
    collections::hash_map::RandomState,
    hash::{BuildHasher as _, Hasher as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, bail};
use continuity::{MAX_PEERS_BYTES, PEERS_FILE, Peers};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::{Request, StatusCode, body::Bytes, header::HOST};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, sync::watch};

use crate::files;

/// Between two questions.
const ASK_EVERY: Duration = Duration::from_secs(5);
/// Longest answer.
const ANSWER: Duration = Duration::from_secs(10);
/// Pods of one update do not come all at once.
const SPREAD: Duration = Duration::from_millis(1500);
/// Least time between a certificate and the next one because of the list.
const AT_MOST_EVERY: Duration = Duration::from_secs(5);

/// What is known of the mesh.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Heard {
    /// Number of the newest list; 0: none came.
    number: u64,
    /// The mesh CA in force, DER.
    mesh_ca: Vec<u8>,
}

impl Heard {
    fn supersedes(&self, own_mesh_ca: &[u8]) -> bool {
        self.number > 0 && self.mesh_ca != own_mesh_ca
    }
}

impl From<&Peers> for Heard {
    fn from(list: &Peers) -> Self {
        Self { number: list.number, mesh_ca: list.mesh_ca.clone() }
    }
}

/// Puts a list into its place, if it is this deployment's and not older than the one that is there. Before the
/// certificates: who finds them finds the list that counts them.
pub(crate) fn take(directory: &Path, root_key: &[u8], bytes: &[u8]) -> anyhow::Result<Peers> {
    let path = directory.join(PEERS_FILE);
    let known = std::fs::read(&path).ok();
    // What is there and cannot be read, as of another version, counts for nothing.
    let known = known.and_then(|known| Peers::open(&known, root_key, None).ok());
    let list = Peers::open(bytes, root_key, known.as_ref())?;
    if known.as_ref() != Some(&list) {
        std::fs::create_dir_all(directory)
            .with_context(|| format!("cannot create {}", directory.display()))?;
        files::put(&path, 0o444, bytes)?;
    }
    Ok(list)
}

/// Asks for ever, and tells what it heard.
pub(crate) async fn follow(
    address: String,
    directory: PathBuf,
    root_key: Vec<u8>,
    own_mesh_ca: watch::Receiver<Vec<u8>>,
    heard: Arc<watch::Sender<Heard>>,
) {
    let mut failing = false;
    loop {
        tokio::time::sleep(ASK_EVERY.mul_f64(0.8 + 0.4 * chance())).await;
        let after = heard.borrow().number;
        let answer = match tokio::time::timeout(ANSWER, ask(&address, after)).await {
            Ok(answer) => answer,
            Err(_) => Err(anyhow::anyhow!("{address} gave no answer within {ANSWER:?}")),
        };
        let taken = answer.and_then(|bytes| {
            let Some(bytes) = bytes else { return Ok(None) };
            let list = Peers::open(&bytes, &root_key, None)?;
            match list.mesh_ca == *own_mesh_ca.borrow() {
                true => take(&directory, &root_key, &bytes).map(Some),
                false => Ok(Some(list)),
            }
        });
        match taken {
            Ok(found) => {
                if std::mem::take(&mut failing) {
                    tracing::info!("the list of mesh peers can be asked for again");
                }
                if let Some(list) = found {
                    tracing::info!(
                        number = list.number,
                        generation = list.generation,
                        "new list of mesh peers"
                    );
                    heard.send_replace(Heard::from(&list));
                }
            }
            Err(error) if !std::mem::replace(&mut failing, true) => {
                tracing::warn!("no list of mesh peers: {error:#}; it comes with the next certificate, too");
            }
            Err(error) => tracing::debug!("no list of mesh peers: {error:#}"),
        }
    }
}

/// Waits until the newest list names another mesh CA than the one that this pod's certificate is of. Until it is renewed
/// it counts all the same, so there is no hurry.
pub(crate) async fn superseded(mut heard: watch::Receiver<Heard>, own_mesh_ca: &[u8]) {
    tokio::time::sleep(AT_MOST_EVERY).await;
    if heard.wait_for(|heard| heard.supersedes(own_mesh_ca)).await.is_err() {
        std::future::pending::<()>().await; // nobody asks any more
    }
    tokio::time::sleep(SPREAD.mul_f64(chance())).await;
}

/// Between 0 and 1.
fn chance() -> f64 {
    let bits = u32::try_from(RandomState::new().build_hasher().finish() >> 32).unwrap_or_default();
    f64::from(bits) / f64::from(u32::MAX)
}

/// The list, if there is one with a greater number.
async fn ask(address: &str, after: u64) -> anyhow::Result<Option<Vec<u8>>> {
    let stream = TcpStream::connect(address).await.with_context(|| format!("cannot reach {address}"))?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let request = Request::get(format!("/v1/mesh-peers?after={after}")).header(HOST, address);
    let request = request.body(Empty::<Bytes>::new())?;
    let answer = async {
        let response = sender.send_request(request).await?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_PEERS_BYTES).collect().await;
        let body = body.map_err(|error| anyhow::anyhow!("{address}: {error}"))?.to_bytes();
        match status {
            StatusCode::OK => Ok(Some(body.to_vec())),
            StatusCode::NO_CONTENT => Ok(None),
            status => bail!("{address} answered {status} to /v1/mesh-peers"),
        }
    };
    tokio::select! {
        answer = answer => answer,
        Err(error) = connection => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_renews_when_the_list_names_another_mesh_ca_than_its_own() {
        assert!(!Heard::default().supersedes(b"ca 1"), "an older Coordinator gives no list");
        let heard = Heard { number: 3, mesh_ca: b"ca 2".to_vec() };
        assert!(heard.supersedes(b"ca 1") && !heard.supersedes(b"ca 2"));
    }
}
