"""What the commands load before they do anything: modules are most of the time of a short one."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from images import docker_files, tar_of
from test_cli import root_only, runs
from test_containers import BOX, PLAIN

from layerstore import Store

ROOT = Path(__file__).parent.parent
ZSTD = "compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd"

# Each takes between one and twenty milliseconds, with what it loads itself; a bare Python takes about ten.
SLOW = {
    *("dataclasses", "inspect", "typing", "pathlib", "shutil", "tempfile", "tarfile", "platform", "socket", "secrets"),
    *("random", "queue", "subprocess", "locale", "zoneinfo", "importlib.metadata", "bz2", "lzma", "zlib", "mmap"),
    *("tqdm", "hashlib", "isal", "urllib3", ZSTD, "threading"),
}
OURS_TO_LOAD_AN_IMAGE = {
    *(f"layerstore._core.{name}" for name in ("erofs", "index", "ingest", "layer", "tar", "files")),
    *(f"layerstore.layers.{name}" for name in ("imports", "loading", "streams", "recipe")),
    *("layerstore.space.garbage", "layerstore.store.zstd"),
    *(
        "layerstore.oci.archives",
        "layerstore.oci.manifests",
        "layerstore.store.contents",
        "layerstore.containers.changes",
    ),
    *("layerstore._core.compare", "layerstore.views.comparison"),
}


def modules_of(arguments: Sequence[object]) -> set[str]:
    """What a command has loaded when it ends, what a bare Python loads left out."""
    code = "import sys; bare = set(sys.modules); from layerstore.cli import execute; status = execute(sys.argv[1:])\n"
    show = "print(*set(sys.modules) - bare, file=sys.stderr); sys.exit(status)"
    command = [sys.executable, "-c", code + show, *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    return set(done.stderr.splitlines()[-1].split())


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store where all that is derived has been made."""
    top = tmp_path_factory.mktemp("startup")
    (top / "archive.tar").write_bytes(tar_of(docker_files([PLAIN, BOX])))
    with Store(top / "store", create=True) as made:
        made.load(top / "archive.tar")
        made.remove([made.create("plain:1"), made.create("box:1")])
    return top / "store"


def test_help_loads_nothing_of_note() -> None:
    loaded = modules_of(["--help"])
    assert loaded <= {"layerstore", "layerstore.cli", "__future__", "gc"}


@pytest.mark.parametrize(
    "arguments", [("images", "-q"), ("ps", "-aq"), ("create", "--volatile", "plain:1"), ("tag", "plain:1", "other:1")]
)
def test_commands_load_what_they_need(store: Path, arguments: tuple[str, ...]) -> None:
    loaded = modules_of(["--root", store, *arguments])
    assert loaded & (SLOW | OURS_TO_LOAD_AN_IMAGE) == set()


@pytest.mark.parametrize("arguments", [("ls", "-lR", "box:1"), ("cat", "plain:1", "/second")])
def test_looking_loads_no_numpy(store: Path, arguments: tuple[str, ...]) -> None:
    loaded = modules_of(["--root", store, *arguments])
    assert loaded & {"numpy", "shutil", "tempfile", "subprocess", "dataclasses", "layerstore._core.erofs"} == set()


def test_a_freeze_loads_no_numpy(tmp_path: Path) -> None:
    """Whose np.unique ends the process where a thread has no memory left for the exception that it throws."""
    (tmp_path / "archive.tar").write_bytes(tar_of(docker_files([PLAIN])))
    with Store(tmp_path / "store", create=True) as store:
        store.load(tmp_path / "archive.tar")
    loaded = modules_of(["--root", tmp_path / "store", "freeze", "plain:1"])
    assert "layerstore.cold.encoding" in loaded
    assert "numpy" not in loaded


def test_a_build_from_the_cache_loads_what_it_needs(store: Path, tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text('FROM plain:1\nWORKDIR /app\nCOPY file .\nENV A=1\nCMD ["x"]\n')
    (tmp_path / "file").write_bytes(b"x")
    command = ["--root", store, "build", "-t", "built:1", tmp_path]
    modules_of(command)
    loaded = modules_of(command)
    assert "layerstore.building.stage" in loaded
    needed = {"queue", "threading", "layerstore.layers.blob_streams", "layerstore.oci.manifests"}
    assert loaded & (SLOW | OURS_TO_LOAD_AN_IMAGE) <= needed


@root_only
@pytest.mark.root
@pytest.mark.kernel
def test_mounting_loads_what_it_needs(store: Path) -> None:
    with Store(store) as opened:
        name = opened.create("plain:1").id
    # The path that `mount` prints is a Path of the library's.
    for command, needed in (("mount", {"pathlib"}), ("umount", set()), ("rm", set())):
        loaded = modules_of(["--root", store, command, name])
        assert loaded & (SLOW | OURS_TO_LOAD_AN_IMAGE) == needed


@runs
@pytest.mark.root
@pytest.mark.kernel
def test_run_loads_what_it_needs(store: Path) -> None:
    loaded = modules_of(["--root", store, "run", "--rm", "box:1", "/bin/true"])
    assert loaded & (SLOW | OURS_TO_LOAD_AN_IMAGE) == set()
    assert "layerstore.containers.runtime" in loaded


def standard(*modules: str) -> set[str]:
    """What the modules of the standard library that a command cannot do without load themselves."""
    code = f"import sys, {', '.join(modules)}; print(*sys.modules)"
    return set(subprocess.check_output([sys.executable, "-c", code], text=True).split())


@pytest.mark.parametrize(("compression", "decoders"), [("none", set()), ("gzip", {"isal"}), ("zstd", set())])
def test_load_loads_what_it_needs(tmp_path: Path, compression: str, decoders: set[str]) -> None:
    (tmp_path / "archive.tar").write_bytes(tar_of(docker_files([PLAIN], compression=compression)))
    arguments = ("--root", tmp_path / "store", "load", "-i", tmp_path / "archive.tar")
    needed = standard("queue", "shutil")
    # Every new layer is hashed, and its recipe compressed with zstd.
    assert modules_of(arguments) & SLOW - needed == {"hashlib", ZSTD, *decoders} - needed
    assert modules_of(arguments) & SLOW - needed == set()


@pytest.mark.parametrize(("compression", "encoders"), [("none", set()), ("gzip", {"isal"}), ("zstd", set())])
def test_save_loads_what_it_needs(store: Path, tmp_path: Path, compression: str, encoders: set[str]) -> None:
    arguments = ("--root", store, "save", "--compression", compression, "-o", tmp_path / "out", "plain:1")
    # What is written is hashed, and the recipe is compressed with zstd.
    needed = standard("queue", "tarfile")
    loaded = modules_of(arguments)
    assert loaded & SLOW - needed == {"hashlib", ZSTD, *encoders} - needed
    assert "concurrent.futures" not in loaded, "for a layer of one block"


def test_what_is_slow_is_seen(store: Path, tmp_path: Path) -> None:
    """The names are those that Python knows the modules by."""
    (tmp_path / "archive.tar").write_bytes(tar_of(docker_files([PLAIN], compression="gzip")))
    loaded = modules_of(["--root", tmp_path / "store", "load", "-i", tmp_path / "archive.tar"])
    assert {"isal", ZSTD, "layerstore.layers.loading", "layerstore.store.zstd", "hashlib"} <= loaded
    assert {"threading", "shutil", "pathlib"} <= modules_of(["--root", store, "gc"])


def test_the_program_leaves_a_store_that_opens(store: Path) -> None:
    """It ends without closing the database: what it wrote is there for the next one, in the log or out of it."""
    command = [sys.executable, "-m", "layerstore", "--root", str(store), "create", "plain:1"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    made = [subprocess.check_output(command, env=environment, text=True).strip() for _ in range(40)]
    with Store(store) as opened:
        assert set(made) <= {container.id for container in opened.containers()}
        opened.remove([opened.container(name) for name in made])
        assert (store / "layerstore.db-wal").stat().st_size < 1 << 20
