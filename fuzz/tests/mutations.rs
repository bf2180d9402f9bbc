//! Each target on its seeds, on what libFuzzer once found (`corpus/`), and on mutations of both.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;

use fuzz::TARGETS;

const MUTATIONS: u32 = 10_000;

/// Deterministic: a failure can be repeated.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap() % bound.max(1)
    }

    fn mutate(&mut self, bytes: &mut Vec<u8>) {
        for _ in 0..=self.below(4) {
            let (at, length) = (self.below(bytes.len()), bytes.len());
            match self.below(6) {
                0 if length > 0 => bytes[at] ^= 1 << self.below(8),
                1 if length > 0 => bytes[at] = [0, 1, 0x7f, 0x80, 0xff][self.below(5)],
                2 => bytes.truncate(at),
                3 => {
                    let part: Vec<u8> = bytes[at..length.min(at + self.below(64))].to_vec();
                    let to = self.below(length);
                    bytes.splice(to..to, part);
                }
                4 if length > 0 => drop(bytes.drain(at..length.min(at + self.below(16)))),
                _ => bytes.insert(at, u8::try_from(self.below(256)).unwrap()),
            }
        }
    }
}

#[test]
fn no_target_panics() {
    for target in TARGETS {
        let mut inputs = (target.seeds)();
        assert!(!inputs.is_empty(), "{} has no seeds", target.name);
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target.name);
        for entry in std::fs::read_dir(corpus).into_iter().flatten() {
            inputs.push(std::fs::read(entry.unwrap().path()).unwrap());
        }
        let mut dice = Dice(20_261_124);
        for input in &inputs {
            (target.run)(input);
        }
        (target.run)(&[]);
        for _ in 0..MUTATIONS {
            let mut bytes = inputs[dice.below(inputs.len())].clone();
            dice.mutate(&mut bytes);
            (target.run)(&bytes);
        }
    }
}
