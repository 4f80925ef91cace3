"""Snapshots: what the original writes, read back; training that resumes as if it had never stopped."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from caffe_lite.errors import FileAccessError, MissingFileError, SolverError, WeightsError
from caffe_lite.proto import caffe_pb2

from .conftest import FIXED, SMALL_NET, MakeSolver, write_database
from .mlp import REFERENCE, MlpRun

PREFIX = 'snapshot_prefix: "s" '


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def message(kind: str, path: str | Path) -> Any:
    return getattr(caffe_pb2, kind).FromString(Path(path).read_bytes())


# -- the original's files


def test_solver_state_is_the_originals_field_for_field() -> None:
    run = MlpRun("fixed")
    run.iterate(15)
    run.solver.snapshot()
    written = message("SolverState", "sgd_fixed_iter_15.solverstate")
    recorded = message("SolverState", REFERENCE / "sgd_fixed_iter_15.solverstate")
    for ours, theirs in zip(written.history, recorded.history, strict=True):
        np.testing.assert_allclose(ours.data, theirs.data, rtol=1e-4, atol=1e-6)
        for blob in (ours, theirs):
            del blob.data[:]
    assert written == recorded
    assert written.HasField("current_step") and recorded.HasField("current_step")


def test_model_is_the_originals_field_for_field() -> None:
    run = MlpRun("fixed")
    run.iterate(15)
    run.solver.snapshot()
    written = message("NetParameter", "sgd_fixed_iter_15.caffemodel")
    recorded = message("NetParameter", REFERENCE / "sgd_fixed_iter_15.caffemodel")
    layers = {layer.name: layer for layer in recorded.layer}
    for layer in written.layer:
        for ours, theirs in zip(layer.blobs, layers[layer.name].blobs, strict=True):
            assert ours.shape == theirs.shape
            np.testing.assert_allclose(ours.data, theirs.data, rtol=1e-4, atol=1e-5)
    assert [field.name for field, _ in written.ListFields()] == [field.name for field, _ in recorded.ListFields()]


def test_training_goes_on_from_the_originals_snapshot() -> None:
    for extension in ("solverstate", "caffemodel"):
        shutil.copy(REFERENCE / f"sgd_fixed_iter_15.{extension}", ".")
    run = MlpRun("fixed")
    run.solver.restore("sgd_fixed_iter_15.solverstate")
    assert run.solver.iter == 15
    np.testing.assert_allclose(run.iterate(15), run.recorded["loss"][15:], rtol=1e-4)


# -- resuming

NET = """
name: "resume"
layer {
  name: "data" type: "Data" top: "data" top: "label" include { phase: TRAIN }
  transform_param { crop_size: 5 mirror: true scale: 0.01 }
  data_param { source: "db" batch_size: 4 backend: LMDB }
}
layer {
  name: "data" type: "Data" top: "data" top: "label" include { phase: TEST }
  transform_param { crop_size: 5 scale: 0.01 }
  data_param { source: "db" batch_size: 3 backend: LMDB }
}
layer { name: "drop" type: "Dropout" bottom: "data" top: "drop" }
layer {
  name: "conv" type: "Convolution" bottom: "drop" top: "conv"
  convolution_param { num_output: 2 kernel_size: 3 weight_filler { type: "xavier" } }
}
layer {
  name: "ip" type: "InnerProduct" bottom: "conv" top: "ip"
  inner_product_param { num_output: 3 weight_filler { type: "xavier" } }
}
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "loss" }
"""
SOLVER = """
base_lr: 0.1 momentum: 0.9 weight_decay: 0.01 lr_policy: "multistep" gamma: 0.5 stepvalue: 2 stepvalue: 7
max_iter: 9 iter_size: 2 snapshot: 3 snapshot_prefix: "s" random_seed: 5
test_iter: 1 test_interval: 2
"""


@pytest.fixture
def database() -> None:
    generator = np.random.default_rng(0)
    write_database(Path("db"), generator.integers(0, 256, (10, 2, 7, 6), np.uint8), generator.integers(0, 3, 10))


def snapshots() -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path.cwd().glob("s_iter_*")}


@pytest.mark.usefixtures("database")
@pytest.mark.parametrize("first", [3, 6])
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(
    first: int, make_solver: MakeSolver, log: Callable[[], list[str]]
) -> None:
    def results() -> list[str]:
        return [text for text in log() if "Test net output" in text]

    make_solver(SOLVER, NET).solve()
    uninterrupted, tests = snapshots(), results()
    assert len(uninterrupted) == 6
    for path in Path.cwd().glob("s_iter_*"):
        if f"_{first}." not in path.name:
            path.unlink()
    resumed = make_solver(SOLVER, NET)
    resumed.solve(f"s_iter_{first}.solverstate")
    assert resumed.iter == 9
    late = {name for name in uninterrupted if int(name[len("s_iter_") :].split(".")[0]) >= first}
    assert snapshots() == {name: uninterrupted[name] for name in late}
    again = results()
    assert again and again == tests[-len(again) :]


@pytest.mark.usefixtures("database")
def test_the_same_seed_gives_the_same_snapshots(make_solver: MakeSolver) -> None:
    make_solver(SOLVER, NET).solve()
    first = snapshots()
    make_solver(SOLVER, NET).solve()
    assert snapshots() == first


def test_resuming_says_what_it_does(make_solver: MakeSolver, log: Callable[[], list[str]]) -> None:
    make_solver(FIXED + PREFIX).snapshot()
    solver = make_solver(FIXED + PREFIX)
    log()
    solver.solve("s_iter_0.solverstate")
    assert log()[:4] == [
        "Solving small",
        "Learning Rate Policy: fixed",
        "Restoring previous solver status from s_iter_0.solverstate",
        "SGDSolver: restoring history",
    ]


def test_weights_that_moved_along_with_the_state_are_found(tmp_path: Path, make_solver: MakeSolver) -> None:
    first = make_solver(FIXED + f'snapshot_prefix: "{tmp_path}/old/s"')
    (tmp_path / "old").mkdir()
    first.net.params["ip"][0].data[...] = 3
    first.snapshot()
    (tmp_path / "old").rename(tmp_path / "new")
    solver = make_solver(FIXED)
    solver.restore(tmp_path / "new" / "s_iter_0.solverstate")
    assert (solver.net.params["ip"][0].data == 3).all()


def test_snapshot_diff_puts_the_diffs_into_the_model(make_solver: MakeSolver) -> None:
    solver = make_solver(FIXED + PREFIX + "snapshot_diff: true")
    solver.step(1)
    solver.snapshot()
    blob = next(layer for layer in message("NetParameter", "s_iter_1.caffemodel").layer if layer.name == "ip").blobs[1]
    np.testing.assert_array_equal(np.float32(blob.diff), solver.net.params["ip"][1].diff)


# -- what cannot be resumed


@pytest.fixture
def trained(make_solver: MakeSolver) -> Iterator[Any]:
    """A solver after two iterations, and its snapshot; what fails must leave it as it is."""
    solver = make_solver(FIXED + PREFIX)
    solver.step(2)
    solver.snapshot()
    before = [blob.data.copy() for blob in solver.net.parameters.blobs]
    yield solver
    assert solver.iter == 2
    for blob, data in zip(solver.net.parameters.blobs, before, strict=True):
        np.testing.assert_array_equal(blob.data, data)


def test_weights_in_place_of_a_state_are_told_apart(trained: Any) -> None:
    with pytest.raises(WeightsError, match=r"s_iter_2.caffemodel is not .* name it as `weights`"):
        trained.restore("s_iter_2.caffemodel")


def test_a_state_that_is_not_there_is_missing(trained: Any) -> None:
    with pytest.raises(MissingFileError, match=r"s_iter_7\.solverstate"):
        trained.restore("s_iter_7.solverstate")


def test_a_state_whose_weights_are_gone_is_refused(trained: Any) -> None:
    Path("s_iter_2.caffemodel").unlink()
    with pytest.raises(MissingFileError, match=r"s_iter_2\.caffemodel"):
        trained.restore("s_iter_2.solverstate")


def test_the_state_of_a_net_with_other_shapes_is_refused(trained: Any, make_solver: MakeSolver) -> None:
    make_solver(FIXED + 'snapshot_prefix: "other"', SMALL_NET.replace("num_output: 3", "num_output: 5")).snapshot()
    with pytest.raises(SolverError, match=r"history of param 'ip/0' .* Expected shape \(3, 6\), received \(5, 6\)"):
        trained.restore("other_iter_0.solverstate")


def test_the_state_of_a_net_with_other_params_is_refused(trained: Any, make_solver: MakeSolver) -> None:
    one = SMALL_NET.replace("num_output: 3", "num_output: 3 bias_term: false").replace(
        "param { lr_mult: 2 decay_mult: 0 }", ""
    )
    make_solver(FIXED + 'snapshot_prefix: "other"', one).snapshot()
    with pytest.raises(SolverError, match=r"another net or solver type. Expected a history of 2 blobs, received 1"):
        trained.restore("other_iter_0.solverstate")


# -- what cannot be written


@pytest.mark.parametrize("written, refused", [(0, "caffemodel"), (1, "solverstate")])
def test_a_full_disk_leaves_the_old_snapshot_whole(
    written: int, refused: str, make_solver: MakeSolver, monkeypatch: pytest.MonkeyPatch
) -> None:
    solver = make_solver(FIXED + PREFIX)
    solver.snapshot()
    before = snapshots()
    solver.net.params["ip"][0].data[...] = 3

    room = iter(range(written))

    def full(descriptor: int) -> None:
        if next(room, None) is None:
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(FileAccessError, match=rf"s_iter_0\.{refused}: cannot be written: No space left on device"):
            solver.snapshot()
    assert snapshots() == before
    assert len(list(Path.cwd().iterdir())) == 2  # no temporary file is left


def test_a_model_that_cannot_be_written_leaves_no_state(make_solver: MakeSolver) -> None:
    solver = make_solver(FIXED + PREFIX)
    Path("s_iter_0.caffemodel").mkdir()
    with pytest.raises(FileAccessError, match=r"s_iter_0\.caffemodel: cannot be written"):
        solver.snapshot()
    assert not Path("s_iter_0.solverstate").exists()
