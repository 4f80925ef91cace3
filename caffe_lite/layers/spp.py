"""Spatial pyramid pooling, built from the layers it consists of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from caffe_lite.blob import Blob
from caffe_lite.errors import NetError, ShapeError
from caffe_lite.layers.base import Layer, register
from caffe_lite.layers.concat import Concat
from caffe_lite.layers.pooling import Pooling
from caffe_lite.layers.shape import Flatten
from caffe_lite.proto import caffe_pb2

if TYPE_CHECKING:
    from caffe_lite.devices.base import Device


def windows(size: int, bins: int) -> tuple[int, int]:
    """Return (kernel, pad) of the windows that cut an axis of `size` elements into `bins`; the stride is the kernel."""
    kernel = -(-size // bins)
    return kernel, (kernel * bins - size + 1) // 2


@register("SPP")
class SPP(Layer):
    """Pools planes of any size into a fixed number of features: level l has 2^l x 2^l windows.

    Forward: y = [pool_0(x), pool_1(x), ...], each flattened to (num, channels * 4^l).
    Backward: dx = the sum over the levels of the pooling's gradient.

    Shapes: bottom (num, channels, height, width), top (num, channels * (4^pyramid_height - 1) / 3).

    Prototxt: ``spp_param { pyramid_height: required, pool (MAX): as in ``pooling_param``; engine: changes nothing }``.

    *Caffe's quirks.*  With a single level the top keeps four axes: (num, channels, 1, 1).  Windows are
    size / 2^l rounded up, and the planes are padded to fit, so that an average counts zeros around a plane whose size
    is no multiple of 2^l.  A plane that would need padding as wide as its windows is an error.
    """

    exact_bottoms = 1
    exact_tops = 1

    def __init__(self, param: Any, phase: int, device: Device) -> None:
        super().__init__(param, phase, device)
        self.draws_random = param.spp_param.pool == caffe_pb2.SPPParameter.STOCHASTIC and phase == caffe_pb2.TRAIN

    def setup(self, bottom: list[Blob], top: list[Blob]) -> None:
        """Read ``spp_param``.  Raises `NetError` unless there is a level."""
        self._levels = int(self.param.spp_param.pyramid_height)
        if self._levels == 0:
            raise NetError("pyramid_height must be given and positive. Received 0.")
        self._size: tuple[int, ...] = ()
        self._pools: list[Pooling] = []
        self._flattens = [self._part(Flatten, {}) for _ in range(self._levels)]
        self._concat = self._part(Concat, {})
        self._pooled, self._flat = ([Blob(self.device) for _ in range(self._levels)] for _ in range(2))

    def reshape(self, bottom: list[Blob], top: list[Blob]) -> None:
        """Make the poolings for the plane's size, and size all blobs.  Raises `ShapeError` for planes too small."""
        shape = bottom[0].shape
        if len(shape) != 4 or 0 in shape[2:]:
            raise ShapeError(
                f"expected a bottom of four axes (num, channels, height, width), with planes that are not empty, "
                f"received {bottom[0]}. Reshape it."
            )
        if self._levels == 1:
            self._pooled = top
        if shape[2:] != self._size:
            self._pools = [self._pooling(level, bottom, *shape[2:]) for level in range(self._levels)]
            self._size = shape[2:]
        for level, pool in enumerate(self._pools):
            pool.reshape(bottom, [self._pooled[level]])
            self._flattens[level].reshape([self._pooled[level]], [self._flat[level]])
        if self._levels > 1:
            self._concat.reshape(self._flat, top)

    def forward(self, bottom: list[Blob], top: list[Blob]) -> None:
        """Launch the poolings and the concatenation."""
        for pool, pooled in zip(self._pools, self._pooled, strict=True):
            pool.forward(bottom, [pooled])
        if self._levels > 1:
            self._concat.forward(self._flat, top)

    def backward(self, top: list[Blob], propagate_down: Sequence[bool], bottom: list[Blob]) -> None:
        """Launch the gradients of the levels.  Raises `NetError` for pool STOCHASTIC in phase TEST."""
        if not propagate_down[0]:
            return
        if self._levels > 1:
            self._concat.backward(top, [True] * self._levels, self._flat)
        if self._pools[0].is_stochastic and not self.draws_random:
            raise NetError("stochastic pooling has no gradient in phase TEST. Use phase TRAIN, or another pool.")
        height, width = self._size
        bottom_diff = bottom[0].diff_buffer
        if self._pools[0].mask is not None:
            self.device.fill(bottom_diff, 0)
        for level, (pool, pooled) in enumerate(zip(self._pools, self._pooled, strict=True)):
            bins, count = 2**level, pooled.count
            if pool.mask is not None:
                sizes = count, bins * bins, height * width
                self.launch("spp_max_backward", count, *sizes, pool.mask, pooled.diff_buffer, bottom_diff)
            else:
                shape = height, width, bins, *pool.kernel, *pool.pad, int(level == 0)
                rows = bottom[0].count // width * bins
                self.launch("spp_ave_backward", rows, rows, shape, pooled.diff_buffer, bottom_diff)

    def _pooling(self, level: int, bottom: list[Blob], height: int, width: int) -> Pooling:
        """Return the pooling of one level.  Raises `ShapeError` if its windows do not fit."""
        bins = 2**level
        (kernel_h, pad_h), (kernel_w, pad_w) = windows(height, bins), windows(width, bins)
        if pad_h >= kernel_h or pad_w >= kernel_w:
            raise ShapeError(
                f"a plane of {height} x {width} is too small for the {bins} x {bins} windows of level {level}: padding "
                f"{pad_h} x {pad_w} must be smaller than the windows, {kernel_h} x {kernel_w} (bottom {bottom[0]}). "
                f"Use a smaller pyramid_height, or larger planes."
            )
        pool = caffe_pb2.PoolingParameter.PoolMethod.Value(
            caffe_pb2.SPPParameter.PoolMethod.Name(self.param.spp_param.pool)
        )
        options = {"pool": pool, "kernel_h": kernel_h, "kernel_w": kernel_w, "pad_h": pad_h, "pad_w": pad_w}
        pooling: Pooling = self._part(
            Pooling, {"pooling_param": {**options, "stride_h": kernel_h, "stride_w": kernel_w}}
        )
        pooling.seed ^= level  # other numbers on each level
        pooling.setup(bottom, [self._pooled[level]])
        return pooling

    def _part(self, layer_class: Any, options: dict[str, Any]) -> Any:
        param = caffe_pb2.LayerParameter(name=self.param.name, type=layer_class.type, **options)
        part = layer_class(param, self.phase, self.device)
        part.seed, part.passes = self.seed, self.passes
        return part
