//! What is kept: in memory for every verification to read without a lock, and in a directory.

use std::{
    collections::BTreeMap,
    fmt, fs,
    io::{self, Read as _, Write as _},
    path::{Path, PathBuf},
    str::FromStr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use arc_swap::ArcSwap;
use attestation::{
    Anchors, CollateralError, PlatformCa, PlatformId, Refusal, Tcb, TdxCollateral, VcekId, VlekId,
};
use manifest::{SnpProduct, Timestamp};

/// Largest endorsement, in bytes; the same limit holds for what is fetched.
pub(crate) const MAX_BYTES: usize = 512 << 10;

/// How much is kept. Whoever has a chip can have its vendor certify each of its firmware versions, so what was not used
/// for the longest time gives way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) entries: usize,
    pub(crate) bytes: usize,
}

impl Limits {
    /// Certificates of chips have 1.4 KB: a fleet of 8000 chips, and Intel's collateral beside them. Part of the memory
    /// that docs/limits.md adds up.
    pub(crate) const USUAL: Self = Self { entries: 8192, bytes: 12 << 20 };
}

/// Names an endorsement. Its text is its file's name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Name {
    /// Certificate of a chip's key.
    Vcek(VcekId),
    /// Certificate of a provider's key. Only the provider's hosts hand it out.
    Vlek(VlekId),
    /// Revocation list of a product's root.
    Crl(SnpProduct),
    /// Collateral of a family of Intel platforms.
    Collateral(PlatformId),
}

/// From when to when an endorsement counts, and how new it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    /// CRL number, or TCB evaluation number.
    pub number: u64,
    /// When it was made.
    pub this_update: Timestamp,
    /// When the next one is due.
    pub next_update: Timestamp,
}

/// An endorsement that was verified.
#[derive(Clone, Debug)]
pub struct Entry {
    /// DER, or JSON for collateral.
    pub bytes: Arc<[u8]>,
    /// Absent for certificates of chips and providers, which are replaced by others and never expire here.
    pub validity: Option<Validity>,
    /// When it was last asked for, as [`Store::uses`] counts.
    used: Arc<AtomicU64>,
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        (&self.bytes, self.validity) == (&other.bytes, other.validity)
    }
}

impl Eq for Entry {}

/// Why an endorsement is not kept.
#[derive(Debug, thiserror::Error)]
pub enum PutError {
    /// Not what its name says, or signed by nobody who is trusted.
    #[error("{name}: {source}")]
    Refused {
        /// Its name.
        name: Name,
        /// Why.
        source: Refusal,
    },
    /// Collateral that is malformed or unsigned.
    #[error("{name}: {source}")]
    Collateral {
        /// Its name.
        name: Name,
        /// Why.
        source: CollateralError,
    },
    /// A newer one is known.
    #[error("{name}: number {got} is older than {known}, which is known already")]
    Older {
        /// Its name.
        name: Name,
        /// Number that is known.
        known: u64,
        /// Number that was offered.
        got: u64,
    },
    /// Collateral of another family.
    #[error("{name}: it is for platforms {found}")]
    OtherPlatform {
        /// Its name.
        name: Name,
        /// The family it is for.
        found: String,
    },
    /// The directory.
    #[error("cannot write {path}: {source}")]
    Io {
        /// Which file.
        path: String,
        /// What the system said.
        source: io::Error,
    },
}

/// Verified endorsements.
pub(crate) struct Store {
    anchors: Anchors,
    directory: Option<PathBuf>,
    entries: ArcSwap<BTreeMap<Name, Entry>>,
    /// Writers take turns; readers do not wait for them.
    writing: Mutex<()>,
    limits: Limits,
    /// How often something was asked for.
    uses: AtomicU64,
}

impl Store {
    /// Opens a directory, which is made if it is not there; without one, memory has to do.
    pub(crate) fn open(directory: Option<PathBuf>, anchors: Anchors, limits: Limits) -> io::Result<Self> {
        let mut entries = BTreeMap::new();
        if let Some(directory) = &directory {
            fs::create_dir_all(directory)?;
            let mut bytes = 0;
            for file in fs::read_dir(directory)?.take(2 * limits.entries) {
                let path = file?.path();
                let name = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse().ok());
                let Some(name) = name else { continue };
                match read(&path).map(|bytes| verify(&anchors, &name, bytes)) {
                    Ok(Ok(entry)) => {
                        bytes += entry.bytes.len();
                        if entries.len() >= limits.entries || bytes > limits.bytes {
                            break;
                        }
                        entries.insert(name, entry);
                    }
                    Ok(Err(error)) => {
                        tracing::warn!(path = %path.display(), %error, "cached endorsement ignored");
                    }
                    Err(error) => {
                        tracing::warn!(path = %path.display(), %error, "cached endorsement unreadable");
                    }
                }
            }
        }
        let entries = ArcSwap::from_pointee(entries);
        Ok(Self { anchors, directory, entries, writing: Mutex::new(()), limits, uses: AtomicU64::new(1) })
    }

    pub(crate) fn anchors(&self) -> &Anchors {
        &self.anchors
    }

    pub(crate) fn get(&self, name: &Name) -> Option<Entry> {
        let entry = self.entries.load().get(name).cloned()?;
        self.note_use(&entry);
        Some(entry)
    }

    /// To be called for what was found among [`Self::all`].
    pub(crate) fn note_use(&self, entry: &Entry) {
        entry.used.store(self.uses.fetch_add(1, Ordering::Relaxed), Ordering::Relaxed);
    }

    pub(crate) fn all(&self) -> Arc<BTreeMap<Name, Entry>> {
        self.entries.load_full()
    }

    /// Verifies an endorsement and keeps it, unless a newer one is known.
    pub(crate) fn put(&self, name: &Name, bytes: Vec<u8>) -> Result<Entry, PutError> {
        let entry = verify(&self.anchors, name, bytes)?;
        // What the lock guards is written in one step below, so a panic leaves nothing half done.
        let _turn = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let known = self.entries.load_full();
        match known.get(name) {
            Some(same) if *same == entry => return Ok(entry),
            Some(Entry { validity: Some(known), .. }) => {
                let number = |validity: &Validity| (validity.number, validity.this_update);
                if let Some(got) = entry.validity.filter(|got| number(got) < number(known)) {
                    let (name, known, got) = (name.clone(), known.number, got.number);
                    return Err(PutError::Older { name, known, got });
                }
            }
            _ => {}
        }
        self.note_use(&entry);
        if let Some(directory) = &self.directory {
            let path = directory.join(name.to_string());
            write(directory, &path, &entry.bytes)
                .map_err(|source| PutError::Io { path: path.display().to_string(), source })?;
        }
        let mut entries = BTreeMap::clone(&known);
        entries.insert(name.clone(), entry.clone());
        let leaving = self.too_much(&entries);
        for name in &leaving {
            entries.remove(name);
        }
        self.entries.store(Arc::new(entries));
        for name in leaving {
            tracing::info!(%name, "endorsement given up for newer ones: the cache is full");
            if let Some(directory) = &self.directory
                && let Err(error) = fs::remove_file(directory.join(name.to_string()))
            {
                tracing::warn!(%name, %error, "its file stays");
            }
        }
        Ok(entry)
    }

    /// What must go for the rest to fit, and a sixteenth more, so that not every new entry means a search. What expires
    /// is not the strangers' choice, and a revocation list must not be forgotten: certificates go first.
    fn too_much(&self, entries: &BTreeMap<Name, Entry>) -> Vec<Name> {
        let Limits { entries: most, bytes: most_bytes } = self.limits;
        let (mut count, mut bytes) =
            (entries.len(), entries.values().map(|entry| entry.bytes.len()).sum::<usize>());
        if count <= most && bytes <= most_bytes {
            return Vec::new();
        }
        let (most, most_bytes) = (most - most / 16, most_bytes - most_bytes / 16);
        let mut oldest_first: Vec<(&Name, &Entry)> = entries.iter().collect();
        oldest_first.sort_by_key(|(_, entry)| (entry.validity.is_some(), entry.used.load(Ordering::Relaxed)));
        let leaving = oldest_first.into_iter().take_while(|(_, entry)| {
            let goes = count > most || bytes > most_bytes;
            count -= 1;
            bytes -= entry.bytes.len();
            goes
        });
        leaving.map(|(name, _)| name.clone()).collect()
    }
}

/// Whoever is to be trusted signed this, and it is what its name says.
fn verify(anchors: &Anchors, name: &Name, bytes: Vec<u8>) -> Result<Entry, PutError> {
    let refused = |source| PutError::Refused { name: name.clone(), source };
    let validity = match name {
        Name::Vcek(id) => anchors.verify_vcek(id, &bytes).map(|()| None).map_err(refused)?,
        Name::Vlek(id) => anchors.verify_vlek(id, &bytes).map(|()| None).map_err(refused)?,
        Name::Crl(product) => {
            let dates = anchors.verify_crl(*product, &bytes).map_err(refused)?;
            let (number, this_update, next_update) = (dates.number, dates.this_update, dates.next_update);
            Some(Validity { number, this_update, next_update })
        }
        Name::Collateral(platform) => {
            let verified = TdxCollateral::from_json(&bytes)
                .and_then(|collateral| anchors.verify_collateral(&collateral));
            let dates = verified.map_err(|source| PutError::Collateral { name: name.clone(), source })?;
            if dates.fmspc != platform.fmspc {
                return Err(PutError::OtherPlatform { name: name.clone(), found: dates.fmspc });
            }
            let (this_update, next_update) = (dates.newest, dates.next_update);
            Some(Validity { number: dates.evaluation_number.into(), this_update, next_update })
        }
    };
    Ok(Entry { bytes: bytes.into(), validity, used: Arc::default() })
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let limit = u64::try_from(MAX_BYTES).unwrap_or(u64::MAX);
    fs::File::open(path)?.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() > MAX_BYTES {
        return Err(io::Error::other(format!("larger than {MAX_BYTES} bytes")));
    }
    Ok(bytes)
}

/// The whole file or none: a reader never sees half of one.
fn write(directory: &Path, path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = tempfile::NamedTempFile::new_in(directory)?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| error.error)?;
    fs::File::open(directory)?.sync_all()
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vcek(id) => write!(f, "vcek-{id}.der"),
            Self::Vlek(id) => write!(f, "vlek-{id}.der"),
            Self::Crl(product) => write!(f, "crl-{product:?}.der"),
            Self::Collateral(PlatformId { fmspc, ca }) => write!(f, "collateral-{fmspc}-{ca}.json"),
        }
    }
}

/// Not the name of an endorsement.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} names no endorsement")]
pub struct InvalidName(String);

impl FromStr for Name {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let name = || match text.split_once('-')? {
            ("vcek", rest) => vcek_id(rest.strip_suffix(".der")?).map(Self::Vcek),
            ("vlek", rest) => vlek_id(rest.strip_suffix(".der")?).map(Self::Vlek),
            ("crl", rest) => product(rest.strip_suffix(".der")?).map(Self::Crl),
            ("collateral", rest) => {
                let (fmspc, ca) = rest.strip_suffix(".json")?.split_once('-')?;
                let ca = match ca {
                    "platform" => PlatformCa::Platform,
                    "processor" => PlatformCa::Processor,
                    _ => return None,
                };
                let is_fmspc =
                    fmspc.len() == 12 && fmspc.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
                is_fmspc.then(|| Self::Collateral(PlatformId { fmspc: fmspc.to_owned(), ca }))
            }
            _ => None,
        };
        name().ok_or_else(|| InvalidName(text.chars().take(80).collect()))
    }
}

fn product(text: &str) -> Option<SnpProduct> {
    match text {
        "Milan" => Some(SnpProduct::Milan),
        "Genoa" => Some(SnpProduct::Genoa),
        "Turin" => Some(SnpProduct::Turin),
        _ => None,
    }
}

/// The parts of an id's text: product, a name in hex, firmware.
fn id_parts(text: &str) -> Option<(SnpProduct, Vec<u8>, Tcb)> {
    let mut parts = text.split('-');
    let (product, name, versions) =
        (product(parts.next()?)?, hex::decode(parts.next()?).ok()?, parts.next()?);
    let versions: Vec<u8> = versions.split('.').map(str::parse).collect::<Result<_, _>>().ok()?;
    let (fmc, rest) = match (product, versions.as_slice()) {
        (SnpProduct::Turin, [fmc, rest @ ..]) => (Some(*fmc), rest),
        (_, rest) => (None, rest),
    };
    let &[bootloader, tee, snp, microcode] = rest else { return None };
    parts.next().is_none().then_some((product, name, Tcb { fmc, bootloader, tee, snp, microcode }))
}

/// The reverse of the id's text.
fn vcek_id(text: &str) -> Option<VcekId> {
    let (product, chip, tcb) = id_parts(text)?;
    let id = VcekId { product, chip, tcb };
    (matches!(id.chip.len(), 8 | 64) && id.to_string() == text).then_some(id)
}

fn vlek_id(text: &str) -> Option<VlekId> {
    let (product, certificate, tcb) = id_parts(text)?;
    let id = VlekId { product, certificate: certificate.try_into().ok()?, tcb };
    (id.to_string() == text).then_some(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back() {
        let tcb = Tcb { fmc: Some(1), bootloader: 2, tee: 3, snp: 4, microcode: 5 };
        let names = [
            Name::Vcek(VcekId { product: SnpProduct::Turin, chip: vec![0xab; 8], tcb }),
            Name::Vcek(VcekId {
                product: SnpProduct::Milan,
                chip: vec![1; 64],
                tcb: Tcb { fmc: None, ..tcb },
            }),
            Name::Vlek(VlekId { product: SnpProduct::Turin, certificate: [7; 16], tcb }),
            Name::Crl(SnpProduct::Genoa),
            Name::Collateral(PlatformId { fmspc: "b0c06f000000".into(), ca: PlatformCa::Platform }),
        ];
        for name in names {
            assert_eq!(name.to_string().parse(), Ok(name));
        }
    }

    /// Real certificates, with their names.
    fn certificates() -> Vec<(Name, Vec<u8>)> {
        let anchors = Anchors::vendors();
        let files = [
            (
                SnpProduct::Milan,
                include_bytes!("../../attestation/testdata/milan-v2-sev.vcek.der").as_slice(),
            ),
            (SnpProduct::Milan, include_bytes!("../../attestation/testdata/milan-v3-oak-rk.vcek.der")),
            (SnpProduct::Genoa, include_bytes!("../../attestation/testdata/genoa-v5-oak.vcek.der")),
            (SnpProduct::Turin, include_bytes!("../../attestation/testdata/turin-v5-oak.vcek.der")),
        ];
        let named = |(product, der): (SnpProduct, &[u8])| {
            (Name::Vcek(anchors.identify_vcek(product, der).unwrap()), der.to_vec())
        };
        files.map(named).to_vec()
    }

    #[test]
    fn what_was_not_used_for_the_longest_time_gives_way() {
        let directory = tempfile::tempdir().unwrap();
        let open =
            |limits| Store::open(Some(directory.path().to_owned()), Anchors::vendors(), limits).unwrap();
        let all = certificates();
        let platform = PlatformId { fmspc: "b0c06f000000".into(), ca: PlatformCa::Platform };
        let collateral = include_bytes!("../../attestation/testdata/tdx/tdx10-v4-dcapqvl.collateral.json");
        let collateral = (Name::Collateral(platform), collateral.to_vec());

        let store = open(Limits { entries: 3, bytes: 1 << 20 });
        for (name, bytes) in [&collateral, &all[0], &all[1]] {
            store.put(name, bytes.clone()).unwrap();
        }
        assert!(store.get(&all[0].0).is_some(), "used later than the second");
        store.put(&all[2].0, all[2].1.clone()).unwrap();
        let kept: Vec<Name> = store.all().keys().cloned().collect();
        for there in [&collateral.0, &all[0].0, &all[2].0] {
            assert!(kept.contains(there), "{there}");
        }
        assert_eq!(kept.len(), 3);
        let files = fs::read_dir(directory.path()).unwrap().count();
        assert_eq!(files, 3, "on the disk as well");

        // The same by bytes: room for the collateral and one certificate.
        let room = collateral.1.len() + 2000;
        let store = open(Limits { entries: 100, bytes: room });
        store.put(&collateral.0, collateral.1.clone()).unwrap();
        for (name, bytes) in &all {
            store.put(name, bytes.clone()).unwrap();
            let held: usize = store.all().values().map(|entry| entry.bytes.len()).sum();
            assert!(held <= room, "{held} bytes of {room}");
        }
        assert!(store.get(&collateral.0).is_some(), "certificates go first");
    }

    proptest::proptest! {
        /// A file's name comes from an untrusted directory: it names nothing outside of it.
        #[test]
        fn whatever_parses_is_its_own_text(text in "(vcek|vlek|crl|collateral)-[./a-zA-Z0-9-]{0,40}") {
            if let Ok(name) = text.parse::<Name>() {
                proptest::prop_assert_eq!(name.to_string(), text);
            }
        }
    }
}
