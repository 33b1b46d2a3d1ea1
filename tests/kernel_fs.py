"""Detached mounts of EROFS and overlayfs for tests: a mount is a descriptor, and ends when that is closed."""

import ctypes
import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long

_FSOPEN, _FSCONFIG, _FSMOUNT = 430, 431, 432  # the same number on every architecture
_SET_FLAG, _SET_STRING, _SET_FD, _CREATE = 0, 1, 5, 6
_CLOEXEC = 1


def _syscall(what: str, number: int, *arguments: object, context: int = -1) -> int:
    result = _libc.syscall(number, *arguments)
    if result < 0:
        errno = ctypes.get_errno()
        log = b""
        if context >= 0:
            try:
                log = os.read(context, 4096)
            except OSError:
                log = b"no message"
        raise OSError(errno, f"{what}: {os.strerror(errno)} [{log.decode(errors='replace').strip()}]")
    return int(result)


@contextmanager
def _mounted(file_system: str, options: Iterable[tuple[str, str | int | None]]) -> Iterator[int]:
    with ExitStack() as stack:
        context = _syscall("fsopen", _FSOPEN, file_system.encode(), _CLOEXEC)
        stack.callback(os.close, context)
        for key, value in options:
            command = {str: _SET_STRING, int: _SET_FD}.get(type(value), _SET_FLAG)
            text = value.encode() if isinstance(value, str) else None
            fd = value if isinstance(value, int) else 0
            _syscall(f"{key}={value}", _FSCONFIG, context, command, key.encode(), text, fd, context=context)
        _syscall(f"create {file_system}", _FSCONFIG, context, _CREATE, None, None, 0, context=context)
        mount = _syscall("fsmount", _FSMOUNT, context, _CLOEXEC, 0, context=context)
        stack.callback(os.close, mount)
        yield mount


@contextmanager
def erofs(image: Path, device: Path | None = None) -> Iterator[int]:
    """The descriptor of a mount of an image file."""
    options: list[tuple[str, str | int | None]] = [("source", str(image)), ("ro", None)]
    if device:
        options.append(("device", str(device)))
    with _mounted("erofs", options) as mount:
        yield mount


@contextmanager
def overlay(lower: int, data: Iterable[int], upper: Path, work: Path) -> Iterator[int]:
    """The descriptor of a mount of an overlay with metacopy; layers are descriptors."""
    options: list[tuple[str, str | int | None]] = [("source", "layerstore-test"), ("metacopy", "on")]
    options += [("lowerdir+", lower), *(("datadir+", fd) for fd in data)]
    options += [("upperdir", str(upper)), ("workdir", str(work))]
    with _mounted("overlay", options) as mount:
        yield mount


def path_of(mount: int, path: bytes) -> bytes:
    """A path into a mount, for calls that take no directory descriptor (those for xattrs)."""
    return b"/proc/self/fd/%d/%s" % (mount, path)
