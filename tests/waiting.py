"""Waiting for what another process or thread does."""

import time
from collections.abc import Callable


def wait_for(holds: Callable[[], bool], seconds: float = 20, pause_seconds: float = 0.02) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"it did not come to hold in {seconds} seconds"
        time.sleep(pause_seconds)
