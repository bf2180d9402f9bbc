//! The certificate that a user gave as the proxy's own: `openssl req -x509` makes one that is a CA and a server at once,
//! which path building refuses. Whoever gave exactly this certificate trusts it.

use std::sync::Arc;

use rustls::{
    CertificateError, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_name,
    },
    crypto::CryptoProvider,
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::ParsedCertificate,
};
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// Trusts what leads to the given certificates, and these themselves, for their names and as long as they are valid.
#[derive(Debug)]
pub(crate) struct Given {
    by_path: Arc<WebPkiServerVerifier>,
    certificates: Vec<CertificateDer<'static>>,
}

impl Given {
    pub(crate) fn new(
        roots: RootCertStore,
        provider: Arc<CryptoProvider>,
        certificates: Vec<CertificateDer<'static>>,
    ) -> Result<Self, String> {
        let by_path = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build();
        let by_path = by_path.map_err(|error| format!("the given certificates: {error}"))?;
        Ok(Self { by_path, certificates })
    }

    fn check_itself(
        &self,
        leaf: &CertificateDer<'_>,
        name: &ServerName<'_>,
        now: UnixTime,
    ) -> Result<(), Error> {
        let malformed = |_| Error::InvalidCertificate(CertificateError::BadEncoding);
        let (_, parsed) = X509Certificate::from_der(leaf).map_err(malformed)?;
        let (from, to) = (parsed.validity().not_before.timestamp(), parsed.validity().not_after.timestamp());
        let at = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        if at < from {
            return Err(Error::InvalidCertificate(CertificateError::NotValidYet));
        }
        if at > to {
            return Err(Error::InvalidCertificate(CertificateError::Expired));
        }
        verify_server_name(&ParsedCertificate::try_from(leaf)?, name)
    }
}

impl ServerCertVerifier for Given {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let by_path = self.by_path.verify_server_cert(leaf, intermediates, name, ocsp, now);
        match by_path {
            Err(_) if self.certificates.iter().any(|given| given == leaf) => {
                self.check_itself(leaf, name, now).map(|()| ServerCertVerified::assertion())
            }
            other => other,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.by_path.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.by_path.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.by_path.supported_verify_schemes()
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair};

    use super::*;

    /// As `openssl req -x509 -addext subjectAltName=DNS:proxy.example` makes it.
    fn self_signed(from: (i32, u8), to: (i32, u8)) -> CertificateDer<'static> {
        let mut params = CertificateParams::new(vec!["proxy.example".to_owned()]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.not_before = rcgen::date_time_ymd(from.0, from.1, 1);
        params.not_after = rcgen::date_time_ymd(to.0, to.1, 1);
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().clone()
    }

    #[test]
    fn a_self_signed_certificate_that_was_given_counts_for_its_names_and_its_time() {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let (certificate, other) = (self_signed((2026, 1), (2027, 1)), self_signed((2026, 1), (2027, 1)));
        let mut roots = RootCertStore::empty();
        roots.add(certificate.clone()).unwrap();
        let verifier = Given::new(roots, provider, vec![certificate.clone()]).unwrap();
        let name = |name: &'static str| ServerName::try_from(name).unwrap();
        let at = |seconds: u64| UnixTime::since_unix_epoch(std::time::Duration::from_secs(seconds));
        let (june, later) = (at(1_780_000_000), at(1_900_000_000));
        let check = |leaf, name: &'static str, now| {
            let name = ServerName::try_from(name).unwrap();
            verifier.verify_server_cert(leaf, &[], &name, &[], now).map(drop)
        };
        assert!(
            verifier
                .by_path
                .verify_server_cert(&certificate, &[], &name("proxy.example"), &[], june)
                .is_err()
        );
        assert_eq!(check(&certificate, "proxy.example", june), Ok(()));
        assert!(matches!(
            check(&certificate, "other.example", june),
            Err(Error::InvalidCertificate(CertificateError::NotValidForNameContext { .. }))
        ));
        assert_eq!(
            check(&certificate, "proxy.example", later),
            Err(Error::InvalidCertificate(CertificateError::Expired))
        );
        assert!(check(&other, "proxy.example", june).is_err(), "another one of the same name");
    }
}
