"""ReLU, Dropout, ELU, Sigmoid, TanH, BNLL, Swish."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

import numpy as np
import pytest

from caffe_lite.errors import NetError

from .harness import (
    TEST,
    TRAIN,
    Definition,
    assert_close,
    check_gradient,
    check_layer,
    check_reference,
    distinct,
    random,
    reference_names,
    run_layer,
)


@pytest.mark.parametrize("name", reference_names("ReLU", "Dropout", "ELU", "Sigmoid", "TanH", "BNLL", "Swish"))
def test_agrees_with_the_original(name: str) -> None:
    check_reference(name)


# -- ReLU


@pytest.mark.parametrize("shape", [(2, 3, 5, 7), (3, 1), (1,), (17, 33)])
@pytest.mark.parametrize("slope", [0.0, 0.1, -0.5, 1.5])
def test_relu_follows_its_definition(slope: float, shape: tuple[int, ...]) -> None:
    def definition(bottoms: list[np.ndarray], params: list[np.ndarray]) -> list[np.ndarray]:
        return [np.where(bottoms[0] > 0, bottoms[0], float(np.float32(slope)) * bottoms[0])]

    text = f'type: "ReLU" relu_param {{ negative_slope: {slope} }}'
    check_layer(text, [distinct(1, *shape)], definition, in_place=slope >= 0)


def test_relu_at_zero_passes_the_slope_and_turns_minus_zero_into_zero() -> None:
    run = run_layer('type: "ReLU" relu_param { negative_slope: 0.25 }', [np.array([0.0, -0.0], np.float32)])
    assert_close(run.backward([np.array([8.0, 8.0])])[0][0], [2.0, 2.0], "diff", "exact")
    assert not np.signbit(run.tops[0]).any()


def test_relu_shows_nan_and_infinity() -> None:
    x = np.array([np.nan, np.inf, -np.inf], np.float32)
    run = run_layer('type: "ReLU" relu_param { negative_slope: 0.5 }', [x])
    assert_close(run.tops[0], x, "top", "exact")


def test_relu_writes_no_bottom_diff_unless_it_is_asked_to() -> None:
    run = run_layer('type: "ReLU"', [random(1, 4)])
    run.bottom[0].diff[...] = 7
    run.layer.backward(run.top, [False], run.bottom)
    assert_close(run.bottom[0].diff, [7, 7, 7, 7], "diff", "exact")


# -- Dropout

DROPOUT = 'type: "Dropout" dropout_param { dropout_ratio: 0.3 }'
SCALE = 1 / (1 - float(np.float32(0.3)))


def kept(top: np.ndarray) -> np.ndarray:
    """Which elements of a top that was dropped out from non-zero values are left."""
    return top != 0


@pytest.mark.parametrize("ratio", [0.1, 0.5, 0.9])
def test_dropout_keeps_the_right_share_and_scales_it(ratio: float) -> None:
    x = distinct(2, 100, 301, gap=1e-3)
    run = run_layer(f'type: "Dropout" dropout_param {{ dropout_ratio: {ratio} }}', [x], TRAIN)
    keep = kept(run.tops[0])
    deviation = math.sqrt(ratio * (1 - ratio) / x.size)
    assert abs(keep.mean() - (1 - ratio)) < 5 * deviation
    assert_close(run.tops[0], np.where(keep, x / (1 - float(np.float32(ratio))), 0), "top")
    for axis in (0, 1):  # no row and no column is special
        spread = keep.mean(axis=axis) - (1 - ratio)
        assert np.abs(spread).max() < 5.5 * deviation * math.sqrt(spread.size)


@pytest.mark.parametrize("shape", [(5, 7), (1, 13), (3, 1, 2), (2, 3, 5, 7)])
def test_dropout_sends_the_gradient_through_what_it_kept(shape: tuple[int, ...]) -> None:
    run = run_layer(DROPOUT, [distinct(3, *shape)], TRAIN)
    diff = random(4, *shape)
    assert_close(run.backward([diff])[0][0], np.where(kept(run.tops[0]), diff * SCALE, 0), "diff")
    check_gradient(DROPOUT, [distinct(3, *shape)])  # each pass of the harness has the same number, and drops the same


def test_dropout_draws_anew_in_each_pass_and_the_same_for_the_same_pass() -> None:
    run = run_layer(DROPOUT, [np.ones((40, 50))], TRAIN)
    first, second, again = (kept(run.forward(passes=passes)[0]) for passes in (1, 2, 1))
    np.testing.assert_array_equal(first, again)
    # Independent passes agree where both keep or both drop.
    agreement = 0.7**2 + 0.3**2
    assert abs((first == second).mean() - agreement) < 5 * math.sqrt(agreement * (1 - agreement) / first.size)


def test_dropout_depends_on_both_halves_of_the_seed() -> None:
    run = run_layer(DROPOUT, [np.ones((40, 50))], TRAIN)
    seen = set()
    for seed in (5, 6, 5 + (1 << 40), 2**64 - 1):
        run.layer.seed = seed
        seen.add(run.forward()[0].tobytes())
    assert len(seen) == 4


def test_dropout_replayed_from_a_tape_follows_the_pass_counter() -> None:
    run = run_layer(DROPOUT, [np.ones((40, 50))], TRAIN)
    with run.device.record() as tape:
        run.layer.forward(run.top, run.top)  # in place, so that the harness's second blob stays as it is
        run.layer.forward(run.bottom, run.top)
    masks = []
    for passes in (7, 8):
        run.device.upload(run.layer.passes, np.array([passes], np.int32))
        tape.replay()
        masks.append(kept(run.top[0].data.copy()))
    assert (masks[0] != masks[1]).any()


@pytest.mark.parametrize("in_place", [False, True])
def test_dropout_changes_nothing_in_phase_test(in_place: bool) -> None:
    x, diff = random(5, 3, 4, 5), random(6, 3, 4, 5)
    run = run_layer(DROPOUT, [x], TEST, in_place=in_place)
    assert_close(run.tops[0], x, "top", "exact")
    assert_close(run.backward([diff])[0][0], diff, "diff", "exact")


def test_dropout_works_in_place_and_after_a_reshape() -> None:
    x, larger = distinct(7, 4, 6), distinct(8, 5, 9)
    apart, in_place = (run_layer(DROPOUT, [x], TRAIN, in_place=flag) for flag in (False, True))
    assert_close(in_place.tops[0], apart.tops[0], "top in place", "exact")
    diff = random(9, 4, 6)
    assert_close(in_place.backward([diff])[0][0], apart.backward([diff])[0][0], "diff in place", "exact")
    for run in (apart, in_place):
        top = run.reshape(larger)[0]
        assert_close(top, np.where(kept(top), larger * SCALE, 0), "top after a reshape")


@pytest.mark.parametrize("in_place", [False, True])
def test_dropout_without_scale_train_scales_in_test_instead(in_place: bool) -> None:
    text = 'type: "Dropout" dropout_param { dropout_ratio: 0.75 scale_train: false }'
    x, dy = random(3, 7) + 3, random(3, 7)
    run = run_layer(text, [x], TEST, in_place=in_place)
    np.testing.assert_array_equal(run.tops[0], x / 4)
    np.testing.assert_array_equal(run.backward([dy])[0][0], dy / 4)
    trained = run_layer(text, [x], TRAIN).tops[0]
    np.testing.assert_array_equal(trained, np.where(trained == 0, 0, x))


def test_dropout_of_nothing_changes_nothing() -> None:
    x, dy = random(1, 3, 50), random(2, 3, 50)
    run = run_layer('type: "Dropout" dropout_param { dropout_ratio: 0 }', [x], TRAIN)
    np.testing.assert_array_equal(run.tops[0], x)
    np.testing.assert_array_equal(run.backward([dy])[0][0], dy)


@pytest.mark.parametrize("ratio", ["1", "-0.5", "1.5"])
def test_dropout_refuses_a_ratio_that_is_no_probability_below_one(ratio: str) -> None:
    message = re.escape(f"dropout_ratio must be at least 0 and below 1. Received {ratio}.")
    with pytest.raises(NetError, match=message):
        run_layer(f'type: "Dropout" dropout_param {{ dropout_ratio: {ratio} }}', [random(1, 2)])


# -- the smooth ones

SHAPES = [(2, 3, 5, 7), (3, 1), (1,), (17, 33)]


def elementwise(function: Callable[[float], float]) -> Definition:
    """A definition that applies `function` to one element at a time."""
    return lambda bottoms, params: [np.vectorize(function, otypes=[float])(bottoms[0])]


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("alpha", [1.0, 0.3, 2.5, -0.5])
def test_elu_follows_its_definition(alpha: float, shape: tuple[int, ...]) -> None:
    definition = elementwise(lambda x: x if x > 0 else float(np.float32(alpha)) * (math.exp(x) - 1))
    text = f'type: "ELU" elu_param {{ alpha: {alpha} }}'
    check_layer(text, [distinct(1, *shape, gap=0.02)], definition, in_place=alpha >= 0)


def test_elu_at_zero_passes_alpha_and_near_it_keeps_all_digits() -> None:
    x = np.array([0.0, -1e-6, -1e-30], np.float32)
    run = run_layer('type: "ELU" elu_param { alpha: 0.5 }', [x])
    np.testing.assert_allclose(run.tops[0], 0.5 * np.expm1(x.astype(np.float64)), rtol=3e-7)
    assert_close(run.backward([np.array([8.0, 8.0, 8.0])])[0][0], [4.0, 4.0, 4.0], "diff")


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("type_name", "function"), [("Sigmoid", sigmoid), ("TanH", math.tanh)])
def test_the_squeezing_layers_follow_their_definitions(
    type_name: str, function: Callable[[float], float], shape: tuple[int, ...]
) -> None:
    check_layer(f'type: "{type_name}"', [random(1, *shape, scale=1.5)], elementwise(function))


@pytest.mark.parametrize("shape", SHAPES)
def test_bnll_follows_its_definition(shape: tuple[int, ...]) -> None:
    definition = elementwise(lambda x: math.log(1 + math.exp(x)))
    check_layer('type: "BNLL"', [random(1, *shape, scale=2.0)], definition, in_place=False)


def test_bnll_in_place_takes_y_for_x_on_the_way_back_as_the_original_does() -> None:
    x, diff = random(1, 4, 5), random(2, 4, 5)
    run = run_layer('type: "BNLL"', [x], in_place=True)
    y = np.log1p(np.exp(x.astype(np.float64)))
    assert_close(run.tops[0], y, "top")
    assert_close(run.backward([diff])[0][0], diff / (1 + np.exp(-y)), "diff")


def test_bnll_far_from_zero_neither_overflows_nor_vanishes() -> None:
    run = run_layer('type: "BNLL"', [np.array([1000.0, 60.0, -60.0, -1000.0], np.float32)])
    np.testing.assert_allclose(run.tops[0], [1000.0, 60.0, math.exp(-60), 0.0], rtol=3e-7)
    diff = run.backward([np.ones(4)])[0][0]
    np.testing.assert_allclose(diff, [1.0, 1.0, math.exp(-60), 0.0], rtol=3e-7)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("beta", [1.0, 1.7, 0.0, -0.8])
def test_swish_follows_its_definition(beta: float, shape: tuple[int, ...]) -> None:
    definition = elementwise(lambda x: x * sigmoid(float(np.float32(beta)) * x))
    text = f'type: "Swish" swish_param {{ beta: {beta} }}'
    check_layer(text, [random(1, *shape, scale=1.5)], definition)
    check_gradient(text, [random(2, *shape)], in_place=True)


def test_swish_works_in_place_after_reshapes() -> None:
    run = run_layer('type: "Swish"', [random(1, 3, 4)], in_place=True)
    for shape in ((5, 6), (2, 1), (2, 1)):
        x, diff = random(3, *shape), random(4, *shape)
        s = 1 / (1 + np.exp(-x.astype(np.float64)))
        assert_close(run.reshape(x)[0], x * s, "top")
        assert_close(run.backward([diff])[0][0], diff * (s + x * s * (1 - s)), "diff")


@pytest.mark.parametrize(
    ("type_name", "low", "high"),
    [("ELU", -1, np.inf), ("Sigmoid", 0, 1), ("TanH", -1, 1), ("BNLL", 0, np.inf), ("Swish", np.nan, np.inf)],
)
def test_smooth_layers_show_nan_and_saturate_at_infinity(type_name: str, low: float, high: float) -> None:
    run = run_layer(f'type: "{type_name}"', [np.array([np.nan, -np.inf, np.inf], np.float32)])
    assert_close(run.tops[0], [np.nan, low, high], "top", "exact")


@pytest.mark.parametrize("type_name", ["ELU", "Sigmoid", "TanH", "BNLL", "Swish"])
def test_smooth_layers_write_no_bottom_diff_unless_they_are_asked_to(type_name: str) -> None:
    run = run_layer(f'type: "{type_name}"', [random(1, 4)])
    run.bottom[0].diff[...] = 7
    run.layer.backward(run.top, [False], run.bottom)
    assert_close(run.bottom[0].diff, [7, 7, 7, 7], "diff", "exact")
