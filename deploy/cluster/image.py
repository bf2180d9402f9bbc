#!/usr/bin/env python3
"""An OCI image of one layer, as an archive that skopeo copies: image.py OUT [--user U] [--entry JSON] FILE:PATH...

With --libraries, what the programs are linked with comes along: for programs that were not built for an image.
"""
import argparse, gzip, hashlib, io, json, os, re, subprocess, tarfile


def libraries(program):
    listed = subprocess.run(["ldd", program], capture_output=True, text=True).stdout
    return set(re.findall(r"(/lib\S+) \(", listed))


def layer(files):
    buffer, folders = io.BytesIO(), {"": None}
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        def folder(path, mode=0o755):
            if path not in folders:
                folder(os.path.dirname(path))
                folders[path] = None
                entry = tarfile.TarInfo(path)
                entry.type, entry.mode = tarfile.DIRTYPE, mode
                tar.addfile(entry)
        folder("tmp", 0o1777)
        for source, target in files:
            target = target.lstrip("/")
            folder(os.path.dirname(target))
            with open(source, "rb") as file:
                data = file.read()
            entry = tarfile.TarInfo(target)
            entry.size, entry.mode = len(data), 0o755
            tar.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("out")
    parser.add_argument("--user", default="")
    parser.add_argument("--entry", default="[]")
    parser.add_argument("--libraries", action="store_true")
    parser.add_argument("files", nargs="+")
    options = parser.parse_args()
    files = [file.split(":") for file in options.files]
    if options.libraries:
        needed = set().union(*(libraries(source) for source, _ in files))
        files += [(os.path.realpath(path), path) for path in sorted(needed)]

    blobs = {}

    def put(data):
        digest = hashlib.sha256(data).hexdigest()
        blobs[digest] = data
        return {"digest": f"sha256:{digest}", "size": len(data)}

    tar = layer(files)
    config = {
        "architecture": "amd64", "os": "linux",
        "config": {"Entrypoint": json.loads(options.entry), "Env": ["PATH=/bin"], "User": options.user},
        "rootfs": {"type": "layers", "diff_ids": ["sha256:" + hashlib.sha256(tar).hexdigest()]},
    }
    kind = "application/vnd.oci.image."
    manifest = {
        "schemaVersion": 2, "mediaType": kind + "manifest.v1+json",
        "config": {"mediaType": kind + "config.v1+json", **put(json.dumps(config).encode())},
        "layers": [{"mediaType": kind + "layer.v1.tar+gzip", **put(gzip.compress(tar, 1, mtime=0))}],
    }
    index = {
        "schemaVersion": 2,
        "manifests": [{"mediaType": kind + "manifest.v1+json", **put(json.dumps(manifest).encode())}],
    }
    with tarfile.open(options.out, "w") as out:
        def add(name, data):
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            out.addfile(entry, io.BytesIO(data))
        add("oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
        add("index.json", json.dumps(index).encode())
        for digest, data in blobs.items():
            add(f"blobs/sha256/{digest}", data)


main()
