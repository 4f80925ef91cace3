"""Bias and Scale against the original, a float64 definition and difference quotients."""

from __future__ import annotations

import math

import numpy as np
import pytest

from caffe_lite.errors import NetError, ShapeError
from caffe_lite.layers.scale import CHUNK, LONGEST_ROW, TILE, Spread

from .harness import TEST, Array, assert_close, check_layer, check_reference, random, reference_names, run_layer

FILLER = 'filler { type: "gaussian" std: 1 }'
BIAS_FILLER = 'bias_filler { type: "gaussian" std: 1 }'
SHAPE = (2, 5, 4, 3)
# options, the bottom's shape, where the operand's axes begin and end
SPANS = [
    ("", SHAPE, 1, 2),
    ("axis: -3", SHAPE, 1, 2),
    ("axis: 0", SHAPE, 0, 1),
    ("axis: 0 num_axes: 2", SHAPE, 0, 2),
    ("num_axes: 2", SHAPE, 1, 3),
    ("num_axes: -1", SHAPE, 1, 4),
    ("axis: 0 num_axes: -1", SHAPE, 0, 4),
    ("axis: -1", SHAPE, 3, 4),
    ("axis: 2 num_axes: 1", SHAPE, 2, 3),
    ("num_axes: 0", SHAPE, 1, 1),
    ("", (3, 7), 1, 2),
    ("axis: 0 num_axes: 0", (1,), 0, 0),
    ("", (1, 1, 1, 1), 1, 2),
    ("", (1, 3, 13, 17), 1, 2),
    ("", (2, 1, 1, 5), 1, 2),
    ("num_axes: 0", (3, 4, 512), 1, 1),  # one row of 6144: cut
    ("axis: 0 num_axes: -1", (3, 4, 512), 0, 3),
    ("", (CHUNK + 3, TILE + 5), 1, 2),  # several chunks of items, several tiles of channels
    ("axis: 0 num_axes: 0", (5003,), 0, 0),  # a prime longer than LONGEST_ROW: one row after all
]


def bias(options: str = "") -> str:
    return f'type: "Bias" bias_param {{ {options} {FILLER} }}'


def scale(options: str = "") -> str:
    return f'type: "Scale" scale_param {{ {options} {FILLER} {BIAS_FILLER} }}'


def spread(operand: Array, axes: int, begin: int) -> Array:
    """Return `operand` with axes of length 1 around it, so that numpy repeats it along the other axes."""
    return operand.reshape(*[1] * begin, *operand.shape, *[1] * (axes - begin - operand.ndim))


def define(begin: int, has_scale: bool, has_bias: bool):
    """Return the definition; the operands are the params, or the second bottom and the params."""

    def definition(bottoms: list[Array], params: list[Array]) -> list[Array]:
        y, operands = bottoms[0], [*bottoms[1:], *params]
        if has_scale:
            y = y * spread(operands.pop(0), y.ndim, begin)
        if has_bias:
            y = y + spread(operands.pop(0), y.ndim, begin)
        return [y]

    return definition


@pytest.mark.parametrize("name", reference_names("Bias", "Scale"))
def test_agrees_with_the_original(name):
    check_reference(name)


@pytest.mark.parametrize(("options", "shape", "begin", "end"), SPANS)
@pytest.mark.parametrize("kind", ["bias", "scale", "scale and bias"])
def test_a_param_along_any_run_of_axes(kind, options, shape, begin, end):
    text = bias(options) if kind == "bias" else scale(f"{options} bias_term: {str('and' in kind).lower()}")
    fixed = begin == 0 and end > 0  # the batch is part of the params
    definition = define(begin, kind != "bias", kind != "scale")
    run = check_layer(text, [random(1, *shape)], definition, batch_axis=None if fixed else 0)
    assert [param.shape for param in run.params] == [shape[begin:end]] * (2 if "and" in kind else 1)


@pytest.mark.parametrize(("options", "shape", "begin", "end"), SPANS)
@pytest.mark.parametrize("kind", ["bias", "scale", "scale and bias"])
def test_a_second_bottom_along_any_run_of_axes(kind, options, shape, begin, end):
    axis = f"axis: {begin}" if end > begin else "axis: 9"  # for a scalar the axis does not matter
    text = bias(axis) if kind == "bias" else scale(f"{axis} bias_term: {str('and' in kind).lower()}")
    bottoms = [random(2, *shape), random(3, *shape[begin:end])]
    check_layer(text, bottoms, define(begin, kind != "bias", kind != "scale"), batch_axis=None)


def test_scale_and_bias_by_hand():
    x = np.array([[[1, 2], [3, 4]]], np.float32)  # two channels of two
    run = run_layer(scale("bias_term: true"), [x], params=[np.array([10, 100]), np.array([1, 2])])
    assert run.tops[0].tolist() == [[[11, 21], [302, 402]]]
    bottom_diffs, param_diffs = run.backward([np.array([[[1, 0], [1, 1]]], np.float32)])
    assert bottom_diffs[0].tolist() == [[[10, 0], [100, 100]]]
    assert [diff.tolist() for diff in param_diffs] == [[1, 7], [1, 2]]


def test_the_defaults_are_the_identity():
    x = random(4, *SHAPE)
    for text in ('type: "Bias"', 'type: "Scale"', 'type: "Scale" scale_param { bias_term: true }'):
        assert_close(run_layer(text, [x]).tops[0], x, text, "exact")


@pytest.mark.parametrize("shape", [(64, 64), (3, 5, 7, 11), (2, 130, 40)])
def test_sums_over_many_elements_keep_their_accuracy(shape):
    x, diff = random(5, *shape) + 1, random(6, *shape) + 1
    param_diffs = run_layer(scale("bias_term: true"), [x]).backward([diff])[1]
    others = tuple(axis for axis in range(len(shape)) if axis != 1)
    assert_close(param_diffs[0], (x.astype(np.float64) * diff).sum(axis=others), "scale")
    assert_close(param_diffs[1], diff.astype(np.float64).sum(axis=others), "bias")


@pytest.mark.parametrize("phase", [0, TEST])
def test_scale_in_place_keeps_the_bottom_for_its_gradient(phase):
    x, diff = random(7, *SHAPE), random(8, *SHAPE)
    run = run_layer(scale("bias_term: true"), [x], phase, in_place=True)
    assert_close(run.backward([diff])[1][0], (x * diff).sum(axis=(0, 2, 3)), "scale's diff")


def test_scale_in_place_copies_nothing_where_the_scale_does_not_learn():
    run = run_layer(scale(), [random(9, *SHAPE)], in_place=True)
    run.layer.param_propagate_down[0] = False
    with run.device.record() as tape:
        run.layer.forward(run.bottom, run.top)
    assert len(tape) == 1
    bottom_diffs, param_diffs = run.backward()
    assert np.isfinite(bottom_diffs[0]).all() and not param_diffs[0].any()


def test_scale_in_place_with_a_second_bottom():
    x, factor = random(10, *SHAPE), random(11, 5)
    apart, within = (run_layer(scale(), [x, factor], in_place=in_place) for in_place in (False, True))
    for one, other in zip(apart.backward()[0], within.backward()[0], strict=True):
        assert_close(other, one, "diff in place", "exact")


@pytest.mark.parametrize("text", [bias(), scale(), scale("bias_term: true")])
def test_gradients_that_are_not_wanted_are_left_alone(text):
    run = run_layer(text, [random(12, *SHAPE)])
    run.layer.param_propagate_down[:] = [False] * len(run.params)
    bottom_diffs, param_diffs = run.backward(propagate_down=[False])
    assert np.isnan(run.bottom[0].diff).all() and bottom_diffs == [None]
    assert not any(diff.any() for diff in param_diffs)


@pytest.mark.parametrize("text", [bias(), scale()])
@pytest.mark.parametrize("wanted", [0, 1])
def test_of_two_bottoms_only_the_wanted_gets_a_gradient(text, wanted):
    run = run_layer(text, [random(13, *SHAPE), random(14, 5)])
    run.backward(propagate_down=[wanted == 0, wanted == 1])
    assert np.isfinite(run.bottom[wanted].diff).all() and np.isnan(run.bottom[1 - wanted].diff).all()


def test_not_a_number_and_infinity_come_through():
    x = np.array([[np.nan, np.inf, -np.inf]], np.float32)
    run = run_layer(scale("axis: 0 num_axes: 0"), [x], params=[np.array(-2)])
    assert_close(run.tops[0], [[np.nan, -np.inf, np.inf]], "top")
    assert np.isnan(run.backward([np.ones_like(x)])[1][0])


@pytest.mark.parametrize("shape", [(0, 5, 4), (0, 5), (2, 5, 0)])
def test_an_empty_bottom_gives_an_empty_top_and_gradients_of_zero(shape):
    run = run_layer(scale("bias_term: true"), [np.zeros(shape, np.float32)])
    assert run.tops[0].shape == shape
    assert [diff.tolist() for diff in run.backward()[1]] == [[0] * 5] * 2
    bottom_diffs = run_layer(bias(), [np.zeros(shape, np.float32), np.ones(5, np.float32)]).backward()[0]
    assert bottom_diffs[1].tolist() == [0] * 5


def test_params_from_the_prototxt_are_kept_and_a_missing_bias_is_made():
    blobs = "blobs { shape { dim: 2 } data: 3 data: 5 }"
    text = f'type: "Scale" {blobs} scale_param {{ bias_term: true bias_filler {{ value: 7 }} }}'
    run = run_layer(text, [np.ones((1, 2), np.float32)])
    assert run.tops[0].tolist() == [[10, 12]]


def test_rows_are_short_enough_to_share_where_a_single_row_can_be_cut():
    scalar, elements = Spread(1, 1, 3 * LONGEST_ROW), Spread(1, 3 * LONGEST_ROW, 1)
    for cut in (scalar, elements):
        assert (cut.rows, cut.columns) == (3, LONGEST_ROW)
    assert (scalar.period, elements.period) == (1, 3)
    assert (Spread(2, 3, 7 * LONGEST_ROW).rows, Spread(5, 6, 1).rows) == (6, 5)


@pytest.mark.parametrize(("text", "noun"), [(bias, "bias"), (scale, "scale")])
def test_an_operand_that_does_not_fit_is_named(text, noun):
    with pytest.raises(NetError, match=r"num_axes must be 0 or more, or -1 for all axes from axis on. Received -2"):
        run_layer(text("num_axes: -2"), [random(15, *SHAPE)])
    message = rf"{noun} would have more axes .* Expected axis 2 \+ num_axes 3 to be at most 4, .* 'bottom_0' \("
    with pytest.raises(ShapeError, match=message):
        run_layer(text("axis: 2 num_axes: 3"), [random(15, *SHAPE)])
    with pytest.raises(ShapeError, match=r"axis 4 does not exist. Expected -4 to 3"):
        run_layer(text("axis: 4"), [random(15, *SHAPE)])
    message = rf"the {noun} must have the bottom's shape from axis 1 on. .* \(5, 4, 3\), received 'bottom_1' \(5, 3\)"
    with pytest.raises(ShapeError, match=message):
        run_layer(text(), [random(15, *SHAPE), random(16, 5, 3)])
    with pytest.raises(
        ShapeError, match=r"from axis 3 on. Expected the first axes of \(3,\), received 'bottom_1' \(3, 1\)"
    ):
        run_layer(text("axis: 3"), [random(15, *SHAPE), random(16, 3, 1)])


@pytest.mark.parametrize("text", [bias(), scale()])
def test_a_bottom_that_no_longer_fits_the_param_is_an_error(text):
    run = run_layer(text, [random(17, *SHAPE)])
    with pytest.raises(ShapeError, match=r"of \(6, 4, 3\), received \(5,\) for bottom 'bottom_0' \(2, 6, 4, 3\)"):
        run.reshape(random(17, 2, 6, 4, 3))


def test_another_image_size_keeps_the_params():
    run = run_layer(scale("bias_term: true"), [random(18, *SHAPE)])
    x = random(19, 3, 5, 9, 11)
    params = [param.astype(np.float64) for param in run.params]
    assert_close(run.reshape(x)[0], define(1, True, True)([x.astype(np.float64)], params)[0], "after a reshape")


def test_a_second_bottom_that_leaves_the_bias_behind_is_an_error():
    run = run_layer(scale("bias_term: true"), [random(20, *SHAPE), random(21, 5)])
    with pytest.raises(
        ShapeError, match=r"the bias must have the scale's shape. Expected \(5,\), received 'bottom_1' \(6,\)"
    ):
        run.reshape(random(20, 2, 6, 4, 3), random(21, 6))


@pytest.mark.parametrize(("kind", "count"), [("Bias", 2), ("Scale", 2), ("Scale", 3)])
def test_params_from_the_prototxt_that_do_not_fit_are_an_error(kind, count):
    text = f'type: "{kind}"' + " blobs { shape { dim: 2 } data: 3 data: 5 }" * count
    with pytest.raises(
        ShapeError,
        match=r"do not fit bottom 'bottom_0' \(1, 2\) and the options. Expected shapes \[\(2,\)\], received \[",
    ):
        run_layer(text, [np.ones((1, 2), np.float32)])


def test_every_mapping_is_exercised_above():
    spreads = [
        Spread(math.prod(shape[:begin]), math.prod(shape[begin:end]), math.prod(shape[end:]))
        for _, shape, begin, end in SPANS
    ]
    assert {one.mapping for one in spreads} == {"planes", "columns"}
    assert any(one.period > 1 for one in spreads if one.mapping == "columns")
    assert any(one.column_sums[3] > 1 and one.column_sums[5] > 1 for one in spreads)
