"""Finds where a loss that is not finite comes from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from caffe_lite.blob import Blob
    from caffe_lite.net import Net

__all__ = ["first_nonfinite"]


def first_nonfinite(net: Net) -> str | None:
    """Return a sentence on the first param or blob, in forward order, that holds NaN or Inf; None if none does.

    Of a blob that a later layer overwrote in place only the last content is seen.
    """
    for what, blob in _in_forward_order(net):
        finite = np.isfinite(blob.data)
        if not finite.all():
            nans = int(np.isnan(blob.data).sum())
            infs = blob.count - int(finite.sum()) - nans
            return f"{what} holds {nans} NaN and {infs} Inf among {blob.count} values"
    return None


def _in_forward_order(net: Net) -> Iterator[tuple[str, Blob]]:
    for layer, tops in zip(net.layers, net.tops, strict=True):
        for index, blob in enumerate(layer.blobs):
            yield f"param {index} of layer '{layer.name}' ({layer.type})", blob
        for blob in tops:
            yield f"blob '{blob.name}' of layer '{layer.name}' ({layer.type})", blob
