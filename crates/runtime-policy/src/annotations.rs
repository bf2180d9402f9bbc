//! The annotations by which a pod asks for something: one table, which `generate` works by and the documentation is made of.

use mesh_config::{Egress, Ingress, Peers};

/// One of them.
#[derive(Debug, Clone, Copy)]
pub struct Annotation {
    /// Its name behind the prefix `contrast.edgeless.systems/`.
    pub name: &'static str,
    /// What it is for, and which values it takes.
    pub meaning: &'static str,
    /// Whether upstream knows it, too.
    pub upstream: bool,
    /// What it sets in an added container.
    pub(crate) sets: Option<(Target, &'static str)>,
    check: fn(&str) -> Result<(), String>,
}

/// Whose environment an annotation is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Target {
    /// The initializer, on its own or in the mesh's container.
    Initializer,
    /// The service mesh.
    Mesh,
    /// The helper that opens an encrypted volume.
    Volume,
}

const fn upstream(
    name: &'static str,
    sets: Option<(Target, &'static str)>,
    check: fn(&str) -> Result<(), String>,
    meaning: &'static str,
) -> Annotation {
    Annotation { name, meaning, upstream: true, sets, check }
}

const fn ours(
    name: &'static str,
    sets: Option<(Target, &'static str)>,
    check: fn(&str) -> Result<(), String>,
    meaning: &'static str,
) -> Annotation {
    Annotation { name, meaning, upstream: false, sets, check }
}

/// All of them.
pub static ANNOTATIONS: [Annotation; 21] = [
    upstream("pod-role", None, any, "`coordinator`: the pod is a Coordinator, and gets its policy alone"),
    upstream("workload-secret-id", None, any, "name of the workload secret; NAMESPACE/KIND/NAME without it"),
    upstream("skip-initializer", None, truth, "`true`: nothing is added to the pod"),
    upstream(
        "servicemesh-ingress",
        Some((Target::Mesh, "CONTRAST_INGRESS_PROXY_CONFIG")),
        parses::<Ingress>,
        "ports that are served in another way: `NAME#PORT#false` (TLS, no client certificate), `#true` (unprotected) or, ours, \
         `#mutual`, joined by `##`; empty: all with mutual TLS; `DISABLED`: whatever comes in is unprotected",
    ),
    upstream(
        "servicemesh-egress",
        Some((Target::Mesh, "CONTRAST_EGRESS_PROXY_CONFIG")),
        parses::<Egress>,
        "remote services, `NAME#LISTEN_IP:PORT#HOST:PORT`, joined by `##`",
    ),
    upstream(
        "servicemesh-admin-interface-port",
        Some((Target::Mesh, "CONTRAST_ADMIN_PORT")),
        parses::<u16>,
        "port of `/ready` and `/metrics`",
    ),
    upstream(
        "secure-pv",
        None,
        any,
        "`DEVICE:MOUNT`: an encrypted volume on this block volume, mounted in this emptyDir",
    ),
    upstream(
        "image-store-size",
        None,
        any,
        "size of the encrypted store of image layers, such as `20Gi`; `\"0\"`: none",
    ),
    upstream("expose-service", None, any, "of Services, in upstream's demos; means nothing here"),
    ours(
        "coordinator-host",
        Some((Target::Initializer, "COORDINATOR_HOST")),
        any,
        "the Coordinator, as host or host:port; `coordinator` without it, the service in the pod's namespace",
    ),
    ours(
        "renewal",
        None,
        truth,
        "`false`: the initializer ends when there is a certificate, instead of staying to renew it",
    ),
    ours(
        "verify-coordinator",
        Some((Target::Initializer, "CONTRAST_VERIFY_COORDINATOR")),
        any,
        "path of a manifest in the initializer's image, by which it verifies the Coordinator before it takes anything",
    ),
    ours(
        "initializer-resources",
        None,
        any,
        "`cpu=1,memory=200Mi`, or one of them: request and limit of the initializer",
    ),
    ours("servicemesh-resources", None, any, "the same of the service mesh"),
    ours("secure-pv-resources", None, any, "the same of the container that opens the encrypted volume"),
    ours(
        "servicemesh-peers",
        Some((Target::Mesh, "CONTRAST_MESH_PEERS")),
        parses::<Peers>,
        "who may be at the other end, `PORT_OR_EGRESS_NAME#PEER,PEER`, joined by `##`; any workload of the deployment without it",
    ),
    ours(
        "servicemesh-trust",
        Some((Target::Mesh, "CONTRAST_MESH_TRUST")),
        trust,
        "`root`: peers of earlier manifests count, too; else `mesh-ca`",
    ),
    ours(
        "servicemesh-unlisted-ports",
        Some((Target::Mesh, "CONTRAST_UNLISTED_PORTS")),
        unlisted,
        "`deny`: TCP ports that `servicemesh-ingress` does not list are closed; else `mutual-tls`",
    ),
    ours(
        "servicemesh-plain-udp-ports",
        Some((Target::Mesh, "CONTRAST_PLAIN_UDP_PORTS")),
        ports,
        "UDP ports that are let in, unprotected, joined by `,`",
    ),
    ours(
        "secure-pv-must-exist",
        Some((Target::Volume, "CONTRAST_VOLUME_MUST_EXIST")),
        truth,
        "`true`: a blank device is refused instead of formatted",
    ),
    ours(
        "secure-pv-adopt",
        None,
        truth,
        "`true`: take over a volume of a StatefulSet's claim template that an earlier version made",
    ),
];

fn any(_: &str) -> Result<(), String> {
    Ok(())
}

fn truth(text: &str) -> Result<(), String> {
    one_of(text, &["true", "false"])
}

fn trust(text: &str) -> Result<(), String> {
    one_of(text, &["mesh-ca", "root"])
}

fn unlisted(text: &str) -> Result<(), String> {
    one_of(text, &["mutual-tls", "deny"])
}

fn one_of(text: &str, values: &[&str]) -> Result<(), String> {
    match values.contains(&text) {
        true => Ok(()),
        false => Err(format!("expected {}, found {text:?}", values.join(" or "))),
    }
}

fn parses<T: std::str::FromStr<Err: std::fmt::Display>>(text: &str) -> Result<(), String> {
    text.parse::<T>().map(drop).map_err(|error| error.to_string())
}

fn ports(text: &str) -> Result<(), String> {
    let wrong = text.split(',').find(|port| port.parse::<u16>().is_err());
    wrong.map_or(Ok(()), |port| Err(format!("{port:?} is not a port")))
}

impl Annotation {
    /// What is wrong with a value.
    pub(crate) fn check(&self, value: &str) -> Result<(), String> {
        (self.check)(value)
    }
}

/// The annotation that sets a variable.
pub(crate) fn that_sets(variable: &str) -> Option<&'static str> {
    let found = ANNOTATIONS.iter().find(|annotation| annotation.sets.is_some_and(|(_, set)| set == variable));
    found.map(|annotation| annotation.name)
}

/// The annotation of that name.
pub(crate) fn find(name: &str) -> Option<&'static Annotation> {
    ANNOTATIONS.iter().find(|annotation| annotation.name == name)
}

/// The name that is most like one that there is not, if one is like it at all.
pub(crate) fn nearest(name: &str) -> Option<&'static str> {
    let names = ANNOTATIONS.iter().map(|annotation| annotation.name);
    let (distance, nearest) = names.map(|known| (distance(name, known), known)).min()?;
    (distance <= 1 + name.len() / 4).then_some(nearest)
}

/// How many letters are to be added, left out or exchanged.
fn distance(from: &str, to: &str) -> usize {
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (index, letter) in from.bytes().enumerate() {
        let (mut before, mut last) = (index, index + 1);
        for (place, other) in to.bytes().enumerate() {
            let next = row.get(place + 1).copied().unwrap_or_default();
            let exchanged = before + usize::from(letter != other);
            if let Some(cell) = row.get_mut(place) {
                *cell = last;
            }
            (before, last) = (next, exchanged.min(last + 1).min(next + 1));
        }
        if let Some(cell) = row.last_mut() {
            *cell = last;
        }
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The table of the documentation.
    fn table() -> String {
        let mut text = "| Annotation | Meaning | From |\n|---|---|---|\n".to_owned();
        for annotation in &ANNOTATIONS {
            let from = if annotation.upstream { "upstream" } else { "ours" };
            let meaning = annotation.meaning.replace('|', "\\|");
            text.push_str(&format!("| `{}` | {meaning} | {from} |\n", annotation.name));
        }
        text
    }

    #[test]
    fn the_documentation_holds_the_table() {
        let document = include_str!("../../../docs/kubernetes.md");
        assert!(document.contains(&table()), "put this into docs/kubernetes.md:\n{}", table());
    }

    #[test]
    fn a_misspelt_name_leads_to_the_one_that_was_meant() {
        for (name, expected) in [
            ("worload-secret-id", Some("workload-secret-id")),
            ("servicemesh-ingres", Some("servicemesh-ingress")),
            ("service-mesh-egress", Some("servicemesh-egress")),
            ("something-else-entirely", None),
        ] {
            assert_eq!(nearest(name), expected, "{name}");
        }
        assert_eq!((distance("kitten", "sitting"), distance("", "ab"), distance("ab", "")), (3, 2, 2));
    }
}
