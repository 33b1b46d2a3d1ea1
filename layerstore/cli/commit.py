"""Make an image from a container: its image, and what it changed as one more layer. Print the new id. The container may
be running."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from layerstore.api import Store


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("container", metavar="CONTAINER")
    parser.add_argument("name", metavar="NAME[:TAG]", nargs="?", help="a name for the image")
    parser.add_argument("-a", "--author", default="", help='who made it ("Jane Doe <jane@example.com>")')
    parser.add_argument("-m", "--message", default="", help="a comment for the history")
    parser.add_argument(
        "-c",
        "--change",
        metavar="INSTRUCTION",
        action="append",
        default=[],
        help="a line of a Dockerfile to change the config by, like 'CMD [\"app\"]' or 'ENV A=1'; may be repeated",
    )


def run(store: Store, args: argparse.Namespace) -> int:
    container = store.container(args.container)
    print(container.commit(args.name, author=args.author, message=args.message, changes=args.change).id)
    return 0
