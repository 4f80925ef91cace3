"""The losses of one class label per item or position: HingeLoss, MultinomialLogisticLoss, InfogainLoss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from caffe_lite.blob import Blob
from caffe_lite.errors import NetError, ShapeError
from caffe_lite.layers.base import Layer, register
from caffe_lite.layers.loss import (
    CHUNK,
    Labels,
    check_first_dimension,
    fixed_normalizer,
    ignored_label,
    refuse_labels,
)
from caffe_lite.layers.softmax import Extents, SoftmaxOverAxis
from caffe_lite.proto import caffe_pb2

if TYPE_CHECKING:
    from caffe_lite.devices.base import Buffer


class ItemLoss(Layer):
    """What HingeLoss and MultinomialLogisticLoss share: one label an item, the mean over the items."""

    exact_bottoms = 2
    exact_tops = 1
    auto_tops = True
    is_loss = True
    checks_values = True

    def setup(self, bottom: list[Blob], top: list[Blob]) -> None:
        self._labels = Labels(self.device, None)
        self._partial: Buffer | None = None

    def reshape(self, bottom: list[Blob], top: list[Blob]) -> None:
        """Size the top.  Raises `ShapeError` unless there is one label for each item."""
        check_first_dimension("scores and labels", *bottom)
        num = bottom[0].shape[0]
        self._num, self._channels = num, bottom[0].count // max(1, num)
        self._labels.reshape(Extents(num, self._channels, 1), *bottom)
        top[0].reshape(())
        if self._partial is None or self._partial.size != num:
            self._partial = self.device.alloc(num)

    def _sum(self, partials: int, top: list[Blob]) -> None:
        """Launch: the loss is the sum of so many partial losses, divided by the number of items."""
        assert self._partial is not None
        scale = 1 / max(1, self._num)
        self.launch("loss_forward_scale", 1, 1, partials, scale, self._partial, top[0].data_buffer)

    def allow_force_backward(self, bottom_index: int) -> bool:
        return bottom_index != 1

    def check(self, bottom: list[Blob]) -> None:
        self._labels.check(bottom[1])


@register("HingeLoss")
class HingeLoss(ItemLoss):
    """The hinge loss of one against all: each class has a margin of 1 around zero.

    Forward: E = 1 / num * sum over items and classes of m (L1) or m^2 (L2),
             m = max(0, 1 - x) for the class of the label, max(0, 1 + x) for the others.
    Backward, with s = 1 for the class of the label and -1 for the others: dx = -s * dE / num where m > 0 (L1),
    dx = -2 s m * dE / num (L2).

    Shapes: scores (num, ...), all axes but the first being classes; one label per item; top: the loss ().

    ``hinge_loss_param { norm }``: L1 (the default) or L2.
    ``loss_weight``: arrives as the loss's diff, dE; 1 by default.

    Caffe's quirks: it is no multi-class hinge loss that compares the label's score with others.  The forward pass of
    the original uses the bottom's diff as scratch, which this one does not.  Unlike in the original, NaN stays visible
    and a label that is no class is an error.
    """

    def setup(self, bottom: list[Blob], top: list[Blob]) -> None:
        super().setup(bottom, top)
        self._squares = int(self.param.hinge_loss_param.norm == caffe_pb2.HingeLossParameter.L2)

    def forward(self, bottom: list[Blob], top: list[Blob]) -> None:
        assert self._partial is not None
        self._labels.forward(bottom[1].data_buffer)
        sizes, given = (self._num, self._channels, self._squares), (bottom[0].data_buffer, self._labels.classes)
        self.launch("hinge_loss_forward", self._num, *sizes, *given, self._partial)
        self._sum(self._num, top)

    def backward(self, top: list[Blob], propagate_down: Sequence[bool], bottom: list[Blob]) -> None:
        refuse_labels(propagate_down[1])
        if propagate_down[0]:
            options = self._num, self._channels, self._squares, 1 / max(1, self._num)
            given = bottom[0].data_buffer, self._labels.classes, top[0].diff_buffer
            self.launch("hinge_loss_backward", self._num, *options, *given, bottom[0].diff_buffer)


@register("MultinomialLogisticLoss")
class MultinomialLogisticLoss(ItemLoss):
    """The mean negative logarithm of the probability of each label, for a bottom that holds probabilities.

    Forward: E = -1 / num * sum over items of log(max(p[label], 1e-20)).
    Backward: dp[label] = -dE / num / max(p[label], 1e-20); 0 for the other classes.

    Shapes: probabilities (num, ...), all axes but the first being classes; one label per item; top: the loss ().

    It has no options but ``loss_weight``, which arrives as the loss's diff, dE; 1 by default.

    Caffe's quirks: SoftmaxWithLoss computes the same from scores, with a gradient that neither overflows nor divides.
    Unlike in the original a label that is no class is an error.
    """

    def forward(self, bottom: list[Blob], top: list[Blob]) -> None:
        assert self._partial is not None
        self._labels.forward(bottom[1].data_buffer)
        chunks, sizes = self._labels.chunks, (self._num, self._channels, CHUNK)
        given = bottom[0].data_buffer, self._labels.classes
        self.launch("multinomial_loss_forward", chunks, chunks, *sizes, *given, self._partial)
        self._sum(chunks, top)

    def backward(self, top: list[Blob], propagate_down: Sequence[bool], bottom: list[Blob]) -> None:
        refuse_labels(propagate_down[1])
        if propagate_down[0]:
            options = self._num, self._channels, -1 / max(1, self._num)
            given = bottom[0].data_buffer, self._labels.classes, top[0].diff_buffer
            self.launch("multinomial_loss_backward", self._num, *options, *given, bottom[0].diff_buffer)


@register("InfogainLoss")
class InfogainLoss(Layer):
    """The multinomial logistic loss of a softmax, with a weight for each pair of label and class.

    Forward: E = -sum over labelled positions and classes c of H[label, c] log(max(p[c], 1e-20)) / normalizer,
             p = softmax(x).
    Backward: dx[c] = (p[c] * sum over k of H[label, k] - H[label, c]) * dE / normalizer; 0 where the label is ignored.
    With the identity as H it is SoftmaxWithLoss.

    Shapes: scores (outer..., C, inner...) with C classes on `axis`; one label per position; H, any shape of C * C
    elements, as a third bottom or in a file; tops: the loss (), and p in the shape of the scores if a second top is
    named.

    ``infogain_loss_param { source axis }``: `source` is a binaryproto file with H, read if there is no third bottom;
    `axis` is 1 by default.
    ``loss_param { ignore_label normalization }``: as in SoftmaxWithLoss, VALID by default.
    ``loss_weight``: arrives as the loss's diff, dE; 1 by default.

    Caffe's quirks: ``loss_param { normalize }`` is refused.  The gradient does not see that the logarithm is cut.
    Unlike the original, which aborts under ``force_backward`` and reads and writes outside the blob for a label that is
    no class, this one has no gradient for H and such a label is an error.
    """

    min_bottoms = 2
    max_bottoms = 3
    min_tops = 1
    max_tops = 2
    auto_tops = True
    is_loss = True
    checks_values = True

    def setup(self, bottom: list[Blob], top: list[Blob]) -> None:
        """Read H.  Raises `NetError` without any, or for the older `normalize`."""
        if self.param.loss_param.HasField("normalize"):
            raise NetError("normalize is not supported here. Use loss_param { normalization: ... } instead.")
        self._labels = Labels(self.device, ignored_label(self.param.loss_param))
        self._softmax = SoftmaxOverAxis(self.device)
        self._prob = top[1] if len(top) > 1 else Blob(self.device)
        self._normalizer = self.device.alloc(1)
        self._gain = bottom[2] if len(bottom) > 2 else self._read_gain()
        self._partial, self._sums = Blob(self.device), Blob(self.device)

    def reshape(self, bottom: list[Blob], top: list[Blob]) -> None:
        """Size the tops.  Raises `ShapeError` unless labels and H fit the scores."""
        scores, labels = bottom[:2]
        check_first_dimension("scores and labels", scores, labels)
        axis = self.axis_of(scores, self.param.infogain_loss_param.axis)
        self._extents = Extents.around(axis, scores.shape)
        outer, channels, inner = self._extents
        self._labels.reshape(self._extents, scores, labels)
        if self._gain.count != channels**2:
            raise ShapeError(
                f"the infogain matrix must have a row and a column for each of the {channels} classes. Expected "
                f"{channels**2} elements for scores {scores}, received {self._gain}. Check the axis, or the matrix."
            )
        self._softmax.reshape(self._extents)
        self._prob.reshape(scores.shape)
        self._partial.reshape(outer * -(-inner // CHUNK))
        self._sums.reshape(channels)
        top[0].reshape(())

    def forward(self, bottom: list[Blob], top: list[Blob]) -> None:
        _, channels, inner = self._extents
        prob, gain = self._prob.data_buffer, self._gain.data_buffer
        partial, rows, chunks = self._partial.data_buffer, self._partial.count, self._labels.chunks
        self._softmax.forward(bottom[0].data_buffer, prob)
        self._labels.forward(bottom[1].data_buffer)
        given = prob, self._labels.classes, gain
        if inner == 1:
            self.launch("infogain_loss_forward", rows, rows, channels, *given, partial)
        else:
            self.launch("infogain_loss_forward_spatial", rows, rows, (*self._extents, CHUNK), *given, partial)
        fixed, results = fixed_normalizer(self.param.loss_param, self._extents), (self._normalizer, top[0].data_buffer)
        self.launch("loss_forward_sum", 1, 1, rows, chunks, fixed, partial, self._labels.valid, *results)

    def backward(self, top: list[Blob], propagate_down: Sequence[bool], bottom: list[Blob]) -> None:
        refuse_labels(propagate_down[1])
        if any(propagate_down[2:]):
            raise NetError("the infogain matrix has no gradient. Set propagate_down: false for the third bottom.")
        if not propagate_down[0]:
            return
        outer, channels, inner = self._extents
        gain, sums = self._gain.data_buffer, self._sums.data_buffer
        self.launch("infogain_loss_sums", channels, channels, gain, sums)
        factors = self._normalizer, top[0].diff_buffer
        given = self._prob.data_buffer, self._labels.classes, gain, sums, *factors, bottom[0].diff_buffer
        if inner == 1:
            self.launch("infogain_loss_backward", outer, outer, channels, *given)
        else:
            rows = outer * channels
            self.launch("infogain_loss_backward_spatial", rows, rows, channels, inner, *given)

    def allow_force_backward(self, bottom_index: int) -> bool:
        return bottom_index == 0

    def check(self, bottom: list[Blob]) -> None:
        self._labels.check(bottom[1])

    def _read_gain(self) -> Blob:
        from caffe_lite.serialization import blobproto

        source = self.param.infogain_loss_param.source
        if not source:
            raise NetError(
                "the infogain matrix is missing. Expected a third bottom, or infogain_loss_param { source: ... }."
            )
        matrix = blobproto.read(source)
        blob = Blob(self.device, matrix.shape, "H")
        self.device.upload(blob.data_buffer, matrix)
        return blob
