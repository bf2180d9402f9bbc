//! Talks to whichever member of the cluster answers: TLS, authentication, failover, deadlines.

use std::{
    path::PathBuf,
    sync::{
        Arc, RwLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tonic::{
    Code, Request, Status,
    metadata::{Ascii, MetadataValue},
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity},
};
use zeroize::Zeroizing;

use crate::api::{AuthenticateRequest, auth_client::AuthClient};

/// Longest answer of one member before the next one is asked.
const ATTEMPT: Duration = Duration::from_millis(2500);
const CONNECT: Duration = Duration::from_secs(1);
/// Pause after each member was asked once.
const PAUSE: Duration = Duration::from_millis(100);
/// Largest answer that is read, in bytes.
pub(crate) const MAX_ANSWER: usize = 64 << 20;

/// How to reach an etcd cluster.
#[derive(Clone)]
pub struct EtcdOptions {
    /// `http://` or `https://` addresses of its members.
    pub endpoints: Vec<String>,
    /// What every key begins with; one for each deployment.
    pub prefix: String,
    /// Certificates, for `https://`.
    pub tls: Option<TlsFiles>,
    /// User and password, where etcd demands them.
    pub user: Option<(String, Zeroizing<String>)>,
    /// Longest wait for one question, all attempts together.
    pub deadline: Duration,
}

/// PEM files.
#[derive(Clone, Debug)]
pub struct TlsFiles {
    /// Authority of the members' certificates.
    pub ca: PathBuf,
    /// This client's certificate and key, where etcd demands one.
    pub identity: Option<(PathBuf, PathBuf)>,
}

/// Why a client cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// A file that cannot be read.
    #[error("{path}: {error}")]
    File {
        /// The file.
        path: String,
        /// What the system says.
        error: std::io::Error,
    },
    /// An address that cannot be one.
    #[error("etcd endpoint {endpoint:?}: {reason}")]
    Endpoint {
        /// The address.
        endpoint: String,
        /// What is wrong with it.
        reason: String,
    },
    /// No address at all.
    #[error("at least one etcd endpoint is needed")]
    NoEndpoint,
    /// No thread for it.
    #[error("no thread for the etcd client: {0}")]
    Thread(std::io::Error),
}

pub(crate) struct Client {
    members: Vec<Channel>,
    pub(crate) names: Vec<String>,
    current: AtomicUsize,
    user: Option<(String, Zeroizing<String>)>,
    token: RwLock<Option<MetadataValue<Ascii>>>,
    deadline: Duration,
}

impl Client {
    /// Must be called in a runtime, which the connections then live in.
    pub(crate) fn new(options: &EtcdOptions) -> Result<Arc<Self>, ConnectError> {
        let tls = options.tls.as_ref().map(tls_config).transpose()?;
        let member = |name: &String| {
            let refused = |error: tonic::transport::Error| ConnectError::Endpoint {
                endpoint: name.clone(),
                reason: std::error::Error::source(&error).map_or(error.to_string(), ToString::to_string),
            };
            let mut endpoint = Endpoint::from_shared(name.clone()).map_err(refused)?;
            if let Some(tls) = &tls {
                endpoint = endpoint.tls_config(tls.clone()).map_err(refused)?;
            }
            Ok(endpoint
                .connect_timeout(CONNECT)
                .tcp_nodelay(true)
                .http2_keep_alive_interval(Duration::from_secs(2))
                .keep_alive_timeout(Duration::from_secs(2))
                .keep_alive_while_idle(true)
                .connect_lazy())
        };
        if options.endpoints.is_empty() {
            return Err(ConnectError::NoEndpoint);
        }
        Ok(Arc::new(Self {
            members: options.endpoints.iter().map(member).collect::<Result<_, _>>()?,
            names: options.endpoints.clone(),
            current: AtomicUsize::new(0),
            user: options.user.clone(),
            token: RwLock::new(None),
            deadline: options.deadline,
        }))
    }

    /// Asks until a member answers or the deadline has passed. `attempt` says how often this question
    /// was asked before, because an unanswered one may have been heard all the same.
    pub(crate) async fn ask<R, F>(&self, question: impl Fn(Asked, u32) -> F) -> Result<R, Status>
    where
        F: Future<Output = Result<R, Status>>,
    {
        let mut last = Status::deadline_exceeded("no time to ask");
        let asking = async {
            let mut attempt = 0;
            loop {
                let member = self.current.load(Ordering::Relaxed) % self.members.len();
                let answer = match self.asked(member).await {
                    Ok(asked) => tokio::time::timeout(ATTEMPT, question(asked, attempt)).await,
                    Err(status) => Ok(Err(status)),
                };
                let status = match answer {
                    Ok(Ok(answer)) => return Ok(answer),
                    Ok(Err(status)) => status,
                    Err(_) => Status::deadline_exceeded(format!("no answer within {ATTEMPT:?}")),
                };
                if is_token_gone(&status) {
                    *self.token.write().unwrap_or_else(std::sync::PoisonError::into_inner) = None;
                } else if is_final(&status) {
                    return Err(status);
                } else {
                    let next = member + 1;
                    let _ = self.current.compare_exchange(
                        member,
                        next % self.members.len(),
                        Ordering::Relaxed,
                        Ordering::Relaxed,
                    );
                }
                last = Status::new(status.code(), format!("{}: {}", self.names[member], status.message()));
                if attempt as usize % self.members.len() == self.members.len() - 1 {
                    tokio::time::sleep(PAUSE).await;
                }
                attempt += 1;
            }
        };
        match tokio::time::timeout(self.deadline, asking).await {
            Ok(outcome) => outcome,
            Err(_) => Err(last),
        }
    }

    /// A channel to a member, with a token if one is needed.
    pub(crate) async fn asked(&self, member: usize) -> Result<Asked, Status> {
        let channel = self.members[member % self.members.len()].clone();
        let Some((name, password)) = &self.user else { return Ok(Asked { channel, token: None }) };
        let known = self.token.read().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
        let token = match known {
            Some(token) => token,
            None => {
                let request = AuthenticateRequest { name: name.clone(), password: password.to_string() };
                let mut auth = AuthClient::new(channel.clone());
                let answer = tokio::time::timeout(ATTEMPT, auth.authenticate(request)).await;
                let answer = answer.map_err(|_| Status::deadline_exceeded("no answer to the password"))??;
                let token = MetadataValue::try_from(answer.into_inner().token.as_str())
                    .map_err(|_| Status::internal("etcd gave a token that is no header"))?;
                *self.token.write().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(token.clone());
                token
            }
        };
        Ok(Asked { channel, token: Some(token) })
    }

    pub(crate) fn next_member(&self) -> usize {
        self.current.load(Ordering::Relaxed)
    }

    pub(crate) fn members(&self) -> usize {
        self.members.len()
    }
}

/// A member to ask, and the right to do so.
pub(crate) struct Asked {
    pub(crate) channel: Channel,
    token: Option<MetadataValue<Ascii>>,
}

impl Asked {
    pub(crate) fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        if let Some(token) = &self.token {
            request.metadata_mut().insert("token", token.clone());
        }
        request
    }
}

fn is_token_gone(status: &Status) -> bool {
    status.code() == Code::Unauthenticated
        || (status.code() == Code::InvalidArgument && status.message().contains("auth"))
        || status.message().contains("invalid auth token")
}

/// Whether another member would say the same.
fn is_final(status: &Status) -> bool {
    match status.code() {
        Code::InvalidArgument
        | Code::NotFound
        | Code::AlreadyExists
        | Code::PermissionDenied
        | Code::FailedPrecondition
        | Code::OutOfRange
        | Code::Unimplemented
        | Code::ResourceExhausted => true,
        Code::Ok
        | Code::Cancelled
        | Code::Unknown
        | Code::DeadlineExceeded
        | Code::Aborted
        | Code::Internal
        | Code::Unavailable
        | Code::DataLoss
        | Code::Unauthenticated => false,
    }
}

fn tls_config(files: &TlsFiles) -> Result<ClientTlsConfig, ConnectError> {
    let read = |path: &PathBuf| {
        std::fs::read(path).map_err(|error| ConnectError::File { path: path.display().to_string(), error })
    };
    let mut tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(read(&files.ca)?));
    if let Some((certificate, key)) = &files.identity {
        tls = tls.identity(Identity::from_pem(read(certificate)?, Zeroizing::new(read(key)?).as_slice()));
    }
    Ok(tls)
}
