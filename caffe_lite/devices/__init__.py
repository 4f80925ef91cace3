"""Where kernels run: `Device` is the contract, `HostDevice` the CPU; `host_device` returns the one of this process."""

from __future__ import annotations

import functools

from caffe_lite.devices.base import Buffer, ConvolutionGeometry, Device, MemoryInfo, Tape
from caffe_lite.devices.host import HostDevice
from caffe_lite.devices.tape import Program
from caffe_lite.errors import DeviceError

__all__ = [
    "Buffer",
    "ConvolutionGeometry",
    "Device",
    "HostDevice",
    "MemoryInfo",
    "Program",
    "Tape",
    "host_device",
    "set_mode_cpu",
    "set_mode_gpu",
]


@functools.cache
def host_device() -> HostDevice:
    """Return the CPU, as the device that all nets of this process share."""
    return HostDevice()


def set_mode_cpu() -> None:
    """Build the nets from here on for the CPU, which is where they are built anyway."""


def set_mode_gpu() -> None:
    """Raise `DeviceError`: this version does not run nets on a GPU."""
    raise DeviceError("this version of caffe_lite computes on the CPU only. Call set_mode_cpu() instead.")
