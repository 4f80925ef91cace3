"""Which nets a solver builds, how it iterates, tests, logs and stops."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from caffe_lite import solvers
from caffe_lite.errors import FileAccessError, MissingFileError, SolverError
from caffe_lite.solvers.base import SmoothedLoss

from .conftest import FIXED, SMALL_NET, MakeSolver, parse

Log = Callable[[], list[str]]


def matching(pattern: str, texts: list[str]) -> list[str]:
    return [text for text in texts if re.search(pattern, text)]


# -- types


def test_type_picks_the_class_and_is_sgd_by_default() -> None:
    assert type(solvers.get_solver(parse(FIXED))) is solvers.SGDSolver
    assert solvers.SGDSolver.type == "SGD"
    assert solvers.REGISTRY["SGD"] is solvers.SGDSolver


def test_an_unknown_type_names_the_known_ones() -> None:
    with pytest.raises(
        SolverError, match=r"^s\.prototxt: unknown solver type 'SDG'. Did you mean 'SGD'\?.*Known types: .*SGD"
    ):
        solvers.get_solver(parse(FIXED + 'type: "SDG"'), "s.prototxt")


def test_a_type_of_caffe_that_is_not_here_yet_is_told_from_a_typing_error() -> None:
    with pytest.raises(
        SolverError, match=r"this version does not have the solver type 'AdaDelta'\. .*Known types: SGD"
    ):
        solvers.get_solver(parse(FIXED + 'type: "AdaDelta"'))


def test_a_class_takes_the_file_itself(tmp_path: Path) -> None:
    (tmp_path / "net.prototxt").write_text(SMALL_NET)
    (tmp_path / "solver.prototxt").write_text(FIXED + f'net: "{tmp_path}/net.prototxt"')
    assert solvers.SGDSolver(str(tmp_path / "solver.prototxt")).net.name == "small"


# -- nets


def test_the_solver_does_not_change_the_message_it_is_given() -> None:
    param = parse(FIXED)
    before = param.SerializeToString()
    solvers.get_solver(param, "somewhere/solver.prototxt")
    assert param.SerializeToString() == before


@pytest.mark.parametrize("fields, received", [("", "none"), ('train_net: "b" net: "a"', "net and train_net")])
def test_exactly_one_train_net_is_given(fields: str, received: str) -> None:
    with pytest.raises(
        SolverError, match=f"Expected one of net, net_param, train_net, train_net_param, received {received}"
    ):
        solvers.get_solver(parse(FIXED + fields, None))


@pytest.mark.parametrize("field", ["net_param", "train_net_param"])
def test_an_inline_train_net_is_named_in_the_log(field: str, make_solver: MakeSolver, log: Log) -> None:
    make_solver(FIXED + f"{field} {{ {SMALL_NET} }}", None)
    assert f"Creating training net specified in {field}." in log()


def test_a_net_file_is_searched_from_the_working_directory_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_solver: MakeSolver, log: Log
) -> None:
    (tmp_path / "beside").mkdir()
    (tmp_path / "beside" / "net.prototxt").write_text(SMALL_NET.replace("small", "beside"))
    (tmp_path / "net.prototxt").write_text(SMALL_NET.replace("small", "here"))
    (tmp_path / "beside" / "solver.prototxt").write_text(FIXED + 'net: "net.prototxt"')
    monkeypatch.chdir(tmp_path)
    assert make_solver(Path("beside/solver.prototxt")).net.name == "here"
    assert "Creating training net from net file: net.prototxt" in log()
    (tmp_path / "net.prototxt").unlink()
    assert make_solver(Path("beside/solver.prototxt")).net.name == "beside"
    assert matching("^net.prototxt is not there .* using beside/net.prototxt, beside beside/solver.prototxt$", log())


def test_a_path_from_another_root_is_found_by_its_name(tmp_path: Path, make_solver: MakeSolver) -> None:
    (tmp_path / "net.prototxt").write_text(SMALL_NET)
    (tmp_path / "solver.prototxt").write_text(FIXED + 'net: "examples/mnist/net.prototxt"')
    assert make_solver(tmp_path / "solver.prototxt").net.name == "small"


def test_a_net_file_that_is_nowhere_is_missing(tmp_path: Path) -> None:
    (tmp_path / "solver.prototxt").write_text(FIXED + 'net: "nowhere.prototxt"')
    with pytest.raises(MissingFileError, match=r"nowhere\.prototxt"):
        solvers.get_solver(tmp_path / "solver.prototxt")


STATES = """
name: "states" state { level: 1 stage: "net" }
layer { name: "always" type: "DummyData" top: "x" dummy_data_param { shape { dim: 1 } } }
layer { name: "level1" type: "DummyData" top: "a" dummy_data_param { shape { dim: 1 } } include { min_level: 1 } }
layer { name: "level2" type: "DummyData" top: "b" dummy_data_param { shape { dim: 1 } } include { min_level: 2 } }
layer {
  name: "given" type: "DummyData" top: "c" dummy_data_param { shape { dim: 1 } }
  include { stage: "solver" stage: "net" }
}
layer { name: "test" type: "DummyData" top: "d" dummy_data_param { shape { dim: 1 } } include { phase: TEST } }
"""


def test_the_solvers_state_goes_over_the_nets_own(make_solver: MakeSolver) -> None:
    solver = make_solver(
        FIXED + 'train_state { level: 2 stage: "solver" } test_iter: 1 test_iter: 1 test_interval: 5 '
        'test_state { level: 0 } test_state { stage: "solver" }',
        STATES,
    )
    assert solver.net.layer_names == ["always", "level1", "level2", "given"]
    assert [net.layer_names for net in solver.test_nets] == [["always", "test"], ["always", "level1", "given", "test"]]


def test_test_nets_come_in_the_order_of_the_fields(tmp_path: Path, make_solver: MakeSolver, log: Log) -> None:
    named = {name: SMALL_NET.replace("small", name) for name in ("inline", "file", "generic")}
    (tmp_path / "file.prototxt").write_text(named["file"])
    solver = make_solver(
        FIXED + "test_iter: 1 test_iter: 2 test_iter: 3 test_interval: 5 "
        f'test_net: "{tmp_path}/file.prototxt" test_net_param {{ {named["inline"]} }}',
        named["generic"],
    )
    assert [net.name for net in solver.test_nets] == ["inline", "file", "generic"]
    assert matching("^Creating test net", log()) == [
        "Creating test net (#0) specified by test_net_param",
        f"Creating test net (#1) specified by test_net file: {tmp_path}/file.prototxt",
        "Creating test net (#2) specified by net_param",
    ]


INLINE_TEST = f"test_net_param {{ {SMALL_NET} }} test_interval: 1 "


@pytest.mark.parametrize(
    "fields, net, message",
    [
        (INLINE_TEST, SMALL_NET, "test_iter must be given for each test net. Expected at least 1, received 0"),
        ("test_iter: 1 test_interval: 1 train_net: 'x'", None, "for each test net. Expected 0, received 1"),
        ("test_iter: 1 test_iter: 0 test_interval: 1", SMALL_NET, "test_iter must be at least 1. Received 1, 0"),
        (
            "test_iter: 1 test_interval: 1 test_state {} test_state {}",
            SMALL_NET,
            "test_state .* Expected 1, received 2",
        ),
        ("test_iter: 1", SMALL_NET, "test_interval must be more than 0 where there are test nets. Received 0"),
        ("average_loss: 0", SMALL_NET, "average_loss must be at least 1. Received 0"),
        ("iter_size: -1", SMALL_NET, "iter_size must be at least 1. Received -1"),
        ("display: -1", SMALL_NET, "display must not be negative. Received -1"),
        ("snapshot: 5", SMALL_NET, "snapshot is set, but snapshot_prefix is missing"),
        ("snapshot_format: HDF5", SMALL_NET, "snapshot_format HDF5 is not available"),
    ],
)
def test_settings_that_cannot_be_run_are_refused(fields: str, net: str | None, message: str) -> None:
    with pytest.raises(SolverError, match=f"^solver: .*{message}"):
        solvers.get_solver(parse(FIXED + fields, net))


def test_an_error_in_a_solver_file_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "solver.prototxt").write_text('net: "x" lr_policy: "step" base_lr: 1 gamma: 0.1')
    with pytest.raises(SolverError, match=r"/solver\.prototxt: stepsize is missing. lr_policy 'step' needs it"):
        solvers.get_solver(tmp_path / "solver.prototxt")


def test_weights_are_loaded_into_every_net(tmp_path: Path, make_solver: MakeSolver, log: Log) -> None:
    source = make_solver(FIXED)
    source.net.params["ip"][0].data[...] = 7
    source.net.save(tmp_path / "w.caffemodel")
    log()
    solver = make_solver(
        FIXED + f'weights: " {tmp_path}/w.caffemodel , {tmp_path}/w.caffemodel" test_iter: 1 test_interval: 1'
    )
    assert (solver.net.params["ip"][0].data == 7).all()
    assert (solver.test_nets[0].params["ip"][0].data == 7).all()
    assert matching("^Finetuning", log()) == [f"Finetuning from {tmp_path}/w.caffemodel"] * 4


def test_random_seed_makes_the_weights_repeatable(make_solver: MakeSolver) -> None:
    first, second, other = make_solver(FIXED), make_solver(FIXED), make_solver(FIXED.replace("seed: 3", "seed: 4"))
    weights = [solver.net.params["ip"][0].data for solver in (first, second, other)]
    assert (weights[0] == weights[1]).all()
    assert (weights[0] != weights[2]).any()


# -- the iteration


def test_smoothed_loss_is_the_mean_of_the_last_losses() -> None:
    smoothed = SmoothedLoss(3)
    seen = []
    for loss in (6, 3, 9, 0, 6, 12):
        smoothed.add(loss)
        seen.append(smoothed.value)
    assert seen == pytest.approx([6, 4.5, 6, 4, 5, 6])


def test_each_step_starts_a_new_mean(make_solver: MakeSolver) -> None:
    solver = make_solver(FIXED + "average_loss: 100")
    solver.step(3)
    solver.step(1)
    assert solver.smoothed_loss == pytest.approx(solver.net.loss(), rel=1e-6)


def test_log_of_a_run_is_caffes(tmp_path: Path, make_solver: MakeSolver, log: Log) -> None:
    solver = make_solver(
        'base_lr: 0.00001 lr_policy: "inv" gamma: 0.0001 power: 0.75 max_iter: 4 display: 2 random_seed: 3 '
        f'test_iter: 2 test_interval: 4 test_compute_loss: true snapshot: 3 snapshot_prefix: "{tmp_path}/s"'
    )
    texts = log()
    assert texts[0].startswith(
        "Initializing solver from parameters: \ntest_iter: 2\ntest_interval: 4\nbase_lr: 1e-05\n"
    )
    assert texts[-1] == "Solver scaffolding done."
    solver.solve()
    number = r"\d+(\.\d+)?(e-\d+)?"
    loss = rf"loss = {number} \(\* 1 = {number} loss\)"
    test = [rf"Test loss: {number}", rf"    Test net output #0: accuracy = {number}", f"    Test net output #1: {loss}"]
    clock = rf"\({number} iter/s, {number}s/2 iters\)"
    expected = [
        "Solving small",
        "Learning Rate Policy: inv",
        r"Iteration 0, Testing net \(#0\)",
        *test,
        rf"Iteration 0 {clock}, loss = {number}",
        f"    Train net output #0: {loss}",
        "Iteration 0, lr = 1e-05",
        rf"Iteration 2 {clock}, loss = {number}",
        f"    Train net output #0: {loss}",
        "Iteration 2, lr = 9.9985e-06",
        f"Snapshotting to binary proto file {tmp_path}/s_iter_3.caffemodel",
        f"Snapshotting solver state to binary proto file {tmp_path}/s_iter_3.solverstate",
        f"Snapshotting to binary proto file {tmp_path}/s_iter_4.caffemodel",
        f"Snapshotting solver state to binary proto file {tmp_path}/s_iter_4.solverstate",
        rf"Iteration 4, loss = {number}",
        r"Iteration 4, Testing net \(#0\)",
        *test,
        "Optimization Done.",
    ]
    texts = log()
    assert len(texts) == len(expected), texts
    for text, pattern in zip(texts, expected, strict=True):
        assert re.fullmatch(pattern, text), (text, pattern)


def test_whole_numbers_in_the_log_have_no_point(make_solver: MakeSolver, log: Log) -> None:
    make_solver(FIXED.replace("base_lr: 0.1", "base_lr: 1"))
    assert "\nbase_lr: 1\nmax_iter: 10\n" in log()[0]


def test_the_first_test_can_be_left_out(make_solver: MakeSolver, log: Log) -> None:
    solver = make_solver(FIXED + "test_iter: 1 test_interval: 2 test_initialization: false")
    solver.step(3)
    assert matching("Testing", log()) == ["Iteration 2, Testing net (#0)"]


def test_test_returns_the_mean_of_the_outputs_with_the_weights_of_now(make_solver: MakeSolver) -> None:
    solver = make_solver(FIXED + "test_iter: 3 test_interval: 2")
    solver.net.params["ip"][0].data[...] = 0
    solver.net.params["ip"][1].data[...] = (0, 0, 50)
    means = solver.test()
    assert means["accuracy"] == 0
    assert means["loss"] == pytest.approx(50)


def test_debug_info_is_printed_on_displayed_iterations_only(make_solver: MakeSolver, log: Log) -> None:
    solver = make_solver(FIXED + "display: 2 debug_info: true")
    solver.step(1)
    assert matching(r"\[Forward\]", log())
    solver.step(1)
    assert not matching(r"\[Forward\]", log())


def test_callbacks_see_each_iteration(make_solver: MakeSolver) -> None:
    solver = make_solver(FIXED)
    seen: list[Any] = []
    solver.add_callback(
        lambda: seen.append(("start", solver.iter)),
        lambda: seen.append(("ready", bool(solver.net.params["ip"][1].diff.any()))),
    )
    solver.on_iteration = lambda which: seen.append(("done", which.iter))
    solver.step(2)
    assert seen == [("start", 0), ("ready", True), ("done", 1), ("start", 1), ("ready", True), ("done", 2)]


def test_share_weights_gives_another_net_the_weights(make_solver: MakeSolver) -> None:
    first, second = make_solver(FIXED), make_solver(FIXED)
    first.share_weights(second.net)
    first.net.params["ip"][0].data[...] = 5
    assert (second.net.params["ip"][0].data == 5).all()


def test_what_cannot_teach_anything_is_warned_of(make_solver: MakeSolver, log: Log) -> None:
    make_solver(FIXED + "test_interval: 5", SMALL_NET.replace("SoftmaxWithLoss", "Silence").replace(' top: "loss"', ""))
    assert matching("^The training net has no loss", texts := log())
    assert matching("^test_interval is set, but test_iter is missing", texts)
    solver = make_solver(FIXED)
    solver.solve()
    assert not matching("^Nothing to train", log())
    solver.solve()
    assert matching("^Nothing to train: the solver is at iteration 10, max_iter 10", log())


def test_solve_needs_max_iter(make_solver: MakeSolver) -> None:
    solver = make_solver('base_lr: 1 lr_policy: "fixed"')
    with pytest.raises(SolverError, match=r"^solver: max_iter is missing. Set it to the number of iterations"):
        solver.solve()


# -- stopping


def answers(*requests: str) -> Callable[[], str]:
    rest = list(requests)
    return lambda: rest.pop(0) if rest else "none"


def test_stop_ends_training_after_the_iteration(make_solver: MakeSolver, log: Log) -> None:
    solver = make_solver(FIXED)
    solver.action = answers("none", "none", "stop")
    solver.solve()
    assert solver.iter == 3
    assert log()[-1] == "Optimization stopped early."
    solver.solve()
    assert solver.iter == 10


def test_stop_writes_a_snapshot_if_one_is_wanted_after_training(tmp_path: Path, make_solver: MakeSolver) -> None:
    solver = make_solver(FIXED.replace("snapshot_after_train: false", f'snapshot_prefix: "{tmp_path}/s"'))
    solver.action = answers("stop")
    solver.solve()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["s_iter_1.caffemodel", "s_iter_1.solverstate"]


def test_snapshot_is_written_on_request_and_training_goes_on(tmp_path: Path, make_solver: MakeSolver) -> None:
    solver = make_solver(FIXED + f'snapshot_prefix: "{tmp_path}/s"')
    solver.action = answers("none", "snapshot")
    solver.solve()
    assert solver.iter == 10
    assert sorted(file.name for file in tmp_path.iterdir()) == ["s_iter_2.caffemodel", "s_iter_2.solverstate"]


def test_requests_are_answered_between_the_passes_of_a_test(tmp_path: Path, make_solver: MakeSolver, log: Log) -> None:
    solver = make_solver(FIXED + f'test_iter: 5 test_iter: 5 test_interval: 1 snapshot_prefix: "{tmp_path}/s"')
    solver.action = answers("none", "snapshot", "none", "stop")
    solver.solve()
    assert solver.iter == 0
    assert (tmp_path / "s_iter_0.caffemodel").exists()
    assert matching("Testing|interrupted|early", log()) == [
        "Iteration 0, Testing net (#0)",
        "Test interrupted.",
        "Optimization stopped early.",
    ]


# -- a loss that is not a number


def test_a_nan_loss_is_reported_once_with_where_it_began(make_solver: MakeSolver, log: Log) -> None:
    solver = make_solver(FIXED)
    solver.step(2)
    solver.net.params["ip"][0].data[1, 2] = np.inf
    solver.step(3)
    warnings = matching("the loss is", log())
    assert len(warnings) == 1
    assert warnings[0].startswith(
        "Iteration 2: the loss is nan. In forward order, param 0 of layer 'ip' (InnerProduct) "
        "holds 0 NaN and 1 Inf among 18 values. Try a lower base_lr"
    )
    assert solver.iter == 5


def test_a_nan_input_is_found_before_what_it_spoils(make_solver: MakeSolver, log: Log) -> None:
    solver = make_solver(FIXED, SMALL_NET.replace("value: 0.5", "value: nan"))
    solver.step(1)
    assert matching("In forward order, blob 'data' of layer 'data' .DummyData. holds 24 NaN and 0 Inf among 24", log())


def test_stop_on_nan_raises_before_the_update(make_solver: MakeSolver) -> None:
    solver = make_solver(FIXED)
    solver.stop_on_nan = True
    solver.step(1)
    bias = solver.net.params["ip"][1].data
    bias[0] = np.nan
    kept = bias.copy()
    with pytest.raises(SolverError, match=r"^Iteration 1: the loss is nan.*param 1 of layer 'ip'"):
        solver.step(5)
    assert solver.iter == 1
    np.testing.assert_array_equal(solver.net.params["ip"][1].data, kept)


def test_an_infinite_loss_weight_leaves_no_blob_to_blame(make_solver: MakeSolver, log: Log) -> None:
    weighted = SMALL_NET.replace('top: "loss" }', 'top: "loss" loss_weight: inf }')
    make_solver(FIXED, weighted).step(1)
    assert matching("the loss is inf. In forward order, no param or blob holds NaN or Inf", log())


# -- snapshot_prefix


def test_a_missing_snapshot_prefix_is_the_solver_files_name(tmp_path: Path, log: Log) -> None:
    solver = solvers.get_solver(parse(FIXED), tmp_path / "lenet_solver.prototxt")
    assert solver.param.snapshot_prefix == f"{tmp_path}/lenet_solver"
    assert f"snapshot_prefix was not specified and is set to {tmp_path}/lenet_solver" in log()


def test_a_folder_as_snapshot_prefix_gets_the_solver_files_name(tmp_path: Path, log: Log) -> None:
    solver = solvers.get_solver(parse(FIXED + f'snapshot_prefix: "{tmp_path}"'), "lenet_solver.prototxt")
    assert solver.param.snapshot_prefix == f"{tmp_path}/lenet_solver"
    assert f"snapshot_prefix was a directory and is replaced to {tmp_path}/lenet_solver" in log()


def test_a_prefix_longer_than_a_name_may_be_is_refused() -> None:
    prefix = "x" * 300
    with pytest.raises(FileAccessError, match=r"snapshot prefix 'x+' cannot be written: File name too long"):
        solvers.get_solver(parse(FIXED + f'snapshot: 5 snapshot_prefix: "{prefix}"'), "solver.prototxt")


def test_a_prefix_that_cannot_be_written_is_found_before_training(tmp_path: Path, make_solver: MakeSolver) -> None:
    prefix = f'snapshot_prefix: "{tmp_path}/missing/s"'
    with pytest.raises(FileAccessError, match=r"missing/s' cannot be written.*does not exist"):
        make_solver(FIXED + "snapshot: 5 " + prefix)
    solver = make_solver(FIXED.replace("snapshot_after_train: false", prefix))
    with pytest.raises(FileAccessError, match=r"missing/s' cannot be written.*does not exist"):
        solver.solve()
    assert solver.iter == 0
