//! What is wrong, and where in the user's files.

use std::fmt;

use yaml_edit::{Document, Path, YamlError};

/// Why files did not become policies. Every variant names file, line and place.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// Not YAML, or not changeable there.
    #[error("{file}: {source}")]
    Yaml {
        /// The file.
        file: String,
        /// Line and reason.
        source: YamlError,
    },
    /// A resource that cannot become a policy.
    #[error("{0}")]
    Resource(Finding),
    /// Nothing to do.
    #[error(
        "no pod with a runtimeClassName that begins with contrast-cc was found; set it on the pods that are to be confidential"
    )]
    NothingConfidential,
    /// The policy cannot be read by the agent.
    #[error("the policy of {name} cannot be evaluated: {message}")]
    Policy {
        /// Resource.
        name: String,
        /// What the evaluator says.
        message: String,
    },
}

/// Something about one place of one file: an error, or a warning.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The file.
    pub file: String,
    /// Line, from 1.
    pub line: usize,
    /// Kind and name of the resource.
    pub resource: String,
    /// JSON path in the document.
    pub path: String,
    /// What is wrong and what to do.
    pub message: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, line, resource, path, message } = self;
        write!(f, "{file}:{line}: {resource}: {path}: {message}")
    }
}

/// A document that is being looked at.
pub(crate) struct Place<'a> {
    pub(crate) name: &'a str,
    pub(crate) file: usize,
    pub(crate) document: usize,
    pub(crate) text: &'a Document,
}

impl Place<'_> {
    pub(crate) fn finding(&self, kind: &str, name: &str, path: &Path, message: impl Into<String>) -> Finding {
        Finding {
            file: self.name.to_owned(),
            line: self.text.line(path),
            resource: format!("{kind} {name:?}"),
            path: path.to_string(),
            message: message.into(),
        }
    }

    pub(crate) fn error(
        &self,
        kind: &str,
        name: &str,
        path: &Path,
        message: impl Into<String>,
    ) -> PolicyError {
        PolicyError::Resource(self.finding(kind, name, path, message))
    }
}
