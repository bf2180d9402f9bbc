//! From the application to peers: plain connections on loopback addresses become mutual TLS.

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use mesh_config::EgressEntry;
use rustls::pki_types::ServerName;
use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};

use crate::{
    gate::{Gate, Place, server_name},
    metrics::Way,
    tunnel,
};

/// How long a name's addresses are believed.
const NAMES_LIVE: Duration = Duration::from_secs(5);

/// A loopback address and where it leads.
pub(crate) struct Egress {
    entry: EgressEntry,
    name: ServerName<'static>,
    addresses: Mutex<Option<(Instant, Vec<SocketAddr>)>>,
    listener: TcpListener,
}

impl Egress {
    pub(crate) async fn listen(entry: EgressEntry) -> anyhow::Result<Self> {
        let name = server_name(&entry.host)
            .with_context(|| format!("egress {}: {:?} is not a host name", entry.name, entry.host))?;
        let listener = TcpListener::bind(entry.listen)
            .await
            .with_context(|| format!("egress {}: cannot listen on {}", entry.name, entry.listen))?;
        Ok(Self { entry, name, addresses: Mutex::new(None), listener })
    }

    /// Serves for ever.
    pub(crate) async fn serve(self, gate: Arc<Gate>) {
        let this = Arc::new(self);
        loop {
            let (stream, place) = gate.accept(&this.listener, Way::Egress).await;
            let (this, gate) = (Arc::clone(&this), Arc::clone(&gate));
            tokio::spawn(async move { this.connection(stream, place, &gate).await });
        }
    }

    async fn connection(&self, application: TcpStream, place: Place, gate: &Gate) {
        // If no tunnel comes to be, the application sees a reset, not an empty answer.
        let _ = SockRef::from(&application).set_linger(Some(Duration::ZERO));
        let source = application.peer_addr().ok();
        let mut access = gate.access(Way::Egress, self.entry.name.clone(), source);
        let turn = match gate.turn(&place).await {
            Ok(turn) => turn,
            Err(error) => return gate.handshake_failed(Way::Egress, access, &error),
        };
        let name = &self.entry.name;
        let peer = match self.connect(gate).await {
            Ok(stream) => stream,
            Err(error) => {
                gate.unreachable(Way::Egress, access, &error);
                return tracing::warn!(egress = name, "{}:{}: {error}", self.entry.host, self.entry.port);
            }
        };
        let Some(identity) = gate.identity() else { return };
        let config = identity.client(name);
        drop(identity);
        let tunnel = match tunnel::connect(peer, config, self.name.clone(), gate.limits.handshake).await {
            Ok(tunnel) => tunnel,
            Err(error) => return gate.handshake_failed(Way::Egress, access, &error),
        };
        drop(turn);
        access.shook_hands(tunnel.peer_names());
        let _ = SockRef::from(&application).set_linger(None);
        gate.metrics.of(Way::Egress).opened();
        let shut_out = gate.shut_out(tunnel.peer());
        let (carried, outcome) = tunnel.carry(application, shut_out).await;
        gate.ended(Way::Egress, access, carried, outcome);
    }

    /// Connects to the first address that answers.
    async fn connect(&self, gate: &Gate) -> io::Result<TcpStream> {
        let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
        for address in self.addresses().await? {
            match gate.connect(address).await {
                Ok(stream) => return Ok(stream),
                Err(error) => last = error,
            }
        }
        self.remembered().take(); // they may have moved
        Err(last)
    }

    async fn addresses(&self) -> io::Result<Vec<SocketAddr>> {
        if let Some((at, addresses)) = &*self.remembered()
            && at.elapsed() < NAMES_LIVE
        {
            return Ok(addresses.clone());
        }
        let found: Vec<_> =
            tokio::net::lookup_host((self.entry.host.as_str(), self.entry.port)).await?.collect();
        *self.remembered() = Some((Instant::now(), found.clone()));
        Ok(found)
    }

    fn remembered(&self) -> std::sync::MutexGuard<'_, Option<(Instant, Vec<SocketAddr>)>> {
        self.addresses.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
