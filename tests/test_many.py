"""Many at once on one store: work is done once, locks go with who held them, nobody is turned away."""

import io
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from images import Image, docker_files, tar_of
from layer_model import Entry, write_tar
from meddling import ALWAYS, Meddling
from waiting import wait_for

from layerstore import Store
from layerstore.layers import imports
from layerstore.store import locks
from layerstore.store.layout import Layout
from layerstore.store.locks import Claims

ROOT = Path(__file__).parent.parent


def layer(name: str) -> bytes:
    return write_tar([Entry("file", f"{name}{n}", data=f"{name} {n} ".encode() * 500) for n in range(20)])


A, B, C = layer("a"), layer("b"), layer("c")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    Store(tmp_path / "store", create=True).close()
    return tmp_path / "store"


@pytest.fixture
def ingested(meddle: Meddling) -> list[Any]:
    """Every layer that is read and stored, by whichever import. Each takes a while, so that the others are there."""
    return meddle.before(imports.Import, "_ingest", lambda: time.sleep(0.05), times=ALWAYS)


def at_once(*works: Callable[[], object]) -> list[BaseException]:
    """Do all in threads that begin together; what they raised."""
    barrier = threading.Barrier(len(works))
    failed: list[BaseException] = []

    def run(work: Callable[[], object]) -> None:
        barrier.wait()
        try:
            work()
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=run, args=(work,), daemon=True) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads), "they wait for each other"
    return failed


def archive(tmp_path: Path, image: Image) -> Path:
    path = tmp_path / f"{image.names[0].replace(':', '-')}.tar"
    path.write_bytes(tar_of(docker_files([image])))
    return path


def live_packs(root: Path) -> int:
    return len(list((root / "packs").glob("*.pack")))


def loading(root: Path, source: Path) -> Callable[[], object]:
    def load() -> None:
        with Store(root) as store:
            store.load(source)

    return load


def test_an_image_that_several_load_at_once_is_read_once(root: Path, tmp_path: Path, ingested: list[Any]) -> None:
    source = archive(tmp_path, Image([A, B], ["ab:1"]))
    assert not at_once(*[loading(root, source)] * 4)
    assert len(ingested) == 2
    assert live_packs(root) == 1
    with Store(root) as store:
        assert store.image("ab:1").view.read_bytes("a3").startswith(b"a 3 ")


def test_layers_that_images_share_are_read_once_whatever_their_order(
    root: Path, tmp_path: Path, ingested: list[Any]
) -> None:
    stacks = [[A, B], [B, A], [B, C], [C, A], [A, B, C], [C, B, A]]
    sources = [archive(tmp_path, Image(stack, [f"x{n}:1"])) for n, stack in enumerate(stacks)]
    assert not at_once(*(loading(root, source) for source in sources))
    assert len(ingested) == 3
    with Store(root) as store:
        assert len(store.images()) == 6
        assert store.usage().parts["garbage"].size_bytes == 0


def test_of_a_load_that_fails_the_next_one_takes_over(root: Path, tmp_path: Path, ingested: list[Any]) -> None:
    good = archive(tmp_path, Image([A, B], ["good:1"]))
    files = docker_files([Image([A, B], ["bad:1"])])
    bad = tmp_path / "bad.tar"
    bad.write_bytes(tar_of(files)[:-40_000])
    failed = at_once(loading(root, bad), loading(root, good))
    assert len(failed) == 1
    with Store(root) as store:
        assert [image.names for image in store.images()] == [["good:1"]]
        assert store.image("good:1").view.read_bytes("b3").startswith(b"b 3 ")


@pytest.mark.parametrize("count", [2, 4])
def test_streams_of_one_image_leave_nothing_twice(root: Path, tmp_path: Path, count: int) -> None:
    """A stream has to be read to know what is in it; but what is in it is stored once."""
    data = tar_of(docker_files([Image([A, B], ["ab:1"])]))

    class Stream(io.BytesIO):
        def seekable(self) -> bool:
            return False

    def load() -> None:
        with Store(root) as store:
            store.load(Stream(data))

    assert not at_once(*[load] * count)
    with Store(root) as store:
        assert store.usage().parts["garbage"].size_bytes == 0
        assert store.image("ab:1").view.read_bytes("a3").startswith(b"a 3 ")
    assert live_packs(root) == 1


def test_two_commits_of_one_container_leave_nothing_twice(root: Path, tmp_path: Path) -> None:
    with Store(root) as store:
        store.load(archive(tmp_path, Image([A], ["a:1"])))
        made = store.create("a:1", driver="extent", name="work")
        with made.open("/new", "wb") as file:
            file.write(b"written" * 5_000)

        def commit(name: str) -> Callable[[], object]:
            return lambda: store.container("work").commit(name)

        assert not at_once(commit("one:1"), commit("two:1"), commit("three:1"))
        assert store.usage().parts["garbage"].size_bytes == 0
        assert live_packs(root) == 2


def test_who_is_killed_gives_way(root: Path, tmp_path: Path) -> None:
    source = archive(tmp_path, Image([A, B], ["ab:1"]))
    code = (
        "import sys, time; from layerstore import Store\n"
        "def stop(progress): print('holds', flush=True); time.sleep(1000)\n"
        "Store(sys.argv[1]).load(sys.argv[2], progress=stop)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, root, source], stdout=subprocess.PIPE, cwd=ROOT)
    assert holder.stdout is not None
    try:
        assert holder.stdout.readline() == b"holds\n"
        command = [sys.executable, "-m", "layerstore", "--root", root, "load", "-i", source]
        waiter = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        wait_for(lambda: is_waited_for(root / "run" / "layers.lock"))
        assert waiter.poll() is None
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.communicate()
    _, said = waiter.communicate(timeout=60)
    assert waiter.returncode == 0, said
    with Store(root) as store:
        assert store.image("ab:1").view.read_bytes("a3").startswith(b"a 3 ")
        store.collect_garbage()
        assert os.listdir(root / "staging") == []
    assert live_packs(root) == 1


def is_waited_for(lock: Path) -> bool:
    inode = f":{lock.stat().st_ino} "
    return any("->" in line and inode in line for line in Path("/proc/locks").read_text().splitlines())


def test_claims(tmp_path: Path) -> None:
    first, second = Claims(str(tmp_path / "lock")), Claims(str(tmp_path / "lock"))
    one, two = "sha256:" + "1" * 64, "f" * 64
    first.take([two, one])
    assert not second.try_take(one) and not second.try_take(two)
    first.release([one])
    assert second.try_take(one) and not second.try_take(two)
    first.close()
    assert second.try_take(two)
    second.close()


def test_many_processes_create_at_once(root: Path, tmp_path: Path) -> None:
    """Of 40 processes that write to the database at the same moment none is turned away."""
    with Store(root) as store:
        store.load(archive(tmp_path, Image([A], ["a:1"])))
    command = [
        sys.executable,
        "-m",
        "layerstore",
        "--root",
        root,
        "create",
        "--driver",
        "extent",
        "--count",
        "3",
        "a:1",
    ]
    processes = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(40)]
    said = [process.communicate(timeout=120) for process in processes]
    assert [err for _, err in said if err] == []
    with Store(root) as store:
        assert len(store.containers()) == 120


def test_a_check_is_not_misled_by_removals(root: Path, tmp_path: Path) -> None:
    with Store(root) as store, Store(root) as other:
        store.load(archive(tmp_path, Image([A], ["a:1"])))
        stop = threading.Event()

        def come_and_go() -> None:
            while not stop.is_set():
                other.remove(other.create("a:1", count=30))

        thread = threading.Thread(target=come_and_go)
        thread.start()
        try:
            for _ in range(6):
                assert store.check(quick=True).damages == ()
        finally:
            stop.set()
            thread.join()
        (left,) = store.create("a:1", count=1)
        shutil.rmtree(root / "containers" / left.id)
        assert [damage.what for damage in store.check().damages] == ["container"]


def test_who_wants_a_lock_alone_gets_it_from_sharers_without_an_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, seconds in (("_ASK_SECONDS", 1.0), ("_REST_SECONDS", 0.5)):
        monkeypatch.setattr(locks, name, seconds)
    (tmp_path / "run").mkdir()
    layout, stop = Layout(tmp_path), threading.Event()

    def share(pause: float) -> None:
        time.sleep(pause)
        while not stop.is_set():
            with locks.garbage(layout):
                time.sleep(0.1)

    threads = [threading.Thread(target=share, args=(n * 0.02,)) for n in range(5)]
    for thread in threads:
        thread.start()
    try:
        time.sleep(0.3)
        begin = time.monotonic()
        with locks.garbage_alone(layout):
            pass
        assert time.monotonic() - begin < 10
        # Who holds it and takes it again is not kept for long by one who asks.
        with locks.garbage(layout):
            asking = threading.Thread(target=lambda: at_once(lambda: take_alone(layout)))
            asking.start()
            time.sleep(0.1)
            with locks.garbage(layout, again=True):
                pass
        asking.join(60)
        assert not asking.is_alive()
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def take_alone(layout: Layout) -> None:
    with locks.garbage_alone(layout):
        pass
