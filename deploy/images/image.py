"""Writes a folder as an OCI image archive for `ctr images import`, `docker load` and `skopeo`.
Needs neither a registry nor a container engine.

usage: image.py ROOT OUT.tar NAME:TAG [--entrypoint WORD…] [--user UID:GID]
                [--architecture amd64|arm64]

The same folder gives the same archive, byte for byte.
"""

import argparse
import hashlib
import io
import json
import os
import tarfile


def digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def full_name(name: str) -> str:
    """The full name for container runtimes, which default to the registry docker.io."""
    host, slash, _ = name.partition("/")
    if slash and ("." in host or ":" in host or host == "localhost"):
        return name
    return f"docker.io/{name}" if slash else f"docker.io/library/{name}"


def as_root(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.mtime = member.uid = member.gid = 0
    member.uname = member.gname = ""
    # Writable by the owner only and readable by all, regardless of the builder's umask.
    executable = member.isdir() or member.mode & 0o100
    member.mode = 0o755 if executable else 0o644
    return member


def layer_of(root: str) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(
        fileobj=packed, mode="w", format=tarfile.GNU_FORMAT, dereference=False
    ) as tar:
        for entry in sorted(os.listdir(root)):
            tar.add(os.path.join(root, entry), arcname=entry, filter=as_root)
    return packed.getvalue()


def archive(
    root: str, name: str, entrypoint: list[str], user: str, architecture: str
) -> dict[str, bytes]:
    """The files of the archive: path to content."""
    blobs: dict[str, bytes] = {}

    def blob(data: bytes, media: str, **more: object) -> dict[str, object]:
        blobs[f"blobs/sha256/{digest(data)[7:]}"] = data
        return {
            "mediaType": f"application/vnd.oci.image.{media}",
            "digest": digest(data),
            "size": len(data),
            **more,
        }

    layer = blob(layer_of(root), "layer.v1.tar")
    run = {"Env": ["PATH=/usr/local/bin:/usr/bin:/bin"]}
    if entrypoint:
        run["Entrypoint"] = entrypoint
    if user:
        run["User"] = user
    config = blob(
        json.dumps(
            {
                "architecture": architecture,
                "os": "linux",
                "config": run,
                "rootfs": {"type": "layers", "diff_ids": [layer["digest"]]},
            }
        ).encode(),
        "config.v1+json",
    )
    manifest = blob(
        json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "config": config,
                "layers": [layer],
            }
        ).encode(),
        "manifest.v1+json",
        annotations={
            "io.containerd.image.name": full_name(name),
            "org.opencontainers.image.ref.name": name.rsplit(":", 1)[1],
        },
    )
    index = json.dumps({"schemaVersion": 2, "manifests": [manifest]}).encode()
    return {"oci-layout": b'{"imageLayoutVersion":"1.0.0"}', "index.json": index, **blobs}


def main() -> None:
    parser = argparse.ArgumentParser(description="Writes a folder as an OCI image archive.")
    parser.add_argument("root")
    parser.add_argument("out")
    parser.add_argument("name")
    parser.add_argument("--entrypoint", nargs="+", default=[])
    parser.add_argument("--user", default="")
    parser.add_argument("--architecture", default="amd64", choices=["amd64", "arm64"])
    args = parser.parse_args()
    if ":" not in args.name.rsplit("/", 1)[-1]:
        parser.error(f"{args.name}: the name needs a tag")
    with tarfile.open(args.out, "w") as tar:
        for path, content in archive(
            args.root, args.name, args.entrypoint, args.user, args.architecture
        ).items():
            member = tarfile.TarInfo(path)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


if __name__ == "__main__":
    main()
