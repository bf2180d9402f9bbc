//! The nonces of a handshake and how they travel (docs/spec/control-plane.md, sections 2.2 and 2.3).

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use rustls::DistinguishedName;

/// 32 random bytes, one per connection and direction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Nonce([u8; 32]);

const ALPN_FAMILY: &[u8] = b"atls";
const ALPN_PREFIX: &[u8] = b"atls:v1:nonce:";
/// DER of a name with one CN, up to the value: SEQUENCE, SET, SEQUENCE, OID 2.5.4.3,
/// PrintableString of 44 characters.
const NAME_PREFIX: [u8; 13] = [0x30, 0x37, 0x31, 0x35, 0x30, 0x33, 0x06, 0x03, 0x55, 0x04, 0x03, 0x13, 0x2c];

/// Why a handshake has no usable nonce.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NonceError {
    /// Neither ALPN nor SNI carries one.
    #[error("the client sent no nonce: it does not speak attested TLS")]
    Missing,
    /// An ALPN entry of another version of the protocol.
    #[error("the client speaks another version of attested TLS than v1")]
    Version,
    /// Not 32 bytes in the encoding of its place.
    #[error("the nonce in the {place} is not 32 bytes in {encoding}")]
    Malformed {
        /// Where it was.
        place: &'static str,
        /// How it should have been encoded.
        encoding: &'static str,
    },
    /// The server's CertificateRequest does not have exactly one name.
    #[error("the server named {0} certificate authorities, attested TLS has exactly one")]
    Names(usize),
}

impl Nonce {
    /// Draws a nonce.
    pub fn random() -> Result<Self, aws_lc_rs::error::Unspecified> {
        let mut bytes = [0; 32];
        aws_lc_rs::rand::fill(&mut bytes)?;
        Ok(Self(bytes))
    }

    /// Wraps bytes that are a nonce already.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The raw bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The client's nonce as an ALPN entry.
    pub(crate) fn to_alpn(self) -> Vec<u8> {
        [ALPN_PREFIX, hex::encode(self.0).as_bytes()].concat()
    }

    /// The client's nonce from its hello. The first ALPN entry that begins with `atls` decides;
    /// without one, the server name does, as clients of 2024 have it. Base64 is no DNS name, though, so
    /// rustls refuses the hellos of those clients before they come here.
    pub(crate) fn from_hello<'a>(
        mut alpn: impl Iterator<Item = &'a [u8]>,
        server_name: Option<&str>,
    ) -> Result<Self, NonceError> {
        let (place, encoding, decoded) = if let Some(entry) = alpn.find(|e| e.starts_with(ALPN_FAMILY)) {
            let text = entry.strip_prefix(ALPN_PREFIX).ok_or(NonceError::Version)?;
            let mut bytes = [0; 32];
            ("ALPN", "hex", hex::decode_to_slice(text, &mut bytes).ok().map(|()| bytes))
        } else {
            let name = server_name.ok_or(NonceError::Missing)?;
            ("server name", "base64", decode_base64(name.as_bytes()))
        };
        decoded.map(Self).ok_or(NonceError::Malformed { place, encoding })
    }

    /// The server's nonce as the one name in its CertificateRequest.
    pub(crate) fn to_name(self) -> DistinguishedName {
        let text = BASE64.encode(self.0);
        DistinguishedName::from([NAME_PREFIX.as_slice(), text.as_bytes()].concat())
    }

    /// The server's nonce from the names in its CertificateRequest.
    pub(crate) fn from_names(names: &[&[u8]]) -> Result<Self, NonceError> {
        let [name] = names else { return Err(NonceError::Names(names.len())) };
        let malformed = NonceError::Malformed { place: "authority name", encoding: "base64" };
        let (_, name) = x509_parser::x509::X509Name::from_der(name).map_err(|_| malformed.clone())?;
        let text = name.iter_common_name().next().map(x509_parser::x509::AttributeTypeAndValue::as_slice);
        text.and_then(decode_base64).map(Self).ok_or(malformed)
    }
}

use x509_parser::prelude::FromDer as _;

fn decode_base64(text: &[u8]) -> Option<[u8; 32]> {
    BASE64.decode(text).ok()?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alpn_and_name_round_trip() {
        let nonce = Nonce::random().unwrap();
        let alpn = nonce.to_alpn();
        assert_eq!(alpn.len(), 78);
        assert_eq!(Nonce::from_hello([alpn.as_slice(), b"h2"].into_iter(), None), Ok(nonce));
        assert_eq!(Nonce::from_names(&[nonce.to_name().as_ref()]), Ok(nonce));
    }

    #[test]
    fn older_clients_put_it_in_the_server_name() {
        let nonce = Nonce::random().unwrap();
        let name = BASE64.encode(nonce.0);
        assert_eq!(Nonce::from_hello([b"h2".as_slice()].into_iter(), Some(&name)), Ok(nonce));
    }

    #[test]
    fn other_hellos_are_refused_by_name() {
        let hello = |alpn: &[&[u8]], sni| Nonce::from_hello(alpn.iter().copied(), sni).unwrap_err();
        assert_eq!(hello(&[b"h2"], None), NonceError::Missing);
        assert_eq!(hello(&[b"atls:v2:nonce:00", b"atls:v1:nonce:00"], None), NonceError::Version);
        assert!(matches!(hello(&[b"atls:v1:nonce:00"], None), NonceError::Malformed { place: "ALPN", .. }));
        assert!(matches!(
            hello(&[], Some("coordinator")),
            NonceError::Malformed { place: "server name", .. }
        ));
        assert_eq!(Nonce::from_names(&[]), Err(NonceError::Names(0)));
    }

    proptest::proptest! {
        #[test]
        fn names_never_panic(name: Vec<u8>) {
            let _ = Nonce::from_names(&[&name]);
        }
    }
}
