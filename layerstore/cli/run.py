"""Run a program in a new container of an image, or its own command. The exit status is the program's; 125 when layerstore
failed, 126 or 127 when the program could not be started. Needs root and an OCI runtime (crun or runc)."""

import argparse

from layerstore.api import Store

FAILURE_STATUS = 125


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rm", action="store_true", help="remove the container when the program has ended")
    parser.add_argument("-d", "--detach", action="store_true", help="leave it running and print the container's id")
    parser.add_argument("-i", "--interactive", action="store_true", help="hand standard input through")
    parser.add_argument("-t", "--tty", action="store_true", help="give it a terminal")
    parser.add_argument("-e", "--env", action="append", default=[], metavar="K[=V]", help="set an environment variable")
    parser.add_argument("-v", "--volume", action="append", default=[], metavar="DIR:PATH[:ro]", help="bind a directory or file")
    parser.add_argument("-w", "--workdir", metavar="DIR", help="the working directory")
    parser.add_argument("-u", "--user", metavar="NAME|UID[:GROUP]", help="the user")
    parser.add_argument("--entrypoint", metavar="PROGRAM", help="in place of the image's entrypoint and command")
    parser.add_argument("--network", choices=("host", "none"), default="host", help="the host's network, or none")
    parser.add_argument("--name", help="a name for the container")
    parser.add_argument("image", metavar="IMAGE")
    parser.add_argument("args", metavar="ARG", nargs=argparse.REMAINDER, help="in place of the image's command")
