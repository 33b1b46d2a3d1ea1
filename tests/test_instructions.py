"""Instructions of `commit --change`, and what docker makes of the same."""

import json
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import pytest
from images import Image, docker_files, tar_of

from bench.peers import Docker, PeerError, output
from layerstore.errors import InvalidInput, LimitExceeded
from layerstore.oci.instructions import apply_changes
from layerstore.oci.words import EXPANDED_LIMIT, expand, split_words

BASE: dict[str, Any] = {
    "Cmd": ["base"],
    "Entrypoint": ["/entry"],
    "Env": ["PATH=/bin", "WHO=world", "EMPTY="],
    "WorkingDir": "/srv",
    "Labels": {"old": "1"},
    "ExposedPorts": {"80/tcp": {}},
    "Volumes": {"/data": {}},
    "User": "nobody",
}
FIELDS = [*BASE, "OnBuild", "Healthcheck"]

# Instructions, and what of the config is otherwise then.
CHANGES: list[tuple[list[str], dict[str, Any]]] = [
    (['CMD ["a", "b c"]'], {"Cmd": ["a", "b c"]}),
    (["CMD echo $WHO 'x  y'"], {"Cmd": ["/bin/sh", "-c", "echo $WHO 'x  y'"]}),
    (["cmd [not json]"], {"Cmd": ["/bin/sh", "-c", "[not json]"]}),
    (["CMD []"], {"Cmd": []}),
    (['ENTRYPOINT ["/x"]'], {"Entrypoint": ["/x"], "Cmd": None}),
    (["ENTRYPOINT /x y"], {"Entrypoint": ["/bin/sh", "-c", "/x y"], "Cmd": None}),
    (['CMD ["c"]', 'ENTRYPOINT ["/x"]'], {"Entrypoint": ["/x"], "Cmd": ["c"]}),
    (["ENV A=1 B=2"], {"Env": [*BASE["Env"], "A=1", "B=2"]}),
    (["ENV A one two"], {"Env": [*BASE["Env"], "A=one two"]}),
    (["ENV A=  B=2"], {"Env": [*BASE["Env"], "A=", "B=2"]}),
    (["ENV WHO=me"], {"Env": ["PATH=/bin", "WHO=me", "EMPTY="]}),
    (["ENV A='one two' B=\"th\\\"ree\" C=fo\\ ur"], {"Env": [*BASE["Env"], "A=one two", 'B=th"ree', "C=fo ur"]}),
    (["ENV A=$WHO B=${WHO}s C='$WHO' D=\\$WHO E=$NONE."],
     {"Env": [*BASE["Env"], "A=world", "B=worlds", "C=$WHO", "D=$WHO", "E=."]}),
    (["ENV A=${NONE:-x} B=${WHO:+y} C=${EMPTY:-z} D=${NONE:+n}"],
     {"Env": [*BASE["Env"], "A=x", "B=y", "C=z", "D="]}),
    (["ENV A=1 B=$A"], {"Env": [*BASE["Env"], "A=1", "B="]}),
    (["ENV A=1", "ENV B=$A"], {"Env": [*BASE["Env"], "A=1", "B=1"]}),
    (["LABEL a=1 \"b c\"='d e'"], {"Labels": {"old": "1", "a": "1", "b c": "d e"}}),
    (["LABEL old=2"], {"Labels": {"old": "2"}}),
    (["EXPOSE 8080 53/udp"], {"ExposedPorts": {"80/tcp": {}, "8080/tcp": {}, "53/udp": {}}}),
    (["EXPOSE 7000-7002/UDP"], {"ExposedPorts": {"80/tcp": {}, "7000/udp": {}, "7001/udp": {}, "7002/udp": {}}}),
    (["USER 1000:1000"], {"User": "1000:1000"}),
    (["USER ${WHO}"], {"User": "world"}),
    (["WORKDIR /a/../b"], {"WorkingDir": "/a/../b"}),
    (["WORKDIR ../a/./b/"], {"WorkingDir": "/a/b"}),
    (["WORKDIR app"], {"WorkingDir": "/srv/app"}),
    (["WORKDIR a", "WORKDIR $WHO"], {"WorkingDir": "/srv/a/world"}),
    (['VOLUME ["/v 1", "/v2"]'], {"Volumes": {"/data": {}, "/v 1": {}, "/v2": {}}}),
    (["VOLUME /v1 /v2"], {"Volumes": {"/data": {}, "/v1": {}, "/v2": {}}}),
    (["ONBUILD RUN echo"], {"OnBuild": ["RUN echo"]}),
    (["HEALTHCHECK NONE"], {"Healthcheck": {"Test": ["NONE"]}}),
    (["HEALTHCHECK --interval=1m30s --timeout=500ms --retries=3 CMD curl x"],
     {"Healthcheck": {"Test": ["CMD-SHELL", "curl x"], "Interval": 90 * 10**9, "Timeout": 5 * 10**8, "Retries": 3}}),
    (['HEALTHCHECK --start-period=2s CMD ["curl", "x"]'],
     {"Healthcheck": {"Test": ["CMD", "curl", "x"], "StartPeriod": 2 * 10**9}}),
]  # fmt: skip

REFUSED = [
    "RUN x",
    "FROM x",
    "nonsense",
    "CMD [1, 2]",
    "ENV A",
    "ENV =1",
    "ENV A=1 B",
    "ENV A='x",
    "ENV A=${WHO",
    "ENV A=${WHO:x}",
    "ENV A=${WHO/x}",
    "ENV A=${WHO%x",
    "EXPOSE x",
    "EXPOSE 90-80",
    "EXPOSE 70000",
    "EXPOSE 80/xyz",
    "ONBUILD ONBUILD RUN x",
    "ONBUILD FROM x",
    "HEALTHCHECK",
    "HEALTHCHECK CMD",
    "HEALTHCHECK FOO x",
    "HEALTHCHECK --nope=1 CMD x",
    "HEALTHCHECK --interval=5 CMD x",
    'VOLUME ["", "/v"]',
]


@pytest.mark.parametrize(("changes", "expected"), CHANGES, ids=lambda value: str(value)[:60])
def test_a_change(changes: list[str], expected: dict[str, Any]) -> None:
    before = json.dumps(BASE)
    assert apply_changes(BASE, changes) == BASE | expected
    assert json.dumps(BASE) == before


@pytest.mark.parametrize("change", REFUSED)
def test_what_is_refused(change: str) -> None:
    with pytest.raises(InvalidInput):
        apply_changes(BASE, [change])


@pytest.mark.parametrize("signal", ["SIGTERM", "term", "9", "64", "SIGRTMIN+3"])
def test_a_signal(signal: str) -> None:
    """Docker's `build` takes it, its `commit` not."""
    assert apply_changes(BASE, [f"STOPSIGNAL {signal}"]) == BASE | {"StopSignal": signal}


@pytest.mark.parametrize("signal", ["NOPE", "0", "65", "SIGTERM+3", "-9"])
def test_no_signal(signal: str) -> None:
    with pytest.raises(InvalidInput, match="no such signal"):
        apply_changes(BASE, [f"STOPSIGNAL {signal}"])


def test_an_instruction_alone_is_refused() -> None:
    with pytest.raises(InvalidInput, match="CMD needs an argument"):  # docker takes it for an empty command
        apply_changes(BASE, ["CMD"])


def test_an_empty_entrypoint_takes_away_the_images() -> None:
    """As in docker's `build`; its `commit` ignores it."""
    assert apply_changes(BASE, ["ENTRYPOINT []"]) == BASE | {"Entrypoint": None, "Cmd": None}


def test_a_shell_of_the_image_runs_the_shell_form() -> None:
    assert apply_changes({"Shell": ["/bin/bash", "-c"]}, ["CMD x"])["Cmd"] == ["/bin/bash", "-c", "x"]


def test_nothing_of_a_config_is_needed() -> None:
    assert apply_changes({}, ["ENV A=1", "LABEL b=2", "EXPOSE 1", "VOLUME /v", "WORKDIR w", "ONBUILD USER x"]) == {
        "Env": ["A=1"],
        "Labels": {"b": "2"},
        "ExposedPorts": {"1/tcp": {}},
        "Volumes": {"/v": {}},
        "WorkingDir": "/w",
        "OnBuild": ["USER x"],
    }


def test_words() -> None:
    assert split_words(r"""a 'b c' "d \" e" f\ g""") == ["a", "'b c'", r'"d \" e"', r"f\ g"]
    assert split_words("  ") == []
    assert expand(r'"a\n\$b" ', {}) == r"a\n$b "
    assert expand("a`$b", {}, escape="`") == "a$b"
    assert expand("$", {}) == "$"
    # Without the colon, for the newer docker alone: what is empty counts as set.
    assert expand("${e-z}${n-z}${e+y}${n+y}", {"e": ""}) == "zy"
    assert expand("${a:?}${b?x}", {"a": "1", "b": ""}) == "1"
    with pytest.raises(InvalidInput, match="b is not set: no b"):
        expand("${b:?no b}", {"b": ""})


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("${f%.gz}", "dir/a.tar"),
        ("${f%.*}", "dir/a.tar"),
        ("${f%%.*}", "dir/a"),
        ("${f%%*}", ""),
        ("${f%nope}", "dir/a.tar.gz"),
        ("${f#*/}", "a.tar.gz"),
        ("${f#*a}", ".tar.gz"),
        ("${f##*a}", "r.gz"),
        ("${f##?i*.}", "gz"),
        ("${f%.$e}", "dir/a.tar"),
        ("${f/a/b}", "dir/b.tar.gz"),
        ("${f//a/b}", "dir/b.tbr.gz"),
        ("${f//./}", "dir/atargz"),
        ("${f/.*/-$e}", "dir/a-gz"),
        ("${f//*/x}", "x"),
        ("${f//?/x}", "x" * 12),
        ("${f/dir\\/a/$}", "$.tar.gz"),
        ("${f//nope/x}", "dir/a.tar.gz"),
        ('"${f%.gz}" $e', "dir/a.tar gz"),
        ("${s%\\*}", "two*"),
        ("${s#\\?}", "two**"),
        ("${n%x}${n#x}${n//x/y}", ""),
    ],
)
def test_patterns(word: str, expected: str) -> None:
    variables = {"f": "dir/a.tar.gz", "e": "gz", "s": "two**"}
    assert expand(word, variables) == expected


def test_patterns_are_bashs() -> None:
    """What the Dockerfile reference says of them is from there."""
    for word in ("${f%.*}", "${f%%.*}", "${f#*a}", "${f##*a}", "${f/.*/-}", "${f//a/b}", "${f//?/x}", "${f/dir\\/a/z}"):
        shown = subprocess.run(["bash", "-c", f"f=dir/a.tar.gz; echo {word}"], capture_output=True, text=True)
        assert expand(word, {"f": "dir/a.tar.gz"}) == shown.stdout.rstrip("\n"), word


def test_a_health_check_that_starts_faster() -> None:
    """Newer than the docker that judges the others."""
    changed = apply_changes(BASE, ["HEALTHCHECK --start-interval=2s --start-period=1m CMD x"])
    assert changed["Healthcheck"] == {
        "Test": ["CMD-SHELL", "x"],
        "StartInterval": 2 * 10**9,
        "StartPeriod": 60 * 10**9,
    }


@pytest.fixture(scope="module")
def container(docker: Docker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Docker, str]]:
    archive = tmp_path_factory.mktemp("container") / "image.tar"
    archive.write_bytes(tar_of(docker_files([Image([tar_of({"x": b"x"})], ["changed:1"], runtime=BASE)])))
    docker.load(archive)
    made = output(docker.command("create", "changed:1"))
    yield docker, made
    output(docker.command("rm", made))


def committed(docker: Docker, container: str, changes: list[str]) -> dict[str, Any]:
    arguments = [part for change in changes for part in ("--change", change)]
    image = output(docker.command("commit", *arguments, container))
    try:
        config = json.loads(output(docker.command("inspect", "--format", "{{json .Config}}", image)))
        return {field: config.get(field) for field in FIELDS}
    finally:
        docker.remove(image)


@pytest.mark.root
@pytest.mark.kernel
@pytest.mark.peers
def test_docker_makes_the_same_of_them(container: tuple[Docker, str]) -> None:
    for changes, expected in CHANGES:
        assert committed(*container, changes) == {field: (BASE | expected).get(field) for field in FIELDS}, changes


@pytest.mark.root
@pytest.mark.kernel
@pytest.mark.peers
def test_docker_refuses_the_same(container: tuple[Docker, str]) -> None:
    accepted = []
    for change in REFUSED:
        try:
            committed(*container, [change])
            accepted.append(change)
        except PeerError:
            pass
    assert accepted == []


# What fuzzers found


def test_variables_are_nested_to_a_limit() -> None:
    nested = "${A:-" * 40 + "x" + "}" * 40
    assert expand(nested, {}) == "x"
    with pytest.raises(LimitExceeded, match="nested more than"):
        expand("${A:-" * 5000 + "}" * 5000, {})


def test_variables_that_double_end_at_a_limit() -> None:
    lines = ["ENV A=0123456789", *["ENV A=$A$A"] * 40]
    with pytest.raises(LimitExceeded, match="more than 1048576 letters"):
        apply_changes({}, lines)
    with pytest.raises(LimitExceeded, match="more than 1048576 letters"):
        expand("${A//?/$A}", {"A": "a" * 100_000})
    assert len(expand("$A", {"A": "a" * EXPANDED_LIMIT})) == EXPANDED_LIMIT


@pytest.mark.parametrize(
    "word", ["${A#*a*a*a*a*a*b}", "${A%%b*a*a*a*a*a*}", "${A/a*a*a*a*b/x}", "${A//b*/x}", "${A##*a*b}"]
)
def test_a_pattern_takes_no_time_that_grows_with_the_power_of_its_stars(word: str) -> None:
    begun = time.process_time()
    assert expand(word, {"A": "a" * 100_000}) == "a" * 100_000
    assert time.process_time() - begun < 10


@pytest.mark.parametrize(
    "change",
    [
        "HEALTHCHECK --interval=" + "9" * 400 + "s CMD x",
        "HEALTHCHECK --interval=" + "1" * 100_000 + " CMD x",
        "HEALTHCHECK --retries=" + "9" * 5000 + " CMD x",
        "STOPSIGNAL " + "9" * 5000,
    ],
    ids=["a time of no float", "digits alone", "retries", "signal"],
)
def test_a_number_may_have_any_length(change: str) -> None:
    begun = time.process_time()
    with pytest.raises(InvalidInput):
        apply_changes({}, [change])
    assert time.process_time() - begun < 10


@pytest.mark.parametrize("config", [{"Env": [5]}, {"Env": {"a": 1}}, {"Labels": ["a"]}, {"Shell": 7}, {"Volumes": "x"}])
def test_a_config_of_something_else_is_refused(config: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match="of the image's config is no"):
        apply_changes(config, ["USER x"])
