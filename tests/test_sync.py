"""Syncing images to another store: what arrives, what is sent for it, and what is left when it fails."""

import contextlib
import os
import pty
import re
import resource
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from images import Image, oci_files, write_directory
from layer_model import Entry, write_tar
from syncing import LARGE, ROOT, cut_after, image, layerstore_in, left_in, load, require, stand_in, state_of, version

from layerstore import Progress, Store, Synced
from layerstore.cold import encoding
from layerstore.errors import CorruptError, InvalidInput, LimitExceeded, NotFound, SyncError
from layerstore.store.locks import garbage_alone
from layerstore.sync import channel as channels
from layerstore.sync import destinations
from layerstore.sync.channel import GREETING, Channel

SYNC_PAGE = ROOT / "docs/format/sync.md"


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """The directory of the other store."""
    return tmp_path / "other"


def synced(store: Store, other: Path, *images: Image | int) -> Synced:
    """What a sync of images says, which are there afterwards, bit for bit."""
    made = [image(each) if isinstance(each, int) else each for each in images]
    done = store.sync([each.id for each in made], other)
    assert done.images == [each.id for each in made]
    with Store(other) as there:
        for each in made:
            require(there, each)
        assert there.check().is_clean
    return done


class TestArrives:
    def test_in_a_new_store(self, store: Store, other: Path) -> None:
        load(store, 1, 2)
        done = synced(store, other, 1, 2)
        assert done.layers == 3
        assert done.contents > 40

    def test_what_is_there_is_not_sent(self, store: Store, other: Path) -> None:
        load(store, 1)
        synced(store, other, 1)
        done = synced(store, other, 1)
        assert (done.layers, done.contents, done.content_bytes) == (0, 0, 0)
        assert done.sent_bytes < 2_000

    def test_a_new_version_takes_what_is_new_of_it(self, store: Store, other: Path) -> None:
        load(store, 1, 2)
        synced(store, other, 1)
        done = synced(store, other, 2)
        own = 2_500_000 + 8_000
        assert done.content_bytes > 12_000_000
        assert own < done.sent_bytes < own + 20_000
        assert done.received_bytes < 1_000

    def test_files_that_are_there_in_other_layers_are_not_sent(self, store: Store, other: Path) -> None:
        """Also as differences from files in layers that only the sender has."""
        load(store, 1, 2)
        whole = Image([write_tar([Entry("file", f"x/{n}", data=LARGE[n << 16 : n + 1 << 16]) for n in range(50)])])
        parts = Image([write_tar([Entry("file", f"y/{n}", data=LARGE[n << 16 : n + 1 << 16])]) for n in range(50)])
        load(store, whole, parts)
        synced(store, other, whole)
        done = synced(store, other, parts)
        assert (done.layers, done.contents) == (50, 0)
        assert done.sent_bytes < 40_000

    def test_files_in_layers_that_the_other_side_does_not_have_are_bases(
        self, store: Store, tmp_path: Path, other: Path
    ) -> None:
        """Of contents that both have, in layers that are not the same."""
        old, new = LARGE[:900_000], LARGE[:400_000] + b"new" + LARGE[400_003:900_000]
        here = Image([write_tar([Entry("file", "lib/a", data=old, mtime=(1, 0))])], ["x:1"])
        there = Image([write_tar([Entry("file", "lib/a", data=old, mtime=(2, 0))])], ["x:1"])
        changed = Image([write_tar([Entry("file", "lib/a", data=new)])], ["x:2"])
        load(store, here, changed)
        with Store(other, create=True) as made:
            load(made, there)
        assert synced(store, other, changed).sent_bytes < 5_000

    def test_large_files_in_chunks(self, store: Store, other: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Such as are too large to be differences."""
        monkeypatch.setattr(encoding, "MAX_DELTA_BYTES", 2 << 20)
        load(store, 1, 2)
        synced(store, other, 1)
        done = synced(store, other, 2)
        assert 2_500_000 < done.sent_bytes < 2_500_000 + 700_000
        with Store(other) as there:
            there.freeze()
        load(store, 3)
        done = synced(store, other, 3)
        assert 2_500_000 < done.sent_bytes < 2_500_000 + 700_000

    def test_an_image_without_layers_and_one_without_files(self, store: Store, other: Path) -> None:
        none, empty = Image([], ["none:1"]), Image([write_tar([]), write_tar([Entry("dir", "a")])], ["empty:1"])
        twice = Image([version(1), version(1)], ["twice:1"])
        load(store, none, empty, twice)
        assert synced(store, other, none, empty, twice).layers == 3

    def test_in_the_same_store(self, store: Store) -> None:
        load(store, 1)
        before = state_of(store.root)
        assert synced(store, store.root, 1).contents == 0
        assert state_of(store.root) == before

    def test_with_its_manifests(self, store: Store, other: Path, tmp_path: Path) -> None:
        store.load(write_directory(oci_files([image(1)], "gzip"), tmp_path / "layout"))
        store.sync("app:1", other)
        kept = sorted(os.listdir(store.root / "blobs/sha256"))
        assert sorted(os.listdir(other / "blobs/sha256")) == kept
        assert len(kept) == 2


class TestNames:
    def test_move_as_in_a_load(self, store: Store, other: Path) -> None:
        load(store, 1, 2)
        with Store(other, create=True) as there:
            load(there, 1)
            there.tag(image(1).id, "app:2")
        store.sync("app:2", other)
        with Store(other) as there:
            assert there.image("app:2").id == image(2).id
            assert there.image("app:1").names == ["app:1", "example.com/app:1"]

    def test_an_image_without_any(self, store: Store, other: Path) -> None:
        nameless = Image([version(1)])
        load(store, nameless)
        synced(store, other, nameless)


class TestFrozen:
    def test_images_are_sent_as_they_are(self, store: Store, other: Path) -> None:
        load(store, 1, 2)
        store.freeze()
        before = state_of(store.root)
        synced(store, other, 1, 2)
        assert state_of(store.root) == before

    def test_images_there_are_differed_from(self, store: Store, other: Path) -> None:
        load(store, 1, 2)
        synced(store, other, 1)
        with Store(other) as there:
            there.freeze()
        assert synced(store, other, 2).sent_bytes < 2_550_000
        with Store(other) as there:
            require(there, 1)
            there.freeze()
            require(there, 2)


class TestOverSsh:
    @pytest.fixture
    def directory(self, tmp_path: Path) -> Path:
        directory = tmp_path / "the other's"
        directory.mkdir()
        return directory

    @pytest.fixture
    def program(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
        for name, value in stand_in(tmp_path).items():
            monkeypatch.setenv(name, value)
        return layerstore_in(tmp_path)

    def test_as_into_a_directory(self, store: Store, directory: Path, program: str, tmp_path: Path) -> None:
        load(store, 1, 2)
        seen: list[Progress] = []
        url = f"ssh://somebody@example.com:2222{directory}/a store; exit 1"
        store.sync("app:1", url, program=program)
        done = store.sync("app:2", url, program=program, progress=seen.append)
        assert done.layers == 1
        assert done.sent_bytes < 2_550_000
        with Store(directory / "a store; exit 1") as there:
            require(there, 1)
            require(there, 2)
        asked = (tmp_path / "asked").read_text().splitlines()
        assert asked[:4] == ["-p", "2222", "--", "somebody@example.com"]
        for stage in ("compare", "send", "import"):
            told = [each for each in seen if each.stage == stage]
            assert told, stage
            assert sorted(each.done_bytes for each in told) == [each.done_bytes for each in told]
            assert told[-1].done_bytes == (told[-1].total_bytes or told[-1].done_bytes)

    def test_the_store_that_is_used_there(
        self, store: Store, other: Path, program: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        load(store, 1)
        monkeypatch.setenv("LAYERSTORE_ROOT", str(other))
        store.sync("app:1", "ssh://example.com", program=program)
        with Store(other) as there:
            require(there, 1)

    def test_limits_are_those_of_the_store(self, store: Store, other: Path, program: str) -> None:
        load(store, 1)
        limits = store.limits.changed({"layer_bytes": 100_000})
        told = r"ssh://example.com.*: .*layer_bytes"
        with Store(store.root, limits=limits) as strict, pytest.raises(LimitExceeded, match=told):
            strict.sync("app:1", f"ssh://example.com{other}", program=program)

    @pytest.mark.parametrize(
        ("lines", "told"),
        [
            ("echo Welcome!", "says b'Welcome!"),
            ("exit 0", "has ended before all was said"),
            ("exec sh -c 'nonesuch'", "ended with status 127"),
            (cut_after(100), "has ended before"),
        ],
    )
    def test_what_is_no_layerstore(
        self, store: Store, other: Path, program: str, tmp_path: Path, lines: str, told: str
    ) -> None:
        load(store, 1)
        stand_in(tmp_path, lines)
        with pytest.raises(SyncError, match=told):
            store.sync("app:1", f"ssh://example.com{other}", program=program)

    def test_without_ssh(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        load(store, 1)
        monkeypatch.setenv("LAYERSTORE_SSH", "/nonexistent/ssh -q")
        with pytest.raises(SyncError, match="/nonexistent/ssh"):
            store.sync("app:1", "ssh://example.com/x")

    def test_goes_on_where_the_connection_broke(self, store: Store, other: Path, program: str, tmp_path: Path) -> None:
        """Also in another process."""
        load(store, 1)
        url = f"ssh://example.com{other}"
        stand_in(tmp_path, cut_after(4_000_000))
        command = [sys.executable, "-m", "layerstore", "--root", str(store.root), "sync", "--program", program]
        assert subprocess.run([*command, "app:1", url], env={**os.environ, "PYTHONHASHSEED": "1"}).returncode == 1
        (left,) = left_in(other)
        kept = (other / "downloads" / left).stat().st_size
        assert kept > 3_000_000
        stand_in(tmp_path)
        done = store.sync("app:1", url, program=program)
        whole = store.sync("app:1", tmp_path / "third")
        assert abs(whole.sent_bytes - done.sent_bytes - kept) < 200
        with Store(other) as there:
            require(there, 1)
        assert left_in(other) == []

    def test_commands(self, store: Store, other: Path, tmp_path: Path) -> None:
        load(store, 1, 2)
        environment = {**os.environ, **stand_in(tmp_path)}
        sync = [sys.executable, "-m", "layerstore", "--root", str(store.root), "sync"]
        to = ["--program", layerstore_in(tmp_path), "app:1", "app:2", f"ssh://example.com{other}"]
        done = subprocess.run([*sync, *to], env=environment, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith("2 images synced: 3 layers and ")
        with Store(other) as there:
            require(there, 2)
        done = subprocess.run([*sync, "nonesuch:1", str(other)], env=environment, capture_output=True, text=True)
        assert done.returncode == 1
        assert "no image 'nonesuch:1'" in done.stderr

    def test_a_command_that_nobody_speaks_to(self, other: Path) -> None:
        command = [sys.executable, "-m", "layerstore", "--root", str(other), "receive"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True)
        assert (done.returncode, done.stderr) == (1, b"")  # it could say why
        assert done.stdout.startswith(b"layerstore sync 1\n")

    def test_a_terminal_is_told(self, other: Path) -> None:
        terminal, here = pty.openpty()
        command = [sys.executable, "-m", "layerstore", "--root", str(other), "receive"]
        try:
            environment = {**os.environ, "PYTHONPATH": str(ROOT)}
            done = subprocess.run(command, env=environment, stdin=here, capture_output=True, text=True)
        finally:
            os.close(terminal)
            os.close(here)
        assert (done.returncode, done.stdout) == (1, "")
        assert "`layerstore sync` runs it" in done.stderr


class TestDestinations:
    @pytest.mark.parametrize(
        ("text", "host", "port", "root"),
        [
            ("ssh://host", "host", "", ""),
            ("ssh://me@host.example:22/a b/c", "me@host.example", "22", "/a b/c"),
            ("ssh://[::1]:2022/x/", "::1", "2022", "/x"),
            ("ssh://host/", "host", "", ""),
        ],
    )
    def test_of_another_machine(self, text: str, host: str, port: str, root: str) -> None:
        assert destinations.parse_destination(text) == destinations.Remote(host, port, root)

    @pytest.mark.parametrize("text", ["a/directory", "/a/directory", "host:/x", "ssh:/x", "a b://x", "-x"])
    def test_in_a_directory(self, text: str) -> None:
        assert destinations.parse_destination(text) is None

    @pytest.mark.parametrize(
        "text",
        [
            *("ssh://", "ssh:///x", "ssh://host:/x", "ssh://host:999999/x", "ssh://me@/x", "http://host/x"),
            *("ssh://-oProxyCommand=x/y", "ssh://-l@host/x", "ssh://me@-host/x", "ssh://host/a\nb", "ssh://a@b@c/x"),
        ],
    )
    def test_that_is_none(self, text: str) -> None:
        with pytest.raises(InvalidInput, match="destination"):
            destinations.parse_destination(text)

    def test_a_directory_that_is_no_store(self, store: Store, tmp_path: Path) -> None:
        load(store, 1)
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / "file").touch()
        with pytest.raises(InvalidInput, match="not empty"):
            store.sync("app:1", tmp_path / "mine")

    def test_no_such_image(self, store: Store, other: Path) -> None:
        with pytest.raises(NotFound, match="no image"):
            store.sync("app:1", other)
        assert not other.exists()


class Stop(Exception):
    pass


def interrupted(store: Store, other: Path) -> Path:
    """Load the first image, and sync it until more than 3 MiB were sent; returns what is left of that."""
    load(store, 1)

    def stop(progress: Progress) -> None:
        if progress.stage == "send" and progress.done_bytes > 3 << 20:
            raise Stop

    with pytest.raises(Stop):
        store.sync("app:1", other, progress=stop)
    (left,) = left_in(other)
    return other / "downloads" / left


class TestFails:
    @pytest.mark.parametrize("stage", ["compare", "send", "import"])
    def test_nothing_is_visible(self, store: Store, other: Path, stage: str) -> None:
        load(store, 1, 2)
        store.sync("app:1", other)

        def stop(progress: Progress) -> None:
            if progress.stage == stage and progress.done_bytes != progress.total_bytes:
                raise Stop

        with Store(other, create=True) as there:
            load(there, Image([version(7)], ["seven:7"]))
        before = state_of(other)
        with pytest.raises(Stop):
            store.sync("app:2", other, progress=stop)
        if stage != "import":  # by when all was said
            assert state_of(other) == before
            assert len(left_in(other)) == (stage == "send")
        synced(store, other, 2)
        assert left_in(other) == []

    def test_what_was_sent_is_not_sent_again(self, store: Store, other: Path, tmp_path: Path) -> None:
        path = interrupted(store, other)
        kept = path.stat().st_size
        assert kept > 3 << 20
        whole = store.sync("app:1", tmp_path / "third").sent_bytes
        assert abs(whole - synced(store, other, 1).sent_bytes - kept) < 200

    @pytest.mark.parametrize("spoilt", ["first byte", "longer", "all"])
    def test_what_was_left_is_not_trusted(self, store: Store, other: Path, spoilt: str) -> None:
        path = interrupted(store, other)
        data = path.read_bytes()
        path.write_bytes({"first byte": b"x" + data[1:], "longer": bytes(50_000_000), "all": bytes(len(data))}[spoilt])
        synced(store, other, 1)

    def test_garbage_is_collected(self, store: Store, other: Path) -> None:
        interrupted(store, other)
        with Store(other) as there:
            there.collect_garbage()
        assert left_in(other) == []
        synced(store, other, 1)

    def test_killed(self, store: Store, other: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The side that receives, in the middle of what comes and while it imports."""
        load(store, 1)
        for name, value in stand_in(tmp_path, 'echo $$ >$0.pid; exec sh -c "exec $2"').items():
            monkeypatch.setenv(name, value)
        for stage in ("send", "import"):

            def kill(progress: Progress, stage: str = stage) -> None:
                if progress.stage == stage and progress.done_bytes >= 2 << 20:
                    os.kill(int((tmp_path / "ssh.pid").read_text()), signal.SIGKILL)

            with pytest.raises(SyncError, match="status -9"):
                store.sync("app:1", f"ssh://example.com{other}", program=layerstore_in(tmp_path), progress=kill)
            with Store(other) as there:
                assert there.images() == []
        assert len(left_in(other)) == 1
        synced(store, other, 1)
        assert os.listdir(other / "staging") == []

    def test_the_first_of_two_images_stays(self, store: Store, other: Path) -> None:
        load(store, 1, 2)

        def stop(progress: Progress) -> None:
            if progress.what == "app:2":
                raise Stop

        with pytest.raises(Stop):
            store.sync(["app:1", "app:2"], other, progress=stop)
        with Store(other) as there:
            require(there, 1)
            assert len(there.images()) == 1


class TestDamage:
    def spoil(self, root: Path, data: bytes) -> None:
        """Flip a bit in the object of a content."""
        from layerstore._core.hashing import blake3

        name = blake3(data).hex()
        path = root / "objects" / name[:2] / name[2:]
        path.chmod(0o600)
        spoilt = bytearray(path.read_bytes())
        spoilt[len(spoilt) // 2] ^= 1
        path.write_bytes(spoilt)

    def large(self, number: int) -> bytes:
        return LARGE[: 3_000_000 + number] + b"%d" % number + LARGE[3_000_000 + number :]

    def test_here_is_told(self, store: Store, other: Path) -> None:
        load(store, 1)
        self.spoil(store.root, self.large(1))
        with Store(store.root) as again, pytest.raises(CorruptError, match=rf"{store.root}/objects.*is damaged"):
            again.sync("app:1", other)
        with Store(other) as there:
            assert there.images() == []

    def test_of_what_is_differed_from_is_told(self, store: Store, other: Path) -> None:
        load(store, 1, 2)
        store.sync("app:1", other)
        self.spoil(other, self.large(1))
        before = state_of(other)
        with pytest.raises(CorruptError, match=rf"{other}: .*{other}/objects.*is damaged"):
            store.sync("app:2", other)
        assert state_of(other) == before
        with Store(other) as there:
            there.check(repair=True)
        assert store.sync("app:1", other).layers == 1  # what is lacking of it
        synced(store, other, 2)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> float:
    """Seconds of silence that are too many: sides say every twentieth of a second that they are there."""
    for module, name, seconds in ((channels, "ALIVE_SECONDS", 0.05), (destinations, "_END_SECONDS", 0.1)):
        monkeypatch.setattr(module, name, seconds)
    return 0.5


class TestSilence:
    """No side waits for another one without end, nor does another one take work for silence."""

    @pytest.mark.parametrize("said", ["", "printf 'layerstore sync 1\\n'; "])
    def test_of_the_side_that_receives(
        self, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, impatient: float, said: str
    ) -> None:
        load(store, 1)
        for name, value in stand_in(tmp_path, f"{said}exec sleep 600").items():
            monkeypatch.setenv(name, value)
        with pytest.raises(SyncError, match=r"ssh://example.com has said nothing for 0\.5 seconds; .*--timeout"):
            store.sync("app:1", "ssh://example.com", timeout_seconds=impatient)
        store.collect_garbage()

    @pytest.mark.parametrize("said", [b"", GREETING, GREETING + b"\x01\x05\0\0\0{"])
    def test_of_the_side_that_sends(self, other: Path, impatient: float, said: bytes) -> None:
        reading, writing = os.pipe()
        answers, there = os.pipe()
        os.write(writing, said)
        with Store(other, create=True) as store:
            assert not store.receive(reading, there, timeout_seconds=impatient)
            store.collect_garbage()
        with os.fdopen(answers, "rb") as file:
            assert b"the side that sends has said nothing for 0.5 seconds" in file.read()
        os.close(writing)

    def test_of_one_that_takes_nothing(self, impatient: float) -> None:
        reading, writing = os.pipe()
        answers, there = os.pipe()
        os.write(writing, GREETING)
        with contextlib.closing(Channel(reading, there, "the other one", impatient)) as channel:
            channel.greet()
            with pytest.raises(SyncError, match=r"the other one has taken nothing of what is said to it for 0\.5 s"):
                channel.send_data([bytes(1 << 20)])
        os.close(answers)
        os.close(writing)

    def test_work_is_none(self, store: Store, other: Path, impatient: float) -> None:
        """Of either side, and to wait for a lock."""
        load(store, 1, 2)

        def work(progress: Progress) -> None:
            if progress.stage == "compare":
                time.sleep(2 * impatient / 20)

        with Store(other, create=True) as there:
            held = threading.Event()

            def hold() -> None:
                with garbage_alone(there.layout):
                    held.set()
                    time.sleep(3 * impatient)

            holding = threading.Thread(target=hold)
            holding.start()
            held.wait()
            store.sync(["app:1", "app:2"], other, timeout_seconds=impatient, progress=work)
            holding.join()
            require(there, 2)

    def test_garbage_is_collected_while_a_pack_is_sent(self, store: Store, other: Path) -> None:
        """The side that sends has all that it needs by then."""
        load(store, 1)
        collected = []

        def collect(progress: Progress) -> None:
            if progress.stage == "send" and not collected:
                with Store(store.root) as again:
                    collected.append(again.collect_garbage())

        store.sync("app:1", other, progress=collect)
        assert collected

    @pytest.mark.parametrize("seconds", [-1, 9.9, float("nan"), float("inf")])
    def test_too_short_a_time_is_refused(self, store: Store, other: Path, seconds: float) -> None:
        load(store, 1)
        with pytest.raises(InvalidInput, match="seconds"):
            store.sync("app:1", other, timeout_seconds=seconds)
        assert not other.exists()


class TestMany:
    def test_of_more_layers_than_files_can_be_open(self, store: Store, other: Path) -> None:
        layers = [write_tar([Entry("file", f"file-{n}", data=b"%d" % n)]) for n in range(150)]
        made = Image(layers, ["many:1"])
        load(store, made)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 60, hard))
        try:
            store.sync("many:1", other)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        with Store(other) as there:
            require(there, made)

    def test_of_one_image_at_once(self, store: Store, other: Path) -> None:
        load(store, 1, 2)
        store.sync("app:1", other)
        with ThreadPoolExecutor(4) as threads:
            done = [*threads.map(lambda _: store.sync("app:2", other), range(4))]
        assert sorted(each.layers for each in done) == [0, 0, 0, 1]
        with Store(other) as there:
            require(there, 2)
            assert there.check().is_clean
        assert left_in(other) == []

    def test_of_images_with_the_same_files(self, store: Store, other: Path) -> None:
        files = [Entry("file", f"x/{n}", data=LARGE[n << 16 : n + 1 << 16]) for n in range(50)]
        images = [Image([write_tar([*files, Entry("dir", f"d{n}")])], [f"n:{n}"]) for n in range(4)]
        load(store, *images)
        with ThreadPoolExecutor(4) as threads:
            assert len([*threads.map(lambda each: store.sync(each.id, other), images)]) == 4
        with Store(other) as there:
            for each in images:
                require(there, each)
            assert there.check().is_clean

    def test_both_ways(self, store: Store, other: Path) -> None:
        load(store, 1)
        with Store(other, create=True) as there:
            load(there, 2)
            with ThreadPoolExecutor(2) as threads:
                ways = [threads.submit(store.sync, "app:1", other), threads.submit(there.sync, "app:2", store.root)]
                for way in ways:
                    way.result()
            for each in (store, there):
                require(each, 1)
                require(each, 2)

    def test_garbage_is_collected_meanwhile(self, store: Store, other: Path) -> None:
        load(store, 1, 2)
        with Store(other, create=True) as there:
            ended = threading.Event()

            def collect() -> None:
                while not ended.is_set():
                    there.collect_garbage()
                    store.collect_garbage()

            collecting = threading.Thread(target=collect)
            collecting.start()
            try:
                store.sync(["app:1", "app:2"], other)
            finally:
                ended.set()
                collecting.join()
            require(there, 2)


def test_the_page_of_what_is_said_is_of_the_version_that_is_spoken() -> None:
    (version,) = re.findall(r"^# What the two sides of a sync say, version (\d+)", SYNC_PAGE.read_text(), re.MULTILINE)
    assert f"layerstore sync {version}\n".encode() == GREETING


def test_a_side_that_hears_nothing_says_so(store: Store) -> None:
    reading, writing = os.pipe()
    os.close(writing)
    back, there = os.pipe()
    os.close(back)
    with pytest.raises(SyncError, match="has ended"):
        store.receive(reading, there)
