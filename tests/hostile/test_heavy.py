"""Inputs that are large or become so (heavy.py): refused by the name of a limit, in 64 MiB of memory above idle."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cases import case

HERE = Path(__file__).parent
MOST_KIB = 64 << 10
# What the message says; "" where it is taken.
TOLD = {
    "a bomb of gzip": ("the layer has .* bytes and more in .* of gzip.*layer_ratio", ""),
    "a bomb of zstd": ("the layer has .* bytes and more in .* of zstd.*layer_ratio", ""),
    "a bomb of gzip in gzip": ("the layer has .*layer_ratio", ""),
    "a bomb of entries": ('entry "d000.*index_bytes and index_ratio', ""),
    "a bomb of paths": ('entry "l/.*index_bytes and index_ratio', ""),
    "a bomb of xattrs": ('entry "f.*index_bytes and index_ratio', ""),
    "a bomb of link targets": ('entry "f.*index_bytes and index_ratio', ""),
    "a pax header of 1 GiB that is there": ("byte 0.*extended_bytes", "CVE-2022-2879 (archive/tar)"),
    "a pax header of 1 GiB in an archive of images": ("byte 0.*extended_bytes", "CVE-2022-2879 (archive/tar)"),
    "200,000 files in an archive that is a stream": ("100001 files with 'f000000'.*members", ""),
    "200,000 files in an archive that is a file": ("100001 files with 'f000000'.*members", ""),
    "128 MiB of small files in an archive": ("f07 brings.*metadata_bytes", ""),
    "a config that is named 5,000 times": ("c.json brings.*metadata_bytes", ""),
    "a config of 2,700,000 values": ("config has .* values.*json_values", ""),
    "a config of 8 MiB that takes four bytes a letter": ("config.*U.FFFF.*config_bytes", ""),
    "a config of 6 MiB that takes four bytes a letter": ("", ""),
    "a config of 4,000,000 levels": ("config has .* values.*json_values", ""),
    "a zstd window of 2 GiB": ("the layer is zstd.*zstd_window_bytes", ""),
    "a zstd window of 128 MiB": ("the layer is zstd.*zstd_window_bytes", ""),
    "300 MiB behind the end of a tar": ("", ""),
    "too many entries": ('"0000".*limit entries .10000', ""),
    "a layer too large": ("the layer has .*layer_bytes", ""),
}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, dict[str, Any]]]:
    path = os.pathsep.join([str(HERE.parent), str(HERE), *sys.path])
    command = [sys.executable, str(HERE / "heavy.py"), str(tmp_path_factory.mktemp("heavy"))]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=True)
    yield {line["name"]: line for line in map(json.loads, done.stdout.splitlines())}


@pytest.mark.parametrize(
    ("name", "told"),
    [
        pytest.param(name, told, id=name, marks=case(name, "refused" if told else "taken, in 64 MiB", stands_for))
        for name, (told, stands_for) in TOLD.items()
    ],
)
def test_memory_is_bounded(results: dict[str, dict[str, Any]], name: str, told: str) -> None:
    result = results[name]
    assert result["error"] == ("LimitExceeded" if told else ""), result
    assert re.search(told, result["message"], re.DOTALL), result["message"]
    assert result["message"].isprintable()
    assert result["kib"] <= MOST_KIB, result
    assert not result["changed"]


def test_every_input_is_looked_at(results: dict[str, dict[str, Any]]) -> None:
    assert sorted(results) == sorted(TOLD)
