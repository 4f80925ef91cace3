"""Builds the stand-in driver, puts it in PyCUDA's way, and runs the kernels of the cubins that are launched.

machine = fake_cuda.install(folder)      # once a process, before PyCUDA is imported
machine.compiled(path, cubin)            # which kernels a cubin holds
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import pathlib
import re
import shutil
import struct
import subprocess
import traceback
from collections.abc import Sequence

import numpy as np
from emulation import emulation

from caffe_lite.devices import cuda_compile, kernels
from caffe_lite.devices.base import Buffer
from caffe_lite.devices.signature import TYPES
from caffe_lite.errors import DeviceError

HERE = pathlib.Path(__file__).parent
RUNNER = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.c_uint64, ctypes.c_char_p, ctypes.POINTER(ctypes.c_uint), ctypes.c_void_p, ctypes.c_size_t
)
STUB = (
    'extern "C" __attribute__((visibility("default"))) CUresult stub_{0}() __asm__("{0}");\n'
    'CUresult stub_{0}() {{ return refuse(CUDA_ERROR_NOT_SUPPORTED, "{0} is a stub"); }}\n'
)


def missing() -> str | None:
    """Return what the stand-in needs and this machine lacks, or None."""
    if emulation.missing():
        return emulation.missing()
    if shutil.which("nm") is None or importlib.util.find_spec("pycuda") is None:
        return "the stand-in driver needs nm and PyCUDA"
    try:
        return None if include_folder() else "the stand-in driver needs cuda.h"
    except DeviceError:
        return "the stand-in driver needs nvcc"


@functools.cache
def include_folder() -> pathlib.Path | None:
    """Return the folder of cuda.h that belongs to nvcc, which may be a wrapper of the real one."""
    dry_run = subprocess.run(
        [cuda_compile.find_nvcc(), "--dryrun", "-E", "-x", "cu", "/dev/null"],
        capture_output=True,
        text=True,
        check=False,
    )
    top = re.search(r"TOP=(.*)", dry_run.stderr)
    folders = [pathlib.Path(top.group(1).strip(), "include")] if top else []
    return next((folder for folder in folders if (folder / "cuda.h").exists()), None)


def build(folder: pathlib.Path) -> pathlib.Path:
    """Compile libcuda.so.1 into `folder`."""
    source = (HERE / "driver.cpp").read_text()
    defined = set(re.findall(r"^API\((cu\w+)", source, re.MULTILINE))
    module = next(pathlib.Path(importlib.util.find_spec("pycuda").origin).parent.glob("_driver*.so"))
    symbols = subprocess.run(["nm", "-D", "--undefined-only", str(module)], capture_output=True, text=True, check=True)
    imported = set(re.findall(r" U (cu[A-Z]\w+)", symbols.stdout))
    (folder / "stubs.inc").write_text("".join(STUB.format(name) for name in sorted(imported - defined)))
    library = folder / "libcuda.so.1"
    subprocess.run(
        ["g++", "-std=c++17", "-O1", "-Wall", "-Wextra", "-fPIC", "-shared", "-fvisibility=hidden", f"-I{folder}",
         f"-I{include_folder()}", "-Wl,-soname,libcuda.so.1", "-o", str(library), str(HERE / "driver.cpp")],
        check=True,
    )  # fmt: skip
    return library


@functools.cache
def install(folder: pathlib.Path) -> Machine:
    """Build the stand-in in `folder` and load it; PyCUDA, imported later, finds it by its name."""
    library = ctypes.CDLL(str(build(folder)))
    return Machine(library, folder)


class Machine:
    """The stand-in, loaded; knows every cubin that the compiler has given since.

    Attributes:
        launched: the kernels that ran, with grid, block and bytes of shared memory.
        failing: the kernel that fails, if any.
        idle: kernels that are launched, but not run.
    """

    def __init__(self, library: ctypes.CDLL, folder: pathlib.Path) -> None:
        self.launched: list[tuple[str, tuple[int, ...]]] = []
        self.failing = ""
        self.idle: set[str] = set()
        self._library = library
        self._folder = folder
        self._files: dict[int, pathlib.Path] = {}
        self._emulated: dict[int, emulation.Library] = {}
        library.fake_cuda_hash.restype = ctypes.c_uint64
        library.fake_cuda_hash.argtypes = (ctypes.c_char_p, ctypes.c_size_t)
        library.fake_cuda_is_allocated.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
        library.fake_cuda_used.restype = ctypes.c_size_t
        self._runner = RUNNER(self._run)
        library.fake_cuda_set_runner(self._runner)

    def compiled(self, path: pathlib.Path, cubin: bytes) -> None:
        """Take note of what `path` was compiled to."""
        self._files[self._library.fake_cuda_hash(cubin, len(cubin))] = path

    def used(self) -> int:
        """Return the bytes of device and pinned memory in use."""
        return int(self._library.fake_cuda_used())

    def _run(self, cubin: int, name: bytes, shape: Sequence[int], arguments: int, count: int) -> int:
        try:
            self._run_kernel(cubin, name.decode(), tuple(shape[:7]), ctypes.string_at(arguments, count))
        except Exception:
            traceback.print_exc()  # the driver can only say that the launch failed
            return 1
        return int(name.decode() == self.failing)

    def _run_kernel(self, cubin: int, name: str, shape: tuple[int, ...], packed: bytes) -> None:
        path = self._files[cubin]
        arguments = self._unpacked(kernels.find(name), packed)
        self.launched.append((name, shape))
        if name not in self.idle:
            if cubin not in self._emulated:
                self._emulated[cubin] = emulation.build([path], self._folder)
            self._emulated[cubin].launch(name, shape[:3], shape[3:6], arguments, shape[6])

    def _unpacked(self, kernel: kernels.Kernel, packed: bytes) -> list[object]:
        """Take a launch's arguments apart; a pointer must lead to as much memory as the kernel's SIZE says."""
        values = list(struct.unpack(kernel.signature.format, packed))
        arguments: list[object] = []
        for parameter in kernel.signature.parameters:
            fields = len(parameter.fields)
            arguments.append(tuple(values.pop(0) for _ in range(fields)) if fields else values.pop(0))
        sizes = iter(kernel.signature.sizes()(*arguments))
        for position, parameter in enumerate(kernel.signature.parameters):
            if parameter.is_pointer:
                size, dtype, pointer = next(sizes), np.dtype(TYPES[parameter.type][1]), arguments[position]
                if not self._library.fake_cuda_is_allocated(pointer, size * dtype.itemsize):
                    raise MemoryError(f"{kernel.name}: '{parameter.name}' points to memory that is not allocated")
                arguments[position] = Buffer(None, dtype, size, pointer, None)
        return arguments
