//! Volumes as a hostile host would present them.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use encrypted_volume::{
    HEADER_BYTES, HeaderError, Refused, SEAL_BYTES, SealKey, State, Verdict, check_header, judge, seal,
};
use proptest::prelude::*;
use sha2::{Digest as _, Sha256};

/// As cryptsetup 2.6 writes it.
const METADATA: &str = include_str!("../testdata/metadata.json");
const COPY: usize = 16 << 10;

fn key() -> SealKey {
    SealKey::derive(&[7; 64], "/state").unwrap()
}

/// A well-formed header around this metadata, checksums and all, as anybody can make one.
fn header(metadata: &str) -> Vec<u8> {
    let mut bytes = vec![0; HEADER_BYTES];
    for (place, magic) in [(0, b"LUKS\xba\xbe"), (COPY, b"SKUL\xba\xbe")] {
        let copy = &mut bytes[place..place + COPY];
        copy[..6].copy_from_slice(magic);
        copy[6..8].copy_from_slice(&2_u16.to_be_bytes());
        copy[8..16].copy_from_slice(&(COPY as u64).to_be_bytes());
        copy[16..24].copy_from_slice(&3_u64.to_be_bytes());
        copy[72..78].copy_from_slice(b"sha256");
        copy[168..204].copy_from_slice(b"1b53b187-7693-4e52-9d90-b7259abaf74a");
        copy[256..264].copy_from_slice(&(place as u64).to_be_bytes());
        copy[4096..4096 + metadata.trim().len()].copy_from_slice(metadata.trim().as_bytes());
        let checksum = Sha256::digest(&*copy);
        copy[448..480].copy_from_slice(&checksum);
    }
    bytes
}

/// What the header check says to metadata in which `from` became `to`, sealed by the workload itself, so
/// that nothing but the fields can be wrong.
fn with(from: &str, to: &str) -> String {
    assert!(METADATA.contains(from), "{from:?} is not in the metadata");
    let header = header(&METADATA.replacen(from, to, 1));
    let block = seal(&key(), State::Ready, Some(&header));
    judge(&key(), &header, &block).unwrap_err().to_string()
}

#[test]
fn our_own_volume_opens() {
    let header = header(METADATA);
    let verdict = |state| judge(&key(), &header, &seal(&key(), state, Some(&header)));
    assert_eq!(verdict(State::Ready), Ok(Verdict::Open));
    assert_eq!(verdict(State::Encrypted), Ok(Verdict::MakeFileSystem));
}

#[test]
fn a_null_cipher_is_refused_even_if_the_header_were_authentic() {
    let cipher = r#""encryption":"aes-xts-plain64","sector_size""#;
    assert_eq!(
        with(cipher, r#""encryption":"cipher_null-ecb","sector_size""#),
        "LUKS2 metadata, segments.0.encryption: expected aes-xts-plain64, found cipher_null-ecb"
    );
    let keyslot = r#""encryption":"aes-xts-plain64","key_size":64"#;
    assert_eq!(
        with(keyslot, r#""encryption":"cipher_null-ecb","key_size":64"#),
        "LUKS2 metadata, keyslots.0.area.encryption: expected aes-xts-plain64, found cipher_null-ecb"
    );
}

#[test]
fn each_weakened_field_is_named() {
    for (from, to, field) in [
        (r#""key_size":96"#, r#""key_size":64"#, "keyslots.0.key_size"),
        (r#""stripes":4000"#, r#""stripes":1"#, "keyslots.0.af.stripes"),
        (r#""offset":"32768""#, r#""offset":"65536""#, "keyslots.0.area.offset"),
        (r#""time":4"#, r#""time":4000000000"#, "keyslots.0.kdf.time"),
        (r#""memory":10240"#, r#""memory":4194304"#, "keyslots.0.kdf.memory"),
        (r#""cpus":1"#, r#""cpus":0"#, "keyslots.0.kdf.cpus"),
        (r#""type":"argon2id""#, r#""type":"pbkdf2""#, "keyslots.0.kdf.type"),
        (r#""type":"crypt""#, r#""type":"linear""#, "segments.0.type"),
        (r#""offset":"16777216""#, r#""offset":"0""#, "segments.0.offset"),
        (r#""size":"dynamic""#, r#""size":"4096""#, "segments.0.size"),
        (r#""iv_tweak":"0""#, r#""iv_tweak":"8""#, "segments.0.iv_tweak"),
        (r#""sector_size":4096"#, r#""sector_size":512"#, "segments.0.sector_size"),
        (r#""hmac(sha256)""#, r#""none""#, "segments.0.integrity.type"),
        (r#""segments":["0"]"#, r#""segments":[]"#, "digests.0.segments"),
        (r#""iterations":1000"#, r#""iterations":1"#, "digests.0.iterations"),
        (r#""json_size":"12288""#, r#""json_size":"4194304""#, "config.json_size"),
    ] {
        let text = with(from, to);
        assert!(text.starts_with(&format!("LUKS2 metadata, {field}: ")), "{field}: {text}");
    }
}

#[test]
fn whatever_we_never_write_is_refused() {
    let second = r#""segments":{"1":{"type":"linear"},"0""#;
    assert!(with(r#""segments":{"0""#, second).contains("unknown field `1`"));
    assert!(with(r#""tokens":{}"#, r#""tokens":{"0":{"type":"x"}}"#).contains("unknown field `0`"));
    assert!(
        with(r#""json_size""#, r#""requirements":{},"json_size""#).contains("unknown field `requirements`")
    );
    let twice = r#""iv_tweak":"8","iv_tweak":"0""#;
    assert!(with(r#""iv_tweak":"0""#, twice).contains("duplicate field `iv_tweak`"));
    let no_integrity =
        r#","integrity":{"type":"hmac(sha256)","journal_encryption":"none","journal_integrity":"none"}"#;
    assert!(with(no_integrity, "").contains("missing field `integrity`"));
}

#[test]
fn a_header_from_elsewhere_is_refused_before_it_is_read() {
    let (ours, theirs) = (header(METADATA), header(&METADATA.replace("aes-xts-plain64", "cipher_null-ecb")));
    let block = seal(&key(), State::Ready, Some(&ours));
    assert_eq!(judge(&key(), &theirs, &block), Err(Refused::HeaderChanged));
    assert_eq!(judge(&key(), &vec![0; HEADER_BYTES], &block), Err(Refused::HeaderChanged));
    let mut other_keyslot = ours.clone();
    other_keyslot[40_000] ^= 1;
    assert_eq!(judge(&key(), &other_keyslot, &block), Err(Refused::HeaderChanged));
}

#[test]
fn a_seal_holds_for_one_workload_and_one_mount_point() {
    let header = header(METADATA);
    for (secret, mount) in [([8; 64], "/state"), ([7; 64], "/other")] {
        let foreign = SealKey::derive(&secret, mount).unwrap();
        let block = seal(&foreign, State::Ready, Some(&header));
        assert_eq!(judge(&key(), &header, &block), Err(Refused::ForeignSeal), "{mount}");
    }
}

#[test]
fn pods_of_a_stateful_set_cannot_be_given_each_others_disks() {
    let header = header(METADATA);
    let pod = |ordinal| key().of_pod(ordinal);
    for state in [State::Formatting, State::Encrypted, State::Ready] {
        let of_pod_1 = seal(&pod(1), state, Some(&header));
        assert!(judge(&pod(1), &header, &of_pod_1).is_ok());
        let refused = judge(&pod(0), &header, &of_pod_1).unwrap_err();
        assert_eq!(refused, Refused::OtherPod { expected: 0, found: 1 });
        assert!(
            refused.to_string().contains("the volume of pod 1")
                && refused.to_string().contains("this is pod 0")
        );
        assert_eq!(judge(&key(), &header, &of_pod_1), Err(Refused::OfAPod(1)));
        // The host writes another ordinal there, or that there is none.
        for (place, byte) in [(23, 0), (17, 0), (20, 1), (18, 1)] {
            let mut changed = of_pod_1;
            changed[place] = byte;
            assert_eq!(judge(&pod(0), &header, &changed), Err(Refused::ForeignSeal));
        }
    }
    // Made before seals named a pod: whoever starts it says that it is this one's.
    let before = seal(&key(), State::Ready, Some(&header));
    assert_eq!(judge(&pod(0), &header, &before), Err(Refused::OfNoPod));
    assert_eq!(judge(&pod(0).of_any_pod(), &header, &before), Ok(Verdict::Open));
}

#[test]
fn each_crash_point_is_recognised() {
    let blank = vec![0; HEADER_BYTES];
    assert_eq!(judge(&key(), &blank, &[0; SEAL_BYTES]), Ok(Verdict::Format));
    // Formatting began: half a header may be there.
    let began = seal(&key(), State::Formatting, None);
    let mut half = header(METADATA);
    half[COPY..].fill(0);
    assert_eq!(judge(&key(), &half, &began), Ok(Verdict::Format));
    assert_eq!(judge(&key(), &blank, &began), Ok(Verdict::Format));
}

#[test]
fn what_is_not_ours_is_not_overwritten() {
    let refused = |start: &[u8]| judge(&key(), start, &[0; SEAL_BYTES]).unwrap_err();
    assert_eq!(refused(&header(METADATA)), Refused::NotSealed("a LUKS volume"));
    let mut ext4 = vec![0; HEADER_BYTES];
    ext4[1080..1082].copy_from_slice(&[0x53, 0xef]);
    assert_eq!(refused(&ext4), Refused::NotSealed("an ext2, ext3 or ext4 file system"));
    let mut data = vec![0; HEADER_BYTES];
    data[500_000] = 1;
    assert_eq!(refused(&data), Refused::NotSealed("data"));
}

#[test]
fn the_two_copies_must_agree_and_their_checksums_hold() {
    let mut other_sequence = header(METADATA);
    let second = header(&METADATA.replace("\"cpus\":1", "\"cpus\":2"));
    other_sequence[COPY..2 * COPY].copy_from_slice(&second[COPY..2 * COPY]);
    assert_eq!(check_header(&other_sequence), Err(HeaderError::CopiesDiffer("the metadata")));
    let mut flipped = header(METADATA);
    flipped[5000] ^= 1;
    assert!(check_header(&flipped).unwrap_err().to_string().contains("checksum"));
    assert_eq!(check_header(&[0; 100]), Err(HeaderError::Length(100)));
}

proptest! {
    /// One changed bit anywhere in header or seal, and the volume is not opened.
    #[test]
    fn a_changed_bit_is_refused(place in 0..HEADER_BYTES + 88, bit in 0_u8..8) {
        let mut header = header(METADATA);
        let mut block = seal(&key(), State::Ready, Some(&header));
        match place.checked_sub(HEADER_BYTES) {
            Some(place) => block[place] ^= 1_u8 << bit,
            None => header[place] ^= 1_u8 << bit,
        }
        prop_assert!(judge(&key(), &header, &block).is_err());
    }
}
