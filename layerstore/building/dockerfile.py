"""Reads a Dockerfile: directives, instructions with their flags and heredocs, stages
(https://docs.docker.com/reference/dockerfile/, "Format", "Parser directives", "Here-Documents", "FROM").

Nothing is expanded here. Every error begins with the file's name and the line: "Dockerfile:7: ...".
"""

from __future__ import annotations

import re

from layerstore.errors import InvalidInput
from layerstore.limits import DEFAULT, beyond
from layerstore.oci.instructions import exec_form
from layerstore.oci.words import split_words, words_and_ends
from layerstore.types import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from layerstore.limits import Limits

# --link says how a layer may be made, and changes nothing of what it holds here.
_FLAGS: dict[str, tuple[str, ...]] = {
    "ADD": ("chown", "chmod", "link"),
    "COPY": ("from", "chown", "chmod", "link"),
    "FROM": ("platform",),
    "RUN": ("mount", "network"),
}
INSTRUCTIONS = {
    *("ADD", "ARG", "CMD", "COPY", "ENTRYPOINT", "ENV", "EXPOSE", "FROM", "HEALTHCHECK", "LABEL", "MAINTAINER"),
    *("ONBUILD", "RUN", "SHELL", "STOPSIGNAL", "USER", "VOLUME", "WORKDIR"),
}
# Compiled where one is needed, as that takes longer than reading most Dockerfiles.
_HEREDOC = r"""\d*<<(?P<tabs>-?)(?P<quote>["']?)(?P<name>[^<"'\s]+)(?P=quote)"""
_WITH_HEREDOCS = ("ADD", "COPY", "RUN")
_DIRECTIVE = r"#\s*([a-zA-Z][a-zA-Z0-9]*)\s*=\s*(.+)"
_STAGE_NAME = r"[a-z][a-z0-9_.-]*"


class Heredoc(Value):
    """The lines below an instruction up to one that is `name` alone. `expands`: variables in them are replaced."""

    name: str
    content: str
    expands: bool


class Instruction(Value):
    """One instruction. `line` is its first (from 1), `text` what follows its name and flags, continued lines joined.

    `shown` is all of it in one line, as it was written.
    """

    def __init__(
        self, line: int, name: str, flags: Sequence[tuple[str, str]], text: str, heredocs: Sequence[Heredoc]
    ) -> None:
        self.line = line
        self.name = name
        self.flags = tuple(flags)
        self.text = text
        self.heredocs = tuple(heredocs)

    @property
    def shown(self) -> str:
        flags = (f"--{name}={value}" if value else f"--{name}" for name, value in self.flags)
        return " ".join((self.name, *flags, self.text))

    def heredoc_of(self, words: Sequence[str]) -> dict[str, Heredoc]:
        """Those of the words that stand for heredocs, with these."""
        if not self.heredocs:
            return {}
        return dict(zip((word for word in words if re.fullmatch(_HEREDOC, word)), self.heredocs, strict=False))

    def flag(self, name: str) -> str | None:
        """The value of a flag, the last one; None where it is not given."""
        return next((value for flag, value in reversed(self.flags) if flag == name), None)


class Stage(Value):
    """FROM and the instructions up to the next one. `base` and `platform` are as written, `name` is after AS or ""."""

    def __init__(self, line: int, base: str, platform: str, name: str, shown: str) -> None:
        self.line = line
        self.base = base
        self.platform = platform
        self.name = name
        self.shown = shown
        self.instructions: list[Instruction] = []


class Dockerfile(Value):
    """A parsed file: the ARGs before the first FROM, and the stages."""

    name: str
    escape: str
    arguments: Sequence[Instruction]
    stages: Sequence[Stage]


def parse(data: bytes, name: str, limits: Limits = DEFAULT) -> Dockerfile:
    """Read a Dockerfile; `name` begins the messages. Raises `InvalidInput` and `LimitExceeded`."""
    if len(data) > limits.dockerfile_bytes:
        raise beyond(f"{name} is too large", limits, "dockerfile_bytes")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{name} is not UTF-8 text: {error}") from error
    reader = _Reader(text, name)
    arguments: list[Instruction] = []
    stages: list[Stage] = []
    for instruction in reader.instructions():
        if instruction.name == "ONBUILD":
            parse_trigger(instruction.text, instruction.line, name, reader.escape)
        if instruction.name == "FROM":
            stages.append(_stage(instruction, name))
        elif stages:
            stages[-1].instructions.append(instruction)
        elif instruction.name == "ARG":
            arguments.append(instruction)
        else:
            raise wrong(name, instruction.line, f"no build stage yet: {instruction.name} comes after a FROM")
    if not stages:
        raise InvalidInput(f"{name} has no FROM; a build begins with one")
    _check_names(stages, name)
    return Dockerfile(name, reader.escape, arguments, stages)


def parse_trigger(text: str, line: int, name: str, escape: str) -> Instruction:
    """The instruction of an ONBUILD in that line, or of an image whose FROM is there. Raises `InvalidInput`."""
    reader = _Reader(text, name, line)
    reader.escape = escape
    found = reader.instructions()
    if len(found) != 1 or found[0].name in ("FROM", "ONBUILD", "MAINTAINER"):
        raise wrong(name, line, f"ONBUILD {text}: it has one instruction, which is not FROM, ONBUILD or MAINTAINER")
    return found[0]


def words_of_copy(name: str, text: str, escape: str) -> list[str]:
    """The sources of COPY or ADD and where to, as they are written. Raises `InvalidInput`."""
    words = exec_form(text)
    words = split_words(text, escape) if words is None else words
    if len(words) < 2:
        raise InvalidInput(f"{name} {text}: it is {name} SOURCE ... TO")
    return words


def wrong(name: str, line: int, message: str) -> InvalidInput:
    """The error for a line."""
    return InvalidInput(f"{name}:{line}: {message}")


class _Reader:
    def __init__(self, text: str, name: str, first_line: int = 1) -> None:
        self._lines = [line.removesuffix("\r") for line in text.split("\n")]
        self._at = 0
        self._name = name
        self._first_line = first_line
        self.escape = "\\"
        self._directives()

    def _directives(self) -> None:
        """Of the lines at the top. What is none ends them, a comment too."""
        seen: set[str] = set()
        for number, line in enumerate(self._lines):
            match = re.fullmatch(_DIRECTIVE, line.strip()) if line.lstrip().startswith("#") else None
            key = match[1].lower() if match else ""
            if match is None or key not in ("escape", "syntax", "check"):
                return
            if key in seen:
                raise wrong(self._name, number + 1, f"the directive {key} is given twice")
            seen.add(key)
            if key == "escape":
                if match[2] not in ("\\", "`"):
                    raise wrong(self._name, number + 1, f"escape={match[2]}: it is \\ or `")
                self.escape = match[2]

    def instructions(self) -> list[Instruction]:
        found = []
        while self._at < len(self._lines):
            line = self._lines[self._at].strip()
            if not line or line.startswith("#"):
                self._at += 1
                continue
            number = self._first_line + self._at
            text = self._logical_line()
            if text:  # not escapes alone
                found.append(self._instruction(text, number))
        return found

    def _instruction(self, text: str, line: int) -> Instruction:
        name, *more = text.split(None, 1)
        name, rest = name.upper(), more[0] if more else ""
        if name not in INSTRUCTIONS:
            raise wrong(self._name, line, f"unknown instruction: {name if name.isprintable() else repr(name)}")
        flags: list[tuple[str, str]] = []
        if name in _FLAGS:
            flags, rest = self._flags(name, rest, line)
        if not rest.strip():
            raise wrong(self._name, line, f"{name} needs an argument")
        if name in ("ADD", "COPY"):
            try:
                words_of_copy(name, rest, self.escape)
            except InvalidInput as error:
                raise wrong(self._name, line, str(error)) from None
        heredocs = self._heredocs(rest, line) if name in _WITH_HEREDOCS else []
        return Instruction(line, name, flags, rest.strip(), heredocs)

    def _logical_line(self) -> str:
        """The line at hand and those that continue it; comments and empty lines between are passed over."""
        text = ""
        continued = True
        while continued and self._at < len(self._lines):
            line = self._lines[self._at]
            self._at += 1
            if text and (not line.strip() or line.lstrip().startswith("#")):
                continue
            body = line.rstrip(" \t")
            continued = body.endswith(self.escape) and not body.endswith(self.escape * 2)
            text += body[:-1] if continued else line
            if not text:
                text = " "  # the first line had nothing but its escape
        return text.strip()

    def _flags(self, name: str, rest: str, line: int) -> tuple[list[tuple[str, str]], str]:
        flags = []
        end = 0
        for word, word_end in words_and_ends(rest, self.escape):
            if not word.startswith("--"):
                break
            end = word_end
            if word == "--":
                break
            flag, equals, value = word.removeprefix("--").partition("=")
            if flag not in _FLAGS[name]:
                known = ", ".join(f"--{known}" for known in _FLAGS[name])
                raise wrong(self._name, line, f"{name} has no flag --{flag}; there are {known}")
            if not equals and flag != "link":
                raise wrong(self._name, line, f"{name} --{flag} has no value; it is --{flag}=VALUE, without a blank")
            flags.append((flag, value))
        return flags, rest[end:].lstrip()

    def _heredocs(self, text: str, line: int) -> list[Heredoc]:
        found: list[Heredoc] = []
        if "<<" not in text:
            return found
        for word in split_words(text, self.escape):
            match = re.fullmatch(_HEREDOC, word)
            if match is not None:
                found.append(self._heredoc(match["name"], bool(match["tabs"]), not match["quote"], line))
        return found

    def _heredoc(self, name: str, without_tabs: bool, expands: bool, line: int) -> Heredoc:
        content = ""
        while self._at < len(self._lines):
            text = self._lines[self._at]
            self._at += 1
            if without_tabs:
                text = text.lstrip("\t")
            if text == name:
                return Heredoc(name, content, expands)
            content += text + "\n"
        raise wrong(self._name, line, f"the heredoc <<{name} does not end; it ends with a line that is {name} alone")


def _stage(instruction: Instruction, name: str) -> Stage:
    words = instruction.text.split()
    if len(words) not in (1, 3) or (len(words) == 3 and words[1].upper() != "AS"):
        raise wrong(name, instruction.line, f"FROM {instruction.text}: it is FROM IMAGE or FROM IMAGE AS NAME")
    stage_name = words[2].lower() if len(words) == 3 else ""
    if stage_name and not re.fullmatch(_STAGE_NAME, stage_name):
        raise wrong(
            name, instruction.line, f"{words[2]!r} is no name for a stage: a letter, then letters, digits and . _ -"
        )
    return Stage(instruction.line, words[0], instruction.flag("platform") or "", stage_name, instruction.shown)


def _check_names(stages: Sequence[Stage], name: str) -> None:
    seen: dict[str, int] = {}
    for stage in stages:
        if stage.name and stage.name in seen:
            raise wrong(name, stage.line, f"the stage {stage.name} is in line {seen[stage.name]} already")
        seen[stage.name] = stage.line
