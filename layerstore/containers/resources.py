"""How much the programs of a container may take together: docker's options, and what control groups are told for them.

Sources: Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/ of Linux; `linux.resources` of the OCI runtime
specification 1.0.2.
"""

from __future__ import annotations

import os
import re

from layerstore.errors import InvalidInput
from layerstore.types import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Files = list[tuple[str, str]]
    """Names of files, and what is written to them, in that order."""

PIDS_LIMIT = 2048
"""How many processes and threads a container may have: podman's default."""
PARENTS = ""
"""Written to a file: what the group above has there."""

_LEAST_MEMORY_BYTES = 6 << 20
_PERIODS_US = (20_000, 100_000)
"""In which a share of the CPUs is counted: the first in which it is no less than the kernel takes. In a long one a
container that has used its share up has held the others up for as long."""
_LEAST_QUOTA_US = 1000
_SHARES = (2, 262_144)
_ONLINE = "/sys/devices/system/cpu/online"


class Resources(Value):
    """What a container may have at most; None of each, and -1 processes: what there is.

    `memory` and `memory_and_swap` are bytes, the latter -1 for swap without a limit. `cpus` is the time of so many
    CPUs, `cpu_shares` a weight against others (1,024 is usual), `cpuset` the CPUs that it runs on, as "0-2,5".
    """

    def __init__(
        self,
        pids: int = PIDS_LIMIT,
        memory: int | None = None,
        memory_and_swap: int | None = None,
        cpus: float | None = None,
        cpu_shares: int | None = None,
        cpuset: str | None = None,
    ) -> None:
        self.pids = pids
        self.memory = memory
        self.memory_and_swap = memory_and_swap
        self.cpus = cpus
        self.cpu_shares = cpu_shares
        self.cpuset = cpuset

    @property
    def limited(self) -> list[str]:
        """docker's options that they come from."""
        given = {
            "--pids-limit": self.pids >= 0,
            "--memory": self.memory is not None,
            "--cpus": self.cpus is not None,
            "--cpu-shares": self.cpu_shares is not None,
            "--cpuset-cpus": self.cpuset is not None,
        }
        return [option for option, is_given in given.items() if is_given]

    def files(self) -> dict[str, tuple[Files, Files]]:
        """By the name of each controller that they need: its files of version 1 of control groups, and of version 2."""
        found: dict[str, tuple[Files, Files]] = {}
        if self.pids >= 0:
            maximum = [("pids.max", f"{self.pids}")]
            found["pids"] = maximum, maximum
        if self.memory is not None:
            first, second = [("memory.limit_in_bytes", f"{self.memory}")], [("memory.max", f"{self.memory}")]
            if self.memory_and_swap not in (None, -1):
                assert self.memory_and_swap is not None
                first.append(("memory.memsw.limit_in_bytes", f"{self.memory_and_swap}"))
                second.append(("memory.swap.max", f"{self.memory_and_swap - self.memory}"))
            found["memory"] = first, second
        if self.cpus is not None or self.cpu_shares is not None:
            first, second = [], []
            if self.cpus is not None:
                first += [("cpu.cfs_period_us", f"{self._period_us}"), ("cpu.cfs_quota_us", f"{self._quota_us}")]
                second += [("cpu.max", f"{self._quota_us} {self._period_us}")]
            if self.cpu_shares is not None:
                first += [("cpu.shares", f"{self.cpu_shares}")]
                least, most = _SHARES
                weight = 1 + (self.cpu_shares - least) * 9999 // (most - least)
                second += [("cpu.weight", f"{weight}")]
            found["cpu"] = first, second
        if self.cpuset is not None:
            # Of version 1 nothing starts in a group before both are there.
            found["cpuset"] = [("cpuset.mems", PARENTS), ("cpuset.cpus", self.cpuset)], [("cpuset.cpus", self.cpuset)]
        return found

    def of_runtime(self) -> dict[str, Any]:
        """As `linux.resources`, for a runtime that makes the groups itself."""
        cpu = {
            "quota": self._quota_us if self.cpus is not None else None,
            "period": self._period_us if self.cpus is not None else None,
            "shares": self.cpu_shares,
            "cpus": self.cpuset,
        }
        found: dict[str, Any] = {
            "pids": {"limit": self.pids if self.pids >= 0 else None},
            "memory": {"limit": self.memory, "swap": self.memory_and_swap},
            "cpu": cpu,
        }
        known = {kind: {key: value for key, value in of.items() if value is not None} for kind, of in found.items()}
        return {kind: of for kind, of in known.items() if of}

    @property
    def _period_us(self) -> int:
        assert self.cpus is not None
        return next(period for period in _PERIODS_US if self.cpus * period >= _LEAST_QUOTA_US)

    @property
    def _quota_us(self) -> int:
        assert self.cpus is not None
        return int(self.cpus * self._period_us)


USUAL = Resources()


def resources(
    pids_limit: int,
    memory: int | str | None = None,
    memory_swap: int | str | None = None,
    cpus: float | str | None = None,
    cpu_shares: int | None = None,
    cpuset_cpus: str | None = None,
) -> Resources:
    """Those of docker's options of these names. Raises `InvalidInput` for a value that is none."""
    if not isinstance(pids_limit, int) or (pids_limit < 1 and pids_limit != -1):
        raise InvalidInput(f"the limit on processes is {pids_limit!r}: it is 1 or more, or -1 for none")
    limit = None if memory is None else size(memory, "memory")
    if limit is not None and limit < _LEAST_MEMORY_BYTES:
        raise InvalidInput(f"the limit on memory is {memory!r}: it is 6m or more")
    if cpu_shares is not None and not (isinstance(cpu_shares, int) and _SHARES[0] <= cpu_shares <= _SHARES[1]):
        raise InvalidInput(f"the CPU shares are {cpu_shares!r}: they are from {_SHARES[0]} to {_SHARES[1]}")
    return Resources(
        pids_limit,
        limit,
        _memory_and_swap(limit, memory_swap),
        None if cpus is None else _cpus(cpus),
        cpu_shares,
        None if cpuset_cpus is None else _cpuset(cpuset_cpus),
    )


def size(value: int | str, what: str) -> int:
    """Bytes, of a number or of docker's "512m": b, k, m, g, t and p are powers of 1,024. Raises `InvalidInput`."""
    if isinstance(value, int) and value >= 0:
        return value
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) ?(?:([kmgtp])?i?b?)", f"{value}", re.ASCII | re.IGNORECASE)
    if match is None or not isinstance(value, str):
        raise InvalidInput(f"{what} is {value!r}: it is a number of bytes, or as 512m or 1.5g")
    return int(float(match[1]) * 1024 ** (" kmgtp".index((match[2] or " ").lower())))


def _memory_and_swap(memory: int | None, given: int | str | None) -> int | None:
    """docker's: without it as much swap as memory."""
    if given in (None, 0, "0"):
        return None if memory is None else 2 * memory
    if memory is None:
        raise InvalidInput(f"memory and swap together are {given!r}: that needs a limit on memory as well (--memory)")
    if given in (-1, "-1"):
        return -1
    assert given is not None
    both = size(given, "memory and swap together")
    if both < memory:
        raise InvalidInput(f"memory and swap together are {given!r}: that is less than the memory alone")
    return both


def _cpus(given: float | str) -> float:
    there = os.cpu_count() or 1
    try:
        value = float(given)
    except (TypeError, ValueError):
        raise InvalidInput(f"the number of CPUs is {given!r}: it is as 1.5") from None
    if not _LEAST_QUOTA_US / _PERIODS_US[-1] <= value <= there:
        raise InvalidInput(f"the number of CPUs is {given!r}: it is from 0.01 to {there}, as there are no more")
    return value


def _cpuset(given: str) -> str:
    wanted = _numbers(given)
    if not wanted:
        raise InvalidInput(f"the CPUs to run on are {given!r}: they are as 0-2,5")
    with open(_ONLINE) as file:
        there = file.read().strip()
    if not wanted <= _numbers(there):
        raise InvalidInput(f"the CPUs to run on are {given!r}: there are {there}")
    return given


def _numbers(text: str) -> set[int]:
    """Those of a list as Linux writes it, "0-2,5"; none where it is none."""
    found: set[int] = set()
    if not isinstance(text, str):
        return found
    for part in text.split(","):
        match = re.fullmatch(r"([0-9]{1,5})(?:-([0-9]{1,5}))?", part.strip(), re.ASCII)
        if match is None or int(match[2] or match[1]) < int(match[1]):
            return set()
        found |= set(range(int(match[1]), int(match[2] or match[1]) + 1))
    return found
