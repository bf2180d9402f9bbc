//! Installing and uninstalling a runtime: each step in its order.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Context as _;
use runtime_bundle::{Bundle, HandlerName, MAX_BUNDLE_BYTES, Platform};
use serde::Serialize;

use crate::{
    containerd::{
        activate::{Activation, folder, others},
        cri::{Cri, Health, proto},
        imports,
        patch::{self, Entry},
        restart::Restart,
        target::{Hints, Place, Target, TargetError, read_text},
    },
    fetch::{FetchError, Fetcher},
    files,
    host::Host,
    kata,
    node_label::Node,
    state::{Change, Installed, Phase, StateFile},
};

/// Name of the configuration in its folder.
pub const CONFIGURATION: &str = "contrast-node-install.json";

/// What install and uninstall need to know about the node.
#[derive(Debug)]
pub struct Site {
    /// The node's files.
    pub host: Host,
    /// What the operator says about it.
    pub hints: Hints,
    /// A command that restarts containerd, instead of systemd.
    pub restart_command: Option<String>,
    /// Longest restart, and longest wait for containerd after it.
    pub patience: Duration,
    /// Longest wait for another installer.
    pub lock_patience: Duration,
    /// The Kubernetes API, in a cluster.
    pub node: Option<Node>,
}

/// The answer to the caller's doing: exit code 1.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Refused(pub String);

/// What was done.
#[derive(Debug, Serialize)]
pub struct Outcome {
    /// The handler.
    pub handler: String,
    /// Its directory on the node.
    pub directory: String,
    /// The file with its entry.
    pub config: PathBuf,
    /// Whether files were put there or taken away.
    pub files_changed: bool,
    /// Whether containerd's configuration was changed.
    pub config_changed: bool,
    /// Whether the node was labelled.
    pub labelled: bool,
}

/// Reads the configuration.
pub fn read_bundle(folder: &Path) -> anyhow::Result<Bundle> {
    use std::io::Read as _;
    let path = folder.join(CONFIGURATION);
    let name = || format!("cannot read {}", path.display());
    let mut bytes = Vec::new();
    let limit = u64::try_from(MAX_BUNDLE_BYTES).unwrap_or(u64::MAX).saturating_add(1);
    std::fs::File::open(&path).with_context(name)?.take(limit).read_to_end(&mut bytes).with_context(name)?;
    Bundle::parse(&bytes).map_err(|error| Refused(format!("{}: {error}", path.display())).into())
}

/// The handler's name of a bundle, which must be the one it demands, if it demands one.
pub fn handler(bundle: &Bundle, platform: Platform, fetcher: &Fetcher) -> anyhow::Result<HandlerName> {
    let computed = bundle.handler(platform, |path| fetcher.local_digest(path))?;
    match &bundle.demanded_handler {
        Some(demanded) if *demanded != computed => Err(Refused(format!(
            "the configuration is for {demanded}, but its contents are {computed}: it was changed, or is for another platform"
        ))
        .into()),
        _ => Ok(computed),
    }
}

/// Installs; does nothing where all is as it should be.
pub fn install(
    site: &Site,
    bundle: &Bundle,
    platform: Platform,
    fetcher: &Fetcher,
    retry: bool,
) -> anyhow::Result<Outcome> {
    let handler = handler(bundle, platform, fetcher)?;
    let _lock = site.host.lock(site.lock_patience)?;
    let mut work = Work::begin(site)?;
    let mut file = StateFile::open(&site.host)?;
    work.finish_pending(&mut file)?;
    if let Some(failed) = &file.state.failed
        && failed.handler == handler.as_str()
        && !retry
    {
        let reason = &failed.reason;
        let text =
            format!("{handler} was rolled back at the last try: {reason}. Run with --retry to try again");
        return Err(Refused(text).into());
    }
    let health = work.activation().health()?;
    if is_containerd_2(health.as_ref()) {
        imports::settle(&mut work.target, &site.host).map_err(|error| match error {
            TargetError::Mixed { .. } => anyhow::Error::from(Refused(error.to_string())),
            other => other.into(),
        })?;
    }
    let entry = Entry {
        handler: handler.clone(),
        type_is_path: health
            .as_ref()
            .is_some_and(|health| health.version.trim_start_matches('v').starts_with("1.6.")),
        shim: shim(bundle, platform, &handler)?,
        kata_config: format!("{}/{}", handler.directory(), kata::path(platform)),
        gpu: platform.gpu(),
    };
    // Before anything is downloaded: whether the configuration can take the entry at all.
    work.with_entry(&entry)?;
    let recorded = file.state.runtimes.get(handler.as_str()).cloned();
    file.save()?;
    let tree = files::install(
        &site.host,
        fetcher,
        bundle,
        platform,
        &handler,
        recorded.as_ref().map(|installed| installed.tree.as_str()),
    );
    let tree = match tree {
        Ok(tree) => tree,
        Err(error) => {
            // Nothing was done yet: on a node without other runtimes not even the record stays.
            file.finish()?;
            return Err(refusal(error));
        }
    };
    let mut installed = Installed {
        platform: platform.name().to_owned(),
        installer: env!("CARGO_PKG_VERSION").to_owned(),
        tree: tree.hash,
        config: recorded.and_then(|installed| installed.config),
    };
    file.state.runtimes.insert(handler.to_string(), installed.clone());
    file.state.failed = None;
    file.save()?;
    let config = work.path(&handler);
    let config_changed = work.activate(&mut file, &entry, health.as_ref())?;
    installed.config = Some(config.clone());
    file.state.runtimes.insert(handler.to_string(), installed);
    file.save()?;
    if let Some(node) = &site.node {
        node.label(&handler, true)?;
    }
    Ok(Outcome {
        directory: handler.directory(),
        handler: handler.to_string(),
        config,
        files_changed: tree.changed,
        config_changed,
        labelled: site.node.is_some(),
    })
}

/// Takes a runtime away, last its record.
pub fn uninstall(site: &Site, handler: &HandlerName, force: bool) -> anyhow::Result<Outcome> {
    let _lock = site.host.lock(site.lock_patience)?;
    let work = Work::begin(site)?;
    let mut file = StateFile::open(&site.host)?;
    work.finish_pending(&mut file)?;
    if let Some(node) = &site.node {
        node.label(handler, false)?; // no new pods from here on
    }
    if !force {
        work.demand_unused(handler)?;
    }
    let recorded = file.state.runtimes.get(handler.as_str()).and_then(|installed| installed.config.clone());
    let config = recorded.unwrap_or_else(|| work.path(handler));
    let config_changed = work.deactivate(&mut file, handler, &config)?;
    let files_changed = site.host.exists(Path::new(&handler.directory()));
    files::remove(&site.host, handler)?;
    file.state.runtimes.remove(handler.as_str());
    file.state.failed = None;
    file.finish()?;
    Ok(Outcome {
        directory: handler.directory(),
        handler: handler.to_string(),
        config,
        files_changed,
        config_changed,
        labelled: false,
    })
}

fn shim(bundle: &Bundle, platform: Platform, handler: &HandlerName) -> anyhow::Result<String> {
    kata::configuration(bundle, platform, handler).map_err(|error| Refused(error.to_string()))?;
    let shim = bundle.file(runtime_bundle::Role::Shim).map(|file| file.path.as_str()).unwrap_or_default();
    Ok(format!("{}/{shim}", handler.directory()))
}

/// What came was wrong: that is a refusal, unlike a network that does not work.
fn refusal(error: anyhow::Error) -> anyhow::Error {
    match error.downcast_ref::<FetchError>() {
        Some(fetch) if fetch.is_refusal() => Refused(format!("{error:#}")).into(),
        _ => error,
    }
}

fn is_containerd_2(health: Option<&Health>) -> bool {
    health.is_some_and(|health| health.version.trim_start_matches('v').starts_with("2."))
}

/// The node's containerd, and how to change it.
struct Work<'a> {
    site: &'a Site,
    target: Target,
    restart: Restart,
    cri: Cri,
}

impl<'a> Work<'a> {
    fn begin(site: &'a Site) -> anyhow::Result<Self> {
        let target = Target::find(&site.host, &site.hints)?;
        let restart = match &site.restart_command {
            Some(command) => Restart::Command(command.clone()),
            None => Restart::first_unit(&site.host, &target.units)?,
        };
        let cri = Cri::new(&target.socket_here(&site.host)?)?;
        Ok(Self { site, target, restart, cri })
    }

    fn activation(&self) -> Activation<'_> {
        Activation {
            host: &self.site.host,
            cri: &self.cri,
            restart: &self.restart,
            patience: self.site.patience,
        }
    }

    /// An earlier run may have ended in the middle of a change.
    fn finish_pending(&self, file: &mut StateFile<'_>) -> anyhow::Result<()> {
        self.site.host.tidy(&self.path_of_block())?;
        if let Some(change) = &file.state.pending {
            tracing::warn!(handler = change.handler, phase = ?change.phase, "an earlier run ended here: going on");
        }
        Ok(self.activation().settle(file)?)
    }

    fn path_of_block(&self) -> PathBuf {
        match &self.target.place {
            Place::Block(path, _) => path.clone(),
            Place::DropIn(folder, _) => folder.join("x"),
        }
    }

    /// The file that holds the entry.
    fn path(&self, handler: &HandlerName) -> PathBuf {
        match &self.target.place {
            Place::Block(path, _) => path.clone(),
            Place::DropIn(folder, _) => folder.join(format!("{handler}.toml")),
        }
    }

    /// The file's text, now and with the entry.
    fn with_entry(&self, entry: &Entry) -> anyhow::Result<(Option<String>, String)> {
        let path = self.path(&entry.handler);
        let before = read_text(&self.site.host, &path)?;
        let after = match &self.target.place {
            Place::DropIn(_, version) => patch::drop_in(entry, *version),
            Place::Block(_, format) => {
                patch::with_entry(before.as_deref(), *format, entry).map_err(|error| at(&path, error))?
            }
        };
        Ok((before, after))
    }

    fn activate(
        &self,
        file: &mut StateFile<'_>,
        entry: &Entry,
        health: Option<&Health>,
    ) -> anyhow::Result<bool> {
        let activation = self.activation();
        let name = entry.handler.as_str();
        loop {
            let (before, after) = self.with_entry(entry)?;
            if is_containerd_2(health) && before.as_deref().is_some_and(patch::is_lost_on_containerd_2) {
                return Err(Refused(format!(
                    "{} has no version, and containerd 2 ignores runtimes in such a file: run `containerd config \
                     migrate` on the node and put its output there",
                    self.target.config.display()
                ))
                .into());
            }
            let written = before.as_deref() == Some(after.as_str());
            let running = health.is_none_or(|health| health.handlers.contains_key(name));
            if written && running {
                return Ok(false);
            }
            let path = self.path(&entry.handler);
            file.make_folder(folder(&path))?;
            let change = Change {
                handler: name.to_owned(),
                present: true,
                path,
                before,
                after: Some(after.clone()),
                others: others(health, name),
                phase: Phase::Write,
                restarts: 0,
                reason: String::new(),
            };
            activation.change(file, change)?;
            // Unless somebody wrote the file in between.
            if self.with_entry(entry)?.0.as_deref() == Some(after.as_str()) {
                return Ok(true);
            }
        }
    }

    fn deactivate(
        &self,
        file: &mut StateFile<'_>,
        handler: &HandlerName,
        path: &Path,
    ) -> anyhow::Result<bool> {
        let activation = self.activation();
        let Some(before) = read_text(&self.site.host, path)? else { return Ok(false) };
        let after = match &self.target.place {
            Place::DropIn(folder, _) if path.starts_with(folder) => None,
            Place::Block(_, format) => {
                patch::without_entry(&before, *format, handler).map_err(|error| at(path, error))?
            }
            Place::DropIn(..) => {
                patch::without_entry(&before, format_of(path), handler).map_err(|error| at(path, error))?
            }
        };
        // A file that bears the handler's name was made for it, where the files were of several versions then.
        let is_its_own = path.file_stem() == Some(handler.as_str().as_ref());
        let after = after.filter(|rest| !(is_its_own && rest.trim().is_empty()));
        if after.as_ref() == Some(&before) {
            return Ok(false);
        }
        let health = activation.health()?;
        let change = Change {
            handler: handler.to_string(),
            present: false,
            path: path.to_owned(),
            before: Some(before),
            after,
            others: others(health.as_ref(), handler.as_str()),
            phase: Phase::Write,
            restarts: 0,
            reason: String::new(),
        };
        activation.change(file, change)?;
        Ok(true)
    }

    /// Refuses while pods run with the handler.
    fn demand_unused(&self, handler: &HandlerName) -> anyhow::Result<()> {
        if self.restart == Restart::Never {
            return Ok(());
        }
        let sandboxes = self.cri.call(async |mut client| {
            let list = client.list_pod_sandbox(proto::ListPodSandboxRequest::default()).await?;
            Ok(list.into_inner().items)
        })?;
        let ready = proto::PodSandboxState::SandboxReady as i32;
        let running: Vec<String> = sandboxes
            .into_iter()
            .filter(|sandbox| sandbox.runtime_handler == handler.as_str() && sandbox.state == ready)
            .filter_map(|sandbox| sandbox.metadata.map(|pod| format!("{}/{}", pod.namespace, pod.name)))
            .collect();
        if running.is_empty() {
            return Ok(());
        }
        let pods = running.join(", ");
        Err(Refused(format!("pods run with {handler}: {pods}. Delete them first, or uninstall with --force"))
            .into())
    }
}

/// A template is told by its name when the node is no longer as it was at installation.
fn format_of(path: &Path) -> patch::Format {
    match path.extension().is_some_and(|end| end == "tmpl") {
        true => patch::Format::Template(patch::Version::V3),
        false => patch::Format::Toml,
    }
}

fn at(path: &Path, source: patch::PatchError) -> anyhow::Error {
    let path = path.display().to_string();
    Refused(TargetError::Config { path, source }.to_string()).into()
}
