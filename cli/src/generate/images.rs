//! Reading the images of a deployment.

use std::path::PathBuf;

use anyhow::Context as _;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use oci_image::{ImageStore, RegistryOptions, Resolved};
use runtime_policy::{ContainerImage, Deployment, Finding, Images};

use crate::printer::Printer;

/// Images read at the same time.
const AT_ONCE: usize = 4;

/// Where images are.
#[derive(Debug, clap::Args)]
pub(crate) struct ImageArgs {
    /// OCI layout folder, tar of one, or archive of `docker save`, looked at before any registry. May be repeated.
    #[arg(long, value_name = "PATH")]
    images: Vec<PathBuf>,
    /// Ask no registry.
    #[arg(long)]
    offline: bool,
    /// Ask MIRROR instead of the registry HOST. May be repeated.
    #[arg(long, value_name = "HOST=MIRROR", value_parser = pair)]
    registry_mirror: Vec<(String, String)>,
    /// Speak to this registry without TLS; digests are verified all the same. May be repeated.
    #[arg(long, value_name = "HOST")]
    registry_plain_http: Vec<String>,
    /// PEM file with a further root for registries' TLS. May be repeated.
    #[arg(long, value_name = "FILE")]
    registry_ca: Vec<PathBuf>,
    /// Folder in which what was learned of images is kept; contrast/images in the user's cache if none is given.
    #[arg(long, value_name = "DIR", env = "CONTRAST_IMAGE_CACHE")]
    image_cache: Option<PathBuf>,
}

fn pair(text: &str) -> Result<(String, String), String> {
    let pair = text.split_once('=').filter(|(host, mirror)| !host.is_empty() && !mirror.is_empty());
    pair.map(|(host, mirror)| (host.to_owned(), mirror.to_owned()))
        .ok_or_else(|| "expected HOST=MIRROR".to_owned())
}

/// The images of a deployment.
pub(super) struct Found {
    /// By the reference in the YAML.
    pub(super) by_given: Images,
    /// By the reference that is written there.
    pub(super) by_pinned: Images,
    pub(super) warnings: Vec<Finding>,
}

fn cache_folder(args: &ImageArgs) -> Option<PathBuf> {
    let base = || {
        let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
        cache.or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache")))
    };
    args.image_cache.clone().or_else(|| base().map(|base| base.join("contrast/images")))
}

pub(super) async fn resolve(
    args: &ImageArgs,
    deployment: &Deployment,
    printer: &Printer,
) -> anyhow::Result<Found> {
    let registries = RegistryOptions {
        mirrors: args.registry_mirror.clone(),
        plain_http: args.registry_plain_http.clone(),
        root_certificates: args.registry_ca.clone(),
    };
    let cache = cache_folder(args);
    let store = ImageStore::new(&args.images, (!args.offline).then_some(&registries), cache.as_deref())?;
    let wanted = deployment.images();
    let bar = printer.progress("images", Some(wanted.len() as u64));
    let read = stream::iter(wanted)
        .map(|(reference, place)| {
            let (store, bar) = (&store, &bar);
            async move {
                let resolved = store.resolve(&reference, |_| bar.tick()).await;
                bar.inc(1);
                let resolved =
                    resolved.with_context(|| format!("{}:{}: {}", place.file, place.line, place.path))?;
                anyhow::Ok((reference, place, resolved))
            }
        })
        .buffered(AT_ONCE);
    let read: Vec<_> = read.try_collect().await?;
    bar.finish_and_clear();
    let mut found = Found { by_given: Images::new(), by_pinned: Images::new(), warnings: Vec::new() };
    for (reference, place, resolved) in read {
        if !resolved.reference.contains('@') {
            let message = format!(
                "{reference} has no digest, so the guest may get another image: push it to a registry, or use an OCI layout"
            );
            found.warnings.push(Finding { message, ..place });
        }
        let image = image(resolved);
        found.by_pinned.insert(image.reference.clone(), image.clone());
        found.by_given.insert(reference, image);
    }
    Ok(found)
}

fn image(resolved: Resolved) -> ContainerImage {
    ContainerImage {
        reference: resolved.reference,
        user: resolved.config.user,
        env: resolved.config.env,
        entrypoint: resolved.config.entrypoint,
        cmd: resolved.config.cmd,
        working_dir: resolved.config.working_dir,
        volumes: resolved.config.volumes.into_keys().collect(),
        passwd: resolved.passwd,
        group: resolved.group,
    }
}
