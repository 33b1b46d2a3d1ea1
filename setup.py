"""Builds the core: csrc/ once into a static library, and each Cython module linked with what it uses of it.

LAYERSTORE_SANITIZE=1 builds with ASan and UBSan, LAYERSTORE_SANITIZE=thread with TSan; LAYERSTORE_WERROR=1 turns
warnings of the C core into errors.
"""

import os
import platform
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_clib import build_clib
from setuptools.command.build_ext import build_ext


def files(pattern: str) -> list[str]:
    return sorted(str(path) for path in Path().glob(pattern))


CPUS = len(os.sched_getaffinity(0))
C_SOURCES = files("csrc/*/*.c")
# What everything is built again for.
COMMON = ["setup.py", *files("csrc/*/*.h")]
# What Cython adds to modules, typed memoryviews above all: compiled once and not in each.
SHARED = "layerstore._core._cython"

KEEPER = "layerstore/_core/keeper"
KEEPER_SOURCE = "csrc/mount/keeper.c"
KEEPER_MACHINES = ("x86_64", "aarch64")
KEEPER_COMPILE_ARGS = ["-std=gnu11", "-Os", "-g0", "-Wall", "-Wextra", "-ffreestanding", "-fno-pie"]
KEEPER_COMPILE_ARGS += ["-fno-stack-protector", "-fno-asynchronous-unwind-tables"]
KEEPER_LINK_ARGS = ["-static", "-nostdlib", "-no-pie", "-Wl,-e,ls_keeper", "-Wl,-s", "-Wl,--build-id=none"]

compile_args = ["-std=gnu11", "-fvisibility=hidden", "-Wall", "-Wextra", "-pthread"]
link_args = ["-pthread"]
if sanitize := os.environ.get("LAYERSTORE_SANITIZE"):
    sanitizers = "thread" if sanitize == "thread" else "address,undefined"
    compile_args += ["-g", f"-fsanitize={sanitizers}", "-fno-sanitize-recover=undefined"]
    link_args += [f"-fsanitize={sanitizers}"]
    core_args, cython_args = ["-O1"], ["-O1"]
else:
    # The flags of Python itself ask for symbols: a third of the time that compiling takes, and most of each module.
    compile_args.append("-g0")
    link_args.append("-Wl,-s")
    core_args, cython_args = ["-O3"], ["-O2"]
if os.environ.get("LAYERSTORE_WERROR"):
    core_args.append("-Werror")
# The C that Cython writes is not ours to keep warning-free, but what it is told of the core must be so.
cython_args += ["-Wno-unused-parameter", "-Wno-unused-function", "-Wno-sign-compare", "-Wno-cast-function-type"]
cython_args += ["-Werror=incompatible-pointer-types", "-Werror=int-conversion"]

core = {
    "sources": C_SOURCES,
    "include_dirs": ["csrc"],
    "cflags": [*compile_args, *core_args, "-D_GNU_SOURCE"],
    "obj_deps": {"": COMMON},
}


def extension(name: str, source: str) -> Extension:
    return Extension(
        name,
        [source],
        include_dirs=["csrc"],
        depends=[*COMMON, *C_SOURCES, *files("layerstore/_core/*.pxd")],
        extra_compile_args=[*compile_args, *cython_args],
        extra_link_args=link_args,
    )


class BuildLibraries(build_clib):
    """setuptools compiles one source after the other; here each processor compiles one."""

    def build_libraries(self, libraries: list[tuple[str, dict[str, Any]]]) -> None:
        compile_sources = self.compiler.compile

        def compile_beside(sources: list[str], **options: Any) -> None:
            with ThreadPoolExecutor(CPUS) as pool:
                list(pool.map(lambda source: compile_sources([source], **options), sources))

        self.compiler.compile = compile_beside
        super().build_libraries(libraries)


class BuildExtensions(build_ext):
    def finalize_options(self) -> None:
        super().finalize_options()
        self.parallel = self.parallel or CPUS

    def run(self) -> None:
        super().run()
        if platform.machine() in KEEPER_MACHINES:
            self.link_keeper(Path(KEEPER if self.inplace else f"{self.build_lib}/{KEEPER}"))

    def link_keeper(self, target: Path) -> None:
        """A program of one unit, without a C library (csrc/mount/keeper.h)."""
        objects = self.compiler.compile(
            [KEEPER_SOURCE],
            output_dir=f"{self.build_temp}/keeper",
            include_dirs=["csrc"],
            extra_postargs=KEEPER_COMPILE_ARGS,
            depends=COMMON,
        )
        self.compiler.link_executable(
            objects, target.name, output_dir=str(target.parent), extra_postargs=KEEPER_LINK_ARGS
        )
        target.chmod(0o755)  # for users of containers, whatever the umask is

    def get_outputs(self) -> list[str]:
        has_keeper = platform.machine() in KEEPER_MACHINES and not self.inplace
        return [*super().get_outputs(), *([f"{self.build_lib}/{KEEPER}"] if has_keeper else [])]


# Guarded for the processes of cythonize, which may import this file.
if __name__ == "__main__":
    setup(
        cmdclass={"build_clib": BuildLibraries, "build_ext": BuildExtensions},
        libraries=[("layerstore_core", core)],
        ext_modules=cythonize(
            [
                *(extension(f"layerstore._core.{Path(path).stem}", path) for path in files("layerstore/_core/*.pyx")),
                extension(SHARED, f"{SHARED.replace('.', '/')}.c"),
            ],
            nthreads=CPUS,
            build_dir="build/cython",
            shared_utility_qualified_name=SHARED,
            compiler_directives={"language_level": "3", "embedsignature": True, "freethreading_compatible": False},
        ),
    )
