"""What the machine has that a test may leave behind: mounts, loop devices, processes, control groups."""

from collections.abc import Collection, Iterable
from pathlib import Path


def mount_points() -> list[str]:
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return [line.split()[4].encode().decode("unicode_escape") for line in lines]


def loop_devices() -> dict[str, str]:
    """Loop device -> the file behind it, of those in use."""
    found = {}
    for path in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            found[path.parts[3]] = path.read_text().strip()
        except OSError:
            continue  # it went meanwhile
    return found


def lying_in(directories: Iterable[str]) -> set[str]:
    """The mounts below these directories and the loop devices of files there, as lines of text."""
    below = tuple(f"{directory}/" for directory in directories)
    found = {f"mount {point}" for point in mount_points() if point.startswith(below)}
    return found | {f"{device} of {file}" for device, file in loop_devices().items() if file.startswith(below)}


def child_processes() -> dict[int, str]:
    """The children of this process that run: id -> command."""
    found = {}
    for path in Path("/proc/self/task").glob("*/children"):
        for pid in path.read_text().split():
            try:
                command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if "multiprocessing.resource_tracker" not in command:
                found[int(pid)] = command
    return found


def control_groups(of: Collection[str] | None = None) -> list[str]:
    """The control groups of containers, of whatever store or of those with these ids."""
    found = (path for place in ("", "*/") for path in Path("/sys/fs/cgroup").glob(f"{place}layerstore-*"))
    return [str(path) for path in found if of is None or path.name[11:].partition(".")[0] in of]
