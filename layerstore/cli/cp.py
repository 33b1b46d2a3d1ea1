"""Copy files and trees between a container and the host. One of the two is CONTAINER:PATH.

A directory that is there gets what is copied in it, under its own name; with "/." after the source, what is in that.
With "-" for the host, a tar is written to standard output, or read from standard input into a directory. What is
copied belongs to root in the container and to the caller on the host, unless with --archive; times and permissions
stay, and symbolic links are copied as links. Without --archive, nothing that a program of the container made gives it
rights on the host: files come without set-user-ID, set-group-ID and sticky bits, capabilities and other security.*
attributes, and devices do not come, which is an error once all else was copied."""

from __future__ import annotations

import errno
import os
import posixpath
import stat
import sys

from layerstore.cli.export import standard_output, write
from layerstore.errors import InvalidInput
from layerstore.types import decode_path

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from layerstore.api import Container, Store

_MAX_LINKS = 40


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SOURCE", help="CONTAINER:PATH, or a path of the host, or -")
    parser.add_argument("target", metavar="TARGET", help="a path of the host, or -, or CONTAINER:PATH")
    parser.add_argument(
        "-a", "--archive", action="store_true", help="keep owners, and to the host set-user-ID, capabilities, devices"
    )
    parser.add_argument("-L", "--follow-link", action="store_true", help="copy what a link SOURCE leads to")


def run(store: Store, args: argparse.Namespace) -> int:
    source, target = _parsed(args.source), _parsed(args.target)
    if (source[0] is None) == (target[0] is None):
        raise InvalidInput("one of the two is CONTAINER:PATH, and the other a path of the host or -")
    if source[0] is not None:
        _out(store.container(source[0]), source[1], target[1], args)
    else:
        _in(store.container(str(target[0])), source[1], target[1], args)
    return 0


def _parsed(text: str) -> tuple[str | None, str]:
    """Container, None for the host, and path. As for docker, what begins with "/" or "." is of the host."""
    container, colon, path = text.partition(":")
    if not colon or text.startswith(("/", ".")) or "/" in container:
        return None, text
    return container, path


def _out(container: Container, source: str, target: str, args: argparse.Namespace) -> None:
    is_contents, name = _name(source)
    path, is_dir = _place(container, source)
    if is_dir is None or (source.endswith(("/", "/.")) and not is_dir):
        raise _error(errno.ENOENT if is_dir is None else errno.ENOTDIR, source)
    if not (args.follow_link or is_contents):
        path, is_dir = source, next(container.entries(source)).is_dir()
    if target == "-":
        write(container.export(path), standard_output())
        return
    there = os.path.isdir(target) if os.path.exists(target) else None
    place = _landing(os.path.realpath(target), there, target, name, is_dir)
    container.copy_out(path, place, keep_owner=args.archive)


def _in(container: Container, source: str, target: str, args: argparse.Namespace) -> None:
    resolved, there = _place(container, target)
    if source == "-":
        if not there:
            raise _error(errno.ENOENT if there is None else errno.ENOTDIR, target)
        container.unpack(sys.stdin.buffer, resolved)
        return
    is_contents, name = _name(source)
    path = os.path.realpath(source) if args.follow_link or is_contents else source.rstrip("/")
    is_dir = stat.S_ISDIR(os.lstat(path).st_mode)
    if source.endswith(("/", "/.")) and not is_dir:
        raise _error(errno.ENOTDIR, source)
    container.copy_in(path, _landing(resolved, there, target, name, is_dir), keep_owner=args.archive)


def _name(source: str) -> tuple[bool, str]:
    """Whether what is in a directory is meant and not the directory, and the name that it has in a directory."""
    name = posixpath.basename(source.rstrip("/"))
    return (True, "") if name in ("", ".", "..") else (False, name)


def _landing(resolved: str, is_dir_there: bool | None, target: str, name: str, is_dir: bool) -> str:
    """Where it lands, as with docker.

    resolved: the target with links followed. is_dir_there: whether there is a directory, None where there is nothing.
    name: what it is called in a directory; is_dir: whether it is one.
    """
    if is_dir_there:
        return posixpath.join(resolved, name) if name else resolved
    if target.endswith(("/", "/.")) and not is_dir:
        raise _error(errno.ENOTDIR if is_dir_there is False else errno.ENOENT, target)
    if is_dir and is_dir_there is False:
        raise _error(errno.ENOTDIR, target)
    return resolved


def _place(container: Container, path: str) -> tuple[str, bool | None]:
    """A path of the container with the links at its end followed; whether there is a directory, None for nothing."""
    place = _bare(path)
    for _ in range(_MAX_LINKS):
        try:
            entry = next(container.entries(place))
        except FileNotFoundError:
            return place, None
        if entry.target is None:
            return place, entry.is_dir()
        place = _bare(posixpath.join(posixpath.dirname(place), decode_path(entry.target)))
    raise _error(errno.ELOOP, path)


def _bare(path: str) -> str:
    """A path without the "/" and "/." at its end."""
    while path.endswith(("/", "/.")):
        path = path.removesuffix(".").rstrip("/")
    return path or "/"


def _error(number: int, path: str) -> OSError:
    return OSError(number, os.strerror(number), path)
