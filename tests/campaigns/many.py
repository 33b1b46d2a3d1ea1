"""Many processes and threads on one store, with everything else that a store does beside them.

    make many                                           16 processes of 200 rounds each, 200 that begin at once
    make many MANY_ARGS="--processes 4 --rounds 10"     fewer

Each process makes containers of either driver, writes to them, commits them, reads the image back, and removes both.
Beside them garbage is collected, the store is checked, what is unused is pruned and evicted, images that share layers
are loaded, built and removed, and loads are killed while others wait for them. Every read is verified, and compared
with what was written. In the end the store must be sound and what it was in the beginning: the same images and
containers, and the same bytes on disk but for blocks that are partly used.

A process that does nothing for two minutes hangs: where all of them wait is told, and it counts as crashed.
"""

import argparse
import contextlib
import faulthandler
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from images import Image, docker_files, tar_of
from layer_model import Entry, write_tar

from campaigns import record
from layerstore import Store
from layerstore.errors import LayerstoreError

PATIENCE_SECONDS = 120
SLACK_BYTES = 256 << 10
"""What the store may take more on disk than before: blocks that are partly used, directories that have grown."""
COMPANIONS = ("collect", "check", "prune", "load", "load", "build")
_KINDS = ("packs", "objects", "cold", "layers", "chains", "blobs", "containers", "logs", "staging", "downloads")


def layer(name: str) -> bytes:
    """A layer of 30 small files and a large one."""
    draw = random.Random(name)
    entries = [Entry("file", f"{name}/{n}", data=draw.randbytes(draw.randrange(1, 9_000))) for n in range(30)]
    return write_tar([*entries, Entry("file", f"{name}/large", data=draw.randbytes(300_000))])


def expected(name: str) -> dict[str, bytes]:
    """The files of a layer."""
    draw = random.Random(name)
    files = {f"{name}/{n}": draw.randbytes(draw.randrange(1, 9_000)) for n in range(30)}
    return {**files, f"{name}/large": draw.randbytes(300_000)}


class Wrong(Exception):
    """What was read is not what was written."""


def compare(store: Store, image: str, files: dict[str, bytes]) -> None:
    for path, read in zip(files, store.image(image).view.read_many(list(files)), strict=True):
        if read != files[path]:
            raise Wrong(f"{path} of {image} has other bytes")


# What the processes do


@dataclass
class Worker:
    """One process, or thread of one, and the file that it notes in what it is doing."""

    store: Store
    number: int
    scratch: Path
    done: int = 0
    wrong: int = 0
    failures: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._status = self.scratch / "status" / f"{os.getpid()}.{self.number}"
        self.note("begins")

    def note(self, what: str) -> None:
        self._status.write_text(f"round {self.done}: {what}")

    def attempt(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Wrong as error:
            self.wrong += 1
            self.failures.append(str(error))
        except BaseException:
            self.failures.append(traceback.format_exc())
        self.done += 1

    def round(self) -> None:
        """A container: made, written to, committed, read back, removed."""
        store, tag = self.store, f"work:{self.number}-{self.done}"
        data = os.urandom(random.choice((10, 5_000, 200_000)))
        driver = "overlay" if os.geteuid() == 0 and self.done % 2 else "extent"
        self.note(f"creates a container of the {driver} driver")
        container = store.create("base:1", driver=driver)  # type: ignore[arg-type]  # one of the two
        self.note("writes")
        if driver == "overlay":
            with container.mount() as root:
                (root / "written").write_bytes(data)
                if (root / "base/3").read_bytes() != expected("base")["base/3"]:
                    raise Wrong("a mounted file has other bytes")
        else:
            with container.open("/written", "wb") as file:
                file.write(data)
        self.note("commits")
        container.commit(tag)
        self.note("reads")
        compare(store, tag, {"written": data, **expected("base")})
        self.note("removes the container")
        store.remove([container])
        self.note("removes the image")
        store.remove_image(tag)
        self.note("begins the next round")

    def collect(self) -> None:
        self.note("collects garbage")
        self.store.collect_garbage()

    def check(self) -> None:
        self.note("checks")
        report = self.store.check(quick=self.done % 4 != 0)
        if not report.is_clean:
            raise Wrong(f"not sound: {report.damages[:3]}")

    def prune(self) -> None:
        self.note("prunes")
        self.store.prune(older_than_seconds=3600)
        self.note("looks what is used")
        self.store.usage()
        self.note("evicts")
        self.store.evict_derived(0)

    def load(self) -> None:
        """An image of layers that others load at the same time."""
        names = [f"shared{n}" for n in random.sample(range(4), 2)]
        tag = f"loaded:{self.number}-{self.done}"
        self.note("loads")
        self.store.load(io.BytesIO(tar_of(docker_files([Image([layer(name) for name in names], [tag])]))))
        self.note("reads what it loaded")
        compare(self.store, tag, {**expected(names[0]), **expected(names[1])})
        self.note("removes what it loaded")
        self.store.remove_image(tag)

    def build(self) -> None:
        context = self.scratch / "context"
        tag = f"built:{self.number}-{self.done}"
        self.note("builds")
        self.store.build(context, names=[tag], build_args={"round": str(self.done // 3)}, pull="never")
        compare(self.store, tag, {"copied/file": b"of the context"})
        self.note("removes what it built")
        self.store.remove_image(tag)

    def told(self) -> dict[str, object]:
        return {"done": self.done, "wrong": self.wrong, "failures": self.failures}


def work(role: str, root: Path, number: int, rounds: int, scratch: Path) -> int:
    """What a process does, in its role; `rounds` is 0 where it goes on until it is told to stop."""
    faulthandler.register(signal.SIGUSR1)
    with Store(root, verify="always") as store:
        count = 4 if role == "threads" else 1
        workers = [Worker(store, number * 100 + each, scratch) for each in range(count)]

        def run(worker: Worker) -> None:
            step = worker.round if role in ("round", "threads") else getattr(worker, role)
            while worker.done < rounds // count if rounds else not (scratch / "stop").exists():
                worker.attempt(step)

        threads = [threading.Thread(target=run, args=(worker,)) for worker in workers[1:]]
        for thread in threads:
            thread.start()
        run(workers[0])
        for thread in threads:
            thread.join()
    for worker in workers:
        print(json.dumps(worker.told()))
    return 0


# The campaign


@dataclass
class Running:
    role: str
    process: subprocess.Popen[str]
    log: Path

    def said(self) -> list[dict[str, object]]:
        out = self.process.communicate()[0]
        return [json.loads(line) for line in out.splitlines()]


class Campaign:
    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch
        self.root = scratch / "store"
        (scratch / "status").mkdir()
        (scratch / "context").mkdir()
        (scratch / "context/file").write_bytes(b"of the context")
        (scratch / "context/Dockerfile").write_text("FROM base:1\nARG round\nENV ROUND=$round\nCOPY file /copied/\n")
        self.hung = 0
        self.counts: dict[str, int] = {}

    def start(self, role: str, number: int, rounds: int) -> Running:
        log = self.scratch / f"{role}.{number}.log"
        command = [sys.executable, "-m", "campaigns.many", "--as", role, str(number), str(rounds), str(self.scratch)]
        with log.open("w") as errors:
            return Running(role, subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True), log)

    def state(self) -> tuple[set[str], int, int]:
        """The names of images, the number of containers, and what the store takes on disk without what is derived."""
        with Store(self.root) as store:
            store.evict_derived(0)
            store.collect_garbage()
            return {name for image in store.images() for name in image.names}, len(store.containers()), self.used()

    def used(self) -> int:
        paths = [path for kind in _KINDS for path in (self.root / kind).rglob("*") if not path.is_dir()]
        return sum(path.lstat().st_blocks * 512 for path in paths)

    def wait(self, processes: list[Running]) -> None:
        """Until they have ended; of one that hangs, and of all others, where they wait is told, and all are killed."""
        while any(running.process.poll() is None for running in processes):
            time.sleep(0.2)
            alive = {running.process.pid for running in processes if running.process.poll() is None}
            for path in (self.scratch / "status").iterdir():
                waits = time.time() - path.stat().st_mtime
                if int(path.name.split(".")[0]) in alive and waits > PATIENCE_SECONDS:
                    self.hung += 1
                    self.tell_where(alive)
                    for running in processes:
                        running.process.kill()
                    return

    def tell_where(self, alive: set[int]) -> None:
        for path in sorted((self.scratch / "status").iterdir()):
            pid = int(path.name.split(".")[0])
            if pid in alive:
                print(f"process {path.name} {path.read_text()}, since {time.time() - path.stat().st_mtime:.0f} s")
                os.kill(pid, signal.SIGUSR1)
        time.sleep(2)
        print(Path("/proc/locks").read_text())
        for log in sorted(self.scratch.glob("*.log")):
            print(f"{log.name}:\n{log.read_text()}", flush=True)

    def kill_loads(self, stop: threading.Event) -> None:
        """Loads that are killed, of layers that others load and wait for."""
        source = self.scratch / "victim.tar"
        images = [Image([layer("shared0"), layer("shared1"), layer(f"own{n}")], [f"victim:{n}"]) for n in range(3)]
        source.write_bytes(tar_of(docker_files(images)))
        killed = 0
        while not stop.is_set():
            command = [sys.executable, "-m", "layerstore", "--root", str(self.root), "load", "-i", str(source)]
            victim = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            with contextlib.suppress(subprocess.TimeoutExpired):
                victim.wait(random.uniform(0.05, 0.6))
            victim.kill()
            killed += victim.wait() == -signal.SIGKILL
            stop.wait(0.2)
        self.counts["killed"] = killed

    def many(self, processes: int, rounds: int) -> Iterator[record.Row]:
        with Store(self.root, create=True) as store:
            store.load(io.BytesIO(tar_of(docker_files([Image([layer("base")], ["base:1"])]))))
        names, containers, used = self.state()
        workers = [self.start("threads" if n % 4 == 3 else "round", n, rounds) for n in range(processes)]
        companions = [self.start(role, 1000 + n, 0) for n, role in enumerate(COMPANIONS)]
        stop = threading.Event()
        killer = threading.Thread(target=self.kill_loads, args=(stop,))
        killer.start()
        try:
            self.wait(workers)
        finally:
            stop.set()
            killer.join()
            (self.scratch / "stop").touch()
            self.wait(companions)
        lost = self.leftovers(names, containers, used)
        yield self.row(f"create, write, commit, rm by {processes} processes", workers, lost)
        for role in dict.fromkeys(COMPANIONS):
            yield self.row(f"{role} beside them", [running for running in companions if running.role == role], 0)
        yield record.Row("SIGKILL of a load beside them that others wait for", self.counts["killed"])

    def row(self, what: str, processes: list[Running], leaked: int) -> record.Row:
        tried = corrupt = crashed = 0
        for running in processes:
            said = running.said()
            crashed += running.process.returncode != 0
            for each in said:
                failures = each["failures"]
                assert isinstance(failures, list)
                tried += int(str(each["done"]))
                corrupt += int(str(each["wrong"]))
                crashed += len(failures) - int(str(each["wrong"]))
                for failure in failures[:3]:
                    print(f"{running.role}: {failure}", flush=True)
            if running.process.returncode:
                print(
                    f"{running.role} exited with {running.process.returncode}:\n{running.log.read_text()}", flush=True
                )
        return record.Row(what, tried, corrupt=corrupt, crashed=crashed, leaked=leaked)

    def leftovers(self, names: set[str], containers: int, used: int) -> int:
        """How much of what was there only meanwhile is there in the end, and whether the store is sound."""
        with Store(self.root) as store:
            for n in range(3):
                with contextlib.suppress(LayerstoreError):  # those of a load that had ended
                    store.remove_image(f"victim:{n}")
            damages = store.check().damages
        left = [f"damage: {damage}" for damage in damages]
        now = self.state()
        left += [f"images {sorted(now[0] ^ names)}"] if now[0] != names else []
        left += [f"{now[1]} containers"] if now[1] != containers else []
        left += [f"{now[2] - used} bytes"] if now[2] > used + SLACK_BYTES else []
        mounts = [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(self.root) in line]
        left += [f"{len(mounts)} mounts"] if mounts else []
        left += [f"{name} in staging" for name in os.listdir(self.root / "staging")]
        for line in left:
            print(f"left: {line}", flush=True)
        return len(left) + self.hung

    def at_once(self, count: int) -> record.Row:
        """Processes that begin at the same moment, each of which writes to the database."""
        command = [
            sys.executable,
            "-m",
            "layerstore",
            "--root",
            str(self.root),
            "create",
            "--driver",
            "extent",
            "base:1",
        ]
        started = [
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(count)
        ]
        crashed = 0
        for process in started:
            _, said = process.communicate(timeout=600)
            if process.returncode:
                crashed += 1
                print(f"create: {said}", flush=True)
        with Store(self.root) as store:
            made = store.containers()
            store.remove(made)
        return record.Row(
            "processes that create at the same moment", count, lost=count - len(made) - crashed, crashed=crashed
        )


def main() -> int:
    if sys.argv[1:2] == ["--as"]:
        role, number, rounds, scratch = sys.argv[2:]
        return work(role, Path(scratch) / "store", int(number), int(rounds), Path(scratch))
    parser = argparse.ArgumentParser(prog="many", description="Many processes and threads on one store.")
    parser.add_argument("--processes", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=200, help="of each process")
    parser.add_argument("--at-once", type=int, default=200, help="processes that begin at the same moment")
    parser.add_argument("--scratch", type=Path, default=Path("/var/tmp"), help="where the store is")
    parser.add_argument("--record", action="store_true", help="write the results, and the table of docs/reliability.md")
    options = parser.parse_args()
    begin = time.monotonic()
    scratch = Path(tempfile.mkdtemp(prefix="layerstore-many-", dir=options.scratch))
    try:
        campaign = Campaign(scratch)
        rows = [*campaign.many(options.processes, options.rounds), campaign.at_once(options.at_once)]
    finally:
        shutil.rmtree(scratch)
    if options.record:
        record.write("many", rows, record.command_of("many", sys.argv[1:]), time.monotonic() - begin)
    return record.told(rows)


if __name__ == "__main__":
    sys.exit(main())
