"""The contract between layers and the devices they run on.

A layer's `forward` and `backward` call `launch` and the primitives (`gemm`, `conv_*`).  While a `Tape` is being
recorded these calls are written down instead of run; `Tape.replay` then runs them as often as wanted, without Python.
Buffers are typed, sized and owned; every call checks sizes and types against the kernel's signature before it
touches memory.
"""

from __future__ import annotations

import abc
import contextlib
import dataclasses
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray


class Buffer:
    """`size` elements of one dtype in a device's memory.

    `pointer` is the address as the device's kernels see it; `owner` keeps the memory alive.
    """

    __slots__ = ("device", "dtype", "owner", "pointer", "size")

    def __init__(self, device: Device, dtype: np.dtype[Any], size: int, pointer: int, owner: object) -> None:
        self.device = device
        self.dtype = dtype
        self.size = size
        self.pointer = pointer
        self.owner = owner

    def view(self, offset: int, size: int) -> Buffer:
        """Return elements `offset` to `offset + size` as a buffer over the same memory."""
        if offset < 0 or size < 0 or offset + size > self.size:
            raise ValueError(f"view [{offset}, {offset + size}) does not lie in a buffer of {self.size} elements")
        return Buffer(self.device, self.dtype, size, self.pointer + offset * self.dtype.itemsize, self)

    def __repr__(self) -> str:
        return f"Buffer({self.dtype.name}[{self.size}] on {self.device.name})"


@dataclasses.dataclass(frozen=True)
class ConvolutionGeometry:
    """What a convolution's primitives must know of it; every tuple has one entry a spatial axis.

    The bottom is (num, channels, *in_shape), the top (num, num_output, *out_shape), the weights
    (num_output, channels / group, *kernel), all dense and row-major.
    """

    num: int
    channels: int
    num_output: int
    group: int
    in_shape: tuple[int, ...]
    out_shape: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    pad: tuple[int, ...]
    dilation: tuple[int, ...]


class Tape(abc.ABC):
    """Launches written down once, to be run many times."""

    @abc.abstractmethod
    def replay(self) -> None:
        """Run every launch in the order in which it was recorded."""

    @abc.abstractmethod
    def __len__(self) -> int:
        """The number of launches."""


class Device(abc.ABC):
    """Memory, launches and primitives of one place where kernels run."""

    name: str

    @abc.abstractmethod
    def alloc(self, size: int, dtype: DTypeLike = np.float32) -> Buffer:
        """Return a zeroed buffer of `size` elements.  Raises `OutOfMemoryError`."""

    @abc.abstractmethod
    def upload(self, buffer: Buffer, array: NDArray[Any]) -> None:
        """Copy `array` (same number of elements, converted to the buffer's dtype) into `buffer`, now."""

    @abc.abstractmethod
    def download(self, buffer: Buffer) -> NDArray[Any]:
        """Return the content of `buffer` as a new one-dimensional array, after all launches so far."""

    @abc.abstractmethod
    def host_view(self, buffer: Buffer) -> NDArray[Any]:
        """Return a one-dimensional array that shows the newest content of `buffer`.

        What is written into it reaches the device before the next launch (on the host it is the memory itself).
        """

    @abc.abstractmethod
    def copy(self, source: Buffer, target: Buffer) -> None:
        """Launch: copy all elements of `source` to `target`, which has the same size and dtype."""

    @abc.abstractmethod
    def fill(self, buffer: Buffer, value: float) -> None:
        """Launch: set every element of `buffer` to `value`."""

    @abc.abstractmethod
    def launch(self, kernel: str, work: int, *args: Buffer | float | tuple[int, ...]) -> None:
        """Launch `kernel` over `work` elements (element kernels) or rows (row kernels).

        `args` follow the kernel's parameters: a `Buffer` for a pointer, a number for a scalar, a tuple of integers for
        a struct of ints.  Raises `KernelError` if count, dtype or a buffer's size does not fit the signature.
        """

    @abc.abstractmethod
    def gemm(
        self,
        transpose_a: bool,
        transpose_b: bool,
        m: int,
        n: int,
        k: int,
        alpha: float,
        a: Buffer,
        b: Buffer,
        beta: float,
        c: Buffer,
        bias: Buffer | None = None,
    ) -> None:
        """Launch: C = alpha op(A) op(B) + beta C (+ bias), row-major and dense: op(A) m×k, op(B) k×n, C m×n.

        `bias` has n elements and is added to every row of C.
        """

    @abc.abstractmethod
    def conv_forward(
        self, geometry: ConvolutionGeometry, bottom: Buffer, weights: Buffer, bias: Buffer | None, top: Buffer
    ) -> None:
        """Launch: top = weights * bottom + bias (overwrites)."""

    @abc.abstractmethod
    def conv_backward_data(
        self, geometry: ConvolutionGeometry, weights: Buffer, top_diff: Buffer, bottom_diff: Buffer
    ) -> None:
        """Launch: the gradient with respect to the bottom (overwrites)."""

    @abc.abstractmethod
    def conv_backward_weights(
        self, geometry: ConvolutionGeometry, bottom: Buffer, top_diff: Buffer, weight_diff: Buffer
    ) -> None:
        """Launch: the gradient with respect to the weights (adds)."""

    @abc.abstractmethod
    def record(self) -> contextlib.AbstractContextManager[Tape]:
        """Write the launches inside the `with` block to the tape it gives, instead of running them."""

    @abc.abstractmethod
    def synchronize(self) -> None:
        """Wait until every launch so far has ended."""

    @abc.abstractmethod
    def memory_info(self) -> MemoryInfo:
        """Return what this process has allocated through the device."""


@dataclasses.dataclass(frozen=True)
class MemoryInfo:
    """Bytes allocated now and at most, and the device's total where it is known (else 0)."""

    allocated: int
    peak: int
    total: int
