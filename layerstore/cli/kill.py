"""Send a signal to the first process of containers, SIGKILL unless another is given. Those that are paused go on."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from layerstore.api import Store


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-s", "--signal", type=_number, default=9, metavar="SIGNAL", help="as TERM, SIGTERM or 15 (default: KILL)"
    )
    parser.add_argument("containers", metavar="CONTAINER", nargs="+")


def run(store: Store, args: argparse.Namespace) -> int:
    for name in args.containers:
        store.container(name).kill(args.signal)
        print(name)
    return 0


def _number(text: str) -> int:
    import argparse
    import signal

    name = text.upper().removeprefix("SIG")
    try:
        return signal.Signals(int(text) if text.isdigit() else getattr(signal, f"SIG{name}")).value
    except (ValueError, AttributeError):
        raise argparse.ArgumentTypeError(f"{text!r} is no signal; give TERM, SIGTERM or 15") from None
