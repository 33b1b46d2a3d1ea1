"""The life of an image, as a tutorial: built, shared, rebuilt, pushed, and a thousand containers of it. `make demo`.

Every line that begins with "$ layerstore" is a command that is really run, and every figure was measured just before it
is printed. Building and mounting need root; without it the demo does what needs none and says what it left out.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from bench.bench_registry import Registry
from bench.fixtures import APP, FLASK, Fixtures, default_cache
from bench.measure import KERNEL_MEMORY, PROCESS_MEMORY, meminfo
from layerstore import Container, Image, Store
from layerstore._core import mount
from layerstore.errors import LayerstoreError

MOUNTABLE_FROM = ("ext4", "xfs", "btrfs")
BASE = "debian"
FIRST, SECOND = "app-a", "app-b"
DOCKERFILE = """\
FROM {base}
ENV PIP_BREAK_SYSTEM_PACKAGES=1 PIP_ROOT_USER_ACTION=ignore
RUN pip install --quiet {flask}
CMD ["python3", "/srv/app.py"]
COPY app.py /srv/app.py
"""
# What pip of this machine finds its index by, and trusts: the RUN steps are shown these where they exist.
PIP_NEEDS = (Path("/etc/pip.conf"), Path("/etc/ssl/certs/ca-certificates.crt"))
DIGEST_BYTES, CONTENT_BYTES = 32, 40

# Runs inside a container without a network: serves the image's application on the container's own loopback device, asks
# it, prints its answer, and goes on serving until standard input ends.
SERVE_AND_ASK = """\
import sys, threading, urllib.request
sys.path.insert(0, "/srv")
from app import app
from werkzeug.serving import make_server
server = make_server("127.0.0.1", 8000, app)
threading.Thread(target=server.serve_forever, daemon=True).start()
print(urllib.request.urlopen("http://127.0.0.1:8000/").read().decode().strip(), flush=True)
sys.stdin.read()
"""
EDIT = "echo 'hello from this container' >/srv/note.txt; echo '# patched' >>/srv/app.py; rm /etc/issue"


class CannotGoOn(Exception):
    """What the demo needs is missing; the message says what to do."""


def main() -> int:
    options = parse()
    say("layerstore: an image is built, shared, rebuilt and pushed, and a thousand containers start from it")
    try:
        with scratch_directory(options.root) as root:
            Demo(options, root).run()
    except CannotGoOn as error:
        print(f"\ndemo: {error}", file=sys.stderr)
        return 1
    except (LayerstoreError, OSError, subprocess.CalledProcessError) as error:
        print(f"\ndemo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ndemo: interrupted; everything was cleaned up", file=sys.stderr)
        return 130
    return 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="demo", description=(__doc__ or "").strip())
    parser.add_argument("--count", type=int, default=1000, help="containers (default: 1000)")
    parser.add_argument("--running", type=int, default=20, help="how many of them run the app at once (default: 20)")
    parser.add_argument("--root", type=Path, help="the store; it stays, with its images (default: a temporary one)")
    parser.add_argument("--cache", type=Path, help=f"where the images are built (default: {default_cache()})")
    options = parser.parse_args()
    if not 1 <= options.running <= options.count:
        parser.error("--running is at least 1 and at most --count")
    return options


class Demo:
    """One run, step by step."""

    def __init__(self, options: argparse.Namespace, root: Path) -> None:
        self.count = options.count
        self.running = options.running
        try:
            self.fixtures = Fixtures(options.cache, log=lambda text: say(f"  {text}"))
        except OSError as error:
            raise CannotGoOn(f"the images cannot be kept: {error}; give a directory with --cache") from error
        self.root = root
        self.steps: list[tuple[str, float]] = []
        self.left_out: list[str] = []

    def run(self) -> None:
        begin = time.perf_counter()
        file_system = file_system_of(self.root)
        say(f"store {self.root} on {file_system}, images from {self.fixtures.cache}")
        self.load_base()
        why_not = cannot_mount(file_system)
        if why_not:
            self.left_out.append(f"two apps built on it, their push, and {self.count:,} containers: {why_not}")
        else:
            self.tutorial()
            with Store(self.root) as store:
                try:
                    self.containers(store)
                finally:
                    self.clean_up(store)
        self.summary(time.perf_counter() - begin)

    @contextlib.contextmanager
    def step(self, title: str) -> Iterator[None]:
        say(f"\n{len(self.steps) + 1}. {title}")
        begin = time.perf_counter()
        yield
        self.steps.append((title, time.perf_counter() - begin))

    # The steps

    def load_base(self) -> None:
        with self.step("Load a Debian image with Python and pip: the base of what follows"):
            try:
                archive = self.fixtures.archive(BASE)
            except (OSError, subprocess.CalledProcessError) as error:
                raise CannotGoOn(
                    f"the Debian image cannot be built here: {error}\nIt needs mmdebstrap and the network once; "
                    "`make demo` as root installs mmdebstrap. What is built is kept and used again."
                ) from error
            layerstore(self.root, "load", "-i", str(archive))
            say(f"  on disk: {size(disk_bytes(self.root))}, the store's own files included")
            layerstore(self.root, "images")

    def tutorial(self) -> None:
        with tempfile.TemporaryDirectory(prefix="layerstore-demo-") as directory:
            contexts = Path(directory)
            self.build_both(contexts)
            with self.step("Change app.py of the first and build it again: one layer is new"):
                app = contexts / FIRST / "app.py"
                app.write_text(app.read_text().replace(f'app="{FIRST}"', f'app="{FIRST}, changed"'))
                self.build(contexts, FIRST)
            with self.step("Where its layers came from"):
                layerstore(self.root, "history", FIRST)
            self.push(contexts)

    def build_both(self, contexts: Path) -> None:
        with self.step("Build an app on it: each line that changes files is a layer"):
            self.write_context(contexts, FIRST)
            for line in (contexts / FIRST / "Dockerfile").read_text().splitlines():
                say(f"  | {line}")
            if shown := [str(path) for path in PIP_NEEDS if path.exists()]:
                say(f"  (RUN is shown {' and '.join(shown)} of this machine, too, by -v, so that its pip works)")
            self.build(contexts, FIRST)
        disk = disk_bytes(self.root)
        with self.step("Build another app by the same lines: only what differs is done"):
            self.write_context(contexts, SECOND)
            self.build(contexts, SECOND)
            added = disk_bytes(self.root) - disk
        with self.step("What the two share"), Store(self.root) as store:
            self.sharing(store.image(FIRST), store.image(SECOND), added)

    def write_context(self, contexts: Path, name: str) -> None:
        context = contexts / name
        context.mkdir()
        base = self.fixtures.recipe(BASE).name
        (context / "Dockerfile").write_text(DOCKERFILE.format(base=base, flask=FLASK))
        (context / "app.py").write_text(APP.format(name=name))

    def build(self, contexts: Path, name: str) -> None:
        given = [argument for path in PIP_NEEDS if path.exists() for argument in ("-v", f"{path}:{path}:ro")]
        layerstore(self.root, "build", "-t", name, name, unshown=given, directory=contexts)

    def push(self, contexts: Path) -> None:
        with self.step("Push both to a registry on this machine: it is sent each layer once"):
            if shutil.which("docker-registry") is None:
                self.left_out.append(
                    "the push: docker-registry is not installed (as root: apt-get install docker-registry)"
                )
                say("  left out: docker-registry is not installed")
                return
            registry = Registry(contexts / "registry")
            try:
                for name in (FIRST, SECOND, SECOND):
                    before = registry.stored_bytes()
                    layerstore(self.root, "push", name, f"{registry.host}/{name}")
                    say(f"  the registry holds {size(registry.stored_bytes() - before)} more")
            finally:
                registry.stop()

    def sharing(self, first: Image, second: Image, added: int) -> None:
        layers, known = second.diff_ids, set(first.diff_ids)
        shared = sum(layer in known for layer in layers)
        here, there = contents(first), contents(second)
        say(f"  layers of {second.names[0]}:    {len(layers)}, {shared} of them also of {first.names[0]}")
        say(f"  contents of {second.names[0]}:  {len(there):,}, {len(here & there):,} of them also of {first.names[0]}")
        say(f"  bytes on disk that it added:  {size(added)} of {size(second.size_bytes)} of files")

    def containers(self, store: Store) -> None:
        image = store.image(FIRST)
        disk = disk_bytes(self.root)
        with self.step("Join its layers into one view, once for the image"), store.create(image).mount() as view:
            say(f"  {(view / 'etc/os-release').read_text().splitlines()[0]}")
            say(f"  bytes on disk: {size(disk_bytes(self.root) - disk)}, one container included")
        store.remove(store.containers())
        kernel, disk = meminfo(*KERNEL_MEMORY), disk_bytes(self.root)
        with self.step(f"Start {self.count:,} containers of it, all mounted at once"):
            made = self.timed("create", lambda: store.create(image, count=self.count))
            self.timed("mount", lambda: store.mount(made))
            mounted = store.states(made).count("mounted")
            say(f"  the kernel says that {mounted:,} are mounted")
            say(f"  disk     {size((disk_bytes(self.root) - disk) / self.count)} a container")
            memory = meminfo(*KERNEL_MEMORY) - kernel
            say(f"  memory   {size(memory / self.count)} a container, all of it the kernel's")
        with self.step(f"Run the app in {self.running} of them at the same time, without a network"):
            self.run_apps(made[: self.running])
        with self.step("Change files in one of them"):
            changed, other = made[-1], made[0]
            say(f"  in {changed.id[:12]}: {EDIT}")
            if changed.run(["sh", "-c", EDIT]):
                raise CannotGoOn("the shell in the container failed; its message is above")
            layerstore(self.root, "diff", changed.id[:12])
            note = (other.root / "srv/note.txt").exists()
            say(f"  {other.id[:12]} has {'the note too: that is a bug' if note else 'no note, and the old app'}")

    def timed(self, what: str, work):  # type: ignore[no-untyped-def]
        begin = time.perf_counter()
        result = work()
        each = (time.perf_counter() - begin) / self.count
        say(f"  {what:<8} {each * 1e3:.3f} ms a container")
        return result

    def run_apps(self, chosen: list[Container]) -> None:
        before = meminfo(*PROCESS_MEMORY)
        # What the containers read as standard input ends when this process closes `hold`: they end together.
        stdin, hold = os.pipe()
        outputs: list[tuple[int, Future[int]]] = []
        with ThreadPoolExecutor(len(chosen)) as pool, tempfile.TemporaryFile() as errors:
            try:
                for container in chosen:
                    output, its_end = os.pipe()
                    command = ["python3", "-c", SERVE_AND_ASK]
                    streams = {"stdin": stdin, "stdout": its_end, "stderr": errors.fileno()}
                    future = pool.submit(container.run, command, **streams)
                    future.add_done_callback(lambda _, its_end=its_end: os.close(its_end))
                    outputs.append((output, future))
                answers = [first_line(output) for output, _ in outputs]
                used = meminfo(*PROCESS_MEMORY) - before
            finally:
                os.close(hold)
            statuses = [future.result() for _, future in outputs]
            os.close(stdin)
            failed = [status for status in statuses if status]
            if failed or not all(answers):
                errors.seek(0)
                raise CannotGoOn(f"{len(failed)} containers failed:\n{errors.read().decode(errors='replace').strip()}")
        say(f"  {len(answers)} answered while all {len(answers)} were running; the first: {answers[0]}")
        say(f"  memory   {size(used / len(chosen))} a running container, Python and flask in it included")

    def clean_up(self, store: Store) -> None:
        with self.step("Clean up"):
            made = store.containers()
            store.remove(made, force=True)
            left = mounts_below(self.root)
            say(f"  {len(made):,} containers removed")
            if left:
                raise CannotGoOn(f"{len(left)} mounts are left, the first {left[0]}: that is a bug")
            say("  nothing is left mounted")

    def summary(self, total: float) -> None:
        say("")
        width = max(len(title) for title, _ in self.steps)
        for title, seconds in self.steps:
            say(f"  {title:<{width}}  {seconds:8.3f} s")
        say(f"  {'all':<{width}}  {total:8.3f} s")
        for what in self.left_out:
            say(f"\nLeft out: {what}")


# Where


@contextlib.contextmanager
def scratch_directory(given: Path | None) -> Iterator[Path]:
    """The store's directory: the given one, or a temporary one, where EROFS images can be mounted from if possible."""
    if given is not None:
        yield given.absolute()
        return
    places = [Path(tempfile.gettempdir()), Path("/var/tmp"), default_cache().parent]
    usable = [place for place in places if place.is_dir() and os.access(place, os.W_OK)]
    good = [place for place in usable if file_system_of(place) in MOUNTABLE_FROM]
    if usable and good and good[0] != usable[0]:
        say(f"{usable[0]} is on {file_system_of(usable[0])}, from where EROFS cannot be mounted; using {good[0]}")
    if not usable:
        raise CannotGoOn(f"none of {', '.join(map(str, places))} can be written; give a directory with --root")
    with tempfile.TemporaryDirectory(prefix="layerstore-demo-", dir=(good or usable)[0]) as directory:
        yield Path(directory) / "store"


def file_system_of(path: Path) -> str:
    """The type of the file system that holds `path`, which need not exist yet."""
    path = path.resolve()
    found, kind = "", "?"
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split()
        point = fields[4].encode().decode("unicode_escape")
        if len(point) >= len(found) and path.is_relative_to(point):
            found, kind = point, fields[fields.index("-") + 1]
    return kind


def cannot_mount(file_system: str) -> str:
    """Why containers cannot be mounted here, "" when they can."""
    features = mount.features()
    if not features.may_mount:
        return "mounting needs root (CAP_SYS_ADMIN)"
    if not (features.overlay and features.erofs):
        return "this kernel has no overlayfs or no EROFS that is mounted from a file (Linux 6.12 or newer)"
    if file_system not in MOUNTABLE_FROM:
        return f"EROFS cannot be mounted from {file_system}; give --root a directory on {', '.join(MOUNTABLE_FROM)}"
    if not (shutil.which("crun") or shutil.which("runc")):
        return "no OCI runtime is installed (as root: apt-get install crun)"
    return ""


def mounts_below(root: Path) -> list[str]:
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return [point for point in (line.split()[4] for line in lines) if point.startswith(f"{root}/")]


# Figures


def contents(image: Image) -> set[bytes]:
    """The digests of the image's contents."""
    table = bytes(image.index().contents_bytes())
    return {table[at : at + DIGEST_BYTES] for at in range(0, len(table), CONTENT_BYTES)}


def disk_bytes(directory: Path) -> int:
    """Bytes allocated on disk for a directory, without what is mounted in it."""
    device = directory.stat().st_dev
    total, pending = 0, [str(directory)]
    while pending:
        for entry in os.scandir(pending.pop()):
            status = entry.stat(follow_symlinks=False)
            if status.st_dev == device:
                total += status.st_blocks * 512
                if entry.is_dir(follow_symlinks=False):
                    pending.append(entry.path)
    return total


def first_line(fd: int) -> str:
    with open(fd, "rb") as stream:
        return stream.readline().decode(errors="replace").strip()


# Output


def say(text: str) -> None:
    print(text, flush=True)


def size(value: float) -> str:
    for unit in ("B", "kB", "MB"):
        if abs(value) < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.2f} GB"


def layerstore(root: Path, *arguments: str, unshown: Sequence[str] = (), directory: Path | None = None) -> None:
    """Run the command, as a reader would, and show it with its time and output."""
    shown = " ".join(Path(a).name if a.startswith("/") else a for a in arguments)
    begin = time.perf_counter()
    command = [sys.executable, "-m", "layerstore", "--root", str(root), *arguments, *unshown]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL, cwd=directory)
    seconds = time.perf_counter() - begin
    say(f"  $ layerstore {shown:<50} {seconds:8.3f} s")
    for line in done.stdout.splitlines():
        say(f"    {line}")
    if done.returncode:
        raise CannotGoOn(f"layerstore {arguments[0]} failed; its message is above")


if __name__ == "__main__":
    sys.exit(main())
