"""The nonlinearities of a net, which treat each element alone: ReLU, ELU, Sigmoid, TanH, BNLL, Swish; and Dropout.

Those that are functions of a calculator (Power, Exp, Log, ...) are in `elementary`, PReLU, which learns, in `prelu`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from caffe_lite.blob import Blob
from caffe_lite.errors import NetError
from caffe_lite.layers.base import Layer, register
from caffe_lite.proto import caffe_pb2

if TYPE_CHECKING:
    from caffe_lite.devices.base import Buffer, Device


class Neuron(Layer):
    """One bottom, one top of its shape, which may be the bottom itself."""

    exact_bottoms = 1
    exact_tops = 1
    in_place = True

    def reshape(self, bottom: list[Blob], top: list[Blob]) -> None:
        if top[0] is not bottom[0]:
            top[0].reshape(bottom[0].shape)

    def launch_each(self, kernel: str, blob: Blob, *args: Buffer | float) -> None:
        """Launch `kernel(n, *args)` for the n elements of `blob`."""
        self.launch(kernel, blob.count, blob.count, *args)

    def _copy(self, source: Buffer, target: Buffer) -> None:
        if source.pointer != target.pointer:
            self.device.copy(source, target)


class KeptBottom:
    """The values of a bottom for the backward pass: the bottom itself, or a copy where the top overwrites it."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._copy: Buffer | None = None

    def reshape(self, bottom: Blob, top: Blob) -> None:
        """Prepare for the bottom's present shape."""
        if top is not bottom:
            self._copy = None
        elif self._copy is None or self._copy.size != bottom.count:
            self._copy = self._device.alloc(bottom.count)

    def keep(self, bottom: Blob) -> None:
        """Launch the copy, if one is needed; comes before the top is written."""
        if self._copy is not None:
            self._device.copy(bottom.data_buffer, self._copy)

    def buffer(self, bottom: Blob) -> Buffer:
        """Return the buffer with the bottom's values."""
        return bottom.data_buffer if self._copy is None else self._copy


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
        self.launch_each("relu_forward", bottom[0], self._slope, bottom[0].data_buffer, top[0].data_buffer)

    def backward(self, top: list[Blob], propagate_down: Sequence[bool], bottom: list[Blob]) -> None:
        if propagate_down[0]:
            diffs = top[0].diff_buffer, bottom[0].diff_buffer
            self.launch_each("relu_backward", bottom[0], self._slope, bottom[0].data_buffer, *diffs)


@register("Dropout")
class Dropout(Neuron):
    """Sets a random part of the elements to zero while training.

    Forward: y = x * kept / (1 - dropout_ratio) in phase TRAIN, where each element is kept with probability
    1 - dropout_ratio, drawn anew in each pass; y = x in phase TEST.
    Backward: dx = dy * kept / (1 - dropout_ratio) in phase TRAIN, dx = dy in phase TEST.

    Shapes: any; the top has the bottom's.

    ``dropout_param { dropout_ratio scale_train }``: the ratio is at least 0, which keeps everything, and below 1; 0.5
    by default.  `scale_train` (true) is Fast R-CNN's: false scales by 1 - dropout_ratio in TEST, and not in TRAIN.

    Caffe's quirks: the scaling is done while training, so that weights need no change for a test.  The original draws
    other numbers on the GPU than on the CPU; here the same seed drops the same elements everywhere.
    """

    draws_random = True

    def setup(self, bottom: list[Blob], top: list[Blob]) -> None:
        ratio = self.param.dropout_param.dropout_ratio
        if not 0 <= ratio < 1:
            raise NetError(f"dropout_ratio must be at least 0 and below 1. Received {ratio:g}.")
        scale_train = self.param.dropout_param.scale_train
        self._scale = 1 / (1 - ratio) if scale_train else 1.0
        self._test_scale = 1.0 if scale_train else 1 - ratio
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
            self._pass_on(x, y)
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
            self._pass_on(dy, dx)
            return
        assert self._kept is not None
        self.launch("dropout_backward", count, count, self._scale, self._kept, dy, dx)

    def _pass_on(self, source: Buffer, target: Buffer) -> None:
        """Launch what TEST does to the data and, on the way back, to the diff."""
        if self._test_scale == 1:
            self._copy(source, target)
        else:
            self.launch("dropout_scale", source.size, source.size, self._test_scale, source, target)

    @property
    def _training(self) -> bool:
        return bool(self.phase == caffe_pb2.TRAIN)


@register("ELU")
class ELU(Neuron):
    """Lets what is positive through and bends what is negative towards -alpha.

    Forward: y = x where x > 0, else alpha * (exp(x) - 1).
    Backward: dx = dy where x > 0, else dy * (y + alpha).

    Shapes: any; the top has the bottom's.

    ``elu_param { alpha }``: 1 by default.

    Caffe's quirks: in place the backward pass sees y for x.  The two have the same sign, unless alpha is below zero:
    then the gradient in place is wrong, here as there.
    """

    def setup(self, bottom: list[Blob], top: list[Blob]) -> None:
        self._alpha: float = self.param.elu_param.alpha

    def forward(self, bottom: list[Blob], top: list[Blob]) -> None:
        self.launch_each("elu_forward", bottom[0], self._alpha, bottom[0].data_buffer, top[0].data_buffer)

    def backward(self, top: list[Blob], propagate_down: Sequence[bool], bottom: list[Blob]) -> None:
        if propagate_down[0]:
            values = bottom[0].data_buffer, top[0].data_buffer
            diffs = top[0].diff_buffer, bottom[0].diff_buffer
            self.launch_each("elu_backward", bottom[0], self._alpha, *values, *diffs)


@register("Sigmoid")
class Sigmoid(Neuron):
    """Squeezes each element into 0 to 1.

    Forward: y = 1 / (1 + exp(-x)).
    Backward: dx = dy * y * (1 - y).

    Shapes: any; the top has the bottom's.

    ``sigmoid_param { engine }`` is read and ignored.

    Caffe's quirks: none; it may work in place.
    """

    def forward(self, bottom: list[Blob], top: list[Blob]) -> None:
        self.launch_each("sigmoid_forward", bottom[0], bottom[0].data_buffer, top[0].data_buffer)

    def backward(self, top: list[Blob], propagate_down: Sequence[bool], bottom: list[Blob]) -> None:
        if propagate_down[0]:
            diffs = top[0].diff_buffer, bottom[0].diff_buffer
            self.launch_each("sigmoid_backward", bottom[0], top[0].data_buffer, *diffs)


@register("TanH")
class TanH(Neuron):
    """Squeezes each element into -1 to 1.

    Forward: y = tanh(x).
    Backward: dx = dy * (1 - y^2).

    Shapes: any; the top has the bottom's.

    ``tanh_param { engine }`` is read and ignored.

    Caffe's quirks: none; it may work in place.
    """

    def forward(self, bottom: list[Blob], top: list[Blob]) -> None:
        self.launch_each("tanh_forward", bottom[0], bottom[0].data_buffer, top[0].data_buffer)

    def backward(self, top: list[Blob], propagate_down: Sequence[bool], bottom: list[Blob]) -> None:
        if propagate_down[0]:
            diffs = top[0].diff_buffer, bottom[0].diff_buffer
            self.launch_each("tanh_backward", bottom[0], top[0].data_buffer, *diffs)


@register("BNLL")
class BNLL(Neuron):
    """The binomial normal log likelihood, a ReLU with a round corner (elsewhere called softplus).

    Forward: y = log(1 + exp(x)), computed without overflow.
    Backward: dx = dy / (1 + exp(-x)).

    Shapes: any; the top has the bottom's.

    It has no options.

    Caffe's quirks: in place the backward pass takes y for x, so that the gradient is wrong, here as there.
    """

    def forward(self, bottom: list[Blob], top: list[Blob]) -> None:
        self.launch_each("bnll_forward", bottom[0], bottom[0].data_buffer, top[0].data_buffer)

    def backward(self, top: list[Blob], propagate_down: Sequence[bool], bottom: list[Blob]) -> None:
        if propagate_down[0]:
            diffs = top[0].diff_buffer, bottom[0].diff_buffer
            self.launch_each("bnll_backward", bottom[0], bottom[0].data_buffer, *diffs)


@register("Swish")
class Swish(Neuron):
    """Multiplies each element by a sigmoid of itself.

    Forward: y = x * s with s = 1 / (1 + exp(-beta * x)).
    Backward: dx = dy * (beta * y + s * (1 - beta * y)).

    Shapes: any; the top has the bottom's.

    ``swish_param { beta }``: 1 by default; 0 makes it x / 2, a large one approaches ReLU.

    Caffe's quirks: none; it may work in place.  The original keeps s for the way back.  Here it is computed anew, from
    x, of which a copy is kept in place only.
    """

    def setup(self, bottom: list[Blob], top: list[Blob]) -> None:
        self._beta: float = self.param.swish_param.beta
        self._kept = KeptBottom(self.device)

    def reshape(self, bottom: list[Blob], top: list[Blob]) -> None:
        super().reshape(bottom, top)
        self._kept.reshape(bottom[0], top[0])

    def forward(self, bottom: list[Blob], top: list[Blob]) -> None:
        self._kept.keep(bottom[0])
        self.launch_each("swish_forward", bottom[0], self._beta, bottom[0].data_buffer, top[0].data_buffer)

    def backward(self, top: list[Blob], propagate_down: Sequence[bool], bottom: list[Blob]) -> None:
        if propagate_down[0]:
            diffs = top[0].diff_buffer, bottom[0].diff_buffer
            self.launch_each("swish_backward", bottom[0], self._beta, self._kept.buffer(bottom[0]), *diffs)
