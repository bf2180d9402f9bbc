//! The transit engine's rules: a workload may use the keys that are named like its workload secret, and no
//! others, and only while its certificate is one of the manifest in force.

use std::{sync::Arc, time::Duration};

use actors::Active;
use keys::{IssuedCert, KeyError, SeedEngine, WorkloadSecretId};
use manifest::{PolicyHash, Role, Timestamp};
use storage_schema::EventStore;
use zeroize::Zeroizing;

use super::{failure::Failure, handles::Desk, standing::Current};

/// Who is at the other end of a connection, by its certificate.
#[derive(Clone)]
pub(crate) struct TransitClient {
    /// The workload secret that its certificate names.
    secret_id: Option<WorkloadSecretId>,
    /// What was in force when its certificate was checked.
    active: Arc<Active>,
    /// Until when its certificate is valid.
    until: Timestamp,
}

impl TransitClient {
    /// The holder of a certificate that was verified against the mesh CA of `current`.
    pub(crate) fn new(leaf: &[u8], current: &Current) -> Result<Self, KeyError> {
        let (secret_id, until) = (keys::workload_secret_id_of(leaf)?, keys::valid_until(leaf)?);
        Ok(Self { secret_id, active: Arc::clone(current), until })
    }
}

/// The keys of one name, for one request. [`Desk::transit_keys`] is the only way to get them.
pub(crate) struct TransitKeys {
    engine: Arc<SeedEngine>,
    name: WorkloadSecretId,
}

impl TransitKeys {
    pub(crate) fn seal(
        &self,
        version: u32,
        plain: &[u8],
        associated_data: &[u8],
    ) -> Result<Vec<u8>, KeyError> {
        self.engine.transit_key(&self.name, version)?.seal(plain, associated_data)
    }

    /// `Ok(None)`: it was made with another key or other associated data.
    pub(crate) fn open(
        &self,
        version: u32,
        sealed: &[u8],
        associated_data: &[u8],
    ) -> Result<Option<Zeroizing<Vec<u8>>>, KeyError> {
        let key = self.engine.transit_key(&self.name, version)?;
        Ok(key.open(sealed, associated_data).ok())
    }

    #[cfg(test)]
    pub(crate) fn of(engine: SeedEngine, name: &str) -> Self {
        Self { engine: Arc::new(engine), name: WorkloadSecretId::new(name).unwrap() }
    }
}

impl<L: EventStore> Desk<L> {
    /// What the transit engine's own side of a handshake is made with.
    pub(crate) fn current_for_transit(&self) -> Result<Current, Failure> {
        self.current()
    }

    /// Whether the transit engine serves nobody now.
    pub(crate) fn is_sealed(&self) -> bool {
        self.current().is_err()
    }

    /// The keys of that name, if the client's certificate is of the manifest in force and names them.
    pub(crate) fn transit_keys(
        &self,
        client: &TransitClient,
        name: WorkloadSecretId,
        now: Timestamp,
    ) -> Result<TransitKeys, Failure> {
        let current = self.current()?;
        if now > client.until {
            let text = "the certificate of this connection has expired: connect again, with a new one";
            return Err(Failure::Denied(text.into()));
        }
        if current.ca.mesh_der() != client.active.ca.mesh_der() {
            let text = "the manifest was changed since this connection was made: connect again, with a new \
                        certificate";
            return Err(Failure::Denied(text.into()));
        }
        if client.secret_id.as_ref() == Some(&name) {
            return Ok(TransitKeys { engine: Arc::clone(&current.engine), name });
        }
        let found = client.secret_id.as_ref().map_or("none", WorkloadSecretId::as_str);
        Err(Failure::Denied(format!(
            "permission denied: this certificate is for the workload secret id {found:?}, the key is {:?}",
            name.as_str()
        )))
    }

    /// A certificate for the transit engine's own side, with the names of this Coordinator's manifest entry.
    pub(crate) async fn transit_certificate(
        &self,
        current: &Current,
        own_policy: &PolicyHash,
        spki_der: Vec<u8>,
        lifetime: Duration,
    ) -> Result<IssuedCert, Failure> {
        let policies = &current.manifest.policies;
        let any = || policies.values().find(|entry| entry.role == Role::Coordinator);
        let own = policies.get(own_policy).or_else(any);
        let sans = own.map(|entry| entry.sans.clone()).unwrap_or_default();
        self.secrets.service_certificate(current, "transit", sans, spki_der, lifetime).await
    }
}
