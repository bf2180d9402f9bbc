//! What a program is made of, as CycloneDX 1.5: every crate that Cargo.lock names for it, with licence and checksum.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    process::Command,
};

use anyhow::Context as _;
use serde::Deserialize;
use serde_json::{Value, json};

/// What `cargo metadata` says of a workspace.
#[derive(Debug)]
pub(crate) struct Metadata {
    packages: BTreeMap<String, Package>,
    /// What each package needs at run time or to be built.
    needs: BTreeMap<String, Vec<String>>,
    /// Checksums of Cargo.lock by name and version.
    checksums: BTreeMap<(String, String), String>,
}

#[derive(Debug, Deserialize)]
struct Package {
    id: String,
    name: String,
    version: String,
    license: Option<String>,
    source: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Raw {
    packages: Vec<Package>,
    resolve: Resolve,
}

#[derive(Debug, Deserialize)]
struct Resolve {
    nodes: Vec<Node>,
}

#[derive(Debug, Deserialize)]
struct Node {
    id: String,
    deps: Vec<Dependency>,
}

#[derive(Debug, Deserialize)]
struct Dependency {
    pkg: String,
    dep_kinds: Vec<Kind>,
}

#[derive(Debug, Deserialize)]
struct Kind {
    kind: Option<String>,
}

impl Metadata {
    /// Asks cargo, for Linux and exactly what Cargo.lock has.
    pub(crate) fn read(workspace: &Path) -> anyhow::Result<Self> {
        let asked = Command::new("cargo")
            .args(["metadata", "--locked", "--format-version", "1"])
            .args(["--filter-platform", "x86_64-unknown-linux-gnu"])
            .current_dir(workspace)
            .output()
            .context("cannot run cargo")?;
        anyhow::ensure!(asked.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&asked.stderr));
        let raw: Raw = serde_json::from_slice(&asked.stdout).context("cargo metadata")?;
        let lock = std::fs::read_to_string(workspace.join("Cargo.lock")).context("Cargo.lock")?;
        let built = |dependency: &Dependency| {
            dependency.dep_kinds.iter().any(|kind| kind.kind.as_deref() != Some("dev"))
        };
        let needs = raw.resolve.nodes.into_iter().map(|node| {
            let needed = node.deps.into_iter().filter(built).map(|dependency| dependency.pkg);
            (node.id, needed.collect())
        });
        Ok(Self {
            needs: needs.collect(),
            packages: raw.packages.into_iter().map(|package| (package.id.clone(), package)).collect(),
            checksums: checksums(&lock),
        })
    }

    fn program(&self, name: &str) -> anyhow::Result<&Package> {
        let found = self.packages.values().find(|package| package.name == name && package.source.is_none());
        found.with_context(|| format!("the workspace has no package {name}"))
    }

    /// Version of a program.
    pub(crate) fn version(&self, name: &str) -> anyhow::Result<String> {
        Ok(self.program(name)?.version.clone())
    }

    /// The SBOM of a program and of the other program in its image, and what the image holds besides. Without a date or a
    /// random number: the same every time.
    pub(crate) fn bom(&self, name: &str, child: Option<&str>, besides: &[Value]) -> anyhow::Result<Vec<u8>> {
        let program = self.program(name)?;
        let (mut seen, mut todo) = (BTreeSet::new(), vec![program.id.as_str()]);
        todo.extend(child.map(|child| self.program(child)).transpose()?.map(|child| child.id.as_str()));
        while let Some(id) = todo.pop() {
            if seen.insert(id) {
                todo.extend(self.needs.get(id).into_iter().flatten().map(String::as_str));
            }
        }
        let packages: Vec<&Package> = seen.iter().filter_map(|id| self.packages.get(*id)).collect();
        let mut components: Vec<Value> = packages
            .iter()
            .filter(|package| package.id != program.id)
            .map(|package| self.component(package))
            .collect();
        components.extend_from_slice(besides);
        components.sort_by_key(|component| component["bom-ref"].as_str().map(str::to_owned));
        let mut dependencies: Vec<Value> = packages.iter().map(|package| self.dependency(package)).collect();
        dependencies.extend(besides.iter().map(|other| json!({ "ref": other["bom-ref"] })));
        dependencies.sort_by_key(|dependency| dependency["ref"].as_str().map(str::to_owned));
        let mut own = self.component(program);
        own["type"] = "application".into();
        let bom = json!({
            "$schema": "http://cyclonedx.org/schema/bom-1.5.schema.json", "bomFormat": "CycloneDX",
            "specVersion": "1.5", "version": 1, "metadata": { "component": own },
            "components": components, "dependencies": dependencies,
        });
        Ok(serde_json::to_vec_pretty(&bom)?)
    }

    fn component(&self, package: &Package) -> Value {
        let purl = purl(package);
        let mut component = json!({
            "type": "library", "bom-ref": purl, "name": package.name, "version": package.version, "purl": purl,
        });
        if let Some(licence) = &package.license {
            // Older crates write `MIT/Apache-2.0`.
            component["licenses"] = json!([{ "expression": licence.replace('/', " OR ") }]);
        }
        let checksum = self.checksums.get(&(package.name.clone(), package.version.clone()));
        if let Some(checksum) = checksum {
            component["hashes"] = json!([{ "alg": "SHA-256", "content": checksum }]);
        }
        component
    }

    fn dependency(&self, package: &Package) -> Value {
        let needs = self.needs.get(&package.id).into_iter().flatten();
        let needs: BTreeSet<String> = needs.filter_map(|id| self.packages.get(id)).map(purl).collect();
        json!({ "ref": purl(package), "dependsOn": needs })
    }
}

/// The Debian packages that deploy/images/volume-tools took its files from.
pub(crate) fn packages(tools: Option<&Path>) -> anyhow::Result<Vec<Value>> {
    let Some(tools) = tools else { return Ok(Vec::new()) };
    let path = tools.join("usr/share/doc/volume-tools.sha256");
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let component = |line: &str| {
        let [hash, name, version] = line.split_whitespace().collect::<Vec<_>>().try_into().ok()?;
        let in_purl = version.replace('+', "%2B").replace(':', "%3A");
        let purl = format!("pkg:deb/debian/{name}@{in_purl}?arch=amd64&distro=debian-12");
        Some(json!({
            "type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl,
            "hashes": [{ "alg": "SHA-256", "content": hash }],
        }))
    };
    lines
        .map(|line| {
            component(line)
                .with_context(|| format!("{}: {line:?} is not HASH PACKAGE VERSION", path.display()))
        })
        .collect()
}

fn purl(package: &Package) -> String {
    format!("pkg:cargo/{}@{}", package.name, package.version.replace('+', "%2B"))
}

/// Reads the three lines of each `[[package]]` that matter here.
fn checksums(lock: &str) -> BTreeMap<(String, String), String> {
    let field = |section: &str, key: &str| {
        let line =
            section.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(" = \"")?.strip_suffix('"'));
        line.map(str::to_owned)
    };
    let read = |section: &str| {
        Some(((field(section, "name")?, field(section, "version")?), field(section, "checksum")?))
    };
    lock.split("[[package]]").filter_map(read).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sbom_lists_what_is_built_in_and_not_what_only_tests_need() {
        let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let metadata = Metadata::read(&workspace).unwrap();
        let bytes = metadata.bom("runtime-installer", None, &[]).unwrap();
        assert_eq!(metadata.bom("runtime-installer", None, &[]).unwrap(), bytes, "the same every time");
        let bom: Value = serde_json::from_slice(&bytes).unwrap();
        let components = bom["components"].as_array().unwrap();
        let find = |name: &str| components.iter().find(|component| component["name"] == name);
        let tar = find("tar").unwrap();
        assert_eq!(tar["licenses"][0]["expression"], "MIT OR Apache-2.0");
        assert_eq!(tar["hashes"][0]["content"].as_str().unwrap().len(), 64);
        assert!(find("runtime-bundle").is_some() && find("proptest").is_none());
        let references: BTreeSet<&str> = bom["dependencies"]
            .as_array()
            .unwrap()
            .iter()
            .filter_map(|found| found["ref"].as_str())
            .collect();
        assert!(
            components.iter().all(|component| references.contains(component["bom-ref"].as_str().unwrap()))
        );
    }
}
