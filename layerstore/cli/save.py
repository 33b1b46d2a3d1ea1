"""Write images to a file, a directory or standard output, with all their layers as they came in: a docker archive
(`docker load`, `podman load`, `ctr images import` and skopeo read it), or an OCI layout as a tar or directory. An image
keeps the names that it is given by; one that is given by its id has none."""

from __future__ import annotations

from layerstore.cli import output
from layerstore.cli.export import standard_output
from layerstore.errors import InvalidInput

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from typing import BinaryIO

    from layerstore.api import Store


def arguments(parser: argparse.ArgumentParser) -> None:
    from layerstore.layers.blobs import COMPRESSIONS
    from layerstore.layers.saving import FORMATS

    parser.add_argument("images", nargs="+", metavar="IMAGE")
    parser.add_argument("-o", "--output", metavar="FILE|DIR", help="default: standard output")
    parser.add_argument(
        "--format", choices=FORMATS, default=FORMATS[0], help=f"default: {FORMATS[0]}; oci: a directory"
    )
    parser.add_argument("--compression", choices=COMPRESSIONS, default="none", help="of layers; default: none")


def run(store: Store, args: argparse.Namespace) -> int:
    if args.output is None and args.format == "oci":
        raise InvalidInput("format oci is a directory; give it with -o, or save in format oci-archive")
    target: str | BinaryIO = standard_output() if args.output is None else args.output
    with output.progress_bar() as progress:
        store.save(args.images, target, format=args.format, compression=args.compression, progress=progress)
    return 0
