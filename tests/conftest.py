"""What every test has: checks for leftovers, a store, real images, and skips that count as failures in CI.

Markers: `@pytest.mark.root` skips without root, `@pytest.mark.kernel` without a kernel and a right to mount EROFS and
overlayfs, `@pytest.mark.needs_tool("umoci")` without that program; `@pytest.mark.peers` is for tests that ask other
programs of our kind, which only `make peers` runs. With LAYERSTORE_REQUIRE_ALL=1 (ci/can-run-all says where) a session
in which anything was skipped fails, but for what only other hardware or another Python can run.
"""

import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

# Before layerstore is imported, and for the processes that tests start: locks that are taken out of order are an error.
os.environ.setdefault("LAYERSTORE_STRICT_LOCKS", "1")

import leftovers
import pytest

if TYPE_CHECKING:
    from meddling import Meddling

    from bench.peers import Docker
    from layerstore import Store

ROOT = Path(__file__).parent.parent
# At the end: under `make sanitize` another layerstore comes first.
sys.path.append(str(ROOT))
REQUIRE_ALL = os.environ.get("LAYERSTORE_REQUIRE_ALL") == "1"
# Other workers of pytest-xdist run beside this process, or beside the one that started it.
IS_WORKER = "PYTEST_XDIST_WORKER" in os.environ
MAY_SKIP = re.compile(
    # What another machine runs.
    r"this CPU|this architecture|this Python|no hybrid control groups|has reflink already|XFS has no quotas"
)
LEFT = pytest.StashKey[set[str]]()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int | None:
    """On one core a worker beside this process would only cost."""
    return 0 if len(os.sched_getaffinity(0)) == 1 else None


# Skips


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "needs_tool(name): needs this program on the PATH")


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("root") and os.geteuid() != 0:
        pytest.skip("needs root")
    if item.get_closest_marker("kernel"):
        from layerstore._core import mount

        features = mount.features()
        if not (features.may_mount and features.overlay and features.erofs):
            pytest.skip("needs CAP_SYS_ADMIN, overlayfs and EROFS")
    for marker in item.iter_markers("needs_tool"):
        if shutil.which(marker.args[0]) is None:
            pytest.skip(f"{marker.args[0]} is not installed; ci/packages.txt says what tests use")


def forbidden_skips(reporter: pytest.TerminalReporter) -> list[str]:
    found = []
    for report in reporter.stats.get("skipped", []):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        if not MAY_SKIP.search(reason):
            found.append(f"{report.nodeid}: {reason}")
    return found


def pytest_sessionstart(session: pytest.Session) -> None:
    session.config.stash[LEFT] = whole_machine()


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    config = session.config
    config.stash[LEFT] = whole_machine() - config.stash[LEFT]
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    fails = config.stash[LEFT] or (REQUIRE_ALL and reporter is not None and forbidden_skips(reporter))
    if fails and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    skips = forbidden_skips(terminalreporter) if REQUIRE_ALL else []
    left = sorted(config.stash[LEFT])
    for title, lines in (
        ("skipped, although LAYERSTORE_REQUIRE_ALL=1", skips),
        ("left behind by this session (with -n 0 the module is told)", left),
    ):
        if lines:
            terminalreporter.section(title, red=True)
            for line in lines:
                terminalreporter.write_line(line)


# Leftovers


def whole_machine() -> set[str]:
    """What lies where tests put things, of whichever worker. In CI nobody else does so at the same time."""
    if not REQUIRE_ALL or IS_WORKER:
        return set()
    places = [tempfile.gettempdir(), "/var/tmp", "/var/cache/layerstore-fixtures", str(ROOT)]
    return leftovers.lying_in(places) | {f"control group {group}" for group in leftovers.control_groups()}


@pytest.fixture(scope="module", autouse=True)
def no_leftovers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A test module leaves no mount, loop device, child process or control group.

    Where other workers run beside this one, what is not below its own directory is only looked for at the end of the
    session: whose it is, nothing tells.
    """
    own = [str(tmp_path_factory.getbasetemp())]
    before, children = leftovers.lying_in(own) | whole_machine(), set(leftovers.child_processes())
    yield
    left = sorted((leftovers.lying_in(own) | whole_machine()) - before)
    left += [f"process {pid}: {command}" for pid, command in leftovers.child_processes().items() if pid not in children]
    assert not left, "left behind by this module: " + "; ".join(left)


# What tests work on


@pytest.fixture
def store(tmp_path: Path) -> Iterator["Store"]:
    """An empty store; what is mounted of it goes with the test. It must be on ext4, XFS or btrfs to be mounted from."""
    from layerstore import Store

    with Store(tmp_path / "store", create=True) as made:
        yield made
        made.remove(made.containers(), force=True)


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four packs are many: the contents of more are brought together."""
    from layerstore.chains import packs

    for name, count in (("MAX_PACKS", 4), ("_PACKS_LEFT", 2)):
        monkeypatch.setattr(packs, name, count)


@pytest.fixture
def by_runc(monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs are run by runc, as where no crun is installed."""
    monkeypatch.setattr("layerstore.containers.runtime._KNOWN", ("runc",))


@pytest.fixture
def unchecked_links(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hard links to nothing are taken in, as by a version that did not look at them."""
    from layerstore.layers.imports import Import

    monkeypatch.setattr(Import, "_check_links", lambda *_: None)


@pytest.fixture
def meddle(monkeypatch: pytest.MonkeyPatch) -> Iterator["Meddling"]:
    """What has calls fail, or something come in between of them; each point that is given has to be reached."""
    from meddling import Meddling

    made = Meddling(monkeypatch)
    yield made
    assert made.awaited == [], "nothing has called"


@pytest.fixture(scope="session")
def debian_tar() -> Path:
    """A real Debian root file system as a tar of 248 MB. Made once for this machine, in 20 s and with the network."""
    from bench.fixtures import Fixtures, default_cache

    cached = default_cache() / "debian.tar"
    if cached.exists():
        return cached
    if os.geteuid() != 0:
        pytest.skip("making a Debian root file system needs root")
    if shutil.which("mmdebstrap") is None:
        pytest.skip("mmdebstrap is not installed; ci/packages.txt says what tests use")
    return Fixtures().debian_tar()


@pytest.fixture(scope="module")
def docker() -> Iterator["Docker"]:
    """A dockerd of the module's own."""
    from judges import started

    from bench.peers import Docker

    with started(Docker) as peer:
        yield peer
