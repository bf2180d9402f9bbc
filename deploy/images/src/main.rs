//! `build-images`: an OCI layout with one image per program, and a CycloneDX SBOM beside each.
//!
//! Same binaries, same layout, to the last bit: nothing here reads a clock, a user name or a directory's order. How the
//! binaries themselves become the same is `deploy/images/build`'s matter.

mod layout;
mod sbom;

use std::{io::Write as _, path::PathBuf};

use anyhow::Context as _;
use clap::Parser;
use layout::{Image, Layout};

/// Images by name: the program of that name at `/`, who runs it, and what other program it starts. The mesh brings the
/// initializer, which saves each pod a container.
const IMAGES: [(&str, bool, Option<&str>); 4] = [
    ("coordinator", false, None),
    ("initializer", false, None),
    ("service-mesh", true, Some("initializer")),
    ("runtime-installer", true, None),
];

/// Make container images from finished binaries, without a container engine.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Example:\n  build-images --binaries target/x86_64-unknown-linux-gnu/release --out images\n\n\
        Writes images/ (an OCI layout: copy it to a registry with skopeo, oras or ctr), images/NAME.cdx.json (SBOM) and\n\
        prints each image's digest."
)]
struct Args {
    /// Folder with the programs.
    #[arg(long, value_name = "DIR")]
    binaries: PathBuf,
    /// Folder to write; must not exist.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// What deploy/images/volume-tools made: goes into the initializer's image, which without it opens no encrypted
    /// volumes.
    #[arg(long, value_name = "DIR")]
    volume_tools: Option<PathBuf>,
    /// Workspace whose Cargo.lock the binaries were made from.
    #[arg(long, default_value = ".", value_name = "DIR")]
    workspace: PathBuf,
    /// Time that images and files carry, in seconds since 1970; usually that of the commit.
    #[arg(long, env = "SOURCE_DATE_EPOCH", default_value_t = 0)]
    epoch: u64,
    /// Only these; all that the folder has if none is named.
    names: Vec<String>,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let known = |name: &String| IMAGES.iter().any(|(known, ..)| known == name);
    if let Some(unknown) = args.names.iter().find(|name| !known(name)) {
        anyhow::bail!("no image is called {unknown:?}: one of {}", IMAGES.map(|(name, ..)| name).join(", "));
    }
    std::fs::create_dir(&args.out).with_context(|| format!("cannot make {}", args.out.display()))?;
    let metadata = sbom::Metadata::read(&args.workspace)?;
    let mut layout = Layout::new(&args.out)?;
    for (name, root, child) in IMAGES {
        let program = args.binaries.join(name);
        let wanted = args.names.iter().any(|wanted| wanted == name);
        if !wanted && (!args.names.is_empty() || !program.exists()) {
            continue;
        }
        let read = |name: &'static str| -> anyhow::Result<(&str, Vec<u8>)> {
            let program = args.binaries.join(name);
            Ok((name, std::fs::read(&program).with_context(|| format!("cannot read {}", program.display()))?))
        };
        let programs = [name].into_iter().chain(child).map(read).collect::<anyhow::Result<Vec<_>>>()?;
        let version = metadata.version(name)?;
        let tools = args.volume_tools.as_deref().filter(|_| name == "initializer");
        let image = Image { name, version: &version, programs: &programs, root, epoch: args.epoch, tools };
        let digest = layout.add(&image)?;
        let bom = metadata.bom(name, child, &sbom::packages(tools)?)?;
        std::fs::write(args.out.join(format!("{name}.cdx.json")), bom)?;
        writeln!(std::io::stdout(), "sha256:{digest}  {name}")?;
    }
    layout.finish()
}
