//! The evaluator of released Kata agents (kata-containers, `src/agent/policy/Cargo.toml`: regorus 0.2.8) is older
//! than ours. Both must decide alike, or a policy that was tried here would be another in the guest.

use kata_regorus::{Engine, Value as RegoValue};
use runtime_policy::Evaluator;
use serde_json::{Value, json};

use crate::{corpus, mutation::mutants};

/// One in so many changed requests is asked about: all of them would take minutes.
const SHARE: usize = 60;

struct Agent {
    engine: Engine,
    data: Value,
}

impl Agent {
    fn new(rego: &str) -> Self {
        let mut engine = Engine::new();
        engine.add_policy("policy.rego".into(), rego.into()).unwrap();
        engine.set_strict_builtin_errors(false);
        Self { engine, data: json!({ "pstate": {} }) }
    }

    /// Whether it is allowed, and what is to be remembered. An error is a denial.
    fn ask(&mut self, name: &str, request: &Value) -> (bool, Option<json_patch::Patch>) {
        self.engine.clear_data();
        self.engine.add_data(RegoValue::from_json_str(&self.data.to_string()).unwrap()).unwrap();
        self.engine.set_input(RegoValue::from_json_str(&request.to_string()).unwrap());
        let Ok(results) = self.engine.eval_query(format!("data.agent_policy.{name}"), false) else {
            return (false, None);
        };
        let answer = serde_json::to_value(&results.result[0].expressions[0].value).unwrap();
        let allowed = answer == true || answer["allowed"] == true;
        (allowed, answer.get("ops").map(|ops| serde_json::from_value(ops.clone()).unwrap()))
    }
}

#[test]
fn released_agents_decide_as_we_do() {
    let (mut allowed, mut denied) = (0, 0);
    corpus::each(|policy, host| {
        let mut ours = Evaluator::new(policy.document.rego()).unwrap();
        let mut agent = Agent::new(policy.document.rego());
        for (name, request) in host.life() {
            for mutant in mutants(&request).into_iter().step_by(SHARE) {
                let decision = ours.clone().decide(&name, &mutant.request);
                let ours = decision.is_ok_and(|decision| decision.allowed);
                assert_eq!(agent.ask(&name, &mutant.request).0, ours, "{name} {}", mutant.path);
                denied += usize::from(!ours);
            }
            let (agreed, remembered) = agent.ask(&name, &request);
            assert!(agreed && ours.decide(&name, &request).unwrap().allowed, "{name}");
            if let Some(patch) = remembered {
                json_patch::patch(&mut agent.data, &patch).unwrap();
            }
            assert_eq!(&agent.data["pstate"], ours.state(), "{name}");
            allowed += 1;
        }
    });
    assert!(allowed > 100 && denied > 150, "{allowed} allowed, {denied} denied");
}
