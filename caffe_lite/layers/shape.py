"""The layers that share, swallow or only rename what a blob holds: Split, Silence, Flatten, Reshape, Parameter."""

from __future__ import annotations

import math
from collections.abc import Sequence

from caffe_lite.blob import Blob
from caffe_lite.errors import NetError, ShapeError
from caffe_lite.layers.base import Layer, register
from caffe_lite.proto import caffe_pb2


@register("Split")
class Split(Layer):
    """Gives several layers the same blob; a net inserts it wherever a top has more than one consumer.

    Forward: y_k = x for each top k: they share the bottom's memory, nothing is copied.
    Backward: dx = sum over k of dy_k.

    Shapes: any; every top has the bottom's.

    It has no options.

    Caffe's quirks: the diff of a top whose consumer has no backward pass is added like any other.  It is zero, unless
    somebody writes to it.
    """

    exact_bottoms = 1
    min_tops = 1

    def reshape(self, bottom: list[Blob], top: list[Blob]) -> None:
        for blob in top:
            blob.reshape(bottom[0].shape)
            blob.share_data(bottom[0])

    def forward(self, bottom: list[Blob], top: list[Blob]) -> None:
        pass

    def backward(self, top: list[Blob], propagate_down: Sequence[bool], bottom: list[Blob]) -> None:
        if not propagate_down[0]:
            return
        count, bottom_diff = bottom[0].count, bottom[0].diff_buffer
        diffs = [blob.diff_buffer for blob in top]
        if len(diffs) == 1:
            self.device.copy(diffs[0], bottom_diff)
            return
        self.launch("split_backward", count, count, *diffs[:2], bottom_diff)
        for diff in diffs[2:]:
            self.launch("shape_backward_add", count, count, diff, bottom_diff)


@register("Silence")
class Silence(Layer):
    """Swallows blobs that no other layer consumes, so that they are not among the net's outputs.

    Forward: nothing.
    Backward: dx = 0.

    Shapes: any bottoms, no top.

    It has no options.

    Caffe's quirks: none.
    """

    min_bottoms = 1
    exact_tops = 0

    def reshape(self, bottom: list[Blob], top: list[Blob]) -> None:
        """There is no top to shape."""

    def forward(self, bottom: list[Blob], top: list[Blob]) -> None:
        pass

    def backward(self, top: list[Blob], propagate_down: Sequence[bool], bottom: list[Blob]) -> None:
        for blob, wanted in zip(bottom, propagate_down, strict=True):
            if wanted:
                self.device.fill(blob.diff_buffer, 0)


class View(Layer):
    """A layer whose top is its bottom's memory under another shape.

    Forward and backward: nothing; the top shares the bottom's data and diff.
    """

    exact_bottoms = 1
    exact_tops = 1

    def reshape(self, bottom: list[Blob], top: list[Blob]) -> None:
        """Size the top and let it share the bottom's memory.  Raises `ShapeError` if the counts differ."""
        shape = self.shape_of(bottom[0])
        if math.prod(shape) != bottom[0].count:
            raise ShapeError(
                f"the new shape must hold as many elements as the bottom. Expected {bottom[0].count} as of "
                f"{bottom[0]}, received {math.prod(shape)} {shape}. Use -1 for one of the lengths."
            )
        top[0].reshape(shape)
        top[0].share_data(bottom[0])
        top[0].share_diff(bottom[0])

    def shape_of(self, bottom: Blob) -> tuple[int, ...]:
        """Return the top's shape."""
        raise NotImplementedError

    def forward(self, bottom: list[Blob], top: list[Blob]) -> None:
        """There is nothing to launch."""

    def backward(self, top: list[Blob], propagate_down: Sequence[bool], bottom: list[Blob]) -> None:
        """There is nothing to launch."""


@register("Flatten")
class Flatten(View):
    """Makes one axis of the axes from `axis` to `end_axis`.

    Forward: y = x in another shape, sharing its memory.
    Backward: dx = dy, likewise.

    Shapes: bottom (d_0, ..., d_axis, ..., d_end_axis, ...), top (d_0, ..., d_axis * ... * d_end_axis, ...).

    Prototxt: ``flatten_param { axis (1), end_axis (-1): both may be negative }``.

    *Caffe's quirks.*  An `end_axis` just before `axis` puts an axis of length 1 there.
    """

    def shape_of(self, bottom: Blob) -> tuple[int, ...]:
        """Return the top's shape.  Raises `ShapeError` for axes that do not exist or are out of order."""
        options, shape = self.param.flatten_param, bottom.shape
        first, last = self.axis_of(bottom, options.axis), self.axis_of(bottom, options.end_axis)
        if last < first - 1:
            raise ShapeError(
                f"end_axis must not lie before axis. Received axis {options.axis}, end_axis {options.end_axis} for "
                f"bottom {bottom}. Use a larger end_axis, -1 for all."
            )
        return (*shape[:first], math.prod(shape[first : last + 1]), *shape[last + 1 :])


@register("Reshape")
class Reshape(View):
    """Replaces some axes of its bottom by those of ``shape``.

    Forward: y = x in another shape, sharing its memory.
    Backward: dx = dy, likewise.

    Shapes: the top has ``shape`` in place of the bottom's `num_axes` axes from `axis` on, and as many elements.

    Prototxt: ``reshape_param { shape { dim: a length; 0: the bottom's length at the same place, counted from `axis`;
    -1, once: what is left }, axis (0; negative: -1 is behind the last axis), num_axes (-1: all from `axis` on) }``.

    *Caffe's quirks.*  A 0 may copy an axis behind those that are replaced.
    """

    def setup(self, bottom: list[Blob], top: list[Blob]) -> None:
        """Read ``reshape_param``.  Raises `NetError` for a shape that is none."""
        options = self.param.reshape_param
        self._dims = [int(dim) for dim in options.shape.dim]
        if self._dims.count(-1) > 1 or any(dim < -1 for dim in self._dims):
            raise NetError(f"shape takes lengths, 0, and -1 at most once. Received {self._dims}.")
        if options.num_axes < -1:
            raise NetError(f"num_axes must be -1 (all) or a number. Received {options.num_axes}.")

    def shape_of(self, bottom: Blob) -> tuple[int, ...]:
        """Return the top's shape.  Raises `ShapeError` for axes that do not exist, or if -1 has no solution."""
        options, shape = self.param.reshape_param, bottom.shape
        axes = len(shape)
        begin = options.axis if options.axis >= 0 else axes + 1 + options.axis
        end = axes if options.num_axes == -1 else begin + options.num_axes
        if not 0 <= begin <= end <= axes:
            raise ShapeError(
                f"there are no {'' if options.num_axes == -1 else f'{options.num_axes} '}axes from axis {options.axis} "
                f"on. Received bottom {bottom}. Use another axis, or num_axes: -1 for all."
            )
        dims = [self._dim(bottom, begin + i) if dim == 0 else dim for i, dim in enumerate(self._dims)]
        if -1 in dims:
            known = math.prod((*shape[:begin], *(dim for dim in dims if dim != -1), *shape[end:]))
            if known == 0 or bottom.count % known:
                raise ShapeError(
                    f"no length in place of -1 makes {bottom.count} elements: the other lengths make {known}. "
                    f"Received bottom {bottom}. Use other lengths."
                )
            dims[dims.index(-1)] = bottom.count // known
        return (*shape[:begin], *dims, *shape[end:])

    def _dim(self, bottom: Blob, axis: int) -> int:
        if axis >= len(bottom.shape):
            raise ShapeError(
                f"there is no axis {axis} whose length a 0 could copy. Received bottom {bottom}. Give the length."
            )
        return bottom.shape[axis]


@register("Parameter")
class Parameter(Layer):
    """Makes a param a top, for layers that take as a bottom what is to be learned.

    Forward: y = the param.
    Backward: the param's diff += dy.

    Shapes: no bottom; the top and the param have the shape given.

    Prototxt: ``parameter_param { shape { dim } }``; the param starts at zero.

    *Caffe's quirks.*  The original shares memory, so that the layer behind overwrites the param's diff and nothing is
    accumulated over ``iter_size``; here the diff is added to, as every param's is.
    """

    exact_bottoms = 0
    exact_tops = 1

    def setup(self, bottom: list[Blob], top: list[Blob]) -> None:
        """Create the param.  Raises `ShapeError` if one that is there already has another shape."""
        shape = tuple(int(dim) for dim in self.param.parameter_param.shape.dim)
        if not self.blobs:
            self.add_param(shape, caffe_pb2.FillerParameter())
        if self.blobs[0].shape != shape:
            raise ShapeError(
                f"the param does not fit its shape. Expected {shape} for top '{top[0].name}', received "
                f"{self.blobs[0].shape}. Change parameter_param, or leave the param out of the prototxt."
            )

    def reshape(self, bottom: list[Blob], top: list[Blob]) -> None:
        """Size the top."""
        top[0].reshape(self.blobs[0].shape)

    def forward(self, bottom: list[Blob], top: list[Blob]) -> None:
        """Launch the copy."""
        self.device.copy(self.blobs[0].data_buffer, top[0].data_buffer)

    def backward(self, top: list[Blob], propagate_down: Sequence[bool], bottom: list[Blob]) -> None:
        """Launch the sum of the gradients."""
        if self.param_propagate_down[0]:
            count = top[0].count
            self.launch("shape_backward_add", count, count, top[0].diff_buffer, self.blobs[0].diff_buffer)
