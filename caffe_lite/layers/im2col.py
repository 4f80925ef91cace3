"""Im2col: image patches as channels."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from caffe_lite.blob import Blob
from caffe_lite.errors import NetError, ShapeError
from caffe_lite.layers.base import Layer, register
from caffe_lite.layers.convolution import Window


@register("Im2col")
class Im2col(Layer):
    """Lays out every patch that a convolution's kernel sees, one channel for each tap of the kernel.

    For item n, channel c, place p and tap k (both one number per spatial axis):

        forward   top[n, (c, k), p] = bottom[n, c, at(p, k)]
        backward  bottom_diff[n, c, i] = sum over all p, k with at(p, k) = i of top_diff[n, (c, k), p]

    with at(p, k) = stride p + dilation k - pad, where the bottom counts as zero outside.  A convolution is the product
    of its weights, as a matrix, with this.

    Shapes: bottom (items..., channels, spatial...), with channels at `axis`; top (items..., channels * taps, out...)
    with out as in Convolution and taps = the product of the kernel's sizes.

    Prototxt: ``convolution_param { kernel_size, pad (0), stride (1), dilation (1): once or once per spatial axis;
    kernel_h, kernel_w, pad_h, pad_w, stride_h, stride_w: for two axes instead; axis (1, may be negative) }``.  The
    other fields are accepted and change nothing.

    *Caffe's quirks.*  There must be a spatial axis.  A kernel larger than the padded bottom is an error, where the
    original's division, which rounds toward zero, lets some pass with one place.
    """

    exact_bottoms = 1
    exact_tops = 1

    def setup(self, bottom: list[Blob], top: list[Blob]) -> None:
        """Read ``convolution_param``.  Raises `NetError` for options that do not fit."""
        options = self.param.convolution_param
        self.axis = self.axis_of(bottom[0], options.axis)
        axes = len(bottom[0].shape) - self.axis - 1
        if axes == 0:
            raise NetError(
                f"there must be a spatial axis behind the channels. Received bottom {bottom[0]} with channels at "
                f"axis {self.axis}. Use a smaller axis."
            )
        self.window = Window.read(options, axes)
        self._sizes = self.device.alloc(6 * axes, np.int32)

    def reshape(self, bottom: list[Blob], top: list[Blob]) -> None:
        """Size the top.  Raises `ShapeError` for another number of axes, or a kernel larger than the bottom."""
        shape, window = bottom[0].shape, self.window
        items, spatial = shape[: self.axis], shape[self.axis + 1 :]
        axes, taps = len(window.kernel), math.prod(window.kernel)
        if len(spatial) != axes:
            raise ShapeError(
                f"the number of axes may not change. Expected {axes} spatial axes behind axis {self.axis}, received "
                f"bottom {bottom[0]}. Give it as many axes as it had when the net was built."
            )
        out = window.places(bottom[0], self.axis)
        top[0].reshape(*items, shape[self.axis] * taps, *out)
        sizes = (spatial, out, window.kernel, window.stride, window.pad, window.dilation)
        self.device.upload(self._sizes, np.array(sizes, np.int32))
        self.planes = math.prod(items) * shape[self.axis]
        self.shape = self.planes, axes, taps, math.prod(spatial), math.prod(out)

    def forward(self, bottom: list[Blob], top: list[Blob]) -> None:
        """Launch the copy, a row for each tap of each plane."""
        rows = self.planes * math.prod(self.window.kernel)
        self.launch("im2col_forward", rows, rows, self.shape, self._sizes, bottom[0].data_buffer, top[0].data_buffer)

    def backward(self, top: list[Blob], propagate_down: Sequence[bool], bottom: list[Blob]) -> None:
        """Launch the sum, a row for each plane of the bottom."""
        if propagate_down[0]:
            given = self.shape, self._sizes, top[0].diff_buffer
            self.launch("im2col_backward", self.planes, self.planes, *given, bottom[0].diff_buffer)
