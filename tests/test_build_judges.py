"""The same Dockerfiles built here and by docker's classic builder, some by BuildKit (dockerd's own) or buildah: configs
and trees.

Where we differ from it on purpose:

- Times of directories: ours keep those that a step only puts something into; docker's are those of the step.
- A copied file keeps its set-user-ID, as BuildKit has it; the classic builder loses it to a chown.
- A directory is not copied over something else, nor something else over a directory: BuildKit refuses both, too, and is
  asked; buildah and the classic builder replace what is there without a word.
- What an archive says of "./" counts for the directory that it is unpacked into, as buildah has it; docker skips it.
- Links before the first wildcard of a source are followed, as BuildKit does, and so does buildah.
- `**` in a source is `*`, as in BuildKit; to buildah it is any number of directories.
- An entry of an archive without a name, or of ".", that is no directory is passed over, as by BuildKit.
- BuildKit's rules hold where the two of docker differ and the newer one's is documented: a heredoc, --mount, --chmod.
"""

import json
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from contexts import tar_bytes, tree_of, write_context
from images import Image as MadeImage
from images import docker_files, tar_of
from layer_model import Entry, write_tar
from test_containers import base, busybox

from bench.fixtures import Fixtures
from bench.peers import Docker, PeerError, output
from layerstore import Image, Store
from layerstore.errors import LayerstoreError

pytestmark = [pytest.mark.root, pytest.mark.kernel, pytest.mark.peers]

FIELDS = (
    "User",
    "ExposedPorts",
    "Env",
    "Cmd",
    "Healthcheck",
    "Volumes",
    "WorkingDir",
    "Entrypoint",
    "OnBuild",
    "Labels",
)
FIELDS += ("StopSignal", "Shell")

MORE = [
    Entry("dir", "data", mode=0o751, uid=3, gid=4),
    Entry("file", "data/old", data=b"old", mode=0o600),
    Entry("dir", "data/sub", mode=0o700),
    Entry("file", "data/sub/b", data=b"was here"),
    Entry("symlink", "lnk", link="data"),
    Entry("symlink", "flnk", link="/data/old"),
    Entry("symlink", "out", link="../../../data/sub"),
    Entry("file", "file", data=b"file"),
    Entry("file", "etc/group", data=b"root:x:0:\nbob:x:1001:\nstaff:x:50:bob\n"),
]
BASE = MadeImage(
    [write_tar(base()), busybox(), write_tar(MORE)], ["base:1"], runtime={"Cmd": ["x"], "Env": ["A=image"]}
)
TRIGGERS = MadeImage(
    BASE.layers, ["triggers:1"], runtime={"OnBuild": ["COPY app.py /on/", "ENV ON=build", "RUN echo $ON > /ran"]}
)

CONTEXT: dict[str, Any] = {
    "app.py": b"print()",
    "run.sh": (0o755, b"#!/bin/sh\n"),
    "private": (0o600, b"s"),
    "dir": {
        "a": b"a", ".hidden": b"h", "sub": {"b": b"b", "deep": {"c": b"c"}}, "link": "a", "up": "../app.py",
        "broken": "no", "abs": "/etc/passwd", "empty": {},
    },
    "link.txt": "app.py",
    "dlink": "dir",
    "with space.txt": b"space",
    "a[1].txt": b"odd",
    "one.txt": b"1",
    "two.txt": b"2",
    "pkg.json": b"{}",
    "other": {"sub": {"b": b"other b", "x": b"x"}, "a": {"in": b"a directory"}},
    "plain.tar": tar_bytes({"t": None, "t/f": b"f", "t/l": "f", "t/h": "=t/f", "./u/v": b"v"}),
    "packed.tgz": tar_bytes({"g": b"gz"}, "w:gz"),
    "packed.bz2": tar_bytes({"z": b"bz"}, "w:bz2"),
    "packed.xz": tar_bytes({"x": b"xz"}, "w:xz"),
    "no.tar": b"this is no archive",
    "no.gz": b"\x1f\x8b nor this",
    "dot.tar": tar_bytes({"./": None, "./f": b"f"}),
    "links.tar": tar_bytes({"h": "=old", "sub/h": "=sub/b"}),
    "merge.tar": tar_bytes({"sub": None, "sub/new": b"n", "old": None, "old/inside": b"i"}),
    "nameless.tar": tar_bytes({"": b"", "f": b"f"}),
    "dotfile.tar": tar_bytes({".": b"content", "f": b"f"}),
    "stars": {"xsub": {"t.txt": b"0"}, "a": {"xsub": {"t.txt": b"1"}, "b": {"xsub": {"t.txt": b"2"}}}},
    "conflicts": {"lnk": {"f": b"f"}}, "links": {"data": "elsewhere"}, "files": {"data": b"a file"},
}  # fmt: skip

COPIES = [
    "COPY app.py /new/app.py",
    "COPY app.py /new/",
    "COPY app.py /new/deep/er/",
    "COPY app.py run.sh private /new/",
    "COPY app.py .",
    "WORKDIR /w\nCOPY app.py .\nCOPY run.sh ./\nCOPY private x\nCOPY app.py ../up/",
    "COPY app.py /data",
    "COPY app.py /lnk",
    "COPY app.py /lnk/",
    "COPY app.py /lnk/named",
    "COPY app.py /flnk",
    "COPY app.py /out/x",
    "COPY app.py /file",
    "COPY dir /new",
    "COPY dir /new/",
    "COPY dir/ /data",
    "COPY dir /lnk/sub",
    "COPY dir/. /data/",
    "COPY . /all/",
    "COPY dlink /followed",
    "COPY dlink/ /followed/",
    "COPY link.txt /followed",
    "COPY link.txt /followed/",
    "COPY *.txt /new/",
    "COPY o*.txt t?o.txt /new/",
    "COPY d*/s* /new/",
    "COPY d* /new/",
    "COPY [a-p]*.py /new/",
    "COPY package.json* pkg.json /new/",
    'COPY ["with space.txt", "/a b/"]',
    "COPY a[[]1].txt /new/",
    "COPY --chown=bob app.py dir /new/",
    "COPY --chown=bob:staff app.py /new/x/y",
    "COPY --chown=5:6 dir /data",
    "COPY --chown=77 app.py /new/",
    "COPY other /data",
    "COPY other/sub /data/sub",
    "COPY app.py /data/sub/b",
    "COPY app.py /tmp/\nCOPY run.sh /tmp/app.py",
    "COPY dir /x\nCOPY other/sub /x/sub",
    "COPY other /x\nCOPY app.py /x/a/",
    "ENV D=/e N=app\nCOPY ${N}.py $D/${X:-y}/",
    "ADD app.py /new/",
    "ADD plain.tar /new",
    "ADD plain.tar /new/",
    "ADD packed.tgz packed.bz2 packed.xz no.tar no.gz app.py /new/",
    "ADD merge.tar /data",
    "ADD merge.tar /lnk",
    "ADD dir /new",
    "COPY plain.tar /new/",
    "WORKDIR /lnk/w\nWORKDIR rel\nCOPY app.py .",
    "WORKDIR $A/x",
    "WORKDIR /data",
]
CONFIGS = [
    'CMD ["a", "b c"]',
    "CMD echo $A",
    'ENTRYPOINT ["/x"]',
    'CMD ["c"]\nENTRYPOINT ["/x"]',
    "ENTRYPOINT /x y",
    "ENV B=1 C=$B D=${A}x E=\\$A F='$A' G=\"q $A\"",
    "ENV LEGACY one two  three",
    "ENV B=1\nENV B=2 C=${B:-x} E=${NO:-d}${A:+s}",
    "ARG B=1\nENV C=$B",
    "ARG B\nENV C=${B:-none}",
    "ARG A=arg\nENV C=$A",
    "ARG B=1\nENV B=2\nENV C=$B",
    "ARG V=1\nARG W=${V}2\nLABEL w=$W",
    "ARG GIVEN=default\nENV C=$GIVEN",
    "ARG GIVEN\nENV C=$GIVEN",
    "ENV C=x$GIVEN",
    "USER bob:staff",
    "ARG U=7\nUSER $U",
    'LABEL a=1 "b c"=\'d e\' multi="x \\\n  y"',
    "EXPOSE 80 53/udp 7000-7002",
    "ARG P=81\nEXPOSE $P",
    'VOLUME /v1 /v2\nVOLUME ["/v 3"]',
    'SHELL ["/bin/busybox", "sh", "-c"]\nCMD x\nRUN echo $0 > /shell',
    "STOPSIGNAL SIGUSR1",
    "HEALTHCHECK --interval=5s --retries=2 CMD true",
    'HEALTHCHECK CMD ["true"]',
    "HEALTHCHECK NONE",
    "ONBUILD RUN echo hi\nONBUILD COPY a b",
    "WORKDIR a\nWORKDIR b/../c",
    "MAINTAINER somebody",
    "# comment\nENV B=1 \\\n# in between\n  C=2 \\\n\n  D=3",
    "env b=1\nCmd x",
    "CMD []",
    "CMD [ not json ]",
]
RUNS = [
    "RUN echo hi > /made",
    'RUN ["/bin/sh", "-c", "echo $A > /made"]',
    "ARG B=1\nRUN echo $A $B $C > /made",
    "ARG A=arg\nRUN echo $A > /made",
    "ARG GIVEN\nRUN echo $GIVEN $HTTP_PROXY > /made",
    "ENV PATH=/bin X=y\nRUN env | /bin/busybox grep -v HOSTNAME | /bin/busybox sort > /made",
    "WORKDIR /w/x\nRUN pwd > made",
    "USER bob\nRUN id > /tmp/made; touch /tmp/t",
    "RUN true",
    "RUN /bin/busybox rm -r /data /file; ln -s x /s",
    "RUN /bin/busybox rm /data/old && /bin/busybox rmdir /tmp",
    "RUN /bin/busybox chmod 700 /data && /bin/busybox chown 5:6 /file",
    "RUN /bin/busybox mv /data /moved && /bin/busybox mkdir /data && echo > /data/n",
    "RUN echo a > /x \\\n && echo b >> /x \\\n # comment \\\n && echo c >> /x",
    "RUN /bin/busybox ln /file /hard\nRUN /bin/busybox mkdir -p /etc/new/x",
    "RUN echo 'single $A' \"double $A\" \\$A > /made",
    "COPY app.py /x/\nRUN echo more >> /x/app.py\nCOPY run.sh /x/app.py\nRUN echo more >> /x/app.py",
    "RUN echo bob2:x:1002:1002::/: >> /etc/passwd; echo bob2:x:1002: >> /etc/group\nCOPY --chown=bob2 app.py /x/",
]
WHOLE = [
    "FROM base:1 AS one\nRUN echo 1 > /one\nFROM base:1\nCOPY --from=one /one /got\nCOPY --from=0 /data /d",
    "FROM base:1 AS one\nCOPY --chown=5:6 dir /src\nFROM scratch\nCOPY --from=one /src /s\nCOPY --from=one /src/a /b/",
    "FROM base:1 AS one\nRUN /bin/busybox chown 9:9 /file\nFROM one\nCOPY --from=one --chown=1:2 /file /f2\nCMD x",
    "FROM base:1 AS one\nENV B=1\nCMD b\nFROM one\nENTRYPOINT [\"/e\"]\nENV C=$B",
    "FROM base:1\nCOPY --from=base:1 /lnk /got\nCOPY --from=base:1 /data/su* /lnk/old /got2/",
    "ARG TAG=1\nARG NAME=base\nFROM ${NAME}:$TAG\nARG TAG\nENV T=$TAG N=$NAME",
    "FROM triggers:1\nENV AFTER=$ON\nCOPY app.py /x",
    "FROM base:1 AS t\nONBUILD ENV FROM_T=1\nONBUILD COPY app.py /ont\nFROM t\nENV Z=$FROM_T",
    "FROM scratch\nCOPY app.py /\nCMD [\"/app.py\"]",
    "FROM scratch\nADD plain.tar /\nWORKDIR /t\nLABEL a=b",
    "# escape=`\nFROM base:1\nENV B=C:\\x `\n  D=1",
    "FROM base:1\nENV B=1",
]  # fmt: skip

REFUSED = [
    "NONSENSE x",
    "COPY app.py",
    "COPY missing /x",
    "COPY no*match /x",
    "COPY ../app.py /x",
    "COPY app.py run.sh /x",
    "COPY --chown=nobody-here app.py /x",
    "COPY --nope app.py /x",
    "COPY app.py /file/x",
    "COPY dir /file",
    "RUN false",
    "RUN exit 7",
    'RUN ["/not/there"]',
    "ENV A",
    "ENV",
    "LABEL a",
    "EXPOSE x",
    "ONBUILD FROM x",
    "ONBUILD",
    "SHELL x",
    "HEALTHCHECK",
    "STOPSIGNAL NOPE",
    "COPY --from=9 /a /b",
    "COPY --from=no-such-image:1 /a /b",
    "FROM no-such-image:1",
    "FROM base:1 AS 9x",
    "ENV A=${",
    'VOLUME [""]',
    "USER",
    "WORKDIR",
]


class Judge:
    def __init__(self, docker: Docker, store: Store) -> None:
        self.docker = docker
        self.store = store
        self.count = 0

    def by_docker(self, context: Path, dockerfile: str, *, buildkit: bool = False) -> dict[str, Any]:
        """Build it, by the classic builder or BuildKit; the config. Its name is judged:N."""
        self.count += 1
        name = f"judged:{self.count}"
        file = context.parent / "Dockerfile.docker"
        file.write_text(dockerfile)
        command = self.docker.command("build", "-q", "--network", "none", "--force-rm", "-t", name)
        command += ["--build-arg", "GIVEN=given", "--build-arg", "HTTP_PROXY=p", "-f", str(file), str(context)]
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env={"DOCKER_BUILDKIT": str(int(buildkit)), "HOME": str(context.parent)},
        )
        if done.returncode:
            raise PeerError(done.stderr)
        return dict(json.loads(output(self.docker.command("inspect", "--format", "{{json .Config}}", name))))

    def image_of_docker(self) -> Image:
        """The one that was built last."""
        name = f"judged:{self.count}"
        with tempfile.NamedTemporaryFile(suffix=".tar", dir="/var/tmp") as archive:
            output(self.docker.command("save", "-o", archive.name, name))
            (image,) = self.store.load(archive.name)
        return image

    def ours(self, context: Path, dockerfile: str) -> Image:
        file = context.parent / "Dockerfile.ours"
        file.write_text(dockerfile)
        given = {"GIVEN": "given", "HTTP_PROXY": "p"}
        return self.store.build(context, dockerfile=file, network="none", build_args=given, pull="never")


@pytest.fixture(scope="module")
def judge(docker: Docker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Judge]:
    directory = tmp_path_factory.mktemp("judge")
    with Store(directory / "store", create=True) as store:
        archive = directory / "images.tar"
        archive.write_bytes(tar_of(docker_files([BASE, TRIGGERS])))
        docker.load(archive)
        store.load(archive)
        yield Judge(docker, store)
        assert store.containers() == []


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_context(tmp_path_factory.mktemp("build") / "context", CONTEXT)


def config_of(image: Image) -> dict[str, Any]:
    runtime = image.config.runtime
    return {field: runtime.get(field) or None for field in FIELDS}


def assert_same(judge: Judge, context: Path, dockerfile: str, *, times: bool = True) -> None:
    theirs = judge.by_docker(context, dockerfile)
    ours = judge.ours(context, dockerfile)
    assert config_of(ours) == {field: theirs.get(field) or None for field in FIELDS}
    other = judge.image_of_docker()
    mine, docker = tree_of(ours), tree_of(other)
    for tree in (mine, docker):
        tree.pop("all/.dockerignore", None)  # docker's client writes it anew where the Dockerfile is elsewhere
    if not times:
        mine, docker = ({p: seen._replace(seconds=None) for p, seen in tree.items()} for tree in (mine, docker))
    assert mine == docker
    assert [step.get("empty_layer", False) for step in ours.config.document["history"]] == [
        step.get("empty_layer", False) for step in other.config.document["history"]
    ]


@pytest.mark.parametrize("body", COPIES)
def test_copies(judge: Judge, context: Path, body: str) -> None:
    assert_same(judge, context, f"FROM base:1\n{body}\n")


@pytest.mark.parametrize("body", CONFIGS)
def test_configs(judge: Judge, context: Path, body: str) -> None:
    assert_same(judge, context, f"FROM base:1\n{body}\n", times="RUN" not in body)


@pytest.mark.parametrize("body", RUNS)
def test_runs(judge: Judge, context: Path, body: str) -> None:
    assert_same(judge, context, f"FROM base:1\n{body}\n", times=False)


@pytest.mark.parametrize("text", WHOLE)
def test_whole_files(judge: Judge, context: Path, text: str) -> None:
    assert_same(judge, context, text + "\n", times="RUN" not in text and "triggers" not in text)


@pytest.mark.parametrize("body", REFUSED)
def test_what_is_refused(judge: Judge, context: Path, body: str) -> None:
    dockerfile = f"FROM base:1\nENV OK=1\n{body}\n"
    with pytest.raises(PeerError):
        judge.by_docker(context, dockerfile)
    before = {image.id for image in judge.store.images()}
    with pytest.raises(LayerstoreError, match=r"Dockerfile\.ours:3: "):
        judge.ours(context, dockerfile)
    assert {image.id for image in judge.store.images()} == before
    assert judge.store.containers() == []


IGNORES = [
    "app.py",
    "*.txt",
    "dir",
    "dir/",
    "/dir",
    "dir/*",
    "dir/sub/b",
    "*/a",
    "**/b",
    "**/*.txt",
    "dir/**",
    "**",
    "*\n!app.py",
    "*\n!dir/sub",
    "dir\n!dir/a",
    "dir/sub\n!dir/sub/deep",
    "*.txt\n!one.txt\none.*",
    "!app.py\napp.py",
    "# comment\n  one.txt  \n\n./two.txt",
    "o??.txt",
    "[a-o]*.txt",
    "Dockerfile\n.dockerignore",
    "../app.py",
    "dir/../app.py",
    "di",
    "link.txt",
    "dlink",
]


@pytest.mark.parametrize("patterns", IGNORES)
def test_dockerignore(judge: Judge, context: Path, patterns: str) -> None:
    ignore = context / ".dockerignore"
    ignore.write_text(patterns + "\n")
    try:
        assert_same(judge, context, "FROM base:1\nCOPY . /all/\n", times=False)
    finally:
        ignore.unlink()


# Where the classic builder and BuildKit differ.
AS_BUILDKIT = [
    "COPY stars/**/**/*sub/*.txt /o/",
    "COPY stars/**/xsub /o/",
    "COPY stars/a**/*sub/t.txt /o/",
    "COPY stars/** /o/",
    "ADD nameless.tar /data",
    "ADD dotfile.tar /new/",
    "COPY conflicts /data/",
    "COPY dir /lnk",
]
REFUSED_BY_BUILDKIT = ["COPY conflicts/ /", "COPY links/ /", "COPY files/ /", "COPY conflicts/lnk /file"]
# Not "**sub": it means the end of a name since BuildKit has moby/patternmatcher, which is newer than this dockerd.
BUILDKIT_IGNORES = ["**/xsub", "stars/**/t.txt", "st**sub", "**b*", "**/*sub/**", "**\n!stars/a"]


@pytest.mark.parametrize("body", AS_BUILDKIT)
def test_what_buildkit_makes_of_the_same(judge: Judge, context: Path, body: str) -> None:
    assert_as_buildkit(judge, context, f"FROM base:1\n{body}\n")


def assert_as_buildkit(judge: Judge, context: Path, dockerfile: str) -> None:
    """Times aside."""
    judge.by_docker(context, dockerfile, buildkit=True)
    both = judge.ours(context, dockerfile), judge.image_of_docker()
    mine, other = ({path: seen._replace(seconds=None) for path, seen in tree_of(image).items()} for image in both)
    assert mine == other


@pytest.mark.parametrize("body", REFUSED_BY_BUILDKIT)
def test_what_buildkit_refuses(judge: Judge, context: Path, body: str) -> None:
    with pytest.raises(PeerError, match=r"cannot (copy to non-directory|replace to directory)"):
        judge.by_docker(context, f"FROM base:1\n{body}\n", buildkit=True)
    with pytest.raises(LayerstoreError, match=r"Dockerfile\.ours:2: .*(neither can take|is not a directory)"):
        judge.ours(context, f"FROM base:1\n{body}\n")


@pytest.mark.parametrize("patterns", BUILDKIT_IGNORES)
def test_dockerignore_of_buildkit(judge: Judge, context: Path, patterns: str) -> None:
    ignore = context / ".dockerignore"
    ignore.write_text(patterns + "\n.dockerignore\n")
    try:
        assert_as_buildkit(judge, context, "FROM base:1\nCOPY . /all/\n")
    finally:
        ignore.unlink()


# What the classic builder does not know, with buildah as the judge.
NEWER = [
    "COPY --chmod=750 app.py dir /new/",
    "COPY --chmod=0604 --chown=5:6 dir /data",
    "RUN --mount=type=tmpfs,target=/t echo > /t/lost; echo > /kept",
    "RUN --mount=type=bind,source=dir,target=/ctx cat /ctx/sub/b > /got; ls /ctx > /list",
    "RUN --mount=type=bind,from=base:1,source=/data,target=/b cat /b/old > /got",
    "RUN --mount=type=cache,target=/c echo > /c/x; ls /c > /list",
    "COPY app.py /new/\nCOPY dir /lnk/\nADD packed.tgz /lnk",
    "ADD dot.tar /new\nADD dot.tar /data/\nADD dot.tar /",
    "ADD links.tar /data",
    "COPY dlink/[su]* /new/\nCOPY app.py/ /new/",
    "ADD merge.tar /data\nCOPY app.py /data/old/\nCOPY other/sub /data/old/",
    "USER bob\nWORKDIR /bobs\nCOPY app.py .",  # the classic builder makes it root's
]


@pytest.mark.needs_tool("buildah")
@pytest.mark.parametrize("body", NEWER)
def test_what_buildah_makes_of_the_same(judge: Judge, context: Path, tmp_path: Path, body: str) -> None:
    dockerfile = tmp_path / "Dockerfile"
    dockerfile.write_text(f"FROM base:1\n{body}\n")
    places = [f"--root={tmp_path}/root", f"--runroot={tmp_path}/run", "--storage-driver=vfs"]
    archive = tmp_path / "image.tar"
    base = tmp_path / "base.tar"
    base.write_bytes(tar_of(docker_files([BASE])))
    output(["buildah", *places, "pull", "--quiet", f"docker-archive:{base}"])
    how = ["--pull-never", "--network=host", "--isolation=chroot", "--tag", "judged:1", "--file", str(dockerfile)]
    output(["buildah", *places, "build", *how, str(context)])
    output(["buildah", *places, "push", "--quiet", "judged:1", f"oci-archive:{archive}"])
    (theirs,) = judge.store.load(archive)
    ours = judge.ours(context, dockerfile.read_text())
    mine, other = (
        {path: seen._replace(seconds=None) for path, seen in tree_of(image).items()} for image in (ours, theirs)
    )
    for path in ("etc/hostname", "run"):  # what buildah leaves of its own after a RUN
        if "RUN" in body:
            other.pop(path)
    assert mine == other


def test_a_real_image(judge: Judge, context: Path) -> None:
    archive = Fixtures().archive("debian", "gzip")
    judge.docker.load(archive)
    judge.store.load(archive)
    name = Fixtures().recipe("debian").name
    text = (
        f"FROM {name} AS build\nWORKDIR /app\nCOPY app.py .\nRUN python3 -m compileall -q . && useradd -m someone\n"
        f"FROM {name}\nENV PYTHONPATH=/app\nCOPY --from=build /app /app\nRUN rm -rf /usr/share/doc /var/log/dpkg.log\n"
        'COPY --chown=www-data dir /bin/x\nENTRYPOINT ["python3", "/app/app.py"]\n'
    )
    theirs = judge.by_docker(context, text)
    ours = judge.ours(context, text)
    assert config_of(ours) == {field: theirs.get(field) or None for field in FIELDS}
    mine, docker = tree_of(ours), tree_of(judge.image_of_docker())
    for tree in (mine, docker):
        for path, seen in tree.items():
            tree[path] = seen._replace(seconds=None, digest=None if path.endswith(".pyc") else seen.digest)
    assert mine == docker
