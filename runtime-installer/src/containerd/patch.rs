//! Edits of containerd's configuration, as text to text (docs/spec/data-plane.md, section 4, step 3).
//!
//! An entry is a block of lines between two marker comments at the end of the file. Nothing before it is touched, so
//! comments, order and other programs' entries stay as they are, and taking the block out gives back the very bytes
//! of before. Every edit of a TOML file is checked by reading both versions: what changed must be the entry alone.
//! What containerd itself makes of the result is asked of containerd, not guessed here.

use runtime_bundle::HandlerName;
use toml::{Table, Value};

const BEGIN: &str = "# >>> contrast runtime-installer: ";
const END: &str = "# <<< contrast runtime-installer: ";
/// Added to the begin marker when the file before did not end its last line.
const UNENDED: &str = " (last line was not ended)";
/// Block with the entry that containerd has by default, and forgets once a file names any runtime.
const DEFAULT_RUNTIME: &str = "default runtime";
/// Block that makes up a file which was not there.
const PREAMBLE: &str = "preamble";
/// Type of runtime, from which containerd makes the shim's name.
const RUNTIME_TYPE: &str = "io.containerd.contrast-cc.v2";
/// Largest configuration that is read, in bytes.
pub const MAX_CONFIG_BYTES: usize = 4 << 20;

/// What kind of text it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// containerd's configuration itself. The version is in it.
    Toml,
    /// The template from which k3s and rke2 make it; the version is that of the rendered file.
    Template(Version),
}

/// Version of the configuration's form, which decides the name of the CRI plugin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// No version line. containerd 2.x reads such a file, but ignores what it says about runtimes.
    V1,
    /// containerd 1.3 to 2.x.
    V2,
    /// containerd 2.x; imported files are merged into it entry by entry.
    V3,
}

impl Version {
    /// The version of a configuration.
    pub fn of(config: &Table) -> Result<Self, PatchError> {
        match config.get("version") {
            None => Ok(Self::V1),
            Some(Value::Integer(0 | 1)) => Ok(Self::V1),
            Some(Value::Integer(2)) => Ok(Self::V2),
            Some(Value::Integer(3 | 4)) => Ok(Self::V3),
            Some(other) => Err(PatchError::UnknownVersion(other.to_string())),
        }
    }

    const fn plugin(self) -> &'static str {
        match self {
            Self::V1 => "cri",
            Self::V2 => "io.containerd.grpc.v1.cri",
            Self::V3 => "io.containerd.cri.v1.runtime",
        }
    }
}

/// A handler's entry.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Its name.
    pub handler: HandlerName,
    /// Path of the shim on the node.
    pub shim: String,
    /// Path of Kata's configuration on the node.
    pub kata_config: String,
    /// Whether the type must be the shim's path: containerd 1.6 reads `runtime_path` but does not use it.
    pub type_is_path: bool,
    /// Whether device plugins hand over GPUs by CDI annotations.
    pub gpu: bool,
}

/// Why a configuration is left as it is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatchError {
    /// Over the limit.
    #[error("{0} bytes, at most {MAX_CONFIG_BYTES} are read")]
    TooLarge(usize),
    /// Not TOML; the message has line and column.
    #[error("not TOML: {0}")]
    Syntax(String),
    /// A version this program does not know.
    #[error("version {0} is not known; versions 1 to 4 are")]
    UnknownVersion(String),
    /// No Kubernetes on this containerd.
    #[error(
        "disabled_plugins has {0:?}: containerd does not serve Kubernetes until it is taken out of that list"
    )]
    CriDisabled(String),
    /// There is a different entry of that name.
    #[error("there is another entry for {0}, not made by this program: remove it, then run again")]
    OtherEntry(HandlerName),
    /// The runtimes are not in tables that can be added to.
    #[error(
        "cannot add a table below {table}: {reason}; write the runtimes there as [tables], one header each"
    )]
    Closed {
        /// The table.
        table: String,
        /// What the TOML reader says.
        reason: String,
    },
    /// Markers without their counterpart: somebody edited inside the block.
    #[error(
        "line {line}: marker {name:?} has no counterpart: remove the markers and what belongs to them by hand"
    )]
    BrokenMarkers {
        /// Line, from 1.
        line: usize,
        /// Name in the marker.
        name: String,
    },
}

/// The configuration with `entry`. `before` is `None` when there is no file.
pub fn with_entry(before: Option<&str>, format: Format, entry: &Entry) -> Result<String, PatchError> {
    let mut text = before.unwrap_or_default().to_owned();
    if text.len() > MAX_CONFIG_BYTES {
        return Err(PatchError::TooLarge(text.len()));
    }
    if before.is_none() {
        text = append("", PREAMBLE, preamble(format));
    }
    // An entry of an earlier run is made anew: it may be from another release of this program.
    let old = remove_block(&text, entry.handler.as_str())?;
    let base = old.as_deref().unwrap_or(&text);
    let version = match format {
        Format::Template(version) => {
            return Ok(keep_if_same(&text, append(base, entry.handler.as_str(), &entry.toml(version))));
        }
        Format::Toml => Version::of(&parse(base)?)?,
    };
    let config = parse(base)?;
    if let Some(name) = disabled_cri(&config) {
        return Err(PatchError::CriDisabled(name));
    }
    let raise = version == Version::V1 && can_be_raised(&config);
    let version = if raise { Version::V2 } else { version };
    let runtimes = runtimes(&config, version);
    let wanted = entry.value();
    if let Some(found) = runtimes.and_then(|runtimes| runtimes.get(entry.handler.as_str())) {
        // Some programs rewrite the file without its comments, and so without our markers.
        return if *found == wanted { Ok(text) } else { Err(PatchError::OtherEntry(entry.handler.clone())) };
    }
    let mut result = base.to_owned();
    if runtimes.is_none_or(Table::is_empty) && version < Version::V3 {
        let raised = if raise { "version = 2\n" } else { "" };
        result = append(&result, DEFAULT_RUNTIME, &format!("{raised}{}", default_runtime(version)));
    }
    result = append(&result, entry.handler.as_str(), &entry.toml(version));
    only_added(&config, &result, version, entry)?;
    Ok(keep_if_same(&text, result))
}

/// The configuration without the entry; `None` if nothing is left of a file that this program made.
pub fn without_entry(
    before: &str,
    format: Format,
    handler: &HandlerName,
) -> Result<Option<String>, PatchError> {
    if before.len() > MAX_CONFIG_BYTES {
        return Err(PatchError::TooLarge(before.len()));
    }
    let mut text = match remove_block(before, handler.as_str())? {
        Some(text) => text,
        None if format == Format::Toml => remove_table(before, handler)?,
        None => before.to_owned(),
    };
    if !text.contains(&format!("{BEGIN}contrast-cc-")) {
        text = remove_block(&text, DEFAULT_RUNTIME)?.unwrap_or(text);
        match remove_block(&text, PREAMBLE)? {
            Some(rest) if rest.trim().is_empty() => return Ok(None),
            _ => {}
        }
    }
    Ok(Some(text))
}

/// A file of its own for the entry, where containerd merges such files: of the version that counts for all of them.
pub fn drop_in(entry: &Entry, version: Version) -> String {
    let number = if version == Version::V3 { 3 } else { 2 };
    append("", entry.handler.as_str(), &format!("version = {number}\n{}", entry.toml(version)))
}

/// Whether an entry in this file is lost on containerd 2.x: it says so in its log only.
pub fn is_lost_on_containerd_2(text: &str) -> bool {
    let config = parse(text);
    config.is_ok_and(|config| Version::of(&config) == Ok(Version::V1) && !can_be_raised(&config))
}

/// The folder whose `*.toml` files a configuration of version 3 imports, if there is one.
pub fn drop_in_folder(text: &str) -> Option<String> {
    let config = parse(text).ok()?;
    if Version::of(&config).ok()? < Version::V3 {
        return None; // containerd 1.x replaces a plugin's whole section by the imported one
    }
    imported_folder(&config)
}

/// A folder whose `*.toml` files a configuration imports.
pub fn imported_folder(config: &Table) -> Option<String> {
    let imports = config.get("imports")?.as_array()?;
    let mut folders = imports.iter().filter_map(|import| import.as_str()?.strip_suffix("/*.toml"));
    folders.find(|folder| folder.starts_with('/') && !folder.contains(['*', '?', '['])).map(str::to_owned)
}

/// Reads a configuration.
pub fn parse(text: &str) -> Result<Table, PatchError> {
    text.parse().map_err(|error: toml::de::Error| PatchError::Syntax(error.to_string().trim().to_owned()))
}

/// Which name of the CRI plugin is in `disabled_plugins`, if any.
pub fn disabled_cri(config: &Table) -> Option<String> {
    let names = ["cri", Version::V2.plugin(), Version::V3.plugin()];
    let disabled = config.get("disabled_plugins")?.as_array()?;
    disabled.iter().filter_map(Value::as_str).find(|name| names.contains(name)).map(str::to_owned)
}

impl Entry {
    fn toml(&self, version: Version) -> String {
        let table = format!("plugins.\"{}\".containerd.runtimes.{}", version.plugin(), self.handler);
        let Self { shim, kata_config, .. } = self;
        let kind = if self.type_is_path { shim } else { RUNTIME_TYPE };
        let cdi = if self.gpu { ", \"cdi.k8s.io/*\"" } else { "" };
        format!(
            "[{table}]\n  runtime_type = \"{kind}\"\n  runtime_path = \"{shim}\"\n  \
             pod_annotations = [\"io.katacontainers.*\"{cdi}]\n  privileged_without_host_devices = true\n  \
             [{table}.options]\n    ConfigPath = \"{kata_config}\"\n"
        )
    }

    fn value(&self) -> Value {
        let toml: Table = self.toml(Version::V2).parse().unwrap_or_default();
        runtimes(&toml, Version::V2)
            .and_then(|runtimes| runtimes.get(self.handler.as_str()).cloned())
            .unwrap_or_else(|| Value::Table(Table::new()))
    }
}

/// Whether a version line at the end changes the meaning of nothing: no table, no plugin by its short name.
fn can_be_raised(config: &Table) -> bool {
    let plain = |value: &Value| match value {
        Value::Table(_) => false,
        Value::Array(items) => items.iter().all(|item| item.as_str().is_some_and(|name| name.contains('.'))),
        _ => true,
    };
    !config.contains_key("version") && config.values().all(plain)
}

const fn preamble(format: Format) -> &'static str {
    match format {
        // Version 2 is read by every containerd since 1.3.
        Format::Toml => "version = 2\n",
        Format::Template(_) => "{{ template \"base\" . }}\n",
    }
}

/// What containerd 1.x has when the file names no runtime at all.
fn default_runtime(version: Version) -> String {
    format!(
        "[plugins.\"{}\".containerd.runtimes.runc]\n  runtime_type = \"io.containerd.runc.v2\"\n",
        version.plugin()
    )
}

fn runtimes(config: &Table, version: Version) -> Option<&Table> {
    let path = ["plugins", version.plugin(), "containerd", "runtimes"];
    path.iter().try_fold(config, |table, key| table.get(*key)?.as_table())
}

/// Reads the result and demands that it is `before` and the entry, nothing else.
fn only_added(before: &Table, result: &str, version: Version, entry: &Entry) -> Result<(), PatchError> {
    let table = format!("plugins.\"{}\".containerd.runtimes", version.plugin());
    let closed = |reason: String| PatchError::Closed { table: table.clone(), reason };
    let mut after = result.parse::<Table>().map_err(|error| closed(error.message().to_owned()))?;
    let path = ["plugins", version.plugin(), "containerd", "runtimes"];
    let entries = path.iter().try_fold(&mut after, |table, key| table.get_mut(*key)?.as_table_mut());
    let found = entries.and_then(|entries| {
        let found = entries.remove(entry.handler.as_str());
        if runtimes(before, version).is_none_or(Table::is_empty) {
            entries.remove("runc");
        }
        found
    });
    if found != Some(entry.value()) {
        return Err(closed("the entry does not arrive there".into()));
    }
    if !before.contains_key("version") {
        after.remove("version");
    }
    prune(&mut after, before, &path);
    if after == *before { Ok(()) } else { Err(closed("something else would change with it".into())) }
}

/// Takes out the empty tables that the entry's header made on its way down.
fn prune(after: &mut Table, before: &Table, path: &[&str]) {
    let Some((key, rest)) = path.split_first() else { return };
    let empty = Table::new();
    let below = before.get(*key).and_then(Value::as_table);
    if let Some(table) = after.get_mut(*key).and_then(Value::as_table_mut) {
        prune(table, below.unwrap_or(&empty), rest);
        if table.is_empty() && below.is_none() {
            after.remove(*key);
        }
    }
}

fn append(text: &str, name: &str, lines: &str) -> String {
    let ended = text.is_empty() || text.ends_with('\n');
    let (newline, note) = if ended { ("", "") } else { ("\n", UNENDED) };
    format!("{text}{newline}{BEGIN}{name}{note}\n{lines}{END}{name}\n")
}

/// An edit that only moves a block to another place is none.
fn keep_if_same(text: &str, edited: String) -> String {
    let mut lines = [text, edited.as_str()].map(|text| text.lines().collect::<Vec<_>>());
    for lines in &mut lines {
        lines.sort_unstable();
    }
    if lines[0] == lines[1] { text.to_owned() } else { edited }
}

/// The text without the block, exactly as it was before [`append`]; `None` if there is no block.
fn remove_block(text: &str, name: &str) -> Result<Option<String>, PatchError> {
    let is = |line: &str, marker: &str| {
        let rest = line.trim_end_matches(['\r', '\n']).strip_prefix(marker);
        rest.is_some_and(|rest| rest == name || rest.strip_suffix(UNENDED) == Some(name))
    };
    let mut start = None;
    let mut at = 0;
    for (number, line) in (1..).zip(text.split_inclusive('\n')) {
        let broken = || PatchError::BrokenMarkers { line: number, name: name.to_owned() };
        if is(line, BEGIN) {
            if start.is_some() {
                return Err(broken());
            }
            start = Some((at, line.contains(UNENDED), number));
        } else if is(line, END) {
            let (from, unended, _) = start.ok_or_else(broken)?;
            let from = if unended { from - 1 } else { from };
            return Ok(Some(format!("{}{}", &text[..from], &text[at + line.len()..])));
        }
        at += line.len();
    }
    match start {
        Some((_, _, line)) => Err(PatchError::BrokenMarkers { line, name: name.to_owned() }),
        None => Ok(None),
    }
}

/// Takes the entry out of a file that lost our markers, keeping the rest of its text.
fn remove_table(text: &str, handler: &HandlerName) -> Result<String, PatchError> {
    let config = parse(text)?;
    let version = Version::of(&config)?;
    if runtimes(&config, version).is_none_or(|runtimes| !runtimes.contains_key(handler.as_str())) {
        return Ok(text.to_owned());
    }
    let syntax = |error: toml_edit::TomlError| PatchError::Syntax(error.to_string());
    let mut document: toml_edit::DocumentMut = text.parse().map_err(syntax)?;
    let path = ["plugins", version.plugin(), "containerd", "runtimes"];
    let table =
        path.iter().try_fold(document.as_table_mut() as &mut dyn toml_edit::TableLike, |table, key| {
            table.get_mut(key)?.as_table_like_mut()
        });
    if let Some(table) = table {
        table.remove(handler.as_str());
    }
    Ok(document.to_string())
}

#[cfg(test)]
mod tests;
