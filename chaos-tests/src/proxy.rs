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
    link: watch::Sender<Link>,
    passed: Arc<AtomicU64>,
}

impl Proxy {
    /// Listens on a free port, and connects to `target` for each client.
    pub async fn start(target: SocketAddr) -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.context("proxy")?;
        let (port, (link, now)) = (listener.local_addr()?.port(), watch::channel(Link::Up));
        let passed = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&passed);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                if *now.borrow() == Link::Cut {
                    continue; // closed at once
                }
                tokio::spawn(connection(client, target, now.clone(), Arc::clone(&count)));
            }
        });
        Ok(Self { port, link, passed })
    }

    /// Changes what happens to traffic, that of open connections included.
    pub fn set(&self, link: Link) {
        self.link.send_replace(link);
    }

    /// Bytes that passed.
    pub fn passed(&self) -> u64 {
        self.passed.load(Ordering::Relaxed)
    }
}

async fn connection(
    client: TcpStream,
    target: SocketAddr,
    link: watch::Receiver<Link>,
    passed: Arc<AtomicU64>,
) {
    let Ok(server) = TcpStream::connect(target).await else { return };
    let _ = (client.set_nodelay(true), server.set_nodelay(true)); // only a matter of speed
    let (client_read, client_write) = client.into_split();
    let (server_read, server_write) = server.into_split();
    tokio::select! {
        () = pump(client_read, server_write, link.clone(), Arc::clone(&passed)) => {}
        () = pump(server_read, client_write, link.clone(), passed) => {}
        () = cut(link) => {}
    }
}

async fn cut(mut link: watch::Receiver<Link>) {
    // An error means that the proxy is gone.
    let _ = link.wait_for(|link| *link == Link::Cut).await;
}

async fn pump(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    mut link: watch::Receiver<Link>,
    passed: Arc<AtomicU64>,
) {
    let mut buffer = vec![0; 16 << 10];
    let mut sent = 0_u64;
    loop {
        let Ok(count @ 1..) = from.read(&mut buffer).await else { return };
        let Ok(now) = link.wait_for(|link| *link != Link::Silent).await.map(|link| *link) else { return };
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
