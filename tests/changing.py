"""Random changes of a mounted container's tree, and images to make them in."""

import os
import random
import shutil
import stat
from pathlib import Path

from layer_model import Entry

NAMES = ("a", "b", "c", "dé", "e")
CAPABILITY = b"\x01\x00\x00\x02\x00\x04\x00\x00" + bytes(12)
"""cap_net_raw+ep, as security.capability holds it."""


def files_below(directory: str, depth: int, draw: random.Random) -> list[Entry]:
    """A directory of files, links and directories."""
    entries = [Entry("dir", directory, mode=0o755, mtime=(1000, 0))] if directory else []
    for name in NAMES:
        path = f"{directory}/{name}".lstrip("/")
        kind = draw.choice(["dir", "dir", "file", "file", "symlink", ""] if depth else ["file", "file", "symlink", ""])
        if kind == "dir":
            entries += files_below(path, depth - 1, draw)
        elif kind == "file":
            entries.append(Entry("file", path, data=draw.randbytes(draw.choice([0, 10, 70_000])), mtime=(2000, 0)))
        elif kind:
            entries.append(Entry("symlink", path, link="a", mtime=(3000, 0)))
    return entries


class Operations:
    """One random change of a tree at a time. One that cannot be made is passed over."""

    def __init__(self, root: Path, draw: random.Random) -> None:
        self.root = root
        self.draw = draw
        self.done: list[str] = []

    def some(self, kind: str) -> Path:
        """A "dir", a "file" (anything else), or a "regular" file: nothing else may be opened."""
        found = [Path(d, n) for d, ds, fs in os.walk(self.root) for n in sorted(ds if kind == "dir" else fs)]
        if kind == "regular":
            found = [path for path in found if stat.S_ISREG(path.lstat().st_mode)]
        return self.draw.choice(sorted(found)) if found else self.root / "nothing"

    def new(self) -> Path:
        parent = self.root if self.draw.random() < 0.3 else self.some("dir")
        return parent / self.draw.choice([*NAMES, "new", "newer", "a-", "a.b"])

    def step(self) -> None:
        name = self.draw.choice([name for name in dir(self) if name.startswith("do_")])
        try:
            getattr(self, name)()
        except OSError:
            return
        self.done.append(name)

    # What is in a file

    def do_create(self) -> None:
        with open(self.new(), "xb") as file:
            file.write(b"new")

    def do_create_large(self) -> None:
        with open(self.new(), "xb") as file:
            file.write(bytes(range(256)) * self.draw.choice([511, 512, 513, 5000]))

    def do_create_empty(self) -> None:
        with open(self.new(), "xb"):
            pass

    def do_write(self) -> None:
        with open(self.some("regular"), "ab") as file:
            file.write(b"more")

    def do_open_for_writing(self) -> None:
        os.close(os.open(self.some("regular"), os.O_RDWR))

    def do_truncate(self) -> None:
        os.truncate(self.some("regular"), self.draw.choice([0, 5, 200_000]))

    def do_replace(self) -> None:
        (self.root / "temporary").write_bytes(b"other")
        (self.root / "temporary").rename(self.some("file"))

    # Attributes

    def do_chmod(self) -> None:
        self.some(self.draw.choice(["file", "dir"])).chmod(self.draw.choice([0o700, 0o4711]))

    def do_chmod_and_back(self) -> None:
        path = self.some(self.draw.choice(["file", "dir"]))
        mode = stat.S_IMODE(path.stat().st_mode)
        path.chmod(0o711)
        path.chmod(mode)

    def do_chown(self) -> None:
        os.chown(self.some("file"), 5, 6, follow_symlinks=False)

    def do_chown_and_back(self) -> None:
        path = self.some("file")
        status = path.lstat()
        os.chown(path, 9, 9, follow_symlinks=False)
        os.chown(path, status.st_uid, status.st_gid, follow_symlinks=False)
        if not path.is_symlink():
            path.chmod(stat.S_IMODE(status.st_mode))

    def do_touch(self) -> None:
        path = self.some(self.draw.choice(["file", "dir"]))
        os.utime(path, ns=(0, self.draw.choice([-1, 10**18 + 1, 1000 * 10**9])), follow_symlinks=False)

    def do_xattr(self) -> None:
        name = self.draw.choice(["user.own", "trusted.own", "trusted.overlay.own", "security.capability"])
        value = CAPABILITY if name == "security.capability" else b"%d\x00=\xff" % self.draw.randrange(3)
        os.setxattr(self.some(self.draw.choice(["file", "dir"])), name, value, follow_symlinks=False)

    # Names

    def do_unlink(self) -> None:
        self.some("file").unlink()

    def do_remove_tree(self) -> None:
        shutil.rmtree(self.some("dir"))

    def do_mkdir(self) -> None:
        self.new().mkdir()

    def do_rename_file(self) -> None:
        self.some("file").rename(self.new())

    def do_rename_file_and_back(self) -> None:
        path = self.some("file")
        path.rename(self.root / "elsewhere")
        (self.root / "elsewhere").rename(path)

    def do_rename_directory(self) -> None:
        self.some("dir").rename(self.new())

    def do_symlink(self) -> None:
        self.new().symlink_to("somewhere")

    def do_hard_link(self) -> None:
        os.link(self.some("file"), self.new(), follow_symlinks=False)

    def do_directory_over_file(self) -> None:
        path = self.some("file")
        path.unlink()
        path.mkdir()
        (path / "inside").write_bytes(b"x")

    def do_file_over_directory(self) -> None:
        path = self.some("dir")
        shutil.rmtree(path)
        path.write_bytes(b"file now")

    def do_empty_and_fill(self) -> None:
        """Leaves an opaque directory."""
        path = self.some("dir")
        names = os.listdir(path)
        shutil.rmtree(path)
        path.mkdir()
        for name in names[::2]:
            (path / name).mkdir()
            (path / name / "a").write_bytes(b"again")

    def do_there_and_back(self) -> None:
        path = self.some("dir")
        path.rename(self.root / "elsewhere")
        (self.root / "elsewhere").rename(path)

    def do_exchange(self) -> None:
        one, two = self.some("dir"), self.some("dir")
        one.rename(self.root / "elsewhere")
        try:
            two.rename(one)
            (self.root / "elsewhere").rename(two)
        except OSError:
            (self.root / "elsewhere").rename(one)

    def do_move_over_what_was_deleted(self) -> None:
        one, two = self.some("dir"), self.some("dir")
        if two not in one.parents:
            shutil.rmtree(two)
            one.rename(two)

    def do_move_out_and_into_a_new_one(self) -> None:
        """A directory of the image inside one that is not, at a path that the image has."""
        path = self.some("dir")
        names = [name for name in os.listdir(path) if (path / name).is_dir() and not (path / name).is_symlink()]
        path.rename(self.root / "elsewhere")
        path.mkdir()
        for name in names[:1]:
            (self.root / "elsewhere" / name).rename(path / name)

    # Other types

    def do_fifo(self) -> None:
        os.mkfifo(self.new())

    def do_device(self) -> None:
        os.mknod(self.new(), self.draw.choice([stat.S_IFCHR, stat.S_IFBLK]) | 0o600, os.makedev(240, 300_000))

    def do_socket(self) -> None:
        path = self.new()
        if self.draw.random() < 0.5:
            path = self.some("file")
            path.unlink()
        os.mknod(path, stat.S_IFSOCK | 0o755)
