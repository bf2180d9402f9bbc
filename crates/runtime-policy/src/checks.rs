//! What is wrong with a pod for the place where it is to run: never fatal, always worth a look
//! (docs/spec/manifest-and-cli.md, section 3, step 2).

use std::collections::BTreeMap;

use manifest::Role;
use serde_json::Value;
use yaml_edit::Path;

use crate::{
    deployment::Deployment,
    error::Finding,
    quantity::{is_gpu, milli},
    spec::{Container, PodSpec, Resources},
    workload::{RUNTIME_CLASS, Workload, below_field},
};

/// Processors of a VM before any limit is added (the installer's `default_vcpus`).
const BASE_VCPUS: u64 = 1;

/// Where pods are to run.
#[derive(Debug, Clone, Default)]
pub struct Target {
    /// Platforms by the names that runtime classes have, such as `metal-qemu-snp`.
    pub platforms: Vec<String>,
    /// Numbers of processors for which there is a launch digest; empty if the digest holds for any.
    pub vcpus: Vec<u64>,
    /// Version that images of Contrast should have.
    pub version: String,
}

impl Deployment {
    /// Whatever does not fit the place.
    pub fn check(&self, target: &Target) -> Vec<Finding> {
        let mut found = self.left_out();
        for workload in self.workloads() {
            let mut warn = |path: &Path, message: String| {
                found.push(self.place(workload).finding(&workload.kind, &workload.name, path, message));
            };
            namespace(workload, &mut warn);
            runtime_class(workload, target, &mut warn);
            processors(workload, target, &mut warn);
            gpus(workload, target, &mut warn);
            versions(workload, target, &mut warn);
        }
        found
    }
}

type Warn<'a> = dyn FnMut(&Path, String) + 'a;

fn namespace(workload: &Workload, warn: &mut Warn<'_>) {
    if !workload.namespace_given {
        let message = "there is no metadata.namespace, so the policy is for the namespace \"default\": in another one the pod \
                       would be denied";
        warn(&workload.path.then("metadata"), message.into());
    }
}

fn runtime_class(workload: &Workload, target: &Target, warn: &mut Warn<'_>) {
    let path = workload.spec_path().then("runtimeClassName");
    let class = workload.spec.runtime_class_name.as_deref().unwrap_or_default();
    let rest = class.strip_prefix(RUNTIME_CLASS).unwrap_or_default().trim_start_matches('-');
    // contrast-cc-PLATFORM-HASH8
    let hash = |hash: &str| hash.len() == 8 && hash.bytes().all(|byte| byte.is_ascii_hexdigit());
    match rest.rsplit_once('-').filter(|(_, last)| hash(last)) {
        Some((platform, _)) if target.platforms.iter().any(|known| known == platform) => {}
        Some((platform, _)) => warn(
            &path,
            format!(
                "{class} is for {platform}, the reference values are for {}",
                target.platforms.join(", ")
            ),
        ),
        None => warn(
            &path,
            format!(
                "{class} is a placeholder, which no node knows: give --runtime-bundle or --runtime-class"
            ),
        ),
    }
}

fn processors(workload: &Workload, target: &Target, warn: &mut Warn<'_>) {
    let vcpus = BASE_VCPUS.saturating_add(limit(&workload.spec, "cpu").div_ceil(1000));
    if !target.vcpus.is_empty() && !target.vcpus.contains(&vcpus) {
        let known: Vec<String> = target.vcpus.iter().map(u64::to_string).collect();
        let message = format!(
            "its VM has {vcpus} processors ({BASE_VCPUS} and the limits), and reference values are for {}: guests would be \
             refused. Measure that number too (vcpus in launch.json), or change the limits",
            known.join(", ")
        );
        warn(&workload.spec_path(), message);
    }
}

fn gpus(workload: &Workload, target: &Target, warn: &mut Warn<'_>) {
    for (field, container) in workload.spec.all_containers() {
        let resources = container.resources.iter();
        let (limits, requests): (Vec<_>, Vec<_>) =
            resources.map(|resources| (resources.limits.clone(), resources.requests.clone())).unzip();
        let limits: BTreeMap<String, Value> = limits.into_iter().flatten().flatten().collect();
        let requests: BTreeMap<String, Value> = requests.into_iter().flatten().flatten().collect();
        for name in limits.keys().chain(requests.keys()).filter(|name| is_gpu(name)) {
            let path = below_field(&workload.spec_path(), &format!("{field}.resources"));
            let whole = |value: Option<&Value>| value.and_then(milli).is_some_and(|count| count % 1000 == 0);
            if !target.platforms.iter().any(|platform| platform.ends_with("-gpu")) {
                warn(&path, format!("{name} needs a platform with GPUs, such as Metal-QEMU-SNP-GPU"));
            } else if !whole(limits.get(name))
                || requests.get(name).is_some_and(|count| Some(count) != limits.get(name))
            {
                warn(
                    &path,
                    format!(
                        "{name}: a VM gets whole GPUs, as many as the limit says; a request must equal it"
                    ),
                );
            }
        }
    }
}

/// Images of Contrast have the version as their tag.
fn versions(workload: &Workload, target: &Target, warn: &mut Warn<'_>) {
    for (field, container) in workload.spec.all_containers() {
        let ours = container.name.starts_with("contrast-") || workload.role == Role::Coordinator;
        let reference = container.image.as_deref().unwrap_or_default();
        let name = reference.split('@').next().unwrap_or_default().rsplit('/').next().unwrap_or_default();
        let Some((program, tag)) = name.split_once(':') else { continue };
        let known = matches!(program, "coordinator" | "initializer" | "service-mesh");
        let version =
            tag.strip_prefix('v').filter(|version| version.starts_with(|c: char| c.is_ascii_digit()));
        if let Some(version) = version.filter(|version| ours && known && *version != target.version) {
            let path = below_field(&workload.spec_path(), &format!("{field}.image"));
            warn(
                &path,
                format!(
                    "{program} is of version {version}, this is contrast {}: use one version",
                    target.version
                ),
            );
        }
    }
}

/// The pod's limit of a resource, in thousandths, as the kubelet sums it up: containers and side-cars run together, an
/// init container with the side-cars before it.
fn limit(spec: &PodSpec, resource: &str) -> u64 {
    let amount = |resources: &Resources| resources.limits.as_ref()?.get(resource).and_then(milli);
    // A limit for the pod as a whole stands above those of its containers (Kubernetes 1.34).
    if let Some(limit) = spec.resources.as_ref().and_then(amount) {
        return limit;
    }
    let of = |container: &Container| container.resources.as_ref().and_then(amount).unwrap_or_default();
    let (mut side_cars, mut most) = (0u64, 0u64);
    for container in spec.init_containers.iter().flatten() {
        if container.restart_policy.as_deref() == Some("Always") {
            side_cars = side_cars.saturating_add(of(container));
            most = most.max(side_cars);
        } else {
            most = most.max(side_cars.saturating_add(of(container)));
        }
    }
    most.max(spec.containers.iter().map(of).fold(side_cars, u64::saturating_add))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn findings(spec: &str, target: &Target) -> Vec<String> {
        let pod = format!("kind: Pod\nmetadata: {{name: a, namespace: b}}\nspec: {spec}\n");
        Deployment::read([("a.yml", pod)]).unwrap().check(target).iter().map(ToString::to_string).collect()
    }

    fn target() -> Target {
        Target { platforms: vec!["metal-qemu-snp".into()], vcpus: vec![1, 2], version: "1.2.3".into() }
    }

    #[test]
    fn quantities() {
        let cases = [(json!(2), 2000), (json!("500m"), 500), (json!(1.5), 1500), (json!("0.25"), 250)];
        for (value, expected) in cases {
            assert_eq!(milli(&value), Some(expected), "{value}");
        }
        assert_eq!(milli(&json!("1Gi")), None);
    }

    #[test]
    fn what_does_not_fit_the_place_is_named_where_it_stands() {
        let class = "runtimeClassName: contrast-cc-metal-qemu-snp-0a1b2c3d";
        let fits =
            format!("{{{class}, containers: [{{name: a, image: i, resources: {{limits: {{cpu: 500m}}}}}}]}}");
        assert_eq!(findings(&fits, &target()), Vec::<String>::new());
        let many = fits.replace("500m", "1500m");
        let found = findings(&many, &target());
        assert!(found[0].contains("its VM has 3 processors") && found[0].contains("for 1, 2"), "{found:?}");
        assert!(findings(&many, &Target { vcpus: Vec::new(), ..target() }).is_empty());

        let found = findings(&fits.replace("snp-0a", "tdx-0a"), &target());
        assert!(found[0].starts_with("a.yml:3: Pod \"a\": spec.runtimeClassName: contrast-cc-metal-qemu-tdx-0a1b2c3d is for metal-qemu-tdx"), "{found:?}");
        let found = findings(&fits.replace("-metal-qemu-snp-0a1b2c3d", ""), &target());
        assert!(found[0].contains("placeholder") && found[0].contains("--runtime-bundle"), "{found:?}");

        let gpu = fits.replace("cpu: 500m", "nvidia.com/pgpu: 1");
        assert!(findings(&gpu, &target())[0].contains("needs a platform with GPUs"));
        let with =
            Target { platforms: vec!["metal-qemu-snp".into(), "metal-qemu-snp-gpu".into()], ..target() };
        assert_eq!(findings(&gpu, &with), Vec::<String>::new());
        assert!(findings(&gpu.replace("pgpu: 1", "pgpu: 500m"), &with)[0].contains("whole GPUs"));

        let image = |image: &str| {
            fits.replace("name: a, image: i", &format!("name: contrast-initializer, image: \"{image}\""))
        };
        let found = findings(&image("x.example/initializer:v1.2.2@sha256:00"), &target());
        assert!(found[0].contains("initializer is of version 1.2.2, this is contrast 1.2.3"), "{found:?}");
        for fine in ["x.example/initializer:v1.2.3", "x.example/initializer:main", "x.example:5000/other:v1"]
        {
            assert_eq!(findings(&image(fine), &target()), Vec::<String>::new(), "{fine}");
        }
    }

    #[test]
    fn a_missing_namespace_and_kinds_that_are_not_understood_are_named() {
        let class = "runtimeClassName: contrast-cc-metal-qemu-snp-0a1b2c3d";
        let files = format!(
            "kind: Pod\nmetadata: {{name: a}}\nspec: {{{class}, containers: [{{name: a, image: i}}]}}\n---\n\
             kind: Rollout\nmetadata: {{name: r}}\nspec:\n  template:\n    spec: {{{class}}}\n"
        );
        let found = Deployment::read([("a.yml", files)]).unwrap().check(&target());
        let found: Vec<String> = found.iter().map(ToString::to_string).collect();
        assert!(
            found[0].starts_with(
                "a.yml:9: Rollout \"r\": spec.template.spec.runtimeClassName: pods of this kind"
            ),
            "{found:?}"
        );
        assert!(found[1].contains("metadata: there is no metadata.namespace"), "{found:?}");
    }

    #[test]
    fn a_limit_for_the_whole_pod_counts() {
        let spec = "{runtimeClassName: contrast-cc-metal-qemu-snp-0a1b2c3d, resources: {limits: {cpu: 4}}, containers: [\
            {name: a, image: i, resources: {limits: {cpu: 1}}}]}";
        assert!(findings(spec, &target())[0].contains("its VM has 5 processors"));
    }

    #[test]
    fn limits_are_summed_as_the_kubelet_does() {
        let spec = "{runtimeClassName: contrast-cc-metal-qemu-snp-0a1b2c3d, initContainers: [\
            {name: s, image: i, restartPolicy: Always, resources: {limits: {cpu: 1}}}, \
            {name: i, image: i, resources: {limits: {cpu: 4}}}], containers: [\
            {name: a, image: i, resources: {limits: {cpu: 2}}}, {name: b, image: i}]}";
        let found = findings(spec, &target());
        assert!(found[0].contains("its VM has 6 processors"), "{found:?}");
    }
}
