"""SigmoidCrossEntropyLoss against the original, a float64 loop over elements, and difference quotients."""

from __future__ import annotations

import math

import numpy as np
import pytest

from caffe_lite.errors import NetError, ShapeError
from caffe_lite.layers.sigmoid_loss import CHUNK

from .harness import (
    Array,
    Definition,
    assert_close,
    check_gradient,
    check_layer,
    check_reference,
    random,
    reference_names,
    run_layer,
)


def loss(option: str = "", weight: str = "") -> str:
    return f'type: "SigmoidCrossEntropyLoss" loss_param {{ {option} }} {weight}'


def targets(seed: int, *shape: int) -> Array:
    """Return targets of which a third is 0, a third 1, and a third between."""
    rng = np.random.default_rng(seed)
    return np.choose(rng.integers(0, 3, shape), [np.zeros(shape), np.ones(shape), rng.uniform(0.1, 0.9, shape)]).astype(
        np.float32
    )


def defined(mode: str = "BATCH_SIZE", ignore: int | None = None) -> Definition:
    """Return the loss as a loop over elements."""

    def definition(bottoms: list[Array], params: list[Array]) -> list[float]:
        total, valid = 0.0, 0
        for x, t in zip(bottoms[0].ravel(), bottoms[1].ravel(), strict=True):
            if ignore is None or int(t) != ignore:
                p = 1 / (1 + math.exp(-x))
                total -= t * math.log(p) + (1 - t) * math.log(1 - p)
                valid += 1
        normalizer = {"FULL": bottoms[0].size, "VALID": valid, "BATCH_SIZE": len(bottoms[0]), "NONE": 1}[mode]
        return [total / max(1, normalizer)]

    return definition


@pytest.mark.parametrize("name", reference_names("SigmoidCrossEntropyLoss"))
def test_agrees_with_the_original(name: str) -> None:
    check_reference(name)


@pytest.mark.parametrize("mode", ["FULL", "VALID", "BATCH_SIZE", "NONE"])
@pytest.mark.parametrize("ignore", [None, 1, 0, -1, 255])
def test_loss_follows_its_definition(mode: str, ignore: int | None) -> None:
    scores, target = random(1, 3, 4, 5, scale=2.0), targets(2, 3, 4, 5)
    if ignore is not None:
        target.flat[::4] = ignore
    option = f"normalization: {mode}" + ("" if ignore is None else f" ignore_label: {ignore}")
    check_layer(loss(option), [scores, target], defined(mode, ignore))


@pytest.mark.parametrize(
    ("option", "mode"),
    [
        ("", "BATCH_SIZE"),
        ("normalize: true", "VALID"),
        ("normalize: false", "BATCH_SIZE"),
        ("normalize: false normalization: FULL", "FULL"),
    ],
)
def test_the_normalizer_is_the_batch_size_unless_an_option_says_otherwise(option: str, mode: str) -> None:
    check_layer(loss(f"ignore_label: 1 {option}"), [random(3, 4, 7), targets(4, 4, 7)], defined(mode, 1))


@pytest.mark.parametrize(
    ("shape", "other"), [((5,), (5,)), ((1, 1), (1, 1)), ((3, 2, 5), (3, 10)), ((2, CHUNK + 3), (2, CHUNK + 3))]
)
def test_loss_follows_its_definition_for_any_shape(shape: tuple[int, ...], other: tuple[int, ...]) -> None:
    check_layer(loss(), [random(5, *shape), targets(6, *other)], defined())


def test_gradient_is_the_sigmoid_less_the_target_times_the_loss_weight() -> None:
    scores, target = random(7, 6, 5), targets(8, 6, 5)
    p = 1 / (1 + np.exp(-scores.astype(np.float64)))
    run = run_layer(loss(weight="loss_weight: 2.5"), [scores, target])
    assert_close(run.backward()[0][0], (p - target) * 2.5 / 6, "diff")
    check_gradient(loss(weight="loss_weight: 2.5"), [scores, target])


def test_large_scores_cost_what_they_are_and_do_not_overflow() -> None:
    scores = np.array([[1000, -1000, 1000, -1000, 88, -30]], np.float32)
    target = np.array([[0, 1, 1, 0, 0, 0]], np.float32)
    run = run_layer(loss(), [scores, target])
    assert run.tops[0] == 2088
    assert_close(run.backward()[0][0], [[1, -1, 0, 0, 1, math.exp(-30)]], "diff")


def test_a_small_loss_is_not_lost() -> None:
    run = run_layer(loss(), [np.array([[-40, 40]], np.float32), np.array([[0, 1]], np.float32)])
    assert run.tops[0] == pytest.approx(2 * math.exp(-40), rel=1e-5, abs=0)


def test_a_target_is_ignored_if_it_is_the_label_with_its_fraction_cut_off() -> None:
    scores, target = random(9, 1, 6), np.array([[0.9, 1, 1.9, -0.9, 0, -1]], np.float32)
    for label, ignored in (0, [0, 3, 4]), (1, [1, 2]), (-1, [5]):
        diff = run_layer(loss(f"ignore_label: {label}"), [scores, target]).backward()[0][0]
        assert np.flatnonzero(diff == 0).tolist() == ignored


@pytest.mark.parametrize("mode", ["FULL", "VALID", "BATCH_SIZE", "NONE"])
def test_a_batch_of_ignored_targets_has_loss_zero_and_no_gradient(mode: str) -> None:
    scores = random(10, 3, 4)
    scores[1, 1] = np.nan
    run = run_layer(loss(f"ignore_label: -1 normalization: {mode}"), [scores, np.full((3, 4), -1)])
    assert run.tops[0] == 0
    assert not run.backward()[0][0].any()


@pytest.mark.parametrize("which", [0, 1])
def test_nan_in_a_score_or_a_target_makes_the_loss_nan(which: int) -> None:
    bottoms = [random(11, 3, 4), targets(12, 3, 4)]
    bottoms[which][1, 2] = np.nan
    run = run_layer(loss("ignore_label: 5"), bottoms)
    assert np.isnan(run.tops[0])
    assert np.argwhere(np.isnan(run.backward()[0][0])).tolist() == [[1, 2]]


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (
            [(6, 5), (5, 6)],
            r"scores and targets must have the same first dimension.* Received 'bottom_0' \(6, 5\) and '",
        ),
        (
            [(6, 5), (6,)],
            r"one target for each score. Expected 30 as of .*_0' \(6, 5\), received targets 'bottom_1' \(6,\)",
        ),
    ],
)
def test_bottoms_that_do_not_fit_are_named(shapes: list[tuple[int, ...]], message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        run_layer(loss(), [np.zeros(shape) for shape in shapes])


def test_there_is_no_gradient_for_the_targets_and_none_that_is_not_wanted() -> None:
    run = run_layer(loss(), [random(13, 3, 4), targets(14, 3, 4)])
    assert [run.layer.allow_force_backward(i) for i in (0, 1)] == [True, False]
    run.backward(propagate_down=[False, False])
    assert np.isnan(run.bottom[0].diff).all()
    with pytest.raises(NetError, match=r"a loss has no gradient for its labels. Set propagate_down: false"):
        run.backward(propagate_down=[True, True])
