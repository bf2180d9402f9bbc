//! What shall be proxied: upstream's environment variables (docs/spec/data-plane.md, section 2). `generate` reads them
//! from annotations, to name mistakes before the pod runs, and the service mesh from its environment.
//!
//! Entries are joined by `##`, fields by `#`. These texts come from the pod's specification, which the
//! runtime policy covers; they are checked for mistakes, not for malice.

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, SocketAddr},
    str::FromStr,
};

/// A text that cannot be understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("entry {entry:?}: {reason}")]
pub struct ConfigError {
    entry: String,
    reason: String,
}

fn wrong<T>(entry: &str, reason: impl fmt::Display) -> Result<T, ConfigError> {
    Err(ConfigError { entry: entry.to_owned(), reason: reason.to_string() })
}

/// How a port of the application is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortMode {
    /// TLS, and clients need a certificate. What an unlisted port gets, too.
    MutualTls,
    /// TLS, and clients need none: `false` in the configuration ("TLS is not disabled").
    ServerTls,
    /// Neither: `true` in the configuration ("TLS is disabled").
    Plain,
}

/// Upstream's word for a pod whose incoming traffic is left as it is.
pub const DISABLED: &str = "DISABLED";

/// Ports of the application that are served in a way of their own: `NAME#PORT#DISABLE_TLS`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ingress {
    /// What is listed.
    pub ports: BTreeMap<u16, PortMode>,
    /// Whether nothing is redirected: what comes in is not protected.
    pub disabled: bool,
}

impl Ingress {
    /// The ports with that mode.
    pub fn ports(&self, mode: PortMode) -> impl Iterator<Item = u16> {
        self.ports.iter().filter(move |(_, found)| **found == mode).map(|(port, _)| *port)
    }
}

impl FromStr for Ingress {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        if text.trim() == DISABLED {
            return Ok(Self { ports: BTreeMap::new(), disabled: true });
        }
        let mut ports = BTreeMap::new();
        for entry in entries(text) {
            let [_, port, mode] = fields(entry, "NAME#PORT#DISABLE_TLS")?;
            let port = parse_port(entry, port)?;
            let mode = match mode {
                // What Go reads as truth values.
                "false" | "False" | "FALSE" | "f" | "F" | "0" => PortMode::ServerTls,
                "true" | "True" | "TRUE" | "t" | "T" | "1" => PortMode::Plain,
                "mutual" => PortMode::MutualTls,
                _ => return wrong(entry, format_args!("{mode:?} is neither true nor false nor mutual")),
            };
            if ports.insert(port, mode).is_some() {
                return wrong(entry, format_args!("port {port} is listed twice"));
            }
        }
        Ok(Self { ports, disabled: false })
    }
}

/// A remote service that the application reaches through a loopback address:
/// `NAME#LISTEN_IP:PORT#REMOTE_HOST:PORT`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EgressEntry {
    /// Its name.
    pub name: String,
    /// Where the application finds it.
    pub listen: SocketAddr,
    /// The remote service.
    pub host: String,
    /// Its port.
    pub port: u16,
}

/// All of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Egress(pub Vec<EgressEntry>);

impl FromStr for Egress {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        let mut found: Vec<EgressEntry> = Vec::new();
        for entry in entries(text) {
            let [name, listen, remote] = fields(entry, "NAME#LISTEN_IP:PORT#REMOTE_HOST:PORT")?;
            let Ok(listen) = listen.parse::<SocketAddr>() else {
                return wrong(entry, format_args!("{listen:?} is not an address with a port"));
            };
            if !listen.ip().is_loopback() {
                return wrong(
                    entry,
                    format_args!("{listen} is not a loopback address, others could reach it"),
                );
            }
            let Some((host, port)) = remote.rsplit_once(':') else {
                return wrong(entry, format_args!("{remote:?} has no port"));
            };
            let port = parse_port(entry, port)?;
            let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
            if host.is_empty() || (host.contains(':') && host.parse::<IpAddr>().is_err()) {
                return wrong(entry, format_args!("{remote:?} has no host"));
            }
            if found.iter().any(|other| other.name == name || other.listen == listen) {
                return wrong(entry, "its name or its address is listed twice");
            }
            found.push(EgressEntry { name: name.to_owned(), listen, host: host.to_owned(), port });
        }
        Ok(Self(found))
    }
}

/// Who a peer may be: `KEY#NAME,NAME` with an ingress port or an egress name as key. A name is a DNS
/// name, URI or IP address that the manifest gives to a policy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Peers(pub BTreeMap<String, Vec<String>>);

impl FromStr for Peers {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        let mut found = BTreeMap::new();
        for entry in entries(text) {
            let [key, names] = fields(entry, "PORT_OR_EGRESS_NAME#PEER,PEER")?;
            let names: Vec<String> = names.split(',').map(|name| name.trim().to_owned()).collect();
            if names.iter().any(|name| name.is_empty() || name.contains('*')) {
                return wrong(
                    entry,
                    "a peer's name is empty or has a wildcard; every certificate may carry one",
                );
            }
            if found.insert(key.to_owned(), names).is_some() {
                return wrong(entry, format_args!("{key:?} is listed twice"));
            }
        }
        Ok(Self(found))
    }
}

impl Peers {
    /// Whether each key is a port or the name of an egress entry.
    pub fn check(&self, egress: &Egress) -> Result<(), ConfigError> {
        let known =
            |key: &&String| key.parse::<u16>().is_ok() || egress.0.iter().any(|entry| entry.name == **key);
        match self.0.keys().find(|key| !known(key)) {
            Some(key) => {
                wrong(key, format_args!("{key:?} is neither a port nor the name of an egress entry"))
            }
            None => Ok(()),
        }
    }
}

fn entries(text: &str) -> impl Iterator<Item = &str> {
    text.split("##").map(str::trim).filter(|entry| !entry.is_empty())
}

fn fields<'a, const N: usize>(entry: &'a str, form: &str) -> Result<[&'a str; N], ConfigError> {
    let fields: Vec<&str> = entry.split('#').collect();
    match <[&str; N]>::try_from(fields) {
        Ok(fields) if fields.iter().all(|field| !field.is_empty()) => Ok(fields),
        _ => wrong(entry, format_args!("expected {form}")),
    }
}

fn parse_port(entry: &str, text: &str) -> Result<u16, ConfigError> {
    match text.parse() {
        Ok(port) if port != 0 => Ok(port),
        _ => wrong(entry, format_args!("{text:?} is not a port")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ingress_is_read_as_upstream_writes_it() {
        let ingress: Ingress = "web#8080#false##metrics#9100#true".parse().unwrap();
        assert_eq!(ingress.ports(PortMode::ServerTls).collect::<Vec<_>>(), [8080]);
        assert_eq!(ingress.ports(PortMode::Plain).collect::<Vec<_>>(), [9100]);
        assert_eq!("".parse::<Ingress>().unwrap(), Ingress::default());
        assert_eq!("web#8080#False".parse::<Ingress>().unwrap().ports[&8080], PortMode::ServerTls);
        assert!("DISABLED".parse::<Ingress>().unwrap().disabled);
    }

    #[test]
    fn egress_is_read_as_upstream_writes_it() {
        let egress: Egress =
            "billing#127.137.0.1:8081#billing-svc:8080##v6#[::1]:80#[fd00::7]:81".parse().unwrap();
        let hosts: Vec<_> = egress.0.iter().map(|entry| (entry.host.as_str(), entry.port)).collect();
        assert_eq!(hosts, [("billing-svc", 8080), ("fd00::7", 81)]);
    }

    #[test]
    fn mistakes_are_named() {
        let ingress = |text: &str| text.parse::<Ingress>().unwrap_err().to_string();
        assert_eq!(ingress("web#80"), "entry \"web#80\": expected NAME#PORT#DISABLE_TLS");
        assert_eq!(ingress("web#0#true"), "entry \"web#0#true\": \"0\" is not a port");
        assert_eq!(ingress("a#80#true##b#80#false"), "entry \"b#80#false\": port 80 is listed twice");
        assert_eq!(ingress("a#80#yes"), "entry \"a#80#yes\": \"yes\" is neither true nor false nor mutual");
        let egress = |text: &str| text.parse::<Egress>().unwrap_err().to_string();
        assert!(egress("a#0.0.0.0:80#b:80").contains("not a loopback address"));
        assert!(egress("a#127.0.0.1:80#b").contains("has no port"));
        assert!(egress("a#127.0.0.1:80#fd00::7:80x").contains("is not a port"));
        assert!("80#*".parse::<Peers>().unwrap_err().to_string().contains("wildcard"));
    }
}
