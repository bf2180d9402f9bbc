//! Intel TDX: MRTD from the firmware, RTMR1 and RTMR2 from kernel, command line and initrd.
//!
//! MRTD: TDX module base specification, sections on TDH.MEM.PAGE.ADD and TDH.MR.EXTEND; which pages there
//! are: TDX virtual firmware design guide, section 11. RTMR1 and RTMR2: what OVMF and Linux's EFI stub
//! extend in a direct boot. Quotes of real hardware with published firmware were not at hand to compare
//! with, so check once against a guest of yours.

use manifest::Measurement;
use sha2::{Digest as _, Sha384};

use crate::{MeasureError, authenticode, malformed};

const WHAT: &str = "firmware";
const PAGE: u64 = 4096;
/// One TDH.MR.EXTEND covers this many bytes.
const CHUNK: usize = 256;
/// GUID of the table at the end of OVMF, 96b582de-1fb2-45f7-baea-a366c55a082d, as it stands in memory.
const TABLE: [u8; 16] =
    [0xde, 0x82, 0xb5, 0x96, 0xb2, 0x1f, 0xf7, 0x45, 0xba, 0xea, 0xa3, 0x66, 0xc5, 0x5a, 0x08, 0x2d];
/// GUID of the entry with the offset of the TDX metadata, e47a6535-984a-4798-865e-4685a7bf8ec2.
const METADATA: [u8; 16] =
    [0x35, 0x65, 0x7a, 0xe4, 0x4a, 0x98, 0x98, 0x47, 0x86, 0x5e, 0x46, 0x85, 0xa7, 0xbf, 0x8e, 0xc2];
/// Bytes behind the table: the reset vector.
const RESET_VECTOR: usize = 32;
/// Most sections, and most memory of one, in bytes: beyond this it is no firmware.
const MAX_SECTIONS: usize = 64;
const MAX_SECTION_BYTES: u64 = 256 << 20;

/// In which order a VMM adds pages and measures their contents. The module does not mind, the digest does.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum PageOrder {
    /// Each page is added, then measured: QEMU with Linux 6.16 and newer.
    #[default]
    PageByPage,
    /// All pages of a section are added, then all are measured: older trees.
    SectionBySection,
}

/// RTMRs that follow from the files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Registers {
    /// The kernel as an EFI application, and the boot manager's events.
    pub rtmr1: Measurement,
    /// Command line and initrd.
    pub rtmr2: Measurement,
    /// Nothing extends it before the workload.
    pub rtmr3: Measurement,
}

struct Section<'a> {
    data: &'a [u8],
    address: u64,
    size: u64,
    kind: u32,
    attributes: u32,
}

/// Kind of the section with the configuration volume.
const CONFIGURATION_VOLUME: u32 = 1;
/// Contents are measured.
const EXTEND: u32 = 1;
/// Pages are added after the start, unmeasured.
const AUGMENT: u32 = 2;

/// MRTD of a guest with this firmware.
pub fn mr_td(firmware: &[u8], order: PageOrder) -> Result<Measurement, MeasureError> {
    let mut hasher = Sha384::new();
    for section in sections(firmware)? {
        if section.attributes & AUGMENT != 0 {
            continue;
        }
        let pages = section.size / PAGE;
        for page in 0..pages {
            add(&mut hasher, section.address + page * PAGE);
            if order == PageOrder::PageByPage {
                extend(&mut hasher, &section, page);
            }
        }
        if order == PageOrder::SectionBySection {
            (0..pages).for_each(|page| extend(&mut hasher, &section, page));
        }
    }
    Ok(Measurement::from_bytes(hasher.finalize().into()))
}

/// SHA-384 of the firmware's configuration volume (variables as they are built in), which OVMF extends into RTMR0;
/// `None` if the firmware has none.
pub fn configuration_volume(firmware: &[u8]) -> Result<Option<[u8; 48]>, MeasureError> {
    let volume = sections(firmware)?.into_iter().find(|section| section.kind == CONFIGURATION_VOLUME);
    Ok(volume.map(|section| Sha384::digest(section.data).into()))
}

/// The record of an operation: its name, an address, zeros up to 128 bytes.
fn record(name: &[u8], address: u64) -> [u8; 128] {
    let mut record = [0; 128];
    record[..name.len()].copy_from_slice(name);
    record[16..24].copy_from_slice(&address.to_le_bytes());
    record
}

fn add(hasher: &mut Sha384, address: u64) {
    hasher.update(record(b"MEM.PAGE.ADD", address));
}

fn extend(hasher: &mut Sha384, section: &Section<'_>, page: u64) {
    if section.attributes & EXTEND == 0 {
        return;
    }
    for chunk in 0..PAGE / CHUNK as u64 {
        let offset = page * PAGE + chunk * CHUNK as u64;
        hasher.update(record(b"MR.EXTEND", section.address + offset));
        let mut content = [0; CHUNK];
        let from = usize::try_from(offset).unwrap_or(usize::MAX).min(section.data.len());
        let data = &section.data[from..section.data.len().min(from + CHUNK)];
        content[..data.len()].copy_from_slice(data);
        hasher.update(content);
    }
}

fn field<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N], MeasureError> {
    let field = at.checked_add(N).and_then(|end| bytes.get(at..end));
    field
        .and_then(|field| field.try_into().ok())
        .ok_or_else(|| malformed(WHAT, "the TDX metadata is cut off"))
}

fn u32_at(bytes: &[u8], at: usize) -> Result<u32, MeasureError> {
    field(bytes, at).map(u32::from_le_bytes)
}

/// Walks the table at the end of the firmware backwards to the entry with the metadata's offset.
fn metadata_offset(firmware: &[u8]) -> Result<usize, MeasureError> {
    let none = || malformed(WHAT, "it has no TDX metadata; it is not an OVMF built for TDX");
    let end = firmware.len().checked_sub(RESET_VECTOR).ok_or_else(none)?;
    let footer = end.checked_sub(18).ok_or_else(none)?;
    if field::<16>(firmware, footer + 2)? != TABLE {
        return Err(none());
    }
    let total = usize::from(u16::from_le_bytes(field(firmware, footer)?));
    let start = end.checked_sub(total).ok_or_else(none)?;
    let mut at = footer;
    while at > start + 18 {
        let size = usize::from(u16::from_le_bytes(field(firmware, at - 18)?));
        let entry = at.checked_sub(size).filter(|entry| size >= 18 && *entry >= start).ok_or_else(none)?;
        if field::<16>(firmware, at - 16)? == METADATA {
            let back = u32_at(firmware, entry)? as usize;
            return firmware.len().checked_sub(back).ok_or_else(none);
        }
        at = entry;
    }
    Err(none())
}

fn sections(firmware: &[u8]) -> Result<Vec<Section<'_>>, MeasureError> {
    let at = metadata_offset(firmware)?;
    if field::<4>(firmware, at)? != *b"TDVF" {
        return Err(malformed(WHAT, "the TDX metadata does not begin with TDVF"));
    }
    let count = u32_at(firmware, at + 12)? as usize;
    if count > MAX_SECTIONS {
        return Err(malformed(
            WHAT,
            format!("{count} sections of TDX metadata, at most {MAX_SECTIONS} make sense"),
        ));
    }
    let section = |index: usize| {
        let at = at + 16 + index * 32;
        let (offset, raw) = (u32_at(firmware, at)? as usize, u32_at(firmware, at + 4)? as usize);
        let address = u64::from_le_bytes(field(firmware, at + 8)?);
        let size = u64::from_le_bytes(field(firmware, at + 16)?);
        let (kind, attributes) = (u32_at(firmware, at + 24)?, u32_at(firmware, at + 28)?);
        let data = offset.checked_add(raw).and_then(|end| firmware.get(offset..end));
        let data =
            data.ok_or_else(|| malformed(WHAT, format!("section {index} lies outside of the file")))?;
        let sound = size <= MAX_SECTION_BYTES
            && size % PAGE == 0
            && address.checked_add(size).is_some()
            && raw as u64 <= size;
        if !sound && attributes & AUGMENT == 0 {
            return Err(malformed(WHAT, format!("section {index} has no sound size")));
        }
        Ok(Section { data, address, size, kind, attributes })
    };
    (0..count).map(section).collect()
}

/// RTMR1 to RTMR3 of a direct boot: QEMU that leaves the kernel's header alone (10.1 and newer), OVMF,
/// Linux's EFI stub.
pub fn kernel_registers(
    kernel: &[u8],
    initrd: Option<&[u8]>,
    command_line: &str,
) -> Result<Registers, MeasureError> {
    let mut rtmr1 = [0; 48];
    extend_register(&mut rtmr1, authenticode::hash(kernel)?);
    for event in [
        b"Calling EFI Application from Boot Option".as_slice(),
        &[0, 0, 0, 0], // the separator between firmware and operating system
        b"Exit Boot Services Invocation",
        b"Exit Boot Services Returned with Success",
    ] {
        extend_register(&mut rtmr1, Sha384::digest(event).into());
    }
    // OVMF tells the stub by its name where the initrd is.
    let line =
        if initrd.is_some() { format!("{command_line} initrd=initrd") } else { command_line.to_owned() };
    let units = line.encode_utf16().chain([0]).flat_map(u16::to_le_bytes);
    let mut rtmr2 = [0; 48];
    extend_register(&mut rtmr2, Sha384::digest(units.collect::<Vec<u8>>()).into());
    if let Some(initrd) = initrd {
        extend_register(&mut rtmr2, Sha384::digest(initrd).into());
    }
    Ok(Registers {
        rtmr1: Measurement::from_bytes(rtmr1),
        rtmr2: Measurement::from_bytes(rtmr2),
        rtmr3: Measurement::from_bytes([0; 48]),
    })
}

pub(crate) fn extend_register(register: &mut [u8; 48], digest: [u8; 48]) {
    *register = Sha384::new().chain_update(*register).chain_update(digest).finalize().into();
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A firmware of two pages with a measured section, and one of zeros.
    fn firmware() -> Vec<u8> {
        let mut bytes = vec![0x5a; 3 * 4096];
        let metadata = 4096 * 2;
        let mut put = |at: usize, content: &[u8]| bytes[at..at + content.len()].copy_from_slice(content);
        put(metadata, b"TDVF");
        put(metadata + 4, &80u32.to_le_bytes());
        put(metadata + 8, &1u32.to_le_bytes());
        put(metadata + 12, &2u32.to_le_bytes());
        let mut section = |index: u32, offset: u32, raw: u32, address: u64, size: u64, attributes: u32| {
            let at = metadata + 16 + index as usize * 32;
            put(at, &offset.to_le_bytes());
            put(at + 4, &raw.to_le_bytes());
            put(at + 8, &address.to_le_bytes());
            put(at + 16, &size.to_le_bytes());
            put(at + 24, &index.to_le_bytes());
            put(at + 28, &attributes.to_le_bytes());
        };
        section(0, 0, 8192, 0xffff_0000, 8192, EXTEND);
        section(1, 0, 0, 0x0080_0000, 4096, 0);
        let end = bytes.len() - RESET_VECTOR;
        let mut put = |at: usize, content: &[u8]| bytes[at..at + content.len()].copy_from_slice(content);
        put(end - 16, &TABLE);
        put(end - 18, &40u16.to_le_bytes());
        put(end - 18 - 16, &METADATA);
        put(end - 18 - 18, &22u16.to_le_bytes());
        put(end - 18 - 22, &4096u32.to_le_bytes());
        bytes
    }

    #[test]
    fn mrtd_is_the_hash_of_the_modules_records() {
        let mut records = Vec::new();
        let mut page = |address: u64, content: Option<u8>| {
            let mut add = [0u8; 128];
            add[..12].copy_from_slice(b"MEM.PAGE.ADD");
            add[16..24].copy_from_slice(&address.to_le_bytes());
            records.extend(add);
            for chunk in 0..16 {
                if let Some(byte) = content {
                    let mut extend = [0u8; 128];
                    extend[..9].copy_from_slice(b"MR.EXTEND");
                    extend[16..24].copy_from_slice(&(address + chunk * 256).to_le_bytes());
                    records.extend(extend);
                    records.extend([byte; 256]);
                }
            }
        };
        page(0xffff_0000, Some(0x5a));
        page(0xffff_1000, Some(0x5a));
        page(0x0080_0000, None);
        let expected: [u8; 48] = Sha384::digest(&records).into();
        assert_eq!(mr_td(&firmware(), PageOrder::PageByPage), Ok(Measurement::from_bytes(expected)));
        assert_ne!(mr_td(&firmware(), PageOrder::SectionBySection), Ok(Measurement::from_bytes(expected)));
    }

    #[test]
    fn the_configuration_volume_is_the_section_of_that_kind() {
        let empty: [u8; 48] = Sha384::digest([]).into();
        assert_eq!(configuration_volume(&firmware()), Ok(Some(empty)));
    }

    #[test]
    fn a_firmware_that_is_none_is_refused() {
        assert!(mr_td(b"", PageOrder::default()).is_err());
        let refused = mr_td(&[0; 8192], PageOrder::default()).unwrap_err().to_string();
        assert!(refused.contains("no TDX metadata"), "{refused}");
        let whole = firmware();
        for cut in (0..whole.len()).step_by(97) {
            let _ = mr_td(&whole[cut..], PageOrder::default());
        }
        for at in (8192..whole.len()).step_by(3) {
            let mut changed = whole.clone();
            changed[at] ^= 0xff;
            let _ = mr_td(&changed, PageOrder::default());
        }
    }

    #[test]
    fn registers_follow_command_line_initrd_and_kernel() {
        let mut kernel = vec![0u8; 1024];
        kernel[..2].copy_from_slice(b"MZ");
        kernel[0x3c] = 0x80;
        kernel[0x80..0x84].copy_from_slice(b"PE\0\0");
        kernel[0x86] = 1; // one section
        kernel[0x94] = 0xf0; // size of the optional header
        kernel[0x98..0x9a].copy_from_slice(&0x20bu16.to_le_bytes());
        kernel[0x98 + 60..0x98 + 64].copy_from_slice(&512u32.to_le_bytes());
        let section = 0x98 + 0xf0;
        kernel[section + 16..section + 20].copy_from_slice(&512u32.to_le_bytes());
        kernel[section + 20..section + 24].copy_from_slice(&512u32.to_le_bytes());
        let base = kernel_registers(&kernel, Some(b"initrd"), "quiet").unwrap();
        let line = kernel_registers(&kernel, Some(b"initrd"), "quiet panic=1").unwrap();
        assert!(base.rtmr1 == line.rtmr1 && base.rtmr2 != line.rtmr2);
        let initrd = kernel_registers(&kernel, Some(b"other"), "quiet").unwrap();
        assert!(base.rtmr1 == initrd.rtmr1 && base.rtmr2 != initrd.rtmr2);
        let mut changed = kernel.clone();
        changed[700] ^= 1;
        assert_ne!(kernel_registers(&changed, None, "").unwrap().rtmr1, base.rtmr1);
        // The checksum is not measured; what is cut off is refused.
        changed = kernel.clone();
        changed[0x98 + 64] ^= 1;
        assert_eq!(kernel_registers(&changed, Some(b"initrd"), "quiet"), Ok(base));
        for cut in 0..kernel.len() {
            let _ = kernel_registers(&kernel[..cut], None, "");
        }
        assert!(kernel_registers(b"\x7fELF", None, "").unwrap_err().to_string().contains("MZ"));
    }
}
