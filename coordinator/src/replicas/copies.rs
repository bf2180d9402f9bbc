//! What the shared store gave up, from the other replicas' copies. The log verifies it.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use storage_schema::{BlobHash, Copies, StoreError, StreamId};
use tokio::runtime::Handle;
use tonic::{Status, transport::Channel};
use wire::replica::{BlobRequest, SegmentsRequest, replica_client::ReplicaClient};

use super::connection::Peers;

/// Longest wait for one answer, all peers asked.
const DEADLINE: Duration = Duration::from_secs(30);
/// Largest answer, in bytes: a page and the segment that exceeds it.
const MAX_ANSWER: usize = 32 << 20;

type Client = ReplicaClient<Channel>;

/// The other replicas' copies.
pub(super) struct PeerCopies {
    /// Gone when the replica stops.
    peers: Weak<Peers>,
    runtime: Handle,
    /// The peer that answered last: a stream is fetched page by page, its evidence one by one.
    last: Mutex<Option<Client>>,
}

impl PeerCopies {
    pub(super) fn new(peers: &Arc<Peers>) -> Self {
        Self { peers: Arc::downgrade(peers), runtime: Handle::current(), last: Mutex::default() }
    }

    fn last(&self) -> MutexGuard<'_, Option<Client>> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks one peer after the other until one has something.
    fn ask<R>(
        &self,
        question: impl AsyncFn(&mut Client) -> Result<Option<R>, Status>,
    ) -> Result<Option<R>, StoreError> {
        let asking = async {
            let known = self.last().clone();
            if let Some(mut client) = known
                && let Ok(Some(answer)) = question(&mut client).await
            {
                return Some(answer);
            }
            let peers = self.peers.upgrade()?;
            let active = peers.desk.in_force().ok()?;
            for address in peers.discovery.peers().await {
                let Ok(client) = peers.connect(&address, &active.manifest).await else { continue };
                let mut client = client.max_decoding_message_size(MAX_ANSWER);
                if let Ok(Some(answer)) = question(&mut client).await {
                    *self.last() = Some(client);
                    return Some(answer);
                }
            }
            None
        };
        let answer = self.runtime.block_on(async { tokio::time::timeout(DEADLINE, asking).await });
        answer.map_err(|_| StoreError::Unavailable("no peer answers with what etcd gave up".into()))
    }
}

impl Copies for PeerCopies {
    fn segments(
        &self,
        stream: &StreamId,
        index: u64,
        _max_bytes: usize,
    ) -> Result<Vec<(u64, Vec<u8>)>, StoreError> {
        let request = SegmentsRequest { stream: stream.to_string(), index };
        let answer = self.ask(async |client| {
            let segments = client.segments(request.clone()).await?.into_inner().segments;
            Ok(Some(segments).filter(|segments| !segments.is_empty()))
        });
        Ok((index..).zip(answer?.unwrap_or_default()).collect())
    }

    fn blob(&self, hash: &BlobHash) -> Result<Option<Vec<u8>>, StoreError> {
        let request = BlobRequest { hash: hash.as_bytes().to_vec() };
        self.ask(async |client| {
            let content = client.blob(request.clone()).await?.into_inner().content;
            // A peer with another content for it has none.
            Ok(content.filter(|content| BlobHash::of(content) == *hash))
        })
    }
}
