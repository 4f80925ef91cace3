"""Reduction over the last axes, and ArgMax."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from caffe_lite.blob import Blob
from caffe_lite.errors import NetError, ShapeError
from caffe_lite.layers.base import Layer, register
from caffe_lite.layers.softmax import Extents
from caffe_lite.proto import caffe_pb2

if TYPE_CHECKING:
    from caffe_lite.devices.base import Buffer

CHUNK = 16384  # elements that a block adds up
ROW_CHUNK = 1024  # elements of a row among which a block looks for the largest
TILE = 256  # positions that a block of the spatial kernel shares; their scratch stays in the first-level cache


@register("Reduction")
class Reduction(Layer):
    """Reduces all axes from `axis` on to one number.

        SUM    forward  y = coeff * sum x         backward  dx = coeff dy
        ASUM   forward  y = coeff * sum |x|       backward  dx = coeff dy sign(x)
        SUMSQ  forward  y = coeff * sum x^2       backward  dx = 2 coeff dy x
        MEAN   forward  y = coeff * mean x        backward  dx = coeff dy / dim

    Shapes: the top has the bottom's axes before `axis`: () if `axis` is 0.

    Prototxt: ``reduction_param { operation (SUM), axis (0, may be negative), coeff (1) }``.

    *Caffe's quirks.*  Only the last axes can be reduced, and they go away rather than become 1.  The sign of 0, and
    that of NaN, is 0.
    """

    exact_bottoms = 1
    exact_tops = 1

    def setup(self, bottom: list[Blob], top: list[Blob]) -> None:
        """Read the operation."""
        operations = caffe_pb2.ReductionParameter
        self._operation = self.param.reduction_param.operation
        self._is_mean = self._operation == operations.MEAN
        if self._is_mean:
            self._operation = operations.SUM
        self._partial: Buffer | None = None

    def reshape(self, bottom: list[Blob], top: list[Blob]) -> None:
        """Size the top.  Raises `ShapeError` for an axis that does not exist."""
        axis, shape = self.axis_of(bottom[0], self.param.reduction_param.axis), bottom[0].shape
        top[0].reshape(shape[:axis])
        dim = math.prod(shape[axis:])
        chunks = max(-(-dim // CHUNK), 1)
        self._coeff = float(self.param.reduction_param.coeff)
        if self._is_mean:
            self._coeff = self._coeff / dim if dim else math.nan
        self._chunks = self._operation, dim, CHUNK, chunks
        rows = top[0].count * chunks
        if chunks > 1 and (self._partial is None or self._partial.size != rows):
            self._partial = self.device.alloc(rows)

    def forward(self, bottom: list[Blob], top: list[Blob]) -> None:
        """Launch the reduction of the chunks, and of what comes of them."""
        count, chunks, bottom_data, top_data = top[0].count, self._chunks[-1], bottom[0].data_buffer, top[0].data_buffer
        if chunks == 1:
            self.launch("reduction_forward", count, count, self._chunks, self._coeff, bottom_data, top_data)
            return
        assert self._partial is not None
        rows = count * chunks
        self.launch("reduction_forward", rows, rows, self._chunks, 1.0, bottom_data, self._partial)
        self.launch("reduction_forward_sum", count, count, chunks, self._coeff, self._partial, top_data)

    def backward(self, top: list[Blob], propagate_down: Sequence[bool], bottom: list[Blob]) -> None:
        """Launch the gradient of the bottom."""
        if propagate_down[0]:
            rows = top[0].count * self._chunks[-1]
            buffers = bottom[0].data_buffer, top[0].diff_buffer, bottom[0].diff_buffer
            self.launch("reduction_backward", rows, rows, self._chunks, self._coeff, *buffers)


@register("ArgMax")
class ArgMax(Layer):
    """Finds the `top_k` largest elements of each item, or along one axis.

    Forward: the places (0, 1, ...) or values of the largest elements, the largest first.
    Backward: none; a net that asks for it is told so.

    Shapes: without `axis`, (num, 1, top_k), with the places in the flattened item; with `out_max_val` (num, 2, top_k):
    places, then values; and as many axes of length 1 behind as the bottom has more.  With `axis`, the bottom's shape
    with top_k along `axis`: the values with `out_max_val`, else the places.

    Prototxt: ``argmax_param { out_max_val (false), top_k (1), axis (none, may be negative) }``.

    *Caffe's quirks.*  Of equal elements the one with the larger index comes first.  With `axis`, `out_max_val` replaces
    the places instead of joining them.  A NaN counts as the largest, so that it stays visible; the original's order is
    undefined then.
    """

    exact_bottoms = 1
    exact_tops = 1

    def setup(self, bottom: list[Blob], top: list[Blob]) -> None:
        """Read ``argmax_param``.  Raises `NetError` unless top_k is positive."""
        self._top_k = int(self.param.argmax_param.top_k)
        if self._top_k == 0:
            raise NetError("top_k must be positive. Received 0.")
        self._scratch: list[Buffer] = []

    def reshape(self, bottom: list[Blob], top: list[Blob]) -> None:
        """Size the top.  Raises `ShapeError` if there are less than top_k elements."""
        options, shape, top_k = self.param.argmax_param, bottom[0].shape, self._top_k
        if options.HasField("axis"):
            axis = self.axis_of(bottom[0], options.axis)
            outer, channels, inner = Extents.around(axis, shape)
            top_shape = (*shape[:axis], top_k, *shape[axis + 1 :])
            step, places_at, values_at = (top_k, -1, 0) if options.out_max_val else (top_k, 0, -1)
        else:
            self.axis_of(bottom[0], 0)
            outer, channels, inner = shape[0], math.prod(shape[1:]), 1
            both = bool(options.out_max_val)
            top_shape = (outer, 2 if both else 1, top_k, *[1] * (len(shape) - 3))
            step, places_at, values_at = (2 * top_k, 0, top_k) if both else (top_k, 0, -1)
        if top_k > channels:
            raise ShapeError(
                f"top_k must be at most the number of elements to choose from, {channels}. Received top_k {top_k} for "
                f"bottom {bottom[0]}. Use a smaller top_k, or another axis."
            )
        top[0].reshape(top_shape)
        chunk = ROW_CHUNK if inner == 1 else TILE
        self._shape = outer, channels, inner, top_k, chunk, step, places_at, values_at
        self._chunks = -(-channels // chunk)
        number, size = (1, outer * self._chunks) if inner == 1 else (4, outer * inner)
        if [buffer.size for buffer in self._scratch] != [size] * number:
            self._scratch = [self.device.alloc(size, np.int32) for _ in range(number)]

    def forward(self, bottom: list[Blob], top: list[Blob]) -> None:
        """Launch the search."""
        outer, _, inner = self._shape[:3]
        if inner == 1:
            rows, chunks, data, key = outer * self._chunks, self._chunks, bottom[0].data_buffer, self._scratch[0]
            self.launch("argmax_forward_chunks", rows, rows, self._shape, data, key)
            self.launch("argmax_forward", outer, outer, chunks, self._shape, data, key, top[0].data_buffer)
        else:
            rows = outer * -(-inner // TILE)
            buffers = bottom[0].data_buffer, *self._scratch, top[0].data_buffer
            self.launch("argmax_forward_spatial", rows, rows, self._shape, *buffers)

    def backward(self, top: list[Blob], propagate_down: Sequence[bool], bottom: list[Blob]) -> None:
        """Raise `NetError` where a gradient is wanted."""
        if any(propagate_down):
            raise NetError("an ArgMax has no gradient. Set propagate_down: false where a loss depends on it.")

    def allow_force_backward(self, bottom_index: int) -> bool:
        """Whether ``force_backward`` applies: never."""
        return False
