//! Connections through a company's proxy, as curl and Go make them: `HTTPS_PROXY` for what is encrypted (attested TLS and
//! https://), `HTTP_PROXY` for http://, `ALL_PROXY` for both; `NO_PROXY` lists where none is used. A proxy sees the name and
//! the port, and passes bytes on: what is inside is verified as without it.

use std::{
    io::{self, ErrorKind},
    net::IpAddr,
    time::Duration,
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use crate::error::CallError;

/// Longest wait for a connection, and for a proxy's answer.
const DIAL: Duration = Duration::from_secs(10);
/// Longest head of a proxy's answer, in bytes.
const MAX_HEAD_BYTES: usize = 16 << 10;

/// What is said through a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Speech {
    /// TLS, also the attested one: a proxy makes a tunnel.
    Encrypted,
    /// Plain HTTP: a proxy reads each request.
    Plain,
}

/// A connection, maybe by way of a proxy.
pub(crate) struct Dialled {
    pub(crate) stream: TcpStream,
    /// Set where a proxy reads the requests, which then name the whole URL.
    pub(crate) reader: Option<Proxy>,
}

/// A proxy that the environment names.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Proxy {
    /// host:port.
    place: String,
    /// The value of the header `Proxy-Authorization`.
    pub(crate) authorization: Option<String>,
}

/// Connects to host:port, through the proxy that the environment names; what does not answer at all is given up.
pub async fn dial_configured(address: &str, speech: Speech) -> Result<TcpStream, CallError> {
    Ok(dialled(address, speech).await?.stream)
}

/// The same, with the proxy that reads what is said.
pub(crate) async fn dialled(address: &str, speech: Speech) -> Result<Dialled, CallError> {
    let reached = async {
        let dialled = dial(address, speech).await?;
        dialled.stream.set_nodelay(true)?; // or the handshake waits 40 ms for a delayed acknowledgement
        Ok(dialled)
    };
    reached.await.map_err(|error| CallError::Unreachable { address: address.to_owned(), error })
}

async fn dial(place: &str, speech: Speech) -> io::Result<Dialled> {
    let Some(proxy) = configured(place, speech, |name| std::env::var(name).ok())? else {
        return Ok(Dialled { stream: connect(place).await?, reader: None });
    };
    let mut stream = connect(&proxy.place)
        .await
        .map_err(|error| io::Error::new(error.kind(), format!("the proxy {}: {error}", proxy.place)))?;
    if speech == Speech::Plain {
        return Ok(Dialled { stream, reader: Some(proxy) });
    }
    let answered = timeout(DIAL, tunnel(&mut stream, place, &proxy)).await;
    answered.unwrap_or_else(|_| Err(late(&format!("the proxy {}", proxy.place))))?;
    Ok(Dialled { stream, reader: None })
}

async fn connect(place: &str) -> io::Result<TcpStream> {
    let host = place.rsplit_once(':').map_or(place, |(host, _)| host);
    let connecting = async {
        let unknown =
            |error: io::Error| io::Error::new(error.kind(), format!("cannot resolve {host}: {error}"));
        let mut last = io::Error::new(ErrorKind::NotFound, format!("{host} has no address"));
        for address in tokio::net::lookup_host(place).await.map_err(unknown)? {
            match TcpStream::connect(address).await {
                Ok(stream) => return Ok(stream),
                Err(error) => last = error,
            }
        }
        Err(last)
    };
    timeout(DIAL, connecting).await.unwrap_or_else(|_| Err(late(place)))
}

fn late(who: &str) -> io::Error {
    io::Error::new(ErrorKind::TimedOut, format!("{who} gave no answer within {DIAL:?}"))
}

/// Asks a proxy for a tunnel.
async fn tunnel(stream: &mut TcpStream, place: &str, proxy: &Proxy) -> io::Result<()> {
    let mut request = format!("CONNECT {place} HTTP/1.1\r\nHost: {place}\r\n");
    if let Some(authorization) = &proxy.authorization {
        request.push_str(&format!("Proxy-Authorization: {authorization}\r\n"));
    }
    request.push_str("\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut head = Vec::new();
    // Behind the head of a refusal stands a page for people. Behind a good one stands nothing: the other side speaks after us.
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        if head.len() > MAX_HEAD_BYTES || stream.read_buf(&mut head).await? == 0 {
            let text = format!("the proxy {} did not answer as an HTTP proxy does", proxy.place);
            return Err(io::Error::new(ErrorKind::InvalidData, text));
        }
    }
    let head = String::from_utf8_lossy(&head);
    let line = head.lines().next().unwrap_or_default();
    match line.split(' ').nth(1) {
        Some(code) if line.starts_with("HTTP/1.") && code.len() == 3 && code.starts_with('2') => Ok(()),
        code => Err(refused(code.unwrap_or_default(), line, place, proxy)),
    }
}

fn refused(code: &str, line: &str, place: &str, proxy: &Proxy) -> io::Error {
    let name = &proxy.place;
    let text = match (code, &proxy.authorization) {
        ("407", None) => {
            format!("the proxy {name} demands a user and a password: HTTPS_PROXY=http://USER:PASSWORD@{name}")
        }
        ("407", Some(_)) => format!("the proxy {name} refuses the user or the password in HTTPS_PROXY"),
        ("403", _) => format!(
            "the proxy {name} permits no connection to {place}: have its administrator permit CONNECT to that host and \
             port, or, if no proxy is needed for it, put the host into NO_PROXY"
        ),
        ("502" | "503" | "504", _) => format!("the proxy {name} cannot reach {place}: {line:?}"),
        _ => format!("the proxy {name} made no tunnel to {place}: {line:?}"),
    };
    io::Error::new(ErrorKind::PermissionDenied, text)
}

/// The proxy for a place, if the environment names one.
fn configured(
    place: &str,
    speech: Speech,
    variable: impl Fn(&str) -> Option<String>,
) -> io::Result<Option<Proxy>> {
    let (upper, lower) = match speech {
        Speech::Encrypted => ("HTTPS_PROXY", "https_proxy"),
        Speech::Plain => ("HTTP_PROXY", "http_proxy"),
    };
    let set =
        |name: &'static str| variable(name).filter(|value| !value.is_empty()).map(|value| (name, value));
    let found = [lower, upper, "all_proxy", "ALL_PROXY"].into_iter().find_map(set);
    let Some((name, value)) = found else { return Ok(None) };
    let exceptions = variable("no_proxy").or_else(|| variable("NO_PROXY")).unwrap_or_default();
    if is_excepted(place, &exceptions) {
        return Ok(None);
    }
    let proxy = parse(&value).map_err(|why| {
        io::Error::new(ErrorKind::InvalidInput, format!("{name}: {why}; expected http://HOST:PORT"))
    })?;
    Ok(Some(proxy))
}

/// The error does not repeat the text, which may hold a password.
fn parse(text: &str) -> Result<Proxy, String> {
    let rest = match text.split_once("://") {
        Some(("http", rest)) => rest,
        Some((scheme, _)) => return Err(format!("proxies that are spoken to by {scheme} are not supported")),
        None => text,
    };
    let rest = rest.split('/').next().unwrap_or_default();
    let (user, place) = rest.rsplit_once('@').map_or((None, rest), |(user, place)| (Some(user), place));
    if place.is_empty() || place.starts_with(':') {
        return Err("it names no host".into());
    }
    let has_port = match place.rsplit_once(']') {
        Some((_, rest)) => rest.starts_with(':'),
        None => place.contains(':'),
    };
    let place = if has_port { place.to_owned() } else { format!("{place}:80") };
    let authorization = user
        .map(|user| {
            let (user, password) = user.split_once(':').unwrap_or((user, ""));
            let both = [decoded(user)?, b":".to_vec(), decoded(password)?].concat();
            Ok::<_, String>(format!("Basic {}", BASE64_STANDARD.encode(both)))
        })
        .transpose()?;
    Ok(Proxy { place, authorization })
}

/// What stands for itself, and %XX.
fn decoded(text: &str) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, more)) = rest.split_first() {
        rest = more;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let pair = rest.split_at_checked(2).and_then(|(pair, more)| Some((hex::decode(pair).ok()?, more)));
        let (byte, more) =
            pair.ok_or("a % in user or password without two hex digits behind it: write %25")?;
        bytes.extend(byte);
        rest = more;
    }
    Ok(bytes)
}

/// Whether no proxy is for this place: one of this machine, or one in a list of hosts, domains, addresses and networks,
/// each maybe with a port.
fn is_excepted(place: &str, exceptions: &str) -> bool {
    let (host, port) = place.rsplit_once(':').unwrap_or((place, ""));
    let host = host.trim_matches(['[', ']']).trim_end_matches('.').to_ascii_lowercase();
    let address: Option<IpAddr> = host.parse().ok();
    if host == "localhost" || address.is_some_and(|address| address.to_canonical().is_loopback()) {
        return true;
    }
    exceptions.split([',', ' ']).map(str::trim).filter(|entry| !entry.is_empty()).any(|entry| {
        if entry == "*" {
            return true;
        }
        if let (Some((network, bits)), Some(address)) = (entry.split_once('/'), address) {
            return network
                .parse()
                .is_ok_and(|network| is_in(address, network, bits.parse().unwrap_or(u8::MAX)));
        }
        let is_address = entry.parse::<IpAddr>().is_ok();
        let (name, wanted_port) = match entry.rsplit_once(':') {
            Some((name, port)) if !is_address => (name, Some(port)),
            _ => (entry, None),
        };
        let name = name.trim_matches(['[', ']']).to_ascii_lowercase();
        let name = name.trim_start_matches('*').trim_start_matches('.');
        let is_below = || host.strip_suffix(name).is_some_and(|rest| rest.ends_with('.'));
        wanted_port.is_none_or(|wanted| wanted == port) && (host == name || (address.is_none() && is_below()))
    })
}

fn is_in(address: IpAddr, network: IpAddr, bits: u8) -> bool {
    let (address, network, width) = match (address.to_canonical(), network) {
        (IpAddr::V4(address), IpAddr::V4(network)) => {
            (u128::from(address.to_bits()), u128::from(network.to_bits()), 32)
        }
        (IpAddr::V6(address), IpAddr::V6(network)) => (address.to_bits(), network.to_bits(), 128),
        _ => return false,
    };
    bits <= width && (bits == 0 || address >> (width - bits) == network >> (width - bits))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(place: &str, speech: Speech, environment: &[(&str, &str)]) -> Option<String> {
        let variable = |name: &str| {
            environment.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        };
        configured(place, speech, variable).unwrap().map(|proxy| proxy.place)
    }

    #[test]
    fn the_environment_names_the_proxy_and_the_exceptions() {
        let both = [("HTTPS_PROXY", "http://secure:3128"), ("HTTP_PROXY", "plain:8080")];
        assert_eq!(found("a.example:1313", Speech::Encrypted, &both).unwrap(), "secure:3128");
        assert_eq!(found("a.example:80", Speech::Plain, &both).unwrap(), "plain:8080");
        assert_eq!(found("a.example:1313", Speech::Encrypted, &[("ALL_PROXY", "any")]).unwrap(), "any:80");
        assert_eq!(found("a.example:1313", Speech::Encrypted, &[]), None);
        assert_eq!(found("a.example:1313", Speech::Encrypted, &[("HTTPS_PROXY", "")]), None);
        for (place, exceptions, is_direct) in [
            ("localhost:1313", "", true),
            ("127.0.0.5:1313", "", true),
            ("[::1]:1313", "", true),
            ("a.example:1313", "*", true),
            ("a.example:1313", "b.example, a.example", true),
            ("a.example:1313", "A.Example", true),
            ("a.example:1313", ".example", true),
            ("a.example:1313", "*.example", true),
            ("a.example:1313", "ple", false),
            ("a.example:1313", "a.example:1313", true),
            ("a.example:1313", "a.example:443", false),
            ("10.1.2.3:1313", "10.0.0.0/8", true),
            ("11.1.2.3:1313", "10.0.0.0/8", false),
            ("10.1.2.3:1313", "2.3", false),
            ("[2001:db8::7]:1313", "2001:db8::/32", true),
            ("[2001:db8::7]:1313", "2001:db8::7", true),
        ] {
            let environment = [("HTTPS_PROXY", "http://proxy:3128"), ("NO_PROXY", exceptions)];
            assert_eq!(
                found(place, Speech::Encrypted, &environment).is_none(),
                is_direct,
                "{place} {exceptions}"
            );
        }
    }

    #[test]
    fn a_user_and_a_password_may_have_any_characters_and_stand_in_no_error() {
        let proxy = parse("http://anna:p%40ss%3Aw%25rd@proxy.example:3128/").unwrap();
        assert_eq!(proxy.place, "proxy.example:3128");
        let expected = format!("Basic {}", BASE64_STANDARD.encode("anna:p@ss:w%rd"));
        assert_eq!(proxy.authorization.unwrap(), expected);
        for wrong in [
            "https://anna:secret@proxy:3128",
            "http://anna:sec%ret@proxy",
            "http://anna:secret@",
            "socks5://x:1",
        ] {
            let error = parse(wrong).err().unwrap();
            assert!(!error.contains("secret") && !error.contains("ret@"), "{error}");
        }
    }
}
