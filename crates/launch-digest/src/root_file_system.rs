//! The root file system image against the dm-verity root that the measured command line names.
//!
//! Nothing in an image is measured by itself: firmware measures the command line, the command line has the
//! root hash, and the kernel refuses blocks that do not lead to it. So the image is worth what this
//! comparison says.

use std::io::{BufReader, Read, Seek, SeekFrom};

use crate::{
    MeasureError, malformed,
    verity::{MAGIC, RootHash, SUPERBLOCK, VerityParameters, hex},
};

const SECTOR: u64 = 512;
/// Trees are looked for at multiples of this, in bytes.
const ALIGNMENT: usize = 4096;
/// Most partitions and most trees that are looked at.
const MAX_PARTITIONS: u32 = 128;
const MAX_TREES: usize = 8;

/// A root file system that is what the command line says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RootFileSystem {
    /// The hash, as the command line has it.
    pub root: RootHash,
    /// Where the data begins in the image, in bytes.
    pub offset: u64,
    /// How much of it is covered, in bytes.
    pub bytes: u64,
}

/// What a kernel command line says of the root file system.
#[derive(Debug)]
struct Declared {
    root: RootHash,
    /// From a device-mapper table; systemd reads them from the image instead.
    parameters: Option<VerityParameters>,
}

/// Computes the image's dm-verity root and compares it with the command line's: `roothash=`,
/// `rootfs_verity.hash=` or `dm-mod.create=`.
pub fn verify_root_file_system(
    mut image: impl Read + Seek,
    command_line: &str,
) -> Result<RootFileSystem, MeasureError> {
    let declared = declared(command_line)?;
    let length = image.seek(SeekFrom::End(0)).map_err(|error| unreadable(&error))?;
    let mut regions = partitions(&mut image)?;
    let partitioned = !regions.is_empty();
    if !partitioned {
        regions.push((0, length));
    }
    let trees = match declared.parameters {
        Some(parameters) => vec![parameters],
        None => superblocks(&mut image, &regions, partitioned)?,
    };
    let mut found = Vec::new();
    for parameters in &trees {
        for &(offset, size) in &regions {
            if parameters.data_bytes() > size {
                continue;
            }
            image.seek(SeekFrom::Start(offset)).map_err(|error| unreadable(&error))?;
            let root = parameters.root_hash(BufReader::with_capacity(1 << 20, &mut image))?;
            if root == declared.root {
                return Ok(RootFileSystem { root, offset, bytes: parameters.data_bytes() });
            }
            found.push(root.to_string());
        }
    }
    let found = if found.is_empty() { "no tree fits the image".to_owned() } else { found.join(", ") };
    Err(malformed(
        "image",
        format!("its dm-verity root is not the command line's: computed {found}; expected {}", declared.root),
    ))
}

fn unreadable(error: &std::io::Error) -> MeasureError {
    malformed("image", error.to_string())
}

fn declared(command_line: &str) -> Result<Declared, MeasureError> {
    let mut all: Vec<Declared> = Vec::new();
    for parameter in parameters(command_line) {
        let (name, value) = parameter.split_once('=').unwrap_or_default();
        match name {
            "roothash" | "rootfs_verity.hash" => {
                all.push(Declared { root: value.parse()?, parameters: None });
            }
            "dm-mod.create" => all.push(table(value.trim_matches('"'))?),
            _ => {}
        }
    }
    if let Some(other) = all.iter().find(|other| other.root != all[0].root) {
        return Err(malformed(
            "command line",
            format!("two root hashes, {} and {}", all[0].root, other.root),
        ));
    }
    let best = all.iter().position(|declared| declared.parameters.is_some()).unwrap_or(0);
    if all.is_empty() {
        return Err(malformed(
            "command line",
            "it names no dm-verity root of the image (roothash=, rootfs_verity.hash= or dm-mod.create=), so nothing \
             measures the image and the host may boot another",
        ));
    }
    Ok(all.swap_remove(best))
}

/// Parameters as the kernel splits them: at spaces outside of double quotes.
fn parameters(command_line: &str) -> Vec<&str> {
    let mut quoted = false;
    let space = |c: char| {
        quoted ^= c == '"';
        c.is_whitespace() && !quoted
    };
    command_line.split(space).filter(|parameter| !parameter.is_empty()).collect()
}

/// `NAME,UUID,MINOR,FLAGS,START LENGTH verity 1 DATA HASH DATABLOCK HASHBLOCK BLOCKS START ALGORITHM ROOT SALT`
/// (Linux, Documentation/admin-guide/device-mapper/dm-init).
fn table(text: &str) -> Result<Declared, MeasureError> {
    let wrong = || malformed("command line", format!("dm-mod.create is not one verity table: {text:.200?}"));
    let rest = text.splitn(5, ',').nth(4).filter(|rest| !rest.contains([',', ';'])).ok_or_else(wrong)?;
    let words: Vec<&str> = rest.split_whitespace().collect();
    let [_, _, "verity", "1", _, _, data_block, hash_block, blocks, _, algorithm, root, salt, ..] =
        words.as_slice()
    else {
        return Err(wrong());
    };
    let salt = if *salt == "-" { Vec::new() } else { hex(salt).ok_or_else(wrong)? };
    let number = |text: &str| text.parse::<u64>().map_err(|_| wrong());
    let size = |text: &str| number(text).map(|size| u32::try_from(size).unwrap_or(u32::MAX));
    let parameters =
        VerityParameters::new(algorithm, size(data_block)?, size(hash_block)?, number(blocks)?, salt)?;
    Ok(Declared { root: root.parse()?, parameters: Some(parameters) })
}

/// Offset and length of each partition, in bytes; none if the image has no partition table.
fn partitions(image: &mut (impl Read + Seek)) -> Result<Vec<(u64, u64)>, MeasureError> {
    let mut sectors = [0; 2 * 512];
    if read_at(image, 0, &mut sectors)? < sectors.len() || sectors[510..512] != [0x55, 0xaa] {
        return Ok(Vec::new());
    }
    let u32_of = |bytes: &[u8], at: usize| {
        u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
    };
    let u64_of =
        |bytes: &[u8], at: usize| u64::from(u32_of(bytes, at)) | (u64::from(u32_of(bytes, at + 4)) << 32);
    let header = &sectors[512..];
    let mut found = Vec::new();
    let mut add = |first: u64, count: u64| {
        if let (true, Some(offset), Some(length)) =
            (count > 0, first.checked_mul(SECTOR), count.checked_mul(SECTOR))
        {
            found.push((offset, length));
        }
    };
    if header[..8] != *b"EFI PART" {
        for entry in sectors[446..510].chunks(16).filter(|entry| entry[4] != 0) {
            add(u32_of(entry, 8).into(), u32_of(entry, 12).into());
        }
        return Ok(found);
    }
    let (table, count, size) =
        (u64_of(header, 72), u32_of(header, 80).min(MAX_PARTITIONS), u32_of(header, 84));
    if !(128..=4096).contains(&size) {
        return Err(malformed("image", format!("partition entries of {size} bytes")));
    }
    for index in 0..count {
        let mut entry = [0; 128];
        let at = table.saturating_mul(SECTOR).saturating_add(u64::from(index) * u64::from(size));
        if read_at(image, at, &mut entry)? < entry.len() {
            return Err(malformed("image", "the partition table is cut off"));
        }
        let (first, last) = (u64_of(&entry, 32), u64_of(&entry, 40));
        if entry[..16] != [0; 16] && last >= first {
            add(first, last - first + 1);
        }
    }
    Ok(found)
}

/// Descriptions of trees: at the start of a partition, or anywhere behind the data of a plain image.
fn superblocks(
    image: &mut (impl Read + Seek),
    regions: &[(u64, u64)],
    partitioned: bool,
) -> Result<Vec<VerityParameters>, MeasureError> {
    let mut trees = Vec::new();
    let mut block = [0; SUPERBLOCK];
    for &(offset, length) in regions {
        let end = if partitioned { offset.saturating_add(1) } else { offset.saturating_add(length) };
        for at in (offset..end).step_by(ALIGNMENT) {
            if read_at(image, at, &mut block)? == SUPERBLOCK && block[..8] == MAGIC && trees.len() < MAX_TREES
            {
                trees.push(VerityParameters::from_superblock(&block)?);
            }
        }
    }
    if trees.is_empty() {
        return Err(malformed(
            "image",
            "it has no dm-verity superblock, and the command line has no table (dm-mod.create=) that says how the tree \
             is made",
        ));
    }
    Ok(trees)
}

/// As many bytes as there are.
fn read_at(image: &mut (impl Read + Seek), at: u64, bytes: &mut [u8]) -> Result<usize, MeasureError> {
    image.seek(SeekFrom::Start(at)).map_err(|error| unreadable(&error))?;
    let mut filled = 0;
    while filled < bytes.len() {
        match image.read(&mut bytes[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(unreadable(&error)),
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_line_is_split_as_the_kernel_does_and_names_one_root() {
        let root = "ab".repeat(32);
        let line = format!(
            "quiet dm-mod.create=\"r,,,ro,0 16 verity 1 /dev/vda1 /dev/vda2 4096 4096 2 0 sha256 {root} 0a0b\" panic=1"
        );
        let found = declared(&line).unwrap();
        assert_eq!(found.root.to_string(), root);
        assert_eq!(found.parameters.unwrap().data_bytes(), 8192);
        assert_eq!(declared(&format!("{line} roothash={root}")).unwrap().root.to_string(), root);
        for (line, expected) in [
            ("quiet".to_owned(), "names no dm-verity root"),
            (format!("roothash={root} rootfs_verity.hash={}", "cd".repeat(32)), "two root hashes"),
            ("roothash=abcd".to_owned(), "64 hex digits"),
            (line.replace("sha256", "sha1"), "only sha256"),
            (line.replace("4096 4096", "4095 4096"), "a power of two"),
            (line.replace("0 16 verity", "0 16 linear"), "not one verity table"),
        ] {
            let refused = declared(&line).unwrap_err().to_string();
            assert!(refused.contains(expected), "{expected:?}: {refused}");
        }
    }
}
