"""The layers that a net begins with and that read nothing: Input and DummyData."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from caffe_lite.blob import Blob
from caffe_lite.errors import NetError
from caffe_lite.fillers import fill
from caffe_lite.layers.base import Layer, register
from caffe_lite.proto import caffe_pb2


@register("Input")
class Input(Layer):
    """Tops that somebody else fills: the data of a deployed net.

    Forward: nothing; a top keeps what was written to it (``net.blobs["data"].data[...] = image``).
    Backward: none.

    Shapes: top i has ``shape`` i, or the only one given.

    ``input_param { shape }``: none, one for all tops, or one a top.

    Caffe's quirks: without ``shape`` the tops stay as they are until the caller reshapes them.
    """

    exact_bottoms = 0
    min_tops = 1

    def setup(self, bottom: list[Blob], top: list[Blob]) -> None:
        shapes = self.param.input_param.shape
        if shapes:
            for blob, shape in zip(top, _one_each("shape", shapes, top), strict=True):
                blob.reshape(tuple(shape.dim))

    def reshape(self, bottom: list[Blob], top: list[Blob]) -> None:
        """Keep the tops as they are: the caller may have reshaped them."""

    def forward(self, bottom: list[Blob], top: list[Blob]) -> None:
        pass

    def backward(self, top: list[Blob], propagate_down: Sequence[bool], bottom: list[Blob]) -> None:
        pass


@register("DummyData")
class DummyData(Layer):
    """Tops that a filler fills: data for timing and for tests.

    Forward: nothing to compute.  A top whose filler is constant is filled once, at setup, any other before each pass.
    Backward: none.

    Shapes: top i has ``shape`` i, or the only one given; or (num, channels, height, width) i from the legacy fields.

    ``dummy_data_param { data_filler shape num channels height width }``: one for all tops, or one a top.

    The values are a function of the layer's seed and the number of the pass, so that a resumed run repeats them.

    Caffe's quirks: without ``data_filler`` a top is zero, as is one with a random filler until the first pass.  As
    constants are never filled again, what a script writes into such a top stays.
    """

    exact_bottoms = 0
    min_tops = 1
    runs_python = True

    def setup(self, bottom: list[Blob], top: list[Blob]) -> None:
        fillers = self.param.dummy_data_param.data_filler or [caffe_pb2.FillerParameter()]  # constant 0 by default
        self._fillers = _one_each("data_filler", fillers, top)
        for blob, shape in zip(top, self._shapes(top), strict=True):
            blob.reshape(shape)
        for blob, filler in zip(top, self._fillers, strict=True):
            values = fill(filler, blob.shape, self.rng)  # of any filler: its errors are raised here
            if filler.type == "constant":
                self.device.upload(blob.data_buffer, values)
        self._passes = 0

    def reshape(self, bottom: list[Blob], top: list[Blob]) -> None:
        """Keep the tops as they are: setup shaped them."""

    def prepare(self, bottom: list[Blob], top: list[Blob]) -> None:
        """Fill the tops whose filler is not constant."""
        rng = np.random.default_rng([self.seed, self._passes])
        for blob, filler in zip(top, self._fillers, strict=True):
            if filler.type != "constant":
                self.device.upload(blob.data_buffer, fill(filler, blob.shape, rng))
        self._passes += 1

    def seek(self, passes: int) -> None:
        """Go on with the values of pass number `passes`."""
        self._passes = passes

    def forward(self, bottom: list[Blob], top: list[Blob]) -> None:
        pass

    def backward(self, top: list[Blob], propagate_down: Sequence[bool], bottom: list[Blob]) -> None:
        pass

    def _shapes(self, top: list[Blob]) -> list[tuple[int, ...]]:
        param = self.param.dummy_data_param
        legacy = {name: getattr(param, name) for name in ("num", "channels", "height", "width")}
        if not any(legacy.values()):
            return [tuple(shape.dim) for shape in _one_each("shape", param.shape, top)]
        if param.shape:
            raise NetError("both shape and the legacy num, channels, height, width are given. Keep shape alone.")
        return list(zip(*(_one_each(name, values, top) for name, values in legacy.items()), strict=True))


def _one_each(field: str, values: Sequence[Any], top: list[Blob]) -> list[Any]:
    """Return one of the repeated `values` for each top; a single one serves all of them."""
    if len(values) not in (1, len(top)):
        names = ", ".join(f"'{blob.name}'" for blob in top)
        raise NetError(
            f"{field} must be given once, or once for each of the {len(top)} tops {names}. Received {len(values)}."
        )
    return list(values) * len(top) if len(values) == 1 else list(values)
