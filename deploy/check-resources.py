#!/usr/bin/env python3
"""Checks what `contrast` prints for Kubernetes.

Against the API's published schemas (strict: no unknown field) of the oldest and newest versions we know, with kubectl's
own decoder, and that Helm makes of the chart exactly what `contrast` prints.

Usage: check-resources.py CONTRAST_BINARY. Needs kubernetes-validate, helm-python-sdk and kubectl.
"""

import hashlib, json, pathlib, subprocess, sys, tempfile

import helm_python, kubernetes_validate, yaml

CHART = pathlib.Path(__file__).parent / "chart"
VERSIONS = ["1.25", "1.31", "1.37"]
BUNDLE = {"files": [
    {"url": f"https://releases.example/{name}", "path": f"/opt/edgeless/@@runtimeName@@/{name}",
     "integrity": "sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=", "executable": name.startswith("bin/")}
    for name in ("bin/containerd-shim-contrast-cc-v2", "bin/qemu-system-x86_64", "share/OVMF.fd", "share/kata-kernel", "share/rootfs.img")
]}


def image(name):
    return f"registry.example/{name}@sha256:{hashlib.sha256(name.encode()).hexdigest()}"


def contrast(*arguments):
    return subprocess.run([sys.argv[1], *arguments], check=True, stdout=subprocess.PIPE, text=True).stdout


def check(name, text):
    resources = list(yaml.safe_load_all(text))
    for resource in resources:
        for version in VERSIONS:
            kubernetes_validate.validate(resource, version, strict=True)
    # kubectl decodes into its own types; `--local` asks no server.
    decoded = subprocess.run(
        ["kubectl", "label", "--local", "--dry-run=client", "-f", "-", "checked=yes", "-o", "json"],
        input=text, check=True, stdout=subprocess.PIPE, text=True).stdout
    assert decoded.count('"checked": "yes"') >= len(resources), name
    print(f"{name}: {len(resources)} resources are valid on Kubernetes {', '.join(VERSIONS)}")
    return resources


def without_namespace(resources):
    """Helm makes the namespace of a release itself."""
    return [resource for resource in resources if resource["kind"] != "Namespace"]


def render(values, namespace):
    with helm_python.Chart.load(CHART) as chart:
        files = chart.render(values=values, name="contrast", namespace=namespace)
    documents = [document for name, text in files.items() if not name.endswith("NOTES.txt") for document in yaml.safe_load_all(text) if document]
    return sorted(documents, key=lambda document: (document["kind"], document["metadata"]["name"]))


def main():
    with tempfile.NamedTemporaryFile("w", suffix=".json") as bundle:
        json.dump(BUNDLE, bundle)
        bundle.flush()
        runtime = ["runtime", "resources", "Metal-QEMU-SNP", "--bundle", bundle.name, "--image", image("installer"),
                   "--node-selector", "pool=confidential"]
        coordinator = ["coordinator", "--image", image("coordinator"), "--runtime", "contrast-cc-metal-qemu-snp-01234567",
                       "--replicas", "3", "--namespace", "shop", "--service-type", "LoadBalancer", "--env", "A=\"b\": {}"]
        alone = ["coordinator", "--image", image("coordinator"), "--runtime", "contrast-cc-metal-qemu-snp-01234567", "--ephemeral"]
        coordinator += ["--etcd-endpoints", "https://etcd-0:2379,https://etcd-1:2379", "--etcd-tls-secret", "etcd-tls",
                        "--etcd-user-secret", "etcd-user", "--storage", "10Gi", "--storage-class", "fast", "--discovery", "endpoints"]
        cases = [("runtime", runtime, "kube-system"), ("runtime --uninstall", [*runtime, "--uninstall"], "kube-system"),
                 ("coordinator with etcd and claims", coordinator, "shop"), ("coordinator alone", alone, "default")]
        for name, arguments, namespace in cases:
            resources = check(name, contrast(*arguments))
            values = yaml.safe_load(contrast(*arguments, "--form", "helm-values"))
            wanted = sorted(without_namespace(resources), key=lambda resource: (resource["kind"], resource["metadata"]["name"]))
            assert render(values, namespace) == wanted, f"Helm makes something else of {name}"
            print(f"{name}: Helm makes the same of deploy/chart")
    report = helm_python.lint(CHART)
    assert not report["errors"], report
    assert render({}, "default") == [], "by default the chart installs nothing"


main()
