//! Images built here, read from every place they can be in. The registry is Debian's `docker-registry`
//! on loopback.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod build;
mod registry;

use std::{fs, path::Path};

use build::Image;
use oci_image::{ImageError, ImageStore, RegistryOptions, Resolved};
use registry::Registry;

const NAME: &str = "registry.example/shop/web:1.4";

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap().block_on(future)
}

fn resolve(store: &ImageStore, reference: &str) -> Result<Resolved, ImageError> {
    block_on(store.resolve(reference, |_| {}))
}

fn local(path: &Path) -> ImageStore {
    ImageStore::new(&[path], None, None).unwrap()
}

fn expect_web(found: &Resolved) {
    assert_eq!(found.config.user, "app");
    assert_eq!(found.config.entrypoint, ["/bin/server"]);
    assert_eq!(found.config.env, ["LANG=C"]);
    assert_eq!(found.config.volumes.keys().collect::<Vec<_>>(), ["/data"]);
    // The second layer's file wins; what it deleted is gone.
    assert!(found.passwd.contains("app:x:1000"), "{}", found.passwd);
    assert_eq!(found.group, "");
}

#[test]
fn a_layout_folder_and_a_tar_of_it_give_the_image_pinned_by_digest() {
    let folder = tempfile::tempdir().unwrap();
    let image = Image::web();
    image.write_layout(folder.path(), NAME);
    let found = resolve(&local(folder.path()), NAME).unwrap();
    expect_web(&found);
    assert_eq!(found.reference, format!("{NAME}@{}", image.manifest_digest()));

    // The pinned reference finds the same, and so does a tar of the folder.
    assert_eq!(resolve(&local(folder.path()), &found.reference).unwrap(), found);
    let archive = folder.path().join("layout.tar");
    build::tar_folder(folder.path(), &archive);
    assert_eq!(resolve(&local(&archive), NAME).unwrap(), found);
}

#[test]
fn a_docker_archive_has_no_manifest_digest_and_says_so_by_its_reference() {
    let folder = tempfile::tempdir().unwrap();
    let archive = folder.path().join("web.tar");
    Image::web().write_docker_archive(&archive, NAME);
    let found = resolve(&local(&archive), NAME).unwrap();
    expect_web(&found);
    assert_eq!(found.reference, NAME);
}

#[test]
fn changed_content_is_refused_whatever_was_changed() {
    let folder = tempfile::tempdir().unwrap();
    let image = Image::web();
    image.write_layout(folder.path(), NAME);
    for digest in image.blobs() {
        let path = folder.path().join("blobs/sha256").join(&digest[7..]);
        let original = fs::read(&path).unwrap();
        let mut changed = original.clone();
        let middle = changed.len() / 2;
        changed[middle] ^= 1;
        fs::write(&path, &changed).unwrap();
        let refused = resolve(&local(folder.path()), NAME);
        assert!(
            matches!(refused, Err(ImageError::Digest { .. } | ImageError::Malformed { .. })),
            "{digest}: {refused:?}"
        );
        fs::write(&path, &original).unwrap();
    }
    resolve(&local(folder.path()), NAME).unwrap();

    // A layer that is right in transport and not what the configuration names.
    let mut other = Image::web();
    other.diff_ids.swap(0, 1);
    let folder = tempfile::tempdir().unwrap();
    other.write_layout(folder.path(), NAME);
    let refused = resolve(&local(folder.path()), NAME).unwrap_err().to_string();
    assert!(refused.contains("uncompressed") && refused.contains("expected sha256:"), "{refused}");
}

#[test]
fn what_is_not_there_or_not_an_image_is_named() {
    let folder = tempfile::tempdir().unwrap();
    Image::web().write_layout(folder.path(), NAME);
    let missing = resolve(&local(folder.path()), "registry.example/other:1").unwrap_err().to_string();
    assert!(missing.contains("registry.example/other:1") && missing.contains("--images"), "{missing}");
    let wrong = resolve(&local(folder.path()), "Not A Reference").unwrap_err().to_string();
    assert!(wrong.contains("\"Not A Reference\""), "{wrong}");
    let nothing = ImageStore::new(&[folder.path().join("nowhere")], None, None).err().unwrap().to_string();
    assert!(nothing.contains("nowhere"), "{nothing}");
}

#[test]
fn a_number_in_an_address_is_no_status() {
    let options = RegistryOptions { plain_http: vec!["127.0.0.1:4401".into()], ..RegistryOptions::default() };
    let none: [&str; 0] = [];
    let store = ImageStore::new(&none, Some(&options), None).unwrap();
    let unreachable = resolve(&store, "127.0.0.1:4401/shop/web:1.4").unwrap_err().to_string();
    assert!(
        unreachable.contains("Connection refused") && !unreachable.contains("docker login"),
        "{unreachable}"
    );
}

#[test]
fn a_registry_gives_the_same_image_and_the_cache_spares_it() {
    let registry = Registry::start(None);
    let image = Image::web();
    let name = format!("{}/shop/web", registry.host());
    let digest = registry.push(&image, "shop/web", "1.4");
    let cache = tempfile::tempdir().unwrap();
    let options = RegistryOptions { plain_http: vec![registry.host()], ..RegistryOptions::default() };
    let none: [&str; 0] = [];
    let store = || ImageStore::new(&none, Some(&options), Some(cache.path())).unwrap();
    let found = resolve(&store(), &format!("{name}:1.4")).unwrap();
    expect_web(&found);
    assert_eq!(found.reference, format!("{name}:1.4@{digest}"));

    // An index of several platforms: the guest's is taken, and pinned.
    registry.push_index(&image, "shop/web", "many");
    let many = resolve(&store(), &format!("{name}:many")).unwrap();
    assert_eq!(many.reference, format!("{name}:many@{digest}"));

    // A mirror stands in for a registry that cannot be reached.
    let mirrored =
        RegistryOptions { mirrors: vec![("nowhere.invalid".into(), registry.host())], ..options.clone() };
    let through = ImageStore::new(&none, Some(&mirrored), None).unwrap();
    expect_web(&resolve(&through, "nowhere.invalid/shop/web:1.4").unwrap());

    let unknown = resolve(&store(), &format!("{name}:2")).unwrap_err().to_string();
    assert!(unknown.contains(&format!("{name}:2")) && unknown.contains("check the name"), "{unknown}");

    drop(registry);
    assert_eq!(resolve(&store(), &found.reference).unwrap(), found, "a pinned image needs no registry");
    let gone = resolve(&store(), &format!("{name}:1.4")).unwrap_err().to_string();
    assert!(gone.starts_with("registry 127.0.0.1:"), "{gone}");
}

#[test]
fn a_registry_with_its_own_ca_is_believed_only_with_that_ca() {
    let plain = Registry::start(None);
    plain.push(&Image::web(), "shop/web", "1.4");
    let (registry, root) = plain.behind_tls();
    let (_, other) = Registry::start(None).behind_tls();
    let name = format!("{}/shop/web:1.4", registry.host());
    let folder = tempfile::tempdir().unwrap();
    let with = |pem: &str| {
        let path = folder.path().join("ca.pem");
        fs::write(&path, pem).unwrap();
        let options = RegistryOptions { root_certificates: vec![path], ..RegistryOptions::default() };
        let none: [&str; 0] = [];
        resolve(&ImageStore::new(&none, Some(&options), None)?, &name)
    };
    expect_web(&with(&root).unwrap());
    let refused = with(&other).unwrap_err().to_string();
    assert!(refused.contains("--registry-ca"), "{refused}");
    let none: [&str; 0] = [];
    let store = ImageStore::new(&none, Some(&RegistryOptions::default()), None).unwrap();
    let refused = resolve(&store, &name).unwrap_err().to_string();
    assert!(refused.contains("certificate") && refused.contains("--registry-ca"), "{refused}");
    assert!(with("no certificate").is_err());
}

#[test]
fn credentials_come_from_dockers_configuration() {
    let folder = tempfile::tempdir().unwrap();
    let registry = Registry::start(Some(folder.path()));
    registry.push(&Image::web(), "shop/web", "1.4");
    let name = format!("{}/shop/web:1.4", registry.host());
    // The configuration is found by the environment, which one process has one of: another process looks.
    let run = |config: &str| {
        fs::write(folder.path().join("config.json"), config).unwrap();
        let program = std::env::current_exe().unwrap();
        let output = std::process::Command::new(program)
            .args(["--ignored", "--exact", "resolve_for_another_process", "--nocapture"])
            .env("DOCKER_CONFIG", folder.path())
            .env("IMAGE", &name)
            .env("PATH", format!("{}:{}", folder.path().display(), std::env::var("PATH").unwrap()))
            .output()
            .unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let auth = registry::basic();
    let known = run(&format!(r#"{{"auths":{{"{}":{{"auth":"{auth}"}}}}}}"#, registry.host()));
    assert!(known.contains("RESOLVED"), "{known}");
    registry::write_helper(folder.path());
    let helped = run(r#"{"credsStore":"test"}"#);
    assert!(helped.contains("RESOLVED"), "{helped}");
    let refused = run("{}");
    assert!(refused.contains("docker login"), "{refused}");
}

#[test]
#[ignore = "the other process of credentials_come_from_dockers_configuration"]
fn resolve_for_another_process() {
    let Ok(name) = std::env::var("IMAGE") else { return };
    let host = name.split('/').next().unwrap().to_owned();
    let options = RegistryOptions { plain_http: vec![host], ..RegistryOptions::default() };
    let none: [&str; 0] = [];
    match resolve(&ImageStore::new(&none, Some(&options), None).unwrap(), &name) {
        Ok(_) => println!("RESOLVED"),
        Err(error) => println!("REFUSED {error}"),
    }
}
