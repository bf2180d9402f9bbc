use std::io::Write as _;

use super::*;

/// An archive with one entry; its path and link are written raw, since `tar` refuses to write bad ones.
fn archive(entries: &[(&str, EntryType, &str)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, kind, content) in entries {
        let mut header = tar::Header::new_ustar();
        header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
        header.set_entry_type(*kind);
        header.set_mode(0o6777);
        let data: &[u8] = match kind {
            EntryType::Symlink | EntryType::Link => {
                header.as_old_mut().linkname[..content.len()].copy_from_slice(content.as_bytes());
                &[]
            }
            _ => content.as_bytes(),
        };
        header.set_size(data.len().try_into().unwrap());
        header.set_cksum();
        builder.append(&header, data).unwrap();
    }
    builder.into_inner().unwrap()
}

fn refusal(entries: &[(&str, EntryType, &str)]) -> String {
    let folder = tempfile::tempdir().unwrap();
    let inside = folder.path().join("inside");
    let refused = unpack(archive(entries).as_slice(), &inside, 1000).unwrap_err().to_string();
    let left: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["inside"], "nothing outside");
    refused
}

use EntryType::{Block, Char, Directory, Fifo, Link, Regular, Symlink};

#[test]
fn hostile_entries_are_refused_by_name() {
    let outside = "entry \"../x\" leads out of the folder it is unpacked into";
    assert_eq!(refusal(&[("../x", Regular, "")]), outside);
    assert_eq!(refusal(&[("/etc/x", Regular, "")]), outside.replace("../x", "/etc/x"));
    assert_eq!(refusal(&[("a/../../x", Regular, "")]), outside.replace("../x", "a/../../x"));
    let link = |path: &str, to: &str| {
        format!("symlink {path:?} leads to {to:?}, out of the folder it is unpacked into")
    };
    assert_eq!(refusal(&[("a", Symlink, "/etc/passwd")]), link("a", "/etc/passwd"));
    assert_eq!(refusal(&[("a/b", Symlink, "../../x")]), link("a/b", "../../x"));
    // A folder reached through a symlink has another parent than its name says.
    assert_eq!(refusal(&[("a", Symlink, "."), ("b", Symlink, "a/../x")]), link("b", "a/../x"));
    for (kind, name) in
        [(Char, "character device"), (Block, "block device"), (Fifo, "named pipe"), (Link, "hard link")]
    {
        let wanted = format!("entry \"dev\" is a {name}; only files, folders and symlinks are unpacked");
        assert_eq!(refusal(&[("dev", kind, "")]), wanted);
    }
    let way = |path: &str| format!("entry {path:?} is in the way of another entry");
    assert_eq!(refusal(&[("a", Symlink, "b"), ("a/x", Regular, "")]), way("a/x"), "not through a link");
    assert_eq!(refusal(&[("a", Symlink, "b"), ("a", Regular, "")]), way("a"), "not over a link");
    assert_eq!(refusal(&[("a", Regular, "x"), ("a", Regular, "y")]), way("a"));
    let big = "x".repeat(600);
    assert_eq!(refusal(&[("a", Regular, &big), ("b", Regular, &big)]), "over 1000 bytes unpacked");
}

#[test]
fn what_is_unpacked_is_as_in_the_archive_but_for_the_dangerous_bits() {
    let plain =
        archive(&[("./bin/", Directory, ""), ("bin/x", Regular, "hello"), ("share/y", Symlink, "../bin/x")]);
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    gzip.write_all(&plain).unwrap();
    let zstd =
        ruzstd::encoding::compress_to_vec(plain.as_slice(), ruzstd::encoding::CompressionLevel::Fastest);
    for bytes in [plain, gzip.finish().unwrap(), zstd] {
        let folder = tempfile::tempdir().unwrap();
        unpack(bytes.as_slice(), folder.path(), 1000).unwrap();
        assert_eq!(fs::read(folder.path().join("share/y")).unwrap(), b"hello");
        let mode = fs::metadata(folder.path().join("bin/x")).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o755, "no set-id bits, not writable by others");
    }
}

#[test]
fn cut_off_archives_are_errors() {
    let whole = archive(&[("a", Regular, "hello"), ("b", Regular, "world")]);
    for end in [1, 100, 511, 513, 600, 1100] {
        let folder = tempfile::tempdir().unwrap();
        assert!(unpack(&whole[..end], folder.path(), 1000).is_err(), "{end} bytes");
    }
}
