"""What is left when a process is killed, and that the campaign which looks for it finds it (campaigns/crash.py)."""

import contextlib
import fcntl
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from campaigns.crash import Kill, built_step, run, tried
from campaigns.operations import Place, operations
from campaigns.samples import Given
from campaigns.states import Failure
from campaigns.trials import Template, check, prepare

from layerstore import Store

NEEDS_COMPILER = pytest.mark.needs_tool("cc")


# What campaigns found


def test_a_store_whose_making_was_killed(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / ".format.layerstore-0123456789ab").write_text("layer")
    Store(tmp_path / "store", create=True).close()
    assert not [path.name for path in (tmp_path / "store").iterdir() if path.name.startswith(".")]


def test_many_make_a_store_at_once(tmp_path: Path) -> None:
    errors = []

    def make() -> None:
        try:
            Store(tmp_path / "store", create=True).close()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=make) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors


def test_what_a_killed_runtime_had_begun_goes_with_its_container(store: Store) -> None:
    operations()["create-overlay"].before(_given(store))
    removed, kept = store.create("app:1", count=2)
    for name in (removed.id, kept.id, "0" * 64):
        (store.root / "run" / "runtime" / name).mkdir()
        (store.root / "run" / "runtime" / name / "config.json").write_text("{}")
    removed.remove(force=True)
    assert not (store.root / "run" / "runtime" / removed.id).exists()
    store.collect_garbage()
    assert [path.name for path in (store.root / "run" / "runtime").iterdir()] == [kept.id]


def test_what_a_killed_build_was_remembering_goes_when_no_build_runs(store: Store) -> None:
    steps = store.root / "builds" / "steps"
    steps.mkdir(parents=True)
    with (store.root / "builds" / "lock").open("wb") as lock:
        for name in ("images", "containers", "temporary"):
            (steps.parent / name).mkdir()
        (steps / ".0123.layerstore-0123456789ab").write_text("{")
        fcntl.flock(lock, fcntl.LOCK_SH)
        store.collect_garbage()
        assert list(steps.iterdir())
    store.collect_garbage()
    assert not list(steps.iterdir())


# The campaign


def _given(store: Store) -> Given:
    return Given(store, Place.below(store.root.parent), 0)


@pytest.fixture(scope="module", autouse=True)
def environment() -> Iterator[None]:
    """Operations are done here as their own processes do them, which need not put back what they set."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Template:
    return prepare(operations()["fork-extent"], tmp_path_factory.mktemp("campaign") / "fork")


@pytest.fixture
def place(template: Template, tmp_path: Path) -> Place:
    return template.copy(tmp_path / "trial")


def done(template: Template, place: Place, steps: int) -> None:
    """Do so many steps."""

    class Enough(Exception):
        pass

    def stop(number: int) -> None:
        if number == steps:
            raise Enough

    with contextlib.suppress(Enough):
        template.operation.run(place, stop)


@pytest.mark.parametrize(("steps", "acknowledged"), [(1, 0), (1, 1), (2, 1), (3, 2), (3, 3)])
def test_an_operation_that_came_that_far_is_well(
    template: Template, place: Place, steps: int, acknowledged: int
) -> None:
    done(template, place, steps)
    check(template, place, acknowledged)


@pytest.mark.parametrize(("steps", "acknowledged"), [(1, 2), (3, 1)])
def test_it_is_seen_that_something_is_missing_or_came_too_early(
    template: Template, place: Place, steps: int, acknowledged: int
) -> None:
    done(template, place, steps)
    with pytest.raises(Failure, match=r"lost: .* steps were acknowledged"):
        check(template, place, acknowledged)


def test_a_loss_of_power_may_take_what_is_not_durable(template: Template, place: Place) -> None:
    done(template, place, 1)
    check(template, place, 2, power_lost=True)


def _damage_object(root: Path) -> None:
    path = next(path for path in sorted(root.glob("objects/*/*")))
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.write(b"damage")


def _leave_file(root: Path) -> None:
    (root / "logs" / "left").mkdir()


def _remove_layer(root: Path) -> None:
    next(root.glob("layers/*.index")).unlink()


def _leave_staging(root: Path) -> None:
    shutil.copytree(root / "packs", root / "run" / "left")


@pytest.mark.parametrize(
    ("damage", "kind"),
    [(_damage_object, "corrupt"), (_remove_layer, "corrupt"), (_leave_file, "leaked"), (_leave_staging, "leaked")],
)
def test_damage_and_leaks_are_seen(template: Template, place: Place, damage: object, kind: str) -> None:
    done(template, place, 1)
    damage(place.store)  # type: ignore[operator]
    with pytest.raises(Failure) as failure:
        check(template, place, 1)
    assert failure.value.kind == kind


@NEEDS_COMPILER
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_program_is_killed_at_a_call(tmp_path: Path, when: str) -> None:
    command = [built_step(), when, "2", "all", tmp_path / "log"]
    code = "import os; [os.mkdir(name) for name in 'abc']"
    subprocess.run([*command, sys.executable, "-c", code], cwd=tmp_path, check=True)
    assert [name for name in "abc" if (tmp_path / name).exists()] == (["a"] if when == "before" else ["a", "b"])
    assert (tmp_path / "log").read_text().splitlines()[-1] == "killed"


@NEEDS_COMPILER
def test_only_the_first_process_is_killed(tmp_path: Path) -> None:
    command = [built_step(), "before", "1", "one", tmp_path / "log"]
    code = "import os, subprocess; subprocess.Popen(['sh', '-c', 'sleep 0.3; touch late']); os.mkdir('d')"
    subprocess.run([*command, sys.executable, "-c", code], cwd=tmp_path, check=True)
    assert sorted(os.listdir(tmp_path)) == ["late", "log"]


@NEEDS_COMPILER
def test_each_call_is_counted(template: Template, tmp_path: Path) -> None:
    """And a kill at one of them is told from a run that ends before it."""
    place = template.copy(tmp_path / "trial")
    (ended,) = run(place, Kill("fork-extent", 0))
    assert ended.status == 0, ended.errors
    names = {call.name for call in ended.calls}
    assert names >= {"openat", "pwrite64", "flock", "fdatasync", "unlink"}
    last = len(ended.calls)
    assert tried(template, Kill("fork-extent", last), tmp_path / "last") == (Kill("fork-extent", last), True, "", "")
    assert not tried(template, Kill("fork-extent", last + 9), tmp_path / "beyond").reached
