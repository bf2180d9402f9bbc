//! Private keys of owners and auditors, read from PEM files.

use std::path::Path;

use anyhow::Context as _;
use zeroize::Zeroizing;

use crate::files::read;

/// The text of a key file; it is erased from memory when it is dropped.
pub(crate) fn read_key(path: &Path) -> anyhow::Result<Zeroizing<String>> {
    let bytes = Zeroizing::new(read(path)?);
    String::from_utf8(bytes.to_vec()).map(Zeroizing::new).with_context(|| path.display().to_string())
}
