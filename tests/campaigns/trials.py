"""Trials of operations: a store as it is before, run after run on copies of it, and what must hold after each.

    template = prepare(operations()["fork-extent"], directory)
    place = template.copy(directory / "trial")
    ... run the operation there and interrupt it: `acknowledged` is what it told last ...
    check(template, place, acknowledged)

`check` raises `Failure`, which says what kind it is. It looks at the store, then does the rest of the operation, then
collects garbage; so the place is of no use after it.
"""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import time
import types
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from leftovers import loop_devices, mount_points

from campaigns.operations import Operation, Place
from campaigns.samples import Given
from campaigns.states import Failure, State, differences, disk_of, inside, is_store, snapshots_of, state_of
from layerstore import Store
from layerstore.errors import LayerstoreError

PATIENCE_SECONDS = 60
"""After which what a check does hangs."""
_LOOP_SECONDS = 10
"""The kernel gives a loop device back when the last who refers to it lets go, a process that just ended for one."""


@dataclass(frozen=True)
class Template:
    """An operation's store as it is before, and what a run that nobody disturbed makes of it.

    states: what the store shows before, and after each step.
    durable: of each step, whether a power loss may not take it.
    disk: what the store takes at the end, once garbage was collected.
    snapshots: what is in each snapshot at the end.
    """

    operation: Operation
    directory: Path
    states: list[State]
    durable: list[bool]
    disk: Counter[str]
    snapshots: State

    def copy(self, directory: Path) -> Place:
        """A new place with the store as it is before."""
        copied = Place.below(directory)
        copy_place(Place.below(self.directory), copied)
        return copied


def copy_place(source: Place, copied: Place) -> None:
    for made in (copied.store, copied.inputs, copied.outputs):
        made.parent.mkdir(parents=True, exist_ok=True)
    for have, want in ((source.store, copied.store), (source.outputs, copied.outputs)):
        if have.exists():
            subprocess.run(["cp", "-a", "--sparse=always", have, want], check=True)
    if (pool := copied.store / "pool.img").exists():
        # The kernel mounts no two file systems of one UUID.
        subprocess.run(["xfs_admin", "-U", "generate", pool], check=True, stdout=subprocess.DEVNULL)
    if source.inputs != copied.inputs:
        copied.inputs.symlink_to(source.inputs)


def prepare(operation: Operation, directory: Path, registry: int = 0) -> Template:
    """Make the template of an operation in a new directory. `registry` is the port of a docker-registry."""
    place = Place.below(directory)
    for made in (place.inputs, place.outputs):
        made.mkdir(parents=True)
    if not operation.creates:
        with operation.open(place, create=True) as store:
            operation.before(Given(store, place, registry))
            store.umount(store.containers())
    undisturbed = Place.below(directory / "undisturbed")
    copy_place(place, undisturbed)
    states = [_state(undisturbed)]
    operation.run(undisturbed, lambda _: states.append(_state(undisturbed)))
    durable = [step.durable for step in operation.steps(undisturbed)]
    disk = _settle(undisturbed)
    if (final := _state(undisturbed)) != states[-1]:
        raise Failure("lost", f"garbage collection changed something: {differences(final, states[-1])}")
    snapshots = snapshots_of(undisturbed.store)
    shutil.rmtree(undisturbed.store.parent)
    return Template(operation, directory, states, durable, disk, snapshots)


def check(template: Template, place: Place, acknowledged: int, *, power_lost: bool = False) -> None:
    """What must hold after a run came to an end that had acknowledged so many steps; else raises `Failure`.

    What it shows is what it showed after these steps, or after one more. (After a loss of power, after the last durable
    one of these at least.) Everything in it can be read, layers have their digests, and fsck finds no damage. The rest
    of the steps can be done, and after that the store shows what it does after an undisturbed run. Garbage collection
    then brings its files and rows to what it brings them to after an undisturbed run. No mount, loop device or lock is
    left.
    """
    with patience():
        done = reached(template, place, acknowledged, power_lost=power_lost)
        if not template.operation.damaged:
            _check_digests(place, "after it was interrupted", power_lost)
        with _failing("lost", "the operation cannot be run again"):
            template.operation.run(place, lambda _: None, done)
        _compare("lost", "after the rest of the operation", _expected(template, _state(place)), template.states[-1])
        disk = _settle(place)
        _compare("lost", "after garbage was collected", _state(place), template.states[-1])
        _compare_disk(template, disk, power_lost)
        _check_digests(place, "after garbage was collected", power_lost)
        _compare("corrupt", "in snapshots", snapshots_of(place.store), template.snapshots)
        _check_leftovers(place)


def reached(template: Template, place: Place, acknowledged: int, *, power_lost: bool = False) -> int:
    """The number of steps that the store shows, of those that `check` allows. Raises `Failure`."""
    states, operation, last = template.states, template.operation, len(template.durable)
    first = acknowledged
    while power_lost and first and not template.durable[first - 1]:
        first -= 1
    tried = range(first, min(acknowledged + 1, last) + 1)
    loose = operation.partial if acknowledged < last else ()
    if power_lost and (acknowledged < last or first < acknowledged):
        loose += operation.unsynced

    def counted(state: State) -> State:
        return {key: lines for key, lines in state.items() if not key.startswith(loose or "\n")}

    found = counted(_expected(template, _state(place)))
    for number in tried:
        if found == counted(states[number]):
            return number
    told = [f"after {number}: {differences(found, counted(states[number]))}" for number in tried]
    raise Failure("lost", f"{acknowledged} of {last} steps were acknowledged, but it shows: " + "\n".join(told))


def _expected(template: Template, state: State) -> State:
    """The state without what may be there in passing."""
    if not template.operation.passing:
        return state
    known = {key for each in template.states for key in each}
    return {key: lines for key, lines in state.items() if key in known or not key.startswith(("image ", "container "))}


def _state(place: Place) -> State:
    return state_of(place.store, place.outputs)


def _check_digests(place: Place, when: str, power_lost: bool) -> None:
    """After a loss of power what is derived may be damaged: it is not synced, and made again when it is needed."""
    if not is_store(place.store):
        return
    with _failing("corrupt", f"fsck {when}"), Store(place.store) as store:
        passing = ("chain", "build step") if power_lost else ()
        if damages := [damage for damage in store.check().damages if damage.what not in passing]:
            raise Failure("corrupt", f"fsck finds damage {when}: {[vars(damage) for damage in damages]}")


def _compare(kind: str, when: str, found: State, expected: State) -> None:
    if found != expected:
        raise Failure(kind, f"{when}: {differences(found, expected)}")


def _settle(place: Place) -> Counter[str]:
    """Unmount everything, and collect garbage; returns what there is on disk then."""
    with _failing("leaked", "garbage cannot be collected"):
        with Store(place.store) as store:
            store.umount(store.containers())
            store.collect_garbage()
        outputs = Counter(f"output {path.relative_to(place.outputs)}" for path in place.outputs.rglob("*"))
        with inside(place.store) as directory:
            return disk_of(directory) + outputs


def _compare_disk(template: Template, found: Counter[str], power_lost: bool) -> None:
    """Of logs their number counts alone: what is done again is written again, and XFS reserves blocks behind it.

    After a loss of power no file's blocks do, nor where blobs were pushed to: the rest is pushed from another place,
    to another repository. What a repair could not read is kept, and an empty directory for garbage stays.
    """

    def counted(disk: Counter[str]) -> Counter[str]:
        counts: Counter[str] = Counter()
        for name, count in disk.items():
            if name.startswith("quarantine/") or name == "containers/*/removed/":
                continue
            if power_lost and name == "rows of blob_places":
                continue
            without_blocks = re.sub(r" \d+$", "", name) if power_lost else name
            counts["logs" if name.startswith("logs/* ") else without_blocks] += count
        return counts

    more, less = counted(found) - counted(template.disk), counted(template.disk) - counted(found)
    if more or less:
        kind = "leaked" if more else "lost"
        raise Failure(kind, f"on disk after garbage was collected: more {dict(more)}, less {dict(less)}")


def _check_leftovers(place: Place) -> None:
    deadline = time.monotonic() + _LOOP_SECONDS
    while left := _leftovers(f"{place.store.parent}/"):
        if time.monotonic() > deadline:
            raise Failure("leaked", f"left: {left}")
        time.sleep(0.01)


def _leftovers(top: str) -> list[str]:
    left = [f"mount {path}" for path in mount_points() if path.startswith(top)]
    return left + [f"{device} of {file}" for device, file in loop_devices().items() if file.startswith(top)]


@contextlib.contextmanager
def _failing(kind: str, what: str) -> Iterator[None]:
    """Has errors of the block be a `Failure`."""
    try:
        yield
    except (LayerstoreError, OSError, AssertionError) as error:
        raise Failure(kind, f"{what}: {type(error).__name__}: {error}") from error


@contextlib.contextmanager
def patience() -> Iterator[None]:
    """Has what hangs in the block be a `Failure`: somebody holds a lock. In a main thread."""

    def out(number: int, frame: types.FrameType | None) -> None:
        raise Failure("leaked", f"it hung for {PATIENCE_SECONDS} seconds")

    before = signal.signal(signal.SIGALRM, out)
    signal.alarm(PATIENCE_SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def remove_place(place: Place) -> None:
    """A place that a campaign has done with, mounts of a check that failed included."""
    from layerstore._core import mount

    for path in sorted(mount_points(), reverse=True):
        if path.startswith(f"{place.store}/"):
            with contextlib.suppress(OSError):
                mount.umount(path, lazy=True)
    for made in (place.store, place.outputs):
        shutil.rmtree(made, ignore_errors=True)
    if place.inputs.is_symlink():
        os.unlink(place.inputs)
