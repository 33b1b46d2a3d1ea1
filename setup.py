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

# Programs of one unit, without a C library (csrc/mount/bare.h).
PROGRAMS = ("keeper", "monitor")
PROGRAM_MACHINES = ("x86_64", "aarch64")
PROGRAM_COMPILE_ARGS = ["-std=gnu11", "-Os", "-g0", "-Wall", "-Wextra", "-ffreestanding", "-fno-pie"]
PROGRAM_COMPILE_ARGS += [
    "-fno-stack-protector",
    "-fno-asynchronous-unwind-tables",
    "-fno-tree-loop-distribute-patterns",
]
PROGRAM_LINK_ARGS = ["-static", "-nostdlib", "-no-pie", "-Wl,-s", "-Wl,--build-id=none", "-Wl,-z,noseparate-code"]

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
        for name in self.programs():
            self.link_program(name, Path(self.target_of(name)))

    def programs(self) -> tuple[str, ...]:
        return PROGRAMS if platform.machine() in PROGRAM_MACHINES else ()

    def target_of(self, program: str) -> str:
        path = f"layerstore/_core/{program}"
        return path if self.inplace else f"{self.build_lib}/{path}"

    def link_program(self, name: str, target: Path) -> None:
        objects = self.compiler.compile(
            [f"csrc/mount/{name}.c"],
            output_dir=f"{self.build_temp}/programs",
            include_dirs=["csrc"],
            extra_postargs=PROGRAM_COMPILE_ARGS,
            depends=COMMON,
        )
        self.compiler.link_executable(
            objects,
            target.name,
            output_dir=str(target.parent),
            extra_postargs=[*PROGRAM_LINK_ARGS, f"-Wl,-e,ls_{name}"],
        )
        target.chmod(0o755)  # for users of containers, whatever the umask is

    def get_outputs(self) -> list[str]:
        programs = () if self.inplace else self.programs()
        return [*super().get_outputs(), *map(self.target_of, programs)]


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
