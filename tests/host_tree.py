"""A directory tree of the host's kernel, worked on by a child process that is in it: what a writable layer is compared
with.

As root the child is chrooted to the directory, so that links and ".." lead where they would in a container; without
root it only has it as its working directory, and paths must stay inside by themselves.
"""

import errno
import os
import pickle
import shutil
import signal
import stat
import struct
import traceback
from pathlib import Path
from typing import Any

LATER_NS = 1_500_000_000 * 10**9
"""Times from here on are those at which something was done: they are compared as "now" only."""

Dump = dict[str, tuple[Any, ...]]

_held: list[Any] = []
"""Files that `hold` opened, in the child or of a container, for `change_held`."""


class HostTree:
    """Calls functions of this module in the child; what they raise is given as `OSError` with the same number."""

    def __init__(self, root: Path) -> None:
        self.root = root
        to_child, self._to_child = os.pipe()
        self._from_child, from_child = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            os.close(self._to_child)
            os.close(self._from_child)
            _serve(str(root), to_child, from_child)
        os.close(to_child)
        os.close(from_child)

    def close(self) -> None:
        """End the child, once or more often."""
        if not self._pid:
            return
        os.close(self._to_child)
        os.close(self._from_child)
        os.kill(
            self._pid, signal.SIGKILL
        )  # later children have this one's pipe, too, so that it does not end by itself
        os.waitpid(self._pid, 0)
        self._pid = 0

    def call(self, name: str, *arguments: Any, **options: Any) -> Any:
        _send(self._to_child, (name, arguments, options))
        number, result = _receive(self._from_child)
        if number:
            raise OSError(number, os.strerror(number))
        return result

    def dump(self) -> Dump:
        found: Dump = self.call("dump")
        return found


def _send(fd: int, value: object) -> None:
    data = pickle.dumps(value)
    view = memoryview(struct.pack("<Q", len(data)) + data)
    while view:
        view = view[os.write(fd, view) :]


def _receive(fd: int) -> Any:
    head = _read(fd, 8)
    return pickle.loads(_read(fd, struct.unpack("<Q", head)[0]))


def _read(fd: int, count: int) -> bytes:
    data = b""
    while len(data) < count:
        piece = os.read(fd, count - len(data))
        if not piece:
            raise EOFError
        data += piece
    return data


def _serve(root: str, requests: int, answers: int) -> None:
    os.umask(0o022)
    os.chdir(root)
    if os.geteuid() == 0:
        os.chroot(root)
    try:
        while True:
            name, arguments, options = _receive(requests)
            try:
                answer = (0, OPERATIONS[name](*arguments, **options))
            except OSError as error:
                answer = (error.errno, None)
            _send(answers, answer)
    except EOFError:
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


# What the child does


def _create(path: str) -> None:
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))


def _pwrite(path: str, offset: int, data: bytes) -> None:
    with open(path, "r+b", 0) as file:
        file.seek(offset)
        file.write(data)


def _hold(path: str) -> None:
    fd = os.open(path, os.O_RDWR | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.ENXIO, "no regular file")
    _held.append(os.fdopen(fd, "r+b", 0))


def _change_held(data: bytes) -> None:
    with _held.pop() as file:
        file.write(data) if data else file.truncate(0)


def _read_file(path: str) -> bytes:
    with open(path, "rb", 0) as file:
        return file.read()


def _rmtree(path: str) -> None:
    if not stat.S_ISDIR(os.lstat(path).st_mode):
        raise NotADirectoryError(20, "not a directory")
    shutil.rmtree(path)


def facts(status: os.stat_result) -> tuple[Any, ...]:
    """What of a status is the same in a container and on the host."""
    is_dir = stat.S_ISDIR(status.st_mode)
    is_device = stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode)
    return (
        status.st_mode,
        status.st_uid if os.geteuid() == 0 else 0,
        status.st_gid if os.geteuid() == 0 else 0,
        0 if is_dir else status.st_nlink,
        0 if is_dir else status.st_size,
        status.st_rdev if is_device else 0,
        "now" if status.st_mtime_ns >= LATER_NS else status.st_mtime_ns,
    )


def in_container(container: Any, name: str, arguments: Any, options: Any) -> Any:
    """Do in a container of the extent driver what `HostTree.call` does."""
    if name == "create":
        return container.open(arguments[0], "xb", 0).close()
    if name == "pwrite":
        with container.open(arguments[0], "r+b", 0) as file:
            file.seek(arguments[1])
            file.write(arguments[2])
        return None
    if name == "hold":
        return _held.append(container.open(arguments[0], "r+b", 0))
    if name == "change_held":
        return _change_held(*arguments)
    if name == "stat":
        return facts(container.stat(arguments[0], follow_symlinks=arguments[1]))
    return getattr(container, name)(*arguments, **options)


def dump(files: Any = os, read: Any = _read_file, top: str = ".") -> Dump:
    """Everything in a tree, by path; `files` has the functions of `os`. Files with several names are told by the
    first."""
    found: Dump = {}
    first: dict[int, str] = {}
    waiting = [top]
    while waiting:
        path = waiting.pop()
        status = files.lstat(path)
        told: list[Any] = [facts(status)]
        names = files.listxattr(path, follow_symlinks=False)
        told.append({name: files.getxattr(path, name, follow_symlinks=False) for name in sorted(names)})
        if stat.S_ISDIR(status.st_mode):
            waiting += [f"{path}/{name}" for name in sorted(files.listdir(path), reverse=True)]
        elif stat.S_ISLNK(status.st_mode):
            told.append(files.readlink(path))
        elif stat.S_ISREG(status.st_mode):
            told.append(read(path))
        if not stat.S_ISDIR(status.st_mode):
            told.append(first.setdefault(status.st_ino, path))
        found[path] = tuple(told)
    return found


def _stat(path: str, follow_symlinks: bool) -> tuple[Any, ...]:
    return facts(os.stat(path, follow_symlinks=follow_symlinks))


OPERATIONS = {
    **{name: getattr(os, name) for name in ("mkdir", "rmdir", "unlink", "rename", "link", "symlink", "chmod", "chown")},
    **{name: getattr(os, name) for name in ("utime", "truncate", "setxattr", "removexattr", "readlink", "mknod")},
    "listdir": lambda path: sorted(os.listdir(path), key=os.fsencode),
    "create": _create,
    "pwrite": _pwrite,
    "hold": _hold,
    "change_held": _change_held,
    "read_bytes": _read_file,
    "rmtree": _rmtree,
    "stat": _stat,
    "dump": dump,
}


# Trees of the host as tests make and compare them


def small_tree(top: Path) -> Path:
    """A new tree with two names of one file, attributes, and little else."""
    (top / "d" / "empty").mkdir(parents=True)
    (top / "d" / "file").write_bytes(b"data" * 100_000)
    os.link(top / "d" / "file", top / "same")
    (top / "link").symlink_to("d/file")
    os.mkfifo(top / "fifo", 0o640)
    os.setxattr(top / "d" / "file", "user.x", b"1")
    os.utime(top / "d", ns=(5, 5))
    os.chmod(top / "d", 0o2750)
    return top


def below(top: Path) -> Dump:
    """What is in a tree, by the path in it."""
    return {path.removeprefix(str(top)): told[:-1] for path, told in dump(top=str(top)).items()}


def acl(*entries: tuple[int, int, int]) -> bytes:
    """A POSIX ACL as Linux keeps it in an xattr (posix_acl_xattr.h): tag, permissions, id of each."""
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)
