"""Makes and removes containers for a while, as one of several processes: `python -m bench.creating STORE IMAGE DRIVER
SECONDS` says "ready", waits for a line, and prints how many it made.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from layerstore import Store


def rate(store: Path, image: str, driver: str, processes: int, seconds: float) -> float:
    """Containers a second that so many processes make and remove together."""
    command = [sys.executable, "-m", "bench.creating", str(store), image, driver, str(seconds)]
    started = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(processes)
    ]
    for process in started:
        assert process.stdout is not None
        process.stdout.readline()
    for process in started:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    return sum(int(process.communicate()[0]) for process in started) / seconds


def main() -> None:
    root, image, driver, seconds = sys.argv[1:]
    with Store(root) as store:
        store.remove([store.create(image, driver=driver)])  # type: ignore[arg-type]  # one of the two
        print("ready", flush=True)
        sys.stdin.readline()
        count = 0
        end = time.perf_counter() + float(seconds)
        while time.perf_counter() < end:
            store.remove([store.create(image, driver=driver)])  # type: ignore[arg-type]  # one of the two
            count += 1
    print(count)


if __name__ == "__main__":
    main()
