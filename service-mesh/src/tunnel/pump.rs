//! Moves bytes through a tunnel, both ways, until both sides have said that they are done.
//!
//! A side that ends its stream ends that direction only. An end that TLS did not announce is an attack or
//! a crash: the other side sees a reset, never a clean end. Nobody is read from while what was read before
//! is not written yet, so a slow reader slows its writer, and no more than one buffer is held for it.

use std::{
    cell::RefCell,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use continuity::NotCounted;
use socket2::SockRef;
use tokio::net::TcpStream;

use super::{
    Tunnel,
    session::{Connection, Session},
};

/// Bytes read at once.
const READ: usize = 64 << 10;

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::new(Scratch {
        read: vec![0; READ + RECORD].into_boxed_slice(),
        plain: Vec::with_capacity(READ),
        tls: Vec::with_capacity(READ + RECORD),
    });
}

/// Longest TLS record, in bytes: what may wait for its end.
const RECORD: usize = 18 << 10;

/// Buffers that a thread's connections share.
struct Scratch {
    read: Box<[u8]>,
    plain: Vec<u8>,
    tls: Vec<u8>,
}

/// Why a tunnel ended before both sides were done.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PumpError {
    /// Towards the peer.
    #[error("peer: {0}")]
    Peer(#[source] io::Error),
    /// Towards the application.
    #[error("application: {0}")]
    Application(#[source] io::Error),
    /// What the peer sent is not TLS, or was changed on the way.
    #[error("peer: {0}")]
    Tls(#[from] rustls::Error),
    /// The peer was shut out while the connection stood.
    #[error("{0}")]
    ShutOut(#[from] NotCounted),
    /// The peer's TCP stream ended, but not its TLS stream.
    #[error("the peer's stream was cut off")]
    Truncated,
}

/// What went through.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Carried {
    /// Bytes of the application to the peer.
    pub(crate) out: u64,
    /// Bytes of the peer to the application.
    pub(crate) into: u64,
}

/// Bytes that could not be written yet.
#[derive(Default)]
struct Waiting {
    bytes: Vec<u8>,
    written: usize,
}

impl Waiting {
    fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Writes all that waits; its memory is given back then.
    fn poll_write(&mut self, stream: &TcpStream, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some(rest) = self.bytes.get(self.written..).filter(|rest| !rest.is_empty()) {
            ready!(stream.poll_write_ready(cx))?;
            match stream.try_write(rest) {
                Ok(written) => self.written += written,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        *self = Self::default();
        Poll::Ready(Ok(()))
    }

    /// Writes now what can be written, and keeps the rest. Nothing must wait already.
    fn write_or_keep(&mut self, stream: &TcpStream, bytes: &[u8]) -> io::Result<()> {
        let written = match stream.try_write(bytes) {
            Ok(written) => written,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
            Err(error) => return Err(error),
        };
        self.push(bytes.get(written..).unwrap_or_default());
        Ok(())
    }
}

/// One direction.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    Open,
    /// The source has ended; its last bytes may wait.
    Ending,
    Done,
}

struct Pump<C> {
    session: Session<C>,
    peer: TcpStream,
    application: TcpStream,
    to_peer: Waiting,
    to_application: Waiting,
    out: Direction,
    into: Direction,
    carried: Carried,
}

impl<C: Connection> Tunnel<C> {
    /// Carries bytes between the peer and the application until both are done, or the peer is shut out.
    pub(crate) async fn carry(
        self,
        application: TcpStream,
        shut_out: impl Future<Output = NotCounted>,
    ) -> (Carried, Result<(), PumpError>)
    where
        C: Unpin,
    {
        let mut shut_out = std::pin::pin!(shut_out);
        let into = if self.closed { Direction::Ending } else { Direction::Open };
        let carried = Carried { out: 0, into: self.early.len() as u64 };
        let mut pump = Pump {
            session: self.session,
            peer: self.peer,
            application,
            to_peer: Waiting::default(),
            to_application: Waiting { bytes: self.early, written: 0 },
            out: Direction::Open,
            into,
            carried,
        };
        let outcome = std::future::poll_fn(|cx| match shut_out.as_mut().poll(cx) {
            Poll::Ready(reason) => Poll::Ready(Err(reason.into())),
            Poll::Pending => Pin::new(&mut pump).poll(cx),
        })
        .await;
        if outcome.is_err() {
            // The application must not take a cut-off stream for a whole one.
            let _ = SockRef::from(&pump.application).set_linger(Some(Duration::ZERO));
            let _ = SockRef::from(&pump.peer).set_linger(Some(Duration::ZERO));
        }
        (pump.carried, outcome)
    }
}

impl<C: Connection> Pump<C> {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), PumpError>> {
        let into = self.poll_into(cx)?;
        let out = self.poll_out(cx)?;
        // What came in may have left an answer of TLS itself.
        if !self.to_peer.is_empty() {
            let _ = self.to_peer.poll_write(&self.peer, cx).map_err(PumpError::Peer)?;
        }
        match (into, out) {
            (Poll::Ready(()), Poll::Ready(())) => Poll::Ready(Ok(())),
            _ => Poll::Pending,
        }
    }

    /// From the application to the peer.
    fn poll_out(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), PumpError>> {
        loop {
            ready!(self.to_peer.poll_write(&self.peer, cx)).map_err(PumpError::Peer)?;
            match self.out {
                Direction::Open => {}
                Direction::Ending => {
                    end(&self.peer);
                    self.out = Direction::Done;
                }
                Direction::Done => return Poll::Ready(Ok(())),
            }
            if self.out == Direction::Open {
                ready!(self.application.poll_read_ready(cx)).map_err(PumpError::Application)?;
                SCRATCH.with_borrow_mut(|scratch| self.read_application(scratch))?;
            }
        }
    }

    fn read_application(&mut self, scratch: &mut Scratch) -> Result<(), PumpError> {
        let Scratch { read, tls, .. } = scratch;
        let buffer = read.get_mut(..READ).unwrap_or_default();
        let length = match self.application.try_read(buffer) {
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(PumpError::Application(error)),
        };
        tls.clear();
        if length == 0 {
            self.out = Direction::Ending;
            self.session.close(tls)?;
        } else {
            self.carried.out += length as u64;
            self.session.encrypt(buffer.get(..length).unwrap_or_default(), tls)?;
        }
        self.to_peer.write_or_keep(&self.peer, tls).map_err(PumpError::Peer)
    }

    /// From the peer to the application.
    fn poll_into(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), PumpError>> {
        loop {
            ready!(self.to_application.poll_write(&self.application, cx)).map_err(PumpError::Application)?;
            match self.into {
                Direction::Open => {}
                Direction::Ending => {
                    end(&self.application);
                    self.into = Direction::Done;
                }
                Direction::Done => return Poll::Ready(Ok(())),
            }
            if self.into == Direction::Open {
                ready!(self.peer.poll_read_ready(cx)).map_err(PumpError::Peer)?;
                SCRATCH.with_borrow_mut(|scratch| self.read_peer(scratch))?;
            }
        }
    }

    fn read_peer(&mut self, scratch: &mut Scratch) -> Result<(), PumpError> {
        let Scratch { read, plain, tls } = scratch;
        let before = self.session.partial.len();
        let (head, rest) = read.split_at_mut_checked(before).ok_or(PumpError::Truncated)?;
        let length = match self.peer.try_read(rest) {
            Ok(0) => return Err(PumpError::Truncated),
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(PumpError::Peer(error)),
        };
        head.copy_from_slice(&self.session.partial);
        plain.clear();
        tls.clear();
        let incoming = read.get_mut(..before + length).unwrap_or_default();
        let fed = self.session.feed(incoming, plain, tls);
        if !tls.is_empty() {
            self.answer(tls)?;
        }
        let progress = fed?;
        let partial = incoming.get(progress.used..).unwrap_or_default();
        self.session.partial.clear();
        self.session.partial.shrink_to(partial.len());
        self.session.partial.extend_from_slice(partial);
        if progress.closed {
            self.into = Direction::Ending;
        }
        self.carried.into += plain.len() as u64;
        self.to_application.write_or_keep(&self.application, plain).map_err(PumpError::Application)
    }

    /// TLS itself has something to say, such as an alert or new keys.
    fn answer(&mut self, tls: &[u8]) -> Result<(), PumpError> {
        if self.out == Direction::Done {
            return Ok(()); // the stream to the peer has ended
        }
        if self.to_peer.is_empty() {
            return self.to_peer.write_or_keep(&self.peer, tls).map_err(PumpError::Peer);
        }
        self.to_peer.push(tls);
        Ok(())
    }
}

/// Ends this direction of the TCP stream. A side that is gone already needs no end.
fn end(stream: &TcpStream) {
    let _ = SockRef::from(stream).shutdown(std::net::Shutdown::Write);
}
