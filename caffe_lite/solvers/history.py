"""A solver's history: what an update keeps for each weight, on the device, and in ``.solverstate`` files."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from caffe_lite.errors import SolverError, WeightsError
from caffe_lite.serialization import solverstate
from caffe_lite.serialization.caffemodel import shapes_agree

if TYPE_CHECKING:
    from caffe_lite.net import Net

__all__ = ["History"]


class History:
    """`copies` values for each weight of `net`, laid out as the net's flat params, one copy after the other.

    Attributes:
        buffer: float32[copies * size of the flat params], zero at the start.
    """

    def __init__(self, net: Net, copies: int) -> None:
        parameters = net.parameters
        self._device = net.device
        self.buffer = net.device.alloc(copies * parameters.data.size)
        self._shapes = [blob.shape for blob in parameters.blobs] * copies
        self._names = list(parameters.names) * copies
        starts = [copy * parameters.data.size + offset for copy in range(copies) for offset in parameters.offsets]
        self._segments = [
            self.buffer.view(start, math.prod(shape)) for start, shape in zip(starts, self._shapes, strict=True)
        ]

    def arrays(self) -> list[NDArray[np.float32]]:
        """Return the history as Caffe stores it: an array of each param's shape, one copy after the other."""
        return [
            self._device.download(segment).reshape(shape)
            for segment, shape in zip(self._segments, self._shapes, strict=True)
        ]

    def restore(self, arrays: Sequence[NDArray[np.float32]]) -> None:
        """Take over arrays of the shapes that `arrays` returns."""
        for segment, array in zip(self._segments, arrays, strict=True):
            self._device.upload(segment, array)

    def state(self, iteration: int, learned_net: str, current_step: int) -> solverstate.State:
        """Return what a ``.solverstate`` file holds."""
        return solverstate.State(iteration, learned_net, self.arrays(), current_step)

    def read(self, path: str | os.PathLike[str]) -> solverstate.State:
        """Return the state in the ``.solverstate`` file `path`, whose history fits this one.

        Raises `MissingFileError`, `FileAccessError`, `WeightsError` for another kind of file, and `SolverError` for the
        state of another net or solver type.
        """
        try:
            state = solverstate.read(path)
        except WeightsError as error:
            raise WeightsError(
                f"{error} Training resumes from a .solverstate; to start from the weights in a .caffemodel, name it as "
                "`weights`."
            ) from error
        found = [array.shape for array in state.history]
        if len(found) != len(self._shapes):
            raise SolverError(
                f"{os.fspath(path)}: the state is that of another net or solver type. "
                f"Expected a history of {len(self._shapes)} blobs, received {len(found)}."
            )
        for name, wanted, shape in zip(self._names, self._shapes, found, strict=True):
            if not shapes_agree(wanted, shape):
                raise SolverError(
                    f"{os.fspath(path)}: the state is that of another net. The history of param '{name}' does not fit. "
                    f"Expected shape {wanted}, received {shape}."
                )
        return state
