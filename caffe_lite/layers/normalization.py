"""Normalization by mean and variance: BatchNorm, MVN."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from caffe_lite.blob import Blob
from caffe_lite.errors import ShapeError
from caffe_lite.layers.base import Layer, register
from caffe_lite.proto import caffe_pb2

if TYPE_CHECKING:
    from caffe_lite.devices.base import Buffer

logger = logging.getLogger("caffe_lite")

TILE = 256  # channels that a block shares where each has one element an item


class _Normalization(Layer):
    """What the layers share: the launches over a blob seen as (num, channels, inner), and their memory."""

    exact_bottoms = 1
    exact_tops = 1
    in_place = True

    _statistics: Buffer | None = None  # four rows of `channels`, see kernels/normalization.cu
    _kept: Buffer | None = None

    def _size(self, num: int, channels: int, inner: int, scaled: bool = True) -> None:
        """Prepare for such a blob; not `scaled`, only the mean is taken out."""
        if self._statistics is None or self._statistics.size != 4 * channels:
            self._statistics = self.device.alloc(4 * channels)
            self._scratch = [self.device.alloc(channels) for _ in range(2)]
        self._num, self._channels, self._inner = num, channels, inner
        self._shape = num, channels, inner, int(scaled), TILE

    def _keep(self, bottom: Blob, top: Blob) -> None:
        """Make room for a copy of a bottom that the top overwrites: backward needs it."""
        if top is bottom and (self._kept is None or self._kept.size != bottom.count):
            self._kept = self.device.alloc(bottom.count)

    def _normalize(self, bottom: Blob, top: Blob, eps_variance: float, eps_deviation: float) -> None:
        """Launch: the statistics of the bottom, and the top by them."""
        x, eps = bottom.data_buffer, (eps_variance, eps_deviation)
        if self._kept is not None:
            self.device.copy(x, self._kept)
            x = self._kept
        assert self._statistics is not None
        if self._inner == 1:
            tiles = -(-self._channels // TILE)
            self.launch("normalize_statistics_flat", tiles, tiles, self._shape, *eps, x, self._statistics)
            self._normalize_by_statistics(x, top.data_buffer, centred=True)
        else:
            buffers = x, self._statistics, top.data_buffer
            self.launch("normalize_forward", self._channels, self._shape, *eps, *buffers)

    def _normalize_backward(self, top: Blob, bottom: Blob) -> None:
        """Launch: the gradient of `_normalize`, through its statistics."""
        x = self._kept if self._kept is not None else bottom.data_buffer
        dy, dx = top.diff_buffer, bottom.diff_buffer
        assert self._statistics is not None
        if self._inner == 1:
            tiles = -(-self._channels // TILE)
            buffers = x, self._statistics, dy, *self._scratch, dx
            self.launch("normalize_backward_flat", tiles, tiles, self._shape, *buffers)
        else:
            self.launch("normalize_backward", self._channels, self._shape, x, self._statistics, dy, dx)

    def _normalize_by_statistics(self, source: Buffer, target: Buffer, centred: bool) -> None:
        """Launch: `source`, less the mean if `centred`, over the deviation."""
        kernel = "normalize_by_flat" if self._inner == 1 else "normalize_by"
        work = self._num * self._channels * self._inner
        assert self._statistics is not None
        self.launch(kernel, work, self._shape, int(centred), self._statistics, source, target)


@register("BatchNorm")
class BatchNorm(_Normalization):
    """Brings each channel to mean 0 and variance 1, by the batch's statistics or by stored ones.

    With m elements a channel, mean and variance v = mean of (x - mean)² over them:

        batch     forward   y = (x - mean) / sqrt(v + eps)
                            s = s * moving_average_fraction + (mean, v * m / (m - 1), 1)  for the three params s
                  backward  dx = (dy - mean of dy - y * mean of (dy * y)) / sqrt(v + eps)
        stored    forward   y = (x - mean) / sqrt(v + eps)  with mean = s_0 / s_2, v = s_1 / s_2
                  backward  dx = dy / sqrt(v + eps)

    Shapes: (num, channels, ...) with any further axes; the top has the bottom's; params: sums of means (channels,),
    sums of variances (channels,), their weight (1,).

    Prototxt: ``batch_norm_param { use_global_stats (the stored ones in phase TEST, the batch's in TRAIN);
    moving_average_fraction (0.999); eps (1e-5) }``.

    *Caffe's quirks.*  It learns no gain and offset: a Scale layer with bias_term follows it.  The params are sums that
    each batch adds to, not averages; their weight says by what to divide, and with weight 0 mean and variance are 0.
    The stored variance is the unbiased one, v * m / (m - 1), the batch's is not; with one element a channel it is v.
    The params are statistics: their lr_mult is 0, whatever the prototxt says.  (The original does so without a word
    where it finds three ``param``, and refuses one or two with another lr_mult; here each gives a warning.)
    """

    def setup(self, bottom: list[Blob], top: list[Blob]) -> None:
        """Read ``batch_norm_param`` and make the params.  Raises `ShapeError` for a bottom without channels."""
        options = self.param.batch_norm_param
        self._fraction: float = options.moving_average_fraction
        self._eps: float = options.eps
        self.use_global_stats = self.phase == caffe_pb2.TEST
        if options.HasField("use_global_stats"):
            self.use_global_stats = bool(options.use_global_stats)
        channels = _channels_of(bottom[0])
        shapes = [(channels,), (channels,), (1,)]
        if not self.blobs:
            for shape in shapes:
                self.add_param(shape, caffe_pb2.FillerParameter())
        given = [blob.shape for blob in self.blobs]
        if given != shapes:
            raise ShapeError(
                f"the params do not fit bottom {bottom[0]}. Expected shapes {shapes}, received {given}. Leave them out "
                "of the prototxt, or use the bottom that they belong to."
            )
        self._fix_params()

    def reshape(self, bottom: list[Blob], top: list[Blob]) -> None:
        """Size the top.  Raises `ShapeError` if the number of channels is not the params'."""
        shape, channels = bottom[0].shape, self.blobs[0].count
        if _channels_of(bottom[0]) != channels:
            raise ShapeError(
                f"the number of channels does not fit the params. Expected {channels}, received {shape[1]} "
                f"(bottom {bottom[0]}). Give it as many channels as it had when the net was built."
            )
        if top[0] is not bottom[0]:
            top[0].reshape(shape)
        self._size(shape[0], channels, math.prod(shape[2:]))
        if not self.use_global_stats:
            self._keep(bottom[0], top[0])

    def forward(self, bottom: list[Blob], top: list[Blob]) -> None:
        """Launch the normalization, and with the batch's statistics their addition to the stored ones."""
        stored = [blob.data_buffer for blob in self.blobs]
        channels, statistics = self._channels, self._statistics
        assert statistics is not None
        if self.use_global_stats:
            self.launch("batch_norm_stored", channels, channels, self._eps, *stored, statistics)
            self._normalize_by_statistics(bottom[0].data_buffer, top[0].data_buffer, centred=True)
        elif bottom[0].count:
            self._normalize(bottom[0], top[0], self._eps, 0.0)
            count = self._num * self._inner
            correction = count / (count - 1) if count > 1 else 1.0
            factors = self._fraction, correction
            self.launch("batch_norm_accumulate", channels, channels, *factors, statistics, *stored)

    def backward(self, top: list[Blob], propagate_down: Sequence[bool], bottom: list[Blob]) -> None:
        """Launch the gradient of the bottom; the params have none."""
        if not propagate_down[0]:
            return
        if self.use_global_stats:
            self._normalize_by_statistics(top[0].diff_buffer, bottom[0].diff_buffer, centred=False)
        elif bottom[0].count:
            self._normalize_backward(top[0], bottom[0])

    def _fix_params(self) -> None:
        """Keep the solver away from the params; warn where the prototxt would train them."""
        specs = self.param.param
        if any(spec.lr_mult != 0 for spec in specs):
            logger.warning(
                "Layer '%s' (BatchNorm): its params are statistics and cannot be trained. Expected lr_mult 0, received "
                "%s; all are taken as 0.",
                self.name, ", ".join(f"{spec.lr_mult:g}" for spec in specs),
            )  # fmt: skip
        for spec in specs:
            spec.lr_mult = 0
        for _ in range(len(specs), len(self.blobs)):
            specs.add(lr_mult=0)


@register("MVN")
class MVN(_Normalization):
    """Brings each plane to mean 0 and, if wanted, variance 1.

    Over the elements of one channel of one item (of one item, `across_channels`), with v = mean of (x - mean)²:

        forward   y = (x - mean) / (sqrt(v) + eps)
        backward  dx = (dy - mean of dy - y * mean of (dy * y)) / (sqrt(v) + eps)
        and not `normalize_variance`  y = x - mean,  dx = dy - mean of dy

    Shapes: bottom of at most four axes; the top is (num, channels, height, width), 1 for what the bottom lacks.

    Prototxt: ``mvn_param { normalize_variance (true), across_channels (false), eps (1e-9) }``.

    *Caffe's quirks.*  Unlike BatchNorm it adds eps to the deviation, not to the variance, and the backward pass takes
    it as 0 there: with a large eps the gradient is not quite that of the forward pass.  The top always has four axes.
    In place the original's gradients are wrong; here they are those of the layer with two blobs.
    """

    def reshape(self, bottom: list[Blob], top: list[Blob]) -> None:
        """Size the top.  Raises `ShapeError` for more than four axes."""
        blob, options = bottom[0], self.param.mvn_param
        num, channels, plane = blob.num, blob.channels, blob.height * blob.width
        top[0].reshape(num, channels, blob.height, blob.width)
        # Each plane, or item, is a channel of one item here.
        extents = (1, num, channels * plane) if options.across_channels else (1, num * channels, plane)
        self._size(*extents, scaled=bool(options.normalize_variance))
        self._keep(blob, top[0])

    def forward(self, bottom: list[Blob], top: list[Blob]) -> None:
        """Launch the normalization."""
        if bottom[0].count:
            self._normalize(bottom[0], top[0], 0.0, self.param.mvn_param.eps)

    def backward(self, top: list[Blob], propagate_down: Sequence[bool], bottom: list[Blob]) -> None:
        """Launch the gradient of the bottom."""
        if propagate_down[0] and bottom[0].count:
            self._normalize_backward(top[0], bottom[0])


def _channels_of(blob: Blob) -> int:
    """Return the length of axis 1.  Raises `ShapeError` if there is none."""
    if len(blob.shape) < 2:
        raise ShapeError(f"expected a bottom (num, channels, ...) of two axes or more, received {blob}. Reshape it.")
    return blob.shape[1]
