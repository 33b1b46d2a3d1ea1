"""What campaigns/hands.py judges by: it finds what is missing, torn, mounted twice or held, and nothing else."""

import errno
import fcntl
import io
import json
import os
import random
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from campaigns import generations, hands
from campaigns.generations import WHOLE, History, Seen, Span
from waiting import wait_for

NAME = "gen-1.0.0.5-3"


def made(history: History, name: str, begin: float, end: float) -> None:
    history.made["c"][name] = Span(begin, end)


def lost(history: History, begin: float, end: float, **found: str) -> list[str]:
    return history.lost(Seen("c", Span(begin, end), "commit", found))


def test_a_generation_tells_whether_it_is_whole() -> None:
    files = generations.files_of(NAME)
    assert generations.judge(NAME, files) == WHOLE
    assert "it has" in generations.judge(NAME, {name: data for name, data in files.items() if name != "f1"})
    data = files["f2"]
    assert "f2 has" in generations.judge(NAME, {**files, "f2": data[:-1]})
    assert "f2 has" in generations.judge(NAME, {**files, "f2": data + b"\0"})
    other = generations.files_of("gen-1.0.0.6-3")
    assert "f0 has" in generations.judge(NAME, {**files, "f0": other["f0"]})


def test_generations_are_found_in_a_tar_and_among_other_things() -> None:
    found = generations.judge_all(generations.in_tar(io.BytesIO(generations.tar_of(NAME))))
    assert found == {NAME: WHOLE}
    assert generations.judge_all([(f"tmp-{NAME}/f0", b""), ("etc/passwd", b""), (NAME, None)]) == {
        NAME: "it has [], not 3 files"
    }
    text = io.BytesIO()
    with tarfile.open(fileobj=text, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("etc"))
    assert generations.judge_all(generations.in_tar(io.BytesIO(text.getvalue()))) == {}


def test_what_a_shell_writes_is_whole() -> None:
    name = generations.new_name("gen", "1.2.3", random.Random(4))
    assert generations.judge(name, {f: text.encode() for f, text in generations.texts_of(name).items()}) == WHOLE


def test_what_was_there_before_must_be_there() -> None:
    history = History()
    made(history, NAME, 1, 2)
    assert lost(history, 3, 4) == [f"{NAME}: it is missing"]
    assert lost(history, 3, 4, **{NAME: "torn"}) == [f"{NAME}: torn"]
    assert lost(history, 3, 4, **{NAME: WHOLE}) == []
    assert lost(history, 1.5, 4) == []  # it was being made


def test_what_was_removed_need_not_be_there() -> None:
    history = History()
    made(history, NAME, 1, 2)
    history.removed["c", NAME].append(Span(5))
    assert lost(history, 3, 4) != []
    assert lost(history, 3, 6) == []
    assert lost(history, 7, 8) == []


def test_a_rollback_takes_what_its_snapshot_has_not() -> None:
    history = History()
    made(history, "gen-1.0.0.1-1", 1, 2)
    history.snapshots["c", "s"] = Span(3, 4)
    made(history, "gen-1.0.0.2-1", 5, 6)
    history.rollbacks["c"].append((Span(7, 8), "s"))
    assert lost(history, 6.5, 6.9) == ["gen-1.0.0.1-1: it is missing", "gen-1.0.0.2-1: it is missing"]
    assert lost(history, 6.5, 7.5) == ["gen-1.0.0.1-1: it is missing"]
    assert lost(history, 9, 10) == ["gen-1.0.0.1-1: it is missing"]
    made(history, "gen-1.0.0.3-1", 11, 12)
    assert "gen-1.0.0.3-1: it is missing" in lost(history, 13, 14)


def test_of_what_is_made_at_once_no_part_may_be_seen() -> None:
    history = History()

    def torn(begin: float, end: float, name: str = NAME) -> list[str]:
        return history.torn(Seen("c", Span(begin, end), "export", {name: "torn"}))

    assert torn(1, 2) == [f"{NAME}: torn"]
    assert torn(1, 2, "in-1.0.0.5-3") == []  # it is copied
    history.removed["c", NAME].append(Span(3, 4))
    assert torn(3.5, 5) == []
    assert torn(5, 6) == [f"{NAME}: torn"]


def test_journals_say_what_was_done_and_what_nobody_saw_the_end_of(tmp_path: Path) -> None:
    def write(process: str, *notes: dict[str, object], more: str = "") -> None:
        (tmp_path / process).write_text("".join(json.dumps(note) + "\n" for note in notes) + more)

    write(
        "1.0",
        {"kind": "made", "at": 2, "of": "c", "name": NAME, "begin": 1},
        {"kind": "made", "at": 6, "of": "c", "name": "gen-x-1", "begin": 4},
        {"kind": "rollback", "begins": 0, "at": 7, "of": "c", "name": "s"},
        {"kind": "rollback", "ends": 0, "at": 8, "is_done": False},
        {"kind": "commit", "begins": 1, "at": 9, "of": "c", "name": "own-1:1"},
        {"kind": "commit", "ends": 1, "at": 10, "is_done": True, "image": "sha256:1"},
        {"kind": "commit", "begins": 2, "at": 11, "of": "c", "name": "own-2:1"},
        {"kind": "shown", "at": 11.5, "name": "own-1:1", "found": {NAME: "torn"}, "maker": "1.0.0"},
        {"kind": "shown", "at": 11.6, "name": "own-built:1", "found": {}, "maker": "1.0.0"},
        more='{"kind": "comm',
    )
    write(
        "2.0",
        {"kind": "forced", "begins": 0, "at": 5, "of": "c"},
        {"kind": "forced", "ends": 0, "at": 5.5, "is_done": False},
    )
    told = hands.read_journals(tmp_path, {"1.0": 12.0})
    assert told.history.made["c"] == {NAME: Span(1, 2)}  # the other one was disturbed
    assert told.history.rollbacks["c"] == []
    assert told.committed == {
        "own-1:1": ("c", Span(9, 10), "sha256:1"),
        "own-2:1": ("c", Span(11, 13), None),
    }
    assert told.seen == [Seen("c", Span(9, 10), "image own-1:1 mounted by 1.0.0", {NAME: "torn"})]


def test_what_a_rollback_takes_may_be_missed_by_who_writes_meanwhile() -> None:
    told = hands.Told()
    told.history.rollbacks["c"].append((Span(3, 5), "s"))

    def is_excused(begin: float, at: float, *, of: str = "c", verb: str = "unpack", number: int = errno.ENOENT) -> bool:
        return told.is_excused({"of": of, "verb": verb, "begin": begin, "at": at, "errno": number})

    assert is_excused(1, 4)
    assert is_excused(4, 6, verb="copy-in", number=errno.ESTALE)
    assert not is_excused(1, 4, verb="run")
    assert not is_excused(1, 2)
    assert not is_excused(1, 4, of="d")
    assert not is_excused(1, 4, verb="commit")
    assert not is_excused(1, 4, number=errno.EIO)


@pytest.fixture
def mounted_twice(tmp_path: Path) -> Iterator[Path]:
    target = tmp_path / "here"
    target.mkdir()
    count = 0
    try:
        for _ in range(2):
            subprocess.run(["mount", "-t", "tmpfs", "none", str(target)], check=True)
            count += 1
        yield target
    finally:
        for _ in range(count):
            subprocess.run(["umount", str(target)], check=True)


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_what_is_mounted_twice_is_seen(mounted_twice: Path, tmp_path: Path) -> None:
    with hands.MountWatcher(tmp_path) as watcher:
        wait_for(lambda: watcher.doubles == [str(mounted_twice)])
    with hands.MountWatcher(tmp_path / "elsewhere") as watcher:
        wait_for(lambda: watcher.looks > 1)
    assert watcher.doubles == []


def test_a_lock_that_is_held_is_told(tmp_path: Path) -> None:
    with (tmp_path / "lock").open("w") as file:
        assert hands.locks_of([os.getpid()], tmp_path) == []
        fcntl.flock(file, fcntl.LOCK_SH)
        assert hands.locks_of([os.getpid()], tmp_path) == [f"process {os.getpid()} holds FLOCK READ of {tmp_path}/lock"]
