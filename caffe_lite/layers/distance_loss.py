"""The losses of a distance between two blobs: EuclideanLoss, ContrastiveLoss."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from caffe_lite.blob import Blob
from caffe_lite.errors import ShapeError
from caffe_lite.layers.base import Layer, register
from caffe_lite.layers.loss import check_first_dimension, refuse_labels

if TYPE_CHECKING:
    from caffe_lite.devices.base import Buffer

CHUNK = 4096  # elements that a block sums


@register("EuclideanLoss")
class EuclideanLoss(Layer):
    """Half the mean squared distance of two batches of vectors, for regression.

    Forward: E = 1 / (2 num) * sum of (a - b)^2.
    Backward: da = (a - b) * dE / num, db = -da.

    Shapes: a and b with the same number of items on axis 0 and of elements in each; top: the loss ().

    It has no options but ``loss_weight``, which arrives as the loss's diff, dE; 1 by default.

    Caffe's quirks: it divides by the number of items, not of elements.  Unlike other losses it has a gradient for both
    bottoms, so either may be the target.
    """

    exact_bottoms = 2
    exact_tops = 1
    auto_tops = True
    is_loss = True

    def setup(self, bottom: list[Blob], top: list[Blob]) -> None:
        self._partial: Buffer | None = None

    def reshape(self, bottom: list[Blob], top: list[Blob]) -> None:
        """Size the top.  Raises `ShapeError` unless the bottoms have as many items of the same size."""
        first, second = bottom
        check_first_dimension("the bottoms", first, second)
        if first.count != second.count:
            raise ShapeError(
                f"the bottoms must have the same number of elements. Expected {first.count} as of {first}, "
                f"received {second}. Check the layers that make them."
            )
        top[0].reshape(())
        self._chunks = -(-first.count // CHUNK)
        if self._partial is None or self._partial.size != self._chunks:
            self._partial = self.device.alloc(self._chunks)

    def forward(self, bottom: list[Blob], top: list[Blob]) -> None:
        assert self._partial is not None
        chunks, sizes, inputs = self._chunks, (bottom[0].count, CHUNK), (bottom[0].data_buffer, bottom[1].data_buffer)
        self.launch("euclidean_loss_forward", chunks, chunks, *sizes, *inputs, self._partial)
        scale = 0.5 / max(1, bottom[0].shape[0])
        self.launch("loss_forward_scale", 1, 1, chunks, scale, self._partial, top[0].data_buffer)

    def backward(self, top: list[Blob], propagate_down: Sequence[bool], bottom: list[Blob]) -> None:
        count, inputs = bottom[0].count, (bottom[0].data_buffer, bottom[1].data_buffer)
        for blob, wanted, sign in zip(bottom, propagate_down, (1, -1), strict=True):
            if wanted:
                scale = sign / max(1, blob.shape[0])
                self.launch(
                    "euclidean_loss_backward", count, count, scale, *inputs, top[0].diff_buffer, blob.diff_buffer
                )


@register("ContrastiveLoss")
class ContrastiveLoss(Layer):
    """Draws similar pairs together and pushes dissimilar ones apart, up to a margin; for siamese nets.

    Forward: E = 1 / (2 num) * sum over pairs of  d^2                   if they are similar (label not 0)
                                                 max(margin - d, 0)^2  if they are not,
    with d^2 = the sum over the channels of (a - b)^2.
    Backward: da = (a - b) * dE / num for similar pairs, -(a - b) * dE / num * (margin - d) / (d + 1e-4) for dissimilar
    ones nearer than the margin, 0 for those beyond; db = -da.

    Shapes: a and b (num, channels), axes of length 1 may follow; labels: num of them; top: the loss ().

    ``contrastive_loss_param { margin (1), legacy_version (false) }``: the legacy version takes max(margin - d^2, 0) for
    dissimilar pairs, whose gradient is -(a - b) * dE / num.
    ``loss_weight``: arrives as the loss's diff, dE; 1 by default.

    Caffe's quirks: the 1e-4 in the gradient is not in the loss; a label's fraction is cut off.  In the original's GPU
    code the legacy gradient lacks the factor a - b; here it has it, as in its CPU code.
    """

    exact_bottoms = 3
    exact_tops = 1
    auto_tops = True
    is_loss = True

    def setup(self, bottom: list[Blob], top: list[Blob]) -> None:
        options = self.param.contrastive_loss_param
        self._rule = float(options.margin), int(options.legacy_version)
        self._squared: Buffer | None = None

    def reshape(self, bottom: list[Blob], top: list[Blob]) -> None:
        """Size the top.  Raises `ShapeError` unless the bottoms are as many vectors of one length, and their labels."""
        first, second, labels = bottom
        check_first_dimension("the bottoms", first, second)
        for blob in first, second:
            if len(blob.shape) < 2 or math.prod(blob.shape[2:]) != 1 or blob.shape[1] != first.shape[1]:
                raise ShapeError(
                    f"the bottoms must be (pairs, channels), with axes of length 1 at most behind them. "
                    f"Received {first} and {second}. Reshape them, or end both branches in layers of equal num_output."
                )
        self._sizes = first.shape[:2]
        if labels.count != first.shape[0] or labels.shape[:1] != first.shape[:1]:
            raise ShapeError(
                f"there must be one label for each of {first.shape[0]} pairs of {first}. Received labels {labels}. "
                "Check the layer that makes the labels."
            )
        top[0].reshape(())
        pairs = first.shape[0]
        if self._squared is None or self._squared.size != pairs:
            self._squared, self._partial = self.device.alloc(pairs), self.device.alloc(pairs)

    def forward(self, bottom: list[Blob], top: list[Blob]) -> None:
        assert self._squared is not None
        pairs, inputs = self._sizes[0], [blob.data_buffer for blob in bottom]
        results = self._squared, self._partial
        self.launch("contrastive_loss_forward", pairs, *self._sizes, *self._rule, *inputs, *results)
        self.launch("loss_forward_scale", 1, 1, pairs, 0.5 / max(1, pairs), self._partial, top[0].data_buffer)

    def backward(self, top: list[Blob], propagate_down: Sequence[bool], bottom: list[Blob]) -> None:
        refuse_labels(propagate_down[2])
        assert self._squared is not None
        pairs, inputs = self._sizes[0], [blob.data_buffer for blob in bottom]
        for blob, wanted, sign in zip(bottom, propagate_down[:2], (1, -1), strict=False):
            if wanted:
                given = *inputs, self._squared, top[0].diff_buffer
                rule = *self._rule, sign / max(1, pairs)
                self.launch("contrastive_loss_backward", pairs, *self._sizes, *rule, *given, blob.diff_buffer)

    def allow_force_backward(self, bottom_index: int) -> bool:
        return bottom_index != 2
