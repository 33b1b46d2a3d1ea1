"""Counts the cases of a run of tests/hostile, and writes the table of docs/reliability.md and what is below "Limits and
hostile inputs" there: the limits, and each case with what is done with it."""

import time
from pathlib import Path

import pytest
from campaigns import record

from layerstore.limits import Limits

COMMAND = "make hostile"
BEGIN, END = "<!-- hostile: begin -->\n", "<!-- hostile: end -->\n"


class Recorder:
    """A plugin of pytest. A case is a mark's name; one that more than one test has is one case of each."""

    def __init__(self) -> None:
        self._begun = time.monotonic()
        self._cases: dict[str, tuple[str, str, str]] = {}
        self._outcomes: dict[str, str] = {}

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        for item in items:
            for mark in item.iter_markers("hostile"):
                self._cases[item.nodeid] = mark.kwargs["name"], mark.kwargs["done"], mark.kwargs["stands_for"]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.nodeid in self._cases and (report.when == "call" or report.outcome != "passed"):
            self._outcomes[report.nodeid] = report.outcome

    def pytest_sessionfinish(self) -> None:
        tried = [node for node, outcome in self._outcomes.items() if outcome != "skipped"]
        failed = sum(self._outcomes[node] == "failed" for node in tried)
        row = record.Row("hostile input refused or contained", len(tried), crashed=failed)
        before, rest = record.PAGE.read_text().split(BEGIN)
        after = rest.split(END)[1]
        record.PAGE.write_text(f"{before}{BEGIN}{self._page(tried)}{END}{after}")
        record.write("hostile", [row], COMMAND, time.monotonic() - self._begun)

    def _page(self, tried: list[str]) -> str:
        lines = ["| limit | default | of what |\n|---|---:|---|\n"]
        about = limits()
        lines += [f"| `{name}` | {value:,} | {about[name]} |\n" for name, value in vars(Limits()).items()]
        lines.append("\n| area | what is put in | what is done | stands for |\n|---|---|---|---|\n")
        seen = set()
        for node in tried:
            name, done, stands_for = self._cases[node]
            area = Path(node.partition("::")[0]).stem.removeprefix("test_").replace("_", " ")
            line = f"| {area} | {_plain(name)} | {_plain(done)} | {stands_for} |\n"
            if line not in seen:
                lines.append(line)
            seen.add(line)
        return "".join(lines)


def limits() -> dict[str, str]:
    """What the manual says of each limit."""
    found: dict[str, str] = {}
    name = ""
    for line in f"{Limits.__doc__}".partition("Attributes:")[2].splitlines():
        if line.startswith(" " * 8) and line[8] != " ":
            name, _, text = line.strip().partition(": ")
            found[name] = text
        elif line.strip():
            found[name] += f" {line.strip()}"
    return found


def _plain(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")
