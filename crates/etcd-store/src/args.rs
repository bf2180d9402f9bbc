//! Options of every program that talks to etcd.

use std::{path::PathBuf, time::Duration};

use crate::{ConnectError, EtcdOptions, TlsFiles};

/// Longest wait for etcd, all its members asked; a request that needs a write fails after it.
const DEADLINE: Duration = Duration::from_secs(6);

/// How to reach the etcd cluster that all replicas share.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct EtcdArgs {
    /// Members of the etcd cluster that all replicas share, http:// or https://.
    #[arg(long, env = "CONTRAST_ETCD_ENDPOINTS", value_name = "URL", value_delimiter = ',')]
    pub etcd_endpoints: Vec<String>,

    /// What every key in etcd begins with; one for each deployment.
    #[arg(long, env = "CONTRAST_ETCD_PREFIX", default_value = "contrast/")]
    pub etcd_prefix: String,

    /// Authority of etcd's certificates, PEM.
    #[arg(long, env = "CONTRAST_ETCD_CA", value_name = "FILE")]
    pub etcd_ca: Option<PathBuf>,

    /// Client certificate for etcd, PEM.
    #[arg(long, env = "CONTRAST_ETCD_CERT", value_name = "FILE", requires_all = ["etcd_key", "etcd_ca"])]
    pub etcd_cert: Option<PathBuf>,

    /// Key of the client certificate, PEM.
    #[arg(long, env = "CONTRAST_ETCD_KEY", value_name = "FILE", requires = "etcd_cert")]
    pub etcd_key: Option<PathBuf>,

    /// etcd user.
    #[arg(long, env = "CONTRAST_ETCD_USER", requires = "etcd_password_file")]
    pub etcd_user: Option<String>,

    /// File with that user's password.
    #[arg(long, env = "CONTRAST_ETCD_PASSWORD_FILE", value_name = "FILE", requires = "etcd_user")]
    pub etcd_password_file: Option<PathBuf>,
}

impl EtcdArgs {
    /// How to reach etcd; `None` if no endpoint was given.
    pub fn options(&self) -> Result<Option<EtcdOptions>, ConnectError> {
        let Some(first) = self.etcd_endpoints.first() else { return Ok(None) };
        let identity = self.etcd_cert.clone().zip(self.etcd_key.clone());
        let tls = self.etcd_ca.clone().map(|ca| TlsFiles { ca, identity });
        if tls.is_none() && self.etcd_endpoints.iter().any(|endpoint| endpoint.starts_with("https://")) {
            let reason = "https:// needs --etcd-ca".to_owned();
            return Err(ConnectError::Endpoint { endpoint: first.clone(), reason });
        }
        let user = match (&self.etcd_user, &self.etcd_password_file) {
            (Some(user), Some(file)) => {
                let path = file.display().to_string();
                let password =
                    std::fs::read_to_string(file).map_err(|error| ConnectError::File { path, error })?;
                Some((user.clone(), password.trim_end().to_owned().into()))
            }
            _ => None,
        };
        Ok(Some(EtcdOptions {
            endpoints: self.etcd_endpoints.clone(),
            prefix: self.etcd_prefix.clone(),
            tls,
            user,
            deadline: DEADLINE,
        }))
    }
}
