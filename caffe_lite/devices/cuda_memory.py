"""The GPU's memory: a pool of allocations, the pinned memory that copies go through, and what Python sees of a buffer.

Python sees a buffer through a mirror in ordinary memory.  A part of it that has been shown is downloaded first and
uploaded again before the next launch, because whoever holds the array may have written to it: Caffe's SyncedMemory,
kept for parts of an allocation, because the blobs of a net share allocations.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from caffe_lite.devices.base import Buffer, Device
from caffe_lite.errors import OutOfMemoryError

GRAIN = 512  # bytes: allocations are rounded up to it, so that more of them can be used again
STAGING_BYTES = 1 << 20


class Memory:
    """One allocation; goes back to the pool when no buffer is left.

    Attributes:
        mirror: the bytes as Python sees them, None until they are first shown.
        shown: the parts of the mirror, as (start, stop) in bytes, that have been handed out since the last launch.
    """

    __slots__ = ("__weakref__", "_pool", "allocation", "bytes", "mirror", "pointer", "shown")

    def __init__(self, pool: Pool, allocation: Any, size: int) -> None:
        self._pool = pool
        self.allocation = allocation
        self.bytes = size
        self.pointer = int(allocation)
        self.mirror: NDArray[np.uint8] | None = None
        self.shown: list[tuple[int, int]] = []

    def __del__(self) -> None:
        self._pool.give_back(self.allocation, self.bytes)

    def is_shown(self, start: int, stop: int) -> bool:
        """Return whether the mirror is newest from `start` to `stop`."""
        return any(a <= start and stop <= b for a, b in self.shown)

    def show(self, start: int, stop: int) -> None:
        """Note that the mirror is newest from `start` to `stop`, and may be written to."""
        self.shown = [(a, b) for a, b in self.shown if not (start <= a and b <= stop)] + [(start, stop)]


class CudaBuffer(Buffer):
    """A buffer in the GPU's memory: a part of one allocation."""

    __slots__ = ("memory",)

    def __init__(self, device: Device, dtype: np.dtype[Any], size: int, pointer: int, memory: Memory) -> None:
        super().__init__(device, dtype, size, pointer, memory)
        self.memory = memory

    @property
    def range(self) -> tuple[int, int]:
        """Where the buffer begins and ends in its allocation, in bytes."""
        start = self.pointer - self.memory.pointer
        return start, start + self.size * self.dtype.itemsize

    def view(self, offset: int, size: int) -> CudaBuffer:
        """Return elements `offset` to `offset + size` as a buffer over the same memory."""
        view = super().view(offset, size)
        return CudaBuffer(self.device, self.dtype, size, view.pointer, self.memory)


class Pool:
    """Allocations that are kept for the next one of the same size, because the driver's own take long.

    `take` must be called while the GPU's context is current; `give_back` may be called at any time, by any thread.
    """

    def __init__(self, driver: Any) -> None:
        self._driver = driver
        self._free: dict[int, list[Any]] = {}
        self.allocated = self.peak = 0

    def take(self, size: int) -> Memory:
        """Return at least `size` bytes with any content.  Raises `OutOfMemoryError`."""
        size = max(-(-size // GRAIN) * GRAIN, GRAIN)
        free = self._free.get(size)
        memory = Memory(self, free.pop() if free else self._allocate(size), size)
        self.allocated += size
        self.peak = max(self.peak, self.allocated)
        return memory

    def give_back(self, allocation: Any, size: int) -> None:
        """Keep an allocation for later.  Launches that use it still come before any that use it next."""
        self._free.setdefault(size, []).append(allocation)
        self.allocated -= size

    def trim(self) -> None:
        """Give everything that is not in use back to the driver."""
        kept, self._free = self._free, {}
        for allocations in kept.values():
            for allocation in allocations:
                allocation.free()

    def _allocate(self, size: int) -> Any:
        try:
            return self._driver.mem_alloc(size)
        except self._driver.MemoryError:
            self.trim()
        try:
            return self._driver.mem_alloc(size)
        except self._driver.MemoryError:
            free, total = self._driver.mem_get_info()
            raise OutOfMemoryError(
                f"the GPU's memory does not suffice: asked for {size} bytes, {free} of {total} are free. "
                "Use a smaller batch."
            ) from None


class Staging:
    """Copies between arrays and the GPU, in chunks through two halves of pinned memory that take turns."""

    def __init__(self, driver: Any, stream: Any) -> None:
        self._driver = driver
        self._stream = stream
        self._halves = [driver.pagelocked_empty(STAGING_BYTES, np.uint8) for _ in range(2)]
        self._read = [driver.Event(driver.event_flags.DISABLE_TIMING) for _ in range(2)]  # the GPU has read the half
        self._turn = 0

    def upload(self, pointer: int, raw: NDArray[np.uint8]) -> None:
        """Copy `raw` to `pointer`, behind all launches so far; `raw` may be changed when this returns."""
        for start in range(0, raw.size, STAGING_BYTES):
            chunk = raw[start : start + STAGING_BYTES]
            half, read = self._halves[self._turn], self._read[self._turn]
            self._turn = 1 - self._turn
            read.synchronize()
            half[: chunk.size] = chunk
            self._driver.memcpy_htod_async(pointer + start, half[: chunk.size], self._stream)
            read.record(self._stream)

    def download(self, pointer: int, raw: NDArray[np.uint8]) -> None:
        """Fill `raw` from `pointer`, after all launches so far."""
        half = self._halves[0]  # an upload that still reads it comes before the download, on the same stream
        for start in range(0, raw.size, STAGING_BYTES):
            chunk = raw[start : start + STAGING_BYTES]
            self._driver.memcpy_dtoh_async(half[: chunk.size], pointer + start, self._stream)
            self._stream.synchronize()
            chunk[...] = half[: chunk.size]
