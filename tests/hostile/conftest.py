"""The store of a module of cases; with --record, the count of cases and the page's table of them."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hostile import Place


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--record", action="store_true", help="write what was counted to docs/reliability.md")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--record", False):
        from recording import Recorder

        config.pluginmanager.register(Recorder())


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    made = Place(tmp_path_factory.mktemp("hostile") / "top")
    yield made
    made.store.remove(made.store.containers(), force=True)
    made.store.close()


@pytest.fixture(autouse=True)
def beside_the_store(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names without a directory would be those of `cwd`."""
    if "place" in request.fixturenames:
        monkeypatch.chdir(request.getfixturevalue("place").cwd)


@pytest.fixture
def outside(place: Place) -> Path:
    return place.outside
