//! A proxy that ends TLS and rewrites answers, one field at a time: `contrast` refuses, or nothing of what it writes is
//! another than without the proxy.

use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    path::PathBuf,
    process::{Command, Output},
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
        Value::Null => "AAAA".into(),
        Value::Bool(found) => Value::Bool(!found),
        Value::Number(found) => (found.as_u64().unwrap_or_default() + 1).into(),
        Value::String(text) if text.is_empty() => "AAAA".into(),
        Value::String(text) => {
            // In the middle, and still hex, base64 or PEM; `a` and `A` are one digit in hex.
            let middle = text.len() / 2;
            let turned = text.char_indices().map(|(at, c)| match (at == middle, c) {
                (true, 'A' | 'a') => 'B',
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

/// The storage is lost and an old copy is put in its place. An owner accepts that, and from then on everybody is told.
#[test]
fn an_older_head_is_accepted_by_an_owner_and_no_proxy_can_hide_that() {
    let mut deployment = Deployment::start(&[], |_, _| {}).unwrap();
    let copy = |from: PathBuf, to: PathBuf| {
        let _ = fs::remove_dir_all(&to);
        assert!(Command::new("cp").arg("-r").args([from, to]).status().unwrap().success());
    };
    done(&deployment, &["set"]);
    let mut next = deployment.manifest().unwrap().body().clone();
    next.minimum_api_version = "v1".into();
    fs::write(deployment.path("next.json"), next.to_json()).unwrap();
    deployment.kill();
    copy(deployment.path("event-log"), deployment.path("before"));
    deployment.launch().unwrap();
    done(&deployment, &["recover"]);
    done(&deployment, &["set", "-m", "next.json", "--workload-owner-key", "workload-owner.pem"]);
    let proxy = proxy(deployment.ports.http);
    let direct = format!("http://{}", deployment.ports.http);
    for (round, address) in
        [deployment.ports.user.to_string(), format!("http://{}", proxy.address)].iter().enumerate()
    {
        if round > 0 {
            done(&deployment, &["set", "-m", "next.json", "--workload-owner-key", "workload-owner.pem"]);
        }
        deployment.kill();
        copy(deployment.path("before"), deployment.path("event-log"));
        deployment.launch().unwrap();
        let refused = deployment.contrast_at(address, &["recover"]).unwrap();
        assert_eq!(refused.status.code(), Some(1), "{}", stderr(&refused));
        let accepted = deployment.contrast_at(address, &["recover", "--accept-older-head"]).unwrap();
        assert!(accepted.status.success(), "{}", stderr(&accepted));
        for shown_by in [&deployment.ports.user.to_string(), &direct] {
            let verified = deployment.contrast_at(shown_by, &["verify", "--output", "json"]).unwrap();
            assert!(verified.status.success(), "{}", stderr(&verified));
            let verified: Value = serde_json::from_slice(&verified.stdout).unwrap();
            let heads = verified["older_heads_accepted"].as_array().unwrap();
            assert_eq!(heads.len(), 1, "{verified}");
            assert!(
                heads[0]["given_up_events"].as_u64() > heads[0]["accepted_events"].as_u64(),
                "{verified}"
            );
        }
    }
    let verify = |url: &str| deployment.contrast_at(url, &["verify"]).unwrap();
    let shown = verify(&direct);
    assert!(String::from_utf8_lossy(&shown.stdout).contains("WARNING: at "), "{shown:?}");
    let of_heads = |change: &Change| {
        let (Change::Flip(route, at) | Change::Remove(route, at) | Change::Swap(route, at, _)) = change;
        route == "/v1/attest-key" && at.starts_with("/older_heads")
    };
    let tried = believes_nothing(&deployment, &proxy, of_heads, &verify);
    assert!(tried > 12, "{tried} changes to what was given up");
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

/// Leaves of a JSON line, with their places.
fn leaves_of(value: &Value, at: &str, found: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            fields.iter().for_each(|(name, inner)| leaves_of(inner, &format!("{at}/{name}"), found));
        }
        Value::Array(items) => {
            let inner = items.iter().enumerate();
            inner.for_each(|(index, inner)| leaves_of(inner, &format!("{at}/{index}"), found));
        }
        _ => found.push(at.to_owned()),
    }
}

/// `history` and `audit` read over attested TLS, which no proxy can end, and from files, which whoever carries them can
/// rewrite: each field of each kind of line, and the order of lines.
#[test]
fn no_field_of_an_export_that_somebody_rewrites_is_believed() {
    let deployment = Deployment::start(&[], |_, _| {}).unwrap();
    done(&deployment, &["set"]);
    for pod in ["one", "two"] {
        assert!(deployment.initializer(chaos_tests::deployment::WEB, pod).unwrap().status.success());
    }
    let (user, proxy) = (deployment.ports.user.to_string(), proxy(deployment.ports.http));
    let export = ["audit", "export", "-c", &user, "--auditor-key", "workload-owner.pem", "--out"];
    let exported = deployment.contrast(&[export.as_slice(), &["honest.jsonl"]].concat()).unwrap();
    assert!(exported.status.success(), "{}", stderr(&exported));
    let key = done(&deployment, &["verify"])["log"].as_str().unwrap().to_owned();
    let through_proxy = format!("http://{}", proxy.address);
    for command in [&["history", "list", "-c"][..], &["audit", "export", "--out", "proxied.jsonl", "-c"][..]]
    {
        let output = deployment.contrast(&[command, &[&through_proxy]].concat()).unwrap();
        assert!(!output.status.success(), "{command:?} believes somebody who ends TLS");
        assert!(!deployment.path("proxied.jsonl").exists());
    }

    let text = fs::read_to_string(deployment.path("honest.jsonl")).unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let audit = |file: &str| deployment.contrast(&["audit", "verify", file, "--log-key", &key]).unwrap();
    let history =
        |file: &str| deployment.contrast(&["history", "list", "--export", file, "--log-key", &key]).unwrap();
    let honest = history("honest.jsonl");
    assert!(honest.status.success() && audit("honest.jsonl").status.success(), "{}", stderr(&honest));
    let (mut tried, mut seen) = (0, BTreeSet::new());
    let mut check = |lines: &[Value], what: &str, is_harmless: bool| {
        let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
        fs::write(deployment.path("changed.jsonl"), text).unwrap();
        assert_eq!(audit("changed.jsonl").status.success(), is_harmless, "audit verify, {what}");
        let shown = history("changed.jsonl");
        assert!(!shown.status.success() || shown.stdout == honest.stdout, "history, {what}");
        tried += 1;
    };
    for (number, line) in lines.iter().enumerate() {
        let mut leaves = Vec::new();
        leaves_of(line, "", &mut leaves);
        for at in leaves {
            // One line of each kind is enough.
            if !seen.insert((line["type"].to_string(), line["kind"].to_string(), at.clone())) {
                continue;
            }
            let mut changed = lines.clone();
            flip(changed[number].pointer_mut(&at).unwrap());
            check(&changed, &format!("line {number}, {at} of {}", line["kind"]), at == "/made");
        }
    }
    for number in 1..lines.len() {
        let mut without = lines.clone();
        without.remove(number);
        // A policy's document decides nothing: its hash is in the manifest.
        let is_policy = lines[number]["type"] == "blob" && {
            let hash = lines[number]["hash"].as_str().unwrap();
            deployment.manifest().unwrap().policies.keys().any(|policy| policy.to_string() == hash)
        };
        let is_last_segment = lines[number]["type"] == "segment"
            && !lines[number + 1..].iter().any(|line| line["stream"] == lines[number]["stream"]);
        if !is_policy && !is_last_segment {
            check(&without, &format!("without line {number}: {}", lines[number]["type"]), false);
        }
    }
    assert!(tried > 60, "{tried} changes to an export");
}
