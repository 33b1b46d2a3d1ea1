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

import pytest
from leftovers import child_processes, control_groups, loop_devices, mount_points

if TYPE_CHECKING:
    from bench.peers import Docker
    from layerstore import Store

ROOT = Path(__file__).parent.parent
# At the end: under `make sanitize` another layerstore comes first.
sys.path.append(str(ROOT))
REQUIRE_ALL = os.environ.get("LAYERSTORE_REQUIRE_ALL") == "1"
MAY_SKIP = re.compile(
    r"this CPU|this architecture|this Python|no hybrid control groups|has reflink already"  # what another machine runs
)


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


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if REQUIRE_ALL and reporter is not None and session.exitstatus == pytest.ExitCode.OK and forbidden_skips(reporter):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    found = forbidden_skips(terminalreporter) if REQUIRE_ALL else []
    if found:
        terminalreporter.section("skipped, although LAYERSTORE_REQUIRE_ALL=1", red=True)
        for line in found:
            terminalreporter.write_line(line)


# Leftovers


@pytest.fixture(scope="module", autouse=True)
def no_leftovers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A test module leaves no mount, loop device, child process or control group.

    Looked at is what lies where tests put things. In CI nobody else does so at the same time.
    """
    places = [str(tmp_path_factory.getbasetemp())]
    if REQUIRE_ALL:
        places += [tempfile.gettempdir(), "/var/tmp", "/var/cache/layerstore-fixtures", str(ROOT)]

    def ours(path: str) -> bool:
        return any(path.startswith(place + "/") for place in places)

    mounts, loops, children = set(mount_points()), set(loop_devices()), set(child_processes())
    groups = set(control_groups())
    yield
    left = [f"mount {point}" for point in mount_points() if point not in mounts and ours(point)]
    left += [f"{device} of {file}" for device, file in loop_devices().items() if device not in loops and ours(file)]
    left += [f"process {pid}: {command}" for pid, command in child_processes().items() if pid not in children]
    if REQUIRE_ALL:  # whose they are, nothing tells
        left += [f"control group {group}" for group in control_groups() if group not in groups]
    assert not left, "left behind by this module: " + "; ".join(left)


# What tests work on


@pytest.fixture
def store(tmp_path: Path) -> Iterator["Store"]:
    """An empty store; what is mounted of it goes with the test. It must be on ext4, XFS or btrfs to be mounted from."""
    from layerstore import Store

    with Store(tmp_path / "store", create=True) as made:
        yield made
        made.remove(made.containers(), force=True)


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
