"""Log out of a registry: remove its password from docker's and podman's files, or their credential helpers."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

NEEDS_STORE = False


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("registry", metavar="REGISTRY", nargs="?", default="docker.io", help="default: docker.io")


def run(_: None, args: argparse.Namespace) -> int:
    from layerstore.registry.login import logout

    logout(args.registry)
    print(f"Removed credentials for {args.registry}")
    return 0
