//! A correct host is let through, from the sandbox to its end.

use runtime_policy::Evaluator;

use crate::corpus;

#[test]
fn a_correct_host_may_run_every_pod_of_the_corpus() {
    corpus::each(|policy, host| {
        let mut evaluator = Evaluator::new(policy.document.rego()).unwrap();
        for (name, request) in host.life() {
            let decision = evaluator.decide(&name, &request).unwrap();
            assert!(
                decision.allowed,
                "{} {name} {}: {:#?}",
                policy.workload.name, request["container_id"], decision.reasons
            );
        }
    });
}
