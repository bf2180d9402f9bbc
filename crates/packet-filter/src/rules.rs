//! The rules, as data.

use std::collections::BTreeSet;

use crate::expression::{Expression, FORWARD, INPUT, PREROUTING};

pub(crate) const DENY: &str = "contrast_deny";
pub(crate) const MESH: &str = "contrast_mesh";

/// Marks packets that were handed to a socket of the mesh.
const TAKEN: u32 = 0x00c0_2757;
/// After connection tracking, before destination NAT.
const MANGLE: i32 = -150;
const FILTER: i32 = 0;

const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;
/// ICMPv6 types of neighbour discovery (RFC 4861); without them IPv6 does not work at all.
const NEIGHBOUR_DISCOVERY: (u8, u8) = (133, 137);

/// Where incoming TCP goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redirection {
    /// Port of the transparent socket that asks for client certificates.
    pub mutual_tls: u16,
    /// Port of the transparent socket that does not.
    pub server_tls: u16,
    /// Ports of the application that go to `server_tls`.
    pub without_client_certificate: BTreeSet<u16>,
    /// Ports of the application that are not redirected at all.
    pub plain: BTreeSet<u16>,
    /// What happens to ports that are in neither set.
    pub unlisted: UnlistedPorts,
    /// Ports that, if `unlisted` denies, are served with mutual TLS all the same.
    pub with_client_certificate: BTreeSet<u16>,
    /// UDP ports that are let in; nothing protects what comes there.
    pub plain_udp: BTreeSet<u16>,
}

/// What happens to TCP ports that nobody named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnlistedPorts {
    /// They are served with mutual TLS.
    MutualTls,
    /// Nothing comes in.
    Deny,
    /// They are not redirected, and nothing protects what comes there.
    Plain,
}

/// A base chain.
pub(crate) struct Chain {
    pub(crate) name: &'static str,
    pub(crate) hook: u32,
    pub(crate) priority: i32,
    /// Whether a packet that no rule decided is let through.
    pub(crate) accepts: bool,
    pub(crate) rules: Vec<Vec<Expression>>,
}

pub(crate) fn deny_chains() -> Vec<Chain> {
    vec![input(always_let_in()), forward()]
}

pub(crate) fn mesh_chains(to: &Redirection) -> Vec<Chain> {
    let mut let_in = always_let_in();
    let_in.push([Expression::mark_is(TAKEN), vec![Expression::accept()]].concat());
    let_in.extend(to.plain.iter().map(|&port| accept_port(TCP, port)));
    if to.unlisted == UnlistedPorts::Plain {
        let_in.push([Expression::protocol_is(TCP), vec![Expression::accept()]].concat());
    }
    let_in.extend(to.plain_udp.iter().map(|&port| accept_port(UDP, port)));
    vec![prerouting(to), input(let_in), forward()]
}

/// Hands packets to the mesh's sockets. What it does not decide, `input` decides.
fn prerouting(to: &Redirection) -> Chain {
    let leave = |condition: Vec<Expression>| [condition, vec![Expression::accept()]].concat();
    let take = |condition: Vec<Expression>, socket: u16| {
        let tcp = Expression::protocol_is(TCP);
        let end =
            [Expression::hand_to(socket), Expression::set_mark(TAKEN), vec![Expression::accept()]].concat();
        [tcp, condition, end].concat()
    };
    let mut rules = vec![
        leave(Expression::from_loopback()),
        leave(Expression::is_answer()),
        leave(Expression::not_to_this_host()),
    ];
    rules.extend(
        to.plain
            .iter()
            .map(|&port| leave([Expression::protocol_is(TCP), Expression::to_port(port)].concat())),
    );
    rules.extend(
        to.without_client_certificate.iter().map(|&port| take(Expression::to_port(port), to.server_tls)),
    );
    match to.unlisted {
        UnlistedPorts::MutualTls => rules.push(take(Vec::new(), to.mutual_tls)),
        UnlistedPorts::Deny => {
            // The mesh's own port stays: Kubernetes probes it to see that the mesh is up.
            let ports = to.with_client_certificate.iter().chain([&to.mutual_tls]);
            rules.extend(ports.map(|&port| take(Expression::to_port(port), to.mutual_tls)));
        }
        UnlistedPorts::Plain => {}
    }
    Chain { name: "prerouting", hook: PREROUTING, priority: MANGLE, accepts: true, rules }
}

fn input(rules: Vec<Vec<Expression>>) -> Chain {
    Chain { name: "input", hook: INPUT, priority: FILTER, accepts: false, rules }
}

/// A pod is no router.
fn forward() -> Chain {
    Chain { name: "forward", hook: FORWARD, priority: FILTER, accepts: false, rules: Vec::new() }
}

fn always_let_in() -> Vec<Vec<Expression>> {
    let accept = || vec![Expression::accept()];
    let (first, last) = NEIGHBOUR_DISCOVERY;
    let discovery = [Expression::protocol_is(ICMPV6), Expression::icmp_type_within(first, last), accept()];
    let errors = |icmp| [Expression::protocol_is(icmp), Expression::is_related(), accept()].concat();
    vec![
        [Expression::from_loopback(), accept()].concat(),
        [Expression::is_answer(), accept()].concat(),
        discovery.concat(),
        errors(ICMP), // "fragmentation needed" and its like, about connections that exist
        errors(ICMPV6),
    ]
}

fn accept_port(protocol: u8, port: u16) -> Vec<Expression> {
    [Expression::protocol_is(protocol), Expression::to_port(port), vec![Expression::accept()]].concat()
}
