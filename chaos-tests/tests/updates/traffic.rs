//! Clients that count what they lose, and the server that they ask.
//!
//! A server that is about to end says so in its last answer, as HTTP's `Connection: close` does: a client that keeps its
//! connection then opens another. So whatever else goes wrong is a request that was lost.

use std::{
    io::{self, BufRead as _, BufReader, Write as _},
    net::{Ipv4Addr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread::JoinHandle,
    time::Duration,
};

use crate::network::Namespace;

/// Where clients ask: the pod's own end of its egress entry.
pub(crate) const EGRESS: &str = "127.137.0.1:8080";
const LIMIT: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(10);

/// An application that answers each line.
pub(crate) struct Server {
    ending: Arc<AtomicBool>,
    open: Arc<AtomicU64>,
}

impl Server {
    pub(crate) fn start(place: &Namespace) -> Self {
        let (ending, open) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let server = Self { ending: Arc::clone(&ending), open: Arc::clone(&open) };
        let listener = place.inside(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, 8080)).unwrap());
        let listener = listener.join().unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (ending, open) = (Arc::clone(&ending), Arc::clone(&open));
                open.fetch_add(1, Relaxed);
                std::thread::spawn(move || {
                    let _ = serve(&stream, &ending); // the client's end of it counts
                    open.fetch_sub(1, Relaxed);
                });
            }
        });
        server
    }

    /// Answers what is asked, for the last time, and waits until nobody asks any more.
    pub(crate) fn end(&self) {
        self.ending.store(true, Relaxed);
        crate::eventually("the clients have left", || self.open.load(Relaxed) == 0);
    }
}

fn serve(stream: &TcpStream, ending: &AtomicBool) -> io::Result<()> {
    let mut lines = BufReader::new(stream);
    loop {
        let mut line = String::new();
        if lines.read_line(&mut line)? == 0 {
            return Ok(());
        }
        let last = ending.load(Relaxed);
        let word = if last { "last" } else { "answer" };
        (&*stream).write_all(format!("{word} {line}").as_bytes())?;
        if last {
            return Ok(());
        }
    }
}

/// A connection through the pod's mesh.
pub(crate) struct Connection(BufReader<TcpStream>);

impl Connection {
    pub(crate) fn open() -> io::Result<Self> {
        let stream = TcpStream::connect(EGRESS)?;
        stream.set_read_timeout(Some(LIMIT))?;
        Ok(Self(BufReader::new(stream)))
    }

    /// Whether the connection can be kept.
    pub(crate) fn ask(&mut self, number: u64) -> io::Result<bool> {
        self.0.get_mut().write_all(format!("{number}\n").as_bytes())?;
        let mut line = String::new();
        self.0.read_line(&mut line)?;
        match line.trim().rsplit_once(' ') {
            Some((word, found)) if found == number.to_string() => Ok(word == "answer"),
            _ => Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                format!("asked {number}, answered {line:?}"),
            )),
        }
    }
}

/// Clients in one pod, each of which asks all the time.
pub(crate) struct Clients {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Counted>>,
}

/// What a client saw.
#[derive(Debug, Default)]
pub(crate) struct Counted {
    pub(crate) asked: u64,
    pub(crate) connections: u64,
    pub(crate) lost: Vec<String>,
}

impl Clients {
    /// Half of them open a connection for each request, the others keep theirs.
    pub(crate) fn start(place: &Namespace, number: usize) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let threads = (0..number).map(|index| {
            let stop = Arc::clone(&stop);
            place.inside(move || client(index % 2 == 1, &stop))
        });
        let threads = threads.collect();
        Self { stop, threads }
    }

    pub(crate) fn finish(self) -> Counted {
        self.stop.store(true, Relaxed);
        let mut all = Counted::default();
        for thread in self.threads {
            let counted = thread.join().unwrap();
            all.asked += counted.asked;
            all.connections += counted.connections;
            all.lost.extend(counted.lost);
        }
        all
    }
}

fn client(keeps: bool, stop: &AtomicBool) -> Counted {
    let (mut counted, mut kept) = (Counted::default(), None::<Connection>);
    while !stop.load(Relaxed) {
        counted.asked += 1;
        let mut ask = || {
            let mut connection = match kept.take() {
                Some(kept) => kept,
                None => {
                    counted.connections += 1;
                    Connection::open()?
                }
            };
            let may_stay = connection.ask(counted.asked)?;
            kept = (keeps && may_stay).then_some(connection);
            io::Result::Ok(())
        };
        if let Err(error) = ask() {
            counted.lost.push(format!(
                "request {} ({}): {error}",
                counted.asked,
                if keeps { "kept" } else { "new" }
            ));
        }
        std::thread::sleep(PAUSE);
    }
    counted
}
