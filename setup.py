"""Builds the Cython core. Each extension lists the C units it needs; csrc/ has no build system of its own.

LAYERSTORE_SANITIZE=1 builds with ASan and UBSan, LAYERSTORE_WERROR=1 turns warnings of the C core into errors.
"""

import os
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup


def parts(prefix: str) -> list[str]:
    """The unit of that name and those that it is split into."""
    return sorted(path.stem for path in Path("csrc").glob(f"{prefix}*.c"))


BASE = ["status", "buffer"]
BLAKE3 = ["cpu", *parts("blake3")]
INDEX = ["siphash", *parts("index")]
LAYER = [*parts("tar"), *parts("layer")]

UNITS = {
    "status": BASE,
    "hashing": [*BASE, *BLAKE3],
    "tar": [*BASE, *parts("tar")],
    "index": [*BASE, *BLAKE3, *INDEX, "merge"],
    "layer": [*BASE, *BLAKE3, *INDEX, *LAYER],
    "erofs": [*BASE, *BLAKE3, *INDEX, "xxhash32", *parts("erofs")],
    "files": [*BASE, "files"],
    "mount": [*BASE, "fscontext", "mountpoint", "mount", "overlay", "inside", "spawn"],
    "ingest": [*BASE, *BLAKE3, *INDEX, *LAYER, "digests", "contents", "ingest"],
}

compile_args = ["-std=gnu11", "-O3", "-fvisibility=hidden", "-Wall", "-Wextra"]
link_args = []
if os.environ.get("LAYERSTORE_WERROR"):
    compile_args.append("-Werror")
if os.environ.get("LAYERSTORE_SANITIZE"):
    compile_args += ["-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
    link_args += ["-fsanitize=address,undefined"]
# The C that Cython writes is not ours to keep warning-free.
cython_args = ["-Wno-unused-parameter", "-Wno-unused-function", "-Wno-sign-compare", "-Wno-cast-function-type"]

extensions = [
    Extension(
        f"layerstore._core.{name}",
        [f"layerstore/_core/{name}.pyx", *(f"csrc/{unit}.c" for unit in units)],
        include_dirs=["csrc"],
        depends=[str(header) for header in Path("csrc").glob("*.h")],
        extra_compile_args=compile_args + cython_args,
        extra_link_args=link_args,
    )
    for name, units in UNITS.items()
    if Path(f"layerstore/_core/{name}.pyx").exists()
]

setup(
    ext_modules=cythonize(
        extensions,
        build_dir="build/cython",
        compiler_directives={"language_level": "3", "embedsignature": True, "freethreading_compatible": False},
    )
)
