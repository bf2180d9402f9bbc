//! A Coordinator behind a proxy that ends TLS: attestation in the payload, what is secret sealed to a key
//! that the attestation vouches for (docs/http-api.md). The proxy's TLS is checked as any web site's, but
//! nothing here relies on it.

use std::{fmt::Display, sync::Arc};

use attestation::{Claims, Evidence, EvidenceOid, ReportData};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use continuity::Voucher;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{
    Method, Request, StatusCode, Uri,
    body::Bytes,
    header::{CONTENT_TYPE, HOST, PROXY_AUTHORIZATION, USER_AGENT},
};
use hyper_util::rt::TokioIo;
use manifest::{Timestamp, TransitionHash};
use rustls::{
    RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject as _},
};
use serde_json::{Value, json};
use tokio_rustls::TlsConnector;
use wire::{
    history::HeadResponse,
    user::{RecoverResponse, SeedShare, SeedShareDocument, SetManifestResponse},
};
use zeroize::Zeroizing;

use crate::{
    attested::Deadlines,
    corporate::{Dialled, Speech, dialled},
    error::CallError,
    given_certificate::Given,
    grpc::MAX_ANSWER_BYTES,
    request::{NewManifest, OlderHead, SeedShareForm, ShownHistory, latest_of},
    trust::Trust,
};

/// What a Coordinator says of its state while it waits for the seed.
pub const IN_RECOVERY: &str = "coordinator is in recovery mode";
/// Length of a hash of the log's tree, in bytes.
const HASH_BYTES: usize = 32;

/// Whether this is the address of an HTTP API.
pub fn is_url(address: &str) -> bool {
    address.starts_with("http://") || address.starts_with("https://")
}

/// host:port of what answers at a URL.
pub fn host_and_port(url: &str) -> Result<String, CallError> {
    let base: Uri = url.parse().map_err(proxy(url))?;
    place(&base).ok_or_else(|| proxy(url)("no host"))
}

fn place(base: &Uri) -> Option<String> {
    let port = base.port_u16().unwrap_or(if base.scheme_str() == Some("https") { 443 } else { 80 });
    Some(format!("{}:{port}", base.host()?))
}

/// A Coordinator's HTTP API. Each answer is judged by itself.
pub struct Proxied {
    base: Uri,
    /// host:port of the proxy.
    place: String,
    tls: Option<TlsConnector>,
    trust: Trust,
    /// Authorises changes of the manifest.
    owner_key: Option<Zeroizing<String>>,
    deadlines: Deadlines,
    clock: fn() -> Timestamp,
}

/// How a Coordinator stands, after its evidence was verified: all of this is under it, and fresh.
pub(crate) struct Standing {
    hpke_key: Vec<u8>,
    state: String,
    /// Digest of the seed shares document; empty: there is none.
    seed_shares: Vec<u8>,
    pub(crate) older_heads: Vec<OlderHead>,
    pub(crate) head: HeadResponse,
}

impl Proxied {
    /// The API at a URL. With `ca_pem` the proxy's certificate must lead to one of these, else to one of the system.
    pub fn new(
        url: &str,
        ca_pem: Option<&[u8]>,
        trust: Trust,
        owner_key: Option<Zeroizing<String>>,
        deadlines: Deadlines,
        clock: fn() -> Timestamp,
    ) -> Result<Self, CallError> {
        let base: Uri = url.trim_end_matches('/').parse().map_err(proxy(url))?;
        // They would stand in the Host header, in the open to the next proxy, and in every error.
        if base.authority().is_some_and(|authority| authority.as_str().contains('@')) {
            return Err(CallError::Proxy(
                "the URL of a Coordinator has no user and password in it; those of a company's proxy belong into \
                 HTTPS_PROXY"
                    .into(),
            ));
        }
        let place = place(&base).ok_or_else(|| proxy(url)("no host"))?;
        let tls = match base.scheme_str() {
            Some("https") => Some(connector(ca_pem).map_err(proxy(url))?),
            _ => None,
        };
        Ok(Self { base, place, tls, trust, owner_key, deadlines, clock })
    }

    async fn request(
        &self,
        method: Method,
        path: &str,
        body: Vec<u8>,
    ) -> Result<(StatusCode, Bytes), CallError> {
        let (base, longest) = (&self.base, self.deadlines.request);
        let host = base.host().unwrap_or_default();
        let prefix = base.path().trim_end_matches('/');
        let authority = base.authority().map_or(host, |authority| authority.as_str());
        let speech = if self.tls.is_some() { Speech::Encrypted } else { Speech::Plain };
        let exchange = async {
            let Dialled { stream, reader } = dialled(&self.place, speech).await?;
            // A proxy that reads the requests wants to be told the whole URL.
            let origin = if reader.is_some() { format!("http://{authority}") } else { String::new() };
            let mut request = Request::builder()
                .method(method)
                .uri(format!("{origin}{prefix}{path}"))
                .header(HOST, authority)
                .header(USER_AGENT, concat!("contrast/", env!("CARGO_PKG_VERSION")))
                .header(CONTENT_TYPE, "application/json");
            if let Some(authorization) = reader.and_then(|reader| reader.authorization) {
                request = request.header(PROXY_AUTHORIZATION, authorization);
            }
            let request = request.body(Full::new(Bytes::from(body))).map_err(proxy(base))?;
            match &self.tls {
                None => exchange(stream, request).await.map_err(proxy(base)),
                Some(tls) => {
                    let name = host.trim_matches(['[', ']']).to_owned();
                    let name = ServerName::try_from(name).map_err(proxy(base))?;
                    let stream = tls.connect(name, stream).await;
                    let untrusted =
                        |error| CallError::Proxy(format!("{base}: the proxy's TLS (see --http-ca): {error}"));
                    exchange(stream.map_err(untrusted)?, request).await
                }
            }
        };
        let answered = tokio::time::timeout(longest, exchange).await;
        answered.map_err(|_| CallError::Proxy(format!("{base}: no answer within {longest:?}")))?
    }

    async fn post(&self, path: &str, body: &Value) -> Result<Value, CallError> {
        let (status, bytes) = self.request(Method::POST, path, body.to_string().into_bytes()).await?;
        answer(status, &bytes)
    }

    /// Something answers there, but not a Coordinator.
    fn has_no_api(&self, status: StatusCode) -> CallError {
        CallError::Proxy(format!(
            "{} has no HTTP API that this program knows ({status}): a Coordinator's is on port 1314, and a proxy must lead \
             there whatever comes behind this address",
            self.base
        ))
    }

    /// Verifies the Coordinator, with its whole history.
    pub(crate) async fn shown_history(&self) -> Result<ShownHistory, CallError> {
        let (status, capabilities) = self.request(Method::GET, "/capabilities", Vec::new()).await?;
        if status != StatusCode::OK {
            return Err(self.has_no_api(status));
        }
        let nonce = nonce()?;
        let shown = self.post("/v1/attest", &json!({ "nonce": BASE64_STANDARD.encode(nonce) })).await?;
        let (manifests, policies) = (list(&shown, "manifests")?, list(&shown, "policies")?);
        let (root_ca, mesh_ca) = (bytes(&shown, "root_ca")?, bytes(&shown, "mesh_ca")?);
        let latest = latest_of(&manifests);
        let expected =
            ReportData::history(&nonce, latest.as_bytes(), &root_ca, &mesh_ca, Some(&capabilities));
        let claims = self.judge(&shown, expected).await?;
        let voucher = |shown: &Value| {
            Ok(Voucher { public_key: bytes(shown, "public_key")?, signature: bytes(shown, "signature")? })
        };
        let vouchers = shown["vouchers"].as_array().into_iter().flatten().map(voucher);
        let vouchers = vouchers.collect::<Result<_, CallError>>()?;
        let older_heads = Vec::new(); // under the evidence of the standing
        Ok(ShownHistory { claims, manifests, policies, root_ca, mesh_ca, vouchers, older_heads })
    }

    /// Verifies the Coordinator, whatever state it is in. Its head comes with a proof that it extends `extends` events,
    /// which is the caller's to check. `None`: it has fewer.
    pub(crate) async fn standing(&self, extends: u64) -> Result<Option<Standing>, CallError> {
        let nonce = nonce()?;
        let question = json!({ "nonce": BASE64_STANDARD.encode(nonce), "extends": extends });
        let (status, body) =
            self.request(Method::POST, "/v1/attest-key", question.to_string().into_bytes()).await?;
        if status == StatusCode::RANGE_NOT_SATISFIABLE {
            return Ok(None);
        }
        if status == StatusCode::NOT_FOUND {
            return Err(self.has_no_api(status));
        }
        let shown = answer(status, &body)?;
        let (capabilities, signed_head) = (bytes(&shown, "capabilities")?, bytes(&shown, "signed_head")?);
        let seed_shares = bytes(&shown, "seed_shares")?;
        let older_heads = older_heads(&shown)?;
        let state = shown["state"].as_str().ok_or_else(|| lacks("state"))?.to_owned();
        let expected = ReportData::standing(&attestation::Standing {
            nonce: &nonce,
            capabilities: &capabilities,
            state: &state,
            signed_head: &signed_head,
            seed_shares: &seed_shares,
            older_heads: &covered(&older_heads),
        });
        self.judge(&shown, expected).await?;
        let consistency = list(&shown, "consistency")?;
        if consistency.iter().any(|node| node.len() != HASH_BYTES) {
            return Err(CallError::Malformed("a proof with a node that is no hash".to_owned()));
        }
        let checkpoint = shown["checkpoint"].as_str().unwrap_or_default().to_owned();
        // Only a Coordinator that waits for its seed cannot sign it.
        if checkpoint.is_empty() && !signed_head.is_empty() && state != IN_RECOVERY {
            let text = "the answer lacks the checkpoint: somebody on the way took it out";
            return Err(CallError::Contradiction(text.to_owned()));
        }
        let capabilities: Value = serde_json::from_slice(&capabilities)
            .map_err(|error| CallError::Malformed(format!("capabilities: {error}")))?;
        let hpke_key = bytes(&capabilities, "hpkePublicKey")?;
        let head = HeadResponse { signed_head, consistency, checkpoint };
        Ok(Some(Standing { hpke_key, state, seed_shares, older_heads, head }))
    }

    pub(crate) async fn any_standing(&self) -> Result<Standing, CallError> {
        let standing = self.standing(0).await?;
        standing.ok_or_else(|| CallError::Malformed("a log with fewer than no events".to_owned()))
    }

    async fn judge(&self, shown: &Value, expected: ReportData) -> Result<Claims, CallError> {
        let kind: Vec<u64> = serde_json::from_value(shown["attestation_type"].clone()).unwrap_or_default();
        let oid = EvidenceOid::ALL.into_iter().find(|oid| oid.components() == kind.as_slice());
        let oid =
            oid.ok_or_else(|| CallError::Malformed(format!("evidence of the unknown kind {kind:?}")))?;
        let evidence = Evidence { oid, document: bytes(shown, "raw_attestation_doc")? };
        let address = self.base.to_string();
        self.trust.judge_on_a_thread(&address, Some(evidence), expected, (self.clock)()).await
    }

    /// Sends the seed, or a part of it, sealed; gives how many parts are there and how many are needed.
    pub(crate) async fn recover(&self, form: SeedShareForm<'_>) -> Result<RecoverResponse, CallError> {
        let SeedShareForm { seed, salt, checkpoint, force: _, accept_older_head, owner_key } = form;
        let salt: [u8; 32] = salt
            .try_into()
            .map_err(|_| CallError::Malformed("seed shares document: Salt is not 32 bytes".to_owned()))?;
        let hpke_key = self.any_standing().await?.hpke_key;
        let unsealed = |error: &dyn Display| CallError::Bug(format!("sealing the seed: {error}"));
        // The signature names the sealed message, so the encapsulated key comes first.
        let sealer = atls::hpke::Sealer::new(&hpke_key, wire::http::RECOVER).map_err(|e| unsealed(&e))?;
        let message = Zeroizing::new(wire::http::recovery_message(
            &hpke_key,
            sealer.encapsulated_key(),
            &seed,
            &salt,
            &checkpoint,
        ));
        let (signature, public_key) = keys::sign_rsa_pss(owner_key, &message)
            .map_err(|error| CallError::Malformed(error.to_string()))?;
        let encode = |bytes: &[u8]| BASE64_STANDARD.encode(bytes);
        let inner = Zeroizing::new(
            json!({
                "seed": encode(&seed), "salt": encode(&salt),
                "public_key": encode(&public_key), "signature": encode(&signature),
                "checkpoint": checkpoint,
                "accept_older_head": accept_older_head.map(|(signature, _)| encode(&signature)),
            })
            .to_string(),
        );
        let sealed = sealer.seal(inner.as_bytes()).map_err(|e| unsealed(&e))?;
        let body = json!({
            "encapsulated_key": encode(&sealed.encapsulated_key), "ciphertext": encode(&sealed.ciphertext)
        });
        let answer = self.post("/v1/recover", &body).await?;
        let number = |name: &str| {
            let number = answer[name].as_u64().and_then(|number| u32::try_from(number).ok());
            number.unwrap_or_default()
        };
        let (received, needed) = (number("shares_received"), number("shares_needed"));
        // That it took the seed is the word of whoever answered; that it serves again is under evidence.
        if received == needed && self.any_standing().await?.state == IN_RECOVERY {
            let text = "somebody on the way answered that the seed was taken, but the Coordinator still waits for it";
            return Err(CallError::Contradiction(text.to_owned()));
        }
        Ok(RecoverResponse { shares_received: received, shares_needed: needed })
    }

    pub(crate) async fn vouch(&self, voucher: Voucher) -> Result<(), CallError> {
        let Voucher { public_key, signature } = voucher;
        let body = json!({
            "public_key": BASE64_STANDARD.encode(public_key), "signature": BASE64_STANDARD.encode(signature),
        });
        self.post("/v1/vouch", &body).await.map(drop)
    }

    /// Sets a manifest. There is no client key here that would prove anything, so the owner's key signs the transition.
    pub(crate) async fn set(
        &self,
        new: NewManifest<'_>,
        is_first: bool,
    ) -> Result<SetManifestResponse, CallError> {
        let NewManifest { manifest, policies, mut signatures, previous } = new;
        let latest = match is_first {
            true => TransitionHash::ZERO,
            false => self.shown_history().await?.latest(),
        };
        if let Some(previous) = previous.filter(|previous| *previous != latest) {
            // A signature is over the transition after the latest one, so nobody can change it in between.
            return Err(CallError::Declined(format!(
                "history moved on: expected previous transition {latest}, got {previous}"
            )));
        }
        if let Some(key) = self.owner_key.as_ref().filter(|_| !is_first) {
            let transition = TransitionHash::chain(Some(latest), manifest.hash()).to_string();
            let signature = keys::sign_ecdsa_sha256(key, transition.as_bytes());
            signatures.push(signature.map_err(|error| CallError::Malformed(error.to_string()))?);
        }
        let encode =
            |list: &[Vec<u8>]| list.iter().map(|item| BASE64_STANDARD.encode(item)).collect::<Vec<_>>();
        let body = json!({
            "manifest": BASE64_STANDARD.encode(manifest.bytes()),
            "policies": encode(&policies), "signatures": encode(&signatures),
        });
        let answer = self.post("/v1/manifest", &body).await?;
        let answer = SetManifestResponse {
            root_ca: bytes(&answer, "root_ca")?,
            mesh_ca: bytes(&answer, "mesh_ca")?,
            seed_shares_doc: answer.get("seed_shares_doc").map(seed_shares).transpose()?,
        };
        self.check(&answer, manifest.bytes()).await?;
        Ok(answer)
    }

    /// Over HTTP an answer is the word of whoever is on the way. What it gives is believed only if the Coordinator's
    /// evidence says the same: the certificates of which everybody makes his trust, and the shares without which nobody
    /// recovers.
    async fn check(&self, answer: &SetManifestResponse, manifest: &[u8]) -> Result<(), CallError> {
        let contradiction = |text: String| Err(CallError::Contradiction(text));
        let shown = self.shown_history().await?;
        if shown.manifests.last().map(Vec::as_slice) != Some(manifest) {
            return contradiction(
                "the manifest is not in force: somebody on the way answered instead of the Coordinator, or another \
                 change came right after; see `contrast history`"
                    .to_owned(),
            );
        }
        let given =
            [("root CA", &answer.root_ca, &shown.root_ca), ("mesh CA", &answer.mesh_ca, &shown.mesh_ca)];
        for (what, given, attested) in given {
            if given != attested {
                return contradiction(format!(
                    "the answer holds another {what} than the Coordinator's evidence vouches for: somebody on the \
                     way exchanged it; nothing was written"
                ));
            }
        }
        let given = match &answer.seed_shares_doc {
            Some(document) => digest_of(document)?.to_vec(),
            // Later changes bring none.
            None if shown.manifests.len() > 1 => return Ok(()),
            None => Vec::new(),
        };
        if given == self.any_standing().await?.seed_shares {
            return Ok(());
        }
        contradiction(
            "the seed shares in the answer are not those that the Coordinator made: somebody on the way exchanged them, \
             or took them out; nothing was written. The same command again gives them once more, as long as the \
             Coordinator runs"
                .to_owned(),
        )
    }
}

fn older_heads(shown: &Value) -> Result<Vec<OlderHead>, CallError> {
    let number = |shown: &Value, name: &str| shown[name].as_u64().ok_or_else(|| lacks(name));
    let root = |shown: &Value, name: &str| {
        let root = bytes(shown, name)?.try_into();
        root.map_err(|_| CallError::Malformed(format!("{name} is no tree head")))
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

/// What evidence covers of them.
fn covered(heads: &[OlderHead]) -> Vec<u8> {
    let covered: Vec<wire::http::OlderHead<'_>> = (heads.iter())
        .map(|head| wire::http::OlderHead {
            public_key: &head.public_key,
            signature: &head.signature,
            given_up: (head.given_up.0, &head.given_up.1),
            accepted: (head.accepted.0, &head.accepted.1),
            at: head.at,
        })
        .collect();
    wire::http::older_heads_text(&covered)
}

fn seed_shares(document: &Value) -> Result<SeedShareDocument, CallError> {
    let shares = document["seed_shares"].as_array().into_iter().flatten();
    let share = |share: &Value| {
        let public_key = share["public_key"].as_str().unwrap_or_default().to_owned();
        Ok(SeedShare { public_key, encrypted_seed: bytes(share, "encrypted_seed")? })
    };
    let seed_shares = shares.map(share).collect::<Result<_, CallError>>()?;
    Ok(SeedShareDocument { seed_shares, salt: bytes(document, "salt")? })
}

fn digest_of(document: &SeedShareDocument) -> Result<[u8; 32], CallError> {
    let owners = document.seed_shares.iter().map(|share| hex::decode(&share.public_key));
    let owners = owners.collect::<Result<Vec<_>, _>>();
    let owners =
        owners.map_err(|_| CallError::Malformed("seed shares: a public key is not hex".to_owned()))?;
    let ciphertexts = document.seed_shares.iter().map(|share| share.encrypted_seed.as_slice());
    Ok(keys::seed_shares_digest(&document.salt, owners.iter().map(Vec::as_slice).zip(ciphertexts)))
}

async fn exchange<S>(stream: S, request: Request<Full<Bytes>>) -> Result<(StatusCode, Bytes), CallError>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let broken = |error: hyper::Error| match error.is_parse() {
        true => CallError::Proxy(format!(
            "what answers there does not speak HTTP; for the gRPC API give host:port without http://: {error}"
        )),
        false => CallError::Proxy(error.to_string()),
    };
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
    tokio::spawn(connection);
    let answer = sender.send_request(request).await.map_err(broken)?;
    let status = answer.status();
    let body = Limited::new(answer.into_body(), MAX_ANSWER_BYTES).collect().await;
    Ok((status, body.map_err(|error| CallError::Proxy(format!("the answer: {error}")))?.to_bytes()))
}

fn answer(status: StatusCode, body: &[u8]) -> Result<Value, CallError> {
    let value: Value = serde_json::from_slice(body).map_err(|_| {
        CallError::Proxy(format!("status {status}, and no JSON: is there a Coordinator behind this address?"))
    })?;
    if status.is_success() {
        return Ok(value);
    }
    let text = value["error"].as_str().unwrap_or("(nothing)").to_owned();
    Err(if status.is_client_error() { CallError::Declined(text) } else { CallError::Failed(text) })
}

fn nonce() -> Result<[u8; 32], CallError> {
    keys::random().map_err(|error| CallError::Bug(error.to_string()))
}

fn lacks(name: &str) -> CallError {
    CallError::Malformed(format!("the answer lacks {name}"))
}

fn bytes(value: &Value, name: &str) -> Result<Vec<u8>, CallError> {
    let text = value[name].as_str().ok_or_else(|| lacks(name))?;
    BASE64_STANDARD.decode(text).map_err(|_| CallError::Malformed(format!("{name} is not base64")))
}

fn list(value: &Value, name: &str) -> Result<Vec<Vec<u8>>, CallError> {
    let items = value[name].as_array().ok_or_else(|| lacks(name))?;
    let decode = |item: &Value| BASE64_STANDARD.decode(item.as_str().unwrap_or_default());
    let items: Result<_, _> = items.iter().map(decode).collect();
    items.map_err(|_| CallError::Malformed(format!("{name} is not base64")))
}

fn proxy<E: Display>(url: impl Display) -> impl Fn(E) -> CallError {
    move |error| CallError::Proxy(format!("{url}: {error}"))
}

fn connector(ca_pem: Option<&[u8]>) -> Result<TlsConnector, String> {
    let (mut roots, mut given) = (RootCertStore::empty(), Vec::new());
    match ca_pem {
        Some(pem) => {
            for certificate in CertificateDer::pem_slice_iter(pem) {
                let certificate = certificate.map_err(|error| format!("the CA certificates: {error}"))?;
                roots.add(certificate.clone()).map_err(|error| format!("the CA certificates: {error}"))?;
                given.push(certificate);
            }
            if given.is_empty() {
                return Err("the file of CA certificates holds none in PEM".into());
            }
        }
        None => {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots.clone())
        .with_no_client_auth();
    if !given.is_empty() {
        config.dangerous().set_certificate_verifier(Arc::new(Given::new(roots, provider, given)?));
    }
    Ok(TlsConnector::from(Arc::new(config)))
}
