use proptest::prelude::*;
use serde_json::json;

use super::*;

const POD: &str = "# the web pod
kind: Pod # as it is
metadata: {name: web, labels: {a: b}}
spec:
  # who runs
  containers:
  - name: web   # first
    image: nginx:1.25 # pinned later
    args: [\"-g\", 'daemon off;']
    # end of web

  volumes:
  -   name: data
      emptyDir: {}
";

fn path(text: &str) -> Path {
    let step = |part: &str| part.parse().map_or_else(|_| Step::from(part), Step::Index);
    text.split('/').map(step).collect()
}

fn one(text: &str) -> Document {
    read(text).unwrap().remove(0)
}

#[test]
fn a_changed_scalar_changes_nothing_else() {
    let mut document = one(POD);
    assert!(document.set(&path("spec/containers/0/image"), &json!("nginx@sha256:00")).unwrap());
    assert_eq!(document.text(), POD.replace("nginx:1.25", "\"nginx@sha256:00\""));
    assert!(!document.set(&path("spec/containers/0/image"), &json!("nginx@sha256:00")).unwrap());
}

#[test]
fn keys_and_items_are_added_where_a_person_would_add_them() {
    let mut document = one(POD);
    document.set(&path("metadata/annotations/x.y~1z"), &json!("v")).unwrap();
    document
        .insert(
            &path("spec/initContainers"),
            Position::First,
            &json!({"name": "init", "env": [{"name": "A", "value": "1"}]}),
        )
        .unwrap();
    document.insert(&path("spec/volumes"), Position::Last, &json!({"name": "more", "emptyDir": {}})).unwrap();
    document
        .insert(
            &path("spec/containers/0/volumeMounts"),
            Position::Last,
            &json!({"name": "more", "mountPath": "/m"}),
        )
        .unwrap();
    let expected = "# the web pod
kind: Pod # as it is
metadata: {name: web, labels: {a: b}, annotations: {\"x.y~1z\": v}}
spec:
  # who runs
  containers:
  - name: web   # first
    image: nginx:1.25 # pinned later
    args: [\"-g\", 'daemon off;']
    volumeMounts:
    - name: more
      mountPath: /m
    # end of web

  volumes:
  -   name: data
      emptyDir: {}
  - name: more
    emptyDir: {}
  initContainers:
  - name: init
    env:
    - name: A
      value: \"1\"
";
    assert_eq!(document.text(), expected);
}

#[test]
fn empty_values_aliases_and_text_without_a_last_line_end() {
    let mut document = one("metadata:\n  annotations:\n  name: a");
    document.set(&path("metadata/annotations/k"), &json!("v")).unwrap();
    assert_eq!(document.text(), "metadata:\n  annotations: {k: v}\n  name: a");
    document.set(&path("metadata/labels"), &json!({"l": "m"})).unwrap();
    assert!(document.text().ends_with("  name: a\n  labels:\n    l: m"));

    let text = "base: &b {image: x}\nuse: *b\nmore:\n  <<: *b\n  z: 1\n";
    let mut document = one(text);
    assert_eq!(document.value()["use"]["image"], "x");
    assert_eq!(document.value()["more"], json!({"image": "x", "z": 1}));
    let error = document.set(&path("use/image"), &json!("y")).unwrap_err().to_string();
    assert_eq!(error, "line 2: use.image cannot be changed here: it is an alias; write it out");
    assert_eq!(document.text(), text);
}

#[test]
fn quotes_and_commas_are_read_as_kubectl_reads_them() {
    let text = "grün: 'a\\'\nb: \"it\\'s \\\\' \\\"\" # it\\'s\nc: [\"\\'\", \"\\x80\"]\n";
    let mut document = one(text);
    assert_eq!(document.value(), &json!({"grün": "a\\", "b": "it's \\' \"", "c": ["'", "\u{80}"]}));
    document.set(&path("d"), &json!(1)).unwrap();
    assert_eq!(document.text(), format!("{text}d: 1\n"));
    let refused = read("a: 1\nb: \"\\x80\\'\"\n").unwrap_err().to_string();
    assert_eq!(refused, r"line 2: \x80 beside \' is not understood");
    assert!(read("a: \"\\'\\q\"").unwrap_err().to_string().starts_with("line 1: "));

    for (text, value) in [
        ("image:\tx\nname:\t\tw # c\n", json!({"image": "x", "name": "w"})),
        ("a: {name:\tapp,\tb: 1}\n", json!({"a": {"name": "app", "b": 1}})),
        ("a: {\n\tname: app,\n\t\tb: [1,\n\t2]\n}\n", json!({"a": {"name": "app", "b": [1, 2]}})),
        ("a: \"x\n\ty\"\n", json!({"a": "x y"})),
    ] {
        let mut document = one(text);
        assert_eq!(document.value(), &value, "{text:?}");
        document.set(&path("z"), &json!(1)).unwrap();
        assert_eq!(document.text(), format!("{text}z: 1\n"), "tabs stay where they were");
    }
    for (text, expected) in [
        ("a: 1\nb: x\u{2028}c\n", "line 2: a character that ends a line for kubectl"),
        ("a: 1\nb: [?x]\n", "line 2: ? begins a key"),
        ("a: |\n\tx\n", "line 1: "),
    ] {
        let refused = read(text).unwrap_err().to_string();
        assert!(refused.starts_with(expected), "{refused}");
    }

    // KYAML: a comma behind the last entry.
    let kyaml = "---\n{\n  kind: \"Pod\",\n  spec: {\n    containers: [{\n      name: \"a\", # first\n      args: [\n        \"x\",\n      ],\n    }],\n  },\n}\n";
    let mut document = one(kyaml);
    document.set(&path("spec/runtimeClassName"), &json!("c")).unwrap();
    document.insert(&path("spec/containers/0/args"), Position::Last, &json!("y")).unwrap();
    document.insert(&path("spec/containers"), Position::First, &json!({"name": "b"})).unwrap();
    document.set(&path("spec/containers/1/args"), &json!([])).unwrap();
    assert_eq!(
        document.value(),
        &json!({"kind": "Pod", "spec": {"containers": [{"name": "b"}, {"name": "a", "args": []}], "runtimeClassName": "c"}})
    );
    assert!(document.text().contains("# first"));
}

#[test]
fn documents_are_split_and_lines_counted_over_the_whole_file() {
    let text = "# first\na: 1\n---\nb: 2\n--- # third\nc: |\n  x\n  y\nd: [\n  1,\n  2]\n";
    let documents = read(text).unwrap();
    assert_eq!(documents.iter().map(Document::text).collect::<String>(), text);
    assert_eq!(documents.len(), 3);
    assert_eq!(documents[2].value(), &json!({"c": "x\ny\n", "d": [1, 2]}));
    assert_eq!(documents[2].line(&path("d")), 9);
    assert_eq!(documents[1].line(&path("b")), 4);
}

#[test]
fn what_is_wrong_is_named_with_its_line() {
    for (text, expected) in [
        ("a: 1\na: 2\n", "line 2: the key \"a\" is there twice"),
        ("---\nb: 1\n---\na: [1\n", "line "),
        ("a: !!binary x\n", "line 1: tags"),
        ("? [a]\n: b\n", "line 1: a key must be a scalar"),
    ] {
        let error = read(text).unwrap_err().to_string();
        assert!(error.starts_with(expected), "{text:?}: {error}");
    }
    let mut bomb = String::from("a0: &a0 [1,1,1,1,1,1,1,1,1]\n");
    for level in 1..9 {
        let before = format!("*a{},", level - 1).repeat(9);
        bomb.push_str(&format!("a{level}: &a{level} [{before}]\n"));
    }
    assert!(read(&bomb).unwrap_err().to_string().contains("multiply"));
    let deep = format!("a: {}{}", "[".repeat(200), "]".repeat(200));
    assert!(read(&deep).is_err());
}

#[test]
fn block_scalars_and_other_characters_keep_their_place() {
    let mut document = one("name: grün # ä\nscript: |-\n  eins\n  zwei\n\n# ende\nlast: ö\n");
    document.set(&path("more"), &json!("x")).unwrap();
    document.set(&path("script"), &json!("drei\nvier")).unwrap();
    document.set(&path("name"), &json!("weiß")).unwrap();
    assert_eq!(document.text(), "name: \"weiß\" # ä\nscript: \"drei\\nvier\"\n\n# ende\nlast: ö\nmore: x\n");
}

fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        "[ -~äß\n]{0,12}".prop_map(Value::from),
        prop_oneof![Just("yes"), Just("0644"), Just("~"), Just("- a"), Just("a: b"), Just("#x")]
            .prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 24, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map("[a-zA-Z0-9./ :-]{1,8}", inner, 0..4)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

proptest! {
    /// Whatever is written, in whatever layout, is read back as the same, and an edit that is
    /// refused leaves the text alone.
    #[test]
    fn what_was_set_is_what_is_read(values in prop::collection::vec(value(), 1..4)) {
        for at in ["spec/containers/0/new", "metadata/labels/new", "spec/volumes/0/emptyDir", "kind"] {
            let mut document = one(POD);
            for value in &values {
                document.set(&path(at), value).unwrap();
                let again = one(document.text());
                prop_assert_eq!(path(at).find(again.value()), Some(value));
            }
        }
        for at in ["spec/containers", "spec/containers/0/args", "spec/volumes"] {
            let mut document = one(POD);
            for (index, value) in values.iter().enumerate() {
                let position = if index % 2 == 0 { Position::First } else { Position::Last };
                document.insert(&path(at), position, value).unwrap();
            }
            prop_assert!(one(document.text()).value() == document.value());
        }
    }

    #[test]
    fn no_text_makes_it_panic(text in "[ -~\n]{0,80}") {
        let _ = read(&text);
    }
}
