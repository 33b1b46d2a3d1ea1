"""How listings, sizes, times and progress look."""

from __future__ import annotations

import json
import sys
from contextlib import contextmanager

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from typing import Any, TypeAlias, TypeVar

    from layerstore.results import Change, Frozen, ImageUsage, Progress, Pruned
    from layerstore.space.garbage import Collected

    _Thing = TypeVar("_Thing")
    Columns: TypeAlias = dict[str, tuple[Callable[[_Thing], Any], Callable[[Any], str] | None]]
    """By its heading, what a column has of a thing, and how a table shows that; None where JSON alone has it."""


def add_format(parser: argparse.ArgumentParser) -> None:
    """The option that every listing takes."""
    parser.add_argument("--format", choices=("table", "json"), default="table", help="a table, or one JSON list")


def document(value: object) -> None:
    """Print it as JSON."""
    print(json.dumps(value, indent=2))


def listing(things: Iterable[_Thing], columns: Columns[_Thing], form: str) -> None:
    """Print a table of things, or a list of them as JSON."""
    if form == "json":
        document([{heading: of(thing) for heading, (of, _) in columns.items()} for thing in things])
        return
    shown = {heading: (of, show) for heading, (of, show) in columns.items() if show is not None}
    lines = [list(shown)]
    lines += [[printable(show(of(thing))) for of, show in shown.values()] for thing in things]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        print("   ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def images(found: Sequence[ImageUsage]) -> None:
    """Print a table of what images take, a line for each name."""
    columns: Columns[tuple[str, ImageUsage]] = {
        "IMAGE": (lambda row: row[0], str),
        "SIZE": (lambda row: row[1].size_bytes, size),
        "HOT": (lambda row: row[1].hot_bytes, size),
        "COLD": (lambda row: row[1].cold_bytes, size),
        "SHARED": (lambda row: row[1].shared_bytes, size),
        "UNIQUE": (lambda row: row[1].unique_bytes, size),
        "STATE": (lambda row: row[1], _state),
    }
    rows = [(name, image) for image in found for name in image.names or [short(image.image_id)]]
    listing(rows, columns, "table")


def _state(image: ImageUsage) -> str:
    containers = f"{image.containers} container{'' if image.containers == 1 else 's'}" if image.containers else ""
    return ", ".join(word for word in ("frozen" if image.is_frozen else "", containers) if word)


def printable(text: str) -> str:
    """What an image says of itself could break lines, or be an order to the terminal."""
    return "".join(c if c.isprintable() else " " for c in text)


def shown(name: str) -> str:
    """A name in a line of its own: as it is to a program; to a terminal without what could be an order to it."""
    return printable(name) if sys.stdout.isatty() else name


def changes(found: Sequence[Change], form: str) -> None:
    """Print changes, a path a line after its kind, or as a JSON list."""
    if form == "json":
        document([vars(change) for change in found])
        return
    for change in found:
        print(change.kind, shown(change.path))


def size(value: int) -> str:
    """A number of bytes with three digits and a decimal unit, as docker prints it."""
    number = float(value)
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if number < 999.5 or unit == "TB":
            return f"{number:.3g}{unit}" if number < 999.5 else f"{number:.0f}{unit}"
        number /= 1000
    raise AssertionError


def short(digest: str) -> str:
    """The digits of a digest that tell it from others, as docker prints ids."""
    return digest.removeprefix("sha256:")[:12]


def shortened(text: str) -> str:
    """A command that fits beside other columns."""
    return text if len(text) <= 45 else text[:44] + "…"


def time(nanoseconds: int) -> str:
    """A time since the epoch, to the second, in UTC."""
    from datetime import UTC, datetime, timedelta

    try:
        then = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=nanoseconds // 10**9)
    except OverflowError:
        return f"{nanoseconds // 10**9} s"  # before the year 1 or after 9999
    return f"{then:%Y-%m-%d %H:%M:%S}"


def parse_size(text: str) -> int:
    """An argument that is a number of bytes, as `size` prints it or without a unit."""
    import argparse
    import re

    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) ?([kKMGT]?)B?", text, re.ASCII)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size; give bytes, or 500MB, 4GB ...")
    return int(float(match[1]) * 1000 ** ("", "K", "M", "G", "T").index(match[2].upper()))


def parse_duration(text: str) -> float:
    """An argument that is a length of time: seconds."""
    import argparse
    import re

    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([smhdw])", text, re.ASCII)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not an age; give 90s, 30m, 24h, 7d or 2w")
    return float(match[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}[match[2]]


def parse_moment(text: str) -> float:
    """An argument that is a time, seconds since 1970: in RFC 3339, as a number of seconds, or how long ago."""
    import argparse
    import re
    import time
    from datetime import UTC, datetime

    if re.fullmatch(r"[0-9]+(\.[0-9]*)?", text, re.ASCII):
        return float(text)
    if parts := re.fullmatch(r"(?:([0-9]+)h)?(?:([0-9]+)m)?(?:([0-9.]+)s)?", text, re.ASCII):
        return time.time() - sum(
            float(part or 0) * unit for part, unit in zip(parts.groups(), (3600, 60, 1), strict=True)
        )
    try:
        # Python reads six digits of a second; docker's times and ours have nine.
        then = datetime.fromisoformat(re.sub(r"(\.[0-9]{6})[0-9]+", r"\1", text))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a time; give 2026-12-02T10:00:00Z, seconds since 1970, or 10m for ten minutes ago"
        ) from None
    return (then if then.tzinfo else then.replace(tzinfo=UTC)).timestamp()


def parse_lines(text: str) -> int | None:
    """An argument that is a number of lines; None for "all"."""
    return None if text == "all" else int(text)


def duration(seconds: float) -> str:
    """A length of time as `parse_duration` takes it."""
    units = ((86400, "d"), (3600, "h"), (60, "m"))
    length, unit = next(((length, unit) for length, unit in units if seconds and seconds % length == 0), (1, "s"))
    return f"{seconds / length:g}{unit}"


def frozen(done: Frozen) -> str:
    """What a freeze did, in a line."""
    images = len(done.images)
    return (
        f"{images} image{'' if images == 1 else 's'} frozen: {done.contents} contents of "
        f"{size(done.content_bytes)} take {size(done.stored_bytes)} now"
    )


def collected(done: Collected | Pruned, more: str = "") -> None:
    """Print what a collection of garbage did, and `more` behind it."""
    if done.frozen is not None:
        print(frozen(done.frozen))
    if done.not_frozen is not None:
        print(f"layerstore: nothing was frozen: {done.not_frozen}", file=sys.stderr)
    print(f"{done.contents} contents dropped, {size(done.freed_bytes)} given back{more}")


def age(created: str) -> str:
    """How long ago an RFC 3339 time was, as docker says it; "" for none."""
    from datetime import UTC, datetime

    try:
        then = datetime.fromisoformat(created)
    except ValueError:
        return created
    if then.tzinfo is None:
        then = then.replace(tzinfo=UTC)
    seconds = max(0, int((datetime.now(UTC) - then).total_seconds()))
    for unit, length in (("year", 31_536_000), ("month", 2_592_000), ("week", 604_800), ("day", 86_400)):
        if seconds >= 2 * length:
            return f"{seconds // length} {unit}s ago"
    for unit, length in (("hour", 3600), ("minute", 60), ("second", 1)):
        if seconds >= length:
            count = seconds // length
            return f"{count} {unit}{'s' if count != 1 else ''} ago"
    return "just now"


@contextmanager
def progress_bar() -> Iterator[Callable[[Progress], None] | None]:
    """A progress callback that draws a bar for each thing in work, when standard error is a terminal; else None."""
    if not sys.stderr.isatty():
        yield None
        return
    from tqdm import tqdm

    bar: Any = None
    what = ""

    def show(progress: Progress) -> None:
        nonlocal bar, what
        if bar is None or what != progress.what:
            if bar is not None:
                bar.close()
            bar, what = None, progress.what
            label = printable(what)[:19]
            if progress.stage == "stored":
                print(f"{label}: already stored", file=sys.stderr)
                return
            bar = tqdm(desc=label, total=progress.total_bytes, unit="B", unit_scale=True, file=sys.stderr)
        bar.update(progress.done_bytes - bar.n)

    try:
        yield show
    finally:
        if bar is not None:
            bar.close()
