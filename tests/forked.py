"""A Python program that a test runs many times: forked from one process that has imported what it needs, since to start
Python and import layerstore takes longer than most of such programs."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import TracebackType

ROOT = Path(__file__).parent.parent
_FORKS = """if True:
    import json, os, sys
    imports, program = (compile(text, "<program>", "exec") for text in json.loads(sys.stdin.readline()))
    exec(imports, {})
    for line in sys.stdin:
        said = os.memfd_create("said")
        pid = os.fork()
        if not pid:
            os.dup2(said, 1)
            os.dup2(said, 2)
            sys.argv[1:] = json.loads(line)
            exec(program, {"__name__": "__main__"})
            break
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        print(json.dumps([status, os.pread(said, 1 << 20, 0).decode()]), flush=True)
        os.close(said)
"""


class Forked:
    """A context manager. `imports` are what is done once, before each of the programs."""

    def __init__(self, imports: str, program: str) -> None:
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        self._forks = subprocess.Popen(
            [sys.executable, "-c", _FORKS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self._ask([imports, program])

    def __enter__(self) -> "Forked":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._forks.communicate()

    def run(self, *arguments: object) -> tuple[int, str]:
        """Run the program to its end. Returns its status, as of `subprocess`, and what it printed, errors included."""
        self._ask([str(argument) for argument in arguments])
        assert self._forks.stdout is not None
        status, said = json.loads(self._forks.stdout.readline())
        return status, said

    def _ask(self, what: list[str]) -> None:
        assert self._forks.stdin is not None
        self._forks.stdin.write(json.dumps(what) + "\n")
        self._forks.stdin.flush()
