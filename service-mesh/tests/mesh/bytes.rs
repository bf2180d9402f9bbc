//! Streams: many, long, half closed, slow, cut off.

use std::{
    fs,
    io::{self, Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    path::PathBuf,
    process::Stdio,
    sync::mpsc,
    time::Duration,
};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::{
    client,
    pods::{Deployment, Mesh, Network, Pod, Process, eventually, run},
};

const LIMIT: Option<Duration> = Some(Duration::from_secs(60));
/// Sent through one connection. The 10 GB of the figures are `MESH_TEST_BYTES=10000000000`.
const BYTES: u64 = 1_000_000_000;

/// One HTTP connection that stays open.
pub(crate) struct KeptAlive(TcpStream);

impl KeptAlive {
    pub(crate) fn open(address: &str) -> io::Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_read_timeout(LIMIT)?;
        Ok(Self(stream))
    }

    pub(crate) fn ask(&mut self) {
        self.0.write_all(b"GET / HTTP/1.1\r\nHost: web\r\n\r\n").unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"hello from 10.77.0.1\n") {
            let mut buffer = [0; 1024];
            let length = self.0.read(&mut buffer).unwrap();
            assert_ne!(length, 0, "the connection was ended");
            answer.extend_from_slice(&buffer[..length]);
        }
    }
}

/// PostgreSQL with a certificate of its own, trusting whoever reaches it.
pub(crate) fn postgres(pod: &Pod) -> Process {
    let versions = fs::read_dir("/usr/lib/postgresql").unwrap().map(|entry| entry.unwrap().path());
    let programs: PathBuf = versions.max().unwrap().join("bin");
    let directory = pod.directory().join("postgres");
    fs::create_dir(&directory).unwrap();
    run("chmod", &["755", pod.directory().to_str().unwrap()]);
    run("chown", &["postgres", directory.to_str().unwrap()]);
    let as_postgres = |script: String| {
        let mut command = pod.command(
            "setpriv",
            &["--reuid=postgres", "--regid=postgres", "--init-groups", "sh", "-c", &script],
        );
        command.current_dir("/").stdout(Stdio::null()).stderr(Stdio::null());
        command
    };
    let (bin, data) = (programs.display(), directory.join("data"));
    let data = data.display();
    let prepare = format!(
        "{bin}/initdb -D {data} -A trust --no-sync && \
         openssl req -x509 -newkey rsa:2048 -nodes -subj /CN=database -keyout {data}/server.key -out {data}/server.crt && \
         echo 'host all all 0.0.0.0/0 trust' >> {data}/pg_hba.conf"
    );
    assert!(as_postgres(prepare).status().unwrap().success(), "initdb");
    let options = "-c ssl=on -c fsync=off -c listen_addresses='*' -c unix_socket_directories=''";
    let process = Process(as_postgres(format!("exec {bin}/postgres -D {data} {options}")).spawn().unwrap());
    eventually("PostgreSQL answers", || pod.output("pg_isready", &["-h", "127.0.0.1"]).status.success());
    process
}

/// A server pod whose port 8080 is `serve`, and a client pod in front of it.
struct Pair {
    _network: Network,
    _server: Pod,
    server_mesh: Mesh,
    client: Pod,
    client_mesh: Mesh,
}

impl Pair {
    fn new(serve: impl FnMut(TcpStream) + Send + 'static) -> Self {
        let (network, deployment) = (Network::new(), Deployment::new());
        let server = network.pod();
        deployment.initialise(&server, "web");
        let listener = server.inside(|| {
            let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
            socket.bind(&"0.0.0.0:8080".parse::<SocketAddr>().unwrap().into()).unwrap();
            socket.listen(4096).unwrap();
            TcpListener::from(socket)
        });
        let listener = listener.join().unwrap();
        let server_mesh = server.mesh(crate::MANY);
        let (client, client_mesh) = client(&network, &deployment, &server);
        std::thread::spawn(move || listener.incoming().map_while(Result::ok).for_each(serve));
        Self { _network: network, _server: server, server_mesh, client, client_mesh }
    }

    fn connect(&self) -> TcpStream {
        let stream = self.client.inside(|| TcpStream::connect("127.137.0.1:8080").unwrap()).join().unwrap();
        stream.set_read_timeout(LIMIT).unwrap();
        stream.set_write_timeout(LIMIT).unwrap();
        stream
    }
}

fn detached(work: impl FnMut(TcpStream) + Send + Clone + 'static) -> impl FnMut(TcpStream) + Send {
    move |stream| {
        let mut work = work.clone();
        std::thread::spawn(move || work(stream));
    }
}

#[test]
fn a_side_that_is_done_still_hears_the_other() {
    // Answers only when the question has ended.
    let pair = Pair::new(detached(|mut stream: TcpStream| {
        let mut question = Vec::new();
        stream.read_to_end(&mut question).unwrap();
        stream.write_all(format!("{} bytes", question.len()).as_bytes()).unwrap();
    }));
    let mut stream = pair.connect();
    stream.write_all(&[7; 300_000]).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "300000 bytes");
}

#[test]
fn a_server_that_is_done_still_hears_the_client() {
    let (sender, heard) = mpsc::channel();
    let pair = Pair::new(move |mut stream: TcpStream| {
        stream.write_all(b"go on").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).unwrap();
        sender.send(rest.len()).unwrap();
    });
    let mut stream = pair.connect();
    let mut greeting = String::new();
    stream.read_to_string(&mut greeting).unwrap();
    assert_eq!(greeting, "go on");
    stream.write_all(&[1; 200_000]).unwrap();
    drop(stream);
    assert_eq!(heard.recv_timeout(Duration::from_secs(30)).unwrap(), 200_000);
}

#[test]
fn a_stream_that_was_cut_off_does_not_look_whole() {
    let (sender, heard) = mpsc::channel();
    let mut pair = Pair::new(move |mut stream: TcpStream| {
        let mut first = [0; 5];
        stream.read_exact(&mut first).unwrap();
        sender.send(Ok(5)).unwrap();
        sender.send(stream.read_to_end(&mut Vec::new())).unwrap();
    });
    let mut stream = pair.connect();
    stream.write_all(b"begin").unwrap();
    assert_eq!(heard.recv_timeout(Duration::from_secs(30)).unwrap().unwrap(), 5);
    pair.client_mesh.process.kill();
    let end = heard.recv_timeout(Duration::from_secs(30)).unwrap();
    assert_eq!(end.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
}

#[test]
fn a_slow_reader_slows_its_writer_and_costs_no_memory() {
    let (sender, readers) = mpsc::channel();
    let pair = Pair::new(move |stream: TcpStream| sender.send(stream).unwrap());
    let mut stream = pair.connect();
    let mut reader = readers.recv_timeout(Duration::from_secs(30)).unwrap();
    let before = [pair.client_mesh.resident(), pair.server_mesh.resident()];
    // Until nobody takes any more: everything on the way is full.
    stream.set_write_timeout(Some(Duration::from_secs(1))).unwrap();
    let (block, mut sent) = (vec![42; 1 << 20], 0);
    let stalled = loop {
        match stream.write(&block) {
            Ok(length) => sent += length,
            Err(error) => break error,
        }
        assert!(sent < 1 << 30, "a gigabyte went to a reader that does not read");
    };
    assert_eq!(stalled.kind(), io::ErrorKind::WouldBlock);
    for (mesh, before) in [&pair.client_mesh, &pair.server_mesh].into_iter().zip(before) {
        let grown = mesh.resident().saturating_sub(before);
        assert!(grown < 4 << 10, "the mesh keeps {grown} KiB for one slow reader");
    }
    stream.shutdown(Shutdown::Write).unwrap();
    reader.set_read_timeout(LIMIT).unwrap();
    let mut received = Vec::new();
    reader.read_to_end(&mut received).unwrap();
    assert_eq!(received.len(), sent, "and nothing was lost");
}

#[test]
fn a_long_stream_arrives_as_it_was_sent() {
    let wanted = std::env::var("MESH_TEST_BYTES").map_or(BYTES, |text| text.parse().unwrap());
    let blocks = wanted >> 20;
    let (sender, heard) = mpsc::channel();
    let pair = Pair::new(move |mut stream: TcpStream| {
        let mut found = vec![0; 1 << 20];
        for number in 0..blocks {
            stream.read_exact(&mut found).unwrap();
            assert!(found == block(number), "block {number} is not what was sent");
        }
        sender.send(stream.read(&mut found).unwrap()).unwrap();
    });
    let mut stream = pair.connect();
    for number in 0..blocks {
        stream.write_all(&block(number)).unwrap();
    }
    stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(heard.recv_timeout(Duration::from_secs(60)), Ok(0), "all blocks, then the end");
}

/// A mebibyte that differs from those before and after it.
fn block(number: u64) -> Vec<u8> {
    number.to_le_bytes().repeat((1 << 20) / 8)
}

#[test]
fn ten_thousand_connections_at_once() {
    // A connection has two descriptors here and in each mesh; some machines do not allow 20 000.
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).unwrap();
    let connections = maximum.map_or(10_000, |maximum| 10_000.min((maximum - 256) / 2));
    println!("{connections} connections");
    let (sender, accepted) = mpsc::channel();
    let pair = Pair::new(move |stream: TcpStream| sender.send(stream).unwrap());
    let idle = [pair.client_mesh.resident(), pair.server_mesh.resident()];
    let connect = pair.client.inside(move || {
        (0..connections).map(|_| TcpStream::connect("127.137.0.1:8080").unwrap()).collect::<Vec<_>>()
    });
    let mut servers: Vec<TcpStream> = (0..connections)
        .map(|n| {
            accepted.recv_timeout(Duration::from_secs(60)).unwrap_or_else(|error| panic!("{n}: {error}"))
        })
        .collect();
    let mut clients = connect.join().unwrap();
    for server in &mut servers {
        server.set_read_timeout(LIMIT).unwrap();
        server.write_all(b"welcome").unwrap();
    }
    for client in &mut clients {
        let mut greeting = [0; 7];
        client.set_read_timeout(LIMIT).unwrap();
        client.read_exact(&mut greeting).unwrap();
        assert_eq!(&greeting, b"welcome");
        client.write_all(b"thanks").unwrap();
    }
    for server in &mut servers {
        let mut thanks = [0; 6];
        server.read_exact(&mut thanks).unwrap();
        assert_eq!(&thanks, b"thanks");
    }
    for (mesh, idle) in [&pair.client_mesh, &pair.server_mesh].into_iter().zip(idle) {
        let each = (mesh.resident() - idle) * 1024 / connections;
        assert!(each < 24_000, "{each} bytes for each connection");
    }
}
