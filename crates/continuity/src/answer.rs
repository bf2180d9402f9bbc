//! What a Coordinator's answer says, as far as the root's key vouches for it.

use x509_parser::{certificate::X509Certificate, pem::Pem, prelude::FromDer as _};

/// A certificate chain that holds together: the root signed the intermediate, whose key is the mesh CA's and signed
/// the leaf. So the root's key vouches for all of it, and nobody can put together pieces of two deployments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The root's public key, SubjectPublicKeyInfo DER.
    pub root_key: Vec<u8>,
    /// The leaf's public key, SubjectPublicKeyInfo DER.
    pub leaf_key: Vec<u8>,
    /// What the leaf says about the workload secret that was released with it; none from Coordinators of upstream.
    pub secret: Option<[u8; 32]>,
    /// Number of the manifest under which the leaf was issued; none from Coordinators of upstream.
    pub generation: Option<u64>,
}

/// Why certificates are not those of one deployment.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AnswerError {
    /// Not a certificate.
    #[error("{what}: {reason}")]
    Malformed {
        /// Which of them.
        what: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// One did not sign another.
    #[error("{signed} is not signed by {by}: these certificates are not of one deployment")]
    NotSigned {
        /// What is signed by another.
        signed: &'static str,
        /// Who should have signed it.
        by: &'static str,
    },
    /// The mesh CA is another one than the intermediate.
    #[error("the mesh CA is not the one that the root vouches for")]
    ForeignMeshCa,
}

impl Answer {
    /// Reads root CA, mesh CA and chain (leaf, then intermediate), each PEM, and checks that they belong together.
    pub fn read(root_pem: &[u8], mesh_pem: &[u8], chain_pem: &[u8]) -> Result<Self, AnswerError> {
        let [root] = blocks("root CA", root_pem)?;
        let [mesh] = blocks("mesh CA", mesh_pem)?;
        let [leaf, intermediate] = blocks("certificate chain", chain_pem)?;
        let root = parse("root CA", &root)?;
        let mesh = parse("mesh CA", &mesh)?;
        let (leaf, intermediate) = (parse("certificate", &leaf)?, parse("intermediate CA", &intermediate)?);
        signed_by("the root CA", &root, "itself", &root)?;
        signed_by("the intermediate CA", &intermediate, "the root CA", &root)?;
        signed_by("the certificate", &leaf, "the intermediate CA", &intermediate)?;
        signed_by("the mesh CA", &mesh, "itself", &mesh)?;
        if mesh.public_key().raw != intermediate.public_key().raw || mesh.subject() != intermediate.subject()
        {
            return Err(AnswerError::ForeignMeshCa);
        }
        let claims = keys::leaf_claims(leaf.as_raw())
            .map_err(|error| AnswerError::Malformed { what: "certificate", reason: error.to_string() })?;
        Ok(Self {
            root_key: root.public_key().raw.to_vec(),
            leaf_key: leaf.public_key().raw.to_vec(),
            secret: claims.secret_commitment,
            generation: claims.generation,
        })
    }
}

fn blocks<const N: usize>(what: &'static str, pem: &[u8]) -> Result<[Vec<u8>; N], AnswerError> {
    let malformed = |reason: String| AnswerError::Malformed { what, reason };
    let found: Vec<Vec<u8>> = Pem::iter_from_buffer(pem)
        .take(N + 1)
        .map(|block| block.map(|block| block.contents))
        .collect::<Result<_, _>>()
        .map_err(|error| malformed(error.to_string()))?;
    let count = found.len();
    found.try_into().map_err(|_| malformed(format!("expected {N} PEM certificates, found {count} or more")))
}

fn parse<'a>(what: &'static str, der: &'a [u8]) -> Result<X509Certificate<'a>, AnswerError> {
    let malformed = |reason: String| AnswerError::Malformed { what, reason };
    let (rest, certificate) = X509Certificate::from_der(der).map_err(|error| malformed(error.to_string()))?;
    if !rest.is_empty() {
        return Err(malformed(format!("{} bytes behind it", rest.len())));
    }
    Ok(certificate)
}

fn signed_by(
    signed: &'static str,
    certificate: &X509Certificate<'_>,
    by: &'static str,
    issuer: &X509Certificate<'_>,
) -> Result<(), AnswerError> {
    let verified = certificate.verify_signature(Some(issuer.public_key()));
    verified.map_err(|_| AnswerError::NotSigned { signed, by })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use keys::{CaKey, LeafRequest, MeshCa, Salt, Seed, SeedEngine, WorkloadSecretId};
    use manifest::Timestamp;

    use super::*;

    const NOW: Timestamp = Timestamp::from_millis(1_800_000_000_000);

    fn deployment(byte: u8) -> (SeedEngine, MeshCa) {
        let (seed, salt) = (Seed::from_bytes(&[byte; 64]).unwrap(), Salt::from_bytes(&[1; 32]).unwrap());
        let engine = SeedEngine::new(seed, salt).unwrap();
        let ca = MeshCa::new(&engine, CaKey::generate().unwrap(), NOW).unwrap();
        (engine, ca)
    }

    fn chain((engine, ca): &(SeedEngine, MeshCa), key: &[u8]) -> String {
        let secret = engine.workload_secret(&WorkloadSecretId::new("web").unwrap()).unwrap();
        let claims = keys::leaf_claim_extensions(Some(&secret), 3, None).unwrap();
        let leaf = LeafRequest {
            spki_der: key,
            sans: &["web".into()],
            workload_secret_id: None,
            claims: &claims,
            lifetime: Duration::from_hours(1),
        };
        let leaf = ca.issue(&leaf, NOW).unwrap();
        format!("{}{}", leaf.pem, ca.public().intermediate_pem)
    }

    #[test]
    fn pieces_of_two_deployments_are_no_answer() {
        let (ours, theirs) = (deployment(1), deployment(2));
        let key = keys::generate_workload_owner_key().unwrap().1;
        let (our_chain, their_chain) = (chain(&ours, &key), chain(&theirs, &key));
        let read = |root: &MeshCa, mesh: &MeshCa, chain: &str| {
            Answer::read(
                root.public().root_pem.as_bytes(),
                mesh.public().mesh_pem.as_bytes(),
                chain.as_bytes(),
            )
        };
        let answer = read(&ours.1, &ours.1, &our_chain).unwrap();
        assert_eq!((&answer.root_key, &answer.leaf_key), (&ours.0.root_key().public_der(), &key));
        assert_eq!(answer.generation, Some(3));
        let secret = ours.0.workload_secret(&WorkloadSecretId::new("web").unwrap()).unwrap();
        assert_eq!(answer.secret, Some(keys::secret_commitment(secret.expose())));

        assert_eq!(read(&ours.1, &theirs.1, &our_chain), Err(AnswerError::ForeignMeshCa));
        assert!(matches!(read(&ours.1, &theirs.1, &their_chain), Err(AnswerError::NotSigned { .. })));
        assert!(matches!(read(&ours.1, &ours.1, &their_chain), Err(AnswerError::NotSigned { .. })));
        let second = our_chain.rfind("-----BEGIN").unwrap();
        let mixed =
            format!("{}{}", &their_chain[..their_chain.rfind("-----BEGIN").unwrap()], &our_chain[second..]);
        assert!(matches!(read(&ours.1, &ours.1, &mixed), Err(AnswerError::NotSigned { .. })));
        assert!(matches!(read(&ours.1, &ours.1, &our_chain[..second]), Err(AnswerError::Malformed { .. })));
        assert!(Answer::read(b"", b"", b"").is_err());
    }
}
