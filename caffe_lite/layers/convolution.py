"""Convolution over any number of spatial axes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from caffe_lite.blob import Blob
from caffe_lite.devices.base import ConvolutionGeometry
from caffe_lite.errors import NetError, ShapeError
from caffe_lite.layers.base import Layer, register
from caffe_lite.layers.inner_product import add_weights_and_bias


def spatial_option(options: Any, name: str, axes: int, default: int | None = None) -> tuple[int, ...]:
    """Return option `name` of a ``ConvolutionParameter`` with one entry for each of `axes` spatial axes.

    It is given once for all axes, once per axis, or, for two axes, as ``<stem>_h`` and ``<stem>_w``.  Raises `NetError`
    for anything else.
    """
    values = list(getattr(options, name))
    stem = "kernel" if name == "kernel_size" else name
    height, width = f"{stem}_h", f"{stem}_w"
    if name != "dilation" and (options.HasField(height) or options.HasField(width)):
        if axes != 2:
            raise NetError(f"{height} and {width} are for two spatial axes. Received a bottom with {axes}; use {name}.")
        if values:
            raise NetError(f"{name} and {height}, {width} exclude each other. Received both.")
        return int(getattr(options, height)), int(getattr(options, width))
    if not values and default is not None:
        values = [default]
    if len(values) not in (1, axes):
        raise NetError(
            f"{name} must be given once, or once per spatial axis. Expected 1 or {axes} values, received {len(values)}."
        )
    return tuple(values * axes if len(values) == 1 else values)


@register("Convolution")
class Convolution(Layer):
    """Slides `num_output` filters over the bottom and takes the product of filter and patch at each place.

    For item n, output o, place p and tap k of the filter (both one number per spatial axis):

        forward   top[n, o, p] = bias[o] + sum over c, k of weights[o, c, k] bottom[n, c, at(p, k)]
        backward  weights_diff[o, c, k] += sum over n, p of top_diff[n, o, p] bottom[n, c, at(p, k)]
                  bias_diff[o] += sum over n, p of top_diff[n, o, p]
                  bottom_diff[n, c, i] = sum over o and all p, k with at(p, k) = i of weights[o, c, k] top_diff[n, o, p]

    with at(p, k) = stride p + dilation k - pad, where the bottom counts as zero outside.  c runs over the channels of
    o's group.  (It is a correlation: the filter is not flipped.)

    Shapes: bottom (items..., channels, spatial...), with channels at `axis`; top (items..., num_output, out...), where
    out = (in + 2 pad - (dilation (kernel - 1) + 1)) / stride + 1, rounded down; params: weights (num_output,
    channels / group, kernel...), bias (num_output,).  Several bottoms of one shape share the params, a top each.

    Prototxt: ``convolution_param { num_output, bias_term (true), kernel_size, pad (0), stride (1), dilation (1): once
    or once per spatial axis; kernel_h, kernel_w, pad_h, pad_w, stride_h, stride_w: for two axes instead; group (1);
    weight_filler, bias_filler, axis (1, may be negative), force_nd_im2col, engine }``.  The last two choose between
    implementations in the original.  Here they are accepted and change nothing: there is one, with the same result.

    *Caffe's quirks.*  Sizes round down here, while pooling rounds up.  With `group` g, output o sees only channels
    o div (num_output / g).  A kernel larger than the padded bottom is an error, where the original's division, which
    rounds toward zero, lets some pass with one output.
    """

    min_bottoms = 1
    min_tops = 1
    equal_bottoms_and_tops = True

    def setup(self, bottom: list[Blob], top: list[Blob]) -> None:
        """Read ``convolution_param``; make weights and bias.  Raises `NetError` for options that do not fit."""
        options = self.param.convolution_param
        self.axis = self.axis_of(bottom[0], options.axis)
        axes = len(bottom[0].shape) - self.axis - 1
        if axes:
            self.kernel = spatial_option(options, "kernel_size", axes)
            self.stride = spatial_option(options, "stride", axes, 1)
            self.pad = spatial_option(options, "pad", axes, 0)
            self.dilation = spatial_option(options, "dilation", axes, 1)
        else:
            self.kernel = self.stride = self.pad = self.dilation = ()
        self.channels = bottom[0].shape[self.axis]
        self.num_output, self.group = int(options.num_output), int(options.group)
        self._check_options()
        weight_shape = self.num_output, self.channels // self.group, *self.kernel
        add_weights_and_bias(self, weight_shape, self.num_output, options)

    def reshape(self, bottom: list[Blob], top: list[Blob]) -> None:
        """Size the tops.  Raises `ShapeError` for bottoms that do not fit the weights, each other or the kernel."""
        shape = bottom[0].shape
        spatial = shape[self.axis + 1 :]
        if len(spatial) != len(self.kernel) or shape[self.axis] != self.channels:
            raise ShapeError(
                f"the bottom does not fit the weights. Expected {self.channels} channels at axis {self.axis} and "
                f"{len(self.kernel)} spatial axes, received {bottom[0]} (weights {self.blobs[0].shape})."
            )
        for i, other in enumerate(bottom):
            if other.shape != shape:
                raise ShapeError(f"bottom {i} must have the shape of bottom 0, {bottom[0]}. Received {other}.")
        out = self._out_shape(spatial)
        for blob in top:
            blob.reshape(*shape[: self.axis], self.num_output, *out)
        once = (1,)  # without spatial axes the layer is a product per item: one place, a kernel of one
        self.geometry = ConvolutionGeometry(
            num=math.prod(shape[: self.axis]),
            channels=self.channels,
            num_output=self.num_output,
            group=self.group,
            in_shape=spatial or once,
            out_shape=out or once,
            kernel=self.kernel or once,
            stride=self.stride or once,
            pad=self.pad or (0,),
            dilation=self.dilation or once,
        )

    def forward(self, bottom: list[Blob], top: list[Blob]) -> None:
        """Launch one convolution per bottom."""
        weights = self.blobs[0].data_buffer
        bias = self.blobs[1].data_buffer if len(self.blobs) > 1 else None
        for source, target in zip(bottom, top, strict=True):
            self.device.conv_forward(self.geometry, source.data_buffer, weights, bias, target.data_buffer)

    def backward(self, top: list[Blob], propagate_down: Sequence[bool], bottom: list[Blob]) -> None:
        """Launch, per bottom, the gradients that are wanted: of the bias, the weights and the bottom."""
        geometry, device, weights = self.geometry, self.device, self.blobs[0]
        places = math.prod(geometry.out_shape)
        for source, target, wanted in zip(bottom, top, propagate_down, strict=True):
            top_diff = target.diff_buffer
            if len(self.blobs) > 1 and self.param_propagate_down[1]:
                sizes = self.num_output, geometry.num, places
                self.launch("convolution_backward_bias", self.num_output, *sizes, top_diff, self.blobs[1].diff_buffer)
            if self.param_propagate_down[0]:
                device.conv_backward_weights(geometry, source.data_buffer, top_diff, weights.diff_buffer)
            if wanted:
                device.conv_backward_data(geometry, weights.data_buffer, top_diff, source.diff_buffer)

    def _check_options(self) -> None:
        """Raise `NetError` for zeros, and for a group that does not divide both numbers of channels."""
        positive = {"kernel_size": self.kernel, "stride": self.stride, "dilation": self.dilation}
        positive |= {"num_output": (self.num_output,), "group": (self.group,)}
        for name, values in positive.items():
            if 0 in values:
                raise NetError(f"{name} must be positive. Received {', '.join(map(str, values))}.")
        for name, count in ("channels of the bottom", self.channels), ("num_output", self.num_output):
            if count % self.group:
                raise NetError(f"group must divide the {name}. Received group {self.group}, {name} {count}.")

    def _out_shape(self, spatial: tuple[int, ...]) -> tuple[int, ...]:
        """Return the top's spatial sizes.  Raises `ShapeError` where a kernel is larger than its padded axis."""
        out = []
        for i, size in enumerate(spatial):
            extent = self.dilation[i] * (self.kernel[i] - 1) + 1
            padded = size + 2 * self.pad[i]
            if extent > padded:
                raise ShapeError(
                    f"the kernel is larger than its padded input along spatial axis {i}: kernel {self.kernel[i]} with "
                    f"dilation {self.dilation[i]} spans {extent}, input {size} with pad {self.pad[i]} has {padded} "
                    f"(bottom's spatial shape {spatial}). Use a smaller kernel, a larger pad or a larger input."
                )
            out.append((padded - extent) // self.stride[i] + 1)
        return tuple(out)
