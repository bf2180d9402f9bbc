//! Evidence through configfs-tsm (Linux `Documentation/ABI/testing/configfs-tsm-report`).
//!
//! One directory is one request: made under a random name, given 64 bytes, read, and removed. A
//! counter, `generation`, tells whether somebody else wrote in between; then the answer is thrown
//! away and asked for again.

use std::{
    fs,
    io::{self, Read as _, Write as _},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use super::{CertificateTable, within};
use crate::{
    Evidence, EvidenceOid, IssueError, Issuer, ReportData, SnpEvidence, TdxEvidence, snp::REPORT_BYTES,
};

/// Largest blob that is read, in bytes: quotes take 5 to 8 KiB, certificate tables some 20.
const MAX_BLOB: usize = 64 << 10;
/// Waits between attempts grow up to this.
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// Asks the kernel for evidence of this guest.
#[derive(Clone, Debug)]
pub struct ConfigfsTsm {
    root: PathBuf,
    limit: Duration,
}

/// What the kernel answered.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Answer {
    provider: Provider,
    report: Vec<u8>,
    certificates: Vec<u8>,
}

/// Who makes the reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Provider {
    SevGuest,
    TdxGuest,
}

/// One failed attempt.
enum Failure {
    /// Another writer; asking again helps.
    Disturbed(&'static str),
    Final(IssueError),
}

impl ConfigfsTsm {
    /// Where the kernel has it.
    pub const ROOT: &str = "/sys/kernel/config/tsm/report";

    /// Requests are made below `root`, each of which may take `limit` with all its attempts.
    pub fn new(root: impl Into<PathBuf>, limit: Duration) -> Self {
        Self { root: root.into(), limit }
    }

    /// Name of the kernel's provider: `sev_guest` or `tdx_guest`.
    pub fn provider(&self) -> Result<&'static str, IssueError> {
        let root = self.root.clone();
        let provider = within(self.limit, move || {
            let entry = Entry::create(&root).map_err(Failure::into_error)?;
            entry.provider().map_err(Failure::into_error)
        })?;
        Ok(match provider {
            Provider::SevGuest => "sev_guest",
            Provider::TdxGuest => "tdx_guest",
        })
    }

    fn ask(&self, data: ReportData) -> Result<Answer, IssueError> {
        let (root, limit) = (self.root.clone(), self.limit);
        within(limit, move || {
            let started = Instant::now();
            let mut pause = Duration::from_millis(5);
            loop {
                let disturbed = match attempt(&root, &data) {
                    Ok(answer) => return Ok(answer),
                    Err(Failure::Final(error)) => return Err(error),
                    Err(Failure::Disturbed(how)) => how,
                };
                if started.elapsed() + pause > limit {
                    return Err(IssueError::Disturbed { path: root.display().to_string(), how: disturbed });
                }
                std::thread::sleep(pause);
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        })
    }
}

impl Issuer for ConfigfsTsm {
    fn issue(&self, data: &ReportData) -> Result<Evidence, IssueError> {
        let Answer { provider, report, certificates } = self.ask(*data)?;
        let (oid, document) = match provider {
            Provider::SevGuest if report.len() != REPORT_BYTES => {
                return Err(IssueError::Platform(format!(
                    "the kernel gave a report of {} bytes, expected {REPORT_BYTES}",
                    report.len()
                )));
            }
            Provider::SevGuest => {
                // The table comes from the host, who may send nonsense: then it counts as empty, and
                // whoever judges the report finds the certificates elsewhere.
                let table = CertificateTable::parse(&certificates).unwrap_or_default();
                (EvidenceOid::Snp, SnpEvidence { report, ..table.into_chain() }.to_protobuf())
            }
            Provider::TdxGuest => {
                (EvidenceOid::Tdx, TdxEvidence { quote: report, collateral: None }.to_protobuf())
            }
        };
        let document = document.map_err(|error| IssueError::Platform(error.to_string()))?;
        Ok(Evidence { oid, document })
    }
}

/// Asks once.
fn attempt(root: &Path, data: &ReportData) -> Result<Answer, Failure> {
    let entry = Entry::create(root)?;
    let before = entry.generation()?;
    entry.write("inblob", data.as_bytes())?;
    let written = entry.generation()?;
    // The kernel takes the bytes when the file is closed, and has no way to say that it did not.
    if written == before {
        let error = "the kernel did not take the report data: its generation did not move";
        return Err(Failure::Final(IssueError::Platform(error.into())));
    }
    if written != before + 1 {
        return Err(Failure::Disturbed("somebody else wrote to the request"));
    }
    let provider = entry.provider()?;
    let report = entry.read("outblob")?;
    let certificates = match provider {
        Provider::SevGuest => entry.read("auxblob").or_else(Failure::unless_absent)?,
        Provider::TdxGuest => Vec::new(),
    };
    if entry.generation()? != written {
        return Err(Failure::Disturbed("the answer was to somebody else's question"));
    }
    if report.is_empty() {
        return Err(Failure::Final(IssueError::Platform("the kernel gave an empty report".into())));
    }
    Ok(Answer { provider, report, certificates })
}

impl Failure {
    fn io(path: &Path, source: io::Error) -> Self {
        match source.raw_os_error() {
            Some(libc::EBUSY | libc::EWOULDBLOCK) => Self::Disturbed("the kernel is busy"),
            _ => Self::Final(IssueError::Io { path: path.display().to_string(), source }),
        }
    }

    fn into_error(self) -> IssueError {
        match self {
            Self::Final(error) => error,
            Self::Disturbed(how) => IssueError::Disturbed { path: "configfs".into(), how },
        }
    }

    /// Kernels without the attribute, and hosts without certificates.
    fn unless_absent(self) -> Result<Vec<u8>, Self> {
        match self {
            Self::Final(IssueError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                Ok(Vec::new())
            }
            other => Err(other),
        }
    }
}

/// A request's directory; removed when dropped.
struct Entry(PathBuf);

impl Entry {
    fn create(root: &Path) -> Result<Self, Failure> {
        let mut name = [0; 8];
        aws_lc_rs::rand::fill(&mut name)
            .map_err(|_| Failure::Final(IssueError::Platform("no random numbers".into())))?;
        let path = root.join(format!("contrast-{}", hex::encode(name)));
        fs::create_dir(&path).map_err(|error| Failure::io(&path, error))?;
        Ok(Self(path))
    }

    fn write(&self, name: &str, bytes: &[u8]) -> Result<(), Failure> {
        let path = self.0.join(name);
        // One write of everything: the kernel reads each as a whole value.
        let write = || fs::OpenOptions::new().write(true).open(&path)?.write_all(bytes);
        write().map_err(|error| Failure::io(&path, error))
    }

    fn read(&self, name: &str) -> Result<Vec<u8>, Failure> {
        let path = self.0.join(name);
        let mut bytes = Vec::new();
        let limit = u64::try_from(MAX_BLOB + 1).unwrap_or(u64::MAX);
        let read = || fs::File::open(&path)?.take(limit).read_to_end(&mut bytes);
        let mut read = read;
        read().map_err(|error| Failure::io(&path, error))?;
        if bytes.len() > MAX_BLOB {
            let text = format!("{} is larger than {MAX_BLOB} bytes", path.display());
            return Err(Failure::Final(IssueError::Platform(text)));
        }
        Ok(bytes)
    }

    fn text(&self, name: &str) -> Result<String, Failure> {
        let bytes = self.read(name)?;
        Ok(String::from_utf8_lossy(&bytes[..bytes.len().min(100)]).trim().to_owned())
    }

    fn generation(&self) -> Result<u64, Failure> {
        let text = self.text("generation")?;
        text.parse().map_err(|_| {
            Failure::Final(IssueError::Platform(format!("generation is {text:?}, expected a number")))
        })
    }

    fn provider(&self) -> Result<Provider, Failure> {
        match self.text("provider")?.as_str() {
            "sev_guest" => Ok(Provider::SevGuest),
            "tdx_guest" => Ok(Provider::TdxGuest),
            other => Err(Failure::Final(IssueError::Platform(format!(
                "the kernel's provider is {other:?}, expected sev_guest or tdx_guest"
            )))),
        }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        // What is left behind costs the kernel a little memory, and nobody a wrong answer.
        let _ = fs::remove_dir(&self.0);
    }
}
