"""Download an image from a registry. Layers that are stored are not downloaded. What a failed pull has downloaded, the
next one does not download again, unless `layerstore gc` ran in between."""

from __future__ import annotations

from layerstore.cli import transfers

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from layerstore.api import Store

CREATES_STORE = True


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME[:TAG|@DIGEST]", help="the image; without a host it is Docker Hub's")
    parser.add_argument(
        "--platform",
        metavar="OS/ARCH[/VARIANT]",
        help="the platform, where the image is for several (default: this machine's)",
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="print the image's id only")
    transfers.add_options(parser)


def run(store: Store, args: argparse.Namespace) -> int:
    before = {image.id for image in store.images()}
    options = {"platform": args.platform, "plain_http": args.plain_http, "ca_file": args.ca_file}
    if args.quiet:
        print(store.pull(args.name, progress=transfers.show_warning, **options).id)
        return 0
    with transfers.Transfers(transfers.PULL_LINES) as progress:
        image = store.pull(args.name, progress=progress, **options)
    print(f"Digest: {progress.manifest}")
    print(f"Status: {'Image is up to date' if image.id in before else 'Downloaded newer image'} for {args.name}")
    print(image.id)
    return 0
