//! Namespaces come before what is in them, because kubectl applies files in the order of their names.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use yaml_edit::Document;

use crate::{
    PolicyError,
    deployment::{Deployment, File},
    workload::resources,
};

/// Where a document is: file, and document in it.
type At = (usize, usize);

impl Deployment {
    /// Moves each namespace to the front of the first file that needs it, so that `kubectl apply -f FOLDER` works in an
    /// empty cluster whatever the files are called. Of several documents for one namespace those go that say nothing but
    /// its name: applied last, such a one would take away the labels that the other has set. Says what was moved.
    pub fn namespaces_first(&mut self) -> Result<Vec<String>, PolicyError> {
        let mut moved = Vec::new();
        for name in self.namespaces() {
            while let Some((file, document)) = self.bare_duplicate(&name) {
                let text = self.take(file, document);
                moved.push(format!("Namespace {name} is gone from {}: another file says more of it", text.0));
            }
            let Some(&at) = self.definitions(&name).first() else { continue };
            let Some(user) = self.first_user(&name).filter(|user| *user < at) else { continue };
            let (from, text) = self.take(at.0, at.1);
            let file = &mut self.files[user.0];
            moved.push(match from == file.name {
                true => format!("Namespace {name} stands first in {from} now"),
                false => format!(
                    "Namespace {name} moved from {from} to {}, which kubectl applies earlier",
                    file.name
                ),
            });
            file.put_first(&text)?;
        }
        if !moved.is_empty() {
            self.find()?;
        }
        Ok(moved)
    }

    /// Names of all namespaces that the files make.
    fn namespaces(&self) -> BTreeSet<String> {
        let all = self.files.iter().flat_map(|file| &file.documents);
        all.filter_map(|document| namespace(document.value())).map(str::to_owned).collect()
    }

    /// The documents that make a namespace.
    fn definitions(&self, name: &str) -> Vec<At> {
        self.documents()
            .filter(|(_, document)| namespace(document.value()) == Some(name))
            .map(|(at, _)| at)
            .collect()
    }

    /// A document that says no more of a namespace than its name, if another one makes the namespace too.
    fn bare_duplicate(&self, name: &str) -> Option<At> {
        let bare = json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name } });
        let definitions = self.definitions(name);
        // The first stays where all are bare.
        let mut candidates = definitions.iter().rev().filter(|_| definitions.len() > 1);
        candidates.find(|(file, document)| *self.files[*file].documents[*document].value() == bare).copied()
    }

    /// The first document with something in a namespace.
    fn first_user(&self, name: &str) -> Option<At> {
        let is_in =
            |resource: &Value| resource.pointer("/metadata/namespace").and_then(Value::as_str) == Some(name);
        let uses =
            |document: &Document| resources(document.value()).iter().any(|(_, resource)| is_in(resource));
        self.documents().find(|(_, document)| uses(document)).map(|(at, _)| at)
    }

    fn documents(&self) -> impl Iterator<Item = (At, &Document)> {
        let files = self.files.iter().enumerate();
        files.flat_map(|(file, content)| {
            let documents = content.documents.iter().enumerate();
            documents.map(move |(number, document)| ((file, number), document))
        })
    }

    /// Takes a document out of a file: the file's name, and the document's text.
    fn take(&mut self, file: usize, document: usize) -> (String, String) {
        let File { name, documents } = &mut self.files[file];
        let taken = documents.remove(document);
        (name.clone(), taken.text().to_owned())
    }
}

/// The name of the namespace that a document makes.
fn namespace(document: &Value) -> Option<&str> {
    let is = document.get("kind").and_then(Value::as_str) == Some("Namespace");
    document.pointer("/metadata/name").and_then(Value::as_str).filter(|_| is)
}

impl File {
    /// Puts a document's text before all others.
    fn put_first(&mut self, text: &str) -> Result<(), PolicyError> {
        let rest: String = self.documents.iter().map(Document::text).collect();
        let end = if text.ends_with('\n') { "" } else { "\n" };
        let separator = if rest.starts_with("---") { "" } else { "---\n" };
        let all = format!("{text}{end}{separator}{rest}");
        self.documents =
            yaml_edit::read(&all).map_err(|source| PolicyError::Yaml { file: self.name.clone(), source })?;
        Ok(())
    }
}
