//! A Coordinator behind a proxy that ends TLS: attestation in the payload, what is secret sealed to a key
//! that the attestation vouches for (docs/http-api.md). The proxy's TLS is checked as any web site's, but
//! nothing here relies on it.

use std::{path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context as _, bail, ensure};
use attestation::{Claims, Evidence, EvidenceOid, ReportData};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use continuity::Voucher;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{
    Method, Request, StatusCode, Uri,
    body::Bytes,
    header::{CONTENT_TYPE, HOST, USER_AGENT},
};
use hyper_util::rt::TokioIo;
use manifest::Manifest;
use rustls::{
    RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject as _},
};
use serde_json::{Value, json};
use storage_schema::merkle::Hash;
use tokio_rustls::TlsConnector;
use wire::history::HeadResponse;
use zeroize::Zeroizing;

use crate::{
    client::{dial, judge, read},
    older_head::{self, OlderHead},
    printer::Refused,
    remembered::Heads,
    transition::latest_of,
};

/// Longest request.
const REQUEST: Duration = Duration::from_secs(60);
/// What a Coordinator says of its state while it waits for the seed.
pub(crate) const IN_RECOVERY: &str = "coordinator is in recovery mode";
/// Largest answer, in bytes.
const MAX_ANSWER_BYTES: usize = 256 << 20;

/// How to reach it.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct HttpOptions {
    /// CA certificates, PEM, that the proxy's certificate must lead to, for a --coordinator that begins with
    /// https://. By default those of this system.
    #[arg(long, env = "CONTRAST_HTTP_CA", value_name = "FILE")]
    http_ca: Option<PathBuf>,
}

/// Whether this is the address of an HTTP API.
pub(crate) fn is_http(address: &str) -> bool {
    address.starts_with("http://") || address.starts_with("https://")
}

/// Where the HTTP API of this address listens; none for another kind of address.
pub(crate) fn host_and_port(address: &str) -> Option<String> {
    let uri: Uri = address.parse().ok().filter(|_| is_http(address))?;
    uri.host().is_some().then(|| place(&uri))
}

fn place(uri: &Uri) -> String {
    let port = uri.port_u16().unwrap_or(if uri.scheme_str() == Some("https") { 443 } else { 80 });
    format!("{}:{port}", uri.host().unwrap_or_default())
}

/// A Coordinator's HTTP API, and the manifest that it is verified by.
pub(crate) struct HttpCoordinator<'a> {
    base: Uri,
    tls: Option<TlsConnector>,
    manifest: &'a Manifest,
}

/// How a Coordinator stands, after its evidence was verified: all of this is under it, and fresh.
pub(crate) struct Standing {
    pub(crate) hpke_key: Vec<u8>,
    pub(crate) state: String,
    /// Digest of the seed shares document; empty: there is none.
    pub(crate) seed_shares: Vec<u8>,
    pub(crate) older_heads: Vec<OlderHead>,
    head: HeadResponse,
}

/// What `/v1/attest` showed, after its evidence was verified.
pub(crate) struct Attested {
    pub(crate) claims: Claims,
    pub(crate) manifests: Vec<Vec<u8>>,
    pub(crate) policies: Vec<Vec<u8>>,
    pub(crate) root_ca: Vec<u8>,
    pub(crate) mesh_ca: Vec<u8>,
    /// Beside the evidence: each is a signature that the caller verifies.
    pub(crate) vouchers: Vec<Voucher>,
}

impl<'a> HttpCoordinator<'a> {
    pub(crate) fn new(address: &str, options: &HttpOptions, manifest: &'a Manifest) -> anyhow::Result<Self> {
        let base: Uri = address.trim_end_matches('/').parse().with_context(|| address.to_owned())?;
        ensure!(base.host().is_some(), "{address}: no host");
        let tls = match base.scheme_str() {
            Some("https") => Some(connector(options)?),
            _ => None,
        };
        Ok(Self { base, tls, manifest })
    }

    /// What it is verified by.
    pub(crate) fn manifest(&self) -> &'a Manifest {
        self.manifest
    }

    async fn request(
        &self,
        method: Method,
        path: &str,
        body: Vec<u8>,
    ) -> anyhow::Result<(StatusCode, Bytes)> {
        let host = self.base.host().unwrap_or_default();
        let prefix = self.base.path().trim_end_matches('/');
        let request = Request::builder()
            .method(method)
            .uri(format!("{prefix}{path}"))
            .header(HOST, self.base.authority().map_or(host, |authority| authority.as_str()))
            .header(USER_AGENT, concat!("contrast/", env!("CARGO_PKG_VERSION")))
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body)))?;
        let exchange = async {
            let stream =
                dial(&place(&self.base)).await.with_context(|| format!("cannot reach {}", self.base))?;
            match &self.tls {
                None => exchange(stream, request).await,
                Some(tls) => {
                    let name = ServerName::try_from(host.trim_matches(['[', ']']).to_owned())?;
                    let stream = tls
                        .connect(name, stream)
                        .await
                        .with_context(|| format!("{}: the proxy's TLS (see --http-ca)", self.base))?;
                    exchange(stream, request).await
                }
            }
        };
        tokio::time::timeout(REQUEST, exchange)
            .await
            .with_context(|| format!("no answer within {REQUEST:?}"))?
    }

    async fn post(&self, path: &str, body: &Value) -> anyhow::Result<Value> {
        let (status, bytes) = self.request(Method::POST, path, body.to_string().into_bytes()).await?;
        answer(status, &bytes)
    }

    async fn capabilities(&self) -> anyhow::Result<Bytes> {
        let (status, body) = self.request(Method::GET, "/capabilities", Vec::new()).await?;
        ensure!(status == StatusCode::OK, "{} has no HTTP API that this program knows ({status})", self.base);
        Ok(body)
    }

    /// Verifies the Coordinator by the manifest, with its whole history.
    pub(crate) async fn attest(&self) -> anyhow::Result<Attested> {
        let capabilities = self.capabilities().await?;
        let nonce = keys::random::<32>()?;
        let shown = self.post("/v1/attest", &json!({ "nonce": BASE64_STANDARD.encode(nonce) })).await?;
        let (manifests, policies) = (list(&shown, "manifests")?, list(&shown, "policies")?);
        let (root_ca, mesh_ca) = (bytes(&shown, "root_ca")?, bytes(&shown, "mesh_ca")?);
        let latest = latest_of(&manifests)?;
        let expected =
            ReportData::history(&nonce, latest.as_bytes(), &root_ca, &mesh_ca, Some(&capabilities));
        let claims = self.verify(&shown, &expected).await?;
        let voucher = |shown: &Value| {
            Ok(Voucher { public_key: bytes(shown, "public_key")?, signature: bytes(shown, "signature")? })
        };
        let vouchers = shown["vouchers"].as_array().into_iter().flatten().map(voucher);
        let vouchers = vouchers.collect::<anyhow::Result<_>>()?;
        Ok(Attested { claims, manifests, policies, root_ca, mesh_ca, vouchers })
    }

    /// Verifies the Coordinator by the manifest, whatever state it is in. Its head comes with a proof that it extends
    /// `extends` events, which is the caller's to check. `None`: it has fewer.
    pub(crate) async fn standing(&self, extends: u64) -> anyhow::Result<Option<Standing>> {
        let nonce = keys::random::<32>()?;
        let question = json!({ "nonce": BASE64_STANDARD.encode(nonce), "extends": extends });
        let (status, body) =
            self.request(Method::POST, "/v1/attest-key", question.to_string().into_bytes()).await?;
        if status == StatusCode::RANGE_NOT_SATISFIABLE {
            return Ok(None);
        }
        let shown = answer(status, &body)?;
        let (capabilities, signed_head) = (bytes(&shown, "capabilities")?, bytes(&shown, "signed_head")?);
        let seed_shares = bytes(&shown, "seed_shares")?;
        let older_heads = older_heads(&shown)?;
        let state = shown["state"].as_str().context("the answer lacks state")?.to_owned();
        let expected = ReportData::standing(&attestation::Standing {
            nonce: &nonce,
            capabilities: &capabilities,
            state: &state,
            signed_head: &signed_head,
            seed_shares: &seed_shares,
            older_heads: &older_head::covered(&older_heads),
        });
        self.verify(&shown, &expected).await?;
        let consistency = list(&shown, "consistency")?;
        ensure!(
            consistency.iter().all(|node| node.len() == size_of::<Hash>()),
            "a proof with a node that is no hash"
        );
        let checkpoint = shown["checkpoint"].as_str().unwrap_or_default().to_owned();
        // Only a Coordinator that waits for its seed cannot sign it.
        if checkpoint.is_empty() && !signed_head.is_empty() && state != IN_RECOVERY {
            return Err(
                Refused("the answer lacks the checkpoint: somebody on the way took it out".into()).into()
            );
        }
        let hpke_key =
            bytes(&serde_json::from_slice(&capabilities).context("capabilities")?, "hpkePublicKey")?;
        let head = HeadResponse { signed_head, consistency, checkpoint };
        Ok(Some(Standing { hpke_key, state, seed_shares, older_heads, head }))
    }

    async fn verify(&self, shown: &Value, expected: &ReportData) -> anyhow::Result<Claims> {
        let kind: Vec<u64> = serde_json::from_value(shown["attestation_type"].clone()).unwrap_or_default();
        let oid = EvidenceOid::ALL.into_iter().find(|oid| oid.components() == kind.as_slice());
        let oid = oid.with_context(|| format!("evidence of the unknown kind {kind:?}"))?;
        let evidence = Evidence { oid, document: bytes(shown, "raw_attestation_doc")? };
        judge(&self.base.to_string(), evidence, expected, self.manifest).await
    }

    /// Sends the seed, or a part of it, sealed; gives how many parts are there and how many are needed.
    pub(crate) async fn recover(
        &self,
        hpke_key: &[u8],
        seed: &[u8],
        salt: &[u8],
        owner_key: &Zeroizing<String>,
        checkpoint: &str,
        accept_older_head: Option<&[u8]>,
    ) -> anyhow::Result<(u32, u32)> {
        let salt: &[u8; 32] = salt.try_into().context("seed shares document: Salt is not 32 bytes")?;
        // The signature names the sealed message, so the encapsulated key comes first.
        let sealer = atls::hpke::Sealer::new(hpke_key, wire::http::RECOVER)?;
        let message = Zeroizing::new(wire::http::recovery_message(
            hpke_key,
            sealer.encapsulated_key(),
            seed,
            salt,
            checkpoint,
        ));
        let (signature, public_key) = keys::sign_rsa_pss(owner_key, &message)?;
        let encode = |bytes: &[u8]| BASE64_STANDARD.encode(bytes);
        let inner = Zeroizing::new(
            json!({
                "seed": encode(seed), "salt": encode(salt),
                "public_key": encode(&public_key), "signature": encode(&signature),
                "checkpoint": checkpoint,
                "accept_older_head": accept_older_head.map(encode),
            })
            .to_string(),
        );
        let sealed = sealer.seal(inner.as_bytes())?;
        let body = json!({
            "encapsulated_key": encode(&sealed.encapsulated_key), "ciphertext": encode(&sealed.ciphertext)
        });
        let answer = self.post("/v1/recover", &body).await?;
        let number = |name: &str| answer[name].as_u64().and_then(|number| u32::try_from(number).ok());
        Ok((number("shares_received").unwrap_or_default(), number("shares_needed").unwrap_or_default()))
    }

    /// Hands in an owner's word for the deployment.
    pub(crate) async fn vouch(&self, public_key: &[u8], signature: &[u8]) -> anyhow::Result<()> {
        let body = json!({
            "public_key": BASE64_STANDARD.encode(public_key), "signature": BASE64_STANDARD.encode(signature),
        });
        self.post("/v1/vouch", &body).await.map(drop)
    }

    /// Sets a manifest; gives the answer as gRPC would.
    pub(crate) async fn set(
        &self,
        manifest: &Manifest,
        policies: &[Vec<u8>],
        signatures: &[Vec<u8>],
    ) -> anyhow::Result<wire::user::SetManifestResponse> {
        let encode =
            |list: &[Vec<u8>]| list.iter().map(|item| BASE64_STANDARD.encode(item)).collect::<Vec<_>>();
        let body = json!({
            "manifest": BASE64_STANDARD.encode(manifest.bytes()),
            "policies": encode(policies), "signatures": encode(signatures),
        });
        let answer = self.post("/v1/manifest", &body).await?;
        let document = answer.get("seed_shares_doc").map(|document| {
            let shares = document["seed_shares"].as_array().cloned().unwrap_or_default();
            let share = |share: &Value| {
                let public_key = share["public_key"].as_str().unwrap_or_default().to_owned();
                Ok(wire::user::SeedShare { public_key, encrypted_seed: bytes(share, "encrypted_seed")? })
            };
            let seed_shares = shares.iter().map(share).collect::<anyhow::Result<_>>()?;
            anyhow::Ok(wire::user::SeedShareDocument { seed_shares, salt: bytes(document, "salt")? })
        });
        Ok(wire::user::SetManifestResponse {
            root_ca: bytes(&answer, "root_ca")?,
            mesh_ca: bytes(&answer, "mesh_ca")?,
            seed_shares_doc: document.transpose()?,
        })
    }
}

impl Heads for HttpCoordinator<'_> {
    async fn head(&self, extends: u64) -> anyhow::Result<Option<HeadResponse>> {
        Ok(self.standing(extends).await?.map(|standing| standing.head))
    }
}

async fn exchange<S>(stream: S, request: Request<Full<Bytes>>) -> anyhow::Result<(StatusCode, Bytes)>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let answer = sender.send_request(request).await.map_err(|error| match error.is_parse() {
        true => anyhow::Error::from(error).context(
            "what answers there does not speak HTTP; for the gRPC API give host:port without http://",
        ),
        false => error.into(),
    })?;
    let status = answer.status();
    let body = Limited::new(answer.into_body(), MAX_ANSWER_BYTES).collect().await;
    Ok((status, body.map_err(|error| anyhow::anyhow!("the answer: {error}"))?.to_bytes()))
}

fn answer(status: StatusCode, body: &[u8]) -> anyhow::Result<Value> {
    let value: Value = match serde_json::from_slice(body) {
        Ok(value) => value,
        Err(_) => bail!("status {status}, and no JSON: is there a Coordinator behind this address?"),
    };
    if status.is_success() {
        return Ok(value);
    }
    let text = format!("the Coordinator answered: {}", value["error"].as_str().unwrap_or("(nothing)"));
    if status.is_client_error() { bail!(Refused(text)) } else { bail!(text) }
}

fn older_heads(shown: &Value) -> anyhow::Result<Vec<OlderHead>> {
    let number =
        |shown: &Value, name: &str| shown[name].as_u64().with_context(|| format!("the answer lacks {name}"));
    let root = |shown: &Value, name: &str| {
        Hash::try_from(bytes(shown, name)?).ok().with_context(|| format!("{name} is no tree head"))
    };
    let head = |shown: &Value| {
        Ok(OlderHead {
            public_key: bytes(shown, "public_key")?,
            signature: bytes(shown, "signature")?,
            given_up: (number(shown, "given_up_size")?, root(shown, "given_up_root")?),
            accepted: (number(shown, "accepted_size")?, root(shown, "accepted_root")?),
            at: number(shown, "at")?,
        })
    };
    // Coordinators of earlier versions show none.
    shown["older_heads"].as_array().into_iter().flatten().map(head).collect()
}

fn bytes(value: &Value, name: &str) -> anyhow::Result<Vec<u8>> {
    let text = value[name].as_str().with_context(|| format!("the answer lacks {name}"))?;
    BASE64_STANDARD.decode(text).with_context(|| format!("{name} is not base64"))
}

fn list(value: &Value, name: &str) -> anyhow::Result<Vec<Vec<u8>>> {
    let items = value[name].as_array().with_context(|| format!("the answer lacks {name}"))?;
    let decode = |item: &Value| BASE64_STANDARD.decode(item.as_str().unwrap_or_default());
    items.iter().map(decode).collect::<Result<_, _>>().with_context(|| format!("{name} is not base64"))
}

fn connector(options: &HttpOptions) -> anyhow::Result<TlsConnector> {
    let mut roots = RootCertStore::empty();
    match &options.http_ca {
        Some(path) => {
            let pem = read(path)?;
            for certificate in CertificateDer::pem_slice_iter(&pem) {
                roots.add(certificate.with_context(|| path.display().to_string())?)?;
            }
        }
        None => {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}
