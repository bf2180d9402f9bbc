//! The containers that `generate` adds to a pod: what each runs, with the least rights and the resources it needs.
//!
//! - The **initializer** is a side-car that stays and renews the certificate; with the annotation `renewal: "false"` an
//!   ordinary init container, which ends. It passes Pod Security's level `restricted`.
//! - The **service mesh** is a side-car that starts before everything else in the pod, so that its packet filter stands
//!   first. The initializer runs in the same container as its child: the kubelet looks for the end of one container, to
//!   start the next, once a second, so each container that others wait for costs every pod a second.
//! - The **volume helper** opens an encrypted volume.

use serde_json::{Value, json};

use crate::{
    annotations::{ANNOTATIONS, Target},
    workload::Workload,
};

pub(crate) const INITIALIZER: &str = "contrast-initializer";
pub(crate) const SERVICE_MESH: &str = "contrast-service-mesh";
/// Prefix of the container that opens an encrypted volume.
pub(crate) const SECURE_VOLUME: &str = "contrast-secure-pv-";
pub(crate) const SECRETS: &str = "contrast-secrets";
pub(crate) const SECRETS_PATH: &str = "/contrast";
/// Group of the files that the initializer writes. All containers of the pod get it, since they run as various users.
pub(crate) const SECRETS_GROUP: u32 = 65532;
/// User of the initializer, as its image says. Said here as well, because a pod's own `runAsUser` would take its place.
const NOBODY: u32 = 65532;
/// After how many seconds without a certificate a container ends, so that `kubectl describe` shows the reason.
const REPORT_AFTER_SECONDS: &str = "15";
/// The same for the mesh's container, which ends for each reason: as long as a `postStart` hook runs, the kubelet does
/// nothing else for the pod, not even end it.
const GIVE_UP_AFTER_SECONDS: &str = "20";

/// CPU and memory of an added container. Requests and limits stand for both, or a namespace with a `ResourceQuota`
/// would refuse the pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Resources {
    cpu_request: String,
    cpu_limit: String,
    memory: String,
}

impl Resources {
    fn new(cpu_request: &str, cpu_limit: &str, memory: &str) -> Self {
        Self { cpu_request: cpu_request.into(), cpu_limit: cpu_limit.into(), memory: memory.into() }
    }

    /// An attestation took 28 ms of a processor and 14 MiB of memory at most (release build, simulated evidence). The limit
    /// leaves room for a sidecar, which keeps 11 MiB.
    fn initializer() -> Self {
        Self::new("10m", "500m", "50Mi")
    }

    /// Mesh and initializer. 10m is what both take while nothing happens; half a processor carries 350 new
    /// connections a second. The mesh takes as many connections as the memory allows (`docs/service-mesh.md`).
    fn service_mesh() -> Self {
        Self::new("10m", "500m", "128Mi")
    }

    /// `cryptsetup` derives a key with argon2id, which takes the memory.
    fn secure_volume() -> Self {
        Self::new("10m", "500m", "100Mi")
    }

    /// `cpu=500m,memory=64Mi`, or one of them. What is given is request and limit.
    fn changed_by(mut self, text: &str) -> Result<Self, String> {
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            let quantity = |value: &str| {
                let digits = value.trim_end_matches(|c: char| c.is_ascii_alphabetic());
                digits.parse::<f64>().is_ok_and(|number| number > 0.0)
            };
            match part.split_once('=') {
                Some(("cpu", value)) if quantity(value) => {
                    self.cpu_request = value.to_owned();
                    self.cpu_limit = value.to_owned();
                }
                Some(("memory", value)) if quantity(value) => self.memory = value.to_owned(),
                _ => {
                    return Err(format!(
                        "{part:?}: expected cpu=QUANTITY,memory=QUANTITY, such as cpu=1,memory=200Mi"
                    ));
                }
            }
        }
        Ok(self)
    }

    /// The request of memory is its limit, since the VM has it from its start; processors are shared.
    fn to_yaml(&self) -> Value {
        json!({
            "requests": { "cpu": self.cpu_request, "memory": self.memory },
            "limits": { "cpu": self.cpu_limit, "memory": self.memory },
        })
    }
}

/// What the user's annotation makes of the usual resources. The error is about the annotation of the name that is returned.
fn resources(
    workload: &Workload,
    name: &'static str,
    usual: Resources,
) -> Result<Value, (&'static str, String)> {
    match workload.annotation(name) {
        Some(text) => {
            usual.changed_by(text).map(|resources| resources.to_yaml()).map_err(|message| (name, message))
        }
        None => Ok(usual.to_yaml()),
    }
}

/// Passes Pod Security's level `restricted`.
fn restricted() -> Value {
    json!({
        "allowPrivilegeEscalation": false,
        "capabilities": { "drop": ["ALL"] },
        "readOnlyRootFilesystem": true,
        "runAsNonRoot": true,
        "runAsUser": NOBODY,
        "runAsGroup": SECRETS_GROUP,
        "seccompProfile": { "type": "RuntimeDefault" },
    })
}

/// `restricted`, but for what changes the pod's packet filter and opens transparent sockets. A capability that is added
/// to a container reaches root only, so it is root, who has nothing else of root's: not even the right to read the files
/// of others.
fn network_admin() -> Value {
    let mut context = restricted();
    context["capabilities"]["add"] = json!(["NET_ADMIN"]);
    context["runAsNonRoot"] = json!(false);
    context["runAsUser"] = json!(0);
    context
}

/// For who writes the files.
pub(crate) fn secrets_mount() -> Value {
    json!({ "name": SECRETS, "mountPath": SECRETS_PATH })
}

/// For everybody else.
pub(crate) fn secrets_to_read() -> Value {
    json!({ "name": SECRETS, "mountPath": SECRETS_PATH, "readOnly": true })
}

fn variable(name: &str, value: &str) -> Value {
    json!({ "name": name, "value": value })
}

fn initializer_environment(workload: &Workload, coordinator: &str) -> Vec<Value> {
    let mut env = Vec::new();
    if workload.annotation("coordinator-host").is_none() {
        env.push(variable("COORDINATOR_HOST", coordinator));
    }
    // The root file system is read-only, and the user may not write there anyway.
    env.push(variable("CONTRAST_READY_FILE", &format!("{SECRETS_PATH}/initialized")));
    env.extend(asked_for(workload, Target::Initializer));
    env
}

/// Variables that the pod's annotations set.
fn asked_for(workload: &Workload, target: Target) -> impl Iterator<Item = Value> {
    ANNOTATIONS.iter().filter_map(move |annotation| {
        let (of, name) = annotation.sets?;
        let value = workload.annotation(annotation.name).filter(|_| of == target)?;
        Some(variable(name, value))
    })
}

/// Variables that `generate` writes by itself.
pub(crate) fn is_written_here(name: &str) -> bool {
    const OWN: [&str; 8] = [
        "CONTRAST_READY_FILE",
        "CONTRAST_SIDECAR",
        "CONTRAST_GIVE_UP_AFTER_SECONDS",
        "CONTRAST_REPORT_AFTER_SECONDS",
        "CONTRAST_LIFT_DEFAULT_DENY",
        "CONTRAST_INITIALIZER",
        "CONTRAST_WORKLOAD_OWNERS",
        "CONTRAST_WORKLOAD_OWNERS_NEEDED",
    ];
    OWN.contains(&name)
}

/// Whether the initializer stays to renew the certificate. One that does not leaves its pod out after each update.
pub(crate) fn renews(workload: &Workload, usual: bool) -> Result<bool, (&'static str, String)> {
    match workload.annotation("renewal") {
        None => Ok(usual),
        Some("true") => Ok(true),
        Some("false") => Ok(false),
        Some(other) => Err(("renewal", format!("expected \"true\" or \"false\", found {other:?}"))),
    }
}

/// The initializer on its own. `lift_deny` is for guests that let nobody in from their start.
pub(crate) fn initializer(
    workload: &Workload,
    image: &str,
    coordinator: &str,
    lift_deny: bool,
    renews: bool,
) -> Result<Value, (&'static str, String)> {
    let mut env = initializer_environment(workload, coordinator);
    if renews {
        env.push(variable("CONTRAST_SIDECAR", "true"));
        env.push(variable("CONTRAST_GIVE_UP_AFTER_SECONDS", GIVE_UP_AFTER_SECONDS));
    } else if workload.spec.restart_policy.as_deref() != Some("Never") {
        // A pod that must not restart has failed when an init container ends without success.
        env.push(variable("CONTRAST_REPORT_AFTER_SECONDS", REPORT_AFTER_SECONDS));
    }
    if lift_deny {
        env.push(variable("CONTRAST_LIFT_DEFAULT_DENY", "true"));
    }
    let mut container = json!({
        "name": INITIALIZER,
        "image": image,
        "env": env,
        "resources": resources(workload, "initializer-resources", Resources::initializer())?,
        "securityContext": if lift_deny { network_admin() } else { restricted() },
        // Where the message does not leave the guest, its log may.
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [secrets_mount()],
    });
    if renews {
        container["restartPolicy"] = json!("Always");
        // As with the mesh: no other container starts before there is a certificate.
        container["lifecycle"] = json!({ "postStart": { "exec": { "command": ["/initializer", "wait"] } } });
    }
    Ok(container)
}

/// The mesh, with the initializer as its child.
pub(crate) fn service_mesh(
    workload: &Workload,
    image: &str,
    coordinator: &str,
) -> Result<Value, (&'static str, String)> {
    // A side-car is restarted whatever the pod's own policy is.
    let mut env = initializer_environment(workload, coordinator);
    env.push(variable("CONTRAST_GIVE_UP_AFTER_SECONDS", GIVE_UP_AFTER_SECONDS));
    env.push(variable("CONTRAST_INITIALIZER", "/initializer"));
    env.extend(asked_for(workload, Target::Mesh));
    Ok(json!({
        "name": SERVICE_MESH,
        "image": image,
        "restartPolicy": "Always",
        "env": env,
        "resources": resources(workload, "servicemesh-resources", Resources::service_mesh())?,
        "securityContext": network_admin(),
        // Kubernetes starts no other container before this has returned, which it does when there is a certificate and the
        // mesh listens. A startup probe would say the same a second later: kubelets look at one only after they have seen
        // the container run, and act on it when they look the next time.
        "lifecycle": { "postStart": { "exec": { "command": ["/service-mesh", "wait"] } } },
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [secrets_mount()],
    }))
}

/// Opens `device` with the workload secret and mounts it into the volume `mount`. A volume of its own for each pod of a
/// StatefulSet (`per_pod`) is bound to that pod.
pub(crate) fn secure_volume(
    workload: &Workload,
    image: &str,
    device: &str,
    mount: &str,
    per_pod: bool,
) -> Result<Value, (&'static str, String)> {
    let (device_path, mount_path) = (format!("/dev/{device}"), format!("/{mount}"));
    let mut args = ["cryptsetup", "-d", &device_path, "-m", &mount_path].map(str::to_owned).to_vec();
    if per_pod {
        args.extend(["--stateful-set".to_owned(), workload.name.clone()]);
    }
    match workload.annotation("secure-pv-adopt") {
        None | Some("false") => {}
        Some("true") if per_pod => args.push("--adopt-volume".to_owned()),
        Some("true") => {
            let text = "only a volume from a StatefulSet's claim template belongs to one pod";
            return Err(("secure-pv-adopt", text.into()));
        }
        Some(other) => return Err(("secure-pv-adopt", format!("{other:?}: expected \"true\" or \"false\""))),
    }
    let env: Vec<Value> = asked_for(workload, Target::Volume).collect();
    let mut container = json!({
        "name": format!("{SECURE_VOLUME}{device}"),
        "image": image,
        "restartPolicy": "Always",
        "args": args,
        // It creates mappings of the device mapper and mounts what is behind them for other containers to see, for which
        // Kubernetes demands `privileged` (mountPropagation: Bidirectional); and root, since the image's user has no
        // rights that a privileged container could use.
        "securityContext": { "privileged": true, "runAsNonRoot": false, "runAsUser": 0, "runAsGroup": SECRETS_GROUP },
        // The image has no shell and no `test`.
        "startupProbe": { "exec": { "command": ["/initializer", "ready"] }, "periodSeconds": 1, "failureThreshold": 300 },
        "resources": resources(workload, "secure-pv-resources", Resources::secure_volume())?,
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeDevices": [{ "name": device, "devicePath": device_path }],
        "volumeMounts": [
            { "name": mount, "mountPath": mount_path, "mountPropagation": "Bidirectional" },
            secrets_to_read(),
        ],
    });
    if !env.is_empty() {
        container["env"] = env.into();
    }
    Ok(container)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resources_are_changed_one_by_one_and_mistakes_are_named() {
        let changed = Resources::service_mesh().changed_by("memory=1Gi").unwrap();
        assert_eq!(changed, Resources::new("10m", "500m", "1Gi"));
        let both = Resources::service_mesh().changed_by("cpu=1.5, memory=200Mi").unwrap();
        assert_eq!(both, Resources::new("1.5", "1.5", "200Mi"));
        for wrong in ["cpu", "cpu=", "cpu=-1", "disk=1Gi", "memory=0"] {
            let message = Resources::initializer().changed_by(wrong).unwrap_err();
            assert!(message.contains(wrong) && message.contains("cpu=QUANTITY"), "{message}");
        }
    }
}
