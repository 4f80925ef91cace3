"""The layers that pick items of a batch: BatchReindex, Filter."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from caffe_lite.blob import Blob
from caffe_lite.errors import DataError, NetError, ShapeError
from caffe_lite.layers.base import Layer, register
from caffe_lite.layers.concat import in_pieces

if TYPE_CHECKING:
    from caffe_lite.devices.base import Buffer


def select_items(layer: Layer, count: int, items: Buffer, source: Blob, buffers: tuple[Buffer, Buffer]) -> None:
    """Launch: copy items `items[0]`, ... of a buffer in the shape of `source` to `count` items of another one.

    `buffers` are the two; negative items become zeros.
    """
    pieces, length = in_pieces(math.prod(source.shape[1:]))
    layer.launch("select_items", count * pieces, count * pieces, (source.shape[0], pieces, length), items, *buffers)


@register("BatchReindex")
class BatchReindex(Layer):
    """Makes a batch of the items that the second bottom names, in its order, some repeated, some left out.

    Forward: y[m] = x[index[m]].
    Backward: dx[n] = the sum of dy[m] over all m with index[m] == n.

    Shapes: x (num, ...), index (count): whole numbers from 0 to num - 1; top (count, ...).

    Prototxt: no options.

    *Caffe's quirks.*  An index's fraction is cut off.  Indices have no gradient, but under ``force_backward`` this is
    no error here, as it is in the original.  An index outside the batch is an error on every device; the original's
    GPU code reads outside the blob.
    """

    exact_bottoms = 2
    exact_tops = 1
    checks_values = True

    def setup(self, bottom: list[Blob], top: list[Blob]) -> None:
        """Prepare for the report of an index outside the batch."""
        self._items: Buffer | None = None
        self._outside = self.device.alloc(1, np.int32)

    def reshape(self, bottom: list[Blob], top: list[Blob]) -> None:
        """Size the top.  Raises `ShapeError` unless the indices have one axis, and the batch has one at least."""
        source, index = bottom
        if len(index.shape) != 1:
            raise ShapeError(f"the indices must have one axis. Received {index} for items {source}. Reshape them.")
        self.axis_of(source, 0)
        top[0].reshape(*index.shape, *source.shape[1:])
        if self._items is None or self._items.size != index.count:
            self._items = self.device.alloc(index.count, np.int32)

    def forward(self, bottom: list[Blob], top: list[Blob]) -> None:
        """Launch the check of the indices and the copy of the items."""
        assert self._items is not None
        source, index = bottom
        given = index.count, source.shape[0], index.data_buffer
        self.launch("batch_reindex_items", 1, 1, *given, self._items, self._outside)
        select_items(self, index.count, self._items, source, (source.data_buffer, top[0].data_buffer))

    def backward(self, top: list[Blob], propagate_down: Sequence[bool], bottom: list[Blob]) -> None:
        """Launch the gradient of the items.  Raises `NetError` for one of the indices."""
        if propagate_down[1]:
            raise NetError("indices have no gradient. Set propagate_down: false for the second bottom.")
        if not propagate_down[0]:
            return
        assert self._items is not None
        num, count = bottom[0].shape[0], bottom[1].count
        pieces, length = in_pieces(math.prod(bottom[0].shape[1:]))
        rows, buffers = num * pieces, (self._items, top[0].diff_buffer, bottom[0].diff_buffer)
        self.launch("batch_reindex_backward", rows, rows, count, (num, pieces, length), *buffers)

    def allow_force_backward(self, bottom_index: int) -> bool:
        """Whether ``force_backward`` applies to a bottom: not to the indices."""
        return bottom_index == 0

    def check(self, bottom: list[Blob]) -> None:
        """Raise `DataError` if an index of the last forward pass was outside the batch."""
        first = int(self.device.download(self._outside)[0])
        source, index = bottom
        if first < index.count:
            raise DataError(
                f"index {index.data.flat[first]:g} at position {first} is no item of the batch. "
                f"Expected 0 to {source.shape[0] - 1}."
            )


@register("Filter")
class Filter(Layer):
    """Keeps the items whose element of the last bottom, the selector, is not 0.

    Forward: y_k[m] = x_k[the m-th selected item].
    Backward: dx_k[n] = dy_k[m] if n is the m-th selected item, else 0.

    Shapes: bottoms x_k (num, ...), one a top, and the selector (num) or (num, 1, 1, ...); tops (selected items, ...).

    Prototxt: no options.

    *Caffe's quirks.*  The tops' first axis depends on the data, from pass to pass, so this layer runs Python before
    each pass; it is the whole batch until the first one.  NaN selects.  The selector has no gradient, but under
    ``force_backward`` this is no error here, as it is in the original.
    """

    min_bottoms = 2
    min_tops = 1
    runs_python = True

    def setup(self, bottom: list[Blob], top: list[Blob]) -> None:
        """Raises `NetError` unless there is one top for each bottom but the selector."""
        if len(top) != len(bottom) - 1:
            raise NetError(
                f"each bottom but the last, the selector, needs a top. Expected {len(bottom) - 1} tops, "
                f"received {len(top)} for {', '.join(map(str, bottom))}."
            )
        self._selector = len(top)  # its index
        self._selected = -1  # items; -1 before the first pass
        self._sources = self._positions = self.device.alloc(0, np.int32)

    def reshape(self, bottom: list[Blob], top: list[Blob]) -> None:
        """Size the tops as the last pass left them.  Raises `ShapeError` if the selector does not fit."""
        selector, num = bottom[-1], self._num(bottom)
        if any(length != 1 for length in selector.shape[1:]):
            raise ShapeError(
                f"the selector must have one element an item. Expected ({num}) or ({num}, 1, ...), "
                f"received {selector}. Reshape it."
            )
        for blob in bottom:
            if blob.shape[:1] != selector.shape[:1]:
                raise ShapeError(
                    f"all bottoms must have as many items as the selector, {num}. "
                    f"Received {blob} for selector {selector}. Check the layers that make them."
                )
        if self._positions.size != num:
            self._positions, self._sources = (self.device.alloc(num, np.int32) for _ in range(2))
            self._selected = -1
        self._size_tops(bottom, top)

    def prepare(self, bottom: list[Blob], top: list[Blob]) -> None:
        """Look which items are selected, and size the tops for them."""
        selected = np.flatnonzero(bottom[-1].data.ravel() != 0)
        sources, positions = np.zeros(self._num(bottom), np.int32), np.full(self._num(bottom), -1, np.int32)
        sources[: selected.size] = selected
        positions[selected] = np.arange(selected.size)
        self.device.upload(self._sources, sources)
        self.device.upload(self._positions, positions)
        self._selected = selected.size
        self._size_tops(bottom, top)

    def forward(self, bottom: list[Blob], top: list[Blob]) -> None:
        """Launch the copies of the selected items."""
        for source, target in zip(bottom, top, strict=False):
            buffers = source.data_buffer, target.data_buffer
            select_items(self, target.shape[0], self._sources, source, buffers)

    def backward(self, top: list[Blob], propagate_down: Sequence[bool], bottom: list[Blob]) -> None:
        """Launch the copies back, and zeros for the other items.  Raises `NetError` for a gradient of the selector."""
        if propagate_down[-1]:
            raise NetError("a selector has no gradient. Set propagate_down: false for the last bottom.")
        for source, target, wanted in zip(bottom, top, propagate_down, strict=False):
            if wanted:
                buffers = target.diff_buffer, source.diff_buffer
                select_items(self, source.shape[0], self._positions, target, buffers)

    def allow_force_backward(self, bottom_index: int) -> bool:
        """Whether ``force_backward`` applies to a bottom: not to the selector."""
        return bottom_index != self._selector

    def _num(self, bottom: list[Blob]) -> int:
        self.axis_of(bottom[-1], 0)
        return bottom[-1].shape[0]

    def _size_tops(self, bottom: list[Blob], top: list[Blob]) -> None:
        selected = self._num(bottom) if self._selected < 0 else self._selected
        for source, target in zip(bottom, top, strict=False):
            target.reshape(selected, *source.shape[1:])
