"""Real images, built once and kept in a cache directory: what the tests, the demo and the benchmarks work on.

    fixtures = Fixtures()                  # in $XDG_CACHE_HOME/layerstore-fixtures; root: /var/cache/...
    fixtures.archive("debian", "zstd")     # -> Path of a docker-archive, ready for `layerstore load -i`

The images, all of a real Debian 12 root file system with python3 and pip:

    debian            one layer, as mmdebstrap made it
    debian-12         the same files in 12 layers, one per group of Debian packages
    debian-retarred   the same files again in 4 other layers, with other times and in another order
    app-a, app-b      debian + `pip install flask` + a small flask app each: they share all but the last layer

Everything is a pure function of the Debian packages and wheels that were downloaded: owners, times, order and
compression are fixed, so that a rebuilt image has the digests of the first one. What is here already is not built
again, nor by two processes at once; a file appears under its name only when it is complete.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

EPOCH = 1_750_000_000  # every time that we choose ourselves: 2025-06-15
CREATED = "2025-06-15T15:06:40Z"
PYTHON = "3.11"  # of Debian 12
DEBIAN_PACKAGES = ("python3", "python3-pip", "python3-venv")
FLASK = "flask==3.0.3"
SITE_PACKAGES = f"usr/local/lib/python{PYTHON}/dist-packages"

COMPRESSIONS = ("none", "gzip", "zstd")
GZIP_LEVEL = 6
ZSTD_LEVEL = 3
MEDIA_TYPE_SUFFIX = {"none": "", "gzip": "+gzip", "zstd": "+zstd"}

OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"

APP = '''"""A flask application of {name}: says which container it runs in, and keeps a note."""

import os
import socket
import sys

from flask import Flask, jsonify

app = Flask("{name}")


@app.get("/")
def hello():
    return jsonify(app="{name}", hostname=socket.gethostname(), pid=os.getpid())


@app.post("/note")
def note():
    with open("/srv/note.txt", "a") as out:
        out.write("noted\\n")
    return "", 204


def self_test():
    """Answer one request without a network, as containers of a demonstration have none."""
    answer = app.test_client().get("/")
    print(answer.get_data(as_text=True).strip())
    return 0 if answer.status_code == 200 else 1


if __name__ == "__main__":
    if "--self-test" in sys.argv:
        sys.exit(self_test())
    app.run(host="127.0.0.1", port=int(os.environ.get("PORT", "8000")))
'''


@dataclass(frozen=True)
class Step:
    """One layer of an image: its tar, and the history line that docker would show for it."""

    tar: Path
    created_by: str


@dataclass(frozen=True)
class Recipe:
    """An image before it is written in one of the formats."""

    name: str  # with its tag
    steps: tuple[Step, ...]
    config: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Blob:
    """A stored file with what a descriptor says of it; diff_id is that of a layer, and else the digest."""

    path: Path
    digest: str
    size: int
    diff_id: str


def default_cache() -> Path:
    if os.environ.get("XDG_CACHE_HOME"):
        return Path(os.environ["XDG_CACHE_HOME"]) / "layerstore-fixtures"
    if os.geteuid() == 0:
        return Path("/var/cache/layerstore-fixtures")
    return Path.home() / ".cache" / "layerstore-fixtures"


class Fixtures:
    """The cache. Every method returns the path of something complete, building it first when it is not there."""

    def __init__(self, cache: str | Path | None = None, log: Callable[[str], None] | None = None) -> None:
        self.cache = Path(cache) if cache else default_cache()
        self.cache.mkdir(parents=True, exist_ok=True)
        self._log = log or (lambda message: None)

    # -- layers, as uncompressed tars -------------------------------------------------------------------------------

    def debian_tar(self) -> Path:
        """The root file system, about 248 MB. Takes 20 s and the network, the first time."""
        return self._built("debian.tar", make_debian)

    def debian_split(self, count: int, prefix: str = "split", mtime_shift: int = 0) -> list[Path]:
        """The same files as `count` layers of whole Debian packages; times moved by `mtime_shift` seconds."""
        tars = [f"{i}.tar" for i in range(count)]

        def split(out: Path) -> None:
            out.mkdir()
            split_by_package(self.debian_tar(), [out / tar for tar in tars], mtime_shift)

        directory = self._built(f"{prefix}-{count}", split)
        return [directory / tar for tar in tars]

    def flask_tar(self) -> Path:
        """What `pip install flask` adds below /usr/local."""
        return self._built("flask.tar", _make_flask)

    def app_tar(self, name: str) -> Path:
        """/srv/app.py of the application `name`."""
        return self._built(f"{name}.tar", lambda out: _make_app(name, out))

    # -- images -----------------------------------------------------------------------------------------------------

    def recipe(self, image: str) -> Recipe:
        debian = "mmdebstrap --variant=minbase --include=" + ",".join(DEBIAN_PACKAGES) + " bookworm"
        if image == "debian":
            return Recipe("debian:bookworm", (Step(self.debian_tar(), debian),), {"Cmd": ["python3"]})
        if image == "debian-12":
            return _split_recipe("debian:twelve", self.debian_split(12))
        if image == "debian-retarred":
            return _split_recipe("debian:retarred", self.debian_split(4, "retarred", mtime_shift=86_400))
        if image in ("app-a", "app-b"):
            steps = (
                Step(self.debian_tar(), debian),
                Step(self.flask_tar(), f"RUN pip install {FLASK}"),
                Step(self.app_tar(image), "COPY app.py /srv/app.py"),
            )
            return Recipe(f"{image}:latest", steps, {"Cmd": ["python3", "/srv/app.py"], "WorkingDir": "/srv"})
        raise ValueError(f"no fixture image is called {image!r}; there are {', '.join(IMAGES)}")

    def archive(self, image: str, compression: str = "none", style: str = "oci") -> Path:
        """A docker-archive: `style` "oci" as docker save of 25 and later writes it, "legacy" as 20.10 does."""
        writer = {"oci": write_modern_archive, "legacy": write_legacy_archive}[style]
        return self._built(
            f"archives/{image}-{style}-{compression}.tar",
            lambda out: writer(self.recipe(image), self.layer_blobs(image, compression), compression, out),
        )

    def oci_layout(self, image: str, compression: str = "gzip") -> Path:
        """An OCI layout as a directory; its layers are hard links to the cache, so do not write into them."""
        return self._built(
            f"layouts/{image}-{compression}",
            lambda out: write_oci_layout(self.recipe(image), self.layer_blobs(image, compression), compression, out),
        )

    def oci_tar(self, image: str, compression: str = "gzip") -> Path:
        """The same layout as a tar, without docker's manifest.json."""
        return self._built(
            f"layouts/{image}-{compression}.tar", lambda out: _tar_tree(self.oci_layout(image, compression), out)
        )

    def layer_blobs(self, image: str, compression: str) -> list[Blob]:
        return [self._layer_blob(step.tar, compression) for step in self.recipe(image).steps]

    def _layer_blob(self, tar: Path, compression: str) -> Blob:
        name = str(tar.relative_to(self.cache)) + {"none": "", "gzip": ".gz", "zstd": ".zst"}[compression]
        if compression != "none":
            self._built(name, lambda out: compress(tar, out, compression))
        sums = self._built(name + ".sums", lambda out: _write_sums(self.cache / name, tar, out))
        digest, size, diff_id = sums.read_text().split()
        return Blob(self.cache / name, digest, int(size), diff_id)

    def _built(self, name: str, build: Callable[[Path], None]) -> Path:
        path = self.cache / name
        if path.exists():
            return path
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.with_name(f".{path.name}.lock")
        with lock.open("w") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            if not path.exists():  # else another process has built it meanwhile
                self._build(path, build)
            lock.unlink(missing_ok=True)
        return path

    def _build(self, path: Path, build: Callable[[Path], None]) -> None:
        self._log(f"building {path}")
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".building-") as scratch:
            made = Path(scratch) / path.name
            build(made)
            made.rename(path)


IMAGES = ("debian", "debian-12", "debian-retarred", "app-a", "app-b")


def _split_recipe(name: str, tars: list[Path]) -> Recipe:
    steps = tuple(Step(tar, f"ADD packages {i + 1} of {len(tars)}") for i, tar in enumerate(tars))
    return Recipe(name, steps, {"Cmd": ["python3"]})


# -- making layers -------------------------------------------------------------------------------------------------


def make_debian(
    out: Path,
    suite: str = "bookworm",
    packages: tuple[str, ...] = DEBIAN_PACKAGES,
    epoch: int = EPOCH,
    updates: bool = True,
) -> None:
    """A root file system as a tar; without `updates` as of the last point release."""
    options = ["--quiet", "--variant=minbase", "--include=" + ",".join(packages)]
    if not updates:
        options.append('--setup-hook=sed -i -e /-updates/d -e /-security/d "$1"/etc/apt/sources.list')
    command = ["mmdebstrap", *options, suite, str(out)]
    if shutil.which(command[0]) is None:
        raise FileNotFoundError(
            "mmdebstrap is needed to build the Debian fixture: install it, as ci/install-packages does"
        )
    subprocess.run(command, check=True, env={**os.environ, "SOURCE_DATE_EPOCH": str(epoch)}, stdin=subprocess.DEVNULL)


def _make_flask(out: Path) -> None:
    """pip's files where pip of the image would have put them. Any pip can do it, without root and without a chroot."""
    with tempfile.TemporaryDirectory(prefix="layerstore-flask-") as scratch:
        root = Path(scratch)
        site = root / SITE_PACKAGES
        pip = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "--no-compile",
            "--target",
        ]
        only = ["--only-binary=:all:", f"--python-version={PYTHON}", "--implementation=cp"]
        subprocess.run([*pip, str(site), *only, FLASK], check=True, stdin=subprocess.DEVNULL)
        (site / "bin").rename(root / "usr/local/bin")
        for script in (root / "usr/local/bin").iterdir():
            _, _, body = script.read_bytes().partition(b"\n")
            script.write_bytes(b"#!/usr/bin/python3\n" + body)
        if sys.version_info[:2] == tuple(map(int, PYTHON.split("."))):
            compiled = ["-q", "--invalidation-mode=unchecked-hash", "-s", str(root), "-p", "/", str(site)]
            subprocess.run([sys.executable, "-m", "compileall", *compiled], check=True)
        _tar_tree(root, out)


def _make_app(name: str, out: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="layerstore-app-") as scratch:
        (Path(scratch) / "srv").mkdir()
        (Path(scratch) / "srv" / "app.py").write_text(APP.format(name=name))
        _tar_tree(Path(scratch), out)


def split_by_package(tar: Path, outs: list[Path], mtime_shift: int = 0) -> None:
    """Write the entries of `tar` to several layers: a package's files together, each layer with the parents it needs.

    A hard link goes where its target went. What no package owns goes to the last layer, as in an image's own steps.
    With a shift the entries of every layer are written in the reverse order too (targets of links and parents first).
    """
    with tarfile.open(tar) as source, contextlib.ExitStack() as stack:
        members = {path_of(m): m for m in source}
        owner = _package_groups(source, members, len(outs))
        layers = [stack.enter_context(open_tar(out)) for out in outs]
        order = sorted(members, reverse=bool(mtime_shift))
        for number, layer in enumerate(layers):
            mine = [path for path in order if owner.get(path) == number]
            directories = sorted({parent for path in mine for parent in _parents(path)} & members.keys())
            links = dict.fromkeys(path for path in mine if members[path].islnk())
            for path in dict.fromkeys([*directories, *(path for path in mine if path not in links), *links]):
                member = members[path]
                member = member.replace(mtime=int(member.mtime) + mtime_shift, deep=False)
                layer.addfile(member, source.extractfile(members[path]) if member.isreg() else None)


def _package_groups(source: tarfile.TarFile, members: dict[str, tarfile.TarInfo], count: int) -> dict[str, int]:
    """Path -> number of its layer, from dpkg's lists of files."""
    info = "var/lib/dpkg/info/"
    lists = sorted(path for path in members if path.startswith(info) and path.endswith(".list"))
    owner: dict[str, int] = {}
    for i, path in enumerate(lists):
        listing = source.extractfile(members[path])
        assert listing is not None
        for line in listing.read().decode().splitlines():
            name = _merged_usr(line.strip("/."), members)
            if name in members and not members[name].isdir():
                owner.setdefault(name, i % count)
    for path, member in members.items():
        owner.setdefault(path, count - 1)
        if member.islnk():
            owner[path] = owner.setdefault(_clean(member.linkname), count - 1)
    return owner


def _merged_usr(path: str, members: dict[str, tarfile.TarInfo]) -> str:
    """dpkg lists /bin/ls where the tree has /usr/bin/ls and a symbolic link /bin."""
    first, _, rest = path.partition("/")
    if rest and first in members and members[first].issym():
        return f"{members[first].linkname}/{rest}"
    return path


def _clean(path: str) -> str:
    return "/".join(part for part in path.split("/") if part not in ("", "."))


def path_of(member: tarfile.TarInfo) -> str:
    return _clean(member.name)


def _parents(path: str) -> Iterator[str]:
    while "/" in path:
        path = path.rpartition("/")[0]
        yield path


# -- tars and compression ------------------------------------------------------------------------------------------


def open_tar(out: Path) -> tarfile.TarFile:
    return tarfile.open(out, "w", format=tarfile.PAX_FORMAT)


def _fixed(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    member.mtime = EPOCH
    member.mode = 0o755 if member.isdir() or member.mode & 0o100 else 0o644
    return member


def _tar_tree(root: Path, out: Path) -> None:
    """Everything below `root`, sorted, owned by root, at one time; a hard link becomes a file of its own."""
    with open_tar(out) as tar:
        for path in sorted(root.rglob("*")):
            member = _fixed(tar.gettarinfo(path, str(path.relative_to(root))))
            if member.islnk():
                member.type, member.linkname, member.size = tarfile.REGTYPE, "", path.stat().st_size
            if member.isreg():
                with path.open("rb") as content:
                    tar.addfile(member, content)
            else:
                tar.addfile(member)


def _add_bytes(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = _fixed(tarfile.TarInfo(name))
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def _add_file(tar: tarfile.TarFile, name: str, path: Path) -> None:
    member = _fixed(tarfile.TarInfo(name))
    member.size = path.stat().st_size
    with path.open("rb") as content:
        tar.addfile(member, content)


def _add_directory(tar: tarfile.TarFile, name: str) -> None:
    member = tarfile.TarInfo(name)
    member.type = tarfile.DIRTYPE
    tar.addfile(_fixed(member))


def _chunks(stream: IO[bytes], size: int = 1 << 20) -> Iterable[bytes]:
    return iter(lambda: stream.read(size), b"")


def compress(source: Path, out: Path, compression: str) -> None:
    """gzip at level 6 without a name or a time in its header, or zstd at level 3."""
    with source.open("rb") as plain, out.open("wb") as packed:
        if compression == "zstd":
            parameter = zstd.CompressionParameter
            options = {parameter.compression_level: ZSTD_LEVEL, parameter.checksum_flag: 1}
            compressor = zstd.ZstdCompressor(options=options)
            compressor.set_pledged_input_size(source.stat().st_size)
            for chunk in _chunks(plain):
                packed.write(compressor.compress(chunk))
            packed.write(compressor.flush())
            return
        deflate = zlib.compressobj(GZIP_LEVEL, zlib.DEFLATED, 16 + zlib.MAX_WBITS)
        for chunk in _chunks(plain):
            packed.write(deflate.compress(chunk))
        packed.write(deflate.flush())


def sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return "sha256:" + hashlib.file_digest(stream, "sha256").hexdigest()


def _write_sums(blob: Path, tar: Path, out: Path) -> None:
    out.write_text(f"{sha256(blob)} {blob.stat().st_size} {sha256(tar)}\n")


# -- image formats -------------------------------------------------------------------------------------------------


def _json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":"), sort_keys=True).encode()


def _digest(content: bytes) -> str:
    return "sha256:" + hashlib.sha256(content).hexdigest()


def _descriptor(media_type: str, content: bytes) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": _digest(content), "size": len(content)}


def image_config(recipe: Recipe, layers: list[Blob]) -> bytes:
    """The image's configuration: its sha256 is the image id, whatever the layers are compressed with."""
    path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    history = [{"created": CREATED, "created_by": step.created_by} for step in recipe.steps]
    return _json(
        {
            "architecture": "amd64",
            "os": "linux",
            "created": CREATED,
            "config": {"Env": [path], **recipe.config},
            "rootfs": {"type": "layers", "diff_ids": [layer.diff_id for layer in layers]},
            "history": history,
        }
    )


def _oci_documents(recipe: Recipe, layers: list[Blob], compression: str) -> tuple[bytes, bytes, bytes]:
    """(config, manifest, index) of an OCI layout."""
    config = image_config(recipe, layers)
    media_type = OCI_LAYER + MEDIA_TYPE_SUFFIX[compression]
    described = [{"mediaType": media_type, "digest": layer.digest, "size": layer.size} for layer in layers]
    manifest = _json(
        {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": _descriptor(OCI_CONFIG, config),
            "layers": described,
        }
    )
    reference, tag = _docker_name(recipe.name), recipe.name.partition(":")[2]
    annotations = {"io.containerd.image.name": reference, "org.opencontainers.image.ref.name": tag}
    entry = {**_descriptor(OCI_MANIFEST, manifest), "annotations": annotations}
    return config, manifest, _json({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [entry]})


def _docker_name(name: str) -> str:
    return f"docker.io/library/{name}"


def _blob_name(digest: str) -> str:
    return "blobs/sha256/" + digest.removeprefix("sha256:")


LAYOUT = _json({"imageLayoutVersion": "1.0.0"})


def write_oci_layout(recipe: Recipe, layers: list[Blob], compression: str, out: Path) -> None:
    """An OCI image layout directory (image-spec, image-layout.md)."""
    config, manifest, index = _oci_documents(recipe, layers, compression)
    (out / "blobs/sha256").mkdir(parents=True)
    for content in (config, manifest):
        (out / _blob_name(_digest(content))).write_bytes(content)
    for layer in layers:
        (out / _blob_name(layer.digest)).hardlink_to(layer.path)
    (out / "oci-layout").write_bytes(LAYOUT)
    (out / "index.json").write_bytes(index)


def write_modern_archive(recipe: Recipe, layers: list[Blob], compression: str, out: Path) -> None:
    """What docker save of 25 and later writes: an OCI layout, and docker's manifest.json that points into it."""
    config, manifest, index = _oci_documents(recipe, layers, compression)
    docker = [
        {
            "Config": _blob_name(_digest(config)),
            "RepoTags": [recipe.name],
            "Layers": [_blob_name(layer.digest) for layer in layers],
        }
    ]
    with open_tar(out) as tar:
        _add_directory(tar, "blobs")
        _add_directory(tar, "blobs/sha256")
        for layer in layers:
            _add_file(tar, _blob_name(layer.digest), layer.path)
        for content in (config, manifest):
            _add_bytes(tar, _blob_name(_digest(content)), content)
        _add_bytes(tar, "index.json", index)
        _add_bytes(tar, "manifest.json", _json(docker))
        _add_bytes(tar, "oci-layout", LAYOUT)


def write_legacy_archive(recipe: Recipe, layers: list[Blob], _compression: str, out: Path) -> None:
    """What docker save of 20.10 writes: <id>/{VERSION,json,layer.tar} a layer, <image id>.json, manifest, repositories.

    docker save writes its layers uncompressed; others compress them (the blobs say how), and docker loads that.
    """
    config = image_config(recipe, layers)
    repository, _, tag = recipe.name.partition(":")
    ids = _legacy_ids(layers)
    config_name = _digest(config).removeprefix("sha256:") + ".json"
    manifest = [{"Config": config_name, "RepoTags": [recipe.name], "Layers": [f"{i}/layer.tar" for i in ids]}]
    with open_tar(out) as tar:
        for parent, identity, layer in zip([None, *ids], ids, layers, strict=False):
            _add_directory(tar, identity)
            _add_bytes(tar, f"{identity}/VERSION", b"1.0")
            described = {"id": identity, "created": CREATED, "os": "linux", **({"parent": parent} if parent else {})}
            _add_bytes(tar, f"{identity}/json", _json(described))
            _add_file(tar, f"{identity}/layer.tar", layer.path)
        _add_bytes(tar, config_name, config)
        _add_bytes(tar, "manifest.json", _json(manifest))
        _add_bytes(tar, "repositories", _json({repository: {tag: ids[-1]}}))


def _legacy_ids(layers: list[Blob]) -> list[str]:
    """An id a layer, from its content and those below it, as docker makes them (any unique 64 hex digits would do)."""
    ids: list[str] = []
    for layer in layers:
        ids.append(hashlib.sha256(f"{ids[-1] if ids else ''} {layer.diff_id}".encode()).hexdigest())
    return ids


def main() -> None:
    parser = argparse.ArgumentParser(description="Build the fixture images and print where they are.")
    parser.add_argument("--cache", type=Path, help=f"default: {default_cache()}")
    parser.add_argument("images", nargs="*", metavar="IMAGE", default=IMAGES, help=", ".join(IMAGES))
    options = parser.parse_args()
    fixtures = Fixtures(options.cache, log=print)
    for image in options.images:
        for compression in COMPRESSIONS:
            print(fixtures.archive(image, compression))


if __name__ == "__main__":
    main()
