"""Which kernel is taken on which CPU, by a program that is told what its CPU can do; the core for other processors."""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from layerstore._core import hashing

ROOT = Path(__file__).parent.parent
UNITS = [
    *(f"base/{unit}" for unit in ("buffer", "kernel", "status")),
    *(f"hash/{module}{kind}" for module in ("blake3", "chunker") for kind in ("", "_portable", "_avx2", "_avx512")),
]

# In place of cpu.c, so that each set of features can be tried on one machine.
FAKE_CPU = """
#include <stdio.h>
#include <stdlib.h>
#include "hash/blake3.h"
#include "hash/chunker.h"
#include "base/cpu.h"
#include "base/kernel.h"
static unsigned features;
unsigned ls_cpu_features(void) { return features; }
int main(int argc, char **argv)
{
	const struct ls_b3_kernel *hash;
	const struct ls_cut_kernel *cut;
	struct ls_error err;
	int status, of_hashes = argv[1][0] == 'b';
	const char *name = "";

	(void)argc;
	features = strtoul(argv[2], NULL, 0);
	if (of_hashes)
		status = ls_b3_kernel_find(argv[3], &hash, &err);
	else
		status = ls_cut_kernel_find(argv[3], &cut, &err);
	if (!status)
		name = ls_kernel_name(of_hashes ? (const void *)hash : cut);
	printf("%d %s\\n", status, status ? err.message : name);
	return 0;
}
"""
AVX2, AVX512, GFNI = 1, 2, 4
UNSUPPORTED = 7


def compiler(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is not installed")
    return path


@pytest.fixture(scope="module")
def find(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, int, str], tuple[int, str]]:
    """(module, features, name of a kernel) -> (status, the name of the kernel that was found or a message)."""
    if "avx512" not in hashing.all_kernels():
        pytest.skip("this architecture has the portable kernels only")
    directory = tmp_path_factory.mktemp("kernels")
    (directory / "main.c").write_text(FAKE_CPU)
    sources = [str(ROOT / "csrc" / f"{unit}.c") for unit in UNITS]
    program = str(directory / "main")
    subprocess.run([compiler("gcc"), "-I", ROOT / "csrc", directory / "main.c", *sources, "-o", program], check=True)

    def find(module: str, features: int, name: str) -> tuple[int, str]:
        command = [program, module, str(features), name]
        line = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        status, _, rest = line.strip().partition(" ")
        return int(status), rest

    return find


@pytest.mark.parametrize(
    ("module", "features", "fastest", "missing"),
    [
        ("blake3", 0, "portable", ["avx2", "avx512"]),
        ("blake3", AVX2, "avx2", ["avx512"]),
        ("blake3", AVX2 | AVX512, "avx512", []),
        ("chunker", 0, "portable", ["avx2", "avx512"]),
        ("chunker", AVX2, "avx2", ["avx512"]),
        ("chunker", AVX2 | AVX512, "avx2", ["avx512"]),
        ("chunker", AVX2 | AVX512 | GFNI, "avx512", []),
    ],
)
def test_each_set_of_cpu_features(
    find: Callable[[str, int, str], tuple[int, str]], module: str, features: int, fastest: str, missing: list[str]
) -> None:
    """A kernel that needs more than there is is refused, "auto" takes the next."""
    assert find(module, features, "auto") == (0, fastest)
    for name in ("portable", "avx2", "avx512"):
        status, said = find(module, features, name)
        assert status == (UNSUPPORTED if name in missing else 0)
        assert said == name or f'"{name}" was asked for' in said


def test_the_sources_compile_for_another_architecture(tmp_path: Path) -> None:
    gcc = compiler("aarch64-linux-gnu-gcc")
    flags = ["-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-I", ROOT / "csrc"]
    units = [*UNITS, "base/cpu"]
    for unit in units:
        source = ROOT / "csrc" / f"{unit}.c"
        subprocess.run([gcc, *flags, "-c", source, "-o", tmp_path / f"{source.stem}.o"], check=True)
    link = [gcc, "-shared", *tmp_path.glob("*.o"), "-o", tmp_path / "all.so"]
    subprocess.run([*link, "-Wl,--no-undefined"], check=True)
