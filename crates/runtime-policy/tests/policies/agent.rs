//! The evaluators of released Kata agents are other versions of ours (kata-containers, `src/agent/policy/Cargo.toml`):
//! regorus 0.2.8 up to Kata 3.29, and a revision near 0.9.1 from 3.30 to 4.1. All must decide alike, or a policy that was
//! tried here would be another in the guest.

use runtime_policy::{Evaluator, PodPolicy};
use serde_json::{Value, json};

use crate::{corpus, host::Request, mutation::mutants, recorded};

/// One in so many changed requests is asked about: all of them would take minutes.
const SHARE: usize = 150;

/// An answer: whether it is allowed, and what is to be remembered. An error is a denial.
type Answer = (bool, Option<json_patch::Patch>);

/// An evaluator of an agent.
trait Agent {
    fn ask(&mut self, state: &Value, name: &str, request: &Value) -> Answer;
}

fn answer(value: Value) -> Answer {
    let allowed = value == true || value["allowed"] == true;
    (allowed, value.get("ops").map(|ops| serde_json::from_value(ops.clone()).unwrap()))
}

macro_rules! agent {
    ($name:ident, $regorus:ident, $setting:expr) => {
        struct $name($regorus::Engine);

        impl $name {
            fn new(rego: &str) -> Self {
                let mut engine = $regorus::Engine::new();
                engine.set_strict_builtin_errors(false);
                ($setting)(&mut engine);
                engine.add_policy("policy.rego".into(), rego.into()).unwrap();
                Self(engine)
            }
        }

        impl Agent for $name {
            fn ask(&mut self, state: &Value, name: &str, request: &Value) -> Answer {
                self.0.clear_data();
                self.0.add_data($regorus::Value::from_json_str(&state.to_string()).unwrap()).unwrap();
                self.0.set_input($regorus::Value::from_json_str(&request.to_string()).unwrap());
                match self.0.eval_query(format!("data.agent_policy.{name}"), false) {
                    Ok(results) => {
                        let value = results.result.first().and_then(|result| result.expressions.first());
                        answer(serde_json::to_value(value.map(|found| &found.value)).unwrap())
                    }
                    Err(_) => (false, None),
                }
            }
        }
    };
}

agent!(Kata3, kata_regorus, |_: &mut kata_regorus::Engine| {});
agent!(Kata4, kata4_regorus, |engine: &mut kata4_regorus::Engine| engine.set_rego_v0(true));

/// Asks all about the requests, and about a part of their changes.
fn compare(policy: &PodPolicy, requests: &[Request], share: usize) -> (usize, usize) {
    let rego = policy.document.rego();
    let mut ours = Evaluator::new(rego).unwrap();
    let mut agents: [(&str, Box<dyn Agent>); 2] =
        [("0.2.8", Box::new(Kata3::new(rego))), ("0.9.1", Box::new(Kata4::new(rego)))];
    let (mut state, mut denied) = (json!({ "pstate": {} }), 0);
    for (name, request) in requests {
        for mutant in mutants(request).into_iter().step_by(share) {
            let decision = ours.clone().decide(name, &mutant.request);
            let ours = decision.is_ok_and(|decision| decision.allowed);
            for (version, agent) in &mut agents {
                let theirs = agent.ask(&state, name, &mutant.request).0;
                assert_eq!(theirs, ours, "{version}: {name} {}", mutant.path);
            }
            denied += usize::from(!ours);
        }
        assert!(ours.decide(name, request).unwrap().allowed, "{name}");
        let mut next = state.clone();
        for (version, agent) in &mut agents {
            let (allowed, remembered) = agent.ask(&state, name, request);
            assert!(allowed, "{version}: {name}");
            next = state.clone();
            if let Some(patch) = remembered {
                json_patch::patch(&mut next, &patch).unwrap();
            }
            assert_eq!(&next["pstate"], ours.state(), "{version}: {name}");
        }
        state = next;
    }
    (requests.len(), denied)
}

#[test]
fn released_agents_decide_as_we_do() {
    let (mut allowed, mut denied) = (0, 0);
    let mut add = |(more, refused): (usize, usize)| {
        allowed += more;
        denied += refused;
    };
    corpus::each(|policy, host| add(compare(policy, &host.life(), SHARE)));
    recorded::each(|_, policy, requests| add(compare(policy, requests, SHARE)));
    assert!(allowed > 300 && denied > 300, "{allowed} allowed, {denied} denied");
}
