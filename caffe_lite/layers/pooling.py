"""Maximum, average and stochastic pooling over height and width."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from caffe_lite.blob import Blob
from caffe_lite.devices.base import Buffer, Device
from caffe_lite.errors import NetError, ShapeError
from caffe_lite.layers.base import Layer, register
from caffe_lite.proto import caffe_pb2


def pair(options: Any, name: str) -> tuple[int, int]:
    """Return option `name` of a ``PoolingParameter`` for height and width.

    It is given once, or as ``<stem>_h`` and ``<stem>_w``.  Raises `NetError` for one without the other, or for both
    forms.
    """
    stem = "kernel" if name == "kernel_size" else name
    height, width = f"{stem}_h", f"{stem}_w"
    given = [field for field in (name, height, width) if options.HasField(field)]
    if given == [height, width]:
        return int(getattr(options, height)), int(getattr(options, width))
    if given in ([], [name]):
        value = int(getattr(options, name))
        return value, value
    raise NetError(f"expected {name}, or {height} and {width}. Received {' and '.join(given)}.")


@register("Pooling")
class Pooling(Layer):
    """Takes the largest element (MAX), the mean (AVE) or a random one (STOCHASTIC) of each window, plane by plane.

        MAX         forward   top = max over the window of bottom
                    backward  each top diff goes to the element that was the maximum
        AVE         forward   top = sum over the window / divisor
                    backward  each top diff / divisor goes to every element of the window
        STOCHASTIC  forward   TRAIN: top = an element of the window, with the probability element / sum over the window;
                              TEST: the mean under these probabilities, sum of squares / sum, 0 without a positive sum
                    backward  TRAIN: each top diff goes to the element that was picked; TEST: there is none

    Shapes: bottom (num, channels, height, width), top (num, channels, pooled height, pooled width), where
    pooled = (size + 2 pad - kernel) / stride + 1, rounded as `round_mode` says.  MAX may have a second top of the same
    shape, the mask: where in its plane each maximum is, h * width + w, as a float.  No gradient comes back through it.

    Prototxt: ``pooling_param { pool (MAX); kernel_size, stride (1), pad (0): once, or as kernel_h and kernel_w,
    stride_h and stride_w, pad_h and pad_w; global_pooling (false): the window is the plane, and no kernel is given;
    round_mode (CEIL); engine }``.  `engine` chooses between implementations in the original; here it changes nothing.
    STOCHASTIC takes no pad.

    *Caffe's quirks.*  Sizes round up unless `round_mode` is FLOOR, while convolution rounds down: the last window may
    stick out of the plane and is clipped.  With padding, along either axis, a last window that would begin beyond the
    plane and its first padding is left out.  The average divides by the window's size clipped to the plane and its
    padding: zeros of the padding count, what lies beyond them does not.  The first of several maxima wins.  A NaN in a
    window is its maximum, so that it stays visible; the original's own kernels pass it over, its cuDNN engine does not.
    With a stride larger than the kernel, no padding and rounding up, a last window can be empty: MAX then gives
    -FLT_MAX and mask -1 as the original does, AVE gives 0 where the original divides by 0, and so does STOCHASTIC,
    which the original leaves unwritten.  STOCHASTIC exists only on the GPU in the original, and its backward pass in
    phase TEST is undefined there.  It expects elements that are not negative, as behind a ReLU; here the same seed
    picks the same elements everywhere.
    """

    exact_bottoms = 1
    min_tops = 1
    max_tops = 2

    def __init__(self, param: Any, phase: int, device: Device) -> None:
        super().__init__(param, phase, device)
        self.is_stochastic = param.pooling_param.pool == caffe_pb2.PoolingParameter.STOCHASTIC
        self.draws_random = self.is_stochastic and phase == caffe_pb2.TRAIN

    def setup(self, bottom: list[Blob], top: list[Blob]) -> None:
        """Read ``pooling_param``.  Raises `NetError` for options that exclude each other."""
        options = self.param.pooling_param
        self.is_max = options.pool == caffe_pb2.PoolingParameter.MAX
        if len(top) > 1 and not self.is_max:
            kind = "stochastic" if self.is_stochastic else "average"
            raise NetError(f"{kind} pooling has one top, only MAX writes a mask. Received {len(top)} tops.")
        self.global_pooling = bool(options.global_pooling)
        self.kernel, self.stride, self.pad = (pair(options, name) for name in ("kernel_size", "stride", "pad"))
        if self.global_pooling:
            if any(options.HasField(field) for field in ("kernel_size", "kernel_h", "kernel_w")):
                raise NetError("with global_pooling the kernel is the whole plane. Leave kernel_size out.")
            if self.pad != (0, 0) or self.stride != (1, 1):
                raise NetError(
                    f"with global_pooling pad must be 0 and stride 1. Received pad {self.pad}, stride {self.stride}."
                )
        else:
            self._check_sizes()
        if self.is_stochastic and self.pad != (0, 0):
            raise NetError(f"stochastic pooling takes no padding. Expected pad 0, received {self.pad}.")
        self.mask: Buffer | None = None

    def reshape(self, bottom: list[Blob], top: list[Blob]) -> None:
        """Size the tops and the mask.  Raises `ShapeError` unless the bottom has four axes and holds a window."""
        shape = bottom[0].shape
        if len(shape) != 4:
            raise ShapeError(
                f"expected a bottom of four axes (num, channels, height, width), received {bottom[0]}. Reshape it."
            )
        num, channels, height, width = shape
        if self.global_pooling:
            self.kernel = height, width
        pooled = self._pooled_size(0, bottom[0]), self._pooled_size(1, bottom[0])
        for blob in top:
            blob.reshape(num, channels, *pooled)
        if (self.is_max or self.draws_random) and (self.mask is None or self.mask.size != top[0].count):
            self.mask = self.device.alloc(top[0].count, np.int32)
        self.shape = (num * channels, height, width, *pooled, *self.kernel, *self.stride, *self.pad)

    def forward(self, bottom: list[Blob], top: list[Blob]) -> None:
        """Launch the pooling, and for a second top the copy of the mask."""
        count, bottom_data, top_data = top[0].count, bottom[0].data_buffer, top[0].data_buffer
        if self.is_stochastic:
            self._forward_stochastic(count, bottom_data, top_data)
            return
        if self.mask is None:
            self.launch("pool_ave_forward", count, self.shape, bottom_data, top_data)
            return
        self.launch("pool_max_forward", count, self.shape, bottom_data, top_data, self.mask)
        if len(top) > 1:
            self.launch("pool_max_forward_mask", count, count, self.mask, top[1].data_buffer)

    def backward(self, top: list[Blob], propagate_down: Sequence[bool], bottom: list[Blob]) -> None:
        """Launch the gradient of the bottom."""
        if not propagate_down[0]:
            return
        if self.is_stochastic and not self.draws_random:
            raise NetError("stochastic pooling has no gradient in phase TEST. Use phase TRAIN, or another pool.")
        count, top_diff, bottom_diff = bottom[0].count, top[0].diff_buffer, bottom[0].diff_buffer
        if self.mask is None:
            self.launch("pool_ave_backward", count, self.shape, top_diff, bottom_diff)
        else:
            self.launch("pool_max_backward", count, self.shape, top_diff, self.mask, bottom_diff)

    def _forward_stochastic(self, count: int, bottom_data: Buffer, top_data: Buffer) -> None:
        if not self.draws_random:
            self.launch("pool_stochastic_forward_test", count, self.shape, bottom_data, top_data)
            return
        assert self.passes is not None and self.mask is not None
        random = self.seed & 0xFFFFFFFF, self.seed >> 32, self.passes
        self.launch("pool_stochastic_forward", count, self.shape, *random, bottom_data, top_data, self.mask)

    def _check_sizes(self) -> None:
        """Raise `NetError` for a kernel or a stride of zero, and for padding that a window could lie in alone."""
        for name, values in ("kernel_size", self.kernel), ("stride", self.stride):
            if 0 in values:
                raise NetError(f"{name} must be given and positive. Received {values[0]} x {values[1]}.")
        for axis, pad, kernel in zip("hw", self.pad, self.kernel, strict=True):
            if pad >= kernel:
                raise NetError(f"pad_{axis} must be smaller than kernel_{axis}. Received pad {pad}, kernel {kernel}.")

    def _pooled_size(self, axis: int, bottom: Blob) -> int:
        """Return the number of windows along height (0) or width (1).  Raises `ShapeError` if there is none."""
        kernel, stride, pad = self.kernel[axis], self.stride[axis], self.pad[axis]
        size = bottom.shape[2 + axis]
        room = size + 2 * pad - kernel
        ceil = self.param.pooling_param.round_mode == caffe_pb2.PoolingParameter.CEIL
        pooled = (-(-room // stride) if ceil else room // stride) + 1
        if any(self.pad) and (pooled - 1) * stride >= size + pad:
            pooled -= 1
        if pooled < 1:
            raise ShapeError(
                f"the kernel is larger than its padded input along {('height', 'width')[axis]}: kernel {kernel}, input "
                f"{size} with pad {pad} (bottom {bottom}). Use a smaller kernel, a larger pad or a larger input."
            )
        return pooled
