"""Log in to a registry, and keep the password where docker and podman keep theirs: in the file that has an entry for
the registry, else in docker's config.json, or with the credential helper that is named there."""

from __future__ import annotations

import sys

from layerstore.cli import transfers

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

NEEDS_STORE = False


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("registry", metavar="REGISTRY", nargs="?", default="docker.io", help="default: docker.io")
    parser.add_argument("-u", "--username", metavar="USER", help="asked for when it is not given")
    parser.add_argument("--password-stdin", action="store_true", help="read the password from standard input")
    transfers.add_options(parser)


def run(_: None, args: argparse.Namespace) -> int:
    from layerstore.errors import InvalidInput
    from layerstore.registry.login import login

    user, password = args.username, ""
    try:
        if not args.password_stdin:
            from getpass import getpass

            user = user or input("Username: ")
            password = getpass("Password: ")
        elif user:
            password = sys.stdin.buffer.read().decode().removesuffix("\n").removesuffix("\r")
        else:
            raise InvalidInput("with --password-stdin the user is given by --username")
    except EOFError:
        raise InvalidInput("nobody answers here; give --username, and the password with --password-stdin") from None
    except UnicodeDecodeError:
        raise InvalidInput("the user or the password is not UTF-8") from None
    place = login(args.registry, user, password, plain_http=args.plain_http, ca_file=args.ca_file)
    print(f"Login Succeeded; the password is kept in {place}")
    return 0
