//! A seedshare owner brings the seed back, or several bring their parts one after another.

use std::sync::Arc;

use keys::{CaKey, MeshCa, PartialSeed, ReplicaSecret, Salt, Seed, SeedEngine, combine_seed};
use manifest::{KeyDigest, RequestId, TransitionHash};
use storage_schema::{Checkpoint, EventStore, Fact, Head, LogError, LogId, StreamHead, StreamId};

use super::{
    actor::Ledger,
    messages::{Acceptance, LedgerError, Recover, RecoverError, RecoverReply},
    state::{Entry, Phase},
    waiting::{ReceivedShares, Unsure},
};
use crate::Clock;

impl<S: EventStore, C: Clock> Ledger<S, C> {
    pub(super) fn recover(&mut self, cmd: &Recover) -> Result<RecoverReply, RecoverError> {
        match self.phase() {
            Phase::NeedsRecovery => {}
            Phase::Active(_) => return Err(RecoverError::AlreadyRecovered),
            Phase::Uninitialised => return Err(RecoverError::NothingToRecover),
        }
        let latest = self.state.latest().ok_or(RecoverError::NothingToRecover)?.clone();
        let current = self.manifest_of(&latest)?;
        let owner = cmd.caller.ok_or(RecoverError::NoKey)?;
        let transition = self.state.decide_recover(owner, &current)?;
        if let Some(accepted) = self.check_extends(cmd, owner)? {
            // A signature differs each time, so it is the owner who tells one acceptance from another.
            let is_anothers =
                |fact: &Fact| !matches!(fact, Fact::OlderHeadAccepted { owner: by, .. } if *by == owner);
            self.accepted.retain(is_anothers);
            self.accepted.push(accepted);
        }

        let record = self.state.seed_shares();
        if record.needed < 2 {
            let seed = Seed::from_bytes(&cmd.seed).map_err(RecoverError::Malformed)?;
            self.resume(&latest, &seed, &cmd.salt, owner, Vec::new(), cmd.request)?;
            return Ok(RecoverReply::Recovered(transition));
        }
        self.received.add(owner, &cmd.seed, &cmd.salt, record)?;
        let (received, needed) = (self.received.0.len(), record.needed);
        if received < needed {
            tracing::info!(%owner, received, needed, "seed share received");
            return Ok(RecoverReply::Waiting { received, needed });
        }
        let shares: Vec<PartialSeed> = self.received.0.values().cloned().collect();
        let seed = combine_seed(&shares).map_err(LedgerError::from)?;
        let with = self.received.0.keys().copied().filter(|other| *other != owner).collect();
        self.resume(&latest, &seed, &cmd.salt, owner, with, cmd.request)?;
        self.received = ReceivedShares::default();
        Ok(RecoverReply::Recovered(transition))
    }

    /// What is stored here may have been rolled back; whoever brings the seed remembers how far it went. Only its
    /// own log key can have signed a checkpoint of this log, and that the seed yields this key is checked after.
    /// After a disaster the owner may accept what is there, by a signature over both heads: that is recorded.
    fn check_extends(&self, cmd: &Recover, owner: KeyDigest) -> Result<Option<Fact>, RecoverError> {
        if cmd.checkpoint.is_empty() {
            return Ok(None);
        }
        let refused = |reason: String| Err(RecoverError::RolledBack(reason));
        let Some(key) = self.log_key() else { return refused("it has no event at all".into()) };
        let known = match Checkpoint::open(&cmd.checkpoint, LogId::new(key)) {
            Ok(known) if known.stream == StreamId::Control => known,
            Ok(known) => return refused(format!("the checkpoint is of stream {}", known.stream)),
            Err(error) => return refused(error.to_string()),
        };
        let reason = match self.log.consistency(known.size) {
            Ok((root, _)) if root == known.root => return Ok(None),
            Ok(_) => format!("its first {} events are others", known.size),
            Err(LogError::Beyond { size, asked, .. }) => {
                format!("it has {size} events, and you verified {asked}")
            }
            Err(error) => return Err(LedgerError::from(error).into()),
        };
        let Some(Acceptance { public_key, signature }) = &cmd.acceptance else { return refused(reason) };
        let Head { stream, size, root, .. } = self.log.head();
        let text = keys::older_head_acceptance(&key, (known.size, &known.root), (size, &root));
        let is_theirs = KeyDigest::of(public_key) == owner
            && keys::verify_rsa_pss(public_key, text.as_bytes(), signature).is_ok();
        if !is_theirs {
            return refused(format!(
                "{reason}; and what you accept instead is not the {size} events that it has now"
            ));
        }
        tracing::warn!(%owner, given_up = known.size, accepted = size, "an owner accepts an older history");
        Ok(Some(Fact::OlderHeadAccepted {
            owner,
            public_key: public_key.clone(),
            signature: signature.clone(),
            given_up: StreamHead { stream, size: known.size, root: known.root },
            accepted: StreamHead { stream, size, root },
        }))
    }

    /// Goes on where the history stands, if this is the seed that wrote it.
    fn resume(
        &mut self,
        latest: &Entry,
        seed: &Seed,
        salt: &Salt,
        owner: KeyDigest,
        with: Vec<KeyDigest>,
        request: RequestId,
    ) -> Result<(), RecoverError> {
        let transition: TransitionHash = latest.transition;
        let engine = SeedEngine::new(seed.clone(), *salt).map_err(LedgerError::from)?;
        if Some(engine.log_key().public()) != self.log_key() {
            return Err(RecoverError::WrongSeed("it does not yield the key that signed the event log"));
        }
        engine
            .transaction_key()
            .public()
            .verify(&transition, &latest.signature)
            .map_err(|_| RecoverError::WrongSeed("it does not yield the key that signed the transition"))?;

        // A seedshare owner must not be able to derive the mesh CA key, so both are new.
        let secret = ReplicaSecret::generate().map_err(LedgerError::from)?;
        let mesh_key = CaKey::generate().map_err(LedgerError::from)?;
        let wrapped_mesh_key = secret.wrap(&mesh_key, &transition).map_err(LedgerError::from)?;
        let ca = MeshCa::new(&engine, mesh_key, self.clock.now()).map_err(LedgerError::from)?;
        let fact = Fact::RecoveredByUser {
            owner,
            with,
            transition,
            wrapped_mesh_key,
            root_ca: ca.root_der().to_vec(),
            mesh_ca: ca.mesh_der().to_vec(),
        };
        let keys = Unsure { request, engine: Arc::new(engine), secret, shares: None };
        // They stay until the recovery is in the log: an append that fails must not lose them.
        let facts = self.accepted.iter().cloned().chain([fact]).collect();
        self.commit_change(facts, keys, transition, ca)?;
        tracing::info!(%transition, %owner, "recovered by seedshare owners");
        Ok(())
    }
}
