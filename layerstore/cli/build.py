"""Build an image from a Dockerfile. A step that any build has done before, on the same input, comes from the cache.
RUN needs root and an OCI runtime (crun or runc)."""

from __future__ import annotations

import os
import sys

from layerstore.cli import confining, output
from layerstore.errors import InvalidInput

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from layerstore.api import Store
    from layerstore.results import BuildEvent

CREATES_STORE = True
_KEPT_BYTES = 1 << 16


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-f", "--file", metavar="DOCKERFILE", help="the Dockerfile (default: CONTEXT/Dockerfile; -: standard input)"
    )
    parser.add_argument("-t", "--tag", metavar="NAME[:TAG]", action="append", default=[], help="a name for the image")
    parser.add_argument("--target", metavar="STAGE", help="the stage to build (default: the last one)")
    parser.add_argument(
        "--build-arg",
        metavar="K[=V]",
        action="append",
        default=[],
        help="a value for an ARG (default: of the environment variable K)",
    )
    parser.add_argument("--no-cache", action="store_true", help="do every step again")
    parser.add_argument(
        "--network",
        choices=("host", "none"),
        default="host",
        help="the network of RUN: host (default), or none; then a RUN that asks for host is refused",
    )
    confining.add_options(parser, of="a RUN", where="every RUN")
    parser.add_argument(
        "--secret",
        action="append",
        default=[],
        metavar="id=ID[,src=FILE]",
        help="a file for RUN --mount=type=secret (default FILE: ID)",
    )
    parser.add_argument(
        "--pull",
        choices=("missing", "never"),
        default="missing",
        help="whether to download base images that are missing (default: missing)",
    )
    parser.add_argument(
        "-q", "--quiet", action="store_true", help="print only the image's id, and the output of a command that fails"
    )
    parser.add_argument("context", metavar="CONTEXT", help="the directory that COPY, ADD and binds of RUN read")


def run(store: Store, args: argparse.Namespace) -> int:
    image = store.build(
        args.context,
        dockerfile=args.file,
        names=args.tag,
        target=args.target,
        build_args=dict(_build_arg(text) for text in args.build_arg if "=" in text or text in os.environ),
        no_cache=args.no_cache,
        pull=args.pull,
        secrets=dict(_secret(text) for text in args.secret),
        progress=(_Quiet() if args.quiet else _InOrder()).tell,
        **confining.given(args),
    )
    if args.quiet:
        print(image.id)
        return 0
    print(f"Successfully built {image.short_id}")
    for name in image.names if args.tag else ():
        print(f"Successfully tagged {name}")
    return 0


def _build_arg(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    return name, value if equals else os.environ[name]


def _secret(text: str) -> tuple[str, str]:
    values = dict(word.partition("=")[::2] for word in text.split(","))
    name = values.pop("id", "")
    path = values.pop("src", None) or values.pop("source", None) or name
    values.pop("type", None)
    if not name or values:
        raise InvalidInput(f"--secret {text}: it is id=ID,src=FILE")
    return name, path


class _Quiet:
    """Prints nothing but the end of what a command has said that fails."""

    def __init__(self) -> None:
        self._said: dict[int, bytes] = {}

    def tell(self, event: BuildEvent) -> None:
        if event.kind == "running":
            self._said[event.stage] = b""
        elif event.kind == "output":
            self._said[event.stage] = (self._said[event.stage] + event.data)[-_KEPT_BYTES:]
        elif event.kind == "made":
            self._said.pop(event.stage, None)
        elif event.kind == "ended" and event.stage in self._said:
            sys.stderr.buffer.write(self._said[event.stage])
            self._said = {}  # of the other stages nothing is told: they ended for this one
            sys.stderr.flush()


class _InOrder:
    """Prints what happens as docker's classic builder does. Of stages that run side by side one is shown as it goes;
    what the others say is kept until it has ended."""

    def __init__(self) -> None:
        self._shown: int | None = None
        self._kept: dict[int, list[BuildEvent]] = {}

    def tell(self, event: BuildEvent) -> None:
        if event.kind == "warning":
            print(f"layerstore build: {event.text}", file=sys.stderr)
            return
        if self._shown is None:
            self._shown = event.stage
        if event.stage != self._shown:
            self._kept.setdefault(event.stage, []).append(event)
            return
        self._print(event)
        while self._shown is None and self._kept:
            self._shown = min(self._kept)
            for kept in self._kept.pop(self._shown):
                self._print(kept)

    def _print(self, event: BuildEvent) -> None:
        if event.kind == "ended":
            self._shown = None
        elif event.kind == "output":
            stream = sys.stdout if event.stream == 1 else sys.stderr
            stream.buffer.write(event.data)
        elif event.kind == "step":
            print(f"Step {event.number}/{event.total} : {output.printable(event.text)}")
        else:
            shown = {"cached": "Using cache", "running": f"Running in {event.text}"}
            print(f" ---> {shown.get(event.kind, event.text)}")
        sys.stdout.flush()
        sys.stderr.flush()
