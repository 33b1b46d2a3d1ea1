"""List the containers that run, newest first; with --all all of them."""

from __future__ import annotations

import json
import re
import shlex
from datetime import UTC, datetime

from layerstore.cli import output
from layerstore.errors import InvalidInput

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from layerstore.api import Container, Store
    from layerstore.containers.program_records import Record

    _Row = tuple[Container, str, Record | None]

_KEYS = ("id", "name", "ancestor", "status", "exited")
_UP = ("running", "paused")


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-a", "--all", action="store_true", help="those that do not run, too")
    parser.add_argument("-q", "--quiet", action="store_true", help="print ids only")
    parser.add_argument("-l", "--latest", action="store_true", help="the newest one, whether it runs or not")
    parser.add_argument("-n", "--last", type=int, metavar="N", help="the newest N, whether they run or not")
    parser.add_argument("-s", "--size", action="store_true", help="show the bytes on disk of what each one wrote")
    parser.add_argument(
        "-f",
        "--filter",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="id= (its beginning), name= (a regular expression), ancestor= (the image), status= (created, mounted, "
        "running, paused, exited) or exited= (the exit status); one of those of a key, and all keys",
    )
    parser.add_argument("--no-trunc", action="store_true", help="show ids and commands in full")
    output.add_format(parser)


def run(store: Store, args: argparse.Namespace) -> int:
    last = 1 if args.latest else args.last
    if last is not None and last < 1:
        raise InvalidInput("--last is at least 1")
    wanted = _filters(args.filter)
    takes_all = args.all or last is not None or "status" in wanted or "exited" in wanted
    found = store.containers()
    rows = [
        (container, _state(state, program), program)
        for container, state in zip(found, store.states(found), strict=True)
        if takes_all or state in _UP
        for program in [container.program]
    ]
    rows = [row for row in rows if all(_matches(row, key, values) for key, values in wanted.items())][:last]
    if args.quiet:
        for container, _, _ in rows:
            print(container.id)
        return 0
    columns: output.Columns[_Row] = {
        "CONTAINER ID": (lambda row: row[0].id, str if args.no_trunc else output.short),
        "IMAGE": (lambda row: row[0].row.image_name, str),
        "COMMAND": (lambda row: json.loads(row[0].row.command or "null"), _whole if args.no_trunc else _command),
        "CREATED": (lambda row: _time(row[0].row.created_seconds), output.age),
        "STATUS": (lambda row: row[1], str) if args.format == "json" else (_status, str),
        "NAME": (lambda row: row[0].name, lambda name: name or ""),
    }
    if args.format == "json":
        columns["EXIT STATUS"] = (lambda row: row[2].status if row[2] else None, None)
    if args.size:
        sizes = {one.container_id: one.size_bytes for one in store.usage().containers}
        columns["SIZE"] = (lambda row: sizes.get(row[0].id, 0), output.size)
    output.listing(rows, columns, args.format)
    return 0


def _filters(texts: list[str]) -> dict[str, list[str]]:
    wanted: dict[str, list[str]] = {}
    for text in texts:
        key, is_given, value = text.partition("=")
        if key not in _KEYS or not is_given:
            raise InvalidInput(f"--filter {text}: give {', '.join(f'{name}=' for name in _KEYS)}")
        if key == "name":
            try:
                re.compile(value)
            except re.error as error:
                raise InvalidInput(f"--filter {text}: {error}") from None
        wanted.setdefault(key, []).append(value)
    return wanted


def _matches(row: _Row, key: str, values: list[str]) -> bool:
    container, state, program = row
    if key == "id":
        return container.id.startswith(tuple(values))
    if key == "name":
        return any(re.search(value, container.name or "") for value in values)
    if key == "ancestor":
        name, image = container.row.image_name, container.row.image_id
        names = (name, name.removesuffix(":latest"), image, output.short(image))
        return any(value in names for value in values)
    if key == "status":
        return state in values
    return state == "exited" and program is not None and str(program.status) in values


def _state(state: str, program: Record | None) -> str:
    return state if program is None or state in _UP else "exited"


def _status(row: _Row) -> str:
    """As docker says it."""
    _, state, program = row
    if state == "exited" and program is not None:
        if program.status is None:
            return "Exited (unknown)"
        return f"Exited ({program.status}) {output.age(_time(program.finished or 0))}"
    if state not in _UP:
        return state.capitalize()
    # A command may have started it after its program's end.
    since = output.age(_time(program.started)).removesuffix(" ago") if program and program.is_watched else ""
    return " ".join(filter(None, ("Up", since, "(Paused)" if state == "paused" else "")))


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()


def _whole(argv: list[str] | None) -> str:
    return shlex.join(argv or [])


def _command(argv: list[str] | None) -> str:
    text = _whole(argv)
    return text if len(text) <= 30 else text[:29] + "…"
