use std::{collections::BTreeMap, path::Path};

use proptest::prelude::*;

use super::*;

fn entry(name: &str) -> Entry {
    Entry {
        handler: format!("contrast-cc-{name}").parse().unwrap(),
        shim: format!("/opt/edgeless/contrast-cc-{name}/bin/shim"),
        kata_config: format!("/opt/edgeless/contrast-cc-{name}/etc/configuration-qemu-snp.toml"),
        type_is_path: false,
        gpu: false,
    }
}

fn configurations() -> BTreeMap<String, String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/containerd");
    let paths = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let read = |path: std::path::PathBuf| {
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        (name, std::fs::read_to_string(path).unwrap())
    };
    paths.filter(|path| path.extension().is_some_and(|end| end == "toml")).map(read).collect()
}

fn handlers(text: &str) -> Vec<String> {
    let config = parse(text).unwrap();
    let version = Version::of(&config).unwrap();
    runtimes(&config, version).map(|table| table.keys().cloned().collect()).unwrap_or_default()
}

fn with(text: &str, name: &str) -> String {
    with_entry(Some(text), Format::Toml, &entry(name)).unwrap()
}

fn without(text: &str, name: &str) -> String {
    without_entry(text, Format::Toml, &entry(name).handler).unwrap().unwrap()
}

#[test]
fn every_known_configuration_takes_the_entry_or_says_why_not() {
    let refused = BTreeMap::from([
        (
            "docker-ce.toml",
            "disabled_plugins has \"cri\": containerd does not serve Kubernetes until it is taken out of that list",
        ),
        (
            "inline-tables.toml",
            "cannot add a table below plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes: cannot extend value of \
             type inline table with a dotted key; write the runtimes there as [tables], one header each",
        ),
    ]);
    for (name, text) in configurations() {
        match (with_entry(Some(&text), Format::Toml, &entry("a")), refused.get(name.as_str())) {
            (Ok(after), None) => {
                assert!(
                    after.starts_with(text.trim_end_matches('\n')),
                    "{name}: nothing before the entry changes"
                );
                assert!(handlers(&after).contains(&"contrast-cc-a".to_owned()), "{name}");
                assert!(handlers(&after).len() > 1, "{name}: containerd 1.x would lose its default runtime");
            }
            (Err(error), Some(wanted)) => assert_eq!(error.to_string(), *wanted, "{name}"),
            (outcome, _) => panic!("{name}: {outcome:?}"),
        }
    }
}

#[test]
fn taken_out_in_any_order_every_byte_is_as_before() {
    for (name, text) in configurations() {
        let Ok(one) = with_entry(Some(&text), Format::Toml, &entry("one")) else { continue };
        assert_eq!(without(&one, "one"), text, "{name}");
        let both = with(&one, "two");
        assert_eq!(without(&without(&both, "one"), "two"), text, "{name}");
        assert_eq!(without(&without(&both, "two"), "one"), text, "{name}");
        assert_eq!(with(&both, "one"), both, "{name}: the second time changes nothing");
    }
}

#[test]
fn what_others_add_afterwards_stays() {
    let nvidia = "[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.nvidia]\nruntime_type = \"io.containerd.runc.v2\"\n";
    let kubeadm = &configurations()["kubeadm.toml"];
    let added = with(kubeadm, "a") + nvidia;
    assert_eq!(without(&added, "a"), format!("{kubeadm}{nvidia}"));
}

#[test]
fn a_file_whose_comments_another_program_dropped_still_lets_go() {
    let text = with(&configurations()["kubeadm.toml"], "a");
    let rewritten: String = parse(&text).unwrap().to_string();
    assert_eq!(with(&rewritten, "a"), rewritten);
    assert_eq!(handlers(&without(&rewritten, "a")), ["runc"]);
}

#[test]
fn a_file_that_was_not_there_goes_again() {
    for format in [Format::Toml, Format::Template(Version::V3)] {
        let made = with_entry(None, format, &entry("a")).unwrap();
        assert_eq!(with_entry(Some(&made), format, &entry("a")).unwrap(), made);
        assert_eq!(without_entry(&made, format, &entry("a").handler), Ok(None));
    }
}

#[test]
fn a_template_is_not_taken_for_toml() {
    let template = "{{ template \"base\" . }}\n[plugins.x]\n  y = {{ .NodeConfig.Z }}\n";
    let format = Format::Template(Version::V2);
    let after = with_entry(Some(template), format, &entry("a")).unwrap();
    assert!(after.contains("\"io.containerd.grpc.v1.cri\".containerd.runtimes.contrast-cc-a]"), "{after}");
    assert_eq!(without_entry(&after, format, &entry("a").handler), Ok(Some(template.to_owned())));
}

#[test]
fn drop_ins_only_where_containerd_merges_them() {
    let folder = |name: &str| drop_in_folder(&configurations()[name]);
    assert_eq!(folder("eks-drop-in.toml").as_deref(), Some("/etc/containerd/config.d"));
    assert_eq!(
        folder("k3s-2.1-drop-in.toml").as_deref(),
        Some("/var/lib/rancher/k3s/agent/etc/containerd/config-v3.toml.d")
    );
    assert_eq!(
        folder("gpu-operator.toml"),
        None,
        "version 2 may be read by containerd 1.x, which replaces sections"
    );
}

#[test]
fn broken_markers_and_other_entries_are_left_to_people() {
    let text = with("version = 2\n", "a");
    let cut = text.rsplit_once("# <<<").unwrap().0;
    assert_eq!(
        with_entry(Some(cut), Format::Toml, &entry("a")),
        Err(PatchError::BrokenMarkers { line: 6, name: "contrast-cc-a".into() })
    );
    let other = "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.contrast-cc-a]\nruntime_type = \"x\"\n";
    let refused = with_entry(Some(other), Format::Toml, &entry("a"));
    assert_eq!(refused, Err(PatchError::OtherEntry(entry("a").handler)));
    let newer = with_entry(Some("version = 9\n"), Format::Toml, &entry("a"));
    assert_eq!(newer, Err(PatchError::UnknownVersion("9".into())));
}

proptest! {
    /// Whatever text is in the file: an entry that is accepted can be taken out without a trace.
    #[test]
    fn any_file_comes_back(lines in prop::collection::vec(line(), 0..12), ended in any::<bool>()) {
        let mut text = lines.join("\n");
        if ended {
            text.push('\n');
        }
        if let Ok(after) = with_entry(Some(&text), Format::Toml, &entry("a")) {
            prop_assert_eq!(without_entry(&after, Format::Toml, &entry("a").handler), Ok(Some(text)));
        }
    }
}

fn line() -> impl Strategy<Value = String> {
    prop_oneof![
        Just(String::new()),
        Just("version = 2".to_owned()),
        Just("# a comment ☕".to_owned()),
        Just("[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc]".to_owned()),
        Just("[plugins.\"io.containerd.grpc.v1.cri\".containerd]".to_owned()),
        Just("[plugins]".to_owned()),
        Just("a.b = '''".to_owned()),
        "[a-z]{1,3} = [0-9]{1,3}",
        "\\PC{0,20}",
    ]
}
