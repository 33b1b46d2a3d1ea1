"""Make a system call, or an allocation of the C core, of a function fail: by injector.c and allocations.c.

The function runs in a forked child. So what is imported before is not counted, and a case costs a fork and not the
start of an interpreter. The process must have no other thread, and no other child, at that moment.
"""

import ctypes
import faulthandler
import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
BUILT = HERE.parents[1] / "build" / "campaigns"
FAIL, FAIL_AFTER, SHORT = 0, 1, 2
_CALLS = 512


class _Fault(ctypes.Structure):
    _fields_ = (
        ("calls", ctypes.c_uint8 * _CALLS),
        ("at", ctypes.c_uint32),
        ("how", ctypes.c_int32),
        ("error", ctypes.c_int32),
        ("persistent", ctypes.c_int32),
    )


class _Outcome(ctypes.Structure):
    _fields_ = (
        ("status", ctypes.c_int32),
        ("hung", ctypes.c_int32),
        ("left", ctypes.c_int32),
        ("injected", ctypes.c_uint32),
        ("counted", ctypes.c_uint32 * _CALLS),
        ("text", ctypes.c_char * 512),
    )


@dataclass(frozen=True)
class Fault:
    """What fails: the `at`th of the calls of these names, from 1; nothing where the kernel could not answer it so.

    Attributes:
        calls: names of system calls; none for an allocation.
        at: which of them; 0 for none.
        error: the errno; 0 where the call is made, but with half of what was asked for.
        after: the call is made, and reports the error all the same, as close(2) does.
        persistent: every later one fails too.
    """

    calls: tuple[str, ...] = ()
    at: int = 0
    error: int = 0
    after: bool = False
    persistent: bool = False


@dataclass(frozen=True)
class Outcome:
    """What came of it.

    Attributes:
        answer: what the function returned, as JSON has it; None where it ended without.
        problem: why the process is at fault: a signal, a hang, processes that it left. Or empty.
        injected: how many calls failed.
        text: the first call that failed.
        allocations: how many the core made.
    """

    answer: Any
    problem: str
    injected: int
    text: str
    allocations: int


class Injector:
    """The compiled supervisor."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL(str(built("injector")), use_errno=True)
        self._library.injector_number.argtypes = [ctypes.c_char_p]
        self._library.injector_supervise.argtypes = [
            ctypes.c_int,
            ctypes.c_int,
            ctypes.POINTER(_Fault),
            ctypes.c_double,
            ctypes.c_double,
            ctypes.c_char_p,
            ctypes.POINTER(_Outcome),
        ]
        allocations = ctypes.CDLL(None)
        self._allocations = allocations if hasattr(allocations, "allocations_arm") else None

    def number(self, call: str) -> int:
        found = int(self._library.injector_number(call.encode()))
        if found < 0:
            raise ValueError(f"system call {call} is not in the table of injector.c")
        return found

    def run(
        self,
        function: Callable[[Callable[[bool], None]], object],
        fault: Fault,
        *,
        seconds: float = 30,
        output: Path | None = None,
        log: Path | None = None,
    ) -> Outcome:
        """Run `function(mark)` in a child; what it does between `mark(True)` and `mark(False)` is counted.

        Args:
            output: the file that gets what it prints.
            log: a file that gets every call that was counted
        """
        plan = _Fault(at=fault.at, error=fault.error, persistent=fault.persistent)
        plan.how = FAIL_AFTER if fault.after else FAIL if fault.error else SHORT
        for name in fault.calls:
            plan.calls[self.number(name)] = 1
        answers = os.memfd_create("answer")
        waiting, go = os.pipe()
        child = os.fork()
        if child == 0:
            self._child(function, fault, plan, waiting, answers, output, log, seconds)
        os.close(waiting)
        result = _Outcome()
        try:
            told = str(log).encode() if log else None
            if self._library.injector_supervise(child, go, plan, seconds, 1.0, told, result) < 0:
                raise OSError(ctypes.get_errno(), "cannot supervise a child")
            text = os.pread(answers, os.fstat(answers).st_size, 0)
        finally:
            os.close(go)
            os.close(answers)
        answer = json.loads(text) if text else {}
        allocated = answer.get("allocations", [0, 0])
        return Outcome(
            answer=answer.get("answer"),
            problem=_problem(result, bool(text)),
            injected=allocated[1] if not fault.calls else result.injected,
            text=result.text.decode(errors="replace") if fault.calls else f"allocation #{fault.at} of the core",
            allocations=allocated[0],
        )

    def _child(
        self,
        function: Callable[[Callable[[bool], None]], object],
        fault: Fault,
        plan: _Fault,
        waiting: int,
        answers: int,
        output: Path | None,
        log: Path | None,
        seconds: float,
    ) -> None:
        status = 1
        try:
            if output is not None:
                fd = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
                os.dup2(fd, 1)
                os.dup2(fd, 2)
                os.close(fd)
            faulthandler.enable(2)
            faulthandler.dump_traceback_later(seconds * 0.9, file=2)
            os.read(waiting, 1)
            os.close(waiting)
            if self._library.injector_enter(None if log or not fault.at else plan.calls) < 0:
                raise OSError(ctypes.get_errno(), "cannot have system calls told")
            counts = [0, 0]

            def mark(on: bool) -> None:
                if self._allocations and not fault.calls:
                    if on:
                        self._allocations.allocations_arm(fault.at, int(fault.persistent))
                    else:
                        self._allocations.allocations_disarm()
                        counts[:] = self._allocations.allocations_counted(), self._allocations.allocations_failed()
                else:
                    self._library.injector_mark(int(on))

            answer = function(mark)
            os.write(answers, json.dumps({"answer": answer, "allocations": counts}).encode())
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)


def _problem(result: _Outcome, answered: bool) -> str:
    if result.hung:
        return "it hung"
    if os.WIFSIGNALED(result.status):
        return f"signal {os.WTERMSIG(result.status)}"
    if not answered:
        return f"it ended with {os.waitstatus_to_exitcode(result.status)} and no answer"
    return f"{result.left} processes were left" if result.left else ""


def built(name: str) -> Path:
    """The shared object of a source of this directory, compiled unless it is there."""
    source, target = HERE / f"{name}.c", BUILT / f"{name}.so"
    if not target.exists() or target.stat().st_mtime < source.stat().st_mtime:
        BUILT.mkdir(parents=True, exist_ok=True)
        made = target.with_suffix(f".{os.getpid()}")
        flags = [
            "-std=gnu11",
            "-O2",
            "-Wall",
            "-Wextra",
            "-Werror",
            "-fPIC",
            "-shared",
            "-fvisibility=hidden",
            "-pthread",
        ]
        subprocess.run(["cc", *flags, "-o", made, source, "-ldl"], check=True)
        made.replace(target)
    return target
