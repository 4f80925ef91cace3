"""SoftmaxWithLoss, and what other losses share: `Labels`, `fixed_normalizer` and checks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from caffe_lite.blob import Blob
from caffe_lite.errors import DataError, NetError, ShapeError
from caffe_lite.layers.base import Layer, register
from caffe_lite.layers.softmax import Extents, SoftmaxOverAxis
from caffe_lite.proto import caffe_pb2

if TYPE_CHECKING:
    from caffe_lite.devices.base import Buffer, Device

CHUNK = 256  # labels that a block looks at


class Labels:
    """The labels of a batch, as class numbers on the device.

    Attributes (after `reshape`):
        classes: int32[positions]; a label's class, or a negative number if it is ignored or is no class.
        valid: int32[chunks]; how many classes each chunk of labels holds.
        chunks: the number of chunks.
    """

    classes: Buffer
    valid: Buffer

    def __init__(self, device: Device, ignore_label: int | None) -> None:
        self._device = device
        self._ignore_label = ignore_label
        self._extents = Extents(0, 0, 0)
        self.chunks = 0

    def reshape(self, extents: Extents, scores: Blob, labels: Blob) -> None:
        """Prepare for one label per position of `scores`.  Raises `ShapeError` if `labels` has another number."""
        if labels.count != extents.positions:
            raise ShapeError(
                f"there must be one label for each prediction. Expected {extents.positions} labels for predictions "
                f"{scores} with {extents.channels} classes, received labels {labels}. Check the axis, or "
                "the layer that makes the labels."
            )
        if extents.positions != self._extents.positions:
            self.chunks = -(-extents.positions // CHUNK)
            self.classes = self._device.alloc(extents.positions, np.int32)
            self.valid = self._device.alloc(self.chunks, np.int32)
            self._outside = self._device.alloc(self.chunks, np.int32)
        self._extents = extents

    def forward(self, labels: Buffer) -> None:
        """Launch: read the labels."""
        ignores = (0, 0) if self._ignore_label is None else (1, self._ignore_label)
        rule = (self._extents.positions, CHUNK, self._extents.channels, *ignores)
        buffers = labels, self.classes, self.valid, self._outside
        self._device.launch("label_classes", self.chunks, self.chunks, rule, *buffers)

    def check(self, labels: Blob) -> None:
        """Raise `DataError` if a label of the last forward pass was neither a class nor ignored."""
        first = int(self._device.download(self._outside).min())
        outer, channels, inner = self._extents
        if first >= outer * inner:
            return
        place = f"item {first // inner}" + (f", position {first % inner}" if inner > 1 else "")
        ignored = "" if self._ignore_label is None else f" or ignore_label {self._ignore_label}"
        raise DataError(
            f"label {labels.data.flat[first]:g} of {place} is no class. Expected 0 to {channels - 1} ({channels} "
            f"classes){ignored}. Check the labels, or the number of outputs of the layer below."
        )


def fixed_normalizer(loss_param: Any, extents: Extents, default: int = caffe_pb2.LossParameter.VALID) -> int:
    """Return what a ``LossParameter`` says that a loss is divided by, or 0 if that is the number of valid labels.

    Without ``normalization``, the older ``normalize: true`` means VALID and ``false`` BATCH_SIZE; without either it is
    `default`.
    """
    mode = caffe_pb2.LossParameter
    if loss_param.HasField("normalization"):
        chosen = loss_param.normalization
    elif loss_param.HasField("normalize"):
        chosen = mode.VALID if loss_param.normalize else mode.BATCH_SIZE
    else:
        chosen = default
    normalizers = {mode.FULL: extents.positions, mode.VALID: 0, mode.BATCH_SIZE: extents.outer, mode.NONE: 1}
    return normalizers[chosen]


def ignored_label(loss_param: Any) -> int | None:
    """Return the ``ignore_label`` of a ``LossParameter``, or None."""
    return int(loss_param.ignore_label) if loss_param.HasField("ignore_label") else None


def check_first_dimension(names: str, first: Blob, second: Blob) -> None:
    """Raise `ShapeError` unless two bottoms of a loss have the same number of items."""
    if not first.shape or first.shape[:1] != second.shape[:1]:
        raise ShapeError(
            f"{names} must have the same first dimension, one axis at least. Received {first} and {second}. Check the "
            "batch sizes of the layers that make them."
        )


def refuse_labels(wanted: bool) -> None:
    """Raise `NetError` if a gradient of the labels is wanted."""
    if wanted:
        raise NetError("a loss has no gradient for its labels. Set propagate_down: false for that bottom.")


@register("SoftmaxWithLoss")
class SoftmaxWithLoss(Layer):
    """The multinomial logistic loss of the softmax of the scores.

    Forward: E = -sum over labelled positions of log(max(p[label], FLT_MIN)) / normalizer, p = softmax(x).
    Backward: dx[c] = (p[c] - (c == label)) * dE / normalizer; 0 where the label is ignored.

    Shapes: scores (outer..., C, inner...) with C classes on `axis`; one label per position, in any shape that begins
    with the same number of items; tops: the loss (), and p in the shape of the scores if a second top is named.

    ``softmax_param { axis }``: 1 by default.
    ``loss_param { ignore_label normalization normalize }``: the normalizer is
        FULL        the number of positions, outer * inner
        VALID       the number of labels that are not ignored (the default)
        BATCH_SIZE  outer
        NONE        1
    Without ``normalization``, the older ``normalize: true`` means VALID and ``false`` BATCH_SIZE.
    ``loss_weight``: arrives as the loss's diff, dE; 1 by default.

    Caffe's quirks: a normalizer below 1 becomes 1, so that a batch without labels has the loss 0.  A label's fraction
    is cut off.  The gradient does not see that the loss is cut at -log(FLT_MIN), nor the diff of the second top.
    Unlike the original, which reads and writes outside the blob, a label that is no class is an error.
    """

    exact_bottoms = 2
    min_tops = 1
    max_tops = 2
    auto_tops = True
    is_loss = True
    checks_values = True

    def setup(self, bottom: list[Blob], top: list[Blob]) -> None:
        self._labels = Labels(self.device, ignored_label(self.param.loss_param))
        self._softmax = SoftmaxOverAxis(self.device)
        self._prob = top[1] if len(top) > 1 else Blob(self.device)
        self._normalizer = self.device.alloc(1)
        self._partial: Buffer | None = None

    def reshape(self, bottom: list[Blob], top: list[Blob]) -> None:
        scores, labels = bottom
        check_first_dimension("scores and labels", scores, labels)
        axis = self.axis_of(scores, self.param.softmax_param.axis)
        self._extents = Extents.around(axis, scores.shape)
        self._labels.reshape(self._extents, scores, labels)
        self._softmax.reshape(self._extents)
        self._prob.reshape(scores.shape)
        top[0].reshape(())
        if self._partial is None or self._partial.size != self._labels.chunks:
            self._partial = self.device.alloc(self._labels.chunks)

    def forward(self, bottom: list[Blob], top: list[Blob]) -> None:
        assert self._partial is not None
        prob, chunks = self._prob.data_buffer, self._labels.chunks
        self._softmax.forward(bottom[0].data_buffer, prob)
        self._labels.forward(bottom[1].data_buffer)
        shape = (*self._extents, CHUNK)
        self.launch("softmax_loss_forward", chunks, chunks, shape, prob, self._labels.classes, self._partial)
        results = self._normalizer, top[0].data_buffer
        fixed = fixed_normalizer(self.param.loss_param, self._extents)
        self.launch("loss_forward_sum", 1, 1, chunks, chunks, fixed, self._partial, self._labels.valid, *results)

    def backward(self, top: list[Blob], propagate_down: Sequence[bool], bottom: list[Blob]) -> None:
        refuse_labels(propagate_down[1])
        if not propagate_down[0]:
            return
        outer, channels, inner = self._extents
        given = self._prob.data_buffer, self._labels.classes, self._normalizer, top[0].diff_buffer
        bottom_diff = bottom[0].diff_buffer
        if inner == 1:
            self.launch("softmax_loss_backward", outer, outer, channels, *given, bottom_diff)
        else:
            rows = outer * channels
            self.launch("softmax_loss_backward_spatial", rows, rows, channels, inner, *given, bottom_diff)

    def allow_force_backward(self, bottom_index: int) -> bool:
        return bottom_index != 1

    def check(self, bottom: list[Blob]) -> None:
        self._labels.check(bottom[1])
