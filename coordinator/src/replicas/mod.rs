//! Several Coordinators that act as one: finding each other, joining, following the control stream,
//! noticing a store that lies. See docs/replicas.md; upstream's way is in docs/spec/control-plane.md,
//! section 8.

mod api;
mod connection;
mod copies;
mod copy;
mod discovery;
mod exchange;
mod follow;
mod heads;
mod join;
mod kubernetes;
mod options;
mod trim;

pub(crate) use api::{ClusterApi, ReplicaApi};
pub(crate) use discovery::Discovery;
pub(crate) use options::ReplicaOptions;

use std::sync::Arc;

use attestation::Issuer;
use tokio::sync::watch;

use crate::desk::{Desk, Standing, Store};

/// Opens the store: the local engine, behind it the shared one if there is one. The receiver tells of
/// appends by others.
pub(crate) fn open_store(
    directory: &std::path::Path,
    options: &ReplicaOptions,
) -> anyhow::Result<(Store, Arc<Standing>)> {
    let local = storage_schema::SledStore::open(directory)?;
    match options.etcd()? {
        None => Ok((Store::alone(local), Arc::new(Standing::alone()))),
        Some(etcd) => {
            let etcd = Arc::new(etcd_store::EtcdStore::new(&etcd)?);
            let standing = Arc::new(Standing::shared(Arc::clone(&etcd)));
            Ok((Store::shared(local, etcd), standing))
        }
    }
}

/// Keeps this replica one of several, until stopped. Without a shared store there is nothing to do.
pub(crate) async fn keep(
    desk: Desk,
    issuer: Arc<dyn Issuer>,
    options: ReplicaOptions,
    discovery: Discovery,
    mut stop: watch::Receiver<bool>,
) {
    if !desk.store.is_shared() {
        return;
    }
    let peers = Arc::new(connection::Peers { desk: desk.clone(), issuer, discovery });
    desk.store.ask_copies(Arc::new(copies::PeerCopies::new(&peers)));
    let work = async {
        tokio::join!(
            follow::keep(&desk),
            join::keep(&peers),
            exchange::keep(&peers, options.exchange_every()),
            copy::keep(&desk),
            trim::keep(&peers, &options),
        )
    };
    tokio::select! {
        _ = work => {}
        _ = stop.wait_for(|stopped| *stopped) => {}
    }
}
