"""Upload an image to a registry, under its own name or another one. Layers that the registry has are not sent."""

from __future__ import annotations

from layerstore.cli import transfers

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from layerstore.api import Store


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("image", metavar="NAME[:TAG]", help="the image to upload")
    parser.add_argument(
        "remote", metavar="REMOTE", nargs="?", help="its name in the registry, HOST/NAME[:TAG] (default: its own)"
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="print the digest of the manifest only")
    transfers.add_options(parser)


def run(store: Store, args: argparse.Namespace) -> int:
    remote = args.remote or args.image
    options = {"plain_http": args.plain_http, "ca_file": args.ca_file}
    if args.quiet:
        print(store.push(args.image, remote, progress=transfers.show_warning, **options))
        return 0
    print(f"The push refers to {remote}", flush=True)
    with transfers.Transfers(transfers.PUSH_LINES) as progress:
        digest = store.push(args.image, remote, progress=progress, **options)
    print(f"{remote}: digest: {digest} size: {progress.manifest_bytes}")
    return 0
