"""A control group for each container that runs: made before its runtime starts, taken away after its end.

The group is of version 2 of control groups (Linux: Documentation/admin-guide/cgroup-v2.rst): it says who belongs to the
container, ends them all at once, and holds its device rules. It lies below the root of the hierarchy, not below the
caller's. For each limit of which that hierarchy has no controller, a group of the same name lies in version 1's.

Who makes or removes a group holds a lock on its directory (flock(2)), so that nobody takes away the group of a
container that is about to start, and what a killed caller has left is known as such.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import time
from functools import cache, partial

from layerstore._core import cgroup
from layerstore.containers.resources import PARENTS, Resources
from layerstore.errors import Conflict, Unsupported
from layerstore.naming import about, close_fd, fstat
from layerstore.store.locks import release, try_lock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from layerstore.containers.resources import Files

    Rule = tuple[str, int, int | None, str]

_PLACES = ("/sys/fs/cgroup", "/sys/fs/cgroup/unified")  # of version 2, alone and beside version 1
_HIERARCHIES = "/sys/fs/cgroup"  # of version 1, each by the name of its controller
_PREFIX = "layerstore-"
_PART = "command-"
_ASIDE = ".aside"
_FREEZE = "cgroup.freeze"
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_READ_BYTES = 4096
_FORCE_SECONDS, _FREEZE_SECONDS, _PATIENCE_SECONDS, _LOOK_SECONDS = 10.0, 10.0, 1.0, 0.002
_PAUSES_SECONDS = (0.0002, 0.0005, 0.001, 0.002, 0.005, *(0.01,) * 1000)
_OTHERWISE = (
    '; run as root of the host, or without a group: --cgroups disabled (cgroups="disabled"), where nothing limits the '
    "processes of the container"
)
_UNLIMITED = {
    "pids": "--pids-limit -1 (pids_limit=-1) does without a limit",
    "memory": "leave out --memory",
    "cpu": "leave out --cpus and --cpu-shares",
    "cpuset": "leave out --cpuset-cpus",
}
"""What does without each controller."""
_SWAP = ("memory.memsw.limit_in_bytes", "memory.swap.max")
_OOM_EVENTS = ("memory.oom_control", "memory.events")


class Group:
    """The group of a container, held: it is nobody else's until `release` or `remove`."""

    def __init__(self, root: int, name: str, directory: int, hierarchies: Iterable[str]) -> None:
        """`hierarchies`: the directories of those of version 1 in which it may have a group."""
        self.directory = directory
        self.tasks: list[int] = []
        """Of the groups of version 1 that belong to it, the files that a thread enters them by."""
        self.stays = False
        """It is not to be removed when its block ends (`launching.grouped`), as the container goes on."""
        self._root = root
        self._name = name
        self._hierarchies = hierarchies
        self._holder = os.getpid()

    def release(self) -> None:
        """Let go of it: it stays, with what runs in it, until it is removed by the container's name."""
        with contextlib.suppress(OSError):
            if os.getpid() == self._holder:  # else the lock is the parent's
                release(self.directory)
        for fd in (*self.tasks, self.directory, self._root):
            close_fd(fd)

    def remove(self) -> None:
        """End what is left in it and take it away. Raises `OSError` where that does not end."""
        try:
            # As long as the group of version 2 is there, all of it is its holder's.
            for hierarchy in self._hierarchies:
                with contextlib.suppress(FileNotFoundError):
                    if os.path.isdir(beside := f"{hierarchy}/{self._name}"):
                        _remove_when_empty(beside, None, self.directory)
            _remove_when_empty(self._name, self._root, self.directory)
            _remove_aside(self._root, self._name)
        finally:
            self.release()


class Aside:
    """A group beside a container's, for what serves it, which ends with the block that made it unless it `stays`."""

    def __init__(self, directory: int) -> None:
        self.directory = directory
        self.stays = False


@contextlib.contextmanager
def aside(container: str) -> Iterator[Aside]:
    """Make such a group; where it stays, it ends where the group of the container (its id) is removed.

    By who holds the container's lock of programs. Raises `Unsupported` where no group can be made, `OSError`.
    """
    name = name_of(container)
    root = _open_root()
    made = None
    try:
        _check_is_domain(root)
        remove([container])  # what a killed caller has left
        with _allowed(name + _ASIDE, _OTHERWISE):
            os.mkdir(name + _ASIDE, 0o755, dir_fd=root)
        made = Aside(os.open(name + _ASIDE, _DIRECTORY, dir_fd=root))
        yield made
    finally:
        try:
            if made is None or not made.stays:
                _remove_aside(root, name)
        finally:
            if made is not None:
                close_fd(made.directory)
            close_fd(root)


def _remove_aside(root: int, name: str) -> None:
    """End what is in the group beside the one of that name, if there is one, and take it away. Raises `OSError`."""
    with contextlib.suppress(FileNotFoundError):
        directory = os.open(name + _ASIDE, _DIRECTORY, dir_fd=root)
        try:
            _remove_when_empty(name + _ASIDE, root, directory)
        finally:
            close_fd(directory)


class Part:
    """A group below a container's, for one command in it and all that this starts, until `close`."""

    def __init__(self, container: int, name: str, directory: int, tasks: list[int]) -> None:
        self.directory = directory
        self.tasks = tasks
        """As a `Group` has them: those of the container."""
        self._container = container
        self._name = name

    def end(self, but: int | None) -> None:
        """Kill every process in it, or every one but that which waits for the first of them: killed with it, that first
        one would be left to this machine's init, which may wait for nobody (in a container). It takes a moment until
        they are gone. Nothing happens where the group has gone. Raises `OSError`.
        """
        with _unless_gone():
            if but is None:
                _end_all(self.directory)
            else:
                self._end_others(but)

    def _end_others(self, but: int) -> None:
        with contextlib.suppress(FileNotFoundError):  # Linux before 5.2
            _write(_FREEZE, "1", self.directory)  # so that none makes another
        try:
            _wait_until_frozen(self.directory, _PATIENCE_SECONDS)  # one that waits for a disk cannot make another
            for pid in map(int, _read("cgroup.procs", self.directory).split()):
                if pid != but:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
        finally:
            with contextlib.suppress(FileNotFoundError):
                _write(_FREEZE, "0", self.directory)

    def has_gone(self) -> bool:
        """Whether it was taken away with the group of the container."""
        try:
            return not _is_still(self._container, self._name, self.directory)
        except OSError as error:
            return error.errno == errno.ENODEV

    def close(self, *, ended: bool) -> None:
        """Take it away. What still runs in it goes on, and the group goes with the container; where all was `ended`,
        that is waited for. Raises `OSError` where it does not end."""
        try:
            if ended:
                with contextlib.suppress(FileNotFoundError):
                    _remove_when_empty(self._name, self._container, self.directory)
            else:
                self._remove_if_empty()
        finally:
            for fd in (*self.tasks, self.directory, self._container):
                close_fd(fd)

    def _remove_if_empty(self) -> None:
        try:
            os.rmdir(self._name, dir_fd=self._container)
        except FileNotFoundError:  # it went with the container
            pass
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            release(self.directory)
            _sweep(self._container)


def part(container: str) -> Part | None:
    """Make a group for a command below that of a container (its id); None where it has none. Raises `OSError`."""
    parent = _open_group(container)
    if parent is None:
        return None
    name = f"{_PART}{os.urandom(8).hex()}"
    directory = None
    tasks: list[int] = []
    try:
        while directory is None:
            try:
                os.mkdir(name, 0o755, dir_fd=parent)
            except FileExistsError:
                pass
            except FileNotFoundError:  # the container was ended meanwhile
                close_fd(parent)
                return None
            directory = _taken(parent, name)
        for hierarchy in _limiting():
            with contextlib.suppress(FileNotFoundError):
                tasks.append(os.open(f"{hierarchy}/{name_of(container)}/tasks", os.O_WRONLY | os.O_CLOEXEC))
        return Part(parent, name, directory, tasks)
    except BaseException:
        with contextlib.suppress(OSError):
            os.rmdir(name, dir_fd=parent)
        for fd in (*tasks, directory, parent):
            if fd is not None:
                close_fd(fd)
        raise


class Freezer:
    """The group of a container, to stop what is in it and have it go on. Closed at the end of its block."""

    def __init__(self, container: str, directory: int) -> None:
        self.file = os.open(_FREEZE, os.O_RDWR | os.O_CLOEXEC, dir_fd=directory)
        """What "0" is written to for it to go on."""
        self._container = container
        self._directory = directory

    def __enter__(self) -> Freezer:
        return self

    def __exit__(self, *_: object) -> None:
        close_fd(self.file)
        close_fd(self._directory)

    def is_frozen(self) -> bool:
        """Whether somebody has stopped it already."""
        return os.pread(self.file, 1, 0) == b"1"

    def freeze(self) -> None:
        """Stop every process, and wait until each has. Raises `Conflict` where one does not, `OSError`."""
        with _unless_gone():
            os.write(self.file, b"1")
            if not _wait_until_frozen(self._directory, _FREEZE_SECONDS):
                raise Conflict(
                    f"a program of container {self._container[:12]} waits for a disk, and cannot be stopped; "
                    "try again later"
                )

    def thaw(self) -> None:
        """Have it go on. Nothing happens where the group has gone."""
        with _unless_gone():
            os.write(self.file, b"0")


def freezer(container: str) -> Freezer | None:
    """Of a container (its id); None where it has no group, or the kernel stops none (Linux before 5.2)."""
    group = _open_group(container)
    if group is None:
        return None
    try:
        return Freezer(container, group)
    except OSError as error:
        close_fd(group)
        if error.errno not in (errno.ENOENT, errno.ENODEV):
            raise
        return None


def thaw_parts(container: str) -> None:
    """Have commands of a container (its id) go on that were stopped to be killed, by one who was killed himself: the
    first process of a container ends when the runtimes of its commands have waited for them. Raises `OSError`."""
    group = _open_group(container)
    if group is None:
        return
    try:
        with _unless_gone():
            for name in os.listdir(group):
                if name.startswith(_PART):
                    with _unless_gone():
                        _write(f"{name}/{_FREEZE}", "0", group)
    finally:
        close_fd(group)


@contextlib.contextmanager
def _unless_gone() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENODEV):
            raise


def _wait_until_frozen(group: int, seconds: float) -> bool:
    """Wait so long until every process of a group has stopped; whether they have."""
    end = time.monotonic() + seconds
    while "frozen 0" in _read("cgroup.events", group):
        if time.monotonic() > end:
            return False
        time.sleep(_PAUSES_SECONDS[0])
    return True


def population(container: str, *, commands: bool) -> int | None:
    """How many processes the group of a container (its id) has, with those of `commands` and their runtimes or without;
    None where it has no group."""
    group = _open_group(container)
    if group is None:
        return None
    try:
        found = 0
        with contextlib.suppress(FileNotFoundError):  # the group has gone
            for _, below, _, fd in os.fwalk(".", dir_fd=group):
                found += _count(fd)
                if not commands:
                    below[:] = [name for name in below if not name.startswith(_PART)]
        return found
    finally:
        close_fd(group)


def _count(group: int) -> int:
    try:
        return len(_read("cgroup.procs", group).split())
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENODEV):  # it has gone
            raise
        return 0


def _open_group(container: str) -> int | None:
    try:
        root = _open_root()
    except Unsupported:
        return None
    try:
        return os.open(name_of(container), _DIRECTORY, dir_fd=root)
    except FileNotFoundError:
        return None
    finally:
        close_fd(root)


def _sweep(container: int) -> None:
    """Take away what earlier commands have left below a container's group, and what they left in it has ended."""
    for name in os.listdir(container):
        if name.startswith(_PART):
            with contextlib.suppress(OSError):
                directory = os.open(name, _DIRECTORY, dir_fd=container)
                try:
                    if try_lock(directory):  # else its command is about to start
                        os.rmdir(name, dir_fd=container)
                finally:
                    close_fd(directory)


class OomKills:
    """How many processes of a container (its id) the kernel ends for want of memory, from now on until `close`."""

    def __init__(self, container: str) -> None:
        self._fd = open_oom_events(container)
        self._before = self._counted = self._count(0)

    def any(self) -> bool:
        """Whether there was one; False where nothing counts them."""
        self._counted = self._count(self._counted)
        return self._counted > self._before

    def _count(self, known: int) -> int:
        try:
            return known if self._fd is None else oom_kills(os.pread(self._fd, _READ_BYTES, 0).decode())
        except OSError as error:
            if error.errno != errno.ENODEV:  # the group has gone
                raise
            return known

    def close(self) -> None:
        if self._fd is not None:
            close_fd(self._fd)
        self._fd = None


def open_oom_events(container: str) -> int | None:
    """A descriptor of the file that counts the processes of a container (its id) which the kernel ended for want of
    memory (`oom_kills`), as long as its group is there; None where nothing counts them. The caller closes it.
    """
    first, second = _OOM_EVENTS
    beside = f"{_HIERARCHIES}/memory"
    group = None
    try:
        if beside in _limiting():
            return os.open(f"{beside}/{name_of(container)}/{first}", os.O_RDONLY | os.O_CLOEXEC)
        group = _open_group(container)
        return None if group is None else os.open(second, os.O_RDONLY | os.O_CLOEXEC, dir_fd=group)
    except FileNotFoundError:
        return None
    finally:
        if group is not None:
            close_fd(group)


@contextlib.contextmanager
def oom_events(container: str) -> Iterator[int | None]:
    """`open_oom_events` for a block."""
    fd = open_oom_events(container)
    try:
        yield fd
    finally:
        if fd is not None:
            close_fd(fd)


def oom_kills(text: str) -> int:
    """How many processes a file of `open_oom_events` says that the kernel ended."""
    return sum(int(line.split()[1]) for line in text.splitlines() if line.startswith("oom_kill "))


def _hierarchies(names: Iterable[str] | None = None) -> tuple[str, ...]:
    """The directories of those of version 1's hierarchies: by their names, or all, in which runc makes groups."""
    if names is None:
        try:
            names = sorted(os.listdir(_HIERARCHIES))
        except FileNotFoundError:
            return ()
    return tuple(path for path in (f"{_HIERARCHIES}/{name}" for name in names) if os.path.exists(f"{path}/tasks"))


@cache
def _limiting() -> tuple[str, ...]:
    """Those with a controller that containers are limited by."""
    return _hierarchies(_UNLIMITED)


def counted(container: str, first: str, second: str) -> float | None:
    """What the group of a container (its id) of version 1, else of version 2, says in a file of that name: a number of
    bytes, or of seconds of CPU time; None where neither does, or there is no limit."""
    group = None
    with contextlib.suppress(OSError):
        controller = first.partition(".")[0]
        with open(f"{_HIERARCHIES}/{controller}/{name_of(container)}/{first}") as file:
            value = float(file.read())
            return value / 1e9 if controller == "cpuacct" else value
    try:
        group = _open_group(container)
        text = "" if group is None else _read(second, group)
    except OSError:
        return None
    finally:
        if group is not None:
            close_fd(group)
    if second == "cpu.stat":
        values = dict(line.split() for line in text.splitlines())
        return int(values["usage_usec"]) / 1e6 if "usage_usec" in values else None
    return float(text) if text.strip().isdigit() else None


def name_of(container: str) -> str:
    """What the group of a container (its id) is called, below the root of the hierarchy."""
    return _PREFIX + container


def make(container: str, resources: Resources, devices: Sequence[Rule] | None) -> Group:
    """Make the group of a container (its id), with what it may have of resources and the devices that it may use
    (None: all). What a killed caller has left of it is ended.

    Raises `Conflict` while another process starts or removes it, `Unsupported` where no group can be made, `OSError`.
    """
    name = name_of(container)
    root = _open_root()
    try:
        _check_is_domain(root)
        wanted = resources.files()
        passed_on = _pass_on(root, wanted)
        group = Group(root, name, _claim(root, name, container), _limiting())
    except BaseException:
        close_fd(root)
        raise
    try:
        if devices is not None:
            with _or_without_group():
                cgroup.allow_devices(group.directory, devices)
        for controller, (first, second) in wanted.items():
            if controller in passed_on:
                _limit(second, group.directory, None)
            else:
                group.tasks.append(_limited_beside(group, name, controller, first))
    except BaseException:
        group.remove()
        raise
    return group


def make_counting(container: str, memory: int) -> bool:
    """Make those groups of a container (its id) in which its memory is counted, for a runtime that makes groups itself,
    and takes these: what they count can be read from the start on (`open_oom_events`). False where it makes none that
    would tell later whose they are: version 2 of control groups is not mounted. Raises as `make`."""
    if not any(os.path.exists(f"{path}/cgroup.subtree_control") for path in _PLACES):
        return False
    make(container, Resources(-1, memory), None).release()
    return True


def remove(containers: Iterable[str], *, force: bool = False, unless: Callable[[str], bool] | None = None) -> None:
    """Take away the groups of containers and end what is in them; those without one are passed over, and those of which
    `unless` says so while nobody can start them.

    Raises `Conflict` where another process starts one or runs it to its end, `OSError`; with `force` what it has
    started is ended first.
    """
    try:
        root = _open_root()
    except Unsupported:  # who may not look for the hierarchy has made no group in it
        return
    try:
        for container in containers:
            try:
                group = _hold(root, container, force)
            except FileNotFoundError:  # its runtime has made that
                if unless is None or not unless(container):
                    _remove_aside(root, name_of(container))
                continue
            try:
                is_used = unless is not None and unless(container)
            except BaseException:
                group.release()
                raise
            if is_used:
                group.release()
            else:
                group.remove()
    finally:
        close_fd(root)


def present() -> list[str]:
    """The ids of the containers, of whatever store, that have a group. Raises `OSError`."""
    try:
        root = _open_root()
    except Unsupported:
        return []
    try:
        with about(root):
            names = [name for name in os.listdir(root) if name.startswith(_PREFIX)]
        return sorted({name.removeprefix(_PREFIX).removesuffix(_ASIDE) for name in names})
    finally:
        close_fd(root)


def _open_root() -> int:
    """The root directory of the hierarchy of version 2. Raises `Unsupported`, `OSError`."""
    for path in _PLACES:
        if os.path.exists(f"{path}/cgroup.subtree_control"):
            return os.open(path, _DIRECTORY)
    root = _unmounted_root()
    with about(root):
        return os.dup(root)


@cache
def _unmounted_root() -> int:
    """Of a hierarchy that is mounted nowhere: this process keeps it, as to take a mount away waits for RCU."""
    with _or_without_group():
        return cgroup.open_hierarchy()


def _claim(root: int, name: str, container: str) -> int:
    """Make the directory of a group and hold it."""
    while True:
        try:
            with _allowed(name, _OTHERWISE):
                os.mkdir(name, 0o755, dir_fd=root)
        except FileExistsError:
            with contextlib.suppress(FileNotFoundError):
                _hold(root, container, force=False).remove()
            continue
        if (directory := _taken(root, name)) is not None:
            return directory


def _taken(parent: int, name: str) -> int | None:
    """The directory of a group that was just made, held; None where who looks for what was left took it for that, and
    away."""
    try:
        directory = os.open(name, _DIRECTORY, dir_fd=parent)
    except FileNotFoundError:
        return None
    try:
        if try_lock(directory) and _is_still(parent, name, directory):
            return directory
    except BaseException:
        close_fd(directory)
        raise
    close_fd(directory)
    return None


def _hold(root: int, container: str, force: bool) -> Group:
    """The group of a container. Raises `FileNotFoundError` where there is none, `Conflict` while it is another's."""
    name = name_of(container)
    end = time.monotonic() + (_FORCE_SECONDS if force else _PATIENCE_SECONDS)
    while True:
        directory = os.open(name, _DIRECTORY, dir_fd=root)
        try:
            if force:
                _end_all(directory)
            is_free = try_lock(directory)
            if is_free and _is_still(root, name, directory):
                with about(root):
                    return Group(os.dup(root), name, directory, _hierarchies())
        except BaseException:
            close_fd(directory)
            raise
        close_fd(directory)
        if not is_free and time.monotonic() > end:
            raise Conflict(f"another process starts container {container[:12]} or runs it; end that first")
        time.sleep(_LOOK_SECONDS)


def _is_still(root: int, name: str, directory: int) -> bool:
    """Whether the directory has that name still: it may have gone before it was locked."""
    try:
        return os.stat(name, dir_fd=root).st_ino == fstat(directory).st_ino
    except FileNotFoundError:
        return False


def _end_all(directory: int) -> None:
    """Kill every process of a group. It may take a moment until they are gone."""
    try:
        _write("cgroup.kill", "1", directory)
    except FileNotFoundError:  # Linux before 5.14, or the group has gone
        with contextlib.suppress(OSError):
            for pid in _read("cgroup.procs", directory).split():
                os.kill(int(pid), signal.SIGKILL)
    except OSError as error:
        if error.errno != errno.ENODEV:  # it has gone
            raise


def _remove_when_empty(path: str, root: int | None, group: int) -> None:
    """Take away a directory of groups, when what is in the group that it belongs to has ended, as it must."""
    for pause in _PAUSES_SECONDS:
        try:
            return os.rmdir(path, dir_fd=root)
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
        _end_all(group)
        _remove_below(path, root)
        time.sleep(pause)
    raise OSError(errno.EBUSY, "a process of the container cannot be ended, which keeps its control group", path)


def _remove_below(path: str, root: int | None) -> None:
    """Take away the groups that a container, which may do so, has made in its own."""
    with contextlib.suppress(OSError):
        for _, names, _, fd in os.fwalk(path, topdown=False, dir_fd=root):
            for name in names:
                with contextlib.suppress(OSError):
                    os.rmdir(name, dir_fd=fd)


def _check_is_domain(root: int) -> None:
    """Raise `Unsupported` below a group that somebody has made threaded: no program starts in a group there."""
    if (kind := _type(root)) not in ("", "domain"):
        raise Unsupported(f"the root of the control groups here is of the type {kind!r}{_OTHERWISE}")


def _type(root: int) -> str:
    """Empty for the root of the machine."""
    try:
        return _read("cgroup.type", root).strip()
    except FileNotFoundError:
        return ""


def _pass_on(root: int, controllers: Iterable[str]) -> set[str]:
    """Have the groups below the root be able to limit by these controllers; returns those that version 1 has not.

    Where the root is the group of an outer container, with its processes in it, the kernel would make it threaded for
    that, and then no group below it could take a program.
    """
    passed_on = set(_read("cgroup.subtree_control", root).split())
    wanted = set(controllers)
    if wanted <= passed_on:
        return wanted
    missing = wanted & set(_read("cgroup.controllers", root).split()) - passed_on
    if not missing:
        return wanted & passed_on
    names, otherwise = " and ".join(sorted(missing)), "; ".join(_UNLIMITED[name] for name in sorted(missing))
    if _type(root) and _read("cgroup.procs", root).strip():
        raise Unsupported(
            f"cannot have control groups limit by {names}: the root of the hierarchy has processes of its own, as in a "
            f"container; {otherwise}"
        )
    try:
        _write("cgroup.subtree_control", " ".join(f"+{name}" for name in sorted(missing)), root)
    except OSError as error:
        raise Unsupported(f"cannot have control groups limit by {names} ({error.strerror}); {otherwise}") from error
    return wanted & (passed_on | missing)


def _limited_beside(group: Group, name: str, controller: str, files: Files) -> int:
    """Make a group of version 1 with a limit; a descriptor of the file that a thread enters it by."""
    hierarchy, otherwise = f"{_HIERARCHIES}/{controller}", _UNLIMITED[controller]
    if not os.path.exists(f"{hierarchy}/tasks"):
        raise Unsupported(f"no control groups here have the controller {controller}; {otherwise}")
    directory = f"{hierarchy}/{name}"
    with _allowed(directory, f"; {otherwise}"):
        try:
            os.mkdir(directory, 0o755)
        except FileExistsError:
            # Another controller has the same hierarchy, or a killed runtime has left it.
            if not any(os.path.samestat(fstat(fd), os.stat(f"{directory}/tasks")) for fd in group.tasks):
                _remove_when_empty(directory, None, group.directory)
                os.mkdir(directory, 0o755)
    fd = os.open(directory, _DIRECTORY)
    try:
        _limit(files, fd, hierarchy)
    finally:
        close_fd(fd)
    return os.open(f"{directory}/tasks", os.O_WRONLY | os.O_CLOEXEC)


def _limit(files: Files, directory: int, above: str | None) -> None:
    """Write limits to the files of a group. Raises `Unsupported`, `OSError`."""
    for name, text in files:
        if text == PARENTS:
            with open(f"{above}/{name}") as file:
                text = file.read().strip()
        try:
            _write(name, text, directory)
        except FileNotFoundError as error:
            if name not in _SWAP:
                raise Unsupported(f"this kernel cannot limit by {name}: its control groups have none") from error
            raise Unsupported(
                f"this kernel does not account for swap (no {name}): boot it with swapaccount=1, or leave swap without "
                "a limit: --memory-swap -1 (memory_swap=-1)"
            ) from error


@contextlib.contextmanager
def _or_without_group() -> Iterator[None]:
    try:
        yield
    except Unsupported as error:
        raise Unsupported(f"{error}{_OTHERWISE}") from error


@contextlib.contextmanager
def _allowed(path: str, otherwise: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        raise Unsupported(f"cannot make the control group {path} ({error.strerror}){otherwise}") from error


def _write(name: str, text: str, directory: int | None) -> None:
    fd = os.open(name, os.O_WRONLY | os.O_CLOEXEC, dir_fd=directory)
    try:
        with about(name):
            os.write(fd, text.encode())
    finally:
        close_fd(fd)


def _read(name: str, directory: int) -> str:
    fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory)
    try:
        with about(name):
            pieces = iter(partial(os.read, fd, _READ_BYTES), b"")
            return b"".join(pieces).decode()
    finally:
        close_fd(fd)
