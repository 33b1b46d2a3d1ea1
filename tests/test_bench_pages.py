"""What results keep of a measurement, and the pages that tell of them."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from bench import pages, run
from bench.measure import Median, interleaved, split_ours
from bench.rows import HEADINGS, NOT_RECORDED, NOTHING, Row, as_json, durably, faster, known, markdown, table

OLD = {
    "work": "an old one",
    "unit": "s",
    "ours": 2.0,
    "peers": {"docker": 8.0},
    "target": "≥ 5× faster",
    "met": False,
    "more_is_better": False,
    "ratio": 4.0,
}
MACHINE = {"processor": "A", "cores": 2, "kernel": "6", "python": "3", "packages": {"docker.io": "20"}}


def measured() -> Row:
    figures = {"ours": iter([3.0, 1.0, 2.0]), "docker": iter([9.0, 30.0, 10.0])}
    works = {name: lambda values=values: next(values) for name, values in figures.items()}  # type: ignore[misc]
    ours, peers = split_ours({name: figure * 10 for name, figure in interleaved(works, 3).items()})
    (row,) = durably({"ours": "all"}, [faster("a work", "ms", ours, {**peers, "podman": 400.0}, 5)])
    return row


def result(rows: list[dict[str, Any]], **about: Any) -> dict[str, Any]:
    base = {"date": "2026-11-28T07:20:11+00:00", "commit": "abc", "file_system": "ext4", "quick": False}
    return {**base, "machine": MACHINE, "rows": rows, **about}


def line(row: dict[str, Any]) -> dict[str, str]:
    cells = markdown([row]).splitlines()[-1].strip("|").split("|")
    return dict(zip(HEADINGS, map(str.strip, cells), strict=True))


def test_a_median_keeps_its_figures() -> None:
    median = Median([4.0, 1.0, 2.0])
    assert median == 2 and (median * 10).figures == (40, 10, 20) and (median / 2).figures == (2, 0.5, 1)
    assert (8 / median).figures == (2, 8, 4) and 8 / median == 4
    assert median / Median([1.0, 10.0, 2.0]) == 1, "the ratio of medians, not the median of ratios"
    assert median.beyond(Median([1.0, 1.0, 3.0])).figures == (3, 0, -1)


def test_results_have_median_spread_and_runs_of_each() -> None:
    kept = json.loads(json.dumps(as_json(measured())))
    assert kept["ours"] == 20 and kept["peers"] == {"docker": 100, "podman": 400} and kept["ratio"] == 5
    assert kept["spread"] == {
        "ours": {"min": 10, "max": 30, "runs": 3},
        "docker": {"min": 90, "max": 300, "runs": 3},
        "podman": {"min": 400, "max": 400, "runs": 1},
    }
    cells = line(kept)
    assert cells["min–max"] == "ours: 10–30; docker: 90–300"
    assert cells["runs"] == "ours, docker: 3; podman: 1"
    assert cells["durable on return"] == "ours: all; docker, podman: not known"
    assert "durable" not in table([as_json(measured())])


def test_what_is_alike_of_all_is_said_once() -> None:
    (row,) = durably(NOTHING, [known("a work", "s", Median([1.0, 2.0]), {"peer": Median([1.0, 2.0])})])
    cells = line(as_json(row))
    assert (cells["min–max"], cells["runs"]) == ("1–2", "2")
    assert cells["durable on return"] == NOTHING["all"]
    assert line(as_json(Row("alone", "s", 1.0, {})))["durable on return"] == "not known"


def test_what_an_older_run_did_not_record_is_said_so() -> None:
    cells = line(OLD)
    assert [cells[heading] for heading in HEADINGS[-3:]] == [NOT_RECORDED] * 3
    assert cells["peer / ours"] == "4×" and cells["met"] == "NO"
    assert "did not record" in pages.page(result([OLD]))
    assert "did not record" not in pages.page(result([as_json(measured())]))


def test_the_newest_results_are_those_of_a_complete_run(tmp_path: Path) -> None:
    runs = {"1": {}, "2": {"complete": True}, "3": {"complete": False}, "4": {"quick": True}}
    for name, about in runs.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(result([], commit=name, **about)))
    assert pages.newest(tmp_path)["commit"] == "2"
    (tmp_path / "2.json").unlink()
    assert pages.newest(tmp_path)["commit"] == "1"
    (tmp_path / "1.json").unlink()
    with pytest.raises(FileNotFoundError):
        pages.newest(tmp_path)


def test_runs_since_a_complete_one_are_told_too(tmp_path: Path) -> None:
    """Of a benchmark the newest; not one that was quick, nor one before."""
    runs: dict[str, dict[str, Any]] = {
        "1": {"benchmarks": ["exec"], "complete": False},
        "2": {"complete": True},
        "3": {"benchmarks": ["exec"], "complete": False},
        "4": {"benchmarks": ["exec", "fork"], "complete": False},
        "5": {"benchmarks": ["fork"], "complete": False, "quick": True},
        "6": {"benchmarks": ["build"], "complete": False},
    }
    for day, about in runs.items():
        text = json.dumps(result([OLD], commit=f"c{day}", date=f"2026-12-0{day}T00:00:00+00:00", **about))
        (tmp_path / f"{day}.json").write_text(text)
    newest = pages.newest(tmp_path)
    later = pages.since(newest, tmp_path)
    assert [run["commit"] for run in later] == ["c4", "c6"]
    page = pages.page(newest, later)
    assert page.index("commit c2") < page.index("## exec, fork") < page.index("commit c4") < page.index("## build")
    assert "c3" not in page and "c5" not in page and "c1" not in page
    shown = {**OLD, "work": "exec of true in one of 200 live containers, from Python"}
    figures = pages.figures({**newest, "rows": []}, [{**later[0], "rows": [shown]}, later[1]])
    assert shown["work"] in figures and "commit c4" in figures and "c6" not in figures and "c2" not in figures


def test_only_the_figures_of_a_readme_are_written() -> None:
    shown = {**OLD, "work": "import the 245 MB Debian image, gzip, by command"}
    readme = f"before\n{pages.BEGIN}old\n{pages.END}after\n"
    written = pages.with_figures(readme, result([shown, OLD]))
    assert written.startswith(f"before\n{pages.BEGIN}") and written.endswith(f"{pages.END}after\n")
    assert shown["work"] in written and "an old one" not in written
    assert pages.with_figures(written, result([shown, OLD])) == written


def test_pages_tell_of_the_newest_results() -> None:
    """`python -m bench.run --render` writes them; a complete run does it too."""
    newest, readme = pages.newest(), pages.README.read_text()
    later = pages.since(newest)
    assert pages.PAGE.read_text() == pages.page(newest, later)
    assert readme.count(pages.BEGIN) == readme.count(pages.END) == 1
    assert readme == pages.with_figures(readme, newest, later)
    by_hand = readme.replace(pages.figures(newest, later), "")
    assert "| peer / ours |" not in by_hand and not re.search(r"^\| -", by_hand, re.MULTILINE)


def test_a_run_goes_on_where_one_of_the_same_tree_was_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "BEGUN", tmp_path / "begun.json")
    measured = {"import": [as_json(known("load", "s", 1.0, {"peer": 2.0}))]}
    about = ["1234567", "ext4", {"processor": "one"}]
    assert run.measured_before(about) == {}
    run.BEGUN.write_text(json.dumps({"about": about, "measured": measured}))
    assert run.measured_before(about) == measured
    assert run.measured_before(["7654321", *about[1:]]) == {}
    assert run.measured_before([*about[:2], {"processor": "another"}]) == {}
    run.BEGUN.write_text(json.dumps({"about": ["1-dirty", *about[1:]], "measured": measured}))
    assert run.measured_before(["1-dirty", *about[1:]]) == {}
    run.BEGUN.write_text('{"about": ["12')
    assert run.measured_before(about) == {}
