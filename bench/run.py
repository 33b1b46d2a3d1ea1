"""Run the benchmarks: `python -m bench.run [--quick] [--peers-only] [NAME ...]`, as root. Or only write the pages that
tell of the newest results, `python -m bench.run --render`.

Everything happens in a mount and a process namespace of its own, on a file system of its own: when it ends, on an
interrupt too, no daemon, container, mount or loop device is left.
"""

from __future__ import annotations

import argparse
import compileall
import contextlib
import datetime
import importlib
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from bench import pages
from bench import rows as report
from bench.context import Context
from bench.fixtures import Fixtures
from bench.loopfs import loop_file_system
from bench.rows import Row

ROOT = Path(__file__).parent.parent
NAMES = (
    *(
        "import",
        "save",
        "registry",
        "mount",
        "run",
        "exec",
        "fork",
        "bounds",
        "build",
        "startup",
        "read",
        "index",
        "pool",
        "extent",
        "commit",
    ),
    *("reliability", "freeze", "sync", "blake3", "chunks"),
)
ON_DEMAND = ("cold", "packs", "threshold", "compression", "estimate")
"""Behind a decision (docs/measurements.md); they run when they are named."""
PEERS_PACKAGES = (
    *("docker.io", "containerd", "podman", "buildah", "crun", "runc"),
    *("restic", "borgbackup", "casync", "ostree"),
)
INSIDE = "LAYERSTORE_BENCH_INSIDE"
HYBRID_CGROUP = Path("/sys/fs/cgroup/unified")
BEGUN = ROOT / "build/bench/begun.json"
"""What a complete run has measured until now: an hour is a long time for nothing else to happen."""


def main() -> int:
    options = parse()
    if options.render:
        pages.write(options.results)
        return 0
    if os.geteuid() != 0:
        print("bench: mounting and the peers' daemons need root; run it as root", file=sys.stderr)
        return 1
    # What is installed has its byte code, and writes it where it is missing.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    if INSIDE not in os.environ:
        enter_namespaces()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupted)
    if os.path.ismount(HYBRID_CGROUP):
        # crun 1.8 refuses cgroups in hybrid mode.
        subprocess.run(["umount", HYBRID_CGROUP], check=True)
    # As an installed package has it: with PYTHONDONTWRITEBYTECODE a source tree is compiled at every start.
    compileall.compile_dir("layerstore", quiet=1)
    rows = measure(options)
    print(report.table(rows))
    write_results(rows, options)
    BEGUN.unlink(missing_ok=True)
    return 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench", description="layerstore against its peers, on real images.")
    parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help=f"benchmarks to run: {', '.join(NAMES)} (default: these), {', '.join(ON_DEMAND)}",
    )
    parser.add_argument("--quick", action="store_true", help="fewer rounds: to see that it works, not to quote")
    parser.add_argument("--peers-only", action="store_true", help="measure the peers alone")
    parser.add_argument("--render", action="store_true", help="measure nothing, and write the pages anew")
    parser.add_argument("--file-system", choices=("ext4", "xfs"), default="ext4", help="under all stores")
    parser.add_argument("--cache", type=Path, help="directory of the fixture images")
    parser.add_argument("--scratch", type=Path, help="directory of the sparse file (default /var/tmp)")
    parser.add_argument("--results", type=Path, default=pages.RESULTS, help="directory of the JSON results")
    options = parser.parse_args()
    options.names = options.names or list(NAMES)
    if unknown := set(options.names) - {*NAMES, *ON_DEMAND}:
        there_are = ", ".join((*NAMES, *ON_DEMAND))
        parser.error(f"no benchmark is called {', '.join(sorted(unknown))}; there are {there_are}")
    return options


def enter_namespaces() -> NoReturn:
    flags = ["--mount", "--propagation=private", "--pid", "--fork", "--kill-child=TERM", "--mount-proc"]
    command = ["unshare", *flags, sys.executable, "-m", "bench.run", *sys.argv[1:]]
    os.chdir(ROOT)
    os.execvpe(command[0], command, {**os.environ, INSIDE: "1"})


def interrupted(*_: object) -> NoReturn:
    raise KeyboardInterrupt


def measure(options: argparse.Namespace) -> list[report.Kept]:
    def log(message: str) -> None:
        print(f"bench: {message}", file=sys.stderr, flush=True)

    rows: list[report.Kept] = []
    where = [str(path.resolve()) if path else None for path in (options.scratch, options.cache)]
    about = [commit(), options.file_system, where, machine()]
    begun = measured_before(about) if is_complete(options) else {}
    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(loop_file_system(options.file_system, where=options.scratch))
        run_directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lsb-", dir="/run")))
        fixtures = Fixtures(options.cache, log)
        context = Context(fixtures, directory, run_directory, options.quick, options.peers_only, log)
        stack.callback(context.close)
        for name in options.names:
            if name in begun:
                log(f"{name}: as it was measured by a run of this tree that was cut off ({BEGUN})")
            else:
                log(f"{name} …")
                begun[name] = [report.as_json(row) for row in benchmark(name)(context)]
                if is_complete(options):
                    BEGUN.parent.mkdir(parents=True, exist_ok=True)
                    BEGUN.write_text(json.dumps({"about": about, "measured": begun}))
            print(report.table(begun[name]), file=sys.stderr, flush=True)
            rows += begun[name]
    return rows


def is_complete(options: argparse.Namespace) -> bool:
    return not options.quick and not options.peers_only and set(options.names) == set(NAMES)


def measured_before(about: list[Any]) -> dict[str, list[report.Kept]]:
    """By name what a complete run has measured that was cut off: of this commit, without changes, on this machine."""
    try:
        found = json.loads(BEGUN.read_text())
        measured: dict[str, list[report.Kept]] = found["measured"]
        is_alike = found["about"] == about and about[0] and not about[0].endswith("-dirty")
    except (FileNotFoundError, ValueError, KeyError):  # none, or one that was cut off as it was written
        return {}
    return measured if is_alike else {}


def benchmark(name: str) -> Callable[[Context], list[Row]]:
    if name == "blake3":
        return blake3
    run: Callable[[Context], list[Row]] = importlib.import_module(f"bench.bench_{name}").run
    return run


def blake3(context: Context) -> list[Row]:
    if context.peers_only:
        return []
    from bench import bench_blake3

    measured: list[dict[str, Any]] = bench_blake3.run(str(context.fixtures.debian_tar()))
    return [
        Row(
            work=f"BLAKE3, {row['work']}",
            unit=row["unit"],
            ours=row["ours"],
            peers={"blake3 package": row["peer"]},
            target=f"≥ {row['target']:g}× faster",
            met=row["ratio"] >= row["target"],
            more_is_better=True,
            durable=report.NOTHING,
        )
        for row in measured
    ]


def machine() -> dict[str, Any]:
    processor = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        "?",
    )
    return {
        "processor": processor,
        "cores": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "packages": package_versions(),
    }


def package_versions() -> dict[str, str]:
    command = ["dpkg-query", "-W", "-f", "${Package} ${Version}\n", *PEERS_PACKAGES]
    listed = subprocess.run(command, capture_output=True, text=True).stdout
    return dict(line.split(" ", 1) for line in listed.splitlines())


def commit() -> str:
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


def write_results(rows: list[report.Kept], options: argparse.Namespace) -> None:
    """The JSON of every run; the pages that tell of it, and their picture, only of a complete one.

    Of others `--render` writes the pages, where they are to tell of it.
    """
    now = datetime.datetime.now(datetime.UTC)
    complete = is_complete(options)
    about = {"date": now.isoformat(timespec="seconds"), "commit": commit(), "file_system": options.file_system}
    runs = {"quick": options.quick, "complete": complete, "benchmarks": options.names}
    result = {**about, **runs, "machine": machine(), "rows": rows}
    options.results.mkdir(parents=True, exist_ok=True)
    path = options.results / f"{now:%Y-%m-%dT%H%M%S}.json"
    path.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    print(f"bench: wrote {path}", file=sys.stderr)
    if complete:
        from bench.plot_index import PICTURE, draw

        pages.write(options.results)
        draw(result["rows"], PICTURE)
        print(f"bench: wrote {PICTURE}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
