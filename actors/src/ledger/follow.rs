//! A replica follows what others write to the control stream, and takes over the secrets of a peer.
//!
//! Each change wraps its mesh CA key under the replica secret, so whoever held the secret before the
//! change follows it from the log alone. Whoever cannot open it (the change made a fresh secret, because
//! other machines may be Coordinators now, or an owner recovered the seed elsewhere) needs a peer again.
//! Source: docs/replicas.md, "Keys that follow the log".

use std::sync::Arc;

use keys::{CaKey, LogPublicKey, MeshCa, ReplicaSecret, SeedEngine};
use manifest::{RequestId, TransitionHash};
use storage_schema::{AppendError, Event, EventStore, Fact, Head, LogError, StoreError, open_signed_head};

use super::{
    actor::Ledger,
    messages::{
        Adopt, AdoptError, Follow, LedgerError, RecoverError, SetManifest, SetManifestError, SetManifestReply,
    },
    state::Phase,
    waiting::Unsure,
};
use crate::Clock;

/// How often a command is decided anew because another replica was faster.
const TRIES: usize = 16;

/// How many changes without an answer are remembered.
const MOST_UNSURE: usize = 16;

/// An error that may mean that another replica was faster.
pub(super) trait Conflict: From<LedgerError> {
    fn fault(&self) -> Option<&LedgerError>;

    /// A refusal that another replica's change, not read yet, could be the reason of.
    fn is_stale(&self) -> bool {
        false
    }

    fn is_conflict(&self) -> bool {
        matches!(self.fault(), Some(LedgerError::Append(AppendError::Store(StoreError::IndexTaken { .. }))))
    }
}

impl Conflict for LedgerError {
    fn fault(&self) -> Option<&LedgerError> {
        Some(self)
    }
}

macro_rules! conflict {
    ($($error:ident),*) => {$(
        impl Conflict for $error {
            fn fault(&self) -> Option<&LedgerError> {
                match self {
                    Self::Fault(fault) => Some(fault),
                    _ => None,
                }
            }
        }
    )*};
}
conflict!(RecoverError, AdoptError);

impl Conflict for SetManifestError {
    fn fault(&self) -> Option<&LedgerError> {
        match self {
            Self::Fault(fault) => Some(fault),
            _ => None,
        }
    }

    fn is_stale(&self) -> bool {
        matches!(self, Self::StaleTransition { .. })
    }
}

/// Keys that open the next change.
struct Held {
    engine: Arc<SeedEngine>,
    secret: ReplicaSecret,
    /// What the last change that was read brought.
    mesh_key: Option<CaKey>,
}

impl<S: EventStore, C: Clock> Ledger<S, C> {
    /// Runs a command on all that is in the log, again whenever another replica was faster.
    pub(super) fn on_the_latest<R, E: Conflict>(
        &mut self,
        command: impl Fn(&mut Self) -> Result<R, E>,
    ) -> Result<R, E> {
        let mut tries = 0;
        loop {
            let is_open = !self.untaken.is_empty() || !self.state.unjudged().is_empty();
            if self.log.is_poisoned() || is_open {
                self.read_on().map_err(E::from)?;
            }
            match command(self) {
                Err(error) if error.is_conflict() && tries < TRIES => tries += 1,
                // Stale by what is known here; only the store tells whether that is the latest.
                Err(error) if error.is_stale() && tries < TRIES => {
                    let before = self.log.head().size;
                    self.read_on().map_err(E::from)?;
                    if self.log.head().size == before {
                        return Err(error);
                    }
                    tries += 1;
                }
                outcome => return outcome,
            }
        }
    }

    pub(super) fn follow(&mut self, _: &Follow) -> Result<u64, LedgerError> {
        self.read_on()?;
        Ok(self.log.head().size)
    }

    /// Reads on and takes over what is in force then.
    pub(super) fn read_on(&mut self) -> Result<(), LedgerError> {
        let before = self.log.head().size;
        let (state, untaken) = (&mut self.state, &mut self.untaken);
        let outcome = self.log.catch_up(|_, event| {
            state.apply(&event);
            if is_change(&event) {
                untaken.push(event);
            }
        });
        self.judge_introduced()?;
        // What was read before an error counts all the same.
        if self.log.head().size != before || !self.untaken.is_empty() {
            self.take_over()?;
        }
        outcome.map_err(LedgerError::from)
    }

    /// Takes over what was read. If that fails, say because the store does not give a manifest just now, it is
    /// not known to be in force, and tried again with the next look: an old manifest must not stay.
    fn take_over(&mut self) -> Result<(), LedgerError> {
        let changes = self.untaken.clone();
        let phase = self.phase();
        if changes.is_empty() {
            self.publish(phase);
            return Ok(());
        }
        let mut held = match &phase {
            Phase::Active(active) => Some(Held {
                engine: Arc::clone(&active.engine),
                secret: active.replica_secret.clone(),
                mesh_key: None,
            }),
            Phase::Uninitialised | Phase::NeedsRecovery => None,
        };
        for event in &changes {
            held = self.open_change(event, held)?;
        }
        let Some(Held { engine, secret, mesh_key: Some(mesh_key) }) = held else {
            tracing::warn!("a change that this replica has no keys for; asking its peers");
            self.untaken.clear();
            self.publish(Phase::NeedsRecovery);
            return Ok(());
        };
        self.put_in_force(engine, mesh_key, secret)?;
        self.untaken.clear();
        let transition = self.state.latest().map(|entry| entry.transition.to_string());
        tracing::info!(transition = transition.unwrap_or_default(), "followed a change of the log");
        Ok(())
    }

    /// Makes a change: in the log first, in force then. Whatever fails on the way, the keys are kept: a change that
    /// may be in the log, or is there and could not be put in force, is tried again with each look.
    pub(super) fn commit_change(
        &mut self,
        facts: Vec<Fact>,
        keys: Unsure,
        transition: TransitionHash,
        ca: MeshCa,
    ) -> Result<(), LedgerError> {
        let committed = self.commit(facts, keys.request, &keys.engine);
        let events = match committed {
            Ok(events) => events,
            Err(error) => {
                self.keep_unsure(keys);
                return Err(error);
            }
        };
        let next = keys.secret.clone().ratchet(&transition);
        let active = next
            .map_err(LedgerError::from)
            .and_then(|next| self.activate(Arc::clone(&keys.engine), ca, next));
        if let Some(shares) = &keys.shares {
            self.first_shares = Some((keys.engine.log_key().public(), shares.clone()));
        }
        match active {
            Ok(Some(active)) => self.publish(Phase::Active(Arc::new(active))),
            Ok(None) => {}
            Err(error) => {
                self.keep_unsure(keys);
                self.untaken.extend(events.into_iter().filter(is_change));
                return Err(error);
            }
        }
        Ok(())
    }

    /// Keeps the keys of a change that may be in the log.
    pub(super) fn keep_unsure(&mut self, unsure: Unsure) {
        if self.unsure.len() >= MOST_UNSURE {
            self.unsure.remove(0);
        }
        self.unsure.push(unsure);
    }

    /// The keys after a change, if those before it, or those it was made with here, open it.
    fn open_change(&self, event: &Event, held: Option<Held>) -> Result<Option<Held>, LedgerError> {
        let (Fact::ManifestSet { transition, wrapped_mesh_key: wrapped, .. }
        | Fact::RecoveredByUser { transition, wrapped_mesh_key: wrapped, .. }) = &event.fact
        else {
            return Ok(held);
        };
        let is_own = |own: &&Unsure| event.replica == self.replica && event.request == own.request;
        let own = self.unsure.iter().rfind(is_own);
        let keys = match own {
            Some(own) => Some((Arc::clone(&own.engine), own.secret.clone())),
            None => held.map(|held| (held.engine, held.secret)),
        };
        let Some((engine, secret)) = keys else { return Ok(None) };
        match secret.unwrap_key(wrapped, transition) {
            Ok(mesh_key) => {
                Ok(Some(Held { engine, secret: secret.ratchet(transition)?, mesh_key: Some(mesh_key) }))
            }
            Err(_) => Ok(None), // a fresh secret, which a peer has
        }
    }

    /// Publishes what the log says is in force, with these keys.
    fn put_in_force(
        &mut self,
        engine: Arc<SeedEngine>,
        mesh_key: CaKey,
        secret: ReplicaSecret,
    ) -> Result<(), LedgerError> {
        let Some(record) = self.state.ca() else { return Ok(()) };
        let ca = MeshCa::from_log(&engine, mesh_key, &record.root, &record.mesh, self.clock.now())?;
        if let Some(active) = self.activate(engine, ca, secret)? {
            self.publish(Phase::Active(Arc::new(active)));
        }
        Ok(())
    }

    /// The answer to the first manifest once more, if the first answer was lost on its way from the store or to the
    /// caller: nobody can make its seed shares again. A caller who names what is in force wants a change.
    pub(super) fn first_manifest_again(
        &self,
        cmd: &SetManifest,
    ) -> Result<Option<SetManifestReply>, SetManifestError> {
        let Phase::Active(active) = self.phase() else { return Ok(None) };
        let is_first = active.generation == 1 && active.manifest.hash() == cmd.manifest.hash();
        let log_key = active.engine.log_key().public();
        let unsure =
            self.unsure.iter().filter_map(|own| Some((own.engine.log_key().public(), own.shares.as_ref()?)));
        let given = self.first_shares.iter().filter(|_| cmd.previous.is_none());
        let given = given.map(|(key, shares)| (*key, shares));
        let own = unsure.chain(given).find(|(key, _)| is_first && *key == log_key);
        let Some((_, shares)) = own else { return Ok(None) };
        let public = active.ca.public();
        Ok(Some(SetManifestReply {
            transition: active.transition,
            root_pem: public.root_pem.clone(),
            mesh_pem: public.mesh_pem.clone(),
            shares: Some(shares.clone()),
        }))
    }

    pub(super) fn adopt(&mut self, cmd: &Adopt) -> Result<(), AdoptError> {
        self.read_on()?;
        if matches!(self.phase(), Phase::Active(_)) {
            return Ok(());
        }
        let latest = self.state.latest().ok_or(AdoptError::NothingHere)?.clone();
        let engine = SeedEngine::new(cmd.seed.clone(), cmd.salt)?;
        if Some(engine.log_key().public()) != self.log_key() {
            return Err(AdoptError::WrongSeed("it does not yield the key that signed the event log"));
        }
        let signed = engine.transaction_key().public().verify(&latest.transition, &latest.signature);
        signed.map_err(|_| AdoptError::WrongSeed("it does not yield the key that signed the transition"))?;
        self.extends(&cmd.signed_head, engine.log_key().public())?;
        if latest.transition != cmd.transition {
            return Err(AdoptError::MovedOn { ours: latest.transition, theirs: cmd.transition });
        }
        let mesh_key = CaKey::from_pkcs8(&cmd.mesh_key.to_pkcs8()?)?;
        let engine = Arc::new(engine);
        // Before anything else is written, so that what this replica issues is covered from the first certificate on.
        self.commit(Vec::new(), RequestId::from_bytes([0; 16]), &engine)?;
        self.put_in_force(engine, mesh_key, cmd.replica_secret.clone())?;
        tracing::info!(from = %cmd.from, transition = %latest.transition, "secrets received from a peer");
        Ok(())
    }

    /// Checks that the control stream here holds all that a peer signed.
    fn extends(&self, signed_head: &[u8], key: LogPublicKey) -> Result<(), AdoptError> {
        let (theirs, _, _) = open_signed_head(signed_head, Some(key))?;
        check_extends(&self.log.head(), &theirs, |size| Ok(self.log.consistency(size)?.0))
    }
}

/// Whether an event changes what is in force.
fn is_change(event: &Event) -> bool {
    matches!(event.fact, Fact::ManifestSet { .. } | Fact::RecoveredByUser { .. })
}

/// Checks that a stream, of which `ours` is the head and `root_at` gives older heads, holds all that
/// `theirs` covers.
fn check_extends(
    ours: &Head,
    theirs: &Head,
    root_at: impl Fn(u64) -> Result<[u8; 32], LogError>,
) -> Result<(), AdoptError> {
    if theirs.stream != ours.stream || theirs.size > ours.size {
        return Err(AdoptError::StoreBehind { ours: ours.size, theirs: theirs.size });
    }
    let root = root_at(theirs.size).map_err(LedgerError::from)?;
    if root != theirs.root {
        let (ours, theirs_root) = (hex::encode(root), hex::encode(theirs.root));
        return Err(AdoptError::Forked { size: theirs.size, ours, theirs: theirs_root });
    }
    Ok(())
}
