//! What goes wrong, and when: a small language, and a generator of scenarios from a seed.
//!
//! A scenario is a list of steps, one a line, `SECONDS FAULT PLACE TENTHS`: when, what, to which replica or
//! member, for how many tenths of a second. Its text can be written by hand and is what a failure prints; the
//! same seed gives the same scenario for as long as the list of faults stays the same.

use std::{fmt, ops::Range, str::FromStr, time::Duration};

/// What happens. Each lasts for a time; where something was killed, that is the time until its restart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// SIGKILL of a replica.
    KillReplica,
    /// SIGSTOP of a replica, SIGCONT later.
    PauseReplica,
    /// SIGTERM of a replica.
    RestartReplica,
    /// SIGKILL of a replica, whose local copy is deleted.
    LoseDisk,
    /// SIGKILL of a replica, whose local copy is replaced by an older one.
    OldDisk,
    /// SIGKILL of a replica, one byte of whose local copy is flipped.
    CorruptDisk,
    /// Nothing more can be written to a replica's disk.
    FullDisk,
    /// Each write and flush of a replica's disk takes 60 ms longer.
    SlowDisk,
    /// A replica's clock goes forward by an hour, and back later.
    ClockAhead,
    /// A replica's clock goes back by an hour, and forward later.
    ClockBack,
    /// No peer reaches a replica, though it reaches them.
    CutPeers,
    /// No connection between a replica and any member of etcd.
    CutStore,
    /// Nothing passes between a replica and etcd, though connections stay.
    SilentStore,
    /// Every packet between a replica and etcd is late.
    SlowStore,
    /// Connections between a replica and etcd break in the middle of messages.
    TruncateStore,
    /// Questions reach etcd in another order than the replica asked them.
    ReorderStore,
    /// A byte is flipped in each answer to a replica that reads in etcd.
    RewriteStore,
    /// A replica that reads in etcd gets the first answer to each question again and again.
    ReplayStore,
    /// SIGKILL of a member of etcd.
    KillMember,
    /// SIGSTOP of a member of etcd, SIGCONT later.
    PauseMember,
    /// SIGKILL of two members: no quorum. The place says nothing.
    LoseQuorum,
}

/// Names of the faults, and how often a seed chooses each.
const KINDS: [(&str, Kind, u32); 21] = [
    ("kill-replica", Kind::KillReplica, 5),
    ("pause-replica", Kind::PauseReplica, 3),
    ("restart-replica", Kind::RestartReplica, 1),
    ("lose-disk", Kind::LoseDisk, 2),
    ("old-disk", Kind::OldDisk, 1),
    ("corrupt-disk", Kind::CorruptDisk, 1),
    ("full-disk", Kind::FullDisk, 2),
    ("slow-disk", Kind::SlowDisk, 1),
    ("clock-ahead", Kind::ClockAhead, 1),
    ("clock-back", Kind::ClockBack, 1),
    ("cut-peers", Kind::CutPeers, 1),
    ("cut-store", Kind::CutStore, 3),
    ("silent-store", Kind::SilentStore, 2),
    ("slow-store", Kind::SlowStore, 1),
    ("truncate-store", Kind::TruncateStore, 1),
    ("reorder-store", Kind::ReorderStore, 1),
    ("rewrite-store", Kind::RewriteStore, 2),
    ("replay-store", Kind::ReplayStore, 2),
    ("kill-member", Kind::KillMember, 3),
    ("pause-member", Kind::PauseMember, 2),
    ("lose-quorum", Kind::LoseQuorum, 2),
];

/// One fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// What happens.
    pub kind: Kind,
    /// Number of the replica, or of the member of etcd.
    pub place: usize,
    /// How long it lasts, in tenths of a second.
    pub tenths: u32,
}

/// A fault and its time, in tenths of a second after the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// Tenths of a second after the start.
    pub at: u32,
    /// What happens.
    pub fault: Fault,
}

/// Steps in the order of their time.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Scenario(pub Vec<Step>);

/// Numbers from a seed: xorshift64*, the same on every machine for ever.
#[derive(Clone)]
pub struct Random(u64);

impl Random {
    /// Begins with a seed.
    pub fn new(seed: u64) -> Self {
        // A state of 0 would stay there.
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    /// The next number below `bound`.
    pub fn below(&mut self, bound: u32) -> u32 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let high = self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33;
        u32::try_from(high % u64::from(bound.max(1))).unwrap_or(0)
    }
}

impl Scenario {
    /// A scenario of `seconds` for so many replicas and members of etcd.
    pub fn from_seed(seed: u64, seconds: u32, replicas: usize, members: usize) -> Self {
        let mut random = Random::new(seed);
        let mut steps = Vec::new();
        let mut at = 15;
        while at < seconds * 10 {
            let (kind, long) = (Kind::choose(&mut random), 5 + random.below(50));
            let places =
                if matches!(kind, Kind::KillMember | Kind::PauseMember) { members } else { replicas };
            let place = random.below(u32::try_from(places).unwrap_or(1)) as usize;
            let tenths = match kind {
                Kind::KillReplica | Kind::LoseDisk | Kind::OldDisk | Kind::CorruptDisk => 1 + long / 2,
                Kind::RestartReplica => 30,
                Kind::PauseReplica => long * 3,
                Kind::CutStore | Kind::SilentStore | Kind::CutPeers => long * 2,
                _ => long,
            };
            steps.push(Step { at, fault: Fault { kind, place, tenths } });
            at += 5 + random.below(60);
        }
        Self(steps)
    }
}

/// When each fault really began and ended, after the start: on a busy machine not when it was planned.
#[derive(Clone, Debug, Default)]
pub struct Happened(Vec<(Fault, Range<Duration>)>);

/// How long after it was lied to a replica may still believe it.
const BELIEVED: Duration = Duration::from_secs(3);

impl Happened {
    /// A fault begins; gives its number.
    pub fn begins(&mut self, fault: Fault, at: Duration) -> usize {
        self.0.push((fault, at..Duration::MAX));
        self.0.len() - 1
    }

    /// A fault has ended.
    pub fn ended(&mut self, number: usize, at: Duration) {
        if let Some((_, window)) = self.0.get_mut(number) {
            window.end = window.end.min(at);
        }
    }

    /// All faults have ended.
    pub fn all_ended(&mut self, at: Duration) {
        (0..self.0.len()).for_each(|number| self.ended(number, at));
    }

    /// How long a replica was stopped within this time. What it had issued just before arrives after it.
    pub fn stopped(&self, replica: usize, within: Range<Duration>) -> Duration {
        let is_stop = |fault: &Fault| fault.kind == Kind::PauseReplica && fault.place == replica;
        let stops = self.0.iter().filter(|(fault, _)| is_stop(fault));
        stops
            .map(|(_, window)| window.end.min(within.end).saturating_sub(window.start.max(within.start)))
            .sum()
    }

    /// Whether, at some moment within this time, a replica believed an etcd that lied about what it holds.
    pub fn lied_to(&self, within: Range<Duration>) -> bool {
        let is_lie = |fault: &Fault| matches!(fault.kind, Kind::RewriteStore | Kind::ReplayStore);
        let mut lies = self.0.iter().filter(|(fault, _)| is_lie(fault));
        lies.any(|(_, window)| {
            window.start <= within.end && within.start <= window.end.saturating_add(BELIEVED)
        })
    }
}

/// A time after the start, in tenths of a second.
pub(crate) fn tenths(count: u32) -> Duration {
    Duration::from_millis(u64::from(count) * 100)
}

impl Kind {
    fn choose(random: &mut Random) -> Self {
        let mut left = random.below(KINDS.iter().map(|(_, _, often)| often).sum());
        for (_, kind, often) in KINDS {
            match left.checked_sub(often) {
                Some(rest) => left = rest,
                None => return kind,
            }
        }
        Self::KillReplica
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = KINDS.iter().find(|(_, kind, _)| kind == self).map_or("unknown", |(name, _, _)| name);
        f.pad(name)
    }
}

impl fmt::Display for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Step { at, fault: Fault { kind, place, tenths } } in &self.0 {
            writeln!(f, "{}.{} {kind} {place} {tenths}", at / 10, at % 10)?;
        }
        Ok(())
    }
}

impl FromStr for Scenario {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let lines = text.lines().map(|line| line.split('#').next().unwrap_or_default().trim());
        let step = |(number, line): (usize, &str)| {
            let unknown =
                || anyhow::anyhow!("line {}: {line:?} is not SECONDS FAULT PLACE TENTHS", number + 1);
            let mut words = line.split_whitespace();
            let (at, name) = words.next().zip(words.next()).ok_or_else(unknown)?;
            let (whole, tenth) = at.split_once('.').unwrap_or((at, "0"));
            let (whole, tenth): (u32, u32) = (whole.parse()?, tenth.parse()?);
            let (_, kind, _) = KINDS.into_iter().find(|(known, _, _)| *known == name).ok_or_else(unknown)?;
            let (place, tenths) = words.next().zip(words.next()).ok_or_else(unknown)?;
            let fault = Fault { kind, place: place.parse()?, tenths: tenths.parse()? };
            Ok(Step { at: whole * 10 + tenth, fault })
        };
        let steps = lines.enumerate().filter(|(_, line)| !line.is_empty()).map(step);
        steps.collect::<anyhow::Result<Vec<_>>>().map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_happened_is_known_by_its_real_times() {
        let seconds = Duration::from_secs;
        let fault = |kind| Fault { kind, place: 1, tenths: 10 };
        let mut happened = Happened::default();
        let pause = happened.begins(fault(Kind::PauseReplica), seconds(10));
        happened.begins(fault(Kind::ReplayStore), seconds(30));
        happened.ended(pause, seconds(14));
        happened.all_ended(seconds(32));
        assert_eq!(happened.stopped(1, seconds(8)..seconds(12)), seconds(2));
        assert_eq!(happened.stopped(1, seconds(20)..seconds(40)), Duration::ZERO);
        assert_eq!(happened.stopped(0, seconds(8)..seconds(12)), Duration::ZERO);
        assert!(happened.lied_to(seconds(29)..seconds(31)) && happened.lied_to(seconds(33)..seconds(34)));
        assert!(!happened.lied_to(seconds(13)..seconds(14)) && !happened.lied_to(seconds(36)..seconds(37)));
    }

    #[test]
    fn a_seed_gives_the_same_scenario_and_its_text_gives_it_back() {
        for seed in 0..200 {
            let scenario = Scenario::from_seed(seed, 60, 3, 3);
            assert_eq!(scenario, Scenario::from_seed(seed, 60, 3, 3));
            assert_eq!(scenario.to_string().parse::<Scenario>().unwrap(), scenario);
        }
        assert_ne!(Scenario::from_seed(1, 60, 3, 3), Scenario::from_seed(2, 60, 3, 3));
        assert!("1.0 explode 3".parse::<Scenario>().unwrap_err().to_string().contains("line 1"));
        assert_eq!("# by hand\n2 lose-quorum 0 30 # three seconds".parse::<Scenario>().unwrap().0.len(), 1);
    }
}
