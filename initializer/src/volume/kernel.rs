//! Which mappings there are: the kernel knows. `/dev` may be another one than that in which a mapping was made, since a
//! container that starts again has a fresh one, while the mapping stays.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};

/// Where nodes of mappings are.
const MAPPER: &str = "/dev/mapper";

/// The mapping's node, made if it is lacking; none if the kernel has no mapping of this name.
pub(super) fn mapped(name: &str) -> anyhow::Result<Option<PathBuf>> {
    let Some((major, minor)) = number(Path::new("/sys/block"), name).context("cannot read /sys/block")?
    else {
        return Ok(None);
    };
    let node = Path::new(MAPPER).join(name);
    fs::create_dir_all(MAPPER).with_context(|| format!("cannot create {MAPPER}"))?;
    // One that is there may be of a mapping that is gone, and lead to another.
    let made = fs::remove_file(&node).or_else(|error| match error.kind() {
        io::ErrorKind::NotFound => Ok(()),
        _ => Err(error),
    });
    let mode = Mode::RUSR | Mode::WUSR;
    made.and_then(|()| Ok(mknodat(CWD, &node, FileType::BlockDevice, mode, makedev(major, minor))?))
        .with_context(|| format!("cannot make {} for the kernel's mapping", node.display()))?;
    Ok(Some(node))
}

/// Whether the kernel can map at all: it has a device mapper, or a node that makes it load one.
pub(super) fn has_device_mapper() -> bool {
    let known = fs::read_to_string("/proc/misc").unwrap_or_default();
    Path::new(MAPPER).join("control").exists()
        || known.lines().any(|line| line.split_whitespace().nth(1) == Some("device-mapper"))
}

/// The device number of a mapping, by what the kernel shows in `/sys/block`.
fn number(blocks: &Path, name: &str) -> io::Result<Option<(u32, u32)>> {
    for entry in fs::read_dir(blocks)? {
        let block = entry?.path();
        let called = fs::read_to_string(block.join("dm/name")).unwrap_or_default();
        if called.trim_end() != name {
            continue;
        }
        let text = fs::read_to_string(block.join("dev"))?;
        let pair = text.trim_end().split_once(':');
        return Ok(pair.and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?))));
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapping_is_found_by_its_name() {
        let blocks = tempfile::tempdir().unwrap();
        for (block, name, number) in
            [("dm-0", "other", "253:0"), ("dm-1", "0123abcd_dif", "253:1"), ("dm-2", "0123abcd", "253:2")]
        {
            let block = blocks.path().join(block);
            fs::create_dir_all(block.join("dm")).unwrap();
            fs::write(block.join("dm/name"), format!("{name}\n")).unwrap();
            fs::write(block.join("dev"), format!("{number}\n")).unwrap();
        }
        fs::create_dir(blocks.path().join("vda")).unwrap();
        assert_eq!(number(blocks.path(), "0123abcd").unwrap(), Some((253, 2)));
        assert_eq!(number(blocks.path(), "gone").unwrap(), None);
    }
}
