"""The layer builder against programs that put the same tar on a disk: GNU tar, and umoci for the rules of images."""

import hashlib
import json
import os
import random
import shutil
import stat
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest
from layer_model import IMPLIED, KINDS, Entry, Model, Refused, read_index, write_tar

from layerstore._core.layer import build_layer

blake3 = pytest.importorskip("blake3").blake3

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="owners and devices need root")]


class Seen(NamedTuple):
    """What both sides can say about one path."""

    type: int
    mode: int | None  # permission bits; this and the next three are None for an implied directory
    owner: tuple[int, int] | None
    mtime_ns: int | None
    xattrs: dict[bytes, bytes] | None
    links: frozenset[str]
    content: bytes | int | None  # digest, symlink target, device number


def on_disk(root: Path) -> dict[str, Seen]:
    groups: dict[int, set[str]] = {}
    paths = [""]
    for directory, directories, files in os.walk(os.fsencode(root)):
        paths += [os.fsdecode(os.path.relpath(directory + b"/" + n, os.fsencode(root))) for n in directories + files]
    stats = {path: os.lstat(root / path) for path in paths}
    for path, status in stats.items():
        groups.setdefault(status.st_ino, set()).add(path)
    seen = {}
    for path, status in stats.items():
        full, content = root / path, None
        if stat.S_ISREG(status.st_mode):
            content = blake3(full.read_bytes()).digest()
        elif stat.S_ISLNK(status.st_mode):
            content = os.readlink(os.fsencode(full))
        elif stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode):
            content = os.major(status.st_rdev) << 32 | os.minor(status.st_rdev)
        xattrs = {
            os.fsencode(n): os.getxattr(full, n, follow_symlinks=False)
            for n in os.listxattr(full, follow_symlinks=False)
        }
        seen[path] = Seen(
            stat.S_IFMT(status.st_mode), stat.S_IMODE(status.st_mode), (status.st_uid, status.st_gid),
            status.st_mtime_ns, xattrs, frozenset(groups[status.st_ino]), content,
        )  # fmt: skip
    return seen


def in_index(tar: bytes) -> dict[str, Seen]:
    index, contents = build_layer(tar, bytes(16))
    seen = {}
    for path, record in read_index(index).items():
        content: bytes | int | None = record.target
        if stat.S_ISREG(record.mode):
            content = contents[record.content][0] if record.content is not None else blake3(b"").digest()
        elif stat.S_ISCHR(record.mode) or stat.S_ISBLK(record.mode):
            content = record.size
        described: tuple = (None, None, None, None)
        if not record.flags & IMPLIED:
            mtime_ns = record.mtime[0] * 10**9 + record.mtime[1]
            described = (stat.S_IMODE(record.mode), (record.uid, record.gid), mtime_ns, record.xattrs)
        seen[path] = Seen(stat.S_IFMT(record.mode), *described, record.links, content)
    return seen


def compare(ours: dict[str, Seen], theirs: dict[str, Seen], directory_times: bool = True) -> None:
    """`directory_times` is false for umoci, which lets a later entry in a directory move them."""
    assert ours.keys() == theirs.keys()
    for path, seen in ours.items():
        other = theirs[path]
        if stat.S_ISDIR(seen.type) and not directory_times:
            seen, other = seen._replace(mtime_ns=None), other._replace(mtime_ns=None)
        if seen.mode is None:
            other = other._replace(mode=None, owner=None, mtime_ns=None, xattrs=None)
        assert (path, seen) == (path, other)


def extract(tar: Path, root: Path) -> dict[str, Seen]:
    root.mkdir()
    flags = ["--same-owner", "--same-permissions", "--numeric-owner", "--xattrs", "--xattrs-include=*"]
    subprocess.run(["tar", "-C", root, *flags, "-xf", tar], check=True)
    return on_disk(root)


def make_tree(root: Path) -> None:
    """Something of every type, with sparse files, links, owners, times and attributes."""
    (root / "d/e").mkdir(parents=True)
    (root / "d/file").write_bytes(b"content" * 1000)
    (root / "d/empty").write_bytes(b"")
    (root / b"d/\xff\xe9 name\n".decode("utf-8", "surrogateescape")).write_bytes(b"x")
    with open(root / "sparse", "wb") as file:
        file.seek(1 << 20)
        file.write(b"end")
        file.truncate(3 << 20)
    os.link(root / "d/file", root / "link")
    os.link(root / "d/file", root / "d/e/link")
    (root / "d/symlink").symlink_to("../d/file")
    (root / "long").symlink_to("t" * 200)
    os.link(root / "d/symlink", root / "symlink too", follow_symlinks=False)
    os.mkfifo(root / "fifo")
    os.mknod(root / "char", stat.S_IFCHR | 0o660, os.makedev(5, 70000))
    os.mknod(root / "block", stat.S_IFBLK | 0o600, os.makedev(8, 1))
    (root / ("n" * 255)).mkdir()
    (root / "/".join(["p" * 120] * 3)).mkdir(parents=True)
    os.chown(root / "d/file", 1000, 3000000)
    (root / "d/file").chmod(0o4755)
    (root / "d/e").chmod(0o1777)
    os.setxattr(root / "d/file", "user.note", b"\x00\xff")
    os.setxattr(root / "d", "trusted.note", b"v" * 1000)
    os.setxattr(root / "d/file", "security.capability", bytes.fromhex("0100000200040000000000000000000000000000"))
    os.utime(root / "d/file", ns=(0, 1234567890123456789))
    os.utime(root / "d/empty", ns=(0, -5_500_000_000))


@pytest.mark.parametrize("form", ["pax", "gnu"])
def test_a_tree_is_what_gnu_tar_extracts(tmp_path: Path, form: str) -> None:
    (tmp_path / "source").mkdir()
    make_tree(tmp_path / "source")
    tar = tmp_path / "tree.tar"
    extended = ["--xattrs", "--xattrs-include=*"] if form == "pax" else []
    command = [
        "tar",
        "-C",
        tmp_path / "source",
        f"--format={form}",
        *extended,
        "-S",
        "--numeric-owner",
        "-cf",
        tar,
        ".",
    ]
    subprocess.run(command, check=True)
    ours = in_index(tar.read_bytes())
    assert len(ours) > 18
    compare(ours, extract(tar, tmp_path / "out"))


def test_debian_is_what_gnu_tar_extracts(tmp_path: Path, debian_tar: Path) -> None:
    ours = in_index(debian_tar.read_bytes())
    assert len(ours) > 5000
    try:
        compare(ours, extract(debian_tar, tmp_path / "out"))
    finally:
        shutil.rmtree(tmp_path / "out")


def write_image(layout: Path, tar: bytes) -> None:
    """An OCI image layout with one layer, tagged "t"."""

    def put(data: bytes, media_type: str) -> dict[str, object]:
        digest = hashlib.sha256(data).hexdigest()
        (layout / "blobs/sha256" / digest).write_bytes(data)
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data)}

    (layout / "blobs/sha256").mkdir(parents=True)
    layer = put(tar, "application/vnd.oci.image.layer.v1.tar")
    config = {"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": [layer["digest"]]}}
    config_descriptor = put(json.dumps(config).encode(), "application/vnd.oci.image.config.v1+json")
    manifest = {"schemaVersion": 2, "config": config_descriptor, "layers": [layer]}
    descriptor = put(json.dumps(manifest).encode(), "application/vnd.oci.image.manifest.v1+json")
    descriptor["annotations"] = {"org.opencontainers.image.ref.name": "t"}
    (layout / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [descriptor]}))


def unpack(tar: bytes, work: Path) -> dict[str, Seen]:
    work.mkdir()
    write_image(work / "image", tar)
    command = ["umoci", "raw", "unpack", "--image", f"{work / 'image'}:t", work / "root"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    seen = on_disk(work / "root")
    shutil.rmtree(work)
    return seen


@pytest.mark.peers
@pytest.mark.needs_tool("umoci")
@pytest.mark.parametrize("seed", range(30))
def test_random_layers_are_what_umoci_unpacks(tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)
    entries: list[Entry] = []
    model = Model()
    while len(entries) < 25:
        entry = random_entry(draw)
        try:
            model.add(entry)
            if any(inode.lower is not None for inode in model.tree.values()):
                raise Refused("umoci has no lower layer here")
        except Refused:
            model = Model()
            for accepted in entries:
                model.add(accepted)
            continue
        entries.append(entry)
    tar = write_tar(entries)
    compare(in_index(tar), unpack(tar, tmp_path / "umoci"), directory_times=False)


def random_entry(draw: random.Random) -> Entry:
    kind = draw.choice(KINDS)
    names = ["a", "b", "c", "d"]
    path = "/".join(draw.choices(names, k=draw.randint(1, 4)))
    link = draw.choice(["", "/", "./"]) + "/".join(draw.choices([*names, ".."], k=draw.randint(1, 3)))
    return Entry(
        kind,
        draw.choice(["", "/", "./"]) + path,
        link=link if kind in ("symlink", "hardlink") else "",
        data=b"%d" % draw.randrange(100) if kind == "file" else b"",
        mode=draw.randrange(0o10000),
        uid=draw.randrange(5),
        gid=draw.randrange(5),
        mtime=(draw.randrange(1000), draw.randrange(10**9)),
        xattrs={"user.x": b"%d" % draw.randrange(9)} if kind in ("file", "dir") and draw.random() < 0.3 else {},
        device=(1, 3) if kind == "char" else (0, 0),
    )
