//! Which level of Kubernetes' Pod Security Standards a namespace may enforce with these pods in it.
//!
//! Follows the standards as Kubernetes 1.34 checks them (<https://kubernetes.io/docs/concepts/security/pod-security-standards/>),
//! for the fields that a confidential pod can have: what shares something with the host is refused elsewhere, and Windows is
//! left out. `deploy/cluster/suite` compares the answers with those of a real API server.

use std::{collections::BTreeMap, fmt};

use serde_json::Value;

use crate::{deployment::Deployment, workload::Workload};

/// A level; each forbids what those before it forbid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum PodSecurityLevel {
    /// Hardened.
    Restricted,
    /// Without known ways to more rights.
    Baseline,
    /// Everything is allowed.
    Privileged,
}

impl fmt::Display for PodSecurityLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Restricted => "restricted",
            Self::Baseline => "baseline",
            Self::Privileged => "privileged",
        })
    }
}

/// What a namespace needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodSecurity {
    /// The namespace.
    pub namespace: String,
    /// The strictest level that it may enforce.
    pub level: PodSecurityLevel,
    /// What the next stricter level forbids: pod, and field with value.
    pub because: Vec<String>,
}

impl Deployment {
    /// What each namespace needs for its confidential pods, in the order of names.
    pub fn pod_security(&self) -> Vec<PodSecurity> {
        let mut namespaces: BTreeMap<&str, Vec<Violation>> = BTreeMap::new();
        for workload in self.workloads() {
            namespaces.entry(&workload.namespace).or_default().extend(violations(workload));
        }
        let need = |(namespace, found): (&str, Vec<Violation>)| {
            let level = found.iter().map(|found| found.needs).max().unwrap_or(PodSecurityLevel::Restricted);
            let because = found.into_iter().filter(|found| found.needs == level).map(|found| found.text);
            PodSecurity { namespace: namespace.to_owned(), level, because: because.collect() }
        };
        namespaces.into_iter().map(need).collect()
    }
}

/// Something that takes a less strict level than `restricted`.
struct Violation {
    needs: PodSecurityLevel,
    text: String,
}

/// Capabilities that `baseline` lets containers add; `restricted` only NET_BIND_SERVICE.
const ADDABLE: [&str; 13] = [
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];
/// Volumes that `restricted` allows. Of the others `baseline` forbids only hostPath.
const VOLUMES: [&str; 9] = [
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "image",
    "persistentVolumeClaim",
    "projected",
    "secret",
];
const SYSCTLS: [&str; 12] = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.ping_group_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_wmem",
];

fn violations(workload: &Workload) -> Vec<Violation> {
    let spec = &workload.pod["spec"];
    let mut found = Vec::new();
    let mut add = |needs, text: String| {
        found.push(Violation { needs, text: format!("{} {}: {text}", workload.kind, workload.name) });
    };
    for volume in list(spec, "volumes") {
        let kind =
            volume.as_object().into_iter().flatten().map(|(key, _)| key.as_str()).find(|key| *key != "name");
        let kind = kind.unwrap_or("emptyDir");
        if !VOLUMES.contains(&kind) {
            let needs =
                if kind == "hostPath" { PodSecurityLevel::Privileged } else { PodSecurityLevel::Baseline };
            add(needs, format!("volume {} is of kind {kind}", text(volume, "name")));
        }
    }
    let pod = &spec["securityContext"];
    for sysctl in list(pod, "sysctls") {
        if !SYSCTLS.contains(&text(sysctl, "name")) {
            add(PodSecurityLevel::Privileged, format!("sysctl {}", text(sysctl, "name")));
        }
    }
    if let Some(needs) = of_context(pod) {
        add(needs, "securityContext of the pod asks for Unconfined or for own SELinux labels".into());
    }
    for container in list(spec, "initContainers").into_iter().chain(list(spec, "containers")) {
        for (needs, text) in of_container(container, pod) {
            add(needs, format!("container {}: {text}", self::text(container, "name")));
        }
    }
    found
}

fn of_container(container: &Value, pod: &Value) -> Vec<(PodSecurityLevel, String)> {
    use PodSecurityLevel::{Baseline, Privileged};
    let context = &container["securityContext"];
    let own_or_pods =
        |field: &str| Some(&context[field]).filter(|value| !value.is_null()).unwrap_or(&pod[field]);
    let mut found = Vec::new();
    if context["privileged"] == true {
        found.push((Privileged, "privileged".to_owned()));
    }
    if list(container, "ports").iter().any(|port| port["hostPort"].as_u64().is_some_and(|port| port != 0)) {
        found.push((Privileged, "hostPort".into()));
    }
    if let Some(needs) = of_context(context) {
        found.push((needs, "asks for Unconfined or for own SELinux labels".into()));
    }
    for capability in list(&context["capabilities"], "add") {
        let name = capability.as_str().unwrap_or_default();
        if !ADDABLE.contains(&name) {
            found.push((Privileged, format!("adds {name}")));
        } else if name != "NET_BIND_SERVICE" {
            found.push((Baseline, format!("adds {name}")));
        }
    }
    if !list(&context["capabilities"], "drop").iter().any(|name| *name == "ALL") {
        found.push((Baseline, "does not drop ALL capabilities".into()));
    }
    if context["allowPrivilegeEscalation"] != false {
        found.push((Baseline, "allowPrivilegeEscalation is not false".into()));
    }
    if *own_or_pods("runAsNonRoot") != true {
        found.push((Baseline, "runAsNonRoot is not true".into()));
    }
    if *own_or_pods("runAsUser") == 0 {
        found.push((Baseline, "runAsUser is 0".into()));
    }
    let seccomp = own_or_pods("seccompProfile");
    if seccomp["type"] != "RuntimeDefault" && seccomp["type"] != "Localhost" {
        found.push((Baseline, "seccompProfile is not RuntimeDefault".into()));
    }
    found
}

/// What `baseline` forbids in the security context of a pod and of a container alike.
fn of_context(context: &Value) -> Option<PodSecurityLevel> {
    let unconfined = |field: &str| context[field]["type"] == "Unconfined";
    let labels = &context["seLinuxOptions"];
    let own_type = labels["type"].as_str().is_some_and(|kind| {
        !["", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"].contains(&kind)
    });
    let own_user =
        ["user", "role"].iter().any(|field| labels[*field].as_str().is_some_and(|text| !text.is_empty()));
    let forbidden = unconfined("seccompProfile") || unconfined("appArmorProfile") || own_type || own_user;
    forbidden.then_some(PodSecurityLevel::Privileged)
}

fn list<'v>(value: &'v Value, field: &str) -> Vec<&'v Value> {
    value.get(field).and_then(Value::as_array).into_iter().flatten().collect()
}

fn text<'v>(value: &'v Value, field: &str) -> &'v str {
    value[field].as_str().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const STRICT: &str = "allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}, runAsNonRoot: true, \
                          seccompProfile: {type: RuntimeDefault}";

    fn need(spec: &str) -> (PodSecurityLevel, String) {
        let pod =
            format!("kind: Pod\nmetadata: {{name: a}}\nspec: {{runtimeClassName: contrast-cc, {spec}}}\n");
        let found = Deployment::read([("a.yml", pod)]).unwrap().pod_security();
        assert_eq!(found[0].namespace, "default");
        (found[0].level, found[0].because.join("; "))
    }

    #[test]
    fn each_rule_is_named_with_the_level_it_takes() {
        use PodSecurityLevel::{Baseline, Privileged, Restricted};
        let strict = format!("containers: [{{name: c, image: i, securityContext: {{{STRICT}}}}}]");
        assert_eq!(need(&strict), (Restricted, String::new()));
        let cases = [
            ("runAsNonRoot: true", "runAsNonRoot: false", Baseline, "runAsNonRoot"),
            ("runAsNonRoot: true", "runAsNonRoot: true, runAsUser: 0", Baseline, "runAsUser is 0"),
            ("type: RuntimeDefault", "type: Unconfined", Privileged, "Unconfined"),
            ("drop: [ALL]", "drop: [ALL], add: [NET_ADMIN]", Privileged, "adds NET_ADMIN"),
            ("drop: [ALL]", "drop: [ALL], add: [CHOWN]", Baseline, "adds CHOWN"),
            ("drop: [ALL]", "drop: [KILL]", Baseline, "drop ALL"),
            ("allowPrivilegeEscalation: false", "privileged: true", Privileged, "container c: privileged"),
            ("containers:", "volumes: [{name: v, nfs: {server: s, path: /}}], containers:", Baseline, "nfs"),
            (
                "containers:",
                "securityContext: {sysctls: [{name: kernel.x, value: a}]}, containers:",
                Privileged,
                "kernel.x",
            ),
            ("image: i", "image: i, ports: [{containerPort: 1, hostPort: 1}]", Privileged, "hostPort"),
        ];
        for (from, to, level, because) in cases {
            assert!(strict.contains(from), "{from}");
            let (found, text) = need(&strict.replacen(from, to, 1));
            assert_eq!(found, level, "{to}: {text}");
            assert!(text.contains(because), "{to}: {text}");
        }
    }

    #[test]
    fn what_the_pod_says_counts_for_containers_that_say_nothing() {
        let rest = "allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}";
        let (level, because) = need(&format!(
            "securityContext: {{runAsNonRoot: true, seccompProfile: {{type: RuntimeDefault}}}}, \
             containers: [{{name: c, image: i, securityContext: {{{rest}}}}}]"
        ));
        assert_eq!(level, PodSecurityLevel::Restricted, "{because}");
    }
}
