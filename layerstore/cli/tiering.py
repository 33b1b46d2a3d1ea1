"""Show or set which images are frozen automatically.

With --unused-for, `gc` and `prune` freeze images that no container has and that were not used for so long: that had no
container, were no base of a build, were not looked into (ls, cat, diff), loaded, pulled or thawed.
"""

from __future__ import annotations

from layerstore.cli import output
from layerstore.cold.tiering import Tiering

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from layerstore.api import Store


def arguments(parser: argparse.ArgumentParser) -> None:
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--unused-for",
        type=output.parse_duration,
        metavar="AGE",
        help="freeze images that were not used for so long: 24h, 7d ...",
    )
    which.add_argument("--off", action="store_true", help="freeze only what `layerstore freeze` is given")
    parser.add_argument(
        "--compression", choices=("zstd", "lz4"), help="of what is frozen; lz4 is larger, and read faster"
    )
    parser.add_argument("--format", choices=("text", "json"), default="text", help="a line, or a JSON object")


def run(store: Store, args: argparse.Namespace) -> int:
    now = store.tiering
    after = None if args.off else now.unused_for_seconds if args.unused_for is None else args.unused_for
    store.tiering = Tiering(after, args.compression or now.compression)
    policy = store.tiering
    if args.format == "json":
        output.document(vars(policy))
    elif policy.unused_for_seconds is None:
        print(f"nothing is frozen without being asked for; what is asked for, with {policy.compression}")
    else:
        age = output.duration(policy.unused_for_seconds)
        print(f"gc and prune freeze images that were not used for {age}, with {policy.compression}")
    return 0
