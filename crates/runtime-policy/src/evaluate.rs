//! Deciding about requests as the agent in the guest does.

use regorus::{Engine, PolicyLengthConfig, Value as RegoValue};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::num::{NonZeroU32, NonZeroUsize};

/// Limits of the agent's evaluator (kata-containers, `src/agent/policy`).
const MAX_COLUMNS: u32 = 64 << 10;
const MAX_FILE_BYTES: usize = 16 << 20;
const MAX_LINES: usize = 200_000;

/// A policy and what has been allowed so far.
#[derive(Clone)]
pub struct Evaluator {
    engine: Engine,
    state: Value,
}

/// What was decided about a request.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Decision {
    /// The rule's name, which is the request's.
    pub request: String,
    /// Whether the agent would do it.
    pub allowed: bool,
    /// Why not; empty if it is allowed.
    pub reasons: Vec<Reason>,
}

/// A field of a request that stands against it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Reason {
    /// Its path.
    pub field: String,
    /// What the request says.
    pub found: Value,
    /// What the policy wants.
    pub expected: Value,
}

/// Why no decision was made. The agent denies then.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EvaluationError {
    /// Not Rego, or too long.
    #[error("the policy cannot be read: {0}")]
    Policy(String),
    /// Not the name of a request.
    #[error("{0:?} is not the name of a request, such as CreateContainerRequest")]
    Unknown(String),
    /// The rule failed.
    #[error("{request}: {message}")]
    Failed {
        /// The rule.
        request: String,
        /// What the evaluator says.
        message: String,
    },
}

impl Evaluator {
    /// Reads a policy; nothing was started yet.
    pub fn new(rego: &str) -> Result<Self, EvaluationError> {
        let policy = |error: anyhow::Error| EvaluationError::Policy(error.to_string());
        let mut engine = Engine::new();
        engine.set_strict_builtin_errors(false);
        if let (Some(max_col), Some(max_file_bytes), Some(max_lines)) =
            (NonZeroU32::new(MAX_COLUMNS), NonZeroUsize::new(MAX_FILE_BYTES), NonZeroUsize::new(MAX_LINES))
        {
            engine.set_policy_length_config(PolicyLengthConfig { max_col, max_file_bytes, max_lines });
        }
        engine.add_policy("policy.rego".into(), rego.into()).map_err(policy)?;
        // The rules are analysed with the first query: now, so that clones need not.
        engine.eval_query("true".into(), false).map_err(policy)?;
        Ok(Self { engine, state: json!({ "pstate": {} }) })
    }

    /// What the policy remembers, as the rules see it.
    pub fn state(&self) -> &Value {
        &self.state["pstate"]
    }

    /// Decides about a request, and remembers it if it is allowed. `name` is the rule's, such as
    /// `CreateContainerRequest`.
    pub fn decide(&mut self, name: &str, request: &Value) -> Result<Decision, EvaluationError> {
        let failed = |message: String| EvaluationError::Failed { request: name.to_owned(), message };
        if !name.bytes().all(|c| c.is_ascii_alphanumeric()) {
            return Err(EvaluationError::Unknown(name.to_owned()));
        }
        let text = |error: anyhow::Error| failed(error.to_string());
        self.engine.set_input(RegoValue::from(request.clone()));
        let Some(answer) = self.rule(name).map_err(text)? else {
            let expected = "a request that a rule allows: there is no rule of this name, and the agent denies what none names";
            let reason = Reason { field: String::new(), found: name.into(), expected: expected.into() };
            return Ok(Decision { request: name.to_owned(), allowed: false, reasons: vec![reason] });
        };
        let allowed = match &answer {
            Value::Bool(allowed) => *allowed,
            Value::Object(answer) => {
                let allowed = answer.get("allowed") == Some(&Value::Bool(true));
                if let Some(ops) = answer.get("ops").filter(|_| allowed) {
                    let patch: json_patch::Patch =
                        serde_json::from_value(ops.clone()).map_err(|error| failed(error.to_string()))?;
                    json_patch::patch(&mut self.state, &patch).map_err(|error| failed(error.to_string()))?;
                }
                allowed
            }
            _ => return Err(failed("the rule yields neither a bool nor an object".into())),
        };
        let reasons = if allowed { Vec::new() } else { self.reasons(name) };
        Ok(Decision { request: name.to_owned(), allowed, reasons })
    }

    fn rule(&mut self, name: &str) -> anyhow::Result<Option<Value>> {
        // The agent puts what is remembered into its data, after which the engine analyses all rules anew.
        // As a text, because that is parsed sooner than an expression.
        let state = Value::String(self.state().to_string());
        let query = format!("data.agent_policy.{name} with data.pstate as json.unmarshal({state})");
        let results = self.engine.eval_query(query, false)?;
        let value =
            results.result.first().and_then(|result| result.expressions.first()).map(|found| &found.value);
        match value {
            None | Some(RegoValue::Undefined) => Ok(None),
            Some(value) => Ok(Some(serde_json::to_value(value)?)),
        }
    }

    fn reasons(&mut self, name: &str) -> Vec<Reason> {
        let rule = name.replace("Request", "Reasons");
        let found = self.rule(&rule).ok().flatten();
        let found: Vec<Reason> =
            found.and_then(|found| serde_json::from_value(found).ok()).unwrap_or_default();
        if found.is_empty() {
            let expected =
                "a request that a rule allows; this one has none, or lacks a field that its rule reads";
            return vec![Reason { field: String::new(), found: Value::Null, expected: expected.into() }];
        }
        found
    }
}
