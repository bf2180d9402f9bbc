//! How long a connection may take: until its first request, between two requests, and with an answer that it does
//! not fetch. Everything that a client can make us wait for has a deadline here, because a connection costs memory
//! and a descriptor for as long as it is open.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use hyper::body::{Body, Bytes, Frame, SizeHint};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::Sleep,
};

/// Longest time from the end of the handshake to the first request.
const FIRST_REQUEST: Duration = Duration::from_secs(10);
/// Longest time without a request under way.
const IDLE: Duration = Duration::from_secs(60);
/// Longest time for a client to take the next piece of an answer.
const STALLED: Duration = Duration::from_secs(60);
/// How long a connection is kept that gets no second answer.
const LAST: Duration = Duration::from_secs(1);
/// Time between two looks at the clock.
const TICK: Duration = Duration::from_secs(2);
/// Bytes that may come in without belonging to a request: more are a flood of frames that mean nothing. It is more
/// than the flow control windows, which hold what we have not looked at yet.
const MOST_UNASKED: u64 = 1 << 20;
/// Writes smaller than this, such as answers to pings, do not count as progress.
const PROGRESS_BYTES: usize = 1024;
/// Longest piece of an answer that is given out at once: what was not given out yet can still be held back.
const PIECE: usize = 32 << 10;

/// What happens on one connection.
pub(crate) struct Activity {
    opened: Instant,
    /// Milliseconds from then to the last progress.
    progress: AtomicU64,
    unasked: AtomicU64,
    under_way: AtomicUsize,
    /// Answers whose next piece waits for the client.
    waiting: AtomicUsize,
    has_served: AtomicBool,
    is_last: AtomicBool,
}

impl Activity {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            opened: Instant::now(),
            progress: AtomicU64::new(0),
            unasked: AtomicU64::new(0),
            under_way: AtomicUsize::new(0),
            waiting: AtomicUsize::new(0),
            has_served: AtomicBool::new(false),
            is_last: AtomicBool::new(false),
        })
    }

    /// A request came in; it is under way until what this returns is dropped.
    pub(crate) fn begin(self: &Arc<Self>) -> UnderWay {
        self.has_served.store(true, Relaxed);
        self.under_way.fetch_add(1, Relaxed);
        self.progress();
        UnderWay { activity: Arc::clone(self), waits: false }
    }

    /// Something happened that a client may wait for.
    pub(crate) fn progress(&self) {
        self.progress.store(u64::try_from(self.opened.elapsed().as_millis()).unwrap_or(u64::MAX), Relaxed);
        self.unasked.store(0, Relaxed);
    }

    /// The connection ends soon after the answers that are under way.
    pub(crate) fn no_more(&self) {
        self.is_last.store(true, Relaxed);
    }

    /// When the connection has to end, if nothing happens until then; `None` while the client waits for us.
    fn due(&self) -> Option<Instant> {
        let patience = match (self.under_way.load(Relaxed), self.waiting.load(Relaxed)) {
            (0, _) if self.is_last.load(Relaxed) => LAST,
            (0, _) if self.has_served.load(Relaxed) => IDLE,
            (0, _) => FIRST_REQUEST,
            (_, 0) => return None,
            _ => STALLED,
        };
        Some(self.opened + Duration::from_millis(self.progress.load(Relaxed)) + patience)
    }
}

/// A request under way.
pub(crate) struct UnderWay {
    activity: Arc<Activity>,
    /// Whether its answer waits for the client.
    waits: bool,
}

impl UnderWay {
    pub(crate) fn progress(&self) {
        self.activity.progress();
    }

    fn set_waiting(&mut self, waits: bool) {
        match (self.waits, waits) {
            (false, true) => _ = self.activity.waiting.fetch_add(1, Relaxed),
            (true, false) => _ = self.activity.waiting.fetch_sub(1, Relaxed),
            _ => {}
        }
        self.waits = waits;
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.set_waiting(false);
        self.activity.progress();
        self.activity.under_way.fetch_sub(1, Relaxed);
    }
}

/// A connection's bytes, which end when its patience does.
pub(crate) struct Patient<S> {
    stream: S,
    activity: Arc<Activity>,
    tick: Pin<Box<Sleep>>,
}

impl<S> Patient<S> {
    pub(crate) fn new(stream: S, activity: Arc<Activity>) -> Self {
        Self { stream, activity, tick: Box::pin(tokio::time::sleep(TICK)) }
    }

    fn check(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        while self.tick.as_mut().poll(cx).is_ready() {
            let now = Instant::now();
            if self.activity.due().is_some_and(|due| due <= now) {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "nothing happened for too long"));
            }
            self.tick.as_mut().reset((now + TICK).into());
        }
        Ok(())
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Patient<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check(cx)?;
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        let read = u64::try_from(buf.filled().len() - before).unwrap_or(u64::MAX);
        if self.activity.unasked.fetch_add(read, Relaxed) > MOST_UNASKED {
            let text = "too many bytes that belong to no request";
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, text)));
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Patient<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.check(cx)?;
        let written = ready!(Pin::new(&mut self.stream).poll_write(cx, buf))?;
        if written >= PROGRESS_BYTES {
            self.activity.progress();
        }
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check(cx)?;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// An answer that is given out in pieces, and that holds `held` until the client has fetched the last one.
pub(crate) struct Pieces<B, H> {
    inner: B,
    rest: Bytes,
    under_way: UnderWay,
    _held: H,
}

impl<B, H> Pieces<B, H> {
    pub(crate) fn new(inner: B, under_way: UnderWay, held: H) -> Self {
        Self { inner, rest: Bytes::new(), under_way, _held: held }
    }
}

impl<B, H> Body for Pieces<B, H>
where
    B: Body<Data = Bytes> + Unpin,
    H: Unpin,
{
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let this = &mut *self;
        let frame = if this.rest.is_empty() {
            // Whoever polls wants more, so it is our turn until there is something.
            this.under_way.set_waiting(false);
            match ready!(Pin::new(&mut this.inner).poll_frame(cx)) {
                None => return Poll::Ready(None),
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => {
                        this.rest = data;
                        None
                    }
                    Err(other) => Some(other),
                },
            }
        } else {
            None
        };
        this.under_way.progress();
        this.under_way.set_waiting(true);
        let piece = this.rest.len().min(PIECE);
        Poll::Ready(Some(Ok(frame.unwrap_or_else(|| Frame::data(this.rest.split_to(piece))))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (rest, inner) = (u64::try_from(self.rest.len()).unwrap_or(u64::MAX), self.inner.size_hint());
        let mut hint = SizeHint::new();
        hint.set_lower(inner.lower() + rest);
        if let Some(upper) = inner.upper() {
            hint.set_upper(upper + rest);
        }
        hint
    }
}
