"""LSTMUnit against the original, a float64 definition and difference quotients."""

from __future__ import annotations

import math

import numpy as np
import pytest

from caffe_lite.errors import NetError, ShapeError

from .harness import Array, check_gradient, check_layer, check_reference, random, reference_names, run_layer

UNIT = 'type: "LSTMUnit"'


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def lstm_step(gates: Array, c: Array, cont: Array) -> tuple[Array, Array]:
    """Return c and h of one step; `cont` is a column."""
    i, f, o, g = np.split(gates, 4, axis=-1)
    c = cont * sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    return c, sigmoid(o) * np.tanh(c)


@pytest.mark.parametrize("name", reference_names("LSTMUnit"))
def test_agrees_with_the_original(name: str) -> None:
    check_reference(name)


def unit_bottoms(streams: int, width: int) -> list[Array]:
    cont = np.resize(np.array([1, 0, 0.5], np.float32), (1, streams))
    return [random(11, 1, streams, width), random(12, 1, streams, 4 * width), cont]


@pytest.mark.parametrize(("streams", "width"), [(3, 4), (1, 1), (5, 13), (2, 33)])
def test_a_unit_is_one_step_of_an_lstm(streams: int, width: int) -> None:
    def definition(bottoms: list[Array], params: list[Array]) -> list[Array]:
        c, h = lstm_step(bottoms[1][0], bottoms[0][0], bottoms[2][0][:, None])
        return [c[None], h[None]]

    check_layer(UNIT, unit_bottoms(streams, width), definition, batch_axis=1)


@pytest.mark.parametrize("tops", [[0], [1]], ids=["cell", "hidden"])
def test_a_units_gradients_come_from_either_top(tops: list[int]) -> None:
    check_gradient(UNIT, unit_bottoms(3, 5), tops=tops)


def test_a_unit_without_a_bottom_to_propagate_to_computes_nothing() -> None:
    run = run_layer(UNIT, unit_bottoms(3, 5))
    run.backward(propagate_down=[False, False, False])
    assert np.isnan(run.bottom[0].diff).all()


def test_gates_far_out_saturate() -> None:
    bottoms = [np.full((1, 2, 1), 3, np.float32), np.zeros((1, 2, 4), np.float32), np.ones((1, 2), np.float32)]
    bottoms[1][0] = [[1e4, 1e4, 1e4, -1e4], [-1e4, -1e4, -1e4, 1e4]]
    cell, hidden = run_layer(UNIT, bottoms).tops
    assert cell.ravel().tolist() == [2, 0]
    assert hidden.ravel() == pytest.approx([math.tanh(2), 0])


def test_indicators_have_no_gradient() -> None:
    run = run_layer(UNIT, unit_bottoms(2, 3))
    assert [run.layer.allow_force_backward(i) for i in range(3)] == [True, True, False]
    with pytest.raises(NetError, match=r"the continuation indicators have no gradient. Set propagate_down: false"):
        run.backward(propagate_down=[True, True, True])


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (
            [(2, 3, 4), (1, 3, 16), (1, 3)],
            r"c_prev must have shape \(1, streams, width\). Received 'bottom_0' \(2, 3, 4\)",
        ),
        ([(3, 4), (1, 3, 16), (1, 3)], r"c_prev must have shape \(1, streams, width\). Received 'bottom_0' \(3, 4\)"),
        ([(1, 3, 4), (1, 3, 12), (1, 3)], r"gates' input does .* shape \(1, 3, 16\), received 'bottom_1' \(1, 3, 12\)"),
        (
            [(1, 3, 4), (1, 3, 16), (3,)],
            r"cont does not fit .*\(1, 3, 4\). Expected shape \(1, 3\), received 'bottom_2' \(3,\)",
        ),
    ],
)
def test_a_units_bottoms_must_be_one_step(shapes: list[tuple[int, ...]], message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        run_layer(UNIT, [np.zeros(shape) for shape in shapes])
