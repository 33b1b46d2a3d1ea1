"""Compare a store with its digests: database, layers, contents, images, what is derived, logs of containers.

Exit status: 0 where everything is as it was written, 1 where something is damaged.
"""

from __future__ import annotations

import json

from layerstore.cli import output

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from layerstore.api import Store
    from layerstore.results import CheckReport, Damage

_SHOWN = 5


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", metavar="IMAGE", nargs="*", help="check what these need, instead of everything")
    parser.add_argument("--quick", action="store_true", help="of contents of files compare the sizes alone")
    output.add_format(parser)


def run(store: Store, args: argparse.Namespace) -> int:
    with output.progress_bar() as progress:
        report = store.check(args.images or None, quick=args.quick, progress=progress)
    if args.format == "json":
        _print_json(report)
    else:
        _print(store, report)
    return 0 if report.is_clean else 1


def _print_json(report: CheckReport) -> None:
    document = {**vars(report), "clean": report.is_clean}
    for key in ("damages", "notes"):
        document[key] = [vars(damage) for damage in document[key]]
    print(json.dumps(document, indent=2))


def _print(store: Store, report: CheckReport) -> None:
    names = {image.id: f"{' '.join(image.names) or '<none>'} ({image.short_id})" for image in store.images()}
    groups: dict[str, list[Damage]] = {}
    for damage in report.damages:
        for image in damage.images:
            groups.setdefault(f"image {names.get(image, image)}", []).append(damage)
        if not damage.images:
            groups.setdefault("store", []).append(damage)
    for title, damages in groups.items():
        left = sum(not damage.repaired for damage in damages)
        print(f"{title}: {left} damaged" if left else f"{title}: repaired")
        _print_some(damages)
    if report.notes:
        print("to be known:")
        _print_some(report.notes)
    rate = f", {output.size(int(report.bytes / report.seconds))}/s" if report.bytes else ""
    compared = f"{report.contents} contents, {output.size(report.bytes)} compared{rate}"
    left = sum(not damage.repaired for damage in report.damages)
    print(f"{compared}: {f'{left} damaged' if left else 'clean'}")


def _print_some(damages: list[Damage] | tuple[Damage, ...]) -> None:
    for damage in damages[:_SHOWN]:
        done = "; repaired" if damage.repaired else ""
        print(output.printable(f"    {damage.what} {damage.path}: {damage.detail}{done}"))
    if len(damages) > _SHOWN:
        print(f"    and {len(damages) - _SHOWN} more; --format json has all")
