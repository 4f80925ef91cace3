"""Runs the CUDA side of the kernels on the CPU: compiles ``.cu`` files with g++ behind ``emulation.hpp``.

    library = emulation.build(resources.path("kernels"), folder)
    library.launch("fill", grid=2, block=64, args=[n, 1.0, array])

The source is compiled as it stands, but for one thing no macro can do: ``__shared__ T name[n];`` becomes a reference to
memory of the running block.  What the emulation finds wrong raises `EmulationError`.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import pathlib
import platform
import re
import shutil
import subprocess
import sys
import types
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from caffe_lite import resources
from caffe_lite.devices.base import Buffer
from caffe_lite.devices.kernels import Kernel
from caffe_lite.devices.signature import Signature, parse

NUMPY: Any = types.SimpleNamespace(name="numpy")  # stands for the device in messages
HEADER = pathlib.Path(__file__).with_name("emulation.hpp")
FLAGS = (
    *("-std=c++17", "-O2", "-g1", "-march=native", "-ffp-contract=fast", "-fno-strict-aliasing", "-fno-math-errno"),
    *("-fPIC", "-shared", "-pthread", "-fvisibility=hidden", "-Wall", "-Wextra", "-Wno-unknown-pragmas"),
    *("-Wno-unused-function", "-Wno-psabi"),
)
SANITIZER_FLAGS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer", "-O1")
SANITIZE = "CAFFE_LITE_EMULATION_SANITIZE"  # set in the environment: build with SANITIZER_FLAGS
SHARED = re.compile(r"(extern\s+)?__shared__\s+((?:(?:__align__|alignas)\s*\(\s*\w+\s*\)\s*)?)([^;]+);")
MACRO = re.compile(r"^ *# *define +(\w+)", re.MULTILINE)  # of one file, which must not meet the next
BOUNDS = r"__launch_bounds__\s*\(\s*(\d+)[^)]*\)\s*{name}\s*\("
DECLARATOR = re.compile(r"(\w+)\s*((?:\[[^\[\]]*\]\s*)*)")


class EmulationError(RuntimeError):
    """A kernel that does what CUDA leaves undefined, or that does not compile."""


class Library:
    """Compiled kernels.

    Args:
        path: the shared library.
        signatures: what it holds.

    `os_threads` share the blocks of a launch; each launch takes the next `seed`.
    """

    def __init__(self, path: pathlib.Path, signatures: Iterable[Signature]) -> None:
        self.path = path
        self.kernels = {signature.name: Kernel(signature) for signature in signatures}
        self.os_threads = 2
        self.seed = 1
        self._library = ctypes.CDLL(str(path))

    def launch(
        self,
        name: str,
        grid: int | Sequence[int],
        block: int | Sequence[int],
        args: Sequence[Any],
        shared_bytes: int = 0,
    ) -> None:
        """Run a kernel to its end.

        Args:
            name: the kernel's.
            grid: blocks, along one to three axes.
            block: threads of a block, along one to three axes.
            args: a C-contiguous array (or a host `Buffer`) for a pointer, a number, a tuple of ints for a struct.
            shared_bytes: dynamic shared memory of a block.

        Raises:
            EmulationError: the kernel did what CUDA does not allow.
            KernelError: the arguments do not fit the signature.
        """
        packed = self.kernels[name].pack([_as_buffer(arg) for arg in args])
        error = ctypes.create_string_buffer(4096)
        seed, self.seed = self.seed, self.seed + 1
        failed = self._library.emulation_launch(
            name.encode(),
            _three(grid),
            _three(block),
            ctypes.c_size_t(shared_bytes),
            packed,
            ctypes.c_uint64(seed),
            self.os_threads,
            error,
            ctypes.c_size_t(len(error)),
        )
        if failed:
            raise EmulationError(error.value.decode())


def missing() -> str:
    """Return why the emulation cannot be used on this machine; empty where it can."""
    if platform.machine().lower() not in ("x86_64", "amd64") or not sys.platform.startswith("linux"):
        return "the emulation runs on x86-64 Linux"
    return "" if shutil.which("g++") else "the emulation needs g++"


def build(
    sources: pathlib.Path | Sequence[pathlib.Path], folder: pathlib.Path, extra_flags: Sequence[str] = ()
) -> Library:
    """Compile kernels for emulation.

    Args:
        sources: a folder of ``.cu`` files, or some of them.
        folder: where the library goes; one that lies there already is used if it has the same sources and flags.
        extra_flags: for g++, for example ``-DEMULATED_ARCH=750``.

    Raises:
        EmulationError: with the compiler's output.
    """
    paths = sorted(sources.glob("*.cu")) if isinstance(sources, pathlib.Path) else list(sources)
    signatures = [signature for path in paths for signature in parse(path)]
    text = translation_unit(paths)
    flags = [*FLAGS, *(SANITIZER_FLAGS if os.environ.get(SANITIZE) else ()), *extra_flags]
    key = hashlib.sha256("\0".join([text, HEADER.read_text(), *flags]).encode()).hexdigest()[:20]
    library = folder / f"emulated-{key}.so"
    if not library.exists():
        folder.mkdir(parents=True, exist_ok=True)
        unit = folder / f"emulated-{key}.cpp"
        unit.write_text(text, encoding="utf-8")
        unfinished = folder / f"emulated-{key}-{os.getpid()}.tmp"
        command = ["g++", *flags, f"-I{HEADER.parent}", "-o", str(unfinished), str(unit)]
        result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        if result.returncode:
            raise EmulationError(f"exit code {result.returncode} of: {' '.join(command)}\n{result.stdout}")
        unfinished.replace(library)
    return Library(library, signatures)


def translation_unit(paths: Sequence[pathlib.Path]) -> str:
    """Return the kernels as one C++ source, with a table of what a launch needs."""
    dialect = resources.path("kernels/dialect.cuh").read_text(encoding="utf-8").replace("#pragma once\n", "\n")
    parts = ['#include "emulation.hpp"\n', f'#line 1 "kernels/dialect.cuh"\n{_rewrite_shared(dialect)}\n']
    table = []
    for path in paths:
        code = _rewrite_shared(path.read_text(encoding="utf-8"))
        calls = []
        for signature in parse(path):
            bounds = re.search(BOUNDS.format(name=signature.name), code)
            calls.append(_call(signature, int(bounds.group(1)) if bounds else 1024))
            table.append(f"{path.stem}_kernels::{signature.name}_table")
        shown = f"{path.parent.name}/{path.name}"
        parts.append(f'namespace {path.stem}_kernels {{\n#line 1 "{shown}"\n{code}\n{"".join(calls)}}}\n')
        parts += [f"#undef {macro}\n" for macro in MACRO.findall(code)]
    parts.append(f"static const emulation::Kernel emulation_table[] = {{{', '.join(table)}}};\n")
    parts.append("EMULATION_LIBRARY(emulation_table)\n")
    return "".join(parts)


def sanitizer_environment() -> dict[str, str]:
    """Return the environment for a Python process in which `build` uses AddressSanitizer.

    The runtime must be loaded before anything else, hence a process of its own; every array that it allocates is then
    guarded too.  An error ends the process with a report.
    """
    runtime = subprocess.run(["g++", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True)
    if not pathlib.Path(runtime.stdout.strip()).is_absolute():
        raise EmulationError("g++ does not find libasan.so. Install the AddressSanitizer that belongs to it.")
    return {
        **os.environ,
        "LD_PRELOAD": runtime.stdout.strip(),
        "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        SANITIZE: "1",
    }


def _rewrite_shared(code: str) -> str:
    """Replace declarations of shared memory, keeping the lines."""
    return SHARED.sub(_shared_declaration, code)


def _shared_declaration(match: re.Match[str]) -> str:
    extern, align, declaration = match.groups()
    lines = "\n" * match.group().count("\n")
    first, *others = re.split(r",(?![^\[]*\])", declaration)
    type_name, name, bounds = re.fullmatch(r"\s*(.*?[\s>])(\w+)\s*((?:\[[^\[\]]*\]\s*)*)\s*", first, re.DOTALL).groups()
    if extern:
        return f"{type_name}* const {name} = emulation::dynamic_shared<{type_name}>();{lines}"
    code = ""
    for each, size in [(name, bounds), *(DECLARATOR.fullmatch(other.strip()).groups() for other in others)]:
        alignment = re.sub(r"^\w+\s*", "", align) or f"alignof({each}_shared)"
        code += (
            f"typedef {type_name} {each}_shared{size.strip()}; static char {each}_key; {each}_shared& {each} = "
            f'*({each}_shared*)emulation::shared_variable(&{each}_key, "{each}", sizeof({each}_shared), {alignment}); '
        )
    return code + lines


def _call(signature: Signature, max_threads: int) -> str:
    """Return the function that takes a launch's arguments apart, and the kernel's row of the table."""
    name, parameters = signature.name, signature.parameters
    members = " ".join(f"{parameter.declaration};" for parameter in parameters)
    arguments = ", ".join(f"a.{parameter.name}" for parameter in parameters)
    offsets = ", ".join(f"offsetof({name}_args, {parameter.name})" for parameter in parameters)
    sizes = ", ".join(f"sizeof({name}_args::{parameter.name})" for parameter in parameters)
    last = parameters[-1].name
    return (
        f"struct {name}_args {{ {members} }};\n"
        f"static void {name}_call(const void* args) {{\n"
        f"  const {name}_args& a = *static_cast<const {name}_args*>(args);\n  {name}({arguments});\n}}\n"
        f"static const unsigned {name}_offsets[] = {{{offsets}}}, {name}_sizes[] = {{{sizes}}};\n"
        f'static constexpr emulation::Kernel {name}_table = {{"{name}", {name}_call, {len(parameters)}, '
        f"{name}_offsets, {name}_sizes, offsetof({name}_args, {last}) + sizeof({name}_args::{last}), "
        f"{max_threads}}};\n"
    )


def _as_buffer(argument: Any) -> Any:
    if not isinstance(argument, np.ndarray):
        return argument
    assert argument.flags.c_contiguous, "a kernel takes contiguous arrays"
    return Buffer(NUMPY, argument.dtype, argument.size, argument.ctypes.data, argument)


def _three(sizes: int | Sequence[int]) -> Any:
    values = [sizes] if isinstance(sizes, int) else list(sizes)
    return (ctypes.c_uint * 3)(*values, *[1] * (3 - len(values)))
