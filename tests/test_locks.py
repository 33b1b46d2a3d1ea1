"""The locks of a store: their order, waits that end, and several processes on one container."""

import contextlib
import errno
import io
import os
import resource
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from beside import transaction
from cases import case
from images import Image, docker_files, tar_of
from layer_model import Entry, write_tar
from leftovers import mount_points
from meddling import ALWAYS, Meddling
from test_many import is_waited_for
from waiting import wait_for

from layerstore import Container, Store
from layerstore._core import mount
from layerstore.chains.chains import Chains
from layerstore.containers import changes, containers, snapshots
from layerstore.containers.containers import Containers
from layerstore.errors import Conflict, NotFound
from layerstore.layers.imports import Import
from layerstore.mount.shared import Mounts
from layerstore.store import locks
from layerstore.store.layout import Layout
from layerstore.store.opened import OpenStore

ROOT = Path(__file__).parent.parent
IMAGE = Image([write_tar([Entry("dir", "etc", mode=0o755), Entry("file", "etc/hosts", data=b"here")])], ["app:1"])
OTHER = Image([write_tar([Entry("file", "other", data=b"other")])], ["other:1"])
needs_mounts = [pytest.mark.root, pytest.mark.kernel]

HOLD = """
import sys
from layerstore import Store
from layerstore.store import locks
from layerstore.store.layout import Layout
layout = Layout(sys.argv[1])
with eval(sys.argv[2]):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    (tmp_path / "run").mkdir()
    return Layout(tmp_path)


@pytest.fixture
def loaded(store: Store) -> Store:
    store.load(io.BytesIO(tar_of(docker_files([IMAGE, OTHER]))))
    return store


def shorter(
    monkeypatch: pytest.MonkeyPatch, kind: str, seconds: float = 0.1, table: dict[str, Any] = locks.LOCKS
) -> None:
    """Have a lock be waited for no longer."""
    monkeypatch.setitem(table, kind, (seconds, *table[kind][1:]))


@contextlib.contextmanager
def python(code: str, *arguments: object, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """A process that was told to end when the block does."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    pipe = subprocess.PIPE
    variables = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=variables) as process:
        try:
            yield process
        finally:
            assert process.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
            process.wait(60)


@contextlib.contextmanager
def held_elsewhere(layout: Layout, what: str) -> Iterator[subprocess.Popen[str]]:
    with python(HOLD, layout.root, what) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        yield process


class in_thread:
    """Something that is done meanwhile; `result` is what came of it."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self._work = work
        self._result: Any = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._result = self._work()
        except BaseException as error:
            self._error = error

    @property
    def is_done(self) -> bool:
        return not self._thread.is_alive()

    def result(self) -> Any:
        self._thread.join(60)
        assert self.is_done, "it waits for ever"
        if self._error is not None:
            raise self._error
        return self._result


# The order


def test_rising_ranks_are_in_order(layout: Layout) -> None:
    container = "1" * 64
    with (
        locks.freeze(layout),
        locks.garbage(layout),
        locks.garbage(layout, again=True),
        locks.packs(layout),
        locks.staging(layout),
        locks.garbage(layout, again=True),
        locks.container(layout, container, alone=False),
        locks.mounting(layout, [container]),
        locks.mounts(layout, alone=True),
    ):
        pass


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (lambda x: locks.mounts(x, alone=False), lambda x: locks.container(x, "1" * 64, alone=True)),
        (lambda x: locks.container(x, "1" * 64, alone=False), lambda x: locks.garbage(x)),
        (lambda x: locks.container(x, "1" * 64, alone=False), lambda x: locks.garbage(x, again=True)),
        (lambda x: locks.container(x, "1" * 64, alone=False), lambda x: locks.containers(x, ["2" * 64])),
        (lambda x: locks.garbage(x), lambda x: locks.garbage(x)),
        (lambda x: locks.garbage_alone(x), lambda x: locks.garbage(x, again=True)),
        (lambda x: locks.mounting(x, ["1" * 64]), lambda x: locks.staging(x)),
        (lambda x: locks.garbage(x), lambda x: locks.freeze(x)),
        (lambda x: contextlib.closing(closes(locks.writing(x.database_lock))), lambda x: locks.mounts(x, alone=False)),
    ],
)
def test_a_lock_out_of_order_is_an_error_in_tests(layout: Layout, first: Any, second: Any) -> None:
    with first(layout), pytest.raises(AssertionError, match="out of order"), second(layout):
        pass
    with second(layout):
        pass  # the thread has nothing any more


class closes:
    def __init__(self, what: Any) -> None:
        self.close = what.end


def test_other_stores_and_threads_are_no_matter(layout: Layout, tmp_path: Path) -> None:
    (tmp_path / "other/run").mkdir(parents=True)
    with locks.mounts(layout, alone=True):
        with locks.garbage(Layout(tmp_path / "other")):
            pass

        def take() -> None:
            with locks.garbage(layout):
                pass

        in_thread(take).result()


def test_a_thread_that_works_for_another_has_its_locks(layout: Layout) -> None:
    with locks.garbage(layout), locks.packs(layout):
        held = locks.of_this_thread()

        def take() -> None:
            with locks.working_for(held):
                with locks.garbage(layout, again=True):
                    pass
                with pytest.raises(AssertionError, match="out of order"), locks.freeze(layout):
                    pass
            with locks.freeze(layout):
                pass

        in_thread(take).result()


def test_a_lock_out_of_order_is_a_line_in_the_log_in_use(layout: Layout) -> None:
    code = (
        "import sys\nfrom layerstore.store import locks\nfrom layerstore.store.layout import Layout\n"
        "layout = Layout(sys.argv[1])\n"
        "with locks.garbage(layout), locks.mounts(layout, alone=False): pass\n"
        "assert 'logging' not in sys.modules\n"
        "with locks.mounts(layout, alone=False), locks.garbage(layout): print('done')\n"
    )
    with python(code, layout.root, LAYERSTORE_STRICT_LOCKS="0") as process:
        out, said = process.communicate(timeout=60)
    assert (out, process.returncode) == ("done\n", 0)
    first, *stack = said.splitlines()
    assert first == f"lock 'garbage' of {layout.run} is taken out of order, by a thread that has 'mounts'"
    assert 'File "<string>", line 7' in "\n".join(stack)


def test_one_module_takes_locks() -> None:
    """All others say which lock."""
    for path in (ROOT / "layerstore").rglob("*.py"):
        text = path.read_text()
        if path.name != "locks.py":
            assert "fcntl.flock" not in text and "import flock" not in text and "F_OFD_" not in text, path


# Waiting


@pytest.mark.parametrize(
    ("kind", "what", "shown"),
    [
        ("staging", "locks.staging(layout)", "the staging area"),
        ("garbage", "locks.garbage(layout)", "the store's garbage lock"),
        ("container", "locks.container(layout, '1' * 64, alone=False)", "container 111111111111"),
        ("mounting", "locks.mounting(layout, ['1' * 64])", "the mount of container 111111111111"),
    ],
)
def test_a_wait_that_is_too_long_says_who_has_it(
    layout: Layout, monkeypatch: pytest.MonkeyPatch, kind: str, what: str, shown: str
) -> None:
    shorter(monkeypatch, kind)
    alone: dict[str, Callable[[], contextlib.AbstractContextManager[object]]] = {
        "staging": lambda: locks.staging(layout),
        "garbage": lambda: locks.garbage_alone(layout),
        "container": lambda: locks.container(layout, "1" * 64, alone=True),
        "mounting": lambda: locks.mounting(layout, ["2" * 64, "1" * 64]),
    }
    with held_elsewhere(layout, what) as process:
        with pytest.raises(Conflict) as caught, alone[kind]():
            pass
        said = str(caught.value)
        assert f"waited 0.1 s for {shown}, which process {process.pid} ({sys.executable} -c " in said
        assert f"process {os.getpid()}" not in said
    with alone[kind]():
        pass


def test_a_wait_for_what_a_build_has_ends_too(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in ("cache", "step"):
        shorter(monkeypatch, kind, table=locks._OF_BUILDS)
    looks: list[None] = []
    with open(f"{layout.run}/cache", "w") as other, open(f"{layout.run}/cache", "w") as file:
        assert locks.try_lock(other.fileno())
        said = rf"waited 0.1 s for a cache of RUN, which this process {os.getpid()} "
        with pytest.raises(Conflict, match=said):
            locks.take_between(file.fileno(), exclusive=True, check=lambda: looks.append(None))
        locks.release(other.fileno())
        locks.take_between(file.fileno(), exclusive=True, check=lambda: looks.append(None))
    one, two = (locks.Claims(f"{layout.run}/steps.lock") for _ in range(2))
    assert one.try_take("a" * 64)
    with pytest.raises(Conflict, match=r"waited 0.1 s for a step of a build"):
        two.take_between("a" * 64, lambda: looks.append(None))
    one.release(["a" * 64])
    two.take_between("a" * 64, lambda: looks.append(None))
    one.close()
    two.close()
    assert looks


def test_who_waits_long_gets_it_when_it_is_free(layout: Layout) -> None:
    def take() -> None:
        with locks.staging(layout):
            pass

    with held_elsewhere(layout, "locks.staging(layout)"):
        waiting = in_thread(take)
        wait_for(lambda: is_waited_for(Path(layout.staging_lock)))
        assert not waiting.is_done
    waiting.result()


@pytest.mark.parametrize("kind", ["staging", "mounting"])
def test_who_gave_up_takes_nothing_later(layout: Layout, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """His place in the kernel's line is given up, too."""
    shorter(monkeypatch, kind)
    take = (lambda: locks.staging(layout)) if kind == "staging" else (lambda: locks.mounting(layout, ["1" * 64]))
    path = Path(layout.staging_lock if kind == "staging" else layout.containers_lock)
    before = os.listdir("/proc/self/fd")
    what = "locks.staging(layout)" if kind == "staging" else "locks.mounting(layout, ['1' * 64])"
    with held_elsewhere(layout, what):
        with pytest.raises(Conflict), take():
            pass
        assert is_waited_for(path)
    wait_for(lambda: "layerstore-lock" not in [thread.name for thread in threading.enumerate()])
    with take(), open(path, "r+b") as file:
        assert (kind == "mounting") == locks.try_lock(file.fileno())
    wait_for(lambda: os.listdir("/proc/self/fd") == before)


def test_who_gave_up_claims_nothing_later(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the file stays open."""
    shorter(monkeypatch, "layers")
    first, second, third = (locks.Claims(layout.layers_lock) for _ in range(3))
    digest = "sha256:" + 64 * "1"
    first.take([digest])
    with pytest.raises(Conflict, match="layers that are being brought"):
        in_thread(lambda: second.take([digest])).result()
    assert is_waited_for(Path(layout.layers_lock))
    first.close()
    wait_for(lambda: "layerstore-lock" not in [thread.name for thread in threading.enumerate()])
    assert third.try_take(digest)
    second.close()
    third.close()


def test_who_shares_waits_for_the_first_no_longer_than_for_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shorter(monkeypatch, "database")
    with open(tmp_path / "file", "w+b") as first, open(tmp_path / "file", "r+b") as second:

        def wait() -> None:
            with pytest.raises(Conflict, match=r"waited 0\.1 s for .* the database"):
                in_thread(lambda: locks.share_after(second.fileno(), 7, lambda: None)).result()

        locks.share_after(first.fileno(), 7, wait)


def test_who_takes_many_waits_for_nobody_who_waits_for_him(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    """To remove some, of which another one is about to mount all, and has one of those that have snapshots."""
    first, second = "1" * 64, "2" * 64

    def remove() -> None:
        with locks.containers_to_remove(layout, [second, first]):
            pass

    shorter(monkeypatch, "mounting")
    with locks.containers(layout, [second]):
        removing = in_thread(remove)
        wait_for(lambda: is_waited_for(Path(layout.containers_lock)))
        with locks.mounting(layout, [first, second]):
            pass
    removing.result()


# Several on one container

MOUNTER = """
import sys
from layerstore import Store
with Store(sys.argv[1]) as store:
    print("open", flush=True)
    for line in sys.stdin:
        try:
            store.container(line.strip()).mount()
            print("mounted", flush=True)
        except Exception as error:
            print(repr(error), flush=True)
"""


def mounts_of(container: Container) -> int:
    return list(mount_points()).count(str(container.root))


@pytest.mark.root
@pytest.mark.kernel
@case("8 processes that mount one new container", "mounted once, and no error")
@pytest.mark.parametrize("volatile", [False, True])
def test_of_many_that_mount_one_container_at_once_one_does(loaded: Store, volatile: bool) -> None:
    with contextlib.ExitStack() as stack:
        mounters = [stack.enter_context(python(MOUNTER, loaded.root)) for _ in range(8)]
        for mounter in mounters:
            assert mounter.stdout is not None and mounter.stdout.readline() == "open\n"
        for container in loaded.create("app:1", count=8, volatile=volatile):
            for mounter in mounters:
                assert mounter.stdin is not None
                mounter.stdin.write(f"{container.id}\n")
                mounter.stdin.flush()
            said = [mounter.stdout.readline() for mounter in mounters if mounter.stdout is not None]
            assert said == ["mounted\n"] * 8
            assert mounts_of(container) == 1
            container.remove()
            assert mounts_of(container) == 0


@pytest.mark.root
@pytest.mark.kernel
def test_a_mount_waits_for_who_mounts_the_same(loaded: Store) -> None:
    container = loaded.create("app:1")
    with held_elsewhere(loaded.layout, f"locks.mounting(layout, ['{container.id}'])"):
        mounting = in_thread(container.mount)
        loaded.create("app:1").mount()  # others do not
        wait_for(lambda: is_waited_for(Path(loaded.layout.containers_lock)))
        assert mounts_of(container) == 0
    mounting.result()
    assert mounts_of(container) == 1


@pytest.mark.root
@pytest.mark.kernel
def test_many_with_snapshots_take_few_descriptors(loaded: Store) -> None:
    containers = loaded.create("app:1", count=100)
    for container in containers:
        container.snapshot("first")
        container.rollback("first")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 30, hard))
    try:
        loaded.mount(containers)
        loaded.umount(containers)
        loaded.remove(containers)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.root
@pytest.mark.kernel
class TestWhileOneIsRead:
    @pytest.fixture
    def container(self, loaded: Store) -> Container:
        made = loaded.create("app:1")
        made.snapshot("first")
        with made.mount() as view:
            (view / "new").write_bytes(b"new")
        return made

    def test_it_is_mounted(self, container: Container) -> None:
        container.rollback("first")
        export = container.entries()
        next(export)
        with container.mount() as view:
            assert sorted(os.listdir(view)) == ["etc"]
            (view / "later").write_bytes(b"later")
        export.close()
        container.rollback("first")
        assert container.diff() == []

    def test_a_snapshot_of_what_is_removed_by_force_meanwhile(
        self, loaded: Store, container: Container, monkeypatch: pytest.MonkeyPatch, meddle: Meddling
    ) -> None:
        upper = f"{loaded.layout.container(container.id)}/upper"
        # It has come so far; the rest of the directory is there still.
        monkeypatch.setattr(containers, "container_remove_many", lambda *_: shutil.rmtree(upper))
        container.mount()
        meddle.before(
            snapshots, "clone_tree", lambda: in_thread(lambda: loaded.remove([container], force=True)).result()
        )
        with pytest.raises(NotFound, match="was removed"):
            container.snapshot("second")

    @pytest.mark.parametrize("verb", ["diff", "fork"])
    def test_what_is_read_of_one_that_is_moved_meanwhile_is_none(
        self, loaded: Store, container: Container, meddle: Meddling, verb: str
    ) -> None:
        """Its files may be on their way out."""
        module, name = (changes, "changes") if verb == "diff" else (snapshots, "freeze")

        def move() -> None:
            with transaction(loaded.layout) as db:
                db.execute("UPDATE containers SET driver = 'extent' WHERE id = ?", (container.id,))

        meddle.after(module, name, move)
        with pytest.raises(Conflict, match="was moved to the extent driver"):
            getattr(container, verb)()
        with transaction(loaded.layout) as db:
            db.execute("UPDATE containers SET driver = 'overlay' WHERE id = ?", (container.id,))

    def test_a_removal_by_force_leaves_to_gc_what_is_written_meanwhile(
        self, loaded: Store, container: Container, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(*_args: Any) -> None:
            raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY))

        directory = Path(loaded.layout.container(container.id))
        with monkeypatch.context() as patch:
            patch.setattr(containers, "container_remove_many", refuse)
            container.remove(force=True)
        assert loaded.containers() == []
        assert directory.exists()
        loaded.collect_garbage()
        assert not directory.exists()

    @case("an export that nobody reads, beside a rollback", "stalls nobody else")
    def test_a_rollback_of_it_stalls_nobody_else(self, loaded: Store, container: Container) -> None:
        export = container.entries()
        next(export)
        with Store(loaded.root) as other:
            rolling = in_thread(lambda: other.container(container.id).rollback("first"))
            wait_for(lambda: is_waited_for(Path(loaded.layout.containers_lock)))
            for made in (loaded.create("other:1"), loaded.create("app:1"), container):
                with made.mount():
                    pass
            assert not rolling.is_done
            assert [entry.path for entry in export] == [b"etc", b"etc/hosts", b"new"]
            rolling.result()
        assert container.diff() == []

    def test_a_rollback_ends_with_a_word(self, container: Container, monkeypatch: pytest.MonkeyPatch) -> None:
        shorter(monkeypatch, "container")
        export = container.entries()
        next(export)
        with pytest.raises(Conflict, match=rf"container {container.id[:12]}, which this process {os.getpid()} .* has"):
            container.rollback("first")
        assert [change.path for change in container.diff()] == ["/new"]
        export.close()
        container.rollback("first")
        assert container.diff() == []

    def test_it_is_read_only_when_what_it_needs_is_open(self, loaded: Store, container: Container) -> None:
        """To open an index takes other locks, above the limit of what is derived those of mounts, too."""
        Store(loaded.root, derived_limit_bytes=0).close()
        mount_lock = Path(loaded.layout.mount_lock)
        works: list[Callable[[], object]] = [
            lambda: list(container.entries()),
            lambda: container.commit("new:1"),
            container.diff,
        ]
        for work in works:
            with Store(loaded.root) as other:
                container = other.container(container.id)
                other.evict_derived(0)
                with locks.mounts(other.layout, alone=True):
                    working = in_thread(work)
                    wait_for(lambda: is_waited_for(mount_lock))
                    with locks.container_if_free(other.layout, container.id) as is_free:
                        assert is_free
                working.result()

    def test_a_removal_waits_for_a_commit(
        self, loaded: Store, container: Container, monkeypatch: pytest.MonkeyPatch, meddle: Meddling
    ) -> None:
        read, go_on = threading.Event(), threading.Event()
        stop_after_reading(meddle, read, go_on)
        committing = in_thread(lambda: container.commit("new:1"))
        assert read.wait(60)
        shorter(monkeypatch, "container")
        with Store(loaded.root) as other:
            with pytest.raises(Conflict, match=r"waited 0\.1 s for container"):
                other.container(container.id).remove()
            monkeypatch.undo()
            removing = in_thread(other.container(container.id).remove)
            wait_for(lambda: is_waited_for(Path(loaded.layout.containers_lock)))
            go_on.set()
            assert "new" in committing.result().view.listdir("/")
            removing.result()
        with pytest.raises(NotFound):
            loaded.container(container.id)

    @case("a removal during a commit", "no image, and the commit says why")
    def test_a_commit_of_what_is_removed_by_force_is_none(
        self, loaded: Store, container: Container, meddle: Meddling
    ) -> None:
        read, go_on = threading.Event(), threading.Event()
        stop_after_reading(meddle, read, go_on)
        committing = in_thread(lambda: container.commit("new:1"))
        assert read.wait(60)
        with Store(loaded.root) as other:
            other.container(container.id).remove(force=True)
        go_on.set()
        with pytest.raises(NotFound, match="removed meanwhile"):
            committing.result()
        assert "new:1" not in [name for image in loaded.images() for name in image.names]
        assert os.listdir(loaded.layout.containers) == []

    def test_an_export_of_what_is_removed_by_force_is_none(self, loaded: Store, container: Container) -> None:
        export = container.entries()
        next(export)
        with Store(loaded.root) as other:
            other.container(container.id).remove(force=True)
        with pytest.raises(NotFound, match="removed"):
            list(export)

    def test_collecting_garbage_passes_it_over(
        self, loaded: Store, container: Container, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        container.rollback("first")
        removed = Path(loaded.layout.container(container.id), "removed")
        assert removed.exists()

        def waits(*_: object) -> None:
            raise AssertionError("it waits, and others for it")

        with held_elsewhere(loaded.layout, f"locks.container(layout, '{container.id}', alone=False)"):
            with monkeypatch.context() as patch:
                patch.setattr("layerstore.store.locks.time.sleep", waits)
                loaded.collect_garbage()
                assert loaded.prune(containers=True, older_than_seconds=-1, named=True).containers == {}
            assert removed.exists()
        loaded.collect_garbage()
        assert not removed.exists()


def stop_after_reading(meddle: Meddling, read: threading.Event, go_on: threading.Event) -> None:
    def stop() -> None:
        read.set()
        assert go_on.wait(60)

    meddle.after(Import, "add_tar", stop)


@pytest.mark.root
@pytest.mark.kernel
class TestMountedForAUse:
    def test_nothing_is_written_below_the_mount(self, loaded: Store, tmp_path: Path, meddle: Meddling) -> None:
        """Where another process unmounts between a look and what is done then."""
        container = loaded.create("app:1")
        meddle.after(Containers, "mount", lambda: mount.umount(container.root), times=2)
        (tmp_path / "file").write_bytes(b"data")
        container.copy_in(tmp_path / "file", "/file")
        container.unpack(io.BytesIO(write_tar([Entry("file", "second", data=b"2")])), "/")
        assert [change.path for change in container.diff()] == ["/file", "/second"]
        assert container.state == "created"
        assert os.listdir(container.root) == []

    def test_one_that_is_always_unmounted_is_told(self, loaded: Store, meddle: Meddling) -> None:
        container = loaded.create("app:1")
        meddle.after(Containers, "mount", lambda: mount.umount(container.root), times=ALWAYS)
        with pytest.raises(Conflict, match="again and again"):
            container.unpack(io.BytesIO(write_tar([])), "/")

    def test_the_last_user_unmounts_it(self, loaded: Store) -> None:
        container = loaded.create("app:1")
        with user(container) as first, user(container) as second:
            with second():
                with first(), pytest.raises(Conflict, match="in use"):
                    container.umount()
                assert container.state == "mounted"
            assert container.state == "created"
            with first():
                leaving = second()
                leaving.__enter__()
            assert container.state == "mounted"
            leaving.__exit__(None, None, None)
            assert container.state == "created"

    def test_it_stays_where_somebody_has_mounted_it(self, loaded: Store) -> None:
        container = loaded.create("app:1")
        with user(container) as mounted:
            with mounted():
                container.mount()
            assert container.state == "mounted"
            with mounted():
                pass
            assert container.state == "mounted"
            container.umount()
            with mounted(keep=True):
                pass
            assert container.state == "mounted"
            container.umount()
            with pytest.raises(ZeroDivisionError), mounted(keep=True):
                raise ZeroDivisionError
            assert container.state == "created"
        assert os.listdir(loaded.layout.borrowed) == []


@contextlib.contextmanager
def user(container: Container) -> Iterator[Callable[..., contextlib.AbstractContextManager[int]]]:
    """What has a container mounted in a block, of a process that has the store open beside others."""
    layout = Layout(container.root.parents[2])
    with contextlib.closing(OpenStore(layout)) as opened, contextlib.closing(Mounts(layout)) as mounts:
        mounted_for = Containers(opened, Chains(opened), mounts).mounted_for
        yield partial(mounted_for, container.row, lambda _: container.image.diff_ids)


@pytest.mark.root
@pytest.mark.kernel
class TestGarbageThatIsMounted:
    """Of a removal that was killed between the row and the directory."""

    @pytest.fixture
    def container(self, loaded: Store) -> Container:
        made = loaded.create("app:1")
        made.mount()
        with transaction(loaded.layout) as db:
            db.execute("DELETE FROM containers")
        return made

    def test_it_is_detached_and_not_entered(self, loaded: Store, container: Container) -> None:
        kept = loaded.create("app:1")
        (container.root / "kept").mkdir()
        subprocess.run(["mount", "--bind", loaded.layout.container(kept.id), container.root / "kept"], check=True)
        loaded.collect_garbage()
        assert os.listdir(loaded.layout.containers) == [kept.id]
        assert sorted(os.listdir(loaded.layout.container(kept.id))) == ["root", "upper", "work"]
        assert mounts_of(container) == 0

    def test_what_somebody_has_mounted_in_it_stays(self, loaded: Store, container: Container, tmp_path: Path) -> None:
        inside = Path(loaded.layout.container(container.id), "zz")
        inside.mkdir()
        (tmp_path / "precious").mkdir()
        (tmp_path / "precious/file").write_bytes(b"data")
        subprocess.run(["mount", "--bind", tmp_path / "precious", inside], check=True)
        try:
            loaded.collect_garbage()
            assert (inside / "file").read_bytes() == b"data"
        finally:
            subprocess.run(["umount", inside], check=True)
        loaded.collect_garbage()
        assert not inside.exists()
        assert (tmp_path / "precious/file").read_bytes() == b"data"
