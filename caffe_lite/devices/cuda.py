"""An NVIDIA GPU as a device: the kernels compiled for it by nvcc when they are first used, launched through PyCUDA.

Everything is put on one stream, in the order of the calls.  While a tape is recorded launches are only written down;
when the recording ends they are captured as a CUDA graph, which a replay launches as one.  Every call makes the GPU's
context current for its own duration, so any thread may use the device; threads take turns.

Environment variables:
    CAFFE_LITE_SYNC    1: wait for each launch to end, so that an error names its kernel (slow)
    and those of `cuda_compile`
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import os
import threading
import weakref
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from caffe_lite import resources
from caffe_lite.devices import kernels
from caffe_lite.devices.base import Buffer, ConvolutionGeometry, Device, MemoryInfo, Tape
from caffe_lite.devices.cuda_compile import Compiler, architecture
from caffe_lite.devices.cuda_graph import Graph
from caffe_lite.devices.cuda_memory import CudaBuffer, Memory, Pool, Staging
from caffe_lite.devices.gemm_table import Gemm, plan
from caffe_lite.devices.host import check_sizes, convolution_sizes
from caffe_lite.errors import DeviceError, KernelError

ELEMENT_THREADS = 256  # in a block of an element kernel
BLOCKS_PER_PROCESSOR = 32  # an element kernel's blocks loop when this many on each multiprocessor do not cover its work
WARP, MOST_THREADS = 32, 512  # in a block of a row kernel
SHARED_BYTES = 48 << 10  # of dynamic shared memory; a kernel that takes more must ask for it
MOST_AXES = 3  # of a convolution: depth, height, width


@dataclasses.dataclass(frozen=True, slots=True)
class _Launch:
    """A kernel with everything that a launch of it needs; `alive` keeps the memory that its arguments point to."""

    kernel: str
    function: Any
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    shared_bytes: int
    arguments: bytes
    alive: tuple[object, ...]


class CudaTape(Tape):
    """Launches captured as a CUDA graph."""

    def __init__(self, device: CudaDevice) -> None:
        self._device = device
        self._launches: list[_Launch] = []
        self._graph: Graph | None = None

    def replay(self) -> None:
        """Run every launch in the order in which it was recorded."""
        self._device._replay(self._launches, self._graph)

    def __len__(self) -> int:
        return len(self._launches)

    def __del__(self) -> None:
        if self._graph is not None:
            self._device._unused_graphs.append(self._graph)


class _Session:
    """Makes the GPU's context current in this thread, one thread at a time, and translates PyCUDA's errors."""

    def __init__(self, driver: Any, context: Any, name: str) -> None:
        self._driver = driver
        self.context = context
        self._name = name
        self._lock = threading.RLock()
        self._depth = 0

    def __enter__(self) -> None:
        self._lock.acquire()
        try:
            if self._depth == 0:
                self.context.push()
        except BaseException:
            self._lock.release()
            raise
        self._depth += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._depth -= 1
        try:
            if self._depth == 0:
                self._driver.Context.pop()
        finally:
            self._lock.release()
        if isinstance(error, self._driver.Error):
            raise DeviceError(
                f"{self._name} has failed: {error}. Start again; with CAFFE_LITE_SYNC=1 the error names its kernel."
            ) from error


class CudaDevice(Device):
    """A GPU.

    Args:
        number: which one, counting from 0.

    Raises:
        DeviceError: PyCUDA, the driver, the compiler or the GPU is missing, or the kernels are not made for it.
    """

    def __init__(self, number: int = 0) -> None:
        driver, gpu = _open(number)
        self.number = number
        self.capability = gpu.compute_capability()
        self.name = f"GPU {number} ({gpu.name()})"
        self._compiler = Compiler(architecture(self.capability, self.name))
        self._processors = gpu.get_attribute(driver.device_attribute.MULTIPROCESSOR_COUNT)
        self._total = gpu.total_memory()
        self._driver = driver
        self._session = _Session(driver, gpu.retain_primary_context(), self.name)
        self._modules: dict[str, Any] = {}
        self._functions: dict[str, Any] = {}
        self._recording: CudaTape | None = None
        self._shown: weakref.WeakSet[Memory] = weakref.WeakSet()
        self._unused_graphs: list[Graph] = []
        self._wait_for_each = os.environ.get("CAFFE_LITE_SYNC", "") not in ("", "0")
        self._pool = Pool(driver)
        with self._session:
            self._stream = driver.Stream()
            self._staging = Staging(driver, self._stream)
        weakref.finalize(self, _close, self._session, self._pool)

    # -- memory

    def alloc(self, size: int, dtype: DTypeLike = np.float32) -> CudaBuffer:
        """Return a zeroed buffer of `size` elements."""
        with self._session:
            buffer = self._scratch(size, dtype)
            self._driver.memset_d8_async(buffer.pointer, 0, buffer.memory.bytes, self._stream)
        return buffer

    def upload(self, buffer: Buffer, array: NDArray[Any]) -> None:
        """Copy `array` into `buffer`, behind all launches so far; an array that `host_view` gave shows it too."""
        assert isinstance(buffer, CudaBuffer)
        values = np.empty(buffer.size, buffer.dtype)
        values[...] = np.asarray(array).reshape(-1)
        raw, (start, stop) = values.view(np.uint8), buffer.range
        if buffer.memory.shown:
            assert buffer.memory.mirror is not None
            buffer.memory.mirror[start:stop] = raw
        with self._session:
            self._staging.upload(buffer.pointer, raw)

    def download(self, buffer: Buffer) -> NDArray[Any]:
        """Return the content of `buffer` as a new one-dimensional array, after all launches so far."""
        assert isinstance(buffer, CudaBuffer)
        values = np.empty(buffer.size, buffer.dtype)
        with self._session:
            self._hand_over(buffer.memory)
            self._staging.download(buffer.pointer, values.view(np.uint8))
        return values

    def host_view(self, buffer: Buffer) -> NDArray[Any]:
        """Return an array with the newest content of `buffer`; what it is given is uploaded before the next launch.

        The next launch ends that: ask again to see what it did, or to write once more.
        """
        assert isinstance(buffer, CudaBuffer)
        memory, (start, stop) = buffer.memory, buffer.range
        with self._session:
            if memory.mirror is None:
                memory.mirror = np.empty(memory.bytes, np.uint8)
            if not memory.is_shown(start, stop):
                self._hand_over(memory)  # else the download would undo what has been written to a part of it
                self._staging.download(buffer.pointer, memory.mirror[start:stop])
                memory.show(start, stop)
                self._shown.add(memory)
        view: NDArray[Any] = memory.mirror[start:stop].view(buffer.dtype)
        return view

    def memory_info(self) -> MemoryInfo:
        """Return what is allocated through this device, and the GPU's memory."""
        return MemoryInfo(self._pool.allocated, self._pool.peak, self._total)

    def _scratch(self, size: int, dtype: DTypeLike = np.float32) -> CudaBuffer:
        """Return a buffer with any content."""
        dtype = np.dtype(dtype)
        with self._session:
            memory = self._pool.take(size * dtype.itemsize)
        return CudaBuffer(self, dtype, size, memory.pointer, memory)

    def _hand_over(self, memory: Memory) -> None:
        """Upload what may have been written to the mirror."""
        for start, stop in memory.shown:
            assert memory.mirror is not None
            self._staging.upload(memory.pointer + start, memory.mirror[start:stop])

    def _before_launch(self) -> None:
        while self._unused_graphs:
            self._unused_graphs.pop().destroy()
        for memory in self._shown:
            self._hand_over(memory)
            memory.shown = []
        self._shown.clear()

    # -- launches

    def launch(self, kernel: str, work: int, *args: Buffer | float | tuple[int, ...]) -> None:
        """Launch `kernel`; see `Device.launch`."""
        found = kernels.find(kernel)
        packed = found.pack(args)
        if found.signature.shape == "tile":
            raise KernelError(f"kernel {kernel} is launched by its primitive only.")
        self._check_device(kernel, args)
        if work == 0:
            return
        if found.signature.shape == "element":
            threads = ELEMENT_THREADS
            blocks = min(-(-work // threads), self._processors * BLOCKS_PER_PROCESSOR)
        else:
            lanes = found.largest_buffer(args) // work
            threads = min(max(-(-lanes // WARP) * WARP, WARP), MOST_THREADS)
            blocks = work
        self._submit(kernel, (blocks, 1, 1), (threads, 1, 1), 0, packed, args)

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
        """Launch the kernels that `gemm_table` chooses; see `Device.gemm`."""
        check_sizes("gemm", a=(a, m * k), b=(b, k * n), c=(c, m * n), bias=(bias, n))
        gemm = Gemm(transpose_a, transpose_b, m, n, k, alpha, beta, bias is not None)
        chosen = _plan(gemm, self.capability, self._processors)
        buffers = {"a": a, "b": b, "c": c}
        if bias is not None:
            buffers["bias"] = bias
        if chosen.workspace:
            buffers["workspace"] = self._scratch(chosen.workspace)
        for launch in chosen.launches:
            args = launch.arguments(buffers)
            self._check_device(launch.kernel, args)
            packed = kernels.find(launch.kernel).pack(args)
            self._submit(launch.kernel, launch.grid, launch.block, launch.shared_bytes, packed, tuple(args))

    def conv_forward(
        self, geometry: ConvolutionGeometry, bottom: Buffer, weights: Buffer, bias: Buffer | None, top: Buffer
    ) -> None:
        """Launch a direct convolution; see `Device.conv_forward`."""
        size, has_bias = convolution_sizes(geometry)["top"], int(bias is not None)
        self.launch(
            *("direct_convolution_forward", size, size, _shape(geometry), has_bias, bottom, weights),
            *(weights if bias is None else bias, top),
        )

    def conv_backward_data(
        self, geometry: ConvolutionGeometry, weights: Buffer, top_diff: Buffer, bottom_diff: Buffer
    ) -> None:
        """Launch the gradient of a direct convolution; see `Device.conv_backward_data`."""
        size = convolution_sizes(geometry)["bottom"]
        self.launch("direct_convolution_backward_data", size, size, _shape(geometry), weights, top_diff, bottom_diff)

    def conv_backward_weights(
        self, geometry: ConvolutionGeometry, bottom: Buffer, top_diff: Buffer, weight_diff: Buffer
    ) -> None:
        """Launch the gradient of a direct convolution; see `Device.conv_backward_weights`."""
        size = convolution_sizes(geometry)["weights"]
        self.launch("direct_convolution_backward_weights", size, size, _shape(geometry), bottom, top_diff, weight_diff)

    def synchronize(self) -> None:
        """Wait until every launch so far has ended.  Raises `DeviceError` if one of them failed."""
        with self._session:
            self._stream.synchronize()

    # -- tapes

    @contextlib.contextmanager
    def record(self) -> Iterator[CudaTape]:
        """Write the launches inside the `with` block to a tape instead of running them."""
        assert self._recording is None, "tapes are not recorded inside one another"
        self._recording = tape = CudaTape(self)
        try:
            yield tape
        finally:
            self._recording = None
        if tape._launches and not self._wait_for_each:
            with self._session:
                tape._graph = Graph(self._stream, lambda: self._put_on_stream(tape._launches))

    def _replay(self, launches: list[_Launch], graph: Graph | None) -> None:
        with self._session:
            self._before_launch()
            if graph is not None:
                graph.launch(self._stream)
            else:
                self._put_on_stream(launches)

    def _submit(
        self,
        kernel: str,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        shared_bytes: int,
        arguments: bytes,
        alive: tuple[object, ...],
    ) -> None:
        with self._session:
            function = self._function(kernel)
            if shared_bytes > SHARED_BYTES:
                function.set_attribute(self._driver.function_attribute.MAX_DYNAMIC_SHARED_SIZE_BYTES, shared_bytes)
            launch = _Launch(kernel, function, grid, block, shared_bytes, arguments, alive)
            if self._recording is not None:
                self._recording._launches.append(launch)
            else:
                self._before_launch()
                self._put_on_stream([launch])

    def _put_on_stream(self, launches: list[_Launch]) -> None:
        for launch in launches:
            # prepared_async_call without its packing, which lays structs out unlike nvcc, and without the deprecated
            # call that sets the block's shape beforehand, which a stream that is being captured need not take.
            launch.function._launch_kernel(
                launch.grid, launch.block, launch.arguments, launch.shared_bytes, self._stream
            )
            if self._wait_for_each:
                try:
                    self._stream.synchronize()
                except self._driver.Error as error:
                    raise DeviceError(
                        f"{self.name}: kernel {launch.kernel} has failed: {error}. Start again."
                    ) from error

    def _function(self, kernel: str) -> Any:
        if kernel not in self._functions:
            file = kernels.find(kernel).signature.file
            if file not in self._modules:
                cubin = self._compiler.cubin(resources.path("kernels") / file)
                self._modules[file] = self._load(cubin)
            self._functions[kernel] = self._modules[file].get_function(kernel)
        return self._functions[kernel]

    def _load(self, cubin: bytes) -> Any:
        try:
            return self._driver.module_from_buffer(cubin)
        except self._driver.MemoryError:
            raise
        except self._driver.Error as error:
            version = self._driver.get_driver_version()
            raise DeviceError(
                f"the NVIDIA driver, made for CUDA {version // 1000}.{version % 1000 // 10}, cannot load kernels from "
                f"the compiler {self._compiler.nvcc} ({self._compiler.release}): {error}. "
                "Update the driver, or name an older nvcc in CAFFE_LITE_NVCC."
            ) from error

    def _check_device(self, kernel: str, args: Sequence[object]) -> None:
        for argument in args:
            if isinstance(argument, Buffer) and argument.device is not self:
                raise KernelError(f"kernel {kernel}: expected buffers on {self.name}, received {argument!r}.")


def _close(session: _Session, pool: Pool) -> None:
    """Let go of the GPU when the device is not used any more, at the latest when Python ends."""
    with session:
        pool.trim()
    session.context.detach()  # PyCUDA's destructor takes a primary context for one of its own


_plan = functools.lru_cache(maxsize=1024)(plan)


def _shape(geometry: ConvolutionGeometry) -> tuple[int, ...]:
    """Return the struct that the convolution kernels take: three axes, the missing ones in front."""
    missing = MOST_AXES - len(geometry.kernel)
    if missing < 0:
        raise KernelError(
            f"a convolution on a GPU has at most {MOST_AXES} spatial axes, received {len(geometry.kernel)}."
        )
    shape = [geometry.num, geometry.channels, geometry.num_output, geometry.group]
    for name in ("in_shape", "out_shape", "kernel", "stride", "pad", "dilation"):
        shape += [*[0 if name == "pad" else 1] * missing, *getattr(geometry, name)]
    return tuple(shape)


def _open(number: int) -> tuple[Any, Any]:
    """Return PyCUDA's driver module and its GPU `number`.  Raises `DeviceError`."""
    try:
        driver = importlib.import_module("pycuda.driver")
    except ImportError as error:
        if "libcuda" in str(error):
            raise DeviceError(f"this machine has no NVIDIA driver ({error}). Install it, or use the CPU.") from error
        raise DeviceError(
            f"a GPU is used through PyCUDA, which cannot be imported ({error}). Run pip install 'caffe-lite[cuda]'."
        ) from error
    try:
        driver.init()
        count = driver.Device.count()
    except driver.Error as error:
        raise DeviceError(
            f"the NVIDIA driver finds no GPU that it can use ({error}). See what nvidia-smi says, or use the CPU."
        ) from error
    if not 0 <= number < count:
        gpus = "0, the only one" if count == 1 else f"0 to {count - 1}"
        raise DeviceError(f"there is no GPU {number}. Expected {gpus}. See what nvidia-smi says.")
    return driver, driver.Device(number)
