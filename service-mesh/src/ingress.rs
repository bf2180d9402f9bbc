//! From peers to the application: transparent sockets take what the packet filter hands them.
//!
//! The accepted socket's own address is where the peer wanted to go, and where the application is
//! connected. The application sees a connection from the pod's own address.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
};

use anyhow::Context as _;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};

use crate::{
    gate::{Gate, Place},
    metrics::Way,
    tunnel,
};

const BACKLOG: i32 = 4096;

/// What clients must show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ClientAuth {
    /// A certificate of the mesh.
    Required,
    /// Nothing.
    None,
}

/// The mesh's own ports, which are no destinations.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OwnPorts(pub(crate) [u16; 2]);

/// Transparent sockets for a port: IPv4, and IPv6 if the kernel has it.
pub(crate) fn listen(port: u16) -> anyhow::Result<Vec<TcpListener>> {
    let v4 = transparent(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)))
        .with_context(|| format!("cannot listen transparently on port {port}"))?;
    match transparent(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port))) {
        Ok(v6) => Ok(vec![v4, v6]),
        Err(error) => {
            tracing::warn!("no IPv6, what comes over it is dropped: {error}");
            Ok(vec![v4])
        }
    }
}

fn transparent(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
        socket.set_ip_transparent_v6(true)?;
    } else {
        socket.set_ip_transparent_v4(true)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Serves for ever.
pub(crate) async fn serve(listener: TcpListener, clients: ClientAuth, own: OwnPorts, gate: Arc<Gate>) {
    loop {
        let (stream, place) = gate.accept(&listener, Way::Ingress).await;
        let gate = Arc::clone(&gate);
        tokio::spawn(async move { connection(stream, place, clients, own, &gate).await });
    }
}

async fn connection(peer: TcpStream, place: Place, clients: ClientAuth, own: OwnPorts, gate: &Gate) {
    let Ok(destination) = peer.local_addr() else { return };
    // Reached directly: by a probe, or from within the pod. There is no application to go to.
    if own.0.contains(&destination.port()) {
        return;
    }
    let mut access = gate.access(Way::Ingress, destination.port().to_string(), peer.peer_addr().ok());
    let turn = match gate.turn(&place).await {
        Ok(turn) => turn,
        Err(error) => return gate.handshake_failed(Way::Ingress, access, &error),
    };
    let Some(identity) = gate.identity() else { return };
    let config = match clients {
        ClientAuth::Required => identity.mutual(destination.port()),
        ClientAuth::None => identity.anonymous(),
    };
    drop(identity);
    let tunnel = match tunnel::accept(peer, config, gate.limits.handshake).await {
        Ok(tunnel) => tunnel,
        Err(error) => return gate.handshake_failed(Way::Ingress, access, &error),
    };
    drop(turn);
    access.shook_hands(tunnel.peer_names());
    let application = match gate.connect(destination).await {
        Ok(stream) => stream,
        Err(error) => {
            gate.unreachable(Way::Ingress, access, &error);
            return tracing::warn!(%destination, "the application does not answer: {error}");
        }
    };
    gate.metrics.of(Way::Ingress).opened();
    let shut_out = gate.shut_out(tunnel.peer());
    let (carried, outcome) = tunnel.carry(application, shut_out).await;
    gate.ended(Way::Ingress, access, carried, outcome);
}
