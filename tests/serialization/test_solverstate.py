"""Solver states are read from, and written as, the files of the original Caffe."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from caffe_lite.errors import FileAccessError, MissingFileError, WeightsError
from caffe_lite.serialization import solverstate

SOLVERS = Path(__file__).resolve().parents[1] / "reference" / "training" / "solvers"
STATE = SOLVERS / "sgd_fixed_iter_15.solverstate"


def test_the_state_that_caffe_wrote_is_read() -> None:
    state = solverstate.read(STATE)
    assert (state.iter, state.learned_net, state.current_step) == (15, "sgd_fixed_iter_15.caffemodel", 0)
    assert [array.shape for array in state.history] == [(24, 196), (24,), (10, 24), (10,)]
    assert all(array.dtype == np.float32 and array.any() for array in state.history)


def test_the_state_that_is_written_is_byte_for_byte_what_caffe_wrote(tmp_path: Path) -> None:
    solverstate.write(tmp_path / "state", solverstate.read(STATE))
    assert (tmp_path / "state").read_bytes() == STATE.read_bytes()


def test_every_field_survives_the_way_there_and_back(tmp_path: Path) -> None:
    solverstate.write(tmp_path / "state", solverstate.State(7, "net.caffemodel", [np.float32([1, 2])], current_step=3))
    state = solverstate.read(tmp_path / "state")
    assert (state.iter, state.learned_net, state.current_step) == (7, "net.caffemodel", 3)
    np.testing.assert_array_equal(state.history[0], [1, 2])


def test_weights_given_as_a_state_are_recognized() -> None:
    expected = r"iter_15.caffemodel is not the state of a solver .* It looks like the weights of a net \(.caffemodel\)"
    with pytest.raises(WeightsError, match=expected):
        solverstate.read(SOLVERS / "sgd_fixed_iter_15.caffemodel")


def test_a_state_that_is_cut_off_says_so(tmp_path: Path) -> None:
    (tmp_path / "state").write_bytes(STATE.read_bytes()[:-10])
    with pytest.raises(WeightsError, match=r"cut off after 19981 bytes: at least . more belong to it"):
        solverstate.read(tmp_path / "state")


def test_a_missing_state_is_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"no such file"):
        solverstate.read(tmp_path / "state")


def test_a_state_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileAccessError, match=r"cannot be written"):
        solverstate.write(tmp_path / "nowhere" / "state", solverstate.State(0, "", []))
