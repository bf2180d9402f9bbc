//! A user's YAML files: what is confidential in them, and the changes to them.

use std::collections::BTreeSet;

use manifest::Role;
use serde_json::Value;
use yaml_edit::{Document, Path};

use crate::{
    Finding, Place, PolicyError,
    document::{ANNOTATION, PodPolicy, policy},
    image::Images,
    injection::{self, Injection},
    objects::Objects,
    settings::Settings,
    workload::{Workload, below_field, left_out, resources},
};

/// A file and its documents.
#[derive(Debug, Clone)]
pub(crate) struct File {
    pub(crate) name: String,
    pub(crate) documents: Vec<Document>,
}

/// Files of Kubernetes resources. Everything that no change touches stays as it is, byte for byte.
#[derive(Debug, Clone, Default)]
pub struct Deployment {
    pub(crate) files: Vec<File>,
    workloads: Vec<Workload>,
    pub(crate) objects: Objects,
}

impl Deployment {
    /// Reads files, given as name and text.
    pub fn read<N: Into<String>, T: AsRef<str>>(
        files: impl IntoIterator<Item = (N, T)>,
    ) -> Result<Self, PolicyError> {
        let mut deployment = Self::default();
        for (name, text) in files {
            let name = name.into();
            let documents = yaml_edit::read(text.as_ref())
                .map_err(|source| PolicyError::Yaml { file: name.clone(), source })?;
            deployment.files.push(File { name, documents });
        }
        deployment.find()?;
        Ok(deployment)
    }

    pub(crate) fn find(&mut self) -> Result<(), PolicyError> {
        let (mut workloads, mut objects) = (Vec::new(), Objects::default());
        for (file, content) in self.files.iter().enumerate() {
            for (document, text) in content.documents.iter().enumerate() {
                let place = Place { name: &content.name, file, document, text };
                for (path, resource) in resources(text.value()) {
                    objects.add(resource);
                    workloads.extend(Workload::read(&place, &path, resource)?);
                }
            }
        }
        (self.workloads, self.objects) = (workloads, objects);
        Ok(())
    }

    /// The confidential pods, in the order of the files.
    pub fn workloads(&self) -> &[Workload] {
        &self.workloads
    }

    /// Every file's name and text.
    pub fn texts(&self) -> impl Iterator<Item = (&str, String)> {
        self.files
            .iter()
            .map(|file| (file.name.as_str(), file.documents.iter().map(Document::text).collect()))
    }

    /// Resources of kinds that are not understood but ask for a confidential runtime class: they are left without a policy.
    pub(crate) fn left_out(&self) -> Vec<Finding> {
        let mut found = Vec::new();
        for (file, content) in self.files.iter().enumerate() {
            for (document, text) in content.documents.iter().enumerate() {
                let place = Place { name: &content.name, file, document, text };
                for (path, resource) in resources(text.value()) {
                    let Some(at) = left_out(resource) else { continue };
                    let name = |key: &str| resource.pointer(key).and_then(Value::as_str).unwrap_or_default();
                    let message = "pods of this kind are not understood, so they get no policy and will not be verified: \
                                   use a Deployment, StatefulSet, DaemonSet, Job, CronJob or Pod";
                    found.push(place.finding(
                        name("/kind"),
                        name("/metadata/name"),
                        &path.join(&at),
                        message,
                    ));
                }
            }
        }
        found
    }

    pub(crate) fn place(&self, workload: &Workload) -> Place<'_> {
        let file = &self.files[workload.file];
        let text = &file.documents[workload.document];
        Place { name: &file.name, file: workload.file, document: workload.document, text }
    }

    /// The references of every image that a confidential pod starts, once each, with where it stands.
    pub fn images(&self) -> Vec<(String, Finding)> {
        let mut found: Vec<(String, Finding)> = Vec::new();
        for workload in &self.workloads {
            for (field, container) in workload.spec.all_containers() {
                let reference = container.image.clone().unwrap_or_default();
                if found.iter().all(|(known, _)| *known != reference) {
                    let path = below_field(&workload.spec_path(), &format!("{field}.image"));
                    let finding = self.place(workload).finding(&workload.kind, &workload.name, &path, "");
                    found.push((reference, finding));
                }
            }
        }
        found
    }

    /// Adds what a confidential pod needs: initializer, service mesh, volumes, runtime class. A second
    /// run changes nothing.
    pub fn inject(&mut self, injection: &Injection) -> Result<Vec<Finding>, PolicyError> {
        let mut warnings = self.far_from_a_coordinator(injection);
        let coordinators = self.coordinators();
        for workload in self.workloads.clone() {
            let coordinator = injection::coordinator_host(injection, &workload, &coordinators);
            let File { name, documents } = &mut self.files[workload.file];
            let document = &mut documents[workload.document];
            injection::inject(injection, &coordinator, name, document, &workload, &mut warnings)?;
        }
        self.find()?;
        Ok(warnings)
    }

    /// Namespaces in which there is a Coordinator.
    fn coordinators(&self) -> BTreeSet<String> {
        let coordinators = self.workloads.iter().filter(|workload| workload.role == Role::Coordinator);
        coordinators.map(|workload| workload.namespace.clone()).collect()
    }

    /// Pods of several namespaces cannot all find one Coordinator under a name that is looked up in their own.
    fn far_from_a_coordinator(&self, injection: &Injection) -> Vec<Finding> {
        let namespaces: BTreeSet<&str> =
            self.workloads.iter().map(|workload| workload.namespace.as_str()).collect();
        let is_clear = injection.coordinator_host.is_some() || !self.coordinators().is_empty();
        if is_clear || injection.initializer.is_none() || namespaces.len() < 2 {
            return Vec::new();
        }
        let warn = |namespace: &&str| {
            let workload = self.workloads.iter().find(|workload| workload.namespace == *namespace)?;
            let message = format!(
                "pods in {namespace} look for the Coordinator as coordinator.{namespace}: the YAML has none, so if there is one \
                 for all namespaces, name it with --coordinator-host coordinator.NAMESPACE"
            );
            let path = workload.path.then("metadata");
            Some(self.place(workload).finding(&workload.kind, &workload.name, &path, message))
        };
        namespaces.iter().filter_map(warn).collect()
    }

    /// Writes each image with its digest.
    pub fn pin(&mut self, images: &Images) -> Result<(), PolicyError> {
        for workload in self.workloads.clone() {
            for (field, container) in workload.spec.all_containers() {
                let reference = container.image.as_deref().unwrap_or_default();
                if let Some(image) = images.get(reference) {
                    let path = below_field(&workload.spec_path(), &format!("{field}.image"));
                    self.set(&workload, &path, &Value::from(image.reference.as_str()))?;
                }
            }
        }
        self.find()
    }

    /// The policy of each confidential pod. An image that is not among `images` counts as unread: only
    /// what the YAML says of it is in the policy.
    pub fn policies(
        &self,
        images: &Images,
        settings: &Settings,
        rules: &str,
    ) -> Result<(Vec<PodPolicy>, Vec<Finding>), PolicyError> {
        let (mut policies, mut warnings) = (Vec::new(), Vec::new());
        for workload in &self.workloads {
            let document = policy(self, workload, images, settings, rules, &mut warnings)?;
            policies.push(PodPolicy { workload: workload.clone(), document });
        }
        Ok((policies, warnings))
    }

    /// Writes each pod's document into its annotation.
    pub fn annotate(&mut self, policies: &[PodPolicy]) -> Result<(), PolicyError> {
        for policy in policies {
            let path = policy.workload.path.then("metadata").then("annotations").then(ANNOTATION);
            self.set(&policy.workload, &path, &Value::from(policy.document.to_annotation()))?;
        }
        self.find()
    }

    /// The documents that the annotations hold, with their pods; pods without one are left out.
    pub fn annotated(&self) -> Result<Vec<PodPolicy>, PolicyError> {
        let mut found = Vec::new();
        for workload in &self.workloads {
            let path: Path = ["metadata", "annotations", ANNOTATION].into_iter().collect();
            let Some(text) = path.find(&workload.pod).and_then(Value::as_str) else { continue };
            let document = crate::PolicyDocument::from_annotation(text).map_err(|error| {
                let at = workload.path.join(&path);
                self.place(workload).error(&workload.kind, &workload.name, &at, error.to_string())
            })?;
            found.push(PodPolicy { workload: workload.clone(), document });
        }
        Ok(found)
    }

    fn set(&mut self, workload: &Workload, path: &Path, value: &Value) -> Result<(), PolicyError> {
        let File { name, documents } = &mut self.files[workload.file];
        let changed = documents[workload.document].set(path, value);
        changed.map(drop).map_err(|source| PolicyError::Yaml { file: name.clone(), source })
    }
}
