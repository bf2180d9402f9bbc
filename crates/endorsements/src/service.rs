//! Completing evidence, and keeping what is known fresh.

use std::{
    collections::{BTreeMap, HashMap},
    hash::{BuildHasher as _, RandomState},
    io,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use attestation::{
    Anchors, Endorsed, Evidence, EvidenceOid, PlatformId, ReportKey, SnpEvidence, Tcb, TdxCollateral,
    TdxEvidence, VlekId,
};
use manifest::{SnpProduct, Timestamp};

use crate::{
    Fetcher,
    bundle::WatchedBundle,
    store::{Entry, Limits, Name, PutError, Store, Validity},
};

/// How far a completion may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// What is known already. Does not block.
    Memory,
    /// The mirror and the vendors' services. Blocks for seconds.
    Network,
}

/// Evidence with what could be added to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Completed {
    /// The evidence.
    pub evidence: Evidence,
    /// What it lacks all the same, and why; the verifier will refuse it for that.
    pub lacking: Vec<String>,
}

/// What a refresh did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Refreshed {
    /// Fetched anew.
    pub renewed: Vec<Name>,
    /// Not to be had, and why.
    pub failed: Vec<String>,
}

/// Keeps endorsements and completes evidence with them.
pub struct Endorsements {
    store: Store,
    fetcher: Option<Fetcher>,
    /// One question at a time for each name: a thousand pods of one chip ask once.
    asking: Mutex<HashMap<Name, Arc<Mutex<()>>>>,
    jitter: RandomState,
    bundle: Option<WatchedBundle>,
}

impl Endorsements {
    /// Endorsements in a directory, or in memory only. Without a fetcher nothing is ever asked for.
    pub fn open(directory: Option<PathBuf>, anchors: Anchors, fetcher: Option<Fetcher>) -> io::Result<Self> {
        let store = Store::open(directory, anchors, Limits::USUAL)?;
        Ok(Self { store, fetcher, asking: Mutex::default(), jitter: RandomState::new(), bundle: None })
    }

    /// Takes in a bundle now, and at each refresh after it changed. An error now is one: who names a file means it.
    pub(crate) fn watch_bundle(&mut self, path: PathBuf) -> io::Result<()> {
        let bundle = WatchedBundle::new(path);
        bundle.take_in(self)?;
        self.bundle = Some(bundle);
        Ok(())
    }

    /// Nothing known, nothing asked for.
    pub fn none() -> Self {
        // Without a directory nothing can fail.
        match Self::open(None, Anchors::vendors(), None) {
            Ok(endorsements) => endorsements,
            Err(error) => unreachable!("memory only: {error}"),
        }
    }

    /// Everything that is kept.
    pub fn entries(&self) -> Arc<BTreeMap<Name, Entry>> {
        self.store.all()
    }

    /// Verifies an endorsement and keeps it.
    pub fn put(&self, name: &Name, bytes: Vec<u8>) -> Result<Entry, PutError> {
        self.store.put(name, bytes)
    }

    /// Adds what evidence lacks, and replaces what is older than what is known.
    pub fn complete(&self, evidence: Evidence, now: Timestamp, reach: Reach) -> Completed {
        let mut lacking = Vec::new();
        let endorsed = Endorsed::of(&evidence);
        let document = match endorsed.filter(|endorsed| !self.store.anchors().are_strangers_to(endorsed)) {
            Some(Endorsed::Snp { evidence, products, key }) => {
                self.complete_snp(evidence, &products, &key, now, reach, &mut lacking)
            }
            Some(Endorsed::Tdx { evidence, platform }) => {
                self.complete_tdx(evidence, platform, now, reach, &mut lacking)
            }
            None => None,
        };
        let evidence = match document {
            Some(document) => Evidence { document, ..evidence },
            None => evidence,
        };
        Completed { evidence, lacking }
    }

    /// `None`: nothing to add.
    fn complete_snp(
        &self,
        mut evidence: SnpEvidence,
        products: &[SnpProduct],
        key: &ReportKey,
        now: Timestamp,
        reach: Reach,
        lacking: &mut Vec<String>,
    ) -> Option<Vec<u8>> {
        let mut changed = false;
        let brought = self.store.anchors().brought_key(&evidence, products, key);
        let mut product = brought.or(if let &[only] = products { Some(only) } else { None });
        match (brought, key) {
            (Some(product), ReportKey::Provider(_)) => self.keep_vlek(product, &evidence.vlek),
            (Some(_), ReportKey::Chip(_)) => {}
            // What came along is of no use to this report: the right one replaces it.
            (None, ReportKey::Chip(ids)) => {
                let found =
                    ids.iter().find_map(|id| Some((id, self.find(Name::Vcek(id.clone()), now, reach)?)));
                match (found, ids.as_slice()) {
                    (Some((id, entry)), _) => {
                        evidence.vcek = entry.bytes.to_vec();
                        product = Some(id.product);
                        changed = true;
                    }
                    (None, [first, ..]) => lacking.push(format!("the certificate of chip {first}")),
                    // A chip that hides its name: nobody can ask for its certificate.
                    (None, []) => {}
                }
            }
            (None, ReportKey::Provider(firmware)) => match self.find_vlek(&evidence, firmware) {
                Some((id, entry)) => {
                    evidence.vlek = entry.bytes.to_vec();
                    product = Some(id.product);
                    changed = true;
                }
                None => lacking.push("the certificate of the provider's key (VLEK)".to_owned()),
            },
        }
        let Some(product) = product else { return changed.then(|| evidence.to_protobuf().ok()).flatten() };
        let name = Name::Crl(product);
        // A list that came along and is new is worth keeping; one that is nobody's is left to the verifier.
        if let Some(crl) = &evidence.crl {
            match self.offer(&name, crl) {
                Ok(()) | Err(PutError::Older { .. } | PutError::Io { .. }) => {}
                Err(_) => return changed.then(|| evidence.to_protobuf().ok()).flatten(),
            }
        }
        let found = self.find(name.clone(), now, reach);
        if found.as_ref().is_some_and(|entry| expired(entry, now)) {
            lacking.push(format!("a current {name}"));
        }
        match found {
            Some(entry) if evidence.crl.as_deref() != Some(&*entry.bytes) => {
                evidence.crl = Some(entry.bytes.to_vec());
                changed = true;
            }
            Some(_) => {}
            None if evidence.crl.is_none() => lacking.push(format!("{name}, AMD's revocation list")),
            None => {}
        }
        changed.then(|| evidence.to_protobuf().ok()).flatten()
    }

    /// A provider's certificate that came with a report which its key signed serves the reports that come
    /// without one. Who keeps it has verified AMD's signature on it.
    fn keep_vlek(&self, product: SnpProduct, der: &[u8]) {
        if let Ok(id) = self.store.anchors().identify_vlek(product, der) {
            let _ = self.offer(&Name::Vlek(id), der);
        }
    }

    /// The kept certificate of the key that signed this report. Providers' names stand in no report, so
    /// those of its firmware are tried: a fleet has one or two.
    fn find_vlek(&self, evidence: &SnpEvidence, firmware: &[(SnpProduct, Tcb)]) -> Option<(VlekId, Entry)> {
        let entries = self.entries();
        let found = entries.iter().find_map(|(name, entry)| match name {
            Name::Vlek(id) if firmware.contains(&(id.product, id.tcb)) => {
                attestation::signs(&entry.bytes, evidence).then(|| (id.clone(), entry.clone()))
            }
            _ => None,
        });
        found.inspect(|(_, entry)| self.store.note_use(entry))
    }

    fn complete_tdx(
        &self,
        mut evidence: TdxEvidence,
        platform: PlatformId,
        now: Timestamp,
        reach: Reach,
        lacking: &mut Vec<String>,
    ) -> Option<Vec<u8>> {
        let name = Name::Collateral(platform);
        if let Some(collateral) = &evidence.collateral {
            match self.offer(&name, collateral) {
                Ok(()) | Err(PutError::Older { .. } | PutError::Io { .. }) => {}
                Err(_) => return None,
            }
        }
        let found = self.find(name.clone(), now, reach);
        if found.as_ref().is_some_and(|entry| expired(entry, now)) {
            lacking.push(format!("a current {name}"));
        }
        match found {
            Some(entry) if evidence.collateral.as_deref() != Some(&*entry.bytes) => {
                evidence.collateral = Some(entry.bytes.to_vec());
                evidence.to_protobuf().ok()
            }
            Some(_) => None,
            None => {
                if evidence.collateral.is_none() {
                    lacking.push(format!("{name}, Intel's collateral"));
                }
                None
            }
        }
    }

    /// Takes note of what came with evidence. What is known byte for byte is not verified again: that is
    /// nearly all of it, and would cost as much as the evidence.
    fn offer(&self, name: &Name, bytes: &[u8]) -> Result<(), PutError> {
        if self.store.get(name).is_some_and(|known| *known.bytes == *bytes) {
            return Ok(());
        }
        self.store.put(name, bytes.to_vec()).map(drop)
    }

    /// What is known and current; or asked for; or what is known and expired, which a manifest's grace
    /// may still accept.
    fn find(&self, name: Name, now: Timestamp, reach: Reach) -> Option<Entry> {
        let known = self.store.get(&name);
        let current = |entry: &Entry| !expired(entry, now);
        if reach == Reach::Memory || known.as_ref().is_some_and(current) {
            return known;
        }
        let turn = {
            let mut asking = self.asking.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(asking.entry(name.clone()).or_default())
        };
        let found = {
            let _turn = turn.lock().unwrap_or_else(PoisonError::into_inner);
            let known = self.store.get(&name);
            if known.as_ref().is_some_and(current) { known } else { self.renew(&name).ok().or(known) }
        };
        self.asking.lock().unwrap_or_else(PoisonError::into_inner).remove(&name);
        found
    }

    /// Asks for an endorsement and keeps it.
    fn renew(&self, name: &Name) -> Result<Entry, String> {
        let fetcher = self.fetcher.as_ref().ok_or("offline")?;
        let bytes = fetcher.fetch(name).map_err(|error| error.to_string());
        let kept = bytes.and_then(|bytes| self.store.put(name, bytes).map_err(|error| error.to_string()));
        match &kept {
            Ok(_) => tracing::info!(%name, "endorsement fetched"),
            Err(error) => tracing::warn!(%name, %error, "endorsement not fetched"),
        }
        kept
    }

    /// Asks anew for everything that is past half of its life. Blocks.
    pub fn refresh(&self, now: Timestamp) -> Refreshed {
        let mut refreshed = Refreshed::default();
        if let Some(Err(error)) = self.bundle.as_ref().map(|bundle| bundle.take_in(self)) {
            refreshed.failed.push(error.to_string());
        }
        for (name, entry) in self.entries().iter() {
            let Some(validity) = entry.validity else { continue };
            if now < self.due(name, validity) {
                continue;
            }
            match self.renew(name) {
                Ok(_) => refreshed.renewed.push(name.clone()),
                Err(error) => refreshed.failed.push(format!("{name}: {error}")),
            }
        }
        refreshed
    }

    /// Half of its life, a tenth of it more or less, so that a fleet does not ask all at once.
    pub fn due(&self, name: &Name, validity: Validity) -> Timestamp {
        let life = validity.next_update.as_millis().saturating_sub(validity.this_update.as_millis());
        let tenths = 400 + self.jitter.hash_one(name) % 200;
        validity.this_update.plus(Duration::from_millis(life / 1000 * tenths))
    }

    /// Whether a kind of evidence can be completed here at all.
    pub fn concerns(oid: EvidenceOid) -> bool {
        oid != EvidenceOid::Insecure
    }

    /// Which endorsement some bytes are, if a vendor signed them: for files without a useful name.
    pub fn identify(&self, bytes: &[u8]) -> Option<Name> {
        let anchors = self.store.anchors();
        for product in [SnpProduct::Milan, SnpProduct::Genoa, SnpProduct::Turin] {
            if let Ok(id) = anchors.identify_vcek(product, bytes) {
                return Some(Name::Vcek(id));
            }
            if let Ok(id) = anchors.identify_vlek(product, bytes) {
                return Some(Name::Vlek(id));
            }
            if anchors.verify_crl(product, bytes).is_ok() {
                return Some(Name::Crl(product));
            }
        }
        let collateral = TdxCollateral::from_json(bytes).ok()?;
        let dates = anchors.verify_collateral(&collateral).ok()?;
        let ca = collateral.platform_ca();
        Some(Name::Collateral(PlatformId { fmspc: dates.fmspc, ca }))
    }
}

fn expired(entry: &Entry, now: Timestamp) -> bool {
    entry.validity.is_some_and(|validity| now >= validity.next_update)
}
