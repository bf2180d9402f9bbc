//! A proxy that ends TLS and rewrites answers, one field at a time: `contrast` refuses, or nothing of what it writes is
//! another than without the proxy.

use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    process::Output,
    sync::{Arc, Mutex},
};

use chaos_tests::deployment::Deployment;
use serde_json::Value;

use crate::{done, stderr};

/// One change: in the answers of a route, what becomes of the value at a pointer.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Change {
    Flip(String, String),
    Remove(String, String),
    Swap(String, String, String),
}

/// Fields whose value decides nothing: they are for people, or each verifies itself and is only missed.
fn is_harmless(change: &Change) -> bool {
    let (Change::Flip(route, at) | Change::Remove(route, at) | Change::Swap(route, at, _)) = change;
    at == "/version"
        // Withheld vouchers: `verify` says that nobody vouches.
        || at.starts_with("/vouchers")
        // Policies are named by their hashes; their order means nothing.
        || matches!(change, Change::Swap(_, one, other) if one.starts_with("/policies/") && other.starts_with("/policies/"))
        // The counts of parts of a seed, while `state`, which is under evidence, says that it was recovered.
        || route == "/v1/recover"
}

#[derive(Default)]
struct Rewriting {
    change: Option<Change>,
    /// Routes that were answered, with the answers as they were.
    seen: Vec<(String, Value)>,
}

struct Proxy {
    address: SocketAddr,
    rewriting: Arc<Mutex<Rewriting>>,
}

fn proxy(behind: SocketAddr) -> Proxy {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (address, rewriting) = (listener.local_addr().unwrap(), Arc::<Mutex<Rewriting>>::default());
    let shared = Arc::clone(&rewriting);
    std::thread::spawn(move || {
        for client in listener.incoming() {
            // A client that has seen enough hangs up.
            let _ = client.and_then(|client| pass(client, behind, &shared));
        }
    });
    Proxy { address, rewriting }
}

fn pass(mut client: TcpStream, behind: SocketAddr, rewriting: &Mutex<Rewriting>) -> std::io::Result<()> {
    let mut reader = BufReader::new(client.try_clone()?);
    let (mut head, mut length) = (String::new(), 0);
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let lower = line.to_ascii_lowercase();
        if let Some(value) = lower.strip_prefix("content-length:") {
            length = value.trim().parse().unwrap_or(0);
        }
        if line.trim().is_empty() {
            break;
        }
        if !lower.starts_with("connection:") {
            head.push_str(&line);
        }
    }
    let route = head.split([' ', '?']).nth(1).unwrap_or_default().to_owned();
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    let mut server = TcpStream::connect(behind)?;
    server.write_all(format!("{head}Connection: close\r\n\r\n").as_bytes())?;
    server.write_all(&body)?;
    let mut answer = Vec::new();
    server.read_to_end(&mut answer)?;
    let end = answer.windows(4).position(|part| part == b"\r\n\r\n").map_or(answer.len(), |at| at + 4);
    let status = String::from_utf8_lossy(&answer[..end]).lines().next().unwrap_or_default().to_owned();
    let mut content = answer[end..].to_vec();
    if let Ok(mut value) = serde_json::from_slice::<Value>(&content) {
        let mut rewriting = rewriting.lock().unwrap();
        rewriting.seen.push((route.clone(), value.clone()));
        if let Some(change) = &rewriting.change
            && apply(change, &route, &mut value)
        {
            content = serde_json::to_vec(&value)?;
        }
    }
    let head = format!(
        "{status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        content.len()
    );
    client.write_all(head.as_bytes())?;
    client.write_all(&content)
}

fn apply(change: &Change, route: &str, value: &mut Value) -> bool {
    match change {
        Change::Flip(of, at) if of == route => match value.pointer_mut(at) {
            Some(found) => flip(found),
            None => return false,
        },
        Change::Remove(of, at) if of == route => {
            let Some((parent, name)) = at.rsplit_once('/') else { return false };
            match value.pointer_mut(parent) {
                Some(Value::Object(fields)) => drop(fields.remove(name)),
                Some(Value::Array(items)) => drop(items.pop()),
                _ => return false,
            }
        }
        Change::Swap(of, one, other) if of == route => {
            let pair = (value.pointer(one).cloned(), value.pointer(other).cloned());
            let (Some(first), Some(second)) = pair else { return false };
            *value.pointer_mut(one).unwrap() = second;
            *value.pointer_mut(other).unwrap() = first;
        }
        _ => return false,
    }
    true
}

fn flip(value: &mut Value) {
    *value = match value.take() {
        Value::Bool(found) => Value::Bool(!found),
        Value::Number(found) => (found.as_u64().unwrap_or_default() + 1).into(),
        Value::String(text) if text.is_empty() => "AAAA".into(),
        Value::String(text) => {
            // In the middle, and still base64 or PEM.
            let middle = text.len() / 2;
            let turned = text.char_indices().map(|(at, c)| match (at == middle, c) {
                (true, 'A') => 'B',
                (true, _) => 'A',
                (false, c) => c,
            });
            turned.collect::<String>().into()
        }
        other => other,
    };
}

/// Every leaf, and every pair of neighbours that hold text.
fn changes(seen: &[(String, Value)]) -> BTreeSet<Change> {
    fn leaves(value: &Value, at: &str, found: &mut Vec<(String, bool)>) {
        match value {
            Value::Object(fields) => {
                fields.iter().for_each(|(name, inner)| leaves(inner, &format!("{at}/{name}"), found));
            }
            Value::Array(items) => {
                let inner = items.iter().enumerate();
                inner.for_each(|(index, inner)| leaves(inner, &format!("{at}/{index}"), found));
            }
            other => found.push((at.to_owned(), other.is_string())),
        }
    }
    let mut all = BTreeSet::new();
    for (route, value) in seen {
        let mut found = Vec::new();
        leaves(value, "", &mut found);
        // One arc of an object identifier is enough.
        let is_arc = |at: &str| at.starts_with("/attestation_type/") && !at.ends_with("/4");
        for (at, _) in found.iter().filter(|(at, _)| !is_arc(at)) {
            all.insert(Change::Flip(route.clone(), at.clone()));
            all.insert(Change::Remove(route.clone(), at.clone()));
        }
        let texts: Vec<&String> = found.iter().filter(|(_, is_text)| *is_text).map(|(at, _)| at).collect();
        for pair in texts.windows(2) {
            all.insert(Change::Swap(route.clone(), pair[0].clone(), pair[1].clone()));
        }
    }
    all
}

/// What a command wrote that anybody would believe later.
fn written(deployment: &Deployment) -> Vec<Option<Vec<u8>>> {
    let names = [
        "coordinator-root-ca.pem",
        "mesh-ca.pem",
        "seedshares.json",
        "verify/coordinator-root-ca.pem",
        "verify/mesh-ca.pem",
        "verify/log-key",
        "verify/latest-transition",
        "verify/manifest.0.json",
    ];
    names.iter().map(|name| fs::read(deployment.path(name)).ok()).collect()
}

fn believes_nothing(
    deployment: &Deployment,
    proxy: &Proxy,
    wanted: impl Fn(&Change) -> bool,
    run: &dyn Fn(&str) -> Output,
) -> usize {
    let url = format!("http://{}", proxy.address);
    proxy.rewriting.lock().unwrap().seen.clear();
    let honest = run(&url);
    assert!(honest.status.success(), "{}", stderr(&honest));
    let before = written(deployment);
    let seen = std::mem::take(&mut proxy.rewriting.lock().unwrap().seen);
    let mut all = changes(&seen);
    all.retain(wanted);
    for change in &all {
        proxy.rewriting.lock().unwrap().change = Some(change.clone());
        let output = run(&url);
        if output.status.success() {
            assert!(
                is_harmless(change),
                "{change:?} was believed: {}",
                String::from_utf8_lossy(&output.stdout)
            );
        }
        assert_eq!(written(deployment), before, "{change:?}");
    }
    proxy.rewriting.lock().unwrap().change = None;
    all.len()
}

#[test]
fn no_field_that_a_proxy_changes_is_believed() {
    let mut deployment = Deployment::start(&[], |_, _| {}).unwrap();
    let proxy = proxy(deployment.ports.http);
    // The first manifest is answered again, with its seed shares, as long as the process lives.
    let set = |url: &str| deployment.contrast_at(url, &["set"]).unwrap();
    let is_its_own = |change: &Change| {
        let (Change::Flip(route, _) | Change::Remove(route, _) | Change::Swap(route, ..)) = change;
        route == "/v1/manifest"
    };
    let tried = believes_nothing(&deployment, &proxy, is_its_own, &set);
    assert!(tried > 12, "{tried} changes to the answer that `set` gets");
    let verify = |url: &str| deployment.contrast_at(url, &["verify"]).unwrap();
    let tried = believes_nothing(&deployment, &proxy, |_| true, &verify);
    assert!(tried > 30, "{tried} changes to the answers that `verify` gets");

    // Recovery: somebody on the way says that it was done, and it was not.
    deployment.kill();
    deployment.launch().unwrap();
    let url = format!("http://{}", proxy.address);
    let lie = TcpListener::bind("127.0.0.1:0").unwrap();
    let (liar, behind) = (lie.local_addr().unwrap(), deployment.ports.http);
    std::thread::spawn(move || {
        let nobody = Mutex::default();
        for client in lie.incoming().flatten() {
            let mut start = [0; 16];
            let is_recovery = client.peek(&mut start).is_ok() && start.starts_with(b"POST /v1/recover");
            let _ = match is_recovery {
                false => pass(client, behind, &nobody),
                true => swallow(client),
            };
        }
    });
    let output = deployment.contrast_at(&format!("http://{liar}"), &["recover"]).unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    assert!(stderr(&output).contains("still waits for it"), "{}", stderr(&output));
    let output = deployment.contrast_at(&url, &["recover"]).unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    done(&deployment, &["verify"]);
}

/// Reads a request and answers that all is well.
fn swallow(mut client: TcpStream) -> std::io::Result<()> {
    let mut reader = BufReader::new(client.try_clone()?);
    let mut length = 0;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap_or(0);
        }
        if line.trim().is_empty() {
            break;
        }
    }
    reader.read_exact(&mut vec![0; length])?;
    let body = r#"{"version":"x","recovered":true,"shares_received":0,"shares_needed":0}"#;
    write!(
        client,
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
}
