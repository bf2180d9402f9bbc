//! The issuers against a directory that behaves like the kernel's configfs-tsm: a real file system,
//! mounted by the test, whose requests come into being with `mkdir`, take their question when
//! `inblob` is closed, count writes, and answer. It can also misbehave.

use std::{
    collections::HashMap,
    ffi::OsStr,
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant, UNIX_EPOCH},
};

use attestation::{
    ConfigfsTsm, Evidence, EvidenceOid, Issuer, ReportData, SnpEvidence, TdxEvidence, detect,
    simulated::{SimulatedGuest, SimulatedKind, SimulatedMachine},
    verify,
};
use base64::Engine as _;
use fuser::{
    BackgroundSession, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation,
    INodeNo, LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyWrite,
    Request, WriteFlags,
};
use manifest::{PolicyHash, ReferenceValues};

use super::{checks, shared_machine, snp::NOW};

/// How the directory answers.
#[derive(Clone, Copy, PartialEq)]
enum Behaviour {
    Good,
    /// The first reads of `outblob` meet another writer.
    BusyAtFirst(u32),
    AlwaysBusy,
    /// While `outblob` is read the first times, somebody else writes.
    OvertakenAtFirst(u32),
    /// The question is not taken.
    Deaf,
    /// The report is cut off.
    Short,
    /// `outblob` never ends.
    Huge,
    Empty,
    /// The host's certificate table points outside itself.
    NonsenseTable,
    NoTable,
    /// The host's admin gave it PEM files.
    PemTable,
    /// No answer until the test is over.
    Silent,
    OtherProvider,
}

const ATTRIBUTES: [&str; 5] = ["inblob", "outblob", "auxblob", "generation", "provider"];

#[derive(Default)]
struct Entry {
    question: Vec<u8>,
    generation: u64,
    /// Report and certificate table.
    answer: Option<(Vec<u8>, Vec<u8>)>,
}

#[derive(Default)]
struct State {
    made: u64,
    entries: HashMap<u64, (String, Entry)>,
    reads: u32,
}

struct Kernel {
    kind: SimulatedKind,
    guest: SimulatedGuest,
    behaviour: Behaviour,
    state: Arc<Mutex<State>>,
    over: Arc<AtomicBool>,
}

/// Directories have the numbers 16, 32, ...; their attributes follow them.
fn parts(inode: INodeNo) -> (u64, &'static str) {
    let number = u64::from(inode);
    let place = usize::try_from(number % 16).unwrap();
    (number / 16, if place == 0 { "" } else { ATTRIBUTES[place - 1] })
}

fn attributes(inode: u64) -> FileAttr {
    let is_directory = inode == 1 || inode.is_multiple_of(16);
    FileAttr {
        ino: INodeNo(inode),
        size: 0,
        blocks: 0,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind: if is_directory { FileType::Directory } else { FileType::RegularFile },
        perm: 0o755,
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        flags: 0,
        blksize: 4096,
    }
}

impl Kernel {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// The report for a question, and the host's certificate table.
    fn answer(&self, question: &[u8]) -> (Vec<u8>, Vec<u8>) {
        let data = ReportData::from_bytes(question.try_into().unwrap());
        let document = self.guest.issue(&data).unwrap().document;
        match self.kind {
            SimulatedKind::Snp => {
                let evidence = SnpEvidence::from_protobuf(&document).unwrap();
                (evidence.report.clone(), table(&evidence, self.behaviour == Behaviour::PemTable))
            }
            SimulatedKind::Tdx => (TdxEvidence::from_protobuf(&document).unwrap().quote, Vec::new()),
        }
    }

    fn read_attribute(&self, directory: u64, name: &str) -> Result<Vec<u8>, Errno> {
        if name == "outblob" && self.behaviour == Behaviour::Silent {
            while !self.over.load(Ordering::Relaxed) {
                std::thread::park_timeout(Duration::from_millis(5));
            }
        }
        let mut state = self.state();
        if name == "outblob" {
            state.reads += 1;
        }
        let reads = state.reads;
        let (_, entry) = state.entries.get_mut(&directory).ok_or(Errno::ENOENT)?;
        match name {
            "generation" => Ok(format!("{}\n", entry.generation).into_bytes()),
            "provider" => Ok(match (self.behaviour, self.kind) {
                (Behaviour::OtherProvider, _) => b"arm_cca_guest\n".to_vec(),
                (_, SimulatedKind::Snp) => b"sev_guest\n".to_vec(),
                (_, SimulatedKind::Tdx) => b"tdx_guest\n".to_vec(),
            }),
            "outblob" | "auxblob" if entry.answer.is_none() => Err(Errno::EINVAL),
            "outblob" => {
                match self.behaviour {
                    Behaviour::BusyAtFirst(times) if reads <= times => return Err(Errno::EBUSY),
                    Behaviour::AlwaysBusy => return Err(Errno::EAGAIN),
                    Behaviour::OvertakenAtFirst(times) if reads <= times => entry.generation += 1,
                    _ => {}
                }
                let mut report = entry.answer.clone().unwrap_or_default().0;
                match self.behaviour {
                    Behaviour::Short => report.truncate(1000),
                    Behaviour::Empty => report.clear(),
                    Behaviour::Huge => report.resize(1 << 20, 0),
                    _ => {}
                }
                Ok(report)
            }
            "auxblob" => match self.behaviour {
                Behaviour::NoTable => Err(Errno::ENOENT),
                Behaviour::NonsenseTable => Ok(vec![0xff; 100]),
                _ => Ok(entry.answer.clone().unwrap_or_default().1),
            },
            _ => Err(Errno::EACCES),
        }
    }
}

/// The chain in the form that a host hands to its guests.
fn table(evidence: &SnpEvidence, pem: bool) -> Vec<u8> {
    let certificates = [
        ("63da758de6644564adc5f4b93be8accd", &evidence.vcek),
        ("4ab7b379bbac4fe4a02f05aef327c782", &evidence.ask),
        ("c0b406a4a803495297433fb6014cd0ae", &evidence.ark),
        ("92f81bc358114d3d97ffd19f88dc67ea", evidence.crl.as_ref().unwrap()),
    ];
    let (mut entries, mut content) = (Vec::new(), Vec::<u8>::new());
    let first = 24 * (certificates.len() + 1);
    for (guid, der) in certificates {
        let certificate = if pem { as_pem(der) } else { der.clone() };
        entries.extend(hex::decode(guid).unwrap());
        entries.extend(u32::try_from(first + content.len()).unwrap().to_le_bytes());
        entries.extend(u32::try_from(certificate.len()).unwrap().to_le_bytes());
        content.extend(certificate);
    }
    entries.extend([0; 24]);
    entries.extend(content);
    entries
}

fn as_pem(der: &[u8]) -> Vec<u8> {
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    format!("-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n").into_bytes()
}

const NOT_CACHED: Duration = Duration::ZERO;

impl Filesystem for Kernel {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let (state, parent) = (self.state(), u64::from(parent));
        let wanted = name.to_str().unwrap();
        let inode = if parent == 1 {
            let mut entries = state.entries.iter();
            entries.find(|(_, (name, _))| name == wanted).map(|(number, _)| number * 16)
        } else {
            let known = state.entries.contains_key(&(parent / 16));
            let place = ATTRIBUTES.iter().position(|name| *name == wanted).filter(|_| known);
            place.map(|place| parent + 1 + u64::try_from(place).unwrap())
        };
        match inode {
            Some(inode) => reply.entry(&NOT_CACHED, &attributes(inode), Generation(0)),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &Request, inode: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&NOT_CACHED, &attributes(u64::from(inode)));
    }

    fn mkdir(&self, _: &Request, _: INodeNo, name: &OsStr, _: u32, _: u32, reply: ReplyEntry) {
        let mut state = self.state();
        state.made += 1;
        let number = state.made;
        state.entries.insert(number, (name.to_str().unwrap().to_owned(), Entry::default()));
        reply.entry(&NOT_CACHED, &attributes(number * 16), Generation(0));
    }

    fn rmdir(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let name = name.to_str().unwrap();
        self.state().entries.retain(|_, (known, _)| known != name);
        reply.ok();
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO);
    }

    fn read(
        &self,
        _: &Request,
        inode: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let (directory, name) = parts(inode);
        match self.read_attribute(directory, name) {
            Ok(content) => {
                let from = content.len().min(usize::try_from(offset).unwrap());
                let to = content.len().min(from + usize::try_from(size).unwrap());
                reply.data(&content[from..to]);
            }
            Err(error) => reply.error(error),
        }
    }

    fn write(
        &self,
        _: &Request,
        inode: INodeNo,
        _: FileHandle,
        _: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let mut state = self.state();
        if let Some((_, entry)) = state.entries.get_mut(&parts(inode).0) {
            entry.question = data.to_vec();
        }
        reply.written(u32::try_from(data.len()).unwrap());
    }

    /// The kernel takes what was written when the file is closed.
    fn flush(&self, _: &Request, inode: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        let (directory, name) = parts(inode);
        if name == "inblob"
            && self.behaviour != Behaviour::Deaf
            && let Some((_, entry)) = self.state().entries.get_mut(&directory)
        {
            entry.generation += 1;
            entry.answer = Some(self.answer(&entry.question));
        }
        reply.ok();
    }
}

/// A mounted directory over a simulated machine.
struct Mounted {
    mount: tempfile::TempDir,
    reference: ReferenceValues,
    state: Arc<Mutex<State>>,
    over: Arc<AtomicBool>,
    session: Option<BackgroundSession>,
}

impl Mounted {
    fn new(kind: SimulatedKind, behaviour: Behaviour) -> Self {
        let machine = SimulatedMachine::open(shared_machine(kind)).unwrap();
        let reference = machine.reference_values();
        let guest = machine.guest(PolicyHash::of(b"policy"));
        let over = Arc::new(AtomicBool::new(false));
        let state = Arc::<Mutex<State>>::default();
        let kernel = Kernel { kind, guest, behaviour, state: Arc::clone(&state), over: Arc::clone(&over) };
        let mount = tempfile::tempdir().unwrap();
        let session = fuser::spawn_mount(kernel, mount.path(), &Config::default())
            .expect("root and /dev/fuse are needed to stand in for the kernel");
        Self { mount, reference, state, over, session: Some(session) }
    }

    fn path(&self) -> &Path {
        self.mount.path()
    }

    fn issue(&self) -> Result<Evidence, String> {
        let issuer = ConfigfsTsm::new(self.path(), Duration::from_secs(5));
        issuer.issue(&DATA).map_err(|error| error.to_string())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        // Every request was removed by its asker, also by one that nobody waits for any more.
        let started = Instant::now();
        while !self.state.lock().unwrap().entries.is_empty() && started.elapsed() < Duration::from_secs(10) {
            std::thread::park_timeout(Duration::from_millis(5));
        }
        if let Some(session) = self.session.take() {
            session.umount_and_join().unwrap();
        }
    }
}

const DATA: ReportData = ReportData::from_bytes([7; 64]);

#[test]
fn evidence_through_configfs_convinces_the_verifier() {
    let mounted = Mounted::new(SimulatedKind::Snp, Behaviour::Good);
    let evidence = detect(mounted.path()).unwrap().issue(&DATA).unwrap();
    assert_eq!(evidence.oid, EvidenceOid::Snp);
    let claims = verify(&evidence, &DATA, &mounted.reference, NOW).unwrap();
    assert_eq!(claims.policy_hash(), PolicyHash::of(b"policy"));
    // Nothing is left behind, and the next question gets an answer of its own.
    assert_eq!(ConfigfsTsm::new(mounted.path(), Duration::from_secs(5)).provider().unwrap(), "sev_guest");
    let other = ReportData::from_bytes([8; 64]);
    assert_eq!(checks(verify(&mounted.issue().unwrap(), &other, &mounted.reference, NOW)), ["report data"]);

    let mounted = Mounted::new(SimulatedKind::Tdx, Behaviour::Good);
    let evidence = detect(mounted.path()).unwrap().issue(&DATA).unwrap();
    assert_eq!(evidence.oid, EvidenceOid::Tdx);
    // A quote comes without collateral: that is the verifier's to find.
    assert_eq!(checks(verify(&evidence, &DATA, &mounted.reference, NOW)), ["collateral"]);
}

#[test]
fn a_hosts_certificates_may_be_pem() {
    let mounted = Mounted::new(SimulatedKind::Snp, Behaviour::PemTable);
    assert!(verify(&mounted.issue().unwrap(), &DATA, &mounted.reference, NOW).is_ok());
}

#[test]
fn disturbed_answers_are_asked_for_again() {
    for behaviour in [Behaviour::BusyAtFirst(3), Behaviour::OvertakenAtFirst(3)] {
        let mounted = Mounted::new(SimulatedKind::Snp, behaviour);
        let evidence = mounted.issue().unwrap();
        assert!(verify(&evidence, &DATA, &mounted.reference, NOW).is_ok());
    }
}

#[test]
fn a_misbehaving_kernel_is_an_error_that_says_how() {
    let cases = [
        (Behaviour::Deaf, "did not take the report data"),
        (Behaviour::Short, "a report of 1000 bytes, expected 1184"),
        (Behaviour::Huge, "outblob is larger than 65536 bytes"),
        (Behaviour::Empty, "an empty report"),
        (Behaviour::OtherProvider, "\"arm_cca_guest\", expected sev_guest or tdx_guest"),
    ];
    for (behaviour, expected) in cases {
        let mounted = Mounted::new(SimulatedKind::Snp, behaviour);
        let error = mounted.issue().unwrap_err();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn a_hosts_bad_certificate_table_counts_as_none() {
    for behaviour in [Behaviour::NonsenseTable, Behaviour::NoTable] {
        let mounted = Mounted::new(SimulatedKind::Snp, behaviour);
        let evidence = SnpEvidence::from_protobuf(&mounted.issue().unwrap().document).unwrap();
        assert_eq!((evidence.report.len(), evidence.vcek.len()), (1184, 0));
    }
}

#[test]
fn waiting_has_an_end() {
    // Who is asked again and again has to answer that it is busy within what is left of the time.
    for (behaviour, limit) in [(Behaviour::Silent, 400), (Behaviour::AlwaysBusy, 5000)] {
        let mounted = Mounted::new(SimulatedKind::Snp, behaviour);
        let started = Instant::now();
        let limit = Duration::from_millis(limit);
        let error = ConfigfsTsm::new(mounted.path(), limit).issue(&DATA).unwrap_err().to_string();
        let expected =
            if behaviour == Behaviour::Silent { "did not answer within" } else { "busy, at every" };
        assert!(error.contains(expected), "{error}");
        assert!(started.elapsed() < Duration::from_secs(60));
    }
}

#[test]
fn no_platform_says_what_was_looked_for() {
    let error = detect(Path::new("/nonexistent/tsm")).err().unwrap().to_string();
    assert!(error.contains("/nonexistent/tsm and /dev/sev-guest"), "{error}");
    assert!(error.contains("--simulated-machine"), "{error}");
}
