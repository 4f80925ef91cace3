"""SGD's update against an independent definition in float64, and against the original's recorded runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from caffe_lite import solvers
from caffe_lite.errors import SolverError

from .conftest import MakeSolver, parse
from .mlp import MlpRun

RECORDED = ("fixed", "step", "exp", "inv", "multistep", "poly", "sigmoid", "clip", "iter_size", "l1")

# Params of 300 (two rows), 2, 6 and 3 elements, with all the factors that a prototxt can give.
NET = """
name: "factors"
layer {
  name: "data" type: "DummyData" top: "data" top: "label"
  dummy_data_param { shape { dim: 2 dim: 150 } shape { dim: 2 } }
}
layer {
  name: "ip1" type: "InnerProduct" bottom: "data" top: "ip1"
  param { lr_mult: 0.5 decay_mult: 2 } param { lr_mult: 2 decay_mult: 0 }
  inner_product_param { num_output: 2 weight_filler { type: "gaussian" std: 1 } bias_filler { type: "uniform" } }
}
layer {
  name: "ip2" type: "InnerProduct" bottom: "ip1" top: "ip2"
  param { lr_mult: 0 decay_mult: 1 } param { decay_mult: 0.5 }
  inner_product_param { num_output: 3 weight_filler { type: "gaussian" std: 1 } bias_filler { type: "uniform" } }
}
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip2" bottom: "label" top: "loss" }
"""
LR_MULT = (0.5, 2.0, 0.0, 1.0)
DECAY_MULT = (2.0, 0.0, 1.0, 0.5)
BASE = 'lr_policy: "exp" gamma: 0.5 base_lr: 0.2 random_seed: 7 '

Arrays = list[NDArray[np.float64]]


@dataclasses.dataclass
class Definition:
    """The update as the documentation has it, in float64: one array a param."""

    momentum: float = 0.0
    weight_decay: float = 0.0
    l1: bool = False
    iter_size: int = 1
    limit: float = -1.0
    history: Arrays = dataclasses.field(default_factory=list)

    def update(self, weights: Arrays, gradients: Arrays, rate: float) -> Arrays:
        """Return what is to be taken off the weights."""
        norm = np.sqrt(sum((gradient**2).sum() for gradient in gradients))
        if 0 <= self.limit < norm:
            gradients = [gradient * self.limit / norm for gradient in gradients]
        self.history = self.history or [np.zeros_like(weight) for weight in weights]
        for index, (weight, gradient) in enumerate(zip(weights, gradients, strict=True)):
            penalty = np.sign(weight) if self.l1 else weight
            total = gradient / self.iter_size + self.weight_decay * DECAY_MULT[index] * penalty
            self.history[index] = self.momentum * self.history[index] + rate * LR_MULT[index] * total
        return self.history


CASES = {
    "plain": ("", Definition()),
    "momentum": ("momentum: 0.9", Definition(momentum=0.9)),
    "l2": ("momentum: 0.5 weight_decay: 0.1", Definition(momentum=0.5, weight_decay=0.1)),
    "l1": ('weight_decay: 0.1 regularization_type: "L1"', Definition(weight_decay=0.1, l1=True)),
    "clip": ("clip_gradients: 0.7 momentum: 0.3", Definition(limit=0.7, momentum=0.3)),
    "not clipped": ("clip_gradients: 1000", Definition(limit=1000)),
    "all": (
        'clip_gradients: 9 momentum: 0.6 weight_decay: 0.2 regularization_type: "L1" iter_size: 3',
        Definition(limit=9, momentum=0.6, weight_decay=0.2, l1=True, iter_size=3),
    ),
    "iter_size": (
        "iter_size: 4 weight_decay: 0.3 clip_gradients: 2",
        Definition(iter_size=4, weight_decay=0.3, limit=2),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_update_follows_its_definition(case: str, make_solver: MakeSolver) -> None:
    text, definition = CASES[case]
    solver = make_solver(BASE + text, NET)
    blobs = solver.net.parameters.blobs
    generator = np.random.default_rng(5)
    blobs[1].data[0] = 0.0  # L1 has no direction to pull a zero in
    for iteration in range(4):
        gradients = [np.float32(generator.standard_normal(blob.shape)) for blob in blobs]
        weights = [np.float64(blob.data) for blob in blobs]
        for blob, gradient in zip(blobs, gradients, strict=True):
            blob.diff[...] = gradient
        solver.apply_update()
        updates = definition.update(weights, [np.float64(gradient) for gradient in gradients], 0.2 * 0.5**iteration)
        for blob, weight, update in zip(blobs, weights, updates, strict=True):
            np.testing.assert_allclose(blob.diff, update, rtol=2e-6, atol=1e-6, err_msg=blob.name)
            np.testing.assert_allclose(blob.data, weight - update, rtol=2e-6, atol=2e-6, err_msg=blob.name)
    assert solver.iter == 4


def test_gaps_between_params_stay_zero(make_solver: MakeSolver) -> None:
    solver = make_solver(BASE + "momentum: 0.9 weight_decay: 0.5 clip_gradients: 0.1", NET)
    parameters = solver.net.parameters
    is_gap = np.ones(parameters.data.size, bool)
    for offset, blob in zip(parameters.offsets, parameters.blobs, strict=True):
        is_gap[offset : offset + blob.count] = False
        blob.diff[...] = 1
    for _ in range(3):
        solver.apply_update()
    for buffer in (parameters.data, parameters.diff, solver.history.buffer):
        assert not solver.net.device.download(buffer)[is_gap].any()


def test_updates_repeat_bit_for_bit(make_solver: MakeSolver) -> None:
    runs = []
    for _ in range(2):
        solver = make_solver(BASE + "momentum: 0.9 weight_decay: 0.5 clip_gradients: 0.1", NET)
        solver.step(5)
        runs.append([blob.data.tobytes() for blob in solver.net.parameters.blobs])
    assert runs[0] == runs[1]


def test_settings_changed_between_iterations_take_effect(make_solver: MakeSolver) -> None:
    solver = make_solver('lr_policy: "fixed" base_lr: 1 clip_gradients: 0.5', NET)
    blob = solver.net.parameters.blobs[3]

    def update() -> float:
        blob.diff[...] = (3, 0, 4)
        solver.apply_update()
        return float(blob.diff[0])

    assert update() == pytest.approx(0.3)
    solver.param.clip_gradients = -1
    assert update() == pytest.approx(3)
    solver.param.momentum = 0.5
    assert update() == pytest.approx(4.5)
    solver.param.base_lr = 0.1
    assert update() == pytest.approx(2.55)


def test_a_net_that_shares_other_weights_updates_those(make_solver: MakeSolver) -> None:
    first, second = make_solver(BASE, NET), make_solver(BASE, NET)
    first.apply_update()
    first.net.share_with(second.net)
    before = second.net.params["ip2"][1].data.copy()
    first.net.params["ip2"][1].diff[...] = 1
    first.apply_update()
    np.testing.assert_allclose(second.net.params["ip2"][1].data, before - 0.1, rtol=1e-6)


def test_params_that_left_the_flat_buffer_are_updated_where_they_are(make_solver: MakeSolver) -> None:
    settings = BASE + "momentum: 0.9 weight_decay: 0.1 clip_gradients: 0.5"
    whole, mixed = make_solver(settings, NET), make_solver(settings, NET)
    # The other net has a layer more, and ip1 under another name: ip2 alone is shared.
    other = make_solver(BASE, NET.replace('"ip1"', '"first"')).net
    for solver in (whole, mixed):
        solver.apply_update()
    mixed.net.share_with(other)
    assert mixed.net.params["ip2"][1].data_buffer.pointer == other.params["ip2"][1].data_buffer.pointer
    for ours, theirs in zip(whole.net.params["ip2"], other.params["ip2"], strict=True):
        ours.data[...] = theirs.data
    for _ in range(3):
        for solver in (whole, mixed):
            for blob in solver.net.parameters.blobs:
                blob.diff[...] = 1
            solver.apply_update()
    for expected, blob in zip(whole.net.parameters.blobs, mixed.net.parameters.blobs, strict=True):
        np.testing.assert_array_equal(blob.data, expected.data)
    np.testing.assert_array_equal(other.params["ip2"][1].data, whole.net.params["ip2"][1].data)


def test_clipping_is_logged_when_it_happens(make_solver: MakeSolver, log: Callable[[], list[str]]) -> None:
    solver = make_solver('lr_policy: "fixed" base_lr: 1 clip_gradients: 4', NET)
    blob = solver.net.parameters.blobs[3]
    log()
    blob.diff[...] = (3, 0, 4)
    solver.apply_update()
    assert log() == ["Gradient clipping: scaling down gradients (L2 norm 5 > 4) by scale factor 0.8"]
    solver.net.clear_param_diffs()
    blob.diff[...] = (3, 0, 0)
    solver.apply_update()
    assert log() == []


def test_a_gradient_that_is_not_a_number_is_not_hidden_by_clipping(make_solver: MakeSolver) -> None:
    solver = make_solver('lr_policy: "fixed" base_lr: 1 clip_gradients: 4', NET)
    blob = solver.net.parameters.blobs[3]
    blob.diff[...] = (np.nan, 1, 2)
    solver.apply_update()
    assert np.isnan(blob.data).tolist() == [True, False, False]


def test_iter_size_averages_the_gradients_of_its_passes(make_solver: MakeSolver) -> None:
    once, thrice = make_solver(BASE), make_solver(BASE + "iter_size: 3")
    once.step(2)
    thrice.step(2)  # the small net's data is constant: three passes see what one sees
    for one, three in zip(once.net.parameters.blobs, thrice.net.parameters.blobs, strict=True):
        np.testing.assert_allclose(three.data, one.data, rtol=1e-5, atol=1e-6)


def test_lr_is_the_rate_of_the_present_iteration(make_solver: MakeSolver) -> None:
    solver = make_solver(BASE)
    solver.step(2)
    assert solver.lr == pytest.approx(0.05)


def test_an_unknown_regularization_names_the_known_ones() -> None:
    param = parse('base_lr: 1 lr_policy: "fixed" regularization_type: "l2"')
    with pytest.raises(
        SolverError, match=r"unknown regularization_type 'l2'. Did you mean 'L2'.* Expected one of L2, L1"
    ):
        solvers.get_solver(param)


@pytest.mark.parametrize("case", RECORDED)
def test_recorded_run_of_the_original_is_followed(case: str) -> None:
    run = MlpRun(case)
    np.testing.assert_allclose(run.iterate(30), run.recorded["loss"], rtol=1e-4)
    for blob in run.solver.net.parameters.blobs:
        expected = run.recorded["final_" + blob.name.replace("/", "_")]
        np.testing.assert_allclose(blob.data, expected, rtol=0, atol=1e-5 + 1e-4 * np.abs(expected).max())
