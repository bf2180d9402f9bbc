//! The log of what firmware and boot loader extended into a TD's registers (TCG PC Client Platform Firmware Profile,
//! section 10: crypto-agile log; UEFI, `EFI_CC_MEASUREMENT_PROTOCOL`: register numbers). Linux shows it as
//! `/sys/firmware/acpi/tables/data/CCEL`.
//!
//! A log proves nothing by itself: its registers count when a quote has them, or when they are computed from files.
//! It tells what a register consists of.

use manifest::Measurement;
use sha2::{Digest as _, Sha384};

use crate::{MeasureError, malformed, tdx::extend_register};

const WHAT: &str = "event log";
/// Number of SHA-384 in the TCG's registry.
const SHA384: u16 = 0x000c;
const NO_ACTION: u32 = 3;
/// Fills what is left of the area.
const END: u32 = u32::MAX;
const MAX_EVENTS: usize = 4096;

/// What was extended into one register.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// RTMR0 to RTMR3.
    pub register: u32,
    /// The TCG's event type.
    pub kind: u32,
    /// SHA-384 that was extended.
    pub digest: [u8; 48],
    /// The measured bytes themselves, for some kinds; else a description.
    pub data: Vec<u8>,
}

/// An event log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventLog(Vec<Event>);

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], MeasureError> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or_else(|| malformed(WHAT, "it is cut off"))?;
        self.0 = rest;
        Ok(taken)
    }

    fn u16(&mut self) -> Result<u16, MeasureError> {
        self.take(2).map(|bytes| u16::from_le_bytes([bytes[0], bytes[1]]))
    }

    fn u32(&mut self) -> Result<u32, MeasureError> {
        self.take(4).map(|bytes| u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }

    fn sized(&mut self) -> Result<&'a [u8], MeasureError> {
        let size = self.u32()?;
        self.take(size as usize)
    }
}

impl EventLog {
    /// Reads a log.
    pub fn parse(bytes: &[u8]) -> Result<Self, MeasureError> {
        let mut reader = Reader(bytes);
        let sizes = header(&mut reader)?;
        let mut events = Vec::new();
        while !reader.0.is_empty() {
            let (register, kind) = (reader.u32()?, reader.u32()?);
            if register == END || (register, kind) == (0, 0) {
                break;
            }
            if events.len() == MAX_EVENTS {
                return Err(malformed(WHAT, format!("more than {MAX_EVENTS} events")));
            }
            let mut digest = None;
            for _ in 0..reader.u32()? {
                let algorithm = reader.u16()?;
                let size = sizes.iter().find(|(known, _)| *known == algorithm).map(|(_, size)| *size);
                let size =
                    size.ok_or_else(|| malformed(WHAT, format!("digest of unknown kind {algorithm:#06x}")))?;
                let bytes = reader.take(size.into())?;
                if algorithm == SHA384 {
                    digest = bytes.try_into().ok();
                }
            }
            let data = reader.sized()?.to_vec();
            if kind == NO_ACTION {
                continue;
            }
            // Register 0 of the protocol is MRTD, which nothing extends.
            let register = register.checked_sub(1).filter(|register| *register < 4);
            let register =
                register.ok_or_else(|| malformed(WHAT, "an event for a register that TDX has not"))?;
            let digest = digest.ok_or_else(|| malformed(WHAT, "an event without a SHA-384 digest"))?;
            events.push(Event { register, kind, digest, data });
        }
        Ok(Self(events))
    }

    /// What was extended into a register, in order.
    pub fn events(&self, register: u32) -> impl Iterator<Item = &Event> {
        self.0.iter().filter(move |event| event.register == register)
    }

    /// The register's value after all of it.
    pub fn register(&self, register: u32) -> Measurement {
        let mut value = [0; 48];
        self.events(register).for_each(|event| extend_register(&mut value, event.digest));
        Measurement::from_bytes(value)
    }
}

/// The first event, of the old form, which lists kinds of digests and their sizes.
fn header(reader: &mut Reader<'_>) -> Result<Vec<(u16, u16)>, MeasureError> {
    let (_, kind, _) = (reader.u32()?, reader.u32()?, reader.take(20)?);
    let mut body = Reader(reader.sized()?);
    if kind != NO_ACTION || body.take(16)? != b"Spec ID Event03\0" {
        return Err(malformed(WHAT, "it does not begin with \"Spec ID Event03\""));
    }
    body.take(8)?; // platform class, versions, size of integers
    (0..body.u32()?).map(|_| Ok((body.u16()?, body.u16()?))).collect()
}

impl Event {
    /// What it is, in words.
    pub fn describe(&self) -> String {
        let name = match self.kind {
            0x4 => "separator",
            0x8000_0001 => "Secure Boot variable",
            0x8000_0002 => "boot variable",
            0x8000_0008 | 0x8000_000a => "firmware volume",
            0x8000_000b | 0x8000_0009 => "tables handed over by the VMM",
            0xa => "platform configuration",
            kind => return format!("event {kind:#x}"),
        };
        if matches!(self.kind, 0x8000_0001 | 0x8000_0002) {
            return variable(&self.data)
                .map_or_else(|| name.to_owned(), |variable| format!("{name} {variable}"));
        }
        let printable: String = self
            .data
            .iter()
            .filter(|byte| byte.is_ascii_graphic() || **byte == b' ')
            .map(|byte| char::from(*byte))
            .collect();
        if self.kind == 0x4 || printable.len() < 4 {
            name.to_owned()
        } else {
            format!("{name}: {printable:.60}")
        }
    }

    /// Whether the digest is that of the event's own data, so that anybody can see what was measured.
    pub fn shows_its_data(&self) -> bool {
        self.digest == <[u8; 48]>::from(Sha384::digest(&self.data))
    }
}

/// Name in a `UEFI_VARIABLE_DATA`.
fn variable(data: &[u8]) -> Option<String> {
    let length = u64::from_le_bytes(data.get(16..24)?.try_into().ok()?);
    let bytes = data.get(32..32usize.checked_add(usize::try_from(length).ok()?.checked_mul(2)?)?)?;
    let units: Vec<u16> = bytes.chunks(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]])).collect();
    Some(String::from_utf16_lossy(&units).chars().filter(|c| !c.is_control()).take(60).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(events: &[(u32, u32, &[u8], &[u8])]) -> Vec<u8> {
        let mut body = b"Spec ID Event03\0".to_vec();
        body.extend([0, 0, 0, 0, 0, 2, 0, 2]);
        body.extend(1u32.to_le_bytes());
        body.extend([0x0c, 0, 48, 0, 0]);
        let mut bytes = [[0; 4], NO_ACTION.to_le_bytes()].concat();
        bytes.extend([0; 20]);
        bytes.extend(u32::try_from(body.len()).unwrap().to_le_bytes());
        bytes.extend(body);
        for (register, kind, measured, data) in events {
            bytes.extend(register.to_le_bytes());
            bytes.extend(kind.to_le_bytes());
            bytes.extend(1u32.to_le_bytes());
            bytes.extend([0x0c, 0]);
            bytes.extend(Sha384::digest(measured));
            bytes.extend(u32::try_from(data.len()).unwrap().to_le_bytes());
            bytes.extend(*data);
        }
        bytes.extend([0xff; 64]);
        bytes
    }

    #[test]
    fn registers_are_replayed_and_events_told_apart() {
        let mut name = vec![0; 16];
        name.extend(2u64.to_le_bytes());
        name.extend(0u64.to_le_bytes());
        name.extend([b'P', 0, b'K', 0]);
        let bytes = log(&[
            (1, 0x8000_0001, &name, &name),
            (2, 4, b"\0\0\0\0", b"\0\0\0\0"),
            (1, 0xa, b"x", b"ACPI DATA"),
        ]);
        let log = EventLog::parse(&bytes).unwrap();
        let words: Vec<_> = log.events(0).map(|event| (event.describe(), event.shows_its_data())).collect();
        assert_eq!(
            words,
            [("Secure Boot variable PK".into(), true), ("platform configuration: ACPI DATA".into(), false)]
        );
        let step = |value: [u8; 48], measured: &[u8]| -> [u8; 48] {
            Sha384::digest([value.as_slice(), Sha384::digest(measured).as_slice()].concat()).into()
        };
        assert_eq!(log.register(0), Measurement::from_bytes(step(step([0; 48], &name), b"x")));
        assert_eq!(log.register(1), Measurement::from_bytes(step([0; 48], b"\0\0\0\0")));
        assert_eq!(log.register(2), Measurement::from_bytes([0; 48]));
    }

    #[test]
    fn what_is_no_log_is_refused() {
        let whole = log(&[(1, 4, b"a", b"a")]);
        let cut = (0..whole.len() - 64).filter(|cut| EventLog::parse(&whole[..*cut]).is_ok()).count();
        assert_eq!(cut, 1, "only the header alone is a log");
        assert!(EventLog::parse(b"").is_err());
        let other = EventLog::parse(&log(&[(9, 4, b"a", b"a")])).unwrap_err().to_string();
        assert!(other.contains("a register that TDX has not"), "{other}");
    }
}
