//! `seedshares.json`: the seed, encrypted to its owners. The first `set` gets it, and nothing else ever makes it again,
//! so its place is taken before the request, it is written before anything else, and never over another.

use std::{
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use manifest::{KeyDigest, Manifest};
use serde::{Deserialize, Serialize};
use wire::user::{SeedShare, SeedShareDocument};
use zeroize::Zeroizing;

use crate::{
    printer::{Printer, Refused},
    whole_file::Reserved,
};

/// Its name in a workspace.
const NAME: &str = "seedshares.json";
/// More than an owner's entry takes: two numbers of an RSA key of 8192 bits in hex, and their names.
const BYTES_FOR_AN_OWNER: usize = 6 << 10;

/// What a seedshare owner keeps.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct SeedSharesFile {
    /// One per owner.
    seed_shares: Vec<SeedShareEntry>,
    /// Hex.
    salt: String,
}

/// The share of one owner.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct SeedShareEntry {
    /// Hex of PKCS#1 DER.
    public_key: String,
    /// Hex.
    encrypted_seed: String,
}

impl SeedSharesFile {
    /// The seed, or this owner's part of it, and the salt.
    pub(crate) fn open(
        &self,
        owner_key: &Zeroizing<String>,
    ) -> anyhow::Result<(Zeroizing<Vec<u8>>, Vec<u8>)> {
        let opened = self.seed_shares.iter().find_map(|share| {
            let ciphertext = hex::decode(&share.encrypted_seed).ok()?;
            keys::decrypt_seed_share(&ciphertext, owner_key).ok()
        });
        let seed = opened.ok_or_else(|| {
            let owner = |share: &SeedShareEntry| match hex::decode(&share.public_key) {
                Ok(der) => KeyDigest::of(&der).to_string(),
                Err(_) => "a key that is not hex".to_owned(),
            };
            let owners: Vec<String> = self.seed_shares.iter().map(owner).collect();
            Refused(format!(
                "no seed share in the document opens with this key; its owners have the keys {}: give the private key of one \
                 with --seedshare-owner-key, or the document of this deployment with --seed-shares",
                owners.join(", ")
            ))
        })?;
        Ok((seed, hex::decode(&self.salt).context("seed shares document: Salt is not hex")?))
    }
}

impl From<&SeedShareDocument> for SeedSharesFile {
    fn from(document: &SeedShareDocument) -> Self {
        let entry = |share: &SeedShare| SeedShareEntry {
            public_key: share.public_key.clone(),
            encrypted_seed: hex::encode(&share.encrypted_seed),
        };
        Self {
            seed_shares: document.seed_shares.iter().map(entry).collect(),
            salt: hex::encode(&document.salt),
        }
    }
}

/// The place for shares that a Coordinator without a history will make.
pub(crate) struct Place(Reserved);

impl Place {
    /// Takes it. Whoever has shares already keeps them: those of an earlier deployment are worth nothing only to
    /// somebody who is sure that it is gone.
    pub(crate) fn take(workspace: &Path, manifest: &Manifest) -> anyhow::Result<Self> {
        let path = workspace.join(NAME);
        if path.exists() {
            return Err(Refused(format!(
                "this Coordinator has no history yet, so its first manifest makes new seed shares, and {} holds those of \
                 another one: keep that file elsewhere, or give another --workspace-dir",
                path.display()
            ))
            .into());
        }
        let name = workspace.display();
        fs::create_dir_all(workspace).with_context(|| format!("cannot create {name}"))?;
        let bytes = 1024 + manifest.seedshare_owner_pub_keys.len() * BYTES_FOR_AN_OWNER;
        let reserved = Reserved::new(&path, bytes);
        let reserved = reserved.with_context(|| {
            format!("nothing was sent, because the seed shares could not be kept in {}", path.display())
        })?;
        Ok(Self(reserved))
    }
}

/// Writes shares that came; gives where they are. Where that fails they are printed, so that they are not lost.
pub(crate) fn keep(
    workspace: &Path,
    place: Option<Place>,
    document: &SeedShareDocument,
    printer: &Printer,
) -> anyhow::Result<PathBuf> {
    let content = serde_json::to_vec_pretty(&SeedSharesFile::from(document))?;
    let written = write(workspace, place, document, &content);
    written.map_err(|(path, error)| {
        printer.say(&format!(
            "The manifest was set, and its seed shares could not be written to {}. Nobody can recover this Coordinator \
             without them: keep what follows as seedshares.json.\n{}",
            path.display(),
            String::from_utf8_lossy(&content)
        ));
        anyhow::Error::from(error).context(format!("cannot write {}", path.display()))
    })
}

fn write(
    workspace: &Path,
    place: Option<Place>,
    document: &SeedShareDocument,
    content: &[u8],
) -> Result<PathBuf, (PathBuf, std::io::Error)> {
    // A name for them alone, should the usual one be taken by others.
    let own = hex::encode(document.salt.get(..4).unwrap_or_default());
    let paths = [workspace.join(NAME), workspace.join(format!("seedshares-{own}.json"))];
    let mut reserved = place.map(|place| place.0);
    let mut failed = (paths[0].clone(), std::io::Error::from(ErrorKind::AlreadyExists));
    for path in paths {
        if fs::read(&path).is_ok_and(|there| there == content) {
            return Ok(path); // given again
        }
        let file = match reserved.take() {
            Some(reserved) => Ok(reserved),
            None => Reserved::new(&path, content.len()),
        };
        match file.and_then(|file| file.fill(content)) {
            Ok(()) => return Ok(path),
            Err(error) => failed = (path, error),
        }
        if failed.1.kind() != ErrorKind::AlreadyExists {
            break;
        }
    }
    Err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::printer::OutputFormat;

    fn document(salt: u8) -> SeedShareDocument {
        let share = SeedShare { public_key: "aa".into(), encrypted_seed: vec![1, 2, 3] };
        SeedShareDocument { seed_shares: vec![share], salt: vec![salt; 32] }
    }

    #[test]
    fn shares_that_come_again_are_one_file_and_others_get_one_of_their_own() {
        let folder = tempfile::tempdir().unwrap();
        let printer = Printer::new(OutputFormat::Text);
        let keep = |salt| keep(folder.path(), None, &document(salt), &printer).unwrap();
        let first = keep(7);
        assert_eq!(first, folder.path().join("seedshares.json"));
        let content = fs::read(&first).unwrap();
        assert_eq!(keep(7), first);
        assert_eq!(keep(8), folder.path().join("seedshares-08080808.json"));
        assert_eq!(keep(8), folder.path().join("seedshares-08080808.json"));
        assert_eq!(fs::read(&first).unwrap(), content, "never over another");
    }

    #[test]
    fn a_place_is_refused_where_shares_are_and_where_none_can_be() {
        let folder = tempfile::tempdir().unwrap();
        let manifest = Manifest::read(br#"{"Policies":{},"ReferenceValues":{}}"#).unwrap();
        let take = |path: &str| Place::take(&folder.path().join(path), &manifest);
        fs::write(folder.path().join("seedshares.json"), "mine").unwrap();
        let refused = take("").err().unwrap();
        assert!(refused.is::<Refused>() && refused.to_string().contains("holds those of another one"));
        let in_the_way = take("seedshares.json").err().unwrap();
        assert!(format!("{in_the_way:#}").contains("cannot create"), "{in_the_way:#}");
        drop(take("new").unwrap());
        assert_eq!(
            fs::read_dir(folder.path().join("new")).unwrap().count(),
            0,
            "a place not used is given back"
        );
    }
}
