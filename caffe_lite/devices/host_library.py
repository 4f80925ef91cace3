"""Finds and loads the host library, and OpenBLAS, which it calls.

The library `libhost_<instruction set>.so` is compiled when the package is installed (see `host_build`).
"""

from __future__ import annotations

import ctypes
import functools
import os
import pathlib

from caffe_lite import resources
from caffe_lite.devices.signature import fingerprint
from caffe_lite.errors import DeviceError

INSTRUCTION_SETS = ("baseline", "avx2", "avx512")


@functools.cache
def load(wanted: str | None) -> tuple[ctypes.CDLL, str]:
    """Load the host library for `wanted`, or for the best instruction set of this processor, and give it OpenBLAS."""
    best = _open("baseline").host_instruction_set()
    name = wanted or next(name for name in reversed(INSTRUCTION_SETS[: best + 1]) if _file(name) is not None)
    if name not in INSTRUCTION_SETS or INSTRUCTION_SETS.index(name) > best:
        raise DeviceError(
            f"the instruction set '{name}' is not one this processor has. Expected one of "
            f"{', '.join(INSTRUCTION_SETS[: best + 1])}; see CAFFE_LITE_HOST_ISA."
        )
    library = _open(name)
    library.host_set_sgemm(_openblas())
    return library, name


def _file(name: str) -> str | None:
    """Return where a library is: where the environment says, else beside this module, else (in a source folder that
    was not built) in the installed package.
    """
    file = f"libhost_{name}.so"
    chosen = os.environ.get("CAFFE_LITE_HOST_LIBRARY")
    folders = [pathlib.Path(chosen) if chosen else pathlib.Path(__file__).parent]
    if not chosen and not (folders[0] / file).exists():
        import importlib.metadata  # slow to import, and seldom needed

        installed = importlib.metadata.distributions(name="caffe-lite")
        folders += [pathlib.Path(str(package.locate_file("caffe_lite/devices"))) for package in installed]
    return next((str(folder / file) for folder in folders if (folder / file).exists()), None)


def _open(name: str) -> ctypes.CDLL:
    file = _file(name)
    if file is None:
        raise DeviceError(
            f"{pathlib.Path(__file__).parent} holds no CPU kernels for '{name}', and none are installed. "
            "Install caffe_lite with pip install ."
        )
    try:
        library = ctypes.CDLL(file)
    except OSError as error:
        raise DeviceError(f"the CPU kernels cannot be loaded: {error}. Install caffe_lite again.") from error
    library.host_sources.restype = ctypes.c_char_p
    if library.host_sources().decode() != fingerprint(resources.path("kernels")):
        raise DeviceError(
            f"{file} was built from other kernel sources than those in {resources.path('kernels')}. "
            "Build it again with pip install . (or pip install -e .)."
        )
    library.host_run.argtypes = (ctypes.c_void_p, ctypes.c_int64)
    library.host_set_sgemm.argtypes = (ctypes.c_void_p,)
    return library


@functools.cache
def address(library: ctypes.CDLL, function: str) -> int:
    """Return the address of a function of a library."""
    address = ctypes.cast(library[function], ctypes.c_void_p).value
    assert address is not None
    return address


@functools.cache
def _openblas_library() -> ctypes.CDLL:
    import scipy_openblas32

    folder = pathlib.Path(scipy_openblas32.get_lib_dir())
    return ctypes.CDLL(str(folder / scipy_openblas32.get_library(fullname=True)))


def _openblas() -> int:
    """Return the address of OpenBLAS's sgemm, set to run on the calling thread."""
    library = _openblas_library()
    library.scipy_openblas_set_num_threads(1)
    return address(library, "scipy_cblas_sgemm")


def openblas_version() -> str:
    """Return the version and the configuration of the OpenBLAS in use."""
    library = _openblas_library()
    library.scipy_openblas_get_config.restype = ctypes.c_char_p
    return str(library.scipy_openblas_get_config().decode())
