"""What pull and push show: a line for what becomes of each layer, and on a terminal a bar while its bytes are on the
way. And the options that they share."""

from __future__ import annotations

import sys

from layerstore.cli import output

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping
    from typing import Any, TextIO

    from layerstore.results import Progress

PULL_LINES = {"waiting": "Pulling fs layer", "stored": "Already exists", "imported": "Pull complete"}
PUSH_LINES = {
    "waiting": "Preparing",
    "stored": "Layer already exists",
    "mounted": "Mounted from {source}",
    "uploaded": "Pushed",
}
_BARS = {"download": "Downloading", "import": "Extracting", "upload": "Pushing"}


def add_options(parser: argparse.ArgumentParser) -> None:
    """How a registry is reached."""
    parser.add_argument(
        "--plain-http",
        action="store_true",
        help="speak HTTP without TLS: what is sent, passwords too, can be read on the way (not needed on this machine)",
    )
    parser.add_argument(
        "--ca-file", metavar="FILE", help="trust the authorities of these certificates (PEM) as well as the system's"
    )


def show_warning(progress: Progress) -> None:
    """A progress callback for who is to see nothing else."""
    if progress.stage == "warning":
        print(_warning(progress), file=sys.stderr)


def _warning(progress: Progress) -> str:
    return f"layerstore: the registry warns: {output.printable(progress.what)}"


class Transfers:
    """A progress callback. As a context manager it leaves no bar behind.

    `lines` says what a layer's line is at each stage that has one. `manifest` is the manifest's digest, once known.
    """

    def __init__(self, lines: Mapping[str, str]) -> None:
        self.manifest = ""
        self.manifest_bytes = 0
        self._lines = lines
        self._bars: dict[str, Any] = {}
        self._has_bars = sys.stderr.isatty()

    def __enter__(self) -> Transfers:
        return self

    def __exit__(self, *_: object) -> None:
        for what in list(self._bars):
            self._end(what)

    def __call__(self, progress: Progress) -> None:
        if progress.stage == "manifest":
            self.manifest, self.manifest_bytes = progress.what, progress.done_bytes
        elif progress.stage == "warning":
            self._print(_warning(progress), sys.stderr)
        elif progress.stage in self._lines:
            self._end(progress.what)
            line = self._lines[progress.stage].format(source=output.printable(progress.source))
            self._print(f"{output.short(progress.what)}: {line}", sys.stdout)
        elif self._has_bars:
            self._move(progress)

    def _print(self, line: str, file: TextIO) -> None:
        if not self._bars:
            print(line, file=file, flush=True)
            return
        from tqdm import tqdm

        # Above the bars.
        tqdm.write(line, file=file)
        file.flush()

    def _move(self, progress: Progress) -> None:
        from tqdm import tqdm

        label = f"{output.short(progress.what)}: {_BARS[progress.stage]}"
        bar = self._bars.get(progress.what)
        if bar is not None and bar.desc.startswith(label):
            bar.update(progress.done_bytes - bar.n)
            return
        # It is stored while it comes; what is shown is what it waits for.
        if bar is not None and progress.stage == "import" and bar.n < (bar.total or 0):
            return
        self._end(progress.what)
        options: dict[str, Any] = {"unit": "B", "unit_scale": True, "leave": False, "file": sys.stderr}
        self._bars[progress.what] = tqdm(desc=label, total=progress.total_bytes, initial=progress.done_bytes, **options)

    def _end(self, what: str) -> None:
        bar = self._bars.pop(what, None)
        if bar is not None:
            bar.close()
