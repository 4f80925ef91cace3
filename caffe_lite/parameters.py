"""The learnable params of a net, side by side in one buffer.

So the solver's update, clipping and regularization are one launch each, whatever the number of params.  A param begins
at a multiple of `ROW` elements; the gap up to the next is zero and stays zero, and a row belongs to one param only.
"""

from __future__ import annotations

import dataclasses
import logging
from typing import TYPE_CHECKING, Any

import numpy as np

from caffe_lite.blob import Blob, Memory
from caffe_lite.errors import NetError, ShapeError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from caffe_lite.devices.base import Buffer, Device

logger = logging.getLogger("caffe_lite")

ROW = 256


@dataclasses.dataclass(frozen=True)
class Param:
    """One param of one layer; several may share a learnable one by the name in their ``ParamSpec``."""

    blob: Blob
    layer: int
    layer_name: str
    index: int  # among the layer's params
    share_name: str
    learnable: int  # index into the lists of `Parameters`

    @property
    def display_name(self) -> str:
        """How Caffe's debug lines call it: its name in the ``ParamSpec``, else its index."""
        return self.share_name or str(self.index)


class Parameters:
    """What a solver works on: the params that own their memory, and the flat buffers they lie in.

    Attributes:
        all: every param of every layer, shared ones too, in the order of the layers.
        blobs, names: the learnable ones, and "layer/index" for each.
        lr_mults, decay_mults: the factors for the learning rate and the weight decay.
        offsets: where each begins in `data` and `diff`, a multiple of `ROW`.
        rows: the length of the flat buffers in rows.
        row_owner: int32[rows], which learnable param a row belongs to.
    """

    def __init__(self, device: Device) -> None:
        self.all: list[Param] = []
        self.blobs: list[Blob] = []
        self.names: list[str] = []
        self.lr_mults: list[float] = []
        self.decay_mults: list[float] = []
        self.offsets: list[int] = []
        self.rows = 0
        self.row_owner: NDArray[np.int32] = np.zeros(0, np.int32)
        self._device = device
        self._owners: dict[str, Param] = {}  # by share name
        self._given: set[tuple[int, str]] = set()  # which lr_mult and decay_mult the prototxt has given
        self._flat = Blob(device, (0,), "params")

    @property
    def data(self) -> Buffer:
        """The values, float32[rows * ROW]."""
        return self._flat.data_buffer

    @property
    def diff(self) -> Buffer:
        """The gradients, float32[rows * ROW]; allocated on first use."""
        return self._flat.diff_buffer

    def add(self, layer: int, layer_name: str, index: int, blob: Blob, spec: Any | None) -> None:
        """Register param `index` of layer number `layer`; `spec` is its ``ParamSpec``, if the prototxt has one.

        Raises `NetError` if it shares a param whose lr_mult or decay_mult is another, `ShapeError` if its shape
        (with ``share_mode: PERMISSIVE`` its count) is.
        """
        blob.name = f"{layer_name}/{index}"
        share_name = spec.name if spec is not None else ""
        owner = self._owners.get(share_name) if share_name else None
        learnable = len(self.blobs) if owner is None else owner.learnable
        param = Param(blob, layer, layer_name, index, share_name, learnable)
        if owner is None:
            self.blobs.append(blob)
            self.names.append(blob.name)
            self.lr_mults.append(1.0)
            self.decay_mults.append(1.0)
            if share_name:
                self._owners[share_name] = param
        else:
            logger.info(
                "Sharing parameters '%s' owned by layer '%s', param index %d",
                share_name, owner.layer_name, owner.index,
            )  # fmt: skip
            _check_shape(param, owner, permissive=spec is not None and spec.share_mode == spec.PERMISSIVE)
        if spec is not None:
            self._set_mult(param, "lr_mult", self.lr_mults, spec)
            self._set_mult(param, "decay_mult", self.decay_mults, spec)
        self.all.append(param)

    def of_layer(self, layer: int) -> list[Param]:
        """Return the params of layer number `layer`."""
        return [param for param in self.all if param.layer == layer]

    def pack(self) -> None:
        """Move the params into the flat buffers, once all are known.  Raises `OutOfMemoryError`."""
        rows = [-(-blob.count // ROW) for blob in self.blobs]
        starts = np.concatenate([[0], np.cumsum(rows, dtype=np.int64)])
        self.rows = int(starts[-1])
        self.offsets = [int(start) * ROW for start in starts[:-1]]
        self.row_owner = np.repeat(np.arange(len(rows), dtype=np.int32), rows)
        self._flat.reshape(self.rows * ROW)
        places: list[tuple[Memory, Memory]] = []
        for blob, offset in zip(self.blobs, self.offsets, strict=True):
            data, diff = self._place(offset, blob.count)
            self._device.upload(data.first(blob.count), blob.data)
            places.append((data, diff))
        for param in self.all:
            param.blob.place(*places[param.learnable])

    def follow(self, other: Parameters) -> None:
        """Take over the flat data of `other`, after every param here has come to share it, and free the own."""
        if self.offsets == other.offsets and self.rows == other.rows:
            self._flat.share_data(other._flat)

    def strays(self) -> list[tuple[Buffer, Buffer]]:
        """Return memory and place in `data` of each param that `share_data` has given memory elsewhere.

        `share_with` does that where only some layers of two nets match.  An update copies such a param into its place
        before, and back after.
        """
        flat = self.data
        return [
            (blob.data_buffer, flat.view(offset, blob.count))
            for blob, offset in zip(self.blobs, self.offsets, strict=True)
            if blob.data_buffer.pointer != flat.pointer + offset * flat.dtype.itemsize
        ]

    def _place(self, offset: int, count: int) -> tuple[Memory, Memory]:
        flat = self._flat
        return (
            Memory(count, lambda: flat.data_buffer.view(offset, count)),
            Memory(count, lambda: flat.diff_buffer.view(offset, count)),
        )

    def _set_mult(self, param: Param, field: str, mults: list[float], spec: Any) -> None:
        if not spec.HasField(field):
            return
        value = getattr(spec, field)
        key = (param.learnable, field)
        if key in self._given and mults[param.learnable] != value:
            raise NetError(
                f"param {param.index} shares '{param.share_name}' with another {field}. "
                f"Expected {mults[param.learnable]:g} as in the layers before, received {value:g}."
            )
        mults[param.learnable] = value
        self._given.add(key)


def _check_shape(param: Param, owner: Param, permissive: bool) -> None:
    fits = param.blob.count == owner.blob.count if permissive else param.blob.shape == owner.blob.shape
    if not fits:
        what = "element count (share_mode PERMISSIVE)" if permissive else "shape (share_mode STRICT)"
        raise ShapeError(
            f"param {param.index} cannot share '{param.share_name}' of layer '{owner.layer_name}': the {what} differs. "
            f"Expected {owner.blob.shape}, received {param.blob.shape}."
        )
