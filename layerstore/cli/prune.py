"""Remove images that have no name and that no container uses, and give back what nothing uses.

With --all also those that have names; with --containers first the containers that are neither mounted nor open at this
moment, and all that was written to them. What came into the store within the last minute stays, as somebody may be
about to use it. An image that was pulled by its digest has no name: `tag` it to keep it. As `gc` does, it freezes what
was not used for as long as `layerstore tiering` says.
"""

from __future__ import annotations

import argparse
import sys
import time

from layerstore.cli import output
from layerstore.errors import InvalidInput

TYPE_CHECKING = False
if TYPE_CHECKING:
    from layerstore.api import Store
    from layerstore.results import Pruned


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-a", "--all", action="store_true", help="images with names too, unless a container uses them")
    parser.add_argument(
        "--containers", action="store_true", help="idle containers too, with all that was written to them"
    )
    parser.add_argument(
        "--until",
        type=output.parse_duration,
        default=60,
        metavar="AGE",
        help="only what came into the store longer ago: 24h, 7d, 90s (default: 1m)",
    )
    parser.add_argument("-n", "--dry-run", action="store_true", help="only tell what would be removed")
    parser.add_argument("-f", "--force", action="store_true", help="do not ask")


def run(store: Store, args: argparse.Namespace) -> int:
    begin = time.time()
    chosen = {"named": args.all, "containers": args.containers, "older_than_seconds": args.until}
    if args.dry_run or not args.force:
        found = store.prune(**chosen, dry_run=True)
        if args.dry_run:
            _tell(found)
            print(f"{output.size(found.freed_bytes)} would be given back{_young(found)}")
            return 0
        if (found.images or found.containers) and not _agreed(found):
            print("nothing was removed", file=sys.stderr)
            return 1
    # What came while it was asked about was not told.
    done = store.prune(**{**chosen, "older_than_seconds": args.until + time.time() - begin})
    _tell(done)
    output.collected(done, _young(done))
    return 0


def _agreed(found: Pruned) -> bool:
    if not sys.stdin.isatty():
        raise InvalidInput("there is nobody to ask; give --force to remove without asking, --dry-run to see what")
    _tell(found)
    print("Remove these? [y/N] ", end="", flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _tell(found: Pruned) -> None:
    for container, name in found.containers.items():
        print(f"container {container}{f' {name}' if name else ''}")
    for image, names in found.images.items():
        print(f"image {image}{''.join(f' {output.printable(name)}' for name in names)}")


def _young(found: Pruned) -> str:
    """What would have gone but for its age."""
    kinds = {"image": found.young_images, "container": found.young_containers}
    stays = [f"{count} {kind}{'s' if count > 1 else ''}" for kind, count in kinds.items() if count]
    return f"; {' and '.join(stays)} came too short a time ago (--until)" if stays else ""
