"""Reading Dockerfiles and patterns."""

import itertools
import posixpath
import re
import time
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from meddling import Meddling

from layerstore.building import patterns
from layerstore.building.dockerfile import Dockerfile, parse
from layerstore.building.mounts import parse_mount
from layerstore.building.patterns import Ignored, component_regex, has_wildcards, without_top
from layerstore.building.planning import plan
from layerstore.building.scope import Scope
from layerstore.errors import InvalidInput, LimitExceeded, NotFound


def parsed(text: str) -> Dockerfile:
    return parse(text.encode(), "Dockerfile")


def only(text: str) -> list[tuple[int, str, str]]:
    (stage,) = parsed(text).stages
    return [(each.line, each.name, each.text) for each in stage.instructions]


def test_lines() -> None:
    assert only(
        "\ufeff# a comment\n\n  from x\nRUN a \\\n  b \\  \n# between\n\n   # too\n  && c\r\n"
        "cmd d\n\n  # e\nENV A=1 \\\n"
    ) == [(4, "RUN", "a   b   && c"), (10, "CMD", "d"), (13, "ENV", "A=1")]


def test_an_escape_at_the_end_of_a_line() -> None:
    assert only("FROM x\nRUN a\\\\\nRUN b\\\nc") == [(2, "RUN", "a\\\\"), (3, "RUN", "bc")]


def test_directives() -> None:
    file = parsed("# syntax=docker/dockerfile:1\n# escape=`\nFROM x\nRUN a `\nb\\\nCMD c")
    assert file.escape == "`"
    assert [each.text for each in file.stages[0].instructions] == ["a b\\", "c"]
    # After a comment there are none any more.
    assert parsed("# plain\n# escape=`\nFROM x").escape == "\\"


def test_flags() -> None:
    (stage,) = parsed(
        "FROM --platform=linux/arm64 x AS Name\nCOPY --from=a --chown=1:2 a b\n"
        "RUN --mount=type=tmpfs,target=/a --mount=b=c x --y"
    ).stages
    assert (stage.platform, stage.base, stage.name) == ("linux/arm64", "x", "name")
    copy, run = stage.instructions
    assert (copy.flag("from"), copy.flag("chown"), copy.flag("chmod"), copy.text) == ("a", "1:2", None, "a b")
    assert run.flags == (("mount", "type=tmpfs,target=/a"), ("mount", "b=c"))
    assert run.text == "x --y"
    assert run.shown == "RUN --mount=type=tmpfs,target=/a --mount=b=c x --y"


def test_heredocs() -> None:
    (stage,) = parsed(
        "FROM x\nRUN <<A cat <<-'B' && \\\n more\nFROM not\n$a\nA\n\tin b\n\tB\n"
        'COPY <<"C" <<D /to/\nc\nC\nd\nD\nCMD x <<A\n'
    ).stages
    run, copy, cmd = stage.instructions
    assert [(h.name, h.content, h.expands) for h in run.heredocs] == [
        ("A", "FROM not\n$a\n", True),
        ("B", "in b\n", False),
    ]
    assert [(h.name, h.content, h.expands) for h in copy.heredocs] == [("C", "c\n", False), ("D", "d\n", True)]
    assert (cmd.line, cmd.text, cmd.heredocs) == (14, "x <<A", ())


def test_stages() -> None:
    file = parsed("ARG A=1\nFROM a AS b\nRUN x\nFROM c\nfrom d as E\n")
    assert [each.text for each in file.arguments] == ["A=1"]
    assert [(s.line, s.base, s.name) for s in file.stages] == [(2, "a", "b"), (4, "c", ""), (5, "d", "e")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "Dockerfile has no FROM"),
        ("RUN x\nFROM a", "Dockerfile:1: no build stage yet"),
        ("FROM a\n\nNOPE x", "Dockerfile:3: unknown instruction: NOPE"),
        ("FROM a\nRUN", "Dockerfile:2: RUN needs an argument"),
        ("FROM a\nRUN \\\n\n", "Dockerfile:2: RUN needs an argument"),
        ("FROM a b", "Dockerfile:1: FROM a b"),
        ("FROM a AS 1x", "Dockerfile:1: '1x' is no name"),
        ("FROM a AS x\nFROM b AS X", "Dockerfile:2: the stage x is in line 1 already"),
        ("FROM a\nCOPY --nope x y", "Dockerfile:2: COPY has no flag --nope"),
        ("FROM a\nRUN <<EOF\nx\n", "Dockerfile:2: the heredoc <<EOF does not end"),
        ("# escape=x\nFROM a", "Dockerfile:1: escape=x"),
        ("# escape=`\n# escape=`\nFROM a", "Dockerfile:2: the directive escape is given twice"),
    ],
)
def test_errors_name_the_line(text: str, message: str) -> None:
    with pytest.raises(InvalidInput, match=f"^{message.replace('(', '[(]')}"):
        parsed(text)


def test_what_is_no_text() -> None:
    with pytest.raises(InvalidInput, match="not UTF-8"):
        parse(b"FROM x\xff", "Dockerfile")
    with pytest.raises(LimitExceeded):
        parse(b"#" * (17 << 20), "Dockerfile")


# Patterns


@pytest.mark.parametrize(
    ("pattern", "name", "expected"),
    [
        ("*", "a.b", True),
        ("a*", "ab", True),
        ("a*", "b", False),
        ("?", "a", True),
        ("?", "ab", False),
        ("[a-c]x", "bx", True),
        ("[^a-c]x", "bx", False),
        ("[^a-c]x", "dx", True),
        ("[!a]x", "!x", True),
        ("[a-c\\]]", "]", True),
        ("\\*", "*", True),
        ("\\*", "a", False),
        ("a.b", "axb", False),
        ("a+(b)", "a+(b)", True),
    ],
)
def test_matching_as_go_does(pattern: str, name: str, expected: bool) -> None:
    assert bool(component_regex(pattern).fullmatch(name)) is expected


@pytest.mark.parametrize("pattern", ["[", "[]", "[a", "[b-a]", "a\\", "[-a]", "[a-]"])
def test_no_patterns(pattern: str) -> None:
    with pytest.raises(InvalidInput, match="pattern"):
        component_regex(pattern)


def test_wildcards() -> None:
    assert [has_wildcards(text) for text in ("a*", "a?", "[a]", "a", "\\*a", "a\\[b")] == [True, True, True] + [
        False
    ] * 3


@pytest.mark.parametrize(
    ("lines", "left_out", "kept"),
    [
        (["a"], ["a", "a/b"], ["b", "b/a"]),
        (["**/a"], ["a", "b/a", "b/c/a/d"], ["ba"]),
        (["a/**"], ["a/b", "a/b/c"], ["a", "b"]),
        (["a/**/c"], ["a/c", "a/b/c", "a/b/d/c"], ["a/b", "c"]),
        (["*.md", "!README*.md", "README-x.md"], ["a.md", "README-x.md"], ["README.md", "README-y.md"]),
        (["*", "!a/b"], ["c", "a", "a/c"], ["a/b", "a/b/d"]),
        (["/a/", "./b", "c/../d"], ["a", "b", "d"], ["c"]),
        (["#a", "", "  e  "], ["e"], ["#a"]),
        (["a b"], ["a b"], ["a"]),
        (["a**b"], ["ab", "a/b", "ax/y/b"], ["axb", "a/xb"]),
        (["**.c"], ["a.c", "b/a.c", ".c"], ["a.cc"]),
        (["**a*"], ["ab", "b/ab"], ["ba"]),
    ],
)
def test_dockerignore(lines: list[str], left_out: list[str], kept: list[str]) -> None:
    ignored = Ignored(lines, ".dockerignore")
    assert [path for path in left_out if not ignored.leaves_out(path)] == []
    assert [path for path in kept if ignored.leaves_out(path)] == []
    assert not ignored.leaves_out("")


@pytest.mark.parametrize("pattern", ["a*b", "a*b*c*"])
def test_a_pattern_that_another_thread_makes(pattern: str, meddle: Meddling) -> None:
    """Stages that are built at once share what a .dockerignore says."""
    path = "axbxcx"[: 3 * pattern.count("*")]
    ignored = Ignored([pattern], ".dockerignore")
    seen: list[bool] = []
    meddle.before(re, "compile", lambda: seen.append(ignored.leaves_out(path)))
    seen.append(ignored.leaves_out(path))
    assert seen == [True, True]


TREE_PATHS = st.lists(st.sampled_from(["a", "b", "ab", "ba", "*a"]), min_size=1, max_size=4).map("/".join)
PARTS = st.sampled_from(["a", "b", "*", "**", "?", "a*", "*b", "*a*b", "**a", "a**", "***", "\\*a", "[ab]", "[^a]b"])
PATTERNS = st.lists(PARTS, min_size=1, max_size=4).map("/".join)


def matches_in_go(pattern: str, name: str) -> bool:
    """filepath.Match, as its documentation says it."""
    if not pattern:
        return not name
    if pattern[0] == "*":
        stems = [name[:count] for count in range(len(name) + 1) if "/" not in name[:count]]
        return any(matches_in_go(pattern[1:], name[len(stem) :]) for stem in stems)
    if not name:
        return False
    if pattern[0] == "[":
        letters, _, rest = pattern[1:].partition("]")
        fits = (name[0] in letters.removeprefix("^")) != letters.startswith("^") and name[0] != "/"
        return fits and matches_in_go(rest, name[1:])
    if pattern[0] == "?":
        return name[0] != "/" and matches_in_go(pattern[1:], name[1:])
    pattern = pattern.removeprefix("\\")
    return name[0] == pattern[0] and matches_in_go(pattern[1:], name[1:])


def is_ignored(pattern: str, path: str) -> bool:
    """Whether a line of a .dockerignore is for a path, and not for what is above it."""
    if pattern.startswith("**") and not set(pattern[2:]) & set("*?[]\\"):
        return path.endswith(pattern[2:]) or f"/{path}" == pattern[2:]

    def fits(pattern: str, path: str) -> bool:
        if pattern.startswith("**"):
            rest = pattern[2:].removeprefix("/")
            starts = [0, *(at + 1 for at, letter in enumerate(path) if letter == "/")]
            return not rest or any(fits(rest, path[at:]) for at in starts)
        for count in range(len(pattern) + 1):  # up to the next "**"
            if count == len(pattern) or (pattern.startswith("**", count) and not pattern.startswith("\\", count - 1)):
                head, rest = pattern[:count], pattern[count:]
                break
        if not rest:
            return matches_in_go(head, path)
        ends = range(len(path) + 1)
        return any(matches_in_go(head, path[:at]) and fits(rest, path[at:]) for at in ends)

    return fits(pattern, path)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_dockerignore_against_a_model(count: int) -> None:
    patterns = [
        "/".join(parts) for parts in itertools.product(["a", "*", "**", "?b", "a*", "**a", "a**", "[ab]"], repeat=count)
    ]
    paths = ["/".join(parts) for length in (1, 2, 3) for parts in itertools.product(["a", "b", "ab"], repeat=length)]
    for pattern in patterns:
        ignored = Ignored([pattern], ".dockerignore")
        for path in paths:
            above = [path[:at] for at, letter in enumerate(path) if letter == "/"]
            assert ignored.leaves_out(path) == any(is_ignored(pattern, each) for each in (*above, path)), (
                pattern,
                path,
            )


@given(lines=st.lists(st.tuples(st.booleans(), PATTERNS), min_size=1, max_size=4), path=TREE_PATHS)
@settings(max_examples=300)
def test_lines_of_a_dockerignore_against_a_model(lines: list[tuple[bool, str]], path: str) -> None:
    out = False
    parts = path.split("/")
    for keeps, pattern in lines:
        cleaned = posixpath.normpath(pattern)
        if any(is_ignored(cleaned, "/".join(parts[:count])) for count in range(1, len(parts) + 1)):
            out = not keeps
    ignored = Ignored([f"!{pattern}" if keeps else pattern for keeps, pattern in lines], ".dockerignore")
    for _ in range(2):
        assert ignored.leaves_out(path) == out


@given(pattern=PATTERNS, path=TREE_PATHS)
@settings(max_examples=300)
def test_patterns_of_copy_against_a_model(pattern: str, path: str) -> None:
    """`**` is no more than `*`: one name, or what is left of one."""
    top, parts = without_top(pattern)
    parts = [*(part for part in top.split("/") if part), *parts]
    names = path.split("/")
    found = len(parts) == len(names) and all(
        component_regex(part).fullmatch(name) for part, name in zip(parts, names, strict=True)
    )
    assert found == matches_in_go(pattern, path)


def test_a_dockerignore_of_20000_lines() -> None:
    shapes = ["dir{}/file", "dir{}/*.txt", "*.ext{}", "**/node{}/*.txt", "**/*.{}.txt"]
    lines = [shapes[number % len(shapes)].format(number) for number in range(20_000)]
    begun = time.process_time()
    ignored = Ignored([*lines, "!**/kept"], ".dockerignore")
    paths = [f"src/dir{number}/a.txt" for number in range(100)]
    assert [ignored.leaves_out(path) for path in (*paths, "dir5/file/x", "a/b.9.txt", "x/node3/a.txt")][-3:] == [
        True
    ] * 3
    assert not ignored.leaves_out("dir5/file/kept")
    assert time.process_time() - begun < 5


@pytest.mark.parametrize(("line", "message"), [("!", "no pattern after"), ("[a", "pattern")])
def test_errors_of_a_dockerignore_name_the_line(line: str, message: str) -> None:
    with pytest.raises(InvalidInput, match=rf"^\.dockerignore:2: .*{message}"):
        Ignored(["fine", line], ".dockerignore")


# Variables and mounts


def test_a_scope() -> None:
    scope = Scope({"GIVEN": "g", "http_proxy": "p", "STRAY": "s"}, {"OUTER": "o", "GIVEN": "x"})
    assert scope.variables == {"http_proxy": "p"}
    declarations: list[tuple[str, str | None]] = [("GIVEN", "d"), ("OUTER", None), ("NONE", None), ("OWN", "1")]
    for name, default in declarations:
        scope.declare(name, default)
    assert scope.declared == {"GIVEN": "g", "OUTER": "o", "OWN": "1"}
    assert scope.unused([]) == ["STRAY"]


def test_mounts() -> None:
    mount = parse_mount("type=cache,target=/root/.cache,sharing=locked,mode=0700,uid=5")
    assert (mount.kind, mount.target, mount.number("mode", 0o755, 8), mount.number("uid", 0)) == (
        *("cache", "/root/.cache"),
        *(0o700, 5),
    )
    assert parse_mount("type=secret,id=a").target == "/run/secrets/a"
    assert parse_mount("target=/x,src=y,rw").is_set("readwrite")
    assert not parse_mount("target=/x,ro=false").is_set("readonly")


@pytest.mark.parametrize(
    "text",
    [
        *("type=ssh", "type=cache", "type=bind", "type=secret", "type=tmpfs,target=/x,from=y", "nonsense"),
    ],
)
def test_mounts_that_are_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="--mount"):
        parse_mount(text)


@pytest.mark.parametrize(
    "use", [lambda m: m.number("uid", 0), lambda m: m.number("mode", 0, 8), lambda m: m.is_set("readonly")]
)
def test_values_of_mounts_that_are_none(use: Callable[..., object]) -> None:
    with pytest.raises(InvalidInput, match="--mount"):
        use(parse_mount("type=cache,target=/x,uid=a,mode=9,ro=maybe"))


# What fuzzers found


def test_a_line_of_an_escape_alone_is_no_instruction() -> None:
    assert only("FROM x\n\\") == []
    assert only("FROM x\n\\\n\\\nRUN a\n") == [(2, "RUN", "a")]


@pytest.mark.parametrize(
    "text",
    [
        f"#syntax=a{' ' * (1 << 20)}b\nFROM x\n",
        f"FROM x\nCOPY {'--link ' * (1 << 17)}a /b\n",
        f"FROM x\nHEALTHCHECK {'--interval=1s ' * (1 << 16)}CMD x\n",
    ],
    ids=["a directive with blanks", "flags", "options"],
)
def test_a_long_line_is_read_in_a_time_as_long(text: str) -> None:
    begun = time.process_time()
    parsed(text)
    assert time.process_time() - begun < 10


PATHS = ["a/b/c", "a" * 60, "/".join("a" * 60), "a/" * 30 + "b", "ab" * 30, "x/a/y/b", "a", "a.b/c", "\u00e9/\u00ea"]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "pattern", ["**/a/**/b", "**/*a*", "*/**/b", "a**b**", "**/**/c", "x/**/y/*", "[a-b]**/[!c]*", "??**"]
)
def test_many_wildcards_mean_what_few_do(monkeypatch: pytest.MonkeyPatch, pattern: str, path: str) -> None:
    by_regex = Ignored([pattern], "f").leaves_out(path)
    monkeypatch.setattr(patterns, "_FEW_WILDCARDS", -1)
    assert Ignored([pattern], "f").leaves_out(path) == by_regex


@pytest.mark.parametrize("pattern", ["**/*a" * 20, "**a" * 30, "*a" * 40 + "b", "**/" * 30 + "b"])
def test_wildcards_take_no_time_that_grows_with_their_power(pattern: str) -> None:
    begun = time.process_time()
    for path in ("a" * 4000, "a/" * 100 + "c"):
        Ignored([pattern], "f").leaves_out(path)
        component_regex(pattern.replace("/", "")).fullmatch(path.replace("/", ""))
    assert time.process_time() - begun < 10


def test_a_number_of_a_stage_may_have_any_length() -> None:
    with pytest.raises(NotFound, match="has no stage 99999"):
        plan(parsed("FROM scratch\n"), "9" * 5000, {}, pytest.fail, pytest.fail)
    with pytest.raises(InvalidInput, match="it is a number of bytes"):
        parse_mount(f"type=tmpfs,target=/x,size={'9' * 5000}").size_bytes  # noqa: B018
