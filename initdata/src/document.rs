//! The document: TOML with a version, the hash by which it is known, and files by name.

use std::collections::BTreeMap;

use serde::Deserialize;

/// The file that no guest can do without.
pub const POLICY: &str = "policy.rego";
/// Most files, and longest name.
const MAX_FILES: usize = 64;
const MAX_NAME: usize = 64;

/// A document whose digest was compared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    /// Contents by name; a name has no slash.
    pub files: BTreeMap<String, String>,
}

/// Why a document cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DocumentError {
    /// Not TOML of this form.
    #[error("{0}")]
    Toml(String),
    /// Another version or hash.
    #[error("{field}: expected {expected:?}, got {found:?}")]
    Unsupported {
        /// The field.
        field: &'static str,
        /// What is understood.
        expected: &'static str,
        /// What is there.
        found: String,
    },
    /// A name that is no plain file name.
    #[error("data: {0:?} is no file name: a-z, A-Z, 0-9, - and _, and dots between them")]
    Name(String),
    /// Too many.
    #[error("data: {0} files, at most {MAX_FILES} are accepted")]
    Files(usize),
    /// Nothing would hold.
    #[error("data: there is no {POLICY}, and without a policy nothing is allowed")]
    NoPolicy,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    version: String,
    algorithm: String,
    #[serde(default)]
    data: BTreeMap<String, String>,
}

impl Document {
    /// Reads a document's bytes.
    pub fn parse(bytes: &[u8]) -> Result<Self, DocumentError> {
        let text = std::str::from_utf8(bytes).map_err(|error| DocumentError::Toml(error.to_string()))?;
        let raw: Raw =
            toml::from_str(text).map_err(|error| DocumentError::Toml(error.to_string().trim().to_owned()))?;
        let expect = |field, expected, found: &str| match found == expected {
            true => Ok(()),
            false => {
                Err(DocumentError::Unsupported { field, expected, found: found.chars().take(80).collect() })
            }
        };
        expect("version", "0.1.0", &raw.version)?;
        // It is by SHA-256 that the hardware knows the document.
        expect("algorithm", "sha256", &raw.algorithm)?;
        if raw.data.len() > MAX_FILES {
            return Err(DocumentError::Files(raw.data.len()));
        }
        if let Some(name) = raw.data.keys().find(|name| !is_file_name(name)) {
            return Err(DocumentError::Name(name.chars().take(80).collect()));
        }
        if !raw.data.contains_key(POLICY) {
            return Err(DocumentError::NoPolicy);
        }
        Ok(Self { files: raw.data })
    }
}

fn is_file_name(name: &str) -> bool {
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    name.len() <= MAX_NAME && name.split('.').all(|part| !part.is_empty()) && name.bytes().all(legal)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document(data: &str) -> String {
        format!("version = \"0.1.0\"\nalgorithm = \"sha256\"\n[data]\n{data}")
    }

    #[test]
    fn files_are_read_and_what_is_odd_is_named() {
        let good = document("\"policy.rego\" = '''\npackage agent_policy\n'''\n\"cdh.toml\" = \"\"\n");
        let read = Document::parse(good.as_bytes()).unwrap();
        assert_eq!(read.files["policy.rego"], "package agent_policy\n");
        let refusal = |text: &str| Document::parse(text.as_bytes()).unwrap_err().to_string();
        assert!(refusal("version =").contains("line 1"), "{}", refusal("version ="));
        assert!(refusal(&good.replace("[data]", "more = 1\n[data]")).contains("unknown field `more`"));
        assert_eq!(
            refusal(&good.replace("sha256", "sha512")),
            "algorithm: expected \"sha256\", got \"sha512\""
        );
        assert_eq!(refusal(&good.replace("0.1.0", "1.0.0")), "version: expected \"0.1.0\", got \"1.0.0\"");
        assert!(refusal(&document("")).starts_with("data: there is no policy.rego"));
        for name in ["../policy.rego", "/etc/passwd", "", ".", "..", ".x", "a..b", "a/b", "a\\u0000b", "ä"] {
            let found = refusal(&document(&format!("\"policy.rego\" = \"\"\n\"{name}\" = \"\"\n")));
            assert!(found.contains("is no file name"), "{name:?}: {found}");
        }
        let many: String = (0..100).map(|number| format!("f{number} = \"\"\n")).collect();
        assert_eq!(refusal(&document(&many)), "data: 100 files, at most 64 are accepted");
        assert!(Document::parse(&[0xff]).is_err());
    }
}
