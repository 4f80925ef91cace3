"""MemoryData: batches from numpy arrays that the caller gives."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from caffe_lite.blob import Blob
from caffe_lite.errors import DataError, NetError, ShapeError, UsageError
from caffe_lite.layers.base import Layer, register

logger = logging.getLogger("caffe_lite")


@register("MemoryData")
class MemoryData(Layer):
    """Gives the next ``batch_size`` items of two arrays with each pass, and starts over at the end.

    The arrays come from ``net.set_input_arrays(data, labels)``.  Forward: top[0] the data, (num, channels, height,
    width); top[1] the labels.  No backward.

    Fields: ``memory_data_param`` {batch_size, channels, height, width}.

    *Caffe's quirks.*  ``transform_param`` does not apply to arrays.  The labels' shape is (num,) until the first pass
    and (num, 1, 1, 1) from then on.  The arrays are not copied: what is written into them later counts.
    """

    exact_bottoms = 0
    exact_tops = 2
    runs_python = True

    def setup(self, bottom: list[Blob], top: list[Blob]) -> None:
        param = self.param.memory_data_param
        self._shape = tuple(int(getattr(param, field)) for field in ("batch_size", "channels", "height", "width"))
        if not all(self._shape):
            raise NetError(
                "memory_data_param: batch_size, channels, height and width must all be 1 or more. "
                f"Received {', '.join(map(str, self._shape))}."
            )
        self._data: NDArray[np.float32] | None = None
        self._position = 0
        top[0].reshape(self._shape)
        top[1].reshape(self._shape[0])

    def reshape(self, bottom: list[Blob], top: list[Blob]) -> None:
        """Keep the tops as they are: setup and `prepare` shape them."""

    def set_arrays(self, data: NDArray[Any], labels: NDArray[Any]) -> None:
        """Take batches from `data` and `labels` from now on, from the first item.

        Both are float32, contiguous and as long as a multiple of ``batch_size``; `data` is (items, channels, height,
        width), `labels` (items, 1, 1, 1) or (items,).  Raises `UsageError` or `ShapeError`.
        """
        data, labels = np.asarray(data), np.asarray(labels)
        if labels.ndim == 1:
            labels = np.ascontiguousarray(labels[:, np.newaxis, np.newaxis, np.newaxis])
        _check("data", data, self._shape[1:])
        _check("labels", labels, (1, 1, 1))
        if len(data) != len(labels):
            raise ShapeError(f"data and labels must have the same length. Received {len(data)} and {len(labels)}.")
        if not len(data) or len(data) % self._shape[0]:
            raise ShapeError(
                f"the arrays' length must be a multiple of batch_size {self._shape[0]}. Received {len(data)} items."
            )
        if self.param.HasField("transform_param"):
            logger.warning("MemoryData does not transform array data.")
        self._data, self._labels, self._position = data, labels, 0

    def prepare(self, bottom: list[Blob], top: list[Blob]) -> None:
        if self._data is None:
            raise DataError("there is no data yet. Call net.set_input_arrays(data, labels) before the first pass.")
        size = self._shape[0]
        items = slice(self._position, self._position + size)
        top[0].reshape(self._shape)
        top[1].reshape(size, 1, 1, 1)
        self.device.upload(top[0].data_buffer, self._data[items])
        self.device.upload(top[1].data_buffer, self._labels[items])
        self._position = (self._position + size) % len(self._data)

    def forward(self, bottom: list[Blob], top: list[Blob]) -> None:
        pass  # `prepare` has filled the tops

    def backward(self, top: list[Blob], propagate_down: Sequence[bool], bottom: list[Blob]) -> None:
        pass  # there is no bottom to send a gradient to

    def seek(self, passes: int) -> None:
        if self._data is not None:
            self._position = passes * self._shape[0] % len(self._data)


def _check(name: str, array: NDArray[Any], item: tuple[int, ...]) -> None:
    """Raise what is wrong with the array called `name`, whose items should have the shape `item`."""
    if array.ndim != 4 or array.shape[1:] != item:
        expected = ", ".join(map(str, item))
        raise ShapeError(f"the {name} array has the wrong shape. Expected (items, {expected}), received {array.shape}.")
    if array.dtype != np.float32:
        raise UsageError(f"the {name} array must be float32. Received {array.dtype}. Convert it with astype.")
    if not array.flags.c_contiguous:
        raise UsageError(f"the {name} array must be C contiguous. Use numpy.ascontiguousarray.")
