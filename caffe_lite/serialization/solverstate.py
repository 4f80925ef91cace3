"""`.solverstate` files: what a solver needs to go on where a snapshot was taken."""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from caffe_lite.serialization import blobproto, files, message


@dataclasses.dataclass
class State:
    """A solver's state after `iter` iterations.

    Attributes:
        iter: the number of iterations done.
        learned_net: the path of the ``.caffemodel`` that belongs to it; empty if there is none.
        history: the solver's history, one float32 array for each learnable param (or more: Adam keeps two).
        current_step: the step that the "step" and "multistep" policies have reached.
    """

    iter: int
    learned_net: str
    history: list[NDArray[np.float32]]
    current_step: int = 0


def read(path: files.PathLike) -> State:
    """Return the state in the file at `path`.

    Raises:
        MissingFileError, FileAccessError: the file cannot be read.
        WeightsError: the file holds something else.
    """
    state = message.read(path, "SolverState")
    history = [blobproto.to_array(blob_proto) for blob_proto in state.history]
    return State(state.iter, state.learned_net, history, state.current_step)


def write(path: files.PathLike, state: State, to: files.Write = files.write_atomically) -> None:
    """Write `state` to the file at `path`, as Caffe writes it; `to` does the writing.

    Raises:
        FileAccessError: the file cannot be written; the old one stays.
        WeightsError: the file would be larger than 2 GiB.
    """
    solver_state = message.wire_class("SolverState")(
        iter=state.iter, learned_net=state.learned_net, current_step=state.current_step
    )
    for array in state.history:
        blobproto.fill(solver_state.history.add(), array)
    message.write(path, solver_state, to)
