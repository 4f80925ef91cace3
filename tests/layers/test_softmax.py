"""Softmax."""

from __future__ import annotations

import numpy as np
import pytest

from caffe_lite.errors import ShapeError
from caffe_lite.layers.softmax import TILE, Extents

from .harness import Definition, assert_close, check_layer, check_reference, random, reference_names, run_layer


def softmax(x: np.ndarray, axis: int) -> np.ndarray:
    """The definition, one position at a time."""
    moved = np.moveaxis(np.asarray(x, np.float64), axis, -1)
    result = np.empty_like(moved)
    for position in np.ndindex(moved.shape[:-1]):
        e = np.exp(moved[position] - moved[position].max())
        result[position] = e / e.sum()
    return np.moveaxis(result, -1, axis)


def defined(axis: int) -> Definition:
    return lambda bottoms, params: [softmax(bottoms[0], axis)]


@pytest.mark.parametrize("name", reference_names("Softmax"))
def test_agrees_with_the_original(name: str) -> None:
    check_reference(name)


@pytest.mark.parametrize(
    ("shape", "axis"),
    [
        ((5, 10), 1),
        ((3, 1), 1),
        ((2, 1003), 1),
        ((7,), 0),
        ((4, 3), 0),
        ((2, 3, 5, 7), 1),
        ((2, 3, 4, 5), 2),
        ((2, 3, 4, 5), -1),
        ((2, 3, 4, 5), -4),
        ((2, 1, 3, 3), 1),
    ],
)
def test_softmax_follows_its_definition_on_any_axis(shape: tuple[int, ...], axis: int) -> None:
    text = f'type: "Softmax" softmax_param {{ axis: {axis} }}'
    batch_axis = None if axis in (0, -4) or len(shape) == 1 else 0
    check_layer(text, [random(1, *shape, scale=2.0)], defined(axis), batch_axis=batch_axis)


@pytest.mark.parametrize("inner", [TILE - 1, TILE, TILE + 1, 2 * TILE + 3])
def test_spatial_softmax_is_right_at_the_edges_of_its_tiles(inner: int) -> None:
    x = random(2, 2, 3, inner, scale=3.0)
    check_layer('type: "Softmax"', [x], defined(1), gradient=False)
    run, diff = run_layer('type: "Softmax"', [x]), random(3, 2, 3, inner)
    y = softmax(x, 1)
    assert_close(run.backward([diff])[0][0], y * (diff - (diff * y).sum(axis=1, keepdims=True)), "diff")


@pytest.mark.parametrize("inner", [1, 2])
@pytest.mark.parametrize("largest", [0, 1, 2])
def test_softmax_survives_scores_that_would_overflow_wherever_the_largest_is(largest: int, inner: int) -> None:
    row = np.roll(np.array([1000, 999, -1000], np.float32), largest)
    scores = np.tile(row[None, :, None], (2, 1, inner))
    assert_close(run_layer('type: "Softmax"', [scores]).tops[0], softmax(scores, 1), "top")


@pytest.mark.parametrize("inner", [1, 64])
def test_softmax_is_exact_to_a_few_units_in_the_last_place_down_to_the_smallest_floats(inner: int) -> None:
    below = np.linspace(0, 86.5, 4001, dtype=np.float32)
    scores = np.zeros((len(below), 2, inner), np.float32)
    scores[:, 1] = -below[:, None]
    top = run_layer('type: "Softmax"', [scores]).tops[0]
    expected = np.exp(-below.astype(np.float64)) / (1 + np.exp(-below.astype(np.float64)))
    np.testing.assert_allclose(top[:, 1], np.repeat(expected[:, None], inner, axis=1), rtol=5e-7)
    scores[:, 1] = -95 - below[:, None]
    assert run_layer('type: "Softmax"', [scores]).tops[0][:, 1].max() < np.finfo(np.float32).tiny


@pytest.mark.parametrize("shape", [(3, 4), (3, 50), (3, 4, 2), (3, 4, 50)])
def test_softmax_shows_nan_and_keeps_it_to_its_position(shape: tuple[int, ...]) -> None:
    x = random(3, *shape)
    for bad, channel in ((np.nan, 0), (np.nan, 2), (np.inf, 1)):
        scores = x.copy()
        scores[1, channel] = bad
        top = run_layer('type: "Softmax"', [scores]).tops[0]
        assert np.isnan(top[1]).all()
        assert np.isfinite(top[[0, 2]]).all()


def test_softmax_refuses_an_axis_that_is_not_there() -> None:
    with pytest.raises(ShapeError, match=r"axis 2 does not exist. Expected -2 to 1 for bottom 'bottom_0' \(3, 4\)"):
        run_layer('type: "Softmax" softmax_param { axis: 2 }', [random(1, 3, 4)])


def test_softmax_works_after_reshapes_between_rows_and_planes() -> None:
    run = run_layer('type: "Softmax"', [random(1, 3, 4)])
    for i, shape in enumerate([(2, 3, 5), (2, 3, 6), (5, 2), (2, 3, 5, 1), (1, 7, 2, 2)]):
        x, diff = random(i, *shape), random(i + 10, *shape)
        y = softmax(x, 1)
        assert_close(run.reshape(x)[0], y, "top")
        assert_close(run.backward([diff])[0][0], y * (diff - (diff * y).sum(axis=1, keepdims=True)), "diff")


def test_extents_split_a_shape_around_an_axis() -> None:
    assert Extents.around(1, (2, 3, 5, 7)) == (2, 3, 35)
    assert Extents.around(0, (2,)) == (1, 2, 1)
    assert Extents(2, 3, 35).positions == 70
