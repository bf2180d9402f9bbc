//! The policy document: TOML (initdata) around Rego.

use serde::Serialize;

use crate::Pod;

/// Deny everything that is not the creation of exactly the containers below, and what running
/// them needs.
const RULES: &str = r#"package agent_policy

default CreateContainerRequest := false
default StartContainerRequest := true
default SignalProcessRequest := true
default WaitProcessRequest := true
default RemoveContainerRequest := true
default DestroySandboxRequest := true
default ExecProcessRequest := false
default CopyFileRequest := false
default ReadStreamRequest := false
default WriteStreamRequest := false
default SetPolicyRequest := false

CreateContainerRequest if {
    some container in policy_data.containers
    input.OCI.Process.Args == array.concat(container.command, container.args)
    input.OCI.Annotations["io.kubernetes.cri.container-name"] == container.name
    input.OCI.Annotations["io.kubernetes.cri.image-name"] == container.image
    declared := {sprintf("%s=%s", [name, value]) | [name, value] := container.env[_]}
    {entry | entry := input.OCI.Process.Env[_]} == declared
}
"#;

#[derive(Serialize)]
struct InitData<'a> {
    version: &'a str,
    algorithm: &'a str,
    data: Data,
}

#[derive(Serialize)]
struct Data {
    #[serde(rename = "policy.rego")]
    policy: String,
}

/// The document of a pod. The same pod gives the same bytes; their SHA-256 is the pod's HOSTDATA
/// and its key in the manifest.
pub fn policy_document(pod: &Pod) -> Vec<u8> {
    let data = serde_json::to_string_pretty(pod).unwrap_or_default();
    let policy = format!("{RULES}\npolicy_data := {data}\n");
    let document = InitData { version: "0.1.0", algorithm: "sha256", data: Data { policy } };
    toml::to_string(&document).unwrap_or_default().into_bytes()
}

#[cfg(test)]
mod tests {
    use crate::read_pods;

    #[test]
    fn same_pod_same_bytes_and_every_field_counts() {
        let yaml = "kind: Pod\nmetadata: {name: a}\nspec:\n  runtimeClassName: contrast-cc\n  \
                    containers: [{name: a, image: i, args: [x]}]\n";
        let document = |yaml: &str| super::policy_document(&read_pods("a", yaml).unwrap()[0]);
        assert_eq!(document(yaml), document(yaml));
        for change in [("name: a, image", "name: b, image"), ("image: i", "image: j"), ("[x]", "[y]")] {
            assert_ne!(document(yaml), document(&yaml.replace(change.0, change.1)));
        }
    }
}
