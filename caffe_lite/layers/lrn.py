"""Local response normalization."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from caffe_lite.blob import Blob
from caffe_lite.errors import NetError, ShapeError
from caffe_lite.layers.base import Layer, register
from caffe_lite.proto import caffe_pb2

if TYPE_CHECKING:
    from caffe_lite.devices.base import Buffer

TILE = 256  # positions that a block shares; their window stays in the first-level cache


@register("LRN")
class LRN(Layer):
    """Divides each element by a power of the sum of squares in a window around it.

        forward   scale = k + alpha / n * sum over the window of x²,   y = x * scale^-beta
        backward  dx = dy * scale^-beta - 2 alpha beta / n * x * sum over the window of dy * x * scale^(-beta - 1)

    The window is ACROSS_CHANNELS the same pixel in n = local_size channels, WITHIN_CHANNEL the n = local_size² pixels
    around it; what lies outside the blob counts as 0, and n stays.

    Shapes: bottom (num, channels, height, width), the top is like it.

    Prototxt: ``lrn_param { local_size (5), alpha (1), beta (0.75), k (1), norm_region (ACROSS_CHANNELS); engine }``.
    `engine` chooses between implementations in the original; here it changes nothing.

    *Caffe's quirks.*  alpha is divided by the number of elements in the window, as in no paper.  WITHIN_CHANNEL takes k
    as 1, whatever the prototxt says.  The layer cannot work in place (the original tries, with wrong results).
    """

    exact_bottoms = 1
    exact_tops = 1

    def setup(self, bottom: list[Blob], top: list[Blob]) -> None:
        """Read ``lrn_param``.  Raises `NetError` for a window without a middle."""
        options = self.param.lrn_param
        self._local_size = int(options.local_size)
        if self._local_size % 2 == 0:
            raise NetError(f"local_size must be odd, so that the window has a middle. Received {self._local_size}.")
        self._within = options.norm_region == caffe_pb2.LRNParameter.WITHIN_CHANNEL
        self._k: float = 1.0 if self._within else options.k
        self._share = options.alpha / self._local_size ** (2 if self._within else 1)
        self._beta: float = options.beta
        self._scale: Buffer | None = None
        self._scratch: Buffer | None = None

    def reshape(self, bottom: list[Blob], top: list[Blob]) -> None:
        """Size the top and the memory between forward and backward.  Raises `ShapeError` unless there are four axes."""
        shape = bottom[0].shape
        if len(shape) != 4:
            raise ShapeError(
                f"expected a bottom of four axes (num, channels, height, width), received {bottom[0]}. Reshape it."
            )
        top[0].reshape(shape)
        num, channels, height, width = shape
        extents = (num * channels, height, width) if self._within else (num, channels, height * width)
        outer, length, inner = extents
        size = max(min(self._local_size, 2 * length - 1), 1)  # a larger window covers no more
        tile = max(min(inner, TILE), 1)
        self._tiles = outer * -(-inner // tile)
        self._shape = (*extents, size, tile)
        count = bottom[0].count
        if self._scale is None or self._scale.size != count:
            self._scale = self.device.alloc(count)
        scratch = count if self._within else self._tiles * (size + 1) * tile
        if self._scratch is None or self._scratch.size != scratch:
            self._scratch = self.device.alloc(scratch)

    def forward(self, bottom: list[Blob], top: list[Blob]) -> None:
        """Launch the sums and the division."""
        assert self._scale is not None and self._scratch is not None
        x, field = bottom[0].data_buffer, bottom[0].data_buffer
        if self._within:
            field = self._scratch
            self._launch_row_sums(x, field, squared=True)
        squared = int(not self._within)
        factors = self._k, self._share, self._beta
        buffers = x, field, self._scale, top[0].data_buffer
        self.launch("lrn_forward", self._tiles, self._tiles, self._shape, squared, *factors, *buffers)

    def backward(self, top: list[Blob], propagate_down: Sequence[bool], bottom: list[Blob]) -> None:
        """Launch the gradient of the bottom."""
        if not propagate_down[0]:
            return
        assert self._scale is not None and self._scratch is not None
        count, dy, dx = bottom[0].count, top[0].diff_buffer, bottom[0].diff_buffer
        inputs = bottom[0].data_buffer, self._scale, dy
        if self._within:
            self.launch("lrn_ratio", count, count, self._beta, *inputs, dx)
            self._launch_row_sums(dx, self._scratch, squared=False)
        kernel = "lrn_backward_within" if self._within else "lrn_backward_across"
        factors = self._share, self._beta
        self.launch(kernel, self._tiles, self._tiles, self._shape, *factors, *inputs, self._scratch, dx)

    def _launch_row_sums(self, field: Buffer, sums: Buffer, squared: bool) -> None:
        planes, height, width, *_ = self._shape
        size = min(self._local_size, 2 * width - 1)
        self.launch("lrn_row_sums", planes * height, planes * height, width, size, int(squared), field, sums)
