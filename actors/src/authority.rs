//! `Authority`: certificates and workload secrets for verified workloads. Signing happens on a
//! pool; nothing leaves before its event is on disk.

use std::{sync::Arc, time::Duration};

use actix::{Actor, Addr, Context, Handler, Message, ResponseFuture, Supervised, SyncArbiter, SyncContext};
use attestation::Claims;
use keys::{ClaimExtension, IssuedCert, KeyError, LeafRequest, WorkloadSecret, WorkloadSecretId};
use manifest::{EvidenceHash, PolicyHash, RequestId, Timestamp};
use storage_schema::{EventStore, Fact};
use tracing::Instrument as _;

use crate::{
    Active, Append, AskError, Clock, Journal, JournalError, Mailbox, Traced,
    supervision::{rebuild_on_panic, survive_panic},
};

/// Issues a certificate for a verified workload.
#[derive(Message)]
#[rtype(result = "Result<IssuedIdentity, IssueError>")]
pub struct IssueMeshCert {
    /// What was in force when the workload was verified.
    pub active: Arc<Active>,
    /// What was verified.
    pub claims: Claims,
    /// The evidence it was verified by, for the auditor.
    pub evidence: Vec<u8>,
    /// The nonce that the evidence answers.
    pub nonce: Vec<u8>,
    /// The HPKE key that the evidence covers, too, where the workload asked over HTTP.
    pub hpke_key: Option<Vec<u8>>,
    /// The key that the evidence is bound to, SubjectPublicKeyInfo DER.
    pub spki_der: Vec<u8>,
    /// Another key that the certificate is for, where the workload asked for that.
    pub certified_key: Option<Vec<u8>>,
    /// How long the certificate shall be valid.
    pub lifetime: Duration,
    /// The request.
    pub request: RequestId,
}

/// Issues a certificate for a service of the Coordinator itself.
#[derive(Message)]
#[rtype(result = "Result<IssuedCert, IssueError>")]
pub struct IssueServiceCert {
    /// What is in force.
    pub active: Arc<Active>,
    /// What the certificate is for.
    pub service: &'static str,
    /// Names in it; at least one DNS name.
    pub sans: Vec<String>,
    /// The service's key, SubjectPublicKeyInfo DER.
    pub spki_der: Vec<u8>,
    /// How long it shall be valid.
    pub lifetime: Duration,
    /// The request.
    pub request: RequestId,
}

/// What a workload gets.
pub struct IssuedIdentity {
    /// Its certificate.
    pub certificate: IssuedCert,
    /// Its secret, if its manifest entry names one.
    pub secret: Option<WorkloadSecret>,
}

/// Why a workload got nothing.
#[derive(Debug, thiserror::Error)]
pub enum IssueError {
    /// Genuine evidence of a workload that nobody allowed.
    #[error("policy {policy} is not in the current manifest (generation {generation}), which lists {listed}")]
    UnknownPolicy {
        /// The workload's policy.
        policy: PolicyHash,
        /// Number of the manifest in force.
        generation: u64,
        /// How many policies it lists.
        listed: usize,
    },
    /// A key operation.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The event was not recorded.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// Another actor is busy or being rebuilt.
    #[error(transparent)]
    Ask(#[from] AskError),
}

/// Issues certificates.
pub struct Authority<S: EventStore, C: Clock + Unpin> {
    journal: Mailbox<Journal<S, C>>,
    signers: Addr<Signers>,
    clock: C,
}

impl<S: EventStore, C: Clock + Unpin + Clone> Authority<S, C> {
    /// An authority with a pool of `threads` signers.
    pub fn new(journal: Mailbox<Journal<S, C>>, clock: C, threads: usize) -> Self {
        Self { journal, signers: SyncArbiter::start(threads, || Signers), clock }
    }
}

impl<S: EventStore, C: Clock + Unpin> Actor for Authority<S, C> {
    type Context = Context<Self>;
}

impl<S: EventStore, C: Clock + Unpin> Supervised for Authority<S, C> {}

impl<S: EventStore, C: Clock + Unpin + Clone> Handler<Traced<IssueMeshCert>> for Authority<S, C> {
    type Result = ResponseFuture<Result<IssuedIdentity, IssueError>>;

    fn handle(&mut self, msg: Traced<IssueMeshCert>, _: &mut Self::Context) -> Self::Result {
        let (journal, signers, clock) = (self.journal.clone(), self.signers.clone(), self.clock.clone());
        let Traced { message: msg, span, .. } = msg;
        let work = async move {
            let now = clock.now();
            let (active, request, evidence) = (Arc::clone(&msg.active), msg.request, msg.evidence.clone());
            let signed = signers.send(Sign { msg, now }).await.map_err(|_| AskError::Restarting)??;
            let append = Append {
                facts: signed.facts,
                blobs: vec![evidence],
                request,
                engine: Arc::clone(&active.engine),
            };
            journal.ask(append).await??;
            Ok(signed.identity)
        };
        let work = survive_panic::<Self, _>(work.instrument(span));
        Box::pin(async { work.await.unwrap_or(Err(AskError::Restarting.into())) })
    }
}

impl<S: EventStore, C: Clock + Unpin + Clone> Handler<Traced<IssueServiceCert>> for Authority<S, C> {
    type Result = ResponseFuture<Result<IssuedCert, IssueError>>;

    fn handle(&mut self, msg: Traced<IssueServiceCert>, _: &mut Self::Context) -> Self::Result {
        let (journal, clock) = (self.journal.clone(), self.clock.clone());
        let Traced { message: msg, span, .. } = msg;
        let work = async move {
            // Rare, and a tenth of a millisecond: not worth the pool.
            let request = LeafRequest {
                spki_der: &msg.spki_der,
                sans: &msg.sans,
                workload_secret_id: None,
                claims: &[],
                lifetime: msg.lifetime,
            };
            let certificate = msg.active.ca.issue(&request, clock.now())?;
            let fact = Fact::ServiceCertificateIssued {
                serial: certificate.serial,
                certificate: certificate.der.clone(),
                service: msg.service.to_owned(),
                transition: msg.active.transition,
            };
            let engine = Arc::clone(&msg.active.engine);
            let append = Append { facts: vec![fact], blobs: Vec::new(), request: msg.request, engine };
            journal.ask(append).await??;
            Ok(certificate)
        };
        let work = survive_panic::<Self, _>(work.instrument(span));
        Box::pin(async { work.await.unwrap_or(Err(AskError::Restarting.into())) })
    }
}

/// One worker of the signing pool.
struct Signers;

impl Actor for Signers {
    type Context = SyncContext<Self>;
}

#[derive(Message)]
#[rtype(result = "Result<Signed, IssueError>")]
struct Sign {
    msg: IssueMeshCert,
    now: Timestamp,
}

struct Signed {
    identity: IssuedIdentity,
    facts: Vec<Fact>,
}

impl Handler<Sign> for Signers {
    type Result = Result<Signed, IssueError>;

    fn handle(&mut self, msg: Sign, ctx: &mut Self::Context) -> Self::Result {
        rebuild_on_panic(ctx, || msg.sign()).unwrap_or(Err(AskError::Restarting.into()))
    }
}

impl Sign {
    fn sign(self) -> Result<Signed, IssueError> {
        let Self { msg, now } = self;
        let (active, claims) = (&msg.active, &msg.claims);
        let policy = claims.policy_hash();
        let entry = active.manifest.policies.get(&policy).ok_or(IssueError::UnknownPolicy {
            policy,
            generation: active.generation,
            listed: active.manifest.policies.len(),
        })?;
        let secret_id = WorkloadSecretId::new(&entry.workload_secret_id);
        let secret = secret_id.as_ref().map(|id| active.engine.workload_secret(id)).transpose()?;
        let mut extensions: Vec<ClaimExtension> =
            claims.extensions().into_iter().map(|(oid, der)| ClaimExtension { oid, der }).collect();
        // The pod holds the secret beside it, and what it is told later, against these.
        extensions.extend(keys::leaf_claim_extensions(secret.as_ref(), active.generation, Some(&policy))?);
        let request = LeafRequest {
            spki_der: msg.certified_key.as_deref().unwrap_or(&msg.spki_der),
            sans: &entry.sans,
            workload_secret_id: secret_id.as_ref(),
            claims: &extensions,
            lifetime: msg.lifetime,
        };
        let certificate = active.ca.issue(&request, now)?;
        let mut facts = vec![Fact::CertificateIssued {
            serial: certificate.serial,
            certificate: certificate.der.clone(),
            policy,
            sans: entry.sans.clone(),
            platform: claims.platform().to_string(),
            evidence: EvidenceHash::of(&msg.evidence),
            tcb: claims.tcb(),
            transition: active.transition,
            nonce: msg.nonce,
            verdict: claims.met_reference().to_owned(),
            hpke_key: msg.hpke_key.unwrap_or_default(),
            attested_key: if msg.certified_key.is_some() { msg.spki_der.clone() } else { Vec::new() },
        }];
        facts.extend(
            secret_id
                .map(|id| Fact::SecretReleased { id: id.as_str().to_owned(), serial: certificate.serial }),
        );
        Ok(Signed { identity: IssuedIdentity { certificate, secret }, facts })
    }
}
