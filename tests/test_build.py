"""Builds: the cache, stages, RUN and its mounts, failures, interrupts. Docker judges in tests/test_build_judges.py."""

import errno
import fcntl
import gzip
import json
import lzma
import os
import random
import re
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import images
import pytest
import tarbytes
from cases import case
from contexts import tar_bytes, tree_of, write_context
from images import Image as MadeImage
from images import docker_files, tar_of, zstd_chunked
from meddling import ALWAYS, Meddling
from registries import Registry, put_image
from stack_model import EXAMPLES
from test_build_judges import BASE, TRIGGERS
from test_cli import Cli
from test_containers import mounts_below

from layerstore import BuildEvent, Image, Store, Volume
from layerstore.building import hostfiles
from layerstore.building.context import open_context
from layerstore.building.hostfiles import HostFile
from layerstore.errors import (
    BuildFailed,
    Conflict,
    InvalidInput,
    LayerstoreError,
    LimitExceeded,
    NotFound,
    ProgramNotFound,
)
from layerstore.layers import imports
from layerstore.store import reflink
from layerstore.store.sealed import sealed, unsealed

ROOT = Path(__file__).parent.parent
EPOCH = 1_700_000_000


class Workplace:
    """A store and a context, with what the last build told."""

    def __init__(self, store: Store, context: Path) -> None:
        self.store = store
        self.context = context
        self.events: list[BuildEvent] = []

    def build(self, dockerfile: str, store: Store | None = None, **options: Any) -> Image:
        (self.context / "Dockerfile").write_text(dockerfile)
        self.events = []
        return (store or self.store).build(self.context, progress=self.events.append, **{"pull": "never", **options})

    def steps(self, kind: str) -> list[int]:
        return [event.number for event in self.events if event.kind == kind]

    @property
    def output(self) -> str:
        return b"".join(event.data for event in self.events if event.kind == "output").decode()

    def fails(self, dockerfile: str, error: type[BaseException], message: str, **options: Any) -> None:
        """It is refused, and nothing but what was there before is left."""
        images = {image.id for image in self.store.images()}
        with pytest.raises(error, match=message):
            self.build(dockerfile, **options)
        assert {image.id for image in self.store.images()} == images
        self.is_clean()

    def is_clean(self) -> None:
        assert self.store.containers() == []
        assert mounts_below(self.store.root) == []
        builds = self.store.root / "builds"
        left = [path for name in ("images", "containers", "temporary") for path in (builds / name).glob("*")]
        assert left == []
        assert list((self.store.root / "staging").iterdir()) == []


@pytest.fixture
def work(tmp_path: Path) -> Iterator[Workplace]:
    files = {"app.py": b"print(1)", "sub": {"a": b"a", "b": (0o755, b"b")}, "other": b"other"}
    archive = tmp_path / "images.tar"
    archive.write_bytes(tar_of(docker_files([BASE, TRIGGERS])))
    with Store(tmp_path / "store", create=True) as store:
        store.load(archive)
        place = Workplace(store, write_context(tmp_path / "context", files))
        yield place
        place.is_clean()


def text(image: Image, path: str) -> str:
    return image.view.read_text(path)


# The cache

FIVE = "FROM base:1\nENV A=1\nCOPY app.py /x/\nCOPY sub /sub\nCOPY other /\n"


def test_a_build_again_makes_nothing(work: Workplace) -> None:
    first = work.build(FIVE, names=["one:1"])
    assert work.steps("step") == [1, 2, 3, 4, 5]
    assert work.steps("cached") == []
    again = work.build(FIVE, names=["two:2"])
    assert again.id == first.id
    assert work.steps("cached") == [2, 3, 4, 5]
    assert first.names == ["one:1", "two:2"]
    assert len(work.store.images()) == 3


@pytest.mark.parametrize(
    ("change", "step"),
    [
        (lambda context: (context / "app.py").write_bytes(b"print(2)"), 3),
        (lambda context: (context / "sub/a").chmod(0o600), 4),
        (lambda context: (context / "sub/a").rename(context / "sub/c"), 4),
        (lambda context: (context / "sub/link").symlink_to("a"), 4),
        (lambda context: (context / "sub").chmod(0o700), 4),
        (lambda context: (context / "other").write_bytes(b"2"), 5),
    ],
)
def test_only_a_changed_step_and_those_below_are_done(
    work: Workplace, change: Callable[[Path], object], step: int
) -> None:
    first = work.build(FIVE)
    change(work.context)
    second = work.build(FIVE)
    assert work.steps("cached") == list(range(2, step))
    common = step - 3 + len(BASE.layers)
    assert first.diff_ids[:common] == second.diff_ids[:common]
    assert first.diff_ids[common] != second.diff_ids[common]


@pytest.mark.parametrize("touched", ["app.py", "sub", "sub/a", "unread"])
def test_times_and_what_is_not_read_make_no_difference(work: Workplace, touched: str) -> None:
    first = work.build(FIVE)
    (work.context / touched).touch()
    os.utime(work.context / touched, (5, 5))
    assert work.build(FIVE).id == first.id
    assert work.steps("cached") == [2, 3, 4, 5]


def test_steps_are_found_by_other_builds(work: Workplace) -> None:
    work.build(FIVE)
    work.build("FROM base:1 AS renamed\nENV   A=1\n\n# comment\ncopy ./app.py /x/app.py\nLABEL l=1\nCOPY sub/ /sub/")
    assert work.steps("cached") == [2]
    work.build("FROM base:1\nENV A=1\nCOPY app.py /x/\nCMD x")
    assert work.steps("cached") == [2, 3]


def test_a_different_base_is_another_step(work: Workplace) -> None:
    work.build("FROM base:1\nCOPY app.py /x/\n")
    work.build("FROM scratch\nCOPY app.py /x/\n")
    assert work.steps("cached") == []


UNSEEN = ["LABEL a={}", "EXPOSE {}", "CMD {}", "ENTRYPOINT {}", "HEALTHCHECK CMD {}", "VOLUME /{}", "STOPSIGNAL {}"]
SEEN = ["ENV B={}", "ARG B={}", "USER {}", "WORKDIR /{}", 'SHELL ["/bin/sh", "-c", "# {}"]']


def test_copy_does_not_depend_on_the_config(work: Workplace) -> None:
    first = work.build("FROM base:1\nENV A=0\nUSER 1\nLABEL l=1\nWORKDIR /x\nCOPY app.py .\n")
    time.sleep(1)
    second = work.build("FROM base:1\nENV A=1\nUSER 1\nCMD x\nWORKDIR /x\nCOPY app.py /x/\n")
    assert work.steps("cached") == [5, 6]
    assert second.diff_ids == first.diff_ids
    # The rest is of this build, and no older than its newest step.
    assert "A=1" in second.config.runtime["Env"]
    assert (second.config.runtime["Cmd"][-1], second.config.runtime.get("Labels")) == ("x", None)
    steps = [step.created_by for step in second.history()[:5]][::-1]
    assert steps == ["ENV A=1", "USER 1", 'CMD ["/bin/sh" "-c" "x"]', "WORKDIR /x", "COPY app.py /x/"]
    document = second.config.document
    assert document["created"] == document["history"][-3]["created"] > document["history"][-1]["created"]
    work.build("FROM base:1\nUSER 2\nWORKDIR /x\n")
    assert work.steps("cached") == []


def test_no_cache(work: Workplace) -> None:
    first = work.build(FIVE)
    second = work.build(FIVE, no_cache=True)
    assert work.steps("cached") == []
    assert tree_of(first) == tree_of(second)


def test_the_cache_lasts_as_long_as_the_image(work: Workplace) -> None:
    first = work.build(FIVE, names=["kept:1"])
    work.store.collect_garbage()
    assert work.build(FIVE).id == first.id
    assert work.steps("cached") == [2, 3, 4, 5]
    work.store.remove_image("kept:1")
    work.store.collect_garbage()
    (left,) = (work.store.root / "builds/steps").iterdir()  # that of ENV: it has no layer, and its chain is the base's
    work.build(FIVE)
    assert work.steps("cached") == [2]
    os.utime(left, (5, 5))
    work.store.collect_garbage()
    assert not left.exists()


def test_a_removed_image_is_made_again_from_its_layers(work: Workplace) -> None:
    first = work.build(FIVE, names=["gone:1"])
    work.store.remove_image("gone:1")
    again = work.build(FIVE)
    assert again.id == first.id
    assert work.steps("cached") == [2, 3, 4, 5]
    assert text(again, "/x/app.py") == "print(1)"


@pytest.mark.parametrize(
    "damage", [b"", b"{", b"[]", b'{"created": 1}', bytes(100), b'{"created":"","diff_id":"x","chain_id":"y"}']
)
def test_a_torn_entry_is_none(work: Workplace, damage: bytes) -> None:
    work.build(FIVE)
    for entry in (work.store.root / "builds/steps").iterdir():
        entry.write_bytes(damage)
    work.build(FIVE)
    assert work.steps("cached") == []


def test_an_entry_whose_layer_was_never_stored_is_none(work: Workplace) -> None:
    work.build(FIVE)
    for entry in (work.store.root / "builds/steps").iterdir():
        said = json.loads(unsealed(entry.read_bytes(), str(entry)))
        if said["diff_id"]:
            entry.write_bytes(sealed(json.dumps({**said, "diff_id": "sha256:" + "0" * 64}).encode()))
    work.build(FIVE)
    assert work.steps("cached") == [2]


def test_a_build_arg_counts_where_it_is_used(work: Workplace) -> None:
    dockerfile = "FROM base:1\nCOPY app.py /x/\nARG V=1\nLABEL v=$V\n"
    work.build(dockerfile)
    work.build(dockerfile, build_args={"V": "2"})
    assert work.steps("cached") == [2, 3]
    work.build(dockerfile, build_args={"V": "1"})
    assert work.steps("cached") == [2, 3, 4]


def test_an_argument_that_nobody_asks_for_is_told(work: Workplace) -> None:
    work.build("FROM base:1\nARG USED", build_args={"USED": "1", "STRAY": "2", "HTTP_PROXY": "p"})
    assert [event.text for event in work.events if event.kind == "warning"] == ["--build-arg STRAY: no ARG asks for it"]


def test_another_platform_is_told(work: Workplace) -> None:
    work.build("FROM --platform=$BUILDPLATFORM base:1\n")
    assert work.steps("warning") == []
    work.build("FROM --platform=linux/s390x base:1\n")
    (event,) = (event for event in work.events if event.kind == "warning")
    assert event.text.startswith("Dockerfile:1: --platform=linux/s390x is ignored")


def test_from_alone_is_the_image_itself(work: Workplace) -> None:
    with_path = MadeImage(BASE.layers, ["path:1"], runtime={"Env": ["PATH=/bin"]})
    archive = work.context.parent / "path.tar"
    archive.write_bytes(tar_of(docker_files([with_path])))
    (loaded,) = work.store.load(archive)
    assert work.build("FROM path:1", names=["same:1"]).id == loaded.id
    assert loaded.names == ["path:1", "same:1"]


def test_an_image_without_layers(work: Workplace) -> None:
    image = work.build("FROM scratch\nENV A=1\nLABEL l=1")
    assert image.diff_ids == ()
    assert [step.empty_layer for step in image.history()] == [True, True]
    assert work.build("FROM scratch\nENV A=1\nLABEL l=1").id == image.id


def test_the_history(work: Workplace) -> None:
    image = work.build(
        'FROM base:1\nARG V=1\nENV A="b c"\nCOPY --chown=1:2 app.py sub/a /x/\nWORKDIR /w\nCMD ["a b", "c"]\n'
        "MAINTAINER me\nHEALTHCHECK NONE\nADD other /\n"
    )
    assert [step.created_by for step in image.history()[: -len(BASE.layers)]][::-1] == [
        "ARG V=1",
        'ENV A="b c"',
        "COPY --chown=1:2 app.py sub/a /x/",
        "WORKDIR /w",
        'CMD ["a b" "c"]',
        "MAINTAINER me",
        "HEALTHCHECK NONE",
        "ADD other /",
    ]
    assert image.config.document["author"] == "me"


def test_many_steps_make_one_pack(work: Workplace) -> None:
    for number in range(60):
        (work.context / str(number)).write_text(str(number))
    lines = "".join(f"COPY {number} /n/{number}\n" for number in range(60))
    packs = len(list((work.store.root / "packs").glob("*.pack")))
    image = work.build(f"FROM base:1\n{lines}")
    assert len(image.diff_ids) == 60 + len(BASE.layers)
    assert len(list((work.store.root / "packs").glob("*.pack"))) == packs + 1
    assert sorted(image.view.listdir("/n")) == sorted(map(str, range(60)))


# Reproducible

WITH_RUN = """\
FROM base:1 AS one
RUN echo one > /one; /bin/busybox mkdir -p /d/e; echo > /d/e/f
FROM base:1
WORKDIR /new/dir
COPY . /all/
COPY --from=one /d /d
RUN echo x > /x; /bin/busybox touch -d '2001-01-01 00:00:00' /old; /bin/busybox ln /x /y
CMD x
"""


@pytest.mark.root
@pytest.mark.kernel
def test_the_same_build_gives_the_same_bytes(work: Workplace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", str(EPOCH))
    first = work.build(WITH_RUN)
    seen = tree_of(first)
    assert max(each.seconds for each in seen.values() if each.seconds is not None) == EPOCH
    assert first.view.stat("/old").st_mtime == 978_307_200
    assert first.view.stat("/new/dir").st_mtime == EPOCH
    with Store(tmp_path / "other", create=True) as other:
        other.load(tmp_path / "images.tar")
        (work.context / "sub").touch()  # both times are later than the epoch
        assert work.build(WITH_RUN, other).id == first.id
    assert work.steps("cached") == []
    # Another epoch is another build.
    monkeypatch.setenv("SOURCE_DATE_EPOCH", str(EPOCH + 1))
    assert work.build(WITH_RUN).id != first.id
    assert work.steps("cached") == []


def test_a_wrong_epoch_is_told(work: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "noon")
    work.fails("FROM base:1\nCMD x", InvalidInput, "SOURCE_DATE_EPOCH")


# The context


def test_nothing_is_read_outside_of_the_context(work: Workplace) -> None:
    secret = work.context.parent / "secret"
    secret.write_text("secret")
    (work.context / "link").symlink_to(secret)
    (work.context / "up").symlink_to("../secret")
    (work.context / "root").symlink_to("/")
    (work.context / "dir").mkdir()
    (work.context / "dir/out").symlink_to("../../../../../../etc")
    for source in ("link", "up", "dir/out/passwd", "root/etc/passwd", "root/../secret"):
        work.fails(f"FROM base:1\nCOPY {source} /x", NotFound, "Dockerfile:2: .*is not in the build context")
    for source in ("../secret", "sub/../../secret", "../*"):
        work.fails(f"FROM base:1\nCOPY {source} /x", InvalidInput, "Dockerfile:2: .*outside of the build context")
    # What leads to the context's own root shows the context.
    image = work.build("FROM base:1\nCOPY root/app.py /x\nCOPY dir /links/")
    assert text(image, "/x") == "print(1)"
    assert image.view.readlink("/links/out") == "../../../../../../etc"


def test_links_above_a_pattern_are_followed_inside_the_context(work: Workplace) -> None:
    write_context(
        work.context, {"lsub": "sub", "up": "..", "out": "/etc", "deep": {"l": "/lsub/."}, "a*b": {"x": b"x"}}
    )
    (work.context.parent / "secret").write_text("secret")
    image = work.build("FROM base:1\nCOPY lsub/* /o/\nCOPY deep/l/[a] /p/\nCOPY up/sub/* /q/\nCOPY a\\*b/* /r/\n")
    assert [image.view.listdir(f"/{name}") for name in "opqr"] == [["a", "b"], ["a"], ["a", "b"], ["x"]]
    for source in ("up/secre*", "out/pass*", "deep/../up/secre*", "l*/a", "app.py/*"):
        work.fails(f"FROM base:1\nCOPY {source} /o/", NotFound, "Dockerfile:2: nothing matches")
    (work.context / ".dockerignore").write_text("sub/a\n")
    assert work.build("FROM base:1\nCOPY lsub/* /o/\n").view.listdir("/o") == ["b"]
    image = work.build("FROM base:1\nCOPY --from=base:1 /lnk/ol* /lnk/../lnk/s*/b /o/\n")
    assert image.view.listdir("/o") == ["b", "old"]
    work.fails("FROM base:1\nCOPY --from=base:1 /ln*/old /file/* /o/", NotFound, "Dockerfile:2: nothing matches")


def test_a_slash_after_a_source_file(work: Workplace) -> None:
    image = work.build("FROM base:1\nCOPY sub/a/ /o/\nCOPY --from=base:1 file/ /o/\n")
    assert image.view.listdir("/o") == ["a", "file"]


def test_links_of_the_image_lead_nowhere_else(work: Workplace) -> None:
    (work.context / "evil").symlink_to("/../../../../tmp")
    image = work.build("FROM base:1\nCOPY sub /tree\nCOPY . /all/\nCOPY app.py /all/evil/x\nCOPY app.py /lnk/y")
    assert text(image, "/tmp/x") == "print(1)"
    assert text(image, "/data/y") == "print(1)"


def test_a_file_that_changes_while_it_is_read(work: Workplace) -> None:
    with open_context(str(work.context), None) as context:
        (entry,) = context.below(context.resolve("app.py"))
        (work.context / "app.py").write_bytes(b"changed since")
        with pytest.raises(Conflict, match="was changed while it was read"):
            entry.source.digest  # type: ignore[union-attr]  # noqa: B018


def test_a_dockerignore_of_the_dockerfile_comes_first(work: Workplace) -> None:
    (work.context / ".dockerignore").write_text("app.py")
    (work.context / "Dockerfile.dockerignore").write_text("other\nsub/a\n")
    image = work.build("FROM base:1\nCOPY . /all/")
    names = {path for path in tree_of(image) if path.startswith("all/")}
    assert {"all/app.py", "all/sub/b"} <= names
    assert not {"all/other", "all/sub/a"} & names
    work.fails("FROM base:1\nCOPY other /", NotFound, "Dockerfile:2: other is not in the build context")


def test_a_context_that_is_none(work: Workplace) -> None:
    with pytest.raises(NotFound, match="no directory"):
        work.store.build(work.context / "app.py")
    with pytest.raises(NotFound, match="name the Dockerfile by -f"):
        work.store.build(work.context / "sub")


def test_urls_are_refused(work: Workplace) -> None:
    for url in ("https://example.com/x", "git@github.com:a/b.git"):
        work.fails(
            f"FROM base:1\nADD {url} /", InvalidInput, "Dockerfile:2: ADD of .*only what is in the build context"
        )


def test_chmod_and_heredocs_of_copy(work: Workplace) -> None:
    image = work.build(
        "FROM base:1\nENV N=name\nCOPY --chmod=750 --chown=5:6 sub /s\nCOPY --chmod=0444 app.py /s/x/y\n"
        "COPY <<one.txt <<'two.txt' /h/\n$N \"q\" \\$N\none.txt\n$N\ntwo.txt\nCOPY <<EOF $N/file\ncontent\nEOF\n"
    )
    seen = tree_of(image)
    assert (oct(seen["s/a"].mode), seen["s/a"].owner) == ("0o100750", (5, 6))
    assert oct(seen["s/x/y"].mode) == "0o100444"
    assert oct(seen["s/x"].mode) == "0o40755"
    assert text(image, "/h/one.txt") == 'name "q" $N\n'
    assert text(image, "/h/two.txt") == "$N\n"
    assert text(image, "/name/file") == "content\n"
    work.fails("FROM base:1\nCOPY --chmod=u+x app.py /", InvalidInput, "Dockerfile:2: --chmod=u[+]x")


def test_workdir_is_the_users(work: Workplace) -> None:
    seen = tree_of(work.build("FROM base:1\nWORKDIR /roots\nUSER bob\nWORKDIR bobs/too\nUSER 5:6\nWORKDIR deep\n"))
    owners = [seen[path].owner for path in ("roots", "roots/bobs", "roots/bobs/too", "roots/bobs/too/deep")]
    assert owners == [(0, 0), (1000, 1001), (1000, 1001), (5, 6)]
    work.fails("FROM base:1\nUSER nobody-here\nWORKDIR /w", InvalidInput, "Dockerfile:3: user")


def test_an_archive_of_zstd_is_unpacked(work: Workplace) -> None:
    packed = zstd_chunked(tar_bytes({"a": os.urandom(5000), "b/c": b"1"}))
    (work.context / "packed").write_bytes(packed)
    (work.context / "cut").write_bytes(packed[:-1])
    assert {"new/a", "new/b/c"} <= tree_of(work.build("FROM base:1\nADD packed /new/")).keys()
    work.fails("FROM base:1\nADD cut /new/", InvalidInput, "cut cannot be read as the archive.*zstd stream is cut off")


def long_window(data: bytes) -> bytes:
    """As `zstd --long=27` compresses what it reads from a pipe."""
    parameter = images.zstd.CompressionParameter
    compressor = images.zstd.ZstdCompressor(options={parameter.window_log: 27})
    return compressor.compress(data[:1], compressor.FLUSH_BLOCK) + compressor.compress(data[1:], compressor.FLUSH_FRAME)


def large_dictionary(data: bytes) -> bytes:
    """As xz compresses with a dictionary of 192 MiB, without the memory that this takes."""
    packed = bytearray(lzma.compress(data))
    size = 4 * (packed[12] + 1)  # of the block's header, which the stream's is before
    at = packed.index(b"\x21\x01", 12, 12 + size) + 2  # LZMA2, with 1 byte of properties
    packed[at] = 31
    packed[12 + size - 4 : 12 + size] = zlib.crc32(packed[12 : 12 + size - 4]).to_bytes(4, "little")
    return bytes(packed)


@pytest.mark.parametrize(
    ("compress", "message"),
    [
        (long_window, "it is zstd that needs a larger window, .*zstd_window_bytes"),
        (large_dictionary, "it is xz that needs more than 128 MiB to be decompressed; compress it with xz -9 or less$"),
    ],
)
def test_what_takes_much_memory_to_decompress(
    work: Workplace, compress: Callable[[bytes], bytes], message: str
) -> None:
    """It is copied, unless it is an archive."""
    packed = compress(b"no archive" * 1000)
    (work.context / "packed").write_bytes(packed)
    assert work.build("FROM base:1\nADD packed /new/").view.read_bytes("/new/packed") == packed
    (work.context / "packed").write_bytes(compress(tar_bytes({"a": b"1"})))
    work.fails("FROM base:1\nADD packed /new/", LimitExceeded, f"Dockerfile:2: packed: {message}")


def test_of_two_extended_headers_of_an_archive_the_later_one_holds(work: Workplace) -> None:
    first = tarbytes.pax({b"path": b"first", b"mtime": b"5", b"SCHILY.xattr.user.a": b"1"})
    parts = [tarbytes.pax({b"uid": b"7"}, type=b"g"), first, tarbytes.pax({b"path": b"second"}), tarbytes.member(b"x")]
    (work.context / "two.tar").write_bytes(tarbytes.archive(*parts, *[tarbytes.pax(b"")] * 20, tarbytes.member(b"y")))
    image = work.build("FROM base:1\nADD two.tar /new/")
    assert set(image.view.listdir("/new")) == {"second", "y"}
    status = image.view.stat("/new/second")
    assert (status.st_uid, status.st_mtime) == (7, 0)


def test_an_entry_of_an_archive_without_a_name_is_passed_over(work: Workplace) -> None:
    for first in (tarbytes.member(b"", b"x"), tarbytes.header(b"", type=b"5", mode=0o700)):
        (work.context / "a.tar").write_bytes(tarbytes.archive(first, tarbytes.member(b"f", b"y")))
        view = work.build("FROM base:1\nADD a.tar /new/").view
        assert view.listdir("/new") == ["f"]
        assert view.stat("/new").st_mode & 0o777 == 0o755


@pytest.mark.parametrize("sparse", [tarbytes.sparse_old, tarbytes.sparse_00, tarbytes.sparse_01, tarbytes.sparse_10])
def test_sparse_files_of_an_archive(work: Workplace, sparse: Callable[..., bytes]) -> None:
    first, second, size = b"a" * 1000, b"b" * 2_000_000, 6_000_000
    holed = sparse(b"holed", [(5, 1000), (3_000_000, 2_000_000)], size, first + second)
    parts = [holed, sparse(b"hole", [], 70_000, b""), tarbytes.member(b"after", b"end")]
    (work.context / "sparse.tgz").write_bytes(gzip.compress(tarbytes.archive(*parts)))
    view = work.build("FROM base:1\nADD sparse.tgz /new/").view
    expected = bytes(5) + first + bytes(3_000_000 - 1005) + second + bytes(1_000_000)
    assert view.read_bytes("/new/holed") == expected
    assert view.read_bytes("/new/hole") == bytes(70_000)
    assert view.read_bytes("/new/after") == b"end"


def test_damaged_archives(work: Workplace) -> None:
    packed = gzip.compress(tar_bytes({"a": os.urandom(5000)}))
    (work.context / "cut.tgz").write_bytes(packed[:-100])
    work.fails("FROM base:1\nADD cut.tgz /", InvalidInput, "Dockerfile:2: cut.tgz cannot be read as the archive")
    (work.context / "links.tar").write_bytes(tar_bytes({"a": "=not/there"}))
    work.fails("FROM base:1\nADD links.tar /", InvalidInput, "Dockerfile:2: .*hard link to /not/there")
    (work.context / "dirs.tar").write_bytes(tar_bytes({"a": "=data"}))
    work.fails("FROM base:1\nADD dirs.tar /", InvalidInput, "Dockerfile:2: .*hard link to /data, where")
    for name, members in {"itself": {"a": b"1", "./a": "=a"}, "inside": {"d/a": b"1", "d": "=d/a"}}.items():
        (work.context / f"{name}.tar").write_bytes(tar_bytes(members))
        work.fails(f"FROM base:1\nADD {name}.tar /", InvalidInput, "Dockerfile:2: .*what it is a hard link to")
    (work.context / "out.tar").write_bytes(tar_bytes({"../../up": b"1", "/abs": b"2", "l": "/data", "l/in": b"3"}))
    image = work.build("FROM base:1\nADD out.tar /to/")
    assert sorted(image.view.listdir("/to")) == ["abs", "l", "up"]
    assert text(image, "/data/in") == "3"


# What changes while it is read


def rewritten(path: Path, data: bytes) -> None:
    """Other bytes in a file that says to be as it was."""
    status = path.stat()
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


class Changing(HostFile):
    """A file whose content is another one, of the same size and time, once its digest was asked for."""

    @property
    def digest(self) -> bytes:
        found = super().digest
        path = Path(self._directory.shown(self._path))
        rewritten(path, bytes(reversed(path.read_bytes())))
        return found


@pytest.fixture
def change(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Files of a context are as those, from when it is called."""
    return lambda: monkeypatch.setattr(hostfiles, "HostFile", Changing)


@pytest.mark.parametrize("step", ["COPY app.py /x/", "ADD app.py /x/", "ADD plain.tar /x/", "ADD packed.tgz /x/"])
@pytest.mark.parametrize("clones", [False, True])
def test_what_is_copied_is_what_was_hashed(
    work: Workplace, step: str, clones: bool, change: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    (work.context / "app.py").write_bytes(os.urandom(300_000))
    for name, mode in (("plain.tar", "w"), ("packed.tgz", "w:gz")):
        (work.context / name).write_bytes(tar_bytes({"f": os.urandom(300_000)}, mode))
    if clones:
        monkeypatch.setattr(reflink, "share", copied)
    work.build(f"FROM base:1\n{step}\n")
    change()
    told = "Dockerfile:2: .*was changed while it was read"
    work.fails(f"FROM base:1\n{step}\n", Conflict, told, no_cache=True)


def copied(fd: int, source_fd: int) -> bool:
    """What a file system that shares contents makes of `reflink.share`."""
    with open(f"/proc/self/fd/{source_fd}", "rb") as source, open(fd, "wb", closefd=False) as target:
        target.write(source.read())
    return True


@pytest.mark.root
@pytest.mark.kernel
def test_what_a_bind_shows_is_what_was_hashed(work: Workplace, change: Callable[[], None]) -> None:
    step = "FROM base:1\nRUN --mount=type=bind,target=/ctx cat /ctx/app.py >/got\n"
    assert text(work.build(step), "/got") == "print(1)"
    change()
    work.fails(step, Conflict, "Dockerfile:2: .*was changed while it was read", no_cache=True)


def test_a_file_that_grows_without_end_is_not_read_without_end(work: Workplace) -> None:
    with open_context(str(work.context), None) as context:
        (entry,) = context.below("app.py")
        assert entry.source is not None
        pieces = entry.source.pieces()
        read = len(next(pieces))
        with open(work.context / "app.py", "ab") as file:
            file.write(bytes(3 << 20))
        with pytest.raises(Conflict, match="was changed while it was read"):
            for piece in pieces:
                read += len(piece)
        assert read <= entry.size


def test_what_is_exchanged_is_an_error(work: Workplace) -> None:
    def changes(path: str, by: Callable[[Path], object]) -> None:
        with open_context(str(work.context), None) as context:
            seen = context.below(context.resolve(path))
            next(seen)
            shutil.rmtree(work.context / "sub")
            by(work.context / "sub")
            with pytest.raises(Conflict, match=r"context/sub.* was changed while it was read; build again"):
                list(seen)
        (work.context / "sub").unlink()
        write_context(work.context, {"sub": {"a": b"a"}})

    write_context(work.context, {"private": {"a": b"1", "b": b"2"}})
    changes("sub", lambda path: path.symlink_to("private"))
    changes("sub", lambda path: path.symlink_to("../other"))
    changes("sub", lambda path: path.symlink_to(work.context))
    changes("sub", lambda path: path.write_bytes(b"a file"))


# The Dockerfile and .dockerignore


def test_a_dockerfile_is_looked_up_in_the_context(work: Workplace, tmp_path: Path) -> None:
    write_context(work.context, {"files": {"D": b"FROM base:1\nCOPY other /x\n"}, "in": "/files/D", "out": "../D"})
    (tmp_path / "D").write_bytes(b"FROM base:1\nroot:x:0:0:secret\n")

    def build(name: str | Path) -> Image:
        return work.store.build(work.context, dockerfile=work.context / name, pull="never")

    assert text(build("in"), "/x") == "other"
    for name in ("out", "nothing"):
        with pytest.raises(NotFound) as caught:
            build(name)
        assert "secret" not in str(caught.value)
    with pytest.raises(NotFound, match=r"out is a link that leads to nothing in .*context; put the file there"):
        build("out")
    other = tmp_path / "elsewhere"
    other.symlink_to(work.context)
    with pytest.raises(NotFound, match="out is a link that leads to nothing"):
        work.store.build(other, dockerfile=work.context / "out", pull="never")
    with pytest.raises(InvalidInput, match="unknown instruction: ROOT"):  # the caller's own path, outside of it
        work.store.build(work.context / "sub", dockerfile=work.context / "out", pull="never")


def test_a_dockerfile_below_a_link_that_leads_out(work: Workplace, tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared/Dockerfile").write_text("FROM base:1\n")
    (work.context / "docker").symlink_to(tmp_path / "shared")
    told = r"docker/Dockerfile is below a link that leads to nothing in .*context; put the file there"
    with pytest.raises(NotFound, match=told):
        work.store.build(work.context, dockerfile=work.context / "docker/Dockerfile", pull="never")


def test_a_directory_of_the_context_that_cannot_be_read_is_named(work: Workplace, meddle: Meddling) -> None:
    def is_it(path: str, *_: int, dir_fd: int | None = None) -> bool:
        return path == "." and dir_fd is not None and os.readlink(f"/proc/self/fd/{dir_fd}").endswith("/sub")

    refused = PermissionError(errno.EACCES, os.strerror(errno.EACCES), ".")
    meddle.fail(os, "open", refused, ALWAYS, when=is_it)
    work.fails("FROM base:1\nCOPY sub /x\n", PermissionError, r"Permission denied: '.*/context/sub'")


def test_a_dockerignore_that_is_a_link(work: Workplace) -> None:
    write_context(work.context, {"ignored": b"app.py\n", ".dockerignore": "/ignored"})
    work.fails("FROM base:1\nCOPY app.py /", NotFound, "app.py is not in the build context")
    (work.context / ".dockerignore").unlink()
    (work.context / ".dockerignore").symlink_to("../ignored-too")
    (work.context.parent / "ignored-too").write_text("other\n")
    work.fails("FROM base:1\nCOPY . /x", NotFound, "dockerignore is a link that leads to nothing in")


@pytest.mark.parametrize("name", ["Dockerfile", ".dockerignore", "Dockerfile.dockerignore"])
@pytest.mark.parametrize("kind", [stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFDIR])
def test_a_dockerfile_or_dockerignore_that_is_no_file(work: Workplace, name: str, kind: int) -> None:
    work.build("FROM base:1\n")
    (work.context / name).unlink(missing_ok=True)
    if kind == stat.S_IFDIR:
        (work.context / name).mkdir()
    else:
        os.mknod(work.context / name, kind | 0o644)
    with pytest.raises(InvalidInput, match=f"{name} is no regular file"):
        work.store.build(work.context, pull="never")


# COPY and ADD


def test_what_one_step_replaces_is_nothing_to_the_next(work: Workplace) -> None:
    write_context(work.context, {"a": {"d": {"one": b"1"}}, "c": {"d": {"two": b"2"}}, "three": b"3"})
    (work.context / "b.tar").write_bytes(tar_bytes({"d": b"a file"}))
    (work.context / "d.tar").write_bytes(tar_bytes({"d": None, "d/two": b"2"}))
    steps = "FROM scratch\nCOPY a/ /x/\nADD b.tar /x/\nADD d.tar /x/\nCOPY three /x/d/\nCOPY app.py /x/d/\n"
    image = work.build(steps)
    assert sorted(image.view.listdir("/x/d")) == ["app.py", "three", "two"]


def test_hard_links_of_a_step_before(work: Workplace) -> None:
    write_context(work.context, {"links": {"a": "elsewhere"}})
    archives = {"l": {"a": b"1", "b": "=a"}, "m": {"sub/a": b"1", "b": "=sub/a"}}
    archives |= {"dirs": {"a": None, "a/five": b"5"}, "files": {"sub": b"a file"}}
    for name, members in archives.items():
        (work.context / f"{name}.tar").write_bytes(tar_bytes(members))
    stages = "FROM scratch AS l\nADD l.tar /\nFROM scratch AS m\nADD m.tar /\nFROM scratch\n"
    for steps, names in {
        "COPY --from=l / /p/\nCOPY links /p/\n": {"a", "b"},
        "COPY --from=l / /p/\nADD dirs.tar /p/\n": {"a", "b"},
        "COPY --from=m / /p/\nADD files.tar /p/\n": {"sub", "b"},
        "ADD m.tar /p/\nADD files.tar /p/\n": {"sub", "b"},
    }.items():
        image = work.build(f"{stages}{steps}COPY other /p/b\n")
        assert set(image.view.listdir("/p")) == names
        assert text(image, "/p/b") == "other"


def test_names_of_an_archive_are_looked_up_by_a_later_step(work: Workplace) -> None:
    (work.context / "etc.tar").write_bytes(tar_bytes({"etc/passwd": b"me:x:5:6::/:", "etc/group": b"me:x:6:"}))
    image = work.build("FROM scratch\nADD etc.tar /\nCOPY --chown=me:me other /\n")
    assert tree_of(image)["other"].owner == (5, 6)


@case("a COPY of a file or link over a directory, and of a directory over a file", "refused, as BuildKit does")
def test_a_copy_replaces_no_directory_and_by_none(work: Workplace) -> None:
    tree = {"bin": {"x": b"x"}, "file": {"y": b"y"}, "data": b"no directory", "links": {"data": "file"}}
    write_context(work.context, {"tree": tree, "f": b"f"})
    (work.context / "deep.tar").write_bytes(tar_bytes({"f/deep": b"1", "usr/bin/sh": b"2", "bin": "usr/bin"}))
    for steps, message in {
        "COPY f /x": "f is a file, and /x/f of the image is a directory",
        "ADD f /x/": "f is a file, and /x/f of the image is a directory",
        "COPY <<f /x\nf": "f is a file, and /x/f of the image is a directory",
        "COPY tree/ /x/": "tree/bin is a directory, and /x/bin of the image is a link to usr/bin",
        "COPY --from=base:1 / /x/": "bin is a directory, and /x/bin of the image is a link to usr/bin",
    }.items():
        work.fails(f"FROM scratch\nADD deep.tar /x/\n{steps}", InvalidInput, f"Dockerfile:3: {message}")
    for source, message in {
        "tree/": "tree/data is a file, and /data of the image is a directory",
        "tree/links/": "tree/links/data is a link to file, and /data of the image is a directory",
    }.items():
        work.fails(f"FROM base:1\nCOPY {source} /", InvalidInput, f"Dockerfile:2: {message}")
    image = work.build("FROM scratch\nADD deep.tar /x/\nCOPY tree/bin /x/bin/")
    assert sorted(image.view.listdir("/x/usr/bin")) == ["sh", "x"]


def test_an_archive_says_what_it_is_unpacked_into_is(work: Workplace) -> None:
    (work.context / "dot.tar").write_bytes(tar_bytes({"./": None, "./f": b"1"}))
    image = work.build("FROM scratch\nADD dot.tar /\nADD dot.tar /new\nADD --chown=1:2 dot.tar /new/er/\n")
    for path, owner in {"/": (7, 8), "/new": (7, 8), "/new/er": (1, 2)}.items():
        status = image.view.stat(path)
        assert (oct(status.st_mode), status.st_uid, status.st_gid) == ("0o40750", *owner)
        assert status.st_mtime == 1_500_000_000


def test_what_was_in_a_directory_goes_with_it(work: Workplace) -> None:
    """An archive puts a file in its place, and a directory in that of the file."""
    (work.context / "base.tar").write_bytes(tar_bytes({"sub": None, "sub/in": None, "sub/in/old": b"old"}))
    base = "FROM scratch\nADD base.tar /x/\n"
    (work.context / "again.tar").write_bytes(tar_bytes({"sub": b"file", "sub/": None, "sub/in/new": b"new"}))
    image = work.build(f"{base}ADD again.tar /x/\n")
    assert image.view.listdir("/x/sub/in") == ["new"]
    status = image.view.stat("/x/sub/in")
    assert (oct(status.st_mode), status.st_uid, status.st_gid) == ("0o40755", 0, 0)
    (work.context / "linked.tar").write_bytes(tar_bytes({"sub": b"file", "h": "=sub/in/old"}))
    work.fails(f"{base}ADD linked.tar /x/", InvalidInput, "Dockerfile:3: x/sub/in of the image: Not a directory")


def test_an_archive_links_to_what_is_there(work: Workplace) -> None:
    (work.context / "links.tar").write_bytes(tar_bytes({"h": "=other", "i": "=other"}))
    image = work.build("FROM base:1\nCOPY other /data/\nCOPY links.tar /x/\nADD links.tar /data/\n")
    seen = tree_of(image)
    assert [seen[f"data/{name}"].first for name in ("h", "i", "other")] == [b"data/h"] * 3
    assert [text(image, f"/data/{name}") for name in ("h", "i", "other")] == ["other"] * 3
    assert (seen["data/other"].owner, seen["data/other"].seconds) == ((7, 8), 1_500_000_000)


TREES: list[dict[str, Any]] = [
    {"d": {"one": b"1", "e": {"x": b"x"}}, "f": b"f"},
    {"d": b"a file", "f": {"deep": {"er": b"er"}}},
    {"d": {"two": b"2"}, "e": {"y": b"y"}},
    {"d": {"e": b"another file", "f": {"z": b"z"}}},
    {"d": {"e": {"w": b"w"}}, "e": b"e"},
]
LINKED: dict[str, Any] = {"a": b"linked", "b": "=a", "d": None, "d/e": "=a", "f": "=a", "f2": "=a"}


def flat(tree: dict[str, Any], above: str = "") -> dict[str, Any]:
    """The members of an archive, directories are None."""
    found: dict[str, Any] = {}
    for name, content in tree.items():
        found[above + name] = None if isinstance(content, dict) else content
        found |= flat(content, f"{above}{name}/") if isinstance(content, dict) else {}
    return found


class Model:
    """What is at each path, None for a directory."""

    def __init__(self) -> None:
        self.tree: dict[str, bytes | None] = {}

    def put(self, target: str, files: dict[str, Any], *, replaces: bool) -> bool:
        """False where that is to be refused. replaces: a directory something else, and something else a directory."""
        tree = self.tree.copy()
        for name, content in {"": None, **files}.items():
            path = f"{target.strip('/')}/{name}".strip("/")
            parts = path.split("/")
            for above in ("/".join(parts[:count]) for count in range(1, len(parts) + (not name))):
                if tree.setdefault(above, None) is not None:
                    return False
            if not replaces and name and path in tree and (content is None) != (tree[path] is None):
                return False
            if content is not None:
                for below in [other for other in tree if other.startswith(f"{path}/")]:
                    del tree[below]
            if path:
                tree[path] = LINKED[content[1:]] if isinstance(content, str) else content
        tree.pop("", None)
        self.tree = tree
        return True


@pytest.mark.parametrize("seed", range(EXAMPLES // 10))
def test_steps_done_at_once_and_one_by_one(work: Workplace, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", str(EPOCH))
    choose = random.Random(seed).choice
    sources: list[tuple[str, dict[str, Any]]] = [
        ("COPY other", {"other": b"other"}),
        ("ADD linked.tar", LINKED),
        ("COPY --from=linked /", LINKED),
    ]
    (work.context / "linked.tar").write_bytes(tar_bytes(LINKED))
    for number, tree in enumerate(TREES):
        write_context(work.context / f"tree{number}", tree)
        (work.context / f"{number}.tar").write_bytes(tar_bytes(flat(tree)))
        sources += [(f"COPY tree{number}", flat(tree)), (f"ADD {number}.tar", flat(tree))]
    model = Model()
    done = "FROM scratch AS linked\nADD linked.tar /\nFROM scratch\n"
    for _ in range(6):
        (source, files), target = choose(sources), choose(["/", "/x/", "/x/d/"])
        step = f"{source} {target}\n"
        if model.put(target, files, replaces=source.startswith("ADD")):
            done += step
            by_one = work.build(done)
        else:
            work.fails(done + step, InvalidInput, "not a directory|take the other's place")
    at_once = work.build(done, no_cache=True)
    assert at_once.id == by_one.id
    assert {
        path: None if seen.digest is None else at_once.view.read_bytes(path) for path, seen in tree_of(at_once).items()
    } == model.tree


# Stages


def test_stages_that_are_not_needed_are_not_built(work: Workplace) -> None:
    dockerfile = "FROM base:1 AS bad\nCOPY missing /\nFROM base:1 AS two\nCMD two\nFROM two\nCMD three\n"
    assert work.build(dockerfile).config.runtime["Cmd"][-1] == "three"
    assert {event.stage for event in work.events} == {1, 2}
    assert work.build(dockerfile, target="two").config.runtime["Cmd"][-1] == "two"
    assert work.build(dockerfile, target="1").config.runtime["Cmd"][-1] == "two"
    work.fails(dockerfile, NotFound, "Dockerfile:2: missing", target="bad")
    work.fails(dockerfile, NotFound, "has no stage nope", target="nope")


@pytest.mark.parametrize("wrong", ["FOO bar", "COPY onlyone", "ONBUILD RUN x", "FROM x", "RUN --nope x", 'ADD ["x"]'])
def test_a_wrong_trigger_is_told_at_once(work: Workplace, wrong: str) -> None:
    work.fails(f"FROM base:1\nENV A=1\nONBUILD {wrong}\nCOPY missing /", InvalidInput, "Dockerfile:3: ")


def test_stages_of_a_base_that_is_not_there(work: Workplace) -> None:
    work.fails("FROM base:1\nFROM not-there:1\n", NotFound, "Dockerfile:2: there is no image 'not-there:1'")
    work.fails("FROM base:1\nCOPY --from=nope:1 / /", NotFound, "Dockerfile:2: there is no image 'nope:1'")
    work.fails("FROM base:1\nCOPY --from=0 / /", InvalidInput, "Dockerfile:2: --from=0")


def test_what_is_read_is_named_without_variables(work: Workplace) -> None:
    stages = "FROM base:1 AS one\nCOPY app.py /\nFROM base:1\nARG S=one T=/t M=from=one,target=/t\n"
    work.fails(stages + "RUN --mount=from=$S,target=/t true", InvalidInput, "Dockerfile:5: from=.*a stage that is FROM")
    work.fails(stages + "COPY --from=$S /app.py /", InvalidInput, "Dockerfile:5: from=.*a stage that is FROM")
    work.fails(stages + "RUN --mount=$M true", InvalidInput, "Dockerfile:5: from=one: .*not by a variable")
    assert text(work.build(stages + 'COPY --from="one" /app.py /x'), "/x") == "print(1)"


def test_a_slip_in_a_stages_name_is_no_images_id(work: Workplace) -> None:
    image = work.store.image("base:1")
    digits = image.id.removeprefix("sha256:")
    copy = "FROM base:1 AS a\nFROM base:1 AS last\nCOPY --from={} /file /got\n"
    for size in (1, 11):
        work.fails(f"FROM {digits[:size]}", NotFound, f"Dockerfile:1: there is no image '{digits[:size]}'")
        work.fails(
            copy.format(digits[:size]),
            NotFound,
            f"Dockerfile:3: there is no stage {digits[:size]} .stages: a. and no image {digits[:size]}$",
        )
    for name in (digits[:12], digits, image.id, image.id[:12], "base:1"):
        assert "got" in tree_of(work.build(copy.format(name)))


@pytest.mark.needs_tool("docker-registry")
def test_an_image_that_is_pulled(work: Workplace, tmp_path: Path) -> None:
    with Registry(tmp_path) as registry:
        put_image(registry.port, "app", "1", BASE)
        image = work.build(f"FROM {registry.host}/app:1\nCOPY app.py /\n", pull="missing")
        assert text(image, "/data/old") == "old"
        name = f"{registry.host}/none:1"
        message = f"Dockerfile:2: the store has no image {name}, and it cannot be pulled: {registry.host} has no image"
        work.fails(f"FROM base:1\nCOPY --from={name} / /", NotFound, message, pull="missing")
    # Where it is stored, nobody is asked.
    work.build(f"FROM {registry.host}/app:1\nCOPY app.py /\n", pull="missing")
    assert work.steps("cached") == [2]


@pytest.mark.root
@pytest.mark.kernel
def test_independent_stages_run_side_by_side(work: Workplace, tmp_path: Path) -> None:
    """Each waits for the other's file in a directory that both see."""
    meeting = tmp_path / "meeting"
    meeting.mkdir()
    wait = "for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15; do [ -e /m/{} ] && exit 0; sleep 1; done; exit 1"
    image = work.build(
        f"FROM base:1 AS a\nRUN echo > /m/a; echo from a > /a; {wait.format('b')}\n"
        f"FROM base:1 AS b\nRUN echo > /m/b; echo from b > /b; {wait.format('a')}\n"
        "FROM scratch\nCOPY --from=a /a /\nCOPY --from=b /b /\n",
        volumes=[Volume(str(meeting), "/m")],
    )
    assert (text(image, "/a"), text(image, "/b")) == ("from a\n", "from b\n")


@pytest.mark.root
@pytest.mark.kernel
def test_a_failing_stage_ends_the_others(work: Workplace, tmp_path: Path) -> None:
    meeting = tmp_path / "meeting"
    meeting.mkdir()
    work.fails(
        "FROM base:1 AS a\nRUN echo > /m/a; sleep 1000\n"
        "FROM base:1 AS b\nRUN while [ ! -e /m/a ]; do sleep 0; done; exit 9\n"
        "FROM scratch\nCOPY --from=a / /\nCOPY --from=b / /\n",
        BuildFailed,
        "Dockerfile:4: .*the command ended with status 9",
        volumes=[Volume(str(meeting), "/m")],
    )


# RUN


@pytest.mark.root
@pytest.mark.kernel
class TestRun:
    def test_output_and_environment(self, work: Workplace) -> None:
        dockerfile = (
            "FROM base:1\nARG V=1\nARG PATHLESS\nENV B=env\nWORKDIR /w\nUSER bob\n"
            "RUN echo $A $B $V $HTTP_PROXY.$PATHLESS. $HOME; pwd; id -u; echo error >&2\n"
        )
        image = work.build(dockerfile, build_args={"HTTP_PROXY": "p"})
        assert work.output == "image env 1 p.. /home/bob\n/w\n1000\nerror\n"
        assert {event.stream for event in work.events if event.kind == "output"} == {1, 2}
        assert image.history()[0].created_by.startswith("RUN |1 V=1 /bin/sh -c echo $A $B")
        # A proxy is in no key.
        work.build(dockerfile, build_args={"HTTP_PROXY": "other"})
        assert work.steps("cached") == [2, 3, 4, 5, 6, 7]
        work.build(dockerfile, build_args={"V": "2"})
        assert work.steps("cached") == [2, 3, 4, 5, 6]

    def test_arguments_of_the_stage_that_one_is_from(self, work: Workplace) -> None:
        dockerfile = (
            "FROM base:1 AS base\nARG V=1\nFROM base AS two\nFROM two AS three\nRUN echo [$V]\n"
            "FROM base:1\nCOPY --from=three /file /\nRUN echo [$V]\n"
        )
        work.build(dockerfile)
        assert work.output == "[1]\n[]\n"
        work.build(dockerfile, build_args={"V": "9"})
        assert work.output == "[9]\n"  # the other RUN is cached: it sees no V

    @pytest.mark.parametrize(("line", "cached"), [*((line, [3]) for line in UNSEEN), *((line, []) for line in SEEN)])
    def test_a_run_depends_on_what_it_sees(self, work: Workplace, line: str, cached: list[int]) -> None:
        dockerfile = f"FROM base:1\n{line}\nRUN echo $B > /tmp/x\n"
        first, second = [work.build(dockerfile.replace("{}", value)) for value in ("1", "2")]
        assert work.steps("cached") == cached
        assert first.id != second.id
        if cached:
            fresh = work.build(dockerfile.replace("{}", "2"), no_cache=True)
            assert second.config.runtime == fresh.config.runtime
            assert [s.created_by for s in second.history()] == [s.created_by for s in fresh.history()]

    def test_what_is_made_for_the_mounts_is_in_no_layer(self, work: Workplace, tmp_path: Path) -> None:
        (tmp_path / "shown").write_text("shown")
        (work.context / "busybox").write_bytes(Path("/bin/busybox").read_bytes())
        (work.context / "busybox").chmod(0o755)
        image = work.build(
            'FROM scratch\nCOPY busybox /\nRUN --mount=type=tmpfs,target=/t/u ["/busybox", "cat", "/v/w/shown"]\n'
            'RUN ["/busybox", "mkdir", "/etc/kept", "/proc/x"]\n'.replace(', "/proc/x"', ""),
            volumes=[Volume(str(tmp_path / "shown"), "/v/w/shown")],
        )
        assert work.output == "shown"
        assert set(tree_of(image)) == {"busybox", "etc", "etc/kept"}
        assert image.layers()[1].added == 2

    def test_times_of_directories_stay(self, work: Workplace) -> None:
        image = work.build("FROM base:1\nRUN --mount=type=tmpfs,target=/data/mnt true")
        assert image.diff_ids == work.store.image("base:1").diff_ids

    def test_heredocs(self, work: Workplace) -> None:
        image = work.build(
            "FROM base:1\nENV N=name\nRUN <<EOF\necho $N > /one\necho two >> /one\nEOF\n"
            "RUN cat > /two <<A && cat > /three <<'B'\n$N\nA\n$N\nB\n"
            "RUN <<EOF\n#!/bin/busybox ash\necho script $0 > /four\nEOF\n"
        )
        assert text(image, "/one") == "name\ntwo\n"
        assert text(image, "/two") == "name\n"
        assert text(image, "/three") == "$N\n"
        assert text(image, "/four") == "script /dev/pipes/EOF\n"
        assert "dev/pipes" not in tree_of(image)

    def test_a_cache_lasts(self, work: Workplace) -> None:
        line = "RUN --mount=type=cache,target=/c,id=mine,mode=0711,uid=1000 id; echo {} >> /c/f; cat /c/f; ls -ldn /c\n"
        image = work.build("FROM base:1\n" + line.format(1))
        assert "c" not in tree_of(image)
        work.build("FROM base:1\nENV X=2\n" + line.format(2).replace("target=/c", "target=/c,sharing=locked"))
        assert "\n1\n2\n" in work.output
        assert "drwx--x--x" in work.output
        assert " 1000 " in work.output
        work.build("FROM base:1\n" + line.format(3).replace("id=mine,", ""))
        assert "\n3\n" in work.output
        assert "2" not in work.output.split("\n")

    def test_a_cache_that_is_mounted_twice(self, work: Workplace) -> None:
        twice = "--mount=type=cache,id=c,sharing=locked,target=/c --mount=type=cache,id=c,sharing=locked,target=/d"
        work.build(f"FROM base:1\nRUN {twice} echo both > /c/f; cat /d/f\n")
        assert work.output == "both\n"

    def test_caches_in_one_order_and_the_other(self, work: Workplace) -> None:
        """Two stages that are built at once."""
        one, two = (f"--mount=type=cache,id={name},sharing=locked,target=/{name}" for name in ("one", "two"))
        stages = [
            f"FROM base:1 AS {name}\n" + "".join(f"RUN {mounts} echo {name}{n} > /{name}\n" for n in range(8))
            for name, mounts in (("a", f"{one} {two}"), ("b", f"{two} {one}"))
        ]
        image = work.build("".join(stages) + "FROM base:1\nCOPY --from=a /a /\nCOPY --from=b /b /\n")
        assert (text(image, "/a"), text(image, "/b")) == ("a7\n", "b7\n")

    def test_a_cache_that_is_asked_for_wrongly_is_not_made(self, work: Workplace) -> None:
        for _ in range(2):
            line = "RUN --mount=type=cache,target=/c,mode=9z true"
            work.fails(f"FROM base:1\n{line}\n", InvalidInput, "mode=9z")
        work.build("FROM base:1\nRUN --mount=type=cache,target=/c,mode=0711 ls -ld /c\n")
        assert "drwx--x--x" in work.output

    def test_what_is_deep_in_a_bind_is_taken_away_again(self, work: Workplace) -> None:
        fd = os.open(work.context, os.O_RDONLY)
        for _ in range(1100):
            os.mkdir("d", dir_fd=fd)
            below = os.open("d", os.O_RDONLY, dir_fd=fd)
            os.close(fd)
            fd = below
        os.close(fd)
        make = "cd /b; i=0; while [ $i -lt 1100 ]; do busybox mkdir n; cd n; i=$((i+1)); done"
        try:
            work.build(f"FROM base:1\nRUN --mount=type=bind,target=/b,rw {make}\n")
            assert os.listdir(work.store.root / "builds/temporary") == []
            work.store.collect_garbage()
        finally:
            subprocess.run(["rm", "-r", work.context / "d"], check=True)  # pytest's own way recurses

    def test_what_loosens_a_run(self, work: Workplace) -> None:
        show = "RUN grep -h NoNewPrivs /proc/self/status; mount"
        work.build(f"FROM base:1\n{show}\n", security_opt=["no-new-privileges"], pids_limit=-1)
        assert "NoNewPrivs:\t1" in work.output
        work.build(f"FROM base:1\nENV X=1\n{show}\n", cgroups="disabled")
        assert "NoNewPrivs:\t0" in work.output
        assert re.search(r" on / type overlay \(rw,nodev,", work.output, re.MULTILINE)
        work.fails(f"FROM base:1\n{show}\n", InvalidInput, "processes is 0", pids_limit=0)
        work.fails(f"FROM base:1\n{show}\n", InvalidInput, "'host' or 'none', not 'bridge'", network="bridge")

    def test_a_secret_is_nowhere_but_in_the_container(self, work: Workplace, tmp_path: Path) -> None:
        (tmp_path / "secret").write_text("hidden words")
        given = {"s": tmp_path / "secret"}
        dockerfile = (
            "FROM base:1\nRUN --mount=type=secret,id=s cat /run/secrets/s; ls -ln /run/secrets/s\n"
            "RUN --mount=type=secret,id=s,target=/where/it/is,mode=0440,uid=5 ls -ln /where/it/is\n"
            "RUN --mount=type=secret,id=s,env=IT echo in $IT\n"
            "RUN --mount=type=secret,id=none ls /run/secrets/none || echo absent\n"
        )
        image = work.build(dockerfile, secrets=given)
        assert "hidden words-r--------" in work.output
        assert "-r--r-----    1 5 " in work.output
        assert "in hidden words\n" in work.output
        assert "absent\n" in work.output
        assert not any(path.startswith(("run", "where")) for path in tree_of(image))
        for path in work.store.root.rglob("*"):
            if path.is_file():
                assert b"hidden words" not in path.read_bytes(), path
        # It is in no key.
        (tmp_path / "secret").write_text("others")
        work.build(dockerfile, secrets=given)
        assert work.steps("cached") == [2, 3, 4, 5]
        work.fails(
            "FROM base:1\nRUN --mount=type=secret,id=s,required=true true",
            NotFound,
            "Dockerfile:2: there is no secret s",
        )

    def test_binds(self, work: Workplace) -> None:
        dockerfile = (
            "FROM base:1 AS one\nRUN echo from one > /one\nFROM base:1\n"
            "RUN --mount=target=/ctx cat /ctx/app.py; echo > /ctx/no || echo read-only\n"
            "RUN --mount=type=bind,source=sub,target=sub,rw echo new > /sub/a; cat /sub/a > /seen\n"
            "RUN --mount=from=one,source=/one,target=/o --mount=from=base:1,target=/b cat /o /b/data/old\n"
            "RUN --mount=source=app.py,target=/here/app.py cat /here/app.py\n"
        )
        image = work.build(dockerfile)
        for part in ("print(1)", "read-only", "from one\nold"):
            assert part in work.output
        assert text(image, "/seen") == "new\n"
        assert (work.context / "sub/a").read_text() == "a"
        assert not {"ctx", "sub", "o", "b", "here"} & set(tree_of(image))
        (work.context / "sub/b").write_bytes(b"changed")
        work.build(dockerfile)
        assert 4 not in work.steps("cached")  # all of the context was changed
        (work.context / "other").write_bytes(b"changed")
        work.build("FROM base:1\nRUN --mount=source=sub,target=/s ls /s")
        (work.context / "other").write_bytes(b"changed again")
        work.build("FROM base:1\nRUN --mount=source=sub,target=/s ls /s")
        assert work.steps("cached") == [2]

    def test_a_bind_of_a_stage_whose_target_is_a_variable(self, work: Workplace) -> None:
        work.build(
            "FROM base:1 AS one\nCOPY app.py /\nFROM base:1\nARG T=/t\n"
            'RUN --mount=from=one,target=$T --mount=target=/u,from="one",source=${T:+/app.py} cat $T/app.py /u'
        )
        assert work.output == "print(1)print(1)"

    def test_a_size_and_switches(self, work: Workplace) -> None:
        work.build(
            "FROM base:1\nRUN --mount=type=tmpfs,size=64m,target=/t --mount=type=tmpfs,size=1048576,target=/u "
            "/bin/busybox df -k /t /u\n"
            "RUN --mount=source=sub,target=/s,rw=True echo written > /s/a\n"
            "RUN --mount=source=sub,target=/s,ro=FALSE echo written > /s/a\n"
            "RUN --mount=type=cache,target=/c,sharing=private echo > /c/x\n"
        )
        assert " 65536 " in work.output
        assert " 1024 " in work.output
        for wrong in ("type=tmpfs,size=64x", "type=bind,ro=no", "type=cache,sharing=none"):
            work.fails(f"FROM base:1\nRUN --mount={wrong},target=/t true", InvalidInput, "Dockerfile:2: --mount")

    @pytest.mark.parametrize("kind", ["bind", "tmpfs", "cache"])
    def test_a_mount_on_the_root(self, work: Workplace, kind: str) -> None:
        work.fails(
            f"FROM base:1\nRUN --mount=type={kind},target=/ true",
            InvalidInput,
            "Dockerfile:2: --mount: target=/: a mount cannot cover the root directory",
        )

    def test_a_bind_shows_what_a_dockerignore_leaves(self, work: Workplace) -> None:
        (work.context / ".dockerignore").write_text("other\nsub/a")
        work.build("FROM base:1\nRUN --mount=target=/ctx ls /ctx /ctx/sub")
        assert "app.py" in work.output
        assert "other" not in work.output
        assert "\na\n" not in work.output

    def test_it_is_confined_as_a_run_is(self, work: Workplace) -> None:
        show = "/bin/busybox grep Seccomp: /proc/self/status; cat /proc/self/cgroup"
        os.mknod(work.context / "fuse", 0o666 | stat.S_IFCHR, os.makedev(10, 229))
        work.build(
            f"FROM base:1\nRUN {show}\nRUN --mount=target=/c (: </c/fuse) 2>&1 || echo refused\n"
            "RUN /bin/busybox unshare -U true 2>&1 || echo none made\n"
        )
        lines = work.output.splitlines()
        assert "Seccomp:\t2" in lines
        assert {line.split(":", 2)[2] for line in lines if line[:1].isdigit()} == {"/"}
        assert "Operation not permitted" in work.output
        assert "none made" in lines

    def test_the_network(self, work: Workplace) -> None:
        show = "cat /proc/net/dev | /bin/busybox wc -l"
        work.build(f"FROM base:1\nRUN --network=none {show}\n")
        assert work.output.strip() == "3"  # two lines of heading, and lo
        here = len(Path("/proc/net/dev").read_text().splitlines())
        work.build(f"FROM base:1\nENV X=1\nRUN {show}\n")
        assert work.output.strip() == str(here)
        work.build(f"FROM base:1\nENV X=2\nRUN {show}\n", network="none")
        assert work.output.strip() == "3"
        work.fails("FROM base:1\nRUN --network=bridge true", InvalidInput, "Dockerfile:2: RUN --network=bridge")
        told = "Dockerfile:2: RUN --network=host: this build was given no network"
        work.fails("FROM base:1\nRUN --network=host true", InvalidInput, told, network="none")
        (work.context / "Dockerfile").write_text(f"FROM base:1\nENV X=3\nRUN {show}\n")
        assert "\n3\n" in Cli(work.store.root)("build", "--network", "none", "--pull", "never", work.context)

    def test_triggers(self, work: Workplace) -> None:
        image = work.build("FROM triggers:1\nENV X=1\n")
        assert text(image, "/ran") == "build\n"
        assert text(image, "/on/app.py") == "print(1)"
        assert "OnBuild" not in image.config.runtime
        (work.context / "app.py").unlink()
        work.fails("\nFROM triggers:1\n", NotFound, "Dockerfile:2: app.py")

    def test_a_command_that_fails(self, work: Workplace) -> None:
        dockerfile = (
            "FROM base:1\nRUN echo kept > /kept\nCOPY app.py /\nRUN echo half > /half; echo said; exit 7\nCMD x\n"
        )
        with pytest.raises(BuildFailed) as failed:
            work.build(dockerfile)
        assert str(failed.value) == (
            "Dockerfile:4: RUN /bin/sh -c echo half > /half; echo said; exit 7: the command ended with status 7"
        )
        assert failed.value.status == 7
        assert work.output == "said\n"
        work.is_clean()
        assert len(work.store.images()) == 2
        # What was done before is not done again.
        work.fails(dockerfile, BuildFailed, "status 7")
        assert work.steps("cached") == [2, 3]
        work.build(dockerfile.replace("exit 7", "exit 0"))
        assert work.steps("cached") == [2, 3]

    def test_programs_that_cannot_be_started(self, work: Workplace) -> None:
        work.fails('FROM base:1\nRUN ["/not/there"]', ProgramNotFound, 'Dockerfile:2: exec: "/not/there"')
        work.fails("FROM scratch\nCOPY app.py /\nRUN true", ProgramNotFound, 'Dockerfile:3: exec: "/bin/sh"')
        work.fails("FROM base:1\nUSER nobody-here\nRUN true", InvalidInput, "Dockerfile:3: user")

    def test_a_callback_that_raises_ends_the_build(self, work: Workplace) -> None:
        def callback(event: BuildEvent) -> None:
            if event.kind == "step" and event.number == 3:
                raise ValueError("enough")

        (work.context / "Dockerfile").write_text("FROM base:1\nRUN echo > /x\nRUN echo > /y\n")
        with pytest.raises(ValueError, match="enough"):
            work.store.build(work.context, progress=callback)

    def test_a_callback_that_raises_at_output_ends_the_command(self, work: Workplace) -> None:
        def callback(event: BuildEvent) -> None:
            if event.kind == "output":
                raise ValueError("no more output")

        (work.context / "Dockerfile").write_text("FROM base:1\nRUN while echo more; do :; done\n")
        with pytest.raises(ValueError, match="no more output"):
            work.store.build(work.context, progress=callback)

    def test_two_builds_of_the_same_at_once(self, work: Workplace) -> None:
        """They make the same images for their steps, and neither takes them from the other."""
        (work.context / "Dockerfile").write_text(WITH_RUN)
        results: list[object] = []

        def build() -> None:
            try:
                results.append(work.store.build(work.context, no_cache=True))
            except BaseException as error:
                results.append(error)

        threads = [threading.Thread(target=build) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [type(result) for result in results] == [Image] * 3, results
        for result in results:
            assert isinstance(result, Image)
            assert text(result, "/x") == "x\n"


# Interrupts


def heed_interrupts() -> None:
    """Also where whoever runs the tests ignores them."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def started(work: Workplace, dockerfile: str, *secrets: str) -> subprocess.Popen[bytes]:
    """`layerstore build`, once its RUN has said "now"."""
    (work.context / "Dockerfile").write_text(dockerfile)
    command = [sys.executable, "-m", "layerstore", "--root", str(work.store.root), "build", str(work.context)]
    command += [f"--secret={secret}" for secret in secrets]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, preexec_fn=heed_interrupts
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line == b"now\n":
            return process
    raise AssertionError(process.communicate()[1])


def runs_sleep(seconds: str) -> bool:
    return any(
        path.read_bytes() == f"sleep\0{seconds}\0".encode()
        for path in Path("/proc").glob("[0-9]*/cmdline")
        if path.exists()
    )


def with_secret(work: Workplace) -> tuple[str, bytes]:
    """An argument of --secret, and what is in it: other tests' secrets are in memory too."""
    secret = os.urandom(16).hex()
    (work.context.parent / "secret").write_text(secret)
    return f"id=s,src={work.context.parent}/secret", secret.encode()


def copies_of(work: Workplace, secret: bytes) -> int:
    """Files of the store, and of builds in memory, that hold it."""
    root = work.store.root
    places = [*root.glob("containers/*/*"), *(root / "run/runtime").rglob("*"), *(root / "builds").rglob("*")]
    places += Path("/dev/shm").glob("layerstore-*/*")
    return sum(path.is_file() and secret in path.read_bytes() for path in places)


NAP = str(4321 + os.getpid())  # seconds; nobody else's
SLEEPY = f"FROM base:1\nRUN echo done > /done\nRUN echo now; sleep {NAP}\n"


@pytest.mark.root
@pytest.mark.kernel
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_a_build(work: Workplace, number: signal.Signals) -> None:
    option, secret = with_secret(work)
    secrets = "RUN --mount=type=secret,id=s --mount=type=secret,id=s,env=S echo now"
    process = started(work, SLEEPY.replace("RUN echo now", secrets), option)
    assert copies_of(work, secret) > 1
    process.send_signal(number)
    if number == signal.SIGHUP:
        process.send_signal(number)  # as of a terminal that goes
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert errors == b"layerstore build: interrupted; nothing half-done was kept\n"
    assert not runs_sleep(NAP)
    assert copies_of(work, secret) == 0
    work.is_clean()
    assert len(work.store.images()) == 2
    work.build(SLEEPY.replace(f"sleep {NAP}", "true"))
    assert work.steps("cached") == [2]


@pytest.mark.root
@pytest.mark.kernel
@pytest.mark.parametrize("by", ["gc", "build"])
def test_what_a_killed_build_leaves_is_taken_away(work: Workplace, by: str) -> None:
    option, secret = with_secret(work)
    process = started(work, SLEEPY.replace("RUN echo now", "RUN --mount=type=secret,id=s echo now"), option)
    process.kill()
    process.communicate()
    assert len(work.store.containers()) == 1
    assert copies_of(work, secret) == 1
    if by == "gc":
        work.store.collect_garbage()
    else:
        work.build("FROM base:1\nCMD x")
        work.store.remove_image(work.build("FROM base:1\nCMD x").id)
    work.is_clean()
    assert copies_of(work, secret) == 0
    assert not runs_sleep(NAP)
    assert len(work.store.images()) == 2


LOCKED = "RUN --mount=type=cache,id=l,target=/c,sharing=locked "
WRITES_ON = f"FROM base:1\n{LOCKED}--mount=type=secret,id=s,env=S echo now; while :; do echo >> /c/f; done\n"
LOOKS = f"FROM base:1\n{LOCKED}cat /c/f > /tmp/before; sleep 0.3; cat /c/f | cmp - /tmp/before\n"


@pytest.mark.root
@pytest.mark.kernel
def test_a_command_has_no_descriptor_but_its_own_pipes(work: Workplace) -> None:
    """Nor that of a lock of the cache, which the runtime holds."""
    work.build(f"FROM base:1\n{LOCKED}ls -l /proc/1/fd /proc/$$/fd\n")
    shown = [line.partition(" -> ") for line in work.output.splitlines() if " -> " in line]
    assert len(shown) >= 6
    assert all(target.startswith("pipe:") and int(name.split()[-1]) < 3 for name, _, target in shown), shown


@pytest.mark.root
@pytest.mark.kernel
def test_a_callback_that_raises_ends_the_command(work: Workplace) -> None:
    def refuse(event: BuildEvent) -> None:
        if event.kind == "output":
            raise TimeoutError("it is enough")

    (work.context / "Dockerfile").write_text(f"FROM base:1\nRUN echo x; sleep {NAP}\n")
    with pytest.raises(TimeoutError, match="it is enough"):
        work.store.build(work.context, progress=refuse, pull="never")
    assert not runs_sleep(NAP)


@pytest.mark.root
@pytest.mark.kernel
def test_what_a_killed_build_runs_ends_when_the_next_begins(work: Workplace) -> None:
    option, secret = with_secret(work)
    process = started(work, WRITES_ON, option)
    process.kill()
    process.communicate()
    assert copies_of(work, secret) > 0
    left: list[int] = []
    (work.context / "Dockerfile").write_text(LOOKS)
    work.store.build(
        work.context, progress=lambda _: None if left else left.append(copies_of(work, secret)), pull="never"
    )
    assert left == [0]


@pytest.mark.root
@pytest.mark.kernel
def test_a_locked_cache_is_locked_while_a_killed_builds_command_runs(work: Workplace) -> None:
    """While yet another build runs, which has this lock, what was killed is not taken away."""
    work.build("FROM base:1\n")
    with open(work.store.root / "builds/lock", "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        process = started(work, WRITES_ON, f"id=s,src={work.context}/app.py")
        process.kill()
        process.communicate()
        images: list[Image] = []
        building = threading.Thread(target=lambda: images.append(work.build(LOOKS)))
        building.start()
        time.sleep(0.5)
        assert building.is_alive()
        assert not work.output
        (left,) = [container for container in work.store.containers() if container.state == "running"]
        left.remove(force=True)
        building.join()
        assert images
    work.store.collect_garbage()


@pytest.mark.root
@pytest.mark.kernel
def test_garbage_collection_waits_for_a_build(work: Workplace, tmp_path: Path) -> None:
    meeting = tmp_path / "meeting"
    meeting.mkdir()
    (work.context / "Dockerfile").write_text(
        "FROM base:1\nCOPY app.py /\nRUN echo > /m/a; while [ ! -e /m/go ]; do sleep 0; done\nCOPY other /\n"
    )
    images: list[Image] = []
    building = threading.Thread(
        target=lambda: images.append(work.store.build(work.context, volumes=[Volume(str(meeting), "/m")]))
    )
    building.start()
    while not (meeting / "a").exists():
        time.sleep(0.01)
    collecting = threading.Thread(target=work.store.collect_garbage)
    collecting.start()
    time.sleep(0.2)
    assert collecting.is_alive()
    (meeting / "go").touch()
    building.join()
    collecting.join()
    assert text(images[0], "/app.py") == "print(1)"
    assert text(images[0], "/other") == "other"


# The command


def test_the_command(work: Workplace) -> None:
    cli = Cli(work.store.root)
    (work.context / "Dockerfile").write_text("FROM base:1\nARG V\nENV A=$V\nCOPY app.py /\n")
    made = cli("build", "-t", "cli:1", "-t", "cli:2", "--build-arg", "V=7", work.context)
    image = work.store.image("cli:1")
    lines = made.splitlines()
    assert [line for line in lines if line.startswith("Step")] == [
        "Step 1/4 : FROM base:1",
        "Step 2/4 : ARG V",
        "Step 3/4 : ENV A=$V",
        "Step 4/4 : COPY app.py /",
    ]
    assert lines[-3:] == [
        f"Successfully built {image.short_id}",
        "Successfully tagged cli:1",
        "Successfully tagged cli:2",
    ]
    assert " ---> Using cache" not in lines
    again = cli("build", "-t", "cli:1", "--build-arg=V=7", work.context)
    assert again.splitlines().count(" ---> Using cache") == 3
    assert cli("build", "-q", "--build-arg=V=7", work.context) == image.id + "\n"
    assert "A=7" in image.config.runtime["Env"]
    elsewhere = work.context.parent / "Elsewhere"
    elsewhere.write_text("FROM base:1\nLABEL from=elsewhere\n")
    assert work.store.image(cli("build", "-q", "-f", elsewhere, work.context).strip()).config.runtime["Labels"]
    assert cli("build", "-q", "-f", "-", work.context, stdin=b"FROM scratch\nCOPY app.py /\n").startswith("sha256:")


@pytest.mark.parametrize(
    ("dockerfile", "options", "message"),
    [
        ("FROM base:1\nNOPE", (), "layerstore build: Dockerfile:2: unknown instruction: NOPE"),
        ("FROM base:1\nCMD x", ("--target", "z"), "layerstore build: Dockerfile has no stage z"),
        ("FROM base:1\nRUN --mount type=cache,target=/c true", (), "Dockerfile:2: RUN --mount has no value; it is"),
        ("FROM base:1\nRUN --mount=type=tmpfs,, true", (), "Dockerfile:2: --mount=type=tmpfs,,: it is KEY=VALUE,"),
        ("FROM base:1\nCMD x", ("-t", "NOT A NAME"), "is not a valid image name"),
        ("FROM base:1\nCMD x", ("--secret", "src=x"), "it is id=ID,src=FILE"),
        ("FROM base:1\nCMD x", ("-v", "/nope:/x"), "there is no /nope to bind"),
    ],
)
def test_failures_of_the_command(work: Workplace, dockerfile: str, options: tuple[str, ...], message: str) -> None:
    (work.context / "Dockerfile").write_text(dockerfile)
    assert message in Cli(work.store.root)("build", *options, work.context, status=1)


@pytest.mark.root
@pytest.mark.kernel
def test_a_quiet_build_tells_what_a_failing_command_said(work: Workplace) -> None:
    (work.context / "Dockerfile").write_text(
        "FROM base:1 AS a\nRUN echo fine\nFROM base:1\nCOPY --from=a /file /\nRUN echo why; echo and >&2; exit 4\n"
    )
    said = Cli(work.store.root)("build", "-q", work.context, status=1)
    assert said.startswith("why\nand\nlayerstore build: Dockerfile:5: ")
    (work.context / "Dockerfile").write_text("FROM base:1\nRUN echo fine\n")
    assert "fine" not in Cli(work.store.root)("build", "-q", work.context)


def test_an_error_of_the_system_has_its_line(work: Workplace) -> None:
    deep = "/".join(["d" * 250] * 20)
    (work.context / "Dockerfile").write_text(f"FROM base:1\nCOPY {deep} /\n")
    said = Cli(work.store.root)("build", work.context, status=1)
    assert said.startswith("layerstore build: Dockerfile:2: ")
    assert "File name too long" in said


@pytest.mark.root
@pytest.mark.kernel
def test_stages_side_by_side_are_told_one_after_the_other(work: Workplace) -> None:
    (work.context / "Dockerfile").write_text(
        "FROM base:1 AS a\nRUN for i in 1 2 3; do echo a$i; sleep 0.05; done\n"
        "FROM base:1 AS b\nRUN for i in 1 2 3; do echo b$i; sleep 0.05; done\n"
        "FROM scratch\nCOPY --from=a /file /a\nCOPY --from=b /file /b\n"
    )
    said = [line for line in Cli(work.store.root)("build", work.context).splitlines() if not line.startswith(" --->")]
    told = [line for line in said if line[0] in "ab"]
    assert told in (["a1", "a2", "a3", "b1", "b2", "b3"], ["b1", "b2", "b3", "a1", "a2", "a3"])


def test_the_function(work: Workplace) -> None:
    import layerstore

    (work.context / "Dockerfile").write_text("FROM base:1\nCOPY app.py /\n")
    image = layerstore.build(work.context, root=work.store.root, names=["f:1"])
    assert work.store.image("f:1").id == image.id
    with pytest.raises(LayerstoreError):
        layerstore.build(work.context / "none", root=work.store.root)
    image._engine.close()


def builds_at_once(work: Workplace, dockerfiles: list[str]) -> list[list[BuildEvent]]:
    """Builds that begin together, each with a store of its own; what each told."""
    told: list[list[BuildEvent]] = [[] for _ in dockerfiles]
    barrier = threading.Barrier(len(dockerfiles))

    def build(number: int) -> None:
        path = work.context / f"Dockerfile.{number}"
        path.write_text(dockerfiles[number])
        with Store(work.store.root) as store:
            barrier.wait()
            store.build(work.context, dockerfile=path, pull="never", progress=told[number].append)

    threads = [threading.Thread(target=build, args=(number,), daemon=True) for number in range(len(dockerfiles))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not any(thread.is_alive() for thread in threads), "they wait for each other"
    return told


def test_what_several_builds_need_is_done_once(work: Workplace, meddle: Meddling) -> None:
    made = meddle.before(imports.Import, "add_tar", lambda: time.sleep(0.1), times=ALWAYS)
    other = "FROM base:1\nENV A=1\nCOPY app.py /x/\nCOPY other /y/\n"
    builds_at_once(work, [FIVE, FIVE, other, FIVE])
    assert len(made) == 4
    assert len(work.store.images()) == 4


@pytest.mark.root
@pytest.mark.kernel
def test_a_command_that_several_builds_need_runs_once(work: Workplace) -> None:
    slow = "FROM base:1\nCOPY app.py /\nRUN sleep 0.3; echo ran\nRUN echo two >/two\n"
    told = builds_at_once(work, [slow, slow, slow])
    assert sum(event.kind == "running" for events in told for event in events) == 2


@pytest.mark.root
@pytest.mark.kernel
def test_what_fails_in_one_build_is_tried_by_the_next(work: Workplace) -> None:
    (work.context / "Dockerfile").write_text("FROM base:1\nCOPY app.py /\nRUN sleep 0.2; exit 3\n")
    failed = []

    def build() -> None:
        with Store(work.store.root) as store:
            try:
                store.build(work.context, pull="never")
            except BuildFailed as error:
                failed.append(error.status)

    threads = [threading.Thread(target=build, daemon=True) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failed == [3, 3, 3]


def test_a_build_that_cannot_clear_away_lets_go_of_its_steps(work: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    leave = imports.Import.__exit__

    def commit(self: imports.Import, *args: Any) -> None:
        raise OSError(errno.EIO, "the disk is broken")

    def leaving(self: imports.Import, *args: Any) -> None:
        leave(self, *args)
        raise OSError(errno.EIO, "nor can it be cleared away")

    with monkeypatch.context() as patch:
        patch.setattr(imports.Import, "commit", commit)
        patch.setattr(imports.Import, "__exit__", leaving)
        with pytest.raises(OSError, match="nor can it be cleared away"):
            work.build(FIVE)
    builds_at_once(work, [FIVE])
    assert work.store.images()
