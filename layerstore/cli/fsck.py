"""Compare a store with its digests: database, layers, contents, images, what is derived, logs of containers.

What --repair takes out of the way is in the directory "quarantine" of the store, for you to remove. Exit status: 0
where everything is as it was written, or is again; 1 where something is damaged.
"""

from __future__ import annotations

from layerstore.cli import output
from layerstore.errors import LayerstoreError
from layerstore.store.layout import absolute

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from layerstore.results import CheckReport, Damage
    from layerstore.types import ImageId

NEEDS_STORE = False
_SHOWN = 5


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", metavar="IMAGE", nargs="*", help="check what these need, instead of everything")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="of contents of files compare the sizes alone: a change that leaves the length is not found",
    )
    parser.add_argument(
        "--repair",
        action="store_true",
        help="make again what can be; take what else is damaged out of the way, so that loading or pulling its images "
        "again brings it back",
    )
    parser.add_argument("--format", choices=("table", "json"), default="table", help="text, or one JSON object of all")


def run(_: None, args: argparse.Namespace) -> int:
    from layerstore.api.checking import check_store

    with output.progress_bar() as progress:
        report = check_store(args.root, args.images or None, quick=args.quick, repair=args.repair, progress=progress)
    if args.format == "json":
        _print_json(report)
    else:
        _print(args.root, report, _names(args.root), quick=args.quick)
        _advise(report, is_repair=args.repair)
    return 0 if report.is_clean else 1


def _names(root: str) -> dict[ImageId, str]:
    """What to call images; nothing where the store cannot be opened."""
    from layerstore.api import Store

    try:
        store = Store(root)
        return {image.id: f"{' '.join(image.names) or '<none>'} ({image.short_id})" for image in store.images()}
    except LayerstoreError:
        return {}


def _print_json(report: CheckReport) -> None:
    document = {**vars(report), "clean": report.is_clean}
    for key in ("damages", "notes"):
        document[key] = [vars(damage) for damage in document[key]]
    output.document(document)


def _print(root: str, report: CheckReport, names: dict[ImageId, str], *, quick: bool) -> None:
    groups: dict[str, list[Damage]] = {}
    for damage in report.damages:
        for image in damage.images:
            groups.setdefault(f"image {names.get(image, image)}", []).append(damage)
        if not damage.images:
            groups.setdefault("store", []).append(damage)
    for title, damages in groups.items():
        left = sum(not damage.repaired for damage in damages)
        print(f"{title}: {left} damaged" if left else f"{title}: repaired")
        _print_some(root, damages)
    if report.notes:
        print("to be known:")
        _print_some(root, report.notes)
    rate = f", {output.size(int(report.bytes / report.seconds))}/s" if report.bytes else ""
    how = " looked at by their sizes, all else compared" if quick else f", {output.size(report.bytes)} compared{rate}"
    compared = f"{report.contents} contents{how}"
    print(f"{compared}: {_summary(report)}")


def _advise(report: CheckReport, *, is_repair: bool) -> None:
    left = [damage for damage in report.damages if not damage.repaired]
    if left and not is_repair:
        print("`layerstore fsck --repair` mends what it can, and makes room for the rest to be loaded or pulled again")
    elif any(damage.images for damage in left):
        print("load or pull the images that are damaged once more: what they lack is stored then")


def _summary(report: CheckReport) -> str:
    left = sum(not damage.repaired for damage in report.damages)
    repaired = f"{len(report.damages) - left} repaired"
    if not report.damages:
        return "clean"
    if not left:
        return repaired
    return f"{left} damaged, {repaired}" if left < len(report.damages) else f"{left} damaged"


def _print_some(root: str, damages: list[Damage] | tuple[Damage, ...]) -> None:
    for damage in damages[:_SHOWN]:
        done = "; repaired" if damage.repaired else ""
        path = damage.path.removeprefix(f"{absolute(root)}/")
        print(output.printable(f"    {damage.what} {path}: {damage.detail}{done}"))
    if len(damages) > _SHOWN:
        print(f"    and {len(damages) - _SHOWN} more; --format json has all")
