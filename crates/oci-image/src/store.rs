//! Where images are looked for, in order: folders and archives that were given, then the registry.

use std::{io::Read, path::Path, sync::Arc};

use oci_spec::distribution::Reference;

use crate::{
    Digest, ImageError, LayerFacts, RegistryOptions,
    archive::{Archive, DockerImage},
    cache::Cache,
    layer::{self, Change},
    layout::Layout,
    registry::Registry,
    schema::{
        ConfigFile, Descriptor, ImageConfig, MAX_CONFIG_BYTES, MAX_MANIFEST_BYTES, ManifestFile, parse,
    },
};

/// Images from folders, archives and registries.
pub struct ImageStore {
    local: Vec<Arc<Local>>,
    registry: Option<Arc<Registry>>,
    cache: Option<Cache>,
}

enum Local {
    Layout(Layout),
    Docker(Archive),
}

/// An image, read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolved {
    /// Its reference with the digest of its manifest; without, if the archive that it came from has none.
    pub reference: String,
    /// What it says about its process.
    pub config: ImageConfig,
    /// `/etc/passwd`.
    pub passwd: String,
    /// `/etc/group`.
    pub group: String,
}

/// A layer: where it is, and what it must be.
struct Layer {
    what: String,
    blob: Option<Digest>,
    diff_id: Digest,
    source: LayerSource,
}

enum LayerSource {
    Local(Arc<Local>, String),
    Registry(Descriptor),
}

impl ImageStore {
    /// A store over local places (OCI layout folders, tars of them, docker archives), then registries if
    /// `registries` is given. What is learned is kept in `cache`.
    pub fn new(
        local: &[impl AsRef<Path>],
        registries: Option<&RegistryOptions>,
        cache: Option<&Path>,
    ) -> Result<Self, ImageError> {
        let local =
            local.iter().map(|path| Local::open(path.as_ref()).map(Arc::new)).collect::<Result<_, _>>()?;
        let registry = registries.map(Registry::new).transpose()?.map(Arc::new);
        Ok(Self { local, registry, cache: cache.map(Cache::new) })
    }

    /// Finds and reads an image. `layer_read` is called with each layer's size after it was read.
    pub async fn resolve(&self, reference: &str, layer_read: impl Fn(u64)) -> Result<Resolved, ImageError> {
        let parsed: Reference = reference.parse().map_err(|error: oci_spec::distribution::ParseError| {
            ImageError::Reference { reference: reference.to_owned(), message: error.to_string() }
        })?;
        for local in &self.local {
            match &**local {
                Local::Layout(layout) => {
                    if let Some(descriptor) = layout.find(&parsed)? {
                        return self.read_layout(&parsed, local, layout, &descriptor, layer_read).await;
                    }
                }
                Local::Docker(archive) => {
                    if let Some(image) = archive.find(&parsed)? {
                        return self.read_docker(&parsed, local, archive, &image, layer_read).await;
                    }
                }
            }
        }
        match &self.registry {
            Some(registry) => self.read_registry(&parsed, registry, layer_read).await,
            None => Err(ImageError::NotFound {
                reference: reference.to_owned(),
                message: format!(
                    "it is in none of the {} places given with --images, and registries are not asked",
                    self.local.len()
                ),
            }),
        }
    }

    async fn read_layout(
        &self,
        reference: &Reference,
        local: &Arc<Local>,
        layout: &Layout,
        descriptor: &Descriptor,
        layer_read: impl Fn(u64),
    ) -> Result<Resolved, ImageError> {
        let blob = |what: &str, digest: Digest, limit| {
            digest.check(what, layout.small(&Layout::blob_name(digest), limit)?)
        };
        let mut digest = descriptor.digest;
        let what = format!("manifest {digest}");
        let mut manifest = ManifestFile::parse(&what, &blob(&what, digest, MAX_MANIFEST_BYTES)?)?;
        if manifest.config.is_none() {
            digest = manifest.for_guest(&what)?.digest;
            let what = format!("manifest {digest}");
            manifest = ManifestFile::parse(&what, &blob(&what, digest, MAX_MANIFEST_BYTES)?)?;
        }
        let config = manifest
            .config
            .as_ref()
            .ok_or_else(|| ImageError::malformed(what, "has no configuration"))?
            .digest;
        let what = format!("configuration {config}");
        let config: ConfigFile = parse(&what, &blob(&what, config, MAX_CONFIG_BYTES)?)?;
        let source =
            |layer: &Descriptor| LayerSource::Local(Arc::clone(local), Layout::blob_name(layer.digest));
        let layers = pair(&manifest.layers, &config, source)?;
        self.finish(reference, Some(digest), config, layers, layer_read).await
    }

    async fn read_docker(
        &self,
        reference: &Reference,
        local: &Arc<Local>,
        archive: &Archive,
        image: &DockerImage,
        layer_read: impl Fn(u64),
    ) -> Result<Resolved, ImageError> {
        let digest = image.config_digest()?;
        let mut bytes = Vec::new();
        let read = archive.open(&image.config)?.take(MAX_CONFIG_BYTES).read_to_end(&mut bytes);
        read.map_err(ImageError::io(Path::new(&image.config)))?;
        let config: ConfigFile = parse(&image.config, &digest.check(&image.config, bytes)?)?;
        if config.rootfs.diff_ids.len() != image.layers.len() {
            return Err(ImageError::malformed(
                &image.config,
                "names another number of layers than the archive",
            ));
        }
        let layers = config.rootfs.diff_ids.iter().zip(&image.layers).map(|(diff_id, name)| Layer {
            what: format!("layer {name}"),
            blob: None,
            diff_id: *diff_id,
            source: LayerSource::Local(Arc::clone(local), name.clone()),
        });
        let layers = layers.collect();
        self.finish(reference, None, config, layers, layer_read).await
    }

    async fn read_registry(
        &self,
        reference: &Reference,
        registry: &Arc<Registry>,
        layer_read: impl Fn(u64),
    ) -> Result<Resolved, ImageError> {
        let (mut digest, bytes) = self.manifest(reference, registry).await?;
        let what = format!("manifest of {}", reference.whole());
        let mut manifest = ManifestFile::parse(&what, &bytes)?;
        if manifest.config.is_none() {
            let fitting = manifest.for_guest(&what)?.digest;
            let by_digest = reference.clone_with_digest(fitting.to_string());
            let (found, bytes) = self.manifest(&by_digest, registry).await?;
            (digest, manifest) = (found, ManifestFile::parse(&what, &bytes)?);
        }
        let config =
            manifest.config.clone().ok_or_else(|| ImageError::malformed(what, "has no configuration"))?;
        let what = format!("configuration {}", config.digest);
        let cached = self.cache.as_ref().and_then(|cache| cache.blob(config.digest));
        let bytes = match cached {
            Some(bytes) => bytes,
            None => {
                let (registry, reference, wanted) = (Arc::clone(registry), reference.clone(), config.clone());
                let bytes = blocking(move || {
                    let reader = registry.blob(&reference, &wanted)?;
                    let mut bytes = Vec::new();
                    let read = reader.take(MAX_CONFIG_BYTES).read_to_end(&mut bytes);
                    read.map_err(|error| ImageError::malformed("configuration", error)).map(|_| bytes)
                })
                .await?;
                let bytes = config.digest.check(&what, bytes)?;
                self.keep(config.digest, &bytes)?;
                bytes
            }
        };
        let config: ConfigFile = parse(&what, &bytes)?;
        let layers = pair(&manifest.layers, &config, |layer| LayerSource::Registry(layer.clone()))?;
        self.finish(reference, Some(digest), config, layers, layer_read).await
    }

    /// A manifest: what a digest names does not change, so the cache may have it.
    async fn manifest(
        &self,
        reference: &Reference,
        registry: &Arc<Registry>,
    ) -> Result<(Digest, Vec<u8>), ImageError> {
        let digest = reference.digest().map(str::parse).transpose()?;
        if let (Some(digest), Some(cache)) = (digest, &self.cache)
            && let Some(bytes) = cache.blob(digest)
        {
            return Ok((digest, bytes));
        }
        let (registry, reference) = (Arc::clone(registry), reference.clone());
        let (digest, bytes) = blocking(move || registry.manifest(&reference)).await?;
        self.keep(digest, &bytes)?;
        Ok((digest, bytes))
    }

    fn keep(&self, digest: Digest, bytes: &[u8]) -> Result<(), ImageError> {
        self.cache.as_ref().map_or(Ok(()), |cache| cache.put_blob(digest, bytes))
    }

    async fn finish(
        &self,
        reference: &Reference,
        digest: Option<Digest>,
        config: ConfigFile,
        layers: Vec<Layer>,
        layer_read: impl Fn(u64),
    ) -> Result<Resolved, ImageError> {
        let mut facts = Vec::new();
        for layer in layers {
            facts.push(self.layer(reference, layer, &layer_read).await?);
        }
        let text = |what: &str, change: &Change| match change {
            Change::Written(text) => Ok(text.clone()),
            Change::Kept | Change::Removed => Ok(String::new()),
            Change::Linked => Err(ImageError::malformed(
                reference.whole(),
                format!(
                    "{what} is a link, which is not followed; make it a file, or say runAsUser with numbers and copy it"
                ),
            )),
        };
        let passwd = text("/etc/passwd", layer::stack(facts.iter().map(|layer| &layer.passwd)))?;
        let group = text("/etc/group", layer::stack(facts.iter().map(|layer| &layer.group)))?;
        let tag = reference.tag().map(|tag| format!(":{tag}")).unwrap_or_default();
        let place = format!("{}/{}{tag}", reference.registry(), reference.repository());
        // A digest that the user wrote stays: it may name an index.
        let digest = reference.digest().map(str::to_owned).or(digest.map(|digest| digest.to_string()));
        let reference = digest.map_or(place.clone(), |digest| format!("{place}@{digest}"));
        Ok(Resolved { reference, config: config.config.unwrap_or_default(), passwd, group })
    }

    async fn layer(
        &self,
        reference: &Reference,
        layer: Layer,
        layer_read: &impl Fn(u64),
    ) -> Result<LayerFacts, ImageError> {
        let key = layer.blob.unwrap_or(layer.diff_id);
        let known = self.cache.as_ref().and_then(|cache| cache.layer(key));
        if let Some(facts) = known.filter(|facts| facts.diff_id == layer.diff_id.to_string()) {
            return Ok(facts);
        }
        let size = match &layer.source {
            LayerSource::Local(..) => 0,
            LayerSource::Registry(descriptor) => descriptor.size,
        };
        let (registry, reference) = (self.registry.clone(), reference.clone());
        let facts = blocking(move || {
            let reader = match (&layer.source, registry) {
                (LayerSource::Local(local, name), _) => local.reader(name)?,
                (LayerSource::Registry(descriptor), Some(registry)) => {
                    registry.blob(&reference, descriptor)?
                }
                (LayerSource::Registry(_), None) => {
                    return Err(ImageError::malformed(layer.what, "no registry"));
                }
            };
            LayerFacts::read(&layer.what, reader, layer.blob, layer.diff_id)
        })
        .await?;
        layer_read(size);
        if let Some(cache) = &self.cache {
            cache.put_layer(key, &facts)?;
        }
        Ok(facts)
    }
}

impl Local {
    fn open(path: &Path) -> Result<Self, ImageError> {
        let metadata = std::fs::metadata(path).map_err(ImageError::io(path))?;
        if metadata.is_dir() {
            let index = path.join("index.json");
            std::fs::metadata(&index).map_err(ImageError::io(&index))?;
            return Ok(Self::Layout(Layout::Folder(path.to_owned())));
        }
        let archive = Archive::open_file(path)?;
        match (archive.has("index.json"), archive.has("manifest.json")) {
            (true, _) => Ok(Self::Layout(Layout::Archive(archive))),
            (false, true) => Ok(Self::Docker(archive)),
            (false, false) => Err(ImageError::malformed(
                path.display().to_string(),
                "neither an OCI layout nor a docker archive: it has no index.json and no manifest.json",
            )),
        }
    }

    fn reader(&self, name: &str) -> Result<Box<dyn Read + Send>, ImageError> {
        match self {
            Self::Layout(layout) => layout.open(name),
            Self::Docker(archive) => archive.open(name),
        }
    }
}

/// Each layer with the digest that its uncompressed form must have.
fn pair(
    layers: &[Descriptor],
    config: &ConfigFile,
    source: impl Fn(&Descriptor) -> LayerSource,
) -> Result<Vec<Layer>, ImageError> {
    let diff_ids = &config.rootfs.diff_ids;
    if layers.len() != diff_ids.len() {
        return Err(ImageError::malformed(
            "configuration",
            "names another number of layers than the manifest",
        ));
    }
    let pairs = layers.iter().zip(diff_ids);
    let foreign = layers
        .iter()
        .find(|layer| layer.media_type.contains("foreign") || layer.media_type.contains("nondistributable"));
    if let Some(layer) = foreign {
        return Err(ImageError::malformed(
            format!("layer {}", layer.digest),
            "is not in the registry; such layers are not read",
        ));
    }
    Ok(pairs
        .map(|(layer, diff_id)| Layer {
            what: format!("layer {}", layer.digest),
            blob: Some(layer.digest),
            diff_id: *diff_id,
            source: source(layer),
        })
        .collect())
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ImageError> + Send + 'static,
) -> Result<T, ImageError> {
    tokio::task::spawn_blocking(work).await.map_err(|error| ImageError::malformed("reading", error))?
}
