"""The layers that treat each element alone: ReLU, Dropout."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from caffe_lite.blob import Blob
from caffe_lite.errors import NetError
from caffe_lite.layers.base import Layer, register
from caffe_lite.proto import caffe_pb2

if TYPE_CHECKING:
    from caffe_lite.devices.base import Buffer


class Neuron(Layer):
    """One bottom, one top of its shape, which may be the bottom itself."""

    exact_bottoms = 1
    exact_tops = 1
    in_place = True

    def reshape(self, bottom: list[Blob], top: list[Blob]) -> None:
        if top[0] is not bottom[0]:
            top[0].reshape(bottom[0].shape)

    def _copy(self, source: Buffer, target: Buffer) -> None:
        if source.pointer != target.pointer:
            self.device.copy(source, target)


@register("ReLU")
class ReLU(Neuron):
    """Cuts off what is negative, or flattens it.

    Forward: y = max(x, 0) + negative_slope * min(x, 0).
    Backward: dx = dy where x > 0, else negative_slope * dy.

    Shapes: any; the top has the bottom's.

    ``relu_param { negative_slope }``: 0 by default; ``engine`` is read and ignored.

    Caffe's quirks: in place the backward pass sees y, not x.  The two have the same sign, unless negative_slope is
    below zero: then the gradient in place is wrong, here as there.
    """

    def setup(self, bottom: list[Blob], top: list[Blob]) -> None:
        self._slope: float = self.param.relu_param.negative_slope

    def forward(self, bottom: list[Blob], top: list[Blob]) -> None:
        count = bottom[0].count
        self.launch("relu_forward", count, count, self._slope, bottom[0].data_buffer, top[0].data_buffer)

    def backward(self, top: list[Blob], propagate_down: Sequence[bool], bottom: list[Blob]) -> None:
        if propagate_down[0]:
            count, x = bottom[0].count, bottom[0].data_buffer
            diffs = top[0].diff_buffer, bottom[0].diff_buffer
            self.launch("relu_backward", count, count, self._slope, x, *diffs)


@register("Dropout")
class Dropout(Neuron):
    """Sets a random part of the elements to zero while training.

    Forward: y = x * kept / (1 - dropout_ratio) in phase TRAIN, where each element is kept with probability
    1 - dropout_ratio, drawn anew in each pass; y = x in phase TEST.
    Backward: dx = dy * kept / (1 - dropout_ratio) in phase TRAIN, dx = dy in phase TEST.

    Shapes: any; the top has the bottom's.

    ``dropout_param { dropout_ratio }``: at least 0, which keeps everything, and below 1; 0.5 by default.

    Caffe's quirks: the scaling is done while training, so that weights need no change for a test.  The original draws
    other numbers on the GPU than on the CPU; here the same seed drops the same elements everywhere.
    """

    draws_random = True

    def setup(self, bottom: list[Blob], top: list[Blob]) -> None:
        ratio = self.param.dropout_param.dropout_ratio
        if not 0 <= ratio < 1:
            raise NetError(f"dropout_ratio must be at least 0 and below 1. Received {ratio:g}.")
        self._scale = 1 / (1 - ratio)
        self._drop_below = min(round(ratio * 2**32), 2**32 - 1)
        self._kept: Buffer | None = None

    def reshape(self, bottom: list[Blob], top: list[Blob]) -> None:
        super().reshape(bottom, top)
        count = bottom[0].count
        if self._training and (self._kept is None or self._kept.size != count):
            self._kept = self.device.alloc(count, np.uint8)

    def forward(self, bottom: list[Blob], top: list[Blob]) -> None:
        x, y, count = bottom[0].data_buffer, top[0].data_buffer, bottom[0].count
        if not self._training:
            self._copy(x, y)
            return
        assert self.passes is not None and self._kept is not None
        seed = self.seed & 0xFFFFFFFF, self.seed >> 32
        chance = self._drop_below, self._scale
        self.launch("dropout_forward", count, count, *chance, *seed, self.passes, x, self._kept, y)

    def backward(self, top: list[Blob], propagate_down: Sequence[bool], bottom: list[Blob]) -> None:
        if not propagate_down[0]:
            return
        dy, dx, count = top[0].diff_buffer, bottom[0].diff_buffer, bottom[0].count
        if not self._training:
            self._copy(dy, dx)
            return
        assert self._kept is not None
        self.launch("dropout_backward", count, count, self._scale, self._kept, dy, dx)

    @property
    def _training(self) -> bool:
        return bool(self.phase == caffe_pb2.TRAIN)
