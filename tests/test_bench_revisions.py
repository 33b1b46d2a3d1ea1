"""What compares one revision's benchmarks with another's: a slowdown is found, noise is none, what lacks is told."""

from itertools import combinations
from pathlib import Path

import pytest

from bench import revisions
from bench.revisions import chance, compare, table

STEADY = [1.00, 1.01, 0.99, 1.02, 1.00, 0.98, 1.01, 1.00, 0.99, 1.01]


def times(factor: float, figures: list[float] = STEADY) -> list[float]:
    return [factor * figure for figure in figures]


def verdict(before: list[float], after: list[float]) -> str:
    """Among 30 benchmarks, as many as there are about."""
    others = {f"other{number}": STEADY for number in range(29)}
    return compare({"it": before} | others, {"it": after} | others, {})[0].verdict


@pytest.mark.parametrize(("factor", "said"), [(1.2, "SLOWER"), (1.08, "SLOWER"), (0.8, "faster"), (1, "same")])
def test_a_change_that_is_larger_than_the_spread_is_found(factor: float, said: str) -> None:
    assert verdict(STEADY, times(factor)) == said


def test_a_slowdown_is_found_though_one_round_of_each_was_disturbed() -> None:
    assert verdict([*STEADY[1:], 1.9], [*times(1.2)[1:], 2.9]) == "SLOWER"


def test_a_difference_below_the_threshold_is_none() -> None:
    assert verdict(STEADY, times(1.04, [1.0, 1.001] * 5)) == "same"


def test_noise_is_no_slowdown() -> None:
    noisy = [1.0, 1.6, 0.9, 1.4, 1.1, 1.8, 1.0, 1.5, 1.2, 0.9]
    assert verdict(noisy, times(1.15, noisy[::-1])) == "same"


def test_too_few_rounds_show_nothing() -> None:
    assert verdict(STEADY[:3], times(2)[:3]) == "same"


def test_the_chance_is_that_of_all_orders() -> None:
    before, after = [1.0, 2.0, 4.0], [3.0, 5.0, 6.0, 7.0]
    everything = sorted(before + after)

    def pairs(later: set[float]) -> int:
        return sum(a < b for a in later for b in set(everything) - later)

    as_far = [chosen for chosen in combinations(everything, len(after)) if pairs(set(chosen)) <= pairs(set(after))]
    assert chance(before, after) == pytest.approx(len(as_far) / 35)
    assert chance([1.0] * 4, [1.0] * 4) == 1


def test_a_benchmark_that_could_not_run_before_is_told_with_the_reason(tmp_path: Path) -> None:
    xml = tmp_path / "round.xml"
    xml.write_text(
        '<testsuites><testsuite><testcase name="test_new"><failure message="ImportError: no such kernel&#10;more"/>'
        '</testcase><testcase name="test_old"/></testsuite></testsuites>'
    )
    reasons = revisions.reasons_of(xml)
    assert reasons == {"test_new": "ImportError: no such kernel"}
    rows = compare({"test_old": STEADY}, {"test_old": STEADY, "test_new": STEADY}, reasons)
    assert [row.verdict for row in rows] == ["same", "could not run there: ImportError: no such kernel"]
    assert table(rows).splitlines()[2].split()[:5] == ["test_new", "-", "1.00", "s", "-"]


@pytest.fixture
def rounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Path]]:
    """Rounds that are not run: what was asked for, in order. This tree takes 1.5 times what the other does."""
    asked: list[tuple[str, Path]] = []

    def run(tree: Path, out: Path, arguments: object) -> int:
        asked.append((out.name, tree))
        seconds = STEADY[len(asked) // 2 % 10] * (1.5 if tree == revisions.ROOT else 1)
        out.write_text(f'{{"benchmarks": [{{"name": "test_it", "stats": {{"min": {seconds}}}}}]}}')
        return 0

    stand_ins = {
        "KEPT": tmp_path,
        "commit_of": lambda revision: "c" * 40,
        "build": lambda revision: tmp_path / revision,
        "run_benchmarks": run,
    }
    for name, stand_in in stand_ins.items():
        monkeypatch.setattr(revisions, name, stand_in)
    return asked


def test_rounds_alternate_and_a_slowdown_fails(
    rounds: list[tuple[str, Path]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / ("c" * 40)).mkdir()
    assert revisions.against("HEAD~1", 10, []) == 1
    assert [name for name, _ in rounds[:4]] == ["before-0.json", "after-0.json", "before-1.json", "after-1.json"]
    assert capsys.readouterr().out.endswith("1 slower than HEAD~1: test_it\n")
    assert not (tmp_path / ("c" * 40)).exists()
