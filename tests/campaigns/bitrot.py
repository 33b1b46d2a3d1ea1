"""Flips bits in the files of a closed store and cuts files off, and looks at what comes of it.

    make bitrot                                   10,000 damages, and a repair stopped at each of its calls
    make bitrot BITROT_ARGS="--damages 300"       fewer

For each damage, of one file of a store that has everything: a check finds it, or nothing reads the byte: then all that
the store shows is what it was. A verified read gives what was stored or an error. A repair, and a load of the archive
that the images were saved to, bring every image back bit for bit, and every container but one whose own log was
damaged; what no row of the database tells of any more is in the quarantine. Each kind of file is damaged as often as
any other, whatever its size. The store is in memory (/dev/shm), as nothing here is about a disk after a crash.
"""

import argparse
import contextlib
import functools
import io
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from images import Image, docker_files, tar_of
from layer_model import Entry, write_tar

from campaigns import record
from campaigns.samples import edition
from layerstore import Store, check_store
from layerstore.errors import LayerstoreError

DAMAGES = 10_000
PLACE = "/dev/shm"
FLIP, CUT = "a bit flipped in a file of a store", "a file of a store cut off"
STOP = "a repair stopped at each call that changes names or syncs, and run again"


def layer(seed: int, count: int) -> bytes:
    """A layer of small files, one in three of them too large for a pack."""
    draw = random.Random(seed)
    entries = [
        Entry("file", f"d{n % 3}/f{seed}-{n}", data=draw.randbytes(140_000 if n % 6 == 5 else draw.randrange(1, 9_000)))
        for n in range(count)
    ]
    return write_tar([*entries, Entry("symlink", f"link{seed}", link=f"d0/f{seed}-0")])


def make_store(root: Path) -> bytes:
    """A store of everything; returns an archive of its images."""
    base, middle = layer(1, 7), layer(2, 7)
    loaded = (
        Image([base], ["base:1"]),
        Image([base, middle], ["middle:1", "also:2"]),
        Image([layer(3, 3)], ["other:1"]),
    )
    frozen = [Image([write_tar(edition(number))], [f"edition{number}:1"]) for number in (1, 2)]
    context = root.parent / f"{root.name}.context"
    context.mkdir()
    (context / "Dockerfile").write_text("FROM middle:1\nCOPY file /copied\nENV A=1\nWORKDIR /srv\n")
    (context / "file").write_bytes(b"copied" * 1000)
    with Store(root, create=True) as store:
        for image in (*loaded, *frozen):
            store.load(io.BytesIO(tar_of(docker_files([image]))))
        store.build(context, names=["built:1"])
        container = store.create("middle:1", driver="extent", name="one")
        container.write_bytes("/written", b"w" * 20_000)
        container.snapshot("before")
        container.write_bytes("/later", b"l" * 500)
        fork = container.fork()
        fork.write_bytes("/forked", b"f" * 3_000)
        container.commit("committed:1")
        for name in ("middle:1", "built:1", "committed:1"):
            store.create(name)
            store.image(name).index()
        archive = io.BytesIO()
        store.save(store.images(), archive)
        store.freeze(["edition1:1", "edition2:1"])
    shutil.rmtree(context)
    return archive.getvalue()


def shown(root: Path, *, verify: Any = "never") -> dict[str, Any]:
    """All that a store shows, but what raises a `LayerstoreError`, by what it is of."""
    found: dict[str, Any] = {}
    with contextlib.suppress(LayerstoreError), Store(root, verify=verify) as store:
        for image in store.images():
            with contextlib.suppress(LayerstoreError):
                found[image.id, "config"] = image.config.document
                found[image.id, "about"] = image.created, image.chain_id, image.diff_ids, image.size_bytes
                found[image.id, "names"] = image.names
            for diff_id in image.diff_ids if verify == "never" else ():
                with contextlib.suppress(LayerstoreError):
                    found[image.id, diff_id] = b"".join(map(bytes, image.layer_tar(diff_id)))
            with contextlib.suppress(LayerstoreError):
                index, view = image.index(), image.view
                for entry in index:
                    about = entry.mode, entry.uid, entry.gid, entry.size, entry.mtime_ns, entry.target, entry.xattrs
                    found[image.id, entry.path] = about
                    if entry.content is not None:
                        with contextlib.suppress(LayerstoreError):
                            found[image.id, entry.path, "content"] = view.read_bytes("/" + entry.path.decode())
        for container in store.containers():
            found[container.id, "about"] = container.name, container.driver
            if container.driver == "extent":
                with contextlib.suppress(LayerstoreError):
                    files = sorted(name for name in container.listdir("/"))
                    contents = [
                        container.read_bytes(f"/{name}") for name in ("written", "later", "forked") if name in files
                    ]
                    snapshots = [snapshot.name for snapshot in container.snapshots()]
                    found[container.id, "tree"] = files, contents, snapshots
    return found


class Master:
    """The files of a store, to damage one and to put all back."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.files = {path: (path.read_bytes(), path.stat()) for path in self._present()}
        self._directories = {Path(top): os.stat(top).st_mode & 0o777 for top, _, _ in os.walk(root)}
        kinds: dict[str, list[Path]] = {}
        for path, (data, _) in sorted(self.files.items()):
            if data:
                kinds.setdefault(self.kind(path), []).append(path)
        self.kinds = kinds

    def kind(self, path: Path) -> str:
        parts = path.relative_to(self._root).parts
        return parts[0].split(".")[0] + path.suffix if parts[0] != "objects" else "objects"

    def _present(self) -> Iterator[Path]:
        for top, _, names in os.walk(self._root):
            if os.path.basename(top) == "run" or "/run/" in top:
                continue
            for name in names:
                yield Path(top) / name

    def put(self, path: Path) -> None:
        data, status = self.files[path]
        path.unlink(missing_ok=True)
        path.write_bytes(data)
        path.chmod(status.st_mode & 0o777)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))

    def restore(self) -> None:
        for path in list(self._present()):
            known = self.files.get(path)
            if known is None:
                path.unlink()
            elif path.read_bytes() != known[0] or path.stat().st_mtime_ns != known[1].st_mtime_ns:
                self.put(path)
        for path, mode in self._directories.items():
            if not path.exists():
                path.mkdir()
                path.chmod(mode)
        for path in self.files:
            if not path.exists():
                self.put(path)
        for container in (self._root / "quarantine").glob("*"):
            shutil.rmtree(container, ignore_errors=True)


class Campaign:
    """One process's part: its store, and what it counted."""

    def __init__(self, root: Path, seed: int) -> None:
        self._root = root
        self._draw = random.Random(seed)
        self._archive = make_store(root)
        if not check_store(root).is_clean:
            raise AssertionError("the store is damaged before anything was done to it")
        self._master = Master(root)
        self._whole = shown(root)
        self._containers = {path.name for path in (root / "containers").iterdir()}
        self.counts: Counter[tuple[str, str]] = Counter()

    def damage(self) -> None:
        """Damage one file, and look at what comes of it."""
        path = self._draw.choice(self._master.kinds[self._draw.choice(sorted(self._master.kinds))])
        data = self._master.files[path][0]
        if self._draw.random() < 0.8:
            what, at, bit = FLIP, self._draw.randrange(len(data)), self._draw.randrange(8)
            changed = data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :]
            label = f"bit {bit} of byte {at} of {len(data)} of {path.relative_to(self._root)}"
        else:
            what, at = CUT, self._draw.randrange(len(data))
            changed = data[:at]
            label = f"{path.relative_to(self._root)} cut off at byte {at} of {len(data)}"
        path.chmod(0o600)
        path.write_bytes(changed)
        path.chmod(self._master.files[path][1].st_mode & 0o777)
        try:
            wrong = self._look(path, self._master.kind(path), what)
        except Exception:
            wrong = "crashed", traceback.format_exc()
        self.counts[what, "tried"] += 1
        if wrong:
            self.counts[what, wrong[0]] += 1
            print(f"{label}: {wrong[0]}: {wrong[1]}", flush=True)
        self._master.restore()

    def _look(self, path: Path, kind: str, what: str) -> tuple[str, str] | None:
        # Before anything is read, as a read makes a damaged merged index again without a word.
        report = check_store(self._root)
        verified = shown(self._root, verify="always")
        for key, value in verified.items():
            if len(key) == 3 and self._whole.get(key, value) != value:
                return "corrupt", f"a verified read of {key[1]!r} gave other bytes"
        if not report.damages and not report.notes:
            if shown(self._root) != self._whole:
                if kind == "logs" and what == CUT:
                    self.counts[what, "at the end of an operation"] += 1
                    return None
                return "corrupt", "it was not found"
            self.counts[what, "nothing reads"] += 1
            return None
        repaired = check_store(self._root, repair=True)
        left = {damage.what for damage in repaired.damages if not damage.repaired}
        with Store(self._root) as store:
            store.load(io.BytesIO(self._archive))
        again = check_store(self._root)
        if {damage.what for damage in again.damages} - ({"log"} if kind == "logs" else set()):
            return "lost", f"after repair and load: {[damage.detail for damage in again.damages]} ({left})"
        return self._compare(kind)

    def _compare(self, kind: str) -> tuple[str, str] | None:
        """What is otherwise than it was, after a repair and a load."""
        now = shown(self._root)
        quarantine = {path.name for path in (self._root / "quarantine").glob("*")}
        for key, value in self._whole.items():
            if now.get(key) == value:
                continue
            is_container = not key[0].startswith("sha256:")
            if is_container and kind == "logs":
                continue
            if kind == "layerstore.db" and (key[1] == "names" or (is_container and key not in now)):
                continue  # nothing else tells of it; what it has is looked for below
            return "lost", f"{key} is otherwise: {str(now.get(key))[:200]} and not {str(value)[:200]}"
        for path, (data, _) in self._master.files.items():
            relative = path.relative_to(self._root)
            if relative.parts[0] == "logs" and kind != "logs":
                places = [path, *(self._root / "quarantine").glob(path.name)]
                if not any(place.exists() and place.read_bytes() == data for place in places):
                    return "lost", f"{relative} is gone"
        for container in self._containers:
            if not (self._root / "containers" / container).is_dir() and container not in quarantine:
                return "lost", f"the directory of container {container} is gone"
        return None

    def stop_everywhere(self) -> None:
        """A repair of a damage of every kind, stopped at each of its calls, and run again."""
        at = 0
        while True:
            at += 1
            for kind, paths in sorted(self._master.kinds.items()):
                if kind not in ("logs", "format", "layerstore.db") or (kind == "layerstore.db" and at % 2):
                    path = paths[0]
                    data = bytearray(self._master.files[path][0])
                    data[len(data) // 2 if kind != "layerstore.db" else 27] ^= 1
                    path.chmod(0o600)
                    path.write_bytes(data)
            calls = 0

            def counted(stop_at: int, call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
                nonlocal calls
                calls += 1
                if calls == stop_at:
                    raise KeyboardInterrupt
                return call(*arguments, **options)

            real = {name: getattr(os, name) for name in ("rename", "unlink", "link", "mkdir", "fsync")}
            try:
                for name, call in real.items():
                    setattr(os, name, functools.partial(counted, at, call))
                with contextlib.suppress(KeyboardInterrupt):
                    check_store(self._root, repair=True)
            finally:
                for name, call in real.items():
                    setattr(os, name, call)
            self.counts[STOP, "tried"] += 1
            try:
                check_store(self._root, repair=True)
                with Store(self._root) as store:
                    store.load(io.BytesIO(self._archive))
                report = check_store(self._root)
                wrong = ("lost", str(report.damages)) if report.damages else self._compare("")
            except Exception:
                wrong = "crashed", traceback.format_exc()
            if wrong:
                self.counts[STOP, wrong[0]] += 1
                print(f"stopped at call {at}: {wrong[0]}: {wrong[1]}", flush=True)
            self._master.restore()
            if calls < at:
                return


def part(seed: int, damages: int, stops: bool) -> Counter[tuple[str, str]]:
    """What one process does; returns what it counted."""
    with tempfile.TemporaryDirectory(dir=PLACE if os.path.isdir(PLACE) else None, prefix="bitrot.") as top:
        campaign = Campaign(Path(top) / "store", seed)
        for number in range(damages):
            campaign.damage()
            if number % 250 == 249:
                print(f"{number + 1} of {damages} damages", file=sys.stderr, flush=True)
        if stops:
            campaign.stop_everywhere()
        return campaign.counts


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--damages", type=int, default=DAMAGES, metavar="N", help="how many (10,000)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, metavar="N", help="processes (one a core)")
    parser.add_argument("--seed", type=int, default=1, help="of the choice of damages (1)")
    parser.add_argument("--record", action="store_true", help="write the counts to docs/reliability.md")
    args = parser.parse_args()
    begin = time.monotonic()
    shares = [(args.damages + n) // args.jobs for n in range(args.jobs)]
    with multiprocessing.get_context("spawn").Pool(args.jobs) as pool:
        parts = [(args.seed * 1000 + n, share, n == 0) for n, share in enumerate(shares)]
        counts: Counter[tuple[str, str]] = sum(pool.starmap(part, parts), Counter())
    rows = [
        record.Row(what, counts[what, "tried"], *(counts[what, kind] for kind in ("lost", "corrupt", "crashed")))
        for what in (FLIP, CUT, STOP)
    ]
    status = record.told(rows)
    for (what, kind), count in sorted(counts.items()):
        if kind not in ("tried", "lost", "corrupt", "crashed"):
            print(f"of {what}: {count:,} {kind}")
    if args.record:
        record.write("bitrot", rows, record.command_of("bitrot", sys.argv[1:]), time.monotonic() - begin)
    return status


if __name__ == "__main__":
    sys.exit(main())
