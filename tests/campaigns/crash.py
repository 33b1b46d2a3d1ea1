"""Kills operations at each of their system calls that change something, and checks what is left.

    make crash                                              every call of every operation
    make crash CRASH_ARGS="--sample 300"                    so many of all of them
    make crash CRASH_ARGS="--operation load --at 17"        one case again
    make crash CRASH_ARGS="--operation load --calls"        which call is which

An operation (campaigns/operations.py) is run on a copy of its store, as a process of its own, under `step` (step.c),
which sends SIGKILL to it at its Nth call: before the call is made, or when it has been. What must hold then is
`trials.check`. Of operations with children (`build-run`) all processes are killed at once, and in other runs the first
alone, and the others go on. A sample is run again under strace(1), which counts for itself.
"""

import argparse
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import zip_longest
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

from registries import Registry

from campaigns import record
from campaigns.logged_disk import own_mounts
from campaigns.operations import PROGRAMS, Operation, Place, operations
from campaigns.states import Failure
from campaigns.trials import PATIENCE_SECONDS, Template, check, prepare, remove_place

ROOT = Path(__file__).parents[2]
MEMORY = Path("/dev/shm")
STRACE_OF_EACH = 6
"""Kills by strace of each operation in a long run."""


class Kill(NamedTuple):
    """Where an operation is killed: before or after its Nth call, and who is. By strace, at the Nth of a task's calls
    of one name."""

    operation: str
    at: int
    when: str = "before"
    whom: str = "all"
    strace: str = ""

    def __str__(self) -> str:
        if self.strace:
            return f"--operation {self.operation} --at {self.at} --strace {self.strace}"
        return f"--operation {self.operation} --at {self.at} --when {self.when} --whom {self.whom}"


class Outcome(NamedTuple):
    """`failure` is a kind of `Failure`, "" where all is well. `reached` is false where the run ended by itself."""

    kill: Kill
    reached: bool
    failure: str = ""
    text: str = ""


class Call(NamedTuple):
    """A line of the log of `step`."""

    number: int
    task: int
    name: str
    path: str


@dataclass(frozen=True)
class Run:
    """How the process of an operation came to its end."""

    calls: list[Call]
    status: int | None
    """Its exit status; None where it was killed."""
    acknowledged: int
    errors: str


def built_step() -> Path:
    """The program `step`, built where its source is newer."""
    source, program = Path(__file__).with_name("step.c"), ROOT / "build" / "campaigns" / "step"
    if not program.exists() or program.stat().st_mtime < source.stat().st_mtime:
        program.parent.mkdir(parents=True, exist_ok=True)
        made = program.with_suffix(f".{os.getpid()}")
        subprocess.run(["cc", "-std=gnu11", "-O2", "-Wall", "-Wextra", "-o", made, source], check=True)
        made.rename(program)
    return program


def run(place: Place, kill: Kill) -> Iterator[Run]:
    """Run an operation and kill it. Gives how that went; when asked once more, waits for processes that were left."""
    log, acknowledged, errors = (place.store.parent / name for name in ("log", "acknowledged", "errors"))
    operation = [sys.executable, "-m", "campaigns.operations", kill.operation, place.store.parent, acknowledged]
    if kill.strace:
        inject = f"inject={kill.strace}:signal=SIGKILL:when={kill.at}"
        command = ["strace", "-f", "-qq", "-o", log, "-e", f"trace={kill.strace}", "-e", inject, *operation]
    else:
        command = [built_step(), kill.when, str(kill.at), kill.whom, log, *operation]
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    with errors.open("wb") as err, subprocess.Popen(command, stdout=err, stderr=err, env=environment) as process:
        try:
            if kill.whom == "one":
                _wait_for_end(log)
            else:
                process.wait(PATIENCE_SECONDS)
            done = acknowledged.read_text().split() if acknowledged.exists() else []
            calls, status = ([], _status(process.returncode)) if kill.strace else _logged(log)
            yield Run(calls, status, int(done[-1]) if done else 0, errors.read_text()[-3000:])
            process.wait(PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            raise Failure("leaked", f"processes hang, or were left: {_logged(log)[0][-3:]}") from None
        finally:
            process.kill()  # and with it those that it traces


def _status(returncode: int) -> int | None:
    """Of strace, which ends as its first process does."""
    return None if returncode == -signal.SIGKILL else returncode


def _wait_for_end(log: Path) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not log.exists() or not log.read_text().rpartition("\n")[0].rpartition("\n")[2].startswith(
        ("killed", "ended")
    ):
        if time.monotonic() > deadline:
            raise Failure("crashed", "the operation hangs")
        time.sleep(0.01)


def _logged(log: Path) -> tuple[list[Call], int | None]:
    calls, status = [], None
    for line in log.read_text(errors="replace").splitlines():
        if line.startswith("ended"):
            status = os.waitstatus_to_exitcode(int(line.split()[1]))
        elif line != "killed":
            number, task, name, path = line.split(" ", 3)
            calls.append(Call(int(number), int(task), name, path))
    return calls, status


def tried(template: Template, kill: Kill, directory: Path) -> Outcome:
    """One trial. In a process whose main thread does nothing else."""
    place = template.copy(directory)
    try:
        runs = run(place, kill)
        ended = next(runs)
        # By strace it may be a child that is killed, of which its parent tells.
        failed_child = kill.strace and re.search(r"\b(BuildFailed|CommandFailed): |mkfs.xfs cannot", ended.errors)
        if ended.status not in (None, 0) and not failed_child:
            raise Failure("crashed", f"the operation ended with {ended.status}: {ended.errors}")
        check(template, place, ended.acknowledged)
        if next(runs, None) is not None:
            raise AssertionError("one run came to two ends")
    except Failure as failure:
        return Outcome(kill, True, failure.kind, str(failure))
    except Exception as error:
        return Outcome(kill, True, "crashed", f"{type(error).__name__}: {error}")
    finally:
        remove_place(place)
        shutil.rmtree(directory, ignore_errors=True)
    return Outcome(kill, ended.status != 0)


class Campaign:
    """Trials of some operations, in two directories; only what mounts something is on the disk, for it takes longer."""

    def __init__(self, chosen: Iterable[Operation], on_disk: Path, in_memory: Path, registry: int) -> None:
        self.templates: dict[str, Template] = {}
        self._calls: dict[str, list[Call]] = {}
        for operation in chosen:
            top = on_disk if "mount" in operation.needs else in_memory
            self.templates[operation.name] = prepare(operation, top / operation.name, registry)

    def calls(self, name: str) -> list[Call]:
        """The calls of an operation that nobody kills."""
        if name in self._calls:
            return self._calls[name]
        place = self.templates[name].copy(self._beside(name, "calls"))
        (ended,) = run(place, Kill(name, 0))
        remove_place(place)
        if ended.status != 0:
            raise SystemExit(f"{name} ended with {ended.status}: {ended.errors}")
        self._calls[name] = ended.calls
        return ended.calls

    def _beside(self, name: str, ending: str) -> Path:
        template = self.templates[name].directory
        return template.with_name(f"{template.name}.{ending}")

    def kills(self, name: str) -> list[Kill]:
        """Every one. After a call of a thread is before its next one, but where another one comes between."""
        calls = self.calls(name)
        last = [following is None or call.task != following.task for call, following in zip_longest(calls, calls[1:])]
        whom = ["all", "one"] if "runtime" in self.templates[name].operation.needs else ["all"]
        return [
            Kill(name, call.number, when, who)
            for call, is_last in zip(calls, last, strict=True)
            for when in (["before", "after"] if is_last else ["before"])
            for who in whom
        ]

    def kills_by_strace(self, name: str) -> list[Kill]:
        """Every one that strace can do, which counts for each thread and name."""
        counts = Counter((call.task, call.name) for call in self.calls(name))
        most: dict[str, int] = {}
        for (_, call), count in counts.items():
            most[call] = max(most.get(call, 0), count)
        return [Kill(name, at, strace=call) for call, count in most.items() for at in range(1, count + 1)]

    def run(self, kills: Sequence[Kill], jobs: int) -> Iterator[Outcome]:
        """All of them, in any order."""
        pool = ProcessPoolExecutor(jobs, mp_context=get_context("spawn"))
        try:
            waiting: list[Future[Outcome]] = [
                pool.submit(tried, self.templates[kill.operation], kill, self._beside(kill.operation, f"{number}"))
                for number, kill in enumerate(kills)
            ]
            for future in as_completed(waiting):
                yield future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def rows_of(outcomes: Iterable[Outcome]) -> list[record.Row]:
    """A row for each operation, of the kills that came to be."""
    counts: dict[str, Counter[str]] = {}
    for outcome in outcomes:
        if outcome.reached:
            counts.setdefault(outcome.kill.operation, Counter()).update(["tried", outcome.failure])
    kinds = ("tried", "lost", "corrupt", "crashed", "leaked")
    return [
        record.Row(f"SIGKILL at a system call of {name}", **{kind: count[kind] for kind in kinds})
        for name, count in sorted(counts.items())
    ]


def possible(operation: Operation) -> bool:
    """Can it be done here?"""
    have = {"root", "mount"} if os.geteuid() == 0 else set()
    have |= {"runtime"} if shutil.which("crun") or shutil.which("runc") else set()
    have |= {name for name, program in PROGRAMS.items() if shutil.which(program)}
    return operation.needs <= have


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m campaigns.crash")
    parser.add_argument("--operation", action="append", choices=list(operations()), help="only this; may be repeated")
    parser.add_argument("--at", type=int, help="only at this call")
    parser.add_argument("--when", choices=["before", "after"], help="only before it is made, or when it has been")
    parser.add_argument("--whom", choices=["all", "one"], help="only so: all processes, or the first one")
    parser.add_argument("--strace", metavar="CALL", help="by strace, at the call of that name that --at says")
    parser.add_argument("--calls", action="store_true", help="list the calls of operations, and kill nothing")
    parser.add_argument("--sample", type=int, help="so many kills, chosen by --seed, and as many more by strace / 10")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--directory", type=Path, help="where to work, by default in memory or /var/tmp")
    parser.add_argument("--record", action="store_true", help="write the counts to docs/reliability.md")
    return parser.parse_args(arguments)


def chosen_kills(campaign: Campaign, options: argparse.Namespace) -> list[Kill]:
    draw = random.Random(options.seed)
    kills: list[Kill] = []
    by_strace: list[Kill] = []
    for name in campaign.templates:
        if options.strace:
            by_strace.append(Kill(name, options.at, strace=options.strace))
            continue
        kills += [
            kill
            for kill in campaign.kills(name)
            if options.at in (None, kill.at) and options.when in (None, kill.when) and options.whom in (None, kill.whom)
        ]
        if options.at is None and shutil.which("strace"):
            here = campaign.kills_by_strace(name)
            by_strace += draw.sample(here, min(STRACE_OF_EACH, len(here)))
    if options.sample is not None:
        kills = draw.sample(kills, min(options.sample, len(kills)))
        by_strace = draw.sample(by_strace, min(options.sample // 10, len(by_strace)))
    draw.shuffle(kills)
    return kills + by_strace


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    begin = time.monotonic()
    known = operations()
    chosen = [known[name] for name in options.operation or known if possible(known[name])]
    if os.geteuid() == 0:
        own_mounts()  # or who makes a mount namespace beside it keeps what is mounted at that moment
    with ExitStack() as stack:
        directories = [options.directory] * 2 if options.directory else [Path("/var/tmp"), MEMORY]
        on_disk, in_memory = (
            Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="crash-", dir=made))) for made in directories
        )
        port = 0
        if any("registry" in operation.needs for operation in chosen):
            (in_memory / "registry").mkdir()
            port = stack.enter_context(Registry(in_memory / "registry")).port
        campaign = Campaign(chosen, on_disk, in_memory, port)
        if options.calls:
            for name in campaign.templates:
                for call in campaign.calls(name):
                    print(f"{name} {call.number}: {call.name} {call.path}")
            return 0
        kills = chosen_kills(campaign, options)
        print(f"{len(kills):,} kills of {len(chosen)} operations", flush=True)
        outcomes = []
        for outcome in campaign.run(kills, options.jobs):
            outcomes.append(outcome)
            if outcome.failure:
                print(f"{outcome.kill}: {outcome.text}", flush=True)
            if len(outcomes) % 500 == 0:
                print(f"{len(outcomes):,} done after {time.monotonic() - begin:.0f} s", flush=True)
    rows = rows_of(outcomes)
    if options.record:
        # Rows of operations alone come to those of the whole.
        command = record.command_of("crash", () if options.operation else sys.argv[1:])
        all_rows = record.merged("crash", rows) if options.operation else rows
        record.write("crash", all_rows, command, time.monotonic() - begin)
    return record.told(rows)


if __name__ == "__main__":
    sys.exit(main())
