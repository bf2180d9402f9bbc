//! Which protocol a client is told it speaks (ALPN). The application behind the mesh is not asked: what it speaks is its
//! clients' affair. But clients of gRPC, and those that speak HTTP/2 only, refuse a server that chooses none.

use std::sync::{Arc, Mutex, PoisonError};

use rustls::{
    ServerConfig,
    server::{ClientHello, ResolvesServerCert, UnbufferedServerConnection},
    sign::CertifiedKey,
    unbuffered::{ConnectionState, UnbufferedStatus},
};

/// Longest greeting that is looked into, in bytes: one record, and more than clients send.
const LONGEST: usize = 17 << 10;

/// Content type of a record (RFC 8446, 5.1).
const HANDSHAKE: u8 = 22;
const HTTP1: &[u8] = b"http/1.1";

/// What the first bytes of a client say.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Offer {
    /// Not yet a whole greeting.
    Incomplete,
    /// The protocol to choose; none where the client offers none.
    Choose(Option<Vec<u8>>),
}

/// Notes what the client offers, and ends the handshake before it costs anything.
#[derive(Debug, Default)]
struct Listening(Mutex<Option<Vec<Vec<u8>>>>);

impl ResolvesServerCert for Listening {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let offered = hello.alpn().map(|names| names.map(<[u8]>::to_vec).collect()).unwrap_or_default();
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(offered);
        None
    }
}

/// Reads the client's offer out of what it sent; nothing is answered. Whatever is wrong with it is for the real handshake
/// to say.
pub(super) fn read(config: &ServerConfig, incoming: &[u8]) -> Offer {
    if incoming.len() > LONGEST {
        return Offer::Choose(None);
    }
    // Each try reads everything anew, so one for each byte that trickles in would cost its square.
    if !ends_with_a_record(incoming) {
        return Offer::Incomplete;
    }
    let listening = Arc::new(Listening::default());
    let mut config = config.clone();
    config.cert_resolver = Arc::clone(&listening) as Arc<dyn ResolvesServerCert>;
    let Ok(mut connection) = UnbufferedServerConnection::new(Arc::new(config)) else {
        return Offer::Choose(None);
    };
    let (mut bytes, mut used) = (incoming.to_vec(), 0);
    loop {
        let UnbufferedStatus { discard, state } =
            connection.process_tls_records(bytes.get_mut(used..).unwrap_or_default());
        let is_incomplete = matches!(state, Ok(ConnectionState::BlockedHandshake));
        let is_stuck = discard == 0 || state.is_err();
        drop(state);
        used += discard;
        if let Some(offered) = listening.0.lock().unwrap_or_else(PoisonError::into_inner).take() {
            return Offer::Choose(chosen(offered));
        }
        match (is_incomplete, is_stuck) {
            (true, _) => return Offer::Incomplete,
            (false, true) => return Offer::Choose(None),
            (false, false) => {}
        }
    }
}

/// Whether the bytes are whole TLS records (RFC 8446, 5.1: a header of 5 bytes, of which the last two are the length). What is
/// none is for the handshake to refuse.
fn ends_with_a_record(incoming: &[u8]) -> bool {
    let mut rest = incoming;
    while let [kind, _, _, high, low, ..] = rest {
        if *kind != HANDSHAKE {
            return true;
        }
        let length = 5 + usize::from(u16::from_be_bytes([*high, *low]));
        match rest.get(length..) {
            Some([]) => return true,
            Some(more) => rest = more,
            None => return false,
        }
    }
    false
}

/// The only protocol that is offered. Of several HTTP/1.1, which is also what clients speak where none is chosen; else
/// what the client likes best.
fn chosen(mut offered: Vec<Vec<u8>>) -> Option<Vec<u8>> {
    match offered.iter().position(|name| name == HTTP1) {
        Some(place) => Some(offered.swap_remove(place)),
        None if offered.is_empty() => None,
        None => Some(offered.swap_remove(0)),
    }
}

#[cfg(test)]
mod tests {
    use rustls::{ClientConfig, client::UnbufferedClientConnection, pki_types::ServerName, version::TLS13};

    use super::*;

    fn server() -> ServerConfig {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder =
            ServerConfig::builder_with_provider(provider).with_protocol_versions(&[&TLS13]).unwrap();
        builder.with_no_client_auth().with_cert_resolver(Arc::new(Listening::default()))
    }

    fn greeting(offered: &[&str]) -> Vec<u8> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder =
            ClientConfig::builder_with_provider(provider).with_protocol_versions(&[&TLS13]).unwrap();
        let mut config = builder.with_root_certificates(rustls::RootCertStore::empty()).with_no_client_auth();
        config.alpn_protocols = offered.iter().map(|name| name.as_bytes().to_vec()).collect();
        let name = ServerName::try_from("web").unwrap();
        let mut client = UnbufferedClientConnection::new(Arc::new(config), name).unwrap();
        let mut greeting = vec![0; 4096];
        let UnbufferedStatus { state, .. } = client.process_tls_records(&mut []);
        let Ok(ConnectionState::EncodeTlsData(mut message)) = state else { panic!("no greeting") };
        let length = message.encode(&mut greeting).unwrap();
        greeting.truncate(length);
        greeting
    }

    #[test]
    fn what_a_client_offers_is_read_and_one_of_it_is_chosen() {
        for (offered, expected) in [
            (vec![], None),
            (vec!["h2"], Some("h2")),
            (vec!["h2", "http/1.1"], Some("http/1.1")),
            (vec!["postgresql"], Some("postgresql")),
            (vec!["h2", "grpc-exp"], Some("h2")),
        ] {
            let expected = Offer::Choose(expected.map(|name| name.as_bytes().to_vec()));
            assert_eq!(read(&server(), &greeting(&offered)), expected, "{offered:?}");
        }
        let whole = greeting(&["h2"]);
        for length in [0, 1, 5, 40, whole.len() - 1] {
            assert_eq!(read(&server(), &whole[..length]), Offer::Incomplete, "{length} bytes");
        }
        assert_eq!(
            read(&server(), b"GET / HTTP/1.1\r\n\r\n"),
            Offer::Choose(None),
            "the handshake says what is wrong"
        );
    }
}
