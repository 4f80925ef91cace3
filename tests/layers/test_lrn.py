"""LRN against the original, a float64 definition, difference quotients and a row drawn by hand."""

from __future__ import annotations

import numpy as np
import pytest
from google.protobuf import text_format

from caffe_lite.errors import NetError, ShapeError
from caffe_lite.net import Net
from caffe_lite.proto import caffe_pb2

from .harness import Array, assert_close, check_layer, check_reference, random, reference_names, run_layer


def lrn(options: str) -> str:
    return f'type: "LRN" lrn_param {{ {options} }}'


def near(at: int, local_size: int, length: int) -> list[int]:
    return [i for i in range(length) if abs(i - at) <= local_size // 2]


def define(local_size=5, alpha=1.0, beta=0.75, k=1.0, within=False):
    """Return the definition of the layer for `check_layer`: one sum an element."""

    def definition(bottoms: list[Array], params: list[Array]) -> list[Array]:
        x = bottoms[0]
        _, channels, height, width = x.shape
        top = np.empty_like(x)
        for n, c, h, w in np.ndindex(x.shape):
            if within:
                window = x[n, c][np.ix_(near(h, local_size, height), near(w, local_size, width))]
            else:
                window = x[n, near(c, local_size, channels), h, w]
            share = alpha / local_size ** (2 if within else 1)
            top[n, c, h, w] = x[n, c, h, w] / (k + share * (window**2).sum()) ** beta
        return [top]

    return definition


# local_size, alpha, beta, k: alpha is large, so that a wrong window shows
SETTINGS = {
    "the defaults": (5, 1.0, 0.75, 1.0),
    "another exponent": (3, 0.5, 0.6, 2.0),
    "square root": (5, 2.0, 0.5, 0.5),
    "a negative exponent": (3, 0.5, -0.5, 1.0),
    "no window": (1, 0.5, 0.75, 1.0),
    "a wide window": (9, 0.7, 0.75, 1.5),
    "a window larger than the blob": (1001, 90.0, 0.75, 1.0),
}
SHAPES = [(2, 7, 3, 5), (1, 4, 17, 16), (3, 1, 2, 9), (1, 6, 1, 1), (2, 2, 5, 1)]


@pytest.mark.parametrize("name", reference_names("LRN"))
def test_agrees_with_the_original(name):
    check_reference(name)


@pytest.mark.parametrize("region", ["ACROSS_CHANNELS", "WITHIN_CHANNEL"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("setting", SETTINGS)
def test_forward_agrees_with_the_definition_and_backward_with_difference_quotients(setting, shape, region):
    local_size, alpha, beta, k = SETTINGS[setting]
    options = f"local_size: {local_size} alpha: {alpha} beta: {beta} k: {k} norm_region: {region}"
    within = region == "WITHIN_CHANNEL"
    definition = define(local_size, alpha, beta, 1.0 if within else k, within)
    check_layer(lrn(options), [random(1, *shape, scale=1.5)], definition)


def test_positions_beyond_a_tile_are_reached():
    check_layer(lrn("local_size: 3 alpha: 0.5"), [random(2, 1, 4, 19, 31)], define(3, 0.5))
    options = "local_size: 3 alpha: 0.5 norm_region: WITHIN_CHANNEL"
    check_layer(lrn(options), [random(2, 1, 2, 3, 300)], define(3, 0.5, within=True))


def test_a_row_of_channels_by_hand():
    # squares 1 4 9 | sums of three 5 14 13 | alpha / 3 = 1, k 0, beta 1: 1/5 2/14 3/13
    x = np.array([1, 2, 3], np.float32).reshape(1, 3, 1, 1)
    run = run_layer(lrn("local_size: 3 alpha: 3 beta: 1 k: 0"), [x])
    assert_close(run.tops[0].ravel(), [1 / 5, 2 / 14, 3 / 13], "top")
    # the way back of a diff at the middle: scale 14, dx = [0 1 0] / 14 - 2 x * 2 / 14²
    bottom_diff = run.backward([np.array([0, 1, 0], np.float32).reshape(1, 3, 1, 1)])[0][0]
    assert_close(bottom_diff.ravel(), [-4 / 196, 1 / 14 - 8 / 196, -12 / 196], "diff of the bottom")


@pytest.mark.parametrize("region", ["ACROSS_CHANNELS", "WITHIN_CHANNEL"])
def test_a_large_element_leaves_no_rounding_behind_in_windows_that_do_not_hold_it(region):
    x = random(3, 1, 9, 9, 9)
    alone = run_layer(lrn(f"local_size: 3 norm_region: {region}"), [x])
    dy = random(4, 1, 9, 9, 9)
    expected = alone.tops[0], alone.backward([dy])[0][0]
    x[0, 2, 2, 2] = 1e6
    run = run_layer(lrn(f"local_size: 3 norm_region: {region}"), [x])
    for actual, wanted in zip((run.tops[0], run.backward([dy])[0][0]), expected, strict=True):
        assert_close(actual[:, 5:, 5:, 5:], wanted[:, 5:, 5:, 5:], "far from the large element", "exact")


@pytest.mark.parametrize("region", ["ACROSS_CHANNELS", "WITHIN_CHANNEL"])
def test_a_nan_spoils_the_windows_that_hold_it_and_no_others(region):
    x = random(5, 1, 5, 5, 5)
    x[0, 0, 0, 0] = np.nan
    top = run_layer(lrn(f"local_size: 3 norm_region: {region}"), [x]).tops[0]
    spoiled = [(0, 0, 0), (1, 0, 0)] if region == "ACROSS_CHANNELS" else [(0, h, w) for h in (0, 1) for w in (0, 1)]
    assert [tuple(at) for at in np.argwhere(np.isnan(top[0])).tolist()] == spoiled


@pytest.mark.parametrize("region", ["ACROSS_CHANNELS", "WITHIN_CHANNEL"])
def test_backward_does_not_read_the_top_which_later_layers_may_overwrite(region):
    x, dy = random(6, 2, 4, 3, 5), random(7, 2, 4, 3, 5)
    run = run_layer(lrn(f"norm_region: {region}"), [x])
    expected = run.backward([dy])[0][0]
    run.top[0].data[...] = np.nan
    run.layer.backward(run.top, [True], run.bottom)
    assert_close(run.bottom[0].diff, expected, "diff of the bottom", "exact")


def test_no_gradient_is_computed_for_a_bottom_that_wants_none():
    run = run_layer(lrn(""), [random(8, 1, 2, 3, 3)])
    run.backward(propagate_down=[False])
    assert np.isnan(run.bottom[0].diff).all()


@pytest.mark.parametrize("local_size", [0, 4])
def test_a_window_without_a_middle_is_an_error(local_size):
    with pytest.raises(
        NetError, match=f"local_size must be odd, so that the window has a middle. Received {local_size}"
    ):
        run_layer(lrn(f"local_size: {local_size}"), [random(9, 1, 2, 3, 3)])


def test_a_bottom_without_four_axes_is_an_error():
    with pytest.raises(
        ShapeError, match=r"four axes \(num, channels, height, width\), received 'bottom_0' \(2, 6, 6\)"
    ):
        run_layer(lrn(""), [random(10, 2, 6, 6)])


def test_in_place_is_an_error():
    text = """
        layer { name: "in" type: "Input" top: "x" input_param { shape { dim: 1 dim: 2 dim: 3 dim: 3 } } }
        layer { name: "norm" type: "LRN" bottom: "x" top: "x" }
    """
    with pytest.raises(
        NetError, match=r"'norm' \(LRN\): top 'x' is also the bottom, but this layer does not work in pl"
    ):
        Net.from_param(text_format.Parse(text, caffe_pb2.NetParameter()))
