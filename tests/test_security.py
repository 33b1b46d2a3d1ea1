"""What a program can do in a container that is started without any option, against what was recorded of it, of docker's
and of podman's (tests/security, `make security`)."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from cases import case
from judges import started
from security import judging, probing, record
from security.probing import USERS, Answers

from bench.peers import Docker, Podman
from layerstore import Store

RECORDED = record.read(record.RESULTS.read_text())
# What every program needs: were it refused, the rest would say nothing.
USUAL = {
    *(("devices", f"/dev/{name}") for name in ("null", "zero", "full", "random", "urandom", "tty", "ptmx")),
    ("sockets", "AF_INET"),
    ("system calls", "ptrace of a process of its own"),
    ("files of the kernel, to read", "/proc/cmdline"),
    ("privileges", "a set-user-ID program is root"),
}

starts = [pytest.mark.root, pytest.mark.kernel, pytest.mark.needs_tool("gcc"), pytest.mark.needs_tool("crun")]


def allowed(answers: Answers) -> set[tuple[str, str]]:
    return {thing for thing, found in answers.items() if found.allowed}


@pytest.fixture(scope="module")
def facts() -> Iterator[list[str]]:
    with probing.host() as made:
        yield made


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return probing.archive(probing.compiled(tmp_path_factory.mktemp("probe")))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, image: bytes) -> Path:
    """A store that has the image."""
    path = tmp_path_factory.mktemp("security") / "store"
    with Store(path, create=True) as store:
        probing.load(store, image)
    return path


@pytest.mark.parametrize("name", USERS)
class TestOurs:
    pytestmark = starts

    @case(
        "a program that tries to reach the host: keys, groups, sockets, files, calls",
        "reaches what docs/security.md says",
    )
    def test_nothing_more_is_allowed_than_was_recorded(self, place: Path, facts: list[str], name: str) -> None:
        found = probing.parse(probing.ours(place, USERS[name], facts))
        recorded = RECORDED["layerstore", name]
        assert set(found) == set(recorded), "`make security` records what the probe tries now"
        assert [thing for thing, answer in found.items() if answer.why.startswith("not tried")] == []
        assert sorted(allowed(found) - allowed(recorded)) == []
        assert allowed(found) >= USUAL


@pytest.mark.needs_tool("runc")
class TestRunc:
    pytestmark = starts

    def test_nothing_more_is_allowed_than_with_crun(self, place: Path, facts: list[str]) -> None:
        found = probing.parse(probing.ours(place, "0", facts, runtime="runc"))
        assert sorted(allowed(found) - allowed(RECORDED["layerstore", "root"])) == []
        assert allowed(found) >= USUAL


class TestLoosened:
    pytestmark = starts

    def test_what_is_asked_for_is_allowed(self, place: Path, facts: list[str]) -> None:
        """And so the probe sees what the default refuses."""
        options = ["--security-opt", "seccomp=unconfined", "--network", "host", "--pids-limit", "-1"]
        found = allowed(probing.parse(probing.ours(place, "0", facts, *options)))
        assert found >= {
            ("privileges", "no seccomp filter"),
            ("system calls", "keyctl"),
            ("namespaces of its own", "unshare: user"),
            ("control groups", "mount of tmpfs in a user namespace"),
            ("the host's namespaces", "net"),
            ("the host", "an abstract socket"),
            ("the host", "a port of 127.0.0.1"),
            ("the host", "more than 2,100 processes"),
        }


class TestRecord:
    @pytest.mark.parametrize("name", USERS)
    def test_ours_allows_nothing_that_dockers_refuses(self, name: str) -> None:
        assert judging.more_than(RECORDED["layerstore", name], RECORDED["docker", name]) == []

    def test_every_difference_is_explained(self) -> None:
        assert record.faults(RECORDED) == []

    def test_every_excuse_and_explanation_is_of_use(self) -> None:
        differing = record.differing(RECORDED)
        assert set(judging.EXCUSED) <= set(differing)
        used = {judging.pattern(thing) for thing in differing if thing not in judging.EXCUSED}
        assert {pattern for pattern, _ in judging.EXPLAINED} == used

    def test_the_page_is_of_the_record(self) -> None:
        assert record.between_marks(record.PAGE.read_text()) == record.tables(record.RESULTS.read_text())

    def test_what_is_written_is_read(self) -> None:
        assert record.read(record.written(RECORDED, {"docker": "1"})) == RECORDED


@pytest.mark.peers
@pytest.mark.parametrize("kind", [Docker, Podman])
def test_against_peers(
    tmp_path: Path, place: Path, image: bytes, facts: list[str], kind: type[Docker] | type[Podman]
) -> None:
    """Ours allows nothing that docker's refuses; and docker and podman answer as was recorded of them."""
    (tmp_path / "image.tar").write_bytes(image)
    with started(kind) as peer:
        peer.load(tmp_path / "image.tar")
        for name, user in USERS.items():
            theirs = probing.parse(probing.theirs(peer, user, facts))
            if kind is Docker:
                found = probing.parse(probing.ours(place, user, facts))
                assert judging.more_than(found, theirs) == []
            assert allowed(theirs) == allowed(RECORDED[peer.name, name])
