"""The CPU as a device: the kernels compiled at install time, walked by a pool of worker threads.

The library `libhost_<instruction set>.so` holds every element and row kernel, and the primitives over OpenBLAS.
A launch is a function pointer, packed arguments and a number of parts; a tape is an array of launches that C code walks
without returning to Python, with the interpreter lock released.

Environment variables:
    CAFFE_LITE_HOST_ISA      baseline, avx2 or avx512 in place of the best that the processor has
    CAFFE_LITE_HOST_LIBRARY  the folder of the libraries, in place of the package's own (see host_build)
    CAFFE_LITE_NUM_THREADS   threads in place of OMP_NUM_THREADS or, without that, one a core
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from caffe_lite.devices import host_library, kernels
from caffe_lite.devices.base import Buffer, ConvolutionGeometry, Device, MemoryInfo, Tape
from caffe_lite.errors import DeviceError, KernelError, OutOfMemoryError

ALIGNMENT = 64  # bytes: a cache line, and the widest vector
SERIAL_ELEMENTS = 16384  # a launch over fewer elements is not worth waking a second thread
SERIAL_FLOPS = 400_000  # nor is a product with fewer operations
PARTS_PER_THREAD = 2  # so that a thread that was held up does not hold up the others
PARTIAL_WEIGHTS = 1 << 18  # convolutions with fewer weights are summed by image range, the others by weight range
LONG_SUM = 64  # parts share the sums of a product where these are so many times longer than either side of the result
MAX_AXES = 8


class _Op(ctypes.Structure):
    _fields_ = (("run", ctypes.c_void_p), ("args", ctypes.c_void_p), ("parts", ctypes.c_int64))


class _Gemm(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int) for name in ("transpose_a", "transpose_b", "m", "n", "k")),
        ("alpha", ctypes.c_float),
        ("a", ctypes.c_void_p),
        ("b", ctypes.c_void_p),
        ("beta", ctypes.c_float),
        ("c", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("partial", ctypes.c_void_p),
    )


class _Convolution(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int) for name in ("num", "channels", "num_output", "group", "axes")),
        *((name, ctypes.c_int * MAX_AXES) for name in ("in_shape", "out_shape", "kernel", "stride", "pad", "dilation")),
        *((name, ctypes.c_void_p) for name in ("bottom", "weights", "bias", "top", "output", "partial")),
    )


class _AddPartials(ctypes.Structure):
    _fields_ = (
        ("size", ctypes.c_int64),
        ("count", ctypes.c_int64),
        ("partial", ctypes.c_void_p),
        ("sum", ctypes.c_void_p),
    )


class HostBuffer(Buffer):
    """A buffer in ordinary memory; `array` shows it."""

    __slots__ = ("array",)

    def __init__(self, device: Device, array: NDArray[Any], owner: object) -> None:
        super().__init__(device, array.dtype, array.size, array.ctypes.data, owner)
        self.array = array

    def view(self, offset: int, size: int) -> HostBuffer:
        """Return elements `offset` to `offset + size` as a buffer over the same memory."""
        if offset < 0 or size < 0 or offset + size > self.size:
            raise ValueError(f"view [{offset}, {offset + size}) does not lie in a buffer of {self.size} elements")
        return HostBuffer(self.device, self.array[offset : offset + size], self.owner)


class _Memory:
    """One allocation; tells the device when it is gone."""

    def __init__(self, device: HostDevice, size: int, dtype: np.dtype[Any]) -> None:
        self.bytes = 0  # so that __del__ is right when the allocation fails
        self.device = device
        raw = np.zeros(size * dtype.itemsize + ALIGNMENT, np.uint8)
        start = -raw.ctypes.data % ALIGNMENT
        self.array = raw[start : start + size * dtype.itemsize].view(dtype)
        self.bytes = size * dtype.itemsize
        device._account(self.bytes)

    def __del__(self) -> None:
        self.device._account(-self.bytes)


class HostTape(Tape):
    """An array of launches, and what keeps their arguments alive."""

    def __init__(self, device: HostDevice) -> None:
        self._device = device
        self._ops: list[_Op] = []
        self._alive: list[object] = []
        self._array: ctypes.Array[_Op] | None = None

    def append(self, op: _Op, *alive: object) -> None:
        self._ops.append(op)
        self._alive.extend(alive)

    def close(self) -> None:
        self._array = (_Op * len(self._ops))(*self._ops)

    def replay(self) -> None:
        """Run every launch in the order in which it was recorded."""
        assert self._array is not None, "a tape is replayed after its recording has ended"
        self._device._run(self._array, len(self._ops))

    def __len__(self) -> int:
        return len(self._ops)


class HostDevice(Device):
    """The CPU.

    Args:
        instruction_set: one of `host_library.INSTRUCTION_SETS`; the best of this processor by default.
        threads: threads that share a launch, the caller's included.

    Raises:
        DeviceError: the host library is missing, or the processor lacks the instruction set.
    """

    def __init__(self, instruction_set: str | None = None, threads: int | None = None) -> None:
        self._library, self.instruction_set = host_library.load(
            instruction_set or os.environ.get("CAFFE_LITE_HOST_ISA") or None
        )
        self.name = f"CPU ({self.instruction_set})"
        self.threads = threads or default_threads()
        self._library.host_set_threads(self.threads)
        self._recording: HostTape | None = None
        self._allocated = self._peak = 0

    # -- memory

    def alloc(self, size: int, dtype: DTypeLike = np.float32) -> HostBuffer:
        """Return a zeroed buffer of `size` elements, aligned to a cache line."""
        dtype = np.dtype(dtype)
        try:
            memory = _Memory(self, size, dtype)
        except MemoryError:
            raise OutOfMemoryError(
                f"{size * dtype.itemsize} bytes are not to be had; {self._allocated} are in use by nets already. "
                "Use a smaller batch."
            ) from None
        return HostBuffer(self, memory.array, memory)

    def upload(self, buffer: Buffer, array: NDArray[Any]) -> None:
        """Copy `array` into `buffer`, now."""
        self.host_view(buffer)[...] = np.asarray(array).reshape(-1)

    def download(self, buffer: Buffer) -> NDArray[Any]:
        """Return the content of `buffer` as a new one-dimensional array."""
        return self.host_view(buffer).copy()

    def host_view(self, buffer: Buffer) -> NDArray[Any]:
        """Return the memory of `buffer` itself as a one-dimensional array."""
        assert isinstance(buffer, HostBuffer)
        return buffer.array

    def memory_info(self) -> MemoryInfo:
        """Return what is allocated through this device, and the machine's memory."""
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
        return MemoryInfo(self._allocated, self._peak, total)

    def _account(self, change: int) -> None:
        self._allocated += change
        self._peak = max(self._peak, self._allocated)

    # -- launches

    def launch(self, kernel: str, work: int, *args: Buffer | float | tuple[int, ...]) -> None:
        """Launch `kernel`; see `Device.launch`."""
        found = kernels.find(kernel)
        packed = found.pack(args)
        if found.signature.shape == "tile":
            raise KernelError(f"kernel {kernel} runs on CUDA only.")
        if work == 0:
            return
        small = max(work, found.largest_buffer(args)) < SERIAL_ELEMENTS or work == 1
        parts = 1 if small else min(work, self.threads * PARTS_PER_THREAD)
        self._submit(f"{kernel}_launch", ctypes.create_string_buffer(packed, len(packed)), parts, *args)

    def copy(self, source: Buffer, target: Buffer) -> None:
        """Launch: copy all elements of `source` to `target` (float32)."""
        self.launch("copy", target.size, target.size, source, target)

    def fill(self, buffer: Buffer, value: float) -> None:
        """Launch: set every element of `buffer` (float32) to `value`."""
        self.launch("fill", buffer.size, buffer.size, value, buffer)

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
        """Launch a matrix product over OpenBLAS; see `Device.gemm`."""
        check_sizes("gemm", a=(a, m * k), b=(b, k * n), c=(c, m * n), bias=(bias, n))
        if m * n == 0:
            return
        parts = self._parts(2 * m * n * k)
        by_sum = parts > 1 and m > 2 and k >= LONG_SUM * max(m, n)
        partial = self.alloc((parts - 1) * m * n) if by_sum else None
        pointers = a.pointer, b.pointer, beta, c.pointer, bias and bias.pointer, partial and partial.pointer
        args = _Gemm(transpose_a, transpose_b, m, n, k, alpha, *pointers)
        self._submit("host_gemm", args, parts, a, b, c, bias, partial)
        self._add_partials(m * n, parts, partial, c)

    def conv_forward(
        self, geometry: ConvolutionGeometry, bottom: Buffer, weights: Buffer, bias: Buffer | None, top: Buffer
    ) -> None:
        """Launch im2col and OpenBLAS; see `Device.conv_forward`."""
        sizes = convolution_sizes(geometry)
        check_sizes(
            "conv_forward",
            bottom=(bottom, sizes["bottom"]),
            weights=(weights, sizes["weights"]),
            bias=(bias, geometry.num_output),
            top=(top, sizes["top"]),
        )
        args = _convolution(geometry, bottom=bottom, weights=weights, bias=bias, output=top)
        self._submit("host_conv_forward", args, self._parts(sizes["flops"]), bottom, weights, bias, top)

    def conv_backward_data(
        self, geometry: ConvolutionGeometry, weights: Buffer, top_diff: Buffer, bottom_diff: Buffer
    ) -> None:
        """Launch OpenBLAS and col2im; see `Device.conv_backward_data`."""
        sizes = convolution_sizes(geometry)
        check_sizes(
            "conv_backward_data",
            weights=(weights, sizes["weights"]),
            top_diff=(top_diff, sizes["top"]),
            bottom_diff=(bottom_diff, sizes["bottom"]),
        )
        args = _convolution(geometry, weights=weights, top=top_diff, output=bottom_diff)
        self._submit("host_conv_backward_data", args, self._parts(sizes["flops"]), weights, top_diff, bottom_diff)

    def conv_backward_weights(
        self, geometry: ConvolutionGeometry, bottom: Buffer, top_diff: Buffer, weight_diff: Buffer
    ) -> None:
        """Launch im2col and OpenBLAS; see `Device.conv_backward_weights`."""
        sizes = convolution_sizes(geometry)
        size = sizes["weights"]
        check_sizes(
            "conv_backward_weights",
            bottom=(bottom, sizes["bottom"]),
            top_diff=(top_diff, sizes["top"]),
            weight_diff=(weight_diff, size),
        )
        parts = self._parts(sizes["flops"])
        partial = None
        if parts > 1 and size < PARTIAL_WEIGHTS and geometry.num >= parts:
            partial = self.alloc((parts - 1) * size)
        args = _convolution(geometry, bottom=bottom, top=top_diff, output=weight_diff, partial=partial)
        self._submit("host_conv_backward_weights", args, parts, bottom, top_diff, weight_diff, partial)
        self._add_partials(size, parts, partial, weight_diff)

    # -- tapes

    @contextlib.contextmanager
    def record(self) -> Iterator[HostTape]:
        """Write the launches inside the `with` block to a tape instead of running them."""
        assert self._recording is None, "tapes are not recorded inside one another"
        self._recording = tape = HostTape(self)
        try:
            yield tape
        finally:
            self._recording = None
            tape.close()

    def synchronize(self) -> None:
        """Nothing to wait for: a launch has ended when the call returns."""

    def _parts(self, flops: int) -> int:
        return self.threads if flops >= SERIAL_FLOPS else 1

    def _add_partials(self, size: int, parts: int, partial: HostBuffer | None, target: Buffer) -> None:
        """Launch: add what all parts but the first have summed to what the first has."""
        if partial is not None:
            args = _AddPartials(size, parts - 1, partial.pointer, target.pointer)
            self._submit("host_add_partials", args, 1, partial, target)

    def _submit(self, function: str, args: Any, parts: int, *alive: object) -> None:
        op = _Op(host_library.address(self._library, function), ctypes.addressof(args), parts)
        if self._recording is not None:
            self._recording.append(op, args, alive)
        else:
            self._run((_Op * 1)(op), 1)

    def _run(self, ops: Any, count: int) -> None:
        if self._library.host_run(ops, count):
            raise OutOfMemoryError("no scratch memory is to be had for a launch. Use a smaller batch.")


def default_threads() -> int:
    """Return the number of threads that the environment asks for, else one for each core this process may use.

    Raises `DeviceError` if CAFFE_LITE_NUM_THREADS is no such number; OpenMP's own variable may hold more than one.
    """
    for variable in ("CAFFE_LITE_NUM_THREADS", "OMP_NUM_THREADS"):
        value = os.environ.get(variable, "").partition(",")[0].strip()
        if value.isdigit() and int(value) > 0:
            return int(value)
        if value and variable == "CAFFE_LITE_NUM_THREADS":
            raise DeviceError(f"CAFFE_LITE_NUM_THREADS must be a number of threads, 1 or more. Received '{value}'.")
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_sizes(primitive: str, **buffers: tuple[Buffer | None, int]) -> None:
    """Raise `KernelError` unless every buffer is float32 and holds the given number of elements."""
    for name, (buffer, size) in buffers.items():
        if buffer is not None and (buffer.dtype != np.float32 or buffer.size < size):
            raise KernelError(f"{primitive}: '{name}' must be float32 with {size} elements, received {buffer!r}.")


def convolution_sizes(geometry: ConvolutionGeometry) -> dict[str, int]:
    """Return the elements of bottom, weights and top, and the floating-point operations of one pass."""
    in_volume, out_volume, kernel_volume = (
        int(np.prod(shape, dtype=np.int64)) for shape in (geometry.in_shape, geometry.out_shape, geometry.kernel)
    )
    weights = geometry.num_output * (geometry.channels // geometry.group) * kernel_volume
    return {
        "bottom": geometry.num * geometry.channels * in_volume,
        "weights": weights,
        "top": geometry.num * geometry.num_output * out_volume,
        "flops": 2 * geometry.num * weights * out_volume,
    }


def _convolution(geometry: ConvolutionGeometry, **buffers: Buffer | None) -> _Convolution:
    axes = len(geometry.kernel)
    if axes > MAX_AXES:
        raise KernelError(f"a convolution has at most {MAX_AXES} spatial axes, received {axes}.")
    args = _Convolution(geometry.num, geometry.channels, geometry.num_output, geometry.group, axes)
    for name in ("in_shape", "out_shape", "kernel", "stride", "pad", "dilation"):
        getattr(args, name)[:axes] = getattr(geometry, name)
    for name, buffer in buffers.items():
        setattr(args, name, buffer and buffer.pointer)
    return args
