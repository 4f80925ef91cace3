"""Where kernels run: `Device` is the contract, `HostDevice` the CPU; `host_device` returns the one of this process."""

from __future__ import annotations

import functools

from caffe_lite.devices.base import Buffer, ConvolutionGeometry, Device, MemoryInfo, Tape
from caffe_lite.devices.host import HostDevice
from caffe_lite.devices.tape import Program

__all__ = [
    "Buffer",
    "ConvolutionGeometry",
    "Device",
    "HostDevice",
    "MemoryInfo",
    "Program",
    "Tape",
    "host_device",
]


@functools.cache
def host_device() -> HostDevice:
    """Return the CPU, as the device that all nets of this process share."""
    return HostDevice()
