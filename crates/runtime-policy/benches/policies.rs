//! Speed of `contrast generate` without its images, and of one decision in the guest.
#![expect(clippy::unwrap_used, missing_docs, reason = "a benchmark")]

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use runtime_policy::{ContainerImage, Deployment, Evaluator, Images, Injection, RULES, Settings};

#[path = "../tests/policies/corpus.rs"]
#[allow(dead_code, reason = "the tests use more of it")]
mod corpus;
#[path = "../tests/policies/host.rs"]
#[allow(dead_code, reason = "the tests use more of it")]
mod host;

/// A hundred deployments of two containers each, in one file.
fn hundred() -> String {
    let pod = |index: usize| {
        format!(
            "apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: web-{index}, namespace: shop}}\nspec:\n  template:\n    spec:\n      \
             runtimeClassName: contrast-cc\n      containers:\n      - name: web\n        image: registry.example/shop/web:1.4\n        env:\n        \
             - {{name: INDEX, value: \"{index}\"}}\n      - name: logger\n        image: registry.example/shop/logger:2\n        volumeMounts:\n        \
             - {{name: cache, mountPath: /cache}}\n      volumes:\n      - {{name: cache, emptyDir: {{}}}}\n"
        )
    };
    (0..100).map(pod).collect::<Vec<_>>().join("---\n")
}

fn generate(text: &str, images: &Images, pinned: &Images, injection: &Injection) -> usize {
    let mut deployment = Deployment::read([("shop.yml", text)]).unwrap();
    deployment.inject(injection).unwrap();
    deployment.pin(images).unwrap();
    let (policies, _) = deployment.policies(pinned, &Settings::default(), RULES).unwrap();
    deployment.annotate(&policies).unwrap();
    deployment.texts().map(|(_, text)| text.len()).sum()
}

/// As released agents decide: what is remembered is loaded before each decision.
macro_rules! in_an_agent {
    ($bench:expr, $kata:literal, $regorus:ident, $setting:expr, $rego:expr, $state:expr, $name:expr, $request:expr) => {{
        let mut agent = $regorus::Engine::new();
        agent.set_strict_builtin_errors(false);
        ($setting)(&mut agent);
        agent.add_policy("policy.rego".into(), $rego.into()).unwrap();
        let (state, request) = ($state.to_string(), $request.to_string());
        let query = format!("data.agent_policy.{}", $name);
        $bench.bench_function(concat!("decide about CreateContainer in an agent of Kata ", $kata), |bench| {
            bench.iter(|| {
                agent.clear_data();
                agent.add_data($regorus::Value::from_json_str(&state).unwrap()).unwrap();
                agent.set_input($regorus::Value::from_json_str(&request).unwrap());
                agent.eval_query(query.clone(), false).unwrap()
            });
        });
    }};
}

fn policies(bench: &mut Criterion) {
    let text = hundred();
    let images = corpus::images();
    let pinned: Images =
        images.values().map(|image: &ContainerImage| (image.reference.clone(), image.clone())).collect();
    let injection = corpus::injection();
    let mut group = bench.benchmark_group("generate");
    group.sample_size(10);
    group.bench_function("100 pods", |bench| {
        bench.iter(|| black_box(generate(&text, &images, &pinned, &injection)));
    });
    group.finish();

    corpus::each(|policy, host| {
        if policy.workload.name != "frontend" {
            return;
        }
        let mut evaluator = Evaluator::new(policy.document.rego()).unwrap();
        let life = host.start();
        let wanted = host::id("web");
        for (name, request) in &life {
            if name == "CreateContainerRequest" && request["container_id"] == wanted.as_str() {
                bench.bench_function("decide about CreateContainer", |bench| {
                    bench.iter_batched_ref(
                        || {
                            // The first decision of a copy makes what it shares with others its own.
                            let mut copy = evaluator.clone();
                            copy.decide("GuestDetailsRequest", &serde_json::json!({})).unwrap();
                            copy
                        },
                        |evaluator| evaluator.decide(name, request).unwrap().allowed,
                        criterion::BatchSize::SmallInput,
                    );
                });
                let (rego, state) =
                    (policy.document.rego(), serde_json::json!({ "pstate": evaluator.state() }));
                let (older, newer) = (
                    |_: &mut kata_regorus::Engine| {},
                    |agent: &mut kata4_regorus::Engine| agent.set_rego_v0(true),
                );
                in_an_agent!(bench, "3", kata_regorus, older, rego, state, name, request);
                in_an_agent!(bench, "4", kata4_regorus, newer, rego, state, name, request);
            }
            assert!(evaluator.decide(name, request).unwrap().allowed);
        }
    });
}

criterion_group!(benches, policies);
criterion_main!(benches);
