"""Compiles the kernels for the CPU: one library for each instruction set.

Run by `setup.py` when the package is installed, before anything of it can be imported, hence the standard library
only (`signature.py` is loaded from beside this file).  Every ``.cu`` is pasted behind `dialect.cuh` with its own name
and line numbers; behind it come the launch functions, which unpack a launch's arguments.
"""

from __future__ import annotations

import concurrent.futures
import importlib.util
import os
import pathlib
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from types import ModuleType

# IEEE semantics stay: NaN and infinity are visible, sums keep their order unless a loop says otherwise (omp simd).
FLAGS = (
    *("-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-pthread", "-fopenmp-simd", "-ffp-contract=fast"),
    *("-fno-math-errno", "-fno-trapping-math", "-Wall", "-Wextra"),
)
INSTRUCTION_SETS: dict[str, tuple[str, ...]] = {
    "baseline": (),
    "avx2": ("-march=haswell",),
    # 256 bits are no slower where 512 are split, and leave no long scalar rest in the short rows of small images.
    "avx512": ("-march=skylake-avx512", "-mprefer-vector-width=256"),
}
EXPORTED = 'extern "C" __attribute__((visibility("default")))'
NO_COMPILER = (
    "caffe_lite compiles its CPU kernels when it is installed and found no C++ compiler. Install one "
    "(Debian and Ubuntu: apt install g++; Fedora: dnf install gcc-c++; macOS: xcode-select --install), "
    "or name it in the environment variable CXX, and install again."
)


class BuildError(RuntimeError):
    """The kernels could not be compiled; the message holds the command and the compiler's output."""


def instruction_sets() -> tuple[str, ...]:
    """Return the instruction sets that this machine's compiler is asked for."""
    is_x86 = platform.machine().lower() in ("x86_64", "amd64")
    return tuple(INSTRUCTION_SETS) if is_x86 else ("baseline",)


def compiler() -> list[str]:
    """Return the C++ compiler's command.  Raises `BuildError` if there is none."""
    command = os.environ.get("CXX", "").split()
    for candidate in [command] if command else [["g++"], ["c++"], ["clang++"]]:
        if shutil.which(candidate[0]):
            return candidate
    raise BuildError(NO_COMPILER)


def translation_unit(kernels: pathlib.Path) -> str:
    """Return one C++ source with every kernel of the folder `kernels`, and a launch function for each."""
    signature = _signature_module()
    parts = [_pasted(kernels / "dialect.cuh")]
    for path in sorted(kernels.glob("*.cu")):
        launches = "".join(_launch(kernel) for kernel in signature.parse(path) if kernel.shape != "tile")
        parts.append(f"namespace {path.stem}_kernels {{\n{_pasted(path)}{launches}}}\n")
    parts.append(f'{EXPORTED} const char* host_sources() {{ return "{signature.fingerprint(kernels)}"; }}\n')
    return "\n".join(parts)


def build(kernels: pathlib.Path, instruction_set: str, work: pathlib.Path, target: pathlib.Path,
          extra_flags: Sequence[str] = ()) -> None:  # fmt: skip
    """Compile the kernels and `kernels/host` into the shared library `target`.

    Args:
        kernels: the folder of the ``.cu`` files.
        instruction_set: a key of `INSTRUCTION_SETS`.
        work: a folder for what lies between.
        target: the library to write.
        extra_flags: for compiling and linking, for example ``-fsanitize=address``.

    Raises:
        BuildError: no compiler, or it failed.
    """
    flags = [*FLAGS, *INSTRUCTION_SETS[instruction_set], *extra_flags]
    work.mkdir(parents=True, exist_ok=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    unit = work / "kernels.cpp"
    unit.write_text(translation_unit(kernels), encoding="utf-8")
    objects = {source: work / f"{source.stem}.o" for source in [unit, *sorted((kernels / "host").glob("*.cpp"))]}
    commands = [[*compiler(), *flags, "-c", str(source), "-o", str(file)] for source, file in objects.items()]
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(_run, commands))
    _run([*compiler(), *flags, "-shared", *map(str, objects.values()), "-o", str(target)])


def _run(command: Sequence[str]) -> None:
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if result.returncode:
        raise BuildError(f"exit code {result.returncode} of: {' '.join(command)}\n{result.stdout}")


def _pasted(path: pathlib.Path) -> str:
    text = path.read_text(encoding="utf-8").replace("#pragma once\n", "\n")
    return f'#line 1 "kernels/{path.name}"\n{text}\n'


def _launch(kernel: object) -> str:
    """Return the function that the worker pool calls: it takes the packed arguments apart."""
    parameters: Iterable[object] = kernel.parameters  # type: ignore[attr-defined]
    name = kernel.name  # type: ignore[attr-defined]
    members = " ".join(f"{parameter.declaration};" for parameter in parameters)  # type: ignore[attr-defined]
    arguments = ", ".join(f"a.{parameter.name}" for parameter in parameters)  # type: ignore[attr-defined]
    return (
        f"{EXPORTED} void {name}_launch(const void* args) {{\n"
        f"  struct Args {{ {members} }};\n"
        f"  const Args& a = *static_cast<const Args*>(args);\n"
        f"  {name}({arguments});\n}}\n"
    )


def _signature_module() -> ModuleType:
    """Load `signature.py` from beside this file without importing the package."""
    name = "caffe_lite_signature"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, pathlib.Path(__file__).with_name("signature.py"))
        assert spec is not None and spec.loader is not None
        sys.modules[name] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[name]
