//! dm-verity roots against those of Debian's `veritysetup`.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};

use launch_digest::{MeasureError, RootFileSystem, VerityParameters};

/// What `veritysetup format` prints as the root hash.
fn veritysetup(data: &Path, hash: &Path, more: &[&str]) -> String {
    let output = Command::new("veritysetup")
        .args(["format", data.to_str().unwrap(), hash.to_str().unwrap()])
        .args(more)
        .stderr(Stdio::inherit())
        .output()
        .unwrap_or_else(|error| {
            panic!("veritysetup: {error}; ./test installs it (apt-get install cryptsetup-bin)")
        });
    let text = String::from_utf8(output.stdout).unwrap();
    let root = text.lines().find_map(|line| line.strip_prefix("Root hash:"));
    root.unwrap_or_else(|| panic!("no root hash in {text:?}")).trim().to_owned()
}

fn verify_root_file_system(image: &Path, command_line: &str) -> Result<RootFileSystem, MeasureError> {
    launch_digest::verify_root_file_system(fs::File::open(image).unwrap(), command_line)
}

fn content(blocks: usize) -> Vec<u8> {
    let mut state = 0x2545_f491u32;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state.to_le_bytes()
    };
    (0..blocks * 1024).flat_map(|_| next()).collect()
}

#[test]
fn roots_are_veritysetups_for_every_height_of_the_tree() {
    let folder = tempfile::tempdir().unwrap();
    let (data, hash) = (folder.path().join("data"), folder.path().join("hash"));
    let salt = "00112233445566778899aabbccddeeff";
    let bytes: Vec<u8> = (0..16).map(|digit| digit * 0x11).collect();
    // 128 hashes fill a block, 128 * 128 a second level.
    for blocks in [1, 2, 127, 128, 129, 256, 16_384, 16_385] {
        let text = content(blocks);
        fs::write(&data, &text).unwrap();
        let parameters =
            |salt: Vec<u8>| VerityParameters::new("sha256", 4096, 4096, blocks as u64, salt).unwrap();
        let root = parameters(bytes.clone()).root_hash(text.as_slice()).unwrap();
        assert_eq!(root.to_string(), veritysetup(&data, &hash, &["--salt", salt]), "{blocks} blocks");
        let root = parameters(Vec::new()).root_hash(text.as_slice()).unwrap();
        assert_eq!(root.to_string(), veritysetup(&data, &hash, &["--salt", "-"]), "{blocks} blocks, no salt");
    }
    let text = content(300);
    fs::write(&data, &text).unwrap();
    let small = VerityParameters::new("sha256", 1024, 512, 1200, bytes).unwrap();
    let more = ["--salt", salt, "--data-block-size", "1024", "--hash-block-size", "512"];
    assert_eq!(small.root_hash(text.as_slice()).unwrap().to_string(), veritysetup(&data, &hash, &more));
    let cut = small.root_hash(&text[..text.len() - 1]).unwrap_err().to_string();
    assert!(cut.contains("data block 1199 of 1200"), "{cut}");
}

/// An image with the tree behind the data, as one device.
#[test]
fn an_image_is_what_its_command_line_says_or_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("rootfs.img");
    fs::write(&image, content(200)).unwrap();
    let root = veritysetup(&image, &image, &["--hash-offset", "819200"]);
    let line = format!("quiet roothash={root} panic=1");
    let found = verify_root_file_system(&image, &line).unwrap();
    assert_eq!((found.root.to_string(), found.offset, found.bytes), (root.clone(), 0, 819_200));

    let whole = fs::read(&image).unwrap();
    for at in [0, 4096, 819_199] {
        let mut changed = whole.clone();
        changed[at] ^= 1;
        fs::write(&image, changed).unwrap();
        let refused = verify_root_file_system(&image, &line).unwrap_err().to_string();
        assert!(
            refused.contains("not the command line's") && refused.contains(&root),
            "byte {at}: {refused}"
        );
    }
    fs::write(&image, &whole[..819_200]).unwrap();
    let without = verify_root_file_system(&image, &line).unwrap_err().to_string();
    assert!(without.contains("no dm-verity superblock"), "{without}");
    // With a table no superblock is needed; numbers and salt are in it.
    let salt =
        whole[819_200 + 88..819_200 + 120].iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let table = format!(
        "dm-mod.create=\"r,,,ro,0 1600 verity 1 /dev/vda1 /dev/vda2 4096 4096 200 0 sha256 {root} {salt}\""
    );
    assert_eq!(verify_root_file_system(&image, &table).unwrap(), found);
}

/// GPT, as image builders make it: the file system in one partition, its tree in another.
#[test]
fn file_system_and_tree_are_found_in_their_partitions() {
    let folder = tempfile::tempdir().unwrap();
    let (data, hash, image) =
        (folder.path().join("data"), folder.path().join("hash"), folder.path().join("disk.img"));
    fs::write(&data, content(50)).unwrap();
    let root = veritysetup(&data, &hash, &[]);
    let (data, hash) = (fs::read(&data).unwrap(), fs::read(&hash).unwrap());
    let (data_at, hash_at) = (2048usize, 2048 + data.len() / 512);
    let mut disk = vec![0; hash_at * 512 + hash.len()];
    let mut put = |at: usize, bytes: &[u8]| disk[at..at + bytes.len()].copy_from_slice(bytes);
    put(510, &[0x55, 0xaa]);
    put(512, b"EFI PART");
    put(512 + 72, &2u64.to_le_bytes());
    put(512 + 80, &4u32.to_le_bytes());
    put(512 + 84, &128u32.to_le_bytes());
    // The tree's partition stands first in the table.
    for (index, (first, length)) in [(hash_at, hash.len()), (data_at, data.len())].into_iter().enumerate() {
        let entry = 1024 + index * 128;
        put(entry, &[1; 16]);
        put(entry + 32, &(first as u64).to_le_bytes());
        put(entry + 40, &((first + length / 512 - 1) as u64).to_le_bytes());
    }
    put(data_at * 512, &data);
    put(hash_at * 512, &hash);
    fs::write(&image, &disk).unwrap();
    let found = verify_root_file_system(&image, &format!("rootfs_verity.hash={root}")).unwrap();
    let expected = RootFileSystem { root: root.parse().unwrap(), offset: 2048 * 512, bytes: 50 * 4096 };
    assert_eq!(found, expected);
    for cut in [512, 600, 1100, 4096] {
        fs::write(&image, &disk[..cut]).unwrap();
        assert!(verify_root_file_system(&image, &format!("roothash={root}")).is_err(), "cut at {cut}");
    }
}
