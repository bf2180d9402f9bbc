//! Options that every program with endorsements has.

use std::{io, path::PathBuf};

use attestation::Anchors;

use crate::{Endorsements, Fetcher, Services};

/// Where endorsements come from, and where they are kept.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "Endorsements of the hardware vendors")]
pub struct EndorsementOptions {
    /// Directory in which vendors' certificates, revocation lists and collateral are kept.
    #[arg(long, env = "CONTRAST_ENDORSEMENT_CACHE", value_name = "DIR", global = true)]
    pub endorsement_cache: Option<PathBuf>,
    /// Mirror that is asked before AMD's and Intel's services, for the same paths.
    #[arg(long, env = "CONTRAST_COLLATERAL_PROXY", value_name = "URL", global = true)]
    pub collateral_proxy: Option<String>,
    /// File of `contrast endorsements export` to take into the cache at the start, and again when it changes: where no network
    /// is, a ConfigMap can bring it. Each endorsement is verified.
    #[arg(long, env = "CONTRAST_ENDORSEMENT_BUNDLE", value_name = "FILE", global = true)]
    pub endorsement_bundle: Option<PathBuf>,
    /// Ask nobody: what evidence brings along and what is kept has to do.
    #[arg(long, env = "CONTRAST_ENDORSEMENTS_OFFLINE", global = true)]
    pub endorsements_offline: bool,
}

impl EndorsementOptions {
    /// Opens the cache; `default` is its directory if none was given.
    pub fn open(&self, default: Option<PathBuf>) -> io::Result<Endorsements> {
        let directory = self.endorsement_cache.clone().or(default);
        let fetcher = (!self.endorsements_offline)
            .then(|| Fetcher::new(self.collateral_proxy.clone(), Services::default()));
        let mut endorsements = Endorsements::open(directory, Anchors::vendors(), fetcher)?;
        if let Some(path) = &self.endorsement_bundle {
            endorsements.watch_bundle(path.clone())?;
        }
        Ok(endorsements)
    }
}
