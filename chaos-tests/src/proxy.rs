//! A TCP proxy between a Coordinator and a member of etcd, that can misbehave like a network.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::Context as _;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::watch,
};

/// What happens to traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    /// It passes.
    Up,
    /// Connections are cut, new ones are refused.
    Cut,
    /// Connections stay, and nothing passes: what a lost network looks like.
    Silent,
    /// Each read waits.
    Slow(Duration),
    /// Connections are cut in the middle, each after this many bytes.
    Truncate(u64),
}

/// One proxied connection target.
pub struct Proxy {
    /// Where clients connect.
    pub port: u16,
    now: watch::Sender<(Link, SocketAddr)>,
    target: SocketAddr,
    passed: Arc<AtomicU64>,
}

impl Proxy {
    /// Listens on a free port, and connects to `target` for each client.
    pub async fn start(target: SocketAddr) -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.context("proxy")?;
        let (port, (sender, now)) = (listener.local_addr()?.port(), watch::channel((Link::Up, target)));
        let passed = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&passed);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                if now.borrow().0 == Link::Cut {
                    continue; // closed at once
                }
                tokio::spawn(connection(client, now.clone(), Arc::clone(&count)));
            }
        });
        Ok(Self { port, now: sender, target, passed })
    }

    /// Changes what happens to traffic, that of open connections included. Connections end if they went
    /// somewhere else.
    pub fn set(&self, link: Link) {
        self.now.send_replace((link, self.target));
    }

    /// Connects clients to another place until [`Proxy::set`]; open connections end.
    pub fn redirect(&self, elsewhere: SocketAddr) {
        self.now.send_replace((Link::Up, elsewhere));
    }

    /// Bytes that passed.
    pub fn passed(&self) -> u64 {
        self.passed.load(Ordering::Relaxed)
    }
}

type Now = watch::Receiver<(Link, SocketAddr)>;

async fn connection(client: TcpStream, link: Now, passed: Arc<AtomicU64>) {
    let target = link.borrow().1;
    let Ok(server) = TcpStream::connect(target).await else { return };
    let _ = (client.set_nodelay(true), server.set_nodelay(true)); // only a matter of speed
    let (client_read, client_write) = client.into_split();
    let (server_read, server_write) = server.into_split();
    tokio::select! {
        () = pump(client_read, server_write, link.clone(), Arc::clone(&passed)) => {}
        () = pump(server_read, client_write, link.clone(), passed) => {}
        () = cut(link, target) => {}
    }
}

async fn cut(mut link: Now, target: SocketAddr) {
    // An error means that the proxy is gone.
    let _ = link.wait_for(|(link, now)| *link == Link::Cut || *now != target).await;
}

async fn pump(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    mut link: Now,
    passed: Arc<AtomicU64>,
) {
    let mut buffer = vec![0; 16 << 10];
    let mut sent = 0_u64;
    loop {
        let Ok(count @ 1..) = from.read(&mut buffer).await else { return };
        let Ok(now) = link.wait_for(|(link, _)| *link != Link::Silent).await.map(|now| now.0) else { return };
        match now {
            Link::Slow(delay) => tokio::time::sleep(delay).await,
            Link::Truncate(after) if sent + count as u64 > after => {
                let part = usize::try_from(after.saturating_sub(sent)).unwrap_or(0);
                let _ = to.write_all(&buffer[..part.min(count)]).await;
                return;
            }
            Link::Up | Link::Cut | Link::Silent | Link::Truncate(_) => {}
        }
        sent += count as u64;
        passed.fetch_add(count as u64, Ordering::Relaxed);
        if to.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
}
