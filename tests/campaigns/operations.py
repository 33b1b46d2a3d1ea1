"""The operations under test, which campaigns interrupt, have fail, or take the power away from.

An operation is a store as it is before, and steps: calls of the library that are acknowledged when they return. What a
store shows after each step is known from a run that nobody disturbed (`trials.prepare`). So after a run that came
to an end after so many steps, for whatever reason, a store must show what it showed after these, or after one more, and
nothing else (`trials.check`): a new operation says what is before, and what the steps are.

A run is a process of its own: `python -m campaigns.operations NAME DIRECTORY ACKNOWLEDGED [STEP]` does the steps from
STEP on (all) in a place (`Place`), and appends a line to the file ACKNOWLEDGED for each that was acknowledged.
"""

import contextlib
import hashlib
import importlib
import os
import random
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from layerstore import Container, Store
from layerstore.errors import LayerstoreError
from layerstore.naming import about, close_fd
from layerstore.store.pieces import write_at
from layerstore.store.pool import MIN_POOL_BYTES, Pool

if TYPE_CHECKING:
    from campaigns.samples import Given

EPOCH = "1500000000"
"""SOURCE_DATE_EPOCH of all that runs, so that images that are made have the same ids."""


PROGRAMS = {"registry": "docker-registry", "mkfs.xfs": "mkfs.xfs"}
"""What an operation may need, by the program that it is."""


class Place(NamedTuple):
    """Where an operation works: below one directory, or where a campaign wants them, a store, what is read, and what is
    written outside of the store."""

    store: Path
    inputs: Path
    outputs: Path

    @classmethod
    def below(cls, directory: Path) -> "Place":
        return cls(directory / "store", directory / "inputs", directory / "outputs")


class Step(NamedTuple):
    """One call of the library. When it has returned it is acknowledged, and when it is `durable`, too, a power loss
    takes neither it nor what came before it."""

    do: Callable[[Store], object]
    durable: bool = True


class CommandFailed(LayerstoreError):
    """A command of the command line ended with another status than 0: what it wrote to standard error."""


class Operation(ABC):
    """What one does to a store.

    Attributes:
        name: of the operation.
        needs: of what is to be there: "root", "mount" (a file system from which EROFS can be mounted, none in memory),
            "runtime" (crun or runc), and those of `PROGRAMS`.
        partial: beginnings of names of a state (campaigns/states.py) that a step which was not acknowledged may have
            done any part of. What it had written to a log then stays there, although it is written again.
        unsynced: beginnings of names of a state that may be anything after a power loss, unless the last
            acknowledged step was durable and no other was begun.
        passing: whether images and containers may be there that are none of its results, until the next run or
            garbage collection.
        creates: whether it makes the store.
        damaged: whether fsck finds damage until it is done.
    """

    name: ClassVar[str]
    needs: ClassVar[frozenset[str]] = frozenset()
    partial: ClassVar[tuple[str, ...]] = ()
    unsynced: ClassVar[tuple[str, ...]] = ()
    passing: ClassVar[bool] = False
    creates: ClassVar[bool] = False
    damaged: ClassVar[bool] = False

    def before(self, given: "Given") -> None:
        """Make the store as it is before, and write what is read into its place's `inputs`."""
        given.load("app")

    @abstractmethod
    def steps(self, place: Place) -> Sequence[Step]:
        """What is done, each step by itself: an interrupted run may go on at any of them, in another process."""

    def open(self, place: Place, *, create: bool = False) -> Store:
        """Open the store, which is made where the operation makes it or `create` says so."""
        return Store(place.store, create=create or self.creates)

    def run(self, place: Place, acknowledged: Callable[[int], None], first: int = 0) -> None:
        """Do the steps from `first` on; `acknowledged` is told, after each, how many are done."""
        os.environ["SOURCE_DATE_EPOCH"] = EPOCH
        steps = self.steps(place)
        with self.open(place) as store:
            for number, step in enumerate(steps[first:], first + 1):
                step.do(store)
                acknowledged(number)


def box(store: Store) -> Container:
    """The container that is there before (`Given.box`)."""
    return store.container("box")


@contextlib.contextmanager
def opened(path: Path, flags: int) -> Iterator[int]:
    """A descriptor of a file of a mounted container, for a program that tells of what fails on which file."""
    with about(path):
        fd = os.open(path, flags | os.O_CLOEXEC, 0o644)
        try:
            yield fd
        finally:
            close_fd(fd)


# Bringing images in


class Load(Operation):
    """A docker archive with gzip, then an OCI layout with zstd that shares layers with it: packs and objects."""

    name = "load"

    def before(self, given: "Given") -> None:
        given.load("sibling")
        given.write_archive("app.tar", "app", "docker", "gzip")
        given.write_archive("newer.tar", "newer", "oci", "zstd")

    def steps(self, place: Place) -> Sequence[Step]:
        archives = [place.inputs / "app.tar", place.inputs / "newer.tar"]
        return [Step(partial(Store.load, source=archive)) for archive in archives]


class ImportRootfs(Operation):
    name = "import"

    def before(self, given: "Given") -> None:
        given.load("sibling")
        given.write_layer("rootfs.tar", "flat")

    def steps(self, place: Place) -> Sequence[Step]:
        return [Step(lambda store: store.import_rootfs(place.inputs / "rootfs.tar", "flat:1"))]


class Pull(Operation):
    """From docker-registry, of layers that are new and one that is not, then a second image over them."""

    name = "pull"
    needs = frozenset({"registry"})

    def before(self, given: "Given") -> None:
        given.load("sibling")
        given.put("app", "newer")
        given.write("registry", given.registry.encode())

    def steps(self, place: Place) -> Sequence[Step]:
        host = (place.inputs / "registry").read_text()
        return [Step(partial(Store.pull, name=f"{host}/app:{tag}")) for tag in ("app", "newer")]


class Sync(Operation):
    """From another store, of an image that has layers and files that are new and others that are not, then of a second
    one that is more of it."""

    name = "sync"

    def before(self, given: "Given") -> None:
        given.load("sibling")
        given.write_store("other", "app", "newer", "sibling")

    def steps(self, place: Place) -> Sequence[Step]:
        def sync(store: Store, name: str) -> None:
            with Store(place.inputs / "other") as other:
                other.sync(name, store.root)

        return [Step(partial(sync, name=name)) for name in ("app:1", "newer:1")]


class Push(Operation):
    """To a repository of the registry that has nothing yet, then again: the store notes what is there."""

    name = "push"
    needs = frozenset({"registry"})

    def before(self, given: "Given") -> None:
        given.load("app")
        given.write("registry", given.registry.encode())

    def steps(self, place: Place) -> Sequence[Step]:
        host = (place.inputs / "registry").read_text()
        # Each place has a repository of its own, or most pushes would find everything there.
        name = f"{host}/{hashlib.sha256(os.fsencode(place.store)).hexdigest()[:16]}/app:1"
        return [Step(lambda store: store.push("app:1", name), durable=False)] * 2


class Build(Operation):
    """COPY and LABEL, over an image, in two stages of which one is of no use but to copy from."""

    name = "build"
    passing = True
    dockerfile = (
        "FROM app:1 AS first\nCOPY tree /copied/\nFROM app:1\nCOPY --from=first /copied/one /one\n"
        "WORKDIR /made\nCOPY tree/sub ./\nLABEL a=b\n"
    )

    def before(self, given: "Given") -> None:
        given.load("app")
        tree = {"one": b"1", "sub": {"two": b"2" * 5_000, "large": random.Random(11).randbytes(140_000), "to": "two"}}
        given.write_tree("context", {"Dockerfile": self.dockerfile.encode(), "tree": tree})

    def steps(self, place: Place) -> Sequence[Step]:
        return [Step(lambda store: store.build(place.inputs / "context", names=["built:1"], pull="never"))]


class BuildRun(Build):
    """RUN: a container is made, mounted, runs a program and is committed."""

    name = "build-run"
    needs = frozenset({"root", "mount", "runtime"})
    dockerfile = "FROM shell:1\nCOPY tree/one /one\nRUN echo made > /made; rm /one\n"

    def before(self, given: "Given") -> None:
        super().before(given)
        given.load("shell")


# Names, and what nobody names any more


class Tag(Operation):
    """New names, and one that moves from another image."""

    name = "tag"

    def before(self, given: "Given") -> None:
        given.load("app", "sibling")

    def steps(self, place: Place) -> Sequence[Step]:
        names = [("app:1", "second:1"), ("app:1", "third:1"), ("sibling:1", "third:1")]
        return [Step(partial(Store.tag, image=image, name=name)) for image, name in names]


class RemoveImage(Operation):
    """One of two names, the last one, and an image that shares layers with another."""

    name = "rmi"

    def before(self, given: "Given") -> None:
        given.load("app", "sibling")
        given.store.tag("app:1", "second:1")
        for name in ("app:1", "sibling:1"):
            given.store.create(name).remove()

    def steps(self, place: Place) -> Sequence[Step]:
        return [Step(partial(_remove_image, name)) for name in ("app:1", "second:1", "sibling:1")]


def _remove_image(name: str, store: Store) -> None:
    store.remove_image(name)


class Collect(Operation):
    """Garbage of every kind: images that shared a pack with one that stays, containers of both drivers and what they
    were rolled back from, objects, tree images, what killed imports and pulls leave."""

    name = "gc"

    def before(self, given: "Given") -> None:
        given.load("app", "sibling", "newer")
        given.load("flat")
        kept = given.box("extent")
        kept.snapshot("before")
        kept.write_bytes("own/more", b"rolled back\n" * 1000)
        given.store.create("newer:1").remove()
        given.store.create("app:1", name="overlay")
        for name in ("sibling:1", "newer:1", "flat:1"):
            assert given.store.image(name).index()
            given.store.remove_image(name)
        (given.store.root / "downloads").mkdir()
        (given.store.root / "downloads" / ("0" * 64)).write_bytes(b"half of a blob")
        (given.store.root / "staging" / "killed").mkdir()
        (given.store.root / "staging" / "killed" / "lock").touch()
        kept.rollback("before")

    def steps(self, place: Place) -> Sequence[Step]:
        return [Step(lambda store: store.collect_garbage())] * 2


class Evict(Operation):
    """Merged indexes and tree images go, of images that are used on."""

    name = "evict"

    def before(self, given: "Given") -> None:
        given.load("app", "sibling")
        given.box("extent")
        for name in ("app:1", "sibling:1"):
            given.store.create(name).remove()
            assert given.store.image(name).index()

    def steps(self, place: Place) -> Sequence[Step]:
        return [Step(lambda store: store.evict_derived(10_000)), Step(lambda store: store.evict_derived(0))]


class Repair(Operation):
    """Everything that is made again is damaged: a merged index, a tree image, the image of a pack; and is repaired."""

    name = "repair"
    damaged = True

    def before(self, given: "Given") -> None:
        given.load("app", "sibling")
        given.box("extent")
        given.store.create("app:1", name="overlay")
        assert given.store.image("app:1").index()
        root = given.store.root
        for path in (*root.glob("chains/*.index"), *root.glob("chains/*.erofs"), *root.glob("packs/*.erofs")):
            path.chmod(0o600)
            with path.open("r+b") as file:
                file.seek(path.stat().st_size // 2)
                file.write(b"damage of some bytes")

    def steps(self, place: Place) -> Sequence[Step]:
        def repair(store: Store) -> None:
            left = [damage for damage in store.check(repair=True).damages if not damage.repaired]
            assert not left

        return [Step(repair)]


# Frozen images


class Freeze(Operation):
    """One image, of which another that stays hot has a part; then all, of which some is a difference from the first."""

    name = "freeze"

    def before(self, given: "Given") -> None:
        given.load("edition1", "edition2", "sibling")
        assert given.store.image("edition1:1").index()

    def steps(self, place: Place) -> Sequence[Step]:
        return [Step(lambda store: store.freeze("edition2:1")), Step(lambda store: store.freeze())]


class Thaw(Operation):
    """By a call, and by a container that is made; and what was thawed is frozen again."""

    name = "thaw"

    def before(self, given: "Given") -> None:
        given.load("edition1", "edition2")
        given.store.freeze()

    def steps(self, place: Place) -> Sequence[Step]:
        def make(store: Store) -> None:
            store.create("edition1:1", name="box", driver="extent")

        return [
            Step(lambda store: store.thaw("edition2:1")),
            Step(make, durable=False),
            Step(lambda store: store.freeze("edition2:1")),
        ]


class CollectCold(Operation):
    """Garbage in cold packs: of images of which one that stays is a difference; and then of all."""

    name = "gc-cold"

    def before(self, given: "Given") -> None:
        given.load("edition1", "edition2")
        for name in ("edition1:1", "edition2:1"):
            given.store.freeze(name)
        given.store.remove_image("edition1:1")

    def steps(self, place: Place) -> Sequence[Step]:
        return [
            Step(lambda store: store.collect_garbage()),
            Step(partial(_remove_image, "edition2:1")),
            Step(lambda store: store.collect_garbage()),
        ]


# What is derived


class Lookup(Operation):
    """Merged indexes are made, one from the other."""

    name = "index"

    def before(self, given: "Given") -> None:
        given.load("app", "newer")

    def steps(self, place: Place) -> Sequence[Step]:
        def look(store: Store, name: str) -> None:
            assert store.image(name).view.read_bytes("/app") == b"#!/bin/true\n"

        return [Step(partial(look, name=name)) for name in ("app:1", "newer:1")]


class Mount(Operation):
    """A tree image is made and mounted, twice, with what it needs, and unmounted."""

    name = "mount"
    needs = frozenset({"root", "mount"})

    def before(self, given: "Given") -> None:
        given.load("app", "newer")
        given.store.create("app:1", name="box")

    def steps(self, place: Place) -> Sequence[Step]:
        def use(store: Store) -> None:
            with box(store).mount() as root, about(root / "app"):
                assert (root / "app").read_bytes() == b"#!/bin/true\n"

        return [
            Step(lambda store: box(store).mount(), durable=False),
            Step(lambda store: store.create("newer:1", name="other"), durable=False),
            Step(lambda store: store.container("other").mount(), durable=False),
            Step(lambda store: store.umount(store.containers()), durable=False),
            Step(use, durable=False),
        ]


class BringTogether(Operation):
    """An image that needs too many packs; to be quick, five of them are too many."""

    name = "packs"

    def before(self, given: "Given") -> None:
        given.load_stack(7)

    def steps(self, place: Place) -> Sequence[Step]:
        from layerstore.chains import packs

        packs.MAX_PACKS, packs._PACKS_LEFT = 4, 2
        return [
            Step(lambda store: store.create("grown:7", name="box"), durable=False),
            Step(lambda store: store.collect_garbage()),
        ]


# Containers


class Create(Operation):
    """With a name, then several at once; the first of an image makes its tree image."""

    name = "create-overlay"
    driver: ClassVar[str] = "overlay"

    def steps(self, place: Place) -> Sequence[Step]:
        return [
            Step(lambda store: store.create("app:1", name="one", driver=self.driver), durable=False),
            Step(lambda store: store.create("app:1", count=3, driver=self.driver), durable=False),
        ]


class CreateExtent(Create):
    name = "create-extent"
    driver = "extent"


class Remove(Operation):
    """Containers of either driver: with a snapshot, one that a fork goes on from, several at once."""

    name = "rm"

    def before(self, given: "Given") -> None:
        given.load("app")
        extent = given.box("extent")
        extent.snapshot("s")
        extent.fork(name="fork").write_bytes("of-the-fork", b"1")
        given.store.create("app:1", name="overlay").snapshot("s")
        for name in ("a", "b"):
            given.store.create("app:1", name=name, driver="extent")

    def steps(self, place: Place) -> Sequence[Step]:
        def remove(store: Store, names: Sequence[str]) -> None:
            store.remove([store.container(name) for name in names])

        return [Step(partial(remove, names=names)) for names in (["box"], ["overlay"], ["a", "b"])]


class WriteExtent(Operation):
    """Every kind of change, each acknowledged; only what was synced is durable."""

    name = "write-extent"

    def before(self, given: "Given") -> None:
        given.load("app")
        given.box("extent")

    def steps(self, place: Place) -> Sequence[Step]:
        data = random.Random(12).randbytes(300_000)

        def write(store: Store, path: str, data: bytes, at: int = 0, sync: bool = False) -> None:
            with box(store).open(path, "r+b", 0) as file:
                file.seek(at)
                file.write(data)
                if sync:
                    file.sync()

        def make(store: Store) -> None:
            if not box(store).exists("new/file"):
                box(store).open("new/file", "xb").close()

        changes: list[tuple[Callable[[Store], object], bool]] = [
            (lambda store: box(store).makedirs("new", exist_ok=True), False),
            (make, False),
            (partial(write, path="new/file", data=b"some bytes"), False),
            (partial(write, path="new/file", data=b"synced", at=4_000, sync=True), True),
            (partial(write, path="data/a", data=b"into the image's"), False),
            (lambda store: box(store).setxattr("new/file", "user.y", b"2"), False),
            (lambda store: box(store).truncate("new/file", 9), False),
            (partial(write, path="own/small", data=data, at=100, sync=True), True),
            (lambda store: box(store).chmod("own", 0o700), False),
            (lambda store: box(store).rmtree("etc"), False),
            (lambda store: box(store).sync(), True),
            (lambda store: box(store).link("new/file", "new/again"), False),
        ]
        return [Step(change, durable=durable) for change, durable in changes]


class Compact(Operation):
    """A log that is mostly dead is written anew when its container is next written to."""

    name = "compact"

    def before(self, given: "Given") -> None:
        given.load("app")
        container = given.box("extent")
        for seed in range(4):
            container.write_bytes("own/again", random.Random(seed).randbytes(500_000))

    def steps(self, place: Place) -> Sequence[Step]:
        return [
            Step(lambda store: box(store).chmod("own", 0o711), durable=False),
            Step(lambda store: box(store).sync()),
        ]


class WriteOverlay(Operation):
    """What a program does in a mounted container."""

    name = "write-overlay"
    needs = frozenset({"root", "mount"})
    unsynced = ("container box",)

    def before(self, given: "Given") -> None:
        given.load("app")
        given.box("overlay")

    def steps(self, place: Place) -> Sequence[Step]:
        def at(store: Store, path: str) -> Path:
            container = box(store)
            container.mount()
            return container.root / path

        def write(store: Store, path: str, data: bytes) -> None:
            with opened(at(store, path), os.O_WRONLY) as fd:
                write_at(fd, data, 0)

        def sync(store: Store, path: str) -> None:
            with opened(at(store, path), os.O_RDONLY) as fd:
                os.fsync(fd)

        def make(store: Store, path: str) -> None:
            with opened(at(store, path), os.O_WRONLY | os.O_CREAT):
                pass

        def rename(store: Store) -> None:
            # After a loss of power it may have been done, though a step before does not show.
            if at(store, "own/small").exists():
                at(store, "own/small").rename(at(store, "data/moved"))

        return [
            Step(partial(make, path="new"), durable=False),
            Step(partial(write, path="new", data=b"new" * 1000), durable=False),
            Step(partial(sync, path="new")),
            Step(partial(write, path="data/a", data=b"copied up"), durable=False),
            Step(partial(sync, path="data/a")),
            Step(rename, durable=False),
            Step(lambda store: at(store, "data/link").unlink(missing_ok=True), durable=False),
            Step(lambda store: box(store).umount(), durable=False),
        ]


class Volatile(Operation):
    """Containers that are never synced: mounted, written to, forked, committed and removed."""

    name = "volatile"
    needs = frozenset({"root", "mount"})
    partial = ("container box",)
    unsynced = ("container box", "container fork")

    def steps(self, place: Place) -> Sequence[Step]:
        # After a loss of power each may be there or not.
        def there(store: Store, name: str) -> bool:
            return any(container.name == name for container in store.containers())

        def create(store: Store) -> None:
            if not there(store, "box"):
                store.create("app:1", name="box", volatile=True)

        def write(store: Store) -> None:
            create(store)
            box(store).mount()
            for path in ("new", "data/a"):
                with opened(box(store).root / path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) as fd:
                    write_at(fd, b"of the container" * 1000, 0)
            for path in ("new", "data/a", "data", "."):
                with about(box(store).root / path):
                    os.utime(box(store).root / path, (1000, 1000))  # the image has these

        def fork(store: Store) -> None:
            if not there(store, "fork"):
                box(store).fork(name="fork")

        def commit(store: Store) -> None:
            write(store)
            box(store).commit("made:1")

        return [
            Step(create, durable=False),
            Step(write, durable=False),
            Step(fork, durable=False),
            Step(commit),
            Step(lambda store: store.remove([c for c in store.containers() if c.name == "fork"]), durable=False),
            Step(lambda store: store.remove(store.containers()), durable=False),
        ]


class Fork(Operation):
    """Forks, and one of a fork; the original goes on."""

    name = "fork-extent"
    driver: ClassVar[str] = "extent"

    def before(self, given: "Given") -> None:
        given.load("app")
        given.box(self.driver)

    def steps(self, place: Place) -> Sequence[Step]:
        return [
            Step(lambda store: box(store).fork(name="fork"), durable=False),
            Step(lambda store: store.container("fork").fork(name="of-the-fork"), durable=False),
            Step(lambda store: box(store).fork(count=2), durable=False),
        ]


class ForkOverlay(Fork):
    name = "fork-overlay"
    driver = "overlay"


class Snapshot(Operation):
    name = "snapshot-extent"
    driver: ClassVar[str] = "extent"

    def before(self, given: "Given") -> None:
        given.load("app")
        given.box(self.driver).snapshot("first")

    def steps(self, place: Place) -> Sequence[Step]:
        return [
            Step(lambda store: box(store).snapshot("second"), durable=False),
            Step(lambda store: box(store).remove_snapshot("first"), durable=False),
        ]


class SnapshotOverlay(Snapshot):
    name = "snapshot-overlay"
    driver = "overlay"


class Rollback(Operation):
    """To the state at the snapshot, from another one, with a fork of it."""

    name = "rollback-extent"
    driver: ClassVar[str] = "extent"

    def before(self, given: "Given") -> None:
        given.load("app")
        given.box("extent").snapshot("first")
        box(given.store).write_bytes("own/small", b"after the snapshot")
        box(given.store).rmtree("etc")
        box(given.store).move(self.driver)
        box(given.store).snapshot("second")

    def steps(self, place: Place) -> Sequence[Step]:
        return [Step(lambda store: box(store).rollback("first"), durable=False)]


class RollbackOverlay(Rollback):
    name = "rollback-overlay"
    driver = "overlay"


class Stack(Operation):
    """Of a container that stands on as many frozen uppers as stay, as a fork does on some: one more, which has them
    joined; back to the lowest; what nobody stands on is garbage; a fork."""

    name = "stack-overlay"
    needs = frozenset({"root", "mount"})

    def before(self, given: "Given") -> None:
        given.load("app")
        box = given.box("overlay")
        for level in range(5):
            with box.mount() as root:
                (root / "own" / str(level)).write_text("of this level")
                (root / "data/a").chmod(0o600 + level)
                (root / "own/small").rename(root / "own/taken")
                (root / "own/taken").rename(root / "own/small")
                (root / (f"data{level - 1}" if level else "own/deep")).rename(root / f"data{level}")
                if level:
                    (root / "own" / str(level - 1)).unlink()
            box.umount()
            if level < 4:
                box.snapshot(f"level{level}")
            if level == 2:
                box.fork(name="sibling")

    def steps(self, place: Place) -> Sequence[Step]:
        def without(store: Store, names: Sequence[str]) -> None:
            for name in {snapshot.name for snapshot in box(store).snapshots()} & set(names):
                box(store).remove_snapshot(name)

        return [
            Step(lambda store: box(store).snapshot("last"), durable=False),
            Step(lambda store: box(store).rollback("level1"), durable=False),
            Step(partial(without, names=["level2"]), durable=False),
            Step(partial(without, names=["last"]), durable=False),
            Step(lambda store: box(store).fork(name="fork"), durable=False),
        ]


class Commit(Operation):
    name = "commit-extent"
    driver: ClassVar[str] = "extent"

    def before(self, given: "Given") -> None:
        given.load("app")
        given.box(self.driver)

    def steps(self, place: Place) -> Sequence[Step]:
        return [
            Step(lambda store: box(store).commit("made:1", message="m", changes=["LABEL a=b"])),
            Step(lambda store: box(store).commit("app:1")),
        ]


class CommitOverlay(Commit):
    name = "commit-overlay"
    driver = "overlay"


class Move(Operation):
    """To the other driver, with a snapshot, and back."""

    name = "move"
    needs = frozenset({"root"})

    def before(self, given: "Given") -> None:
        given.load("app")
        given.box("extent").snapshot("first")
        box(given.store).write_bytes("own/small", b"after the snapshot")

    def steps(self, place: Place) -> Sequence[Step]:
        return [Step(lambda store: box(store).move("overlay")), Step(lambda store: box(store).move("extent"))]


class CopyIn(Operation):
    """A tree of the host into a container; what was copied when it is interrupted stays."""

    name = "cp-in"
    partial = ("container box",)
    unsynced = partial

    def before(self, given: "Given") -> None:
        given.load("app")
        given.box("extent")
        tree = {"a": b"a" * 3_000, "sub": {"large": random.Random(13).randbytes(200_000), "link": "large"}}
        given.write_tree("tree", tree)

    def steps(self, place: Place) -> Sequence[Step]:
        return [Step(lambda store: box(store).copy_in(place.inputs / "tree", "/in"), durable=False)]


# Out of the store


class CopyOut(Operation):
    """A tree of a container to the host; what was copied when it is interrupted stays."""

    name = "cp-out"
    partial = ("output ",)
    unsynced = partial

    def before(self, given: "Given") -> None:
        given.load("app")
        given.box("extent")

    def steps(self, place: Place) -> Sequence[Step]:
        return [Step(lambda store: box(store).copy_out("/own", place.outputs / "own"), durable=False)]


class Save(Operation):
    """As an archive, and as a layout with zstd in a directory."""

    name = "save"

    def before(self, given: "Given") -> None:
        given.load("app", "newer")

    def steps(self, place: Place) -> Sequence[Step]:
        layout = place.outputs / "layout"
        return [
            Step(lambda store: store.save(["app:1", "newer:1"], place.outputs / "saved.tar")),
            Step(lambda store: store.save("app:1", layout, format="oci", compression="zstd")),
        ]


class CommandLine(Operation):
    """The command `layerstore`, each time a process of its own, which has to say by its exit status and a message what
    went wrong."""

    name = "command"
    commands = ("load", "tag", "create", "ps", "cat", "commit", "rm", "rmi", "gc")
    loaded = (
        *("isal.igzip_lib", "layerstore.containers.commits", "layerstore.oci.instructions"),
        *(f"layerstore.cli.{name}" for name in ("command", "output", "selection", *commands)),
    )
    """What they load, each for itself: where it is loaded before, no import is among what fails."""

    def before(self, given: "Given") -> None:
        for module in self.loaded:
            importlib.import_module(module)
        given.load("app")
        given.write_archive("newer.tar", "newer", "docker", "gzip")
        given.box("extent")

    def steps(self, place: Place) -> Sequence[Step]:
        commands = [
            ["load", "-i", str(place.inputs / "newer.tar")],
            ["tag", "app:1", "second:1"],
            ["create", "--name", "one", "app:1"],
            ["ps", "-a"],
            ["cat", "app:1", "/app"],
            ["commit", "box", "made:1"],
            ["rm", "one"],
            ["rmi", "second:1"],
            ["gc"],
        ]
        loose = ("create", "ps", "cat")
        return [Step(partial(_command, place, words), durable=words[0] not in loose) for words in commands]


def _command(place: Place, words: Sequence[str], store: Store) -> None:
    """Run a command in a forked child, in which system calls fail as they do here. Raises `CommandFailed`."""
    from layerstore import cli

    store.close()
    with contextlib.ExitStack() as stack:
        try:
            messages = os.memfd_create("messages")
            stack.callback(close_fd, messages)
            output = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
            stack.callback(close_fd, output)
            child = os.fork()
        except OSError as error:
            raise CommandFailed(f"layerstore: it was not started: {error}\n") from error
        if child == 0:
            status = 255
            try:
                os.dup2(output, 1)
                os.dup2(messages, 2)
                status = cli.execute(["--root", str(place.store), *words])
                sys.stderr.flush()
            finally:
                os._exit(status)
        _, ended = os.waitpid(child, 0)
        try:
            text = os.pread(messages, 1 << 16, 0).decode()
        except OSError:
            text = ""
    if status := os.waitstatus_to_exitcode(ended):
        raise CommandFailed(text if status in (1, 2) else f"{text} with status {status}")


class Init(Operation):
    name = "init"
    creates = True

    def steps(self, place: Place) -> Sequence[Step]:
        return [Step(lambda store: None)]


class InitPool(Init):
    """A store with a pool, whatever file system it is on."""

    name = "init-pool"
    needs = frozenset({"root", "mount", "mkfs.xfs"})

    def open(self, place: Place, *, create: bool = False) -> Store:
        if create or self.creates:
            Pool(str(place.store)).create(MIN_POOL_BYTES)
        return super().open(place, create=create)


class InPool(InitPool):
    """What a store has its pool for: a copy up and a fork by clones; it grows, is trimmed, detached and attached."""

    name = "pool"
    creates = False
    partial = ("container box",)
    unsynced = ("container box", "container fork")

    def before(self, given: "Given") -> None:
        given.load("app")
        given.box("overlay")
        given.write_archive("newer.tar", "newer", "oci", "zstd")

    def steps(self, place: Place) -> Sequence[Step]:
        def write(store: Store) -> None:
            with box(store).mount() as root, opened(root / "data/renamed", os.O_WRONLY) as fd:
                write_at(fd, b"copied up", 0)
                os.fsync(fd)

        def fork(store: Store) -> None:
            if not any(container.name == "fork" for container in store.containers()):
                box(store).fork(name="fork")

        return [
            Step(partial(Store.load, source=place.inputs / "newer.tar")),
            Step(write),
            Step(fork, durable=False),
            Step(lambda store: _pool_of(store).grow(MIN_POOL_BYTES + (32 << 20)), durable=False),
            Step(lambda store: store.remove_image("newer:1")),
            Step(lambda store: store.collect_garbage()),
            Step(lambda store: _pool_of(store).trim(), durable=False),
            Step(lambda store: store.remove([c for c in store.containers() if c.name == "box"])),
        ]


def _pool_of(store: Store) -> Pool:
    assert store.pool is not None
    return store.pool


def operations() -> dict[str, Operation]:
    """All of them by name."""
    found = [kind() for kind in _kinds(Operation)]
    return {operation.name: operation for operation in sorted(found, key=lambda operation: operation.name)}


def _kinds(kind: type[Operation]) -> Iterator[type[Operation]]:
    for below in kind.__subclasses__():
        yield below
        yield from _kinds(below)


def main(arguments: Sequence[str]) -> None:
    name, directory, acknowledged, *first = arguments
    fd = os.open(acknowledged, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    place = Place.below(Path(directory))

    def tell(number: int) -> None:
        os.write(fd, b"%d\n" % number)

    operations()[name].run(place, tell, int(first[0]) if first else 0)


if __name__ == "__main__":
    main(sys.argv[1:])
