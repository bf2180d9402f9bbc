//! How commands call a Coordinator: with which deadlines, by whose endorsements, and what a failure is to the caller.

use std::{path::PathBuf, sync::Arc, time::Duration};

use anyhow::bail;
use atls::ConnectionKey;
use coordinator_client::{
    Attested, CallError, Caller, Deadlines, Proxied, Session, Speech, Trust, Unjudged, dial_configured,
    is_url, with_port,
};
use manifest::Manifest;
use program::now;
use tokio::net::TcpStream;
use tonic::Status;
use zeroize::Zeroizing;

use crate::{endorsements::Cache, files::read, printer::Refused};

const DEADLINES: Deadlines = Deadlines {
    dial: Duration::from_secs(10),
    handshake: Duration::from_secs(30),
    request: Duration::from_secs(60),
};

/// The port of a Coordinator's user API, where an address names none.
const USER_PORT: u16 = 1313;

/// How to reach a Coordinator whose address is a URL.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct HttpOptions {
    /// Certificates, PEM, for a --coordinator that begins with https://: the CA's that the proxy's certificate must lead
    /// to, or the proxy's own, if it is self-signed. By default the CAs of this system.
    #[arg(long, env = "CONTRAST_HTTP_CA", value_name = "FILE")]
    http_ca: Option<PathBuf>,
}

/// Calls the user API at host:port. `key` is the PEM key that the caller proves to hold.
pub(crate) async fn attested(
    address: &str,
    manifest: &Manifest,
    key: Option<&Zeroizing<String>>,
) -> anyhow::Result<Attested> {
    if address.contains("://") {
        bail!(
            "cannot reach the Coordinator at {address}: this command speaks gRPC, not HTTP: give host:port of the user \
             API, usually port 1313; of all commands only set, verify, vouch and recover take the URL of the HTTP API"
        );
    }
    let stream = dial_configured(&with_port(address, USER_PORT), Speech::Encrypted).await.map_err(failed)?;
    through(stream, address, manifest, key).await
}

async fn through(
    stream: TcpStream,
    address: &str,
    manifest: &Manifest,
    key: Option<&Zeroizing<String>>,
) -> anyhow::Result<Attested> {
    let key = match key {
        Some(pem) => ConnectionKey::from_pem(pem)?,
        None => ConnectionKey::generate()?,
    };
    let caller = Caller { key: Arc::new(key), issuer: None, deadlines: DEADLINES };
    let unjudged = Unjudged::open(stream, address, &caller, now()).await.map_err(failed)?;
    unjudged.judge(&trust(manifest)?, now()).await.map_err(failed)
}

/// The user API at an address, and the way to it.
pub(crate) struct Address<'a> {
    given: &'a str,
    http: &'a HttpOptions,
}

impl<'a> Address<'a> {
    pub(crate) fn new(given: &'a str, http: &'a HttpOptions) -> Self {
        Self { given, http }
    }

    /// Something that accepts connections there. What it is, and whether it is the Coordinator, comes after.
    pub(crate) async fn reach(&self) -> anyhow::Result<TcpStream> {
        let place = match is_url(self.given) {
            true => coordinator_client::host_and_port(self.given).map_err(failed)?,
            false => with_port(self.given, USER_PORT),
        };
        let speech = if self.given.starts_with("http://") { Speech::Plain } else { Speech::Encrypted };
        dial_configured(&place, speech).await.map_err(failed)
    }

    /// Opens a session, with a key that authorises what is done in it.
    pub(crate) async fn open(
        &self,
        manifest: &Manifest,
        key: Option<&Zeroizing<String>>,
    ) -> anyhow::Result<Session> {
        match is_url(self.given) {
            true => self.proxied(manifest, key),
            false => attested(self.given, manifest, key).await.map(Session::Grpc),
        }
    }

    /// The same, where a connection stands already.
    pub(crate) async fn open_through(
        &self,
        stream: TcpStream,
        manifest: &Manifest,
        key: Option<&Zeroizing<String>>,
    ) -> anyhow::Result<Session> {
        match is_url(self.given) {
            true => self.proxied(manifest, key), // which makes a connection for each request
            false => through(stream, self.given, manifest, key).await.map(Session::Grpc),
        }
    }

    fn proxied(&self, manifest: &Manifest, key: Option<&Zeroizing<String>>) -> anyhow::Result<Session> {
        let ca = self.http.http_ca.as_deref().map(read).transpose()?;
        let trust = trust(manifest)?;
        let proxied = Proxied::new(self.given, ca.as_deref(), trust, key.cloned(), DEADLINES, now);
        Ok(Session::Http(Box::new(proxied.map_err(failed)?)))
    }
}

fn trust(manifest: &Manifest) -> anyhow::Result<Trust> {
    let endorsements = Cache::current().open()?;
    Ok(Trust { manifest: Arc::new(manifest.clone()), endorsements })
}

/// A refusal stays one (exit code 1); anything else is a fault.
pub(crate) fn failed(error: CallError) -> anyhow::Error {
    let is_refusal = error.is_refusal();
    let error = anyhow::Error::from(error);
    if is_refusal { Refused(format!("{error:#}")).into() } else { error }
}

/// The same for what a service answered.
pub(crate) fn failure(status: Status) -> anyhow::Error {
    failed(coordinator_client::answered(status))
}
