"""The disk that campaigns/powerloss.py takes the power from: its log is what the file system did, its states are
possible ones, and they mount."""

import os
import random
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from campaigns import logged_disk
from campaigns.logged_disk import SECTOR, Log, LoggedDisk, Replay, State, states

needs_disk = [
    pytest.mark.root,
    pytest.mark.skipif(
        os.geteuid() != 0
        or not os.path.exists("/dev/fuse")
        or not shutil.which("pkg-config")
        or subprocess.run(["pkg-config", "--exists", "fuse3"]).returncode != 0,
        reason="a logged disk needs root, /dev/fuse and libfuse3-dev; ci/packages.txt says what tests use",
    ),
]


@pytest.fixture(scope="module", params=["ext4", "xfs"])
def logged(request: pytest.FixtureRequest) -> Iterator[tuple[str, Log, Path]]:
    """The log of a disk on which a file was written and synced, and then another one not."""
    directory = Path(f"/dev/shm/test-powerloss.{os.getpid()}.{request.param}")
    directory.mkdir()
    try:
        with LoggedDisk(directory, request.param) as disk:
            subprocess.run(["sync", "-f", str(disk.root)], check=True)
            disk.mark("begin")
            with open(disk.root / "synced", "wb") as file:
                file.write(b"acknowledged" * 1000)
                file.flush()
                os.fsync(file.fileno())
            disk.mark("synced")
            (disk.root / "other").write_bytes(b"perhaps" * 10_000)
        yield request.param, Log(disk.log), directory
    finally:
        shutil.rmtree(directory)


@pytest.mark.parametrize("logged", [pytest.param(kind, marks=needs_disk) for kind in ("ext4", "xfs")], indirect=True)
class TestLoggedDisk:
    def test_a_sync_writes_and_then_flushes(self, logged: tuple[str, Log, Path]) -> None:
        _, log, _ = logged
        begin, synced = log.moment_of("begin"), log.moment_of("synced")
        written = [n for n, moment in enumerate(log.moments) if begin < moment < synced]
        data = [n for n in written if log.writes[n].data and bytes(log.writes[n].data[:12]) == b"acknowledged"]
        assert data
        (flush, *_) = [moment for first, end, moment in log.epochs(begin) if first <= data[0] < end]
        assert flush < synced

    def test_what_was_acknowledged_is_in_every_state_after_it(self, logged: tuple[str, Log, Path]) -> None:
        kind, log, directory = logged
        chosen = states(log, log.moment_of("begin"), random.Random(1), 24)
        assert len(chosen) == 24
        replay = Replay(log, kind, directory)
        seen = set()
        for state in chosen:
            with replay.mounted(state) as root:
                synced = (root / "synced").read_bytes() if (root / "synced").exists() else None
                if "synced" in log.reached(state.moment):
                    assert synced == b"acknowledged" * 1000
                seen.add((synced is not None, (root / "other").exists()))
        assert (False, False) in seen
        assert (True, False) in seen


def log_of(*records: tuple[int, int, bytes]) -> Log:
    """A log of records: kind, offset, data."""
    with tempfile.NamedTemporaryFile() as file:
        for kind, offset, data in records:
            file.write(struct.pack("<QQQ", kind, offset, len(data)) + data)
        file.flush()
        return Log(Path(file.name))


W, F, M = logged_disk.WRITE, logged_disk.FLUSH, logged_disk.MARK
ONE, TWO, THREE = (W, 0, b"1" * SECTOR), (W, SECTOR, b"2" * SECTOR), (W, 0, b"3" * 4 * SECTOR)


class TestStates:
    def test_prefixes_count_as_late_as_they_are_possible(self) -> None:
        log = log_of(ONE, TWO, (F, 0, b""), (M, 0, b"done"), (F, 0, b""), THREE, (M, 0, b"more"))
        found = states(log, 0, random.Random(1), 4)
        assert [(state.flushed, len(state.kept), log.reached(state.moment)) for state in found] == [
            (0, 1, []),
            (0, 0, []),
            (2, 0, ["done", "more"]),
            (3, 0, ["done", "more"]),
        ]

    def test_what_was_flushed_is_never_left_out(self) -> None:
        log = log_of(ONE, (F, 0, b""), TWO, THREE, TWO, (F, 0, b""), ONE)
        found = states(log, 0, random.Random(2), 60)
        assert len({(state.flushed, state.kept) for state in found}) == len(found) > 12
        for state in found:
            ends = [end for _, end, moment in log.epochs(0) if moment < state.moment]
            assert state.flushed >= max(ends, default=0)
            assert all(number >= state.flushed for number, _ in state.kept)

    def test_torn_writes_are_of_whole_sectors(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(logged_disk.SIZES, "test", 1 << 16)
        log = log_of(ONE, TWO, (F, 0, b""), THREE)
        replay = Replay(log, "test", tmp_path)
        replay.write(State(4, 2, ((2, (1, 3)),)), tmp_path / "image")
        found = (tmp_path / "image").read_bytes()
        assert len(found) == 1 << 16
        assert found.rstrip(b"\0") == b"1" * SECTOR + b"3" * SECTOR + bytes(SECTOR) + b"3" * SECTOR
