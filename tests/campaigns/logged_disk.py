"""A disk that remembers every write and flush (logged_disk.c), and what may be on it when the power goes at a moment.

    with LoggedDisk(directory, "ext4") as disk:
        work_on(disk.root)
        disk.mark("done")
    log = Log(disk.log)
    for state in states(log, begin, random.Random(1), 500):
        with Replay(log, ...).mounted(state) as root: ...

The model of the disk: a sector of 512 bytes is written whole or not at all. What was written before a flush is there
after it. Of what was written after the last flush any sectors may be there and any may not, in whatever order they were
written. Takes root, /dev/fuse and loop devices.
"""

import contextlib
import ctypes
import fcntl
import hashlib
import mmap
import os
import random
import struct
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

SECTOR = 512
SIZES = {"ext4": 96 << 20, "xfs": 320 << 20}
_MKFS = {
    "ext4": ["mkfs.ext4", "-q", "-F", "-b", "4096", "-E", "nodiscard"],
    "xfs": ["mkfs.xfs", "-q", "-f", "-K"],
}
_SOURCE = Path(__file__).with_suffix(".c")
_BUILT = Path(__file__).parents[2] / "build" / "campaigns" / "logged_disk"
_RECORD = struct.Struct("<QQQ")
WRITE, ZERO, FLUSH, MARK = 1, 2, 3, 4
"""The kinds of records of a log."""
_CHUNK = 1 << 16
_LOOP_SET_DIRECT_IO, _LOOP_CONFIGURE, _LOOP_CLR_FD, _LOOP_CTL_GET_FREE = 0x4C08, 0x4C0A, 0x4C01, 0x4C82
_LO_FLAGS_AUTOCLEAR, _LO_FLAGS_DIRECT_IO = 4, 16
_libc = ctypes.CDLL(None, use_errno=True)


def built() -> Path:
    """The program, compiled unless it is newer than its source."""
    if not _BUILT.exists() or _BUILT.stat().st_mtime < _SOURCE.stat().st_mtime:
        _BUILT.parent.mkdir(parents=True, exist_ok=True)
        flags = subprocess.run(
            ["pkg-config", "--cflags", "--libs", "fuse3"], check=True, capture_output=True, text=True
        )
        partial = _BUILT.with_name(f".{_BUILT.name}.{os.getpid()}")
        warnings = ["-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror"]
        subprocess.run(["gcc", *warnings, str(_SOURCE), "-o", str(partial), *flags.stdout.split()], check=True)
        partial.rename(_BUILT)
    return _BUILT


def mount(device: str, target: Path, kind: str) -> None:
    """mount(2), of states of one file system at the same time too. Raises `OSError`."""
    if _libc.mount(device.encode(), os.fsencode(target), kind.encode(), 0, b"nouuid" if kind == "xfs" else None):
        raise OSError(ctypes.get_errno(), f"cannot mount {device} ({kind}): {os.strerror(ctypes.get_errno())}")


def umount(target: Path) -> None:
    """umount2(2), of what nobody uses any more in a moment. Raises `OSError`."""
    deadline = time.monotonic() + 5
    while _libc.umount2(os.fsencode(target), 0):
        if ctypes.get_errno() != 16 or time.monotonic() > deadline:  # EBUSY
            raise OSError(ctypes.get_errno(), f"cannot unmount {target}")
        time.sleep(0.01)


def own_mounts() -> None:
    """Have the mounts that are made from now on seen by this process and its children alone, and gone with them."""
    if _libc.unshare(0x00020000) or _libc.mount(b"none", b"/", None, 0x4000 | 0x40000, None):  # NEWNS, REC | PRIVATE
        raise OSError(ctypes.get_errno(), "cannot have a mount namespace of its own")


@contextlib.contextmanager
def loop_device(path: Path) -> Iterator[str]:
    """The loop device of a file, with sectors of 512 bytes; gone when the block has ended and nobody uses it."""
    backing = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    try:
        while True:
            name = f"/dev/loop{fcntl.ioctl(control, _LOOP_CTL_GET_FREE)}"
            fd = os.open(name, os.O_RDWR | os.O_CLOEXEC)
            # struct loop_config: fd, block_size, struct loop_info64 with lo_flags at byte 52
            info = bytearray(232)
            struct.pack_into("<I", info, 52, _LO_FLAGS_AUTOCLEAR | _LO_FLAGS_DIRECT_IO)
            config = struct.pack("<II", backing, SECTOR) + info + bytes(64)
            try:
                fcntl.ioctl(fd, _LOOP_CONFIGURE, config)
                break
            except OSError:  # another process has taken it
                os.close(fd)
                time.sleep(0.001)
    finally:
        os.close(control)
        os.close(backing)
    try:
        yield name
    finally:
        os.close(fd)


class LoggedDisk:
    """A new file system of `kind`, mounted at `root`, on a disk that logs to `log` what is done to it. The disk has
    `size` bytes, or those of `SIZES`.

    Its files are below `directory`, which should be in memory.
    """

    def __init__(self, directory: Path, kind: str, size: int = 0) -> None:
        self.log = directory / "log"
        self._size = size or SIZES[kind]
        self.root = directory / "root"
        self._image = directory / "image"
        self._served = directory / "served"
        self._kind = kind
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> "LoggedDisk":
        with self._stack as stack:
            for made in (self.root, self._served):
                made.mkdir()
            with open(self._image, "xb") as file:
                file.truncate(self._size)
            server = subprocess.Popen([str(built()), str(self._image), str(self.log), str(self._served)])
            stack.callback(server.wait)
            stack.callback(self._stop, server)
            while not os.path.ismount(self._served):
                if server.poll() is not None:
                    raise RuntimeError(f"the logged disk has ended with status {server.returncode}")
                time.sleep(0.002)
            device = stack.enter_context(loop_device(self._served / "disk"))
            subprocess.run([*_MKFS[self._kind], device], check=True, stdout=subprocess.DEVNULL)
            mount(device, self.root, self._kind)
            stack.callback(umount, self.root)
            self._stack = stack.pop_all()
        return self

    def _stop(self, server: subprocess.Popen[bytes]) -> None:
        try:
            umount(self._served)
        except OSError:
            server.kill()
            raise

    @property
    def marks(self) -> Path:
        """The file to which marks are written, by whatever process: each write is one."""
        return self._served / "mark"

    def mark(self, text: str) -> None:
        """Note in the log that this point was reached."""
        write_mark(self.marks, text)

    def __exit__(self, *error: object) -> None:
        self._stack.close()
        self._image.unlink()


def write_mark(marks: Path, text: str) -> None:
    """As `LoggedDisk.mark`, of its `marks`."""
    fd = os.open(marks, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


@dataclass(frozen=True)
class Written:
    """A write, or a range that became zeros (data is None)."""

    offset: int
    length: int
    data: memoryview | None


class Log:
    """What was done to a disk. Its records are numbered from 0: a moment is the number of the record that is next.

    Attributes:
        writes: in their order.
        moments: of each write, the number of its record.
        marks: each with the number of its record.
    """

    def __init__(self, path: Path) -> None:
        with open(path, "rb") as file:
            content = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        self.writes: list[Written] = []
        self.moments: list[int] = []
        self.marks: list[tuple[int, str]] = []
        self._flushes: list[tuple[int, int]] = []
        position = moment = 0
        while position + _RECORD.size <= len(content):
            kind, offset, length = _RECORD.unpack_from(content, position)
            position += _RECORD.size
            if kind == FLUSH:
                self._flushes.append((moment, len(self.writes)))
            elif kind == MARK:
                self.marks.append((moment, bytes(content[position : position + length]).decode()))
            else:
                data = None if kind == ZERO else content[position : position + length]
                self.writes.append(Written(offset, length, data))
                self.moments.append(moment)
            position += 0 if kind in (FLUSH, ZERO) else length
            moment += 1
        self.end = moment

    def moment_of(self, mark: str) -> int:
        """When a mark was made."""
        return next(moment for moment, text in self.marks if text == mark)

    def reached(self, moment: int) -> list[str]:
        """The marks that were made before a moment."""
        return [text for at, text in self.marks if at < moment]

    def epochs(self, begin: int) -> Iterator[tuple[int, int, int]]:
        """From a moment on, what was written between two flushes: the numbers of its first write and of the one after
        its last, and the moment of the flush that follows."""
        flushed = next((number for number, moment in enumerate(self.moments) if moment >= begin), len(self.writes))
        for moment, end in [*self._flushes, (self.end, len(self.writes))]:
            if end > flushed:
                yield flushed, end, moment
                flushed = end


@dataclass(frozen=True)
class State:
    """What may be on the disk when the power goes at `moment`: the first `flushed` writes, and of those after them the
    ones in `kept`, of each the sectors given, or all (None)."""

    moment: int
    flushed: int
    kept: tuple[tuple[int, tuple[int, ...] | None], ...]

    @property
    def name(self) -> str:
        """By which it is told from others of its log."""
        what = hashlib.sha256(repr(self.kept).encode()).hexdigest()[:8]
        return f"{self.moment}.{self.flushed}.{len(self.kept)}.{what}"


def states(log: Log, begin: int, draw: random.Random, count: int) -> list[State]:
    """`count` states of different content from a moment on, in order: each prefix of the log is one, and further ones
    are subsets of what was not flushed. Where there are more prefixes than that, some of them; where there is nothing
    more to be drawn, fewer."""
    epochs = list(log.epochs(begin))
    # By content. What it is the same at several moments is asked for most at the last of them.
    found: dict[tuple[int, object], State] = {}
    for flushed, end, moment in epochs:
        found[flushed, ()] = State(moment, flushed, ())
        for place in range(flushed + 1, end):
            kept = tuple((number, None) for number in range(flushed, place))
            found[flushed, kept] = State(log.moments[place], flushed, kept)
    found[len(log.writes), ()] = State(log.end, len(log.writes), ())
    if len(found) > count:
        chosen = draw.sample(list(found), count)
        found = {key: found[key] for key in chosen}
    wide = [epoch for epoch in epochs if epoch[1] - epoch[0] > 1]
    weights = [end - flushed for flushed, end, _ in wide]
    for _ in range(20 * count):
        if not wide or len(found) >= count:
            break
        flushed, end, moment = draw.choices(wide, weights)[0]
        place = draw.choice([end, end, draw.randint(flushed + 1, end)])
        kept = _subset(log, flushed, place, draw)
        if kept == tuple((number, None) for number in range(flushed, end)):
            continue  # as after the flush
        found.setdefault((flushed, kept), State(log.moments[place] if place < end else moment, flushed, kept))
    return sorted(found.values(), key=lambda state: (state.flushed, state.moment))


def _subset(log: Log, flushed: int, place: int, draw: random.Random) -> tuple[tuple[int, tuple[int, ...] | None], ...]:
    numbers = range(flushed, place)
    how = draw.random()
    if how < 0.25:
        without = draw.choice(numbers)
        chosen = [number for number in numbers if number != without]
    elif how < 0.4:
        chosen = [draw.choice(numbers)]
    else:
        share = draw.choice([0.15, 0.5, 0.85])
        chosen = [number for number in numbers if draw.random() < share]
    return tuple((number, _sectors(log.writes[number], draw)) for number in chosen)


def _sectors(written: Written, draw: random.Random) -> tuple[int, ...] | None:
    """Which sectors of a write are there: mostly all; the first, the last, or any."""
    count = written.length // SECTOR
    if count < 2 or draw.random() > 0.2:
        return None
    if count > 2048:  # as good as any: what was cut off in the middle
        count = 2048
    cut = draw.randint(1, count - 1)
    kinds = [range(cut), range(cut, count), [number for number in range(count) if draw.random() < 0.5]]
    return tuple(draw.choice(kinds))


class Replay:
    """Makes states of a log, which are asked for in the order of `states`, and mounts them. `size` is the disk's.

    Files are below `directory`, which should be in memory.
    """

    def __init__(self, log: Log, kind: str, directory: Path, size: int = 0) -> None:
        self._log = log
        self._size = size or SIZES[kind]
        self._kind = kind
        self._directory = directory
        self._chunks: dict[int, bytearray] = {}
        self._done = 0

    def _advance(self, flushed: int) -> None:
        assert flushed >= self._done, "states are made in order"
        for number in range(self._done, flushed):
            self._apply(self._chunks, self._log.writes[number], None)
        self._done = flushed

    def _apply(self, chunks: dict[int, bytearray], written: Written, sectors: Sequence[int] | None) -> None:
        if sectors is None:
            self._put(chunks, written.offset, written.length, written.data)
            return
        for sector in sectors:
            at = sector * SECTOR
            data = None if written.data is None else written.data[at : at + SECTOR]
            self._put(chunks, written.offset + at, SECTOR, data)

    def _put(self, chunks: dict[int, bytearray], offset: int, length: int, data: memoryview | None) -> None:
        done = 0
        while done < length:
            number, inside = divmod(offset + done, _CHUNK)
            size = min(_CHUNK - inside, length - done)
            known = chunks.get(number)
            if known is None and (chunks is not self._chunks and number in self._chunks):
                known = chunks[number] = bytearray(self._chunks[number])
            if data is not None:
                if known is None:
                    known = chunks[number] = bytearray(_CHUNK)
                known[inside : inside + size] = data[done : done + size]
            elif known is not None:
                known[inside : inside + size] = bytes(size)
            done += size

    def write(self, state: State, path: Path) -> None:
        """Have the file `path` be the disk in that state."""
        self._advance(state.flushed)
        changed: dict[int, bytearray] = {}
        for number, sectors in state.kept:
            self._apply(changed, self._log.writes[number], sectors)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(fd, 0)
            os.ftruncate(fd, self._size)
            for number, chunk in (self._chunks | changed).items():
                os.pwrite(fd, chunk, number * _CHUNK)
        finally:
            os.close(fd)

    @contextlib.contextmanager
    def mounted(self, state: State) -> Iterator[Path]:
        """The file system in that state, mounted, its journal replayed. Raises `OSError` where it does not mount."""
        # A file for each: what another one's loop device does late does not reach it.
        image, root = self._directory / state.name, self._directory / "root"
        root.mkdir(exist_ok=True)
        self.write(state, image)
        with loop_device(image) as device:
            image.unlink()
            mount(device, root, self._kind)
            try:
                yield root
            finally:
                umount(root)
