"""The layers that copy runs of elements to another place: Concat, Slice, Tile, Crop."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from caffe_lite.blob import Blob
from caffe_lite.errors import NetError, ShapeError
from caffe_lite.layers.base import Layer, register
from caffe_lite.layers.softmax import Extents

PIECE = 16384  # elements that are copied at a time, where a row is longer
FEWEST = 1024  # pieces are not made shorter than this


def in_pieces(length: int) -> tuple[int, int]:
    """Return a row of `length` elements as (pieces, elements of a piece), for kernels that share out pieces.

    A row is one piece if it is short, or has no divisor that makes pieces of a useful length.
    """
    fewest = -(-length // PIECE)
    for pieces in range(fewest, min(length // FEWEST, fewest + 256) + 1):
        if pieces and length % pieces == 0:
            return pieces, length // pieces
    return 1, length


def check_axis_is_given_once(options: Any, legacy: str) -> None:
    """Raise `NetError` if `options` has both ``axis`` and its older name `legacy`."""
    if options.HasField("axis") and options.HasField(legacy):
        raise NetError(f"expected axis or {legacy}, the older name. Received both.")


class Parts:
    """Blobs side by side along one axis of a whole: the launches that put them together and take them apart."""

    def __init__(self, layer: Layer, axis: int, whole: Blob, parts: Sequence[Blob]) -> None:
        self._layer = layer
        outer, _, inner = Extents.around(axis, whole.shape)
        full = math.prod(whole.shape[axis:])
        begin = 0
        self._parts: list[tuple[int, tuple[int, int, int, int]]] = []
        for blob in parts:
            width = blob.shape[axis] * inner
            pieces, length = in_pieces(width)
            self._parts.append((outer * pieces, (pieces, length, full, begin)))
            begin += width

    def launch(self, kernel: str, part: int, *buffers: Any) -> None:
        """Launch ``concat_forward`` (part, whole) or ``slice_forward`` (whole, part)."""
        rows, place = self._parts[part]
        self._layer.launch(kernel, rows, rows, place, *buffers)


@register("Concat")
class Concat(Layer):
    """Puts its bottoms side by side along one axis.

    Forward: y = [x_0, x_1, ...] along `axis`.
    Backward: dx_k is the part of dy where x_k went.

    Shapes: the bottoms' are equal except along `axis`, where the top has the sum of their lengths.

    Prototxt: ``concat_param { axis (1, may be negative), concat_dim: the older name, not negative }``.

    *Caffe's quirks.*  A single bottom is not copied: the top shares its memory.
    """

    min_bottoms = 1
    exact_tops = 1

    def setup(self, bottom: list[Blob], top: list[Blob]) -> None:
        """Raises `NetError` for two axes."""
        check_axis_is_given_once(self.param.concat_param, "concat_dim")

    def reshape(self, bottom: list[Blob], top: list[Blob]) -> None:
        """Size the top.  Raises `ShapeError` unless the bottoms fit together."""
        options = self.param.concat_param
        axis = self.axis_of(bottom[0], options.concat_dim if options.HasField("concat_dim") else options.axis)
        shape = bottom[0].shape
        for blob in bottom:
            if _without(blob.shape, axis) != _without(shape, axis):
                raise ShapeError(
                    f"bottoms must have the same shape except along axis {axis}. Expected {_pattern(shape, axis)} as "
                    f"of {bottom[0]}, received {blob}. Use another axis, or crop one of the bottoms."
                )
        top[0].reshape(*shape[:axis], sum(blob.shape[axis] for blob in bottom), *shape[axis + 1 :])
        self._parts = Parts(self, axis, top[0], bottom)
        if len(bottom) == 1:
            top[0].share_data(bottom[0])
            top[0].share_diff(bottom[0])

    def forward(self, bottom: list[Blob], top: list[Blob]) -> None:
        """Launch one copy a bottom."""
        if len(bottom) == 1:
            return
        for i, blob in enumerate(bottom):
            self._parts.launch("concat_forward", i, blob.data_buffer, top[0].data_buffer)

    def backward(self, top: list[Blob], propagate_down: Sequence[bool], bottom: list[Blob]) -> None:
        """Launch one copy for each bottom that wants it."""
        if len(bottom) == 1:
            return
        for i, blob in enumerate(bottom):
            if propagate_down[i]:
                self._parts.launch("slice_forward", i, top[0].diff_buffer, blob.diff_buffer)


@register("Slice")
class Slice(Layer):
    """Cuts its bottom along one axis, one part a top.

    Forward: y_k = x[begin_k : end_k] along `axis`.
    Backward: dx = [dy_0, dy_1, ...] along `axis`.

    Shapes: the tops have the bottom's except along `axis`, where their lengths add up to the bottom's.

    Prototxt: ``slice_param { axis (1, may be negative), slice_dim: the older name, not negative; slice_point: where
    each part but the first begins; without it the parts are equal }``.

    *Caffe's quirks.*  A single top is not copied: it shares the bottom's memory.  The last slice point may be the
    length of the axis: the last top is empty then.
    """

    exact_bottoms = 1
    min_tops = 1

    def setup(self, bottom: list[Blob], top: list[Blob]) -> None:
        """Read the slice points.  Raises `NetError` for two axes, or points that are not one less than the tops."""
        options = self.param.slice_param
        check_axis_is_given_once(options, "slice_dim")
        self._points = [int(point) for point in options.slice_point]
        if self._points and len(self._points) != len(top) - 1:
            raise NetError(
                f"slice_point must be given once less than there are tops, or not at all. Expected {len(top) - 1}, "
                f"received {len(self._points)}."
            )

    def reshape(self, bottom: list[Blob], top: list[Blob]) -> None:
        """Size the tops.  Raises `ShapeError` if the axis cannot be cut so."""
        options = self.param.slice_param
        axis = self.axis_of(bottom[0], options.slice_dim if options.HasField("slice_dim") else options.axis)
        shape = bottom[0].shape
        for blob, length in zip(top, self._lengths(bottom[0], axis, len(top)), strict=True):
            blob.reshape(*shape[:axis], length, *shape[axis + 1 :])
        self._parts = Parts(self, axis, bottom[0], top)
        if len(top) == 1:
            top[0].share_data(bottom[0])
            top[0].share_diff(bottom[0])

    def forward(self, bottom: list[Blob], top: list[Blob]) -> None:
        """Launch one copy a top."""
        if len(top) == 1:
            return
        for i, blob in enumerate(top):
            self._parts.launch("slice_forward", i, bottom[0].data_buffer, blob.data_buffer)

    def backward(self, top: list[Blob], propagate_down: Sequence[bool], bottom: list[Blob]) -> None:
        """Launch one copy a top."""
        if not propagate_down[0] or len(top) == 1:
            return
        for i, blob in enumerate(top):
            self._parts.launch("concat_forward", i, blob.diff_buffer, bottom[0].diff_buffer)

    def _lengths(self, bottom: Blob, axis: int, tops: int) -> list[int]:
        size = bottom.shape[axis]
        if not self._points:
            if size % tops:
                raise ShapeError(
                    f"{tops} tops cannot have equal parts of {size}, the length of axis {axis} of bottom {bottom}. "
                    "Name another number of tops, or slice points."
                )
            return [size // tops] * tops
        if self._points != sorted(set(self._points)) or self._points[0] == 0 or self._points[-1] > size:
            raise ShapeError(
                f"slice points must rise from above 0 to at most the length of axis {axis}, {size}. "
                f"Received {self._points} for bottom {bottom}. Use other points, or another axis."
            )
        return [end - begin for begin, end in zip([0, *self._points], [*self._points, size], strict=True)]


@register("Tile")
class Tile(Layer):
    """Repeats its bottom along one axis.

    Forward: y[..., t * length + i, ...] = x[..., i, ...] for each tile t.
    Backward: dx = the sum of dy over the tiles.

    Shapes: the top has `tiles` times the bottom's length on `axis`.

    Prototxt: ``tile_param { axis (1, may be negative), tiles: required }``.

    *Caffe's quirks.*  A single tile is copied, not shared.
    """

    exact_bottoms = 1
    exact_tops = 1

    def setup(self, bottom: list[Blob], top: list[Blob]) -> None:
        """Read the number of tiles.  Raises `NetError` unless it is positive."""
        self._tiles = int(self.param.tile_param.tiles)
        if self._tiles < 1:
            raise NetError(f"tiles must be given and positive. Received {self._tiles}.")

    def reshape(self, bottom: list[Blob], top: list[Blob]) -> None:
        """Size the top."""
        shape = bottom[0].shape
        axis = self.axis_of(bottom[0], self.param.tile_param.axis)
        top[0].reshape(*shape[:axis], shape[axis] * self._tiles, *shape[axis + 1 :])
        pieces, length = in_pieces(math.prod(shape[axis:]))
        self._rows = math.prod(shape[:axis]) * pieces
        self._shape = pieces, length, self._tiles

    def forward(self, bottom: list[Blob], top: list[Blob]) -> None:
        """Launch the copies."""
        rows, tiles, buffers = self._rows, self._tiles, (bottom[0].data_buffer, top[0].data_buffer)
        if self._shape[:2] == (1, 1):
            self.launch("tile_forward_single", rows, rows, tiles, *buffers)
        else:
            self.launch("tile_forward", rows * tiles, rows * tiles, self._shape, *buffers)

    def backward(self, top: list[Blob], propagate_down: Sequence[bool], bottom: list[Blob]) -> None:
        """Launch the sum over the tiles."""
        if not propagate_down[0]:
            return
        rows, buffers = self._rows, (top[0].diff_buffer, bottom[0].diff_buffer)
        if self._shape[:2] == (1, 1):
            self.launch("tile_backward_single", rows, rows, self._tiles, *buffers)
        else:
            self.launch("tile_backward", rows, rows, self._shape, *buffers)


@register("Crop")
class Crop(Layer):
    """Cuts its first bottom to the size of the second, on all axes from `axis` on.

    Forward: y[i_0, i_1, ...] = x[i_0 + offset_0, i_1 + offset_1, ...], with offset 0 before `axis`.
    Backward: dx[i + offset] = dy[i], 0 outside; the second bottom, which only lends its shape, gets 0.

    Shapes: bottoms of equally many axes; the top has the first's lengths before `axis` and the second's from there on.

    Prototxt: ``crop_param { axis (2, may be negative); offset: none (0), one for all axes from `axis` on, or one each
    }``.

    *Caffe's quirks.*  The second bottom's lengths before `axis` do not matter, and it may have more axes.
    """

    exact_bottoms = 2
    exact_tops = 1

    def reshape(self, bottom: list[Blob], top: list[Blob]) -> None:
        """Size the top, and find out where its rows come from.  Raises `ShapeError` if the cut does not lie inside."""
        shape = bottom[0].shape
        cut = list(self._cut(bottom))
        top[0].reshape([stop - start for start, stop in cut])
        # A row holds the last cropped axis and what lies behind it, or more, as long as it stays short.
        first = len(shape) - 1
        while first > 0 and cut[first] == (0, shape[first]) and math.prod(shape[first - 1 :]) <= PIECE:
            first -= 1
        inner = math.prod(shape[first + 1 :])
        bottom_rows = math.prod(shape[:first])
        source = np.arange(bottom_rows).reshape(shape[:first])[tuple(slice(*ends) for ends in cut[:first])].ravel()
        target = np.full(bottom_rows, -1)
        target[source] = np.arange(source.size)
        start, stop = cut[first]
        self._rows = source.size, (stop - start) * inner, bottom_rows, shape[first] * inner, start * inner
        self._source, self._target = (self.device.alloc(rows.size, np.int32) for rows in (source, target))
        self.device.upload(self._source, source)
        self.device.upload(self._target, target)

    def forward(self, bottom: list[Blob], top: list[Blob]) -> None:
        """Launch the copy of the rows."""
        self.launch("crop_forward", self._rows[0], self._rows, self._source, bottom[0].data_buffer, top[0].data_buffer)

    def backward(self, top: list[Blob], propagate_down: Sequence[bool], bottom: list[Blob]) -> None:
        """Launch the copy back, and zeros for the second bottom."""
        if propagate_down[0]:
            buffers = self._target, top[0].diff_buffer, bottom[0].diff_buffer
            self.launch("crop_backward", self._rows[2], self._rows, *buffers)
        if propagate_down[1]:
            self.device.fill(bottom[1].diff_buffer, 0)

    def _cut(self, bottom: list[Blob]) -> Iterator[tuple[int, int]]:
        """Yield (start, stop) of what is kept of each axis."""
        options, shape, size = self.param.crop_param, bottom[0].shape, bottom[1].shape
        axis = self.axis_of(bottom[0], options.axis)
        cropped = len(shape) - axis
        offsets = [int(offset) for offset in options.offset] or [0]
        if len(offsets) not in (1, cropped):
            raise ShapeError(
                f"offset must be given once, or once for each of the {cropped} axes of {bottom[0]} from axis {axis} "
                f"on. Received {len(offsets)}."
            )
        if len(size) < len(shape):
            raise ShapeError(
                f"the second bottom must have as many axes as the first. Received {bottom[0]} and {bottom[1]}. Use a "
                "bottom with more axes, or reshape it."
            )
        yield from ((0, length) for length in shape[:axis])
        for i, start in enumerate(offsets * (cropped // len(offsets)), axis):
            if start + size[i] > shape[i]:
                raise ShapeError(
                    f"the crop does not lie inside axis {i}: offset {start}, size {size[i]}, but length {shape[i]}. "
                    f"Received {bottom[0]}, to crop to {bottom[1]}. Use a smaller offset, or a smaller second bottom."
                )
            yield start, start + size[i]


def _without(shape: tuple[int, ...], axis: int) -> tuple[int, tuple[int, ...]]:
    return len(shape), shape[:axis] + shape[axis + 1 :]


def _pattern(shape: tuple[int, ...], axis: int) -> str:
    return f"({', '.join('any' if i == axis else str(length) for i, length in enumerate(shape))})"
