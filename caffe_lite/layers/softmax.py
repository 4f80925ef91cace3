"""Softmax along one axis, as a layer and as the part that SoftmaxWithLoss uses."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from caffe_lite.blob import Blob
from caffe_lite.layers.base import Layer, register

if TYPE_CHECKING:
    from caffe_lite.devices.base import Buffer, Device

TILE = 256  # positions that a block of the spatial kernels shares; their scratch stays in the first-level cache


class Extents(NamedTuple):
    """A blob seen as (outer, channels, inner): what lies before an axis, along it and after it."""

    outer: int
    channels: int
    inner: int

    @classmethod
    def around(cls, axis: int, shape: Sequence[int]) -> Extents:
        """Return the extents of `shape` around the non-negative `axis`."""
        return cls(math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1 :]))

    @property
    def positions(self) -> int:
        """How many softmaxes, or labels, there are."""
        return self.outer * self.inner


class SoftmaxOverAxis:
    """The launches of a softmax over given extents, with the scratch they need."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._extents = Extents(0, 0, 0)
        self._scratch: list[Buffer] = []

    def reshape(self, extents: Extents) -> None:
        """Prepare for blobs of `extents`."""
        if extents.inner > 1 and extents.positions != self._extents.positions:
            self._scratch = [self._device.alloc(extents.positions) for _ in range(2)]
        self._extents = extents

    def forward(self, bottom: Buffer, top: Buffer) -> None:
        """Launch: `top` becomes the softmax of `bottom`, which may be the same buffer."""
        outer, channels, inner = self._extents
        if inner == 1:
            self._device.launch("softmax_forward", outer, outer, channels, bottom, top)
        else:
            rows, shape = self._tiles()
            self._device.launch("softmax_forward_spatial", rows, rows, shape, bottom, *self._scratch, top)

    def backward(self, top: Buffer, top_diff: Buffer, bottom_diff: Buffer) -> None:
        """Launch: `bottom_diff` (which may be `top_diff`) becomes the gradient, given the probabilities `top`."""
        outer, channels, inner = self._extents
        if inner == 1:
            self._device.launch("softmax_backward", outer, outer, channels, top, top_diff, bottom_diff)
        else:
            rows, shape = self._tiles()
            buffers = top, top_diff, self._scratch[0], bottom_diff
            self._device.launch("softmax_backward_spatial", rows, rows, shape, *buffers)

    def _tiles(self) -> tuple[int, tuple[int, ...]]:
        return self._extents.outer * -(-self._extents.inner // TILE), (*self._extents, TILE)


@register("Softmax")
class Softmax(Layer):
    """Turns scores into probabilities along one axis.

    Forward: y[c] = exp(x[c]) / sum over k of exp(x[k]), computed from x - max x, so that it cannot overflow.
    Backward: dx[c] = y[c] * (dy[c] - sum over k of dy[k] * y[k]).

    Shapes: any with the axis; the top has the bottom's.

    ``softmax_param { axis }``: 1 by default, a negative one counts from the end; ``engine`` is read and ignored.

    Caffe's quirks: none; it may work in place.
    """

    exact_bottoms = 1
    exact_tops = 1
    in_place = True

    def setup(self, bottom: list[Blob], top: list[Blob]) -> None:
        self._softmax = SoftmaxOverAxis(self.device)

    def reshape(self, bottom: list[Blob], top: list[Blob]) -> None:
        axis = self.axis_of(bottom[0], self.param.softmax_param.axis)
        self._softmax.reshape(Extents.around(axis, bottom[0].shape))
        if top[0] is not bottom[0]:
            top[0].reshape(bottom[0].shape)

    def forward(self, bottom: list[Blob], top: list[Blob]) -> None:
        self._softmax.forward(bottom[0].data_buffer, top[0].data_buffer)

    def backward(self, top: list[Blob], propagate_down: Sequence[bool], bottom: list[Blob]) -> None:
        if propagate_down[0]:
            self._softmax.backward(top[0].data_buffer, top[0].diff_buffer, bottom[0].diff_buffer)
