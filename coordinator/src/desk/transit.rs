//! The transit engine's rules: a workload may use the keys that are named like its workload secret, and no
//! others, and only while its certificate is one of the manifest in force.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use actors::{Active, Append};
use continuity::PeerIdentity;
use keys::{IssuedCert, KeyError, SeedEngine, WorkloadSecretId};
use manifest::{PolicyHash, Role, SerialNumber, Timestamp};
use storage_schema::EventStore;
use zeroize::Zeroizing;

use super::{
    failure::Failure,
    handles::Desk,
    request::request_id,
    standing::Current,
    transit_uses::{ToRecord, TransitUses, Uses},
};

/// Who is at the other end of a connection, by its certificate.
#[derive(Clone)]
pub(crate) struct TransitClient {
    /// The workload secret that its certificate names.
    secret_id: Option<WorkloadSecretId>,
    /// What was in force when its certificate was checked.
    active: Arc<Active>,
    /// Until when its certificate is valid.
    until: Timestamp,
    /// Its certificate's number.
    serial: SerialNumber,
    /// Whose certificate it is.
    peer: PeerIdentity,
}

impl TransitClient {
    /// The holder of a certificate that was verified against the mesh CA of `current`.
    pub(crate) fn new(leaf: &[u8], current: &Current) -> Result<Self, KeyError> {
        let (secret_id, until) = (keys::workload_secret_id_of(leaf)?, keys::valid_until(leaf)?);
        let peer = PeerIdentity::of(leaf)?;
        let serial = keys::serial_number_of(leaf)?;
        Ok(Self { secret_id, active: Arc::clone(current), until, serial, peer })
    }
}

/// The keys of one name, for one request. [`Desk::transit_keys`] is the only way to get them, and after use they are
/// given back ([`Desk::transit_used`]).
pub(crate) struct TransitKeys {
    engine: Arc<SeedEngine>,
    name: WorkloadSecretId,
    caller: SerialNumber,
    uses: Arc<TransitUses>,
    /// What this request did, by version.
    used: Mutex<BTreeMap<u32, Uses>>,
}

impl TransitKeys {
    pub(crate) fn seal(
        &self,
        version: u32,
        plain: &[u8],
        associated_data: &[u8],
    ) -> Result<Vec<u8>, Failure> {
        if self.uses.is_spent(&self.name, version) {
            return Err(Failure::Denied(format!(
                "version {version} of the key {:?} has encrypted as many messages as it may: encrypt with another \
                 key_version, and rewrap what is to be kept",
                self.name.as_str()
            )));
        }
        let key = self.engine.transit_key(&self.name, version).map_err(fault)?;
        let sealed = key.seal(plain, associated_data).map_err(fault)?;
        self.count(version, |uses| uses.encrypted += 1);
        Ok(sealed)
    }

    /// `Ok(None)`: it was made with another key or other associated data.
    pub(crate) fn open(
        &self,
        version: u32,
        sealed: &[u8],
        associated_data: &[u8],
    ) -> Result<Option<Zeroizing<Vec<u8>>>, Failure> {
        let key = self.engine.transit_key(&self.name, version).map_err(fault)?;
        let opened = key.open(sealed, associated_data).ok();
        self.count(version, |uses| match opened {
            Some(_) => uses.decrypted += 1,
            None => uses.failed += 1,
        });
        Ok(opened)
    }

    fn count(&self, version: u32, count: impl FnOnce(&mut Uses)) {
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        count(used.entry(version).or_default());
    }

    #[cfg(test)]
    pub(crate) fn of(engine: SeedEngine, name: &str) -> Self {
        Self {
            engine: Arc::new(engine),
            name: WorkloadSecretId::new(name).unwrap(),
            caller: SerialNumber::from_bytes([1; 16]),
            uses: Arc::default(),
            used: Mutex::default(),
        }
    }
}

fn fault(error: KeyError) -> Failure {
    Failure::Fault(error.to_string())
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
        let evicted = self.peers().and_then(|peers| peers.list.still_counts(&client.peer).err());
        if let Some(reason) = evicted {
            return Err(Failure::Denied(reason.to_string()));
        }
        if client.secret_id.as_ref() == Some(&name) {
            return Ok(TransitKeys {
                engine: Arc::clone(&current.engine),
                name,
                caller: client.serial,
                uses: Arc::clone(&self.transit_uses),
                used: Mutex::default(),
            });
        }
        let found = client.secret_id.as_ref().map_or("none", WorkloadSecretId::as_str);
        Err(Failure::Denied(format!(
            "permission denied: this certificate is for the workload secret id {found:?}, the key is {:?}",
            name.as_str()
        )))
    }

    /// Counts what a request did with its keys. Who did so for the first time in a while is on record when this returns,
    /// or the request failed.
    pub(crate) async fn transit_used(&self, keys: TransitKeys, now: Timestamp) -> Result<(), Failure> {
        let TransitKeys { engine, name, caller, uses, used } = keys;
        let used = used.into_inner().unwrap_or_else(PoisonError::into_inner);
        self.record_uses(uses.note(&name, caller, used, now), engine).await
    }

    /// Records what was counted in intervals that are over, or up to now.
    pub(crate) async fn record_transit_uses(&self, now: Timestamp, all: bool) -> Result<(), Failure> {
        let active = self.in_force()?;
        self.record_uses(self.transit_uses.due(now, all), Arc::clone(&active.engine)).await
    }

    async fn record_uses(&self, uses: ToRecord, engine: Arc<SeedEngine>) -> Result<(), Failure> {
        if uses.is_empty() {
            return Ok(());
        }
        let append = Append { facts: uses.facts(), blobs: Vec::new(), request: request_id()?, engine };
        let recorded = match self.journal.ask(append).await {
            Ok(recorded) => recorded.map_err(Failure::from),
            Err(error) => Err(error.into()),
        };
        match &recorded {
            Ok(_) => self.transit_uses.confirm(&uses),
            Err(_) => self.transit_uses.restore(uses),
        }
        recorded
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
