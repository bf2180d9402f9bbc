//! From Kubernetes YAML to policies that let the host start exactly these containers.
//!
//! [`Deployment`] reads files, adds what confidential pods need, pins their images, makes the policy of
//! each pod and writes it back; [`PolicyDocument`] is what the hardware measures; [`Evaluator`] decides
//! about an agent's requests as the agent in the guest does, and says why not; [`explain`] puts a policy
//! into words. Nothing here touches a disk or a network: files and [`Images`] come in as arguments.
//!
//! Source: docs/spec/policy.md, docs/spec/manifest-and-cli.md, section 3, docs/spec/data-plane.md. The rules
//! are in `rules.rego`; what they can and cannot stop is in `docs/policies.md`.

mod annotations;
mod checks;
mod container;
mod deployment;
mod document;
mod entry;
mod environment;
mod error;
mod evaluate;
mod explain;
mod image;
mod injected;
mod injection;
mod mounts;
mod namespaces;
mod objects;
mod pattern;
mod pod_security;
mod published;
mod quantity;
mod settings;
mod shim;
mod spec;
mod text;
mod workload;

pub use self::{
    checks::Target,
    deployment::Deployment,
    document::{
        ANNOTATION as POLICY_ANNOTATION, DocumentError, MAX_LINE_BYTES, PodPolicy, PolicyDocument, RULES,
    },
    error::{Finding, PolicyError},
    evaluate::{Decision, EvaluationError, Evaluator, Reason},
    explain::{explain, from_host},
    image::{ContainerImage, Images, UnknownUser},
    injection::Injection,
    pod_security::{PodSecurity, PodSecurityLevel},
    settings::{Settings, SettingsError},
    shim::looks_like,
    workload::Workload,
};
pub use annotations::{ANNOTATIONS, Annotation};

use error::Place;
