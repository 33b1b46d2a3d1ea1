"""Show what it saves to store images once, and what freezing would save.

A line for each step: the files of every image by itself; those of each layer once, as docker keeps them; the contents
of files, each once; and what they take now. STEP is how many times less that is than the line above it, IN ALL than the
first. Of images that are given only what they have in common with each other counts.

What freezing would save is estimated: a part of the contents that it would take is compressed, and the rest taken to be
like that. Of sets of real images that was off by less than 5% (docs/measurements.md); where the part is all, it is not.
"""

from __future__ import annotations

from layerstore.cli import output

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from typing import Any

    from layerstore.api import Store
    from layerstore.results import DedupStats, FreezeEstimate


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", metavar="IMAGE", nargs="*", help="names or ids; without any, all images")
    parser.add_argument(
        "--sample",
        type=output.parse_size,
        default=256 << 20,
        metavar="SIZE",
        help="compress so much for the estimate: 0 (no estimate), 1GB ... (default: 268MB)",
    )
    parser.add_argument("--format", choices=("table", "json"), default="table", help="tables, or one JSON object")


def run(store: Store, args: argparse.Namespace) -> int:
    found = store.dedup_stats(args.images or None, sample_bytes=args.sample)
    if args.format == "json":
        shown: dict[str, Any] = {**vars(found), "images": [vars(image) for image in found.images]}
        shown["freezing"] = found.freezing and {**vars(found.freezing), "saved_bytes": found.freezing.saved_bytes}
        output.document(shown)
        return 0
    _show_steps(found)
    print()
    output.images(found.images)
    return 0


def _show_steps(found: DedupStats) -> None:
    now = found.hot_bytes + found.cold_bytes
    steps = [
        ("Every image by itself", found.images_bytes),
        ("Every layer once", found.layers_bytes),
        ("Every file once", found.contents_bytes),
        ("Stored now", now),
    ]
    freezing = found.freezing
    if freezing is not None and freezing.images:
        steps.append(("With all frozen, about", now - freezing.saved_bytes))
    columns: output.Columns[tuple[str, int, int]] = {
        "": (lambda step: step[0], str),
        "SIZE": (lambda step: step[1], output.size),
        "STEP": (lambda step: (step[2], step[1]), _times),
        "IN ALL": (lambda step: (found.images_bytes, step[1]), _times),
    }
    rows = [(name, size, above) for (_, above), (name, size) in zip([("", 0), *steps], steps, strict=False)]
    output.listing(rows, columns, "table")
    print(f"\nOf layers {output.size(found.repeated_bytes)} are files that one has more than once.")
    if freezing is not None and freezing.images:
        print(_estimate(freezing))


def _times(value: tuple[int, int]) -> str:
    before, after = value
    return f"{before / after:.2f}x" if before and after else ""


def _estimate(freezing: FreezeEstimate) -> str:
    images = f"{freezing.images} image{'' if freezing.images == 1 else 's'}"
    saves = f"Freezing {images} would save about {output.size(max(0, freezing.saved_bytes))}"
    if freezing.sample_bytes == freezing.written_bytes:
        return f"{saves}."
    sample, of = output.size(freezing.sample_bytes), output.size(freezing.written_bytes)
    return f"{saves}: estimated by compressing {sample} of {of}."
