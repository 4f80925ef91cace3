"""SigmoidCrossEntropyLoss: the loss of yes-or-no questions, one for each element."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from caffe_lite.blob import Blob
from caffe_lite.errors import ShapeError
from caffe_lite.layers.base import Layer, register
from caffe_lite.layers.loss import check_first_dimension, fixed_normalizer, ignored_label, refuse_labels
from caffe_lite.layers.softmax import Extents
from caffe_lite.proto import caffe_pb2

if TYPE_CHECKING:
    from caffe_lite.devices.base import Buffer

CHUNK = 4096  # elements that a block sums


@register("SigmoidCrossEntropyLoss")
class SigmoidCrossEntropyLoss(Layer):
    """The cross entropy of targets and the sigmoids of scores: each element is a question of its own.

    Forward: E = -sum over elements of (t log p + (1 - t) log(1 - p)) / normalizer, p = sigmoid(x), computed from x so
    that no large score overflows.
    Backward: dx = (p - t) * dE / normalizer; 0 where the target is ignored.

    Shapes: scores (num, ...); as many targets, usually 0, 1 or between; top: the loss ().

    ``loss_param { ignore_label normalization normalize }``: the normalizer is
        FULL        the number of elements
        VALID       the number of targets that are not ignored
        BATCH_SIZE  num (the default here, unlike in SoftmaxWithLoss)
        NONE        1
    Without ``normalization``, the older ``normalize: true`` means VALID and ``false`` BATCH_SIZE.
    ``loss_weight``: arrives as the loss's diff, dE; 1 by default.

    Caffe's quirks: a target is ignored if it is ``ignore_label`` with its fraction cut off, so 0 ignores 0.9 too.  A
    normalizer below 1 becomes 1.  Targets outside [0, 1] are taken as they are.
    """

    exact_bottoms = 2
    exact_tops = 1
    auto_tops = True
    is_loss = True

    def setup(self, bottom: list[Blob], top: list[Blob]) -> None:
        ignored = ignored_label(self.param.loss_param)
        self._ignores = (0, 0) if ignored is None else (1, ignored)
        self._normalizer = self.device.alloc(1)
        self._partial: Buffer | None = None

    def reshape(self, bottom: list[Blob], top: list[Blob]) -> None:
        """Size the top.  Raises `ShapeError` unless there is a target for each score."""
        scores, targets = bottom
        check_first_dimension("scores and targets", scores, targets)
        if scores.count != targets.count:
            raise ShapeError(
                f"there must be one target for each score. Expected {scores.count} as of scores {scores}, "
                f"received targets {targets}. Check the layer that makes the targets."
            )
        top[0].reshape(())
        self._chunks = -(-scores.count // CHUNK)
        self._rule = scores.count, CHUNK, *self._ignores
        if self._partial is None or self._partial.size != self._chunks:
            self._partial, self._valid = self.device.alloc(self._chunks), self.device.alloc(self._chunks, np.int32)

    def forward(self, bottom: list[Blob], top: list[Blob]) -> None:
        assert self._partial is not None
        chunks, inputs = self._chunks, (bottom[0].data_buffer, bottom[1].data_buffer)
        self.launch("sigmoid_loss_forward", chunks, chunks, self._rule, *inputs, self._partial, self._valid)
        num, count = bottom[0].shape[0], bottom[0].count
        extents = Extents(num, 1, count // max(1, num))
        fixed = fixed_normalizer(self.param.loss_param, extents, caffe_pb2.LossParameter.BATCH_SIZE)
        results = self._normalizer, top[0].data_buffer
        self.launch("loss_forward_sum", 1, 1, chunks, chunks, fixed, self._partial, self._valid, *results)

    def backward(self, top: list[Blob], propagate_down: Sequence[bool], bottom: list[Blob]) -> None:
        refuse_labels(propagate_down[1])
        if propagate_down[0]:
            given = bottom[0].data_buffer, bottom[1].data_buffer, self._normalizer, top[0].diff_buffer
            self.launch("sigmoid_loss_backward", bottom[0].count, self._rule, *given, bottom[0].diff_buffer)

    def allow_force_backward(self, bottom_index: int) -> bool:
        return bottom_index != 1
