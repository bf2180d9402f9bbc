//! Once more: was this certificate rightly issued?

use std::collections::{HashMap, HashSet};

use anyhow::{Context as _, bail, ensure};
use attestation::{Evidence, Platform, ReportData};
use keys::LogPublicKey;
use manifest::{Manifest, ReplicaId, TransitionHash};
use storage_schema::{Approval, Authorisation, BlobHash, Event, Fact, StreamId};
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// What past decisions are judged by: the manifests, by the transition that brought them into force.
#[derive(Default)]
pub(super) struct Judge {
    manifests: HashMap<TransitionHash, Manifest>,
    /// Mesh CA certificates, DER: one of the manifest, and one of each recovery under it.
    authorities: HashMap<TransitionHash, Vec<Vec<u8>>>,
    /// The transition that is in force.
    in_force: Option<TransitionHash>,
    /// Keys of replicas that evidence vouches for.
    replicas: HashMap<ReplicaId, LogPublicKey>,
    /// Streams that a checkpoint covered before there were any.
    before: HashSet<StreamId>,
}

/// Outcome for one certificate.
#[derive(Debug, PartialEq)]
pub(super) enum Verdict {
    /// Evidence, manifest and certificate agree.
    Repeated,
    /// An event of an older version, which lacks the nonce.
    NotRepeatable,
}

impl Judge {
    /// Takes note of a manifest; `blob` is its content.
    pub(super) fn manifest_set(&mut self, fact: &Fact, blob: Option<&Vec<u8>>) -> anyhow::Result<()> {
        let Fact::ManifestSet { manifest: hash, previous, transition, authorised_by, approvals, .. } = fact
        else {
            return Ok(());
        };
        let blob = blob.with_context(|| format!("the content of manifest {hash} is missing"))?;
        let manifest = Manifest::read(blob)?;
        ensure!(manifest.hash() == *hash, "the content of manifest {hash} is another one");
        let computed = TransitionHash::chain(*previous, *hash);
        ensure!(computed == *transition, "manifest {hash}: its transition is not {transition}");
        let of = || format!("manifest {hash}");
        self.approved(*previous, transition, authorised_by, approvals).with_context(of)?;
        self.manifests.insert(*transition, manifest);
        self.in_force = Some(*transition);
        Ok(())
    }

    /// Judges a replica's key by the evidence that introduced it; `blob` is that.
    pub(super) fn replica_vouched(&mut self, event: &Event, blob: Option<Vec<u8>>) -> anyhow::Result<()> {
        let Fact::ReplicaVouched { key, evidence, platform } = &event.fact else { return Ok(()) };
        let of = || format!("the key of replica {}", event.replica);
        let blob = blob.context("its evidence is missing").with_context(of)?;
        ensure!(
            BlobHash::of(&blob) == BlobHash::from_bytes(*evidence.as_bytes()),
            "{}: another evidence",
            of()
        );
        let manifest = self.in_force.and_then(|transition| self.manifests.get(&transition));
        let manifest = manifest.context("no manifest was in force").with_context(of)?;
        let replica = event.replica.as_bytes();
        attestation::verify_recorded_replica_key(replica, key, (platform, blob), manifest, event.at)
            .with_context(of)?;
        self.replicas.insert(event.replica, LogPublicKey::from_bytes(*key));
        Ok(())
    }

    /// Takes note of streams that a checkpoint covers.
    pub(super) fn checkpoint(&mut self, fact: &Fact) {
        if let Fact::Checkpoint { heads } = fact
            && self.replicas.is_empty()
        {
            self.before.extend(heads.iter().map(|head| head.stream));
        }
    }

    /// Whether a stream that this replica key signed is a replica's. `false`: it is of before replicas signed, so the
    /// log's key alone vouches for it.
    pub(super) fn is_replicas(&self, stream: StreamId, key: Option<LogPublicKey>) -> anyhow::Result<bool> {
        let StreamId::Replica(replica) = stream else { return Ok(!self.replicas.is_empty()) };
        match (self.replicas.get(&replica), key) {
            (Some(vouched), Some(key)) if *vouched == key => Ok(true),
            (None, _) if self.replicas.is_empty() || self.before.contains(&stream) => Ok(false),
            _ => bail!(
                "stream {stream}: no evidence vouches for the replica that signed it. Whoever owns shares of the seed could \
                 have written it"
            ),
        }
    }

    /// Whether the signatures that are said to permit a change do so. A key of a connection left none.
    fn approved(
        &self,
        previous: Option<TransitionHash>,
        transition: &TransitionHash,
        right: &Authorisation,
        approvals: &[Approval],
    ) -> anyhow::Result<()> {
        let Some(old) = previous.and_then(|previous| self.manifests.get(&previous)) else { return Ok(()) };
        let message = transition.to_string();
        let mut signed = std::collections::BTreeSet::new();
        for Approval { owner, signature } in approvals {
            let full = old.workload_owner_pub_keys.iter().find(|key| key.digest() == *owner);
            let is_theirs = match full {
                Some(key) => keys::verify_ecdsa_sha256(key.der(), message.as_bytes(), signature).is_ok(),
                None => {
                    let digests = &old.workload_owner_key_digests;
                    keys::recover_signer(message.as_bytes(), signature, digests) == Some(*owner)
                }
            };
            ensure!(is_theirs, "the signature of {owner} is not a workload owner's over this change");
            signed.insert(owner);
        }
        // Changes of before signatures were recorded have none, and need one at most.
        let needed = old.workload_owners_needed();
        let enough = signed.len() >= needed || needed == 1;
        ensure!(enough, "{} signatures, but {needed} workload owners had to sign", signed.len());
        ensure!(!matches!(right, Authorisation::First), "anyone set it, although there was one before");
        Ok(())
    }

    /// Whether a certificate that the Coordinator gave itself is by the authority of its time.
    pub(super) fn service_certificate_issued(&self, fact: &Fact) -> anyhow::Result<()> {
        let Fact::ServiceCertificateIssued { serial, certificate, transition, .. } = fact else {
            return Ok(());
        };
        let (_, parsed) = X509Certificate::from_der(certificate)
            .with_context(|| format!("certificate {serial}: not X.509"))?;
        let signed = self.is_signed(&parsed, transition);
        ensure!(signed, "certificate {serial}: no mesh CA of the manifest in force signed it");
        Ok(())
    }

    /// Takes note of a certificate authority that began to issue.
    pub(super) fn authority(&mut self, fact: &Fact) {
        if let Fact::ManifestSet { transition, mesh_ca, .. }
        | Fact::RecoveredByUser { transition, mesh_ca, .. } = fact
        {
            self.authorities.entry(*transition).or_default().push(mesh_ca.clone());
        }
    }

    /// Whether one of the authorities of that time signed the certificate; the last one first.
    fn is_signed(&self, certificate: &X509Certificate<'_>, transition: &TransitionHash) -> bool {
        let authorities = self.authorities.get(transition).map(Vec::as_slice).unwrap_or_default();
        authorities.iter().rev().any(|der| {
            let parsed = X509Certificate::from_der(der);
            parsed.is_ok_and(|(_, issuer)| certificate.verify_signature(Some(issuer.public_key())).is_ok())
        })
    }

    /// Repeats the verification of an issued certificate.
    pub(super) fn certificate_issued(
        &self,
        event: &Event,
        blob: Option<&Vec<u8>>,
    ) -> anyhow::Result<Verdict> {
        let Fact::CertificateIssued {
            serial,
            certificate,
            policy,
            evidence,
            transition,
            nonce,
            sans,
            platform,
            attested_key,
            hpke_key,
            ..
        } = &event.fact
        else {
            return Ok(Verdict::NotRepeatable);
        };
        let of = || format!("certificate {serial}");
        let blob = blob.context("its evidence is missing").with_context(of)?;
        let hash = BlobHash::from_bytes(*evidence.as_bytes());
        ensure!(BlobHash::of(blob) == hash, "certificate {serial}: its evidence is not {hash}");
        let (_, parsed) = X509Certificate::from_der(certificate).context("not X.509").with_context(of)?;
        let found = parsed.tbs_certificate.raw_serial();
        let found = &found[found.iter().take_while(|byte| **byte == 0).count()..];
        let expected = serial.as_bytes();
        let expected = &expected[expected.iter().take_while(|byte| **byte == 0).count()..];
        ensure!(found == expected, "certificate {serial}: it says the serial number {}", hex::encode(found));
        let signed = self.is_signed(&parsed, transition);
        ensure!(signed, "certificate {serial}: no mesh CA of the manifest in force signed it");
        let manifest = self.manifests.get(transition).context("its manifest is missing").with_context(of)?;
        let entry = manifest.policies.get(policy).with_context(|| {
            format!("certificate {serial}: policy {policy} is not in the manifest that was in force")
        })?;
        ensure!(entry.sans == *sans, "certificate {serial}: the manifest says the names {:?}", entry.sans);
        if nonce.is_empty() {
            return Ok(Verdict::NotRepeatable);
        }
        // A certificate that was asked for with a certification request has a key of its own.
        let bound_key = if attested_key.is_empty() { parsed.public_key().raw } else { attested_key };
        let bound = match hpke_key.as_slice() {
            [] => ReportData::bind(bound_key, nonce),
            hpke_key => ReportData::mesh_cert(bound_key, hpke_key, nonce),
        };
        let platform = Platform::ALL.into_iter().find(|known| known.to_string() == *platform);
        let platform = platform.context("its platform is not known").with_context(of)?;
        let evidence = Evidence { oid: platform.evidence_oid(), document: blob.clone() };
        let claims =
            attestation::verify(&evidence, &bound, &manifest.reference_values, event.at).with_context(of)?;
        let found = claims.policy_hash();
        ensure!(found == *policy, "certificate {serial}: the evidence is of policy {found}, not {policy}");
        Ok(Verdict::Repeated)
    }
}
