//! Stands in for Kata's shim in tests: containerd starts it as it would start Kata's, and the sandbox runs in runc.
//!
//! It starts Debian's `containerd-shim-runc-v2` and passes ttrpc frames through, but for one thing: Kata's options
//! are taken out of `Create`, since the runc shim knows only its own. What it was given is left in `options` in the
//! bundle, so that a test can see that Kata's configuration arrives.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::zombie_processes,
    reason = "a test's program: it fails by panicking"
)]

use std::{
    io::{Read, Write},
    os::unix::net::{UnixListener, UnixStream},
    os::unix::process::CommandExt as _,
    process::{Command, Stdio},
};

const REAL: &str = "containerd-shim-runc-v2";
const UPSTREAM: &str = "STAND_IN_UPSTREAM";
const REQUEST: u8 = 1;
const OPTIONS_FIELD: u64 = 10;

fn main() {
    if let Some(upstream) = std::env::var_os(UPSTREAM) {
        return serve(upstream.to_str().unwrap());
    }
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.last().is_none_or(|action| action != "start") {
        panic!("{}", Command::new(REAL).args(arguments).exec());
    }
    let started =
        Command::new(REAL).args(arguments).stdin(Stdio::null()).stderr(Stdio::inherit()).output().unwrap();
    // An address, or JSON with one, as newer shims print it.
    let answer = String::from_utf8(started.stdout).unwrap();
    let Some((_, rest)) = answer.split_once("unix://") else { panic!("{:?} {answer:?}", started.status) };
    let upstream = rest.split(['"', '\n']).next().unwrap();
    let own = format!("{upstream}p");
    let mut server = Command::new(std::env::current_exe().unwrap());
    server.env(UPSTREAM, upstream).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    server.process_group(0).spawn().unwrap();
    while UnixStream::connect(&own).is_err() {
        std::thread::yield_now();
    }
    if std::fs::exists("address").unwrap() {
        std::fs::write("address", format!("unix://{own}")).unwrap();
    }
    print!("{}", answer.replace(upstream, &own));
}

fn serve(upstream: &str) {
    let listener = UnixListener::bind(format!("{upstream}p")).unwrap();
    for client in listener.incoming() {
        let client = client.unwrap();
        let Ok(server) = UnixStream::connect(upstream) else { std::process::exit(0) };
        let (mut answers, mut to_client) = (server.try_clone().unwrap(), client.try_clone().unwrap());
        std::thread::spawn(move || {
            let _ = std::io::copy(&mut answers, &mut to_client);
            let _ = to_client.shutdown(std::net::Shutdown::Both);
        });
        std::thread::spawn(move || pass(client, server));
    }
}

/// Passes frames on: length, stream, kind and flags, then a message.
fn pass(mut client: UnixStream, mut server: UnixStream) {
    let mut header = [0; 10];
    while client.read_exact(&mut header).is_ok() {
        let length = u32::from_be_bytes(header[..4].try_into().unwrap());
        let mut message = vec![0; usize::try_from(length).unwrap()];
        client.read_exact(&mut message).unwrap();
        if header[8] == REQUEST {
            message = without_options(&message);
            header[..4].copy_from_slice(&u32::try_from(message.len()).unwrap().to_be_bytes());
        }
        server.write_all(&[&header, message.as_slice()].concat()).unwrap();
    }
    let _ = server.shutdown(std::net::Shutdown::Write);
}

/// A request of `Create` without the options in its payload.
fn without_options(request: &[u8]) -> Vec<u8> {
    let fields = fields(request);
    if !fields.iter().any(|(number, _, value)| *number == 2 && *value == b"Create") {
        return request.to_vec();
    }
    let mut edited = Vec::new();
    for (number, whole, value) in fields {
        if number != 3 {
            edited.extend_from_slice(whole);
            continue;
        }
        let mut payload = Vec::new();
        for (number, whole, value) in self::fields(value) {
            if number == OPTIONS_FIELD {
                std::fs::write("options", value).unwrap();
            } else {
                payload.extend_from_slice(whole);
            }
        }
        edited.push(3 << 3 | 2);
        put_varint(&mut edited, u64::try_from(payload.len()).unwrap());
        edited.extend(payload);
    }
    edited
}

/// Fields of a protobuf message: number, all of its bytes, its value's bytes.
fn fields(message: &[u8]) -> Vec<(u64, &[u8], &[u8])> {
    let (mut fields, mut rest) = (Vec::new(), message);
    while !rest.is_empty() {
        let start = rest;
        let tag = varint(&mut rest);
        let length = match tag & 7 {
            0 => {
                let mut after = rest;
                varint(&mut after);
                rest.len() - after.len()
            }
            1 => 8,
            2 => usize::try_from(varint(&mut rest)).unwrap(),
            5 => 4,
            other => panic!("wire type {other}"),
        };
        let value = &rest[..length];
        rest = &rest[length..];
        fields.push((tag >> 3, &start[..start.len() - rest.len()], value));
    }
    fields
}

fn varint(bytes: &mut &[u8]) -> u64 {
    let (mut value, mut shift) = (0, 0);
    loop {
        let byte = bytes[0];
        *bytes = &bytes[1..];
        value |= u64::from(byte & 0x7f) << shift;
        shift += 7;
        if byte < 0x80 {
            return value;
        }
    }
}

fn put_varint(bytes: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        bytes.push(u8::try_from(value & 0x7f).unwrap() | 0x80);
        value >>= 7;
    }
    bytes.push(u8::try_from(value).unwrap());
}
