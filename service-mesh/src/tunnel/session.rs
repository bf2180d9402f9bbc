//! One TLS session without buffers of its own.
//!
//! rustls' unbuffered interface lets all connections of a thread share one pair of buffers: a connection
//! that waits holds what it could not pass on, which mostly is nothing. That is why ten thousand idle
//! connections are cheap.

use continuity::PeerIdentity;
use rustls::{
    Error,
    client::{ClientConnectionData, UnbufferedClientConnection},
    server::{ServerConnectionData, UnbufferedServerConnection},
    unbuffered::{ConnectionState, EncodeError, EncodeTlsData, EncryptError, UnbufferedStatus},
};

/// A TLS record's header, nonce and tag, generously.
const RECORD_OVERHEAD: usize = 64;
const RECORD_PLAINTEXT: usize = 16 << 10;

/// Either side of a TLS connection.
pub(crate) trait Connection {
    /// rustls' own.
    type Data;

    /// Works on the bytes that the peer sent.
    fn process<'c, 'i>(&'c mut self, incoming: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data>;

    /// Whether the handshake goes on.
    fn is_handshaking(&self) -> bool;

    /// The peer's own certificate, DER, once it has shown one.
    fn peer_certificate(&self) -> Option<&[u8]>;
}

impl Connection for UnbufferedServerConnection {
    type Data = ServerConnectionData;

    fn process<'c, 'i>(&'c mut self, incoming: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(incoming)
    }

    fn is_handshaking(&self) -> bool {
        (**self).is_handshaking()
    }

    fn peer_certificate(&self) -> Option<&[u8]> {
        self.peer_certificates()?.first().map(|certificate| &**certificate)
    }
}

impl Connection for UnbufferedClientConnection {
    type Data = ClientConnectionData;

    fn process<'c, 'i>(&'c mut self, incoming: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(incoming)
    }

    fn is_handshaking(&self) -> bool {
        (**self).is_handshaking()
    }

    fn peer_certificate(&self) -> Option<&[u8]> {
        self.peer_certificates()?.first().map(|certificate| &**certificate)
    }
}

/// What came of the bytes that were fed in.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Progress {
    /// How many were used up; the rest is the beginning of a record.
    pub(super) used: usize,
    /// Whether the peer said that nothing more will come.
    pub(super) closed: bool,
}

/// A TLS session.
pub(super) struct Session<C> {
    connection: C,
    /// The beginning of a record, whose rest has not come yet.
    pub(super) partial: Vec<u8>,
}

impl<C: Connection> Session<C> {
    pub(super) fn new(connection: C) -> Self {
        Self { connection, partial: Vec::new() }
    }

    pub(super) fn is_handshaking(&self) -> bool {
        self.connection.is_handshaking()
    }

    /// Who the peer is; none: it showed no certificate, and needs none.
    pub(super) fn peer(&self) -> Option<PeerIdentity> {
        PeerIdentity::of(self.connection.peer_certificate()?).ok()
    }

    /// The peer's own certificate, DER, if it showed one.
    pub(super) fn peer_certificate(&self) -> Option<&[u8]> {
        self.connection.peer_certificate()
    }

    /// Works on `incoming`: appends what the peer says to `plain`, and what it must be told to `outgoing`,
    /// the alert too if this fails.
    pub(super) fn feed(
        &mut self,
        incoming: &mut [u8],
        plain: &mut Vec<u8>,
        outgoing: &mut Vec<u8>,
    ) -> Result<Progress, Error> {
        let mut progress = Progress::default();
        loop {
            let rest = incoming.get_mut(progress.used..).unwrap_or_default();
            let UnbufferedStatus { mut discard, state } = self.connection.process(rest);
            let more = match state {
                Err(error) => {
                    let from = progress.used + discard;
                    self.alert(incoming.get_mut(from..).unwrap_or_default(), outgoing);
                    return Err(error);
                }
                Ok(ConnectionState::ReadTraffic(mut records)) => {
                    while let Some(record) = records.next_record() {
                        let record = record?;
                        discard += record.discard;
                        plain.extend_from_slice(record.payload);
                    }
                    true
                }
                Ok(ConnectionState::EncodeTlsData(message)) => {
                    encode(message, outgoing)?;
                    true
                }
                Ok(ConnectionState::TransmitTlsData(message)) => {
                    message.done();
                    true
                }
                Ok(ConnectionState::PeerClosed) => {
                    progress.closed = true;
                    true
                }
                Ok(_) => false, // waits for more, or may write
            };
            progress.used += discard;
            if !more {
                return Ok(progress);
            }
        }
    }

    /// Appends `plain`, encrypted, to `outgoing`.
    pub(super) fn encrypt(&mut self, plain: &[u8], outgoing: &mut Vec<u8>) -> Result<(), Error> {
        let records = plain.len().div_ceil(RECORD_PLAINTEXT);
        let room = plain.len() + records * RECORD_OVERHEAD;
        self.write(room, outgoing, |traffic, buffer| traffic.encrypt(plain, buffer))
    }

    /// Appends the news that nothing more will be sent to `outgoing`.
    #[expect(clippy::redundant_closure_for_method_calls, reason = "the method alone is not general enough")]
    pub(super) fn close(&mut self, outgoing: &mut Vec<u8>) -> Result<(), Error> {
        self.write(RECORD_OVERHEAD, outgoing, |traffic, buffer| traffic.queue_close_notify(buffer))
    }

    fn write(
        &mut self,
        room: usize,
        outgoing: &mut Vec<u8>,
        encode_into: impl FnOnce(
            &mut rustls::unbuffered::WriteTraffic<'_, C::Data>,
            &mut [u8],
        ) -> Result<usize, EncryptError>,
    ) -> Result<(), Error> {
        loop {
            // rustls keeps a place in the unfinished record, so it is shown each time.
            match self.connection.process(&mut self.partial).state? {
                ConnectionState::WriteTraffic(mut traffic) => {
                    let start = outgoing.len();
                    outgoing.resize(start + room, 0);
                    let buffer = outgoing.get_mut(start..).unwrap_or_default();
                    let written = encode_into(&mut traffic, buffer)
                        .map_err(|error| Error::General(error.to_string()))?;
                    outgoing.truncate(start + written);
                    return Ok(());
                }
                ConnectionState::EncodeTlsData(message) => encode(message, outgoing)?,
                ConnectionState::TransmitTlsData(message) => message.done(),
                ConnectionState::PeerClosed => {}
                _ => return Err(Error::General("the session cannot be written to".into())),
            }
        }
    }

    /// rustls keeps a place in what came in, so it is shown the same bytes again.
    fn alert(&mut self, incoming: &mut [u8], outgoing: &mut Vec<u8>) {
        loop {
            match self.connection.process(incoming).state {
                Ok(ConnectionState::EncodeTlsData(message)) => {
                    if encode(message, outgoing).is_err() {
                        return;
                    }
                }
                Ok(ConnectionState::TransmitTlsData(message)) => {
                    message.done();
                    return; // asked once more, rustls would meet the same error and make a second alert
                }
                _ => return,
            }
        }
    }
}

fn encode<D>(mut message: EncodeTlsData<'_, D>, outgoing: &mut Vec<u8>) -> Result<(), Error> {
    let start = outgoing.len();
    loop {
        let buffer = outgoing.get_mut(start..).unwrap_or_default();
        match message.encode(buffer) {
            Ok(written) => {
                outgoing.truncate(start + written);
                return Ok(());
            }
            Err(EncodeError::InsufficientSize(size)) => outgoing.resize(start + size.required_size, 0),
            Err(error) => return Err(Error::General(error.to_string())),
        }
    }
}
