"""What campaigns/callers.py judges by: a run that leaves nothing is whole, and what is left is told."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from campaigns.callers import INSIDE, NAMESPACES, Board, Journal
from test_containers import ROOT, root_only, runs

PLANTED = """
import os, signal, subprocess, sys
from pathlib import Path
from campaigns import callers

def planted(campaign, check=callers.Campaign.check_kernel_and_disk):
    id = "f" * 64
    subprocess.Popen(["sleep", "1234"])
    campaign._ids.add(id)
    (Path("/sys/fs/cgroup/unified") / f"layerstore-{id}").mkdir()
    campaign.journal.note("made", "e" * 64)
    return check(campaign)

callers.Campaign.check_kernel_and_disk = planted
sys.exit(callers.main())
"""


def campaign(directory: Path, *program: str) -> subprocess.CompletedProcess[str]:
    arguments = ["--starts", "12", "--processes", "3", "--seed", "5", "--scratch", str(directory)]
    environment = {**os.environ, INSIDE: "1", "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    command = [*NAMESPACES, sys.executable, *program, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


@pytest.mark.root
@root_only
@runs
def test_a_short_run_leaves_nothing(tmp_path: Path) -> None:
    done = campaign(tmp_path, "-m", "campaigns.callers")
    assert done.returncode == 0, done.stdout + done.stderr
    assert os.listdir(tmp_path) == []


@pytest.mark.root
@root_only
@runs
@pytest.mark.skipif(
    not Path("/sys/fs/cgroup/unified").exists(), reason="no version 2 of control groups beside version 1"
)
def test_what_is_left_is_told(tmp_path: Path) -> None:
    done = campaign(tmp_path, "-c", PLANTED)
    assert done.returncode == 1, done.stdout + done.stderr
    for left in ("process", "sleep 1234", f"group /sys/fs/cgroup/unified/layerstore-{'f' * 64}"):
        assert left in done.stdout
    assert f"container {'e' * 64}" in done.stdout


def test_callers_share_what_they_count(tmp_path: Path) -> None:
    board, journal = Board(3), Journal(tmp_path / "journal")
    pid = os.fork()
    if not pid:
        board.count(1, "execs")
        board.count(2, "execs")
        journal.note("made", "a")
        os._exit(0)
    os.waitpid(pid, 0)
    journal.note("removed", "a")
    assert (board.total("execs"), board.total("starts")) == (2, 0)
    assert journal.noted("made") == journal.noted("removed") == ["a"]
