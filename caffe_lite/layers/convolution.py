"""Convolution and Deconvolution over any number of spatial axes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, ClassVar

from caffe_lite.blob import Blob
from caffe_lite.devices.base import Buffer, ConvolutionGeometry
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


def check_positive(name: str, values: Sequence[int]) -> None:
    """Raise `NetError` if one of an option's `values` is 0."""
    if 0 in values:
        raise NetError(f"{name} must be positive. Received {', '.join(map(str, values))}.")


@dataclasses.dataclass(frozen=True)
class Window:
    """A kernel that slides over the spatial axes; every tuple has one entry an axis."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    pad: tuple[int, ...]
    dilation: tuple[int, ...]

    @classmethod
    def read(cls, options: Any, axes: int) -> Window:
        """Return the window that a ``ConvolutionParameter`` describes.  Raises `NetError` for options that do not fit.

        Without spatial axes the layer is a product per item: the options are not looked at.
        """
        if axes == 0:
            return cls((), (), (), ())
        window = cls(
            spatial_option(options, "kernel_size", axes),
            spatial_option(options, "stride", axes, 1),
            spatial_option(options, "pad", axes, 0),
            spatial_option(options, "dilation", axes, 1),
        )
        check_positive("kernel_size", window.kernel)
        check_positive("stride", window.stride)
        check_positive("dilation", window.dilation)
        return window

    def span(self, axis: int) -> int:
        """Return how many positions lie between the ends of the kernel, both included."""
        return self.dilation[axis] * (self.kernel[axis] - 1) + 1

    def places(self, bottom: Blob, axis: int) -> tuple[int, ...]:
        """Return how many places the window has on the axes behind `axis`.  Raises `ShapeError` where it is larger."""
        out = []
        for i, size in enumerate(bottom.shape[axis + 1 :]):
            padded = size + 2 * self.pad[i]
            if self.span(i) > padded:
                raise ShapeError(
                    f"the kernel is larger than its padded input along spatial axis {i}: kernel {self.kernel[i]} with "
                    f"dilation {self.dilation[i]} spans {self.span(i)}, input {size} with pad {self.pad[i]} has "
                    f"{padded} (bottom {bottom}). Use a smaller kernel, a larger pad or a larger input."
                )
            out.append((padded - self.span(i)) // self.stride[i] + 1)
        return tuple(out)

    def reach(self, bottom: Blob, axis: int) -> tuple[int, ...]:
        """Return the sizes that places on the axes behind `axis` cover.  Raises `ShapeError` if padding leaves none."""
        out = []
        for i, count in enumerate(bottom.shape[axis + 1 :]):
            size = self.stride[i] * (count - 1) + self.span(i) - 2 * self.pad[i]
            if size < 1:
                raise ShapeError(
                    f"the padding leaves nothing of the top along spatial axis {i}: {count} places with stride "
                    f"{self.stride[i]} and a kernel that spans {self.span(i)} reach over {size + 2 * self.pad[i]} "
                    f"positions, of which pad {self.pad[i]} cuts {2 * self.pad[i]} (bottom {bottom}). Use a smaller "
                    "pad."
                )
            out.append(size)
        return tuple(out)


class BaseConvolution(Layer):
    """What Convolution and Deconvolution share: options, params, shapes and the gradient of the bias.

    The params are those of a convolution from `image_channels` to `filters`; a deconvolution runs one backwards, from
    `filters` channels in its bottom to `image_channels` in its top.
    """

    min_bottoms = 1
    min_tops = 1
    equal_bottoms_and_tops = True
    backwards: ClassVar[bool]

    def setup(self, bottom: list[Blob], top: list[Blob]) -> None:
        """Read ``convolution_param``; make weights and bias.  Raises `NetError` for options that do not fit."""
        options = self.param.convolution_param
        self.axis = self.axis_of(bottom[0], options.axis)
        self.window = Window.read(options, len(bottom[0].shape) - self.axis - 1)
        self.channels = bottom[0].shape[self.axis]
        self.num_output, self.group = int(options.num_output), int(options.group)
        check_positive("num_output", [self.num_output])
        check_positive("group", [self.group])
        for name, count in ("channels of the bottom", self.channels), ("num_output", self.num_output):
            if count % self.group:
                raise NetError(
                    f"group must divide the {name}. Received group {self.group}, {name} {count} (bottom {bottom[0]}). "
                    "Use another group."
                )
        ends = self.channels, self.num_output
        self.filters, self.image_channels = ends if self.backwards else ends[::-1]
        weight_shape = self.filters, self.image_channels // self.group, *self.window.kernel
        add_weights_and_bias(self, bottom[0], weight_shape, self.num_output, options)

    def reshape(self, bottom: list[Blob], top: list[Blob]) -> None:
        """Size the tops.  Raises `ShapeError` for bottoms that do not fit the weights, each other or the kernel."""
        shape, window = bottom[0].shape, self.window
        spatial = shape[self.axis + 1 :]
        if len(spatial) != len(window.kernel) or shape[self.axis] != self.channels:
            raise ShapeError(
                f"the bottom does not fit the weights. Expected {self.channels} channels at axis {self.axis} and "
                f"{len(window.kernel)} spatial axes, received {bottom[0]} (weights {self.blobs[0].shape}). Give it "
                "the shape it had when the net was built."
            )
        for i, other in enumerate(bottom):
            if other.shape != shape:
                raise ShapeError(
                    f"bottom {i} must have the shape of bottom 0, {bottom[0]}. Received {other}. Use one layer a shape."
                )
        out = (window.reach if self.backwards else window.places)(bottom[0], self.axis)
        for blob in top:
            blob.reshape(*shape[: self.axis], self.num_output, *out)
        image, places = (out, spatial) if self.backwards else (spatial, out)
        once = (1,)  # without spatial axes: one place, a kernel of one
        self.geometry = ConvolutionGeometry(
            num=math.prod(shape[: self.axis]),
            channels=self.image_channels,
            num_output=self.filters,
            group=self.group,
            in_shape=image or once,
            out_shape=places or once,
            kernel=window.kernel or once,
            stride=window.stride or once,
            pad=window.pad or (0,),
            dilation=window.dilation or once,
        )
        self.places = math.prod(out)

    @property
    def bias(self) -> Buffer | None:
        """The bias on the device, if there is one."""
        return self.blobs[1].data_buffer if len(self.blobs) > 1 else None

    def backward_bias(self, top: Blob) -> None:
        """Launch the gradient of the bias, if it is wanted."""
        if len(self.blobs) > 1 and self.param_propagate_down[1]:
            sizes = self.num_output, self.geometry.num, self.places
            self.launch("convolution_backward_bias", sizes[0], *sizes, top.diff_buffer, self.blobs[1].diff_buffer)


@register("Convolution")
class Convolution(BaseConvolution):
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

    backwards = False

    def forward(self, bottom: list[Blob], top: list[Blob]) -> None:
        """Launch one convolution per bottom."""
        weights = self.blobs[0].data_buffer
        for source, target in zip(bottom, top, strict=True):
            self.device.conv_forward(self.geometry, source.data_buffer, weights, self.bias, target.data_buffer)

    def backward(self, top: list[Blob], propagate_down: Sequence[bool], bottom: list[Blob]) -> None:
        """Launch, per bottom, the gradients that are wanted: of the bias, the weights and the bottom."""
        geometry, device, weights = self.geometry, self.device, self.blobs[0]
        for source, target, wanted in zip(bottom, top, propagate_down, strict=True):
            self.backward_bias(target)
            if self.param_propagate_down[0]:
                device.conv_backward_weights(geometry, source.data_buffer, target.diff_buffer, weights.diff_buffer)
            if wanted:
                device.conv_backward_data(geometry, weights.data_buffer, target.diff_buffer, source.diff_buffer)


@register("Deconvolution")
class Deconvolution(BaseConvolution):
    """Lets each element of the bottom lay its multiple of the filters into the top: a convolution run backwards.

    For item n, channel c of the bottom, output o, place p and tap k of the filter (both one number per spatial axis):

        forward   top[n, o, i] = bias[o] + sum over c and all p, k with at(p, k) = i of weights[c, o, k] bottom[n, c, p]
        backward  weights_diff[c, o, k] += sum over n, p of bottom[n, c, p] top_diff[n, o, at(p, k)]
                  bias_diff[o] += sum over n, i of top_diff[n, o, i]
                  bottom_diff[n, c, p] = sum over o, k of weights[c, o, k] top_diff[n, o, at(p, k)]

    with at(p, k) = stride p + dilation k - pad; what falls outside the top is dropped.  o runs over the outputs of c's
    group.

    Shapes: bottom (items..., channels, spatial...), with channels at `axis`; top (items..., num_output, out...), where
    out = stride (in - 1) + dilation (kernel - 1) + 1 - 2 pad; params: weights (channels, num_output / group,
    kernel...), bias (num_output,).  Several bottoms of one shape share the params, a top each.

    Prototxt: ``convolution_param``, every field as in Convolution.

    *Caffe's quirks.*  The weights begin with the channels of the bottom, so that `num_output` is their second axis, and
    fillers count the fan-in as num_output / group times the kernel.  `pad` makes the top smaller.  With a stride, sizes
    of a convolution's bottom that differ by less than the stride give one top; this layer gives back the smallest.
    """

    backwards = True

    def forward(self, bottom: list[Blob], top: list[Blob]) -> None:
        """Launch, per bottom, the backward pass of a convolution, and what adds the bias."""
        geometry, weights, bias = self.geometry, self.blobs[0].data_buffer, self.bias
        planes = geometry.num * self.num_output
        for source, target in zip(bottom, top, strict=True):
            self.device.conv_backward_data(geometry, weights, source.data_buffer, target.data_buffer)
            if bias is not None:
                sizes = planes, self.num_output, self.places
                self.launch("convolution_forward_bias", target.count, *sizes, bias, target.data_buffer)

    def backward(self, top: list[Blob], propagate_down: Sequence[bool], bottom: list[Blob]) -> None:
        """Launch, per bottom, the gradients that are wanted: of the bias, the weights and the bottom."""
        geometry, device, weights = self.geometry, self.device, self.blobs[0]
        for source, target, wanted in zip(bottom, top, propagate_down, strict=True):
            self.backward_bias(target)
            if self.param_propagate_down[0]:
                device.conv_backward_weights(geometry, target.diff_buffer, source.data_buffer, weights.diff_buffer)
            if wanted:
                device.conv_forward(geometry, target.diff_buffer, weights.data_buffer, None, source.diff_buffer)
