//! Every field of every request that a correct host sends, changed: refused, or explained here.

use std::collections::{BTreeMap, BTreeSet};

use runtime_policy::Evaluator;
use serde_json::{Value, json};

use crate::corpus;

/// Changes that are still allowed, with the reason why that is right. Request (`*`: any), beginning of the
/// path (`#` stands for any index), reason.
const EXPLAINED: &[(&str, &str, &str)] = &[];

/// A changed request, and where.
struct Mutant {
    path: String,
    request: Value,
}

/// Every field changed, removed, repeated; every list and map with one thing more.
fn mutants(request: &Value) -> Vec<Mutant> {
    let mut found = Vec::new();
    walk(request, &mut Vec::new(), &mut |steps, changed| {
        let mut mutant = request.clone();
        put(&mut mutant, steps, changed);
        if mutant != *request {
            found.push(Mutant { path: generalized(steps), request: mutant });
        }
    });
    found
}

/// Indices say nothing; names of annotations and the like stay.
fn generalized(steps: &[String]) -> String {
    let parts = steps.iter().map(|step| if step.parse::<usize>().is_ok() { "#" } else { step });
    parts.collect::<Vec<_>>().join(".")
}

type Visit<'a> = dyn FnMut(&[String], Option<Value>) + 'a;

fn walk(value: &Value, steps: &mut Vec<String>, visit: &mut Visit<'_>) {
    if !steps.is_empty() {
        visit(steps, None);
        for other in others(value) {
            visit(steps, Some(other));
        }
    }
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                steps.push(key.clone());
                walk(value, steps, visit);
                steps.pop();
            }
        }
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                steps.push(index.to_string());
                walk(item, steps, visit);
                steps.pop();
            }
        }
        _ => {}
    }
}

fn others(value: &Value) -> Vec<Value> {
    match value {
        Value::Null => vec![json!({ "x": ["/bin/evil"] }), json!("evil")],
        Value::Bool(flag) => vec![json!(!flag)],
        Value::Number(number) => {
            let number = number.as_i64().unwrap();
            vec![json!(number + 1), json!(number + 2048)]
        }
        Value::String(text) => vec![json!(format!("{text}x")), json!(format!("/evil{text}")), json!("../evil")],
        Value::Array(items) => {
            let mut more = items.clone();
            more.push(json!("evil"));
            let mut all = vec![Value::Array(more)];
            if let Some(first) = items.first() {
                all.push(Value::Array([items.as_slice(), std::slice::from_ref(first)].concat()));
                let mut turned = items.clone();
                turned.reverse();
                all.push(Value::Array(turned));
            }
            all
        }
        Value::Object(map) => {
            let mut more = map.clone();
            more.insert("evil".into(), json!("evil"));
            vec![Value::Object(more)]
        }
    }
}

fn put(target: &mut Value, steps: &[String], value: Option<Value>) {
    let (last, above) = steps.split_last().unwrap();
    let parent = above.iter().fold(target, |value, step| match value {
        Value::Array(items) => &mut items[step.parse::<usize>().unwrap()],
        other => &mut other[step.as_str()],
    });
    match (parent, value) {
        (Value::Object(map), Some(value)) => drop(map.insert(last.clone(), value)),
        (Value::Object(map), None) => drop(map.remove(last)),
        (Value::Array(items), Some(value)) => items[last.parse::<usize>().unwrap()] = value,
        (Value::Array(items), None) => drop(items.remove(last.parse().unwrap())),
        _ => panic!("no parent of {steps:?}"),
    }
}

fn explanation(request: &str, path: &str) -> Option<usize> {
    EXPLAINED.iter().position(|(of, begins, _)| {
        (*of == "*" || *of == request) && path.strip_prefix(begins).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    })
}

#[test]
fn every_changed_field_is_refused_or_explained() {
    let mut survivors: BTreeMap<(String, String), Value> = BTreeMap::new();
    let (mut tried, mut used) = (0, BTreeSet::new());
    let mut seen = BTreeSet::new();
    corpus::each(|policy, host| {
        let mut evaluator = Evaluator::new(policy.document.rego()).unwrap();
        for (name, request) in host.life() {
            // The same request in another pod finds nothing new.
            let fresh = name == "CreateContainerRequest" || name == "ExecProcessRequest" || seen.insert(name.clone());
            let wanted = ["frontend", "database"].contains(&policy.workload.name.as_str());
            for mutant in mutants(&request).into_iter().filter(|_| fresh && wanted) {
                tried += 1;
                let decision = evaluator.clone().decide(&name, &mutant.request).unwrap();
                if decision.allowed {
                    match explanation(&name, &mutant.path) {
                        Some(entry) => drop(used.insert(entry)),
                        None => drop(survivors.insert((name.clone(), mutant.path), mutant.request)),
                    }
                }
            }
            assert!(evaluator.decide(&name, &request).unwrap().allowed, "{name} of {}", policy.workload.name);
        }
    });
    let list: Vec<String> = survivors.keys().map(|(name, path)| format!("{name} {path}")).collect();
    assert!(list.is_empty(), "{tried} changes tried; allowed, and nobody says why:\n{}", list.join("\n"));
    let unused: Vec<_> = (0..EXPLAINED.len()).filter(|entry| !used.contains(entry)).map(|entry| EXPLAINED[entry]).collect();
    assert!(unused.is_empty(), "explained, but refused: {unused:?}");
    assert!(tried > 3000, "only {tried} changes were tried");
}
