"""ReLU and Dropout."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest

from caffe_lite.errors import NetError

from .harness import (
    TEST,
    TRAIN,
    assert_close,
    check_gradient,
    check_layer,
    check_reference,
    distinct,
    random,
    reference_names,
    run_layer,
)


@pytest.mark.parametrize("name", reference_names("ReLU", "Dropout"))
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


def test_dropout_sends_the_gradient_through_what_it_kept() -> None:
    run = run_layer(DROPOUT, [distinct(3, 5, 7)], TRAIN)
    diff = random(4, 5, 7)
    assert_close(run.backward([diff])[0][0], np.where(kept(run.tops[0]), diff * SCALE, 0), "diff")
    check_gradient(DROPOUT, [distinct(3, 5, 7)])  # each pass of the harness has the same number, and drops the same


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
