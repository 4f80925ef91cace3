"""The layers that rearrange, share or swallow blobs: Split, Silence."""

from __future__ import annotations

from collections.abc import Sequence

from caffe_lite.blob import Blob
from caffe_lite.layers.base import Layer, register


@register("Split")
class Split(Layer):
    """Gives several layers the same blob; a net inserts it wherever a top has more than one consumer.

    Forward: y_k = x for each top k: they share the bottom's memory, nothing is copied.
    Backward: dx = sum over k of dy_k.

    Shapes: any; every top has the bottom's.

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
            self.launch("split_backward_more", count, count, diff, bottom_diff)


@register("Silence")
class Silence(Layer):
    """Swallows blobs that no other layer consumes, so that they are not among the net's outputs.

    Forward: nothing.
    Backward: dx = 0.

    Shapes: any bottoms, no top.

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
