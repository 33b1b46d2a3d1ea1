"""Builds the core: csrc/ once into a static library, and each Cython module linked with what it uses of it.

LAYERSTORE_SANITIZE=1 builds with ASan and UBSan, LAYERSTORE_SANITIZE=thread with TSan; LAYERSTORE_WERROR=1 turns
warnings of the C core into errors.
"""

import os
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup


def files(pattern: str) -> list[str]:
    return sorted(str(path) for path in Path().glob(pattern))


C_SOURCES = files("csrc/*.c")
# What everything is built again for.
COMMON = ["setup.py", *files("csrc/*.h")]

compile_args = ["-std=gnu11", "-O3", "-fvisibility=hidden", "-Wall", "-Wextra", "-pthread"]
link_args = ["-pthread"]
if os.environ.get("LAYERSTORE_WERROR"):
    compile_args.append("-Werror")
if sanitize := os.environ.get("LAYERSTORE_SANITIZE"):
    sanitizers = "thread" if sanitize == "thread" else "address,undefined"
    compile_args += ["-O1", "-g", f"-fsanitize={sanitizers}", "-fno-sanitize-recover=undefined"]
    link_args += [f"-fsanitize={sanitizers}"]
# The C that Cython writes is not ours to keep warning-free.
cython_args = ["-Wno-unused-parameter", "-Wno-unused-function", "-Wno-sign-compare", "-Wno-cast-function-type"]

core = {
    "sources": C_SOURCES,
    "include_dirs": ["csrc"],
    "cflags": compile_args,
    "obj_deps": {"": COMMON},
}
extensions = [
    Extension(
        f"layerstore._core.{Path(module).stem}",
        [module],
        include_dirs=["csrc"],
        depends=[*COMMON, *C_SOURCES, *files("layerstore/_core/*.pxd")],
        extra_compile_args=[*compile_args, *cython_args],
        extra_link_args=link_args,
    )
    for module in files("layerstore/_core/*.pyx")
]

setup(
    libraries=[("layerstore_core", core)],
    ext_modules=cythonize(
        extensions,
        build_dir="build/cython",
        compiler_directives={"language_level": "3", "embedsignature": True, "freethreading_compatible": False},
    ),
)
