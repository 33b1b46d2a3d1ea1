"""Fuzzes what reads Dockerfiles: the file, words and variables, instructions that change a config, patterns: they match
what a slow matcher says."""

import functools
import json
import posixpath

import atheris
from harness import fuzz, require, text_of

with atheris.instrument_imports(include=["layerstore"]):
    from layerstore.building import dockerfile, patterns
    from layerstore.errors import InvalidInput, LimitExceeded
    from layerstore.oci.instructions import apply_changes
    from layerstore.oci.words import expand, pairs, split_words

VARIABLES = {"A": "a value", "B": "/b/b/b", "EMPTY": "", "1": "one"}


def read_dockerfile(data: bytes) -> None:
    parsed = dockerfile.parse(data, "Dockerfile")
    require(parsed.stages, "a file without stages is an error")
    for stage in parsed.stages:
        lines = [stage.line, *(instruction.line for instruction in stage.instructions)]
        require(lines == sorted(set(lines)), "instructions stand one behind the other")
        for instruction in stage.instructions:
            require(instruction.name in dockerfile.INSTRUCTIONS and instruction.text, "an instruction says something")
            require("\n" not in instruction.text, "lines are joined")
            instruction.heredoc_of(split_words(instruction.text, parsed.escape))


def expand_words(data: bytes) -> None:
    text = text_of(data)
    words = split_words(text)
    require(split_words(" ".join(words)) == words, "words are words")
    quoted = "'" + text.replace("'", "'\\''") + "'"
    require(expand(quoted, VARIABLES) == text, "what is quoted stands for itself")
    for word in words:
        expand(word, VARIABLES)
    expand(text, VARIABLES, "`", keeps_quotes=True)
    pairs(text, "ENV")


def change_config(data: bytes) -> None:
    """A config of an image that nobody vouches for, a newline, and instructions."""
    config, _, lines = data.partition(b"\n")
    try:
        document = json.loads(config)
    except (ValueError, RecursionError):
        return
    if isinstance(document, dict):
        json.dumps(apply_changes(document, text_of(lines).split("\n")))


@functools.cache
def _tokens(pattern: str, stars: bool) -> tuple[tuple[str, object], ...]:
    found: list[tuple[str, object]] = []
    at = 0
    while at < len(pattern):
        letter = pattern[at]
        if stars and pattern.startswith("**", at):
            rest = pattern[at + 2 :]
            a_name = not at and rest[:1] != "/" and not set(rest) & set("*?[]\\")
            at += 2 + rest.startswith("/")
            found.append(("everything" if a_name or at == len(pattern) else "directories", None))
            continue
        at += 1
        if letter in "*?":
            found.append(({"*": "some", "?": "one"}[letter], None))
        elif letter == "[":
            negated = pattern.startswith("^", at)
            at += negated
            ranges = []
            while pattern[at] != "]" or not ranges:
                at += pattern[at] == "\\"
                low = high = pattern[at]
                at += 1
                if pattern.startswith("-", at):
                    at += 1 + (pattern[at + 1] == "\\")
                    high = pattern[at]
                    at += 1
                ranges.append((low, high))
            at += 1
            found.append(("class", (negated, tuple(ranges))))
        else:
            if letter == "\\":
                letter = pattern[at]
                at += 1
            found.append(("letter", letter))
    return tuple(found)


def _matches(tokens: tuple[tuple[str, object], ...], text: str) -> bool:
    places = {0}
    for kind, what in tokens:
        if kind == "everything":
            places = set(range(min(places), len(text) + 1)) if places else set()
        elif kind == "directories":
            places |= {at + 1 for at, letter in enumerate(text) if letter == "/" and places and at >= min(places)}
        elif kind == "some":
            places = {
                end for at in places for end in range(at, min(x for x in (text.find("/", at), len(text)) if x >= 0) + 1)
            }
        else:
            places = {at + 1 for at in places if at < len(text) and _is_like(kind, what, text[at])}
    return len(text) in places


def _is_like(kind: str, what: object, letter: str) -> bool:
    if kind == "letter":
        return letter == what
    if letter == "/" or kind == "one":
        return letter != "/"
    negated, ranges = what  # type: ignore[misc]
    return any(low <= letter <= high for low, high in ranges) != negated


def match_patterns(data: bytes) -> None:
    """Lines of a .dockerignore, a NUL, and a path."""
    lines, _, path = (text_of(part) for part in data.partition(b"\0"))
    path = posixpath.normpath("/" + path).strip("/")
    out = patterns.Ignored(lines.split("\n"), ".dockerignore").leaves_out(path)
    parts = path.split("/")
    expected = False
    for number, line in enumerate(lines.split("\n")):
        pattern = line.strip().removeprefix("\ufeff" if not number else "\0")
        if not pattern or line.startswith("#"):
            continue
        keeps = pattern.startswith("!")
        pattern = posixpath.normpath(pattern[keeps:].strip() if keeps else pattern).lstrip("/")
        if path and pattern and keeps == expected:
            tokens = _tokens(pattern, True)
            if any(_matches(tokens, "/".join(parts[:count])) for count in range(1, len(parts) + 1)):
                expected = not keeps
    require(out == expected, "what is left out is what the patterns say")


def match_component(data: bytes) -> None:
    """A pattern of COPY, a NUL, and the name of a file."""
    pattern, _, name = (text_of(part) for part in data.partition(b"\0"))
    path, wildcards = patterns.without_top(pattern)
    require(not patterns.has_wildcards(path), "what a pattern begins with is a path")
    for part in wildcards:
        found = bool(patterns.component_regex(part).fullmatch(name))
        require(found == _matches(_tokens(part, False), name), "a component is like its pattern")


if __name__ == "__main__":
    fuzz(
        (read_dockerfile, expand_words, change_config, match_patterns, match_component),
        (InvalidInput, LimitExceeded),
    )
