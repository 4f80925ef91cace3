"""PReLU."""

from __future__ import annotations

import re

import numpy as np
import pytest

from caffe_lite.errors import ShapeError

from .harness import (
    assert_close,
    check_gradient,
    check_layer,
    check_reference,
    distinct,
    random,
    reference_names,
    run_layer,
)

OWN, SHARED = 'type: "PReLU"', 'type: "PReLU" prelu_param { channel_shared: true }'


@pytest.mark.parametrize("name", reference_names("PReLU"))
def test_agrees_with_the_original(name: str) -> None:
    check_reference(name)


def defined(bottoms: list[np.ndarray], params: list[np.ndarray]) -> list[np.ndarray]:
    """The definition, one element at a time."""
    y = bottoms[0].copy()
    for index in np.ndindex(*y.shape):
        slope = params[0][()] if params[0].shape == () else params[0][index[1]]
        y[index] = max(y[index], 0) + slope * min(y[index], 0)
    return [y]


SHAPES = [(2, 3, 5, 7), (3, 4), (1, 33), (5, 1), (4, 3, 1, 1), (1, 1, 1, 1), (2, 17, 3), (2, 3, 2, 2, 3)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("text", [OWN, SHARED])
def test_prelu_follows_its_definition(text: str, shape: tuple[int, ...]) -> None:
    slopes = np.linspace(-0.6, 1.4, 1 if text == SHARED else shape[1], dtype=np.float32)
    slopes = slopes.reshape(()) if text == SHARED else slopes
    x = distinct(1, *shape)
    check_layer(text, [x], defined, params=[slopes])
    check_gradient(text, [x], params=[slopes], in_place=True)


def test_prelu_starts_at_a_quarter_unless_a_filler_says_otherwise() -> None:
    assert_close(run_layer(OWN, [random(1, 2, 3)]).params[0], [0.25, 0.25, 0.25], "slopes", "exact")
    assert_close(run_layer(SHARED, [random(1, 2, 3)]).params[0], 0.25, "slope", "exact")
    filled = 'type: "PReLU" prelu_param { filler { type: "uniform" min: 2 max: 3 } }'
    slopes = run_layer(filled, [random(1, 2, 50)]).params[0]
    assert slopes.min() >= 2 and slopes.max() <= 3 and np.unique(slopes).size > 40


def test_prelu_at_zero_passes_the_slope() -> None:
    run = run_layer(OWN, [np.zeros((1, 2), np.float32)], params=[np.array([0.5, -2], np.float32)])
    assert_close(run.backward([np.ones((1, 2))])[0][0], [[0.5, -2]], "diff", "exact")


@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 4)])
def test_prelu_shows_nan_and_keeps_it_to_its_channel(shape: tuple[int, ...]) -> None:
    x = random(1, *shape)
    x[1, 2] = np.nan
    run = run_layer(OWN, [x])
    assert np.isnan(run.tops[0][1, 2]).all() and np.isnan(run.tops[0]).sum() == np.isnan(x).sum()
    np.testing.assert_array_equal(np.isnan(run.backward()[1][0]), [False, False, True])


@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 4)])
def test_prelu_computes_only_the_gradients_that_are_wanted(shape: tuple[int, ...]) -> None:
    run = run_layer(OWN, [random(1, *shape)])
    run.bottom[0].diff[...] = run.layer.blobs[0].diff[...] = 7
    run.layer.param_propagate_down[0] = False
    run.layer.backward(run.top, [False], run.bottom)
    assert (run.bottom[0].diff == 7).all() and (run.layer.blobs[0].diff == 7).all()


def test_prelu_works_after_reshapes_between_channels_with_and_without_positions() -> None:
    for in_place in (False, True):
        run = run_layer(OWN, [random(1, 3, 4)], params=[np.array([0.1, 0.2, 0.3, 0.4], np.float32)], in_place=in_place)
        for shape in ((2, 4, 5), (6, 4), (1, 4, 3, 3)):
            x, diff = distinct(3, *shape), random(4, *shape)
            assert_close(run.reshape(x)[0], defined([x], run.params)[0], "top")
            bottom_diffs, param_diffs = run.backward([diff])
            slopes = run.params[0].reshape(1, 4, *[1] * (len(shape) - 2))
            assert_close(bottom_diffs[0], diff * np.where(x > 0, 1, slopes), "diff")
            others = tuple(axis for axis in range(len(shape)) if axis != 1)
            assert_close(param_diffs[0], (diff * np.minimum(x, 0)).sum(axis=others), "diff of the slopes")


def test_prelu_refuses_a_bottom_without_channels() -> None:
    message = re.escape("must have a channel axis. Expected at least 2 axes, received 'bottom_0' (4,).")
    with pytest.raises(ShapeError, match=message):
        run_layer(OWN, [random(1, 4)])
    run = run_layer(OWN, [random(1, 3, 4)])
    with pytest.raises(ShapeError, match=message):
        run.reshape(random(1, 4))


def test_prelu_refuses_another_number_of_channels_than_it_has_slopes_for() -> None:
    run = run_layer(OWN, [random(1, 3, 4)])
    message = re.escape(
        "fit the channels of bottom 'bottom_0' (3, 5). Expected 5, received shape (4,). Give the bottom"
    )
    with pytest.raises(ShapeError, match=message):
        run.reshape(random(1, 3, 5))
    blobs = "blobs { shape { dim: 2 } data: [0.1, 0.2] }"
    message = re.escape(
        "the slopes do not fit channel_shared of bottom 'bottom_0' (3, 2). Expected 1, received shape (2,)."
    )
    with pytest.raises(ShapeError, match=message):
        run_layer(f"{SHARED} {blobs}", [random(1, 3, 2)])


def test_prelu_takes_its_slopes_from_the_prototxt() -> None:
    run = run_layer(f"{OWN} blobs {{ shape {{ dim: 2 }} data: [0.5, 2] }}", [-np.ones((1, 2), np.float32)])
    assert_close(run.tops[0], [[-0.5, -2]], "top", "exact")
