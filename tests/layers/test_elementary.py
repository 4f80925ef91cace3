"""AbsVal, Power, Exp, Log, Threshold, Clip."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

import numpy as np
import pytest

from caffe_lite.errors import NetError

from .harness import (
    Definition,
    assert_close,
    check_layer,
    check_reference,
    distinct,
    random,
    reference_names,
    run_layer,
)

SHAPES = [(2, 3, 5, 7), (3, 1), (1,), (17, 33)]


@pytest.mark.parametrize("name", reference_names("AbsVal", "Power", "Exp", "Log", "Threshold", "Clip"))
def test_agrees_with_the_original(name: str) -> None:
    check_reference(name)


def elementwise(function: Callable[[float], float]) -> Definition:
    """A definition that applies `function` to one element at a time."""
    return lambda bottoms, params: [np.vectorize(function, otypes=[float])(bottoms[0])]


def f32(value: float) -> float:
    """A prototxt's number as the float32 it becomes."""
    return float(np.float32(value))


def positive(seed: int, *shape: int) -> np.ndarray:
    return np.abs(random(seed, *shape)) + np.float32(0.3)


# -- AbsVal


@pytest.mark.parametrize("shape", SHAPES)
def test_absval_follows_its_definition(shape: tuple[int, ...]) -> None:
    run = check_layer('type: "AbsVal"', [distinct(1, *shape)], elementwise(abs))
    assert not run.layer.in_place


def test_absval_at_zero_stops_the_gradient_and_shows_nan() -> None:
    run = run_layer('type: "AbsVal"', [np.array([-0.0, 0.0, np.nan, -np.inf], np.float32)])
    assert_close(run.tops[0], [0.0, 0.0, np.nan, np.inf], "top", "exact")
    assert not np.signbit(run.tops[0][:2]).any()
    assert_close(run.backward([np.ones(4)])[0][0][[0, 1, 3]], [0, 0, -1], "diff", "exact")


# -- Power


def power_text(power: float, scale: float, shift: float) -> str:
    return f'type: "Power" power_param {{ power: {power} scale: {scale} shift: {shift} }}'


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("power", [1, 2, 3, 0.5, -1.7, 2.3])
@pytest.mark.parametrize(("scale", "shift"), [(1, 0), (0.7, 0), (1.3, 0.2)])
def test_power_follows_its_definition(power: float, scale: float, shift: float, shape: tuple[int, ...]) -> None:
    definition = elementwise(lambda x: (f32(scale) * x + f32(shift)) ** f32(power))
    check_layer(power_text(power, scale, shift), [positive(1, *shape)], definition, in_place=power == 1, step=1e-3)


@pytest.mark.parametrize("power", [1, 2, 3, -2])
def test_power_of_a_negative_base_is_right_for_whole_powers(power: int) -> None:
    x = -positive(1, 3, 4)
    check_layer(power_text(power, 2, 0.1), [x], elementwise(lambda x: (2 * x + f32(0.1)) ** power), in_place=False)


@pytest.mark.parametrize(
    ("power", "scale", "shift", "expected"),
    [(0, 3, 5, 1), (0, 0, 0, 1), (3, 0, -2, -8), (-1, 0, 0, np.inf), (0.5, 0, -1, np.nan)],
)
def test_power_without_power_or_scale_is_a_constant_whatever_x_is(
    power: float, scale: float, shift: float, expected: float
) -> None:
    for in_place in (False, True):
        run = run_layer(power_text(power, scale, shift), [np.array([1, -2, np.nan], np.float32)], in_place=in_place)
        assert_close(run.tops[0], [expected] * 3, "top", "exact")
        assert_close(run.backward()[0][0], [0, 0, 0], "diff", "exact")


@pytest.mark.parametrize(("power", "expected"), [(3, 0), (1.5, 0), (0.5, np.inf), (-1, -np.inf), (2, 0), (1, 3)])
def test_power_where_the_base_is_zero_has_the_limit_as_gradient(power: float, expected: float) -> None:
    run = run_layer(power_text(power, 3, 0), [np.zeros(1, np.float32)])
    assert_close(run.backward([np.ones(1)])[0][0], [expected], "diff", "exact")


def test_power_in_place_takes_y_for_x_on_the_way_back_as_the_original_does() -> None:
    x, diff = positive(1, 3, 4), random(2, 3, 4)
    run = run_layer(power_text(2, 0.5, 0.1), [x], in_place=True)
    y = (0.5 * x.astype(np.float64) + f32(0.1)) ** 2
    assert_close(run.tops[0], y, "top")
    assert_close(run.backward([diff])[0][0], diff * (0.5 * y + f32(0.1)), "diff")


# -- Exp and Log


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("base", "scale", "shift"), [(-1, 1, 0), (-1, 0.7, 0.4), (2, 1, 0), (0.3, -1.2, 0.5)])
def test_exp_follows_its_definition(base: float, scale: float, shift: float, shape: tuple[int, ...]) -> None:
    number = math.e if base == -1 else f32(base)
    definition = elementwise(lambda x: number ** (f32(scale) * x + f32(shift)))
    text = f'type: "Exp" exp_param {{ base: {base} scale: {scale} shift: {shift} }}'
    check_layer(text, [random(1, *shape)], definition)


def test_exp_with_a_shift_out_of_range_is_infinite_and_no_error() -> None:
    assert_close(run_layer('type: "Exp" exp_param { shift: 1000 }', [random(1, 2)]).tops[0], [np.inf] * 2, "top")
    assert_close(run_layer('type: "Exp" exp_param { shift: -1000 }', [random(1, 2)]).tops[0], [0, 0], "top", "exact")


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("base", "scale", "shift"), [(-1, 1, 0), (-1, 0.7, 0.4), (10, 1, 0), (0.3, 1.2, 0.5)])
def test_log_follows_its_definition(base: float, scale: float, shift: float, shape: tuple[int, ...]) -> None:
    log_base = 1.0 if base == -1 else math.log(f32(base))
    definition = elementwise(lambda x: math.log(f32(scale) * x + f32(shift)) / log_base)
    text = f'type: "Log" log_param {{ base: {base} scale: {scale} shift: {shift} }}'
    check_layer(text, [positive(1, *shape)], definition, in_place=False, step=1e-3)


def test_log_of_what_is_not_positive_is_minus_infinity_or_nan() -> None:
    run = run_layer('type: "Log"', [np.array([0, -1, np.inf, np.nan], np.float32)])
    assert_close(run.tops[0], [-np.inf, np.nan, np.inf, np.nan], "top", "exact")


def test_log_in_place_takes_y_for_x_on_the_way_back_as_the_original_does() -> None:
    x, diff = positive(1, 3, 4) + 3, random(2, 3, 4)
    run = run_layer('type: "Log" log_param { base: 2 }', [x], in_place=True)
    y = np.log2(x.astype(np.float64))
    assert_close(run.tops[0], y, "top")
    assert_close(run.backward([diff])[0][0], diff / (math.log(2) * y), "diff")


@pytest.mark.parametrize(("type_name", "field"), [("Exp", "exp_param"), ("Log", "log_param")])
@pytest.mark.parametrize("base", ["0", "-2", "inf", "nan"])
def test_exp_and_log_refuse_a_base_that_has_no_logarithm(type_name: str, field: str, base: str) -> None:
    message = re.escape(f"base must be positive and finite, or -1 for e. Received base {base}.")
    with pytest.raises(NetError, match=message):
        run_layer(f'type: "{type_name}" {field} {{ base: {base} }}', [random(1, 2)])


def test_log_refuses_base_one() -> None:
    with pytest.raises(NetError, match=r"base must not be 1, whose logarithm is 0\. Received base 1\."):
        run_layer('type: "Log" log_param { base: 1 }', [random(1, 2)])


# -- Threshold and Clip


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("threshold", [0.0, 0.7, -0.3])
def test_threshold_follows_its_definition(threshold: float, shape: tuple[int, ...]) -> None:
    text = f'type: "Threshold" threshold_param {{ threshold: {threshold} }}'
    definition = elementwise(lambda x: float(x > f32(threshold)))
    run = check_layer(text, [distinct(1, *shape)], definition, gradient=False, in_place=False)
    assert not run.layer.allow_force_backward(0)
    again = run_layer(text, [distinct(1, *shape)], in_place=True)
    assert_close(again.tops[0], run.tops[0], "top in place", "exact")


def test_threshold_is_not_exceeded_by_itself_nor_by_nan() -> None:
    x = np.array([0.5, 0.50001, np.nan, np.inf], np.float32)
    run = run_layer('type: "Threshold" threshold_param { threshold: 0.5 }', [x])
    assert_close(run.tops[0], [0, 1, 0, 1], "top", "exact")


def test_threshold_refuses_to_propagate_down() -> None:
    run = run_layer('type: "Threshold"', [random(1, 2)])
    run.layer.backward(run.top, [False], run.bottom)
    with pytest.raises(NetError, match=r"a threshold has no gradient\. Set propagate_down: false"):
        run.layer.backward(run.top, [True], run.bottom)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("low", "high"), [(-0.31, 0.72), (0.11, 3.0), (-1e30, 0.22), (1.0, -1.0)])
def test_clip_follows_its_definition(low: float, high: float, shape: tuple[int, ...]) -> None:
    text = f'type: "Clip" clip_param {{ min: {low} max: {high} }}'
    definition = elementwise(lambda x: max(f32(low), min(x, f32(high))))
    check_layer(text, [distinct(1, *shape)], definition, in_place=False)


def test_clip_passes_the_gradient_at_its_bounds_and_shows_nan() -> None:
    x = np.array([-1, 2, -1.001, 2.001, np.nan], np.float32)
    run = run_layer('type: "Clip" clip_param { min: -1 max: 2 }', [x])
    assert_close(run.tops[0], [-1, 2, -1, 2, np.nan], "top", "exact")
    assert_close(run.backward([np.ones(5)])[0][0], [1, 1, 0, 0, 0], "diff", "exact")


def test_clip_in_place_lets_all_of_the_gradient_through_as_the_original_does() -> None:
    run = run_layer('type: "Clip" clip_param { min: -1 max: 2 }', [np.array([-5, 0, 5], np.float32)], in_place=True)
    assert_close(run.tops[0], [-1, 0, 2], "top", "exact")
    assert_close(run.backward([np.array([1, 2, 3])])[0][0], [1, 2, 3], "diff", "exact")


def test_clip_refuses_to_work_without_bounds() -> None:
    message = re.escape("the bounds are missing. Expected clip_param { min: ... max: ... }.")
    with pytest.raises(NetError, match=message):
        run_layer('type: "Clip"', [random(1, 2)])


@pytest.mark.parametrize("text", ['"AbsVal"', '"Power"', '"Exp"', '"Log"', '"Clip" clip_param { min: 0 max: 1 }'])
def test_elementary_layers_write_no_bottom_diff_unless_they_are_asked_to(text: str) -> None:
    run = run_layer(f"type: {text}", [positive(1, 4)])
    run.bottom[0].diff[...] = 7
    run.layer.backward(run.top, [False], run.bottom)
    assert_close(run.bottom[0].diff, [7, 7, 7, 7], "diff", "exact")
