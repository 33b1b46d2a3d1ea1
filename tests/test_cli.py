"""The command line: every command, what it prints, its messages and exit statuses."""

import contextlib
import io
import json
import os
import pty
import re
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from images import CREATED, docker_files, tar_of
from layer_model import Entry, write_tar
from test_containers import BOX, BUSYBOX, PLAIN, mounts_below
from waiting import wait_for

from layerstore import Store
from layerstore._core import mount
from layerstore.cli import COMMANDS

ROOT = Path(__file__).parent.parent
may_mount = os.geteuid() == 0 and mount.features().erofs
root_only = pytest.mark.skipif(not may_mount, reason="mounting needs root, EROFS and overlayfs")
runs = pytest.mark.skipif(not (may_mount and BUSYBOX.exists()), reason=f"needs root and {BUSYBOX}")


class Cli:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.environment = {**os.environ, "PYTHONPATH": str(ROOT), "LAYERSTORE_ROOT": str(root)}

    def __call__(self, *args: object, status: int = 0, stdin: bytes = b"") -> str:
        """What the command prints; on a failure what it says on standard error."""
        command = [sys.executable, "-m", "layerstore", *map(str, args)]
        done = subprocess.run(command, env=self.environment, input=stdin, capture_output=True)
        assert done.returncode == status, done.stderr.decode()
        if status == 0:
            assert done.stderr == b""
            return done.stdout.decode()
        assert b"Traceback" not in done.stderr
        return done.stderr.decode()

    def json(self, *args: object) -> list[dict[str, object]]:
        return json.loads(self(*args, "--format", "json"))


@pytest.fixture
def empty(tmp_path: Path) -> Cli:
    return Cli(tmp_path / "store")


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cli") / "archive.tar"
    path.write_bytes(tar_of(docker_files([PLAIN, BOX])))
    return path


@pytest.fixture
def cli(tmp_path: Path, archive: Path) -> Iterator[Cli]:
    root = tmp_path / "store"
    with Store(root, create=True) as store:
        store.load(archive)
    yield Cli(root)
    with Store(root) as store:
        store.remove(store.containers(), force=True)
    assert mounts_below(root) == []


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--help"], "layerstore: standard output: No space left on device\n"),
        (["images"], "layerstore images: standard output: No space left on device\n"),
        (["cat", "plain:1", "/second"], "layerstore cat: standard output: No space left on device\n"),
    ],
)
def test_output_that_cannot_be_written(cli: Cli, unbuffered: str, args: list[str], message: str) -> None:
    environment = cli.environment | {"PYTHONUNBUFFERED": unbuffered}
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "layerstore", *args], env=environment, stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert (done.returncode, done.stderr) == (1, message)


class TestHelp:
    def test_all_commands_are_listed(self, empty: Cli) -> None:
        for option in ("--help", "-h"):
            text = empty(option)
            assert [
                line.split()[0] for line in text.splitlines() if line.startswith("  ") and line[2] not in "- "
            ] == list(COMMANDS)
        assert empty("--version").startswith("layerstore ")
        assert not empty.root.exists()

    @pytest.mark.parametrize("command", COMMANDS)
    def test_of_each(self, empty: Cli, command: str) -> None:
        text = empty(command, "--help")
        assert text.startswith(f"usage: layerstore {command} ")
        assert len(text.split("\n\n")[1]) > 20
        assert not empty.root.exists()

    def test_help_starts_fast(self) -> None:
        """Nothing is imported for it that takes time."""
        code = "import sys; from layerstore.cli import execute; execute(['--help']); print(*sys.modules)"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, cwd=ROOT, text=True)
        slow = {"argparse", "json", "sqlite3", "pathlib", "subprocess", "layerstore.api", "layerstore._core.index"}
        assert set(done.stdout.splitlines()[-1].split()) & slow == set()

    @pytest.mark.parametrize(
        ("args", "message"),
        [
            ((), "no command given"),
            (("frobnicate",), "there is no command 'frobnicate'"),
            (("--wrong", "images"), "unknown option or missing value: --wrong"),
            (("--root",), "missing value: --root"),
        ],
    )
    def test_wrong_command_lines(self, empty: Cli, args: tuple[str, ...], message: str) -> None:
        text = empty(*args, status=2)
        assert text.startswith("layerstore: ")
        assert message in text and "layerstore --help" in text

    def test_a_reader_that_goes_away(self, cli: Cli) -> None:
        with Store(cli.root) as store:
            store.create("plain:1", count=3000)
        command = f"{sys.executable} -m layerstore ps -aq | head -n 1; exit ${{PIPESTATUS[0]}}"
        done = subprocess.run(["bash", "-c", command], env=cli.environment, capture_output=True)
        assert (done.returncode, done.stderr) == (141, b"")
        assert len(done.stdout.split()) == 1

    def test_help_to_a_reader_that_has_gone(self, empty: Cli) -> None:
        read, write = os.pipe()
        os.close(read)
        done = subprocess.run(
            [sys.executable, "-m", "layerstore", "--help"], env=empty.environment, stdout=write, stderr=subprocess.PIPE
        )
        os.close(write)
        assert (done.returncode, done.stderr) == (141, b"")


FAILURES: list[tuple[tuple[str, ...], int, str]] = [
    (("init", "extra"), 2, "unrecognized"),
    (("load",), 2, "-i"),
    (("load", "-i", "/no/where"), 1, "/no/where"),
    (("load", "-i", "/etc/hosts"), 1, "tar"),
    (("load", "-i", "/sys"), 1, "manifest.json"),
    (("import", "/no/where", "name"), 1, "/no/where"),
    (("import", "/etc/hosts", "name"), 1, "tar"),
    (("import", "/etc/hosts", "Bad Name"), 1, "Bad Name"),
    (("images", "--format", "xml"), 2, "xml"),
    (("history", "nothing"), 1, "no image 'nothing'"),
    (("ls", "nothing"), 1, "no image 'nothing'"),
    (("ls", "plain:1", "/nope"), 1, "layerstore ls: /nope: No such file or directory"),
    (("ls",), 2, "required"),
    (("cat", "nothing", "/x"), 1, "no image 'nothing'"),
    (("cat", "plain:1"), 2, "required"),
    (("inspect", "nothing"), 1, "no image or container 'nothing'"),
    (("inspect",), 2, "required"),
    (("tag", "nothing", "x"), 1, "no image 'nothing'"),
    (("tag", "plain:1", "Bad Name"), 1, "Bad Name"),
    (("rmi", "nothing"), 1, "no image 'nothing'"),
    (("create", "nothing"), 1, "no image 'nothing'"),
    (("create", "--count", "0", "plain:1"), 1, "count"),
    (("create", "--count", "many", "plain:1"), 2, "many"),
    (("create", "--count", "2", "--name", "x", "plain:1"), 1, "--name goes with one container"),
    (("mount", "nothing"), 1, "no container 'nothing'"),
    (("mount",), 1, "--all"),
    (("umount", "nothing"), 1, "no container 'nothing'"),
    (("umount", "-a", "x"), 1, "--all"),
    (("run", "nothing"), 125, "no image 'nothing'"),
    (("run", "--network", "bridge", "plain:1"), 2, "bridge"),
    (("run", "--security-opt", "x", "plain:1", "x"), 125, "seccomp=FILE.json"),
    (("run", "--cap-add", "FLY", "plain:1", "x"), 125, "FLY"),
    (("run", "--pids-limit", "many", "plain:1", "x"), 2, "many"),
    (("run", "--pids-limit", "0", "plain:1", "x"), 125, "-1 for none"),
    (("run", "--device", "/no/where", "plain:1", "x"), 125, "/no/where"),
    (("run", "-v", "/etc", "plain:1", "x"), 125, "DIR:PATH"),
    (("run", "-v", "/no/where:/x", "plain:1", "x"), 125, "/no/where"),
    (("run", "-d", "-t", "plain:1", "x"), 125, "left running"),
    (("ps", "--format", "yaml"), 2, "yaml"),
    (("rm", "nothing"), 1, "no container 'nothing'"),
    (("rm", "\udcff"), 1, "no container '\\udcff'"),
    (("history", "plain@sha256:0"), 1, "digest"),
    (("load", "-i", "/proc/self/mem"), 1, "Input/output error"),
    (("diff", "nothing"), 1, "no container 'nothing'"),
    (("gc", "extra"), 2, "extra"),
]


@pytest.mark.parametrize(("args", "status", "message"), FAILURES)
def test_failures_are_told_on_one_line(cli: Cli, args: tuple[str, ...], status: int, message: str) -> None:
    text = cli(*args, status=status)
    last = text.splitlines()[-1]
    assert last.startswith(f"layerstore {args[0]}: ")
    assert message in last
    if status != 2:
        assert len(text.splitlines()) == 1


def test_interrupted(empty: Cli) -> None:
    """At any moment, the start of Python itself left out: status 130, no traceback, a store that is whole."""
    read, write = os.pipe()
    command = [sys.executable, "-m", "layerstore", "load", "-i", "-"]
    for delay in (0.1, 0.15, 0.2, 0.3, 0.5):
        process = subprocess.Popen(
            command,
            env=empty.environment,
            stdin=read,
            stderr=subprocess.PIPE,
            # Ignored in what a shell starts in the background, and that is inherited.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        while "layerstore" not in Path(f"/proc/{process.pid}/maps").read_text():
            time.sleep(0.002)
        time.sleep(delay)
        process.send_signal(signal.SIGINT)
        text = process.communicate(timeout=60)[1].decode()
        assert (process.returncode, "Traceback" in text) == (130, False), text
    os.close(read)
    os.close(write)
    empty("init")
    assert empty.json("images") == []


@pytest.mark.parametrize(
    "command", sorted(set(COMMANDS) - {"init", "load", "import", "build", "pull", "receive", "login", "logout"})
)
def test_without_a_store(empty: Cli, command: str) -> None:
    counts = {"tag": 2, "rename": 2, "cat": 2, "cp": 2, "exec": 2, "snapshot": 2, "rollback": 2, "sync": 2}
    counts |= dict.fromkeys(("gc", "ps", "images", "pool", "prune", "system", "tiering"), 0)
    more = {"move": ["--driver", "extent"], "system": ["df"]}
    args = ["x", "y"][: counts.get(command, 1)] + more.get(command, [])
    text = empty(command, *args, status=125 if command in ("exec", "run") else 1)
    assert text.startswith(f"layerstore {command}: there is no store at {empty.root}; `layerstore init`")
    assert not empty.root.exists()


@pytest.mark.parametrize("option", ["--verify=first", "--limit=members=10"])
def test_options_that_mean_nothing_to_a_command(empty: Cli, option: str) -> None:
    for command in ("fsck", "logout"):
        text = empty(option, command, status=1)
        assert text.startswith(f"layerstore {command}: {option.partition('=')[0]} means nothing to `{command}`")


class TestImages:
    def test_init(self, empty: Cli) -> None:
        for _ in range(2):
            assert empty("init") == f"{empty.root}\n"
        assert empty("--root", empty.root.with_name("other"), "init") == f"{empty.root.with_name('other')}\n"
        assert empty(f"--root={empty.root}", "images").split() == [
            "REPOSITORY",
            "TAG",
            "IMAGE",
            "ID",
            "CREATED",
            "SIZE",
        ]

    def test_load_from_a_file_and_standard_input(self, empty: Cli, archive: Path) -> None:
        said = "Loaded image: plain:1\nLoaded image: box:1\n"
        assert empty("load", "-i", archive) == said
        assert empty("load", "--input", "-", stdin=archive.read_bytes()) == said

    def test_load_without_names(self, empty: Cli, tmp_path: Path) -> None:
        from images import Image

        image = Image(PLAIN.layers)
        (tmp_path / "a.tar").write_bytes(tar_of(docker_files([image])))
        assert empty("load", "-i", tmp_path / "a.tar") == f"Loaded image ID: {image.id}\n"
        assert empty("images").splitlines()[1].split()[:2] == ["<none>", "<none>"]

    def test_freeze_and_thaw(self, cli: Cli) -> None:
        before = cli("ls", "box:1", "/bin")
        assert cli("freeze", "--unused-for", "1h") == "nothing to be frozen: all was used since, or is frozen already\n"
        assert re.fullmatch(
            r"1 image frozen: \d+ contents of [\d.]+[kM]B take [\d.]+[kM]B now\n", cli("freeze", "box:1")
        )
        assert cli("freeze", "box:1") == "nothing to be frozen: frozen already\n"
        assert cli("ls", "box:1", "/bin") == before
        assert re.fullmatch(r"[\d.]+[kM]B brought back\n", cli("thaw", "box:1"))
        assert "no image 'nosuch'" in cli("freeze", "nosuch", status=1)
        assert "give images, or --unused-for AGE" in cli("freeze", status=1)
        assert "give images, or --unused-for AGE" in cli("freeze", "box:1", "--unused-for", "1h", status=1)
        assert "'soon' is not an age" in cli("freeze", "--unused-for", "soon", status=2)
        cli("create", "--driver", "extent", "--name", "used", "box:1")
        assert "a container uses image" in cli("freeze", "box:1", status=1)

    def test_import(self, empty: Cli, tmp_path: Path) -> None:
        tar = write_tar([Entry("file", "f", data=b"x")])
        (tmp_path / "root.tar").write_bytes(tar)
        first = empty("import", tmp_path / "root.tar", "base").strip()
        assert first.startswith("sha256:")
        empty("import", "-", "other:2", stdin=tar)
        assert {(row["REPOSITORY"], row["TAG"]) for row in empty.json("images")} == {("base", "latest"), ("other", "2")}

    def test_images(self, cli: Cli) -> None:
        rows = cli.json("images")
        assert {row["IMAGE ID"] for row in rows} == {PLAIN.id, BOX.id}
        assert all(row["CREATED"] == CREATED for row in rows)
        head, *lines = cli("images").splitlines()
        assert head.split() == ["REPOSITORY", "TAG", "IMAGE", "ID", "CREATED", "SIZE"]
        (plain,) = (line for line in lines if line.startswith("plain"))
        assert plain.split()[:3] == ["plain", "1", PLAIN.id[7:19]]
        assert "years ago" in plain or "year ago" in plain
        assert set(cli("images", "-q").split()) == {PLAIN.id[7:19], BOX.id[7:19]}

    def test_history(self, cli: Cli) -> None:
        rows = cli.json("history", "plain:1")
        assert [row["IMAGE"] for row in rows] == [PLAIN.id, "<missing>"]
        assert [row["CREATED BY"] for row in rows] == ["step 1", "step 0"]
        lines = cli("history", "plain:1").splitlines()
        assert [line.split()[0] for line in lines] == ["IMAGE", PLAIN.id[7:19], "<missing>"]
        assert cli("history", "--no-trunc", "plain:1").splitlines()[1].startswith(PLAIN.id)

    def test_inspect(self, cli: Cli) -> None:
        container = cli("create", "plain:1").strip()
        said = json.loads(cli("inspect", "plain:1", container))
        assert [one["Id"] for one in said] == [PLAIN.id, container]

    def test_tag_and_rmi(self, cli: Cli) -> None:
        assert cli("tag", "plain:1", "more") == ""
        assert cli("rmi", "plain:1") == "Untagged: plain:1\n"
        assert cli("rmi", "more") == f"Untagged: more:latest\nDeleted: {PLAIN.id}\n"
        cli("tag", "box:1", "more")
        assert "2 names" in cli("rmi", BOX.id, status=1)
        assert len(cli("rmi", "-f", BOX.id).splitlines()) == 3
        assert cli.json("images") == []

    def test_rmi_goes_on(self, cli: Cli) -> None:
        command = [sys.executable, "-m", "layerstore", "rmi", "nothing", "plain:1", "Bad Name"]
        done = subprocess.run(command, env=cli.environment, capture_output=True, text=True)
        assert done.returncode == 1
        assert done.stdout.splitlines() == ["Untagged: plain:1", f"Deleted: {PLAIN.id}"]
        assert [line.split(":")[0] for line in done.stderr.splitlines()] == ["layerstore rmi", "layerstore rmi"]

    def test_what_an_image_says_cannot_spoil_a_listing(self, empty: Cli, tmp_path: Path) -> None:
        from images import Image

        history = [{"created": CREATED, "created_by": "RUN <<EOF\nx\x1b[2J\nEOF"} for _ in PLAIN.layers]
        image = Image(PLAIN.layers, ["odd:1"], document={"history": history})
        (tmp_path / "a.tar").write_bytes(tar_of(docker_files([image])))
        empty("load", "-i", tmp_path / "a.tar")
        text = empty("history", "odd:1")
        assert len(text.splitlines()) == 1 + len(PLAIN.layers) and "\x1b" not in text
        assert empty.json("history", "odd:1")[0]["CREATED BY"] == history[0]["created_by"]

    def test_a_bar_for_what_is_read_and_a_line_for_what_is_stored(self, empty: Cli, archive: Path) -> None:
        master, slave = pty.openpty()
        termios.tcsetwinsize(slave, (24, 100))
        said = []
        for _ in range(2):
            subprocess.run(
                [sys.executable, "-m", "layerstore", "load", "-i", archive],
                env=empty.environment, stderr=slave, stdout=subprocess.DEVNULL, check=True,
            )  # fmt: skip
            said.append(os.read(master, 1 << 16).decode())
        os.close(slave)
        os.close(master)
        assert "100%" in said[0] and said[0].count("already stored") == 1  # that the two images share
        assert len(said[1].splitlines()) == said[1].count("already stored") == 4

    def test_gc(self, cli: Cli) -> None:
        assert cli("gc") == "0 contents dropped, 0B given back\n"
        cli("rmi", "plain:1", "box:1")
        assert cli("gc").endswith("given back\n")
        assert cli("gc") == "0 contents dropped, 0B given back\n"


LOOKED_AT = [
    Entry("dir", "etc", mode=0o755, mtime=(1, 0)),
    Entry("file", "etc/.dot", data=b"dot\n", mode=0o4640, uid=1000, gid=20, mtime=(1_700_000_000, 5)),
    Entry("file", "etc/large", data=bytes(3_000_000), mtime=(-1, 0)),
    Entry("symlink", "etc/to", link=".dot", mode=0o777),
    Entry("symlink", "conf", link="etc", mode=0o777),
    Entry("char", "null", device=(1, 3), mode=0o666),
    Entry("file", "esc\x1b[2J", data=b"\xff\0", xattrs={"user.a": b"\xfe"}),
    Entry("file", "\udcff"),
]


class TestLooking:
    @pytest.fixture
    def cli(self, tmp_path: Path) -> Cli:
        (tmp_path / "image.tar").write_bytes(write_tar(LOOKED_AT))
        with Store(tmp_path / "store", create=True) as store:
            store.import_rootfs(tmp_path / "image.tar", "box:1")
        return Cli(tmp_path / "store")

    def bytes_of(self, cli: Cli, *args: str) -> tuple[int, bytes, bytes]:
        command = [sys.executable, "-m", "layerstore", *args]
        done = subprocess.run(command, env=cli.environment, capture_output=True)
        return done.returncode, done.stdout, done.stderr

    def test_ls(self, cli: Cli) -> None:
        assert self.bytes_of(cli, "ls", "box:1") == (0, b"conf\nesc\x1b[2J\netc\nnull\n\xff\n", b"")
        for path in ("/etc", "conf", "/conf/../etc/"):
            assert cli("ls", "box:1", path) == ".dot\nlarge\nto\n"
        assert cli("ls", "box:1", "/etc/to") == "/etc/to\n"

    def test_names_come_out_as_they_are_in_every_locale(self, cli: Cli) -> None:
        with Store(cli.environment["LAYERSTORE_ROOT"]) as store:
            store.import_rootfs(io.BytesIO(write_tar([Entry("file", "é")])), "box:2")
        cli.environment |= {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
        assert self.bytes_of(cli, "ls", "box:2") == (0, "é\n".encode(), b"")
        assert self.bytes_of(cli, "layers", "box:2", "--changes", "0") == (0, "A /\nA /é\n".encode(), b"")
        assert self.bytes_of(cli, "ls", "box:2", "é") == (0, "é\n".encode(), b"")

    def test_ls_long(self, cli: Cli) -> None:
        assert cli("ls", "-l", "box:1", "/etc").splitlines() == [
            "-rwSr----- 1 1000 20       4 2023-11-14 22:13:20 0 .dot",
            "-rw-r--r-- 1    0  0 3000000 1969-12-31 23:59:59 0 large",
            "lrwxrwxrwx 1    0  0       4 1970-01-01 00:00:00 0 to -> .dot",
        ]
        assert cli("ls", "-l", "box:1", "/conf") == "lrwxrwxrwx 1 0 0 3 1970-01-01 00:00:00 0 /conf -> etc\n"
        assert cli("ls", "-l", "box:1", "/null") == "crw-rw-rw- 1 0 0 1, 3 1970-01-01 00:00:00 0 /null\n"
        assert cli("ls", "-l", "box:1", "/conf/").count("\n") == 3

    def test_a_time_that_no_calendar_has(self) -> None:
        from layerstore.cli import ls

        assert ls._time(2**63 * 10**9 - 1) == f"@{2**63 - 1}"

    def test_ls_recursive(self, cli: Cli) -> None:
        assert cli("ls", "-R", "box:1", "etc") == "etc:\n.dot\nlarge\nto\n"
        status, out, _ = self.bytes_of(cli, "ls", "-R", "box:1")
        assert (status, out.split(b"\n\n")[1]) == (0, b"/etc:\n.dot\nlarge\nto\n")

    def test_ls_json(self, cli: Cli) -> None:
        (found,) = cli.json("ls", "box:1", "/conf/to")
        assert (found["path"], found["mode"], found["size"], found["target"]) == ("/etc/.dot", 0o104640, 4, None)
        assert found["name"] == "/conf/to"
        assert [entry["name"] for entry in cli.json("ls", "box:1", "/conf")] == [".dot", "large", "to"]
        assert found["mtime_ns"] == 1_700_000_000_000_000_005
        assert [entry["path"] for entry in cli.json("ls", "box:1", "-R")][-3:] == ["/etc/.dot", "/etc/large", "/etc/to"]
        odd = next(entry for entry in cli.json("ls", "box:1") if "esc" in str(entry["path"]))
        assert odd["xattrs"] == {"user.a": "fe"}

    @pytest.mark.parametrize(
        "command", [("ls", "box:1"), ("layers", "box:1", "--changes", "0"), ("diff", "plain:1", "box:1")]
    )
    def test_a_name_is_no_order_to_a_terminal(self, cli: Cli, command: tuple[str, ...]) -> None:
        with Store(cli.environment["LAYERSTORE_ROOT"]) as store:
            store.import_rootfs(io.BytesIO(write_tar([Entry("file", "f")])), "plain:1")
        parent, child = pty.openpty()
        subprocess.run([sys.executable, "-m", "layerstore", *command], env=cli.environment, stdout=child, check=True)
        os.close(child)
        shown = b""
        with contextlib.suppress(OSError):  # EIO at the end
            while piece := os.read(parent, 65536):
                shown += piece
        os.close(parent)
        assert b"esc [2J" in shown
        assert b"\x1b" not in shown
        assert b"\x1b" in self.bytes_of(cli, *command)[1]

    def test_an_empty_path(self, cli: Cli) -> None:
        for command in ("ls", "cat"):
            said = f"layerstore {command}: '': No such file or directory\n".encode()
            assert self.bytes_of(cli, command, "box:1", "") == (1, b"", said)

    def test_cat(self, cli: Cli) -> None:
        status, out, said = self.bytes_of(cli, "cat", "box:1", "/etc/to", "esc\x1b[2J", "/etc/large", "conf/.dot")
        assert (status, said) == (0, b"")
        assert out == b"dot\n\xff\0" + bytes(3_000_000) + b"dot\n"

    def test_cat_goes_on(self, cli: Cli) -> None:
        assert self.bytes_of(cli, "cat", "box:1", "/etc", "/etc/to", "nope", "/null", "/etc/to/x") == (
            1,
            b"dot\n",
            b"layerstore cat: /etc: Is a directory\nlayerstore cat: nope: No such file or directory\n"
            b"layerstore cat: /null: No such device or address\nlayerstore cat: /etc/to/x: Not a directory\n",
        )


class TestContainers:
    def test_create_ps_rm(self, cli: Cli) -> None:
        ids = cli("create", "--count", "3", "plain:1").split()
        named = cli("create", "--name", "web", "plain:1").strip()
        assert all(len(one) == 64 for one in ids)
        rows = cli.json("ps", "-a")
        assert rows[0]["CONTAINER ID"] == named
        assert {row["STATUS"] for row in rows} == {"created"}
        assert cli("ps", "-aq").split() == [row["CONTAINER ID"] for row in rows]
        line = cli("ps", "-a").splitlines()[1]
        assert line.startswith(named[:12]) and line.endswith("web")
        assert cli("rm", "web", ids[0][:20]).split() == [named, ids[0]]
        cli("create", "--name", "web", "plain:1")
        assert "'web'" in cli("create", "--name", "web", "plain:1", status=1)
        assert set(cli("rm", "--all").split()) >= set(ids[1:])
        assert cli.json("ps", "-a") == []

    def test_ps_as_docker_has_it(self, cli: Cli) -> None:
        first, second = (cli("create", "--name", name, "plain:1").strip() for name in ("first", "second"))
        third = cli("create", "box:1").strip()
        assert cli("ps", "-q") == ""
        assert cli("ps", "-lq") == f"{third}\n"
        assert cli("ps", "-qn", "2").split() == [third, second]
        assert cli("ps", "-qn", "9").split() == cli("ps", "-qa").split() == [third, second, first]
        assert "at least 1" in cli("ps", "-n", "0", status=1)
        line = cli("ps", "-a", "--no-trunc").splitlines()[1]
        assert line.startswith(third) and "Created" in line
        assert cli.json("ps", "-as")[0]["SIZE"] > 0
        for filters, found in (
            (["name=^fir"], [first]),
            (["name=first", "name=sec"], [second, first]),
            (["name=first", "ancestor=box:1"], []),
            (["ancestor=box:1"], [third]),
            ([f"id={second[:20]}"], [second]),
            (["status=created"], [third, second, first]),
            (["status=exited"], []),
        ):
            given = [word for text in filters for word in ("--filter", text)]
            assert cli("ps", "-aq", *given).split() == found
        assert cli("ps", "-q", "-f", "name=first") == ""
        assert "status=" in cli("ps", "-f", "nothing=1", status=1)
        assert "name=(" in cli("ps", "-f", "name=(", status=1)

    @runs
    def test_ps_tells_how_programs_ended(self, cli: Cli) -> None:
        cli("run", "--name", "ended", "box:1", "sh", "-c", "exit 3", status=3)
        one = cli("run", "-d", "--name", "left", "box:1", "sleep", "100").strip()
        assert cli("ps", "-q") == f"{one}\n"
        assert re.search(r"Up (\d+ seconds?|just now)  ", cli("ps"))
        assert re.search(r"Exited \(3\) (\d+ seconds? ago|just now)  ", cli("ps", "-a"))
        assert cli.json("ps", "-f", "status=exited")[0]["EXIT STATUS"] == 3
        assert [row["NAME"] for row in cli.json("ps", "-f", "exited=3", "-f", "exited=4")] == ["ended"]
        assert cli.json("ps", "-f", "exited=4") == []
        cli("stop", "-t", "0", one)
        assert "Exited (137)" in cli("ps", "-a", "-f", "name=left")
        assert cli("ps", "-q") == ""
        cli("rm", "-a")

    @runs
    def test_start_what_was_created(self, cli: Cli, tmp_path: Path) -> None:
        (tmp_path / "shown").write_text("text\n")
        script = "echo $A $(pwd); cat /v/shown; touch /new 2>/dev/null || exit 4"
        options = ("-e", "A=b", "-w", "/tmp", "-v", f"{tmp_path}:/v:ro", "--read-only", "-m", "64m")
        one = cli("create", "--name", "one", *options, "box:1", "sh", "-c", script).strip()
        assert cli.json("ps", "-a")[0]["STATUS"] == "created"
        for name in ("one", one[:12]):
            assert cli("start", name) == f"{name}\n"
            assert cli("wait", "one") == "4\n"
        assert cli("logs", "one").count("b /tmp\ntext\n") == 2
        cli("create", "--name", "own", "box:1")
        cli("mount", "own")
        cli("exec", "own", "true")
        assert cli("ps", "-q", "-f", "name=own") != ""  # without its program
        cli("start", "own")
        assert cli("wait", "own") == "3\n"  # as the image's own command
        (Path(cli.root) / "containers" / one / "start.json").write_bytes(b"")
        assert "lost with power" in cli("start", "one", status=1)
        cli("rm", "-a")

    @runs
    def test_start_what_was_run(self, cli: Cli) -> None:
        cli("run", "--name", "one", "-e", "A=3", "box:1", "sh", "-c", "echo out; exit $A", status=3)
        cli("run", "-d", "--name", "two", "--network", "host", "box:1", "sleep", "1051")
        cli("start", "one", "two")
        assert cli("wait", "one") == "3\n"
        assert cli("logs", "one") == "out\n"
        cli("stop", "-t", "0", "two")
        cli("start", "two")
        assert cli("exec", "two", "ls", "/sys/class/net").split() != ["lo"]
        cli("rm", "-f", "one", "two")

    def test_create_refuses_what_cannot_be_started(self, cli: Cli) -> None:
        assert "lots" in cli("create", "-m", "lots", "plain:1", "true", status=1)
        assert "driver" in cli("create", "--driver", "extent", "plain:1", "true", status=1)
        assert "exec -i -t" in cli("create", "-i", "plain:1", "true", status=1)
        assert "exec -i -t" in cli("run", "-d", "-t", "plain:1", "true", status=125)
        assert cli.json("ps", "-a") == []

    def test_rename(self, cli: Cli) -> None:
        one, _ = cli("create", "--name", "one", "plain:1").strip(), cli("create", "--name", "two", "plain:1")
        assert cli("rename", "one", "other") == ""
        assert cli("rename", "other", "other") == ""
        assert cli("ps", "-aq", "-f", "name=other") == f"{one}\n"
        assert "no container" in cli("rename", "one", "three", status=1)
        assert "'two'" in cli("rename", "other", "two", status=1)
        assert "not a name" in cli("rename", "other", "/x", status=1)
        with Store(cli.root) as store:
            container = store.container("other")
            container.set_name("one")
            assert container.name == "one" == store.container(one).name

    def test_a_container_named_twice(self, cli: Cli) -> None:
        one = cli("create", "plain:1").strip()
        cli("rm", one, one[:10])
        assert cli.json("ps", "-a") == []

    def test_diff(self, cli: Cli) -> None:
        one = cli("create", "plain:1").strip()
        assert cli("diff", one) == ""
        with Store(cli.root) as store:
            upper = Path(store.container(one).inspect()["Upper"])
        (upper / os.fsdecode(b"\xff")).write_bytes(b"")
        (upper / "etc").mkdir()
        (upper / "etc/new").write_bytes(b"x")
        assert cli.json("diff", one)[:2] == [{"kind": "C", "path": "/etc"}, {"kind": "A", "path": "/etc/new"}]
        command = [sys.executable, "-m", "layerstore", "diff", one]
        for encoding in ("utf-8:surrogateescape", "utf-8:strict"):  # as of the locales C and de_DE.UTF-8
            environment = {**cli.environment, "PYTHONIOENCODING": encoding}
            done = subprocess.run(command, env=environment, capture_output=True)
            assert (done.returncode, done.stdout) == (0, b"C /etc\nA /etc/new\nA /\xff\n"), done.stderr

    @root_only
    def test_mount_and_umount(self, cli: Cli) -> None:
        ids = cli("create", "--count", "2", "plain:1").split()
        roots = cli("mount", *ids).splitlines()
        assert [Path(root).parent.name for root in roots] == ids
        assert (Path(roots[1]) / "second").read_bytes() == b"2"
        assert {row["STATUS"] for row in cli.json("ps", "-a")} == {"mounted"}
        with open(Path(roots[0]) / "second"):
            text = cli("umount", "-a", status=1)
            assert text.startswith("layerstore umount: ") and "force" in text
            cli("umount", "--force", "--all")
        assert mounts_below(cli.root) == []

    @runs
    def test_run(self, cli: Cli, tmp_path: Path) -> None:
        assert cli("run", "--rm", "box:1", "echo", "-n", "hello") == "hello"
        assert cli("run", "--rm", "-i", "box:1", "cat", stdin=b"through") == "through"
        assert cli("run", "--rm", "box:1", "cat", stdin=b"not through") == ""
        assert (
            cli("run", "--rm", "-e", "X=1", "-u", "12:13", "-w", "/tmp", "box:1", "sh", "-c", "echo $X $A; id -u; pwd")
            == "1 image\n12\n/tmp\n"
        )
        assert cli("run", "--rm", "--entrypoint", "/bin/echo", "box:1", "a") == "a\n"
        (tmp_path / "f").write_text("host\n")
        assert cli("run", "--rm", "-v", f"{tmp_path}:/v:ro", "box:1", "cat", "/v/f") == "host\n"
        assert cli("run", "--rm", "box:1", status=3) == ""
        assert cli.json("ps", "-a") == []

    @runs
    def test_run_is_confined_unless_loosened(self, cli: Cli) -> None:
        def shown(field: str, *options: str) -> str:
            script = f'while read name value; do [ "$name" = {field}: ] && echo $value; done </proc/self/status; :'
            return cli("run", "--rm", *options, "box:1", "sh", "-c", script).strip()

        assert shown("Seccomp") == "2"
        assert shown("Seccomp", "--security-opt", "seccomp=unconfined") == shown("Seccomp", "--privileged") == "0"
        assert shown("NoNewPrivs", "--security-opt", "no-new-privileges") == "1"
        default = int(shown("CapEff"), 16)
        changed = int(shown("CapEff", "--cap-add", "NET_ADMIN", "--cap-drop", "CHOWN"), 16)
        assert default ^ changed == 1 << 12 | 1 << 0
        assert cli("run", "--rm", "--device", "/dev/fuse:/dev/x", "box:1", "ls", "/dev/x") == "/dev/x\n"
        assert cli("run", "--rm", "box:1", "ls", "/sys/class/net").split() == ["lo"]
        assert "lo" in cli("run", "--rm", "--network", "host", "box:1", "ls", "/sys/class/net").split()
        fork = "sleep 0 & sleep 0 & sleep 0 & sleep 0 & wait; echo all"
        assert "all" not in cli("run", "--rm", "--pids-limit", "3", "box:1", "sh", "-c", fork, status=2)
        assert cli("run", "--rm", "--cgroups", "disabled", "box:1", "sh", "-c", fork) == "all\n"

    @runs
    def test_run_keeps_the_container(self, cli: Cli) -> None:
        cli("run", "--name", "kept", "box:1", "touch", "/made")
        assert cli("diff", "kept") == "A /made\n"
        assert cli.json("ps", "-a")[0]["COMMAND"] == ["touch", "/made"]
        assert "kept" in cli("run", "--name", "kept", "box:1", "true", status=125)

    @runs
    def test_run_detached(self, cli: Cli) -> None:
        one = cli("run", "-d", "box:1", "sleep", "100").strip()
        assert cli.json("ps")[0]["STATUS"] == "running"
        assert "running" in cli("rm", one, status=1)
        assert "running" in cli("umount", one, status=1)
        assert cli("rm", "-f", one).strip() == one
        assert cli.json("ps", "-a") == []

    @runs
    def test_what_is_kept_of_a_program_that_is_left_running(self, cli: Cli) -> None:
        one = cli("run", "-d", "--name", "kept", "box:1", "sh", "-c", "echo out; exit 3").strip()
        assert cli("wait", "kept", one) == "3\n3\n"
        assert cli("logs", one) == "out\n"
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\S+Z out\n", cli("logs", "-t", "--tail", "2", "kept"))
        assert cli("logs", "--since", "2999-01-01T00:00:00.123456789Z", "kept") == ""
        assert "not a time" in cli("logs", "--since", "then", "kept", status=2)
        cli("rm", "kept")

    @runs
    def test_how_much_is_kept(self, cli: Cli) -> None:
        options = ("--log-opt", "max-size=20k", "--log-opt", "max-file=2")
        script = "busybox seq 1 5000; echo end; exit 3"

        def kept() -> int:
            assert cli("wait", "one") == "3\n"
            assert cli("logs", "--tail", "1", "one") == "end\n"
            return sum(path.stat().st_size for path in (Path(cli.root) / "containers" / one).glob("log*"))

        one = cli("run", "-d", "--name", "one", *options, "box:1", "sh", "-c", script).strip()
        assert 16 << 10 < kept() <= 40 << 10
        cli("exec", "one", "true")  # which lives without a program, and so without its log
        cli("start", "one")
        assert 16 << 10 < kept() <= 40 << 10
        assert cli("run", "--rm", *options, "box:1", "echo", "seen") == "seen\n"
        for wrong in ("max-size=lots", "max-file=2", "max-file=x", "compress=true"):
            assert "max-size" in cli("create", "--log-opt", wrong, "box:1", status=1)
        for size in ("31k", "32768p"):
            assert "from 32k to 1024p" in cli("create", "--log-opt", f"max-size={size}", "box:1", status=1)
        assert cli("ps", "-aq") == f"{one}\n"

    @runs
    def test_what_an_agent_does_with_a_container(self, cli: Cli) -> None:
        cli("run", "-d", "--name", "agent", "-w", "/tmp", "--rm", "box:1", "sleep", "2h")
        assert cli("exec", "-w", "/etc", "-e", "K=V", "agent", "sh", "-c", "pwd; echo $K") == "/etc\nV\n"
        cli("stop", "-t", "0", "agent")
        assert cli.json("ps", "-a") == []

    @runs
    def test_a_life(self, cli: Cli) -> None:
        one = cli("create", "--name", "one", "-e", "A=b", "box:1", "sh", "-c", "echo $A; exec sleep 1036").strip()
        assert cli("start", "one") == "one\n"
        wait_for(lambda: cli("logs", "one") == "b\n")
        assert "Up" in cli("ps")
        assert "sleep 1036" in cli("top", "one")
        assert "CONTAINER ID" in cli("stats", "--no-stream")
        assert cli("pause", "one") == "one\n"
        assert "(Paused)" in cli("ps")
        assert "paused" in cli("exec", "one", "true", status=125)
        assert cli("unpause", one[:12]) == f"{one[:12]}\n"
        assert cli("rename", "one", "two") == ""
        assert cli("kill", "-s", "KILL", "two") == "two\n"
        assert cli("wait", "two") == "137\n"
        assert "Exited (137)" in cli("ps", "-a", "--no-trunc")
        assert cli("ps", "-q", "--filter", "status=exited") == f"{one}\n"
        assert cli("ps", "-q", "--filter", "status=running") == ""
        assert cli("ps", "-q", "-l", "--filter", "exited=137", "-f", "name=tw", "-f", "ancestor=box:1") == f"{one}\n"
        assert "--filter" in cli("ps", "--filter", "nothing", status=1)
        assert cli.json("ps", "-a", "-s")[0]["EXIT STATUS"] == 137
        assert "no signal" in cli("kill", "-s", "NONE", "two", status=2)

    @runs
    def test_attached(self, cli: Cli) -> None:
        script = "trap 'echo asked; exit 6' TERM; while :; do echo goes; sleep 0.01; done"
        cli("run", "-d", "--name", "one", "box:1", "sh", "-c", script)
        command = [sys.executable, "-m", "layerstore", "attach", "one"]
        with subprocess.Popen(command, env=cli.environment, stdout=subprocess.PIPE, text=True) as attached:
            assert attached.stdout is not None
            first = attached.stdout.readline()
            attached.send_signal(signal.SIGTERM)
            rest = attached.stdout.read()
        assert (first, rest.splitlines()[-1]) == ("goes\n", "asked")
        assert attached.returncode == 6
        assert "nothing runs" in cli("attach", "one", status=1)

    @runs
    def test_attached_to_one_that_is_removed_with_its_end(self, cli: Cli) -> None:
        """Also where whoever reads the output is slower than the removal."""
        script = "while ! test -e /go; do echo goes; sleep 0.01; done; busybox seq 1 50000; exit 5"
        cli("run", "-d", "--rm", "--name", "one", "box:1", "sh", "-c", script)
        command = [sys.executable, "-m", "layerstore", "attach", "one"]
        with subprocess.Popen(command, env=cli.environment, stdout=subprocess.PIPE, text=True) as attached:
            assert attached.stdout is not None
            assert attached.stdout.readline() == "goes\n"
            cli("exec", "one", "touch", "/go")
            wait_for(lambda: cli("ps", "-aq") == "")
            assert attached.stdout.read().splitlines()[-1] == "50000"
        assert attached.returncode == 5

    @runs
    def test_started_and_attached(self, cli: Cli) -> None:
        script = "echo begins; echo err >&2; test -e /once && exit 4; touch /once; trap 'echo asked; exit 6' INT; "
        cli("create", "--name", "one", "box:1", "sh", "-c", f"{script} echo goes; while :; do sleep 0.01; done")
        command = [sys.executable, "-m", "layerstore", "start", "-a", "one"]
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        with subprocess.Popen(command, env=cli.environment, text=True, **streams) as attached:
            assert attached.stdout is not None and attached.stderr is not None
            assert [attached.stdout.readline() for _ in "12"] == ["begins\n", "goes\n"]
            attached.send_signal(signal.SIGINT)
            assert attached.stdout.read() == "asked\n"
            assert attached.stderr.read() == "err\n"
        assert attached.returncode == 6
        # What was printed before is not shown again.
        assert subprocess.run(command, env=cli.environment, capture_output=True).stdout == b"begins\n"
        assert cli("start", "--attach", "one", status=4) == "err\n"
        cli("create", "--name", "two", "box:1", "nothing")
        assert "not found" in cli("start", "-a", "two", status=127)
        assert "one container" in cli("start", "-a", "one", "two", status=1)

    @runs
    def test_run_failures_leave_no_container(self, cli: Cli) -> None:
        assert "no command" in cli("run", "plain:1", status=125)
        assert "alice" in cli("run", "-u", "alice", "box:1", "true", status=125)
        assert "TTY" in cli("run", "-t", "box:1", "true", status=125)
        assert cli.json("ps", "-a") == []

    @runs
    @pytest.mark.parametrize(
        ("program", "status"),
        [("/no/such", 127), ("nosuch", 127), ("/etc/passwd/x", 127), ("/etc/passwd", 126), ("/etc", 126)],
    )
    def test_a_program_that_cannot_be_started(self, cli: Cli, program: str, status: int) -> None:
        """As docker: 127 for one that is not there, 126 for one that cannot be executed; no container is left."""
        for command in (["--rm"], [], ["-d"]):
            assert f'exec: "{program}": ' in cli("run", *command, "box:1", program, status=status)
        assert cli.json("ps", "-a") == []
