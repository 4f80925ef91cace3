"""Show what there is to compute on.

    caffe-lite device_query

CAFFE_LITE_HOST_ISA and CAFFE_LITE_NUM_THREADS choose another build of the kernels and another number of threads.
"""

from __future__ import annotations

import contextlib
import platform
from pathlib import Path

from caffe_lite.cli.flags import FlagParser, Flags, refuse_gpu

__all__ = ["add_flags", "cpu_model", "run"]


def add_flags(parser: FlagParser) -> None:
    """Declare the flags of ``device_query``."""
    parser.flag("gpu", "the GPUs to show; this version has none", metavar="IDS")


def run(flags: Flags) -> int:
    """Print the devices; returns 0."""
    from caffe_lite.devices import host_device
    from caffe_lite.devices.host_library import INSTRUCTION_SETS, openblas_version

    refuse_gpu(flags.gpu)
    device = host_device()
    print(f"CPU:       {cpu_model()}")
    print(f"Kernels:   built for {device.instruction_set} (of {', '.join(INSTRUCTION_SETS)})")
    print(f"Threads:   {device.threads}")
    print(f"Memory:    {device.memory_info().total / 2**30:.1f} GiB")
    print(f"OpenBLAS:  {openblas_version()}")
    print("GPUs:      none (this version does not run nets on a GPU yet)")
    return 0


def cpu_model() -> str:
    """Return the processor's name as the system tells it, or its architecture."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()
