//! A small HTTP server on loopback, plain or TLS, that answers as a test tells it.

use std::{
    io::{BufRead as _, BufReader, Read, Write},
    net::TcpListener,
    sync::{Arc, Mutex},
};

use rustls::{ServerConfig, ServerConnection, StreamOwned, pki_types::PrivateKeyDer};

/// A request.
#[derive(Clone, Debug, Default)]
pub(crate) struct Request {
    pub(crate) line: String,
    pub(crate) authorization: Option<String>,
    pub(crate) body: String,
}

/// Status, header lines, body.
pub(crate) type Answer = (&'static str, Vec<String>, Vec<u8>);

pub(crate) struct Server {
    pub(crate) address: String,
    /// The certificate in PEM, if it speaks TLS.
    pub(crate) certificate: String,
    pub(crate) requests: Arc<Mutex<Vec<Request>>>,
}

impl Server {
    pub(crate) fn plain(answer: impl Fn(&Request) -> Answer + Send + 'static) -> Self {
        Self::start(None, answer)
    }

    pub(crate) fn tls(answer: impl Fn(&Request) -> Answer + Send + 'static) -> Self {
        let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .unwrap();
        Self { certificate: made.cert.pem(), ..Self::start(Some(Arc::new(config)), answer) }
    }

    fn start(tls: Option<Arc<ServerConfig>>, answer: impl Fn(&Request) -> Answer + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&requests);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let stream = stream.unwrap();
                match &tls {
                    None => serve(stream, &seen, &answer),
                    Some(config) => {
                        let connection = ServerConnection::new(Arc::clone(config)).unwrap();
                        serve(StreamOwned::new(connection, stream), &seen, &answer);
                    }
                }
            }
        });
        Self { address, certificate: String::new(), requests }
    }
}

/// One request a connection. A client that goes away is its own business.
fn serve<S: Read + Write>(stream: S, seen: &Mutex<Vec<Request>>, answer: &impl Fn(&Request) -> Answer) {
    let mut stream = BufReader::new(stream);
    let mut request = Request::default();
    let mut length = 0;
    if stream.read_line(&mut request.line).is_err() {
        return;
    }
    loop {
        let mut header = String::new();
        if stream.read_line(&mut header).is_err() || header.trim().is_empty() {
            break;
        }
        let (name, value) = header.split_once(':').unwrap();
        match name.to_ascii_lowercase().as_str() {
            "authorization" => request.authorization = Some(value.trim().to_owned()),
            "content-length" => length = value.trim().parse().unwrap(),
            _ => {}
        }
    }
    let mut body = vec![0; length];
    let _ = stream.read_exact(&mut body);
    request.body = String::from_utf8(body).unwrap();
    request.line = request.line.trim().to_owned();
    let (status, headers, body) = answer(&request);
    seen.lock().unwrap().push(request);
    let stream = stream.get_mut();
    let mut head = format!("HTTP/1.1 {status}\r\nConnection: close\r\n");
    if !headers.iter().any(|header| header.starts_with("Content-Length")) {
        head += &format!("Content-Length: {}\r\n", body.len());
    }
    for header in headers {
        head += &format!("{header}\r\n");
    }
    let _ = stream.write_all(format!("{head}\r\n").as_bytes());
    let _ = stream.write_all(&body);
    let _ = stream.flush();
}
