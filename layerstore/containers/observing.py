"""What runs in a container, and what it takes: for `top` and `stats`."""

from __future__ import annotations

import contextlib
import os

from layerstore.containers import groups, keeping
from layerstore.results import Running, Stats

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def running(first: int) -> list[Running]:
    """The processes of the container of which this is the first one, by their ids on this machine."""
    return [found for pid in keeping.processes(first) for found in _running(pid)]


def _running(pid: int) -> Iterator[Running]:
    with contextlib.suppress(OSError):  # it has ended
        with open(f"/proc/{pid}/stat", "rb") as file:
            before, _, after = file.read().rpartition(b")")
        values = after.split()
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            words = file.read().rstrip(b"\0").decode(errors="replace").split("\0")
        name = before.partition(b"(")[2].decode(errors="replace")
        yield Running(
            pid=pid,
            ppid=int(values[1]),
            uid=os.stat(f"/proc/{pid}").st_uid,
            cpu_seconds=(int(values[11]) + int(values[12])) / _TICKS,
            started=_booted() + int(values[19]) / _TICKS,
            threads=int(values[17]),
            command=words if words[0] else [f"[{name}]"],
        )


def _booted() -> float:
    with open("/proc/stat") as file:
        return float(next(line for line in file if line.startswith("btime ")).split()[1])


def stats(container: str, first: int) -> Stats:
    """What a container takes at this moment. Raises `OSError`."""
    found = running(first)
    cpu = groups.counted(container, "cpuacct.usage", "cpu.stat")
    memory = groups.counted(container, "memory.usage_in_bytes", "memory.current")
    limit = groups.counted(container, "memory.limit_in_bytes", "memory.max")
    machine = os.sysconf("SC_PHYS_PAGES") * _PAGE_BYTES
    return Stats(
        cpu_seconds=sum(one.cpu_seconds for one in found) if cpu is None else cpu,
        memory_bytes=sum(_proportional_bytes(one.pid) for one in found) if memory is None else int(memory),
        memory_limit_bytes=machine if limit is None else min(machine, int(limit)),
        pids=sum(one.threads for one in found),
    )


def _proportional_bytes(pid: int) -> int:
    with contextlib.suppress(OSError), open(f"/proc/{pid}/smaps_rollup", "rb") as file:
        for line in file:
            if line.startswith(b"Pss:"):
                return int(line.split()[1]) << 10
    return 0
