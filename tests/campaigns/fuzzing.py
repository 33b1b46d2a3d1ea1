"""Fuzzers run until each has executed its program so many times, over as many sessions as that takes.

    python -m campaigns.fuzzing --executions 100000000 [--record] [FUZZER...]

How often each was executed, how much processor time that took and what was found is kept in build/fuzzed/, the corpora
in build/corpus/, so that a run that was ended goes on where it was. `make fuzzed` builds the fuzzers first.
"""

import argparse
import json
import re
import resource
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from campaigns import record

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build"
ROUND = 1_000_000
# What the table says of a fuzzer, and how long its inputs may be: long ones are slow, and say little more.
FUZZERS = {
    "fuzz_tar": ("executions of the tar walk", 5121),
    "fuzz_index": ("executions of the reader of indexes", 4096),
}
_DONE = re.compile(rb"^stat::number_of_executed_units: (\d+)$", re.MULTILINE)


@dataclass
class Count:
    executions: int = 0
    cpu_seconds: float = 0
    finds: int = 0


def _count_path(name: str) -> Path:
    return BUILD / "fuzzed" / f"{name}.json"


def load(name: str) -> Count:
    """What was counted so far."""
    try:
        return Count(**json.loads(_count_path(name).read_text()))
    except FileNotFoundError:
        return Count()


def _save(name: str, count: Count) -> None:
    path = _count_path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(".new")
    new.write_text(json.dumps(asdict(count)) + "\n")
    new.replace(path)


def _children_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def run(name: str, executions: int) -> bool:
    """One round of a fuzzer, added to its count; False when it found something."""
    corpus, finds, seeds = BUILD / "corpus" / name, BUILD / "finds", ROOT / "tests" / "fuzz" / name
    corpus.mkdir(parents=True, exist_ok=True)
    finds.mkdir(parents=True, exist_ok=True)
    options = (
        f"-runs={executions} -max_len={FUZZERS[name][1]} -entropic=0 -timeout=10 -rss_limit_mb=1024"
        f" -print_final_stats=1 -artifact_prefix={finds}/{name}-"
    )
    begun = _children_seconds()
    fuzzer = [BUILD / "fuzz-long" / name, *options.split(), corpus, seeds]
    done = subprocess.run(fuzzer, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False)
    count, executed = load(name), _DONE.search(done.stderr)
    count.executions += int(executed[1]) if executed else 0
    count.cpu_seconds += _children_seconds() - begun
    if done.returncode:
        count.finds += 1
        (finds / f"{name}.log").write_bytes(done.stderr)
        print(f"{name} failed: its input is {finds}/{name}-*, its output {finds}/{name}.log", file=sys.stderr)
    _save(name, count)
    return not done.returncode


def main() -> int:
    parser = argparse.ArgumentParser(prog="campaigns.fuzzing", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--executions", type=int, default=100_000_000, help="of each fuzzer (%(default)s)")
    parser.add_argument("--record", action="store_true", help="write docs/reliability.md")
    parser.add_argument("fuzzers", nargs="*", default=list(FUZZERS), metavar="FUZZER", help=" ".join(FUZZERS))
    options = parser.parse_args()
    is_good = True
    # In turns, so that what is known of each grows alike.
    while is_good and (left := [name for name in options.fuzzers if load(name).executions < options.executions]):
        is_good = all(run(name, min(ROUND, options.executions - load(name).executions)) for name in left)
    counts = {name: load(name) for name in options.fuzzers}
    rows = [record.Row(FUZZERS[name][0], count.executions, crashed=count.finds) for name, count in counts.items()]
    if options.record:
        seconds = sum(count.cpu_seconds for count in counts.values())
        record.write("fuzz", rows, "make fuzzed", seconds)
    for name, count in counts.items():
        print(f"{name}: {count.executions:,} executions, {count.cpu_seconds / 3600:.1f} hours of processor time")
    return record.told(rows)


if __name__ == "__main__":
    sys.exit(main())
