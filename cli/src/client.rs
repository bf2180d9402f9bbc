//! A verified connection to a Coordinator's user port.

use std::{io, sync::Arc, time::Duration};

use ::endorsements::Reach;
use anyhow::Context as _;
use atls::{ClientConfig, ConnectionKey};
use attestation::{Claims, Evidence, ReportData};
use hyper_util::rt::TokioIo;
use manifest::{Manifest, Role, Timestamp};
use tokio::{net::TcpStream, sync::Mutex, time::timeout};
use tonic::{
    Code, Status,
    transport::{Channel, Endpoint},
};
use wire::{
    history::history_client::HistoryClient, proposals::proposals_client::ProposalsClient,
    user::user_api_client::UserApiClient,
};

use crate::{endorsements::Cache, printer::Refused};

const DIAL: Duration = Duration::from_secs(10);
const HANDSHAKE: Duration = Duration::from_secs(30);
/// Largest answer: a long history with its policies, in bytes.
const MAX_ANSWER_BYTES: usize = 256 << 20;

/// A Coordinator whose evidence was verified.
pub(crate) struct Coordinator {
    channel: Channel,
    pub(crate) claims: Claims,
    /// Whether the user gave a client key.
    pub(crate) with_key: bool,
}

impl Coordinator {
    /// Connects, and verifies the Coordinator by the manifest: its evidence by the reference
    /// values, its policy by the role. `key` is the PEM key that the caller proves to hold.
    pub(crate) async fn connect(
        address: &str,
        manifest: &Manifest,
        key: Option<&str>,
    ) -> anyhow::Result<Self> {
        let stream =
            dial(address).await.with_context(|| format!("cannot reach the Coordinator at {address}"))?;
        Self::through(stream, address, manifest, key).await
    }

    /// The same through a connection that stands.
    pub(crate) async fn through(
        stream: TcpStream,
        address: &str,
        manifest: &Manifest,
        key: Option<&str>,
    ) -> anyhow::Result<Self> {
        let with_key = key.is_some();
        let key = match key {
            Some(pem) => ConnectionKey::from_pem(pem)?,
            None => ConnectionKey::generate()?,
        };
        stream.set_nodelay(true)?; // or the handshake waits 40 ms for a delayed acknowledgement
        let config = ClientConfig { key: Arc::new(key), issuer: None, handshake_timeout: HANDSHAKE };
        let (stream, peer) = atls::connect(stream, &config, now()).await.map_err(|error| {
            let hint = handshake_hint(&format!("{:#}", anyhow::anyhow!(error.to_string())));
            anyhow::Error::from(error).context(format!("no attested connection to {address}{hint}"))
        })?;
        let evidence = peer.evidence.clone().ok_or_else(|| Refused(format!("{address} sent no evidence")))?;
        let claims = judge(address, evidence, &peer.report_data(), manifest).await?;
        let once = Arc::new(Mutex::new(Some(TokioIo::new(stream))));
        let connector = tower::service_fn(move |_| {
            let once = Arc::clone(&once);
            async move { once.lock().await.take().ok_or_else(|| std::io::Error::other("connection closed")) }
        });
        let channel = Endpoint::from_static("http://coordinator")
            .timeout(Duration::from_secs(60))
            .connect_with_connector(connector)
            .await?;
        Ok(Self { channel, claims, with_key })
    }

    pub(crate) fn user(&self) -> UserApiClient<Channel> {
        UserApiClient::new(self.channel.clone()).max_decoding_message_size(MAX_ANSWER_BYTES)
    }

    pub(crate) fn proposals(&self) -> ProposalsClient<Channel> {
        ProposalsClient::new(self.channel.clone()).max_decoding_message_size(MAX_ANSWER_BYTES)
    }

    pub(crate) fn channel(&self) -> Channel {
        self.channel.clone()
    }

    pub(crate) fn history(&self) -> HistoryClient<Channel> {
        HistoryClient::new(self.channel.clone()).max_decoding_message_size(MAX_ANSWER_BYTES)
    }
}

/// What a failed handshake says of the place that was called.
fn handshake_hint(error: &str) -> &'static str {
    if error.contains("InvalidContentType") || error.contains("corrupt message") {
        " (no TLS is spoken there: for the HTTP API begin with http://, for the user API give its port, usually 1313)"
    } else if error.contains("NoApplicationProtocol") {
        " (another protocol is spoken there, as by the transit engine on 8200: the user API is usually on port 1313)"
    } else {
        ""
    }
}

/// The port of a Coordinator's user API, where an address names none.
const USER_PORT: u16 = 1313;

/// host:port of an address whose port may be left out. An IPv6 address with colons needs brackets, as in URLs.
pub(crate) fn with_port(address: &str) -> String {
    let has_port = match address.rsplit_once(']') {
        Some((_, rest)) => rest.starts_with(':'),
        None => address.contains(':'),
    };
    if has_port { address.to_owned() } else { format!("{address}:{USER_PORT}") }
}

/// Connects to an address; one that does not answer at all is given up.
pub(crate) async fn dial(address: &str) -> io::Result<TcpStream> {
    if address.contains("://") {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "this command speaks gRPC, not HTTP: give host:port of the user API, usually port 1313; of all commands only \
             set, verify and recover take the URL of the HTTP API",
        ));
    }
    timeout(DIAL, TcpStream::connect(with_port(address))).await.unwrap_or_else(|_| {
        Err(io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {DIAL:?}")))
    })
}

/// Completes evidence with what the vendors sign, and demands that it is of a Coordinator of the manifest and for
/// nothing but `expected`. Every way to a Coordinator leads through here.
pub(crate) async fn judge(
    address: &str,
    evidence: Evidence,
    expected: &ReportData,
    manifest: &Manifest,
) -> anyhow::Result<Claims> {
    let endorsements = Cache::current().open()?;
    let complete = move || endorsements.complete(evidence, now(), Reach::Network);
    let evidence = tokio::task::spawn_blocking(complete).await?.evidence;
    let claims = attestation::verify(&evidence, expected, &manifest.reference_values, now())
        .map_err(|refusal| Refused(format!("the Coordinator at {address}: {refusal}")))?;
    let policy = claims.policy_hash();
    let role = manifest.policies.get(&policy).map(|entry| entry.role);
    if role == Some(Role::Coordinator) {
        return Ok(claims);
    }
    let text =
        format!("{address} is genuine, but its policy {policy} is not a Coordinator's in the manifest");
    Err(Refused(text).into())
}

/// A refusal stays one (exit code 1); anything else is a fault.
#[expect(clippy::needless_pass_by_value, reason = "shape of map_err")]
pub(crate) fn failure(status: Status) -> anyhow::Error {
    let text = match (status.code(), status.message()) {
        (Code::Unimplemented, "") => {
            "what answers there has no such API: the user API is usually on port 1313, the mesh API on 7777"
                .to_owned()
        }
        (code, "") => format!("the Coordinator answered: {}", code.description()),
        (_, message) if message.ends_with("coordinator is in recovery mode") => {
            format!("the Coordinator answered: {message}: a seedshare owner has to run `contrast recover`")
        }
        (_, message) => format!("the Coordinator answered: {message}"),
    };
    match status.code() {
        Code::PermissionDenied | Code::FailedPrecondition | Code::InvalidArgument | Code::NotFound => {
            Refused(text).into()
        }
        _ => anyhow::anyhow!(text),
    }
}

#[expect(clippy::disallowed_methods, reason = "the program's edge, where time enters")]
pub(crate) fn now() -> Timestamp {
    let since_epoch = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_millis(u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX))
}

/// Reads a file; the error names it.
pub(crate) fn read(path: &std::path::Path) -> anyhow::Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

/// Reads and checks a manifest file.
pub(crate) fn read_manifest(path: &std::path::Path) -> anyhow::Result<Manifest> {
    let manifest = Manifest::parse(&read(path)?).with_context(|| path.display().to_string())?;
    if !manifest.unknown().is_empty() {
        let (path, names) = (path.display(), manifest.unknown().join(", "));
        tracing::warn!("{path}: fields that mean nothing here, maybe misspelt: {names}");
    }
    Ok(manifest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_without_a_port_means_the_user_api() {
        for (given, meant) in [
            ("coordinator.example", "coordinator.example:1313"),
            ("192.0.2.7", "192.0.2.7:1313"),
            ("coordinator.example:77", "coordinator.example:77"),
            ("[2001:db8::7]", "[2001:db8::7]:1313"),
            ("[2001:db8::7]:77", "[2001:db8::7]:77"),
        ] {
            assert_eq!(with_port(given), meant);
        }
    }
}
