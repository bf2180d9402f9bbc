//! The replica protocol as a model: a shared log with compare-and-swap whose answers may get lost, replicas
//! that crash, pause, join and follow, a store that may be rolled back; all under a seeded scheduler.
//!
//! It is small enough to run thousands of schedules a second, and leaves out what has tests of its own:
//! encoding, signatures, TLS. What it keeps is what is decided in `actors/src/ledger/follow.rs` and in the
//! Coordinator's `Standing`: who has which secret after which change, what is done about a change whose
//! outcome is not known, when a certificate may be handed out. [`Bug`] plants the mistakes that these
//! decisions exist to avoid; the tests demand that each is found.

use crate::scenario::Random;

/// Ticks after which a replica that heard nothing issues nothing.
const STALE_AFTER: u64 = 20;

/// A mistake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// A change without an answer is taken to be not made, and its keys are forgotten.
    ForgetsUnansweredChange,
    /// An append that finds its place taken overwrites it.
    OverwritesTakenPlace,
    /// The view counts as fresh from the moment of the answer, not of the question.
    CountsFromTheAnswer,
    /// The secret is not made anew from the transition after a change that was followed.
    ForgetsToRatchet,
    /// A replica without a disk believes a store that shows less than its peer has signed.
    JoinsBehindThePeer,
    /// A change is decided on what is known here, and after a lost race sent again as it was.
    ResendsOldDecision,
}

/// A change in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    transition: u64,
    previous: u64,
    /// The secret that opens it.
    opens_with: u64,
    request: u64,
}

/// What a replica holds while it serves.
#[derive(Clone, Copy)]
struct Held {
    transition: u64,
    secret: u64,
}

#[derive(Clone, Default)]
struct Replica {
    is_running: bool,
    /// What it has read: in memory, and on its disk.
    log: Vec<Entry>,
    held: Option<Held>,
    /// Requests without an answer, and the secrets that they were made with.
    unsure: Vec<(u64, u64)>,
    /// When the question was sent that showed the view to be complete.
    confirmed: Option<u64>,
    /// A read under way: when it was sent, and what the store had then.
    reading: Option<(u64, Vec<Entry>)>,
}

/// A run of the model.
pub struct Model {
    random: Random,
    bug: Option<Bug>,
    now: u64,
    next_id: u64,
    store: Vec<Entry>,
    /// The longest log that ever was, for the checks.
    truth: Vec<Entry>,
    replicas: Vec<Replica>,
    acknowledged: Vec<(u64, u64)>,
    /// Requests and the replicas that made them, as long as these live.
    makers: Vec<(u64, usize)>,
    /// Certificates: when, under which transition.
    issued: Vec<(u64, u64)>,
}

fn mix(a: u64, b: u64) -> u64 {
    (a ^ b.rotate_left(29)).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(17) ^ a
}

impl Model {
    /// A model of so many replicas, which a seed drives.
    pub fn new(seed: u64, replicas: usize, bug: Option<Bug>) -> Self {
        let mut model = Self {
            random: Random::new(seed),
            bug,
            now: 0,
            next_id: 1,
            store: Vec::new(),
            truth: Vec::new(),
            replicas: vec![Replica { is_running: true, ..Replica::default() }; replicas],
            acknowledged: Vec::new(),
            makers: Vec::new(),
            issued: Vec::new(),
        };
        model.change(0, false, false);
        model
    }

    fn is(&self, bug: Bug) -> bool {
        self.bug == Some(bug)
    }

    fn id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    /// Runs `steps` steps, heals, and checks. The error says what was violated.
    pub fn run(mut self, steps: u32) -> Result<(), String> {
        for _ in 0..steps {
            self.now += u64::from(1 + self.random.below(4));
            self.step();
            self.check_secrets()?;
        }
        self.heal()?;
        self.check_acknowledged()?;
        self.check_certificates()
    }

    fn step(&mut self) {
        let count = u32::try_from(self.replicas.len()).unwrap_or(1);
        let (replica, peer) = (self.random.below(count) as usize, self.random.below(count) as usize);
        match self.random.below(22) {
            0..=3 => self.change(replica, false, false),
            4 => self.change(replica, true, false),
            5 => self.change(replica, false, true),
            6..=9 => self.follow(replica),
            10..=11 => self.begin_read(replica),
            12 => self.end_read(replica),
            13 => self.crash(replica, false),
            14 => self.crash(replica, true),
            15..=17 => self.join(replica, peer),
            18 => self.now += u64::from(self.random.below(40)),
            _ => self.issue(replica),
        }
    }

    /// A change at a replica. The answer of the store may get lost after it was heard, or the question.
    fn change(&mut self, replica: usize, answer_lost: bool, question_lost: bool) {
        let (request, transition) = (self.id(), self.id());
        let mut old: Option<Entry> = None;
        for _ in 0..3 {
            let own = &self.replicas[replica];
            if !own.is_running || (own.held.is_none() && !own.log.is_empty()) {
                return;
            }
            let previous = own.log.last().map_or(0, |entry| entry.transition);
            let fresh = own.held.is_none() || self.random.below(8) == 0;
            let secret =
                if fresh { self.id() } else { self.replicas[replica].held.map_or(0, |held| held.secret) };
            let mut entry = Entry { transition, previous, opens_with: secret, request };
            if let Some(old) = old.filter(|_| self.is(Bug::ResendsOldDecision)) {
                entry = old;
            }
            let index = self.replicas[replica].log.len();
            self.replicas[replica].unsure.push((request, entry.opens_with));
            self.makers.push((request, replica));
            let is_taken = self.store.len() > index;
            if !question_lost && (!is_taken || self.is(Bug::OverwritesTakenPlace)) {
                self.store.truncate(index);
                self.store.push(entry);
                self.remember_truth();
            }
            if question_lost || answer_lost {
                if self.is(Bug::ForgetsUnansweredChange) {
                    self.replicas[replica].unsure.pop();
                }
                return; // the client is told that nobody knows
            }
            self.follow(replica);
            if !is_taken || self.is(Bug::OverwritesTakenPlace) {
                self.acknowledged.push((self.now, transition));
                return;
            }
            old = Some(entry);
        }
    }

    fn remember_truth(&mut self) {
        if self.store.len() > self.truth.len() {
            self.truth.clone_from(&self.store);
        }
    }

    /// Asks the store and takes over what it has.
    fn follow(&mut self, replica: usize) {
        let (asked, seen) = (self.now, self.store.clone());
        self.take(replica, asked, seen);
    }

    /// Asks the store; the answer comes later, and shows what was there now.
    fn begin_read(&mut self, replica: usize) {
        let seen = self.store.clone();
        if self.replicas[replica].is_running {
            self.replicas[replica].reading = Some((self.now, seen));
        }
    }

    fn end_read(&mut self, replica: usize) {
        if let Some((asked, seen)) = self.replicas[replica].reading.take() {
            self.take(replica, asked, seen);
        }
    }

    fn take(&mut self, replica: usize, asked: u64, seen: Vec<Entry>) {
        let (counts_late, forgets) = (self.is(Bug::CountsFromTheAnswer), self.is(Bug::ForgetsToRatchet));
        let now = self.now;
        let own = &mut self.replicas[replica];
        if !own.is_running || seen.len() < own.log.len() || seen[..own.log.len()] != own.log {
            return; // the answer is older than what is known, or the store lies
        }
        for entry in &seen[own.log.len()..] {
            let secret = match own.unsure.iter().rfind(|(request, _)| *request == entry.request) {
                Some((_, secret)) => Some(*secret),
                None => own.held.map(|held| held.secret),
            };
            own.held = secret.filter(|secret| *secret == entry.opens_with).map(|secret| Held {
                transition: entry.transition,
                secret: if forgets { secret } else { mix(secret, entry.transition) },
            });
        }
        own.log = seen;
        own.confirmed = Some(if counts_late { now } else { asked });
    }

    fn crash(&mut self, replica: usize, loses_disk: bool) {
        self.makers.retain(|(_, maker)| *maker != replica);
        let own = &mut self.replicas[replica];
        let log = if loses_disk { Vec::new() } else { std::mem::take(&mut own.log) };
        *own = Replica { is_running: true, log, ..Replica::default() };
    }

    fn join(&mut self, replica: usize, peer: usize) {
        let Some(held) = self.replicas[peer].held else { return };
        let head = self.replicas[peer].log.clone();
        // A store may show an old state to whoever has nothing to hold against it. Where the peer knows no
        // more than that either, nobody can tell at this moment: then it is up to the exchange of heads,
        // which is not modelled.
        let peer_knows = head.len() == self.store.len();
        let hides = peer_knows && self.random.below(6) == 0 && self.replicas[replica].log.is_empty();
        if self.replicas[replica].held.is_some() {
            return;
        }
        let mut seen = self.store.clone();
        if hides {
            seen.truncate(seen.len().saturating_sub(1));
        }
        self.take(replica, self.now, seen);
        let behind = self.is(Bug::JoinsBehindThePeer);
        let own = &mut self.replicas[replica];
        let extends = own.log.len() >= head.len() && own.log[..head.len()] == head;
        let is_same = own.log.last().map(|entry| entry.transition) == Some(held.transition);
        if (extends && is_same) || (behind && !extends) {
            let transition = own.log.last().map_or(0, |entry| entry.transition);
            own.held = Some(Held { transition, secret: held.secret });
        } else if !extends {
            // Refused: what was read is not believed.
            (own.log, own.confirmed) = (Vec::new(), None);
        }
    }

    fn issue(&mut self, replica: usize) {
        let own = &self.replicas[replica];
        let is_current = own.confirmed.is_some_and(|at| self.now - at < STALE_AFTER);
        if let Some(held) = own.held.filter(|_| own.is_running && is_current) {
            self.issued.push((self.now, held.transition));
        }
    }

    /// After each step: whoever serves has the keys of the state that it shows.
    fn check_secrets(&self) -> Result<(), String> {
        for (number, replica) in self.replicas.iter().enumerate() {
            let (Some(held), Some(last)) = (replica.held, replica.log.last()) else { continue };
            if held.transition != last.transition || held.secret != mix(last.opens_with, last.transition) {
                return Err(format!("replica {number} serves with keys that are not those of its history"));
            }
            if self.truth.get(..replica.log.len()) != Some(replica.log.as_slice()) {
                return Err(format!(
                    "replica {number} serves a history that is not the beginning of the log"
                ));
            }
        }
        Ok(())
    }

    /// Ends the faults: everybody follows and joins, an owner recovers if nobody has the keys.
    fn heal(&mut self) -> Result<(), String> {
        for replica in 0..self.replicas.len() {
            self.replicas[replica].reading = None;
            self.follow(replica);
        }
        let last = self.store.last().copied();
        let holder = self.replicas.iter().position(|replica| replica.held.is_some());
        let maker_lives =
            last.is_some_and(|last| self.makers.iter().any(|(request, _)| *request == last.request));
        let Some(holder) = holder else {
            // Only the crash of whoever had the keys may lead here.
            return if maker_lives {
                Err("the keys of the last change were thrown away".into())
            } else {
                Ok(())
            };
        };
        for replica in 0..self.replicas.len() {
            for _ in 0..64 {
                if self.replicas[replica].held.is_none() {
                    self.join(replica, holder);
                }
            }
        }
        let transition = self.store.last().map(|entry| entry.transition);
        let converged =
            self.replicas.iter().all(|replica| replica.held.map(|held| held.transition) == transition);
        if converged { Ok(()) } else { Err("the replicas do not converge".into()) }
    }

    fn check_acknowledged(&self) -> Result<(), String> {
        let mut previous = 0;
        for entry in &self.store {
            if entry.previous != previous {
                return Err(format!(
                    "change {} was decided on another state than it follows",
                    entry.transition
                ));
            }
            previous = entry.transition;
        }
        for (at, transition) in &self.acknowledged {
            let found = self.store.iter().filter(|entry| entry.transition == *transition).count();
            if found != 1 {
                return Err(format!(
                    "change {transition}, acknowledged at {at}, is in the log {found} times"
                ));
            }
        }
        Ok(())
    }

    fn check_certificates(&self) -> Result<(), String> {
        let place = |transition: u64| self.store.iter().position(|entry| entry.transition == transition);
        let acknowledged: Vec<(u64, Option<usize>)> =
            self.acknowledged.iter().map(|(at, transition)| (*at, place(*transition))).collect();
        for (at, transition) in &self.issued {
            let own = place(*transition);
            let replaced = acknowledged.iter().filter(|(_, later)| *later > own).map(|(at, _)| *at).min();
            if replaced.is_some_and(|replaced| at.saturating_sub(replaced) >= STALE_AFTER) {
                return Err(format!("a certificate at {at} under {transition}, replaced at {replaced:?}"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn first_failure(seeds: std::ops::Range<u64>, bug: Option<Bug>) -> Option<(u64, String)> {
        seeds.into_iter().find_map(|seed| {
            let replicas = 2 + usize::try_from(seed % 3).unwrap();
            Model::new(seed, replicas, bug).run(80).err().map(|error| (seed, error))
        })
    }

    #[test]
    fn no_schedule_breaks_the_protocol() {
        assert_eq!(first_failure(0..20_000, None), None);
    }

    #[test]
    fn every_planted_bug_is_found() {
        let bugs = [
            (Bug::ForgetsUnansweredChange, "thrown away"),
            (Bug::OverwritesTakenPlace, ""),
            (Bug::CountsFromTheAnswer, "a certificate at"),
            (Bug::ForgetsToRatchet, "keys that are not those of its history"),
            (Bug::JoinsBehindThePeer, "keys that are not those of its history"),
            (Bug::ResendsOldDecision, "decided on another state"),
        ];
        for (bug, expected) in bugs {
            let (seed, error) =
                first_failure(0..20_000, Some(bug)).unwrap_or_else(|| panic!("{bug:?} not found"));
            assert!(error.contains(expected), "{bug:?} with seed {seed}: {error}");
        }
    }
}
