"""What holds for the project as a whole: imports point one way, documents are true, nothing is left lying about."""

import ast
import hashlib
import importlib
import io
import itertools
import json
import os
import pkgutil
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest
from campaigns import record

from layerstore import Limits, Store
from layerstore.cli import COMMANDS
from layerstore.store.locks import LOCKS

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "layerstore"
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")
ROOMS = sorted(path for path in (ROOT / "csrc").iterdir() if path.is_dir())
UNITS_OF_CORE = sorted((ROOT / "csrc").glob("*/*.[ch]"))
BUSYBOX = Path("/bin/busybox")

# A part imports from itself and from parts of a lower rank. `layerstore/__init__.py` imports nothing until asked to.
PARTS = [
    ["_core"],
    ["errors", "naming"],
    ["types"],
    ["chunking", "limits"],
    ["results", "store", "oci"],
    ["trees"],
    ["layers"],
    ["chains"],
    ["cold"],
    ["space"],
    ["views"],
    ["extents"],
    ["mount"],
    ["containers", "registry", "sync"],
    ["building", "checking"],
    ["api"],
    ["aio", "filesystem", "cli"],
    ["evaluations"],
    ["__main__"],
]
RANKS = {part: rank for rank, parts in enumerate(PARTS) for part in parts}


# Imports


def part_of(path: Path, package: Path = PACKAGE) -> str:
    return path.relative_to(package).parts[0].removesuffix(".py")


def imports_of(path: Path) -> Iterator[str]:
    """The parts of layerstore that a module imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            first, _, rest = name.partition(".")
            if first == "layerstore":
                yield rest.split(".")[0]


def wrong_imports(path: Path, package: Path = PACKAGE) -> list[str]:
    part = part_of(path, package)
    return [name for name in imports_of(path) if name != part and RANKS.get(name, 99) >= RANKS[part]]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path: Path) -> None:
    assert wrong_imports(path) == []


def test_an_import_that_points_back_is_seen(tmp_path: Path) -> None:
    module = tmp_path / "store" / "db.py"
    module.parent.mkdir()
    module.write_text("import os\nfrom layerstore import errors\ndef f():\n    from layerstore.mount import shared\n")
    assert wrong_imports(module, tmp_path) == ["mount"]


def missing_names(path: Path) -> list[str]:
    """What a file imports of layerstore that is not there; it need not be importable itself."""
    missing = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "layerstore":
            module = importlib.import_module(node.module)
            names = [alias.name for alias in node.names if not hasattr(module, alias.name)]
            files = {found.name for found in pkgutil.iter_modules(getattr(module, "__path__", []))}
            missing += [name for name in names if name not in files]
    return missing


@pytest.mark.parametrize("folder", ["bench", "ci", "tests"])
def test_what_stands_beside_the_package_imports_what_is_in_it(folder: str) -> None:
    """Fuzzers, benchmarks and campaigns too, which this run may not start; mypy sees to the package itself."""
    assert {str(path): missing for path in (ROOT / folder).rglob("*.py") if (missing := missing_names(path))} == {}


def test_an_import_of_what_is_not_there_is_seen(tmp_path: Path) -> None:
    module = tmp_path / "fuzz_it.py"
    module.write_text(
        "import nowhere\nfrom layerstore import errors\n"
        "from layerstore.errors import Wrong\nfrom layerstore.oci import archives, nothing\n"
    )
    assert missing_names(module) == ["Wrong", "nothing"]


def test_no_two_modules_have_one_name() -> None:
    """But for commands, which are called as what they do, and checks, as what they look at; and the core's own."""
    rooms = {"cli", "checking", "_core"}
    names = [path.name for path in MODULES if part_of(path) not in rooms and path.name != "__init__.py"]
    assert {name for name in names if names.count(name) > 1} == set()


def test_the_c_core_knows_nothing_of_python() -> None:
    assert [path.name for path in UNITS_OF_CORE if "Python.h" in path.read_text()] == []


def test_the_core_is_in_rooms() -> None:
    """Each says what it owns, and which others it may include: just those it does, and none that may include it."""
    may: dict[str, set[str]] = {}
    does: dict[str, set[str]] = {}
    for room in ROOMS:
        title, _, allowed = (room / "README.md").read_text().partition("\n\nMay include: ")
        assert title.startswith(f"# {room.name}\n\n")
        may[room.name] = set(re.findall(r"`(\w+)/`", allowed))
        includes = [
            re.findall(r'^#include "(?:(\w+)/)?\w+\.h"', p.read_text(), re.MULTILINE) for p in room.glob("*.[ch]")
        ]
        does[room.name] = set(itertools.chain(*includes)) - {""}
    assert does == may
    while free := [name for name, others in may.items() if not others & may.keys()]:
        for name in free:
            del may[name]
    assert may == {}, "they include each other in a circle"


def test_each_unit_of_the_core_has_its_header() -> None:
    """Kernels, which are one function for several processors, share one."""
    headers = {path.relative_to(ROOT / "csrc") for path in UNITS_OF_CORE if path.suffix == ".h"}
    kernels = re.compile(r"_(portable|avx2|avx512)$")
    lacking = [
        path.name
        for path in UNITS_OF_CORE
        if path.suffix == ".c"
        and path.relative_to(ROOT / "csrc").with_name(kernels.sub("_impl", path.stem) + ".h") not in headers
    ]
    assert lacking == []


def test_importing_layerstore_imports_nothing_else() -> None:
    code = "import layerstore, sys; print([m for m in sys.modules if m.startswith('layerstore.')])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


# Versions


def test_the_version_is_the_same_everywhere() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest is not None
    assert version("layerstore") == project["version"] == newest[1]
    command = [sys.executable, "-m", "layerstore", "--version"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True)
    assert shown.stdout == f"layerstore {project['version']}\n"


@pytest.mark.parametrize(
    ("page", "header", "macro"),
    [
        ("pack", "contents", "LS_PACK_VERSION"),
        ("index", "index", "LS_INDEX_VERSION"),
        ("log", "log", "LS_LOG_VERSION"),
        ("chunks", "chunker", "LS_CHUNKER_VERSION"),
    ],
)
def test_a_format_page_tells_the_version_that_is_written(page: str, header: str, macro: str) -> None:
    defined = re.search(rf"#define {macro} (\d+)", next((ROOT / "csrc").glob(f"*/{header}.h")).read_text())
    told = re.search(r"^# .*version (\d+)", (ROOT / f"docs/format/{page}.md").read_text(), re.MULTILINE)
    assert defined is not None
    assert told is not None
    assert defined[1] == told[1]


# Documents


def documents() -> list[Path]:
    own = [ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "csrc").rglob("*.md")]
    return [*own, *(ROOT / "docs").rglob("*.md"), *(ROOT / "bench").glob("*.md")]


def make_targets() -> set[str]:
    lines = (ROOT / "Makefile").read_text().splitlines()
    phony = next(line for line in lines if line.startswith(".PHONY:"))
    return set(phony.split()[1:])


def test_commands_that_documents_name_exist() -> None:
    for document in documents():
        found = re.findall(r"```sh\n(.*?)```|`([^`\n]+)`", document.read_text(), re.DOTALL)
        code = "\n".join(block or inline for block, inline in found)
        for target in re.findall(r"^make ([a-z]+)", code, re.MULTILINE):
            assert target in make_targets(), f"{document.name}: make {target}"
        for command in re.findall(r"(?:^|\| )layerstore (?:--root \S+ )?([a-z][a-z-]*)", code, re.MULTILINE):
            assert command in COMMANDS, f"{document.name}: layerstore {command}"


def test_commands_listed_have_modules() -> None:
    shared = {"command", "confining", "output", "selection", "starting", "transfers"}
    found = {path.stem.rstrip("_").replace("_", "-") for path in (PACKAGE / "cli").glob("[!_]*.py")}
    assert found == set(COMMANDS) | shared


def anchors(document: Path) -> set[str]:
    """The names that its headings have in links, as GitHub gives them."""
    headings = re.findall(r"^#+ (.*)$", document.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_links_of_documents_lead_somewhere() -> None:
    for document in documents():
        for target, anchor in re.findall(r"\]\(([^)#]*)(?:#([^)]*))?\)", document.read_text()):
            if "://" not in target:
                page = document.parent / target if target else document
                assert page.exists(), f"{document.name} links to {target}"
                assert not anchor or anchor in anchors(page), f"{document.name} links to {target}#{anchor}"


def pages() -> list[Path]:
    """What tells how it is made."""
    return [*(ROOT / "csrc").rglob("*.md"), *(ROOT / "docs").rglob("*.md")]


def test_files_that_pages_name_exist() -> None:
    everything = [str(path.relative_to(ROOT)) for path in ROOT.rglob("*.*") if ".venv" not in path.parts]
    everything.append("fs/erofs/erofs_fs.h")  # Linux's
    for page in pages():
        for name in re.findall(r"`([\w/.]+\.(?:py|pyx|pyi|pxd|c|h|md))`", page.read_text()):
            assert any(path == name or path.endswith("/" + name) for path in everything), f"{page.name}: {name}"


def test_the_architecture_is_a_map() -> None:
    """Short, and it leads to every page."""
    text = (ROOT / "docs/architecture.md").read_text()
    assert len(text.encode()) <= 10 * 1024
    links = set(re.findall(r"\]\(([\w/.-]+\.md)", text))
    assert {str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md")} - links == {
        "architecture.md"
    }


def test_the_architecture_shows_every_room_in_the_order_of_imports() -> None:
    text = (ROOT / "docs/architecture.md").read_text()
    (table,) = re.findall(r"^\| room \|.*?\n\n", text, re.MULTILINE | re.DOTALL)
    cells = re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)
    rooms = re.findall(r"`(\w+)`", " ".join(cells))
    assert rooms[0] == "csrc"
    assert sorted(rooms[1:]) == sorted(RANKS.keys() - {"__main__"})
    assert rooms[1:] == sorted(rooms[1:], key=lambda room: RANKS[room])


@pytest.mark.parametrize("package", sorted({path.parent for path in MODULES} - {PACKAGE}), ids=lambda path: path.name)
def test_a_package_says_what_each_of_its_files_is_for(package: Path) -> None:
    told = ast.get_docstring(ast.parse((package / "__init__.py").read_text())) or ""
    named = set(re.findall(r"`(\w+\.py)`", told))
    files = {path.name for path in package.glob("[!_]*.py")}
    if package.name == "cli":
        files -= {f"{command.replace('-', '_')}.py" for command in COMMANDS} | {"import_.py"}
    assert named == files


def test_a_room_of_the_core_says_what_each_of_its_files_is_for() -> None:
    assert ROOMS
    for room in ROOMS:
        named = set(re.findall(r"`(\w+)\.h`", (room / "README.md").read_text()))
        assert named == {path.stem for path in room.glob("*.h") if not path.stem.endswith("_impl")}, room.name
        for header in room.glob("*.h"):
            assert header.read_text().startswith("/* "), f"{header.name} does not begin with what it is for"


def test_the_table_of_locks_is_in_their_order() -> None:
    text = (ROOT / "docs/locks.md").read_text()
    table = text.partition("## Locks with a rank")[2].partition("\n## ")[0]
    assert re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE) == list(LOCKS)


def test_what_campaigns_count_is_on_its_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each table where its writer finds it; that of campaigns as it would be written now."""
    monkeypatch.syspath_prepend(ROOT / "tests/hostile")
    recording = importlib.import_module("recording")
    text = record.PAGE.read_text()
    for begin, end in ((record.BEGIN, record.END), (recording.BEGIN, recording.END)):
        assert text.count(begin) == text.count(end) == 1
        assert text.index(begin) < text.index(end)
    assert text.partition(record.BEGIN)[2].partition(record.END)[0] == record.table()
    about = recording.limits()
    for name, value in vars(Limits()).items():
        assert f"| `{name}` | {value:,} | {about[name]} |\n" in text


# The examples of the README


def archive_of_busybox(path: Path) -> None:
    """A docker archive of an image with a shell and cat."""
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        for name, kind in (("bin", tarfile.DIRTYPE), ("bin/sh", tarfile.REGTYPE), ("bin/cat", tarfile.REGTYPE)):
            member = tarfile.TarInfo(name)
            member.type, member.mode = kind, 0o755
            member.size = BUSYBOX.stat().st_size if kind == tarfile.REGTYPE else 0
            tar.addfile(member, io.BytesIO(BUSYBOX.read_bytes()))
    diff_id = "sha256:" + hashlib.sha256(layer.getvalue()).hexdigest()
    rootfs = {"type": "layers", "diff_ids": [diff_id]}
    config = json.dumps({"architecture": "amd64", "os": "linux", "config": {}, "rootfs": rootfs}).encode()
    manifest = [{"Config": "config.json", "RepoTags": ["busybox:test"], "Layers": ["layer.tar"]}]
    files = {"config.json": config, "layer.tar": layer.getvalue(), "manifest.json": json.dumps(manifest).encode()}
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def run_example(example: str, tmp_path: Path) -> str:
    """What an example prints, run with a store and an archive of its own."""
    assert len(example.splitlines()) <= 24
    assert '"/var/tmp/example-store"' in example
    code = example.replace('"/var/tmp/example-store"', repr(str(tmp_path / "store")))
    command = [sys.executable, "-c", code, str(tmp_path / "image.tar")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def examples(page: str = "README.md") -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    if not BUSYBOX.exists():
        pytest.skip("no static /bin/busybox (busybox-static)")
    archive_of_busybox(tmp_path / "image.tar")
    return tmp_path / "image.tar"


@pytest.fixture
def loaded(tmp_path: Path, archive: Path) -> None:
    with Store(tmp_path / "store", create=True) as store:
        store.load(archive)


@pytest.mark.root
@pytest.mark.kernel
@pytest.mark.usefixtures("archive")
def test_the_example_of_the_readme_runs(tmp_path: Path) -> None:
    printed = run_example(examples()[0], tmp_path)
    assert printed.startswith("['busybox:test'] ")
    assert "100 views, the first at " in printed
    assert "A /note" in printed.splitlines()


@pytest.mark.root
@pytest.mark.kernel
@pytest.mark.usefixtures("loaded")
def test_the_programs_for_sandboxes_run(tmp_path: Path) -> None:
    limited, steps, many = (run_example(example, tmp_path) for example in examples("docs/sandboxes.md")[:3])
    assert limited == "3 out\n\nended with all that it had started; the container lives on: running\n"
    assert steps == "good\n\n['good\\n', 'good\\n', 'good\\n']\n"
    assert many == f"{[str(number).encode() for number in range(8)]}\n"
    with Store(tmp_path / "store") as store:
        assert store.containers() == []


@pytest.mark.usefixtures("loaded")
def test_the_example_of_looking_into_an_image_runs(tmp_path: Path) -> None:
    size = BUSYBOX.stat().st_size
    assert run_example(examples()[1], tmp_path).splitlines() == [
        f"/bin/sh {size} b'\\x7fELF'",
        "['cat', 'sh'] ['/bin/sh']",
        f"[ True False] {size} [ 0 -1]",
    ]


@pytest.mark.usefixtures("loaded")
def test_the_example_of_fsspec_runs(tmp_path: Path) -> None:
    assert run_example(examples()[2], tmp_path) == "b'\\x7fELF'\n"


@pytest.mark.usefixtures("loaded")
def test_the_example_of_the_extent_driver_runs(tmp_path: Path) -> None:
    assert run_example(examples()[3], tmp_path) == ""
    with Store(tmp_path / "store") as store:
        assert store.containers() == []


# What the Makefile installs


@pytest.mark.parametrize("target", ["demo", "test", "peers", "bench", "lint", "fuzz"])
def test_make_installs_the_packages_of_a_target(target: str) -> None:
    """It looks for no pattern rule for a phony target, and says nothing."""
    if shutil.which("make") is None:
        pytest.skip("no make")
    command = ["make", "-n", "-C", str(ROOT), "--no-print-directory", f"packages-{target}"]
    planned = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert planned.split() == ["ci/install-packages", target]


# Leftovers


def tracked_files() -> list[Path]:
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("not a git checkout, or no git")
    command = ["git", "-c", f"safe.directory={ROOT}", "-C", str(ROOT), "ls-files", "-z"]
    listed = subprocess.run(command, capture_output=True, check=True).stdout
    return [ROOT / os.fsdecode(name) for name in listed.split(b"\0") if name]


def test_nothing_is_left_lying_about() -> None:
    own_paths = "/wo" + "rk/(?:fix|main|shared|wt|venv)"
    marks = re.compile("|".join(("TO" + "DO", "FIX" + "ME", "XX" + "X ", "<<<<" + "<<<", own_paths)))
    found = []
    for path in tracked_files():
        assert path.suffix not in (".so", ".o", ".pyc", ".orig", ".rej"), f"{path} is a product of the build"
        if path.is_file() and path.suffix in (".py", ".pyx", ".pyi", ".pxd", ".c", ".h", ".md", ".toml", ".txt", ""):
            lines = path.read_bytes().decode(errors="replace").splitlines()
            found += [f"{path.relative_to(ROOT)}:{n}" for n, line in enumerate(lines, 1) if marks.search(line)]
    assert found == []


# The rules of conftest.py

# With a place of its own (--basetemp), or it would remove what earlier sessions have left.
PYTEST = [sys.executable, "-m", "pytest", "-q", "-p", "conftest", "-p", "no:cacheprovider"]


@pytest.mark.parametrize(("reason", "status"), [("umoci is not installed", 1), ("this CPU has no AVX-512", 0)])
def test_a_skip_fails_where_everything_is_required(tmp_path: Path, reason: str, status: int) -> None:
    (tmp_path / "test_it.py").write_text(f"import pytest\ndef test_it():\n    pytest.skip({reason!r})\n")
    environment = {**os.environ, "LAYERSTORE_REQUIRE_ALL": "1", "PYTHONPATH": str(ROOT / "tests")}
    environment["PYTEST_XDIST_WORKER"] = "gw0"  # so that it does not take for its own what others have mounted
    command = [*PYTEST, f"--basetemp={tmp_path / 'base'}", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == status, done.stdout + done.stderr
    assert ("skipped, although" in done.stdout) == bool(status)


def test_what_a_module_leaves_behind_is_seen(tmp_path: Path) -> None:
    body = "import subprocess\nleft = []\ndef test_it():\n    left.append(subprocess.Popen(['sleep', '3']))\n"
    (tmp_path / "test_it.py").write_text(body)
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "tests")}
    command = [*PYTEST, f"--basetemp={tmp_path / 'base'}", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 1
    assert "left behind by this module: process" in done.stdout


@pytest.mark.root
def test_what_workers_leave_behind_is_seen(tmp_path: Path) -> None:
    """Not below pytest's own directory, and so by whoever looks when all of them have ended."""
    left = tmp_path / "left"
    left.mkdir()
    mounting = ["mount", "-t", "tmpfs", "none", str(left)]
    (tmp_path / "test_it.py").write_text(
        f"import subprocess\ndef test_it():\n    subprocess.run({mounting}, check=True)\n"
    )
    environment = {
        **os.environ,
        "LAYERSTORE_REQUIRE_ALL": "1",
        "PYTHONPATH": str(ROOT / "tests"),
        "TMPDIR": str(tmp_path),
    }
    environment.pop("PYTEST_XDIST_WORKER", None)
    command = [*PYTEST, "-n", "1", f"--basetemp={tmp_path / 'base'}", str(tmp_path)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    finally:
        subprocess.run(["umount", left])
    assert done.returncode == 1, done.stdout + done.stderr
    assert "1 passed" in done.stdout
    assert f"mount {left}" in done.stdout.partition("left behind by this session")[2]
