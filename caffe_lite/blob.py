"""Blob: an n-dimensional array of data and the array of its gradient, the diff.

Memory comes lazily: a blob knows its shape long before anything asks for `data` or `diff`, and a diff that no backward
pass writes is never allocated.  Blobs may share memory (`share_data`, `share_diff`), which is how Split, in-place
reshaping, shared params and TRAIN and TEST nets with the same weights cost nothing.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from caffe_lite.errors import ShapeError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from caffe_lite.devices.base import Buffer, Device

MAX_COUNT = 2**31 - 1  # kernels index with int
MAX_AXES = 32


class Memory:
    """`size` floats that are allocated when first used; blobs that share data hold the same `Memory`."""

    __slots__ = ("_allocate", "buffer", "size")

    def __init__(self, size: int, allocate: Callable[[], Buffer]) -> None:
        self.size = size
        self.buffer: Buffer | None = None
        self._allocate = allocate

    def first(self, count: int) -> Buffer:
        """Return the first `count` elements as a buffer."""
        if self.buffer is None:
            self.buffer = self._allocate()
        return self.buffer if count == self.size else self.buffer.view(0, count)


class Blob:
    """Data and diff of one shape, float32.

    Attributes:
        name: the blob's name in its net, for messages.
        watch: called after the shape or the memory has changed; a net drops its recorded programs then.
        fixed: the memory belongs to a larger buffer (the net's flat params), so the blob cannot grow.
    """

    def __init__(self, device: Device, shape: Sequence[int] = (), name: str = "") -> None:
        self.device = device
        self.name = name
        self.watch: Callable[[], None] | None = None
        self.fixed = False
        self._shape = _checked(shape, name)
        self._count = math.prod(self._shape)
        self._data = self._new_memory()
        self._diff = self._new_memory()
        self._data_buffer: Buffer | None = None
        self._diff_buffer: Buffer | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The length of each axis."""
        return self._shape

    @property
    def count(self) -> int:
        """The number of elements."""
        return self._count

    def reshape(self, *shape: int | Sequence[int]) -> None:
        """Change the shape: ``reshape(1, 3, 227, 227)`` or ``reshape((1, 3, 227, 227))``.

        The content stays as long as the new count fits into the memory there is; a larger blob gets new, zeroed
        memory and leaves those it shared with.  Raises `ShapeError` for a negative length, for more than 2^31 - 1
        elements, and for a param that would outgrow its place.
        """
        dims: Any = shape[0] if len(shape) == 1 and hasattr(shape[0], "__iter__") else shape
        new_shape = _checked(dims, self.name)
        if new_shape == self._shape:
            return
        count = math.prod(new_shape)
        if self.fixed and count > self._data.size:
            raise ShapeError(
                f"the param '{self.name}' cannot grow from {self._data.size} to {count} elements. "
                "Change the layer's options in the prototxt instead."
            )
        self._shape, self._count = new_shape, count
        if count > self._data.size:
            self._data = self._new_memory()
        if count > self._diff.size:
            self._diff = self._new_memory()
        self._changed()

    @property
    def data(self) -> NDArray[np.float32]:
        """The values: a float32 array of `shape` that shows and writes the blob's own memory."""
        return self.device.host_view(self.data_buffer).reshape(self._shape)

    @property
    def diff(self) -> NDArray[np.float32]:
        """The gradient: a float32 array of `shape` that shows and writes the blob's own memory."""
        return self.device.host_view(self.diff_buffer).reshape(self._shape)

    @property
    def data_buffer(self) -> Buffer:
        """The values on the device, exactly `count` elements.  Allocated on first use: raises `OutOfMemoryError`."""
        if self._data_buffer is None:
            self._data_buffer = self._data.first(self._count)
        return self._data_buffer

    @property
    def diff_buffer(self) -> Buffer:
        """The gradient on the device, exactly `count` elements.  Allocated on first use: raises `OutOfMemoryError`."""
        if self._diff_buffer is None:
            self._diff_buffer = self._diff.first(self._count)
        return self._diff_buffer

    @property
    def has_diff(self) -> bool:
        """Whether memory for the diff has been allocated."""
        return self._diff.buffer is not None

    def share_data(self, other: Blob) -> None:
        """Use the data of `other` from now on.  Raises `ShapeError` unless the counts are equal."""
        self._check_count(other, "data")
        if self._data is not other._data:
            self._data = other._data
            self._changed()

    def share_diff(self, other: Blob) -> None:
        """Use the diff of `other` from now on.  Raises `ShapeError` unless the counts are equal."""
        self._check_count(other, "diff")
        if self._diff is not other._diff:
            self._diff = other._diff
            self._changed()

    def place(self, data: Memory, diff: Memory) -> None:
        """Move into `data` and `diff`, parts of larger buffers with at least `count` elements; see `fixed`."""
        self._data, self._diff, self.fixed = data, diff, True
        self._changed()

    # -- Caffe's accessors from the time when every blob had four axes

    @property
    def num(self) -> int:
        """The length of axis 0, 1 if there is none.  Raises `ShapeError` for more than four axes, as the next three."""
        return self._legacy(0)

    @property
    def channels(self) -> int:
        """The length of axis 1, 1 if there is none."""
        return self._legacy(1)

    @property
    def height(self) -> int:
        """The length of axis 2, 1 if there is none."""
        return self._legacy(2)

    @property
    def width(self) -> int:
        """The length of axis 3, 1 if there is none."""
        return self._legacy(3)

    def __str__(self) -> str:
        """Return name and shape, for messages: ``'ip' (64, 10)``."""
        return f"'{self.name}' {self._shape}" if self.name else str(self._shape)

    def __repr__(self) -> str:
        return f"<Blob '{self.name}' {self._shape}>" if self.name else f"<Blob {self._shape}>"

    def _legacy(self, axis: int) -> int:
        if len(self._shape) > 4:
            raise ShapeError(
                f"num, channels, height and width exist for blobs of at most 4 axes. Received {self}. "
                "Use shape instead."
            )
        return self._shape[axis] if axis < len(self._shape) else 1

    def _check_count(self, other: Blob, what: str) -> None:
        if self._count != other._count:
            raise ShapeError(
                f"blob '{self.name}' cannot share the {what} of blob '{other.name}': the counts differ. "
                f"Expected {self._count} elements {self._shape}, received {other._count} {other._shape}."
            )

    def _new_memory(self) -> Memory:
        size, device = self._count, self.device
        return Memory(size, lambda: device.alloc(size))

    def _changed(self) -> None:
        self._data_buffer = self._diff_buffer = None
        if self.watch is not None:
            self.watch()


def _checked(shape: Sequence[Any], name: str) -> tuple[int, ...]:
    """Return `shape` as a tuple of Python integers.  Raises `ShapeError`."""
    dims = tuple(map(operator.index, shape))
    blob = f"blob '{name}'" if name else "blob"
    if any(dim < 0 for dim in dims):
        raise ShapeError(f"{blob} cannot have a negative length. Received shape {dims}.")
    if len(dims) > MAX_AXES:
        raise ShapeError(f"{blob} has too many axes. Expected at most {MAX_AXES}, received {len(dims)}.")
    count = math.prod(dims)
    if count > MAX_COUNT:
        raise ShapeError(
            f"{blob} is too large. Expected at most 2^31 - 1 elements, received shape {dims}, that is {count}."
        )
    return dims
