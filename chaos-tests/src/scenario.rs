//! What goes wrong, and when: a small language, and a generator of scenarios from a seed.
//!
//! A scenario is a list of steps, one a line, `SECONDS FAULT ARGUMENTS`; its text can be written by hand
//! and is what a failure prints. The same seed gives the same scenario for ever.

use std::{fmt, str::FromStr};

/// One fault, or the end of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// SIGKILL of a replica, and its restart this many tenths of a second later.
    KillReplica(usize, u32),
    /// SIGSTOP of a replica, SIGCONT later.
    PauseReplica(usize, u32),
    /// SIGTERM of a replica, and its restart when it has ended.
    RestartReplica(usize),
    /// SIGKILL of a replica, whose local copy is deleted before the restart.
    LoseDisk(usize, u32),
    /// SIGKILL of a replica, whose local copy is replaced by an older one before the restart.
    OldDisk(usize, u32),
    /// SIGKILL of a replica, one byte of whose local copy is flipped before the restart.
    CorruptDisk(usize, u32),
    /// No connection between a replica and any member of etcd.
    CutStore(usize, u32),
    /// Nothing passes between a replica and etcd, though connections stay.
    SilentStore(usize, u32),
    /// Every packet between a replica and etcd is late.
    SlowStore(usize, u32),
    /// Connections between a replica and etcd break in the middle of messages.
    TruncateStore(usize, u32),
    /// SIGKILL of a member of etcd, and its restart later.
    KillMember(usize, u32),
    /// SIGSTOP of a member of etcd, SIGCONT later.
    PauseMember(usize, u32),
    /// SIGKILL of two members: no quorum; restart later.
    LoseQuorum(u32),
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
            let replica = random.below(u32::try_from(replicas).unwrap_or(1)) as usize;
            let member = random.below(u32::try_from(members).unwrap_or(1)) as usize;
            let long = 5 + random.below(50);
            let fault = match random.below(26) {
                0..=4 => Fault::KillReplica(replica, 1 + random.below(30)),
                5..=7 => Fault::PauseReplica(replica, long * 3),
                8 => Fault::RestartReplica(replica),
                9 => Fault::LoseDisk(replica, 1 + random.below(20)),
                10 => Fault::OldDisk(replica, 1 + random.below(20)),
                11 => Fault::CorruptDisk(replica, 1 + random.below(20)),
                12..=14 => Fault::CutStore(replica, long * 2),
                15..=16 => Fault::SilentStore(replica, long * 2),
                17 => Fault::SlowStore(replica, long),
                18 => Fault::TruncateStore(replica, long),
                19..=21 => Fault::KillMember(member, long),
                22..=23 => Fault::PauseMember(member, long),
                _ => Fault::LoseQuorum(long),
            };
            steps.push(Step { at, fault });
            at += 5 + random.below(60);
        }
        Self(steps)
    }
}

impl Fault {
    fn parts(self) -> (&'static str, Vec<u32>) {
        let n = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        match self {
            Self::KillReplica(replica, tenths) => ("kill-replica", vec![n(replica), tenths]),
            Self::PauseReplica(replica, tenths) => ("pause-replica", vec![n(replica), tenths]),
            Self::RestartReplica(replica) => ("restart-replica", vec![n(replica)]),
            Self::LoseDisk(replica, tenths) => ("lose-disk", vec![n(replica), tenths]),
            Self::OldDisk(replica, tenths) => ("old-disk", vec![n(replica), tenths]),
            Self::CorruptDisk(replica, tenths) => ("corrupt-disk", vec![n(replica), tenths]),
            Self::CutStore(replica, tenths) => ("cut-store", vec![n(replica), tenths]),
            Self::SilentStore(replica, tenths) => ("silent-store", vec![n(replica), tenths]),
            Self::SlowStore(replica, tenths) => ("slow-store", vec![n(replica), tenths]),
            Self::TruncateStore(replica, tenths) => ("truncate-store", vec![n(replica), tenths]),
            Self::KillMember(member, tenths) => ("kill-member", vec![n(member), tenths]),
            Self::PauseMember(member, tenths) => ("pause-member", vec![n(member), tenths]),
            Self::LoseQuorum(tenths) => ("lose-quorum", vec![tenths]),
        }
    }

    fn from_parts(name: &str, numbers: &[u32]) -> Option<Self> {
        let made = match (name, numbers) {
            ("kill-replica", &[replica, tenths]) => Self::KillReplica(replica as usize, tenths),
            ("pause-replica", &[replica, tenths]) => Self::PauseReplica(replica as usize, tenths),
            ("restart-replica", &[replica]) => Self::RestartReplica(replica as usize),
            ("lose-disk", &[replica, tenths]) => Self::LoseDisk(replica as usize, tenths),
            ("old-disk", &[replica, tenths]) => Self::OldDisk(replica as usize, tenths),
            ("corrupt-disk", &[replica, tenths]) => Self::CorruptDisk(replica as usize, tenths),
            ("cut-store", &[replica, tenths]) => Self::CutStore(replica as usize, tenths),
            ("silent-store", &[replica, tenths]) => Self::SilentStore(replica as usize, tenths),
            ("slow-store", &[replica, tenths]) => Self::SlowStore(replica as usize, tenths),
            ("truncate-store", &[replica, tenths]) => Self::TruncateStore(replica as usize, tenths),
            ("kill-member", &[member, tenths]) => Self::KillMember(member as usize, tenths),
            ("pause-member", &[member, tenths]) => Self::PauseMember(member as usize, tenths),
            ("lose-quorum", &[tenths]) => Self::LoseQuorum(tenths),
            _ => return None,
        };
        Some(made)
    }
}

impl fmt::Display for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Step { at, fault } in &self.0 {
            let (name, numbers) = fault.parts();
            write!(f, "{}.{} {name}", at / 10, at % 10)?;
            numbers.iter().try_for_each(|number| write!(f, " {number}"))?;
            writeln!(f)?;
        }
        Ok(())
    }
}

impl FromStr for Scenario {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let lines = text.lines().map(|line| line.split('#').next().unwrap_or_default().trim());
        let step = |(number, line): (usize, &str)| {
            let unknown = || anyhow::anyhow!("line {}: {line:?} is not SECONDS FAULT NUMBERS", number + 1);
            let mut words = line.split_whitespace();
            let (at, name) = words.next().zip(words.next()).ok_or_else(unknown)?;
            let (whole, tenth) = at.split_once('.').unwrap_or((at, "0"));
            let (whole, tenth): (u32, u32) = (whole.parse()?, tenth.parse()?);
            let numbers = words.map(str::parse).collect::<Result<Vec<u32>, _>>()?;
            let fault = Fault::from_parts(name, &numbers).ok_or_else(unknown)?;
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
    fn a_seed_gives_the_same_scenario_and_its_text_gives_it_back() {
        for seed in 0..200 {
            let scenario = Scenario::from_seed(seed, 60, 3, 3);
            assert_eq!(scenario, Scenario::from_seed(seed, 60, 3, 3));
            assert_eq!(scenario.to_string().parse::<Scenario>().unwrap(), scenario);
        }
        assert_ne!(Scenario::from_seed(1, 60, 3, 3), Scenario::from_seed(2, 60, 3, 3));
        assert!("1.0 explode 3".parse::<Scenario>().unwrap_err().to_string().contains("line 1"));
        assert_eq!("# by hand\n2 lose-quorum 30 # three seconds".parse::<Scenario>().unwrap().0.len(), 1);
    }
}
