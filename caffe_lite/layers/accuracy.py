"""Accuracy: the share of items that are classified right."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from caffe_lite.blob import Blob
from caffe_lite.errors import NetError
from caffe_lite.layers.base import Layer, register
from caffe_lite.layers.loss import Labels
from caffe_lite.layers.softmax import Extents

if TYPE_CHECKING:
    from caffe_lite.devices.base import Buffer


@register("Accuracy")
class Accuracy(Layer):
    """The share of labels that are among the top_k scores.

    Forward: a label is a hit if fewer than top_k of the other classes score at least as high; the accuracy is the
    number of hits divided by the number of labels that are not ignored, 0 if there are none.
    Backward: none; a net that asks for it is told so.

    Shapes: scores (outer..., C, inner...) with C classes on `axis`; one label per position, outer * inner of them;
    tops: the accuracy (), and, if a second top is named, the accuracy among the labels of each class (C).

    ``accuracy_param { top_k axis ignore_label }``: top_k and axis are 1 by default.

    Caffe's quirks: ties count against the label (all scores equal: accuracy 0).  A label whose own score is NaN is a
    hit.  A class without labels has accuracy 0.  Unlike the original, which reads and writes outside the blob, a label
    that is no class is an error.
    """

    exact_bottoms = 2
    min_tops = 1
    max_tops = 2
    checks_values = True

    def setup(self, bottom: list[Blob], top: list[Blob]) -> None:
        param = self.param.accuracy_param
        self._labels = Labels(self.device, param.ignore_label if param.HasField("ignore_label") else None)
        self._hits: Buffer | None = None

    def reshape(self, bottom: list[Blob], top: list[Blob]) -> None:
        param = self.param.accuracy_param
        axis = self.axis_of(bottom[0], param.axis)
        self._extents = Extents.around(axis, bottom[0].shape)
        self._labels.reshape(self._extents, *bottom)
        classes = self._extents.channels
        if param.top_k > classes:
            raise NetError(
                f"top_k must be at most the number of classes, {classes}. Received top_k {param.top_k} for bottom "
                f"{bottom[0]}. Use a smaller top_k."
            )
        if self._hits is None or self._hits.size != self._extents.positions:
            self._hits = self.device.alloc(self._extents.positions, np.int32)
        top[0].reshape(())
        if len(top) > 1:
            top[1].reshape((classes,))

    def forward(self, bottom: list[Blob], top: list[Blob]) -> None:
        assert self._hits is not None
        _, channels, inner = self._extents
        positions, classes, scores = self._extents.positions, self._labels.classes, bottom[0].data_buffer
        top_k = self.param.accuracy_param.top_k
        self._labels.forward(bottom[1].data_buffer)
        if inner == 1:
            self.launch("accuracy_forward", positions, positions, channels, top_k, scores, classes, self._hits)
        else:
            sizes = positions, channels, inner, top_k
            self.launch("accuracy_forward_spatial", positions, *sizes, scores, classes, self._hits)
        self.launch("accuracy_forward_mean", 1, 1, positions, classes, self._hits, top[0].data_buffer)
        if len(top) > 1:
            per_class = top[1].data_buffer
            self.launch("accuracy_forward_per_class", channels, channels, positions, classes, self._hits, per_class)

    def backward(self, top: list[Blob], propagate_down: Sequence[bool], bottom: list[Blob]) -> None:
        if any(propagate_down):
            raise NetError("an accuracy has no gradient. Take away its loss_weight and what propagates down to it.")

    def allow_force_backward(self, bottom_index: int) -> bool:
        return False

    def check(self, bottom: list[Blob]) -> None:
        self._labels.check(bottom[1])
