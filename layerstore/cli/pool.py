"""Show a store's pool, let it grow, give its free space back to the host, or detach it.

SIZE is the whole size, not what is added. It says how far the pool may grow: the host's disk is used as the pool fills.
`quotas` detaches it, and has it count from then on what each container writes, for limits on their disks
(--storage-opt). To make and remove files takes longer then.
"""

from __future__ import annotations

from layerstore.cli import output
from layerstore.errors import Conflict, InvalidInput, NotFound

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from layerstore.api import Store
    from layerstore.store.pool import Pool, PoolStatus


def arguments(parser: argparse.ArgumentParser) -> None:
    actions = ("show", "grow", "trim", "detach", "quotas")
    parser.add_argument("action", nargs="?", choices=actions, default="show", help="what to do (default: show)")
    parser.add_argument("size_bytes", nargs="?", type=output.parse_size, metavar="SIZE", help="for grow, e.g. 64G")
    output.add_format(parser)


def run(store: Store, args: argparse.Namespace) -> int:
    pool = store.pool
    if pool is None:
        raise NotFound(f"the store at {store.root} has no pool; only `layerstore init --pool SIZE` makes one")
    if (args.size_bytes is None) == (args.action == "grow"):
        raise InvalidInput("a size goes with `pool grow SIZE`, and with nothing else")
    if args.action == "show":
        _show(pool, args.format)
    elif args.action == "grow":
        pool.grow(args.size_bytes)
    elif args.action == "trim":
        print(f"{output.size(pool.trim())} given back")
    else:
        if args.action == "quotas":
            pool.ask_for_quotas()
        _detach(store, pool)
    return 0


def _show(pool: Pool, form: str) -> None:
    status = pool.status()
    if form == "json":
        output.document([{"image": pool.image, **vars(status)}])
        return
    columns: output.Columns[PoolStatus] = {
        "SIZE": (lambda pool: pool.size_bytes, output.size),
        "USED": (lambda pool: pool.used_bytes, output.size),
        "ON THE HOST": (lambda pool: pool.host_bytes, output.size),
        "FREE THERE": (lambda pool: pool.host_free_bytes, output.size),
        "DIRECT I/O": (lambda pool: "yes" if pool.direct_io else "no", str),
    }
    output.listing([status], columns, form)


def _detach(store: Store, pool: Pool) -> None:
    store.close()
    if not pool.detach():
        raise Conflict(f"the pool of {store.root} is in use; unmount its containers and close what has the store open")
